//! The session table: what anybody may know of the recording sessions in memory, without asking the control thread.
//!
//! Fixed slots, one writer (control), readers anywhere. A slot that is reused carries a new generation, so that a reader
//! with an old [`RecordingKey`] finds nothing instead of a stranger.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::RecordingKey;
use super::id::Id;
use super::seqlock::Seqlock;
use super::state::State;
use crate::clock::Wall;
use crate::limits::{TABLE_READ_ATTEMPTS, TABLE_TEXT};

/// One recording session as it was at some moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    pub key: RecordingKey,
    pub id: Id,
    /// The first [`TABLE_TEXT`] bytes of the Call-ID, cut at a character.
    pub call_id: String,
    pub peer: SocketAddr,
    pub state: State,
    pub start: Wall,
    /// The last transition, or the last change of its streams or metadata.
    pub updated: Wall,
    pub last_signalling: Wall,
    pub last_media: Option<Wall>,
    /// Streams being recorded now.
    pub streams: u8,
}

#[derive(Debug)]
pub struct Table {
    slots: Box<[Seqlock<WORDS>]>,
}

impl Table {
    pub fn new(slots: usize) -> Table {
        Table { slots: (0..slots).map(|_| Seqlock::new()).collect() }
    }

    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Shows this snapshot in its slot. Only the control thread may call this.
    pub fn publish(&self, snapshot: &Snapshot) {
        self.slots[snapshot.key.slot as usize].write(&encode(snapshot));
    }

    /// Shows the slot as free. Only the control thread may call this.
    pub fn clear(&self, slot: u32) {
        self.slots[slot as usize].write(&[0; WORDS]);
    }

    /// What is in the slot; `None` when it is free, out of range, or being written at every attempt.
    pub fn read(&self, slot: u32) -> Option<Snapshot> {
        let cell = self.slots.get(slot as usize)?;
        for _ in 0..TABLE_READ_ATTEMPTS {
            if let Ok(words) = cell.read() {
                return decode(slot, &words);
            }
            std::hint::spin_loop();
        }
        None
    }

    /// The recording of this key, and no other that has its slot now.
    pub fn find(&self, key: RecordingKey) -> Option<Snapshot> {
        self.read(key.slot).filter(|snapshot| snapshot.key == key)
    }

    /// Every occupied slot, in slot order. Each snapshot is whole; together they are not one moment.
    pub fn iter(&self) -> impl Iterator<Item = Snapshot> + '_ {
        (0..self.slots.len() as u32).filter_map(|slot| self.read(slot))
    }
}

/// Word 0: occupied, state, streams, reactor, generation. Words 1–2: id. 3: start. 4–6: peer. 7: length of the text.
/// 8: updated. 9: last signalling. 10: last media, or 0. 11…: text.
const TEXT: usize = 11;
const WORDS: usize = TEXT + TABLE_TEXT.div_ceil(8);

const OCCUPIED: u64 = 1 << 63;

fn encode(snapshot: &Snapshot) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    words[0] = OCCUPIED
        | (snapshot.state as u64) << 48
        | u64::from(snapshot.streams) << 40
        | u64::from(snapshot.key.reactor) << 32
        | u64::from(snapshot.key.generation);
    words[1] = (snapshot.id.0 >> 64) as u64;
    words[2] = snapshot.id.0 as u64;
    words[3] = snapshot.start.0;
    let (ip, v6) = match snapshot.peer.ip() {
        IpAddr::V4(ip) => (ip.to_ipv6_mapped(), 0),
        IpAddr::V6(ip) => (ip, 1),
    };
    words[4] = (ip.to_bits() >> 64) as u64;
    words[5] = ip.to_bits() as u64;
    words[6] = v6 << 16 | u64::from(snapshot.peer.port());
    let text = truncate(&snapshot.call_id).as_bytes();
    words[7] = text.len() as u64;
    words[8] = snapshot.updated.0;
    words[9] = snapshot.last_signalling.0;
    words[10] = snapshot.last_media.map_or(0, |at| at.0);
    for (word, chunk) in words[TEXT..].iter_mut().zip(text.chunks(8)) {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        *word = u64::from_le_bytes(bytes);
    }
    words
}

fn decode(slot: u32, words: &[u64; WORDS]) -> Option<Snapshot> {
    if words[0] & OCCUPIED == 0 {
        return None;
    }
    let ip = Ipv6Addr::from_bits(u128::from(words[4]) << 64 | u128::from(words[5]));
    let ip = match words[6] >> 16 {
        0 => ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4),
        _ => IpAddr::V6(ip),
    };
    let text: Vec<u8> = words[TEXT..].iter().flat_map(|word| word.to_le_bytes()).collect();
    Some(Snapshot {
        key: RecordingKey { reactor: (words[0] >> 32) as u8, slot, generation: words[0] as u32 },
        id: Id(u128::from(words[1]) << 64 | u128::from(words[2])),
        call_id: String::from_utf8_lossy(&text[..words[7] as usize]).into_owned(),
        peer: SocketAddr::new(ip, words[6] as u16),
        state: *State::ALL.get((words[0] >> 48 & 7) as usize)?,
        start: Wall(words[3]),
        updated: Wall(words[8]),
        last_signalling: Wall(words[9]),
        last_media: Some(Wall(words[10])).filter(|at| at.0 != 0),
        streams: (words[0] >> 40) as u8,
    })
}

/// The longest prefix that fits the table, cut at a character.
fn truncate(text: &str) -> &str {
    &text[..text.floor_char_boundary(TABLE_TEXT)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(slot: u32, generation: u32, peer: &str, call_id: &str) -> Snapshot {
        Snapshot {
            key: RecordingKey { reactor: 3, slot, generation },
            id: Id(0x0192_3456_789a_7bcd_8ef0_1234_5678_9abc),
            call_id: call_id.to_owned(),
            peer: peer.parse().unwrap(),
            state: State::Failed,
            start: Wall(1_795_336_245_123_456_789),
            updated: Wall(1_795_336_246_000_000_000),
            last_signalling: Wall(1_795_336_247_000_000_000),
            last_media: (slot != 1).then_some(Wall(1_795_336_248_000_000_000)),
            streams: 16,
        }
    }

    #[test]
    fn a_snapshot_comes_back_as_it_was() {
        let table = Table::new(4);
        for (slot, peer) in [(0, "192.0.2.1:5060"), (1, "[2001:db8::1]:65535"), (3, "[::ffff:192.0.2.1]:1")] {
            let snapshot = snapshot(slot, u32::MAX, peer, "3848276298220188511@atlanta.example.com");
            table.publish(&snapshot);
            assert_eq!(table.read(slot), Some(snapshot));
        }
        assert_eq!(table.read(2), None);
        assert_eq!(table.read(4), None);
        assert_eq!(table.iter().map(|snapshot| snapshot.key.slot).collect::<Vec<_>>(), [0, 1, 3]);
    }

    #[test]
    fn a_long_call_id_is_cut_at_a_character() {
        let table = Table::new(1);
        table.publish(&snapshot(0, 1, "192.0.2.1:5060", &format!("{}é", "x".repeat(TABLE_TEXT - 1))));
        assert_eq!(table.read(0).unwrap().call_id, "x".repeat(TABLE_TEXT - 1));
    }

    #[test]
    fn an_old_key_finds_nothing() {
        let table = Table::new(1);
        let first = snapshot(0, 1, "192.0.2.1:5060", "a");
        table.publish(&first);
        assert_eq!(table.find(first.key), Some(first.clone()));
        table.clear(0);
        assert_eq!(table.find(first.key), None);
        table.publish(&snapshot(0, 2, "192.0.2.1:5060", "b"));
        assert_eq!(table.find(first.key), None);
        assert_eq!(table.read(0).unwrap().call_id, "b");
    }
}
