//! A value of `N` words that one thread writes and any thread reads, without a lock: a sequence lock.
//!
//! The version is odd while a write is under way. A reader that saw the same even version before and after it copied the
//! words has a whole value; otherwise it has nothing and may try again. The words themselves are atomics, so a torn read
//! is a wrong value that is thrown away, never undefined behaviour. `tests/loom.rs` checks this file with the atomics of
//! a model checker in place of the real ones.

use crate::sync::{AtomicU64, Ordering, fence};

#[derive(Debug)]
pub struct Seqlock<const N: usize> {
    version: AtomicU64,
    words: [AtomicU64; N],
}

/// A write was under way while the words were read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Torn;

impl<const N: usize> Seqlock<N> {
    /// All words zero.
    pub fn new() -> Seqlock<N> {
        Seqlock { version: AtomicU64::new(0), words: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// Replaces the value. Only one thread may ever call this; it waits for nobody.
    pub fn write(&self, words: &[u64; N]) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        // A reader that sees any word below also sees the odd version, through its own acquire fence.
        fence(Ordering::Release);
        for (slot, word) in self.words.iter().zip(words) {
            slot.store(*word, Ordering::Relaxed);
        }
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    /// One attempt at a whole value.
    pub fn read(&self) -> Result<[u64; N], Torn> {
        let before = self.version.load(Ordering::Acquire);
        if before & 1 == 1 {
            return Err(Torn);
        }
        let words = std::array::from_fn(|i| self.words[i].load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        if self.version.load(Ordering::Relaxed) == before { Ok(words) } else { Err(Torn) }
    }
}

impl<const N: usize> Default for Seqlock<N> {
    fn default() -> Self {
        Seqlock::new()
    }
}
