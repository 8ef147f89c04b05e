//! Bodies of SIP messages: multipart/mixed and its parts (RFC 2046 §5.1, RFC 5621).
//!
//! Reading is lenient where deployed SRCs are careless: parts in any order, bare LF, blanks after a delimiter, a missing
//! last line end or close delimiter, a preamble, parts without headers. A Content-Length inside a part is not looked at.

use bytes::Bytes;
use memchr::{memchr, memmem};
use std::fmt;

use crate::limits::{BOUNDARY_MAX, MULTIPART_PARTS_MAX};

/// One part of a body, or the whole of a body that is not multipart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// Media type in lower case, without parameters or blanks: `application/sdp`. `text/plain` when the part has none
    /// (RFC 2046 §5.1).
    pub content_type: String,
    /// Disposition type in lower case: `session`, `recording-session`.
    pub disposition: Option<String>,
    /// `handling=optional` (RFC 3261 §20.11): the message stands even when this part cannot be understood.
    pub handling_optional: bool,
    /// A slice of the message, not a copy.
    pub body: Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MultipartError {
    /// A multipart type without a boundary parameter.
    BoundaryMissing,
    /// Empty, or longer than [`BOUNDARY_MAX`].
    BoundaryLength,
    /// The boundary does not occur in the body.
    DelimiterMissing,
    /// More than [`MULTIPART_PARTS_MAX`], nested ones included.
    TooManyParts,
}

impl fmt::Display for MultipartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MultipartError::BoundaryMissing => "multipart without a boundary parameter",
            MultipartError::BoundaryLength => "multipart boundary is empty or too long",
            MultipartError::DelimiterMissing => "multipart boundary does not occur in the body",
            MultipartError::TooManyParts => "multipart has too many parts",
        })
    }
}

impl std::error::Error for MultipartError {}

/// The media type of a Content-Type value, in lower case, without parameters or blanks.
pub fn media_type(content_type: &[u8]) -> String {
    token(content_type)
}

/// The boundary parameter of a Content-Type value, quoted or not.
pub fn boundary(content_type: &[u8]) -> Option<Vec<u8>> {
    parameter(content_type, b"boundary")
}

/// The parts of a body in their order. A body that is not multipart is one part; a multipart inside a multipart is
/// replaced by its parts, one level deep.
pub fn parts(content_type: &[u8], body: &Bytes) -> Result<Vec<Part>, MultipartError> {
    let content_type_token = media_type(content_type);
    if !is_multipart(&content_type_token) {
        let whole = Part {
            content_type: content_type_token,
            disposition: None,
            handling_optional: false,
            body: body.clone(),
        };
        return Ok(vec![whole]);
    }
    let mut found = Vec::with_capacity(4);
    for section in sections(content_type, body)? {
        let (head, content) = head_and_content(section);
        let nested = field(head, b"content-type").filter(|value| is_multipart(&media_type(value)));
        // What cannot be split stays as it is: the other parts are still good.
        match nested.and_then(|value| sections(value, content).ok()) {
            Some(inner) => inner.into_iter().try_for_each(|section| add(&mut found, section, body))?,
            None => add(&mut found, section, body)?,
        }
    }
    Ok(found)
}

fn add(found: &mut Vec<Part>, section: &[u8], body: &Bytes) -> Result<(), MultipartError> {
    if found.len() == MULTIPART_PARTS_MAX {
        return Err(MultipartError::TooManyParts);
    }
    let (head, content) = head_and_content(section);
    let disposition = field(head, b"content-disposition");
    let handling = disposition.and_then(|value| parameter(value, b"handling"));
    found.push(Part {
        content_type: field(head, b"content-type").map_or_else(|| "text/plain".to_owned(), media_type),
        disposition: disposition.map(token),
        handling_optional: handling.is_some_and(|value| value.eq_ignore_ascii_case(b"optional")),
        body: body.slice_ref(content),
    });
    Ok(())
}

fn is_multipart(media_type: &str) -> bool {
    media_type.starts_with("multipart/")
}

/// What is between the delimiters, heads included.
fn sections<'a>(content_type: &[u8], body: &'a [u8]) -> Result<Vec<&'a [u8]>, MultipartError> {
    let boundary = boundary(content_type).ok_or(MultipartError::BoundaryMissing)?;
    if boundary.is_empty() || boundary.len() > BOUNDARY_MAX {
        return Err(MultipartError::BoundaryLength);
    }
    let dash_boundary = [b"--", boundary.as_slice()].concat();
    let finder = memmem::Finder::new(&dash_boundary);
    let mut delimiter = next_delimiter(&finder, body).ok_or(MultipartError::DelimiterMissing)?;
    let mut found = Vec::with_capacity(4);
    while !delimiter.close {
        let rest = delimiter.after;
        let next = next_delimiter(&finder, rest);
        let section = next.as_ref().map_or(rest, |next| next.before);
        // The end of the body right after a delimiter stands for a close delimiter that is missing.
        if !section.is_empty() {
            if found.len() == MULTIPART_PARTS_MAX {
                return Err(MultipartError::TooManyParts);
            }
            found.push(section);
        }
        match next {
            Some(next) => delimiter = next,
            None => break,
        }
    }
    Ok(found)
}

struct Delimiter<'a> {
    /// Up to the line end that belongs to the delimiter (RFC 2046 §5.1.1).
    before: &'a [u8],
    /// From the line after it.
    after: &'a [u8],
    close: bool,
}

fn next_delimiter<'a>(finder: &memmem::Finder<'_>, body: &'a [u8]) -> Option<Delimiter<'a>> {
    let mut from = 0;
    while let Some(found) = finder.find(&body[from..]) {
        let start = from + found;
        from = start + finder.needle().len();
        if start > 0 && body[start - 1] != b'\n' {
            continue;
        }
        let (close, rest) =
            body[from..].strip_prefix(b"--").map_or((false, &body[from..]), |rest| (true, rest));
        let line_end = memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
        // Anything but blanks: a longer boundary that begins like this one.
        if rest[..line_end].iter().all(|&byte| is_blank(byte)) {
            return Some(Delimiter {
                before: without_line_end(&body[..start]),
                after: &rest[line_end..],
                close,
            });
        }
    }
    None
}

fn without_line_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// A section's header fields and what follows the empty line. Without an empty line everything is head.
fn head_and_content(section: &[u8]) -> (&[u8], &[u8]) {
    let mut start = 0;
    while let Some(length) = memchr(b'\n', &section[start..]) {
        let line = &section[start..start + length];
        let next = start + length + 1;
        if line.is_empty() || line == b"\r" {
            return (&section[..start], &section[next..]);
        }
        start = next;
    }
    (section, &[])
}

/// The value of the first field with this name (in lower case), folds included.
fn field<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let mut start = 0;
    while start < head.len() {
        let end = field_end(head, start);
        let line = &head[start..end];
        if let Some(colon) = memchr(b':', line)
            && line[..colon].trim_ascii().eq_ignore_ascii_case(name)
        {
            return Some(line[colon + 1..].trim_ascii());
        }
        start = end;
    }
    None
}

/// Where the field that starts at `start` ends: after the first line that no folded line follows.
fn field_end(head: &[u8], start: usize) -> usize {
    let mut end = start;
    while let Some(length) = memchr(b'\n', &head[end..]) {
        end += length + 1;
        if !matches!(head.get(end), Some(b' ' | b'\t')) {
            return end;
        }
    }
    head.len()
}

/// What stands before the parameters, in lower case, without blanks (RFC 3261 §25.1 allows them around the slash).
fn token(value: &[u8]) -> String {
    let before_parameters = value.split(|&byte| byte == b';').next().unwrap_or_default();
    let visible = before_parameters.iter().filter(|&&byte| !is_blank(byte));
    visible.map(|byte| byte.to_ascii_lowercase() as char).collect()
}

/// The value of a parameter (its name in lower case), without its quotes.
fn parameter(value: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let mut rest = after_unquoted(value, b';')?;
    loop {
        let (parameter, next) = match after_unquoted(rest, b';') {
            Some(next) => (&rest[..rest.len() - next.len() - 1], Some(next)),
            None => (rest, None),
        };
        if let Some(equals) = memchr(b'=', parameter)
            && parameter[..equals].trim_ascii().eq_ignore_ascii_case(name)
        {
            return Some(unquoted(parameter[equals + 1..].trim_ascii()));
        }
        rest = next?;
    }
}

/// What follows the first `byte` outside quotes.
fn after_unquoted(value: &[u8], byte: u8) -> Option<&[u8]> {
    let mut quoted = false;
    let mut escaped = false;
    for (at, &current) in value.iter().enumerate() {
        match current {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if current == byte && !quoted => return Some(&value[at + 1..]),
            _ => {}
        }
    }
    None
}

/// A quoted-string without its quotes and backslashes; anything else as it is.
fn unquoted(value: &[u8]) -> Vec<u8> {
    let Some(inner) = value.strip_prefix(b"\"") else { return value.to_vec() };
    let mut plain = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'"' => break,
            b'\\' => plain.extend(bytes.next()),
            _ => plain.push(byte),
        }
    }
    plain
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::fixtures::{invite, invites};
    use proptest::prelude::*;

    fn split(content_type: &str, body: &str) -> Result<Vec<Part>, MultipartError> {
        parts(content_type.as_bytes(), &Bytes::copy_from_slice(body.as_bytes()))
    }

    fn bodies(content_type: &str, body: &str) -> Vec<String> {
        let found = split(content_type, body).unwrap();
        found.iter().map(|part| String::from_utf8(part.body.to_vec()).unwrap()).collect()
    }

    const FOO: &str = "multipart/mixed;boundary=foo";

    #[test]
    fn media_types() {
        assert_eq!(media_type(b"application/sdp"), "application/sdp");
        assert_eq!(media_type(b" Application / SDP ;charset=\"a/b\""), "application/sdp");
        assert_eq!(media_type(b"multipart/mixed;\r\n boundary=x"), "multipart/mixed");
        assert_eq!(media_type(b""), "");
    }

    #[test]
    fn boundaries() {
        assert_eq!(boundary(b"multipart/mixed;boundary=foo").unwrap(), b"foo");
        assert_eq!(boundary(b"multipart/mixed ; charset=x;\r\n\tBoundary = foo ").unwrap(), b"foo");
        assert_eq!(
            boundary(br#"multipart/mixed; boundary="----=_Part_7;1=2""#).unwrap(),
            b"----=_Part_7;1=2"
        );
        assert_eq!(boundary(br#"multipart/mixed; a="x\"; boundary=no"; boundary="a\"b""#).unwrap(), b"a\"b");
        assert_eq!(boundary(b"multipart/mixed; xboundary=foo"), None);
        assert_eq!(boundary(b"multipart/mixed"), None);
    }

    #[test]
    fn a_plain_body_is_one_part() {
        let body = Bytes::from_static(b"v=0\r\n");
        let found = parts(b"Application/SDP", &body).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].content_type, "application/sdp");
        assert_eq!(found[0].body.as_ptr(), body.as_ptr());
    }

    #[test]
    fn parts_are_slices_of_the_body() {
        let body = Bytes::from_static(b"--foo\r\n\r\none\r\n--foo--");
        let found = parts(FOO.as_bytes(), &body).unwrap();
        assert_eq!(&found[0].body[..], b"one");
        assert_eq!(found[0].body.as_ptr(), body[9..].as_ptr());
    }

    #[test]
    fn heads_are_read() {
        let body = "--foo\r\nCONTENT-TYPE:Application/RS-Metadata+XML;\r\n charset=utf-8\r\ncontent-disposition :\r\n\tRecording-Session ; Handling=\"Optional\"\r\nContent-Length: 999\r\n\r\n<x/>\r\n--foo--\r\n";
        let found = split(FOO, body).unwrap();
        assert_eq!(found[0].content_type, "application/rs-metadata+xml");
        assert_eq!(found[0].disposition.as_deref(), Some("recording-session"));
        assert!(found[0].handling_optional);
        assert_eq!(&found[0].body[..], b"<x/>");
    }

    #[test]
    fn handling_is_required_unless_said_otherwise() {
        let found =
            split(FOO, "--foo\nContent-Disposition: session;handling=required\n\nx\n--foo\n\ny\n--foo--")
                .unwrap();
        assert_eq!(found.iter().map(|part| part.handling_optional).collect::<Vec<_>>(), [false, false]);
        assert_eq!(found[1].content_type, "text/plain");
        assert_eq!(found[1].disposition, None);
    }

    #[test]
    fn careless_delimiters() {
        for (what, body) in [
            ("strict", "--foo\r\n\r\none\r\n--foo\r\n\r\ntwo\r\n--foo--\r\n"),
            ("bare LF", "--foo\n\none\n--foo\n\ntwo\n--foo--\n"),
            ("blanks", "--foo \t\r\n\r\none\r\n--foo  \r\n\r\ntwo\r\n--foo-- \r\n"),
            ("no last line end", "--foo\r\n\r\none\r\n--foo\r\n\r\ntwo\r\n--foo--"),
            ("no close delimiter", "--foo\r\n\r\none\r\n--foo\r\n\r\ntwo"),
            (
                "preamble and epilogue",
                "one\r\n--foo\r\n\r\none\r\n--foo\r\n\r\ntwo\r\n--foo--\r\n--foo\r\n\r\nthree",
            ),
            ("empty line first", "\r\n--foo\r\n\r\none\r\n--foo\r\n\r\ntwo\r\n--foo--\r\n"),
            ("delimiter last", "--foo\r\n\r\none\r\n--foo\r\n\r\ntwo\r\n--foo\r\n"),
        ] {
            assert_eq!(bodies(FOO, body), ["one", "two"], "{what}");
        }
    }

    #[test]
    fn text_that_looks_like_a_delimiter() {
        let body = "--foo\r\n\r\n--foobar\r\nx--foo\r\n--fo\r\n--foo--bar\r\n--foo--\r\n";
        assert_eq!(bodies(FOO, body), ["--foobar\r\nx--foo\r\n--fo\r\n--foo--bar"]);
    }

    #[test]
    fn a_head_without_content_is_an_empty_part() {
        let found = split(FOO, "--foo\r\nContent-Type: application/sdp\r\n--foo--").unwrap();
        assert_eq!(found[0].content_type, "application/sdp");
        assert!(found[0].body.is_empty());
    }

    #[test]
    fn binary_content_is_kept_bit_for_bit() {
        let binary: Vec<u8> = (0..=255).chain(*b"\r\n\r\n--other\r\n").collect();
        let body = [b"--foo\r\nContent-Type: application/octet-stream\r\n\r\n", &binary[..], b"\r\n--foo--"]
            .concat();
        let found = parts(FOO.as_bytes(), &Bytes::from(body)).unwrap();
        assert_eq!(&found[0].body[..], &binary[..]);
    }

    #[test]
    fn a_nested_multipart_is_flattened_once() {
        let inner = "--in\r\nContent-Type: multipart/mixed;boundary=deep\r\n\r\n--deep\r\n\r\nx\r\n--deep--\r\n--in\r\n\r\ntwo\r\n--in--";
        let body = format!(
            "--foo\r\n\r\none\r\n--foo\r\nContent-Type: multipart/related; boundary=in\r\n\r\n{inner}\r\n--foo\r\nContent-Type: multipart/mixed\r\n\r\nthree\r\n--foo--"
        );
        assert_eq!(bodies(FOO, &body), ["one", "--deep\r\n\r\nx\r\n--deep--", "two", "three"]);
    }

    #[test]
    fn limits_and_refusals() {
        assert_eq!(split("multipart/mixed", "--foo--"), Err(MultipartError::BoundaryMissing));
        assert_eq!(split("multipart/mixed;boundary=\"\"", "--"), Err(MultipartError::BoundaryLength));
        let long = format!("multipart/mixed;boundary={}", "b".repeat(BOUNDARY_MAX + 1));
        assert_eq!(split(&long, ""), Err(MultipartError::BoundaryLength));
        assert_eq!(split(FOO, "v=0\r\n"), Err(MultipartError::DelimiterMissing));
        assert_eq!(split(FOO, "--foo--"), Ok(vec![]));
        let many = |count: usize| "--foo\r\n\r\nx\r\n".repeat(count);
        assert_eq!(split(FOO, &many(MULTIPART_PARTS_MAX)).unwrap().len(), MULTIPART_PARTS_MAX);
        assert_eq!(split(FOO, &many(MULTIPART_PARTS_MAX + 1)), Err(MultipartError::TooManyParts));
    }

    #[test]
    fn nested_parts_count_against_the_limit() {
        let inner = "--in\r\n\r\nx\r\n".repeat(MULTIPART_PARTS_MAX);
        let body = format!(
            "--foo\r\nContent-Type: multipart/mixed;boundary=in\r\n\r\n{inner}\r\n--foo\r\n\r\ny\r\n--foo--"
        );
        assert_eq!(split(FOO, &body), Err(MultipartError::TooManyParts));
    }

    #[test]
    fn every_source_has_its_sdp_and_its_metadata() {
        for invite in invites() {
            let found = parts(invite.content_type, &invite.body).unwrap();
            assert_eq!(found.len(), if invite.name == "cisco-cube" { 3 } else { 2 }, "{}", invite.name);
            assert!(invite.sdp().starts_with(b"v=0"), "{}", invite.name);
            assert!(invite.metadata().trim_ascii().ends_with(b">"), "{}", invite.name);
        }
        let guarded = invite("cisco-cube").part("application/gtd");
        assert!(guarded.handling_optional);
        assert_eq!(guarded.disposition.as_deref(), Some("signal"));
    }

    fn text(body: &[u8]) -> String {
        String::from_utf8(body.to_vec()).unwrap()
    }

    /// What mailparse makes of the same body: media types and contents.
    fn oracle(content_type: &[u8], body: &[u8]) -> Vec<(String, String)> {
        let mail = [b"Content-Type: ", content_type, b"\r\n\r\n", body].concat();
        let mail = mailparse::parse_mail(&mail).unwrap();
        mail.subparts
            .iter()
            .map(|part| (part.ctype.mimetype.clone(), text(&part.get_body_raw().unwrap())))
            .collect()
    }

    fn ours(content_type: &[u8], body: &Bytes) -> Vec<(String, String)> {
        let found = parts(content_type, body).unwrap();
        found.into_iter().map(|part| (part.content_type, text(&part.body))).collect()
    }

    #[test]
    fn mailparse_finds_the_same_parts_in_the_fixtures() {
        for invite in invites() {
            let expected = oracle(invite.content_type, &invite.body);
            assert_eq!(ours(invite.content_type, &invite.body), expected, "{}", invite.name);
        }
    }

    proptest! {
        #[test]
        fn mailparse_finds_the_same_parts_in_made_up_bodies(
            sections in prop::collection::vec(("(application/sdp|text/plain|application/rs-metadata)", "([ -~]{0,12}\n){0,4}[a-z]{1,8}"), 1..6),
            line_end in "\r?\n",
            preamble in "(this is not a part\n)?",
            close in "(--b1--\n?)?",
        ) {
            let mut body = preamble;
            for (kind, content) in &sections {
                body.push_str(&format!("--b1\nContent-Type: {kind}\n\n{content}\n"));
            }
            body.push_str(&close);
            let body = Bytes::from(body.replace('\n', &line_end));
            let content_type = b"multipart/mixed; boundary=b1";
            let expected = oracle(content_type, &body);
            let found = ours(content_type, &body);
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn a_damaged_body_gives_parts_or_an_error(
            which in 0usize..12, cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let invite = invites().nth(which).unwrap();
            let mut body = invite.body[..cut.index(invite.body.len()) + 1].to_vec();
            let at = at.index(body.len());
            body[at] = byte;
            let body = Bytes::from(body);
            if let Ok(found) = parts(invite.content_type, &body) {
                let total: usize = found.iter().map(|part| part.body.len()).sum();
                prop_assert!(total <= body.len());
            }
        }
    }
}
