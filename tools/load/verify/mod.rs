//! Reads recordings back and proves, packet by packet, that what was sent is there exactly once and bit for bit. It needs nothing
//! but the directory: every recording's metadata says which run it belongs to and what was sent.

mod check;
pub mod frames;
mod recording;

pub use check::Counts;

use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::clock;
use super::plan::Plan;
use recording::{Examined, MANIFEST, examine};

/// Findings that are told in words; further ones are counted.
const FINDINGS_MAX: usize = 100;
/// Directories deep below the one given: DIR/YYYY/MM/DD/HH/id, and a few that were put above.
const DEPTH_MAX: usize = 12;

/// What one run really did, where that is known: only its established calls are expected, for as long as they were sent.
pub struct Scope {
    pub plan: Plan,
    /// Turns sent of each stream, by call.
    pub turns: HashMap<u32, Vec<u32>>,
}

/// The result of reading a directory back.
#[derive(Clone, Debug, Default, Serialize)]
pub struct VerifyReport {
    pub recordings: u64,
    /// Recordings that no run of this tool made: only their files are compared with their manifests.
    pub foreign: u64,
    pub runs: u64,
    pub calls_without_recording: u64,
    #[serde(flatten)]
    pub counts: Counts,
    /// Directories that are still being written, or were left behind.
    pub unfinished: Vec<PathBuf>,
    /// What is wrong, in words: `2026/…/id: manifest: lost is 3, should be 0`.
    pub findings: Vec<String>,
    pub findings_total: u64,
    pub seconds: f64,
}

impl VerifyReport {
    /// Everything is there exactly once, bit for bit, and told truthfully.
    pub fn is_whole(&self) -> bool {
        self.counts.is_whole()
            && self.calls_without_recording == 0
            && self.unfinished.is_empty()
            && self.findings_total == 0
    }

    fn find(&mut self, finding: String) {
        self.findings_total += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }
}

/// Verifies all recordings below `dir`.
pub fn verify(dir: &Path) -> io::Result<VerifyReport> {
    verify_scope(dir, None)
}

/// Verifies the recordings of one run below `dir`.
pub fn verify_run(dir: &Path, scope: &Scope) -> io::Result<VerifyReport> {
    verify_scope(dir, Some(scope))
}

/// Directories below `dir` whose name says that they are not whole.
pub fn unfinished(dir: &Path) -> HashSet<PathBuf> {
    let mut found = Found::default();
    let _ = found.walk(dir, 0);
    found.unfinished.into_iter().collect()
}

fn verify_scope(dir: &Path, scope: Option<&Scope>) -> io::Result<VerifyReport> {
    let start = clock::now();
    let mut found = Found::default();
    found.walk(dir, 0)?;
    let mut report = VerifyReport { unfinished: found.unfinished, ..VerifyReport::default() };
    let mut runs: BTreeMap<String, Run> = BTreeMap::new();
    if let Some(scope) = scope {
        runs.insert(scope.plan.run.clone(), Run::new(scope.plan.clone()));
    }
    for examined in examine_all(&found.recordings, scope) {
        merge(dir, examined, &mut runs, &mut report);
    }
    runs.values().for_each(|run| run.add_absent(scope, &mut report));
    report.runs = runs.len() as u64;
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

#[derive(Default)]
struct Found {
    recordings: Vec<PathBuf>,
    unfinished: Vec<PathBuf>,
}

impl Found {
    fn walk(&mut self, dir: &Path, depth: usize) -> io::Result<()> {
        let mut below = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                below.push(entry.path());
            } else if entry.file_name() == MANIFEST {
                self.recordings.push(dir.to_owned());
            }
        }
        below.sort();
        for path in below {
            if path.extension().is_some_and(|extension| extension == "part") {
                self.unfinished.push(path);
            } else if depth < DEPTH_MAX {
                // A directory that was renamed under way is found under its new name, or next time.
                self.walk(&path, depth + 1).or_else(|error| match error.kind() {
                    io::ErrorKind::NotFound => Ok(()),
                    _ => Err(error),
                })?;
            }
        }
        Ok(())
    }
}

/// On all cores, a recording at a time each.
fn examine_all(paths: &[PathBuf], scope: Option<&Scope>) -> Vec<Examined> {
    let next = AtomicUsize::new(0);
    let work = || {
        let taken = std::iter::from_fn(|| paths.get(next.fetch_add(1, Ordering::Relaxed)));
        taken.filter_map(|path| examine(path, scope)).collect::<Vec<Examined>>()
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|threaded| {
        let workers: Vec<_> = (0..threads).map(|_| threaded.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("examining does not panic")).collect()
    })
}

/// A run as its recordings tell of it.
struct Run {
    plan: Plan,
    seen: BTreeSet<u32>,
}

impl Run {
    fn new(plan: Plan) -> Run {
        Run { plan, seen: BTreeSet::new() }
    }

    /// A call without a recording: all its packets are missing.
    fn add_absent(&self, scope: Option<&Scope>, report: &mut VerifyReport) {
        for call in (0..self.plan.calls).filter(|call| !self.seen.contains(call)) {
            let turns = match scope {
                Some(scope) => scope.turns.get(&call).cloned(),
                None => Some(vec![self.plan.turns; self.plan.streams as usize]),
            };
            let Some(turns) = turns else { continue };
            let sent =
                (0..).zip(turns).map(|(n, turns)| self.plan.tally(&self.plan.stream(call, n), turns).packets);
            let sent: u64 = sent.sum();
            report.counts.expected += sent;
            report.counts.missing += sent;
            report.calls_without_recording += 1;
            report.find(format!("run {}: call {call} has no recording", self.plan.run));
        }
    }
}

fn merge(dir: &Path, examined: Examined, runs: &mut BTreeMap<String, Run>, report: &mut VerifyReport) {
    let path = examined.path.strip_prefix(dir).unwrap_or(&examined.path).display().to_string();
    report.recordings += 1;
    examined.findings.iter().for_each(|finding| report.find(format!("{path}: {finding}")));
    let Some(described) = examined.described else {
        report.foreign += 1;
        return;
    };
    let run = runs.entry(described.plan.run.clone()).or_insert_with(|| Run::new(described.plan.clone()));
    if run.plan != described.plan {
        report.find(format!("{path}: describes its run differently from other recordings of it"));
    }
    let mut counts = examined.counts;
    if !run.seen.insert(described.call) {
        report.find(format!("{path}: call {} is recorded twice", described.call));
        // All that was found the first time is there once more.
        counts = Counts { duplicated: counts.found + counts.duplicated, ..Counts::default() };
    }
    report.counts.add(&counts);
}

#[cfg(test)]
pub mod tests;
