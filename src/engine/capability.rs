//! Capabilities of the calling thread. They belong to threads, not to the process, and a new thread has those of the one that
//! made it: whoever drops them does so before any thread is spawned.

use std::io;

/// linux/capability.h.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Capability {
    /// Attaches programs, makes maps of sockets.
    NetAdmin = 12,
    /// Opens AF_XDP sockets.
    NetRaw = 13,
    /// Loads programs, makes maps.
    Bpf = 39,
}

/// Whether the calling thread may use it now (its effective set). No, if the kernel does not tell.
pub fn has(capability: Capability) -> bool {
    let (word, bit) = place(capability);
    read().is_ok_and(|sets| sets[word].effective & bit != 0)
}

/// Takes them from the calling thread for good: from its effective, permitted and inheritable sets, and so (the kernel sees to
/// it) from its ambient set. Threads that exist already keep theirs.
pub fn drop_all(capabilities: &[Capability]) -> io::Result<()> {
    let mut sets = read()?;
    for &capability in capabilities {
        let (word, bit) = place(capability);
        let set = &mut sets[word];
        set.effective &= !bit;
        set.permitted &= !bit;
        set.inheritable &= !bit;
    }
    write(&sets)
}

/// One of the two words of each set.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

#[repr(C)]
struct Header {
    version: u32,
    /// 0: the calling thread.
    pid: i32,
}

impl Header {
    /// _LINUX_CAPABILITY_VERSION_3: sets of 64 bits in two words.
    const OWN: Header = Header { version: 0x2008_0522, pid: 0 };
}

const fn place(capability: Capability) -> (usize, u32) {
    let number = capability as usize;
    (number / 32, 1 << (number % 32))
}

fn read() -> io::Result<[Sets; 2]> {
    let (mut header, mut sets) = (Header::OWN, [Sets::default(); 2]);
    // SAFETY: with this version the kernel writes two words of each set, which is what there is room for.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(sets) }
}

fn write(sets: &[Sets; 2]) -> io::Result<()> {
    let mut header = Header::OWN;
    // SAFETY: with this version the kernel reads two words of each set, which is what there is.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
