//! Messages out of a byte stream.

use bytes::{Buf, Bytes, BytesMut};

use std::hash::{DefaultHasher, Hasher};
use std::net::SocketAddr;

use super::lexical;
use super::message::{self, HeadScan, Header, Message};
use super::write::response;
use crate::limits;

/// Why a stream can no longer be cut into messages. The connection has to be closed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Unframeable {
    /// What should be a start line begins with a byte that no start line begins with: TLS, another protocol, noise.
    NotSip,
    /// Start line and header are over `SIP_HEAD_MAX`.
    HeadTooLarge,
    /// Content-Length is over `SIP_BODY_MAX`.
    BodyTooLarge,
    /// More bytes pushed than any message has, without taking messages out.
    Overrun,
    /// Both CRLF and bare LF end lines of one header: readers differ about where it ends.
    MixedLineEnds,
    /// No Content-Length (mandatory on streams, RFC 3261 §20.14).
    NoContentLength,
    /// Content-Length is repeated, signed or no number.
    BadContentLength,
}

impl Unframeable {
    /// For the log.
    pub const fn text(self) -> &'static str {
        match self {
            Unframeable::NotSip => "not SIP",
            Unframeable::HeadTooLarge => "header too large",
            Unframeable::BodyTooLarge => "body too large",
            Unframeable::Overrun => "more bytes than any message has",
            Unframeable::MixedLineEnds => "CRLF and LF mixed in a header",
            Unframeable::NoContentLength => "no Content-Length",
            Unframeable::BadContentLength => "bad Content-Length",
        }
    }
}

/// What comes out of the stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// One whole message, from its start line on.
    Message(Bytes),
    /// CRLFCRLF between messages: the peer wants a CRLF back (RFC 5626 §4.4.1).
    Ping,
}

/// Cuts a stream into messages. Each byte is looked at once, however the stream is sliced.
#[derive(Debug, Default)]
pub struct Framer {
    /// From the first byte of the message in progress.
    buffer: BytesMut,
    scan: HeadScan,
    /// Length of the message in progress, once its header is whole.
    whole: Option<usize>,
    /// One CRLF between messages has been skipped; a second makes a ping.
    crlf_seen: bool,
    failed: Option<Unframeable>,
}

impl Framer {
    pub fn new() -> Framer {
        Framer::default()
    }

    /// Bytes as they arrive. Call `next` until it has no more before pushing again.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), Unframeable> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.buffer.len() + chunk.len() > limits::SIP_BUFFERED_MAX {
            self.failed = Some(Unframeable::Overrun);
            return Err(Unframeable::Overrun);
        }
        self.buffer.extend_from_slice(chunk);
        Ok(())
    }

    /// The next whole message. Once it has failed it fails for good.
    #[expect(clippy::should_implement_trait, reason = "an iterator could not fail for good")]
    pub fn next(&mut self) -> Result<Option<Frame>, Unframeable> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let frame = self.cut();
        self.failed = frame.as_ref().err().copied();
        frame
    }

    /// Bytes of a message that has begun and is not whole yet.
    pub fn pending(&self) -> usize {
        match self.buffer.first() {
            Some(b'\r' | b'\n') => 0,
            _ => self.buffer.len(),
        }
    }

    /// The answer to the request at which it has failed, for `peer`, before the connection is closed (RFC 3261 §21.4.11): 413
    /// where its body is too large, 513 where its header is, 400 where nobody can tell its length. `None`: what came is no
    /// request, or not enough of one.
    pub fn refusal(&self, peer: SocketAddr) -> Option<Bytes> {
        let failed = self.failed?;
        let (code, most) = match failed {
            Unframeable::BodyTooLarge => (413, Some(limits::SIP_BODY_MAX)),
            Unframeable::HeadTooLarge => (513, Some(limits::SIP_HEAD_MAX)),
            Unframeable::NoContentLength | Unframeable::BadContentLength => (400, None),
            Unframeable::NotSip | Unframeable::Overrun | Unframeable::MixedLineEnds => return None,
        };
        let begun = &self.buffer[..self.buffer.len().min(limits::SIP_HEAD_MAX - 2)];
        let lines = memchr::memrchr(b'\n', begun)? + 1;
        let head = [&begun[..lines], b"\r\n"].concat();
        let mut hasher = DefaultHasher::new();
        hasher.write(&head);
        let tag = format!("{:016x}", hasher.finish());
        let refusal = response(&Message::salvage(&head)?, code, Some(&tag), peer);
        let refusal = match most {
            Some(most) => {
                refusal.header("Warning", format!("399 sipreel \"{}: at most {most} bytes\"", failed.text()))
            }
            None => refusal.reason(failed.text()),
        };
        Some(refusal.finish())
    }

    fn cut(&mut self) -> Result<Option<Frame>, Unframeable> {
        if self.whole.is_none() {
            if self.skip_line_ends() {
                return Ok(Some(Frame::Ping));
            }
            self.whole = self.measure()?;
        }
        match self.whole {
            Some(length) if length <= self.buffer.len() => {
                self.whole = None;
                self.scan = HeadScan::default();
                Ok(Some(Frame::Message(self.buffer.split_to(length).freeze())))
            }
            _ => Ok(None),
        }
    }

    /// Line ends before a start line are ignored (RFC 3261 §7.5), but two CRLF in a row are a ping: then `true`.
    fn skip_line_ends(&mut self) -> bool {
        loop {
            match self.buffer[..] {
                [b'\r', b'\n', ..] => {
                    self.buffer.advance(2);
                    self.crlf_seen = !self.crlf_seen;
                    if !self.crlf_seen {
                        return true;
                    }
                }
                [b'\n', ..] => self.buffer.advance(1),
                _ => return false,
            }
        }
    }

    /// Length of the message that the buffer begins with, once its header is there.
    fn measure(&mut self) -> Result<Option<usize>, Unframeable> {
        match self.buffer[..] {
            [] | [b'\r'] => return Ok(None),
            [first, ..] if !lexical::is_token_byte(first) => return Err(Unframeable::NotSip),
            _ => self.crlf_seen = false,
        }
        let head = self.scan.find(&self.buffer);
        if self.scan.line_ends_differ() {
            return Err(Unframeable::MixedLineEnds);
        }
        if head.unwrap_or(self.buffer.len()) > limits::SIP_HEAD_MAX {
            return Err(Unframeable::HeadTooLarge);
        }
        head.map(|head| Ok(head + body_length(&self.buffer[..head])?)).transpose()
    }
}

/// Lines that are no header fields are left for the parser to refuse: they do not say where the message ends.
fn body_length(head: &[u8]) -> Result<usize, Unframeable> {
    let headers = message::lines(head).skip(1).filter_map(|line| Header::parse(line).ok());
    let length = message::content_length(headers).map_err(|_| Unframeable::BadContentLength)?;
    match length.ok_or(Unframeable::NoContentLength)? {
        length if length > limits::SIP_BODY_MAX => Err(Unframeable::BodyTooLarge),
        length => Ok(length),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::sip::Message;

    const BYE: &str = "BYE sip:a@b SIP/2.0\r\nVia: SIP/2.0/TCP h\r\nl  :\r\n 4\r\n\r\nbody";
    const LF_ONLY: &str = "BYE sip:a@b SIP/2.0\nVia: SIP/2.0/TCP h\nContent-Length: 6\n\n\r\n\r\n\n\n";

    fn drain(framer: &mut Framer) -> Result<Vec<Frame>, Unframeable> {
        std::iter::from_fn(|| framer.next().transpose()).collect()
    }

    fn frames(chunks: &[&[u8]]) -> Result<Vec<Frame>, Unframeable> {
        let mut framer = Framer::new();
        let mut out = Vec::new();
        for chunk in chunks {
            framer.push(chunk)?;
            out.extend(drain(&mut framer)?);
        }
        Ok(out)
    }

    fn message(text: &str) -> Frame {
        Frame::Message(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn every_split_gives_the_same_frames() {
        let stream = format!("\r\n{BYE}\r\n\r\n{LF_ONLY}{BYE}\n{BYE}\r\n\r\n\r\n\r\n");
        let expected = vec![
            message(BYE),
            Frame::Ping,
            message(LF_ONLY),
            message(BYE),
            message(BYE),
            Frame::Ping,
            Frame::Ping,
        ];
        let bytes = stream.as_bytes();
        assert_eq!(frames(&[bytes]).unwrap(), expected);
        for at in 0..bytes.len() {
            assert_eq!(frames(&[&bytes[..at], &bytes[at..]]).unwrap(), expected, "split at {at}");
        }
        let single: Vec<_> = bytes.chunks(1).collect();
        assert_eq!(frames(&single).unwrap(), expected);
    }

    #[test]
    fn a_frame_parses_as_the_datagram_does() {
        for text in [BYE, LF_ONLY] {
            let (framed, datagram) =
                (Message::parse_framed(text.as_bytes()), Message::parse_datagram(text.as_bytes()));
            let (framed, datagram) = (framed.unwrap(), datagram.unwrap());
            assert_eq!((framed.headers(), framed.body_range()), (datagram.headers(), datagram.body_range()));
        }
    }

    fn error(head: &str) -> Option<Unframeable> {
        frames(&[head.as_bytes()]).err()
    }

    #[test]
    fn wrong_content_length() {
        assert_eq!(error("BYE sip:a@b SIP/2.0\r\nTo: x\r\n\r\n"), Some(Unframeable::NoContentLength));
        for value in [
            "-1",
            "+4",
            "",
            "4,4",
            "4 4",
            "0x4",
            "99999999999999999999999",
            "4\r\nl: 4",
            "4\r\nContent-length: 5",
        ] {
            let head = format!("BYE sip:a@b SIP/2.0\r\nl: {value}\r\n\r\nbody");
            assert_eq!(error(&head), Some(Unframeable::BadContentLength), "{value:?}");
        }
        let head = |length| format!("BYE sip:a@b SIP/2.0\r\nl: {length}\r\n\r\n");
        assert_eq!(error(&head(limits::SIP_BODY_MAX)), None);
        assert_eq!(error(&head(limits::SIP_BODY_MAX + 1)), Some(Unframeable::BodyTooLarge));
    }

    /// A strict reader sees the end of this header elsewhere: the shape of request smuggling.
    #[test]
    fn mixed_line_ends_are_refused() {
        for head in [
            "BYE sip:a@b SIP/2.0\r\na: b\n\nl: 0\r\n\r\n",
            "BYE sip:a@b SIP/2.0\na: b\r\nl: 0\n\n",
            "BYE sip:a@b SIP/2.0\nl: 0\n\r\n",
        ] {
            assert_eq!(error(head), Some(Unframeable::MixedLineEnds), "{head:?}");
        }
    }

    #[test]
    fn binary() {
        assert_eq!(error("\u{16}\u{3}\u{1}\u{2}"), Some(Unframeable::NotSip), "a TLS hello");
        assert_eq!(error(" BYE"), Some(Unframeable::NotSip));
        assert_eq!(error("\rBYE"), Some(Unframeable::NotSip));
        assert_eq!(error("GET / HTTP/1.1\r\nHost: h\r\n\r\n"), Some(Unframeable::NoContentLength));
    }

    #[test]
    fn oversized_head_and_no_end() {
        let chunk = vec![b'x'; 1024];
        let mut framer = Framer::new();
        for _ in 0..limits::SIP_HEAD_MAX / chunk.len() {
            framer.push(&chunk).unwrap();
            assert_eq!(framer.next(), Ok(None));
        }
        framer.push(b"x").unwrap();
        assert_eq!(framer.next(), Err(Unframeable::HeadTooLarge));
        assert_eq!(framer.next(), Err(Unframeable::HeadTooLarge), "for good");
        assert_eq!(framer.push(b"x"), Err(Unframeable::HeadTooLarge));
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        let peer = "192.0.2.1:5070".parse().unwrap();
        let refusal = |text: &str| {
            let mut framer = Framer::new();
            framer.push(text.as_bytes()).ok()?;
            framer.next().unwrap_err();
            framer.refusal(peer).map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
        };
        let begin = "INVITE sip:a@b SIP/2.0\r\nv: SIP/2.0/TCP h;branch=z9hG4bK1\r\nt: <sip:a@b>\r\nCSeq: 1 INVITE\r\n";
        let large = refusal(&format!("{begin}l: 524289\r\n\r\n")).unwrap();
        assert!(large.starts_with("SIP/2.0 413 Request Entity Too Large\r\nVia: SIP/2.0/TCP h;"), "{large}");
        assert!(
            large.contains("\"body too large: at most 524288 bytes\"") && large.contains("CSeq: 1 INVITE"),
            "{large}"
        );
        let long = refusal(&format!("{begin}X: {}", "x".repeat(limits::SIP_HEAD_MAX))).unwrap();
        assert!(long.starts_with("SIP/2.0 513 Message Too Large\r\n"), "{long}");
        let lines = refusal(&format!("{begin}{}", "X: y\r\n".repeat(limits::SIP_HEAD_MAX / 6))).unwrap();
        assert!(lines.starts_with("SIP/2.0 513 "), "{lines}");
        let unknown = refusal(&format!("{begin}\r\n")).unwrap();
        assert!(unknown.starts_with("SIP/2.0 400 no Content-Length\r\n"), "{unknown}");
        for nobody in [
            "\u{16}\u{3}",
            &*format!("ACK{}l: 524289\r\n\r\n", &begin[6..]),
            "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        ] {
            assert_eq!(refusal(nobody), None, "{nobody:?}");
        }
    }

    #[test]
    fn pushing_without_taking_is_bounded() {
        let mut framer = Framer::new();
        let chunk = vec![b'\n'; limits::SIP_BODY_MAX];
        framer.push(&chunk).unwrap();
        assert_eq!(framer.push(&chunk), Err(Unframeable::Overrun));
    }

    #[test]
    fn pending_counts_only_a_message_that_has_begun() {
        let mut framer = Framer::new();
        for (chunk, pending) in [("\r\n\r", 0), ("\nBYE", 3), (&BYE[3..20], 20), (&BYE[20..], 0)] {
            framer.push(chunk.as_bytes()).unwrap();
            drain(&mut framer).unwrap();
            assert_eq!(framer.pending(), pending, "{chunk:?}");
        }
    }

    /// A slow sender of a large header: each byte is searched once, so this is 64 K steps and not 2·10⁹.
    #[test]
    fn a_byte_at_a_time_costs_linear_time() {
        let mut framer = Framer::new();
        for _ in 0..20_000 {
            framer.push(b"a:\n").unwrap();
            framer.next().unwrap();
        }
        assert_eq!(framer.pending(), 60_000);
    }
}
