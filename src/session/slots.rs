//! The slots of the recordings in memory. A key of an earlier occupant finds nothing.

use super::RecordingKey;
use super::recording::Recording;

#[derive(Debug)]
pub struct Slots {
    entries: Vec<Entry>,
    /// Emptied slots, used again before new ones are begun.
    free: Vec<u32>,
    max: usize,
}

#[derive(Debug)]
struct Entry {
    generation: u32,
    recording: Option<Box<Recording>>,
}

impl Slots {
    pub fn new(max: usize) -> Slots {
        Slots { entries: Vec::new(), free: Vec::new(), max }
    }

    pub fn occupied(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub fn full(&self) -> bool {
        self.occupied() >= self.max
    }

    /// The key that the next `insert` fills; `None` when every slot is occupied.
    pub fn vacant(&self, reactor: u8) -> Option<RecordingKey> {
        let slot = match self.free.last() {
            Some(slot) => *slot,
            None if self.entries.len() < self.max => self.entries.len() as u32,
            None => return None,
        };
        let generation = self.entries.get(slot as usize).map_or(1, |entry| entry.generation);
        Some(RecordingKey { reactor, slot, generation })
    }

    /// Fills the slot that `vacant` named.
    pub fn insert(&mut self, recording: Box<Recording>) {
        let RecordingKey { slot, generation, .. } = recording.key;
        if slot as usize == self.entries.len() {
            self.entries.push(Entry { generation, recording: Some(recording) });
        } else {
            debug_assert_eq!(self.free.last(), Some(&slot));
            self.free.pop();
            self.entries[slot as usize].recording = Some(recording);
        }
    }

    /// The key of the slot's occupant.
    pub fn key(&self, slot: u32) -> Option<RecordingKey> {
        self.entries.get(slot as usize)?.recording.as_ref().map(|recording| recording.key)
    }

    pub fn get(&self, key: RecordingKey) -> Option<&Recording> {
        self.entries.get(key.slot as usize)?.recording.as_deref().filter(|recording| recording.key == key)
    }

    pub fn get_mut(&mut self, key: RecordingKey) -> Option<&mut Recording> {
        self.entries
            .get_mut(key.slot as usize)?
            .recording
            .as_deref_mut()
            .filter(|recording| recording.key == key)
    }

    /// Empties the slot. Its next occupant has another generation.
    pub fn remove(&mut self, key: RecordingKey) -> Option<Box<Recording>> {
        self.get(key)?;
        let entry = &mut self.entries[key.slot as usize];
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(key.slot);
        entry.recording.take()
    }

    /// Every occupant's key, in slot order.
    pub fn keys(&self) -> Vec<RecordingKey> {
        self.entries
            .iter()
            .filter_map(|entry| entry.recording.as_ref())
            .map(|recording| recording.key)
            .collect()
    }
}
