//! The data plane's thread: one ring, its media sockets, its SIP sockets and connections, its recordings.
//!
//! One turn: submit and sleep, reap, read letters, do what is due, give buffers back. Packets never leave this thread.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crossbeam::channel::{Sender, TrySendError};
use io_uring::opcode;
use io_uring::types::Fd;

use super::cpu;
use super::mailbox::{Inbox, Letter};
use super::media_source::sockets::Sockets;
use super::published::Recorded;
use super::recordings::Recordings;
use super::ring::{Completion, Kind, Ring, Token};
use super::tcp::{Arrival, Connections};
use super::udp::Listeners;
use crate::clock::{Mono, Now, Wall};
use crate::counters::ReactorCounters;
use crate::limits;
use crate::session::{Command, Event, Flow, Transport};

/// How long a reactor that has nothing to do sleeps; a letter or a packet ends it.
const IDLE: Duration = limits::TICK;
/// How long after a SIP message short sleeps go on: its answer is on the way through other threads.
const SIP_BUSY: Duration = Duration::from_millis(5);

pub struct Reactor {
    pub ring: Ring,
    pub sockets: Sockets,
    pub udp: Listeners,
    pub tcp: Connections,
    pub recordings: Recordings,
    pub inbox: Inbox,
    pub counters: Arc<ReactorCounters>,
    pub batch: Recorded,
    pub outbox: Outbox,
    pub clock: Clock,
}

/// The times of this reactor's turns.
pub struct Clock {
    now: Now,
    tick_due: Mono,
    busy_until: Mono,
    stop_at: Option<Mono>,
}

impl Clock {
    pub fn start() -> Clock {
        let now = cpu::now();
        Clock { now, tick_due: now.mono, busy_until: now.mono, stop_at: None }
    }
}

/// Events for control. SIP messages are dropped when it is not keeping up, and counted; all else is kept for the next turn.
pub struct Outbox {
    pub events: Sender<Event>,
    pub kept: VecDeque<Event>,
    /// Events of this turn.
    pub fresh: Vec<Event>,
    pub arrivals: Vec<Arrival>,
}

impl Outbox {
    pub fn new(events: Sender<Event>) -> Outbox {
        Outbox { events, kept: VecDeque::new(), fresh: Vec::new(), arrivals: Vec::new() }
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
        let busy = self.recordings.busy() || now < self.clock.busy_until;
        let (least, most) = match (busy, self.recordings.is_empty()) {
            (true, _) => (limits::BATCH_WAIT_BUSY, limits::BATCH_WAIT),
            (false, false) => (limits::BATCH_WAIT, IDLE),
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
        let result = batch.iter().try_for_each(|&completion| self.dispatch(completion));
        self.ring.reaped(batch);
        result
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
                    self.message(message.flow, message.bytes, at);
                }
                Ok(())
            }
            Kind::Accept => self.tcp.accepted(completion, now.mono, &mut self.ring),
            Kind::TcpReceive => {
                self.tcp.received(completion, now.mono, &mut self.ring, &mut self.outbox.arrivals)?;
                self.arrivals();
                Ok(())
            }
            Kind::TcpSend => {
                self.tcp.sent(completion, &mut self.ring, &mut self.outbox.arrivals)?;
                self.arrivals();
                Ok(())
            }
            Kind::Wake => self.listen(),
        }
    }

    fn media(&mut self, completion: Completion) -> io::Result<()> {
        let Reactor { ring, sockets, recordings, counters, clock, .. } = self;
        let socket = completion.token.slot;
        let port = sockets.port(socket);
        let mut result = Ok(());
        let take = |datagram: Option<&super::datagram::Datagram<'_>>| match datagram {
            Some(datagram) => result = recordings.packet(ring, socket, port, datagram, clock.now),
            None => recordings.unreadable(),
        };
        if sockets.complete(completion, take).is_err() {
            counters.buffers_exhausted.add(1);
        }
        result
    }

    /// A SIP message goes up. When control is behind, the peer's retransmission is the queue.
    fn message(&mut self, flow: Flow, bytes: Bytes, at: Wall) {
        self.clock.busy_until = self.clock.now.mono + SIP_BUSY;
        if let Err(TrySendError::Full(_)) = self.outbox.events.try_send(Event::Message { flow, bytes, at }) {
            self.counters.sip_overload.add(1);
        }
    }

    fn arrivals(&mut self) {
        let mut arrivals = std::mem::take(&mut self.outbox.arrivals);
        for arrival in arrivals.drain(..) {
            match arrival {
                Arrival::Message { flow, bytes } => self.message(flow, bytes, self.clock.now.wall),
                Arrival::Disconnected(connection) => {
                    let reactor = self.udp.reactor();
                    self.outbox.fresh.push(Event::Disconnected { reactor, connection });
                }
            }
        }
        self.outbox.arrivals = arrivals;
    }

    fn letters(&mut self) -> io::Result<()> {
        for _ in 0..limits::COMMANDS_PER_TURN {
            match self.inbox.letters.try_recv() {
                Ok(Letter::Command(command)) => self.command(command)?,
                Ok(Letter::Opened(opened)) => {
                    let Reactor { recordings, ring, sockets, clock, outbox, .. } = self;
                    recordings.opened(ring, sockets, opened, clock.now, &mut outbox.fresh)?;
                }
                Ok(Letter::Stop) => self.clock.stop_at = Some(self.clock.now.mono + limits::STOP_GRACE),
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn command(&mut self, command: Command) -> io::Result<()> {
        let now = self.clock.now;
        let Reactor { ring, sockets, tcp, recordings, outbox, .. } = self;
        match command {
            Command::Send { flow, bytes } => self.send(&flow, bytes),
            Command::Open(open) => recordings.open(*open, now, &mut outbox.fresh),
            Command::Change(change) => recordings.change(sockets, *change, now, &mut outbox.fresh),
            Command::Signal { key, signal } => recordings.signal(ring, key, signal, now)?,
            Command::File { key, file } => recordings.small_file(key, file),
            Command::Close(close) => recordings.close(*close, now, &mut outbox.fresh),
            Command::Disconnect { flow } => {
                tcp.disconnect(&flow, ring, &mut outbox.arrivals)?;
                self.arrivals();
            }
        }
        Ok(())
    }

    fn send(&mut self, flow: &Flow, bytes: Bytes) {
        let sent = match flow.transport {
            Transport::Udp => self.udp.send(flow, &bytes),
            Transport::Tcp => self.tcp.send(flow, bytes, &mut self.ring),
        };
        match sent {
            Ok(()) => self.counters.sip_sent.add(1),
            Err(_) => self.counters.sip_send_errors.add(1),
        }
    }

    fn due(&mut self) -> io::Result<()> {
        let Reactor { ring, sockets, tcp, recordings, outbox, clock, batch, .. } = self;
        recordings.finish(ring, sockets, clock.now, &mut outbox.fresh)?;
        if clock.now.mono < clock.tick_due {
            return Ok(());
        }
        clock.tick_due = clock.now.mono + limits::TICK;
        recordings.sweep(ring, sockets, clock.now)?;
        tcp.sweep(clock.now.mono, ring, &mut outbox.arrivals)?;
        batch.publish();
        self.arrivals();
        Ok(())
    }

    /// Gives buffers back, arms again what has ended, passes on what control has to know.
    fn publish(&mut self) -> io::Result<()> {
        self.sockets.publish(&mut self.ring)?;
        self.udp.publish(&mut self.ring)?;
        self.tcp.publish(&mut self.ring)?;
        let Outbox { events, kept, fresh, .. } = &mut self.outbox;
        kept.extend(fresh.drain(..));
        while let Some(event) = kept.pop_front() {
            if let Err(e) = events.try_send(event) {
                kept.push_front(e.into_inner());
                break;
            }
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
