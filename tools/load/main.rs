//! `sipreel-load`: plays a session recording client against a recorder, and proves what was recorded.

#[path = "mod.rs"]
mod load;

use clap::{Parser, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use load::{Happening, RunOptions};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Play a session recording client: place calls, send their media, prove what was recorded
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArguments,
}

#[derive(Subcommand)]
enum Command {
    /// Place calls and send their media (what is done without a command)
    Run(Box<RunArguments>),
    /// Read recordings back and prove, packet by packet, that what was sent is there
    Verify {
        /// Directory of the recordings
        #[arg(long)]
        dir: PathBuf,
        #[arg(long)]
        json: bool,
    },
}

#[derive(clap::Args)]
struct RunArguments {
    #[command(flatten)]
    options: RunOptions,
    /// Report as JSON
    #[arg(long)]
    json: bool,
    /// Show a progress bar
    #[arg(long, value_enum, default_value = "auto")]
    progress: Progress,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Progress {
    /// When standard error is a terminal
    Auto,
    Always,
    Never,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command.unwrap_or(Command::Run(Box::new(cli.run))) {
        Command::Run(arguments) => run(&arguments),
        Command::Verify { dir, json } => verify(&dir, json),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sipreel-load: {error}");
            ExitCode::from(2)
        }
    }
}

type Outcome = Result<bool, Box<dyn std::error::Error>>;

fn run(arguments: &RunArguments) -> Outcome {
    let stop = stop_on_signals()?;
    let bar = progress_bar(arguments.progress, arguments.options.calls);
    let report = load::run(&arguments.options, &stop, &mut |happening| match happening {
        Happening::Established { .. } => bar.set_message("established"),
        Happening::Failed { .. } => bar.println(happening.to_string()),
        Happening::Over { .. } => bar.inc(1),
        Happening::Verifying => bar.set_message("reading back"),
    })?;
    bar.finish_and_clear();
    print(arguments.json, &report)?;
    Ok(report.is_good())
}

fn verify(dir: &std::path::Path, json: bool) -> Outcome {
    let report = load::verify(dir).map_err(|error| format!("reading {}: {error}", dir.display()))?;
    print(json, &report)?;
    Ok(report.is_whole())
}

fn print<R: serde::Serialize + std::fmt::Display>(json: bool, report: &R) -> Result<(), serde_json::Error> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?)
    } else {
        print!("{report}")
    }
    Ok(())
}

/// The first signal ends the calls with BYE, the second ends the program.
fn stop_on_signals() -> std::io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone())?;
        signal_hook::flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

fn progress_bar(progress: Progress, calls: u32) -> ProgressBar {
    let show = match progress {
        Progress::Auto => std::io::stderr().is_terminal(),
        Progress::Always => true,
        Progress::Never => false,
    };
    if !show {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(calls.into());
    let style = ProgressStyle::with_template("{elapsed_precise} {bar:40} {pos}/{len} calls over, {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    bar
}
