//! One world from a seed: SRCs, a network, an engine, a clock of its own, and the real session layer in the middle.

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sipreel::clock::{Mono, Now, Wall};
use sipreel::counters::{EndCause, SessionCounters};
use sipreel::proto::manifest::Format;
use sipreel::session::state::State;
use sipreel::session::table::Table;
use sipreel::session::{
    Command, ConnectionKey, Ends, Event, Flow, Notice, Order, PortPair, RecordingKey, Rules, Sessions, Terms,
    Transport,
};

use crate::engine::{Engine, Temper};
use crate::fault::Fault;
use crate::network::{Weather, broken};
use crate::referee::{Cause, Circumstances, Referee};
use crate::report::{Report, Rule, Violation};
use crate::sip::Message;
use crate::src::{Act, Alarm, Answers, Call, Effect, Habits, Here, Opening, reply};
use crate::vendor::TEMPLATES;

pub const BEGIN: Mono = Mono(1_000_000_000);
const BEGIN_WALL: Wall = Wall(1_795_336_245_000_000_000);
/// Longer than any timer: what has not happened by then does not.
const REST: Duration = Duration::from_secs(3_600);
/// Steps of one world; a world of 60 calls takes some thousands.
const STEPS_MAX: usize = 400_000;

/// What a seed decides before anything happens.
#[derive(Debug)]
pub struct Plan {
    pub seed: u64,
    calls: usize,
    reactors: u8,
    pairs: u16,
    slots: usize,
    format: Format,
    cooldown: Duration,
    weather: Weather,
    temper: Temper,
    /// Milliseconds in which the calls begin, and how long they may last.
    span: u64,
    longest: u64,
    /// Share of the sources that use a connection.
    tcp: f64,
    /// When the recorder is told to end, if not after the last call; and how long it waits.
    drain: Option<u64>,
    grace: Duration,
    session_expires: Option<Duration>,
    ends: Ends,
    /// When an operator ends something.
    order: Option<u64>,
}

impl Plan {
    pub fn new(seed: u64, rng: &mut StdRng) -> Plan {
        let crowded = rng.random_bool(0.3);
        Plan {
            seed,
            calls: rng.random_range(1..40),
            reactors: rng.random_range(1..=3),
            pairs: if crowded { rng.random_range(2..20) } else { 100 },
            slots: if crowded { rng.random_range(1..15) } else { 64 },
            format: if rng.random_bool(0.8) { Format::Pcap } else { Format::Raw },
            cooldown: Duration::from_millis([0, 1_000, 5_000][rng.random_range(0..3)]),
            weather: Weather::any(rng),
            temper: Temper {
                fails: [0.0, 0.1, 0.5][rng.random_range(0..3)],
                stuck: [0.0, 0.05][rng.random_range(0..2)],
                slowest: [0, 20, 1_500][rng.random_range(0..3)],
                commits_fail: [0.0, 0.2][rng.random_range(0..2)],
            },
            span: [10, 1_000, 20_000][rng.random_range(0..3)],
            longest: [500, 20_000, 120_000][rng.random_range(0..3)],
            tcp: [0.0, 0.3, 1.0][rng.random_range(0..3)],
            drain: rng.random_bool(0.3).then(|| rng.random_range(0..30_000)),
            grace: Duration::from_millis([0, 5_000][rng.random_range(0..2)]),
            session_expires: [None, Some(90), Some(90), Some(1_800)][rng.random_range(0..4)]
                .map(Duration::from_secs),
            ends: Ends {
                media_timeout: [None, Some(Duration::from_secs(30))][rng.random_range(0..2)],
                transport_timeout: [None, Some(Duration::from_secs(20))][rng.random_range(0..2)],
                max_duration: [None, None, Some(Duration::from_secs(60))][rng.random_range(0..3)],
            },
            order: rng.random_bool(0.2).then(|| rng.random_range(0..30_000)),
        }
    }

    fn rules(&self) -> Rules {
        let pair = |reactor: u8, index: u16| PortPair {
            reactor,
            index,
            rtp: 20_000 + 2_000 * u16::from(reactor) + 2 * index,
        };
        Rules {
            sessions_max: self.slots,
            format: self.format,
            port_cooldown: self.cooldown,
            media_ip: None,
            ports: (0..self.reactors)
                .flat_map(|r| (0..self.pairs).map(move |index| pair(r, index)))
                .collect(),
            reactors: self.reactors,
            strict_siprec: false,
            explain_refusals: false,
            answer_metadata: false,
            product: "sipreel/sim".to_owned(),
            terms: Terms { session_expires: self.session_expires, ..Terms::default() },
            instance: 0,
            ends: self.ends,
            resource: Default::default(),
            admission: Default::default(),
        }
    }
}

/// A box of the other side: one address, or one connection at a time, for many calls.
struct Source {
    flow: Flow,
    connected: bool,
    /// When the newest message of its connection arrives, in each direction: the next comes later.
    newest: [Mono; 2],
}

enum Item {
    ToRecorder {
        flow: Flow,
        bytes: Bytes,
        broken: bool,
    },
    ToSource {
        source: usize,
        connection: Option<ConnectionKey>,
        bytes: Bytes,
    },
    Engine(Event),
    Call(usize, Alarm),
    Cut(usize),
    Drain,
    /// Packets come for a recording.
    Media(RecordingKey),
    /// An operator ends one of the recordings.
    Order,
}

pub struct World {
    pub plan: Plan,
    rng: StdRng,
    now: Now,
    queue: BTreeMap<(Mono, u64), Item>,
    sequence: u64,
    sessions: Sessions,
    counters: Arc<SessionCounters>,
    table: Arc<Table>,
    engine: Engine,
    referee: Referee,
    calls: Vec<Call>,
    sources: Vec<Source>,
    draining: bool,
    /// When something happened last.
    busy: Mono,
    first_cut: Option<Mono>,
    ordered: Vec<String>,
    started: u64,
    ended: u64,
    fault: Option<Fault>,
    report: Report,
}

impl World {
    pub fn new(seed: u64, fault: Option<Fault>, traced: bool) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut plan = Plan::new(seed, &mut rng);
        if let Some(fault) = &fault {
            plan.weather = Weather { broken: 0.0, ..plan.weather };
            fault.set_scene(&mut plan.temper, &mut plan.weather);
        }
        let rules = plan.rules();
        let (counters, table) = (Arc::new(SessionCounters::default()), Arc::new(Table::new(plan.slots)));
        let sessions =
            Sessions::new(rules, counters.clone(), table.clone(), StdRng::seed_from_u64(rng.random()));
        let mut world = World {
            engine: Engine::new(plan.temper, plan.cooldown),
            rng,
            now: Now { mono: BEGIN, wall: BEGIN_WALL },
            queue: BTreeMap::new(),
            sequence: 0,
            sessions,
            counters,
            table,
            referee: Referee::default(),
            calls: Vec::new(),
            sources: Vec::new(),
            draining: false,
            busy: BEGIN,
            first_cut: None,
            ordered: Vec::new(),
            started: 0,
            ended: 0,
            fault,
            report: Report { trace: traced.then(Vec::new), ..Report::default() },
            plan,
        };
        world.populate();
        world
    }

    fn populate(&mut self) {
        for number in 0..1 + self.plan.calls / 4 {
            let source = self.source(number as u16);
            self.sources.push(source);
            if self.rng.random_bool(self.plan.weather.cut) {
                let at = self.rng.random_range(0..self.plan.span + self.plan.longest);
                self.later(at, Item::Cut(number));
            }
        }
        for number in 0..self.plan.calls {
            self.call(number);
        }
        if let Some(at) = self.plan.drain {
            self.later(at, Item::Drain);
        }
        if let Some(at) = self.plan.order {
            self.later(at, Item::Order);
        }
    }

    fn source(&mut self, number: u16) -> Source {
        let tcp = self.rng.random_bool(self.plan.tcp);
        let flow = Flow {
            reactor: self.rng.random_range(0..self.plan.reactors),
            transport: if tcp { Transport::Tcp } else { Transport::Udp },
            local: SocketAddr::from(([192, 0, 2, 10], 5060)),
            peer: SocketAddr::from(([198, 51, 100, 1], 5060 + number)),
            listener: 0,
            connection: tcp.then_some(ConnectionKey { slot: u32::from(number), generation: 1 }),
        };
        Source { flow, connected: true, newest: [BEGIN; 2] }
    }

    fn call(&mut self, number: usize) {
        let habits = self.habits();
        let template = &TEMPLATES[self.rng.random_range(0..TEMPLATES.len())];
        let source = self.rng.random_range(0..self.sources.len());
        let start = self.rng.random_range(0..=self.plan.span);
        self.later(start, Item::Call(number, Alarm::Act(Act::Invite)));
        let end = start + self.rng.random_range(50..=self.plan.longest);
        let act = |world: &mut World, share: f64, until: u64, act: Act| {
            if world.rng.random_bool(share) {
                let at = world.rng.random_range(start..=until);
                world.later(at, Item::Call(number, Alarm::Act(act)));
            }
        };
        act(self, 0.05, start + 50, Act::Fork);
        act(self, 0.1, start + 2_000, Act::Cancel);
        act(self, 0.05, end, Act::Die);
        for odd in [Act::Glare, Act::LowCseq, Act::ForeignBye, Act::Unknown] {
            act(self, 0.05, end, odd);
        }
        for change in template.profile.changes {
            act(self, 0.5, end, Act::Change(*change));
        }
        self.later(end, Item::Call(number, Alarm::Act(Act::Bye)));
        // A call that was not up by then ends as soon as it is asked again.
        for again in [5_000, 40_000, 80_000, 600_000] {
            self.later(end + again, Item::Call(number, Alarm::Act(Act::Bye)));
        }
        let name = format!("{}x{number}", self.plan.seed);
        self.calls.push(Call::new(template, habits, source, &name));
    }

    fn habits(&mut self) -> Habits {
        let rng = &mut self.rng;
        let opening = match rng.random_bool(0.12) {
            true => Opening::ODD[rng.random_range(0..Opening::ODD.len())],
            false => Opening::Usual,
        };
        Habits {
            opening,
            rport: rng.random_bool(0.5),
            never_acks: rng.random_bool(0.05),
            ack_delay: Duration::from_millis([0, 0, 0, 700, 40_000][rng.random_range(0..5)]),
            ack_in_transaction: rng.random_bool(0.1),
            acks_twice: rng.random_bool(0.1),
            bye_same_cseq: rng.random_bool(0.05),
            bye_before_ack: rng.random_bool(0.1),
            answers: match rng.random_range(0..10) {
                0 => Answers::TryingFirst,
                1 => Answers::Late,
                2 => Answers::Never,
                3 => Answers::UnknownDialog,
                4 => Answers::NoUpdate,
                5 => Answers::Busy,
                _ => Answers::Ok,
            },
        }
    }

    fn later(&mut self, milliseconds: u64, item: Item) {
        self.at(self.now.mono + Duration::from_millis(milliseconds), item);
    }

    fn at(&mut self, at: Mono, item: Item) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), item);
    }

    // ---- time ---------------------------------------------------------------------------------------------------

    /// Lives to its end. What was wrong with it, and the trace if it was asked for.
    pub fn run(mut self) -> Outcome {
        self.until_quiet();
        // SRCs that died, and dialogs that only the recorder knows, are ended by the drain.
        self.drain();
        self.until_quiet();
        self.judge();
        Outcome {
            counts: Counts::of(&self),
            violations: self.report.violations,
            trace: self.report.trace.unwrap_or_default(),
        }
    }

    /// Other SRCs, another network, another engine around the same session layer, which has the same ports and slots.
    pub fn renew(&mut self, seed: u64) {
        self.rng = StdRng::seed_from_u64(seed);
        let plan = Plan::new(seed, &mut self.rng);
        let Plan { reactors, pairs, slots, format, cooldown, ends, .. } = self.plan;
        // A call that only a broken message has begun is known to nobody who could end it.
        let weather = Weather { broken: 0.0, ..plan.weather };
        self.plan = Plan { reactors, pairs, slots, format, cooldown, ends, weather, drain: None, ..plan };
        self.jump(self.now.mono + Duration::from_secs(60));
        self.populate();
    }

    /// Lives until nothing is left in the layer, and forgets all that was around it.
    pub fn soak(&mut self) -> Vec<Violation> {
        self.until_quiet();
        for bye in self.referee.byes_due() {
            let flow = self.sources[0].flow;
            let flow = Flow { transport: Transport::Udp, connection: None, ..flow };
            let cause = Cause { message: Message::read(bye.as_bytes()), broken: false };
            let (bytes, at) = (Bytes::from(bye), self.now.wall);
            self.referee.arrives(self.now.mono, flow, &cause);
            self.handle(Event::Message { flow, bytes, at }, &cause);
        }
        self.until_quiet();
        self.check_quiet();
        (self.calls, self.sources, self.queue) = Default::default();
        (self.referee, self.engine) = (Referee::default(), Engine::new(self.plan.temper, self.plan.cooldown));
        std::mem::take(&mut self.report.violations)
    }

    fn until_quiet(&mut self) {
        for _ in 0..STEPS_MAX {
            // A recording that is held may wait for its SRC for ever, and is looked at all the while.
            let at_rest = self.queue.is_empty() && self.now.mono.since(self.busy) > REST;
            if at_rest || !self.step() {
                return;
            }
            if self.report.violations.len() > 20 {
                return;
            }
        }
        self.report.broken(Rule::Left, "this world does not come to rest");
    }

    /// The next thing that happens, if there is one.
    fn step(&mut self) -> bool {
        let item = self.queue.first_key_value().map(|((at, _), _)| *at);
        let wake = self.sessions.next_wake();
        let Some(next) = item.into_iter().chain(wake).min() else { return false };
        match wake.filter(|wake| *wake <= next) {
            Some(wake) => {
                // Now and then the box is busy.
                let late = if self.rng.random_bool(0.05) { self.rng.random_range(0..20) } else { 0 };
                self.jump(wake + Duration::from_millis(late));
                self.wake();
            }
            None => {
                self.jump(next);
                if let Some((_, item)) = self.queue.pop_first() {
                    self.happen(item);
                }
            }
        }
        self.check_pools();
        self.read_notices();
        true
    }

    fn jump(&mut self, to: Mono) {
        let passed = to.since(self.now.mono).as_nanos() as u64;
        self.now = Now { mono: Mono(self.now.mono.0 + passed), wall: Wall(self.now.wall.0 + passed) };
        self.report.now = self.now.mono;
    }

    fn wake(&mut self) {
        let mut out = Vec::new();
        self.sessions.timeout(self.now, &mut out);
        let again = self.sessions.next_wake().is_some_and(|next| next <= self.now.mono);
        self.report.hold(!again, Rule::Wake, || "a timeout that does not do what is due".to_owned());
        if !out.is_empty() {
            self.busy = self.now.mono;
        }
        self.execute(out, &Cause { message: None, broken: false });
        if again {
            self.jump(self.now.mono + Duration::from_millis(1));
        }
    }

    fn happen(&mut self, item: Item) {
        self.busy = self.now.mono;
        match item {
            Item::ToRecorder { flow, bytes, broken } => self.reaches_recorder(flow, bytes, broken),
            Item::ToSource { source, connection, bytes } => self.reaches_source(source, connection, &bytes),
            Item::Engine(event) => {
                if self.engine.reports(self.now.mono, &event) {
                    if let Event::Opened { key } = event {
                        self.later(1_000, Item::Media(key));
                    }
                    self.report.note(|| format!("engine {event:?}"));
                    self.handle(event, &Cause { message: None, broken: false });
                }
            }
            Item::Call(number, alarm) => {
                let here = self.here(self.calls[number].source);
                let effects = self.calls[number].alarm(here, alarm, &mut self.rng);
                self.carry_out(number, effects);
            }
            Item::Cut(source) => self.cut(source),
            Item::Drain => self.drain(),
            Item::Media(key) => self.media(key),
            Item::Order => self.order(),
        }
    }

    fn media(&mut self, key: RecordingKey) {
        if self.engine.hears(self.now.mono, key) {
            self.handle(Event::Media { key, at: self.now.wall }, &Cause { message: None, broken: false });
            let next = self.rng.random_range(500..8_000);
            self.later(next, Item::Media(key));
        }
    }

    fn order(&mut self) {
        let Some(id) = self.engine.ids().pop() else { return };
        self.report.note(|| format!("the operator ends {id}"));
        self.ordered.push(id.clone());
        let event = Event::Order { ticket: 1, order: Order::End { id, note: None } };
        self.handle(event, &Cause { message: None, broken: false });
        let answers = self.sessions.take_answers().len();
        self.report.hold(answers == 1, Rule::Notices, || format!("{answers} answers to one order"));
    }

    fn drain(&mut self) {
        self.draining = true;
        self.report.note(|| "drain".to_owned());
        let grace = self.plan.grace;
        self.handle(Event::Drain { grace }, &Cause { message: None, broken: false });
    }

    // ---- the session layer --------------------------------------------------------------------------------------

    fn handle(&mut self, event: Event, cause: &Cause) {
        self.busy = self.now.mono;
        let mut out = Vec::new();
        if self.fault.as_mut().is_some_and(|fault| fault.swallows(&event)) {
            return;
        }
        self.sessions.handle(self.now, event, &mut out);
        self.execute(out, cause);
    }

    fn execute(&mut self, mut out: Vec<Command>, cause: &Cause) {
        if let Some(fault) = &mut self.fault {
            fault.spoil(&mut out, cause, &self.counters);
        }
        for command in out {
            self.carry_out_command(command, cause);
        }
    }

    fn carry_out_command(&mut self, command: Command, cause: &Cause) {
        let report = &mut self.report;
        match command {
            Command::Send { flow, bytes } => {
                report.note(|| format!("  ──▶ {} {}", flow.peer, text(&bytes)));
                self.referee.sends(flow, &bytes, cause, &self.engine, report);
                self.send(flow, bytes);
            }
            Command::Open(open) => {
                report.note(|| format!("  Open {:?} {}", open.key, open.path));
                self.referee.opens(&open);
                let (after, event) = self.engine.open(&mut self.rng, &open, report);
                self.later(after, Item::Engine(event));
            }
            Command::Change(change) => {
                report.note(|| format!("  {change:?}"));
                let (after, event) = self.engine.change(&mut self.rng, &change, report);
                self.later(after, Item::Engine(event));
            }
            Command::Signal { key, .. } => self.engine.signal(key, report),
            Command::File { key, file } => self.engine.file(key, &file, report),
            Command::Close(close) => {
                let cause = close.manifest.as_ref().map(|manifest| &manifest.end_cause);
                report.note(|| format!("  Close {:?} {cause:?}", close.key));
                let (age, silence) = self.engine.ages(self.now.mono, close.key);
                let world = Circumstances {
                    draining: self.draining,
                    ends: &self.plan.ends,
                    age,
                    silence,
                    cut: self.first_cut,
                    ordered: &self.ordered,
                };
                self.referee.closes(close.key, close.manifest.as_deref(), &world, report);
                for (after, event) in self.engine.close(&mut self.rng, &close, report) {
                    self.later(after, Item::Engine(event));
                }
            }
            Command::Disconnect { flow } => {
                let source = self.sources.iter().position(|source| source.flow.connection == flow.connection);
                if let Some(source) = source {
                    self.later(1, Item::Cut(source));
                }
            }
        }
    }

    // ---- the network --------------------------------------------------------------------------------------------

    fn here(&mut self, source: usize) -> Here {
        let source = &mut self.sources[source];
        if !source.connected {
            source.connected = true;
            if let Some(connection) = &mut source.flow.connection {
                connection.generation += 1;
            }
        }
        Here { now: self.now.mono, transport: source.flow.transport, address: source.flow.peer }
    }

    fn carry_out(&mut self, number: usize, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send(text) => self.carry_to_recorder(self.calls[number].source, text),
                Effect::Later(after, alarm) => self.at(self.now.mono + after, Item::Call(number, alarm)),
                Effect::Broken(rule, what) => {
                    let call_id = &self.calls[number].call_id;
                    let excused = self.referee.seen.any_broken;
                    self.report.hold(excused, rule, || format!("{call_id}: {what}"));
                }
            }
        }
    }

    fn carry_to_recorder(&mut self, source: usize, text: String) {
        let flow = self.sources[source].flow;
        let bytes = Bytes::from(text);
        if flow.transport == Transport::Tcp {
            let at = self.in_order(source, 0);
            return self.at(at, Item::ToRecorder { flow, bytes, broken: false });
        }
        for (after, is_broken) in self.plan.weather.carry(&mut self.rng) {
            let bytes = if is_broken { Bytes::from(broken(&bytes, &mut self.rng)) } else { bytes.clone() };
            self.later(after, Item::ToRecorder { flow, bytes, broken: is_broken });
        }
    }

    fn send(&mut self, flow: Flow, bytes: Bytes) {
        let to = |source: &Source| match flow.connection {
            Some(_) => source.flow.connection == flow.connection,
            None => source.flow.peer == flow.peer && source.flow.transport == flow.transport,
        };
        let Some(source) = self.sources.iter().position(to) else { return };
        let connection = flow.connection;
        if flow.transport == Transport::Tcp {
            if !self.sources[source].connected {
                return;
            }
            let at = self.in_order(source, 1);
            return self.at(at, Item::ToSource { source, connection, bytes });
        }
        for (after, is_broken) in self.plan.weather.carry(&mut self.rng) {
            // What an SRC makes of a broken message is not our matter.
            if !is_broken {
                self.later(after, Item::ToSource { source, connection, bytes: bytes.clone() });
            }
        }
    }

    /// When the next message of the connection arrives.
    fn in_order(&mut self, source: usize, direction: usize) -> Mono {
        let delay = Duration::from_millis(self.rng.random_range(0..20));
        let newest = &mut self.sources[source].newest[direction];
        *newest = (*newest).max(self.now.mono + delay);
        *newest
    }

    /// The connection breaks; what is on its way is lost.
    fn cut(&mut self, source: usize) {
        let Source { flow, connected, .. } = &mut self.sources[source];
        let (Some(connection), true) = (flow.connection, *connected) else { return };
        let reactor = flow.reactor;
        *connected = false;
        self.first_cut.get_or_insert(self.now.mono);
        self.report.note(|| format!("cut {connection:?}"));
        self.handle(Event::Disconnected { reactor, connection }, &Cause { message: None, broken: false });
    }

    fn reaches_recorder(&mut self, flow: Flow, bytes: Bytes, broken: bool) {
        let current = self.sources.iter().any(|source| {
            source.flow.connection == flow.connection && (source.connected || flow.connection.is_none())
        });
        if !current {
            return;
        }
        let mark = if broken { " (broken)" } else { "" };
        self.report.note(|| format!("◀── {} {}{mark}", flow.peer, text(&bytes)));
        let cause = Cause { message: Message::read(&bytes), broken };
        self.referee.arrives(self.now.mono, flow, &cause);
        let at = self.now.wall;
        self.handle(Event::Message { flow, bytes, at }, &cause);
    }

    fn reaches_source(&mut self, source: usize, connection: Option<ConnectionKey>, bytes: &Bytes) {
        let Source { flow, connected, .. } = self.sources[source];
        if connection.is_some() && !(connected && flow.connection == connection) {
            return;
        }
        let Some(message) = Message::read(bytes) else { return };
        let call_id = message.call_id();
        let known = self.calls.iter().position(|call| call.call_id == call_id && call.source == source);
        let Some(number) = known else {
            // A call that only a broken message has begun.
            if message.code().is_none() && message.method() != "ACK" {
                self.carry_to_recorder(source, reply(&message, "481 Call/Transaction Does Not Exist", ""));
            }
            return;
        };
        let here = self.here(source);
        let effects = self.calls[number].receive(here, &message);
        self.carry_out(number, effects);
    }

    // ---- what has to hold ---------------------------------------------------------------------------------------

    /// Each moment: what the layer holds is what the engine has, or rests.
    fn check_pools(&mut self) {
        let counters = &self.counters;
        let (free, used, cooling) =
            (counters.ports_free.get(), counters.ports_used.get(), counters.ports_cooling.get());
        let total = u64::from(self.plan.pairs) * u64::from(self.plan.reactors);
        self.report.hold(free + used + cooling == total, Rule::Pools, || {
            format!("{free} free + {used} used + {cooling} cooling of {total} pairs")
        });
        let held = self.engine.pairs_held() as u64;
        self.report.hold(used == held, Rule::Pools, || format!("{used} pairs in use, the engine has {held}"));
        if self.sequence.is_multiple_of(16) {
            let shown: Vec<RecordingKey> = self.table.iter().map(|snapshot| snapshot.key).collect();
            let open = self.engine.open_keys();
            self.report
                .hold(shown == open, Rule::Pools, || format!("the table has {shown:?}, the engine {open:?}"));
        }
    }

    fn read_notices(&mut self) {
        for notice in self.sessions.take_notices() {
            match notice {
                Notice::State(step) if step.from.opening() && step.to.established() => self.started += 1,
                Notice::State(step) if step.to == State::Ending => self.ended += 1,
                _ => {}
            }
        }
        self.report
            .hold(self.ended <= self.started, Rule::Notices, || "more ends than beginnings".to_owned());
        self.sessions.setup_times();
    }

    /// When nothing more can happen.
    fn judge(&mut self) {
        self.referee.over(&mut self.report);
        self.check_left();
        self.check_counters();
    }

    fn check_left(&mut self) {
        self.check_quiet();
        let report = &mut self.report;
        report.hold(self.sessions.drained(), Rule::Left, || "the drain has no end".to_owned());
        let open = self.referee.open_dialogs();
        let cut = self.sources.iter().any(|source| source.flow.connection.is_some());
        // A drain waits for no ACK, and without one there is no BYE: those are counted.
        let unsent = self.counters.byes_unsent.get() as usize;
        let told = open <= unsent || cut || self.referee.seen.any_broken;
        report.hold(told, Rule::Left, || format!("{open} dialogs that neither side has ended"));
        let (started, ended) = (self.started, self.ended);
        report.hold(started == ended, Rule::Notices, || format!("{started} begun, {ended} ended"));
    }

    fn check_quiet(&mut self) {
        let report = &mut self.report;
        let slots = (self.engine.slots_held(), self.table.iter().count());
        report.hold(slots == (0, 0), Rule::Left, || format!("recordings left: engine, table {slots:?}"));
        let transactions = self.counters.transactions.get();
        report.hold(transactions == 0, Rule::Left, || format!("{transactions} transactions left"));
        let cooling = self.counters.ports_cooling.get();
        report.hold(cooling == 0, Rule::Left, || format!("{cooling} pairs still rest"));
        let wake = self.sessions.next_wake();
        report.hold(wake.is_none(), Rule::Left, || format!("a timer is left: {wake:?}"));
    }

    fn check_counters(&mut self) {
        let (counters, seen, report) = (&self.counters, &self.referee.seen, &mut self.report);
        let mut equal = |what: &str, counted: u64, seen: u64| {
            report
                .hold(counted == seen, Rule::Counters, || format!("{what}: {counted} counted, {seen} seen"));
        };
        let responses: u64 = counters.responses.iter().map(|counter| counter.get()).sum();
        let first = counters.retransmissions_sent.get() + responses + seen.own_requests;
        equal("messages sent", first, seen.sent);
        equal("active", counters.active.get(), 0);
        equal("total", counters.total.get(), self.started);
        equal("committed", counters.committed.get(), self.engine.committed);
        equal("commits failed", counters.commits_failed.get(), self.engine.commits_failed);
        equal("commits", self.engine.committed + self.engine.commits_failed, counters.total.get());
        if seen.any_broken {
            return;
        }
        equal("malformed", counters.malformed.get(), 0);
        let refused: u64 = counters.refused.iter().map(|counter| counter.get()).sum();
        let initial: u64 = seen.initial.values().sum();
        if !self.calls.iter().any(|call| call.habits.opening == Opening::Version3) {
            equal("refused and accepted", refused + counters.total.get(), initial);
        }
        let requests: u64 = counters.requests.iter().map(|counter| counter.get()).sum();
        equal("requests", requests, seen.requests.values().sum());
        equal("established", counters.total.get(), seen.established);
        for cause in EndCause::ALL {
            let seen = seen.ends.get(cause.text()).copied().unwrap_or(0);
            equal(cause.text(), counters.ended[*cause as usize].get(), seen);
        }
        equal("transitions refused", counters.transitions_refused.get(), 0);
        let ack_timeouts = seen.ends.get("ack_timeout").copied().unwrap_or(0);
        equal("ack timeouts", counters.ack_timeouts.get(), ack_timeouts);
    }
}

fn text(bytes: &Bytes) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line = |name: &str| {
        let found = text.lines().find(|line| line.to_ascii_lowercase().starts_with(name));
        found.map(|line| line.trim_end().to_owned()).unwrap_or_default()
    };
    format!("{} | {} | {} | {} | {}", line(""), line("via"), line("to:"), line("call-id"), line("cseq"))
}

/// What became of a world.
pub struct Outcome {
    pub violations: Vec<Violation>,
    pub trace: Vec<String>,
    pub counts: Counts,
}

/// What happened in it: whether the worlds go where they should.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Counts {
    pub calls: u64,
    pub established: u64,
    /// By final response to an INVITE that begins a recording.
    pub initial: BTreeMap<u16, u64>,
    /// By cause.
    pub ends: BTreeMap<String, u64>,
    pub sent: u64,
    pub repeats: u64,
    pub own_requests: u64,
    /// Virtual seconds.
    pub seconds: u64,
}

impl Counts {
    fn of(world: &World) -> Counts {
        let seen = &world.referee.seen;
        Counts {
            calls: world.calls.len() as u64,
            established: seen.established,
            initial: seen.initial.clone(),
            ends: seen.ends.clone(),
            sent: seen.sent,
            repeats: world.counters.retransmissions_sent.get(),
            own_requests: seen.own_requests,
            seconds: world.now.mono.since(BEGIN).as_secs(),
        }
    }

    pub fn add(&mut self, other: &Counts) {
        self.calls += other.calls;
        self.established += other.established;
        for (code, n) in &other.initial {
            *self.initial.entry(*code).or_default() += n;
        }
        for (cause, n) in &other.ends {
            *self.ends.entry(cause.clone()).or_default() += n;
        }
        self.sent += other.sent;
        self.repeats += other.repeats;
        self.own_requests += other.own_requests;
        self.seconds += other.seconds;
    }
}
