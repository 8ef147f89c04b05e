//! An event as a line of a queue file: `<check> <sequence> <time> <key> <JSON>`.
//!
//! A process or a box can stop in the middle of any write. The check tells a whole line from the beginning of one, and a line
//! that is damaged takes no other with it.

use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::clock::Wall;

/// An event in the queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// 1, 2, 3, …: one more with each event of this queue, through all restarts.
    pub sequence: u64,
    pub at: Wall,
    /// Entries of one key are delivered in their order.
    pub key: u32,
    /// The event as JSON, without a line break.
    pub body: Bytes,
}

/// What a file holds.
#[derive(PartialEq, Eq, Debug, Default)]
pub struct Decoded {
    /// Ascending.
    pub entries: Vec<Arc<Entry>>,
    /// Lines that are not what was written. A last line without its end is none: it was never whole.
    pub damaged: usize,
}

/// The line, its end included.
pub fn encode(entry: &Entry) -> Vec<u8> {
    let head = format!("{} {} {:08x} ", entry.sequence, entry.at.0, entry.key);
    let mut line = Vec::with_capacity(head.len() + entry.body.len() + 10);
    line.extend_from_slice(b"00000000 ");
    line.extend_from_slice(head.as_bytes());
    line.extend_from_slice(&entry.body);
    let check = check(&line[9..]);
    line[..8].copy_from_slice(check.as_bytes());
    line.push(b'\n');
    line
}

/// Reads every line that is whole.
pub fn decode(file: &[u8]) -> Decoded {
    let mut decoded = Decoded::default();
    let mut last = 0;
    for line in file.split_inclusive(|byte| *byte == b'\n') {
        let Some(line) = line.strip_suffix(b"\n") else { break };
        match entry(line).filter(|entry| entry.sequence > last) {
            Some(entry) => {
                last = entry.sequence;
                decoded.entries.push(Arc::new(entry));
            }
            None => decoded.damaged += 1,
        }
    }
    decoded
}

fn entry(line: &[u8]) -> Option<Entry> {
    let (written, rest) = (line.get(..8)?, line.get(9..)?);
    if line[8] != b' ' || written != check(rest).as_bytes() {
        return None;
    }
    let mut fields = rest.splitn(4, |byte| *byte == b' ');
    let mut field = || std::str::from_utf8(fields.next()?).ok();
    let sequence = field()?.parse().ok()?;
    let at = Wall(field()?.parse().ok()?);
    let key = u32::from_str_radix(field()?, 16).ok()?;
    Some(Entry { sequence, at, key, body: Bytes::copy_from_slice(fields.next()?) })
}

/// How far an endpoint has got, as its cursor file has it: always of one length, so that it can be written over.
pub fn encode_cursor(delivered: u64) -> String {
    let number = format!("{delivered:020}");
    format!("{} {number}\n", check(number.as_bytes()))
}

pub fn decode_cursor(text: &[u8]) -> Option<u64> {
    let (written, number) = (text.get(..8)?, text.get(9..29)?);
    let whole = text.get(29) == Some(&b'\n') && written == check(number).as_bytes();
    whole.then(|| std::str::from_utf8(number).ok()?.parse().ok())?
}

/// The first four bytes of SHA-256, in hex.
fn check(bytes: &[u8]) -> String {
    Sha256::digest(bytes)[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn numbered(sequence: u64) -> Entry {
        let body = format!("{{\"id\":\"{sequence}\",\"data\":{{\"a\":\"b c\"}}}}");
        Entry { sequence, at: Wall(sequence * 1_000), key: 0xdead_0000 + sequence as u32, body: body.into() }
    }

    fn file(sequences: impl Iterator<Item = u64>) -> Vec<u8> {
        sequences.flat_map(|sequence| encode(&numbered(sequence))).collect()
    }

    #[test]
    fn lines_are_read_as_they_were_written() {
        let decoded = decode(&file(7..12));
        assert_eq!(decoded.damaged, 0);
        assert!(decoded.entries.iter().map(|entry| (**entry).clone()).eq((7..12).map(numbered)));
        let line = encode(&numbered(7));
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    }

    /// The process can end, and the power fail, at every byte.
    #[test]
    fn a_write_torn_at_any_byte_costs_the_last_line_only() {
        let whole = file(1..4);
        let ends: Vec<usize> = (1..4).map(|n| file(1..n + 1).len()).collect();
        for length in 0..=whole.len() {
            let decoded = decode(&whole[..length]);
            let expected = ends.iter().filter(|end| **end <= length).count();
            assert_eq!((decoded.entries.len(), decoded.damaged), (expected, 0), "{length}");
        }
    }

    #[test]
    fn a_byte_that_changed_costs_its_line_or_two() {
        let whole = file(1..6);
        for place in 0..whole.len() {
            let mut file = whole.clone();
            file[place] ^= 0x11;
            let decoded = decode(&file);
            // A line break that is lost or appears joins two lines, or splits one.
            assert!((3..5).contains(&decoded.entries.len()), "{place}: {decoded:?}");
            assert!((1..3).contains(&decoded.damaged) || place + 1 == whole.len(), "{place}: {decoded:?}");
            for entry in decoded.entries {
                assert_eq!(*entry, numbered(entry.sequence));
            }
        }
    }

    /// After a crash some file systems show zeroes where data never arrived.
    #[test]
    fn zeroes_and_other_rubbish_are_passed_over() {
        let rubbish: [&[u8]; 4] = [&[0; 700], b"\n\n\n", b"hello\n", &[0xff; 64]];
        for bytes in rubbish {
            let mut text = [bytes, b"\n"].concat();
            text.extend(file(3..5));
            assert_eq!(decode(&text).entries.len(), 2);
            assert!(decode(&text).damaged > 0);
        }
    }

    #[test]
    fn sequences_only_rise() {
        let decoded = decode(&file([5, 5, 4, 6].into_iter()));
        assert_eq!(decoded.entries.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), [5, 6]);
        assert_eq!(decoded.damaged, 2);
    }

    #[test]
    fn a_cursor_is_whole_or_none() {
        let text = encode_cursor(1_234_567);
        assert_eq!(decode_cursor(text.as_bytes()), Some(1_234_567));
        assert_eq!(encode_cursor(u64::MAX).len(), text.len());
        for length in 0..text.len() {
            assert_eq!(decode_cursor(&text.as_bytes()[..length]), None, "{length}");
        }
        let next = encode_cursor(1_234_568);
        for place in 1..text.len() - 1 {
            let torn = [&next.as_bytes()[..place], &text.as_bytes()[place..]].concat();
            assert!(matches!(decode_cursor(&torn), None | Some(1_234_567..=1_234_568)), "{place}");
        }
    }
}
