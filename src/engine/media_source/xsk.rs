//! One AF_XDP socket on one receive queue: frames as they came from the wire, read in place.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::super::interface::Interface;
use crate::clock::Mono;

/// A frame in the socket's memory.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// From the destination address to the end of what the driver received.
    pub bytes: &'a [u8],
    /// When the program on the interface saw it. `None` where the driver has no room for that in front of a frame.
    pub at_mono: Option<Mono>,
}

/// A bound socket. What is sent to its queue comes to it once its descriptor is in the program's map.
pub struct XskSocket {
    fd: OwnedFd,
    queue: u32,
    zero_copy: bool,
}

impl XskSocket {
    /// Zero-copy where the driver has it, else the kernel copies each frame.
    pub fn bind(interface: &Interface, queue: u32) -> Result<XskSocket, String> {
        Err(format!("no AF_XDP socket on {} queue {queue}", interface.name))
    }

    /// Looks how many frames are ready, at most [`crate::limits::XDP_BATCH`]: `0..n` of [`XskSocket::frame`], in the order in which
    /// they came, until [`XskSocket::release`].
    pub fn peek(&mut self) -> usize {
        0
    }

    /// Frame `i` of those ready. Its receive time can be read once; `now` tells it from what the memory held before.
    pub fn frame(&self, _i: usize, _now: Mono) -> Received<'_> {
        Received { bytes: &[], at_mono: None }
    }

    /// Fetches the beginning of frame `i` of those ready.
    pub fn prefetch(&self, _i: usize) {}

    /// Gives all frames that the last peek found back to the kernel.
    pub fn release(&mut self) {}

    /// Frames that the kernel has dropped on this socket since this was last asked.
    pub fn new_drops(&mut self) -> u64 {
        0
    }

    /// Whether there are frames that no peek has found.
    pub fn waiting(&self) -> bool {
        false
    }

    pub fn queue(&self) -> u32 {
        self.queue
    }

    pub fn zero_copy(&self) -> bool {
        self.zero_copy
    }
}

impl AsFd for XskSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
