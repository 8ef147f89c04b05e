//! Metadata: refused or not, taken in, asked for again, and sent back.

use super::*;
use crate::counters::RefuseCause;
use crate::limits::{ANSWER_BYTES_WANTED, SNAPSHOT_INTERVAL, SNAPSHOT_REQUESTS_MAX};
use crate::proto::metadata::Code;

const PARTIAL: &str = "<recording xmlns='urn:ietf:params:xml:ns:recording:1'><datamode>partial</datamode><participant participant_id='p'><nameID aor='sip:p@x'/></participant></recording>";
const ALLOW_UPDATE: &str = "Allow: INVITE, ACK, BYE, UPDATE\n";

impl Recorder {
    fn strict() -> Recorder {
        let mut r = Recorder::new(4, 4);
        r.sessions.rules.strict_siprec = true;
        r
    }

    fn found(&self, code: Code) -> u64 {
        self.counters.findings[code as usize].get()
    }

    /// An established session whose INVITE had this metadata; what followed its ACK.
    fn begun_with(&mut self, call_id: &str, metadata: &str) -> (RecordingKey, String, Vec<Command>) {
        let lines = format!("{SRC}{ALLOW_UPDATE}Content-Type: {MULTIPART}\n");
        let out = self.udp(invite_with(call_id, &lines, &multipart(OFFER, metadata)));
        let key = opened(&out).key;
        let tag = to_tag(&sent(&self.event(Event::Opened { key }))[0]);
        let out = self.udp(ack(call_id, &tag, 1));
        (key, tag, out)
    }

    fn update(&mut self, call_id: &str, tag: &str, cseq: u32, metadata: &str) -> Vec<Command> {
        let lines = format!("{SRC}Content-Type: application/rs-metadata\n");
        self.udp(message("UPDATE", call_id, tag, cseq, &lines, metadata))
    }

    fn ended(&mut self, call_id: &str, tag: &str, cseq: u32) -> crate::proto::manifest::Manifest {
        manifest(&self.udp(bye(call_id, tag, cseq))).clone()
    }
}

fn kinds_of_events(manifest: &crate::proto::manifest::Manifest) -> Vec<String> {
    let kind = |event: &crate::proto::manifest::Event| {
        serde_json::to_value(event.kind).unwrap().as_str().unwrap().to_owned()
    };
    manifest.events.iter().map(kind).filter(|kind| kind != "state").collect()
}

#[test]
fn what_breaks_the_letter_is_recorded_and_told() {
    let mut r = Recorder::new(4, 4);
    let broken = METADATA.replace("aor=\"sip:bob@biloxi.example.com\"", "aor=\"100\"");
    let (_, tag, _) = r.begun_with("c", &broken);
    assert_eq!(r.found(Code::AorSyntax), 1);
    let manifest = r.ended("c", &tag, 2);
    let finding = &manifest.findings[0];
    assert_eq!((finding.code, finding.value.as_str()), ("metadata.participant.aor-syntax", "100"));
    assert_eq!(finding.file.as_deref(), Some("metadata-0001.xml"));
    assert_eq!(manifest.model.participants[0].aors, ["100"]);
}

#[test]
fn strict_wants_both_marks_of_a_recording_session() {
    let mut r = Recorder::strict();
    let body = multipart(OFFER, METADATA);
    for (n, (lines, code, missing)) in [
        ("Contact: <sip:src@198.51.100.1:5070>;+sip.src\n", 421, "siprec"),
        ("Contact: <sip:src@198.51.100.1:5070>\n", 403, "siprec"),
        ("Contact: <sip:src@198.51.100.1:5070>\nRequire: siprec\n", 403, "+sip.src"),
        ("Contact: <sip:src@198.51.100.1:5070;+sip.src>\nRequire: siprec\n", 403, "+sip.src"),
    ]
    .into_iter()
    .enumerate()
    {
        let out = r.udp(invite_with(&format!("c{n}"), &format!("{lines}Content-Type: {MULTIPART}\n"), &body));
        let refused = only(&out);
        assert!(refused.starts_with(&format!("SIP/2.0 {code} ")), "{refused}");
        assert!(field(&refused, "Warning").unwrap().contains(missing), "{refused}");
        assert_eq!(field(&refused, "Require"), Some("siprec").filter(|_| code == 421));
    }
    assert_eq!(r.refused(RefuseCause::NotRecording), 4);
    r.call("good");
}

/// Nothing is taken for it: no port, no slot, no directory.
#[test]
fn strict_refuses_metadata_before_anything_is_taken() {
    let mut r = Recorder::strict();
    r.sessions.rules.explain_refusals = true;
    let ports = r.ports();
    for (n, (metadata, code)) in [
        ("<recording>", "metadata.xml.truncated"),
        (&*METADATA.replace("aor=\"sip:bob@biloxi.example.com\"", ""), "metadata.participant.missing-aor"),
        (&*METADATA.replace("recording:1", "recording"), "metadata.namespace.other"),
    ]
    .into_iter()
    .enumerate()
    {
        let out = r.udp(invite_with(
            &format!("c{n}"),
            &format!("{SRC}Content-Type: {MULTIPART}\n"),
            &multipart(OFFER, metadata),
        ));
        let refused = only(&out);
        assert!(refused.starts_with("SIP/2.0 488 "), "{refused}");
        assert!(
            field(&refused, "Warning").unwrap().starts_with(&format!("399 sipreel \"{code} at ")),
            "{refused}"
        );
        assert_eq!(field(&refused, "Content-Type"), Some("application/problem+json"));
        let problem: serde_json::Value = serde_json::from_str(body(&refused)).unwrap();
        assert_eq!((&problem["status"], &problem["cause"]), (&488.into(), &"bad_metadata".into()));
        assert_eq!(problem["findings"][0]["code"], code);
        assert!(problem["findings"][0]["source"].as_str().unwrap().starts_with("RFC 7865"), "{problem}");
    }
    assert_eq!((r.ports(), r.refused(RefuseCause::BadMetadata)), (ports, 3));
    assert_eq!(r.found(Code::Truncated), 1);
}

#[test]
fn refusals_have_no_body_unless_asked_for() {
    let mut r = Recorder::new(4, 4);
    let plain = only(&r.udp(invite_with("a", "Content-Type: application/sdp\n", &crlf(OFFER))));
    assert_eq!(field(&plain, "Content-Length"), Some("0"));
    r.sessions.rules.explain_refusals = true;
    let explained = only(&r.udp(invite_with("b", "Content-Type: application/sdp\n", &crlf(OFFER))));
    let problem: serde_json::Value = serde_json::from_str(body(&explained)).unwrap();
    assert_eq!((&problem["status"], &problem["title"]), (&403.into(), &"Forbidden".into()));
}

#[test]
fn strict_refuses_an_update_and_keeps_what_was_known() {
    let mut r = Recorder::strict();
    let (_, tag) = r.call("c");
    let broken = METADATA.replace("aor=\"sip:bob@biloxi.example.com\"", "");
    let out = r.update("c", &tag, 2, &broken);
    let refused = text(&sent(&out)[0]).to_owned();
    assert!(refused.starts_with("SIP/2.0 488 "), "{refused}");
    let manifest = r.ended("c", &tag, 3);
    assert_eq!(manifest.model.participants[0].aors, ["sip:bob@biloxi.example.com"]);
    assert_eq!((manifest.metadata.len(), manifest.metadata[1].understood), (2, false));
    assert!(kinds_of_events(&manifest).contains(&"metadata_refused".to_owned()));
}

#[test]
fn strict_ends_a_session_that_cannot_be_refused() {
    let mut r = Recorder::strict();
    let out = r.udp(invite("c"));
    let key = opened(&out).key;
    let tag = to_tag(&sent(&r.event(Event::Opened { key }))[0]);
    let out = r.udp(message("ACK", "c", &tag, 1, "Content-Type: application/rs-metadata\n", "<recording>"));
    let bye = text(&sent(&out)[0]).to_owned();
    assert!(bye.starts_with("BYE "), "{bye}");
    let reason = field(&bye, "Reason").unwrap();
    assert!(reason.starts_with("SIP;cause=488;text=\"metadata.xml.truncated"), "{reason}");
    assert_eq!(manifest(&out).end_cause.as_deref(), Some("bad_metadata"));
}

/// A re-INVITE that adds an m-line says whose it is in the same message.
#[test]
fn labels_are_those_of_the_offer_that_comes_with_them() {
    let mut r = Recorder::new(4, 4);
    let (_, tag) = r.call("c");
    let offer = format!("{OFFER}m=audio 30000 RTP/AVP 0\na=sendonly\na=label:3\n");
    let added = "<stream stream_id=\"t\" session_id=\"hVpd7YQgRW2nD22h7q60JQ==\"><label>3</label></stream></recording>";
    let body = multipart(&offer, &METADATA.replace("</recording>", added));
    r.udp(message("INVITE", "c", &tag, 2, &format!("{SRC}Content-Type: {MULTIPART}\n"), &body));
    assert_eq!((r.found(Code::LabelUnknown), r.found(Code::LineUndescribed)), (0, 0));
    r.update("c", &tag, 3, &METADATA.replace("<label>1<", "<label>7<"));
    assert_eq!(r.found(Code::LabelUnknown), 1);
}

#[test]
fn an_explanation_that_does_not_fit_a_packet_is_left_out() {
    let mut r = Recorder::strict();
    r.sessions.rules.explain_refusals = true;
    let long = METADATA.replace("srfBElmCRp2QB23b7Mpk0w==", &"é".repeat(500));
    let lines = format!("{SRC}Subject: {}\nContent-Type: {MULTIPART}\n", "x".repeat(300));
    let call_id = "c".repeat(700);
    let refused =
        only(&r.udp(invite_with(&call_id, &lines, &multipart(OFFER, &long.replace("aor=", "no=")))));
    assert!(refused.starts_with("SIP/2.0 488 "), "{refused}");
    assert_eq!(field(&refused, "Content-Length"), Some("0"));
    assert!(field(&refused, "Warning").unwrap().contains("metadata.participant.missing-aor"), "{refused}");
}

#[test]
fn changes_are_events_in_their_order() {
    let mut r = Recorder::new(4, 4);
    let (_, tag) = r.call("c");
    let hold = "<recording xmlns='urn:ietf:params:xml:ns:recording:1'><datamode>partial</datamode><participantstreamassoc participant_id='srfBElmCRp2QB23b7Mpk0w=='/></recording>";
    r.jump(r.now.mono + Duration::from_secs(3));
    r.update("c", &tag, 2, hold);
    let manifest = r.ended("c", &tag, 3);
    let kinds = kinds_of_events(&manifest);
    assert_eq!(kinds[..3], ["session_started", "participant_joined", "participant_joined"]);
    assert_eq!(kinds[kinds.len() - 2..], ["send_stopped", "participant_held"]);
    let times: Vec<Wall> = manifest.events.iter().map(|event| event.at).collect();
    assert!(times.is_sorted());
    assert_eq!(manifest.events.last().unwrap().at.0 - manifest.start.0, 3_000_000_000);
}

#[test]
fn a_snapshot_is_asked_for_once() {
    let mut r = Recorder::new(4, 4);
    let (_, tag, out) = r.begun_with("c", PARTIAL);
    let update = text(&sent(&out)[0]).to_owned();
    assert!(update.starts_with("UPDATE sip:src@198.51.100.1:5070 SIP/2.0\r\n"), "{update}");
    assert_eq!(field(&update, "Require"), Some("siprec"));
    assert!(field(&update, "Contact").unwrap().contains(";+sip.srs"), "{update}");
    assert_eq!(field(&update, "Content-Disposition"), Some("recording-session"));
    assert_eq!(field(&update, "Content-Type"), Some("application/rs-metadata"));
    assert!(
        body(&update).contains("<requestsnapshot xmlns=\"urn:ietf:params:xml:ns:recording:1\">"),
        "{update}"
    );
    let via = field(&update, "Via").unwrap();
    r.udp(format!(
        "SIP/2.0 200 OK\r\nVia: {via}\r\nFrom: <sip:srs@example.com>;tag={tag}\r\nTo: <sip:src@example.com>;tag=35e195d2\r\n\
         Call-ID: c\r\nCSeq: 1 UPDATE\r\nContent-Length: 0\r\n\r\n"
    ));
    // More of the same within the minute: it has been asked.
    assert_eq!(sent(&r.update("c", &tag, 2, PARTIAL)).len(), 1);
    r.update("c", &tag, 3, METADATA);
    r.jump(r.now.mono + SNAPSHOT_INTERVAL);
    // There is a base now, so nobody is asked.
    assert_eq!(sent(&r.update("c", &tag, 4, PARTIAL)).len(), 1);
    assert_eq!(r.counters.snapshots_requested.get(), 1);
    let manifest = r.ended("c", &tag, 5);
    let kinds = kinds_of_events(&manifest);
    assert!(kinds.contains(&"snapshot_requested".to_owned()) && kinds.contains(&"snapshot_taken".to_owned()));
}

#[test]
fn who_does_not_answer_is_asked_a_few_times_only() {
    let mut r = Recorder::new(4, 4);
    let (_, tag, _) = r.begun_with("c", PARTIAL);
    for cseq in 2..20 {
        r.pass(SNAPSHOT_INTERVAL);
        r.update("c", &tag, cseq, PARTIAL);
    }
    assert_eq!(r.counters.snapshots_requested.get(), u64::from(SNAPSHOT_REQUESTS_MAX));
}

#[test]
fn who_does_not_allow_update_is_not_asked() {
    let mut r = Recorder::new(4, 4);
    let lines = format!("{SRC}Content-Type: {MULTIPART}\n");
    let out = r.udp(invite_with("c", &lines, &multipart(OFFER, PARTIAL)));
    let key = opened(&out).key;
    let tag = to_tag(&sent(&r.event(Event::Opened { key }))[0]);
    assert_eq!(kinds(&r.udp(ack("c", &tag, 1))), ["Signal"]);
    assert_eq!(r.found(Code::WithoutBase), 1);
}

/// The 200 to an INVITE with this metadata.
fn ok_with(r: &mut Recorder, flow: Flow, call_id: &str, metadata: &str) -> String {
    let lines = format!("{SRC}Content-Type: {MULTIPART}\n");
    let out = r.receive(flow, invite_with(call_id, &lines, &multipart(OFFER, metadata)));
    let key = opened(&out).key;
    text(&sent(&r.event(Event::Opened { key }))[0]).to_owned()
}

#[test]
fn answers_have_metadata_where_it_is_wanted_and_fits() {
    let mut r = Recorder::new(8, 8);
    assert_eq!(field(&ok_with(&mut r, udp(), "plain", METADATA), "Content-Type"), Some("application/sdp"));
    r.sessions.rules.answer_metadata = true;
    let one = "<recording xmlns='urn:ietf:params:xml:ns:recording:1'><session session_id='s'/><participant participant_id='p'><nameID aor='sip:p@x'/></participant></recording>";
    let ok = ok_with(&mut r, udp(), "small", one);
    assert!(field(&ok, "Content-Type").unwrap().starts_with("multipart/mixed;boundary="), "{ok}");
    assert!(ok.len() <= ANSWER_BYTES_WANTED, "{}", ok.len());
    let parts = crate::proto::multipart::parts(
        field(&ok, "Content-Type").unwrap().as_bytes(),
        &Bytes::copy_from_slice(body(&ok).as_bytes()),
    )
    .unwrap();
    assert_eq!(m_ports(std::str::from_utf8(&parts[0].body).unwrap()).len(), 2);
    let said = crate::proto::metadata::parse(&parts[1].body).unwrap().metadata;
    assert_eq!(said.participants[0].aors, ["sip:p@x"]);

    let many: String = (0..40)
        .map(|n| {
            format!("<participant participant_id='p{n}'><nameID aor='sip:{n}@example.com'/></participant>")
        })
        .collect();
    let large = format!("<recording xmlns='urn:ietf:params:xml:ns:recording:1'>{many}</recording>");
    let ok = ok_with(&mut r, udp(), "large", &large);
    assert_eq!(field(&ok, "Content-Type"), Some("application/sdp"));
    let ok = ok_with(&mut r, tcp(), "stream", &large);
    assert!(field(&ok, "Content-Type").unwrap().starts_with("multipart/mixed"), "{ok}");
}
