//! The reply to `stats` in the text format that Prometheus scrapes (exposition format 0.0.4).
//!
//! A name is its path in the JSON: `media.received_packets` is `sipreel_media_received_packets_total`. So whatever is added to
//! the stats is here too: as a counter, unless it is listed as a gauge.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Map, Value};

use super::stats_client::NoAnswer;

/// What goes up and down.
const GAUGES: &[&str] = &[
    "active",
    "blocks_total",
    "blocks_used",
    "cooling",
    "free",
    "oldest_seconds",
    "paused",
    "pid",
    "port_pairs",
    "queue_bytes",
    "queue_files",
    "queued",
    "recovering",
    "sessions_max",
    "staged_packets",
    "tcp_open",
    "transactions",
    "unaccounted_packets",
    "uptime_seconds",
    "used",
];

/// Objects whose keys are a label's values, and the label.
const LABELS: &[(&str, &str)] = &[
    ("connections_closed", "cause"),
    ("connections_refused", "cause"),
    ("dropped", "cause"),
    ("ended", "cause"),
    ("failed", "cause"),
    ("metadata_findings", "code"),
    ("refused", "cause"),
    ("requests", "method"),
    ("responses", "code"),
    ("tls_failed", "cause"),
    ("tls_handshakes", "version"),
];

/// Arrays of objects, and the field that tells one from another. Those objects have names of their own: `sipreel_reactor_…`.
const ROWS: &[(&str, &str, &str)] =
    &[("alarms", "alarm", "alarm"), ("endpoints", "endpoint", "url"), ("reactors", "reactor", "reactor")];

#[derive(Default)]
struct Page(BTreeMap<String, Metric>);

struct Metric {
    kind: &'static str,
    samples: String,
}

/// The page for this reply.
pub fn page(reply: &str) -> Result<String, NoAnswer> {
    let stats: Map<String, Value> =
        serde_json::from_str(reply).map_err(|error| NoAnswer::Reply(error.to_string()))?;
    let mut page = Page::default();
    page.object("sipreel", "", &stats);
    let recorder = &stats["recorder"];
    let labels = label("version", &recorder["version"]) + "," + &label("dir", &recorder["dir"]);
    page.sample("sipreel_info", "gauge", "", &labels, 1.0);
    Ok(page.text())
}

fn label(name: &str, value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    format!("{name}=\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

fn both(labels: &str, more: &str) -> String {
    if labels.is_empty() { more.to_owned() } else { format!("{labels},{more}") }
}

impl Page {
    fn object(&mut self, path: &str, labels: &str, object: &Map<String, Value>) {
        for (key, value) in object {
            let name = format!("{path}_{key}");
            let parts = key.strip_suffix("_total").and_then(|key| object.get(key));
            match value {
                // The sum of what is shown by label.
                Value::Number(_) if parts.is_some_and(Value::is_object) => {}
                Value::Number(number) => self.number(&name, key, labels, number.as_f64().unwrap_or_default()),
                Value::Object(quantiles) if quantiles.contains_key("p99") => {
                    self.summary(&name, labels, quantiles);
                }
                Value::Object(inner) => self.inner(&name, key, labels, inner),
                Value::Array(rows) => self.rows(path, key, labels, rows),
                _ => {}
            }
        }
    }

    fn inner(&mut self, name: &str, key: &str, labels: &str, inner: &Map<String, Value>) {
        let Some((_, by)) = LABELS.iter().find(|(known, _)| *known == key) else {
            return self.object(name, labels, inner);
        };
        for (value, number) in inner {
            let labels = both(labels, &label(by, &value.as_str().into()));
            self.number(name, key, &labels, number.as_f64().unwrap_or_default());
        }
    }

    fn rows(&mut self, path: &str, key: &str, labels: &str, rows: &[Value]) {
        let Some((_, one, by)) = ROWS.iter().find(|(known, ..)| *known == key) else { return };
        for row in rows.iter().filter_map(Value::as_object) {
            let mut row = row.clone();
            let labels = both(labels, &label(one, &row.remove(*by).unwrap_or_default()));
            self.object(&format!("{path}_{one}"), &labels, &row);
        }
    }

    fn number(&mut self, name: &str, key: &str, labels: &str, value: f64) {
        if GAUGES.contains(&key) {
            self.sample(name, "gauge", "", labels, value);
        } else {
            let name = format!("{}_total", name.strip_suffix("_total").unwrap_or(name));
            self.sample(&name, "counter", "", labels, value);
        }
    }

    /// Nanoseconds as seconds, which is what everybody else's dashboards have.
    fn summary(&mut self, name: &str, labels: &str, quantiles: &Map<String, Value>) {
        let (name, scale) = match name.strip_suffix("_ns") {
            Some(name) => (format!("{name}_seconds"), 1e-9),
            None => (name.to_owned(), 1.0),
        };
        let value = |key: &str| quantiles.get(key).and_then(Value::as_f64).unwrap_or_default();
        for (key, quantile) in [("p50", "0.5"), ("p99", "0.99"), ("max", "1")] {
            let labels = both(labels, &label("quantile", &quantile.into()));
            self.sample(&name, "summary", "", &labels, value(key) * scale);
        }
        self.sample(&name, "summary", "_count", labels, value("count"));
    }

    fn sample(&mut self, name: &str, kind: &'static str, suffix: &str, labels: &str, value: f64) {
        let metric = self.0.entry(name.to_owned()).or_insert(Metric { kind, samples: String::new() });
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        // Writing to a String cannot fail.
        let _ = writeln!(metric.samples, "{name}{suffix}{labels} {value}");
    }

    fn text(&self) -> String {
        let metrics = self.0.iter();
        metrics.map(|(name, metric)| format!("# TYPE {name} {}\n{}", metric.kind, metric.samples)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::stats::Stats;
    use serde_json::json;
    use std::collections::BTreeSet;

    #[test]
    fn names_types_and_labels() {
        let reply = json!({
            "recorder": {"version": "0.1.0", "dir": "/srv/\"r\"", "sip_udp": ["127.0.0.1:5060"], "sessions_max": 10},
            "uptime_seconds": 1.5,
            "sessions": {"active": 2, "total": 10, "refused_total": 3, "refused": {"no_port": 3, "draining": 0}},
            "setup_ns": {"count": 4, "p50": 1_500_000, "p99": 2_000_000, "max": 3_000_000_000u64},
            "sip": {"responses": {"200": 20}, "wire": {"tcp_open": 1}},
            "reactors": [{"reactor": 0, "media": {"dropped_total": 5, "dropped": {"no_block": 5}}}],
            "callbacks": {"endpoints": [{"url": "http://a/x", "queued": 7, "failed": {"tls": 1}, "failing": "no"}]},
            "alarms": [{"alarm": "no_room", "since": "now", "count": 3}],
        });
        let expected = r#"# TYPE sipreel_alarm_count_total counter
sipreel_alarm_count_total{alarm="no_room"} 3
# TYPE sipreel_callbacks_endpoint_failed_total counter
sipreel_callbacks_endpoint_failed_total{endpoint="http://a/x",cause="tls"} 1
# TYPE sipreel_callbacks_endpoint_queued gauge
sipreel_callbacks_endpoint_queued{endpoint="http://a/x"} 7
# TYPE sipreel_info gauge
sipreel_info{version="0.1.0",dir="/srv/\"r\""} 1
# TYPE sipreel_reactor_media_dropped_total counter
sipreel_reactor_media_dropped_total{reactor="0",cause="no_block"} 5
# TYPE sipreel_recorder_sessions_max gauge
sipreel_recorder_sessions_max 10
# TYPE sipreel_sessions_active gauge
sipreel_sessions_active 2
# TYPE sipreel_sessions_refused_total counter
sipreel_sessions_refused_total{cause="draining"} 0
sipreel_sessions_refused_total{cause="no_port"} 3
# TYPE sipreel_sessions_total counter
sipreel_sessions_total 10
# TYPE sipreel_setup_seconds summary
sipreel_setup_seconds{quantile="0.5"} 0.0015
sipreel_setup_seconds{quantile="0.99"} 0.002
sipreel_setup_seconds{quantile="1"} 3
sipreel_setup_seconds_count 4
# TYPE sipreel_sip_responses_total counter
sipreel_sip_responses_total{code="200"} 20
# TYPE sipreel_sip_wire_tcp_open gauge
sipreel_sip_wire_tcp_open 1
# TYPE sipreel_uptime_seconds gauge
sipreel_uptime_seconds 1.5
"#;
        assert_eq!(page(&reply.to_string()).unwrap(), expected.replace("/\"r\"", "/\\\"r\\\""));
    }

    /// A metric has one type, a sample is there once, and all of them are ones that Prometheus can read.
    #[test]
    fn every_figure_of_the_stats_is_a_legal_sample_once() {
        let reply = serde_json::to_string(&Stats::default()).unwrap();
        let page = page(&reply).unwrap();
        let mut seen = BTreeSet::new();
        for line in page.lines() {
            let key = match line.strip_prefix("# TYPE ") {
                Some(metric) => metric,
                None => line.rsplit_once(' ').filter(|(_, value)| value.parse::<f64>().is_ok()).unwrap().0,
            };
            assert!(seen.insert(key), "{line} is there twice");
            let name = key.split(['{', ' ']).next().unwrap();
            assert!(
                name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte.is_ascii_digit()),
                "{line}"
            );
        }
        assert!(seen.len() > 60, "{page}");
    }

    /// Their keys are causes, codes and methods: a name made of one could hold anything.
    #[test]
    fn every_map_of_the_stats_has_its_label() {
        let maps = include_str!("stats.rs")
            .lines()
            .filter_map(|line| line.trim().strip_prefix("pub ")?.strip_suffix(": BTreeMap<String, u64>,"));
        let maps: Vec<&str> = maps.collect();
        assert!(maps.len() > 5, "{maps:?}");
        for map in maps {
            assert!(LABELS.iter().any(|(known, _)| *known == map), "{map} has no label");
        }
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        assert!(page("7").is_err() && page("").is_err());
    }
}
