//! rs-metadata: who takes part in a communication session and which streams carry whom (RFC 7865).
//!
//! The layout is that of RFC 7865, of its drafts (`recording`, `siprec`: ids in `id`, send and recv inside participant) or
//! any mixture. Elements are matched by local name, ids are opaque, unknown elements are passed over.

use quick_xml::NsReader;
use quick_xml::XmlVersion;
use quick_xml::events::attributes::Attribute;
use quick_xml::events::{BytesRef, BytesStart, Event};
use quick_xml::name::ResolveResult;
use std::collections::{HashMap, HashSet};
use std::fmt;

use crate::limits::{METADATA_ATTRIBUTES_MAX, METADATA_DEPTH_MAX, METADATA_ELEMENTS_MAX, METADATA_MAX};

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

/// Reads one rs-metadata body of at most [`METADATA_MAX`] bytes.
pub fn parse(body: &[u8]) -> Result<Metadata, MetadataError> {
    if body.len() > METADATA_MAX {
        return Err(MetadataError { problem: Problem::TooLarge, at: METADATA_MAX });
    }
    let text = std::str::from_utf8(body)
        .map_err(|error| MetadataError { problem: Problem::Encoding, at: error.valid_up_to() })?;
    let mut reader = NsReader::from_str(text);
    reader.config_mut().expand_empty_elements = true;
    let mut document = Document::default();
    while !document.ended {
        let event = match reader.read_event() {
            Ok(event) => event,
            Err(error) => {
                return Err(MetadataError { problem: syntax(&error), at: reader.error_position() as usize });
            }
        };
        let step = document.take(&reader, &event);
        step.map_err(|problem| MetadataError { problem, at: reader.buffer_position() as usize })?;
    }
    Ok(document.into_metadata())
}

fn syntax(error: &quick_xml::Error) -> Problem {
    use quick_xml::Error;
    Problem::Syntax(match error {
        Error::Syntax(_) => "markup without its end",
        Error::IllFormed(_) => "tags that do not match",
        Error::InvalidAttr(_) => "malformed attribute",
        Error::Escape(_) => "malformed or unknown entity",
        Error::Namespace(_) => "malformed or too many namespaces",
        Error::Io(_) | Error::Encoding(_) => "unreadable",
    })
}

/// A document while it is read.
#[derive(Default)]
struct Document {
    mode: Mode,
    sessions: ById<CommunicationSession>,
    participants: ById<Participant>,
    streams: ById<Stream>,
    associations: ById<StreamAssociation>,
    /// What each open element means, the root first.
    open: Vec<Meaning>,
    /// Text since the last start tag.
    text: String,
    elements: usize,
    /// Of the root. Whatever it is, its elements are ours.
    namespace: String,
    ended: bool,
}

/// What an element means. Indices are into the lists of the document.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Meaning {
    DataMode,
    Session(usize),
    SipSessionId,
    StartTime,
    StopTime,
    Participant(usize),
    NameId,
    Aor,
    Name,
    Stream(usize),
    Label,
    Association(usize),
    Send,
    Receive,
    /// Of no interest itself; elements in it may be.
    Wrapper,
    /// An extension (RFC 7865 §9, `##other`): nothing in it is ours.
    Foreign,
}

/// RFC 7865, and the two namespaces its drafts had.
const NAMESPACES: [&str; 3] = [
    "urn:ietf:params:xml:ns:recording:1",
    "urn:ietf:params:xml:ns:recording",
    "urn:ietf:params:xml:ns:siprec",
];

impl Document {
    fn take(&mut self, reader: &NsReader<&[u8]>, event: &Event<'_>) -> Result<(), Problem> {
        match event {
            Event::Start(element) => self.start(reader, element)?,
            Event::End(_) => self.end(),
            Event::Text(text) => self.text.push_str(&text.xml10_content()),
            Event::CData(text) => self.text.push_str(&text.xml10_content()),
            Event::GeneralRef(reference) => self.reference(reference)?,
            Event::DocType(_) => return Err(Problem::DocumentType),
            Event::Eof if self.elements == 0 => return Err(Problem::NotRecording),
            Event::Eof => return Err(Problem::Truncated),
            Event::Empty(_) | Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
        }
        Ok(())
    }

    fn start(&mut self, reader: &NsReader<&[u8]>, element: &BytesStart<'_>) -> Result<(), Problem> {
        self.elements += 1;
        if self.elements > METADATA_ELEMENTS_MAX {
            return Err(Problem::TooManyElements);
        }
        if self.open.len() == METADATA_DEPTH_MAX {
            return Err(Problem::TooDeep);
        }
        if element.attributes().with_checks(false).nth(METADATA_ATTRIBUTES_MAX).is_some() {
            return Err(Problem::TooManyAttributes);
        }
        self.text.clear();
        let (namespace, name) = reader.resolver().resolve_element(element.name());
        let meaning = match self.open.last() {
            None => self.root(&namespace, name.as_ref())?,
            Some(Meaning::Foreign) => Meaning::Foreign,
            Some(_) if !self.is_ours(&namespace) => Meaning::Foreign,
            Some(_) => self.meaning(name.as_ref(), element)?,
        };
        self.open.push(meaning);
        Ok(())
    }

    fn root(&mut self, namespace: &ResolveResult<'_>, name: &str) -> Result<Meaning, Problem> {
        if !["recording", "recording_metadata"].iter().any(|known| name.eq_ignore_ascii_case(known)) {
            return Err(Problem::NotRecording);
        }
        self.namespace = namespace_name(namespace).to_owned();
        Ok(Meaning::Wrapper)
    }

    fn is_ours(&self, namespace: &ResolveResult<'_>) -> bool {
        let name = namespace_name(namespace);
        name.is_empty() || name == self.namespace || NAMESPACES.contains(&name)
    }

    fn meaning(&mut self, name: &str, element: &BytesStart<'_>) -> Result<Meaning, Problem> {
        Ok(match name.to_ascii_lowercase().as_str() {
            "datamode" => Meaning::DataMode,
            "session" => {
                let id = attribute(element, &["session_id", "id"])?.unwrap_or_default();
                Meaning::Session(self.sessions.entry(&id))
            }
            "participant" => {
                let id = attribute(element, &["participant_id", "id"])?.unwrap_or_default();
                Meaning::Participant(self.participants.entry(&id))
            }
            "stream" => self.stream(element)?,
            "participantstreamassoc" => {
                let id = attribute(element, &["participant_id", "participant", "id"])?.unwrap_or_default();
                Meaning::Association(self.associations.entry(&id))
            }
            "nameid" => self.name_id(element)?,
            "sipsessionid" => Meaning::SipSessionId,
            "start-time" | "start_time" | "associate-time" => Meaning::StartTime,
            "stop-time" | "stop_time" | "disassociate-time" => Meaning::StopTime,
            "aor" => Meaning::Aor,
            "name" => Meaning::Name,
            "label" => Meaning::Label,
            "send" => Meaning::Send,
            "recv" => Meaning::Receive,
            _ => Meaning::Wrapper,
        })
    }

    fn stream(&mut self, element: &BytesStart<'_>) -> Result<Meaning, Problem> {
        let id = attribute(element, &["stream_id", "id"])?.unwrap_or_default();
        let around = self.around(|meaning| match meaning {
            Meaning::Session(index) => Some(self.sessions.items[index].id.clone()),
            _ => None,
        });
        let session_id = attribute(element, &["session_id", "session"])?.or(around);
        let index = self.streams.entry(&id);
        let known = &mut self.streams.items[index].session_id;
        *known = known.take().or(session_id);
        Ok(Meaning::Stream(index))
    }

    fn name_id(&mut self, element: &BytesStart<'_>) -> Result<Meaning, Problem> {
        if let Some(aor) = attribute(element, &["aor"])? {
            self.add_aor(aor.trim());
        }
        Ok(Meaning::NameId)
    }

    /// The innermost open element that `pick` takes.
    fn around<T>(&self, pick: impl Fn(Meaning) -> Option<T>) -> Option<T> {
        self.open.iter().rev().find_map(|meaning| pick(*meaning))
    }

    fn reference(&mut self, reference: &BytesRef<'_>) -> Result<(), Problem> {
        let unknown = Problem::Syntax("malformed or unknown entity");
        if reference.is_char_ref() {
            self.text.extend(reference.resolve_char_ref().map_err(|_| unknown)?);
        } else {
            self.text.push_str(quick_xml::escape::resolve_predefined_entity(reference).ok_or(unknown)?);
        }
        Ok(())
    }

    fn end(&mut self) {
        let Some(meaning) = self.open.pop() else { return };
        let mut text = std::mem::take(&mut self.text);
        self.value(meaning, text.trim());
        text.clear();
        self.text = text;
        self.ended = self.open.is_empty();
    }

    /// Takes the text of an element that has ended.
    fn value(&mut self, meaning: Meaning, text: &str) {
        if text.is_empty() {
            return;
        }
        match meaning {
            Meaning::DataMode if text.eq_ignore_ascii_case("partial") => self.mode = Mode::Partial,
            Meaning::SipSessionId | Meaning::StartTime | Meaning::StopTime => {
                self.session_value(meaning, text)
            }
            Meaning::Aor => self.add_aor(text),
            Meaning::Name => self.set_name(text),
            Meaning::Label => self.set_label(text),
            Meaning::Send | Meaning::Receive => self.associate(meaning, text),
            _ => {}
        }
    }

    /// Times belong to the session only where they are directly in it: participants and streams have some too.
    fn session_value(&mut self, meaning: Meaning, text: &str) {
        let Some(&Meaning::Session(index)) = self.open.last() else { return };
        let session = &mut self.sessions.items[index];
        match meaning {
            Meaning::StartTime => session.start_time = Some(text.to_owned()),
            Meaning::StopTime => session.stop_time = Some(text.to_owned()),
            _ => session.sip_session_ids.push(text.to_owned()),
        }
    }

    fn add_aor(&mut self, aor: &str) {
        let Some(participant) = self.participant() else { return };
        if !aor.is_empty() && !participant.aors.iter().any(|known| known == aor) {
            participant.aors.push(aor.to_owned());
        }
    }

    /// The first of several: they are the same name in other languages (RFC 7865 §6.5.1).
    fn set_name(&mut self, name: &str) {
        let Some(participant) = self.participant() else { return };
        participant.name.get_or_insert_with(|| name.to_owned());
    }

    fn participant(&mut self) -> Option<&mut Participant> {
        let index = self.around(|meaning| match meaning {
            Meaning::Participant(index) => Some(index),
            _ => None,
        })?;
        Some(&mut self.participants.items[index])
    }

    fn set_label(&mut self, label: &str) {
        let stream = self.around(|meaning| match meaning {
            Meaning::Stream(index) => Some(index),
            _ => None,
        });
        if let Some(index) = stream {
            self.streams.items[index].label = Some(label.to_owned());
        }
    }

    /// send and recv stand in participantstreamassoc (RFC 7865 §6.8), in the drafts in participant.
    fn associate(&mut self, meaning: Meaning, stream_id: &str) {
        let Some(owner) = self.around(|meaning| match meaning {
            Meaning::Association(_) | Meaning::Participant(_) => Some(meaning),
            _ => None,
        }) else {
            return;
        };
        let index = match owner {
            Meaning::Participant(index) => self.associations.entry(&self.participants.items[index].id),
            Meaning::Association(index) => index,
            _ => return,
        };
        let association = &mut self.associations.items[index];
        let list = if meaning == Meaning::Send { &mut association.sends } else { &mut association.receives };
        list.push(stream_id.to_owned());
    }

    fn into_metadata(self) -> Metadata {
        Metadata {
            mode: self.mode,
            sessions: self.sessions.items,
            participants: self.participants.items,
            streams: self.streams.items,
            associations: self.associations.items,
        }
    }
}

fn namespace_name<'a>(namespace: &'a ResolveResult<'_>) -> &'a str {
    match namespace {
        ResolveResult::Unbound => "",
        ResolveResult::Bound(namespace) => namespace.0,
        ResolveResult::Unknown(prefix) => prefix,
    }
}

/// The value of the first of these attributes that the element has.
fn attribute(element: &BytesStart<'_>, names: &[&str]) -> Result<Option<String>, Problem> {
    for name in names {
        let mut attributes = element.attributes();
        let found = attributes.with_checks(false).flatten().find(|attribute| is_named(attribute, name));
        if let Some(attribute) = found {
            let value = attribute.normalized_value(XmlVersion::Implicit1_0);
            return value.map(|value| Some(value.trim().to_owned())).map_err(|error| syntax(&error));
        }
    }
    Ok(None)
}

fn is_named(attribute: &Attribute<'_>, name: &str) -> bool {
    attribute.key.as_namespace_binding().is_none() && attribute.key.local_name().as_ref() == name
}

/// What has an id and can take over what a later element with the same id says.
trait Identified: Default {
    fn id(&self) -> &str;
    fn with_id(id: &str) -> Self;
    fn update(&mut self, later: Self);
    /// Bytes of its texts.
    fn text(&self) -> usize;
}

/// A list in order of appearance, with the place of each id. Elements without an id are never the same one.
struct ById<T> {
    items: Vec<T>,
    places: HashMap<String, usize>,
}

impl<T> Default for ById<T> {
    fn default() -> Self {
        ById { items: Vec::new(), places: HashMap::new() }
    }
}

impl<T: Identified> ById<T> {
    fn new(items: Vec<T>) -> Self {
        let places = items.iter().enumerate().map(|(place, item)| (item.id().to_owned(), place)).collect();
        ById { items, places }
    }

    /// The place of this id, a new one at the end if need be.
    fn entry(&mut self, id: &str) -> usize {
        if let Some(&place) = self.places.get(id)
            && !id.is_empty()
        {
            return place;
        }
        self.places.insert(id.to_owned(), self.items.len());
        self.items.push(T::with_id(id));
        self.items.len() - 1
    }

    fn update(&mut self, later: Vec<T>) {
        for item in later {
            let place = self.entry(item.id());
            self.items[place].update(item);
        }
    }
}

impl Identified for CommunicationSession {
    fn id(&self) -> &str {
        &self.id
    }

    fn with_id(id: &str) -> Self {
        CommunicationSession { id: id.to_owned(), ..Self::default() }
    }

    fn update(&mut self, later: Self) {
        replace_list(&mut self.sip_session_ids, later.sip_session_ids);
        self.start_time = later.start_time.or(self.start_time.take());
        self.stop_time = later.stop_time.or(self.stop_time.take());
    }

    fn text(&self) -> usize {
        length(
            [&self.id]
                .into_iter()
                .chain(&self.sip_session_ids)
                .chain(&self.start_time)
                .chain(&self.stop_time),
        )
    }
}

impl Identified for Participant {
    fn id(&self) -> &str {
        &self.id
    }

    fn with_id(id: &str) -> Self {
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
    fn id(&self) -> &str {
        &self.id
    }

    fn with_id(id: &str) -> Self {
        Stream { id: id.to_owned(), ..Self::default() }
    }

    fn update(&mut self, later: Self) {
        self.session_id = later.session_id.or(self.session_id.take());
        self.label = later.label.or(self.label.take());
    }

    fn text(&self) -> usize {
        length([&self.id].into_iter().chain(&self.session_id).chain(&self.label))
    }
}

impl Identified for StreamAssociation {
    fn id(&self) -> &str {
        &self.participant_id
    }

    fn with_id(id: &str) -> Self {
        StreamAssociation { participant_id: id.to_owned(), ..Self::default() }
    }

    /// RFC 7865 §6.8.1: a stream that is not named any more is not sent or received any more.
    fn update(&mut self, later: Self) {
        *self = later;
    }

    fn text(&self) -> usize {
        length([&self.participant_id].into_iter().chain(&self.sends).chain(&self.receives))
    }
}

fn replace_list(list: &mut Vec<String>, later: Vec<String>) {
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
        merge_list(&mut self.sessions, update.sessions);
        merge_list(&mut self.participants, update.participants);
        merge_list(&mut self.streams, update.streams);
        merge_list(&mut self.associations, update.associations);
        Ok(())
    }

    fn items(&self) -> usize {
        self.sessions.len() + self.participants.len() + self.streams.len() + self.associations.len()
    }

    /// Bytes of all texts.
    fn text(&self) -> usize {
        let sessions: usize = self.sessions.iter().map(Identified::text).sum();
        let participants: usize = self.participants.iter().map(Identified::text).sum();
        let streams: usize = self.streams.iter().map(Identified::text).sum();
        let associations: usize = self.associations.iter().map(Identified::text).sum();
        sessions + participants + streams + associations
    }
}

fn length<'a>(texts: impl IntoIterator<Item = &'a String>) -> usize {
    texts.into_iter().map(String::len).sum()
}

fn merge_list<T: Identified>(list: &mut Vec<T>, later: Vec<T>) {
    let mut by_id = ById::new(std::mem::take(list));
    by_id.update(later);
    *list = by_id.items;
}
