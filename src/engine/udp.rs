//! SIP over UDP: one socket per listener and reactor (SO_REUSEPORT), received by multishot, answered with sendmsg.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use bytes::Bytes;
use io_uring::opcode;
use io_uring::types::Fd;
use socket2::{Domain, Protocol, Socket, Type};

use super::buffers::Buffers;
use super::datagram;
use super::media_source::sockets::{enable, new_drops};
use super::ring::{Completion, Kind, Ring, Token};
use crate::clock::Wall;
use crate::limits;
use crate::session::{Flow, Transport};

/// Buffer group of the SIP sockets.
const GROUP: u16 = 1;

/// Binds a listener once per reactor. With port 0 the first socket chooses and the others follow.
pub fn bind(address: SocketAddr, reactors: usize) -> io::Result<(SocketAddr, Vec<Socket>)> {
    // SO_REUSEPORT would let a second recorder share the port in silence: a plain bind finds that out.
    let probe = socket(address)?;
    probe.bind(&address.into())?;
    let bound = SocketAddr::new(address.ip(), local(&probe)?.port());
    drop(probe);
    let sockets = (0..reactors)
        .map(|_| {
            let socket = socket(bound)?;
            socket.set_reuse_port(true)?;
            socket.bind(&bound.into())?;
            Ok(socket)
        })
        .collect::<io::Result<_>>()?;
    Ok((bound, sockets))
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.cloexec(), Some(Protocol::UDP))?;
    enable(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS)?;
    if address.is_ipv4() {
        enable(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO)?;
    } else {
        socket.set_only_v6(true)?;
        enable(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)?;
    }
    let _ = socket.set_recv_buffer_size(limits::SIP_RCVBUF);
    Ok(socket)
}

fn local(socket: &Socket) -> io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
}

/// A SIP datagram, copied out of the receive buffer.
pub struct Message {
    pub flow: Flow,
    pub bytes: Bytes,
    pub at: Option<Wall>,
}

pub struct Listeners {
    reactor: u8,
    sockets: Vec<(Socket, SocketAddr)>,
    buffers: Buffers,
    template: Box<libc::msghdr>,
    ended: Vec<u32>,
    /// Drops of each socket as last read.
    drops: Vec<u32>,
}

impl Listeners {
    pub fn arm(
        reactor: u8,
        sockets: Vec<(Socket, SocketAddr)>,
        ring: &mut Ring,
    ) -> Result<Listeners, String> {
        let buffers = Buffers::new(ring, GROUP, limits::SIP_BUFFERS, limits::SIP_BUFFER_SIZE)?;
        let ended = (0..sockets.len() as u32).collect();
        let drops = vec![0; sockets.len()];
        let mut listeners =
            Listeners { reactor, sockets, buffers, template: Box::new(datagram::template()), ended, drops };
        listeners.publish(ring).map_err(|e| format!("arming SIP sockets failed: {e}"))?;
        Ok(listeners)
    }

    pub fn reactor(&self) -> u8 {
        self.reactor
    }

    /// The message of a completion, if it is one: keepalives (CRLF, blanks, zeroes) ask for nothing on UDP.
    pub fn complete(&mut self, completion: Completion) -> Option<Message> {
        let slot = completion.token.slot;
        if !completion.more() {
            self.ended.push(slot);
        }
        let id = completion.buffer()?;
        let len = usize::try_from(completion.result).unwrap_or(0);
        let message = datagram::parse(self.buffers.bytes(id, len), &self.template).and_then(|datagram| {
            let keepalive = datagram.bytes.iter().all(|&b| b == 0 || b.is_ascii_whitespace());
            (!keepalive).then(|| {
                let bound = self.sockets[slot as usize].1;
                let local = SocketAddr::new(datagram.to.unwrap_or(bound.ip()), bound.port());
                let flow = Flow {
                    reactor: self.reactor,
                    transport: Transport::Udp,
                    local,
                    peer: datagram.from,
                    listener: slot as u8,
                    connection: None,
                };
                Message { flow, bytes: Bytes::copy_from_slice(datagram.bytes), at: datagram.at }
            })
        });
        self.buffers.give(id);
        message
    }

    pub fn publish(&mut self, ring: &mut Ring) -> io::Result<()> {
        self.buffers.publish();
        while let Some(slot) = self.ended.pop() {
            let fd = Fd(self.sockets[slot as usize].0.as_raw_fd());
            let entry = opcode::RecvMsgMulti::new(fd, &*self.template, GROUP)
                .build()
                .user_data(Token::new(Kind::SipDatagram, slot, 0).pack());
            // SAFETY: the template is boxed and lives as long as the ring's thread; the buffers are never unmapped.
            unsafe { ring.push(&entry)? };
        }
        Ok(())
    }

    /// Datagrams that the kernel has dropped on these sockets since this was last asked: messages that nobody has seen.
    pub fn new_drops(&mut self) -> u64 {
        let sockets = self.sockets.iter().zip(&mut self.drops);
        sockets.map(|((socket, _), known)| u64::from(new_drops(socket, known))).sum()
    }

    /// Sends one datagram from the address that the flow's request came to. It leaves at once or not at all: what does
    /// not leave is retransmitted by SIP.
    pub fn send(&self, flow: &Flow, bytes: &[u8]) -> io::Result<()> {
        let Some((socket, _)) = self.sockets.get(usize::from(flow.listener)) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        datagram::send(socket, flow.local.ip(), flow.peer, bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;

    /// Nobody reads while they come: what finds no room in the socket is counted, what found it is received.
    #[test]
    fn messages_that_the_kernel_drops_are_counted() {
        const SENT: u64 = 4_000;
        let (address, sockets) = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let mut ring = Ring::new(1).unwrap();
        let sockets = sockets.into_iter().map(|socket| (socket, address)).collect();
        let mut listeners = Listeners::arm(0, sockets, &mut ring).unwrap();
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..SENT {
            peer.send_to(&[b'x'; 8_000], address).unwrap();
        }
        let dropped = listeners.new_drops();
        assert!(dropped > 0, "{SENT} datagrams of 8,000 bytes fit into the socket");
        let mut received = 0;
        for _ in 0..1_000 {
            if received + dropped == SENT {
                break;
            }
            ring.wait(Duration::ZERO, Duration::from_millis(10)).unwrap();
            let batch = ring.reap();
            received += batch.iter().filter_map(|&completion| listeners.complete(completion)).count() as u64;
            ring.reaped(batch);
            listeners.publish(&mut ring).unwrap();
        }
        assert_eq!(received + dropped, SENT);
        assert_eq!(listeners.new_drops(), 0, "counted once");
    }
}
