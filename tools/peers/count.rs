//! Counts RTP in capture files of any program: a packet is its SSRC and sequence number, and counts once.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::capture::{Captured, ETHERNET, RAW_IP, frames};

/// What is in the files. A stream of more than 65,536 packets would come around to its first sequence number again: the rest of
/// it would be counted as duplicate.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Counts {
    files: u64,
    file_bytes: u64,
    streams: u64,
    packets: u64,
    duplicates: u64,
    rtcp: u64,
    /// Of which the file has fewer bytes than the wire had; counted as packets where their RTP header is there.
    cut: u64,
    /// Frames that are neither.
    other: u64,
}

pub fn run(paths: &[PathBuf]) -> super::Outcome {
    let mut counter = Counter::default();
    for path in paths {
        counter.add_path(path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    super::say(&serde_json::to_value(counter.counts())?)?;
    Ok(())
}

/// One bit a sequence number.
type Seen = Box<[u64; 1_024]>;

#[derive(Default)]
struct Counter {
    counts: Counts,
    streams: HashMap<u32, Seen>,
}

impl Counter {
    fn add_path(&mut self, path: &Path) -> io::Result<()> {
        if !path.is_dir() {
            self.counts.files += 1;
            self.counts.file_bytes += path.metadata()?.len();
            return frames(path, &mut |frame| self.add(&frame));
        }
        for entry in std::fs::read_dir(path)? {
            self.add_path(&entry?.path())?;
        }
        Ok(())
    }

    fn add(&mut self, frame: &Captured<'_>) {
        if frame.bytes.len() < frame.original {
            self.counts.cut += 1;
        }
        match udp_payload(frame) {
            // RFC 3550 §5.1: version 2. RFC 5761 §4: what the types of RTCP would be as payload types.
            Some([first, kind, s0, s1, _, _, _, _, a, b, c, d, ..]) if first >> 6 == 2 => {
                if (192..224).contains(kind) {
                    self.counts.rtcp += 1;
                } else {
                    self.see(u32::from_be_bytes([*a, *b, *c, *d]), u16::from_be_bytes([*s0, *s1]));
                }
            }
            _ => self.counts.other += 1,
        }
    }

    fn see(&mut self, ssrc: u32, sequence: u16) {
        let seen = self.streams.entry(ssrc).or_insert_with(|| Box::new([0; 1_024]));
        let (word, bit) = (&mut seen[usize::from(sequence >> 6)], 1 << (sequence & 63));
        if *word & bit == 0 {
            self.counts.packets += 1;
        } else {
            self.counts.duplicates += 1;
        }
        *word |= bit;
    }

    fn counts(mut self) -> Counts {
        self.counts.streams = self.streams.len() as u64;
        self.counts
    }
}

/// Of Ethernet with any VLAN tags, or of IP alone; IPv4 with options, whole or first fragments; IPv6 without extension headers.
fn udp_payload<'a>(frame: &Captured<'a>) -> Option<&'a [u8]> {
    let packet = match frame.link {
        ETHERNET => network(frame.bytes)?,
        link if RAW_IP.contains(&link) => frame.bytes,
        _ => return None,
    };
    let (protocol, segment) = match packet.first()? >> 4 {
        4 if packet.len() >= 20 && u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff == 0 => {
            (packet[9], packet.get(usize::from(packet[0] & 15) * 4..)?)
        }
        6 => (*packet.get(6)?, packet.get(40..)?),
        _ => return None,
    };
    segment.get(8..).filter(|_| protocol == 17)
}

fn network(frame: &[u8]) -> Option<&[u8]> {
    let mut at = 12;
    while let [0x81, 0x00] | [0x88, 0xa8] = frame.get(at..at + 2)? {
        at += 4;
    }
    frame.get(at + 2..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::tests::pcap_of;

    fn rtp(ssrc: u32, sequence: u16) -> Vec<u8> {
        let mut packet = vec![0x80, 0];
        packet.extend(sequence.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend(ssrc.to_be_bytes());
        packet
    }

    fn ipv4(payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 28];
        packet[0] = 0x45;
        packet[9] = 17;
        [packet, payload.to_vec()].concat()
    }

    fn ethernet(tags: usize, kind: [u8; 2], packet: &[u8]) -> Vec<u8> {
        [&[0; 12][..], &[0x81, 0, 0, 5].repeat(tags), &kind, packet].concat()
    }

    fn count(link: u32, frames: &[Vec<u8>]) -> Counts {
        let directory = tempfile::tempdir().unwrap();
        let records: Vec<(&[u8], usize)> = frames.iter().map(|frame| (&frame[..], frame.len())).collect();
        std::fs::write(directory.path().join("a.pcap"), pcap_of(link, &records)).unwrap();
        let mut counter = Counter::default();
        counter.add_path(directory.path()).unwrap();
        Counts { file_bytes: 0, ..counter.counts() }
    }

    #[test]
    fn every_packet_counts_once() {
        let frames = [rtp(1, 65_535), rtp(1, 0), rtp(2, 0), rtp(1, 0)].map(|rtp| ipv4(&rtp));
        let counts = Counts { files: 1, streams: 2, packets: 3, duplicates: 1, ..Counts::default() };
        assert_eq!(count(101, &frames), counts);
    }

    #[test]
    fn tags_and_both_families_are_seen_through() {
        let ipv6 = [&[0x60, 0, 0, 0, 0, 20, 17, 64][..], &[0; 40], &rtp(3, 3)].concat();
        let frames = [
            ethernet(0, [8, 0], &ipv4(&rtp(1, 1))),
            ethernet(2, [8, 0], &ipv4(&rtp(2, 2))),
            ethernet(0, [0x86, 0xdd], &ipv6),
        ];
        assert_eq!(count(ETHERNET, &frames).packets, 3);
    }

    #[test]
    fn what_is_not_rtp_is_told_apart() {
        let mut report = rtp(1, 1);
        report[1] = 200;
        let mut fragment = ipv4(&rtp(1, 2));
        fragment[7] = 1;
        let frames = [ipv4(&report), fragment, ipv4(b"SIP/2.0 200 OK"), ipv4(b"\x80"), vec![], vec![0x45]];
        let counts = count(101, &frames);
        assert_eq!((counts.packets, counts.rtcp, counts.other), (0, 1, 5));
    }
}
