//! Whole calls against [`Sessions`]. The tests own the time and write every SIP message by hand.

mod admission;
mod calls;
mod changes;
mod ends;
mod metadata;
mod offers;
mod refusals;
mod replace;
mod timers;
mod updates;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::sync::Arc;
use std::time::Duration;

use super::table::Table;
use super::*;
use crate::proto::manifest::Format;

/// A control plane with a test in the place of the engine.
struct Recorder {
    sessions: Sessions,
    counters: Arc<SessionCounters>,
    table: Arc<Table>,
    now: Now,
}

const COOLDOWN: Duration = Duration::from_secs(5);

impl Recorder {
    /// Two reactors with `pairs` port pairs each.
    fn new(pairs: u16, sessions_max: usize) -> Recorder {
        Recorder::with_format(pairs, sessions_max, Format::Pcap)
    }

    fn with_format(pairs: u16, sessions_max: usize, format: Format) -> Recorder {
        Recorder::with(pairs, sessions_max, |rules| rules.format = format)
    }

    fn with(pairs: u16, sessions_max: usize, change: impl FnOnce(&mut Rules)) -> Recorder {
        let ports = (0..2u8)
            .flat_map(|reactor| {
                (0..pairs).map(move |index| PortPair {
                    reactor,
                    index,
                    rtp: 20_000 + 10_000 * u16::from(reactor) + 2 * index,
                })
            })
            .collect();
        let mut rules = Rules {
            sessions_max,
            format: Format::Pcap,
            port_cooldown: COOLDOWN,
            media_ip: None,
            ports,
            reactors: 2,
            strict_siprec: false,
            explain_refusals: false,
            answer_metadata: false,
            product: "sipreel/test".to_owned(),
            terms: Terms::default(),
            instance: 0xabc,
            ends: Ends::default(),
            resource: Resource { id: "rec1".to_owned(), region: Some("eu-west-1".to_owned()), group: None },
            admission: Default::default(),
        };
        change(&mut rules);
        let counters = Arc::new(SessionCounters::default());
        let table = Arc::new(Table::new(sessions_max));
        let sessions = Sessions::new(rules, counters.clone(), table.clone(), StdRng::seed_from_u64(7));
        let now = Now { mono: Mono(1_000_000_000), wall: Wall(1_795_336_245_000_000_000) };
        Recorder { sessions, counters, table, now }
    }

    fn event(&mut self, event: Event) -> Vec<Command> {
        let mut out = Vec::new();
        self.sessions.handle(self.now, event, &mut out);
        out
    }

    fn receive(&mut self, flow: Flow, text: impl Into<String>) -> Vec<Command> {
        let bytes = Bytes::from(text.into());
        self.event(Event::Message { flow, bytes, at: self.now.wall })
    }

    fn udp(&mut self, text: impl Into<String>) -> Vec<Command> {
        self.receive(udp(), text)
    }

    /// Lets time pass, with every timeout at its moment.
    fn pass(&mut self, time: Duration) -> Vec<Command> {
        let end = self.now.mono + time;
        let mut out = Vec::new();
        while let Some(wake) = self.sessions.next_wake().filter(|wake| *wake <= end) {
            assert!(wake >= self.now.mono, "a wake-up in the past");
            self.jump(wake);
            self.sessions.timeout(self.now, &mut out);
            assert!(self.sessions.next_wake().is_none_or(|next| next > wake), "a timeout that does not end");
        }
        self.jump(end);
        out
    }

    fn jump(&mut self, to: Mono) {
        self.now.wall = Wall(self.now.wall.0 + (to.0 - self.now.mono.0));
        self.now.mono = to;
    }

    /// INVITE, Opened, ACK: an established session on UDP, its key and our tag.
    fn call(&mut self, call_id: &str) -> (RecordingKey, String) {
        self.call_over(udp(), call_id)
    }

    fn call_over(&mut self, flow: Flow, call_id: &str) -> (RecordingKey, String) {
        let out = self.receive(flow, invite(call_id));
        let key = opened(&out).key;
        let ok = sent(&self.event(Event::Opened { key }));
        assert_eq!(code(&ok[0]), 200);
        let tag = to_tag(&ok[0]);
        let acked = self.receive(flow, ack(call_id, &tag, 1));
        assert_eq!(kinds(&acked), ["Signal"]);
        (key, tag)
    }

    fn committed(&mut self, incomplete: bool) -> Vec<Command> {
        self.event(Event::Committed { id: String::new(), path: String::new(), incomplete })
    }

    fn ports(&self) -> (u64, u64, u64) {
        (self.counters.ports_free.get(), self.counters.ports_used.get(), self.counters.ports_cooling.get())
    }

    fn refused(&self, cause: crate::counters::RefuseCause) -> u64 {
        self.counters.refused[cause as usize].get()
    }

    /// Everything is as it was before the first call.
    fn assert_whole(&mut self) {
        self.pass(Duration::from_secs(120));
        assert_eq!(self.sessions.slots.occupied(), 0);
        assert_eq!(self.sessions.transactions.len(), 0);
        assert_eq!(self.counters.transactions.get(), 0);
        assert_eq!(self.sessions.dialogs.len(), 0);
        assert_eq!(self.sessions.clients.unanswered(), 0);
        assert_eq!(self.counters.active.get(), 0);
        assert_eq!(self.ports(), (self.sessions.rules.ports.len() as u64, 0, 0));
        assert_eq!(self.table.iter().count(), 0);
        assert_eq!(self.sessions.next_wake(), None);
    }
}

fn udp() -> Flow {
    Flow {
        reactor: 1,
        transport: Transport::Udp,
        local: "192.0.2.10:5060".parse().unwrap(),
        peer: "198.51.100.1:5070".parse().unwrap(),
        listener: 0,
        connection: None,
    }
}

fn tcp() -> Flow {
    let connection = Some(ConnectionKey { slot: 3, generation: 9 });
    Flow { transport: Transport::Tcp, connection, peer: "198.51.100.1:40000".parse().unwrap(), ..udp() }
}

// ---- messages ---------------------------------------------------------------------------------------------------

/// Line ends as on the wire.
fn crlf(text: &str) -> String {
    text.replace('\n', "\r\n")
}

/// Two labelled m-lines, as most SRCs offer them.
const OFFER: &str = "v=0
o=SRC 2890844526 1 IN IP4 198.51.100.1
s=-
c=IN IP4 198.51.100.1
t=0 0
m=audio 12240 RTP/AVP 0
a=sendonly
a=label:1
m=audio 22456 RTP/AVP 0
a=sendonly
a=label:2
";

const METADATA: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<recording xmlns="urn:ietf:params:xml:ns:recording:1">
  <datamode>complete</datamode>
  <session session_id="hVpd7YQgRW2nD22h7q60JQ=="/>
  <participant participant_id="srfBElmCRp2QB23b7Mpk0w=="><nameID aor="sip:bob@biloxi.example.com"><name>Bob</name></nameID></participant>
  <participant participant_id="zSfPoSvdSDCmU3A3TRDxAw=="><nameID aor="sip:paul@box.example.com"/></participant>
  <stream stream_id="UAAMm5GRQKSCMVvLyl4rFw==" session_id="hVpd7YQgRW2nD22h7q60JQ=="><label>1</label></stream>
  <stream stream_id="i1Pz3to5hGk8fuXl+PbwCw==" session_id="hVpd7YQgRW2nD22h7q60JQ=="><label>2</label></stream>
  <participantstreamassoc participant_id="srfBElmCRp2QB23b7Mpk0w=="><send>i1Pz3to5hGk8fuXl+PbwCw==</send></participantstreamassoc>
  <participantstreamassoc participant_id="zSfPoSvdSDCmU3A3TRDxAw=="><send>UAAMm5GRQKSCMVvLyl4rFw==</send></participantstreamassoc>
</recording>
"#;

fn multipart(sdp: &str, metadata: &str) -> String {
    let sdp = crlf(sdp);
    format!(
        "--foobar\r\nContent-Type: application/sdp\r\n\r\n{sdp}\r\n--foobar\r\nContent-Type: application/rs-metadata\r\n\
         Content-Disposition: recording-session\r\n\r\n{metadata}\r\n--foobar--\r\n"
    )
}

const MULTIPART: &str = "multipart/mixed;boundary=foobar";

/// A request with these lines between its mandatory fields and its body.
fn message(method: &str, call_id: &str, to_tag: &str, cseq: u32, lines: &str, body: &str) -> String {
    let to_tag = if to_tag.is_empty() { String::new() } else { format!(";tag={to_tag}") };
    let lines = crlf(lines);
    let number = if method == "ACK" { 1_000 + cseq } else { cseq };
    let branch = format!("z9hG4bK{call_id}{}{number}", if method == "CANCEL" { "INVITE" } else { method });
    let length = body.len();
    format!(
        "{method} sip:srs@192.0.2.10 SIP/2.0\r\nVia: SIP/2.0/UDP 198.51.100.1:5070;branch={branch};rport\r\n\
         Max-Forwards: 70\r\nFrom: <sip:src@example.com>;tag=35e195d2\r\nTo: <sip:srs@example.com>{to_tag}\r\n\
         Call-ID: {call_id}\r\nCSeq: {cseq} {method}\r\n{lines}Content-Length: {length}\r\n\r\n{body}"
    )
}

const SRC: &str = "Contact: <sip:src@198.51.100.1:5070>;+sip.src\nRequire: siprec\n";

fn invite(call_id: &str) -> String {
    invite_with(call_id, &format!("{SRC}Content-Type: {MULTIPART}\n"), &multipart(OFFER, METADATA))
}

fn invite_with(call_id: &str, lines: &str, body: &str) -> String {
    message("INVITE", call_id, "", 1, lines, body)
}

fn reinvite(call_id: &str, tag: &str, cseq: u32, sdp: &str) -> String {
    message("INVITE", call_id, tag, cseq, &format!("{SRC}Content-Type: application/sdp\n"), &crlf(sdp))
}

/// An UPDATE without a body, of metadata, or of SDP.
fn update(call_id: &str, tag: &str, cseq: u32, content_type: &str, body: &str) -> String {
    let kind =
        if content_type.is_empty() { String::new() } else { format!("Content-Type: {content_type}\n") };
    let lines = format!("Contact: <sip:src@198.51.100.1:5070>;+sip.src\n{kind}");
    message("UPDATE", call_id, tag, cseq, &lines, &crlf(body))
}

fn ack(call_id: &str, tag: &str, cseq: u32) -> String {
    message("ACK", call_id, tag, cseq, "", "")
}

/// The ACK of a failure has the branch of its INVITE.
fn ack_of_failure(call_id: &str, tag: &str) -> String {
    ack(call_id, tag, 1).replace("ACK1001", "INVITE1")
}

fn bye(call_id: &str, tag: &str, cseq: u32) -> String {
    message("BYE", call_id, tag, cseq, "", "")
}

fn cancel(call_id: &str) -> String {
    message("CANCEL", call_id, "", 1, "", "")
}

// ---- what came out ----------------------------------------------------------------------------------------------

fn text(bytes: &Bytes) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn sent(out: &[Command]) -> Vec<Bytes> {
    let bytes = |command: &Command| match command {
        Command::Send { bytes, .. } => Some(bytes.clone()),
        _ => None,
    };
    out.iter().filter_map(bytes).collect()
}

fn code(response: &Bytes) -> u16 {
    let text = text(response);
    assert!(text.starts_with("SIP/2.0 "), "{text}");
    text[8..11].parse().unwrap()
}

fn codes(out: &[Command]) -> Vec<u16> {
    sent(out).iter().map(code).collect()
}

/// The one response in `out`.
fn only(out: &[Command]) -> String {
    let sent = sent(out);
    assert_eq!(sent.len(), 1, "{out:?}");
    text(&sent[0]).to_owned()
}

fn field<'a>(message: &'a str, name: &str) -> Option<&'a str> {
    let head = message.split("\r\n\r\n").next()?;
    head.split("\r\n").find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn body(message: &str) -> &str {
    message.split_once("\r\n\r\n").unwrap().1
}

fn to_tag(response: &Bytes) -> String {
    field(text(response), "To").unwrap().split_once(";tag=").unwrap().1.to_owned()
}

fn kinds(out: &[Command]) -> Vec<&'static str> {
    let kind = |command: &Command| match command {
        Command::Send { .. } => "Send",
        Command::Open(_) => "Open",
        Command::Change(_) => "Change",
        Command::Signal { .. } => "Signal",
        Command::File { .. } => "File",
        Command::Close(_) => "Close",
        Command::Disconnect { .. } => "Disconnect",
    };
    out.iter().map(kind).collect()
}

fn opened(out: &[Command]) -> &Open {
    out.iter()
        .find_map(|command| if let Command::Open(open) = command { Some(&**open) } else { None })
        .expect("an Open")
}

fn change(out: &[Command]) -> &Change {
    out.iter()
        .find_map(|command| if let Command::Change(change) = command { Some(&**change) } else { None })
        .expect("a Change")
}

fn close(out: &[Command]) -> &Close {
    out.iter()
        .find_map(|command| if let Command::Close(close) = command { Some(&**close) } else { None })
        .expect("a Close")
}

fn manifest(out: &[Command]) -> &crate::proto::manifest::Manifest {
    close(out).manifest.as_deref().expect("a manifest")
}

/// The port of each m-line of an SDP.
fn m_ports(sdp: &str) -> Vec<u16> {
    let port = |line: &str| line.strip_prefix("m=")?.split(' ').nth(1)?.parse().ok();
    sdp.split("\r\n").filter_map(port).collect()
}
