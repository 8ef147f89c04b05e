//! One UDP socket per reactor and address family, to which a BPF program steers every media port of the reactor.
//!
//! The number of sockets is the cost of receiving from sockets: one whose queue is deep is read in batches, and its state
//! stays in the cache. The socket tells each datagram's original destination; it is bound to a port outside of the range.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use etherparse::PacketBuilder;
use socket2::{Domain, Protocol, Socket, Type};

use super::super::bpf;
use super::super::bpf::ports::PortTable;
use super::super::bpf::steer::Steering;
use super::super::cpu;
use super::super::ring::{Completion, Ring};
use super::Incoming;
use super::receive::Receiver;
use super::sockets::{enable, new_drops};
use crate::clock::{Mono, Wall};
use crate::limits;

/// Ports below take a privilege.
const PRIVILEGED: u16 = 1_024;
/// Bytes of the longer headers, IPv6's, and hops of what we send.
const IP_AND_UDP: usize = 40 + 8;
const TTL: u8 = 64;

/// The sockets of one reactor: IPv4, IPv6; those of a family that the host or the media address does not have are missing.
pub struct Bound {
    sockets: [Option<Socket>; 2],
    sender: Sender,
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
    /// Sockets that keep ports of ours from being given to others.
    pub held: Vec<Socket>,
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
        pairs_of_sockets: usize,
        deadline: Mono,
    ) -> Result<Steerage, String> {
        let others = bpf::attached().map_or(0, |ids| ids.len());
        let bound = (0..reactors)
            .map(|_| Bound::new(ip, (first, last)))
            .collect::<io::Result<Vec<_>>>()
            .map_err(|e| format!("binding the sockets to steer to failed ({e}): check --media-ip"))?;
        let table = PortTable::new((first, last))?;
        let foreign = foreign_ports_at(ip, (first, last), deadline);
        let (mut taken, mut free): (Vec<u16>, Vec<u16>) =
            (first..last).step_by(2).partition(|rtp| foreign.contains(rtp) || foreign.contains(&(rtp + 1)));
        let held = hold(ip, &mut free, &mut taken, pairs_of_sockets, deadline)?;
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
        Ok(Steerage { bound, steering, table, pairs, taken, held, others })
    }
}

/// Binds the pairs that the kernel would otherwise give to whoever asks for any port: the answers to him would be steered to us.
/// Nothing is received there, the program is asked first. Pairs that cannot be held are left out.
fn hold(
    ip: Option<IpAddr>,
    free: &mut Vec<u16>,
    taken: &mut Vec<u16>,
    most: usize,
    deadline: Mono,
) -> Result<Vec<Socket>, String> {
    let given_out = Ephemeral::read();
    let mut held = Vec::new();
    let mut failure = None;
    free.retain(|&rtp| {
        if !given_out.has(rtp) && !given_out.has(rtp + 1) {
            return true;
        }
        let room = held.len() < most * 2;
        match room.then(|| super::sockets::pair(ip, rtp, deadline)) {
            Some(Ok(pair)) => held.extend(pair),
            Some(Err(e)) if e.kind() != io::ErrorKind::AddrInUse => failure = Some(e),
            _ => {
                taken.push(rtp);
                return false;
            }
        }
        true
    });
    match failure {
        None => Ok(held),
        Some(e) => Err(format!(
            "ports that the kernel gives to others cannot be held ({e}): name them in sysctl net.ipv4.ip_local_reserved_ports"
        )),
    }
}

/// The ports that the kernel chooses from for sockets that ask for none.
struct Ephemeral {
    first: u16,
    last: u16,
    reserved: Vec<(u16, u16)>,
}

impl Ephemeral {
    fn read() -> Ephemeral {
        let read = |name| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
        Ephemeral::parse(&read("ip_local_port_range"), &read("ip_local_reserved_ports"))
    }

    /// `32768 60999`, and `8080,9000-9010` or nothing. What cannot be read is the kernel's default.
    fn parse(range: &str, reserved: &str) -> Ephemeral {
        let mut words = range.split_whitespace().map_while(|word| word.parse().ok());
        let (first, last) = words.next().zip(words.next()).unwrap_or((32_768, 60_999));
        let port = |text: &str| text.trim().parse::<u16>().ok();
        let one = |text: &str| {
            let (from, to) = text.split_once('-').unwrap_or((text, text));
            port(from).zip(port(to))
        };
        Ephemeral { first, last, reserved: reserved.split(',').filter_map(one).collect() }
    }

    fn has(&self, port: u16) -> bool {
        let within = |&(first, last): &(u16, u16)| (first..=last).contains(&port);
        within(&(self.first, self.last)) && !self.reserved.iter().any(within)
    }
}

fn foreign_ports_at(ip: Option<IpAddr>, range: (u16, u16), deadline: Mono) -> Vec<u16> {
    loop {
        let foreign = foreign_ports(ip, range);
        if foreign.is_empty() || cpu::now().mono >= deadline {
            return foreign;
        }
        std::thread::sleep(limits::BIND_RETRY);
    }
}

/// Ports of the range that somebody has bound at our address, or at all if we or they have none, as /proc tells it for the network
/// namespace of this thread.
fn foreign_ports(ip: Option<IpAddr>, (first, last): (u16, u16)) -> Vec<u16> {
    let theirs = |local: SocketAddr| ip.is_none_or(|ip| local.ip().is_unspecified() || local.ip() == ip);
    let mut ports: Vec<u16> = ["udp", "udp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")).ok())
        .flat_map(|text| text.lines().skip(1).filter_map(local).collect::<Vec<_>>())
        .filter(|local| (first..=last).contains(&local.port()) && theirs(*local))
        .map(|local| local.port())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// `sl local_address rem_address …`: words of addresses in hexadecimal as they lie in memory, then the port.
fn local(line: &str) -> Option<SocketAddr> {
    let (words, port) = line.split_whitespace().nth(1)?.rsplit_once(':')?;
    let word = |n: usize| Some(u32::from_str_radix(words.get(n * 8..n * 8 + 8)?, 16).ok()?.to_ne_bytes());
    let ip: IpAddr = match words.len() {
        8 => word(0)?.into(),
        32 => {
            let octets: [u8; 16] = [word(0)?, word(1)?, word(2)?, word(3)?].concat().try_into().ok()?;
            IpAddr::from(octets).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
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
        Ok(Bound { sockets: [v4, v6], sender: Sender::new(), first, ports })
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

/// Sends from ports that no socket has: those that are steered.
struct Sender {
    /// IPv4, IPv6: sockets that take whole IP packets and receive none. They take CAP_NET_RAW when they are made.
    raw: [Option<Socket>; 2],
}

impl Sender {
    fn new() -> Sender {
        // The type is IPPROTO_RAW's: headers included.
        let raw = |domain| {
            Socket::new(domain, Type::RAW.cloexec().nonblocking(), Some(Protocol::from(libc::IPPROTO_RAW)))
        };
        Sender { raw: [raw(Domain::IPV4).ok(), raw(Domain::IPV6).ok()] }
    }

    /// At once or not at all.
    fn send(&self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let (socket, builder) = match (from.ip().to_canonical(), to.ip().to_canonical()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                (&self.raw[0], PacketBuilder::ipv4(from.octets(), to.octets(), TTL))
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                (&self.raw[1], PacketBuilder::ipv6(from.octets(), to.octets(), TTL))
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let Some(socket) = socket else { return send_bound(from, to, bytes) };
        let mut packet = [0u8; IP_AND_UDP + limits::RTCP_PACKET_MAX];
        let built = builder.udp(from.port(), to.port());
        let len = built.size(bytes.len());
        let room = packet.get_mut(..len).ok_or(io::ErrorKind::InvalidInput)?;
        built.write(&mut &mut *room, bytes).map_err(io::Error::other)?;
        // The port is in the packet; of an IPv6 address the kernel wants none beside it.
        socket.send_to(room, &SocketAddr::new(to.ip().to_canonical(), 0).into()).map(drop)
    }
}

/// Without the privilege: a socket bound for as long as it takes. It is never connected, since the kernel looks for a connected
/// socket before it asks the program; so it takes nothing of what comes.
fn send_bound(from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
    let socket =
        Socket::new(Domain::for_address(from), Type::DGRAM.cloexec().nonblocking(), Some(Protocol::UDP))?;
    socket.bind(&from.into())?;
    socket.send_to(bytes, &to.into()).map(drop)
}

/// Index of a port among so many from `first` on; their number stands for one that is not among them.
pub fn index(port: u16, first: u16, ports: usize) -> u32 {
    u32::from(port.wrapping_sub(first)).min(ports as u32)
}

/// The armed sockets of one reactor.
pub struct Steered {
    sockets: Vec<Socket>,
    sender: Sender,
    first: u16,
    ports: usize,
    receiver: Receiver,
    drops: Vec<u32>,
    /// When the newest datagram read from each socket came: what is older has been read.
    read_until: Vec<Wall>,
}

impl Steered {
    /// Places in the ring's table that are needed.
    pub const FILES: usize = 2;

    /// Registers the sockets as files `0..` of the ring's table and arms them.
    pub fn arm(bound: Bound, ring: &mut Ring) -> Result<Steered, String> {
        let Bound { sockets, sender, first, ports } = bound;
        let sockets: Vec<Socket> = sockets.into_iter().flatten().collect();
        let receiver = Receiver::arm(&sockets, ring)?;
        let (drops, read_until) = (vec![0; sockets.len()], vec![Wall(0); sockets.len()]);
        Ok(Steered { sockets, sender, first, ports, receiver, drops, read_until })
    }

    /// As [`super::MediaSource::send`].
    pub fn send(&self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        self.sender.send(from, to, bytes)
    }

    pub fn first(&self) -> u16 {
        self.first
    }

    pub fn ports(&self) -> usize {
        self.ports
    }

    pub fn coming(&self, completion: Completion) -> u32 {
        let hint = self.receiver.port_hint(completion);
        hint.map_or(self.ports as u32, |port| index(port, self.first, self.ports))
    }

    /// As [`super::MediaSource::complete`].
    pub fn complete(
        &mut self,
        completion: Completion,
        take: impl FnOnce(Option<&Incoming<'_>>),
    ) -> Result<(), i32> {
        let Steered { receiver, read_until, first, ports, .. } = self;
        let read_until = &mut read_until[completion.token.slot as usize];
        receiver.complete(completion, |datagram| {
            if let Some(at) = datagram.as_ref().and_then(|datagram| datagram.at) {
                *read_until = at;
            }
            let incoming = datagram.and_then(|datagram| {
                let port = datagram.port?;
                Some(Incoming { index: index(port, *first, *ports), port, datagram })
            });
            take(incoming.as_ref());
        })
    }

    /// As [`super::MediaSource::publish`].
    pub fn publish(&mut self, ring: &mut Ring) -> io::Result<()> {
        self.receiver.publish(ring)
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
    fn what_is_sent_comes_from_the_port_and_the_address_given() {
        for (from, peer) in [("127.0.0.2:11002", "127.0.0.1:0"), ("[::1]:11003", "[::1]:0")] {
            let peer = UdpSocket::bind(peer).unwrap();
            peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let from: SocketAddr = from.parse().unwrap();
            let sender = Sender::new();
            type Way<'a> = &'a dyn Fn(SocketAddr, SocketAddr, &[u8]) -> io::Result<()>;
            let ways: [Way<'_>; 2] = [&|from, to, bytes| sender.send(from, to, bytes), &send_bound];
            for send in ways {
                send(from, peer.local_addr().unwrap(), b"report").unwrap();
                let mut buffer = [0; 16];
                let (len, sender) = peer.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..len], sender), (&b"report"[..], from));
            }
            let taken = UdpSocket::bind(from).unwrap();
            let refused = send_bound(from, peer.local_addr().unwrap(), b"report").unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
            drop(taken);
        }
    }

    #[test]
    fn ports_that_the_kernel_gives_out() {
        let of = |range, reserved, port| Ephemeral::parse(range, reserved).has(port);
        assert!(of("32768\t60999\n", "\n", 32_768) && of("32768 60999", "", 60_999));
        assert!(!of("32768 60999", "", 32_767) && !of("32768 60999", "40000-41000,50000\n", 40_500));
        assert!(!of("32768 60999", "40000-41000,50000\n", 50_000) && of("", "x,1-", 40_000));
    }

    /// A socket that asks for any port is never given one of ours.
    #[test]
    fn ports_of_the_range_are_not_given_to_others() {
        let Ephemeral { first, .. } = Ephemeral::read();
        let rtp = (first + 1_000) & !1;
        let (mut free, mut taken) = (vec![rtp], Vec::new());
        let held = hold(None, &mut free, &mut taken, 1, Mono(0)).unwrap();
        assert!(UdpSocket::bind(("127.0.0.1", rtp)).is_err() || held.is_empty() && taken == [rtp]);
        let (mut free, mut taken) = (vec![rtp], Vec::new());
        assert!(hold(None, &mut free, &mut taken, 0, Mono(0)).unwrap().is_empty());
        assert_eq!((free, taken), (vec![], vec![rtp]), "no room to hold it");
    }

    #[test]
    fn a_line_of_proc_says_who_is_bound() {
        // As a little-endian machine prints them.
        if cfg!(target_endian = "big") {
            return;
        }
        let line = |address: &str| {
            format!("  12: {address} 00000000:0000 07 00000000:00000000 00:00000000 0 0 0 2 0")
        };
        for (address, expected) in [
            ("0200630A:2EE0", Some("10.99.0.2:12000")),
            ("00000000:0035", Some("0.0.0.0:53")),
            ("B80D0120000000000000000001000000:FFFF", Some("[2001:db8::1]:65535")),
            ("0000000000000000FFFF00000200630A:2EE0", Some("10.99.0.2:12000")),
            ("0200630A", None),
            ("0200:2EE0", None),
            ("0200630A:2EE0F", None),
        ] {
            let expected = expected.map(|text| text.parse::<SocketAddr>().unwrap());
            assert_eq!(local(&line(address)), expected, "{address}");
        }
        assert_eq!(local(""), None);
    }
}
