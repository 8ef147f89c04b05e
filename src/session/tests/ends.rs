//! How sessions end by themselves, and by order; what states they go through.

use super::*;
use crate::counters::EndCause;
use crate::limits::{BYE_GRACE, TRANSACTION_TIMEOUT};

const MINUTE: Duration = Duration::from_secs(60);

fn recorder(ends: Ends) -> Recorder {
    let mut r = Recorder::new(10, 10);
    r.sessions.rules.ends = ends;
    r
}

impl Recorder {
    fn ended_by(&self, cause: EndCause) -> u64 {
        self.counters.ended[cause as usize].get()
    }

    fn state(&self, key: RecordingKey) -> State {
        self.table.find(key).map_or(State::Ended, |snapshot| snapshot.state)
    }

    /// Media comes every ten seconds for so long.
    fn talk(&mut self, key: RecordingKey, minutes: u32) -> Vec<Command> {
        let mut out = Vec::new();
        for _ in 0..minutes * 6 {
            out.extend(self.event(Event::Media { key, at: self.now.wall }));
            out.extend(self.pass(Duration::from_secs(10)));
        }
        out
    }

    /// The session ends by itself in this time, with BYE and everything; not before.
    fn ends_after(&mut self, key: RecordingKey, time: Duration, cause: EndCause) {
        assert_eq!(kinds(&self.pass(time - Duration::from_millis(1))), [""; 0]);
        let out = self.pass(Duration::from_millis(1));
        assert_eq!(manifest(&out).end_cause.as_deref(), Some(cause.text()));
        assert_eq!(self.ended_by(cause), 1);
        self.gone(key, &out);
    }

    /// Its SRC was told, and its slot and ports come back.
    fn gone(&mut self, key: RecordingKey, out: &[Command]) {
        let bye = sent(out).into_iter().find(|bytes| bytes.starts_with(b"BYE ")).expect("a BYE");
        assert_eq!(self.state(key), State::Ending);
        self.event(Event::Closed { key });
        let copied: Vec<_> = ["Via", "From", "To", "Call-ID", "CSeq"]
            .iter()
            .map(|name| format!("{name}: {}\r\n", field(text(&bye), name).unwrap()))
            .collect();
        self.udp(format!("SIP/2.0 200 OK\r\n{}Content-Length: 0\r\n\r\n", copied.concat()));
        self.assert_whole();
        assert_eq!(self.counters.transitions_refused.get(), 0);
    }
}

fn held() -> String {
    OFFER.replace("a=sendonly", "a=inactive")
}

#[test]
fn without_media_a_session_ends() {
    let ends = Ends { media_timeout: Some(MINUTE * 5), ..Ends::default() };
    let mut r = recorder(ends);
    let (key, _) = r.call("never");
    r.ends_after(key, MINUTE * 5, EndCause::MediaTimeout);

    let mut r = recorder(ends);
    let (key, _) = r.call("some");
    assert_eq!(kinds(&r.talk(key, 60)), [""; 0]);
    let heard = r.now.wall.0 - 10_000_000_000;
    assert_eq!(r.table.find(key).unwrap().last_media, Some(Wall(heard)));
    r.ends_after(key, MINUTE * 5 - Duration::from_secs(10), EndCause::MediaTimeout);
}

#[test]
fn a_held_session_waits_for_media_only_when_it_is_resumed() {
    let mut r = recorder(Ends { media_timeout: Some(MINUTE * 5), ..Ends::default() });
    let (key, tag) = r.call("a");
    assert_eq!(codes(&r.udp(reinvite("a", &tag, 2, &held()))), [200]);
    r.udp(ack("a", &tag, 2));
    assert_eq!((r.state(key), r.counters.paused.get()), (State::Paused, 1));
    assert_eq!(kinds(&r.pass(MINUTE * 600)), [""; 0]);
    r.udp(reinvite("a", &tag, 3, OFFER));
    r.udp(ack("a", &tag, 3));
    assert_eq!((r.state(key), r.counters.paused.get()), (State::Active, 0));
    let causes: Vec<_> = r
        .sessions
        .take_notices()
        .into_iter()
        .filter_map(|notice| if let Notice::State(step) = notice { Some(step.cause) } else { None })
        .collect();
    assert_eq!(causes, ["answered", "held", "resumed"]);
    r.ends_after(key, MINUTE * 5, EndCause::MediaTimeout);
}

/// The answer in the ACK resumes it, and nothing else has a deadline: silence ends it from then on.
#[test]
fn a_session_that_an_offer_of_ours_resumes_waits_for_media() {
    let mut r = recorder(Ends { media_timeout: Some(MINUTE * 5), ..Ends::default() });
    let (key, tag) = r.call("a");
    r.udp(reinvite("a", &tag, 2, &held()));
    r.udp(ack("a", &tag, 2));
    assert_eq!(kinds(&r.pass(MINUTE * 60)), [""; 0]);
    assert_eq!(codes(&r.udp(message("INVITE", "a", &tag, 3, SRC, ""))), [200]);
    r.udp(message("ACK", "a", &tag, 3, "Content-Type: application/sdp\n", &crlf(OFFER)));
    assert_eq!(r.state(key), State::Active);
    r.ends_after(key, MINUTE * 5, EndCause::MediaTimeout);
}

/// One m-line is held and the other turned down: none is to bring media.
#[test]
fn an_m_line_that_an_answer_turns_down_brings_no_media() {
    let mut r = recorder(Ends { media_timeout: Some(MINUTE * 5), ..Ends::default() });
    let (key, tag) = r.call("a");
    assert_eq!(codes(&r.udp(message("INVITE", "a", &tag, 2, SRC, ""))), [200]);
    let answer = held().replace("m=audio 22456", "m=audio 0");
    r.udp(message("ACK", "a", &tag, 2, "Content-Type: application/sdp\n", &crlf(&answer)));
    assert_eq!(r.state(key), State::Paused);
    assert_eq!(kinds(&r.pass(MINUTE * 60)), [""; 0]);
}

#[test]
fn a_session_that_begins_held_is_paused() {
    let mut r = recorder(Ends { media_timeout: Some(MINUTE), ..Ends::default() });
    let out = r.udp(invite_with("a", &format!("{SRC}Content-Type: application/sdp\n"), &crlf(&held())));
    let key = opened(&out).key;
    r.event(Event::Opened { key });
    assert_eq!((r.state(key), r.counters.active.get(), r.counters.paused.get()), (State::Paused, 1, 1));
}

#[test]
fn no_session_lasts_longer_than_it_may() {
    let mut r =
        recorder(Ends { max_duration: Some(MINUTE * 90), media_timeout: Some(MINUTE), ..Ends::default() });
    let (key, tag) = r.call("a");
    assert_eq!(kinds(&r.talk(key, 60)), [""; 0]);
    r.udp(reinvite("a", &tag, 2, &held()));
    r.udp(ack("a", &tag, 2));
    r.ends_after(key, MINUTE * 30, EndCause::MaxDuration);
}

/// A connection that ends is not the end: the SRC may talk on, or come back over another.
#[test]
fn a_lost_connection_ends_only_who_is_silent_too() {
    let ends = Ends { transport_timeout: Some(MINUTE), ..Ends::default() };
    let lost = Event::Disconnected { reactor: tcp().reactor, connection: tcp().connection.unwrap() };
    let mut r = recorder(ends);
    let (key, tag) = r.call_over(tcp(), "a");
    assert_eq!(kinds(&r.pass(MINUTE * 10)), [""; 0], "silent, but there");
    r.event(lost);
    assert_eq!(kinds(&r.talk(key, 10)), [""; 0], "gone, but not silent");
    let again = Flow { connection: Some(ConnectionKey { slot: 3, generation: 10 }), ..tcp() };
    assert_eq!(codes(&r.receive(again, message("OPTIONS", "a", &tag, 2, "", ""))), [200]);
    assert_eq!(kinds(&r.pass(MINUTE * 10)), [""; 0], "back");
    r.event(Event::Disconnected { reactor: again.reactor, connection: again.connection.unwrap() });
    let out = r.pass(MINUTE * 2);
    assert_eq!(manifest(&out).end_cause.as_deref(), Some("transport_lost"));
    assert!(sent(&out).is_empty(), "there is no way to it");
    r.event(Event::Closed { key });
    r.assert_whole();
}

#[test]
fn an_operator_ends_a_session() {
    let mut r = recorder(Ends::default());
    let (key, _) = r.call("a");
    let id = r.table.find(key).unwrap().id.to_string();
    let order = |ticket, id: &str| {
        let note = Some("no consent".to_owned());
        Event::Order { ticket, order: Order::End { id: id.to_owned(), note } }
    };
    assert_eq!(kinds(&r.event(order(1, "0199"))), [""; 0]);
    let out = r.event(order(2, &id));
    assert_eq!(manifest(&out).end_cause.as_deref(), Some("operator"));
    assert_eq!(manifest(&out).end_note.as_deref(), Some("no consent"));
    r.event(order(3, &id));
    let answers = r.sessions.take_answers();
    assert_eq!((answers[0].0, answers[1].clone()), (1, (2, Ok(id.clone()))));
    assert!(answers[0].1.as_ref().unwrap_err().contains("sipreel sessions"));
    assert_eq!(answers[2], (3, Err(format!("{id} is ending already"))));
    r.gone(key, &out);
}

#[test]
fn an_operator_ends_what_is_not_answered_yet() {
    let mut r = recorder(Ends::default());
    let key = opened(&r.udp(invite("a"))).key;
    let id = r.table.find(key).unwrap().id.to_string();
    let out = r.event(Event::Order { ticket: 1, order: Order::End { id, note: None } });
    assert_eq!(codes(&out), [503]);
    assert_eq!(r.state(key), State::Failed);
    assert!(close(&r.event(Event::Opened { key })).manifest.is_none());
    r.event(Event::Closed { key });
    r.assert_whole();
    assert_eq!((r.counters.transitions_refused.get(), r.counters.total.get()), (0, 0));
}

#[test]
fn files_that_cannot_be_opened_are_opened_elsewhere() {
    let failure = |errno| Failure { what: "create directory", path: "x".to_owned(), errno };
    let mut r = Recorder::new(10, 10);
    r.sessions.rules.terms.fallback_dir = Some("/second".to_owned());
    let first = opened(&r.udp(invite("a"))).clone();
    let key = first.key;
    let out = r.event(Event::OpenFailed { key, failure: failure(28) });
    assert_eq!(kinds(&out), ["Open"]);
    let second = opened(&out);
    assert_eq!(second.path, format!("/second/{}", first.path));
    assert_eq!((second.files.len(), second.signals.len()), (first.files.len(), first.signals.len()));
    assert_eq!((r.state(key), r.counters.opened_elsewhere.get()), (State::Recovering, 1));
    let out = r.event(Event::Opened { key });
    assert_eq!(codes(&out), [200]);
    let tag = to_tag(&sent(&out)[0]);
    r.udp(ack("a", &tag, 1));
    let errors = manifest(&r.udp(bye("a", &tag, 2))).errors.clone();
    assert_eq!((&*errors.by_code[0].code, errors.by_code[0].times, errors.retries), ("open_failed", 1, 1));
    assert_eq!(errors.last.unwrap().text, "cannot create directory x: No space left on device (os error 28)");
    r.event(Event::Closed { key });

    // Once and no more; and want of descriptors is everywhere the same.
    let key = opened(&r.udp(invite("b"))).key;
    r.event(Event::OpenFailed { key, failure: failure(5) });
    assert_eq!(codes(&r.event(Event::OpenFailed { key, failure: failure(30) })), [500]);
    r.udp(ack_of_failure("b", "x"));
    let key = opened(&r.udp(invite("c"))).key;
    assert_eq!(codes(&r.event(Event::OpenFailed { key, failure: failure(24) })), [503]);
    r.udp(ack_of_failure("c", "x"));
    r.assert_whole();
    assert_eq!(r.counters.transitions_refused.get(), 0);
}

impl Recorder {
    /// A session on UDP whose 200 has no ACK yet, and which an operator has ended.
    fn ended_unconfirmed(&mut self, call_id: &str) -> (RecordingKey, String) {
        let key = opened(&self.udp(invite(call_id))).key;
        let tag = to_tag(&sent(&self.event(Event::Opened { key }))[0]);
        let id = self.table.find(key).unwrap().id.to_string();
        let out = self.event(Event::Order { ticket: 1, order: Order::End { id, note: None } });
        assert_eq!(kinds(&out), ["Close"], "the media is finished, the BYE waits");
        (key, tag)
    }
}

/// RFC 3261 §15: a callee sends no BYE before the ACK of its 2xx.
#[test]
fn a_bye_waits_for_the_ack() {
    for closed_first in [true, false] {
        let mut r = recorder(Ends::default());
        let (key, tag) = r.ended_unconfirmed("a");
        if closed_first {
            r.event(Event::Closed { key });
            assert_eq!((r.ports().1, r.table.iter().count()), (0, 0), "they rest already");
        }
        assert_eq!(codes(&r.pass(Duration::from_millis(500))), [200], "repeated until then");
        let out = sent(&r.udp(ack("a", &tag, 1)));
        assert!(out.len() == 1 && out[0].starts_with(b"BYE "), "{out:?}");
        if !closed_first {
            r.event(Event::Closed { key });
        }
        r.assert_whole();
        assert_eq!((r.ended_by(EndCause::Operator), r.ended_by(EndCause::AckTimeout)), (1, 0));
    }
}

#[test]
fn a_drain_waits_for_no_ack() {
    let mut r = recorder(Ends::default());
    let (key, _) = r.ended_unconfirmed("a");
    r.event(Event::Closed { key });
    r.committed(false);
    r.event(Event::Drain { grace: Duration::ZERO });
    r.pass(BYE_GRACE - Duration::from_millis(1));
    assert!(!r.sessions.drained());
    let out = sent(&r.pass(Duration::from_millis(1)));
    assert!(r.sessions.drained() && !out.iter().any(|bytes| bytes.starts_with(b"BYE ")), "{out:?}");
    assert_eq!(r.counters.byes_unsent.get(), 1);
}

#[test]
fn a_bye_waits_no_longer_than_the_200_is_repeated() {
    let mut r = recorder(Ends::default());
    let (key, _) = r.ended_unconfirmed("a");
    r.event(Event::Closed { key });
    let early = sent(&r.pass(TRANSACTION_TIMEOUT - Duration::from_millis(1)));
    assert!(early.iter().all(|bytes| bytes.starts_with(b"SIP/2.0 200 ")), "{early:?}");
    let out = sent(&r.pass(Duration::from_millis(1)));
    assert!(out.iter().any(|bytes| bytes.starts_with(b"BYE ")), "{out:?}");
    r.assert_whole();
}

#[test]
fn the_srcs_own_bye_makes_ours_needless() {
    let mut r = recorder(Ends::default());
    let (key, tag) = r.ended_unconfirmed("a");
    r.event(Event::Closed { key });
    assert_eq!(codes(&r.udp(update("a", &tag, 2, "application/sdp", ""))), [481]);
    assert_eq!(codes(&r.udp(bye("a", &tag, 3))), [200]);
    assert!(sent(&r.pass(TRANSACTION_TIMEOUT)).is_empty());
    r.assert_whole();
}
