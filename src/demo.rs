//! `sipreel demo`: a recorder on loopback, 20 calls that can be listened to, and the proof that they were recorded.
//!
//! The recorder is this program again, as a child with its defaults; the SRC is the load tool, and so is the proof.

use std::fmt::Display;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use serde_json::Value;
use sipreel::proto::manifest::Format;
use sipreel::shell::cli::DemoArgs;

use crate::load::{self, Audio, Happening, RunOptions};

const CALLS: u32 = 20;
const SECONDS: f64 = 6.0;
const CALLS_PER_SECOND: f64 = 10.0;

pub fn run(args: &DemoArgs) -> ExitCode {
    match play(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(sentence) => {
            eprintln!("sipreel demo: {sentence}");
            ExitCode::FAILURE
        }
    }
}

fn play(args: &DemoArgs) -> Result<bool, String> {
    let dir = directory(args)?;
    println!("Recordings go to {}\n", dir.display());
    let mut recorder = Recorder::start(&dir, args.format)?;
    println!(
        "The recorder listens for SIP on {} (UDP) and is process {}.",
        recorder.sip,
        recorder.child.id()
    );
    println!("Placing {CALLS} calls of two legs each, {SECONDS} s of G.711 tones that rise and fall:\n");
    let options = RunOptions {
        target: recorder.sip,
        calls: CALLS,
        rate: CALLS_PER_SECOND,
        duration: SECONDS,
        audio: Some(Audio::Tone),
        ..RunOptions::default()
    };
    let stop = Arc::new(AtomicBool::new(false));
    let report = load::run(&options, &stop, &mut |happening| tell(&happening)).map_err(|e| e.to_string())?;
    println!("\n{} RTP packets sent. Stopping the recorder …", report.media.packets_sent);
    recorder.stop()?;
    let proof = load::verify(&dir).map_err(|e| format!("cannot read {} back: {e}", dir.display()))?;
    println!("Every packet has been read back and compared with what was sent:\n\n{proof}");
    explain(&dir, args.format)?;
    Ok(report.is_good() && proof.is_whole())
}

fn tell(happening: &Happening<'_>) {
    match happening {
        Happening::Over { .. } | Happening::Verifying => {}
        _ => println!("  {happening}"),
    }
}

/// A new directory for each run, so that what is proved is what this run recorded.
fn directory(args: &DemoArgs) -> Result<PathBuf, String> {
    let dir = args
        .dir
        .clone()
        .unwrap_or_else(|| std::env::temp_dir().join(format!("sipreel-demo-{}", std::process::id())));
    fs::create_dir_all(&dir).map_err(|e| sentence("cannot make", &dir, &e))?;
    fs::canonicalize(&dir).map_err(|e| sentence("cannot find", &dir, &e))
}

fn sentence(what: &str, path: &Path, why: &impl Display) -> String {
    format!("{what} {} ({why}): give another --dir", path.display())
}

struct Recorder {
    child: Child,
    sip: SocketAddr,
}

impl Recorder {
    fn start(dir: &Path, format: Format) -> Result<Recorder, String> {
        // Port 5060 unless somebody has it; then one that the kernel chooses.
        let usual = SocketAddr::from(([127, 0, 0, 1], 5060));
        let listen =
            if UdpSocket::bind(usual).is_ok() { usual } else { SocketAddr::from(([127, 0, 0, 1], 0)) };
        let program = std::env::current_exe().map_err(|e| format!("cannot find this program's file: {e}"))?;
        let mut child = Command::new(program)
            .args(["record", "--log-format", "json", "--sip-tcp", "none", "--sip-udp", &listen.to_string()])
            .args(["--format", if format == Format::Pcap { "pcap" } else { "raw" }])
            .arg("--dir")
            .arg(dir)
            .arg("--stats-socket")
            .arg(dir.join("sipreel.sock"))
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot start the recorder: {e}"))?;
        let lines = BufReader::new(child.stderr.take().ok_or("the recorder's log is not there")?).lines();
        let sip = ready(lines)?;
        Ok(Recorder { child, sip })
    }

    /// As an operator would: SIGTERM, and the recorder finishes what it has.
    fn stop(&mut self) -> Result<(), String> {
        let pid = self.child.id().to_string();
        let killed = Command::new("kill").args(["-TERM", &pid]).status();
        killed.map_err(|e| format!("cannot send SIGTERM to the recorder: {e}"))?;
        let status = self.child.wait().map_err(|e| format!("cannot wait for the recorder: {e}"))?;
        if status.success() { Ok(()) } else { Err(format!("the recorder ended with {status}")) }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // Only where something went wrong before `stop`: it must not outlive the demo.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads the log up to the line that says `ready`; the rest is passed on as it comes where it warns.
fn ready(
    mut lines: impl Iterator<Item = std::io::Result<String>> + Send + 'static,
) -> Result<SocketAddr, String> {
    let mut last = String::new();
    for line in lines.by_ref().map_while(Result::ok) {
        let value: Value = serde_json::from_str(&line).unwrap_or_default();
        last = value["message"].as_str().unwrap_or(&line).to_owned();
        if value["level"] == "WARN" {
            println!("Note: {last}.");
        }
        if value["event"] == "ready" {
            thread::spawn(move || warnings(lines));
            return address(&value["sip_udp"])
                .ok_or_else(|| format!("no SIP address in the recorder's log: {line}"));
        }
    }
    Err(format!("the recorder did not start: {last}"))
}

fn warnings(lines: impl Iterator<Item = std::io::Result<String>>) {
    for line in lines.map_while(Result::ok) {
        let value: Value = serde_json::from_str(&line).unwrap_or_default();
        if value["level"] != "INFO" {
            eprintln!("recorder: {line}");
        }
    }
}

/// The first address in `127.0.0.1:5060` or `["127.0.0.1:5060"]`, however the log writes a list.
fn address(value: &Value) -> Option<SocketAddr> {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let kept = |c: char| c.is_ascii_digit() || matches!(c, '.' | ':');
    text.split(|c: char| !kept(c)).find_map(|word| word.parse().ok())
}

fn explain(dir: &Path, format: Format) -> Result<(), String> {
    let one = recordings(dir).into_iter().next().ok_or("there is no recording")?;
    println!("The {CALLS} recordings are below {}. One of them:\n", dir.display());
    let text =
        fs::read_to_string(one.join("recording.json")).map_err(|e| sentence("cannot read", &one, &e))?;
    let manifest: Value = serde_json::from_str(&text).unwrap_or_default();
    println!("  {}", one.display());
    for file in manifest["files"].as_array().into_iter().flatten() {
        println!(
            "    {:24} {:>8} bytes  sha256 {}",
            text_of(&file["name"]),
            file["size"],
            text_of(&file["sha256"])
        );
    }
    println!("    {:24} who, when, streams, quality, hashes\n", "recording.json");
    match format {
        Format::Pcap => {
            println!("Open it:     wireshark {}/call.pcap", one.display());
            println!("Play it:     in Wireshark, Telephony > VoIP Calls > select the call > Play Streams");
            println!("In a shell:  tshark -r {}/call.pcap -q -z rtp,streams", one.display());
            println!("For files that sox and ffplay read as they are:  sipreel demo --format raw");
        }
        Format::Raw => {
            let audio = manifest["streams"][0]["file"].as_str().unwrap_or("1.ulaw");
            println!(
                "Play it:     play -t ul -r 8000 -c 1 {}/{audio}    (from the package sox)",
                one.display()
            );
        }
    }
    Ok(())
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

/// Whole recordings, oldest first.
fn recordings(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for path in fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                open.push(path);
            } else if path.file_name().is_some_and(|name| name == "recording.json") {
                found.push(dir.clone());
            }
        }
    }
    found.sort();
    found
}
