//! CPU time and memory of processes, as /proc tells them.

use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    pub user: Duration,
    pub system: Duration,
}

impl Cpu {
    pub fn total(self) -> Duration {
        self.user + self.system
    }

    pub fn since(self, earlier: Cpu) -> Cpu {
        Cpu {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
        }
    }
}

/// All threads of a process, the ended ones included.
pub fn process(pid: u32) -> Option<Cpu> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

pub fn this_process() -> Option<Cpu> {
    parse_stat(&std::fs::read_to_string("/proc/self/stat").ok()?)
}

pub fn this_thread() -> Option<Cpu> {
    parse_stat(&std::fs::read_to_string("/proc/thread-self/stat").ok()?)
}

/// Largest resident set so far, in bytes.
pub fn peak_memory(pid: u32) -> Option<u64> {
    parse_peak(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

/// utime and stime of proc_pid_stat(5), fields 14 and 15, in ticks of 10 ms (USER_HZ is 100 on every Linux). The second field
/// is a name in parentheses that may hold anything.
fn parse_stat(stat: &str) -> Option<Cpu> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut ticks = || Some(Duration::from_millis(fields.next()?.parse::<u64>().ok()? * 10));
    Some(Cpu { user: ticks()?, system: ticks()? })
}

fn parse_peak(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_a_hostile_name() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194304 100 0 0 0 123 45 0 0 20 0 1 0 5 6 7";
        let cpu = parse_stat(stat).unwrap();
        assert_eq!(cpu, Cpu { user: Duration::from_millis(1_230), system: Duration::from_millis(450) });
    }

    #[test]
    fn peak_memory_is_in_bytes() {
        assert_eq!(parse_peak("Name:\tx\nVmHWM:\t    1234 kB\n"), Some(1_263_616));
        assert!(peak_memory(std::process::id()).unwrap() > 100_000);
    }
}
