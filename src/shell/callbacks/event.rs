//! Events as receivers get them: CloudEvents 1.0 in the structured JSON format. Pure.
//!
//! Names and fields are stable: fields may be added to `data`, and what would break a receiver gets a new type.

use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use super::alarm::Change;
use crate::clock::Wall;
use crate::session::Notice;

pub const CONTENT_TYPE: &str = "application/cloudevents+json; charset=utf-8";

/// What happened, before it is an event of this recorder.
#[derive(Clone, PartialEq, Debug)]
pub struct Happening {
    /// `session.started`: without what is around it in the type.
    pub name: &'static str,
    /// The recording.
    pub subject: Option<String>,
    pub data: Value,
}

/// Which recorder it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source {
    /// Made by [`uri`].
    pub uri: String,
    pub region: Option<String>,
    pub group: Option<String>,
}

/// The attributes of CloudEvents 1.0 §3, and its extension `sequence`.
#[derive(Serialize)]
struct CloudEvent<'a> {
    specversion: &'static str,
    id: &'a str,
    source: &'a str,
    /// Labels of the recorder, as attributes of our own.
    #[serde(skip_serializing_if = "Option::is_none")]
    region: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a str>,
    r#type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    time: Wall,
    /// Ascending in the order of characters too, as the extension asks.
    sequence: String,
    datacontenttype: &'static str,
    data: &'a Value,
}

/// What a receiver is to know of a notice; `None`: that is for the log alone. Sessions are told of by their state machine.
pub fn notice(_: &Notice) -> Option<Happening> {
    None
}

pub fn alarm(change: &Change) -> Happening {
    let Change { alarm, step, since, count } = change;
    let data = json!({
        "alarm": alarm.text(), "state": step.text(), "since": since, "count": count, "meaning": alarm.meaning(),
    });
    Happening { name: "alarm", subject: None, data }
}

impl Happening {
    /// Events of one recording have one key, and so have all alarms.
    pub fn key(&self) -> u32 {
        let mut hasher = DefaultHasher::new();
        self.subject.hash(&mut hasher);
        hasher.finish() as u32
    }

    pub fn event(&self, source: &Source, id: &str, sequence: u64, time: Wall) -> Bytes {
        let event = CloudEvent {
            specversion: "1.0",
            id,
            source: &source.uri,
            region: source.region.as_deref(),
            group: source.group.as_deref(),
            r#type: format!("io.sipreel.{}.v1", self.name),
            subject: self.subject.as_deref(),
            time,
            sequence: format!("{sequence:020}"),
            datacontenttype: "application/json",
            data: &self.data,
        };
        serde_json::to_vec(&event).expect("strings and numbers have a JSON form").into()
    }
}

/// The resource id as a URI reference (RFC 3986 §4.1), which `source` has to be: what a path segment cannot have is escaped.
pub fn uri(resource_id: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    resource_id
        .bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::alarm::{Alarm, Step};
    use super::*;
    fn source() -> Source {
        Source { uri: uri("rec-1"), region: Some("eu".into()), group: None }
    }

    #[test]
    fn an_alarm_has_no_subject() {
        let change = Change { alarm: Alarm::NoRoom, step: Step::Raised, since: Wall(0), count: 4 };
        let event: Value = serde_json::from_slice(&alarm(&change).event(&source(), "i", 1, Wall(0))).unwrap();
        assert_eq!(event["type"], "io.sipreel.alarm.v1");
        assert_eq!(event.get("subject"), None);
        assert_eq!(event["data"]["alarm"], "no_room");
        assert_eq!((&event["data"]["state"], &event["data"]["count"]), (&"raised".into(), &4.into()));
    }

    #[test]
    fn a_resource_id_becomes_a_uri_reference() {
        assert_eq!(uri("rec-1.fra"), "rec-1.fra");
        assert_eq!(uri("a:b/c d%"), "a%3Ab%2Fc%20d%25");
    }
}
