//! What the stats socket says: the counters of all threads as one JSON object, the session table as JSON lines.
//!
//! Every counter is read by itself while its owner goes on, so sums agree exactly only at a quiet moment.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::callbacks;
use super::stats_socket::{Answer, Query};
use crate::clock::{Now, Wall};
use crate::counters::{
    ConnectionEnd, ConnectionRefusal, Counter, DropCause, EndCause, HandshakeFailure, ReactorCounters,
    RecoveryCounters, RefuseCause, SessionCounters, TlsVersion,
};
use crate::engine::{Gauges, cpu};
use crate::proto::manifest::Resource;
use crate::proto::metadata::Code;
use crate::proto::sip::Method;
use crate::session::{Order, table};

/// What does not change while a recorder runs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    pub version: String,
    pub resource: Resource,
    pub pid: u32,
    /// RFC 3339 UTC.
    pub started: String,
    pub dir: String,
    /// As `--cores` takes them.
    pub cores: String,
    /// As `--media-ports` takes them.
    pub media_ports: String,
    pub sip_udp: Vec<String>,
    pub sip_tcp: Vec<String>,
    pub sip_tls: Vec<String>,
    pub port_pairs: u64,
    pub sessions_max: u64,
}

/// The reply to `stats`. Names are stable; new ones may be added.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    pub recorder: Identity,
    pub uptime_seconds: f64,
    pub sessions: Sessions,
    /// INVITE received to 200 sent, nanoseconds.
    pub setup_ns: Quantiles,
    pub sip: Sip,
    pub ports: Ports,
    pub recordings: Recordings,
    /// Sums over the reactors.
    pub media: Media,
    pub disk: Disk,
    /// Completions that one turn of a reactor handled.
    pub batch: Quantiles,
    pub reactors: Vec<Reactor>,
    pub callbacks: callbacks::Figures,
    /// Those that are raised.
    pub alarms: Vec<callbacks::Raised>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Sessions {
    pub active: u64,
    /// Of these, those whose every stream is held.
    pub paused: u64,
    /// Answered 200 since the start.
    pub total: u64,
    /// By cause.
    pub ended: BTreeMap<String, u64>,
    /// Transitions that a session's state does not allow; anything but 0 is a defect of the recorder.
    pub transitions_refused: u64,
    /// Those whose files were asked for in `--fallback-dir`.
    pub opened_elsewhere: u64,
    pub refused_total: u64,
    pub refused: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Sip {
    /// Requests received by method, retransmissions included.
    pub requests: BTreeMap<String, u64>,
    /// Responses sent by status code; codes never sent are absent.
    pub responses: BTreeMap<String, u64>,
    pub malformed: u64,
    pub bad_requests: u64,
    pub rate_limited: u64,
    pub challenged: u64,
    pub auth_failed: u64,
    pub stray: u64,
    pub retransmissions_received: u64,
    pub retransmissions_sent: u64,
    pub ack_timeouts: u64,
    /// Sessions that we ended and whose SRC has no connection by which to be told.
    pub byes_unsent: u64,
    pub answers_missing: u64,
    pub sessions_expired: u64,
    pub refreshes_sent: u64,
    pub refreshes_failed: u64,
    pub transactions: u64,
    pub transactions_full: u64,
    /// Sums over the reactors.
    pub wire: SipWire,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct SipWire {
    pub datagrams: u64,
    /// Datagrams that found no room in the socket.
    pub kernel_dropped: u64,
    pub sent: u64,
    pub send_errors: u64,
    /// Messages dropped because control was behind; the peer retransmits.
    pub overload: u64,
    /// Of these: from a source that had its share already.
    pub unfair: u64,
    /// Datagrams and connections from addresses that are not admitted.
    pub denied: u64,
    pub tcp_open: u64,
    pub tcp_accepted: u64,
    /// Connections, TCP and TLS: accepted = open + closed.
    pub connections_refused: BTreeMap<String, u64>,
    pub connections_closed: BTreeMap<String, u64>,
    /// Handshakes by version, those of them that resumed, and those that failed by cause.
    pub tls_handshakes: BTreeMap<String, u64>,
    pub tls_resumed: u64,
    pub tls_failed: BTreeMap<String, u64>,
    /// Double CRLFs that were answered.
    pub keepalives: u64,
}

/// Port pairs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Ports {
    pub free: u64,
    pub used: u64,
    pub cooling: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Recordings {
    /// Whole, under their final name.
    pub committed: u64,
    pub commits_failed: u64,
    /// Committed with something missing; their manifests say what.
    pub incomplete: u64,
    /// Left by a recorder that died: still to be looked at, finished, and left as they are.
    pub recovering: u64,
    pub recovered: u64,
    pub recoveries_failed: u64,
    pub metadata_bodies: u64,
    pub metadata_not_understood: u64,
    /// Findings about metadata by code; codes never found are absent.
    pub metadata_findings: BTreeMap<String, u64>,
    /// UPDATEs that asked an SRC for everything.
    pub snapshots_requested: u64,
}

/// `received = recorded + staged + dropped_total`, and staged is 0 at a quiet moment.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Media {
    pub received_packets: u64,
    pub received_bytes: u64,
    pub recorded_packets: u64,
    pub recorded_bytes: u64,
    /// In blocks that are not yet written.
    pub staged_packets: u64,
    pub dropped_total: u64,
    pub dropped: BTreeMap<String, u64>,
    /// received − recorded − staged − dropped: anything but 0 at a quiet moment is a defect of the recorder.
    pub unaccounted_packets: i64,
    /// Dropped by the kernel before they could be received; not part of `received`.
    pub kernel_dropped: u64,
    pub truncated: u64,
    pub buffers_exhausted: u64,
    /// Receiver reports; in none of the figures above.
    pub rtcp_sent: u64,
    pub rtcp_send_errors: u64,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Disk {
    pub writes: u64,
    pub bytes: u64,
    pub errors: u64,
    pub blocks_used: u64,
    pub blocks_total: u64,
    /// Absent in the part of one reactor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_latency_ns: Option<Quantiles>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Reactor {
    pub reactor: usize,
    pub turns: u64,
    pub stale_completions: u64,
    pub media: Media,
    pub disk: Disk,
    pub sip: SipWire,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Quantiles {
    pub count: u64,
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

/// One line of the reply to `sessions`.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Session {
    /// The recording id: the name of its directory.
    pub id: String,
    /// The first bytes of the Call-ID.
    pub call_id: String,
    pub peer: String,
    /// `connecting`, `recovering`, `active`, `paused`, `ending`, `failed`.
    pub state: String,
    /// RFC 3339 UTC.
    pub start: String,
    /// The last transition, or the last change of streams or metadata.
    pub updated: String,
    pub last_signalling: String,
    /// None so far: null.
    pub last_media: Option<String>,
    pub seconds: f64,
    pub streams: u8,
    pub reactor: u8,
}

const HELP: &str = "\
stats     every counter, one line of JSON
sessions  the sessions being recorded, one line of JSON each, then an empty line
end ID    end the session of this recording; what follows the ID goes into its manifest; {\"ended\":\"ID\"}
help      this text, then an empty line
A command that is none of these is answered with one line: {\"error\":\"…\"}
";

/// The answers of a recorder that was ready at `ready`.
pub fn answer(
    gauges: Gauges,
    identity: Identity,
    callbacks: Arc<callbacks::State>,
    ready: Now,
) -> Arc<Answer> {
    Arc::new(move |query, reply: &mut dyn Write| match query {
        Query::Stats => {
            let now = cpu::now();
            let stats = Stats {
                callbacks: callbacks.figures(now.wall),
                alarms: callbacks.raised(),
                ..Stats::take(&gauges, &identity, now.mono.since(ready.mono))
            };
            serde_json::to_writer(&mut *reply, &stats)?;
            writeln!(reply)
        }
        Query::Sessions => sessions(&gauges.table, cpu::now().wall, reply),
        Query::Help => writeln!(reply, "{HELP}"),
        Query::End { id, note } => {
            let said = match gauges.orders.give(Order::End { id, note }) {
                Ok(ended) => serde_json::json!({ "ended": ended }),
                Err(error) => serde_json::json!({ "error": error }),
            };
            writeln!(reply, "{said}")
        }
    })
}

fn sessions(table: &table::Table, now: Wall, reply: &mut dyn Write) -> io::Result<()> {
    for snapshot in table.iter() {
        serde_json::to_writer(&mut *reply, &Session::new(&snapshot, now))?;
        writeln!(reply)?;
    }
    writeln!(reply)
}

impl Stats {
    fn take(gauges: &Gauges, identity: &Identity, uptime: Duration) -> Stats {
        let reactors: Vec<Reactor> =
            gauges.reactors.iter().enumerate().map(|(i, counters)| Reactor::new(i, counters)).collect();
        let histograms = [gauges.setup(), gauges.write_latency(), gauges.batch()];
        Stats::new(
            identity.clone(),
            uptime,
            &gauges.session,
            reactors,
            histograms.map(|h| Quantiles::new(&h)),
        )
        .recovery(&gauges.recovery)
    }

    fn recovery(mut self, recovery: &RecoveryCounters) -> Stats {
        let recordings = &mut self.recordings;
        recordings.recovering = recovery.recovering.get();
        recordings.recovered = recovery.recovered.get();
        recordings.recoveries_failed = recovery.failed.get();
        self
    }

    fn new(
        recorder: Identity,
        uptime: Duration,
        session: &SessionCounters,
        reactors: Vec<Reactor>,
        [setup_ns, write_latency_ns, batch]: [Quantiles; 3],
    ) -> Stats {
        let mut disk = Disk { write_latency_ns: Some(write_latency_ns), ..Disk::default() };
        let (mut media, mut wire) = (Media::default(), SipWire::default());
        for reactor in &reactors {
            media.add(&reactor.media);
            disk.add(&reactor.disk);
            wire.add(&reactor.sip);
        }
        Stats {
            recorder,
            uptime_seconds: uptime.as_secs_f64(),
            sessions: Sessions::new(session),
            setup_ns,
            sip: Sip::new(session, wire),
            ports: Ports {
                free: session.ports_free.get(),
                used: session.ports_used.get(),
                cooling: session.ports_cooling.get(),
            },
            recordings: Recordings::new(session),
            media,
            disk,
            batch,
            reactors,
            callbacks: callbacks::Figures::default(),
            alarms: Vec::new(),
        }
    }
}

impl Sessions {
    fn new(session: &SessionCounters) -> Sessions {
        let refused = by_name(RefuseCause::ALL.iter().map(|cause| cause.text()), &session.refused);
        Sessions {
            active: session.active.get(),
            paused: session.paused.get(),
            total: session.total.get(),
            ended: by_name(EndCause::ALL.iter().map(|cause| cause.text()), &session.ended),
            transitions_refused: session.transitions_refused.get(),
            opened_elsewhere: session.opened_elsewhere.get(),
            refused_total: refused.values().sum(),
            refused,
        }
    }
}

impl Sip {
    fn new(session: &SessionCounters, wire: SipWire) -> Sip {
        let codes = session.responses.iter().enumerate().map(|(code, counter)| (code, counter.get()));
        Sip {
            requests: by_name(Method::ALL.iter().map(|method| method.text()), &session.requests),
            responses: codes.filter(|(_, n)| *n > 0).map(|(code, n)| (code.to_string(), n)).collect(),
            malformed: session.malformed.get(),
            bad_requests: session.bad_requests.get(),
            rate_limited: session.rate_limited.get(),
            challenged: session.challenged.get(),
            auth_failed: session.auth_failed.get(),
            stray: session.stray.get(),
            retransmissions_received: session.retransmissions_received.get(),
            retransmissions_sent: session.retransmissions_sent.get(),
            ack_timeouts: session.ack_timeouts.get(),
            byes_unsent: session.byes_unsent.get(),
            answers_missing: session.answers_missing.get(),
            sessions_expired: session.sessions_expired.get(),
            refreshes_sent: session.refreshes_sent.get(),
            refreshes_failed: session.refreshes_failed.get(),
            transactions: session.transactions.get(),
            transactions_full: session.transactions_full.get(),
            wire,
        }
    }
}

impl Recordings {
    fn new(session: &SessionCounters) -> Recordings {
        let findings = Code::ALL.iter().zip(&session.findings);
        Recordings {
            committed: session.committed.get(),
            commits_failed: session.commits_failed.get(),
            incomplete: session.incomplete.get(),
            recovering: 0,
            recovered: 0,
            recoveries_failed: 0,
            metadata_bodies: session.metadata_bodies.get(),
            metadata_not_understood: session.metadata_not_understood.get(),
            snapshots_requested: session.snapshots_requested.get(),
            metadata_findings: findings
                .map(|(code, counter)| (code.text().to_owned(), counter.get()))
                .filter(|(_, found)| *found > 0)
                .collect(),
        }
    }
}

impl Reactor {
    fn new(reactor: usize, counters: &ReactorCounters) -> Reactor {
        Reactor {
            reactor,
            turns: counters.turns.get(),
            stale_completions: counters.stale_completions.get(),
            media: Media::new(counters),
            disk: Disk::new(counters),
            sip: SipWire::new(counters),
        }
    }
}

impl Media {
    fn new(counters: &ReactorCounters) -> Media {
        let dropped = by_name(DropCause::ALL.iter().map(|cause| cause.text()), &counters.dropped);
        let mut media = Media {
            received_packets: counters.packets.get(),
            received_bytes: counters.bytes.get(),
            recorded_packets: counters.recorded_packets.get(),
            recorded_bytes: counters.recorded_bytes.get(),
            staged_packets: counters.staged_packets.get(),
            dropped_total: dropped.values().sum(),
            dropped,
            unaccounted_packets: 0,
            kernel_dropped: counters.kernel_dropped.get(),
            truncated: counters.truncated.get(),
            buffers_exhausted: counters.buffers_exhausted.get(),
            rtcp_sent: counters.rtcp_sent.get(),
            rtcp_send_errors: counters.rtcp_send_errors.get(),
        };
        let accounted = media.recorded_packets + media.staged_packets + media.dropped_total;
        media.unaccounted_packets = media.received_packets.wrapping_sub(accounted) as i64;
        media
    }

    fn add(&mut self, other: &Media) {
        self.received_packets += other.received_packets;
        self.received_bytes += other.received_bytes;
        self.recorded_packets += other.recorded_packets;
        self.recorded_bytes += other.recorded_bytes;
        self.staged_packets += other.staged_packets;
        self.dropped_total += other.dropped_total;
        add_names(&mut self.dropped, &other.dropped);
        self.unaccounted_packets += other.unaccounted_packets;
        self.kernel_dropped += other.kernel_dropped;
        self.truncated += other.truncated;
        self.buffers_exhausted += other.buffers_exhausted;
        self.rtcp_sent += other.rtcp_sent;
        self.rtcp_send_errors += other.rtcp_send_errors;
    }
}

impl Disk {
    fn new(counters: &ReactorCounters) -> Disk {
        Disk {
            writes: counters.disk_writes.get(),
            bytes: counters.disk_bytes.get(),
            errors: counters.disk_errors.get(),
            blocks_used: counters.blocks_used.get(),
            blocks_total: counters.blocks_total.get(),
            write_latency_ns: None,
        }
    }

    fn add(&mut self, other: &Disk) {
        self.writes += other.writes;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.blocks_used += other.blocks_used;
        self.blocks_total += other.blocks_total;
    }
}

impl SipWire {
    fn new(counters: &ReactorCounters) -> SipWire {
        SipWire {
            datagrams: counters.sip_datagrams.get(),
            kernel_dropped: counters.sip_kernel_dropped.get(),
            sent: counters.sip_sent.get(),
            send_errors: counters.sip_send_errors.get(),
            overload: counters.sip_overload.get(),
            unfair: counters.sip_unfair.get(),
            denied: counters.sip_denied.get(),
            tcp_open: counters.tcp_open.get(),
            tcp_accepted: counters.tcp_accepted.get(),
            connections_refused: by_name(
                ConnectionRefusal::ALL.iter().map(|cause| cause.text()),
                &counters.connections_refused,
            ),
            connections_closed: by_name(
                ConnectionEnd::ALL.iter().map(|end| end.text()),
                &counters.connections_closed,
            ),
            tls_handshakes: by_name(
                TlsVersion::ALL.iter().map(|version| version.text()),
                &counters.tls_handshakes,
            ),
            tls_resumed: counters.tls_resumed.get(),
            tls_failed: by_name(HandshakeFailure::ALL.iter().map(|cause| cause.text()), &counters.tls_failed),
            keepalives: counters.keepalives.get(),
        }
    }

    fn add(&mut self, other: &SipWire) {
        self.datagrams += other.datagrams;
        self.kernel_dropped += other.kernel_dropped;
        self.sent += other.sent;
        self.send_errors += other.send_errors;
        self.overload += other.overload;
        self.unfair += other.unfair;
        self.denied += other.denied;
        self.tcp_open += other.tcp_open;
        self.tcp_accepted += other.tcp_accepted;
        add_names(&mut self.connections_refused, &other.connections_refused);
        add_names(&mut self.connections_closed, &other.connections_closed);
        add_names(&mut self.tls_handshakes, &other.tls_handshakes);
        self.tls_resumed += other.tls_resumed;
        add_names(&mut self.tls_failed, &other.tls_failed);
        self.keepalives += other.keepalives;
    }
}

impl Quantiles {
    fn new(histogram: &Histogram<u64>) -> Quantiles {
        Quantiles {
            count: histogram.len(),
            p50: histogram.value_at_quantile(0.50),
            p99: histogram.value_at_quantile(0.99),
            max: histogram.max(),
        }
    }
}

impl Session {
    fn new(snapshot: &table::Snapshot, now: Wall) -> Session {
        Session {
            id: snapshot.id.to_string(),
            call_id: snapshot.call_id.clone(),
            peer: snapshot.peer.to_string(),
            state: snapshot.state.text().to_owned(),
            start: snapshot.start.to_string(),
            updated: snapshot.updated.to_string(),
            last_signalling: snapshot.last_signalling.to_string(),
            last_media: snapshot.last_media.map(|at| at.to_string()),
            seconds: Duration::from_nanos(now.0.saturating_sub(snapshot.start.0)).as_secs_f64(),
            streams: snapshot.streams,
            reactor: snapshot.key.reactor,
        }
    }
}

/// All of them, zeroes too: a monitor can rely on every name.
fn add_names(sum: &mut BTreeMap<String, u64>, other: &BTreeMap<String, u64>) {
    for (name, n) in other {
        *sum.entry(name.clone()).or_default() += n;
    }
}

fn by_name<'a>(names: impl Iterator<Item = &'a str>, counters: &[Counter]) -> BTreeMap<String, u64> {
    names.zip(counters).map(|(name, counter)| (name.to_string(), counter.get())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::RecordingKey;
    use crate::session::state::State;
    use serde_json::{Value, json};

    /// Two reactors, the second with a packet that nobody accounts for.
    fn stats() -> Stats {
        let session = SessionCounters::default();
        session.active.set(2);
        session.total.set(10);
        session.refused[RefuseCause::NoPort as usize].set(3);
        session.refused[RefuseCause::Draining as usize].set(1);
        session.requests[Method::Invite as usize].set(14);
        session.responses[200].set(20);
        session.ports_free.set(7);
        let reactors: Vec<ReactorCounters> = (0..2).map(|_| ReactorCounters::default()).collect();
        for counters in &reactors {
            counters.packets.set(100);
            counters.recorded_packets.set(90);
            counters.staged_packets.set(6);
            counters.dropped[DropCause::NoBlock as usize].set(3);
            counters.dropped[DropCause::AfterEnd as usize].set(1);
            counters.kernel_dropped.set(5);
            counters.disk_bytes.set(64);
        }
        reactors[1].packets.set(101);
        let reactors = reactors.iter().enumerate().map(|(i, counters)| Reactor::new(i, counters)).collect();
        let mut latency = Histogram::<u64>::new(3).unwrap();
        (1..=100).for_each(|ns| latency.record(ns).unwrap());
        let quantiles = [Quantiles::default(), Quantiles::new(&latency), Quantiles::default()];
        let identity = Identity { version: "0.1.0".into(), pid: 4_711, ..Identity::default() };
        Stats::new(identity, Duration::from_millis(1_500), &session, reactors, quantiles)
    }

    #[test]
    fn the_shape_that_monitors_rely_on() {
        let json = serde_json::to_value(stats()).unwrap();
        assert_eq!(json["uptime_seconds"], 1.5);
        assert_eq!(json["recorder"]["pid"], 4_711);
        assert_eq!(json["sessions"]["active"], 2);
        assert_eq!(json["sessions"]["refused_total"], 4);
        assert_eq!(json["sessions"]["refused"]["no_port"], 3);
        assert_eq!(json["sessions"]["refused"]["open_failed"], 0, "names that never happened are there");
        assert_eq!(json["sip"]["requests"]["INVITE"], 14);
        assert_eq!(json["sip"]["responses"], json!({"200": 20}));
        assert_eq!(json["ports"], json!({"free": 7, "used": 0, "cooling": 0}));
        assert_eq!(json["disk"]["bytes"], 128);
        assert_eq!(json["disk"]["write_latency_ns"], json!({"count": 100, "p50": 50, "p99": 99, "max": 100}));
        assert_eq!(json["reactors"][1]["disk"].get("write_latency_ns"), None);
        assert_eq!(json["setup_ns"], json!({"count": 0, "p50": 0, "p99": 0, "max": 0}));
    }

    #[test]
    fn every_packet_is_accounted_for_per_reactor_and_in_total() {
        let stats = stats();
        assert_eq!(stats.reactors[0].media.unaccounted_packets, 0);
        assert_eq!(stats.reactors[1].media.unaccounted_packets, 1);
        let media = &stats.media;
        assert_eq!((media.received_packets, media.unaccounted_packets), (201, 1));
        assert_eq!((media.recorded_packets, media.staged_packets, media.dropped_total), (180, 12, 8));
        assert_eq!((media.dropped["no_block"], media.dropped["after_end"]), (6, 2));
        assert_eq!(media.kernel_dropped, 10, "beside the balance, never in it");
    }

    #[test]
    fn every_drop_and_refuse_cause_has_its_own_name() {
        let json = serde_json::to_value(stats()).unwrap();
        assert_eq!(json["media"]["dropped"].as_object().unwrap().len(), DropCause::COUNT);
        assert_eq!(json["sessions"]["refused"].as_object().unwrap().len(), RefuseCause::COUNT);
        assert_eq!(json["sip"]["requests"].as_object().unwrap().len(), Method::ALL.len());
        assert!(Method::ALL.len() <= SessionCounters::default().requests.len());
    }

    #[test]
    fn a_reply_of_another_version_is_still_read() {
        let stats: Stats =
            serde_json::from_value(json!({"sessions": {"active": 3}, "new": {"in": "0.9"}})).unwrap();
        assert_eq!(stats.sessions.active, 3);
    }

    #[test]
    fn sessions_are_lines_that_end_with_an_empty_one() {
        let table = table::Table::new(4);
        let key = RecordingKey { reactor: 1, slot: 2, generation: 7 };
        table.publish(&table::Snapshot {
            key,
            id: crate::session::id::Id(0x0199_2c3d_4e5f_7abc_8def_0123_4567_89ab),
            call_id: "a\"b@sbc.example".into(),
            peer: "192.0.2.9:5060".parse().unwrap(),
            state: State::Active,
            start: Wall(1_000_000_000),
            updated: Wall(1_000_000_000),
            last_signalling: Wall(2_000_000_000),
            last_media: None,
            streams: 2,
        });
        let mut reply = Vec::new();
        sessions(&table, Wall(3_500_000_000), &mut reply).unwrap();
        let reply = String::from_utf8(reply).unwrap();
        let (line, rest) = reply.split_once('\n').unwrap();
        assert_eq!(rest, "\n");
        let expected = json!({
            "id": "01992c3d-4e5f-7abc-8def-0123456789ab", "call_id": "a\"b@sbc.example", "peer": "192.0.2.9:5060",
            "state": "active", "start": "1970-01-01T00:00:01.000000Z", "updated": "1970-01-01T00:00:01.000000Z",
            "last_signalling": "1970-01-01T00:00:02.000000Z", "last_media": null, "seconds": 2.5, "streams": 2, "reactor": 1,
        });
        assert_eq!(serde_json::from_str::<Value>(line).unwrap(), expected);
    }

    #[test]
    fn no_session_is_an_empty_line() {
        let mut reply = Vec::new();
        sessions(&table::Table::new(4), Wall(0), &mut reply).unwrap();
        assert_eq!(reply, b"\n");
    }

    #[test]
    fn help_names_every_command_and_ends_with_an_empty_line() {
        assert!(["stats ", "sessions ", "end ", "help "].iter().all(|command| HELP.contains(command)));
        assert!(HELP.lines().all(|line| !line.is_empty()));
    }
}
