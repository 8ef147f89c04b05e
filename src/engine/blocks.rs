//! The write blocks of one reactor, mapped at start. A block is in the pool, in a recording, or in a write in flight.

use super::mapping::Mapping;
use crate::limits;
use crate::media::{Block, Blocks};

pub struct Pool {
    free: Vec<Block>,
    total: usize,
}

/// Blocks of a reactor that can have so many files open: one for each, and some to spare. `lent`: streams of other reactors'
/// recordings may come to it.
pub fn wanted(files: usize, size: usize, lent: bool) -> usize {
    let guests = if lent { files * limits::BLOCKS_PER_FILE_LENT } else { 0 };
    files + (limits::SPARE_BYTES + files * limits::SPARE_BYTES_PER_FILE) / size + guests
}

impl Pool {
    /// Maps `total` blocks of `size` bytes, each at a multiple of [`crate::limits::DISK_ALIGNMENT`]. All of that is memory at
    /// once: a pool that ran into the machine's limits later would lose packets.
    pub fn new(total: usize, size: usize) -> Result<Pool, String> {
        let memory = Mapping::huge((total * size).max(1)).map_err(|e| {
            let mebibytes = (total * size) >> 20;
            format!(
                "no memory for {total} write blocks, {mebibytes} MiB ({e}): lower --max-sessions or --block-size, or free memory"
            )
        })?;
        let free: Vec<Block> = memory.leak().chunks_exact_mut(size).take(total).collect();
        Ok(Pool { free, total })
    }

    pub fn used(&self) -> usize {
        self.total - self.free.len()
    }

    pub fn total(&self) -> usize {
        self.total
    }
}

impl Blocks for Pool {
    /// The block that was given back last: its lines are the warmest.
    fn take(&mut self) -> Option<Block> {
        self.free.pop()
    }

    fn give(&mut self, block: Block) {
        debug_assert!(self.free.len() < self.total);
        self.free.push(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_conserved() {
        let mut pool = Pool::new(2, 8_192).unwrap();
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        assert!(pool.take().is_none() && pool.used() == 2);
        pool.give(a);
        pool.give(b);
        assert_eq!((pool.used(), pool.total()), (0, 2));
        assert_eq!(pool.take().map(|b| (b.len(), b.as_ptr() as usize % 4_096)), Some((8_192, 0)));
    }
}
