//! How recording sessions end: BYE, no ACK, drain. And what comes after, until the slot is free again.

use std::time::Duration;

use super::client::Purpose;
use super::content::content;
use super::recording::Farewell;
use super::send::{Ask, Refusal, Request};
use super::state::State;
use super::{Close, Command, OrderOutcome, RecordingKey, Sessions};
use crate::clock::{Mono, Now, Wall};
use crate::counters::{EndCause, RefuseCause};
use crate::limits::{BYE_GRACE, T2, TRANSACTIONS_BASE, TRANSACTIONS_PER_SESSION};
use crate::proto::sip::Method;

/// The way to the end of the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drain {
    No,
    /// No new sessions; running ones are ended at this time, or have ended before.
    Waiting {
        at: Mono,
    },
    /// Every session has got its BYE. Answers are awaited until then.
    Ending {
        until: Mono,
        over: bool,
    },
}

impl Drain {
    pub fn next(self) -> Option<Mono> {
        match self {
            Drain::No | Drain::Ending { over: true, .. } => None,
            Drain::Waiting { at } => Some(at),
            Drain::Ending { until, over: false } => Some(until),
        }
    }
}

pub fn transactions_max(sessions_max: usize) -> usize {
    TRANSACTIONS_BASE + sessions_max * TRANSACTIONS_PER_SESSION
}

impl Sessions {
    /// RFC 3261 §15.1.2
    pub(super) fn bye(&mut self, now: Now, key: RecordingKey, request: &Request, out: &mut Vec<Command>) {
        let metadata = content(request.message, request.bytes).unwrap_or_default().metadata;
        // It ends anyway, so nothing follows from what is wrong with it.
        let _ = self.file_metadata(request.at, key, metadata, out);
        self.terminate_reinvite(now, key, out);
        self.answer_bye(now, request, out);
        self.end(now, key, EndCause::Bye, None, out);
    }

    fn answer_bye(&mut self, now: Now, request: &Request, out: &mut Vec<Command>) {
        let ok = self.build(request.message, 200, None, request.flow).finish();
        self.respond(now, request, 200, ok, out);
    }

    /// The SRC could not be told by its own BYE, so it gets one from us, if there is still a way to it.
    pub(super) fn hang_up(
        &mut self,
        now: Now,
        key: RecordingKey,
        cause: EndCause,
        note: Option<String>,
        out: &mut Vec<Command>,
    ) {
        self.hang_up_because(now, key, cause, note, None, out);
    }

    /// Metadata came that breaks a MUST, in a message that cannot be refused (RFC 7866 §9.2): the BYE says why (RFC 3326).
    pub(super) fn refuse_by_bye(&mut self, now: Now, key: RecordingKey, why: &str, out: &mut Vec<Command>) {
        let reason = format!("SIP;cause=488;text=\"{}\"", why.replace(['"', '\\'], "'"));
        self.hang_up_because(now, key, EndCause::BadMetadata, Some(why.to_owned()), Some(reason), out);
    }

    fn hang_up_because(
        &mut self,
        now: Now,
        key: RecordingKey,
        cause: EndCause,
        note: Option<String>,
        reason: Option<String>,
        out: &mut Vec<Command>,
    ) {
        self.terminate_reinvite(now, key, out);
        let Some(recording) = self.slots.get_mut(key) else { return };
        if recording.unconfirmed(now.mono) {
            recording.farewell = Some(Farewell { reason, closed: false });
        } else {
            self.say_bye(now, key, reason, out);
        }
        self.end(now, key, cause, note, out);
    }

    fn say_bye(&mut self, now: Now, key: RecordingKey, reason: Option<String>, out: &mut Vec<Command>) {
        let fields = reason.into_iter().map(|reason| ("Reason", reason)).collect();
        let told =
            self.ask(now, key, Ask { method: Method::Bye, purpose: Purpose::Bye, fields, body: None }, out);
        self.counters.byes_unsent.add(u64::from(!told));
    }

    /// The BYE that has waited goes out: the dialog is confirmed, or its 200 is repeated no more (RFC 3261 §15).
    pub(super) fn say_farewell(&mut self, now: Now, key: RecordingKey, out: &mut Vec<Command>) {
        let Some(recording) = self.slots.get_mut(key) else { return };
        let Some(farewell) = recording.farewell.take() else { return };
        self.repeat_no_more(key);
        self.say_bye(now, key, farewell.reason, out);
        self.parted(now, key, farewell.closed);
    }

    /// The SRC's own BYE comes before ours could go out: ours need not.
    pub(super) fn last_request(
        &mut self,
        now: Now,
        key: RecordingKey,
        request: &Request,
        out: &mut Vec<Command>,
    ) {
        if request.checked.method != Method::Bye {
            return self.unknown_dialog(now, request, out);
        }
        self.answer_bye(now, request, out);
        self.forgo_farewell(now, key);
    }

    /// The BYE that has waited is not sent. `false`: none has.
    fn forgo_farewell(&mut self, now: Now, key: RecordingKey) -> bool {
        let farewell = self.slots.get_mut(key).and_then(|recording| recording.farewell.take());
        let Some(farewell) = farewell else { return false };
        self.repeat_no_more(key);
        self.parted(now, key, farewell.closed);
        true
    }

    /// Nothing is owed to the SRC any more. `closed`: nor to the engine.
    fn parted(&mut self, now: Now, key: RecordingKey, closed: bool) {
        self.rearm(key);
        if closed {
            self.closed(now, key);
        }
    }

    /// The 200 that waits for its ACK, if one does, waits no longer.
    fn repeat_no_more(&mut self, key: RecordingKey) {
        let Some(recording) = self.slots.get_mut(key) else { return };
        if let Some(id) = recording.unacknowledged.take().and_then(|waiting| waiting.transaction) {
            self.transactions.acknowledged(id);
        }
    }

    /// A re-INVITE that still waits gets its answer before the dialog ends (RFC 3261 §15.1.2). Streams that are being added
    /// for it end with the others.
    fn terminate_reinvite(&mut self, now: Now, key: RecordingKey, out: &mut Vec<Command>) {
        let Some(recording) = self.slots.get_mut(key) else { return };
        let Some(changing) = recording.take_changing() else { return };
        recording.session = changing.session;
        recording.attribute();
        let refusal = Refusal::new(487, RefuseCause::Cancelled, "the session ends");
        self.refuse_pending(now, key, &changing.pending, &refusal, out);
    }

    fn end(
        &mut self,
        now: Now,
        key: RecordingKey,
        cause: EndCause,
        note: Option<String>,
        out: &mut Vec<Command>,
    ) {
        if !self.enter(now, key, State::Ending, cause.text(), note.clone()) {
            return;
        }
        self.counters.ended[cause as usize].add(1);
        let Some(recording) = self.slots.get_mut(key) else { return };
        recording.timer = None;
        let manifest = recording.manifest(&self.rules, now.wall, cause, note.clone());
        let sessions = recording.history.communication_sessions();
        let parted = recording.farewell.is_none();
        self.continuity.ends(now.mono, recording.id, &sessions, cause != EndCause::Bye);
        if parted {
            self.repeat_no_more(key);
        }
        self.commits_pending += 1;
        self.rearm(key);
        out.push(Command::Close(Box::new(Close { key, manifest: Some(Box::new(manifest)) })));
    }

    pub(super) fn closed(&mut self, now: Now, key: RecordingKey) {
        if let Some(farewell) = self.slots.get_mut(key).and_then(|recording| recording.farewell.as_mut()) {
            farewell.closed = true;
            self.give_ports(now, key);
            return self.table.clear(key.slot);
        }
        let failed = self.slots.get(key).is_some_and(|recording| recording.state() == State::Failed);
        if failed || self.enter(now, key, State::Ended, "written", None) {
            self.release(now, key);
        }
    }

    /// The slot is free, the ports rest.
    pub(super) fn release(&mut self, now: Now, key: RecordingKey) {
        self.give_ports(now, key);
        let Some(mut recording) = self.slots.remove(key) else { return };
        self.timers.set(&mut recording.armed, key.slot, None);
        self.admission.session_ends(recording.source.peer.ip());
        if let Ok(tag) = u64::from_str_radix(&recording.dialog.local_tag, 16) {
            self.dialogs.remove(&tag);
        }
        self.table.clear(key.slot);
    }

    fn give_ports(&mut self, now: Now, key: RecordingKey) {
        let Some(recording) = self.slots.get_mut(key) else { return };
        for pair in recording.session.streams.iter_mut().filter_map(|stream| stream.ports.take()) {
            self.ports.give(now.mono, pair);
        }
    }

    pub(super) fn recording_timeouts(&mut self, now: Now, out: &mut Vec<Command>) {
        while let Some(slot) = self.timers.pop(now.mono) {
            let Some(key) = self.slots.key(slot) else { continue };
            self.recording_timeout(now, key, out);
            self.rearm(key);
        }
    }

    fn recording_timeout(&mut self, now: Now, key: RecordingKey, out: &mut Vec<Command>) {
        let Some(recording) = self.slots.get_mut(key) else { return };
        if recording.state().opening() {
            let refusal =
                Refusal::unavailable(RefuseCause::OpenTimeout, "the files could not be opened in time");
            return self.abandon(now, key, &refusal, out);
        }
        if recording.farewell.is_some() {
            return self.ack_timeout(now, key, out);
        }
        let reachable = self.connections.way(recording.flow, recording.certificate.as_deref()).is_some();
        let Some(recording) = self.slots.get_mut(key).filter(|recording| recording.established()) else {
            return;
        };
        if let Some(cause) = recording.over(&self.rules.ends, reachable, now.mono) {
            return self.hang_up(now, key, cause, None, out);
        }
        self.ack_timeout(now, key, out);
        self.session_timeout(now, key, out);
    }

    /// A 200 whose ACK does not come is repeated, and in the end given up.
    fn ack_timeout(&mut self, now: Now, key: RecordingKey, out: &mut Vec<Command>) {
        let Some(recording) = self.slots.get_mut(key) else { return };
        let Some(waiting) = &mut recording.unacknowledged else { return };
        if waiting.deadline <= now.mono {
            if recording.farewell.is_some() {
                return self.say_farewell(now, key, out);
            }
            self.counters.ack_timeouts.add(1);
            return self.hang_up(now, key, EndCause::AckTimeout, None, out);
        }
        if waiting.next <= now.mono {
            waiting.next = now.mono + waiting.interval;
            waiting.interval = (waiting.interval * 2).min(T2);
            let (flow, ok) = (waiting.flow, waiting.ok.clone());
            self.counters.retransmissions_sent.add(1);
            self.transmit(now, flow, ok, Some(key), out);
        }
    }

    /// Media has come. Its next end is looked for when the one that was due would have been.
    pub(super) fn heard(&mut self, now: Now, key: RecordingKey, at: Wall) {
        let Some(recording) = self.slots.get_mut(key).filter(|recording| recording.established()) else {
            return;
        };
        recording.watch.heard = now.mono;
        recording.life.last_media = recording.life.last_media.max(Some(at));
        self.publish(key);
    }

    /// `sipreel end`. Ids are found by looking at all: an operator asks seldom.
    pub(super) fn end_by_order(
        &mut self,
        now: Now,
        id: String,
        note: Option<String>,
        out: &mut Vec<Command>,
    ) -> OrderOutcome {
        let named =
            |key: &RecordingKey| self.slots.get(*key).is_some_and(|recording| recording.id.to_string() == id);
        let Some(key) = self.slots.keys().into_iter().find(named) else {
            return Err(format!("no session is recorded as {id}: `sipreel sessions` lists them"));
        };
        let state = self.slots.get(key).map_or(State::Ended, |recording| recording.state());
        match state {
            State::Connecting | State::Recovering => {
                let refusal = Refusal::unavailable(RefuseCause::Operator, "ended by the operator");
                self.abandon(now, key, &refusal, out);
                Ok(id)
            }
            State::Active | State::Paused => {
                self.hang_up(now, key, EndCause::Operator, note, out);
                Ok(id)
            }
            State::Ending | State::Ended | State::Failed => Err(format!("{id} is {} already", state.text())),
        }
    }

    pub(super) fn begin_drain(&mut self, now: Now, grace: Duration) {
        let at = now.mono + grace;
        match self.drain {
            Drain::No => self.drain = Drain::Waiting { at },
            Drain::Waiting { at: before } => self.drain = Drain::Waiting { at: at.min(before) },
            Drain::Ending { .. } => {}
        }
    }

    pub(super) fn drain_timeout(&mut self, now: Now, out: &mut Vec<Command>) {
        match self.drain {
            Drain::Waiting { at } if at <= now.mono || self.slots.occupied() == 0 => {
                self.drain = Drain::Ending { until: now.mono + BYE_GRACE, over: false };
                for key in self.slots.keys() {
                    self.drain_recording(now, key, out);
                }
            }
            Drain::Ending { until, over: false } if until <= now.mono => {
                self.drain = Drain::Ending { until, over: true };
                // Nobody is here for as long as an ACK may take, and without it there is no BYE (RFC 3261 §15).
                for key in self.slots.keys() {
                    let forgone = self.forgo_farewell(now, key);
                    self.counters.byes_unsent.add(u64::from(forgone));
                }
            }
            _ => {}
        }
    }

    fn drain_recording(&mut self, now: Now, key: RecordingKey, out: &mut Vec<Command>) {
        let Some(recording) = self.slots.get(key) else { return };
        match recording.state() {
            State::Connecting | State::Recovering => {
                let refusal = Refusal::unavailable(RefuseCause::Draining, "shutting down");
                self.abandon(now, key, &refusal, out);
            }
            State::Active | State::Paused => self.hang_up(now, key, EndCause::Drain, None, out),
            State::Ending | State::Ended | State::Failed => {}
        }
    }

    pub(super) fn draining(&self) -> bool {
        self.drain != Drain::No
    }
}
