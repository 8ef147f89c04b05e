//! What was typed. [`super::config`] says what it means.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::engine::media_source::Kind;
use crate::limits::{CONNECTIONS_PER_SOURCE, RESOURCE_NAME_MAX};
use crate::proto::manifest::Format;

/// The port of SIP over UDP and TCP (RFC 3261 §19.1.2).
pub const SIP_PORT: u16 = 5060;
/// That of SIP over TLS (RFC 3261 §19.1.2).
pub const SIPS_PORT: u16 = 5061;
/// CPU numbers end here: the size of the kernel's affinity mask as libc has it.
const CPUS_MAX: usize = 1_024;

/// A SIPREC session recording server: SIP and RTP in through io_uring, pcap or raw files out.
#[derive(Parser, Debug)]
#[command(name = "sipreel", version, arg_required_else_help = true, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Record every SIPREC session that arrives, until SIGTERM or SIGINT
    ///
    /// Without a flag it listens on 0.0.0.0:5060 (UDP and TCP) and writes below ./recordings; it needs no privilege.
    Record(Box<RecordArgs>),
    /// Show the counters of the running recorder
    Stats(StatsArgs),
    /// List the sessions that are being recorded now
    Sessions(ClientArgs),
    /// End the session of a recording: its SRC gets a BYE, its files are completed
    End(EndArgs),
    /// List recordings that are whole: all of them, or those of one communication session or call
    ///
    /// In the order of time, with what continues what: after a failover one call has several recordings. It reads the
    /// manifests below DIR and asks no recorder. Exit code 1 when a manifest could not be read.
    Recordings(RecordingsArgs),
    /// Look at this box and say what will hurt: limits, kernel, network card, ports, clock, disk
    ///
    /// Exit code: 0 nothing worse than a note, 1 warnings, 2 something that will fail or lose packets (or flags that
    /// cannot work). It changes nothing; it writes to the disk for two seconds, and leaves nothing on it.
    Doctor(DoctorArgs),
    /// Explain the codes of findings about metadata: what is wrong, how much it matters, what the RFC says
    Explain(ExplainArgs),
    /// Record 20 calls on loopback, prove the recordings, and show how to listen to them
    Demo(DemoArgs),
}

#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// The directory that recordings go to [default: the running recorder's, else ./recordings]
    ///
    /// It is not made; what does not exist yet is judged by the directory above it.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// Ports for RTP and RTCP [default: the running recorder's, else 20000-39999]
    ///
    /// How many streams there may be, and so what is enough of everything, follows from them.
    #[arg(long, value_name = "LO-HI", value_parser = parse_ports)]
    pub media_ports: Option<Ports>,

    /// An interface for AF_XDP; repeatable [default: look at those of hardware that are up]
    ///
    /// What AF_XDP needs is then needed: what lacks is no note but a warning or a failure.
    #[arg(long, value_name = "NAME")]
    pub xdp_interface: Vec<String>,

    /// The recorder's --stats-socket [default: the places where `sipreel record` puts it]
    ///
    /// When a recorder answers, its limits, ports and losses are looked at.
    #[arg(long, value_name = "PATH")]
    pub stats_socket: Option<PathBuf>,

    /// Do not measure the disk
    ///
    /// It is never measured while calls are recorded.
    #[arg(long)]
    pub no_disk: bool,

    /// One JSON object: the machine, counts by level, and the findings, the worst first
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// A code, or how one begins: `metadata.participant` [default: all]
    #[arg(value_name = "CODE")]
    pub code: Option<String>,
}

#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Where the recordings go [default: a new directory below the one for temporary files]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// How they are laid out
    #[arg(long, value_enum, default_value = "pcap")]
    pub format: Format,
}

/// Of a flag that cannot repeat the last one counts: what a service's environment appends wins over what its unit says.
#[derive(Args, Debug)]
#[command(args_override_self = true)]
pub struct RecordArgs {
    /// Where recordings go, as DIR/YYYY/MM/DD/HH/ID; made if missing
    ///
    /// One file system of its own keeps a full disk from stopping the rest of the host.
    #[arg(long, value_name = "DIR", default_value = "./recordings")]
    pub dir: PathBuf,

    /// Where a recording goes whose files cannot be opened in --dir: that disk is full, read-only or gone [default: nowhere]
    ///
    /// Without it such a call is refused with 503 or 500, and the SRC may go to another recorder. Choose another disk.
    #[arg(long, value_name = "DIR")]
    pub fallback_dir: Option<PathBuf>,

    /// SIP over UDP: listen here; repeatable; `none` switches UDP off
    ///
    /// An address without a port means port 5060. Name one address on a host with several networks, so that only the
    /// SBC's network can open sessions.
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:5060", value_parser = parse_listen)]
    pub sip_udp: Vec<Listen>,

    /// SIP over TCP: listen here; repeatable; `none` switches TCP off
    ///
    /// Prefer TCP for the SBC's trunk: an INVITE with metadata is often larger than one datagram without fragments.
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:5060", value_parser = parse_listen)]
    pub sip_tcp: Vec<Listen>,

    /// SIP over TLS 1.2 and 1.3: listen here; repeatable; an address without a port means port 5061 [default: none]
    ///
    /// RFC 7866 §12 wants it where the network is not trusted: metadata names who speaks with whom. Needs --tls-cert and --tls-key.
    #[arg(long, value_name = "ADDR", value_parser = parse_listen_tls)]
    pub sip_tls: Vec<Listen>,

    /// The recorder's certificate and those between it and its CA, as PEM
    ///
    /// SRCs compare its names with the host that they call. It is read again on SIGHUP; one that cannot be used then leaves the
    /// old one in place.
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key, as PEM without a passphrase: RSA, ECDSA or Ed25519
    ///
    /// A handshake costs its core 0.14 ms with ECDSA P-256 and 0.86 ms with RSA 2048.
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Mutual TLS: only who has a certificate of one of these CAs may connect; PEM
    ///
    /// RFC 7866 §12.1 wants both sides to know who the other is. The names in the SRC's certificate go to the log and to the
    /// manifest.
    #[arg(long, value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,

    /// TCP and TLS connections that one address (IPv6: one /64) may have at once
    ///
    /// There are 1,024 in all: no source takes those of the others. An SBC opens a handful.
    #[arg(long, value_name = "N", default_value_t = CONNECTIONS_PER_SOURCE)]
    pub max_connections_per_source: usize,

    /// The address to which SRCs are told to send RTP [default: the local address that the INVITE came to]
    ///
    /// Needed when media has a network of its own, or when a NAT stands between SRC and recorder.
    #[arg(long, value_name = "IP")]
    pub media_ip: Option<IpAddr>,

    /// Ports for RTP (even) and RTCP (the next); two for every stream
    ///
    /// All are bound at start, so a call can never fail for a port that another program took. A call of two streams
    /// takes two pairs: the default range holds 10,000 streams.
    #[arg(long, value_name = "LO-HI", default_value_t = Ports::DEFAULT, value_parser = parse_ports)]
    pub media_ports: Ports,

    /// How media is received: one of three ways to the same recordings, or the best that is possible here
    ///
    /// `sockets` needs nothing and costs most; `steered` needs CAP_BPF and CAP_NET_ADMIN; `xdp` goes past the kernel's
    /// network stack and needs --xdp-interface and CAP_NET_RAW besides. `auto` tells in the log why it took no better one;
    /// any other is taken, or the start fails.
    #[arg(long, value_enum, value_name = "KIND", default_value = "auto")]
    pub media_source_kind: Kind,

    /// AF_XDP: take the media that arrives at this interface from its receive queues; repeatable
    ///
    /// All other traffic stays with the kernel. As many queues as --cores is what it is best with (ethtool -L).
    #[arg(long, value_name = "NAME")]
    pub xdp_interface: Vec<String>,

    /// Tell the sender of each stream by RTCP what came of it, every 5 s on average
    ///
    /// A report leaves from the port and address that the media came to, and goes to where the stream's RTCP or RTP comes
    /// from; it shows the SRC what is lost on the way. `off` when a firewall or a test counts every packet.
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true, default_value = "on")]
    pub rtcp_reports: Switch,

    /// Keep SRCs to the letter of RFC 7866 and RFC 7865: refuse what breaks a MUST
    ///
    /// An INVITE then needs +sip.src and the option tag siprec, and metadata that has an error or worse is refused with
    /// 488 and a Warning that names it. Without this flag calls are recorded whatever their metadata is: most deployed SRCs
    /// break some rule. `sipreel explain` lists the rules.
    #[arg(long)]
    pub strict_siprec: bool,

    /// Put into refusals a body that says why: application/problem+json
    ///
    /// For those who bring an SRC into service. It makes refusals longer, and some SRCs do not expect a body there.
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true, default_value = "off")]
    pub explain_refusals: Switch,

    /// Answer with SDP and metadata of the participants, for SRCs that expect it
    ///
    /// Others take a multipart answer for none. On UDP the metadata is left out where the 200 would not fit one packet.
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true, default_value = "off")]
    pub answer_metadata: Switch,

    /// How long a port pair rests before its next call
    ///
    /// Late packets of the call before must not end up in the next one.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub port_cooldown: Duration,

    /// The session timer asked of an SRC that knows of timers (RFC 4028) and asks for none; `0`: none
    ///
    /// An SRC that has died says no BYE: halfway through this time the recorder asks whether it is still there, and ends the
    /// recording when no answer comes. What an SRC asks for itself is taken as it is.
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = parse_duration)]
    pub session_expires: Duration,

    /// The shortest session timer accepted; shorter ones are refused with 422
    ///
    /// Each refresh is a message: raise it where thousands of sessions ask for short timers.
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = parse_duration)]
    pub min_se: Duration,

    /// Record INVITEs with an SDP offer that nothing marks as SIPREC
    ///
    /// Cisco's network-based recording and calls forked by a proxy come so. `off` refuses them with 403, so that a
    /// stray call is not recorded.
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true, default_value = "off")]
    pub plain_sdp: Switch,

    /// Answer an INVITE without an offer with one of ours: one audio stream, G.711, G.722, G.729
    ///
    /// Cisco phones that fork their media (built-in bridge) call so, once for each direction, and nothing else marks them.
    /// With `--format raw` the offer is G.711 µ-law alone. `off` refuses them with 488.
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true, default_value = "off")]
    pub empty_invite: Switch,

    /// CPUs to record on, one thread each: `0-3,6` [default: all that this process may use]
    ///
    /// Leave a CPU to the rest of the host when it has other work, or to the network card's interrupts.
    #[arg(long, value_name = "LIST", value_parser = parse_cores)]
    pub cores: Option<Cores>,

    /// Recording sessions at once; more are refused with 503 [default: as many as the ports can carry]
    ///
    /// Set it to what the disk is known to sustain: a refusal is honest, a lost packet is not.
    #[arg(long, value_name = "N")]
    pub max_sessions: Option<usize>,

    /// Recording sessions at once of one source; more are refused with 486 [default: as many as there may be]
    ///
    /// A source is an IPv4 address or an IPv6 /64. One SBC that goes wrong then leaves room for the others.
    #[arg(long, value_name = "N")]
    pub max_sessions_per_source: Option<usize>,

    /// Requests a second, of all sources together, that begin something: INVITE, OPTIONS, garbage; 0: as many as come
    ///
    /// More are refused with 503. Requests of running calls are never counted. Off, because a recorder that refuses a trusted SBC
    /// at its peak loses calls; use it with --rate-limit-source where strangers can reach it. Bursts of 2 s pass.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub rate_limit: u32,

    /// The same for each source; 0: as many as come
    ///
    /// Give it a few times what the busiest SBC needs when all its calls come back at once.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub rate_limit_source: u32,

    /// Take SIP only from this network: `192.0.2.0/24`, `2001:db8::1`; repeatable [default: from everybody]
    ///
    /// Whoever can send an INVITE can fill the disk. Datagrams of others get no answer, their connections are closed at once.
    #[arg(long, value_name = "NETWORK", value_parser = parse_network)]
    pub allow: Vec<IpNet>,

    /// Take no SIP from this network, whatever --allow says; repeatable
    ///
    /// For the one host in an allowed network that should not be heard.
    #[arg(long, value_name = "NETWORK", value_parser = parse_network)]
    pub deny: Vec<IpNet>,

    /// Ask for a password: FILE has a line of user:realm:hash for each user, as htdigest writes it [default: nobody is asked]
    ///
    /// The hash is that of user:realm:password, by SHA-256 (64 digits) or MD5 (32); clients are offered what the file has, SHA-256 first.
    /// For an SRC that comes over a network which --allow cannot tell. OPTIONS outside of calls is never asked.
    #[arg(long, value_name = "FILE")]
    pub auth_users: Option<PathBuf>,

    /// The name of this recorder among others [default: the name of the host]
    ///
    /// In every manifest, in stats, in callbacks and in answers to OPTIONS, so that a fleet knows where a recording is. It
    /// survives a move to another host, which the host's name does not.
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    pub resource_id: Option<String>,

    /// Where this recorder is, in words of yours: `eu-west-1`, `ber2`
    ///
    /// It goes where --resource-id goes; a balancer may prefer recorders of its own region.
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    pub region: Option<String>,

    /// Which recorders this one belongs to, in words of yours: `contact-centre`, `canary`
    ///
    /// It goes where --resource-id goes; whoever collects recordings can tell fleets apart.
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    pub group: Option<String>,

    /// pcap: one file per call, Wireshark plays it; raw: one file of codec bytes per stream
    #[arg(long, value_enum, default_value_t = Format::Pcap)]
    pub format: Format,

    /// Bytes that a recording gathers before they are written: `64K` to `1M`, a multiple of 4K
    ///
    /// Every recording that can be open has a block and 40 KiB of spare ones, in memory from the start. Larger blocks cost fewer writes:
    /// at hundreds of thousands of packets a second 128K saves a third of the disk's CPU time.
    #[arg(long, value_name = "SIZE", default_value = "64K", value_parser = parse_size)]
    pub block_size: usize,

    /// Write what a recording has gathered after this time, full block or not
    ///
    /// It bounds what a power failure can take. Shorter costs more, smaller writes.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub flush_interval: Duration,

    /// On SIGTERM or SIGINT: how long running calls may go on before they are ended with BYE
    ///
    /// New calls are refused with 503 from the first moment, so that the SRC goes to another recorder.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = parse_duration)]
    pub drain_timeout: Duration,

    /// End a session whose streams all bring no packet for so long; 0: never
    ///
    /// An SRC that has died sends no BYE, and its ports would never come back. Sessions that are held are left alone, and RTCP
    /// counts as media; an SRC that sends neither in silence needs a longer time.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration)]
    pub media_timeout: Duration,

    /// End a session over TCP or TLS whose connection is gone, when neither media nor a message has come for so long; 0: never
    ///
    /// A connection that ends is not the end of a call: SRCs close idle ones, and send the BYE over another. But an SRC
    /// that is gone with all it sent need not be waited for as long as for one that is only silent.
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = parse_duration)]
    pub transport_timeout: Duration,

    /// End a session after so long, whatever comes; 0: never
    ///
    /// For sites where no call lasts for longer, and a recording that does must be the SRC's mistake.
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = parse_duration)]
    pub max_duration: Duration,

    /// Unix socket for `sipreel stats` and monitoring [default: $XDG_RUNTIME_DIR/sipreel.sock, else
    /// /run/sipreel/sipreel.sock]
    ///
    /// Give each recorder of a host its own. When the flag is absent and the default place cannot be written, the
    /// recorder warns and runs without.
    #[arg(long, value_name = "PATH")]
    pub stats_socket: Option<PathBuf>,

    /// Send events of recordings and alarms to this HTTP or HTTPS address as CloudEvents; repeatable
    ///
    /// Signed, and sent again until they are taken; an endpoint that is down delays neither calls nor other endpoints.
    /// Redirects are not followed. Give an HTTPS address wherever the way leads through a network of others.
    #[arg(long, value_name = "URL")]
    pub callback: Vec<String>,

    /// The secret that callbacks are signed with (HMAC-SHA256), at least 16 bytes, in the first line of this file
    ///
    /// While it is being changed there are two lines, and each request is signed with both.
    #[arg(long, value_name = "FILE")]
    pub callback_secret_file: Option<PathBuf>,

    /// PEM file of a certificate authority that signs for callback endpoints, besides those that this box trusts
    ///
    /// For an authority of your own.
    #[arg(long, value_name = "FILE")]
    pub callback_ca: Option<PathBuf>,

    /// Where events wait for their endpoints [default: DIR/.callbacks in the recordings directory]
    ///
    /// They survive a restart there. A file system of its own keeps them going when the recordings' disk is full.
    #[arg(long, value_name = "DIR")]
    pub callback_queue: Option<PathBuf>,

    /// Bytes of events that may wait; when there are more the oldest are dropped, counted and an alarm [default: 256M]
    ///
    /// An event has some 600 bytes, a call some four of them.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub callback_queue_size: Option<usize>,

    /// text: for people; json: one object a line, for log collectors
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// The least severe events that are logged
    ///
    /// info has two lines per call; warn suits a box with many calls a second.
    #[arg(long, value_enum, default_value_t = LogLevel::Info)]
    pub log_level: LogLevel,
}

#[derive(Args, Debug)]
pub struct EndArgs {
    /// The recording's id, as `sipreel sessions` shows it
    pub id: String,

    /// Why, in a few words, for the recording's manifest (`end_note`)
    #[arg(long, value_name = "TEXT")]
    pub cause: Option<String>,

    /// The recorder's --stats-socket [default: the places where `sipreel record` puts it]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct RecordingsArgs {
    /// The recordings directory, or a copy of it
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,

    /// Only recordings of this communication session (session_id of the metadata), and what they continue
    #[arg(long, value_name = "ID")]
    pub session_id: Option<String>,

    /// Only recordings of this Call-ID, and what they continue
    #[arg(long, value_name = "ID")]
    pub call_id: Option<String>,

    /// One JSON object a line: id, path, start, end, sessions, continues, Call-ID, resource
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct ClientArgs {
    /// The reply as the recorder sent it: one JSON object (stats), or one a line (sessions)
    #[arg(long)]
    pub json: bool,

    /// The recorder's --stats-socket [default: the places where `sipreel record` puts it]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct StatsArgs {
    #[command(flatten)]
    pub client: ClientArgs,

    /// The counters as Prometheus scrapes them, for a textfile collector or a script behind an HTTP server
    #[arg(long, conflicts_with = "json")]
    pub prometheus: bool,
}

/// One use of `--sip-udp`, `--sip-tcp` or `--sip-tls`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Listen {
    Off,
    At(SocketAddr),
}

/// `LO-HI`, both included, as typed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ports {
    pub first: u16,
    pub last: u16,
}

impl Ports {
    /// As `record` has them when nobody says otherwise.
    pub const DEFAULT: Ports = Ports { first: 20_000, last: 39_999 };
}

/// CPU numbers, ascending, each once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cores(pub Vec<usize>);

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

fn parse_listen(text: &str) -> Result<Listen, String> {
    parse_listen_at(text, SIP_PORT)
}

fn parse_listen_tls(text: &str) -> Result<Listen, String> {
    parse_listen_at(text, SIPS_PORT)
}

fn parse_listen_at(text: &str, port: u16) -> Result<Listen, String> {
    if text == "none" {
        return Ok(Listen::Off);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Listen::At(address));
    }
    text.trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>()
        .map(|ip| Listen::At(SocketAddr::new(ip, port)))
        .map_err(|_| format!("write it as 192.0.2.1:{port}, [2001:db8::1]:{port}, 192.0.2.1 or none"))
}

pub fn parse_ports(text: &str) -> Result<Ports, String> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|&port| port > 0);
    text.split_once('-')
        .and_then(|(first, last)| Some(Ports { first: port(first)?, last: port(last)? }))
        .ok_or_else(|| "write it as LO-HI with ports from 1 to 65535, such as 20000-39999".into())
}

pub fn parse_cores(text: &str) -> Result<Cores, String> {
    let mut cores = Vec::new();
    for item in text.split(',') {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        match (first.trim().parse::<usize>(), last.trim().parse::<usize>()) {
            (Ok(first), Ok(last)) if first <= last && last < CPUS_MAX => cores.extend(first..=last),
            _ => return Err("write it as a list of CPU numbers and ranges, such as 0-3,6".into()),
        }
        // A list may name a range over and over; no more than this many numbers are ever held.
        cores.sort_unstable();
        cores.dedup();
    }
    Ok(Cores(cores))
}

/// `500ms`, `5s`, `2m`, `1h`; a plain number is seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let milliseconds = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    match number.parse::<u64>().ok().and_then(|number| number.checked_mul(milliseconds)) {
        Some(total) if milliseconds > 0 => Ok(Duration::from_millis(total)),
        _ => Err("write it as 500ms, 5s, 2m or 1h; a plain number is seconds".into()),
    }
}

/// `192.0.2.0/24`; an address alone is a network of one.
fn parse_network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse::<IpNet>()
        .map(|network| network.trunc())
        .or_else(|_| address())
        .map_err(|_| "write it as 192.0.2.0/24, 2001:db8::/32 or one address".into())
}

/// What needs no quotes in a SIP header, a URI or a file name.
fn parse_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if !text.is_empty() && text.len() <= RESOURCE_NAME_MAX && text.chars().all(fits) {
        return Ok(text.to_owned());
    }
    Err(format!("write 1 to {RESOURCE_NAME_MAX} letters, digits, `-`, `.` or `_`"))
}

/// `65536`, `64K`, `1M`.
fn parse_size(text: &str) -> Result<usize, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" => Some(0),
        "K" | "k" => Some(10),
        "M" | "m" => Some(20),
        _ => None,
    };
    let size = shift.and_then(|shift| number.parse::<usize>().ok()?.checked_mul(1 << shift));
    size.ok_or_else(|| "write it as 64K, 1M or a number of bytes".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    /// `--help` is the manual: a flag without its reason, or without a line that says what it does, fails here.
    #[test]
    fn every_flag_of_record_is_explained() {
        let cli = Cli::command();
        let record = cli.find_subcommand("record").unwrap();
        let without_a_reason = ["format", "log_format", "help"];
        for flag in record.get_arguments() {
            let name = flag.get_id().as_str();
            assert!(flag.get_help().is_some(), "--{name} is not explained");
            let long = flag.get_long_help().is_some();
            assert!(long || without_a_reason.contains(&name), "--{name} has no reason");
        }
    }

    #[test]
    fn record_runs_without_a_flag() {
        let Command::Record(args) = Cli::try_parse_from(["sipreel", "record"]).unwrap().command else {
            panic!()
        };
        let everywhere = Listen::At("0.0.0.0:5060".parse().unwrap());
        assert_eq!((args.sip_udp, args.sip_tcp), (vec![everywhere], vec![everywhere]));
        assert_eq!(args.media_ports, Ports { first: 20_000, last: 39_999 });
        assert_eq!(args.dir, PathBuf::from("./recordings"));
        assert_eq!((args.flush_interval, args.drain_timeout), (Duration::from_secs(5), Duration::ZERO));
        assert_eq!((args.port_cooldown, args.format), (Duration::from_secs(10), Format::Pcap));
    }

    #[test]
    fn listeners_repeat_and_replace_the_default() {
        let argv =
            ["sipreel", "record", "--sip-udp", "[::1]:5070", "--sip-udp", "127.0.0.1", "--sip-tcp", "none"];
        let Command::Record(args) = Cli::try_parse_from(argv).unwrap().command else { panic!() };
        let at = |text: &str| Listen::At(text.parse().unwrap());
        assert_eq!(args.sip_udp, [at("[::1]:5070"), at("127.0.0.1:5060")]);
        assert_eq!(args.sip_tcp, [Listen::Off]);
    }

    #[test]
    fn the_last_of_a_flag_counts() {
        let argv = ["sipreel", "record", "--dir", "a", "--format", "raw", "--dir", "b"];
        let Command::Record(args) = Cli::try_parse_from(argv).unwrap().command else { panic!() };
        assert_eq!((args.dir, args.format), (PathBuf::from("b"), Format::Raw));
    }

    #[test]
    fn listeners_as_typed() {
        assert_eq!(parse_listen("[2001:db8::1]"), Ok(Listen::At("[2001:db8::1]:5060".parse().unwrap())));
        assert_eq!(parse_listen_tls("192.0.2.1"), Ok(Listen::At("192.0.2.1:5061".parse().unwrap())));
        assert_eq!(parse_listen("2001:db8::1"), Ok(Listen::At("[2001:db8::1]:5060".parse().unwrap())));
        for bad in ["", "5060", ":5060", "sbc.example:5060", "127.0.0.1:66000", "None"] {
            assert!(parse_listen(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_as_typed() {
        for (text, milliseconds) in
            [("500ms", 500), ("5s", 5_000), ("2m", 120_000), ("1h", 3_600_000), ("7", 7_000), ("0", 0)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for bad in ["", "s", "-1s", "1.5s", "5 s", "5d", "99999999999999999999", "18446744073709551615h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_as_typed() {
        for (text, bytes) in [("64K", 65_536), ("128k", 131_072), ("1M", 1 << 20), ("65536", 65_536)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "K", "64KiB", "-1", "1.5M", "99999999999999999999", "18446744073709551615M"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn networks_as_typed() {
        let network = |text: &str| parse_network(text).map(|network| network.to_string());
        assert_eq!(network("192.0.2.7/24").as_deref(), Ok("192.0.2.0/24"));
        assert_eq!(network("192.0.2.7").as_deref(), Ok("192.0.2.7/32"));
        assert_eq!(network("2001:db8::1").as_deref(), Ok("2001:db8::1/128"));
        for bad in ["", "192.0.2.0/33", "sbc.example", "192.0.2", "::/129"] {
            assert!(network(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_as_typed() {
        assert_eq!(parse_name("eu-west_1.a"), Ok("eu-west_1.a".to_owned()));
        for bad in ["", "a b", "a;b", "a\"b", "a/b", "ü", &"x".repeat(65)] {
            assert!(parse_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cores_as_typed() {
        assert_eq!(parse_cores("0-3,6"), Ok(Cores(vec![0, 1, 2, 3, 6])));
        assert_eq!(parse_cores("2, 0-2"), Ok(Cores(vec![0, 1, 2])));
        for bad in ["", "a", "3-1", "0-", "-1", "0,,1", "0-18446744073709551615", "1024"] {
            assert!(parse_cores(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_as_typed() {
        assert_eq!(parse_ports("20000-20001"), Ok(Ports { first: 20_000, last: 20_001 }));
        for bad in ["", "20000", "20000-", "0-9", "1-65536", "a-b", "1-2-3"] {
            assert!(parse_ports(bad).is_err(), "{bad}");
        }
    }
}
