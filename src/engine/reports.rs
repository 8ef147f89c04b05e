//! Receiver reports: what a recorder tells those who send to it, so that they see what the way to it loses (RFC 7866 §8.1.8).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::media_source::MediaSource;
use crate::clock::{Mono, Now};
use crate::counters::ReactorCounters;
use crate::limits;
use crate::media::{Channel, Recording, Report};
use crate::proto::rtcp::{ReceiverReport, ReportBlock};
use crate::session::PortPair;

/// The sender of all reports of one reactor.
pub struct Reports {
    cname: String,
    random: StdRng,
    packet: [u8; limits::RTCP_PACKET_MAX],
    counters: Arc<ReactorCounters>,
}

/// Characters of our CNAME: 96 bits, as many as RFC 7022 §4.2 asks for.
const CNAME: usize = 24;
const _: () = assert!(ReceiverReport::len(limits::SSRCS_PER_STREAM, CNAME) <= limits::RTCP_PACKET_MAX);

/// A name for this run of the recorder, which tells nothing about its host (RFC 7022 §4.2).
pub fn cname() -> String {
    format!("{:0CNAME$x}", StdRng::from_os_rng().random::<u128>() >> 32)
}

/// Of one stream: who we are in its RTP session, and when its next report is due. The first is due when there is something
/// to report: to one receiver a report may be sent at once (RFC 3550 §6.2).
#[derive(Clone, Copy, Debug, Default)]
pub struct Schedule {
    ssrc: Option<u32>,
    due: Mono,
}

impl Reports {
    pub fn new(cname: String, counters: Arc<ReactorCounters>) -> Reports {
        let (random, packet) = (StdRng::from_os_rng(), [0; limits::RTCP_PACKET_MAX]);
        Reports { cname, random, packet, counters }
    }

    /// Sends the report of a stream if it is due and there is something to tell.
    pub fn send(
        &mut self,
        source: &MediaSource,
        recording: &mut Recording,
        (stream, ports): (u8, PortPair),
        schedule: &mut Schedule,
        now: Now,
    ) {
        if now.mono < schedule.due {
            return;
        }
        let Some(report) = recording.receiver_report(stream, now.wall) else { return };
        schedule.due = now.mono + self.interval();
        let ssrc = self.ssrc(schedule, report.blocks());
        let Reports { cname, packet, counters, .. } = self;
        let Some(len) = (ReceiverReport { ssrc, blocks: report.blocks(), cname }).write(packet) else {
            return;
        };
        let Report { channel, local, to, .. } = report;
        let offset = u16::from(channel == Channel::Rtcp);
        let (index, from) = (ports.index * 2 + offset, SocketAddr::new(local, ports.rtp + offset));
        match source.send(index.into(), from, to, &packet[..len]) {
            Ok(()) => counters.rtcp_sent.add(1),
            Err(_) => counters.rtcp_send_errors.add(1),
        }
    }

    /// Half to one and a half times the usual one (RFC 3550 §6.3.1): streams that began together do not stay together.
    fn interval(&mut self) -> Duration {
        limits::RTCP_INTERVAL.mul_f64(self.random.random_range(0.5..1.5))
    }

    /// Ours, and nobody else's in this session (RFC 3550 §8.2).
    fn ssrc(&mut self, schedule: &mut Schedule, theirs: &[ReportBlock]) -> u32 {
        loop {
            match schedule.ssrc {
                Some(ssrc) if theirs.iter().all(|block| block.ssrc != ssrc) => return ssrc,
                _ => schedule.ssrc = Some(self.random.random()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reports() -> Reports {
        Reports::new(cname(), Arc::default())
    }

    #[test]
    fn intervals_are_spread_around_the_usual_one() {
        let mut reports = reports();
        let intervals: Vec<Duration> = (0..1_000).map(|_| reports.interval()).collect();
        let usual = limits::RTCP_INTERVAL;
        assert!(intervals.iter().all(|&interval| usual / 2 <= interval && interval <= usual * 3 / 2));
        let mean = intervals.iter().sum::<Duration>() / 1_000;
        assert!(mean.abs_diff(usual) < usual / 20, "{mean:?}");
    }

    #[test]
    fn our_ssrc_stays_and_gives_way_to_a_source_that_has_it() {
        let (mut reports, mut schedule) = (reports(), Schedule::default());
        let ours = reports.ssrc(&mut schedule, &[]);
        assert_eq!(reports.ssrc(&mut schedule, &[]), ours);
        let theirs = ReportBlock { ssrc: ours, ..ReportBlock::default() };
        assert_ne!(reports.ssrc(&mut schedule, &[theirs]), ours);
    }

    #[test]
    fn a_cname_is_of_one_run() {
        assert_eq!(cname().len(), CNAME);
        assert_ne!(cname(), cname());
    }
}
