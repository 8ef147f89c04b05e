//! Capabilities of the calling thread. They belong to threads, not to the process, and a new thread has those of the one that
//! made it: whoever drops them does so before any thread is spawned.

use std::io;
#[cfg(test)]
use std::io::Write;

/// linux/capability.h.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Capability {
    /// Attaches programs, makes maps of sockets.
    NetAdmin = 12,
    /// Opens AF_XDP sockets.
    NetRaw = 13,
    /// Nothing of ours, and it stands for the other three: who starts us as root gives it all the same.
    SysAdmin = 21,
    /// Loads programs, makes maps.
    Bpf = 39,
}

impl Capability {
    /// As capabilities(7) and systemd write it.
    pub fn name(self) -> &'static str {
        match self {
            Capability::NetAdmin => "CAP_NET_ADMIN",
            Capability::NetRaw => "CAP_NET_RAW",
            Capability::SysAdmin => "CAP_SYS_ADMIN",
            Capability::Bpf => "CAP_BPF",
        }
    }
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

/// Whether a test may use them. If not it says so and ends; where SIPREEL_REQUIRE_PEERS=1 it fails.
#[cfg(test)]
pub fn granted(capabilities: &[Capability]) -> bool {
    let missing: Vec<&Capability> = capabilities.iter().filter(|&&capability| !has(capability)).collect();
    if missing.is_empty() {
        return true;
    }
    let required = std::env::var("SIPREEL_REQUIRE_PEERS").is_ok_and(|value| value == "1");
    assert!(!required, "not granted: {missing:?}");
    // Past the test harness, which keeps what tests that end well print.
    let _ = writeln!(io::stderr(), "skipped: {missing:?} not granted");
    false
}

/// Takes all others from the calling thread.
#[cfg(test)]
pub fn keep_only(capabilities: &[Capability]) -> io::Result<()> {
    let mut kept = [0; 2];
    for &capability in capabilities {
        let (word, bit) = place(capability);
        kept[word] |= bit;
    }
    let sets = read()?;
    write(&[0, 1].map(|word| Sets {
        effective: sets[word].effective & kept[word],
        permitted: sets[word].permitted & kept[word],
        inheritable: sets[word].inheritable & kept[word],
    }))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    /// Opens a socket for raw frames, which takes CAP_NET_RAW.
    fn raw_socket(family: libc::c_int) -> Result<(), Option<i32>> {
        // SAFETY: no pointers; the descriptor is closed below.
        let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error().raw_os_error());
        }
        // SAFETY: this descriptor was made above, and nobody else knows it.
        unsafe { libc::close(fd) };
        Ok(())
    }

    #[test]
    fn what_a_thread_drops_others_keep() {
        if !granted(&[Capability::NetRaw, Capability::NetAdmin]) {
            return;
        }
        let (dropped, other_may_look) = channel();
        let other = thread::spawn(move || {
            other_may_look.recv().unwrap();
            (has(Capability::NetRaw), raw_socket(libc::AF_PACKET))
        });
        let dropping = thread::spawn(move || {
            raw_socket(libc::AF_PACKET).unwrap();
            drop_all(&[Capability::NetRaw, Capability::Bpf]).unwrap();
            dropped.send(()).unwrap();
            assert!(!has(Capability::NetRaw) && !has(Capability::Bpf) && has(Capability::NetAdmin));
            assert_eq!(raw_socket(libc::AF_PACKET), Err(Some(libc::EPERM)));
            assert_eq!(raw_socket(libc::AF_XDP), Err(Some(libc::EPERM)));
            let child = thread::spawn(|| has(Capability::NetRaw));
            assert!(!child.join().unwrap(), "a new thread has them back");
            drop_all(&[Capability::NetRaw]).unwrap();
        });
        dropping.join().unwrap();
        assert_eq!(other.join().unwrap(), (true, Ok(())));
    }

    /// What an ambient capability would give back to a program that is executed.
    #[test]
    fn ambient_capabilities_go_too() {
        if !granted(&[Capability::NetRaw]) {
            return;
        }
        let ambient = |operation: libc::c_int| {
            // SAFETY: no pointers.
            unsafe { libc::prctl(libc::PR_CAP_AMBIENT, operation, Capability::NetRaw as libc::c_ulong, 0, 0) }
        };
        thread::spawn(move || {
            let mut sets = read().unwrap();
            let (word, bit) = place(Capability::NetRaw);
            sets[word].inheritable |= bit;
            write(&sets).unwrap();
            assert_eq!(ambient(libc::PR_CAP_AMBIENT_RAISE), 0);
            assert_eq!(ambient(libc::PR_CAP_AMBIENT_IS_SET), 1);
            drop_all(&[Capability::NetRaw]).unwrap();
            assert_eq!(ambient(libc::PR_CAP_AMBIENT_IS_SET), 0);
            assert_eq!(read().unwrap()[word].inheritable & bit, 0);
        })
        .join()
        .unwrap();
    }
}
