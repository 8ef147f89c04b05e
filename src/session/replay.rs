//! A recording's manifest from its own capture: the messages of its dialog once more, through the code that took them first.
//!
//! That is what is left of a recording whose recorder died.

use bytes::Bytes;

use super::answer::Plan;
use super::content::content;
use super::dialog::Dialog;
use super::id::Id;
use super::recording::{MediaSession, Recording};
use super::{PortPair, RecordingKey, Rules, Signal};
use crate::clock::Wall;
use crate::counters::EndCause;
use crate::limits::STREAMS_PER_RECORDING_MAX;
use crate::proto::manifest::{self, Manifest};
use crate::proto::sdp::{self, AnswerOrigin, Codec, Offer};
use crate::proto::sip::{Message, Method, Start};

/// What `end_cause` says of a recording whose dialog had no end in its capture.
pub const CAUSE: &str = "recorder_died";

#[derive(Debug)]
pub struct Replay {
    id: Id,
    recording: Option<Box<Recording>>,
    /// The newest offer and the CSeq of its INVITE.
    offer: Option<(u32, Offer)>,
    /// Metadata that came before there were streams for its labels.
    bodies: Vec<(Wall, Bytes)>,
    ended: bool,
}

/// A stream as far as its packets can be told by it.
#[derive(Debug)]
pub struct ReplayedStream {
    pub rtp_port: u16,
    pub codecs: Vec<Codec>,
}

impl Replay {
    pub fn new(id: Id) -> Replay {
        Replay { id, recording: None, offer: None, bodies: Vec::new(), ended: false }
    }

    /// The next message of the dialog. What cannot be read is passed over.
    pub fn signal(&mut self, signal: &Signal) {
        let Ok(message) = Message::parse_framed(&signal.bytes) else { return };
        match message.start() {
            Start::Request { method, .. } if signal.received => self.request(method, &message, signal),
            Start::Response { code: 200, .. } if !signal.received => self.answer(&message, signal),
            _ => {}
        }
    }

    /// The streams so far, by index.
    pub fn streams(&self) -> Vec<ReplayedStream> {
        let streams = self.recording.iter().flat_map(|recording| &recording.session.streams);
        streams.map(|s| ReplayedStream { rtp_port: s.port, codecs: s.codecs.clone() }).collect()
    }

    /// `None`: there was no INVITE.
    pub fn manifest(&mut self, rules: &Rules, end: Wall) -> Option<Manifest> {
        self.take_metadata();
        let recording = self.recording.as_ref()?;
        let mut manifest = recording.manifest(rules, end, EndCause::Bye, None);
        manifest.state = manifest::State::Recovered;
        if !self.ended {
            manifest.end_cause = Some(CAUSE.to_owned());
        }
        Some(manifest)
    }

    fn request(&mut self, method: Method, message: &Message, signal: &Signal) {
        let Ok(checked) = message.check_request() else { return };
        let content = content(message, &signal.bytes).unwrap_or_default();
        if method == Method::Invite {
            let offer = content.sdp.as_deref().and_then(|sdp| sdp::parse(sdp).ok());
            self.offer = offer.map(|offer| (checked.cseq.number, offer));
            if self.recording.is_none() {
                let key = RecordingKey { reactor: 0, slot: 0, generation: 0 };
                let dialog = Dialog::new(message, &checked, String::new());
                let session = MediaSession::new(AnswerOrigin { session_id: 0, version: 1 });
                let recording = Recording::new(key, self.id, signal.at, dialog, signal.flow, session);
                self.recording = Some(Box::new(recording));
            }
        }
        self.ended |= method == Method::Bye;
        let Some(recording) = &mut self.recording else { return };
        recording.life.last_signalling = signal.at;
        let answered = !recording.session.streams.is_empty();
        self.bodies.extend(content.metadata.into_iter().map(|body| (signal.at, body)));
        if answered {
            self.take_metadata();
        }
    }

    fn take_metadata(&mut self) {
        let Some(recording) = &mut self.recording else { return };
        for (at, body) in self.bodies.drain(..) {
            let reading = recording.read_metadata(body);
            recording.take_metadata(at, reading);
        }
    }

    /// Our 200 to the newest offer: its ports tell which streams there are.
    fn answer(&mut self, message: &Message, signal: &Signal) {
        let (Ok(cseq), Some(recording)) = (message.cseq(), &mut self.recording) else { return };
        let Some((_, offer)) = self.offer.as_ref().filter(|(number, _)| *number == cseq.number) else {
            return;
        };
        if let Ok(to) = message.to() {
            recording.dialog.local_tag = to.tag().unwrap_or_default().to_owned();
        }
        let Some(answered) = content(message, &signal.bytes).ok().and_then(|content| content.sdp) else {
            return;
        };
        let Ok(answered) = sdp::parse(&answered) else { return };
        let ports: Vec<u16> = answered.media.iter().map(|media| media.port).collect();
        let (plans, pairs) = plans(&recording.session, &ports);
        recording.session = recording.session.renegotiated(offer, &plans, pairs, signal.flow.local.ip());
        recording.life.updated = signal.at;
        recording.attribute();
        self.take_metadata();
    }
}

/// A stream keeps its port, so a port that its m-line did not have is that of a new one.
fn plans(session: &MediaSession, ports: &[u16]) -> (Vec<Plan>, Vec<PortPair>) {
    let mut pairs = Vec::new();
    let mut room = STREAMS_PER_RECORDING_MAX.saturating_sub(session.streams.len());
    let mut plan = |(m_line, &port): (usize, &u16)| {
        let current = session.lines.get(m_line).copied().flatten();
        match current.filter(|index| session.streams[usize::from(*index)].port == port) {
            _ if port == 0 => Plan::Refuse,
            Some(index) => Plan::Keep(index),
            None if room == 0 => Plan::Refuse,
            None => {
                room -= 1;
                pairs.push(PortPair { reactor: 0, index: 0, rtp: port });
                Plan::Add
            }
        }
    };
    let plans = ports.iter().enumerate().map(&mut plan).collect();
    (plans, pairs)
}
