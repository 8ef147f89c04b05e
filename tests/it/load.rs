//! The load tool's calls: every packet is proved to be where it belongs, and the proof is proved to notice.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::recorder::{Recorder, Setup, number};

pub fn sipreel_load(arguments: &[&str]) -> (Option<i32>, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sipreel-load"));
    let output = command.args(arguments).arg("--json").output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let report = serde_json::from_str(&stdout)
        .unwrap_or_else(|error| panic!("{error}: {stdout}\n{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), report)
}

pub fn verify(recorder: &Recorder) -> (Option<i32>, Value) {
    sipreel_load(&["verify", "--dir", recorder.dir().to_str().unwrap()])
}

/// Fifty calls of two streams with loss, swaps and copies.
fn run(format: &str, transport: &str, codec: &str, seed: &str) -> Recorder {
    let recorder = Setup::new().pairs(120).flag("--format", format).start();
    let target = if transport == "udp" { recorder.udp } else { recorder.tcp };
    let (code, report) = sipreel_load(&[
        "--target",
        &target.to_string(),
        "--transport",
        transport,
        "--codec",
        codec,
        "--seed",
        seed,
        "--calls",
        "50",
        "--rate",
        "100",
        "--duration",
        "3",
        "--streams",
        "2",
        "--loss",
        "0.02",
        "--reorder",
        "0.02",
        "--duplicate",
        "0.02",
    ]);
    assert_eq!(code, Some(0), "{report:#}");
    let recordings = recorder.committed(50);
    let stats = recorder.quiet();
    assert_eq!(stats["media"]["kernel_dropped"], 0);
    assert_eq!(stats["sessions"]["refused_total"], 0);
    for recording in &recordings {
        recording.check_whole();
    }
    let (code, report) = verify(&recorder);
    assert_eq!(code, Some(0), "{report:#}");
    recorder
}

/// Takes bytes out of the middle of a media file.
fn damage(recorder: &Recorder) {
    let recording = recorder.recordings().remove(17);
    let name = recording.manifest["streams"][0]["file"].as_str().unwrap().to_owned();
    let mut bytes = recording.read(&name);
    let middle = bytes.len() / 2;
    bytes.drain(middle..middle + 200);
    fs::write(recording.file(&name), bytes).unwrap();
}

/// What is whole is proved whole, and what is not is noticed.
fn proves(format: &str, transport: &str, codec: &str, seed: &str) {
    let mut recorder = run(format, transport, codec, seed);
    damage(&recorder);
    let (code, report) = verify(&recorder);
    assert_eq!(code, Some(1), "{report:#}");
    recorder.stop();
}

#[test]
fn pcmu_in_pcap_over_udp() {
    proves("pcap", "udp", "pcmu", "1");
}

#[test]
fn opus_in_pcap_over_tcp() {
    proves("pcap", "tcp", "opus", "2");
}

#[test]
fn pcma_in_raw_over_tcp() {
    proves("raw", "tcp", "pcma", "3");
}

#[test]
fn g722_in_raw_over_udp() {
    proves("raw", "udp", "g722", "4");
}

#[test]
fn opus_in_raw_over_udp() {
    proves("raw", "udp", "opus", "5");
}

/// A whole recording that is not there at all.
#[test]
fn a_missing_recording_is_noticed() {
    let mut recorder = Setup::new().start();
    let dir = recorder.dir().to_str().unwrap().to_owned();
    let target = recorder.udp.to_string();
    let (code, report) =
        sipreel_load(&["--target", &target, "--calls", "3", "--duration", "0.5", "--verify-dir", &dir]);
    assert_eq!(code, Some(0), "{report:#}");
    let recordings = recorder.committed(3);
    assert_eq!(number(&recorder.stats()["media"], "recorded_packets"), {
        recordings
            .iter()
            .flat_map(|recording| {
                ["1", "2"].map(|label| {
                    let stream = recording.stream(label);
                    number(stream, "packets")
                        + number(stream, "rtcp_packets")
                        + number(stream, "other_packets")
                })
            })
            .sum::<u64>()
    });
    // The load tool sends to a recorder whose recordings go elsewhere.
    let elsewhere = tempfile::tempdir().unwrap();
    let nowhere = elsewhere.path().to_str().unwrap();
    let (code, report) =
        sipreel_load(&["--target", &target, "--calls", "2", "--duration", "0.5", "--verify-dir", nowhere]);
    assert_eq!(code, Some(1), "{report:#}");
    recorder.committed(5);
    recorder.stop();
}
