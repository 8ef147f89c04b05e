//! Which recorder a `.part` directory is of: each start takes a number, which is in the ids of all its recordings, and holds a
//! lock on a file of that number, `.sipreel/<number>.lock` in the recordings directory. A lock that nobody holds is that of a recorder
//! which has died, and what has its number was left by it. So several recorders share a directory, and none touches what another
//! is writing.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::clock::Wall;
use crate::session::id::INSTANCES;

const DIRECTORY: &str = ".sipreel";

/// A lock file that we hold. The lock ends with the process, the file does not.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    /// Of whose recordings, and from when on.
    pub number: u16,
    pub since: Wall,
    _file: File,
}

impl Lock {
    /// Nothing of this number is left.
    pub fn remove(self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The number of this start, and its lock in each recordings directory.
#[derive(Debug)]
pub struct Instance {
    pub number: u16,
    locks: Vec<Lock>,
}

impl Instance {
    /// Takes a number that nobody has had whose recordings may still be there, from `first` on.
    pub fn take(roots: &[PathBuf], first: u16, now: Wall) -> io::Result<Instance> {
        for root in roots {
            let made = DirBuilder::new().mode(0o750).create(root.join(DIRECTORY));
            made.or_else(|e| if e.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(e) })?;
        }
        for step in 0..INSTANCES {
            let number = (first % INSTANCES + step) % INSTANCES;
            let locks: io::Result<Vec<Option<Lock>>> =
                roots.iter().map(|root| claim(root, number, now)).collect();
            match locks?.into_iter().collect::<Option<Vec<Lock>>>() {
                Some(locks) => return Ok(Instance { number, locks }),
                None => continue,
            }
        }
        Err(io::Error::other("all numbers are taken: remove the files of dead recorders in .sipreel"))
    }

    /// Everything of this number is committed.
    pub fn leave(self) {
        self.locks.into_iter().for_each(Lock::remove);
    }
}

/// `None`: the number is another's in this directory.
fn claim(root: &Path, number: u16, now: Wall) -> io::Result<Option<Lock>> {
    let path = path(root, number);
    match File::create_new(&path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
        file => writeln!(file?, "{}", now.0)?,
    }
    // For reading: a file that is open for writing would keep the file system from being made read-only.
    let file = match File::open(&path) {
        // Another start has found it before it was locked, and taken it for that of a dead recorder.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    Ok(locked(&file, &path)?.then_some(Lock { path, number, since: now, _file: file }))
}

/// The locks of recorders that have died, which are ours from now on.
pub fn dead(root: &Path) -> io::Result<Vec<Lock>> {
    let mut dead = Vec::new();
    for entry in fs::read_dir(root.join(DIRECTORY))? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let Ok(number) = u16::from_str_radix(stem, 16) else { continue };
        let mut file = match File::open(&path) {
            // Its recorder has ended meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        if locked(&file, &path)? {
            let mut text = String::new();
            let _ = file.read_to_string(&mut text);
            // One that died while it wrote the time has left nothing before.
            let since = Wall(text.trim().parse().unwrap_or_default());
            dead.push(Lock { path, number, since, _file: file });
        }
    }
    Ok(dead)
}

/// Whether the lock is ours, and the file still the one of that name: who finishes what a dead recorder left removes it.
fn locked(file: &File, path: &Path) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => {
            Ok(fs::metadata(path)
                .is_ok_and(|named| file.metadata().is_ok_and(|own| own.ino() == named.ino())))
        }
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(e),
    }
}

fn path(root: &Path, number: u16) -> PathBuf {
    root.join(DIRECTORY).join(format!("{number:03x}.lock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_living_and_the_dead() {
        let root = tempfile::tempdir().unwrap();
        let roots = [root.path().to_path_buf()];
        let first = Instance::take(&roots, 0xfff, Wall(7)).unwrap();
        let second = Instance::take(&roots, 0xfff, Wall(8)).unwrap();
        assert_eq!((first.number, second.number), (0xfff, 0), "numbers go round");
        assert!(dead(root.path()).unwrap().is_empty(), "both live");
        drop(first);
        let found = dead(root.path()).unwrap();
        assert_eq!(
            found.iter().map(|lock| (lock.number, lock.since)).collect::<Vec<_>>(),
            [(0xfff, Wall(7))]
        );
        assert!(dead(root.path()).unwrap().is_empty(), "one at a time looks after them");
        assert_eq!(
            Instance::take(&roots, 0xfff, Wall(9)).unwrap().number,
            1,
            "what it left may still be there"
        );
        found.into_iter().for_each(Lock::remove);
        second.leave();
        assert_eq!(Instance::take(&roots, 0xfff, Wall(9)).unwrap().number, 0xfff);
    }

    #[test]
    fn a_number_is_free_in_every_directory() {
        let roots = [0, 1].map(|_| tempfile::tempdir().unwrap());
        let paths = [0, 1].map(|n: usize| roots[n].path().to_path_buf());
        let _other = Instance::take(&paths[1..], 5, Wall(1)).unwrap();
        assert_eq!(Instance::take(&paths, 5, Wall(1)).unwrap().number, 6);
    }
}
