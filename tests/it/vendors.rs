//! INVITEs in the manner of deployed SRCs, over a real connection: whatever is odd about them, the call is recorded.

use std::fs;
use std::path::Path;

use crate::media::Leg;
use crate::recorder::{Recorder, Setup, number};
use crate::src::{Message, Wire};

fn invite(name: &str) -> Vec<u8> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/invite");
    fs::read(dir.join(format!("{name}.sip"))).unwrap()
}

/// A request in the dialog that this 200 made.
fn request(method: &str, ok: &Message, local: std::net::SocketAddr) -> String {
    let field = |name: &str| ok.header(name).unwrap().to_owned();
    let number: u32 = field("CSeq").split(' ').next().unwrap().parse().unwrap();
    let number = if method == "ACK" { number } else { number + 1 };
    let (from, to, call_id) = (field("From"), field("To"), field("Call-ID"));
    format!(
        "{method} sip:srs@recorder.invalid SIP/2.0\r\nVia: SIP/2.0/TCP {local};branch=z9hG4bK-{method}-{number}\r\n\
         From: {from}\r\nTo: {to}\r\nCall-ID: {call_id}\r\nCSeq: {number} {method}\r\nContent-Length: 0\r\n\r\n"
    )
}

/// INVITE to BYE with five packets for each stream. How many streams there were.
fn call(recorder: &Recorder, name: &str) -> u64 {
    let invite = invite(name);
    let offered = invite.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"m=")).count();
    let mut wire = Wire::tcp(recorder.tcp);
    wire.send(invite);
    let ok = wire.final_response("INVITE");
    assert_eq!(ok.code(), 200, "{name}: {}", ok.start);
    assert_eq!(ok.media().len(), offered, "{name}: every m-line is answered");
    let local = wire.local();
    wire.send(request("ACK", &ok, local));
    let before = number(&recorder.stats()["media"], "received_packets");
    let ports: Vec<u16> = ok.ports().into_iter().filter(|port| *port != 0).collect();
    for port in &ports {
        Leg::new(recorder.tcp.ip(), *port, u32::from(*port)).burst(5);
    }
    let sent = 5 * ports.len() as u64;
    recorder.stats_when("packets are received", |stats| {
        number(&stats["media"], "received_packets") == before + sent
    });
    wire.send(request("BYE", &ok, local));
    assert_eq!(wire.final_response("BYE").code(), 200, "{name}");
    ports.len() as u64
}

#[test]
fn every_src_is_recorded() {
    let mut recorder = Setup::new().start();
    let names = [
        "rfc7866",
        "broadworks",
        "metaswitch",
        "avaya-sbce",
        "cisco-cube",
        "oracle",
        "sonus",
        "audiocodes-lf",
        "opensips",
        "sems",
        "netsapiens",
    ];
    for (n, name) in names.into_iter().enumerate() {
        let streams = call(&recorder, name);
        assert!(streams > 0, "{name}");
        let recording = recorder.committed(n + 1).remove(n);
        recording.check_whole();
        let packets: Vec<u64> = recording.manifest["streams"]
            .as_array()
            .unwrap()
            .iter()
            .map(|stream| number(stream, "packets"))
            .collect();
        assert_eq!(packets, vec![5; streams as usize], "{name}");
        assert_eq!(recording.manifest["metadata"][0]["understood"], true, "{name}");
        assert_ne!(recording.manifest["participants"], serde_json::json!([]), "{name}");
        assert_eq!(
            recording.manifest["events"][0]["at"], recording.manifest["metadata"][0]["received"],
            "{name}"
        );
        let findings = recording.manifest["findings"].as_array().unwrap();
        assert_eq!(findings.is_empty(), ["rfc7866", "sems"].contains(&name), "{name}: {findings:?}");
        assert!(findings.iter().all(|finding| finding["severity"] != "critical"), "{name}: {findings:?}");
    }
    let stats = recorder.quiet();
    assert_eq!(stats["recordings"]["metadata_findings"]["metadata.stream.mixed"], 1);
    recorder.stop();
}

/// To the letter of RFC 7866 §6.2 and of RFC 7865, few are.
#[test]
fn strict_takes_those_who_keep_to_the_letter() {
    let mut recorder = Setup::new().flag("--strict-siprec", "--explain-refusals=on").start();
    for (name, code, why) in [
        ("broadworks", 403, "option tag siprec"),
        ("metaswitch", 488, "metadata.namespace.other"),
        ("avaya-sbce", 403, "+sip.src"),
        ("cisco-cube", 488, "metadata.participantstreamassoc.participant-unknown"),
        ("oracle", 488, "metadata.namespace.other"),
        ("opensips", 403, "+sip.src"),
    ] {
        let mut wire = Wire::tcp(recorder.tcp);
        wire.send(invite(name));
        let refused = wire.final_response("INVITE");
        assert_eq!(refused.code(), code, "{name}: {}", refused.start);
        assert!(refused.header("Warning").unwrap().contains(why), "{name}: {refused:?}");
        let problem: serde_json::Value = serde_json::from_str(&refused.body).unwrap();
        assert_eq!(problem["status"], code, "{name}");
    }
    for name in ["rfc7866", "sems", "netsapiens"] {
        assert!(call(&recorder, name) > 0, "{name}");
    }
    recorder.committed(3);
    let stats = recorder.quiet();
    assert_eq!(stats["sessions"]["refused"]["bad_metadata"], 3);
    recorder.stop();
}

/// Encrypted media cannot be recorded, and the SRC is told so.
#[test]
fn srtp_is_refused() {
    let mut recorder = Recorder::start();
    let mut wire = Wire::tcp(recorder.tcp);
    wire.send(invite("dynamics-srtp"));
    assert_eq!(wire.final_response("INVITE").code(), 488);
    assert_eq!(recorder.stats()["sessions"]["refused"]["not_acceptable"], 1);
    recorder.stop();
}
