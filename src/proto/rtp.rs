//! RTP as a recorder reads it (RFC 3550 §5.1), and what else comes to its ports.

use rtp_rs::RtpReader;

use crate::proto::rtcp;

/// Which port of the pair a datagram came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Channel {
    Rtp,
    Rtcp,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Rtp,
    Rtcp,
    /// STUN, DTLS, ZRTP, keepalives, junk.
    Other,
}

/// The fixed header, and the payload without CSRC list, header extension and padding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rtp<'a> {
    pub sequence: u16,
    /// In ticks of the payload type's clock.
    pub timestamp: u32,
    pub ssrc: u32,
    /// 0 to 127.
    pub payload_type: u8,
    pub marker: bool,
    pub payload: &'a [u8],
}

/// Tells RTP and RTCP on one port apart by the second byte (RFC 5761 §4), and both from the rest by the first (RFC 7983 §7).
/// RTP that strays to the RTCP port is `Other`.
pub fn classify(bytes: &[u8], channel: Channel) -> Kind {
    if rtcp::is_rtcp(bytes) {
        Kind::Rtcp
    } else if channel == Channel::Rtp && has_fixed_header(bytes) {
        Kind::Rtp
    } else {
        Kind::Other
    }
}

/// `None`: shorter than the fixed header, or not version 2. Where CSRC list, extension or padding overrun the datagram, the
/// payload is all that follows the fixed header: a recorder does not refuse what a lenient player could still play.
#[inline]
pub fn view(bytes: &[u8]) -> Option<Rtp<'_>> {
    if !has_fixed_header(bytes) {
        return None;
    }
    let rest = &bytes[RtpReader::MIN_HEADER_LEN..];
    // Usually there is nothing around the payload, and nothing to be looked for.
    let plain = bytes[0] == 2 << 6;
    let payload = if plain { rest } else { RtpReader::new(bytes).map_or(rest, |reader| reader.payload()) };
    Some(Rtp {
        sequence: u16::from_be_bytes([bytes[2], bytes[3]]),
        timestamp: u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        ssrc: u32::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]),
        payload_type: bytes[1] & 0x7f,
        marker: bytes[1] & 0x80 != 0,
        payload,
    })
}

fn has_fixed_header(bytes: &[u8]) -> bool {
    bytes.len() >= RtpReader::MIN_HEADER_LEN && bytes[0] >> 6 == 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtp_rs::{Pad, RtpPacketBuilder, Seq};

    fn built(payload: &[u8]) -> Vec<u8> {
        RtpPacketBuilder::new()
            .payload_type(111)
            .marked(true)
            .sequence(Seq::from(0xfffe))
            .timestamp(0x8000_0001)
            .ssrc(0xdead_beef)
            .add_csrc(1)
            .add_csrc(2)
            .extension(0xbede, &[1, 2, 3, 4])
            .padded(Pad::round_to(4))
            .payload(payload)
            .build()
            .unwrap()
    }

    #[test]
    fn view_removes_everything_around_the_payload() {
        let bytes = built(b"hello");
        assert_eq!(bytes.len(), 12 + 8 + 8 + 8, "padded to a word");
        let rtp = view(&bytes).unwrap();
        assert_eq!(
            rtp,
            Rtp {
                sequence: 0xfffe,
                timestamp: 0x8000_0001,
                ssrc: 0xdead_beef,
                payload_type: 111,
                marker: true,
                payload: b"hello"
            }
        );
    }

    #[test]
    fn headers_that_overrun_leave_the_fixed_one() {
        let mut padding = built(b"hello");
        *padding.last_mut().unwrap() = 200;
        assert_eq!(view(&padding).unwrap().payload, &padding[12..]);
        let mut zero = built(b"hello");
        *zero.last_mut().unwrap() = 0;
        assert_eq!(view(&zero).unwrap().payload, &zero[12..]);
        let whole = built(b"hello");
        for cut in 12..28 {
            assert_eq!(view(&whole[..cut]).unwrap().payload, &whole[12..cut], "cut at {cut}");
        }
        assert_eq!(view(&whole[..11]), None);
        let mut version = whole;
        version[0] = 0x40;
        assert_eq!(view(&version), None);
    }

    #[test]
    fn classify_parts_what_shares_a_port() {
        let rtp = built(b"x");
        let report = [0x80, 200, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0];
        let stun = [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let dtls = [22, 254, 253, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for (bytes, on_rtp, on_rtcp) in [
            (&rtp[..], Kind::Rtp, Kind::Other),
            (&report[..], Kind::Rtcp, Kind::Rtcp),
            (&stun[..], Kind::Other, Kind::Other),
            (&dtls[..], Kind::Other, Kind::Other),
            (&rtp[..11], Kind::Other, Kind::Other),
            (b"\r\n", Kind::Other, Kind::Other),
            (b"", Kind::Other, Kind::Other),
        ] {
            assert_eq!(classify(bytes, Channel::Rtp), on_rtp, "{bytes:02x?}");
            assert_eq!(classify(bytes, Channel::Rtcp), on_rtcp, "{bytes:02x?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            let seen = view(&bytes);
            proptest::prop_assert_eq!(seen.is_some(), bytes.len() >= 12 && bytes[0] >> 6 == 2);
            if classify(&bytes, Channel::Rtp) == Kind::Rtp {
                proptest::prop_assert!(seen.is_some());
            }
            if let (Some(ours), Ok(reader)) = (seen, RtpReader::new(&bytes)) {
                proptest::prop_assert_eq!(ours.payload, reader.payload());
                proptest::prop_assert_eq!(ours.ssrc, reader.ssrc());
                proptest::prop_assert_eq!(Seq::from(ours.sequence), reader.sequence_number());
                proptest::prop_assert_eq!(ours.timestamp, reader.timestamp());
            }
        }
    }
}
