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

use crate::limits::{
    METADATA_AORS_MAX, METADATA_ATTRIBUTES_MAX, METADATA_DEPTH_MAX, METADATA_ELEMENTS_MAX, METADATA_MAX,
};

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
        check_attributes(element)?;
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
        let room = participant.aors.len() < METADATA_AORS_MAX;
        if room && !aor.is_empty() && !participant.aors.iter().any(|known| known == aor) {
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

fn check_attributes(element: &BytesStart<'_>) -> Result<(), Problem> {
    for (index, attribute) in element.attributes().with_checks(false).enumerate() {
        if index == METADATA_ATTRIBUTES_MAX {
            return Err(Problem::TooManyAttributes);
        }
        attribute.map_err(|error| syntax(&error.into()))?;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::fixtures::{invite, invites};
    use proptest::prelude::*;
    use std::time::{Duration, Instant};

    const RFC7865_PARTIAL: &[u8] = include_bytes!("../../tests/fixtures/metadata/rfc7865-partial.xml");
    const AVAYA_UPDATE: &[u8] = include_bytes!("../../tests/fixtures/metadata/avaya-sbce-update.xml");

    fn fixture(name: &str) -> Metadata {
        parse(&invite(name).metadata()).unwrap()
    }

    /// The content of a recording element of RFC 7865.
    fn recording(content: &str) -> Metadata {
        parse(
            format!("<recording xmlns='urn:ietf:params:xml:ns:recording:1'>{content}</recording>").as_bytes(),
        )
        .unwrap()
    }

    fn problem(body: &[u8]) -> Problem {
        parse(body).unwrap_err().problem
    }

    fn senders<'a>(metadata: &'a Metadata, label: &str) -> Vec<&'a str> {
        metadata.senders_of_label(label).iter().map(|participant| participant.aors[0].as_str()).collect()
    }

    #[test]
    fn a_document_of_rfc_7865() {
        let metadata = fixture("rfc7866");
        assert_eq!(metadata.mode, Mode::Complete);
        let session = CommunicationSession {
            id: "hVpd7YQgRW2nD22h7q60JQ==".into(),
            sip_session_ids: vec![
                "ab30317f1a784dc48ff824d0d3715d86;remote=47755a9de7794ba387653f2099600ef2".into(),
            ],
            start_time: Some("2026-11-22T08:00:00Z".into()),
            stop_time: None,
        };
        assert_eq!(metadata.sessions, [session]);
        let ada = Participant {
            id: "srfBElmCRp2QB23b7Mpk0w==".into(),
            aors: vec!["sip:ada@example.com".into()],
            name: Some("Ada & Co".into()),
        };
        assert_eq!(metadata.participants.len(), 2);
        assert_eq!(metadata.participants[0], ada);
        let stream = Stream {
            id: "UAAMm5GRQKSCMVvLyl4rFw==".into(),
            session_id: Some("hVpd7YQgRW2nD22h7q60JQ==".into()),
            label: Some("1".into()),
        };
        assert_eq!(metadata.streams.len(), 4);
        assert_eq!(metadata.streams[0], stream);
        assert_eq!(metadata.associations[0].sends, ["i1Pz3to5hGk8fuXl+PbwCw==", "UAAMm5GRQKSCMVvLyl4rFw=="]);
        assert_eq!(
            metadata.associations[0].receives,
            ["8zc6e0lYTlWIINA6GR+3ag==", "EiXGlc+4TruqqoDaNE76ag=="]
        );
        assert_eq!(metadata.senders_of_label("2"), [&ada]);
        assert!(metadata.senders_of_label("9").is_empty());
    }

    #[test]
    fn senders_by_source() {
        for (name, label, expected) in [
            ("broadworks", "1", &["2405550101@as.example.com"][..]),
            ("broadworks", "2", &["tel:+12405550199"]),
            ("metaswitch", "1", &["sip:+12025550111@example.net;user=phone", "tel:+12025550122"]),
            ("avaya-sbce", "10", &["sip:3001@example.com"]),
            // A stream without an id is nobody's.
            ("avaya-sbce", "30", &[]),
            // One association is empty, the other names a participant that does not exist.
            ("cisco-cube", "1", &[]),
            ("cisco-cube", "2", &[]),
            ("oracle", "218103814", &["sip:sipp@203.0.113.70"]),
            ("sonus", "2", &["sip:+14165550144@example.com"]),
            ("audiocodes-lf", "1", &["4930555011@203.0.113.100"]),
            ("opensips", "0", &["sip:+40215550155@example.org"]),
            ("sems", "b_leg", &["sip:kurt@example.com"]),
            ("dynamics-srtp", "inbound", &["230908"]),
            ("netsapiens", "1", &[]),
        ] {
            assert_eq!(senders(&fixture(name), label), expected, "{name} {label}");
        }
    }

    #[test]
    fn names_and_times_are_not_taken_from_extensions() {
        let names = |name| fixture(name).participants.into_iter().map(|p| p.name).collect::<Vec<_>>();
        assert_eq!(names("oracle"), [Some("sipp".to_owned()), Some("sut".to_owned())]);
        assert_eq!(names("sonus"), [Some("+14165550133".to_owned()), None]);
        assert_eq!(fixture("netsapiens").participants.len(), 2);
        assert_eq!(fixture("oracle").sessions[0].start_time.as_deref(), Some("2026-11-22T08:00:00"));
        assert_eq!(fixture("opensips").sessions[0].start_time, None);
    }

    #[test]
    fn any_namespace_is_taken_for_ours_when_the_root_has_it() {
        for root in [
            "recording xmlns='urn:ietf:params:xml:ns:recording:2'",
            "recording",
            "recording_metadata xmlns='urn:ietf:params:xml:ns:siprec'",
            "Recording xmlns:x='urn:x'",
        ] {
            let name = root.split(' ').next().unwrap();
            let body =
                format!("<{root}><participant id='p'/><e:participant id='q' xmlns:e='urn:e'/></{name}>");
            assert_eq!(parse(body.as_bytes()).unwrap().participants.len(), 1, "{root}");
        }
        let body = "<t:recording><t:participant id='p'/><u:participant id='q'/></t:recording>";
        assert_eq!(parse(body.as_bytes()).unwrap().participants.len(), 1, "prefixes without a namespace");
    }

    #[test]
    fn ids_come_from_either_attribute() {
        let metadata = recording(
            "<participant id='x' participant_id='p1' xmlns:id='urn:id'/><participant id='p2'/><stream session='s' id='t1'/><stream stream_id='t2' session_id='s2'/>",
        );
        assert_eq!(metadata.participants.iter().map(|p| p.id.as_str()).collect::<Vec<_>>(), ["p1", "p2"]);
        let streams: Vec<_> =
            metadata.streams.iter().map(|s| (s.id.as_str(), s.session_id.as_deref())).collect();
        assert_eq!(streams, [("t1", Some("s")), ("t2", Some("s2"))]);
    }

    #[test]
    fn nested_elements_belong_to_what_is_around_them() {
        let metadata = recording(
            "<session id='s'><participants><participant id='p'><aor>sip:a@x</aor><aor>tel:1</aor><send>t</send></participant></participants><stream id='t'><label> main </label><start-time>no</start-time></stream><stop-time>later</stop-time></session>",
        );
        assert_eq!(metadata.streams[0].session_id.as_deref(), Some("s"));
        assert_eq!(metadata.participants[0].aors, ["sip:a@x", "tel:1"]);
        assert_eq!(senders(&metadata, "main"), ["sip:a@x"]);
        assert_eq!(
            (&metadata.sessions[0].start_time, metadata.sessions[0].stop_time.as_deref()),
            (&None, Some("later"))
        );
    }

    #[test]
    fn one_id_twice_is_one_participant() {
        let metadata = recording(
            "<participant id='p'><nameID aor='sip:a@x'><name xml:lang='it'>Uno</name><name>One</name></nameID></participant><participant id='p'><nameID aor='sip:a@x'/><nameID aor='sip:b@x'/></participant>",
        );
        assert_eq!(metadata.participants.len(), 1);
        assert_eq!(metadata.participants[0].aors, ["sip:a@x", "sip:b@x"]);
        assert_eq!(metadata.participants[0].name.as_deref(), Some("Uno"));
    }

    #[test]
    fn participants_without_an_id_stay_apart_and_send_nothing() {
        let metadata = recording(
            "<participant><nameID aor='a'/><send>t</send></participant><participant><nameID aor='b'/></participant><stream id='t'><label>1</label></stream>",
        );
        assert_eq!(metadata.participants.len(), 2);
        assert!(metadata.senders_of_label("1").is_empty());
    }

    #[test]
    fn text_is_put_together_from_its_pieces() {
        let metadata = recording(
            "<participant id='p'><nameID aor='sip:&quot;&#65;&quot;@x'><name>\r\n  A&lt;<!-- no -->&#x42;<![CDATA[<&]]>&amp;C \r\n</name></nameID></participant>",
        );
        assert_eq!(metadata.participants[0].aors, ["sip:\"A\"@x"]);
        assert_eq!(metadata.participants[0].name.as_deref(), Some("A<B<&&C"));
    }

    #[test]
    fn prologs_and_what_follows_the_root() {
        for body in [
            "\u{feff}<?xml version='1.0'?><recording/>",
            "\r\n <?xml version='1.0' encoding='ISO-8859-1'?>\r\n<!-- x --><recording></recording>\r\n",
            "<recording/>\0\0 not XML <",
        ] {
            assert_eq!(parse(body.as_bytes()), Ok(Metadata::default()), "{body:?}");
        }
    }

    #[test]
    fn modes() {
        assert_eq!(recording("").mode, Mode::Complete);
        assert_eq!(recording("<dataMode> Partial </dataMode>").mode, Mode::Partial);
        assert_eq!(recording("<datamode>complete</datamode>").mode, Mode::Complete);
    }

    #[test]
    fn a_complete_update_replaces_everything() {
        let mut metadata = fixture("rfc7866");
        metadata.merge(fixture("sonus")).unwrap();
        assert_eq!(metadata, fixture("sonus"));
    }

    #[test]
    fn a_partial_update_adds_and_restates() {
        let mut metadata = fixture("rfc7866");
        metadata.merge(parse(RFC7865_PARTIAL).unwrap()).unwrap();
        assert_eq!(metadata.mode, Mode::Complete);
        assert_eq!(metadata.participants.len(), 3);
        assert_eq!(metadata.participants[1].name.as_deref(), Some("Grace"));
        assert_eq!(metadata.streams.len(), 5);
        assert_eq!(senders(&metadata, "5"), ["sip:linus@example.org"]);
        assert_eq!(senders(&metadata, "1"), ["sip:ada@example.com"]);
        // Restated without send: not sending any more.
        assert!(metadata.senders_of_label("3").is_empty());
    }

    #[test]
    fn an_update_by_avaya() {
        let mut metadata = fixture("avaya-sbce");
        metadata.merge(parse(AVAYA_UPDATE).unwrap()).unwrap();
        assert_eq!(senders(&metadata, "10"), ["sip:3002@example.com"]);
        assert_eq!(senders(&metadata, "20"), ["sip:+13035550144@example.com"]);
    }

    #[test]
    fn a_partial_update_keeps_what_it_does_not_say() {
        let mut metadata = recording(
            "<participant id='p'><nameID aor='a'><name>N</name></nameID></participant><stream id='t' session='s'/>",
        );
        let update = "<datamode>partial</datamode><participant id='p'><nameID aor='b'/></participant><stream id='t'><label>1</label></stream>";
        metadata.merge(recording(update)).unwrap();
        assert_eq!(metadata.participants[0].aors, ["b"]);
        assert_eq!(metadata.participants[0].name.as_deref(), Some("N"));
        assert_eq!(metadata.streams[0].session_id.as_deref(), Some("s"));
        assert_eq!(metadata.streams[0].label.as_deref(), Some("1"));
    }

    #[test]
    fn merging_stops_growing() {
        let partial = |from: usize, count: usize, text: &str| {
            let participants: String =
                (from..from + count).map(|id| format!("<participant id='{id}{text}'/>")).collect();
            recording(&format!("<datamode>partial</datamode>{participants}"))
        };
        let mut metadata = Metadata::default();
        metadata.merge(partial(0, METADATA_ELEMENTS_MAX - 3, "")).unwrap();
        let before = metadata.clone();
        let error = metadata.merge(partial(20_000, 4, "")).unwrap_err();
        assert_eq!(error.problem, Problem::TooManyElements);
        assert_eq!(metadata, before);
        let long = "x".repeat(METADATA_MAX / 2);
        let mut metadata = partial(0, 1, &long);
        assert_eq!(metadata.merge(partial(1, 1, &long)).unwrap_err().problem, Problem::TooLarge);
        assert_eq!(metadata.participants.len(), 1);
    }

    /// Hostile input is answered with an error before anybody notices. It takes milliseconds; a busy machine may add some.
    fn quick_problem(body: &[u8]) -> Problem {
        #[allow(clippy::disallowed_methods)]
        let start = Instant::now();
        let problem = problem(body);
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        problem
    }

    #[test]
    fn billion_laughs() {
        let entities: String =
            (1..10).map(|i| format!("<!ENTITY l{i} '{}'>", format!("&l{};", i - 1).repeat(10))).collect();
        let body = format!(
            "<?xml version='1.0'?><!DOCTYPE r [<!ENTITY l0 'ha'>{entities}]><recording>&l9;</recording>"
        );
        assert_eq!(quick_problem(body.as_bytes()), Problem::DocumentType);
        assert_eq!(problem(b"<recording>&l9;</recording>"), Problem::Syntax("malformed or unknown entity"));
        let external = "<!DOCTYPE r SYSTEM 'file:///etc/passwd'><recording/>";
        assert_eq!(quick_problem(external.as_bytes()), Problem::DocumentType);
    }

    #[test]
    fn depth_100_000() {
        let body = "<recording>".to_owned() + &"<a>".repeat(80_000);
        assert_eq!(quick_problem(body.as_bytes()), Problem::TooDeep);
        assert_eq!(quick_problem("<recording>".repeat(100_000).as_bytes()), Problem::TooLarge);
        let deep = |depth: usize| {
            recording_text(&format!("{}{}", "<a>".repeat(depth - 1), "</a>".repeat(depth - 1)))
        };
        assert!(parse(deep(METADATA_DEPTH_MAX).as_bytes()).is_ok());
        assert_eq!(problem(deep(METADATA_DEPTH_MAX + 1).as_bytes()), Problem::TooDeep);
    }

    fn recording_text(content: &str) -> String {
        format!("<recording>{content}</recording>")
    }

    #[test]
    fn attributes_20_000() {
        let attributes =
            |count: usize, name: &str| (0..count).map(|i| format!(" {name}{i}='u'")).collect::<String>();
        let element = |count, name| recording_text(&format!("<a{}/>", attributes(count, name)));
        assert_eq!(quick_problem(element(20_000, "a").as_bytes()), Problem::TooManyAttributes);
        assert_eq!(
            quick_problem(element(15_000, "xmlns:a").as_bytes()),
            Problem::Syntax("malformed or too many namespaces")
        );
        assert!(parse(element(METADATA_ATTRIBUTES_MAX, "a").as_bytes()).is_ok());
        assert_eq!(problem(element(METADATA_ATTRIBUTES_MAX + 1, "a").as_bytes()), Problem::TooManyAttributes);
    }

    #[test]
    fn elements_and_bytes_without_end() {
        assert!(parse(recording_text(&"<a/>".repeat(METADATA_ELEMENTS_MAX - 1)).as_bytes()).is_ok());
        let body = recording_text(&"<a/>".repeat(METADATA_ELEMENTS_MAX));
        assert_eq!(quick_problem(body.as_bytes()), Problem::TooManyElements);
        assert_eq!(quick_problem(&vec![b' '; METADATA_MAX + 1]), Problem::TooLarge);
        assert_eq!(quick_problem(&vec![b' '; METADATA_MAX]), Problem::NotRecording);
        assert_eq!(quick_problem(&vec![b'<'; METADATA_MAX]), Problem::Syntax("markup without its end"));
        assert_eq!(quick_problem(&vec![b'&'; METADATA_MAX]), Problem::Syntax("tags that do not match"));
    }

    #[test]
    fn many_equal_labels_and_ids_are_quick_too() {
        let content: String = (0..2_000).map(|i| format!("<stream id='{i}'><label>1</label></stream><participantstreamassoc participant_id='{i}'><send>{i}</send></participantstreamassoc>")).collect();
        let metadata = recording(&content);
        #[allow(clippy::disallowed_methods)]
        let start = Instant::now();
        assert!(metadata.senders_of_label("1").is_empty());
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        assert_eq!(metadata.associations.len(), 2_000);
    }

    /// They are compared with each other, so there must not be many.
    #[test]
    fn the_addresses_of_a_participant_are_bounded() {
        let addresses: String = (0..9_000).map(|i| format!("<aor>sip:{i}</aor>")).collect();
        let metadata = recording(&format!("<participant id='p'>{addresses}</participant>"));
        assert_eq!(metadata.participants[0].aors.len(), METADATA_AORS_MAX);
        assert_eq!(metadata.participants[0].aors[1], "sip:1");
    }

    #[test]
    fn truncated() {
        let body = invite("rfc7866").metadata();
        let whole = body.trim_ascii_end().len();
        for length in 0..whole {
            let problem = problem(&body[..length]);
            let expected = matches!(problem, Problem::Truncated | Problem::NotRecording | Problem::Syntax(_));
            assert!(expected, "{length}: {problem:?}");
        }
        assert!(parse(&body[..whole]).is_ok());
        assert_eq!(problem(b"<recording><session"), Problem::Syntax("markup without its end"));
        assert_eq!(problem(b"<recording><session>"), Problem::Truncated);
    }

    #[test]
    fn binary_and_invalid_utf_8() {
        let binary: Vec<u8> = (0..=255).cycle().take(64 * 1024).collect();
        assert_eq!(quick_problem(&binary), Problem::Encoding);
        let error = parse(b"<recording><name>\xc3\x28</name></recording>").unwrap_err();
        assert_eq!(error, MetadataError { problem: Problem::Encoding, at: 17 });
        let utf_16: Vec<u8> = "<recording/>".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert!(parse(&utf_16).is_err());
    }

    #[test]
    fn other_documents() {
        assert_eq!(problem(b""), Problem::NotRecording);
        assert_eq!(problem(b"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\n"), Problem::NotRecording);
        assert_eq!(problem(b"<html><recording/></html>"), Problem::NotRecording);
        assert_eq!(problem(b"<recording></recordinG>"), Problem::Syntax("tags that do not match"));
        assert_eq!(
            problem(b"<recording><participant id=p></recording>"),
            Problem::Syntax("malformed attribute")
        );
    }

    #[test]
    fn errors_say_what_and_where() {
        let error = parse(b"<recording><a></b></recording>").unwrap_err();
        assert_eq!(error.to_string(), "tags that do not match at byte 14");
    }

    /// Every value of these attributes of the elements with this name, as roxmltree reads them.
    fn oracle(document: &roxmltree::Document<'_>, element: &str, attributes: &[&str]) -> Vec<String> {
        let known = |node: &roxmltree::Node<'_, '_>| {
            node.tag_name().name() == element
                && node.tag_name().namespace().is_none_or(|namespace| NAMESPACES.contains(&namespace))
        };
        let value = |node: roxmltree::Node<'_, '_>| {
            let found = attributes.iter().find_map(|name| node.attribute(*name).map(str::to_owned));
            found.or_else(|| node.text().map(|text| text.trim().to_owned())).unwrap_or_default()
        };
        document.descendants().filter(known).map(value).filter(|value| !value.is_empty()).collect()
    }

    #[test]
    fn roxmltree_finds_the_same_ids_and_addresses() {
        let mut bodies: Vec<(&str, Vec<u8>)> = invites().map(|i| (i.name, i.metadata().to_vec())).collect();
        bodies.push(("rfc7865-partial", RFC7865_PARTIAL.to_vec()));
        bodies.push(("avaya-sbce-update", AVAYA_UPDATE.to_vec()));
        for (name, body) in bodies {
            let metadata = parse(&body).unwrap();
            let text = std::str::from_utf8(&body).unwrap();
            let document = roxmltree::Document::parse(text.trim()).unwrap();
            let ids = |list: Vec<&String>| {
                list.into_iter().filter(|id| !id.is_empty()).cloned().collect::<Vec<_>>()
            };
            assert_eq!(
                ids(metadata.participants.iter().map(|p| &p.id).collect()),
                oracle(&document, "participant", &["participant_id", "id"]),
                "{name}"
            );
            assert_eq!(
                ids(metadata.streams.iter().map(|s| &s.id).collect()),
                oracle(&document, "stream", &["stream_id", "id"]),
                "{name}"
            );
            assert_eq!(
                ids(metadata.sessions.iter().map(|s| &s.id).collect()),
                oracle(&document, "session", &["session_id", "id"]),
                "{name}"
            );
            let labels: Vec<_> = metadata.streams.iter().filter_map(|s| s.label.clone()).collect();
            assert_eq!(labels, oracle(&document, "label", &[]), "{name}");
            let mut aors = oracle(&document, "nameID", &["aor"]);
            aors.extend(oracle(&document, "aor", &[]));
            assert_eq!(
                metadata.participants.iter().flat_map(|p| p.aors.clone()).collect::<Vec<_>>(),
                aors,
                "{name}"
            );
            let sends: usize = metadata.associations.iter().map(|a| a.sends.len()).sum();
            assert_eq!(sends, oracle(&document, "send", &[]).len(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_damaged_document_is_read_or_refused(
            which in 0usize..12, cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let xml = invites().nth(which).unwrap().metadata();
            let mut body = xml.to_vec();
            let at = at.index(body.len());
            body[at] = byte;
            if let Ok(metadata) = parse(&body) {
                prop_assert!(metadata.text() <= body.len() * 2);
            }
            body.truncate(cut.index(xml.len()));
            if let Err(error) = parse(&body) {
                prop_assert!(error.at <= body.len());
            }
        }
    }
}
