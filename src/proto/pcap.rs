//! Nanosecond pcap of Ethernet frames that were never on an Ethernet: the datagrams and SIP messages of a recording under the
//! addresses and ports they really had (draft-ietf-opsawg-pcap).

use etherparse::{IpHeaders, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, PacketBuilderStep, UdpHeader};
use std::net::{IpAddr, SocketAddr};

use crate::clock::Wall;

const SNAPLEN: u32 = 262_144;
const LINKTYPE_ETHERNET: u32 = 1;

/// What a file begins with: magic 0xa1b23c4d (nanoseconds), version 2.4, all little-endian.
pub const FILE_HEADER: [u8; 24] = file_header();

/// Seconds, nanoseconds, bytes kept, bytes on the wire.
const RECORD_HEADER: usize = 16;
const ETHERNET: usize = 14;
/// Where the IP header begins in a record.
const IP: usize = RECORD_HEADER + ETHERNET;
const UDP: usize = UdpHeader::LEN;
const TCP: usize = 20;
const TTL: u8 = 64;

const fn file_header() -> [u8; 24] {
    let [m0, m1, m2, m3] = 0xa1b2_3c4d_u32.to_le_bytes();
    let [s0, s1, s2, s3] = SNAPLEN.to_le_bytes();
    let [l0, l1, l2, l3] = LINKTYPE_ETHERNET.to_le_bytes();
    [m0, m1, m2, m3, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, s0, s1, s2, s3, l0, l1, l2, l3]
}

/// The record of one UDP flow: headers built once, patched per packet.
#[derive(Clone, Debug)]
pub struct Frame {
    from: SocketAddr,
    to: SocketAddr,
    /// Record, Ethernet, IP and UDP header of an empty datagram; as long as `len` says.
    head: [u8; IP + Ipv6Header::LEN + UDP],
    len: usize,
    /// IPv4: sum of the header's words without length, identification and checksum.
    sum: u32,
    /// IPv4: identification of the next datagram.
    identification: u16,
}

impl Frame {
    /// IPv4-mapped IPv6 addresses become IPv4.
    pub fn udp(from: SocketAddr, to: SocketAddr) -> Frame {
        let mut frame = Frame { from, to, head: [0; _], len: 0, sum: 0, identification: 0 };
        let (source, destination) = (from.port(), to.port());
        let ip = ethernet_and_ip(from.ip(), to.ip(), IpNumber::UDP);
        let room = &mut frame.head[RECORD_HEADER..];
        let built = ip.udp(source, destination).write_to_slice(room, &[]);
        frame.len = RECORD_HEADER + built.expect("the room is that of the longest headers");
        if frame.is_ipv4() {
            // IPv4: a UDP checksum of 0 says that there is none (RFC 768). IPv6 has no such thing (RFC 8200 §8.1).
            frame.head[frame.len - 2..frame.len].fill(0);
            frame.head[IP + 2..IP + 4].fill(0);
            frame.head[IP + 10..IP + 12].fill(0);
            frame.sum = frame.head[IP..IP + Ipv4Header::MIN_LEN].chunks_exact(2).map(word).sum();
        }
        frame
    }

    pub fn is_of(&self, from: SocketAddr, to: SocketAddr) -> bool {
        self.from == from && self.to == to
    }

    /// Bytes of the whole record of a payload of this length.
    pub fn record_len(&self, payload: usize) -> usize {
        self.len + payload.min(self.payload_max())
    }

    /// Writes one record to the front of `out` and returns its length. Where `out`, or the length field of IP, is too short
    /// the payload is cut, and the record says so (fewer bytes kept than were on the wire); where not even the headers fit, nothing
    /// is written.
    pub fn write(&mut self, out: &mut [u8], at: Wall, payload: &[u8]) -> usize {
        let Some(room) = out.len().checked_sub(self.len) else { return 0 };
        let sent = &payload[..payload.len().min(self.payload_max())];
        let kept = &sent[..sent.len().min(room)];
        let (head, rest) = out.split_at_mut(self.len);
        head.copy_from_slice(&self.head[..self.len]);
        let headers = self.len - RECORD_HEADER;
        write_record_header(head, at, headers + kept.len(), headers + payload.len());
        if self.is_ipv4() {
            self.patch_ipv4(head, sent.len());
        } else {
            patch_ipv6(head, sent);
        }
        rest[..kept.len()].copy_from_slice(kept);
        self.len + kept.len()
    }

    fn patch_ipv4(&mut self, head: &mut [u8], payload: usize) {
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
    }

    /// What a 16-bit length field can tell: IPv4 counts its own header, IPv6 does not.
    fn payload_max(&self) -> usize {
        let ip = if self.is_ipv4() { Ipv4Header::MIN_LEN } else { 0 };
        usize::from(u16::MAX) - ip - UDP
    }

    fn is_ipv4(&self) -> bool {
        self.len == IP + Ipv4Header::MIN_LEN + UDP
    }
}

fn patch_ipv6(head: &mut [u8], payload: &[u8]) {
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
    pub const OVERHEAD: usize = IP + Ipv6Header::LEN + TCP;

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
        let Some((record, frame)) = out.split_at_mut_checked(RECORD_HEADER) else { return 0 };
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

fn write_record_header(out: &mut [u8], at: Wall, kept: usize, wire: usize) {
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
