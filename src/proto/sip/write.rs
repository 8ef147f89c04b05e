//! Messages to be sent.

use bytes::Bytes;
use std::net::SocketAddr;

use super::message::Message;

/// A response in the making: the fields that RFC 3261 §8.2.6.2 takes from the request, then its own.
#[derive(Debug)]
pub struct ResponseBuilder {
    out: Vec<u8>,
}

/// The response to `request`: every Via, From, To, Call-ID and CSeq copied as far as they are there, Timestamp too in a
/// 100 (§8.2.6.1). `to_tag` goes to a To that has no tag. `peer` is where the request came from, for `received`
/// (§18.2.1) and `rport` (RFC 3581 §4) of the topmost Via.
pub fn response(request: &Message, code: u16, to_tag: Option<&str>, peer: SocketAddr) -> ResponseBuilder {
    todo!("{request:?} {code} {to_tag:?} {peer}")
}

impl ResponseBuilder {
    /// Another reason phrase than the usual one.
    pub fn reason(self, reason: &str) -> ResponseBuilder {
        todo!("{reason}")
    }

    /// Copies Record-Route (RFC 3261 §12.1.1): for responses that establish a dialog.
    pub fn record_routes(self, request: &Message) -> ResponseBuilder {
        todo!("{request:?}")
    }

    /// Line ends in the value are written as blanks.
    pub fn header(self, name: &str, value: impl AsRef<[u8]>) -> ResponseBuilder {
        todo!("{name} {:?}", value.as_ref())
    }

    pub fn body(self, content_type: &str, body: &[u8]) -> ResponseBuilder {
        todo!("{content_type} {body:?}")
    }

    pub fn finish(self) -> Bytes {
        todo!("{:?}", self.out)
    }
}

/// A request in the making; every field but Content-Type and Content-Length is the caller's.
#[derive(Debug)]
pub struct RequestBuilder {
    out: Vec<u8>,
}

pub fn request(method: &str, uri: &str) -> RequestBuilder {
    todo!("{method} {uri}")
}

impl RequestBuilder {
    /// Line ends in the value are written as blanks.
    pub fn header(self, name: &str, value: impl AsRef<[u8]>) -> RequestBuilder {
        todo!("{name} {:?}", value.as_ref())
    }

    pub fn body(self, content_type: &str, body: &[u8]) -> RequestBuilder {
        todo!("{content_type} {body:?}")
    }

    pub fn finish(self) -> Bytes {
        todo!("{:?}", self.out)
    }
}

/// RFC 3261 §21 and the codes of its extensions; the class's general phrase for others.
pub fn reason_phrase(code: u16) -> &'static str {
    todo!("{code}")
}
