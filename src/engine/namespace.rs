//! A network namespace for one test: interfaces to set up and break without touching those of the machine.

use std::io;
use std::process::Command;
use std::thread;

/// Runs `test` on a thread in a new network namespace, which ends with it. Without the privilege the test says so and is not
/// run; where SIPREEL_REQUIRE_PEERS=1 it fails.
pub fn run(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(|| match enter() {
        Ok(()) => test(),
        Err(e) => {
            let required = std::env::var("SIPREEL_REQUIRE_PEERS").is_ok_and(|value| value == "1");
            assert!(!required, "no network namespace: {e}");
            eprintln!("skipped: no network namespace ({e}), which takes CAP_SYS_ADMIN, and ip");
        }
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn enter() -> io::Result<()> {
    Command::new("ip").arg("-V").output()?;
    // SAFETY: the call takes no memory; it concerns the calling thread alone, which `run` has made.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `ip` with these words as arguments, in the calling thread's namespace.
#[track_caller]
pub fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}
