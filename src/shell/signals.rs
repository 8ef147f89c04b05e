//! SIGTERM and SIGINT end the recorder, the second one at once; SIGHUP has files read again.

use std::ffi::c_int;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded, select_biased};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator;

use crate::engine::drop_capabilities;

/// Signals this soon after the first are the same wish: timeout(1) signals its child and then its child's group.
const SAME_WISH: Duration = Duration::from_millis(100);

/// What a signal asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    /// By this signal, the first of its kind.
    End(&'static str),
    /// Read the files again that can be.
    Reload,
}

/// The wishes that have come and are not looked at yet: an end, and a reload, which stands for all before it.
pub struct Wishes {
    end: Receiver<&'static str>,
    reload: Receiver<()>,
}

impl Wishes {
    /// From now on signals are kept for [`Wishes::wait`], even if they come before that is called.
    /// The second ends the process with 128 + its number from within the handler: no destructor and no other thread runs,
    /// so what is on disk stays as it is, open recordings in their `.part` directories.
    pub fn install() -> io::Result<Wishes> {
        let armed = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&armed))?;
        }
        let signals = iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])?;
        let (first, end) = bounded(1);
        let (again, reload) = bounded(1);
        thread::Builder::new().name("signals".into()).spawn(move || {
            // It is there before the recorder drops them for the threads that it makes. Where that fails, the start does.
            let _ = drop_capabilities();
            watch(signals, &first, &again, &armed);
        })?;
        Ok(Wishes { end, reload })
    }

    /// Blocks until there is one; an end comes first.
    pub fn wait(&self) -> Wish {
        let wish = select_biased! {
            recv(self.end) -> signal => signal.map(Wish::End),
            recv(self.reload) -> reload => reload.map(|()| Wish::Reload),
        };
        wish.expect("the thread that watches signals never ends")
    }
}

fn watch(
    mut signals: iterator::Signals,
    first: &Sender<&'static str>,
    again: &Sender<()>,
    armed: &AtomicBool,
) {
    for signal in signals.forever() {
        match name(signal) {
            Some(name) => {
                // Full when it is not the first; then the handler is about to end the process anyway.
                let _ = first.try_send(name);
                thread::sleep(SAME_WISH);
                armed.store(true, Ordering::Relaxed);
            }
            // Full when one is to be looked at still: it reads what is there then.
            None => drop(again.try_send(())),
        }
    }
}

/// The name of a signal that ends the recorder.
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
        let wishes = Wishes::install().unwrap();
        eprintln!("installed");
        loop {
            match wishes.wait() {
                Wish::Reload => eprintln!("reload"),
                Wish::End(signal) => {
                    eprintln!("{signal}");
                    return thread::sleep(Duration::from_secs(60));
                }
            }
        }
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
            assert_eq!(line(), "reload");
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
