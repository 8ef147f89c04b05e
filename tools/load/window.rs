//! Over which time the recorder's CPU is measured: best while all calls are up and none has ended, else over all media.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::clock;
use super::media::Progress;
use super::usage::{self, Cpu};

/// CPU time is counted in ticks of 10 ms: below this a figure would be mostly rounding.
const SHORTEST: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
pub enum Edge {
    FirstEstablished,
    AllSettled,
    FirstFinished,
    LastFinished,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    recorder: Cpu,
    sent: u64,
}

/// The recorder's process, looked at on four occasions.
pub struct Window {
    pid: Option<u32>,
    progress: Arc<Progress>,
    samples: [Option<Sample>; 4],
}

/// What one process used between two samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    pub cpu: Cpu,
    pub packets: u64,
    pub span: Duration,
}

impl Window {
    pub fn new(pid: Option<u32>, progress: Arc<Progress>) -> Window {
        Window { pid, progress, samples: [None; 4] }
    }

    /// `LastFinished` may come several times, the others count once.
    pub fn note(&mut self, edge: Edge) {
        let slot = &mut self.samples[edge as usize];
        if slot.is_some() && !matches!(edge, Edge::LastFinished) {
            return;
        }
        let sent = self.progress.sent.load(Ordering::Relaxed);
        *slot = self.pid.and_then(usage::process).map(|recorder| Sample { at: clock::now(), recorder, sent });
    }

    pub fn measured(&self) -> Option<Measured> {
        let [established, settled, finished, last] = self.samples;
        let between = |from: Option<Sample>, to: Option<Sample>| {
            let (from, to) = (from?, to?);
            let span = to.at.checked_duration_since(from.at)?;
            let (cpu, packets) = (to.recorder.since(from.recorder), to.sent.saturating_sub(from.sent));
            (packets > 0).then_some(Measured { cpu, packets, span })
        };
        let steady = between(settled, finished).filter(|measured| measured.span >= SHORTEST);
        steady.or_else(|| between(established, last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(ms: u64, start: Instant) -> Option<Sample> {
        let recorder = Cpu { user: Duration::from_millis(ms / 10), system: Duration::from_millis(ms / 5) };
        Some(Sample { at: start + Duration::from_millis(ms), recorder, sent: ms })
    }

    fn window(edges: [u64; 4]) -> Option<Measured> {
        let start = clock::now();
        let samples = edges.map(|ms| sample(ms, start));
        Window { pid: None, progress: Arc::default(), samples }.measured()
    }

    #[test]
    fn the_steady_part_is_preferred() {
        let measured = window([0, 1_000, 5_000, 6_000]).unwrap();
        assert_eq!((measured.span.as_millis(), measured.packets), (4_000, 4_000));
        assert_eq!(measured.cpu.total(), Duration::from_millis(1_200));
    }

    #[test]
    fn without_a_steady_part_all_media_counts() {
        assert_eq!(window([0, 3_000, 2_000, 5_000]).unwrap().packets, 5_000);
        assert_eq!(window([0, 1_000, 1_100, 2_000]).unwrap().packets, 2_000);
    }
}
