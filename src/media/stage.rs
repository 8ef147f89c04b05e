//! The block of one file that is being filled.

use crate::clock::Wall;
use crate::counters::DropCause;
use crate::limits::{BLOCK_SIZE_MAX, CACHE_LINE, DISK_ALIGNMENT, RECORD_USUAL};
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
#[repr(C)]
pub(super) struct Stage {
    block: Option<Block>,
    /// When the oldest of what is staged came, if anything is.
    since: Wall,
    /// Of media datagrams.
    bytes: u64,
    len: u32,
    /// Media datagrams.
    packets: u32,
    /// Where the last of what is staged begins.
    last: u32,
    file: u8,
    /// 256ths of the block that are left empty.
    spared: u8,
}

// The length of what is staged is counted in 32 bits.
const _: () = assert!(BLOCK_SIZE_MAX < u32::MAX as usize);

impl Stage {
    pub fn new(file: u8) -> Stage {
        Stage { block: None, since: Wall(0), bytes: 0, len: 0, packets: 0, last: 0, file, spared: 0 }
    }

    /// Leaves a share of the next block empty, in 256ths: files that begin together are then not written together for ever.
    pub fn spare(&mut self, share: u8) {
        self.spared = share;
    }

    pub fn file(&self) -> u8 {
        self.file
    }

    pub fn len(&self) -> usize {
        self.len as usize
    }

    pub fn packets(&self) -> u32 {
        self.packets
    }

    /// When the oldest of what is staged came.
    pub fn since(&self) -> Option<Wall> {
        (self.len > 0).then_some(self.since)
    }

    /// Where the next record goes.
    pub fn touched(&self) -> Touched {
        let room = self.block.as_ref().and_then(|block| block.get(self.len()..)).unwrap_or_default();
        let bytes = room.len().min(RECORD_USUAL);
        // A record begins anywhere in a line.
        let before = if bytes > 0 { room.as_ptr().addr() % CACHE_LINE } else { 0 };
        (room.as_ptr(), (before + bytes).div_ceil(CACHE_LINE))
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

    /// Whether a record of this length has to wait for another block. Never so where nothing is staged.
    #[inline]
    pub fn is_full_for(&self, wanted: usize) -> bool {
        let capacity = self.capacity();
        self.len() + wanted > capacity - ((capacity * usize::from(self.spared)) >> 8) && self.len > 0
    }

    /// The rest of the block, or all of a new one.
    #[inline]
    pub fn room(&mut self, blocks: &mut impl Blocks) -> Result<&mut [u8], DropCause> {
        let len = self.len();
        Ok(&mut self.open(blocks)?[len..])
    }

    /// The block is filled up to `len`, at least one byte, and holds `load` besides what it held.
    #[inline]
    pub fn commit(&mut self, len: usize, load: Load) {
        self.since = if self.len == 0 { load.at } else { self.since.min(load.at) };
        self.last = self.len;
        self.len = self.len.max(len as u32);
        self.packets += u32::from(load.stream.is_some());
        self.bytes += load.bytes;
    }

    /// Fills the block with zeroes up to the next multiple of the disk's alignment. The last of what is staged, and by how many
    /// bytes it is longer now; nothing where nothing is staged.
    pub fn align(&mut self) -> Option<(&mut [u8], usize)> {
        let (last, len) = (self.last as usize, self.len());
        let aligned = len.next_multiple_of(DISK_ALIGNMENT);
        let block = self.block.as_deref_mut().filter(|block| len > 0 && aligned <= block.len())?;
        block[len..aligned].fill(0);
        self.len = aligned as u32;
        Some((&mut block[last..aligned], aligned - len))
    }

    /// Hands the block over, if there is anything in it. `packets` are those staged, by stream.
    pub fn send_off(&mut self, place: Place, packets: Shares, writes: &mut Vec<Write>) {
        if self.len == 0 {
            return;
        }
        debug_assert_eq!(packets.total(), u64::from(self.packets));
        let stage = std::mem::replace(self, Stage::new(self.file));
        if let Some(block) = stage.block {
            let data = Data::Block { block, len: stage.len as usize };
            writes.push(Write { file: stage.file, place, data, packets, bytes: stage.bytes });
        }
    }
}
