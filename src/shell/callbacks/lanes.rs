//! Which events one endpoint has got, is getting and waits for. Pure.
//!
//! An endpoint has some lanes, each with one request at a time. Events of one key share a lane and so keep their order; an
//! event that is not taken holds up its lane and no other.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::record::Entry;
use crate::limits::CALLBACK_WINDOW;

#[derive(Debug)]
pub struct Lanes {
    lanes: Vec<VecDeque<Arc<Entry>>>,
    /// Sequences that are in a lane.
    open: BTreeSet<u64>,
    /// Everything up to this sequence has been put into a lane, or is missing.
    fetched: u64,
    missing: u64,
}

impl Lanes {
    /// `delivered`: where the endpoint stood when the process before this one ended.
    pub fn new(lanes: usize, delivered: u64) -> Lanes {
        let lanes = (0..lanes).map(|_| VecDeque::new()).collect();
        Lanes { lanes, open: BTreeSet::new(), fetched: delivered, missing: 0 }
    }

    pub fn fetched(&self) -> u64 {
        self.fetched
    }

    /// Whether there is room for more.
    pub fn hungry(&self) -> bool {
        self.open.len() < CALLBACK_WINDOW
    }

    /// Takes the next entry and says in which lane it is. What is between it and the one before is missing.
    pub fn push(&mut self, entry: Arc<Entry>) -> usize {
        debug_assert!(entry.sequence > self.fetched);
        self.missing += entry.sequence.saturating_sub(self.fetched + 1);
        self.fetched = entry.sequence;
        self.open.insert(entry.sequence);
        let lane = entry.key as usize % self.lanes.len();
        self.lanes[lane].push_back(entry);
        lane
    }

    /// There is nothing more up to this sequence.
    pub fn pass(&mut self, up_to: u64) {
        self.missing += up_to.saturating_sub(self.fetched);
        self.fetched = self.fetched.max(up_to);
    }

    /// What this lane is to deliver now.
    pub fn head(&self, lane: usize) -> Option<&Arc<Entry>> {
        self.lanes[lane].front()
    }

    /// The head of this lane is delivered, or given up.
    pub fn done(&mut self, lane: usize) {
        if let Some(entry) = self.lanes[lane].pop_front() {
            self.open.remove(&entry.sequence);
        }
    }

    /// Everything up to this sequence is done: where to go on after a restart.
    pub fn delivered(&self) -> u64 {
        self.open.first().map_or(self.fetched, |first| first - 1)
    }

    /// Events in the lanes.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// The oldest event in the lanes.
    pub fn oldest(&self) -> Option<&Arc<Entry>> {
        self.lanes.iter().filter_map(VecDeque::front).min_by_key(|entry| entry.sequence)
    }

    /// Events that were not there any more when their turn came.
    pub fn missing(&self) -> u64 {
        self.missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Wall;

    fn entry(sequence: u64, key: u32) -> Arc<Entry> {
        Arc::new(Entry { sequence, at: Wall(sequence), key, body: "{}".into() })
    }

    #[test]
    fn one_key_one_lane_in_order() {
        let mut lanes = Lanes::new(2, 10);
        for (sequence, key) in [(11, 0), (12, 1), (13, 2), (14, 3)] {
            assert_eq!(lanes.push(entry(sequence, key)), key as usize % 2);
        }
        assert_eq!((lanes.head(0).unwrap().sequence, lanes.head(1).unwrap().sequence), (11, 12));
        assert_eq!((lanes.delivered(), lanes.open()), (10, 4));
        lanes.done(0);
        assert_eq!((lanes.head(0).unwrap().sequence, lanes.delivered()), (13, 11));
    }

    #[test]
    fn a_lane_that_stands_holds_up_itself_and_the_cursor() {
        let mut lanes = Lanes::new(2, 0);
        for sequence in 1..=6 {
            lanes.push(entry(sequence, sequence as u32));
        }
        for _ in 0..3 {
            lanes.done(0);
        }
        assert_eq!((lanes.head(0), lanes.delivered(), lanes.oldest().unwrap().sequence), (None, 0, 1));
        for _ in 0..3 {
            lanes.done(1);
        }
        assert_eq!((lanes.delivered(), lanes.open(), lanes.oldest()), (6, 0, None));
        lanes.done(1);
        assert_eq!(lanes.delivered(), 6);
    }

    #[test]
    fn what_is_missing_is_counted_once() {
        let mut lanes = Lanes::new(1, 4);
        lanes.push(entry(7, 0));
        assert_eq!(lanes.missing(), 2);
        lanes.pass(7);
        assert_eq!(lanes.missing(), 2);
        lanes.pass(9);
        assert_eq!((lanes.missing(), lanes.fetched(), lanes.delivered()), (4, 9, 6));
        lanes.done(0);
        assert_eq!(lanes.delivered(), 9);
    }

    #[test]
    fn the_window_is_bounded() {
        let mut lanes = Lanes::new(3, 0);
        for sequence in 1..=CALLBACK_WINDOW as u64 {
            assert!(lanes.hungry());
            lanes.push(entry(sequence, 1));
        }
        assert!(!lanes.hungry());
        lanes.done(1);
        assert!(lanes.hungry());
    }
}
