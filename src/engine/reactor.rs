//! The data plane's thread: one ring, its media sockets, its SIP sockets and connections, its recordings.
//!
//! One turn: submit and sleep, reap, read letters, do what is due, give buffers back. Packets never leave this thread.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crossbeam::channel::{Sender, TrySendError};
use io_uring::opcode;
use io_uring::types::Fd;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::cpu;
use super::mailbox::{Inbox, Letter};
use super::media_source::{Incoming, MediaSource, Queue};
use super::published::Recorded;
use super::recordings::Recordings;
use super::ring::{Completion, Kind, Ring, Token};
use super::tcp::{Arrival, Connections};
use super::udp::Listeners;
use crate::clock::{Mono, Now, Wall};
use crate::counters::{ConnectionEnd, ReactorCounters};
use crate::limits;
use crate::session::admission::{Lists, Shares};
use crate::session::{Command, Event, Flow, Transport};

/// How long a reactor that has nothing to do sleeps; a letter or a packet ends it.
const IDLE: Duration = limits::TICK;
/// How long after a SIP message short sleeps go on: its answer is on the way through other threads.
const SIP_BUSY: Duration = Duration::from_millis(5);

pub struct Reactor {
    pub ring: Ring,
    pub media: MediaSource,
    pub udp: Listeners,
    pub tcp: Connections,
    pub recordings: Recordings,
    pub inbox: Inbox,
    pub counters: Arc<ReactorCounters>,
    pub batch: Recorded,
    pub outbox: Outbox,
    /// Who may send SIP.
    pub lists: Arc<Lists>,
    pub clock: Clock,
}

/// The times of this reactor's turns.
pub struct Clock {
    now: Now,
    tick_due: Mono,
    busy_until: Mono,
    stop_at: Option<Mono>,
    /// When a failed handshake was last told of.
    complained: Option<Mono>,
}

impl Clock {
    pub fn start() -> Clock {
        let now = cpu::now();
        Clock { now, tick_due: now.mono, busy_until: now.mono, stop_at: None, complained: None }
    }
}

/// Events for control. What it has no room for is kept for the next turn, in order; but SIP datagrams are dropped, because
/// their peers send them again.
pub struct Outbox {
    events: Sender<Event>,
    shares: Shares,
    kept: VecDeque<Event>,
    /// Bytes of the SIP messages in `kept`.
    kept_bytes: usize,
    /// Events of this turn.
    pub fresh: Vec<Event>,
    pub arrivals: Vec<Arrival>,
}

impl Outbox {
    pub fn new(events: Sender<Event>) -> Outbox {
        let shares = Shares::new(limits::EVENTS_OF_SOURCE, &mut StdRng::from_os_rng());
        Outbox {
            events,
            shares,
            kept: VecDeque::new(),
            kept_bytes: 0,
            fresh: Vec::new(),
            arrivals: Vec::new(),
        }
    }

    /// Passes a SIP message on. `false`: there is no room for it. One of a stream is not sent again by its peer
    /// (RFC 3261 §17.1.1.2, §17.1.2.2), so it waits, behind those before it; up to [`limits::TCP_KEPT`].
    fn message(&mut self, flow: Flow, bytes: Bytes, at: Wall) -> bool {
        let (length, stream) = (bytes.len(), flow.transport.reliable());
        let mut event = Event::Message { flow, bytes, at };
        if !stream || self.kept.is_empty() {
            match self.events.try_send(event) {
                Err(TrySendError::Full(full)) => event = full,
                _ => return true,
            }
        }
        let room = stream && self.kept_bytes + length <= limits::TCP_KEPT;
        if room {
            self.kept_bytes += length;
            self.kept.push_back(event);
        }
        room
    }

    /// Passes on what is to be known before the messages that come after it.
    fn in_order(&mut self, event: Event) {
        if !self.kept.is_empty() {
            return self.kept.push_back(event);
        }
        if let Err(TrySendError::Full(event)) = self.events.try_send(event) {
            self.kept.push_back(event);
        }
    }

    /// Whether this source may put a message into the queue: always while there is room, and while the queue is crowded
    /// as long as it keeps to its share. So whoever floods is refused before the others are; a stream later than a datagram,
    /// since its peer loses more by it.
    fn fair(&mut self, flow: Flow, now: Mono) -> bool {
        let crowded = match flow.transport {
            Transport::Udp => limits::EVENTS_CROWDED,
            _ => limits::EVENTS_CROWDED_STREAMS,
        };
        self.shares.take(now, flow.peer.ip()) || self.events.len() < crowded
    }

    /// Passes on what is kept and then what is fresh, as far as there is room.
    fn pass_on(&mut self) {
        self.kept.extend(self.fresh.drain(..));
        while let Some(event) = self.kept.pop_front() {
            let length = if let Event::Message { bytes, .. } = &event { bytes.len() } else { 0 };
            if let Err(e) = self.events.try_send(event) {
                return self.kept.push_front(e.into_inner());
            }
            self.kept_bytes -= length;
        }
    }
}

impl Reactor {
    /// Runs until control says stop, or the ring fails: an error that no reactor can go on after.
    pub fn run(mut self) -> io::Result<()> {
        self.listen()?;
        loop {
            self.sleep()?;
            self.clock.now = cpu::now();
            self.counters.turns.add(1);
            self.turn()?;
            self.due()?;
            self.publish()?;
            if self.clock.stop_at.is_some_and(|at| self.clock.now.mono >= at || self.tcp.idle()) {
                return self.ring.close();
            }
        }
    }

    /// Recorders have no latency to protect, so packets are let gather; SIP waits less.
    fn sleep(&mut self) -> io::Result<()> {
        let now = self.clock.now.mono;
        // Letters beyond a turn's share have rung their bell already.
        if !self.inbox.letters.is_empty() {
            return self.ring.wait(Duration::ZERO, Duration::ZERO);
        }
        let waiting = !self.outbox.kept.is_empty() || !self.outbox.fresh.is_empty();
        let busy = self.recordings.opening() || now < self.clock.busy_until || waiting;
        let idle = if self.recordings.ending() { limits::ENDING_WAIT } else { IDLE };
        let (least, most) = match (busy, self.recordings.is_empty()) {
            (true, _) => (limits::BATCH_WAIT_BUSY, limits::BATCH_WAIT),
            // Nothing wakes us for what comes through a receive queue.
            (false, false) if self.media.polled() => (limits::BATCH_WAIT, limits::BATCH_WAIT),
            (false, false) => (limits::BATCH_WAIT, idle),
            (false, true) => (Duration::ZERO, IDLE),
        };
        self.ring.wait(least, most)
    }

    /// Letters before packets: what led to a packet (a 200 that named its port) was posted before it came, and so it is
    /// before it in the recording, where a reader needs it to know what the packet is.
    fn turn(&mut self) -> io::Result<()> {
        let batch = self.ring.reap();
        self.letters()?;
        if !batch.is_empty() {
            self.batch.record(batch.len() as u64);
        }
        let mut result = Ok(());
        for (index, &completion) in batch.iter().enumerate() {
            self.look_ahead(&batch[index..]);
            result = self.dispatch(completion);
            if result.is_err() {
                break;
            }
        }
        self.ring.reaped(batch);
        result.and_then(|()| self.frames())
    }

    /// Touch each stream's cache lines once, ahead of time: then memory is the cost of a packet, and it is paid in parallel.
    fn look_ahead(&self, coming: &[Completion]) {
        let media = |ahead: usize| coming.get(ahead).filter(|c| c.token.kind == Kind::Media);
        if let Some(&completion) = media(limits::PREFETCH_RECORDING) {
            self.recordings.prefetch_recording(self.media.coming(completion));
        }
        if let Some(&completion) = media(limits::PREFETCH_STREAM) {
            self.recordings.prefetch_stream(self.media.coming(completion));
        }
    }

    /// What has come through receive queues.
    fn frames(&mut self) -> io::Result<()> {
        for index in 0..self.media.queues().len() {
            let mut left = limits::XDP_BATCHES_PER_TURN;
            while left > 0 {
                left -= 1;
                let ready = self.media.queues()[index].peek();
                // By now there may be letters that came before these frames.
                if !self.inbox.letters.is_empty() {
                    self.letters()?;
                }
                // The clock of the turn is older than frames that have come since, and their times would be taken for none.
                let now = cpu::now();
                let Reactor { ring, media, recordings, .. } = self;
                let queue = &mut media.queues()[index];
                frames_of(queue, ready, recordings, ring, now)?;
                queue.release();
                if ready < limits::XDP_BATCH {
                    break;
                }
            }
            self.media.queues()[index].turned(left == 0);
        }
        Ok(())
    }

    fn dispatch(&mut self, completion: Completion) -> io::Result<()> {
        let now = self.clock.now;
        match completion.token.kind {
            Kind::Media => self.media(completion),
            Kind::Write => self.recordings.written(&mut self.ring, completion, now.mono),
            Kind::SipDatagram => {
                if let Some(message) = self.udp.complete(completion) {
                    self.counters.sip_datagrams.add(1);
                    let at = message.at.unwrap_or(now.wall);
                    // No answer: whoever is not admitted shall not learn that somebody is here, nor be sent what he did not ask for.
                    if self.lists.admit(message.flow.peer.ip()) {
                        let _ = self.message(message.flow, message.bytes, at);
                    } else {
                        self.counters.sip_denied.add(1);
                    }
                }
                Ok(())
            }
            Kind::Accept => self.tcp.accepted(completion, now.mono, &mut self.ring),
            Kind::TcpReceive => {
                self.tcp.received(completion, now.mono, &mut self.ring, &mut self.outbox.arrivals)?;
                self.arrivals()
            }
            Kind::TcpSend => {
                self.tcp.sent(completion, &mut self.ring, &mut self.outbox.arrivals)?;
                self.arrivals()
            }
            Kind::Wake => self.listen(),
        }
    }

    fn media(&mut self, completion: Completion) -> io::Result<()> {
        let Reactor { ring, media, recordings, counters, clock, .. } = self;
        let mut result = Ok(());
        let take = |incoming: Option<&Incoming<'_>>| match incoming {
            Some(incoming) => result = recordings.packet(ring, incoming, clock.now),
            None => recordings.unreadable(),
        };
        if media.complete(completion, take).is_err() {
            counters.buffers_exhausted.add(1);
        }
        result
    }

    /// A SIP message goes up; `false`: control is too far behind.
    fn message(&mut self, flow: Flow, bytes: Bytes, at: Wall) -> bool {
        self.clock.busy_until = self.clock.now.mono + SIP_BUSY;
        if !self.outbox.fair(flow, self.clock.now.mono) {
            self.counters.sip_unfair.add(1);
            self.counters.sip_overload.add(1);
            return false;
        }
        let taken = self.outbox.message(flow, bytes, at);
        self.counters.sip_overload.add(u64::from(!taken));
        taken
    }

    /// A stream that has lost a message is closed: then its peer knows, and a BYE comes over another.
    fn arrivals(&mut self) -> io::Result<()> {
        let mut arrivals = std::mem::take(&mut self.outbox.arrivals);
        for arrival in arrivals.drain(..) {
            match arrival {
                Arrival::Message { flow, bytes } => {
                    if !self.message(flow, bytes, self.clock.now.wall) {
                        let Reactor { tcp, ring, outbox, clock, .. } = self;
                        let now = clock.now.mono;
                        tcp.disconnect(&flow, ConnectionEnd::Overload, now, ring, &mut outbox.arrivals)?;
                    }
                }
                Arrival::Secured { flow, certificate } => {
                    self.outbox.in_order(Event::Secured { flow, certificate });
                }
                Arrival::HandshakeFailed { peer, why } => self.complain(peer, why),
                Arrival::Disconnected(connection) => {
                    let reactor = self.udp.reactor();
                    self.outbox.fresh.push(Event::Disconnected { reactor, connection });
                }
            }
        }
        if !self.outbox.arrivals.is_empty() {
            return self.arrivals(); // the connections that have just been closed
        }
        self.outbox.arrivals = arrivals;
        Ok(())
    }

    fn letters(&mut self) -> io::Result<()> {
        // What leads to packets on several reactors is not put off.
        let share = if self.recordings.lends() { self.inbox.letters.len() } else { 0 };
        for _ in 0..share.max(limits::COMMANDS_PER_TURN) {
            match self.inbox.letters.try_recv() {
                Ok(Letter::Command(command)) => self.command(command)?,
                Ok(Letter::Opened(opened)) => {
                    let Reactor { recordings, ring, media, clock, outbox, .. } = self;
                    recordings.opened(ring, media, opened, clock.now, &mut outbox.fresh)?;
                }
                Ok(Letter::Handover(handover)) => {
                    self.recordings.handed_over(&mut self.ring, handover, self.clock.now)?;
                }
                Ok(Letter::Identity(config)) => self.tcp.renew(config),
                Ok(Letter::Stop) => {
                    let Reactor { ring, tcp, outbox, clock, .. } = self;
                    clock.stop_at = Some(clock.now.mono + limits::STOP_GRACE);
                    tcp.close(clock.now.mono, ring, &mut outbox.arrivals)?;
                }
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn command(&mut self, command: Command) -> io::Result<()> {
        let now = self.clock.now;
        let Reactor { ring, media, tcp, recordings, outbox, .. } = self;
        match command {
            Command::Send { flow, bytes } => self.send(&flow, bytes),
            Command::Open(open) => recordings.open(*open, now, &mut outbox.fresh),
            Command::Change(change) => recordings.change(media, *change, now, &mut outbox.fresh),
            Command::Signal { key, signal } => recordings.signal(ring, key, signal, now)?,
            Command::File { key, file } => recordings.small_file(key, file),
            Command::Close(close) => recordings.close(*close, now, &mut outbox.fresh),
            Command::Disconnect { flow } => {
                tcp.disconnect(&flow, ConnectionEnd::Asked, now.mono, ring, &mut outbox.arrivals)?;
                self.arrivals()?;
            }
        }
        Ok(())
    }

    fn send(&mut self, flow: &Flow, bytes: Bytes) {
        let sent = match flow.transport {
            Transport::Udp => self.udp.send(flow, &bytes),
            Transport::Tcp | Transport::Tls => {
                self.tcp.send(flow, bytes, self.clock.now.mono, &mut self.ring)
            }
        };
        match sent {
            Ok(()) => self.counters.sip_sent.add(1),
            Err(_) => self.counters.sip_send_errors.add(1),
        }
    }

    /// A handshake that failed is worth a line, but not each of a flood.
    fn complain(&mut self, peer: SocketAddr, why: String) {
        let now = self.clock.now.mono;
        if self.clock.complained.is_none_or(|last| now.since(last) >= limits::TLS_FAILURE_LOG) {
            self.clock.complained = Some(now);
            self.outbox.fresh.push(Event::HandshakeFailed { peer, why });
        }
    }

    fn due(&mut self) -> io::Result<()> {
        let Reactor { ring, media, udp, tcp, recordings, outbox, clock, batch, counters, .. } = self;
        recordings.finish(ring, media, clock.now, &mut outbox.fresh)?;
        if clock.now.mono < clock.tick_due {
            return Ok(());
        }
        clock.tick_due = clock.now.mono + limits::TICK;
        recordings.sweep(ring, media, clock.now, &mut outbox.fresh)?;
        tcp.sweep(clock.now.mono, ring, &mut outbox.arrivals)?;
        counters.sip_kernel_dropped.add(udp.new_drops());
        batch.publish();
        self.arrivals()
    }

    /// Gives buffers back, arms again what has ended, passes on what control has to know.
    fn publish(&mut self) -> io::Result<()> {
        self.media.publish(&mut self.ring)?;
        self.udp.publish(&mut self.ring)?;
        self.tcp.publish(&mut self.ring)?;
        if self.recordings.hand_over() {
            self.outbox.pass_on();
        }
        Ok(())
    }

    /// Reads the bell of the mailbox, this time and whenever it has rung.
    fn listen(&mut self) -> io::Result<()> {
        let rings = &raw mut *self.inbox.rings;
        let entry = opcode::Read::new(Fd(self.inbox.bell()), rings.cast(), size_of::<u64>() as u32)
            .build()
            .user_data(Token::new(Kind::Wake, 0, 0).pack());
        // SAFETY: the eight bytes are boxed and live as long as the ring; nobody reads them while the kernel may write.
        unsafe { self.ring.push(&entry) }
    }
}

/// All frames of one batch. Each is fetched, then what it will touch, some frames before its turn.
fn frames_of(
    queue: &mut Queue,
    ready: usize,
    recordings: &mut Recordings,
    ring: &mut Ring,
    now: Now,
) -> io::Result<()> {
    const RECORDING: usize = limits::XDP_PREFETCH_FRAME - limits::XDP_PREFETCH_RECORDING;
    const STREAM: usize = limits::XDP_PREFETCH_FRAME - limits::XDP_PREFETCH_STREAM;
    for step in 0..ready + limits::XDP_PREFETCH_FRAME {
        if step < ready {
            queue.prefetch(step);
        }
        let frame = |behind: usize| step.checked_sub(behind).filter(|&frame| frame < ready);
        if let Some(frame) = frame(RECORDING) {
            recordings.prefetch_recording(queue.look(frame));
        }
        if let Some(frame) = frame(STREAM) {
            recordings.prefetch_stream(queue.index(frame));
        }
        if let Some(frame) = frame(limits::XDP_PREFETCH_FRAME) {
            match queue.incoming(frame, now) {
                Some(incoming) => recordings.packet(ring, &incoming, now)?,
                None => recordings.unreadable(),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crossbeam::channel::{Receiver, bounded};

    use super::*;
    use crate::session::ConnectionKey;

    fn flow(transport: Transport) -> Flow {
        let address = "192.0.2.1:5060".parse().unwrap();
        let connection = transport.reliable().then_some(ConnectionKey { slot: 0, generation: 0 });
        Flow { reactor: 0, transport, local: address, peer: address, listener: 0, connection }
    }

    fn send(outbox: &mut Outbox, transport: Transport, text: &'static str) -> bool {
        outbox.message(flow(transport), Bytes::from_static(text.as_bytes()), Wall(0))
    }

    fn taken(events: &Receiver<Event>) -> Vec<String> {
        let text = |event| match event {
            Event::Message { bytes, .. } => String::from_utf8(bytes.to_vec()).unwrap(),
            other => format!("{other:?}"),
        };
        events.try_iter().map(text).collect()
    }

    #[test]
    fn a_message_of_a_stream_waits_and_a_datagram_does_not() {
        let (sender, events) = bounded(1);
        let mut outbox = Outbox::new(sender);
        assert!(send(&mut outbox, Transport::Tcp, "INVITE"));
        assert!(!send(&mut outbox, Transport::Udp, "OPTIONS"), "its peer sends it again");
        assert!(send(&mut outbox, Transport::Tcp, "ACK"));
        assert_eq!(taken(&events), ["INVITE"]);
        // There is room again, but not before those that came first.
        assert!(send(&mut outbox, Transport::Tcp, "BYE"));
        outbox.pass_on();
        assert_eq!(taken(&events), ["ACK"]);
        outbox.pass_on();
        assert_eq!(taken(&events), ["BYE"]);
        assert_eq!((outbox.kept_bytes, outbox.kept.len()), (0, 0));
        assert!(send(&mut outbox, Transport::Udp, "OPTIONS"));
        assert_eq!(taken(&events), ["OPTIONS"]);
    }

    #[test]
    fn while_the_queue_is_crowded_a_source_has_its_share() {
        let (sender, events) = bounded(limits::EVENTS_MAX);
        let mut outbox = Outbox::new(sender);
        let from = |ip: &str| Flow { peer: format!("{ip}:5060").parse().unwrap(), ..flow(Transport::Udp) };
        let mut send = |ip: &str| {
            outbox.fair(from(ip), Mono(0)) && outbox.message(from(ip), Bytes::from_static(b"x"), Wall(0))
        };
        let flood = (0..limits::EVENTS_MAX).filter(|_| send("192.0.2.1")).count();
        assert_eq!(flood, limits::EVENTS_CROWDED, "it had its share before that");
        let others = (0..limits::EVENTS_CROWDED).filter(|n| send(&format!("198.51.100.{}", n % 8))).count();
        assert_eq!(others, limits::EVENTS_CROWDED, "the rest of the queue is theirs");
        assert_eq!(events.len(), limits::EVENTS_MAX);
        while events.try_recv().is_ok() {}
        assert!(send("192.0.2.1"), "nothing is refused while there is room");
    }

    #[test]
    fn what_waits_is_bounded() {
        let (sender, events) = bounded(1);
        let mut outbox = Outbox::new(sender);
        let message = Bytes::from(vec![b'x'; limits::SIP_BODY_MAX]);
        let count =
            (0..1_000).take_while(|_| outbox.message(flow(Transport::Tcp), message.clone(), Wall(0))).count();
        assert_eq!(count, 1 + limits::TCP_KEPT / limits::SIP_BODY_MAX);
        assert_eq!(events.len(), 1);
    }
}
