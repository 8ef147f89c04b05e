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
pub(super) const SK_PASS: i32 = 1;
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

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
    use std::os::fd::AsFd;

    use socket2::{Domain, SockRef, Socket, Type};

    use super::super::super::namespace::{self, NEEDED};
    use super::super::attached;
    use super::*;
    use crate::engine::capability::{Capability, granted, keep_only};

    const FIRST: u16 = 40_000;
    const LAST: u16 = 40_007;
    const HOST4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 200));
    const HOST6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 2, 3, 4, 0xffff));

    /// Bound to any port; an IPv6 one is V6ONLY.
    fn socket(address: IpAddr) -> Socket {
        let address = SocketAddr::new(address, 0);
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None).unwrap();
        if address.is_ipv6() {
            socket.set_only_v6(true).unwrap();
        }
        socket.bind(&address.into()).unwrap();
        socket
    }

    /// The sockets of so many reactors.
    fn sockets(reactors: usize) -> Vec<[Socket; 2]> {
        let any = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        (0..reactors).map(|_| any.map(socket)).collect()
    }

    fn borrowed(sockets: &[[Socket; 2]]) -> Vec<[Option<BorrowedFd<'_>>; 2]> {
        sockets.iter().map(|[v4, v6]| [Some(v4.as_fd()), Some(v6.as_fd())]).collect()
    }

    /// Ports of the range in turn, but for the last: that one is somebody else's.
    fn table(reactors: u8) -> PortTable {
        let table = PortTable::new((FIRST, LAST)).unwrap();
        for port in FIRST..LAST {
            table.set(port, Some((port - FIRST) as u8 / 2 % reactors)).unwrap();
        }
        table
    }

    /// The cookie of the socket that the program chooses, or 0.
    fn chosen(program: &Program, protocol: libc::c_int, to: IpAddr, port: u16) -> u64 {
        let mut context = [0; 72];
        let mut put = |at: i16, bytes: &[u8]| context[at as usize..][..bytes.len()].copy_from_slice(bytes);
        put(PROTOCOL, &protocol.to_ne_bytes());
        put(LOCAL_PORT, &u32::from(port).to_ne_bytes());
        match to {
            IpAddr::V4(to) => {
                put(FAMILY, &libc::AF_INET.to_ne_bytes());
                put(LOCAL_IP4, &to.octets());
            }
            IpAddr::V6(to) => {
                put(FAMILY, &libc::AF_INET6.to_ne_bytes());
                put(LOCAL_IP6, &to.octets());
            }
        }
        let (verdict, _) = program.test_run(&[], &mut context).unwrap();
        assert_eq!(verdict, SK_PASS as u32, "{protocol} {to} {port}");
        u64::from_ne_bytes(context[..8].try_into().unwrap())
    }

    #[test]
    fn a_media_port_chooses_the_socket_of_its_reactor_and_family() {
        if !granted(&NEEDED) {
            return;
        }
        let (table, sockets) = (table(2), sockets(2));
        let program = load(&table, None, &borrowed(&sockets)).unwrap();
        for port in FIRST..LAST {
            let [v4, v6] = &sockets[usize::from(port - FIRST) / 2 % 2];
            assert_eq!(chosen(&program, libc::IPPROTO_UDP, HOST4, port), v4.cookie().unwrap());
            assert_eq!(chosen(&program, libc::IPPROTO_UDP, HOST6, port), v6.cookie().unwrap());
        }
        for to in [HOST4, HOST6] {
            for port in [0, 5_060, FIRST - 1, LAST, LAST + 1, u16::MAX] {
                assert_eq!(chosen(&program, libc::IPPROTO_UDP, to, port), 0, "{to} {port}");
            }
            assert_eq!(chosen(&program, libc::IPPROTO_TCP, to, FIRST), 0);
        }
        table.set(FIRST, None).unwrap();
        table.set(LAST, Some(1)).unwrap();
        assert_eq!(chosen(&program, libc::IPPROTO_UDP, HOST4, FIRST), 0);
        assert_eq!(chosen(&program, libc::IPPROTO_UDP, HOST4, LAST), sockets[1][0].cookie().unwrap());
    }

    #[test]
    fn one_media_address_is_the_only_one() {
        if !granted(&NEEDED) {
            return;
        }
        let (table, sockets) = (table(1), sockets(1));
        for (address, other, socket) in [(HOST4, HOST6, &sockets[0][0]), (HOST6, HOST4, &sockets[0][1])] {
            let program = load(&table, Some(address), &borrowed(&sockets)).unwrap();
            assert_eq!(chosen(&program, libc::IPPROTO_UDP, address, FIRST), socket.cookie().unwrap());
            assert_eq!(chosen(&program, libc::IPPROTO_UDP, other, FIRST), 0);
            for neighbour in neighbours(address) {
                assert_eq!(chosen(&program, libc::IPPROTO_UDP, neighbour, FIRST), 0, "{neighbour}");
            }
        }
    }

    /// Each differs in one octet.
    fn neighbours(address: IpAddr) -> Vec<IpAddr> {
        fn changed<const N: usize>(octets: [u8; N]) -> impl Iterator<Item = [u8; N]> {
            (0..N).map(move |at| {
                let mut octets = octets;
                octets[at] ^= 0x80;
                octets
            })
        }
        match address {
            IpAddr::V4(address) => changed(address.octets()).map(IpAddr::from).collect(),
            IpAddr::V6(address) => changed(address.octets()).map(IpAddr::from).collect(),
        }
    }

    #[test]
    fn without_a_socket_the_kernel_looks_further() {
        if !granted(&NEEDED) {
            return;
        }
        let (table, mut sockets) = (table(2), sockets(1));
        let mut only_v6 = borrowed(&sockets);
        only_v6[0][0] = None;
        let program = load(&table, None, &only_v6).unwrap();
        let cookie = sockets[0][1].cookie().unwrap();
        assert_eq!(chosen(&program, libc::IPPROTO_UDP, HOST4, FIRST), 0, "no socket of this family");
        assert_eq!(chosen(&program, libc::IPPROTO_UDP, HOST6, FIRST), cookie);
        assert_eq!(chosen(&program, libc::IPPROTO_UDP, HOST6, FIRST + 2), 0, "no socket of this reactor");
        sockets.clear();
        assert_eq!(chosen(&program, libc::IPPROTO_UDP, HOST6, FIRST), 0, "its socket is closed");
        load(&table, None, &[]).unwrap();
        let unbound = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        let error = load(&table, None, &[[None, None], [Some(unbound.as_fd()), None]]).err().unwrap();
        assert!(error.contains("reactor 1"), "{error}");
    }

    /// The port that a datagram was sent to. `None`: there is no datagram.
    fn original_port(socket: &Socket) -> Option<u16> {
        let (mut payload, mut control) = ([0_u8; 16], [0_u64; 16]);
        let mut vector = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
        // SAFETY: a msghdr of zeroes is valid, and everything it is made to point to lives to the end of the block. The
        // first control message lies within the control buffer, and an address begins with family and port.
        unsafe {
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_iov = &raw mut vector;
            header.msg_iovlen = 1;
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = size_of_val(&control);
            if libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, libc::MSG_DONTWAIT) < 0 {
                assert_eq!(io::Error::last_os_error().kind(), io::ErrorKind::WouldBlock);
                return None;
            }
            let message = libc::CMSG_FIRSTHDR(&raw const header);
            assert!(!message.is_null(), "no control message");
            let address = libc::CMSG_DATA(message).cast::<libc::sockaddr_in>();
            Some(u16::from_be(address.read_unaligned().sin_port))
        }
    }

    fn tell_original(socket: &Socket, level: libc::c_int, name: libc::c_int) {
        crate::engine::media_source::sockets::enable(socket, level, name).unwrap();
    }

    fn send(from: &UdpSocket, port: u16) -> io::Result<()> {
        from.connect(SocketAddr::new(from.local_addr()?.ip(), port))?;
        from.send(b"media")?;
        // Loopback delivers before it returns; a refusal is the next call's error.
        SockRef::from(from).take_error()?.map_or(Ok(()), Err)
    }

    #[test]
    fn datagrams_to_the_range_come_to_one_socket_while_attached() {
        namespace::run(|| {
            let (table, sockets) = (table(1), sockets(1));
            let [v4, v6] = &sockets[0];
            tell_original(v4, libc::IPPROTO_IP, libc::IP_RECVORIGDSTADDR);
            tell_original(v6, libc::IPPROTO_IPV6, libc::IPV6_RECVORIGDSTADDR);
            let senders = ["127.0.0.1:0", "[::1]:0"].map(|address| UdpSocket::bind(address).unwrap());
            let steering = Steering::attach(&table, None, &borrowed(&sockets)).unwrap();
            for (from, to) in senders.iter().zip(&sockets[0]) {
                for port in [FIRST, FIRST + 3, LAST - 1] {
                    send(from, port).unwrap();
                    assert_eq!(original_port(to), Some(port));
                }
                assert_eq!(send(from, LAST).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
            }
            // A socket that sends from a media port takes nothing away; one that has a port of somebody else gets its own.
            let sends_only = UdpSocket::bind(("127.0.0.1", FIRST)).unwrap();
            let foreign = UdpSocket::bind(("127.0.0.1", LAST)).unwrap();
            send(&senders[0], FIRST).unwrap();
            send(&senders[0], LAST).unwrap();
            assert_eq!((original_port(v4), original_port(v4)), (Some(FIRST), None));
            assert_eq!(foreign.recv(&mut [0; 16]).unwrap(), 5);
            // The program that was first decides.
            let later = self::sockets(1);
            let second = Steering::attach(&table, None, &borrowed(&later)).unwrap();
            send(&senders[0], FIRST + 1).unwrap();
            assert_eq!((original_port(v4), original_port(&later[0][0])), (Some(FIRST + 1), None));
            assert_eq!(attached().unwrap().len(), 2);
            drop((steering, second));
            assert!(attached().unwrap().is_empty());
            for (from, to) in senders.iter().zip(&sockets[0]) {
                assert_eq!(send(from, FIRST + 3).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
                assert_eq!(original_port(to), None);
            }
            drop(sends_only);
        });
    }

    #[test]
    fn two_capabilities_are_enough() {
        namespace::run(|| {
            keep_only(&[Capability::NetAdmin, Capability::Bpf]).unwrap();
            let sockets = sockets(1);
            let _steering = Steering::attach(&table(1), Some(HOST4), &borrowed(&sockets)).unwrap();
            assert_eq!(attached().unwrap().len(), 1);
        });
    }
}
