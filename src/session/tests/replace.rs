//! A recording session that takes the place of another.

use super::*;
use crate::counters::RefuseCause;
use crate::limits::{CONTINUED_WITHIN, TRANSACTION_TIMEOUT};

const SESSION: &str = "hVpd7YQgRW2nD22h7q60JQ==";

fn replacing(call_id: &str, replaces: &str) -> String {
    let lines = format!("{SRC}Replaces: {replaces}\nContent-Type: {MULTIPART}\n");
    invite_with(call_id, &lines, &multipart(OFFER, METADATA))
}

/// An INVITE with the metadata of another communication session.
fn of_session(call_id: &str, session: &str) -> String {
    let body = multipart(OFFER, &METADATA.replace(SESSION, session));
    invite_with(call_id, &format!("{SRC}Content-Type: {MULTIPART}\n"), &body)
}

fn established(r: &mut Recorder, invite: String, call_id: &str) -> (RecordingKey, String) {
    let key = opened(&r.udp(invite)).key;
    let tag = to_tag(&sent(&r.event(Event::Opened { key }))[0]);
    r.udp(ack(call_id, &tag, 1));
    (key, tag)
}

/// The `continues` of a recording that its SRC ends now.
fn continues(r: &mut Recorder, call_id: &str, tag: &str, key: RecordingKey) -> Option<String> {
    let out = r.udp(bye(call_id, tag, 50));
    let continues = manifest(&out).continues.clone();
    r.event(Event::Closed { key });
    continues
}

#[test]
fn the_new_one_is_established_then_the_old_one_ends() {
    let mut r = Recorder::new(8, 8);
    let (old, old_tag) = r.call("a");
    let old_id = r.table.find(old).unwrap().id.to_string();
    let out = r.udp(replacing("b", &format!("a;to-tag={old_tag};from-tag=35e195d2")));
    assert_eq!(kinds(&out), ["Send", "Open"], "the old one goes on until there is a new one");
    let new = opened(&out).key;
    let out = r.event(Event::Opened { key: new });
    let messages = sent(&out);
    assert_eq!(code(&messages[0]), 200);
    assert!(text(&messages[1]).starts_with("BYE ") && text(&messages[1]).contains("\r\nCall-ID: a\r\n"));
    assert_eq!((close(&out).key, manifest(&out).end_cause.as_deref()), (old, Some("replaced")));
    r.event(Event::Closed { key: old });
    let tag = to_tag(&messages[0]);
    r.udp(ack("b", &tag, 1));
    assert_eq!(continues(&mut r, "b", &tag, new), Some(old_id));
    r.pass(TRANSACTION_TIMEOUT);
    r.assert_whole();
}

#[test]
fn when_the_new_one_fails_the_old_one_goes_on() {
    let mut r = Recorder::new(8, 8);
    let (old, tag) = r.call("a");
    let key = opened(&r.udp(replacing("b", &format!("a;to-tag={tag};from-tag=35e195d2")))).key;
    let failure = Failure { what: "open file", path: "x".into(), errno: 5 };
    assert_eq!(codes(&r.event(Event::OpenFailed { key, failure })), [500]);
    assert_eq!(codes(&r.udp(message("OPTIONS", "a", &tag, 2, "", ""))), [200]);
    assert_eq!(codes(&r.udp(bye("a", &tag, 3))), [200]);
    r.event(Event::Closed { key: old });
    r.assert_whole();
}

#[test]
fn what_cannot_be_replaced() {
    let mut r = Recorder::new(20, 20);
    let (key, tag) = r.call("a");
    let dialog = format!("a;to-tag={tag};from-tag=35e195d2");
    let mut number = 0;
    let mut code_for = |r: &mut Recorder, replaces: &str| {
        number += 1;
        codes(&r.udp(replacing(&format!("n{number}"), replaces)))
    };
    assert_eq!(code_for(&mut r, &format!("a;to-tag={tag};from-tag=other")), [481]);
    assert_eq!(code_for(&mut r, &format!("b;to-tag={tag};from-tag=35e195d2")), [481]);
    assert_eq!(code_for(&mut r, "a;to-tag=0123456789abcdef;from-tag=35e195d2"), [481]);
    assert_eq!(code_for(&mut r, "a;to-tag=é;from-tag=35e195d2"), [481]);
    assert_eq!(code_for(&mut r, &format!("{dialog};early-only")), [486]);
    assert_eq!(code_for(&mut r, "a"), [400]);
    assert_eq!(code_for(&mut r, &format!("{dialog}\nReplaces: {dialog}")), [400]);
    r.udp(bye("a", &tag, 2));
    assert_eq!(code_for(&mut r, &dialog), [603]);
    r.event(Event::Closed { key });
    assert_eq!(code_for(&mut r, &dialog), [481]);
    assert_eq!(r.refused(RefuseCause::Replaces), 9);
    assert_eq!(r.counters.active.get(), 0);
}

#[test]
fn an_early_dialog_is_not_replaced() {
    let mut r = Recorder::new(8, 8);
    let key = opened(&r.udp(invite("a"))).key;
    let tag = r.sessions.slots.get(key).unwrap().dialog.local_tag.clone();
    assert_eq!(codes(&r.udp(replacing("b", &format!("a;to-tag={tag};from-tag=35e195d2;early-only")))), [481]);
}

/// No Replaces: the SRC has lost its recording session, and only the metadata tells.
#[test]
fn the_same_communication_session_again() {
    let mut r = Recorder::new(20, 20);
    let (first, first_tag) = established(&mut r, of_session("a", "cs1"), "a");
    let first_id = r.table.find(first).unwrap().id.to_string();
    let (second, second_tag) = established(&mut r, of_session("b", "cs1"), "b");
    let second_id = r.table.find(second).unwrap().id.to_string();
    // The first one goes on beside it, and continues nobody.
    assert_eq!(codes(&r.udp(message("INFO", "a", &first_tag, 2, "", ""))), [200]);
    let (third, third_tag) = established(&mut r, of_session("c", "cs2"), "c");
    assert_eq!(continues(&mut r, "c", &third_tag, third), None);
    assert_eq!(continues(&mut r, "b", &second_tag, second), Some(first_id), "the first is still there");
    assert_eq!(continues(&mut r, "a", &first_tag, first), None, "continued by {second_id}");
    let (fourth, fourth_tag) = established(&mut r, of_session("d", "cs1"), "d");
    assert_eq!(continues(&mut r, "d", &fourth_tag, fourth), None, "{second_id} was ended by its SRC");
}

#[test]
fn a_session_that_was_lost_is_continued_within_some_time() {
    for (wait, continued) in [(Duration::from_secs(60), true), (CONTINUED_WITHIN, false)] {
        let mut r = Recorder::new(8, 8);
        let key = opened(&r.udp(of_session("a", "cs"))).key;
        let id = r.table.find(key).unwrap().id.to_string();
        r.event(Event::Opened { key });
        // No ACK comes: we hang up.
        let out = r.pass(TRANSACTION_TIMEOUT);
        assert_eq!(manifest(&out).end_cause.as_deref(), Some("ack_timeout"));
        r.event(Event::Closed { key });
        r.pass(wait + Duration::from_secs(1));
        let (next, tag) = established(&mut r, of_session("b", "cs"), "b");
        assert_eq!(continues(&mut r, "b", &tag, next), continued.then_some(id));
    }
}
