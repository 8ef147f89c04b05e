//! rs-metadata: who takes part in a communication session and which streams carry whom (RFC 7865).
//!
//! The layout is that of RFC 7865, of its drafts (`recording`, `siprec`: ids in `id`, send and recv inside participant) or
//! any mixture. Elements are matched by local name, ids are opaque, unknown elements are passed over.

use std::fmt;

/// Whether a body tells everything or only what changed (RFC 7865 §6.1.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    #[default]
    Complete,
    Partial,
}

/// What one body says, or several merged. Each list is in order of appearance and has an id once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Metadata {
    pub mode: Mode,
    pub sessions: Vec<CommunicationSession>,
    pub participants: Vec<Participant>,
    pub streams: Vec<Stream>,
    pub associations: Vec<StreamAssociation>,
}

/// RFC 7865 §6.3.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CommunicationSession {
    pub id: String,
    /// RFC 7989 Session-IDs of the dialogs it consists of.
    pub sip_session_ids: Vec<String>,
    /// As written; RFC 3339 where the SRC keeps to RFC 7865 §6.9.
    pub start_time: Option<String>,
    pub stop_time: Option<String>,
}

/// RFC 7865 §6.5.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Participant {
    pub id: String,
    /// Addresses of record as written, with or without scheme.
    pub aors: Vec<String>,
    pub name: Option<String>,
}

/// RFC 7865 §6.7.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stream {
    pub id: String,
    pub session_id: Option<String>,
    /// The a=label of its m-line.
    pub label: Option<String>,
}

/// What one participant sends and receives (RFC 7865 §6.8).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StreamAssociation {
    pub participant_id: String,
    /// Stream ids.
    pub sends: Vec<String>,
    pub receives: Vec<String>,
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

/// Reads one rs-metadata body of at most [`crate::limits::METADATA_MAX`] bytes.
pub fn parse(body: &[u8]) -> Result<Metadata, MetadataError> {
    todo!()
}

impl Metadata {
    /// The participants that send into the stream with this label.
    pub fn senders_of_label(&self, label: &str) -> Vec<&Participant> {
        todo!()
    }

    /// Applies a later body: a complete one replaces everything, a partial one adds to it or replaces what has the same
    /// id. On an error (it would grow beyond `METADATA_ELEMENTS_MAX`) nothing changes.
    pub fn merge(&mut self, update: Metadata) -> Result<(), MetadataError> {
        todo!()
    }
}
