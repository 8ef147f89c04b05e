//! What is on disk, opened with other people's programs.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::media::{FRAME, Leg, PTIME, linear, noise, talk, tone};
use crate::peers;
use crate::recorder::{Recorder, Setup, number};
use crate::recording::{Datagram, Recording};
use crate::src::{Call, Line, PCMU};

/// A short call of two parties; its recording.
fn short_call(recorder: &Recorder, mut call: Call) -> (Recording, Vec<Leg>) {
    let ip = recorder.udp.ip();
    let ports = call.establish();
    let mut legs: Vec<Leg> =
        ports.iter().enumerate().map(|(n, port)| Leg::new(ip, *port, 0xabcd_0000 + n as u32)).collect();
    for leg in &mut legs {
        leg.burst(30);
        leg.send_rtcp();
    }
    // Only what has arrived is sure to be in the recording.
    let expected = 31 * legs.len() as u64;
    recorder.stats_when("all packets have been received", |stats| {
        number(&stats["media"], "received_packets") == expected
    });
    call.hang_up();
    (recorder.recording(), legs)
}

/// Method and status of each SIP message, in the order of the file.
fn sip_dialog(recording: &Recording) -> Vec<String> {
    let fields = ["sip.Method", "sip.Status-Code"];
    let rows = peers::tshark(&recording.file("call.pcap"), "sip", &fields);
    rows.into_iter().map(|row| row.concat()).collect()
}

fn wireshark_opens(recorder: &Recorder, call: Call) {
    let (recording, legs) = short_call(recorder, call);
    recording.check_whole();
    let file = recording.file("call.pcap");
    peers::no_complaint(&file);
    assert_eq!(sip_dialog(&recording), ["INVITE", "100", "200", "ACK", "BYE", "200"]);
    let bodies = peers::tshark(&file, "sip.Method == INVITE", &["sdp.media_attr", "xml.tag"]);
    assert!(bodies[0][0].contains("label:2"), "the offer is dissected: {bodies:?}");
    assert!(bodies[0][1].contains("<participant"), "the metadata is dissected: {bodies:?}");

    let streams = peers::rtp_streams(&file);
    assert_eq!(streams.len(), 2, "{streams:?}");
    for (leg, label) in legs.iter().zip(["1", "2"]) {
        let ssrc = format!("0x{:08x}", leg.ssrc);
        let stream = streams.iter().find(|stream| stream.ssrc == ssrc).unwrap();
        assert_eq!((stream.payload.as_str(), stream.packets, stream.lost), ("g711U", 30, 0));
        assert_eq!(recording.stream(label)["local_rtp_port"], stream.to_port);
    }
    assert_eq!(peers::tshark(&file, "rtcp", &["rtcp.senderssrc"]).len(), 2);

    // Two legs of RTP and RTCP; the rest are the SIP messages, one record each if they came in datagrams.
    let media: u64 = ["1", "2"]
        .map(|label| {
            let stream = recording.stream(label);
            number(stream, "packets") + number(stream, "rtcp_packets") + number(stream, "other_packets")
        })
        .iter()
        .sum();
    assert_eq!(number(&recorder.quiet()["media"], "recorded_packets"), media);
    let records = recording.pcap().records;
    assert_eq!(peers::capinfos(&file), records);
    assert_eq!(records as u64, media + 6);
}

#[test]
fn tshark_and_capinfos_over_udp() {
    if !peers::installed(&["tshark", "capinfos"]) {
        return;
    }
    let mut recorder = Recorder::start();
    wireshark_opens(&recorder, Call::udp(recorder.udp));
    recorder.stop();
}

/// The dialog is on a TCP connection in the file too, and Wireshark puts its segments together again.
#[test]
fn tshark_and_capinfos_over_tcp() {
    if !peers::installed(&["tshark", "capinfos"]) {
        return;
    }
    let mut recorder = Recorder::start();
    wireshark_opens(&recorder, Call::tcp(recorder.tcp));
    recorder.stop();
}

/// An INVITE of more than one segment.
#[test]
fn tshark_reassembles_a_long_invite() {
    if !peers::installed(&["tshark", "capinfos"]) {
        return;
    }
    let mut recorder = Recorder::start();
    for (mut call, n) in [(Call::tcp(recorder.tcp), 1), (Call::udp(recorder.udp), 2)] {
        let padding = format!("<!-- {} -->", "padding ".repeat(5_000));
        call.metadata = call.metadata.replace("</recording>", &format!("{padding}</recording>"));
        call.establish();
        call.hang_up();
        let recording = recorder.committed(n).remove(n - 1);
        recording.check_whole();
        peers::no_complaint(&recording.file("call.pcap"));
        assert_eq!(sip_dialog(&recording), ["INVITE", "100", "200", "ACK", "BYE", "200"]);
        assert_eq!(recording.read("metadata-0001.xml"), call.metadata.as_bytes());
    }
    recorder.stop();
}

#[test]
fn sox_plays_a_raw_file() {
    if !peers::installed(&["sox"]) {
        return;
    }
    let mut recorder = Setup::new().flag("--format", "raw").start();
    let mut call = Call::udp(recorder.udp);
    let ports = call.establish();
    let ip = recorder.udp.ip();
    let (mut first, mut second) = (Leg::new(ip, ports[0], 1), Leg::new(ip, ports[1], 2));
    let (tone_1, tone_2) = (tone(440.0, 100 * FRAME), tone(1_000.0, 80 * FRAME));
    // The second party is heard 20 frames later, and is cut off for ten in between.
    let start = Instant::now();
    let mut first_sent = None;
    let mut second_sent = None;
    for frame in 0..100 {
        thread::sleep((start + PTIME * frame as u32).saturating_duration_since(Instant::now()));
        let before = Instant::now();
        first.send(&tone_1[frame * FRAME..][..FRAME]);
        first_sent.get_or_insert((before, Instant::now()));
        if frame >= 20 {
            let payload = &tone_2[(frame - 20) * FRAME..][..FRAME];
            let packet = second.packet(payload);
            if !(50..60).contains(&frame) {
                let before = Instant::now();
                second.send_datagram(packet);
                second_sent.get_or_insert((before, Instant::now()));
            }
        }
    }
    recorder.stats_when("all packets have been received", |stats| stats["media"]["received_packets"] == 170);
    call.hang_up();
    let recording = recorder.recording();
    recording.check_whole();

    let played = |label: &str| {
        let name = recording.stream(label)["file"].as_str().unwrap().to_owned();
        assert_eq!(name, format!("{label}.ulaw"));
        to_wav(&recording, &name)
    };
    let decoded = |tone: &[u8]| tone.iter().map(|code| linear(*code)).collect::<Vec<i16>>();
    let (one, two) = (played("1"), played("2"));
    assert_eq!(one.len(), 100 * FRAME, "two seconds");
    assert_eq!(one, decoded(&tone_1));

    // The second begins where it was heard first, as exactly as we know when that was.
    let ticks = |time: Duration| (time.as_secs_f64() * 8_000.0) as usize;
    let (from, until) = (first_sent.unwrap(), second_sent.unwrap());
    let (least, most) = (ticks(until.0 - from.1), ticks(until.1 - from.0));
    let offset = two.len() - 80 * FRAME;
    // A millisecond for the way through the kernel.
    assert!((least.saturating_sub(8)..=most + 8).contains(&offset), "{offset} not in {least}..={most}");
    let mut expected = vec![0; offset];
    expected.extend(decoded(&tone_2));
    // The gap, frames 50 to 59 of the call, is silence and has its place.
    expected[offset + 30 * FRAME..offset + 40 * FRAME].fill(0);
    assert_eq!(two, expected);
    assert_eq!(recording.stream("2")["lost"], 10);
    recorder.stop();
}

/// The samples of a WAV file that sox made of it.
fn to_wav(recording: &Recording, name: &str) -> Vec<i16> {
    let wav = tempfile::Builder::new().suffix(".wav").tempfile().unwrap();
    let mut command = Command::new("sox");
    command.args(["-t", "ul", "-r", "8000", "-c", "1"]).arg(recording.file(name));
    command.args(["-e", "signed-integer", "-b", "16"]).arg(wav.path());
    peers::output(&mut command);
    let bytes = std::fs::read(wav.path()).unwrap();
    assert_eq!((&bytes[..4], &bytes[8..16]), (&b"RIFF"[..], &b"WAVEfmt "[..]));
    let data = bytes.windows(4).position(|window| window == b"data").unwrap() + 8;
    bytes[data..].chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]])).collect()
}

/// Three lost, two swapped with their successors, four sent twice, and what is not RTP.
#[test]
fn the_manifest_tells_what_happened() {
    let mut recorder = Recorder::start();
    let mut call = Call::udp(recorder.udp);
    let ports = call.establish();
    let ip = recorder.udp.ip();
    let (mut broken, mut whole) = (Leg::new(ip, ports[0], 0xdead_beef), Leg::new(ip, ports[1], 7));
    let start = Instant::now();
    let mut held = None;
    for n in 0..50_u16 {
        thread::sleep((start + PTIME / 4 * u32::from(n)).saturating_duration_since(Instant::now()));
        let packet = broken.packet(&noise(broken.ssrc, n));
        match n {
            5 | 17 | 18 => {}
            10 | 30 => held = Some(packet),
            11 | 31 => {
                broken.send_datagram(packet);
                broken.send_datagram(held.take().unwrap());
            }
            22 | 23 | 40 | 49 => {
                broken.send_datagram(packet.clone());
                broken.send_datagram(packet);
            }
            _ => broken.send_datagram(packet),
        }
    }
    let rtp = broken.sent.len() as u64;
    assert_eq!(rtp, 51);
    broken.send_rtcp();
    broken.send_rtcp();
    // A STUN binding request.
    broken.send_datagram([&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat());
    talk(&mut [&mut whole], 10);
    recorder.stats_when("all packets have been received", |stats| stats["media"]["received_packets"] == 64);
    call.hang_up();
    let recording = recorder.recording();
    recording.check_whole();

    let pcap = recording.pcap();
    let arrived = pcap.to_port(ports[0]);
    let (first, last) = (wall(arrived[0].at), wall(arrived[rtp as usize - 1].at));
    let stream = recording.stream("1");
    let jitter = stream["jitter_ms"].as_f64().unwrap();
    let expected = jitter_ms(&arrived[..rtp as usize]);
    assert!((jitter - expected).abs() < 0.001, "{jitter}, not {expected}");
    let expected = json!({
        "label": "1", "participants": ["p-1"], "m_line": 0, "kind": "audio", "codec": "PCMU", "clock_rate": 8_000,
        "local_rtp_port": ports[0],
        "ssrcs": [{
            "ssrc": "0xdeadbeef", "payload_type": 0, "packets": rtp, "lost": 3, "out_of_order": 2, "duplicate": 4,
            "jitter_ms": stream["jitter_ms"], "first_packet": first, "last_packet": last,
        }],
        "first_packet": first, "last_packet": last, "packets": rtp, "bytes": rtp * FRAME as u64,
        "rtcp_packets": 2, "other_packets": 1, "lost": 3, "out_of_order": 2, "duplicate": 4,
        "dropped": 0, "kernel_dropped": 0, "jitter_ms": stream["jitter_ms"], "file": "call.pcap",
    });
    assert_eq!(*stream, expected);
    let steady = recording.stream("2");
    assert_eq!(
        (&steady["packets"], &steady["lost"], &steady["duplicate"]),
        (&json!(10), &json!(0), &json!(0))
    );

    let manifest = &recording.manifest;
    assert_eq!(manifest["version"], 1);
    assert_eq!(manifest["recorder"], concat!("sipreel/", env!("CARGO_PKG_VERSION")));
    assert_eq!(manifest["id"], recording.path.file_name().unwrap().to_str().unwrap());
    assert_eq!((&manifest["state"], &manifest["format"]), (&json!("ended"), &json!("pcap")));
    assert_eq!(manifest["end_cause"], "bye");
    let expected = json!({
        "call_id": call.call_id, "remote_tag": call.tag, "local_tag": call.remote_tag.clone().unwrap(),
        "source": call.wire.local().to_string(), "local": recorder.udp.to_string(), "transport": "udp",
    });
    assert_eq!(manifest["sip"], expected);
    assert_eq!(manifest["communication_sessions"], json!([format!("cs-{}", call.call_id)]));
    let participant = |n: u8| {
        let (id, aor, name) = (format!("p-{n}"), format!("sip:party{n}@cs.invalid"), format!("Party {n}"));
        json!({"id": id, "aors": [aor], "name": name})
    };
    assert_eq!(manifest["participants"], json!([participant(1), participant(2)]));
    let invite_at = manifest["metadata"][0]["received"].clone();
    let body =
        json!([{"file": "metadata-0001.xml", "received": invite_at, "understood": true, "problem": null}]);
    assert_eq!(manifest["metadata"], body);
    assert_eq!(recording.read("metadata-0001.xml"), call.metadata.as_bytes());
    let times = [&invite_at, &manifest["start"], &json!(first), &json!(last), &manifest["end"]].map(text);
    // RFC 3339 in UTC sorts as text.
    assert!(times.is_sorted(), "{times:?}");
    let directory =
        format!("{}/{}/{}/{}", &times[1][..4], &times[1][5..7], &times[1][8..10], &times[1][11..13]);
    assert!(recording.path.parent().unwrap().ends_with(directory));
    recorder.stop();
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// RFC 3339 with microseconds.
fn wall(nanos: u64) -> String {
    sipreel::clock::Wall(nanos).to_string()
}

/// RFC 3550 A.8 at 8,000 Hz, in whole numbers as it is given there, from the arrival times of the file.
fn jitter_ms(packets: &[&Datagram]) -> f64 {
    let transit = |datagram: &&Datagram| {
        let timestamp = u32::from_be_bytes(datagram.payload[4..8].try_into().unwrap());
        ((u128::from(datagram.at) * 8_000 / 1_000_000_000) as u32).wrapping_sub(timestamp)
    };
    let transits: Vec<u32> = packets.iter().map(transit).collect();
    let scaled = transits.windows(2).fold(0, |jitter, pair| {
        let distance = (pair[1].wrapping_sub(pair[0]) as i32).abs();
        jitter + distance - ((jitter + 8) >> 4)
    });
    f64::from(scaled) / 16.0 / 8.0
}

#[test]
fn metadata_that_cannot_be_understood_is_kept() {
    let mut recorder = Recorder::start();
    let bomb = {
        let mut entities = String::from("<!ENTITY a0 \"ha\">");
        for n in 1..20 {
            let before = format!("&a{};", n - 1);
            entities += &format!("<!ENTITY a{n} \"{}\">", before.repeat(10));
        }
        format!(
            "<?xml version=\"1.0\"?><!DOCTYPE recording [{entities}]>\
             <recording xmlns=\"urn:ietf:params:xml:ns:recording:1\"><session session_id=\"&a19;\"/></recording>"
        )
    };
    let deep = format!("<recording>{}", "<a>".repeat(20_000));
    let bodies =
        ["".to_owned(), "no XML at all".into(), "<recording><session></recording>".into(), deep, bomb];
    let patient = Call::tcp(recorder.tcp);
    for (n, metadata) in bodies.iter().enumerate() {
        let mut call = Call::tcp(recorder.tcp);
        call.metadata = metadata.clone();
        let ports = call.establish();
        let mut leg = Leg::new(recorder.udp.ip(), ports[0], 1);
        leg.burst(3);
        recorder.stats_when("packets are received", |stats| {
            number(&stats["media"], "received_packets") == 3 * (n as u64 + 1)
        });
        call.hang_up();
        let recording = recorder.committed(n + 1).remove(n);
        recording.check_files();
        assert_eq!(recording.manifest["metadata"][0]["understood"], false, "{metadata:.60}");
        assert!(recording.manifest["metadata"][0]["problem"].is_string());
        assert_eq!(recording.read("metadata-0001.xml"), metadata.as_bytes());
        assert_eq!(recording.pcap().payloads_to(ports[0]), leg.sent);
    }
    drop(patient);
    let stats = recorder.quiet();
    assert_eq!(stats["recordings"]["metadata_not_understood"], bodies.len());
    assert_eq!(stats["recordings"]["metadata_bodies"], bodies.len());
    recorder.stop();
}

/// In raw format what has no place in a file of codec bytes is counted by cause; every other codec is a dump that Wireshark
/// reads.
#[test]
fn raw_files_of_other_codecs() {
    let mut recorder = Setup::new().flag("--format", "raw").start();
    let mut call = Call::udp(recorder.udp);
    call.lines = vec![
        Line { format: "8 101", attributes: "a=rtpmap:101 telephone-event/8000\r\na=sendonly\r\n", ..PCMU },
        Line { format: "9", attributes: "a=sendonly\r\n", ..PCMU.label("2") },
        Line { format: "96", attributes: "a=rtpmap:96 opus/48000/2\r\na=sendonly\r\n", ..PCMU.label("3") },
    ];
    let ports = call.establish();
    let ip = recorder.udp.ip();
    let mut legs: Vec<Leg> = ports.iter().map(|port| Leg::new(ip, *port, u32::from(*port))).collect();
    for (leg, payload_type) in legs.iter_mut().zip([8, 9, 96]) {
        leg.payload_type = payload_type;
        leg.burst(5);
        leg.send_rtcp();
    }
    legs[0].payload_type = 101;
    legs[0].send(&[1, 0x0a, 0, 160]);
    recorder.stats_when("all packets have been received", |stats| stats["media"]["received_packets"] == 19);
    call.hang_up();
    let recording = recorder.recording();
    recording.check_whole();
    let payloads =
        |leg: &Leg| leg.sent[..5].iter().flat_map(|packet| packet[12..].to_vec()).collect::<Vec<u8>>();
    assert_eq!(recording.read("1.alaw"), payloads(&legs[0]));
    // The second party's first packet has its place by its arrival, some milliseconds after the first party's.
    assert!(recording.read("2.g722").ends_with(&payloads(&legs[1])));
    let dump = recording.read("3.rtp");
    let line = format!("#!rtpplay1.0 {ip}/{}\n", ports[2]);
    assert!(dump.starts_with(line.as_bytes()));
    let mut rest = &dump[line.len() + 16..];
    let mut dumped = Vec::new();
    while !rest.is_empty() {
        let (record, packet) =
            (u16::from_be_bytes([rest[0], rest[1]]), u16::from_be_bytes([rest[2], rest[3]]));
        if packet > 0 {
            dumped.push(rest[8..usize::from(record)].to_vec());
        }
        rest = &rest[usize::from(record)..];
    }
    assert_eq!(dumped, legs[2].sent);
    let stats = recorder.quiet();
    assert_eq!(stats["media"]["dropped"]["rtcp_in_raw"], 2, "a dump has its RTCP");
    assert_eq!(stats["media"]["dropped"]["other_payload_in_raw"], 1);
    if peers::installed(&["tshark"]) && peers::tshark_reads_rtpdump() {
        let streams = peers::rtp_streams(&recording.file("3.rtp"));
        assert_eq!((streams.len(), streams[0].packets, streams[0].lost), (1, 5, 0));
    }
    recorder.stop();
}
