//! The recorder that runs now: what it has lost, and where.

use super::finding::{Finding, Level};
use crate::shell::stats::{Media, Stats};

/// Causes for which the packet belonged to a recording and the box was too slow.
const TOO_SLOW: [&str; 2] = ["no_block", "write_queue_full"];
/// Blocks in use, in tenths, from which a stall of the disk finds none.
const BLOCKS_TENTHS: u64 = 8;

/// `asked`: somebody named a stats socket, so a recorder was expected. `Err`: why none answers.
pub fn check(running: Result<&Stats, &str>, asked: bool) -> Vec<Finding> {
    let name = "recorder.running";
    match running {
        Ok(stats) => vec![alive(name, stats), drops(&stats.media), writes(stats), commits(stats)],
        Err(why) if asked => vec![Finding::new(
            name,
            Level::Warn,
            why,
            "its limits, ports and losses were not looked at",
            "see: systemctl status sipreel",
        )],
        Err(_) => vec![Finding::ok(name, "no recorder runs: this is about the one that would")],
    }
}

fn alive(name: &'static str, stats: &Stats) -> Finding {
    let recorder = &stats.recorder;
    let text = format!(
        "pid {}, {} sessions of at most {}, on CPU {}, writing to {}",
        recorder.pid, stats.sessions.active, recorder.sessions_max, recorder.cores, recorder.dir
    );
    Finding::ok(name, text)
}

fn drops(media: &Media) -> Finding {
    let of = |cause: &str| media.dropped.get(cause).copied().unwrap_or(0);
    let slow: u64 = TOO_SLOW.iter().map(|cause| of(cause)).sum();
    let failed = of("write_failed");
    let found = format!(
        "{} packets received, {} dropped by the kernel before that, {slow} for want of a block, {failed} in writes that failed",
        media.received_packets, media.kernel_dropped
    );
    let (level, remedy) = match (failed, slow, media.kernel_dropped) {
        (0, 0, 0) => return Finding::ok("recorder.drops", found),
        (0, 0, _) => (Level::Warn, "more --cores, net.core.rmem_max, queues and their hash (nic.*)"),
        (0, ..) => (Level::Warn, "a faster disk, or --max-sessions that fits it (disk.speed)"),
        _ => (Level::Fail, "the log names file and error; see dir.space"),
    };
    Finding::new(
        "recorder.drops",
        level,
        found,
        "these packets are in no recording; their manifests say so",
        remedy,
    )
}

fn writes(stats: &Stats) -> Finding {
    let disk = &stats.disk;
    let latency = disk.write_latency_ns.unwrap_or_default();
    let found = format!(
        "{} writes, {} errors, p99 {:.1} ms, {} of {} blocks in use",
        disk.writes,
        disk.errors,
        latency.p99 as f64 / 1e6,
        disk.blocks_used,
        disk.blocks_total
    );
    let full = disk.blocks_used * 10 > disk.blocks_total * BLOCKS_TENTHS;
    Finding::unless(
        disk.errors == 0 && !full,
        "recorder.writes",
        if disk.errors > 0 { Level::Fail } else { Level::Warn },
        found,
        if full {
            "the next stall of the disk loses packets"
        } else {
            "what was in a write that failed is lost"
        },
        "see the log, dir.space and disk.speed",
    )
}

fn commits(stats: &Stats) -> Finding {
    let recordings = &stats.recordings;
    Finding::unless(
        recordings.commits_failed == 0,
        "recorder.commits",
        Level::Fail,
        format!(
            "{} committed, {} of them incomplete, {} not committed",
            recordings.committed, recordings.incomplete, recordings.commits_failed
        ),
        "these stay as .part directories",
        "see the log, dir.space and dir.inodes",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut Stats)) -> Vec<Level> {
        let mut stats = Stats::default();
        change(&mut stats);
        check(Ok(&stats), false).iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn a_recorder_that_has_lost_nothing() {
        let stats = |stats: &mut Stats| {
            stats.media.dropped.insert("no_session".into(), 5);
            stats.disk.blocks_total = 10;
        };
        assert_eq!(with(stats), [Level::Ok; 4]);
    }

    #[test]
    fn losses_by_their_place() {
        assert_eq!(with(|stats| stats.media.kernel_dropped = 1)[1], Level::Warn);
        let dropped = |cause: &'static str| with(|stats| stats.media.dropped = [(cause.into(), 1)].into())[1];
        assert_eq!([dropped("no_block"), dropped("write_queue_full")], [Level::Warn; 2]);
        assert_eq!(dropped("write_failed"), Level::Fail);
        assert_eq!(with(|stats| stats.disk.errors = 1)[2], Level::Fail);
        assert_eq!(with(|stats| (stats.disk.blocks_used, stats.disk.blocks_total) = (9, 10))[2], Level::Warn);
        assert_eq!(with(|stats| stats.recordings.commits_failed = 1)[3], Level::Fail);
    }

    #[test]
    fn nobody_there() {
        assert_eq!(check(Err("no recorder answers"), false)[0].level, Level::Ok);
        assert_eq!(check(Err("no recorder answers"), true)[0].level, Level::Warn);
    }
}
