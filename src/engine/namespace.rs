//! A network namespace for one test: interfaces to set up and break without touching those of the machine.

use std::io;
use std::process::Command;
use std::thread;

use super::capability::{Capability, granted};

/// What loading and attaching programs take, and AF_XDP sockets.
pub const NEEDED: [Capability; 3] = [Capability::NetAdmin, Capability::NetRaw, Capability::Bpf];

/// Runs `test` on a thread in a new network namespace, which ends with it and in which only loopback is there and up; without
/// the privilege the test says so.
#[track_caller]
pub fn run(test: impl FnOnce() + Send + 'static) {
    if !granted(&NEEDED) || !granted(&[Capability::SysAdmin]) {
        return;
    }
    let thread = thread::spawn(|| {
        // SAFETY: the call takes no memory, and concerns this thread alone.
        let entered = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(entered, 0, "no network namespace: {}", io::Error::last_os_error());
        ip("link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// `ip` with these words as arguments, in the calling thread's namespace.
#[track_caller]
pub fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}
