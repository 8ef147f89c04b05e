//! rs-metadata: who takes part in a communication session and which streams carry whom (RFC 7865).
//!
//! `reader` makes a body into the classes of RFC 7865 §6, in whatever of its layouts it is; `check` says what is wrong with
//! it and why; merging applies updates, and `changes` tells what they changed.

pub mod changes;
pub mod check;
mod code;
mod list;
mod reader;
pub mod time;
pub mod write;

pub use check::{Findings, Known, Media, check, unreadable};
pub use code::{Code, Finding, Severity};
pub use reader::{Body, Form, parse};

use serde::Serialize;
use std::collections::HashSet;
use std::fmt;

use crate::limits::{
    METADATA_ELEMENTS_MAX, METADATA_EXTENSION_BYTES_MAX, METADATA_EXTENSIONS_MAX, METADATA_MAX,
};
use list::{ById, Identified};

/// Whether a body tells everything or only what changed (RFC 7865 §6.1.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    #[default]
    Complete,
    Partial,
}

/// What one body says, or several merged. Each list is in order of appearance and has an id once.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Metadata {
    #[serde(skip)]
    pub mode: Mode,
    pub groups: Vec<Group>,
    pub sessions: Vec<CommunicationSession>,
    pub participants: Vec<Participant>,
    pub streams: Vec<Stream>,
    pub session_recordings: Vec<SessionRecording>,
    pub participant_sessions: Vec<SessionAssociation>,
    #[serde(rename = "participant_streams")]
    pub associations: Vec<StreamAssociation>,
    pub extensions: Vec<Extension>,
}

/// When an association began and ended, as written; RFC 3339 where the SRC keeps to RFC 7865 §6.9.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Span {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub associated: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disassociated: Option<String>,
}

/// RFC 7865 §6.2.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Group {
    pub id: String,
    #[serde(flatten)]
    pub span: Span,
}

/// RFC 7865 §6.3.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct CommunicationSession {
    pub id: String,
    /// RFC 7989 Session-IDs of the dialogs it consists of.
    pub sip_session_ids: Vec<String>,
    /// Why it ended, in the words of the SRC.
    pub reasons: Vec<String>,
    pub group_id: Option<String>,
    /// As written.
    pub start_time: Option<String>,
    pub stop_time: Option<String>,
}

/// RFC 7865 §6.5.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Participant {
    pub id: String,
    /// Addresses of record as written, with or without scheme.
    pub aors: Vec<String>,
    pub name: Option<String>,
}

/// RFC 7865 §6.7.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Stream {
    pub id: String,
    pub session_id: Option<String>,
    /// The a=label of its m-line.
    pub label: Option<String>,
    /// Of the drafts: `mixed` or `separate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

/// When a communication session is part of this recording session (RFC 7865 §6.4).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct SessionRecording {
    pub session_id: String,
    #[serde(flatten)]
    pub span: Span,
}

/// A participant in a communication session (RFC 7865 §6.6). The drafts say it with attributes of the participant.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct SessionAssociation {
    pub participant_id: String,
    pub session_id: String,
    #[serde(flatten)]
    pub span: Span,
    /// Names and values of its capabilities and roles: feature tags (RFC 3840), `isfocus`.
    pub params: Vec<(String, String)>,
}

/// What one participant sends and receives (RFC 7865 §6.8).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct StreamAssociation {
    pub participant_id: String,
    /// Stream ids.
    pub sends: Vec<String>,
    pub receives: Vec<String>,
    #[serde(flatten)]
    pub span: Span,
}

/// What RFC 7865 does not know, as it was written (§9, `##other`).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Extension {
    /// The element that it is in: `recording`, `participant`.
    pub parent: &'static str,
    /// Of that element, if it has one.
    pub parent_id: String,
    /// The element from its start tag to its end tag. Prefixes that it uses may be declared further out.
    pub xml: String,
}

/// What is wrong and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MetadataError {
    pub problem: Problem,
    /// Byte offset into the body.
    pub at: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Problem {
    /// Larger than `METADATA_MAX`.
    TooLarge,
    /// More than `METADATA_ELEMENTS_MAX`, in one body or in all that are merged.
    TooManyElements,
    /// More work than `METADATA_WORK_PER_SECOND`.
    TooOften,
    /// Deeper than `METADATA_DEPTH_MAX`.
    TooDeep,
    /// More than `METADATA_ATTRIBUTES_MAX` on one element.
    TooManyAttributes,
    /// Not UTF-8 (RFC 7865 §5.1.1).
    Encoding,
    /// A document type declaration: the way in for entity bombs, and never needed.
    DocumentType,
    /// The root is neither `recording` nor `recording_metadata`.
    NotRecording,
    /// The body ends before its root does.
    Truncated,
    /// Not well-formed XML.
    Syntax(&'static str),
}

impl fmt::Display for MetadataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.problem {
            Problem::TooLarge => "too large",
            Problem::TooManyElements => "too many elements",
            Problem::TooOften => "too many updates of a large description",
            Problem::TooDeep => "nested too deeply",
            Problem::TooManyAttributes => "too many attributes",
            Problem::Encoding => "not UTF-8",
            Problem::DocumentType => "document type declaration",
            Problem::NotRecording => "root element is not recording",
            Problem::Truncated => "ends too early",
            Problem::Syntax(what) => what,
        };
        write!(f, "{what} at byte {}", self.at)
    }
}

impl std::error::Error for MetadataError {}

impl Span {
    /// Who is associated again is not disassociated any more.
    fn update(&mut self, later: Span) {
        if later.associated.is_some() {
            *self = later;
        } else {
            self.disassociated = later.disassociated.or(self.disassociated.take());
        }
    }

    fn text(&self) -> usize {
        length(self.associated.iter().chain(&self.disassociated))
    }
}

impl Identified for Group {
    fn ids(&self) -> (&str, &str) {
        (&self.id, "")
    }

    fn with_ids(id: &str, _: &str) -> Self {
        Group { id: id.to_owned(), ..Self::default() }
    }

    fn update(&mut self, later: Self) {
        self.span.update(later.span);
    }

    fn text(&self) -> usize {
        self.id.len() + self.span.text()
    }
}

impl Identified for CommunicationSession {
    fn ids(&self) -> (&str, &str) {
        (&self.id, "")
    }

    fn with_ids(id: &str, _: &str) -> Self {
        CommunicationSession { id: id.to_owned(), ..Self::default() }
    }

    fn update(&mut self, later: Self) {
        replace_list(&mut self.sip_session_ids, later.sip_session_ids);
        replace_list(&mut self.reasons, later.reasons);
        self.group_id = later.group_id.or(self.group_id.take());
        self.start_time = later.start_time.or(self.start_time.take());
        self.stop_time = later.stop_time.or(self.stop_time.take());
    }

    fn text(&self) -> usize {
        let lists = self.sip_session_ids.iter().chain(&self.reasons);
        let rest = self.group_id.iter().chain(&self.start_time).chain(&self.stop_time);
        self.id.len() + length(lists) + length(rest)
    }
}

impl Identified for Participant {
    fn ids(&self) -> (&str, &str) {
        (&self.id, "")
    }

    fn with_ids(id: &str, _: &str) -> Self {
        Participant { id: id.to_owned(), ..Self::default() }
    }

    fn update(&mut self, later: Self) {
        replace_list(&mut self.aors, later.aors);
        self.name = later.name.or(self.name.take());
    }

    fn text(&self) -> usize {
        length([&self.id].into_iter().chain(&self.aors).chain(&self.name))
    }
}

impl Identified for Stream {
    fn ids(&self) -> (&str, &str) {
        (&self.id, "")
    }

    fn with_ids(id: &str, _: &str) -> Self {
        Stream { id: id.to_owned(), ..Self::default() }
    }

    fn update(&mut self, later: Self) {
        self.session_id = later.session_id.or(self.session_id.take());
        self.label = later.label.or(self.label.take());
        self.mode = later.mode.or(self.mode.take());
    }

    fn text(&self) -> usize {
        self.id.len() + length(self.session_id.iter().chain(&self.label).chain(&self.mode))
    }
}

impl Identified for SessionRecording {
    fn ids(&self) -> (&str, &str) {
        (&self.session_id, "")
    }

    fn with_ids(id: &str, _: &str) -> Self {
        SessionRecording { session_id: id.to_owned(), ..Self::default() }
    }

    fn update(&mut self, later: Self) {
        self.span.update(later.span);
    }

    fn text(&self) -> usize {
        self.session_id.len() + self.span.text()
    }
}

impl Identified for SessionAssociation {
    fn ids(&self) -> (&str, &str) {
        (&self.participant_id, &self.session_id)
    }

    fn with_ids(participant_id: &str, session_id: &str) -> Self {
        let (participant_id, session_id) = (participant_id.to_owned(), session_id.to_owned());
        SessionAssociation { participant_id, session_id, ..Self::default() }
    }

    fn update(&mut self, later: Self) {
        self.span.update(later.span);
        replace_list(&mut self.params, later.params);
    }

    fn text(&self) -> usize {
        let params: usize = self.params.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.participant_id.len() + self.session_id.len() + self.span.text() + params
    }
}

impl Identified for StreamAssociation {
    fn ids(&self) -> (&str, &str) {
        (&self.participant_id, "")
    }

    fn with_ids(id: &str, _: &str) -> Self {
        StreamAssociation { participant_id: id.to_owned(), ..Self::default() }
    }

    /// RFC 7865 §6.8.1: a stream that is not named any more is not sent or received any more.
    fn update(&mut self, later: Self) {
        self.sends = later.sends;
        self.receives = later.receives;
        self.span.update(later.span);
    }

    fn text(&self) -> usize {
        self.participant_id.len() + length(self.sends.iter().chain(&self.receives)) + self.span.text()
    }
}

fn replace_list<T>(list: &mut Vec<T>, later: Vec<T>) {
    if !later.is_empty() {
        *list = later;
    }
}

impl Metadata {
    /// The participants that send into the stream with this label.
    pub fn senders_of_label(&self, label: &str) -> Vec<&Participant> {
        let labelled = self.streams.iter().filter(|stream| stream.label.as_deref() == Some(label));
        let streams: HashSet<&str> = labelled.map(|stream| stream.id.as_str()).collect();
        let sending = self.associations.iter().filter(|association| {
            association.sends.iter().any(|stream_id| streams.contains(stream_id.as_str()))
        });
        let senders: HashSet<&str> = sending.map(|association| association.participant_id.as_str()).collect();
        let is_sender = |id: &str| !id.is_empty() && senders.contains(id);
        self.participants.iter().filter(|participant| is_sender(&participant.id)).collect()
    }

    /// Applies a later body: a complete one replaces everything; a partial one adds to it, and what it says of a known id
    /// replaces what was said before. On an error (it could grow beyond what one body may be) nothing changes.
    pub fn merge(&mut self, update: Metadata) -> Result<(), MetadataError> {
        if update.mode == Mode::Complete {
            *self = update;
            return Ok(());
        }
        if self.items() + update.items() > METADATA_ELEMENTS_MAX {
            return Err(MetadataError { problem: Problem::TooManyElements, at: 0 });
        }
        if self.text() + update.text() > METADATA_MAX {
            return Err(MetadataError { problem: Problem::TooLarge, at: 0 });
        }
        merge_list(&mut self.groups, update.groups);
        merge_list(&mut self.sessions, update.sessions);
        merge_list(&mut self.participants, update.participants);
        merge_list(&mut self.streams, update.streams);
        merge_list(&mut self.session_recordings, update.session_recordings);
        merge_list(&mut self.participant_sessions, update.participant_sessions);
        merge_list(&mut self.associations, update.associations);
        self.extend(update.extensions);
        Ok(())
    }

    /// Extensions have no ids: those of an element that is restated take the place of those that it had.
    fn extend(&mut self, later: Vec<Extension>) {
        if later.is_empty() {
            return;
        }
        let restated: HashSet<(&str, &str)> = later.iter().map(Extension::place).collect();
        self.extensions.retain(|known| !restated.contains(&known.place()));
        self.extensions.extend(later);
        let mut bytes = 0;
        self.extensions.retain(|extension| {
            bytes += extension.xml.len();
            bytes <= METADATA_EXTENSION_BYTES_MAX
        });
        self.extensions.truncate(METADATA_EXTENSIONS_MAX);
    }

    /// Elements that have ids.
    pub fn items(&self) -> usize {
        self.groups.len()
            + self.sessions.len()
            + self.participants.len()
            + self.streams.len()
            + self.session_recordings.len()
            + self.participant_sessions.len()
            + self.associations.len()
    }

    /// Bytes of all texts but the extensions, which have a limit of their own.
    fn text(&self) -> usize {
        fn sum<T: Identified>(list: &[T]) -> usize {
            list.iter().map(Identified::text).sum()
        }
        sum(&self.groups)
            + sum(&self.sessions)
            + sum(&self.participants)
            + sum(&self.streams)
            + sum(&self.session_recordings)
            + sum(&self.participant_sessions)
            + sum(&self.associations)
    }
}

impl Extension {
    fn place(&self) -> (&str, &str) {
        (self.parent, &self.parent_id)
    }
}

fn length<'a>(texts: impl IntoIterator<Item = &'a String>) -> usize {
    texts.into_iter().map(String::len).sum()
}

fn merge_list<T: Identified>(list: &mut Vec<T>, later: Vec<T>) {
    if later.is_empty() {
        return;
    }
    let mut by_id = ById::new(std::mem::take(list));
    by_id.update(later);
    *list = by_id.items;
}

#[cfg(test)]
mod tests;
