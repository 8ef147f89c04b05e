//! What the rs-metadata bodies of one recording have said so far. Who has left the call stays in its manifest.

use bytes::Bytes;
use std::borrow::Cow;
use std::collections::HashMap;

use super::SmallFile;
use crate::clock::Wall;
use crate::limits::{METADATA_BODIES_MAX, METADATA_ELEMENTS_MAX, METADATA_REMEMBERED_MAX};
use crate::proto::manifest::{MetadataBody, Participant};
use crate::proto::metadata::{self, Metadata};

#[derive(Debug, Default)]
pub struct History {
    /// What holds now: the last complete body and the partial ones since.
    current: Metadata,
    /// Everybody who was ever named, in order of appearance, and their index by id.
    participants: Vec<Participant>,
    participant_index: HashMap<String, usize>,
    sessions: Vec<String>,
    session_index: HashMap<String, usize>,
    bodies: Vec<MetadataBody>,
    not_kept: usize,
    /// Bytes of the texts in `participants` and `sessions`.
    remembered: usize,
    /// Sessions and participants, or news of them, beyond what is remembered.
    forgotten: usize,
}

/// One body, taken in.
#[derive(Debug)]
pub struct Taken {
    /// The file that keeps it; `None` beyond `METADATA_BODIES_MAX`.
    pub file: Option<SmallFile>,
    pub problem: Option<String>,
}

impl History {
    /// Reads one body. Whatever is wrong with it, it is kept as it came.
    pub fn take(&mut self, at: Wall, body: Bytes) -> Taken {
        let problem = metadata::parse(&body)
            .and_then(|update| {
                self.remember(&update);
                self.current.merge(update)
            })
            .err()
            .map(|error| error.to_string());
        if self.bodies.len() == METADATA_BODIES_MAX {
            self.not_kept += 1;
            return Taken { file: None, problem };
        }
        let name = format!("metadata-{:04}.xml", self.bodies.len() + 1);
        let understood = problem.is_none();
        self.bodies.push(MetadataBody {
            file: name.clone(),
            received: at,
            understood,
            problem: problem.clone(),
        });
        Taken { file: Some(SmallFile { name, bytes: body }), problem }
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

    /// Every body is of a legal size and names somebody else.
    #[test]
    fn what_is_remembered_is_bounded() {
        let mut history = History::default();
        for number in 0..40 {
            let id = format!("{number}{}", "x".repeat(100_000));
            history.take(Wall(0), body(&format!("<session id='{id}'/><participant id='{id}'/>")));
        }
        let ids = history.participants().iter().map(|participant| participant.id.len()).sum::<usize>();
        let sessions = history.communication_sessions().iter().map(String::len).sum::<usize>();
        assert!(ids + sessions <= METADATA_REMEMBERED_MAX, "{}", ids + sessions);
        assert!(history.participants().len() >= 4);
        assert_eq!(history.problems().len(), 1);
        // Who is known already may be renamed as often as the SRC likes.
        let id = history.participants()[0].id.clone();
        for name in ["One", "Two"] {
            history.take(Wall(0), body(&format!("<participant id='{id}'><name>{name}</name></participant>")));
        }
        let shorter = history.participants()[0].name.clone();
        assert!(shorter.is_none() || shorter.as_deref() == Some("Two"));
    }

    #[test]
    fn participants_without_an_id_stay_apart() {
        let mut history = History::default();
        let both = "<participant><nameID aor='sip:a@x'/></participant><participant><nameID aor='sip:b@x'/></participant>";
        for _ in 0..2 {
            history.take(Wall(0), body(both));
        }
        let aors: Vec<_> =
            history.participants().into_iter().flat_map(|participant| participant.aors).collect();
        assert_eq!(aors, ["sip:a@x", "sip:b@x"]);
    }

    #[test]
    fn a_name_is_counted_once() {
        let mut history = History::default();
        for _ in 0..50 {
            let name = "n".repeat(50_000);
            history.take(Wall(0), body(&format!("<participant id='p'><name>{name}</name></participant>")));
        }
        assert_eq!(history.remembered, 50_001);
        assert_eq!(history.problems(), [""; 0]);
    }
}
