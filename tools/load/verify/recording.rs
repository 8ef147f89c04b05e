//! One recording's directory against what its metadata says was sent, and against its own manifest.

use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::Scope;
use super::check::{Counts, StreamCheck};
use super::frames::{Carrier, Fault, Frame, Pcap, Rtpdump};
use crate::load::plan::{Plan, Tally};
use crate::load::selfdescription::{self, Described};
use crate::load::template::{aor, labels, name};

pub const MANIFEST: &str = "recording.json";
const READ_BUFFER: usize = 1024 * 1024;
/// Streams of one call begin within a packet interval or two of each other; half a second is a wrong media clock.
const LEAD_TOLERANCE_MS: i64 = 500;

/// What was found in one directory.
#[derive(Debug, Default)]
pub struct Examined {
    pub path: PathBuf,
    /// `None`: not a recording of ours, only its files were compared with its manifest.
    pub described: Option<Described>,
    pub counts: Counts,
    pub findings: Vec<String>,
}

/// Examines the directory at `path`. With a scope, only recordings of that run are, and the others give `None`.
pub fn examine(path: &Path, scope: Option<&Scope>) -> Option<Examined> {
    let mut examined = Examined { path: path.to_owned(), ..Examined::default() };
    examined.described = describe(path);
    let ours = |scope: &Scope| examined.described.as_ref().is_some_and(|own| own.plan.run == scope.plan.run);
    if !scope.is_none_or(ours) {
        return None;
    }
    match manifest(path) {
        Ok(manifest) => Recording { path, manifest, hashes: HashMap::new() }.examine(scope, &mut examined),
        Err(problem) => examined.findings.push(problem),
    }
    Some(examined)
}

fn describe(path: &Path) -> Option<Described> {
    let names = std::fs::read_dir(path).ok()?.flatten().map(|entry| entry.file_name());
    let mut bodies: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with("metadata-")).collect();
    bodies.sort();
    bodies.iter().find_map(|body| selfdescription::read(&std::fs::read_to_string(path.join(body)).ok()?))
}

fn manifest(path: &Path) -> Result<Value, String> {
    let text =
        std::fs::read_to_string(path.join(MANIFEST)).map_err(|error| format!("{MANIFEST}: {error}"))?;
    serde_json::from_str(&text).map_err(|error| format!("{MANIFEST}: {error}"))
}

struct Recording<'a> {
    path: &'a Path,
    manifest: Value,
    /// Size and SHA-256 of the files that were read, by name.
    hashes: HashMap<String, (u64, String)>,
}

impl Recording<'_> {
    fn examine(mut self, scope: Option<&Scope>, examined: &mut Examined) {
        if let Some(described) = examined.described.clone() {
            self.examine_dialog(&described, &mut examined.findings);
            self.examine_media(&described, scope, examined);
        }
        self.examine_files(&mut examined.findings);
    }

    fn examine_dialog(&self, described: &Described, findings: &mut Vec<String>) {
        let mut expect = |what: &str, is: &Value, should: Value| {
            if *is != should {
                findings.push(format!("manifest: {what} is {is}, should be {should}"));
            }
        };
        expect("state", &self.manifest["state"], "ended".into());
        expect("sip.call_id", &self.manifest["sip"]["call_id"], described.call_id.as_str().into());
        expect("problems", &self.manifest["problems"], Value::Array(Vec::new()));
        let people = array(&self.manifest["participants"]);
        expect("participants (number)", &people.len().into(), described.plan.streams.into());
        for n in 0..described.plan.streams {
            let (aor, name) = (aor(described.call, n), name(described.call, n));
            let known = people
                .iter()
                .any(|person| person["aors"] == serde_json::json!([aor]) && person["name"] == name);
            expect(&format!("participant {aor}"), &known.into(), true.into());
        }
    }

    fn examine_media(&mut self, described: &Described, scope: Option<&Scope>, examined: &mut Examined) {
        let plan = &described.plan;
        let sent = |n: u32| match scope {
            Some(scope) => {
                scope.turns.get(&described.call).and_then(|turns| turns.get(n as usize)).copied().unwrap_or(0)
            }
            None => plan.turns,
        };
        let checks = (0..plan.streams).map(|n| StreamCheck::new(plan, described.call, n, sent(n)));
        let mut checks: Vec<StreamCheck> = checks.collect();
        let streams = self.streams(plan, &mut examined.findings);
        let pcap = self.manifest["format"] == "pcap";
        if pcap {
            self.examine_pcap(described, &streams, &mut checks, examined);
        }
        for (check, stream) in checks.iter_mut().zip(&streams) {
            let raw =
                !pcap && stream.as_ref().is_some_and(|s| self.examine_raw(s, check, &mut examined.findings));
            if !raw {
                check.finish();
            }
            if let Some(stream) = stream {
                compare(stream, check, raw, &mut examined.findings);
            }
            examined.counts.add(&check.counts);
        }
    }

    /// The manifest's streams in the order of our labels.
    fn streams(&self, plan: &Plan, findings: &mut Vec<String>) -> Vec<Option<Value>> {
        let streams = array(&self.manifest["streams"]);
        if streams.len() != plan.streams as usize {
            findings.push(format!("manifest: {} streams, should be {}", streams.len(), plan.streams));
        }
        let find = |label: String| {
            let stream = streams.iter().find(|stream| stream["label"] == label.as_str()).cloned();
            if stream.is_none() {
                findings.push(format!("manifest: no stream with label {label}"));
            }
            stream
        };
        labels(plan).into_iter().map(find).collect()
    }

    fn examine_pcap(
        &mut self,
        described: &Described,
        streams: &[Option<Value>],
        checks: &mut [StreamCheck],
        examined: &mut Examined,
    ) {
        const FILE: &str = "call.pcap";
        let mut reader = match HashReader::open(&self.path.join(FILE)) {
            Ok(reader) => reader,
            Err(error) => return examined.findings.push(format!("{FILE}: {error}")),
        };
        let mut capture = Capture::new(described, streams);
        if let Err(fault) = capture.read(&mut reader, checks) {
            examined.findings.push(format!("{FILE}: {fault}"));
        }
        examined.counts.unexpected += capture.strangers;
        examined.counts.sip_messages += capture.sip;
        examined.findings.extend(capture.findings(FILE));
        match reader.finish() {
            Ok(hash) => drop(self.hashes.insert(FILE.to_owned(), hash)),
            Err(error) => examined.findings.push(format!("{FILE}: {error}")),
        }
    }

    /// `true`: the file holds a codec's bytes, and `check` is complete.
    fn examine_raw(&mut self, stream: &Value, check: &mut StreamCheck, findings: &mut Vec<String>) -> bool {
        let label = stream["label"].as_str().unwrap_or_default();
        let codec = check.plan.codec;
        let file = format!("{label}.{}", codec.raw_extension().unwrap_or("rtp"));
        if stream["file"] != file.as_str() {
            findings
                .push(format!("manifest: file of stream {label} is {}, should be {file}", stream["file"]));
        }
        let opened = HashReader::open(&self.path.join(&file));
        let outcome = opened.map_err(Fault::from).and_then(|mut reader| {
            match codec.raw_extension() {
                Some(_) => {
                    let mut bytes = Vec::new();
                    reader.read_to_end(&mut bytes)?;
                    let lead = check.raw(&bytes, codec.silence());
                    self.examine_lead(stream, lead, findings);
                }
                None => read_dump(&mut reader, check)?,
            }
            Ok(reader.finish()?)
        });
        match outcome {
            Ok(hash) => drop(self.hashes.insert(file, hash)),
            Err(fault) => {
                findings.push(format!("{file}: {fault}"));
                return false;
            }
        }
        codec.raw_extension().is_some()
    }

    /// Two legs line up: a stream begins with as much silence as it began after the recording's first packet.
    fn examine_lead(&self, stream: &Value, lead: Option<usize>, findings: &mut Vec<String>) {
        let Some(lead) = lead else { return };
        let first = array(&self.manifest["streams"]).iter().filter_map(|s| micros(&s["first_packet"])).min();
        let (Some(first), Some(own)) = (first, micros(&stream["first_packet"])) else {
            return findings.push(format!("manifest: stream {} has no first_packet", stream["label"]));
        };
        // Eight bytes a millisecond.
        let (expected, lead) = ((own - first) / 1_000, lead as i64 / 8);
        if (expected - lead).abs() > LEAD_TOLERANCE_MS {
            let label = &stream["label"];
            findings
                .push(format!("stream {label} begins after {lead} ms of silence, should be {expected} ms"));
        }
    }

    /// Every file is in the manifest with its size and hash, and nothing else is there.
    fn examine_files(&mut self, findings: &mut Vec<String>) {
        let mut listed = BTreeSet::from([MANIFEST.to_owned()]);
        let files = array(&self.manifest["files"]).to_vec();
        for file in files {
            let name = file["name"].as_str().unwrap_or_default().to_owned();
            match self.hash(&name) {
                Ok((size, sha256)) => {
                    if file["size"] != size || file["sha256"] != sha256.as_str() {
                        findings.push(format!("manifest: size or SHA-256 of {name} is wrong"));
                    }
                }
                Err(error) => findings.push(format!("{name}: {error}")),
            }
            listed.insert(name);
        }
        let present = std::fs::read_dir(self.path).into_iter().flatten().flatten();
        for name in present.map(|entry| entry.file_name().to_string_lossy().into_owned()) {
            if !listed.contains(&name) {
                findings.push(format!("{name} is not in the manifest"));
            }
        }
    }

    fn hash(&mut self, name: &str) -> io::Result<(u64, String)> {
        match self.hashes.remove(name) {
            Some(known) => Ok(known),
            None => HashReader::open(&self.path.join(name))?.finish(),
        }
    }
}

/// The manifest's figures of a stream against what the file shows; and the sender's, when nothing is amiss.
fn compare(stream: &Value, check: &StreamCheck, raw: bool, findings: &mut Vec<String>) {
    let label = stream["label"].as_str().unwrap_or_default();
    let codec = check.plan.codec;
    let sent = check.plan.tally(&check.stream, check.turns);
    let whole =
        check.counts.missing + check.counts.corrupt + check.counts.unexpected + check.counts.duplicated == 0;
    // A raw file shows neither order nor copies: there the sender knows better, if all came.
    let tally = if raw { sent } else { check.counter.tally() };
    let mut expect = |what: &str, is: &Value, should: Value| {
        if *is != should {
            findings.push(format!("manifest: stream {label}: {what} is {is}, should be {should}"));
        }
    };
    let encoding = stream["codec"].as_str().unwrap_or_default();
    expect("codec", &encoding.eq_ignore_ascii_case(codec.encoding()).into(), true.into());
    expect("clock_rate", &stream["clock_rate"], codec.clock_rate().into());
    expect("participants (number)", &array(&stream["participants"]).len().into(), 1.into());
    if whole || !raw {
        expect_tally(stream, &tally, &mut expect);
    }
    if whole && !raw && tally != sent {
        expect("order in the file", &format!("{tally:?}").into(), format!("{sent:?}").into());
    }
    if !raw {
        expect("bytes", &stream["bytes"], check.bytes.into());
    }
    let rtcp = if raw { check.reports() } else { check.counts.rtcp_found };
    expect("rtcp_packets", &stream["rtcp_packets"], rtcp.into());
    expect("other_packets", &stream["other_packets"], 0.into());
    expect("dropped", &stream["dropped"], 0.into());
    expect("kernel_dropped", &stream["kernel_dropped"], 0.into());
    let ssrcs: Vec<&str> = array(&stream["ssrcs"]).iter().filter_map(|ssrc| ssrc["ssrc"].as_str()).collect();
    let own = format!("0x{:08x}", check.stream.ssrc);
    let matches = ssrcs.len() == 1 && ssrcs[0].eq_ignore_ascii_case(&own);
    expect(
        "ssrcs",
        &if matches { own.as_str().into() } else { stream["ssrcs"].clone() },
        own.as_str().into(),
    );
}

fn expect_tally(stream: &Value, tally: &Tally, expect: &mut impl FnMut(&str, &Value, Value)) {
    expect("packets", &stream["packets"], tally.packets.into());
    expect("lost", &stream["lost"], tally.lost.into());
    expect("out_of_order", &stream["out_of_order"], tally.out_of_order.into());
    expect("duplicate", &stream["duplicate"], tally.duplicate.into());
}

/// Sorts the frames of a pcap to their streams.
struct Capture<'a> {
    described: &'a Described,
    /// RTP port → stream; RTCP is on the next port.
    ports: HashMap<u16, usize>,
    media_ip: Option<IpAddr>,
    sip: u64,
    saw_invite: bool,
    strangers: u64,
    wrong_addresses: u64,
    wrong_frames: HashMap<&'static str, u64>,
}

impl<'a> Capture<'a> {
    fn new(described: &'a Described, streams: &[Option<Value>]) -> Capture<'a> {
        let port = |stream: &Value| u16::try_from(stream["local_rtp_port"].as_u64()?).ok();
        let ports =
            streams.iter().enumerate().filter_map(|(n, stream)| Some((port(stream.as_ref()?)?, n))).collect();
        Capture {
            described,
            ports,
            media_ip: None,
            sip: 0,
            saw_invite: false,
            strangers: 0,
            wrong_addresses: 0,
            wrong_frames: HashMap::new(),
        }
    }

    fn read(&mut self, input: impl Read, checks: &mut [StreamCheck]) -> Result<(), Fault> {
        let mut pcap = Pcap::open(input)?;
        while let Some(bytes) = pcap.next()? {
            match Frame::parse(bytes) {
                Ok(frame) => self.frame(&frame, checks),
                Err(Fault::Frame(what)) => *self.wrong_frames.entry(what).or_default() += 1,
                Err(fault) => return Err(fault),
            }
        }
        Ok(())
    }

    fn frame(&mut self, frame: &Frame, checks: &mut [StreamCheck]) {
        let port = frame.to.port();
        // Our SIP socket, on a host of its own, may have the number that a media port has at the recorder.
        let media = frame.carrier == Carrier::Udp && !is_sip(first_line(frame.payload));
        let rtp = self.ports.get(&port).filter(|_| media);
        let rtcp = self.ports.get(&port.wrapping_sub(1)).filter(|_| media);
        match (rtp.copied(), rtcp.copied()) {
            (Some(n), _) => {
                self.compare_addresses(frame, self.described.sources[n].rtp);
                checks[n].packet(frame.payload);
            }
            (None, Some(n)) => {
                self.compare_addresses(frame, self.described.sources[n].rtcp);
                checks[n].rtcp(frame.payload);
            }
            (None, None) => self.signal(frame),
        }
    }

    fn compare_addresses(&mut self, frame: &Frame, from: std::net::SocketAddr) {
        let to = *self.media_ip.get_or_insert(frame.to.ip());
        if frame.from != from || frame.to.ip() != to {
            self.wrong_addresses += 1;
        }
    }

    fn signal(&mut self, frame: &Frame) {
        let line = first_line(frame.payload);
        let sip = is_sip(line);
        // A large message over TCP may fill several segments.
        if !sip && frame.carrier == Carrier::Udp {
            self.strangers += 1;
            return;
        }
        self.sip += u64::from(sip);
        let ours = memchr::memmem::find(frame.payload, self.described.call_id.as_bytes()).is_some();
        self.saw_invite |= line.starts_with(b"INVITE ") && ours;
    }

    fn findings(&self, file: &str) -> Vec<String> {
        let mut findings: Vec<String> = self
            .wrong_frames
            .iter()
            .map(|(what, n)| format!("{file}: {n} frames with a wrong {what}"))
            .collect();
        if self.wrong_addresses > 0 {
            findings.push(format!("{file}: {} frames with wrong addresses", self.wrong_addresses));
        }
        if !self.saw_invite {
            findings.push(format!("{file}: the INVITE is not in it"));
        }
        findings
    }
}

/// Empty for what does not begin like text: RTP and RTCP never do, and need not be searched.
fn first_line(payload: &[u8]) -> &[u8] {
    match payload.first() {
        Some(first) if first.is_ascii_uppercase() => {
            payload.split(|byte| *byte == b'\r').next().unwrap_or_default()
        }
        _ => &[],
    }
}

fn is_sip(line: &[u8]) -> bool {
    line.starts_with(b"SIP/2.0 ") || line.ends_with(b" SIP/2.0")
}

fn read_dump(input: impl Read, check: &mut StreamCheck) -> Result<(), Fault> {
    let mut dump = Rtpdump::open(input)?;
    while let Some((rtcp, bytes)) = dump.next()? {
        if rtcp { check.rtcp(bytes) } else { check.packet(bytes) }
    }
    Ok(())
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Microseconds since midnight of an RFC 3339 time in UTC; a recording over midnight is told by the negative difference, which no
/// test needs.
fn micros(time: &Value) -> Option<i64> {
    let clock = time.as_str()?.split_once('T')?.1.strip_suffix('Z')?;
    let (hms, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let seconds = hms.split(':').try_fold(0, |sum, part| Some(sum * 60 + part.parse::<i64>().ok()?))?;
    let micros: i64 = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
    Some(seconds * 1_000_000 + micros)
}

/// A file that is hashed while it is read.
struct HashReader {
    input: BufReader<File>,
    digest: Sha256,
    size: u64,
}

impl HashReader {
    fn open(path: &Path) -> io::Result<HashReader> {
        let input = BufReader::with_capacity(READ_BUFFER, File::open(path)?);
        Ok(HashReader { input, digest: Sha256::new(), size: 0 })
    }

    /// Reads the rest, and returns size and SHA-256 of the whole.
    fn finish(mut self) -> io::Result<(u64, String)> {
        io::copy(&mut self, &mut io::sink())?;
        let hex = self.digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok((self.size, hex))
    }
}

impl Read for HashReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let len = self.input.read(out)?;
        self.digest.update(&out[..len]);
        self.size += len as u64;
        Ok(len)
    }
}
