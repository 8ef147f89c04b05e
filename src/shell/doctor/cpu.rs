//! Cores: clock frequency, sleep states, siblings, what a hypervisor takes; and the kernel's clock.

use std::io;
use std::time::Duration;

use super::finding::{Finding, Level};
use super::host::Host;
use super::wanted::Wanted;
use crate::engine::probe::ClockState;
use crate::limits;

/// Waking from a sleep state may take this much of the time for which a reactor sleeps on purpose.
const WAKE_SHARE: u32 = 10;
/// Stolen of all time, in thousandths, from which it costs packets.
const STEAL: u64 = 10;
/// What compliance rules for recorded calls ask of a clock at most, and a value that an ordinary NTP client keeps.
const CLOCK_LIMIT: Duration = Duration::from_secs(1);
const CLOCK_WANTED: Duration = Duration::from_millis(100);

pub fn check(host: &Host, wanted: &Wanted, clock: &io::Result<ClockState>) -> Vec<Finding> {
    vec![
        governor(host, wanted),
        sleep(host, wanted),
        siblings(host, wanted),
        steal(host),
        synchronised(clock),
    ]
}

fn governor(host: &Host, wanted: &Wanted) -> Finding {
    let path = |core| format!("/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor");
    let mut governors: Vec<String> = wanted.cores.iter().filter_map(|core| host.read(&path(core))).collect();
    governors.sort();
    governors.dedup();
    let found = match governors.is_empty() {
        true => "the clock frequency is not this kernel's to set".to_owned(),
        false => format!("governor {}", governors.join(", ")),
    };
    Finding::unless(
        governors.iter().all(|governor| governor == "performance"),
        "cpu.governor",
        Level::Warn,
        found,
        "cores clock down between batches, and packets wait until they are fast again",
        "cpupower frequency-set -g performance, or: perf/tune --apply --only cpu",
    )
}

/// The deepest sleep that is not switched off.
fn sleep(host: &Host, wanted: &Wanted) -> Finding {
    let name = "cpu.idle";
    let Some(core) = wanted.cores.first() else { return Finding::ok(name, "no core") };
    let states = format!("/sys/devices/system/cpu/cpu{core}/cpuidle");
    let deepest = host
        .names(&states)
        .into_iter()
        .filter(|state| host.number(&format!("{states}/{state}/disable")) != Some(1))
        .filter_map(|state| {
            let latency = host.number(&format!("{states}/{state}/latency"))?;
            Some((latency, host.read(&format!("{states}/{state}/name")).unwrap_or(state)))
        })
        .max();
    let Some((latency, state)) = deepest else {
        return Finding::ok(name, "sleep states are not this kernel's to choose");
    };
    let bound = (limits::BATCH_WAIT / WAKE_SHARE).as_micros() as u64;
    Finding::unless(
        latency <= bound,
        name,
        Level::Note,
        format!("the deepest sleep of CPU {core} is {state}, {latency} µs to wake up"),
        "reactors wake late from it, and bursts wait in the card meanwhile",
        "perf/tune --apply --only cpu (states that take longer than the recorder's batches are switched off)",
    )
}

fn siblings(host: &Host, wanted: &Wanted) -> Finding {
    let path = |core: usize| format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
    let shared = wanted.cores.iter().find(|core| {
        let text = host.read(&path(**core)).unwrap_or_default();
        numbers(&text).iter().any(|sibling| *sibling != **core && wanted.cores.contains(sibling))
    });
    match shared {
        None => Finding::ok("cpu.siblings", "each reactor has a core to itself"),
        Some(core) => Finding::new(
            "cpu.siblings",
            Level::Note,
            format!("CPU {core} and another of the recorder's are threads of one core"),
            "two reactors share its caches and units: they do not record twice as much",
            "--cores with one thread of each core; the other for the card's interrupts",
        ),
    }
}

/// `0,4` or `0-1`
fn numbers(text: &str) -> Vec<usize> {
    let range = |item: &str| {
        let (low, high) = item.split_once('-').unwrap_or((item, item));
        Some(low.parse::<usize>().ok()?..=high.parse::<usize>().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

/// The first line of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal.
fn steal(host: &Host) -> Finding {
    let name = "cpu.steal";
    let times = host.read("/proc/stat").unwrap_or_default();
    let times: Vec<u64> = times
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let Some(&stolen) = times.get(7) else { return Finding::unknown(name, "/proc/stat cannot be read", "") };
    let all: u64 = times[..8].iter().sum();
    let thousandths = stolen * 1_000 / all.max(1);
    Finding::unless(
        thousandths < STEAL,
        name,
        Level::Warn,
        format!(
            "{}.{} % of the CPU time since boot went to other guests of the hypervisor",
            thousandths / 10,
            thousandths % 10
        ),
        "a reactor that is not running receives nothing: its sockets fill",
        "a machine of its own, or virtual CPUs that are not shared",
    )
}

fn synchronised(clock: &io::Result<ClockState>) -> Finding {
    let name = "clock.sync";
    let state = match clock {
        Ok(state) => state,
        Err(error) => return Finding::unknown(name, format!("adjtimex: {error}"), "see: timedatectl"),
    };
    let remedy = "run chrony, systemd-timesyncd or ptp4l with phc2sys; see: timedatectl";
    if !state.synchronised {
        return Finding::new(
            name,
            Level::Warn,
            "the clock is not synchronised",
            "recordings have times that nobody can rely on, and two recorders disagree",
            remedy,
        );
    }
    let level = if state.max_error > CLOCK_LIMIT { Level::Warn } else { Level::Note };
    Finding::unless(
        state.max_error <= CLOCK_WANTED,
        name,
        level,
        format!("the clock is synchronised, to {} ms at worst", state.max_error.as_millis()),
        "times of recordings may be wrong by as much",
        remedy,
    )
}

#[cfg(test)]
mod tests {
    use super::super::host::tests::host;
    use super::super::wanted::tests::wanted;
    use super::*;

    const CPU0: &str = "/sys/devices/system/cpu/cpu0";

    #[test]
    fn governors() {
        let of =
            |text| governor(&host(&[(&format!("{CPU0}/cpufreq/scaling_governor"), text)]).host, &wanted());
        assert_eq!(of("performance\n").level, Level::Ok);
        assert_eq!(of("powersave").level, Level::Warn);
        assert_eq!(governor(&host(&[]).host, &wanted()).level, Level::Ok);
    }

    #[test]
    fn sleep_states() {
        let state = |n: u8, file: &str| format!("{CPU0}/cpuidle/state{n}/{file}");
        let of = |disable| {
            let files = [
                (state(1, "latency"), "2"),
                (state(1, "name"), "C1"),
                (state(3, "latency"), "600"),
                (state(3, "name"), "C6"),
                (state(3, "disable"), disable),
            ];
            let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
            sleep(&host(&files).host, &wanted())
        };
        let deep = of("0");
        assert!(deep.level == Level::Note && deep.found.contains("C6, 600 µs"), "{deep:?}");
        assert_eq!(of("1").level, Level::Ok);
        assert_eq!(sleep(&host(&[]).host, &wanted()).level, Level::Ok);
    }

    #[test]
    fn siblings_among_the_reactors() {
        let of = |text| {
            siblings(&host(&[(&format!("{CPU0}/topology/thread_siblings_list"), text)]).host, &wanted()).level
        };
        assert_eq!(
            (of("0-1"), of("0,1"), of("0,8"), of("0")),
            (Level::Note, Level::Note, Level::Ok, Level::Ok)
        );
    }

    #[test]
    fn time_that_was_stolen() {
        let of = |text| steal(&host(&[("/proc/stat", text)]).host);
        assert_eq!(of("cpu  500 0 400 100 0 0 0 5 0 0\ncpu0 1 2\n").level, Level::Ok);
        let stolen = of("cpu  500 0 400 62 0 0 0 38 0 0\n");
        assert!(stolen.level == Level::Warn && stolen.found.starts_with("3.8 %"), "{stolen:?}");
        assert_eq!(of("").level, Level::Note);
    }

    #[test]
    fn clocks() {
        let of = |synchronised, ms| {
            let max_error = Duration::from_millis(ms);
            super::synchronised(&Ok(ClockState { synchronised, max_error })).level
        };
        assert_eq!([of(true, 5), of(true, 300), of(true, 3_000)], [Level::Ok, Level::Note, Level::Warn]);
        assert_eq!(of(false, 5), Level::Warn);
        assert_eq!(super::synchronised(&Err(io::ErrorKind::PermissionDenied.into())).level, Level::Note);
    }
}
