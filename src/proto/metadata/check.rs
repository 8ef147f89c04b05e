//! What is wrong with a body of metadata, and what RFC 7865 says about it. Nothing here decides anything.
//!
//! The time is that of sorting the body's ids, and what is found is bounded: of each code the first few are listed, the rest counted.

use super::code::short;
use super::list::Index;
use super::reader::{DRAFT_NAMESPACES, NAMESPACE};
use super::time::{self, Instant, TimeError};
use super::{Body, Code, Finding, Form, Metadata, MetadataError, Mode, Problem, Span};
use crate::limits::FINDINGS_PER_CODE;
use crate::proto::sip::SipUri;

/// An m-line of the offer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Media<'a> {
    /// a=label.
    pub label: Option<&'a str>,
    /// Its port is not 0.
    pub used: bool,
}

/// What was found in one body, in the order in which it was looked for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Findings {
    list: Vec<Finding>,
}

impl Findings {
    pub fn iter(&self) -> std::slice::Iter<'_, Finding> {
        self.list.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The first of the most severe.
    pub fn worst(&self) -> Option<&Finding> {
        self.list.iter().rev().max_by_key(|finding| finding.code.severity())
    }

    pub fn add(&mut self, code: Code, finding: impl FnOnce() -> (String, String)) {
        self.add_times(code, 1, finding);
    }

    fn add_times(&mut self, code: Code, times: u32, finding: impl FnOnce() -> (String, String)) {
        let listed = self.list.iter().filter(|known| known.code == code).count();
        if listed < FINDINGS_PER_CODE {
            let (element, value) = finding();
            let finding = Finding::new(code, element, &value);
            self.list.push(Finding { times, ..finding });
        } else if let Some(last) = self.list.iter_mut().rev().find(|known| known.code == code) {
            last.times += times;
        }
    }
}

/// The finding about a body that could not be read or merged.
pub fn unreadable(error: MetadataError) -> Findings {
    let code = match error.problem {
        Problem::TooLarge => Code::TooLarge,
        Problem::TooManyElements => Code::TooManyElements,
        Problem::TooOften => Code::TooOften,
        Problem::TooDeep => Code::TooDeep,
        Problem::TooManyAttributes => Code::TooManyAttributes,
        Problem::Encoding => Code::Encoding,
        Problem::DocumentType => Code::DocumentType,
        Problem::NotRecording => Code::NotRecording,
        Problem::Truncated => Code::Truncated,
        Problem::Syntax(_) => Code::Syntax,
    };
    let mut findings = Findings::default();
    findings.add(code, || ("recording".to_owned(), error.to_string()));
    findings
}

/// What was said before a body, to which a partial one may refer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known<'a> {
    pub metadata: &'a Metadata,
    /// There was a complete body.
    pub complete: bool,
}

/// Looks at one body. `media` are the m-lines that its labels are about; none: there was no offer.
pub fn check(body: &Body, known: Option<Known<'_>>, media: &[Media<'_>]) -> Findings {
    let empty = Metadata::default();
    let partial = body.metadata.mode == Mode::Partial;
    let base = known.filter(|_| partial).map_or(&empty, |known| known.metadata);
    let mut checker = Checker {
        partial,
        said: Elements::new(&body.metadata),
        base: Elements::new(base),
        findings: Findings::default(),
    };
    checker.form(&body.form);
    if partial && !known.is_some_and(|known| known.complete) {
        checker.found(Code::WithoutBase, || ("datamode".into(), "partial".into()));
    }
    checker.ids(&body.metadata);
    checker.sessions(&body.metadata);
    checker.participants(&body.metadata);
    checker.streams(&body.metadata);
    checker.associations(&body.metadata);
    checker.senders(&body.metadata);
    checker.labels(&body.metadata, media);
    checker.findings
}

/// What can be referred to.
struct Elements<'a> {
    groups: Index<'a, super::Group>,
    sessions: Index<'a, super::CommunicationSession>,
    participants: Index<'a, super::Participant>,
    streams: Index<'a, super::Stream>,
}

impl<'a> Elements<'a> {
    fn new(metadata: &'a Metadata) -> Elements<'a> {
        Elements {
            groups: Index::new(&metadata.groups),
            sessions: Index::new(&metadata.sessions),
            participants: Index::new(&metadata.participants),
            streams: Index::new(&metadata.streams),
        }
    }
}

struct Checker<'a> {
    partial: bool,
    said: Elements<'a>,
    base: Elements<'a>,
    findings: Findings,
}

impl Checker<'_> {
    fn found(&mut self, code: Code, finding: impl FnOnce() -> (String, String)) {
        self.findings.add(code, finding);
    }

    fn form(&mut self, form: &Form) {
        if form.namespace != NAMESPACE {
            let draft = DRAFT_NAMESPACES.contains(&form.namespace.as_str());
            let what = if draft { "recording (draft)" } else { "recording" };
            self.found(Code::Namespace, || (what.into(), form.namespace.clone()));
        }
        if let Some(mode) = &form.data_mode {
            self.found(Code::DataMode, || ("datamode".into(), mode.clone()));
        }
        let listed = |list: usize, total: u32, at: usize| match at + 1 == list {
            true => total - list as u32 + 1,
            false => 1,
        };
        for (at, (kind, id)) in form.repeated.iter().enumerate() {
            let times = listed(form.repeated.len(), form.repeated_total, at);
            self.findings.add_times(Code::Repeated, times, || (path(kind, id), id.clone()));
        }
        for (at, name) in form.unknown.iter().enumerate() {
            let times = listed(form.unknown.len(), form.unknown_total, at);
            self.findings.add_times(Code::UnknownElement, times, || (short(name).into(), String::new()));
        }
        if let Some(id) = &form.aors_left_out {
            self.found(Code::AorsLeftOut, || (path("participant", id), String::new()));
        }
        if form.extensions_left_out > 0 {
            let times = form.extensions_left_out;
            self.findings.add_times(Code::ExtensionsLeftOut, times, || ("recording".into(), String::new()));
        }
    }

    /// An id is that of one element, whatever its kind. Two of the same kind have become one when the body was read.
    fn ids(&mut self, said: &Metadata) {
        let groups = said.groups.iter().map(|group| (group.id.as_str(), "group", Code::GroupMissingId));
        let sessions =
            said.sessions.iter().map(|session| (session.id.as_str(), "session", Code::SessionMissingId));
        let participants = said.participants.iter();
        let participants =
            participants.map(|one| (one.id.as_str(), "participant", Code::ParticipantMissingId));
        let streams = said.streams.iter().map(|stream| (stream.id.as_str(), "stream", Code::StreamMissingId));
        let mut all: Vec<_> = groups.chain(sessions).chain(participants).chain(streams).collect();
        for (_, kind, code) in all.iter().filter(|(id, ..)| id.is_empty()) {
            self.found(*code, || ((*kind).into(), String::new()));
        }
        all.sort_unstable_by_key(|(id, kind, _)| (*id, *kind));
        for pair in all.windows(2).filter(|pair| pair[0].0 == pair[1].0 && !pair[0].0.is_empty()) {
            self.found(Code::Repeated, || (path(pair[0].1, pair[0].0), pair[1].1.into()));
        }
    }

    fn sessions(&mut self, said: &Metadata) {
        for session in &said.sessions {
            let times = [("start-time", &session.start_time), ("stop-time", &session.stop_time)];
            self.times(|| path("session", &session.id), times);
            if let Some(group) = &session.group_id
                && !self.said.groups.has(group)
                && !self.base.groups.has(group)
            {
                self.found(Code::GroupUnknown, || {
                    (inside("session", &session.id, "group-ref"), group.clone())
                });
            }
        }
        for group in &said.groups {
            self.span("group", &group.id, &group.span);
        }
    }

    fn participants(&mut self, said: &Metadata) {
        for participant in &said.participants {
            let known =
                self.base.participants.find(&participant.id, "").is_some_and(|it| !it.aors.is_empty());
            if participant.aors.is_empty() && !known {
                self.found(Code::MissingAor, || (path("participant", &participant.id), String::new()));
            }
            for aor in &participant.aors {
                if let Some(code) = judge_aor(aor) {
                    self.found(code, || (inside("participant", &participant.id, "nameID"), aor.clone()));
                }
            }
        }
    }

    fn streams(&mut self, said: &Metadata) {
        for stream in &said.streams {
            let known = self.base.streams.find(&stream.id, "");
            match &stream.session_id {
                Some(id) if self.said.sessions.has(id) || self.base.sessions.has(id) => {}
                Some(id) => {
                    self.found(Code::StreamSessionUnknown, || (path("stream", &stream.id), id.clone()));
                }
                None if known.is_some_and(|known| known.session_id.is_some()) => {}
                None => self.found(Code::StreamSession, || (path("stream", &stream.id), String::new())),
            }
            match &stream.label {
                Some(label) if is_token(label) => {}
                Some(label) => {
                    let finding = || (inside("stream", &stream.id, "label"), label.clone());
                    self.found(Code::LabelSyntax, finding);
                }
                None if known.is_some_and(|known| known.label.is_some()) => {}
                None => self.found(Code::LabelMissing, || (path("stream", &stream.id), String::new())),
            }
            if let Some(mode) = &stream.mode
                && !["mixed", "separate"].iter().any(|known| mode.eq_ignore_ascii_case(known))
            {
                self.found(Code::StreamMode, || (inside("stream", &stream.id, "mode"), mode.clone()));
            }
        }
    }

    fn associations(&mut self, said: &Metadata) {
        for association in &said.session_recordings {
            let id = &association.session_id;
            if !self.has_session(id) {
                let finding = || (path("sessionrecordingassoc", id), id.clone());
                self.found(Code::SessionRecordingUnknown, finding);
            }
            self.span("sessionrecordingassoc", id, &association.span);
        }
        for association in &said.participant_sessions {
            let (id, session) = (&association.participant_id, &association.session_id);
            if !self.has_participant(id) {
                let finding = || (path("participantsessionassoc", id), id.clone());
                self.found(Code::AssociationParticipantUnknown, finding);
            }
            if !self.has_session(session) {
                let finding = || (path("participantsessionassoc", id), session.clone());
                self.found(Code::AssociationSessionUnknown, finding);
            }
            for (name, value) in association.params.iter().filter(|(name, _)| !is_feature(name)) {
                let finding = || {
                    (
                        inside("participantsessionassoc", id, "param"),
                        format!("{}={}", short(name), short(value)),
                    )
                };
                self.found(Code::Role, finding);
            }
            self.span("participantsessionassoc", id, &association.span);
        }
        for association in &said.associations {
            let id = &association.participant_id;
            if !self.has_participant(id) {
                self.found(Code::SenderUnknown, || (path("participantstreamassoc", id), id.clone()));
            }
            for (what, list) in [("send", &association.sends), ("recv", &association.receives)] {
                for stream in list.iter() {
                    if !self.said.streams.has(stream) && !self.base.streams.has(stream) {
                        let finding = || (inside("participantstreamassoc", id, what), stream.clone());
                        self.found(Code::SentUnknown, finding);
                    }
                }
            }
            self.span("participantstreamassoc", id, &association.span);
        }
    }

    fn has_session(&self, id: &str) -> bool {
        self.said.sessions.has(id) || self.base.sessions.has(id)
    }

    fn has_participant(&self, id: &str) -> bool {
        self.said.participants.has(id) || self.base.participants.has(id)
    }

    /// Streams that several send into, and in a snapshot those that nobody does.
    fn senders(&mut self, said: &Metadata) {
        let sends = |association: &'_ super::StreamAssociation| association.sends.len();
        let mut pairs = Vec::with_capacity(said.associations.iter().map(sends).sum());
        for association in &said.associations {
            let sender = association.participant_id.as_str();
            pairs.extend(association.sends.iter().map(|stream| (stream.as_str(), sender)));
        }
        pairs.sort_unstable();
        pairs.dedup();
        for same in pairs.chunk_by(|a, b| a.0 == b.0).filter(|same| same.len() > 1) {
            self.found(Code::Mixed, || (path("stream", same[0].0), format!("{} senders", same.len())));
        }
        if self.partial {
            return;
        }
        for stream in said.streams.iter().filter(|stream| stream.label.is_some() && !stream.id.is_empty()) {
            if pairs.binary_search_by_key(&stream.id.as_str(), |pair| pair.0).is_err() {
                let label = stream.label.clone().unwrap_or_default();
                self.found(Code::Unsent, || (path("stream", &stream.id), label));
            }
        }
    }

    fn labels(&mut self, said: &Metadata, media: &[Media<'_>]) {
        let mut labels: Vec<&str> =
            said.streams.iter().filter_map(|stream| stream.label.as_deref()).collect();
        labels.sort_unstable();
        for pair in labels.windows(2).filter(|pair| pair[0] == pair[1]) {
            self.found(Code::LabelRepeated, || ("stream/label".into(), pair[0].into()));
        }
        if media.is_empty() {
            return;
        }
        for stream in &said.streams {
            if let Some(label) = &stream.label
                && !media.iter().any(|line| line.label == Some(label))
            {
                self.found(Code::LabelUnknown, || (inside("stream", &stream.id, "label"), label.clone()));
            }
        }
        for (m_line, line) in media.iter().enumerate().filter(|(_, line)| line.used) {
            let Some(label) = line.label else {
                self.found(Code::LineLabelMissing, || (format!("m-line {m_line}"), String::new()));
                continue;
            };
            if media[..m_line].iter().any(|earlier| earlier.used && earlier.label == Some(label)) {
                self.found(Code::LineLabelRepeated, || (format!("m-line {m_line}"), label.into()));
            }
            if !self.partial && labels.binary_search(&label).is_err() {
                self.found(Code::LineUndescribed, || (format!("m-line {m_line}"), label.into()));
            }
        }
    }

    fn span(&mut self, kind: &str, id: &str, span: &Span) {
        let times = [("associate-time", &span.associated), ("disassociate-time", &span.disassociated)];
        self.times(|| path(kind, id), times);
    }

    fn times(&mut self, element: impl Fn() -> String, times: [(&str, &Option<String>); 2]) {
        let [from, to] = times.map(|(name, text)| {
            let text = text.as_deref()?;
            self.time(|| format!("{}/{name}", element()), text)
        });
        if let (Some(from), Some(to)) = (from, to)
            && to < from
        {
            self.found(Code::TimeOrder, || (element(), times[1].1.clone().unwrap_or_default()));
        }
    }

    fn time(&mut self, element: impl FnOnce() -> String, text: &str) -> Option<Instant> {
        const FIRST_DAYS: i64 = 31 * 86_400;
        match time::parse(text) {
            Ok(at) => {
                if (0..FIRST_DAYS).contains(&at.0) {
                    self.found(Code::TimeEpoch, || (element(), text.into()));
                }
                Some(at)
            }
            Err(error) => {
                let code = if error == TimeError::NoZone { Code::TimeZone } else { Code::TimeSyntax };
                self.found(code, || (element(), text.into()));
                None
            }
        }
    }
}

fn path(kind: &str, id: &str) -> String {
    if id.is_empty() { kind.to_owned() } else { format!("{kind}[{}]", short(id)) }
}

fn inside(kind: &str, id: &str, child: &str) -> String {
    format!("{}/{child}", path(kind, id))
}

/// What is wrong with an address of record, if anything is.
fn judge_aor(aor: &str) -> Option<Code> {
    let clean = !aor.bytes().any(|byte| byte <= b' ' || b"<>\"".contains(&byte));
    let scheme = aor.split_once(':').filter(|(scheme, _)| is_scheme(scheme));
    let Some((scheme, rest)) = scheme.filter(|_| clean) else { return Some(Code::AorSyntax) };
    if scheme.eq_ignore_ascii_case("sip") || scheme.eq_ignore_ascii_case("sips") {
        let valid = SipUri::parse(aor).is_some_and(|uri| !uri.host.is_empty());
        return (!valid).then_some(Code::AorSyntax);
    }
    if scheme.eq_ignore_ascii_case("tel") {
        return (!is_number(rest)).then_some(Code::AorSyntax);
    }
    Some(Code::AorScheme)
}

/// RFC 3986 §3.1.
fn is_scheme(scheme: &str) -> bool {
    let rest = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    scheme.bytes().next().is_some_and(|first| first.is_ascii_alphabetic()) && scheme.bytes().all(rest)
}

/// RFC 3966 §3: a global number, or a local one with its context.
fn is_number(rest: &str) -> bool {
    let (number, params) = rest.split_once(';').unwrap_or((rest, ""));
    let separator = |byte: u8| b"-.()".contains(&byte);
    let digits = |number: &str, also: &[u8]| {
        number.bytes().all(|byte| byte.is_ascii_digit() || separator(byte) || also.contains(&byte))
            && number.bytes().any(|byte| !separator(byte))
    };
    match number.strip_prefix('+') {
        Some(global) => digits(global, b""),
        None => {
            let context = params.split(';').any(|param| {
                let (name, value) = param.split_once('=').unwrap_or((param, ""));
                name.eq_ignore_ascii_case("phone-context") && !value.is_empty()
            });
            context && digits(number, b"*#abcdefABCDEF")
        }
    }
}

/// RFC 4574 §4, RFC 4566 §9.
fn is_token(text: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]".contains(&byte);
    !text.is_empty() && text.bytes().all(token)
}

/// RFC 3840 §9: a base tag, or one with a plus.
fn is_feature(name: &str) -> bool {
    let tag = name.strip_prefix('+').unwrap_or(name);
    let byte = |byte: u8| byte.is_ascii_alphanumeric() || b"!'.-%".contains(&byte);
    tag.bytes().next().is_some_and(|first| first.is_ascii_alphabetic()) && tag.bytes().all(byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::FINDING_TEXT_MAX;
    use crate::proto::fixtures::{invite, invites};
    use crate::proto::metadata::{Participant, Severity, StreamAssociation, parse};
    use crate::proto::sdp;
    use proptest::prelude::*;
    use std::time::{Duration, Instant};

    fn body(content: &str) -> Body {
        parse(format!("<recording xmlns='{NAMESPACE}'>{content}</recording>").as_bytes()).unwrap()
    }

    fn codes(findings: &Findings) -> Vec<String> {
        findings.iter().map(|finding| format!("{} {}", finding.code.text(), finding.times)).collect()
    }

    /// `code element value`.
    fn found(content: &str) -> Vec<String> {
        let one = |finding: &Finding| {
            format!("{} {} {}", finding.code.text(), finding.element, finding.value).trim_end().to_owned()
        };
        check(&body(content), None, &[]).iter().map(one).collect()
    }

    fn of_invite(name: &str) -> Findings {
        let invite = invite(name);
        let offer = sdp::parse(&invite.sdp()).unwrap();
        let media: Vec<Media> = offer
            .media
            .iter()
            .map(|line| Media { label: line.label.as_deref(), used: line.port != 0 })
            .collect();
        check(&parse(&invite.metadata()).unwrap(), None, &media)
    }

    /// What is to be said about the INVITEs of deployed SRCs. None of it is critical.
    #[test]
    fn what_deployed_srcs_send() {
        let aor = "metadata.participant.aor-syntax";
        let zone = "metadata.time.no-zone";
        let draft = "metadata.namespace.other";
        let (unknown, undescribed) = ("metadata.stream.label-unknown", "media.label.undescribed");
        let unsent = "metadata.stream.no-sender";
        for (name, expected) in [
            ("rfc7866", &[][..]),
            ("broadworks", &[draft, aor, unknown, unknown, undescribed, undescribed]),
            ("metaswitch", &[draft, "metadata.stream.mixed"]),
            ("avaya-sbce", &["metadata.stream.missing-id", aor, unknown]),
            ("cisco-cube", &["metadata.participantstreamassoc.participant-unknown", unsent]),
            ("oracle", &[draft, zone, zone, zone]),
            ("sonus", &[draft, "metadata.time.epoch", "metadata.time.epoch"]),
            ("audiocodes-lf", &[draft, zone, zone, aor, aor, zone, zone]),
            ("opensips", &["metadata.time.syntax"; 3]),
            ("sems", &[]),
            ("dynamics-srtp", &[aor, aor]),
            ("netsapiens", &[unsent, unsent]),
        ] {
            let findings = of_invite(name);
            let found: Vec<&str> = findings.iter().map(|finding| finding.code.text()).collect();
            assert_eq!(found, expected, "{name}");
            assert!(
                findings
                    .iter()
                    .all(|finding| finding.code.severity() < Severity::Critical && finding.times == 1)
            );
        }
        assert_eq!(invites().count(), 12);
    }

    const GOOD: &str = "<session session_id='s'/><participant participant_id='p'><nameID aor='sip:p@x'/></participant><stream stream_id='t' session_id='s'><label>1</label></stream><participantstreamassoc participant_id='p'><send>t</send></participantstreamassoc>";

    #[test]
    fn each_rule_finds_its_violation() {
        assert_eq!(found(GOOD), [""; 0]);
        for (extra, expected) in [
            ("<datamode>some</datamode>", "metadata.datamode.unknown datamode some"),
            ("<callData/>", "metadata.element.unknown callData"),
            ("<group/>", "metadata.group.missing-id group"),
            ("<session/>", "metadata.session.missing-id session"),
            (
                "<participant><nameID aor='sip:x@y'/></participant>",
                "metadata.participant.missing-id participant",
            ),
            ("<stream session_id='s'><label>2</label></stream>", "metadata.stream.missing-id stream"),
            ("<session session_id='s'/>", "metadata.id.repeated session[s] s"),
            ("<group group_id='p'/>", "metadata.id.repeated group[p] participant"),
            ("<participant participant_id='q'/>", "metadata.participant.missing-aor participant[q]"),
            (
                "<participant participant_id='q'><nameID aor='100'/></participant>",
                "metadata.participant.aor-syntax participant[q]/nameID 100",
            ),
            (
                "<participant participant_id='q'><nameID aor='mailto:a@b'/></participant>",
                "metadata.participant.aor-scheme participant[q]/nameID mailto:a@b",
            ),
            (
                "<participantsessionassoc participant_id='p' session_id='s'><param pname='' pval='x'/></participantsessionassoc>",
                "metadata.participant.role-syntax participantsessionassoc[p]/param =x",
            ),
            (
                "<participantsessionassoc participant_id='q' session_id='s'/>",
                "metadata.participantsessionassoc.participant-unknown participantsessionassoc[q] q",
            ),
            (
                "<participantsessionassoc participant_id='p' session_id='z'/>",
                "metadata.participantsessionassoc.session-unknown participantsessionassoc[p] z",
            ),
            (
                "<sessionrecordingassoc session_id='z'/>",
                "metadata.sessionrecordingassoc.session-unknown sessionrecordingassoc[z] z",
            ),
            (
                "<participantstreamassoc participant_id='q'/>",
                "metadata.participantstreamassoc.participant-unknown participantstreamassoc[q] q",
            ),
            (
                "<participantstreamassoc participant_id='p'><recv>z</recv></participantstreamassoc>",
                "metadata.participantstreamassoc.stream-unknown participantstreamassoc[p]/recv z",
            ),
            (
                "<session session_id='u'><group-ref>z</group-ref></session>",
                "metadata.session.group-unknown session[u]/group-ref z",
            ),
            ("<stream stream_id='u' session_id='s'/>", "metadata.stream.missing-label stream[u]"),
            (
                "<session session_id='u'><start-time>yesterday</start-time></session>",
                "metadata.time.syntax session[u]/start-time yesterday",
            ),
            (
                "<group group_id='g'><associate-time>2026-11-22T08:00:00</associate-time></group>",
                "metadata.time.no-zone group[g]/associate-time 2026-11-22T08:00:00",
            ),
            (
                "<session session_id='u'><start-time>2026-11-22T08:00:00Z</start-time><stop-time>2026-11-22T07:00:00Z</stop-time></session>",
                "metadata.time.order session[u] 2026-11-22T07:00:00Z",
            ),
            (
                "<session session_id='u'><start-time>1970-01-01T00:00:00Z</start-time></session>",
                "metadata.time.epoch session[u]/start-time 1970-01-01T00:00:00Z",
            ),
        ] {
            assert_eq!(found(&format!("{GOOD}{extra}")), [expected], "{extra}");
        }
    }

    #[test]
    fn rules_that_come_in_company() {
        let stream = |content: &str| found(&format!("{GOOD}<stream stream_id='u'>{content}</stream>"));
        assert_eq!(
            stream("<label>1</label>"),
            [
                "metadata.stream.missing-session stream[u]",
                "metadata.stream.no-sender stream[u] 1",
                "metadata.stream.label-repeated stream/label 1",
            ]
        );
        assert_eq!(
            stream("<label>a b</label><mode>both</mode>")[1..],
            [
                "metadata.stream.label-syntax stream[u]/label a b",
                "metadata.stream.mode-unknown stream[u]/mode both",
                "metadata.stream.no-sender stream[u] a b",
            ]
        );
        let second = "<participant participant_id='q'><nameID aor='tel:+1'/></participant><participantstreamassoc participant_id='q'><send>t</send></participantstreamassoc>";
        assert_eq!(found(&format!("{GOOD}{second}")), ["metadata.stream.mixed stream[t] 2 senders"]);
        assert_eq!(
            found(&format!("{GOOD}<stream stream_id='u' session_id='z'/>"))[0],
            "metadata.stream.session-unknown stream[u] z"
        );
    }

    #[test]
    fn labels_are_held_against_the_offer() {
        let media = |labels: &[Option<&'static str>]| -> Vec<Media> {
            labels.iter().map(|label| Media { label: *label, used: true }).collect()
        };
        let against = |labels: &[Option<&'static str>]| codes(&check(&body(GOOD), None, &media(labels)));
        assert_eq!(against(&[Some("1")]), [""; 0]);
        assert_eq!(against(&[Some("1"), Some("2")]), ["media.label.undescribed 1"]);
        assert_eq!(against(&[Some("1"), None]), ["media.label.missing 1"]);
        assert_eq!(against(&[Some("1"), Some("1")]), ["media.label.repeated 1"]);
        assert_eq!(against(&[Some("5")]), ["metadata.stream.label-unknown 1", "media.label.undescribed 1"]);
        let unused = [Media { label: Some("1"), used: true }, Media { label: None, used: false }];
        assert!(check(&body(GOOD), None, &unused).is_empty());
    }

    #[test]
    fn a_partial_body_refers_to_what_was_said() {
        let known = body(GOOD).metadata;
        let update = body(
            "<datamode>partial</datamode><participant participant_id='p'/><stream stream_id='t'/><stream stream_id='u' session_id='s'><label>2</label></stream><participantstreamassoc participant_id='p'><send>u</send></participantstreamassoc>",
        );
        let said = |complete| check(&update, Some(Known { metadata: &known, complete }), &[]);
        assert!(said(true).is_empty());
        assert_eq!(codes(&said(false)), ["metadata.datamode.partial-without-base 1"]);
        let alone = check(&update, None, &[]);
        assert_eq!(alone.iter().next().unwrap().code, Code::WithoutBase);
        assert!(alone.iter().any(|finding| finding.code == Code::StreamSessionUnknown));
    }

    #[test]
    fn addresses() {
        for aor in [
            "sip:ada@example.com",
            "SIPS:[2001:db8::1]:5061;transport=tls",
            "sip:+12025550111@example.net;user=phone",
            "tel:+1-202-555-0122",
            "tel:7042;phone-context=example.com",
            "tel:*21#;phone-context=+1",
        ] {
            assert_eq!(judge_aor(aor), None, "{aor}");
        }
        for aor in [
            "",
            "ada",
            "ada@example.com",
            "230908",
            "sip:",
            "sip:a b@x",
            "<sip:a@x>",
            "tel:7042",
            "tel:+",
            "tel:",
            "1:2",
        ] {
            assert_eq!(judge_aor(aor), Some(Code::AorSyntax), "{aor}");
        }
        assert_eq!(judge_aor("im:ada@example.com"), Some(Code::AorScheme));
    }

    #[test]
    fn each_unreadable_body_has_its_code() {
        let too_large = vec![b' '; crate::limits::METADATA_MAX + 1];
        for (body, code) in [
            (&b"<recording>"[..], Code::Truncated),
            (b"<recording></a>", Code::Syntax),
            (b"\xff", Code::Encoding),
            (b"<!DOCTYPE a><recording/>", Code::DocumentType),
            (b"<html/>", Code::NotRecording),
            (&too_large, Code::TooLarge),
        ] {
            let findings = unreadable(parse(body).unwrap_err());
            let worst = findings.worst().unwrap();
            assert_eq!((worst.code, worst.code.severity()), (code, Severity::Critical));
        }
    }

    #[test]
    fn the_worst_is_the_first_of_its_severity() {
        let content =
            "<stream stream_id='u'/><participant participant_id='a'/><participant participant_id='b'/>";
        let findings = check(&body(content), None, &[]);
        assert_eq!(findings.worst().unwrap().element, "participant[a]");
        let sentence = findings.worst().unwrap().sentence();
        assert_eq!(
            sentence,
            "metadata.participant.missing-aor at participant[a] '': a participant has a nameID with an aor (RFC 7865 6.5.1)"
        );
        assert_eq!(Findings::default().worst(), None);
    }

    /// More than a body can hold, and nothing in it refers to anything.
    #[test]
    fn twenty_thousand_dangling_references_are_quick_and_few() {
        let mut body = Body::default();
        for n in 0..20_000 {
            let [id, other, stream] = ["p", "q", "t"].map(|kind| format!("{kind}{n}"));
            body.metadata.participants.push(Participant { id, ..Participant::default() });
            let sends = vec![stream.clone()];
            let association =
                StreamAssociation { participant_id: other, sends, ..StreamAssociation::default() };
            body.metadata.associations.push(association);
        }
        #[allow(clippy::disallowed_methods)]
        let start = Instant::now();
        let findings = check(&body, None, &[]);
        assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
        let times = |code| findings.iter().filter(|it| it.code == code).map(|it| it.times).sum::<u32>();
        for code in [Code::MissingAor, Code::SenderUnknown, Code::SentUnknown] {
            assert_eq!(times(code), 20_000);
        }
        assert_eq!(findings.iter().count(), 3 * FINDINGS_PER_CODE + 1);
    }

    proptest! {
        #[test]
        fn a_damaged_document_has_few_findings_of_bounded_length(
            which in 0usize..12, damage in prop::collection::vec((any::<prop::sample::Index>(), 0x20u8..0x7f), 1..6),
            labels in prop::collection::vec(prop::option::of("[a-c1-3]{0,2}"), 0..5),
        ) {
            let mut xml = invites().nth(which).unwrap().metadata().to_vec();
            for (at, byte) in damage {
                let at = at.index(xml.len());
                xml[at] = byte;
            }
            let media: Vec<Media> = labels.iter().map(|label| Media { label: label.as_deref(), used: true }).collect();
            let findings = match parse(&xml) {
                Ok(body) => check(&body, None, &media),
                Err(error) => unreadable(error),
            };
            prop_assert!(findings.iter().count() <= FINDINGS_PER_CODE * Code::ALL.len());
            for finding in findings.iter() {
                prop_assert!(finding.value.len() <= FINDING_TEXT_MAX && finding.element.len() <= FINDING_TEXT_MAX + 64);
                prop_assert!(finding.sentence().is_ascii());
            }
        }
    }
}
