//! RTCP, as far as a recorder needs it (RFC 3550 §6): told from RTP, sender reports read, receiver reports written.

const SENDER_REPORT: u8 = 200;
const RECEIVER_REPORT: u8 = 201;
const SOURCE_DESCRIPTION: u8 = 202;
/// Type of the SDES item that every compound packet has.
const CNAME: u8 = 1;

/// Bytes of a packet up to its first block or chunk, and of a report block.
const HEADER: usize = 4;
const BLOCK: usize = 24;
/// The cumulative number of packets lost has 24 bits, one of them for the sign.
const LOST_MAX: u64 = 0x7f_ffff;

/// Whether `bytes` look like a compound RTCP packet: version 2, a packet type of RFC 5761 §4 (192 to 223), and a first packet
/// that is not longer than the datagram. Encrypted RTCP passes too: its first header is in the clear (RFC 3711 §3.4).
pub fn is_rtcp(bytes: &[u8]) -> bool {
    let &[first, packet_type, high, low, ..] = bytes else { return false };
    let words = usize::from(u16::from_be_bytes([high, low])) + 1;
    first >> 6 == 2 && (192..=223).contains(&packet_type) && words * 4 <= bytes.len()
}

/// What a receiver report refers to of the sender's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SenderReport {
    pub ssrc: u32,
    /// The middle 32 of the 64 bits of its NTP time.
    pub time: u32,
}

/// The sender report that a compound packet begins with (§6.4.1). `None`: it begins with something else, or is cut.
pub fn sender_report(bytes: &[u8]) -> Option<SenderReport> {
    let (start, _) = bytes.split_first_chunk::<28>()?;
    let word = |at: usize| u32::from_be_bytes([start[at], start[at + 1], start[at + 2], start[at + 3]]);
    let known = start[0] >> 6 == 2 && start[1] == SENDER_REPORT;
    known.then(|| SenderReport { ssrc: word(4), time: word(10) })
}

/// What one receiver has seen of one source (§6.4.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReportBlock {
    pub ssrc: u32,
    /// Since the last report, in 256ths.
    pub fraction_lost: u8,
    /// Since the beginning; what the field cannot hold is sent as its largest value.
    pub lost: u64,
    /// Highest sequence number, extended by its cycles.
    pub highest: u32,
    /// In ticks of the media clock.
    pub jitter: u32,
    /// Of the last sender report, and since it came in 65,536ths of a second; 0 and 0 before the first.
    pub last_report: u32,
    pub since_last_report: u32,
}

/// A receiver report and who sends it, which is the least that a compound packet may be (§6.1).
#[derive(Clone, Copy, Debug)]
pub struct ReceiverReport<'a> {
    /// Of the reporter.
    pub ssrc: u32,
    /// At most 31.
    pub blocks: &'a [ReportBlock],
    /// At most 255 bytes.
    pub cname: &'a str,
}

impl ReceiverReport<'_> {
    pub const BLOCKS_MAX: usize = 31;

    /// Bytes of a report with so many blocks and a CNAME of this length.
    pub const fn len(blocks: usize, cname: usize) -> usize {
        // An item is its type, its length and its text; a list of items ends with at least one zero.
        let items = (2 + cname + 1).next_multiple_of(4);
        HEADER + 4 + blocks * BLOCK + HEADER + 4 + items
    }

    /// Writes it to the front of `out` and returns its length. `None`: it does not fit, or has more than a packet can tell.
    pub fn write(&self, out: &mut [u8]) -> Option<usize> {
        let ReceiverReport { ssrc, blocks, cname } = *self;
        let name_len = u8::try_from(cname.len()).ok()?;
        if blocks.len() > Self::BLOCKS_MAX {
            return None;
        }
        let out = out.get_mut(..Self::len(blocks.len(), cname.len()))?;
        out.fill(0);
        let (report, description) = out.split_at_mut(HEADER + 4 + blocks.len() * BLOCK);
        write_header(report, blocks.len() as u8, RECEIVER_REPORT, ssrc);
        let rooms = report[HEADER + 4..].chunks_exact_mut(BLOCK);
        rooms.zip(blocks).for_each(|(room, block)| room.copy_from_slice(&block.bytes()));
        write_header(description, 1, SOURCE_DESCRIPTION, ssrc);
        let item = &mut description[HEADER + 4..];
        item[..2].copy_from_slice(&[CNAME, name_len]);
        item[2..2 + cname.len()].copy_from_slice(cname.as_bytes());
        Some(out.len())
    }
}

/// Version 2, no padding, a count of blocks or chunks, type, length in words less one, SSRC.
fn write_header(packet: &mut [u8], count: u8, packet_type: u8, ssrc: u32) {
    let words = (packet.len() / 4 - 1) as u16;
    packet[..2].copy_from_slice(&[2 << 6 | count, packet_type]);
    packet[2..4].copy_from_slice(&words.to_be_bytes());
    packet[4..8].copy_from_slice(&ssrc.to_be_bytes());
}

impl ReportBlock {
    fn bytes(&self) -> [u8; BLOCK] {
        let lost = u32::from(self.fraction_lost) << 24 | self.lost.min(LOST_MAX) as u32;
        let words = [self.ssrc, lost, self.highest, self.jitter, self.last_report, self.since_last_report];
        let mut bytes = [0; BLOCK];
        bytes
            .chunks_exact_mut(4)
            .zip(words)
            .for_each(|(room, word)| room.copy_from_slice(&word.to_be_bytes()));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK_OF_ONE: ReportBlock = ReportBlock {
        ssrc: 0xcafe_0001,
        fraction_lost: 0x40,
        lost: 3,
        highest: 0x0001_fffa,
        jitter: 12,
        last_report: 0x8765_4321,
        since_last_report: 0x0001_8000,
    };

    #[rustfmt::skip]
    #[test]
    fn a_report_as_rfc_3550_draws_it() {
        let report = ReceiverReport { ssrc: 0x1122_3344, blocks: &[BLOCK_OF_ONE], cname: "srs@x" };
        let mut out = [0xff; 100];
        let len = report.write(&mut out).unwrap();
        assert_eq!(out[..len], [
            0x81, 201, 0, 7, 0x11, 0x22, 0x33, 0x44,
            0xca, 0xfe, 0, 1, 0x40, 0, 0, 3, 0, 1, 0xff, 0xfa, 0, 0, 0, 12,
            0x87, 0x65, 0x43, 0x21, 0, 1, 0x80, 0,
            0x81, 202, 0, 3, 0x11, 0x22, 0x33, 0x44, 1, 5, b's', b'r', b's', b'@', b'x', 0,
        ]);
        assert!(is_rtcp(&out[..len]) && is_rtcp(&out[32..len]));
        assert_eq!(out[len..], [0xff; 100 - 48], "nothing behind it");
    }

    #[test]
    fn a_cname_is_followed_by_at_least_one_zero() {
        for (cname, items) in [("", 4), ("a", 4), ("ab", 8), ("abcde", 8), ("abcdef", 12)] {
            let mut out = [0xff; 64];
            let len = ReceiverReport { ssrc: 1, blocks: &[], cname }.write(&mut out).unwrap();
            assert_eq!(len, 8 + 8 + items, "{cname}");
            assert_eq!(usize::from(out[11]), (8 + items) / 4 - 1, "{cname}");
            assert!(out[18 + cname.len()..len].iter().all(|&byte| byte == 0), "{cname}");
        }
    }

    #[test]
    fn what_a_packet_cannot_tell_is_clamped_or_refused() {
        let mut out = [0; 2_000];
        let lost = |lost| ReportBlock { lost, ..BLOCK_OF_ONE }.bytes()[4..8].to_vec();
        assert_eq!(lost(0x7f_ffff), [0x40, 0x7f, 0xff, 0xff]);
        assert_eq!(lost(u64::MAX), [0x40, 0x7f, 0xff, 0xff]);
        let blocks = [BLOCK_OF_ONE; 32];
        let long = "x".repeat(256);
        let written = |blocks, cname, out: &mut [u8]| ReceiverReport { ssrc: 1, blocks, cname }.write(out);
        assert_eq!(written(&blocks[..31], &long[..255], &mut out), Some(8 + 31 * 24 + 8 + 260));
        assert_eq!(written(&blocks, "", &mut out), None);
        assert_eq!(written(&[], &long, &mut out), None);
        assert_eq!(written(&[], "srs@x", &mut out[..23]), None);
        assert_eq!(written(&[], "srs@x", &mut out[..24]), Some(24));
    }

    #[test]
    fn sender_reports_are_read_and_nothing_else_is() {
        let mut report = [0; 28];
        report[..8].copy_from_slice(&[0x80, 200, 0, 6, 0xca, 0xfe, 0, 1]);
        report[8..16].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(sender_report(&report), Some(SenderReport { ssrc: 0xcafe_0001, time: 0x0304_0506 }));
        assert_eq!(sender_report(&report[..27]), None);
        report[1] = 201;
        assert_eq!(sender_report(&report), None);
    }

    #[test]
    fn tells_rtcp_by_version_type_and_length() {
        // A receiver report without blocks, SSRC 0x11223344.
        let report = [0x80, 201, 0, 1, 0x11, 0x22, 0x33, 0x44];
        assert!(is_rtcp(&report));
        assert!(!is_rtcp(&report[..7]), "shorter than it says");
        assert!(!is_rtcp(&report[..3]) && !is_rtcp(&[]));
        for (at, value, why) in
            [(0, 0x40, "version 1"), (1, 191, "below the range"), (1, 224, "above the range")]
        {
            let mut bad = report;
            bad[at] = value;
            assert!(!is_rtcp(&bad), "{why}");
        }
    }
}
