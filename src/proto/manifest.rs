//! `recording.json`: who, when, which streams, their quality, the files and their hashes.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::net::SocketAddr;

use crate::clock::Wall;
use crate::proto::metadata::{Metadata, Severity};

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
    /// Its recorder died; finished at the next start with what was there.
    Recovered,
}

#[derive(Clone, Debug, Serialize)]
pub struct Manifest {
    /// Version of this layout: 1.
    pub version: u32,
    /// What wrote it: `sipreel/0.1.0`.
    pub recorder: String,
    pub resource: Resource,
    pub id: String,
    pub state: State,
    pub format: Format,
    pub start: Wall,
    pub end: Option<Wall>,
    /// `bye`, `ack_timeout`, `drain`, …
    pub end_cause: Option<String>,
    /// What the operator said who ended it.
    pub end_note: Option<String>,
    pub session: Session,
    pub sip: Sip,
    /// Id of the recording before it, of which it goes on with the communication session: the SRC replaced its dialog, or lost
    /// it and began another.
    pub continues: Option<String>,
    /// Communication session ids of the metadata (RFC 7865 §6.3), in order of appearance.
    pub communication_sessions: Vec<String>,
    pub participants: Vec<Participant>,
    pub streams: Vec<Stream>,
    /// Every rs-metadata body, in order of receipt.
    pub metadata: Vec<MetadataBody>,
    /// What was found wrong with them, or worth knowing.
    pub findings: Vec<Finding>,
    /// The classes of RFC 7865 as they stood at the end: the bodies merged in their order.
    pub model: Metadata,
    /// Every change of the recording and of what is recorded, in order.
    pub events: Vec<Event>,
    pub errors: Errors,
    /// What is missing or doubtful, in words: `write failed: …`, `metadata body 3 not kept: …`. Empty when all is well.
    pub problems: Vec<String>,
    pub files: Vec<File>,
}

/// Which recorder of a fleet it is: for load balancers, and for those who look for a recording. Each is a token of letters,
/// digits, `-`, `.` and `_`, so that it needs no quotes in a SIP header, a URI or a file name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resource {
    /// `--resource-id`, else the host's name.
    pub id: String,
    pub region: Option<String>,
    pub group: Option<String>,
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
    /// `udp`, `tcp`, `tls`.
    pub transport: String,
    /// Who sent the INVITE, proved by a certificate; only where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_certificate: Option<PeerCertificate>,
}

/// What the certificate of a peer says, after it was verified (RFC 5922 §7.1).
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PeerCertificate {
    /// subjectAltName: `DNS:sbc.example.com`, `URI:sip:example.com`, `IP:192.0.2.7`; `CN:…` where that has none.
    pub names: Vec<String>,
    /// Of the whole certificate, in hexadecimal digits: what `openssl x509 -fingerprint -sha256` shows.
    pub sha256: String,
}

/// When what was heard of the recording session; its states are among the events.
#[derive(Clone, Debug, Serialize, Default)]
pub struct Session {
    /// The last change of state, streams or metadata.
    pub updated: Wall,
    pub last_signalling: Wall,
    /// The last RTP packet of all streams; where there was none, about when RTCP came.
    pub last_media: Option<Wall>,
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

/// One thing that was found in the metadata.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Finding {
    /// When it was first found.
    pub at: Wall,
    /// The body that has it; absent beyond those that are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Stable: `metadata.participant.missing-aor`.
    pub code: &'static str,
    pub severity: Severity,
    pub element: String,
    /// What stands there, the first bytes of it.
    pub value: String,
    /// How often, in this body and in later ones.
    pub times: u64,
    /// The document and its section, and what it says there.
    pub source: &'static str,
    pub rule: &'static str,
}

/// What went wrong in the session while it lived: requests refused in its dialog, refreshes that failed, files that could not be
/// opened. The causes of its end are not among them.
#[derive(Clone, Debug, Default, Serialize, PartialEq)]
pub struct Errors {
    /// In order of their first appearance.
    pub by_code: Vec<ErrorCount>,
    /// With codes beyond those.
    pub other: u64,
    /// How often the recorder tried again: files elsewhere, a refresh once more.
    pub retries: u64,
    pub last: Option<LastError>,
}

#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct ErrorCount {
    /// That of a SIP response, `488`, or `open_failed`, `refresh_failed`.
    pub code: Cow<'static, str>,
    pub times: u64,
}

#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct LastError {
    pub at: Wall,
    pub code: Cow<'static, str>,
    pub text: String,
}

/// One change, and when the recorder learned of it. Fields that do not apply are absent.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Event {
    pub at: Wall,
    #[serde(rename = "event")]
    pub kind: EventKind,
    /// Ids as the metadata gives them: of the communication session, its group, the participant, the stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub participant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// Position of the m-line in the offer, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub m_line: Option<usize>,
    /// The time that the SRC gives for it, as written (RFC 7865 §6.9).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stated: Option<String>,
    /// In words: a cause, the states before and after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What changed. In JSON as `participant_joined`; the names are stable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// The recording session went from one state to another; `detail` names both and the cause.
    State,
    /// An offer began to record an m-line, ended it, or changed its codec, port or address.
    MediaAdded,
    MediaRemoved,
    MediaChanged,
    /// The SRC paused an m-line (`inactive`, c=0.0.0.0), and went on.
    MediaPaused,
    MediaResumed,
    /// The session timer was refreshed, or the transport of the dialog changed.
    Refreshed,
    TransportChanged,
    /// RFC 7865 §6.2: a group of communication sessions.
    GroupStarted,
    GroupEnded,
    /// RFC 7865 §6.3: a communication session.
    SessionStarted,
    SessionEnded,
    SessionChanged,
    /// RFC 7865 §6.5 and §6.6: a participant of a communication session.
    ParticipantJoined,
    ParticipantLeft,
    ParticipantChanged,
    /// A participant who is still there sends nothing any more, and something again.
    ParticipantHeld,
    ParticipantResumed,
    /// RFC 7865 §6.7: a media stream.
    StreamStarted,
    StreamEnded,
    StreamChanged,
    /// RFC 7865 §6.8: a participant's part in a stream.
    SendStarted,
    SendStopped,
    ReceiveStarted,
    ReceiveStopped,
    /// RFC 7866 §9.2: the recorder asked for everything, and why.
    SnapshotRequested,
    /// A complete description took the place of what was known.
    SnapshotTaken,
    /// Metadata that could not be taken; `detail` says why.
    MetadataRefused,
}

impl Event {
    pub fn new(at: Wall, kind: EventKind) -> Event {
        Event {
            at,
            kind,
            session: None,
            group: None,
            participant: None,
            stream: None,
            m_line: None,
            stated: None,
            detail: None,
        }
    }

    pub fn session(self, id: impl Into<String>) -> Event {
        Event { session: Some(id.into()), ..self }
    }

    pub fn group(self, id: impl Into<String>) -> Event {
        Event { group: Some(id.into()), ..self }
    }

    pub fn participant(self, id: impl Into<String>) -> Event {
        Event { participant: Some(id.into()), ..self }
    }

    pub fn stream(self, id: impl Into<String>) -> Event {
        Event { stream: Some(id.into()), ..self }
    }

    pub fn m_line(self, m_line: usize) -> Event {
        Event { m_line: Some(m_line), ..self }
    }

    pub fn stated(self, time: Option<String>) -> Event {
        Event { stated: time, ..self }
    }

    pub fn detail(self, words: impl Into<String>) -> Event {
        Event { detail: Some(words.into()), ..self }
    }

    /// Bytes of its texts.
    pub fn text(&self) -> usize {
        let texts = [&self.session, &self.group, &self.participant, &self.stream, &self.stated, &self.detail];
        texts.into_iter().flatten().map(String::len).sum()
    }
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
            resource: Resource { id: "rec1".into(), region: Some("eu".into()), group: None },
            id: "id".into(),
            state: State::Ended,
            format: Format::Pcap,
            start: START,
            end: Some(Wall(START.0 + 1_500_000_000)),
            end_cause: Some("bye".into()),
            end_note: None,
            session: Session { updated: START, last_signalling: START, last_media: None },
            sip: Sip {
                call_id: "a@b".into(),
                remote_tag: "r".into(),
                local_tag: "l".into(),
                source: "192.0.2.1:5060".parse().unwrap(),
                local: "[2001:db8::1]:5060".parse().unwrap(),
                transport: "udp".into(),
                peer_certificate: None,
            },
            continues: None,
            communication_sessions: vec!["cs".into()],
            participants: vec![Participant { id: "p".into(), aors: vec!["sip:a@b".into()], name: None }],
            streams: vec![stream()],
            metadata: vec![MetadataBody {
                file: "metadata-0001.xml".into(),
                received: START,
                understood: false,
                problem: Some("not XML".into()),
            }],
            findings: vec![Finding {
                at: START,
                file: Some("metadata-0001.xml".into()),
                code: "metadata.time.no-zone",
                severity: Severity::Error,
                element: "session[s]/start-time".into(),
                value: "2026-11-22T08:00:00".into(),
                times: 2,
                source: "RFC 7865 §6.9",
                rule: "it has one",
            }],
            model: model(),
            events: vec![Event::new(START, EventKind::ParticipantJoined).participant("p")],
            errors: Errors {
                by_code: vec![ErrorCount { code: "488".into(), times: 2 }],
                other: 0,
                retries: 1,
                last: Some(LastError { at: START, code: "488".into(), text: "no m-line".into() }),
            },
            problems: vec![],
            files: vec![File { name: "call.pcap".into(), size: 24, sha256: "00".into() }],
        }
    }

    fn model() -> Metadata {
        let body = "<recording><group id='g'/><session session_id='s'><stop-time>E</stop-time></session><participant participant_id='p'/><stream stream_id='t'/><sessionrecordingassoc session_id='s'/><participantsessionassoc participant_id='p' session_id='s'><associate-time>A</associate-time><param pname='isfocus' pval='x'/></participantsessionassoc><participantstreamassoc participant_id='p'><send>t</send></participantstreamassoc><x:e xmlns:x='urn:x'/></recording>";
        crate::proto::metadata::parse(body.as_bytes()).unwrap().metadata
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
            "resource": {"id": "rec1", "region": "eu", "group": null},
            "start": "2026-11-22T08:30:45.000000Z", "end": "2026-11-22T08:30:46.500000Z", "end_cause": "bye",
            "end_note": null,
            "session": {
                "updated": "2026-11-22T08:30:45.000000Z", "last_signalling": "2026-11-22T08:30:45.000000Z", "last_media": null,
            },
            "sip": {
                "call_id": "a@b", "remote_tag": "r", "local_tag": "l",
                "source": "192.0.2.1:5060", "local": "[2001:db8::1]:5060", "transport": "udp",
            },
            "continues": null,
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
            "findings": [{
                "at": "2026-11-22T08:30:45.000000Z", "file": "metadata-0001.xml", "code": "metadata.time.no-zone",
                "severity": "error", "element": "session[s]/start-time", "value": "2026-11-22T08:00:00", "times": 2,
                "source": "RFC 7865 §6.9", "rule": "it has one",
            }],
            "model": {
                "groups": [{"id": "g"}],
                "sessions": [{
                    "id": "s", "sip_session_ids": [], "reasons": [], "group_id": null, "start_time": null, "stop_time": "E",
                }],
                "participants": [{"id": "p", "aors": [], "name": null}],
                "streams": [{"id": "t", "session_id": null, "label": null}],
                "session_recordings": [{"session_id": "s"}],
                "participant_sessions": [{
                    "participant_id": "p", "session_id": "s", "associated": "A", "params": [["isfocus", "x"]],
                }],
                "participant_streams": [{"participant_id": "p", "sends": ["t"], "receives": []}],
                "extensions": [{"parent": "recording", "parent_id": "", "xml": "<x:e xmlns:x='urn:x'/>"}],
            },
            "events": [{"at": "2026-11-22T08:30:45.000000Z", "event": "participant_joined", "participant": "p"}],
            "errors": {
                "by_code": [{"code": "488", "times": 2}], "other": 0, "retries": 1,
                "last": {"at": "2026-11-22T08:30:45.000000Z", "code": "488", "text": "no m-line"},
            },
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
