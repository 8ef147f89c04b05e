//! Redirection: frames that carry media to us leave an interface's receive queue for our AF_XDP socket, with the time of their
//! arrival in front; everything else goes its usual way through the kernel (XDP program).

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::insn::Function::{KtimeNs, MapLookup, RedirectMap, XdpAdjustMeta};
use super::insn::Register::{self, R0, R1, R2, R3, R4, R6, R7, R8, R9, R10};
use super::insn::{
    Line, add, add_register, and, assemble, call, exit, from_be16, go, if_above, if_eq, if_lt, if_ne,
    if_null, label, load_map, load8, load16, load32, load64, mov, set, shift_left, store32, store64,
    sub_register,
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
            Some(libc::EPERM | libc::EACCES) => AttachError::NotPermitted,
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
            AttachError::NotPermitted => {
                f.write_str("takes no XDP program from us: it takes CAP_BPF and CAP_NET_ADMIN")
            }
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
const XDP_PASS: i32 = 2;

const ETHERNET: i32 = 14;
const VLAN_TAG: i32 = 4;
const IPV4: i32 = 20;
const IPV6: i32 = 40;
const UDP: i32 = 8;

// The stack: destination address as in `Addresses`, port as in `PortTable`.
const ADDRESS: i16 = -16;
const PORT: i16 = -20;

/// R6 is the context, R7 the header that is being read, R8 the end of the frame, R9 the bytes after the IP header and at last
/// the time. Lengths are checked as the kernel does, so that what is redirected is a whole datagram.
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
    let [a, b, c] = room(ETHERNET);
    let start = [mov(R6, R1), load32(R7, R6, DATA), load32(R8, R6, DATA_END), a, b, c];
    [&start[..], &[load16(R3, R7, 12), add(R7, ETHERNET)]].concat()
}

/// R3 is the type of what is at R7; if that is a tag, it is stepped over.
fn vlan(tag: &'static str) -> Vec<Line> {
    let is_tag = [if_eq(R3, net16(0x8100), tag), if_ne(R3, net16(0x88a8), "network"), label(tag)];
    [&is_tag[..], &room(VLAN_TAG), &[load16(R3, R7, 2), add(R7, VLAN_TAG)]].concat()
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
    let length = [
        mov(R2, R7),
        add_register(R2, R9),
        if_above(R2, R8, "pass"),
        if_above(R3, R9, "pass"),
        sub_register(R9, R3),
    ];
    let address = [
        set(R4, 0),
        store64(R10, ADDRESS, R4),
        set(R4, i32::from_ne_bytes([0, 0, 0xff, 0xff])),
        store32(R10, ADDRESS + 8, R4),
        load32(R4, R7, 16),
        store32(R10, ADDRESS + 12, R4),
    ];
    let next = [add_register(R7, R3), go("udp")];
    [&room(IPV4)[..], &version(4), &header, &big_endian(R9, 2), &length, &address, &next].concat()
}

fn ipv6() -> Vec<Line> {
    // Any extension header, a fragment's among them, is not UDP.
    let header = [load8(R3, R7, 6), if_ne(R3, libc::IPPROTO_UDP as u32, "pass")];
    let length = [mov(R2, R7), add(R2, IPV6), add_register(R2, R9), if_above(R2, R8, "pass")];
    let address =
        [load64(R4, R7, 24), store64(R10, ADDRESS, R4), load64(R4, R7, 32), store64(R10, ADDRESS + 8, R4)];
    let next = [add(R7, IPV6)];
    [&[label("ipv6")], &room(IPV6)[..], &version(6), &header, &big_endian(R9, 4), &length, &address, &next]
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
