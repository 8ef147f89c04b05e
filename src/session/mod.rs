//! The control plane: transactions, dialogs, recording sessions, ports. Pure: one [`Event`] in, [`Command`]s out.
//!
//! ```text
//! Event::Message ─▶ parse once · transaction · dialog · offer · metadata · ports ─▶ Command::Open
//! Event::Opened  ─▶ publish in the table ─▶ Command::Send 200
//! ```
//!
//! No 200 leaves before the reactor has said that the files exist and the ports are armed.

pub mod admission;
mod answer;
mod client;
mod connections;
mod content;
mod continuity;
mod dialog;
pub mod digest;
mod ending;
mod errors;
mod events;
mod finding_log;
mod history;
pub mod id;
mod invite;
mod media_changes;
mod metadata;
mod ports;
mod recording;
mod refresh;
mod replace;
pub mod replay;
mod requests;
mod send;
pub mod seqlock;
mod slots;
pub mod state;
pub mod table;
#[cfg(test)]
mod tests;
mod timers;
mod transaction;

use bytes::Bytes;
use rand::rngs::StdRng;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Mono, Now, Wall};
use crate::counters::SessionCounters;
use crate::limits::{MIN_SE, SESSION_EXPIRES};
use crate::proto::manifest::{self, EventKind, Format, Manifest, PeerCertificate, Resource};
use crate::proto::metadata::Finding;
use crate::proto::sdp::Codec;
use crate::proto::sip::{Message, NameAddr, Start};

use admission::{Admission, Hush};
use client::Clients;
use connections::Connections;
use continuity::Continuity;
use digest::Guard;
use ending::Drain;
use finding_log::FindingLog;
use id::Id;
use ports::Ports;
use slots::Slots;
use state::State;
use table::Table;
use timers::Timers;
use transaction::{Fingerprint, Transactions};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Transport {
    Udp,
    Tcp,
    /// RFC 3261 §26.3.1: TLS over TCP.
    Tls,
}

impl Transport {
    /// A stream (RFC 3261 §18.3): messages have a Content-Length, nothing is retransmitted, answers take the connection.
    pub fn reliable(self) -> bool {
        self != Transport::Udp
    }

    /// As Via names it (RFC 3261 §20.42).
    pub fn via(self) -> &'static str {
        match self {
            Transport::Udp => "UDP",
            Transport::Tcp => "TCP",
            Transport::Tls => "TLS",
        }
    }

    /// As the manifest names it, and the transport parameter of a URI.
    pub fn name(self) -> &'static str {
        match self {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
            Transport::Tls => "tls",
        }
    }
}

/// A connection of one reactor. The generation tells a reused slot from the connection that was meant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ConnectionKey {
    pub slot: u32,
    pub generation: u32,
}

/// Where a message came from, and so where its answer goes (RFC 3261 §18.2.2, RFC 3581 §4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Flow {
    pub reactor: u8,
    pub transport: Transport,
    /// Our address as the peer sees it: the destination address of the datagram, never a wildcard.
    pub local: SocketAddr,
    pub peer: SocketAddr,
    /// Index of the UDP listener, or 0.
    pub listener: u8,
    pub connection: Option<ConnectionKey>,
}

/// A recording while it is in memory: its slot in the session table and the reactor that owns its ports and files.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RecordingKey {
    pub reactor: u8,
    pub slot: u32,
    pub generation: u32,
}

/// An RTP/RTCP port pair: the reactor that owns the sockets, and the pair's index there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PortPair {
    pub reactor: u8,
    pub index: u16,
    /// The even port, for RTP. RTCP is on the next.
    pub rtp: u16,
}

/// What went wrong in the engine, in words an operator can act on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// `create directory`, `open file`, `write file header`, …
    pub what: &'static str,
    /// The file or directory, relative to the recordings directory.
    pub path: String,
    /// errno.
    pub errno: i32,
}

impl Failure {
    pub fn new(what: &'static str, path: String, e: &io::Error) -> Failure {
        Failure { what, path, errno: e.raw_os_error().unwrap_or(0) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { what, path, errno } = self;
        write!(f, "cannot {what} {path}: {}", io::Error::from_raw_os_error(*errno))
    }
}

/// Everything that can happen to the control plane.
#[derive(Debug)]
pub enum Event {
    /// One whole SIP message (framed on streams; on UDP one datagram).
    Message {
        flow: Flow,
        bytes: Bytes,
        at: Wall,
    },
    /// The peer of a connection has proved who it is: before any message of it.
    Secured {
        flow: Flow,
        certificate: Arc<PeerCertificate>,
    },
    /// TLS has failed, in the handshake or later. Not every one is told of; all are counted.
    HandshakeFailed {
        peer: SocketAddr,
        why: String,
    },
    /// The connection is gone; nothing can be sent on it.
    Disconnected {
        reactor: u8,
        connection: ConnectionKey,
    },
    /// The files exist and the ports of all streams are armed.
    Opened {
        key: RecordingKey,
    },
    /// Nothing is left behind on disk.
    OpenFailed {
        key: RecordingKey,
        failure: Failure,
    },
    /// The streams added by `Command::Change` are armed, the removed ones are silent.
    Changed {
        key: RecordingKey,
    },
    ChangeFailed {
        key: RecordingKey,
        failure: Failure,
    },
    /// The recording's ports are silent and its slot may be used again. The commit goes on.
    Closed {
        key: RecordingKey,
    },
    /// Whole, synced, under its final name. `incomplete` says that something is missing, and the manifest what.
    Committed {
        id: String,
        /// Its directory, as `Open` named it.
        path: String,
        incomplete: bool,
    },
    CommitFailed {
        id: String,
        failure: Failure,
    },
    /// RTP or RTCP has come for the recording since it was said last, or since its ports were armed. Said now and then.
    Media {
        key: RecordingKey,
        /// No later than this, and hardly earlier.
        at: Wall,
    },
    /// A recording that a dead recorder left is whole: its id and its directory.
    Recovered {
        id: String,
        path: String,
    },
    /// An operator wants something done; [`Sessions::take_answers`] has the answer to this ticket.
    Order {
        ticket: u64,
        order: Order,
    },
    /// No new sessions from now on. Running ones are ended with BYE after `grace`.
    Drain {
        grace: Duration,
    },
}

/// Everything the control plane can ask for. Each goes to one reactor ([`Command::reactor`]).
#[derive(Debug)]
pub enum Command {
    Send {
        flow: Flow,
        bytes: Bytes,
    },
    Open(Box<Open>),
    Change(Box<Change>),
    /// A SIP message of the dialog, for the pcap.
    Signal {
        key: RecordingKey,
        signal: Signal,
    },
    /// A file to be written beside the media: `metadata-0002.xml`.
    File {
        key: RecordingKey,
        file: SmallFile,
    },
    Close(Box<Close>),
    /// Close this connection once everything queued on it is sent.
    Disconnect {
        flow: Flow,
    },
}

/// Make the directory and the files, arm the ports, answer `Opened` or `OpenFailed`.
#[derive(Debug, Clone)]
pub struct Open {
    pub key: RecordingKey,
    /// `2026/11/22/07/<id>`, below the recordings directory, or absolute; `.part` is the engine's to add.
    pub path: String,
    pub format: Format,
    pub streams: Vec<OpenStream>,
    pub files: Vec<SmallFile>,
    /// The SIP messages so far, oldest first.
    pub signals: Vec<Signal>,
}

#[derive(Debug, Clone)]
pub struct OpenStream {
    /// Index of this stream within the recording: 0, 1, … in the order in which streams were added, never reused.
    pub stream: u8,
    pub ports: PortPair,
    /// The address that the answer gave: the destination address of its packets.
    pub address: IpAddr,
    /// The a=label, made fit for a file name (letters, digits, `-`, `_`, at most 64 and a number) and unlike that of every
    /// other stream of the recording; `stream-<index>` when there is none.
    pub label: String,
    /// All codecs answered, the preferred one first. Raw: one, and telephone-event.
    pub codecs: Vec<Codec>,
    /// RTCP shares the RTP port (RFC 5761).
    pub rtcp_mux: bool,
}

/// Streams that a re-INVITE added or ended. One at a time: the next comes after `Changed` or `ChangeFailed`.
#[derive(Debug)]
pub struct Change {
    pub key: RecordingKey,
    pub add: Vec<OpenStream>,
    /// Stream indices whose ports fall silent; their files stay.
    pub remove: Vec<u8>,
}

/// A SIP message as it was on the wire.
#[derive(Debug, Clone)]
pub struct Signal {
    pub at: Wall,
    pub received: bool,
    pub flow: Flow,
    pub bytes: Bytes,
}

/// A whole file of the recording's directory, written once.
#[derive(Debug, Clone)]
pub struct SmallFile {
    pub name: String,
    pub bytes: Bytes,
}

/// End the recording. It comes after `Opened` only, but perhaps while a `Change` is under way, whose answer may then be left
/// out. The ports of all streams are used until `Closed`. The engine adds to the manifest what it knows: stream figures, files, hashes.
#[derive(Debug)]
pub struct Close {
    pub key: RecordingKey,
    /// `None`: the session was never established; the directory is removed.
    pub manifest: Option<Box<Manifest>>,
}

impl Command {
    /// The reactor that carries the command out.
    pub fn reactor(&self) -> u8 {
        match self {
            Command::Send { flow, .. } | Command::Disconnect { flow } => flow.reactor,
            Command::Open(open) => open.key.reactor,
            Command::Change(change) => change.key.reactor,
            Command::Signal { key, .. } | Command::File { key, .. } => key.reactor,
            Command::Close(close) => close.key.reactor,
        }
    }
}

/// What the control plane needs to know of the configuration.
#[derive(Debug, Clone)]
pub struct Rules {
    pub sessions_max: usize,
    pub format: Format,
    pub port_cooldown: Duration,
    /// `--media-ip`; by default the local address of the INVITE's flow.
    pub media_ip: Option<IpAddr>,
    /// All pairs that were bound at start.
    pub ports: Vec<PortPair>,
    pub reactors: u8,
    /// RFC 7866 and RFC 7865 to the letter: what breaks a MUST is refused.
    pub strict_siprec: bool,
    /// Refusals have a body that says why.
    pub explain_refusals: bool,
    /// The 200 says in metadata who takes part.
    pub answer_metadata: bool,
    /// For Server and User-Agent, and for the manifest: `sipreel/0.1.0`.
    pub product: String,
    pub terms: Terms,
    /// In the ids of all its recordings, below [`id::INSTANCES`].
    pub instance: u16,
    pub ends: Ends,
    /// Which recorder this is: in manifests and in answers to OPTIONS.
    pub resource: Resource,
    pub admission: admission::Policy,
}

/// On what terms sessions are held.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Terms {
    /// The session timer that we ask of an SRC that knows of them and asks for none; `None`: none.
    pub session_expires: Option<Duration>,
    /// The shortest session timer that is accepted, at least `limits::MIN_SE`.
    pub min_se: Duration,
    /// An SDP offer is recorded that nothing marks as a recording session.
    pub plain_sdp: bool,
    /// An INVITE without an offer is answered with one of ours.
    pub empty_invite: bool,
    /// Absolute. Where a recording goes whose files cannot be opened in the recordings directory.
    pub fallback_dir: Option<String>,
}

impl Default for Terms {
    fn default() -> Self {
        Terms {
            session_expires: Some(SESSION_EXPIRES),
            min_se: MIN_SE,
            plain_sdp: false,
            empty_invite: false,
            fallback_dir: None,
        }
    }
}

/// When sessions end by themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ends {
    /// No packet for this long on any stream, while one of them is to bring some. At least [`crate::limits::SILENCE_MIN`].
    pub media_timeout: Option<Duration>,
    /// The connection of the newest request is gone and neither media nor a message came for this long.
    pub transport_timeout: Option<Duration>,
    /// From the 200 on.
    pub max_duration: Option<Duration>,
}

/// What an operator may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// End the session of this recording. The note goes into its manifest.
    End { id: String, note: Option<String> },
}

/// What became of it: the recording's id, or why not.
pub type OrderOutcome = Result<String, String>;

/// A thing worth a log line, once. The shell prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A session has gone from one state to another.
    State(Box<Transition>),
    /// Its streams or its metadata have changed.
    Updated {
        id: Id,
        call_id: String,
        at: Wall,
        streams: usize,
    },
    /// The recording is whole, under its final name: its directory, as `Open` named it.
    Whole {
        id: String,
        path: String,
        incomplete: bool,
    },
    /// It stays under its `.part` name.
    NotWhole {
        id: String,
        why: String,
    },
    Refused {
        call_id: String,
        peer: SocketAddr,
        code: u16,
        why: String,
    },
    /// Refusals of one cause since the last of these that were not told one by one.
    MoreRefused {
        cause: &'static str,
        more: u64,
    },
    /// `unlogged` of the same code have passed since the last one.
    Finding {
        id: String,
        finding: Finding,
        unlogged: u64,
    },
    HandshakeFailed {
        peer: SocketAddr,
        why: String,
    },
}

/// One step of a session's life, as [`state::TABLE`] allows it. From `connecting` or `recovering` to `active` or `paused` it
/// has started, to `failed` no recording comes of it; to `ending` it has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    pub id: Id,
    pub call_id: String,
    pub peer: SocketAddr,
    pub transport: Transport,
    pub certificate: Option<Arc<PeerCertificate>>,
    pub from: State,
    pub to: State,
    /// A stable word, as in the manifest.
    pub cause: &'static str,
    /// What there is to say beyond it.
    pub detail: Option<String>,
    pub at: Wall,
    /// Streams being recorded.
    pub streams: usize,
    /// Since its INVITE.
    pub age: Duration,
}

/// When the control plane wants to be called again.
pub type Wake = Option<Mono>;

/// The control plane's whole state. One thread owns it.
pub struct Sessions {
    rules: Rules,
    counters: Arc<SessionCounters>,
    table: Arc<Table>,
    rng: StdRng,
    fingerprint: Fingerprint,
    admission: Admission,
    /// Asks for passwords, where there are some.
    guard: Option<Guard>,
    hush: Hush,
    continuity: Continuity,
    transactions: Transactions,
    clients: Clients,
    slots: Slots,
    ports: Ports,
    /// The recording of each dialog, by our tag.
    dialogs: HashMap<u64, RecordingKey>,
    /// Deadlines of the recordings, by slot.
    timers: Timers<u32>,
    connections: Connections,
    drain: Drain,
    /// Recordings closed with a manifest whose commit is not reported yet.
    commits_pending: usize,
    notices: Vec<Notice>,
    finding_log: FindingLog,
    answers: Vec<(u64, OrderOutcome)>,
    setup_times: Vec<u64>,
}

impl Sessions {
    /// `table` has at least `rules.sessions_max` slots, and no other writer.
    pub fn new(rules: Rules, counters: Arc<SessionCounters>, table: Arc<Table>, mut rng: StdRng) -> Sessions {
        debug_assert!(table.slots() >= rules.sessions_max);
        let mut sessions = Sessions {
            fingerprint: Fingerprint::new(&mut rng),
            admission: Admission::new(rules.admission.clone(), &mut rng),
            guard: rules.admission.credentials.clone().map(|known| Guard::new(known, &mut rng)),
            hush: Hush::default(),
            continuity: Continuity::default(),
            transactions: Transactions::new(ending::transactions_max(rules.sessions_max)),
            clients: Clients::new(),
            slots: Slots::new(rules.sessions_max.min(table.slots())),
            ports: Ports::new(&rules.ports, rules.reactors, rules.port_cooldown),
            dialogs: HashMap::new(),
            timers: Timers::new(),
            connections: Connections::default(),
            drain: Drain::No,
            commits_pending: 0,
            notices: Vec::new(),
            finding_log: FindingLog::default(),
            answers: Vec::new(),
            setup_times: Vec::new(),
            rules,
            counters,
            table,
            rng,
        };
        sessions.gauge();
        sessions
    }

    /// Takes one event; what follows from it is appended to `out`, in the order in which it is to be done.
    pub fn handle(&mut self, now: Now, event: Event, out: &mut Vec<Command>) {
        self.ports.thaw(now.mono);
        match event {
            Event::Message { flow, bytes, at } => {
                self.connections.heard(flow);
                self.message(now, flow, &bytes, at, out);
            }
            Event::Secured { flow, certificate } => self.connections.secured(flow, certificate),
            Event::HandshakeFailed { peer, why } => self.notices.push(Notice::HandshakeFailed { peer, why }),
            Event::Disconnected { reactor, connection } => {
                self.connections.disconnected(reactor, connection);
            }
            Event::Opened { key } => self.opened(now, key, out),
            Event::OpenFailed { key, failure } => self.open_failed(now, key, &failure, out),
            Event::Changed { key } => self.changed(now, key, out),
            Event::ChangeFailed { key, failure } => self.change_failed(now, key, &failure, out),
            Event::Closed { key } => self.closed(now, key),
            Event::Committed { id, path, incomplete } => self.committed(id, path, incomplete),
            Event::CommitFailed { id, failure } => {
                self.counters.commits_failed.add(1);
                self.commits_pending = self.commits_pending.saturating_sub(1);
                self.notices.push(Notice::NotWhole { id, why: failure.to_string() });
            }
            Event::Recovered { id, path } => {
                self.notices.push(Notice::Whole { id, path, incomplete: true });
            }
            Event::Media { key, at } => self.heard(now, key, at),
            Event::Order { ticket, order: Order::End { id, note } } => {
                let outcome = self.end_by_order(now, id, note, out);
                self.answers.push((ticket, outcome));
            }
            Event::Drain { grace } => self.begin_drain(now, grace),
        }
        self.drain_timeout(now, out);
        self.gauge();
    }

    /// Does what is due. To be called when [`Sessions::next_wake`] has come; earlier or later is harmless.
    pub fn timeout(&mut self, now: Now, out: &mut Vec<Command>) {
        self.ports.thaw(now.mono);
        self.recording_timeouts(now, out);
        let mut resend = Vec::new();
        self.transactions.timeout(now.mono, &mut resend);
        for response in resend {
            self.resend(now, response, out);
        }
        let due = self.clients.timeout(now.mono);
        for (flow, bytes) in due.resend {
            self.counters.retransmissions_sent.add(1);
            out.push(Command::Send { flow, bytes });
        }
        for asker in due.given_up {
            self.answered(now, asker, 408, None, out);
        }
        self.drain_timeout(now, out);
        self.refusals_over(now.mono);
        self.gauge();
    }

    /// When [`Sessions::timeout`] is to be called next, if nothing happens before.
    pub fn next_wake(&self) -> Wake {
        let parts = [
            self.timers.next(),
            self.transactions.next(),
            self.clients.next(),
            self.ports.next(),
            self.drain.next(),
            self.hush.next(),
        ];
        parts.into_iter().flatten().min()
    }

    /// A drain has ended: no recording is left in memory, every commit is reported, every BYE answered or given up.
    pub fn drained(&self) -> bool {
        let Drain::Ending { over, .. } = self.drain else { return false };
        let byes = over || self.clients.unanswered() == 0;
        byes && self.slots.occupied() == 0 && self.commits_pending == 0
    }

    /// What is worth a log line since the last call.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// What became of orders since the last call, by ticket.
    pub fn take_answers(&mut self) -> Vec<(u64, OrderOutcome)> {
        std::mem::take(&mut self.answers)
    }

    /// Nanoseconds from INVITE to 200 of the sessions established since the last call.
    pub fn setup_times(&mut self) -> std::vec::Drain<'_, u64> {
        self.setup_times.drain(..)
    }

    fn committed(&mut self, id: String, path: String, incomplete: bool) {
        self.commits_pending = self.commits_pending.saturating_sub(1);
        self.counters.committed.add(1);
        self.counters.incomplete.add(u64::from(incomplete));
        self.notices.push(Notice::Whole { id, path, incomplete });
    }

    /// Takes the session to another state, tells it and shows it. `false`: [`state::TABLE`] does not allow it, nothing is done.
    fn enter(
        &mut self,
        now: Now,
        key: RecordingKey,
        to: State,
        cause: &'static str,
        detail: Option<String>,
    ) -> bool {
        let Some(recording) = self.slots.get_mut(key) else { return false };
        let Ok(from) = recording.life.enter(to, now.wall) else {
            self.counters.transitions_refused.add(1);
            return false;
        };
        let words = format!("{} to {}: {cause}", from.text(), to.text());
        recording.events.push(manifest::Event::new(now.wall, EventKind::State).detail(words));
        self.notices.push(Notice::State(Box::new(Transition {
            id: recording.id,
            call_id: recording.dialog.call_id.clone(),
            peer: recording.source.peer,
            transport: recording.source.transport,
            certificate: recording.certificate.clone(),
            from,
            to,
            cause,
            detail,
            at: now.wall,
            streams: recording.session.live(),
            age: Duration::from_nanos(now.wall.0.saturating_sub(recording.start.0)),
        })));
        self.count_states(from, to);
        self.publish(key);
        true
    }

    fn count_states(&self, from: State, to: State) {
        let SessionCounters { active, paused, .. } = &*self.counters;
        match (from.established(), to.established()) {
            (false, true) => active.add(1),
            (true, false) => active.sub(1),
            _ => {}
        }
        paused.sub(u64::from(from == State::Paused));
        paused.add(u64::from(to == State::Paused));
    }

    /// Sets the deadline of a recording by what it waits for.
    fn rearm(&mut self, key: RecordingKey) {
        if let Some(recording) = self.slots.get_mut(key) {
            let due = recording.due(&self.rules.ends);
            self.timers.set(&mut recording.armed, key.slot, due);
        }
    }

    fn publish(&self, key: RecordingKey) {
        if let Some(recording) = self.slots.get(key) {
            self.table.publish(&recording.snapshot());
        }
    }

    fn gauge(&mut self) {
        self.counters.ports_free.set(self.ports.free() as u64);
        self.counters.ports_used.set(self.ports.used() as u64);
        self.counters.ports_cooling.set(self.ports.cooling() as u64);
        self.counters.transactions.set(self.transactions.len() as u64);
    }
}

/// An address as a URI or Via has it: IPv6 in brackets, no zone.
fn contact_host(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}

/// Our Contact (RFC 3261 §12.1.1). Over TLS `sips` where the dialog is one of SIPS, else with the transport that keeps the dialog's
/// requests on it; a SIPS request that another hop has brought in the clear is answered as it came.
fn contact_uri(secure: bool, flow: Flow) -> String {
    let host = contact_host(flow.local);
    match flow.transport {
        Transport::Udp => format!("sip:sipreel@{host}"),
        Transport::Tls if secure => format!("sips:sipreel@{host}"),
        transport => format!("sip:sipreel@{host};transport={}", transport.name()),
    }
}

/// A request that begins a dialog of SIPS: by its Request-URI, its first Record-Route, or without one its Contact.
fn secure(request: &Message) -> bool {
    let sips = |uri: &str| uri.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("sips:"));
    let routed = request.record_routes().next();
    let first = match routed {
        Some(route) => NameAddr::parse(route.as_bytes()).ok().map(|route| route.uri),
        None => request.contact().ok().flatten().map(|contact| contact.uri),
    };
    matches!(request.start(), Start::Request { uri, .. } if sips(uri)) || first.is_some_and(sips)
}
