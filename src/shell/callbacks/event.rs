//! Events as receivers get them: CloudEvents 1.0 in the structured JSON format. Pure.
//!
//! Names and fields are stable: fields may be added to `data`, and what would break a receiver gets a new type.

use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use super::alarm::Change;
use crate::clock::Wall;
use crate::session::state::State;
use crate::session::{Notice, Transition};

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

/// What a receiver is to know of a notice; `None`: that is for the log alone.
pub fn notice(notice: &Notice) -> Option<Happening> {
    let of = |name, id: String, data| Some(Happening { name, subject: Some(id), data });
    match notice {
        Notice::State(transition) => {
            of(transition_name(transition)?, transition.id.to_string(), session(transition))
        }
        Notice::Updated { id, call_id, streams, .. } => {
            let data = json!({"recording": id.to_string(), "call_id": call_id, "streams": streams});
            of("session.updated", id.to_string(), data)
        }
        Notice::Whole { id, path, incomplete } => of(
            "recording.whole",
            id.clone(),
            json!({"recording": id, "path": path, "incomplete": incomplete}),
        ),
        Notice::NotWhole { id, why } => {
            of("recording.failed", id.clone(), json!({"recording": id, "failure": why}))
        }
        // Refusals and findings.
        _ => None,
    }
}

/// `None`: a step that changes nothing for anybody else.
fn transition_name(transition: &Transition) -> Option<&'static str> {
    match (transition.from, transition.to) {
        (from, State::Active | State::Paused) if from.opening() => Some("session.started"),
        (_, State::Paused) => Some("session.paused"),
        (_, State::Active) => Some("session.resumed"),
        (_, State::Ending) => Some("session.ended"),
        (_, State::Failed) => Some("session.failed"),
        (_, State::Connecting | State::Recovering | State::Ended) => None,
    }
}

fn session(transition: &Transition) -> Value {
    let Transition { id, call_id, peer, transport, to, cause, detail, streams, age, .. } = transition;
    let mut data = json!({
        "recording": id.to_string(), "call_id": call_id, "peer": peer.to_string(),
        "transport": transport.name(), "state": to.text(),
        "cause": cause, "streams": streams, "seconds": age.as_secs_f64(),
    });
    if let Some(detail) = detail {
        data["detail"] = json!(detail);
    }
    data
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
    use crate::session::Transport;
    use crate::session::id::Id;
    use std::time::Duration;

    const ID: Id = Id(0x0199_b1c2_0000_7000_8000_0000_0000_0001);

    fn step(from: State, to: State, cause: &'static str) -> Notice {
        Notice::State(Box::new(Transition {
            id: ID,
            call_id: "a\"b\r\n\u{7f}@sbc.example".into(),
            peer: "192.0.2.9:5060".parse().unwrap(),
            transport: Transport::Tls,
            certificate: None,
            from,
            to,
            cause,
            detail: (to == State::Failed).then(|| "no space left".into()),
            at: Wall(1),
            streams: 2,
            age: Duration::from_millis(1_500),
        }))
    }

    fn notices() -> Vec<(&'static str, Notice)> {
        use State::{Active, Connecting, Ending, Failed, Paused, Recovering};
        let id = ID.to_string();
        vec![
            ("session.started", step(Connecting, Active, "answered")),
            ("session.started", step(Recovering, Paused, "answered")),
            ("session.paused", step(Active, Paused, "held")),
            ("session.resumed", step(Paused, Active, "resumed")),
            ("session.updated", Notice::Updated { id: ID, call_id: "a".into(), at: Wall(1), streams: 3 }),
            ("session.ended", step(Active, Ending, "bye")),
            ("session.failed", step(Connecting, Failed, "open_failed")),
            ("recording.whole", Notice::Whole { id: id.clone(), path: "2026/x".into(), incomplete: false }),
            ("recording.failed", Notice::NotWhole { id, why: "cannot rename x".into() }),
        ]
    }

    #[test]
    fn every_event_is_one_line_with_the_attributes_of_cloudevents() {
        let key = super::notice(&notices()[0].1).unwrap().key();
        for (name, notice) in notices() {
            let happening = super::notice(&notice).unwrap();
            let body = happening.event(&source(), "e1", 7, Wall(1_795_336_245_000_000_000));
            assert!(!body.contains(&b'\n'));
            let event: Value = serde_json::from_slice(&body).unwrap();
            for (name, value) in [
                ("specversion", "1.0"),
                ("id", "e1"),
                ("source", "rec-1"),
                ("region", "eu"),
                ("type", &format!("io.sipreel.{name}.v1")),
                ("subject", &ID.to_string()),
                ("time", "2026-11-22T08:30:45.000000Z"),
                ("sequence", "00000000000000000007"),
                ("datacontenttype", "application/json"),
            ] {
                assert_eq!(event[name], value, "{name}");
            }
            assert_eq!(event.get("group"), None, "no label, no attribute");
            assert_eq!(event["data"]["recording"], ID.to_string());
            assert_eq!(happening.key(), key, "one recording, one key");
        }
    }

    #[test]
    fn the_data_of_a_session() {
        let failed = notice(&step(State::Connecting, State::Failed, "open_failed")).unwrap();
        let expected = json!({
            "recording": ID.to_string(), "call_id": "a\"b\r\n\u{7f}@sbc.example", "peer": "192.0.2.9:5060",
            "transport": "tls", "state": "failed", "cause": "open_failed", "detail": "no space left", "streams": 2, "seconds": 1.5,
        });
        assert_eq!(failed.data, expected);
    }

    #[test]
    fn notices_for_the_log_alone_are_no_events() {
        let peer = "192.0.2.9:5060".parse().unwrap();
        let refused = Notice::Refused { call_id: "a".into(), peer, code: 503, why: "no port".into() };
        assert_eq!(notice(&refused), None);
        assert_eq!(notice(&step(State::Ending, State::Ended, "bye")), None);
        assert_eq!(notice(&step(State::Connecting, State::Recovering, "open_failed")), None);
    }

    fn source() -> Source {
        Source { uri: uri("rec-1"), region: Some("eu".into()), group: None }
    }

    /// Whoever writes a receiver has the README.
    #[test]
    fn the_readme_has_every_event_field_and_alarm() {
        let readme = include_str!("../../../README.md");
        let (_, section) = readme.split_once("\n## Callbacks\n").unwrap();
        let section = section.split("\n## ").next().unwrap();
        let change = Change { alarm: Alarm::NoRoom, step: Step::Raised, since: Wall(0), count: 4 };
        let happenings = notices().into_iter().filter_map(|(_, notice)| super::notice(&notice));
        for Happening { name, data, .. } in happenings.chain([alarm(&change)]) {
            let fields = data.as_object().unwrap().keys().map(String::as_str);
            for word in fields.chain([name]) {
                assert!(section.contains(&format!("`{word}`")), "{word} of {name} is not in the README");
            }
        }
        for alarm in Alarm::ALL {
            assert!(section.contains(&format!("| `{}` |", alarm.text())), "{}", alarm.text());
        }
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
