//! The three media sources record the same: what one writes of a load, the others write to the byte. And what each takes and
//! leaves of what is on the wire.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::lab::{self, Lab};
use crate::media::{FRAME, Leg, noise};
use crate::recorder::{PATIENCE, Recorder, Setup, number};
use crate::recording::{Datagram, Recording};
use crate::src::{Call, Line, PCMU};

const SOURCES: [&str; 3] = ["sockets", "steered", "xdp"];

/// What a stream has in its file, or its port in the capture.
type Content = Vec<Vec<u8>>;

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

/// A call from the load's end, and a leg to each of its ports.
pub fn call(recorder: &Recorder, lines: Vec<Line>, from: &str, ssrc: u32) -> (Call, Vec<Leg>) {
    let mut call = Call::udp(recorder.udp);
    call.lines = lines;
    let ports = call.establish();
    let leg = |(n, &port): (usize, &u16)| {
        Leg::between(ip(from), SocketAddr::new(recorder.udp.ip(), port), ssrc + n as u32)
    };
    let legs = ports.iter().enumerate().map(leg).collect();
    (call, legs)
}

pub fn received(recorder: &Recorder, packets: u64) {
    let what = format!("{packets} packets have been received");
    recorder.stats_when(&what, |stats| number(&stats["media"], "received_packets") >= packets);
}

/// What the records of the port say besides their payload is what went over the wire, and when.
fn check(datagrams: &[&Datagram], from: IpAddr, to: IpAddr, since: u64) {
    let now = wall();
    let mut last = since;
    for datagram in datagrams {
        assert_eq!((datagram.from.ip(), datagram.to.ip()), (from, to));
        assert!((last..=now).contains(&datagram.at), "{last} {} {now}", datagram.at);
        last = datagram.at;
    }
}

/// Nanoseconds since 1970.
fn wall() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
}

/// A load with everything that media has, recorded through one source: by call and port, RTP and RTCP.
fn captured(source: &str, family: usize) -> Vec<Content> {
    let Some(lab) = Lab::up() else { return Vec::new() };
    let mut recorder = Setup::new().ip(lab::RECORDER[family]).lab(&lab).source(source).start();
    assert_eq!(recorder.logged("ready")["media_source"], source);
    let since = wall();
    let lines = vec![PCMU, PCMU.label("2")];
    let calls: Vec<(Call, Vec<Leg>)> = lab.inside("load", || {
        let mut calls: Vec<_> =
            (0..3).map(|n| call(&recorder, lines.clone(), lab::LOAD[family], 0x5000_0000 + n * 16)).collect();
        for round in 0..60_u16 {
            for (_, legs) in &mut calls {
                legs.iter_mut().for_each(|leg| wild(leg, round));
            }
        }
        received(&recorder, 3 * 2 * (60 + 2 + 6 + 3 - 1));
        calls.iter_mut().for_each(|(call, _)| call.hang_up());
        calls
    });
    let recordings = recorder.committed(3);
    recorder.quiet();
    recorder.stop();
    let mut contents = Vec::new();
    for (call, legs) in &calls {
        let recording =
            recordings.iter().find(|one| one.manifest["sip"]["call_id"] == call.call_id.as_str()).unwrap();
        recording.check_whole();
        let pcap = recording.pcap();
        for leg in legs {
            let rtp = pcap.to_port(leg.to().port());
            check(&rtp, ip(lab::LOAD[family]), recorder.udp.ip(), since);
            assert!(rtp.iter().all(|datagram| datagram.is_from_wire() == (source == "xdp")));
            let rtp = pcap.payloads_to(leg.to().port());
            assert!(rtp == leg.sent, "{source}");
            let rtcp = pcap.payloads_to(leg.to().port() + 1);
            assert_eq!(rtcp.len(), 6, "{source}");
            contents.extend([rtp, rtcp]);
        }
    }
    contents
}

/// The n-th thing that a leg sends: packets of all lengths, lost, swapped, twice, RTCP, and what is no RTP.
fn wild(leg: &mut Leg, n: u16) {
    let payload: Vec<u8> = noise(leg.ssrc, n).repeat(9)[..usize::from(n) * 23 + 1].to_vec();
    let packet = leg.packet(&payload);
    match n {
        7 => {}
        20 | 40 => {
            let later = leg.packet(&payload);
            leg.send_datagram(later);
            leg.send_datagram(packet);
        }
        10 | 11 | 30 | 50 | 51 | 52 => {
            leg.send_datagram(packet.clone());
            leg.send_datagram(packet);
        }
        _ => leg.send_datagram(packet),
    }
    if n % 10 == 3 {
        leg.send_rtcp();
    }
    if n % 25 == 4 {
        // A STUN binding request, and one byte of nothing.
        leg.send_datagram([&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat());
    }
}

fn captures_agree(family: usize) {
    let [sockets, steered, xdp] = SOURCES.map(|source| captured(source, family));
    assert!(sockets == steered && sockets == xdp);
}

#[test]
fn captures_agree_over_ipv4() {
    captures_agree(0);
}

#[test]
fn captures_agree_over_ipv6() {
    captures_agree(1);
}

/// Three codecs without loss in raw files: G.711 of the first party, who begins the file, of one who comes later, and a dump.
fn raw(source: &str, family: usize) -> Vec<Content> {
    let Some(lab) = Lab::up() else { return Vec::new() };
    let setup = Setup::new().ip(lab::RECORDER[family]).lab(&lab).source(source).flag("--format", "raw");
    let mut recorder = setup.start();
    let opus = Line { format: "96", attributes: "a=rtpmap:96 opus/48000/2\r\na=sendonly\r\n", ..PCMU };
    let lines = vec![PCMU, PCMU.label("2"), opus.label("3")];
    let sent: Vec<Content> = lab.inside("load", || {
        let (mut call, mut legs) = call(&recorder, lines, lab::LOAD[family], 0x6000_0000);
        legs[2].payload_type = 96;
        for n in 0..50 {
            legs.iter_mut().for_each(|leg| leg.send(&noise(leg.ssrc, n)));
        }
        legs[2].send_rtcp();
        received(&recorder, 151);
        call.hang_up();
        legs.into_iter().map(|leg| leg.sent).collect()
    });
    let recording = recorder.recording();
    recording.check_whole();
    recorder.quiet();
    recorder.stop();
    let payloads =
        |leg: usize| sent[leg].iter().flat_map(|packet| packet[12..].to_vec()).collect::<Vec<u8>>();
    assert!(recording.read("1.ulaw") == payloads(0), "{source}");
    let later = recording.read("2.ulaw");
    let silence = later.len() - 50 * FRAME;
    assert!(later[..silence].iter().all(|&byte| byte == 0xff), "{source}");
    assert!(later[silence..] == payloads(1), "{source}");
    let (rtp, rtcp) = dumped(&recording);
    assert!(rtp == sent[2], "{source}");
    assert_eq!(rtcp.len(), 1, "{source}");
    vec![vec![recording.read("1.ulaw")], vec![later[silence..].to_vec()], rtp, rtcp]
}

/// RTP and RTCP of `3.rtp`, without their times. They came on two ports, which have no order between them.
fn dumped(recording: &Recording) -> (Content, Content) {
    let bytes = recording.read("3.rtp");
    let head = bytes.iter().position(|&byte| byte == b'\n').unwrap() + 1 + 16;
    let mut rest = &bytes[head..];
    let (mut rtp, mut rtcp) = (Content::new(), Content::new());
    while !rest.is_empty() {
        let length = usize::from(u16::from_be_bytes([rest[0], rest[1]]));
        // The length of RTP alone is given.
        let packets = if rest[2..4] == [0, 0] { &mut rtcp } else { &mut rtp };
        packets.push(rest[8..length].to_vec());
        rest = &rest[length..];
    }
    (rtp, rtcp)
}

fn raw_files_agree(family: usize) {
    let [sockets, steered, xdp] = SOURCES.map(|source| raw(source, family));
    assert!(sockets == steered && sockets == xdp);
}

#[test]
fn raw_files_agree_over_ipv4() {
    raw_files_agree(0);
}

#[test]
fn raw_files_agree_over_ipv6() {
    raw_files_agree(1);
}

/// One call over AF_XDP: `send` sends from the load's end, and says how many packets are to be received.
fn one_call(
    lab: &Lab,
    [from, to]: [&str; 2],
    send: impl FnOnce(&mut Leg) -> u64 + Send,
) -> (Recorder, Recording, Leg) {
    let recorder = Setup::new().ip(to).lab(lab).source("xdp").start();
    let leg = lab.inside("load", || {
        let (mut call, mut legs) = call(&recorder, vec![PCMU], from, 0x7000_0000);
        let mut leg = legs.remove(0);
        received(&recorder, send(&mut leg));
        call.hang_up();
        leg
    });
    let recording = recorder.recording();
    recording.check_files();
    recorder.quiet();
    (recorder, recording, leg)
}

/// One tag and two, as they come where the network card leaves them in the frame.
#[test]
fn a_tagged_frame_is_recorded_with_its_tags() {
    for family in [0, 1] {
        let Some(lab) = Lab::up() else { return };
        let (from, to) = (lab::LOAD[family], lab::RECORDER[family]);
        let frames = |leg: &mut Leg| {
            let mut frame = |n: u16| {
                let packet = leg.packet(&noise(leg.ssrc, n));
                let ports = (leg.source().port(), leg.to().port());
                leg.sent.push(packet.clone());
                tagged(n % 2 == 1, (ip(from), ip(to)), ports, &packet)
            };
            (0..20).map(&mut frame).collect::<Vec<_>>()
        };
        let mut sent = Vec::new();
        let (mut recorder, recording, leg) = one_call(&lab, [from, to], |leg| {
            sent = frames(leg);
            let wire = packet_socket();
            sent.iter().for_each(|frame| assert_eq!(wire.send(frame).unwrap(), frame.len()));
            20
        });
        let pcap = recording.pcap();
        let arrived = pcap.to_port(leg.to().port());
        assert_eq!(arrived.len(), 20);
        for (datagram, (frame, packet)) in arrived.iter().zip(sent.iter().zip(&leg.sent)) {
            // What follows is Ethernet's padding.
            assert!(datagram.frame.starts_with(frame) && datagram.payload == *packet);
        }
        recording.check_whole();
        recorder.stop();
    }
}

/// Behind tag 7, and with two tags behind a service tag of 9.
fn tagged(two: bool, (from, to): (IpAddr, IpAddr), ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    use etherparse::{PacketBuilder, VlanId};
    let ends = PacketBuilder::ethernet2([2, 0, 0, 0, 0x99, 1], [2, 0, 0, 0, 0x99, 2]);
    let vlan = |id| VlanId::try_new(id).unwrap();
    let tags = if two { ends.double_vlan(vlan(9), vlan(7)) } else { ends.single_vlan(vlan(7)) };
    let packet = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => tags.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => tags.ipv6(from.octets(), to.octets(), 64),
        _ => unreachable!("both are of one family"),
    };
    let mut frame = Vec::new();
    packet.udp(ports.0, ports.1).write(&mut frame, payload).unwrap();
    frame
}

/// Sends whole frames from the lab's interface.
fn packet_socket() -> Socket {
    let socket = Socket::new(Domain::PACKET, Type::RAW, None).unwrap();
    // SAFETY: a zeroed address of this family with the length of its type; the name ends in a zero.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let address = &mut *storage.cast::<libc::sockaddr_ll>();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_ifindex = libc::if_nametoindex(c"lab0".as_ptr()) as i32;
            *length = size_of::<libc::sockaddr_ll>() as u32;
            Ok(())
        })
        .unwrap()
    };
    socket.bind(&address).unwrap();
    socket
}

#[test]
fn a_frame_with_ip_options_is_recorded_with_them() {
    let Some(lab) = Lab::up() else { return };
    // Router alert, no operation three times, end of list.
    const OPTIONS: [u8; 8] = [148, 4, 0, 0, 1, 1, 1, 0];
    let (mut recorder, recording, leg) = one_call(&lab, [lab::LOAD[0], lab::RECORDER[0]], |leg| {
        // SAFETY: the option's value is an array of the length given.
        let set = unsafe {
            libc::setsockopt(
                leg.socket().as_raw_fd(),
                libc::IPPROTO_IP,
                libc::IP_OPTIONS,
                OPTIONS.as_ptr().cast(),
                OPTIONS.len() as u32,
            )
        };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
        leg.burst(20);
        20
    });
    let pcap = recording.pcap();
    assert!(pcap.payloads_to(leg.to().port()) == leg.sent);
    for datagram in pcap.to_port(leg.to().port()) {
        assert_eq!((datagram.frame[14], &datagram.frame[34..42]), (0x47, &OPTIONS[..]));
    }
    recording.check_whole();
    recorder.stop();
}

/// Fragments go the kernel's way, which puts them together. What is then longer than a receive buffer is cut, counted, and in
/// the manifest.
#[test]
fn a_fragmented_packet_is_recorded_from_a_socket() {
    for family in [0, 1] {
        let Some(lab) = Lab::up() else { return };
        let (mut recorder, recording, leg) =
            one_call(&lab, [lab::LOAD[family], lab::RECORDER[family]], |leg| {
                for length in [160, 1_700, 3_000, 160] {
                    let payload = noise(leg.ssrc, length).repeat(20)[..usize::from(length)].to_vec();
                    leg.send(&payload);
                }
                4
            });
        let recorded = recording.pcap().payloads_to(leg.to().port());
        // The two ways have no order between them.
        let of = |length: usize| recorded.iter().filter(|packet| packet.len() == length).collect::<Vec<_>>();
        assert_eq!(of(172), [&leg.sent[0], &leg.sent[3]]);
        assert_eq!(of(1_712), [&leg.sent[1]]);
        let cut: Vec<_> = recorded.iter().filter(|packet| packet.len() > 1_712).collect();
        assert!(cut.len() == 1 && leg.sent[2].starts_with(cut[0]) && cut[0].len() == 1_924);
        assert_eq!(recorder.stats()["media"]["truncated"], 1);
        let problems = recording.manifest["problems"].to_string();
        assert!(problems.contains("cut"), "{problems}");
        recorder.stop();
    }
}

/// On an interface with a larger MTU: a socket of the kernel takes it.
#[test]
fn a_frame_that_is_too_long_for_af_xdp_is_recorded() {
    let Some(lab) = Lab::up() else { return };
    for end in ["recorder", "load"] {
        lab.ip(end, "link set lab0 mtu 3000");
    }
    let (mut recorder, recording, leg) = one_call(&lab, [lab::LOAD[0], lab::RECORDER[0]], |leg| {
        for length in 1_700..1_800 {
            leg.send(&vec![7; length]);
        }
        100
    });
    let mut recorded = recording.pcap().payloads_to(leg.to().port());
    recorded.sort_by_key(Vec::len);
    assert!(recorded == leg.sent);
    assert_eq!(recorder.stats()["media"]["kernel_dropped"], 0);
    recording.check_whole();
    recorder.stop();
}

/// Everything that is not media of ours stays with the kernel: ARP, ICMP, other ports, other addresses.
#[test]
fn what_is_not_ours_is_left_to_the_kernel() {
    let Some(lab) = Lab::up() else { return };
    // Resolved from here on, and a host behind the recorder that is none of its addresses.
    lab.ip("load", "neighbour del 10.99.0.2 dev lab0");
    lab.ip("load", "neighbour replace 10.99.0.77 lladdr 02:00:00:00:99:02 dev lab0 nud permanent");
    let stranger = lab.inside("recorder", || UdpSocket::bind((lab::RECORDER[0], 40_000)).unwrap());
    stranger.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut recorder, recording, leg) = one_call(&lab, [lab::LOAD[0], lab::RECORDER[0]], |leg| {
        assert_eq!(ping(lab::RECORDER[0]), b"ping");
        let socket = leg.socket();
        socket.send_to(b"for another", (lab::RECORDER[0], 40_000)).unwrap();
        let mut buffer = [0; 64];
        let (length, from) = stranger.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from), (&b"for another"[..], leg.source()));
        for _ in 0..10 {
            socket.send_to(&[0x80; 172], ("10.99.0.77", leg.to().port())).unwrap();
        }
        leg.burst(10);
        10
    });
    assert!(recording.pcap().payloads_to(leg.to().port()) == leg.sent);
    assert_eq!(recorder.stats()["media"]["received_packets"], 10);
    let neighbours = lab.ip("load", "neighbour show 10.99.0.2 dev lab0");
    assert!(neighbours.contains("02:00:00:00:99:02"), "{neighbours}");
    recording.check_whole();
    recorder.stop();
}

/// What comes back in an echo reply.
fn ping(to: &str) -> Vec<u8> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let echo = [&[8, 0, 0, 0, 0x51, 0x12, 0, 1][..], b"ping"].concat();
    let sum: u32 = echo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    let echo = [&echo[..2], &sum.to_be_bytes(), &echo[4..]].concat();
    socket.send_to(&echo, &SocketAddr::new(ip(to), 0).into()).unwrap();
    let mut buffer = [0; 256];
    let length = std::io::Read::read(&mut &socket, &mut buffer).unwrap();
    // Behind the IPv4 header: type 0 is a reply.
    assert_eq!(buffer[20], 0);
    buffer[28..length].to_vec()
}
