//! What `media` records, opened with the programs that people open it with: tshark, capinfos, sox.

use std::f64::consts::TAU;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use sipreel::clock::Wall;
use sipreel::limits::BLOCK_SIZE;
use sipreel::media::{Block, Blocks, Channel, Data, Packet, Place, Recording, Signal, StreamSpec, Write};
use sipreel::proto::manifest::Format;
use sipreel::proto::sdp::Codec;

const START: u64 = 1_795_336_245_000_000_000;
const MS: u64 = 1_000_000;
const PACKETS: u32 = 500;

/// Whether the program is installed. If it is not, the test that asks is skipped, unless SIPREEL_REQUIRE_PEERS=1.
fn have(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    let required = std::env::var_os("SIPREEL_REQUIRE_PEERS").is_some_and(|value| value == "1");
    assert!(found || !required, "{program} is not installed, and SIPREEL_REQUIRE_PEERS=1");
    if !found {
        println!("skipped: {program} is not installed");
    }
    found
}

fn output(program: &str, arguments: &[&str], file: &Path) -> String {
    let output = Command::new(program).args(arguments).arg(file).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let complaints = errors.lines().filter(|line| !line.contains("Running as user")).collect::<Vec<_>>();
    assert!(output.status.success() && complaints.is_empty(), "{program}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

struct Leaking;

impl Blocks for Leaking {
    fn take(&mut self) -> Option<Block> {
        Some(vec![0; BLOCK_SIZE].leak())
    }

    fn give(&mut self, _: Block) {}
}

/// One recording whose files are kept in memory.
struct Call {
    recording: Recording,
    writes: Vec<Write>,
}

impl Call {
    fn new(format: Format, codecs: &[Codec]) -> Call {
        let mut recording = Recording::new(format);
        for stream in 0..2 {
            recording.add_stream(StreamSpec {
                label: format!("{}", stream + 1),
                to_rtp: ours(stream, Channel::Rtp),
                to_rtcp: ours(stream, Channel::Rtcp),
                codecs: codecs.to_vec(),
                rtcp_mux: false,
            });
        }
        Call { recording, writes: vec![] }
    }

    fn packet(&mut self, stream: u8, channel: Channel, at: u64, bytes: &[u8]) {
        let from = theirs(40_000 + u16::from(stream) * 2);
        let packet = Packet { at: Wall(at), from, to: ours(stream, channel), bytes, frame: None };
        self.recording.packet(stream, channel, &packet, &mut Leaking, &mut self.writes).unwrap();
    }

    fn signal(&mut self, at: u64, tcp: bool, received: bool, text: &str) {
        let (local, peer) = (SocketAddr::new(ours(0, Channel::Rtp).ip(), 5_060), theirs(5_060));
        let signal = Signal { at: Wall(at), received, tcp, local, peer, bytes: text.as_bytes() };
        self.recording.signal(&signal, &mut Leaking, &mut self.writes).unwrap();
    }

    /// Writes all files to `dir`.
    fn finish(mut self, dir: &Path) -> Vec<PathBuf> {
        self.recording.flush(&mut self.writes);
        let count = self.recording.files() as u8;
        let mut files: Vec<Vec<u8>> =
            (0..count).map(|file| self.recording.file_header(file, Wall(START), &[])).collect();
        for write in &self.writes {
            let file = &mut files[usize::from(write.file)];
            let start = if let Place::At(start) = write.place { start as usize } else { file.len() };
            let data = match &write.data {
                Data::Block { block, len } => block[..*len].to_vec(),
                Data::Fill { byte, len } => vec![*byte; *len as usize],
            };
            file.resize(file.len().max(start + data.len()), 0);
            file[start..start + data.len()].copy_from_slice(&data);
        }
        let path = |file| dir.join(self.recording.file_name(file));
        let written = |(file, bytes): (u8, &Vec<u8>)| {
            std::fs::write(path(file), bytes).unwrap();
            path(file)
        };
        (0..count).zip(&files).map(written).collect()
    }
}

fn ours(stream: u8, channel: Channel) -> SocketAddr {
    let port = 20_000 + u16::from(stream) * 2 + u16::from(channel == Channel::Rtcp);
    SocketAddr::from(([198, 51, 100, 7], port))
}

fn theirs(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

fn codec(payload_type: u8, encoding: &str, clock_rate: u32) -> Codec {
    Codec { payload_type, encoding: encoding.to_owned(), clock_rate, channels: 1, fmtp: None }
}

fn rtp(payload_type: u8, ssrc: u32, n: u32, ticks: u32, payload: &[u8]) -> Vec<u8> {
    let builder = rtp_rs::RtpPacketBuilder::new().payload_type(payload_type).ssrc(ssrc);
    let builder = builder.sequence((n as u16).wrapping_add(65_400).into());
    builder.timestamp(n.wrapping_mul(ticks).wrapping_sub(9_000)).payload(payload).build().unwrap()
}

/// A receiver report and its CNAME.
fn report(ssrc: u32) -> Vec<u8> {
    let [a, b, c, d] = ssrc.to_be_bytes();
    vec![0x80, 201, 0, 1, a, b, c, d, 0x81, 202, 0, 2, a, b, c, d, 1, 1, b'x', 0]
}

fn message(start: &str, method: &str, body: &str) -> String {
    format!(
        "{start}\r\nVia: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1\r\nFrom: <sip:src@192.0.2.1>;tag=a\r\n\
         To: <sip:srs@198.51.100.7>;tag=b\r\nCall-ID: one@192.0.2.1\r\nCSeq: 1 {method}\r\nMax-Forwards: 70\r\n\
         Contact: <sip:src@192.0.2.1>\r\n{}Content-Length: {}\r\n\r\n{body}",
        if body.is_empty() { "" } else { "Content-Type: application/sdp\r\n" },
        body.len()
    )
}

const SDP: &str = "v=0\r\no=- 1 1 IN IP4 198.51.100.7\r\ns=-\r\nc=IN IP4 198.51.100.7\r\nt=0 0\r\n\
    m=audio 20000 RTP/AVP 0\r\na=recvonly\r\nm=audio 20002 RTP/AVP 0\r\na=recvonly\r\n";

/// A whole call as pcap; the records in it.
fn call(tcp: bool, dir: &Path) -> (PathBuf, u32) {
    let mut call = Call::new(Format::Pcap, &[codec(0, "PCMU", 8_000)]);
    // Long enough for several TCP segments.
    let offer = format!("{SDP}a=x:{}\r\n", "y".repeat(if tcp { 40_000 } else { 1_000 }));
    let invite = message("INVITE sip:srs@198.51.100.7 SIP/2.0", "INVITE", &offer);
    call.signal(START - 40 * MS, tcp, true, &invite);
    call.signal(START - 20 * MS, tcp, false, &message("SIP/2.0 200 OK", "INVITE", SDP));
    call.signal(START - 10 * MS, tcp, true, &message("ACK sip:srs@198.51.100.7 SIP/2.0", "ACK", ""));
    for n in 0..PACKETS {
        for stream in 0..2u8 {
            let at = START + u64::from(n) * 20 * MS + u64::from(stream) * 7 * MS;
            let ssrc = 0xabcd_0000 + u32::from(stream);
            call.packet(stream, Channel::Rtp, at, &rtp(0, ssrc, n, 160, &[n as u8; 160]));
            if n % 250 == 0 {
                call.packet(stream, Channel::Rtcp, at, &report(ssrc));
            }
        }
    }
    let end = START + u64::from(PACKETS) * 20 * MS;
    call.signal(end, tcp, true, &message("BYE sip:srs@198.51.100.7 SIP/2.0", "BYE", ""));
    call.signal(end, tcp, false, &message("SIP/2.0 200 OK", "BYE", ""));
    let segments = if tcp { invite.len().div_ceil(16 * 1024) as u32 } else { 1 };
    (call.finish(dir).remove(0), segments + 4 + PACKETS * 2 + 4)
}

#[test]
fn tshark_shows_streams_and_dialog() {
    if !have("tshark") || !have("capinfos") {
        return;
    }
    for tcp in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (file, records) = call(tcp, dir.path());

        let info = output("capinfos", &["-M", "-c", "-t", "-E", "-s"], &file);
        assert!(info.contains("nsecpcap"), "{info}");
        assert!(
            info.lines()
                .any(|line| line.starts_with("Number of packets") && line.ends_with(&format!(" {records}"))),
            "{info}"
        );

        let streams = output("tshark", &["-q", "-z", "rtp,streams", "-r"], &file);
        for ssrc in ["0xABCD0000", "0xABCD0001"] {
            let row = streams.lines().find(|line| line.contains(ssrc)).unwrap_or_else(|| panic!("{streams}"));
            let columns: Vec<_> = row.split_whitespace().collect();
            assert!(columns.contains(&"g711U") && columns.contains(&"500"), "{row}");
            assert!(row.contains("0 (0.0%)"), "{row}");
        }

        let fields = ["-T", "fields", "-e", "sip.CSeq.method", "-e", "sip.Status-Code", "-Y", "sip", "-r"];
        let dialog = output("tshark", &fields, &file);
        assert_eq!(dialog, "INVITE\t\nINVITE\t200\nACK\t\nBYE\t\nBYE\t200\n");

        let doubts =
            "_ws.malformed or tcp.analysis.flags or ip.checksum.status == 0 or tcp.checksum.status == 0";
        let checks = ["-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE", "-Y", doubts, "-r"];
        assert_eq!(output("tshark", &checks, &file), "");
        assert_eq!(output("tshark", &["-Y", "rtcp.pt == 201", "-r"], &file).lines().count(), 4);
    }
}

/// Wireshark reads these files from 4.2 on.
fn tshark_knows_rtpdump() -> bool {
    let formats = Command::new("tshark").args(["-X", "read_format:?", "-r", "/dev/null"]).output().unwrap();
    let known = String::from_utf8_lossy(&formats.stderr).to_lowercase().contains("rtpdump");
    if !known {
        println!("skipped: this tshark is older than 4.2 and cannot read rtpdump files");
    }
    known
}

#[test]
fn tshark_reads_rtpdump() {
    if !have("tshark") || !tshark_knows_rtpdump() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut call = Call::new(Format::Raw, &[codec(111, "opus", 48_000)]);
    // The header has to be known before the first packet: offsets count from its time.
    call.recording.file_header(0, Wall(START), &[]);
    for n in 0..PACKETS {
        call.packet(
            0,
            Channel::Rtp,
            START + u64::from(n) * 20 * MS,
            &rtp(111, 0xabcd_0000, n, 960, &[1; 40]),
        );
    }
    call.packet(0, Channel::Rtcp, START, &report(0xabcd_0000));
    let file = call.finish(dir.path()).remove(0);
    assert_eq!(file.file_name().unwrap(), "1.rtp");
    let seen =
        output("tshark", &["-T", "fields", "-e", "rtp.ssrc", "-e", "rtp.seq", "-Y", "rtp", "-r"], &file);
    assert_eq!(seen.lines().count(), PACKETS as usize);
    assert_eq!(seen.lines().next(), Some("0xabcd0000\t65400"));
    assert_eq!(output("tshark", &["-Y", "rtcp", "-r"], &file).lines().count(), 1);
}

/// G.711 µ-law by its definition: sign, position of the highest bit, four bits below it.
fn ulaw(sample: i16) -> u8 {
    let magnitude = (i32::from(sample).abs() >> 2).min(8_158) + 33;
    let exponent = magnitude.ilog2() - 5;
    let mantissa = (magnitude >> (exponent + 1)) & 0x0f;
    let sign = if sample < 0 { 0x80 } else { 0 };
    !(sign | (exponent as u8) << 4 | mantissa as u8)
}

fn tone(n: u32) -> i16 {
    ((f64::from(n) * 440.0 / 8_000.0 * TAU).sin() * 8_000.0) as i16
}

#[test]
fn sox_plays_a_raw_file_as_it_was_sent() {
    if !have("sox") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut call = Call::new(Format::Raw, &[codec(0, "PCMU", 8_000)]);
    let lost = 100..110;
    for n in (0..PACKETS).filter(|n| !lost.contains(n)) {
        let payload: Vec<u8> = (n * 160..(n + 1) * 160).map(|n| ulaw(tone(n))).collect();
        // Some packets come after their successor.
        let at = START + u64::from(if n % 10 == 3 { n + 1 } else { n }) * 20 * MS;
        call.packet(1, Channel::Rtp, at, &rtp(0, 7, n, 160, &payload));
    }
    let file = call.finish(dir.path()).remove(1);
    let wav = dir.path().join("2.wav");
    let arguments = ["-D", "-t", "ul", "-r", "8000", "-c", "1", file.to_str().unwrap(), "-b", "16"];
    output("sox", &arguments, &wav);
    let bytes = std::fs::read(&wav).unwrap();
    let data = bytes.windows(4).position(|window| window == b"data").unwrap() + 8;
    let samples: Vec<i16> =
        bytes[data..].chunks_exact(2).map(|two| i16::from_le_bytes([two[0], two[1]])).collect();
    assert_eq!(samples.len(), PACKETS as usize * 160, "ten seconds");
    for (n, sample) in (0..).zip(samples) {
        let expected = if lost.contains(&(n / 160)) { 0 } else { tone(n) };
        let step = (i32::from(expected).abs() / 16).max(16);
        assert!(
            (i32::from(sample) - i32::from(expected)).abs() <= step,
            "sample {n}: {sample}, not {expected}"
        );
    }
}
