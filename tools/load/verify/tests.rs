//! Recordings made here, whole and spoiled: what the proof must accept and what it must find.

use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::frames::tests::{frame, pcap};
use super::*;
use crate::load::codec::{Audio, Codec};
use crate::load::plan::tests::plan;
use crate::load::plan::{Counter, StreamPlan};
use crate::load::rtp;
use crate::load::selfdescription::Described;
use crate::load::template::tests::{site, sources};
use crate::load::template::{Site, aor, labels, name};
use crate::load::wire::PACKET_MAX;

/// Datagrams of one stream as a recorder saw them.
#[derive(Default, Clone)]
pub struct Heard {
    pub rtp_port: u16,
    pub rtp: Vec<(SocketAddr, Vec<u8>)>,
    pub rtcp: Vec<(SocketAddr, Vec<u8>)>,
}

/// Writes a recording the way a faultless recorder does.
pub fn write_recording(
    dir: &Path,
    described: &Described,
    invite: &str,
    format: &str,
    heard: &[Heard],
) -> PathBuf {
    let path = dir.join(format!("2026/11/22/08/{}-{}", described.plan.run, described.call));
    fs::create_dir_all(&path).unwrap();
    let metadata = invite.split("recording-session\r\n\r\n").nth(1).unwrap().split("\r\n--").next().unwrap();
    fs::write(path.join("metadata-0001.xml"), metadata).unwrap();
    let mut files = vec!["metadata-0001.xml".to_owned()];
    if format == "pcap" {
        fs::write(path.join("call.pcap"), capture(described, invite, heard)).unwrap();
        files.push("call.pcap".into());
    } else {
        for (label, heard) in labels(&described.plan).iter().zip(heard) {
            let (name, bytes) = raw(described, label, heard);
            fs::write(path.join(&name), bytes).unwrap();
            files.push(name);
        }
    }
    let files: Vec<_> = files.iter().map(|name| listed(&path, name)).collect();
    let manifest = manifest(described, format, heard, files);
    fs::write(path.join("recording.json"), manifest.to_string()).unwrap();
    path
}

fn capture(described: &Described, invite: &str, heard: &[Heard]) -> Vec<u8> {
    let (src, srs): (SocketAddr, SocketAddr) =
        ("127.0.0.1:5070".parse().unwrap(), "127.0.0.1:5060".parse().unwrap());
    assert!(invite.contains(&described.call_id));
    let mut frames = vec![frame(src, srs, invite.as_bytes())];
    for heard in heard {
        let to = |port| SocketAddr::new(srs.ip(), port);
        frames.extend(heard.rtp.iter().map(|(from, bytes)| frame(*from, to(heard.rtp_port), bytes)));
        frames.extend(heard.rtcp.iter().map(|(from, bytes)| frame(*from, to(heard.rtp_port + 1), bytes)));
    }
    // The SRC's SIP port may have any number.
    let same = SocketAddr::new(src.ip(), heard[0].rtp_port);
    frames.insert(frames.len() - 1, frame(srs, same, b"SIP/2.0 200 OK\r\n\r\n"));
    pcap(&frames)
}

fn raw(described: &Described, label: &str, heard: &Heard) -> (String, Vec<u8>) {
    let codec = described.plan.codec;
    let Some(extension) = codec.raw_extension() else { return (format!("{label}.rtp"), dump(heard)) };
    let first = rtp::read(&heard.rtp[0].1).unwrap().2;
    let mut file = Vec::new();
    for (_, packet) in &heard.rtp {
        let (at, payload) = (rtp::read(packet).unwrap().2.wrapping_sub(first) as usize, &packet[12..]);
        file.resize(file.len().max(at + payload.len()), codec.silence());
        file[at..at + payload.len()].copy_from_slice(payload);
    }
    (format!("{label}.{extension}"), file)
}

fn dump(heard: &Heard) -> Vec<u8> {
    let mut file = b"#!rtpplay1.0 127.0.0.1/40000\n".to_vec();
    file.extend([0; 16]);
    for (len, (_, bytes)) in heard
        .rtp
        .iter()
        .map(|packet| (packet.1.len() as u16, packet))
        .chain(heard.rtcp.iter().map(|packet| (0, packet)))
    {
        file.extend((bytes.len() as u16 + 8).to_be_bytes());
        file.extend(len.to_be_bytes());
        file.extend([0; 4]);
        file.extend(bytes);
    }
    file
}

fn listed(path: &Path, name: &str) -> serde_json::Value {
    let bytes = fs::read(path.join(name)).unwrap();
    let hex: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    json!({"name": name, "size": bytes.len(), "sha256": hex})
}

fn manifest(
    described: &Described,
    format: &str,
    heard: &[Heard],
    files: Vec<serde_json::Value>,
) -> serde_json::Value {
    let (plan, call) = (&described.plan, described.call);
    let people: Vec<_> = (0..plan.streams)
        .map(|n| json!({"id": n.to_string(), "aors": [aor(call, n)], "name": name(call, n)}))
        .collect();
    let streams: Vec<_> =
        (0..plan.streams).zip(heard).map(|(n, heard)| stream(described, format, n, heard)).collect();
    json!({
        "version": 1, "state": "ended", "format": format, "problems": [],
        "sip": {"call_id": described.call_id}, "participants": people, "streams": streams, "files": files,
    })
}

fn stream(described: &Described, format: &str, n: u32, heard: &Heard) -> serde_json::Value {
    let plan = &described.plan;
    let own = plan.stream(described.call, n);
    let label = labels(plan)[n as usize].clone();
    let mut counter = Counter::default();
    for (_, bytes) in &heard.rtp {
        let ticks = rtp::read(bytes).unwrap().2.wrapping_sub(own.first_timestamp);
        counter.see(ticks / plan.timestamp_step());
    }
    let tally = counter.tally();
    let file = match format {
        "pcap" => "call.pcap".to_owned(),
        _ => format!("{label}.{}", plan.codec.raw_extension().unwrap_or("rtp")),
    };
    json!({
        "label": label, "participants": [n.to_string()], "m_line": n, "kind": "audio",
        "codec": plan.codec.encoding(), "clock_rate": plan.codec.clock_rate(),
        "local_rtp_port": heard.rtp_port,
        "ssrcs": [{"ssrc": format!("0x{:08x}", own.ssrc)}],
        "first_packet": "2026-11-22T08:00:00.000000Z",
        "packets": tally.packets, "bytes": heard.rtp.iter().map(|(_, bytes)| bytes.len() - 12).sum::<usize>(),
        "rtcp_packets": heard.rtcp.len(), "other_packets": 0, "lost": tally.lost,
        "out_of_order": tally.out_of_order, "duplicate": tally.duplicate,
        "dropped": 0, "kernel_dropped": 0, "file": file,
    })
}

/// What a sender of `plan` sends on one stream.
fn sent(plan: &Plan, own: &StreamPlan, port: u16) -> Heard {
    let source = sources()[own.stream as usize];
    let mut heard = Heard { rtp_port: port, ..Heard::default() };
    let mut out = vec![0; PACKET_MAX];
    for turn in 0..plan.turns {
        for index in plan.turn(own, turn) {
            let len = rtp::packet(plan, own, index, &mut out);
            heard.rtp.push((source.rtp, out[..len].to_vec()));
        }
        if plan.reports(own, turn) {
            let report = rtp::Report { wall: Default::default(), timestamp: 0, packets: 0, octets: 0 };
            let len = rtp::sender_report(own, &report, &mut out);
            heard.rtcp.push((source.rtcp, out[..len].to_vec()));
        }
    }
    heard
}

struct Bench {
    dir: tempfile::TempDir,
    recordings: Vec<PathBuf>,
}

/// A directory with a whole run of two calls.
fn bench(plan: &Plan, format: &str) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let site = Site { plan: plan.clone(), ..site() };
    let call = |call| {
        let described =
            Described { plan: plan.clone(), call, call_id: site.call_id(call), sources: sources() };
        let heard: Vec<Heard> =
            (0..2).map(|n| sent(plan, &plan.stream(call, n), 20_000 + 2 * n as u16)).collect();
        let invite = site.invite(call, 1, &sources(), Default::default());
        write_recording(dir.path(), &described, &invite, format, &heard)
    };
    let recordings = (0..plan.calls).map(call).collect();
    Bench { dir, recordings }
}

impl Bench {
    fn verify(&self) -> VerifyReport {
        verify(self.dir.path()).unwrap()
    }

    /// Changes a file of the first recording.
    fn damage(&self, file: &str, damage: impl FnOnce(&mut Vec<u8>)) {
        let path = self.recordings[0].join(file);
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes);
        fs::write(path, bytes).unwrap();
    }

    fn edit_manifest(&self, edit: impl FnOnce(&mut serde_json::Value)) {
        self.damage("recording.json", |bytes| {
            let mut manifest = serde_json::from_slice(bytes).unwrap();
            edit(&mut manifest);
            *bytes = manifest.to_string().into_bytes();
        });
    }
}

/// Where record `n` of a pcap begins, and its length with its header.
fn record(file: &[u8], n: usize) -> std::ops::Range<usize> {
    let len = |at: usize| 16 + u32::from_le_bytes(file[at + 8..at + 12].try_into().unwrap()) as usize;
    let start = (0..n).fold(24, |at, _| at + len(at));
    start..start + len(start)
}

#[test]
fn whole_runs_are_whole_in_every_format() {
    for (codec, format) in [
        (Codec::Pcmu, "pcap"),
        (Codec::Opus, "pcap"),
        (Codec::Pcmu, "raw"),
        (Codec::Pcma, "raw"),
        (Codec::G722, "raw"),
        (Codec::Opus, "raw"),
    ] {
        let report = bench(&Plan { codec, ..plan() }, format).verify();
        assert!(report.is_whole(), "{codec:?} {format}: {report}");
        assert!(
            report.counts.found > 3_500 && (format == "raw" || report.counts.rtcp_found > 10),
            "{report}"
        );
        assert_eq!((report.recordings, report.runs), (2, 1));
    }
}

#[test]
fn a_run_of_audible_tones_is_whole() {
    let report = bench(&Plan { audio: Audio::Tone, ..plan() }, "raw").verify();
    assert!(report.is_whole(), "{report}");
}

#[test]
fn a_missing_packet_is_found() {
    let bench = bench(&plan(), "pcap");
    bench.damage("call.pcap", |file| drop(file.drain(record(file, 50))));
    let report = bench.verify();
    assert_eq!((report.counts.missing, report.counts.corrupt, report.counts.duplicated), (1, 0, 0));
    assert!(report.findings.iter().any(|finding| finding.contains("SHA-256 of call.pcap")));
    assert!(report.findings.iter().any(|finding| finding.contains("packets is")), "{report}");
    assert!(!report.is_whole());
}

#[test]
fn a_packet_too_many_is_found() {
    let bench = bench(&plan(), "pcap");
    bench.damage("call.pcap", |file| file.extend_from_within(record(file, 50)));
    assert_eq!(bench.verify().counts.duplicated, 1);
}

#[test]
fn a_changed_bit_is_found() {
    let bench = bench(&plan(), "pcap");
    bench.damage("call.pcap", |file| {
        let record = record(file, 50);
        // Without a UDP checksum nothing but the payload itself can tell.
        file[record.start + 16 + 14 + 20 + 6..][..2].fill(0);
        file[record.end - 1] ^= 1;
    });
    let report = bench.verify();
    assert_eq!((report.counts.corrupt, report.counts.missing), (1, 0));
}

#[test]
fn wrong_addresses_are_found() {
    let bench = bench(&plan(), "pcap");
    bench.damage("call.pcap", |file| {
        let ip = record(file, 50).start + 16 + 14;
        // The low bytes of source port and IP checksum-neutral fields; no UDP checksum.
        file[ip + 21] ^= 2;
        file[ip + 26..][..2].fill(0);
    });
    let report = bench.verify();
    assert!(report.findings.iter().any(|finding| finding.contains("wrong addresses")), "{report}");
}

#[test]
fn a_capture_without_the_dialog_is_found() {
    let bench = bench(&plan(), "pcap");
    bench.damage("call.pcap", |file| drop(file.drain(record(file, 0))));
    assert!(bench.verify().findings.iter().any(|finding| finding.contains("INVITE is not in it")));
}

#[test]
fn a_capture_that_was_cut_is_found() {
    let bench = bench(&plan(), "pcap");
    bench.damage("call.pcap", |file| file.truncate(file.len() - 10));
    let report = bench.verify();
    assert!(report.findings.iter().any(|finding| finding.contains("ends inside a record")), "{report}");
    assert_eq!(report.counts.missing + report.counts.rtcp_expected - report.counts.rtcp_found, 1);
}

#[test]
fn damage_of_a_raw_file_is_found() {
    let bench = bench(&Plan { loss_ppm: 0, ..plan() }, "raw");
    bench.damage("1.ulaw", |file| file[160 * 10..160 * 12].fill(0xff));
    bench.damage("2.ulaw", |file| file[160 * 10] ^= 1);
    let report = bench.verify();
    assert_eq!((report.counts.missing, report.counts.corrupt), (2, 1));
}

#[test]
fn a_stream_at_the_wrong_time_is_found() {
    let bench = bench(&plan(), "raw");
    bench.damage("2.ulaw", |file| drop(file.splice(0..0, vec![0xff; 8_000])));
    let report = bench.verify();
    assert_eq!(report.counts.missing + report.counts.corrupt, 0);
    assert!(
        report.findings.iter().any(|finding| finding.contains("after 1000 ms of silence, should be 0 ms"))
    );
}

#[test]
fn a_call_without_a_recording_is_missing_whole() {
    let bench = bench(&plan(), "pcap");
    let expected = bench.verify().counts.expected;
    fs::remove_dir_all(&bench.recordings[1]).unwrap();
    let report = bench.verify();
    assert_eq!((report.calls_without_recording, report.counts.expected), (1, expected));
    assert!(report.counts.missing > 1_900);
}

#[test]
fn a_call_recorded_twice_is_found() {
    let bench = bench(&plan(), "pcap");
    let copy = bench.recordings[0].with_file_name("copy");
    fs::create_dir(&copy).unwrap();
    for file in fs::read_dir(&bench.recordings[0]).unwrap().flatten() {
        fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    let report = bench.verify();
    assert!(report.counts.duplicated > 1_900 && report.counts.missing == 0, "{report}");
}

#[test]
fn what_is_unfinished_or_unlisted_is_found() {
    let bench = bench(&plan(), "pcap");
    fs::rename(&bench.recordings[1], bench.recordings[1].with_extension("part")).unwrap();
    fs::write(bench.recordings[0].join("stray"), "").unwrap();
    let report = bench.verify();
    assert_eq!(report.unfinished.len(), 1);
    assert!(report.findings.iter().any(|finding| finding.ends_with("stray is not in the manifest")));
}

type Lie = fn(&mut serde_json::Value);

#[test]
fn every_lie_of_a_manifest_is_found() {
    let lies: [(&str, Lie); 12] = [
        ("state", |m| m["state"] = json!("recording")),
        ("call_id", |m| m["sip"]["call_id"] = json!("x")),
        ("problems", |m| m["problems"] = json!(["x"])),
        ("participant", |m| m["participants"][1]["name"] = json!("x")),
        ("codec", |m| m["streams"][0]["codec"] = json!("PCMA")),
        ("lost", |m| m["streams"][0]["lost"] = json!(0)),
        ("out_of_order", |m| m["streams"][1]["out_of_order"] = json!(0)),
        ("duplicate", |m| m["streams"][1]["duplicate"] = json!(0)),
        ("bytes", |m| m["streams"][1]["bytes"] = json!(0)),
        ("rtcp_packets", |m| m["streams"][1]["rtcp_packets"] = json!(0)),
        ("ssrcs", |m| m["streams"][1]["ssrcs"][0]["ssrc"] = json!("0x00000001")),
        ("SHA-256", |m| m["files"][0]["size"] = json!(1)),
    ];
    for (what, lie) in lies {
        let bench = bench(&plan(), "pcap");
        bench.edit_manifest(lie);
        let report = bench.verify();
        let found = report.findings.iter().any(|finding| finding.contains(what));
        assert!(found && report.findings_total == 1, "{what}: {report}");
    }
}

#[test]
fn with_a_scope_only_what_was_sent_is_expected() {
    let plan = plan();
    let bench = bench(&plan, "pcap");
    let scope = |turns| Scope { plan: plan.clone(), turns };
    let both = HashMap::from([(0, vec![1_000; 2]), (1, vec![1_000; 2])]);
    assert!(verify_run(bench.dir.path(), &scope(both.clone())).unwrap().is_whole());
    fs::remove_dir_all(&bench.recordings[1]).unwrap();
    let one = HashMap::from([(0, vec![1_000; 2])]);
    assert!(verify_run(bench.dir.path(), &scope(one)).unwrap().is_whole());
    assert!(!verify_run(bench.dir.path(), &scope(both)).unwrap().is_whole());
    let other = Scope { plan: Plan { run: "r2".into(), ..plan.clone() }, turns: HashMap::new() };
    assert_eq!(verify_run(bench.dir.path(), &other).unwrap().recordings, 0);
}

#[test]
fn foreign_recordings_are_compared_with_their_manifests_only() {
    let bench = bench(&plan(), "pcap");
    let path = bench.dir.path().join("foreign");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("call.pcap"), "x").unwrap();
    fs::write(path.join("recording.json"), json!({"files": [listed(&path, "call.pcap")]}).to_string())
        .unwrap();
    let report = bench.verify();
    assert_eq!(report.foreign, 1);
    assert!(report.is_whole(), "{report}");
}
