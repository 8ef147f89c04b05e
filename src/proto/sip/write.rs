//! Messages to be sent.

use bytes::{BufMut, Bytes, BytesMut};
use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use super::header::{NameAddr, Rport, Via};
use super::lexical;
use super::message::Message;
use super::name::HeaderName;

/// Header fields of one line each, and the body.
#[derive(Debug, Default)]
struct Draft {
    fields: Vec<u8>,
    body: Vec<u8>,
}

impl Draft {
    fn field(&mut self, name: &str, value: &[u8]) {
        self.fields.extend_from_slice(name.as_bytes());
        self.fields.extend_from_slice(b": ");
        push_unfolded(&mut self.fields, value);
        self.fields.extend_from_slice(b"\r\n");
    }

    fn body(&mut self, content_type: &str, body: &[u8]) {
        self.field("Content-Type", content_type.as_bytes());
        self.body = body.to_vec();
    }

    fn finish(mut self, start: &[u8]) -> Bytes {
        let length = self.body.len().to_string();
        self.field("Content-Length", length.as_bytes());
        let mut out = BytesMut::with_capacity(start.len() + self.fields.len() + self.body.len() + 4);
        for part in [start, b"\r\n", &self.fields, b"\r\n", &self.body] {
            out.put_slice(part);
        }
        out.freeze()
    }
}

/// Folds become one blank (RFC 3261 §7.3.1), so that no value can begin a line of its own.
fn push_unfolded(out: &mut Vec<u8>, value: &[u8]) {
    let mut rest = value;
    while let Some(end) = memchr::memchr2(b'\r', b'\n', rest) {
        out.extend_from_slice(rest[..end].trim_ascii_end());
        out.push(b' ');
        rest = rest[end..].trim_ascii_start();
    }
    out.extend_from_slice(rest);
}

/// A response in the making: the fields that RFC 3261 §8.2.6.2 takes from the request, then its own.
#[derive(Debug)]
pub struct ResponseBuilder {
    code: u16,
    reason: Option<String>,
    draft: Draft,
}

/// The response to `request`: every Via, From, To, Call-ID and CSeq copied as far as they are there, Timestamp too in a
/// 100 (§8.2.6.1). `to_tag` goes to a To that has no tag. `peer` is where the request came from, for `received`
/// (§18.2.1) and `rport` (RFC 3581 §4) of the topmost Via.
pub fn response(request: &Message, code: u16, to_tag: Option<&str>, peer: SocketAddr) -> ResponseBuilder {
    let mut draft = Draft::default();
    for (index, value) in request.all(HeaderName::Via).enumerate() {
        if index == 0 { draft.field("Via", &top_via(value, peer)) } else { draft.field("Via", value) }
    }
    for id in [HeaderName::From, HeaderName::To, HeaderName::CallId, HeaderName::CSeq] {
        match (request.first(id), to_tag) {
            (Some(to), Some(tag)) if id == HeaderName::To => draft.field(id.text(), &tagged(to, tag)),
            (Some(value), _) => draft.field(id.text(), value),
            (None, _) => {}
        }
    }
    if code == 100
        && let Some(timestamp) = request.other("Timestamp")
    {
        draft.field("Timestamp", timestamp);
    }
    ResponseBuilder { code, reason: None, draft }
}

impl ResponseBuilder {
    /// Another reason phrase than the usual one.
    pub fn reason(mut self, reason: &str) -> ResponseBuilder {
        self.reason = Some(reason.to_owned());
        self
    }

    /// Copies Record-Route (RFC 3261 §12.1.1): for responses that establish a dialog.
    pub fn record_routes(mut self, request: &Message) -> ResponseBuilder {
        for value in request.all(HeaderName::RecordRoute) {
            self.draft.field("Record-Route", value);
        }
        self
    }

    /// Line ends in the value are written as blanks.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> ResponseBuilder {
        self.draft.field(name, value.as_ref());
        self
    }

    pub fn body(mut self, content_type: &str, body: &[u8]) -> ResponseBuilder {
        self.draft.body(content_type, body);
        self
    }

    pub fn finish(self) -> Bytes {
        let mut start = format!("SIP/2.0 {} ", self.code).into_bytes();
        let reason = self.reason.as_deref().unwrap_or(reason_phrase(self.code));
        push_unfolded(&mut start, reason.as_bytes());
        self.draft.finish(&start)
    }
}

/// The first Via line of a response: its first value with `received` and `rport` set, the others untouched.
fn top_via(line: &[u8], peer: SocketAddr) -> Vec<u8> {
    let (first, others) = lexical::split_first(line, b',');
    let mut out = match Via::parse(first) {
        Ok(via) => routed_via(first, &via, peer),
        Err(_) => first.to_vec(),
    };
    if let Some(others) = others {
        out.push(b',');
        out.extend_from_slice(others);
    }
    out
}

/// `received` where sent-by does not name the peer's address, or `rport` asks for it (RFC 3581 §4 wants both then).
/// What the sender has put into them itself is dropped.
fn routed_via(value: &[u8], via: &Via, peer: SocketAddr) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len() + 64);
    for (index, part) in lexical::split(value, b';').enumerate() {
        let name = part.split(|b| *b == b'=').next().unwrap_or_default().trim_ascii_end();
        if name.eq_ignore_ascii_case(b"received") || name.eq_ignore_ascii_case(b"rport") {
            continue;
        }
        if index > 0 {
            out.push(b';');
        }
        out.extend_from_slice(part);
    }
    let address = peer.ip().to_canonical();
    let asked = via.rport != Rport::Absent;
    // Writing to a Vec does not fail.
    if asked || via.host.parse::<IpAddr>() != Ok(address) {
        let _ = write!(out, ";received={address}");
    }
    if asked {
        let _ = write!(out, ";rport={}", peer.port());
    }
    out
}

/// To with our tag, unless it has one or cannot be read.
fn tagged(to: &[u8], tag: &str) -> Vec<u8> {
    let mut out = to.to_vec();
    if NameAddr::parse(to).is_ok_and(|to| to.tag().is_none()) {
        out.extend_from_slice(b";tag=");
        out.extend_from_slice(tag.as_bytes());
    }
    out
}

/// A request in the making; every field but Content-Type and Content-Length is the caller's.
#[derive(Debug)]
pub struct RequestBuilder {
    start: String,
    draft: Draft,
}

pub fn request(method: &str, uri: &str) -> RequestBuilder {
    RequestBuilder { start: format!("{method} {uri} SIP/2.0"), draft: Draft::default() }
}

impl RequestBuilder {
    /// Line ends in the value are written as blanks.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> RequestBuilder {
        self.draft.field(name, value.as_ref());
        self
    }

    pub fn body(mut self, content_type: &str, body: &[u8]) -> RequestBuilder {
        self.draft.body(content_type, body);
        self
    }

    pub fn finish(self) -> Bytes {
        self.draft.finish(self.start.as_bytes())
    }
}

/// RFC 3261 §21 and the codes of its extensions; the class's general phrase for others.
pub fn reason_phrase(code: u16) -> &'static str {
    match code {
        100 => "Trying",
        180 => "Ringing",
        183 => "Session Progress",
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        413 => "Request Entity Too Large",
        414 => "Request-URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Unsupported URI Scheme",
        420 => "Bad Extension",
        421 => "Extension Required",
        422 => "Session Interval Too Small",
        469 => "Bad Info Package",
        481 => "Call/Transaction Does Not Exist",
        482 => "Loop Detected",
        483 => "Too Many Hops",
        486 => "Busy Here",
        487 => "Request Terminated",
        488 => "Not Acceptable Here",
        489 => "Bad Event",
        491 => "Request Pending",
        500 => "Server Internal Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        504 => "Server Time-out",
        505 => "Version Not Supported",
        513 => "Message Too Large",
        603 => "Decline",
        606 => "Not Acceptable",
        _ => match code / 100 {
            1 => "Session Progress",
            2 => "OK",
            3 => "Multiple Choices",
            5 => "Server Internal Error",
            6 => "Decline",
            _ => "Bad Request",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::sip::{Method, Start};

    const INVITE: &str = "INVITE sip:srs@192.0.2.9 SIP/2.0\r\n\
        Via: SIP/2.0/UDP 10.0.0.1:5070;rport;branch=z9hG4bKa\r\n ;x=\"a;b\", SIP/2.0/TCP p1\r\nv: SIP/2.0/TCP p2\r\n\
        f: <sip:src@h>;tag=1\r\nt: <sip:srs@h>\r\ni: c@h\r\nCSeq: 7\r\n INVITE\r\n\
        Timestamp: 54\r\nRecord-Route: <sip:p1;lr>, <sip:p2;lr>\r\nRecord-Route: <sip:p3;lr>\r\nl: 0\r\n\r\n";

    fn peer(address: &str) -> SocketAddr {
        address.parse().unwrap()
    }

    fn answer(request: &str, code: u16, peer: SocketAddr) -> String {
        let request = Message::parse_datagram(request.as_bytes()).unwrap();
        String::from_utf8(response(&request, code, Some("srs1"), peer).finish().to_vec()).unwrap()
    }

    #[test]
    fn a_200_with_everything() {
        let request = Message::parse_datagram(INVITE.as_bytes()).unwrap();
        let bytes = response(&request, 200, Some("srs1"), peer("192.0.2.1:4711"))
            .record_routes(&request)
            .header("Contact", "<sip:192.0.2.9>;+sip.srs")
            .body("application/sdp", b"v=0\r\n")
            .finish();
        let expected = "SIP/2.0 200 OK\r\n\
            Via: SIP/2.0/UDP 10.0.0.1:5070;branch=z9hG4bKa;x=\"a;b\";received=192.0.2.1;rport=4711, SIP/2.0/TCP p1\r\n\
            Via: SIP/2.0/TCP p2\r\nFrom: <sip:src@h>;tag=1\r\nTo: <sip:srs@h>;tag=srs1\r\nCall-ID: c@h\r\nCSeq: 7 INVITE\r\n\
            Record-Route: <sip:p1;lr>, <sip:p2;lr>\r\nRecord-Route: <sip:p3;lr>\r\n\
            Contact: <sip:192.0.2.9>;+sip.srs\r\nContent-Type: application/sdp\r\nContent-Length: 5\r\n\r\nv=0\r\n";
        assert_eq!(std::str::from_utf8(&bytes).unwrap(), expected);
        let parsed = Message::parse_framed(&bytes).unwrap();
        assert_eq!((parsed.via_count(), parsed.to().unwrap().tag()), (3, Some("srs1")));
        assert_eq!(parsed.via().unwrap().rport, Rport::Is(4711));
    }

    /// RFC 3261 §18.2.1, RFC 3581 §4.
    #[test]
    fn received_and_rport() {
        let via = |via: &str, from: &str| {
            let request = format!("BYE sip:a@b SIP/2.0\r\nVia: {via}\r\n\r\n");
            let text = answer(&request, 200, peer(from));
            text.lines().nth(1).unwrap().strip_prefix("Via: ").unwrap().to_owned()
        };
        assert_eq!(via("SIP/2.0/UDP 192.0.2.1", "192.0.2.1:9"), "SIP/2.0/UDP 192.0.2.1");
        assert_eq!(via("SIP/2.0/UDP 192.0.2.1", "[::ffff:192.0.2.1]:9"), "SIP/2.0/UDP 192.0.2.1");
        assert_eq!(via("SIP/2.0/UDP [2001:DB8::0:1]", "[2001:db8::1]:9"), "SIP/2.0/UDP [2001:DB8::0:1]");
        assert_eq!(
            via("SIP/2.0/UDP h.example", "[2001:db8::1]:9"),
            "SIP/2.0/UDP h.example;received=2001:db8::1"
        );
        assert_eq!(
            via("SIP/2.0/UDP 192.0.2.1;received=6.6.6.6;RPORT = 5;branch=a", "192.0.2.1:9"),
            "SIP/2.0/UDP 192.0.2.1;branch=a;received=192.0.2.1;rport=9"
        );
        assert_eq!(via("SIP/2.0/UDP ;;", "192.0.2.1:9"), "SIP/2.0/UDP ;;", "a bad Via goes back as it came");
    }

    #[test]
    fn tags_and_timestamp() {
        let tagged = INVITE.replace("t: <sip:srs@h>", "t: sip:srs@h;TAG=theirs");
        let trying = answer(&tagged, 100, peer("10.0.0.1:1"));
        assert!(trying.starts_with("SIP/2.0 100 Trying\r\n"));
        assert!(trying.contains("\r\nTo: sip:srs@h;TAG=theirs\r\n"), "{trying}");
        assert!(trying.contains("\r\nTimestamp: 54\r\n"), "RFC 3261 §8.2.6.1");
        assert!(!answer(&tagged, 180, peer("10.0.0.1:1")).contains("Timestamp"));
    }

    #[test]
    fn an_answer_to_what_could_be_salvaged() {
        let bad = "INVITE sip:a@b  SIP/2.0\r\nVia: SIP/2.0/UDP h\r\nTo: \"open <sip:t@h>\r\nnonsense\r\nCSeq: x\r\n\r\n";
        let request = Message::salvage(bad.as_bytes()).unwrap();
        let bytes = response(&request, 400, Some("t"), peer("192.0.2.1:9")).reason("Bad\r\nX: y").finish();
        let expected = "SIP/2.0 400 Bad X: y\r\nVia: SIP/2.0/UDP h;received=192.0.2.1\r\n\
            To: \"open <sip:t@h>\r\nCSeq: x\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(std::str::from_utf8(&bytes).unwrap(), expected);
    }

    #[test]
    fn no_value_begins_a_line_of_its_own() {
        let bytes = request("BYE", "sip:a@b").header("X", "a\r\nl: 9\n\n\r b \r").finish();
        assert_eq!(bytes, "BYE sip:a@b SIP/2.0\r\nX: a l: 9 b \r\nContent-Length: 0\r\n\r\n".as_bytes());
    }

    #[test]
    fn a_request() {
        let bytes = request("BYE", "sip:src@192.0.2.1;transport=tcp")
            .header("Via", "SIP/2.0/TCP 192.0.2.9;branch=z9hG4bK1")
            .body("text/plain", b"bye")
            .finish();
        let parsed = Message::parse_framed(&bytes).unwrap();
        let start = Start::Request {
            method: Method::Bye,
            method_text: "BYE",
            uri: "sip:src@192.0.2.1;transport=tcp",
        };
        assert_eq!(
            (parsed.start(), parsed.body(), parsed.content_type()),
            (start, &b"bye"[..], Some("text/plain"))
        );
    }

    #[test]
    fn phrases() {
        let phrases = [
            (100, "Trying"),
            (199, "Session Progress"),
            (299, "OK"),
            (481, "Call/Transaction Does Not Exist"),
            (499, "Bad Request"),
            (599, "Server Internal Error"),
            (699, "Decline"),
        ];
        for (code, phrase) in phrases {
            assert_eq!(reason_phrase(code), phrase);
        }
    }
}
