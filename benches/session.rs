//! The control plane's share of a call, and the session table that everybody reads.

use bytes::Bytes;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use sipreel::clock::{Mono, Now, Wall};
use sipreel::counters::SessionCounters;
use sipreel::proto::manifest::Format;
use sipreel::session::id::Id;
use sipreel::session::table::{Snapshot, State, Table};
use sipreel::session::{Command, Event, Flow, PortPair, RecordingKey, Rules, Sessions, Transport};

const NOW: Now = Now { mono: Mono(1_000_000_000), wall: Wall(1_795_336_245_000_000_000) };

const BODY: &str = "--b\r\nContent-Type: application/sdp\r\n\r\nv=0\r\no=SRC 1 1 IN IP4 198.51.100.1\r\ns=-\r\n\
    c=IN IP4 198.51.100.1\r\nt=0 0\r\nm=audio 12240 RTP/AVP 0\r\na=sendonly\r\na=label:1\r\n\
    m=audio 22456 RTP/AVP 0\r\na=sendonly\r\na=label:2\r\n\r\n--b\r\nContent-Type: application/rs-metadata\r\n\r\n\
    <recording xmlns=\"urn:ietf:params:xml:ns:recording:1\"><datamode>complete</datamode><session session_id=\"s\"/>\
    <participant participant_id=\"p\"><nameID aor=\"sip:bob@example.com\"/></participant>\
    <participant participant_id=\"q\"><nameID aor=\"sip:ann@example.com\"/></participant>\
    <stream stream_id=\"x\" session_id=\"s\"><label>1</label></stream>\
    <stream stream_id=\"y\" session_id=\"s\"><label>2</label></stream>\
    <participantstreamassoc participant_id=\"p\"><send>x</send><recv>y</recv></participantstreamassoc>\
    <participantstreamassoc participant_id=\"q\"><send>y</send><recv>x</recv></participantstreamassoc></recording>\r\n--b--\r\n";

fn sessions() -> Sessions {
    let ports = (0..64).map(|index| PortPair { reactor: 0, index, rtp: 20_000 + 2 * index }).collect();
    let rules = Rules {
        sessions_max: 16,
        format: Format::Pcap,
        port_cooldown: Duration::ZERO,
        media_ip: None,
        ports,
        reactors: 1,
        product: "sipreel/bench".to_owned(),
    };
    let (counters, table) = (Arc::new(SessionCounters::default()), Arc::new(Table::new(16)));
    Sessions::new(rules, counters, table, StdRng::seed_from_u64(1))
}

fn request(method: &str, to_tag: &str, cseq: u32, body: &str) -> Event {
    let length = body.len();
    let text = format!(
        "{method} sip:srs@192.0.2.10 SIP/2.0\r\nVia: SIP/2.0/UDP 198.51.100.1:5060;branch=z9hG4bK{method}{cseq};rport\r\n\
         Max-Forwards: 70\r\nFrom: <sip:src@example.com>;tag=35e195d2\r\nTo: <sip:srs@example.com>{to_tag}\r\n\
         Call-ID: bench\r\nCSeq: {cseq} {method}\r\nContact: <sip:src@198.51.100.1>;+sip.src\r\nRequire: siprec\r\n\
         Content-Type: multipart/mixed;boundary=b\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    let flow = Flow {
        reactor: 0,
        transport: Transport::Udp,
        local: "192.0.2.10:5060".parse().unwrap(),
        peer: "198.51.100.1:5060".parse().unwrap(),
        listener: 0,
        connection: None,
    };
    Event::Message { flow, bytes: Bytes::from(text), at: NOW.wall }
}

/// INVITE, Opened, ACK, BYE, Closed.
fn call(mut sessions: Sessions) -> Sessions {
    let mut out = Vec::new();
    sessions.handle(NOW, request("INVITE", "", 1, BODY), &mut out);
    let Some(Command::Open(open)) = out.pop() else { panic!("no Open") };
    let key = open.key;
    out.clear();
    sessions.handle(NOW, Event::Opened { key }, &mut out);
    let sent = |command: &Command| match command {
        Command::Send { bytes, .. } => Some(bytes.clone()),
        _ => None,
    };
    let bytes = out.iter().find_map(sent).expect("a 200 is sent");
    let ok = std::str::from_utf8(&bytes).unwrap();
    let start = ok.find("To: ").unwrap();
    let line = ok[start..].lines().next().unwrap();
    let tag = line[line.find(";tag=").unwrap()..].to_owned();
    sessions.handle(NOW, request("ACK", &tag, 1, ""), &mut out);
    sessions.handle(NOW, request("BYE", &tag, 2, ""), &mut out);
    assert!(matches!(out.last(), Some(Command::Close(_))));
    sessions.handle(NOW, Event::Closed { key }, &mut out);
    sessions
}

fn session(c: &mut Criterion) {
    c.bench_function("session/call", |b| b.iter_batched(sessions, call, BatchSize::SmallInput));
}

fn table(c: &mut Criterion) {
    let table = Table::new(1_024);
    let snapshot = Snapshot {
        key: RecordingKey { reactor: 0, slot: 7, generation: 1 },
        id: Id(1),
        call_id: "a84b4c76e66710@pc33.atlanta.example.com".to_owned(),
        peer: "198.51.100.1:5060".parse().unwrap(),
        state: State::Established,
        start: NOW.wall,
        streams: 2,
    };
    c.bench_function("table/publish", |b| b.iter(|| table.publish(black_box(&snapshot))));
    c.bench_function("table/read", |b| b.iter(|| table.read(black_box(7))));
    c.bench_function("table/read free", |b| b.iter(|| table.read(black_box(8))));
}

criterion_group!(benches, session, table);
criterion_main!(benches);
