//! SIP over TCP: multishot accept and receive, one send in flight per connection.
//!
//! A connection is closed in two steps: it is shut down, and its slot is free when its last operation has completed.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use io_uring::opcode;
use io_uring::types::Fd;
use socket2::{Domain, Protocol, Socket, Type};

use super::buffers::Buffers;
use super::ring::{Completion, Kind, Ring, Token};
use crate::clock::Mono;
use crate::counters::ReactorCounters;
use crate::limits;
use crate::proto::sip::{Frame, Framer};
use crate::session::{ConnectionKey, Flow, Transport};

/// Buffer group of the connections.
const GROUP: u16 = 2;
const BACKLOG: i32 = 1_024;

/// Binds a listener once per reactor; see `udp::bind`.
pub fn bind(address: SocketAddr, reactors: usize) -> io::Result<(SocketAddr, Vec<Socket>)> {
    let probe = socket(address)?;
    probe.bind(&address.into())?;
    let port = probe.local_addr()?.as_socket().map_or(address.port(), |bound| bound.port());
    drop(probe);
    let bound = SocketAddr::new(address.ip(), port);
    let sockets = (0..reactors)
        .map(|_| {
            let socket = socket(bound)?;
            socket.set_reuse_port(true)?;
            socket.bind(&bound.into())?;
            socket.listen(BACKLOG)?;
            Ok(socket)
        })
        .collect::<io::Result<_>>()?;
    Ok((bound, sockets))
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// What a connection has brought.
pub enum Arrival {
    Message { flow: Flow, bytes: Bytes },
    Disconnected(ConnectionKey),
}

pub struct Connections {
    reactor: u8,
    listeners: Vec<Socket>,
    /// Listeners whose multishot accept has ended.
    ended: Vec<u32>,
    /// Listeners whose accept has failed: without descriptors it would fail again at once. They wait for the next sweep.
    failed: Vec<u32>,
    buffers: Buffers,
    slots: Vec<Slot>,
    free: Vec<u32>,
    counters: Arc<ReactorCounters>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    connection: Option<Connection>,
}

struct Connection {
    socket: Socket,
    peer: SocketAddr,
    local: SocketAddr,
    framer: Framer,
    queue: VecDeque<Bytes>,
    queued: usize,
    receiving: bool,
    sending: bool,
    /// Shut down once the queue is empty.
    closing: bool,
    /// Shut down: only completions are awaited.
    dead: bool,
    last: Mono,
    /// When the unfinished message in the framer began to come.
    unfinished_since: Option<Mono>,
}

impl Connections {
    pub fn arm(
        reactor: u8,
        listeners: Vec<Socket>,
        ring: &mut Ring,
        counters: Arc<ReactorCounters>,
    ) -> Result<Connections, String> {
        let buffers = Buffers::new(ring, GROUP, limits::TCP_BUFFERS, limits::TCP_BUFFER_SIZE)?;
        let slots = (0..limits::TCP_CONNECTIONS).map(|_| Slot::default()).collect();
        let free = (0..limits::TCP_CONNECTIONS as u32).rev().collect();
        let ended = (0..listeners.len() as u32).collect();
        let failed = Vec::new();
        let mut connections =
            Connections { reactor, listeners, ended, failed, buffers, slots, free, counters };
        connections.publish(ring).map_err(|e| format!("arming SIP listeners failed: {e}"))?;
        Ok(connections)
    }

    /// A new connection, or a listener whose accept has ended.
    pub fn accepted(&mut self, completion: Completion, now: Mono, ring: &mut Ring) -> io::Result<()> {
        if !completion.more() {
            let ended = if completion.result < 0 { &mut self.failed } else { &mut self.ended };
            ended.push(completion.token.slot);
        }
        if completion.result < 0 {
            self.counters.tcp_refused.add(1);
            return Ok(());
        }
        // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
        let socket = unsafe { Socket::from_raw_fd(completion.result) };
        let addresses =
            socket.peer_addr().and_then(|peer| Ok((peer.as_socket(), socket.local_addr()?.as_socket())));
        let (Ok((Some(peer), Some(local))), Some(slot)) = (addresses, self.free.last().copied()) else {
            self.counters.tcp_refused.add(1);
            return Ok(());
        };
        self.free.pop();
        let _ = socket.set_tcp_nodelay(true);
        self.counters.tcp_accepted.add(1);
        self.counters.tcp_open.add(1);
        self.slots[slot as usize].connection = Some(Connection {
            socket,
            peer,
            local,
            framer: Framer::new(),
            queue: VecDeque::new(),
            queued: 0,
            receiving: false,
            sending: false,
            closing: false,
            dead: false,
            last: now,
            // A connection that says nothing at all is as slow as one that stops in the middle.
            unfinished_since: Some(now),
        });
        self.receive(slot, ring)
    }

    /// Bytes of a connection; whole messages go to `out`.
    pub fn received(
        &mut self,
        completion: Completion,
        now: Mono,
        ring: &mut Ring,
        out: &mut Vec<Arrival>,
    ) -> io::Result<()> {
        let Token { slot, generation, .. } = completion.token;
        let mut pings = 0;
        if self.current(slot, generation) {
            let connection = self.slots[slot as usize].connection.as_mut().expect("current");
            connection.receiving = completion.more();
            if let (Some(id), false) = (completion.buffer(), connection.dead) {
                let bytes = self.buffers.bytes(id, completion.result.max(0) as usize);
                let flow = connection.flow(self.reactor, slot, generation);
                match connection.frames(bytes, now, |bytes| out.push(Arrival::Message { flow, bytes })) {
                    Ok(keepalives) => pings = keepalives,
                    Err(()) => {
                        self.counters.tcp_unframeable.add(1);
                        connection.shut_down();
                    }
                }
            } else if completion.result <= 0 && completion.result != -libc::ENOBUFS {
                connection.shut_down();
            }
        } else {
            self.counters.stale_completions.add(1);
        }
        if let Some(id) = completion.buffer() {
            self.buffers.give(id);
        }
        // RFC 5626 §4.4.1: a double CRLF is answered with one. A peer that asks and does not read is closed as any other, and
        // that ends its connection alone.
        if pings > 0 && self.queue(slot, Bytes::from(b"\r\n".repeat(pings)), ring).is_err() {
            self.counters.sip_send_errors.add(1);
        }
        self.settle(slot, generation, ring, out)
    }

    /// The kernel has taken bytes of the one send in flight.
    pub fn sent(
        &mut self,
        completion: Completion,
        ring: &mut Ring,
        out: &mut Vec<Arrival>,
    ) -> io::Result<()> {
        let Token { slot, generation, .. } = completion.token;
        if !self.current(slot, generation) {
            self.counters.stale_completions.add(1);
            return Ok(());
        }
        let connection = self.slots[slot as usize].connection.as_mut().expect("current");
        connection.sending = false;
        match usize::try_from(completion.result) {
            Ok(taken) => connection.taken(taken),
            Err(_) => {
                self.counters.sip_send_errors.add(1);
                connection.shut_down();
            }
        }
        self.send_next(slot, ring)?;
        self.settle(slot, generation, ring, out)
    }

    /// Queues a message. `Err(NotConnected)`: the connection is gone, or its peer does not read and it is closed now.
    pub fn send(&mut self, flow: &Flow, bytes: Bytes, ring: &mut Ring) -> io::Result<()> {
        match flow.connection {
            Some(key) if self.current(key.slot, key.generation) => self.queue(key.slot, bytes, ring),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    pub fn disconnect(&mut self, flow: &Flow, ring: &mut Ring, out: &mut Vec<Arrival>) -> io::Result<()> {
        let Some(key) = flow.connection.filter(|key| self.current(key.slot, key.generation)) else {
            return Ok(());
        };
        let connection = self.slots[key.slot as usize].connection.as_mut().expect("current");
        connection.closing = true;
        if connection.queue.is_empty() {
            connection.shut_down();
        }
        self.settle(key.slot, key.generation, ring, out)
    }

    /// Closes connections that make no progress, lets listeners try again.
    pub fn sweep(&mut self, now: Mono, ring: &mut Ring, out: &mut Vec<Arrival>) -> io::Result<()> {
        self.ended.append(&mut self.failed);
        for slot in 0..self.slots.len() as u32 {
            let Slot { generation, connection: Some(connection) } = &mut self.slots[slot as usize] else {
                continue;
            };
            let generation = *generation;
            let late = connection
                .unfinished_since
                .is_some_and(|since| now.since(since) > limits::TCP_MESSAGE_TIMEOUT)
                || now.since(connection.last) > limits::TCP_IDLE_TIMEOUT;
            if late && !connection.dead {
                self.counters.tcp_timeout.add(1);
                connection.shut_down();
                self.settle(slot, generation, ring, out)?;
            }
        }
        Ok(())
    }

    /// Whether anything waits to be sent.
    pub fn idle(&self) -> bool {
        self.slots.iter().all(|slot| slot.connection.as_ref().is_none_or(|c| c.dead || c.queue.is_empty()))
    }

    pub fn publish(&mut self, ring: &mut Ring) -> io::Result<()> {
        self.buffers.publish();
        while let Some(slot) = self.ended.pop() {
            let fd = Fd(self.listeners[slot as usize].as_raw_fd());
            let token = Token::new(Kind::Accept, slot, 0).pack();
            let entry = opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build().user_data(token);
            // SAFETY: the entry points to nothing.
            unsafe { ring.push(&entry)? };
        }
        Ok(())
    }

    fn current(&self, slot: u32, generation: u32) -> bool {
        self.slots.get(slot as usize).is_some_and(|s| s.generation == generation && s.connection.is_some())
    }

    fn receive(&mut self, slot: u32, ring: &mut Ring) -> io::Result<()> {
        let Slot { generation, connection: Some(connection) } = &mut self.slots[slot as usize] else {
            return Ok(());
        };
        connection.receiving = true;
        let token = Token::new(Kind::TcpReceive, slot, *generation).pack();
        let entry = opcode::RecvMulti::new(Fd(connection.socket.as_raw_fd()), GROUP).build().user_data(token);
        // SAFETY: the entry points to nothing; the buffers of the group are never unmapped.
        unsafe { ring.push(&entry) }
    }

    fn queue(&mut self, slot: u32, bytes: Bytes, ring: &mut Ring) -> io::Result<()> {
        let Some(connection) = &mut self.slots[slot as usize].connection else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let full = connection.queue.len() >= limits::TCP_SENDS_QUEUED
            || connection.queued + bytes.len() > limits::TCP_SEND_QUEUE;
        if connection.dead || full {
            connection.shut_down();
            return Err(io::ErrorKind::NotConnected.into());
        }
        connection.queued += bytes.len();
        connection.queue.push_back(bytes);
        self.send_next(slot, ring)
    }

    fn send_next(&mut self, slot: u32, ring: &mut Ring) -> io::Result<()> {
        let Slot { generation, connection: Some(connection) } = &mut self.slots[slot as usize] else {
            return Ok(());
        };
        if connection.sending || connection.dead {
            return Ok(());
        }
        gather(&mut connection.queue);
        let Some(bytes) = connection.queue.front() else {
            if connection.closing {
                connection.shut_down();
            }
            return Ok(());
        };
        let token = Token::new(Kind::TcpSend, slot, *generation).pack();
        let entry = opcode::Send::new(Fd(connection.socket.as_raw_fd()), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_NOSIGNAL)
            .build()
            .user_data(token);
        connection.sending = true;
        // SAFETY: the bytes stay at the head of the queue, and so where they are, until this send completes: they are
        // advanced or dropped in `sent` alone, and the slot is not freed while `sending`.
        unsafe { ring.push(&entry) }
    }

    /// Frees the slot of a dead connection after its last completion; arms a live one that is not receiving.
    fn settle(
        &mut self,
        slot: u32,
        generation: u32,
        ring: &mut Ring,
        out: &mut Vec<Arrival>,
    ) -> io::Result<()> {
        if !self.current(slot, generation) {
            return Ok(());
        }
        let place = &mut self.slots[slot as usize];
        let connection = place.connection.as_ref().expect("current");
        match (connection.dead, connection.receiving || connection.sending) {
            (true, false) => {
                place.connection = None;
                place.generation = place.generation.wrapping_add(1);
                self.free.push(slot);
                self.counters.tcp_open.sub(1);
                out.push(Arrival::Disconnected(ConnectionKey { slot, generation }));
                Ok(())
            }
            (false, _) if !connection.receiving => self.receive(slot, ring),
            _ => Ok(()),
        }
    }
}

/// What waits together leaves together. One send is in flight at a time and the next begins a turn later, which is
/// milliseconds: message by message, the BYEs of a drain would not leave in time.
fn gather(queue: &mut VecDeque<Bytes>) {
    let mut length = 0;
    let fits = |bytes: &&Bytes| {
        length += bytes.len();
        length <= limits::TCP_SEND_AT_ONCE
    };
    let count = queue.iter().take_while(fits).count();
    if count > 1 {
        let together: Vec<Bytes> = queue.drain(..count).collect();
        queue.push_front(together.concat().into());
    }
}

impl Connection {
    fn flow(&self, reactor: u8, slot: u32, generation: u32) -> Flow {
        let connection = Some(ConnectionKey { slot, generation });
        Flow {
            reactor,
            transport: Transport::Tcp,
            local: self.local,
            peer: self.peer,
            listener: 0,
            connection,
        }
    }

    /// Feeds the framer; returns the number of keepalives to answer. `Err`: the stream cannot be framed any more.
    fn frames(&mut self, bytes: &[u8], now: Mono, mut message: impl FnMut(Bytes)) -> Result<usize, ()> {
        let mut pings = 0;
        self.last = now;
        self.framer.push(bytes).map_err(|_| ())?;
        let mut progress = false;
        while let Some(frame) = self.framer.next().map_err(|_| ())? {
            progress = true;
            match frame {
                Frame::Message(bytes) => message(bytes),
                Frame::Ping => pings += 1,
            }
        }
        self.unfinished_since = match (self.framer.pending(), progress) {
            (0, _) => None,
            (_, true) => Some(now),
            (_, false) => self.unfinished_since.or(Some(now)),
        };
        Ok(pings)
    }

    fn taken(&mut self, n: usize) {
        self.queued -= n;
        if let Some(front) = self.queue.front_mut() {
            front.advance(n);
            if front.is_empty() {
                self.queue.pop_front();
            }
        }
    }

    fn shut_down(&mut self) {
        self.dead = true;
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_waits_together_leaves_together() {
        let mut queue: VecDeque<Bytes> = (0..10u8).map(|n| Bytes::from(vec![n; 3])).collect();
        gather(&mut queue);
        assert_eq!(queue, [Bytes::from_iter((0..10u8).flat_map(|n| [n; 3]))]);
        // Up to a limit, in order, and a message that is longer goes alone.
        let half = limits::TCP_SEND_AT_ONCE / 2;
        let lengths = [half, half, 1, 2 * half + 1, 5];
        let mut queue: VecDeque<Bytes> = lengths.iter().map(|n| Bytes::from(vec![0; *n])).collect();
        gather(&mut queue);
        let lengths: Vec<usize> = queue.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [2 * half, 1, 2 * half + 1, 5]);
        queue.drain(..2);
        gather(&mut queue);
        assert_eq!(queue.iter().map(Bytes::len).collect::<Vec<_>>(), [2 * half + 1, 5]);
        queue.clear();
        gather(&mut queue);
        assert!(queue.is_empty());
    }

    /// A listener and the connections of one reactor, on a ring of this thread.
    struct Bench {
        ring: Ring,
        connections: Connections,
        counters: Arc<ReactorCounters>,
        address: SocketAddr,
    }

    impl Bench {
        fn new() -> Bench {
            let (address, listeners) = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
            let counters = Arc::new(ReactorCounters::default());
            let mut ring = Ring::new(1).unwrap();
            let connections = Connections::arm(0, listeners, &mut ring, counters.clone()).unwrap();
            Bench { ring, connections, counters, address }
        }

        /// Turns at the time `now` until `done`, and what arrived.
        fn turns(&mut self, now: Mono, done: impl Fn(&ReactorCounters, &[Arrival]) -> bool) -> Vec<Arrival> {
            let mut arrivals = Vec::new();
            for _ in 0..1_000 {
                if done(&self.counters, &arrivals) {
                    return arrivals;
                }
                self.ring.wait(Duration::ZERO, Duration::from_millis(10)).unwrap();
                let batch = self.ring.reap();
                for &completion in &batch {
                    let Bench { ring, connections, .. } = self;
                    match completion.token.kind {
                        Kind::Accept => connections.accepted(completion, now, ring),
                        Kind::TcpReceive => connections.received(completion, now, ring, &mut arrivals),
                        _ => connections.sent(completion, ring, &mut arrivals),
                    }
                    .unwrap();
                }
                self.ring.reaped(batch);
                self.connections.publish(&mut self.ring).unwrap();
            }
            panic!("it did not come to that in 1,000 turns");
        }
    }

    #[test]
    fn a_peer_that_dawdles_is_closed_and_one_that_keeps_alive_is_not() {
        let mut bench = Bench::new();
        let begun = Mono(1);
        let silent = TcpStream::connect(bench.address).unwrap();
        let mut drip = TcpStream::connect(bench.address).unwrap();
        let mut alive = TcpStream::connect(bench.address).unwrap();
        drip.write_all(b"OPTIONS sip:srs@127.0.0.1 SIP/2.0\r\nVia: ").unwrap();
        alive.write_all(b"\r\n\r\n").unwrap();
        bench.turns(begun, |counters, _| counters.tcp_open.get() == 3);
        let mut pong = [0; 2];
        // The answer to the keepalive leaves in some turn after its question came.
        alive.set_nonblocking(true).unwrap();
        let answered = std::cell::RefCell::new((&alive, &mut pong));
        bench.turns(begun, |_, _| {
            let (peer, pong) = &mut *answered.borrow_mut();
            peer.read_exact(*pong).is_ok()
        });
        assert_eq!(&pong, b"\r\n");

        let Bench { ring, connections, counters, .. } = &mut bench;
        let mut arrivals = Vec::new();
        connections.sweep(begun + limits::TCP_MESSAGE_TIMEOUT, ring, &mut arrivals).unwrap();
        assert_eq!(counters.tcp_timeout.get(), 0, "in time still");
        let late = begun + limits::TCP_MESSAGE_TIMEOUT + Duration::from_secs(1);
        connections.sweep(late, ring, &mut arrivals).unwrap();
        assert_eq!(counters.tcp_timeout.get(), 2);
        let closed = bench.turns(late, |counters, _| counters.tcp_open.get() == 1);
        assert_eq!(closed.iter().filter(|arrival| matches!(arrival, Arrival::Disconnected(_))).count(), 2);
        for mut peer in [silent, drip] {
            assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0, "the end of the stream");
        }
    }
}
