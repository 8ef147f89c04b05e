//! Who is let in: lists, rates, passwords; and that a flood of one source is no harm to another.

use std::fs;
use std::net::{TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::peers;
use crate::recorder::{Recorder, Setup, number};
use crate::sipp;
use crate::src::{Call, Wire, two_streams};

/// On loopback every 127.0.0.0/8 is an address of ours.
fn udp_from(ip: &str, recorder: &Recorder) -> Wire {
    let socket = UdpSocket::bind((ip, 0)).unwrap();
    socket.connect(recorder.udp).unwrap();
    Wire::Udp(socket)
}

fn call_from(ip: &str, recorder: &Recorder) -> Call {
    Call::new(udp_from(ip, recorder), recorder.udp, two_streams())
}

/// Raises a flag in the end, also when an assertion fails.
struct Raised<'a>(&'a AtomicBool);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Some 2,000 INVITEs a second from 127.0.0.2, each another, while calls come from 127.0.0.1. Without limits they would take
/// every port within a moment.
#[test]
fn a_flood_from_one_source_stops_no_call_of_another() {
    const CALLS: usize = 20;
    let mut recorder = Setup::new()
        .pairs(96)
        .flag("--port-cooldown", "0")
        .flag("--rate-limit-source", "50")
        .flag("--max-sessions-per-source", "20")
        .start();
    let over = AtomicBool::new(false);
    let flood = call_from("127.0.0.2", &recorder);
    thread::scope(|scope| {
        let _ends_the_flood = Raised(&over);
        scope.spawn(|| {
            let (text, Wire::Udp(socket)) = (flood.invite_text(), &flood.wire) else { unreachable!() };
            let mut number = 0u64;
            while !over.load(Ordering::Relaxed) {
                for _ in 0..20 {
                    let call_id = format!("{number:0width$}", width = flood.call_id.len());
                    let _ = socket.send(text.replace(&flood.call_id, &call_id).as_bytes());
                    number += 1;
                }
                thread::sleep(Duration::from_millis(10));
            }
        });
        recorder.stats_when("the flood has begun", |stats| number_of(stats, "datagrams") > 1_000);
        for _ in 0..CALLS {
            let mut call = call_from("127.0.0.1", &recorder);
            let mut answer = None;
            // As RFC 3261 has it, an INVITE that gets no answer is sent again, up to six times.
            for _ in 0..7 {
                call.wire.send(call.invite_text());
                answer = call.wire.receive_within(Duration::from_secs(1));
                if answer.is_some() {
                    break;
                }
            }
            assert!(answer.is_some_and(|answer| answer.code() == 100), "a call is let in");
            let ok = call.wire.final_response("INVITE");
            assert_eq!(ok.code(), 200);
            call.remote_tag = Some(crate::src::tag(&ok));
            call.ack();
            call.cseq += 1;
            let bye = call.request("BYE", "", "");
            let ended = (0..7).any(|_| {
                call.wire.send(&bye);
                call.wire.receive_within(Duration::from_secs(1)).is_some()
            });
            assert!(ended, "a call may end");
        }
    });
    let stats = recorder.stats();
    let (sessions, refused) = (&stats["sessions"], &stats["sessions"]["refused"]);
    assert!(number(sessions, "total") >= CALLS as u64 && number(sessions, "active") <= 21, "{sessions}");
    assert!(number(refused, "rate_limit_source") > 500, "{refused}");
    let lines = recorder.log().iter().filter(|line| line["message"] == "session refused").count();
    assert!(lines < 50, "{lines} lines for {refused}");
    recorder.signal("TERM");
    recorder.exit();
}

fn number_of(stats: &Value, field: &str) -> u64 {
    number(&stats["sip"]["wire"], field)
}

#[test]
fn addresses_that_are_not_admitted() {
    let mut recorder = Setup::new().flag("--allow", "127.0.0.0/24").flag("--deny", "127.0.0.2").start();
    for ip in ["127.0.0.2", "127.0.1.1"] {
        let mut call = call_from(ip, &recorder);
        call.wire.send(call.invite_text());
        assert!(call.wire.receive_within(Duration::from_millis(200)).is_none(), "{ip} got an answer");
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&std::net::SocketAddr::new(ip.parse().unwrap(), 0).into()).unwrap();
        socket.connect(&recorder.tcp.into()).unwrap();
        assert!(Wire::Tcp { stream: TcpStream::from(socket), read: Vec::new() }.closed());
    }
    let mut call = call_from("127.0.0.1", &recorder);
    call.establish();
    call.hang_up();
    Call::tcp(recorder.tcp).establish();
    assert_eq!(number_of(&recorder.stats(), "denied"), 4);
    recorder.stop();
}

/// SIPp answers the challenges of INVITE and BYE; without the password it gets nothing.
#[test]
fn digest_authentication_by_sipp() {
    if !peers::installed(&["sipp", "md5sum"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let users = home.path().join("users");
    let hash = peers::output(Command::new("sh").args(["-c", "printf 'sbc:recorders:secret' | md5sum"]));
    fs::write(&users, format!("sbc:recorders:{}\n", &hash[..32])).unwrap();
    let mut recorder = Setup::new().flag("--auth-users", users.to_str().unwrap()).start();
    for tcp in [false, true] {
        sipp::run_as(&recorder, "auth", tcp, 5, ("sbc", "secret"));
    }
    let stats = recorder.stats();
    assert_eq!(number(&stats["sessions"], "total"), 10);
    assert_eq!((number(&stats["sip"], "challenged"), number(&stats["sip"], "auth_failed")), (20, 0));
    let mut stranger = Call::udp(recorder.udp);
    assert_eq!(stranger.invite().code(), 401);
    recorder.stop();
}

/// The SRC replaces its dialog, then loses it and begins another: three recordings that are found as one.
#[test]
fn recordings_of_one_communication_session() {
    let mut recorder = Recorder::start();
    let mut first = Call::udp(recorder.udp);
    first.establish();
    let mut other = Call::udp(recorder.udp);
    other.establish();

    let mut second = Call::udp(recorder.udp);
    let dialog =
        format!("{};to-tag={};from-tag={}", first.call_id, first.remote_tag.clone().unwrap(), first.tag);
    let fields =
        format!("Require: siprec\r\nReplaces: {dialog}\r\nContent-Type: {}\r\n", crate::src::MULTIPART);
    second.wire.send(second.request("INVITE", &fields, &second.body()));
    let ok = second.wire.final_response("INVITE");
    assert_eq!(ok.code(), 200);
    second.remote_tag = Some(crate::src::tag(&ok));
    second.ack();
    let bye = first.wire.receive();
    assert!(bye.start.starts_with("BYE "), "{}", bye.start);
    first.accept(&bye);

    let mut third = Call::udp(recorder.udp);
    third.metadata = second.metadata.clone();
    third.establish();
    third.hang_up();
    second.hang_up();
    other.hang_up();
    let recordings = recorder.committed(4);
    let id = |recording: usize| recordings[recording].manifest["id"].as_str().unwrap().to_owned();
    assert_eq!(recordings[0].manifest["end_cause"], "replaced");
    assert_eq!(recordings[2].manifest["continues"], id(0));
    assert_eq!(recordings[3].manifest["continues"], id(2));

    let session = format!("cs-{}", first.call_id);
    for filter in [["--session-id", &session], ["--call-id", &third.call_id]] {
        let output = Command::new(env!("CARGO_BIN_EXE_sipreel"))
            .args(["recordings", "--json"])
            .args(filter)
            .arg(recorder.dir())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let ids: Vec<String> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!((output.status.code(), ids), (Some(0), vec![id(0), id(2), id(3)]), "{filter:?}");
    }
    recorder.stop();
}
