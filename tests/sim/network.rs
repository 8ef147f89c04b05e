//! The network between the SRCs and the recorder: datagrams are lost, repeated, late and broken; connections keep order until they
//! break.

use rand::Rng;
use rand::rngs::StdRng;

#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Shares of the datagrams.
    pub lost: f64,
    pub twice: f64,
    pub broken: f64,
    /// Milliseconds of the slowest datagram.
    pub slowest: u64,
    /// Share of the connections that break once.
    pub cut: f64,
}

impl Weather {
    pub fn calm() -> Weather {
        Weather { lost: 0.0, twice: 0.0, broken: 0.0, slowest: 5, cut: 0.0 }
    }

    /// Half of all worlds break nothing: there every single message is held to account.
    pub fn any(rng: &mut StdRng) -> Weather {
        let mut weather = match rng.random_range(0..6) {
            0 => Weather::calm(),
            1 => Weather { lost: 0.4, twice: 0.3, slowest: 2_000, ..Weather::calm() },
            2 => Weather { slowest: 3_000, twice: 0.2, ..Weather::calm() },
            _ => Weather { lost: 0.15, twice: 0.1, slowest: 300, ..Weather::calm() },
        };
        weather.cut = [0.0, 0.3][rng.random_range(0..2)];
        weather.broken = [0.0, 0.0, 0.02, 0.2][rng.random_range(0..4)];
        weather
    }

    /// Milliseconds that each copy of a datagram takes, and whether it is broken on the way.
    pub fn carry(&self, rng: &mut StdRng) -> Vec<(u64, bool)> {
        if rng.random_bool(self.lost) {
            return Vec::new();
        }
        let copies = if rng.random_bool(self.twice) { 2 } else { 1 };
        (0..copies).map(|_| (rng.random_range(1..=self.slowest), rng.random_bool(self.broken))).collect()
    }
}

/// The same datagram with something wrong in it.
pub fn broken(bytes: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = rng.random_range(0..bytes.len());
    match rng.random_range(0..6) {
        0 => bytes.truncate(at),
        1 => bytes[at] ^= 1 << rng.random_range(0..8),
        2 => bytes.insert(at, rng.random()),
        3 => {
            bytes.remove(at);
        }
        4 => {
            let end = (at + rng.random_range(0..200)).min(bytes.len());
            bytes.drain(at..end);
        }
        _ => {
            let end = (at + rng.random_range(0..200)).min(bytes.len());
            let copy = bytes[at..end].to_vec();
            bytes.splice(at..at, copy);
        }
    }
    bytes
}
