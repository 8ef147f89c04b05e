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
    /// `handling=optional` (RFC 3204 §4): the message stands even when this part cannot be understood.
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
