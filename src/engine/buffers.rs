//! Provided buffers: the kernel picks one for each datagram, we read it in place and give it back in the same turn.

use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use super::mapping::Mapping;
use super::ring::Ring;

/// Buffers lie this much further apart than their size, so that their first lines do not share a cache set.
const STAGGER: usize = 64;

/// A registered ring of `count` buffers of `size` bytes.
///
/// Each buffer is owned by the kernel or, between its completion and [`Buffers::give`], by us.
pub struct Buffers {
    ring: *mut BufRingEntry,
    data: *mut u8,
    count: u16,
    size: usize,
    tail: u16,
}

impl Buffers {
    /// Maps the memory, registers the ring as buffer group `group` and gives all buffers to the kernel.
    pub fn new(ring: &Ring, group: u16, count: u16, size: usize) -> Result<Buffers, String> {
        assert!(count.is_power_of_two(), "the kernel takes powers of two");
        let entries = map(usize::from(count) * size_of::<BufRingEntry>())?.cast::<BufRingEntry>();
        let data = map(usize::from(count) * (size + STAGGER))?;
        // SAFETY: `entries` is page-aligned memory for `count` entries that is never unmapped while the ring lives.
        unsafe { ring.submitter().register_buf_ring_with_flags(entries as u64, count, group, 0) }
            .map_err(|e| format!("registering receive buffers failed ({e}): raise RLIMIT_MEMLOCK"))?;
        let mut buffers = Buffers { ring: entries, data, count, size, tail: 0 };
        for id in 0..count {
            buffers.give(id);
        }
        buffers.publish();
        Ok(buffers)
    }

    /// The first `len` bytes of buffer `id`, which a completion has handed to us.
    pub fn bytes(&self, id: u16, len: usize) -> &[u8] {
        assert!(id < self.count && len <= self.size);
        // SAFETY: within the mapping by the assertion. The kernel does not write to a buffer between its completion and
        // the publication of `give`, which needs `&mut self` and so ends this borrow.
        unsafe { std::slice::from_raw_parts(self.data.add(usize::from(id) * (self.size + STAGGER)), len) }
    }

    /// Gives the buffer back; the kernel sees it after [`Buffers::publish`].
    pub fn give(&mut self, id: u16) {
        assert!(id < self.count);
        // SAFETY: the index is masked to the ring's size. Only the three fields are set: the tail of the ring lives in
        // the reserved field of entry 0, so an entry is never overwritten as a whole.
        unsafe {
            let entry = &mut *self.ring.add(usize::from(self.tail & (self.count - 1)));
            entry.set_addr(self.data.add(usize::from(id) * (self.size + STAGGER)) as u64);
            entry.set_len(self.size as u32);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    /// Makes all buffers given so far visible to the kernel.
    pub fn publish(&self) {
        // SAFETY: the tail is a u16 within the first entry, aligned, written by us alone and read by the kernel.
        unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.ring).cast_mut()) }
            .store(self.tail, Ordering::Release);
    }
}

/// Zeroed pages that stay mapped as long as the process lives.
fn map(bytes: usize) -> Result<*mut u8, String> {
    let memory =
        Mapping::huge(bytes).map_err(|e| format!("no memory for {bytes} bytes of receive buffers: {e}"))?;
    Ok(memory.leak().as_mut_ptr())
}
