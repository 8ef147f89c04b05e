//! The UDP datagram of an Ethernet frame as it came from the wire.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

const ETHERNET: usize = 14;
const VLAN_TAG: usize = 4;
const VLAN_TAGS_MAX: usize = 2;
const IPV4: usize = 20;
const IPV6: usize = 40;
const UDP: usize = 8;

const TYPE_IPV4: u16 = 0x0800;
const TYPE_IPV6: u16 = 0x86dd;
/// IEEE 802.1Q: customer and service tag.
const TYPE_VLAN: [u16; 2] = [0x8100, 0x88a8];
const PROTOCOL_UDP: u8 = 17;
/// IPv4: more fragments follow, or this is not the first.
const FRAGMENT: u16 = 0x3fff;

/// One UDP datagram inside its frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UdpFrame<'a> {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub payload: &'a [u8],
    /// Bytes of the frame up to the end of the payload: without what Ethernet or IP put behind it.
    pub len: usize,
}

/// Reads an Ethernet frame without its checksum: at most two VLAN tags, then IPv4 (options are skipped) or IPv6 (without extension
/// headers), then UDP. `None`: something else, a fragment, or lengths that contradict each other. Checksums are not looked at.
pub fn udp(frame: &[u8]) -> Option<UdpFrame<'_>> {
    let (kind, start) = network(frame)?;
    match kind {
        TYPE_IPV4 => ipv4(frame, start),
        TYPE_IPV6 => ipv6(frame, start),
        _ => None,
    }
}

/// The destination port that [`udp`] would find, from the few bytes that say where it is: of a frame that `udp` refuses, any
/// or none.
pub fn destination_port(frame: &[u8]) -> Option<u16> {
    let (kind, start) = network(frame)?;
    let header = match kind {
        TYPE_IPV4 => usize::from(frame.get(start)? & 0xf) * 4,
        TYPE_IPV6 => IPV6,
        _ => return None,
    };
    word(frame, start + header + 2)
}

/// EtherType of what the tags leave, and where it begins.
fn network(frame: &[u8]) -> Option<(u16, usize)> {
    let mut start = ETHERNET;
    let mut kind = word(frame, start - 2)?;
    for _ in 0..VLAN_TAGS_MAX {
        if !TYPE_VLAN.contains(&kind) {
            break;
        }
        start += VLAN_TAG;
        kind = word(frame, start - 2)?;
    }
    Some((kind, start))
}

fn ipv4(frame: &[u8], start: usize) -> Option<UdpFrame<'_>> {
    let header: &[u8; IPV4] = frame.get(start..)?.first_chunk()?;
    let length = usize::from(header[0] & 0xf) * 4;
    let fragment = u16::from_be_bytes([header[6], header[7]]) & FRAGMENT;
    if header[0] >> 4 != 4 || length < IPV4 || header[9] != PROTOCOL_UDP || fragment != 0 {
        return None;
    }
    let end = start + usize::from(u16::from_be_bytes([header[2], header[3]]));
    let [.., a, b, c, d, e, f, g, h] = *header;
    datagram(frame, start + length, end, Ipv4Addr::new(a, b, c, d), Ipv4Addr::new(e, f, g, h))
}

fn ipv6(frame: &[u8], start: usize) -> Option<UdpFrame<'_>> {
    let header: &[u8; IPV6] = frame.get(start..)?.first_chunk()?;
    if header[0] >> 4 != 6 || header[6] != PROTOCOL_UDP {
        return None;
    }
    let end = start + IPV6 + usize::from(u16::from_be_bytes([header[4], header[5]]));
    let (from, to): (&[u8; 16], &[u8; 16]) = (header[8..].first_chunk()?, header[24..].first_chunk()?);
    datagram(frame, start + IPV6, end, Ipv6Addr::from(*from), Ipv6Addr::from(*to))
}

/// The datagram at `start` of a packet that ends at `end`.
fn datagram<Ip: Into<std::net::IpAddr>>(
    frame: &[u8],
    start: usize,
    end: usize,
    from: Ip,
    to: Ip,
) -> Option<UdpFrame<'_>> {
    let packet = frame.get(start..end)?;
    let header: &[u8; UDP] = packet.first_chunk()?;
    let field = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let length = usize::from(field(4));
    let payload = packet.get(UDP..length)?;
    Some(UdpFrame {
        from: SocketAddr::new(from.into(), field(0)),
        to: SocketAddr::new(to.into(), field(2)),
        payload,
        len: start + length,
    })
}

fn word(frame: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?))
}
