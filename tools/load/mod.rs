//! The SRC side of SIPREC for tests, benchmarks and the demo: sets up recording sessions, sends media whose every byte can be told
//! again, and reads the recordings back. Nothing here uses the recorder's own code.
//!
//! [`run`] and [`verify`] are all that the two programs need:
//!
//! ```text
//! run ─▶ signalling (tokio-uring, this thread) ─ Order ─▶ media (its own thread, io_uring) ─ Finished ─▶ signalling
//! verify ─▶ a recording at a time: metadata says what was sent, files say what is there
//! ```

mod answer;
mod audio;
mod clock;
mod codec;
mod dialog;
mod media;
mod message;
mod options;
mod plan;
mod report;
mod rtp;
mod selfdescription;
mod signalling;
mod template;
mod usage;
mod verify;
mod window;
mod wire;

pub use answer::Destination;
pub use codec::{Audio, Codec};
pub use options::RunOptions;
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
use template::Site;
use window::Window;
use wire::Sources;

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
    /// `--audio tone` is G.711 only.
    ToneNeedsG711,
    NoRoute {
        target: SocketAddr,
        error: io::Error,
    },
    Sockets(io::Error),
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
            RunError::ToneNeedsG711 => {
                write!(f, "--audio tone is made as G.711 only: use --codec pcmu or pcma")
            }
            RunError::NoRoute { target, error } => {
                write!(f, "no local address reaches {target}: {error}; give one with --local-ip")
            }
            RunError::Sockets(error) => write!(f, "source sockets: {error}"),
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
    if options.audio == Audio::Tone && !matches!(options.codec, Codec::Pcmu | Codec::Pcma) {
        return Err(RunError::ToneNeedsG711);
    }
    let plan = options.plan(run_id(options.seed));
    let ip = local_ip(options)?;
    let stale = options.verify_dir.as_deref().map(verify::unfinished).unwrap_or_default();
    let streams = plan.streams as usize;
    let sources = Sources::bind(ip, plan.calls as usize * streams, streams).map_err(RunError::Sockets)?;
    let begun = usage::this_process();
    let (signalling, window, media) = place_calls(options, &plan, ip, sources, stop, watch)?;
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

type Played = (signalling::Figures, Window, media::Figures);

fn place_calls(
    options: &RunOptions,
    plan: &Plan,
    ip: IpAddr,
    sources: Sources,
    stop: &Arc<AtomicBool>,
    watch: &mut Watch<'_>,
) -> Result<Played, RunError> {
    let progress = Arc::new(Progress::default());
    let window = Window::new(options.recorder_pid, progress.clone());
    let addresses = sources.addresses.clone();
    let (inbox, letters) = mpsc::channel(signalling::INBOX);
    // A start and a stop for each call, and stops for each way it can fail.
    let (orders, asked) = crossbeam::channel::bounded(4 * plan.calls as usize + 16);
    let media =
        spawn_media(plan.clone(), sources, asked, progress, inbox.clone()).map_err(RunError::Sockets)?;
    let played = tokio_uring::start(async {
        let local = SocketAddr::new(ip, 0);
        let links = Links::open(options.transport, options.target, local, plan.calls, (inbox, letters))
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
    sources: Sources,
    orders: crossbeam::channel::Receiver<Order>,
    progress: Arc<Progress>,
    inbox: mpsc::Sender<Input>,
) -> io::Result<JoinHandle<io::Result<media::Figures>>> {
    std::thread::Builder::new().name("load-media".into()).spawn(move || {
        let finished = |done| drop(inbox.blocking_send(Input::Finished(done)));
        let figures = media::run(&plan, sources, &orders, &progress, finished);
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
    while clock::now() < deadline && verify::unfinished(dir).difference(stale).next().is_some() {
        std::thread::sleep(COMMIT_POLL);
    }
}

#[cfg(test)]
mod tests;
