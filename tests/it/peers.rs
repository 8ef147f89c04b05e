//! Programs of other people that have to agree with us.

use std::path::Path;
use std::process::{Command, Output};

/// Whether all of these are installed. Without them a test says so and ends; where SIPREEL_REQUIRE_PEERS=1 it fails.
#[must_use]
pub fn installed(programs: &[&str]) -> bool {
    let missing: Vec<&&str> = programs.iter().filter(|program| !on_path(program)).collect();
    if missing.is_empty() {
        return true;
    }
    let required = std::env::var("SIPREEL_REQUIRE_PEERS").is_ok_and(|value| value == "1");
    assert!(!required, "not installed: {missing:?}");
    eprintln!("skipped: {missing:?} not installed");
    false
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Runs to the end, which has to be a good one. What it complained of, apart from running as root, is a failure too.
#[track_caller]
pub fn output(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    let complaints: Vec<&str> = stderr.lines().filter(|line| !line.contains("\"root\"")).collect();
    assert!(status.success() && complaints.is_empty(), "{command:?}: {status}\n{stdout}\n{stderr}");
    stdout.into_owned()
}

/// The values of these fields in the packets that the filter shows, a line each, tabs between.
#[track_caller]
pub fn tshark(pcap: &Path, filter: &str, fields: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(pcap).args(["-Y", filter, "-T", "fields"]);
    command.args(fields.iter().flat_map(|field| ["-e", field]));
    output(&mut command).lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

/// No packet is malformed, and no dissector has found an error.
#[track_caller]
pub fn no_complaint(pcap: &Path) {
    // 0x800000: expert information of severity error.
    let filter = "_ws.malformed || _ws.expert.severity == 8388608 || tcp.analysis.flags";
    let complaints = tshark(pcap, filter, &["frame.number", "_ws.col.Info", "_ws.expert.message"]);
    assert!(complaints.is_empty(), "{complaints:#?}");
}

/// One line of `-z rtp,streams`.
#[derive(Debug)]
pub struct RtpStream {
    pub to_port: u16,
    pub ssrc: String,
    pub payload: String,
    pub packets: u64,
    pub lost: i64,
}

#[track_caller]
pub fn rtp_streams(pcap: &Path) -> Vec<RtpStream> {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(pcap).args(["-q", "-z", "rtp,streams"]);
    let text = output(&mut command);
    text.lines().filter_map(rtp_stream).collect()
}

/// Start, end, source, port, destination, port, SSRC, payload, packets, lost, …
fn rtp_stream(line: &str) -> Option<RtpStream> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| word.starts_with("0x"))?;
    Some(RtpStream {
        to_port: words[at - 1].parse().ok()?,
        ssrc: words[at].to_lowercase(),
        payload: words[at + 1].to_owned(),
        packets: words[at + 2].parse().ok()?,
        lost: words[at + 3].parse().ok()?,
    })
}

/// What capinfos counts.
#[track_caller]
pub fn capinfos(pcap: &Path) -> usize {
    let text = output(Command::new("capinfos").args(["-Mc"]).arg(pcap));
    let line = text.lines().find(|line| line.starts_with("Number of packets")).unwrap();
    line.split(':').nth(1).unwrap().trim().parse().unwrap()
}
