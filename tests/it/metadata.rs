//! What metadata says, over a call: its changes, what is asked for, and what the answer has of it.

use serde_json::Value;

use crate::recorder::{Recorder, Setup};
use crate::src::{Call, MULTIPART, metadata};

const NAMESPACE: &str = "urn:ietf:params:xml:ns:recording:1";

fn kinds(manifest: &Value) -> Vec<&str> {
    let kinds = manifest["events"].as_array().unwrap().iter().map(|event| event["event"].as_str().unwrap());
    kinds.filter(|kind| *kind != "state").collect()
}

/// UPDATE with nothing but metadata, as deployed SRCs send it.
fn update(call: &mut Call, xml: &str) -> u16 {
    call.cseq += 1;
    let text = call.request("UPDATE", "Content-Type: application/rs-metadata\r\n", xml);
    call.wire.send(text);
    call.wire.final_response("UPDATE").code()
}

/// A partial description without anything to add to: the recorder asks for everything, gets it, and tells each change.
#[test]
fn a_snapshot_is_asked_for_and_taken() {
    let mut recorder = Recorder::start();
    let mut call = Call::tcp(recorder.tcp);
    let complete = call.metadata.clone();
    call.metadata = format!(
        "<recording xmlns=\"{NAMESPACE}\"><datamode>partial</datamode><participant participant_id=\"p-1\">\
         <nameID aor=\"sip:party1@cs.invalid\"/></participant></recording>"
    );
    let fields =
        format!("Require: siprec\r\nAllow: INVITE, ACK, BYE, UPDATE\r\nContent-Type: {MULTIPART}\r\n");
    let invite = call.request("INVITE", &fields, &call.body());
    call.wire.send(invite);
    let ok = call.wire.final_response("INVITE");
    call.remote_tag = Some(crate::src::tag(&ok));
    call.ack();
    let question = call.wire.receive();
    assert!(question.start.starts_with("UPDATE "), "{}", question.start);
    assert_eq!(question.header("Require"), Some("siprec"));
    assert_eq!(question.header("Content-Disposition"), Some("recording-session"));
    assert!(question.body.contains("<requestsnapshot "), "{}", question.body);
    call.accept(&question);
    assert_eq!(update(&mut call, &complete), 200);
    let hold = format!(
        "<recording xmlns=\"{NAMESPACE}\"><datamode>partial</datamode>\
         <participantstreamassoc participant_id=\"p-2\"/></recording>"
    );
    assert_eq!(update(&mut call, &hold), 200);
    call.hang_up();
    let recording = recorder.recording();
    recording.check_whole();
    let manifest = &recording.manifest;
    let kinds = kinds(manifest);
    assert_eq!(kinds[..3], ["participant_joined", "snapshot_requested", "snapshot_taken"], "{kinds:?}");
    assert_eq!(kinds[kinds.len() - 2..], ["send_stopped", "participant_held"]);
    assert_eq!(manifest["model"]["participants"].as_array().unwrap().len(), 2);
    assert_eq!(manifest["model"]["participant_streams"][1]["sends"], serde_json::json!([]));
    assert_eq!(manifest["findings"][0]["code"], "metadata.datamode.partial-without-base");
    let bodies: Vec<&Value> =
        manifest["metadata"].as_array().unwrap().iter().map(|body| &body["file"]).collect();
    assert_eq!(bodies, ["metadata-0001.xml", "metadata-0002.xml", "metadata-0003.xml"]);
    assert_eq!(recorder.quiet()["recordings"]["snapshots_requested"], 1);
    recorder.stop();
}

/// SDP and metadata over UDP where both fit one packet, and SDP alone where they do not.
#[test]
fn answers_say_who_takes_part() {
    let mut recorder = Setup::new().flag("--answer-metadata", "on").start();
    let labels = |count: usize| ["1", "2"].into_iter().cycle().take(count);
    for (participants, multipart) in [(1, true), (40, false)] {
        let mut call = Call::udp(recorder.udp);
        let many: String = (0..participants)
            .map(|n| {
                format!(
                    "<participant participant_id=\"q-{n}\"><nameID aor=\"sip:{n}@cs.invalid\"/></participant>"
                )
            })
            .collect();
        call.metadata = metadata("s", labels(0)).replace("</recording>", &format!("{many}</recording>"));
        let ok = call.invite();
        call.ack();
        assert_eq!(
            ok.header("Content-Type").unwrap().starts_with("multipart/mixed"),
            multipart,
            "{}",
            ok.body
        );
        assert_eq!(ok.body.contains("sip:0@cs.invalid"), multipart);
        assert_eq!(ok.media().len(), 2);
        assert!(ok.bytes.len() <= 1_300, "{}", ok.bytes.len());
        call.hang_up();
    }
    recorder.committed(2);
    recorder.stop();
}

#[test]
fn codes_are_explained() {
    let explain = |code: &str| {
        std::process::Command::new(env!("CARGO_BIN_EXE_sipreel")).args(["explain", code]).output().unwrap()
    };
    let known = explain("metadata.participant.missing-aor");
    let text = String::from_utf8(known.stdout).unwrap();
    assert!(known.status.success() && text.contains("RFC 7865 §6.5.1"), "{text}");
    assert!(!explain("no.such.code").status.success());
}
