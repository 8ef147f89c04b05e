//! Requests that are refused, and that nothing is left behind.

use rand::Rng;

use super::*;
use crate::counters::RefuseCause;

fn refuse(r: &mut Recorder, request: String) -> String {
    let out = r.udp(request);
    assert_eq!(kinds(&out), ["Send"]);
    only(&out)
}

#[track_caller]
fn assert_code(response: &str, code: u16) {
    assert!(response.starts_with(&format!("SIP/2.0 {code} ")), "{response}");
}

#[test]
fn methods_that_are_not_done() {
    let mut r = Recorder::new(2, 2);
    let methods = ["REGISTER", "MESSAGE", "NOTIFY", "SUBSCRIBE", "REFER", "PUBLISH", "FOO", "invite"];
    for (number, method) in methods.into_iter().enumerate() {
        let response = refuse(&mut r, message(method, method, "", 1, "", ""));
        assert_code(&response, if number < 6 { 405 } else { 501 });
        assert_eq!(field(&response, "Allow"), Some("INVITE, ACK, BYE, CANCEL, OPTIONS, UPDATE, INFO, PRACK"));
    }
    assert_eq!((r.counters.responses[405].get(), r.counters.responses[501].get()), (6, 2));
    r.assert_whole();
}

#[test]
fn methods_of_a_dialog_without_one() {
    let mut r = Recorder::new(2, 2);
    for method in ["BYE", "UPDATE", "INFO", "PRACK"] {
        assert_code(&refuse(&mut r, message(method, method, "", 1, "", "")), 481);
        assert_code(&refuse(&mut r, message(method, method, "0123456789abcdef", 2, "", "")), 481);
    }
    r.assert_whole();
}

#[test]
fn request_uris() {
    let mut r = Recorder::new(4, 4);
    let to = |uri: &str, id: &str| invite(id).replacen("sip:srs@192.0.2.10", uri, 1);
    for (number, uri) in
        ["http://192.0.2.10", "urn:service:sos", "im:srs@192.0.2.10", "sipx:srs"].into_iter().enumerate()
    {
        let response = refuse(&mut r, to(uri, &format!("r{number}")));
        assert_code(&response, 416);
    }
    assert_code(&refuse(&mut r, to("tel:;phone-context=x", "t")), 404);
    assert_eq!(r.refused(RefuseCause::BadUri), 5);
    for (number, uri) in
        ["SIPS:srs@192.0.2.10", "tel:+1-201-555-0123", "sip:anybody@elsewhere.example.com;transport=tcp"]
            .into_iter()
            .enumerate()
    {
        assert_eq!(codes(&r.udp(to(uri, &format!("a{number}")))), [100], "{uri}");
    }
}

#[test]
fn a_method_that_is_not_done_in_a_dialog_leaves_it() {
    let mut r = Recorder::new(2, 2);
    let (key, tag) = r.call("a");
    let out = r.udp(message("MESSAGE", "a", &tag, 2, "Content-Type: text/plain\n", "hello"));
    assert_eq!((kinds(&out), codes(&out)), (vec!["Signal", "Signal", "Send"], vec![405]));
    // There is no provisional response that it could acknowledge (RFC 3262 §3).
    assert_eq!(codes(&r.udp(message("PRACK", "a", &tag, 3, "RAck: 1 1 INVITE\n", ""))), [481]);
    assert_eq!(codes(&r.udp(message("OPTIONS", "a", &tag, 4, "", ""))), [200]);
    assert_eq!(codes(&r.udp(bye("a", &tag, 5))), [200]);
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn options_says_what_can_be_had() {
    let mut r = Recorder::new(1, 2);
    let options = refuse(&mut r, message("OPTIONS", "o", "", 1, "", ""));
    assert_code(&options, 200);
    assert!(field(&options, "Accept").unwrap().contains("application/rs-metadata"));
    assert!(field(&options, "Allow").is_some() && field(&options, "Supported").is_some());
}

#[test]
fn options_tells_which_recorder_it_is_and_what_it_has_left() {
    let mut r = Recorder::new(2, 3);
    let ask = |r: &mut Recorder, call_id: &str| refuse(r, message("OPTIONS", call_id, "", 1, "", ""));
    let idle = ask(&mut r, "o1");
    assert_eq!(field(&idle, "X-Sipreel-Resource"), Some("rec1;region=eu-west-1"));
    assert_eq!(field(&idle, "X-Sipreel-Capacity"), Some("sessions=0;max=3;ports=4"));
    r.call("a");
    let busy = ask(&mut r, "o2");
    assert_eq!(field(&busy, "X-Sipreel-Capacity"), Some("sessions=1;max=3;ports=2"));
    assert!(busy.len() < crate::limits::ANSWER_BYTES_WANTED);
    r.event(Event::Drain { grace: Duration::from_secs(60) });
    let draining = ask(&mut r, "o3");
    assert_code(&draining, 503);
    assert!(field(&draining, "Retry-After").is_some());
    assert_eq!(field(&draining, "X-Sipreel-Capacity"), Some("sessions=1;max=3;ports=2"));
}

#[test]
fn what_is_no_recording_session() {
    let mut r = Recorder::new(2, 2);
    let lines = "Contact: <sip:alice@198.51.100.1>\nContent-Type: application/sdp\n";
    let response = refuse(&mut r, invite_with("a", lines, &crlf(OFFER)));
    assert_code(&response, 403);
    assert!(field(&response, "Warning").unwrap().starts_with("399 sipreel \""));
    assert_eq!(r.refused(RefuseCause::NotRecording), 1);
    r.udp(ack_of_failure("a", "x"));
    r.assert_whole();
}

#[test]
fn what_is_taken_for_a_recording_session() {
    let plain = crlf(OFFER);
    let both = multipart(OFFER, METADATA);
    for (lines, body) in [
        ("Require: siprec\nContent-Type: application/sdp\n", &plain),
        ("k: timer, SIPREC\nContent-Type: application/sdp\n", &plain),
        ("Contact: <sip:a@198.51.100.1>;+sip.src\nContent-Type: application/sdp\n", &plain),
        ("Contact: <sip:a@198.51.100.1>;src\nContent-Type: application/sdp\n", &plain),
        ("Contact: <sip:a@198.51.100.1;+sip.src>\nContent-Type: application/sdp\n", &plain),
        ("Content-Type: multipart/mixed;boundary=\"foobar\"\n", &both),
    ] {
        let mut r = Recorder::new(2, 2);
        let out = r.udp(invite_with("a", lines, body));
        assert_eq!(opened(&out).streams.len(), 2, "{lines}");
    }
}

#[test]
fn extensions_that_are_not_understood() {
    let mut r = Recorder::new(2, 2);
    let lines = format!("{SRC}Require: timer, foo\nRequire: bar\nContent-Type: {MULTIPART}\n");
    let response = refuse(&mut r, invite_with("a", &lines, &multipart(OFFER, METADATA)));
    assert_code(&response, 420);
    assert_eq!(field(&response, "Unsupported"), Some("foo, bar"));
    assert_eq!(r.refused(RefuseCause::BadExtension), 1);
    // Neither CANCEL nor ACK is refused for it (RFC 3261 §8.2.2.3).
    assert_eq!(codes(&r.udp(message("CANCEL", "a", "", 1, "Require: foo\n", ""))), [200]);
}

#[test]
fn bodies_that_cannot_be_used() {
    let mut r = Recorder::new(2, 2);
    let mut code_of = |call_id: &str, lines: &str, body: &str| {
        let response = refuse(&mut r, invite_with(call_id, &format!("{SRC}{lines}"), body));
        (response[8..11].to_owned(), response)
    };
    let (code, response) = code_of("a", "Content-Type: text/plain\n", "hello");
    assert_eq!(code, "415");
    assert!(field(&response, "Accept").unwrap().contains("application/sdp"));
    let (code, response) = code_of("b", "Content-Type: application/sdp\nContent-Encoding: gzip\n", "x");
    assert_eq!((code.as_str(), field(&response, "Accept-Encoding")), ("415", Some("identity")));
    let (code, response) = code_of("c", "Content-Type: multipart/mixed\n", "--x\r\n\r\n--x--");
    assert_eq!(code, "400");
    assert!(response.starts_with("SIP/2.0 400 multipart without a boundary"), "{response}");
    let (code, response) = code_of("d", "", "");
    assert_eq!(code, "488");
    assert!(field(&response, "Warning").unwrap().contains("offer"));
    let (code, _) = code_of("e", "Content-Type: application/sdp\n", "nonsense");
    assert_eq!(code, "488");
    let secure = crlf(OFFER).replace("RTP/AVP", "RTP/SAVP");
    let (code, response) = code_of("f", "Content-Type: application/sdp\n", &secure);
    assert_eq!(code, "488");
    assert!(field(&response, "Warning").unwrap().starts_with("305 "));
    let removed = crlf(OFFER).replace("12240", "0").replace("22456", "0");
    assert_eq!(code_of("g", "Content-Type: application/sdp\n", &removed).0, "488");
    assert_eq!(r.refused(RefuseCause::UnsupportedBody), 2);
    assert_eq!(r.refused(RefuseCause::NotAcceptable), 4);
    assert_eq!(r.refused(RefuseCause::BadRequest), 1);
    assert_eq!(r.counters.bad_requests.get(), r.counters.responses[400].get());
    r.assert_whole();
}

#[test]
fn what_is_too_large() {
    let mut r = Recorder::new(2, 2);
    let lines = format!("{SRC}Content-Type: application/sdp\n");
    let padded = |length: usize| format!("{}a=x:{}\r\n", crlf(OFFER), "x".repeat(length));
    let response = refuse(&mut r, invite_with("a", &lines, &padded(crate::limits::SDP_MAX)));
    assert_code(&response, 413);
    assert_eq!(field(&response, "Warning"), Some("399 sipreel \"SDP is larger than 65536 bytes\""));
    assert_eq!(codes(&r.udp(invite_with("b", &lines, &padded(60_000)))), [100]);
    let fields = "X: y\n".repeat(crate::limits::SIP_HEADERS_MAX);
    let response = refuse(&mut r, invite_with("c", &format!("{SRC}{fields}"), ""));
    assert_code(&response, 513);
    assert_eq!(r.refused(RefuseCause::TooLarge), 1);
    assert_eq!(r.counters.responses[513].get(), 1);
}

#[test]
fn an_invite_that_lay_here_for_too_long() {
    let mut r = Recorder::new(2, 2);
    let at = r.now.wall;
    r.pass(Duration::from_secs(32));
    let bytes = Bytes::from(invite("a"));
    assert_eq!(codes(&r.event(Event::Message { flow: udp(), bytes, at })), [100]);
    r.pass(Duration::from_millis(1));
    let bytes = Bytes::from(invite("b"));
    assert_eq!(codes(&r.event(Event::Message { flow: udp(), bytes, at })), [408]);
    assert_eq!(r.refused(RefuseCause::TooLate), 1);
}

#[test]
fn plain_sdp_is_recorded_where_it_is_wanted() {
    let mut r = Recorder::new(2, 2);
    r.sessions.rules.terms.plain_sdp = true;
    let lines = "Contact: <sip:nbr@198.51.100.1>\nContent-Type: application/sdp\n";
    let key = opened(&r.udp(invite_with("a", lines, &crlf(OFFER)))).key;
    assert_eq!(m_ports(body(&only(&r.event(Event::Opened { key })))), [20_000, 20_002]);
    // Without an offer there is nothing to be plain about.
    assert_code(&refuse(&mut r, invite_with("b", "Contact: <sip:nbr@198.51.100.1>\n", "")), 403);
}

#[test]
fn one_m_line_of_two_is_recorded() {
    let mut r = Recorder::new(2, 2);
    let offer = OFFER.replacen("RTP/AVP 0", "RTP/SAVP 0", 1);
    let lines = format!("{SRC}Content-Type: application/sdp\n");
    let key = opened(&r.udp(invite_with("a", &lines, &crlf(&offer)))).key;
    let ok = only(&r.event(Event::Opened { key }));
    assert_eq!(m_ports(body(&ok)), [0, 20_000]);
    // Nobody who reads the recording later may take it for the whole call.
    let tag = to_tag(&ok.into());
    r.udp(ack("a", &tag, 1));
    let out = r.udp(bye("a", &tag, 2));
    assert_eq!(manifest(&out).problems, ["m-line 0 (audio over RTP/SAVP) was not recorded"]);
}

#[test]
fn malformed_requests_are_told_what_is_wrong() {
    let mut r = Recorder::new(2, 2);
    let response = refuse(&mut r, invite("a").replace("Call-ID: a\r\n", ""));
    assert_code(&response, 400);
    assert!(response.starts_with("SIP/2.0 400 Missing Call-ID\r\n"), "{response}");
    let response = refuse(&mut r, invite("b").replace("CSeq: 1 INVITE", "CSeq: 1 BYE"));
    assert_code(&response, 400);
    let response = refuse(&mut r, invite("c").replace(" SIP/2.0\r\nVia", " SIP/3.0\r\nVia"));
    assert_code(&response, 505);
    assert_eq!(r.counters.bad_requests.get(), 2, "505 is another answer");
    assert_eq!(r.refused(RefuseCause::BadRequest), 3);
    // The same bytes get the same tag.
    let again = refuse(&mut r, invite("b").replace("CSeq: 1 INVITE", "CSeq: 1 BYE"));
    let once_more = refuse(&mut r, invite("b").replace("CSeq: 1 INVITE", "CSeq: 1 BYE"));
    assert_eq!(again, once_more);
    for unanswerable in ["noise\r\n\r\n".to_owned(), ack("a", "x", 1).replace("Call-ID: a\r\n", "")] {
        assert_eq!(kinds(&r.udp(unanswerable)), [""; 0]);
    }
    assert_eq!(r.counters.malformed.get(), 2);
    assert_eq!(kinds(&r.udp("\r\n\r\n")), [""; 0]);
    assert_eq!(r.counters.malformed.get(), 2);
    r.assert_whole();
}

#[test]
fn dialogs_that_are_not_known() {
    let mut r = Recorder::new(2, 2);
    let (key, tag) = r.call("a");
    assert_eq!(codes(&r.udp(bye("b", "0123456789abcdef", 2))), [481]);
    assert_eq!(codes(&r.udp(bye("c", &tag, 2))), [481], "right tag, wrong Call-ID");
    assert_eq!(codes(&r.udp(bye("a", &tag, 2).replace("35e195d2", "other"))), [481]);
    assert_eq!(codes(&r.udp(message("BYE", "d", "", 2, "", ""))), [481], "no tag");
    assert_eq!(codes(&r.udp(reinvite("e", "zz", 2, OFFER))), [481]);
    assert_eq!(codes(&r.udp(cancel("f"))), [481]);
    assert_eq!(kinds(&r.udp(ack("g", "zz", 1))), [""; 0]);
    assert_eq!(r.counters.stray.get(), 1);
    assert_eq!(codes(&r.udp(message("BYE", "a", &tag, 3, "", ""))), [200]);
    assert_eq!(codes(&r.udp(message("BYE", "a", &tag, 4, "", ""))), [481], "it has ended");
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn a_lower_cseq_is_out_of_order() {
    let mut r = Recorder::new(2, 2);
    let (key, tag) = r.call("a");
    assert_eq!(codes(&r.udp(message("OPTIONS", "a", &tag, 9, "", ""))), [200]);
    assert_eq!(codes(&r.udp(message("BYE", "a", &tag, 8, "", ""))), [500]);
    assert_eq!(codes(&r.udp(message("BYE", "a", &tag, 10, "", ""))), [200]);
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn the_same_invite_over_two_ways() {
    let mut r = Recorder::new(4, 4);
    let key = opened(&r.udp(invite("a"))).key;
    let other = invite("a").replace("z9hG4bKa", "z9hG4bKother");
    assert_eq!(codes(&r.udp(other)), [482]);
    assert_eq!(codes(&r.event(Event::Opened { key })), [200]);
}

#[test]
fn a_peer_of_rfc_2543() {
    let mut r = Recorder::new(4, 4);
    let old = |message: String| message.replace("z9hG4bK", "");
    let first = r.udp(old(invite("a")));
    let key = opened(&first).key;
    assert_eq!(sent(&r.udp(old(invite("a")))), sent(&first));
    assert_eq!(codes(&r.udp(old(cancel("a")))), [200, 487]);
    r.udp(old(ack_of_failure("a", "x")));
    assert_eq!(kinds(&r.pass(Duration::from_secs(5))), [""; 0]);
    r.event(Event::Opened { key });
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn files_that_cannot_be_opened() {
    for (errno, expected) in [(28, 503), (24, 503), (122, 503), (13, 500), (30, 500)] {
        let mut r = Recorder::new(2, 2);
        let key = opened(&r.udp(invite("a"))).key;
        let failure = Failure { what: "create directory", path: "2026/11".to_owned(), errno };
        let response = only(&r.event(Event::OpenFailed { key, failure }));
        assert_code(&response, expected);
        assert_eq!(field(&response, "Retry-After").is_some(), expected == 503);
        assert_eq!(r.refused(RefuseCause::OpenFailed), 1);
        r.assert_whole();
    }
}

#[test]
fn files_that_take_too_long() {
    let mut r = Recorder::new(2, 2);
    let key = opened(&r.udp(invite("a"))).key;
    assert_eq!(codes(&r.pass(crate::limits::OPEN_TIMEOUT)), [503]);
    assert_eq!(r.refused(RefuseCause::OpenTimeout), 1);
    // They come after all: the ports stay taken until the engine has let go of them.
    assert_eq!(r.ports(), (2, 2, 0));
    assert!(close(&r.event(Event::Opened { key })).manifest.is_none());
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn a_pool_that_is_empty() {
    let mut r = Recorder::new(3, 10);
    let keys: Vec<_> = ["a", "b"].map(|id| r.call(id)).into_iter().collect();
    // One pair is left on each reactor, and two are needed on one.
    let response = refuse(&mut r, invite("c"));
    assert_code(&response, 503);
    assert_eq!(field(&response, "Retry-After"), Some("10"));
    assert_eq!(r.refused(RefuseCause::NoPort), 1);
    assert_eq!(r.ports(), (2, 4, 0));
    let (key, tag) = &keys[0];
    r.udp(bye("a", tag, 2));
    r.event(Event::Closed { key: *key });
    assert_code(&refuse(&mut r, invite("d")), 503);
    r.pass(COOLDOWN);
    let out = r.udp(invite("e"));
    let later = opened(&out).key;
    assert_eq!(later.slot, key.slot);
    assert_ne!(later.generation, key.generation);
    // What is said about the former occupant does not touch the new one.
    assert_eq!(kinds(&r.event(Event::Closed { key: *key })), [""; 0]);
    let tag = to_tag(&sent(&r.event(Event::Opened { key: later }))[0]);
    r.udp(bye("e", &tag, 2));
    r.udp(bye("b", &keys[1].1, 2));
    r.event(Event::Closed { key: later });
    r.event(Event::Closed { key: keys[1].0 });
    r.assert_whole();
}

#[test]
fn slots_that_are_all_taken() {
    let mut r = Recorder::new(10, 1);
    let (key, tag) = r.call("a");
    assert_code(&refuse(&mut r, invite("b")), 503);
    assert_eq!(codes(&r.udp(message("OPTIONS", "o", "", 1, "", ""))), [503]);
    assert_eq!(r.refused(RefuseCause::NoSlot), 1);
    r.udp(bye("a", &tag, 2));
    r.event(Event::Closed { key });
    assert_eq!(codes(&r.udp(invite("c"))), [100]);
}

#[test]
fn transactions_that_are_all_taken() {
    let mut r = Recorder::new(10, 1);
    let (key, tag) = r.call("a");
    for number in 0..super::ending::transactions_max(1) {
        r.udp(message("OPTIONS", &format!("o{number}"), "", 1, "", ""));
    }
    assert!(r.counters.transactions_full.get() > 0);
    // A new call waits; a running one can end.
    assert_code(&refuse(&mut r, invite("b")), 503);
    assert_eq!(codes(&r.udp(bye("a", &tag, 2))), [200]);
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn mutants_do_no_harm() {
    let mut r = Recorder::new(50, 50);
    let mut rng = StdRng::seed_from_u64(3);
    let (key, tag) = r.call("a");
    let mut keys = vec![key];
    for number in 0..5_000 {
        let id = format!("m{number}");
        let mut bytes = match rng.random_range(0..5) {
            0 => reinvite("a", &tag, number + 2, OFFER),
            1 => message("OPTIONS", "a", &tag, number + 2, "", ""),
            2 => ack("a", &tag, number),
            _ => invite(&id),
        }
        .into_bytes();
        for _ in 0..rng.random_range(1..8) {
            let at = rng.random_range(0..bytes.len().max(1)).min(bytes.len());
            match rng.random_range(0..4) {
                0 if at < bytes.len() => bytes[at] = rng.random(),
                1 => drop(bytes.drain(at..(at + 20).min(bytes.len()))),
                2 => bytes.truncate(at + 1),
                _ => {
                    let noise: &[u8] = [&b"\r\n"[..], b";=", b"\"<", b"\0\xff"][rng.random_range(0..4)];
                    bytes.splice(at..at, noise.iter().copied());
                }
            }
        }
        let flow = [udp(), tcp()][rng.random_range(0..2)];
        let out = r.event(Event::Message { flow, bytes: Bytes::from(bytes), at: r.now.wall });
        for command in &out {
            match command {
                Command::Open(open) => keys.push(open.key),
                Command::Change(change) => drop(r.event(Event::Changed { key: change.key })),
                _ => {}
            }
        }
        if keys.len() > 20 {
            for key in keys.drain(1..) {
                r.event(Event::Opened { key });
            }
            r.pass(Duration::from_secs(33));
            for snapshot in r.table.iter().filter(|snapshot| snapshot.key != key).collect::<Vec<_>>() {
                r.event(Event::Closed { key: snapshot.key });
            }
        }
    }
    assert!(r.counters.total.get() > 100, "{}", r.counters.total.get());
    r.event(Event::Drain { grace: Duration::ZERO });
    for key in keys {
        r.event(Event::Opened { key });
        r.event(Event::Closed { key });
    }
    r.assert_whole();
}
