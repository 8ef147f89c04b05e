//! What the tests of the programs share.

use std::io;
use std::process::Command;

use super::super::capability::{Capability, granted};

/// What loading and attaching take, and AF_XDP sockets.
pub const NEEDED: [Capability; 3] = [Capability::NetAdmin, Capability::Bpf, Capability::NetRaw];

/// Runs a test in a thread with a network namespace of its own, in which only the loopback interface is there and up. It goes
/// with the thread.
pub fn in_private_namespace(test: impl FnOnce() + Send + 'static) {
    if !granted(&NEEDED) || !granted(&[Capability::SysAdmin]) {
        return;
    }
    let thread = std::thread::spawn(|| {
        // SAFETY: no pointers; only this thread moves to the new namespace.
        let moved = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(moved, 0, "{}", io::Error::last_os_error());
        ip("link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs ip(8) in the calling thread's network namespace.
pub fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}: {status}");
}
