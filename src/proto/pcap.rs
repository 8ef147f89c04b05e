//! Nanosecond pcap of Ethernet frames that were never on an Ethernet: the datagrams and SIP messages of a recording under the
//! addresses and ports they really had (draft-ietf-opsawg-pcap).

use etherparse::{IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, PacketBuilderStep, UdpHeader};
use std::net::{IpAddr, SocketAddr};

use crate::clock::Wall;

const SNAPLEN: u32 = 262_144;
const LINKTYPE_ETHERNET: u32 = 1;

/// What a file begins with: magic 0xa1b23c4d (nanoseconds), version 2.4, all little-endian.
pub const FILE_HEADER: [u8; 24] = file_header();

/// The capture of a recording.
pub const FILE_NAME: &str = "call.pcap";

/// Seconds, nanoseconds, bytes kept, bytes on the wire.
pub const RECORD_HEADER: usize = 16;
const ETHERNET: usize = 14;
/// Where the IP header begins in a frame.
const IP: usize = ETHERNET;
const UDP: usize = UdpHeader::LEN;
const TCP: usize = 20;
const TTL: u8 = 64;

const fn file_header() -> [u8; 24] {
    let [m0, m1, m2, m3] = 0xa1b2_3c4d_u32.to_le_bytes();
    let [s0, s1, s2, s3] = SNAPLEN.to_le_bytes();
    let [l0, l1, l2, l3] = LINKTYPE_ETHERNET.to_le_bytes();
    [m0, m1, m2, m3, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, s0, s1, s2, s3, l0, l1, l2, l3]
}

/// Bytes of the record of a frame of this length.
pub const fn frame_record_len(frame: usize) -> usize {
    RECORD_HEADER + frame
}

/// Writes the record of a frame as it came from the wire to the front of `out` and returns its length. Where `out` is too short
/// the frame is cut, and the record says so; where not even the record header fits, nothing is written.
#[inline]
pub fn write_frame(out: &mut [u8], at: Wall, frame: &[u8]) -> usize {
    let Some((head, rest)) = out.split_first_chunk_mut() else { return 0 };
    let kept = frame.len().min(rest.len());
    write_record_header(head, at, kept, frame.len());
    rest[..kept].copy_from_slice(&frame[..kept]);
    RECORD_HEADER + kept
}

/// Time and length of the frame that follows. `None`: nothing that was written here, as the zeroes are of a write that was
/// not finished.
pub fn record(header: &[u8; RECORD_HEADER]) -> Option<(Wall, usize)> {
    let field = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (seconds, nanos, kept, wire) = (field(0), field(4), field(8), field(12));
    let sound =
        seconds > 0 && nanos < 1_000_000_000 && kept > ETHERNET as u32 && kept <= SNAPLEN && kept <= wire;
    sound.then(|| (Wall(u64::from(seconds) * 1_000_000_000 + u64::from(nanos)), kept as usize))
}

/// Makes a record longer: zeroes have been put behind its frame, where Ethernet has its padding and trailer. Whoever reads the
/// frame goes by the lengths of IP and UDP.
pub fn lengthen(record: &mut [u8], by: usize) {
    for field in [8, 12] {
        if let Some(length) = record.get_mut(field..field + 4) {
            let old = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
            length.copy_from_slice(&(old + by as u32).to_le_bytes());
        }
    }
}

/// The record of one UDP flow: headers built once, patched per packet. Those of IPv4 lie in one cache line.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Frame {
    ipv4: bool,
    /// IPv4: identification of the next datagram.
    identification: u16,
    /// IPv4: sum of the header's words without length, identification and checksum.
    sum: u32,
    /// Ethernet, IP and UDP header of an empty datagram; those of IPv4 are shorter.
    head: [u8; HEADERS_IPV6],
}

const HEADERS_IPV4: usize = ETHERNET + Ipv4Header::MIN_LEN + UDP;
const HEADERS_IPV6: usize = ETHERNET + Ipv6Header::LEN + UDP;

impl Frame {
    /// IPv4-mapped IPv6 addresses become IPv4.
    pub fn udp(from: SocketAddr, to: SocketAddr) -> Frame {
        let (source, destination) = (from.port(), to.port());
        let ip = ethernet_and_ip(from.ip(), to.ip(), IpNumber::UDP);
        let mut head = [0; HEADERS_IPV6];
        let built = ip.udp(source, destination).write_to_slice(&mut head, &[]);
        let ipv4 = built.expect("the room is that of the longest headers") == HEADERS_IPV4;
        let mut frame = Frame { ipv4, identification: 0, sum: 0, head };
        if ipv4 {
            // IPv4: a UDP checksum of 0 says that there is none (RFC 768). IPv6 has no such thing (RFC 8200 §8.1).
            frame.head[HEADERS_IPV4 - 2..HEADERS_IPV4].fill(0);
            frame.head[IP + 2..IP + 4].fill(0);
            frame.head[IP + 10..IP + 12].fill(0);
            frame.sum = frame.head[IP..IP + Ipv4Header::MIN_LEN].chunks_exact(2).map(word).sum();
        }
        frame
    }

    /// Whether its headers are those of this flow.
    #[inline]
    pub fn is_of(&self, from: SocketAddr, to: SocketAddr) -> bool {
        let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()];
        match (from.ip().to_canonical(), to.ip().to_canonical()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let addresses = [from.octets(), to.octets()];
                self.ipv4
                    && self.head[IP + 12..IP + 20] == *addresses.as_flattened()
                    && self.head[IP + 20..IP + 24] == *ports.as_flattened()
            }
            (from, to) => {
                let addresses = [octets(from), octets(to)];
                !self.ipv4
                    && self.head[IP + 8..IP + 40] == *addresses.as_flattened()
                    && self.head[IP + 40..IP + 44] == *ports.as_flattened()
            }
        }
    }

    /// Bytes of the whole record of a payload of this length.
    pub fn record_len(&self, payload: usize) -> usize {
        RECORD_HEADER + self.headers() + payload.min(self.payload_max())
    }

    /// Writes one record to the front of `out` and returns its length. Where `out`, or the length field of IP, is too short
    /// the payload is cut, and the record says so (fewer bytes kept than were on the wire); where not even the headers fit, nothing
    /// is written.
    pub fn write(&mut self, out: &mut [u8], at: Wall, payload: &[u8]) -> usize {
        let sent = &payload[..payload.len().min(self.payload_max())];
        let Some((record, rest)) = out.split_first_chunk_mut() else { return 0 };
        let (kept, headers) = if self.ipv4 {
            let Some((head, rest)) = rest.split_first_chunk_mut() else { return 0 };
            *head = self.ipv4_headers(sent.len());
            (copy_cut(rest, sent), HEADERS_IPV4)
        } else {
            let Some((head, rest)) = rest.split_first_chunk_mut() else { return 0 };
            *head = self.ipv6_headers(sent);
            (copy_cut(rest, sent), HEADERS_IPV6)
        };
        write_record_header(record, at, headers + kept, headers + payload.len());
        RECORD_HEADER + headers + kept
    }

    fn ipv4_headers(&mut self, payload: usize) -> [u8; HEADERS_IPV4] {
        let mut head = [0; HEADERS_IPV4];
        head.copy_from_slice(&self.head[..HEADERS_IPV4]);
        let total = (Ipv4Header::MIN_LEN + UDP + payload) as u16;
        let sum = self.sum + u32::from(total) + u32::from(self.identification);
        let folded = (sum & 0xffff) + (sum >> 16);
        let checksum = !((folded + (folded >> 16)) as u16);
        head[IP + 2..IP + 4].copy_from_slice(&total.to_be_bytes());
        head[IP + 4..IP + 6].copy_from_slice(&self.identification.to_be_bytes());
        head[IP + 10..IP + 12].copy_from_slice(&checksum.to_be_bytes());
        let udp = IP + Ipv4Header::MIN_LEN;
        head[udp + 4..udp + 6].copy_from_slice(&((UDP + payload) as u16).to_be_bytes());
        self.identification = self.identification.wrapping_add(1);
        head
    }

    fn ipv6_headers(&self, payload: &[u8]) -> [u8; HEADERS_IPV6] {
        let mut head = self.head;
        let length = (UDP + payload.len()) as u16;
        head[IP + 4..IP + 6].copy_from_slice(&length.to_be_bytes());
        let (ip, udp) = head[IP..].split_at_mut(Ipv6Header::LEN);
        let header = UdpHeader {
            source_port: u16::from_be_bytes([udp[0], udp[1]]),
            destination_port: u16::from_be_bytes([udp[2], udp[3]]),
            length,
            checksum: 0,
        };
        let (source, destination) = (ip[8..24].try_into(), ip[24..40].try_into());
        if let (Ok(source), Ok(destination)) = (source, destination) {
            let checksum = header.calc_checksum_ipv6_raw(source, destination, payload).unwrap_or(0);
            udp[4..6].copy_from_slice(&length.to_be_bytes());
            udp[6..8].copy_from_slice(&checksum.to_be_bytes());
        }
        head
    }

    /// What a 16-bit length field can tell: IPv4 counts its own header, IPv6 does not.
    fn payload_max(&self) -> usize {
        let ip = if self.ipv4 { Ipv4Header::MIN_LEN } else { 0 };
        usize::from(u16::MAX) - ip - UDP
    }

    fn headers(&self) -> usize {
        if self.ipv4 { HEADERS_IPV4 } else { HEADERS_IPV6 }
    }
}

/// As much of `bytes` as `out` has room for.
fn copy_cut(out: &mut [u8], bytes: &[u8]) -> usize {
    let kept = bytes.len().min(out.len());
    out[..kept].copy_from_slice(&bytes[..kept]);
    kept
}

/// A TCP connection as far as a capture shows it: no handshake, each SIP message pushed and acknowledged by the next of the
/// other side, so that Wireshark follows and reassembles it.
#[derive(Clone, Debug)]
pub struct Tcp {
    local: SocketAddr,
    peer: SocketAddr,
    /// Next sequence number from the peer, and from us.
    received: u32,
    sent: u32,
}

impl Tcp {
    /// Payload of one record at most: usual messages stay in one, and longer ones do not waste much of a write block.
    pub const SEGMENT_MAX: usize = 16 * 1024;
    /// Bytes of a record besides its payload, at most.
    pub const OVERHEAD: usize = RECORD_HEADER + IP + Ipv6Header::LEN + TCP;

    pub fn new(local: SocketAddr, peer: SocketAddr) -> Tcp {
        Tcp { local, peer, received: 1, sent: 1 }
    }

    pub fn is_of(&self, local: SocketAddr, peer: SocketAddr) -> bool {
        self.local == local && self.peer == peer
    }

    /// Writes one record to the front of `out` and returns its length; 0 when it does not fit. `segment` has at most
    /// [`Tcp::SEGMENT_MAX`] bytes. The sequence numbers advance in any case: what is missing shows as missing.
    pub fn write(&mut self, out: &mut [u8], at: Wall, received: bool, segment: &[u8]) -> usize {
        let length = segment.len() as u32;
        let (from, to, sequence, acknowledged) = if received {
            (self.peer, self.local, &mut self.received, self.sent)
        } else {
            (self.local, self.peer, &mut self.sent, self.received)
        };
        let first = *sequence;
        *sequence = first.wrapping_add(length);
        let Some((record, frame)) = out.split_first_chunk_mut() else { return 0 };
        let built = ethernet_and_ip(from.ip(), to.ip(), IpNumber::TCP)
            .tcp(from.port(), to.port(), first, u16::MAX)
            .psh()
            .ack(acknowledged)
            .write_to_slice(frame, segment);
        let Ok(wire) = built else { return 0 };
        write_record_header(record, at, wire, wire);
        RECORD_HEADER + wire
    }
}

#[inline]
fn write_record_header(out: &mut [u8; RECORD_HEADER], at: Wall, kept: usize, wire: usize) {
    // Seconds are unsigned in 32 bits: they wrap in 2106.
    out[0..4].copy_from_slice(&((at.0 / 1_000_000_000) as u32).to_le_bytes());
    out[4..8].copy_from_slice(&((at.0 % 1_000_000_000) as u32).to_le_bytes());
    out[8..12].copy_from_slice(&(kept as u32).to_le_bytes());
    out[12..16].copy_from_slice(&(wire as u32).to_le_bytes());
}

fn ethernet_and_ip(from: IpAddr, to: IpAddr, next: IpNumber) -> PacketBuilderStep<IpHeaders> {
    let (from, to) = (from.to_canonical(), to.to_canonical());
    let ip = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            // The length is that of an empty packet; the builder puts in the real one.
            let header = Ipv4Header::new(0, TTL, next, from.octets(), to.octets());
            IpHeaders::Ipv4(header.expect("nothing always fits"), Default::default())
        }
        (from, to) => {
            let header = Ipv6Header {
                hop_limit: TTL,
                next_header: next,
                source: octets(from),
                destination: octets(to),
                ..Default::default()
            };
            IpHeaders::Ipv6(header, Default::default())
        }
    };
    PacketBuilder::ethernet2(mac(from), mac(to)).ip(ip)
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// A locally administered address made of the last four octets, so that both directions of a flow show the same pair.
fn mac(ip: IpAddr) -> [u8; 6] {
    let [.., a, b, c, d] = octets(ip);
    [0x02, 0, a, b, c, d]
}

fn word(pair: &[u8]) -> u32 {
    u32::from(u16::from_be_bytes([pair[0], pair[1]]))
}

/// Reads back what was written, for the tests of this crate.
#[cfg(test)]
pub(crate) mod reading {
    use super::*;

    pub struct Record<'a> {
        pub at: Wall,
        pub wire: usize,
        pub frame: &'a [u8],
    }

    /// The records after the file header. Panics where one is cut off.
    pub fn records(mut bytes: &[u8]) -> Vec<Record<'_>> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let field = |i: usize| u32::from_le_bytes(bytes[i * 4..i * 4 + 4].try_into().unwrap());
            let at = Wall(u64::from(field(0)) * 1_000_000_000 + u64::from(field(1)));
            let (kept, wire) = (field(2) as usize, field(3) as usize);
            assert!(kept <= wire && kept <= SNAPLEN as usize && field(1) < 1_000_000_000);
            records.push(Record { at, wire, frame: &bytes[RECORD_HEADER..RECORD_HEADER + kept] });
            bytes = &bytes[RECORD_HEADER + kept..];
        }
        records
    }

    /// Addresses and UDP payload of a frame. Panics where a checksum is wrong.
    pub fn datagram(frame: &[u8]) -> (SocketAddr, SocketAddr, Vec<u8>) {
        use etherparse::{NetSlice, SlicedPacket, TransportSlice};
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(TransportSlice::Udp(udp)) = packet.transport else { panic!("not UDP") };
        let header = udp.to_header();
        let (from, to): (IpAddr, IpAddr) = match packet.net.unwrap() {
            NetSlice::Ipv4(ip) => {
                let ip = ip.header();
                assert_eq!(ip.header_checksum(), ip.to_header().calc_header_checksum());
                assert_eq!(header.checksum, 0);
                (ip.source_addr().into(), ip.destination_addr().into())
            }
            NetSlice::Ipv6(ip) => {
                let ip = ip.header();
                let sum = header.calc_checksum_ipv6(&ip.to_header(), udp.payload()).unwrap();
                assert_eq!(header.checksum, sum);
                (ip.source_addr().into(), ip.destination_addr().into())
            }
            NetSlice::Arp(_) => panic!("not IP"),
        };
        let ports = (udp.source_port(), udp.destination_port());
        (SocketAddr::new(from, ports.0), SocketAddr::new(to, ports.1), udp.payload().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::reading::{datagram, records};
    use super::*;
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    const AT: Wall = Wall(1_795_336_245_123_456_789);

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn written(frame: &mut Frame, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0xee; 70_000];
        let len = frame.write(&mut out, AT, payload);
        assert!(out[len..].iter().all(|byte| *byte == 0xee), "nothing beyond the record");
        out.truncate(len);
        out
    }

    #[test]
    fn file_header_says_nanoseconds_and_ethernet() {
        let expected = [0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0];
        assert_eq!(FILE_HEADER, expected);
    }

    #[test]
    fn ipv4_record_is_what_etherparse_builds() {
        let mut frame = Frame::udp(addr("192.0.2.1:40000"), addr("198.51.100.250:20000"));
        for (nth, payload) in [&b"hello"[..], b"", &[0xa5; 1472]].into_iter().enumerate() {
            let record = written(&mut frame, payload);
            assert_eq!(record.len(), frame.record_len(payload.len()));
            let mut ip = Ipv4Header::new(0, 64, IpNumber::UDP, [192, 0, 2, 1], [198, 51, 100, 250]).unwrap();
            ip.identification = nth as u16;
            let mut oracle = Vec::new();
            PacketBuilder::ethernet2([2, 0, 192, 0, 2, 1], [2, 0, 198, 51, 100, 250])
                .ip(IpHeaders::Ipv4(ip, Default::default()))
                .udp(40_000, 20_000)
                .write(&mut oracle, payload)
                .unwrap();
            oracle[40..42].fill(0); // The UDP checksum, left out.
            let [read] = &records(&record)[..] else { panic!("one record") };
            assert_eq!(read.frame, oracle);
            assert_eq!((read.at, read.wire), (AT, oracle.len()));
        }
    }

    #[test]
    fn ipv6_record_is_what_etherparse_builds() {
        let (from, to) = (addr("[2001:db8::1]:40000"), addr("[2001:db8::a:b]:20000"));
        let mut frame = Frame::udp(from, to);
        for payload in [&b"odd"[..], b"", &[0xff; 1452]] {
            let record = written(&mut frame, payload);
            let mut oracle = Vec::new();
            PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 10, 0, 11])
                .ipv6(octets(from.ip()), octets(to.ip()), 64)
                .udp(40_000, 20_000)
                .write(&mut oracle, payload)
                .unwrap();
            assert_eq!(records(&record)[0].frame, oracle);
            assert_eq!(datagram(&oracle), (from, to, payload.to_vec()));
        }
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        let mut mapped = Frame::udp(addr("[::ffff:192.0.2.1]:5"), addr("[::ffff:192.0.2.2]:6"));
        let mut plain = Frame::udp(addr("192.0.2.1:5"), addr("192.0.2.2:6"));
        assert_eq!(written(&mut mapped, b"x"), written(&mut plain, b"x"));
        let mut mixed = Frame::udp(addr("192.0.2.1:5"), addr("[2001:db8::1]:6"));
        let (from, ..) = datagram(records(&written(&mut mixed, b"x"))[0].frame);
        assert_eq!(from, addr("[::ffff:192.0.2.1]:5"));
    }

    #[test]
    fn what_does_not_fit_is_cut_and_shows_it() {
        for (from, to, largest) in
            [("192.0.2.1:5", "192.0.2.2:6", 65_507), ("[2001:db8::1]:5", "[2001:db8::2]:6", 65_527)]
        {
            let mut frame = Frame::udp(addr(from), addr(to));
            let headers = frame.record_len(0);
            let whole = written(&mut frame, &vec![1; largest]);
            assert_eq!(whole.len(), headers + largest);
            datagram(records(&whole)[0].frame);
            let longer = written(&mut frame, &vec![1; largest + 100]);
            let read = &records(&longer)[0];
            assert_eq!((read.frame.len(), read.wire), (whole.len() - 16, whole.len() - 16 + 100));

            let mut short = vec![0; headers + 4];
            assert_eq!(frame.write(&mut short, AT, b"too long"), headers + 4);
            let read = &records(&short)[0];
            assert_eq!(
                (read.frame.len() + 4, &read.frame[read.frame.len() - 4..]),
                (read.wire, &b"too "[..])
            );
            assert_eq!(frame.write(&mut short[..headers - 1], AT, b"x"), 0);
        }
    }

    #[test]
    fn a_flow_is_known_by_its_addresses_and_ports() {
        for (from, to, others) in [
            ("192.0.2.1:5", "192.0.2.2:6", ["192.0.2.1:7", "192.0.2.3:5", "[2001:db8::1]:5"]),
            ("[2001:db8::1]:5", "[2001:db8::2]:6", ["[2001:db8::1]:7", "[2001:db8::3]:5", "192.0.2.1:5"]),
        ] {
            let (frame, from, to) = (Frame::udp(addr(from), addr(to)), addr(from), addr(to));
            assert!(frame.is_of(from, to) && !frame.is_of(to, from));
            assert!(
                others.iter().all(|&other| !frame.is_of(addr(other), to) && !frame.is_of(from, addr(other)))
            );
        }
        assert!(
            Frame::udp(addr("[::ffff:192.0.2.1]:5"), addr("192.0.2.2:6"))
                .is_of(addr("192.0.2.1:5"), addr("[::ffff:192.0.2.2]:6"))
        );
    }

    #[test]
    fn a_frame_from_the_wire_stays_what_it_is() {
        let frame: Vec<u8> = (0..214).map(|n| n as u8).collect();
        let mut out = [0xee; 300];
        assert_eq!(write_frame(&mut out, AT, &frame), frame_record_len(214));
        assert_eq!(out[230..], [0xee; 70], "nothing beyond the record");
        let [read] = &records(&out[..230])[..] else { panic!("one record") };
        assert_eq!((read.at, read.wire, read.frame), (AT, 214, &frame[..]));
        // Where there is no room it is cut, and shows it.
        assert_eq!(write_frame(&mut out[..116], AT, &frame), 116);
        let read = &records(&out[..116])[0];
        assert_eq!((read.wire, read.frame), (214, &frame[..100]));
        assert_eq!(write_frame(&mut out[..15], AT, &frame), 0);
    }

    /// Sequence, acknowledgement and payload of a TCP frame. Panics where a checksum is wrong.
    fn segment(frame: &[u8]) -> (u32, u32, Vec<u8>) {
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("not TCP") };
        let header = tcp.to_header();
        let sum = match packet.net.unwrap() {
            NetSlice::Ipv4(ip) => header.calc_checksum_ipv4(&ip.header().to_header(), tcp.payload()),
            NetSlice::Ipv6(ip) => header.calc_checksum_ipv6(&ip.header().to_header(), tcp.payload()),
            NetSlice::Arp(_) => panic!("not IP"),
        };
        assert_eq!(header.checksum, sum.unwrap());
        assert!(header.psh && header.ack && !header.syn && !header.fin);
        (header.sequence_number, header.acknowledgment_number, tcp.payload().to_vec())
    }

    #[test]
    fn tcp_counts_both_directions() {
        for (local, peer) in
            [("192.0.2.1:5060", "192.0.2.2:40000"), ("[2001:db8::1]:5060", "[2001:db8::2]:40000")]
        {
            let mut tcp = Tcp::new(addr(local), addr(peer));
            let mut out = vec![0; Tcp::OVERHEAD + Tcp::SEGMENT_MAX];
            let mut step = |received, payload: &[u8]| {
                let len = tcp.write(&mut out, AT, received, payload);
                let read = &records(&out[..len])[0];
                assert_eq!((read.at, read.wire), (AT, read.frame.len()));
                segment(read.frame)
            };
            assert_eq!(step(true, b"INVITE"), (1, 1, b"INVITE".to_vec()));
            assert_eq!(step(false, b"SIP/2.0 100"), (1, 7, b"SIP/2.0 100".to_vec()));
            let long = vec![7; Tcp::SEGMENT_MAX];
            assert_eq!(step(true, &long), (7, 12, long));
            assert_eq!(step(true, b"").0, 7 + Tcp::SEGMENT_MAX as u32);
            // What was not written is missing in the numbers too.
            assert_eq!(tcp.write(&mut [0; 40], AT, false, b"lost"), 0);
            let len = tcp.write(&mut out, AT, false, b"next");
            assert_eq!(segment(records(&out[..len])[0].frame).0, 16);
        }
    }

    proptest::proptest! {
        #[test]
        fn checksums_hold_for_any_ipv4_flow(a: [u8; 4], b: [u8; 4], ports: (u16, u16), identification: u16,
            payload in proptest::collection::vec(proptest::num::u8::ANY, 0..2000)) {
            let (from, to) = (SocketAddr::from((a, ports.0)), SocketAddr::from((b, ports.1)));
            let mut frame = Frame::udp(from, to);
            frame.identification = identification;
            let record = written(&mut frame, &payload);
            proptest::prop_assert_eq!(datagram(records(&record)[0].frame), (from, to, payload));
        }
    }
}
