//! One recording: datagrams and SIP messages in, writes out.

use std::net::SocketAddr;
use std::time::Duration;

use crate::clock::Wall;
use crate::counters::DropCause;
use crate::limits::{BLOCK_SIZE, LABEL_IN_NAME_MAX, STREAMS_PER_RECORDING_MAX, TCP_CONVERSATIONS};
use crate::media::stage::{Exits, Load, Stage};
use crate::media::stream::Reception;
use crate::media::timeline::{Elapsed, Timeline};
use crate::media::{Blocks, Channel, Packet, Place, Signal, Write};
use crate::proto::manifest::{Format, StreamReport};
use crate::proto::pcap::{self, Frame, Tcp};
use crate::proto::raw;
use crate::proto::rtp::{self, Kind, Rtp};
use crate::proto::sdp::Codec;

// A block holds the longest record of a SIP message, so that none is left out for its length.
const _: () = assert!(Tcp::OVERHEAD + Tcp::SEGMENT_MAX <= BLOCK_SIZE);

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
///
/// Every datagram given to [`Recording::packet`] ends in exactly one place: in the `packets` of one [`Write`], or in an error.
#[derive(Debug)]
pub struct Recording {
    format: Format,
    streams: Vec<Stream>,
    pcap: Capture,
    elapsed: Elapsed,
    packets: u64,
    bytes: u64,
    last: Option<Wall>,
    dropped_unattributed: u64,
}

impl Recording {
    pub fn new(format: Format) -> Recording {
        Recording {
            format,
            streams: Vec::with_capacity(STREAMS_PER_RECORDING_MAX),
            pcap: Capture::new(),
            elapsed: Elapsed::default(),
            packets: 0,
            bytes: 0,
            last: None,
            dropped_unattributed: 0,
        }
    }

    /// The new stream's index: 0, 1, … Raw: also the index of its file. At most [`STREAMS_PER_RECORDING_MAX`] may be added.
    pub fn add_stream(&mut self, spec: StreamSpec) -> u8 {
        debug_assert!(self.streams.len() < STREAMS_PER_RECORDING_MAX);
        let index = self.streams.len() as u8;
        let stream = Stream::new(self.format, index, &spec, &self.streams);
        self.streams.push(stream);
        index
    }

    /// Files so far. Their indices are `0..files()`.
    pub fn files(&self) -> usize {
        match self.format {
            Format::Pcap => 1,
            Format::Raw => self.streams.len(),
        }
    }

    /// Name within the recording's directory. It never changes, and no two files share one.
    pub fn file_name(&self, file: u8) -> String {
        match self.format {
            Format::Pcap => "call.pcap".to_owned(),
            Format::Raw => self.streams.get(usize::from(file)).map_or_else(String::new, |s| s.name.clone()),
        }
    }

    /// What the file begins with, possibly nothing. To be asked once, when the file is opened, and written before all else.
    pub fn file_header(&mut self, file: u8, at: Wall) -> Vec<u8> {
        if self.format == Format::Pcap {
            return pcap::FILE_HEADER.to_vec();
        }
        match self.streams.get_mut(usize::from(file)) {
            Some(Stream { sink: Sink::Dump(dump), to_rtp, .. }) => dump.begin(at, *to_rtp),
            _ => Vec::new(),
        }
    }

    /// Takes one datagram of a stream's ports. `Ok`: it is in a block, and will leave in the `packets` of exactly one write.
    /// `Err`: it is in none. Allocates nothing while `writes` has room for [`crate::limits::WRITES_PER_PACKET`] more.
    pub fn packet(
        &mut self,
        stream: u8,
        channel: Channel,
        packet: &Packet<'_>,
        blocks: &mut impl Blocks,
        writes: &mut Vec<Write>,
    ) -> Result<(), DropCause> {
        let stream = self.streams.get_mut(usize::from(stream)).ok_or(DropCause::NoSession)?;
        let kind = stream.kind(packet.bytes, channel);
        let rtp = if kind == Kind::Rtp { rtp::view(packet.bytes) } else { None };
        let source = rtp.map(|rtp| stream.reception.receive(packet.at, &rtp)).unwrap_or_default();
        let exits = &mut Exits { blocks, writes };
        let outcome = match &mut stream.sink {
            Sink::Capture(flows) => self.pcap.datagram(flows.of(channel, packet), packet, exits),
            Sink::Dump(dump) => dump.packet(kind, packet, exits),
            Sink::Timeline(file) => match rtp {
                Some(rtp) if stream.main == Some(rtp.payload_type) && !rtp.payload.is_empty() => {
                    file.place(source, &rtp, self.elapsed.at(packet.at), load(packet), exits)
                }
                _ => Err(unplaced(kind)),
            },
        };
        stream.count(kind, rtp, outcome);
        outcome?;
        self.packets += 1;
        self.bytes += packet.bytes.len() as u64;
        self.last = self.last.max(Some(packet.at));
        Ok(())
    }

    /// Takes one SIP message of the dialog: into the pcap; a raw recording has no place for it. Not counted as media. `Err`: not
    /// all of it is in the pcap.
    pub fn signal(
        &mut self,
        signal: &Signal<'_>,
        blocks: &mut impl Blocks,
        writes: &mut Vec<Write>,
    ) -> Result<(), DropCause> {
        let exits = &mut Exits { blocks, writes };
        match self.format {
            Format::Raw => Ok(()),
            Format::Pcap if signal.tcp => self.pcap.tcp_message(signal, exits),
            Format::Pcap => self.pcap.udp_message(signal, exits),
        }
    }

    /// Hands over every block that holds something: at most one write a file.
    pub fn flush(&mut self, writes: &mut Vec<Write>) {
        self.pcap.stage.send_off(Place::Append, writes);
        for stream in &mut self.streams {
            match &mut stream.sink {
                Sink::Capture(_) => {}
                Sink::Dump(dump) => dump.stage.send_off(Place::Append, writes),
                Sink::Timeline(file) => file.flush(writes),
            }
        }
    }

    /// When the oldest of what waits in blocks came.
    pub fn staged_since(&self) -> Option<Wall> {
        self.stages().filter_map(Stage::since).min()
    }

    /// Media datagrams waiting in blocks.
    pub fn staged_packets(&self) -> u64 {
        self.stages().map(|stage| u64::from(stage.packets())).sum()
    }

    /// A write of this recording failed or was not made: its `file`, `packets` and `bytes`.
    pub fn dropped(&mut self, file: u8, packets: u32, bytes: u64) {
        let packets = u64::from(packets);
        self.packets = self.packets.saturating_sub(packets);
        self.bytes = self.bytes.saturating_sub(bytes);
        match (self.format, &mut self.streams[..]) {
            (Format::Pcap, [only]) => only.dropped += packets,
            (Format::Raw, streams) if usize::from(file) < streams.len() => {
                streams[usize::from(file)].dropped += packets;
            }
            _ => self.dropped_unattributed += packets,
        }
    }

    /// Datagrams lost in failed writes that cannot be charged to one stream: several share the pcap.
    pub fn dropped_unattributed(&self) -> u64 {
        self.dropped_unattributed
    }

    /// What is known of the stream; an empty report for an unknown index. `kernel_dropped` is the engine's to add.
    pub fn report(&self, stream: u8) -> StreamReport {
        let Some(of) = self.streams.get(usize::from(stream)) else { return StreamReport::default() };
        let sums = of.reception.sums();
        StreamReport {
            ssrcs: of.reception.ssrcs(),
            first_packet: sums.first,
            last_packet: sums.last,
            packets: of.packets,
            bytes: of.payload_bytes,
            rtcp_packets: of.rtcp_packets,
            other_packets: of.other_packets,
            lost: sums.lost,
            out_of_order: sums.out_of_order,
            duplicate: sums.duplicate,
            dropped: of.dropped,
            kernel_dropped: 0,
            jitter_ms: sums.jitter_ms,
            file: Some(self.file_name(stream)),
        }
    }

    /// Datagrams taken and not lost since, their bytes, and when the last came.
    pub fn totals(&self) -> (u64, u64, Option<Wall>) {
        (self.packets, self.bytes, self.last)
    }

    fn stages(&self) -> impl Iterator<Item = &Stage> {
        let raw = self.streams.iter().filter_map(|stream| match &stream.sink {
            Sink::Capture(_) => None,
            Sink::Dump(dump) => Some(&dump.stage),
            Sink::Timeline(file) => Some(file.stage()),
        });
        raw.chain([&self.pcap.stage])
    }
}

/// Why a constant-rate file has no place for a datagram of this kind.
fn unplaced(kind: Kind) -> DropCause {
    match kind {
        Kind::Rtp => DropCause::OtherPayload,
        Kind::Rtcp => DropCause::Rtcp,
        Kind::Other => DropCause::NotRtp,
    }
}

fn load(packet: &Packet<'_>) -> Load {
    Load { at: packet.at, packets: 1, bytes: packet.bytes.len() as u64 }
}

#[derive(Debug)]
struct Stream {
    /// Of its file; unused in a pcap recording.
    name: String,
    to_rtp: SocketAddr,
    /// Payload types that cannot be mistaken for RTCP: answered, and no RTCP on their port.
    unmuxed: Option<u128>,
    /// Payload type that the raw file is laid out for.
    main: Option<u8>,
    reception: Reception,
    sink: Sink,
    packets: u64,
    payload_bytes: u64,
    rtcp_packets: u64,
    other_packets: u64,
    dropped: u64,
}

#[derive(Debug)]
enum Sink {
    Capture(Flows),
    Timeline(Timeline),
    Dump(Dump),
}

impl Stream {
    fn new(format: Format, index: u8, spec: &StreamSpec, others: &[Stream]) -> Stream {
        let main = raw::main_codec(&spec.codecs);
        let layout = main.and_then(raw::clocked);
        let extension = layout.map_or(raw::DUMP_EXTENSION, |layout| layout.extension);
        let answered = spec.codecs.iter().fold(0, |bits, codec| bits | 1 << (codec.payload_type & 0x7f));
        Stream {
            name: file_name(&spec.label, index, extension, others),
            to_rtp: spec.to_rtp,
            unmuxed: (!spec.rtcp_mux).then_some(answered),
            main: main.map(|codec| codec.payload_type),
            reception: Reception::new(&spec.codecs),
            sink: match (format, layout) {
                (Format::Pcap, _) => Sink::Capture(Flows::default()),
                (Format::Raw, Some(layout)) => Sink::Timeline(Timeline::new(index, layout)),
                (Format::Raw, None) => Sink::Dump(Dump::new(index)),
            },
            packets: 0,
            payload_bytes: 0,
            rtcp_packets: 0,
            other_packets: 0,
            dropped: 0,
        }
    }

    /// Payload types 64 to 95 with the marker look like RTCP. Where they were answered and RTCP has its own port, they are RTP.
    fn kind(&self, bytes: &[u8], channel: Channel) -> Kind {
        let kind = rtp::classify(bytes, channel);
        let (Kind::Rtcp, Channel::Rtp, Some(answered)) = (kind, channel, self.unmuxed) else { return kind };
        match rtp::view(bytes) {
            Some(rtp) if answered & 1 << rtp.payload_type != 0 => Kind::Rtp,
            _ => kind,
        }
    }

    fn count(&mut self, kind: Kind, rtp: Option<Rtp<'_>>, outcome: Result<(), DropCause>) {
        match kind {
            Kind::Rtcp => self.rtcp_packets += 1,
            Kind::Other => self.other_packets += 1,
            Kind::Rtp if outcome.is_ok() => {
                self.packets += 1;
                self.payload_bytes += rtp.map_or(0, |rtp| rtp.payload.len() as u64);
            }
            Kind::Rtp => {}
        }
        if matches!(outcome, Err(DropCause::NoBlock | DropCause::BeforeStart)) {
            self.dropped += 1;
        }
    }
}

/// `<label>.<extension>`. A label comes from the network: what could lead out of the directory, hide the file or trouble a shell
/// becomes `_`, and the index makes it unique.
fn file_name(label: &str, index: u8, extension: &str, others: &[Stream]) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let mut stem: String =
        label.chars().take(LABEL_IN_NAME_MAX).map(|c| if safe(c) { c } else { '_' }).collect();
    if stem.is_empty() || stem.starts_with(['.', '-']) {
        stem.insert_str(0, "stream");
    }
    let mut name = format!("{stem}.{extension}");
    while others.iter().any(|other| other.name.eq_ignore_ascii_case(&name)) {
        stem = format!("{stem}-{index}");
        name = format!("{stem}.{extension}");
    }
    name
}

/// The frames of a stream's two ports, built for the source that sent last.
#[derive(Debug, Default)]
struct Flows {
    rtp: Option<Frame>,
    rtcp: Option<Frame>,
}

impl Flows {
    fn of(&mut self, channel: Channel, packet: &Packet<'_>) -> &mut Frame {
        let frame = match channel {
            Channel::Rtp => &mut self.rtp,
            Channel::Rtcp => &mut self.rtcp,
        };
        if frame.as_ref().is_some_and(|frame| !frame.is_of(packet.from, packet.to)) {
            *frame = None;
        }
        frame.get_or_insert_with(|| Frame::udp(packet.from, packet.to))
    }
}

/// The pcap: whole records only in each block, so that a lost block loses its records and nothing else.
#[derive(Debug)]
struct Capture {
    stage: Stage,
    conversations: [Option<Tcp>; TCP_CONVERSATIONS],
    /// Which of them makes room for the next.
    oldest: usize,
}

impl Capture {
    fn new() -> Capture {
        Capture { stage: Stage::new(0), conversations: [const { None }; TCP_CONVERSATIONS], oldest: 0 }
    }

    fn datagram<B: Blocks>(
        &mut self,
        frame: &mut Frame,
        packet: &Packet<'_>,
        exits: &mut Exits<'_, B>,
    ) -> Result<(), DropCause> {
        self.record(frame, packet.bytes, load(packet), exits)
    }

    fn udp_message<B: Blocks>(
        &mut self,
        signal: &Signal<'_>,
        exits: &mut Exits<'_, B>,
    ) -> Result<(), DropCause> {
        let (from, to) =
            if signal.received { (signal.peer, signal.local) } else { (signal.local, signal.peer) };
        self.record(&mut Frame::udp(from, to), signal.bytes, no_media(signal), exits)
    }

    fn record<B: Blocks>(
        &mut self,
        frame: &mut Frame,
        payload: &[u8],
        load: Load,
        exits: &mut Exits<'_, B>,
    ) -> Result<(), DropCause> {
        let room = self.stage.room(frame.record_len(payload.len()), exits)?;
        let written = frame.write(room, load.at, payload);
        self.stage.commit(self.stage.len() + written, load);
        Ok(())
    }

    fn tcp_message<B: Blocks>(
        &mut self,
        signal: &Signal<'_>,
        exits: &mut Exits<'_, B>,
    ) -> Result<(), DropCause> {
        let conversation = self.conversation(signal);
        let mut outcome = Ok(());
        for segment in signal.bytes.chunks(Tcp::SEGMENT_MAX) {
            let room = self.stage.room(Tcp::OVERHEAD + segment.len(), exits);
            let room = room.unwrap_or_else(|cause| {
                outcome = Err(cause);
                &mut []
            });
            let Some(tcp) = &mut self.conversations[conversation] else { continue };
            let written = tcp.write(room, signal.at, signal.received, segment);
            if written > 0 {
                self.stage.commit(self.stage.len() + written, no_media(signal));
            }
        }
        outcome
    }

    fn conversation(&mut self, signal: &Signal<'_>) -> usize {
        let of = |tcp: &Option<Tcp>| tcp.as_ref().is_some_and(|tcp| tcp.is_of(signal.local, signal.peer));
        if let Some(known) = self.conversations.iter().position(of) {
            return known;
        }
        let index = self.oldest;
        self.oldest = (index + 1) % TCP_CONVERSATIONS;
        self.conversations[index] = Some(Tcp::new(signal.local, signal.peer));
        index
    }
}

fn no_media(signal: &Signal<'_>) -> Load {
    Load { at: signal.at, packets: 0, bytes: 0 }
}

/// An rtpdump file: RTP and RTCP one after the other, as they came.
#[derive(Debug)]
struct Dump {
    stage: Stage,
    start: Wall,
}

impl Dump {
    fn new(file: u8) -> Dump {
        Dump { stage: Stage::new(file), start: Wall(0) }
    }

    fn begin(&mut self, at: Wall, to: SocketAddr) -> Vec<u8> {
        self.start = at;
        raw::dump_file_header(at, to)
    }

    fn packet<B: Blocks>(
        &mut self,
        kind: Kind,
        packet: &Packet<'_>,
        exits: &mut Exits<'_, B>,
    ) -> Result<(), DropCause> {
        if kind == Kind::Other {
            return Err(DropCause::NotRtp);
        }
        let length = packet.bytes.len();
        let wanted = raw::DUMP_PACKET_HEADER + length.min(raw::DUMP_PACKET_MAX);
        let room = self.stage.room(wanted, exits)?;
        let (header, room) = room.split_at_mut(raw::DUMP_PACKET_HEADER);
        let kept = length.min(raw::DUMP_PACKET_MAX).min(room.len());
        let since = Duration::from_nanos(packet.at.0.saturating_sub(self.start.0));
        header.copy_from_slice(&raw::dump_packet_header(kept, length, kind == Kind::Rtcp, since));
        room[..kept].copy_from_slice(&packet.bytes[..kept]);
        self.stage.commit(self.stage.len() + raw::DUMP_PACKET_HEADER + kept, load(packet));
        Ok(())
    }
}
