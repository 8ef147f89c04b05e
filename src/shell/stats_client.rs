//! `sipreel stats` and `sipreel sessions`: ask the running recorder, print for people or as JSON.

use std::fmt::{self, Write as _};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use super::stats::{Quantiles, Session, Stats};
use crate::limits::STATS_TIMEOUT;

/// Why there is no answer. Each displays as one sentence.
#[derive(Debug)]
pub enum NoAnswer {
    /// Nobody listens at any of these.
    NoRecorder(Vec<(PathBuf, io::Error)>),
    Broken(io::Error),
    /// The recorder's own words, or what could not be understood.
    Reply(String),
}

/// The raw reply to `stats`: one line of JSON.
pub fn stats(paths: &[PathBuf]) -> Result<String, NoAnswer> {
    let mut recorder = connect(paths)?;
    let mut line = String::new();
    writeln!(recorder.get_mut(), "stats")
        .and_then(|()| recorder.read_line(&mut line))
        .map_err(NoAnswer::Broken)?;
    checked(&line)?;
    Ok(line)
}

/// The raw reply to `sessions`, without the empty line that ends it.
pub fn sessions(paths: &[PathBuf]) -> Result<String, NoAnswer> {
    let mut recorder = connect(paths)?;
    writeln!(recorder.get_mut(), "sessions").map_err(NoAnswer::Broken)?;
    let mut reply = String::new();
    loop {
        let begin = reply.len();
        recorder.read_line(&mut reply).map_err(NoAnswer::Broken)?;
        if reply[begin..] == *"\n" {
            reply.truncate(begin);
            return Ok(reply);
        }
        checked(&reply[begin..])?;
    }
}

/// Ends the session of this recording; its id as the recorder has it.
pub fn end(paths: &[PathBuf], id: &str, cause: Option<&str>) -> Result<String, NoAnswer> {
    #[derive(serde::Deserialize)]
    struct Ended {
        ended: String,
    }
    let mut recorder = connect(paths)?;
    // One line is one command.
    let words = |text: &str| text.replace(char::is_control, " ");
    let (id, cause) = (words(id), words(cause.unwrap_or_default()));
    let mut line = String::new();
    writeln!(recorder.get_mut(), "end {id} {cause}")
        .and_then(|()| recorder.read_line(&mut line))
        .map_err(NoAnswer::Broken)?;
    checked(&line)?;
    let ended: Ended = serde_json::from_str(&line).map_err(|error| NoAnswer::Reply(error.to_string()))?;
    Ok(ended.ended)
}

/// The first path that somebody listens at.
fn connect(paths: &[PathBuf]) -> Result<BufReader<UnixStream>, NoAnswer> {
    let mut tried = Vec::new();
    for path in paths {
        match UnixStream::connect(path) {
            Ok(stream) => {
                // Longer than a client before us may hold its place.
                stream.set_read_timeout(Some(STATS_TIMEOUT * 3)).map_err(NoAnswer::Broken)?;
                return Ok(BufReader::new(stream));
            }
            Err(error) => tried.push((path.clone(), error)),
        }
    }
    Err(NoAnswer::NoRecorder(tried))
}

/// A line that is whole and is not an error.
fn checked(line: &str) -> Result<(), NoAnswer> {
    #[derive(serde::Deserialize)]
    struct Refused {
        error: String,
    }
    if !line.ends_with('\n') {
        return Err(NoAnswer::Broken(io::ErrorKind::UnexpectedEof.into()));
    }
    match serde_json::from_str::<Refused>(line) {
        Ok(refused) => Err(NoAnswer::Reply(refused.error)),
        Err(_) => Ok(()),
    }
}

/// The reply to `stats` as values.
pub fn parsed(reply: &str) -> Result<Stats, NoAnswer> {
    serde_json::from_str(reply).map_err(|error| NoAnswer::Reply(error.to_string()))
}

/// `stats` for people.
pub fn stats_table(reply: &str) -> Result<String, NoAnswer> {
    let stats = parsed(reply)?;
    let mut page = String::new();
    // Writing to a String cannot fail.
    let _ = write_stats(&mut page, &stats);
    Ok(page)
}

fn write_stats(page: &mut String, stats: &Stats) -> fmt::Result {
    let recorder = &stats.recorder;
    writeln!(
        page,
        "sipreel {}, pid {}, up {}, on CPU {}, writing to {}",
        recorder.version,
        recorder.pid,
        duration(stats.uptime_seconds),
        recorder.cores,
        recorder.dir
    )?;
    write_control(page, stats)?;
    write_planes(page, stats)?;
    write_callbacks(page, stats)?;
    write_reactors(page, stats)
}

fn write_control(page: &mut String, stats: &Stats) -> fmt::Result {
    let (sessions, ports, sip) = (&stats.sessions, &stats.ports, &stats.sip);
    let max = stats.recorder.sessions_max;
    row(
        page,
        "sessions",
        &format!(
            "{} active of at most {max}, {} of them paused, {} since the start",
            sessions.active, sessions.paused, sessions.total
        ),
    )?;
    row(page, "ended", &causes(sessions.ended.values().sum(), &sessions.ended))?;
    row(page, "refused", &causes(sessions.refused_total, &sessions.refused))?;
    row(page, "set-up", &latency(&stats.setup_ns))?;
    row(
        page,
        "port pairs",
        &format!("{} free, {} in use, {} cooling", ports.free, ports.used, ports.cooling),
    )?;
    row(page, "requests", &causes(sip.requests.values().sum(), &sip.requests))?;
    row(page, "responses", &causes(sip.responses.values().sum(), &sip.responses))?;
    row(
        page,
        "SIP trouble",
        &format!(
            "{} malformed, {} bad requests, {} stray, {} retransmitted to us, {} by us, {} without ACK, {} in overload, \
             {} dropped by the kernel",
            sip.malformed,
            sip.bad_requests,
            sip.stray,
            sip.retransmissions_received,
            sip.retransmissions_sent,
            sip.ack_timeouts,
            sip.wire.overload,
            sip.wire.kernel_dropped
        ),
    )?;
    row(
        page,
        "TCP",
        &format!(
            "{} open, {} accepted, {} keepalives; closed {}; refused {}",
            sip.wire.tcp_open,
            sip.wire.tcp_accepted,
            sip.wire.keepalives,
            sum(&sip.wire.connections_closed),
            sum(&sip.wire.connections_refused)
        ),
    )?;
    row(
        page,
        "TLS",
        &format!(
            "handshakes {}, {} resumed; failed {}",
            sum(&sip.wire.tls_handshakes),
            sip.wire.tls_resumed,
            sum(&sip.wire.tls_failed)
        ),
    )
}

fn write_planes(page: &mut String, stats: &Stats) -> fmt::Result {
    let (media, disk, recordings) = (&stats.media, &stats.disk, &stats.recordings);
    row(page, "received", &format!("{} packets, {}", media.received_packets, bytes(media.received_bytes)))?;
    row(page, "recorded", &format!("{} packets, {}", media.recorded_packets, bytes(media.recorded_bytes)))?;
    row(page, "staged", &format!("{} packets", media.staged_packets))?;
    row(page, "dropped", &causes(media.dropped_total, &media.dropped))?;
    if media.unaccounted_packets != 0 {
        row(page, "unaccounted", &format!("{} (0 at a quiet moment)", media.unaccounted_packets))?;
    }
    row(page, "kernel drops", &media.kernel_dropped.to_string())?;
    row(page, "disk", &format!("{} writes, {}, {} errors", disk.writes, bytes(disk.bytes), disk.errors))?;
    row(page, "write time", &latency(&disk.write_latency_ns.unwrap_or_default()))?;
    row(page, "blocks", &format!("{} in use of {}", disk.blocks_used, disk.blocks_total))?;
    row(
        page,
        "recordings",
        &format!(
            "{} committed, {} of them incomplete, {} not committed",
            recordings.committed, recordings.incomplete, recordings.commits_failed
        ),
    )?;
    row(
        page,
        "metadata",
        &format!(
            "{} bodies, {} not understood, {} findings",
            recordings.metadata_bodies,
            recordings.metadata_not_understood,
            recordings.metadata_findings.values().sum::<u64>()
        ),
    )
}

fn write_callbacks(page: &mut String, stats: &Stats) -> fmt::Result {
    for endpoint in &stats.callbacks.endpoints {
        let failing = endpoint.failing.as_ref().map(|why| format!("; failing: {}", printable(why)));
        let text = format!(
            "{} delivered to {}, {} queued (oldest {}), {} retried, failed {}, {} refused, {} dropped{}",
            endpoint.delivered,
            endpoint.url,
            endpoint.queued,
            duration(endpoint.oldest_seconds),
            endpoint.retried,
            causes(endpoint.failed_total, &endpoint.failed),
            endpoint.refused,
            endpoint.dropped,
            failing.unwrap_or_default()
        );
        row(page, "callbacks", &text)?;
    }
    for alarm in &stats.alarms {
        row(page, "ALARM", &format!("{}, {} since {}", alarm.alarm, alarm.count, alarm.since))?;
    }
    Ok(())
}

fn write_reactors(page: &mut String, stats: &Stats) -> fmt::Result {
    let titles = [
        "reactor",
        "received",
        "recorded",
        "staged",
        "dropped",
        "kernel drops",
        "blocks",
        "writes",
        "errors",
    ];
    let rows = stats.reactors.iter().map(|reactor| {
        let (media, disk) = (&reactor.media, &reactor.disk);
        [
            reactor.reactor as u64,
            media.received_packets,
            media.recorded_packets,
            media.staged_packets,
            media.dropped_total,
            media.kernel_dropped,
            disk.blocks_used,
            disk.writes,
            disk.errors,
        ]
        .map(|n| n.to_string())
    });
    page.push('\n');
    write_table(page, &titles, &rows.collect::<Vec<_>>())
}

/// `sessions` for people, the oldest first.
pub fn sessions_table(reply: &str) -> Result<String, NoAnswer> {
    let mut sessions: Vec<Session> = reply
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .map_err(|error| NoAnswer::Reply(error.to_string()))?;
    if sessions.is_empty() {
        return Ok("no session is being recorded\n".into());
    }
    sessions.sort_by(|a, b| (&a.start, &a.id).cmp(&(&b.start, &b.id)));
    let rows: Vec<[String; 7]> = sessions
        .into_iter()
        .map(|s| {
            let seconds = duration(s.seconds);
            [
                s.id,
                s.state,
                seconds,
                s.streams.to_string(),
                s.reactor.to_string(),
                printable(&s.peer),
                printable(&s.call_id),
            ]
        })
        .collect();
    let mut page = String::new();
    let _ = write_table(
        &mut page,
        &["recording", "state", "for", "streams", "reactor", "peer", "Call-ID"],
        &rows,
    );
    Ok(page)
}

/// A Call-ID is the peer's text: what a terminal might act on is not printed.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Columns as wide as their widest cell; numbers to the right.
fn write_table<const N: usize>(page: &mut String, titles: &[&str; N], rows: &[[String; N]]) -> fmt::Result {
    let number = |cell: &String| cell.bytes().all(|b| b.is_ascii_digit());
    let columns: [(usize, bool); N] = std::array::from_fn(|i| {
        let cells = || rows.iter().map(|row| &row[i]);
        let width = cells().map(|cell| cell.chars().count()).max().unwrap_or(0);
        (width.max(titles[i].chars().count()), cells().all(number))
    });
    let titles: [String; N] = titles.map(String::from);
    for row in std::iter::once(&titles).chain(rows) {
        let mut line = String::new();
        for (cell, (width, right)) in row.iter().zip(columns) {
            if right { write!(line, "{cell:>width$}  ")? } else { write!(line, "{cell:<width$}  ")? }
        }
        writeln!(page, "{}", line.trim_end())?;
    }
    Ok(())
}

fn row(page: &mut String, name: &str, text: &str) -> fmt::Result {
    writeln!(page, "{name:<13} {text}")
}

/// `12 (no_port 10, draining 2)`: the sum, and what it is made of.
fn causes(total: u64, by_name: &std::collections::BTreeMap<String, u64>) -> String {
    let parts: Vec<String> =
        by_name.iter().filter(|(_, n)| **n > 0).map(|(name, n)| format!("{name} {n}")).collect();
    if parts.is_empty() { total.to_string() } else { format!("{total} ({})", parts.join(", ")) }
}

fn sum(by_name: &std::collections::BTreeMap<String, u64>) -> String {
    causes(by_name.values().sum(), by_name)
}

fn latency(quantiles: &Quantiles) -> String {
    let Quantiles { count, p50, p99, max } = *quantiles;
    if count == 0 {
        return "none yet".into();
    }
    format!(
        "half within {}, 99% within {}, longest {} (of {count})",
        nanoseconds(p50),
        nanoseconds(p99),
        nanoseconds(max)
    )
}

fn nanoseconds(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} µs", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.1} s", ns as f64 / 1e9),
    }
}

fn bytes(n: u64) -> String {
    let mut scaled = n as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if scaled < 1_024.0 {
            return if unit == "B" { format!("{n} B") } else { format!("{scaled:.1} {unit}") };
        }
        scaled /= 1_024.0;
    }
    format!("{scaled:.1} TiB")
}

fn duration(seconds: f64) -> String {
    let whole = seconds as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3_600 % 24, whole / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds:.1} s"),
        (0, 0, _) => format!("{minutes} min {} s", whole % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoAnswer::NoRecorder(tried) => {
                write!(f, "no recorder answers")?;
                for (i, (path, error)) in tried.iter().enumerate() {
                    write!(f, "{} at {} ({error})", if i > 0 { ", nor" } else { "" }, path.display())?;
                }
                write!(f, ": start one with `sipreel record`, or give its --stats-socket as --socket")
            }
            NoAnswer::Broken(error) => write!(f, "the recorder did not finish its answer: {error}"),
            NoAnswer::Reply(text) => write!(f, "the recorder's answer is of no use: {text}"),
        }
    }
}

impl std::error::Error for NoAnswer {}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::net::UnixListener;
    use std::path::Path;

    #[test]
    fn stats_for_people() {
        let reply = json!({
            "recorder": {"version": "0.1.0", "pid": 42, "cores": "0-1", "dir": "/srv/rec", "sessions_max": 5_000},
            "uptime_seconds": 11_530.2,
            "sessions": {"active": 2, "paused": 1, "total": 10, "ended": {"bye": 7, "drain": 1}, "refused_total": 4, "refused": {"no_port": 3, "draining": 1, "overload": 0}},
            "setup_ns": {"count": 10, "p50": 1_250_000, "p99": 3_000_000, "max": 4_000_000_000u64},
            "ports": {"free": 7, "used": 4, "cooling": 1},
            "sip": {"requests": {"INVITE": 14, "BYE": 8, "INFO": 0}, "responses": {"200": 20}},
            "media": {"received_packets": 201, "received_bytes": 34_572, "recorded_packets": 180, "recorded_bytes": 30_960,
                "staged_packets": 12, "dropped_total": 8, "dropped": {"no_block": 8}, "unaccounted_packets": 1},
            "disk": {"writes": 3, "bytes": 196_608, "blocks_used": 2, "blocks_total": 100},
            "reactors": [{"reactor": 0, "media": {"received_packets": 201, "recorded_packets": 180, "staged_packets": 12,
                "dropped_total": 8}, "disk": {"blocks_used": 2, "writes": 3}}],
        });
        let expected = "\
sipreel 0.1.0, pid 42, up 3 h 12 min, on CPU 0-1, writing to /srv/rec
sessions      2 active of at most 5000, 1 of them paused, 10 since the start
ended         8 (bye 7, drain 1)
refused       4 (draining 1, no_port 3)
set-up        half within 1.2 ms, 99% within 3.0 ms, longest 4.0 s (of 10)
port pairs    7 free, 4 in use, 1 cooling
requests      22 (BYE 8, INVITE 14)
responses     20 (200 20)
SIP trouble   0 malformed, 0 bad requests, 0 stray, 0 retransmitted to us, 0 by us, 0 without ACK, 0 in overload, 0 dropped by the kernel
TCP           0 open, 0 accepted, 0 keepalives; closed 0; refused 0
TLS           handshakes 0, 0 resumed; failed 0
received      201 packets, 33.8 KiB
recorded      180 packets, 30.2 KiB
staged        12 packets
dropped       8 (no_block 8)
unaccounted   1 (0 at a quiet moment)
kernel drops  0
disk          3 writes, 192.0 KiB, 0 errors
write time    none yet
blocks        2 in use of 100
recordings    0 committed, 0 of them incomplete, 0 not committed
metadata      0 bodies, 0 not understood, 0 findings

reactor  received  recorded  staged  dropped  kernel drops  blocks  writes  errors
      0       201       180      12        8             0       2       3       0
";
        assert_eq!(stats_table(&reply.to_string()).unwrap(), expected);
    }

    #[test]
    fn callbacks_and_alarms_for_people() {
        let reply = json!({
            "callbacks": {"endpoints": [{"url": "https://a/x", "delivered": 5, "queued": 2, "oldest_seconds": 61.0, "retried": 3,
                "failed_total": 3, "failed": {"timeout": 3}, "failing": "timeout: global"}]},
            "alarms": [{"alarm": "no_room", "since": "2026-11-22T08:31:00Z", "count": 7}],
        });
        let page = stats_table(&reply.to_string()).unwrap();
        for line in [
            "callbacks     5 delivered to https://a/x, 2 queued (oldest 1 min 1 s), 3 retried, failed 3 (timeout 3), 0 refused, \
             0 dropped; failing: timeout: global\n",
            "ALARM         no_room, 7 since 2026-11-22T08:31:00Z\n",
        ] {
            assert!(page.contains(line), "{page}");
        }
    }

    #[test]
    fn sessions_for_people_oldest_first() {
        let line = |id: &str, start: &str, call_id: &str| {
            json!({"id": id, "state": "active", "start": start, "seconds": 75.0, "streams": 2, "reactor": 0,
                "peer": "192.0.2.9:5060", "call_id": call_id})
        };
        let reply = format!(
            "{}\n{}\n",
            line("0199b", "2026-11-22T08:31:00Z", "new\u{1b}[2J"),
            line("0199a", "2026-11-22T08:30:00Z", "old")
        );
        let expected = "\
recording  state   for         streams  reactor  peer            Call-ID
0199a      active  1 min 15 s        2        0  192.0.2.9:5060  old
0199b      active  1 min 15 s        2        0  192.0.2.9:5060  new?[2J
";
        assert_eq!(sessions_table(&reply).unwrap(), expected);
        assert_eq!(sessions_table("").unwrap(), "no session is being recorded\n");
    }

    #[test]
    fn figures_in_units_of_their_size() {
        assert_eq!(
            [0, 999, 1_500, 2_500_000, 60_000_000_000].map(nanoseconds),
            ["0 ns", "999 ns", "1.5 µs", "2.5 ms", "60.0 s"]
        );
        assert_eq!(
            [0, 1_023, 1_024, 3 << 30, 5 << 40].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "3.0 GiB", "5.0 TiB"]
        );
        assert_eq!(
            [0.25, 75.0, 7_260.0, 90_000.0].map(duration),
            ["0.2 s", "1 min 15 s", "2 h 1 min", "1 d 1 h"]
        );
    }

    #[test]
    fn nobody_there_names_every_place_tried() {
        let paths = [PathBuf::from("/nowhere/a.sock"), PathBuf::from("/nowhere/b.sock")];
        let text = stats(&paths).unwrap_err().to_string();
        assert!(text.contains("/nowhere/a.sock") && text.contains("nor at /nowhere/b.sock"), "{text}");
        assert!(text.contains("sipreel record") && text.contains("--socket"), "{text}");
    }

    /// One client, one canned reply.
    fn replying(path: &Path, reply: &'static str) -> std::thread::JoinHandle<()> {
        let listener = UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut command = String::new();
            BufReader::new(client.try_clone().unwrap()).read_line(&mut command).unwrap();
            client.write_all(reply.as_bytes()).unwrap();
        })
    }

    fn asked(reply: &'static str) -> [Result<String, NoAnswer>; 2] {
        let dir = tempfile::tempdir().unwrap();
        [stats, sessions].map(|ask| {
            let path = dir.path().join("s.sock");
            let recorder = replying(&path, reply);
            let answer = ask(&["/nowhere/a.sock".into(), path.clone()]);
            recorder.join().unwrap();
            std::fs::remove_file(path).unwrap();
            answer
        })
    }

    #[test]
    fn replies_are_taken_up_to_their_end() {
        let [stats, sessions] = asked("{\"a\":1}\n\n");
        assert_eq!((stats.unwrap(), sessions.unwrap()), ("{\"a\":1}\n".into(), "{\"a\":1}\n".into()));
    }

    #[test]
    fn replies_that_break_off_or_are_errors_are_told_apart() {
        assert!(asked("{\"a\":").iter().all(|answer| matches!(answer, Err(NoAnswer::Broken(_)))));
        assert!(asked("").iter().all(|answer| matches!(answer, Err(NoAnswer::Broken(_)))));
        let refused =
            |answer: &Result<_, _>| matches!(answer, Err(NoAnswer::Reply(text)) if text == "unknown");
        assert!(asked("{\"error\":\"unknown\"}\n").iter().all(refused));
        assert!(matches!(stats_table("7"), Err(NoAnswer::Reply(_))));
    }
}
