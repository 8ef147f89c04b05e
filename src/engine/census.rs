//! How many connections there are, in all and of each source: one count for all reactors, because the kernel spreads a source's
//! connections over their listeners.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use crate::counters::ConnectionRefusal;
use crate::limits;

/// Taken for some nanoseconds when a connection comes or goes, never for a message.
pub struct Census {
    per_source: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    total: usize,
    sources: HashMap<IpAddr, usize>,
}

impl Census {
    pub fn new(per_source: usize) -> Census {
        Census { per_source, held: Mutex::default() }
    }

    /// Counts a new connection, or says why it may not be.
    pub fn enter(&self, peer: IpAddr) -> Result<(), ConnectionRefusal> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.total >= limits::TCP_CONNECTIONS {
            return Err(ConnectionRefusal::Total);
        }
        let count = held.sources.entry(source(peer)).or_default();
        if *count >= self.per_source {
            return Err(ConnectionRefusal::PerSource);
        }
        *count += 1;
        held.total += 1;
        Ok(())
    }

    /// The connection is gone.
    pub fn leave(&self, peer: IpAddr) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let source = source(peer);
        let Some(count) = held.sources.get_mut(&source) else { return };
        *count -= 1;
        if *count == 0 {
            held.sources.remove(&source);
        }
        held.total -= 1;
    }
}

/// Whoever has an IPv6 address has at least the 2^64 of its network.
fn source(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_source_takes_what_is_for_all() {
        let census = Census::new(3);
        let [a, b] = ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse().unwrap());
        for _ in 0..3 {
            assert_eq!(census.enter(a), Ok(()));
        }
        assert_eq!(census.enter(a), Err(ConnectionRefusal::PerSource));
        assert_eq!(census.enter(b), Ok(()));
        census.leave(a);
        assert_eq!(census.enter(a), Ok(()));
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let census = Census::new(1);
        let [a, same, other] =
            ["2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1"].map(|ip| ip.parse().unwrap());
        assert_eq!(census.enter(a), Ok(()));
        assert_eq!(census.enter(same), Err(ConnectionRefusal::PerSource));
        assert_eq!(census.enter(other), Ok(()));
    }

    #[test]
    fn the_total_is_bounded_and_nothing_is_left_behind() {
        let census = Census::new(usize::MAX);
        let ip = |n: usize| IpAddr::from([10, 0, (n >> 8) as u8, n as u8]);
        for n in 0..limits::TCP_CONNECTIONS {
            assert_eq!(census.enter(ip(n)), Ok(()));
        }
        assert_eq!(census.enter(ip(0)), Err(ConnectionRefusal::Total));
        (0..limits::TCP_CONNECTIONS).for_each(|n| census.leave(ip(n)));
        let held = census.held.lock().unwrap();
        assert_eq!((held.total, held.sources.len()), (0, 0));
    }
}
