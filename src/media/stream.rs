//! What came of one stream: sources, sequence, loss, jitter (RFC 3550 appendix A). Nothing here knows what is on disk.

use crate::clock::Wall;
use crate::limits::{CLOCK_JUMP_MAX, SEQ_DROPOUT_MAX, SEQ_MISORDER_MAX, SSRCS_PER_STREAM};
use crate::proto::manifest::Ssrc;
use crate::proto::raw;
use crate::proto::rtp::Rtp;
use crate::proto::sdp::Codec;

/// The source of a stream's last packet, as far as its next packet in order changes it: of all that is known of a stream, what
/// the usual packet touches. [`Reception`] catches up when something else comes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Track {
    last: Wall,
    jitter: Jitter,
    ssrc: u32,
    /// Packets in order that the reception has not been told of.
    ahead: u32,
    /// Sequence number of the next packet in order.
    expected: u16,
    /// Of the next packet in order; [`Track::NONE`] where no packet is that.
    payload_type: u8,
    /// Index of the source.
    source: u8,
}

impl Track {
    /// No payload type has eight bits.
    const NONE: u8 = 0xff;

    /// Before the first packet.
    pub const NEW: Track = Track {
        last: Wall(0),
        jitter: Jitter { clock_rate: 0, transit: 0, scaled: 0 },
        ssrc: 0,
        ahead: 0,
        expected: 0,
        payload_type: Track::NONE,
        source: 0,
    };

    /// Counts a packet that is the next in order of this source. `false`: it is not, and it is [`Reception::receive`]'s to count.
    #[inline]
    pub fn follow(&mut self, at: Wall, rtp: &Rtp<'_>) -> bool {
        let usual = rtp.sequence == self.expected
            && rtp.ssrc == self.ssrc
            && rtp.payload_type == self.payload_type
            && at >= self.last
            && self.ahead < u32::MAX;
        if usual {
            self.ahead += 1;
            self.expected = self.expected.wrapping_add(1);
            self.last = at;
            if self.jitter.clock_rate > 0 {
                self.jitter.receive(at, rtp.timestamp, self.jitter.clock_rate);
            }
        }
        usual
    }

    /// When the last packet came; 0 before the first.
    pub fn last(&self) -> Wall {
        self.last
    }

    /// Index of the source of the last packet.
    pub fn source(&self) -> usize {
        usize::from(self.source)
    }
}

/// The sources of one stream. Of fixed size: no packet makes it grow.
#[derive(Debug)]
pub struct Reception {
    used: usize,
    /// Clock rates of the payload types that were answered; 0 where packets do not follow the media clock.
    rates: Vec<(u8, u32)>,
    sources: [Source; SSRCS_PER_STREAM],
}

/// Sums over the sources.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Sums {
    pub packets: u64,
    pub lost: u64,
    pub out_of_order: u64,
    pub duplicate: u64,
    /// The largest.
    pub jitter_ms: f64,
    pub first: Option<Wall>,
    pub last: Option<Wall>,
}

/// One source as a receiver report sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    pub ssrc: u32,
    /// Packets, each once.
    pub received: u64,
    pub lost: u64,
    /// Highest sequence number, extended by the cycles since the source began or restarted.
    pub highest: u32,
    /// In ticks of the media clock.
    pub jitter: u32,
}

impl Reception {
    pub fn new(codecs: &[Codec]) -> Reception {
        let rate = |codec: &Codec| if raw::is_event(codec) { 0 } else { codec.clock_rate };
        Reception {
            rates: codecs.iter().map(|codec| (codec.payload_type, rate(codec))).collect(),
            sources: [Source::default(); SSRCS_PER_STREAM],
            used: 0,
        }
    }

    /// Counts one packet that the track could not follow, and sets the track on its source. That source's index, below
    /// [`SSRCS_PER_STREAM`]; sources beyond that share the last.
    #[cold]
    pub fn receive(&mut self, track: &mut Track, at: Wall, rtp: &Rtp<'_>) -> usize {
        self.catch_up(track);
        let rate = self.clock_rate(rtp.payload_type);
        let index = self.source(rtp.ssrc);
        let source = &mut self.sources[index];
        if source.packets == 0 {
            *source = Source::new(at, rtp);
        }
        source.receive(at, rtp, rate);
        *track = source.track(index);
        index
    }

    /// What a reactor has seen of the stream, for the one that reports.
    pub fn part(&self, track: &Track) -> Vec<Source> {
        self.caught_up(track).collect()
    }

    /// Adds what another reactor has seen of the same stream.
    pub fn absorb(&mut self, track: &mut Track, part: &[Source]) {
        self.catch_up(track);
        for other in part {
            let index = self.source(other.ssrc);
            let source = &mut self.sources[index];
            if source.packets == 0 { *source = *other } else { source.absorb(other) }
        }
        *track = Track::NEW;
    }

    pub fn sums(&self, track: &Track) -> Sums {
        let mut sums = Sums::default();
        for source in self.caught_up(track) {
            sums.packets += source.packets;
            sums.lost += source.lost();
            sums.out_of_order += source.out_of_order;
            sums.duplicate += source.duplicate;
            sums.jitter_ms = sums.jitter_ms.max(source.jitter.millis());
            sums.first = Some(sums.first.map_or(source.first, |first| first.min(source.first)));
            sums.last = sums.last.max(Some(source.last));
        }
        sums
    }

    /// In order of appearance.
    pub fn ssrcs(&self, track: &Track) -> Vec<Ssrc> {
        self.caught_up(track).map(|source| source.report()).collect()
    }

    /// What a receiver report tells of each source, in order of appearance.
    pub fn figures(&self, track: &Track) -> impl Iterator<Item = Figures> {
        self.caught_up(track).map(|source| source.figures())
    }

    /// Index of a source that has sent RTP.
    pub fn index(&self, ssrc: u32) -> Option<usize> {
        self.sources[..self.used].iter().position(|source| source.ssrc == ssrc)
    }

    fn catch_up(&mut self, track: &mut Track) {
        self.sources[track.source()].catch_up(track);
        track.ahead = 0;
    }

    fn caught_up(&self, track: &Track) -> impl Iterator<Item = Source> {
        let mut sources = self.sources;
        sources[track.source()].catch_up(track);
        sources.into_iter().take(self.used)
    }

    fn clock_rate(&self, payload_type: u8) -> u32 {
        self.rates.iter().find(|(known, _)| *known == payload_type).map_or(0, |&(_, rate)| rate)
    }

    fn source(&mut self, ssrc: u32) -> usize {
        if let Some(known) = self.index(ssrc) {
            return known;
        }
        self.used = (self.used + 1).min(SSRCS_PER_STREAM);
        self.used - 1
    }
}

/// One SSRC. Sequence numbers are extended by their cycles (RFC 3550 A.1).
#[derive(Clone, Copy, Debug, Default)]
pub struct Source {
    ssrc: u32,
    payload_type: u8,
    packets: u64,
    out_of_order: u64,
    duplicate: u64,
    first: Wall,
    last: Wall,
    run: Run,
    /// Packets lost before the last restart of the source.
    lost_before: u64,
    /// After a jump: the sequence number that would confirm that the source has restarted.
    restart: Option<u16>,
    jitter: Jitter,
}

impl Source {
    fn new(at: Wall, rtp: &Rtp<'_>) -> Source {
        Source {
            ssrc: rtp.ssrc,
            payload_type: rtp.payload_type,
            first: at,
            run: Run::new(rtp.sequence),
            ..Source::default()
        }
    }

    /// When its first and its last packet came.
    pub fn span(&self) -> (Wall, Wall) {
        (self.first, self.last)
    }

    fn track(&self, index: usize) -> Track {
        // While a restart may be under way, the next packet in order is more than that.
        let payload_type = if self.restart.is_none() { self.payload_type } else { Track::NONE };
        Track {
            last: self.last,
            jitter: self.jitter,
            ssrc: self.ssrc,
            ahead: 0,
            expected: (self.run.highest as u16).wrapping_add(1),
            payload_type,
            source: index as u8,
        }
    }

    fn catch_up(&mut self, track: &Track) {
        if track.ahead > 0 {
            self.packets += u64::from(track.ahead);
            self.last = track.last;
            self.jitter = track.jitter;
            self.run.go_on(track.ahead);
        }
    }

    /// The same source as another reactor saw it; or one too many, of which only the packets are counted.
    fn absorb(&mut self, other: &Source) {
        if other.ssrc == self.ssrc {
            self.absorb_run(other);
            self.out_of_order += other.out_of_order;
            self.duplicate += other.duplicate;
            if other.last > self.last {
                self.payload_type = other.payload_type;
            }
            if other.jitter.millis() > self.jitter.millis() {
                self.jitter = other.jitter;
            }
        }
        self.packets += other.packets;
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
    }

    /// Cycles are counted by each reactor from its own first packet on: they are aligned where the two came closest in time.
    fn absorb_run(&mut self, other: &Source) {
        self.lost_before += other.lost_before;
        let (mine, theirs) = (self.ends(), other.ends());
        let pairs = mine.iter().flat_map(|mine| theirs.iter().map(move |theirs| (mine, theirs)));
        let closest = pairs.min_by_key(|(mine, theirs)| mine.0.0.abs_diff(theirs.0.0));
        let ahead = closest.map_or(0, |(mine, theirs)| theirs.1.cast_signed() - mine.1.cast_signed());
        let cycles = (ahead + (1 << 15)).div_euclid(1 << 16);
        let mut run = other.run;
        // Up only: below the lowest there may be no room.
        if cycles > 0 {
            self.run.shift(cycles.unsigned_abs())
        } else {
            run.shift(cycles.unsigned_abs())
        }
        if self.run.gap(&run) < u64::from(SEQ_DROPOUT_MAX) {
            self.run.absorb(&run);
            return;
        }
        // It restarted between the reactors.
        let earlier = if other.last > self.last { std::mem::replace(&mut self.run, run) } else { run };
        self.lost_before += earlier.lost();
    }

    /// When the first and the last packet came, and their extended sequence numbers.
    fn ends(&self) -> [(Wall, u64); 2] {
        [(self.first, self.run.lowest), (self.last, self.run.highest)]
    }

    fn receive(&mut self, at: Wall, rtp: &Rtp<'_>, clock_rate: u32) {
        self.packets += 1;
        self.first = self.first.min(at);
        self.last = self.last.max(at);
        if rtp.ssrc != self.ssrc {
            return; // One source too many: sequence numbers of several say nothing.
        }
        self.follow(rtp.sequence);
        if clock_rate > 0 {
            self.payload_type = rtp.payload_type;
            self.jitter.receive(at, rtp.timestamp, clock_rate);
        }
    }

    fn follow(&mut self, sequence: u16) {
        match self.run.receive(sequence) {
            Seen::Next => self.restart = None,
            Seen::Late => self.out_of_order += 1,
            Seen::Duplicate => self.duplicate += 1,
            Seen::Far if self.restart == Some(sequence) => self.begin_again(sequence),
            Seen::Far => self.restart = Some(sequence.wrapping_add(1)),
        }
    }

    /// Two packets in a row from far away: the source has restarted, and the first of them belongs to the new run.
    fn begin_again(&mut self, sequence: u16) {
        self.lost_before += self.run.lost();
        self.run = Run::new(sequence.wrapping_sub(1));
        self.run.receive(sequence.wrapping_sub(1));
        self.run.receive(sequence);
        self.restart = None;
    }

    fn lost(&self) -> u64 {
        self.lost_before + self.run.lost()
    }

    fn figures(&self) -> Figures {
        Figures {
            ssrc: self.ssrc,
            received: self.packets - self.duplicate.min(self.packets),
            lost: self.lost(),
            highest: self.run.highest.wrapping_sub(1 << 16) as u32,
            jitter: self.jitter.scaled >> 4,
        }
    }

    fn report(&self) -> Ssrc {
        Ssrc {
            ssrc: format!("0x{:08x}", self.ssrc),
            payload_type: self.payload_type,
            packets: self.packets,
            lost: self.lost(),
            out_of_order: self.out_of_order,
            duplicate: self.duplicate,
            jitter_ms: self.jitter.millis(),
            first_packet: self.first,
            last_packet: self.last,
        }
    }
}

/// Sequence numbers without a restart between them.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    /// Lowest and highest so far, extended. They start one cycle up, so that packets late at the start have room below.
    lowest: u64,
    highest: u64,
    /// Which of the 128 up to the highest have come: bit 0 is the highest itself. It covers all that counts as late.
    window: u128,
    distinct: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    /// Newer than all before.
    Next,
    Late,
    Duplicate,
    /// Too far ahead for loss, too far behind for a late packet.
    Far,
}

impl Run {
    fn new(sequence: u16) -> Run {
        let first = (1 << 16) + u64::from(sequence);
        Run { lowest: first, highest: first, window: 0, distinct: 0 }
    }

    fn receive(&mut self, sequence: u16) -> Seen {
        let ahead = sequence.wrapping_sub(self.highest as u16);
        let behind = ahead.wrapping_neg();
        if self.distinct == 0 {
            self.window = 1;
        } else if ahead > 0 && ahead < SEQ_DROPOUT_MAX {
            self.highest += u64::from(ahead);
            self.window = self.window.checked_shl(u32::from(ahead)).unwrap_or(0) | 1;
        } else if behind <= SEQ_MISORDER_MAX {
            return self.receive_late(behind);
        } else {
            return Seen::Far;
        }
        self.distinct += 1;
        Seen::Next
    }

    fn receive_late(&mut self, behind: u16) -> Seen {
        let bit = 1 << behind;
        if self.window & bit != 0 {
            return Seen::Duplicate;
        }
        self.window |= bit;
        self.distinct += 1;
        self.lowest = self.lowest.min(self.highest - u64::from(behind));
        Seen::Late
    }

    /// `packets` more in order.
    fn go_on(&mut self, packets: u32) {
        self.highest += u64::from(packets);
        self.distinct += u64::from(packets);
        self.window = match 1u128.checked_shl(packets) {
            Some(next) => self.window << packets | (next - 1),
            None => u128::MAX,
        };
    }

    fn shift(&mut self, cycles: u64) {
        self.lowest += cycles << 16;
        self.highest += cycles << 16;
    }

    /// Sequence numbers between the two.
    fn gap(&self, other: &Run) -> u64 {
        self.lowest.max(other.lowest).saturating_sub(self.highest.min(other.highest))
    }

    /// Another part of the same run.
    fn absorb(&mut self, other: &Run) {
        let (newer, older) = if self.highest > other.highest { (*self, other) } else { (*other, &*self) };
        let behind = u32::try_from(newer.highest - older.highest).unwrap_or(u32::MAX);
        *self = Run {
            lowest: self.lowest.min(other.lowest),
            highest: newer.highest,
            window: newer.window | older.window.checked_shl(behind).unwrap_or(0),
            distinct: self.distinct + other.distinct,
        };
    }

    fn lost(&self) -> u64 {
        (self.highest - self.lowest + 1).saturating_sub(self.distinct)
    }
}

/// Interarrival jitter, RFC 3550 A.8, in sixteenths of a clock tick.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Jitter {
    clock_rate: u32,
    /// Arrival less timestamp of the last packet, in ticks, modulo 2³².
    transit: u32,
    scaled: u32,
}

impl Jitter {
    fn receive(&mut self, at: Wall, timestamp: u32, clock_rate: u32) {
        let transit = ticks(at, clock_rate).wrapping_sub(timestamp);
        if self.clock_rate != clock_rate {
            *self = Jitter { clock_rate, transit, scaled: 0 };
            return;
        }
        let distance = (transit.wrapping_sub(self.transit) as i32).unsigned_abs();
        self.transit = transit;
        // A hold or a new media clock is no jitter; A.8 would remember it for a hundred packets.
        if u64::from(distance) <= CLOCK_JUMP_MAX.as_secs() * u64::from(clock_rate) {
            self.scaled = self.scaled.saturating_add(distance) - ((self.scaled.saturating_add(8)) >> 4);
        }
    }

    /// To the microsecond.
    fn millis(&self) -> f64 {
        if self.clock_rate == 0 {
            return 0.0;
        }
        let micros = u64::from(self.scaled) * 1_000_000 / 16 / u64::from(self.clock_rate);
        micros as f64 / 1_000.0
    }
}

/// A wall time in ticks of an RTP clock, modulo 2³².
fn ticks(at: Wall, clock_rate: u32) -> u32 {
    let (seconds, nanos) = (at.0 / 1_000_000_000, at.0 % 1_000_000_000);
    let rate = u64::from(clock_rate);
    seconds.wrapping_mul(rate).wrapping_add(nanos * rate / 1_000_000_000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    const START: u64 = 1_795_336_245_000_000_000;
    const MS: u64 = 1_000_000;

    fn pcmu() -> Vec<Codec> {
        let codec = |payload_type, encoding: &str| Codec {
            payload_type,
            encoding: encoding.to_owned(),
            clock_rate: 8_000,
            channels: 1,
            fmtp: None,
        };
        vec![codec(0, "PCMU"), codec(101, "telephone-event")]
    }

    fn rtp(ssrc: u32, sequence: u16, timestamp: u32) -> Rtp<'static> {
        Rtp { sequence, timestamp, ssrc, payload_type: 0, marker: false, payload: &[0; 160] }
    }

    /// A stream: packets in order by its track, all others by its reception.
    struct Stream(Track, Reception);

    impl Stream {
        fn new() -> Stream {
            Stream(Track::NEW, Reception::new(&pcmu()))
        }

        fn receive(&mut self, at: Wall, rtp: &Rtp<'_>) -> usize {
            if self.0.follow(at, rtp) { self.0.source() } else { self.1.receive(&mut self.0, at, rtp) }
        }

        fn sums(&self) -> Sums {
            self.1.sums(&self.0)
        }

        fn ssrcs(&self) -> Vec<Ssrc> {
            self.1.ssrcs(&self.0)
        }
    }

    fn follow(sequences: impl IntoIterator<Item = u16>) -> Sums {
        let mut reception = Stream::new();
        for sequence in sequences {
            reception.receive(Wall(START), &rtp(7, sequence, 0));
        }
        reception.sums()
    }

    fn counts(sums: Sums) -> (u64, u64, u64) {
        (sums.lost, sums.out_of_order, sums.duplicate)
    }

    #[test]
    fn sequence_figures() {
        assert_eq!(counts(follow([1, 2, 3])), (0, 0, 0));
        assert_eq!(counts(follow([1, 2, 5])), (2, 0, 0), "two lost");
        assert_eq!(counts(follow([1, 3, 2, 4])), (0, 1, 0), "late is not lost");
        assert_eq!(counts(follow([1, 2, 2, 1, 3])), (0, 0, 2), "duplicates");
        assert_eq!(counts(follow([1, 2, 5, 2, 2])), (2, 0, 2), "duplicates hide no loss");
        assert_eq!(counts(follow([2, 1, 3])), (0, 1, 0), "late at the start");
        assert_eq!(counts(follow([0, 65_535, 1])), (0, 1, 0), "late at the start, over the wrap");
        assert_eq!(counts(follow([65_534, 65_535, 0, 1])), (0, 0, 0), "wrap");
        assert_eq!(counts(follow([65_534, 1])), (2, 0, 0), "loss over the wrap");
        assert_eq!(counts(follow((0..200_000u32).map(|n| n as u16))), (0, 0, 0), "three wraps");
        assert_eq!(counts(follow([])), (0, 0, 0));
    }

    #[test]
    fn restarts_are_not_loss() {
        assert_eq!(counts(follow([1, 2, 2_999])), (2_996, 0, 0), "a gap below the limit");
        assert_eq!(counts(follow([1, 3, 30_000, 30_001, 30_003])), (2, 0, 0), "restart, loss on both sides");
        assert_eq!(counts(follow([1, 2, 30_000, 3, 4])), (0, 0, 0), "a stray is no restart");
        assert_eq!(counts(follow([500, 501, 400, 300, 301])), (0, 0, 0), "far behind: a restart");
        assert_eq!(counts(follow([500, 501, 401])), (98, 1, 0), "100 behind: late");
    }

    #[test]
    fn sources_are_told_apart_up_to_the_limit() {
        let mut reception = Stream::new();
        for ssrc in 0..12 {
            for n in 0..3 {
                let index = reception.receive(Wall(START + n), &rtp(ssrc, n as u16 * 2, 0));
                assert_eq!(index, (ssrc as usize).min(SSRCS_PER_STREAM - 1));
            }
        }
        assert_eq!(reception.receive(Wall(START), &rtp(3, 5, 0)), 3, "found again");
        let ssrcs = reception.ssrcs();
        assert_eq!(ssrcs.len(), SSRCS_PER_STREAM);
        assert_eq!((&ssrcs[2].ssrc[..], ssrcs[2].packets, ssrcs[2].lost), ("0x00000002", 3, 2));
        assert_eq!((ssrcs[7].packets, ssrcs[7].lost), (15, 2), "shared by five, followed for the first");
        assert_eq!(reception.sums().first, Some(Wall(START)));
        assert_eq!(reception.sums().last, Some(Wall(START + 2)));
    }

    #[test]
    fn events_and_holds_are_no_jitter() {
        let mut reception = Stream::new();
        for n in 0..50u32 {
            let at = Wall(START + u64::from(n) * 20 * MS);
            let event = Rtp { payload_type: 101, ..rtp(7, n as u16, 1_000) };
            let packet = if n % 10 > 5 { event } else { rtp(7, n as u16, n * 160) };
            reception.receive(at, &packet);
        }
        reception.receive(Wall(START + 60_000 * MS), &rtp(7, 50, 50 * 160));
        assert_eq!(reception.sums().jitter_ms, 0.0);
        assert_eq!(reception.ssrcs()[0].payload_type, 0);
    }

    #[test]
    fn an_alternating_transit_converges_to_its_distance() {
        let mut reception = Stream::new();
        for n in 0..1_000u32 {
            let late = if n % 2 == 0 { 0 } else { 4 * MS };
            reception.receive(Wall(START + u64::from(n) * 20 * MS + late), &rtp(7, n as u16, n * 160));
        }
        assert!((reception.sums().jitter_ms - 4.0).abs() < 0.1, "{}", reception.sums().jitter_ms);
    }

    /// `sequences` from `second` on, one each 20 ms.
    fn seen(second: u64, sequences: impl IntoIterator<Item = u32>) -> Stream {
        let mut stream = Stream::new();
        for (n, sequence) in sequences.into_iter().enumerate() {
            let at = Wall(START + second * 1_000 * MS + n as u64 * 20 * MS);
            stream.receive(at, &rtp(7, sequence as u16, 0));
        }
        stream
    }

    fn together(mut one: Stream, other: &Stream) -> Sums {
        let part = other.1.part(&other.0);
        one.1.absorb(&mut one.0, &part);
        one.sums()
    }

    #[test]
    fn parts_are_aligned_where_they_met() {
        let many = 300_000;
        let figures = |sums: Sums| (sums.packets, counts(sums));
        for (before, after, expected) in [
            // The stream moved; each counted cycles from its own first packet on.
            (seen(0, 0..10), seen(1, 10..many), (300_000, (0, 0, 0))),
            (seen(0, 0..10), seen(1, 13..many), (299_997, (3, 0, 0))),
            (seen(0, 0..many), seen(6_000, many..many + 10), (300_010, (0, 0, 0))),
            // Both saw every other packet; one was lost on the way to each.
            (
                seen(0, (0..1_000).filter(|n| n % 2 == 0 && *n != 500)),
                seen(0, (0..1_000).filter(|n| n % 2 == 1 && *n != 501)),
                (998, (2, 0, 0)),
            ),
            // It restarted when it moved: nothing was lost between.
            (seen(0, [1, 2, 4]), seen(1, [40_000, 40_002]), (5, (2, 0, 0))),
            // Late and double ones are known to whom they came.
            (seen(0, [1, 3, 2, 2]), seen(1, [4, 5, 5]), (7, (0, 1, 2))),
            (seen(0, []), seen(1, [4, 6]), (2, (1, 0, 0))),
        ] {
            assert_eq!(figures(together(seen(0, []), &before)), figures(before.sums()));
            let part = (after.0, after.1.part(&after.0));
            assert_eq!(figures(together(after, &before)), expected);
            let mut before = before;
            before.1.absorb(&mut before.0, &part.1);
            assert_eq!(figures(before.sums()), expected, "the other way round");
        }
    }

    #[test]
    fn a_stream_goes_on_after_it_was_put_together() {
        let (mut one, other) = (seen(0, 0..10), seen(1, 10..20));
        one.1.absorb(&mut one.0, &other.1.part(&other.0));
        for sequence in [20, 21, 15, 23] {
            one.receive(Wall(START + 2_000 * MS), &rtp(7, sequence, 0));
        }
        assert_eq!((one.sums().packets, counts(one.sums())), (24, (1, 0, 1)), "15 has come to the other");
    }

    #[test]
    fn sources_of_parts_are_told_apart_up_to_the_limit() {
        let [mut one, mut other] = [Stream::new(), Stream::new()];
        for ssrc in 0..6 {
            one.receive(Wall(START), &rtp(ssrc, 1, 0));
            other.receive(Wall(START + 1), &rtp(ssrc + 3, 2, 0));
        }
        one.1.absorb(&mut one.0, &other.1.part(&other.0));
        let ssrcs = one.ssrcs();
        let packets: Vec<_> = ssrcs.iter().map(|ssrc| (&ssrc.ssrc[9..], ssrc.packets)).collect();
        let expected = [("0", 1), ("1", 1), ("2", 1), ("3", 2), ("4", 2), ("5", 2), ("6", 1), ("7", 2)];
        assert_eq!(packets, expected, "the ninth is counted under the eighth");
        assert_eq!((one.sums().lost, one.sums().last), (0, Some(Wall(START + 1))));
    }

    proptest! {
        /// However a stream without restarts is spread over two receivers: together they know what one would.
        #[test]
        fn parts_are_the_whole(first: u16, runs in prop::collection::vec((0u16..40, 1u16..100), 1..60)) {
            let (mut parts, mut whole) = ([Stream::new(), Stream::new()], Stream::new());
            let (mut sequence, mut at) = (first, START);
            for (n, (lost, packets)) in runs.into_iter().enumerate() {
                sequence = sequence.wrapping_add(lost);
                for _ in 0..packets {
                    let packet = rtp(1, sequence, 0);
                    parts[n % 2].receive(Wall(at), &packet);
                    whole.receive(Wall(at), &packet);
                    (sequence, at) = (sequence.wrapping_add(1), at + 20 * MS);
                }
            }
            let [one, other] = parts;
            let (one, whole) = (together(one, &other), whole.sums());
            prop_assert_eq!((one.packets, counts(one)), (whole.packets, counts(whole)));
            prop_assert_eq!((one.first, one.last), (whole.first, whole.last));
        }

        /// Against the definition: distinct sequence numbers, everything counted.
        #[test]
        fn figures_are_those_of_a_set(first: u16, moves in prop::collection::vec((0u16..4, 0u16..60), 1..400)) {
            let (mut reception, mut seen) = (Stream::new(), HashSet::new());
            let (mut highest, mut lowest) = (u64::from(first) + 65_536, u64::from(first) + 65_536);
            let (mut late, mut duplicate) = (0, 0);
            for (n, (kind, by)) in moves.into_iter().enumerate() {
                let extended = match kind {
                    _ if n == 0 => highest,
                    0 => highest - u64::from(by).min(SEQ_MISORDER_MAX.into()),
                    1 => highest + u64::from(by),
                    _ => highest + 1,
                };
                if !seen.insert(extended) {
                    duplicate += 1;
                } else if extended < highest {
                    late += 1;
                }
                (highest, lowest) = (highest.max(extended), lowest.min(extended));
                reception.receive(Wall(START), &rtp(1, extended as u16, 0));
            }
            let lost = highest - lowest + 1 - seen.len() as u64;
            prop_assert_eq!(counts(reception.sums()), (lost, late, duplicate));
        }

        /// Against A.8 as it is written, in floating point.
        #[test]
        fn jitter_is_that_of_rfc_3550(transits in prop::collection::vec(0u64..200, 2..300)) {
            let mut reception = Stream::new();
            let (mut expected, mut before) = (0.0f64, None);
            for (n, transit) in transits.into_iter().enumerate() {
                let n = n as u64;
                reception.receive(Wall(START + (n * 20 + transit) * MS), &rtp(1, n as u16, (n * 160) as u32));
                if let Some(before) = before.replace(transit as f64) {
                    expected += ((transit as f64 - before).abs() - expected) / 16.0;
                }
            }
            // The scaled form rounds to half a sixteenth of a tick each time: at most one tick (0.125 ms) in all.
            prop_assert!((reception.sums().jitter_ms - expected).abs() < 0.125);
        }
    }
}
