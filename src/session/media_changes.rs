//! What an offer has changed in the media, as events for the manifest (RFC 3264 §8).

use super::recording::{MediaSession, Stream};
use crate::clock::Wall;
use crate::limits::TABLE_TEXT;
use crate::proto::manifest::{Event, EventKind};
use crate::proto::raw;
use crate::proto::sdp::Codec;

/// The events between two states of one session's media, by m-line. Nothing was there before the first.
pub fn events(before: &MediaSession, after: &MediaSession, at: Wall) -> Vec<Event> {
    let stream = |session: &MediaSession, m_line: usize| {
        let index = session.lines.get(m_line).copied().flatten()?;
        session.streams.get(usize::from(index)).cloned()
    };
    let lines = before.lines.len().max(after.lines.len());
    let mut events = Vec::new();
    for m_line in 0..lines {
        let event = |kind| Event::new(at, kind).m_line(m_line);
        match (stream(before, m_line), stream(after, m_line)) {
            (None, None) => {}
            (None, Some(new)) => events.push(event(EventKind::MediaAdded).detail(named(&new))),
            (Some(_), None) => events.push(event(EventKind::MediaRemoved)),
            (Some(old), Some(new)) => {
                let changes = changes(&old, &new).into_iter();
                events.extend(changes.map(|(kind, words)| match words {
                    Some(words) => event(kind).detail(words),
                    None => event(kind),
                }));
            }
        }
    }
    events
}

fn changes(old: &Stream, new: &Stream) -> Vec<(EventKind, Option<String>)> {
    let mut changes = Vec::new();
    let mut changed = |what: &str, old: String, new: String| {
        if old != new {
            changes.push((EventKind::MediaChanged, Some(format!("{what} {old}, now {new}"))));
        }
    };
    changed("codec", codec(old), codec(new));
    changed("sent from", source(old), source(new));
    changed("recorded at port", old.port.to_string(), new.port.to_string());
    match (old.held, new.held) {
        (false, true) => changes.push((EventKind::MediaPaused, None)),
        (true, false) => changes.push((EventKind::MediaResumed, None)),
        _ => {}
    }
    changes
}

fn named(stream: &Stream) -> String {
    format!("{} at port {}, {}", short(&stream.kind), stream.port, codec(stream))
}

/// Of the newest offer: `PCMU/8000 as 0`. The payload type too: a type that means another codec now is such a change.
fn codec(stream: &Stream) -> String {
    match raw::main_codec(&stream.offered) {
        Some(Codec { payload_type, encoding, clock_rate, .. }) => {
            format!("{}/{clock_rate} as {payload_type}", short(encoding))
        }
        None => "unknown".to_owned(),
    }
}

fn source(stream: &Stream) -> String {
    match stream.source {
        (Some(address), port) => format!("{address} port {port}"),
        (None, port) => format!("port {port}"),
    }
}

fn short(text: &str) -> String {
    text.chars().take(TABLE_TEXT).collect()
}
