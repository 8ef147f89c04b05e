//! Watches what goes between the SRCs and the recorder, and holds every message of the recorder to RFC 3261.
//!
//! A message that was broken on the way may be read in more than one way. Transactions that such a message began, or that were
//! answered because of one, are let alone; half of all worlds have none.

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use sipreel::clock::Mono;
use sipreel::limits::{T1, T4, TRANSACTION_TIMEOUT};
use sipreel::proto::manifest::Manifest;
use sipreel::session::{Ends, Flow, Open, RecordingKey, Transport};

use crate::engine::Engine;
use crate::report::{Report, Rule};
use crate::sip::{Key, Message, m_ports, sdp_lines};

/// How late the world calls a timeout at most.
pub const LATENESS: Duration = Duration::from_millis(20);

/// What the recorder is busy with while it gives a command.
pub struct Cause {
    pub message: Option<Message>,
    pub broken: bool,
}

/// What the world knows of a recording that ends.
pub struct Circumstances<'a> {
    pub draining: bool,
    pub ends: &'a Ends,
    pub age: Duration,
    pub silence: Duration,
    /// When the first connection broke.
    pub cut: Option<Mono>,
    /// Ids that the operator wanted ended.
    pub ordered: &'a [String],
}

#[derive(Default)]
pub struct Referee {
    servers: BTreeMap<Key, Server>,
    own: BTreeMap<String, OwnRequest>,
    /// Branches of our ACKs.
    acks: BTreeSet<String>,
    /// By Call-ID and our tag.
    dialogs: BTreeMap<(String, String), Dialog>,
    /// The recording that an INVITE has begun.
    begun: BTreeMap<Key, RecordingKey>,
    pub seen: Seen,
}

/// What the counters have to agree with.
#[derive(Default, Debug)]
pub struct Seen {
    /// By method, of requests that nothing had broken.
    pub requests: BTreeMap<String, u64>,
    pub sent: u64,
    pub own_requests: u64,
    /// Transactions of INVITEs without a To tag, by final response.
    pub initial: BTreeMap<u16, u64>,
    pub established: u64,
    pub any_broken: bool,
    pub ends: BTreeMap<String, u64>,
}

/// A server transaction of the recorder.
struct Server {
    request: Message,
    flow: Flow,
    /// Something broken had to do with it.
    lenient: bool,
    last: Option<Final>,
}

struct Final {
    code: u16,
    bytes: Bytes,
    first: Mono,
    /// Of those that a timer has sent.
    newest: Mono,
    acknowledged: Option<Mono>,
}

/// A request of the recorder.
struct OwnRequest {
    bytes: Bytes,
    /// The dialog that it is in: Call-ID and our tag.
    dialog: (String, String),
    method: String,
    answered: bool,
}

struct Dialog {
    recording: Option<RecordingKey>,
    remote_tag: String,
    /// The newest Contact of the SRC that was accepted, and those that came since: RFC 3261 §12.2.2 and RFC 6141 §4 differ.
    target: String,
    heard: Vec<String>,
    origin: Option<(String, u64)>,
    answer: String,
    own_cseq: u32,
    /// CSeq of the INVITE whose 2xx has no ACK yet, and when that was first sent.
    unacknowledged: Option<(u32, Mono)>,
    bye_received: bool,
    bye_sent: bool,
    /// The session timer (RFC 4028): since when, and for how long.
    expires: Option<(Mono, Duration)>,
    /// When we have asked for its refresh, and whether the SRC did not know the dialog any more.
    refreshing: Option<Mono>,
    forgotten: bool,
}

impl Referee {
    // ---- what arrives -------------------------------------------------------------------------------------------

    pub fn arrives(&mut self, now: Mono, flow: Flow, cause: &Cause) {
        self.seen.any_broken |= cause.broken;
        let Some(message) = &cause.message else { return };
        if message.code().is_some() {
            return self.answer_arrives(now, message, cause.broken);
        }
        if !cause.broken {
            *self.seen.requests.entry(message.method().to_owned()).or_default() += 1;
        }
        let Some(key) = message.key() else { return };
        if message.method() == "ACK" {
            return self.ack_arrives(now, message, &key, cause.broken);
        }
        match self.servers.get_mut(&key) {
            Some(server) if !server.over(now) => server.lenient |= cause.broken,
            _ => {
                let server = Server { request: message.clone(), flow, lenient: cause.broken, last: None };
                self.servers.insert(key, server);
            }
        }
        if let Some(dialog) = self.dialog_of(message) {
            dialog.bye_received |= message.method() == "BYE";
            if let Some(contact) = message.contact() {
                dialog.heard.push(contact.to_owned());
            }
        }
    }

    fn answer_arrives(&mut self, now: Mono, message: &Message, broken: bool) {
        let (Some(key), Some(code)) = (message.key(), message.code()) else { return };
        let Some(own) = self.own.get_mut(&key.branch).filter(|_| code >= 200 && !broken) else { return };
        if std::mem::replace(&mut own.answered, true) {
            return;
        }
        let dialog = self.dialogs.get_mut(&own.dialog).filter(|_| own.method != "BYE");
        if let Some(dialog) = dialog {
            dialog.refreshed(now, message, code);
        }
    }

    fn ack_arrives(&mut self, now: Mono, message: &Message, key: &Key, broken: bool) {
        let Some((cseq, _)) = message.cseq() else { return };
        let of_failure = self.servers.get_mut(key).and_then(|server| server.last.as_mut());
        match of_failure.filter(|last| last.code >= 300) {
            Some(last) if !broken => _ = last.acknowledged.get_or_insert(now),
            Some(_) => {}
            None => self.ack_of_2xx(now, message, cseq, broken),
        }
    }

    fn ack_of_2xx(&mut self, now: Mono, message: &Message, cseq: u32, broken: bool) {
        let (call_id, tag) = (message.call_id(), message.tag("to"));
        for server in self.servers.values_mut() {
            let same = server.request.call_id() == call_id
                && server.request.method() == "INVITE"
                && server.request.cseq().is_some_and(|(number, _)| number == cseq);
            if let Some(last) = server.last.as_mut().filter(|last| same && last.code < 300) {
                let ours = Message::read(&last.bytes).is_some_and(|ok| ok.tag("to") == tag);
                if ours && !broken {
                    last.acknowledged.get_or_insert(now);
                }
            }
        }
        if let Some(dialog) = self.dialog_of(message) {
            dialog.unacknowledged.take_if(|(number, _)| *number == cseq);
        }
    }

    fn dialog_of(&mut self, message: &Message) -> Option<&mut Dialog> {
        let key = (message.call_id().to_owned(), message.tag("to")?.to_owned());
        self.dialogs.get_mut(&key)
    }

    // ---- what is sent -------------------------------------------------------------------------------------------

    pub fn sends(&mut self, flow: Flow, bytes: &Bytes, cause: &Cause, engine: &Engine, report: &mut Report) {
        self.seen.sent += 1;
        let Some(message) = Message::read(bytes) else {
            return report.broken(Rule::Copied, "what is sent is no SIP message");
        };
        let length = message.field("content-length").and_then(|length| length.parse().ok());
        report.hold(length == Some(message.body.len()), Rule::Copied, || {
            format!("Content-Length is not the body's: {}", message.start)
        });
        match message.code() {
            Some(code) => self.responds(flow, bytes, &message, code, cause, engine, report),
            None => self.asks(flow, bytes, &message, report),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "all that a response is held against")]
    fn responds(
        &mut self,
        flow: Flow,
        bytes: &Bytes,
        message: &Message,
        code: u16,
        cause: &Cause,
        engine: &Engine,
        report: &mut Report,
    ) {
        let now = report.now;
        let Some(key) = message.key() else {
            return report
                .hold(self.seen.any_broken, Rule::Copied, || format!("no branch in {}", message.start));
        };
        let Some(server) = self.servers.get_mut(&key) else {
            return report
                .hold(cause.broken, Rule::Unasked, || format!("{} to nothing: {key}", message.start));
        };
        server.lenient |= cause.broken;
        if server.lenient {
            return;
        }
        let again = cause.message.as_ref().is_some_and(|asked| asked.key().as_ref() == Some(&key));
        server.check_copies(message, report);
        server.check_destination(flow, report);
        if !server.check_order(message, code, report) {
            return;
        }
        if let Some(last) = &mut server.last {
            return last.repeated(now, &key, code, bytes, again, report);
        }
        check_fields(message, code, report);
        let acknowledged = None;
        server.last = Some(Final { code, bytes: bytes.clone(), first: now, newest: now, acknowledged });
        let (request, initial) = (server.request.clone(), server.request.tag("to").is_none());
        if key.method == "INVITE" && initial {
            *self.seen.initial.entry(code).or_default() += 1;
        }
        match (request.method(), code) {
            ("INVITE", 200..300) => self.accepts(&key, &request, message, engine, report),
            ("UPDATE", 200..300) => self.updates(&request, message, engine, report),
            _ => {}
        }
    }

    /// The first 200 to an INVITE.
    fn accepts(&mut self, key: &Key, request: &Message, ok: &Message, engine: &Engine, report: &mut Report) {
        let name = (ok.call_id().to_owned(), ok.tag("to").unwrap_or_default().to_owned());
        let recording = self.begun.get(key).copied();
        if request.tag("to").is_none() {
            self.seen.established += 1;
            report.hold(recording.is_some(), Rule::Answer, || format!("200 without a recording: {key}"));
            let dialog = Dialog {
                recording,
                remote_tag: request.tag("from").unwrap_or_default().to_owned(),
                target: String::new(),
                heard: Vec::new(),
                origin: None,
                answer: String::new(),
                own_cseq: 0,
                unacknowledged: None,
                bye_received: false,
                bye_sent: false,
                expires: None,
                refreshing: None,
                forgotten: false,
            };
            let known = self.dialogs.insert(name.clone(), dialog).is_some();
            report.hold(!known, Rule::ToTag, || format!("two dialogs have the tag {}", name.1));
        }
        let contact = ok.field("contact").unwrap_or_default();
        report.hold(contact.contains(";+sip.srs"), Rule::Field, || "a 200 without +sip.srs".to_owned());
        let (size, any_broken) = (ok.body.len(), self.seen.any_broken);
        report.hold(size < 1_300, Rule::Answer, || format!("an answer of {size} bytes"));
        if let Some(dialog) = self.dialogs.get_mut(&name) {
            dialog.unacknowledged = request.cseq().map(|(number, _)| (number, report.now));
            dialog.negotiated(request, ok, any_broken, engine, report);
        }
    }

    fn updates(&mut self, request: &Message, ok: &Message, engine: &Engine, report: &mut Report) {
        let any_broken = self.seen.any_broken;
        if let Some(dialog) = self.dialog_of(request) {
            dialog.negotiated(request, ok, any_broken, engine, report);
        }
    }

    /// A request of the recorder itself.
    fn asks(&mut self, flow: Flow, bytes: &Bytes, message: &Message, report: &mut Report) {
        let Some(key) = message.key() else {
            return report.broken(Rule::OwnRequest, format!("no branch in {}", message.start));
        };
        let name = (message.call_id().to_owned(), message.tag("from").unwrap_or_default().to_owned());
        if message.method() == "ACK" {
            return self.acknowledges(&key, &name, message, report);
        }
        if let Some(known) = self.own.get(&key.branch) {
            report.hold(known.bytes == *bytes, Rule::OwnRequest, || format!("{key} is repeated otherwise"));
            report.hold(!known.answered, Rule::OwnRequest, || format!("{key} is repeated after its answer"));
            return;
        }
        self.seen.own_requests += 1;
        let method = message.method().to_owned();
        let own = OwnRequest { bytes: bytes.clone(), dialog: name.clone(), method, answered: false };
        self.own.insert(key.branch.clone(), own);
        let any_broken = self.seen.any_broken;
        let Some(dialog) = self.dialogs.get_mut(&name) else {
            return report.hold(any_broken, Rule::OwnRequest, || format!("in no dialog: {}", message.start));
        };
        dialog.asks(flow, message, any_broken, report);
    }

    /// An ACK of ours belongs to an INVITE of ours that has its answer.
    fn acknowledges(&mut self, key: &Key, name: &(String, String), message: &Message, report: &mut Report) {
        if self.acks.insert(key.branch.clone()) {
            self.seen.own_requests += 1;
        }
        let of = |own: &&OwnRequest| own.dialog == *name && own.method == "INVITE" && own.answered;
        let asked = self.own.values().any(|own| of(&own)) || self.seen.any_broken;
        report.hold(asked, Rule::OwnRequest, || format!("{} for no INVITE of ours", message.start));
    }

    // ---- recordings ---------------------------------------------------------------------------------------------

    pub fn opens(&mut self, open: &Open) {
        let invite = open.signals.first().and_then(|signal| Message::read(&signal.bytes));
        if let Some(key) = invite.and_then(|invite| invite.key()) {
            self.begun.insert(key, open.key);
        }
    }

    /// What the manifest says is what was seen; without one there was no 200.
    pub fn closes(
        &mut self,
        key: RecordingKey,
        manifest: Option<&Manifest>,
        world: &Circumstances,
        report: &mut Report,
    ) {
        let any_broken = self.seen.any_broken;
        let dialog = self.dialogs.iter().find(|(_, dialog)| dialog.recording == Some(key));
        let Some(manifest) = manifest else {
            return report
                .hold(dialog.is_none(), Rule::Manifest, || format!("{key:?} is thrown away after its 200"));
        };
        let Some(((call_id, tag), dialog)) = dialog else {
            return report.hold(any_broken, Rule::Manifest, || format!("{key:?} ends and had no 200"));
        };
        let sip = &manifest.sip;
        let names = (&sip.call_id, &sip.local_tag, &sip.remote_tag) == (call_id, tag, &dialog.remote_tag);
        report.hold(names, Rule::Manifest, || format!("{sip:?} is not the dialog {call_id} {tag}"));
        let times = manifest.end.is_some_and(|end| manifest.start <= end);
        report.hold(times, Rule::Manifest, || format!("{call_id} ends before it begins"));
        let cause = manifest.end_cause.as_deref().unwrap_or_default();
        let so = match cause {
            "bye" => dialog.bye_received,
            "ack_timeout" => {
                dialog.unacknowledged.is_some_and(|(_, since)| report.now >= since + TRANSACTION_TIMEOUT)
            }
            "drain" => world.draining,
            "media_timeout" => world.ends.media_timeout.is_some_and(|most| world.silence + LATENESS >= most),
            "transport_lost" => {
                let lost = world.cut.map(|cut| report.now.since(cut));
                lost.zip(world.ends.transport_timeout).is_some_and(|(lost, most)| lost + LATENESS >= most)
            }
            "max_duration" => world.ends.max_duration.is_some_and(|most| world.age + LATENESS >= most),
            "operator" => world.ordered.contains(&manifest.id),
            "session_expired" => dialog.has_expired(report.now),
            "refresh_failed" => dialog.refresh_has_failed(report.now),
            _ => false,
        };
        report.hold(so || any_broken, Rule::Manifest, || format!("{call_id} did not end by {cause:?}"));
        // An age of its own; an answer that is waited for takes its time (RFC 3261 §15).
        let most = world.ends.max_duration.map_or(Duration::MAX, |most| most + TRANSACTION_TIMEOUT);
        report.hold(world.age <= most, Rule::Manifest, || format!("{call_id} lasted for {:?}", world.age));
        *self.seen.ends.entry(cause.to_owned()).or_default() += 1;
    }

    /// Dialogs that have not been ended by either side.
    pub fn open_dialogs(&self) -> usize {
        self.dialogs.values().filter(|dialog| !dialog.bye_received && !dialog.bye_sent).count()
    }

    /// BYEs for the dialogs that neither side has ended, as their SRCs would send them if they came back.
    pub fn byes_due(&self) -> Vec<String> {
        let open = self.dialogs.iter().filter(|(_, dialog)| !dialog.bye_received && !dialog.bye_sent);
        let bye = |((call_id, tag), dialog): (&(String, String), &Dialog)| {
            format!(
                "BYE sip:srs@192.0.2.10 SIP/2.0\r\nVia: SIP/2.0/UDP 198.51.100.1:5060;branch=z9hG4bKlast{tag}\r\n\
                 From: <sip:src@198.51.100.1>;tag={}\r\nTo: <sip:srs@192.0.2.10>;tag={tag}\r\nCall-ID: {call_id}\r\n\
                 CSeq: 1000000 BYE\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n",
                dialog.remote_tag
            )
        };
        open.map(bye).collect()
    }

    /// Nothing more will come: each request has its answer.
    pub fn over(&self, report: &mut Report) {
        for (key, server) in &self.servers {
            let answered = server.last.is_some() || server.lenient;
            report.hold(answered, Rule::OneFinal, || {
                format!("no final response to {key} of {}", server.request.call_id())
            });
        }
        let tags: BTreeSet<&String> = self.dialogs.keys().map(|(_, tag)| tag).collect();
        report.hold(tags.len() == self.dialogs.len(), Rule::ToTag, || "two dialogs share a tag".to_owned());
    }
}

impl Server {
    /// A copy of the request that comes now is a new request.
    fn over(&self, now: Mono) -> bool {
        let Some(last) = &self.last else { return false };
        let udp = self.flow.transport == Transport::Udp;
        match (self.request.method(), last.code) {
            ("INVITE", 300..) if last.acknowledged.is_some() => {
                !udp || last.acknowledged.is_some_and(|at| now >= at + T4)
            }
            ("INVITE", _) => now >= last.first + TRANSACTION_TIMEOUT,
            _ => !udp || now >= last.first + TRANSACTION_TIMEOUT,
        }
    }

    fn check_copies(&self, response: &Message, report: &mut Report) {
        for name in ["from", "call-id", "cseq"] {
            let (asked, said) = (self.request.field(name), response.field(name));
            report.hold(asked == said, Rule::Copied, || format!("{name} {asked:?} is answered {said:?}"));
        }
        let without_tag = |message: &Message| {
            message.field("to").map(|to| to.split(";tag=").next().unwrap_or_default().to_owned())
        };
        report.hold(without_tag(&self.request) == without_tag(response), Rule::Copied, || {
            format!("To {:?} is answered {:?}", self.request.field("to"), response.field("to"))
        });
        let asked = self.request.tag("to");
        let same = asked.is_none() || asked == response.tag("to");
        report.hold(same, Rule::ToTag, || format!("To tag {asked:?} is answered {:?}", response.tag("to")));
        let known = response.tag("to").is_some() || response.code() == Some(100);
        report.hold(known, Rule::ToTag, || format!("no To tag in {}", response.start));
        let vias = (self.request.all("via").count(), response.all("via").count());
        report.hold(vias.0 == vias.1, Rule::Copied, || format!("{} Via fields of {}", vias.1, vias.0));
    }

    /// RFC 3261 §18.2.2, RFC 3581 §4.
    fn check_destination(&self, flow: Flow, report: &mut Report) {
        let via = self.request.via().unwrap_or_default();
        let mut due = self.flow.peer;
        if self.flow.transport == Transport::Udp && !via.contains(";rport") {
            let sent_by = via.split(';').next().and_then(|start| start.split(' ').nth(1)).unwrap_or_default();
            due.set_port(sent_by.parse::<SocketAddr>().map_or(5060, |address| address.port()));
        }
        let right = flow.peer == due
            && flow.connection == self.flow.connection
            && (flow.reactor, flow.transport, flow.local)
                == (self.flow.reactor, self.flow.transport, self.flow.local);
        report.hold(right, Rule::Destination, || format!("a response for {due} goes to {flow:?}"));
    }

    /// Whether this is a final response, or one that may come before it.
    fn check_order(&mut self, message: &Message, code: u16, report: &mut Report) -> bool {
        if code >= 200 {
            return true;
        }
        let late = self.last.is_some();
        report.hold(!late, Rule::Provisional, || format!("{} after the final response", message.start));
        report.hold(code == 100, Rule::Provisional, || format!("{} needs PRACK", message.start));
        false
    }
}

impl Final {
    /// The final response again.
    fn repeated(&mut self, now: Mono, key: &Key, code: u16, bytes: &Bytes, again: bool, report: &mut Report) {
        report.hold(code == self.code, Rule::OneFinal, || format!("{} and {code} to {key}", self.code));
        report.hold(*bytes == self.bytes || code != self.code, Rule::OneFinal, || {
            format!("another {code} to {key}")
        });
        let since = now.since(self.newest);
        report.hold(again || since + LATENESS >= T1, Rule::Repeats, || {
            format!("{code} to {key} again after {since:?}")
        });
        let age = now.since(self.first);
        report.hold(again || age <= TRANSACTION_TIMEOUT + LATENESS, Rule::Repeats, || {
            format!("{code} to {key} is repeated after {age:?}")
        });
        let asked = key.method == "INVITE";
        // Without a transaction every copy is answered, whatever was acknowledged (§8.2.7).
        let stateless = again && matches!(code, 400 | 505);
        report.hold(!(asked && self.acknowledged.is_some()) || stateless, Rule::Repeats, || {
            format!("{code} to {key} is repeated after its ACK")
        });
        if !again {
            self.newest = now;
        }
    }
}

/// What a response of this code must say besides.
fn check_fields(message: &Message, code: u16, report: &mut Report) {
    let due = match code {
        401 => "www-authenticate",
        405 => "allow",
        415 => "accept",
        420 => "unsupported",
        421 => "require",
        422 => "min-se",
        488 => "warning",
        503 => "retry-after",
        _ => return,
    };
    report.hold(message.field(due).is_some(), Rule::Field, || format!("{} without {due}", message.start));
}

impl Dialog {
    /// A 2xx to a request that may have had an offer.
    fn negotiated(
        &mut self,
        request: &Message,
        ok: &Message,
        any_broken: bool,
        engine: &Engine,
        report: &mut Report,
    ) {
        if let Some(contact) = request.contact() {
            contact.clone_into(&mut self.target);
            self.heard.clear();
        }
        self.agreed(report.now, ok);
        let (offer, answer) = (request.sdp(), ok.sdp());
        let Some(answer) = answer else {
            let none_due = request.method() != "INVITE" && offer.is_none();
            return report.hold(none_due, Rule::Answer, || format!("no SDP in the 200 to {}", request.start));
        };
        if let Some(offer) = offer {
            check_answer(offer, answer, report);
        }
        for port in m_ports(answer) {
            let armed = self.recording.is_some_and(|key| engine.armed(key, port));
            report.hold(armed, Rule::Answer, || format!("200 with port {port}, which is not armed"));
        }
        // An offer that was broken and taken has moved it on too.
        if !any_broken {
            self.check_origin(answer, report);
        }
    }

    /// RFC 4028 §7.2, §9: what a 2xx of either side says of the timer.
    fn agreed(&mut self, now: Mono, ok: &Message) {
        let seconds =
            ok.field("session-expires").and_then(|value| value.split(';').next()?.trim().parse().ok());
        self.expires = seconds.map(|seconds| (now, Duration::from_secs(seconds)));
        self.refreshing = None;
    }

    fn refreshed(&mut self, now: Mono, answer: &Message, code: u16) {
        match code {
            200..300 => {
                // It may move the target too (RFC 3261 §12.2.1.2, RFC 3311 §5.1).
                self.heard.extend(answer.contact().map(str::to_owned));
                self.agreed(now, answer);
            }
            408 | 481 => self.forgotten = true,
            _ => self.refreshing = None,
        }
    }

    /// §10: a third of the interval, at most 32 s, before its end.
    fn has_expired(&self, now: Mono) -> bool {
        self.expires.is_some_and(|(since, interval)| {
            let early = (interval / 3).min(Duration::from_secs(32));
            now + LATENESS >= since + (interval - early) && now <= since + interval + LATENESS
        })
    }

    fn refresh_has_failed(&self, now: Mono) -> bool {
        self.forgotten || self.refreshing.is_some_and(|since| now >= since + TRANSACTION_TIMEOUT)
    }

    /// RFC 3264 §8: one session, and another version whenever anything else is another.
    fn check_origin(&mut self, answer: &str, report: &mut Report) {
        let Some(origin) = sdp_lines(answer, "o=").next() else {
            return report.broken(Rule::Answer, "an answer without o=");
        };
        let words: Vec<&str> = origin.split(' ').collect();
        let (id, version) = (words[1].to_owned(), words[2].parse::<u64>().unwrap_or(0));
        let rest: Vec<&str> = answer.lines().filter(|line| !line.starts_with("o=")).collect();
        let rest = rest.join("\n");
        if let Some((known, before)) = &self.origin {
            report.hold(*known == id, Rule::Answer, || format!("o= was {known} and is {id}"));
            let due = before + u64::from(rest != self.answer);
            report.hold(version == due, Rule::Answer, || format!("o= version {version}, {due} was due"));
        }
        self.origin = Some((id, version));
        self.answer = rest;
    }

    fn asks(&mut self, flow: Flow, message: &Message, any_broken: bool, report: &mut Report) {
        let start = &message.start;
        let to = message.tag("to").unwrap_or_default();
        report.hold(to == self.remote_tag, Rule::OwnRequest, || format!("To tag {to} in {start}"));
        let cseq = message.cseq().map_or(0, |(number, _)| number);
        report.hold(cseq > self.own_cseq, Rule::OwnRequest, || format!("CSeq {cseq} in {start}"));
        self.own_cseq = cseq;
        let target = message.uri() == self.target
            || self.heard.iter().any(|contact| contact == message.uri())
            || any_broken;
        report.hold(target, Rule::OwnRequest, || format!("{start}, but the Contact is {}", self.target));
        if flow.transport == Transport::Udp {
            let host = self.target.split('@').next_back().unwrap_or_default();
            let host = host.trim_start_matches("sip:").split(';').next().unwrap_or_default();
            let right = host.parse::<SocketAddr>().is_ok_and(|due| due == flow.peer) || any_broken;
            report.hold(right, Rule::Destination, || format!("{start} goes to {}", flow.peer));
        }
        let over = self.bye_received || self.bye_sent;
        report.hold(!over || any_broken, Rule::OwnRequest, || format!("{start} after the dialog's end"));
        match message.method() {
            "BYE" => {
                self.bye_sent = true;
                let waits =
                    self.unacknowledged.filter(|(_, since)| report.now < *since + TRANSACTION_TIMEOUT);
                report.hold(waits.is_none() || any_broken, Rule::EarlyBye, || {
                    format!("{start} before the ACK of {waits:?}")
                });
            }
            _ => self.refreshing = Some(report.now),
        }
    }
}

/// RFC 3264 §6: as many m-lines, in their order, each of its kind and with its label; nothing offered, nothing taken.
fn check_answer(offer: &str, answer: &str, report: &mut Report) {
    let of = |sdp: &str| -> Vec<String> {
        sdp_lines(sdp, "m=").map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect()
    };
    let (asked, said) = (of(offer), of(answer));
    report.hold(asked == said, Rule::Answer, || format!("m-lines {asked:?} are answered {said:?}"));
    let ports = m_ports(offer).into_iter().zip(m_ports(answer));
    for (index, (asked, said)) in ports.enumerate() {
        report.hold(asked != 0 || said == 0, Rule::Answer, || {
            format!("m-line {index} was removed, port {said}")
        });
    }
    let labels = |sdp: &str| -> Vec<String> { sdp_lines(sdp, "a=label:").map(str::to_owned).collect() };
    report.hold(labels(offer) == labels(answer), Rule::Answer, || {
        format!("labels {:?} are answered {:?}", labels(offer), labels(answer))
    });
    let sends = ["a=sendrecv", "a=sendonly"].iter().any(|direction| answer.contains(direction));
    report.hold(!sends, Rule::Answer, || "an answer that wants to send".to_owned());
}
