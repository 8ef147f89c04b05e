//! One message, read in place: the start line, the spans of its header fields, its body.

use memchr::memchr;
use std::ops::Range;
use std::time::Duration;

use super::header::{self, CSeq, NameAddr, SessionExpires, SipUri, Via};
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

    /// The response code: 505 for another version (RFC 3261 §21.5.6), 513 for more than there is room for (§21.5.7),
    /// else 400.
    pub const fn code(self) -> u16 {
        match self {
            Malformed::Version => 505,
            Malformed::HeadTooLarge | Malformed::TooManyHeaders => 513,
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

    /// Session-Expires. `None` also when it cannot be read: then nobody asks for a timer.
    pub fn session_expires(&self) -> Option<SessionExpires> {
        SessionExpires::parse(self.first(HeaderName::SessionExpires)?)
    }

    /// Retry-After (RFC 3261 §20.33), without its comment and parameters.
    pub fn retry_after(&self) -> Option<Duration> {
        let seconds = header::delta_seconds(&mut lexical::Cursor::new(self.other("Retry-After")?))?;
        Some(Duration::from_secs(seconds.into()))
    }

    /// Min-SE (RFC 4028 §5) in seconds.
    pub fn min_se(&self) -> Option<u32> {
        header::delta_seconds(&mut lexical::Cursor::new(self.first(HeaderName::MinSe)?))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4475 §3.1.1.1 in small: folds, compact names, blanks before colons, quotes, lists.
    const TORTUOUS: &str = "\r\n\r\nINVITE sip:vivekg@chair-dnrc.example.com;unknownparam sip/2.0\r\n\
        TO :\r\n sip:vivekg@chair-dnrc.example.com ;   tag    = 1918181833n\r\n\
        from   : \"J Rosenberg \\\\\\\"\"       <sip:jdrosen@example.com>\r\n  ;\r\n  tag = 98asjd8\r\n\
        Content-Length   :\r\n  4\r\n\
        i: wsinv.ndaksdj@192.0.2.1\r\n\
        cseq: 0009\r\n  INVITE\r\n\
        v  : SIP  / 2.0  / UDP 192.0.2.2;branch=390skdjuw, SIP/2.0/TCP spindle.example.com ;\r\n  branch  =   z9hG4bK9ikj8 , SIP/2.0/UDP 192.0.2.3\r\n\
        Via: SIP/2.0/UDP 192.0.2.4\r\n\
        require: siprec,,\r\n , \"a,b\"\r\nREQUIRE:timer\r\n\
        Record-Route: <sip:p1;lr>,\"p,2\" <sip:p2,x;lr>\r\n\
        Record-Route: <sip:p3;lr>\r\n\
        m:\"Quoted, string\" <sip:jdrosen@example.com;+sip.src>;newparam = newvalue ; q=0.33, <sip:other@h>\r\n\
        X-Odd:\r\n\
        c: application/sdp\r\n\r\nbodymore";

    #[test]
    fn a_tortuous_request_reads_as_meant() {
        let message = Message::parse_datagram(TORTUOUS.as_bytes()).unwrap();
        let checked = message.check_request().unwrap();
        assert_eq!(
            (checked.method, checked.uri),
            (Method::Invite, "sip:vivekg@chair-dnrc.example.com;unknownparam")
        );
        assert_eq!((checked.via.host, checked.via.branch), ("192.0.2.2", Some("390skdjuw")));
        assert_eq!((checked.from_tag, checked.to_tag), ("98asjd8", Some("1918181833n")));
        assert_eq!(checked.from.display, Some(r#"J Rosenberg \\\""#));
        assert_eq!((checked.call_id, checked.cseq.number), ("wsinv.ndaksdj@192.0.2.1", 9));
        let contact = checked.contact.unwrap();
        assert_eq!((contact.display, contact.uri_param("+sip.src")), (Some("Quoted, string"), Some("")));
        assert_eq!(message.via_count(), 4);
        assert_eq!(message.tokens(HeaderName::Require).collect::<Vec<_>>(), ["siprec", "\"a,b\"", "timer"]);
        let routes: Vec<_> = message.record_routes().collect();
        assert_eq!(routes, ["<sip:p1;lr>", "\"p,2\" <sip:p2,x;lr>", "<sip:p3;lr>"]);
        assert_eq!(
            (message.other("x-odd"), message.content_type()),
            (Some(&b""[..]), Some("application/sdp"))
        );
        assert_eq!(
            (message.body(), message.body_range()),
            (&b"body"[..], TORTUOUS.len() - 8..TORTUOUS.len() - 4)
        );
    }

    #[test]
    fn responses() {
        let start = |text: &'static str| Message::parse_datagram(text.as_bytes()).map(|m| m.start());
        let response = |code, reason: &'static str| Ok(Start::Response { code, reason: reason.as_bytes() });
        assert_eq!(start("SIP/2.0 200 OK then\r\n\r\n"), response(200, "OK then"));
        assert_eq!(start("sip/2.0 100 \r\n\r\n"), response(100, ""));
        assert_eq!(start("SIP/2.0 699\r\n\r\n"), response(699, ""));
        for text in [
            "SIP/2.0 700 x",
            "SIP/2.0 099 x",
            "SIP/2.0 20 x",
            "SIP/2.0 4294967301 x",
            "SIP/2.0  200 x",
            "SIP/2.0",
        ] {
            assert_eq!(
                start(Box::leak(format!("{text}\r\n\r\n").into_boxed_str())),
                Err(Malformed::StartLine),
                "{text}"
            );
        }
        let ok = Message::parse_datagram(b"SIP/2.0 200 OK\r\n\r\n").unwrap();
        assert_eq!(ok.check_request(), Err(Malformed::NotARequest));
    }

    fn with_start_line(line: &str) -> Result<(), Malformed> {
        Message::parse_datagram(format!("{line}\r\nTo: x\r\n\r\n").as_bytes()).map(|_| ())
    }

    #[test]
    fn start_lines() {
        assert_eq!(with_start_line("BYE sip:a@b SIP/2.0"), Ok(()));
        assert_eq!(with_start_line("FOO tel:+1 sIp/2.0"), Ok(()));
        assert_eq!(with_start_line("BYE sip:a@b SIP/3.0"), Err(Malformed::Version));
        assert_eq!(with_start_line("SIP/7.0 200 OK"), Err(Malformed::Version));
        for line in [
            "BYE  sip:a@b SIP/2.0",
            "BYE sip:a@b  SIP/2.0",
            "BYE sip:a@b SIP/2.0 ",
            " BYE sip:a@b SIP/2.0",
            "BYE <sip:a@b> SIP/2.0",
            "BYE sip:a@b;x=y z SIP/2.0",
            "BYE sip:a@b HTTP/1.1",
            "BYE sip:a@b SIP/x",
            "BYE sip:a@b",
            "BYE",
            "B@E sip:a@b SIP/2.0",
            "BYE sip:a@b\t SIP/2.0",
            "BYE sip:a@b SIP/2.0\r\n folded",
            "BYE sip:a\0@b SIP/2.0",
        ] {
            assert_eq!(with_start_line(line), Err(Malformed::StartLine), "{line:?}");
        }
    }

    fn with_line(line: &str) -> Result<usize, Malformed> {
        let text = format!("BYE sip:a@b SIP/2.0\r\n{line}\r\nTo: x\r\n\r\nbody");
        Message::parse_datagram(text.as_bytes()).map(|message| message.body().len())
    }

    #[test]
    fn header_lines() {
        assert_eq!(with_line("a \t: b"), Ok(4));
        for line in ["a b: c", "noname", ": c", "a\0: c", "a: b\rl: 1", "a: b\r", "a\r\n : b", "\u{e4}: b"] {
            assert_eq!(with_line(line), Err(Malformed::HeaderLine), "{line:?}");
        }
    }

    #[test]
    fn content_length_on_datagrams() {
        for (line, body) in
            [("x: y", 4), ("l: 4", 4), ("L:  2 ", 2), ("Content-Length\t:\r\n\t0", 0), ("l:0000000003", 3)]
        {
            assert_eq!(with_line(line), Ok(body), "{line:?}");
        }
        for line in ["l: 5", "l: 18446744073709551615"] {
            assert_eq!(with_line(line), Err(Malformed::ShortBody), "{line:?}");
        }
        for line in [
            "l: +4",
            "l: -1",
            "l:",
            "l: 4, 4",
            "l: 4\r\nl: 4",
            "l: 4\r\nContent-Length: 5",
            "l: 0x4",
            "l: 4 4",
            "l: 18446744073709551616",
        ] {
            assert_eq!(with_line(line), Err(Malformed::ContentLength), "{line:?}");
        }
    }

    #[test]
    fn framed_messages_have_exactly_their_body() {
        let parse = |text: &'static str| Message::parse_framed(text.as_bytes()).map(|m| m.body().len());
        assert_eq!(parse("BYE sip:a@b SIP/2.0\r\nl: 4\r\n\r\nbody"), Ok(4));
        assert_eq!(parse("BYE sip:a@b SIP/2.0\r\nl: 5\r\n\r\nbody"), Err(Malformed::ShortBody));
        assert_eq!(parse("BYE sip:a@b SIP/2.0\r\nl: 3\r\n\r\nbody"), Err(Malformed::ContentLength));
        assert_eq!(parse("BYE sip:a@b SIP/2.0\r\n\r\n"), Err(Malformed::Missing(HeaderName::ContentLength)));
    }

    /// AudioCodes sends LF alone, in header and body, and counts it so.
    #[test]
    fn bare_lf_in_datagrams() {
        let message =
            Message::parse_datagram(b"\nBYE sip:a@b SIP/2.0\nTo: <sip:x@y>\n ;tag=1\nl: 5\n\nv=0\n\nrest")
                .unwrap();
        assert_eq!((message.to().unwrap().tag(), message.body()), (Some("1"), &b"v=0\n\n"[..]));
        let mixed = Message::parse_datagram(b"BYE sip:a@b SIP/2.0\r\nTo: x\nFrom: y\r\n\nbody").unwrap();
        assert_eq!((mixed.headers().len(), mixed.body()), (2, &b"body"[..]));
    }

    #[test]
    fn truncated() {
        let whole = "BYE sip:a@b SIP/2.0\r\nTo: x\r\nl: 4\r\n\r\nbody";
        for end in 0..whole.len() {
            let error = Message::parse_datagram(&whole.as_bytes()[..end]).unwrap_err();
            let body = whole.len() - 4;
            assert_eq!(error, if end < body { Malformed::Truncated } else { Malformed::ShortBody }, "{end}");
        }
    }

    #[test]
    fn header_bomb() {
        let bomb = |lines: usize| {
            format!("BYE sip:a@b SIP/2.0\r\nv: SIP/2.0/UDP h\r\n{}\r\n", "a:\r\n".repeat(lines - 1))
        };
        assert!(Message::parse_datagram(bomb(limits::SIP_HEADERS_MAX).as_bytes()).is_ok());
        let over = bomb(limits::SIP_HEADERS_MAX + 1);
        assert_eq!(Message::parse_datagram(over.as_bytes()).unwrap_err(), Malformed::TooManyHeaders);
        assert_eq!(Message::salvage(over.as_bytes()).unwrap().headers().len(), limits::SIP_HEADERS_MAX);
    }

    #[test]
    fn oversized() {
        let long = format!("BYE sip:a@b SIP/2.0\r\na: {}\r\n\r\n", "x".repeat(limits::SIP_HEAD_MAX));
        assert_eq!(Message::parse_datagram(long.as_bytes()).unwrap_err(), Malformed::HeadTooLarge);
    }

    const REQUEST: &str = "BYE sip:a@b SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\nFrom: <sip:f@h>;tag=1\r\n\
        To: <sip:t@h>\r\nCall-ID: c\r\nCSeq: 1 BYE\r\n\r\n";

    fn check(text: &str) -> Result<(), Malformed> {
        Message::parse_datagram(text.as_bytes()).unwrap().check_request().map(|_| ())
    }

    #[test]
    fn mandatory_fields_once_each() {
        assert_eq!(check(REQUEST), Ok(()));
        for id in [HeaderName::Via, HeaderName::From, HeaderName::To, HeaderName::CallId, HeaderName::CSeq] {
            let line = REQUEST.lines().find(|line| line.starts_with(id.text())).unwrap();
            let without = REQUEST.replace(&format!("{line}\r\n"), "");
            assert_eq!(check(&without), Err(Malformed::Missing(id)));
            assert_eq!(Malformed::Missing(id).answerable(), id != HeaderName::Via);
            let twice = REQUEST.replace(line, &format!("{line}\r\n{line}"));
            let expected = if id == HeaderName::Via { Ok(()) } else { Err(Malformed::Repeated(id)) };
            assert_eq!(check(&twice), expected);
        }
    }

    #[test]
    fn fields_that_contradict() {
        let case = |from: &str, to: &str| check(&REQUEST.replace(from, to));
        assert_eq!(case("CSeq: 1 BYE", "CSeq: 1 INVITE"), Err(Malformed::CSeqMethod));
        assert_eq!(case("CSeq: 1 BYE", "CSeq: 1 bye"), Err(Malformed::CSeqMethod));
        assert_eq!(case("sip:a@b SIP", "sip:a@b?Route=x SIP"), Err(Malformed::RequestUri));
        assert_eq!(case("sip:a@b SIP", "sip:a?b@b SIP"), Ok(()));
        assert_eq!(case("Call-ID: c", "Call-ID: c d"), Err(Malformed::Field(HeaderName::CallId)));
        assert_eq!(case("Call-ID: c", "Call-ID:"), Err(Malformed::Field(HeaderName::CallId)));
        assert_eq!(case("Call-ID: c", "Call-ID: c\r\nm: *"), Ok(()));
        assert_eq!(case("Call-ID: c", "Call-ID: c\r\nm: x"), Err(Malformed::Field(HeaderName::Contact)));
        assert_eq!(
            case("Call-ID: c", "Call-ID: c\r\nc: a/b\r\nc: c/d"),
            Err(Malformed::Repeated(HeaderName::ContentType))
        );
        assert_eq!(
            case("Call-ID: c", "Call-ID: c\r\nRecord-Route: <sip:p;lr"),
            Err(Malformed::Field(HeaderName::RecordRoute))
        );
        assert_eq!(case(";tag=1", ""), Ok(()), "RFC 3261 §12.1.1");
        assert_eq!(Malformed::Repeated(HeaderName::CSeq).text(), "More than one CSeq");
    }

    #[test]
    fn salvage_keeps_what_an_answer_needs() {
        let lines = "Via: SIP/2.0/UDP h\r\nno header\r\nCSeq: 1 BYE\r\nl: 99\r\n\r\nbody";
        for start in
            ["BYE <sip:a@b> SIP/2.0", "BYE sip:a@b SIP/7.0", "BYE sip:a@b  SIP/2.0 ", "BYE sip:a@b SIP/2.0"]
        {
            let bytes = format!("{start}\r\n{lines}");
            assert!(Message::parse_datagram(bytes.as_bytes()).is_err());
            let message = Message::salvage(bytes.as_bytes()).unwrap();
            assert!(matches!(message.start(), Start::Request { method: Method::Bye, .. }));
            assert_eq!((message.headers().len(), message.body()), (3, &b""[..]), "{start}");
        }
        for start in ["SIP/2.0 200 OK", "ACK sip:a@b SIP/2.0 ", "\u{1}\u{2}"] {
            assert!(Message::salvage(format!("{start}\r\n{lines}").as_bytes()).is_none(), "{start}");
        }
        assert!(Message::salvage(b"BYE sip:a@b SIP/2.0\r\nTo: x\r\n\r\n").is_none(), "no Via");
        assert!(Message::salvage(b"BYE sip:a@b SIP/2.0\r\nVia: SIP/2.0/UDP h\r\n").is_none(), "no end");
    }

    #[test]
    fn method_and_header_names() {
        for method in Method::ALL {
            let expected = if *method == Method::Other { Method::Other } else { *method };
            assert_eq!(Method::parse(method.text().as_bytes()), expected);
        }
        assert_eq!(Method::ALL.len(), 15);
        assert_eq!(Method::parse(b"invite"), Method::Other);
        for (name, id) in [
            ("V", HeaderName::Via),
            ("k", HeaderName::Supported),
            ("x", HeaderName::SessionExpires),
            ("call-ID", HeaderName::CallId),
            ("q", HeaderName::Other),
            ("", HeaderName::Other),
        ] {
            assert_eq!(HeaderName::parse(name.as_bytes()), id, "{name}");
        }
    }

    /// 60 KB of separators, quotes and folds: linear work is over in a blink, quadratic work is 10⁹ steps a line.
    #[test]
    fn hostile_separators_cost_linear_time() {
        for filler in [",", ";", "\"", "<", "\\\"", "\r\n ", ",<", "\",", ";a", "=", "(", "a,"] {
            let value = filler.repeat(60_000 / filler.len());
            let text =
                format!("BYE sip:a@b SIP/2.0\r\nv: {value}x\r\nf: <sip:a@b>{value}x\r\nt: {value}x\r\n\r\n");
            for name in ["v", "f", "t", "m", "Record-Route", "k"] {
                let text = format!("BYE sip:a@b SIP/2.0\r\n{name}: <sip:a@b>{value}x\r\n\r\n");
                let message = Message::parse_datagram(text.as_bytes()).unwrap();
                let _ = (message.via(), message.from(), message.to(), message.contact());
                let _ = (
                    message.via_count(),
                    message.record_routes().count(),
                    message.tokens(HeaderName::Supported).count(),
                );
            }
            assert_eq!(Message::parse_datagram(text.as_bytes()).unwrap_err(), Malformed::HeadTooLarge);
        }
        let commas = ",".repeat(100_000);
        assert_eq!(lexical::split(commas.as_bytes(), b',').count(), 0);
        let params = format!("<sip:a@b>{}", ";a".repeat(100_000));
        assert_eq!(NameAddr::parse(params.as_bytes()).unwrap().param("b"), None);
    }
}
