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
    /// RTP packets taken into the recording, and their payload bytes. Of these and the RTCP, `dropped` did not reach the disk.
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    const START: Wall = Wall(1_795_336_245_000_000_000);

    pub(crate) fn manifest() -> Manifest {
        Manifest {
            version: 1,
            recorder: "sipreel/0.1.0".into(),
            id: "id".into(),
            state: State::Ended,
            format: Format::Pcap,
            start: START,
            end: Some(Wall(START.0 + 1_500_000_000)),
            end_cause: Some("bye".into()),
            sip: Sip {
                call_id: "a@b".into(),
                remote_tag: "r".into(),
                local_tag: "l".into(),
                source: "192.0.2.1:5060".parse().unwrap(),
                local: "[2001:db8::1]:5060".parse().unwrap(),
                transport: "udp".into(),
            },
            communication_sessions: vec!["cs".into()],
            participants: vec![Participant { id: "p".into(), aors: vec!["sip:a@b".into()], name: None }],
            streams: vec![stream()],
            metadata: vec![MetadataBody {
                file: "metadata-0001.xml".into(),
                received: START,
                understood: false,
                problem: Some("not XML".into()),
            }],
            problems: vec![],
            files: vec![File { name: "call.pcap".into(), size: 24, sha256: "00".into() }],
        }
    }

    fn stream() -> Stream {
        let ssrc = Ssrc {
            ssrc: "0x0000002a".into(),
            payload_type: 0,
            packets: 9,
            lost: 1,
            out_of_order: 2,
            duplicate: 3,
            jitter_ms: 0.5,
            first_packet: START,
            last_packet: START,
        };
        let report = StreamReport { ssrcs: vec![ssrc], first_packet: Some(START), ..StreamReport::default() };
        Stream {
            label: Some("1".into()),
            kind: "audio".into(),
            local_rtp_port: 20_000,
            report,
            ..Stream::default()
        }
    }

    /// The names and shapes are an interface: whoever reads recordings relies on them.
    #[test]
    fn json_shape() {
        let expected = json!({
            "version": 1, "recorder": "sipreel/0.1.0", "id": "id", "state": "ended", "format": "pcap",
            "start": "2026-11-22T08:30:45.000000Z", "end": "2026-11-22T08:30:46.500000Z", "end_cause": "bye",
            "sip": {
                "call_id": "a@b", "remote_tag": "r", "local_tag": "l",
                "source": "192.0.2.1:5060", "local": "[2001:db8::1]:5060", "transport": "udp",
            },
            "communication_sessions": ["cs"],
            "participants": [{"id": "p", "aors": ["sip:a@b"], "name": null}],
            "streams": [{
                "label": "1", "participants": [], "m_line": 0, "kind": "audio", "codec": null, "clock_rate": null,
                "local_rtp_port": 20000,
                "ssrcs": [{
                    "ssrc": "0x0000002a", "payload_type": 0, "packets": 9, "lost": 1, "out_of_order": 2,
                    "duplicate": 3, "jitter_ms": 0.5,
                    "first_packet": "2026-11-22T08:30:45.000000Z", "last_packet": "2026-11-22T08:30:45.000000Z",
                }],
                "first_packet": "2026-11-22T08:30:45.000000Z", "last_packet": null,
                "packets": 0, "bytes": 0, "rtcp_packets": 0, "other_packets": 0,
                "lost": 0, "out_of_order": 0, "duplicate": 0, "dropped": 0, "kernel_dropped": 0,
                "jitter_ms": 0.0, "file": null,
            }],
            "metadata": [{
                "file": "metadata-0001.xml", "received": "2026-11-22T08:30:45.000000Z",
                "understood": false, "problem": "not XML",
            }],
            "problems": [],
            "files": [{"name": "call.pcap", "size": 24, "sha256": "00"}],
        });
        assert_eq!(serde_json::to_value(manifest()).unwrap(), expected);
    }

    #[test]
    fn words() {
        assert_eq!(serde_json::to_value(State::Recording).unwrap(), "recording");
        assert_eq!(serde_json::to_value(Format::Raw).unwrap(), "raw");
    }
}
