//! UPDATE (RFC 3311) and INFO.

use super::*;

const SDP: &str = "application/sdp";
const RS_METADATA: &str = "application/rs-metadata";

fn three() -> String {
    format!("{OFFER}m=audio 30000 RTP/AVP 8\na=sendonly\na=label:3\n")
}

fn retry_after(response: &str) -> u8 {
    field(response, "Retry-After").unwrap().parse().unwrap()
}

#[test]
fn bare_metadata() {
    let mut r = Recorder::new(4, 4);
    let (key, tag) = r.call("a");
    let renamed = METADATA.replace("Bob", "Robert");
    let out = r.udp(update("a", &tag, 2, RS_METADATA, &renamed));
    assert_eq!(kinds(&out), ["Signal", "File", "Signal", "Send"]);
    let ok = only(&out);
    assert!(ok.starts_with("SIP/2.0 200 OK\r\n"), "{ok}");
    assert_eq!(field(&ok, "Contact"), Some("<sip:sipreel@192.0.2.10:5060>;+sip.srs"));
    assert_eq!((field(&ok, "Content-Type"), body(&ok)), (None, ""));
    // No ACK is waited for; its copy gets the same answer and changes nothing.
    assert_eq!(kinds(&r.pass(Duration::from_secs(20))), [""; 0]);
    let again = r.udp(update("a", &tag, 2, RS_METADATA, &renamed));
    assert_eq!((kinds(&again), sent(&again)), (vec!["Signal", "Signal", "Send"], sent(&out)));
    let out = r.udp(bye("a", &tag, 3));
    assert_eq!(manifest(&out).participants[0].name.as_deref(), Some("Robert"));
    assert_eq!(manifest(&out).metadata.len(), 2);
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn nothing_but_a_new_target() {
    let mut r = Recorder::new(4, 4);
    let (_, tag) = r.call("a");
    let moved = update("a", &tag, 2, "", "")
        .replace("Contact: <sip:src@198.51.100.1:5070>", "m: <sip:new@198.51.100.9>");
    assert_eq!(codes(&r.udp(moved)), [200]);
    let out = r.event(Event::Drain { grace: Duration::ZERO });
    assert!(text(&sent(&out)[0]).starts_with("BYE sip:new@198.51.100.9 SIP/2.0\r\n"));
}

#[test]
fn an_offer_is_answered_in_the_200() {
    let mut r = Recorder::new(4, 4);
    let (key, tag) = r.call("a");
    let held = only(&r.udp(update("a", &tag, 2, SDP, &OFFER.replace("sendonly", "inactive"))));
    assert_eq!(body(&held).matches("a=inactive").count(), 2);
    assert_eq!(kinds(&r.pass(Duration::from_secs(40))), [""; 0], "no ACK is waited for");
    // A stream more: the answer waits for its port, without a 100 (RFC 4320 §4.1).
    let out = r.udp(update("a", &tag, 3, SDP, &three()));
    assert_eq!(kinds(&out), ["Signal", "Change"]);
    // A copy that comes meanwhile is absorbed.
    assert_eq!(kinds(&r.udp(update("a", &tag, 3, SDP, &three()))), ["Signal"]);
    let out = r.event(Event::Changed { key });
    assert_eq!(kinds(&out), ["Signal", "Send"]);
    assert_eq!(m_ports(body(&only(&out))), [20_000, 20_002, 20_004]);
    assert_eq!(sent(&r.udp(update("a", &tag, 3, SDP, &three()))), sent(&out));
    assert_eq!(kinds(&r.pass(Duration::from_secs(40))), [""; 0]);
    r.udp(bye("a", &tag, 4));
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn an_offer_before_the_ack_of_the_invite() {
    let mut r = Recorder::new(4, 4);
    let key = opened(&r.udp(invite("a"))).key;
    let tag = to_tag(&sent(&r.event(Event::Opened { key }))[0]);
    assert_eq!(codes(&r.udp(update("a", &tag, 2, SDP, OFFER))), [200]);
    // The 200 of the INVITE still waits for its own.
    assert_eq!(codes(&r.pass(Duration::from_millis(500))), [200]);
    r.udp(ack("a", &tag, 1));
    assert_eq!(kinds(&r.pass(Duration::from_secs(40))), [""; 0]);
}

#[test]
fn offers_that_are_refused_leave_the_session() {
    let mut r = Recorder::new(4, 4);
    let (key, tag) = r.call("a");
    let secure = OFFER.replace("RTP/AVP", "RTP/SAVP");
    let refused = only(&r.udp(update("a", &tag, 2, SDP, &secure)));
    assert!(refused.starts_with("SIP/2.0 488 "), "{refused}");
    assert!(field(&refused, "Warning").unwrap().starts_with("305 "));
    assert_eq!(codes(&r.udp(update("a", &tag, 3, "text/plain", "x"))), [415]);
    r.udp(update("a", &tag, 4, SDP, &three()));
    let failure = Failure { what: "open file", path: "x".to_owned(), errno: 28 };
    assert_eq!(codes(&r.event(Event::ChangeFailed { key, failure })), [503]);
    assert_eq!(r.counters.refused.iter().map(|cause| cause.get()).sum::<u64>(), 0, "the call goes on");
    r.udp(bye("a", &tag, 5));
    r.event(Event::Closed { key });
    r.assert_whole();
}

/// RFC 3311 §5.2.
#[test]
fn what_comes_while_an_offer_is_being_answered() {
    for first in ["INVITE", "UPDATE"] {
        let mut r = Recorder::new(4, 4);
        let (key, tag) = r.call("a");
        let request = if first == "INVITE" {
            reinvite("a", &tag, 2, &three())
        } else {
            update("a", &tag, 2, SDP, &three())
        };
        assert!(kinds(&r.udp(request)).contains(&"Change"));
        for later in [update("a", &tag, 3, SDP, OFFER), reinvite("a", &tag, 4, OFFER)] {
            let refused = only(&r.udp(later));
            assert!(refused.starts_with("SIP/2.0 500 "), "{first}: {refused}");
            assert!(retry_after(&refused) <= 10);
        }
        // Metadata passes an INVITE, but not another UPDATE.
        let bare = only(&r.udp(update("a", &tag, 5, RS_METADATA, METADATA)));
        let code = if first == "INVITE" { "200" } else { "500" };
        assert!(bare.starts_with(&format!("SIP/2.0 {code} ")), "{first}: {bare}");
        assert_eq!(codes(&r.event(Event::Changed { key })), [200]);
        assert_eq!(codes(&r.udp(update("a", &tag, 6, SDP, &three()))), [200]);
    }
}

#[test]
fn a_bye_while_its_streams_are_armed() {
    let mut r = Recorder::new(4, 4);
    let (key, tag) = r.call("a");
    r.udp(update("a", &tag, 2, SDP, &three()));
    let out = r.udp(bye("a", &tag, 3));
    assert_eq!(codes(&out), [487, 200]);
    assert_eq!(manifest(&out).streams.len(), 3);
    r.event(Event::Changed { key });
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn info() {
    let mut r = Recorder::new(4, 4);
    let (key, tag) = r.call("a");
    let info = |cseq: u32, lines: &str, body: &str| message("INFO", "a", &tag, cseq, lines, body);
    assert_eq!(codes(&r.udp(info(2, "", ""))), [200]);
    let dtmf = info(3, "Content-Type: application/dtmf-relay\n", "Signal=5\r\nDuration=160\r\n");
    let out = r.udp(dtmf);
    assert_eq!((kinds(&out), codes(&out)), (vec!["Signal", "Signal", "Send"], vec![200]));
    let fast_update = info(4, "Content-Type: application/media_control+xml\n", "<media_control/>");
    assert_eq!(codes(&r.udp(fast_update)), [200]);
    let out = r.udp(info(5, "Content-Type: application/rs-metadata+xml\n", METADATA));
    assert_eq!(kinds(&out), ["Signal", "File", "Signal", "Send"]);
    let refused = only(&r.udp(info(6, "Info-Package: conference\n", "")));
    assert!(refused.starts_with("SIP/2.0 469 Bad Info Package\r\n"), "{refused}");
    assert_eq!(field(&refused, "Recv-Info"), Some(""));
    assert_eq!(codes(&r.udp(info(7, "Content-Type: multipart/mixed\n", "x"))), [400]);
    let out = r.udp(bye("a", &tag, 8));
    assert_eq!(manifest(&out).metadata.len(), 2);
    r.event(Event::Closed { key });
    r.assert_whole();
}
