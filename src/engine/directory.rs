//! The directory thread: makes directories and files, in the order in which they were asked for.
//!
//! It is the one place that may wait for the file system's metadata, so that a reactor never does. What it opens goes back
//! to the reactor as descriptors; when a recording is finished it passes it on to the commit thread, after every small file
//! that was asked for before.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crossbeam::channel::{Receiver, Sender};

use super::commit::Finished;
use super::mailbox::{Letter, Mailbox, Opened};
use super::{cpu, disk};
use crate::limits;
use crate::session::{Failure, RecordingKey, SmallFile};

/// Owner and group may look into recordings; nobody else.
const DIRECTORY_MODE: u32 = 0o750;
const FILE_MODE: u32 = 0o640;

#[derive(Debug)]
pub enum Job {
    /// Make `path` (with `.part`) and the files in it, each with its header.
    Create {
        key: RecordingKey,
        path: String,
        files: Vec<NewFile>,
        small: Vec<SmallFile>,
    },
    /// More media files for a recording that is open.
    Add {
        key: RecordingKey,
        path: String,
        files: Vec<NewFile>,
    },
    /// Files of an `Add` that cannot be used after all.
    Remove {
        path: String,
        names: Vec<String>,
    },
    Small {
        path: String,
        file: SmallFile,
    },
    /// Nothing of it was ever accepted: remove the directory.
    Discard {
        path: String,
    },
    Commit(Box<Finished>),
}

#[derive(Debug)]
pub struct NewFile {
    pub name: String,
    pub header: Vec<u8>,
    /// What follows the header is written past the page cache, where the file system can do that.
    pub direct: bool,
}

pub struct Directory {
    root: PathBuf,
    jobs: Receiver<Job>,
    reactors: Vec<Mailbox>,
    commits: Sender<Box<Finished>>,
    /// What went wrong with small files of recordings that are still open.
    problems: HashMap<String, Vec<String>>,
}

impl Directory {
    pub fn new(
        root: PathBuf,
        jobs: Receiver<Job>,
        reactors: Vec<Mailbox>,
        commits: Sender<Box<Finished>>,
    ) -> Directory {
        Directory { root, jobs, reactors, commits, problems: HashMap::new() }
    }

    /// Runs until every reactor has dropped its end.
    pub fn run(mut self) {
        // An INVITE waits for what it makes, and what a file costs is less than a usual turn of the scheduler.
        let _ = cpu::run_soon(limits::REACTOR_SLICE);
        while let Ok(job) = self.jobs.recv() {
            self.handle(job);
        }
    }

    fn handle(&mut self, job: Job) {
        match job {
            Job::Create { key, path, files, small } => {
                let result = self.create(&path, &files, &small);
                self.answer(key, result);
            }
            Job::Add { key, path, files } => {
                let result = self.media_files(&path, &files);
                self.answer(key, result);
            }
            Job::Remove { path, names } => {
                names.iter().for_each(|name| drop(fs::remove_file(self.part(&path).join(name))));
            }
            Job::Small { path, file } => {
                if let Err(failure) = self.small_file(&path, &file) {
                    tracing::error!(path = failure.path, errno = failure.errno, "cannot {}", failure.what);
                    self.problems.entry(path).or_default().push(format!("{} not kept: {failure}", file.name));
                }
            }
            Job::Discard { path } => {
                self.problems.remove(&path);
                let _ = fs::remove_dir_all(self.part(&path));
            }
            Job::Commit(mut finished) => {
                let problems = self.problems.remove(&finished.path).unwrap_or_default();
                finished.manifest.problems.extend(problems);
                // Fails only when the commit thread is gone, and that one outlives this.
                let _ = self.commits.send(finished);
            }
        }
    }

    fn answer(&self, key: RecordingKey, result: Result<Vec<OwnedFd>, Failure>) {
        let reactor = &self.reactors[usize::from(key.reactor)];
        reactor.put(Letter::Opened(Opened { key, result }));
        reactor.ring_bell();
    }

    fn part(&self, path: &str) -> PathBuf {
        self.root.join(format!("{path}.part"))
    }

    fn create(&self, path: &str, files: &[NewFile], small: &[SmallFile]) -> Result<Vec<OwnedFd>, Failure> {
        let part = self.part(path);
        make_directory(&part).map_err(|e| Failure::new("create directory", format!("{path}.part"), &e))?;
        let filled = self.media_files(path, files).and_then(|opened| {
            small.iter().try_for_each(|file| self.small_file(path, file)).map(|()| opened)
        });
        if filled.is_err() {
            let _ = fs::remove_dir_all(&part);
        }
        filled
    }

    /// All of them or none: what an earlier one left would be in the way of the next attempt.
    fn media_files(&self, path: &str, files: &[NewFile]) -> Result<Vec<OwnedFd>, Failure> {
        let part = self.part(path);
        let mut opened = Vec::new();
        for (n, file) in files.iter().enumerate() {
            match media_file(&part, path, file) {
                Ok(file) => opened.push(file.into()),
                Err(failure) => {
                    files[..n].iter().for_each(|made| drop(fs::remove_file(part.join(&made.name))));
                    return Err(failure);
                }
            }
        }
        Ok(opened)
    }

    fn small_file(&self, path: &str, file: &SmallFile) -> Result<(), Failure> {
        let at = |what| move |e: io::Error| Failure::new(what, format!("{path}.part/{}", file.name), &e);
        let mut opened = create_file(&self.part(path).join(&file.name)).map_err(at("create file"))?;
        opened.write_all(&file.bytes).map_err(at("write file"))
    }
}

fn media_file(part: &Path, path: &str, file: &NewFile) -> Result<File, Failure> {
    let at = |what| move |e: io::Error| Failure::new(what, format!("{path}.part/{}", file.name), &e);
    let full = part.join(&file.name);
    let mut opened = create_file(&full).map_err(at("create file"))?;
    let begun =
        if file.direct { begin_directly(&opened, &file.header) } else { opened.write_all(&file.header) };
    begun.map_err(|e| {
        let _ = fs::remove_file(&full);
        at("write file header")(e)
    })?;
    Ok(opened)
}

/// A header left in the page cache would make the first direct write wait until it is on disk.
fn begin_directly(file: &File, header: &[u8]) -> io::Result<()> {
    match disk::write_directly(file) {
        // The other directory may be of a file system that has no such writes.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
        result => result?,
    }
    let mut aligned = vec![0u8; header.len() + limits::DISK_ALIGNMENT];
    let start = aligned.as_ptr().align_offset(limits::DISK_ALIGNMENT);
    let header_aligned = &mut aligned[start..start + header.len()];
    header_aligned.copy_from_slice(header);
    let mut file = file;
    file.write_all(header_aligned)
}

/// The hour's directory is there after its first recording, so the usual way is one call.
fn make_directory(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.mode(DIRECTORY_MODE);
    match builder.create(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            builder.recursive(true).create(path.parent().unwrap_or(path))?;
            builder.recursive(false).create(path)
        }
        result => result,
    }
}

fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_fail_leave_none_behind() {
        let root = tempfile::tempdir().unwrap();
        let (commits, _) = crossbeam::channel::bounded(1);
        let (_, jobs) = crossbeam::channel::bounded(1);
        let directory = Directory::new(root.path().to_owned(), jobs, Vec::new(), commits);
        let part = root.path().join("id.part");
        fs::create_dir(&part).unwrap();
        fs::write(part.join("c"), "in the way").unwrap();
        assert_eq!(directory.create("id", &[], &[]).unwrap_err().errno, libc::EEXIST);
        let files = ["a", "b", "c"].map(|name| NewFile {
            name: name.into(),
            header: b"header".to_vec(),
            direct: false,
        });
        assert_eq!(directory.media_files("id", &files).unwrap_err().errno, libc::EEXIST);
        assert_eq!(fs::read_dir(&part).unwrap().count(), 1);
        assert_eq!(directory.media_files("id", &files[..2]).unwrap().len(), 2);
    }

    #[test]
    fn directories_are_made_level_by_level_and_once() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("2026/11/22/07/id.part");
        make_directory(&path).unwrap();
        assert!(path.is_dir());
        assert_eq!(make_directory(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
