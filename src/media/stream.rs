//! What came of one stream: sources, sequence, loss, jitter (RFC 3550 appendix A). Nothing here knows what is on disk.

use crate::clock::Wall;
use crate::limits::{CLOCK_JUMP_MAX, SEQ_DROPOUT_MAX, SEQ_MISORDER_MAX, SSRCS_PER_STREAM};
use crate::proto::manifest::Ssrc;
use crate::proto::raw;
use crate::proto::rtp::Rtp;
use crate::proto::sdp::Codec;

/// The sources of one stream. Of fixed size: no packet makes it grow.
#[derive(Debug)]
#[repr(C)]
pub struct Reception {
    used: usize,
    /// The source of the last packet: looked at first.
    latest: usize,
    /// Payload type and clock rate of the last packet: looked at first.
    rate: (u8, u32),
    /// Clock rates of the payload types that were answered; 0 where packets do not follow the media clock.
    rates: Vec<(u8, u32)>,
    sources: [Source; SSRCS_PER_STREAM],
}

/// Sums over the sources.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Sums {
    pub lost: u64,
    pub out_of_order: u64,
    pub duplicate: u64,
    /// The largest.
    pub jitter_ms: f64,
    pub first: Option<Wall>,
    pub last: Option<Wall>,
}

impl Reception {
    /// Bytes from the beginning to the end of the first source.
    pub const WARM: usize = std::mem::offset_of!(Reception, sources) + size_of::<Source>();

    pub fn new(codecs: &[Codec]) -> Reception {
        let rate = |codec: &Codec| if raw::is_event(codec) { 0 } else { codec.clock_rate };
        Reception {
            rates: codecs.iter().map(|codec| (codec.payload_type, rate(codec))).collect(),
            sources: [Source::default(); SSRCS_PER_STREAM],
            used: 0,
            latest: 0,
            rate: (0, codecs.iter().find(|codec| codec.payload_type == 0).map_or(0, rate)),
        }
    }

    /// Counts one packet. The index of its source, below [`SSRCS_PER_STREAM`]; sources beyond that share the last.
    pub fn receive(&mut self, at: Wall, rtp: &Rtp<'_>) -> usize {
        let rate = self.clock_rate(rtp.payload_type);
        self.latest = self.source(rtp.ssrc);
        let source = &mut self.sources[self.latest];
        if source.packets == 0 {
            *source = Source::new(at, rtp);
        }
        source.receive(at, rtp, rate);
        self.latest
    }

    pub fn sums(&self) -> Sums {
        let sources = &self.sources[..self.used];
        Sums {
            lost: sources.iter().map(Source::lost).sum(),
            out_of_order: sources.iter().map(|source| source.out_of_order).sum(),
            duplicate: sources.iter().map(|source| source.duplicate).sum(),
            jitter_ms: sources.iter().map(Source::jitter_ms).fold(0.0, f64::max),
            first: sources.iter().map(|source| source.first).min(),
            last: sources.iter().map(|source| source.last).max(),
        }
    }

    /// In order of appearance.
    pub fn ssrcs(&self) -> Vec<Ssrc> {
        self.sources[..self.used].iter().map(Source::report).collect()
    }

    fn clock_rate(&mut self, payload_type: u8) -> u32 {
        if self.rate.0 != payload_type {
            let known = self.rates.iter().find(|(known, _)| *known == payload_type);
            self.rate = *known.unwrap_or(&(payload_type, 0));
        }
        self.rate.1
    }

    fn source(&mut self, ssrc: u32) -> usize {
        if self.used > 0 && self.sources[self.latest].ssrc == ssrc {
            return self.latest;
        }
        if let Some(known) = self.sources[..self.used].iter().position(|source| source.ssrc == ssrc) {
            return known;
        }
        self.used = (self.used + 1).min(SSRCS_PER_STREAM);
        self.used - 1
    }
}

/// One SSRC. Sequence numbers are extended by their cycles (RFC 3550 A.1).
#[derive(Clone, Copy, Debug, Default)]
struct Source {
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

    fn jitter_ms(&self) -> f64 {
        self.jitter.millis()
    }

    fn report(&self) -> Ssrc {
        Ssrc {
            ssrc: format!("0x{:08x}", self.ssrc),
            payload_type: self.payload_type,
            packets: self.packets,
            lost: self.lost(),
            out_of_order: self.out_of_order,
            duplicate: self.duplicate,
            jitter_ms: self.jitter_ms(),
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

    fn lost(&self) -> u64 {
        (self.highest - self.lowest + 1).saturating_sub(self.distinct)
    }
}

/// Interarrival jitter, RFC 3550 A.8, in sixteenths of a clock tick.
#[derive(Clone, Copy, Debug, Default)]
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

    fn follow(sequences: impl IntoIterator<Item = u16>) -> Sums {
        let mut reception = Reception::new(&pcmu());
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
        let mut reception = Reception::new(&pcmu());
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
        let mut reception = Reception::new(&pcmu());
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
        let mut reception = Reception::new(&pcmu());
        for n in 0..1_000u32 {
            let late = if n % 2 == 0 { 0 } else { 4 * MS };
            reception.receive(Wall(START + u64::from(n) * 20 * MS + late), &rtp(7, n as u16, n * 160));
        }
        assert!((reception.sums().jitter_ms - 4.0).abs() < 0.1, "{}", reception.sums().jitter_ms);
    }

    proptest! {
        /// Against the definition: distinct sequence numbers, everything counted.
        #[test]
        fn figures_are_those_of_a_set(first: u16, moves in prop::collection::vec((0u16..4, 0u16..60), 1..400)) {
            let (mut reception, mut seen) = (Reception::new(&pcmu()), HashSet::new());
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
            let mut reception = Reception::new(&pcmu());
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
