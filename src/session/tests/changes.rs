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
    assert_eq!(r.table.read(key.slot).unwrap().state, state::State::Active);
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
    let out = r.udp(bye("a", &tag, 5));
    assert_eq!(codes(&out), [200]);
    let errors = &manifest(&out).errors;
    let counts: Vec<_> = errors.by_code.iter().map(|count| (&*count.code, count.times)).collect();
    assert_eq!((counts, errors.retries), (vec![("488", 2), ("503", 1)], 0));
    assert_eq!(&*errors.last.as_ref().unwrap().code, "503");
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
    // The old port is listened on until the next change (RFC 3264 §8.3.1).
    assert_eq!((change(&out).remove.as_slice(), change(&out).add[0].stream), (&[][..], 2));
    assert_eq!(change(&out).add[0].label, "1-stream-2");
    let ok = only(&r.event(Event::Changed { key }));
    assert_eq!(m_ports(body(&ok)), [20_004, 20_002]);
    assert_eq!(r.ports(), (5, 3, 0));
    r.udp(ack("a", &tag, 2));
    let out = r.udp(reinvite("a", &tag, 3, &g722));
    assert_eq!((change(&out).remove.as_slice(), change(&out).add.len()), (&[0][..], 0));
    assert_eq!(m_ports(body(&only(&r.event(Event::Changed { key })))), [20_004, 20_002]);
    assert_eq!(r.ports(), (5, 2, 1));
    r.udp(ack("a", &tag, 3));
    r.udp(bye("a", &tag, 4));
    r.event(Event::Closed { key });
    r.assert_whole();

    let mut r = Recorder::new(4, 4);
    let (_, tag) = r.call("a");
    assert_eq!(kinds(&r.udp(reinvite("a", &tag, 2, &g722))), ["Signal", "Signal", "Send"]);
}

/// The first m-line of an answer: its formats, and the a= lines that belong to them.
fn first_formats(sdp: &str) -> (String, Vec<&str>) {
    let line = sdp.split("\r\n").find(|line| line.starts_with("m=")).unwrap();
    let of_format = |line: &&str| line.starts_with("a=rtpmap") || line.starts_with("a=fmtp");
    let section = sdp.split("m=").nth(1).unwrap();
    (line.split_once("RTP/AVP ").unwrap().1.to_owned(), section.split("\r\n").filter(of_format).collect())
}

fn offer_of(formats: &str, attributes: &str) -> String {
    OFFER.replacen("RTP/AVP 0\n", &format!("RTP/AVP {formats}\n{attributes}"), 1)
}

fn answer_in(format: Format, offer: &str) -> String {
    let mut r = Recorder::with_format(4, 4, format);
    let lines = format!("{SRC}Content-Type: application/sdp\n");
    let key = opened(&r.udp(invite_with("a", &lines, &crlf(offer)))).key;
    body(&only(&r.event(Event::Opened { key }))).to_owned()
}

#[test]
fn a_raw_recorder_accepts_one_codec_and_the_events() {
    let events = "a=rtpmap:101 telephone-event/8000\na=fmtp:101 0-16\n";
    for (formats, attributes, answered, kept) in [
        ("0 8 101", events, "0 101", 2),
        ("101 13 8 0", events, "101 8", 2),
        ("96 18 8 101", "a=rtpmap:96 opus/48000/2\na=fmtp:96 useinbandfec=1\n", "8", 0),
        ("96 18", "a=rtpmap:96 opus/48000/2\na=fmtp:96 useinbandfec=1\n", "96", 2),
        ("97 98", "", "97", 0),
        ("13 19", "", "13 19", 0),
    ] {
        let offer = offer_of(formats, attributes);
        let answer = answer_in(Format::Raw, &offer);
        let (found, lines) = first_formats(&answer);
        assert_eq!((found.as_str(), lines.len()), (answered, kept), "{answer}");
        // A pcap takes all that is offered.
        let answer = answer_in(Format::Pcap, &offer);
        assert_eq!(first_formats(&answer).0, formats, "{answer}");
    }
}

#[test]
fn a_raw_stream_keeps_its_codec_while_it_is_offered() {
    let mut r = Recorder::with_format(6, 4, Format::Raw);
    let lines = format!("{SRC}Content-Type: application/sdp\n");
    let out = r.udp(invite_with("a", &lines, &crlf(&offer_of("8 0", ""))));
    let open = opened(&out);
    let key = open.key;
    let codecs: Vec<u8> = open.streams[0].codecs.iter().map(|codec| codec.payload_type).collect();
    assert_eq!(codecs, [8]);
    let tag = to_tag(&sent(&r.event(Event::Opened { key }))[0]);
    r.udp(ack("a", &tag, 1));
    // Another order changes nothing; the codec without the chosen one does.
    let same = only(&r.udp(reinvite("a", &tag, 2, &offer_of("0 8", ""))));
    assert_eq!(first_formats(body(&same)).0, "8");
    r.udp(ack("a", &tag, 2));
    let out = r.udp(reinvite("a", &tag, 3, &offer_of("0 9", "")));
    assert_eq!(change(&out).add[0].codecs[0].payload_type, 0);
    let moved = only(&r.event(Event::Changed { key }));
    assert_eq!(first_formats(body(&moved)).0, "0");
    r.udp(ack("a", &tag, 3));
    // The same codec under another payload type: the file's packets are known by that.
    let out = r.udp(reinvite("a", &tag, 4, &offer_of("96", "a=rtpmap:96 PCMU/8000\n")));
    assert_eq!((change(&out).remove.as_slice(), change(&out).add[0].codecs[0].payload_type), (&[0][..], 96));
}

#[test]
fn the_manifest_names_the_codec_that_the_file_has() {
    let mut r = Recorder::new(4, 4);
    let lines = format!("{SRC}Content-Type: application/sdp\n");
    let key = opened(&r.udp(invite_with("a", &lines, &crlf(&offer_of("13 8", ""))))).key;
    let tag = to_tag(&sent(&r.event(Event::Opened { key }))[0]);
    let out = r.udp(bye("a", &tag, 2));
    assert_eq!(manifest(&out).streams[0].codec.as_deref(), Some("PCMA"));
}

/// An SRC that names thousands of new senders with every update costs neither memory nor the control thread's time.
#[test]
fn the_senders_of_a_stream_are_bounded() {
    let mut r = Recorder::new(4, 4);
    let (_, tag) = r.call("a");
    for cseq in 2..12u32 {
        let people: String = (0..1_500)
            .map(|n| format!("<participant id='{cseq}-{n}'><send>s</send></participant>"))
            .collect();
        let update = format!("<recording><stream id='s'><label>1</label></stream>{people}</recording>");
        let lines = format!("{SRC}Content-Type: application/rs-metadata+xml\n");
        assert_eq!(codes(&r.udp(message("INVITE", "a", &tag, cseq, &lines, &update))), [200]);
        r.udp(ack("a", &tag, cseq));
    }
    let out = r.udp(bye("a", &tag, 20));
    let senders = &manifest(&out).streams[0].participants;
    assert_eq!(senders.len(), crate::limits::SENDERS_PER_STREAM_MAX);
    assert_eq!(senders[1], "2-0", "the first that were named");
}

#[test]
fn a_reinvite_over_another_local_address_does_not_move_the_media() {
    let mut r = Recorder::new(4, 4);
    let (key, tag) = r.call("a");
    let other = Flow { local: "203.0.113.10:5060".parse().unwrap(), ..udp() };
    let same = only(&r.receive(other, reinvite("a", &tag, 2, OFFER)));
    assert!(body(&same).contains("c=IN IP4 192.0.2.10\r\n"), "{same}");
    assert_eq!(version(body(&same)), "1");
    assert_eq!(field(&same, "Contact"), Some("<sip:sipreel@203.0.113.10:5060>;+sip.srs"));
    r.receive(other, ack("a", &tag, 2));
    let out = r.receive(other, reinvite("a", &tag, 3, &format!("{OFFER}m=audio 30000 RTP/AVP 8\n")));
    assert_eq!(change(&out).add[0].address.to_string(), "192.0.2.10");
    let added = only(&r.event(Event::Changed { key }));
    assert!(body(&added).contains("c=IN IP4 192.0.2.10\r\n"), "{added}");
}

#[test]
fn a_bye_while_streams_are_being_armed_knows_who_sends_into_them() {
    let mut r = Recorder::new(4, 4);
    let (_, tag) = r.call("a");
    let offer = format!("{OFFER}m=audio 30000 RTP/AVP 8\na=label:3\n");
    let more = "<stream stream_id='t3'><label>3</label></stream>\
                <participant id='carol'><send>t3</send></participant></recording>";
    let lines = format!("{SRC}Content-Type: {MULTIPART}\n");
    let update = multipart(&offer, &METADATA.replace("</recording>", more));
    assert_eq!(change(&r.udp(message("INVITE", "a", &tag, 2, &lines, &update))).add.len(), 1);
    let out = r.udp(bye("a", &tag, 3));
    assert_eq!(manifest(&out).streams[2].participants, ["carol"]);
}

/// What an offer changes has its time in the manifest.
#[test]
fn changes_of_the_media_are_events() {
    use crate::proto::manifest::EventKind::{
        MediaAdded, MediaChanged, MediaPaused, MediaRemoved, MediaResumed,
    };
    let mut r = Recorder::new(4, 4);
    let (key, tag) = r.call("a");
    let three = format!("{OFFER}m=audio 30000 RTP/AVP 8\na=sendonly\na=label:3\n");
    let held = three.replace("c=IN IP4 198.51.100.1", "c=IN IP4 0.0.0.0");
    let moved = three.replacen("12240 RTP/AVP 0", "12250 RTP/AVP 9", 1);
    let removed = moved.replace("22456", "0");
    for (number, offer) in [&three, &held, &moved, &removed].into_iter().enumerate() {
        r.pass(Duration::from_secs(1));
        let cseq = number as u32 + 2;
        if kinds(&r.udp(reinvite("a", &tag, cseq, offer))).contains(&"Change") {
            r.event(Event::Changed { key });
        }
        r.udp(ack("a", &tag, cseq));
    }
    let out = r.udp(bye("a", &tag, 9));
    let manifest = manifest(&out);
    let media = [MediaAdded, MediaChanged, MediaPaused, MediaRemoved, MediaResumed];
    let events: Vec<_> = manifest.events.iter().filter(|event| media.contains(&event.kind)).collect();
    let seconds = |event: &crate::proto::manifest::Event| (event.at.0 - manifest.start.0) / 1_000_000_000;
    let found: Vec<_> = events.iter().map(|e| (seconds(e), e.kind, e.m_line.unwrap())).collect();
    let expected: Vec<_> = [(1, MediaAdded, 2)]
        .into_iter()
        .chain((0..3).map(|m_line| (2, MediaPaused, m_line)))
        .chain([(3, MediaChanged, 0), (3, MediaChanged, 0)])
        .chain((0..3).map(|m_line| (3, MediaResumed, m_line)))
        .chain([(4, MediaRemoved, 1)])
        .collect();
    assert_eq!(found, expected);
    let words: Vec<_> = events.iter().filter_map(|event| event.detail.as_deref()).collect();
    assert_eq!(words[0], "audio at port 20004, PCMA/8000 as 8");
    assert!(words.contains(&"codec PCMU/8000 as 0, now G722/8000 as 9"), "{words:?}");
    assert!(words.contains(&"sent from 198.51.100.1 port 12240, now 198.51.100.1 port 12250"), "{words:?}");
    // Both codecs may have come.
    assert_eq!(manifest.streams[0].codec.as_deref(), Some("PCMU"));
}

#[test]
fn an_unspecified_ipv6_address_is_a_hold() {
    use crate::proto::manifest::EventKind;
    let mut r = Recorder::new(4, 4);
    let (_, tag) = r.call("a");
    let held = OFFER.replace("c=IN IP4 198.51.100.1", "c=IN IP6 ::");
    assert_eq!(m_ports(body(&only(&r.udp(reinvite("a", &tag, 2, &held))))), [20_000, 20_002]);
    let out = r.udp(bye("a", &tag, 3));
    let paused = manifest(&out).events.iter().filter(|event| event.kind == EventKind::MediaPaused).count();
    assert_eq!(paused, 2);
}

/// RFC 3264 §8 forbids it, and it is met.
#[test]
fn an_m_line_that_is_left_out_is_over() {
    let mut r = Recorder::new(4, 4);
    let (key, tag) = r.call("a");
    let one = OFFER.split("m=audio 22456").next().unwrap();
    let out = r.udp(reinvite("a", &tag, 2, one));
    assert_eq!(change(&out).remove, [1]);
    assert_eq!(m_ports(body(&only(&r.event(Event::Changed { key })))), [20_000]);
    r.udp(ack("a", &tag, 2));
    r.udp(bye("a", &tag, 3));
    r.event(Event::Closed { key });
    r.assert_whole();
}
