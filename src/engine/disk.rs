//! Media files of one reactor: open descriptors in the ring's table, one write in flight each, the rest queued behind it.
//!
//! A block that goes into a [`Write`] belongs to this module until its last completion; then it goes back to the pool. One
//! write at a time per file keeps a failed write from leaving a hole: the next takes its place. A file is closed only when
//! nothing is in flight or queued.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::types::Fixed;
use io_uring::{opcode, squeue};

use super::blocks::Pool;
use super::published::Recorded;
use super::ring::{Completion, Kind, Ring, Token};
use crate::clock::Mono;
use crate::counters::{DropCause, ReactorCounters};
use crate::limits;
use crate::media::{Blocks, Data, Place, Shares, Write};

/// A media file: its place in the ring's table of registered files, counted from `Files::base`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileKey {
    slot: u32,
    generation: u32,
}

/// A write that is not on disk and will not be.
#[derive(Debug)]
pub struct Lost {
    /// Slot of the recording in the session table.
    pub recording: u32,
    pub file: u8,
    pub packets: Shares,
    pub cause: DropCause,
    /// errno of a failed write.
    pub errno: i32,
}

/// A write, and the reactor whose block it has and that counts its packets.
#[derive(Debug)]
pub struct Owned {
    pub owner: u8,
    pub write: Write,
}

/// What became of a write.
#[derive(Debug)]
pub struct Settled {
    pub owned: Owned,
    /// Recorded, or why not.
    pub outcome: Result<(), DropCause>,
}

pub struct Files {
    /// This reactor.
    own: u8,
    /// The first place in the ring's table that is ours; the media sockets are below.
    base: u32,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Bytes of one value, for silence over gaps: a block of each value that was ever needed.
    fills: Vec<(u8, &'static [u8])>,
    latency: Recorded,
    counters: Arc<ReactorCounters>,
    /// Of other reactors' blocks.
    settled: Vec<Settled>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    recording: u32,
    file: u8,
    /// Bytes written whole, and so where the next appended block goes.
    length: u64,
    /// Where the furthest write at a place of its own ends.
    end: u64,
    in_flight: Option<InFlight>,
    queue: VecDeque<Owned>,
}

struct InFlight {
    owned: Owned,
    offset: u64,
    done: u64,
    since: Mono,
}

/// Whether a file can be written past the page cache (O_DIRECT) at multiples of our alignment: the page cache would be filled
/// with what nobody reads soon, at twice the cost, and would stall when it is full.
pub fn takes_direct_writes(file: &File) -> bool {
    // SAFETY: a statx of zeroes is valid, the path is an empty string that ends in a zero, and the kernel fills the local.
    let (result, found) = unsafe {
        let mut found: libc::statx = std::mem::zeroed();
        let (fd, flags) = (file.as_raw_fd(), libc::AT_EMPTY_PATH);
        let result = libc::statx(fd, c"".as_ptr(), flags, libc::STATX_DIOALIGN, &mut found);
        (result, found)
    };
    let fits = |alignment: u32| alignment > 0 && limits::DISK_ALIGNMENT.is_multiple_of(alignment as usize);
    let told = result == 0 && found.stx_mask & libc::STATX_DIOALIGN != 0;
    told && fits(found.stx_dio_offset_align) && fits(found.stx_dio_mem_align)
}

/// From now on what is written to the file goes past the page cache. `Err`: the file system does not do that.
pub fn write_directly(file: &File) -> io::Result<()> {
    let fd = file.as_raw_fd();
    // SAFETY: reading and setting the flags of a descriptor that `file` keeps open touches no memory.
    let result = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        libc::fcntl(fd, libc::F_SETFL, flags | libc::O_DIRECT)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Files {
    /// `own`: this reactor.
    pub fn new(own: u8, base: u32, slots: usize, latency: Recorded, counters: Arc<ReactorCounters>) -> Files {
        Files {
            own,
            base,
            slots: (0..slots).map(|_| Slot::default()).collect(),
            free: (0..slots as u32).rev().collect(),
            fills: Vec::new(),
            latency,
            counters,
            settled: Vec::new(),
        }
    }

    /// Takes an open file into the table, which then keeps it open; `length` bytes are in it. `Err`: the table is full or
    /// the kernel refused.
    pub fn open(
        &mut self,
        ring: &Ring,
        fd: OwnedFd,
        recording: u32,
        file: u8,
        length: u64,
    ) -> io::Result<FileKey> {
        let slot = *self.free.last().ok_or_else(|| io::Error::from_raw_os_error(libc::ENFILE))?;
        ring.submitter().register_files_update(self.base + slot, &[fd.as_raw_fd()])?;
        self.free.pop();
        let place = &mut self.slots[slot as usize];
        (place.recording, place.file, place.length, place.end) = (recording, file, length, length);
        place.queue.reserve(limits::WRITES_QUEUED_PER_FILE + 1);
        Ok(FileKey { slot, generation: place.generation })
    }

    /// Lets go of a file on which nothing is in flight or queued. Returns the bytes written whole.
    pub fn close(&mut self, ring: &Ring, key: FileKey) -> io::Result<u64> {
        debug_assert!(self.idle(key));
        let place = &mut self.slots[key.slot as usize];
        place.generation = place.generation.wrapping_add(1);
        self.free.push(key.slot);
        ring.submitter().register_files_update(self.base + key.slot, &[-1])?;
        Ok(place.length)
    }

    pub fn idle(&self, key: FileKey) -> bool {
        let place = &self.slots[key.slot as usize];
        place.in_flight.is_none() && place.queue.is_empty()
    }

    /// Starts the write, or queues it behind the one in flight. `Some`: the queue is full, the block
    /// is on its way back.
    /// The last blocks of a recording (`last`) always find a place.
    pub fn write(
        &mut self,
        ring: &mut Ring,
        pool: &mut Pool,
        key: FileKey,
        mut owned: Owned,
        now: Mono,
        last: bool,
    ) -> io::Result<Option<Lost>> {
        let place = &mut self.slots[key.slot as usize];
        if !place.make_way(&mut owned.write) {
            return Ok(None);
        }
        if place.in_flight.is_none() {
            self.start(ring, key.slot, owned, now)?;
        } else if place.queue.len() < limits::WRITES_QUEUED_PER_FILE || last {
            place.queue.push_back(owned);
        } else {
            return Ok(Some(self.lose(pool, key.slot, owned, DropCause::QueueFull, 0)));
        }
        Ok(None)
    }

    /// A completion of a write. `Some`: what was lost with it.
    pub fn complete(
        &mut self,
        ring: &mut Ring,
        pool: &mut Pool,
        completion: Completion,
        now: Mono,
    ) -> io::Result<Option<Lost>> {
        let Token { slot, generation, .. } = completion.token;
        let place = &mut self.slots[slot as usize];
        let Some(mut flight) = place.in_flight.take_if(|_| place.generation == generation) else {
            self.counters.stale_completions.add(1);
            return Ok(None);
        };
        let retry = matches!(-completion.result, libc::EAGAIN | libc::EINTR);
        if completion.result <= 0 && !retry {
            // A write of no bytes cannot go on either: the kernel gives no errno for it.
            let errno = if completion.result == 0 { libc::EIO } else { -completion.result };
            let lost = self.lose(pool, slot, flight.owned, DropCause::WriteFailed, errno);
            self.counters.disk_errors.add(1);
            self.next(ring, slot, now)?;
            return Ok(Some(lost));
        }
        flight.done += u64::try_from(completion.result).unwrap_or(0);
        if flight.done < length(&flight.owned.write.data) {
            place.in_flight = Some(flight);
            self.submit(ring, slot)?;
            return Ok(None);
        }
        place.length = place.length.max(flight.offset + flight.done);
        self.latency.record(now.since(flight.since).as_nanos() as u64);
        self.counters.disk_writes.add(1);
        self.counters.disk_bytes.add(flight.done);
        self.settle(pool, Settled { owned: flight.owned, outcome: Ok(()) });
        self.next(ring, slot, now)?;
        Ok(None)
    }

    pub fn publish(&mut self) {
        self.latency.publish();
    }

    fn lose(&mut self, pool: &mut Pool, slot: u32, owned: Owned, cause: DropCause, errno: i32) -> Lost {
        let Slot { recording, file, .. } = self.slots[slot as usize];
        let lost = Lost { recording, file, packets: owned.write.packets, cause, errno };
        self.settle(pool, Settled { owned, outcome: Err(cause) });
        lost
    }

    /// Counts what is on disk or will not be, and takes the block back; what another reactor has received is that one's to count.
    pub fn settle(&mut self, pool: &mut Pool, settled: Settled) {
        if settled.owned.owner != self.own {
            return self.settled.push(settled);
        }
        let Settled { owned: Owned { write, .. }, outcome } = settled;
        let packets = write.packets.total();
        self.counters.staged_packets.sub(packets);
        match outcome {
            Ok(()) => {
                self.counters.recorded_packets.add(packets);
                self.counters.recorded_bytes.add(write.bytes);
            }
            Err(cause) => self.counters.dropped[cause as usize].add(packets),
        }
        if let Data::Block { block, .. } = write.data {
            pool.give(block);
        }
    }

    /// What there is for other reactors.
    pub fn settled_elsewhere(&mut self) -> impl Iterator<Item = Settled> {
        self.settled.drain(..)
    }

    fn next(&mut self, ring: &mut Ring, slot: u32, now: Mono) -> io::Result<()> {
        match self.slots[slot as usize].queue.pop_front() {
            Some(owned) => self.start(ring, slot, owned, now),
            None => Ok(()),
        }
    }

    fn start(&mut self, ring: &mut Ring, slot: u32, owned: Owned, now: Mono) -> io::Result<()> {
        let place = &mut self.slots[slot as usize];
        let offset = match owned.write.place {
            Place::Append => place.length,
            Place::At(offset) => offset,
        };
        place.in_flight = Some(InFlight { owned, offset, done: 0, since: now });
        self.submit(ring, slot)
    }

    /// Submits what is left of the write in flight. Forced to a worker thread of the kernel: a buffered write may block for
    /// as long as the disk likes, and this thread has packets to receive.
    fn submit(&mut self, ring: &mut Ring, slot: u32) -> io::Result<()> {
        let place = &self.slots[slot as usize];
        let (generation, Some(flight)) = (place.generation, &place.in_flight) else { return Ok(()) };
        let (done, at) = (flight.done as usize, flight.offset + flight.done);
        let (pointer, len) = match &flight.owned.write.data {
            Data::Block { block, len } => (block[done..*len].as_ptr(), len - done),
            Data::Fill { byte, len } => {
                let left = usize::try_from(len - flight.done).unwrap_or(usize::MAX);
                let fill = fill(&mut self.fills, *byte);
                (fill.as_ptr(), left.min(fill.len()))
            }
        };
        let entry = opcode::Write::new(Fixed(self.base + slot), pointer, len as u32)
            .offset(at)
            .build()
            .flags(squeue::Flags::ASYNC)
            .user_data(Token::new(Kind::Write, slot, generation).pack());
        // SAFETY: the block is owned by `in_flight` and never unmapped; nothing writes to it before the completion takes it
        // out. A fill is never written to at all.
        unsafe { ring.push(&entry) }
    }
}

impl Slot {
    /// Silence is written over nothing: there, another reactor's packets of the same stream may be. `false`: nothing is left.
    fn make_way(&mut self, write: &mut Write) -> bool {
        let Place::At(offset) = &mut write.place else { return true };
        if let Data::Fill { len, .. } = &mut write.data {
            let taken = self.end.saturating_sub(*offset).min(*len);
            (*offset, *len) = (*offset + taken, *len - taken);
        }
        let len = length(&write.data);
        self.end = self.end.max(*offset + len);
        len > 0
    }
}

fn length(data: &Data) -> u64 {
    match data {
        Data::Block { len, .. } => *len as u64,
        Data::Fill { len, .. } => *len,
    }
}

fn fill(fills: &mut Vec<(u8, &'static [u8])>, byte: u8) -> &'static [u8] {
    if let Some((_, bytes)) = fills.iter().find(|(value, _)| *value == byte) {
        return bytes;
    }
    let bytes: &'static [u8] = vec![byte; limits::BLOCK_SIZE].leak();
    fills.push((byte, bytes));
    bytes
}
