//! One SIP connection (RFC 3261 §18.3), TCP or TLS: framing, what waits to be sent, when it has to be over. It knows no ring.

use std::collections::VecDeque;
use std::net::{Shutdown, SocketAddr};

use bytes::{Buf, Bytes};
use socket2::Socket;

use super::tls::{Broken, Tls};
use crate::clock::Mono;
use crate::counters::ConnectionEnd;
use crate::limits;
use crate::proto::sip::{Frame, Framer};
use crate::session::{ConnectionKey, Flow, Transport};

pub struct Connection {
    pub socket: Socket,
    peer: SocketAddr,
    local: SocketAddr,
    tls: Option<Box<Tls>>,
    framer: Framer,
    queue: VecDeque<Bytes>,
    queued: usize,
    /// A multishot receive is armed, a send is in flight.
    pub receiving: bool,
    pub sending: bool,
    state: State,
    /// The peer has closed its side.
    deaf: bool,
    /// Requests that have no final response yet: a peer that has said its last word still waits for these.
    unanswered: usize,
    /// When the peer last said something of SIP, and whether it ever did.
    last: Mono,
    spoken: bool,
    /// When the unfinished message began to come. A connection that says nothing at all is as slow as one that stops in the middle.
    unfinished_since: Option<Mono>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Open,
    /// The peer sends nothing any more (half-close); it gets what is under way.
    Listening {
        since: Mono,
    },
    /// Shut down once the queue is empty.
    Closing {
        since: Mono,
        end: ConnectionEnd,
    },
    /// Shut down: only completions are awaited.
    Dead {
        end: ConnectionEnd,
    },
}

/// What bytes of a connection were.
#[derive(Default)]
pub struct Heard {
    pub messages: Vec<Bytes>,
    /// The handshake is over.
    pub established: bool,
    /// Keepalives that were answered.
    pub pings: usize,
    /// TLS has failed, in the handshake or later.
    pub broken: Option<Broken>,
}

impl Connection {
    pub fn new(
        socket: Socket,
        (peer, local): (SocketAddr, SocketAddr),
        tls: Option<Tls>,
        now: Mono,
    ) -> Connection {
        Connection {
            socket,
            peer,
            local,
            tls: tls.map(Box::new),
            framer: Framer::new(),
            queue: VecDeque::new(),
            queued: 0,
            receiving: false,
            sending: false,
            state: State::Open,
            deaf: false,
            unanswered: 0,
            last: now,
            spoken: false,
            unfinished_since: Some(now),
        }
    }

    pub fn flow(&self, reactor: u8, key: ConnectionKey) -> Flow {
        let transport = if self.tls.is_some() { Transport::Tls } else { Transport::Tcp };
        let (local, peer) = (self.local, self.peer);
        Flow { reactor, transport, local, peer, listener: 0, connection: Some(key) }
    }

    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_deref()
    }

    /// Why it has ended, once it is shut down.
    pub fn dead(&self) -> Option<ConnectionEnd> {
        match self.state {
            State::Dead { end } => Some(end),
            _ => None,
        }
    }

    /// Whether a receive is to be armed.
    pub fn wants_to_receive(&self) -> bool {
        !self.receiving && !self.deaf && self.dead().is_none()
    }

    /// Nothing waits to be sent that could be.
    pub fn idle(&self) -> bool {
        self.dead().is_some() || self.queue.is_empty()
    }

    // ---- what comes ---------------------------------------------------------------------------------------------

    /// Takes bytes of the wire. `plain` is memory that is used again and again.
    pub fn receive(&mut self, wire: &[u8], now: Mono, plain: &mut Vec<u8>, heard: &mut Heard) {
        if self.state != State::Open {
            return;
        }
        let Some(tls) = &mut self.tls else { return self.frames(wire, now, heard) };
        let handshaking = tls.handshaking();
        plain.clear();
        let received = tls.receive(wire, plain);
        heard.established = handshaking && !tls.handshaking();
        if heard.established {
            self.unfinished_since = Some(now);
        }
        if let Err(broken) = received {
            heard.broken = Some(broken);
            // The alert says it all.
            self.push_wire();
            self.state = State::Closing { since: now, end: ConnectionEnd::Tls };
            return;
        }
        self.push_wire();
        self.frames(plain, now, heard);
        if self.state == State::Open && self.tls.as_ref().is_some_and(|tls| tls.closed()) {
            self.ended(now);
        }
    }

    /// The peer has closed its side. What it waits for still leaves (RFC 3261 §18.2.2: over the connection of the request).
    pub fn ended(&mut self, now: Mono) {
        self.deaf = true;
        if self.state == State::Open {
            self.state = State::Listening { since: now };
            self.close_when_answered(now);
        }
    }

    fn frames(&mut self, bytes: &[u8], now: Mono, heard: &mut Heard) {
        if !bytes.is_empty() {
            (self.last, self.spoken) = (now, true);
        }
        let Ok(progress) = self.cut(bytes, heard) else {
            if let Some(refusal) = self.framer.refusal(self.peer) {
                self.send(refusal, now);
            }
            return self.close(ConnectionEnd::Unframeable, now);
        };
        self.unfinished_since = match (self.unfinished(), progress > 0) {
            (true, true) => Some(now),
            (true, false) => self.unfinished_since.or(Some(now)),
            (false, _) if self.spoken => None,
            (false, _) => self.unfinished_since,
        };
        // RFC 5626 §4.4.1: a double CRLF is answered with one, at once.
        if heard.pings > 0 {
            self.send(b"\r\n".repeat(heard.pings).into(), now);
        }
    }

    /// How many messages and keepalives these bytes completed.
    fn cut(&mut self, bytes: &[u8], heard: &mut Heard) -> Result<usize, ()> {
        self.framer.push(bytes).map_err(|_| ())?;
        let before = heard.messages.len() + heard.pings;
        while let Some(frame) = self.framer.next().map_err(|_| ())? {
            match frame {
                Frame::Message(bytes) => {
                    self.unanswered += usize::from(asks(&bytes));
                    heard.messages.push(bytes);
                }
                Frame::Ping => heard.pings += 1,
            }
        }
        Ok(heard.messages.len() + heard.pings - before)
    }

    fn unfinished(&self) -> bool {
        let handshaking = self.tls.as_ref().is_some_and(|tls| tls.handshaking() || tls.unfinished());
        handshaking || self.framer.pending() > 0
    }

    // ---- what goes ----------------------------------------------------------------------------------------------

    /// Queues a message. `false`: the connection is over, or its peer does not read and it is over now.
    pub fn send(&mut self, bytes: Bytes, now: Mono) -> bool {
        let full = self.queue.len() >= limits::TCP_SENDS_QUEUED
            || self.queued + bytes.len() > limits::TCP_SEND_QUEUE;
        match self.state {
            State::Dead { .. } | State::Closing { .. } => return false,
            State::Open | State::Listening { .. } if full => {
                self.abort(ConnectionEnd::NotReading);
                return false;
            }
            State::Open | State::Listening { .. } => {}
        }
        self.unanswered = self.unanswered.saturating_sub(usize::from(answers(&bytes)));
        match &mut self.tls {
            None => self.push(bytes),
            Some(tls) => {
                tls.send(&bytes);
                self.push_wire();
            }
        }
        self.close_when_answered(now);
        true
    }

    /// What the kernel is to send next: it stays where it is until [`Connection::taken`].
    pub fn next(&mut self) -> Option<&Bytes> {
        if self.sending || self.dead().is_some() {
            return None;
        }
        gather(&mut self.queue);
        match self.state {
            // What it is still sending would make the kernel reset the connection, and the refusal be lost: it is heard out.
            State::Closing { end: ConnectionEnd::Unframeable, .. } if self.queue.is_empty() && !self.deaf => {
                let _ = self.socket.shutdown(Shutdown::Write);
            }
            State::Closing { end, .. } if self.queue.is_empty() => self.abort(end),
            _ => {}
        }
        self.queue.front()
    }

    /// The kernel has taken so many bytes of the one send in flight.
    pub fn taken(&mut self, n: usize) {
        self.queued -= n;
        if let Some(front) = self.queue.front_mut() {
            front.advance(n);
            if front.is_empty() {
                self.queue.pop_front();
            }
        }
    }

    fn push_wire(&mut self) {
        if let Some(wire) = self.tls.as_mut().and_then(|tls| tls.wire()) {
            self.push(wire);
        }
    }

    fn push(&mut self, bytes: Bytes) {
        self.queued += bytes.len();
        self.queue.push_back(bytes);
    }

    // ---- its end ------------------------------------------------------------------------------------------------

    /// Lets what is queued leave first, and with TLS says so to the peer.
    pub fn close(&mut self, end: ConnectionEnd, now: Mono) {
        if matches!(self.state, State::Dead { .. } | State::Closing { .. }) {
            return;
        }
        if let Some(tls) = &mut self.tls {
            tls.close();
            self.push_wire();
        }
        self.state = State::Closing { since: now, end };
    }

    /// At once: nothing that is said to this peer arrives.
    pub fn abort(&mut self, end: ConnectionEnd) {
        let first = match self.state {
            State::Dead { .. } => return,
            State::Closing { end, .. } => end,
            _ => end,
        };
        self.state = State::Dead { end: first };
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    fn close_when_answered(&mut self, now: Mono) {
        if matches!(self.state, State::Listening { .. }) && self.unanswered == 0 {
            self.close(ConnectionEnd::Peer, now);
        }
    }

    /// Ends it when its time is over.
    pub fn tick(&mut self, now: Mono) {
        let late = |since: Mono, time| now.since(since) > time;
        match self.state {
            State::Dead { .. } => {}
            State::Closing { since, end } if late(since, limits::TCP_CLOSE_TIME) => self.abort(end),
            State::Closing { .. } => {}
            State::Listening { since } if late(since, limits::TCP_HALF_CLOSED_TIME) => {
                self.close(ConnectionEnd::Peer, now);
            }
            State::Listening { .. } => {}
            State::Open => self.tick_open(now),
        }
    }

    fn tick_open(&mut self, now: Mono) {
        let handshaking = self.tls.as_ref().is_some_and(|tls| tls.handshaking());
        let (time, end) = match handshaking {
            true => (limits::TLS_HANDSHAKE_TIME, ConnectionEnd::HandshakeTime),
            false => (limits::TCP_MESSAGE_TIMEOUT, ConnectionEnd::MessageTime),
        };
        if self.unfinished_since.is_some_and(|since| now.since(since) > time) {
            self.close(end, now);
        } else if now.since(self.last) > limits::TCP_IDLE_TIMEOUT {
            self.close(ConnectionEnd::Idle, now);
        }
    }
}

/// A request that has an answer.
fn asks(message: &[u8]) -> bool {
    !message.starts_with(b"SIP/2.0 ") && !message.starts_with(b"ACK ")
}

/// A final response.
fn answers(message: &[u8]) -> bool {
    message
        .strip_prefix(b"SIP/2.0 ")
        .and_then(<[u8]>::first)
        .is_some_and(|digit| (b'2'..=b'6').contains(digit))
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

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    const REQUEST: &[u8] = b"OPTIONS sip:srs@192.0.2.1 SIP/2.0\r\nContent-Length: 0\r\n\r\n";
    const BEGUN: Mono = Mono(1_000_000_000);

    /// A connection, and its peer's end.
    fn connection() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, from) = listener.accept().unwrap();
        let local = socket.local_addr().unwrap();
        (Connection::new(socket.into(), (from, local), None, BEGUN), peer)
    }

    fn hear(connection: &mut Connection, bytes: &[u8], now: Mono) -> Heard {
        let mut heard = Heard::default();
        connection.receive(bytes, now, &mut Vec::new(), &mut heard);
        heard
    }

    /// The kernel takes everything that waits.
    fn drain(connection: &mut Connection) -> Vec<u8> {
        let mut sent = Vec::new();
        while let Some(bytes) = connection.next() {
            let bytes = bytes.to_vec();
            connection.taken(bytes.len());
            sent.extend(bytes);
        }
        sent
    }

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

    #[test]
    fn a_keepalive_is_answered_at_once() {
        let (mut connection, _peer) = connection();
        assert_eq!(hear(&mut connection, b"\r\n\r\n", BEGUN).pings, 1);
        assert_eq!(drain(&mut connection), b"\r\n");
        // Between two messages too, and a single CRLF asks for nothing.
        let bytes = [REQUEST, b"\r\n\r\n", REQUEST, b"\r\n"].concat();
        let heard = hear(&mut connection, &bytes, BEGUN);
        assert_eq!((heard.messages.len(), heard.pings), (2, 1));
        assert_eq!(drain(&mut connection), b"\r\n");
    }

    #[test]
    fn a_peer_that_has_said_its_last_word_gets_its_answers() {
        let (mut connection, _peer) = connection();
        assert_eq!(hear(&mut connection, &REQUEST.repeat(2), BEGUN).messages.len(), 2);
        connection.ended(BEGUN);
        assert_eq!(connection.dead(), None);
        assert!(!connection.wants_to_receive(), "nothing will come");
        assert!(connection.send(Bytes::from_static(b"SIP/2.0 100 Trying\r\n\r\n"), BEGUN));
        assert!(connection.send(Bytes::from_static(b"SIP/2.0 200 OK\r\n\r\n"), BEGUN));
        drain(&mut connection);
        assert_eq!(connection.dead(), None, "one is to come");
        assert!(connection.send(Bytes::from_static(b"SIP/2.0 486 Busy Here\r\n\r\n"), BEGUN));
        assert_eq!(drain(&mut connection), b"SIP/2.0 486 Busy Here\r\n\r\n");
        assert_eq!(connection.dead(), Some(ConnectionEnd::Peer));
        assert!(!connection.send(Bytes::from_static(b"late"), BEGUN));
    }

    #[test]
    fn a_peer_that_waits_for_nothing_is_closed_with_it() {
        let (mut connection, _peer) = connection();
        connection.ended(BEGUN);
        assert!(drain(&mut connection).is_empty());
        assert_eq!(connection.dead(), Some(ConnectionEnd::Peer));
        let (mut connection, _peer) = self::connection();
        hear(&mut connection, REQUEST, BEGUN);
        connection.ended(BEGUN);
        connection.tick(BEGUN + limits::TCP_HALF_CLOSED_TIME + Duration::from_secs(1));
        assert!(drain(&mut connection).is_empty());
        assert_eq!(connection.dead(), Some(ConnectionEnd::Peer), "no answer came");
    }

    #[test]
    fn every_wait_has_its_end() {
        let second = Duration::from_secs(1);
        let end = |said: &[&[u8]], after| {
            let (mut connection, _peer) = connection();
            let mut now = BEGUN;
            for bytes in said {
                hear(&mut connection, bytes, now);
                now = now + second;
            }
            connection.tick(BEGUN + after);
            drain(&mut connection);
            connection.dead()
        };
        let (message, idle) = (limits::TCP_MESSAGE_TIMEOUT, limits::TCP_IDLE_TIMEOUT);
        assert_eq!(end(&[], message), None);
        assert_eq!(end(&[], message + second), Some(ConnectionEnd::MessageTime), "it says nothing at all");
        // Byte after byte of one message is no progress.
        assert_eq!(end(&[b"O", b"P", b"T"], message + second), Some(ConnectionEnd::MessageTime));
        assert_eq!(end(&[REQUEST], message + second), None);
        assert_eq!(end(&[REQUEST], idle + second), Some(ConnectionEnd::Idle));
        assert_eq!(end(&[b"\r\n\r\n"], idle), None);
        let close = limits::TCP_CLOSE_TIME + second;
        assert_eq!(end(&[b"\x16\x03\x01"], close), Some(ConnectionEnd::Unframeable));
    }

    #[test]
    fn a_message_that_is_too_large_is_answered_before_the_end() {
        let (mut connection, _peer) = connection();
        let head = b"INVITE sip:a@b SIP/2.0\r\nVia: SIP/2.0/TCP h\r\nContent-Length: 9999999\r\n\r\n";
        hear(&mut connection, head, BEGUN);
        assert!(drain(&mut connection).starts_with(b"SIP/2.0 413 "));
        assert_eq!(connection.dead(), None, "it may be in the middle of its body");
        assert!(hear(&mut connection, b"the rest", BEGUN).messages.is_empty());
        connection.ended(BEGUN);
        drain(&mut connection);
        assert_eq!(connection.dead(), Some(ConnectionEnd::Unframeable));
    }

    #[test]
    fn a_peer_that_does_not_read_is_closed() {
        let (mut connection, _peer) = connection();
        let message = Bytes::from(vec![b'x'; limits::TCP_SEND_QUEUE / 4]);
        assert!((0..4).all(|_| connection.send(message.clone(), BEGUN)));
        assert!(!connection.send(message.clone(), BEGUN));
        assert_eq!(connection.dead(), Some(ConnectionEnd::NotReading));
        // One that is being closed and does not read is waited for, but not for ever.
        let (mut connection, _peer) = self::connection();
        connection.send(message.clone(), BEGUN);
        connection.close(ConnectionEnd::Overload, BEGUN);
        connection.tick(BEGUN + limits::TCP_CLOSE_TIME);
        assert_eq!(connection.dead(), None);
        connection.tick(BEGUN + limits::TCP_CLOSE_TIME + Duration::from_secs(1));
        assert_eq!(connection.dead(), Some(ConnectionEnd::Overload));
    }
}
