//! The receive queues of interfaces, past the kernel's network stack (AF_XDP).
//!
//! A program on each interface hands the frames of our media ports to the socket of the queue on which they came; all else
//! (ARP, SIP, ssh, fragments) goes the kernel's way. What is media of that all the same, fragments or packets on other
//! interfaces, a steered socket receives. Queue q is read by reactor q modulo their number, and no frame changes threads.

use std::net::IpAddr;
use std::os::fd::AsFd;

use super::super::bpf::Link;
use super::super::bpf::ports::PortTable;
use super::super::bpf::redirect::{Addresses, AttachError, Mode, Redirect};
use super::super::datagram::Datagram;
use super::super::interface::{self, Interface};
use super::super::ring::Ring;
use super::Incoming;
use super::steered::{self, Steered};
use super::xsk::XskSocket;
use crate::clock::{Mono, Now, Wall};
use crate::limits;
use crate::proto::frame;

/// All queues' sockets, by reactor, and the programs that feed them.
pub struct Attachment {
    pub sockets: Vec<Vec<XskSocket>>,
    /// Detach when they are dropped.
    pub programs: Vec<(Redirect, Link)>,
    pub addresses: Addresses,
    pub interfaces: Vec<Interface>,
    /// An interface each: how its frames are received.
    pub modes: Vec<String>,
}

impl Attachment {
    /// Takes every receive queue of the interfaces. `ip`: the one address at which media is taken; without it, all of the host.
    pub fn new(
        names: &[String],
        ip: Option<IpAddr>,
        table: &PortTable,
        reactors: usize,
    ) -> Result<Attachment, String> {
        let host =
            || interface::addresses().map_err(|e| format!("the host's addresses cannot be read ({e})"));
        let addresses = Addresses::new(&ip.map_or_else(host, |ip| Ok(vec![ip]))?)?;
        let mut attachment = Attachment {
            sockets: (0..reactors).map(|_| Vec::new()).collect(),
            programs: Vec::new(),
            addresses,
            interfaces: Vec::new(),
            modes: Vec::new(),
        };
        for name in names {
            attachment.add(Interface::named(name)?, table)?;
        }
        Ok(attachment)
    }

    fn add(&mut self, interface: Interface, table: &PortTable) -> Result<(), String> {
        let Interface { name, index, rx_queues, .. } = &interface;
        let redirect = Redirect::load(table, &self.addresses, *rx_queues)?;
        let (link, mode) = attach(&redirect, *index).map_err(|e| format!("the interface {name} {e}"))?;
        let mut zero_copy = true;
        for queue in 0..*rx_queues {
            let socket = XskSocket::bind(&interface, queue)?;
            redirect.set_socket(queue, socket.as_fd())?;
            zero_copy &= socket.zero_copy();
            let reactor = queue as usize % self.sockets.len();
            self.sockets[reactor].push(socket);
        }
        let mode = if mode == Mode::Native { "native" } else { "generic" };
        let copy = if zero_copy { "zero-copy" } else { "copied" };
        let plural = if *rx_queues == 1 { "" } else { "s" };
        self.modes.push(format!("{name} ({rx_queues} queue{plural}, {mode}, {copy})"));
        self.programs.push((redirect, link));
        self.interfaces.push(interface);
        Ok(())
    }
}

/// In the driver if it can, else in the kernel's stack.
fn attach(redirect: &Redirect, index: u32) -> Result<(Link, Mode), AttachError> {
    match redirect.attach(index, Mode::Native) {
        Err(AttachError::NotSupported(_)) => {
            redirect.attach(index, Mode::Generic).map(|link| (link, Mode::Generic))
        }
        result => result.map(|link| (link, Mode::Native)),
    }
}

/// What one reactor gets.
pub struct Bound {
    pub rest: steered::Bound,
    pub sockets: Vec<XskSocket>,
}

/// The armed source of one reactor.
pub struct Xdp {
    /// For what does not come through the queues.
    pub rest: Steered,
    pub queues: Vec<Queue>,
}

impl Xdp {
    pub fn arm(bound: Bound, ring: &mut Ring) -> Result<Xdp, String> {
        let rest = Steered::arm(bound.rest, ring)?;
        let queue = |socket| Queue {
            socket,
            first: rest.first(),
            ports: rest.ports(),
            indices: Box::new([0; limits::XDP_BATCH]),
            behind: false,
        };
        let queues = bound.sockets.into_iter().map(queue).collect();
        Ok(Xdp { rest, queues })
    }

    pub fn behind(&self, asked: Wall) -> bool {
        self.queues.iter().any(|queue| queue.behind) || self.rest.behind(asked)
    }

    pub fn new_drops(&mut self) -> u64 {
        let queues: u64 = self.queues.iter_mut().map(|queue| queue.socket.new_drops()).sum();
        queues + self.rest.new_drops()
    }
}

/// A receive queue, read batch by batch: peek, then for each frame prefetch, look, incoming, then release.
pub struct Queue {
    socket: XskSocket,
    first: u16,
    ports: usize,
    /// Port indices of the frames that `look` has seen.
    indices: Box<[u32; limits::XDP_BATCH]>,
    /// The last turn left frames behind.
    behind: bool,
}

impl Queue {
    /// Frames that are ready, at most [`limits::XDP_BATCH`].
    pub fn peek(&mut self) -> usize {
        self.socket.peek()
    }

    /// Fetches the headers of frame `i`.
    pub fn prefetch(&self, i: usize) {
        self.socket.prefetch(i);
    }

    /// The port index of frame `i`, whose headers are there by now.
    pub fn look(&mut self, i: usize) -> u32 {
        let port = frame::destination_port(self.socket.bytes(i));
        let index = port.map_or(self.ports as u32, |port| steered::index(port, self.first, self.ports));
        self.indices[i] = index;
        index
    }

    /// What `look` found.
    pub fn index(&self, i: usize) -> u32 {
        self.indices[i]
    }

    /// Frame `i`. `None`: it is none that the program would have handed over.
    pub fn incoming(&self, i: usize, now: Now) -> Option<Incoming<'_>> {
        let received = self.socket.frame(i, now.mono);
        let udp = frame::udp(received.bytes)?;
        let datagram = Datagram {
            from: udp.from,
            to: Some(udp.to.ip()),
            port: Some(udp.to.port()),
            at: received.at_mono.map(|at| wall(at, now)),
            bytes: udp.payload,
            truncated: false,
            frame: received.bytes.get(..udp.len),
        };
        Some(Incoming { index: self.indices[i], port: udp.to.port(), datagram })
    }

    pub fn release(&mut self) {
        self.socket.release();
    }

    /// Notes whether this turn's share was too small for what there was.
    pub fn turned(&mut self, behind: bool) {
        self.behind = behind;
    }
}

/// A monotonic time of the past on the wall clock as it goes now.
fn wall(at: Mono, now: Now) -> Wall {
    Wall(now.wall.0.saturating_sub(now.mono.0.saturating_sub(at.0)))
}
