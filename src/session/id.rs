//! Names that nobody else has: recording ids, tags, branches.

use rand::Rng;
use std::fmt;

use crate::clock::Wall;

/// The id of a recording: a UUID version 7 (RFC 9562 §5.7), so ids sort by time and need no agreement between boxes.
/// Displays in the usual 36 characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Id(pub u128);

/// Numbers that tell recorders of one directory apart: the 12 bits behind the version.
pub const INSTANCES: u16 = 1 << 12;

impl Id {
    /// `instance`: of this recorder, below [`INSTANCES`].
    pub fn new(now: Wall, instance: u16, rng: &mut impl Rng) -> Id {
        const VERSION: u128 = 7 << 76;
        const VARIANT: u128 = 2 << 62;
        const RANDOM: u128 = (u64::MAX >> 2) as u128;
        let instance = u128::from(instance % INSTANCES) << 64;
        let milliseconds = u128::from(now.0 / 1_000_000) & 0xffff_ffff_ffff;
        Id(milliseconds << 80 | VERSION | instance | VARIANT | rng.random::<u128>() & RANDOM)
    }
}

impl Id {
    /// Of the recorder that gave it.
    pub fn instance(self) -> u16 {
        (self.0 >> 64) as u16 % INSTANCES
    }

    /// The 36 characters back; `None` for any other text.
    pub fn parse(text: &str) -> Option<Id> {
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        let id = Id(u128::from_str_radix(&digits, 16).ok()?);
        (id.to_string() == text).then_some(id)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.0;
        let (a, b, c, d) = (id >> 96, id >> 80 & 0xffff, id >> 64 & 0xffff, id >> 48 & 0xffff);
        write!(f, "{a:08x}-{b:04x}-{c:04x}-{d:04x}-{:012x}", id & 0xffff_ffff_ffff)
    }
}

/// A tag of 64 random bits; RFC 3261 §19.3 asks for 32.
pub fn tag(value: u64) -> String {
    format!("{value:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::StdRng};

    #[test]
    fn an_id_has_time_version_and_variant() {
        let id = Id::new(Wall(0x0123_4567_89ab * 1_000_000 + 999_999), 0xc0f, &mut StdRng::seed_from_u64(1))
            .to_string();
        assert_eq!(id.len(), 36);
        assert_eq!(&id[..18], "01234567-89ab-7c0f");
        assert_eq!(Id::parse(&id).map(|id| (id.to_string(), id.instance())), Some((id.clone(), 0xc0f)));
        assert!(["", "x", &id[1..], &id.to_uppercase()].iter().all(|text| Id::parse(text).is_none()));
        assert!(matches!(id.as_bytes()[19], b'8' | b'9' | b'a' | b'b'), "{id}");
    }

    #[test]
    fn ids_of_one_millisecond_differ() {
        let mut rng = StdRng::seed_from_u64(1);
        assert_ne!(Id::new(Wall(5), 0, &mut rng), Id::new(Wall(5), 0, &mut rng));
    }
}
