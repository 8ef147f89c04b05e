//! How a recorder ends, and what it leaves behind.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::media::Leg;
use crate::peers;
use crate::recorder::{Recorder, Setup, eventually, number};
use crate::recording::Pcap;
use crate::src::{Call, tag};

/// A call whose first leg has sent so many packets, all received.
fn talking(recorder: &Recorder, mut call: Call, packets: usize) -> (Call, Leg) {
    let ports = call.establish();
    let before = number(&recorder.stats()["media"], "received_packets");
    let mut leg = Leg::new(recorder.udp.ip(), ports[0], 5);
    leg.burst(packets);
    recorder.stats_when("the packets are received", |stats| {
        number(&stats["media"], "received_packets") == before + packets as u64
    });
    (call, leg)
}

/// Running calls go on for the drain's time, new ones are refused, then each SRC gets a BYE, and nothing is lost.
#[test]
fn sigterm_drains() {
    let mut recorder = Setup::new().flag("--drain-timeout", "1s").start();
    let (mut by_udp, mut first) = talking(&recorder, Call::udp(recorder.udp), 10);
    let (mut by_tcp, second) = talking(&recorder, Call::tcp(recorder.tcp), 10);
    let mut ended = Call::udp(recorder.udp);
    ended.establish();

    let begin = Instant::now();
    recorder.signal("TERM");
    recorder.logged("draining");
    let mut late = Call::udp(recorder.udp);
    let refused = eventually("a new call is refused", || {
        late.cseq += 1;
        let answer = late.invite();
        (answer.code() == 503).then_some(answer)
    });
    assert!(refused.header("Retry-After").unwrap().parse::<u32>().unwrap() > 0);
    let options = late.request("OPTIONS", "", "");
    late.wire.send(options);
    assert_eq!(late.wire.final_response("OPTIONS").code(), 503);
    first.burst(5);
    ended.hang_up();

    for call in [&mut by_udp, &mut by_tcp] {
        let bye = call.wire.receive();
        assert!(bye.start.starts_with("BYE sip:src@"), "{}", bye.start);
        assert_eq!(tag(&bye), call.tag);
        assert_eq!(bye.header("Call-ID"), Some(call.call_id.as_str()));
        call.accept(&bye);
    }
    assert!(begin.elapsed().as_millis() >= 1_000, "before the drain's time");
    let status = recorder.exit();
    assert_eq!(status.code(), Some(0), "{:?}", recorder.log());
    assert!(recorder.parts().is_empty());
    let recordings = recorder.recordings();
    assert_eq!(recordings.len(), 3);
    for recording in &recordings {
        recording.check_whole();
        let id = recording.manifest["sip"]["call_id"].as_str().unwrap();
        let cause = if id == ended.call_id { "bye" } else { "drain" };
        assert_eq!(recording.manifest["end_cause"], cause);
        for (call, leg) in [(&by_udp, &first), (&by_tcp, &second)] {
            if call.call_id == id {
                let port = number(recording.stream("1"), "local_rtp_port") as u16;
                assert_eq!(recording.pcap().payloads_to(port), leg.sent);
            }
        }
    }
}

/// An SRC that is gone does not keep the recorder.
#[test]
fn a_drain_does_not_wait_for_the_dead() {
    let mut recorder = Recorder::start();
    let (silent, _) = talking(&recorder, Call::udp(recorder.udp), 3);
    let (gone, _) = talking(&recorder, Call::tcp(recorder.tcp), 3);
    drop(gone.wire);
    recorder.signal("INT");
    assert_eq!(recorder.exit().code(), Some(0));
    drop(silent);
    assert_eq!(recorder.recordings().len(), 2);
    for recording in recorder.recordings() {
        recording.check_whole();
        assert_eq!(recording.manifest["end_cause"], "drain");
    }
}

/// The capture of a recording that was not finished is one that Wireshark reads to its end.
fn readable(recorder: &Recorder, leg: &Leg, port: u16) {
    let parts = recorder.parts();
    assert_eq!(parts.len(), 1, "{parts:?}");
    assert!(recorder.recordings().is_empty());
    let file = parts[0].join("call.pcap");
    let written = Pcap::read(&file).payloads_to(port);
    assert!(!written.is_empty() && leg.sent.starts_with(&written), "{} packets", written.len());
    assert!(parts[0].join("metadata-0001.xml").is_file());
    if peers::installed(&["tshark", "capinfos"]) {
        peers::no_complaint(&file);
        assert_eq!(peers::capinfos(&file), Pcap::read(&file).records);
        let streams = peers::rtp_streams(&file);
        assert_eq!((streams[0].packets, streams[0].lost), (written.len() as u64, 0));
    }
}

/// A call in the middle, of which something is on disk.
fn half_written(recorder: &Recorder) -> (Call, Leg, u16) {
    let mut call = Call::udp(recorder.udp);
    let ports = call.establish();
    let mut leg = Leg::new(recorder.udp.ip(), ports[0], 5);
    leg.burst(50);
    recorder.stats_when("something is on disk", |stats| number(&stats["media"], "recorded_packets") >= 50);
    leg.burst(10);
    (call, leg, ports[0])
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut recorder = Setup::new().flag("--drain-timeout", "60s").flag("--flush-interval", "200ms").start();
    let (_call, leg, port) = half_written(&recorder);
    recorder.signal("TERM");
    recorder.logged("draining");
    // Two signals in one moment are one wish: supervisors send them so.
    let status = eventually("it ends long before the drain's time", || {
        recorder.signal("TERM");
        recorder.try_exit()
    });
    assert_eq!(status.code(), Some(128 + 15));
    readable(&recorder, &leg, port);
}

#[test]
fn sigkill_leaves_a_readable_part() {
    let mut recorder = Setup::new().flag("--flush-interval", "200ms").start();
    let (_call, leg, port) = half_written(&recorder);
    recorder.signal("KILL");
    assert_eq!(recorder.exit().code(), None);
    readable(&recorder, &leg, port);
    // The next recorder takes the place of the dead one.
    assert!(recorder.stats_socket.exists());
}

/// The exit code and the one line on stderr.
fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sipreel"))
        .args(["record", "--sip-udp", "127.0.0.1:0", "--sip-tcp", "127.0.0.1:0", "--log-format", "json"])
        .args(["--media-ports", "11998-11999"])
        .args(arguments)
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_directory_that_cannot_be_written_is_refused_at_start() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    fs::write(&file, "in the way").unwrap();
    let below = file.join("recordings");
    for dir in [&file, &below, Path::new("/proc/sipreel"), Path::new("/dev/null/x")] {
        let dir = dir.to_str().unwrap();
        let (code, stderr) = refused(&["--dir", dir]);
        assert_eq!(code, Some(2), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains("--dir ") && stderr.contains(dir), "{stderr}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"in the way");
}

#[test]
fn an_address_that_is_taken_is_refused_at_start() {
    let recorder = Recorder::start();
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().to_str().unwrap();
    for (flag, address) in [("--sip-udp", recorder.udp), ("--sip-tcp", recorder.tcp)] {
        let output = Command::new(env!("CARGO_BIN_EXE_sipreel"))
            .args(["record", "--dir", dir, "--media-ports", "11998-11999", flag, &address.to_string()])
            .args([if flag == "--sip-udp" { "--sip-tcp" } else { "--sip-udp" }, "none"])
            .args(["--stats-socket", &format!("{dir}/s.sock")])
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        assert!(stderr.contains(flag) && stderr.contains(&address.to_string()), "{stderr}");
    }
}
