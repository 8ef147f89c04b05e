//! What the recorder sends from media ports, with each way of receiving: receiver reports to those who send.

use std::net::SocketAddr;

use crate::lab::{self, Lab};
use crate::media::Leg;
use crate::recorder::{Recorder, Setup, number};
use crate::src::{Call, Line, PCMU};

const MUX: &str = "a=rtpmap:0 PCMU/8000\r\na=rtcp-mux\r\na=sendonly\r\n";

/// One receiver report of one block and the CNAME behind it (RFC 3550 §6.4.2, §6.5).
#[derive(Debug)]
struct Report {
    ours: u32,
    source: u32,
    fraction_lost: u32,
    lost: u32,
    highest: u32,
    last_report: u32,
    cname: String,
}

fn read(packet: &[u8]) -> Report {
    let word = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().unwrap());
    assert_eq!(packet[..4], [0x81, 201, 0, 7], "a receiver report of one block: {packet:02x?}");
    assert_eq!(packet[32..34], [0x81, 202], "a description of one source: {packet:02x?}");
    let words = usize::from(packet[34]) << 8 | usize::from(packet[35]);
    assert_eq!(32 + 4 * (words + 1), packet.len(), "nothing behind it: {packet:02x?}");
    assert_eq!((word(4), packet[40]), (word(36), 1), "one reporter, and first its CNAME: {packet:02x?}");
    let cname = &packet[42..42 + usize::from(packet[41])];
    Report {
        ours: word(4),
        source: word(8),
        fraction_lost: word(12) >> 24,
        lost: word(12) & 0xff_ffff,
        highest: word(16),
        last_report: word(24),
        cname: String::from_utf8(cname.to_vec()).unwrap(),
    }
}

/// A call of three streams: one with ports of its own for RTCP, one that shares its port, one that sends RTCP.
fn reports_come_back(recorder: &Recorder) {
    let ip = recorder.udp.ip();
    let mut call = Call::udp(recorder.udp);
    call.lines = vec![PCMU, Line { attributes: MUX, ..PCMU.label("2") }, PCMU.label("3")];
    let ports = call.establish();
    let mut legs: Vec<Leg> = ports.iter().zip(7..).map(|(&port, ssrc)| Leg::new(ip, port, ssrc)).collect();
    for leg in &mut legs {
        leg.burst(15);
        // Five of 30 are lost.
        leg.sequence = leg.sequence.wrapping_add(5);
        leg.burst(10);
    }
    legs[2].send_rtcp();
    let mut reporters = Vec::new();
    for ((leg, &port), mux) in legs.iter().zip(&ports).zip([false, true, false]) {
        let (from, packet) = leg.receive_rtcp(mux);
        let report = read(&packet);
        assert_eq!(from, SocketAddr::new(ip, if mux { port } else { port + 1 }), "{report:?}");
        assert_eq!((report.source, report.last_report), (leg.ssrc, 0), "{report:?}");
        // It may have been written before all had come.
        let (first, last) = (65_530, 65_530 + 29);
        assert!((first..=last).contains(&report.highest), "{report:?}");
        if report.highest == last {
            assert_eq!((report.lost, report.fraction_lost), (5, 5 * 256 / 30), "{report:?}");
        }
        reporters.push((report.ours, report.cname));
    }
    let [(one, name), (two, _), (three, _)] = &reporters[..] else { panic!("{reporters:?}") };
    assert!(one != two && two != three && one != three, "an SSRC for each session: {reporters:?}");
    assert!(!name.is_empty() && reporters.iter().all(|(_, cname)| cname == name), "{reporters:?}");
    // What was sent has taken nothing of what comes.
    legs.iter_mut().for_each(|leg| leg.burst(20));
    let expected = 3 * 45 + 1;
    let stats = recorder.stats_when("all packets have been received", |stats| {
        number(&stats["media"], "received_packets") == expected
    });
    let media = &stats["media"];
    assert!(number(media, "rtcp_sent") >= 3 && number(media, "rtcp_send_errors") == 0, "{media}");
    call.hang_up();
    recorder.recording().check_whole();
}

fn reports_come_back_over_a_wire(family: usize, flags: &[(&str, &str)]) {
    let Some(lab) = Lab::up() else { return };
    let setup = Setup::new().ip(lab::RECORDER[family]).lab(&lab);
    let setup = flags.iter().fold(setup, |setup, (name, value)| setup.flag(name, value));
    let mut recorder = setup.start();
    lab.inside("load", || reports_come_back(&recorder));
    recorder.quiet();
    recorder.stop();
}

/// The sockets are bound to every address: each report leaves from the one that its stream came to.
#[test]
fn from_sockets() {
    let mut recorder = Setup::new().ip("127.0.0.3").flag("--media-source-kind", "sockets").start();
    reports_come_back(&recorder);
    recorder.stop();
}

#[test]
fn from_sockets_of_one_address() {
    let setup = Setup::new().flag("--media-source-kind", "sockets").flag("--media-ip", "127.0.0.1");
    let mut recorder = setup.start();
    reports_come_back(&recorder);
    recorder.stop();
}

#[test]
fn from_sockets_over_ipv6() {
    reports_come_back_over_a_wire(1, &[("--media-source-kind", "sockets")]);
}

#[test]
fn from_steered_ports() {
    reports_come_back_over_a_wire(0, &[("--media-source-kind", "steered")]);
    reports_come_back_over_a_wire(1, &[("--media-source-kind", "steered")]);
}

#[test]
fn past_receive_queues() {
    let flags = [("--media-source-kind", "xdp"), ("--xdp-interface", lab::INTERFACE)];
    reports_come_back_over_a_wire(0, &flags);
    reports_come_back_over_a_wire(1, &flags);
}
