//! `sipreel recordings`: what is whole below a recordings directory, in the order of time; all recordings of one
//! communication session or one call, whichever of them had to continue another.
//!
//! It asks no running recorder. Without a filter it holds the names of one hour; with one, what it has found.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cli::RecordingsArgs;
use crate::clock::Wall;
use crate::limits::{MANIFEST_READ_MAX, RECORDINGS_FOUND_MAX};
use crate::proto::manifest::Resource;

/// What a manifest says, as far as it matters here; a line of `--json`. Manifests of other versions are read too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Recording {
    pub id: String,
    /// Below the directory that was given.
    #[serde(skip_deserializing)]
    pub path: String,
    pub start: String,
    pub end: Option<String>,
    pub end_cause: Option<String>,
    pub communication_sessions: Vec<String>,
    pub continues: Option<String>,
    pub sip: Sip,
    pub resource: Resource,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sip {
    pub call_id: String,
    pub source: String,
}

/// Why it ended before its end.
#[derive(Debug)]
pub enum Problem {
    Directory(PathBuf, io::Error),
    TooMany,
    Output(io::Error),
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Problem::Directory(path, e) => write!(f, "{} cannot be read: {e}", path.display()),
            Problem::TooMany => {
                write!(f, "more than {RECORDINGS_FOUND_MAX} recordings match: give a narrower filter")
            }
            Problem::Output(e) => write!(f, "the list cannot be written: {e}"),
        }
    }
}

/// Writes the list. Returns manifests that could not be read, in words.
pub fn list(args: &RecordingsArgs, out: &mut impl Write) -> Result<Vec<String>, Problem> {
    let mut unreadable = Vec::new();
    if !args.json {
        writeln!(out, "{:<27}  {:>9}  {:<12}  {:<36}  CALL-ID", "START", "SECONDS", "END", "ID")
            .map_err(Problem::Output)?;
    }
    if args.session_id.is_none() && args.call_id.is_none() {
        let mut write = |recording: Recording| recording.write(args.json, out).map_err(Problem::Output);
        walk(&args.dir, &mut unreadable, &mut write)?;
        return Ok(unreadable);
    }
    let mut found = BTreeMap::new();
    walk(&args.dir, &mut unreadable, &mut |recording| match args.asks_for(&recording, &found) {
        true => gather(&args.dir, recording, &mut found),
        false => Ok(()),
    })?;
    for recording in found.values() {
        recording.write(args.json, out).map_err(Problem::Output)?;
    }
    Ok(unreadable)
}

impl RecordingsArgs {
    /// Also what continues something that was asked for: it may have other names for the same session.
    fn asks_for(&self, recording: &Recording, found: &BTreeMap<String, Recording>) -> bool {
        let session =
            self.session_id.as_ref().is_some_and(|id| recording.communication_sessions.contains(id));
        let call = self.call_id.as_ref().is_some_and(|id| *id == recording.sip.call_id);
        session || call || recording.continues.as_ref().is_some_and(|id| found.contains_key(id))
    }
}

/// Takes a recording and those that it continues. An id tells the time, and so the directory.
fn gather(dir: &Path, recording: Recording, found: &mut BTreeMap<String, Recording>) -> Result<(), Problem> {
    let mut next = Some(recording);
    while let Some(recording) = next.take() {
        if found.len() >= RECORDINGS_FOUND_MAX {
            return Err(Problem::TooMany);
        }
        let before = recording.continues.clone().filter(|id| !found.contains_key(id) && *id != recording.id);
        next = before.and_then(|id| read(dir, &format!("{}/{id}", hour_of(&id)?)).ok());
        found.insert(recording.id.clone(), recording);
    }
    Ok(())
}

/// `2026/11/22/07`, from the first 48 bits of a UUID version 7: milliseconds.
fn hour_of(id: &str) -> Option<String> {
    let digits: String = id.get(..13)?.split('-').collect();
    let milliseconds = u64::from_str_radix(digits.get(..12)?, 16).ok()?;
    Some(Wall(milliseconds.checked_mul(1_000_000)?).hour_path())
}

/// Every whole recording, oldest first.
fn walk(
    dir: &Path,
    unreadable: &mut Vec<String>,
    visit: &mut impl FnMut(Recording) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let whole = |name: &str| !name.contains('.');
    for year in names(dir, "", |name| digits(name, 4))? {
        for month in names(dir, &year, |name| digits(name, 2))? {
            for day in names(dir, &month, |name| digits(name, 2))? {
                for hour in names(dir, &day, |name| digits(name, 2))? {
                    for path in names(dir, &hour, whole)? {
                        match read(dir, &path) {
                            Ok(recording) => visit(recording)?,
                            Err(_) if unreadable.len() >= RECORDINGS_FOUND_MAX => {}
                            Err(e) => unreadable.push(format!("{path}/recording.json: {e}")),
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

fn digits(name: &str, count: usize) -> bool {
    name.len() == count && name.bytes().all(|b| b.is_ascii_digit())
}

/// Paths of the directories in `dir/below` whose names fit, in order. One that is gone meanwhile is empty.
fn names(dir: &Path, below: &str, fits: impl Fn(&str) -> bool) -> Result<Vec<String>, Problem> {
    let path = if below.is_empty() { dir.to_owned() } else { dir.join(below) };
    let problem = |e| Problem::Directory(path.clone(), e);
    let entries = match fs::read_dir(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound && !below.is_empty() => return Ok(Vec::new()),
        entries => entries.map_err(problem)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(problem)?;
        let name = entry.file_name();
        if let Some(name) = name.to_str().filter(|name| fits(name))
            && entry.file_type().is_ok_and(|kind| kind.is_dir())
        {
            names.push(if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") });
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn read(dir: &Path, path: &str) -> io::Result<Recording> {
    let file = File::open(dir.join(path).join("recording.json"))?;
    let recording: Recording = serde_json::from_reader(BufReader::new(file.take(MANIFEST_READ_MAX)))?;
    Ok(Recording { path: path.to_owned(), ..recording })
}

impl Recording {
    fn write(&self, json: bool, out: &mut impl Write) -> io::Result<()> {
        if json {
            serde_json::to_writer(&mut *out, self)?;
            return writeln!(out);
        }
        let cause = self.end_cause.as_deref().unwrap_or("-");
        let seconds = self.seconds().map_or("-".to_owned(), |seconds| format!("{seconds:.1}"));
        let Recording { id, start, sip, .. } = self;
        let call_id: String = sip.call_id.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        write!(out, "{start:<27}  {seconds:>9}  {cause:<12}  {id:<36}  {call_id}")?;
        match &self.continues {
            Some(before) => writeln!(out, "  continues {before}"),
            None => writeln!(out),
        }
    }

    fn seconds(&self) -> Option<f64> {
        let (start, end) = (Wall::parse(&self.start)?, Wall::parse(self.end.as_deref()?)?);
        Some(end.0.saturating_sub(start.0) as f64 / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A directory with recordings of these ids (the time is theirs), sessions and predecessors.
    fn tree(recordings: &[(&str, &[&str], Option<&str>)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (id, sessions, continues) in recordings {
            let path = dir.path().join(hour_of(id).unwrap()).join(id);
            fs::create_dir_all(&path).unwrap();
            let manifest = json!({
                "version": 1, "id": id, "start": "2026-11-22T08:30:45.000000Z", "end": "2026-11-22T08:30:46.500000Z",
                "end_cause": "bye", "communication_sessions": sessions, "continues": continues,
                "sip": {"call_id": format!("call-{id}"), "transport": "udp"}, "new": [1],
            });
            fs::write(path.join("recording.json"), manifest.to_string()).unwrap();
        }
        dir
    }

    const A: &str = "019aa800-0000-7000-8000-000000000001";
    const B: &str = "019aaa00-0000-7000-8000-000000000002";
    const C: &str = "019aab00-0000-7000-8000-000000000003";

    fn list_json(dir: &Path, session_id: Option<&str>, call_id: Option<&str>) -> (Vec<String>, Vec<String>) {
        let args = RecordingsArgs {
            dir: dir.to_owned(),
            session_id: session_id.map(str::to_owned),
            call_id: call_id.map(str::to_owned),
            json: true,
        };
        let mut out = Vec::new();
        let unreadable = list(&args, &mut out).unwrap();
        let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
        (String::from_utf8(out).unwrap().lines().map(id).collect(), unreadable)
    }

    #[test]
    fn whole_recordings_in_the_order_of_time() {
        let dir = tree(&[(C, &["x"], None), (A, &["x"], None), (B, &["y"], None)]);
        fs::create_dir_all(dir.path().join(hour_of(A).unwrap()).join(format!("{B}.part"))).unwrap();
        fs::create_dir_all(dir.path().join("lost+found/22")).unwrap();
        assert_eq!(list_json(dir.path(), None, None), (vec![A.into(), B.into(), C.into()], vec![]));
        assert_eq!(list_json(dir.path(), Some("x"), None).0, [A, C]);
        assert_eq!(list_json(dir.path(), None, Some(&format!("call-{B}"))).0, [B]);
        assert!(list_json(dir.path(), Some("z"), None).0.is_empty());
    }

    /// The second and third of these go by other names, as after a failover they may.
    #[test]
    fn what_continues_another_belongs_to_it() {
        let dir = tree(&[(A, &["x"], None), (B, &[], Some(A)), (C, &["y"], Some(B))]);
        for session in ["x", "y"] {
            assert_eq!(list_json(dir.path(), Some(session), None).0, [A, B, C], "{session}");
        }
        assert_eq!(list_json(dir.path(), None, Some(&format!("call-{B}"))).0, [A, B, C]);
        let dir = tree(&[(B, &["x"], Some(C)), (C, &[], Some(B))]);
        assert_eq!(list_json(dir.path(), Some("x"), None).0, [B, C], "a circle has an end");
    }

    #[test]
    fn a_manifest_that_cannot_be_read_is_told_and_the_rest_is_there() {
        let dir = tree(&[(A, &[], None), (B, &[], None)]);
        fs::write(dir.path().join(hour_of(A).unwrap()).join(A).join("recording.json"), "{").unwrap();
        let (ids, unreadable) = list_json(dir.path(), None, None);
        assert_eq!(ids, [B]);
        assert!(unreadable.len() == 1 && unreadable[0].contains(A), "{unreadable:?}");
        let args = RecordingsArgs { dir: "/nonexistent".into(), session_id: None, call_id: None, json: true };
        assert!(
            list(&args, &mut Vec::new()).unwrap_err().to_string().contains("/nonexistent cannot be read")
        );
    }

    #[test]
    fn a_line_for_people() {
        let dir = tree(&[(A, &[], None), (B, &[], Some(A))]);
        let args = RecordingsArgs { dir: dir.path().into(), session_id: None, call_id: None, json: false };
        let mut out = Vec::new();
        list(&args, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].contains("1.5  bye") && lines[1].ends_with(&format!("call-{A}")), "{text}");
        assert!(lines[2].ends_with(&format!("continues {A}")), "{text}");
    }
}
