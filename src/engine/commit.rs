//! The commit thread: hash, manifest, sync, rename. A final name means a whole, synced recording.
//!
//! Recordings that end together are committed together: one sync of the file system serves the batch, then each directory
//! is renamed and each parent synced once.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crossbeam::channel::{Receiver, Sender};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::cpu;
use crate::clock::Mono;
use crate::limits;
use crate::proto::manifest::{self, Manifest};
use crate::session::{Event, Failure};

pub const MANIFEST: &str = "recording.json";
/// Its name while it is written.
pub const FRESH: &str = "recording.json.new";

/// Recordings from which on one sync of the whole file system is cheaper than one per file.
const SYNC_TOGETHER: usize = 8;

/// A recording of which every byte is written.
#[derive(Debug)]
pub struct Finished {
    /// Below the recordings directory, without `.part`.
    pub path: String,
    pub manifest: Manifest,
    /// The media files and the length of what was written whole; what a failed write left behind it is cut off.
    pub media: Vec<(String, u64)>,
}

/// Recordings that wait for one sync, and what is to be said of those that could not be prepared.
#[derive(Default)]
struct Batch {
    ready: Vec<Finished>,
    events: Vec<Event>,
}

impl Batch {
    fn len(&self) -> usize {
        self.ready.len() + self.events.len()
    }
}

pub struct Commit {
    root: PathBuf,
    /// The root, open since the start, so that an error of any write since then is told to it.
    file_system: Option<File>,
    finished: Receiver<Box<Finished>>,
    events: Sender<Event>,
    /// For hashing: one block at a time.
    buffer: Vec<u8>,
}

impl Commit {
    pub fn new(root: PathBuf, finished: Receiver<Box<Finished>>, events: Sender<Event>) -> Commit {
        let file_system = File::open(&root).ok();
        Commit { root, file_system, finished, events, buffer: vec![0; limits::BLOCK_SIZE * 4] }
    }

    /// Runs until the directory thread has dropped its end.
    pub fn run(mut self) {
        // Nobody waits for a commit, but calls that begin do. Without it they wait a little longer.
        let _ = cpu::run_patiently();
        let mut next_sync = cpu::now().mono;
        while let Ok(first) = self.finished.recv() {
            let mut batch = Batch::default();
            self.add(*first, &mut batch);
            self.gather(next_sync, &mut batch);
            next_sync = cpu::now().mono + limits::COMMIT_INTERVAL;
            for event in self.commit(batch) {
                // Fails only when control is gone, which ends after the last commit is reported.
                let _ = self.events.send(event);
            }
        }
    }

    /// Prepares what has come, and what comes until a sync is due again: on an idle box none of it waits, on a busy one each
    /// sync serves many.
    fn gather(&mut self, next_sync: Mono, batch: &mut Batch) {
        while batch.len() < limits::COMMIT_BATCH {
            match self.finished.recv_timeout(next_sync.since(cpu::now().mono)) {
                Ok(finished) => self.add(*finished, batch),
                Err(_) => return,
            }
        }
    }

    fn add(&mut self, mut finished: Finished, batch: &mut Batch) {
        match self.attempt(|commit| commit.prepare(&mut finished)) {
            Ok(()) => batch.ready.push(finished),
            Err(failure) => batch.events.push(Event::CommitFailed { id: finished.manifest.id, failure }),
        }
    }

    fn commit(&mut self, batch: Batch) -> Vec<Event> {
        let Batch { mut ready, mut events } = batch;
        let together = ready.len() >= SYNC_TOGETHER && self.sync_file_system();
        // An error of all is one file's: syncing each tells which, and keeps the others. What is elsewhere is of another file system.
        ready.retain(|finished| {
            let done = together && !Path::new(&finished.path).is_absolute();
            let synced = if done { Ok(()) } else { self.sync_files(&finished.path) };
            if let Err(failure) = synced {
                events.push(Event::CommitFailed { id: finished.manifest.id.clone(), failure });
                return false;
            }
            true
        });
        events.extend(self.rename(ready));
        events
    }

    /// Everything that was written below the root. After the first error never again: it may have been of a file that is still being
    /// recorded, and the kernel tells it once.
    fn sync_file_system(&mut self) -> bool {
        // SAFETY: syncfs takes a descriptor, which the file keeps open.
        let synced = |root: &File| unsafe { libc::syncfs(root.as_raw_fd()) } == 0;
        self.file_system = self.file_system.take().filter(synced);
        self.file_system.is_some()
    }

    /// A transient failure (no descriptor, no memory) is tried again at once.
    fn attempt(&mut self, mut work: impl FnMut(&mut Self) -> Result<(), Failure>) -> Result<(), Failure> {
        let mut result = Ok(());
        for _ in 0..limits::COMMIT_ATTEMPTS {
            result = work(self);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// Hashes the files and writes the manifest.
    fn prepare(&mut self, finished: &mut Finished) -> Result<(), Failure> {
        let part = self.root.join(format!("{}.part", finished.path));
        let at = |name: &str, what| {
            let path = format!("{}.part/{name}", finished.path);
            move |e: io::Error| Failure::new(what, path, &e)
        };
        let mut files = Vec::new();
        for (name, length) in &finished.media {
            let cut = cut(&part.join(name), *length).map_err(at(name, "cut file to what was written"))?;
            files.push(self.hash(cut, name).map_err(at(name, "read file back"))?);
        }
        for body in &finished.manifest.metadata {
            match File::open(part.join(&body.file)).and_then(|file| self.hash(file, &body.file)) {
                Ok(file) => files.push(file),
                // One that could not be kept is among the problems already.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(at(&body.file, "read file back")(e)),
            }
        }
        finished.manifest.files = files;
        write_manifest(&part, &finished.manifest).map_err(at("recording.json", "write manifest"))
    }

    fn hash(&mut self, mut file: File, name: &str) -> io::Result<manifest::File> {
        let (mut hasher, mut size) = (Sha256::new(), 0);
        loop {
            let n = file.read(&mut self.buffer)?;
            if n == 0 {
                break;
            }
            hasher.update(&self.buffer[..n]);
            size += n as u64;
        }
        Ok(manifest::File { name: name.to_owned(), size, sha256: hexadecimal(&hasher.finalize()) })
    }

    fn sync_files(&self, path: &str) -> Result<(), Failure> {
        let part = self.root.join(format!("{path}.part"));
        let sync = || -> io::Result<()> {
            for entry in fs::read_dir(&part)? {
                File::open(entry?.path())?.sync_all()?;
            }
            File::open(&part)?.sync_all()
        };
        sync().map_err(|e| Failure::new("sync", format!("{path}.part"), &e))
    }

    fn rename(&self, ready: Vec<Finished>) -> Vec<Event> {
        let mut parents = BTreeSet::new();
        let mut events = Vec::new();
        for finished in ready {
            let (part, whole) =
                (self.root.join(format!("{}.part", finished.path)), self.root.join(&finished.path));
            let Manifest { id, problems, .. } = finished.manifest;
            events.push(match fs::rename(&part, &whole) {
                Ok(()) => {
                    parents.extend(whole.parent().map(Path::to_path_buf));
                    Event::Committed { id, path: finished.path, incomplete: !problems.is_empty() }
                }
                Err(e) => Event::CommitFailed {
                    id,
                    failure: Failure::new("rename", format!("{}.part", finished.path), &e),
                },
            });
        }
        for parent in parents {
            if let Err(e) = File::open(&parent).and_then(|directory| directory.sync_all()) {
                tracing::error!(path = %parent.display(), "renamed recordings, but syncing their directory failed: {e}");
            }
        }
        events
    }
}

/// The media file, ready to be read, without what a failed write left behind the last one that was whole.
fn cut(path: &Path, length: u64) -> io::Result<File> {
    let file = File::options().read(true).write(true).open(path)?;
    if file.metadata()?.len() > length {
        file.set_len(length)?;
    }
    Ok(file)
}

/// The manifest written at the start is replaced whole: there is always one that can be read.
fn write_manifest(part: &Path, manifest: &Manifest) -> io::Result<()> {
    let name = part.join(MANIFEST);
    match File::options().write(true).create_new(true).open(&name) {
        Ok(mut file) => file.write_all(&text(manifest)?),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => replace_manifest(part, manifest),
        Err(e) => Err(e),
    }
}

pub fn replace_manifest(part: &Path, manifest: &impl Serialize) -> io::Result<()> {
    let fresh = part.join(FRESH);
    File::create(&fresh)?.write_all(&text(manifest)?)?;
    fs::rename(&fresh, part.join(MANIFEST))
}

fn text(manifest: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(manifest)?;
    text.push(b'\n');
    Ok(text)
}

pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
