//! Redirection: frames that carry media to us leave an interface's receive queue for our AF_XDP socket, with the time of their
//! arrival in front; everything else goes its usual way through the kernel (XDP program).

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::insn::Function::{KtimeNs, MapLookup, RedirectMap, XdpAdjustMeta, XdpBuffLen};
use super::insn::Register::{self, R0, R1, R2, R3, R4, R6, R7, R8, R9, R10};
use super::insn::{
    Line, add, and, assemble, call, exit, from_be16, go, if_above, if_eq, if_gt, if_lt, if_ne, if_null,
    label, load_map, load8, load16, load32, load64, mov, set, shift_left, store32, store64, sub_register,
};
use super::ports::PortTable;
use super::{Link, Map, MapKind, Program, ProgramKind, remedy};
use crate::limits;

/// Bytes in front of a redirected frame: when it came, in nanoseconds of CLOCK_MONOTONIC, in the host's byte order.
pub const ARRIVAL_SIZE: usize = 8;

/// How an interface runs the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// In the driver, before the kernel has made anything of the frame (XDP_FLAGS_DRV_MODE).
    Native = 1 << 2,
    /// In the kernel's stack, with every driver (XDP_FLAGS_SKB_MODE).
    Generic = 1 << 1,
}

/// Why an interface does not run the program.
#[derive(Debug)]
pub enum AttachError {
    /// Another XDP program is there, of somebody else or of another recorder.
    Busy,
    /// The driver has no such mode, or not with the interface's settings (MTU, LRO, number of queues).
    NotSupported(io::Error),
    /// There is no such interface (any more).
    Gone,
    NotPermitted,
    Other(io::Error),
}

impl AttachError {
    fn new(error: io::Error, ifindex: u32) -> AttachError {
        match error.raw_os_error() {
            Some(libc::EBUSY | libc::EEXIST) => AttachError::Busy,
            // Linux tells a wrong index from wrong settings in no other way.
            Some(libc::EINVAL) if !exists(ifindex) => AttachError::Gone,
            Some(libc::ENODEV) => AttachError::Gone,
            // ERANGE and ENOSPC are a veth's words for its MTU and its peer's queues.
            Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ERANGE | libc::ENOSPC) => {
                AttachError::NotSupported(error)
            }
            Some(libc::EPERM) => AttachError::NotPermitted,
            _ => AttachError::Other(error),
        }
    }
}

fn exists(ifindex: u32) -> bool {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the call writes at most IF_NAMESIZE bytes, which is the array's length.
    !unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr()) }.is_null()
}

/// To stand after the interface's name.
impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttachError::Busy => f.write_str("has an XDP program already: detach that one"),
            AttachError::NotSupported(e) => {
                write!(f, "does not run XDP programs in this mode or with its MTU and queues ({e})")
            }
            AttachError::Gone => f.write_str("does not exist"),
            AttachError::NotPermitted => f.write_str(
                "takes no XDP program from us: old kernels want CAP_BPF and CAP_NET_ADMIN, a security module may forbid it",
            ),
            AttachError::Other(e) => write!(f, "takes no XDP program ({e})"),
        }
    }
}

/// The addresses at which media is taken: those of the host, or the one configured.
pub struct Addresses {
    /// By IPv6 address, or IPv4 mapped to it; the values say nothing. It has room for the old and the new addresses at once.
    map: Map<[u8; 16], u32>,
    known: HashSet<IpAddr>,
}

impl Addresses {
    pub fn new(addresses: &[IpAddr]) -> Result<Addresses, String> {
        let map = Map::new(MapKind::Hash, "sipreel_hosts", 2 * limits::MEDIA_ADDRESSES_MAX)?;
        let mut table = Addresses { map, known: HashSet::new() };
        table.refresh(addresses)?;
        Ok(table)
    }

    /// Adds what is new, then removes what is gone: an address that stays is never missing. Takes effect with the next frame.
    pub fn refresh(&mut self, addresses: &[IpAddr]) -> Result<(), String> {
        let wanted: HashSet<IpAddr> = addresses.iter().copied().collect();
        if wanted.len() > limits::MEDIA_ADDRESSES_MAX as usize {
            let most = limits::MEDIA_ADDRESSES_MAX;
            return Err(format!(
                "{} addresses are more than the {most} that media is taken at: configure one",
                wanted.len()
            ));
        }
        for address in &wanted - &self.known {
            self.map
                .set(key(address), 1)
                .map_err(|e| format!("adding {address} to a BPF map failed ({e})"))?;
            self.known.insert(address);
        }
        for address in &self.known - &wanted {
            self.map
                .delete(key(address))
                .map_err(|e| format!("removing {address} from a BPF map failed ({e})"))?;
            self.known.remove(&address);
        }
        Ok(())
    }
}

fn key(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// The program for one interface, and the sockets of its receive queues.
pub struct Redirect {
    program: Program,
    sockets: Map<u32, u32>,
}

impl Redirect {
    /// A program for an interface of so many receive queues, without a socket yet: the kernel gets every frame.
    pub fn load(table: &PortTable, addresses: &Addresses, queues: u32) -> Result<Redirect, String> {
        if !(1..=limits::XDP_QUEUES_MAX).contains(&queues) {
            let most = limits::XDP_QUEUES_MAX;
            return Err(format!("{queues} receive queues are not 1 to {most}: set them with ethtool -L"));
        }
        let sockets = Map::new(MapKind::XskMap, "sipreel_queues", queues)?;
        let insns = assemble(&listing(table, addresses, &sockets));
        let program = Program::load(ProgramKind::Xdp, "sipreel_xdp", &insns)
            .map_err(|e| format!("loading the XDP program failed: {e}"))?;
        Ok(Redirect { program, sockets })
    }

    /// Media frames of this receive queue (from 0) go to this AF_XDP socket from now on, until it is closed. The socket is bound
    /// to that queue of that interface: the kernel drops frames for one that is not.
    pub fn set_socket(&self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), String> {
        self.sockets
            .set(queue, socket.as_raw_fd() as u32)
            .map_err(|e| format!("receive queue {queue} gets no AF_XDP socket ({e}){}", remedy(&e)))
    }

    /// Attaches to an interface of the calling thread's network namespace until the link is dropped.
    pub fn attach(&self, ifindex: u32, mode: Mode) -> Result<Link, AttachError> {
        Link::to_interface(&self.program, ifindex, mode).map_err(|e| AttachError::new(e, ifindex))
    }
}

// struct xdp_md and enum xdp_action of linux/bpf.h.
const DATA: i16 = 0;
const DATA_END: i16 = 4;
const DATA_META: i16 = 8;
const RX_QUEUE: i16 = 16;
pub(super) const XDP_PASS: i32 = 2;

/// The longest frame that an AF_XDP socket takes: what is longer would be dropped, and a kernel socket takes it.
const FRAME_MAX: u32 = limits::XDP_FRAME_SIZE - XDP_PACKET_HEADROOM;
const XDP_PACKET_HEADROOM: u32 = 256;

const ETHERNET: i32 = 14;
const VLAN_TAG: i32 = 4;
const IPV4: i32 = 20;
/// With all the options that fit.
const IPV4_MAX: i32 = 60;
const IPV6: i32 = 40;
const UDP: i32 = 8;

// The stack: destination address as in `Addresses`, port as in `PortTable`.
const ADDRESS: i16 = -16;
const PORT: i16 = -20;

/// R6 is the context, R7 the header that is being read, R8 the end of the frame, R9 how many bytes are left from R7 on and at
/// last the time. Lengths are checked as the kernel does, so that what is redirected is a whole datagram. Pointers move by
/// constants only: without CAP_PERFMON the verifier takes nothing else.
fn listing(table: &PortTable, addresses: &Addresses, sockets: &Map<u32, u32>) -> Vec<Line> {
    [
        &ethernet()[..],
        &vlan("first tag"),
        &vlan("second tag"),
        &network(),
        &ipv4(),
        &ipv6(),
        &udp(),
        &table.find(PORT, "pass"),
        &known(addresses),
        &arrival(),
        &redirect(sockets),
    ]
    .concat()
}

/// Passes the frame unless there are so many bytes at R7. Uses R2.
fn room(bytes: i32) -> [Line; 3] {
    [mov(R2, R7), add(R2, bytes), if_above(R2, R8, "pass")]
}

/// A field of two bytes as the network has it.
const fn net16(value: u16) -> u32 {
    value.to_be() as u32
}

fn ethernet() -> Vec<Line> {
    let start = [mov(R6, R1), call(XdpBuffLen), mov(R9, R0), load32(R7, R6, DATA), load32(R8, R6, DATA_END)];
    let fits = [if_gt(R9, FRAME_MAX, "pass")];
    let kind = [load16(R3, R7, 12), add(R7, ETHERNET), add(R9, -ETHERNET)];
    [&start[..], &fits, &room(ETHERNET), &kind].concat()
}

/// R3 is the type of what is at R7; if that is a tag, it is stepped over.
fn vlan(tag: &'static str) -> Vec<Line> {
    let is_tag = [if_eq(R3, net16(0x8100), tag), if_ne(R3, net16(0x88a8), "network"), label(tag)];
    let kind = [load16(R3, R7, 2), add(R7, VLAN_TAG), add(R9, -VLAN_TAG)];
    [&is_tag[..], &room(VLAN_TAG), &kind].concat()
}

fn network() -> Vec<Line> {
    vec![label("network"), if_eq(R3, net16(0x86dd), "ipv6"), if_ne(R3, net16(0x0800), "pass")]
}

/// Passes the frame unless the first four bits of R7's header are the version. Leaves the whole byte in R3, uses R4.
fn version(version: u32) -> [Line; 4] {
    [load8(R3, R7, 0), mov(R4, R3), and(R4, 0xf0), if_ne(R4, version << 4, "pass")]
}

fn big_endian(to: Register, offset: i16) -> [Line; 2] {
    [load16(to, R7, offset), from_be16(to)]
}

fn ipv4() -> Vec<Line> {
    let header = [
        // Bytes of the header, options too.
        and(R3, 0x0f),
        shift_left(R3, 2),
        if_lt(R3, IPV4 as u32, "pass"),
        load8(R4, R7, 9),
        if_ne(R4, libc::IPPROTO_UDP as u32, "pass"),
        // More fragments, or not the first one.
        load16(R4, R7, 6),
        and(R4, net16(0x3fff) as i32),
        if_ne(R4, 0, "pass"),
    ];
    let length = [if_above(R4, R9, "pass"), if_above(R3, R4, "pass"), mov(R9, R4), sub_register(R9, R3)];
    let address = [
        set(R4, 0),
        store64(R10, ADDRESS, R4),
        set(R4, i32::from_ne_bytes([0, 0, 0xff, 0xff])),
        store32(R10, ADDRESS + 8, R4),
        load32(R4, R7, 16),
        store32(R10, ADDRESS + 12, R4),
    ];
    let mut lines = [&room(IPV4)[..], &version(4), &header, &big_endian(R4, 2), &length, &address].concat();
    // A step for each word of the options.
    lines.push(add(R7, IPV4));
    lines.extend((IPV4..IPV4_MAX).step_by(4).flat_map(|bytes| [if_eq(R3, bytes as u32, "udp"), add(R7, 4)]));
    lines.push(go("udp"));
    lines
}

fn ipv6() -> Vec<Line> {
    // Any extension header, a fragment's among them, is not UDP.
    let header = [load8(R3, R7, 6), if_ne(R3, libc::IPPROTO_UDP as u32, "pass")];
    let length = [add(R9, -IPV6), if_above(R4, R9, "pass"), mov(R9, R4)];
    let address =
        [load64(R4, R7, 24), store64(R10, ADDRESS, R4), load64(R4, R7, 32), store64(R10, ADDRESS + 8, R4)];
    let next = [add(R7, IPV6)];
    [&[label("ipv6")], &room(IPV6)[..], &version(6), &header, &big_endian(R4, 4), &length, &address, &next]
        .concat()
}

/// Leaves the destination port in R2.
fn udp() -> Vec<Line> {
    let length = [if_lt(R4, UDP as u32, "pass"), if_above(R4, R9, "pass")];
    [&[label("udp")], &room(UDP)[..], &big_endian(R4, 4), &length, &big_endian(R2, 2)].concat()
}

fn known(addresses: &Addresses) -> [Line; 5] {
    let map = &addresses.map;
    [load_map(R1, map), mov(R2, R10), add(R2, i32::from(ADDRESS)), call(MapLookup), if_null(R0, "pass")]
}

/// A driver may refuse the room for the time: then the frame goes without. Moving the frame's start invalidates what was read.
fn arrival() -> [Line; 12] {
    [
        call(KtimeNs),
        mov(R9, R0),
        mov(R1, R6),
        set(R2, -(ARRIVAL_SIZE as i32)),
        call(XdpAdjustMeta),
        if_ne(R0, 0, "redirect"),
        load32(R2, R6, DATA_META),
        load32(R3, R6, DATA),
        mov(R4, R2),
        add(R4, ARRIVAL_SIZE as i32),
        if_above(R4, R3, "redirect"),
        store64(R2, 0, R9),
    ]
}

/// A queue without a socket passes.
fn redirect(sockets: &Map<u32, u32>) -> [Line; 9] {
    [
        label("redirect"),
        load_map(R1, sockets),
        load32(R2, R6, RX_QUEUE),
        set(R3, XDP_PASS),
        call(RedirectMap),
        exit(),
        label("pass"),
        set(R0, XDP_PASS),
        exit(),
    ]
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};

    use super::super::super::namespace::{self, NEEDED, ip};
    use super::*;
    use crate::engine::capability::{Capability, granted, keep_only};
    use crate::engine::cpu;

    const FIRST: u16 = 40_000;
    const LAST: u16 = 40_099;
    /// Of the range, but bound by somebody else.
    const FOREIGN: u16 = 40_050;
    const HOST4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 200);
    const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 2, 3, 4, 0xffff);
    const OTHER4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 201);
    const OTHER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 2, 3, 4, 0xfffe);

    const TAG: u16 = 0x8100;
    const SERVICE_TAG: u16 = 0x88a8;
    const MORE_FRAGMENTS: u16 = 0x2000;
    const DO_NOT_FRAGMENT: u16 = 0x4000;

    const PASSED: u32 = 2;
    const REDIRECTED: u32 = 4;

    fn ethernet(tags: &[u16], kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for tag in tags {
            frame.extend(tag.to_be_bytes());
            frame.extend([0x20, 0x64]);
        }
        frame.extend(kind.to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn ipv4(to: Ipv4Addr, fragment: u16, options: &[u8], protocol: u8, payload: &[u8]) -> Vec<u8> {
        let length = (20 + options.len() + payload.len()) as u16;
        let mut packet = vec![0x45 + (options.len() / 4) as u8, 0];
        packet.extend(length.to_be_bytes());
        packet.extend([0, 1]);
        packet.extend(fragment.to_be_bytes());
        packet.extend([64, protocol, 0, 0, 198, 51, 100, 1]);
        packet.extend(to.octets());
        packet.extend(options);
        packet.extend(payload);
        packet
    }

    fn ipv6(to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend((payload.len() as u16).to_be_bytes());
        packet.extend([next, 64]);
        packet.extend(Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 1).octets());
        packet.extend(to.octets());
        packet.extend(payload);
        packet
    }

    fn udp(port: u16) -> Vec<u8> {
        let payload = b"\x80\x00\x00\x01\x00\x00\x00\xa0\xde\xad\xbe\xef media";
        let mut datagram = vec![0x13, 0x88];
        datagram.extend(port.to_be_bytes());
        datagram.extend((8 + payload.len() as u16).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(payload);
        datagram
    }

    fn media4(tags: &[u16], port: u16) -> Vec<u8> {
        ethernet(tags, 0x0800, &ipv4(HOST4, DO_NOT_FRAGMENT, &[], 17, &udp(port)))
    }

    fn media6(tags: &[u16], port: u16) -> Vec<u8> {
        ethernet(tags, 0x86dd, &ipv6(HOST6, 17, &udp(port)))
    }

    fn with_options(bytes: usize) -> Vec<u8> {
        ethernet(&[], 0x0800, &ipv4(HOST4, 0, &vec![1; bytes], 17, &udp(FIRST)))
    }

    /// An Ethernet frame is at least so long.
    fn padded(mut frame: Vec<u8>) -> Vec<u8> {
        frame.extend([0; 18]);
        frame
    }

    /// The frame with these bytes at this place.
    fn changed(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    }

    fn accepted() -> Vec<(&'static str, Vec<u8>)> {
        vec![
            ("IPv4", media4(&[], FIRST)),
            ("IPv4, last port", media4(&[], LAST)),
            ("IPv4, one tag", media4(&[TAG], FIRST)),
            ("IPv4, service tag", media4(&[SERVICE_TAG], FIRST)),
            ("IPv4, two tags", media4(&[SERVICE_TAG, TAG], FIRST)),
            ("IPv4, two customer tags", media4(&[TAG, TAG], FIRST)),
            ("IPv4, four bytes of options", with_options(4)),
            ("IPv4, all options there can be", with_options(40)),
            ("IPv4, padded", padded(media4(&[], FIRST))),
            ("IPv6", media6(&[], FIRST)),
            ("IPv6, last port", media6(&[], LAST)),
            ("IPv6, one tag", media6(&[TAG], FIRST)),
            ("IPv6, two tags", media6(&[SERVICE_TAG, TAG], FIRST)),
            ("IPv6, padded", padded(media6(&[], FIRST))),
        ]
    }

    fn refused() -> Vec<(&'static str, Vec<u8>)> {
        let whole = udp(FIRST);
        let fragment = |field| ethernet(&[], 0x0800, &ipv4(HOST4, field, &[], 17, &whole));
        let fragment6 = [&[17, 0, 0, 1, 0, 0, 0, 7][..], &whole].concat();
        let hop_by_hop = [&[17, 0, 1, 4, 0, 0, 0, 0][..], &whole].concat();
        let arp =
            [&[0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2, 198, 51, 100, 1][..], &[0; 6], &HOST4.octets()];
        vec![
            ("first fragment", fragment(MORE_FRAGMENTS)),
            ("later fragment", fragment(MORE_FRAGMENTS | 185)),
            ("last fragment", fragment(1)),
            ("last of many fragments", fragment(0x1fff)),
            ("IPv6 fragment", ethernet(&[], 0x86dd, &ipv6(HOST6, 44, &fragment6))),
            ("IPv6 hop-by-hop options", ethernet(&[], 0x86dd, &ipv6(HOST6, 0, &hop_by_hop))),
            ("TCP", ethernet(&[], 0x0800, &ipv4(HOST4, 0, &[], 6, &whole))),
            ("TCP over IPv6", ethernet(&[], 0x86dd, &ipv6(HOST6, 6, &whole))),
            ("ICMP", ethernet(&[], 0x0800, &ipv4(HOST4, 0, &[], 1, &whole))),
            ("ICMPv6", ethernet(&[], 0x86dd, &ipv6(HOST6, 58, &whole))),
            ("ARP", ethernet(&[], 0x0806, &arp.concat())),
            ("tagged ARP", ethernet(&[TAG], 0x0806, &arp.concat())),
            ("SIP", media4(&[], 5_060)),
            ("SIP over IPv6", media6(&[], 5_060)),
            ("port below the range", media4(&[], FIRST - 1)),
            ("port above the range", media4(&[], LAST + 1)),
            ("port below the range, IPv6", media6(&[], FIRST - 1)),
            ("port above the range, IPv6", media6(&[], LAST + 1)),
            ("lowest port", media4(&[], 0)),
            ("highest port", media4(&[], u16::MAX)),
            ("port of somebody else", media4(&[], FOREIGN)),
            ("port of somebody else, IPv6", media6(&[TAG], FOREIGN)),
            ("other address", ethernet(&[], 0x0800, &ipv4(OTHER4, 0, &[], 17, &whole))),
            ("other IPv6 address", ethernet(&[], 0x86dd, &ipv6(OTHER6, 17, &whole))),
            ("three tags", media4(&[SERVICE_TAG, TAG, TAG], FIRST)),
            ("IPv4 announced as IPv6", changed(media4(&[], FIRST), 12, &[0x86, 0xdd])),
            ("IPv6 announced as IPv4", changed(media6(&[], FIRST), 12, &[0x08, 0x00])),
            ("a header of 16 bytes", changed(media4(&[], FIRST), 14, &[0x44])),
            ("a header beyond the packet", changed(media4(&[], FIRST), 14, &[0x4f])),
            ("a packet shorter than its header", changed(media4(&[], FIRST), 16, &[0, 19])),
            ("a packet longer than its frame", changed(media4(&[], FIRST), 16, &[0xff, 0xff])),
            ("an IPv6 packet longer than its frame", changed(media6(&[], FIRST), 18, &[0xff, 0xff])),
            ("an IPv6 jumbogram", changed(media6(&[], FIRST), 18, &[0, 0])),
            ("a datagram shorter than its header", changed(media4(&[], FIRST), 38, &[0, 7])),
            ("a datagram longer than its packet", changed(padded(media4(&[], FIRST)), 38, &[0, 27])),
            ("an IPv6 datagram without a length", changed(media6(&[], FIRST), 58, &[0, 0])),
            ("an IPv6 datagram longer than its packet", changed(padded(media6(&[], FIRST)), 58, &[0, 27])),
        ]
    }

    /// Not bound to an interface: good enough for a verdict.
    fn xdp_socket() -> OwnedFd {
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: this descriptor was made above, and nobody else knows it.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }

    struct Interface {
        table: PortTable,
        addresses: Addresses,
        redirect: Redirect,
        socket: Option<OwnedFd>,
    }

    impl Interface {
        /// With a socket for its queue 0, on which test runs arrive. `None`: not permitted.
        fn new() -> Option<Interface> {
            granted(&NEEDED).then(|| {
                let table = PortTable::new((FIRST, LAST)).unwrap();
                for port in (FIRST..=LAST).filter(|&port| port != FOREIGN) {
                    table.set(port, Some((port % 3) as u8)).unwrap();
                }
                let addresses = Addresses::new(&[HOST4.into(), HOST6.into()]).unwrap();
                let redirect = Redirect::load(&table, &addresses, 4).unwrap();
                let socket = xdp_socket();
                redirect.set_socket(0, socket.as_fd()).unwrap();
                Interface { table, addresses, redirect, socket: Some(socket) }
            })
        }

        /// Whether the frame is redirected. If so its time is in front of it, and in any case it is as it was.
        fn redirects(&self, frame: &[u8]) -> bool {
            let before = cpu::now().mono.0;
            let (verdict, after) = self.redirect.program.test_run(frame, &mut []).unwrap();
            assert!([PASSED, REDIRECTED].contains(&verdict), "{verdict}");
            let ahead = after.len() - frame.len();
            assert!(after[ahead..] == *frame, "the frame was changed");
            if verdict == REDIRECTED {
                let arrival = u64::from_ne_bytes(after[..ahead].try_into().unwrap());
                assert!((before..=cpu::now().mono.0).contains(&arrival), "{arrival}");
            }
            verdict == REDIRECTED
        }
    }

    #[test]
    fn media_is_redirected_with_its_time() {
        let Some(interface) = Interface::new() else { return };
        for (what, frame) in accepted() {
            assert!(interface.redirects(&frame), "{what}");
        }
    }

    #[test]
    fn everything_else_passes() {
        let Some(interface) = Interface::new() else { return };
        for (what, frame) in refused() {
            assert!(!interface.redirects(&frame), "{what}");
        }
    }

    #[test]
    fn a_frame_that_no_socket_takes_passes() {
        let Some(interface) = Interface::new() else { return };
        for (length, redirected) in [(FRAME_MAX, true), (FRAME_MAX + 1, false)] {
            let mut frame = media4(&[], FIRST);
            frame.resize(length as usize, 0);
            assert_eq!(interface.redirects(&frame), redirected, "{length} bytes");
        }
    }

    /// From a mere Ethernet header, the least that a test run takes, to all but the last byte.
    #[test]
    fn truncated_frames_pass() {
        let Some(interface) = Interface::new() else { return };
        for (what, frame) in accepted() {
            let padding = if what.contains("padded") { 18 } else { 0 };
            for length in ETHERNET as usize..frame.len() - padding {
                assert!(!interface.redirects(&frame[..length]), "{what}, {length} bytes");
            }
        }
    }

    #[test]
    fn ports_addresses_and_sockets_may_change_while_it_runs() {
        let Some(mut interface) = Interface::new() else { return };
        let (v4, v6) = (media4(&[], FIRST), media6(&[], FIRST));
        let other = ethernet(&[], 0x0800, &ipv4(OTHER4, 0, &[], 17, &udp(FIRST)));
        interface.table.set(FIRST, None).unwrap();
        assert!(!interface.redirects(&v4) && !interface.redirects(&v6));
        interface.table.set(FIRST, Some(63)).unwrap();
        assert!(interface.redirects(&v4) && interface.redirects(&v6));

        interface.addresses.refresh(&[HOST4.into(), OTHER4.into()]).unwrap();
        assert_eq!([&v4, &v6, &other].map(|frame| interface.redirects(frame)), [true, false, true]);
        interface.addresses.refresh(&[HOST6.into()]).unwrap();
        assert_eq!([&v4, &v6, &other].map(|frame| interface.redirects(frame)), [false, true, false]);

        interface.socket = None;
        assert!(!interface.redirects(&v6), "its socket is closed");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let Some(mut interface) = Interface::new() else { return };
        let error = interface.redirect.set_socket(4, interface.socket.as_ref().unwrap().as_fd()).unwrap_err();
        assert!(error.contains("queue 4"), "{error}");
        for queues in [0, limits::XDP_QUEUES_MAX + 1] {
            let error = Redirect::load(&interface.table, &interface.addresses, queues).err().unwrap();
            assert!(error.contains("queues"), "{error}");
        }
        let addresses =
            |first: u32, count| (first..first + count).map(|n| IpAddr::V4(n.into())).collect::<Vec<_>>();
        let most = limits::MEDIA_ADDRESSES_MAX;
        let error = interface.addresses.refresh(&addresses(0, most + 1)).unwrap_err();
        assert!(error.contains("4097"), "{error}");
        interface.addresses.refresh(&addresses(0, most)).unwrap();
        interface.addresses.refresh(&addresses(most, most)).unwrap();
        assert!(!interface.redirects(&media4(&[], FIRST)));
    }

    fn index(name: &str) -> u32 {
        let name = std::ffi::CString::new(name).unwrap();
        // SAFETY: the name ends in a zero byte and lives until the call returns.
        unsafe { libc::if_nametoindex(name.as_ptr()) }
    }

    #[test]
    fn an_interface_that_cannot_be_attached_to_says_why() {
        namespace::run(|| {
            let interface = Interface::new().unwrap();
            let attach = |name, mode| interface.redirect.attach(index(name), mode);
            assert!(matches!(attach("lo", Mode::Native), Err(AttachError::NotSupported(_))));
            let link = attach("lo", Mode::Generic).unwrap();
            assert!(matches!(attach("lo", Mode::Generic), Err(AttachError::Busy)));
            drop(link);
            drop(attach("lo", Mode::Generic).unwrap());
            for mode in [Mode::Native, Mode::Generic] {
                assert!(matches!(interface.redirect.attach(999, mode), Err(AttachError::Gone)));
            }

            ip("link add bpfa type veth peer name bpfb");
            let native = attach("bpfa", Mode::Native).unwrap();
            for mode in [Mode::Native, Mode::Generic] {
                assert!(matches!(attach("bpfa", mode), Err(AttachError::Busy)));
            }
            drop(native);
            ip("link set bpfb mtu 9000");
            ip("link set bpfa mtu 9000");
            let error = attach("bpfa", Mode::Native).unwrap_err();
            assert!(matches!(error, AttachError::NotSupported(_)), "{error}");
            let link = attach("bpfa", Mode::Generic).unwrap();
            ip("link del bpfa");
            drop(link);
        });
    }

    #[test]
    fn two_capabilities_are_enough_to_load_and_none_to_attach() {
        namespace::run(|| {
            keep_only(&[Capability::NetAdmin, Capability::Bpf]).unwrap();
            let table = PortTable::new((FIRST, LAST)).unwrap();
            let addresses = Addresses::new(&[HOST4.into()]).unwrap();
            let redirect = Redirect::load(&table, &addresses, 1).unwrap();
            keep_only(&[]).unwrap();
            drop(redirect.attach(index("lo"), Mode::Generic).unwrap());
        });
    }

    #[test]
    fn errors_of_attaching_are_told_apart() {
        let said = |errno| AttachError::new(io::Error::from_raw_os_error(errno), 1).to_string();
        assert!(said(libc::EEXIST).contains("already") && said(libc::EBUSY).contains("already"));
        assert!(said(libc::EOPNOTSUPP).contains("mode") && said(libc::ERANGE).contains("MTU"));
        assert!(said(libc::ENODEV).contains("does not exist"));
        assert!(said(libc::EPERM).contains("CAP_NET_ADMIN"));
        assert!(said(libc::ENOMEM).contains("memory"));
    }
}
