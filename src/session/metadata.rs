//! Metadata on its way into a recording: judged before anything is taken for the call, filed, and asked for again.

use bytes::Bytes;
use rand::Rng;

use super::client::{Asker, Purpose};
use super::history::{Reading, Taken};
use super::id::Id;
use super::invite::contact;
use super::recording::{Awaited, Recording};
use super::send::Refusal;
use super::{Command, Flow, Notice, RecordingKey, Sessions, SmallFile, Transport};
use crate::clock::{Mono, Now, Wall};
use crate::counters::RefuseCause;
use crate::limits::{ANSWER_BYTES_WANTED, ANSWER_METADATA_MAX, SNAPSHOT_INTERVAL, SNAPSHOT_REQUESTS_MAX};
use crate::proto::manifest::{Event, EventKind};
use crate::proto::metadata::{Findings, Known, Media, Metadata, Mode, write};
use crate::proto::sdp::{self, Offer};
use crate::proto::sip::{Message, RequestBuilder};

/// Asking for a snapshot (RFC 7866 §9.2): once for each need, not too often, and only who allows UPDATE.
#[derive(Debug, Default)]
pub struct Asking {
    allowed: bool,
    wanted: Option<&'static str>,
    under_way: bool,
    asked: u32,
    not_before: Mono,
}

impl Asking {
    pub fn new(invite: &Message) -> Asking {
        let allow = invite.other("Allow").unwrap_or_default();
        let allowed = allow.split(|byte| *byte == b',').any(|method| method.trim_ascii() == b"UPDATE");
        Asking { allowed, wanted: None, under_way: false, asked: 0, not_before: Mono(0) }
    }

    fn note(&mut self, taken: &Taken) {
        match taken.lacking {
            Some(why) => self.wanted = Some(why),
            None if taken.mode == Some(Mode::Complete) => self.wanted = None,
            None => {}
        }
    }

    /// Why to ask now; from then on it is being asked.
    fn due(&mut self, now: Mono) -> Option<&'static str> {
        let may =
            self.allowed && !self.under_way && self.asked < SNAPSHOT_REQUESTS_MAX && self.not_before <= now;
        let why = self.wanted.take_if(|_| may)?;
        self.under_way = true;
        self.asked += 1;
        self.not_before = now + SNAPSHOT_INTERVAL;
        Some(why)
    }

    /// Who does not understand the question is not asked again. 491 and 500: it came at a bad moment.
    fn answered(&mut self, code: u16) {
        self.under_way = false;
        self.allowed &= (200..300).contains(&code) || matches!(code, 408 | 491 | 500 | 503);
    }
}

/// What an offer's m-lines say about labels.
fn media(offer: &Offer) -> Vec<Media<'_>> {
    offer.media.iter().map(|line| Media { label: line.label.as_deref(), used: line.port != 0 }).collect()
}

/// Reads the bodies of an INVITE that has no recording yet. A partial one may add to one before it. Without an offer of the SRC
/// their labels are about nothing yet.
pub fn read_metadata(bodies: Vec<Bytes>, offer: Option<&Offer>) -> Vec<Reading> {
    let media = offer.map(media).unwrap_or_default();
    let mut readings: Vec<Reading> = Vec::with_capacity(bodies.len());
    for body in bodies {
        let known = readings.iter().rev().find_map(Reading::metadata);
        let known = known.map(|metadata| Known { metadata, complete: metadata.mode == Mode::Complete });
        readings.push(Reading::new(body, known, &media));
    }
    readings
}

impl Sessions {
    /// Why this body is refused: with --strict-siprec whatever breaks a MUST of RFC 7865. Without it nothing is: a call
    /// that is refused for its metadata is a recording that does not exist.
    pub(super) fn objection(&self, reading: &Reading) -> Option<Refusal> {
        let broken = reading.broken().filter(|_| self.rules.strict_siprec)?;
        let refusal = Refusal::new(488, RefuseCause::BadMetadata, broken.sentence()).warning(399);
        Some(refusal.findings(reading.findings()))
    }

    /// What is refused before it has a recording is found all the same.
    pub(super) fn note_refused(&mut self, at: Wall, refusal: &Refusal) {
        if let Some(findings) = &refusal.findings {
            self.count_findings(at, None, findings);
        }
    }

    /// Takes in the bodies of the INVITE, in their order; what is to be written of them is returned.
    pub(super) fn take_metadata(
        &mut self,
        at: Wall,
        recording: &mut Recording,
        bodies: Vec<Reading>,
    ) -> Vec<SmallFile> {
        let mut files = Vec::new();
        for body in bodies {
            let taken = recording.take_metadata(at, body);
            recording.asking.note(&taken);
            self.note_metadata(at, recording.id, &taken);
            files.extend(taken.file);
        }
        files
    }

    /// Metadata of a request in the dialog that can be refused for it. Its labels are those of the offer that it came with, if it
    /// came with one.
    pub(super) fn admit_metadata(
        &mut self,
        at: Wall,
        key: RecordingKey,
        bodies: Vec<Bytes>,
        sdp: Option<&Bytes>,
        out: &mut Vec<Command>,
    ) -> Result<(), Refusal> {
        // What cannot be read is refused by whoever needs it.
        let offer = sdp.filter(|_| !bodies.is_empty()).and_then(|sdp| sdp::parse(sdp).ok());
        let mut result = Ok(());
        for body in bodies {
            let Some(recording) = self.slots.get(key) else { return result };
            let reading = match &offer {
                Some(offer) => Reading::new(body, recording.history.known(), &media(offer)),
                None => recording.read_metadata(body),
            };
            let objection = self.objection(&reading);
            let reading = if objection.is_some() { reading.refuse() } else { reading };
            self.file(at, key, reading, out);
            if let Some(refusal) = objection {
                result = Err(refusal);
            }
        }
        result
    }

    /// Metadata of a request that cannot be refused: BYE, ACK. `Err`: it should end the recording session (RFC 7866 §9.2).
    pub(super) fn file_metadata(
        &mut self,
        at: Wall,
        key: RecordingKey,
        bodies: Vec<Bytes>,
        out: &mut Vec<Command>,
    ) -> Result<(), String> {
        self.admit_metadata(at, key, bodies, None, out).map_err(|refusal| refusal.why.into_owned())
    }

    fn file(&mut self, at: Wall, key: RecordingKey, reading: Reading, out: &mut Vec<Command>) {
        let Some(recording) = self.slots.get_mut(key) else { return };
        let taken = recording.take_metadata(at, reading);
        recording.asking.note(&taken);
        let id = recording.id;
        self.note_metadata(at, id, &taken);
        out.extend(taken.file.map(|file| Command::File { key, file }));
    }

    fn note_metadata(&mut self, at: Wall, id: Id, taken: &Taken) {
        self.counters.metadata_bodies.add(1);
        self.counters.metadata_not_understood.add(u64::from(taken.problem.is_some()));
        self.count_findings(at, Some(id), &taken.findings);
    }

    fn count_findings(&mut self, at: Wall, id: Option<Id>, findings: &Findings) {
        for finding in findings.iter() {
            self.counters.findings[finding.code as usize].add(u64::from(finding.times));
            if let Some(unlogged) = self.finding_log.due(at, finding) {
                let (id, finding) = (id.map(|id| id.to_string()).unwrap_or_default(), finding.clone());
                self.notices.push(Notice::Finding { id, finding, unlogged });
            }
        }
    }

    /// Sends the question that is due, when the dialog is at rest (RFC 7866 §9.2: an UPDATE without SDP).
    pub(super) fn ask_for_snapshot(&mut self, now: Now, key: RecordingKey, out: &mut Vec<Command>) {
        let branch = self.rng.random();
        let Some(recording) = self.slots.get_mut(key) else { return };
        let quiet = recording.established() && matches!(recording.awaited, Awaited::Nothing);
        if !quiet || recording.unacknowledged.is_some() {
            return;
        }
        let Some(why) = recording.asking.due(now.mono) else { return };
        let fields =
            snapshot_request(contact(recording.dialog.secure, recording.flow), why, &self.rules.product);
        let (flow, bytes) = recording.dialog.request("UPDATE", recording.flow, branch, fields);
        recording.events.push(Event::new(now.wall, EventKind::SnapshotRequested).detail(why));
        self.counters.snapshots_requested.add(1);
        self.clients.begin(now.mono, branch, Asker { key, purpose: Purpose::Snapshot }, flow, bytes.clone());
        self.transmit(now, flow, bytes, Some(key), out);
    }

    pub(super) fn snapshot_answered(&mut self, key: RecordingKey, code: u16) {
        if let Some(recording) = self.slots.get_mut(key) {
            recording.asking.answered(code);
        }
    }

    /// The answer together with what is known of the participants, where this is asked for and fits: on UDP the whole 200 is to
    /// be one packet, and `plain` is its length without.
    pub(super) fn answer_with_metadata(
        &self,
        flow: Flow,
        boundary: &str,
        plain: usize,
        answer: &[u8],
        said: Option<&Metadata>,
    ) -> Option<(String, Vec<u8>)> {
        let xml = write::answer(said.filter(|_| self.rules.answer_metadata)?);
        let content_type = format!("multipart/mixed;boundary={boundary}");
        let head = format!("--{boundary}\r\nContent-Type: application/sdp\r\n\r\n");
        let middle = format!(
            "\r\n--{boundary}\r\nContent-Type: application/rs-metadata\r\nContent-Disposition: recording-session\r\n\r\n"
        );
        let parts = [
            head.as_bytes(),
            answer,
            middle.as_bytes(),
            xml.as_bytes(),
            b"--",
            boundary.as_bytes(),
            b"--\r\n",
        ];
        let body = parts.concat();
        // Two digits more in Content-Length, at most three.
        let whole = plain - answer.len() - "application/sdp".len() + content_type.len() + body.len() + 3;
        let fits = match flow.transport {
            Transport::Udp => whole <= ANSWER_BYTES_WANTED,
            _ => xml.len() <= ANSWER_METADATA_MAX,
        };
        fits.then_some((content_type, body))
    }
}

fn snapshot_request(
    contact: String,
    why: &str,
    product: &str,
) -> impl FnOnce(RequestBuilder) -> RequestBuilder {
    let body = write::snapshot_request(why);
    move |update| {
        update
            .header("Contact", contact)
            .header("Require", "siprec")
            .header("User-Agent", product)
            .header("Content-Disposition", "recording-session")
            .body("application/rs-metadata", body.as_bytes())
    }
}
