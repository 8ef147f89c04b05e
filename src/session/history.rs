//! What the rs-metadata bodies of one recording have said so far. Who has left the call stays in its manifest.

use bytes::Bytes;
use std::collections::HashMap;

use super::SmallFile;
use crate::clock::Wall;
use crate::limits::{METADATA_BODIES_MAX, METADATA_ELEMENTS_MAX};
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
    pub fn problem(&self) -> Option<String> {
        (self.not_kept > 0)
            .then(|| format!("{} metadata bodies not kept: more than {METADATA_BODIES_MAX}", self.not_kept))
    }

    fn remember(&mut self, update: &Metadata) {
        for session in &update.sessions {
            if !self.session_index.contains_key(&session.id) && self.sessions.len() < METADATA_ELEMENTS_MAX {
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
        if let Some(known) =
            self.participant_index.get(&update.id).map(|index| &mut self.participants[*index])
        {
            if update.name.is_some() {
                known.name.clone_from(&update.name);
            }
            if !update.aors.is_empty() {
                known.aors.clone_from(&update.aors);
            }
        } else if self.participants.len() < METADATA_ELEMENTS_MAX {
            self.participant_index.insert(update.id.clone(), self.participants.len());
            self.participants.push(Participant {
                id: update.id.clone(),
                aors: update.aors.clone(),
                name: update.name.clone(),
            });
        }
    }
}
