//! SIGTERM and SIGINT end the recorder, the second one at once; SIGHUP does nothing.

use std::ffi::c_int;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator;

pub struct Signals(iterator::Signals);

impl Signals {
    /// From now on the first SIGTERM or SIGINT is kept for [`Signals::wait_for_end`], even if it comes before that is called.
    /// The second ends the process with 128 + its number from within the handler: no destructor and no other thread runs,
    /// so what is on disk stays as it is, open recordings in their `.part` directories.
    pub fn install() -> io::Result<Signals> {
        let ending = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            // Handlers of one signal run in order of registration: the first signal finds the flag not yet set.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&ending))?;
            flag::register(signal, Arc::clone(&ending))?;
        }
        Ok(Signals(iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])?))
    }

    /// Blocks until SIGTERM or SIGINT, and says which.
    pub fn wait_for_end(&mut self) -> &'static str {
        for signal in self.0.forever() {
            if let Some(name) = end(signal) {
                return name;
            }
            tracing::info!("SIGHUP ignored: nothing can be reloaded; a change of flags needs a restart");
        }
        unreachable!("the iterator of signals ends only when it is closed, and nobody closes it")
    }
}

/// The name of a signal that ends the recorder.
fn end(signal: c_int) -> Option<&'static str> {
    match signal {
        SIGTERM => Some("SIGTERM"),
        SIGINT => Some("SIGINT"),
        _ => None,
    }
}
