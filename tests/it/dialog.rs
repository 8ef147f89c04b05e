//! The dialog, message by message.

use std::collections::HashSet;

use crate::recorder::{Recorder, Setup, eventually, number};
use crate::src::{Call, Line, PCMU, Wire};

const INACTIVE: &str = "a=rtpmap:0 PCMU/8000\r\na=inactive\r\n";

#[test]
fn the_answer_has_every_m_line_with_its_label() {
    let mut recorder = Recorder::start();
    for mut call in [Call::udp(recorder.udp), Call::tcp(recorder.tcp)] {
        call.lines[0].label = "inbound";
        call.lines.push(Line { port: 0, ..PCMU.label("refused") });
        let answer = call.invite();
        assert_eq!(answer.code(), 200);
        assert!(answer.header("Contact").unwrap().contains(";+sip.srs"));
        assert_eq!(answer.header("Content-Type"), Some("application/sdp"));
        let media = answer.media();
        let labels: Vec<_> = media.iter().map(|media| media.label.as_deref()).collect();
        assert_eq!(labels, [Some("inbound"), Some("2"), Some("refused")]);
        assert!(
            media[..2].iter().all(|media| media.direction == "recvonly" && media.port % 2 == 0),
            "{media:?}"
        );
        assert_eq!(media[2].port, 0);
        assert_ne!(media[0].port, media[1].port);
        call.ack();
        call.hang_up();
    }
    for recording in recorder.committed(2) {
        recording.check_whole();
        assert_eq!(recording.manifest["end_cause"], "bye");
    }
    recorder.stop();
}

#[test]
fn a_retransmitted_invite_makes_one_recording_and_gets_the_same_answer() {
    let mut recorder = Recorder::start();
    let mut call = Call::udp(recorder.udp);
    let invite = call.invite_text();
    (0..3).for_each(|_| call.wire.send(&invite));
    let first = call.invite();
    call.wire.send(&invite);
    let again = call.wire.final_response("INVITE");
    assert_eq!(first.bytes, again.bytes);
    call.ack();
    call.hang_up();
    let stats = recorder.pool_whole();
    assert_eq!(stats["sessions"]["total"], 1);
    assert_eq!(stats["sip"]["requests"]["INVITE"], 5);
    assert_eq!(stats["sip"]["retransmissions_received"], 4);
    recorder.recording().check_whole();
    recorder.stop();
}

#[test]
fn a_200_is_repeated_until_its_ack() {
    let mut recorder = Recorder::start();
    for mut call in [Call::udp(recorder.udp), Call::tcp(recorder.tcp)] {
        let first = call.invite();
        // T1 is 500 ms: two more within two seconds.
        let more = [call.wire.receive(), call.wire.receive()];
        assert!(more.iter().all(|again| again.bytes == first.bytes));
        call.ack();
        call.hang_up();
    }
    assert!(number(&recorder.stats()["sip"], "retransmissions_sent") >= 4);
    recorder.committed(2);
    recorder.stop();
}

#[test]
fn bye_before_ack_ends_the_recording() {
    let mut recorder = Recorder::start();
    let mut call = Call::udp(recorder.udp);
    assert_eq!(call.invite().code(), 200);
    call.hang_up();
    call.cseq = 1;
    call.ack();
    let recording = recorder.recording();
    recording.check_whole();
    assert_eq!(recording.manifest["end_cause"], "bye");
    let stats = recorder.pool_whole();
    assert_eq!(stats["sip"]["ack_timeouts"], 0);
    recorder.stop();
}

/// However the race ends, the SRC gets one final answer to each request, and a session exists if and only if it is a 200.
#[test]
fn cancel_that_races_the_200() {
    // Abandoned calls give their ports back a little later: enough of them for all rounds.
    let mut recorder = Setup::new().pairs(160).flag("--port-cooldown", "0").start();
    let mut accepted = 0_usize;
    for round in 0..40 {
        let mut call = Call::udp(recorder.udp);
        let (invite, cancel) = (call.invite_text(), call.request("CANCEL", "", ""));
        call.wire.send(&invite);
        // From at once to after the 200.
        std::thread::sleep(std::time::Duration::from_micros(round % 8 * 100));
        call.wire.send(&cancel);
        let (mut of_invite, mut of_cancel) = (None, None);
        while of_invite.is_none() || of_cancel.is_none() {
            let message = call.wire.receive();
            let cancels = message.header("CSeq").unwrap().ends_with("CANCEL");
            match message.code() {
                100 => {}
                _ if cancels => of_cancel = Some(message),
                _ => of_invite = Some(message),
            }
        }
        // 481: the CANCEL was taken by the reactor before the INVITE.
        assert!(matches!(of_cancel.unwrap().code(), 200 | 481));
        let answer = of_invite.unwrap();
        match answer.code() {
            487 => {
                let ack = call.request("ACK", "", "");
                call.wire.send(ack);
            }
            code => {
                assert_eq!(code, 200);
                accepted += 1;
                call.remote_tag = Some(crate::src::tag(&answer));
                call.ack();
                call.hang_up();
            }
        }
    }
    let stats = recorder.pool_whole();
    assert_eq!(stats["sessions"]["total"], accepted);
    assert_eq!(stats["sessions"]["refused"]["cancelled"], 40 - accepted);
    assert_eq!(stats["sessions"]["active"], 0);
    recorder.committed(accepted);
    recorder.stop();
}

#[test]
fn requests_outside_of_every_dialog() {
    let mut recorder = Recorder::start();
    for wire in [Wire::udp(recorder.udp), Wire::tcp(recorder.tcp)] {
        let target = if matches!(wire, Wire::Udp(_)) { recorder.udp } else { recorder.tcp };
        let mut call = Call::new(wire, target, vec![PCMU]);
        call.remote_tag = Some("0123456789abcdef".into());
        assert_eq!(call.bye().code(), 481);
        call.remote_tag = None;
        let mut ask = |method: &str| {
            call.cseq += 1;
            let text = call.request(method, "", "");
            call.wire.send(text);
            call.wire.final_response(method)
        };
        let options = ask("OPTIONS");
        assert_eq!(options.code(), 200);
        assert!(options.header("Allow").unwrap().contains("INVITE"));
        assert!(options.header("Accept").unwrap().contains("multipart/mixed"));
        for (method, code) in [("MESSAGE", 405), ("REGISTER", 405), ("SUBSCRIBE", 405), ("NEWMETHOD", 501)] {
            let refused = ask(method);
            assert_eq!(refused.code(), code, "{method}");
            let allow = refused.header("Allow").unwrap();
            assert!(["INVITE", "ACK", "BYE", "CANCEL", "OPTIONS"].iter().all(|known| allow.contains(known)));
        }
        assert_eq!(ask("CANCEL").code(), 481);
    }
    let stats = recorder.stats();
    assert_eq!(
        (&stats["sip"]["responses"]["405"], &stats["sip"]["responses"]["501"]),
        (&6.into(), &2.into())
    );
    assert_eq!(stats["sip"]["responses"]["481"], 4);
    assert_eq!(stats["sessions"]["total"], 0);
    recorder.stop();
}

#[test]
fn invites_that_are_no_recording_sessions() {
    let mut recorder = Recorder::start();
    let refused = |call: &mut Call, fields: &str, body: &str| {
        call.cseq += 1;
        let text = call.request("INVITE", fields, body).replace(";+sip.src", "");
        call.wire.send(text);
        let answer = call.wire.final_response("INVITE");
        let ack = call.request("ACK", "", "");
        call.wire.send(ack);
        answer
    };
    let mut call = Call::udp(recorder.udp);
    let sdp = call.sdp();
    let plain = refused(&mut call, "Content-Type: application/sdp\r\n", &sdp);
    assert_eq!(plain.code(), 403);
    let siprec = "Require: siprec\r\n";
    let unknown =
        refused(&mut call, "Require: siprec, holography\r\nContent-Type: application/sdp\r\n", &sdp);
    assert_eq!((unknown.code(), unknown.header("Unsupported")), (420, Some("holography")));
    let type_unknown = refused(&mut call, &format!("{siprec}Content-Type: image/png\r\n"), "x");
    assert_eq!(type_unknown.code(), 415);
    assert!(type_unknown.header("Accept").is_some());
    let srtp = sdp.replace("RTP/AVP", "RTP/SAVP");
    let encrypted = refused(&mut call, &format!("{siprec}Content-Type: application/sdp\r\n"), &srtp);
    assert_eq!(encrypted.code(), 488);
    assert!(encrypted.header("Warning").is_some());
    let stats = recorder.pool_whole();
    assert_eq!(stats["sessions"]["refused_total"], 4);
    for cause in ["not_a_recording_session", "bad_extension", "unsupported_body", "not_acceptable"] {
        assert_eq!(stats["sessions"]["refused"][cause], 1, "{cause}");
    }
    assert!(recorder.parts().is_empty() && recorder.recordings().is_empty());
    recorder.stop();
}

#[test]
fn a_reinvite_adds_holds_and_removes_streams() {
    let mut recorder = Recorder::start();
    let mut call = Call::udp(recorder.udp);
    let ports = call.establish();
    let ip = recorder.udp.ip();
    let leg = |port, ssrc| crate::media::Leg::new(ip, port, ssrc);
    let (mut first, mut second) = (leg(ports[0], 1), leg(ports[1], 2));
    first.burst(5);
    second.burst(5);

    call.cseq += 1;
    call.lines.push(Line { port: 40_004, ..PCMU.label("3") });
    call.metadata = crate::src::metadata("more", ["1", "2", "3"].into_iter());
    let added = call.invite();
    call.ack();
    assert_eq!(added.code(), 200);
    let all: HashSet<u16> = added.ports().into_iter().collect();
    assert_eq!((added.ports()[..2].to_vec(), all.len()), (ports.clone(), 3), "new stream, new port");
    let mut third = leg(added.ports()[2], 3);
    third.burst(5);

    call.cseq += 1;
    call.lines[1].attributes = INACTIVE;
    let held = call.invite();
    call.ack();
    assert_eq!(held.ports(), added.ports(), "a hold moves nothing");
    assert_eq!(held.media()[1].direction, "inactive");
    // Packets that were under way when the hold came are recorded all the same.
    second.burst(5);

    call.cseq += 1;
    call.lines[1].port = 0;
    let removed = call.invite();
    call.ack();
    assert_eq!(removed.ports(), [ports[0], 0, added.ports()[2]]);
    let version = |answer: &crate::src::Message| {
        let origin = answer.body.lines().find(|line| line.starts_with("o=")).unwrap().to_owned();
        origin.split(' ').map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(version(&added)[1], version(&removed)[1], "the session is the same");
    assert!(version(&added)[2] < version(&held)[2] && version(&held)[2] < version(&removed)[2]);
    recorder.stats_when("the removed pair is back", |stats| stats["ports"]["used"] == 2);
    // What was on its way when the stream was removed is recorded; what comes later is counted.
    let mut late = 0;
    eventually("packets are too late for their stream", || {
        second.burst(1);
        late += 1;
        let media = &recorder.stats()["media"];
        (number(&media["dropped"], "after_end") >= 3).then_some(())
    });
    first.burst(5);
    let stats = recorder
        .stats_when("all packets are received", |stats| stats["media"]["received_packets"] == 25 + late);
    let after = late - number(&stats["media"]["dropped"], "after_end");
    call.hang_up();

    let recording = recorder.recording();
    recording.check_whole();
    for (label, packets) in [("1", 10), ("2", 10 + after), ("3", 5)] {
        let stream = recording.stream(label);
        assert_eq!(stream["packets"], packets, "{label}");
        assert_eq!(stream["participants"], serde_json::json!([format!("p-{label}")]));
    }
    assert_eq!(recording.manifest["metadata"].as_array().unwrap().len(), 4);
    assert_eq!(recording.read("metadata-0002.xml"), call.metadata.as_bytes());
    assert_eq!(recording.pcap().payloads_to(ports[0]), first.sent);
    assert_eq!(number(&recorder.quiet()["media"], "recorded_packets"), 25 + after);
    recorder.stop();
}

/// UPDATE and INFO change what is recorded, and are answered without an ACK.
#[test]
fn updates_and_infos() {
    let mut recorder = Recorder::start();
    for mut call in [Call::udp(recorder.udp), Call::tcp(recorder.tcp)] {
        let ports = call.establish();
        let ask = |call: &mut Call, method: &str, content_type: &str, body: &str| {
            call.cseq += 1;
            let text = call.request(method, &format!("Content-Type: {content_type}\r\n"), body);
            call.wire.send(text);
            call.wire.final_response(method)
        };
        let metadata = crate::src::metadata("update", ["1"].into_iter());
        let bare = ask(&mut call, "UPDATE", "application/rs-metadata", &metadata);
        assert_eq!((bare.code(), bare.body.as_str()), (200, ""));
        call.lines.push(Line { port: 40_004, ..PCMU.label("3") });
        let sdp = call.sdp();
        let offer = ask(&mut call, "UPDATE", "application/sdp", &sdp);
        assert_eq!((offer.code(), &offer.ports()[..2]), (200, &ports[..]));
        let mut third = crate::media::Leg::new(recorder.udp.ip(), offer.ports()[2], 3);
        let before = number(&recorder.stats()["media"], "received_packets");
        third.burst(5);
        recorder.stats_when("packets are received", |stats| {
            number(&stats["media"], "received_packets") == before + 5
        });
        let metadata = crate::src::metadata("info", ["3"].into_iter());
        assert_eq!(ask(&mut call, "INFO", "application/rs-metadata+xml", &metadata).code(), 200);
        assert_eq!(ask(&mut call, "INFO", "application/dtmf-relay", "Signal=5\r\n").code(), 200);
        call.hang_up();
    }
    for recording in recorder.committed(2) {
        recording.check_whole();
        assert_eq!(recording.stream("3")["packets"], 5);
        assert_eq!(recording.manifest["metadata"].as_array().unwrap().len(), 3);
    }
    recorder.stop();
}

/// A phone that forks its media: no offer, no mark of SIPREC, and its answer in the ACK.
#[test]
fn an_invite_without_an_offer() {
    let mut recorder = Setup::new().flag("--empty-invite", "on").start();
    let mut call = Call::udp(recorder.udp);
    let invite = call.request("INVITE", "", "").replace(";+sip.src", "");
    call.wire.send(invite);
    let offer = call.wire.final_response("INVITE");
    assert_eq!((offer.code(), offer.media()[0].direction.as_str()), (200, "recvonly"));
    call.remote_tag = Some(crate::src::tag(&offer));
    call.lines.truncate(1);
    let sdp = call.sdp();
    let ack = call.request("ACK", "Content-Type: application/sdp\r\n", &sdp);
    call.wire.send(ack);
    let mut leg = crate::media::Leg::new(recorder.udp.ip(), offer.ports()[0], 1);
    leg.burst(5);
    recorder.stats_when("packets are received", |stats| stats["media"]["received_packets"] == 5);
    call.hang_up();
    let recording = recorder.recording();
    recording.check_whole();
    assert_eq!(
        (&recording.stream("1")["packets"], &recording.stream("1")["codec"]),
        (&5.into(), &"PCMU".into())
    );
    assert_eq!(recorder.stats()["sip"]["answers_missing"], 0);
    recorder.stop();
}

#[test]
fn refusals_where_the_rfcs_put_them() {
    let mut recorder = Setup::new().flag("--min-se", "600").flag("--session-expires", "1h").start();
    let siprec = |call: &Call, fields: &str| {
        let fields = format!("Require: siprec\r\nContent-Type: {}\r\n{fields}", crate::src::MULTIPART);
        call.request("INVITE", &fields, &call.body())
    };
    let one = || Call::tcp(recorder.tcp);
    let refused = |mut call: Call, text: String| {
        call.wire.send(text);
        call.wire.final_response("INVITE")
    };
    let call = one();
    let text = siprec(&call, "Supported: timer\r\nSession-Expires: 90\r\n");
    let interval = refused(call, text);
    assert_eq!((interval.code(), interval.header("Min-SE")), (422, Some("600")));
    let call = one();
    let text = siprec(&call, "").replacen("sip:srs@", "urn:srs@", 1);
    assert_eq!(refused(call, text).code(), 416);
    let call = one();
    let text = siprec(&call, "").replacen("SIP/2.0", "SIP/4.0", 1);
    assert_eq!(refused(call, text).code(), 505);
    // What is too large is answered, and its connection ends.
    for (fields, code) in
        [("X: y\r\n".repeat(12_000), 513), ("Content-Length: 999999\r\nX: ".to_owned(), 413)]
    {
        let mut call = one();
        let text = siprec(&call, &fields);
        call.wire.send(text);
        assert_eq!(call.wire.receive().code(), code);
        assert!(call.wire.closed());
    }
    // An SRC that knows of timers is told what is asked of it.
    let mut call = Call::udp(recorder.udp);
    let text = siprec(&call, "Supported: timer\r\n");
    call.wire.send(text);
    let ok = call.wire.final_response("INVITE");
    assert_eq!(ok.header("Session-Expires"), Some("3600;refresher=uas"));
    assert_eq!(ok.header("Require"), Some("timer"));
    call.remote_tag = Some(crate::src::tag(&ok));
    call.ack();
    call.hang_up();
    assert_eq!(recorder.stats()["sessions"]["refused"]["session_interval"], 1);
    recorder.stop();
}

#[test]
fn updates_of_the_metadata_without_an_offer() {
    let mut recorder = Recorder::start();
    let mut call = Call::tcp(recorder.tcp);
    let ports = call.establish();
    call.cseq += 1;
    let update = crate::src::metadata("update", ["1"].into_iter());
    let text = call.request("INVITE", "Content-Type: application/rs-metadata\r\n", &update);
    call.wire.send(text);
    let answer = call.wire.final_response("INVITE");
    call.ack();
    assert_eq!((answer.code(), answer.ports()), (200, ports));
    let last = crate::src::metadata("last", ["2"].into_iter());
    call.cseq += 1;
    let bye = call.request("BYE", "Content-Type: application/rs-metadata+xml\r\n", &last);
    call.wire.send(bye);
    assert_eq!(call.wire.final_response("BYE").code(), 200);
    let recording = recorder.recording();
    recording.check_whole();
    assert_eq!(recording.read("metadata-0002.xml"), update.as_bytes());
    assert_eq!(recording.read("metadata-0003.xml"), last.as_bytes());
    recorder.stop();
}
