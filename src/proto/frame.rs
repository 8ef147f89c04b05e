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

/// Reads a frame of TCP as [`super::pcap`] writes it: without options anywhere. `len` is that of the frame.
pub fn tcp(frame: &[u8]) -> Option<UdpFrame<'_>> {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let TransportSlice::Tcp(tcp) = packet.transport? else { return None };
    let (from, to): (std::net::IpAddr, std::net::IpAddr) = match packet.net? {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(_) => return None,
    };
    let (from, to) = (SocketAddr::new(from, tcp.source_port()), SocketAddr::new(to, tcp.destination_port()));
    Some(UdpFrame { from, to, payload: tcp.payload(), len: frame.len() })
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

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{IpHeaders, IpNumber, Ipv4Header, Ipv4Options, Ipv6Header, PacketBuilder, VlanId};
    use etherparse::{Ipv4Extensions, Ipv6Extensions, LinkExtSlice, NetSlice, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    const PAYLOAD: &[u8] = b"\x80\x00 twelve or more bytes";

    /// Untagged IPv4 without options: payload at 42.
    fn plain() -> Vec<u8> {
        built(&[], v4(0), 4000, 20_002, PAYLOAD)
    }

    fn v4(options: usize) -> IpHeaders {
        let mut header = Ipv4Header::new(0, 64, IpNumber::UDP, [10, 0, 0, 1], [192, 168, 1, 2]).unwrap();
        header.options = Ipv4Options::try_from(&[1_u8; 40][..options * 4]).unwrap();
        IpHeaders::Ipv4(header, Ipv4Extensions::default())
    }

    fn v6() -> IpHeaders {
        let header = Ipv6Header {
            next_header: IpNumber::UDP,
            source: Ipv6Addr::LOCALHOST.octets(),
            destination: "2001:db8::7".parse::<Ipv6Addr>().unwrap().octets(),
            ..Ipv6Header::default()
        };
        IpHeaders::Ipv6(header, Ipv6Extensions::default())
    }

    fn built(tags: &[u16], ip: IpHeaders, from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let udp = match *tags {
            [] => ethernet.ip(ip).udp(from, to),
            [one] => ethernet.single_vlan(VlanId::try_new(one).unwrap()).ip(ip).udp(from, to),
            [outer, inner, ..] => {
                let (outer, inner) = (VlanId::try_new(outer).unwrap(), VlanId::try_new(inner).unwrap());
                ethernet.double_vlan(outer, inner).ip(ip).udp(from, to)
            }
        };
        udp.write(&mut frame, payload).unwrap();
        frame
    }

    fn changed(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut frame = plain();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    }

    #[test]
    fn the_usual_frame_is_read() {
        let frame = plain();
        let read = udp(&frame).unwrap();
        assert_eq!(read.from, "10.0.0.1:4000".parse().unwrap());
        assert_eq!(read.to, "192.168.1.2:20002".parse().unwrap());
        assert_eq!((read.payload, read.len), (PAYLOAD, frame.len()));
        assert_eq!(destination_port(&frame), Some(20_002));
    }

    #[test]
    fn tags_options_and_ipv6_are_read() {
        for (tags, ip, headers) in [
            (&[7][..], v4(0), 46),
            (&[7, 4094], v4(0), 50),
            (&[], v4(10), 82),
            (&[1, 2], v4(1), 54),
            (&[], v6(), 62),
            (&[5, 6], v6(), 70),
        ] {
            let frame = built(tags, ip, 1, 65_535, PAYLOAD);
            let read = udp(&frame).unwrap();
            assert_eq!((read.payload, read.len), (PAYLOAD, headers + PAYLOAD.len()));
            assert_eq!((read.from.port(), read.to.port()), (1, 65_535));
            assert_eq!(destination_port(&frame), Some(65_535));
        }
        let frame = built(&[], v6(), 1, 2, b"");
        assert_eq!(udp(&frame).unwrap().to, "[2001:db8::7]:2".parse().unwrap());
    }

    #[test]
    fn what_lies_behind_the_payload_is_cut_off() {
        let mut padded = built(&[], v4(0), 1, 2, b"ab");
        padded.resize(60, 0xee);
        let read = udp(&padded).unwrap();
        assert_eq!((read.payload, read.len), (&b"ab"[..], 44));
        // IP may carry more than UDP does.
        let longer = changed(38, &[0, 8 + 3]);
        let read = udp(&longer).unwrap();
        assert_eq!((read.payload, read.len), (&PAYLOAD[..3], 45));
        // Eight bytes of UDP are an empty datagram.
        let empty = changed(38, &[0, 8]);
        let read = udp(&empty).unwrap();
        assert_eq!((read.payload, read.len), (&b""[..], 42));
    }

    #[test]
    fn refusals() {
        let ip = (20 + 8 + PAYLOAD.len()) as u8;
        for (frame, why) in [
            (Vec::new(), "nothing"),
            (plain()[..13].to_vec(), "no whole Ethernet header"),
            (changed(12, &[0x08, 0x06]), "ARP"),
            (changed(12, &[0x00, 0x40]), "a length instead of an EtherType"),
            (changed(12, &[0x91, 0x00]), "a tag of another kind"),
            (changed(14, &[0x65]), "IPv6 in a frame of IPv4"),
            (changed(14, &[0x44]), "an IPv4 header of 16 bytes"),
            (changed(14, &[0x4f]), "options that reach behind the packet's end"),
            (changed(16, &[0, ip + 1]), "more IP than frame"),
            (changed(16, &[0, ip - 1]), "more UDP than IP"),
            (changed(16, &[0, 19]), "less IP than its header"),
            (changed(16, &[0, 27]), "no whole UDP header"),
            (changed(20, &[0x20]), "the first fragment"),
            (changed(20, &[0, 1]), "a later fragment"),
            (changed(20, &[0x1f, 0]), "a later fragment"),
            (changed(23, &[6]), "TCP"),
            (changed(38, &[0, 0]), "a UDP length of 0"),
            (changed(38, &[0, 7]), "less UDP than its header"),
            (changed(38, &[0, ip - 20 + 1]), "more UDP than IP"),
        ] {
            assert_eq!(udp(&frame), None, "{why}");
        }
        // Not to be fragmented, and the bit that is reserved, are no fragments.
        assert!(udp(&changed(20, &[0x40])).is_some() && udp(&changed(20, &[0x80])).is_some());
    }

    #[test]
    fn refusals_of_tags_and_ipv6() {
        let mut three = built(&[1, 2], v4(0), 1, 2, PAYLOAD);
        three.splice(12..12, [0x81, 0, 0, 9]);
        assert_eq!((udp(&three), destination_port(&three)), (None, None));
        let cut = &built(&[1], v4(0), 1, 2, PAYLOAD)[..17];
        assert_eq!((udp(cut), destination_port(cut)), (None, None));
        let frame = built(&[], v6(), 1, 2, PAYLOAD);
        let length = (8 + PAYLOAD.len()) as u8;
        for (at, byte, why) in [
            (14, 0x45, "IPv4 in a frame of IPv6"),
            (19, 0, "a jumbogram"),
            (19, length + 1, "more IP than frame"),
            (19, length - 1, "more UDP than IP"),
            (20, 0, "hop-by-hop options"),
            (20, 44, "a fragment"),
            (20, 6, "TCP"),
        ] {
            let mut frame = frame.clone();
            frame[at] = byte;
            assert_eq!(udp(&frame), None, "{why}");
        }
        for end in 0..frame.len() {
            assert_eq!(udp(&frame[..end]), None, "cut off after {end} bytes");
        }
    }

    /// What the reader of another author finds, with the few things added that it lets pass.
    fn oracle(frame: &[u8]) -> Option<UdpFrame<'_>> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        // It also knows a tag type of old, which is not in the standard, and MACsec.
        let tagged = packet.link_exts.iter().zip([12, 16, 20]).all(|(tag, at)| match tag {
            LinkExtSlice::Vlan(_) => frame[at..at + 2] != [0x91, 0x00],
            LinkExtSlice::Macsec(_) => false,
        });
        let start = ETHERNET + packet.link_exts.len() * VLAN_TAG;
        let (from, to, headers, room): (std::net::IpAddr, std::net::IpAddr, _, _) = match &packet.net? {
            NetSlice::Ipv4(ip) if ip.extensions().is_empty() && !ip.header().is_fragmenting_payload() => {
                let header = ip.header();
                let addresses = (header.source_addr().into(), header.destination_addr().into());
                (addresses.0, addresses.1, header.slice().len(), ip.payload().payload.len())
            }
            NetSlice::Ipv6(ip) if ip.extensions().is_empty() => {
                let header = ip.header();
                // To etherparse a length of 0 means all that there is.
                let room = usize::from(header.payload_length());
                (header.source_addr().into(), header.destination_addr().into(), IPV6, room)
            }
            _ => return None,
        };
        let TransportSlice::Udp(udp) = packet.transport? else { return None };
        let length = usize::from(udp.length());
        (tagged && packet.link_exts.len() <= VLAN_TAGS_MAX && (UDP..=room).contains(&length)).then(|| {
            UdpFrame {
                from: SocketAddr::new(from, udp.source_port()),
                to: SocketAddr::new(to, udp.destination_port()),
                payload: &udp.payload()[..length - UDP],
                len: start + headers + length,
            }
        })
    }

    fn frames() -> impl Strategy<Value = Vec<u8>> {
        let ip = prop_oneof![(0..=10_usize).prop_map(v4), Just(v6())];
        let payload = prop::collection::vec(any::<u8>(), 0..300);
        let tags = prop::collection::vec(0..4096_u16, 0..=2);
        (tags, ip, any::<(u16, u16)>(), payload, 0..20_usize).prop_map(
            |(tags, ip, (from, to), payload, padding)| {
                let mut frame = built(&tags, ip, from, to, &payload);
                frame.resize(frame.len() + padding, 0);
                frame
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn generated_frames_are_read_as_the_oracle_reads_them(frame in frames()) {
            let read = udp(&frame);
            prop_assert!(read.is_some());
            prop_assert_eq!(read, oracle(&frame));
            prop_assert_eq!(destination_port(&frame), read.map(|read| read.to.port()));
        }

        #[test]
        fn so_are_damaged_ones(
            mut frame in frames(),
            damage in prop::collection::vec((12..90_usize, any::<u8>()), 0..4),
            end in any::<prop::sample::Index>(),
            whole in any::<bool>(),
        ) {
            for (at, byte) in damage {
                if let Some(place) = frame.get_mut(at) {
                    *place = byte;
                }
            }
            let frame = if whole { &frame[..] } else { &frame[..end.index(frame.len() + 1)] };
            prop_assert_eq!(udp(frame), oracle(frame));
            if let Some(read) = udp(frame) {
                prop_assert_eq!(destination_port(frame), Some(read.to.port()));
            }
        }
    }
}
