//! One recording: datagrams and SIP messages in, writes out.

use std::net::SocketAddr;
use std::time::Duration;

use crate::clock::Wall;
use crate::counters::DropCause;
use crate::limits::{
    BLOCK_SIZE_MIN, CACHE_LINE, DISK_ALIGNMENT, LABEL_IN_NAME_MAX, STREAMS_PER_RECORDING_MAX,
    TCP_CONVERSATIONS,
};
use crate::media::feedback::{Feedback, Report};
use crate::media::stage::{Exits, Load, Stage};
use crate::media::stream::{Reception, Source, Track};
use crate::media::timeline::{Elapsed, Timeline};
use crate::media::{Blocks, Channel, Packet, Place, Shares, Signal, Touched, Write};
use crate::proto::manifest::{Format, StreamReport};
use crate::proto::pcap::{self, Frame, Tcp};
use crate::proto::raw;
use crate::proto::rtcp;
use crate::proto::rtp::{self, Kind, Rtp};
use crate::proto::sdp::Codec;

// A block holds the longest record of a SIP message on TCP, so that none is left out for its length.
const _: () = assert!(Tcp::OVERHEAD + Tcp::SEGMENT_MAX <= BLOCK_SIZE_MIN);

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
///
/// With thousands of streams the memory that a packet touches is its cost. The first line has the staged block of the pcap, the
/// lines after it what a usual packet changes of the usual two streams; everything else is behind a pointer.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Recording {
    stage: Stage,
    rest: Box<Rest>,
    /// The streams after the `near` ones.
    far: Option<Box<Far>>,
    near: [Stream; NEAR],
}

/// Streams of the usual call: both directions.
const NEAR: usize = 2;
type Far = [Stream; STREAMS_PER_RECORDING_MAX - NEAR];

const _: () = assert!(std::mem::offset_of!(Recording, near) == CACHE_LINE);
const _: () = assert!(std::mem::offset_of!(Stream, frame) == CACHE_LINE);

/// What few packets touch.
#[derive(Debug)]
struct Rest {
    elapsed: Elapsed,
    format: Format,
    /// The pcap is written in multiples of the disk's alignment.
    aligned: bool,
    streams: Vec<StreamRest>,
    conversations: Conversations,
}

/// What one reactor has seen of a stream. A stream's packets may come to several; one of them reports.
#[derive(Clone, Debug)]
pub struct StreamPart {
    sources: Vec<Source>,
    payload_bytes: u64,
    refused: u64,
    rtcp_packets: u64,
    other_packets: u64,
    dropped: u64,
}

impl StreamPart {
    /// When the first and the last RTP packet came.
    pub fn span(&self) -> Option<(Wall, Wall)> {
        let spans = self.sources.iter().map(Source::span);
        spans.reduce(|(first, last), span| (first.min(span.0), last.max(span.1)))
    }
}

impl Recording {
    pub fn new(format: Format) -> Recording {
        let (elapsed, conversations) = (Elapsed::default(), Conversations::default());
        Recording {
            stage: Stage::new(0),
            rest: Box::new(Rest {
                elapsed,
                format,
                aligned: false,
                streams: Vec::with_capacity(NEAR),
                conversations,
            }),
            far: None,
            near: [const { Stream::UNUSED }; NEAR],
        }
    }

    /// For files that are written past the page cache: what the pcap begins with and each of its writes are a multiple of
    /// [`DISK_ALIGNMENT`] long. The last frame in each is followed by zeroes, as if it were Ethernet's padding.
    pub fn aligned(mut self) -> Recording {
        self.rest.aligned = self.rest.format == Format::Pcap;
        self
    }

    /// Leaves a share of the pcap's first block empty, in 256ths. Recordings that begin at the same moment would otherwise all
    /// fill their blocks at the same moment, again and again.
    pub fn staggered(mut self, share: u8) -> Recording {
        self.stage.spare(share);
        self
    }

    pub fn format(&self) -> Format {
        self.rest.format
    }

    /// This is one of several parts of a call: raw files of constant rate begin with what came at `at`, which is the same for all
    /// parts. To be told after streams have been added and before their first packets.
    pub fn share(&mut self, at: Wall) {
        self.rest.elapsed.begin(at);
        for stream in self.streams_mut() {
            if let Sink::Timeline(file) = &mut stream.sink {
                file.share();
            }
        }
    }

    /// The new stream's index: 0, 1, … Raw: also the index of its file. At most [`STREAMS_PER_RECORDING_MAX`] may be added.
    pub fn add_stream(&mut self, spec: StreamSpec) -> u8 {
        debug_assert!(self.rest.streams.len() < STREAMS_PER_RECORDING_MAX);
        let index = self.rest.streams.len() as u8;
        let rest = StreamRest::new(index, &spec, &self.rest.streams);
        self.rest.streams.push(rest);
        if usize::from(index) >= NEAR {
            self.far.get_or_insert_with(|| Box::new([const { Stream::UNUSED }; _]));
        }
        let sink = Sink::new(self.rest.format, index, &spec);
        if let Some(stream) = self.stream_mut(index) {
            *stream = Stream { sink, ..Stream::UNUSED };
        }
        index
    }

    /// Takes back the streams from index `from` on: their files could not be made, so they have had no packet.
    pub fn forget_streams(&mut self, from: usize) {
        self.rest.streams.truncate(from);
        let far = self.far.iter_mut().flat_map(|far| far.iter_mut());
        self.near.iter_mut().chain(far).skip(from).for_each(|stream| *stream = Stream::UNUSED);
    }

    /// Files so far. Their indices are `0..files()`.
    pub fn files(&self) -> usize {
        match self.rest.format {
            Format::Pcap => 1,
            Format::Raw => self.rest.streams.len(),
        }
    }

    /// Name within the recording's directory. It never changes, and no two files share one.
    pub fn file_name(&self, file: u8) -> String {
        match self.rest.format {
            Format::Pcap => pcap::FILE_NAME.to_owned(),
            Format::Raw => {
                self.rest.streams.get(usize::from(file)).map_or_else(String::new, |s| s.name.clone())
            }
        }
    }

    /// What the file begins with, possibly nothing: in a pcap also the SIP messages that there are by then. To be asked once, when
    /// the file is opened, and written before all else.
    pub fn file_header(&mut self, file: u8, at: Wall, signals: &[Signal<'_>]) -> Vec<u8> {
        if self.rest.format == Format::Pcap {
            return self.capture_header(signals);
        }
        let to = self.rest.streams.get(usize::from(file)).map(|rest| rest.to_rtp);
        match (self.stream_mut(file), to) {
            (Some(Stream { sink: Sink::Dump(dump), .. }), Some(to)) => dump.begin(at, to),
            _ => Vec::new(),
        }
    }

    fn capture_header(&mut self, signals: &[Signal<'_>]) -> Vec<u8> {
        let mut bytes = pcap::FILE_HEADER.to_vec();
        let mut last = 0;
        for signal in signals {
            if !signal.tcp {
                last = append(
                    &mut bytes,
                    |room| udp_frame(signal).write(room, signal.at, signal.bytes),
                    signal.bytes.len(),
                );
                continue;
            }
            for segment in signal.bytes.chunks(Tcp::SEGMENT_MAX) {
                let tcp = self.rest.conversations.of(signal);
                last = append(
                    &mut bytes,
                    |room| tcp.write(room, signal.at, signal.received, segment),
                    segment.len(),
                );
            }
        }
        if self.rest.aligned && last > 0 {
            let len = bytes.len();
            bytes.resize(len.next_multiple_of(DISK_ALIGNMENT), 0);
            let by = bytes.len() - len;
            pcap::lengthen(&mut bytes[last..], by);
        }
        bytes
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
        let Recording { near, far, rest, .. } = self;
        let known = stream_of(near, far, stream).filter(|of| !matches!(of.sink, Sink::Unused));
        let of = known.ok_or(DropCause::NoSession)?;
        let index = usize::from(stream);
        let kind = match rtp::classify(packet.bytes, channel) {
            Kind::Rtcp if channel == Channel::Rtp => rest.streams[index].kind(packet.bytes),
            kind => kind,
        };
        let rtp = if kind == Kind::Rtp { rtp::view(packet.bytes) } else { None };
        match &rtp {
            Some(rtp) if !of.track.follow(packet.at, rtp) => {
                rest.streams[index].unusual(&mut of.track, packet, rtp)
            }
            // Where the usual packet comes from is looked at now and then.
            Some(rtp) if rtp.sequence & 0xff == 0 => rest.streams[index].feedback.rtp(packet),
            None if kind == Kind::Rtcp => rest.streams[index].rtcp(channel, packet),
            _ => {}
        }
        let exits = &mut Exits { blocks, writes };
        let load = Load { at: packet.at, stream: Some(stream), bytes: packet.bytes.len() as u64 };
        let outcome = match &mut of.sink {
            Sink::Unused => Err(DropCause::NoSession),
            Sink::Capture => self.capture(load, channel, packet, exits),
            Sink::Dump(dump) => dump.packet(kind, packet, load, exits),
            Sink::Timeline(file) => match &rtp {
                Some(rtp) if rtp.payload_type == file.payload_type && !rtp.payload.is_empty() => {
                    file.place(of.track.source(), rtp, rest.elapsed.at(packet.at), load, exits)
                }
                _ => Err(unplaced(kind)),
            },
        };
        self.count(stream, kind, rtp.map_or(0, |rtp| rtp.payload.len()), outcome);
        outcome
    }

    /// What the next datagram of the stream will touch and can be told without touching anything: to be fetched first.
    pub fn touched(&self, stream: u8) -> [Touched; 2] {
        let near =
            self.near.get(usize::from(stream)).map_or(std::ptr::null(), |near| (&raw const *near).cast());
        [((&raw const *self).cast(), 1), (near, 1)]
    }

    /// The rest of it, when that is there: the place of its record in a pcap, headers to be built, a raw file's clock.
    pub fn touched_then(&self, stream: u8) -> [Touched; 2] {
        let nothing = (std::ptr::null(), 0);
        let far = || self.far.as_ref()?.get(usize::from(stream).checked_sub(NEAR)?);
        let Some(of) = self.near.get(usize::from(stream)).or_else(far) else { return [nothing; 2] };
        match &of.sink {
            Sink::Unused => [nothing; 2],
            Sink::Capture if of.framed => [nothing, self.stage.touched()],
            Sink::Capture => [((&raw const of.frame).cast(), 1), self.stage.touched()],
            Sink::Dump(dump) => [((&raw const **dump).cast(), 1), nothing],
            Sink::Timeline(file) => {
                let lines = size_of::<Timeline>().div_ceil(CACHE_LINE).min(Sink::TIMELINE_LINES);
                [((&raw const **file).cast(), lines), ((&raw const *self.rest).cast(), 1)]
            }
        }
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
        match self.rest.format {
            Format::Raw => Ok(()),
            Format::Pcap if signal.tcp => self.tcp_message(signal, exits),
            Format::Pcap => self.udp_message(signal, exits),
        }
    }

    /// Hands over every block that holds something: at most one write a file.
    pub fn flush(&mut self, writes: &mut Vec<Write>) {
        self.send_off(writes);
        for stream in self.streams_mut() {
            match &mut stream.sink {
                Sink::Unused | Sink::Capture => {}
                Sink::Dump(dump) => dump.send_off(writes),
                Sink::Timeline(file) => file.flush(writes),
            }
        }
    }

    /// When the oldest of what waits in blocks came.
    pub fn staged_since(&self) -> Option<Wall> {
        self.stages().filter_map(Stage::since).min()
    }

    /// A number that is another one when RTP or RTCP has come.
    pub fn heard(&self) -> u64 {
        let streams = self.streams().zip(&self.rest.streams);
        streams.fold(0, |sum, (of, rest)| sum.wrapping_add(of.track.last().0).wrapping_add(rest.rtcp_packets))
    }

    /// Media datagrams waiting in blocks.
    pub fn staged_packets(&self) -> u64 {
        self.stages().map(|stage| u64::from(stage.packets())).sum()
    }

    /// A write of this recording failed or was not made: its `packets`.
    pub fn dropped(&mut self, packets: &Shares) {
        for (stream, packets) in self.rest.streams.iter_mut().zip(packets.iter()) {
            stream.dropped += packets;
        }
    }

    /// What is known of the stream; an empty report for an unknown index. `kernel_dropped` is the engine's to add.
    pub fn report(&self, stream: u8) -> StreamReport {
        let Some((of, rest)) = self.streams().zip(&self.rest.streams).nth(usize::from(stream)) else {
            return StreamReport::default();
        };
        let sums = rest.reception.sums(&of.track);
        StreamReport {
            ssrcs: rest.reception.ssrcs(&of.track),
            first_packet: sums.first,
            last_packet: sums.last,
            packets: sums.packets - rest.refused,
            bytes: of.payload_bytes,
            rtcp_packets: rest.rtcp_packets,
            other_packets: rest.other_packets,
            lost: sums.lost,
            out_of_order: sums.out_of_order,
            duplicate: sums.duplicate,
            dropped: rest.dropped,
            kernel_dropped: 0,
            jitter_ms: sums.jitter_ms,
            file: Some(self.file_name(stream)),
        }
    }

    /// What is to be sent to who sends the stream, since the last time that this was asked. `None`: nothing has come since, or
    /// nobody knows where to send it.
    pub fn receiver_report(&mut self, stream: u8, now: Wall) -> Option<Report> {
        let Recording { near, far, rest, .. } = self;
        let track = stream_of(near, far, stream)?.track;
        let StreamRest { feedback, reception, unmuxed, .. } = rest.streams.get_mut(usize::from(stream))?;
        feedback.report(reception.figures(&track), unmuxed.is_none(), now)
    }

    /// What this recording has seen of the stream, for another of the same call to absorb. `None`: it has no such stream.
    pub fn part(&self, stream: u8) -> Option<StreamPart> {
        let (of, rest) = self.streams().zip(&self.rest.streams).nth(usize::from(stream))?;
        Some(StreamPart {
            sources: rest.reception.part(&of.track),
            payload_bytes: of.payload_bytes,
            refused: rest.refused,
            rtcp_packets: rest.rtcp_packets,
            other_packets: rest.other_packets,
            dropped: rest.dropped,
        })
    }

    /// Adds to the report what another reactor has seen of the stream. Sources that are the same by their SSRC become one: their
    /// packets are those of both, lost is what neither has, jitter is the larger.
    pub fn absorb(&mut self, stream: u8, part: &StreamPart) {
        let Recording { near, far, rest, .. } = self;
        let (of, rest) = (stream_of(near, far, stream), rest.streams.get_mut(usize::from(stream)));
        if let (Some(of), Some(rest)) = (of, rest) {
            rest.reception.absorb(&mut of.track, &part.sources);
            of.payload_bytes += part.payload_bytes;
            rest.refused += part.refused;
            rest.rtcp_packets += part.rtcp_packets;
            rest.other_packets += part.other_packets;
            rest.dropped += part.dropped;
        }
    }

    #[inline]
    fn count(&mut self, stream: u8, kind: Kind, payload: usize, outcome: Result<(), DropCause>) {
        if kind != Kind::Rtp || outcome.is_err() {
            return self.rest.streams[usize::from(stream)].count(kind, outcome);
        }
        if let Some(of) = self.stream_mut(stream) {
            of.payload_bytes += payload as u64;
        }
    }

    /// Into the pcap: the frame that brought it, or one under its addresses.
    fn capture<B: Blocks>(
        &mut self,
        load: Load,
        channel: Channel,
        packet: &Packet<'_>,
        exits: &mut Exits<'_, B>,
    ) -> Result<(), DropCause> {
        let stream = load.stream.ok_or(DropCause::NoSession)?;
        let written = match packet.frame {
            Some(frame) => {
                self.make_room(pcap::frame_record_len(frame.len()), exits);
                pcap::write_frame(self.stage.room(exits.blocks)?, load.at, frame)
            }
            None => self.build(stream, channel, packet, exits)?,
        };
        self.stage.commit(self.stage.len() + written, load);
        if let Some(of) = self.stream_mut(stream) {
            of.staged += 1;
            of.framed = packet.frame.is_some();
        }
        Ok(())
    }

    fn build<B: Blocks>(
        &mut self,
        stream: u8,
        channel: Channel,
        packet: &Packet<'_>,
        exits: &mut Exits<'_, B>,
    ) -> Result<usize, DropCause> {
        let known = self.frame(stream, channel).ok_or(DropCause::NoSession)?;
        if !known.as_ref().is_some_and(|frame| frame.is_of(packet.from, packet.to)) {
            *known = Some(Frame::udp(packet.from, packet.to));
        }
        let wanted = known.as_ref().map_or(0, |frame| frame.record_len(packet.bytes.len()));
        self.make_room(wanted, exits);
        let Recording { stage, near, far, rest, .. } = self;
        let frame = frame_of(near, far, rest, stream, channel).and_then(Option::as_mut);
        let room = stage.room(exits.blocks)?;
        Ok(frame.map_or(0, |frame| frame.write(room, packet.at, packet.bytes)))
    }

    fn udp_message<B: Blocks>(
        &mut self,
        signal: &Signal<'_>,
        exits: &mut Exits<'_, B>,
    ) -> Result<(), DropCause> {
        let mut frame = udp_frame(signal);
        self.make_room(frame.record_len(signal.bytes.len()), exits);
        let written = frame.write(self.stage.room(exits.blocks)?, signal.at, signal.bytes);
        self.stage.commit(self.stage.len() + written, no_media(signal));
        Ok(())
    }

    fn tcp_message<B: Blocks>(
        &mut self,
        signal: &Signal<'_>,
        exits: &mut Exits<'_, B>,
    ) -> Result<(), DropCause> {
        let mut outcome = Ok(());
        for segment in signal.bytes.chunks(Tcp::SEGMENT_MAX) {
            self.make_room(Tcp::OVERHEAD + segment.len(), exits);
            let room = self.stage.room(exits.blocks).unwrap_or_else(|cause| {
                outcome = Err(cause);
                &mut []
            });
            let tcp = self.rest.conversations.of(signal);
            let written = tcp.write(room, signal.at, signal.received, segment);
            if written > 0 {
                self.stage.commit(self.stage.len() + written, no_media(signal));
            }
        }
        outcome
    }

    /// Whole records only in each block, so that a lost block loses its records and nothing else.
    #[inline]
    fn make_room<B: Blocks>(&mut self, wanted: usize, exits: &mut Exits<'_, B>) {
        if self.stage.is_full_for(wanted) {
            self.send_off(exits.writes);
        }
    }

    fn send_off(&mut self, writes: &mut Vec<Write>) {
        let mut packets = Shares::default();
        for (stream, index) in self.streams_mut().zip(0..) {
            packets.add(index, std::mem::take(&mut stream.staged));
        }
        if self.rest.aligned
            && let Some((record, by)) = self.stage.align()
        {
            pcap::lengthen(record, by);
        }
        self.stage.send_off(Place::Append, packets, writes);
    }

    fn frame(&mut self, stream: u8, channel: Channel) -> Option<&mut Option<Frame>> {
        frame_of(&mut self.near, &mut self.far, &mut self.rest, stream, channel)
    }

    fn stream_mut(&mut self, stream: u8) -> Option<&mut Stream> {
        stream_of(&mut self.near, &mut self.far, stream)
    }

    fn streams(&self) -> impl Iterator<Item = &Stream> {
        self.near.iter().chain(self.far.iter().flat_map(|far| far.iter()))
    }

    fn streams_mut(&mut self) -> impl Iterator<Item = &mut Stream> {
        self.near.iter_mut().chain(self.far.iter_mut().flat_map(|far| far.iter_mut()))
    }

    fn stages(&self) -> impl Iterator<Item = &Stage> {
        let raw = self.streams().filter_map(|stream| match &stream.sink {
            Sink::Unused | Sink::Capture => None,
            Sink::Dump(dump) => Some(&dump.stage),
            Sink::Timeline(file) => Some(file.stage()),
        });
        raw.chain([&self.stage])
    }
}

/// Appends a record that `write` makes of so many bytes. Where it begins.
fn append(bytes: &mut Vec<u8>, write: impl FnOnce(&mut [u8]) -> usize, payload: usize) -> usize {
    let start = bytes.len();
    bytes.resize(start + Tcp::OVERHEAD + payload, 0);
    let written = write(&mut bytes[start..]);
    bytes.truncate(start + written);
    start
}

fn udp_frame(signal: &Signal<'_>) -> Frame {
    if signal.received {
        Frame::udp(signal.peer, signal.local)
    } else {
        Frame::udp(signal.local, signal.peer)
    }
}

#[inline]
fn stream_of<'a>(
    near: &'a mut [Stream; NEAR],
    far: &'a mut Option<Box<Far>>,
    stream: u8,
) -> Option<&'a mut Stream> {
    let index = usize::from(stream);
    if index < NEAR { near.get_mut(index) } else { far.as_mut()?.get_mut(index - NEAR) }
}

/// The headers of one of a stream's two ports, built for the source that sent last.
fn frame_of<'a>(
    near: &'a mut [Stream; NEAR],
    far: &'a mut Option<Box<Far>>,
    rest: &'a mut Rest,
    stream: u8,
    channel: Channel,
) -> Option<&'a mut Option<Frame>> {
    match channel {
        Channel::Rtp => Some(&mut stream_of(near, far, stream)?.frame),
        Channel::Rtcp => Some(&mut rest.streams.get_mut(usize::from(stream))?.rtcp_frame),
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

/// What a packet touches of its stream: a usual one the first line, and the second where headers have to be built.
#[derive(Debug)]
#[repr(C, align(64))]
struct Stream {
    track: Track,
    /// Of RTP packets taken.
    payload_bytes: u64,
    /// Datagrams in the staged block of the pcap.
    staged: u32,
    /// Whether the last packet brought its frame.
    framed: bool,
    sink: Sink,
    frame: Option<Frame>,
}

impl Stream {
    const UNUSED: Stream = Stream {
        track: Track::NEW,
        payload_bytes: 0,
        staged: 0,
        framed: false,
        sink: Sink::Unused,
        frame: None,
    };
}

/// Where a stream's packets go.
#[derive(Debug)]
enum Sink {
    /// There is no such stream.
    Unused,
    /// The recording's pcap.
    Capture,
    Timeline(Box<Timeline>),
    Dump(Box<Dump>),
}

impl Sink {
    /// Layout, staged block and the first source's clock.
    const TIMELINE_LINES: usize = 3;

    fn new(format: Format, index: u8, spec: &StreamSpec) -> Sink {
        let main = raw::main_codec(&spec.codecs);
        match (format, main.and_then(|codec| Some((codec.payload_type, raw::clocked(codec)?)))) {
            (Format::Pcap, _) => Sink::Capture,
            (Format::Raw, Some((payload_type, layout))) => {
                Sink::Timeline(Box::new(Timeline::new(index, payload_type, layout)))
            }
            (Format::Raw, None) => Sink::Dump(Box::new(Dump::new(index))),
        }
    }
}

/// What few packets touch of their stream.
#[derive(Debug)]
struct StreamRest {
    reception: Reception,
    feedback: Feedback,
    rtcp_frame: Option<Frame>,
    /// RTP packets that were not taken.
    refused: u64,
    rtcp_packets: u64,
    other_packets: u64,
    dropped: u64,
    /// Payload types that cannot be mistaken for RTCP: answered, and no RTCP on their port.
    unmuxed: Option<u128>,
    to_rtp: SocketAddr,
    /// Of its file; unused in a pcap recording.
    name: String,
}

impl StreamRest {
    fn new(index: u8, spec: &StreamSpec, others: &[StreamRest]) -> StreamRest {
        let layout = raw::main_codec(&spec.codecs).and_then(raw::clocked);
        let extension = layout.map_or(raw::DUMP_EXTENSION, |layout| layout.extension);
        let answered = spec.codecs.iter().fold(0, |bits, codec| bits | 1 << (codec.payload_type & 0x7f));
        StreamRest {
            reception: Reception::new(&spec.codecs),
            feedback: Feedback::default(),
            rtcp_frame: None,
            refused: 0,
            rtcp_packets: 0,
            other_packets: 0,
            dropped: 0,
            unmuxed: (!spec.rtcp_mux).then_some(answered),
            to_rtp: spec.to_rtp,
            name: file_name(&spec.label, index, extension, others),
        }
    }

    /// Of what looks like RTCP on the RTP port: payload types 64 to 95 with the marker do. Where they were answered and RTCP has
    /// its own port, they are RTP.
    fn kind(&self, bytes: &[u8]) -> Kind {
        match (rtp::view(bytes), self.unmuxed) {
            (Some(rtp), Some(answered)) if answered & 1 << rtp.payload_type != 0 => Kind::Rtp,
            _ => Kind::Rtcp,
        }
    }

    /// RTP that the track could not follow.
    #[cold]
    fn unusual(&mut self, track: &mut Track, packet: &Packet<'_>, rtp: &Rtp<'_>) {
        self.reception.receive(track, packet.at, rtp);
        self.feedback.rtp(packet);
    }

    #[cold]
    fn rtcp(&mut self, channel: Channel, packet: &Packet<'_>) {
        self.feedback.rtcp(channel, packet);
        if let Some(report) = rtcp::sender_report(packet.bytes)
            && let Some(source) = self.reception.index(report.ssrc)
        {
            self.feedback.sender_report(source, report, packet.at);
        }
    }

    /// Counts all but RTP that was taken.
    fn count(&mut self, kind: Kind, outcome: Result<(), DropCause>) {
        match kind {
            Kind::Rtcp => self.rtcp_packets += 1,
            Kind::Other => self.other_packets += 1,
            Kind::Rtp => self.refused += 1,
        }
        if matches!(outcome, Err(DropCause::NoBlock | DropCause::BeforeStart)) {
            self.dropped += 1;
        }
    }
}

/// `<label>.<extension>`. A label comes from the network: what could lead out of the directory, hide the file or trouble a shell
/// becomes `_`, and the index makes it unique.
fn file_name(label: &str, index: u8, extension: &str, others: &[StreamRest]) -> String {
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

/// The TCP connections of the dialog.
#[derive(Debug, Default)]
struct Conversations {
    known: [Option<Tcp>; TCP_CONVERSATIONS],
    /// Which of them makes room for the next.
    oldest: usize,
}

impl Conversations {
    fn of(&mut self, signal: &Signal<'_>) -> &mut Tcp {
        let of = |tcp: &Option<Tcp>| tcp.as_ref().is_some_and(|tcp| tcp.is_of(signal.local, signal.peer));
        let index = self.known.iter().position(of).unwrap_or_else(|| {
            let index = self.oldest;
            self.oldest = (index + 1) % TCP_CONVERSATIONS;
            self.known[index] = None;
            index
        });
        self.known[index].get_or_insert_with(|| Tcp::new(signal.local, signal.peer))
    }
}

fn no_media(signal: &Signal<'_>) -> Load {
    Load { at: signal.at, stream: None, bytes: 0 }
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
        load: Load,
        exits: &mut Exits<'_, B>,
    ) -> Result<(), DropCause> {
        if kind == Kind::Other {
            return Err(DropCause::NotRtp);
        }
        let length = packet.bytes.len();
        let wanted = raw::DUMP_PACKET_HEADER + length.min(raw::DUMP_PACKET_MAX);
        if self.stage.is_full_for(wanted) {
            self.send_off(exits.writes);
        }
        let room = self.stage.room(exits.blocks)?;
        let (header, room) = room.split_at_mut(raw::DUMP_PACKET_HEADER);
        let kept = length.min(raw::DUMP_PACKET_MAX).min(room.len());
        let since = Duration::from_nanos(packet.at.0.saturating_sub(self.start.0));
        header.copy_from_slice(&raw::dump_packet_header(kept, length, kind == Kind::Rtcp, since));
        room[..kept].copy_from_slice(&packet.bytes[..kept]);
        self.stage.commit(self.stage.len() + raw::DUMP_PACKET_HEADER + kept, load);
        Ok(())
    }

    fn send_off(&mut self, writes: &mut Vec<Write>) {
        let packets = Shares::of(self.stage.file(), self.stage.packets());
        self.stage.send_off(Place::Append, packets, writes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::{Block, Data};
    use crate::proto::pcap::frame_record_len;
    use crate::proto::pcap::reading::{datagram, records};
    use crate::proto::rtcp::ReportBlock;
    use proptest::prelude::*;
    use std::time::Duration;

    const START: u64 = 1_795_336_245_000_000_000;
    const MS: u64 = 1_000_000;
    /// Smaller than real blocks, so that a few packets fill them.
    const BLOCK: usize = 4_096;

    /// `left` blocks, made when they are first needed.
    struct Pool {
        left: usize,
        free: Vec<Block>,
    }

    impl Blocks for Pool {
        fn take(&mut self) -> Option<Block> {
            self.left = self.left.checked_sub(1)?;
            Some(self.free.pop().unwrap_or_else(|| vec![0xee; BLOCK].leak()))
        }

        fn give(&mut self, block: Block) {
            self.left += 1;
            self.free.push(block);
        }
    }

    /// A recording with its disk.
    struct Bench {
        recording: Recording,
        pool: Pool,
        writes: Vec<Write>,
        files: Vec<Vec<u8>>,
        /// `packets` of the writes so far.
        written: u64,
        /// `bytes` of them.
        bytes: u64,
        fills: u64,
    }

    impl Bench {
        fn new(format: Format, streams: &[&[Codec]]) -> Bench {
            let mut recording = Recording::new(format);
            for (index, codecs) in streams.iter().enumerate() {
                assert_eq!(usize::from(recording.add_stream(spec(&index.to_string(), codecs))), index);
            }
            let count = recording.files() as u8;
            let files = (0..count).map(|file| recording.file_header(file, Wall(START), &[])).collect();
            Bench {
                recording,
                pool: Pool { left: 1_000, free: vec![] },
                writes: vec![],
                files,
                written: 0,
                bytes: 0,
                fills: 0,
            }
        }

        fn send(&mut self, stream: u8, channel: Channel, at: u64, bytes: &[u8]) -> Result<(), DropCause> {
            let port = 20_000 + u16::from(stream) * 2 + u16::from(channel == Channel::Rtcp);
            let packet =
                Packet { at: Wall(at), from: address(1, 40_000), to: address(2, port), bytes, frame: None };
            let before = self.writes.len();
            let outcome = self.recording.packet(stream, channel, &packet, &mut self.pool, &mut self.writes);
            assert!(self.writes.len() - before <= crate::limits::WRITES_PER_PACKET);
            outcome
        }

        /// PCMU with this byte as its audio.
        fn audio(&mut self, stream: u8, ms: u64, sequence: u16, timestamp: u32, byte: u8) {
            let bytes = rtp(0, 7, sequence, timestamp, &[byte; 160]);
            assert_eq!(self.send(stream, Channel::Rtp, START + ms * MS, &bytes), Ok(()));
        }

        fn flush(&mut self) {
            self.recording.flush(&mut self.writes);
            assert_eq!(self.recording.staged_since(), None);
            assert_eq!(self.recording.staged_packets(), 0);
            self.write();
        }

        /// Does what the engine does with writes.
        fn write(&mut self) {
            for write in self.writes.drain(..) {
                let file = &mut self.files[usize::from(write.file)];
                let start = match write.place {
                    Place::Append => file.len(),
                    Place::At(start) => start as usize,
                };
                let data = match write.data {
                    Data::Block { block, len } => {
                        assert!(len > 0);
                        let data = block[..len].to_vec();
                        self.pool.give(block);
                        data
                    }
                    Data::Fill { byte, len } => {
                        self.fills += len;
                        vec![byte; len as usize]
                    }
                };
                file.resize(file.len().max(start + data.len()), 0);
                file[start..start + data.len()].copy_from_slice(&data);
                self.written += write.packets.total();
                self.bytes += write.bytes;
            }
        }

        /// The file as runs of equal bytes.
        fn runs(&mut self, file: usize) -> Vec<(u8, usize)> {
            self.flush();
            let runs = self.files[file].chunk_by(|a, b| a == b);
            runs.map(|run| (run[0], run.len())).collect()
        }
    }

    fn address(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, host], port))
    }

    fn codec(payload_type: u8, encoding: &str, clock_rate: u32, channels: u8) -> Codec {
        Codec { payload_type, encoding: encoding.to_owned(), clock_rate, channels, fmtp: None }
    }

    fn pcmu() -> Vec<Codec> {
        vec![codec(0, "PCMU", 8_000, 1), codec(101, "telephone-event", 8_000, 1)]
    }

    fn opus() -> Vec<Codec> {
        vec![codec(111, "opus", 48_000, 2)]
    }

    fn spec(label: &str, codecs: &[Codec]) -> StreamSpec {
        StreamSpec {
            label: label.to_owned(),
            to_rtp: address(2, 20_000),
            to_rtcp: address(2, 20_001),
            codecs: codecs.to_vec(),
            rtcp_mux: false,
        }
    }

    fn rtp(payload_type: u8, ssrc: u32, sequence: u16, timestamp: u32, payload: &[u8]) -> Vec<u8> {
        let builder = rtp_rs::RtpPacketBuilder::new().payload_type(payload_type).ssrc(ssrc);
        builder.sequence(sequence.into()).timestamp(timestamp).payload(payload).build().unwrap()
    }

    const REPORT: [u8; 8] = [0x80, 201, 0, 1, 0, 0, 0, 7];
    const STUN: [u8; 20] = [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

    // ---- pcap ----

    #[test]
    fn pcap_holds_everything_in_order_under_its_addresses() {
        let mut bench = Bench::new(Format::Pcap, &[&pcmu(), &pcmu()]);
        let audio = rtp(0, 7, 1, 160, &[0x55; 160]);
        let mut sent = Vec::new();
        for n in 0..60u64 {
            let stream = (n % 2) as u8;
            for (channel, bytes) in [
                (Channel::Rtp, &audio[..]),
                (Channel::Rtcp, &REPORT[..]),
                (Channel::Rtp, &STUN[..]),
                (Channel::Rtp, b""),
            ] {
                let port = 20_000 + u16::from(stream) * 2 + u16::from(channel == Channel::Rtcp);
                assert_eq!(bench.send(stream, channel, START + n, bytes), Ok(()));
                sent.push((Wall(START + n), address(2, port), bytes.to_vec()));
            }
        }
        assert!(bench.writes.iter().all(|write| write.place == Place::Append && write.file == 0));
        for write in &bench.writes {
            let Data::Block { block, len } = &write.data else { panic!("a pcap has no silence") };
            assert_eq!(
                records(&block[..*len]).len(),
                write.packets.total() as usize,
                "whole records in each block"
            );
        }
        bench.flush();
        let file = &bench.files[0];
        assert_eq!(file[..24], pcap::FILE_HEADER);
        let read: Vec<_> = records(&file[24..])
            .iter()
            .map(|record| {
                let (from, to, payload) = datagram(record.frame);
                assert_eq!(from, address(1, 40_000));
                (record.at, to, payload)
            })
            .collect();
        assert_eq!(read, sent);
        let report = bench.recording.report(1);
        assert_eq!((report.packets, report.bytes), (30, 30 * 160));
        assert_eq!((report.rtcp_packets, report.other_packets, report.duplicate), (30, 60, 29));
        assert_eq!((report.ssrcs.len(), report.file.as_deref()), (1, Some("call.pcap")));
        let bytes = 60 * (172 + 8 + 20);
        assert_eq!((bench.written, bench.bytes), (240, bytes));
    }

    #[test]
    fn another_source_address_gets_its_own_headers() {
        let mut bench = Bench::new(Format::Pcap, &[&pcmu()]);
        for port in [40_000, 40_002, 40_000] {
            let bytes = &rtp(0, 7, 1, 0, b"x");
            let packet = Packet {
                at: Wall(START),
                from: address(9, port),
                to: address(2, 20_000),
                bytes,
                frame: None,
            };
            let Bench { recording, pool, writes, .. } = &mut bench;
            assert_eq!(recording.packet(0, Channel::Rtp, &packet, pool, writes), Ok(()));
        }
        bench.flush();
        let ports =
            records(&bench.files[0][24..]).iter().map(|r| datagram(r.frame).0.port()).collect::<Vec<_>>();
        assert_eq!(ports, [40_000, 40_002, 40_000]);
    }

    #[test]
    fn sip_messages_are_in_the_pcap_and_not_media() {
        let mut bench = Bench::new(Format::Pcap, &[&pcmu()]);
        let long = vec![b'x'; 9_000];
        for (received, tcp, bytes) in
            [(true, false, &b"INVITE"[..]), (false, false, b"SIP/2.0 200"), (true, false, &long)]
        {
            let signal = Signal {
                at: Wall(START),
                received,
                tcp,
                local: address(2, 5_060),
                peer: address(1, 5_060),
                bytes,
            };
            let Bench { recording, pool, writes, .. } = &mut bench;
            assert_eq!(recording.signal(&signal, pool, writes), Ok(()));
        }
        assert_eq!(bench.recording.staged_packets(), 0);
        assert_eq!(bench.recording.staged_since(), Some(Wall(START)));
        bench.flush();
        let file = &bench.files[0];
        let read = records(&file[24..]);
        assert_eq!(datagram(read[0].frame), (address(1, 5_060), address(2, 5_060), b"INVITE".to_vec()));
        assert_eq!(datagram(read[1].frame).0, address(2, 5_060));
        assert_eq!(
            (read[2].frame.len() + 16, read[2].wire),
            (BLOCK, 42 + 9_000),
            "cut to the block, and it shows"
        );
        assert_eq!((bench.written, bench.bytes), (0, 0));
    }

    #[test]
    fn long_sip_over_tcp_is_whole() {
        let mut recording = Recording::new(Format::Pcap);
        let message: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        struct Large;
        impl Blocks for Large {
            fn take(&mut self) -> Option<Block> {
                Some(vec![0; crate::limits::BLOCK_SIZE].leak())
            }
            fn give(&mut self, _: Block) {}
        }
        let (local, peer) = (address(2, 5_060), address(1, 40_000));
        let mut writes = Vec::new();
        for received in [true, false] {
            let signal = Signal { at: Wall(START), received, tcp: true, local, peer, bytes: &message };
            assert_eq!(recording.signal(&signal, &mut Large, &mut writes), Ok(()));
        }
        recording.flush(&mut writes);
        let (mut received, mut sent) = (Vec::new(), Vec::new());
        for write in &writes {
            let Data::Block { block, len } = &write.data else { panic!("a block") };
            for record in records(&block[..*len]) {
                let packet = etherparse::SlicedPacket::from_ethernet(record.frame).unwrap();
                let Some(etherparse::TransportSlice::Tcp(tcp)) = packet.transport else { panic!("TCP") };
                let side = if tcp.source_port() == 40_000 { &mut received } else { &mut sent };
                assert_eq!(tcp.sequence_number() as usize, side.len() + 1);
                side.extend_from_slice(tcp.payload());
            }
        }
        assert_eq!(writes.len(), 8);
        assert!(received == message && sent == message);
    }

    // ---- pcap, frames from the wire ----

    /// The frame of a datagram as a switch port with VLANs delivers it.
    fn tagged(payload: &[u8]) -> Vec<u8> {
        let builder = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 7], [2, 0, 0, 0, 0, 8])
            .single_vlan(42.try_into().unwrap())
            .ipv4([192, 0, 2, 1], [192, 0, 2, 2], 57)
            .udp(40_000, 20_000);
        let mut frame = Vec::new();
        builder.write(&mut frame, payload).unwrap();
        frame
    }

    impl Bench {
        fn send_frame(&mut self, at: u64, frame: &[u8], payload: usize) -> Result<(), DropCause> {
            let (from, to, bytes) = (address(1, 40_000), address(2, 20_000), &frame[frame.len() - payload..]);
            let packet = Packet { at: Wall(at), from, to, bytes, frame: Some(frame) };
            self.recording.packet(0, Channel::Rtp, &packet, &mut self.pool, &mut self.writes)
        }
    }

    #[test]
    fn frames_from_the_wire_and_built_ones_share_a_file() {
        let mut bench = Bench::new(Format::Pcap, &[&pcmu(), &pcmu()]);
        let mut expected = Vec::new();
        for n in 0..200u16 {
            let bytes = rtp(0, 7, n, u32::from(n) * 160, &[n as u8; 160]);
            let at = START + u64::from(n) * 20 * MS;
            if n % 3 == 0 {
                assert_eq!(bench.send(0, Channel::Rtp, at, &bytes), Ok(()));
                expected.push((Wall(at), None, bytes));
            } else {
                let frame = tagged(&bytes);
                assert_eq!(frame.len(), 14 + 4 + 28 + 172);
                assert_eq!(bench.send_frame(at, &frame, 172), Ok(()));
                expected.push((Wall(at), Some(frame), bytes));
            }
        }
        for write in &bench.writes {
            let Data::Block { block, len } = &write.data else { panic!("a pcap has no silence") };
            let whole = records(&block[..*len]);
            assert_eq!(whole.len(), write.packets.total() as usize, "what is too long for the rest goes on");
            assert!(len + frame_record_len(218) > BLOCK, "and no block leaves before that");
        }
        bench.flush();
        let read = records(&bench.files[0][24..]);
        assert_eq!(read.len(), expected.len());
        for (record, (at, frame, payload)) in read.iter().zip(expected) {
            assert_eq!((record.at, record.wire), (at, record.frame.len()));
            match frame {
                Some(frame) => assert_eq!(record.frame, frame, "byte for byte"),
                None => assert_eq!(datagram(record.frame).2, payload),
            }
        }
        let report = bench.recording.report(0);
        assert_eq!((report.packets, report.bytes, report.lost), (200, 200 * 160, 0));
        assert_eq!((bench.written, bench.bytes), (200, 200 * 172));
    }

    #[test]
    fn a_frame_longer_than_a_block_is_cut_and_shows_it() {
        let mut bench = Bench::new(Format::Pcap, &[&pcmu()]);
        let frame = tagged(&rtp(0, 7, 1, 0, &[1; 8_000]));
        assert_eq!(bench.send_frame(START, &tagged(&rtp(0, 7, 0, 0, &[1; 160])), 172), Ok(()));
        assert_eq!(bench.send_frame(START, &frame, 8_012), Ok(()));
        assert_eq!(bench.writes.len(), 1, "a block of its own");
        bench.flush();
        let read = &records(&bench.files[0][24..])[1];
        assert_eq!((read.frame, read.wire), (&frame[..BLOCK - 16], frame.len()));
    }

    #[test]
    fn streams_that_are_not_there_take_nothing() {
        for format in [Format::Pcap, Format::Raw] {
            let (one, three) = (pcmu(), [pcmu(), pcmu(), pcmu()]);
            for (count, mut bench) in [
                (1u8, Bench::new(format, &[&one])),
                (3, Bench::new(format, &[&three[0], &three[1], &three[2]])),
            ] {
                for stream in count..20 {
                    for bytes in [&REPORT[..], &STUN, &rtp(0, 7, 1, 0, &[1; 160])] {
                        assert_eq!(bench.send(stream, Channel::Rtp, START, bytes), Err(DropCause::NoSession));
                    }
                    assert_eq!(bench.recording.report(stream).packets, 0);
                    assert!(bench.recording.part(stream).is_none());
                }
                assert_eq!(bench.recording.staged_since(), None);
                // One that is taken back leaves its index to the next.
                bench.recording.forget_streams(0);
                assert_eq!(bench.send(0, Channel::Rtp, START, &STUN), Err(DropCause::NoSession));
                assert_eq!(bench.recording.add_stream(spec("x", &one)), 0);
            }
        }
    }

    #[test]
    fn raw_files_know_no_frames() {
        let mut bench = Bench::new(Format::Raw, &[&pcmu()]);
        for n in 0..3u8 {
            let bytes = rtp(0, 7, n.into(), u32::from(n) * 160, &[n; 160]);
            assert_eq!(bench.send_frame(START + u64::from(n) * 20 * MS, &tagged(&bytes), 172), Ok(()));
        }
        assert_eq!(bench.runs(0), [(0, 160), (1, 160), (2, 160)]);
    }

    // ---- raw, on the media clock ----

    #[test]
    fn a_gap_is_silence_and_a_late_packet_fills_it() {
        let mut bench = Bench::new(Format::Raw, &[&pcmu()]);
        bench.audio(0, 0, 1, 1_000, 1);
        bench.audio(0, 40, 3, 1_320, 3);
        bench.audio(0, 80, 5, 1_640, 5);
        bench.audio(0, 81, 2, 1_160, 2);
        assert_eq!(bench.runs(0), [(1, 160), (2, 160), (3, 160), (0xff, 160), (5, 160)]);
        bench.audio(0, 82, 4, 1_480, 4);
        assert_eq!(bench.writes.len(), 1, "its block has left: a write of its own");
        assert_eq!(bench.writes[0].place, Place::At(480));
        bench.audio(0, 100, 6, 1_800, 6);
        bench.audio(0, 101, 4, 1_480, 4);
        let runs: Vec<_> = (1..=6).map(|byte| (byte, 160)).collect();
        assert_eq!(bench.runs(0), runs);
        assert_eq!(bench.files[0].len(), 960);
        assert_eq!(bench.recording.file_name(0), "0.ulaw");
        let report = bench.recording.report(0);
        assert_eq!((report.packets, report.lost, report.out_of_order, report.duplicate), (8 - 1, 0, 2, 1));
    }

    #[test]
    fn blocks_follow_each_other_without_a_seam() {
        let mut bench = Bench::new(Format::Raw, &[&pcmu()]);
        for n in 0..100u16 {
            // Timestamp and sequence wrap on the way.
            let timestamp = u32::from(n).wrapping_mul(160).wrapping_sub(8_000);
            bench.audio(0, u64::from(n) * 20, n.wrapping_add(65_500), timestamp, n as u8);
        }
        let runs: Vec<_> = (0..100).map(|byte| (byte, 160)).collect();
        assert_eq!(bench.runs(0), runs);
        assert_eq!((bench.written, bench.fills), (100, 0));
        assert_eq!(bench.recording.report(0).lost, 0);
    }

    #[test]
    fn a_packet_that_straddles_a_block_that_has_left_is_whole() {
        let mut bench = Bench::new(Format::Raw, &[&pcmu()]);
        bench.audio(0, 0, 1, 0, 1);
        bench.audio(0, 40, 3, 320, 3);
        bench.flush();
        // From 480 on a block is staged; 400 to 560 lies in both.
        bench.audio(0, 60, 4, 480, 4);
        bench.audio(0, 61, 9, 400, 9);
        assert_eq!(bench.runs(0), [(1, 160), (0xff, 160), (3, 80), (9, 160), (4, 80)]);
        // Nothing staged: it goes beyond the end, and is the next block's beginning.
        bench.audio(0, 62, 10, 600, 8);
        bench.audio(0, 80, 5, 760, 5);
        assert_eq!(bench.runs(0)[3..], [(9, 160), (4, 40), (8, 160), (5, 160)]);
        assert_eq!(bench.written, 6);
    }

    #[test]
    fn legs_line_up() {
        let mut bench = Bench::new(Format::Raw, &[&pcmu(), &pcmu()]);
        bench.audio(1, 0, 1, 77, 1);
        bench.audio(0, 1_000, 1, 0, 2);
        bench.audio(0, 1_020, 2, 160, 3);
        assert_eq!(bench.runs(0), [(0xff, 8_000), (2, 160), (3, 160)]);
        assert_eq!(bench.runs(1), [(1, 160)]);
    }

    #[test]
    fn holds_and_new_sources_are_placed_by_arrival() {
        let mut bench = Bench::new(Format::Raw, &[&pcmu()]);
        bench.audio(0, 0, 1, 0, 1);
        // The clock stood still for ten seconds.
        bench.audio(0, 10_000, 2, 160, 2);
        bench.audio(0, 10_020, 3, 320, 3);
        // Another source, a second later and with its own clock.
        let other = |sequence, timestamp| rtp(0, 8, sequence, timestamp, &[4; 160]);
        assert_eq!(bench.send(0, Channel::Rtp, START + 11_000 * MS, &other(9, 0xffff_ff00)), Ok(()));
        assert_eq!(bench.send(0, Channel::Rtp, START + 11_020 * MS, &other(10, 0xffff_ffa0)), Ok(()));
        // A clock that jumps by half its range, in no time at all.
        bench.audio(0, 11_040, 4, 0x8000_0000, 5);
        let silence = 80_000 - 160;
        let expected = [(1, 160), (0xff, silence), (2, 160), (3, 160), (0xff, 7_680), (4, 320), (5, 160)];
        assert_eq!(bench.runs(0), expected);
        assert_eq!(bench.recording.report(0).ssrcs.len(), 2);
    }

    #[test]
    fn a_step_of_the_wall_clock_moves_nothing() {
        for step in [-3_600_000, 5 * 3_600_000] {
            let mut bench = Bench::new(Format::Raw, &[&pcmu()]);
            for n in 0..6i64 {
                let ms = n * 20 + if n >= 3 { step } else { 0 };
                let at = START.wrapping_add_signed(ms * MS as i64);
                let bytes = rtp(0, 7, n as u16, n as u32 * 160, &[n as u8; 160]);
                assert_eq!(bench.send(0, Channel::Rtp, at, &bytes), Ok(()));
            }
            let runs: Vec<_> = (0..6).map(|byte| (byte, 160)).collect();
            assert_eq!(bench.runs(0), runs, "step of {step} ms");
        }
    }

    #[test]
    fn what_has_no_place_is_an_error() {
        let mut bench = Bench::new(Format::Raw, &[&pcmu()]);
        bench.audio(0, 0, 10, 1_600, 1);
        let mut send = |channel, bytes: &[u8]| bench.send(0, channel, START, bytes);
        assert_eq!(send(Channel::Rtp, &rtp(101, 7, 11, 1_760, &[1, 2, 3, 4])), Err(DropCause::OtherPayload));
        assert_eq!(send(Channel::Rtp, &rtp(0, 7, 12, 1_920, b"")), Err(DropCause::OtherPayload));
        assert_eq!(send(Channel::Rtcp, &REPORT), Err(DropCause::Rtcp));
        assert_eq!(send(Channel::Rtp, &REPORT), Err(DropCause::Rtcp));
        assert_eq!(send(Channel::Rtp, &STUN), Err(DropCause::NotRtp));
        assert_eq!(send(Channel::Rtp, &rtp(0, 7, 9, 1_440, &[1; 160])), Err(DropCause::BeforeStart));
        // Half of it is after the start.
        assert_eq!(send(Channel::Rtp, &rtp(0, 7, 8, 1_520, &[2; 160])), Ok(()));
        assert_eq!(bench.send(9, Channel::Rtp, START, &STUN), Err(DropCause::NoSession));
        assert_eq!(bench.runs(0), [(2, 80), (1, 80)]);
        let report = bench.recording.report(0);
        assert_eq!((report.packets, report.rtcp_packets, report.other_packets), (2, 2, 1));
        assert_eq!((report.lost, report.dropped), (0, 1), "events are received, and not meant for this file");
    }

    #[test]
    fn two_byte_ticks() {
        let mut bench = Bench::new(Format::Raw, &[&[codec(11, "L16", 44_100, 2)]]);
        for (ms, timestamp) in [(0, 0), (20, 882)] {
            let bytes = rtp(11, 7, timestamp as u16, timestamp, &[9; 441 * 4]);
            assert_eq!(bench.send(0, Channel::Rtp, START + ms * MS, &bytes), Ok(()));
        }
        assert_eq!(bench.runs(0), [(9, 1_764), (0, 1_764), (9, 1_764)]);
        assert_eq!(bench.recording.file_name(0), "0.l16");
    }

    // ---- raw, rtpdump ----

    #[test]
    fn other_codecs_become_rtpdump() {
        let mut bench = Bench::new(Format::Raw, &[&opus()]);
        let audio = rtp(111, 7, 1, 960, b"frame");
        assert_eq!(bench.send(0, Channel::Rtp, START + 20 * MS, &audio), Ok(()));
        assert_eq!(bench.send(0, Channel::Rtcp, START + 40 * MS, &REPORT), Ok(()));
        assert_eq!(bench.send(0, Channel::Rtp, START, &STUN), Err(DropCause::NotRtp));
        bench.flush();
        let mut expected = raw::dump_file_header(Wall(START), address(2, 20_000));
        expected.extend_from_slice(&[0, 25, 0, 17, 0, 0, 0, 20]);
        expected.extend_from_slice(&audio);
        expected.extend_from_slice(&[0, 16, 0, 0, 0, 0, 0, 40]);
        expected.extend_from_slice(&REPORT);
        assert_eq!(bench.files[0], expected);
        assert_eq!(bench.recording.file_name(0), "0.rtp");
    }

    // ---- all ----

    #[test]
    fn names_are_safe_and_unique() {
        let mut recording = Recording::new(Format::Raw);
        let names: Vec<_> = ["1", "1", "../../etc/passwd", "", ".hidden", "-rf", "a b\0c", "A", "a", "ünï"]
            .iter()
            .map(|label| {
                let index = recording.add_stream(spec(label, &pcmu()));
                recording.file_name(index)
            })
            .collect();
        let expected = [
            "1.ulaw",
            "1-1.ulaw",
            "stream.._.._etc_passwd.ulaw",
            "stream.ulaw",
            "stream.hidden.ulaw",
            "stream-rf.ulaw",
            "a_b_c.ulaw",
            "A.ulaw",
            "a-8.ulaw",
            "_n_.ulaw",
        ];
        assert_eq!(names, expected);
        let long = recording.add_stream(spec(&"x".repeat(1_000), &opus()));
        assert_eq!(recording.file_name(long).len(), 68);
        assert_eq!(recording.file_name(99), "");
    }

    #[test]
    fn a_report_tells_what_came_of_its_stream() {
        let mut bench = Bench::new(Format::Pcap, &[&pcmu(), &pcmu()]);
        let audio = |bench: &mut Bench, n: u16, late: u64| {
            bench.audio(1, u64::from(n) * 20 + late, 65_530u16.wrapping_add(n), u32::from(n) * 160, 1);
        };
        // One of twelve is lost, one comes 8 ms late: 64 ticks, twice, less a sixteenth of 64, of which a sixteenth is told.
        (0..12).filter(|&n| n != 5).for_each(|n| audio(&mut bench, n, if n == 10 { 8 } else { 0 }));
        assert_eq!(bench.recording.receiver_report(0, Wall(START)), None, "nothing came to this one");
        let report = bench.recording.receiver_report(1, Wall(START)).unwrap();
        let mut block =
            ReportBlock { ssrc: 7, fraction_lost: 21, lost: 1, highest: 65_541, ..ReportBlock::default() };
        block.jitter = 7;
        assert_eq!(
            (report.to, report.channel, report.blocks()),
            (address(1, 40_001), Channel::Rtcp, &[block][..])
        );
        assert_eq!(report.local, address(2, 0).ip());

        let mut sender_report = [0; 28];
        sender_report[..16].copy_from_slice(&[0x80, 200, 0, 6, 0, 0, 0, 7, 1, 2, 3, 4, 5, 6, 7, 8]);
        bench.send(1, Channel::Rtcp, START + 300 * MS, &sender_report).unwrap();
        assert_eq!(bench.recording.receiver_report(1, Wall(START)), None, "no RTP since");
        audio(&mut bench, 12, 0);
        let report = bench.recording.receiver_report(1, Wall(START + 1_800 * MS)).unwrap();
        let [block] = report.blocks() else { panic!("{report:?}") };
        assert_eq!(
            (block.fraction_lost, block.last_report, block.since_last_report),
            (0, 0x0304_0506, 98_304)
        );
        assert_eq!(report.to, address(1, 40_000), "where RTCP came from");
        bench.flush();
    }

    #[test]
    fn payload_types_that_look_like_rtcp() {
        let codecs = [codec(72, "x", 8_000, 1)];
        let mut marked = rtp(72, 7, 1, 0, &[0; 160]);
        marked[1] |= 0x80;
        for (rtcp_mux, kind) in [(false, Kind::Rtp), (true, Kind::Rtcp)] {
            let spec = StreamSpec { rtcp_mux, ..spec("1", &codecs) };
            let stream = StreamRest::new(0, &spec, &[]);
            assert_eq!(rtp::classify(&marked, Channel::Rtp), Kind::Rtcp);
            assert_eq!(stream.kind(&marked), kind);
            assert_eq!(stream.kind(&REPORT), Kind::Rtcp, "not answered");
            let mut recording = Recording::new(Format::Pcap);
            recording.add_stream(spec);
            let mut pool = Pool { left: 1, free: vec![] };
            for channel in [Channel::Rtp, Channel::Rtcp] {
                let (from, to) = (address(1, 40_000), address(2, 20_000));
                let packet = Packet { at: Wall(START), from, to, bytes: &marked, frame: None };
                recording.packet(0, channel, &packet, &mut pool, &mut vec![]).unwrap();
            }
            let expected = if kind == Kind::Rtp { (1, 1) } else { (0, 2) };
            let report = recording.report(0);
            assert_eq!((report.packets, report.rtcp_packets), expected);
        }
    }

    #[test]
    fn failed_writes_are_charged() {
        let bytes = rtp(0, 7, 1, 0, &[1; 160]);
        for (format, streams) in [(Format::Pcap, 1), (Format::Pcap, 2), (Format::Raw, 2)] {
            let codecs = pcmu();
            let mut bench = Bench::new(format, &vec![&codecs[..]; streams]);
            assert_eq!(bench.send(0, Channel::Rtp, START, &bytes), Ok(()));
            bench.recording.flush(&mut bench.writes);
            let write = bench.writes.pop().unwrap();
            assert_eq!((write.packets.total(), write.bytes), (1, bytes.len() as u64));
            bench.recording.dropped(&write.packets);
            assert_eq!((bench.recording.report(0).dropped, bench.recording.report(1).dropped), (1, 0));
        }
    }

    #[test]
    fn no_block_no_record() {
        let codecs = pcmu();
        for format in [Format::Pcap, Format::Raw] {
            let mut bench = Bench::new(format, &[&codecs]);
            bench.pool.left = 0;
            let bytes = rtp(0, 7, 1, 0, &[1; 160]);
            assert_eq!(bench.send(0, Channel::Rtp, START, &bytes), Err(DropCause::NoBlock));
            let report = bench.recording.report(0);
            assert_eq!((report.packets, report.dropped, report.lost), (0, 1, 0));
            bench.pool.left = 1;
            assert_eq!(bench.send(0, Channel::Rtp, START, &bytes), Ok(()), "as soon as there is one");
        }
    }

    #[test]
    fn what_a_packet_touches_lies_together() {
        assert!(size_of::<Recording>() <= 448);
        let call = size_of::<Recording>() + size_of::<Rest>() + NEAR * size_of::<StreamRest>();
        assert!(call <= 4_096, "{call}");
        let codecs = pcmu();
        let mut bench = Bench::new(Format::Pcap, &[&codecs, &codecs, &codecs]);
        let start = (&raw const bench.recording).addr();
        for (stream, line) in [(0, start + 64), (1, start + 256), (2, 0)] {
            assert_eq!(bench.recording.touched(stream).map(|(at, _)| at.addr()), [start, line]);
        }
        assert_eq!(bench.recording.touched_then(0)[1].1, 0, "no block");
        for (stream, framed) in [(0, false), (2, false), (0, true)] {
            let bytes = rtp(0, 7, 1, 0, &[1; 160]);
            if framed {
                assert_eq!(bench.send_frame(START, &tagged(&bytes), 172), Ok(()));
            } else {
                assert_eq!(bench.send(stream, Channel::Rtp, START, &bytes), Ok(()));
            }
            let [headers, place] = bench.recording.touched_then(stream);
            assert_eq!(headers.1, usize::from(!framed), "headers only where they are built");
            let room = bench.recording.stage.len() + bench.recording.stage.block().unwrap().as_ptr().addr();
            assert!(place.0.addr() == room && (4..=5).contains(&place.1));
        }
    }

    /// What two reactors saw, in one report.
    fn together(a: &mut Bench, b: &Bench) -> StreamReport {
        let part = b.recording.part(0).unwrap();
        a.recording.absorb(0, &part);
        a.recording.report(0)
    }

    #[test]
    fn parts_of_a_stream_make_one_report() {
        let codecs = pcmu();
        let mut benches = [(); 3].map(|()| Bench::new(Format::Pcap, &[&codecs]));
        for n in 0..600u64 {
            // Every 50th is lost; each run of ten has its reactor; the third sees all.
            let bytes = rtp(0, 7, (n as u16).wrapping_add(65_300), n as u32 * 160, &[1; 160]);
            let at = START + n * 20 * MS;
            for index in [usize::from(n / 10 % 2 == 1), 2] {
                if n % 50 != 7 {
                    assert_eq!(benches[index].send(0, Channel::Rtp, at, &bytes), Ok(()));
                }
                if n % 100 == 0 {
                    assert_eq!(benches[index].send(0, Channel::Rtcp, at, &REPORT), Ok(()));
                }
            }
        }
        let [a, b, whole] = &mut benches;
        assert_eq!(b.send(0, Channel::Rtp, START, &rtp(0, 8, 1, 0, &[1; 160])), Ok(()));
        assert_eq!(b.send(0, Channel::Rtp, START, &STUN), Ok(()));
        let (one, all) = (together(a, b), whole.recording.report(0));
        assert_eq!((one.packets, one.bytes, one.lost), (all.packets + 1, all.bytes + 160, 12));
        assert_eq!((one.rtcp_packets, one.other_packets), (all.rtcp_packets, 1));
        assert_eq!((one.first_packet, one.last_packet), (all.first_packet, all.last_packet));
        assert_eq!((&one.ssrcs[0], one.ssrcs.len()), (&all.ssrcs[0], 2), "and the one that only one saw");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Rtp { stream: u8, ssrc: u32, payload_type: u8, sequence: i16, timestamp: i32, len: usize },
        Bytes { stream: u8, channel: Channel, bytes: Vec<u8> },
        Signal { tcp: bool, received: bool, len: usize },
        Wait { ms: u64 },
        Blocks { left: usize },
        Write,
        Flush,
    }

    fn step() -> impl Strategy<Value = Step> {
        let timestamp = prop_oneof![8 => Just(160), 2 => -4_000..20_000i32, 1 => any::<i32>()];
        let sequence = prop_oneof![8 => Just(1i16), 2 => -200..200i16, 1 => any::<i16>()];
        let packet = (
            0..3u8,
            0..10u32,
            prop_oneof![9 => Just(0u8), 1 => any::<u8>()],
            sequence,
            timestamp,
            0..1_400usize,
        );
        let packet = packet.prop_map(|(stream, ssrc, payload_type, sequence, timestamp, len)| Step::Rtp {
            stream,
            ssrc: ssrc / 8,
            payload_type: payload_type & 0x7f,
            sequence,
            timestamp,
            len,
        });
        let channel = prop_oneof![Just(Channel::Rtp), Just(Channel::Rtcp)];
        let bytes = prop_oneof![
            Just(REPORT.to_vec()),
            Just(STUN.to_vec()),
            prop::collection::vec(any::<u8>(), 0..300)
        ];
        prop_oneof![
            20 => packet,
            3 => (0..3u8, channel, bytes).prop_map(|(stream, channel, bytes)| Step::Bytes { stream, channel, bytes }),
            1 => (any::<bool>(), any::<bool>(), 0..3_000usize)
                .prop_map(|(tcp, received, len)| Step::Signal { tcp, received, len }),
            5 => prop_oneof![9 => 0..40u64, 1 => 0..20_000u64].prop_map(|ms| Step::Wait { ms }),
            1 => (0..4usize).prop_map(|left| Step::Blocks { left }),
            4 => Just(Step::Write),
            1 => Just(Step::Flush),
        ]
    }

    /// The third stream's payload type 0 is Opus: one file of each layout.
    fn mixed() -> [Vec<Codec>; 3] {
        [pcmu(), vec![codec(0, "L16", 16_000, 1)], vec![codec(0, "opus", 48_000, 2)]]
    }

    fn run(format: Format, steps: &[Step]) -> (Bench, u64, u64, u64, Duration) {
        let codecs = mixed();
        let mut bench = Bench::new(format, &[&codecs[0], &codecs[1], &codecs[2]]);
        let (mut given, mut refused, mut signals, mut at) = (0, 0, 0, START);
        let (mut sequence, mut timestamp) = (0u16, 0u32);
        for step in steps {
            let outcome = match step {
                Step::Rtp { stream, ssrc, payload_type, sequence: by, timestamp: ahead, len } => {
                    sequence = sequence.wrapping_add_signed(*by);
                    timestamp = timestamp.wrapping_add_signed(*ahead);
                    let bytes = rtp(*payload_type, *ssrc, sequence, timestamp, &vec![7; *len]);
                    Some(bench.send(*stream, Channel::Rtp, at, &bytes))
                }
                Step::Bytes { stream, channel, bytes } => Some(bench.send(*stream, *channel, at, bytes)),
                Step::Signal { tcp, received, len } => {
                    let (local, peer, bytes) = (address(2, 5_060), address(1, 5_060), &vec![b's'; *len][..]);
                    let signal = Signal { at: Wall(at), received: *received, tcp: *tcp, local, peer, bytes };
                    let Bench { recording, pool, writes, .. } = &mut bench;
                    let outcome = recording.signal(&signal, pool, writes);
                    signals += u64::from(outcome.is_ok() && (!tcp || *len > 0));
                    None
                }
                Step::Wait { ms } => {
                    at += ms * MS;
                    None
                }
                Step::Blocks { left } => {
                    bench.pool.left = *left;
                    None
                }
                Step::Write => {
                    bench.write();
                    None
                }
                Step::Flush => {
                    bench.flush();
                    None
                }
            };
            if let Some(outcome) = outcome {
                given += 1;
                refused += u64::from(outcome.is_err());
            }
            let waiting: u64 = bench.writes.iter().map(|write| write.packets.total()).sum();
            let staged = bench.recording.staged_packets();
            assert_eq!(given, bench.written + waiting + staged + refused);
        }
        bench.flush();
        (bench, given, refused, signals, Duration::from_nanos(at - START))
    }

    proptest! {
        #[test]
        fn every_packet_is_in_one_write_or_one_error(steps in prop::collection::vec(step(), 0..300)) {
            let (bench, given, refused, signals, _) = run(Format::Pcap, &steps);
            prop_assert_eq!(given, bench.written + refused);
            // A message over TCP of which a part found no block leaves the other part.
            let messages_at_least = records(&bench.files[0][24..]).len() as u64 - bench.written;
            prop_assert!(messages_at_least >= signals);

            let (bench, given, refused, _, elapsed) = run(Format::Raw, &steps);
            prop_assert_eq!(given, bench.written + refused);
            // Whatever timestamps say: silence is bounded by arrival, and the rest is what was sent.
            let sent = bench.bytes;
            let clocked = (elapsed.as_millis() as u64 + 2_000) * (8 + 32);
            let size = (bench.files[0].len() + bench.files[1].len()) as u64;
            prop_assert!(size <= clocked + sent, "{} > {} + {}", size, clocked, sent);
            prop_assert!(bench.fills <= clocked + sent);
        }
    }
}
