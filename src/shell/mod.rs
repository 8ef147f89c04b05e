//! The process: flags, log, signals, service manager, stats socket. The only rank that prints.

mod callbacks;
pub mod cli;
pub mod config;
mod doctor;
mod log;
mod notify;
mod prometheus;
mod recordings;
mod signals;
mod stats;
mod stats_client;
mod stats_socket;

use std::fmt::Display;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use callbacks::Callbacks;
use cli::{
    Cli, ClientArgs, Command, DemoArgs, EndArgs, ExplainArgs, Ports, RecordArgs, RecordingsArgs, StatsArgs,
};
use config::{Config, Host, Listed, Refusal};
use signals::{Wish, Wishes};
use stats::Identity;
use stats_socket::{Claim, Server, Unavailable};

use crate::engine::{Outcome, Recorder, Reloaded, StartError, cpu};
use crate::limits::BYE_GRACE;
use crate::proto::metadata::Code;

/// Flags that cannot work: the same code as clap's for flags that cannot be read. A restart does not help.
const EXIT_REFUSED: u8 = 2;
/// What a drain may take beyond its calls: the BYEs, then writing, syncing and renaming what was open.
const DRAIN_MARGIN: std::time::Duration = std::time::Duration::from_secs(60);

/// Runs the command. What goes wrong is said on stderr, in one line. The demo is not the daemon's, so it is the caller's.
pub fn run(cli: &Cli, demo: impl FnOnce(&DemoArgs) -> ExitCode) -> ExitCode {
    match &cli.command {
        Command::Record(args) => record(args),
        Command::Stats(StatsArgs { client, prometheus: true }) => {
            ask(client, stats_client::stats, prometheus::page)
        }
        Command::Stats(args) => ask(&args.client, stats_client::stats, stats_client::stats_table),
        Command::Sessions(args) => ask(args, stats_client::sessions, stats_client::sessions_table),
        Command::End(args) => end(args),
        Command::Recordings(args) => list_recordings(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Explain(args) => explain(args),
        Command::Demo(args) => demo(args),
    }
}

/// Why the recorder did not start, or did not end well.
enum Failure {
    Refused(Refusal),
    StatsSocket(Unavailable),
    Signals(io::Error),
    Start(StartError),
    StatsThread(io::Error),
    Callbacks(String),
    CallbackThread(io::Error),
    Uncommitted(u64),
}

fn record(args: &RecordArgs) -> ExitCode {
    log::install(args.log_format, args.log_level);
    let failure = match configure(args).and_then(|config| serve(&config)) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(failure) => failure,
    };
    tracing::error!(event = "failed", "{failure}");
    match failure {
        Failure::Refused(_) | Failure::StatsSocket(_) | Failure::Callbacks(_) => ExitCode::from(EXIT_REFUSED),
        _ => ExitCode::FAILURE,
    }
}

fn configure(args: &RecordArgs) -> Result<Config, Failure> {
    let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR");
    let host = Host { cores: cpu::allowed(), runtime_dir: runtime_dir.as_deref(), name: host_name() };
    Config::new(args, &host).map_err(Failure::Refused)
}

/// Empty where /proc does not say.
fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default()
}

/// From nothing to ready to nothing again. The stats socket is taken first and dropped last: it is what tells a second
/// recorder that there is one.
fn serve(config: &Config) -> Result<(), Failure> {
    let wishes = Wishes::install().map_err(Failure::Signals)?;
    let socket = claim(config)?;
    let callbacks = Callbacks::open(config.callbacks.as_ref()).map_err(Failure::Callbacks)?;
    let listener = callbacks.listener.clone();
    let recorder = Recorder::start(&config.settings, Some(listener)).map_err(Failure::Start)?;
    tracing::info!(event = "media_source", "{}", recorder.media_source_account);
    for warning in &recorder.warnings {
        tracing::warn!("{warning}");
    }
    let callbacks = callbacks
        .start(recorder.gauges.clone(), &config.settings.resource)
        .map_err(Failure::CallbackThread)?;
    announce(config, &recorder, socket.as_ref(), callbacks.state.clone())?;
    let signal = loop {
        match wishes.wait() {
            Wish::Reload => reload(&recorder),
            Wish::End(signal) => break signal,
        }
    };
    callbacks.drain();
    drain(config, &recorder, signal);
    let outcome = recorder.wait();
    callbacks.finish();
    ended(&outcome)
}

/// SIGHUP: certificates change every few weeks, and no call ends for that.
fn reload(recorder: &Recorder) {
    match recorder.reload() {
        Ok(Reloaded::Nothing) => {
            tracing::info!(
                event = "reloaded",
                "SIGHUP: nothing can be reloaded; a change of flags needs a restart"
            );
        }
        Ok(Reloaded::Identity { warnings }) => {
            warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            tracing::info!(event = "reloaded", "certificate, key and CAs are read again; connections go on");
        }
        Err(unusable) => {
            tracing::error!(event = "not_reloaded", "{unusable}; the certificate before it stays in use");
        }
    }
}

fn claim(config: &Config) -> Result<Option<Server>, Failure> {
    match stats_socket::claim(&config.stats_socket).map_err(Failure::StatsSocket)? {
        Claim::Ours(server) => Ok(Some(server)),
        Claim::Nowhere(why) => {
            tracing::warn!("recording without a stats socket: {why}");
            Ok(None)
        }
    }
}

/// Everything is armed: answers questions, tells the log and the service manager.
fn announce(
    config: &Config,
    recorder: &Recorder,
    socket: Option<&Server>,
    callbacks: Arc<callbacks::State>,
) -> Result<(), Failure> {
    let identity = identity(config, recorder);
    let stats_socket = socket.map_or("none".into(), |server| server.path().display().to_string());
    tracing::info!(
        event = "ready",
        resource_id = identity.resource.id,
        region = identity.resource.region,
        group = identity.resource.group,
        sip_udp = listed(&recorder.sip_udp),
        sip_tcp = listed(&recorder.sip_tcp),
        sip_tls = listed(&recorder.sip_tls),
        port_pairs = recorder.port_pairs,
        media_source = %recorder.media_source,
        sessions_max = recorder.sessions_max,
        cores = identity.cores,
        dir = identity.dir,
        pid = identity.pid,
        stats_socket,
        "ready"
    );
    let status = format!("recording, {} port pairs on CPU {}", recorder.port_pairs, identity.cores);
    if let Some(server) = socket {
        let answer = stats::answer(recorder.gauges.clone(), identity, callbacks, cpu::now());
        server.serve(answer).map_err(Failure::StatsThread)?;
    }
    notify::ready(&status);
    Ok(())
}

fn identity(config: &Config, recorder: &Recorder) -> Identity {
    let (first, last) = config.settings.media_ports;
    let text = |addresses: &[SocketAddr]| addresses.iter().map(SocketAddr::to_string).collect();
    Identity {
        version: env!("CARGO_PKG_VERSION").into(),
        resource: config.settings.resource.clone(),
        pid: std::process::id(),
        started: cpu::now().wall.to_string(),
        dir: config.settings.dir.display().to_string(),
        cores: Listed(&config.settings.cores).to_string(),
        media_ports: Ports { first, last }.to_string(),
        sip_udp: text(&recorder.sip_udp),
        sip_tcp: text(&recorder.sip_tcp),
        sip_tls: text(&recorder.sip_tls),
        port_pairs: recorder.port_pairs as u64,
        sessions_max: recorder.sessions_max as u64,
    }
}

/// `127.0.0.1:5060,[::1]:5060`, or `none`.
fn listed(addresses: &[SocketAddr]) -> String {
    if addresses.is_empty() {
        return "none".into();
    }
    addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(",")
}

fn drain(config: &Config, recorder: &Recorder, signal: &str) {
    let sessions = recorder.gauges.session.active.get();
    let grace = config.drain_timeout;
    tracing::info!(
        event = "draining",
        signal,
        sessions,
        grace_seconds = grace.as_secs_f64(),
        "no new sessions; a second signal ends the process at once"
    );
    notify::stopping(&format!("ending {sessions} sessions"), grace + BYE_GRACE + DRAIN_MARGIN);
    recorder.drain(grace);
}

/// A recording that could not be committed is a failure of the process; one that says what it lacks is not.
fn ended(outcome: &Outcome) -> Result<(), Failure> {
    let Outcome { committed, failed, incomplete } = *outcome;
    tracing::info!(event = "ended", committed, failed, incomplete, "ended");
    match failed {
        0 => Ok(()),
        n => Err(Failure::Uncommitted(n)),
    }
}

fn end(args: &EndArgs) -> ExitCode {
    match stats_client::end(&sockets(args.socket.as_ref()), &args.id, args.cause.as_deref()) {
        Ok(id) => print(&format!("ended {id}\n")),
        Err(error) => complain(&error),
    }
}

/// Where a recorder may answer.
fn sockets(given: Option<&PathBuf>) -> Vec<PathBuf> {
    match given {
        Some(path) => vec![path.clone()],
        None => config::default_sockets(std::env::var_os("XDG_RUNTIME_DIR").as_deref()),
    }
}

fn ask(
    args: &ClientArgs,
    query: fn(&[PathBuf]) -> Result<String, stats_client::NoAnswer>,
    table: fn(&str) -> Result<String, stats_client::NoAnswer>,
) -> ExitCode {
    let paths = sockets(args.socket.as_ref());
    let text = query(&paths).and_then(|reply| if args.json { Ok(reply) } else { table(&reply) });
    match text {
        Ok(text) => print(&text),
        Err(error) => complain(&error),
    }
}

fn explain(args: &ExplainArgs) -> ExitCode {
    let start = args.code.as_deref().unwrap_or_default();
    match explained(start) {
        text if text.is_empty() => {
            complain(&format!("no code begins with {start}: `sipreel explain` lists all"))
        }
        text => print(&text),
    }
}

fn explained(start: &str) -> String {
    let codes = Code::ALL.iter().filter(|code| code.text().starts_with(start));
    let entry = |code: &Code| {
        format!("{}  {}  {}\n    {}\n", code.text(), code.severity().text(), code.source(), code.rule())
    };
    codes.map(entry).collect()
}

fn list_recordings(args: &RecordingsArgs) -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let listed = recordings::list(args, &mut out);
    let listed =
        listed.and_then(|unreadable| out.flush().map(|()| unreadable).map_err(recordings::Problem::Output));
    match listed {
        Err(recordings::Problem::Output(e)) if e.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(problem) => complain(&problem),
        Ok(unreadable) if unreadable.is_empty() => ExitCode::SUCCESS,
        Ok(unreadable) => {
            unreadable.iter().for_each(|problem| eprintln!("sipreel: {problem}"));
            ExitCode::FAILURE
        }
    }
}

/// A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => complain(&error),
        _ => ExitCode::SUCCESS,
    }
}

fn complain(error: &dyn Display) -> ExitCode {
    eprintln!("sipreel: {error}");
    ExitCode::FAILURE
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Refused(refusal) => refusal.fmt(f),
            Failure::StatsSocket(unavailable) => unavailable.fmt(f),
            Failure::Signals(error) => write!(f, "signal handlers cannot be installed: {error}"),
            Failure::Start(error) => error.fmt(f),
            Failure::Callbacks(sentence) => f.write_str(sentence),
            Failure::CallbackThread(error) => {
                write!(f, "the threads for callbacks cannot be started ({error}): raise the limit of tasks")
            }
            Failure::StatsThread(error) => write!(f, "the stats thread cannot be started: {error}"),
            Failure::Uncommitted(n) => {
                write!(f, "{n} recordings could not be committed and stay as .part directories")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_explained_by_how_they_begin() {
        let aor = explained("metadata.participant.missing-aor");
        assert!(aor.starts_with("metadata.participant.missing-aor  error  RFC 7865"), "{aor}");
        assert_eq!(explained("").lines().count(), 2 * Code::ALL.len());
        assert_eq!(explained("nothing"), "");
    }

    #[test]
    fn addresses_in_one_field() {
        let [a, b] = ["127.0.0.1:5060", "[::1]:5061"].map(|text| text.parse().unwrap());
        assert_eq!(listed(&[a, b]), "127.0.0.1:5060,[::1]:5061");
        assert_eq!(listed(&[]), "none");
    }

    #[test]
    fn only_a_commit_that_failed_fails_the_process() {
        assert!(ended(&Outcome { committed: 3, failed: 0, incomplete: 1 }).is_ok());
        assert!(ended(&Outcome { committed: 3, failed: 1, incomplete: 0 }).is_err());
    }
}
