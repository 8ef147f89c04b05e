//! Offers of ours: INVITEs and re-INVITEs that make none (RFC 3264 §5, RFC 3725).

use super::*;

const NEAR_END: &str =
    "From: \"x-nearend\" <sip:1001@cucm.example.com;x-nearend;x-refci=27298698>;tag=35e195d2";

fn recorder() -> Recorder {
    let mut r = Recorder::new(4, 4);
    r.sessions.rules.terms.empty_invite = true;
    r
}

/// A phone's fork: no body, and nothing that says SIPREC.
fn fork() -> String {
    let lines = "Contact: <sip:1001@198.51.100.1:5070;transport=tcp>\nAllow: INVITE, ACK, BYE, CANCEL\n";
    invite_with("a", lines, "").replacen("From: <sip:src@example.com>;tag=35e195d2", NEAR_END, 1)
}

fn answered(tag: &str, cseq: u32, sdp: &str) -> String {
    message("ACK", "a", tag, cseq, "Content-Type: application/sdp\n", &crlf(sdp)).replacen(
        "From: <sip:src@example.com>;tag=35e195d2",
        NEAR_END,
        1,
    )
}

const ANSWER: &str = "v=0
o=phone 7 1 IN IP4 198.51.100.1
s=-
c=IN IP4 198.51.100.1
t=0 0
m=audio 24000 RTP/AVP 18
a=rtpmap:18 G729/8000
a=sendonly
";

#[test]
fn an_empty_invite_is_refused_unless_it_is_wanted() {
    let mut r = Recorder::new(4, 4);
    assert_eq!(codes(&r.udp(fork())), [403]);
    r.udp(ack_of_failure("a", "x"));
    assert_eq!(codes(&r.udp(invite_with("b", SRC, ""))), [488]);
    r.udp(ack_of_failure("b", "x"));
    r.assert_whole();
    let mut r = recorder();
    // What has an offer is no such INVITE.
    let lines = "Contact: <sip:1001@198.51.100.1>\nContent-Type: application/sdp\n";
    assert_eq!(codes(&r.udp(invite_with("c", lines, &crlf(OFFER)))), [403]);
}

#[test]
fn a_fork_is_offered_what_is_recorded() {
    let mut r = recorder();
    let out = r.udp(fork());
    assert_eq!(opened(&out).streams.len(), 1);
    let codecs = |stream: &OpenStream| stream.codecs.iter().map(|c| c.payload_type).collect::<Vec<_>>();
    assert_eq!(codecs(&opened(&out).streams[0]), [0, 8, 9, 18, 101]);
    let key = opened(&out).key;
    let ok = only(&r.event(Event::Opened { key }));
    assert!(body(&ok).contains("m=audio 20000 RTP/AVP 0 8 9 18 101\r\n"), "{ok}");
    assert!(body(&ok).ends_with("a=recvonly\r\n"), "{ok}");
    let tag = to_tag(&ok.into());
    // Until the answer is here, nobody else may offer.
    let from = |message: String| message.replacen("From: <sip:src@example.com>;tag=35e195d2", NEAR_END, 1);
    assert_eq!(codes(&r.udp(from(update("a", &tag, 2, "application/sdp", ANSWER)))), [491]);
    assert_eq!(kinds(&r.udp(answered(&tag, 1, ANSWER))), ["Signal"]);
    assert_eq!(kinds(&r.pass(Duration::from_secs(40))), [""; 0]);
    let out = r.udp(from(bye("a", &tag, 3)));
    assert_eq!(manifest(&out).streams[0].codec.as_deref(), Some("G729"));
    assert_eq!((manifest(&out).end_cause.as_deref(), r.counters.answers_missing.get()), (Some("bye"), 0));
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn a_fork_whose_answer_is_missing_or_wrong() {
    for sdp in ["", "nonsense", &ANSWER.replace("24000", "0"), &format!("{ANSWER}m=audio 24002 RTP/AVP 0\n")]
    {
        let mut r = recorder();
        let key = opened(&r.udp(fork())).key;
        let tag = to_tag(&sent(&r.event(Event::Opened { key }))[0]);
        let out = r.udp(answered(&tag, 1, sdp));
        assert!(text(&sent(&out)[0]).starts_with("BYE "), "{sdp:?}");
        assert_eq!(manifest(&out).end_cause.as_deref(), Some("no_answer"), "{sdp:?}");
        assert_eq!(r.counters.answers_missing.get(), 1);
        r.event(Event::Closed { key });
        r.assert_whole();
    }
}

#[test]
fn in_raw_format_one_codec_is_offered() {
    let mut r = Recorder::with_format(4, 4, Format::Raw);
    r.sessions.rules.terms.empty_invite = true;
    let key = opened(&r.udp(fork())).key;
    let ok = only(&r.event(Event::Opened { key }));
    assert!(body(&ok).contains("m=audio 20000 RTP/AVP 0 101\r\n"), "{ok}");
}

#[test]
fn a_reinvite_without_an_offer_ends_a_hold() {
    let mut r = Recorder::new(4, 4);
    let (key, tag) = r.call("a");
    r.udp(reinvite("a", &tag, 2, &OFFER.replace("sendonly", "inactive")));
    r.udp(ack("a", &tag, 2));
    let ok = only(&r.udp(message("INVITE", "a", &tag, 3, SRC, "")));
    assert_eq!(body(&ok).matches("a=recvonly").count(), 2, "{ok}");
    assert!(body(&ok).starts_with("v=0\r\no=- "), "{ok}");
    assert_eq!(body(&ok).split(' ').nth(2), Some("3"), "the version after that of the hold");
    let more = OFFER.replace("label:2", "label:7");
    let lines = "Content-Type: application/sdp\n";
    r.udp(message("ACK", "a", &tag, 3, lines, &crlf(&more)));
    // Without an answer, as updates of the metadata come, nothing ends.
    assert_eq!(body(&only(&r.udp(message("INVITE", "a", &tag, 4, SRC, "")))), body(&ok));
    r.udp(ack("a", &tag, 4));
    assert_eq!(r.counters.answers_missing.get(), 1);
    assert_eq!(kinds(&r.pass(Duration::from_secs(40))), [""; 0]);
    r.udp(bye("a", &tag, 5));
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn a_bye_before_our_200() {
    let mut r = recorder();
    let key = opened(&r.udp(invite("a"))).key;
    // There is no dialog yet that it could end (RFC 3261 §15.1.2).
    assert_eq!(codes(&r.udp(message("BYE", "a", "", 2, "", ""))), [481]);
    assert_eq!(codes(&r.event(Event::Opened { key })), [200]);
    // The SRC knows nothing of the 200, so no ACK comes, and the session ends.
    let out = r.pass(Duration::from_secs(32));
    assert_eq!(manifest(&out).end_cause.as_deref(), Some("ack_timeout"));
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn two_byes_that_cross() {
    let mut r = Recorder::new(4, 4);
    let (key, tag) = r.call("a");
    let out = r.event(Event::Drain { grace: Duration::ZERO });
    assert!(sent(&out)[0].starts_with(b"BYE "));
    // Ours is on its way; theirs ends nothing more, and is answered.
    assert_eq!(codes(&r.udp(bye("a", &tag, 2))), [481]);
    r.event(Event::Closed { key });
    r.assert_whole();
}

/// Two branches of one fork reach us: each would be a recording of the same call.
#[test]
fn a_fork_that_comes_together_again() {
    let mut r = Recorder::new(4, 4);
    let key = opened(&r.udp(invite("a"))).key;
    let other = |cseq: u32| {
        invite("a").replace("z9hG4bKa", "z9hG4bKother").replace("CSeq: 1 ", &format!("CSeq: {cseq} "))
    };
    assert_eq!(codes(&r.udp(other(1))), [482]);
    assert_eq!(codes(&r.event(Event::Opened { key })), [200]);
    // Another From tag is another call.
    let key = opened(&r.udp(other(1).replace("35e195d2", "elsewhere").replace("other", "third"))).key;
    assert_eq!(codes(&r.event(Event::Opened { key })), [200]);
}
