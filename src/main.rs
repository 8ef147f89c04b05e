//! The `sipreel` command: parse, run, exit code.

mod demo;
#[path = "../tools/load/mod.rs"]
mod load;

use std::process::ExitCode;

use clap::Parser;
use sipreel::shell::{self, cli::Cli};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    shell::run(&Cli::parse(), demo::run)
}
