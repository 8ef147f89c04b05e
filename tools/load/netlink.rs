//! What the kernel knows of interfaces, routes and neighbours (rtnetlink(7)), asked over one socket. It answers for the network
//! namespace of the thread that asks, which files below /sys do not.

use socket2::{Domain, Socket, Type};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::time::Duration;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
const ERROR: u16 = 2;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const CREATE: u16 = 0x400;
// Attributes of links, routes, neighbours.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_STATS64: u16 = 23;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// `NTF_USE`: ask the network for the address as if a packet were waiting for it.
const USE: u8 = 1;
/// The address is valid: permanent, no ARP, reachable, stale, delayed, probed.
const VALID: u16 = 0x80 | 0x40 | 0x02 | 0x04 | 0x08 | 0x10;
const HEADER: usize = 16;
/// Largest answer: that for a link, with everything about it.
const ANSWER: usize = 32 * 1024;
const WAIT: Duration = Duration::from_secs(1);

/// An interface and what it has counted so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub ethernet: [u8; 6],
    pub sent: u64,
    /// Packets that it was given and did not send.
    pub dropped: u64,
}

pub struct Netlink {
    socket: Socket,
}

impl Netlink {
    pub fn open() -> io::Result<Netlink> {
        // Protocol 0 is NETLINK_ROUTE; without an address, the peer is the kernel.
        let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, None)?;
        socket.set_read_timeout(Some(WAIT))?;
        Ok(Netlink { socket })
    }

    pub fn link(&mut self, name: &str) -> io::Result<Link> {
        let mut request = Request::new(RTM_GETLINK, 0, &[0; 16]);
        request.attribute(IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
        let answer = self.ask(request, RTM_NEWLINK)?;
        // struct ifinfomsg: the index is its second word.
        let (body, attributes) = split(&answer, 16)?;
        let ethernet = find(attributes, IFLA_ADDRESS).and_then(|address| address.try_into().ok());
        let statistics = find(attributes, IFLA_STATS64).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Link {
            index: word(body, 4),
            ethernet: ethernet.ok_or_else(|| io::Error::other("it has no Ethernet address"))?,
            // struct rtnl_link_stats64: packets received, sent; bytes of each; errors of each; dropped of each.
            sent: double(statistics, 8),
            dropped: double(statistics, 56),
        })
    }

    /// Who takes packets to `to` when they leave through the interface: a gateway, or `to` itself.
    pub fn next_hop(&mut self, interface: u32, to: IpAddr) -> io::Result<IpAddr> {
        let address = octets(to);
        let mut body = [0; 12];
        // struct rtmsg: family, bits of the destination.
        body[..2].copy_from_slice(&[family(to), 8 * address.len() as u8]);
        let mut request = Request::new(RTM_GETROUTE, 0, &body);
        request.attribute(RTA_DST, &address);
        request.attribute(RTA_OIF, &interface.to_ne_bytes());
        let answer = self.ask(request, RTM_NEWROUTE)?;
        let (_, attributes) = split(&answer, 12)?;
        Ok(find(attributes, RTA_GATEWAY).and_then(ip).unwrap_or(to))
    }

    /// Ethernet address of a neighbour, if it is known.
    pub fn neighbour(&mut self, interface: u32, ip: IpAddr) -> io::Result<Option<[u8; 6]>> {
        let answer = match self.ask(neighbour(RTM_GETNEIGH, 0, interface, ip, 0), RTM_NEWNEIGH) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            answer => answer?,
        };
        let (body, attributes) = split(&answer, 12)?;
        let valid = u16::from_ne_bytes([body[8], body[9]]) & VALID != 0;
        Ok(find(attributes, NDA_LLADDR).filter(|_| valid).and_then(|address| address.try_into().ok()))
    }

    /// Has the kernel find that address out; it takes as long as the neighbour takes to answer.
    pub fn look_for(&mut self, interface: u32, ip: IpAddr) -> io::Result<()> {
        self.ask(neighbour(RTM_NEWNEIGH, ACKNOWLEDGE | CREATE, interface, ip, USE), ERROR).map(drop)
    }

    /// The body of the one answer, which must be of this kind.
    fn ask(&mut self, request: Request, kind: u16) -> io::Result<Vec<u8>> {
        self.socket.write_all(&request.finish())?;
        let mut answer = vec![0; ANSWER];
        let len = self.socket.read(&mut answer)?;
        answer.truncate(len);
        if len < HEADER + 4 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let (is, error) = (u16::from_ne_bytes([answer[4], answer[5]]), word(&answer, HEADER) as i32);
        match is == ERROR && error != 0 {
            true => Err(io::Error::from_raw_os_error(-error)),
            false if is == kind => Ok(answer.split_off(HEADER)),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// `struct ndmsg`, and the address.
fn neighbour(kind: u16, flags: u16, interface: u32, ip: IpAddr, use_it: u8) -> Request {
    let mut body = [0; 12];
    body[0] = family(ip);
    body[4..8].copy_from_slice(&interface.to_ne_bytes());
    body[10] = use_it;
    let mut request = Request::new(kind, flags, &body);
    request.attribute(NDA_DST, &octets(ip));
    request
}

/// A message: header, a body of whole words, attributes.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: u16, body: &[u8]) -> Request {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((REQUEST | flags).to_ne_bytes());
        // Sequence number and port: there is one question at a time.
        bytes.extend([0; 8]);
        bytes.extend(body);
        Request(bytes)
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend((4 + value.len() as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0
    }
}

/// Body and attributes.
fn split(answer: &[u8], body: usize) -> io::Result<(&[u8], &[u8])> {
    answer.split_at_checked(body).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let Some(header) = attributes.first_chunk::<4>() {
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = attributes.get(4..len)?;
        if u16::from_ne_bytes([header[2], header[3]]) == wanted {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
    None
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |word| u32::from_ne_bytes(*word))
}

fn double(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_ne_bytes(*word))
}

fn family(ip: IpAddr) -> u8 {
    (if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_found() {
        let mut request = Request::new(RTM_GETLINK, 0, &[]);
        request.attribute(7, b"abcde");
        request.attribute(8, b"f");
        let bytes = request.finish();
        assert_eq!(word(&bytes, 0), 16 + 12 + 8);
        assert_eq!(find(&bytes[HEADER..], 8), Some(b"f".as_slice()));
        assert_eq!(find(&bytes[HEADER..], 9), None);
        assert_eq!(find(&bytes[HEADER..HEADER + 6], 7), None, "cut off");
    }

    #[test]
    fn the_loopback_interface_is_known_and_others_are_not() {
        let mut netlink = Netlink::open().unwrap();
        let lo = netlink.link("lo").unwrap();
        assert_eq!((lo.index, lo.ethernet), (1, [0; 6]));
        assert_eq!(netlink.link("none-such").unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
}
