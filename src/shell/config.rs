//! What the flags mean, checked against each other and against the host before anything is opened.
//!
//! A combination that cannot work is refused here, with one sentence that says what to change.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use super::callbacks::{self, Endpoints, Typed};
use super::cli::{Cores, Listen, Ports, RecordArgs, Switch};
use crate::engine::Settings;
use crate::engine::media_source::Kind;
use crate::engine::tls::identity::IdentityFiles;
use crate::limits::{
    AUTH_FILE_MAX, BLOCK_SIZE_MAX, BLOCK_SIZE_MIN, DISK_ALIGNMENT, MIN_SE, NETWORKS_MAX, REACTORS_MAX,
    RESOURCE_NAME_MAX, SESSIONS_MAX, SILENCE_MIN, TCP_CONNECTIONS, TICK,
};
use crate::proto::manifest::Resource;
use crate::session::admission::{Lists, Policy};
use crate::session::digest::Credentials;
use crate::session::{Ends, Terms};

/// What of the host the meaning of the flags depends on.
#[derive(Clone, Debug)]
pub struct Host<'a> {
    /// CPUs in the affinity mask of this process, ascending.
    pub cores: Vec<usize>,
    /// `$XDG_RUNTIME_DIR`.
    pub runtime_dir: Option<&'a OsStr>,
    /// Its name, as the kernel has it.
    pub name: String,
}

/// A recorder that can be started.
#[derive(Clone, Debug)]
pub struct Config {
    pub settings: Settings,
    pub drain_timeout: Duration,
    pub stats_socket: StatsSocket,
    pub callbacks: Option<Endpoints>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StatsSocket {
    /// This path or no start.
    Given(PathBuf),
    /// The first of these that can be made; if none, the recorder runs without.
    Default(Vec<PathBuf>),
}

/// Why the recorder does not start. Each displays as one sentence that names the flag and what to change.
#[derive(Debug)]
pub enum Refusal {
    NoListener,
    TlsWithoutFiles,
    TlsUnused { flag: &'static str },
    ConnectionsPerSource(usize),
    OffAndAddress { flag: &'static str },
    ListenTwice { flag: &'static str, address: SocketAddr },
    MediaIp(IpAddr),
    PortsReversed(Ports),
    PortsStartOdd(Ports),
    PortsEndEven(Ports),
    PortsOverlap { ports: Ports, sip: SocketAddr },
    NoInterface,
    InterfaceUnused(Kind),
    InterfaceTwice(String),
    CoreAbsent { core: usize, allowed: Vec<usize> },
    CoresTooMany(usize),
    CoresBeyondPorts { cores: usize, pairs: usize },
    NoSessions,
    SessionsTooMany(usize),
    NoSessionsOfSource,
    SourceRate { total: u32, source: u32 },
    NetworksTooMany { flag: &'static str, count: usize },
    AllowedAndDenied(IpNet),
    AuthUsers { file: PathBuf, what: String },
    BlockSize(usize),
    FlushTooShort(Duration),
    MinSeTooShort(Duration),
    SessionExpiresTooShort { asked: Duration, least: Duration },
    SilenceTooShort { flag: &'static str, typed: Duration },
    Directory { dir: PathBuf, what: &'static str, error: io::Error },
    Callbacks(callbacks::Refusal),
}

impl Config {
    pub fn new(args: &RecordArgs, host: &Host<'_>) -> Result<Config, Refusal> {
        let Listeners { sip_udp, sip_tcp, sip_tls } = listeners(args)?;
        let media_ports = media_ports(args.media_ports, &sip_udp)?;
        let settings = Settings {
            sip_udp,
            sip_tcp,
            tls: tls(args, &sip_tls)?,
            sip_tls,
            connections_per_source: connections_per_source(args.max_connections_per_source)?,
            media_ip: media_ip(args.media_ip)?,
            media_ports,
            port_cooldown: args.port_cooldown,
            media_source: args.media_source_kind,
            xdp_interfaces: xdp_interfaces(args.media_source_kind, &args.xdp_interface)?,
            cores: cores(args.cores.as_ref(), &host.cores, pairs(media_ports))?,
            sessions_max: sessions_max(args.max_sessions)?,
            format: args.format,
            block_size: block_size(args.block_size)?,
            flush_interval: flush_interval(args.flush_interval)?,
            rtcp_reports: args.rtcp_reports == Switch::On,
            strict_siprec: args.strict_siprec,
            explain_refusals: args.explain_refusals == Switch::On,
            answer_metadata: args.answer_metadata == Switch::On,
            ends: Ends {
                media_timeout: silence("--media-timeout", args.media_timeout)?,
                transport_timeout: silence("--transport-timeout", args.transport_timeout)?,
                max_duration: Some(args.max_duration).filter(|time| !time.is_zero()),
            },
            product: concat!("sipreel/", env!("CARGO_PKG_VERSION")).into(),
            terms: terms(args)?,
            resource: Resource {
                id: args.resource_id.clone().unwrap_or_else(|| resource_id(&host.name)),
                region: args.region.clone(),
                group: args.group.clone(),
            },
            lists: lists(&args.allow, &args.deny)?,
            admission: admission(args)?,
            // Last, because it leaves a directory behind.
            dir: directory(&args.dir)?,
        };
        let stats_socket = match &args.stats_socket {
            Some(path) => StatsSocket::Given(path.clone()),
            None => StatsSocket::Default(default_sockets(host.runtime_dir)),
        };
        let callbacks = callbacks(args, &settings.dir)?;
        Ok(Config { settings, drain_timeout: args.drain_timeout, stats_socket, callbacks })
    }
}

fn callbacks(args: &RecordArgs, dir: &Path) -> Result<Option<Endpoints>, Refusal> {
    let typed = Typed {
        urls: &args.callback,
        secret_file: args.callback_secret_file.as_deref(),
        ca: args.callback_ca.as_deref(),
        queue: args.callback_queue.as_deref(),
        queue_size: args.callback_queue_size,
        dir,
    };
    Endpoints::new(&typed).map_err(Refusal::Callbacks)
}

fn lists(allow: &[IpNet], deny: &[IpNet]) -> Result<Lists, Refusal> {
    for (flag, list) in [("--allow", allow), ("--deny", deny)] {
        if list.len() > NETWORKS_MAX {
            return Err(Refusal::NetworksTooMany { flag, count: list.len() });
        }
    }
    match allow.iter().find(|network| deny.iter().any(|denied| denied.contains(*network))) {
        Some(&network) => Err(Refusal::AllowedAndDenied(network)),
        None => Ok(Lists { allow: allow.to_vec(), deny: deny.to_vec() }),
    }
}

fn admission(args: &RecordArgs) -> Result<Policy, Refusal> {
    let limit = |typed: u32| (typed > 0).then_some(typed);
    let (rate, rate_of_source) = (limit(args.rate_limit), limit(args.rate_limit_source));
    match (rate, rate_of_source) {
        (Some(total), Some(source)) if source > total => return Err(Refusal::SourceRate { total, source }),
        _ => {}
    }
    let sessions_of_source = match args.max_sessions_per_source {
        Some(0) => return Err(Refusal::NoSessionsOfSource),
        typed => typed.unwrap_or(usize::MAX),
    };
    let credentials = args.auth_users.as_deref().map(credentials).transpose()?;
    Ok(Policy { rate, rate_of_source, sessions_of_source, credentials })
}

fn credentials(file: &Path) -> Result<Credentials, Refusal> {
    let refuse = |what: String| Refusal::AuthUsers { file: file.to_path_buf(), what };
    let mut text = String::new();
    fs::File::open(file)
        .and_then(|opened| opened.take(AUTH_FILE_MAX).read_to_string(&mut text))
        .map_err(|e| refuse(format!("cannot be read ({e})")))?;
    Credentials::parse(&text).map_err(refuse)
}

/// The host's name as a resource may be called.
fn resource_id(name: &str) -> String {
    let fit = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_') { c } else { '-' };
    let id: String = name.trim().chars().take(RESOURCE_NAME_MAX).map(fit).collect();
    if id.is_empty() { "sipreel".to_owned() } else { id }
}

/// Where the stats socket is when nobody said, best place first. A recorder under systemd has no `XDG_RUNTIME_DIR`
/// while the operator who asks it has one: clients look in all of them.
pub fn default_sockets(runtime_dir: Option<&OsStr>) -> Vec<PathBuf> {
    // A relative path is to be ignored (XDG Base Directory Specification).
    let own = runtime_dir.map(Path::new).filter(|dir| dir.is_absolute());
    own.into_iter().chain([Path::new("/run/sipreel")]).map(|dir| dir.join("sipreel.sock")).collect()
}

struct Listeners {
    sip_udp: Vec<SocketAddr>,
    sip_tcp: Vec<SocketAddr>,
    sip_tls: Vec<SocketAddr>,
}

fn listeners(args: &RecordArgs) -> Result<Listeners, Refusal> {
    let sip_udp = addresses("--sip-udp", &args.sip_udp)?;
    let sip_tcp = addresses("--sip-tcp", &args.sip_tcp)?;
    let sip_tls = addresses("--sip-tls", &args.sip_tls)?;
    if sip_udp.is_empty() && sip_tcp.is_empty() && sip_tls.is_empty() {
        return Err(Refusal::NoListener);
    }
    Ok(Listeners { sip_udp, sip_tcp, sip_tls })
}

/// Who the recorder is for those that come to these addresses.
fn tls(args: &RecordArgs, sip_tls: &[SocketAddr]) -> Result<Option<IdentityFiles>, Refusal> {
    if sip_tls.is_empty() {
        let files = [
            ("--tls-cert", &args.tls_cert),
            ("--tls-key", &args.tls_key),
            ("--tls-client-ca", &args.tls_client_ca),
        ];
        return match files.iter().find(|(_, file)| file.is_some()) {
            Some((flag, _)) => Err(Refusal::TlsUnused { flag }),
            None => Ok(None),
        };
    }
    let (Some(certificate), Some(key)) = (args.tls_cert.clone(), args.tls_key.clone()) else {
        return Err(Refusal::TlsWithoutFiles);
    };
    Ok(Some(IdentityFiles { certificate, key, client_ca: args.tls_client_ca.clone() }))
}

fn connections_per_source(typed: usize) -> Result<usize, Refusal> {
    let fits = (1..=TCP_CONNECTIONS).contains(&typed);
    if fits { Ok(typed) } else { Err(Refusal::ConnectionsPerSource(typed)) }
}

fn addresses(flag: &'static str, typed: &[Listen]) -> Result<Vec<SocketAddr>, Refusal> {
    let mut addresses = Vec::new();
    for listen in typed {
        match *listen {
            Listen::Off if typed.len() > 1 => return Err(Refusal::OffAndAddress { flag }),
            Listen::Off => {}
            Listen::At(address) if address.port() != 0 && addresses.contains(&address) => {
                return Err(Refusal::ListenTwice { flag, address });
            }
            Listen::At(address) => addresses.push(address),
        }
    }
    Ok(addresses)
}

fn media_ip(ip: Option<IpAddr>) -> Result<Option<IpAddr>, Refusal> {
    match ip {
        Some(ip) if ip.is_unspecified() || ip.is_multicast() => Err(Refusal::MediaIp(ip)),
        ip => Ok(ip),
    }
}

pub fn media_ports(ports: Ports, sip_udp: &[SocketAddr]) -> Result<(u16, u16), Refusal> {
    let Ports { first, last } = ports;
    if last <= first {
        return Err(Refusal::PortsReversed(ports));
    }
    if first % 2 == 1 {
        return Err(Refusal::PortsStartOdd(ports));
    }
    if last.is_multiple_of(2) {
        return Err(Refusal::PortsEndEven(ports));
    }
    match sip_udp.iter().find(|sip| (first..=last).contains(&sip.port())) {
        Some(&sip) => Err(Refusal::PortsOverlap { ports, sip }),
        None => Ok((first, last)),
    }
}

fn xdp_interfaces(kind: Kind, typed: &[String]) -> Result<Vec<String>, Refusal> {
    match (kind, typed) {
        (Kind::Xdp, []) => Err(Refusal::NoInterface),
        (Kind::Sockets | Kind::Steered, [_, ..]) => Err(Refusal::InterfaceUnused(kind)),
        _ => match typed.iter().enumerate().find(|(n, name)| typed[..*n].contains(name)) {
            Some((_, name)) => Err(Refusal::InterfaceTwice(name.clone())),
            None => Ok(typed.to_vec()),
        },
    }
}

fn pairs((first, last): (u16, u16)) -> usize {
    (usize::from(last) - usize::from(first)).div_ceil(2)
}

/// Every core gets its share of the ports, so there are never more cores than pairs.
fn cores(typed: Option<&Cores>, allowed: &[usize], pairs: usize) -> Result<Vec<usize>, Refusal> {
    let Some(Cores(cores)) = typed else {
        return Ok(allowed.iter().copied().take(REACTORS_MAX.min(pairs)).collect());
    };
    if let Some(&core) = cores.iter().find(|core| !allowed.contains(core)) {
        return Err(Refusal::CoreAbsent { core, allowed: allowed.to_vec() });
    }
    if cores.len() > REACTORS_MAX {
        return Err(Refusal::CoresTooMany(cores.len()));
    }
    if cores.len() > pairs {
        return Err(Refusal::CoresBeyondPorts { cores: cores.len(), pairs });
    }
    Ok(cores.clone())
}

fn sessions_max(typed: Option<usize>) -> Result<Option<usize>, Refusal> {
    match typed {
        Some(0) => Err(Refusal::NoSessions),
        Some(n) if n > SESSIONS_MAX => Err(Refusal::SessionsTooMany(n)),
        typed => Ok(typed),
    }
}

fn block_size(typed: usize) -> Result<usize, Refusal> {
    let fits = (BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&typed) && typed.is_multiple_of(DISK_ALIGNMENT);
    if fits { Ok(typed) } else { Err(Refusal::BlockSize(typed)) }
}

fn flush_interval(typed: Duration) -> Result<Duration, Refusal> {
    if typed < TICK { Err(Refusal::FlushTooShort(typed)) } else { Ok(typed) }
}

fn terms(args: &RecordArgs) -> Result<Terms, Refusal> {
    let (asked, min_se) = (args.session_expires, args.min_se);
    if min_se < MIN_SE {
        return Err(Refusal::MinSeTooShort(min_se));
    }
    if !asked.is_zero() && asked < min_se {
        return Err(Refusal::SessionExpiresTooShort { asked, least: min_se });
    }
    let session_expires = Some(asked).filter(|asked| !asked.is_zero());
    let [plain_sdp, empty_invite] = [args.plain_sdp, args.empty_invite].map(|typed| typed == Switch::On);
    let fallback_dir = args.fallback_dir.as_deref().map(directory).transpose()?;
    let fallback_dir = fallback_dir.map(|dir| dir.to_string_lossy().into_owned());
    Ok(Terms { session_expires, min_se, plain_sdp, empty_invite, fallback_dir })
}

/// A time after which silence ends a session; 0 is never.
fn silence(flag: &'static str, typed: Duration) -> Result<Option<Duration>, Refusal> {
    match typed {
        Duration::ZERO => Ok(None),
        typed if typed < SILENCE_MIN => Err(Refusal::SilenceTooShort { flag, typed }),
        typed => Ok(Some(typed)),
    }
}

/// Makes the directory if it is missing, and proves with a file that recordings can be written there.
fn directory(dir: &Path) -> Result<PathBuf, Refusal> {
    let refuse = |what| move |error| Refusal::Directory { dir: dir.to_path_buf(), what, error };
    fs::create_dir_all(dir).map_err(refuse("be made"))?;
    let dir = fs::canonicalize(dir).map_err(refuse("be opened"))?;
    let probe = dir.join(format!(".sipreel-probe-{}", std::process::id()));
    fs::write(&probe, b"sipreel").map_err(refuse("be written"))?;
    fs::remove_file(&probe).map_err(refuse("be written"))?;
    Ok(dir)
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NoListener => write!(
                f,
                "--sip-udp none and --sip-tcp none leave nothing to listen on: give one of them an address"
            ),
            Refusal::TlsWithoutFiles => {
                write!(
                    f,
                    "--sip-tls has no certificate or no key: give --tls-cert and --tls-key, both as PEM"
                )
            }
            Refusal::TlsUnused { flag } => {
                write!(f, "{flag} says nothing without --sip-tls: give it an address, or take {flag} out")
            }
            Refusal::ConnectionsPerSource(n) => write!(
                f,
                "--max-connections-per-source {n} does not fit: give 1 to {TCP_CONNECTIONS}, which is all there are"
            ),
            Refusal::OffAndAddress { flag } => {
                write!(f, "{flag} has both an address and none: take one of the two out")
            }
            Refusal::ListenTwice { flag, address } => write!(f, "{flag} has {address} twice: take one out"),
            Refusal::MediaIp(ip) => write!(
                f,
                "--media-ip {ip} is not an address that an SRC can send to: give one address of this host, or leave the flag out"
            ),
            Refusal::PortsReversed(ports) => write!(
                f,
                "--media-ports {ports} holds no pair of RTP and RTCP port: write the lower port first, and at least two"
            ),
            Refusal::PortsStartOdd(ports) => write!(
                f,
                "--media-ports {ports} starts at an odd port, and RTP takes the even one of each pair: start at {}",
                ports.first.wrapping_add(1)
            ),
            Refusal::PortsEndEven(ports) => write!(
                f,
                "--media-ports {ports} ends at an even port, which leaves its RTCP port out: end at {}",
                ports.last + 1
            ),
            Refusal::PortsOverlap { ports, sip } => {
                write!(f, "--sip-udp {sip} lies inside --media-ports {ports}: move one of the two")
            }
            Refusal::NoInterface => write!(
                f,
                "--media-source-kind xdp receives from no interface: name them with --xdp-interface"
            ),
            Refusal::InterfaceUnused(kind) => write!(
                f,
                "--xdp-interface says nothing to --media-source-kind {kind}: take one of the two out"
            ),
            Refusal::InterfaceTwice(name) => write!(f, "--xdp-interface has {name} twice: take one out"),
            Refusal::CoreAbsent { core, allowed } => write!(
                f,
                "--cores names CPU {core}, and this process may use only {}: choose among these",
                Listed(allowed)
            ),
            Refusal::CoresTooMany(n) => {
                write!(f, "--cores names {n} CPUs, and sipreel uses at most {REACTORS_MAX}: name fewer")
            }
            Refusal::CoresBeyondPorts { cores, pairs } => write!(
                f,
                "--cores names {cores} CPUs, and --media-ports holds only {pairs} port pairs: widen the range or name fewer"
            ),
            Refusal::NoSessions => {
                write!(f, "--max-sessions 0 would refuse every call: give at least 1, or leave the flag out")
            }
            Refusal::SessionsTooMany(n) => write!(
                f,
                "--max-sessions {n} is above the {SESSIONS_MAX} that one recorder can hold: give a smaller number"
            ),
            Refusal::NoSessionsOfSource => write!(
                f,
                "--max-sessions-per-source 0 would refuse every call: give at least 1, or leave the flag out"
            ),
            Refusal::SourceRate { total, source } => write!(
                f,
                "--rate-limit-source {source} is above --rate-limit {total}, so one source could take all: lower the first or raise the second"
            ),
            Refusal::NetworksTooMany { flag, count } => write!(
                f,
                "{flag} names {count} networks, and at most {NETWORKS_MAX} are taken: join some, or give the list to a firewall"
            ),
            Refusal::AllowedAndDenied(network) => write!(
                f,
                "--allow {network} lies inside a network of --deny, which wins: take one of the two out"
            ),
            Refusal::AuthUsers { file, what } => write!(
                f,
                "--auth-users {} {what}: write a line of user:realm:hash for each user",
                file.display()
            ),
            Refusal::BlockSize(typed) => write!(
                f,
                "--block-size {typed} does not fit: give {}K to {}K, a multiple of {}K",
                BLOCK_SIZE_MIN / 1_024,
                BLOCK_SIZE_MAX / 1_024,
                DISK_ALIGNMENT / 1_024
            ),
            Refusal::FlushTooShort(typed) => write!(
                f,
                "--flush-interval {} ms is shorter than the {} ms at which recordings are looked at: give at least that",
                typed.as_millis(),
                TICK.as_millis()
            ),
            Refusal::MinSeTooShort(typed) => write!(
                f,
                "--min-se {} s is shorter than RFC 4028 lets anybody ask for: give at least {} s",
                typed.as_secs(),
                MIN_SE.as_secs()
            ),
            Refusal::SessionExpiresTooShort { asked, least } => write!(
                f,
                "--session-expires {} s is shorter than --min-se {} s: make it longer, or 0 to ask for no timer",
                asked.as_secs(),
                least.as_secs()
            ),
            Refusal::SilenceTooShort { flag, typed } => write!(
                f,
                "{flag} {} ms is too short to tell silence from a pause: give at least {} s, or 0 for never",
                typed.as_millis(),
                SILENCE_MIN.as_secs()
            ),
            Refusal::Directory { dir, what, error } => write!(
                f,
                "--dir {} cannot {what} ({error}): give a directory that this user can write",
                dir.display()
            ),
            Refusal::Callbacks(refusal) => refusal.fmt(f),
        }
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Ascending numbers the way `--cores` takes them: `0-3,6`.
pub struct Listed<'a>(pub &'a [usize]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = self.0.chunk_by(|a, b| a + 1 == *b);
        for (i, run) in runs.enumerate() {
            let comma = if i > 0 { "," } else { "" };
            match run {
                [one] => write!(f, "{comma}{one}")?,
                run => write!(f, "{comma}{}-{}", run[0], run[run.len() - 1])?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::cli::{Cli, Command};
    use clap::Parser;

    fn config(flags: &str) -> Result<Config, Refusal> {
        let dir = tempfile::tempdir().unwrap();
        let dir_flag = format!("--dir={}", dir.path().join("recordings").display());
        let argv = ["sipreel", "record", &dir_flag].into_iter().chain(flags.split_whitespace());
        let Command::Record(args) = Cli::try_parse_from(argv).unwrap().command else { panic!("not record") };
        Config::new(&args, &Host { cores: vec![0, 1, 2, 3, 6], runtime_dir: None, name: "rec1\n".into() })
    }

    /// The refusal of these flags: one sentence that says what to change, and so begins with a flag.
    fn refusal(flags: &str) -> Refusal {
        let refusal = config(flags).expect_err(flags);
        let sentence = refusal.to_string();
        assert!(
            sentence.starts_with("--") && sentence.contains(": ") && !sentence.contains('\n'),
            "{sentence}"
        );
        refusal
    }

    #[test]
    fn defaults_are_accepted() {
        let config = config("").unwrap();
        assert_eq!(config.settings.media_ports, (20_000, 39_999));
        assert_eq!(config.settings.cores, [0, 1, 2, 3, 6]);
        assert_eq!(config.settings.sip_udp, ["0.0.0.0:5060".parse().unwrap()]);
        assert!(config.settings.dir.is_absolute());
        assert!(config.settings.product.starts_with("sipreel/"));
    }

    #[test]
    fn callbacks_that_nobody_could_trust() {
        assert!(matches!(refusal("--callback http://a/x"), Refusal::Callbacks(callbacks::Refusal::NoSecret)));
        assert!(matches!(refusal("--callback-queue-size 300M"), Refusal::Callbacks(_)));
    }

    #[test]
    fn ends_of_sessions() {
        let ends = config("").unwrap().settings.ends;
        let seconds = Duration::from_secs;
        assert_eq!((ends.media_timeout, ends.transport_timeout), (Some(seconds(300)), Some(seconds(60))));
        assert_eq!(ends.max_duration, None);
        let ends = config("--media-timeout 0 --transport-timeout 0 --max-duration 4h").unwrap().settings.ends;
        assert_eq!(ends, Ends { max_duration: Some(seconds(14_400)), ..Ends::default() });
        for flag in ["--media-timeout", "--transport-timeout"] {
            assert!(matches!(refusal(&format!("{flag} 2999ms")), Refusal::SilenceTooShort { .. }));
        }
    }

    #[test]
    fn a_recorder_is_called_as_its_host_unless_it_has_a_name_of_its_own() {
        let Resource { id, region, group } = config("").unwrap().settings.resource;
        assert_eq!((id.as_str(), region, group), ("rec1", None, None));
        let named = config("--resource-id blue --region eu-west-1 --group canary").unwrap().settings.resource;
        assert_eq!(named.id, "blue");
        assert_eq!((named.region.as_deref(), named.group.as_deref()), (Some("eu-west-1"), Some("canary")));
        assert_eq!((resource_id("a b;c"), resource_id("\n")), ("a-b-c".to_owned(), "sipreel".to_owned()));
    }

    #[test]
    fn no_listener_at_all() {
        assert!(matches!(refusal("--sip-udp none --sip-tcp none"), Refusal::NoListener));
        assert!(config("--sip-udp none").is_ok() && config("--sip-tcp none").is_ok());
    }

    #[test]
    fn tls_with_half_of_what_it_needs() {
        assert!(matches!(refusal("--sip-tls 127.0.0.1"), Refusal::TlsWithoutFiles));
        assert!(matches!(refusal("--sip-tls 127.0.0.1 --tls-cert a"), Refusal::TlsWithoutFiles));
        assert!(matches!(refusal("--tls-client-ca ca"), Refusal::TlsUnused { flag: "--tls-client-ca" }));
        let only = "--sip-udp none --sip-tcp none --sip-tls 127.0.0.1 --tls-cert a --tls-key b";
        let settings = config(only).unwrap().settings;
        assert_eq!(settings.sip_tls, ["127.0.0.1:5061".parse().unwrap()]);
        assert_eq!(settings.tls.unwrap().key, PathBuf::from("b"));
    }

    #[test]
    fn connections_of_one_source() {
        for bad in ["0", "1025"] {
            let refused = refusal(&format!("--max-connections-per-source {bad}"));
            assert!(matches!(refused, Refusal::ConnectionsPerSource(_)));
        }
    }

    #[test]
    fn session_timers() {
        let terms = |flags: &str| config(flags).unwrap().settings.terms;
        assert_eq!(terms(""), Terms::default());
        assert_eq!(terms("--session-expires 0").session_expires, None);
        let longer = terms("--session-expires 1h --min-se 30m");
        assert_eq!(
            (longer.session_expires, longer.min_se.as_secs()),
            (Some(Duration::from_secs(3_600)), 1_800)
        );
        assert!(matches!(refusal("--min-se 89"), Refusal::MinSeTooShort(_)));
        assert!(matches!(refusal("--min-se 1h"), Refusal::SessionExpiresTooShort { .. }));
        assert!(terms("--plain-sdp on").plain_sdp && terms("--empty-invite on").empty_invite);
    }

    #[test]
    fn off_beside_an_address() {
        assert!(matches!(
            refusal("--sip-udp none --sip-udp 127.0.0.1"),
            Refusal::OffAndAddress { flag: "--sip-udp" }
        ));
        assert!(matches!(
            refusal("--sip-tcp none --sip-tcp none"),
            Refusal::OffAndAddress { flag: "--sip-tcp" }
        ));
    }

    #[test]
    fn one_address_twice() {
        assert!(matches!(refusal("--sip-tcp [::]:5060 --sip-tcp [::]:5060"), Refusal::ListenTwice { .. }));
        assert!(
            config("--sip-tcp 127.0.0.1:0 --sip-tcp 127.0.0.1:0").is_ok(),
            "port 0 is a new port each time"
        );
    }

    #[test]
    fn media_ip_that_nobody_can_send_to() {
        for ip in ["0.0.0.0", "::", "239.0.0.1"] {
            assert!(matches!(refusal(&format!("--media-ip {ip}")), Refusal::MediaIp(_)));
        }
        assert!(config("--media-ip 192.0.2.7").is_ok(), "behind a NAT it is no address of this host");
    }

    #[test]
    fn media_ports_that_hold_no_pairs() {
        assert!(matches!(refusal("--media-ports 20000-20000"), Refusal::PortsReversed(_)));
        assert!(matches!(refusal("--media-ports 30000-20000"), Refusal::PortsReversed(_)));
        assert!(refusal("--media-ports 20001-20005").to_string().ends_with("start at 20002"));
        assert!(refusal("--media-ports 20000-20010").to_string().ends_with("end at 20011"));
        assert_eq!(config("--media-ports 65534-65535").unwrap().settings.media_ports, (65_534, 65_535));
    }

    #[test]
    fn sip_port_inside_the_media_ports() {
        assert!(matches!(refusal("--sip-udp 127.0.0.1:20010"), Refusal::PortsOverlap { .. }));
        assert!(matches!(refusal("--media-ports 5060-5061"), Refusal::PortsOverlap { .. }));
        assert!(config("--sip-tcp 127.0.0.1:20010").is_ok(), "TCP and UDP ports are apart");
    }

    #[test]
    fn cores_outside_the_affinity_mask() {
        let refusal = refusal("--cores 0-5");
        assert!(matches!(refusal, Refusal::CoreAbsent { core: 4, .. }));
        assert!(refusal.to_string().contains("only 0-3,6"), "{refusal}");
        assert_eq!(config("--cores 6,1").unwrap().settings.cores, [1, 6]);
    }

    #[test]
    fn more_cores_than_port_pairs() {
        assert!(matches!(refusal("--cores 0-2 --media-ports 20000-20003"), Refusal::CoresBeyondPorts { .. }));
        assert_eq!(config("--media-ports 20000-20003").unwrap().settings.cores, [0, 1], "the default adapts");
    }

    #[test]
    fn more_cores_than_reactors() {
        let many: Vec<usize> = (0..=REACTORS_MAX).collect();
        let typed = Cores(many.clone());
        assert!(matches!(cores(Some(&typed), &many, 10_000), Err(Refusal::CoresTooMany(_))));
        assert_eq!(cores(None, &many, 10_000).unwrap().len(), REACTORS_MAX);
    }

    #[test]
    fn session_limits_that_make_no_sense() {
        assert!(matches!(refusal("--max-sessions 0"), Refusal::NoSessions));
        assert!(matches!(refusal("--max-sessions 100001"), Refusal::SessionsTooMany(_)));
        assert_eq!(config("--max-sessions 100000").unwrap().settings.sessions_max, Some(SESSIONS_MAX));
    }

    #[test]
    fn limits_of_a_source() {
        let open = config("").unwrap().settings;
        assert_eq!((open.admission.rate, open.admission.rate_of_source), (None, None));
        assert_eq!(open.admission.sessions_of_source, usize::MAX);
        assert!(open.lists.admit("192.0.2.1".parse().unwrap()));
        let flags = "--rate-limit 500 --rate-limit-source 100 --max-sessions-per-source 50";
        let admission = config(flags).unwrap().settings.admission;
        assert_eq!((admission.rate, admission.rate_of_source), (Some(500), Some(100)));
        assert_eq!(admission.sessions_of_source, 50);
        assert!(matches!(refusal("--max-sessions-per-source 0"), Refusal::NoSessionsOfSource));
        let swapped = refusal("--rate-limit 100 --rate-limit-source 500");
        assert!(matches!(swapped, Refusal::SourceRate { total: 100, source: 500 }));
    }

    #[test]
    fn users_from_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let flag = format!("--auth-users {}", file.path().display());
        assert!(matches!(refusal(&flag), Refusal::AuthUsers { .. }));
        assert!(refusal("--auth-users /nonexistent").to_string().contains("cannot be read"));
        fs::write(&file, format!("sbc:recorders:{}\n", "0".repeat(64))).unwrap();
        assert!(config(&flag).unwrap().settings.admission.credentials.is_some());
    }

    #[test]
    fn networks_that_contradict_each_other() {
        let networks = config("--allow 10.0.0.0/8 --allow ::1 --deny 10.1.0.0/16").unwrap().settings.lists;
        assert_eq!((networks.allow.len(), networks.deny.len()), (2, 1));
        assert!(matches!(refusal("--allow 10.1.2.0/24 --deny 10.1.0.0/16"), Refusal::AllowedAndDenied(_)));
        let many: Vec<IpNet> =
            (0..=NETWORKS_MAX as u32).map(|n| IpNet::from(IpAddr::from(n.to_be_bytes()))).collect();
        assert!(lists(&many[1..], &[]).is_ok());
        assert!(matches!(lists(&[], &many), Err(Refusal::NetworksTooMany { flag: "--deny", .. })));
    }

    #[test]
    fn flush_interval_that_cannot_be_kept() {
        assert!(matches!(refusal("--flush-interval 0"), Refusal::FlushTooShort(_)));
        assert!(matches!(refusal("--flush-interval 99ms"), Refusal::FlushTooShort(_)));
        assert!(config("--flush-interval 100ms").is_ok());
    }

    #[test]
    fn directory_that_cannot_be_used() {
        for (dir, what) in [("/dev/null/recordings", "be made"), ("/proc", "be written")] {
            let Err(Refusal::Directory { what: said, .. }) = directory(Path::new(dir)) else {
                panic!("{dir}")
            };
            assert_eq!(said, what);
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(directory(file.path()).unwrap_err().to_string().contains("--dir"));
    }

    #[test]
    fn directory_is_made_and_left_clean() {
        let parent = tempfile::tempdir().unwrap();
        let dir = directory(&parent.path().join("a/b")).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    }

    #[test]
    fn default_socket_follows_the_runtime_directory() {
        let system = PathBuf::from("/run/sipreel/sipreel.sock");
        assert_eq!(default_sockets(None), std::slice::from_ref(&system));
        assert_eq!(default_sockets(Some(OsStr::new(""))), std::slice::from_ref(&system));
        assert_eq!(default_sockets(Some(OsStr::new("run"))), std::slice::from_ref(&system));
        let own = PathBuf::from("/run/user/1000/sipreel.sock");
        assert_eq!(default_sockets(Some(OsStr::new("/run/user/1000"))), [own, system]);
    }

    #[test]
    fn cores_are_listed_as_they_are_typed() {
        assert_eq!(Listed(&[0, 1, 2, 3, 6, 8, 9]).to_string(), "0-3,6,8-9");
        assert_eq!(Listed(&[]).to_string(), "");
    }
}
