//! RTP and RTCP as the tool writes them (RFC 3550 §5.1, §6.4.1), and the few fields it reads back.

use std::time::Duration;

use super::plan::{PAYLOAD_MAX, Plan, StreamPlan};

pub const HEADER: usize = 12;
/// Seconds from 1900, where NTP begins, to 1970.
const NTP_EPOCH: u64 = 2_208_988_800;

/// Writes packet `index` of the stream whole and returns its length.
pub fn packet(plan: &Plan, stream: &StreamPlan, index: u32, out: &mut [u8]) -> usize {
    let timestamp = stream.first_timestamp.wrapping_add(index.wrapping_mul(plan.timestamp_step()));
    // RFC 3551 §4.1: the marker begins a talkspurt.
    let marker = if index == 0 { 0x80 } else { 0 };
    out[0] = 0x80;
    out[1] = marker | plan.codec.payload_type();
    out[2..4].copy_from_slice(&stream.seq(index).to_be_bytes());
    out[4..8].copy_from_slice(&timestamp.to_be_bytes());
    out[8..12].copy_from_slice(&stream.ssrc.to_be_bytes());
    let payload =
        out[HEADER..].first_chunk_mut::<PAYLOAD_MAX>().expect("a packet buffer has room for any payload");
    HEADER + plan.payload(stream, index, payload)
}

/// What a sender report says beyond the stream itself.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    pub wall: Duration,
    pub timestamp: u32,
    pub packets: u32,
    pub octets: u32,
}

/// Writes a compound of sender report and CNAME (RFC 3550 §6.1) and returns its length.
pub fn sender_report(stream: &StreamPlan, report: &Report, out: &mut [u8]) -> usize {
    let cname = format!("src-{}-{}@load", stream.call, stream.stream);
    let ntp_seconds = report.wall.as_secs().wrapping_add(NTP_EPOCH) as u32;
    let ntp_fraction = ((u64::from(report.wall.subsec_nanos()) << 32) / 1_000_000_000) as u32;
    let words = [
        0x80c8_0006,
        stream.ssrc,
        ntp_seconds,
        ntp_fraction,
        report.timestamp,
        report.packets,
        report.octets,
    ];
    let mut len = 0;
    let mut put = |bytes: &[u8]| {
        out[len..len + bytes.len()].copy_from_slice(bytes);
        len += bytes.len();
    };
    words.iter().for_each(|word| put(&word.to_be_bytes()));
    // Item type 1, length, text, at least one zero, padded to a word.
    let item = 2 + cname.len();
    let padding = 4 - item % 4;
    let length = 1 + (item + padding) / 4;
    put(&[0x81, 202, 0, length as u8]);
    put(&stream.ssrc.to_be_bytes());
    put(&[1, cname.len() as u8]);
    put(cname.as_bytes());
    put(&[0; 4][..padding]);
    len
}

/// SSRC and sequence number, timestamp of a packet that looks like RTP.
pub fn read(bytes: &[u8]) -> Option<(u32, u16, u32)> {
    let header = bytes.first_chunk::<HEADER>().filter(|header| header[0] >> 6 == 2)?;
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    Some((word(8), u16::from_be_bytes([header[2], header[3]]), word(4)))
}

/// SSRC of the sender report that begins this compound.
pub fn read_report(bytes: &[u8]) -> Option<u32> {
    let header = bytes.first_chunk::<8>().filter(|header| header[0] >> 6 == 2 && header[1] == 200)?;
    Some(u32::from_be_bytes([header[4], header[5], header[6], header[7]]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::plan::tests::plan;
    use crate::load::wire::PACKET_MAX;

    #[test]
    fn an_rtp_library_reads_the_packet() {
        let plan = plan();
        let stream = plan.stream(1, 0);
        let mut out = [0; PACKET_MAX];
        let len = packet(&plan, &stream, 0, &mut out);
        let reader = rtp_rs::RtpReader::new(&out[..len]).unwrap();
        assert_eq!((reader.ssrc(), u16::from(reader.sequence_number())), (stream.ssrc, stream.first_seq));
        assert_eq!(
            (reader.timestamp(), reader.mark(), reader.payload_type()),
            (stream.first_timestamp, true, 0)
        );
        assert_eq!(reader.payload().len(), 160);
        packet(&plan, &stream, 1, &mut out);
        assert_eq!(read(&out), Some((stream.ssrc, stream.seq(1), stream.first_timestamp.wrapping_add(160))));
    }

    #[test]
    fn a_sender_report_is_whole_words_and_says_how_many() {
        let stream = plan().stream(1, 0);
        let mut out = [0; PACKET_MAX];
        let report = Report { wall: Duration::from_millis(1_500), timestamp: 9, packets: 3, octets: 480 };
        let len = sender_report(&stream, &report, &mut out);
        let words = |at: usize| 4 * (usize::from(u16::from_be_bytes([out[at + 2], out[at + 3]])) + 1);
        assert_eq!(words(0), 28);
        assert_eq!(28 + words(28), len);
        assert_eq!(out[8..16], [0x83, 0xaa, 0x7e, 0x81, 0x80, 0, 0, 0]);
        assert_eq!(read_report(&out), Some(stream.ssrc));
        assert_eq!(read_report(b"short"), None);
    }
}
