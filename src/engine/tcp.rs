//! SIP connections of one reactor, over TCP and TLS: multishot accept and receive, one send in flight per connection.
//!
//! A connection is closed in two steps: it is shut down, and its slot is free when its last operation has completed.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use io_uring::opcode;
use io_uring::types::Fd;
use rustls::ServerConfig;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use super::buffers::Buffers;
use super::census::Census;
use super::connection::{Connection, Heard};
use super::ring::{Completion, Kind, Ring, Token};
use super::tls::{Broken, Tls};
use crate::clock::Mono;
use crate::counters::{ConnectionEnd, ConnectionRefusal, HandshakeFailure, ReactorCounters};
use crate::limits;
use crate::proto::manifest::PeerCertificate;
use crate::session::admission::Lists;
use crate::session::{ConnectionKey, Flow};

/// Buffer group of the connections.
const GROUP: u16 = 2;
const BACKLOG: i32 = 1_024;
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(limits::TCP_KEEPALIVE_AFTER)
    .with_interval(limits::TCP_KEEPALIVE_EVERY)
    .with_retries(limits::TCP_KEEPALIVE_TRIES);

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
    Message {
        flow: Flow,
        bytes: Bytes,
    },
    /// The peer has proved who it is; before all its messages.
    Secured {
        flow: Flow,
        certificate: Arc<PeerCertificate>,
    },
    HandshakeFailed {
        peer: SocketAddr,
        why: String,
    },
    Disconnected(ConnectionKey),
}

/// A socket that listens.
pub struct Listener {
    pub socket: Socket,
    pub tls: bool,
}

pub struct Connections {
    reactor: u8,
    listeners: Vec<Listener>,
    /// Listeners whose multishot accept has ended.
    ended: Vec<u32>,
    /// Listeners whose accept has failed: without descriptors it would fail again at once. They wait for the next sweep.
    failed: Vec<u32>,
    /// For handshakes that begin now.
    tls: Option<Arc<ServerConfig>>,
    handshakes: Handshakes,
    census: Arc<Census>,
    buffers: Buffers,
    slots: Vec<Slot>,
    free: Vec<u32>,
    counters: Arc<ReactorCounters>,
    /// Decrypted bytes of one receive.
    plain: Vec<u8>,
    heard: Heard,
    /// Whose connections are taken.
    pub lists: Arc<Lists>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    connection: Option<Connection>,
}

impl Connections {
    pub fn arm(
        reactor: u8,
        listeners: Vec<Listener>,
        tls: Option<Arc<ServerConfig>>,
        census: Arc<Census>,
        ring: &mut Ring,
        counters: Arc<ReactorCounters>,
    ) -> Result<Connections, String> {
        let buffers = Buffers::new(ring, GROUP, limits::TCP_BUFFERS, limits::TCP_BUFFER_SIZE)?;
        let slots = (0..limits::TCP_CONNECTIONS).map(|_| Slot::default()).collect();
        let mut connections = Connections {
            reactor,
            ended: (0..listeners.len() as u32).collect(),
            listeners,
            failed: Vec::new(),
            tls,
            handshakes: Handshakes::default(),
            census,
            buffers,
            slots,
            free: (0..limits::TCP_CONNECTIONS as u32).rev().collect(),
            counters,
            plain: Vec::new(),
            heard: Heard::default(),
            lists: Arc::default(),
        };
        connections.publish(ring).map_err(|e| format!("arming SIP listeners failed: {e}"))?;
        Ok(connections)
    }

    /// Handshakes that begin from now on have this certificate; connections that there are stay as they are.
    pub fn renew(&mut self, config: Arc<ServerConfig>) {
        self.tls = Some(config);
    }

    /// A new connection, or a listener whose accept has ended.
    pub fn accepted(&mut self, completion: Completion, now: Mono, ring: &mut Ring) -> io::Result<()> {
        let listener = completion.token.slot;
        if !completion.more() {
            let ended = if completion.result < 0 { &mut self.failed } else { &mut self.ended };
            ended.push(listener);
        }
        if completion.result < 0 {
            self.refuse(ConnectionRefusal::Accept);
            return Ok(());
        }
        // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
        let socket = unsafe { Socket::from_raw_fd(completion.result) };
        match self.admit(socket, self.listeners[listener as usize].tls, now) {
            Ok(slot) => self.receive(slot, ring),
            Err(cause) => {
                self.refuse(cause);
                Ok(())
            }
        }
    }

    fn refuse(&self, cause: ConnectionRefusal) {
        self.counters.connections_refused[cause as usize].add(1);
    }

    /// Gives the connection a slot. One that is refused is closed with its socket.
    fn admit(&mut self, socket: Socket, secure: bool, now: Mono) -> Result<u32, ConnectionRefusal> {
        let addresses =
            socket.peer_addr().and_then(|peer| Ok((peer.as_socket(), socket.local_addr()?.as_socket())));
        let Ok((Some(peer), Some(local))) = addresses else { return Err(ConnectionRefusal::Accept) };
        if !self.lists.admit(peer.ip()) {
            self.counters.sip_denied.add(1);
            return Err(ConnectionRefusal::Denied); // closed with its descriptor
        }
        let Some(slot) = self.free.last().copied() else { return Err(ConnectionRefusal::Total) };
        if secure && !self.handshakes.take(now) {
            return Err(ConnectionRefusal::HandshakeRate);
        }
        let tls = match (secure, &self.tls) {
            (false, _) => None,
            (true, Some(config)) => Some(Tls::new(config.clone()).map_err(|_| ConnectionRefusal::Accept)?),
            (true, None) => return Err(ConnectionRefusal::Accept),
        };
        self.census.enter(peer.ip())?;
        self.free.pop();
        let _ = socket.set_tcp_nodelay(true);
        let _ = socket.set_tcp_keepalive(&KEEPALIVE);
        self.counters.tcp_accepted.add(1);
        self.counters.tcp_open.add(1);
        self.slots[slot as usize].connection = Some(Connection::new(socket, (peer, local), tls, now));
        Ok(slot)
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
        let mut heard = std::mem::take(&mut self.heard);
        if let Some(connection) = current(&mut self.slots, slot, generation) {
            connection.receiving = completion.more();
            match (completion.buffer(), completion.result) {
                (Some(id), length) => {
                    let bytes = self.buffers.bytes(id, length.max(0) as usize);
                    connection.receive(bytes, now, &mut self.plain, &mut heard);
                }
                (None, 0) => connection.ended(now),
                (None, e) if e < 0 && e != -libc::ENOBUFS => connection.abort(ConnectionEnd::Reset),
                _ => {}
            }
            tell(
                connection,
                self.reactor,
                ConnectionKey { slot, generation },
                &mut heard,
                &self.counters,
                out,
            );
        } else {
            self.counters.stale_completions.add(1);
        }
        self.heard = heard;
        if let Some(id) = completion.buffer() {
            self.buffers.give(id);
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
        let Some(connection) = current(&mut self.slots, slot, generation) else {
            self.counters.stale_completions.add(1);
            return Ok(());
        };
        connection.sending = false;
        match usize::try_from(completion.result) {
            Ok(taken) => connection.taken(taken),
            Err(_) => {
                self.counters.sip_send_errors.add(1);
                connection.abort(ConnectionEnd::Reset);
            }
        }
        self.settle(slot, generation, ring, out)
    }

    /// Queues a message. `Err(NotConnected)`: the connection is gone, or its peer does not read and it is closed now.
    pub fn send(&mut self, flow: &Flow, bytes: Bytes, now: Mono, ring: &mut Ring) -> io::Result<()> {
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        let key = flow.connection.ok_or_else(gone)?;
        let connection = current(&mut self.slots, key.slot, key.generation).ok_or_else(gone)?;
        let queued = connection.send(bytes, now);
        self.send_next(key.slot, ring)?;
        if queued { Ok(()) } else { Err(gone()) }
    }

    /// Closes a connection once everything queued on it is sent.
    pub fn disconnect(
        &mut self,
        flow: &Flow,
        end: ConnectionEnd,
        now: Mono,
        ring: &mut Ring,
        out: &mut Vec<Arrival>,
    ) -> io::Result<()> {
        let Some(key) = flow.connection else { return Ok(()) };
        let Some(connection) = current(&mut self.slots, key.slot, key.generation) else { return Ok(()) };
        connection.close(end, now);
        self.settle(key.slot, key.generation, ring, out)
    }

    /// Closes all that are open once what is queued on them is sent: nothing more will be.
    pub fn close(&mut self, now: Mono, ring: &mut Ring, out: &mut Vec<Arrival>) -> io::Result<()> {
        for slot in 0..self.slots.len() as u32 {
            let Slot { generation, connection: Some(connection) } = &mut self.slots[slot as usize] else {
                continue;
            };
            let generation = *generation;
            connection.close(ConnectionEnd::Asked, now);
            self.settle(slot, generation, ring, out)?;
        }
        Ok(())
    }

    /// Closes connections that make no progress, lets listeners try again.
    pub fn sweep(&mut self, now: Mono, ring: &mut Ring, out: &mut Vec<Arrival>) -> io::Result<()> {
        self.ended.append(&mut self.failed);
        for slot in 0..self.slots.len() as u32 {
            let Slot { generation, connection: Some(connection) } = &mut self.slots[slot as usize] else {
                continue;
            };
            let generation = *generation;
            connection.tick(now);
            self.settle(slot, generation, ring, out)?;
        }
        Ok(())
    }

    /// Whether anything waits to be sent.
    pub fn idle(&self) -> bool {
        self.slots.iter().all(|slot| slot.connection.as_ref().is_none_or(Connection::idle))
    }

    pub fn publish(&mut self, ring: &mut Ring) -> io::Result<()> {
        self.buffers.publish();
        while let Some(slot) = self.ended.pop() {
            let fd = Fd(self.listeners[slot as usize].socket.as_raw_fd());
            let token = Token::new(Kind::Accept, slot, 0).pack();
            let entry = opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build().user_data(token);
            // SAFETY: the entry points to nothing.
            unsafe { ring.push(&entry)? };
        }
        Ok(())
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

    fn send_next(&mut self, slot: u32, ring: &mut Ring) -> io::Result<()> {
        let Slot { generation, connection: Some(connection) } = &mut self.slots[slot as usize] else {
            return Ok(());
        };
        let fd = Fd(connection.socket.as_raw_fd());
        let Some(bytes) = connection.next() else { return Ok(()) };
        let token = Token::new(Kind::TcpSend, slot, *generation).pack();
        let entry = opcode::Send::new(fd, bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_NOSIGNAL)
            .build()
            .user_data(token);
        connection.sending = true;
        // SAFETY: the bytes stay at the head of the queue, and so where they are, until this send completes: they are
        // advanced or dropped in `sent` alone, and the slot is not freed while `sending`.
        unsafe { ring.push(&entry) }
    }

    /// Sends what waits; frees the slot of a dead connection after its last completion; arms a live one that is not receiving.
    fn settle(
        &mut self,
        slot: u32,
        generation: u32,
        ring: &mut Ring,
        out: &mut Vec<Arrival>,
    ) -> io::Result<()> {
        self.send_next(slot, ring)?;
        let Some(connection) = current(&mut self.slots, slot, generation) else { return Ok(()) };
        match connection.dead() {
            Some(end) if !connection.receiving && !connection.sending => {
                out.push(self.free(slot, end));
                Ok(())
            }
            None if connection.wants_to_receive() => self.receive(slot, ring),
            _ => Ok(()),
        }
    }

    fn free(&mut self, slot: u32, end: ConnectionEnd) -> Arrival {
        let place = &mut self.slots[slot as usize];
        let generation = place.generation;
        if let Some(connection) = place.connection.take() {
            self.census.leave(connection.peer().ip());
            let handshaking = connection.tls().is_some_and(Tls::handshaking);
            let cause = match end {
                // Its cause is counted already.
                ConnectionEnd::Tls => None,
                ConnectionEnd::HandshakeTime => Some(HandshakeFailure::Time),
                _ => handshaking.then_some(HandshakeFailure::Abandoned),
            };
            cause.into_iter().for_each(|cause| self.counters.tls_failed[cause as usize].add(1));
        }
        place.generation = generation.wrapping_add(1);
        self.free.push(slot);
        self.counters.tcp_open.sub(1);
        self.counters.connections_closed[end as usize].add(1);
        Arrival::Disconnected(ConnectionKey { slot, generation })
    }
}

fn current(slots: &mut [Slot], slot: u32, generation: u32) -> Option<&mut Connection> {
    slots.get_mut(slot as usize).filter(|s| s.generation == generation)?.connection.as_mut()
}

/// Counts what was heard and passes it on, in order.
fn tell(
    connection: &Connection,
    reactor: u8,
    key: ConnectionKey,
    heard: &mut Heard,
    counters: &ReactorCounters,
    out: &mut Vec<Arrival>,
) {
    let flow = connection.flow(reactor, key);
    if let (true, Some(tls)) = (std::mem::take(&mut heard.established), connection.tls()) {
        counters.tls_handshakes[tls.version() as usize].add(1);
        counters.tls_resumed.add(u64::from(tls.resumed()));
        out.extend(tls.peer().map(|peer| Arrival::Secured { flow, certificate: Arc::new(peer) }));
    }
    if let Some(Broken { cause, why }) = heard.broken.take() {
        counters.tls_failed[cause as usize].add(1);
        out.push(Arrival::HandshakeFailed { peer: connection.peer(), why });
    }
    counters.keepalives.add(std::mem::take(&mut heard.pings) as u64);
    out.extend(heard.messages.drain(..).map(|bytes| Arrival::Message { flow, bytes }));
}

/// How many handshakes may begin: each costs its reactor a signature, and media wait for it.
#[derive(Default)]
struct Handshakes {
    spent: Duration,
    since: Mono,
}

impl Handshakes {
    /// A bucket that holds what a second brings, kept as the time that refills it.
    fn take(&mut self, now: Mono) -> bool {
        let each = Duration::from_secs(1) / limits::TLS_HANDSHAKES_PER_SECOND;
        self.spent = self.spent.saturating_sub(now.since(self.since));
        self.since = now;
        let room = self.spent + each <= Duration::from_secs(1);
        if room {
            self.spent += each;
        }
        room
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpStream};

    use super::*;
    use crate::engine::tls::identity::tests::{client, paper};
    use crate::session::Transport;

    /// Listeners and the connections of one reactor, on a ring of this thread.
    struct Bench {
        ring: Ring,
        connections: Connections,
        counters: Arc<ReactorCounters>,
        tcp: SocketAddr,
        tls: SocketAddr,
        arrivals: Vec<Arrival>,
    }

    const BEGUN: Mono = Mono(1);
    const SECOND: Duration = Duration::from_secs(1);
    const REQUEST: &[u8] = b"OPTIONS sip:srs@192.0.2.1 SIP/2.0\r\nContent-Length: 0\r\n\r\n";

    impl Bench {
        fn new(config: Option<Arc<ServerConfig>>) -> Bench {
            let (tcp, plain) = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
            let (tls, secure) = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
            let kinds = [(plain, false), (secure, true)];
            let listeners = kinds
                .into_iter()
                .flat_map(|(sockets, tls)| sockets.into_iter().map(move |socket| Listener { socket, tls }))
                .collect();
            let counters = Arc::new(ReactorCounters::default());
            let mut ring = Ring::new(1).unwrap();
            let census = Arc::new(Census::new(4));
            let connections =
                Connections::arm(0, listeners, config, census, &mut ring, counters.clone()).unwrap();
            Bench { ring, connections, counters, tcp, tls, arrivals: Vec::new() }
        }

        /// Turns at the time `now` until `done`.
        fn turns(&mut self, now: Mono, mut done: impl FnMut(&ReactorCounters, &[Arrival]) -> bool) {
            for _ in 0..1_000 {
                if done(&self.counters, &self.arrivals) {
                    return;
                }
                self.ring.wait(Duration::ZERO, Duration::from_millis(10)).unwrap();
                let batch = self.ring.reap();
                for &completion in &batch {
                    let Bench { ring, connections, arrivals, .. } = self;
                    match completion.token.kind {
                        Kind::Accept => connections.accepted(completion, now, ring),
                        Kind::TcpReceive => connections.received(completion, now, ring, arrivals),
                        _ => connections.sent(completion, ring, arrivals),
                    }
                    .unwrap();
                }
                self.ring.reaped(batch);
                self.connections.publish(&mut self.ring).unwrap();
            }
            panic!("it did not come to that in 1,000 turns");
        }

        fn sweep(&mut self, now: Mono) {
            let Bench { ring, connections, arrivals, .. } = self;
            connections.sweep(now, ring, arrivals).unwrap();
        }

        fn messages(&self) -> Vec<(Flow, Bytes)> {
            let message = |arrival: &Arrival| match arrival {
                Arrival::Message { flow, bytes } => Some((*flow, bytes.clone())),
                _ => None,
            };
            self.arrivals.iter().filter_map(message).collect()
        }

        /// What the peer reads until `enough`, while turns go on.
        fn read(&mut self, mut peer: &TcpStream, now: Mono, enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
            peer.set_nonblocking(true).unwrap();
            let mut all = Vec::new();
            let mut over = false;
            self.turns(now, |_, _| {
                let mut bytes = [0; 4_096];
                while !over && let Ok(length) = peer.read(&mut bytes) {
                    all.extend(&bytes[..length]);
                    over = length == 0;
                }
                over || enough(&all)
            });
            peer.set_nonblocking(false).unwrap();
            all
        }
    }

    fn closed(counters: &ReactorCounters, end: ConnectionEnd) -> u64 {
        counters.connections_closed[end as usize].get()
    }

    #[test]
    fn a_peer_that_dawdles_is_closed_and_one_that_keeps_alive_is_not() {
        let mut bench = Bench::new(None);
        let silent = TcpStream::connect(bench.tcp).unwrap();
        let mut drip = TcpStream::connect(bench.tcp).unwrap();
        let mut alive = TcpStream::connect(bench.tcp).unwrap();
        drip.write_all(b"OPTIONS sip:srs@127.0.0.1 SIP/2.0\r\nVia: ").unwrap();
        alive.write_all(b"\r\n\r\n").unwrap();
        assert_eq!(bench.read(&alive, BEGUN, |bytes| !bytes.is_empty()), b"\r\n");
        bench.turns(BEGUN, |counters, _| counters.tcp_open.get() == 3);

        bench.sweep(BEGUN + limits::TCP_MESSAGE_TIMEOUT);
        assert_eq!(closed(&bench.counters, ConnectionEnd::MessageTime), 0, "in time still");
        let late = BEGUN + limits::TCP_MESSAGE_TIMEOUT + SECOND;
        bench.sweep(late);
        bench.turns(late, |counters, _| counters.tcp_open.get() == 1);
        assert_eq!(closed(&bench.counters, ConnectionEnd::MessageTime), 2);
        let gone = |arrival: &&Arrival| matches!(arrival, Arrival::Disconnected(_));
        assert_eq!(bench.arrivals.iter().filter(gone).count(), 2);
        for mut peer in [silent, drip] {
            assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0, "the end of the stream");
        }
        assert_eq!(bench.counters.keepalives.get(), 1);
    }

    #[test]
    fn a_half_closed_connection_brings_its_answer() {
        let mut bench = Bench::new(None);
        let mut peer = TcpStream::connect(bench.tcp).unwrap();
        peer.write_all(REQUEST).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        bench.turns(BEGUN, |_, arrivals| !arrivals.is_empty());
        // Its last word is heard in one of these.
        for _ in 0..3 {
            bench.sweep(BEGUN);
        }
        let (flow, bytes) = bench.messages().remove(0);
        assert_eq!(bytes, REQUEST);
        let Bench { ring, connections, .. } = &mut bench;
        connections.send(&flow, Bytes::from_static(b"SIP/2.0 200 OK\r\n\r\n"), BEGUN, ring).unwrap();
        assert_eq!(bench.read(&peer, BEGUN, |_| false), b"SIP/2.0 200 OK\r\n\r\n");
        bench.turns(BEGUN, |counters, _| counters.tcp_open.get() == 0);
        assert_eq!(closed(&bench.counters, ConnectionEnd::Peer), 1);
    }

    #[test]
    fn one_source_has_its_share_of_connections() {
        let mut bench = Bench::new(None);
        let mut peers: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(bench.tcp).unwrap()).collect();
        bench.turns(BEGUN, |counters, _| counters.tcp_open.get() == 4);
        let fifth = TcpStream::connect(bench.tcp).unwrap();
        assert!(bench.read(&fifth, BEGUN, |_| false).is_empty());
        let refused = ConnectionRefusal::PerSource as usize;
        assert_eq!(bench.counters.connections_refused[refused].get(), 1);
        drop(peers.pop());
        bench.turns(BEGUN, |counters, _| counters.tcp_open.get() == 3);
        let _sixth = TcpStream::connect(bench.tcp).unwrap();
        bench.turns(BEGUN, |counters, _| counters.tcp_open.get() == 4);
    }

    #[test]
    fn a_handshake_that_stalls_is_closed_and_told_from_one_that_is_no_tls() {
        let mut bench = Bench::new(Some(paper(&["srs.example.com"]).config()));
        let mut stalled = TcpStream::connect(bench.tls).unwrap();
        stalled.write_all(&[22, 3, 1, 2, 0, 1]).unwrap();
        let mut plain = TcpStream::connect(bench.tls).unwrap();
        plain.write_all(REQUEST).unwrap();
        let failed = |counters: &ReactorCounters, cause| counters.tls_failed[cause as usize].get();
        bench.turns(BEGUN, |counters, _| failed(counters, HandshakeFailure::NotTls) == 1);
        bench.turns(BEGUN, |counters, _| counters.tcp_accepted.get() == 2 && counters.tcp_open.get() == 1);
        bench.sweep(BEGUN + limits::TLS_HANDSHAKE_TIME);
        assert_eq!(bench.counters.tcp_open.get(), 1);
        bench.sweep(BEGUN + limits::TLS_HANDSHAKE_TIME + SECOND);
        bench.turns(BEGUN, |counters, _| counters.tcp_open.get() == 0);
        assert_eq!(failed(&bench.counters, HandshakeFailure::Time), 1);
        assert_eq!(closed(&bench.counters, ConnectionEnd::HandshakeTime), 1);
        assert!(bench.arrivals.iter().any(|arrival| matches!(arrival, Arrival::HandshakeFailed { .. })));
    }

    #[test]
    fn messages_over_tls_come_after_the_name_of_their_sender() {
        let paper = paper(&["srs.example.com"]);
        let mut bench = Bench::new(Some(paper.mutual()));
        let identity = paper.client(&["src.example.com"]);
        let mut tls = client(&paper, &rustls::version::TLS13, Some(&identity));
        let mut peer = TcpStream::connect(bench.tls).unwrap();
        tls.writer().write_all(REQUEST).unwrap();
        peer.set_nonblocking(true).unwrap();
        bench.turns(BEGUN, |_, arrivals| {
            while tls.wants_write() {
                tls.write_tls(&mut peer).unwrap();
            }
            if tls.read_tls(&mut peer).is_ok() {
                tls.process_new_packets().unwrap();
            }
            arrivals.len() == 2
        });
        let Arrival::Secured { flow, certificate } = &bench.arrivals[0] else { panic!("no certificate") };
        assert_eq!(certificate.names, ["DNS:src.example.com"]);
        assert_eq!((flow.transport, bench.messages()[0].0), (Transport::Tls, *flow));
        assert_eq!(bench.messages()[0].1, REQUEST);
        // A new certificate is for new connections.
        bench.connections.renew(self::paper(&["other.example.com"]).config());
        tls.writer().write_all(REQUEST).unwrap();
        tls.write_tls(&mut peer).unwrap();
        bench.turns(BEGUN, |_, arrivals| arrivals.len() == 3);
        let (flow, _) = bench.messages()[0];
        let Bench { ring, connections, .. } = &mut bench;
        for _ in 0..2 {
            connections.send(&flow, Bytes::from_static(b"SIP/2.0 200 OK\r\n\r\n"), BEGUN, ring).unwrap();
        }
        drop(peer);
        bench.turns(BEGUN, |counters, _| counters.tcp_open.get() == 0);
    }

    #[test]
    fn handshakes_have_their_rate() {
        let mut handshakes = Handshakes::default();
        let now = Mono(1_000_000_000_000);
        let burst = (0..10_000).take_while(|_| handshakes.take(now)).count();
        assert_eq!(burst, limits::TLS_HANDSHAKES_PER_SECOND as usize);
        assert!(!handshakes.take(now));
        let later = now + Duration::from_millis(100);
        let more = (0..10_000).take_while(|_| handshakes.take(later)).count();
        assert_eq!(more, limits::TLS_HANDSHAKES_PER_SECOND as usize / 10);
    }
}
