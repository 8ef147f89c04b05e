//! What can be found wrong with metadata: a stable code for each, how much it matters, and what the RFC says.

use serde::Serialize;

use crate::limits::{FINDING_CODES_MAX, FINDING_TEXT_MAX};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Legal, and worth knowing.
    Note,
    /// Probably not what was meant.
    Warning,
    /// Against a MUST or the schema; the rest can be used.
    Error,
    /// Nothing of the body can be used.
    Critical,
}

impl Severity {
    pub fn text(self) -> &'static str {
        match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
            Severity::Critical => "critical",
        }
    }
}

/// One thing that was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    pub code: Code,
    /// Which element: `participant[srfBElmCRp2QB23b7Mpk0w==]/nameID`. At most `FINDING_TEXT_MAX` bytes of an id.
    pub element: String,
    /// What stands there, cut to `FINDING_TEXT_MAX` bytes.
    pub value: String,
    /// How often: the last of a code that was found too often to be listed stands for the others.
    pub times: u32,
}

impl Finding {
    pub fn new(code: Code, element: String, value: &str) -> Finding {
        Finding { code, element, value: short(value).to_owned(), times: 1 }
    }

    /// For people at the other end: printable ASCII, so that any header field can have it.
    pub fn sentence(&self) -> String {
        let Finding { code, element, value, .. } = self;
        let (rule, source) = (code.rule(), code.source().replace('§', ""));
        let sentence = format!("{} at {element} '{value}': {rule} ({source})", code.text());
        sentence.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
    }
}

/// As much of a text as a finding has, whole characters.
pub fn short(text: &str) -> &str {
    let mut end = text.len().min(FINDING_TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

macro_rules! codes {
    ($($variant:ident $text:literal $severity:ident $source:literal $rule:literal)*) => {
        /// The codes are stable: whoever reads manifests, logs and statistics relies on them.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum Code { $($variant,)* }

        impl Code {
            pub const ALL: &'static [Code] = &[$(Code::$variant,)*];

            /// `metadata.participant.missing-aor`.
            pub const fn text(self) -> &'static str {
                match self { $(Code::$variant => $text,)* }
            }

            pub const fn severity(self) -> Severity {
                match self { $(Code::$variant => Severity::$severity,)* }
            }

            /// The document and its section.
            pub const fn source(self) -> &'static str {
                match self { $(Code::$variant => $source,)* }
            }

            /// What it says there, or why there is a rule.
            pub const fn rule(self) -> &'static str {
                match self { $(Code::$variant => $rule,)* }
            }
        }
    };
}

codes! {
    Syntax "metadata.xml.syntax" Critical "RFC 7865 §5.1.1"
        "the metadata is a well-formed XML document"
    Truncated "metadata.xml.truncated" Critical "RFC 7865 §5.1.1"
        "the metadata is a whole XML document; this one ends before its root element does"
    Encoding "metadata.xml.encoding" Critical "RFC 7865 §5.1.1"
        "the metadata is encoded in UTF-8"
    DocumentType "metadata.xml.doctype" Critical "RFC 3470 §4.3"
        "a document type declaration is not needed, and is how entities that expand without end come in: it is not read"
    TooDeep "metadata.size.depth" Critical "limits of the recorder"
        "elements are nested at most 32 deep; RFC 7865 needs four"
    TooManyElements "metadata.size.elements" Critical "limits of the recorder"
        "at most 10,000 elements in one body, and as many items in all that are merged"
    TooLarge "metadata.size.bytes" Critical "limits of the recorder"
        "at most 256 KiB in one body, and as much text in all that are merged"
    TooOften "metadata.size.too-often" Critical "limits of the recorder"
        "updates of one recording that compare more than 200,000 items a second are kept on disk, and not applied"
    TooManyAttributes "metadata.size.attributes" Critical "limits of the recorder"
        "at most 64 attributes of one element"
    NotRecording "metadata.root.not-recording" Critical "RFC 7865 §5.1.2"
        "the root element is recording, and there is one"
    Namespace "metadata.namespace.other" Error "RFC 7865 §5.1.2"
        "the namespace is urn:ietf:params:xml:ns:recording:1; those of the drafts are understood"
    DataMode "metadata.datamode.unknown" Error "RFC 7865 §6.1.1"
        "datamode is complete or partial; anything else is taken for complete"
    WithoutBase "metadata.datamode.partial-without-base" Warning "RFC 7866 §9.2"
        "a partial update adds to a snapshot; there was none, and one is asked for where the SRC allows UPDATE"
    UnknownElement "metadata.element.unknown" Note "RFC 7865 §9"
        "what the schema does not know is in a namespace of its own; elements within this one are looked at"
    ExtensionsLeftOut "metadata.extension.left-out" Warning "limits of the recorder"
        "64 KiB and 256 extensions are kept in the manifest; the body is on disk as it came"
    GroupMissingId "metadata.group.missing-id" Error "RFC 7865 §6.2, §6.10"
        "a group has a group_id"
    SessionMissingId "metadata.session.missing-id" Error "RFC 7865 §6.3, §6.10"
        "a session has a session_id"
    ParticipantMissingId "metadata.participant.missing-id" Error "RFC 7865 §6.5, §6.10"
        "a participant has a participant_id; without one nothing can refer to it"
    StreamMissingId "metadata.stream.missing-id" Error "RFC 7865 §6.7, §6.10"
        "a stream has a stream_id; without one nobody can send into it"
    Repeated "metadata.id.repeated" Error "RFC 7865 §6.10"
        "one id on two elements is an error; two of a kind are taken for one"
    MissingAor "metadata.participant.missing-aor" Error "RFC 7865 §6.5.1"
        "a participant has a nameID with an aor"
    AorSyntax "metadata.participant.aor-syntax" Error "RFC 7865 §6.5.1"
        "an aor is a SIP, SIPS or tel URI: with a scheme, and a host or a number"
    AorScheme "metadata.participant.aor-scheme" Warning "RFC 7865 §6.5.1"
        "an aor is a SIP, SIPS or tel URI, not one of another scheme"
    AorsLeftOut "metadata.participant.too-many-aors" Warning "limits of the recorder"
        "32 addresses of one participant are kept"
    Role "metadata.participant.role-syntax" Warning "RFC 7865 §6.6, RFC 3840 §9"
        "a param of participantsessionassoc names a feature tag in pname"
    StreamSession "metadata.stream.missing-session" Warning "RFC 7865 §6.7"
        "a stream belongs to a communication session, and says to which in session_id"
    StreamSessionUnknown "metadata.stream.session-unknown" Error "RFC 7865 §6.7"
        "session_id of a stream is the id of a session of the metadata"
    GroupUnknown "metadata.session.group-unknown" Error "RFC 7865 §6.3"
        "group-ref of a session is the id of a group of the metadata"
    StreamMode "metadata.stream.mode-unknown" Warning "drafts of RFC 7865"
        "the mode of a stream is mixed or separate"
    Mixed "metadata.stream.mixed" Note "RFC 7865 §6.7, RFC 7866 §8.3"
        "several participants send into one stream: they cannot be told apart in the recording"
    Unsent "metadata.stream.no-sender" Warning "RFC 7865 §6.8"
        "no participant sends into this stream, so nothing says whose voice it is"
    LabelMissing "metadata.stream.missing-label" Note "RFC 7865 §6.7.1"
        "a stream that is delivered has the label of its m-line; without one it is taken to be not delivered"
    LabelSyntax "metadata.stream.label-syntax" Warning "RFC 4574 §4"
        "a label is a token"
    LabelRepeated "metadata.stream.label-repeated" Error "RFC 7866 §7.1.1"
        "a label is that of one stream"
    LabelUnknown "metadata.stream.label-unknown" Warning "RFC 7866 §7.1.1, §9.1"
        "the label of a stream is that of an m-line; where no label fits, streams are matched in their order"
    LineUndescribed "media.label.undescribed" Warning "RFC 7866 §9.1"
        "for each m-line that is recorded the metadata has a stream with its label"
    LineLabelMissing "media.label.missing" Error "RFC 7866 §7.1.1"
        "each m-line has an a=label; where no label fits, streams are matched in their order"
    LineLabelRepeated "media.label.repeated" Error "RFC 7866 §7.1.1"
        "a label is that of one m-line"
    SessionRecordingUnknown "metadata.sessionrecordingassoc.session-unknown" Error "RFC 7865 §6.4"
        "session_id is the id of a session of the metadata"
    AssociationParticipantUnknown "metadata.participantsessionassoc.participant-unknown" Error "RFC 7865 §6.6"
        "participant_id is the id of a participant of the metadata"
    AssociationSessionUnknown "metadata.participantsessionassoc.session-unknown" Error "RFC 7865 §6.6"
        "session_id is the id of a session of the metadata"
    SenderUnknown "metadata.participantstreamassoc.participant-unknown" Error "RFC 7865 §6.8"
        "participant_id is the id of a participant of the metadata"
    SentUnknown "metadata.participantstreamassoc.stream-unknown" Error "RFC 7865 §6.8"
        "send and recv have the id of a stream of the metadata"
    TimeSyntax "metadata.time.syntax" Error "RFC 7865 §6.9"
        "a time is written as RFC 3339 has it: 2026-11-22T08:00:00Z"
    TimeZone "metadata.time.no-zone" Error "RFC 7865 §6.9"
        "a time has its offset from UTC, or Z (RFC 3339 §5.6)"
    TimeOrder "metadata.time.order" Warning "RFC 7865 §6.9"
        "what ends does so after it began"
    TimeEpoch "metadata.time.epoch" Note "RFC 7865 §6.9"
        "a time in 1970 is that of a clock that is not set; the recorder's own times stand beside it"
}

const _: () = assert!(Code::ALL.len() <= FINDING_CODES_MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn codes_are_unlike_each_other_and_say_something() {
        let texts: HashSet<&str> = Code::ALL.iter().map(|code| code.text()).collect();
        assert_eq!(texts.len(), Code::ALL.len());
        for (place, code) in Code::ALL.iter().enumerate() {
            assert_eq!(*code as usize, place);
            let word = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
            let words: Vec<&str> = code.text().split('.').collect();
            assert!(words.len() == 3 && words.into_iter().all(word), "{}", code.text());
            assert!(!code.rule().is_empty() && !code.source().is_empty(), "{}", code.text());
        }
    }

    #[test]
    fn texts_are_cut_between_characters() {
        let long = "é".repeat(FINDING_TEXT_MAX);
        assert_eq!(short(&long).len(), FINDING_TEXT_MAX);
        assert_eq!(short(&format!("x{long}")).len(), FINDING_TEXT_MAX - 1);
        assert_eq!(short("x"), "x");
    }
}
