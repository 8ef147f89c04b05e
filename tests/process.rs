//! The process as its operator sees it: flags, log, signals, service manager, stats socket, systemd unit.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;

const SIPREEL: &str = env!("CARGO_BIN_EXE_sipreel");
/// Longer than any answer of a process on a busy machine takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A recorder on loopback with ports of its own, in a directory of its own.
struct Recorder {
    child: Child,
    log: Receiver<String>,
    dir: tempfile::TempDir,
    notified: UnixDatagram,
}

impl Recorder {
    /// Started, not yet known to be ready.
    fn start(media_ports: &str) -> Recorder {
        let dir = tempfile::tempdir().unwrap();
        let notified = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        notified.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut child = record(dir.path(), media_ports)
            .env("NOTIFY_SOCKET", dir.path().join("notify"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = lines(&mut child);
        Recorder { child, log, dir, notified }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("stats.sock")
    }

    /// The next log line of this event; the lines before it are passed over.
    fn event(&mut self, event: &str) -> Value {
        loop {
            let line = self.log.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no event {event}"));
            let line: Value = serde_json::from_str(&line).expect(&line);
            if line["event"] == event {
                return line;
            }
        }
    }

    fn notification(&self) -> String {
        let mut buffer = [0; 4_096];
        let length = self.notified.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    /// The exit code. The log ends when the process does.
    fn ended(&mut self) -> Option<i32> {
        while self.log.recv_timeout(PATIENCE).is_ok() {}
        self.child.kill().unwrap();
        self.child.wait().unwrap().code()
    }

    fn signal(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // It has ended already unless a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the process writes to stderr, read by a thread so that a test can give up.
fn lines(child: &mut Child) -> Receiver<String> {
    let (send, lines) = channel();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
    lines
}

fn record(dir: &Path, media_ports: &str) -> Command {
    let mut command = Command::new(SIPREEL);
    command
        .args(["record", "--sip-udp=127.0.0.1:0", "--sip-tcp=127.0.0.1:0", "--log-format=json"])
        .arg(format!("--media-ports={media_ports}"))
        .arg(format!("--dir={}", dir.join("recordings").display()))
        .arg(format!("--stats-socket={}", dir.join("stats.sock").display()));
    command
}

fn sipreel(args: &[&str]) -> Output {
    Command::new(SIPREEL).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What the README begins with.
#[test]
fn the_demo_proves_its_recordings() {
    let dir = tempfile::tempdir().unwrap();
    let output = sipreel(&["demo", "--dir", dir.path().to_str().unwrap()]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    assert!(said.contains("Every packet has been read back") && said.contains("wireshark /"), "{said}");
}

#[test]
fn from_start_to_end() {
    let mut recorder = Recorder::start("51000-51019");
    let ready = recorder.event("ready");
    let notification = recorder.notification();
    assert!(notification.starts_with("READY=1\nSTATUS=recording, 10 port pairs"), "{notification}");
    assert_eq!(ready["port_pairs"], 10);
    assert_eq!(ready["pid"], recorder.child.id());
    assert_eq!(ready["stats_socket"], recorder.socket().to_str().unwrap());
    for transport in ["sip_udp", "sip_tcp"] {
        let address: std::net::SocketAddr = ready[transport].as_str().unwrap().parse().unwrap();
        assert_ne!(address.port(), 0, "{transport} is the address that was bound");
    }

    recorder.signal("TERM");
    assert_eq!(recorder.event("draining")["signal"], "SIGTERM");
    let notification = recorder.notification();
    assert!(notification.starts_with("STOPPING=1\nEXTEND_TIMEOUT_USEC=62000000\n"), "{notification}");
    assert_eq!(recorder.event("ended")["failed"], 0);
    assert_eq!(recorder.ended(), Some(0));
    assert!(!recorder.socket().exists(), "the stats socket is removed");
}

#[test]
fn the_stats_socket_and_its_clients() {
    let mut recorder = Recorder::start("51020-51039");
    recorder.event("ready");
    let socket = recorder.socket();
    let socket = socket.to_str().unwrap();

    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"stats\nsessions\nhelp\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let (stats, rest) = reply.split_once('\n').unwrap();
    assert!(rest.starts_with("\nstats "), "no session, then the help: {rest}");
    let stats: Value = serde_json::from_str(stats).unwrap();
    assert_eq!(stats["recorder"]["pid"], recorder.child.id());
    assert_eq!(stats["media"]["unaccounted_packets"], 0);

    let json = sipreel(&["stats", "--json", "--socket", socket]);
    let stats: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(stats["sessions"]["active"], 0);
    let table = sipreel(&["stats", "--socket", socket]);
    assert!(table.status.success() && text(&table.stdout).contains("\nsessions      0 active of at most"));
    let sessions = sipreel(&["sessions", "--socket", socket]);
    assert_eq!(text(&sessions.stdout), "no session is being recorded\n");
    assert_eq!(text(&sipreel(&["sessions", "--json", "--socket", socket]).stdout), "");
}

#[test]
fn a_second_recorder_on_the_same_stats_socket_is_refused() {
    let mut first = Recorder::start("51040-51059");
    first.event("ready");
    let second = record(first.dir.path(), "51060-51079").output().unwrap();
    assert_eq!(second.status.code(), Some(2));
    let line: Value = serde_json::from_slice(&second.stderr).unwrap();
    assert!(line["message"].as_str().unwrap().contains("a recorder is already running"), "{line}");
    assert!(first.socket().exists());
}

#[test]
fn a_start_that_fails_takes_no_number() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let address = format!("--sip-tcp={address}");
    let mut command = Command::new(SIPREEL);
    command.args(["record", "--sip-udp=127.0.0.1:0", &address, "--media-ports=51140-51159"]);
    command.arg(format!("--dir={}", dir.path().join("recordings").display()));
    command.arg(format!("--stats-socket={}", dir.path().join("stats.sock").display()));
    assert_ne!(command.output().unwrap().status.code(), Some(0));
    let locks = std::fs::read_dir(dir.path().join("recordings/.sipreel"));
    assert_eq!(
        locks.into_iter().flatten().count(),
        0,
        "4,096 such starts, and no dead recorder would be looked for"
    );
}

#[test]
fn a_socket_that_a_killed_recorder_left_is_taken_over() {
    let mut killed = Recorder::start("51080-51099");
    killed.event("ready");
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    assert!(killed.socket().exists());
    let mut next = record(killed.dir.path(), "51080-51099").stderr(Stdio::piped()).spawn().unwrap();
    let lines = lines(&mut next);
    let mut log = Vec::new();
    while let Ok(line) = lines.recv_timeout(PATIENCE) {
        let ready = line.contains("\"event\":\"ready\"");
        log.push(line);
        if ready {
            break;
        }
    }
    next.kill().unwrap();
    next.wait().unwrap();
    assert!(log.last().is_some_and(|line| line.contains("\"event\":\"ready\"")), "{log:?}");
}

#[test]
fn flags_that_cannot_work_are_refused_in_one_line() {
    for flags in
        [&["--media-ports=51001-51010"][..], &["--dir=/dev/null/x"], &["--sip-udp=none", "--sip-tcp=none"]]
    {
        let output = sipreel(&[&["record"], flags].concat());
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
        assert_eq!(text(&output.stderr).lines().count(), 1, "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("ERROR --"), "{}", text(&output.stderr));
    }
    assert_eq!(
        sipreel(&["record", "--flush-interval=soon"]).status.code(),
        Some(2),
        "flags that cannot be read"
    );
}

#[test]
fn clients_say_when_no_recorder_runs() {
    for command in ["stats", "sessions"] {
        let output = sipreel(&[command, "--socket", "/nowhere/sipreel.sock"]);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(text(&output.stdout), "");
        assert!(text(&output.stderr).starts_with("sipreel: no recorder answers at /nowhere/sipreel.sock"));
    }
}

/// Skipped where the tool is not installed, unless `SIPREEL_REQUIRE_PEERS` says that it must be.
#[test]
fn systemd_accepts_the_unit() {
    let unit = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/sipreel.service")).unwrap();
    assert_eq!(unit.matches("/usr/bin/sipreel ").count(), 1);
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("sipreel.service");
    // `verify` wants the program to exist.
    fs::write(&copy, unit.replace("/usr/bin/sipreel ", &format!("{SIPREEL} "))).unwrap();
    match Command::new("systemd-analyze").arg("verify").arg(&copy).output() {
        Ok(output) => {
            // It warns of a key it does not know and succeeds all the same.
            let complaints: Vec<&str> =
                text(&output.stderr).lines().filter(|line| line.contains("sipreel")).collect();
            assert!(output.status.success() && complaints.is_empty(), "{complaints:?}");
        }
        Err(error) if std::env::var_os("SIPREEL_REQUIRE_PEERS").is_some() => {
            panic!("systemd-analyze: {error}")
        }
        Err(_) => eprintln!("skipped: systemd-analyze is not installed"),
    }
}

/// The sentence of each limit stands above it.
#[test]
fn every_limit_of_the_unit_has_its_reason() {
    let unit = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/sipreel.service")).unwrap();
    let lines: Vec<&str> = unit.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        let is_limit =
            ["Limit", "Timeout", "TasksMax", "OOMScoreAdjust"].iter().any(|key| line.starts_with(key));
        assert!(!is_limit || lines[number - 1].starts_with("# "), "{line} has no reason");
    }
}

fn flags(command: &str) -> Vec<String> {
    let help = sipreel(&[command, "--help"]);
    let flags = text(&help.stdout).lines().map(str::trim_start).filter(|line| line.starts_with("--"));
    flags.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

fn finding<'a>(report: &'a Value, name: &str) -> &'a Value {
    let findings = report["findings"].as_array().unwrap();
    findings.iter().find(|finding| finding["name"] == name).unwrap_or_else(|| panic!("no {name} in {report}"))
}

#[test]
fn doctor_looks_at_the_recorder_that_runs() {
    let mut recorder = Recorder::start("51120-51139");
    recorder.event("ready");
    let socket = recorder.socket();
    let output = sipreel(&["doctor", "--json", "--no-disk", "--stats-socket", socket.to_str().unwrap()]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["machine"]["recorder_pid"], recorder.child.id());
    assert_eq!(report["machine"]["media_ports"], "51120-51139");
    assert!(report["machine"]["dir"].as_str().unwrap().ends_with("/recordings"), "{report}");
    for name in
        ["recorder.running", "recorder.drops", "recorder.writes", "ports.media", "ports.sip", "dir.write"]
    {
        assert_eq!(finding(&report, name)["level"], "ok", "{name}: {report}");
    }
    assert!(finding(&report, "disk.speed")["found"].as_str().unwrap().contains("--no-disk"));
    let code = match report["worst"].as_str().unwrap() {
        "fail" => 2,
        "warn" => 1,
        _ => 0,
    };
    assert_eq!(output.status.code(), Some(code));
}

#[test]
fn doctor_measures_the_disk_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let directory = format!("--dir={}", dir.path().join("recordings").display());
    let output = sipreel(&["doctor", &directory, "--media-ports=51140-51141"]);
    let page = text(&output.stdout);
    assert!(page.contains(" MB/s in 64 KiB writes to 256 files"), "{page}");
    assert!(page.contains("1 streams on media ports 51140-51141"), "{page}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is made, and nothing is left");
}

#[test]
fn doctor_fails_for_what_cannot_work() {
    let output = sipreel(&["doctor", "--json", "--no-disk", "--xdp-interface=absent0"]);
    assert_eq!(output.status.code(), Some(2));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(finding(&report, "nic.link")["level"], "fail");
    assert_eq!(report["findings"][0]["level"], "fail", "the worst is first");
    let reversed = sipreel(&["doctor", "--media-ports=51200-51100"]);
    assert_eq!((reversed.status.code(), text(&reversed.stdout)), (Some(2), ""));
    assert!(text(&reversed.stderr).contains("--media-ports 51200-51100"), "{}", text(&reversed.stderr));
}

/// The README has a row for every flag, and every name that a monitor may meet.
#[test]
fn the_readme_knows_every_flag_and_every_cause() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    for (command, least) in [("record", 10), ("doctor", 6)] {
        let (_, section) = readme.split_once(&format!("\n## Flags of `sipreel {command}`\n")).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let flags = flags(command);
        assert!(flags.len() >= least, "{flags:?}");
        for flag in flags {
            let row = [" ", "`"].iter().any(|end| section.contains(&format!("| `{flag}{end}")));
            assert!(row, "{flag} of {command} is not in the README");
        }
    }

    let mut recorder = Recorder::start("51100-51119");
    recorder.event("ready");
    let stats = sipreel(&["stats", "--json", "--socket", recorder.socket().to_str().unwrap()]);
    let stats: Value = serde_json::from_slice(&stats.stdout).unwrap();
    let wire = &stats["sip"]["wire"];
    let parts = [
        &stats,
        &stats["media"]["dropped"],
        &stats["sessions"]["refused"],
        &wire["connections_refused"],
        &wire["connections_closed"],
        &wire["tls_failed"],
    ];
    for name in parts.iter().flat_map(|part| part.as_object().unwrap().keys()) {
        assert!(readme.contains(&format!("`{name}`")), "{name} is not in the README");
    }
}
