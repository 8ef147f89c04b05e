//! Recording over a wire instead of loopback: frames with all their headers, addresses of two hosts, and both families.

use crate::lab::{self, Lab};
use crate::peers;
use crate::recorder::{Recorder, Setup, number};
use crate::recording::Recording;

/// Forty calls of two streams from the other end of the wire. Returns what `sipreel-load` says of them.
fn load(lab: &Lab, recorder: &Recorder) -> serde_json::Value {
    let mut command = lab.command("load", env!("CARGO_BIN_EXE_sipreel-load"));
    command.args(["--target", &recorder.udp.to_string(), "--calls", "40", "--duration", "2", "--json"]);
    let text = peers::output(command.arg("--verify-dir").arg(recorder.dir()));
    serde_json::from_str(&text).unwrap()
}

fn everything_is_found(family: usize) {
    if !peers::installed(&["tshark"]) {
        return;
    }
    let Some(lab) = Lab::up() else { return };
    let mut recorder = Setup::new().ip(lab::RECORDER[family]).lab(&lab).pairs(80).start();
    let report = load(&lab, &recorder);
    let sent = number(&report["media"], "packets_sent");
    assert_eq!(sent, 40 * 2 * 100, "{report:#}");
    let verify = &report["verify"];
    assert_eq!((number(verify, "found"), number(verify, "missing")), (sent, 0), "{report:#}");
    recorder.quiet();
    let recordings = recorder.committed(40);
    recordings.iter().for_each(Recording::check_whole);
    let streams = peers::rtp_streams(&recordings[0].file("call.pcap"));
    assert_eq!(streams.iter().map(|stream| (stream.packets, stream.lost)).collect::<Vec<_>>(), [(100, 0); 2]);
    recorder.stop();
}

#[test]
fn everything_sent_over_ipv4_is_found() {
    everything_is_found(0);
}

#[test]
fn everything_sent_over_ipv6_is_found() {
    everything_is_found(1);
}

/// A second lab has the same addresses and does not see the first.
#[test]
fn labs_do_not_see_each_other() {
    let (Some(one), Some(two)) = (Lab::up(), Lab::with_queues(2)) else { return };
    for lab in [&one, &two] {
        let addresses =
            peers::output(lab.command("recorder", "ip").args(["-brief", "address", "show", lab::INTERFACE]));
        assert!(lab::RECORDER.iter().all(|address| addresses.contains(address)), "{addresses}");
        let addresses =
            peers::output(lab.command("load", "ip").args(["-brief", "address", "show", lab::INTERFACE]));
        assert!(lab::LOAD.iter().all(|address| addresses.contains(address)), "{addresses}");
    }
    drop(one);
    peers::output(two.command("load", "ip").args(["link", "show", lab::INTERFACE]));
}

/// Packets of a call come to the queues that the interface chooses, of whichever core; the recording is one.
#[test]
fn everything_sent_to_two_queues_is_found() {
    if std::thread::available_parallelism().is_ok_and(|cores| cores.get() < 2) {
        eprintln!("skipped: two reactors need two cores");
        return;
    }
    let Some(lab) = Lab::with_queues(2) else { return };
    let setup = Setup::new().ip(lab::RECORDER[0]).lab(&lab).pairs(80).flag("--cores", "0,1");
    let mut recorder =
        setup.flag("--media-source-kind", "xdp").flag("--xdp-interface", lab::INTERFACE).start();
    let report = load(&lab, &recorder);
    let sent = number(&report["media"], "packets_sent");
    assert_eq!(sent, 40 * 2 * 100, "{report:#}");
    let verify = &report["verify"];
    assert_eq!((number(verify, "found"), number(verify, "missing")), (sent, 0), "{report:#}");
    let stats = recorder.quiet();
    // RTCP besides.
    assert!(number(&stats["media"], "recorded_packets") >= sent, "{stats:#}");
    assert_eq!(number(&stats["media"], "dropped_total"), 0, "{stats:#}");
    let received = |reactor: usize| number(&stats["reactors"][reactor]["media"], "received_packets");
    assert!(received(0) > 0 && received(1) > 0, "{stats:#}");
    let recordings = recorder.committed(40);
    recordings.iter().for_each(Recording::check_whole);
    recorder.stats_when("every block is back where it came from", |stats| stats["disk"]["blocks_used"] == 0);
    recorder.stop();
}
