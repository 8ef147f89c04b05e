//! The control plane's share of a call, and the session table that everybody reads.

use bytes::Bytes;
use criterion::{BatchSize, Criterion, criterion_group};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::cell::RefCell;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use sipreel::clock::{Mono, Now, Wall};
use sipreel::counters::SessionCounters;
use sipreel::proto::manifest::Format;
use sipreel::session::id::Id;
use sipreel::session::state::State;
use sipreel::session::table::{Snapshot, Table};
use sipreel::session::{
    Command, Ends, Event, Flow, PortPair, RecordingKey, Rules, Sessions, Terms, Transport,
};

const NOW: Now = Now { mono: Mono(1_000_000_000), wall: Wall(1_795_336_245_000_000_000) };

/// INVITE of 3 KB, ACK and BYE, as perf/calls sends them.
const SCENARIO: &str = include_str!("../perf/calls.xml");
/// Between two calls: a transaction lives for 32 s, so that some 3,200 are alive.
const PACE: Duration = Duration::from_millis(20);
const SESSIONS: usize = 512;
/// Of a call's number.
const DIGITS: usize = 7;

/// The control plane, and an SRC that calls it again and again.
struct Calls {
    sessions: Sessions,
    texts: [String; 3],
    placed: u64,
    now: Now,
    out: Vec<Command>,
}

/// What is different in each call.
struct Messages {
    invite: Bytes,
    /// Before and after the To tag.
    ack: [String; 2],
    bye: [String; 2],
}

impl Calls {
    fn new() -> Calls {
        let pairs = 2 * SESSIONS as u16;
        let ports = (0..pairs).map(|index| PortPair { reactor: 0, index, rtp: 20_000 + 2 * index }).collect();
        let rules = Rules {
            sessions_max: SESSIONS,
            format: Format::Pcap,
            port_cooldown: Duration::from_secs(1),
            media_ip: None,
            ports,
            reactors: 1,
            strict_siprec: false,
            explain_refusals: false,
            answer_metadata: false,
            product: "sipreel/bench".to_owned(),
            terms: Terms::default(),
            instance: 0,
            ends: Ends::default(),
            resource: Default::default(),
            admission: Default::default(),
        };
        let (counters, table) = (Arc::new(SessionCounters::default()), Arc::new(Table::new(SESSIONS)));
        let sessions = Sessions::new(rules, counters, table, StdRng::seed_from_u64(1));
        let mut texts = SCENARIO.split("<![CDATA[").skip(1).map(|rest| rest.split("]]>").next().unwrap());
        let texts = std::array::from_fn(|_| wire(texts.next().unwrap()));
        Calls { sessions, texts, placed: 0, now: NOW, out: Vec::new() }
    }

    fn messages(&mut self) -> Messages {
        self.placed += 1;
        let number = format!("{:0DIGITS$}", self.placed);
        let [invite, ack, bye] = self.texts.each_ref().map(|text| text.replace("[call_number]", &number));
        let around_tag = |text: String| {
            let (before, after) = text.split_once("[peer_tag_param]").unwrap();
            [before.to_owned(), after.to_owned()]
        };
        Messages { invite: invite.into(), ack: around_tag(ack), bye: around_tag(bye) }
    }

    /// INVITE, Opened, ACK, BYE, Closed, Committed.
    fn call(&mut self, messages: Messages) {
        self.receive(messages.invite);
        let Some(Command::Open(open)) = self.out.pop() else { panic!("no Open: {:?}", self.out) };
        self.handle(Event::Opened { key: open.key });
        let sent = |command: &Command| match command {
            Command::Send { bytes, .. } => Some(bytes.clone()),
            _ => None,
        };
        let ok = self.out.iter().find_map(sent).expect("a 200 is sent");
        let ok = std::str::from_utf8(&ok).unwrap();
        let to = ok[ok.find("To: ").unwrap()..].lines().next().unwrap();
        let tag = &to[to.find(";tag=").unwrap()..];
        let tagged = |[before, after]: [String; 2]| Bytes::from([&before, tag, &after].concat());
        self.receive(tagged(messages.ack));
        self.receive(tagged(messages.bye));
        assert!(matches!(self.out.last(), Some(Command::Close(_))));
        self.handle(Event::Closed { key: open.key });
        self.handle(Event::Committed { id: String::new(), path: String::new(), incomplete: false });
        self.now = Now { mono: self.now.mono + PACE, wall: Wall(self.now.wall.0 + PACE.as_nanos() as u64) };
        self.out.clear();
        self.sessions.timeout(self.now, &mut self.out);
        black_box((self.sessions.take_notices(), self.sessions.setup_times().count()));
    }

    fn receive(&mut self, bytes: Bytes) {
        let flow = Flow {
            reactor: 0,
            transport: Transport::Udp,
            local: "192.0.2.10:5060".parse().unwrap(),
            peer: "198.51.100.1:5060".parse().unwrap(),
            listener: 0,
            connection: None,
        };
        self.handle(Event::Message { flow, bytes, at: self.now.wall });
    }

    fn handle(&mut self, event: Event) {
        self.out.clear();
        self.sessions.handle(self.now, event, &mut self.out);
    }
}

/// A message of the scenario as SIPp puts it on the wire, but for what is different in each call.
fn wire(text: &str) -> String {
    let lines = text.trim_start().trim_end_matches(' ').lines().map(str::trim_start);
    let mut text: String = lines.flat_map(|line| [line, "\r\n"]).collect();
    for (name, value) in [
        ("[local_ip]", "198.51.100.1"),
        ("[media_ip]", "198.51.100.1"),
        ("[remote_ip]", "192.0.2.10"),
        ("[local_port]", "5060"),
        ("[remote_port]", "5060"),
        ("[local_ip_type]", "4"),
        ("[media_ip_type]", "4"),
        ("[transport]", "UDP"),
        ("[pid]", "1"),
        ("[call_id]", "[call_number]-1@198.51.100.1"),
        // That of the BYE has to be another, so the CSeq is in it.
        ("[branch]", "z9hG4bK-1-[call_number]-[cseq]"),
    ] {
        text = text.replace(name, value);
    }
    let cseq = text.split("CSeq: ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
    let body = text.split_once("\r\n\r\n").unwrap().1;
    let length = body.len() - body.matches("[call_number]").count() * ("[call_number]".len() - DIGITS);
    text.replace("[cseq]", &cseq).replace("[len]", &length.to_string())
}

fn session(c: &mut Criterion) {
    let calls = RefCell::new(Calls::new());
    let place = |messages| calls.borrow_mut().call(messages);
    c.bench_function("session/call", |b| {
        b.iter_batched(|| calls.borrow_mut().messages(), place, BatchSize::SmallInput)
    });
}

fn table(c: &mut Criterion) {
    let table = Table::new(1_024);
    let snapshot = Snapshot {
        key: RecordingKey { reactor: 0, slot: 7, generation: 1 },
        id: Id(1),
        call_id: "a84b4c76e66710@pc33.atlanta.example.com".to_owned(),
        peer: "198.51.100.1:5060".parse().unwrap(),
        state: State::Active,
        start: NOW.wall,
        updated: NOW.wall,
        last_signalling: NOW.wall,
        last_media: None,
        streams: 2,
    };
    c.bench_function("table/publish", |b| b.iter(|| table.publish(black_box(&snapshot))));
    c.bench_function("table/read", |b| b.iter(|| table.read(black_box(7))));
    c.bench_function("table/read free", |b| b.iter(|| table.read(black_box(8))));
}

criterion_group!(benches, session, table);

/// With SIPREEL_CALLS=N: so many calls and nothing else, for whoever counts instructions (perf/instructions).
fn main() {
    match std::env::var("SIPREEL_CALLS") {
        Ok(count) => {
            let mut calls = Calls::new();
            for _ in 0..count.parse::<u32>().expect("SIPREEL_CALLS is a number") {
                let messages = calls.messages();
                calls.call(messages);
            }
        }
        Err(_) => {
            benches();
            Criterion::default().configure_from_args().final_summary();
        }
    }
}
