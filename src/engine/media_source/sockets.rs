//! A UDP socket for each media port, bound at start and armed for good.
//!
//! A socket is never disarmed: what comes to a port without a recording is received too, and counted with its cause. So no
//! packet of a former call waits in a socket for the next one, and a call that starts or ends costs no system call here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, Socket, Type};

use super::super::cpu;
use super::super::datagram;
use super::super::ring::{Completion, Ring};
use super::Incoming;
use super::receive::Receiver;
use crate::clock::Mono;
use crate::limits;

/// The bound sockets of one reactor: pair `i` is sockets `2·i` (RTP) and `2·i + 1` (RTCP).
pub struct Bound {
    sockets: Vec<Socket>,
    pub rtp_ports: Vec<u16>,
}

/// Binds pairs from `ports`, in order, until `wanted` are bound. Pairs of which a port is still taken at `deadline` are left
/// out and named: the ports of a recorder that was killed are free again when the kernel has cleared away its rings.
pub fn bind(
    ip: Option<IpAddr>,
    ports: impl Iterator<Item = u16>,
    wanted: usize,
    deadline: Mono,
) -> io::Result<(Bound, Vec<u16>)> {
    let mut bound = Bound { sockets: Vec::new(), rtp_ports: Vec::new() };
    let mut taken = Vec::new();
    for rtp in ports {
        if bound.rtp_ports.len() == wanted {
            break;
        }
        match pair(ip, rtp, deadline) {
            Ok(pair) => {
                bound.sockets.extend(pair);
                bound.rtp_ports.push(rtp);
            }
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => taken.push(rtp),
            Err(e) => return Err(e),
        }
    }
    Ok((bound, taken))
}

pub fn pair(ip: Option<IpAddr>, rtp: u16, deadline: Mono) -> io::Result<[Socket; 2]> {
    loop {
        match socket(ip, rtp).and_then(|a| Ok([a, socket(ip, rtp + 1)?])) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && cpu::now().mono < deadline => {
                std::thread::sleep(limits::BIND_RETRY);
            }
            result => return result,
        }
    }
}

fn socket(ip: Option<IpAddr>, port: u16) -> io::Result<Socket> {
    let socket = match ip {
        Some(ip) => {
            let socket = udp(if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 })?;
            socket.bind(&SocketAddr::new(ip, port).into())?;
            socket
        }
        None => wildcard(port)?,
    };
    enable(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS)?;
    // Less than asked for is no reason to refuse: sysctl net.core.rmem_max decides, and drops are counted.
    let _ = socket.set_recv_buffer_size(limits::MEDIA_RCVBUF);
    Ok(socket)
}

/// One socket for both families, which tells the destination address of each packet; IPv4 alone where there is no IPv6.
fn wildcard(port: u16) -> io::Result<Socket> {
    match udp(Domain::IPV6) {
        Ok(socket) => {
            socket.set_only_v6(false)?;
            enable(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)?;
            socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
            Ok(socket)
        }
        Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            let socket = udp(Domain::IPV4)?;
            enable(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO)?;
            socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
            Ok(socket)
        }
        Err(e) => Err(e),
    }
}

fn udp(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::DGRAM.cloexec(), Some(Protocol::UDP))
}

/// Sets an integer socket option to 1.
pub fn enable(socket: &Socket, level: i32, option: i32) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option value is a local integer of the size given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as u32,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Datagrams that the kernel has dropped on a socket for want of room (SO_MEMINFO), less those that were `known`.
pub fn new_drops(socket: &Socket, known: &mut u32) -> u32 {
    const SK_MEMINFO_DROPS: usize = 8;
    let mut info = [0u32; SK_MEMINFO_DROPS + 1];
    let mut len = size_of_val(&info) as u32;
    // SAFETY: the kernel writes at most `len` bytes into the local array.
    let result = unsafe {
        let info = info.as_mut_ptr().cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MEMINFO, info, &mut len)
    };
    if result < 0 {
        return 0;
    }
    let now = info[SK_MEMINFO_DROPS];
    now.wrapping_sub(std::mem::replace(known, now))
}

/// Whether a datagram that the kernel has received waits in the socket.
pub fn waits(socket: &Socket) -> bool {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one integer, the length of the next datagram, to a local.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    result == 0 && bytes > 0
}

/// The armed sockets of one reactor.
pub struct Sockets {
    bound: Bound,
    receiver: Receiver,
    /// Drops of each socket as last read.
    drops: Vec<u32>,
}

impl Sockets {
    /// Registers the sockets as files `0..2·pairs` of the ring's table and arms all of them.
    pub fn arm(bound: Bound, ring: &mut Ring) -> Result<Sockets, String> {
        let receiver = Receiver::arm(&bound.sockets, ring)?;
        let drops = vec![0; bound.sockets.len()];
        Ok(Sockets { bound, receiver, drops })
    }

    pub fn ports(&self) -> usize {
        self.drops.len()
    }

    /// The port of a socket.
    pub fn port(&self, socket: u32) -> u16 {
        self.bound.rtp_ports[socket as usize / 2] + (socket % 2) as u16
    }

    /// As [`super::MediaSource::complete`].
    pub fn complete(
        &mut self,
        completion: Completion,
        take: impl FnOnce(Option<&Incoming<'_>>),
    ) -> Result<(), i32> {
        let index = completion.token.slot;
        let port = self.port(index);
        self.receiver.complete(completion, |datagram| {
            take(datagram.map(|datagram| Incoming { index, port, datagram }).as_ref());
        })
    }

    /// As [`super::MediaSource::publish`].
    pub fn publish(&mut self, ring: &mut Ring) -> io::Result<()> {
        self.receiver.publish(ring)
    }

    /// Whether datagrams that the kernel has received wait in this socket.
    pub fn waiting(&self, socket: u32) -> bool {
        waits(&self.bound.sockets[socket as usize])
    }

    /// Sends one datagram from this socket's port and one of the addresses that it is bound to.
    pub fn send(&self, socket: u32, from: IpAddr, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        datagram::send(&self.bound.sockets[socket as usize], from, to, bytes)
    }

    /// Datagrams that the kernel has dropped on this socket since this was last asked.
    pub fn new_drops(&mut self, socket: u32) -> u32 {
        new_drops(&self.bound.sockets[socket as usize], &mut self.drops[socket as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reactor_without_ports_still_has_a_ring() {
        let mut ring = Ring::new(0).unwrap();
        let (bound, taken) = bind(None, std::iter::empty(), 5, Mono(0)).unwrap();
        assert!(taken.is_empty());
        assert_eq!(Sockets::arm(bound, &mut ring).unwrap().ports(), 0);
    }

    /// From the address that its peer knows, whichever the kernel would choose.
    #[test]
    fn what_is_sent_comes_from_the_port_and_the_address_given() {
        let other = IpAddr::from([127, 0, 0, 2]);
        for (bound_to, from, peer) in [
            (None, other, "127.0.0.1:0"),
            (None, Ipv6Addr::LOCALHOST.into(), "[::1]:0"),
            (Some(other), other, "127.0.0.1:0"),
        ] {
            let peer = std::net::UdpSocket::bind(peer).unwrap();
            peer.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
            let (bound, _) = bind(bound_to, (10_500..11_000).step_by(2), 1, Mono(0)).unwrap();
            let rtp = bound.rtp_ports[0];
            let mut ring = Ring::new(2).unwrap();
            let sockets = Sockets::arm(bound, &mut ring).unwrap();
            for (socket, port) in [(0, rtp), (1, rtp + 1)] {
                sockets.send(socket, from, peer.local_addr().unwrap(), b"report").unwrap();
                let mut buffer = [0; 16];
                let (len, sender) = peer.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..len], sender), (&b"report"[..], SocketAddr::new(from, port)));
            }
        }
    }
}
