//! Who is let in, how often, and what a refusal costs.

use super::super::admission::Policy;
use super::super::digest::Credentials;
use super::*;
use crate::counters::RefuseCause;
use crate::limits::{RATE_BURST, REFUSALS_LOGGED, REFUSALS_LOGGED_WITHIN};
use md5::{Digest, Md5};

fn limited(policy: Policy) -> Recorder {
    Recorder::with(40, 40, |rules| rules.admission = policy)
}

fn from(ip: &str) -> Flow {
    Flow { peer: SocketAddr::new(ip.parse().unwrap(), 5070), ..udp() }
}

#[test]
fn a_source_that_asks_too_often_is_refused_without_a_transaction_and_others_are_not() {
    let mut r = limited(Policy { rate_of_source: Some(5), ..Policy::default() });
    let burst = 5 * RATE_BURST.as_secs() as usize;
    for n in 0..burst {
        assert_eq!(kinds(&r.receive(from("198.51.100.9"), invite(&format!("a{n}")))), ["Send", "Open"]);
    }
    let before = r.sessions.transactions.len();
    let out = r.receive(from("198.51.100.9"), invite("late"));
    let refusal = only(&out);
    assert!(refusal.starts_with("SIP/2.0 503 ") && field(&refusal, "Retry-After").is_some(), "{refusal}");
    assert_eq!(
        only(&r.receive(from("198.51.100.9"), invite("late"))),
        refusal,
        "the same again, tag and all"
    );
    assert_eq!(r.sessions.transactions.len(), before);
    r.receive(from("198.51.100.9"), ack_of_failure("late", "x"));
    assert_eq!(codes(&r.receive(from("198.51.100.9"), message("OPTIONS", "o", "", 1, "", ""))), [503]);
    assert_eq!((r.refused(RefuseCause::SourceRate), r.counters.rate_limited.get()), (2, 3));
    assert_eq!(kinds(&r.receive(from("198.51.100.8"), invite("b"))), ["Send", "Open"]);
    r.pass(Duration::from_secs(1));
    assert_eq!(codes(&r.receive(from("198.51.100.9"), message("OPTIONS", "p", "", 1, "", ""))), [200]);
}

#[test]
fn what_belongs_to_a_call_is_never_too_often() {
    let mut r = limited(Policy { rate: Some(1), rate_of_source: Some(1), ..Policy::default() });
    let (key, tag) = r.call("a");
    let open = r.udp(invite("b"));
    assert_eq!(kinds(&open), ["Send", "Open"]);
    assert_eq!(codes(&r.udp(invite("c"))), [503]);
    assert_eq!(codes(&r.udp(invite("b"))), [100], "repeated, so answered again");
    assert_eq!(codes(&r.udp(cancel("b"))), [200, 487]);
    assert_eq!(codes(&r.udp(cancel("nothing"))), [503]);
    for cseq in 2..20 {
        assert_eq!(codes(&r.udp(message("OPTIONS", "a", &tag, cseq, "", ""))), [200]);
    }
    assert_eq!(codes(&r.udp(bye("a", &tag, 20))), [200]);
    r.event(Event::Closed { key });
    let abandoned = opened(&open).key;
    r.event(Event::Opened { key: abandoned });
    r.event(Event::Closed { key: abandoned });
    r.assert_whole();
}

#[test]
fn garbage_counts_as_requests_do() {
    let mut r = limited(Policy { rate_of_source: Some(1), ..Policy::default() });
    let garbage = "INVITE sip:a@b SIP/2.0\r\nVia: SIP/2.0/UDP 198.51.100.1:5070;branch=z9hG4bKx\r\n\r\n";
    assert_eq!(codes(&r.udp(garbage)), [400]);
    assert_eq!(codes(&r.udp(garbage)), [400]);
    assert_eq!(kinds(&r.udp(garbage)), [""; 0]);
    assert_eq!((r.counters.rate_limited.get(), r.counters.bad_requests.get()), (1, 2));
}

#[test]
fn sessions_of_one_source() {
    let mut r = limited(Policy { sessions_of_source: 2, ..Policy::default() });
    let (key, tag) = r.call_over(from("198.51.100.9"), "a");
    r.call_over(from("198.51.100.9"), "b");
    let out = r.receive(from("198.51.100.9"), invite("c"));
    let refusal = only(&out);
    assert!(refusal.starts_with("SIP/2.0 486 ") && field(&refusal, "Retry-After").is_some(), "{refusal}");
    assert_eq!(r.refused(RefuseCause::SourceSessions), 1);
    r.call_over(from("198.51.100.8"), "d");
    r.receive(from("198.51.100.9"), bye("a", &tag, 2));
    r.event(Event::Closed { key });
    r.call_over(from("198.51.100.9"), "e");
}

#[test]
fn a_flood_of_refusals_is_some_lines_of_log() {
    let mut r = limited(Policy { rate_of_source: Some(1), ..Policy::default() });
    for n in 0..1_000 {
        r.udp(invite(&format!("a{n}")));
    }
    let lines = |notices: Vec<Notice>| {
        let refused = notices.iter().filter(|notice| matches!(notice, Notice::Refused { .. })).count();
        let more = notices.iter().find_map(|notice| match notice {
            Notice::MoreRefused { cause, more } => Some((*cause, *more)),
            _ => None,
        });
        (refused, more)
    };
    assert_eq!(lines(r.sessions.take_notices()), (REFUSALS_LOGGED as usize, None));
    r.pass(REFUSALS_LOGGED_WITHIN);
    let more = 998 - u64::from(REFUSALS_LOGGED);
    assert_eq!(lines(r.sessions.take_notices()), (0, Some(("rate_limit_source", more))));
}

fn md5(text: &str) -> String {
    Md5::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn guarded() -> Recorder {
    let users = format!("sbc:recorders:{}", md5("sbc:recorders:secret"));
    limited(Policy { credentials: Some(Credentials::parse(&users).unwrap()), ..Policy::default() })
}

/// The request with the answer to the challenge of this 401.
fn proved(request: &str, challenge: &str, password: &str, count: u32) -> String {
    let method = request.split(' ').next().unwrap();
    let nonce = field(challenge, "WWW-Authenticate").unwrap().split("nonce=\"").nth(1).unwrap();
    let nonce = nonce.split('"').next().unwrap();
    let (secret, done) = (md5(&format!("sbc:recorders:{password}")), md5(&format!("{method}:sip:srs@x")));
    let response = md5(&format!("{secret}:{nonce}:{count:08x}:c:auth:{done}"));
    let field = format!(
        "Authorization: Digest username=\"sbc\",realm=\"recorders\",nonce=\"{nonce}\",uri=\"sip:srs@x\",\
         response=\"{response}\",cnonce=\"c\",qop=auth,nc={count:08x}\r\n"
    );
    let request = request.replacen("Content-Length", &format!("{field}Content-Length"), 1);
    request.replacen(";branch=z9hG4bK", ";branch=z9hG4bKp", 1)
}

#[test]
fn a_request_without_a_password_is_asked_for_it_and_forgotten() {
    let mut r = guarded();
    let challenge = only(&r.udp(invite("a")));
    assert!(challenge.starts_with("SIP/2.0 401 "), "{challenge}");
    assert!(field(&challenge, "WWW-Authenticate").unwrap().starts_with("Digest realm=\"recorders\", nonce="));
    assert_eq!((r.sessions.transactions.len(), r.refused(RefuseCause::Unauthenticated)), (0, 0));
    assert!(r.sessions.take_notices().is_empty(), "asking is nothing to tell");
    r.udp(ack_of_failure("a", "x"));
    let wrong = only(&r.udp(proved(&invite("a"), &challenge, "other", 1)));
    assert!(wrong.starts_with("SIP/2.0 401 ") && !wrong.contains("stale"), "{wrong}");
    assert_eq!((r.refused(RefuseCause::Unauthenticated), r.counters.auth_failed.get()), (1, 1));
    assert_eq!(codes(&r.udp(message("OPTIONS", "o", "", 1, "", ""))), [200]);
    assert_eq!(codes(&r.udp(cancel("c"))), [481]);
    r.assert_whole();
}

#[test]
fn a_call_with_a_password() {
    let mut r = guarded();
    let challenge = only(&r.udp(invite("a")));
    let key = opened(&r.udp(proved(&invite("a"), &challenge, "secret", 1))).key;
    let tag = to_tag(&sent(&r.event(Event::Opened { key }))[0]);
    r.udp(ack("a", &tag, 1));
    let replayed = invite("b");
    let stale = only(&r.udp(proved(&replayed, &challenge, "secret", 1)));
    assert!(stale.starts_with("SIP/2.0 401 ") && stale.contains(", stale=true"), "{stale}");
    // In the dialog too, since who can end a recording decides what is in it.
    let out = r.udp(bye("a", &tag, 2));
    assert_eq!((kinds(&out), codes(&out)), (vec!["Signal", "Signal", "Send"], vec![401]));
    assert_eq!(codes(&r.udp(proved(&bye("a", &tag, 3), &challenge, "secret", 2))), [200]);
    r.event(Event::Closed { key });
    r.assert_whole();
}
