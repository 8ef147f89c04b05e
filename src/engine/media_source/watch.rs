//! Looks after what AF_XDP was attached to: addresses that come and go, links that go down, interfaces that vanish.

use crossbeam::channel::{Receiver, RecvTimeoutError};

use super::super::bpf::redirect::Addresses;
use super::super::interface::{self, Interface};
use crate::limits;

/// A thread of its own, because it asks the kernel and may wait for the answer.
pub struct Watch {
    interfaces: Vec<Watched>,
    addresses: Addresses,
    /// Media is taken at all addresses of the host.
    all_addresses: bool,
}

struct Watched {
    interface: Interface,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Up,
    Down,
    /// Removed, or replaced by another of the same name: our program went with it.
    Gone,
}

impl Watch {
    pub fn new(interfaces: Vec<Interface>, addresses: Addresses, all_addresses: bool) -> Watch {
        let watched = |interface: Interface| Watched {
            state: if interface.up { State::Up } else { State::Down },
            interface,
        };
        Watch { interfaces: interfaces.into_iter().map(watched).collect(), addresses, all_addresses }
    }

    /// Runs until the other end of `stop` is dropped.
    pub fn run(mut self, stop: &Receiver<()>) {
        while stop.recv_timeout(limits::INTERFACE_WATCH) == Err(RecvTimeoutError::Timeout) {
            self.look();
        }
    }

    fn look(&mut self) {
        self.interfaces.iter_mut().for_each(Watched::look);
        if !self.all_addresses {
            return;
        }
        let refreshed = interface::addresses()
            .map_err(|e| e.to_string())
            .and_then(|addresses| self.addresses.refresh(&addresses));
        if let Err(e) = refreshed {
            tracing::error!("media sent to a new address of this host may be missed by AF_XDP: {e}");
        }
    }
}

impl Watched {
    fn look(&mut self) {
        let state = match Interface::named(&self.interface.name) {
            Ok(found) if found.index != self.interface.index => State::Gone,
            Ok(found) if found.up => State::Up,
            Ok(_) => State::Down,
            Err(_) => State::Gone,
        };
        let before = std::mem::replace(&mut self.state, state);
        let interface = &self.interface.name;
        match (before, state) {
            (State::Up | State::Down, State::Gone) => tracing::error!(
                event = "interface_gone",
                interface,
                "the interface was removed: its media is lost until the recorder is restarted"
            ),
            (_, State::Gone) => self.state = State::Gone,
            // What has the name now is another interface, without our program.
            (State::Gone, _) => self.state = State::Gone,
            (State::Up, State::Down) => {
                tracing::error!(event = "link_down", interface, "the link is down: no media comes from it");
            }
            (State::Down, State::Up) => tracing::warn!(event = "link_up", interface, "the link is up again"),
            _ => {}
        }
    }
}
