//! The SRC side of SIPREC for tests, benchmarks and the demo: sets up recording sessions, sends media whose every byte can be told
//! again, and reads the recordings back. Nothing here uses the recorder's own code.
//!
//! [`run`] and [`verify`] are all that the two programs need:
//!
//! ```text
//! run ─▶ signalling (tokio-uring, this thread) ─ Order ─▶ media or xdp (its own thread) ─ Finished ─▶ signalling
//! verify ─▶ a recording at a time: metadata says what was sent, files say what is there
//! ```

mod answer;
mod audio;
mod bpf;
mod clock;
mod codec;
mod dialog;
mod media;
mod message;
mod netlink;
mod options;
mod plan;
mod program;
mod report;
mod rtp;
mod selfdescription;
mod signalling;
mod template;
mod tls;
mod usage;
mod verify;
mod window;
mod wire;
mod xdp;

pub use answer::Destination;
#[allow(unused_imports)] // Of the two programs, one lets the user choose it and the other chooses.
pub use codec::Audio;
pub use options::{Engine, RunOptions};
pub use report::RunReport;
pub use verify::verify;

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc;

use media::{Order, Progress};
use plan::{Plan, mix};
use signalling::{Input, Links, Signalling};
use template::{Site, Source};
use window::Window;
use wire::Sources;
use xdp::Gate;

/// How long the recorder may take to rename its directories after the last BYE.
const COMMIT_WAIT: Duration = Duration::from_secs(60);
const COMMIT_POLL: Duration = Duration::from_millis(50);

/// What happens in a run, as it happens.
#[derive(Debug)]
pub enum Happening<'a> {
    Established {
        call: u32,
        setup: Duration,
        streams: &'a [Destination],
    },
    Failed {
        call: u32,
        why: &'a str,
    },
    /// BYE answered, or whatever else ended it.
    Over {
        call: u32,
    },
    /// All calls are over; the recordings are being read back.
    Verifying,
}

impl fmt::Display for Happening<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Happening::Established { call, setup, streams } => {
                write!(f, "call {call}: established in {:.1} ms, media to", setup.as_secs_f64() * 1e3)?;
                streams.iter().try_for_each(|stream| write!(f, " {}", stream.rtp))
            }
            Happening::Failed { call, why } => write!(f, "call {call}: {why}"),
            Happening::Over { call } => write!(f, "call {call}: over"),
            Happening::Verifying => write!(f, "all calls are over, reading the recordings back"),
        }
    }
}

/// Called on the thread of [`run`].
pub type Watch<'a> = dyn FnMut(Happening<'_>) + 'a;

/// Why a run could not begin, or had to stop.
#[derive(Debug)]
pub enum RunError {
    /// Flags that cannot work together; the sentence says which to change.
    Contradiction(&'static str),
    NoRoute {
        target: SocketAddr,
        error: io::Error,
    },
    Sockets(io::Error),
    Interface {
        name: String,
        error: io::Error,
    },
    /// The kernel does not take the program of `--engine xdp`.
    Program(io::Error),
    Connect {
        target: SocketAddr,
        error: io::Error,
    },
    Media(io::Error),
    Verify {
        dir: PathBuf,
        error: io::Error,
    },
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Contradiction(sentence) => f.write_str(sentence),
            RunError::NoRoute { target, error } => {
                write!(f, "no local address reaches {target}: {error}; give one with --local-ip")
            }
            RunError::Sockets(error) => write!(f, "source sockets: {error}"),
            RunError::Interface { name, error } => write!(f, "interface {name}: {error}"),
            RunError::Program(error) => write!(
                f,
                "the kernel does not take the BPF program of --engine xdp: {error}; it needs Linux 5.18, CAP_BPF, CAP_NET_ADMIN, and an interface without another XDP program"
            ),
            RunError::Connect { target, error } => write!(f, "cannot reach {target}: {error}"),
            RunError::Media(error) => write!(f, "sending media: {error}"),
            RunError::Verify { dir, error } => write!(f, "reading {}: {error}", dir.display()),
        }
    }
}

impl std::error::Error for RunError {}

/// Places all calls, sends their media, ends them, and with `verify_dir` reads the recordings back. Blocks until all is over.
/// Setting `stop` ends the calls with BYE and reports what there is. Must not be called inside an async runtime.
pub fn run(
    options: &RunOptions,
    stop: &Arc<AtomicBool>,
    watch: &mut Watch<'_>,
) -> Result<RunReport, RunError> {
    if let Some(sentence) = options.contradiction() {
        return Err(RunError::Contradiction(sentence));
    }
    let plan = options.plan(run_id(options.seed));
    let ip = local_ip(options)?;
    let stale = options.verify_dir.as_deref().map(verify::unfinished).unwrap_or_default();
    let outlet = Outlet::open(options, &plan, ip)?;
    let begun = usage::this_process();
    let (signalling, window, media) = place_calls(options, &plan, ip, outlet, stop, watch)?;
    let mut report = RunReport::new(options, &plan, &signalling, &media, &window, begun);
    if let Some(dir) = &options.verify_dir {
        watch(Happening::Verifying);
        wait_for_commits(dir, &stale);
        let scope = verify::Scope { plan, turns: signalling.turns };
        let verified =
            verify::verify_run(dir, &scope).map_err(|error| RunError::Verify { dir: dir.clone(), error })?;
        report.add_verification(verified);
    }
    Ok(report)
}

/// What media leaves through.
enum Outlet {
    Sockets(Sources),
    Interface(Sources, Gate),
}

impl Outlet {
    fn open(options: &RunOptions, plan: &Plan, ip: IpAddr) -> Result<Outlet, RunError> {
        let streams = plan.streams as usize;
        let wanted = plan.calls as usize * streams;
        let Some(name) = options.xdp_interface.clone().filter(|_| options.engine == Engine::Xdp) else {
            return Sources::bind(ip, wanted, streams).map(Outlet::Sockets).map_err(RunError::Sockets);
        };
        let gate = Gate::open(&name).map_err(|error| RunError::Interface { name, error })?;
        xdp::try_out(plan, &gate, ip).map_err(RunError::Program)?;
        let sources = Sources::unbound(ip, wanted, streams).map_err(RunError::Sockets)?;
        Ok(Outlet::Interface(sources, gate))
    }

    fn addresses(&self) -> &[Source] {
        match self {
            Outlet::Sockets(sources) | Outlet::Interface(sources, _) => &sources.addresses,
        }
    }
}

type Played = (signalling::Figures, Window, media::Figures);

fn place_calls(
    options: &RunOptions,
    plan: &Plan,
    ip: IpAddr,
    outlet: Outlet,
    stop: &Arc<AtomicBool>,
    watch: &mut Watch<'_>,
) -> Result<Played, RunError> {
    let progress = Arc::new(Progress::default());
    let window = Window::new(options.recorder_pid, progress.clone());
    let addresses = outlet.addresses().to_vec();
    let (inbox, letters) = mpsc::channel(signalling::INBOX);
    // A start and a stop for each call, and stops for each way it can fail.
    let (orders, asked) = crossbeam::channel::bounded(4 * plan.calls as usize + 16);
    let media =
        spawn_media(plan.clone(), outlet, asked, progress, inbox.clone()).map_err(RunError::Sockets)?;
    let played = tokio_uring::start(async {
        let local = SocketAddr::new(ip, 0);
        let links = Links::open(options, local, (inbox, letters))
            .await
            .map_err(|error| RunError::Connect { target: options.target, error })?;
        let site = Site {
            plan: plan.clone(),
            transport: options.transport,
            target: options.target,
            local: links.local,
        };
        let signalling =
            Signalling::new(site, &addresses, links, orders.clone(), window, stop.clone(), watch);
        Ok(signalling.run(options.rate).await)
    });
    let _ = orders.send(Order::Quit);
    let media =
        media.join().map_err(|_| RunError::Media(io::ErrorKind::Other.into()))?.map_err(RunError::Media)?;
    let (signalling, window) = played?;
    Ok((signalling, window, media))
}

fn spawn_media(
    plan: Plan,
    outlet: Outlet,
    orders: crossbeam::channel::Receiver<Order>,
    progress: Arc<Progress>,
    inbox: mpsc::Sender<Input>,
) -> io::Result<JoinHandle<io::Result<media::Figures>>> {
    std::thread::Builder::new().name("load-media".into()).spawn(move || {
        let finished = |done| drop(inbox.blocking_send(Input::Finished(done)));
        let figures = match outlet {
            Outlet::Sockets(sources) => media::run(&plan, sources, &orders, &progress, finished),
            Outlet::Interface(sources, gate) => {
                xdp::run(&plan, &sources.addresses, gate, &orders, &progress, finished)
            }
        };
        if figures.is_err() {
            let _ = inbox.blocking_send(Input::MediaLost);
        }
        figures
    })
}

/// Unique among runs, so that recordings of several can lie in one directory.
fn run_id(seed: u64) -> String {
    let unique = clock::wall().as_nanos() as u64 ^ u64::from(std::process::id()) << 40;
    format!("{:016x}", mix(mix(seed) ^ unique))
}

fn local_ip(options: &RunOptions) -> Result<IpAddr, RunError> {
    let routed = || {
        let any: IpAddr = if options.target.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(options.target)?;
        Ok(socket.local_addr()?.ip())
    };
    let no_route = |error| RunError::NoRoute { target: options.target, error };
    options.local_ip.map_or_else(routed, Ok).map_err(no_route)
}

/// Returns when no directory of this run is being written any more. Those left by others before the run do not count.
fn wait_for_commits(dir: &Path, stale: &HashSet<PathBuf>) {
    let deadline = clock::now() + COMMIT_WAIT;
    loop {
        let begun = clock::now();
        if begun > deadline || verify::unfinished(dir).difference(stale).next().is_none() {
            return;
        }
        // Looking through ten thousand recordings must not keep the recorder from them.
        std::thread::sleep(COMMIT_POLL.max(4 * begun.elapsed()));
    }
}

#[cfg(test)]
mod tests;
