//! An offer and the streams so far → which m-lines are recorded (RFC 3264 §6 and §8, RFC 7866 §7.1.1.1).

use crate::proto::manifest::Format;
use crate::proto::raw;
use crate::proto::sdp::{Codec, MediaLine, Offer};

use super::recording::Stream;

/// What becomes of one m-line of the offer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plan {
    Refuse,
    /// It has this stream already.
    Keep(u8),
    /// It gets a new stream.
    Add,
}

/// The offer uses m-lines, and none of them can be recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotAcceptable;

/// A raw file is laid out for one codec, so with it each m-line accepts one: that of its stream so far if it is still
/// offered, else the first with a constant rate, else the first. telephone-event stays, comfort noise does not: the file has
/// no place for it, and without it the SRC sends silence in the codec.
pub fn narrow(offer: &mut Offer, lines: &[Option<u8>], streams: &[Stream], format: Format) {
    if format == Format::Pcap {
        return;
    }
    for (m_line, media) in offer.media.iter_mut().enumerate().filter(|(_, media)| media.recordable()) {
        let stream = lines.get(m_line).copied().flatten().and_then(|index| streams.get(usize::from(index)));
        let current = stream.and_then(|stream| raw::main_codec(&stream.codecs));
        if let Some(chosen) = choose(media, current) {
            let events: Vec<u8> = events(media).collect();
            media.keep_formats(|payload_type| payload_type == chosen || events.contains(&payload_type));
        }
    }
}

/// `None`: nothing is offered but events and comfort noise.
fn choose(media: &MediaLine, current: Option<&Codec>) -> Option<u8> {
    let mut codecs =
        media.codecs.iter().filter(|codec| raw::main_codec(std::slice::from_ref(codec)).is_some());
    let known = codecs
        .clone()
        .find(|codec| current.is_some_and(|current| layout(codec) == layout(current)))
        .or_else(|| codecs.clone().find(|codec| raw::clocked(codec).is_some()))
        .or_else(|| codecs.next());
    let unknown = |payload_type: &u8| media.codecs.iter().all(|codec| codec.payload_type != *payload_type);
    known.map(|codec| codec.payload_type).or_else(|| media.payload_types().find(unknown))
}

fn events(media: &MediaLine) -> impl Iterator<Item = u8> + '_ {
    media.codecs.iter().filter(|codec| raw::is_event(codec)).map(|codec| codec.payload_type)
}

/// One plan for each m-line. `lines` has the stream of each m-line so far, `room` is how many more streams may be added.
/// An offer that uses no m-line at all is fine in a dialog: the SRC has taken every stream away for now.
pub fn plan(
    offer: &Offer,
    lines: &[Option<u8>],
    streams: &[Stream],
    format: Format,
    mut room: usize,
) -> Result<Vec<Plan>, NotAcceptable> {
    let mut plans = Vec::with_capacity(offer.media.len());
    for (m_line, media) in offer.media.iter().enumerate() {
        let current = lines.get(m_line).copied().flatten();
        let plan = match current {
            _ if !media.recordable() => Plan::Refuse,
            Some(stream) if continues(&streams[usize::from(stream)], media, format) => Plan::Keep(stream),
            _ if room == 0 => Plan::Refuse,
            _ => {
                room -= 1;
                Plan::Add
            }
        };
        plans.push(plan);
    }
    let used = offer.media.iter().any(|media| media.port != 0);
    let refused = plans.iter().all(|plan| *plan == Plan::Refuse);
    if used && refused { Err(NotAcceptable) } else { Ok(plans) }
}

/// Streams of `lines` that no plan keeps: those whose m-line has moved to a new stream, and those that are over. An m-line that
/// an SRC leaves out, against RFC 3264 §8, is over.
pub fn removed(lines: &[Option<u8>], plans: &[Plan]) -> (Vec<u8>, Vec<u8>) {
    let (mut moved, mut over) = (Vec::new(), Vec::new());
    for (m_line, stream) in lines.iter().enumerate() {
        match (stream, plans.get(m_line)) {
            (Some(stream), Some(Plan::Keep(kept))) if stream == kept => {}
            (Some(stream), Some(Plan::Add)) => moved.push(*stream),
            (Some(stream), _) => over.push(*stream),
            (None, _) => {}
        }
    }
    (moved, over)
}

/// A pcap takes whatever comes; a raw file is laid out for one codec, so another codec is another stream.
fn continues(stream: &Stream, media: &MediaLine, format: Format) -> bool {
    let main = |codecs| raw::main_codec(codecs).map(layout);
    format == Format::Pcap || main(&stream.codecs) == main(&media.codecs)
}

/// What a raw file depends on. The payload type too: packets of another one are not its codec's.
fn layout(codec: &Codec) -> (u8, String, u32, u8) {
    (codec.payload_type, codec.encoding.to_ascii_lowercase(), codec.clock_rate, codec.channels)
}
