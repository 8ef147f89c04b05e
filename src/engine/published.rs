//! A histogram that one thread fills and others read. The writer never waits: it fills its own and hands over when it can.

use std::sync::{Arc, Mutex};

use hdrhistogram::Histogram;

/// Two significant digits, up to a minute in nanoseconds.
fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 2).expect("bounds are constant and valid")
}

#[derive(Clone)]
pub struct Published(Arc<Mutex<Histogram<u64>>>);

/// The writer's side.
pub struct Recorded {
    own: Histogram<u64>,
    shared: Published,
}

impl Recorded {
    pub fn new() -> (Recorded, Published) {
        let shared = Published(Arc::new(Mutex::new(empty())));
        (Recorded { own: empty(), shared: shared.clone() }, shared)
    }

    pub fn record(&mut self, value: u64) {
        self.own.saturating_record(value);
    }

    /// Hands over what has been recorded since the last time, unless a reader is at it: then the next time.
    pub fn publish(&mut self) {
        if self.own.is_empty() {
            return;
        }
        if let Ok(mut shared) = self.shared.0.try_lock() {
            shared.add(&self.own).expect("both have the same bounds");
            self.own.reset();
        }
    }
}

impl Published {
    /// Adds what has been published to `sum`.
    fn add_to(&self, sum: &mut Histogram<u64>) {
        // A reader that panicked leaves the histogram whole: adding is all that is ever done under the lock.
        let shared = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        sum.add(&*shared).expect("both have the same bounds");
    }

    /// One histogram of all.
    pub fn sum(parts: &[Published]) -> Histogram<u64> {
        let mut sum = empty();
        parts.iter().for_each(|part| part.add_to(&mut sum));
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_while_a_reader_holds_it() {
        let (mut writer, reader) = Recorded::new();
        let held = reader.0.lock().unwrap();
        writer.record(5);
        writer.publish();
        drop(held);
        writer.record(7);
        writer.publish();
        let sum = Published::sum(&[reader.clone(), reader]);
        assert_eq!((sum.len(), sum.min(), sum.max()), (4, 5, 7));
    }
}
