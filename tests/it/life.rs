//! How a recorder ends, and what it leaves behind.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::media::Leg;
use crate::peers;
use crate::recorder::{Recorder, Setup, eventually, number};
use crate::recording::{Pcap, Recording};
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

/// One session of a call that goes on, as the recorder shows it.
fn shown(recorder: &Recorder) -> Value {
    let output = recorder.client(&["sessions", "--json"]);
    serde_json::from_str(String::from_utf8(output.stdout).unwrap().trim()).unwrap()
}

/// Its SRC gets a BYE, and the manifest says why.
fn is_ended(recorder: &Recorder, call: &mut Call, cause: &str) -> Recording {
    let bye = call.wire.receive_within(Duration::from_secs(20)).expect("a BYE");
    assert!(bye.start.starts_with("BYE "), "{}", bye.start);
    call.accept(&bye);
    let recording = recorder.recording();
    recording.check_whole();
    assert_eq!(recording.manifest["end_cause"], cause);
    recorder.stats_when("ports come back", |stats| {
        stats["ports"]["used"] == 0 && stats["sessions"]["ended"][cause] == 1
    });
    recording
}

#[test]
fn silence_ends_a_session() {
    let recorder = Setup::new().flag("--media-timeout", "3s").start();
    let (mut call, mut leg) = talking(&recorder, Call::udp(recorder.udp), 5);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(4) {
        leg.burst(1);
        std::thread::sleep(Duration::from_millis(200));
    }
    let session = shown(&recorder);
    assert_eq!(session["state"], "active");
    assert!(session["last_media"].is_string() && session["last_signalling"].is_string(), "{session}");
    let recording = is_ended(&recorder, &mut call, "media_timeout");
    assert!(begin.elapsed() > Duration::from_secs(7), "before its time");
    assert_eq!(recording.manifest["session"]["last_media"], recording.stream("1")["last_packet"]);
}

#[test]
fn no_session_lasts_longer_than_it_may() {
    let recorder = Setup::new().flag("--max-duration", "1s").start();
    let (mut call, _leg) = talking(&recorder, Call::udp(recorder.udp), 5);
    is_ended(&recorder, &mut call, "max_duration");
}

#[test]
fn an_operator_ends_a_session() {
    let recorder = Recorder::start();
    let (mut call, _leg) = talking(&recorder, Call::tcp(recorder.tcp), 5);
    let id = shown(&recorder)["id"].as_str().unwrap().to_owned();
    let unknown = recorder.client(&["end", "0199"]);
    assert!(!unknown.status.success());
    assert!(String::from_utf8(unknown.stderr).unwrap().contains("no session is recorded as 0199"));
    let output = recorder.client(&["end", &id, "--cause", "asked for by \"legal\""]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("ended {id}\n"));
    let recording = is_ended(&recorder, &mut call, "operator");
    assert_eq!(recording.manifest["end_note"], "asked for by \"legal\"");
    let again = recorder.client(&["end", &id]);
    assert!(!again.status.success());
}

/// A second recorder in the directory of this one.
fn beside(recorder: &Recorder, flags: &[&str]) -> Recorder {
    let setup = Setup::new().flag("--dir", recorder.dir().to_str().unwrap());
    flags.chunks(2).fold(setup, |setup, flag| setup.flag(flag[0], flag[1])).start()
}

/// Kills it in the middle of calls over both transports, and breaks what it has written further.
fn killed(format: &str) -> (Recorder, Vec<(Call, Leg)>) {
    let flags = |setup: Setup| setup.flag("--flush-interval", "100ms").flag("--format", format);
    let mut recorder = flags(Setup::new()).start();
    let calls = [Call::udp(recorder.udp), Call::tcp(recorder.tcp)].map(|call| talking(&recorder, call, 20));
    recorder.stats_when("all is on disk", |stats| number(&stats["media"], "staged_packets") == 0);
    recorder.signal("KILL");
    recorder.exit();
    assert_eq!(recorder.parts().len(), 2);
    (recorder, calls.into())
}

#[test]
fn what_a_dead_recorder_left_is_finished_at_the_next_start() {
    let (dead, calls) = killed("pcap");
    // What an unfinished write leaves: zeroes, and the beginning of a record.
    let [first, second] = [0, 1].map(|n| dead.parts()[n].join("call.pcap"));
    let whole = [&first, &second].map(|path| fs::read(path).unwrap());
    fs::write(&first, [&whole[0][..], &[0; 5_000]].concat()).unwrap();
    fs::write(&second, [&whole[1][..], &whole[1][24..100]].concat()).unwrap();
    // And what never had a file at all, and what is damaged from its first record on.
    let [empty, strange] = ["0123456789ab", "0123456789ac"]
        .map(|end| dead.parts()[0].with_file_name(format!("{}.part", uuid_like(&dead.parts()[0], end))));
    fs::create_dir(&empty).unwrap();
    fs::create_dir(&strange).unwrap();
    let damaged = [&whole[0][..24], &[0xff; 16], &whole[0][24..]].concat();
    fs::write(strange.join("call.pcap"), &damaged).unwrap();

    let mut recorder = beside(&dead, &["--flush-interval", "100ms"]);
    let recordings = dead.committed(2);
    let stats = recorder.stats_when("all is looked at", |stats| stats["recordings"]["recovering"] == 0);
    assert_eq!(
        (&stats["recordings"]["recovered"], &stats["recordings"]["recoveries_failed"]),
        (&2.into(), &1.into())
    );
    assert!(!empty.exists(), "there was nothing to keep");
    assert_eq!(
        fs::read(strange.join("call.pcap")).unwrap(),
        damaged,
        "nobody knows what it was: it stays as it is"
    );
    let kept = recordings.iter().filter_map(|recording| fs::read(recording.path.join("call.pcap.cut")).ok());
    assert_eq!(kept.collect::<Vec<_>>(), [whole[1][24..100].to_vec()], "zeroes are not kept, all else is");
    for recording in &recordings {
        let manifest = &recording.manifest;
        recording.check_files();
        assert_eq!(
            (&manifest["state"], &manifest["end_cause"]),
            (&"recovered".into(), &"recorder_died".into())
        );
        assert_eq!(manifest["problems"].as_array().unwrap().len(), 2, "{}", manifest["problems"]);
        assert_eq!(manifest["participants"].as_array().unwrap().len(), 2);
        let (call, leg) =
            calls.iter().find(|(call, _)| manifest["sip"]["call_id"] == call.call_id.as_str()).unwrap();
        assert_eq!(manifest["sip"]["remote_tag"], call.tag.as_str());
        assert_eq!(manifest["sip"]["local_tag"].as_str().unwrap().len(), 16);
        assert_eq!(manifest["sip"]["source"], call.wire.local().to_string());
        let stream = recording.stream("1");
        assert_eq!((&stream["packets"], &stream["lost"]), (&20.into(), &0.into()));
        assert_eq!(recording.pcap().payloads_to(number(stream, "local_rtp_port") as u16), leg.sent);
    }
    // What it records itself is left alone, by itself and by another.
    let (mut call, _leg) = talking(&recorder, Call::udp(recorder.udp), 5);
    let mut third = beside(&dead, &[]);
    third.logged("ready");
    call.hang_up();
    let finished = dead.committed(3);
    assert_eq!(finished.iter().filter(|recording| recording.manifest["state"] == "ended").count(), 1);
    third.signal("TERM");
    third.exit();
    recorder.signal("TERM");
    recorder.exit();
}

/// A name of the same recorder for a recording that there is not.
fn uuid_like(part: &Path, end: &str) -> String {
    let name = part.file_stem().unwrap().to_str().unwrap();
    format!("{}{}", &name[..24], end)
}

#[test]
fn raw_files_of_a_dead_recorder_are_kept_as_they_are() {
    let (dead, _calls) = killed("raw");
    let mut recorder = beside(&dead, &[]);
    for recording in dead.committed(2) {
        recording.check_files();
        assert_eq!(recording.manifest["state"], "recovered");
        assert_eq!(recording.read("1.ulaw").len(), 20 * 160);
        assert_eq!(recording.manifest["sip"]["transport"].as_str().unwrap().len(), 3);
    }
    recorder.signal("TERM");
    recorder.exit();
}

/// A disk that is full takes no call, and the other takes them all.
#[test]
fn a_full_disk_sends_calls_to_the_other() {
    if !crate::recorder::may_mount() {
        return;
    }
    let other = tempfile::tempdir().unwrap();
    let dir = other.path().to_str().unwrap();
    let mut recorder = Setup::new().tmpfs(1 << 20).flag("--fallback-dir", dir).start();
    recorder.fill_disk(0);
    for _ in 0..3 {
        let (mut call, _leg) = talking(&recorder, Call::udp(recorder.udp), 10);
        call.hang_up();
    }
    recorder.stats_when("all are whole", |stats| {
        stats["recordings"]["committed"] == 3 && stats["sessions"]["opened_elsewhere"] == 3
    });
    recorder.signal("TERM");
    assert_eq!(recorder.exit().code(), Some(0));
}
