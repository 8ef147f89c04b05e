//! SIGTERM and SIGINT end the recorder, the second one at once; SIGHUP does nothing.

use std::ffi::c_int;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator;

/// Signals this soon after the first are the same wish: timeout(1) signals its child and then its child's group.
const SAME_WISH: Duration = Duration::from_millis(100);

/// Signals on their way to [`Ending::wait`].
pub struct Ending {
    signals: iterator::Signals,
    armed: Arc<AtomicBool>,
}

impl Ending {
    /// From now on the first SIGTERM or SIGINT is kept for [`Ending::wait`], even if it comes before that is called.
    /// The second ends the process with 128 + its number from within the handler: no destructor and no other thread runs,
    /// so what is on disk stays as it is, open recordings in their `.part` directories.
    pub fn install() -> io::Result<Ending> {
        let armed = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&armed))?;
        }
        let signals = iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])?;
        Ok(Ending { signals, armed })
    }

    /// Blocks until SIGTERM or SIGINT, and says which. Only then is there a thread for what follows: one made before the
    /// recorder has dropped its capabilities would keep them.
    pub fn wait(self) -> &'static str {
        let Ending { mut signals, armed } = self;
        let first = signals.forever().find_map(noted).expect("signals never end");
        let rest = Arc::clone(&armed);
        let spawned = thread::Builder::new().name("signals".into()).spawn(move || {
            thread::sleep(SAME_WISH);
            rest.store(true, Ordering::Relaxed);
            signals.forever().for_each(|signal| _ = noted(signal));
        });
        if spawned.is_err() {
            armed.store(true, Ordering::Relaxed);
        }
        first
    }
}

/// The name of a signal that ends the recorder; of another, a line in the log.
fn noted(signal: c_int) -> Option<&'static str> {
    let name = name(signal);
    if name.is_none() {
        tracing::info!("SIGHUP ignored: nothing can be reloaded; a change of flags needs a restart");
    }
    name
}

fn name(signal: c_int) -> Option<&'static str> {
    match signal {
        SIGTERM => Some("SIGTERM"),
        SIGINT => Some("SIGINT"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    const CHILD: &str = "SIPREEL_TEST_SIGNALS_CHILD";

    /// What the child process of a test does: it would drain for a minute.
    fn drain_for_a_minute() {
        let ending = Ending::install().unwrap();
        eprintln!("installed");
        eprintln!("{}", ending.wait());
        thread::sleep(Duration::from_secs(60));
    }

    /// This test binary again, in the part that `drain_for_a_minute`; and its next line at each call.
    fn child(test: &str) -> (Child, impl FnMut() -> String) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([&format!("shell::signals::tests::{test}"), "--exact", "--nocapture"])
            .env(CHILD, "1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        (child, move || lines.next().unwrap().unwrap())
    }

    fn send(signal: &str, child: &Child) {
        let kill = format!("kill -{signal} {}", child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    #[test]
    fn the_second_signal_ends_the_process_at_once() {
        if std::env::var_os(CHILD).is_some() {
            return drain_for_a_minute();
        }
        for (first, second, code) in [("TERM", "INT", 130), ("INT", "TERM", 143), ("INT", "INT", 130)] {
            let (mut child, mut line) = child("the_second_signal_ends_the_process_at_once");
            assert_eq!(line(), "installed");
            send("HUP", &child);
            send(first, &child);
            assert_eq!(line(), format!("SIG{first}"));
            thread::sleep(SAME_WISH * 2);
            send(second, &child);
            assert_eq!(child.wait().unwrap().code(), Some(code));
        }
    }

    #[test]
    fn two_signals_of_one_wish_are_one() {
        if std::env::var_os(CHILD).is_some() {
            return drain_for_a_minute();
        }
        let (mut child, mut line) = child("two_signals_of_one_wish_are_one");
        assert_eq!(line(), "installed");
        let both = format!("kill -TERM {0}; kill -TERM {0}", child.id());
        assert!(Command::new("sh").args(["-c", &both]).status().unwrap().success());
        assert_eq!(line(), "SIGTERM");
        thread::sleep(SAME_WISH * 2);
        assert!(child.try_wait().unwrap().is_none(), "it drains");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
