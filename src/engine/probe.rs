//! What this kernel lets this process do, asked by doing it: an io_uring, a BPF program, an AF_XDP socket; the clock; a
//! file system's room.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::bpf::{Program, ProgramKind};
use super::ring::Ring;

/// Makes a ring as a reactor does. `Err` is a sentence that says what to change.
pub fn io_uring() -> Result<(), String> {
    Ring::new(1).map(drop)
}

/// Loads, and drops, an sk_lookup program that changes nothing. It is attached to nothing.
pub fn sk_lookup() -> io::Result<()> {
    Program::pass(ProgramKind::SkLookup).map(drop)
}

/// The same for XDP, and an AF_XDP socket.
pub fn af_xdp() -> io::Result<()> {
    Socket::new(Domain::from(libc::AF_XDP), Type::RAW.cloexec(), None)?;
    Program::pass(ProgramKind::Xdp).map(drop)
}

/// Bytes of memory that this process can still take: what the machine has to give, or its control group. `None`: the kernel
/// does not tell.
pub fn memory_available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let machine = line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10;
    Some(group_memory_available().map_or(machine, |group| group.min(machine)))
}

/// What the control group (version 2) leaves; `None` where it sets no limit.
fn group_memory_available() -> Option<u64> {
    let group = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = Path::new("/sys/fs/cgroup").join(group.trim().strip_prefix("0::/")?);
    let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
}

/// The kernel's opinion of its own clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClockState {
    pub synchronised: bool,
    /// Upper bound of the error, as whatever disciplines the clock has told.
    pub max_error: Duration,
}

pub fn clock() -> io::Result<ClockState> {
    // SAFETY: a timex of zeroes asks for nothing to be changed.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `timex` is valid for the call to fill.
    if unsafe { libc::adjtimex(&mut timex) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ClockState {
        synchronised: timex.status & libc::STA_UNSYNC == 0,
        max_error: Duration::from_micros(u64::try_from(timex.maxerror).unwrap_or(0)),
    })
}

/// Room on the file system that holds a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// Bytes that this user can still write, and all of them.
    pub free: u64,
    pub total: u64,
    /// Files that can still be made; `None` where the file system has no such limit.
    pub inodes_free: Option<u64>,
    pub writable: bool,
}

pub fn room(path: &Path) -> io::Result<Room> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: a statvfs of zeroes is a valid one.
    let mut room: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends in a zero, and `room` is valid for the call to fill.
    if unsafe { libc::statvfs(path.as_ptr(), &mut room) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the path ends in a zero and outlives the call.
    let writable = unsafe { libc::access(path.as_ptr(), libc::W_OK | libc::X_OK) } == 0;
    Ok(Room {
        free: room.f_bavail * room.f_frsize,
        total: room.f_blocks * room.f_frsize,
        inodes_free: (room.f_files > 0).then_some(room.f_favail),
        writable,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_are_allowed_where_the_tests_run() {
        assert_eq!(io_uring(), Ok(()));
    }

    /// Either it works, or the errno says why not; anything else is a mistake in the request.
    #[test]
    fn programs_load_or_are_not_permitted() {
        for result in [sk_lookup(), af_xdp()] {
            let permitted = result.map_err(|e| e.raw_os_error());
            let refusals = [libc::EPERM, libc::EACCES, libc::EAFNOSUPPORT, libc::ENOSYS].map(Some);
            assert!(permitted.is_ok() || refusals.contains(&permitted.unwrap_err()), "{permitted:?}");
        }
    }

    #[test]
    fn the_kernel_has_an_opinion_of_its_clock() {
        assert!(clock().unwrap().max_error < Duration::from_secs(1_000_000));
    }

    #[test]
    fn room_of_a_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let room = super::room(dir.path()).unwrap();
        assert!(room.writable && room.free <= room.total && room.total > 0);
        assert!(super::room(Path::new("/nowhere/at/all")).is_err());
    }
}
