//! A wire of a test's own: `perf/lab`'s two network namespaces, the recorder's box in one and who loads it in the other.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::peers::installed;

/// The addresses of the two ends, in both families.
pub const RECORDER: [&str; 2] = ["10.99.0.2", "fd99::2"];
pub const LOAD: [&str; 2] = ["10.99.0.1", "fd99::1"];
/// The interface, at either end.
pub const INTERFACE: &str = "lab0";

pub struct Lab {
    name: String,
}

impl Lab {
    /// Without the privilege to make one a test says so and ends; where SIPREEL_REQUIRE_PEERS=1 it fails.
    #[must_use]
    pub fn up() -> Option<Lab> {
        Lab::with_queues(1)
    }

    /// With so many queues at each end of the wire.
    #[must_use]
    pub fn with_queues(queues: u32) -> Option<Lab> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        if !installed(&["ip", "ethtool"]) {
            return None;
        }
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let lab = Lab { name: format!("it-{}-{number}", std::process::id()) };
        let Output { status, stderr, .. } =
            lab.perf("up").args(["--queues", &queues.to_string()]).output().unwrap();
        if status.success() {
            return Some(lab);
        }
        let why = String::from_utf8_lossy(&stderr).into_owned();
        let required = std::env::var("SIPREEL_REQUIRE_PEERS").is_ok_and(|value| value == "1");
        assert!(!required && why.contains("CAP_SYS_ADMIN"), "{why}");
        eprintln!("skipped: {why}");
        None
    }

    /// A program inside `recorder` or `load`; its process is the child itself.
    pub fn command(&self, end: &str, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.perf("exec");
        command.arg(end).arg(program);
        command
    }

    /// Does `work` on a thread inside `recorder` or `load`: its sockets are there, and the programs that it starts.
    pub fn inside<T: Send>(&self, end: &str, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}-{end}", self.name)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                // SAFETY: the call takes no memory, and moves this thread alone.
                let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
                assert_eq!(entered, 0, "{}", std::io::Error::last_os_error());
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// `ip` with these words as arguments, at this end.
    #[track_caller]
    pub fn ip(&self, end: &str, words: &str) -> String {
        crate::peers::output(self.command(end, "ip").args(words.split_whitespace()))
    }

    fn perf(&self, what: &str) -> Command {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("perf/lab");
        let mut command = Command::new(script);
        command.args([what, "--name", &self.name]);
        command
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let down = self.perf("down").status();
        assert!(std::thread::panicking() || down.is_ok_and(|status| status.success()), "{} stays", self.name);
    }
}
