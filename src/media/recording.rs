//! One recording: datagrams and SIP messages in, writes out.

use std::net::SocketAddr;

use crate::clock::Wall;
use crate::counters::DropCause;
use crate::limits::STREAMS_PER_RECORDING_MAX;
use crate::media::{Blocks, Channel, Packet, Signal, Write};
use crate::proto::manifest::{Format, StreamReport};
use crate::proto::sdp::Codec;

/// What a recording has to know of a stream before its first packet.
#[derive(Clone, Debug)]
pub struct StreamSpec {
    pub label: String,
    /// Our addresses in the answer.
    pub to_rtp: SocketAddr,
    pub to_rtcp: SocketAddr,
    /// All codecs answered. A raw file is laid out for the first that is neither telephone-event nor comfort noise.
    pub codecs: Vec<Codec>,
    /// RTCP shares the RTP port (RFC 5761).
    pub rtcp_mux: bool,
}

/// The data plane of one recording.
#[derive(Debug)]
pub struct Recording {
    format: Format,
    streams: Vec<StreamSpec>,
}

impl Recording {
    /// Writes that one call of [`Recording::packet`] pushes at most.
    pub const WRITES_PER_PACKET: usize = 3;

    pub fn new(format: Format) -> Recording {
        Recording { format, streams: Vec::with_capacity(STREAMS_PER_RECORDING_MAX) }
    }

    /// The new stream's index: 0, 1, … Raw: also the index of its file.
    pub fn add_stream(&mut self, spec: StreamSpec) -> u8 {
        self.streams.push(spec);
        (self.streams.len() - 1) as u8
    }

    /// Files so far. Their indices are 0..files().
    pub fn files(&self) -> usize {
        match self.format {
            Format::Pcap => 1,
            Format::Raw => self.streams.len(),
        }
    }

    /// Name within the recording's directory. It never changes and no two files share one.
    pub fn file_name(&self, file: u8) -> String {
        let _ = file;
        String::new()
    }

    /// What the file begins with, possibly nothing. To be asked and written once, when the file is opened.
    pub fn file_header(&mut self, file: u8, at: Wall) -> Vec<u8> {
        let _ = (file, at);
        Vec::new()
    }

    /// Takes one datagram of a stream's ports. `Ok`: it is in a block, and counted in the `packets` of exactly one write, now
    /// or later. `Err`: it is in none. Allocates nothing while `writes` has room for `WRITES_PER_PACKET`.
    pub fn packet(
        &mut self,
        stream: u8,
        channel: Channel,
        packet: &Packet<'_>,
        blocks: &mut impl Blocks,
        writes: &mut Vec<Write>,
    ) -> Result<(), DropCause> {
        let _ = (stream, channel, packet, blocks, writes);
        Err(DropCause::NoSession)
    }

    /// Takes one SIP message of the dialog: into the pcap; a raw recording has no place for it. Not counted as media.
    pub fn signal(
        &mut self,
        signal: &Signal<'_>,
        blocks: &mut impl Blocks,
        writes: &mut Vec<Write>,
    ) -> Result<(), DropCause> {
        let _ = (signal, blocks, writes);
        Err(DropCause::NoBlock)
    }

    /// Hands over every block that holds something: at most one write a file.
    pub fn flush(&mut self, writes: &mut Vec<Write>) {
        let _ = writes;
    }

    /// When the oldest byte that waits in a block arrived.
    pub fn staged_since(&self) -> Option<Wall> {
        None
    }

    /// Media datagrams waiting in blocks.
    pub fn staged_packets(&self) -> u64 {
        0
    }

    /// A write of this recording failed or was not made: its `file`, `packets` and `bytes`.
    pub fn dropped(&mut self, file: u8, packets: u32, bytes: u64) {
        let _ = (file, packets, bytes);
    }

    /// Datagrams lost in failed writes that cannot be charged to one stream: several share the pcap.
    pub fn dropped_unattributed(&self) -> u64 {
        0
    }

    /// What is known of the stream; an empty report for an unknown index. `kernel_dropped` is the engine's to add.
    pub fn report(&self, stream: u8) -> StreamReport {
        let _ = stream;
        StreamReport::default()
    }

    /// Datagrams taken and not lost since, their bytes, and when the last came.
    pub fn totals(&self) -> (u64, u64, Option<Wall>) {
        (0, 0, None)
    }
}
