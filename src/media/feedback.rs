//! What a stream's sender is told of it, and where that is sent (RFC 3550 §6.4.2, RFC 4961).
//!
//! The address is the one that packets came from. An offer's own (`c=`, `a=rtcp`) is that of the SRC behind a NAT or an SBC, and
//! would make the recorder send wherever somebody's SDP points.

use std::net::{IpAddr, SocketAddr};

use crate::clock::Wall;
use crate::limits::SSRCS_PER_STREAM;
use crate::media::stream::Figures;
use crate::media::{Channel, Packet};
use crate::proto::rtcp::{ReceiverReport, ReportBlock, SenderReport};

const _: () = assert!(SSRCS_PER_STREAM <= ReceiverReport::BLOCKS_MAX);

/// A report that is to be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Report {
    /// Which of the stream's ports it leaves from, and at which of our addresses.
    pub channel: Channel,
    pub local: IpAddr,
    pub to: SocketAddr,
    blocks: [ReportBlock; SSRCS_PER_STREAM],
    used: usize,
}

impl Report {
    /// At least one.
    pub fn blocks(&self) -> &[ReportBlock] {
        &self.blocks[..self.used]
    }
}

/// What there is to report of a stream besides its figures. Few packets touch it.
#[derive(Debug, Default)]
pub struct Feedback {
    rtp: Option<Way>,
    rtcp: Option<Way>,
    /// By index of the source.
    sources: [Known; SSRCS_PER_STREAM],
}

/// The way that a packet came.
#[derive(Clone, Copy, Debug)]
struct Way {
    channel: Channel,
    peer: SocketAddr,
    local: IpAddr,
}

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// As last reported.
    received: u64,
    lost: u64,
    /// Time in its last report, and when that came; 0 and 0 before the first.
    report: u32,
    report_at: Wall,
}

impl Feedback {
    /// An RTP packet: not each of them, but the first of a source and one every few seconds.
    pub fn rtp(&mut self, packet: &Packet<'_>) {
        self.rtp = Some(Way::of(Channel::Rtp, packet));
    }

    pub fn rtcp(&mut self, channel: Channel, packet: &Packet<'_>) {
        self.rtcp = Some(Way::of(channel, packet));
    }

    /// A report of the source with this index.
    pub fn sender_report(&mut self, source: usize, report: SenderReport, at: Wall) {
        if let Some(source) = self.sources.get_mut(source) {
            (source.report, source.report_at) = (report.time, at);
        }
    }

    /// The report on what has come since the last one; sources that were silent are not in it. `None`: all were, or nobody
    /// knows where to send it.
    pub fn report(&mut self, figures: impl Iterator<Item = Figures>, mux: bool, now: Wall) -> Option<Report> {
        let Way { channel, peer, local } = self.way_back(mux)?;
        let blocks = [ReportBlock::default(); SSRCS_PER_STREAM];
        let mut report = Report { channel, local, to: peer, blocks, used: 0 };
        for (known, figures) in self.sources.iter_mut().zip(figures) {
            if figures.received != known.received {
                report.blocks[report.used] = known.block(&figures, now);
                report.used += 1;
            }
        }
        (report.used > 0).then_some(report)
    }

    /// Back to where RTCP came from, else to where it would come from: the port after that of RTP, or with rtcp-mux its own. Only
    /// to a host that has sent RTP of this stream: a report goes to nobody who did not ask for it.
    fn way_back(&self, mux: bool) -> Option<Way> {
        let rtp = self.rtp?;
        match self.rtcp.filter(|rtcp| rtcp.peer.ip() == rtp.peer.ip()) {
            Some(rtcp) => Some(rtcp),
            None if mux => Some(rtp),
            None => {
                let port = rtp.peer.port().checked_add(1)?;
                Some(Way { channel: Channel::Rtcp, peer: SocketAddr::new(rtp.peer.ip(), port), ..rtp })
            }
        }
    }
}

impl Way {
    fn of(channel: Channel, packet: &Packet<'_>) -> Way {
        Way { channel, peer: packet.from, local: packet.to.ip() }
    }
}

impl Known {
    fn block(&mut self, figures: &Figures, now: Wall) -> ReportBlock {
        // Fewer than before: they were late, or their source restarted.
        let lost = figures.lost.saturating_sub(self.lost);
        let expected = lost + figures.received.saturating_sub(self.received);
        (self.received, self.lost) = (figures.received, figures.lost);
        let came = if self.report_at == Wall(0) { now } else { self.report_at };
        ReportBlock {
            ssrc: figures.ssrc,
            fraction_lost: ((lost << 8) / expected.max(1)).min(255) as u8,
            lost: figures.lost,
            highest: figures.highest,
            jitter: figures.jitter,
            last_report: self.report,
            since_last_report: fractions(now.0.saturating_sub(came.0)),
        }
    }
}

/// Nanoseconds as 65,536ths of a second, at most 18 hours.
fn fractions(nanos: u64) -> u32 {
    u32::try_from(u128::from(nanos) * 65_536 / 1_000_000_000).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn packet(from: &str) -> Packet<'static> {
        let to = "198.51.100.2:20000".parse().unwrap();
        Packet { at: Wall(SECOND), from: from.parse().unwrap(), to, bytes: &[], frame: None }
    }

    fn figures(received: u64, lost: u64) -> Figures {
        Figures { ssrc: 7, received, lost, highest: 100, jitter: 3 }
    }

    #[test]
    fn reports_go_back_the_way_that_packets_came() {
        let [rtp, rtcp] = [Some("192.0.2.1:4000"), Some("192.0.2.1:9")];
        let (elsewhere, last_port) = (Some("192.0.2.66:4001"), Some("192.0.2.1:65535"));
        for (rtp, rtcp, mux, expected) in [
            (None, None, false, None),
            (None, rtcp, false, None),
            (rtp, None, false, Some((Channel::Rtcp, "192.0.2.1:4001"))),
            (rtp, None, true, Some((Channel::Rtp, "192.0.2.1:4000"))),
            (rtp, rtcp, false, Some((Channel::Rtcp, "192.0.2.1:9"))),
            (rtp, rtcp, true, Some((Channel::Rtcp, "192.0.2.1:9"))),
            (rtp, elsewhere, false, Some((Channel::Rtcp, "192.0.2.1:4001"))),
            (last_port, None, false, None),
        ] {
            let mut feedback = Feedback::default();
            rtp.into_iter().for_each(|from| feedback.rtp(&packet(from)));
            rtcp.into_iter().for_each(|from| feedback.rtcp(Channel::Rtcp, &packet(from)));
            let report = feedback.report([figures(1, 0)].into_iter(), mux, Wall(SECOND));
            let found = report.map(|report| (report.channel, report.to));
            assert_eq!(
                found,
                expected.map(|(channel, to)| (channel, to.parse().unwrap())),
                "{rtp:?} {rtcp:?}"
            );
            assert!(report.is_none_or(|report| report.local.to_string() == "198.51.100.2"));
        }
    }

    #[test]
    fn each_report_is_on_what_came_since_the_last() {
        let mut feedback = Feedback::default();
        feedback.rtp(&packet("192.0.2.1:4000"));
        let mut report = |received, lost, now| {
            let report = feedback.report([figures(received, lost)].into_iter(), false, Wall(now));
            let fraction = report.map(|report| (report.blocks()[0].fraction_lost, report.blocks()[0].lost));
            if received == 90 {
                feedback.sender_report(0, SenderReport { ssrc: 7, time: 0xabcd }, Wall(2 * SECOND));
            }
            (fraction, report.map(|report| report.blocks()[0].since_last_report))
        };
        assert_eq!(report(90, 10, SECOND), (Some((25, 10)), Some(0)), "no sender report yet");
        assert_eq!(report(90, 10, SECOND), (None, None), "nothing since");
        assert_eq!(report(140, 10, 3 * SECOND + SECOND / 2), (Some((0, 10)), Some(98_304)), "1.5 s");
        assert_eq!(report(141, 210, SECOND), (Some((254, 210)), Some(0)), "the clock was set back");
        assert_eq!(
            report(241, 110, 40_000 * SECOND),
            (Some((0, 110)), Some(2_621_308_928)),
            "late, not lost"
        );
        assert_eq!(report(242, 110, u64::MAX).1, Some(u32::MAX));
    }

    #[test]
    fn sources_that_were_silent_are_left_out() {
        let mut feedback = Feedback::default();
        feedback.rtp(&packet("192.0.2.1:4000"));
        let all = |received: [u64; 9]| received.map(|received| figures(received, 0)).into_iter();
        let first = feedback.report(all([1; 9]), false, Wall(0)).unwrap();
        assert_eq!(first.blocks().len(), SSRCS_PER_STREAM);
        let second = feedback.report(all([1, 1, 2, 1, 1, 1, 1, 3, 9]), false, Wall(0)).unwrap();
        assert_eq!(second.blocks().len(), 2);
    }
}
