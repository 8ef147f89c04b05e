//! A constant-rate raw file: every packet at the place that its RTP timestamp gives on the recording's clock (design: raw files
//! of two legs line up, and a gap is silence).
//!
//! Offset 0 of every file is the arrival of the recording's first RTP packet. A source's first packet is placed by its arrival,
//! all others by their timestamps, until these run away from arrival by more than [`CLOCK_JUMP_MAX`]; then it is placed by
//! arrival again. So a timestamp never decides alone how much silence is written, and nothing that is on disk is moved.

use crate::clock::Wall;
use crate::counters::DropCause;
use crate::limits::{CLOCK_JUMP_MAX, RAW_SILENCE_MAX, SSRCS_PER_STREAM};
use crate::media::stage::{Exits, Load, Stage};
use crate::media::{Blocks, Data, Place, Shares, Write};
use crate::proto::raw::Clocked;
use crate::proto::rtp::Rtp;

/// Time since the recording's first RTP packet, by arrival, for all its streams. Steps of the wall clock are left out.
#[derive(Debug, Default)]
pub(super) struct Elapsed {
    newest: Option<Wall>,
    /// Nanoseconds from the first packet to the newest.
    nanos: u64,
}

impl Elapsed {
    /// The first packet came then, to this part of the recording or another. Later than the first call it says nothing.
    pub fn begin(&mut self, at: Wall) {
        self.newest.get_or_insert(at);
    }

    /// Nanoseconds from the first packet to one that arrived at `at`.
    pub fn at(&mut self, at: Wall) -> u64 {
        let newest = self.newest.unwrap_or(at);
        let behind = newest.0.saturating_sub(at.0);
        if behind > 0 && behind <= CLOCK_JUMP_MAX.as_nanos() as u64 {
            return self.nanos.saturating_sub(behind); // Two sockets, read one after the other.
        }
        let ahead = at.0.saturating_sub(newest.0);
        if ahead <= RAW_SILENCE_MAX.as_nanos() as u64 {
            self.nanos += ahead;
        }
        self.newest = Some(at);
        self.nanos
    }
}

/// One file and the clocks of its sources.
#[derive(Debug)]
pub(super) struct Timeline {
    layout: Clocked,
    /// What it is laid out for; the recording keeps everything else out.
    pub payload_type: u8,
    /// Others write to the file too, in other parts of the same recording.
    shared: bool,
    stage: Stage,
    /// Where the staged block begins in the file.
    base: u64,
    /// Where the file ends with all that has been handed over.
    end: u64,
    clocks: [Option<MediaClock>; SSRCS_PER_STREAM],
}

/// Where the newest packet of a source lies.
#[derive(Clone, Copy, Debug)]
struct MediaClock {
    ssrc: u32,
    timestamp: u32,
    /// Its place in the file; negative before the recording's start.
    ticks: i64,
}

impl Timeline {
    pub fn new(file: u8, payload_type: u8, layout: Clocked) -> Timeline {
        let clocks = [None; SSRCS_PER_STREAM];
        Timeline { layout, payload_type, shared: false, stage: Stage::new(file), base: 0, end: 0, clocks }
    }

    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// From now on the silence in front of a block is a write of its own, so that whoever has the file can leave it out.
    pub fn share(&mut self) {
        self.shared = true;
    }

    /// Takes one packet of source `source`, which arrived `elapsed` nanoseconds after the recording's first.
    pub fn place<B: Blocks>(
        &mut self,
        source: usize,
        rtp: &Rtp<'_>,
        elapsed: u64,
        load: Load,
        exits: &mut Exits<'_, B>,
    ) -> Result<(), DropCause> {
        let ticks = self.position(source, rtp, elapsed);
        let start = ticks * i64::from(self.layout.bytes_per_tick);
        let cut = start.min(0).unsigned_abs() as usize;
        match rtp.payload.get(cut..) {
            Some(payload) if !payload.is_empty() => self.put(start.max(0) as u64, payload, load, exits),
            _ => Err(DropCause::BeforeStart),
        }
    }

    pub fn flush(&mut self, writes: &mut Vec<Write>) {
        self.end = self.file_end();
        let packets = Shares::of(self.stage.file(), self.stage.packets());
        self.stage.send_off(Place::At(self.base), packets, writes);
    }

    /// The packet's place in the file, in ticks.
    fn position(&mut self, source: usize, rtp: &Rtp<'_>, elapsed: u64) -> i64 {
        let arrival = self.ticks(elapsed);
        let jump = self.ticks(CLOCK_JUMP_MAX.as_nanos() as u64);
        if let Some(clock) = self.clocks[source].filter(|clock| clock.ssrc == rtp.ssrc) {
            let step = i64::from(rtp.timestamp.wrapping_sub(clock.timestamp) as i32);
            let ticks = clock.ticks + step;
            if (-jump..=0).contains(&step) {
                return ticks; // Late, or once more: no place beyond the one that has been checked.
            }
            if (ticks - arrival).abs() <= jump {
                self.set_clock(source, rtp, ticks);
                return ticks;
            }
        }
        // A new media clock goes on where its arrival says, but over nothing that has been written.
        let ticks = arrival.max(self.end_ticks());
        self.set_clock(source, rtp, ticks);
        ticks
    }

    fn set_clock(&mut self, source: usize, rtp: &Rtp<'_>, ticks: i64) {
        self.clocks[source] = Some(MediaClock { ssrc: rtp.ssrc, timestamp: rtp.timestamp, ticks });
    }

    fn ticks(&self, nanos: u64) -> i64 {
        let (seconds, nanos) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
        let rate = u64::from(self.layout.clock_rate);
        (seconds * rate + nanos * rate / 1_000_000_000) as i64
    }

    fn end_ticks(&self) -> i64 {
        self.file_end().div_ceil(u64::from(self.layout.bytes_per_tick)) as i64
    }

    fn file_end(&self) -> u64 {
        self.end.max(self.base + self.stage.len() as u64)
    }

    fn put<B: Blocks>(
        &mut self,
        start: u64,
        payload: &[u8],
        load: Load,
        exits: &mut Exits<'_, B>,
    ) -> Result<(), DropCause> {
        let finish = start + payload.len() as u64;
        if self.stage.len() > 0 {
            if start < self.base {
                return self.put_before(start, payload, load, exits);
            }
            if finish > self.base + self.stage.capacity() as u64 {
                self.flush(exits.writes);
            }
        } else if finish <= self.end {
            return self.put_alone(start, payload, load, exits);
        }
        if self.stage.len() == 0 {
            self.begin(start, payload.len(), exits)?;
        }
        self.copy(start, payload, load);
        Ok(())
    }

    /// A late packet that begins before the staged block: what belongs in the block goes there, the rest is its own write.
    fn put_before<B: Blocks>(
        &mut self,
        start: u64,
        payload: &[u8],
        load: Load,
        exits: &mut Exits<'_, B>,
    ) -> Result<(), DropCause> {
        let head = payload.len().min((self.base - start) as usize);
        let (before, within) = payload.split_at(head);
        self.put_alone(start, before, load, exits)?;
        if !within.is_empty() {
            self.copy(self.base, within, Load { stream: None, bytes: 0, ..load });
        }
        Ok(())
    }

    /// A write that patches what has been handed over before.
    fn put_alone<B: Blocks>(
        &mut self,
        start: u64,
        payload: &[u8],
        load: Load,
        exits: &mut Exits<'_, B>,
    ) -> Result<(), DropCause> {
        let block = exits.blocks.take().ok_or(DropCause::NoBlock)?;
        let packets = load.stream.map_or(Shares::default(), |stream| Shares::of(stream, 1));
        let len = payload.len().min(block.len());
        block[..len].copy_from_slice(&payload[..len]);
        exits.writes.push(Write {
            file: self.stage.file(),
            place: Place::At(start),
            data: Data::Block { block, len },
            packets,
            bytes: load.bytes,
        });
        Ok(())
    }

    /// A new block for a packet at `start`. Silence up to there goes into the block, or is a write of its own where it is long.
    fn begin<B: Blocks>(
        &mut self,
        start: u64,
        payload: usize,
        exits: &mut Exits<'_, B>,
    ) -> Result<(), DropCause> {
        let capacity = self.stage.open(exits.blocks)?.len() as u64;
        let gap = start.saturating_sub(self.end);
        self.base = start.min(self.end);
        if gap > 0 && (self.shared || gap + payload as u64 > capacity) {
            let data = Data::Fill { byte: self.layout.silence, len: gap };
            let (file, place) = (self.stage.file(), Place::At(self.end));
            exits.writes.push(Write { file, place, data, packets: Shares::default(), bytes: 0 });
            self.base = start;
        }
        Ok(())
    }

    /// Into the staged block, which begins at or before `start`; silence up to there.
    fn copy(&mut self, start: u64, payload: &[u8], load: Load) {
        let (offset, filled) = ((start - self.base) as usize, self.stage.len());
        let silence = self.layout.silence;
        let Some(block) = self.stage.block() else { return };
        if offset > filled {
            block[filled..offset].fill(silence);
        }
        let room = &mut block[offset..];
        let len = payload.len().min(room.len());
        room[..len].copy_from_slice(&payload[..len]);
        self.stage.commit(offset + len, load);
    }
}
