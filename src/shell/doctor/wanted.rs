//! What the recorder would do on this box: what the checks hold the box against.

use std::path::PathBuf;

use crate::limits;
use crate::shell::cli::Ports;
use crate::shell::stats::Stats;

/// A pcap record of a G.711 packet, fifty times a second.
pub const STREAM_BYTES_PER_SECOND: u64 = limits::RECORD_USUAL as u64 * 50;

#[derive(Clone, Debug)]
pub struct Wanted {
    /// Where recordings go; it may not exist yet.
    pub dir: PathBuf,
    pub media_ports: Ports,
    /// CPUs to record on.
    pub cores: Vec<usize>,
    /// Interfaces for AF_XDP; none: sockets.
    pub interfaces: Vec<String>,
    /// The recorder that runs now.
    pub running: Option<Box<Stats>>,
}

impl Wanted {
    /// Port pairs, and so streams at once.
    pub fn streams(&self) -> u64 {
        let Ports { first, last } = self.media_ports;
        let asked = u64::from(last).saturating_sub(u64::from(first)).div_ceil(2);
        let of_sessions = self.running.as_ref().map_or(u64::MAX, |stats| stats.recorder.sessions_max * 2);
        asked.min(of_sessions.max(1))
    }

    /// Bytes a second when every port pair has a G.711 stream.
    pub fn bytes_per_second(&self) -> u64 {
        self.streams() * STREAM_BYTES_PER_SECOND
    }

    pub fn holds(&self, port: u16) -> bool {
        (self.media_ports.first..=self.media_ports.last).contains(&port)
    }

    pub fn xdp(&self) -> bool {
        !self.interfaces.is_empty()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Sockets on two cores, nothing running.
    pub fn wanted() -> Wanted {
        Wanted {
            dir: "/srv/recordings".into(),
            media_ports: Ports { first: 20_000, last: 39_999 },
            cores: vec![0, 1],
            interfaces: Vec::new(),
            running: None,
        }
    }

    #[test]
    fn a_stream_for_each_pair() {
        let mut wanted = wanted();
        assert_eq!((wanted.streams(), wanted.bytes_per_second()), (10_000, 115_000_000));
        assert!(wanted.holds(20_000) && wanted.holds(39_999) && !wanted.holds(40_000));
        let mut stats = Box::<Stats>::default();
        stats.recorder.sessions_max = 100;
        wanted.running = Some(stats);
        assert_eq!(wanted.streams(), 200, "a recorder that was told to take fewer");
    }
}
