//! Many SRCs over a network that loses, repeats and reorders, and an engine that is slow and fails: from seeds.
//!
//! Afterwards every port, slot and transaction is back, every request that arrived has one final response, and the engine
//! was never asked for anything out of turn.

use rand::Rng;
use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::limits::{T1, T2, TRANSACTION_TIMEOUT};

const CALLS: usize = 60;
const PAIRS: u16 = 30;
const SLOTS: usize = 25;

#[test]
fn after_the_storm_everything_is_back() {
    let mut established = 0;
    let mut refused = BTreeSet::new();
    for seed in 0..24 {
        let mut storm = Storm::new(seed);
        storm.run();
        storm.check();
        established += storm.recorder.counters.total.get();
        refused
            .extend(storm.finals.iter().filter(|((_, method), _)| method == "INVITE").map(|(_, code)| *code));
    }
    // The storm went where it should: calls were made, and INVITEs got every kind of end.
    assert!(established > 500, "{established}");
    for code in [200, 487, 500, 503] {
        assert!(refused.contains(&code), "{code} not in {refused:?}");
    }
}

struct Storm {
    rng: StdRng,
    recorder: Recorder,
    queue: BTreeMap<(Mono, u64), Item>,
    sequence: u64,
    calls: Vec<Call>,
    engine: Engine,
    /// Requests that arrived, by branch and method, and the final response to each.
    arrived: BTreeSet<(String, String)>,
    finals: BTreeMap<(String, String), u16>,
}

enum Item {
    /// A message arrives at the recorder, or at the SRC of a call.
    ToRecorder(Flow, Bytes),
    ToSrc(usize, Bytes),
    Engine(Event),
    Act(usize, Act),
    /// Timers A, B, E, F of the SRC.
    Retransmit(usize, String, Duration, Mono),
}

#[derive(Clone, Copy)]
enum Act {
    Invite,
    Cancel,
    Reinvite,
    Bye,
}

/// An SRC with one call.
struct Call {
    call_id: String,
    flow: Flow,
    tag: String,
    cseq: u32,
    ended: bool,
    /// Requests without a final response, by branch.
    waiting: BTreeMap<String, String>,
}

impl Storm {
    fn new(seed: u64) -> Storm {
        let mut storm = Storm {
            rng: StdRng::seed_from_u64(seed),
            recorder: Recorder::new(PAIRS, SLOTS),
            queue: BTreeMap::new(),
            sequence: 0,
            calls: Vec::new(),
            engine: Engine::default(),
            arrived: BTreeSet::new(),
            finals: BTreeMap::new(),
        };
        for number in 0..CALLS {
            let reliable = storm.rng.random_bool(0.2);
            let peer = SocketAddr::new([198, 51, 100, 1].into(), 10_000 + number as u16);
            let flow = Flow { peer, ..if reliable { tcp() } else { udp() } };
            let call_id = format!("c{seed}-{number}-");
            storm.calls.push(Call {
                call_id,
                flow,
                tag: String::new(),
                cseq: 1,
                ended: false,
                waiting: BTreeMap::new(),
            });
            let start = storm.rng.random_range(0..20_000);
            storm.later(start, Item::Act(number, Act::Invite));
            if storm.rng.random_bool(0.2) {
                let cancel = start + storm.rng.random_range(0..2_000);
                storm.later(cancel, Item::Act(number, Act::Cancel));
            }
            for _ in 0..storm.rng.random_range(0..3) {
                let change = start + storm.rng.random_range(500..15_000);
                storm.later(change, Item::Act(number, Act::Reinvite));
            }
            let end = start + storm.rng.random_range(100..20_000);
            storm.later(end, Item::Act(number, Act::Bye));
        }
        storm
    }

    fn later(&mut self, milliseconds: u64, item: Item) {
        self.sequence += 1;
        let at = self.recorder.now.mono + Duration::from_millis(milliseconds);
        self.queue.insert((at, self.sequence), item);
    }

    fn run(&mut self) {
        self.step_until_quiet();
        let out = self.recorder.event(Event::Drain { grace: Duration::ZERO });
        self.execute(out);
        self.step_until_quiet();
        assert!(self.recorder.sessions.drained());
    }

    fn step_until_quiet(&mut self) {
        loop {
            let item = self.queue.first_key_value().map(|((at, _), _)| *at);
            let wake = self.recorder.sessions.next_wake();
            let Some(next) = item.into_iter().chain(wake).min() else { return };
            self.recorder.jump(next.max(self.recorder.now.mono));
            if wake.is_some_and(|wake| wake <= next) {
                let mut out = Vec::new();
                self.recorder.sessions.timeout(self.recorder.now, &mut out);
                self.execute(out);
            } else if let Some((_, item)) = self.queue.pop_first() {
                self.happen(item);
            }
            let (free, used, cooling) = self.recorder.ports();
            assert_eq!(free + used + cooling, 2 * u64::from(PAIRS));
        }
    }

    fn happen(&mut self, item: Item) {
        match item {
            Item::ToRecorder(flow, bytes) => {
                let text = text(&bytes);
                if !text.starts_with("SIP/2.0") && !text.starts_with("ACK") {
                    self.arrived.insert(transaction(text));
                }
                let at = self.recorder.now.wall;
                let out = self.recorder.event(Event::Message { flow, bytes, at });
                self.execute(out);
            }
            Item::Engine(event) => {
                self.engine.note(self.recorder.now.mono, &event);
                let out = self.recorder.event(event);
                self.execute(out);
            }
            Item::ToSrc(number, bytes) => self.src(number, text(&bytes)),
            Item::Act(number, act) => self.act(number, act),
            Item::Retransmit(number, branch, interval, deadline) => {
                self.retransmit(number, branch, interval, deadline)
            }
        }
    }

    // ---- the SRC ------------------------------------------------------------------------------------------------

    fn act(&mut self, number: usize, act: Act) {
        let call = &mut self.calls[number];
        let established = !call.tag.is_empty() && !call.ended;
        let request = match act {
            Act::Invite => invite(&call.call_id),
            Act::Cancel if call.tag.is_empty() => cancel(&call.call_id),
            Act::Reinvite if established => {
                call.cseq += 1;
                let third =
                    ["", "m=audio 30000 RTP/AVP 8\n", "m=audio 0 RTP/AVP 8\n"][self.rng.random_range(0..3)];
                let second = ["22456", "0"][self.rng.random_range(0..2)];
                let offer = format!("{}{third}", OFFER.replace("22456", second));
                reinvite(&call.call_id, &call.tag, call.cseq, &offer)
            }
            Act::Bye if established => {
                call.ended = true;
                call.cseq += 1;
                bye(&call.call_id, &call.tag, call.cseq)
            }
            _ => return,
        };
        self.request(number, request);
    }

    fn request(&mut self, number: usize, request: String) {
        let key = transaction(&request).0 + &transaction(&request).1;
        self.to_recorder(number, &request);
        let call = &mut self.calls[number];
        call.waiting.insert(key.clone(), request);
        if call.flow.transport == Transport::Udp {
            let deadline = self.recorder.now.mono + TRANSACTION_TIMEOUT;
            self.later(T1.as_millis() as u64, Item::Retransmit(number, key, T1 * 2, deadline));
        }
    }

    fn retransmit(&mut self, number: usize, key: String, interval: Duration, deadline: Mono) {
        let Some(request) = self.calls[number].waiting.get(&key).cloned() else { return };
        if self.recorder.now.mono >= deadline {
            self.calls[number].waiting.remove(&key);
            return;
        }
        self.to_recorder(number, &request);
        let next = (interval * 2).min(T2);
        self.later(interval.as_millis() as u64, Item::Retransmit(number, key, next, deadline));
    }

    fn src(&mut self, number: usize, message: &str) {
        let call = &mut self.calls[number];
        if message.starts_with("BYE") {
            call.ended = true;
            let copied: Vec<_> = ["Via", "From", "To", "Call-ID", "CSeq"]
                .iter()
                .map(|name| format!("{name}: {}\r\n", field(message, name).unwrap()))
                .collect();
            let ok = format!("SIP/2.0 200 OK\r\n{}Content-Length: 0\r\n\r\n", copied.concat());
            return self.to_recorder(number, &ok);
        }
        let code: u16 = message[8..11].parse().unwrap();
        let (branch, method) = transaction(message);
        if code < 200 {
            return;
        }
        let waited = call.waiting.remove(&(branch.clone() + &method)).is_some();
        if method != "INVITE" {
            return;
        }
        let tag = field(message, "To").unwrap().split_once(";tag=").unwrap().1.to_owned();
        let cseq: u32 = field(message, "CSeq").unwrap().split(' ').next().unwrap().parse().unwrap();
        if code >= 300 {
            let failed = ack(&call.call_id, &tag, cseq)
                .replace(&format!("ACK{}", 1_000 + cseq), &format!("INVITE{cseq}"));
            call.ended |= cseq == 1;
            return self.to_recorder(number, &failed);
        }
        // One SRC in ten never acknowledges.
        if !number.is_multiple_of(10) {
            let ack = ack(&call.call_id, &tag, cseq);
            self.to_recorder(number, &ack);
        }
        let call = &mut self.calls[number];
        if waited && cseq == 1 {
            call.tag = tag;
        }
    }

    // ---- the network --------------------------------------------------------------------------------------------

    fn to_recorder(&mut self, number: usize, message: &str) {
        let flow = self.calls[number].flow;
        let bytes = Bytes::copy_from_slice(message.as_bytes());
        self.carry(flow.transport, || Item::ToRecorder(flow, bytes.clone()));
    }

    /// UDP: 15 % lost, 10 % twice, up to 300 ms late and so in any order. TCP: all, at once.
    fn carry(&mut self, transport: Transport, item: impl Fn() -> Item) {
        if transport == Transport::Tcp {
            return self.later(1, item());
        }
        let copies = match self.rng.random_range(0..100) {
            0..15 => 0,
            15..25 => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let delay = self.rng.random_range(0..300);
            self.later(delay, item());
        }
    }

    // ---- the engine ---------------------------------------------------------------------------------------------

    fn execute(&mut self, out: Vec<Command>) {
        for command in out {
            match command {
                Command::Send { flow, bytes } => self.send(flow, bytes),
                Command::Open(open) => {
                    self.engine.open(self.recorder.now.mono, &open);
                    let key = open.key;
                    // Now and then longer than anybody waits.
                    let delay =
                        if self.rng.random_bool(0.03) { 25_000 } else { self.rng.random_range(0..1_500) };
                    let errno = [28, 13][self.rng.random_range(0..2)];
                    let failure = Failure { what: "open file", path: String::new(), errno };
                    let fails = self.rng.random_bool(0.1);
                    let event =
                        if fails { Event::OpenFailed { key, failure } } else { Event::Opened { key } };
                    self.later(delay, Item::Engine(event));
                }
                Command::Change(change) => {
                    self.engine.change(self.recorder.now.mono, &change);
                    let key = change.key;
                    let failure = Failure { what: "open file", path: String::new(), errno: 28 };
                    let fails = self.rng.random_bool(0.2);
                    let event =
                        if fails { Event::ChangeFailed { key, failure } } else { Event::Changed { key } };
                    let delay = self.rng.random_range(0..800);
                    self.later(delay, Item::Engine(event));
                }
                Command::Signal { key, .. } | Command::File { key, .. } => self.engine.assert_open(key),
                Command::Close(close) => {
                    self.engine.close(close.key);
                    // Changes under way are reported before.
                    self.later(1_000, Item::Engine(Event::Closed { key: close.key }));
                    if close.manifest.is_some() {
                        let committed = Event::Committed { id: String::new(), incomplete: false };
                        self.later(1_500, Item::Engine(committed));
                    }
                }
                Command::Disconnect { .. } => panic!("nobody asked for that"),
            }
        }
    }

    fn send(&mut self, flow: Flow, bytes: Bytes) {
        let message = text(&bytes);
        if message.starts_with("SIP/2.0") {
            let code = code(&bytes);
            let transaction = transaction(message);
            assert!(self.arrived.contains(&transaction), "an answer to nothing: {message}");
            if code >= 200 {
                let first = *self.finals.entry(transaction).or_insert(code);
                assert_eq!(first, code, "two final responses: {message}");
            } else {
                assert!(!self.finals.contains_key(&transaction), "provisional after final: {message}");
            }
        }
        let number = usize::from(flow.peer.port().wrapping_sub(10_000));
        let number = if number < CALLS { number } else { self.call_of(message) };
        self.carry(flow.transport, || Item::ToSrc(number, bytes.clone()));
    }

    /// Our BYE goes to the Contact, which all calls share.
    fn call_of(&self, message: &str) -> usize {
        let call_id = field(message, "Call-ID").unwrap();
        self.calls.iter().position(|call| call.call_id == call_id).unwrap()
    }

    fn check(&mut self) {
        for request in &self.arrived {
            assert!(self.finals.contains_key(request), "no final response: {request:?}");
        }
        assert!(self.engine.recordings.is_empty(), "{:?}", self.engine.recordings);
        self.recorder.assert_whole();
    }
}

/// Branch of the topmost Via, and method of CSeq.
fn transaction(message: &str) -> (String, String) {
    let via = field(message, "Via").unwrap();
    let branch = via.split_once("branch=").unwrap().1.split(';').next().unwrap();
    (branch.to_owned(), field(message, "CSeq").unwrap().split(' ').nth(1).unwrap().to_owned())
}

/// What the engine may rely on.
#[derive(Default)]
struct Engine {
    recordings: BTreeMap<(u32, u32), EngineRecording>,
    /// When each RTP port was let go.
    rested: BTreeMap<u16, Mono>,
}

#[derive(Debug, Default)]
struct EngineRecording {
    opened: bool,
    closed: bool,
    /// Port of each stream; and what a change under way will add and remove.
    ports: BTreeMap<u8, u16>,
    changing: Option<(BTreeMap<u8, u16>, Vec<u8>)>,
}

fn id(key: RecordingKey) -> (u32, u32) {
    (key.slot, key.generation)
}

impl Engine {
    fn open(&mut self, now: Mono, open: &Open) {
        assert!(!self.recordings.keys().any(|(slot, _)| *slot == open.key.slot), "slot in use");
        let mut recording = EngineRecording::default();
        for stream in &open.streams {
            self.assert_free(now, open.key, stream);
            recording.ports.insert(stream.stream, stream.ports.rtp);
        }
        self.recordings.insert(id(open.key), recording);
    }

    fn change(&mut self, now: Mono, change: &Change) {
        self.assert_open(change.key);
        let mut added = BTreeMap::new();
        for stream in &change.add {
            self.assert_free(now, change.key, stream);
            added.insert(stream.stream, stream.ports.rtp);
        }
        let recording = self.recordings.get_mut(&id(change.key)).unwrap();
        assert!(recording.changing.is_none(), "one change at a time");
        assert!(change.remove.iter().all(|stream| recording.ports.contains_key(stream)));
        recording.changing = Some((added, change.remove.clone()));
    }

    fn close(&mut self, key: RecordingKey) {
        self.assert_open(key);
        self.recordings.get_mut(&id(key)).unwrap().closed = true;
    }

    fn assert_open(&self, key: RecordingKey) {
        let recording = &self.recordings[&id(key)];
        assert!(recording.opened && !recording.closed, "{key:?} {recording:?}");
    }

    fn assert_free(&self, now: Mono, key: RecordingKey, stream: &OpenStream) {
        let port = stream.ports.rtp;
        assert_eq!(stream.ports.reactor, key.reactor);
        let taken = |open: &EngineRecording| open.ports.values().any(|used| *used == port);
        assert!(!self.recordings.values().any(taken), "port {port} is in use");
        assert!(
            self.rested.get(&port).is_none_or(|since| now.since(*since) >= COOLDOWN),
            "port {port} is still warm"
        );
    }

    /// What the engine reports, it has done.
    fn note(&mut self, now: Mono, event: &Event) {
        match event {
            Event::Opened { key } => self.recordings.get_mut(&id(*key)).unwrap().opened = true,
            Event::OpenFailed { key, .. } | Event::Closed { key } => {
                let recording = self.recordings.remove(&id(*key)).unwrap();
                let changing = recording.changing.map(|(added, _)| added).unwrap_or_default();
                self.rested.extend(
                    recording.ports.into_values().chain(changing.into_values()).map(|port| (port, now)),
                );
            }
            Event::Changed { key } => {
                let Some(recording) = self.recordings.get_mut(&id(*key)) else { return };
                let Some((added, removed)) = recording.changing.take() else { return };
                recording.ports.extend(added);
                self.rested.extend(
                    removed
                        .iter()
                        .filter_map(|stream| recording.ports.remove(stream))
                        .map(|port| (port, now)),
                );
            }
            Event::ChangeFailed { key, .. } => {
                let Some(recording) = self.recordings.get_mut(&id(*key)) else { return };
                let Some((added, _)) = recording.changing.take() else { return };
                self.rested.extend(added.into_values().map(|port| (port, now)));
            }
            _ => {}
        }
    }
}
