//! Deadlines in order. Each object has at most one, so there are never more deadlines than objects.

use std::collections::BTreeSet;

use crate::clock::Mono;

#[derive(Debug)]
pub struct Timers<K> {
    due: BTreeSet<(Mono, K)>,
}

impl<K: Ord + Copy> Timers<K> {
    pub fn new() -> Timers<K> {
        Timers { due: BTreeSet::new() }
    }

    /// Moves the deadline of `key`; `armed` is where its object remembers it. `None` takes it away.
    pub fn set(&mut self, armed: &mut Option<Mono>, key: K, at: Option<Mono>) {
        if let Some(old) = armed.take() {
            self.due.remove(&(old, key));
        }
        if let Some(at) = at {
            self.due.insert((at, key));
        }
        *armed = at;
    }

    /// The earliest, if it has come. It is taken out: its object has to be armed anew.
    pub fn pop(&mut self, now: Mono) -> Option<K> {
        let first = *self.due.first()?;
        if first.0 > now {
            return None;
        }
        self.due.pop_first().map(|(_, key)| key)
    }

    pub fn next(&self) -> Option<Mono> {
        self.due.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pops_in_order_and_only_what_is_due() {
        let mut timers = Timers::new();
        let (mut a, mut b, mut c) = (None, None, None);
        timers.set(&mut a, 'a', Some(Mono(30)));
        timers.set(&mut b, 'b', Some(Mono(10)));
        timers.set(&mut c, 'c', Some(Mono(20)));
        timers.set(&mut c, 'c', Some(Mono(40)));
        assert_eq!(timers.next(), Some(Mono(10)));
        assert_eq!(
            (timers.pop(Mono(35)), timers.pop(Mono(35)), timers.pop(Mono(35))),
            (Some('b'), Some('a'), None)
        );
        timers.set(&mut c, 'c', None);
        assert_eq!((timers.next(), c), (None, None));
    }
}
