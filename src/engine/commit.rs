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
use sha2::{Digest, Sha256};

use crate::limits;
use crate::proto::manifest::{self, Manifest};
use crate::session::{Event, Failure};

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

pub struct Commit {
    root: PathBuf,
    finished: Receiver<Box<Finished>>,
    events: Sender<Event>,
    /// For hashing: one block at a time.
    buffer: Vec<u8>,
}

impl Commit {
    pub fn new(root: PathBuf, finished: Receiver<Box<Finished>>, events: Sender<Event>) -> Commit {
        Commit { root, finished, events, buffer: vec![0; limits::BLOCK_SIZE * 4] }
    }

    /// Runs until the directory thread has dropped its end.
    pub fn run(mut self) {
        while let Ok(first) = self.finished.recv() {
            let mut batch = vec![*first];
            batch.extend(self.finished.try_iter().take(limits::COMMIT_BATCH - 1).map(|finished| *finished));
            for event in self.commit(batch) {
                // Fails only when control is gone, which ends after the last commit is reported.
                let _ = self.events.send(event);
            }
        }
    }

    fn commit(&mut self, batch: Vec<Finished>) -> Vec<Event> {
        let together = batch.len() >= SYNC_TOGETHER;
        let mut events = Vec::new();
        let mut ready = Vec::new();
        for mut finished in batch {
            match self.attempt(|commit| commit.prepare(&mut finished, !together)) {
                Ok(()) => ready.push(finished),
                Err(failure) => events.push(Event::CommitFailed { id: finished.manifest.id, failure }),
            }
        }
        if together && sync_file_system(&self.root).is_err() {
            // The error is one file's: syncing each tells which, and keeps the others.
            ready.retain(|finished| match self.sync_files(&finished.path) {
                Ok(()) => true,
                Err(failure) => {
                    events.push(Event::CommitFailed { id: finished.manifest.id.clone(), failure });
                    false
                }
            });
        }
        events.extend(self.rename(ready));
        events
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

    /// Hashes the files, writes the manifest, and syncs both when asked to.
    fn prepare(&mut self, finished: &mut Finished, sync: bool) -> Result<(), Failure> {
        let part = self.root.join(format!("{}.part", finished.path));
        let at = |name: &str, what| {
            let path = format!("{}.part/{name}", finished.path);
            move |e: io::Error| Failure::new(what, path, &e)
        };
        for (name, length) in &finished.media {
            cut(&part.join(name), *length).map_err(at(name, "cut file to what was written"))?;
        }
        let bodies = finished.manifest.metadata.iter().map(|body| body.file.clone());
        let mut files = Vec::new();
        for name in finished.media.iter().map(|(name, _)| name.clone()).chain(bodies) {
            match self.hash(&part.join(&name), sync) {
                Ok((size, sha256)) => files.push(manifest::File { name, size, sha256 }),
                // A metadata body that could not be kept is among the problems already.
                Err(e) if e.kind() == io::ErrorKind::NotFound && name.starts_with("metadata-") => {}
                Err(e) => return Err(at(&name, "read file back")(e)),
            }
        }
        finished.manifest.files = files;
        write_manifest(&part, &finished.manifest, sync).map_err(at("recording.json", "write manifest"))
    }

    fn hash(&mut self, path: &Path, sync: bool) -> io::Result<(u64, String)> {
        let mut file = File::open(path)?;
        if sync {
            file.sync_all()?;
        }
        let (mut hasher, mut size) = (Sha256::new(), 0);
        loop {
            let n = file.read(&mut self.buffer)?;
            if n == 0 {
                break;
            }
            hasher.update(&self.buffer[..n]);
            size += n as u64;
        }
        Ok((size, hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
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
                    Event::Committed { id, incomplete: !problems.is_empty() }
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

fn cut(path: &Path, length: u64) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    if file.metadata()?.len() > length { file.set_len(length) } else { Ok(()) }
}

/// The manifest written at the start is replaced whole: there is always one that can be read.
fn write_manifest(part: &Path, manifest: &Manifest, sync: bool) -> io::Result<()> {
    let fresh = part.join("recording.json.new");
    let mut file = File::create(&fresh)?;
    let mut text = serde_json::to_vec_pretty(manifest)?;
    text.push(b'\n');
    file.write_all(&text)?;
    if sync {
        file.sync_all()?;
    }
    fs::rename(&fresh, part.join("recording.json"))?;
    if sync { File::open(part)?.sync_all() } else { Ok(()) }
}

fn sync_file_system(root: &Path) -> io::Result<()> {
    let directory = File::open(root)?;
    // SAFETY: syncfs takes a descriptor, which `directory` keeps open.
    if unsafe { libc::syncfs(directory.as_raw_fd()) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
