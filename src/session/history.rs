//! What the rs-metadata bodies of one recording have said so far. Who has left the call stays in its manifest.

use bytes::Bytes;
use std::borrow::Cow;
use std::collections::HashMap;

use super::SmallFile;
use super::events::Events;
use crate::clock::Wall;
use crate::limits::{
    FINDINGS_PER_RECORDING_MAX, METADATA_BODIES_MAX, METADATA_ELEMENTS_MAX, METADATA_REMEMBERED_MAX,
    METADATA_WORK_PER_SECOND,
};
use crate::proto::manifest::{self, Event, EventKind, MetadataBody, Participant};
use crate::proto::metadata::changes::changes;
use crate::proto::metadata::{
    self, Body, Finding, Findings, Known, Media, Metadata, MetadataError, Mode, Problem, Severity, check,
    unreadable,
};

#[derive(Debug, Default)]
pub struct History {
    /// What holds now: the last complete body and the partial ones since.
    current: Metadata,
    /// There was a complete body.
    has_base: bool,
    /// Items compared of late, and when that was: they are forgotten at `METADATA_WORK_PER_SECOND`.
    work: (u64, Wall),
    /// The newest update was too many.
    exhausted: bool,
    /// Everybody who was ever named, in order of appearance, and their index by id.
    participants: Vec<Participant>,
    participant_index: HashMap<String, usize>,
    sessions: Vec<String>,
    session_index: HashMap<String, usize>,
    bodies: Vec<MetadataBody>,
    findings: Vec<manifest::Finding>,
    not_kept: usize,
    /// Bytes of the texts in `participants` and `sessions`.
    remembered: usize,
    /// Sessions and participants, or news of them, beyond what is remembered.
    forgotten: usize,
}

/// One body, read and judged; nothing has become of it yet.
#[derive(Debug)]
pub struct Reading {
    bytes: Bytes,
    body: Result<Body, MetadataError>,
    findings: Findings,
    /// Its sender has been told that it is not taken.
    refused: bool,
}

impl Reading {
    /// `known` is what was said before; `media` are the m-lines that its labels are about.
    pub fn new(bytes: Bytes, known: Option<Known<'_>>, media: &[Media<'_>]) -> Reading {
        let body = metadata::parse(&bytes);
        let findings = match &body {
            Ok(body) => check(body, known, media),
            Err(error) => unreadable(*error),
        };
        Reading { bytes, body, findings, refused: false }
    }

    /// It is filed, and nothing else becomes of it.
    pub fn refuse(self) -> Reading {
        Reading { refused: true, ..self }
    }

    pub fn metadata(&self) -> Option<&Metadata> {
        self.body.as_ref().ok().map(|body| &body.metadata)
    }

    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// What breaks a MUST, the worst first: a reason to refuse it, for those who refuse.
    pub fn broken(&self) -> Option<&Finding> {
        self.findings.worst().filter(|finding| finding.code.severity() >= Severity::Error)
    }
}

/// One body, taken in.
#[derive(Debug)]
pub struct Taken {
    /// The file that keeps it; `None` beyond `METADATA_BODIES_MAX`.
    pub file: Option<SmallFile>,
    /// It could not be read or merged.
    pub problem: Option<String>,
    pub findings: Findings,
    /// Why everything should be asked for again (RFC 7866 §9.2).
    pub lacking: Option<&'static str>,
    /// Of what has become part of the model.
    pub mode: Option<Mode>,
}

impl History {
    /// What partial bodies add to. `None` after an update too many: judging the next against it would cost as much again.
    pub fn known(&self) -> Option<Known<'_>> {
        let known = Known { metadata: &self.current, complete: self.has_base };
        Some(known).filter(|_| !self.exhausted)
    }

    /// What holds now.
    pub fn current(&self) -> &Metadata {
        &self.current
    }

    /// Takes one body in. Whatever is wrong with it, it is kept as it came.
    pub fn take(&mut self, at: Wall, reading: Reading, events: &mut Events) -> Taken {
        let Reading { bytes, body, mut findings, refused } = reading;
        if refused {
            let why = findings.worst().map_or_else(String::new, Finding::sentence);
            events.push(Event::new(at, EventKind::MetadataRefused).detail(&why));
            let problem = Some(format!("refused: {why}"));
            let file = self.file(at, &problem, bytes);
            self.note(at, file.as_ref(), &findings);
            return Taken { file, problem, findings, lacking: None, mode: None };
        }
        let had_base = self.has_base;
        let mode = body.as_ref().ok().map(|body| body.metadata.mode);
        let (problem, lacking) = match body.and_then(|body| self.apply(at, body.metadata, events)) {
            Ok(Mode::Partial) if !had_base => {
                (None, Some("a partial update came before any complete description"))
            }
            Ok(_) => (None, None),
            Err(error) => {
                if findings.worst().is_none_or(|worst| worst.code.severity() < Severity::Critical) {
                    findings = unreadable(error);
                }
                events.push(Event::new(at, EventKind::MetadataRefused).detail(error.to_string()));
                (Some(error.to_string()), had_base.then_some("an update could not be read"))
            }
        };
        let file = self.file(at, &problem, bytes);
        self.note(at, file.as_ref(), &findings);
        let mode = mode.filter(|_| problem.is_none());
        Taken { file, problem, findings, lacking, mode }
    }

    fn apply(&mut self, at: Wall, update: Metadata, events: &mut Events) -> Result<Mode, MetadataError> {
        self.afford(at, &update)?;
        self.remember(&update);
        let mode = update.mode;
        let mut after = match mode {
            Mode::Complete => Metadata::default(),
            Mode::Partial => self.current.clone(),
        };
        after.merge(update)?;
        if mode == Mode::Complete {
            if !self.bodies.is_empty() {
                events.push(Event::new(at, EventKind::SnapshotTaken));
            }
            self.has_base = true;
        }
        changes(&self.current, &after, at, &mut |event| events.push(event));
        self.current = after;
        Ok(mode)
    }

    /// What updates cost grows with what they are compared with, not with what they bring.
    fn afford(&mut self, at: Wall, update: &Metadata) -> Result<(), MetadataError> {
        let (work, since) = self.work;
        let forgotten =
            u128::from(at.0.abs_diff(since.0)) * u128::from(METADATA_WORK_PER_SECOND) / 1_000_000_000;
        let left = work.saturating_sub(u64::try_from(forgotten).unwrap_or(u64::MAX));
        let more = left + (self.current.items() + update.items()) as u64;
        self.exhausted = more > METADATA_WORK_PER_SECOND;
        if self.exhausted {
            return Err(MetadataError { problem: Problem::TooOften, at: 0 });
        }
        self.work = (more, at);
        Ok(())
    }

    fn file(&mut self, at: Wall, problem: &Option<String>, bytes: Bytes) -> Option<SmallFile> {
        if self.bodies.len() == METADATA_BODIES_MAX {
            self.not_kept += 1;
            return None;
        }
        let name = format!("metadata-{:04}.xml", self.bodies.len() + 1);
        let (understood, problem) = (problem.is_none(), problem.clone());
        self.bodies.push(MetadataBody { file: name.clone(), received: at, understood, problem });
        Some(SmallFile { name, bytes })
    }

    /// The same finding of a later body is the same finding again.
    fn note(&mut self, at: Wall, file: Option<&SmallFile>, findings: &Findings) {
        for Finding { code, element, value, times } in findings.iter() {
            let same = |known: &&mut manifest::Finding| {
                known.code == code.text() && known.element == *element && known.value == *value
            };
            if let Some(known) = self.findings.iter_mut().find(same) {
                known.times += u64::from(*times);
            } else if self.findings.len() < FINDINGS_PER_RECORDING_MAX {
                self.findings.push(manifest::Finding {
                    at,
                    file: file.map(|file| file.name.clone()),
                    code: code.text(),
                    severity: code.severity(),
                    element: element.clone(),
                    value: value.clone(),
                    times: u64::from(*times),
                    source: code.source(),
                    rule: code.rule(),
                });
            }
        }
    }

    pub fn findings(&self) -> Vec<manifest::Finding> {
        self.findings.clone()
    }

    /// Ids of the participants that send into the stream with this label now. SRCs are met whose labels in the SDP are
    /// not those of their metadata: then the streams are matched in their order, `position` counted from 0.
    pub fn senders(&self, labels: &[Option<&str>], position: usize) -> Vec<String> {
        let known =
            |label: &str| self.current.streams.iter().any(|stream| stream.label.as_deref() == Some(label));
        let label = if labels.iter().flatten().any(|label| known(label)) {
            labels[position]
        } else {
            self.current.streams.get(position).and_then(|stream| stream.label.as_deref())
        };
        let senders = label.map(|label| self.current.senders_of_label(label)).unwrap_or_default();
        senders.into_iter().map(|participant| participant.id.clone()).collect()
    }

    pub fn participants(&self) -> Vec<Participant> {
        self.participants.clone()
    }

    pub fn communication_sessions(&self) -> Vec<String> {
        self.sessions.clone()
    }

    pub fn bodies(&self) -> Vec<MetadataBody> {
        self.bodies.clone()
    }

    /// What the manifest has to say about it in words.
    pub fn problems(&self) -> Vec<String> {
        let not_kept = (self.not_kept > 0)
            .then(|| format!("{} metadata bodies not kept: more than {METADATA_BODIES_MAX}", self.not_kept));
        let forgotten = (self.forgotten > 0).then(|| {
            format!("{} times metadata named more sessions or participants than fit here", self.forgotten)
        });
        not_kept.into_iter().chain(forgotten).collect()
    }

    fn remember(&mut self, update: &Metadata) {
        for session in &update.sessions {
            if self.session_index.contains_key(&session.id) {
                continue;
            }
            if self.sessions.len() < METADATA_ELEMENTS_MAX && self.room(0, session.id.len()) {
                self.session_index.insert(session.id.clone(), self.sessions.len());
                self.sessions.push(session.id.clone());
            }
        }
        for participant in &update.participants {
            self.remember_participant(participant);
        }
    }

    /// A later body may know more of somebody, or less: what is known is never taken back.
    fn remember_participant(&mut self, update: &metadata::Participant) {
        let key = identity(update);
        if let Some(index) = self.participant_index.get(key.as_ref()).copied() {
            let known = &self.participants[index];
            let name = update.name.as_ref().or(known.name.as_ref()).cloned();
            let aors = if update.aors.is_empty() { known.aors.clone() } else { update.aors.clone() };
            if self.room(text(&known.name, &known.aors), text(&name, &aors)) {
                let id = update.id.clone();
                self.participants[index] = Participant { id, aors, name };
            }
        } else if self.participants.len() < METADATA_ELEMENTS_MAX
            && self.room(0, update.id.len() + text(&update.name, &update.aors))
        {
            self.participant_index.insert(key.into_owned(), self.participants.len());
            self.participants.push(Participant {
                id: update.id.clone(),
                aors: update.aors.clone(),
                name: update.name.clone(),
            });
        }
    }

    /// Takes `new` bytes in the place of `old` ones, if there is room.
    fn room(&mut self, old: usize, new: usize) -> bool {
        let remembered = self.remembered - old + new;
        let fits = new <= old || remembered <= METADATA_REMEMBERED_MAX;
        if fits {
            self.remembered = remembered;
        } else {
            self.forgotten += 1;
        }
        fits
    }
}

/// What tells a participant from the others: the id, and without one all that is said of them.
fn identity(participant: &metadata::Participant) -> Cow<'_, str> {
    if participant.id.is_empty() {
        Cow::Owned(format!(
            "\n{}\n{}",
            participant.aors.join("\n"),
            participant.name.as_deref().unwrap_or("")
        ))
    } else {
        Cow::Borrowed(&participant.id)
    }
}

/// Bytes of these texts.
fn text(name: &Option<String>, aors: &[String]) -> usize {
    name.iter().chain(aors).map(String::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(content: &str) -> Bytes {
        Bytes::from(format!("<recording><datamode>complete</datamode>{content}</recording>"))
    }

    fn take(history: &mut History, body: Bytes) -> Taken {
        let reading = Reading::new(body, history.known(), &[]);
        history.take(Wall(0), reading, &mut Events::default())
    }

    /// Every body is of a legal size and names somebody else.
    #[test]
    fn what_is_remembered_is_bounded() {
        let mut history = History::default();
        for number in 0..40 {
            let id = format!("{number}{}", "x".repeat(100_000));
            take(&mut history, body(&format!("<session id='{id}'/><participant id='{id}'/>")));
        }
        let ids = history.participants().iter().map(|participant| participant.id.len()).sum::<usize>();
        let sessions = history.communication_sessions().iter().map(String::len).sum::<usize>();
        assert!(ids + sessions <= METADATA_REMEMBERED_MAX, "{}", ids + sessions);
        assert!(history.participants().len() >= 4);
        assert_eq!(history.problems().len(), 1);
        // Who is known already may be renamed as often as the SRC likes.
        let id = history.participants()[0].id.clone();
        for name in ["One", "Two"] {
            take(&mut history, body(&format!("<participant id='{id}'><name>{name}</name></participant>")));
        }
        let shorter = history.participants()[0].name.clone();
        assert!(shorter.is_none() || shorter.as_deref() == Some("Two"));
    }

    #[test]
    fn participants_without_an_id_stay_apart() {
        let mut history = History::default();
        let both = "<participant><nameID aor='sip:a@x'/></participant><participant><nameID aor='sip:b@x'/></participant>";
        for _ in 0..2 {
            take(&mut history, body(both));
        }
        let aors: Vec<_> =
            history.participants().into_iter().flat_map(|participant| participant.aors).collect();
        assert_eq!(aors, ["sip:a@x", "sip:b@x"]);
    }

    /// Small updates of a large description: so many a second.
    #[test]
    fn work_is_bounded() {
        let mut history = History::default();
        let all: String = (0..4_000).map(|n| format!("<participant id='{n}'/>")).collect();
        assert_eq!(take(&mut history, body(&all)).problem, None);
        let update =
            || Bytes::from("<recording><datamode>partial</datamode><participant id='1'/></recording>");
        let applied = |history: &mut History, at: u64, count: usize| {
            let understood = |_: &usize| {
                let reading = Reading::new(update(), history.known(), &[]);
                let taken = history.take(Wall(at * 1_000_000_000), reading, &mut Events::default());
                assert_eq!(
                    taken.problem.is_some(),
                    taken.findings.worst().is_some_and(|it| it.code.text() == "metadata.size.too-often")
                );
                taken.problem.is_none()
            };
            (0..count).filter(understood).count()
        };
        assert_eq!(applied(&mut history, 0, 1_000), 48);
        assert_eq!(applied(&mut history, 1, 1_000), 49);
    }

    #[test]
    fn a_name_is_counted_once() {
        let mut history = History::default();
        for _ in 0..50 {
            let name = "n".repeat(50_000);
            take(&mut history, body(&format!("<participant id='p'><name>{name}</name></participant>")));
        }
        assert_eq!(history.remembered, 50_001);
        assert_eq!(history.problems(), [""; 0]);
    }
}
