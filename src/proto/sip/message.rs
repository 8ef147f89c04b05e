//! One message, read in place: the start line, the spans of its header fields, its body.

use memchr::memchr;
use std::ops::Range;

use super::header::{CSeq, NameAddr, SipUri, Via};
use super::lexical;
use super::name::{HeaderName, Method};
use crate::limits;

/// What is wrong with a message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Malformed {
    /// No empty line ends the header.
    Truncated,
    /// Start line and header are over `SIP_HEAD_MAX`.
    HeadTooLarge,
    /// Neither a request line nor a status line.
    StartLine,
    /// A SIP version other than 2.0.
    Version,
    /// A line that is not `name: value`.
    HeaderLine,
    /// Over `SIP_HEADERS_MAX`.
    TooManyHeaders,
    /// Content-Length is not one decimal number.
    ContentLength,
    /// Fewer bytes follow the header than Content-Length says (RFC 3261 §18.3).
    ShortBody,
    /// A request was expected.
    NotARequest,
    /// A Request-URI that carries header fields (RFC 3261 §19.1.1, Table 1).
    RequestUri,
    /// CSeq names another method than the request line (RFC 3261 §8.1.1.5).
    CSeqMethod,
    /// A mandatory field is not there.
    Missing(HeaderName),
    /// A field that may stand once stands twice.
    Repeated(HeaderName),
    /// The value does not follow the grammar of its field.
    Field(HeaderName),
}

impl Malformed {
    /// For the reason phrase of the 400.
    pub const fn text(self) -> &'static str {
        match self {
            Malformed::Truncated => "Header not terminated",
            Malformed::HeadTooLarge => "Header too large",
            Malformed::StartLine => "Bad start line",
            Malformed::Version => "Version Not Supported",
            Malformed::HeaderLine => "Bad header line",
            Malformed::TooManyHeaders => "Too many header fields",
            Malformed::ContentLength => "Bad Content-Length",
            Malformed::ShortBody => "Body shorter than Content-Length",
            Malformed::NotARequest => "Not a request",
            Malformed::RequestUri => "Bad Request-URI",
            Malformed::CSeqMethod => "CSeq names another method",
            Malformed::Missing(name) => name.missing(),
            Malformed::Repeated(name) => name.repeated(),
            Malformed::Field(name) => name.bad(),
        }
    }

    /// The response code: 505 for another version (RFC 3261 §21.5.6), else 400.
    pub const fn code(self) -> u16 {
        match self {
            Malformed::Version => 505,
            _ => 400,
        }
    }

    /// Whether a response can be addressed at all. Errors of `parse_*` also need `Message::salvage` to find something.
    pub const fn answerable(self) -> bool {
        !matches!(
            self,
            Malformed::Truncated
                | Malformed::HeadTooLarge
                | Malformed::NotARequest
                | Malformed::Missing(HeaderName::Via)
        )
    }
}

/// The first line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start<'a> {
    Request { method: Method, method_text: &'a str, uri: &'a str },
    Response { code: u16, reason: &'a [u8] },
}

/// One header field line, folds included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header<'a> {
    pub id: HeaderName,
    /// As sent, possibly the compact form.
    pub name: &'a [u8],
    /// Without white space around it; inside, folds are as on the wire.
    pub value: &'a [u8],
}

/// A parsed message. It borrows the bytes and allocates nothing.
#[derive(Clone, Debug)]
pub struct Message<'a> {
    start: Start<'a>,
    headers: [Header<'a>; limits::SIP_HEADERS_MAX],
    count: usize,
    bytes: &'a [u8],
    body: Range<usize>,
}

/// A request whose mandatory fields are there, once each, readable and consistent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checked<'a> {
    pub method: Method,
    pub method_text: &'a str,
    pub uri: &'a str,
    /// The topmost.
    pub via: Via<'a>,
    pub from: NameAddr<'a>,
    pub to: NameAddr<'a>,
    /// The tag of From, empty when there is none (RFC 3261 §12.1.1: then it is null).
    pub from_tag: &'a str,
    pub to_tag: Option<&'a str>,
    pub call_id: &'a str,
    pub cseq: CSeq<'a>,
    /// The first Contact; `None` without one and for `*`.
    pub contact: Option<NameAddr<'a>>,
}

/// Start line and header fields, with all their line ends.
struct Head<'a> {
    lines: &'a [u8],
    /// Where the body begins.
    end: usize,
}

impl<'a> Head<'a> {
    fn find(bytes: &'a [u8]) -> Result<Head<'a>, Malformed> {
        // RFC 3261 §7.5.
        let begin = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n')).ok_or(Malformed::Truncated)?;
        let length = HeadScan::default().find(&bytes[begin..]).ok_or(Malformed::Truncated)?;
        if length > limits::SIP_HEAD_MAX {
            return Err(Malformed::HeadTooLarge);
        }
        Ok(Head { lines: &bytes[begin..begin + length], end: begin + length })
    }
}

/// Looks for the empty line that ends a header. It goes on where it stopped, so a stream is looked at once.
#[derive(Debug, Default)]
pub(super) struct HeadScan {
    line: usize,
    scanned: usize,
    /// Some lines end with CRLF, some with a bare LF.
    crlf: bool,
    bare_lf: bool,
}

impl HeadScan {
    /// `bytes` begin with the start line, and grow from call to call. The length of the header, empty line included.
    pub(super) fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        while let Some(offset) = memchr(b'\n', &bytes[self.scanned..]) {
            let line = &bytes[self.line..self.scanned + offset];
            self.scanned += offset + 1;
            self.line = self.scanned;
            match line.last() {
                Some(b'\r') => self.crlf = true,
                _ => self.bare_lf = true,
            }
            if matches!(line, b"" | b"\r") {
                return Some(self.scanned);
            }
        }
        self.scanned = bytes.len();
        None
    }

    pub(super) fn line_ends_differ(&self) -> bool {
        self.crlf && self.bare_lf
    }
}

/// The lines of a header without their line ends, folded ones as one (RFC 3261 §7.3.1), up to the empty line.
pub(super) fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = head;
    std::iter::from_fn(move || {
        let mut end = memchr(b'\n', rest)?;
        while let Some(b' ' | b'\t') = rest.get(end + 1) {
            end += 1 + memchr(b'\n', &rest[end + 1..])?;
        }
        let line = &rest[..end];
        rest = &rest[end + 1..];
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    })
    .take_while(|line| !line.is_empty())
}

/// The number in Content-Length, if the field is there. Repeated, signed or overlong is an error even where the values
/// agree: elements before us may have read another one.
pub(super) fn content_length<'h>(
    headers: impl Iterator<Item = Header<'h>>,
) -> Result<Option<usize>, Malformed> {
    let mut values = headers.filter(|header| header.id == HeaderName::ContentLength);
    let Some(header) = values.next() else {
        return Ok(None);
    };
    let length = lexical::number(header.value).and_then(|length| usize::try_from(length).ok());
    match (length, values.next()) {
        (Some(length), None) => Ok(Some(length)),
        _ => Err(Malformed::ContentLength),
    }
}

impl<'a> Start<'a> {
    fn parse(line: &'a [u8]) -> Result<Start<'a>, Malformed> {
        if memchr::memchr2(b'\r', b'\n', line).is_some() {
            return Err(Malformed::StartLine); // folded: the white space rule is for fields only
        }
        if is_sip_version(line) { Start::status(line) } else { Start::request(line) }
    }

    /// Exactly one SP between the three parts (RFC 3261 §7.1).
    fn request(line: &'a [u8]) -> Result<Start<'a>, Malformed> {
        let mut parts = line.split(|b| *b == b' ');
        let (Some(method), Some(uri), Some(version), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Malformed::StartLine);
        };
        let method_text = method_text(method).ok_or(Malformed::StartLine)?;
        let uri = lexical::uri(uri).ok_or(Malformed::StartLine)?;
        check_version(version)?;
        Ok(Start::Request { method: Method::parse(method), method_text, uri })
    }

    fn status(line: &'a [u8]) -> Result<Start<'a>, Malformed> {
        let mut parts = line.splitn(3, |b| *b == b' ');
        check_version(parts.next().unwrap_or_default())?;
        let code = parts.next().filter(|code| code.len() == 3).and_then(lexical::number);
        let code = code.filter(|code| (100..700).contains(code)).ok_or(Malformed::StartLine)?;
        // `code` has three digits.
        Ok(Start::Response { code: code as u16, reason: parts.next().unwrap_or_default() })
    }

    /// As much of a bad request line as an answer needs: the method.
    fn salvage(line: &'a [u8]) -> Option<Start<'a>> {
        if let Ok(start @ Start::Request { .. }) = Start::parse(line) {
            return Some(start);
        }
        let method = line.split(|b| *b == b' ').next()?;
        let method_text = method_text(method)?;
        Some(Start::Request { method: Method::parse(method), method_text, uri: "" })
    }
}

fn method_text(method: &[u8]) -> Option<&str> {
    if lexical::is_token(method) { std::str::from_utf8(method).ok() } else { None }
}

fn is_sip_version(text: &[u8]) -> bool {
    text.get(..4).is_some_and(|prefix| prefix.eq_ignore_ascii_case(b"SIP/"))
}

/// `SIP/2.0`, in any case (RFC 3261 §7.1).
fn check_version(text: &[u8]) -> Result<(), Malformed> {
    if !is_sip_version(text) {
        return Err(Malformed::StartLine);
    }
    match &text[4..] {
        b"2.0" => Ok(()),
        [b'0'..=b'9', rest @ ..] if rest.iter().all(|b| b.is_ascii_digit() || *b == b'.') => {
            Err(Malformed::Version)
        }
        _ => Err(Malformed::StartLine),
    }
}

impl<'a> Header<'a> {
    /// A line without its end. White space before the colon is legal (RFC 3261 §25.1, HCOLON).
    pub(super) fn parse(line: &'a [u8]) -> Result<Header<'a>, Malformed> {
        let colon = memchr(b':', line).ok_or(Malformed::HeaderLine)?;
        let name = trim_end_on_line(&line[..colon]);
        let value = &line[colon + 1..];
        if !lexical::is_token(name) || has_bare_cr(value) {
            return Err(Malformed::HeaderLine);
        }
        Ok(Header { id: HeaderName::parse(name), name, value: lexical::trim(value) })
    }
}

/// Without blanks and tabs, but with line ends: a field name is never folded.
fn trim_end_on_line(mut name: &[u8]) -> &[u8] {
    while let [rest @ .., b' ' | b'\t'] = name {
        name = rest;
    }
    name
}

/// A CR that ends no line: some elements take it for a line end, so it may hide a field.
fn has_bare_cr(value: &[u8]) -> bool {
    memchr::memchr_iter(b'\r', value).any(|at| value.get(at + 1) != Some(&b'\n'))
}

impl<'a> Message<'a> {
    /// A datagram holds one message: without Content-Length the body goes to its end, bytes beyond the body are
    /// discarded, a body that is cut short is an error (RFC 3261 §18.3).
    pub fn parse_datagram(bytes: &'a [u8]) -> Result<Message<'a>, Malformed> {
        let mut message = Message::parse_head(bytes)?;
        let rest = message.body.len();
        let length = content_length(message.headers().iter().copied())?.unwrap_or(rest);
        if length > rest {
            return Err(Malformed::ShortBody);
        }
        message.body.end = message.body.start + length;
        Ok(message)
    }

    /// Exactly one message, as the framer cuts it: Content-Length is there and says what is there.
    pub fn parse_framed(bytes: &'a [u8]) -> Result<Message<'a>, Malformed> {
        let message = Message::parse_head(bytes)?;
        match content_length(message.headers().iter().copied())? {
            None => Err(Malformed::Missing(HeaderName::ContentLength)),
            Some(length) if length > message.body.len() => Err(Malformed::ShortBody),
            Some(length) if length < message.body.len() => Err(Malformed::ContentLength),
            Some(_) => Ok(message),
        }
    }

    /// What can be read of a request that `parse_*` refused, so that it can be answered: the method and every readable
    /// header line, no body. `None` when nobody can or may be answered: a response, an ACK, no Via, no end of the
    /// header.
    pub fn salvage(bytes: &'a [u8]) -> Option<Message<'a>> {
        let head = Head::find(bytes).ok()?;
        let mut lines = lines(head.lines);
        let start = Start::salvage(lines.next()?)?;
        let mut message = Message::begin(start, bytes, bytes.len());
        for header in lines.filter_map(|line| Header::parse(line).ok()).take(limits::SIP_HEADERS_MAX) {
            message.push(header).ok()?;
        }
        let acknowledges = matches!(start, Start::Request { method: Method::Ack, .. });
        (!acknowledges && message.first(HeaderName::Via).is_some()).then_some(message)
    }

    /// Everything but the length of the body, which is what follows the header.
    fn parse_head(bytes: &'a [u8]) -> Result<Message<'a>, Malformed> {
        let head = Head::find(bytes)?;
        let mut lines = lines(head.lines);
        let start = Start::parse(lines.next().unwrap_or_default())?;
        let mut message = Message::begin(start, bytes, head.end);
        for line in lines {
            message.push(Header::parse(line)?)?;
        }
        Ok(message)
    }

    fn begin(start: Start<'a>, bytes: &'a [u8], body: usize) -> Message<'a> {
        let none = Header { id: HeaderName::Other, name: b"", value: b"" };
        Message { start, headers: [none; limits::SIP_HEADERS_MAX], count: 0, bytes, body: body..bytes.len() }
    }

    fn push(&mut self, header: Header<'a>) -> Result<(), Malformed> {
        *self.headers.get_mut(self.count).ok_or(Malformed::TooManyHeaders)? = header;
        self.count += 1;
        Ok(())
    }

    pub fn start(&self) -> Start<'a> {
        self.start
    }

    pub fn headers(&self) -> &[Header<'a>] {
        &self.headers[..self.count]
    }

    /// The values of all lines of this field, in order.
    pub fn all(&self, id: HeaderName) -> impl Iterator<Item = &'a [u8]> + '_ {
        self.headers().iter().filter(move |header| header.id == id).map(|header| header.value)
    }

    pub fn first(&self, id: HeaderName) -> Option<&'a [u8]> {
        self.all(id).next()
    }

    /// The first value of a field by its name, for those without a `HeaderName`.
    pub fn other(&self, name: &str) -> Option<&'a [u8]> {
        self.headers()
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name.as_bytes()))
            .map(|header| header.value)
    }

    /// The items of a comma-separated field over all its lines: option tags, media types. One that is not UTF-8 comes
    /// as U+FFFD: unknown rather than absent.
    pub fn tokens(&self, id: HeaderName) -> impl Iterator<Item = &'a str> + '_ {
        self.items(id).map(|item| std::str::from_utf8(item).unwrap_or("\u{fffd}"))
    }

    fn items(&self, id: HeaderName) -> impl Iterator<Item = &'a [u8]> + '_ {
        self.all(id).flat_map(|value| lexical::split(value, b','))
    }

    /// The topmost Via.
    pub fn via(&self) -> Result<Via<'a>, Malformed> {
        let value = self.first(HeaderName::Via).ok_or(Malformed::Missing(HeaderName::Via))?;
        Via::parse(lexical::split_first(value, b',').0)
    }

    /// Via values over all lines.
    pub fn via_count(&self) -> usize {
        self.items(HeaderName::Via).count()
    }

    pub fn from(&self) -> Result<NameAddr<'a>, Malformed> {
        self.address(HeaderName::From)
    }

    pub fn to(&self) -> Result<NameAddr<'a>, Malformed> {
        self.address(HeaderName::To)
    }

    fn address(&self, id: HeaderName) -> Result<NameAddr<'a>, Malformed> {
        NameAddr::parse(self.single(id)?).map_err(|_| Malformed::Field(id))
    }

    /// The value of a field that stands exactly once.
    fn single(&self, id: HeaderName) -> Result<&'a [u8], Malformed> {
        let mut values = self.all(id);
        let value = values.next().ok_or(Malformed::Missing(id))?;
        if values.next().is_some() { Err(Malformed::Repeated(id)) } else { Ok(value) }
    }

    /// The first Contact; `None` without one and for `*`.
    pub fn contact(&self) -> Result<Option<NameAddr<'a>>, Malformed> {
        match self.first(HeaderName::Contact).map(|value| lexical::split_first(value, b',').0) {
            None | Some(b"*") => Ok(None),
            Some(value) => {
                NameAddr::parse(value).map(Some).map_err(|_| Malformed::Field(HeaderName::Contact))
            }
        }
    }

    /// Record-Route values, topmost first, each as sent and ready for a Route field or `NameAddr::parse`.
    /// Those that are not UTF-8 are left out; `check_request` refuses them.
    pub fn record_routes(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.items(HeaderName::RecordRoute).filter_map(|item| std::str::from_utf8(item).ok())
    }

    pub fn cseq(&self) -> Result<CSeq<'a>, Malformed> {
        CSeq::parse(self.single(HeaderName::CSeq)?)
    }

    /// Compared byte by byte (RFC 3261 §20.8).
    pub fn call_id(&self) -> Result<&'a str, Malformed> {
        let value = self.single(HeaderName::CallId)?;
        let sound = !value.is_empty() && value.iter().all(|b| *b > b' ' && *b != 0x7f);
        let text = std::str::from_utf8(value).ok().filter(|_| sound);
        text.ok_or(Malformed::Field(HeaderName::CallId))
    }

    /// Type and parameters as sent. `None` also when it is not UTF-8.
    pub fn content_type(&self) -> Option<&'a str> {
        std::str::from_utf8(self.first(HeaderName::ContentType)?).ok()
    }

    pub fn body(&self) -> &'a [u8] {
        &self.bytes[self.body.clone()]
    }

    /// Where the body is in the bytes that were parsed.
    pub fn body_range(&self) -> Range<usize> {
        self.body.clone()
    }

    /// Parse, don't validate: the mandatory fields, typed. The error is answered with its `code` if it is `answerable`.
    /// Max-Forwards is not asked for (RFC 2543 had none mandatory, and a UAS has no use for it), nor is a tag in From
    /// (RFC 3261 §12.1.1).
    pub fn check_request(&self) -> Result<Checked<'a>, Malformed> {
        let Start::Request { method, method_text, uri } = self.start else {
            return Err(Malformed::NotARequest);
        };
        let (via, cseq) = (self.via()?, self.cseq()?);
        let (from, to) = (self.from()?, self.to()?);
        let (call_id, contact) = (self.call_id()?, self.contact()?);
        if cseq.text != method_text {
            return Err(Malformed::CSeqMethod);
        }
        if SipUri::parse(uri).is_some_and(|uri| uri.headers.is_some()) {
            return Err(Malformed::RequestUri);
        }
        self.check_body_and_routes()?;
        let (from_tag, to_tag) = (from.tag().unwrap_or(""), to.tag());
        Ok(Checked { method, method_text, uri, via, from, to, from_tag, to_tag, call_id, cseq, contact })
    }

    fn check_body_and_routes(&self) -> Result<(), Malformed> {
        if self.first(HeaderName::ContentType).is_some() {
            self.single(HeaderName::ContentType)?;
        }
        let mut routes = self.items(HeaderName::RecordRoute);
        let sound = routes.all(|route| NameAddr::parse(route).is_ok() && std::str::from_utf8(route).is_ok());
        if sound { Ok(()) } else { Err(Malformed::Field(HeaderName::RecordRoute)) }
    }
}
