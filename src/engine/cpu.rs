//! The machine: clocks, cores, limits. The only place that reads a clock.

use std::io;
use std::time::Duration;

use crate::clock::{Mono, Now, Wall};

/// Reads both clocks.
pub fn now() -> Now {
    Now { mono: Mono(read(libc::CLOCK_MONOTONIC)), wall: Wall(read(libc::CLOCK_REALTIME)) }
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a valid timespec for the call to fill; both clocks exist on every Linux.
    unsafe { libc::clock_gettime(clock, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// The cores that this process may run on.
pub fn allowed() -> Vec<usize> {
    // SAFETY: a cpu_set_t of zeroes is an empty set, and the call fills it up to the size given.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set);
        set
    };
    // SAFETY: CPU_ISSET reads within the set for every index below CPU_SETSIZE.
    (0..libc::CPU_SETSIZE as usize).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect()
}

/// Binds the calling thread to one core.
pub fn pin(core: usize) -> io::Result<()> {
    // SAFETY: `core` comes from `allowed()` and so is below CPU_SETSIZE; the set lives until the call returns.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Asks the scheduler (EEVDF, Linux 6.12) to run the calling thread for short times and so soon after it wakes; the kernel's
/// write workers, which are its children, stay as patient as they are. Takes no privilege; an older kernel changes nothing.
pub fn run_soon(slice: Duration) -> io::Result<()> {
    /// struct sched_attr of linux/sched/types.h, its first version.
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    const RESET_ON_FORK: u64 = 1;
    // SAFETY: the call takes no memory.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        policy: libc::SCHED_OTHER as u32,
        flags: RESET_ON_FORK,
        nice,
        priority: 0,
        runtime: slice.as_nanos() as u64,
        deadline: 0,
        period: 0,
    };
    // SAFETY: the kernel reads as many bytes from the local as its first field says.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Lets others run first: the calling thread gets about a third of a core when another wants it too. Takes no privilege.
pub fn run_patiently() -> io::Result<()> {
    const MORE: i32 = 5;
    // SAFETY: the calls take no memory; 0 is the calling thread, which is what Linux's nice values belong to.
    let result = unsafe {
        let nice = libc::getpriority(libc::PRIO_PROCESS, 0);
        libc::setpriority(libc::PRIO_PROCESS, 0, nice + MORE)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Raises the soft limit of open files to the hard one and returns it.
pub fn raise_descriptor_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for both calls; raising the soft limit to the hard one needs no privilege.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        let raised = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raised) == 0 {
            limit = raised;
        }
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_run_forward() {
        let (a, b) = (now(), now());
        assert!(b.mono >= a.mono && a.wall.0 > 1_700_000_000_000_000_000);
    }

    #[test]
    fn any_thread_may_ask_to_run_soon() {
        std::thread::spawn(|| run_soon(Duration::from_micros(100)).unwrap()).join().unwrap();
    }

    #[test]
    fn a_patient_thread_is_patient_alone() {
        let nice = || -> i32 {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse().unwrap()
        };
        let before = nice();
        let patient = std::thread::spawn(move || run_patiently().map(|()| nice()).unwrap()).join().unwrap();
        assert_eq!((patient, nice()), ((before + 5).min(19), before));
    }

    #[test]
    fn this_thread_runs_on_an_allowed_core() {
        let cores = allowed();
        assert!(!cores.is_empty());
        std::thread::spawn(move || {
            pin(cores[0]).unwrap();
            assert_eq!(allowed(), [cores[0]]);
        })
        .join()
        .unwrap();
    }
}
