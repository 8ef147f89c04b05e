//! The sequence lock of the session table under a model checker: every interleaving of the writer and a reader, every value
//! a weak memory model lets the reader see. Readers write nothing, so one stands for all.

#[path = "../src/session/seqlock.rs"]
mod seqlock;

/// In place of `sipreel::sync`.
mod sync {
    pub use loom::sync::atomic::{AtomicU64, Ordering, fence};
}

use loom::sync::Arc;
use loom::thread;
use seqlock::{Seqlock, Torn};

/// What a publication writes: two words that belong together, and the generation.
fn value(generation: u64) -> [u64; 2] {
    [generation, generation * 10]
}

fn whole(words: [u64; 2]) -> bool {
    words[1] == words[0] * 10
}

#[test]
fn a_reader_sees_a_whole_value_or_none() {
    loom::model(|| {
        let cell = Arc::new(Seqlock::<2>::new());
        let writer = {
            let cell = cell.clone();
            thread::spawn(move || cell.write(&value(1)))
        };
        if let Ok(words) = cell.read() {
            assert!(whole(words), "{words:?}");
        }
        writer.join().unwrap();
        assert_eq!(cell.read(), Ok(value(1)));
    });
}

#[test]
fn a_reused_slot_never_shows_half_of_its_last_occupant() {
    loom::model(|| {
        let cell = Arc::new(Seqlock::<2>::new());
        cell.write(&value(1));
        let writer = {
            let cell = cell.clone();
            thread::spawn(move || {
                cell.write(&[0, 0]);
                cell.write(&value(2));
            })
        };
        let mut newest = 0;
        for _ in 0..2 {
            match cell.read() {
                Ok(words) => {
                    assert!(whole(words), "{words:?}");
                    // A reader never goes back to an occupant that it has seen replaced.
                    assert!(words[0] == 0 || words[0] >= newest, "{words:?} after {newest}");
                    newest = newest.max(words[0]);
                }
                Err(Torn) => continue,
            }
        }
        writer.join().unwrap();
    });
}

/// The model can fail: without its fences the lock is torn, and the checker says so.
#[test]
#[should_panic(expected = "torn")]
fn the_checker_finds_a_lock_without_fences() {
    use loom::sync::atomic::{AtomicU64, Ordering::Relaxed};
    loom::model(|| {
        let cell = Arc::new((AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)));
        let writer = {
            let cell = cell.clone();
            thread::spawn(move || {
                cell.0.store(1, Relaxed);
                cell.1.store(1, Relaxed);
                cell.2.store(1, Relaxed);
                cell.0.store(2, Relaxed);
            })
        };
        let before = cell.0.load(Relaxed);
        let words = (cell.1.load(Relaxed), cell.2.load(Relaxed));
        if before % 2 == 0 && cell.0.load(Relaxed) == before {
            assert!(words.0 == words.1, "torn");
        }
        writer.join().unwrap();
    });
}
