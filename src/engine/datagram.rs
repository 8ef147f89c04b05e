//! A datagram as multishot recvmsg leaves it in a provided buffer: header, source address, control messages, payload.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use io_uring::types::RecvMsgOut;
use socket2::{SockAddr, Socket};

use crate::clock::Wall;

/// Room for the source address: a sockaddr_in6.
const NAME: usize = size_of::<libc::sockaddr_in6>();
/// Room for the control messages: a timestamp (16 + 16) and the longest destination, a sockaddr_in6 (16 + 28, aligned to 8).
const CONTROL: usize = 32 + 48;
/// What the kernel writes first: four lengths.
const HEADER: usize = 16;
const _: () = assert!(NAME == 28 && size_of::<libc::timespec>() == 16 && size_of::<libc::cmsghdr>() == 16);

/// One received datagram; the bytes are still in the receive buffer.
#[derive(Debug)]
pub struct Datagram<'a> {
    pub from: SocketAddr,
    /// The destination address, when the socket tells it (IP_PKTINFO, IP_RECVORIGDSTADDR).
    pub to: Option<IpAddr>,
    /// The destination port, when the socket tells it (IP_RECVORIGDSTADDR): it is not the port that the socket is bound to.
    pub port: Option<u16>,
    /// When the kernel received it, when the socket tells it (SO_TIMESTAMPNS).
    pub at: Option<Wall>,
    pub bytes: &'a [u8],
    /// The datagram was longer than the buffer.
    pub truncated: bool,
    /// The frame that brought it, as in [`crate::media::Packet`].
    pub frame: Option<&'a [u8]>,
}

/// The msghdr that a multishot recvmsg is armed with: only the two lengths matter to it.
pub fn template() -> libc::msghdr {
    // SAFETY: a msghdr of zeroes is valid: no name, no vector, no control.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_namelen = NAME as u32;
    header.msg_controllen = CONTROL;
    header
}

/// Reads the buffer of a completion. `None`: the kernel wrote something that is not the layout asked for.
pub fn parse<'a>(buffer: &'a [u8], template: &libc::msghdr) -> Option<Datagram<'a>> {
    let message = RecvMsgOut::parse(buffer, template).ok()?;
    let from = address(message.name_data())?;
    let (mut to, mut port, mut at) = (None, None, None);
    for (level, kind, data) in ControlMessages(message.control_data()) {
        match (level, kind) {
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => at = timestamp(data),
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => to = data.get(8..12).and_then(ipv4).map(IpAddr::V4),
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                to = data.get(..16).and_then(ipv6).map(|ip| ip.to_canonical())
            }
            (libc::IPPROTO_IP, libc::IP_ORIGDSTADDR) | (libc::IPPROTO_IPV6, libc::IPV6_ORIGDSTADDR) => {
                let destination = address(data);
                (to, port) = (destination.map(|to| to.ip()), destination.map(|to| to.port()));
            }
            _ => {}
        }
    }
    // The crate's slices borrow its view; the payload is what follows name and control in the buffer.
    let bytes = buffer.get(HEADER + NAME + CONTROL..)?;
    Some(Datagram { from, to, port, at, bytes, truncated: message.is_payload_truncated(), frame: None })
}

/// The destination port of a datagram that has not been parsed yet, of a socket that tells time and original destination: where
/// the kernel puts it, without a proof. Only good for a guess.
pub fn port_hint(buffer: &[u8]) -> Option<u16> {
    let at = HEADER + NAME + 32 + 16 + 2;
    Some(u16::from_be_bytes([*buffer.get(at)?, *buffer.get(at + 1)?]))
}

/// A sockaddr_in or sockaddr_in6 as bytes. v4-mapped addresses become IPv4.
fn address(name: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes([*name.first()?, *name.get(1)?]));
    let port = u16::from_be_bytes([*name.get(2)?, *name.get(3)?]);
    let ip = match family {
        libc::AF_INET => IpAddr::V4(ipv4(name.get(4..8)?)?),
        libc::AF_INET6 => ipv6(name.get(8..24)?)?.to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn ipv4(bytes: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))
}

fn ipv6(bytes: &[u8]) -> Option<IpAddr> {
    Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)))
}

fn timestamp(data: &[u8]) -> Option<Wall> {
    let seconds = u64::from_ne_bytes(data.get(..8)?.try_into().ok()?);
    let nanos = u64::from_ne_bytes(data.get(8..16)?.try_into().ok()?);
    Some(Wall(seconds * 1_000_000_000 + nanos))
}

/// Walks control messages without trusting their lengths: (level, type, data).
struct ControlMessages<'a>(&'a [u8]);

impl<'a> Iterator for ControlMessages<'a> {
    type Item = (i32, i32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::try_from(u64::from_ne_bytes(self.0.get(..8)?.try_into().ok()?)).ok()?;
        let level = i32::from_ne_bytes(self.0.get(8..12)?.try_into().ok()?);
        let kind = i32::from_ne_bytes(self.0.get(12..16)?.try_into().ok()?);
        let data = self.0.get(16..len)?;
        self.0 = self.0.get(len.next_multiple_of(8)..).unwrap_or_default();
        Some((level, kind, data))
    }
}

/// Sends one datagram from an address of this host, at once or not at all.
pub fn send(socket: &Socket, from: IpAddr, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
    let to = SockAddr::from(to);
    let control = SourceControl::new(from);
    let mut vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: a msghdr of zeroes is valid, and everything it is made to point to lives until the call returns; the
    // kernel only reads through these pointers.
    let sent = unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_name = to.as_ptr().cast_mut().cast();
        header.msg_namelen = to.len();
        header.msg_iov = &mut vector;
        header.msg_iovlen = 1;
        header.msg_control = control.as_ptr().cast_mut().cast();
        header.msg_controllen = control.len();
        libc::sendmsg(socket.as_raw_fd(), &header, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The control message that makes an answer leave from the address that the request came to; for sendmsg.
///
/// 40 bytes at most, in a buffer aligned as cmsghdr wants it.
#[repr(C, align(8))]
struct SourceControl {
    bytes: [u8; 40],
    len: usize,
}

impl SourceControl {
    fn new(source: IpAddr) -> SourceControl {
        let mut bytes = [0u8; 40];
        let (level, kind, data_len) = match source {
            IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_PKTINFO, 12),
            IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, 20),
        };
        bytes[..8].copy_from_slice(&(16 + data_len as u64).to_ne_bytes());
        bytes[8..12].copy_from_slice(&level.to_ne_bytes());
        bytes[12..16].copy_from_slice(&kind.to_ne_bytes());
        match source {
            // in_pktinfo: interface (any), source address, destination (unused when sending).
            IpAddr::V4(ip) => bytes[20..24].copy_from_slice(&ip.octets()),
            // in6_pktinfo: source address, interface (any).
            IpAddr::V6(ip) => bytes[16..32].copy_from_slice(&ip.octets()),
        }
        SourceControl { bytes, len: (16 + data_len as usize).next_multiple_of(8) }
    }

    fn as_ptr(&self) -> *const u8 {
        self.bytes.as_ptr()
    }

    fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let v4 = [2, 0, 0x13, 0xc4, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(address(&v4), Some("192.0.2.1:5060".parse().unwrap()));
        let mut mapped = [0u8; 28];
        mapped[..4].copy_from_slice(&[10, 0, 0x13, 0xc4]);
        mapped[18..24].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 1]);
        assert_eq!(address(&mapped), Some("192.0.2.1:5060".parse().unwrap()));
        assert_eq!(address(&[]), None);
        assert_eq!(address(&mapped[..20]), None);
    }

    #[test]
    fn source_control_reads_back() {
        for ip in ["192.0.2.7", "2001:db8::7"] {
            let ip: IpAddr = ip.parse().unwrap();
            let control = SourceControl::new(ip);
            let (level, kind, data) = ControlMessages(&control.bytes[..control.len()]).next().unwrap();
            let found = match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => IpAddr::V4(ipv4(&data[4..8]).unwrap()),
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => ipv6(&data[..16]).unwrap(),
                other => panic!("{other:?}"),
            };
            assert_eq!(found, ip);
        }
    }

    #[test]
    fn control_messages_with_lying_lengths_end_the_walk() {
        for len in [0u64, 15, 17, 1_000, u64::MAX] {
            let mut bytes = [0u8; 16];
            bytes[..8].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(ControlMessages(&bytes).count(), 0);
        }
    }

    /// A buffer as the kernel leaves it: four lengths, a source of this family, one control message with these data.
    fn buffer(family: u8, data: &[u8]) -> Vec<u8> {
        let mut buffer: Vec<u8> =
            [16u32, CONTROL as u32, 7, 0].iter().flat_map(|length| length.to_ne_bytes()).collect();
        buffer.extend([family, 0, 0x13, 0xc4, 192, 0, 2, 1]);
        buffer.resize(HEADER + NAME, 0);
        buffer.extend((16 + data.len() as u64).to_ne_bytes());
        buffer.extend(libc::IPPROTO_IP.to_ne_bytes());
        buffer.extend(libc::IP_PKTINFO.to_ne_bytes());
        buffer.extend(data);
        buffer.resize(HEADER + NAME + CONTROL, 0);
        buffer.extend(b"payload");
        buffer
    }

    #[test]
    fn a_control_message_that_is_cut_costs_no_datagram() {
        let (whole, cut) = (buffer(2, &[7; 12]), buffer(2, &[7; 4]));
        let to = Some("7.7.7.7".parse().unwrap());
        for (bytes, to) in [(&whole, to), (&cut, None)] {
            let datagram = parse(bytes, &template()).unwrap();
            assert_eq!((datagram.to, datagram.bytes), (to, &b"payload"[..]));
        }
        assert!(parse(&buffer(1, &[]), &template()).is_none(), "from nowhere");
        assert!(parse(&whole[..HEADER + NAME], &template()).is_none());
    }
}
