//! The layouts of raw files: a codec's bytes on the media clock where each tick has the same number of bytes, rtpdump for all
//! other codecs.

use std::net::SocketAddr;
use std::time::Duration;

use crate::clock::Wall;
use crate::limits::RAW_BYTES_PER_SECOND_MAX;
use crate::proto::sdp::Codec;

/// The layout of a constant-rate codec's file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clocked {
    /// Of the file's name, without a dot.
    pub extension: &'static str,
    /// RTP clock, in ticks per second.
    pub clock_rate: u32,
    pub bytes_per_tick: u32,
    /// A byte that decodes to silence however often it is repeated.
    pub silence: u8,
}

/// Of the names of rtpdump files, without a dot.
pub const DUMP_EXTENSION: &str = "rtp";

/// The codec that a stream's file is laid out for: the first that is neither telephone-event (RFC 4733) nor comfort noise
/// (RFC 3389).
pub fn main_codec(codecs: &[Codec]) -> Option<&Codec> {
    codecs.iter().find(|codec| !is_event(codec) && !codec.encoding.eq_ignore_ascii_case("CN"))
}

/// Whether the codec's timestamps stand still while packets go on (RFC 4733 §2.5.1.2).
pub fn is_event(codec: &Codec) -> bool {
    codec.encoding.eq_ignore_ascii_case("telephone-event")
}

/// `None`: the codec is recorded as rtpdump.
pub fn clocked(codec: &Codec) -> Option<Clocked> {
    let channels = u32::from(codec.channels.max(1));
    let is = |name: &str| codec.encoding.eq_ignore_ascii_case(name);
    let (extension, bytes_per_tick, silence) = if is("PCMU") {
        ("ulaw", channels, 0xff)
    } else if is("PCMA") {
        ("alaw", channels, 0xd5)
    } else if is("L16") {
        ("l16", 2 * channels, 0)
    } else if is("G722") && channels == 1 {
        // RFC 3551 §4.5.2: the RTP clock is 8,000 Hz although samples are at 16,000 Hz; at 64 kbit/s one byte carries both
        // samples of a tick. 0xfd is the smallest step of both sub-bands: a decoder at rest makes zeros of it, and after sound it
        // settles within 50 ms at a constant that is inaudible (more than 57 dB below full scale).
        ("g722", 1, 0xfd)
    } else {
        return None;
    };
    let rate = codec.clock_rate.checked_mul(bytes_per_tick)?;
    let sane = (1..=RAW_BYTES_PER_SECOND_MAX).contains(&rate);
    sane.then_some(Clocked { extension, clock_rate: codec.clock_rate, bytes_per_tick, silence })
}

/// Length of what precedes each packet of an rtpdump file.
pub const DUMP_PACKET_HEADER: usize = 8;

/// Length of what follows the line of text that an rtpdump file begins with.
pub const DUMP_START: usize = 16;

/// What an rtpdump file begins with: a line of text with the address that was listened on, then the start time and the source's
/// address and port in binary. These are 0: the source is not known before its first packet, and it may change.
pub fn dump_file_header(start: Wall, to: SocketAddr) -> Vec<u8> {
    let mut header = format!("#!rtpplay1.0 {}/{}\n", to.ip().to_canonical(), to.port()).into_bytes();
    header.extend_from_slice(&((start.0 / 1_000_000_000) as u32).to_be_bytes());
    header.extend_from_slice(&((start.0 % 1_000_000_000 / 1_000) as u32).to_be_bytes());
    header.extend_from_slice(&[0; 8]);
    header
}

/// What precedes a packet: the record's length, the packet's length before it was cut (0 for RTCP), milliseconds since the
/// file's start. A packet longer than the length field can tell is to be cut to [`DUMP_PACKET_MAX`].
pub fn dump_packet_header(
    kept: usize,
    length: usize,
    rtcp: bool,
    since_start: Duration,
) -> [u8; DUMP_PACKET_HEADER] {
    let record = (kept.min(DUMP_PACKET_MAX) + DUMP_PACKET_HEADER) as u16;
    let packet = if rtcp { 0 } else { u16::try_from(length).unwrap_or(u16::MAX) };
    let millis = since_start.as_millis() as u32;
    let mut header = [0; DUMP_PACKET_HEADER];
    header[0..2].copy_from_slice(&record.to_be_bytes());
    header[2..4].copy_from_slice(&packet.to_be_bytes());
    header[4..8].copy_from_slice(&millis.to_be_bytes());
    header
}

/// Bytes of one packet in an rtpdump file.
pub const DUMP_PACKET_MAX: usize = u16::MAX as usize - DUMP_PACKET_HEADER;

#[cfg(test)]
mod tests {
    use super::*;

    fn codec(encoding: &str, clock_rate: u32, channels: u8) -> Codec {
        Codec { payload_type: 96, encoding: encoding.to_owned(), clock_rate, channels, fmtp: None }
    }

    #[test]
    fn constant_rate_codecs_have_their_bytes_per_tick() {
        for (encoding, rate, channels, expected) in [
            ("PCMU", 8_000, 1, Some(("ulaw", 1, 0xff))),
            ("pcma", 8_000, 1, Some(("alaw", 1, 0xd5))),
            ("PCMA", 8_000, 2, Some(("alaw", 2, 0xd5))),
            ("L16", 44_100, 2, Some(("l16", 4, 0))),
            ("L16", 8_000, 0, Some(("l16", 2, 0))),
            ("G722", 8_000, 1, Some(("g722", 1, 0xfd))),
            ("G722", 8_000, 2, None),
            ("L16", 48_000, 3, None),
            ("L16", u32::MAX, 255, None),
            ("PCMU", 0, 1, None),
            ("opus", 48_000, 2, None),
            ("G729", 8_000, 1, None),
        ] {
            let layout = clocked(&codec(encoding, rate, channels));
            assert_eq!(
                layout.map(|l| (l.extension, l.bytes_per_tick, l.silence)),
                expected,
                "{encoding}/{rate}/{channels}"
            );
        }
    }

    #[test]
    fn events_and_comfort_noise_lay_out_no_file() {
        let offered = [codec("telephone-event", 8_000, 1), codec("CN", 8_000, 1), codec("PCMA", 8_000, 1)];
        assert_eq!(main_codec(&offered).unwrap().encoding, "PCMA");
        assert_eq!(main_codec(&offered[..2]), None);
    }

    #[test]
    fn dump_headers_are_those_of_rtptools() {
        let at = Wall(1_795_336_245_123_456_789);
        let header = dump_file_header(at, "192.0.2.1:20000".parse().unwrap());
        let line = b"#!rtpplay1.0 192.0.2.1/20000\n";
        assert_eq!(&header[..line.len()], line);
        let binary = [0x6b, 2, 0xa8, 0x35, 0, 1, 0xe2, 0x40, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(header[line.len()..], binary);

        let millis = Duration::from_millis(0x0102_0304);
        assert_eq!(dump_packet_header(172, 172, false, millis), [0, 180, 0, 172, 1, 2, 3, 4]);
        assert_eq!(dump_packet_header(28, 28, true, millis), [0, 36, 0, 0, 1, 2, 3, 4]);
        let cut = dump_packet_header(70_000, 70_000, false, Duration::ZERO);
        assert_eq!(cut, [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    }
}
