//! SDP offers and the answers of a recorder (RFC 8866, RFC 3264, RFC 7866 §7).

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
