//! Peers that mean no good, or cannot do better.

use std::net::{TcpStream, UdpSocket};

use serde_json::Value;

use crate::media::Leg;
use crate::recorder::{Recorder, Setup, eventually, number};
use crate::src::{Call, MULTIPART, PCMU, Wire};

/// A whole call still works, and its recording is whole.
#[track_caller]
fn still_records(recorder: &Recorder) {
    let before = recorder.recordings().len();
    let mut call = Call::udp(recorder.udp);
    let ports = call.establish();
    let mut leg = Leg::new(recorder.udp.ip(), ports[0], 1);
    let received = number(&recorder.stats()["media"], "received_packets");
    leg.burst(5);
    recorder.stats_when("packets are received", |stats| {
        number(&stats["media"], "received_packets") == received + 5
    });
    call.hang_up();
    let recording = recorder.committed(before + 1).remove(before);
    recording.check_whole();
    assert_eq!(recording.pcap().payloads_to(ports[0]), leg.sent);
}

#[test]
fn truncated_datagrams() {
    let mut recorder = Recorder::start();
    let mut call = Call::udp(recorder.udp);
    let invite = call.invite_text();
    let mut cuts = 0;
    for length in (1..invite.len()).step_by(37) {
        call.wire.send(&invite.as_bytes()[..length]);
        cuts += 1;
    }
    // Those that still have a Via are answered 400, the others are counted.
    let stats = recorder.stats_when("every cut is counted", |stats| {
        let sip = &stats["sip"];
        number(sip, "malformed") + number(sip, "bad_requests") == cuts
    });
    let refused = number(&stats["sip"], "bad_requests");
    assert!(refused > cuts / 2, "{refused} of {cuts}");
    assert_eq!(stats["sip"]["responses"]["400"], refused);
    for _ in 0..refused {
        assert_eq!(call.wire.receive().code(), 400);
    }
    assert_eq!(stats["sessions"]["total"], 0);
    still_records(&recorder);
    recorder.stop();
}

#[test]
fn a_body_shorter_than_its_content_length() {
    let mut recorder = Recorder::start();
    let mut call = Call::udp(recorder.udp);
    let invite = call.invite_text();
    let length = invite.split("Content-Length: ").nth(1).unwrap().split('\r').next().unwrap();
    let longer = invite.replace(&format!("Content-Length: {length}"), "Content-Length: 60000");
    call.wire.send(longer);
    assert_eq!(call.wire.receive().code(), 400);
    for bad in ["-5", "5x", "99999999999999999999", "1\r\nContent-Length: 2"] {
        let bent = invite.replace(&format!("Content-Length: {length}"), &format!("Content-Length: {bad}"));
        call.wire.send(bent);
        assert_eq!(call.wire.receive().code(), 400, "{bad}");
    }
    let stats = recorder.stats();
    assert_eq!((number(&stats["sip"], "bad_requests"), number(&stats["sessions"], "total")), (5, 0));
    assert_eq!(stats["sessions"]["refused"]["bad_request"], 5);
    // RFC 3261 §18.3: what a datagram has beyond it is ignored.
    call.wire.send(format!("{invite}left over"));
    assert_eq!(call.wire.final_response("INVITE").code(), 200);
    recorder.stop();
}

/// A stream whose end of message cannot be known any more is closed; all others go on.
#[test]
fn streams_that_cannot_be_framed() {
    let mut recorder = Recorder::start();
    let other = Call::tcp(recorder.tcp);
    let text = other.invite_text();
    let length = text.split("Content-Length: ").nth(1).unwrap().split('\r').next().unwrap().to_owned();
    let with = |value: &str| text.replace(&format!("Content-Length: {length}"), value).into_bytes();
    let cases = [
        ("no length", with("X-Length: 5")),
        ("not a number", with("Content-Length: five")),
        ("negative", with("Content-Length: -1")),
        ("two lengths", with("Content-Length: 10\r\nContent-Length: 20")),
        ("too long a body", with("Content-Length: 104857600")),
        ("a TLS hello", [&[0x16, 3, 1, 2, 0, 1][..], &[0; 600]].concat()),
        ("an endless header", format!("OPTIONS sip:a@b SIP/2.0\r\nX: {}", "x".repeat(100_000)).into_bytes()),
        ("binary", (0..=255).rev().cycle().take(4_096).collect()),
    ];
    for (n, (what, bytes)) in cases.iter().enumerate() {
        let mut wire = Wire::tcp(recorder.tcp);
        wire.send(bytes);
        assert!(wire.closed(), "{what}");
        drop(wire);
        recorder.stats_when(what, |stats| stats["sip"]["wire"]["connections_closed"]["unframeable"] == n + 1);
    }
    let stats = recorder.stats_when("one connection is left", |stats| stats["sip"]["wire"]["tcp_open"] == 1);
    assert_eq!(stats["sip"]["wire"]["tcp_accepted"], cases.len() + 1);
    let mut other = other;
    other.establish();
    other.hang_up();
    recorder.recording().check_whole();
    recorder.stop();
}

#[test]
fn oversized_and_binary_datagrams() {
    let mut recorder = Recorder::start();
    let socket = UdpSocket::bind((recorder.udp.ip(), 0)).unwrap();
    let send = |bytes: &[u8]| assert_eq!(socket.send_to(bytes, recorder.udp).unwrap(), bytes.len());
    let padding = |n: usize| "x".repeat(n);
    let all = 65_507;
    send(&vec![0xff; all]);
    send(&vec![b'A'; all]);
    send(&(0..=255).cycle().take(9_000).collect::<Vec<u8>>());
    send(format!("OPTIONS sip:a@b SIP/2.0\r\nX: {}\r\n\r\n", padding(60_000)).as_bytes());
    send("A: b\r\n".repeat(10_000).as_bytes());
    send(b"SIP/2.0 200 OK\r\n\r\n");
    // Keepalives are no errors.
    send(b"\r\n\r\n");
    send(&[0; 4]);
    send(b"");
    recorder.stats_when("what is not SIP is counted", |stats| number(&stats["sip"], "malformed") >= 4);
    // Legal, and as large as a datagram can be.
    let mut call = Call::udp(recorder.udp);
    let room = all - call.invite_text().len() - 100;
    call.metadata = call.metadata.replace("</recording>", &format!("<!--{}--></recording>", padding(room)));
    call.establish();
    call.hang_up();
    assert_eq!(recorder.recording().read("metadata-0001.xml"), call.metadata.as_bytes());
    still_records(&recorder);
    recorder.stop();
}

/// Many connections that never finish their message, a byte at a time, hold nobody up.
#[test]
fn slow_loris() {
    let mut recorder = Recorder::start();
    let message = Call::tcp(recorder.tcp).invite_text();
    let mut loris: Vec<Wire> = (0..100).map(|_| Wire::tcp(recorder.tcp)).collect();
    recorder.stats_when("they are connected", |stats| number(&stats["sip"]["wire"], "tcp_open") == 100);
    for byte in message.as_bytes()[..40].iter() {
        loris.iter_mut().for_each(|wire| wire.send([*byte]));
    }
    let mut call = Call::tcp(recorder.tcp);
    call.establish();
    still_records(&recorder);
    call.hang_up();
    let stats = recorder.stats();
    assert_eq!(stats["sip"]["wire"]["tcp_open"], 101);
    assert_eq!((&stats["sip"]["malformed"], &stats["sip"]["bad_requests"]), (&0.into(), &0.into()));
    drop(loris);
    recorder.stats_when("the connections are gone", |stats| stats["sip"]["wire"]["tcp_open"] == 1);
    recorder.stop();
}

/// A peer that sends keepalives without end and reads none of their answers loses its connection, and nobody else theirs.
#[test]
fn pings_whose_answers_nobody_reads() {
    use std::io::Write;

    let mut recorder = Recorder::start();
    let mut flood = TcpStream::connect(recorder.tcp).unwrap();
    flood.set_write_timeout(Some(crate::recorder::PATIENCE)).unwrap();
    let pings = b"\r\n\r\n".repeat(64 * 1024);
    let sent = (0..400).take_while(|_| flood.write_all(&pings).is_ok()).count();
    assert!(sent < 400, "the recorder goes on for ever");
    recorder.stats_when("the connection is gone", |stats| stats["sip"]["wire"]["tcp_open"] == 0);
    still_records(&recorder);
    recorder.stop();
}

/// A message in pieces, and several in one piece.
#[test]
fn a_stream_cut_anywhere() {
    let mut recorder = Recorder::start();
    let mut call = Call::tcp(recorder.tcp);
    for chunk in call.invite_text().as_bytes().chunks(7) {
        call.wire.send(chunk);
    }
    let answer = call.wire.final_response("INVITE");
    call.remote_tag = Some(crate::src::tag(&answer));
    let ack = call.request("ACK", "", "");
    call.cseq += 1;
    let options = call.request("OPTIONS", "", "");
    call.cseq += 1;
    let bye = call.request("BYE", "", "");
    call.wire.send(format!("{ack}\r\n\r\n{options}\r\n{bye}"));
    if let Wire::Tcp { stream, .. } = &mut call.wire {
        // The answer to the double CRLF (RFC 5626 §4.4.1) comes before the others.
        let mut pong = [0; 2];
        std::io::Read::read_exact(stream, &mut pong).unwrap();
        assert_eq!(&pong, b"\r\n");
    }
    assert_eq!(call.wire.final_response("OPTIONS").code(), 200);
    assert_eq!(call.wire.final_response("BYE").code(), 200);
    recorder.recording().check_whole();
    recorder.stop();
}

/// Many times more keepalives at once than a connection may have answers waiting.
#[test]
fn a_flood_of_pings() {
    let mut recorder = Recorder::start();
    let mut flood = TcpStream::connect(recorder.tcp).unwrap();
    flood.set_write_timeout(Some(std::time::Duration::from_secs(1))).unwrap();
    // That the recorder takes all of it is not asked for.
    let _ = std::io::Write::write_all(&mut flood, &b"\r\n\r\n".repeat(1 << 20));
    still_records(&recorder);
    drop(flood);
    recorder.stats_when("the connection is gone", |stats| stats["sip"]["wire"]["tcp_open"] == 0);
    recorder.stop();
}

/// Without descriptors no connection is accepted, and none of the processor's time goes into trying.
#[test]
fn no_descriptor_for_a_connection() {
    let mut recorder = Setup::new().flag("--cores", "0").descriptors(256).start();
    // The client comes first: it needs a descriptor too.
    let mut stats = recorder.asking();
    let flood: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(recorder.tcp).unwrap()).collect();
    let before = eventually("a connection is refused", || Some(stats()).filter(|stats| refused(stats) > 0));
    std::thread::sleep(std::time::Duration::from_secs(1));
    let more = refused(&stats()) - refused(&before);
    assert!(more < 50, "{more} attempts a second");
    drop(flood);
    still_records(&recorder);
    let mut call = Call::tcp(recorder.tcp);
    call.establish();
    call.hang_up();
    recorder.stop();
}

/// Connections that were not taken, for whatever reason.
fn refused(stats: &Value) -> u64 {
    let causes = stats["sip"]["wire"]["connections_refused"].as_object().unwrap();
    causes.values().filter_map(Value::as_u64).sum()
}

/// The connection of a call breaks, and the call with it ends in the way that is left: over a new one.
#[test]
fn a_connection_that_breaks() {
    let mut recorder = Recorder::start();
    let mut call = Call::tcp(recorder.tcp);
    call.establish();
    call.wire = Wire::tcp(recorder.tcp);
    recorder.stats_when("the old connection is gone", |stats| stats["sip"]["wire"]["tcp_open"] == 1);
    assert_eq!(recorder.stats()["sessions"]["active"], 1);
    call.hang_up();
    recorder.recording().check_whole();
    recorder.stop();
}

#[test]
fn bodies_that_cannot_be_split() {
    let mut recorder = Recorder::start();
    let call = Call::udp(recorder.udp);
    let sdp = call.sdp();
    let cases: [(&str, &str, String, &[u16]); 6] = [
        ("no boundary", "multipart/mixed", call.body(), &[400, 415]),
        ("another boundary", "multipart/mixed;boundary=other", call.body(), &[400, 415]),
        ("no part", MULTIPART, "--unique-boundary-7--\r\n".into(), &[400, 415]),
        ("binary SDP", "application/sdp", "\u{0}\u{1}\u{2}".repeat(100), &[488]),
        ("SDP of nothing", "application/sdp", "v=0\r\n".into(), &[488]),
        (
            "a million m-lines",
            "application/sdp",
            format!("{sdp}{}", "m=audio 9 RTP/AVP 0\r\n".repeat(2_000)),
            &[488],
        ),
    ];
    for (what, content_type, body, codes) in cases {
        let mut call = Call::udp(recorder.udp);
        let fields = format!("Require: siprec\r\nContent-Type: {content_type}\r\n");
        let text = call.request("INVITE", &fields, &body);
        call.wire.send(text);
        let answer = call.wire.final_response("INVITE");
        assert!(codes.contains(&answer.code()), "{what}: {}", answer.start);
        let ack = call.request("ACK", "", "");
        call.wire.send(ack);
    }
    assert_eq!(recorder.pool_whole()["sessions"]["refused_total"], 6);
    still_records(&recorder);
    recorder.stop();
}

/// An INVITE for each pair of the pool, and one more.
#[test]
fn the_pool_runs_out_and_is_whole_afterwards() {
    let mut recorder = Setup::new().pairs(8).flag("--port-cooldown", "200ms").start();
    let pairs = recorder.port_pairs as usize;
    assert_eq!(pairs, 8);
    let one = || Call::new(Wire::udp(recorder.udp), recorder.udp, vec![PCMU]);
    for round in 0..2 {
        let mut calls: Vec<Call> = (0..pairs).map(|_| one()).collect();
        let ports: std::collections::HashSet<u16> = calls.iter_mut().flat_map(Call::establish).collect();
        assert_eq!(ports.len(), pairs, "a pair of its own for each");
        let mut more = one();
        let refused = more.invite();
        assert_eq!(refused.code(), 503);
        assert!(refused.header("Retry-After").unwrap().parse::<u32>().unwrap() > 0);
        let stats = recorder.stats();
        let expected = round + 1;
        let full = number(&stats["sessions"]["refused"], "no_port")
            + number(&stats["sessions"]["refused"], "max_sessions");
        assert_eq!(full, expected);
        assert_eq!(number(&stats["ports"], "free"), 0);
        // A balancer that asks is told the same.
        let mut ping = one();
        let options = ping.request("OPTIONS", "", "");
        ping.wire.send(options);
        assert_eq!(ping.wire.final_response("OPTIONS").code(), 503);
        calls.iter_mut().for_each(Call::hang_up);
        recorder.pool_whole();
    }
    for recording in recorder.committed(2 * pairs) {
        recording.check_whole();
    }
    recorder.stop();
}

#[test]
fn as_many_sessions_as_are_allowed() {
    let mut recorder = Setup::new().flag("--max-sessions", "2").start();
    let mut calls = [Call::udp(recorder.udp), Call::tcp(recorder.tcp), Call::udp(recorder.udp)];
    calls[0].establish();
    calls[1].establish();
    let refused = calls[2].invite();
    assert_eq!((refused.code(), refused.header("Retry-After").is_some()), (503, true));
    calls[0].hang_up();
    recorder.committed(1);
    calls[2].cseq += 1;
    calls[2].establish();
    assert_eq!(recorder.stats()["sessions"]["refused"]["max_sessions"], 1);
    recorder.stop();
}

/// Media from nobody, to nobody.
#[test]
fn packets_without_a_session() {
    let mut recorder = Setup::new().flag("--port-cooldown", "60s").start();
    let ip = recorder.udp.ip();
    let mut call = Call::udp(recorder.udp);
    let ports = call.establish();
    let mut late = Leg::new(ip, ports[0], 1);
    late.burst(10);
    recorder.stats_when("the packets are received", |stats| stats["media"]["received_packets"] == 10);
    call.hang_up();
    let recording = recorder.recording();
    late.burst(7);
    // The pool has more than the two pairs of that call.
    let unused = (recorder.first_port()..).step_by(2).find(|port| !ports.contains(port)).unwrap();
    Leg::new(ip, unused, 2).burst(3);
    let stats = recorder.stats_when("late packets are counted", |stats| {
        stats["media"]["dropped"]["after_end"] == 7 && stats["media"]["dropped"]["no_session"] == 3
    });
    assert_eq!(stats["media"]["received_packets"], 20);
    assert_eq!(recording.stream("1")["packets"], 10);
    recorder.quiet();
    recorder.stop();
}

#[test]
fn a_flood_of_connections() {
    let mut recorder = Recorder::start();
    for _ in 0..5 {
        let flood: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(recorder.tcp).unwrap()).collect();
        drop(flood);
    }
    recorder.stats_when("all came and went", |stats| {
        let wire = &stats["sip"]["wire"];
        number(wire, "tcp_accepted") + refused(stats) == 1_000 && wire["tcp_open"] == 0
    });
    still_records(&recorder);
    recorder.stop();
}
