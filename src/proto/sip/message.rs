//! One message, read in place: the start line, the spans of its header fields, its body.

use std::ops::Range;

use super::header::{CSeq, NameAddr, Via};
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

impl<'a> Message<'a> {
    /// A datagram holds one message: without Content-Length the body goes to its end, bytes beyond the body are
    /// discarded, a body that is cut short is an error (RFC 3261 §18.3).
    pub fn parse_datagram(bytes: &'a [u8]) -> Result<Message<'a>, Malformed> {
        todo!("{bytes:?}")
    }

    /// Exactly one message, as the framer cuts it: Content-Length is there and right.
    pub fn parse_framed(bytes: &'a [u8]) -> Result<Message<'a>, Malformed> {
        todo!("{bytes:?}")
    }

    /// What can be read of a request that `parse_*` refused, so that it can be answered: the method and every readable
    /// header line, no body. `None` when nobody can or may be answered: a response, an ACK, no Via, no end of the header.
    pub fn salvage(bytes: &'a [u8]) -> Option<Message<'a>> {
        todo!("{bytes:?}")
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

    /// The first value of a field that has no `HeaderName`.
    pub fn other(&self, name: &str) -> Option<&'a [u8]> {
        self.headers()
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name.as_bytes()))
            .map(|header| header.value)
    }

    /// The items of a comma-separated field over all its lines: option tags, media types. One that is not UTF-8 comes
    /// as U+FFFD: unknown rather than absent.
    pub fn tokens(&self, id: HeaderName) -> impl Iterator<Item = &'a str> + '_ {
        self.all(id).map(|_| todo!())
    }

    /// The topmost Via.
    pub fn via(&self) -> Result<Via<'a>, Malformed> {
        todo!()
    }

    /// Via values over all lines.
    pub fn via_count(&self) -> usize {
        todo!()
    }

    pub fn from(&self) -> Result<NameAddr<'a>, Malformed> {
        todo!()
    }

    pub fn to(&self) -> Result<NameAddr<'a>, Malformed> {
        todo!()
    }

    /// The first Contact; `None` without one and for `*`.
    pub fn contact(&self) -> Result<Option<NameAddr<'a>>, Malformed> {
        todo!()
    }

    /// Record-Route values, topmost first, each as sent and ready for a Route field or `NameAddr::parse`.
    pub fn record_routes(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.all(HeaderName::RecordRoute).map(|_| todo!())
    }

    pub fn cseq(&self) -> Result<CSeq<'a>, Malformed> {
        todo!()
    }

    pub fn call_id(&self) -> Result<&'a str, Malformed> {
        todo!()
    }

    /// Type and parameters as sent. `None` also when it is not UTF-8.
    pub fn content_type(&self) -> Option<&'a str> {
        todo!()
    }

    pub fn body(&self) -> &'a [u8] {
        &self.bytes[self.body.clone()]
    }

    /// Where the body is in the bytes that were parsed.
    pub fn body_range(&self) -> Range<usize> {
        self.body.clone()
    }

    /// Parse, don't validate: the mandatory fields, typed. The error is answered with its `code` if it is `answerable`.
    pub fn check_request(&self) -> Result<Checked<'a>, Malformed> {
        todo!()
    }
}
