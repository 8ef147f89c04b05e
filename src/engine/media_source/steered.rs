//! One UDP socket per reactor and address family, to which a BPF program steers every media port of the reactor.
//!
//! The number of sockets is the cost of receiving from sockets: one whose queue is deep is read in batches, and its state
//! stays in the cache. The socket tells each datagram's original destination; it is bound to a port outside of the range.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use io_uring::opcode;
use io_uring::types::Fixed;
use socket2::{Domain, Protocol, Socket, Type};

use super::super::bpf;
use super::super::bpf::ports::PortTable;
use super::super::bpf::steer::Steering;
use super::super::buffers::Buffers;
use super::super::cpu;
use super::super::datagram;
use super::super::ring::{Completion, Kind, Ring, Token};
use super::Incoming;
use super::sockets::{enable, new_drops};
use crate::clock::{Mono, Wall};
use crate::limits;

/// Buffer group of the media sockets.
const GROUP: u16 = 0;
/// Ports below take a privilege.
const PRIVILEGED: u16 = 1_024;

/// The sockets of one reactor: IPv4, IPv6; those of a family that the host or the media address does not have are missing.
pub struct Bound {
    sockets: [Option<Socket>; 2],
    first: u16,
    ports: usize,
}

/// All reactors' sockets, and the program that steers to them.
pub struct Steerage {
    pub bound: Vec<Bound>,
    pub steering: Steering,
    pub table: PortTable,
    /// RTP ports of the pairs that are ours, with their reactors.
    pub pairs: Vec<(u8, u16)>,
    /// RTP ports of pairs of which somebody else has a port.
    pub taken: Vec<u16>,
    /// sk_lookup programs of others in this network namespace: each is asked before ours or after it.
    pub others: usize,
}

impl Steerage {
    /// `ip`: the one address of this host at which media is taken; without it, all. The pairs go to the reactors in turn, but
    /// for those of which a port is still somebody else's at `deadline`, as in [`super::sockets::bind`].
    pub fn attach(
        ip: Option<IpAddr>,
        (first, last): (u16, u16),
        reactors: usize,
        deadline: Mono,
    ) -> Result<Steerage, String> {
        let others = bpf::attached().map_or(0, |ids| ids.len());
        let bound = (0..reactors)
            .map(|_| Bound::new(ip, (first, last)))
            .collect::<io::Result<Vec<_>>>()
            .map_err(|e| format!("binding the sockets to steer to failed ({e}): check --media-ip"))?;
        let table = PortTable::new((first, last))?;
        let foreign = foreign_ports_at((first, last), deadline);
        let (taken, free): (Vec<u16>, Vec<u16>) =
            (first..last).step_by(2).partition(|rtp| foreign.contains(rtp) || foreign.contains(&(rtp + 1)));
        let pairs: Vec<(u8, u16)> =
            free.iter().enumerate().map(|(n, &rtp)| ((n % reactors) as u8, rtp)).collect();
        for &(reactor, rtp) in &pairs {
            for port in [rtp, rtp + 1] {
                table
                    .set(port, Some(reactor))
                    .map_err(|e| format!("port {port} cannot be steered to reactor {reactor}: {e}"))?;
            }
        }
        let sockets: Vec<[Option<BorrowedFd<'_>>; 2]> = bound
            .iter()
            .map(|bound| [0, 1].map(|family: usize| bound.sockets[family].as_ref().map(AsFd::as_fd)))
            .collect();
        let steering = Steering::attach(&table, ip, &sockets)?;
        Ok(Steerage { bound, steering, table, pairs, taken, others })
    }
}

fn foreign_ports_at(range: (u16, u16), deadline: Mono) -> Vec<u16> {
    loop {
        let foreign = foreign_ports(range);
        if foreign.is_empty() || cpu::now().mono >= deadline {
            return foreign;
        }
        std::thread::sleep(limits::BIND_RETRY);
    }
}

/// Local ports of the range that somebody has bound, as /proc tells it for the network namespace of this thread.
fn foreign_ports((first, last): (u16, u16)) -> Vec<u16> {
    let mut ports: Vec<u16> = ["udp", "udp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")).ok())
        .flat_map(|text| text.lines().skip(1).filter_map(local_port).collect::<Vec<_>>())
        .filter(|port| (first..=last).contains(port))
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// `sl local_address rem_address …`, addresses and ports in hexadecimal.
fn local_port(line: &str) -> Option<u16> {
    let (_, port) = line.split_whitespace().nth(1)?.rsplit_once(':')?;
    u16::from_str_radix(port, 16).ok()
}

impl Bound {
    fn new(ip: Option<IpAddr>, (first, last): (u16, u16)) -> io::Result<Bound> {
        let v4 = match ip {
            Some(IpAddr::V4(ip)) => Some(ip),
            Some(IpAddr::V6(_)) => None,
            None => Some(Ipv4Addr::UNSPECIFIED),
        };
        let v6 = match ip {
            Some(IpAddr::V6(ip)) => Some(ip),
            Some(IpAddr::V4(_)) => None,
            None => Some(Ipv6Addr::UNSPECIFIED),
        };
        let range = (first, last);
        let v4 = v4.map(|ip| socket(ip.into(), range)).transpose()?;
        let v6 = match v6.map(|ip| socket(ip.into(), range)) {
            // A host without IPv6.
            Some(Err(e)) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) && v4.is_some() => None,
            other => other.transpose()?,
        };
        let ports = usize::from(last - first) + 1;
        Ok(Bound { sockets: [v4, v6], first, ports })
    }
}

/// Bound to a port outside of the range: no packet is to come to it but those that are steered. The kernel would choose one
/// of its ephemeral range, which the media range may cover; the ports next to ours are as good.
fn socket(ip: IpAddr, (first, last): (u16, u16)) -> io::Result<Socket> {
    let above = (u32::from(last) + 1..=u32::from(u16::MAX)).map(|port| port as u16);
    let below = (PRIVILEGED..first).rev();
    let mut failure = io::Error::from(io::ErrorKind::AddrInUse);
    for port in above.chain(below).take(limits::STEERED_BIND_ATTEMPTS) {
        let socket = one_socket(ip)?;
        match socket.bind(&SocketAddr::new(ip, port).into()) {
            Ok(()) => return Ok(socket),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => failure = e,
            Err(e) => return Err(e),
        }
    }
    Err(failure)
}

fn one_socket(ip: IpAddr) -> io::Result<Socket> {
    let domain = if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    enable(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS)?;
    if ip.is_ipv4() {
        enable(&socket, libc::IPPROTO_IP, libc::IP_RECVORIGDSTADDR)?;
    } else {
        socket.set_only_v6(true)?;
        enable(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVORIGDSTADDR)?;
    }
    force_receive_buffer(&socket);
    Ok(socket)
}

/// Past net.core.rmem_max, which CAP_NET_ADMIN allows; otherwise as much as that allows.
fn force_receive_buffer(socket: &Socket) {
    let size = limits::STEERED_RCVBUF as libc::c_int;
    // SAFETY: the option value is a local integer of the size given.
    let forced = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const size).cast(),
            size_of::<libc::c_int>() as u32,
        )
    };
    if forced < 0 {
        let _ = socket.set_recv_buffer_size(limits::STEERED_RCVBUF);
    }
}

/// Sends one datagram from a port that is steered, over a socket that is bound to it for the moment. It takes nothing of what
/// comes: the program is asked before a socket is looked for by its port alone. Only a connected one would be found before
/// that, so it never is.
pub fn send(from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
    let socket =
        Socket::new(Domain::for_address(from), Type::DGRAM.cloexec().nonblocking(), Some(Protocol::UDP))?;
    socket.bind(&from.into())?;
    socket.send_to(bytes, &to.into()).map(drop)
}

/// The armed sockets of one reactor.
pub struct Steered {
    sockets: Vec<Socket>,
    first: u16,
    ports: usize,
    buffers: Buffers,
    template: Box<libc::msghdr>,
    ended: Vec<u32>,
    drops: Vec<u32>,
    /// When the newest datagram read from each socket came: what is older has been read.
    read_until: Vec<Wall>,
}

impl Steered {
    /// Places in the ring's table that are needed.
    pub const FILES: usize = 2;

    /// Registers the sockets as files `0..` of the ring's table and arms them.
    pub fn arm(bound: Bound, ring: &mut Ring) -> Result<Steered, String> {
        let sockets: Vec<Socket> = bound.sockets.into_iter().flatten().collect();
        let descriptors: Vec<i32> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
        ring.submitter()
            .register_files_update(0, &descriptors)
            .map_err(|e| format!("registering the steered media sockets failed: {e}"))?;
        let buffers = Buffers::new(ring, GROUP, limits::MEDIA_BUFFERS, limits::MEDIA_BUFFER_SIZE)?;
        let count = sockets.len();
        let mut steered = Steered {
            sockets,
            first: bound.first,
            ports: bound.ports,
            buffers,
            template: Box::new(datagram::template()),
            ended: (0..count as u32).collect(),
            drops: vec![0; count],
            read_until: vec![Wall(0); count],
        };
        steered.publish(ring).map_err(|e| format!("arming the steered media sockets failed: {e}"))?;
        Ok(steered)
    }

    pub fn first(&self) -> u16 {
        self.first
    }

    pub fn ports(&self) -> usize {
        self.ports
    }

    /// Index of a port, or [`Steered::ports`] for one that is not ours.
    pub fn index(&self, port: u16) -> u32 {
        let offset = port.wrapping_sub(self.first);
        u32::from(offset).min(self.ports as u32)
    }

    pub fn coming(&self, completion: Completion) -> u32 {
        let hint = completion
            .buffer()
            .and_then(|id| datagram::port_hint(self.buffers.bytes(id, limits::MEDIA_BUFFER_SIZE)));
        hint.map_or(self.ports as u32, |port| self.index(port))
    }

    /// As [`super::MediaSource::complete`].
    pub fn complete(
        &mut self,
        completion: Completion,
        take: impl FnOnce(Option<&Incoming<'_>>),
    ) -> Result<(), i32> {
        let socket = completion.token.slot;
        if !completion.more() {
            self.ended.push(socket);
        }
        if let Some(id) = completion.buffer() {
            let len = usize::try_from(completion.result).unwrap_or(0);
            if completion.result >= 0 {
                let parsed = datagram::parse(self.buffers.bytes(id, len), &self.template);
                if let Some(at) = parsed.as_ref().and_then(|datagram| datagram.at) {
                    self.read_until[socket as usize] = at;
                }
                let incoming = parsed.and_then(|datagram| {
                    let port = datagram.port?;
                    Some(Incoming { index: self.index(port), port, datagram })
                });
                take(incoming.as_ref());
            }
            self.buffers.give(id);
        }
        if completion.result < 0 { Err(-completion.result) } else { Ok(()) }
    }

    /// As [`super::MediaSource::publish`].
    pub fn publish(&mut self, ring: &mut Ring) -> io::Result<()> {
        self.buffers.publish();
        while let Some(socket) = self.ended.pop() {
            let entry = opcode::RecvMsgMulti::new(Fixed(socket), &*self.template, GROUP)
                .build()
                .user_data(Token::new(Kind::Media, socket, 0).pack());
            // SAFETY: the template is boxed and lives as long as the ring's thread; the buffers are never unmapped.
            unsafe { ring.push(&entry)? };
        }
        Ok(())
    }

    /// Whether datagrams that came before `asked` may wait in a socket: something waits, and what was last read is older.
    pub fn behind(&self, asked: Wall) -> bool {
        let sockets = self.sockets.iter().zip(&self.read_until);
        sockets.into_iter().any(|(socket, &read)| read < asked && super::sockets::waits(socket))
    }

    pub fn new_drops(&mut self) -> u64 {
        let sockets = self.sockets.iter().zip(&mut self.drops);
        sockets.map(|(socket, known)| u64::from(new_drops(socket, known))).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;

    #[test]
    fn sockets_to_steer_to_are_outside_of_the_range_however_wide_it_is() {
        let local = |range| {
            let socket = socket(Ipv4Addr::LOCALHOST.into(), range).unwrap();
            (socket.local_addr().unwrap().as_socket().unwrap().port(), socket)
        };
        let (above, kept) = local((2_048, 65_001));
        assert!(above > 65_001);
        assert_ne!(local((2_048, 65_001)).0, above, "that one is taken");
        drop(kept);
        assert!((PRIVILEGED..2_048).contains(&local((2_048, 65_535)).0));
    }

    #[test]
    fn ports_that_others_have_are_known() {
        let foreign = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        assert!(!foreign_ports((foreign, foreign)).contains(&foreign), "closed by now");
        let held = UdpSocket::bind(("127.0.0.1", foreign)).unwrap();
        assert_eq!(foreign_ports((foreign, foreign)), [foreign]);
        drop(held);
        assert_eq!(local_port("  12: 0100007F:4E20 00000000:0000 07 00000000:00000000"), Some(20_000));
        assert_eq!(local_port("sl"), None);
    }

    #[test]
    fn what_is_sent_comes_from_the_port_and_the_address_given() {
        for (from, peer) in [("127.0.0.2:11002", "127.0.0.1:0"), ("[::1]:11003", "[::1]:0")] {
            let peer = UdpSocket::bind(peer).unwrap();
            peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let from: SocketAddr = from.parse().unwrap();
            for _ in 0..2 {
                send(from, peer.local_addr().unwrap(), b"report").unwrap();
                let mut buffer = [0; 16];
                let (len, sender) = peer.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..len], sender), (&b"report"[..], from));
            }
            let taken = UdpSocket::bind(from).unwrap();
            let refused = send(from, peer.local_addr().unwrap(), b"report").unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
            drop(taken);
        }
    }
}
