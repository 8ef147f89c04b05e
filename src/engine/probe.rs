//! What this kernel lets this process do, asked by doing it: an io_uring, a BPF program, an AF_XDP socket; the clock; a
//! file system's room.

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::ring::Ring;

/// Makes a ring as a reactor does. `Err` is a sentence that says what to change.
pub fn io_uring() -> Result<(), String> {
    Ring::new(1).map(drop)
}

/// linux/bpf.h.
const PROG_LOAD: libc::c_int = 5;
const TYPE_XDP: u32 = 6;
const TYPE_SK_LOOKUP: u32 = 30;
const ATTACH_XDP: u32 = 37;
const ATTACH_SK_LOOKUP: u32 = 36;
/// `r0 = PASS; exit`. Both kinds of program have a PASS that changes nothing: SK_PASS is 1, XDP_PASS is 2.
const EXIT: u64 = 0x95;

/// Loads, and drops, an sk_lookup program that changes nothing. It is attached to nothing.
pub fn sk_lookup() -> io::Result<()> {
    load(TYPE_SK_LOOKUP, ATTACH_SK_LOOKUP, 1).map(drop)
}

/// The same for XDP, and an AF_XDP socket.
pub fn af_xdp() -> io::Result<()> {
    Socket::new(Domain::from(libc::AF_XDP), Type::RAW.cloexec(), None)?;
    load(TYPE_XDP, ATTACH_XDP, 2).map(drop)
}

/// The part of `union bpf_attr` that loading needs.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach: u32,
}

fn load(kind: u32, attach: u32, verdict: u32) -> io::Result<OwnedFd> {
    // mov r0, verdict: opcode 0xb7, the immediate value in the upper half.
    let code: [u64; 2] = [0xb7 | u64::from(verdict) << 32, EXIT];
    let licence = c"MIT";
    let request = Load {
        kind,
        attach,
        instructions: code.len() as u32,
        code: code.as_ptr() as u64,
        licence: licence.as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: the request has the size given; the code and the licence that it points to outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const request, size_of::<Load>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
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
