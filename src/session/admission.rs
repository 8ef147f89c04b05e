//! Who may ask for a recording, and how often: lists of addresses, rates, sessions of one source.
//!
//! A source is an IPv4 address or an IPv6 /64, which is what one host can choose its address from.

use ipnet::IpNet;
use rand::Rng;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::net::{IpAddr, Ipv6Addr};

use super::digest::Credentials;
use crate::clock::Mono;
use crate::counters::RefuseCause;
use crate::limits::{RATE_BURST, RATE_SETS, RATE_WAYS, REFUSALS_LOGGED, REFUSALS_LOGGED_WITHIN};

/// What the operator allows.
#[derive(Clone, Debug)]
pub struct Policy {
    /// New requests a second outside of dialogs, of all sources and of each. `None`: as many as come.
    pub rate: Option<u32>,
    pub rate_of_source: Option<u32>,
    pub sessions_of_source: usize,
    /// `None`: nobody is asked for a password.
    pub credentials: Option<Credentials>,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy { rate: None, rate_of_source: None, sessions_of_source: usize::MAX, credentials: None }
    }
}

/// `--allow` and `--deny`.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    /// Empty: everybody.
    pub allow: Vec<IpNet>,
    pub deny: Vec<IpNet>,
}

impl Lists {
    /// A network in `deny` is out whatever `allow` says.
    pub fn admit(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let has = |list: &[IpNet]| list.iter().any(|network| network.contains(&ip));
        !has(&self.deny) && (self.allow.is_empty() || has(&self.allow))
    }
}

/// An IPv4 address (mapped), or the first half of an IPv6 one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Source(u128);

impl Source {
    pub fn of(ip: IpAddr) -> Source {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Source(ip.to_ipv6_mapped().to_bits()),
            IpAddr::V6(ip) => {
                Source(ip.to_bits() & !Ipv6Addr::from_segments([0, 0, 0, 0, !0, !0, !0, !0]).to_bits())
            }
        }
    }
}

/// A token bucket as the time at which it will be full again (GCRA): `rate` tokens a second, room for [`RATE_BURST`] seconds.
#[derive(Clone, Copy, Debug)]
struct Rate {
    /// Nanoseconds of a token, and of a full bucket.
    token: u64,
    room: u64,
}

impl Rate {
    fn new(per_second: u32) -> Rate {
        let token = 1_000_000_000 / u64::from(per_second.max(1));
        Rate { token, room: (RATE_BURST.as_nanos() as u64).max(token) }
    }

    /// Whether a token is there; `full_at` is the bucket.
    fn has(self, full_at: Mono, now: Mono) -> bool {
        full_at.0.saturating_sub(now.0) + self.token <= self.room
    }

    fn take(self, full_at: &mut Mono, now: Mono) {
        *full_at = Mono(full_at.0.max(now.0) + self.token);
    }
}

/// Counts requests and sessions against a [`Policy`].
#[derive(Debug)]
pub struct Admission {
    policy: Policy,
    total: Mono,
    sources: Buckets,
    sessions: HashMap<Source, usize>,
}

impl Admission {
    pub fn new(policy: Policy, rng: &mut impl Rng) -> Admission {
        let sets = if policy.rate_of_source.is_some() { RATE_SETS } else { 0 };
        Admission {
            policy,
            total: Mono(0),
            sources: Buckets::new(sets, rng.random()),
            sessions: HashMap::new(),
        }
    }

    /// Takes a token of the source and one of the total, or neither: a source that gets nothing takes nothing from others.
    pub fn request(&mut self, now: Mono, ip: IpAddr) -> Result<(), RefuseCause> {
        let source =
            self.policy.rate_of_source.map(|rate| (Rate::new(rate), self.sources.of(Source::of(ip))));
        if source.as_ref().is_some_and(|(rate, full_at)| !rate.has(**full_at, now)) {
            return Err(RefuseCause::SourceRate);
        }
        if let Some(rate) = self.policy.rate.map(Rate::new) {
            if !rate.has(self.total, now) {
                return Err(RefuseCause::Rate);
            }
            rate.take(&mut self.total, now);
        }
        if let Some((rate, full_at)) = source {
            rate.take(full_at, now);
        }
        Ok(())
    }

    /// Whether the source has as many sessions as it may have.
    pub fn sessions_full(&self, ip: IpAddr) -> bool {
        self.sessions.get(&Source::of(ip)).is_some_and(|sessions| *sessions >= self.policy.sessions_of_source)
    }

    pub fn session_begins(&mut self, ip: IpAddr) {
        *self.sessions.entry(Source::of(ip)).or_default() += 1;
    }

    pub fn session_ends(&mut self, ip: IpAddr) {
        let source = Source::of(ip);
        if let Some(sessions) = self.sessions.get_mut(&source) {
            *sessions -= 1;
            if *sessions == 0 {
                self.sessions.remove(&source);
            }
        }
    }
}

/// What each source may send while others have to wait.
#[derive(Debug)]
pub struct Shares {
    rate: Rate,
    sources: Buckets,
}

impl Shares {
    pub fn new(per_second: u32, rng: &mut impl Rng) -> Shares {
        Shares { rate: Rate::new(per_second), sources: Buckets::new(RATE_SETS, rng.random()) }
    }

    /// Whether this message is within its source's share.
    pub fn take(&mut self, now: Mono, ip: IpAddr) -> bool {
        let full_at = self.sources.of(Source::of(ip));
        let has = self.rate.has(*full_at, now);
        if has {
            self.rate.take(full_at, now);
        }
        has
    }
}

/// A bucket for each source, in a table that never grows. A new source takes the place of that one of its set whose bucket
/// is, or will be, full first: forgetting a full bucket changes nothing, and an emptier one only gives its source a new burst.
#[derive(Debug)]
struct Buckets {
    sets: Vec<[(Option<Source>, Mono); RATE_WAYS]>,
    /// Of the hash, so that nobody can choose addresses that meet in one set.
    seed: u64,
}

impl Buckets {
    fn new(sets: usize, seed: u64) -> Buckets {
        Buckets { sets: vec![[(None, Mono(0)); RATE_WAYS]; sets], seed }
    }

    fn of(&mut self, source: Source) -> &mut Mono {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.seed);
        hasher.write_u128(source.0);
        let index = hasher.finish() as usize % self.sets.len();
        let set = &mut self.sets[index];
        let way = set.iter().position(|(known, _)| *known == Some(source)).unwrap_or_else(|| {
            let oldest = (0..RATE_WAYS).min_by_key(|way| set[*way].1).unwrap_or(0);
            set[oldest] = (Some(source), Mono(0));
            oldest
        });
        &mut set[way].1
    }
}

/// The log of refusals: of each cause some lines, then how many more there were.
#[derive(Debug, Default)]
pub struct Hush {
    windows: [Option<Window>; RefuseCause::COUNT],
}

#[derive(Clone, Copy, Debug)]
struct Window {
    end: Mono,
    shown: u32,
    more: u64,
}

impl Hush {
    /// Whether this one is worth a line of its own.
    pub fn shows(&mut self, now: Mono, cause: RefuseCause) -> bool {
        let new = Window { end: now + REFUSALS_LOGGED_WITHIN, shown: 0, more: 0 };
        let window = self.windows[cause as usize].get_or_insert(new);
        let shows = window.shown < REFUSALS_LOGGED;
        window.shown += u32::from(shows);
        window.more += u64::from(!shows);
        shows
    }

    /// Causes whose time is over, and how many were not shown.
    pub fn over(&mut self, now: Mono) -> impl Iterator<Item = (RefuseCause, u64)> + '_ {
        let windows = RefuseCause::ALL.iter().zip(&mut self.windows);
        windows.filter_map(move |(cause, window)| {
            let over = window.take_if(|window| window.end <= now)?;
            (over.more > 0).then_some((*cause, over.more))
        })
    }

    pub fn next(&self) -> Option<Mono> {
        self.windows.iter().flatten().map(|window| window.end).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    const SECOND: u64 = 1_000_000_000;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn admission(rate: Option<u32>, rate_of_source: Option<u32>) -> Admission {
        let policy = Policy { rate, rate_of_source, ..Policy::default() };
        Admission::new(policy, &mut StdRng::seed_from_u64(3))
    }

    /// How many of `n` requests at this moment are taken.
    fn taken(admission: &mut Admission, at: u64, from: &str, n: usize) -> usize {
        (0..n).filter(|_| admission.request(Mono(at), ip(from)).is_ok()).count()
    }

    #[test]
    fn without_a_rate_everything_passes() {
        let mut admission = admission(None, None);
        assert_eq!(taken(&mut admission, 0, "192.0.2.1", 100_000), 100_000);
    }

    #[test]
    fn a_source_has_its_burst_and_then_its_rate() {
        let mut admission = admission(None, Some(10));
        let burst = 10 * RATE_BURST.as_secs() as usize;
        assert_eq!(taken(&mut admission, 0, "192.0.2.1", 1_000), burst);
        assert_eq!(admission.request(Mono(0), ip("192.0.2.1")), Err(RefuseCause::SourceRate));
        assert_eq!(taken(&mut admission, 0, "192.0.2.2", 1_000), burst, "another source has its own");
        assert_eq!(taken(&mut admission, SECOND, "192.0.2.1", 1_000), 10);
        assert_eq!(
            taken(&mut admission, 1_000 * SECOND, "192.0.2.1", 1_000),
            burst,
            "never more than a burst"
        );
    }

    #[test]
    fn a_source_that_is_refused_takes_nothing_from_the_others() {
        let mut admission = admission(Some(100), Some(10));
        assert_eq!(taken(&mut admission, 0, "192.0.2.1", 10_000), 20);
        assert_eq!(taken(&mut admission, 0, "192.0.2.2", 20), 20);
        let many = (0..100).map(|n| taken(&mut admission, 0, &format!("198.51.100.{n}"), 20)).sum::<usize>();
        assert_eq!(many, 160, "the rest of what all may have together");
        assert_eq!(admission.request(Mono(0), ip("203.0.113.1")), Err(RefuseCause::Rate));
        assert_eq!(taken(&mut admission, SECOND, "203.0.113.1", 20), 20, "it was not charged for that");
    }

    #[test]
    fn an_ipv6_host_is_one_source_whatever_address_it_takes() {
        let mut admission = admission(None, Some(1));
        let all = (0..100).map(|n| taken(&mut admission, 0, &format!("2001:db8::{n:x}"), 1)).sum::<usize>();
        assert_eq!(all, 2);
        assert_eq!(taken(&mut admission, 0, "2001:db8:0:1::1", 1), 1);
        assert_eq!(Source::of(ip("::ffff:192.0.2.1")), Source::of(ip("192.0.2.1")));
        assert_ne!(Source::of(ip("192.0.2.1")), Source::of(ip("192.0.2.2")));
    }

    /// Half a million sources that ask once do not make room for one that asks without end.
    #[test]
    fn the_table_forgets_those_that_ask_least() {
        let mut admission = admission(None, Some(10));
        let mut flood = 0;
        for n in 0..500_000u32 {
            let stranger = IpAddr::V4(std::net::Ipv4Addr::from_bits(0x0a00_0000 + n));
            assert!(admission.request(Mono(0), stranger).is_ok());
            flood += usize::from(admission.request(Mono(0), ip("192.0.2.1")).is_ok());
        }
        assert_eq!(flood, 20);
        assert_eq!(admission.sources.sets.len(), RATE_SETS);
    }

    #[test]
    fn sessions_of_a_source_are_counted_while_they_are() {
        let policy = Policy { sessions_of_source: 2, ..Policy::default() };
        let mut admission = Admission::new(policy, &mut StdRng::seed_from_u64(3));
        for _ in 0..2 {
            assert!(!admission.sessions_full(ip("192.0.2.1")));
            admission.session_begins(ip("192.0.2.1"));
        }
        assert!(admission.sessions_full(ip("192.0.2.1")) && !admission.sessions_full(ip("192.0.2.2")));
        admission.session_ends(ip("192.0.2.1"));
        assert!(!admission.sessions_full(ip("192.0.2.1")));
        admission.session_ends(ip("192.0.2.1"));
        assert!(admission.sessions.is_empty());
    }

    #[test]
    fn deny_before_allow_and_an_empty_allow_is_everybody() {
        let list = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>();
        let open = Lists { allow: vec![], deny: list(&["192.0.2.0/24", "2001:db8:bad::/48"]) };
        assert!(open.admit(ip("198.51.100.1")) && open.admit(ip("2001:db8::1")));
        assert!(!open.admit(ip("192.0.2.255")) && !open.admit(ip("::ffff:192.0.2.1")));
        assert!(!open.admit(ip("2001:db8:bad::1")));
        let closed = Lists { allow: list(&["10.0.0.0/8"]), deny: list(&["10.1.0.0/16"]) };
        assert!(closed.admit(ip("10.2.0.1")));
        assert!(!closed.admit(ip("10.1.0.1")) && !closed.admit(ip("11.0.0.1")) && !closed.admit(ip("::1")));
        assert!(Lists::default().admit(ip("::1")));
    }

    #[test]
    fn refusals_are_shown_some_times_and_then_summed_up() {
        let mut hush = Hush::default();
        let cause = RefuseCause::NoPort;
        let shown = (0..1_000).filter(|_| hush.shows(Mono(5), cause)).count();
        assert_eq!(shown, REFUSALS_LOGGED as usize);
        assert!(hush.shows(Mono(5), RefuseCause::Draining), "each cause has its own lines");
        let end = Mono(5) + REFUSALS_LOGGED_WITHIN;
        assert_eq!(hush.next(), Some(end));
        assert_eq!(hush.over(Mono(end.0 - 1)).count(), 0);
        assert_eq!(hush.over(end).collect::<Vec<_>>(), [(cause, 1_000 - u64::from(REFUSALS_LOGGED))]);
        assert_eq!((hush.next(), hush.over(end).count()), (None, 0));
        assert!(hush.shows(end, cause));
    }
}
