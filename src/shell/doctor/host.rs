//! The files in which the kernel describes itself: /proc and /sys, below a root that tests put elsewhere.

use std::fs;
use std::io::Read;
use std::path::PathBuf;

/// One file: /proc/net/udp of a host with every media port bound has some 10 MiB.
const FILE_MAX: u64 = 64 * 1024 * 1024;

#[derive(Debug)]
pub struct Host {
    root: PathBuf,
    /// The process whose limits count: the recorder's while one runs, else ours.
    process: String,
}

impl Host {
    /// The machine itself, seen by this process.
    pub fn here() -> Host {
        Host { root: "/".into(), process: "self".into() }
    }

    /// The same with the limits and capabilities of another process.
    pub fn of_process(self, pid: u32) -> Host {
        let process = pid.to_string();
        if self.root.join("proc").join(&process).exists() { Host { process, ..self } } else { self }
    }

    /// A file without the white space at its end, the path written from the root: `/proc/stat`. `None`: it cannot be read,
    /// which for these files mostly means that what it describes is not there.
    pub fn read(&self, path: &str) -> Option<String> {
        let mut bytes = Vec::new();
        let file = fs::File::open(self.root.join(path.trim_start_matches('/'))).ok()?;
        file.take(FILE_MAX).read_to_end(&mut bytes).ok()?;
        bytes.truncate(bytes.trim_ascii_end().len());
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A file that holds one number.
    pub fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.trim().parse().ok()
    }

    /// The numbers of a file, white space between.
    pub fn numbers(&self, path: &str) -> Vec<u64> {
        let text = self.read(path).unwrap_or_default();
        text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
    }

    /// A file of the process whose limits count: `status`.
    pub fn process(&self, file: &str) -> Option<String> {
        self.read(&format!("/proc/{}/{file}", self.process))
    }

    pub fn exists(&self, path: &str) -> bool {
        self.root.join(path.trim_start_matches('/')).exists()
    }

    /// Names in a directory, sorted; none where it cannot be read.
    pub fn names(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(directory.trim_start_matches('/')));
        let mut names: Vec<String> = entries
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    /// Whether a process of this name runs.
    pub fn runs(&self, name: &str) -> bool {
        self.processes().any(|pid| self.read(&format!("/proc/{pid}/comm")).as_deref() == Some(name))
    }

    /// The process that has this socket among its descriptors: `rtpengine, pid 812`. A descriptor that only an io_uring
    /// holds is nobody's.
    pub fn owner_of_socket(&self, inode: u64) -> Option<String> {
        let target = format!("socket:[{inode}]");
        let pid = self.processes().find(|pid| {
            let descriptors = format!("/proc/{pid}/fd");
            self.names(&descriptors).iter().any(|fd| {
                let link = fs::read_link(self.root.join(format!("proc/{pid}/fd/{fd}")));
                link.is_ok_and(|link| link.as_os_str() == target.as_str())
            })
        })?;
        Some(format!("{}, pid {pid}", self.read(&format!("/proc/{pid}/comm")).unwrap_or_default()))
    }

    fn processes(&self) -> impl Iterator<Item = String> {
        self.names("/proc").into_iter().filter(|entry| entry.bytes().all(|b| b.is_ascii_digit()))
    }
}

/// A host of a few files, for the tests of the checks.
#[cfg(test)]
pub mod tests {
    use super::*;

    pub struct Fixture {
        pub host: Host,
        _root: tempfile::TempDir,
    }

    /// Each file by path and content.
    pub fn host(files: &[(&str, &str)]) -> Fixture {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Fixture { host: Host { root: root.path().into(), process: "self".into() }, _root: root }
    }

    #[test]
    fn files_below_the_root() {
        let f = host(&[
            ("/proc/sys/a", "7\n"),
            ("/proc/sys/b", "1 2\t3\n"),
            ("/proc/9/comm", "irqbalance\n"),
            ("/proc/self/status", "mine"),
            ("/proc/9/status", "its"),
        ]);
        assert_eq!((f.host.number("/proc/sys/a"), f.host.number("/proc/sys/c")), (Some(7), None));
        assert_eq!(f.host.numbers("/proc/sys/b"), [1, 2, 3]);
        assert_eq!(f.host.names("/proc/sys"), ["a", "b"]);
        assert!(f.host.runs("irqbalance") && !f.host.runs("chronyd"));
        fs::create_dir(f.host.root.join("proc/9/fd")).unwrap();
        std::os::unix::fs::symlink("socket:[4711]", f.host.root.join("proc/9/fd/5")).unwrap();
        assert_eq!(f.host.owner_of_socket(4_711).unwrap(), "irqbalance, pid 9");
        assert_eq!(f.host.owner_of_socket(1), None);
        assert_eq!(f.host.process("status").unwrap(), "mine");
        let other = Host { root: f.host.root.clone(), process: "self".into() };
        assert_eq!(other.of_process(9).process("status").unwrap(), "its");
        let gone = Host { root: f.host.root.clone(), process: "self".into() };
        assert_eq!(gone.of_process(10).process("status").unwrap(), "mine", "a process of another namespace");
    }
}
