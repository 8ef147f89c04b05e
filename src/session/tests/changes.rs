//! Re-INVITEs.

use super::*;

/// OFFER without its second m-line: removed, as it must be, with port 0.
fn one_removed() -> String {
    OFFER.replace("22456", "0").replace("4526 1", "4526 2")
}

fn version(sdp: &str) -> String {
    let origin = sdp.split("\r\n").find(|line| line.starts_with("o=")).unwrap();
    origin.split(' ').nth(2).unwrap().to_owned()
}

fn origin_id(sdp: &str) -> String {
    let origin = sdp.split("\r\n").find(|line| line.starts_with("o=")).unwrap();
    origin.split(' ').nth(1).unwrap().to_owned()
}

#[test]
fn an_unchanged_offer_is_answered_at_once_with_the_same_answer() {
    let mut r = Recorder::new(4, 4);
    let (_, tag) = r.call("a");
    let out = r.udp(reinvite("a", &tag, 2, OFFER));
    assert_eq!(kinds(&out), ["Signal", "Signal", "Send"]);
    let ok = only(&out);
    assert_eq!(version(body(&ok)), "1");
    assert_eq!(m_ports(body(&ok)), [20_000, 20_002]);
    assert!(field(&ok, "Contact").unwrap().ends_with(";+sip.srs"));
    assert_eq!(field(&ok, "To"), Some(&*format!("<sip:srs@example.com>;tag={tag}")));
    // Its 200 waits for its own ACK.
    assert_eq!(codes(&r.pass(Duration::from_millis(500))), [200]);
    r.udp(ack("a", &tag, 2));
    assert_eq!(kinds(&r.pass(Duration::from_secs(60))), [""; 0]);
}

#[test]
fn hold_and_resume() {
    let mut r = Recorder::new(4, 4);
    let (_, tag) = r.call("a");
    let held = only(&r.udp(reinvite("a", &tag, 2, &OFFER.replace("sendonly", "inactive"))));
    assert_eq!(body(&held).matches("a=inactive").count(), 2);
    assert_eq!((version(body(&held)), m_ports(body(&held))), ("2".to_owned(), vec![20_000, 20_002]));
    r.udp(ack("a", &tag, 2));
    let resumed = only(&r.udp(reinvite("a", &tag, 3, OFFER)));
    assert_eq!(body(&resumed).matches("a=recvonly").count(), 2);
    assert_eq!(
        (version(body(&resumed)), origin_id(body(&resumed))),
        ("3".to_owned(), origin_id(body(&held)))
    );
    // Hold in the old way (RFC 3264 §8.4).
    r.udp(ack("a", &tag, 3));
    let held =
        only(&r.udp(reinvite("a", &tag, 4, &OFFER.replace("c=IN IP4 198.51.100.1", "c=IN IP4 0.0.0.0"))));
    assert_eq!(m_ports(body(&held)), [20_000, 20_002]);
}

#[test]
fn an_m_line_is_added_and_removed() {
    let mut r = Recorder::new(4, 4);
    let (key, tag) = r.call("a");
    let three = format!("{OFFER}m=audio 30000 RTP/AVP 8\na=sendonly\na=label:3\n");
    let out = r.udp(reinvite("a", &tag, 2, &three));
    assert_eq!(kinds(&out), ["Signal", "Signal", "Send", "Change"]);
    assert_eq!(codes(&out), [100]);
    let added = change(&out);
    assert_eq!((added.add.len(), added.add[0].stream, added.add[0].label.as_str()), (1, 2, "3"));
    assert_eq!(added.add[0].ports.reactor, key.reactor);
    assert!(added.remove.is_empty());
    let out = r.event(Event::Changed { key });
    let ok = only(&out);
    assert_eq!(m_ports(body(&ok)), [20_000, 20_002, 20_004]);
    assert_eq!(version(body(&ok)), "2");
    assert_eq!(r.table.read(key.slot).unwrap().streams, 3);
    r.udp(ack("a", &tag, 2));

    let out = r.udp(reinvite("a", &tag, 3, &three.replace("m=audio 22456", "m=audio 0")));
    assert_eq!(change(&out).remove, [1]);
    assert_eq!(r.ports(), (5, 3, 0));
    let ok = only(&r.event(Event::Changed { key }));
    assert_eq!(m_ports(body(&ok)), [20_000, 0, 20_004]);
    assert_eq!(r.ports(), (5, 2, 1));
    r.udp(ack("a", &tag, 3));

    // The m-line is used again: a new stream (RFC 7866 §7.1.1.1).
    let out = r.udp(reinvite("a", &tag, 4, &three.replace("label:2", "label:4")));
    assert_eq!((change(&out).add[0].stream, change(&out).add[0].label.as_str()), (3, "4"));
    r.event(Event::Changed { key });
    let out = r.udp(bye("a", &tag, 5));
    let lines: Vec<_> =
        manifest(&out).streams.iter().map(|s| (s.m_line, s.label.as_deref().unwrap())).collect();
    assert_eq!(lines, [(0, "1"), (1, "2"), (2, "3"), (1, "4")]);
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn every_m_line_is_removed() {
    let mut r = Recorder::new(4, 4);
    let (key, tag) = r.call("a");
    r.udp(reinvite("a", &tag, 2, &OFFER.replace("12240", "0").replace("22456", "0")));
    let ok = only(&r.event(Event::Changed { key }));
    assert_eq!(m_ports(body(&ok)), [0, 0]);
    assert_eq!(r.counters.active.get(), 1);
}

#[test]
fn a_second_invite_waits_for_the_first() {
    let mut r = Recorder::new(4, 4);
    let (key, tag) = r.call("a");
    r.udp(reinvite("a", &tag, 2, &one_removed()));
    let response = only(&r.udp(reinvite("a", &tag, 3, OFFER)));
    assert!(response.starts_with("SIP/2.0 500 "), "{response}");
    assert!(field(&response, "Retry-After").unwrap().parse::<u8>().unwrap() <= 10);
    assert_eq!(codes(&r.event(Event::Changed { key })), [200]);
}

#[test]
fn a_change_that_fails_changes_nothing() {
    let mut r = Recorder::new(4, 4);
    let (key, tag) = r.call("a");
    let three = format!("{OFFER}m=audio 30000 RTP/AVP 8\na=label:3\n");
    r.udp(reinvite("a", &tag, 2, &three));
    let failure = Failure { what: "open file", path: "x".to_owned(), errno: 28 };
    let out = r.event(Event::ChangeFailed { key, failure });
    assert_eq!(codes(&out), [503]);
    assert_eq!(r.ports(), (5, 2, 1));
    assert_eq!(r.table.read(key.slot).unwrap().state, table::State::Established);
    let again = r.udp(reinvite("a", &tag, 3, &three));
    assert_eq!(change(&again).add[0].stream, 2);
    r.event(Event::Changed { key });
    r.udp(bye("a", &tag, 4));
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn offers_that_are_refused_leave_the_session() {
    let mut r = Recorder::new(3, 4);
    let (key, tag) = r.call("a");
    assert_eq!(codes(&r.udp(reinvite("a", &tag, 2, &OFFER.replace("RTP/AVP", "RTP/SAVP")))), [488]);
    assert_eq!(codes(&r.udp(reinvite("a", &tag, 3, "nonsense"))), [488]);
    let many = format!("{OFFER}m=audio 3 RTP/AVP 0\nm=audio 4 RTP/AVP 0\n");
    assert_eq!(codes(&r.udp(reinvite("a", &tag, 4, &many))), [503]);
    assert_eq!(r.ports(), (4, 2, 0));
    assert_eq!(codes(&r.udp(bye("a", &tag, 5))), [200]);
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn a_bye_while_streams_are_being_armed() {
    let mut r = Recorder::new(4, 4);
    let (key, tag) = r.call("a");
    r.udp(reinvite("a", &tag, 2, &format!("{OFFER}m=audio 30000 RTP/AVP 8\n")));
    let out = r.udp(bye("a", &tag, 3));
    assert_eq!(codes(&out), [487, 200]);
    assert_eq!(manifest(&out).streams.len(), 3);
    assert_eq!(kinds(&r.event(Event::Changed { key })), [""; 0]);
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn a_cancel_of_a_reinvite_under_way_comes_too_late() {
    let mut r = Recorder::new(4, 4);
    let (key, tag) = r.call("a");
    r.udp(reinvite("a", &tag, 2, &one_removed()));
    assert_eq!(codes(&r.udp(message("CANCEL", "a", &tag, 2, "", ""))), [200]);
    assert_eq!(codes(&r.event(Event::Changed { key })), [200]);
}

#[test]
fn metadata_without_an_offer() {
    let mut r = Recorder::new(4, 4);
    let (_, tag) = r.call("a");
    let update = METADATA.replace("complete", "partial").replace("Bob", "Robert");
    let lines = format!("{SRC}Content-Type: application/rs-metadata+xml\n");
    let out = r.udp(message("INVITE", "a", &tag, 2, &lines, &update));
    assert_eq!(kinds(&out), ["Signal", "File", "Signal", "Send"]);
    let Command::File { file, .. } = &out[1] else { panic!("{out:?}") };
    assert_eq!((file.name.as_str(), &file.bytes[..]), ("metadata-0002.xml", update.as_bytes()));
    let ok = only(&out);
    assert_eq!((version(body(&ok)), m_ports(body(&ok))), ("1".to_owned(), vec![20_000, 20_002]));
    r.udp(ack("a", &tag, 2));
    let out = r.udp(bye("a", &tag, 3));
    assert_eq!(manifest(&out).participants[0].name.as_deref(), Some("Robert"));
}

#[test]
fn in_raw_format_another_codec_is_another_stream() {
    let g722 = OFFER.replacen("RTP/AVP 0", "RTP/AVP 9", 1);
    let mut r = Recorder::with_format(4, 4, Format::Raw);
    let (key, tag) = r.call("a");
    let out = r.udp(reinvite("a", &tag, 2, &g722));
    assert_eq!((change(&out).remove.as_slice(), change(&out).add[0].stream), (&[0][..], 2));
    assert_eq!(change(&out).add[0].label, "1-stream-2");
    let ok = only(&r.event(Event::Changed { key }));
    assert_eq!(m_ports(body(&ok)), [20_004, 20_002]);

    let mut r = Recorder::new(4, 4);
    let (_, tag) = r.call("a");
    assert_eq!(kinds(&r.udp(reinvite("a", &tag, 2, &g722))), ["Signal", "Signal", "Send"]);
}
