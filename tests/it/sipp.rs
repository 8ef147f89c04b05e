//! SIPp as the SRC.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use crate::media::{Leg, talk};
use crate::peers;
use crate::recorder::{Recorder, Setup, eventually, number};

/// SIPp looks for a port by itself only from 5060 on, where two of them meet. Of each eight ports below those of the
/// recorders it gets the first for SIP and others for media.
pub fn free_port(ip: IpAddr) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    (0..250)
        .map(|_| (std::process::id() as u16).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 250)
        .map(|block| 10_000 + block * 8)
        .find(|port| UdpSocket::bind((ip, *port)).is_ok() && TcpListener::bind((ip, *port)).is_ok())
        .expect("a free port")
}

/// A run of one scenario.
pub struct Sipp {
    child: Child,
    log: PathBuf,
    messages: PathBuf,
}

impl Sipp {
    fn start(recorder: &Recorder, scenario: &str, tcp: bool, calls: u32) -> Sipp {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/sipp/{scenario}.xml"));
        Sipp::start_with(recorder, scenario, &file, tcp, calls, &[])
    }

    /// A scenario of ours, by somebody with a name and a password.
    fn start_as(recorder: &Recorder, scenario: &str, tcp: bool, calls: u32, login: (&str, &str)) -> Sipp {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/sipp/{scenario}.xml"));
        Sipp::start_with(recorder, scenario, &file, tcp, calls, &["-au", login.0, "-ap", login.1])
    }

    /// Calls whose Call-IDs begin with this name.
    pub fn start_file(recorder: &Recorder, name: &str, scenario: &Path, tcp: bool, calls: u32) -> Sipp {
        Sipp::start_with(recorder, name, scenario, tcp, calls, &[])
    }

    fn start_with(
        recorder: &Recorder,
        name: &str,
        scenario: &Path,
        tcp: bool,
        calls: u32,
        flags: &[&str],
    ) -> Sipp {
        let target = if tcp { recorder.tcp } else { recorder.udp };
        let ip = target.ip().to_string();
        let port = free_port(target.ip());
        let file = |what: &str| recorder.home().join(format!("{name}-{port}-{what}.log"));
        let (log, messages) = (file("log"), file("messages"));
        // A 200 that comes while SIPp is about to send is ignored there, and comes again: it has no ACK yet.
        let racing = ["cancel", "retransmitted-invite"].contains(&name);
        let behaviour = if racing { "all,-abortunexp" } else { "all" };
        let child = Command::new("sipp")
            .arg(target.to_string())
            .arg("-sf")
            .arg(scenario)
            .args(["-cid_str", &format!("{name}-%u-%p@%s")])
            .args(["-t", if tcp { "t1" } else { "u1" }])
            .args(["-i", &ip, "-mi", &ip, "-p", &port.to_string(), "-mp", &(port + 2).to_string()])
            .args(["-m", &calls.to_string(), "-l", &calls.to_string(), "-r", "50"])
            .args(["-timeout", "30s", "-timeout_error", "-nostdin"])
            .args(["-default_behaviors", behaviour])
            .args(flags)
            .args(["-trace_logs".as_ref(), "-log_file".as_ref(), log.as_os_str()])
            .args(["-trace_msg".as_ref(), "-message_file".as_ref(), messages.as_os_str()])
            .current_dir(recorder.home())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Sipp { child, log, messages }
    }

    /// Every call went as the scenario says.
    #[track_caller]
    pub fn finish(self) {
        let messages = self.messages;
        let output = self.child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let wire = || fs::read_to_string(&messages).unwrap_or_default();
        assert_eq!(output.status.code(), Some(0), "{stderr}\n{}", wire());
    }

    fn run(recorder: &Recorder, scenario: &str, tcp: bool, calls: u32) {
        Sipp::start(recorder, scenario, tcp, calls).finish();
    }

    /// The ports that were answered.
    #[track_caller]
    fn ports(&self) -> Vec<u16> {
        eventually("SIPp logs the answered ports", || {
            let text = fs::read_to_string(&self.log).ok()?;
            let line = text.lines().find_map(|line| line.split_once("PORTS "))?;
            let ports: Vec<u16> = line.1.split_whitespace().map(|port| port.parse().unwrap()).collect();
            (ports.len() == 2).then_some(ports)
        })
    }
}

/// A scenario by somebody with a name and a password.
#[track_caller]
pub fn run_as(recorder: &Recorder, scenario: &str, tcp: bool, calls: u32, login: (&str, &str)) {
    Sipp::start_as(recorder, scenario, tcp, calls, login).finish();
}

/// A whole call: SIPp signals, two parties talk for a second.
fn record(ip: &str, tcp: bool) {
    if !peers::installed(&["sipp", "tshark"]) {
        return;
    }
    let mut recorder = Setup::new().ip(ip).start();
    let sipp = Sipp::start(&recorder, "record", tcp, 1);
    let ports = sipp.ports();
    let ip = recorder.udp.ip();
    let mut legs = [Leg::new(ip, ports[0], 0x0102_0304), Leg::new(ip, ports[1], 0xfffe_fdfc)];
    legs[1].payload_type = 8;
    let [first, second] = &mut legs;
    talk(&mut [first, second], 50);
    sipp.finish();

    let recording = recorder.recording();
    recording.check_whole();
    let pcap = recording.pcap();
    for (leg, port) in legs.iter().zip(&ports) {
        assert_eq!(pcap.payloads_to(*port), leg.sent, "bit for bit, in order");
        let to = SocketAddr::new(ip, *port);
        assert!(pcap.to_port(*port).iter().all(|packet| (packet.from, packet.to) == (leg.source(), to)));
    }
    let manifest = &recording.manifest;
    assert_eq!(manifest["end_cause"], "bye");
    assert_eq!(manifest["sip"]["transport"], if tcp { "tcp" } else { "udp" });
    let source: SocketAddr = manifest["sip"]["source"].as_str().unwrap().parse().unwrap();
    assert_eq!(source.ip(), ip);
    assert_eq!(manifest["communication_sessions"], serde_json::json!(["hVpd7YQgRW2nD22h7q60JQ=="]));
    assert_eq!(manifest["participants"][0]["aors"], serde_json::json!(["sip:bob@biloxi.example"]));
    assert_eq!(manifest["participants"][1]["name"], "Paul");
    for (label, codec, participant) in
        [("96", "PCMU", "srfBElmCRp2QB23b7Mpk0w=="), ("97", "PCMA", "zSfPoSvdSDCmU3A3TRDxAw==")]
    {
        let stream = recording.stream(label);
        assert_eq!((&stream["codec"], &stream["clock_rate"]), (&codec.into(), &8_000.into()));
        assert_eq!((&stream["packets"], &stream["lost"]), (&50.into(), &0.into()));
        assert_eq!(stream["participants"], serde_json::json!([participant]));
    }
    let file = recording.file("call.pcap");
    peers::no_complaint(&file);
    let streams = peers::rtp_streams(&file);
    assert_eq!(streams.len(), 2, "{streams:?}");
    for (port, ssrc, payload) in [(ports[0], "0x01020304", "g711U"), (ports[1], "0xfffefdfc", "g711A")] {
        let stream = streams.iter().find(|stream| stream.to_port == port).unwrap();
        assert_eq!((stream.ssrc.as_str(), stream.packets, stream.lost), (ssrc, 50, 0));
        assert_eq!(stream.payload, payload);
    }
    let stats = recorder.quiet();
    assert_eq!(number(&stats["media"], "recorded_packets"), 100);
    recorder.stop();
}

#[test]
fn records_over_udp() {
    record("127.0.0.1", false);
}

#[test]
fn records_over_tcp() {
    record("127.0.0.1", true);
}

#[test]
fn records_over_udp_and_ipv6() {
    record("::1", false);
}

#[test]
fn records_over_tcp_and_ipv6() {
    record("::1", true);
}

/// Runs a scenario over both transports, and again as several calls at once. So many sessions were established by each call.
fn behaves(scenario: &str, sessions: impl Fn(u64) -> std::ops::RangeInclusive<u64>) {
    if !peers::installed(&["sipp"]) {
        return;
    }
    let mut recorder = Setup::new().flag("--port-cooldown", "0").start();
    for (tcp, calls) in [(false, 1), (true, 1), (false, 10), (true, 10)] {
        Sipp::run(&recorder, scenario, tcp, calls);
    }
    let stats = recorder.pool_whole();
    let total = number(&stats["sessions"], "total");
    assert!(sessions(22).contains(&total), "{total} sessions");
    assert_eq!((number(&stats["sessions"], "active"), number(&stats["sip"], "ack_timeouts")), (0, 0));
    for recording in recorder.committed(total as usize) {
        recording.check_whole();
    }
    recorder.stop();
}

#[test]
fn bye_before_ack() {
    behaves("bye-before-ack", |calls| calls..=calls);
}

#[test]
fn retransmitted_invite() {
    behaves("retransmitted-invite", |calls| calls..=calls);
}

#[test]
fn cancel() {
    behaves("cancel", |calls| 0..=calls);
}

#[test]
fn unknown_dialog() {
    behaves("unknown-dialog", |_| 0..=0);
}

#[test]
fn options_and_an_unsupported_method() {
    behaves("options", |_| 0..=0);
}

#[test]
fn reinvite() {
    behaves("reinvite", |calls| calls..=calls);
}
