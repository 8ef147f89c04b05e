//! What can be asked of a run.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::codec::{Audio, Codec};
use super::plan::{Plan, ppm};

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Udp,
    Tcp,
    Tls,
}

/// What makes the packets and sends them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// A socket per stream, and one io_uring submission for all packets that are due: sendmmsg(2) over many sockets
    Sendmmsg,
    /// A BPF program in the kernel, straight into an interface: a million packets a second from less than a core. Media of all
    /// calls begins when the last is set up. No RTCP, no --loss, --reorder or --duplicate; needs CAP_BPF and CAP_NET_ADMIN; a veth
    /// takes such packets when its other end has GRO on (`ethtool -K NAME gro on`) or an XDP program
    Xdp,
}

/// Whom `--transport tls` believes, and who it is itself.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Tls {
    /// CAs of the recorder's certificate, as PEM; it has to name the target's address
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// Believe whoever answers
    #[arg(long)]
    pub tls_insecure: bool,
    /// Our own certificate, for a recorder that asks for one
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
}

#[derive(Clone, Debug, clap::Args)]
pub struct RunOptions {
    /// SIP address of the recorder
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:5060")]
    pub target: SocketAddr,
    #[arg(long, value_enum, default_value = "udp")]
    pub transport: Transport,
    #[command(flatten)]
    pub tls: Tls,
    /// Recording sessions to set up
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub calls: u32,
    /// INVITEs per second, and BYEs
    #[arg(long, value_name = "CALLS/S", default_value_t = 100.0, value_parser = positive)]
    pub rate: f64,
    /// Seconds of media in each call
    #[arg(long, value_name = "S", default_value_t = 10.0, value_parser = positive)]
    pub duration: f64,
    /// m-lines of each call
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub streams: u32,
    #[arg(long, value_enum, default_value = "sendmmsg")]
    pub engine: Engine,
    /// Interface that packets of `--engine xdp` leave through: a NIC, or the generator's end of a veth pair
    #[arg(long, value_name = "NAME", required_if_eq("engine", "xdp"))]
    pub xdp_interface: Option<String>,
    #[arg(long, value_enum, default_value = "pcmu")]
    pub codec: Codec,
    /// What the packets carry; `tone` can be listened to [default: random; tagged with `--engine xdp`]
    #[arg(long, value_enum)]
    pub audio: Option<Audio>,
    /// Milliseconds of audio in one packet
    #[arg(long, value_name = "MS", default_value_t = 20, value_parser = clap::value_parser!(u32).range(5..=60))]
    pub ptime: u32,
    /// Decides every payload, loss, swap and copy
    #[arg(long, value_name = "K", default_value_t = 1)]
    pub seed: u64,
    /// Share of packets that are left out on purpose
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    pub loss: f64,
    /// Share of packets that leave behind their successor (at most 0.5)
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    pub reorder: f64,
    /// Share of packets that are sent twice
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    pub duplicate: f64,
    /// Local address of SIP and media [default: as routed to the target]
    #[arg(long, value_name = "IP")]
    pub local_ip: Option<IpAddr>,
    /// Process whose CPU time and memory are reported
    #[arg(long, value_name = "PID")]
    pub recorder_pid: Option<u32>,
    /// The recorder's directory: verify this run's recordings when it is over
    #[arg(long, value_name = "DIR")]
    pub verify_dir: Option<PathBuf>,
}

impl Default for RunOptions {
    fn default() -> RunOptions {
        RunOptions {
            target: SocketAddr::from(([127, 0, 0, 1], 5060)),
            transport: Transport::Udp,
            tls: Tls::default(),
            calls: 10,
            rate: 100.0,
            duration: 10.0,
            streams: 2,
            engine: Engine::Sendmmsg,
            xdp_interface: None,
            codec: Codec::Pcmu,
            audio: None,
            ptime: 20,
            seed: 1,
            loss: 0.0,
            reorder: 0.0,
            duplicate: 0.0,
            local_ip: None,
            recorder_pid: None,
            verify_dir: None,
        }
    }
}

impl RunOptions {
    pub fn plan(&self, run: String) -> Plan {
        Plan {
            run,
            seed: self.seed,
            calls: self.calls,
            streams: self.streams,
            codec: self.codec,
            audio: self.audio(),
            ptime_ms: self.ptime,
            turns: ((self.duration * 1_000.0 / f64::from(self.ptime)).ceil() as u32).max(1),
            loss_ppm: ppm(self.loss),
            reorder_ppm: ppm(self.reorder),
            duplicate_ppm: ppm(self.duplicate),
            sender_reports: self.engine != Engine::Xdp,
        }
    }

    fn audio(&self) -> Audio {
        self.audio.unwrap_or(match self.engine {
            Engine::Sendmmsg => Audio::Random,
            Engine::Xdp => Audio::Tagged,
        })
    }

    /// Why what is asked for cannot be had together.
    pub fn contradiction(&self) -> Option<&'static str> {
        let xdp = self.engine == Engine::Xdp;
        match () {
            () if self.transport == Transport::Tls && self.tls.tls_ca.is_none() != self.tls.tls_insecure => {
                Some("--transport tls has to know whom to believe: give --tls-ca, or --tls-insecure")
            }
            () if self.audio() == Audio::Tone && !matches!(self.codec, Codec::Pcmu | Codec::Pcma) => {
                Some("--audio tone is made as G.711 only: use --codec pcmu or pcma")
            }
            () if xdp && self.audio() != Audio::Tagged => {
                Some("--engine xdp makes payloads in the kernel, which can do --audio tagged only")
            }
            () if xdp && self.codec.bytes_per_ms().is_none() => {
                Some("--engine xdp makes packets of one length: use --codec pcmu, pcma or g722")
            }
            () if xdp && self.loss + self.reorder + self.duplicate > 0.0 => Some(
                "--engine xdp sends every packet once and in order: \
                 use --engine sendmmsg for --loss, --reorder and --duplicate",
            ),
            () if xdp && self.xdp_interface.is_none() => {
                Some("--engine xdp needs to know where its packets leave: give --xdp-interface")
            }
            () => None,
        }
    }
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    let fits = number > 0.0 && number <= 1_000_000.0;
    if fits { Ok(number) } else { Err("must be above 0 and at most 1000000".to_owned()) }
}

fn probability(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=1.0).contains(&number) { Ok(number) } else { Err("must lie between 0 and 1".to_owned()) }
}
