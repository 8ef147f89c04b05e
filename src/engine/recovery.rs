//! What a recorder that died has left: `.part` directories, found and finished at the next start, in a thread of its own.
//!
//! A capture is cut to its whole records and read once: hash, figures of the streams, the dialog's messages, and from them the
//! manifest. Then sync and rename, as the commit thread does. What cannot be finished stays as it is, and is looked at again at the
//! next start.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::commit::{self, hexadecimal};
use super::cpu;
use super::instance::{self, Lock};
use crate::clock::{Mono, Wall};
use crate::counters::RecoveryCounters;
use crate::limits;
use crate::media::stream::{Reception, Track};
use crate::proto::manifest::{self, StreamReport};
use crate::proto::rtp::{self, Channel, Kind};
use crate::proto::sip::{self, Framer};
use crate::proto::{frame, pcap, raw};
use crate::session::id::Id;
use crate::session::replay::Replay;
use crate::session::{Event, Failure, Flow, Rules, Signal, Transport};

pub struct Recovery {
    pub roots: Vec<PathBuf>,
    pub rules: Rules,
    pub counters: Arc<RecoveryCounters>,
    pub events: Sender<Event>,
    /// Dropped by its sender: the recorder ends, and what is not done stays for the next start.
    pub stop: Receiver<()>,
}

/// Why one was not finished.
enum Unfinished {
    Stopped,
    Failed(Failure),
}

impl From<Failure> for Unfinished {
    fn from(failure: Failure) -> Unfinished {
        Unfinished::Failed(failure)
    }
}

impl Recovery {
    pub fn run(self) {
        let mut found = Vec::new();
        for root in &self.roots {
            match look(root) {
                Ok(left) => found.extend(left),
                Err(e) => {
                    tracing::error!(dir = %root.display(), "what a dead recorder left cannot be looked for: {e}")
                }
            }
        }
        let total: usize = found.iter().map(|left| left.parts.len()).sum();
        self.counters.recovering.set(total as u64);
        if total > 0 {
            tracing::warn!(
                event = "recovering",
                recordings = total,
                "a recorder has died: finishing what it left"
            );
        }
        for left in found {
            if self.finish(left).is_err() {
                return;
            }
        }
        if total > 0 {
            let (recovered, failed) = (self.counters.recovered.get(), self.counters.failed.get());
            tracing::info!(
                event = "recovered",
                recovered,
                failed,
                "all that a dead recorder left has been looked at"
            );
        }
    }

    /// All of one number. `Err`: the recorder ends.
    fn finish(&self, left: Left) -> Result<(), ()> {
        let mut whole = true;
        for path in left.parts {
            let result = self.recover(&left.root, &path);
            match result {
                Ok(None) => {
                    tracing::info!(path, "an empty .part directory is removed: nothing was recorded in it")
                }
                Ok(Some(id)) => {
                    self.counters.recovered.add(1);
                    tracing::info!(recording = id, path, "recording recovered");
                    let _ = self.events.send(Event::Recovered { id, path });
                }
                Err(Unfinished::Stopped) => return Err(()),
                Err(Unfinished::Failed(failure)) => {
                    whole = false;
                    self.counters.failed.add(1);
                    tracing::error!(path, "not recovered, stays under its .part name: {failure}");
                }
            }
            self.counters.recovering.sub(1);
        }
        if whole {
            left.lock.remove();
        }
        Ok(())
    }

    /// Its id, or `None`: it died before anything was in it, and it is removed.
    fn recover(&self, root: &Path, path: &str) -> Result<Option<String>, Unfinished> {
        let part = root.join(format!("{path}.part"));
        let at = |what| move |e: io::Error| Failure::new(what, format!("{path}.part"), &e);
        let name = path.rsplit('/').next().unwrap_or(path);
        let id = Id::parse(name).ok_or_else(|| at("read the name of")(io::ErrorKind::InvalidInput.into()))?;
        // A manifest that was being written is not one.
        let _ = fs::remove_file(part.join(commit::FRESH));
        // Only one that is empty can be removed so.
        if fs::remove_dir(&part).is_ok() {
            return Ok(None);
        }
        if !committed(&part) {
            let manifest = match part.join(pcap::FILE_NAME).is_file() {
                true => self.capture_manifest(&part, id).map_err(|e| self.unfinished(e, path))?,
                false => self.raw_manifest(&part).map_err(|e| self.unfinished(e, path))?,
            };
            commit::replace_manifest(&part, &manifest).map_err(at("write the manifest of"))?;
        }
        for entry in fs::read_dir(&part).map_err(at("read"))? {
            entry.and_then(|entry| File::open(entry.path())?.sync_all()).map_err(at("sync"))?;
        }
        let whole = root.join(path);
        let parent = whole.parent().unwrap_or(root);
        File::open(&part).and_then(|directory| directory.sync_all()).map_err(at("sync"))?;
        fs::rename(&part, &whole).map_err(at("rename"))?;
        File::open(parent).and_then(|directory| directory.sync_all()).map_err(at("sync the directory of"))?;
        Ok(Some(name.to_owned()))
    }

    fn unfinished(&self, e: io::Error, path: &str) -> Unfinished {
        match e.kind() {
            io::ErrorKind::Interrupted => Unfinished::Stopped,
            _ => Unfinished::Failed(Failure::new("finish", format!("{path}.part"), &e)),
        }
    }

    fn capture_manifest(&self, part: &Path, id: Id) -> io::Result<Value> {
        let path = part.join(pcap::FILE_NAME);
        let file = File::options().read(true).write(true).open(&path)?;
        let length = file.metadata()?.len();
        let mut capture = Capture::new(id);
        let mut pace = Pace::new(&self.stop);
        let hash = capture.read(&mut BufReader::with_capacity(limits::RECOVERY_READ, &file), &mut pace)?;
        let end = capture.last;
        let invite = || io::Error::new(io::ErrorKind::InvalidData, "there is no INVITE in its capture");
        let mut manifest = capture.replay.manifest(&self.rules, end).ok_or_else(invite)?;
        for (stream, figures) in manifest.streams.iter_mut().zip(&capture.streams) {
            stream.report = figures.report();
        }
        // Not before it is known that this is a recording.
        let cut = length - capture.whole;
        let kept = cut_off(&path, &file, capture.whole)?;
        let last_packets = manifest.streams.iter().filter_map(|stream| stream.report.last_packet);
        manifest.session.last_media = last_packets.max();
        manifest.problems.push(DIED.to_owned());
        if cut > 0 {
            let into = if kept { format!(" into {}{CUT}", pcap::FILE_NAME) } else { String::new() };
            let cut =
                format!("{}: {cut} bytes after the last whole record were cut off{into}", pcap::FILE_NAME);
            manifest.problems.push(cut);
        }
        manifest.files =
            vec![manifest::File { name: pcap::FILE_NAME.to_owned(), size: capture.whole, sha256: hash }];
        let bodies = manifest.metadata.iter().map(|body| body.file.clone());
        for name in bodies.chain(kept.then(|| format!("{}{CUT}", pcap::FILE_NAME))) {
            if let Ok((size, sha256)) = hashed(&part.join(&name), &mut pace) {
                manifest.files.push(manifest::File { name, size, sha256 });
            }
        }
        Ok(serde_json::to_value(manifest)?)
    }

    /// A raw recording: its first manifest says what it is, its files are as long as they are.
    fn raw_manifest(&self, part: &Path) -> io::Result<Value> {
        let mut manifest: Value = serde_json::from_slice(&fs::read(part.join(commit::MANIFEST))?)?;
        let mut pace = Pace::new(&self.stop);
        let (mut files, mut problems, mut end) = (Vec::new(), vec![json!(DIED)], Wall(0));
        let recorded = |name: &String| name != commit::MANIFEST;
        for name in names(part)?.into_iter().filter(|name| recorded(name) && !name.ends_with(CUT)) {
            let path = part.join(&name);
            let modified =
                fs::metadata(&path)?.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            end = end.max(Wall(modified.as_nanos() as u64));
            let cut = if name.ends_with(raw::DUMP_EXTENSION) { cut_dump(&path)? } else { 0 };
            if cut > 0 {
                problems.push(json!(format!("{name}: {cut} bytes after the last whole packet were cut off")));
            }
        }
        for name in names(part)?.into_iter().filter(recorded) {
            let (size, sha256) = hashed(&part.join(&name), &mut pace)?;
            files.push(json!({ "name": name, "size": size, "sha256": sha256 }));
        }
        files.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
        manifest["state"] = serde_json::to_value(manifest::State::Recovered)?;
        manifest["end"] = serde_json::to_value(end)?;
        manifest["end_cause"] = json!(crate::session::replay::CAUSE);
        manifest["files"] = Value::Array(files);
        manifest["problems"] = Value::Array(problems);
        Ok(manifest)
    }
}

/// What the name of a file ends with that holds what was cut off another.
const CUT: &str = ".cut";
const DIED: &str = "the recorder died during this recording: what it had not yet written is missing";

/// What one dead recorder has left in one directory.
struct Left {
    root: PathBuf,
    lock: Lock,
    /// Below it, without `.part`, oldest first.
    parts: Vec<String>,
}

fn look(root: &Path) -> io::Result<Vec<Left>> {
    let mut left: Vec<Left> = instance::dead(root)?
        .into_iter()
        .map(|lock| Left { root: root.to_path_buf(), lock, parts: Vec::new() })
        .collect();
    let Some(since) = left.iter().map(|left| left.lock.since).min() else { return Ok(left) };
    // A clock that was set back has made older names.
    let first = Wall(since.0.saturating_sub(limits::RECOVERY_SLACK.as_nanos() as u64)).hour_path();
    for hour in hours(root, &first)? {
        for name in names(&root.join(&hour))? {
            let Some(name) = name.strip_suffix(".part") else { continue };
            let number = Id::parse(name).map(Id::instance);
            if let Some(left) = left.iter_mut().find(|left| Some(left.lock.number) == number) {
                left.parts.push(format!("{hour}/{name}"));
            }
        }
    }
    Ok(left)
}

/// `2026/11/22/07` and so on, from `first` on.
fn hours(root: &Path, first: &str) -> io::Result<Vec<String>> {
    let mut paths = vec![String::new()];
    for (depth, digits) in [4, 2, 2, 2].into_iter().enumerate() {
        let mut below = Vec::new();
        for path in &paths {
            let number =
                |name: &String| name.len() == digits && name.bytes().all(|byte| byte.is_ascii_digit());
            for name in names(&root.join(path))?.into_iter().filter(number) {
                let path = if depth == 0 { name } else { format!("{path}/{name}") };
                if path.as_str() >= &first[..path.len()] {
                    below.push(path);
                }
            }
        }
        paths = below;
    }
    Ok(paths)
}

/// Names in a directory, in order.
fn names(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        names.extend(entry?.file_name().into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

/// Its manifest is the last one, and every file as it says: only the rename is missing.
fn committed(part: &Path) -> bool {
    let Ok(text) = fs::read(part.join(commit::MANIFEST)) else { return false };
    let Ok(manifest) = serde_json::from_slice::<Value>(&text) else { return false };
    let sized = |file: &Value| {
        let name = file["name"].as_str().unwrap_or_default();
        fs::metadata(part.join(name)).is_ok_and(|found| Some(found.len()) == file["size"].as_u64())
    };
    let files = manifest["files"].as_array();
    manifest["state"] != "recording"
        && files.is_some_and(|files| !files.is_empty() && files.iter().all(sized))
}

fn hashed(path: &Path, pace: &mut Pace<'_>) -> io::Result<(u64, String)> {
    let (mut file, mut hasher, mut size) = (File::open(path)?, Sha256::new(), 0);
    let mut buffer = vec![0; limits::RECOVERY_READ];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok((size, hexadecimal(&hasher.finalize())));
        }
        hasher.update(&buffer[..n]);
        size += n as u64;
        pace.read(n)?;
    }
}

/// Cuts an rtpdump file behind its last whole packet; how many bytes that were.
fn cut_dump(path: &Path) -> io::Result<u64> {
    let file = File::options().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let mut reader = BufReader::with_capacity(limits::RECOVERY_READ, &file);
    let mut whole = 0;
    let mut line = Vec::new();
    reader.by_ref().take(256).read_until(b'\n', &mut line)?;
    let mut next = line.len() as u64 + raw::DUMP_START as u64;
    io::copy(&mut reader.by_ref().take(raw::DUMP_START as u64), &mut io::sink())?;
    let mut header = [0; raw::DUMP_PACKET_HEADER];
    while next <= length {
        whole = next;
        if reader.read_exact(&mut header).is_err() {
            break;
        }
        let record = u64::from(u16::from_be_bytes([header[0], header[1]]));
        let Some(payload) = record.checked_sub(header.len() as u64).filter(|payload| *payload > 0) else {
            break;
        };
        if io::copy(&mut reader.by_ref().take(payload), &mut io::sink())? < payload {
            break;
        }
        next += record;
    }
    cut_off(path, &file, whole)?;
    Ok(length - whole)
}

/// What is behind the whole records of a file goes into one of its own, unless it is nothing but zeroes: damage in the middle of a
/// recording must not cost what lies behind it. Whether there is such a file, perhaps of an earlier attempt.
fn cut_off(path: &Path, file: &File, whole: u64) -> io::Result<bool> {
    let mut name = path.as_os_str().to_owned();
    name.push(CUT);
    let mut rest = BufReader::with_capacity(limits::RECOVERY_READ, file);
    rest.seek(io::SeekFrom::Start(whole))?;
    let mut zeroes = true;
    loop {
        let bytes = rest.fill_buf()?;
        let length = bytes.len();
        zeroes &= bytes.iter().all(|byte| *byte == 0);
        if length == 0 || !zeroes {
            break;
        }
        rest.consume(length);
    }
    if !zeroes {
        rest.seek(io::SeekFrom::Start(whole))?;
        let mut kept = File::options().write(true).create(true).truncate(true).mode(0o640).open(&name)?;
        io::copy(&mut rest, &mut kept)?;
        // Before it is cut: a power failure must find it in one of the two.
        kept.sync_all()?;
        path.parent().map_or(Ok(()), |part| File::open(part)?.sync_all())?;
    }
    if file.metadata()?.len() > whole {
        file.set_len(whole)?;
    }
    fs::exists(&name)
}

/// Reads no faster than `RECOVERY_RATE`: recordings that run come first. It fails with `Interrupted` when the recorder ends.
struct Pace<'a> {
    stop: &'a Receiver<()>,
    begun: Mono,
    read: u64,
    /// As far as it was looked whether that is too fast.
    looked: u64,
}

impl<'a> Pace<'a> {
    fn new(stop: &'a Receiver<()>) -> Pace<'a> {
        Pace { stop, begun: cpu::now().mono, read: 0, looked: 0 }
    }

    fn read(&mut self, bytes: usize) -> io::Result<()> {
        self.read += bytes as u64;
        if self.read < self.looked + limits::RECOVERY_READ as u64 {
            return Ok(());
        }
        self.looked = self.read;
        let earliest = Duration::from_nanos(self.read.saturating_mul(1_000_000_000) / limits::RECOVERY_RATE);
        match self.stop.recv_timeout(earliest.saturating_sub(cpu::now().mono.since(self.begun))) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            _ => Err(io::ErrorKind::Interrupted.into()),
        }
    }
}

/// A capture as it is read.
struct Capture {
    replay: Replay,
    streams: Vec<Figures>,
    /// By port: the stream, and whether it is that of RTP.
    ports: BTreeMap<u16, (usize, Channel)>,
    /// The address that SIP came to, once there was an INVITE.
    local: Option<SocketAddr>,
    /// TCP of the dialog, by its two ends.
    conversations: Vec<((SocketAddr, SocketAddr), Framer)>,
    /// Bytes up to the end of the last whole record.
    whole: u64,
    last: Wall,
}

/// What came of one stream.
struct Figures {
    track: Track,
    reception: Reception,
    payload_bytes: u64,
    rtcp_packets: u64,
    other_packets: u64,
}

impl Figures {
    fn packet(&mut self, at: Wall, channel: Channel, payload: &[u8]) {
        match (rtp::classify(payload, channel), rtp::view(payload)) {
            (Kind::Rtp, Some(rtp)) => {
                if !self.track.follow(at, &rtp) {
                    self.reception.receive(&mut self.track, at, &rtp);
                }
                self.payload_bytes += rtp.payload.len() as u64;
            }
            (Kind::Rtcp, _) => self.rtcp_packets += 1,
            _ => self.other_packets += 1,
        }
    }

    fn report(&self) -> StreamReport {
        let sums = self.reception.sums(&self.track);
        StreamReport {
            ssrcs: self.reception.ssrcs(&self.track),
            first_packet: sums.first,
            last_packet: sums.last,
            packets: sums.packets,
            bytes: self.payload_bytes,
            rtcp_packets: self.rtcp_packets,
            other_packets: self.other_packets,
            lost: sums.lost,
            out_of_order: sums.out_of_order,
            duplicate: sums.duplicate,
            dropped: 0,
            kernel_dropped: 0,
            jitter_ms: sums.jitter_ms,
            file: Some(pcap::FILE_NAME.to_owned()),
        }
    }
}

impl Capture {
    fn new(id: Id) -> Capture {
        Capture {
            replay: Replay::new(id),
            streams: Vec::new(),
            ports: BTreeMap::new(),
            local: None,
            conversations: Vec::new(),
            whole: 0,
            last: Wall(0),
        }
    }

    /// Reads up to the last whole record; the hash of what is before its end.
    fn read(&mut self, file: &mut impl Read, pace: &mut Pace<'_>) -> io::Result<String> {
        let mut hasher = Sha256::new();
        let mut head = [0; pcap::FILE_HEADER.len()];
        file.read_exact(&mut head)?;
        if head != pcap::FILE_HEADER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its capture does not begin as one"));
        }
        hasher.update(head);
        self.whole = head.len() as u64;
        let (mut header, mut frame) = ([0; pcap::RECORD_HEADER], Vec::new());
        while whole(file.read_exact(&mut header))? {
            // What an unfinished write leaves are zeroes, which are no record.
            let Some((at, kept)) = pcap::record(&header) else { break };
            frame.resize(kept, 0);
            if !whole(file.read_exact(&mut frame))? {
                break;
            }
            hasher.update(header);
            hasher.update(&frame);
            self.whole += (header.len() + kept) as u64;
            self.last = self.last.max(at);
            self.frame(at, &frame);
            pace.read(kept)?;
        }
        Ok(hexadecimal(&hasher.finalize()))
    }

    fn frame(&mut self, at: Wall, bytes: &[u8]) {
        if let Some(udp) = frame::udp(bytes) {
            match self.ports.get(&udp.to.port()) {
                Some(&(stream, channel)) => self.streams[stream].packet(at, channel, udp.payload),
                None => {
                    self.signal(at, Transport::Udp, udp.from, udp.to, Bytes::copy_from_slice(udp.payload))
                }
            }
        } else if let Some(tcp) = frame::tcp(bytes) {
            self.segment(at, &tcp);
        }
    }

    fn segment(&mut self, at: Wall, tcp: &frame::UdpFrame<'_>) {
        let ends = (tcp.from, tcp.to);
        let known = self.conversations.iter().position(|(of, _)| *of == ends);
        let index = known.unwrap_or_else(|| {
            if self.conversations.len() == limits::TCP_CONVERSATIONS * 2 {
                self.conversations.remove(0);
            }
            self.conversations.push((ends, Framer::new()));
            self.conversations.len() - 1
        });
        let framer = &mut self.conversations[index].1;
        let _ = framer.push(tcp.payload);
        let mut messages = Vec::new();
        while let Ok(Some(frame)) = framer.next() {
            if let sip::Frame::Message(bytes) = frame {
                messages.push(bytes);
            }
        }
        for bytes in messages {
            self.signal(at, Transport::Tcp, tcp.from, tcp.to, bytes);
        }
    }

    /// A message of the dialog. The first is the INVITE, and so tells which end is ours.
    fn signal(&mut self, at: Wall, transport: Transport, from: SocketAddr, to: SocketAddr, bytes: Bytes) {
        let received = *self.local.get_or_insert(to) != from;
        let (local, peer) = if received { (to, from) } else { (from, to) };
        let flow = Flow { reactor: 0, transport, local, peer, listener: 0, connection: None };
        self.replay.signal(&Signal { at, received, flow, bytes });
        let streams = self.replay.streams();
        for (index, stream) in streams.iter().enumerate().skip(self.streams.len()) {
            self.streams.push(Figures {
                track: Track::NEW,
                reception: Reception::new(&stream.codecs),
                payload_bytes: 0,
                rtcp_packets: 0,
                other_packets: 0,
            });
            self.ports.insert(stream.rtp_port, (index, Channel::Rtp));
            self.ports.insert(stream.rtp_port.wrapping_add(1), (index, Channel::Rtcp));
        }
    }
}

/// `false`: the file ended before.
fn whole(read: io::Result<()>) -> io::Result<bool> {
    match read {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One packet of an rtpdump file.
    fn packet(byte: u8) -> Vec<u8> {
        let mut packet = vec![byte; 12 + raw::DUMP_PACKET_HEADER];
        packet[..2].copy_from_slice(&(12 + raw::DUMP_PACKET_HEADER as u16).to_be_bytes());
        packet
    }

    fn dump(parts: &[&[u8]]) -> Vec<u8> {
        [b"#!rtpplay1.0 192.0.2.1/4000\n".as_slice(), &[0; raw::DUMP_START], &parts.concat()].concat()
    }

    #[test]
    fn what_lies_behind_damage_is_kept() {
        let part = tempfile::tempdir().unwrap();
        let path = part.path().join(format!("stream.{}", raw::DUMP_EXTENSION));
        let behind = [[0; 4096].as_slice(), &packet(2), &packet(3)].concat();
        fs::write(&path, dump(&[&packet(1), &behind])).unwrap();
        assert_eq!(cut_dump(&path).unwrap(), behind.len() as u64);
        assert_eq!(fs::read(&path).unwrap(), dump(&[&packet(1)]));
        let kept = part.path().join(format!("stream.{}{CUT}", raw::DUMP_EXTENSION));
        assert_eq!(fs::read(&kept).unwrap(), behind);
        assert_eq!(cut_dump(&path).unwrap(), 0);
        assert_eq!(fs::read(&kept).unwrap(), behind, "a second attempt leaves it");
    }

    #[test]
    fn zeroes_of_an_unfinished_write_are_not() {
        let part = tempfile::tempdir().unwrap();
        let path = part.path().join(format!("stream.{}", raw::DUMP_EXTENSION));
        fs::write(&path, dump(&[&packet(1), &[0; 8192]])).unwrap();
        assert_eq!(cut_dump(&path).unwrap(), 8192);
        assert_eq!(fs::read(&path).unwrap(), dump(&[&packet(1)]));
        assert_eq!(fs::read_dir(part.path()).unwrap().count(), 1);
    }
}
