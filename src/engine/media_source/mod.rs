//! Where media comes from: a socket for each port, one steered socket for all of them, or the receive queues of an interface.
//!
//! | source | what receives | needs |
//! |---|---|---|
//! | [`sockets`] | a UDP socket for each port | nothing |
//! | [`steered`] | a UDP socket for each reactor, to which a BPF program steers all its ports | CAP_BPF, CAP_NET_ADMIN |
//! | [`xdp`] | the receive queues of interfaces, past the kernel's stack; `steered` for the rest | CAP_NET_RAW besides |
//!
//! Each hands over the same: an [`Incoming`] with the index of its port, from `0` to [`MediaSource::ports`].

mod choice;
mod receive;
pub mod sockets;
mod steered;
mod watch;
mod xdp;
mod xsk;

use std::io;
use std::net::SocketAddr;

use super::datagram::Datagram;
use super::ring::{Completion, Ring};
use crate::clock::Wall;

pub use choice::{Attached, Kind, Part, Request};
use sockets::Sockets;
use steered::Steered;
pub use watch::Watch;
pub use xdp::Queue;
use xdp::Xdp;

/// A datagram and where it was sent to.
pub struct Incoming<'a> {
    /// Of the port. [`MediaSource::ports`] itself stands for every port that is not ours.
    pub index: u32,
    pub port: u16,
    pub datagram: Datagram<'a>,
}

/// The source of one reactor.
pub enum MediaSource {
    Sockets(Sockets),
    Steered(Steered),
    Xdp(Xdp),
}

impl MediaSource {
    /// How many ports it receives; their indices are below.
    pub fn ports(&self) -> usize {
        match self {
            MediaSource::Sockets(source) => source.ports(),
            MediaSource::Steered(source) => source.ports(),
            MediaSource::Xdp(source) => source.rest.ports(),
        }
    }

    /// Which port the datagram of a completion was sent to, as far as that is known before it is read: for prefetching.
    pub fn coming(&self, completion: Completion) -> u32 {
        match self {
            MediaSource::Sockets(_) => completion.token.slot,
            MediaSource::Steered(source) => source.coming(completion),
            MediaSource::Xdp(source) => source.rest.coming(completion),
        }
    }

    /// Hands the datagram of a completion to `take`, then the buffer back to the kernel. `None`: there is one, and it cannot
    /// be read. `Err(ENOBUFS)`: the buffers had run out, the datagrams wait in their sockets.
    pub fn complete(
        &mut self,
        completion: Completion,
        take: impl FnOnce(Option<&Incoming<'_>>),
    ) -> Result<(), i32> {
        match self {
            MediaSource::Sockets(source) => source.complete(completion, take),
            MediaSource::Steered(source) => source.complete(completion, take),
            MediaSource::Xdp(source) => source.rest.complete(completion, take),
        }
    }

    /// Receive queues that are read without completions.
    pub fn queues(&mut self) -> &mut [Queue] {
        match self {
            MediaSource::Xdp(source) => &mut source.queues,
            MediaSource::Sockets(_) | MediaSource::Steered(_) => &mut [],
        }
    }

    /// Whether packets come without a completion, so that the reactor has to look for them.
    pub fn polled(&self) -> bool {
        matches!(self, MediaSource::Xdp(source) if !source.queues.is_empty())
    }

    /// Returns the buffers of this turn to the kernel and arms again what has ended.
    pub fn publish(&mut self, ring: &mut Ring) -> io::Result<()> {
        match self {
            MediaSource::Sockets(source) => source.publish(ring),
            MediaSource::Steered(source) => source.publish(ring),
            MediaSource::Xdp(source) => source.rest.publish(ring),
        }
    }

    /// Whether something that the kernel received before `asked` may still wait to be read for this port.
    pub fn waiting(&self, index: u32, asked: Wall) -> bool {
        match self {
            MediaSource::Sockets(source) => source.waiting(index),
            MediaSource::Steered(source) => source.behind(asked),
            MediaSource::Xdp(source) => source.behind(asked),
        }
    }

    /// Sends one datagram from the port with this index, which is `from`; at once or not at all.
    pub fn send(&self, index: u32, from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        match self {
            MediaSource::Sockets(source) => source.send(index, from.ip(), to, bytes),
            MediaSource::Steered(source) => source.send(from, to, bytes),
            MediaSource::Xdp(source) => source.rest.send(from, to, bytes),
        }
    }

    /// Datagrams that the kernel has dropped on this port's socket since this was last asked.
    pub fn new_drops(&mut self, index: u32) -> u32 {
        match self {
            MediaSource::Sockets(source) => source.new_drops(index),
            MediaSource::Steered(_) | MediaSource::Xdp(_) => 0,
        }
    }

    /// The same where ports share what drops: nobody knows whose they were.
    pub fn new_shared_drops(&mut self) -> u64 {
        match self {
            MediaSource::Sockets(_) => 0,
            MediaSource::Steered(source) => source.new_drops(),
            MediaSource::Xdp(source) => source.new_drops(),
        }
    }
}
