//! One recording session: where it stands and what it has.

use bytes::Bytes;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::answer::Plan;
use super::dialog::Dialog;
use super::errors::Errors;
use super::events::Events;
use super::history::{History, Reading, Taken};
use super::id::Id;
use super::metadata::Asking;
use super::refresh::{Agreed, SessionTimer};
use super::state::{Life, State};
use super::table::Snapshot;
use super::transaction::TransactionId;
use super::{Ends, Flow, Open, OpenStream, PortPair, RecordingKey, Rules, Signal, SmallFile};
use crate::clock::{Mono, Wall};
use crate::counters::EndCause;
use crate::limits::{M_LINES_MAX, SENDERS_PER_STREAM_MAX, TABLE_TEXT};
use crate::proto::manifest::{self, Manifest, PeerCertificate};
use crate::proto::metadata::Media;
use crate::proto::raw;
use crate::proto::sdp::{self, AnswerOrigin, Codec, Direction, Line, MediaLine, Offer};
use crate::proto::sip::Method;

#[derive(Debug)]
pub struct Recording {
    pub key: RecordingKey,
    pub id: Id,
    pub start: Wall,
    pub dialog: Dialog,
    /// Of the INVITE that began it.
    pub source: Flow,
    /// Of who sent it, where it was asked for.
    pub certificate: Option<Arc<PeerCertificate>>,
    /// Of the newest request in the dialog.
    pub flow: Flow,
    pub life: Life,
    pub awaited: Awaited,
    pub watch: Watch,
    /// The 200 that waits for its ACK.
    pub unacknowledged: Option<Unacknowledged>,
    /// The recording has ended, and its BYE waits for that ACK.
    pub farewell: Option<Farewell>,
    /// The session timer, when one was agreed on.
    pub timer: Option<SessionTimer>,
    /// An INVITE of ours waits for its answer.
    pub inviting: bool,
    /// An offer has been answered, by either side.
    pub negotiated: bool,
    /// The recording whose place it takes when it is established (RFC 3891).
    pub replaces: Option<RecordingKey>,
    /// The recording of the same communication session before it.
    pub continues: Option<Id>,
    /// How many of its communication sessions have been looked for in others.
    pub sessions_begun: usize,
    pub session: MediaSession,
    pub history: History,
    /// What changed so far, for the manifest.
    pub events: Events,
    pub errors: Errors,
    pub asking: Asking,
    pub armed: Option<Mono>,
}

/// What its ends by itself are counted from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watch {
    /// When it was answered.
    pub answered: Mono,
    /// When media came last, as far as it is known, or was to be expected from.
    pub heard: Mono,
    /// When the newest message of its dialog came.
    pub signalled: Mono,
    /// When it was seen that its connection is gone; it is looked at every `transport_timeout`.
    pub lost: Option<Mono>,
    pub looked: Mono,
}

impl Watch {
    /// When the first of the ends is due that are open to a session in this state.
    fn due(&self, ends: &Ends, state: State, connected: bool) -> Option<Mono> {
        let media = ends.media_timeout.filter(|_| state == State::Active).map(|time| self.heard + time);
        let transport = ends.transport_timeout.filter(|_| connected).map(|time| self.looked + time);
        let duration = ends.max_duration.map(|time| self.answered + time);
        [media, transport, duration].into_iter().flatten().min()
    }
}

/// The request that waits for the engine, if one does. It says nothing of the session's state, which is in its [`Life`].
#[derive(Debug, Default)]
pub enum Awaited {
    #[default]
    Nothing,
    /// The files are being made: as long as the state is `Connecting` or `Recovering`.
    Files(Box<Opening>),
    /// A re-INVITE or UPDATE waits for its streams.
    Streams(Box<Changing>),
}

#[derive(Debug)]
pub struct Opening {
    pub invite: Pending,
    /// Messages since `Command::Open`.
    pub signals: Vec<Signal>,
    pub deadline: Mono,
    /// What is asked for if it fails, in the other directory.
    pub elsewhere: Option<Box<Open>>,
}

#[derive(Debug)]
pub struct Changing {
    pub pending: Pending,
    /// What holds when the streams are armed.
    pub session: MediaSession,
    /// Streams whose ports come back then.
    pub removed: Vec<u8>,
}

/// An INVITE or UPDATE without a final response, and the 200 that is ready for it.
#[derive(Debug)]
pub struct Pending {
    pub method: Method,
    pub transaction: Option<TransactionId>,
    pub request: Bytes,
    /// Where it came from, and where its responses go.
    pub flow: Flow,
    pub reply: Flow,
    pub ok: Bytes,
    /// That 200 does not answer an offer but makes one.
    pub offers: bool,
    /// What that 200 says of session timers.
    pub agreed: Option<Agreed>,
    pub cseq: u32,
    pub received: Mono,
}

/// A 200 is repeated by the session until its ACK comes, on every transport (RFC 3261 §13.3.1.4).
#[derive(Debug)]
pub struct Unacknowledged {
    /// It makes an offer, which its ACK has to answer.
    pub offers: bool,
    pub transaction: Option<TransactionId>,
    pub flow: Flow,
    pub ok: Bytes,
    pub cseq: u32,
    pub next: Mono,
    pub interval: Duration,
    pub deadline: Mono,
}

/// A callee sends no BYE before the ACK of its 2xx has come, or could have (RFC 3261 §15).
#[derive(Debug)]
pub struct Farewell {
    /// Of that BYE.
    pub reason: Option<String>,
    /// The engine is done with the recording.
    pub closed: bool,
}

/// What offer and answer have agreed on.
#[derive(Clone, Debug)]
pub struct MediaSession {
    /// All streams there ever were, by index.
    pub streams: Vec<Stream>,
    /// The live stream of each m-line.
    pub lines: Vec<Option<u8>>,
    /// Streams whose m-lines have moved to new ones. Their ports are listened on until the next change, since the SRC learns
    /// of the move later than we (RFC 3264 §8.3.1).
    pub moved: Vec<u8>,
    /// What was offered and is not recorded, in words for the manifest.
    pub refused: Vec<String>,
    pub origin: AnswerOrigin,
    pub answer: Bytes,
}

#[derive(Clone, Debug)]
pub struct Stream {
    pub index: u8,
    pub m_line: usize,
    /// The label it began with: the name it has on disk.
    pub label: Option<String>,
    /// The label of the newest offer: the name it has in the metadata (RFC 7866 §7.1.1).
    pub offered_label: Option<String>,
    pub kind: String,
    /// All that were ever agreed on: those before may come for a while (RFC 3264 §8.3.2).
    pub codecs: Vec<Codec>,
    /// Those of the newest offer, and where it comes from.
    pub offered: Vec<Codec>,
    pub source: (Option<IpAddr>, u16),
    pub rtcp_mux: bool,
    /// The newest offer sends nothing into it: inactive, recvonly, or to nowhere (RFC 3264 §8.4).
    pub held: bool,
    /// The RTP port that was answered.
    pub port: u16,
    /// `None` once they have been given back.
    pub ports: Option<PortPair>,
    /// participant_ids that ever sent into it.
    pub participants: Vec<String>,
}

impl Stream {
    pub fn new(index: u8, m_line: usize, media: &MediaLine, ports: PortPair) -> Stream {
        Stream {
            index,
            m_line,
            label: media.label.clone(),
            offered_label: media.label.clone(),
            kind: media.kind.clone(),
            codecs: media.codecs.clone(),
            offered: media.codecs.clone(),
            source: (media.address, media.port),
            rtcp_mux: media.rtcp_mux,
            held: silent(media),
            port: ports.rtp,
            ports: Some(ports),
            participants: Vec::new(),
        }
    }

    /// A later offer of the same stream.
    fn offered(&mut self, media: &MediaLine) {
        self.offered_label.clone_from(&media.label);
        self.offered.clone_from(&media.codecs);
        self.held = silent(media);
        if !self.held {
            self.source = (media.address, media.port);
        }
        for codec in &media.codecs {
            if self.codecs.iter().all(|known| known.payload_type != codec.payload_type) {
                self.codecs.push(codec.clone());
            }
        }
    }

    /// Codecs of ours that the SRC does not name will not come, unless it names none that we know.
    fn answered(&mut self, media: &MediaLine) {
        let named = |codec: &Codec| media.codecs.iter().any(|other| other.payload_type == codec.payload_type);
        if self.codecs.iter().any(named) {
            self.codecs.retain(named);
        }
        self.offered.clone_from(&self.codecs);
        self.source = (media.address, media.port);
        self.held = silent(media);
        if media.label.is_some() {
            self.offered_label.clone_from(&media.label);
            self.label = self.label.take().or_else(|| media.label.clone());
        }
    }

    fn manifest(&self) -> manifest::Stream {
        let codec = raw::main_codec(&self.codecs);
        manifest::Stream {
            label: self.label.clone(),
            participants: self.participants.clone(),
            m_line: self.m_line,
            kind: self.kind.clone(),
            codec: codec.map(|codec| codec.encoding.clone()),
            clock_rate: codec.map(|codec| codec.clock_rate),
            local_rtp_port: self.port,
            ..manifest::Stream::default()
        }
    }
}

impl MediaSession {
    /// Before the first offer.
    pub fn new(origin: AnswerOrigin) -> MediaSession {
        let (streams, lines, moved, refused) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        MediaSession { streams, lines, moved, refused, origin, answer: Bytes::new() }
    }

    pub fn live(&self) -> usize {
        self.lines.iter().flatten().count()
    }

    /// The state of an established session with these streams: paused while none of them is to bring media.
    pub fn expects(&self) -> State {
        let held = self.lines.iter().flatten().all(|index| self.streams[usize::from(*index)].held);
        if held { State::Paused } else { State::Active }
    }

    /// What holds when this offer is answered as planned; `pairs` has a pair for each stream that is added.
    pub fn renegotiated(
        &self,
        offer: &Offer,
        plans: &[Plan],
        pairs: Vec<PortPair>,
        address: IpAddr,
    ) -> MediaSession {
        let mut new = self.clone();
        let mut pairs = pairs.into_iter();
        new.lines.clear();
        for (m_line, (media, plan)) in offer.media.iter().zip(plans).enumerate() {
            let stream = match plan {
                Plan::Refuse => {
                    new.refuse(m_line, media);
                    None
                }
                Plan::Keep(index) => {
                    new.streams[usize::from(*index)].offered(media);
                    Some(*index)
                }
                Plan::Add => pairs.next().map(|pair| new.add(m_line, media, pair)),
            };
            new.lines.push(stream);
        }
        let port = |line: &Option<u8>| line.map(|index| new.streams[usize::from(index)].port);
        let lines: Vec<Line> = new
            .lines
            .iter()
            .map(|line| port(line).map_or(Line::Refuse, |port| Line::Accept { port }))
            .collect();
        new.answer = sdp::answer(offer, &lines, self.origin, address).into();
        if !self.answer.is_empty() && new.answer != self.answer {
            new.origin.version += 1;
            new.answer = sdp::answer(offer, &lines, new.origin, address).into();
        }
        new
    }

    /// What we offer when the SRC wants us to: what holds, and nothing held.
    pub fn offered_again(&self) -> MediaSession {
        let mut new = self.clone();
        let origin = AnswerOrigin { version: self.origin.version + 1, ..self.origin };
        if let Some(active) = sdp::reactivated(&self.answer, origin) {
            (new.answer, new.origin) = (active.into(), origin);
        }
        new
    }

    /// Takes the answer to an offer of ours. `false`: it is none, or turns every stream down.
    pub fn answered(&mut self, answer: &Offer) -> bool {
        let used = |media: &MediaLine| media.port != 0;
        if answer.media.len() != self.lines.len() || !answer.media.iter().any(used) {
            return false;
        }
        for (line, media) in self.lines.iter().zip(&answer.media) {
            let Some(stream) = line.and_then(|index| self.streams.get_mut(usize::from(index))) else {
                continue;
            };
            match used(media) {
                true => stream.answered(media),
                // Turned down: nothing will come, until a later answer or offer takes it up.
                false => stream.held = true,
            }
        }
        true
    }

    /// An m-line with port 0 is one that the SRC itself has taken away (RFC 3264 §8.2).
    fn refuse(&mut self, m_line: usize, media: &MediaLine) {
        let short = |text: &str| text.chars().take(TABLE_TEXT).collect::<String>();
        let sentence = format!(
            "m-line {m_line} ({} over {}) was not recorded",
            short(&media.kind),
            short(&media.protocol)
        );
        if media.port != 0 && self.refused.len() < M_LINES_MAX && !self.refused.contains(&sentence) {
            self.refused.push(sentence);
        }
    }

    fn add(&mut self, m_line: usize, media: &MediaLine, ports: PortPair) -> u8 {
        let index = self.streams.len() as u8;
        self.streams.push(Stream::new(index, m_line, media, ports));
        index
    }

    /// The streams as the engine needs them, from index `first` on.
    pub fn open_streams(&self, first: usize, address: IpAddr) -> Vec<OpenStream> {
        let streams = self.streams.iter().skip(first);
        streams
            .filter_map(|stream| {
                Some(OpenStream {
                    stream: stream.index,
                    ports: stream.ports?,
                    address,
                    label: self.file_label(stream),
                    codecs: stream.codecs.clone(),
                    rtcp_mux: stream.rtcp_mux,
                })
            })
            .collect()
    }

    /// The label as a file may be called: letters, digits, `-` and `_`, at most 64, and unlike that of every other stream.
    fn file_label(&self, stream: &Stream) -> String {
        let Some(label) = stream.label.as_deref().map(file_safe).filter(|label| !label.is_empty()) else {
            return format!("stream-{}", stream.index);
        };
        let earlier = &self.streams[..usize::from(stream.index)];
        let taken = |other: &Stream| other.label.as_deref().map(file_safe).as_deref() == Some(&label);
        if earlier.iter().any(taken) { format!("{label}-stream-{}", stream.index) } else { label }
    }
}

/// Whether the SRC sends nothing on this m-line for now.
fn silent(media: &MediaLine) -> bool {
    media.held || media.direction.answered() == Direction::Inactive
}

fn file_safe(label: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' };
    label.chars().take(64).map(safe).collect()
}

impl Recording {
    /// A session that has just begun.
    pub fn new(
        key: RecordingKey,
        id: Id,
        start: Wall,
        dialog: Dialog,
        flow: Flow,
        session: MediaSession,
    ) -> Recording {
        Recording {
            key,
            id,
            start,
            dialog,
            source: flow,
            certificate: None,
            flow,
            life: Life::new(start),
            awaited: Awaited::Nothing,
            watch: Watch::default(),
            unacknowledged: None,
            farewell: None,
            timer: None,
            inviting: false,
            negotiated: true,
            session,
            replaces: None,
            continues: None,
            sessions_begun: 0,
            history: History::default(),
            events: Events::default(),
            errors: Errors::default(),
            asking: Asking::default(),
            armed: None,
        }
    }

    /// The manifest of a recording that is being made.
    pub fn first_manifest(&self, rules: &Rules) -> SmallFile {
        let mut manifest = self.manifest(rules, self.start, EndCause::Bye, None);
        manifest.state = manifest::State::Recording;
        (manifest.end, manifest.end_cause) = (None, None);
        let bytes = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
        SmallFile { name: "recording.json".to_owned(), bytes: bytes.into() }
    }

    /// The next moment at which it has to act by itself.
    pub fn due(&self, ends: &Ends) -> Option<Mono> {
        if let Awaited::Files(opening) = &self.awaited {
            return Some(opening.deadline);
        }
        let ack = self.unacknowledged.as_ref().map(|waiting| waiting.next.min(waiting.deadline));
        let connected = self.flow.connection.is_some();
        let end = self.established().then(|| self.watch.due(ends, self.state(), connected)).flatten();
        let timer = self.timer.map(|timer| timer.due());
        [ack, timer, end].into_iter().flatten().min()
    }

    /// Which of its ends by itself has come. `reachable`: its connection is there, if it needs one.
    pub fn over(&mut self, ends: &Ends, reachable: bool, now: Mono) -> Option<EndCause> {
        let watch = &mut self.watch;
        let past = |since: Mono, time: Option<Duration>| time.is_some_and(|time| since + time <= now);
        if past(watch.answered, ends.max_duration) {
            return Some(EndCause::MaxDuration);
        }
        // A session that is held expects no media, and its peer may close a connection that nothing goes over.
        if self.life.state() != State::Active {
            watch.looked = now;
            return None;
        }
        if past(watch.heard, ends.media_timeout) {
            return Some(EndCause::MediaTimeout);
        }
        if past(watch.looked, ends.transport_timeout) {
            let before = watch.lost.take();
            watch.looked = now;
            watch.lost = (!reachable).then_some(now);
            let silent = before.is_some_and(|lost| watch.heard.max(watch.signalled) <= lost);
            return (silent && !reachable).then_some(EndCause::TransportLost);
        }
        None
    }

    /// Requests in its dialog are taken.
    pub fn established(&self) -> bool {
        self.life.state().established()
    }

    /// A 200 of ours may still get its ACK.
    pub fn unconfirmed(&self, now: Mono) -> bool {
        self.unacknowledged.as_ref().is_some_and(|waiting| now < waiting.deadline)
    }

    /// The change under way, if there is one; it no longer is.
    pub fn take_changing(&mut self) -> Option<Box<Changing>> {
        match std::mem::take(&mut self.awaited) {
            Awaited::Streams(changing) => Some(changing),
            other => {
                self.awaited = other;
                None
            }
        }
    }

    /// The INVITE that began it and still waits, if it does; it no longer does.
    pub fn take_opening(&mut self) -> Option<Box<Opening>> {
        match std::mem::take(&mut self.awaited) {
            Awaited::Files(opening) => Some(opening),
            other => {
                self.awaited = other;
                None
            }
        }
    }

    pub fn state(&self) -> State {
        self.life.state()
    }

    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            key: self.key,
            id: self.id,
            call_id: self.dialog.call_id.clone(),
            peer: self.source.peer,
            state: self.life.state(),
            start: self.start,
            updated: self.life.updated,
            last_signalling: self.life.last_signalling,
            last_media: self.life.last_media,
            streams: self.session.live() as u8,
        }
    }

    /// Reads one body of metadata that came without an offer, against what holds.
    pub fn read_metadata(&self, body: Bytes) -> Reading {
        let MediaSession { lines, streams, .. } = &self.session;
        let label = |index: u8| streams[usize::from(index)].offered_label.as_deref();
        let media: Vec<Media> =
            lines.iter().map(|line| Media { label: line.and_then(label), used: line.is_some() }).collect();
        Reading::new(body, self.history.known(), &media)
    }

    /// Takes one body of metadata in; what it changes is among the events.
    pub fn take_metadata(&mut self, at: Wall, reading: Reading) -> Taken {
        let taken = self.history.take(at, reading, &mut self.events);
        self.attribute();
        taken
    }

    /// Asks the metadata who sends into which live stream, and adds them to those who did before.
    pub fn attribute(&mut self) {
        let MediaSession { lines, streams, .. } = &mut self.session;
        let live: Vec<u8> = lines.iter().flatten().copied().collect();
        let labels: Vec<Option<String>> =
            live.iter().map(|index| streams[usize::from(*index)].offered_label.clone()).collect();
        let labels: Vec<Option<&str>> = labels.iter().map(Option::as_deref).collect();
        for (position, index) in live.iter().enumerate() {
            let known = &mut streams[usize::from(*index)].participants;
            for id in self.history.senders(&labels, position) {
                if known.len() < SENDERS_PER_STREAM_MAX && !known.contains(&id) {
                    known.push(id);
                }
            }
        }
    }

    /// The manifest, as far as the control plane knows it.
    pub fn manifest(&self, rules: &Rules, end: Wall, cause: EndCause, note: Option<String>) -> Manifest {
        Manifest {
            version: 1,
            recorder: rules.product.clone(),
            resource: rules.resource.clone(),
            id: self.id.to_string(),
            state: manifest::State::Ended,
            format: rules.format,
            start: self.start,
            end: Some(end),
            end_cause: Some(cause.text().to_owned()),
            end_note: note,
            session: self.life.manifest(),
            sip: manifest::Sip {
                call_id: self.dialog.call_id.clone(),
                remote_tag: self.dialog.remote_tag.clone(),
                local_tag: self.dialog.local_tag.clone(),
                source: self.source.peer,
                local: self.source.local,
                transport: self.source.transport.name().to_owned(),
                peer_certificate: self.certificate.as_deref().cloned(),
            },
            continues: self.continues.map(|id| id.to_string()),
            communication_sessions: self.history.communication_sessions(),
            participants: self.history.participants(),
            streams: self.session.streams.iter().map(Stream::manifest).collect(),
            metadata: self.history.bodies(),
            findings: self.history.findings(),
            model: self.history.current().clone(),
            events: self.events.list(),
            errors: self.errors.manifest(),
            problems: [self.session.refused.clone(), self.history.problems(), self.events.problems()]
                .concat(),
            files: Vec::new(),
        }
    }
}
