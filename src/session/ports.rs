//! The media port pairs: who has them, and how long a returned one rests.
//!
//! One pool per reactor, because a pair's sockets belong to its reactor. Taking and giving back cost the same however
//! many pairs there are. A returned pair rests for the cooldown before it is used again: RTP of the call that has ended
//! may still be on its way. At every moment free + used + cooling = total.

use std::collections::VecDeque;
use std::time::Duration;

use super::PortPair;
use crate::clock::Mono;

#[derive(Debug)]
pub struct Ports {
    /// Free pairs of each reactor; the one that has been free longest is taken first.
    free: Vec<VecDeque<PortPair>>,
    /// Resting pairs and the end of their rest, in the order in which they came back.
    cooling: VecDeque<(Mono, PortPair)>,
    cooldown: Duration,
    total: usize,
}

impl Ports {
    /// Pairs of reactors that do not exist are left out.
    pub fn new(pairs: &[PortPair], reactors: u8, cooldown: Duration) -> Ports {
        let mut free = vec![VecDeque::new(); usize::from(reactors)];
        for pair in pairs {
            if let Some(pool) = free.get_mut(usize::from(pair.reactor)) {
                pool.push_back(*pair);
            }
        }
        let total = free.iter().map(VecDeque::len).sum();
        Ports { free, cooling: VecDeque::with_capacity(total), cooldown, total }
    }

    /// The reactor with the most free pairs, the first of several; `None` when no pair is free at all.
    pub fn roomiest(&self) -> Option<u8> {
        let most = self.free.iter().map(VecDeque::len).max().filter(|most| *most > 0)?;
        self.free.iter().position(|pool| pool.len() == most).map(|reactor| reactor as u8)
    }

    /// `count` pairs of this reactor, or none of them.
    pub fn take(&mut self, reactor: u8, count: usize) -> Option<Vec<PortPair>> {
        let pool = self.free.get_mut(usize::from(reactor))?;
        (pool.len() >= count).then(|| pool.drain(..count).collect())
    }

    /// A pair comes back and begins its rest.
    pub fn give(&mut self, now: Mono, pair: PortPair) {
        debug_assert!(self.used() > 0, "{pair:?} given back twice");
        self.cooling.push_back((now + self.cooldown, pair));
    }

    /// Pairs whose rest is over become free.
    pub fn thaw(&mut self, now: Mono) {
        while let Some((until, pair)) = self.cooling.front().copied() {
            if until > now {
                return;
            }
            self.cooling.pop_front();
            self.free[usize::from(pair.reactor)].push_back(pair);
        }
    }

    /// When the next pair becomes free.
    pub fn next(&self) -> Option<Mono> {
        self.cooling.front().map(|(until, _)| *until)
    }

    pub fn free(&self) -> usize {
        self.free.iter().map(VecDeque::len).sum()
    }

    pub fn cooling(&self) -> usize {
        self.cooling.len()
    }

    pub fn used(&self) -> usize {
        self.total - self.free() - self.cooling()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: Duration = Duration::from_secs(5);

    fn ports(per_reactor: &[u16]) -> Ports {
        let pairs = per_reactor.iter().enumerate().flat_map(|(reactor, count)| {
            (0..*count).map(move |index| PortPair {
                reactor: reactor as u8,
                index,
                rtp: 20_000 + 1_000 * reactor as u16 + 2 * index,
            })
        });
        Ports::new(&pairs.collect::<Vec<_>>(), per_reactor.len() as u8, REST)
    }

    fn counts(ports: &Ports) -> (usize, usize, usize) {
        (ports.free(), ports.used(), ports.cooling())
    }

    #[test]
    fn all_or_none() {
        let mut ports = ports(&[3]);
        assert_eq!(ports.take(0, 4), None);
        assert_eq!(counts(&ports), (3, 0, 0));
        assert_eq!(ports.take(0, 3).map(|pairs| pairs.len()), Some(3));
        assert_eq!(ports.take(0, 1), None);
        assert_eq!(ports.take(7, 1), None);
        assert_eq!(ports.roomiest(), None);
    }

    #[test]
    fn the_roomiest_reactor_is_chosen() {
        let mut ports = ports(&[2, 4, 4]);
        assert_eq!(ports.roomiest(), Some(1));
        ports.take(1, 1);
        assert_eq!(ports.roomiest(), Some(2));
        ports.take(2, 3);
        assert_eq!(ports.roomiest(), Some(1));
    }

    #[test]
    fn a_returned_pair_rests() {
        let mut ports = ports(&[2]);
        let pairs = ports.take(0, 2).unwrap();
        ports.give(Mono(0), pairs[1]);
        ports.give(Mono(1), pairs[0]);
        assert_eq!(counts(&ports), (0, 0, 2));
        let end = Mono(0) + REST;
        ports.thaw(Mono(end.0 - 1));
        assert_eq!(counts(&ports), (0, 0, 2));
        assert_eq!(ports.next(), Some(end));
        ports.thaw(end);
        assert_eq!(counts(&ports), (1, 0, 1));
        assert_eq!(ports.take(0, 1), Some(vec![pairs[1]]));
        ports.thaw(Mono(1) + REST);
        assert_eq!(counts(&ports), (1, 1, 0));
    }

    #[test]
    fn the_pair_that_is_free_longest_is_taken_first() {
        let mut ports = ports(&[3]);
        let first = ports.take(0, 1).unwrap()[0];
        ports.give(Mono(0), first);
        ports.thaw(Mono(0) + REST);
        let order: Vec<u16> = ports.take(0, 3).unwrap().iter().map(|pair| pair.index).collect();
        assert_eq!(order, [1, 2, 0]);
    }
}
