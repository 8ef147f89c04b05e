//! Session timers (RFC 4028).

use super::*;
use crate::counters::RefuseCause;
use crate::proto::manifest::EventKind;

const SECOND: Duration = Duration::from_secs(1);

/// An SRC that knows of timers, and these lines.
fn timer_invite(lines: &str) -> String {
    let lines = format!("{SRC}Supported: timer\n{lines}Content-Type: {MULTIPART}\n");
    invite_with("a", &lines, &multipart(OFFER, METADATA))
}

/// The 200 to this INVITE, acknowledged.
fn establish(r: &mut Recorder, invite: String) -> (RecordingKey, String, String) {
    let key = opened(&r.udp(invite)).key;
    let ok = only(&r.event(Event::Opened { key }));
    let tag = to_tag(&ok.clone().into());
    r.udp(ack("a", &tag, 1));
    (key, tag, ok)
}

fn timer_of(ok: &str) -> (Option<&str>, Option<&str>) {
    (field(ok, "Session-Expires"), field(ok, "Require"))
}

/// A response to the request, from the SRC.
fn response(request: &str, status: &str, lines: &str, body: &str) -> String {
    let copied: Vec<_> = ["Via", "From", "To", "Call-ID", "CSeq"]
        .iter()
        .map(|name| format!("{name}: {}\r\n", field(request, name).unwrap()))
        .collect();
    let (lines, length) = (crlf(lines), body.len());
    format!("SIP/2.0 {status}\r\n{}{lines}Content-Length: {length}\r\n\r\n{body}", copied.concat())
}

fn first(out: &[Command]) -> String {
    text(&sent(out)[0]).to_owned()
}

#[test]
fn who_refreshes() {
    let terms = Terms::default();
    // What the SRC says, and what the 200 says.
    for (lines, expires, require) in [
        ("Supported: timer\nSession-Expires: 1800\n", Some("1800;refresher=uac"), Some("timer")),
        ("Supported: timer\nx: 90;refresher=uas\n", Some("90;refresher=uas"), Some("timer")),
        ("Require: timer\nSession-Expires: 1800;refresher=uac\n", Some("1800;refresher=uac"), Some("timer")),
        // A proxy has asked: its SRC does not know of timers.
        ("Session-Expires: 1800;refresher=uac\n", Some("1800;refresher=uas"), None),
        ("Session-Expires: 30\n", None, None),
        // Nobody has asked.
        ("Supported: timer\n", Some("1800;refresher=uas"), Some("timer")),
        ("Supported: timer\nMin-SE: 3600\n", Some("3600;refresher=uas"), Some("timer")),
        ("Supported: timer\nMin-SE: 35\n", Some("1800;refresher=uas"), Some("timer")),
        ("", None, None),
        ("Supported: timer\nSession-Expires: soon\n", Some("1800;refresher=uas"), Some("timer")),
    ] {
        let mut r = Recorder::new(4, 4);
        let invite = timer_invite(lines).replacen("Supported: timer\r\n", "", 1);
        let (_, _, ok) = establish(&mut r, invite);
        assert_eq!(timer_of(&ok), (expires, require), "{lines}");
    }
    assert_eq!(terms.min_se, 90 * SECOND);
    let mut r = Recorder::new(4, 4);
    r.sessions.rules.terms.session_expires = None;
    let (_, _, ok) = establish(&mut r, timer_invite(""));
    assert_eq!(timer_of(&ok), (None, None));
}

#[test]
fn an_interval_that_is_too_small() {
    let mut r = Recorder::new(4, 4);
    r.sessions.rules.terms.min_se = 600 * SECOND;
    let refused = only(&r.udp(timer_invite("Session-Expires: 599\nMin-SE: 90\n")));
    assert!(refused.starts_with("SIP/2.0 422 Session Interval Too Small\r\n"), "{refused}");
    assert_eq!(field(&refused, "Min-SE"), Some("600"));
    assert_eq!(r.refused(RefuseCause::Interval), 1);
    r.udp(ack_of_failure("a", "x"));
    r.assert_whole();

    let mut r = Recorder::new(4, 4);
    r.sessions.rules.terms.min_se = 600 * SECOND;
    let (_, tag, _) = establish(&mut r, timer_invite("Session-Expires: 600\n"));
    let short = update("a", &tag, 2, "", "").replace("Content-Length", "k: timer\r\nx: 90\r\nContent-Length");
    let refused = only(&r.udp(short));
    assert_eq!(field(&refused, "Min-SE"), Some("600"), "{refused}");
    assert_eq!(r.counters.active.get(), 1);
}

#[test]
fn an_src_that_does_not_refresh() {
    let mut r = Recorder::new(4, 4);
    let (key, tag, _) = establish(&mut r, timer_invite("Session-Expires: 90;refresher=uac\n"));
    // A third of 90 s before its time.
    assert_eq!(kinds(&r.pass(59 * SECOND)), [""; 0]);
    // Each refresh begins it anew; what is refused does not.
    let lines = "Supported: timer\nSession-Expires: 120;refresher=uac\n";
    let refresh = message("UPDATE", "a", &tag, 2, lines, "");
    let ok = only(&r.udp(refresh));
    assert_eq!(timer_of(&ok), (Some("120;refresher=uac"), Some("timer")));
    assert_eq!(kinds(&r.pass(87 * SECOND)), [""; 0]);
    r.udp(reinvite("a", &tag, 3, "nonsense"));
    let out = r.pass(2 * SECOND);
    assert!(first(&out).starts_with("BYE ") || sent(&out)[1].starts_with(b"BYE "), "{out:?}");
    assert_eq!(manifest(&out).end_cause.as_deref(), Some("session_expired"));
    let refreshed = |event: &&crate::proto::manifest::Event| event.kind == EventKind::Refreshed;
    assert_eq!(manifest(&out).events.iter().filter(refreshed).count(), 1);
    assert_eq!(r.counters.sessions_expired.get(), 1);
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn a_timer_goes_on_when_a_request_says_nothing_of_it() {
    let mut r = Recorder::new(4, 4);
    let (_, tag, _) = establish(&mut r, timer_invite("Session-Expires: 90;refresher=uac\n"));
    let ok = only(&r.udp(update("a", &tag, 2, "", "")));
    assert_eq!(timer_of(&ok), (Some("90;refresher=uas"), None), "it no longer says that it knows of timers");
    let lines = format!("{SRC}Supported: timer\nContent-Type: application/sdp\n");
    let ok = only(&r.udp(message("INVITE", "a", &tag, 3, &lines, &crlf(OFFER))));
    assert_eq!(timer_of(&ok), (Some("90;refresher=uas"), Some("timer")));
}

#[test]
fn we_refresh_with_an_update() {
    let mut r = Recorder::new(4, 4);
    let (key, tag, _) = establish(&mut r, timer_invite("Session-Expires: 1800;refresher=uas\n"));
    assert_eq!(kinds(&r.pass(899 * SECOND)), [""; 0]);
    let out = r.pass(SECOND);
    assert_eq!(kinds(&out), ["Signal", "Send"]);
    let refresh = first(&out);
    assert!(refresh.starts_with("UPDATE sip:src@198.51.100.1:5070 SIP/2.0\r\n"), "{refresh}");
    assert_eq!(field(&refresh, "Session-Expires"), Some("1800;refresher=uac"));
    assert_eq!((field(&refresh, "Supported"), body(&refresh)), (Some("timer"), ""));
    assert!(field(&refresh, "Contact").unwrap().ends_with(";+sip.srs"));
    assert_eq!(field(&refresh, "To"), Some("<sip:src@example.com>;tag=35e195d2"));
    assert!(field(&refresh, "From").unwrap().ends_with(&tag));
    // It is lost, repeated, and answered.
    assert_eq!(sent(&r.pass(SECOND / 2)), sent(&out));
    let ok = response(&refresh, "200 OK", "Session-Expires: 1800;refresher=uac\nRequire: timer\n", "");
    assert_eq!(kinds(&r.udp(ok.clone())), ["Signal"]);
    assert_eq!(kinds(&r.udp(ok)), ["Signal"], "a copy of it");
    // Again after half of the interval, with the next CSeq; and the SRC takes it over.
    assert_eq!(kinds(&r.pass(899 * SECOND)), [""; 0]);
    let second = first(&r.pass(SECOND));
    assert_eq!((field(&refresh, "CSeq"), field(&second, "CSeq")), (Some("1 UPDATE"), Some("2 UPDATE")));
    r.udp(response(&second, "200 OK", "Session-Expires: 600;refresher=uas\n", ""));
    let out = r.pass(600 * SECOND);
    assert_eq!(manifest(&out).end_cause.as_deref(), Some("session_expired"));
    assert_eq!((r.counters.refreshes_sent.get(), r.counters.refreshes_failed.get()), (2, 0));
    r.event(Event::Closed { key });
    r.assert_whole();
}

/// It leaves our UPDATE unanswered, but its own re-INVITE meanwhile shows that it is there: the recording goes on.
#[test]
fn an_src_that_does_not_answer_and_is_not_gone() {
    let mut r = Recorder::new(4, 4);
    let (_, tag, _) = establish(&mut r, timer_invite(""));
    let refresh = first(&r.pass(900 * SECOND));
    assert!(refresh.starts_with("UPDATE "), "{refresh}");
    r.pass(10 * SECOND);
    let again =
        reinvite("a", &tag, 2, OFFER).replace("Require: siprec", "Require: siprec\r\nSupported: timer");
    assert_eq!(codes(&r.udp(again)), [200]);
    r.udp(ack("a", &tag, 2));
    let out = r.pass(100 * SECOND);
    assert!(sent(&out).iter().all(|bytes| bytes.starts_with(b"UPDATE ")), "{out:?}");
    assert_eq!((r.counters.active.get(), r.counters.refreshes_failed.get()), (1, 1));
    // The next refresh is due as agreed then, and now nobody is there.
    assert_eq!(manifest(&r.pass(900 * SECOND)).end_cause.as_deref(), Some("refresh_failed"));
}

#[test]
fn an_src_that_is_gone() {
    for status in [None, Some("481 Gone"), Some("408 Late")] {
        let mut r = Recorder::new(4, 4);
        let (key, _, _) = establish(&mut r, timer_invite(""));
        let refresh = first(&r.pass(900 * SECOND));
        let out = match status {
            Some(status) => r.udp(response(&refresh, status, "", "")),
            None => r.pass(32 * SECOND),
        };
        assert_eq!(manifest(&out).end_cause.as_deref(), Some("refresh_failed"), "{status:?}");
        assert_eq!(&*manifest(&out).errors.by_code[0].code, "refresh_failed", "{status:?}");
        assert!(sent(&out).last().unwrap().starts_with(b"BYE "), "{status:?}");
        assert_eq!(r.counters.refreshes_failed.get(), 1);
        r.event(Event::Closed { key });
        r.assert_whole();
    }
}

#[test]
fn refreshes_that_are_refused_for_now() {
    let mut r = Recorder::new(4, 4);
    establish(&mut r, timer_invite("Session-Expires: 600;refresher=uas\n"));
    let refresh = first(&r.pass(300 * SECOND));
    // The two sides' requests have met: at most two seconds later.
    assert_eq!(kinds(&r.udp(response(&refresh, "491 Request Pending", "", ""))), ["Signal"]);
    let refresh = first(&r.pass(2 * SECOND));
    r.udp(response(&refresh, "500 Busy", "Retry-After: 7 (soon);duration=3\n", ""));
    assert_eq!(kinds(&r.pass(6 * SECOND)), [""; 0]);
    let refresh = first(&r.pass(SECOND));
    // Too short for the SRC.
    let longer = first(&{
        let mut out = r.udp(response(&refresh, "422 Small", "Min-SE: 900\n", ""));
        out.extend(r.pass(SECOND / 10));
        out
    });
    assert_eq!(field(&longer, "Session-Expires"), Some("900;refresher=uac"));
    r.udp(response(&longer, "200 OK", "Session-Expires: 900;refresher=uac\n", ""));
    assert_eq!(kinds(&r.pass(449 * SECOND)), [""; 0]);
    assert_eq!(codeless(&r.pass(SECOND)), ["UPDATE"]);
}

/// The methods of what was sent.
fn codeless(out: &[Command]) -> Vec<String> {
    sent(out).iter().map(|bytes| text(bytes).split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn an_src_without_update_is_refreshed_by_a_reinvite() {
    for lines in ["Allow: INVITE, ACK, BYE\nAllow: CANCEL\n", "Allow: INVITE, UPDATE\n"] {
        let mut r = Recorder::new(4, 4);
        let lines = format!("{lines}Session-Expires: 90;refresher=uas\n");
        let (key, tag, ok) = establish(&mut r, timer_invite(&lines));
        let mut out = r.pass(45 * SECOND);
        if lines.contains("UPDATE") {
            out = r.udp(response(&first(&out), "405 Method Not Allowed", "Allow: INVITE\n", ""));
            out.extend(r.pass(SECOND / 10));
        }
        let refresh = first(&out);
        assert!(refresh.starts_with("INVITE sip:src@198.51.100.1:5070 SIP/2.0\r\n"), "{refresh}");
        assert_eq!(body(&refresh), body(&ok), "the answer of before, with its version");
        // What comes meanwhile from the other side has to wait.
        assert_eq!(codes(&r.udp(reinvite("a", &tag, 2, OFFER))), [491]);
        r.udp(super::ack("a", &tag, 2).replace("ACK1002", "INVITE2"));
        assert_eq!(codes(&r.udp(update("a", &tag, 3, "application/sdp", OFFER))), [491]);
        assert_eq!(codes(&r.udp(update("a", &tag, 4, "application/rs-metadata", METADATA))), [200]);
        let lines = "Contact: <sip:new@198.51.100.1:5071>\nSession-Expires: 90;refresher=uac\n\
                     Content-Type: application/sdp\n";
        let accepted = response(&refresh, "200 OK", lines, &crlf(OFFER));
        let out = r.udp(accepted.clone());
        assert_eq!(kinds(&out), ["Signal", "Signal", "Send"]);
        let ack = first(&out);
        assert!(ack.starts_with("ACK sip:new@198.51.100.1:5071 SIP/2.0\r\n"), "{ack}");
        let number = field(&refresh, "CSeq").unwrap().split(' ').next().unwrap();
        assert_eq!(field(&ack, "CSeq"), Some(&*format!("{number} ACK")));
        assert_ne!(field(&ack, "Via"), field(&refresh, "Via"), "a transaction of its own");
        assert_eq!(sent(&r.udp(accepted)), [Bytes::from(ack)], "its copy is acknowledged again");
        assert_eq!(codes(&r.udp(reinvite("a", &tag, 5, OFFER))), [200]);
        r.udp(super::ack("a", &tag, 5));
        assert_eq!(codeless(&r.pass(45 * SECOND)), ["INVITE"]);
        r.udp(bye("a", &tag, 6));
        r.event(Event::Closed { key });
        r.assert_whole();
    }
}

/// The answer to our re-INVITE holds the streams: no media is to be expected until it is said otherwise.
#[test]
fn a_reinvite_of_ours_that_is_answered_with_a_hold() {
    let mut r = Recorder::new(4, 4);
    r.sessions.rules.ends.media_timeout = Some(60 * SECOND);
    establish(&mut r, timer_invite("Allow: INVITE\nSession-Expires: 90;refresher=uas\n"));
    let answer = |request: &str, sdp: &str| {
        let lines = "Session-Expires: 90;refresher=uac\nContent-Type: application/sdp\n";
        response(request, "200 OK", lines, &crlf(sdp))
    };
    let refresh = first(&r.pass(45 * SECOND));
    r.udp(answer(&refresh, &OFFER.replace("sendonly", "inactive")));
    assert_eq!(r.counters.paused.get(), 1);
    let refresh = first(&r.pass(45 * SECOND));
    assert!(refresh.starts_with("INVITE "), "{refresh}");
    r.udp(answer(&refresh, OFFER));
    assert_eq!((r.counters.paused.get(), r.counters.active.get()), (0, 1));
}

/// RFC 3311 §5.1: as that of a re-INVITE.
#[test]
fn the_2xx_to_our_update_moves_the_target() {
    let mut r = Recorder::new(4, 4);
    establish(&mut r, timer_invite(""));
    let refresh = first(&r.pass(900 * SECOND));
    let lines = "Contact: <sip:new@198.51.100.1:5071>\nSession-Expires: 1800;refresher=uac\n";
    r.udp(response(&refresh, "200 OK", lines, ""));
    let next = first(&r.pass(900 * SECOND));
    assert!(next.starts_with("UPDATE sip:new@198.51.100.1:5071 SIP/2.0\r\n"), "{next}");
}

#[test]
fn a_reinvite_of_ours_that_is_refused() {
    let mut r = Recorder::new(4, 4);
    let lines = "Allow: INVITE\nSession-Expires: 90;refresher=uas\n";
    let (key, _, _) = establish(&mut r, timer_invite(lines));
    let refresh = first(&r.pass(45 * SECOND));
    let out = r.udp(response(&refresh, "488 No", "", ""));
    let ack = first(&out);
    assert_eq!(field(&ack, "Via"), field(&refresh, "Via"), "the ACK of a failure is part of its transaction");
    assert!(ack.starts_with("ACK sip:src@198.51.100.1:5070 SIP/2.0\r\n"), "{ack}");
    // The SRC is there, so nothing ends before its time; and then it does.
    assert_eq!(kinds(&r.pass(14 * SECOND)), [""; 0]);
    let out = r.pass(2 * SECOND);
    assert_eq!(manifest(&out).end_cause.as_deref(), Some("session_expired"));
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn a_refresh_over_a_connection_that_is_gone() {
    let mut r = Recorder::new(4, 4);
    let key = opened(&r.receive(tcp(), timer_invite(""))).key;
    let tag = to_tag(&sent(&r.event(Event::Opened { key }))[0]);
    r.receive(tcp(), ack("a", &tag, 1));
    r.event(Event::Disconnected { reactor: 1, connection: tcp().connection.unwrap() });
    assert_eq!(kinds(&r.pass(910 * SECOND)), [""; 0]);
    // The SRC comes over another one: the refresh goes there.
    let other = Flow { connection: Some(ConnectionKey { slot: 4, generation: 1 }), ..tcp() };
    r.receive(other, message("OPTIONS", "a", &tag, 2, "", ""));
    let out = r.pass(2 * SECOND);
    assert_eq!(codeless(&out), ["UPDATE"]);
    let Some(Command::Send { flow, .. }) = out.last() else { panic!("{out:?}") };
    assert_eq!(*flow, other);
}
