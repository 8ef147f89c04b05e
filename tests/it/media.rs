//! RTP as a party of the call sends it, and the tones that it carries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use crate::recorder::PATIENCE;

/// Bytes and clock ticks of 20 ms of G.711.
pub const FRAME: usize = 160;
pub const PTIME: Duration = Duration::from_millis(20);

/// One party's RTP stream. It remembers what it has sent.
pub struct Leg {
    rtp: UdpSocket,
    rtcp: UdpSocket,
    to: SocketAddr,
    pub ssrc: u32,
    pub payload_type: u8,
    pub sequence: u16,
    pub timestamp: u32,
    /// Every datagram to the RTP port, in the order in which it was sent.
    pub sent: Vec<Vec<u8>>,
}

impl Leg {
    pub fn new(ip: IpAddr, port: u16, ssrc: u32) -> Leg {
        Leg::between(facing(ip), SocketAddr::new(ip, port), ssrc)
    }

    pub fn between(from: IpAddr, to: SocketAddr, ssrc: u32) -> Leg {
        let (rtp, rtcp) = pair(from);
        Leg {
            rtp,
            rtcp,
            to,
            ssrc,
            payload_type: 0,
            // Near the turn-over, so that every test has it.
            sequence: 65_530,
            timestamp: 0xffff_ff00,
            sent: Vec::new(),
        }
    }

    pub fn to(&self) -> SocketAddr {
        self.to
    }

    pub fn socket(&self) -> &UdpSocket {
        &self.rtp
    }

    /// Where its RTP comes from.
    pub fn source(&self) -> SocketAddr {
        self.rtp.local_addr().unwrap()
    }

    /// The next packet with this payload, not yet sent.
    pub fn packet(&mut self, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x80, self.payload_type];
        packet.extend(self.sequence.to_be_bytes());
        packet.extend(self.timestamp.to_be_bytes());
        packet.extend(self.ssrc.to_be_bytes());
        packet.extend(payload);
        self.sequence = self.sequence.wrapping_add(1);
        self.timestamp = self.timestamp.wrapping_add(payload.len() as u32);
        packet
    }

    pub fn send_datagram(&mut self, datagram: Vec<u8>) {
        self.rtp.send_to(&datagram, self.to).unwrap();
        self.sent.push(datagram);
    }

    pub fn send(&mut self, payload: &[u8]) {
        let packet = self.packet(payload);
        self.send_datagram(packet);
    }

    /// So many packets at once, each with a payload of its own.
    pub fn burst(&mut self, packets: usize) {
        for _ in 0..packets {
            let payload = noise(self.ssrc, self.sequence);
            self.send(&payload);
            // Never more than the socket's buffer takes, even if the recorder does not run for a while.
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// The next RTCP packet that comes to the RTCP port, or to that of RTP; and where it is from.
    #[track_caller]
    pub fn receive_rtcp(&self, mux: bool) -> (SocketAddr, Vec<u8>) {
        let socket = if mux { &self.rtp } else { &self.rtcp };
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut packet = vec![0; 2_048];
        let (len, from) = socket.recv_from(&mut packet).expect("no RTCP came");
        packet.truncate(len);
        (from, packet)
    }

    /// A sender report without report blocks (RFC 3550 §6.4.1).
    pub fn send_rtcp(&mut self) {
        let mut report = vec![0x80, 200, 0, 6];
        report.extend(self.ssrc.to_be_bytes());
        report.extend([0; 20]);
        self.rtcp.send_to(&report, SocketAddr::new(self.to.ip(), self.to.port() + 1)).unwrap();
    }
}

/// An RTP socket, and an RTCP socket on the next port.
fn pair(ip: IpAddr) -> (UdpSocket, UdpSocket) {
    loop {
        let rtp = UdpSocket::bind((ip, 0)).unwrap();
        let next = rtp.local_addr().unwrap().port().wrapping_add(1);
        match UdpSocket::bind((ip, next)) {
            Ok(rtcp) if next != 0 => return (rtp, rtcp),
            _ => continue,
        }
    }
}

/// Our address on the way to another.
pub fn facing(ip: IpAddr) -> IpAddr {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.connect((ip, 9)).unwrap();
    socket.local_addr().unwrap().ip()
}

/// One packet of each leg every 20 ms, the first of them now.
pub fn talk(legs: &mut [&mut Leg], packets: usize) {
    let start = Instant::now();
    for n in 0..packets {
        thread::sleep((start + PTIME * n as u32).saturating_duration_since(Instant::now()));
        for leg in legs.iter_mut() {
            let payload = noise(leg.ssrc, leg.sequence);
            leg.send(&payload);
        }
    }
}

/// A payload that no other packet has.
pub fn noise(ssrc: u32, sequence: u16) -> [u8; FRAME] {
    let mut state = u64::from(ssrc) << 16 | u64::from(sequence) | 1 << 63;
    [0; FRAME].map(|_: u8| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
}

/// µ-law bytes of a sine of `hertz` at 8,000 Hz, a quarter of full scale.
pub fn tone(hertz: f64, samples: usize) -> Vec<u8> {
    (0..samples)
        .map(|n| (8_000.0 * (std::f64::consts::TAU * hertz * n as f64 / 8_000.0).sin()) as i16)
        .map(ulaw)
        .collect()
}

/// G.711 µ-law of the code whose value is nearest.
fn ulaw(sample: i16) -> u8 {
    let distance = |code: &u8| (i32::from(linear(*code)) - i32::from(sample)).abs();
    (0..=u8::MAX).min_by_key(distance).unwrap()
}

/// What a µ-law code means (ITU-T G.711 table 2a, scaled to 16 bits).
pub fn linear(code: u8) -> i16 {
    let code = !code;
    let magnitude = ((i16::from(code & 0x0f) << 3) + 0x84) << (code >> 4 & 7);
    let value = magnitude - 0x84;
    if code & 0x80 == 0 { value } else { -value }
}

#[test]
fn the_law_is_that_of_g711() {
    // Ends, middle and one step of each segment, from table 2a.
    for (code, value) in [
        (0xff, 0),
        (0x7f, 0),
        (0x80, 32_124),
        (0x00, -32_124),
        (0xfe, 8),
        (0xef, 132),
        (0xdf, 396),
        (0x90, 15_996),
    ] {
        assert_eq!(linear(code), value, "{code:#x}");
    }
    assert_eq!(ulaw(32_000), 0x80);
    assert_eq!(linear(ulaw(-400)), -396);
}
