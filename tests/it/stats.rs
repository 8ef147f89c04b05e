//! The stats socket and its clients, beside a call whose figures are known.

use serde_json::Value;

use crate::media::Leg;
use crate::recorder::{Recorder, Setup, number};
use crate::src::Call;

fn stdout(recorder: &Recorder, arguments: &[&str]) -> String {
    let output = recorder.client(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_balance_of_a_call() {
    let mut recorder = Setup::new().flag("--port-cooldown", "60s").start();
    let mut call = Call::udp(recorder.udp);
    let ports = call.establish();
    let mut legs = [Leg::new(recorder.udp.ip(), ports[0], 1), Leg::new(recorder.udp.ip(), ports[1], 2)];
    for leg in &mut legs {
        leg.burst(20);
        leg.send_rtcp();
    }
    let stats = recorder.stats_when("all is received", |stats| stats["media"]["received_packets"] == 42);
    assert_eq!((&stats["sessions"]["active"], &stats["ports"]["used"]), (&1.into(), &2.into()));
    assert_eq!(stats["recorder"]["pid"], recorder.pid());
    let bytes: usize = legs.iter().flat_map(|leg| &leg.sent).map(Vec::len).sum::<usize>() + 2 * 28;
    assert_eq!(stats["media"]["received_bytes"], bytes);

    let sessions = stdout(&recorder, &["sessions", "--json"]);
    let session: Value = serde_json::from_str(sessions.trim()).unwrap();
    assert_eq!((&session["state"], &session["streams"]), (&"active".into(), &2.into()));
    assert_eq!(session["peer"], call.wire.local().to_string());
    assert!(call.call_id.starts_with(session["call_id"].as_str().unwrap()));
    let table = stdout(&recorder, &["sessions"]);
    assert!(table.contains(session["id"].as_str().unwrap()) && table.contains("active"), "{table}");

    call.hang_up();
    let recording = recorder.recording();
    assert_eq!(session["id"], recording.manifest["id"]);
    legs[0].burst(3);
    recorder.stats_when("late packets are counted", |stats| stats["media"]["dropped"]["after_end"] == 3);
    let stats = recorder.quiet();
    assert_eq!(
        (&stats["media"]["recorded_packets"], &stats["media"]["recorded_bytes"]),
        (&42.into(), &bytes.into())
    );
    let ports = &stats["ports"];
    assert_eq!((&ports["used"], &ports["cooling"]), (&0.into(), &2.into()));
    assert_eq!(number(ports, "free") + 2, recorder.port_pairs);
    for (method, n) in [("INVITE", 1), ("ACK", 1), ("BYE", 1)] {
        assert_eq!(stats["sip"]["requests"][method], n);
    }
    assert_eq!(
        (&stats["sip"]["responses"]["100"], &stats["sip"]["responses"]["200"]),
        (&1.into(), &2.into())
    );
    assert_eq!((&stats["setup_ns"]["count"], &stats["sessions"]["total"]), (&1.into(), &1.into()));
    assert!(number(&stats["setup_ns"], "max") > 0);
    let size = recording.file("call.pcap").metadata().unwrap().len();
    // A header past the page cache is a multiple of 4 KiB, with the INVITE in it.
    let header = size - number(&stats["disk"], "bytes");
    let past_the_cache = header > 0 && header.is_multiple_of(4_096);
    assert!(header == 24 || past_the_cache, "all but the header went through the ring: {header}");
    assert!(number(&stats["disk"], "writes") >= 1 && number(&stats["disk"], "errors") == 0);
    assert_eq!(stats["recordings"]["committed"], 1);
    // These are published a few times a second.
    let stats = recorder.stats_when("gauges have caught up", |stats| {
        let disk = &stats["disk"];
        disk["write_latency_ns"]["count"] == disk["writes"] && disk["blocks_used"] == 0
    });
    assert_eq!((&stats["media"]["kernel_dropped"], &stats["media"]["truncated"]), (&0.into(), &0.into()));

    let raw = stdout(&recorder, &["stats", "--json"]);
    let raw: Value = serde_json::from_str(&raw).unwrap();
    assert_eq!(raw["media"], stats["media"]);
    let page = stdout(&recorder, &["stats"]);
    for words in ["1 since the start", "45 packets", "42 packets", "after_end", "2 cooling", "1 committed"] {
        assert!(page.contains(words), "{words} is not in\n{page}");
    }
    assert_eq!(stdout(&recorder, &["sessions", "--json"]), "");
    recorder.stop();
}

#[test]
fn clients_of_no_recorder() {
    let mut recorder = Recorder::start();
    assert!(recorder.ask("help").contains("sessions"));
    assert!(recorder.ask("nonsense").contains("error"));
    recorder.stop();
    assert!(!recorder.stats_socket.exists());
    for command in ["stats", "sessions"] {
        let output = recorder.client(&[command]);
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("stats.sock") && stderr.lines().count() == 1, "{stderr}");
    }
}
