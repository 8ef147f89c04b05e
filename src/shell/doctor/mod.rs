//! `sipreel doctor`: looks at the box, and says what will hurt.
//!
//! Each check is a function from values to [`Finding`]s: files of /proc and /sys come through a [`Host`] whose root the tests
//! put elsewhere, answers of the kernel from `engine`.

mod cpu;
mod disk;
mod finding;
mod host;
mod kernel;
mod memory;
mod network;
mod nic;
mod ports;
mod process;
mod recorder;
mod report;
mod wanted;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use disk::{Calibration, Looked};
use finding::Finding;
use host::Host;
use report::{Machine, Report};
use wanted::Wanted;

use super::cli::{self, DoctorArgs, Ports};
use super::config::{self, Listed, Refusal};
use super::stats::Stats;
use super::stats_client::{self, NoAnswer};
use crate::engine::disk_probe::{self, Bounds};
use crate::engine::{cpu as machine_cpu, ethtool, link, probe};
use crate::limits;

/// Examines the box; the exit code is the report's.
pub fn run(args: &DoctorArgs) -> ExitCode {
    let report = match examine(args) {
        Ok(report) => report,
        Err(refusal) => {
            eprintln!("sipreel: {refusal}");
            return ExitCode::from(super::EXIT_REFUSED);
        }
    };
    super::print(&if args.json { report.json() } else { report.page() });
    ExitCode::from(report.exit_code())
}

fn examine(args: &DoctorArgs) -> Result<Report, Refusal> {
    let answer = ask_recorder(args);
    let wanted = wanted(args, answer.as_ref().ok())?;
    let host = match &wanted.running {
        Some(stats) => Host::here().of_process(stats.recorder.pid),
        None => Host::here(),
    };
    let why = answer.as_ref().map_err(NoAnswer::to_string);
    let mut findings =
        recorder::check(why.as_ref().map_err(String::as_str).copied(), args.stats_socket.is_some());
    findings.extend(process::check(&host, &wanted));
    findings.extend(kernel::check(&host, &wanted, &asked_kernel()));
    findings.extend(asked_interfaces(&host, &wanted));
    findings.extend(network::check(&host, &wanted));
    findings.extend(ports::check(&host, &wanted));
    findings.extend(cpu::check(&host, &wanted, &probe::clock()));
    findings.extend(memory::check(&host, &wanted));
    findings.extend(disk::check(&host, &wanted, &looked(&wanted, args.no_disk)));
    Ok(Report::new(machine(&host, &wanted), findings))
}

fn ask_recorder(args: &DoctorArgs) -> Result<Stats, NoAnswer> {
    let paths = match &args.stats_socket {
        Some(path) => vec![path.clone()],
        None => config::default_sockets(std::env::var_os("XDG_RUNTIME_DIR").as_deref()),
    };
    stats_client::stats(&paths).and_then(|reply| stats_client::parsed(&reply))
}

/// What was typed wins over what the running recorder does, and that over the defaults of `record`.
fn wanted(args: &DoctorArgs, running: Option<&Stats>) -> Result<Wanted, Refusal> {
    let recorder = running.map(|stats| &stats.recorder);
    let of_recorder = recorder.and_then(|recorder| cli::parse_ports(&recorder.media_ports).ok());
    let ports = args.media_ports.or(of_recorder).unwrap_or(Ports::DEFAULT);
    let (first, last) = config::media_ports(ports, &[])?;
    let dir = args.dir.clone().or_else(|| recorder.map(|recorder| recorder.dir.clone().into()));
    let cores = recorder.and_then(|recorder| cli::parse_cores(&recorder.cores).ok()).map(|cores| cores.0);
    Ok(Wanted {
        dir: absolute(dir.unwrap_or_else(|| "./recordings".into())),
        media_ports: Ports { first, last },
        cores: cores.unwrap_or_else(machine_cpu::allowed),
        interfaces: args.xdp_interface.clone(),
        running: running.cloned().map(Box::new),
    })
}

/// Without `.` and links as far as it exists, so that its mount can be found.
fn absolute(dir: PathBuf) -> PathBuf {
    let there = existing(&dir);
    let rest = dir.strip_prefix(&there).map(Path::to_owned).unwrap_or_default();
    match (if there.as_os_str().is_empty() { Path::new(".") } else { &there }).canonicalize() {
        Ok(there) => there.join(rest).components().filter(|c| *c != std::path::Component::CurDir).collect(),
        Err(_) => dir,
    }
}

/// The directory, or the nearest one above it.
fn existing(dir: &Path) -> PathBuf {
    dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("")).to_owned()
}

fn asked_kernel() -> kernel::Answers {
    kernel::Answers { io_uring: probe::io_uring(), sk_lookup: probe::sk_lookup(), af_xdp: probe::af_xdp() }
}

fn asked_interfaces(host: &Host, wanted: &Wanted) -> Vec<Finding> {
    let ask = |name: String| {
        let index = host
            .number(&format!("/sys/class/net/{name}/ifindex"))
            .and_then(|index| u32::try_from(index).ok());
        nic::Asked {
            interface: ethtool::interface(&name).unwrap_or_default(),
            xdp: index.and_then(|index| link::xdp_program(index).ok().flatten()),
            name,
        }
    };
    let asked: Vec<nic::Asked> = nic::interfaces(host, wanted).into_iter().map(ask).collect();
    nic::check(host, wanted, &asked)
}

fn looked(wanted: &Wanted, no_disk: bool) -> Looked {
    let existing = existing(&wanted.dir);
    let room = probe::room(&existing);
    let recording = wanted.running.as_ref().is_some_and(|stats| stats.sessions.active > 0);
    let calibration = match &room {
        _ if no_disk => Calibration::LeftOut("--no-disk"),
        _ if recording => {
            Calibration::LeftOut("it would take the disk away from the calls that are being recorded")
        }
        Ok(room) if room.writable => Calibration::Done(disk_probe::calibrate(
            &existing,
            Bounds {
                files: limits::DISK_PROBE_FILES,
                writers: limits::DISK_WORKERS as usize,
                time: limits::DISK_PROBE_TIME,
                bytes: limits::DISK_PROBE_BYTES.min(room.free / 10),
            },
        )),
        _ => Calibration::LeftOut("the directory cannot be written"),
    };
    Looked { existing, room, calibration }
}

fn machine(host: &Host, wanted: &Wanted) -> Machine {
    let memory = host.read("/proc/meminfo").unwrap_or_default();
    let total = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
    let cpus = host.read("/proc/stat").unwrap_or_default();
    let is_cpu = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    Machine {
        kernel: host.read("/proc/sys/kernel/osrelease").unwrap_or_default(),
        cpus: cpus.lines().filter(is_cpu).count(),
        memory_mib: total.unwrap_or(0u64) >> 10,
        cores: Listed(&wanted.cores).to_string(),
        dir: wanted.dir.display().to_string(),
        media_ports: wanted.media_ports.to_string(),
        streams: wanted.streams(),
        interfaces: nic::interfaces(host, wanted),
        recorder_pid: wanted.running.as_ref().map(|stats| stats.recorder.pid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn args(flags: &[&str]) -> DoctorArgs {
        let argv = ["sipreel", "doctor"].iter().chain(flags);
        match cli::Cli::parse_from(argv).command {
            cli::Command::Doctor(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_runs_gives_the_defaults_and_what_is_typed_wins() {
        let mut stats = Stats::default();
        (stats.recorder.dir, stats.recorder.cores) = ("/".into(), "0-2".into());
        (stats.recorder.media_ports, stats.recorder.sessions_max) = ("30000-30009".into(), 5);
        let of_recorder = wanted(&args(&[]), Some(&stats)).unwrap();
        assert_eq!((of_recorder.dir.to_str().unwrap(), &of_recorder.cores[..]), ("/", &[0, 1, 2][..]));
        assert_eq!((of_recorder.media_ports.first, of_recorder.streams()), (30_000, 5));
        let typed = wanted(&args(&["--dir=/tmp/x", "--media-ports=40000-40001"]), Some(&stats)).unwrap();
        assert_eq!((typed.dir.to_str().unwrap(), typed.streams()), ("/tmp/x", 1));
        let alone = wanted(&args(&["--xdp-interface=a", "--xdp-interface=b"]), None).unwrap();
        assert_eq!((alone.media_ports, alone.interfaces.len()), (Ports::DEFAULT, 2));
        assert!(wanted(&args(&["--media-ports=9-4"]), None).is_err());
    }

    #[test]
    fn a_directory_that_is_not_there_yet() {
        let dir = tempfile::tempdir().unwrap();
        let there = dir.path().canonicalize().unwrap();
        assert_eq!(existing(&there.join("a/b")), there);
        assert_eq!(absolute(dir.path().join("a/./b")), there.join("a/b"));
        assert!(absolute("./recordings".into()).is_absolute());
    }

    /// Every check at once on the machine that runs the test: no check may be missing, none may be there twice for one thing.
    #[test]
    fn the_whole_examination() {
        let dir = tempfile::tempdir().unwrap();
        let directory = format!("--dir={}", dir.path().display());
        let socket = format!("--stats-socket={}/none", dir.path().display());
        let report = examine(&args(&[&directory, &socket, "--no-disk"])).unwrap();
        let names: Vec<&str> = report.findings.iter().map(|finding| finding.name).collect();
        for name in
            ["process.nofile", "kernel.io_uring", "nic.irqbalance", "net.rmem_max", "ports.sip", "clock.sync"]
        {
            assert_eq!(names.iter().filter(|found| **found == name).count(), 1, "{name} in {names:?}");
        }
        for finding in &report.findings {
            let explained = !finding.meaning.is_empty();
            assert!(finding.level == finding::Level::Ok || explained, "{finding:?}");
            assert!(finding.name.split_once('.').is_some() && !finding.found.contains('\n'), "{finding:?}");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
