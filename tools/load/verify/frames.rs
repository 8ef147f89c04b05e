//! Reading capture files: nanosecond pcap of Ethernet frames, and rtpdump. Strict: what Wireshark would mend is a finding here.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};

/// Largest record: an IP datagram in its frame.
const RECORD_MAX: usize = 65_535 + 14;
const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const LINKTYPE_ETHERNET: u32 = 1;

/// What is wrong with a file or a frame of it.
#[derive(Debug)]
pub enum Fault {
    Io(io::Error),
    /// Not little-endian nanosecond pcap 2.4 with Ethernet frames.
    FileHeader,
    /// The file ends inside a record.
    Truncated,
    /// Lengths differ, or are beyond any datagram.
    RecordHeader,
    /// Ethernet, IP or UDP header is not true to the frame.
    Frame(&'static str),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Fault::Truncated,
            _ => Fault::Io(error),
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Io(error) => write!(f, "{error}"),
            Fault::FileHeader => write!(f, "not the file header that its name promises"),
            Fault::Truncated => write!(f, "ends inside a record"),
            Fault::RecordHeader => write!(f, "a record header with impossible lengths or time"),
            Fault::Frame(what) => write!(f, "a frame with a wrong {what}"),
        }
    }
}

pub struct Pcap<R> {
    input: R,
    record: Vec<u8>,
}

impl<R: Read> Pcap<R> {
    pub fn open(mut input: R) -> Result<Pcap<R>, Fault> {
        let mut header = [0; 24];
        input.read_exact(&mut header)?;
        let version = [header[4], header[5], header[6], header[7]] == [2, 0, 4, 0];
        if word(&header, 0) != MAGIC_NANOSECONDS || !version || word(&header, 20) != LINKTYPE_ETHERNET {
            return Err(Fault::FileHeader);
        }
        Ok(Pcap { input, record: Vec::with_capacity(RECORD_MAX) })
    }

    /// The next frame; `None` at the end of the file.
    pub fn next(&mut self) -> Result<Option<&[u8]>, Fault> {
        let mut header = [0; 16];
        if !read_or_end(&mut self.input, &mut header)? {
            return Ok(None);
        }
        let (nanoseconds, len, original) =
            (word(&header, 4), word(&header, 8) as usize, word(&header, 12) as usize);
        if len != original || len > RECORD_MAX || nanoseconds >= 1_000_000_000 {
            return Err(Fault::RecordHeader);
        }
        self.record.resize(len, 0);
        self.input.read_exact(&mut self.record)?;
        Ok(Some(&self.record))
    }
}

/// `false`: the file ends here, between records.
fn read_or_end(input: &mut impl Read, out: &mut [u8]) -> Result<bool, Fault> {
    let mut have = 0;
    while have < out.len() {
        match input.read(&mut out[have..]) {
            Ok(0) if have == 0 => return Ok(false),
            Ok(0) => return Err(Fault::Truncated),
            Ok(len) => have += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// pcap as little-endian machines write it.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    Udp,
    Tcp,
}

/// A datagram or a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frame<'a> {
    pub carrier: Carrier,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Frame<'a>, Fault> {
        let (ethernet, packet) = bytes.split_at_checked(14).ok_or(Fault::Frame("length"))?;
        let (protocol, from, to, segment) = match ethernet[12..14] {
            [0x08, 0x00] => ipv4(packet)?,
            [0x86, 0xdd] => ipv6(packet)?,
            _ => return Err(Fault::Frame("ethertype")),
        };
        let ports = segment.first_chunk::<4>().ok_or(Fault::Frame("length"))?;
        let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
        let (carrier, payload) = match protocol {
            17 => (Carrier::Udp, udp(from, to, segment)?),
            6 => (Carrier::Tcp, tcp(segment)?),
            _ => return Err(Fault::Frame("protocol")),
        };
        Ok(Frame { carrier, from: SocketAddr::new(from, port(0)), to: SocketAddr::new(to, port(2)), payload })
    }
}

type Datagram<'a> = (u8, IpAddr, IpAddr, &'a [u8]);

fn ipv4(packet: &[u8]) -> Result<Datagram<'_>, Fault> {
    let header = packet.first_chunk::<20>().ok_or(Fault::Frame("length"))?;
    if header[0] != 0x45 {
        return Err(Fault::Frame("IP version or header length"));
    }
    let packet = untrailed(packet, usize::from(u16::from_be_bytes([header[2], header[3]])))?;
    if fold(sum(header)) != 0xffff {
        return Err(Fault::Frame("IP checksum"));
    }
    let address = |at: usize| IpAddr::from([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let segment = packet.get(20..).ok_or(Fault::Frame("IP length"))?;
    Ok((header[9], address(12), address(16), segment))
}

fn ipv6(packet: &[u8]) -> Result<Datagram<'_>, Fault> {
    let header = packet.first_chunk::<40>().ok_or(Fault::Frame("length"))?;
    if header[0] >> 4 != 6 {
        return Err(Fault::Frame("IP version or header length"));
    }
    let packet = untrailed(packet, 40 + usize::from(u16::from_be_bytes([header[4], header[5]])))?;
    let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&header[at..at + 16]).unwrap_or_default());
    Ok((header[6], address(8), address(24), &packet[40..]))
}

/// The packet without what Ethernet may carry behind it: zeroes, and of those less than a page.
fn untrailed(packet: &[u8], len: usize) -> Result<&[u8], Fault> {
    let (packet, trailer) = packet.split_at_checked(len).ok_or(Fault::Frame("IP length"))?;
    let padding = trailer.len() < 4_096 && trailer.iter().all(|&byte| byte == 0);
    if padding { Ok(packet) } else { Err(Fault::Frame("IP length")) }
}

fn udp(from: IpAddr, to: IpAddr, segment: &[u8]) -> Result<&[u8], Fault> {
    let header = segment.first_chunk::<8>().ok_or(Fault::Frame("length"))?;
    if usize::from(u16::from_be_bytes([header[4], header[5]])) != segment.len() {
        return Err(Fault::Frame("UDP length"));
    }
    // RFC 768: 0 is no checksum. RFC 8200 §8.1 forbids that in IPv6.
    let none = header[6..8] == [0, 0];
    if none && from.is_ipv6()
        || !none && fold(pseudo_header(from, to, segment.len()) + sum(segment)) != 0xffff
    {
        return Err(Fault::Frame("UDP checksum"));
    }
    Ok(&segment[8..])
}

fn tcp(segment: &[u8]) -> Result<&[u8], Fault> {
    let header = segment.first_chunk::<20>().ok_or(Fault::Frame("length"))?;
    segment.get(usize::from(header[12] >> 4) * 4..).ok_or(Fault::Frame("TCP header length"))
}

fn pseudo_header(from: IpAddr, to: IpAddr, len: usize) -> u64 {
    let address = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => sum(&v4.octets()),
        IpAddr::V6(v6) => sum(&v6.octets()),
    };
    address(from) + address(to) + 17 + len as u64
}

/// Big-endian 16-bit words; an odd last byte counts as the high one.
fn sum(bytes: &[u8]) -> u64 {
    let (pairs, last) = bytes.as_chunks::<2>();
    let sum: u64 = pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum();
    sum + last.first().map_or(0, |byte| u64::from(*byte) << 8)
}

fn fold(mut sum: u64) -> u64 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// Packets of an rtpdump file; the flag says RTCP.
pub struct Rtpdump<R> {
    input: R,
    packet: Vec<u8>,
}

impl<R: Read> Rtpdump<R> {
    pub fn open(mut input: R) -> Result<Rtpdump<R>, Fault> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            input.read_exact(&mut byte)?;
            line.push(byte[0]);
            if line.len() > 128 {
                return Err(Fault::FileHeader);
            }
        }
        if !line.starts_with(b"#!rtpplay1.0 ") {
            return Err(Fault::FileHeader);
        }
        input.read_exact(&mut [0; 16])?;
        Ok(Rtpdump { input, packet: Vec::new() })
    }

    pub fn next(&mut self) -> Result<Option<(bool, &[u8])>, Fault> {
        let mut header = [0; 8];
        if !read_or_end(&mut self.input, &mut header)? {
            return Ok(None);
        }
        let length = usize::from(u16::from_be_bytes([header[0], header[1]]));
        let packet = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let len = length.checked_sub(8).ok_or(Fault::RecordHeader)?;
        if packet != 0 && packet != len {
            return Err(Fault::RecordHeader);
        }
        self.packet.resize(len, 0);
        self.input.read_exact(&mut self.packet)?;
        Ok(Some((packet == 0, &self.packet)))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    /// A frame as a library builds it.
    pub fn frame(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let mut bytes = Vec::new();
        match (from, to) {
            (SocketAddr::V4(a), SocketAddr::V4(b)) => {
                let udp = ethernet.ipv4(a.ip().octets(), b.ip().octets(), 64).udp(a.port(), b.port());
                udp.write(&mut bytes, payload).unwrap();
            }
            (SocketAddr::V6(a), SocketAddr::V6(b)) => {
                let udp = ethernet.ipv6(a.ip().octets(), b.ip().octets(), 64).udp(a.port(), b.port());
                udp.write(&mut bytes, payload).unwrap();
            }
            _ => unreachable!(),
        }
        bytes
    }

    pub fn pcap(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut file = Vec::new();
        for word in [MAGIC_NANOSECONDS, 0x0004_0002, 0, 0, 65_535, LINKTYPE_ETHERNET] {
            file.extend(word.to_le_bytes());
        }
        for frame in frames {
            for word in [1, 2, frame.len() as u32, frame.len() as u32] {
                file.extend(word.to_le_bytes());
            }
            file.extend(frame);
        }
        file
    }

    fn addresses() -> [(SocketAddr, SocketAddr); 2] {
        [("10.0.0.1:40000", "10.0.0.2:20000"), ("[2001:db8::1]:40000", "[2001:db8::2]:20000")]
            .map(|(from, to)| (from.parse().unwrap(), to.parse().unwrap()))
    }

    #[test]
    fn a_frame_is_taken_apart() {
        for (from, to) in addresses() {
            for payload in [b"odd".as_slice(), b"even", b""] {
                let bytes = frame(from, to, payload);
                let parsed = Frame::parse(&bytes).unwrap();
                assert_eq!(parsed, Frame { carrier: Carrier::Udp, from, to, payload });
            }
        }
    }

    #[test]
    fn zeroes_behind_a_packet_are_ethernets() {
        for (from, to) in addresses() {
            let whole = frame(from, to, b"payload");
            let with = |trailer: &[u8]| [&whole[..], trailer].concat();
            let payload = |bytes: &[u8]| Frame::parse(bytes).map(|frame| frame.payload.to_vec());
            assert_eq!(payload(&with(&[0; 4_095])).unwrap(), b"payload");
            for trailer in [&[0, 0, 1][..], &[0; 4_096]] {
                assert!(matches!(payload(&with(trailer)), Err(Fault::Frame("IP length"))));
            }
        }
    }

    #[test]
    fn any_changed_header_byte_that_lies_is_found() {
        for (from, to) in addresses() {
            let whole = frame(from, to, b"payload");
            // All but the hardware addresses, and the fields of IPv6 that no checksum covers.
            let free = if from.is_ipv4() { 0..12 } else { 0..18 };
            for at in (0..whole.len()).filter(|at| !(free.contains(at) || from.is_ipv6() && *at == 21)) {
                let mut damaged = whole.clone();
                damaged[at] ^= 0x10;
                assert!(Frame::parse(&damaged).is_err(), "byte {at}");
            }
        }
    }

    #[test]
    fn a_file_is_read_to_its_end_or_to_its_damage() {
        let (from, to) = addresses()[0];
        let file = pcap(&[frame(from, to, b"one"), frame(from, to, b"two")]);
        let read = |file: &[u8]| {
            let mut pcap = Pcap::open(file)?;
            let mut frames = 0;
            while pcap.next()?.is_some() {
                frames += 1;
            }
            Ok::<_, Fault>(frames)
        };
        assert_eq!(read(&file).unwrap(), 2);
        assert!(matches!(read(&file[..file.len() - 1]), Err(Fault::Truncated)));
        assert!(matches!(read(&file[..30]), Err(Fault::Truncated)));
        let mut micro = file.clone();
        micro[0] = 0xd4;
        assert!(matches!(read(&micro), Err(Fault::FileHeader)));
        let mut clipped = file.clone();
        clipped[36] ^= 1;
        assert!(matches!(read(&clipped), Err(Fault::RecordHeader)));
    }

    #[test]
    fn rtpdump_is_read() {
        let mut file = b"#!rtpplay1.0 10.0.0.1/5000\n".to_vec();
        file.extend([0; 16]);
        file.extend([0, 11, 0, 3, 0, 0, 0, 0, 1, 2, 3]);
        file.extend([0, 10, 0, 0, 0, 0, 0, 0, 4, 5]);
        let mut dump = Rtpdump::open(file.as_slice()).unwrap();
        assert_eq!(dump.next().unwrap(), Some((false, [1, 2, 3].as_slice())));
        assert_eq!(dump.next().unwrap(), Some((true, [4, 5].as_slice())));
        assert_eq!(dump.next().unwrap(), None);
    }
}
