//! Every message that comes in: to its transaction, to its dialog, to what it asks for.

use bytes::Bytes;
use rand::Rng;

use super::client::{Asker, Purpose, Taken};
use super::content::{ContentError, content};
use super::digest::Unproved;
use super::invite::bad_content;
use super::recording::Recording;
use super::send::{ACCEPT, ALLOW, Refusal, Request};
use super::transaction::{Acknowledged, Identity, TransactionId};
use super::{Command, Flow, RecordingKey, Sessions, Signal, Transport};
use crate::clock::{Now, Wall};
use crate::counters::RefuseCause;
use crate::proto::manifest::Resource;
use crate::proto::sip::{Checked, HeaderName, Malformed, Message, Method, Rport, Start, Via};

/// Option tags that an SRC may require of us. `100rel` costs nothing, because we send no provisional response but 100
/// (RFC 3262 §3); the others ask for nothing beyond what every UAS does, or speak to other parties.
const UNDERSTOOD: [&str; 8] =
    ["siprec", "timer", "100rel", "replaces", "record-aware", "histinfo", "norefersub", "from-change"];

impl Sessions {
    pub(super) fn message(&mut self, now: Now, flow: Flow, bytes: &Bytes, at: Wall, out: &mut Vec<Command>) {
        // Keepalives of NAT bindings: blank lines, or nothing but zero bytes.
        if bytes.iter().all(|byte| matches!(byte, b'\r' | b'\n' | b' ' | 0)) {
            return;
        }
        let parsed = match flow.transport.reliable() {
            false => Message::parse_datagram(bytes),
            true => Message::parse_framed(bytes),
        };
        match parsed {
            Err(problem) => match Message::salvage(bytes).filter(|_| problem.answerable()) {
                Some(message) => self.refuse_malformed(now, &message, problem, flow, bytes, out),
                None => self.counters.malformed.add(1),
            },
            Ok(message) => match message.start() {
                Start::Response { code, .. } => {
                    let signal = Signal { at, received: true, flow, bytes: bytes.clone() };
                    self.response(now, &message, code, signal, out)
                }
                Start::Request { .. } => self.request(now, &message, flow, bytes, at, out),
            },
        }
    }

    fn response(&mut self, now: Now, message: &Message, code: u16, signal: Signal, out: &mut Vec<Command>) {
        let branch = message.via().ok().and_then(|via| via.branch).unwrap_or_default();
        match self.clients.response(now.mono, branch, code) {
            Taken::Stray => self.counters.stray.add(1),
            Taken::Absorbed(asker) => self.signal(asker.key, signal, out),
            Taken::Again(flow, ack) => {
                self.counters.retransmissions_sent.add(1);
                out.push(Command::Send { flow, bytes: ack })
            }
            Taken::Final(asker) => {
                self.signal(asker.key, signal, out);
                if message.cseq().is_ok_and(|cseq| cseq.method == Method::Invite) {
                    self.acknowledge_response(now, asker.key, message, code, out);
                }
                self.answered(now, asker, code, Some(message), out);
            }
        }
    }

    /// The final response to a request of ours. None in time is as good as 408 (RFC 3261 §8.1.3.1).
    pub(super) fn answered(
        &mut self,
        now: Now,
        asker: Asker,
        code: u16,
        response: Option<&Message>,
        out: &mut Vec<Command>,
    ) {
        match asker.purpose {
            Purpose::Bye => {}
            Purpose::Refresh => self.refreshed(now, asker.key, code, response, out),
            Purpose::Snapshot => self.snapshot_answered(asker.key, code),
        }
    }

    /// 400, or 505, without a transaction: what is wrong may be what would have named it.
    fn refuse_malformed(
        &mut self,
        now: Now,
        message: &Message,
        problem: Malformed,
        flow: Flow,
        bytes: &Bytes,
        out: &mut Vec<Command>,
    ) {
        let method = match message.start() {
            Start::Request { method, .. } => method,
            Start::Response { .. } => Method::Other,
        };
        let Ok(via) = message.via() else { return self.counters.malformed.add(1) };
        if method == Method::Ack || !problem.answerable() {
            return self.counters.malformed.add(1);
        }
        if self.admission.request(now.mono, flow.peer.ip()).is_err() {
            return self.counters.rate_limited.add(1);
        }
        if method == Method::Invite {
            self.counters.refused[RefuseCause::BadRequest as usize].add(1);
        }
        self.counters.requests[method as usize].add(1);
        self.count_response(problem.code());
        let tag = self.stateless_tag(bytes);
        let response = self.build(message, problem.code(), Some(&tag), flow).reason(problem.text());
        self.transmit(now, reply_flow(flow, &via), response.finish(), None, out);
    }

    fn request(
        &mut self,
        now: Now,
        message: &Message,
        flow: Flow,
        bytes: &Bytes,
        at: Wall,
        out: &mut Vec<Command>,
    ) {
        let checked = match message.check_request() {
            Ok(checked) => checked,
            Err(problem) => return self.refuse_malformed(now, message, problem, flow, bytes, out),
        };
        self.counters.requests[checked.method as usize].add(1);
        let reply = reply_flow(flow, &checked.via);
        let owner = self.dialog_of(&checked);
        let mut request = Request { message, checked, bytes, flow, reply, at, transaction: None, owner };
        let identity = self.fingerprint.transaction(&checked, checked.method);
        match (self.transactions.find(identity), checked.method) {
            (found, Method::Ack) => self.acknowledge(now, &request, found, out),
            (Some(id), _) => self.repeated(now, request, id, out),
            (None, _) => {
                if let Some(refusal) = self.too_often(now, &request) {
                    return self.refuse(now, &request, &refusal, out);
                }
                if !self.proved(now, &request, out) {
                    return;
                }
                let merged = self.begin(&mut request, identity);
                self.note_received(now, &request, out);
                match inspect(&request, merged) {
                    Err(refusal) => self.refuse(now, &request, &refusal, out),
                    Ok(()) => self.dispatch(now, &request, out),
                }
            }
        }
    }

    /// Requests within a dialog, and a CANCEL of what is here, are of calls that were let in. What is refused for its rate has no
    /// transaction: a repetition is another request, and costs what it costs its sender.
    fn too_often(&mut self, now: Now, request: &Request) -> Option<Refusal> {
        let cancels = || {
            let invite = self.fingerprint.transaction(&request.checked, Method::Invite);
            request.checked.method == Method::Cancel && self.transactions.find(invite).is_some()
        };
        if request.owner.is_some() || cancels() {
            return None;
        }
        let cause = self.admission.request(now.mono, request.flow.peer.ip()).err()?;
        self.counters.rate_limited.add(1);
        Some(Refusal::unavailable(cause, "too many requests"))
    }

    /// Whether it is known who sends the request; else it has been answered 401. A request without proof is answered once and
    /// forgotten, so that asking costs nothing here (RFC 3261 §26.3.2.4).
    fn proved(&mut self, now: Now, request: &Request, out: &mut Vec<Command>) -> bool {
        let Checked { method, method_text, .. } = request.checked;
        // A CANCEL cannot be sent again (§22.1). OPTIONS outside of a dialog is how balancers look for life, without a password.
        let exempt = method == Method::Cancel || (method == Method::Options && request.owner.is_none());
        let Some(guard) = self.guard.as_mut().filter(|_| !exempt) else { return true };
        let values = request.message.all(HeaderName::Authorization);
        let Err(unproved) = guard.check(now.mono, method_text, values) else { return true };
        let challenges = guard.challenges(now.mono, self.rng.random(), unproved == Unproved::Stale);
        let fields = challenges.into_iter().map(|challenge| ("WWW-Authenticate", challenge));
        let why = "no such user, or another password";
        let refusal =
            Refusal { fields: fields.collect(), ..Refusal::new(401, RefuseCause::Unauthenticated, why) };
        self.counters.challenged.add(1);
        self.note_received(now, request, out);
        if unproved == Unproved::Wrong {
            self.counters.auth_failed.add(1);
            self.refuse(now, request, &refusal, out);
        } else {
            let fields: Vec<_> = refusal.fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
            self.answer(now, request, 401, &fields, out);
        }
        false
    }

    /// An ACK ends the transaction of a failure. That of a 2xx has a branch of its own, or should have.
    fn acknowledge(
        &mut self,
        now: Now,
        request: &Request,
        found: Option<TransactionId>,
        out: &mut Vec<Command>,
    ) {
        self.note_received(now, request, out);
        let of_2xx = found.is_none_or(|id| self.transactions.ack(now.mono, id) == Acknowledged::Success);
        if of_2xx {
            self.ack(now, request, out);
            request.owner.into_iter().for_each(|key| self.continue_session(now, key));
        }
    }

    fn repeated(&mut self, now: Now, mut request: Request, id: TransactionId, out: &mut Vec<Command>) {
        self.counters.retransmissions_received.add(1);
        // An initial INVITE has no To tag, so only its transaction knows the recording.
        request.owner = request.owner.or(self.transactions.owner(id));
        self.note_received(now, &request, out);
        if let Some(resend) = self.transactions.again(id) {
            self.resend(now, resend, out);
        }
    }

    /// Gives the request its transaction, if there is room. `true`: it came over another way before.
    fn begin(&mut self, request: &mut Request, identity: Identity) -> bool {
        let method = request.checked.method;
        let merge = self.fingerprint.merge(&request.checked).filter(|_| method != Method::Cancel);
        let merged = self.transactions.merged(merge);
        match self.transactions.begin(identity, merge, method == Method::Invite, request.reply) {
            Ok(id) => request.transaction = Some(id),
            Err(_) => self.counters.transactions_full.add(1),
        }
        if let (Some(id), Some(owner)) = (request.transaction, request.owner) {
            self.transactions.own(id, owner);
        }
        merged
    }

    fn dispatch(&mut self, now: Now, request: &Request, out: &mut Vec<Command>) {
        match (request.checked.method, request.owner) {
            (Method::Cancel, _) => self.cancel(now, request, out),
            (_, Some(key)) => self.in_dialog(now, key, request, out),
            (_, None) if request.checked.to_tag.is_some() => self.unknown_dialog(now, request, out),
            (Method::Invite, None) => self.invite(now, request, out),
            (Method::Options, None) => self.options(now, request, out),
            // BYE, UPDATE, INFO and PRACK without a To tag are in no dialog.
            (_, None) => self.unknown_dialog(now, request, out),
        }
    }

    /// RFC 3261 §12.2.2
    fn in_dialog(&mut self, now: Now, key: RecordingKey, request: &Request, out: &mut Vec<Command>) {
        let Some(recording) = self.slots.get_mut(key) else { return };
        if recording.dialog.receive(request.checked.cseq.number).is_err() {
            let refusal = Refusal::new(500, RefuseCause::BadRequest, "CSeq is lower than the one before");
            return self.refuse(now, request, &refusal, out);
        }
        recording.flow = request.flow;
        if recording.farewell.is_some() {
            return self.last_request(now, key, request, out);
        }
        match request.checked.method {
            Method::Invite | Method::Update => self.reinvite(now, key, request, out),
            Method::Bye => self.bye(now, key, request, out),
            Method::Info => self.info(now, key, request, out),
            // We send no reliable provisional response that it could be for (RFC 3262 §3).
            Method::Prack => self.unknown_dialog(now, request, out),
            _ => self.describe(now, request, out),
        }
        self.ask_for_snapshot(now, key, out);
        // Its metadata may have named another communication session.
        self.continue_session(now, key);
    }

    /// Metadata is taken from INFO too. What else comes so (DTMF, mostly) is in the pcap, and no reason for a refusal.
    fn info(&mut self, now: Now, key: RecordingKey, request: &Request, out: &mut Vec<Command>) {
        if request.message.other("Info-Package").is_some() {
            // RFC 6086 §4.2.2: for a package that we did not ask for, and we ask for none.
            let refusal = Refusal::new(469, RefuseCause::BadRequest, "no Info package is wanted");
            return self.refuse(now, request, &refusal.field("Recv-Info", ""), out);
        }
        match content(request.message, request.bytes) {
            Ok(content) => {
                if let Err(refusal) = self.admit_metadata(request.at, key, content.metadata, None, out) {
                    return self.refuse(now, request, &refusal, out);
                }
            }
            Err(ContentError::UnsupportedType) => {}
            Err(error) => return self.refuse(now, request, &bad_content(error), out),
        }
        self.answer(now, request, 200, &[], out);
    }

    pub(super) fn unknown_dialog(&mut self, now: Now, request: &Request, out: &mut Vec<Command>) {
        self.refuse(now, request, &Refusal::new(481, RefuseCause::BadRequest, "unknown dialog"), out);
    }

    /// Answered as an INVITE would be (RFC 3261 §11.2): balancers ask this way whether there is room.
    fn options(&mut self, now: Now, request: &Request, out: &mut Vec<Command>) {
        match self.no_room() {
            Some(refusal) => {
                let load = self.load().into_iter();
                let refusal = load.fold(refusal, |refusal, (name, value)| refusal.field(name, value));
                self.refuse(now, request, &refusal, out);
            }
            None => self.describe(now, request, out),
        }
    }

    fn describe(&mut self, now: Now, request: &Request, out: &mut Vec<Command>) {
        let [(resource_name, resource), (capacity_name, capacity)] = self.load();
        let fields = [
            ("Allow", ALLOW),
            ("Accept", ACCEPT),
            ("Accept-Encoding", "identity"),
            ("Supported", "siprec, timer"),
            (resource_name, resource.as_str()),
            (capacity_name, capacity.as_str()),
        ];
        self.answer(now, request, 200, &fields, out);
    }

    /// Which recorder this is and what it has left, for who asks by OPTIONS. Balancers weigh recorders by it: a 503 alone
    /// says only which to leave out. SIP has no field for that (RFC 7339 tells a rate, to those who negotiate it).
    fn load(&self) -> [(&'static str, String); 2] {
        let Resource { id, region, group } = &self.rules.resource;
        let label = |name: &str, value: &Option<String>| {
            value.as_ref().map(|value| format!(";{name}={value}")).unwrap_or_default()
        };
        let resource = format!("{id}{}{}", label("region", region), label("group", group));
        let capacity = format!(
            "sessions={};max={};ports={}",
            self.slots.occupied(),
            self.rules.sessions_max,
            self.ports.free()
        );
        [("X-Sipreel-Resource", resource), ("X-Sipreel-Capacity", capacity)]
    }

    /// The ACK of a 2xx: it names the dialog and the CSeq number of its INVITE.
    fn ack(&mut self, now: Now, request: &Request, out: &mut Vec<Command>) {
        let Some((key, recording)) = request.owner.and_then(|key| Some((key, self.slots.get_mut(key)?)))
        else {
            return self.counters.stray.add(1);
        };
        let number = request.checked.cseq.number;
        let Some(waiting) = recording.unacknowledged.take_if(|waiting| waiting.cseq == number) else {
            return; // repeated, because the 200 was
        };
        recording.flow = request.flow;
        if let Some(id) = waiting.transaction {
            self.transactions.acknowledged(id);
        }
        if recording.farewell.is_some() {
            return self.say_farewell(now, key, out);
        }
        self.rearm(key);
        let content = content(request.message, request.bytes).unwrap_or_default();
        if let Err(why) = self.file_metadata(request.at, key, content.metadata, out) {
            return self.refuse_by_bye(now, key, &why, out);
        }
        if waiting.offers {
            self.take_answer(now, key, content.sdp, out);
        }
        self.ask_for_snapshot(now, key, out);
    }

    /// The recording that takes requests in the dialog of this request.
    fn dialog_of(&self, checked: &Checked) -> Option<RecordingKey> {
        let tag = checked.to_tag?;
        let key = *self.dialogs.get(&u64::from_str_radix(tag, 16).ok()?)?;
        let here = |recording: &&Recording| recording.established() || recording.farewell.is_some();
        let recording = self.slots.get(key).filter(here)?;
        (recording.dialog.local_tag == tag && recording.dialog.matches(checked)).then_some(key)
    }

    fn note_received(&mut self, now: Now, request: &Request, out: &mut Vec<Command>) {
        if let Some(key) = request.owner {
            if let Some(recording) = self.slots.get_mut(key) {
                recording.life.last_signalling = request.at;
                recording.watch.signalled = now.mono;
            }
            let signal =
                Signal { at: request.at, received: true, flow: request.flow, bytes: request.bytes.clone() };
            self.signal(key, signal, out);
        }
    }

    /// RFC 3261 §9.2
    fn cancel(&mut self, now: Now, request: &Request, out: &mut Vec<Command>) {
        let identity = self.fingerprint.transaction(&request.checked, Method::Invite);
        let Some(invite) = self.transactions.find(identity) else {
            return self.unknown_dialog(now, request, out);
        };
        let key = self.transactions.owner(invite);
        let recording = key.and_then(|key| self.slots.get(key));
        let tag = match recording {
            Some(recording) => recording.dialog.local_tag.clone(),
            None => self.stateless_tag(request.bytes),
        };
        let opening = recording.is_some_and(|recording| recording.state().opening());
        let ok = self.build(request.message, 200, Some(&tag), request.flow).finish();
        self.respond(now, request, 200, ok, out);
        // A re-INVITE whose streams are being armed is past recall: its 200 comes as if it had crossed the CANCEL.
        if let Some(key) = key.filter(|_| opening) {
            self.abandon(now, key, &Refusal::new(487, RefuseCause::Cancelled, "cancelled"), out);
        }
    }
}

/// What RFC 3261 §8.2 asks of every request, in its order: the method, the Request-URI, whether it came before, what it
/// requires. A CANCEL is never refused for what it requires (§8.2.2.3), and has the Request-URI of its INVITE.
fn inspect(request: &Request, merged: bool) -> Result<(), Refusal> {
    let Checked { method, to_tag, uri, .. } = request.checked;
    method_is_known(method)?;
    if method == Method::Cancel {
        return Ok(());
    }
    uri_is_ours(uri)?;
    if merged {
        return Err(Refusal::new(482, RefuseCause::BadRequest, "the same request over another way"));
    }
    // 481 says more to a request in a dialog that there is not.
    let nowhere = to_tag.is_some() && request.owner.is_none();
    if nowhere { Ok(()) } else { extensions_are_known(request.message) }
}

/// 405 for methods that others do, 501 for those that nobody knows (RFC 3261 §21.4.6, §21.5.2).
fn method_is_known(method: Method) -> Result<(), Refusal> {
    use Method::{Ack, Bye, Cancel, Info, Invite, Options, Prack, Update};
    let code = match method {
        Invite | Ack | Bye | Cancel | Options | Update | Info | Prack => return Ok(()),
        Method::Other => 501,
        _ => 405,
    };
    Err(Refusal::new(code, RefuseCause::BadRequest, "method not done here").field("Allow", ALLOW))
}

/// RFC 3261 §8.2.2.1. A recorder is who its operator says: every `sip:` and `sips:` URI that gets here is meant for us, over
/// whatever transport the last hop took, and so is every number (RFC 3966).
fn uri_is_ours(uri: &str) -> Result<(), Refusal> {
    let (scheme, rest) = uri.split_once(':').unwrap_or((uri, ""));
    let is = |known: &str| scheme.eq_ignore_ascii_case(known);
    if is("sip") || is("sips") {
        return Ok(());
    }
    if !is("tel") {
        return Err(Refusal::new(416, RefuseCause::BadUri, "neither sip, sips nor tel"));
    }
    match rest.split(';').next().is_some_and(|number| number.bytes().any(|b| b.is_ascii_digit())) {
        true => Ok(()),
        false => Err(Refusal::new(404, RefuseCause::BadUri, "a tel URI without a number")),
    }
}

/// RFC 3261 §18.2.2: over the connection of the request; on UDP to where it came from when it asks so with `rport`
/// (RFC 3581 §4), else to the port of its Via.
fn reply_flow(flow: Flow, via: &Via) -> Flow {
    match (flow.transport, via.rport) {
        (Transport::Udp, Rport::Absent) => {
            // Not a new address: that of a link is nothing without its zone.
            let mut peer = flow.peer;
            peer.set_port(via.port.unwrap_or(5060));
            Flow { peer, ..flow }
        }
        _ => flow,
    }
}

/// RFC 3261 §8.2.2.3
fn extensions_are_known(message: &Message) -> Result<(), Refusal> {
    let understood = |tag: &&str| UNDERSTOOD.iter().any(|known| known.eq_ignore_ascii_case(tag));
    let unknown: Vec<&str> = message.tokens(HeaderName::Require).filter(|tag| !understood(tag)).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let list = unknown.join(", ");
    let refusal = Refusal::new(420, RefuseCause::BadExtension, format!("requires {list}"));
    Err(refusal.field("Unsupported", list))
}
