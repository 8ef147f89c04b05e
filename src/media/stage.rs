//! The block of one file that is being filled.

use crate::clock::Wall;
use crate::counters::DropCause;
use crate::limits::{CACHE_LINE, RECORD_USUAL};
use crate::media::{Block, Blocks, Data, Place, Shares, Touched, Write};

/// Where blocks come from and writes go to, for the time of one call.
pub(super) struct Exits<'a, B> {
    pub blocks: &'a mut B,
    pub writes: &'a mut Vec<Write>,
}

/// What one record, or one packet's place, adds to a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub at: Wall,
    /// The stream of a media datagram (none for a SIP message), and its bytes.
    pub stream: Option<u8>,
    pub bytes: u64,
}

/// At most one block, and what it holds. A block leaves only with something in it.
#[derive(Debug)]
pub(super) struct Stage {
    file: u8,
    block: Option<Block>,
    len: usize,
    packets: Shares,
    bytes: u64,
    since: Option<Wall>,
}

impl Stage {
    pub fn new(file: u8) -> Stage {
        Stage { file, block: None, len: 0, packets: Shares::default(), bytes: 0, since: None }
    }

    pub fn file(&self) -> u8 {
        self.file
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn packets(&self) -> u64 {
        self.packets.total()
    }

    /// When the oldest of what is staged came.
    pub fn since(&self) -> Option<Wall> {
        self.since
    }

    /// Where the next record goes.
    pub fn touched(&self) -> Touched {
        let room = self.block.as_ref().and_then(|block| block.get(self.len..)).unwrap_or_default();
        (room.as_ptr(), room.len().min(RECORD_USUAL).div_ceil(CACHE_LINE))
    }

    /// The block being filled, all of it.
    pub fn block(&mut self) -> Option<&mut [u8]> {
        self.block.as_deref_mut()
    }

    pub fn capacity(&self) -> usize {
        self.block.as_ref().map_or(0, |block| block.len())
    }

    /// Makes sure of a block.
    pub fn open(&mut self, blocks: &mut impl Blocks) -> Result<&mut [u8], DropCause> {
        if self.block.is_none() {
            self.block = blocks.take();
        }
        self.block.as_deref_mut().ok_or(DropCause::NoBlock)
    }

    /// Room for a record of `wanted` bytes: the rest of the block, or a new one when that is too short. Less only where a whole
    /// block is less.
    pub fn room<B: Blocks>(
        &mut self,
        wanted: usize,
        exits: &mut Exits<'_, B>,
    ) -> Result<&mut [u8], DropCause> {
        if self.len + wanted > self.capacity() {
            self.send_off(Place::Append, exits.writes);
        }
        let len = self.len;
        Ok(&mut self.open(exits.blocks)?[len..])
    }

    /// The block is filled up to `len`, and holds `load` besides what it held.
    pub fn commit(&mut self, len: usize, load: Load) {
        self.len = self.len.max(len);
        if let Some(stream) = load.stream {
            self.packets.count(stream);
        }
        self.bytes += load.bytes;
        self.since = Some(self.since.map_or(load.at, |since| since.min(load.at)));
    }

    /// Hands the block over, if there is anything in it.
    pub fn send_off(&mut self, place: Place, writes: &mut Vec<Write>) {
        if self.len == 0 {
            return;
        }
        if let Some(block) = self.block.take() {
            let data = Data::Block { block, len: self.len };
            writes.push(Write { file: self.file, place, data, packets: self.packets, bytes: self.bytes });
        }
        *self = Stage::new(self.file);
    }
}
