//! Calls that are recorded, and how they end.

use super::*;

#[test]
fn a_call_over_udp() {
    let mut r = Recorder::new(10, 10);
    let out = r.udp(invite("a"));
    assert_eq!(kinds(&out), ["Send", "Open"]);
    assert_eq!(codes(&out), [100]);
    let open = opened(&out);
    let key = open.key;
    assert_eq!(open.streams.len(), 2);
    assert_eq!(open.streams[0].label, "1");
    assert_eq!(open.streams[0].address.to_string(), "192.0.2.10");
    assert_eq!(open.streams[1].codecs[0].encoding, "PCMU");
    assert!(open.streams.iter().all(|stream| stream.ports.reactor == key.reactor));
    assert_eq!(open.signals.len(), 2);
    assert!(open.signals[0].received && !open.signals[1].received);
    assert_eq!(
        (open.files[0].name.as_str(), &open.files[0].bytes[..]),
        ("metadata-0001.xml", METADATA.as_bytes())
    );
    let (hour, id) = open.path.rsplit_once('/').unwrap();
    assert_eq!((hour, id.len()), ("2026/11/22/08", 36));
    assert_eq!(r.table.read(key.slot).unwrap().state, state::State::Connecting);

    r.pass(Duration::from_millis(3));
    let out = r.event(Event::Opened { key });
    assert_eq!(kinds(&out), ["Signal", "Send"]);
    let ok = only(&out);
    assert!(ok.starts_with("SIP/2.0 200 OK\r\n"), "{ok}");
    assert_eq!(field(&ok, "Contact"), Some("<sip:sipreel@192.0.2.10:5060>;+sip.srs"));
    assert_eq!(field(&ok, "Allow"), Some("INVITE, ACK, BYE, CANCEL, OPTIONS, UPDATE, INFO, PRACK"));
    assert_eq!(field(&ok, "Server"), Some("sipreel/test"));
    assert_eq!(field(&ok, "Supported"), None);
    let sdp = body(&ok);
    assert_eq!(m_ports(sdp), [20_000, 20_002]);
    assert!(sdp.contains("a=label:1\r\n") && sdp.contains("a=label:2\r\n"), "{sdp}");
    assert_eq!(sdp.matches("a=recvonly").count(), 2);
    assert_eq!(r.sessions.setup_times().collect::<Vec<_>>(), [3_000_000]);
    assert_eq!(r.table.read(key.slot).unwrap().state, state::State::Active);
    assert_eq!((r.counters.active.get(), r.counters.total.get()), (1, 1));

    let tag = to_tag(&sent(&out)[0]);
    assert_eq!(kinds(&r.udp(ack("a", &tag, 1))), ["Signal"]);
    assert_eq!(kinds(&r.pass(Duration::from_secs(60))), [""; 0]);

    let out = r.udp(bye("a", &tag, 2));
    assert_eq!(kinds(&out), ["Signal", "Signal", "Send", "Close"]);
    assert_eq!(codes(&out), [200]);
    let manifest = manifest(&out);
    assert_eq!(manifest.id, id);
    assert_eq!(manifest.end_cause.as_deref(), Some("bye"));
    assert_eq!(manifest.sip.call_id, "a");
    assert_eq!(
        (manifest.sip.remote_tag.as_str(), manifest.sip.local_tag.as_str()),
        ("35e195d2", tag.as_str())
    );
    assert_eq!(manifest.communication_sessions, ["hVpd7YQgRW2nD22h7q60JQ=="]);
    assert_eq!(manifest.participants.len(), 2);
    assert_eq!(manifest.participants[0].name.as_deref(), Some("Bob"));
    assert_eq!(manifest.streams[0].participants, ["zSfPoSvdSDCmU3A3TRDxAw=="]);
    assert_eq!(manifest.streams[1].participants, ["srfBElmCRp2QB23b7Mpk0w=="]);
    assert_eq!(manifest.streams[1].codec.as_deref(), Some("PCMU"));
    assert_eq!(manifest.streams[1].local_rtp_port, 20_002);
    assert!(manifest.metadata[0].understood);
    assert_eq!(manifest.end.unwrap().0 - manifest.start.0, 60_003_000_000);
    let states = manifest.events.iter().filter(|event| event.kind == manifest::EventKind::State);
    let states: Vec<_> = states.filter_map(|event| event.detail.as_deref()).collect();
    assert_eq!(states, ["connecting to active: answered", "active to ending: bye"]);

    assert_eq!(r.ports(), (18, 2, 0));
    r.event(Event::Closed { key });
    assert_eq!(r.ports(), (18, 0, 2));
    assert_eq!(r.table.read(key.slot), None);
    let notices = r.sessions.take_notices();
    let steps: Vec<_> = notices
        .iter()
        .filter_map(|notice| if let Notice::State(step) = notice { Some(&**step) } else { None })
        .map(|step| (step.from, step.to, step.cause, step.streams, step.age.as_secs()))
        .collect();
    let [connecting, active] = [State::Connecting, State::Active];
    let expected = [
        (connecting, active, "answered", 2, 0),
        (active, State::Ending, "bye", 2, 60),
        (State::Ending, State::Ended, "written", 2, 60),
    ];
    assert_eq!(steps, expected);
    assert_eq!(r.counters.ended[crate::counters::EndCause::Bye as usize].get(), 1);
    // Said twice by the engine: nothing happens.
    r.event(Event::Opened { key });
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn a_call_over_tcp_is_answered_on_its_connection() {
    let mut r = Recorder::new(10, 10);
    let out = r.receive(tcp(), invite("a"));
    let key = opened(&out).key;
    let out = r.event(Event::Opened { key });
    let Command::Send { flow, .. } = &out[1] else { panic!("{out:?}") };
    assert_eq!(*flow, tcp());
    let ok = only(&out);
    assert_eq!(field(&ok, "Contact"), Some("<sip:sipreel@192.0.2.10:5060;transport=tcp>;+sip.srs"));
    let tag = to_tag(&sent(&out)[0]);
    r.receive(tcp(), ack("a", &tag, 1));
    let out = r.receive(tcp(), bye("a", &tag, 2));
    assert_eq!(manifest(&out).sip.transport, "tcp");
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn the_session_outlives_its_connection() {
    let mut r = Recorder::new(10, 10);
    let (key, tag) = r.call_over(tcp(), "a");
    r.event(Event::Disconnected { reactor: 1, connection: tcp().connection.unwrap() });
    let other = Flow { connection: Some(ConnectionKey { slot: 4, generation: 1 }), ..tcp() };
    assert_eq!(codes(&r.receive(other, bye("a", &tag, 2))), [200]);
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn without_rport_the_answer_goes_to_the_port_of_the_via() {
    let mut r = Recorder::new(10, 10);
    let flow = Flow { peer: "198.51.100.1:61000".parse().unwrap(), ..udp() };
    for (via, port) in [("198.51.100.1:5070;", 5070), ("198.51.100.1;", 5060)] {
        let options = message("OPTIONS", &format!("o{port}"), "", 1, "", "")
            .replace(";rport", "")
            .replace("198.51.100.1:5070;", via);
        let out = r.receive(flow, options);
        let Command::Send { flow, .. } = &out[0] else { panic!("{out:?}") };
        assert_eq!(flow.peer.port(), port);
    }
}

#[test]
fn a_repeated_invite_gets_the_same_answer_and_one_recording() {
    let mut r = Recorder::new(10, 10);
    let first = r.udp(invite("a"));
    let key = opened(&first).key;
    let again = r.udp(invite("a"));
    assert_eq!(kinds(&again), ["Send"]);
    assert_eq!(sent(&again), sent(&first));
    // What was said while the files were made comes into the pcap afterwards, in order.
    let out = r.event(Event::Opened { key });
    assert_eq!(kinds(&out), ["Signal", "Signal", "Signal", "Send"]);
    let ok = sent(&out);
    let again = r.udp(invite("a"));
    assert_eq!(kinds(&again), ["Signal", "Signal", "Send"]);
    assert_eq!(sent(&again), ok);
    assert_eq!(r.counters.total.get(), 1);
    assert_eq!(r.counters.retransmissions_received.get(), 2);

    let tag = to_tag(&ok[0]);
    r.udp(ack("a", &tag, 1));
    assert_eq!(kinds(&r.udp(invite("a"))), ["Signal"]);
    r.udp(bye("a", &tag, 2));
    assert_eq!(codes(&r.udp(bye("a", &tag, 2))), [200]);
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn a_200_is_repeated_until_its_ack_on_tcp_too() {
    for flow in [udp(), tcp()] {
        let mut r = Recorder::new(10, 10);
        let key = opened(&r.receive(flow, invite("a"))).key;
        let ok = sent(&r.event(Event::Opened { key }));
        let mut times = Vec::new();
        for tick in 1..=200u64 {
            let out = r.pass(Duration::from_millis(100));
            times.extend(sent(&out).into_iter().map(|bytes| {
                assert_eq!(bytes, ok[0]);
                tick * 100
            }));
        }
        assert_eq!(times, [500, 1_500, 3_500, 7_500, 11_500, 15_500, 19_500]);
        // An ACK of another INVITE does not stop it; that of this one does.
        let tag = to_tag(&ok[0]);
        r.receive(flow, ack("a", &tag, 7));
        assert_eq!(codes(&r.pass(Duration::from_secs(4))), [200]);
        r.receive(flow, ack("a", &tag, 1));
        assert_eq!(kinds(&r.pass(Duration::from_secs(60))), [""; 0]);
    }
}

#[test]
fn without_an_ack_the_session_ends_with_our_bye() {
    let mut r = Recorder::new(10, 10);
    let lines = format!(
        "Record-Route: <sip:p2.example.com;lr>\nRecord-Route: <sip:p1.example.com;lr>\n{SRC}Content-Type: {MULTIPART}\n"
    );
    let key = opened(&r.udp(invite_with("a", &lines, &multipart(OFFER, METADATA)))).key;
    let ok = only(&r.event(Event::Opened { key }));
    assert_eq!(ok.matches("Record-Route: ").count(), 2);
    let out = r.pass(Duration::from_secs(32));
    assert_eq!(manifest(&out).end_cause.as_deref(), Some("ack_timeout"));
    assert_eq!(r.counters.ack_timeouts.get(), 1);
    let byes: Vec<_> = sent(&out).into_iter().filter(|bytes| bytes.starts_with(b"BYE")).collect();
    let bye = text(&byes[0]);
    assert!(bye.starts_with("BYE sip:src@198.51.100.1:5070 SIP/2.0\r\n"), "{bye}");
    assert_eq!(field(bye, "Route"), Some("<sip:p2.example.com;lr>"));
    assert_eq!(field(bye, "To"), Some("<sip:src@example.com>;tag=35e195d2"));
    assert_eq!(field(bye, "From"), field(&ok, "To"));
    assert_eq!(field(bye, "CSeq"), Some("1 BYE"));
    assert_eq!(field(bye, "Max-Forwards"), Some("70"));

    r.event(Event::Closed { key });
    // Timer E until the answer comes.
    assert_eq!(sent(&r.pass(Duration::from_millis(1_500))), [byes[0].clone(), byes[0].clone()]);
    let via = field(bye, "Via").unwrap();
    r.udp(format!(
        "SIP/2.0 200 OK\r\nVia: {via}\r\nFrom: <sip:srs@example.com>;tag=x\r\nTo: <sip:src@example.com>;tag=35e195d2\r\n\
         Call-ID: a\r\nCSeq: 1 BYE\r\nContent-Length: 0\r\n\r\n"
    ));
    assert_eq!(kinds(&r.pass(Duration::from_secs(40))), [""; 0]);
    assert_eq!(r.counters.stray.get(), 0);
    r.assert_whole();
}

#[test]
fn our_bye_follows_a_strict_router() {
    let mut r = Recorder::new(10, 10);
    let lines = format!(
        "Record-Route: <sip:203.0.113.5:5080>, <sip:p1.example.com;lr>\n{SRC}Content-Type: {MULTIPART}\n"
    );
    let key = opened(&r.udp(invite_with("a", &lines, &multipart(OFFER, METADATA)))).key;
    let ok = only(&r.event(Event::Opened { key }));
    r.udp(ack("a", &to_tag(&Bytes::from(ok)), 1));
    let out = r.event(Event::Drain { grace: Duration::ZERO });
    let Command::Send { flow, bytes } = &out[1] else { panic!("{out:?}") };
    let bye = text(bytes);
    assert!(bye.starts_with("BYE sip:203.0.113.5:5080 SIP/2.0\r\n"), "{bye}");
    assert_eq!(bye.matches("Route: ").count(), 2, "{bye}");
    assert!(
        bye.contains("Route: <sip:p1.example.com;lr>\r\nRoute: <sip:src@198.51.100.1:5070>\r\n"),
        "{bye}"
    );
    assert_eq!(flow.peer.to_string(), "203.0.113.5:5080");
}

#[test]
fn a_bye_before_the_ack_ends_the_session() {
    let mut r = Recorder::new(10, 10);
    let key = opened(&r.udp(invite("a"))).key;
    let tag = to_tag(&sent(&r.event(Event::Opened { key }))[0]);
    let out = r.udp(bye("a", &tag, 2));
    assert_eq!((codes(&out), manifest(&out).end_cause.as_deref()), (vec![200], Some("bye")));
    assert_eq!(kinds(&r.pass(Duration::from_secs(1))), [""; 0]);
    r.udp(ack("a", &tag, 1));
    assert_eq!(r.counters.stray.get(), 1);
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn a_cancel_before_the_200() {
    let mut r = Recorder::new(10, 10);
    let key = opened(&r.udp(invite("a"))).key;
    let out = r.udp(cancel("a"));
    assert_eq!(codes(&out), [200, 487]);
    let tags: Vec<_> = sent(&out).iter().map(to_tag).collect();
    assert_eq!(tags[0], tags[1]);
    assert_eq!(r.refused(crate::counters::RefuseCause::Cancelled), 1);
    // The 487 is repeated until its ACK.
    assert_eq!(codes(&r.pass(Duration::from_millis(500))), [487]);
    assert_eq!(kinds(&r.udp(ack_of_failure("a", &tags[1]))), [""; 0]);
    assert_eq!(kinds(&r.pass(Duration::from_secs(5))), [""; 0]);

    let out = r.event(Event::Opened { key });
    assert_eq!(kinds(&out), ["Close"]);
    assert!(close(&out).manifest.is_none());
    r.event(Event::Closed { key });
    assert_eq!(r.counters.total.get(), 0);
    r.assert_whole();
}

#[test]
fn a_cancel_after_the_200_changes_nothing() {
    let mut r = Recorder::new(10, 10);
    let key = opened(&r.udp(invite("a"))).key;
    let tag = to_tag(&sent(&r.event(Event::Opened { key }))[0]);
    assert_eq!(codes(&r.udp(cancel("a"))), [200]);
    assert_eq!(codes(&r.udp(cancel("a"))), [200]);
    assert_eq!(r.counters.active.get(), 1);
    r.udp(ack("a", &tag, 1));
    r.udp(bye("a", &tag, 2));
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn a_drain_ends_everything() {
    let mut r = Recorder::new(10, 10);
    let (a, _) = r.call("a");
    let (b, _) = r.call_over(tcp(), "b");
    let c = opened(&r.udp(invite("c"))).key;
    assert_eq!(kinds(&r.event(Event::Drain { grace: Duration::from_secs(3) })), [""; 0]);
    let refused = only(&r.udp(invite("d")));
    assert!(refused.starts_with("SIP/2.0 503 "), "{refused}");
    assert_eq!(field(&refused, "Retry-After"), Some("10"));
    assert_eq!(codes(&r.udp(message("OPTIONS", "o", "", 1, "", ""))), [503]);
    assert!(!r.sessions.drained());

    r.udp(ack_of_failure("d", &to_tag(&Bytes::from(refused))));
    let out = r.pass(Duration::from_secs(3));
    assert_eq!(kinds(&out), ["Signal", "Send", "Close", "Signal", "Send", "Close", "Send"]);
    let sent = sent(&out);
    assert!(sent[0].starts_with(b"BYE ") && sent[1].starts_with(b"BYE "));
    assert_eq!(code(&sent[2]), 503);
    assert_eq!(manifest(&out).end_cause.as_deref(), Some("drain"));
    for key in [a, b] {
        r.event(Event::Closed { key });
        assert!(!r.sessions.drained());
    }
    assert_eq!(kinds(&r.event(Event::Opened { key: c })), ["Close"]);
    r.event(Event::Closed { key: c });
    r.committed(false);
    r.committed(true);
    assert_eq!((r.counters.committed.get(), r.counters.incomplete.get()), (2, 1));
    assert!(!r.sessions.drained(), "the BYEs are not answered yet");
    r.pass(crate::limits::BYE_GRACE);
    assert!(r.sessions.drained());
    r.assert_whole();
}

#[test]
fn a_drain_ends_with_its_last_recording() {
    let mut r = Recorder::new(10, 10);
    let (key, tag) = r.call("a");
    r.event(Event::Drain { grace: Duration::from_secs(60) });
    r.pass(Duration::from_secs(1));
    r.udp(bye("a", &tag, 2));
    assert!(!r.sessions.drained());
    r.event(Event::Closed { key });
    assert!(!r.sessions.drained(), "it is not on disk yet");
    r.committed(false);
    assert!(r.sessions.drained());

    let mut idle = Recorder::new(10, 10);
    idle.event(Event::Drain { grace: Duration::from_secs(60) });
    assert!(idle.sessions.drained());
}

#[test]
fn a_drain_does_not_wait_for_what_is_answered() {
    let mut r = Recorder::new(10, 10);
    let (key, _) = r.call("a");
    let out = r.event(Event::Drain { grace: Duration::ZERO });
    let bye = text(&sent(&out)[0]).to_owned();
    r.event(Event::Closed { key });
    r.committed(false);
    assert!(!r.sessions.drained());
    let via = field(&bye, "Via").unwrap();
    r.udp(format!(
        "SIP/2.0 481 Gone\r\nv: {via}\r\nf: <sip:a@b>;tag=x\r\nt: <sip:c@d>\r\ni: a\r\nCSeq: 1 BYE\r\nl: 0\r\n\r\n"
    ));
    assert!(r.sessions.drained());
}

#[test]
fn a_drain_does_not_speak_to_a_connection_that_is_gone() {
    let mut r = Recorder::new(10, 10);
    r.call_over(tcp(), "a");
    r.event(Event::Disconnected { reactor: 1, connection: tcp().connection.unwrap() });
    assert_eq!(kinds(&r.event(Event::Drain { grace: Duration::ZERO })), ["Close"]);
    assert_eq!(r.counters.byes_unsent.get(), 1);
}

#[test]
fn a_bye_finds_the_newer_connection_of_its_src() {
    let mut r = Recorder::new(10, 10);
    r.call_over(tcp(), "a");
    let connection = Some(ConnectionKey { slot: 5, generation: 0 });
    let newer = Flow { connection, peer: "198.51.100.1:40001".parse().unwrap(), ..tcp() };
    r.receive(newer, message("OPTIONS", "b", "", 1, "", ""));
    r.event(Event::Disconnected { reactor: 1, connection: tcp().connection.unwrap() });
    let out = r.event(Event::Drain { grace: Duration::ZERO });
    let bye = out.iter().find_map(|command| match command {
        Command::Send { flow, bytes } if bytes.starts_with(b"BYE ") => Some(*flow),
        _ => None,
    });
    assert_eq!(bye, Some(newer));
    assert_eq!(r.counters.byes_unsent.get(), 0);
}

#[test]
fn who_proved_to_be_behind_a_connection_is_in_the_manifest() {
    let mut r = Recorder::new(10, 10);
    let flow = Flow { transport: Transport::Tls, ..tcp() };
    let names = vec!["DNS:src.example.com".to_owned()];
    let certificate = Arc::new(PeerCertificate { names, sha256: "00".into() });
    r.event(Event::Secured { flow, certificate: certificate.clone() });
    let (_, tag) = r.call_over(flow, "a");
    let manifest = manifest(&r.receive(flow, bye("a", &tag, 2))).clone();
    assert_eq!(
        (manifest.sip.transport.as_str(), manifest.sip.peer_certificate),
        ("tls", Some((*certificate).clone()))
    );
    let notices = r.sessions.take_notices();
    let told = |notice: &Notice| matches!(notice, Notice::State(step) if step.certificate.as_ref() == Some(&certificate));
    assert!(notices.iter().any(told), "{notices:?}");
}

#[test]
fn metadata_that_cannot_be_understood_is_kept_and_flagged() {
    let mut r = Recorder::new(10, 10);
    let garbage = "<recording><unclosed attribute=></recording>\u{1}\u{2}";
    let lines = format!("{SRC}Content-Type: {MULTIPART}\n");
    let out = r.udp(invite_with("a", &lines, &multipart(OFFER, garbage)));
    let open = opened(&out);
    assert_eq!(&open.files[0].bytes[..], garbage.as_bytes());
    let key = open.key;
    let tag = to_tag(&sent(&r.event(Event::Opened { key }))[0]);
    r.udp(ack("a", &tag, 1));
    // A BYE brings one that is whole.
    let lines = "Content-Type: application/rs-metadata+xml\n";
    let out = r.udp(message("BYE", "a", &tag, 2, lines, METADATA));
    assert_eq!(kinds(&out), ["Signal", "File", "Signal", "Send", "Close"]);
    let manifest = manifest(&out);
    let understood: Vec<_> =
        manifest.metadata.iter().map(|body| (body.file.as_str(), body.understood)).collect();
    assert_eq!(understood, [("metadata-0001.xml", false), ("metadata-0002.xml", true)]);
    assert!(manifest.metadata[0].problem.is_some());
    assert_eq!(manifest.participants.len(), 2);
    assert_eq!((r.counters.metadata_bodies.get(), r.counters.metadata_not_understood.get()), (2, 1));
    assert!(r.sessions.take_notices().iter().any(|notice| matches!(notice, Notice::Finding { .. })));
}

#[test]
fn labels_that_differ_between_sdp_and_metadata_are_matched_by_order() {
    let mut r = Recorder::new(10, 10);
    let lines = format!("{SRC}Content-Type: {MULTIPART}\n");
    let offer = OFFER.replace("label:1", "label:5").replace("label:2", "label:6");
    let key = opened(&r.udp(invite_with("a", &lines, &multipart(&offer, METADATA)))).key;
    let tag = to_tag(&sent(&r.event(Event::Opened { key }))[0]);
    let out = r.udp(bye("a", &tag, 2));
    assert_eq!(manifest(&out).streams[0].participants, ["zSfPoSvdSDCmU3A3TRDxAw=="]);
}

#[test]
fn metadata_in_the_ack() {
    let mut r = Recorder::new(4, 4);
    let lines = format!("{SRC}Content-Type: application/sdp\n");
    let key = opened(&r.udp(invite_with("a", &lines, &crlf(OFFER)))).key;
    let tag = to_tag(&sent(&r.event(Event::Opened { key }))[0]);
    let ack = message("ACK", "a", &tag, 1, "Content-Type: application/rs-metadata\n", METADATA);
    assert_eq!(kinds(&r.udp(ack.clone())), ["Signal", "File"]);
    assert_eq!(kinds(&r.udp(ack)), ["Signal"], "once");
    let out = r.udp(bye("a", &tag, 2));
    assert_eq!(manifest(&out).streams[0].participants, ["zSfPoSvdSDCmU3A3TRDxAw=="]);
}

#[test]
fn who_has_left_stays_in_the_manifest() {
    let mut r = Recorder::new(4, 4);
    let (_, tag) = r.call("a");
    let transferred = METADATA.replace("srfBElmCRp2QB23b7Mpk0w==", "third").replace("Bob", "Carol");
    let lines = format!("{SRC}Content-Type: {MULTIPART}\n");
    r.udp(message("INVITE", "a", &tag, 2, &lines, &multipart(OFFER, &transferred)));
    r.udp(ack("a", &tag, 2));
    let out = r.udp(bye("a", &tag, 3));
    let manifest = manifest(&out);
    let names: Vec<_> = manifest.participants.iter().filter_map(|p| p.name.as_deref()).collect();
    assert_eq!(names, ["Bob", "Carol"]);
    assert_eq!(manifest.streams[1].participants, ["srfBElmCRp2QB23b7Mpk0w==", "third"]);
    assert_eq!(manifest.metadata.len(), 2);
}

#[test]
fn an_address_of_a_link_keeps_its_zone() {
    let mut r = Recorder::new(4, 4);
    let flow = Flow {
        local: "[fe80::10%7]:5060".parse().unwrap(),
        peer: "[fe80::1%7]:61000".parse().unwrap(),
        ..udp()
    };
    let peers = |out: &[Command]| -> Vec<String> {
        let peer = |command: &Command| match command {
            Command::Send { flow, .. } => Some(flow.peer.to_string()),
            _ => None,
        };
        out.iter().filter_map(peer).collect()
    };
    let link = |message: String| message.replace(";rport", "").replace("198.51.100.1:5070", "[fe80::1]:5070");
    let out = r.receive(flow, link(invite("a")));
    assert_eq!(peers(&out), ["[fe80::1%7]:5070"]);
    let key = opened(&out).key;
    let ok = only(&r.event(Event::Opened { key }));
    assert_eq!(field(&ok, "Contact"), Some("<sip:sipreel@[fe80::10]:5060>;+sip.srs"));
    r.receive(flow, ack("a", &to_tag(&Bytes::from(ok)), 1));
    // Our BYE goes to the Contact, which names no zone.
    let out = r.event(Event::Drain { grace: Duration::ZERO });
    assert_eq!(peers(&out), ["[fe80::1%7]:5070"]);
}

#[test]
fn a_session_on_ipv6() {
    let mut r = Recorder::new(4, 4);
    let flow = Flow {
        local: "[2001:db8::10]:5060".parse().unwrap(),
        peer: "[2001:db8::1]:5070".parse().unwrap(),
        ..udp()
    };
    let out = r.receive(flow, invite("a"));
    assert_eq!(opened(&out).streams[0].address.to_string(), "2001:db8::10");
    let key = opened(&out).key;
    let ok = only(&r.event(Event::Opened { key }));
    assert_eq!(field(&ok, "Contact"), Some("<sip:sipreel@[2001:db8::10]:5060>;+sip.srs"));
    assert!(body(&ok).contains("c=IN IP6 2001:db8::10\r\n"), "{ok}");
    r.receive(flow, ack("a", &to_tag(&Bytes::from(ok)), 1));
    // The Contact of the SRC is an IPv4 address, which this listener cannot reach.
    let out = r.event(Event::Drain { grace: Duration::ZERO });
    let Command::Send { flow: bye, .. } = &out[1] else { panic!("{out:?}") };
    assert_eq!(bye.peer, flow.peer);
}

#[test]
fn contacts_lead_back_over_the_transport_of_the_request() {
    let tls = || Flow { transport: Transport::Tls, ..tcp() };
    let sips = |text: String| text.replace("INVITE sip:", "INVITE sips:");
    type Change = fn(String) -> String;
    let cases: [(Flow, Change, &str); 4] = [
        (udp(), |text| text, "<sip:sipreel@192.0.2.10:5060>;+sip.srs"),
        (tcp(), |text| text, "<sip:sipreel@192.0.2.10:5060;transport=tcp>;+sip.srs"),
        (tls(), |text| text, "<sip:sipreel@192.0.2.10:5060;transport=tls>;+sip.srs"),
        (tls(), sips, "<sips:sipreel@192.0.2.10:5060>;+sip.srs"),
    ];
    for (flow, change, contact) in cases {
        let mut r = Recorder::new(10, 10);
        let key = opened(&r.receive(flow, change(invite("a")))).key;
        let ok = only(&r.event(Event::Opened { key }));
        assert_eq!(field(&ok, "Contact"), Some(contact));
    }
}
