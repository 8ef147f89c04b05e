//! All system calls, all threads, all unsafe. The engine knows both planes and carries effects between them.
//!
//! | thread | owns |
//! |---|---|
//! | `reactor-N`, pinned, one per core | a ring, its media sockets, SIP sockets and connections, open recordings, write blocks |
//! | `control` | the session layer; the only writer of the session table |
//! | `directory` | making directories and files |
//! | `commit` | hashes, manifests, sync, rename |
//! | `recovery` | the same for what a dead recorder has left; ends when that is done |

pub mod blocks;
mod bpf;
mod buffers;
mod capability;
mod census;
mod commit;
mod connection;
mod control;
pub mod cpu;
mod datagram;
mod directory;
mod disk;
pub mod disk_probe;
pub mod ethtool;
mod instance;
mod interface;
pub mod link;
mod mailbox;
mod mapping;
pub mod media_source;
#[cfg(test)]
mod namespace;
mod orders;
mod prefetch;
pub mod probe;
mod published;
mod reactor;
mod recordings;
mod recovery;
mod reports;
mod ring;
mod tcp;
pub mod tls;
mod udp;

use std::fmt;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{Sender, bounded};
use hdrhistogram::Histogram;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rustls::ServerConfig;
use socket2::Socket;

use crate::counters::{ReactorCounters, RecoveryCounters, SessionCounters};
use crate::limits;
use crate::proto::manifest::{Format, Resource};
use crate::session::admission::{Lists, Policy};
use crate::session::table::Table;
use crate::session::{Ends, Event, PortPair, Rules, Sessions, Terms};

use blocks::Pool;
use capability::Capability;
use census::Census;
use control::Control;
pub use control::Noticed;
use disk::Files;
use instance::Instance;
use mailbox::{Inbox, Letter, Mailbox};
use media_source::{Attached, Kind, Part, Request};
use orders::{Orders, Waiting};
use published::{Published, Recorded};
use reactor::{Clock, Outbox, Reactor};
use recordings::guests::Neighbours;
use recordings::{Recordings, Storage};
use recovery::Recovery;
use reports::Reports;
use ring::Ring;
use tls::identity::{Identity, IdentityFiles, Unusable};

/// What the recorder is to do; the shell has checked that it makes sense.
#[derive(Clone, Debug)]
pub struct Settings {
    pub dir: PathBuf,
    /// Port 0: the kernel chooses; [`Recorder::sip_udp`] tells.
    pub sip_udp: Vec<SocketAddr>,
    pub sip_tcp: Vec<SocketAddr>,
    /// Not without `tls`.
    pub sip_tls: Vec<SocketAddr>,
    pub tls: Option<IdentityFiles>,
    /// Connections that one source may have.
    pub connections_per_source: usize,
    pub media_ip: Option<IpAddr>,
    /// First (even) and last (odd) media port.
    pub media_ports: (u16, u16),
    pub port_cooldown: Duration,
    pub media_source: Kind,
    /// Interfaces whose receive queues are taken.
    pub xdp_interfaces: Vec<String>,
    /// One reactor per core.
    pub cores: Vec<usize>,
    pub sessions_max: Option<usize>,
    pub format: Format,
    /// Bytes of a write block: a multiple of `limits::DISK_ALIGNMENT`.
    pub block_size: usize,
    pub flush_interval: Duration,
    /// Those who send media are told by RTCP what came of it.
    pub rtcp_reports: bool,
    /// What breaks a MUST of RFC 7866 or RFC 7865 is refused.
    pub strict_siprec: bool,
    /// Refusals have a body that says why.
    pub explain_refusals: bool,
    /// The 200 says in metadata who takes part.
    pub answer_metadata: bool,
    pub ends: Ends,
    /// For SIP headers and manifests: `sipreel/0.1.0`.
    pub product: String,
    pub terms: Terms,
    /// Which recorder this is: in manifests, answers to OPTIONS, stats.
    pub resource: Resource,
    /// Who may send SIP at all.
    pub lists: Lists,
    pub admission: Policy,
}

/// Why the recorder did not start, and what to change: one sentence.
#[derive(Debug)]
pub struct StartError(String);

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StartError {}

impl From<String> for StartError {
    fn from(sentence: String) -> StartError {
        StartError(sentence)
    }
}

/// What a recorder did in its life.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    pub committed: u64,
    /// Of these: with problems in the manifest.
    pub incomplete: u64,
    /// Left under their `.part` names.
    pub failed: u64,
}

/// What the stats socket reads. Nobody waits for it.
#[derive(Clone)]
pub struct Gauges {
    pub reactors: Vec<Arc<ReactorCounters>>,
    pub session: Arc<SessionCounters>,
    pub table: Arc<Table>,
    write_latency: Vec<Published>,
    batch: Vec<Published>,
    setup: Published,
    pub orders: Orders,
    pub recovery: Arc<RecoveryCounters>,
}

impl Gauges {
    /// Nanoseconds from submitting a disk write to its completion.
    pub fn write_latency(&self) -> Histogram<u64> {
        Published::sum(&self.write_latency)
    }

    /// Completions per turn of a reactor.
    pub fn batch(&self) -> Histogram<u64> {
        Published::sum(&self.batch)
    }

    /// Nanoseconds from INVITE to 200.
    pub fn setup(&self) -> Histogram<u64> {
        Published::sum(std::slice::from_ref(&self.setup))
    }
}

/// What [`Recorder::reload`] has read.
#[derive(Debug)]
pub enum Reloaded {
    /// There is nothing to read.
    Nothing,
    Identity {
        warnings: Vec<String>,
    },
}

/// A running recorder.
pub struct Recorder {
    pub sip_udp: Vec<SocketAddr>,
    pub sip_tcp: Vec<SocketAddr>,
    pub sip_tls: Vec<SocketAddr>,
    pub port_pairs: usize,
    pub sessions_max: usize,
    /// Not `Auto`.
    pub media_source: Kind,
    /// Which media source it is and why it is no better one.
    pub media_source_account: String,
    /// What works less well than asked for.
    pub warnings: Vec<String>,
    pub gauges: Gauges,
    tls: Option<IdentityFiles>,
    mailboxes: Vec<Mailbox>,
    events: Sender<Event>,
    control: JoinHandle<Outcome>,
    others: Vec<JoinHandle<()>>,
    /// Detached when all threads have ended.
    _attached: Attached,
    /// Ends the threads that only look after things.
    watching: Sender<()>,
    instance: Option<Instance>,
}

impl Recorder {
    /// Binds every socket, attaches programs, maps all memory, starts the threads; returns when every port is armed. The
    /// calling thread, and so every thread, is without the capabilities for that from then on. `listener` gets what is worth
    /// a log line, as far as it has room at once.
    pub fn start(settings: &Settings, listener: Option<Sender<Noticed>>) -> Result<Recorder, StartError> {
        let descriptors = cpu::raise_descriptor_limit();
        let direct = writable(&settings.dir)?;
        let elsewhere = settings.terms.fallback_dir.iter().map(PathBuf::from);
        let roots: Vec<PathBuf> = [settings.dir.clone()].into_iter().chain(elsewhere).collect();
        roots[1..].iter().try_for_each(|root| writable(root).map(drop))?;
        let reactors = settings.cores.len();
        let plan = Plan::new(settings, descriptors);
        let identity = settings.tls.as_ref().map(IdentityFiles::load).transpose();
        let identity = identity.map_err(|unusable| StartError(unusable.to_string()))?;
        let mut warnings: Vec<String> =
            identity.iter().flat_map(|identity| identity.warnings.clone()).collect();
        let sip_udp = listeners(&settings.sip_udp, "UDP", |address| udp::bind(address, reactors))?;
        let sip_tcp = listeners(&settings.sip_tcp, "TCP", |address| tcp::bind(address, reactors))?;
        let sip_tls = listeners(&settings.sip_tls, "TLS", |address| tcp::bind(address, reactors))?;
        let census = Arc::new(Census::new(settings.connections_per_source));
        let media = plan.request(settings).make()?;
        warnings.extend(media.warnings);
        warnings.extend(plan.too_few(media.kind));
        if let Some(first) = media.taken.first() {
            warnings.push(format!(
                "{} media port pairs are in use by others and left out, the first is {first}",
                media.taken.len()
            ));
        }
        let ports: Vec<PortPair> = media.pairs;
        if ports.is_empty() {
            let (first, last) = settings.media_ports;
            return Err(format!(
                "no media port pair of {first}-{last} is free: give another --media-ports range"
            )
            .into());
        }
        let mut files: Vec<usize> =
            media.parts.iter().enumerate().map(|(reactor, part)| plan.files(reactor, part, &ports)).collect();
        let sessions_max =
            settings.sessions_max.unwrap_or(usize::MAX).min(files.iter().sum()).min(limits::SESSIONS_MAX);
        if settings.format == Format::Pcap {
            // One file each: no more can be open, and each open one has a block.
            files.iter_mut().for_each(|files| *files = (*files).min(sessions_max));
        }
        if settings.sessions_max.is_some_and(|asked| asked > sessions_max) {
            warnings.push(format!(
                "--max-sessions is lowered to {sessions_max}: there are no more media ports or descriptors"
            ));
        }

        enough_memory(&files, settings, media.kind)?;

        let (events, incoming) = bounded(limits::EVENTS_MAX);
        let (jobs, job_queue) = bounded(limits::DIRECTORY_JOBS_MAX);
        let (commits, commit_queue) = bounded(limits::COMMITS_MAX);
        let table = Arc::new(Table::new(sessions_max));
        let session = Arc::new(SessionCounters::default());
        let (setup, setup_published) = Recorded::new();
        let waiting = Arc::new(Waiting::default());
        let mut gauges = Gauges {
            reactors: Vec::new(),
            session: session.clone(),
            table: table.clone(),
            write_latency: Vec::new(),
            batch: Vec::new(),
            setup: setup_published,
            orders: Orders::new(events.clone(), waiting.clone()),
            recovery: Arc::default(),
        };
        let mut mailboxes = Vec::new();
        let mut others = Vec::new();
        let mut parts = Vec::new();
        let (sip_udp, mut sip_udp_sockets) = by_reactor(sip_udp, reactors);
        let (sip_tcp, mut sip_tcp_sockets) = by_reactor(sip_tcp, reactors);
        let (sip_tls, mut sip_tls_sockets) = by_reactor(sip_tls, reactors);
        let cname = reports::cname();
        let lists = Arc::new(settings.lists.clone());
        for (index, part) in media.parts.into_iter().enumerate() {
            let (mailbox, inbox) =
                mailbox::mailbox().map_err(|e| format!("creating an eventfd failed: {e}"))?;
            let (write_latency, published_latency) = Recorded::new();
            let (batch, published_batch) = Recorded::new();
            let counters = Arc::new(ReactorCounters::default());
            gauges.reactors.push(counters.clone());
            gauges.write_latency.push(published_latency);
            gauges.batch.push(published_batch);
            mailboxes.push(mailbox);
            parts.push(Parts {
                index: index as u8,
                core: settings.cores[index],
                files: files[index],
                part,
                sessions: sessions_max,
                udp: std::mem::take(&mut sip_udp_sockets[index]),
                streams: stream_listeners(&mut sip_tcp_sockets[index], false)
                    .chain(stream_listeners(&mut sip_tls_sockets[index], true))
                    .collect(),
                tls: identity.as_ref().map(|identity| identity.config.clone()),
                census: census.clone(),
                inbox,
                direct,
                block_size: settings.block_size,
                flush_interval: settings.flush_interval,
                noted: noted(&settings.ends),
                reports: settings.rtcp_reports.then(|| Reports::new(cname.clone(), counters.clone())),
                write_latency,
                batch,
                counters,
                events: events.clone(),
                lists: lists.clone(),
                jobs: jobs.clone(),
                neighbours: Vec::new(),
            });
        }
        if media.kind == Kind::Xdp && reactors > 1 {
            parts.iter_mut().for_each(|parts| parts.neighbours = mailboxes.clone());
        }
        drop(jobs);
        let (ready, readiness) = bounded(reactors);
        for parts in parts {
            others.push(spawn_reactor(parts, ready.clone())?);
        }
        drop(ready);
        for _ in 0..reactors {
            readiness.recv().map_err(|_| "a reactor ended before it was ready".to_owned())??;
        }
        drop_capabilities()?;
        // Not before: starts that fail, again and again, would use up the numbers.
        let now = cpu::now().wall;
        let instance = Instance::take(&roots, (now.0 >> 20) as u16, now);
        if let Err(e) = &instance {
            warnings.push(format!("recordings that a dead recorder has left cannot be looked for: {e}"));
        }
        let directory =
            directory::Directory::new(settings.dir.clone(), job_queue, mailboxes.clone(), commits);
        others.push(spawn("directory", move || directory.run())?);
        let (watching, stop) = bounded(0);
        if let Some(watch) = media.watch {
            let stop = stop.clone();
            others.push(spawn("interfaces", move || watch.run(&stop))?);
        }
        let commit = commit::Commit::new(settings.dir.clone(), commit_queue, events.clone());
        others.push(spawn("commit", move || commit.run())?);

        let port_pairs = ports.len();
        let rules = Rules {
            sessions_max,
            format: settings.format,
            port_cooldown: settings.port_cooldown,
            media_ip: settings.media_ip,
            ports,
            reactors: reactors as u8,
            strict_siprec: settings.strict_siprec,
            explain_refusals: settings.explain_refusals,
            answer_metadata: settings.answer_metadata,
            product: settings.product.clone(),
            terms: settings.terms.clone(),
            instance: instance.as_ref().map_or(0, |instance| instance.number),
            ends: settings.ends,
            resource: settings.resource.clone(),
            admission: settings.admission.clone(),
        };
        if instance.is_ok() {
            let rules = Rules { ports: Vec::new(), ..rules.clone() };
            let (counters, events) = (gauges.recovery.clone(), events.clone());
            let recovery = Recovery { roots, rules, counters, events, stop };
            others.push(spawn("recovery", move || recovery.run())?);
        }
        let sessions = Sessions::new(rules, session.clone(), table, StdRng::from_os_rng());
        let control = Control {
            sessions,
            events: incoming,
            reactors: mailboxes.clone(),
            setup,
            outcome: Outcome::default(),
            listener,
            counters: session,
            orders: waiting,
        };
        let control = spawn("control", move || control.run())?;
        Ok(Recorder {
            sip_udp,
            sip_tcp,
            sip_tls,
            port_pairs,
            sessions_max,
            media_source: media.kind,
            media_source_account: media.account,
            warnings,
            gauges,
            tls: settings.tls.clone(),
            mailboxes,
            events,
            control,
            others,
            _attached: media.attached,
            watching,
            instance: instance.ok(),
        })
    }

    /// No new sessions from now on; running ones are ended with BYE after `grace`. Then [`Recorder::wait`] returns.
    pub fn drain(&self, grace: Duration) {
        // Fails only when control has ended already.
        let _ = self.events.send(Event::Drain { grace });
    }

    /// Reads certificate, key and client CAs again, for handshakes that begin from now on: what is wrong with the new ones, if
    /// anything. When they cannot be used, the old ones go on.
    pub fn reload(&self) -> Result<Reloaded, Unusable> {
        let Some(files) = &self.tls else { return Ok(Reloaded::Nothing) };
        let Identity { config, warnings } = files.load()?;
        for mailbox in &self.mailboxes {
            mailbox.put(Letter::Identity(config.clone()));
            mailbox.ring_bell();
        }
        Ok(Reloaded::Identity { warnings })
    }

    /// Waits until a drain is complete: everything written, renamed, synced.
    pub fn wait(self) -> Outcome {
        let Recorder { events, control, others, watching, instance, _attached, .. } = self;
        let outcome = control.join().unwrap_or_default();
        drop(events);
        drop(watching);
        for thread in others {
            let _ = thread.join();
        }
        if outcome.failed == 0 {
            instance.into_iter().for_each(Instance::leave);
        }
        outcome
    }
}

/// Takes from the calling thread, and from those that it makes, what is only needed to make the media sources.
/// CAP_SYS_ADMIN, which nothing here uses, would stand for it. [`Recorder::start`] does it; threads that were there before
/// have to.
pub fn drop_capabilities() -> Result<(), StartError> {
    capability::drop_all(&[Capability::NetAdmin, Capability::NetRaw, Capability::Bpf, Capability::SysAdmin])
        .map_err(|e| StartError(format!("capabilities cannot be dropped ({e}): see capabilities(7)")))
}

/// How often control has to hear of media so that it knows silence from a late word.
fn noted(ends: &Ends) -> Duration {
    let shortest = [ends.media_timeout, ends.transport_timeout].into_iter().flatten().min();
    shortest.map_or(limits::MEDIA_NOTED, |time| limits::MEDIA_NOTED.min(time / 4))
}

/// How many port pairs and files each reactor gets.
struct Plan {
    ports: (u16, u16),
    /// Pairs in the range, and those of them for which there are descriptors if each port needs one.
    asked: usize,
    pairs_of_sockets: usize,
    reactors: usize,
    descriptors: usize,
    format: Format,
}

impl Plan {
    /// Two sockets a pair, with `DESCRIPTORS_RESERVED` left for the rest; and a ring's table of registered files, which
    /// the kernel bounds by the same limit, holds a reactor's sockets and its recordings' files.
    fn new(settings: &Settings, descriptors: usize) -> Plan {
        let (first, last) = settings.media_ports;
        let reactors = settings.cores.len();
        let asked = (usize::from(last) - usize::from(first)).div_ceil(2);
        let reserved = limits::DESCRIPTORS_RESERVED.min(descriptors / 4);
        // pcap: one file for a call of two pairs. raw: one file a pair.
        let per_table = match settings.format {
            Format::Pcap => descriptors * 2 / 5,
            Format::Raw => descriptors / 3,
        };
        let pairs_of_sockets = asked.min((descriptors - reserved) / 2).min(per_table * reactors);
        let ports = settings.media_ports;
        Plan { ports, asked, pairs_of_sockets, reactors, descriptors, format: settings.format }
    }

    fn request<'a>(&self, settings: &'a Settings) -> Request<'a> {
        Request {
            kind: settings.media_source,
            interfaces: &settings.xdp_interfaces,
            // Behind a NAT the address of the answers is not ours to bind.
            ip: settings.media_ip.filter(|&ip| std::net::UdpSocket::bind((ip, 0)).is_ok()),
            ports: self.ports,
            pairs_of_sockets: self.pairs_of_sockets,
            reactors: self.reactors,
            deadline: cpu::now().mono + limits::BIND_PATIENCE,
        }
    }

    fn too_few(&self, kind: Kind) -> Option<String> {
        let Plan { asked, pairs_of_sockets: pairs, descriptors, reactors, .. } = *self;
        (kind == Kind::Sockets && pairs < asked).then(|| {
            let reserved = limits::DESCRIPTORS_RESERVED.min(descriptors / 4);
            format!(
                "only {pairs} of {asked} media port pairs are used: RLIMIT_NOFILE is {descriptors}; raise it \
                 (systemd: LimitNOFILE) to {}",
                (asked * 2 + reserved).max(asked * 5 / 2 / reactors)
            )
        })
    }

    /// Media files that a reactor can have open: no recording has fewer pairs than files.
    fn files(&self, reactor: usize, part: &Part, ports: &[PortPair]) -> usize {
        let pairs = ports.iter().filter(|pair| usize::from(pair.reactor) == reactor).count();
        let files = match self.format {
            Format::Pcap => pairs,
            // A stream that replaces another in a re-INVITE has its file beside the other's.
            Format::Raw => pairs * 2,
        };
        files.min(self.descriptors.saturating_sub(part.files()))
    }
}

type Listening = (SocketAddr, Vec<Socket>);

fn listeners(
    addresses: &[SocketAddr],
    transport: &str,
    bind: impl Fn(SocketAddr) -> std::io::Result<Listening>,
) -> Result<Vec<Listening>, StartError> {
    addresses
        .iter()
        .map(|&address| {
            bind(address).map_err(|e| {
                let flag = transport.to_lowercase();
                StartError(format!(
                    "cannot listen for SIP on {transport} {address} ({e}): give another --sip-{flag} address"
                ))
            })
        })
        .collect()
}

type Listener = (Socket, SocketAddr);

/// The addresses, and each reactor's socket of every listener.
fn by_reactor(listening: Vec<Listening>, reactors: usize) -> (Vec<SocketAddr>, Vec<Vec<Listener>>) {
    let addresses = listening.iter().map(|(address, _)| *address).collect();
    let mut parts: Vec<Vec<Listener>> = (0..reactors).map(|_| Vec::new()).collect();
    for (address, sockets) in listening {
        parts.iter_mut().zip(sockets).for_each(|(part, socket)| part.push((socket, address)));
    }
    (addresses, parts)
}

fn stream_listeners(sockets: &mut Vec<Listener>, tls: bool) -> impl Iterator<Item = tcp::Listener> {
    std::mem::take(sockets).into_iter().map(move |(socket, _)| tcp::Listener { socket, tls })
}

/// What a reactor is made of; the ring is made on its own thread.
struct Parts {
    index: u8,
    core: usize,
    files: usize,
    part: Part,
    sessions: usize,
    udp: Vec<(Socket, SocketAddr)>,
    streams: Vec<tcp::Listener>,
    tls: Option<Arc<ServerConfig>>,
    census: Arc<Census>,
    inbox: Inbox,
    direct: bool,
    block_size: usize,
    flush_interval: Duration,
    noted: Duration,
    reports: Option<Reports>,
    write_latency: Recorded,
    batch: Recorded,
    counters: Arc<ReactorCounters>,
    events: Sender<Event>,
    lists: Arc<Lists>,
    jobs: Sender<directory::Job>,
    /// Of all reactors, where packets of a port may come to any of them.
    neighbours: Vec<Mailbox>,
}

impl Parts {
    fn assemble(self) -> Result<Reactor, String> {
        cpu::pin(self.core).map_err(|e| format!("cannot run on core {} ({e}): check --cores", self.core))?;
        // Without it packets wait a little longer in their rings while others have the core.
        let _ = cpu::run_soon(limits::REACTOR_SLICE);
        let sockets = self.part.files();
        let mut ring = Ring::new((sockets + self.files) as u32)?;
        let media = self.part.arm(&mut ring)?;
        let udp = udp::Listeners::arm(self.index, self.udp, &mut ring)?;
        let mut tcp = tcp::Connections::arm(
            self.index,
            self.streams,
            self.tls,
            self.census,
            &mut ring,
            self.counters.clone(),
        )?;
        tcp.lists = self.lists.clone();
        let files =
            Files::new(self.index, sockets as u32, self.files, self.write_latency, self.counters.clone());
        let neighbours = Neighbours::new(self.index, self.neighbours);
        let pool =
            Pool::new(blocks::wanted(self.files, self.block_size, !neighbours.is_empty()), self.block_size)?;
        let storage = Storage { files, pool, direct: self.direct, flush_interval: self.flush_interval };
        let recordings = Recordings::new(
            media.ports(),
            self.sessions,
            storage,
            self.jobs,
            self.counters.clone(),
            neighbours,
        )
        .reporting(self.reports)
        .noting(self.noted);
        Ok(Reactor {
            ring,
            media,
            udp,
            tcp,
            recordings,
            inbox: self.inbox,
            counters: self.counters,
            batch: self.batch,
            outbox: Outbox::new(self.events),
            lists: self.lists,
            clock: Clock::start(),
        })
    }
}

fn spawn_reactor(parts: Parts, ready: Sender<Result<(), String>>) -> Result<JoinHandle<()>, StartError> {
    spawn(&format!("reactor-{}", parts.index), move || {
        // Where io_uring is for the privileged only, the ring is one of the things that take a capability.
        let assembled = parts.assemble().and_then(|reactor| match drop_capabilities() {
            Ok(()) => Ok(reactor),
            Err(StartError(sentence)) => Err(sentence),
        });
        let reactor = match assembled {
            Ok(reactor) => reactor,
            Err(sentence) => {
                let _ = ready.send(Err(sentence));
                return;
            }
        };
        let _ = ready.send(Ok(()));
        drop(ready);
        if let Err(e) = reactor.run() {
            // This core's recordings cannot go on, and what is written of them is on disk. A supervisor starts us again.
            tracing::error!("io_uring failed, the recorder cannot go on: {e}");
            std::process::abort();
        }
    })
}

fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, StartError> {
    Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|e| StartError(format!("cannot start the {name} thread ({e}): raise the limit of tasks")))
}

/// The blocks of all reactors fit into memory. Asked before they are populated: by then the kernel may end some process instead of
/// refusing. Where it does not tell, it is tried.
fn enough_memory(files: &[usize], settings: &Settings, kind: Kind) -> Result<(), StartError> {
    let lent = kind == Kind::Xdp && files.len() > 1;
    let blocks: usize = files.iter().map(|&files| blocks::wanted(files, settings.block_size, lent)).sum();
    let needed = (blocks * settings.block_size) as u64;
    match probe::memory_available() {
        Some(available) if needed > available => Err(StartError(format!(
            "{} MiB are needed for {blocks} write blocks, and {} MiB of memory are available: lower --max-sessions or --block-size, \
             or free memory",
            needed >> 20,
            available >> 20
        ))),
        _ => Ok(()),
    }
}

/// The recordings directory exists and takes files. `true`: it takes direct writes of our alignment.
fn writable(dir: &Path) -> Result<bool, StartError> {
    let probe = dir.join(format!(".sipreel-{}", std::process::id()));
    let tried = fs::create_dir_all(dir).and_then(|()| File::create(&probe)).and_then(|file| {
        let direct = disk::takes_direct_writes(&file);
        fs::remove_file(&probe).map(|()| direct)
    });
    tried.map_err(|e| {
        let dir = dir.display();
        StartError(format!(
            "cannot write to the recordings directory {dir} ({e}): give another --dir or its owner's rights"
        ))
    })
}
