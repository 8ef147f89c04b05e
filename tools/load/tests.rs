//! Whole runs against a recorder of a hundred lines that does what a test tells it to.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::codec::Codec;
use super::message::{Framer, Message, Start};
use super::options::Transport;
use super::selfdescription;
use super::verify::tests::{Heard, write_recording};
use super::*;

/// How the recorder behaves.
#[derive(Clone)]
struct Script {
    format: &'static str,
    /// Answers every INVITE with this status line.
    refuse: Option<&'static str>,
    /// Changes the 200 to the INVITE.
    answer: fn(String) -> String,
    /// Changes what was heard on the call's first stream.
    heard: fn(&mut Heard),
    /// Answers nothing to the first this many messages.
    deaf: usize,
}

const HONEST: Script = Script { format: "pcap", refuse: None, answer: |text| text, heard: |_| {}, deaf: 0 };

struct Recorder {
    address: SocketAddr,
    dir: tempfile::TempDir,
    quit: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Session {
    invite: String,
    answer: String,
    sockets: Vec<(UdpSocket, UdpSocket)>,
    heard: Vec<Heard>,
}

impl Recorder {
    fn start(transport: Transport, script: Script) -> Recorder {
        let dir = tempfile::tempdir().unwrap();
        let quit = Arc::new(AtomicBool::new(false));
        let mut sessions = Sessions { script, dir: dir.path().to_owned(), open: HashMap::new(), received: 0 };
        let stop = quit.clone();
        let (address, thread) = match transport {
            Transport::Udp => {
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                (socket.local_addr().unwrap(), std::thread::spawn(move || sessions.serve_udp(&socket, &stop)))
            }
            Transport::Tls => unreachable!("the real recorder is the peer for that: tests/it/tls.rs"),
            Transport::Tcp => {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let address = listener.local_addr().unwrap();
                (address, std::thread::spawn(move || sessions.serve_tcp(listener.accept().unwrap().0, &stop)))
            }
        };
        Recorder { address, dir, quit, thread: Some(thread) }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.quit.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Sessions {
    script: Script,
    dir: PathBuf,
    open: HashMap<String, Session>,
    received: usize,
}

impl Sessions {
    fn serve_udp(&mut self, socket: &UdpSocket, quit: &AtomicBool) {
        socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let mut buffer = vec![0; 65_536];
        while !quit.load(Ordering::Relaxed) {
            if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                for answer in self.receive(&buffer[..len]) {
                    socket.send_to(answer.as_bytes(), from).unwrap();
                }
            }
            self.open.values_mut().for_each(Session::listen);
        }
    }

    fn serve_tcp(&mut self, mut stream: TcpStream, quit: &AtomicBool) {
        stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let (mut buffer, mut framer) = (vec![0; 65_536], Framer::default());
        while !quit.load(Ordering::Relaxed) {
            let len = stream.read(&mut buffer).unwrap_or(0);
            framer.push(&buffer[..len]);
            while let Ok(Some(message)) = framer.next() {
                for answer in self.handle(&message, &rebuilt(&message)) {
                    stream.write_all(answer.as_bytes()).unwrap();
                }
            }
            self.open.values_mut().for_each(Session::listen);
        }
    }

    fn receive(&mut self, bytes: &[u8]) -> Vec<String> {
        self.received += 1;
        if self.received <= self.script.deaf {
            return Vec::new();
        }
        self.handle(&Message::parse(bytes).unwrap(), std::str::from_utf8(bytes).unwrap())
    }

    fn handle(&mut self, message: &Message, text: &str) -> Vec<String> {
        let Start::Request { method } = &message.start else { panic!("{text}") };
        let call_id = message.header("call-id").unwrap().to_owned();
        match method.as_str() {
            "INVITE" => self.invited(message, text, call_id),
            "BYE" => {
                if let Some(session) = self.open.remove(&call_id) {
                    session.commit(&self.script, &self.dir);
                }
                vec![answer(message, "200 OK", "", "")]
            }
            _ => Vec::new(),
        }
    }

    fn invited(&mut self, message: &Message, text: &str, call_id: String) -> Vec<String> {
        if let Some(status) = self.script.refuse {
            return vec![answer(message, status, "", "")];
        }
        let session = self.open.entry(call_id).or_insert_with(|| Session::open(message, text, &self.script));
        vec![answer(message, "100 Trying", "", ""), session.answer.clone()]
    }
}

/// What the framer took apart, as much as the capture needs.
fn rebuilt(message: &Message) -> String {
    let method = match &message.start {
        Start::Request { method } => method.clone(),
        Start::Response { .. } => String::new(),
    };
    let call_id = message.header("call-id").unwrap_or_default();
    format!("{method} sip:srs SIP/2.0\r\nCall-ID: {call_id}\r\n\r\n{}", message.body)
}

fn answer(request: &Message, status: &str, fields: &str, body: &str) -> String {
    let field = |name: &str| request.header(name).unwrap_or_default();
    format!(
        "SIP/2.0 {status}\r\nVia: {}\r\nFrom: {}\r\nTo: {};tag=srs\r\nCall-ID: {}\r\nCSeq: {}\r\n{fields}Content-Length: {}\r\n\r\n{body}",
        field("via"),
        field("from"),
        field("to"),
        field("call-id"),
        field("cseq"),
        body.len(),
    )
}

impl Session {
    fn open(message: &Message, text: &str, script: &Script) -> Session {
        let streams = message.body.matches("a=label:").count();
        let socket = || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        let pair = || loop {
            let rtp = socket();
            let next = SocketAddr::new(rtp.local_addr().unwrap().ip(), rtp.local_addr().unwrap().port() + 1);
            if let Ok(rtcp) = UdpSocket::bind(next) {
                rtcp.set_nonblocking(true).unwrap();
                return (rtp, rtcp);
            }
        };
        let sockets: Vec<_> = (0..streams).map(|_| pair()).collect();
        let ports: Vec<u16> = sockets.iter().map(|(rtp, _)| rtp.local_addr().unwrap().port()).collect();
        let mut sdp = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n".to_owned();
        for (label, port) in (1..).zip(&ports) {
            sdp += &format!("m=audio {port} RTP/AVP 0\r\na=label:{label}\r\na=recvonly\r\n");
        }
        let fields = "Contact: <sip:srs@127.0.0.1>;+sip.srs\r\nContent-Type: application/sdp\r\n";
        let heard = ports.iter().map(|port| Heard { rtp_port: *port, ..Heard::default() }).collect();
        let answer = (script.answer)(answer(message, "200 OK", fields, &sdp));
        Session { invite: text.to_owned(), answer: fix_length(&answer), sockets, heard }
    }

    fn listen(&mut self) {
        for ((rtp, rtcp), heard) in self.sockets.iter().zip(&mut self.heard) {
            drain(rtp, &mut heard.rtp);
            drain(rtcp, &mut heard.rtcp);
        }
    }

    fn commit(mut self, script: &Script, dir: &std::path::Path) {
        self.listen();
        (script.heard)(&mut self.heard[0]);
        let described = selfdescription::read(&self.invite).unwrap();
        if self.heard.iter().all(|heard| !heard.rtp.is_empty()) {
            write_recording(dir, &described, &self.invite, script.format, &self.heard);
        }
    }
}

/// A changed body keeps its message whole.
fn fix_length(text: &str) -> String {
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let fields = head.split("\r\n").filter(|field| !field.starts_with("Content-Length"));
    format!("{}\r\nContent-Length: {}\r\n\r\n{body}", fields.collect::<Vec<_>>().join("\r\n"), body.len())
}

fn drain(socket: &UdpSocket, heard: &mut Vec<(SocketAddr, Vec<u8>)>) {
    let mut buffer = [0; 2_048];
    while let Ok((len, from)) = socket.recv_from(&mut buffer) {
        heard.push((from, buffer[..len].to_vec()));
    }
}

fn options(recorder: &Recorder) -> RunOptions {
    RunOptions {
        target: recorder.address,
        calls: 3,
        rate: 1_000.0,
        duration: 0.5,
        ptime: 5,
        verify_dir: Some(recorder.dir.path().to_owned()),
        ..RunOptions::default()
    }
}

fn play(options: &RunOptions) -> RunReport {
    run(options, &Arc::default(), &mut |_| {}).unwrap()
}

#[test]
fn a_run_over_udp_is_whole() {
    let recorder = Recorder::start(Transport::Udp, HONEST);
    let impaired = RunOptions {
        audio: Some(Audio::Tagged),
        loss: 0.05,
        reorder: 0.05,
        duplicate: 0.05,
        ..options(&recorder)
    };
    let report = play(&impaired);
    assert!(report.is_good(), "{report}");
    let verified = report.verify.unwrap();
    assert_eq!((report.calls.established, verified.recordings, verified.runs), (3, 3, 1));
    assert_eq!(report.media.packets_sent, verified.counts.found);
    assert!((550..650).contains(&verified.counts.found), "{verified}");
}

#[test]
fn a_run_over_tcp_is_whole() {
    let recorder = Recorder::start(Transport::Tcp, Script { format: "raw", ..HONEST });
    let report = play(&RunOptions { transport: Transport::Tcp, ..options(&recorder) });
    assert!(report.is_good(), "{report}");
    assert_eq!(report.verify.unwrap().counts.found, 600);
}

#[test]
fn lost_requests_are_sent_again() {
    let recorder = Recorder::start(Transport::Udp, Script { deaf: 1, ..HONEST });
    let report = play(&RunOptions { calls: 1, ..options(&recorder) });
    assert!(report.is_good(), "{report}");
    assert!(report.setup_ms.max >= 500.0);
}

#[test]
fn a_recorder_that_loses_a_packet_does_not_pass() {
    let heard = |heard: &mut Heard| drop(heard.rtp.remove(7));
    let recorder = Recorder::start(Transport::Udp, Script { heard, ..HONEST });
    let report = play(&options(&recorder));
    assert!(!report.is_good());
    assert_eq!(report.verify.unwrap().counts.missing, 3);
}

#[test]
fn a_recorder_that_refuses_does_not_pass() {
    let refuse = Some("503 Service Unavailable");
    let recorder = Recorder::start(Transport::Udp, Script { refuse, ..HONEST });
    let report = play(&options(&recorder));
    assert_eq!(report.calls.failures, std::collections::BTreeMap::from([("503".to_owned(), 3)]));
    assert!(!report.is_good());
    assert_eq!(report.verify.unwrap().counts.expected, 0, "nothing is expected of calls that were refused");
}

#[test]
fn a_recorder_that_deviates_does_not_pass() {
    let answer = |text: String| text.replace("a=label:2\r\n", "");
    let recorder = Recorder::start(Transport::Udp, Script { answer, ..HONEST });
    let report = play(&options(&recorder));
    assert_eq!(report.calls.failures.get("answer_without_label"), Some(&3));
    assert!(!report.is_good());
}

#[test]
fn a_run_that_is_stopped_says_goodbye_and_expects_no_more_than_it_sent() {
    let recorder = Recorder::start(Transport::Udp, HONEST);
    let long = RunOptions { duration: 60.0, ..options(&recorder) };
    let stop = Arc::new(AtomicBool::new(false));
    let (mut established, later) = (0, stop.clone());
    let report = run(&long, &stop, &mut move |happening| {
        established += u32::from(matches!(happening, Happening::Established { .. }));
        if established == 3 {
            established = 0;
            let stop = later.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                stop.store(true, Ordering::Relaxed);
            });
        }
    });
    let report = report.unwrap();
    assert!(report.interrupted && report.is_good(), "{report}");
    let verified = report.verify.as_ref().unwrap();
    assert_eq!(verified.counts.found, report.media.packets_sent);
    assert!((30..600).contains(&report.media.packets_sent));
}

#[test]
fn calls_that_end_together_do_not_say_goodbye_all_at_once() {
    let recorder = Recorder::start(Transport::Udp, HONEST);
    let long = RunOptions { calls: 10, rate: 50.0, duration: 60.0, verify_dir: None, ..options(&recorder) };
    let (stop, mut established, mut over) = (Arc::new(AtomicBool::new(false)), 0, Vec::new());
    let report = run(&long, &stop.clone(), &mut |happening| match happening {
        Happening::Established { .. } => {
            established += 1;
            stop.store(established == 10, Ordering::Relaxed);
        }
        Happening::Over { .. } => over.push(clock::now()),
        _ => {}
    });
    assert_eq!(report.unwrap().calls.failed, 0);
    // Nine intervals of 20 ms, one of which may be made up for.
    assert!(over[9] - over[0] > Duration::from_millis(120), "{over:?}");
}

#[test]
fn flags_that_cannot_work_together_are_refused() {
    let xdp =
        || RunOptions { engine: Engine::Xdp, xdp_interface: Some("lo".into()), ..RunOptions::default() };
    let refused = |options: RunOptions| {
        let outcome = run(&options, &Arc::default(), &mut |_| {});
        matches!(outcome, Err(RunError::Contradiction(_)))
    };
    assert!(refused(RunOptions { audio: Some(Audio::Tone), codec: Codec::Opus, ..RunOptions::default() }));
    assert!(refused(RunOptions { codec: Codec::Opus, ..xdp() }));
    assert!(refused(RunOptions { audio: Some(Audio::Random), ..xdp() }));
    assert!(refused(RunOptions { reorder: 0.1, ..xdp() }));
    assert!(refused(RunOptions { xdp_interface: None, ..xdp() }));
    assert_eq!(xdp().contradiction(), None);
}
