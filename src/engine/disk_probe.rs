//! How fast a directory takes recordings: blocks written to many files at once, the way the recorder writes them.
//!
//! Writes go past the page cache like the recorder's, where the file system does that; a block to each file in turn, and are
//! then synced: a round. Rounds
//! grow until one takes its share of the time, so a fast device gets large ones, in which a sync is a small part, and a slow one
//! is not held up for long. Only rounds of the last size count. The files have no names (they are unlinked as soon as they are
//! made), so they are gone with the process, however it ends.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::cpu;
use super::disk;
use super::mapping::Mapping;
use crate::limits::BLOCK_SIZE;

/// A round that takes less than this share of the time is followed by one twice as large.
const ROUND_SHARE: u32 = 4;

/// How much a calibration may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub files: usize,
    /// Threads that write, as the kernel's workers do for a reactor.
    pub writers: usize,
    /// No round begins that would, by the one before it, go on after this.
    pub time: Duration,
    /// Of all rounds.
    pub bytes: u64,
}

#[derive(Clone, Debug)]
pub struct Speed {
    /// Written and synced by the rounds that count, and the time they took.
    pub bytes: u64,
    pub time: Duration,
    /// Whether the writes went past the page cache.
    pub direct: bool,
    /// Of one write of a block.
    pub p50: Duration,
    pub p99: Duration,
    pub max: Duration,
}

impl Speed {
    pub fn bytes_per_second(&self) -> u64 {
        (self.bytes as f64 / self.time.as_secs_f64().max(1e-6)) as u64
    }
}

/// Writes into `dir` for as long as the bounds say (one round at least), and leaves nothing behind.
pub fn calibrate(dir: &Path, bounds: Bounds) -> io::Result<Speed> {
    let files: Vec<File> = (0..bounds.files.max(1)).map(|n| unnamed(dir, n)).collect::<io::Result<_>>()?;
    let direct = disk::takes_direct_writes(&files[0]);
    if direct {
        files.iter().try_for_each(disk::write_directly)?;
    }
    let begin = cpu::now().mono;
    let mut latency = latencies();
    let mut round = Round { from: 0, blocks: 1 };
    let (mut bytes, mut time) = (0, Duration::ZERO);
    loop {
        let before = cpu::now().mono;
        latency.add(round.write(&files, bounds.writers)?).expect("both have the same bounds");
        let took = cpu::now().mono.since(before);
        (bytes, time) = (bytes + round.blocks * of_each(&files), time + took);
        let short = took < bounds.time / ROUND_SHARE;
        let growth = if short { 2 } else { 1 };
        round = Round { from: round.end(), blocks: round.blocks * u64::from(growth) };
        // A round that would not be done in time, by what the last one took, is not begun.
        let over = cpu::now().mono.since(begin) + took * growth > bounds.time;
        if over || round.end() * of_each(&files) > bounds.bytes {
            break;
        }
        if short {
            (bytes, time) = (0, Duration::ZERO);
        }
    }
    let at = |quantile| Duration::from_nanos(latency.value_at_quantile(quantile));
    Ok(Speed { bytes, time, direct, p50: at(0.5), p99: at(0.99), max: Duration::from_nanos(latency.max()) })
}

fn unnamed(dir: &Path, n: usize) -> io::Result<File> {
    let path = dir.join(format!(".sipreel-doctor-{}-{n}", std::process::id()));
    let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// Bytes of one block of each file.
fn of_each(files: &[File]) -> u64 {
    files.len() as u64 * BLOCK_SIZE as u64
}

/// Nanoseconds up to a minute, to 1 %.
fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 2).expect("the bounds are constants that fit")
}

/// So many blocks of every file, behind those of the rounds before.
#[derive(Clone, Copy)]
struct Round {
    from: u64,
    blocks: u64,
}

impl Round {
    fn end(self) -> u64 {
        self.from + self.blocks
    }

    /// Each writer has its share of the files. Returns how long the writes took.
    fn write(self, files: &[File], writers: usize) -> io::Result<Histogram<u64>> {
        let share = files.len().div_ceil(writers.max(1));
        let parts: Vec<io::Result<Histogram<u64>>> = std::thread::scope(|scope| {
            let writers: Vec<_> =
                files.chunks(share).map(|files| scope.spawn(move || self.write_share(files))).collect();
            let joined = writers.into_iter().map(|writer| writer.join());
            joined.map(|result| result.unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))).collect()
        });
        parts.into_iter().try_fold(latencies(), |mut sum, part| {
            sum.add(part?).expect("both have the same bounds");
            Ok(sum)
        })
    }

    fn write_share(self, files: &[File]) -> io::Result<Histogram<u64>> {
        let block = noise()?;
        let mut latency = latencies();
        for number in self.from..self.end() {
            for file in files {
                let before = cpu::now().mono;
                file.write_all_at(block.bytes(), number * BLOCK_SIZE as u64)?;
                latency.saturating_record(cpu::now().mono.since(before).as_nanos() as u64);
            }
        }
        files.iter().try_for_each(File::sync_data)?;
        Ok(latency)
    }
}

/// A block that no file system can make smaller, where direct writes take it from.
fn noise() -> io::Result<Mapping> {
    let mut block = Mapping::huge(BLOCK_SIZE)?;
    let mut state = cpu::now().mono.0 | 1;
    let mut next = || {
        // xorshift64 (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_ne_bytes()
    };
    block.bytes_mut().chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&next()));
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Bounds =
        Bounds { files: 8, writers: 3, time: Duration::from_secs(60), bytes: 60 * BLOCK_SIZE as u64 };

    #[test]
    fn a_calibration_keeps_to_its_bytes_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let speed = calibrate(dir.path(), SMALL).unwrap();
        // Rounds of 8, 16 and 32 blocks; one of 64 does not fit, and the last size counts.
        assert_eq!(speed.bytes, 32 * BLOCK_SIZE as u64);
        assert!(speed.p50 <= speed.p99 && speed.p99 <= speed.max.mul_f64(1.02) && speed.max > Duration::ZERO);
        assert!(speed.bytes_per_second() > 0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_calibration_keeps_to_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let speed = calibrate(dir.path(), Bounds { time: Duration::ZERO, ..SMALL }).unwrap();
        assert_eq!(speed.bytes, 8 * BLOCK_SIZE as u64, "the time was over after the first round");
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_an_error() {
        assert!(calibrate(Path::new("/nowhere/at/all"), SMALL).is_err());
        assert!(calibrate(Path::new("/proc"), SMALL).is_err());
    }

    #[test]
    fn noise_does_not_repeat() {
        let block = noise().unwrap();
        let block = block.bytes();
        assert_eq!(block.len(), BLOCK_SIZE);
        assert!(block.chunks(8).collect::<std::collections::HashSet<_>>().len() > BLOCK_SIZE / 8 - 2);
    }
}
