//! Messages on their way out: each response is counted, kept by its transaction, and part of its recording.

use bytes::Bytes;
use rand::Rng;
use serde_json::json;
use std::borrow::Cow;

use super::client::{self, Asker, Purpose};
use super::recording::{Awaited, Pending};
use super::transaction::{Resend, TransactionId};
use super::{Command, Flow, Notice, RecordingKey, Sessions, Signal, Transport, id};
use crate::clock::{Mono, Now, Wall};
use crate::counters::RefuseCause;
use crate::limits::{ANSWER_BYTES_WANTED, EXPLAINED_FINDINGS_MAX, RETRY_AFTER_SECONDS, SIGNALS_PENDING_MAX};
use crate::proto::metadata::{Finding, Findings};
use crate::proto::sip::{Checked, Message, Method, RequestBuilder, ResponseBuilder, reason_phrase, response};

pub const ALLOW: &str = "INVITE, ACK, BYE, CANCEL, OPTIONS, UPDATE, INFO, PRACK";
pub const ACCEPT: &str =
    "application/sdp, application/rs-metadata, application/rs-metadata+xml, multipart/mixed";

/// A request that is being handled.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    pub message: &'a Message<'a>,
    pub checked: Checked<'a>,
    pub bytes: &'a Bytes,
    /// Where it came from, and where its responses go.
    pub flow: Flow,
    pub reply: Flow,
    pub at: Wall,
    /// `None` when there was no room for one: the answer is then not kept.
    pub transaction: Option<TransactionId>,
    /// The recording in whose dialog it is.
    pub owner: Option<RecordingKey>,
}

/// A request of ours in a dialog.
pub struct Ask {
    pub method: Method,
    pub purpose: Purpose,
    pub fields: Vec<(&'static str, String)>,
    /// Its type and its bytes.
    pub body: Option<(&'static str, Bytes)>,
}

/// Why a request is not done, and how its sender is told.
#[derive(Debug)]
pub struct Refusal {
    pub code: u16,
    pub cause: RefuseCause,
    pub why: Cow<'static, str>,
    pub fields: Vec<(&'static str, String)>,
    /// What is wrong with the metadata, where it is that.
    pub findings: Option<Box<Findings>>,
}

impl Refusal {
    pub fn new(code: u16, cause: RefuseCause, why: impl Into<Cow<'static, str>>) -> Refusal {
        Refusal { code, cause, why: why.into(), fields: Vec::new(), findings: None }
    }

    pub fn field(mut self, name: &'static str, value: impl Into<String>) -> Refusal {
        self.fields.push((name, value.into()));
        self
    }

    pub fn findings(self, findings: &Findings) -> Refusal {
        Refusal { findings: Some(Box::new(findings.clone())), ..self }
    }

    /// The reason also as a Warning (RFC 3261 §20.43): 304 media type, 305 format, 399 anything.
    pub fn warning(self, code: u16) -> Refusal {
        let text = self.why.replace(['"', '\\'], "'");
        self.field("Warning", format!("{code} sipreel \"{text}\""))
    }

    /// 503: there is no room now.
    pub fn unavailable(cause: RefuseCause, why: impl Into<Cow<'static, str>>) -> Refusal {
        Refusal::new(503, cause, why).field("Retry-After", RETRY_AFTER_SECONDS.to_string())
    }

    /// The reason phrase says what is wrong where the code alone does not.
    fn apply(&self, mut response: ResponseBuilder, explain: bool) -> ResponseBuilder {
        if matches!(self.code, 400 | 505) {
            response = response.reason(&self.why);
        }
        let response =
            self.fields.iter().fold(response, |response, (name, value)| response.header(name, value));
        if explain { response.body("application/problem+json", self.problem().as_bytes()) } else { response }
    }

    /// RFC 9457, as far as it fits SIP.
    fn problem(&self) -> String {
        let findings = self.findings.iter().flat_map(|findings| findings.iter()).take(EXPLAINED_FINDINGS_MAX);
        let finding = |finding: &Finding| {
            let Finding { code, element, value, times } = finding;
            json!({
                "code": code.text(), "severity": code.severity(), "element": element, "value": value, "times": times,
                "source": code.source(), "rule": code.rule(),
            })
        };
        json!({
            "title": reason_phrase(self.code), "status": self.code, "cause": self.cause.text(), "detail": self.why,
            "findings": findings.map(finding).collect::<Vec<_>>(),
        })
        .to_string()
    }
}

impl Sessions {
    pub(super) fn build(
        &self,
        message: &Message,
        code: u16,
        to_tag: Option<&str>,
        flow: Flow,
    ) -> ResponseBuilder {
        response(message, code, to_tag, flow.peer).header("Server", &self.rules.product)
    }

    /// The tag of an answer without a dialog: the same for the same bytes (RFC 3261 §8.2.7).
    pub(super) fn stateless_tag(&self, bytes: &Bytes) -> String {
        id::tag(self.fingerprint.tag(bytes))
    }

    /// A response with nothing but its code and these fields.
    pub(super) fn answer(
        &mut self,
        now: Now,
        request: &Request,
        code: u16,
        fields: &[(&str, &str)],
        out: &mut Vec<Command>,
    ) {
        let tag = self.stateless_tag(request.bytes);
        let mut response = self.build(request.message, code, Some(&tag), request.flow);
        for (name, value) in fields {
            response = response.header(name, value);
        }
        self.respond(now, request, code, response.finish(), out);
    }

    pub(super) fn refuse(&mut self, now: Now, request: &Request, refusal: &Refusal, out: &mut Vec<Command>) {
        let tag = self.stateless_tag(request.bytes);
        let bytes = self.refusal(request.message, &tag, request.flow, refusal);
        if request.checked.method == Method::Invite {
            self.note_refusal(
                now,
                refusal,
                request.checked.call_id,
                request.flow,
                request.checked.to_tag.is_none(),
            );
        }
        if let Some(recording) = request.owner.and_then(|key| self.slots.get_mut(key)) {
            recording.errors.note(now.wall, refusal.code.to_string(), &refusal.why);
        }
        self.respond(now, request, refusal.code, bytes, out);
    }

    /// It explains itself where this is asked for, and on UDP only as far as it fits one packet.
    fn refusal(&self, message: &Message, tag: &str, flow: Flow, refusal: &Refusal) -> Bytes {
        let bytes =
            |explain| refusal.apply(self.build(message, refusal.code, Some(tag), flow), explain).finish();
        let fits = |bytes: &Bytes| flow.transport != Transport::Udp || bytes.len() <= ANSWER_BYTES_WANTED;
        let explained = self.rules.explain_refusals.then(|| bytes(true)).filter(fits);
        explained.unwrap_or_else(|| bytes(false))
    }

    /// The final response to an INVITE or UPDATE that had to wait and is refused after all.
    pub(super) fn refuse_pending(
        &mut self,
        now: Now,
        key: RecordingKey,
        pending: &Pending,
        refusal: &Refusal,
        out: &mut Vec<Command>,
    ) {
        let parsed = match pending.flow.transport.reliable() {
            false => Message::parse_datagram(&pending.request),
            true => Message::parse_framed(&pending.request),
        };
        let (Ok(message), Some(recording)) = (parsed, self.slots.get(key)) else { return };
        let bytes = self.refusal(&message, &recording.dialog.local_tag, pending.flow, refusal);
        let (call_id, initial) = (recording.dialog.call_id.clone(), !recording.established());
        self.note_refusal(now, refusal, &call_id, pending.flow, initial);
        if let Some(recording) = self.slots.get_mut(key) {
            recording.errors.note(now.wall, refusal.code.to_string(), &refusal.why);
        }
        self.respond_pending(now, key, pending, refusal.code, bytes, out);
    }

    pub(super) fn respond_pending(
        &mut self,
        now: Now,
        key: RecordingKey,
        pending: &Pending,
        code: u16,
        bytes: Bytes,
        out: &mut Vec<Command>,
    ) {
        self.count_response(code);
        if let Some(id) = pending.transaction {
            self.transactions.respond(now.mono, id, code, bytes.clone());
        }
        self.transmit(now, pending.reply, bytes, Some(key), out);
    }

    pub(super) fn respond(
        &mut self,
        now: Now,
        request: &Request,
        code: u16,
        bytes: Bytes,
        out: &mut Vec<Command>,
    ) {
        self.count_response(code);
        if let Some(id) = request.transaction {
            self.transactions.respond(now.mono, id, code, bytes.clone());
        }
        self.transmit(now, request.reply, bytes, request.owner, out);
    }

    pub(super) fn count_response(&mut self, code: u16) {
        self.counters.responses[usize::from(code)].add(1);
        self.counters.bad_requests.add(u64::from(code == 400));
    }

    pub(super) fn resend(&mut self, now: Now, resend: Resend, out: &mut Vec<Command>) {
        self.counters.retransmissions_sent.add(1);
        self.transmit(now, resend.flow, resend.bytes, resend.owner, out);
    }

    /// Sends a request of ours, and again until it is answered. `false`: no way leads to the SRC now.
    pub(super) fn ask(&mut self, now: Now, key: RecordingKey, ask: Ask, out: &mut Vec<Command>) -> bool {
        let branch = self.rng.random();
        let way = self.way(key);
        let Some((recording, flow)) = self.slots.get_mut(key).zip(way) else { return false };
        let product = &self.rules.product;
        let complete = |request: RequestBuilder| {
            let request = request.header("User-Agent", product);
            let request =
                ask.fields.iter().fold(request, |request, (name, value)| request.header(name, value));
            match &ask.body {
                Some((content_type, body)) => request.body(content_type, body),
                None => request,
            }
        };
        let (flow, bytes) = recording.dialog.request(ask.method.text(), flow, branch, complete);
        let asker = Asker { key, purpose: ask.purpose };
        self.clients.begin(now.mono, branch, asker, flow, bytes.clone());
        self.transmit(now, flow, bytes, Some(key), out);
        true
    }

    /// The flow by which the SRC of this recording can be reached now.
    pub(super) fn way(&self, key: RecordingKey) -> Option<Flow> {
        let recording = self.slots.get(key)?;
        self.connections.way(recording.flow, recording.certificate.as_deref())
    }

    /// The ACK of a final response to our INVITE (RFC 3261 §13.2.2.4, §17.1.1.3).
    pub(super) fn acknowledge_response(
        &mut self,
        now: Now,
        key: RecordingKey,
        response: &Message,
        code: u16,
        out: &mut Vec<Command>,
    ) {
        let (Ok(via), Ok(cseq)) = (response.via(), response.cseq()) else { return };
        let branch = via.branch.unwrap_or_default();
        let of_2xx = self.rng.random();
        let way = self.way(key);
        let Some((recording, flow)) = self.slots.get_mut(key).zip(way) else { return };
        if code < 300 {
            recording.dialog.refresh(response);
        }
        let number = if code < 300 { of_2xx } else { client::number(branch).unwrap_or(of_2xx) };
        let (flow, ack) = recording.dialog.ack(flow, number, cseq.number);
        self.clients.acknowledged(branch, flow, ack.clone());
        self.transmit(now, flow, ack, Some(key), out);
    }

    pub(super) fn transmit(
        &mut self,
        now: Now,
        flow: Flow,
        bytes: Bytes,
        owner: Option<RecordingKey>,
        out: &mut Vec<Command>,
    ) {
        // The recording has it before the peer can act on it; the two may be on different reactors.
        if let Some(key) = owner {
            self.signal(key, Signal { at: now.wall, received: false, flow, bytes: bytes.clone() }, out);
        }
        out.push(Command::Send { flow, bytes });
    }

    /// A message of the dialog, for the pcap. While the files are being made it waits; after the end it is too late.
    pub(super) fn signal(&mut self, key: RecordingKey, signal: Signal, out: &mut Vec<Command>) {
        let Some(recording) = self.slots.get_mut(key) else { return };
        let established = recording.established();
        match &mut recording.awaited {
            Awaited::Files(opening) if opening.signals.len() < SIGNALS_PENDING_MAX => {
                opening.signals.push(signal)
            }
            _ if established => out.push(Command::Signal { key, signal }),
            _ => {}
        }
    }

    /// Only an INVITE that wanted a new recording counts as refused: in a dialog the recording goes on.
    fn note_refusal(&mut self, now: Now, refusal: &Refusal, call_id: &str, flow: Flow, initial: bool) {
        if initial {
            self.counters.refused[refusal.cause as usize].add(1);
        }
        if !self.hush.shows(now.mono, refusal.cause) {
            return;
        }
        self.notices.push(Notice::Refused {
            call_id: call_id.to_owned(),
            peer: flow.peer,
            code: refusal.code,
            why: refusal.why.clone().into_owned(),
        });
    }

    pub(super) fn refusals_over(&mut self, now: Mono) {
        let more = self.hush.over(now).map(|(cause, more)| Notice::MoreRefused { cause: cause.text(), more });
        self.notices.extend(more);
    }
}
