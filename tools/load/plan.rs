//! What a run sends, as pure functions of its seed: payloads, losses, swaps and copies of every packet. The sender and the
//! verifier both ask here, so nothing but the parameters has to travel with a recording.

use super::audio;
use super::codec::{Audio, Codec};

/// Largest RTP payload that is sent: 60 ms of G.711 is 480 bytes.
pub const PAYLOAD_MAX: usize = 1_024;
/// RTCP sender reports leave a stream this often.
const REPORT_INTERVAL_MS: u32 = 5_000;
/// Bytes at the beginning of a tagged payload that tell it from all others.
pub const TAG: usize = 16;
const MILLION: u32 = 1_000_000;

/// The parameters of a run. Together with a call and a stream index they determine every packet.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Tells this run's recordings from those of others in one directory.
    pub run: String,
    pub seed: u64,
    pub calls: u32,
    /// Streams per call.
    pub streams: u32,
    pub codec: Codec,
    pub audio: Audio,
    pub ptime_ms: u32,
    /// Packets per stream before loss: one a turn.
    pub turns: u32,
    /// Parts per million of packets that are never sent, change places with their successor, are sent twice.
    pub loss_ppm: u32,
    pub reorder_ppm: u32,
    pub duplicate_ppm: u32,
    /// Whether RTCP sender reports go with the streams.
    pub sender_reports: bool,
}

/// One stream of one call, with what all its packets share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StreamPlan {
    pub call: u32,
    pub stream: u32,
    pub ssrc: u32,
    pub first_seq: u16,
    pub first_timestamp: u32,
    key: u64,
}

/// The packets that leave at one turn, in order, by their index in the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Turn {
    indices: [u32; 4],
    len: u8,
}

/// What a perfect receiver counts on one stream (RFC 3550 A.3 without its signed loss).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub packets: u64,
    pub lost: u64,
    pub out_of_order: u64,
    pub duplicate: u64,
}

/// Independent random decisions about one packet.
#[derive(Clone, Copy)]
enum Draw {
    Loss = 1,
    Reorder,
    Duplicate,
    Length,
    Payload,
}

impl Plan {
    pub fn stream(&self, call: u32, stream: u32) -> StreamPlan {
        let key = mix(mix(self.seed) ^ mix(u64::from(call) << 32 | u64::from(stream)));
        let ssrc = mix(key ^ 0x51) as u32;
        StreamPlan {
            call,
            stream,
            ssrc,
            first_seq: self.first_seq(key),
            first_timestamp: self.first_timestamp(key),
            key,
        }
    }

    /// RFC 3550 §5.1: random. One stream in four begins so high that it wraps within the run.
    fn first_seq(&self, key: u64) -> u16 {
        let random = mix(key ^ 0x52);
        match key % 4 {
            0 => u16::MAX - (random % u64::from(self.turns / 2 + 1).min(0x8000)) as u16,
            _ => random as u16,
        }
    }

    fn first_timestamp(&self, key: u64) -> u32 {
        let random = mix(key ^ 0x53);
        match key % 4 {
            1 => {
                u32::MAX
                    - (random % (u64::from(self.turns / 2 + 1) * u64::from(self.timestamp_step()))) as u32
            }
            _ => random as u32,
        }
    }

    /// RTP clock ticks per packet.
    pub fn timestamp_step(&self) -> u32 {
        self.codec.clock_rate() / 1_000 * self.ptime_ms
    }

    /// Payload bytes of a packet; constant for constant-rate codecs.
    pub fn payload_len(&self, stream: &StreamPlan, index: u32) -> usize {
        match self.codec.bytes_per_ms() {
            Some(bytes) => bytes * self.ptime_ms as usize,
            None => 40 + (stream.draw(Draw::Length, index) % 121) as usize,
        }
    }

    /// Writes the payload of packet `index` and returns its length.
    pub fn payload(&self, stream: &StreamPlan, index: u32, out: &mut [u8; PAYLOAD_MAX]) -> usize {
        let len = self.payload_len(stream, index);
        match self.audio {
            Audio::Random => fill_random(stream.draw(Draw::Payload, index), &mut out[..len]),
            Audio::Tone => audio::tone(self.codec, stream, u64::from(index) * len as u64, &mut out[..len]),
            Audio::Tagged => self.fill_tagged(stream.tag(index), &mut out[..len]),
        }
        len
    }

    /// A pattern that belongs to the seed, behind a tag.
    fn fill_tagged(&self, tag: u64, out: &mut [u8]) {
        let (own, pattern) = out.split_at_mut(TAG.min(out.len()));
        let tag = u128::from(tag) << 64 | u128::from(!tag);
        own.copy_from_slice(&tag.to_be_bytes()[..own.len()]);
        fill_random(mix(self.seed ^ 0x54), pattern);
    }

    /// The first two packets and the last are always sent, once and in place: what a receiver counts as lost is then
    /// exactly what was left out.
    fn spared(&self, index: u32) -> bool {
        index < 2 || index + 1 >= self.turns
    }

    fn lost(&self, stream: &StreamPlan, index: u32) -> bool {
        !self.spared(index) && stream.happens(Draw::Loss, index, self.loss_ppm)
    }

    /// Whether the packet leaves one turn late, behind its successor. Only even packets do, twice as often, so that no packet is
    /// both overtaken and late.
    fn delayed(&self, stream: &StreamPlan, index: u32) -> bool {
        let rate = self.reorder_ppm.saturating_mul(2);
        index.is_multiple_of(2)
            && !self.spared(index)
            && !self.spared(index + 1)
            && stream.happens(Draw::Reorder, index, rate)
    }

    fn duplicated(&self, stream: &StreamPlan, index: u32) -> bool {
        !self.spared(index) && stream.happens(Draw::Duplicate, index, self.duplicate_ppm)
    }

    pub fn turn(&self, stream: &StreamPlan, turn: u32) -> Turn {
        let mut packets = Turn::default();
        if !self.delayed(stream, turn) {
            self.add(stream, turn, &mut packets);
        }
        if turn > 0 && self.delayed(stream, turn - 1) {
            self.add(stream, turn - 1, &mut packets);
        }
        packets
    }

    fn add(&self, stream: &StreamPlan, index: u32, packets: &mut Turn) {
        if self.lost(stream, index) {
            return;
        }
        packets.push(index);
        if self.duplicated(stream, index) {
            packets.push(index);
        }
    }

    /// How often packet `index` was sent by a sender that stopped after `turns` turns.
    pub fn copies(&self, stream: &StreamPlan, index: u32, turns: u32) -> u8 {
        let turn = index + u32::from(self.delayed(stream, index));
        match turn < turns && !self.lost(stream, index) {
            true => 1 + u8::from(self.duplicated(stream, index)),
            false => 0,
        }
    }

    /// What a receiver counts that got everything sent in `turns` turns.
    pub fn tally(&self, stream: &StreamPlan, turns: u32) -> Tally {
        let sent = (0..turns).flat_map(|turn| self.turn(stream, turn));
        sent.fold(Counter::default(), Counter::count).tally()
    }

    /// Whether a sender report goes with this turn. Streams do not report in step.
    pub fn reports(&self, stream: &StreamPlan, turn: u32) -> bool {
        let interval = (REPORT_INTERVAL_MS / self.ptime_ms).max(1);
        self.sender_reports && (turn + (stream.key % u64::from(interval)) as u32) % interval == interval - 1
    }
}

impl StreamPlan {
    pub fn seq(&self, index: u32) -> u16 {
        self.first_seq.wrapping_add(index as u16)
    }

    /// Tells a tagged packet from all others; in the packet its complement follows, so that both together add nothing to a
    /// checksum.
    pub fn tag(&self, index: u32) -> u64 {
        mix(self.tag_key() ^ u64::from(index))
    }

    pub fn tag_key(&self) -> u64 {
        self.key ^ (Draw::Payload as u64) << 32
    }

    fn draw(&self, what: Draw, index: u32) -> u64 {
        mix(self.key ^ mix((what as u64) << 32 | u64::from(index)))
    }

    fn happens(&self, what: Draw, index: u32, ppm: u32) -> bool {
        ppm > 0 && (self.draw(what, index) % u64::from(MILLION)) < u64::from(ppm)
    }
}

impl Turn {
    fn push(&mut self, index: u32) {
        self.indices[self.len as usize] = index;
        self.len += 1;
    }
}

impl IntoIterator for Turn {
    type Item = u32;
    type IntoIter = std::iter::Take<std::array::IntoIter<u32, 4>>;

    fn into_iter(self) -> Self::IntoIter {
        self.indices.into_iter().take(self.len as usize)
    }
}

/// Counts a sequence of packet indices the way a receiver does.
#[derive(Clone, Debug, Default)]
pub struct Counter {
    seen: Vec<bool>,
    first: Option<u32>,
    tally: Tally,
}

impl Counter {
    pub fn count(mut self, index: u32) -> Counter {
        self.see(index);
        self
    }

    pub fn see(&mut self, index: u32) {
        self.tally.packets += 1;
        let at = index as usize;
        let newest = self.seen.len();
        if at >= newest {
            self.first.get_or_insert(index);
            self.seen.resize(at + 1, false);
        } else if self.seen[at] {
            self.tally.duplicate += 1;
        } else {
            self.tally.out_of_order += 1;
        }
        self.seen[at] = true;
    }

    /// Lost are the gaps between the first packet that came and the newest.
    pub fn tally(&self) -> Tally {
        let first = self.first.unwrap_or(0) as usize;
        let lost = self.seen.iter().skip(first).filter(|seen| !**seen).count() as u64;
        Tally { lost, ..self.tally }
    }
}

/// `probability` as parts per million.
pub fn ppm(probability: f64) -> u32 {
    (probability.clamp(0.0, 1.0) * f64::from(MILLION)).round() as u32
}

/// The finaliser of SplitMix64: every input bit reaches every output bit.
pub fn mix(input: u64) -> u64 {
    let z = input.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn fill_random(mut state: u64, out: &mut [u8]) {
    for chunk in out.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        chunk.copy_from_slice(&mix(state).to_le_bytes()[..chunk.len()]);
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn plan() -> Plan {
        Plan {
            run: "r1".into(),
            seed: 7,
            calls: 2,
            streams: 2,
            codec: Codec::Pcmu,
            audio: Audio::Random,
            ptime_ms: 20,
            turns: 1_000,
            loss_ppm: 20_000,
            reorder_ppm: 30_000,
            duplicate_ppm: 10_000,
            sender_reports: true,
        }
    }

    #[test]
    fn payload_of_a_packet_never_changes() {
        let plan = plan();
        let mut out = [0; PAYLOAD_MAX];
        let len = plan.payload(&plan.stream(1, 1), 42, &mut out);
        assert_eq!(len, 160);
        assert_eq!(out[..16], GOLDEN, "recordings of earlier versions could not be verified any more");
    }

    const GOLDEN: [u8; 16] = [160, 246, 245, 121, 74, 110, 42, 120, 12, 104, 160, 105, 41, 50, 226, 182];

    #[test]
    fn payloads_differ_in_every_coordinate() {
        let plan = plan();
        let other_seed = Plan { seed: 8, ..plan.clone() };
        let mut seen = std::collections::HashSet::new();
        for plan in [&plan, &other_seed] {
            for (call, stream, index) in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)] {
                let mut out = [0; PAYLOAD_MAX];
                plan.payload(&plan.stream(call, stream), index, &mut out);
                assert!(seen.insert(out[..160].to_vec()));
            }
        }
    }

    #[test]
    fn tagged_payloads_differ_in_their_tag_alone_and_by_the_seed() {
        let plan = Plan { audio: Audio::Tagged, ..plan() };
        let payload = |plan: &Plan, call, index| {
            let mut out = [0; PAYLOAD_MAX];
            let len = plan.payload(&plan.stream(call, 0), index, &mut out);
            out[..len].to_vec()
        };
        let first = payload(&plan, 0, 0);
        for (call, index) in [(0, 1), (0, 65_536), (1, 0)] {
            let other = payload(&plan, call, index);
            assert!(first[..8] != other[..8] && first[TAG..] == other[TAG..]);
            assert!((0..8).all(|at| other[at] == !other[at + 8]));
        }
        assert_ne!(first[TAG..], payload(&Plan { seed: 8, ..plan }, 0, 0)[TAG..]);
    }

    #[test]
    fn turns_and_copies_tell_the_same_story() {
        let plan = plan();
        let stream = plan.stream(0, 1);
        for turns in [1_000, 501, 500, 3, 1, 0] {
            let mut sent = vec![0u8; 1_000];
            (0..turns).flat_map(|turn| plan.turn(&stream, turn)).for_each(|index| sent[index as usize] += 1);
            let copies: Vec<u8> = (0..1_000).map(|index| plan.copies(&stream, index, turns)).collect();
            assert_eq!(sent, copies, "{turns} turns");
        }
    }

    #[test]
    fn impairments_come_at_the_rate_asked_for() {
        let plan = Plan { turns: 100_000, ..plan() };
        let tally = plan.tally(&plan.stream(0, 0), plan.turns);
        assert!((1_800..2_200).contains(&tally.lost), "{tally:?}");
        assert!((2_700..3_300).contains(&tally.out_of_order), "{tally:?}");
        assert!((850..1_150).contains(&tally.duplicate), "{tally:?}");
        assert_eq!(tally.packets, 100_000 - tally.lost + tally.duplicate);
    }

    #[test]
    fn counter_tells_late_from_twice() {
        let count = |indices: &[u32]| indices.iter().fold(Counter::default(), |c, i| c.count(*i)).tally();
        assert_eq!(count(&[0, 1, 2]), Tally { packets: 3, ..Tally::default() });
        assert_eq!(count(&[0, 2, 1, 1, 4]), Tally { packets: 5, lost: 1, out_of_order: 1, duplicate: 1 });
        assert_eq!(count(&[5, 6]).lost, 0);
    }

    #[test]
    fn some_streams_wrap_and_all_differ() {
        let plan = Plan { turns: 500, ..plan() };
        let streams: Vec<StreamPlan> = (0..100).map(|call| plan.stream(call, 0)).collect();
        let wraps = streams.iter().filter(|s| s.seq(499) < s.first_seq).count();
        assert!((15..40).contains(&wraps), "{wraps}");
        let ssrcs: std::collections::HashSet<u32> = streams.iter().map(|s| s.ssrc).collect();
        assert_eq!(ssrcs.len(), 100);
    }

    #[test]
    fn a_stream_reports_every_five_seconds() {
        let plan = plan();
        let stream = plan.stream(0, 0);
        assert_eq!((0..1_000).filter(|turn| plan.reports(&stream, *turn)).count(), 4);
    }
}
