//! The recorder under test: the real binary on loopback, with ports, directory and stats socket of its own.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::lab::{self, Lab};
use crate::recording::Recording;

/// For everything that is a matter of milliseconds on an idle machine; tests share theirs with many.
pub const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);
/// Media ports of the tests: above the well-known ones, below the kernel's ephemeral range, so that no client socket of
/// another test takes one.
const PORTS: std::ops::Range<u16> = 12_000..32_000;

/// Asks until there is an answer.
#[track_caller]
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        thread::sleep(POLL);
    }
}

/// How a recorder is to be started.
pub struct Setup {
    ip: IpAddr,
    pairs: u16,
    flags: Vec<String>,
    /// Bytes of a file system in memory that holds the recordings.
    tmpfs: Option<usize>,
    /// RLIMIT_NOFILE.
    descriptors: Option<usize>,
    /// `sipreel` inside a lab, where it has all ports to itself.
    inside: Option<Command>,
    /// Of the recordings directory.
    owner: Option<u32>,
    sip_port: u16,
}

impl Setup {
    pub fn new() -> Setup {
        Setup {
            ip: Ipv4Addr::LOCALHOST.into(),
            pairs: 32,
            flags: Vec::new(),
            tmpfs: None,
            descriptors: None,
            inside: None,
            owner: None,
            sip_port: 0,
        }
    }

    pub fn ip(mut self, ip: &str) -> Setup {
        self.ip = ip.parse().unwrap();
        self
    }

    pub fn pairs(mut self, pairs: u16) -> Setup {
        self.pairs = pairs;
        self
    }

    pub fn flag(mut self, name: &str, value: &str) -> Setup {
        self.flags.extend([name.to_owned(), value.to_owned()]);
        self
    }

    /// Records into a file system of this size, which no other process sees and which ends with the recorder.
    pub fn tmpfs(mut self, bytes: usize) -> Setup {
        self.tmpfs = Some(bytes);
        self
    }

    pub fn descriptors(mut self, limit: usize) -> Setup {
        self.descriptors = Some(limit);
        self
    }

    /// At the recorder's end of a wire, on one of the addresses there.
    pub fn lab(mut self, lab: &Lab) -> Setup {
        self.inside = Some(lab.command("recorder", env!("CARGO_BIN_EXE_sipreel")));
        self
    }

    /// The same, started by this program, which takes the recorder as its last argument.
    pub fn lab_by(mut self, lab: &Lab, program: &str, arguments: &[String]) -> Setup {
        let mut command = lab.command("recorder", program);
        command.args(arguments).arg(env!("CARGO_BIN_EXE_sipreel"));
        self.inside = Some(command);
        self
    }

    /// Who may write to its directory.
    pub fn owned_by(mut self, user: u32) -> Setup {
        self.owner = Some(user);
        self
    }

    pub fn sip_port(mut self, port: u16) -> Setup {
        self.sip_port = port;
        self
    }

    /// `sockets`, `steered`, `xdp` on the lab's interface, or `auto`, which has that to choose.
    pub fn source(self, kind: &str) -> Setup {
        let setup = self.flag("--media-source-kind", kind);
        match kind {
            // A core for the wire's one queue.
            "xdp" | "auto" => {
                setup.flag("--xdp-interface", lab::INTERFACE).flag("--cores", &first_core().to_string())
            }
            _ => setup,
        }
    }

    pub fn start(self) -> Recorder {
        let mounted = self.tmpfs.is_some();
        let Spawned { child, home, dir, stats_socket, first_port } = self.spawn();
        let mut recorder = Recorder::ready(child, home, dir, stats_socket, mounted);
        recorder.first_port = first_port;
        recorder
    }

    /// Where it cannot start: its exit code and the one line that it logged.
    #[track_caller]
    pub fn refused(self) -> (Option<i32>, String) {
        let Spawned { child, home, .. } = self.spawn();
        let Output { status, stderr, .. } = child.wait_with_output().unwrap();
        drop(home);
        let text = String::from_utf8(stderr).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: Value = serde_json::from_str(&text).unwrap();
        (status.code(), line["message"].as_str().unwrap().to_owned())
    }

    fn spawn(self) -> Spawned {
        let home = TempDir::new().unwrap();
        let dir = home.path().join("recordings");
        fs::create_dir(&dir).unwrap();
        let stats_socket = home.path().join("stats.sock");
        if let Some(owner) = self.owner {
            for path in [home.path(), &dir] {
                std::os::unix::fs::chown(path, Some(owner), None).unwrap();
            }
        }
        let ports = match self.inside {
            Some(_) => format!("{}-{}", PORTS.start, PORTS.start + self.pairs * 2 - 1),
            None => media_ports(self.ip, self.pairs),
        };
        let mut command = match (self.inside, self.tmpfs, self.descriptors) {
            (Some(command), _, _) => command,
            (None, Some(bytes), _) => on_tmpfs(&dir, bytes),
            (None, None, Some(limit)) => limited(limit),
            (None, None, None) => Command::new(env!("CARGO_BIN_EXE_sipreel")),
        };
        let listen = SocketAddr::new(self.ip, self.sip_port).to_string();
        let child = command
            .arg("record")
            .args(["--dir".as_ref(), dir.as_os_str()])
            .args(["--sip-udp", &listen, "--sip-tcp", &listen, "--media-ports", &ports])
            .args(["--stats-socket".as_ref(), stats_socket.as_os_str()])
            .args(["--log-format", "json"])
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let first_port = ports.split('-').next().unwrap().parse().unwrap();
        Spawned { child, home, dir, stats_socket, first_port }
    }
}

/// A recorder that nothing has been heard of.
struct Spawned {
    child: Child,
    home: TempDir,
    dir: PathBuf,
    stats_socket: PathBuf,
    first_port: u16,
}

/// Of those that this process may run on.
fn first_core() -> usize {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    list.trim().split([',', '-']).next().unwrap().parse().unwrap()
}

/// A range of port pairs that no other test has and nobody else has bound.
fn media_ports(ip: IpAddr, pairs: u16) -> String {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let wanted = pairs * 2;
    let room = PORTS.end - PORTS.start - wanted;
    // Two runs of the tests at once begin at different places.
    let begin = (std::process::id() as u16).wrapping_mul(640) % (room / 2) * 2;
    for _ in 0..200 {
        let step = NEXT.fetch_add(wanted, Ordering::Relaxed);
        let offset = (begin.wrapping_add(step) % room) & !1;
        let first = PORTS.start + offset;
        if (first..first + wanted).all(|port| UdpSocket::bind((ip, port)).is_ok()) {
            return format!("{first}-{}", first + wanted - 1);
        }
    }
    panic!("no {pairs} port pairs in a row are free");
}

/// `unshare` with the mount made inside: it is gone when the recorder is, whatever becomes of the test.
fn on_tmpfs(dir: &Path, bytes: usize) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--", "sh", "-c"]);
    command.arg(format!(
        "mount -t tmpfs -o size={bytes} tmpfs '{}' && exec \"$0\" \"$@\"",
        dir.to_str().unwrap()
    ));
    command.arg(env!("CARGO_BIN_EXE_sipreel"));
    command
}

fn limited(descriptors: usize) -> Command {
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={descriptors}:{descriptors}")).arg(env!("CARGO_BIN_EXE_sipreel"));
    command
}

/// Whether this process may mount. Without it, tests of full and read-only disks say so and end.
pub fn may_mount() -> bool {
    let tried = Command::new("unshare")
        .args(["--mount", "--", "sh", "-c", "mount -t tmpfs tmpfs /mnt"])
        .stderr(Stdio::null())
        .status();
    let may = tried.is_ok_and(|status| status.success());
    if !may {
        eprintln!("skipped: mounting a file system needs privileges that this process does not have");
    }
    may
}

pub struct Recorder {
    child: Child,
    home: TempDir,
    dir: PathBuf,
    pub udp: SocketAddr,
    pub tcp: SocketAddr,
    pub port_pairs: u64,
    first_port: u16,
    pub stats_socket: PathBuf,
    log: Arc<Mutex<Vec<Value>>>,
}

impl Recorder {
    pub fn start() -> Recorder {
        Setup::new().start()
    }

    fn ready(
        mut child: Child,
        home: TempDir,
        dir: PathBuf,
        stats_socket: PathBuf,
        mounted: bool,
    ) -> Recorder {
        let log = Arc::new(Mutex::new(Vec::new()));
        let (stderr, lines) = (child.stderr.take().unwrap(), log.clone());
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(serde_json::from_str(&line).unwrap_or(Value::String(line)));
            }
        });
        let dir =
            if mounted { PathBuf::from(format!("/proc/{}/root{}", child.id(), dir.display())) } else { dir };
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut recorder = Recorder {
            child,
            home,
            dir,
            udp: nowhere,
            tcp: nowhere,
            port_pairs: 0,
            first_port: 0,
            stats_socket,
            log,
        };
        let ready = recorder.logged("ready");
        let address = |field: &str| ready[field].as_str().unwrap().parse().unwrap();
        (recorder.udp, recorder.tcp) = (address("sip_udp"), address("sip_tcp"));
        recorder.port_pairs = ready["port_pairs"].as_u64().unwrap();
        recorder
    }

    /// The log line of this event, when it is there.
    #[track_caller]
    pub fn logged(&mut self, event: &str) -> Value {
        eventually(&format!("a log line with event {event}"), || {
            let found = self.log().into_iter().find(|line| line["event"] == event);
            if found.is_none()
                && let Some(status) = self.child.try_wait().unwrap()
            {
                panic!("the recorder ended with {status}: {:?}", self.log());
            }
            found
        })
    }

    pub fn log(&self) -> Vec<Value> {
        self.log.lock().unwrap().clone()
    }

    /// The first of its media ports.
    pub fn first_port(&self) -> u16 {
        self.first_port
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where recordings are, as this process sees it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A place for a test's own files.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The reply of the stats socket to one command.
    pub fn ask(&self, command: &str) -> String {
        let mut socket = UnixStream::connect(&self.stats_socket).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(socket, "{command}").unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        std::io::read_to_string(socket).unwrap()
    }

    /// Asks for the stats again and again, over one connection.
    pub fn asking(&self) -> impl FnMut() -> Value + use<> {
        let mut socket = BufReader::new(UnixStream::connect(&self.stats_socket).unwrap());
        socket.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
        let mut ask = move || {
            writeln!(socket.get_mut(), "stats").unwrap();
            let mut reply = String::new();
            socket.read_line(&mut reply).unwrap();
            serde_json::from_str(&reply).unwrap()
        };
        ask();
        ask
    }

    pub fn stats(&self) -> Value {
        serde_json::from_str(&self.ask("stats")).unwrap()
    }

    /// The stats, once they are so.
    #[track_caller]
    pub fn stats_when(&self, what: &str, hold: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        eventually(what, || {
            last = self.stats();
            hold(&last).then(|| last.clone())
        })
    }

    /// Stats at a quiet moment: no block waits to be written, and every packet is accounted for.
    #[track_caller]
    pub fn quiet(&self) -> Value {
        let stats = self.stats_when("no packet is staged and all are accounted for", |stats| {
            stats["media"]["staged_packets"] == 0 && stats["media"]["unaccounted_packets"] == 0
        });
        let media = &stats["media"];
        let dropped: u64 = media["dropped"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
        assert_eq!(media["dropped_total"].as_u64(), Some(dropped));
        assert_eq!(number(media, "received_packets"), number(media, "recorded_packets") + dropped, "{media}");
        stats
    }

    /// Waits until every port pair is free again.
    #[track_caller]
    pub fn pool_whole(&self) -> Value {
        self.stats_when("every port pair is free again", |stats| {
            let ports = &stats["ports"];
            ports["free"] == self.port_pairs && ports["used"] == 0 && ports["cooling"] == 0
        })
    }

    /// `sipreel stats`, `sipreel sessions`.
    pub fn client(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sipreel"))
            .args(arguments)
            .args(["--socket".as_ref(), self.stats_socket.as_os_str()])
            .output()
            .unwrap()
    }

    /// Recordings under their final names, the oldest first.
    pub fn recordings(&self) -> Vec<Recording> {
        let mut found: Vec<PathBuf> =
            self.directories().into_iter().filter(|path| path.extension().is_none()).collect();
        found.sort();
        found.into_iter().map(Recording::open).collect()
    }

    /// Recordings that are not finished.
    pub fn parts(&self) -> Vec<PathBuf> {
        let part = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "part");
        self.directories().into_iter().filter(part).collect()
    }

    /// The one recording, when it is there.
    #[track_caller]
    pub fn recording(&self) -> Recording {
        self.committed(1).remove(0)
    }

    /// So many recordings, when they are there.
    #[track_caller]
    pub fn committed(&self, n: usize) -> Vec<Recording> {
        let whole = || self.directories().iter().filter(|path| path.extension().is_none()).count();
        eventually(&format!("{n} recordings are committed"), || (whole() >= n).then_some(()));
        let recordings = self.recordings();
        assert_eq!(recordings.len(), n);
        recordings
    }

    /// What lies in `DIR/YYYY/MM/DD/HH/`.
    fn directories(&self) -> Vec<PathBuf> {
        let mut level = vec![self.dir.clone()];
        for _ in 0..5 {
            let entries = level.iter().filter_map(|path| fs::read_dir(path).ok()).flatten();
            level = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
        }
        level
    }

    /// `TERM`, `INT`, `KILL`.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([format!("-{name}"), pid]).status().unwrap().success());
    }

    #[track_caller]
    pub fn exit(&mut self) -> ExitStatus {
        eventually("the recorder ends", || self.try_exit())
    }

    pub fn try_exit(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Ends it the usual way: in good order, and with nothing left unfinished.
    #[track_caller]
    pub fn stop(&mut self) {
        self.stop_after_errors();
        let errors: Vec<Value> = self.log().into_iter().filter(|line| line["level"] == "ERROR").collect();
        assert!(errors.is_empty(), "{errors:?}");
        assert!(self.parts().is_empty(), "{:?}", self.parts());
    }

    /// The same where the test has given it reason to log errors.
    #[track_caller]
    pub fn stop_after_errors(&mut self) {
        self.signal("TERM");
        let status = self.exit();
        assert_eq!(status.code(), Some(0), "{:?}", self.log());
    }

    /// Runs a shell command where the recorder's mounts are seen.
    pub fn inside(&self, command: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("nsenter")
            .args(["--target", &pid, "--mount", "--", "sh", "-ec", command])
            .status()
            .unwrap();
        assert!(status.success(), "{command}: {status}");
    }

    /// The recordings directory as the recorder sees it.
    pub fn dir_inside(&self) -> PathBuf {
        self.home.path().join("recordings")
    }

    /// Takes all room but `left` bytes of the file system that holds the recordings.
    pub fn fill_disk(&self, left: usize) -> PathBuf {
        let path = self.dir.join(".ballast");
        let mut file = File::create(&path).unwrap();
        let page = [0x55; 4_096];
        while file.write_all(&page).is_ok() {}
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(left as u64)).unwrap();
        path
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            for line in self.log() {
                eprintln!("recorder: {line}");
            }
        }
    }
}

#[track_caller]
pub fn number(object: &Value, field: &str) -> u64 {
    object[field].as_u64().unwrap_or_else(|| panic!("no number {field} in {object}"))
}
