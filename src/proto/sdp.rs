//! SDP offers and the answers of a recorder (RFC 8866, RFC 3264, RFC 7866 §7).

use std::fmt;
use std::net::IpAddr;

/// One format of an m-line. Static payload types without rtpmap are filled in (RFC 3551 §6).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Codec {
    pub payload_type: u8,
    /// As the offer writes it: `PCMU`, `opus`. Compare without case.
    pub encoding: String,
    pub clock_rate: u32,
    pub channels: u8,
    pub fmtp: Option<String>,
}

/// What an offer says, as far as a recorder needs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    pub origin: Origin,
    /// Every m-line in its order, those with port 0 included.
    pub media: Vec<MediaLine>,
}

/// The o= line. Ids and versions are compared, never computed with, so they stay text; empty when there is no o= line.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Origin {
    pub username: String,
    pub session_id: String,
    pub version: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    SendRecv,
    SendOnly,
    RecvOnly,
    Inactive,
}

/// One m-line and what applies to it, its own or the session's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MediaLine {
    /// `audio`, `video`, `text`, `image`, …
    pub kind: String,
    /// The RTP port of the SRC; 0: the m-line is not in use.
    pub port: u16,
    /// `RTP/AVP`, as the offer writes it.
    pub protocol: String,
    /// As offered, without repeats.
    pub formats: Vec<String>,
    /// Formats whose codec is known, in the order of `formats`.
    pub codecs: Vec<Codec>,
    /// a=label, a token (RFC 4574).
    pub label: Option<String>,
    /// a=mid (RFC 5888).
    pub mid: Option<String>,
    /// Of the m-line, else of the session, else sendrecv (RFC 8866 §6.7).
    pub direction: Direction,
    /// c=0.0.0.0 (RFC 3264 §8.4) or inactive: no media is to be expected.
    pub held: bool,
    /// Of the m-line's c=, else the session's. `None`: a host name, or no c= at all.
    pub address: Option<IpAddr>,
    /// a=rtcp (RFC 3605).
    pub rtcp_port: Option<u16>,
    pub rtcp_mux: bool,
    /// Milliseconds.
    pub ptime: Option<u32>,
    /// The rtpmap and fmtp attributes of the offered formats, for the answer.
    format_attributes: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SdpError {
    /// Larger than `SDP_MAX`.
    TooLarge,
    /// More than `M_LINES_MAX`.
    TooManyMediaLines,
    /// More than `FORMATS_MAX` on one m-line.
    TooManyFormats,
    /// Not SDP, or a line without which the offer cannot be understood.
    Malformed(String),
}

impl fmt::Display for SdpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SdpError::TooLarge => f.write_str("SDP is too large"),
            SdpError::TooManyMediaLines => f.write_str("SDP has too many m-lines"),
            SdpError::TooManyFormats => f.write_str("SDP has an m-line with too many formats"),
            SdpError::Malformed(why) => write!(f, "SDP cannot be read: {why}"),
        }
    }
}

impl std::error::Error for SdpError {}

/// How one m-line is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Line {
    /// Record it at this port, with every format offered. The direction and rtcp-mux follow from the offer.
    Accept { port: u16 },
    /// Port 0.
    Refuse,
}

/// The o= of our answers: one id for the whole dialog, the version one higher whenever the answer differs from the one
/// before (RFC 3264 §8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AnswerOrigin {
    pub session_id: u64,
    pub version: u64,
}

/// Reads an SDP body of at most [`crate::limits::SDP_MAX`] bytes.
pub fn parse(body: &[u8]) -> Result<Offer, SdpError> {
    todo!()
}

/// The answer: one m-line for each of the offer's, in order. An m-line without an entry in `lines` is refused.
/// `address` is where the accepted ports are.
pub fn answer(offer: &Offer, lines: &[Line], origin: AnswerOrigin, address: IpAddr) -> Vec<u8> {
    todo!()
}

impl MediaLine {
    /// Audio, video or text over plain RTP, in use, with a payload type. What is encrypted (RTP/SAVP) cannot be recorded.
    pub fn recordable(&self) -> bool {
        todo!()
    }
}

impl Direction {
    /// What a recorder answers: recvonly to whoever would send, else inactive (RFC 3264 §6.1, RFC 7866 §7.2).
    pub fn answered(self) -> Direction {
        match self {
            Direction::SendRecv | Direction::SendOnly => Direction::RecvOnly,
            Direction::RecvOnly | Direction::Inactive => Direction::Inactive,
        }
    }
}
