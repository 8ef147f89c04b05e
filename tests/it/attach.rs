//! What the media sources attach to: how they begin, with which privileges, what befalls the interface meanwhile, and that
//! nothing stays behind.

use std::fs;
use std::net::UdpSocket;
use std::process::Command;

use serde_json::Value;

use crate::lab::{self, Lab};
use crate::media::{Leg, talk};
use crate::peers::installed;
use crate::recorder::{PATIENCE, Recorder, Setup, number};
use crate::sources::{call, received};
use crate::src::PCMU;

const XDP_OR_STEERED: [&str; 2] = ["xdp", "steered"];

fn setup(lab: &Lab, source: &str) -> Setup {
    Setup::new().ip(lab::RECORDER[0]).lab(lab).source(source)
}

/// A call of one stream from the load's end, all of which is recorded.
fn records_a_call(lab: &Lab, recorder: &Recorder) {
    let (before, known) =
        (number(&recorder.stats()["media"], "received_packets"), recorder.recordings().len());
    let leg = lab.inside("load", || {
        let (mut call, mut legs) = call(recorder, vec![PCMU], lab::LOAD[0], 0x7100_0000);
        legs[0].burst(10);
        received(recorder, before + 10);
        call.hang_up();
        legs.remove(0)
    });
    let recording = recorder.committed(known + 1).remove(known);
    recording.check_whole();
    assert!(recording.pcap().payloads_to(leg.to().port()) == leg.sent);
}

fn account(recorder: &mut Recorder) -> String {
    recorder.logged("ready");
    let lines = recorder.log();
    let accounts: Vec<&Value> = lines.iter().filter(|line| line["event"] == "media_source").collect();
    assert_eq!(accounts.len(), 1, "{lines:?}");
    accounts[0]["message"].as_str().unwrap().to_owned()
}

fn warnings(recorder: &Recorder) -> Vec<String> {
    let lines = recorder.log();
    let warnings = lines.iter().filter(|line| line["level"] == "WARN");
    warnings.map(|line| line["message"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn an_unknown_interface_is_refused() {
    let Some(lab) = Lab::up() else { return };
    let setup = Setup::new().ip(lab::RECORDER[0]).lab(&lab).flag("--media-source-kind", "xdp");
    let (code, why) = setup.flag("--xdp-interface", "eth7").refused();
    assert_eq!(code, Some(1));
    assert_eq!(why, "there is no network interface \"eth7\": give one of lo, lab0");
}

/// The second recorder's sk_lookup program is there beside the first one's.
#[test]
fn an_interface_that_another_has_is_left_to_it() {
    let Some(lab) = Lab::up() else { return };
    let mut first = setup(&lab, "xdp").start();
    let (code, why) = setup(&lab, "xdp").flag("--media-ports", "30000-30063").refused();
    assert_eq!(code, Some(1));
    assert_eq!(why, "the interface lab0 has an XDP program already: detach that one");
    let mut second = setup(&lab, "auto").flag("--media-ports", "30000-30063").start();
    assert_eq!(
        account(&mut second),
        "media source steered; not xdp: the interface lab0 has an XDP program already: detach that one"
    );
    let warnings = warnings(&second);
    assert!(warnings.len() == 1 && warnings[0].starts_with("1 other sk_lookup programs"), "{warnings:?}");
    for recorder in [&mut first, &mut second] {
        records_a_call(&lab, recorder);
        recorder.quiet();
        recorder.stop();
    }
}

#[test]
fn auto_takes_the_best() {
    let Some(lab) = Lab::up() else { return };
    let mut recorder = setup(&lab, "auto").start();
    assert_eq!(account(&mut recorder), "media source xdp on lab0 (1 queue, native, copied)");
    recorder.stop();
    let mut recorder =
        Setup::new().ip(lab::RECORDER[0]).lab(&lab).flag("--media-source-kind", "auto").start();
    assert_eq!(account(&mut recorder), "media source steered; not xdp: no --xdp-interface is given");
    recorder.stop();
}

/// Nobody's user and group.
const USER: u32 = 65_534;

/// A recorder without root, with these capabilities and no other in any set. Where this process may not raise the limit of
/// locked memory, CAP_IPC_LOCK stands for that.
fn with(lab: &Lab, source: &str, capabilities: &[&str]) -> Setup {
    let raise = "--memlock=unlimited:unlimited";
    let may_raise = Command::new("prlimit").args([raise, "true"]).output().unwrap().status.success();
    let (program, first, more): (_, &[&str], &[&str]) =
        if may_raise { ("prlimit", &[raise, "setpriv"], &[]) } else { ("setpriv", &[], &["ipc_lock"]) };
    let set: String = [capabilities, more].concat().iter().map(|name| format!(",+{name}")).collect();
    let mut arguments: Vec<String> = first.iter().map(|&word| word.to_owned()).collect();
    arguments.extend([format!("--reuid={USER}"), format!("--regid={USER}")]);
    arguments.extend(["--clear-groups".to_owned(), "--no-new-privs".to_owned()]);
    arguments.extend(["inh-caps", "ambient-caps", "bounding-set"].map(|name| format!("--{name}=-all{set}")));
    let setup = Setup::new().ip(lab::RECORDER[0]).lab_by(lab, program, &arguments).owned_by(USER);
    setup.source(source)
}

/// CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN and CAP_BPF are in no set of any thread.
fn has_dropped_all(recorder: &Recorder) {
    let dropped = [12, 13, 21, 39].map(|bit| 1_u64 << bit).iter().sum::<u64>();
    let mut threads = 0;
    for task in fs::read_dir(format!("/proc/{}/task", recorder.pid())).unwrap() {
        // One that looks for what a dead recorder left is there for a moment only.
        let Ok(status) = fs::read_to_string(task.unwrap().path().join("status")) else { continue };
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            let line = status.lines().find_map(|line| line.strip_prefix(set)).unwrap();
            let bits = u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap();
            assert_eq!(bits & dropped, 0, "{set} {status}");
        }
        threads += 1;
    }
    assert!(threads >= 5, "{threads} threads");
}

#[test]
fn three_capabilities_are_enough_and_are_dropped() {
    if !installed(&["setpriv", "prlimit"]) {
        return;
    }
    for (source, capabilities) in
        [("xdp", &["net_admin", "bpf", "net_raw"][..]), ("steered", &["net_admin", "bpf"])]
    {
        let Some(lab) = Lab::up() else { return };
        let mut recorder = with(&lab, source, capabilities).start();
        assert_eq!(recorder.logged("ready")["media_source"], source);
        has_dropped_all(&recorder);
        records_a_call(&lab, &recorder);
        recorder.stop();
    }
}

/// The program learns of it from a recorder that has no capability any more.
#[test]
fn an_address_that_comes_later() {
    if !installed(&["setpriv", "prlimit"]) {
        return;
    }
    let Some(lab) = Lab::up() else { return };
    let mut recorder = with(&lab, "xdp", &["net_admin", "bpf", "net_raw"]).start();
    lab.ip("recorder", "address add 10.99.0.9/24 dev lab0");
    lab.ip("load", "neighbour replace 10.99.0.9 lladdr 02:00:00:00:99:02 dev lab0 nud permanent");
    let leg = lab.inside("load", || {
        let (mut call, legs) = call(&recorder, vec![PCMU], lab::LOAD[0], 0x7500_0000);
        let to = ([10, 99, 0, 9], legs[0].to().port()).into();
        let mut leg = Leg::between(lab::LOAD[0].parse().unwrap(), to, 9);
        // For longer than until it is looked for; before, a socket takes what comes.
        talk(&mut [&mut leg], 75);
        received(&recorder, 75);
        call.hang_up();
        leg
    });
    let recording = recorder.recording();
    recording.check_whole();
    let pcap = recording.pcap();
    assert!(pcap.payloads_to(leg.to().port()) == leg.sent);
    assert!(pcap.to_port(leg.to().port()).last().unwrap().is_from_wire());
    recorder.stop();
}

/// What is left of root still writes to its directory.
#[test]
fn root_drops_them_too() {
    let Some(lab) = Lab::up() else { return };
    for source in XDP_OR_STEERED {
        let mut recorder = setup(&lab, source).start();
        has_dropped_all(&recorder);
        records_a_call(&lab, &recorder);
        recorder.stop();
    }
}

#[test]
fn a_missing_capability_is_named() {
    if !installed(&["setpriv", "prlimit"]) {
        return;
    }
    let Some(lab) = Lab::up() else { return };
    let mut recorder = with(&lab, "auto", &["net_admin", "net_raw"]).start();
    assert_eq!(
        account(&mut recorder),
        "media source sockets; not xdp: CAP_BPF missing (systemd: AmbientCapabilities); \
         not steered: CAP_BPF missing (systemd: AmbientCapabilities)"
    );
    records_a_call(&lab, &recorder);
    recorder.stop();
    for (source, capabilities, missing) in [
        ("steered", &["net_raw"][..], "CAP_BPF and CAP_NET_ADMIN missing"),
        ("xdp", &["bpf", "net_admin"], "CAP_NET_RAW missing"),
    ] {
        let (code, why) = with(&lab, source, capabilities).refused();
        assert_eq!((code, why), (Some(1), format!("{missing} (systemd: AmbientCapabilities)")));
    }
}

/// How often this event is in the log.
fn times(recorder: &Recorder, event: &str) -> usize {
    recorder.log().iter().filter(|line| line["event"] == event).count()
}

#[test]
fn a_link_that_goes_down_and_comes_back() {
    let Some(lab) = Lab::up() else { return };
    let mut recorder = setup(&lab, "xdp").start();
    let leg = lab.inside("load", || {
        let (mut call, mut legs) = call(&recorder, vec![PCMU], lab::LOAD[0], 0x7200_0000);
        let leg = &mut legs[0];
        leg.burst(20);
        received(&recorder, 20);
        lab.ip("load", "link set lab0 down");
        recorder.logged("link_down");
        for n in 0..5 {
            let packet = leg.packet(&[n; 160]);
            leg.socket().send_to(&packet, leg.to()).unwrap_err();
        }
        lab.ip("load", "link set lab0 up");
        recorder.logged("link_up");
        leg.burst(20);
        received(&recorder, 40);
        call.hang_up();
        legs.remove(0)
    });
    let recording = recorder.recording();
    recording.check_whole();
    assert!(recording.pcap().payloads_to(leg.to().port()) == leg.sent);
    assert_eq!(recording.stream("1")["lost"], 5);
    recorder.quiet();
    recorder.stop_after_errors();
    assert_eq!((times(&recorder, "link_down"), times(&recorder, "link_up")), (1, 1));
}

#[test]
fn an_interface_that_is_removed() {
    let Some(lab) = Lab::up() else { return };
    let mut recorder = setup(&lab, "xdp").start();
    let leg = lab.inside("load", || {
        let (_, mut legs) = call(&recorder, vec![PCMU], lab::LOAD[0], 0x7300_0000);
        legs[0].burst(20);
        received(&recorder, 20);
        legs.remove(0)
    });
    lab.ip("load", "link delete lab0");
    recorder.logged("interface_gone");
    assert_eq!(recorder.stats()["sessions"]["active"], 1);
    // Its BYE goes nowhere.
    recorder.stop_after_errors();
    let recording = recorder.recording();
    recording.check_whole();
    assert!(recording.pcap().payloads_to(leg.to().port()) == leg.sent);
    assert_eq!(times(&recorder, "interface_gone"), 1);
}

/// Whether an XDP program is on the recorder's interface.
fn on_interface(lab: &Lab) -> bool {
    lab.ip("recorder", "-d link show lab0").contains("prog/xdp")
}

/// Whoever starts next finds no program, and all ports.
fn starts_at_once(lab: &Lab, source: &str) -> Recorder {
    let recorder = setup(lab, source).sip_port(5_060).start();
    assert_eq!(recorder.port_pairs, 32, "{source}");
    assert_eq!(warnings(&recorder), [] as [&str; 0], "{source}");
    assert_eq!(on_interface(lab), source == "xdp");
    recorder
}

#[test]
fn nothing_stays_attached() {
    let Some(lab) = Lab::up() else { return };
    let mut recorder = starts_at_once(&lab, "xdp");
    recorder.stop();
    assert!(!on_interface(&lab));
    for source in ["xdp", "xdp", "steered", "sockets", "steered", "xdp"] {
        let mut recorder = starts_at_once(&lab, source);
        records_a_call(&lab, &recorder);
        recorder.signal("KILL");
        recorder.exit();
        assert!(!on_interface(&lab));
    }
}

#[test]
fn a_port_that_somebody_has_bound_stays_his() {
    let Some(lab) = Lab::up() else { return };
    for source in XDP_OR_STEERED {
        // The port of the fourth pair's RTCP.
        let port = 12_007;
        let foreign = lab.inside("recorder", || UdpSocket::bind((lab::RECORDER[0], port)).unwrap());
        foreign.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut recorder = setup(&lab, source).start();
        assert_eq!((recorder.first_port(), recorder.port_pairs), (12_000, 31));
        let warnings = warnings(&recorder);
        let expected = "1 media port pairs are in use by others and left out, the first is 12006";
        assert_eq!(warnings, [expected], "{source}");
        let sender = lab.inside("load", || UdpSocket::bind((lab::LOAD[0], 0)).unwrap());
        sender.send_to(b"his own", (lab::RECORDER[0], port)).unwrap();
        let mut buffer = [0; 64];
        let (length, _) = foreign.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"his own");
        records_a_call(&lab, &recorder);
        recorder.stop();
    }
}

/// The same port of another address of the host is somebody else's.
#[test]
fn only_the_media_address_is_taken() {
    let Some(lab) = Lab::up() else { return };
    lab.ip("recorder", "address add 10.99.0.3/24 dev lab0");
    lab.ip("load", "neighbour replace 10.99.0.3 lladdr 02:00:00:00:99:02 dev lab0 nud permanent");
    // Bound before: no reason to leave out a pair.
    let _other = lab.inside("recorder", || UdpSocket::bind((lab::RECORDER[0], 12_063)).unwrap());
    for source in XDP_OR_STEERED {
        let mut recorder = setup(&lab, source).flag("--media-ip", "10.99.0.3").start();
        assert_eq!(recorder.port_pairs, 32);
        let leg = lab.inside("load", || {
            let (mut call, legs) = call(&recorder, vec![PCMU], lab::LOAD[0], 0x7400_0000);
            let (to, other) =
                (legs[0].to(), lab.inside("recorder", || UdpSocket::bind(legs[0].to()).unwrap()));
            other.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut leg = Leg::between(lab::LOAD[0].parse().unwrap(), ([10, 99, 0, 3], to.port()).into(), 7);
            for _ in 0..10 {
                legs[0].socket().send_to(b"not media", to).unwrap();
                leg.burst(1);
                let mut buffer = [0; 64];
                let (length, _) = other.recv_from(&mut buffer).unwrap();
                assert_eq!(&buffer[..length], b"not media");
            }
            received(&recorder, 10);
            call.hang_up();
            leg
        });
        let recording = recorder.recording();
        recording.check_whole();
        assert!(recording.pcap().payloads_to(leg.to().port()) == leg.sent);
        assert_eq!(recorder.quiet()["media"]["received_packets"], 10);
        recorder.stop();
    }
}
