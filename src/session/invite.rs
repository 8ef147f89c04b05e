//! INVITE: from the offer to the 200, for a new recording and within one.

use bytes::Bytes;
use rand::Rng;
use std::net::IpAddr;
use std::time::Duration;

use super::answer::{self, Plan};
use super::content::{Content, ContentError, content};
use super::dialog::Dialog;
use super::history::Reading;
use super::id::{self, Id};
use super::media_changes;
use super::metadata::{Asking, read_metadata};
use super::recording::{Awaited, Changing, MediaSession, Opening, Pending, Recording, Unacknowledged, Watch};
use super::refresh::{self, Agreed};
use super::send::{ACCEPT, ALLOW, Refusal, Request};
use super::state::State;
use super::{
    Change, Command, Failure, Flow, Notice, Open, PortPair, RecordingKey, Sessions, Signal, Terms,
    contact_uri, secure,
};
use crate::clock::{Mono, Now};
use crate::counters::{EndCause, RefuseCause};
use crate::limits::{
    OPEN_TIMEOUT, RETRY_AFTER_SECONDS, SDP_MAX, STREAMS_PER_RECORDING_MAX, T1, TRANSACTION_TIMEOUT,
};
use crate::proto::manifest::{Event, EventKind, Format};
use crate::proto::metadata::Metadata;
use crate::proto::sdp::{self, AnswerOrigin, Offer, SdpError};
use crate::proto::sip::{HeaderName, Method, NameAddr};

/// A new recording session that can be had.
struct Admitted {
    /// The SRC has made no offer, and this one is ours.
    offers: bool,
    offer: Offer,
    plans: Vec<Plan>,
    metadata: Vec<Reading>,
    agreed: Option<Agreed>,
    key: RecordingKey,
    pairs: Vec<PortPair>,
    replaces: Option<RecordingKey>,
}

/// What a re-INVITE leads to.
struct Renegotiated {
    /// Nothing was offered, so the 200 does.
    offers: bool,
    session: MediaSession,
    added: usize,
    removed: Vec<u8>,
}

impl Sessions {
    pub(super) fn invite(&mut self, now: Now, request: &Request, out: &mut Vec<Command>) {
        match self.admit(now, request) {
            Ok(admitted) => self.open(now, request, admitted, out),
            Err(refusal) => {
                self.note_refused(request.at, &refusal);
                self.refuse(now, request, &refusal, out);
            }
        }
    }

    fn admit(&mut self, now: Now, request: &Request) -> Result<Admitted, Refusal> {
        if request.transaction.is_none() {
            return Err(Refusal::unavailable(RefuseCause::Overload, "too many transactions"));
        }
        // RFC 3261 §21.4.9. Its SRC waits no longer (timer B), and nobody would end what is begun now.
        if waited(now, request) > TRANSACTION_TIMEOUT {
            return Err(Refusal::new(408, RefuseCause::TooLate, "the INVITE has waited for too long"));
        }
        if let Some(refusal) = self.no_room().or_else(|| self.no_room_for(request.flow.peer.ip())) {
            return Err(refusal);
        }
        let content = content(request.message, request.bytes).map_err(bad_content)?;
        let Terms { plain_sdp, empty_invite, .. } = self.rules.terms;
        let wanted = if content.sdp.is_some() { plain_sdp } else { empty_invite };
        if let Some(refusal) = self.no_recording_session(request, &content).filter(|_| !wanted) {
            return Err(refusal);
        }
        let replaces = self.replaced(request)?;
        let agreed = refresh::agree(request.message, None, &self.rules.terms)?;
        let offers = content.sdp.is_none();
        let mut offer = match content.sdp {
            Some(sdp) => sdp::parse(&sdp).map_err(bad_sdp)?,
            None if empty_invite => sdp::unasked(),
            None => {
                let why = "an INVITE without an offer is not supported".to_owned();
                return Err(not_acceptable(399, why));
            }
        };
        answer::narrow(&mut offer, &[], &[], self.rules.format);
        let plans = answer::plan(&offer, &[], &[], self.rules.format, STREAMS_PER_RECORDING_MAX)
            .ok()
            .filter(|plans| plans.contains(&Plan::Add))
            .ok_or_else(|| not_acceptable(305, "no m-line that can be recorded".to_owned()))?;
        let metadata = read_metadata(content.metadata, Some(&offer).filter(|_| !offers));
        if let Some(refusal) = metadata.iter().find_map(|reading| self.objection(reading)) {
            return Err(refusal);
        }
        let needed = plans.iter().filter(|plan| **plan == Plan::Add).count();
        let no_port = || Refusal::unavailable(RefuseCause::NoPort, "not enough free media ports");
        let reactor = self.ports.roomiest().ok_or_else(no_port)?;
        let no_slot = || Refusal::unavailable(RefuseCause::NoSlot, "as many sessions as are allowed");
        let key = self.slots.vacant(reactor).ok_or_else(no_slot)?;
        let pairs = self.ports.take(reactor, needed).ok_or_else(no_port)?;
        Ok(Admitted { offers, offer, plans, metadata, agreed, key, pairs, replaces })
    }

    /// Why no new session can be had, whatever it offers.
    pub(super) fn no_room(&self) -> Option<Refusal> {
        if self.draining() {
            Some(Refusal::unavailable(RefuseCause::Draining, "shutting down"))
        } else if self.slots.full() {
            Some(Refusal::unavailable(RefuseCause::NoSlot, "as many sessions as are allowed"))
        } else if self.ports.free() == 0 {
            Some(Refusal::unavailable(RefuseCause::NoPort, "no free media port"))
        } else {
            None
        }
    }

    /// 486 and not 503: only this source has to wait, and only for the end of one of its own sessions (RFC 3261 §21.4.24, §21.5.4).
    fn no_room_for(&self, source: IpAddr) -> Option<Refusal> {
        let why = "as many sessions as one source may have";
        let busy = Refusal::new(486, RefuseCause::SourceSessions, why);
        self.admission
            .sessions_full(source)
            .then(|| busy.field("Retry-After", RETRY_AFTER_SECONDS.to_string()))
    }

    fn open(&mut self, now: Now, request: &Request, admitted: Admitted, out: &mut Vec<Command>) {
        let Admitted { offers, offer, plans, metadata, agreed, key, pairs, replaces } = admitted;
        let address = self.media_address(request.flow);
        let origin = AnswerOrigin { session_id: self.rng.random::<u64>() >> 2, version: 1 };
        let session = MediaSession::new(origin).renegotiated(&offer, &plans, pairs, address);
        let (tag, local_tag) = self.new_tag();
        let said = metadata.iter().rev().find_map(Reading::metadata);
        let ok = self.ok(request, &local_tag, agreed, Some(&session.answer), said);
        let trying = self.build(request.message, 100, None, request.flow).finish();
        let dialog = Dialog::new(request.message, &request.checked, local_tag);
        let id = Id::new(now.wall, self.rules.instance, &mut self.rng);
        let mut recording = Box::new(Recording::new(key, id, now.wall, dialog, request.flow, session));
        recording.certificate = self.connections.certificate(request.flow).cloned();
        recording.replaces = replaces;
        recording.negotiated = !offers;
        recording.asking = Asking::new(request.message);
        recording.awaited = Awaited::Files(Box::new(Opening {
            invite: Pending { offers, ..pending(now, request, agreed, ok) },
            signals: Vec::new(),
            deadline: now.mono + OPEN_TIMEOUT,
            elsewhere: None,
        }));
        let files = self.take_metadata(request.at, &mut recording, metadata);
        let mut files = files;
        if self.rules.format == Format::Raw {
            // Its files say nothing of the call, should this be all that is left of it.
            files.push(recording.first_manifest(&self.rules));
        }
        let open = Open {
            key,
            path: format!("{}/{}", now.wall.hour_path(), recording.id),
            format: self.rules.format,
            streams: recording.session.open_streams(0, address),
            files,
            signals: vec![
                Signal { at: request.at, received: true, flow: request.flow, bytes: request.bytes.clone() },
                Signal { at: now.wall, received: false, flow: request.reply, bytes: trying.clone() },
            ],
        };
        if let (Some(dir), Awaited::Files(opening)) = (&self.rules.terms.fallback_dir, &mut recording.awaited)
        {
            let path = format!("{dir}/{}", open.path);
            opening.elsewhere = Some(Box::new(Open { path, ..open.clone() }));
        }
        self.respond(now, request, 100, trying, out);
        if let Some(id) = request.transaction {
            self.transactions.own(id, key);
        }
        self.dialogs.insert(tag, key);
        self.admission.session_begins(request.flow.peer.ip());
        self.table.publish(&recording.snapshot());
        self.slots.insert(recording);
        self.rearm(key);
        out.push(Command::Open(Box::new(open)));
    }

    /// The files are there and the ports are armed: now the SRC may send.
    pub(super) fn opened(&mut self, now: Now, key: RecordingKey, out: &mut Vec<Command>) {
        let Some(recording) = self.slots.get(key) else { return };
        if recording.state() == State::Failed {
            return out.push(Command::Close(Box::new(super::Close { key, manifest: None })));
        }
        let state = recording.session.expects();
        if !self.enter(now, key, state, "answered", None) {
            return;
        }
        let Some(recording) = self.slots.get_mut(key) else { return };
        let mono = now.mono;
        recording.watch = Watch { answered: mono, heard: mono, signalled: mono, lost: None, looked: mono };
        let Some(opening) = recording.take_opening() else { return };
        out.extend(opening.signals.into_iter().map(|signal| Command::Signal { key, signal }));
        self.setup_times.push(now.mono.0.saturating_sub(opening.invite.received.0));
        self.counters.total.add(1);
        self.accept(now, key, opening.invite, out);
        self.continue_session(now, key);
        self.take_place(now, key, out);
    }

    pub(super) fn open_failed(
        &mut self,
        now: Now,
        key: RecordingKey,
        failure: &Failure,
        out: &mut Vec<Command>,
    ) {
        let Some(recording) = self.slots.get_mut(key) else { return };
        let elsewhere = match &mut recording.awaited {
            Awaited::Files(opening) if is_of_the_disk(failure) => opening.elsewhere.take(),
            _ => None,
        };
        recording.errors.note(now.wall, "open_failed", &failure.to_string());
        if let Some(open) = elsewhere {
            recording.errors.retry();
            if self.enter(now, key, State::Recovering, "open_failed", Some(failure.to_string())) {
                self.counters.opened_elsewhere.add(1);
                out.push(Command::Open(open));
            }
            return;
        }
        if self.slots.get(key).is_some_and(|recording| recording.state() != State::Failed) {
            let refusal = refusal_of(failure, RefuseCause::OpenFailed);
            if !self.fail(now, key, &refusal, out) {
                return;
            }
        }
        self.release(now, key);
    }

    /// The INVITE gets this answer; what is being made for it is closed when it is there.
    pub(super) fn abandon(&mut self, now: Now, key: RecordingKey, refusal: &Refusal, out: &mut Vec<Command>) {
        if self.fail(now, key, refusal, out) {
            self.rearm(key);
        }
    }

    fn fail(&mut self, now: Now, key: RecordingKey, refusal: &Refusal, out: &mut Vec<Command>) -> bool {
        let why = refusal.why.clone().into_owned();
        if !self.enter(now, key, State::Failed, refusal.cause.text(), Some(why)) {
            return false;
        }
        if let Some(opening) = self.slots.get_mut(key).and_then(Recording::take_opening) {
            self.refuse_pending(now, key, &opening.invite, refusal, out);
        }
        true
    }

    /// An INVITE within the dialog (RFC 3261 §14.2), or an UPDATE (RFC 3311 §5.2).
    pub(super) fn reinvite(
        &mut self,
        now: Now,
        key: RecordingKey,
        request: &Request,
        out: &mut Vec<Command>,
    ) {
        let content = match content(request.message, request.bytes) {
            Ok(content) => content,
            Err(error) => return self.refuse(now, request, &bad_content(error), out),
        };
        if let Some(refusal) = self.glare(key, request, content.sdp.is_some()) {
            return self.refuse(now, request, &refusal, out);
        }
        let Some(recording) = self.slots.get_mut(key) else { return };
        let agreed = match refresh::agree(request.message, recording.timer.as_ref(), &self.rules.terms) {
            Ok(agreed) => agreed,
            Err(refusal) => return self.refuse(now, request, &refusal, out),
        };
        recording.dialog.refresh(request.message);
        if let Err(refusal) =
            self.admit_metadata(request.at, key, content.metadata, content.sdp.as_ref(), out)
        {
            return self.refuse(now, request, &refusal, out);
        }
        if request.checked.method == Method::Update && content.sdp.is_none() {
            let ok = self.ok(request, request.checked.to_tag.unwrap_or_default(), agreed, None, None);
            self.respond(now, request, 200, ok, out);
            return self.start_timer(now, key, agreed);
        }
        match self.renegotiate(key, content.sdp) {
            Ok(renegotiated) => self.change(now, key, request, agreed, renegotiated, out),
            Err(refusal) => self.refuse(now, request, &refusal, out),
        }
    }

    /// Why an INVITE or UPDATE has to come again later: one of ours (RFC 3261 §14.2) or another of theirs is still being
    /// answered. What changes no stream (metadata, the session timer) may pass an INVITE in an UPDATE, but not another
    /// UPDATE (RFC 3311 §5.2).
    fn glare(&mut self, key: RecordingKey, request: &Request, offers: bool) -> Option<Refusal> {
        let passes = !offers && request.checked.method == Method::Update;
        let recording = self.slots.get(key)?;
        let offered = recording.unacknowledged.as_ref().is_some_and(|waiting| waiting.offers);
        if (recording.inviting && !passes) || (offered && offers) {
            return Some(Refusal::new(491, RefuseCause::Overload, "an offer of ours is under way"));
        }
        let before = match &self.slots.get(key)?.awaited {
            Awaited::Streams(changing) => Some(changing.pending.method),
            _ => None,
        };
        let waits = before.is_some_and(|method| method == Method::Update || !passes);
        if !waits && request.transaction.is_some() {
            return None;
        }
        let wait = self.rng.random_range(0..=10u8).to_string();
        let refusal = Refusal::new(500, RefuseCause::Overload, "another offer is being answered");
        Some(refusal.field("Retry-After", wait))
    }

    /// What the offer changes. Without an offer (updates of the metadata come so, RFC 8068) the 200 offers what holds
    /// already, and its ACK answers. The media address is that of the first answer, whatever way the
    /// re-INVITE takes: its streams are being received, and recorded, there.
    fn renegotiate(&mut self, key: RecordingKey, sdp: Option<Bytes>) -> Result<Renegotiated, Refusal> {
        let Some(recording) = self.slots.get(key) else { return Err(not_acceptable(399, String::new())) };
        let session = &recording.session;
        let Some(sdp) = sdp else {
            let session = session.offered_again();
            return Ok(Renegotiated { offers: true, session, added: 0, removed: Vec::new() });
        };
        let mut offer = sdp::parse(&sdp).map_err(bad_sdp)?;
        answer::narrow(&mut offer, &session.lines, &session.streams, self.rules.format);
        let room = STREAMS_PER_RECORDING_MAX - session.streams.len();
        let plans = answer::plan(&offer, &session.lines, &session.streams, self.rules.format, room)
            .map_err(|_| not_acceptable(305, "no m-line that can be recorded".to_owned()))?;
        let added = plans.iter().filter(|plan| **plan == Plan::Add).count();
        let pairs = self
            .ports
            .take(key.reactor, added)
            .ok_or_else(|| Refusal::unavailable(RefuseCause::NoPort, "not enough free media ports"))?;
        let (moved, mut removed) = answer::removed(&session.lines, &plans);
        removed.extend(&session.moved);
        let address = self.media_address(recording.source);
        let session = MediaSession { moved, ..session.renegotiated(&offer, &plans, pairs, address) };
        Ok(Renegotiated { offers: false, session, added, removed })
    }

    /// Answers at once when no port is touched, else when the engine has done it. There is no 100 to an UPDATE, which a
    /// proxy would have to hold back (RFC 4320 §4.1).
    fn change(
        &mut self,
        now: Now,
        key: RecordingKey,
        request: &Request,
        agreed: Option<Agreed>,
        renegotiated: Renegotiated,
        out: &mut Vec<Command>,
    ) {
        let Renegotiated { offers, session, added, removed } = renegotiated;
        let Some(source) = self.slots.get(key).map(|recording| recording.source) else { return };
        let address = self.media_address(source);
        let local_tag = request.checked.to_tag.unwrap_or_default();
        let said = self.slots.get(key).map(|recording| recording.history.current());
        let ok = self.ok(request, local_tag, agreed, Some(&session.answer), said);
        let pending = Pending { offers, ..pending(now, request, agreed, ok) };
        if added == 0 && removed.is_empty() {
            self.adopt(now, key, session);
            return self.accept(now, key, pending, out);
        }
        if pending.method == Method::Invite {
            let trying = self.build(request.message, 100, None, request.flow).finish();
            self.respond(now, request, 100, trying, out);
        }
        let add = session.open_streams(session.streams.len() - added, address);
        out.push(Command::Change(Box::new(Change { key, add, remove: removed.clone() })));
        if let Some(recording) = self.slots.get_mut(key) {
            recording.awaited = Awaited::Streams(Box::new(Changing { pending, session, removed }));
        }
    }

    /// From now on this holds; the session is paused or resumed by it.
    pub(super) fn adopt(&mut self, now: Now, key: RecordingKey, session: MediaSession) {
        let Some(recording) = self.slots.get_mut(key) else { return };
        for event in media_changes::events(&recording.session, &session, now.wall) {
            recording.events.push(event);
        }
        recording.session = session;
        recording.attribute();
        recording.life.updated = now.wall;
        let (state, expects) = (recording.state(), recording.session.expects());
        let (id, call_id, streams) =
            (recording.id, recording.dialog.call_id.clone(), recording.session.live());
        self.notices.push(Notice::Updated { id, call_id, at: now.wall, streams });
        if state.established() && state != expects {
            let cause = if expects == State::Paused { "held" } else { "resumed" };
            recording.watch.heard = now.mono;
            self.enter(now, key, expects, cause, None);
            // From here on silence ends it, or no longer does.
            self.rearm(key);
        }
    }

    pub(super) fn changed(&mut self, now: Now, key: RecordingKey, out: &mut Vec<Command>) {
        let Some(recording) = self.slots.get_mut(key) else { return };
        let Some(mut changing) = recording.take_changing() else { return };
        for index in &changing.removed {
            if let Some(pair) = changing.session.streams[usize::from(*index)].ports.take() {
                self.ports.give(now.mono, pair);
            }
        }
        self.adopt(now, key, changing.session);
        self.accept(now, key, changing.pending, out);
    }

    /// As if the re-INVITE had never been (RFC 3261 §14.2).
    pub(super) fn change_failed(
        &mut self,
        now: Now,
        key: RecordingKey,
        failure: &Failure,
        out: &mut Vec<Command>,
    ) {
        let Some(recording) = self.slots.get_mut(key) else { return };
        let Some(changing) = recording.take_changing() else { return };
        let known = recording.session.streams.len();
        for pair in changing.session.streams[known..].iter().filter_map(|stream| stream.ports) {
            self.ports.give(now.mono, pair);
        }
        self.refuse_pending(now, key, &changing.pending, &refusal_of(failure, RefuseCause::OpenFailed), out);
        self.publish(key);
    }

    /// Sends the 200; that of an INVITE until its ACK comes. A 200 that still waited for its own is as good as
    /// acknowledged: the SRC would not have gone on without it.
    fn accept(&mut self, now: Now, key: RecordingKey, invite: Pending, out: &mut Vec<Command>) {
        self.respond_pending(now, key, &invite, 200, invite.ok.clone(), out);
        self.start_timer(now, key, invite.agreed);
        if invite.method == Method::Update {
            return self.publish(key);
        }
        let Some(recording) = self.slots.get_mut(key) else { return };
        let before = recording.unacknowledged.replace(Unacknowledged {
            offers: invite.offers,
            transaction: invite.transaction,
            flow: invite.reply,
            ok: invite.ok,
            cseq: invite.cseq,
            next: now.mono + T1,
            interval: T1 * 2,
            deadline: now.mono + TRANSACTION_TIMEOUT,
        });
        if let Some(id) = before.and_then(|before| before.transaction) {
            self.transactions.acknowledged(id);
        }
        self.rearm(key);
        self.publish(key);
    }

    /// The answer to an offer of ours, in the ACK of its 200 (RFC 3264 §5). Without one a new session has nothing to record,
    /// and ends; one that went on before goes on as before, since updates of the metadata are acknowledged so.
    pub(super) fn take_answer(
        &mut self,
        now: Now,
        key: RecordingKey,
        sdp: Option<Bytes>,
        out: &mut Vec<Command>,
    ) {
        let Some(recording) = self.slots.get_mut(key) else { return };
        let answer = sdp.and_then(|sdp| sdp::parse(&sdp).ok());
        let mut session = recording.session.clone();
        let taken = answer.is_some_and(|answer| session.answered(&answer));
        let first = !std::mem::replace(&mut recording.negotiated, true);
        if taken {
            return self.adopt(now, key, session);
        }
        self.counters.answers_missing.add(1);
        if first {
            self.hang_up(now, key, EndCause::NoAnswer, None, out);
        }
    }

    /// The session timer as the 200 that has been sent says.
    fn start_timer(&mut self, now: Now, key: RecordingKey, agreed: Option<Agreed>) {
        let Some(recording) = self.slots.get_mut(key) else { return };
        if recording.timer.is_some() && agreed.is_some() {
            recording.events.push(Event::new(now.wall, EventKind::Refreshed));
        }
        recording.timer = agreed.map(|agreed| agreed.begin(now.mono, recording.timer.as_ref()));
        self.rearm(key);
    }

    /// The 200 to an INVITE or UPDATE. Only an UPDATE without an offer has no answer. `said` is the metadata that may go
    /// with it.
    fn ok(
        &self,
        request: &Request,
        local_tag: &str,
        agreed: Option<Agreed>,
        answer: Option<&[u8]>,
        said: Option<&Metadata>,
    ) -> Bytes {
        let fields = agreed.map(|agreed| agreed.fields()).unwrap_or_default();
        let ok = || {
            let ok = self
                .build(request.message, 200, Some(local_tag), request.flow)
                .record_routes(request.message)
                .header("Contact", contact(secure(request.message), request.flow))
                .header("Allow", ALLOW);
            fields.iter().fold(ok, |ok, (name, value)| ok.header(name, value))
        };
        let Some(answer) = answer else { return ok().finish() };
        let plain = ok().body("application/sdp", answer).finish();
        match self.answer_with_metadata(request.flow, local_tag, plain.len(), answer, said) {
            Some((content_type, body)) => ok().body(&content_type, &body).finish(),
            None => plain,
        }
    }

    /// A tag that no other dialog has.
    fn new_tag(&mut self) -> (u64, String) {
        loop {
            let tag = self.rng.random();
            if !self.dialogs.contains_key(&tag) {
                return (tag, id::tag(tag));
            }
        }
    }

    fn media_address(&self, flow: Flow) -> IpAddr {
        self.rules.media_ip.unwrap_or(flow.local.ip())
    }
}

/// What every SRS has in its Contact (RFC 7866 §6.2).
pub fn contact(secure: bool, flow: Flow) -> String {
    format!("<{}>;+sip.srs", contact_uri(secure, flow))
}

/// Since the kernel had the request: the set-up time begins then.
fn waited(now: Now, request: &Request) -> Duration {
    Duration::from_nanos(now.wall.0.saturating_sub(request.at.0))
}

fn pending(now: Now, request: &Request, agreed: Option<Agreed>, ok: Bytes) -> Pending {
    let waited = waited(now, request).as_nanos() as u64;
    Pending {
        method: request.checked.method,
        transaction: request.transaction,
        request: request.bytes.clone(),
        flow: request.flow,
        reply: request.reply,
        ok,
        offers: false,
        agreed,
        cseq: request.checked.cseq.number,
        received: Mono(now.mono.0.saturating_sub(waited)),
    }
}

impl Sessions {
    /// Why the request asks for no recording session. RFC 7866 §6.2 wants both `+sip.src` and `siprec`. SRCs are deployed that send
    /// one of them, or `src`, or put them into the brackets, or send neither with their rs-metadata; what to do with those is
    /// ours to say (§6.1.1), and we record unless told to keep to the letter.
    fn no_recording_session(&self, request: &Request, content: &Content) -> Option<Refusal> {
        let refuse = |why: &'static str| Refusal::new(403, RefuseCause::NotRecording, why).warning(399);
        let siprec = [HeaderName::Require, HeaderName::Supported, HeaderName::ProxyRequire]
            .into_iter()
            .any(|field| request.message.tokens(field).any(|tag| tag.eq_ignore_ascii_case("siprec")));
        let contact = request.checked.contact;
        if self.rules.strict_siprec {
            let src = contact.is_some_and(|contact| contact.param("+sip.src").is_some());
            return match (siprec, src) {
                (true, true) => None,
                // It says that it is an SRC, and not that it can do what is asked of one (RFC 3261 §21.4.16).
                (false, true) => {
                    let why = "an SRC requires the option tag siprec (RFC 7866 6.1.1)";
                    Some(
                        Refusal::new(421, RefuseCause::NotRecording, why)
                            .field("Require", "siprec")
                            .warning(399),
                    )
                }
                (false, false) => {
                    Some(refuse("not a recording session: no option tag siprec (RFC 7866 6.2)"))
                }
                (_, false) => Some(refuse("not a recording session: no +sip.src in Contact (RFC 7866 6.2)")),
            };
        }
        let feature = |contact: NameAddr| {
            ["+sip.src", "src"].iter().any(|name| contact.param(name).or(contact.uri_param(name)).is_some())
        };
        let session = siprec || !content.metadata.is_empty() || contact.is_some_and(feature);
        (!session).then(|| refuse("not a recording session: no siprec, +sip.src or rs-metadata"))
    }
}

pub fn bad_content(error: ContentError) -> Refusal {
    match error {
        ContentError::Multipart(error) => Refusal::new(400, RefuseCause::BadRequest, error.to_string()),
        ContentError::UnsupportedType => {
            Refusal::new(415, RefuseCause::UnsupportedBody, "neither SDP nor rs-metadata")
                .field("Accept", ACCEPT)
        }
        ContentError::Encoded => Refusal::new(415, RefuseCause::UnsupportedBody, "encoded body")
            .field("Accept", ACCEPT)
            .field("Accept-Encoding", "identity"),
    }
}

/// 488 also where the SDP cannot be read at all: 400 makes some SRCs give up more than the offer.
fn bad_sdp(error: SdpError) -> Refusal {
    if error == SdpError::TooLarge {
        let why = format!("SDP is larger than {SDP_MAX} bytes");
        return Refusal::new(413, RefuseCause::TooLarge, why).warning(399);
    }
    not_acceptable(399, error.to_string())
}

fn not_acceptable(warning: u16, why: String) -> Refusal {
    Refusal::new(488, RefuseCause::NotAcceptable, why).warning(warning)
}

const EAGAIN: i32 = 11;
const ENOMEM: i32 = 12;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;
const ENOSPC: i32 = 28;
const EDQUOT: i32 = 122;

/// Whether another directory may take what this one did not.
fn is_of_the_disk(failure: &Failure) -> bool {
    !matches!(failure.errno, EAGAIN | ENOMEM | ENFILE | EMFILE)
}

/// Want of space, descriptors or a place in a queue passes; anything else does not pass by waiting.
fn refusal_of(failure: &Failure, cause: RefuseCause) -> Refusal {
    let why = failure.to_string();
    match failure.errno {
        EAGAIN | ENOMEM | ENFILE | EMFILE | ENOSPC | EDQUOT => Refusal::unavailable(cause, why),
        _ => Refusal::new(500, cause, why),
    }
}
