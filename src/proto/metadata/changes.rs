//! What became different from one state of the metadata to the next, as events.
//!
//! Elements without an id are left out: nobody can say whether they are the same.

use super::list::{Identified, Ids, Index};
use super::{CommunicationSession, Group, Metadata, SessionAssociation, StreamAssociation};
use crate::clock::Wall;
use crate::proto::manifest::{Event, EventKind};

/// Tells every change. `at` is when the newer state was received.
pub fn changes(before: &Metadata, after: &Metadata, at: Wall, tell: &mut impl FnMut(Event)) {
    let mut teller = Teller { at, tell };
    teller.groups(before, after);
    teller.sessions(before, after);
    teller.participants(before, after);
    teller.streams(before, after);
    teller.parts(before, after);
}

struct Teller<'a, F> {
    at: Wall,
    tell: &'a mut F,
}

impl<F: FnMut(Event)> Teller<'_, F> {
    fn event(&self, kind: EventKind) -> Event {
        Event::new(self.at, kind)
    }

    fn say(&mut self, kind: EventKind, about: impl FnOnce(Event) -> Event) {
        let event = about(self.event(kind));
        (self.tell)(event);
    }

    fn groups(&mut self, before: &Metadata, after: &Metadata) {
        let lives = |group: &Group| group.span.disassociated.is_none();
        for change in compare(&before.groups, &after.groups, lives) {
            let event = match change {
                Change::Began(group) => {
                    let stated = group.span.associated.clone();
                    self.event(EventKind::GroupStarted).group(&group.id).stated(stated)
                }
                Change::Ended(group, now) => {
                    let stated = now.and_then(|now| now.span.disassociated.clone());
                    self.event(EventKind::GroupEnded).group(&group.id).stated(stated)
                }
                Change::Stayed(..) => continue,
            };
            (self.tell)(event);
        }
    }

    fn sessions(&mut self, before: &Metadata, after: &Metadata) {
        // A session may end by its own stop time, or by being no longer recorded here (RFC 7865 §6.4).
        let (were, are) = (Index::new(&before.session_recordings), Index::new(&after.session_recordings));
        let released = |index: &Index<'_, super::SessionRecording>, id: &str| {
            index.find(id, "").is_some_and(|association| association.span.disassociated.is_some())
        };
        let lived =
            |session: &CommunicationSession| session.stop_time.is_none() && !released(&were, &session.id);
        let lives =
            |session: &CommunicationSession| session.stop_time.is_none() && !released(&are, &session.id);
        for change in compare_by(&before.sessions, &after.sessions, lived, lives) {
            let event = match change {
                Change::Began(session) => {
                    let stated = session.start_time.clone();
                    self.event(EventKind::SessionStarted).session(&session.id).stated(stated)
                }
                Change::Ended(session, now) => {
                    let stated = now.and_then(|now| now.stop_time.clone()).or_else(|| {
                        are.find(&session.id, "")
                            .and_then(|association| association.span.disassociated.clone())
                    });
                    let event = self.event(EventKind::SessionEnded).session(&session.id).stated(stated);
                    match now.and_then(|now| now.reasons.first()) {
                        Some(reason) => event.detail(reason),
                        None => event,
                    }
                }
                Change::Stayed(was, is)
                    if was.group_id != is.group_id || was.sip_session_ids != is.sip_session_ids =>
                {
                    self.event(EventKind::SessionChanged).session(&is.id)
                }
                Change::Stayed(..) => continue,
            };
            (self.tell)(event);
        }
    }

    fn participants(&mut self, before: &Metadata, after: &Metadata) {
        let was = presences(before);
        let is = presences(after);
        let named = Index::new(&before.participants);
        let spans = Index::new(&after.participant_sessions);
        for (id, session) in missing(&is, &was) {
            let stated = spans.find(id, session).and_then(|association| association.span.associated.clone());
            let event = self.event(EventKind::ParticipantJoined).participant(id).stated(stated);
            (self.tell)(in_session(event, session));
        }
        for (id, session) in missing(&was, &is) {
            // Who was there without a session, and now has one, has not left.
            if session.is_empty() && is.binary_search_by_key(&id, |pair| pair.0).is_ok() {
                continue;
            }
            let stated =
                spans.find(id, session).and_then(|association| association.span.disassociated.clone());
            let event = self.event(EventKind::ParticipantLeft).participant(id).stated(stated);
            (self.tell)(in_session(event, session));
        }
        if before.participants.is_empty() {
            return;
        }
        for participant in after.participants.iter().filter(|participant| !participant.id.is_empty()) {
            let Some(known) = named.find(&participant.id, "") else { continue };
            if known != participant {
                self.say(EventKind::ParticipantChanged, |event| event.participant(&participant.id));
            }
        }
    }

    fn streams(&mut self, before: &Metadata, after: &Metadata) {
        for change in compare(&before.streams, &after.streams, |_| true) {
            let (kind, stream) = match change {
                Change::Began(stream) => (EventKind::StreamStarted, stream),
                Change::Ended(stream, _) => (EventKind::StreamEnded, stream),
                Change::Stayed(was, is) if was != is => (EventKind::StreamChanged, is),
                Change::Stayed(..) => continue,
            };
            let event = self.event(kind).stream(&stream.id);
            let event = match &stream.label {
                Some(label) => event.detail(format!("label {label}")),
                None => event,
            };
            (self.tell)(match &stream.session_id {
                Some(session) => event.session(session),
                None => event,
            });
        }
    }

    /// RFC 7865 §6.8.1: who is no longer said to send or receive a stream does so no longer.
    fn parts(&mut self, before: &Metadata, after: &Metadata) {
        let nothing = StreamAssociation::default();
        let (was, is) = (Index::new(&before.associations), Index::new(&after.associations));
        let there = Index::new(&after.participants);
        for now in after.associations.iter().filter(|now| !now.participant_id.is_empty()) {
            self.part(was.find(&now.participant_id, ""), now, true);
        }
        for then in before.associations.iter().filter(|then| !then.participant_id.is_empty()) {
            if is.find(&then.participant_id, "").is_none() {
                let gone =
                    StreamAssociation { participant_id: then.participant_id.clone(), ..nothing.clone() };
                self.part(Some(then), &gone, there.has(&then.participant_id));
            }
        }
    }

    fn part(&mut self, then: Option<&StreamAssociation>, now: &StreamAssociation, there: bool) {
        let id = &now.participant_id;
        let (sent, received) = then.map_or((&[][..], &[][..]), |then| (&then.sends, &then.receives));
        for (kind, from, to) in [
            (EventKind::SendStopped, sent, &now.sends[..]),
            (EventKind::SendStarted, &now.sends, sent),
            (EventKind::ReceiveStopped, received, &now.receives),
            (EventKind::ReceiveStarted, &now.receives, received),
        ] {
            let known = Ids::new(to);
            for stream in from.iter().filter(|stream| !known.has(stream)) {
                self.say(kind, |event| event.participant(id).stream(stream));
            }
        }
        let held = there && !sent.is_empty() && now.sends.is_empty();
        let resumed = then.is_some() && sent.is_empty() && !now.sends.is_empty();
        let kind = match (held, resumed) {
            (true, _) => EventKind::ParticipantHeld,
            (_, true) => EventKind::ParticipantResumed,
            _ => return,
        };
        self.say(kind, |event| event.participant(id));
    }
}

fn in_session(event: Event, session: &str) -> Event {
    if session.is_empty() { event } else { event.session(session) }
}

enum Change<'a, T> {
    Began(&'a T),
    /// As it was, and as it is if it is still told.
    Ended(&'a T, Option<&'a T>),
    Stayed(&'a T, &'a T),
}

fn compare<'a, T: Identified>(
    before: &'a [T],
    after: &'a [T],
    lives: impl Fn(&T) -> bool + Copy,
) -> Vec<Change<'a, T>> {
    compare_by(before, after, lives, lives)
}

fn compare_by<'a, T: Identified>(
    before: &'a [T],
    after: &'a [T],
    lived: impl Fn(&T) -> bool,
    lives: impl Fn(&T) -> bool,
) -> Vec<Change<'a, T>> {
    let (was, is) = (Index::new(before), Index::new(after));
    let mut changes = Vec::new();
    for item in after.iter().filter(|item| !item.ids().0.is_empty()) {
        let (id, second) = item.ids();
        let then = was.find(id, second);
        match (then.filter(|then| lived(then)), lives(item)) {
            (Some(then), true) => changes.push(Change::Stayed(then, item)),
            (Some(then), false) => changes.push(Change::Ended(then, Some(item))),
            (None, true) => changes.push(Change::Began(item)),
            (None, false) => {}
        }
    }
    for item in before.iter().filter(|item| !item.ids().0.is_empty() && lived(item)) {
        let (id, second) = item.ids();
        if is.find(id, second).is_none() {
            changes.push(Change::Ended(item, None));
        }
    }
    changes
}

/// Who is in which session; `""`: in none that is named. Sorted.
fn presences(metadata: &Metadata) -> Vec<(&str, &str)> {
    let associated = |association: &&SessionAssociation| !association.participant_id.is_empty();
    let told: Vec<&SessionAssociation> = metadata.participant_sessions.iter().filter(associated).collect();
    let mut sessions: Vec<&str> =
        told.iter().map(|association| association.participant_id.as_str()).collect();
    sessions.sort_unstable();
    let here = told.iter().filter(|association| association.span.disassociated.is_none());
    let mut pairs: Vec<(&str, &str)> = here
        .map(|association| (association.participant_id.as_str(), association.session_id.as_str()))
        .collect();
    let alone = metadata.participants.iter().map(|participant| participant.id.as_str());
    pairs.extend(alone.filter(|id| !id.is_empty() && sessions.binary_search(id).is_err()).map(|id| (id, "")));
    pairs.sort_unstable();
    pairs
}

/// What of `from` is not in `others`, which are sorted.
fn missing<'a>(
    from: &'a [(&'a str, &'a str)],
    others: &'a [(&'a str, &'a str)],
) -> impl Iterator<Item = (&'a str, &'a str)> {
    from.iter().copied().filter(|pair| others.binary_search(pair).is_err())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::fixtures::{invite, invites};
    use crate::proto::metadata::parse;
    use proptest::prelude::*;

    fn recording(content: &str) -> Metadata {
        parse(
            format!("<recording xmlns='urn:ietf:params:xml:ns:recording:1'>{content}</recording>").as_bytes(),
        )
        .unwrap()
        .metadata
    }

    /// `kind participant session stream stated`, what is absent left out.
    fn told(before: &Metadata, after: &Metadata) -> Vec<String> {
        let mut told = Vec::new();
        changes(before, after, Wall(7), &mut |event| {
            assert_eq!(event.at, Wall(7));
            let kind = serde_json::to_value(event.kind).unwrap().as_str().unwrap().to_owned();
            let fields =
                [event.group, event.participant, event.session, event.stream, event.stated, event.detail];
            let words: Vec<String> = fields.into_iter().flatten().collect();
            told.push([vec![kind], words].concat().join(" "));
        });
        told
    }

    fn after_partial(before: &Metadata, update: &str) -> Metadata {
        let mut after = before.clone();
        after.merge(recording(&format!("<datamode>partial</datamode>{update}"))).unwrap();
        after
    }

    #[test]
    fn everything_begins() {
        let oracle = parse(&invite("oracle").metadata()).unwrap().metadata;
        assert_eq!(
            told(&Metadata::default(), &oracle),
            [
                "session_started BYiC7uSZQGN3VQdzWI1HWw== 2026-11-22T08:00:00",
                "participant_joined Qpbcm3rxTTVtGlBz0VJaHA== BYiC7uSZQGN3VQdzWI1HWw== 2026-11-22T08:00:00",
                "participant_joined hq18GJs3TtJdhjCsbkfYyQ== BYiC7uSZQGN3VQdzWI1HWw== 2026-11-22T08:00:00",
                "stream_started BYiC7uSZQGN3VQdzWI1HWw== aD1slnhYSdBjHSnwcAC6CA== label 218103814",
                "stream_started BYiC7uSZQGN3VQdzWI1HWw== x5ToKVQ9TMxLrDqFyQdmEA== label 218103815",
                "send_started hq18GJs3TtJdhjCsbkfYyQ== aD1slnhYSdBjHSnwcAC6CA==",
                "send_started Qpbcm3rxTTVtGlBz0VJaHA== x5ToKVQ9TMxLrDqFyQdmEA==",
            ]
        );
        assert_eq!(told(&oracle, &oracle), [""; 0]);
    }

    const TWO: &str = "<session session_id='s'/><participant participant_id='p'><nameID aor='sip:p@x'/></participant><participant participant_id='q'><nameID aor='sip:q@x'/></participant><stream stream_id='t' session_id='s'><label>1</label></stream><participantsessionassoc participant_id='p' session_id='s'><associate-time>A</associate-time></participantsessionassoc><participantsessionassoc participant_id='q' session_id='s'/><participantstreamassoc participant_id='p'><send>t</send></participantstreamassoc>";

    #[test]
    fn a_participant_leaves_and_comes_back() {
        let before = recording(TWO);
        let left = after_partial(
            &before,
            "<participantsessionassoc participant_id='p' session_id='s'><disassociate-time>B</disassociate-time></participantsessionassoc>",
        );
        assert_eq!(told(&before, &left), ["participant_left p s B"]);
        let back = after_partial(
            &left,
            "<participantsessionassoc participant_id='p' session_id='s'><associate-time>C</associate-time></participantsessionassoc>",
        );
        assert_eq!(told(&left, &back), ["participant_joined p s C"]);
    }

    #[test]
    fn hold_is_sending_nothing() {
        let before = recording(TWO);
        let held = after_partial(&before, "<participantstreamassoc participant_id='p'/>");
        assert_eq!(told(&before, &held), ["send_stopped p t", "participant_held p"]);
        let update = "<participantstreamassoc participant_id='p'><send>t</send><recv>t</recv></participantstreamassoc>";
        let resumed = after_partial(&held, update);
        assert_eq!(
            told(&held, &resumed),
            ["send_started p t", "receive_started p t", "participant_resumed p"]
        );
    }

    #[test]
    fn a_snapshot_that_leaves_out_ends() {
        let before = recording(TWO);
        let after = recording(
            "<session session_id='u'/><participant participant_id='q'><nameID aor='sip:r@x'/></participant>",
        );
        assert_eq!(
            told(&before, &after),
            [
                "session_started u",
                "session_ended s",
                "participant_joined q",
                "participant_left p s",
                "participant_left q s",
                "participant_changed q",
                "stream_ended s t label 1",
                "send_stopped p t",
            ]
        );
    }

    #[test]
    fn sessions_end_by_their_stop_time_or_their_association() {
        let before = recording(TWO);
        let update = "<session session_id='s'><reason>done</reason><stop-time>E</stop-time></session>";
        assert_eq!(told(&before, &after_partial(&before, update)), ["session_ended s E done"]);
        let update = "<sessionrecordingassoc session_id='s'><disassociate-time>F</disassociate-time></sessionrecordingassoc>";
        assert_eq!(told(&before, &after_partial(&before, update)), ["session_ended s F"]);
    }

    #[test]
    fn all_that_a_body_can_hold_is_compared_quickly() {
        let content = |prefix: &str| -> String {
            (0..2_000)
                .map(|n| format!("<participant participant_id='{prefix}{n}'/><participantstreamassoc participant_id='{prefix}{n}'><send>{n}</send></participantstreamassoc>"))
                .collect()
        };
        let (before, after) = (recording(&content("p")), recording(&content("q")));
        #[allow(clippy::disallowed_methods)]
        let start = std::time::Instant::now();
        assert_eq!(told(&before, &after).len(), 4 * 2_000);
        assert!(start.elapsed() < std::time::Duration::from_secs(1), "{:?}", start.elapsed());
    }

    proptest! {
        /// Going back undoes: whoever joined has left, whatever began has ended.
        #[test]
        fn there_and_back(a in 0usize..12, b in 0usize..12) {
            let said = |which: usize| parse(&invites().nth(which).unwrap().metadata()).unwrap().metadata;
            let count = |from: &Metadata, to: &Metadata, kind: EventKind| {
                let mut count = 0;
                changes(from, to, Wall(0), &mut |event| count += usize::from(event.kind == kind));
                count
            };
            let (a, b) = (said(a), said(b));
            for (began, ended) in [
                (EventKind::ParticipantJoined, EventKind::ParticipantLeft),
                (EventKind::SessionStarted, EventKind::SessionEnded),
                (EventKind::StreamStarted, EventKind::StreamEnded),
                (EventKind::SendStarted, EventKind::SendStopped),
                (EventKind::ReceiveStarted, EventKind::ReceiveStopped),
                (EventKind::GroupStarted, EventKind::GroupEnded),
            ] {
                prop_assert_eq!(count(&a, &b, began), count(&b, &a, ended));
            }
            prop_assert!(told(&a, &a).is_empty());
        }
    }

    #[test]
    fn a_participant_who_gets_a_session_has_not_left() {
        let before = recording("<participant participant_id='p'/>");
        let after = after_partial(&before, "<participantsessionassoc participant_id='p' session_id='s'/>");
        assert_eq!(told(&before, &after), ["participant_joined p s"]);
    }
}
