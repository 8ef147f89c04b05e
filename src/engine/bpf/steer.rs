//! Steering: one UDP socket per reactor and address family receives every media port of the reactor (sk_lookup program).

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::insn::Function::{MapLookup, SkAssign, SkRelease};
use super::insn::Line;
use super::insn::Register::{R0, R1, R2, R3, R6, R7, R10};
use super::insn::{
    add, assemble, call, exit, if_eq, if_ne, if_null, label, load_map, load32, mov, set, shift_left, store32,
};
use super::ports::PortTable;
use super::{Link, Map, MapKind, Program, ProgramKind};

// struct bpf_sk_lookup of linux/bpf.h.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_IP4: i16 = 40;
const LOCAL_IP6: i16 = 44;
const LOCAL_PORT: i16 = 60;

/// Also the verdict for what is not ours: the kernel looks further.
const SK_PASS: i32 = 1;
/// BPF_SK_LOOKUP_F_NO_REUSEPORT: this very socket, not one of its reuseport group.
const NO_REUSEPORT: i32 = 2;

/// The program, attached to the network namespace of the thread that attached it. Dropping it detaches.
pub struct Steering {
    _link: Link,
}

impl Steering {
    /// Datagrams to the table's ports, and to the address if there is one, come to the socket of their reactor and family from
    /// now on. `sockets[n]` are reactor n's for IPv4 and (V6ONLY) IPv6: bound, each to some port outside of the range, and not
    /// connected. Without a socket the kernel looks further.
    pub fn attach(
        table: &PortTable,
        address: Option<IpAddr>,
        sockets: &[[Option<BorrowedFd<'_>>; 2]],
    ) -> Result<Steering, String> {
        let program = load(table, address, sockets)?;
        let link = Link::to_namespace(&program)
            .map_err(|e| format!("attaching the sk_lookup program failed ({e}){}", super::remedy(&e)))?;
        Ok(Steering { _link: link })
    }
}

fn load(
    table: &PortTable,
    address: Option<IpAddr>,
    sockets: &[[Option<BorrowedFd<'_>>; 2]],
) -> Result<Program, String> {
    let map = Map::<u32, u64>::new(MapKind::SockMap, "sipreel_media", (sockets.len() * 2).max(1) as u32)?;
    for (key, socket) in sockets.iter().flatten().enumerate() {
        let Some(socket) = socket else { continue };
        map.set(key as u32, socket.as_raw_fd() as u64)
            .map_err(|e| format!("the media socket of reactor {} cannot be steered to ({e})", key / 2))?;
    }
    let insns = assemble(&listing(table, address, &map));
    Program::load(ProgramKind::SkLookup, "sipreel_steer", &insns)
        .map_err(|e| format!("loading the sk_lookup program failed: {e}"))
}

fn listing(table: &PortTable, address: Option<IpAddr>, sockets: &Map<u32, u64>) -> Vec<Line> {
    let mut lines = vec![mov(R6, R1), load32(R2, R6, PROTOCOL), if_ne(R2, libc::IPPROTO_UDP as u32, "pass")];
    lines.extend(address.iter().flat_map(only));
    lines.push(load32(R2, R6, LOCAL_PORT));
    lines.extend(table.find(-4, "pass"));
    lines.extend([
        // 2·reactor for IPv4, one more for IPv6.
        mov(R7, R1),
        add(R7, -1),
        shift_left(R7, 1),
        load32(R2, R6, FAMILY),
        if_eq(R2, libc::AF_INET as u32, "find"),
        add(R7, 1),
        label("find"),
        store32(R10, -4, R7),
        load_map(R1, sockets),
        mov(R2, R10),
        add(R2, -4),
        call(MapLookup),
        if_null(R0, "pass"),
        // An assignment that is refused (another program was first) leaves the datagram to whom it has.
        mov(R7, R0),
        mov(R1, R6),
        mov(R2, R7),
        set(R3, NO_REUSEPORT),
        call(SkAssign),
        mov(R1, R7),
        call(SkRelease),
        label("pass"),
        set(R0, SK_PASS),
        exit(),
    ]);
    lines
}

/// Lines that pass what is not for this address.
fn only(address: &IpAddr) -> Vec<Line> {
    let (family, at, octets) = match address {
        IpAddr::V4(address) => (libc::AF_INET, LOCAL_IP4, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, LOCAL_IP6, address.octets().to_vec()),
    };
    let mut lines = vec![load32(R2, R6, FAMILY), if_ne(R2, family as u32, "pass")];
    for (word, offset) in octets.chunks_exact(4).zip((at..).step_by(4)) {
        let word = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
        lines.extend([load32(R2, R6, offset), if_ne(R2, word, "pass")]);
    }
    lines
}
