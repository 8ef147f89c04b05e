//! A body of rs-metadata, read.
//!
//! The layout is that of RFC 7865, of its drafts (`recording`, `siprec`: ids in `id`, send and recv inside participant) or
//! any mixture. Elements are matched by local name, ids are opaque, unknown elements are kept as they are.

use quick_xml::NsReader;
use quick_xml::XmlVersion;
use quick_xml::events::attributes::Attribute;
use quick_xml::events::{BytesRef, BytesStart, Event};
use quick_xml::name::ResolveResult;
use std::borrow::Cow;

use super::list::{ById, Identified};
use super::{
    CommunicationSession, Extension, Group, Metadata, MetadataError, Mode, Participant, Problem,
    SessionAssociation, SessionRecording, Span, Stream, StreamAssociation,
};
use crate::limits::{
    FINDINGS_PER_CODE, METADATA_AORS_MAX, METADATA_ATTRIBUTES_MAX, METADATA_DEPTH_MAX, METADATA_ELEMENTS_MAX,
    METADATA_EXTENSION_BYTES_MAX, METADATA_EXTENSIONS_MAX, METADATA_MAX,
};

/// One body: what it says, and how it is written.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Body {
    pub metadata: Metadata,
    pub form: Form,
}

/// How a body is written: what is gone once it is read, and still wanted for judging it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Form {
    /// Of the root element; empty when it has none.
    pub namespace: String,
    /// What stands in datamode and is neither `complete` nor `partial`.
    pub data_mode: Option<String>,
    /// Ids that a second element of the same kind has: the kind, the id. The first of them.
    pub repeated: Vec<(&'static str, String)>,
    pub repeated_total: u32,
    /// Elements in our namespace that RFC 7865 and its drafts do not know: their names. The first of them.
    pub unknown: Vec<String>,
    pub unknown_total: u32,
    /// Addresses beyond `METADATA_AORS_MAX` of one participant: whose.
    pub aors_left_out: Option<String>,
    /// Extensions beyond what is kept.
    pub extensions_left_out: u32,
}

/// Reads one rs-metadata body of at most [`METADATA_MAX`] bytes.
pub fn parse(body: &[u8]) -> Result<Body, MetadataError> {
    if body.len() > METADATA_MAX {
        return Err(MetadataError { problem: Problem::TooLarge, at: METADATA_MAX });
    }
    let text = std::str::from_utf8(body)
        .map_err(|error| MetadataError { problem: Problem::Encoding, at: error.valid_up_to() })?;
    let mut reader = NsReader::from_str(text);
    reader.config_mut().expand_empty_elements = true;
    let mut document = Document::default();
    while !document.ended {
        let from = reader.buffer_position() as usize;
        let event = match reader.read_event() {
            Ok(event) => event,
            Err(error) => {
                return Err(MetadataError { problem: syntax(&error), at: reader.error_position() as usize });
            }
        };
        let at = reader.buffer_position() as usize;
        let step = document.take(&reader, &event, text, from..at);
        step.map_err(|problem| MetadataError { problem, at })?;
    }
    Ok(document.into_body())
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
    groups: ById<Group>,
    sessions: ById<CommunicationSession>,
    participants: ById<Participant>,
    streams: ById<Stream>,
    session_recordings: ById<SessionRecording>,
    participant_sessions: ById<SessionAssociation>,
    associations: ById<StreamAssociation>,
    extensions: Vec<Extension>,
    extension_bytes: usize,
    /// Where the outermost extension that is open begins.
    extension_from: usize,
    /// What each open element means, the root first.
    open: Vec<Meaning>,
    /// Text since the last start tag.
    text: String,
    elements: usize,
    form: Form,
    ended: bool,
}

/// What an element means. Indices are into the lists of the document.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Meaning {
    DataMode,
    Group(usize),
    GroupRef,
    Session(usize),
    SipSessionId,
    Reason,
    Associated,
    Disassociated,
    /// The participant, and the association with its session that the drafts make of it.
    Participant(usize, Option<usize>),
    NameId,
    Aor,
    Name,
    Stream(usize),
    Label,
    StreamMode,
    SessionRecording(usize),
    ParticipantSession(usize),
    Association(usize),
    Send,
    Receive,
    /// Of no interest itself; elements in it may be.
    Wrapper,
    /// An extension (RFC 7865 §9, `##other`): nothing in it is ours.
    Foreign,
}

/// RFC 7865, and the two namespaces its drafts had.
pub const NAMESPACE: &str = "urn:ietf:params:xml:ns:recording:1";
pub const DRAFT_NAMESPACES: [&str; 2] = ["urn:ietf:params:xml:ns:recording", "urn:ietf:params:xml:ns:siprec"];

impl Document {
    fn take(
        &mut self,
        reader: &NsReader<&[u8]>,
        event: &Event<'_>,
        text: &str,
        place: std::ops::Range<usize>,
    ) -> Result<(), Problem> {
        match event {
            Event::Start(element) => self.start(reader, element, place.start)?,
            Event::End(_) => self.end(text, place.end),
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

    fn start(
        &mut self,
        reader: &NsReader<&[u8]>,
        element: &BytesStart<'_>,
        from: usize,
    ) -> Result<(), Problem> {
        self.elements += 1;
        if self.elements > METADATA_ELEMENTS_MAX {
            return Err(Problem::TooManyElements);
        }
        if self.open.len() == METADATA_DEPTH_MAX {
            return Err(Problem::TooDeep);
        }
        let attributes = Attributes::read(element)?;
        self.text.clear();
        let (namespace, name) = reader.resolver().resolve_element(element.name());
        let meaning = match self.open.last() {
            None => self.root(&namespace, name.as_ref())?,
            Some(Meaning::Foreign) => Meaning::Foreign,
            Some(_) if !self.is_ours(&namespace) => Meaning::Foreign,
            Some(_) => self.meaning(name.as_ref(), &attributes),
        };
        if meaning == Meaning::Foreign && self.open.last() != Some(&Meaning::Foreign) {
            self.extension_from = from;
        }
        self.open.push(meaning);
        Ok(())
    }

    fn root(&mut self, namespace: &ResolveResult<'_>, name: &str) -> Result<Meaning, Problem> {
        if !["recording", "recording_metadata"].iter().any(|known| name.eq_ignore_ascii_case(known)) {
            return Err(Problem::NotRecording);
        }
        namespace_name(namespace).clone_into(&mut self.form.namespace);
        Ok(Meaning::Wrapper)
    }

    /// Whatever the namespace of the root is, its elements are ours.
    fn is_ours(&self, namespace: &ResolveResult<'_>) -> bool {
        let name = namespace_name(namespace);
        name.is_empty()
            || name == self.form.namespace
            || name == NAMESPACE
            || DRAFT_NAMESPACES.contains(&name)
    }

    fn meaning(&mut self, name: &str, attributes: &Attributes<'_>) -> Meaning {
        // Longer names are none of ours.
        let mut lower = [0; 24];
        let Some(lower) = lower.get_mut(..name.len()) else { return self.unknown(name) };
        lower.copy_from_slice(name.as_bytes());
        lower.make_ascii_lowercase();
        match &*lower {
            b"datamode" => Meaning::DataMode,
            b"group" => {
                let id = first([attributes.group_id.as_deref(), attributes.id.as_deref()]);
                Meaning::Group(entry(&mut self.groups, "group", id, &mut self.form))
            }
            b"session" => {
                let id = first([attributes.session_id.as_deref(), attributes.id.as_deref()]);
                Meaning::Session(entry(&mut self.sessions, "session", id, &mut self.form))
            }
            b"participant" => self.participant_element(attributes),
            b"stream" => self.stream(attributes),
            b"sessionrecordingassoc" => {
                let id = first([attributes.session_id.as_deref(), attributes.session.as_deref()]);
                Meaning::SessionRecording(self.session_recordings.entry(id, "").0)
            }
            b"participantsessionassoc" => {
                let id = first([attributes.participant_id.as_deref(), attributes.participant.as_deref()]);
                let session = first([attributes.session_id.as_deref(), attributes.session.as_deref()]);
                Meaning::ParticipantSession(self.participant_sessions.entry(id, session).0)
            }
            b"participantstreamassoc" => {
                let ids = [&attributes.participant_id, &attributes.participant, &attributes.id];
                let id = ids.into_iter().flatten().next().map_or("", |id| id.as_ref());
                Meaning::Association(self.associations.entry(id, "").0)
            }
            b"nameid" => {
                if let Some(aor) = &attributes.aor {
                    self.add_aor(aor);
                }
                Meaning::NameId
            }
            b"param" => {
                self.add_param(attributes);
                Meaning::Wrapper
            }
            b"sipsessionid" => Meaning::SipSessionId,
            b"group-ref" | b"group_ref" => Meaning::GroupRef,
            b"reason" => Meaning::Reason,
            b"start-time" | b"start_time" | b"associate-time" => Meaning::Associated,
            b"stop-time" | b"stop_time" | b"disassociate-time" => Meaning::Disassociated,
            b"aor" => Meaning::Aor,
            b"name" => Meaning::Name,
            b"label" => Meaning::Label,
            b"mode" => Meaning::StreamMode,
            b"send" => Meaning::Send,
            b"recv" => Meaning::Receive,
            b"extensiondata" => Meaning::Foreign,
            _ => self.unknown(name),
        }
    }

    /// Some wrap what is ours into elements that are not.
    fn unknown(&mut self, name: &str) -> Meaning {
        self.form.unknown_total += 1;
        if self.form.unknown.len() < FINDINGS_PER_CODE {
            self.form.unknown.push(name.to_owned());
        }
        Meaning::Wrapper
    }

    /// The drafts have the session as an attribute of the participant.
    fn participant_element(&mut self, attributes: &Attributes<'_>) -> Meaning {
        let id = first([attributes.participant_id.as_deref(), attributes.id.as_deref()]);
        let index = entry(&mut self.participants, "participant", id, &mut self.form);
        let session = attributes.session.as_deref().filter(|session| !session.is_empty() && !id.is_empty());
        Meaning::Participant(index, session.map(|session| self.participant_sessions.entry(id, session).0))
    }

    fn stream(&mut self, attributes: &Attributes<'_>) -> Meaning {
        let id = first([attributes.stream_id.as_deref(), attributes.id.as_deref()]);
        let index = entry(&mut self.streams, "stream", id, &mut self.form);
        if self.streams.items[index].session_id.is_none() {
            let said = attributes.session_id.as_deref().or(attributes.session.as_deref()).map(str::to_owned);
            let around = || {
                self.around(|meaning| match meaning {
                    Meaning::Session(index) => Some(self.sessions.items[index].id.clone()),
                    _ => None,
                })
            };
            self.streams.items[index].session_id = said.or_else(around);
        }
        Meaning::Stream(index)
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

    fn end(&mut self, body: &str, at: usize) {
        let Some(meaning) = self.open.pop() else { return };
        if meaning == Meaning::Foreign {
            if self.open.last() != Some(&Meaning::Foreign) {
                self.extension(body.get(self.extension_from..at).unwrap_or_default());
            }
            return self.text.clear();
        }
        let mut text = std::mem::take(&mut self.text);
        self.value(meaning, text.trim());
        text.clear();
        self.text = text;
        self.ended = self.open.is_empty();
    }

    fn extension(&mut self, xml: &str) {
        let bytes = self.extension_bytes + xml.len();
        if bytes > METADATA_EXTENSION_BYTES_MAX || self.extensions.len() == METADATA_EXTENSIONS_MAX {
            self.form.extensions_left_out += 1;
            return;
        }
        self.extension_bytes = bytes;
        let (parent, parent_id) = self.around(|meaning| self.place(meaning)).unwrap_or(("recording", ""));
        let parent_id = parent_id.to_owned();
        self.extensions.push(Extension { parent, parent_id, xml: xml.to_owned() });
    }

    fn place(&self, meaning: Meaning) -> Option<(&'static str, &str)> {
        Some(match meaning {
            Meaning::Group(index) => ("group", &self.groups.items[index].id),
            Meaning::Session(index) => ("session", &self.sessions.items[index].id),
            Meaning::Participant(index, _) => ("participant", &self.participants.items[index].id),
            Meaning::Stream(index) => ("stream", &self.streams.items[index].id),
            Meaning::SessionRecording(index) => {
                ("sessionrecordingassoc", &self.session_recordings.items[index].session_id)
            }
            Meaning::ParticipantSession(index) => {
                ("participantsessionassoc", &self.participant_sessions.items[index].participant_id)
            }
            Meaning::Association(index) => {
                ("participantstreamassoc", &self.associations.items[index].participant_id)
            }
            _ => return None,
        })
    }

    /// Takes the text of an element that has ended.
    fn value(&mut self, meaning: Meaning, text: &str) {
        if text.is_empty() {
            return;
        }
        match meaning {
            Meaning::DataMode => self.data_mode(text),
            Meaning::SipSessionId | Meaning::Reason | Meaning::GroupRef => self.session_value(meaning, text),
            Meaning::Associated | Meaning::Disassociated => self.time(meaning == Meaning::Associated, text),
            Meaning::Aor => self.add_aor(text),
            Meaning::Name => self.set_name(text),
            Meaning::Label | Meaning::StreamMode => self.stream_value(meaning, text),
            Meaning::Send | Meaning::Receive => self.associate(meaning, text),
            _ => {}
        }
    }

    fn data_mode(&mut self, text: &str) {
        match text {
            _ if text.eq_ignore_ascii_case("partial") => self.mode = Mode::Partial,
            _ if text.eq_ignore_ascii_case("complete") => self.mode = Mode::Complete,
            _ => self.form.data_mode = Some(text.to_owned()),
        }
    }

    /// These belong to the session only where they are directly in it: extensions have things of the same name.
    fn session_value(&mut self, meaning: Meaning, text: &str) {
        let Some(&Meaning::Session(index)) = self.open.last() else { return };
        let session = &mut self.sessions.items[index];
        match meaning {
            Meaning::SipSessionId => session.sip_session_ids.push(text.to_owned()),
            Meaning::Reason => session.reasons.push(text.to_owned()),
            _ => session.group_id = Some(text.to_owned()),
        }
    }

    /// A time is that of the element it is directly in.
    fn time(&mut self, associated: bool, text: &str) {
        let Some(&around) = self.open.last() else { return };
        if let Meaning::Session(index) = around {
            let session = &mut self.sessions.items[index];
            let time = if associated { &mut session.start_time } else { &mut session.stop_time };
            *time = Some(text.to_owned());
        } else if let Some(span) = self.span(around) {
            let time = if associated { &mut span.associated } else { &mut span.disassociated };
            *time = Some(text.to_owned());
        }
    }

    fn span(&mut self, meaning: Meaning) -> Option<&mut Span> {
        match meaning {
            Meaning::Group(index) => Some(&mut self.groups.items[index].span),
            Meaning::SessionRecording(index) => Some(&mut self.session_recordings.items[index].span),
            Meaning::ParticipantSession(index) | Meaning::Participant(_, Some(index)) => {
                Some(&mut self.participant_sessions.items[index].span)
            }
            Meaning::Association(index) => Some(&mut self.associations.items[index].span),
            _ => None,
        }
    }

    fn add_aor(&mut self, aor: &str) {
        let Some(participant) = self.participant() else { return };
        if aor.is_empty() || participant.aors.iter().any(|known| known == aor) {
            return;
        }
        if participant.aors.len() < METADATA_AORS_MAX {
            return participant.aors.push(aor.to_owned());
        }
        let id = participant.id.clone();
        self.form.aors_left_out.get_or_insert(id);
    }

    /// The first of several: they are the same name in other languages (RFC 7865 §6.5.1).
    fn set_name(&mut self, name: &str) {
        let Some(participant) = self.participant() else { return };
        participant.name.get_or_insert_with(|| name.to_owned());
    }

    fn participant(&mut self) -> Option<&mut Participant> {
        let index = self.around(|meaning| match meaning {
            Meaning::Participant(index, _) => Some(index),
            _ => None,
        })?;
        Some(&mut self.participants.items[index])
    }

    fn add_param(&mut self, attributes: &Attributes<'_>) {
        let Some(&Meaning::ParticipantSession(index)) = self.open.last() else { return };
        let text = |value: &Option<Cow<'_, str>>| value.as_deref().unwrap_or_default().to_owned();
        self.participant_sessions.items[index].params.push((text(&attributes.pname), text(&attributes.pval)));
    }

    fn stream_value(&mut self, meaning: Meaning, text: &str) {
        let stream = self.around(|meaning| match meaning {
            Meaning::Stream(index) => Some(index),
            _ => None,
        });
        let Some(index) = stream else { return };
        let stream = &mut self.streams.items[index];
        let value = if meaning == Meaning::Label { &mut stream.label } else { &mut stream.mode };
        *value = Some(text.to_owned());
    }

    /// send and recv stand in participantstreamassoc (RFC 7865 §6.8), in the drafts in participant.
    fn associate(&mut self, meaning: Meaning, stream_id: &str) {
        let Some(owner) = self.around(|meaning| match meaning {
            Meaning::Association(_) | Meaning::Participant(..) => Some(meaning),
            _ => None,
        }) else {
            return;
        };
        let index = match owner {
            Meaning::Participant(index, _) => {
                self.associations.entry(&self.participants.items[index].id, "").0
            }
            Meaning::Association(index) => index,
            _ => return,
        };
        let association = &mut self.associations.items[index];
        let list = if meaning == Meaning::Send { &mut association.sends } else { &mut association.receives };
        list.push(stream_id.to_owned());
    }

    fn into_body(self) -> Body {
        let metadata = Metadata {
            mode: self.mode,
            groups: self.groups.items,
            sessions: self.sessions.items,
            participants: self.participants.items,
            streams: self.streams.items,
            session_recordings: self.session_recordings.items,
            participant_sessions: self.participant_sessions.items,
            associations: self.associations.items,
            extensions: self.extensions,
        };
        Body { metadata, form: self.form }
    }
}

/// The place of an element that must not be there twice (RFC 7865 §6.10).
fn entry<T: Identified>(list: &mut ById<T>, kind: &'static str, id: &str, form: &mut Form) -> usize {
    let (place, repeated) = list.entry(id, "");
    if repeated {
        form.repeated_total += 1;
        if form.repeated.len() < FINDINGS_PER_CODE {
            form.repeated.push((kind, id.to_owned()));
        }
    }
    place
}

/// The attributes that mean something here.
#[derive(Default)]
struct Attributes<'a> {
    id: Option<Cow<'a, str>>,
    group_id: Option<Cow<'a, str>>,
    session_id: Option<Cow<'a, str>>,
    session: Option<Cow<'a, str>>,
    participant_id: Option<Cow<'a, str>>,
    participant: Option<Cow<'a, str>>,
    stream_id: Option<Cow<'a, str>>,
    aor: Option<Cow<'a, str>>,
    pname: Option<Cow<'a, str>>,
    pval: Option<Cow<'a, str>>,
}

impl<'a> Attributes<'a> {
    fn read(element: &'a BytesStart<'_>) -> Result<Attributes<'a>, Problem> {
        let mut known = Attributes::default();
        for (index, attribute) in element.attributes().with_checks(false).enumerate() {
            if index == METADATA_ATTRIBUTES_MAX {
                return Err(Problem::TooManyAttributes);
            }
            let attribute = attribute.map_err(|error| syntax(&error.into()))?;
            if let Some(place) = known.place(&attribute)
                && place.is_none()
            {
                *place = Some(value(&attribute)?);
            }
        }
        Ok(known)
    }

    fn place(&mut self, attribute: &Attribute<'_>) -> Option<&mut Option<Cow<'a, str>>> {
        if attribute.key.as_namespace_binding().is_some() {
            return None;
        }
        Some(match attribute.key.local_name().as_ref() {
            "id" => &mut self.id,
            "group_id" => &mut self.group_id,
            "session_id" => &mut self.session_id,
            "session" => &mut self.session,
            "participant_id" => &mut self.participant_id,
            "participant" => &mut self.participant,
            "stream_id" => &mut self.stream_id,
            "aor" => &mut self.aor,
            "pname" => &mut self.pname,
            "pval" => &mut self.pval,
            _ => return None,
        })
    }
}

/// The first of these that the element has.
fn first(of: [Option<&str>; 2]) -> &str {
    of.into_iter().flatten().next().unwrap_or_default()
}

fn value<'a>(attribute: &Attribute<'a>) -> Result<Cow<'a, str>, Problem> {
    let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(|error| syntax(&error))?;
    Ok(match value {
        Cow::Borrowed(text) => Cow::Borrowed(text.trim()),
        Cow::Owned(text) => Cow::Owned(text.trim().to_owned()),
    })
}

fn namespace_name<'a>(namespace: &'a ResolveResult<'_>) -> &'a str {
    match namespace {
        ResolveResult::Unbound => "",
        ResolveResult::Bound(namespace) => namespace.0,
        ResolveResult::Unknown(prefix) => prefix,
    }
}
