//! The write blocks of one reactor, mapped at start. A block is in the pool, in a recording, or in a write in flight.

use crate::limits::BLOCK_SIZE;
use crate::media::{Block, Blocks};

pub struct Pool {
    free: Vec<Block>,
    total: usize,
}

impl Pool {
    /// Maps `total` blocks. The pages are touched, and so become memory, when a block is first used.
    pub fn new(total: usize) -> Pool {
        let memory: &'static mut [u8] = Box::leak(vec![0u8; total * BLOCK_SIZE].into_boxed_slice());
        Pool { free: memory.chunks_exact_mut(BLOCK_SIZE).collect(), total }
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
        debug_assert!(block.len() == BLOCK_SIZE && self.free.len() < self.total);
        self.free.push(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_conserved() {
        let mut pool = Pool::new(2);
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        assert!(pool.take().is_none() && pool.used() == 2);
        pool.give(a);
        pool.give(b);
        assert_eq!((pool.used(), pool.total()), (0, 2));
        assert_eq!(pool.take().map(|b| b.len()), Some(BLOCK_SIZE));
    }
}
