//! RTCP, as far as a recorder that writes it down needs to know it (RFC 3550 §6).

/// Whether `bytes` look like a compound RTCP packet: version 2, a packet type of RFC 5761 §4 (192 to 223), and a first packet
/// that is not longer than the datagram. Encrypted RTCP passes too: its first header is in the clear (RFC 3711 §3.4).
pub fn is_rtcp(bytes: &[u8]) -> bool {
    let &[first, packet_type, high, low, ..] = bytes else { return false };
    let words = usize::from(u16::from_be_bytes([high, low])) + 1;
    first >> 6 == 2 && (192..=223).contains(&packet_type) && words * 4 <= bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

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
