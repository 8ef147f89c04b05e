//! Messages out of a byte stream.

use bytes::{Bytes, BytesMut};

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

/// What comes out of the stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// One whole message.
    Message(Bytes),
    /// CRLFCRLF between messages: the peer wants a CRLF back (RFC 5626 §4.4.1).
    Ping,
}

/// Cuts a stream into messages. Each byte is looked at once, however the stream is sliced.
#[derive(Debug, Default)]
pub struct Framer {
    buffer: BytesMut,
}

impl Framer {
    pub fn new() -> Framer {
        Framer::default()
    }

    pub fn push(&mut self, chunk: &[u8]) -> Result<(), Unframeable> {
        todo!("{chunk:?} {:?}", self.buffer)
    }

    /// The next whole message. Once it has failed it fails for good.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator could not report the error once and for good"
    )]
    pub fn next(&mut self) -> Result<Option<Frame>, Unframeable> {
        todo!()
    }

    /// Bytes of a message that has begun and is not whole yet.
    pub fn pending(&self) -> usize {
        todo!()
    }
}
