//! The data plane: datagrams in, records in write blocks out. Pure; it never sees a session, a socket or a file.
//!
//! The one copy of a packet happens here: from the receive buffer into the recording's block, as a whole record. A block
//! that is full or old leaves as a [`Write`]; the engine owns it until its completion and gives it back to the pool.

mod feedback;
pub mod recording;
mod stage;
pub mod stream;
mod timeline;

use std::net::SocketAddr;

use crate::clock::Wall;
use crate::limits::STREAMS_PER_RECORDING_MAX;

pub use crate::proto::rtp::Channel;
pub use feedback::Report;
pub use recording::{Recording, StreamSpec};

/// A write block: [`crate::limits::BLOCK_SIZE`] bytes, mapped at start, owned by exactly one of pool, recording, write.
pub type Block = &'static mut [u8];

/// Where blocks come from. `None`: all are in use.
pub trait Blocks {
    fn take(&mut self) -> Option<Block>;
    fn give(&mut self, block: Block);
}

/// One received datagram.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Kernel receive time.
    pub at: Wall,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub bytes: &'a [u8],
    /// The Ethernet frame that brought it, from the destination address to the end of the payload, where the source has seen it.
    pub frame: Option<&'a [u8]>,
}

/// One SIP message of the dialog, as it was on the wire.
#[derive(Clone, Copy, Debug)]
pub struct Signal<'a> {
    pub at: Wall,
    /// From `peer` to `local`; otherwise the other way.
    pub received: bool,
    pub tcp: bool,
    pub local: SocketAddr,
    pub peer: SocketAddr,
    pub bytes: &'a [u8],
}

/// Cache lines that the next datagram of a stream will touch. With thousands of streams they are cold again by then, so the
/// engine prefetches them. An address and a number of lines; nothing reads through it.
pub type Touched = (*const u8, usize);

/// One write that the engine has to do. Writes of one file are done in the order in which they are returned.
#[derive(Debug)]
pub struct Write {
    /// Index of the file within the recording: pcap 0; raw the stream's index.
    pub file: u8,
    pub place: Place,
    pub data: Data,
    /// What is lost if the write fails, and recorded when it completes: media datagrams and their bytes.
    pub packets: Shares,
    pub bytes: u64,
}

/// Media datagrams by stream: the streams of a pcap share its blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shares([u32; STREAMS_PER_RECORDING_MAX]);

impl Shares {
    /// All of one stream.
    pub fn of(stream: u8, packets: u32) -> Shares {
        let mut shares = Shares::default();
        shares.add(stream, packets);
        shares
    }

    pub fn add(&mut self, stream: u8, packets: u32) {
        self.0[usize::from(stream)] += packets;
    }

    pub fn total(&self) -> u64 {
        self.0.iter().map(|&packets| u64::from(packets)).sum()
    }

    /// By stream index, zeroes too.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().map(|&packets| u64::from(packets))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// At the end of what has been written so far. A failed write leaves no hole: the next takes its place.
    Append,
    /// At this byte.
    At(u64),
}

#[derive(Debug)]
pub enum Data {
    /// The first `len` bytes of the block.
    Block { block: Block, len: usize },
    /// `len` times this byte: the codec's silence over a gap.
    Fill { byte: u8, len: u64 },
}
