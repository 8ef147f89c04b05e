//! `sipreel-peers`: what a comparison of recorders needs beside the recorder and its load: a receiver as it is usually written,
//! SIP for programs that have none, and a count of what is in the files of each.

mod answer;
mod capture;
mod count;
mod floor;
mod ng;
mod sip;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Programs to measure the recorder beside
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Record with one thread, epoll and recvmmsg: a pcap a call, nothing else
    Floor(floor::Options),
    /// Answer INVITEs for a program that only captures, or for rtpengine
    Answer(answer::Options),
    /// Count the RTP packets in capture files: every SSRC and sequence number once
    Count {
        /// Files, or directories with nothing but capture files below them
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Floor(options) => floor::run(&options),
        Command::Answer(options) => answer::run(&options),
        Command::Count { paths } => count::run(&paths),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sipreel-peers: {error}");
            ExitCode::FAILURE
        }
    }
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// One line of JSON on standard output, at once.
fn say(line: &serde_json::Value) -> std::io::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// Set by SIGINT and SIGTERM.
fn stop_flag() -> std::io::Result<std::sync::Arc<std::sync::atomic::AtomicBool>> {
    let stop = std::sync::Arc::default();
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, std::sync::Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// `20000-39999`: even to odd, both included.
fn port_range(text: &str) -> Result<(u16, u16), String> {
    let (low, high) = text.split_once('-').ok_or("must be LO-HI")?;
    let port = |text: &str| text.parse::<u16>().map_err(|_| format!("{text} is not a port"));
    match (port(low)?, port(high)?) {
        (low, high) if low < high && low % 2 == 0 && high % 2 == 1 => Ok((low, high)),
        _ => Err("LO must be even, HI odd and larger".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_pairs() {
        assert_eq!(port_range("20000-20003"), Ok((20_000, 20_003)));
        for wrong in ["20000", "20001-20004", "20002-20001", "0-70001", "a-b"] {
            assert!(port_range(wrong).is_err(), "{wrong}");
        }
    }
}
