//! Disks that are full, or cannot be written any more.

use std::fs;

use crate::media::Leg;
use crate::peers;
use crate::recorder::{Setup, may_mount, number};
use crate::recording::Pcap;
use crate::src::Call;

#[test]
fn a_disk_that_becomes_unwritable() {
    if !may_mount() {
        return;
    }
    let mut recorder = Setup::new().tmpfs(4 << 20).flag("--port-cooldown", "0").start();
    let mut before = Call::udp(recorder.udp);
    before.establish();
    before.hang_up();
    recorder.committed(1);
    recorder.pool_whole();
    let dir = recorder.dir_inside();
    recorder.inside(&format!("mount -o remount,ro '{}'", dir.display()));
    for n in 1..=3_u64 {
        let mut call = Call::udp(recorder.udp);
        let answer = call.invite();
        assert!(matches!(answer.code(), 500 | 503), "{}", answer.start);
        call.ack();
        assert_eq!(number(&recorder.stats()["sessions"]["refused"], "open_failed"), n);
    }
    let stats = recorder.pool_whole();
    assert_eq!((&stats["sessions"]["active"], &stats["sessions"]["total"]), (&0.into(), &1.into()));
    recorder.inside(&format!("mount -o remount,rw '{}'", dir.display()));
    let mut after = Call::udp(recorder.udp);
    after.establish();
    after.hang_up();
    recorder.committed(2).remove(1).check_whole();
    recorder.stop_after_errors();
}

#[test]
fn no_room_for_a_new_recording() {
    if !may_mount() {
        return;
    }
    let mut recorder = Setup::new().tmpfs(1 << 20).start();
    let ballast = recorder.fill_disk(0);
    let mut call = Call::tcp(recorder.tcp);
    let answer = call.invite();
    assert!(matches!(answer.code(), 500 | 503), "{}", answer.start);
    call.ack();
    let stats = recorder.stats();
    assert_eq!(stats["sessions"]["refused"]["open_failed"], 1);
    assert!(recorder.parts().is_empty(), "nothing is left behind");
    fs::remove_file(ballast).unwrap();
    let mut call = Call::tcp(recorder.tcp);
    call.establish();
    call.hang_up();
    recorder.recording().check_whole();
    recorder.stop_after_errors();
}

/// Everything received is either in the file or counted as lost with its cause; the file stays one that can be read; the
/// manifest says that something is missing.
#[test]
fn a_disk_that_fills_while_recording() {
    if !may_mount() || !peers::installed(&["tshark", "capinfos"]) {
        return;
    }
    // Room for a block and a half, so that one write fails half way.
    let mut recorder = Setup::new().tmpfs(2 << 20).flag("--flush-interval", "200ms").start();
    let mut call = Call::udp(recorder.udp);
    let ports = call.establish();
    let mut leg = Leg::new(recorder.udp.ip(), ports[0], 9);
    let ballast = recorder.fill_disk(96 << 10);
    for _ in 0..4 {
        leg.burst(500);
    }
    let full = recorder.stats_when("writes fail", |stats| {
        stats["media"]["received_packets"] == 2_000
            && stats["media"]["staged_packets"] == 0
            && number(&stats["media"]["dropped"], "write_failed") > 0
    });
    assert!(number(&full["media"], "recorded_packets") > 0, "the first block had room");
    assert!(number(&full["disk"], "errors") > 0);
    // Room again: the recording goes on.
    fs::remove_file(ballast).unwrap();
    leg.burst(100);
    let stats = recorder.stats_when("what came last is on disk", |stats| {
        stats["media"]["received_packets"] == 2_100 && stats["media"]["staged_packets"] == 0
    });
    let recorded = number(&stats["media"], "recorded_packets");
    let lost = number(&stats["media"]["dropped"], "write_failed");
    assert_eq!(recorded + lost, 2_100);
    assert_eq!(stats["media"]["unaccounted_packets"], 0);
    assert!(recorded >= number(&full["media"], "recorded_packets") + 100, "{stats}");
    call.hang_up();

    let recording = recorder.recording();
    recording.check_files();
    let problems = recording.manifest["problems"].as_array().unwrap();
    for words in ["call.pcap", &format!("{lost} datagrams")] {
        assert!(problems.iter().any(|problem| problem.as_str().unwrap().contains(words)), "{problems:?}");
    }
    let written = recording.pcap().payloads_to(ports[0]);
    assert_eq!(written.len() as u64, recorded);
    // What is there is there in order, bit for bit.
    let mut sent = leg.sent.iter();
    assert!(written.iter().all(|packet| sent.any(|other| other == packet)));
    assert_eq!(written[written.len() - 100..], leg.sent[2_000..]);
    let file = recording.file("call.pcap");
    assert_eq!(peers::capinfos(&file), recording.pcap().records);
    peers::no_complaint(&file);
    assert_eq!(number(&recorder.stats()["recordings"], "incomplete"), 1);
    recorder.stop_after_errors();
}

/// Room is gone for good: the recording stays unfinished, what is in it can be read, and the process says that it failed.
#[test]
fn a_disk_that_stays_full() {
    if !may_mount() {
        return;
    }
    let mut recorder = Setup::new().tmpfs(1 << 20).flag("--flush-interval", "200ms").start();
    let mut call = Call::udp(recorder.udp);
    let ports = call.establish();
    let mut leg = Leg::new(recorder.udp.ip(), ports[0], 9);
    leg.burst(100);
    recorder.stats_when("the first packets are on disk", |stats| stats["media"]["recorded_packets"] == 100);
    recorder.fill_disk(0);
    leg.burst(1_000);
    recorder.stats_when("the others are lost", |stats| {
        stats["media"]["received_packets"] == 1_100 && stats["media"]["staged_packets"] == 0
    });
    call.hang_up();
    let stats = recorder.stats_when("the commit fails", |stats| stats["recordings"]["commits_failed"] == 1);
    let media = &stats["media"];
    assert_eq!(number(media, "recorded_packets") + number(&media["dropped"], "write_failed"), 1_100);
    assert_eq!(stats["recordings"]["committed"], 0);
    let parts = recorder.parts();
    assert_eq!((parts.len(), recorder.recordings().len()), (1, 0));
    let written = Pcap::read(&parts[0].join("call.pcap")).payloads_to(ports[0]);
    assert_eq!(written.len() as u64, number(media, "recorded_packets"));
    assert!(leg.sent.starts_with(&written));
    recorder.pool_whole();
    recorder.signal("TERM");
    assert_eq!(recorder.exit().code(), Some(1));
}
