//! How fast a directory takes recordings: blocks written to many files at once, the way the recorder writes them.
//!
//! Writes go through the page cache like the recorder's, and each block is sent to the device at once: a file's next block
//! waits for the one before. So at most one block of each file is on its way, the figure is the device's and not the
//! cache's, and nothing is left to be written when the time is over. The files have no names (they are unlinked as soon as
//! they are made), so they are gone with the process, however it ends.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;

use super::cpu;
use crate::clock::Mono;
use crate::limits::BLOCK_SIZE;

/// How much a calibration may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub files: usize,
    /// Threads that write, as the kernel's workers do for a reactor.
    pub writers: usize,
    /// What is on its way when it ends is waited for beyond it.
    pub time: Duration,
    pub bytes: u64,
}

#[derive(Clone, Debug)]
pub struct Speed {
    pub bytes: u64,
    /// From the first write until everything was synced.
    pub time: Duration,
    /// Of one write of a block into the page cache.
    pub p50: Duration,
    pub p99: Duration,
    pub max: Duration,
}

impl Speed {
    pub fn bytes_per_second(&self) -> u64 {
        (self.bytes as f64 / self.time.as_secs_f64().max(1e-6)) as u64
    }
}

/// Writes into `dir` for as long as the bounds say, syncs, and leaves nothing behind.
pub fn calibrate(dir: &Path, bounds: Bounds) -> io::Result<Speed> {
    let writers = bounds.writers.clamp(1, bounds.files.max(1));
    let files: Vec<File> = (0..bounds.files.max(1)).map(|n| unnamed(dir, n)).collect::<io::Result<_>>()?;
    let begin = cpu::now().mono;
    let budget = Budget { deadline: begin + bounds.time, bytes: AtomicU64::new(bounds.bytes) };
    let parts: Vec<io::Result<Part>> = std::thread::scope(|scope| {
        let threads: Vec<_> = files
            .chunks(files.len().div_ceil(writers))
            .map(|files| scope.spawn(|| write(files, &budget)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())))
            .collect()
    });
    let time = cpu::now().mono.since(begin);
    let mut latency = latencies();
    let mut bytes = 0;
    for part in parts {
        let part = part?;
        bytes += part.bytes;
        latency.add(&part.latency).expect("both have the same bounds");
    }
    let at = |quantile| Duration::from_nanos(latency.value_at_quantile(quantile));
    Ok(Speed { bytes, time, p50: at(0.5), p99: at(0.99), max: Duration::from_nanos(latency.max()) })
}

fn unnamed(dir: &Path, n: usize) -> io::Result<File> {
    let path = dir.join(format!(".sipreel-doctor-{}-{n}", std::process::id()));
    let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

struct Budget {
    deadline: Mono,
    bytes: AtomicU64,
}

impl Budget {
    /// Whether one more block may be written.
    fn take(&self) -> bool {
        let block = BLOCK_SIZE as u64;
        cpu::now().mono < self.deadline
            && self
                .bytes
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(block))
                .is_ok()
    }
}

struct Part {
    bytes: u64,
    latency: Histogram<u64>,
}

/// Nanoseconds up to a minute, to 1 %.
fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 2).expect("the bounds are constants that fit")
}

/// Round after round over the files, a block each, until the budget is gone; then everything is synced.
fn write(files: &[File], budget: &Budget) -> io::Result<Part> {
    let block = noise();
    let mut part = Part { bytes: 0, latency: latencies() };
    'rounds: for round in 0.. {
        for file in files {
            if !budget.take() {
                break 'rounds;
            }
            let offset = round * BLOCK_SIZE as u64;
            written_back(file, offset.saturating_sub(BLOCK_SIZE as u64), Wait::Finish)?;
            let before = cpu::now().mono;
            file.write_all_at(&block, offset)?;
            part.latency.saturating_record(cpu::now().mono.since(before).as_nanos() as u64);
            written_back(file, offset, Wait::Start)?;
            part.bytes += BLOCK_SIZE as u64;
        }
    }
    files.iter().try_for_each(File::sync_data)?;
    Ok(part)
}

enum Wait {
    Start,
    Finish,
}

/// Begins to write a block back, or waits until it is written back. A file system that does not know the call leaves it all
/// to the sync at the end, which the time includes.
fn written_back(file: &File, offset: u64, wait: Wait) -> io::Result<()> {
    let flags = match wait {
        Wait::Start => libc::SYNC_FILE_RANGE_WRITE,
        Wait::Finish => libc::SYNC_FILE_RANGE_WAIT_BEFORE,
    };
    // SAFETY: the descriptor is open; the call touches no memory of ours.
    let result = unsafe {
        libc::sync_file_range(file.as_raw_fd(), offset as libc::off64_t, BLOCK_SIZE as libc::off64_t, flags)
    };
    match io::Error::last_os_error() {
        error
            if result < 0
                && !matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL | libc::ESPIPE)) =>
        {
            Err(error)
        }
        _ => Ok(()),
    }
}

/// A block that no file system can make smaller.
fn noise() -> Vec<u8> {
    let mut state = cpu::now().mono.0 | 1;
    let mut next = || {
        // xorshift64 (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_ne_bytes()
    };
    (0..BLOCK_SIZE / 8).flat_map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Bounds =
        Bounds { files: 8, writers: 3, time: Duration::from_secs(20), bytes: 40 * BLOCK_SIZE as u64 };

    #[test]
    fn a_calibration_keeps_to_its_bytes_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let speed = calibrate(dir.path(), SMALL).unwrap();
        assert_eq!(speed.bytes, SMALL.bytes);
        assert!(speed.p50 <= speed.p99 && speed.p99 <= speed.max.mul_f64(1.02) && speed.max > Duration::ZERO);
        assert!(speed.bytes_per_second() > 0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_calibration_keeps_to_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let speed = calibrate(dir.path(), Bounds { time: Duration::ZERO, ..SMALL }).unwrap();
        assert_eq!(speed.bytes, 0, "the time was over before the first block");
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_an_error() {
        assert!(calibrate(Path::new("/nowhere/at/all"), SMALL).is_err());
        assert!(calibrate(Path::new("/proc"), SMALL).is_err());
    }

    #[test]
    fn noise_does_not_repeat() {
        let block = noise();
        assert_eq!(block.len(), BLOCK_SIZE);
        assert!(block.chunks(8).collect::<std::collections::HashSet<_>>().len() > BLOCK_SIZE / 8 - 2);
    }
}
