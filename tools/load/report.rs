//! What a run has to say, for people and for programs.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use super::codec::{Audio, Codec};
use super::media;
use super::options::{Engine, RunOptions, Transport};
use super::plan::Plan;
use super::signalling;
use super::usage::{self, Cpu};
use super::verify::VerifyReport;
use super::window::Window;

#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    pub run: String,
    pub seed: u64,
    pub target: String,
    pub transport: Transport,
    pub engine: Engine,
    pub codec: Codec,
    pub audio: Audio,
    pub ptime_ms: u32,
    pub streams_per_call: u32,
    pub interrupted: bool,
    pub calls: Calls,
    pub setup_ms: Quantiles,
    pub media: Media,
    /// Of `--recorder-pid`.
    pub recorder: Option<Recorder>,
    pub load: Option<Load>,
    pub verify: Option<VerifyReport>,
    /// What did not go as it should, in words. Empty: exit code 0.
    pub problems: Vec<String>,
    /// What limits the figures, but is no failure: a sender that was late.
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Calls {
    pub asked: u32,
    pub attempted: u32,
    pub established: u32,
    pub failed: u64,
    /// By code (`503`), `timeout`, or the name of a deviation.
    pub failures: BTreeMap<String, u64>,
    /// Messages that were none, or belonged to no call.
    pub garbage: u64,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Quantiles {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Media {
    pub packets_sent: u64,
    pub rtcp_sent: u64,
    /// Packets that the interface was given and did not send; `None`: they left through sockets.
    pub packets_dropped: Option<u64>,
    /// Packets of anybody that left through the interface meanwhile.
    pub interface_sent: Option<u64>,
    /// Packets that should have been sent and were not, because the kernel refused them.
    pub packets_refused: u64,
    pub refusal: Option<String>,
    pub seconds: f64,
    pub packets_per_second: f64,
    /// From when a packet was due to when the kernel had it.
    pub lateness_us: Quantiles,
    /// Packets later than a whole packet interval.
    pub late: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Recorder {
    pub cpu_ns_per_packet: f64,
    pub user_ns_per_packet: f64,
    pub system_ns_per_packet: f64,
    /// Over this time and these packets.
    pub seconds: f64,
    pub packets: u64,
    pub peak_memory_bytes: Option<u64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Load {
    pub cpu_ns_per_packet: f64,
    /// The media thread alone; on loopback and veth that includes the kernel's part of receiving.
    pub media_ns_per_packet: Option<f64>,
    /// The media thread alone, without what the kernel does for it.
    pub media_user_ns_per_packet: Option<f64>,
    pub user_seconds: f64,
    pub system_seconds: f64,
}

impl RunReport {
    pub(super) fn new(
        options: &RunOptions,
        plan: &Plan,
        signalling: &signalling::Figures,
        media: &media::Figures,
        window: &Window,
        begun: Option<Cpu>,
    ) -> RunReport {
        let mut report = RunReport {
            run: plan.run.clone(),
            seed: plan.seed,
            target: options.target.to_string(),
            transport: options.transport,
            engine: options.engine,
            codec: plan.codec,
            audio: plan.audio,
            ptime_ms: plan.ptime_ms,
            streams_per_call: plan.streams,
            interrupted: signalling.interrupted,
            calls: Calls::new(plan, signalling),
            setup_ms: Quantiles::of(&signalling.setup, 1e6),
            media: Media::new(media),
            recorder: Recorder::new(options.recorder_pid, window),
            load: Load::new(begun, media),
            verify: None,
            problems: Vec::new(),
            warnings: Vec::new(),
        };
        report.judge();
        report
    }

    fn judge(&mut self) {
        let Calls { asked, attempted, failed, .. } = self.calls;
        if failed > 0 {
            self.problems.push(format!("{failed} of {attempted} calls failed"));
        }
        if attempted < asked {
            self.problems.push(format!("stopped after {attempted} of {asked} calls"));
        }
        if self.media.packets_refused > 0 {
            let why = self.media.refusal.as_deref().unwrap_or("unknown");
            self.problems
                .push(format!("{} packets were refused by the kernel: {why}", self.media.packets_refused));
        }
        if let Some(dropped) = self.media.packets_dropped.filter(|dropped| *dropped > 0) {
            self.problems.push(format!("{dropped} packets were dropped by the interface before they left"));
        }
        if let Some(counted) = self.media.interface_sent.filter(|counted| *counted < self.media.packets_sent)
        {
            self.warnings.push(format!(
                "the interface has counted only {counted} packets that left: a veth needs GRO or an XDP program on its other end"
            ));
        }
        if self.media.late > 0 {
            self.warnings.push(format!(
                "the sender was late: {} packets by more than a packet interval, at worst {:.1} ms",
                self.media.late,
                self.media.lateness_us.max / 1e3
            ));
        }
    }

    pub(super) fn add_verification(&mut self, verified: VerifyReport) {
        if !verified.is_whole() {
            self.problems.push("the recordings do not hold what was sent".into());
        }
        self.verify = Some(verified);
    }

    pub fn is_good(&self) -> bool {
        self.problems.is_empty()
    }
}

impl Calls {
    fn new(plan: &Plan, figures: &signalling::Figures) -> Calls {
        Calls {
            asked: plan.calls,
            attempted: figures.attempted,
            established: figures.established,
            failed: figures.failures.values().sum(),
            failures: figures.failures.clone(),
            garbage: figures.garbage,
        }
    }
}

impl Quantiles {
    fn of(histogram: &Histogram<u64>, unit: f64) -> Quantiles {
        if histogram.is_empty() {
            return Quantiles::default();
        }
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / unit;
        Quantiles { p50: at(0.5), p99: at(0.99), max: histogram.max() as f64 / unit }
    }
}

impl Media {
    fn new(figures: &media::Figures) -> Media {
        let seconds = figures.span.map_or(Duration::ZERO, |(first, last)| last - first).as_secs_f64();
        let sent = figures.sent - figures.interface_dropped.unwrap_or(0).min(figures.sent);
        Media {
            packets_sent: sent,
            packets_dropped: figures.interface_dropped,
            interface_sent: figures.interface_sent,
            rtcp_sent: figures.rtcp_sent,
            packets_refused: figures.refused,
            refusal: figures.refusal.clone().filter(|_| figures.refused > 0),
            seconds,
            packets_per_second: if seconds > 0.0 { sent as f64 / seconds } else { 0.0 },
            lateness_us: Quantiles::of(&figures.lateness, 1e3),
            late: figures.late,
        }
    }
}

impl Recorder {
    fn new(pid: Option<u32>, window: &Window) -> Option<Recorder> {
        let (pid, measured) = (pid?, window.measured()?);
        let per_packet = |time: Duration| time.as_nanos() as f64 / measured.packets as f64;
        Some(Recorder {
            cpu_ns_per_packet: per_packet(measured.cpu.total()),
            user_ns_per_packet: per_packet(measured.cpu.user),
            system_ns_per_packet: per_packet(measured.cpu.system),
            seconds: measured.span.as_secs_f64(),
            packets: measured.packets,
            peak_memory_bytes: usage::peak_memory(pid),
        })
    }
}

impl Load {
    fn new(begun: Option<Cpu>, media: &media::Figures) -> Option<Load> {
        let used = usage::this_process()?.since(begun?);
        let packets = media.sent.max(1) as f64;
        Some(Load {
            cpu_ns_per_packet: used.total().as_nanos() as f64 / packets,
            media_ns_per_packet: media.cpu.map(|cpu| cpu.total().as_nanos() as f64 / packets),
            media_user_ns_per_packet: media.cpu.map(|cpu| cpu.user.as_nanos() as f64 / packets),
            user_seconds: used.user.as_secs_f64(),
            system_seconds: used.system.as_secs_f64(),
        })
    }
}

impl Display for RunReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Calls { attempted, established, failed, .. } = self.calls;
        writeln!(f, "calls     {attempted} attempted, {established} established, {failed} failed")?;
        if self.interrupted {
            writeln!(f, "          stopped on request before their time")?;
        }
        for (why, n) in &self.calls.failures {
            writeln!(f, "          {n} × {why}")?;
        }
        let Quantiles { p50, p99, max } = self.setup_ms;
        writeln!(f, "set-up    p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.2} ms")?;
        let media = &self.media;
        writeln!(
            f,
            "sent      {} RTP packets in {:.1} s ({:.0}/s), {} RTCP",
            media.packets_sent, media.seconds, media.packets_per_second, media.rtcp_sent
        )?;
        let Quantiles { p50, p99, max } = media.lateness_us;
        writeln!(f, "lateness  p50 {p50:.0} µs, p99 {p99:.0} µs, max {max:.0} µs")?;
        if let Some(recorder) = &self.recorder {
            writeln!(f, "recorder  {recorder}")?;
        }
        if let Some(load) = &self.load {
            write!(f, "this tool {:.0} ns CPU per packet", load.cpu_ns_per_packet)?;
            match load.media_ns_per_packet {
                Some(media) => writeln!(f, ", {media:.0} of it the media thread")?,
                None => writeln!(f)?,
            }
        }
        if let Some(verify) = &self.verify {
            write!(f, "{verify}")?;
        }
        self.warnings.iter().try_for_each(|warning| writeln!(f, "warning   {warning}"))?;
        self.problems.iter().try_for_each(|problem| writeln!(f, "PROBLEM   {problem}"))
    }
}

impl Display for Recorder {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.0} ns CPU per packet ({:.0} user, {:.0} system) over {:.1} s and {} packets",
            self.cpu_ns_per_packet,
            self.user_ns_per_packet,
            self.system_ns_per_packet,
            self.seconds,
            self.packets
        )?;
        match self.peak_memory_bytes {
            Some(bytes) => write!(f, ", peak memory {} MiB", bytes >> 20),
            None => Ok(()),
        }
    }
}

impl Display for VerifyReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        writeln!(
            f,
            "verified  {} recordings of {} runs in {:.1} s",
            self.recordings, self.runs, self.seconds
        )?;
        writeln!(
            f,
            "packets   {} expected, {} found, {} missing, {} duplicated, {} corrupt, {} unexpected",
            counts.expected,
            counts.found,
            counts.missing,
            counts.duplicated,
            counts.corrupt,
            counts.unexpected
        )?;
        writeln!(
            f,
            "besides   {} of {} RTCP, {} SIP messages",
            counts.rtcp_found, counts.rtcp_expected, counts.sip_messages
        )?;
        if self.foreign > 0 {
            writeln!(f, "foreign   {} recordings that this tool did not make", self.foreign)?;
        }
        self.unfinished.iter().try_for_each(|path| writeln!(f, "unfinished {}", path.display()))?;
        self.findings.iter().try_for_each(|finding| writeln!(f, "finding   {finding}"))?;
        match self.findings_total - self.findings.len() as u64 {
            0 => Ok(()),
            more => writeln!(f, "          and {more} more findings"),
        }
    }
}
