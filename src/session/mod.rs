//! The control plane: transactions, dialogs, recording sessions, ports. Pure: one [`Event`] in, [`Command`]s out.
//!
//! ```text
//! Event::Message ─▶ parse once · transaction · dialog · offer · metadata · ports ─▶ Command::Open
//! Event::Opened  ─▶ publish in the table ─▶ Command::Send 200
//! ```
//!
//! No 200 leaves before the reactor has said that the files exist and the ports are armed.

pub mod table;

use bytes::Bytes;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::clock::{Mono, Wall};
use crate::proto::manifest::{Format, Manifest};
use crate::proto::sdp::Codec;

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Transport {
    Udp,
    Tcp,
}

/// A connection of one reactor. The generation tells a reused slot from the connection that was meant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ConnectionKey {
    pub slot: u32,
    pub generation: u32,
}

/// Where a message came from, and so where its answer goes (RFC 3261 §18.2.2, RFC 3581 §4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Flow {
    pub reactor: u8,
    pub transport: Transport,
    /// Our address as the peer sees it: the destination address of the datagram, never a wildcard.
    pub local: SocketAddr,
    pub peer: SocketAddr,
    /// Index of the UDP listener, or 0.
    pub listener: u8,
    pub connection: Option<ConnectionKey>,
}

/// A recording while it is in memory: its slot in the session table and the reactor that owns its ports and files.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RecordingKey {
    pub reactor: u8,
    pub slot: u32,
    pub generation: u32,
}

/// An RTP/RTCP port pair: the reactor that owns the sockets, and the pair's index there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PortPair {
    pub reactor: u8,
    pub index: u16,
    /// The even port, for RTP. RTCP is on the next.
    pub rtp: u16,
}

/// What went wrong in the engine, in words an operator can act on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// `create directory`, `open file`, `write file header`, …
    pub what: &'static str,
    /// The file or directory, relative to the recordings directory.
    pub path: String,
    /// errno.
    pub errno: i32,
}

/// Everything that can happen to the control plane.
#[derive(Debug)]
pub enum Event {
    /// One whole SIP message (framed on streams; on UDP one datagram).
    Message { flow: Flow, bytes: Bytes, at: Wall },
    /// The connection is gone; nothing can be sent on it.
    Disconnected { reactor: u8, connection: ConnectionKey },
    /// The files exist and the ports of all streams are armed.
    Opened { key: RecordingKey },
    /// Nothing is left behind on disk.
    OpenFailed { key: RecordingKey, failure: Failure },
    /// The streams added by `Command::Change` are armed, the removed ones are silent.
    Changed { key: RecordingKey },
    ChangeFailed { key: RecordingKey, failure: Failure },
    /// The recording's ports are silent and its slot may be used again. The commit goes on.
    Closed { key: RecordingKey },
    /// Whole, synced, under its final name. `incomplete` says that something is missing, and the manifest what.
    Committed { id: String, incomplete: bool },
    CommitFailed { id: String, failure: Failure },
    /// No new sessions from now on. Running ones are ended with BYE after `grace`.
    Drain { grace: Duration },
}

/// Everything the control plane can ask for. Each goes to one reactor ([`Command::reactor`]).
#[derive(Debug)]
pub enum Command {
    Send {
        flow: Flow,
        bytes: Bytes,
    },
    Open(Box<Open>),
    Change(Box<Change>),
    /// A SIP message of the dialog, for the pcap.
    Signal {
        key: RecordingKey,
        signal: Signal,
    },
    /// A file to be written beside the media: `metadata-0002.xml`.
    File {
        key: RecordingKey,
        file: SmallFile,
    },
    Close(Box<Close>),
    /// Close this connection once everything queued on it is sent.
    Disconnect {
        flow: Flow,
    },
}

/// Make the directory and the files, arm the ports, answer `Opened` or `OpenFailed`.
#[derive(Debug)]
pub struct Open {
    pub key: RecordingKey,
    /// `2026/11/22/07/<id>`, below the recordings directory; `.part` is the engine's to add.
    pub path: String,
    pub format: Format,
    pub streams: Vec<OpenStream>,
    pub files: Vec<SmallFile>,
    /// The SIP messages so far, oldest first.
    pub signals: Vec<Signal>,
}

#[derive(Debug, Clone)]
pub struct OpenStream {
    /// Index of this stream within the recording: 0, 1, … in the order in which streams were added, never reused.
    pub stream: u8,
    pub ports: PortPair,
    /// The address that the answer gave: the destination address of its packets.
    pub address: IpAddr,
    pub label: String,
    /// All codecs answered, the preferred one first. Raw files are laid out for the first that is not telephone-event.
    pub codecs: Vec<Codec>,
    /// RTCP shares the RTP port (RFC 5761).
    pub rtcp_mux: bool,
}

/// Streams that a re-INVITE added or ended.
#[derive(Debug)]
pub struct Change {
    pub key: RecordingKey,
    pub add: Vec<OpenStream>,
    /// Stream indices whose ports fall silent; their files stay.
    pub remove: Vec<u8>,
}

/// A SIP message as it was on the wire.
#[derive(Debug, Clone)]
pub struct Signal {
    pub at: Wall,
    pub received: bool,
    pub flow: Flow,
    pub bytes: Bytes,
}

/// A whole file of the recording's directory, written once.
#[derive(Debug, Clone)]
pub struct SmallFile {
    pub name: String,
    pub bytes: Bytes,
}

/// End the recording. The engine adds to the manifest what it knows: stream figures, files, hashes.
#[derive(Debug)]
pub struct Close {
    pub key: RecordingKey,
    /// `None`: the session was never established; the directory is removed.
    pub manifest: Option<Box<Manifest>>,
}

impl Command {
    /// The reactor that carries the command out.
    pub fn reactor(&self) -> u8 {
        match self {
            Command::Send { flow, .. } | Command::Disconnect { flow } => flow.reactor,
            Command::Open(open) => open.key.reactor,
            Command::Change(change) => change.key.reactor,
            Command::Signal { key, .. } | Command::File { key, .. } => key.reactor,
            Command::Close(close) => close.key.reactor,
        }
    }
}

/// What the control plane needs to know of the configuration.
#[derive(Debug, Clone)]
pub struct Rules {
    pub sessions_max: usize,
    pub format: Format,
    pub port_cooldown: Duration,
    /// `--media-ip`; by default the local address of the INVITE's flow.
    pub media_ip: Option<IpAddr>,
    /// All pairs that were bound at start.
    pub ports: Vec<PortPair>,
    pub reactors: u8,
    /// For Server and User-Agent, and for the manifest: `sipreel/0.1.0`.
    pub product: String,
}

/// A thing worth a log line, once. The shell prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    Started { id: String, call_id: String, peer: SocketAddr, streams: usize },
    Ended { id: String, call_id: String, cause: String, seconds: u64 },
    Refused { call_id: String, peer: SocketAddr, code: u16, why: String },
    Metadata { id: String, problem: String },
}

/// When the control plane wants to be called again.
pub type Wake = Option<Mono>;
