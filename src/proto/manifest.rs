//! `recording.json`: who, when, which streams, their quality, the files and their hashes.

use serde::Serialize;
use std::net::SocketAddr;

use crate::clock::Wall;

/// The layout of a recording on disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One nanosecond pcap per recording: every stream, its RTCP, the dialog's SIP.
    Pcap,
    /// One file per stream: the codec's bytes on the media clock, or rtpdump where those could not be decoded again.
    Raw,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Being written. Found in a `.part` directory only.
    Recording,
    /// Ended, whole, synced.
    Ended,
}

#[derive(Clone, Debug, Serialize)]
pub struct Manifest {
    /// Version of this layout: 1.
    pub version: u32,
    /// What wrote it: `sipreel/0.1.0`.
    pub recorder: String,
    pub id: String,
    pub state: State,
    pub format: Format,
    pub start: Wall,
    pub end: Option<Wall>,
    /// `bye`, `ack_timeout`, `drain`, …
    pub end_cause: Option<String>,
    pub sip: Sip,
    /// Communication session ids of the metadata (RFC 7865 §6.3), in order of appearance.
    pub communication_sessions: Vec<String>,
    pub participants: Vec<Participant>,
    pub streams: Vec<Stream>,
    /// Every rs-metadata body, in order of receipt.
    pub metadata: Vec<MetadataBody>,
    /// What is missing or doubtful, in words: `write failed: …`, `metadata body 3 not kept: …`. Empty when all is well.
    pub problems: Vec<String>,
    pub files: Vec<File>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Sip {
    pub call_id: String,
    /// Tag of the SRC (From of its INVITE).
    pub remote_tag: String,
    /// Our tag.
    pub local_tag: String,
    pub source: SocketAddr,
    pub local: SocketAddr,
    /// `udp`, `tcp`.
    pub transport: String,
}

#[derive(Clone, Debug, Serialize)]
pub struct Participant {
    /// participant_id, an opaque string.
    pub id: String,
    /// Address of record; a participant may have several (RFC 7865 §6.5).
    pub aors: Vec<String>,
    pub name: Option<String>,
}

#[derive(Clone, Debug, Serialize, Default)]
pub struct Stream {
    /// a=label (RFC 4574).
    pub label: Option<String>,
    /// participant_ids that send into this stream.
    pub participants: Vec<String>,
    /// Position of the m-line in the offer, from 0.
    pub m_line: usize,
    /// `audio`, `video`, `text`.
    pub kind: String,
    /// Encoding name of the first codec answered, as SDP writes it: `PCMU`.
    pub codec: Option<String>,
    pub clock_rate: Option<u32>,
    pub local_rtp_port: u16,
    #[serde(flatten)]
    pub report: StreamReport,
}

/// What the data plane knows of one stream.
#[derive(Clone, Debug, Serialize, Default)]
pub struct StreamReport {
    pub ssrcs: Vec<Ssrc>,
    pub first_packet: Option<Wall>,
    pub last_packet: Option<Wall>,
    /// RTP packets recorded, and their payload bytes.
    pub packets: u64,
    pub bytes: u64,
    pub rtcp_packets: u64,
    /// Datagrams on the RTP port that are not RTP (STUN, keepalives).
    pub other_packets: u64,
    /// Sums over the SSRCs.
    pub lost: u64,
    pub out_of_order: u64,
    pub duplicate: u64,
    /// Received, meant to be on disk, and not there; and what the kernel dropped on this stream's sockets.
    pub dropped: u64,
    pub kernel_dropped: u64,
    /// Largest over the SSRCs, in milliseconds.
    pub jitter_ms: f64,
    /// The file that holds the stream.
    pub file: Option<String>,
}

#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Ssrc {
    /// As eight hexadecimal digits after `0x`, the way Wireshark shows it.
    pub ssrc: String,
    pub payload_type: u8,
    pub packets: u64,
    pub lost: u64,
    pub out_of_order: u64,
    pub duplicate: u64,
    /// RFC 3550 A.8, in milliseconds.
    pub jitter_ms: f64,
    pub first_packet: Wall,
    pub last_packet: Wall,
}

#[derive(Clone, Debug, Serialize)]
pub struct MetadataBody {
    pub file: String,
    pub received: Wall,
    pub understood: bool,
    pub problem: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct File {
    pub name: String,
    pub size: u64,
    pub sha256: String,
}
