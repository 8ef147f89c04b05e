//! One stream of one recording, packet by packet, against what was sent.

use crate::load::plan::{Counter, Plan, StreamPlan};
use crate::load::rtp;
use crate::load::wire::PACKET_MAX;

/// Sums over packets. `expected + duplicated = found + missing + …` does not hold with corruption: a damaged packet is corrupt and
/// neither found nor missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Sent, copies on purpose included; in raw files, where copies fall on each other, each packet once.
    pub expected: u64,
    /// There, bit for bit.
    pub found: u64,
    pub missing: u64,
    /// There more often than sent.
    pub duplicated: u64,
    /// There, but not as sent.
    pub corrupt: u64,
    /// There, but never sent here.
    pub unexpected: u64,
    pub rtcp_expected: u64,
    pub rtcp_found: u64,
    /// SIP messages in the pcap.
    pub sip_messages: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        self.expected += other.expected;
        self.found += other.found;
        self.missing += other.missing;
        self.duplicated += other.duplicated;
        self.corrupt += other.corrupt;
        self.unexpected += other.unexpected;
        self.rtcp_expected += other.rtcp_expected;
        self.rtcp_found += other.rtcp_found;
        self.sip_messages += other.sip_messages;
    }

    pub fn is_whole(&self) -> bool {
        self.missing + self.duplicated + self.corrupt + self.unexpected == 0
            && self.found == self.expected
            && self.rtcp_found == self.rtcp_expected
    }
}

pub struct StreamCheck<'a> {
    pub plan: &'a Plan,
    pub stream: StreamPlan,
    /// How long the sender went on.
    pub turns: u32,
    pub counts: Counts,
    /// In the order of the file.
    pub counter: Counter,
    /// RTP payload bytes seen.
    pub bytes: u64,
    seen: Vec<u8>,
    newest: u32,
    scratch: Box<[u8; PACKET_MAX]>,
}

impl<'a> StreamCheck<'a> {
    pub fn new(plan: &'a Plan, call: u32, stream: u32, turns: u32) -> StreamCheck<'a> {
        let mut check = StreamCheck {
            plan,
            stream: plan.stream(call, stream),
            turns,
            counts: Counts::default(),
            counter: Counter::default(),
            bytes: 0,
            seen: vec![0; plan.turns as usize],
            newest: 0,
            scratch: Box::new([0; PACKET_MAX]),
        };
        check.counts.rtcp_expected = check.reports();
        check
    }

    /// Sender reports that went with the stream.
    pub fn reports(&self) -> u64 {
        (0..self.turns).filter(|turn| self.plan.reports(&self.stream, *turn)).count() as u64
    }

    /// One datagram that came to the stream's RTP port.
    pub fn packet(&mut self, bytes: &[u8]) {
        let Some((ssrc, seq, timestamp)) = rtp::read(bytes) else {
            self.counts.unexpected += 1;
            return;
        };
        self.bytes += (bytes.len() - rtp::HEADER) as u64;
        match self.index(seq, timestamp) {
            Some(index) if ssrc == self.stream.ssrc => self.known(index, bytes),
            _ => self.counts.unexpected += 1,
        }
    }

    fn known(&mut self, index: u32, bytes: &[u8]) {
        self.counter.see(index);
        self.newest = self.newest.max(index);
        let len = rtp::packet(self.plan, &self.stream, index, &mut self.scratch[..]);
        let copies = self.plan.copies(&self.stream, index, self.turns);
        let seen = &mut self.seen[index as usize];
        match () {
            () if self.scratch[..len] != *bytes => self.counts.corrupt += 1,
            () if copies == 0 => self.counts.unexpected += 1,
            () if *seen >= copies => self.counts.duplicated += 1,
            () => self.counts.found += 1,
        }
        *seen = seen.saturating_add(1);
    }

    /// Position in the stream. The timestamp says it for good as long as it lies on the grid and agrees with the sequence number;
    /// else the sequence number nearest to the newest packet counts.
    fn index(&self, seq: u16, timestamp: u32) -> Option<u32> {
        let (ticks, step) = (timestamp.wrapping_sub(self.stream.first_timestamp), self.plan.timestamp_step());
        let by_time = ticks / step;
        if ticks.is_multiple_of(step) && by_time < self.plan.turns && self.stream.seq(by_time) == seq {
            return Some(by_time);
        }
        let ahead = seq.wrapping_sub(self.stream.seq(self.newest)) as i16;
        let by_seq = i64::from(self.newest) + i64::from(ahead);
        u32::try_from(by_seq).ok().filter(|index| *index < self.plan.turns)
    }

    pub fn rtcp(&mut self, bytes: &[u8]) {
        match rtp::read_report(bytes) {
            Some(ssrc) if ssrc == self.stream.ssrc => self.counts.rtcp_found += 1,
            _ => self.counts.unexpected += 1,
        }
    }

    /// After the last packet: what never came.
    pub fn finish(&mut self) {
        for (index, seen) in (0..).zip(&self.seen) {
            let copies = self.plan.copies(&self.stream, index, self.turns);
            self.counts.expected += u64::from(copies);
            self.counts.missing += u64::from(copies.saturating_sub(*seen));
        }
    }

    /// A whole raw file of a constant-rate codec: packets lie on the media clock, after as much silence as the stream began late.
    /// Returns the length of that silence.
    pub fn raw(&mut self, file: &[u8], silence: u8) -> Option<usize> {
        let len = self.plan.payload_len(&self.stream, 0);
        let lead = self.lead(file, len);
        let start = lead.unwrap_or(0);
        if file[..start].iter().any(|byte| *byte != silence) {
            self.counts.unexpected += 1;
        }
        for index in 0..self.plan.turns {
            let at = start + index as usize * len;
            let region = file.get(at..).map(|rest| &rest[..rest.len().min(len)]).unwrap_or_default();
            self.raw_packet(index, region, silence);
        }
        // Such files hold no RTCP.
        self.counts.rtcp_expected = 0;
        if file.len() > start + self.plan.turns as usize * len {
            self.counts.unexpected += 1;
        }
        lead
    }

    fn raw_packet(&mut self, index: u32, region: &[u8], silence: u8) {
        let sent = self.plan.copies(&self.stream, index, self.turns) > 0;
        let silent = region.iter().all(|byte| *byte == silence);
        if !sent {
            self.counts.unexpected += u64::from(!silent);
            return;
        }
        self.counts.expected += 1;
        self.bytes += region.len() as u64;
        match () {
            () if self.payload(index) == region => self.counts.found += 1,
            () if silent => self.counts.missing += 1,
            () => self.counts.corrupt += 1,
        }
    }

    /// Where the stream begins in the file: the end is known, if the last packet came; else the first packets are looked for.
    fn lead(&mut self, file: &[u8], len: usize) -> Option<usize> {
        let from_end = file.len().checked_sub(self.turns as usize * len);
        let fits = |check: &mut Self, lead: usize, index: u32| {
            file.get(lead + index as usize * len..).is_some_and(|rest| rest.starts_with(check.payload(index)))
        };
        if let Some(lead) = from_end.filter(|lead| fits(self, *lead, 0) || fits(self, *lead, 1)) {
            return Some(lead);
        }
        (0..self.turns.min(50)).find_map(|index| {
            let before = index as usize * len;
            let found = memchr::memmem::find(file, self.payload(index))?;
            found.checked_sub(before)
        })
    }

    fn payload(&mut self, index: u32) -> &[u8] {
        let len = rtp::packet(self.plan, &self.stream, index, &mut self.scratch[..]);
        &self.scratch[rtp::HEADER..len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::plan::tests::plan;

    fn packets(plan: &Plan) -> Vec<Vec<u8>> {
        let stream = plan.stream(0, 0);
        let sent = (0..plan.turns).flat_map(|turn| plan.turn(&stream, turn));
        sent.map(|index| packet(plan, index)).collect()
    }

    fn packet(plan: &Plan, index: u32) -> Vec<u8> {
        let mut out = vec![0; PACKET_MAX];
        let len = rtp::packet(plan, &plan.stream(0, 0), index, &mut out);
        out.truncate(len);
        out
    }

    fn check(plan: &Plan, packets: &[Vec<u8>]) -> Counts {
        let mut check = StreamCheck::new(plan, 0, 0, plan.turns);
        packets.iter().for_each(|packet| check.packet(packet));
        check.finish();
        Counts { rtcp_expected: 0, ..check.counts }
    }

    #[test]
    fn all_that_was_sent_is_whole() {
        let plan = plan();
        let counts = check(&plan, &packets(&plan));
        assert!(counts.is_whole() && counts.expected > 950, "{counts:?}");
    }

    #[test]
    fn planted_damage_is_found() {
        let plan = Plan { duplicate_ppm: 0, ..plan() };
        let whole = packets(&plan);
        let sent = whole.len() as u64;

        let mut lost = whole.clone();
        lost.drain(100..103);
        assert_eq!(
            check(&plan, &lost),
            Counts { expected: sent, found: sent - 3, missing: 3, ..Counts::default() }
        );

        let mut twice = whole.clone();
        twice.insert(500, whole[400].clone());
        assert_eq!(
            check(&plan, &twice),
            Counts { expected: sent, found: sent, duplicated: 1, ..Counts::default() }
        );

        for byte in [0, 1, 5, 12, 171] {
            let mut damaged = whole.clone();
            damaged[200][byte] ^= 1;
            let counts = check(&plan, &damaged);
            assert_eq!(
                (counts.found, counts.corrupt + counts.unexpected),
                (sent - 1, 1),
                "byte {byte}: {counts:?}"
            );
        }

        let mut short = whole.clone();
        short[200].pop();
        assert_eq!(check(&plan, &short).corrupt, 1);

        let mut strange = whole.clone();
        strange.push(b"no rtp".to_vec());
        let mut other = whole[0].clone();
        other[8] ^= 1;
        strange.push(other);
        let never = (0..plan.turns).find(|i| plan.copies(&plan.stream(0, 0), *i, plan.turns) == 0).unwrap();
        strange.push(packet(&plan, never));
        assert_eq!(check(&plan, &strange).unexpected, 3);
    }

    #[test]
    fn a_copy_on_purpose_that_came_once_is_missing() {
        let plan = plan();
        let mut packets = packets(&plan);
        let twin = (1..packets.len()).find(|at| packets[*at] == packets[at - 1]).unwrap();
        packets.remove(twin);
        assert_eq!(check(&plan, &packets).missing, 1);
    }

    #[test]
    fn long_gaps_and_many_wraps_do_not_confuse_the_index() {
        let plan = Plan { turns: 200_000, loss_ppm: 0, reorder_ppm: 0, duplicate_ppm: 0, ..plan() };
        let ends = [packet(&plan, 0), packet(&plan, 199_999)];
        let counts = check(&plan, &ends);
        assert_eq!((counts.found, counts.missing), (2, 199_998));
    }

    fn raw_file(plan: &Plan, lead: usize) -> Vec<u8> {
        let stream = plan.stream(0, 0);
        let mut file = vec![0xff; lead + plan.turns as usize * 160];
        for index in (0..plan.turns).filter(|index| plan.copies(&stream, *index, plan.turns) > 0) {
            file[lead + index as usize * 160..][..160].copy_from_slice(&packet(plan, index)[12..]);
        }
        file
    }

    fn check_raw(plan: &Plan, file: &[u8]) -> (Option<usize>, Counts) {
        let mut check = StreamCheck::new(plan, 0, 0, plan.turns);
        let lead = check.raw(file, 0xff);
        (lead, Counts { rtcp_expected: 0, ..check.counts })
    }

    #[test]
    fn a_raw_file_is_whole_wherever_it_begins() {
        for lead in [0, 1, 160, 8_000] {
            let (found, counts) = check_raw(&plan(), &raw_file(&plan(), lead));
            assert_eq!(found, Some(lead));
            assert!(counts.is_whole() && counts.expected > 900, "{counts:?}");
        }
    }

    #[test]
    fn planted_damage_in_a_raw_file_is_found() {
        let plan = Plan { loss_ppm: 0, ..plan() };
        let file = raw_file(&plan, 80);
        let damaged = |damage: fn(&mut Vec<u8>)| {
            let mut file = file.clone();
            damage(&mut file);
            check_raw(&plan, &file).1
        };
        let sent = u64::from(plan.turns);
        assert_eq!(damaged(|file| file[80 + 1_600..][..160].fill(0xff)).missing, 1);
        assert_eq!(damaged(|file| file[80 + 1_700] ^= 1).corrupt, 1);
        assert_eq!(damaged(|file| file[3] = 0).unexpected, 1);
        assert_eq!(damaged(|file| file.push(0)).unexpected, 1);
        let cut = damaged(|file| file.truncate(80 + 160 * 900));
        assert_eq!((cut.found, cut.missing), (900, 100));
        let shifted = damaged(|file| drop(file.drain(80 + 160 * 500..80 + 160 * 501)));
        assert_eq!((shifted.found, shifted.corrupt + shifted.missing), (500, sent - 500));
    }

    #[test]
    fn a_gap_that_is_not_silent_is_unexpected() {
        let plan = plan();
        let never = (0..plan.turns).find(|i| plan.copies(&plan.stream(0, 0), *i, plan.turns) == 0).unwrap();
        let mut file = raw_file(&plan, 0);
        file[never as usize * 160] = 0;
        assert_eq!(check_raw(&plan, &file).1.unexpected, 1);
    }
}
