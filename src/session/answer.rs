//! An offer and the streams so far → which m-lines are recorded (RFC 3264 §6 and §8, RFC 7866 §7.1.1.1).

use crate::proto::manifest::Format;
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

/// Streams of `lines` that no plan keeps.
pub fn removed(lines: &[Option<u8>], plans: &[Plan]) -> Vec<u8> {
    lines.iter().flatten().copied().filter(|stream| !plans.contains(&Plan::Keep(*stream))).collect()
}

/// A pcap takes whatever comes; a raw file is laid out for one codec, so another codec is another stream.
fn continues(stream: &Stream, media: &MediaLine, format: Format) -> bool {
    let layout =
        |codec: Option<&Codec>| codec.map(|codec| (codec.encoding.to_ascii_lowercase(), codec.clock_rate));
    format == Format::Pcap || layout(first_codec(&stream.codecs)) == layout(first_codec(&media.codecs))
}

/// The preferred codec: the first that is not telephone-event.
pub fn first_codec(codecs: &[Codec]) -> Option<&Codec> {
    codecs.iter().find(|codec| !codec.encoding.eq_ignore_ascii_case("telephone-event"))
}
