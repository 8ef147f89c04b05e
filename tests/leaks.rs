//! A hundred thousand short sessions that go wrong in every way: pools, slots, ports, transactions and memory are afterwards what
//! they were before. One test, so that the memory of the process is its own.

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::VecDeque;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sipreel::clock::{Mono, Now, Wall};
use sipreel::counters::SessionCounters;
use sipreel::proto::manifest::Format;
use sipreel::session::table::Table;
use sipreel::session::{
    Command, ConnectionKey, Ends, Event, Failure, Flow, Order, PortPair, RecordingKey, Rules, Sessions,
    Terms, Transport,
};

const SESSIONS: usize = 100_000;
/// Maps and pools have their size by then.
const WARM_UP: usize = 5_000;
const PAIRS: u16 = 400;
/// Sessions that are open at once.
const OPEN: usize = 100;
/// Bytes that the process may have grown by: pages of the allocator, not sessions.
const GROWTH_MAX: usize = 16 << 20;

const OFFER: &str = "v=0\r\no=SRC 1 1 IN IP4 198.51.100.1\r\ns=-\r\nc=IN IP4 198.51.100.1\r\nt=0 0\r\n\
    m=audio 12240 RTP/AVP 0\r\na=sendonly\r\na=label:1\r\nm=audio 22456 RTP/AVP 0\r\na=sendonly\r\na=label:2\r\n";

struct Bench {
    sessions: Sessions,
    counters: Arc<SessionCounters>,
    table: Arc<Table>,
    now: Now,
    rng: StdRng,
    number: u32,
}

/// What is open, and how it will end.
struct Open {
    key: RecordingKey,
    call: String,
    tag: String,
    flow: Flow,
}

impl Bench {
    fn new() -> Bench {
        let ports = (0..PAIRS).map(|index| PortPair { reactor: 0, index, rtp: 20_000 + 2 * index }).collect();
        let rules = Rules {
            sessions_max: 2 * OPEN,
            format: Format::Pcap,
            port_cooldown: Duration::from_millis(100),
            media_ip: None,
            ports,
            reactors: 1,
            product: "sipreel/test".into(),
            resource: Default::default(),
            admission: Default::default(),
            strict_siprec: false,
            explain_refusals: false,
            answer_metadata: false,
            terms: Terms::default(),
            instance: 0,
            ends: Ends {
                media_timeout: Some(Duration::from_secs(300)),
                transport_timeout: Some(Duration::from_secs(60)),
                max_duration: Some(Duration::from_secs(3_600)),
            },
        };
        let (counters, table) = (Arc::new(SessionCounters::default()), Arc::new(Table::new(2 * OPEN)));
        let sessions = Sessions::new(rules, counters.clone(), table.clone(), StdRng::seed_from_u64(1));
        let now = Now { mono: Mono(1_000_000_000), wall: Wall(1_795_336_245_000_000_000) };
        Bench { sessions, counters, table, now, rng: StdRng::seed_from_u64(2), number: 0 }
    }

    fn event(&mut self, event: Event) -> Vec<Command> {
        let mut out = Vec::new();
        self.sessions.handle(self.now, event, &mut out);
        self.serve(&out);
        out
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now.mono + time;
        while let Some(wake) = self.sessions.next_wake().filter(|wake| *wake <= end) {
            self.jump(wake);
            let mut out = Vec::new();
            self.sessions.timeout(self.now, &mut out);
            self.serve(&out);
        }
        self.jump(end);
    }

    fn jump(&mut self, to: Mono) {
        let to = to.max(self.now.mono);
        self.now.wall.0 += to.0 - self.now.mono.0;
        self.now.mono = to;
    }

    /// What the engine and the SRC do by themselves: closed is closed, committed or not.
    fn serve(&mut self, out: &[Command]) {
        for command in out {
            let Command::Close(close) = command else { continue };
            self.event(Event::Closed { key: close.key });
            if close.manifest.is_some() {
                let (id, path) = (String::new(), String::new());
                let event = match self.rng.random_range(0..10) {
                    0 => Event::CommitFailed { id, failure: failure(5) },
                    _ => Event::Committed { id, path, incomplete: false },
                };
                self.event(event);
            }
        }
        self.sessions.take_notices();
        self.sessions.take_answers();
        self.sessions.setup_times();
    }

    fn say(&mut self, open: &Open, method: &str, cseq: u32, body: &str) -> Vec<Command> {
        let Open { call, tag, flow, .. } = open;
        let tag = if tag.is_empty() { String::new() } else { format!(";tag={tag}") };
        let branch = match method {
            "CANCEL" => format!("{call}INVITE{cseq}"),
            _ => format!("{call}{method}{cseq}"),
        };
        let content = if body.is_empty() { "" } else { "Content-Type: application/sdp\r\n" };
        let text = format!(
            "{method} sip:srs@192.0.2.10 SIP/2.0\r\nVia: SIP/2.0/UDP 198.51.100.1:5070;branch=z9hG4bK{branch};rport\r\n\
             Max-Forwards: 70\r\nFrom: <sip:src@example.com>;tag=35e195d2\r\nTo: <sip:srs@example.com>{tag}\r\n\
             Call-ID: {call}\r\nCSeq: {cseq} {method}\r\nContact: <sip:src@198.51.100.1>;+sip.src\r\nRequire: siprec\r\n\
             {content}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let (flow, at) = (*flow, self.now.wall);
        self.event(Event::Message { flow, bytes: Bytes::from(text), at })
    }

    /// One more session begins, in one of many ways. `None`: it has come to nothing.
    fn begin(&mut self) -> Option<Open> {
        self.number += 1;
        let number = self.number;
        let flow = flow(number, self.rng.random_bool(0.3));
        let none = RecordingKey { reactor: 0, slot: 0, generation: 0 };
        let mut open = Open { key: none, call: format!("c{number}"), tag: String::new(), flow };
        let offer = match self.rng.random_range(0..20) {
            0 => OFFER.replace("m=audio", "m=image"),
            1 => "v=0".to_owned(),
            _ => OFFER.to_owned(),
        };
        let out = self.say(&open, "INVITE", 1, &offer);
        let key = out.iter().find_map(|command| match command {
            Command::Open(open) => Some(open.key),
            _ => None,
        });
        let Some(key) = key else {
            self.say(&open, "ACK", 1, "");
            return None;
        };
        open.key = key;
        match self.rng.random_range(0..12) {
            0 => drop(
                self.event(Event::OpenFailed { key, failure: failure([28, 5, 13][number as usize % 3]) }),
            ),
            // The engine answers late, or too late.
            1 => {
                self.say(&open, "CANCEL", 1, "");
                self.event(Event::Opened { key });
            }
            2 if number.is_multiple_of(8) => {
                self.pass(Duration::from_secs(21));
                self.event(Event::OpenFailed { key, failure: failure(28) });
            }
            _ => {
                let out = self.event(Event::Opened { key });
                open.tag = tag(&out);
                // One ACK in ten is lost.
                if self.rng.random_range(0..10) > 0 {
                    self.say(&open, "ACK", 1, "");
                }
                return Some(open);
            }
        }
        None
    }

    fn end(&mut self, open: &Open) {
        if self.rng.random_bool(0.3) {
            let out =
                self.say(open, "INVITE", 2, &format!("{OFFER}m=audio 30000 RTP/AVP 8\r\na=label:3\r\n"));
            if out.iter().any(|command| matches!(command, Command::Change(_))) {
                let key = open.key;
                let event = match self.rng.random_range(0..3) {
                    0 => Some(Event::ChangeFailed { key, failure: failure(28) }),
                    1 => Some(Event::Changed { key }),
                    _ => None,
                };
                event.map(|event| self.event(event));
            }
        }
        match self.rng.random_range(0..2_000) {
            0..5 => self.pass(Duration::from_secs(400)),
            5..10 => {
                if let Some(connection) = open.flow.connection {
                    self.event(Event::Disconnected { reactor: 0, connection });
                }
                self.pass(Duration::from_secs(130));
            }
            10..100 => {
                if let Some(shown) = self.table.find(open.key) {
                    let order = Order::End { id: shown.id.to_string(), note: Some("enough".into()) };
                    self.event(Event::Order { ticket: 1, order });
                }
            }
            // Nothing at all: it ends by itself, some time.
            100..200 => {}
            _ => drop(self.say(open, "BYE", 3, "")),
        }
    }

    fn run(&mut self, sessions: usize) {
        let mut open = VecDeque::new();
        for _ in 0..sessions {
            open.extend(self.begin());
            if open.len() > OPEN {
                open.pop_front().iter().for_each(|oldest| self.end(oldest));
            }
            self.pass(Duration::from_millis(20));
        }
        open.iter().for_each(|last| self.end(last));
        self.pass(Duration::from_secs(4_000));
    }

    fn check(&self) {
        let counters = &self.counters;
        assert_eq!((counters.active.get(), counters.paused.get(), counters.transactions.get()), (0, 0, 0));
        let ports = (counters.ports_free.get(), counters.ports_used.get(), counters.ports_cooling.get());
        assert_eq!(ports, (u64::from(PAIRS), 0, 0));
        assert_eq!(self.table.iter().count(), 0);
        assert_eq!(self.sessions.next_wake(), None);
        let ended: u64 = counters.ended.iter().map(|counter| counter.get()).sum();
        assert_eq!(ended, counters.total.get());
        assert_eq!(counters.committed.get() + counters.commits_failed.get(), ended);
    }
}

fn flow(number: u32, connected: bool) -> Flow {
    let connection = connected.then_some(ConnectionKey { slot: number % 64, generation: number / 64 });
    let transport = if connected { Transport::Tcp } else { Transport::Udp };
    let peer = SocketAddr::new([198, 51, 100, 1].into(), 1_024 + (number % 60_000) as u16);
    Flow { reactor: 0, transport, local: "192.0.2.10:5060".parse().unwrap(), peer, listener: 0, connection }
}

fn failure(errno: i32) -> Failure {
    Failure { what: "open file", path: "x".into(), errno }
}

/// Of the 200 in what was sent.
fn tag(out: &[Command]) -> String {
    let sent = out
        .iter()
        .find_map(|command| if let Command::Send { bytes, .. } = command { Some(bytes) } else { None });
    let text = std::str::from_utf8(sent.unwrap()).unwrap();
    let to = text.lines().find_map(|line| line.strip_prefix("To: ")).unwrap();
    to.split_once(";tag=").unwrap().1.to_owned()
}

/// Of this process, in bytes.
fn resident() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4_096
}

#[test]
fn a_hundred_thousand_sessions_leave_nothing() {
    let mut bench = Bench::new();
    bench.run(WARM_UP);
    bench.check();
    let before = resident();
    bench.run(SESSIONS);
    bench.check();
    let after = resident();
    assert!(after < before + GROWTH_MAX, "{before} bytes before, {after} after");
    let every = bench.counters.ended.iter().filter(|counter| counter.get() > 0).count();
    assert!(every >= 5, "they ended in {every} ways");
}
