//! The `sipreel` command: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use sipreel::shell;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    shell::run(&shell::cli::Cli::parse())
}
