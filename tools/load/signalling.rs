//! The signalling of a run, on tokio-uring: one thread, one task that owns all calls, and per connection a reader and a writer.

use crossbeam::channel::Sender as Orders;
use hdrhistogram::Histogram;
use rustls::{ClientConfig, ClientConnection};
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_uring::net::{TcpStream, UdpSocket};

use super::clock;
use super::dialog::{Call, Effect};
use super::media::{Finished, Order};
use super::message::{Framer, Message};
use super::options::{RunOptions, Transport};
use super::template::{Site, Source};
use super::tls;
use super::window::{Edge, Window};
use super::{Happening, Watch};

/// Messages, and notes of the media thread, that wait for the task.
pub const INBOX: usize = 16_384;
/// Messages that wait for one connection.
const OUTBOX: usize = 65_536;
/// Largest datagram.
const DATAGRAM: usize = 65_536;
/// SIP receive buffer: thousands of answers.
const SIP_BUFFER: usize = 4 * 1024 * 1024;
/// Calls that share one TCP connection, and the most connections: an SBC opens a handful.
const CALLS_PER_CONNECTION: u32 = 500;
const CONNECTIONS_MAX: u32 = 8;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a request to stop is looked for.
const STOP_POLL: Duration = Duration::from_millis(50);
/// Inputs handled before the timers are looked at again.
const INPUTS_PER_TURN: usize = 256;

/// BYEs may be made up for that were due so long ago: timers are late, but a flood helps nobody.
const LEAVE_SLACK: Duration = Duration::from_millis(20);

/// What reaches the task.
#[derive(Debug)]
pub enum Input {
    Message(Box<Message>),
    /// Something that is no SIP message.
    Garbage,
    Closed {
        connection: usize,
    },
    Finished(Finished),
    /// The media thread has ended before its time.
    MediaLost,
}

/// What the signalling knows at its end.
#[derive(Debug)]
pub struct Figures {
    pub attempted: u32,
    pub established: u32,
    pub failures: BTreeMap<String, u64>,
    /// Nanoseconds from INVITE to 200.
    pub setup: Histogram<u64>,
    pub garbage: u64,
    /// Turns that each stream of each established call was sent for.
    pub turns: HashMap<u32, Vec<u32>>,
    pub interrupted: bool,
}

/// Where a run's connections lead to.
pub struct Links {
    outboxes: Vec<mpsc::Sender<String>>,
    inbox: mpsc::Receiver<Input>,
    pub local: SocketAddr,
}

impl Links {
    pub async fn open(
        options: &RunOptions,
        local: SocketAddr,
        inbox: (mpsc::Sender<Input>, mpsc::Receiver<Input>),
    ) -> io::Result<Links> {
        let (sender, inbox) = inbox;
        let mut links = Links { outboxes: Vec::new(), inbox, local };
        let config = match options.transport {
            Transport::Udp => return links.open_udp(options.target, sender).map(|()| links),
            Transport::Tcp => None,
            Transport::Tls => Some(tls::client(&options.tls)?),
        };
        for _ in 0..options.calls.div_ceil(CALLS_PER_CONNECTION).clamp(1, CONNECTIONS_MAX) {
            links.open_stream(options.target, config.clone(), sender.clone()).await?;
        }
        Ok(links)
    }

    fn open_udp(&mut self, target: SocketAddr, inbox: mpsc::Sender<Input>) -> io::Result<()> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(target), socket2::Type::DGRAM, None)?;
        socket.set_recv_buffer_size(SIP_BUFFER)?;
        socket.bind(&self.local.into())?;
        let socket = std::net::UdpSocket::from(socket);
        self.local = socket.local_addr()?;
        let socket = Rc::new(UdpSocket::from_std(socket));
        let (outbox, letters) = mpsc::channel(OUTBOX);
        self.outboxes.push(outbox);
        tokio_uring::spawn(read_datagrams(socket.clone(), inbox));
        tokio_uring::spawn(write_datagrams(socket, target, letters));
        Ok(())
    }

    async fn open_stream(
        &mut self,
        target: SocketAddr,
        config: Option<Arc<ClientConfig>>,
        inbox: mpsc::Sender<Input>,
    ) -> io::Result<()> {
        let connecting = connect(self.local.ip(), target);
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| io::ErrorKind::TimedOut)??;
        if self.local.port() == 0 {
            self.local = stream.1;
        }
        let session = match config {
            None => None,
            Some(config) => {
                let handshake = tls::handshake(&stream.0, config, target.ip());
                let session = tokio::time::timeout(CONNECT_TIMEOUT, handshake).await;
                Some(RefCell::new(session.map_err(|_| io::ErrorKind::TimedOut)??))
            }
        };
        let stream = Rc::new(Stream { stream: stream.0, session });
        let connection = self.outboxes.len();
        let (outbox, letters) = mpsc::channel(OUTBOX);
        self.outboxes.push(outbox.clone());
        tokio_uring::spawn(read_stream(stream.clone(), connection, outbox, inbox));
        tokio_uring::spawn(write_stream(stream, letters));
        Ok(())
    }
}

/// TCP, or TLS over it.
struct Stream {
    stream: TcpStream,
    session: Option<RefCell<ClientConnection>>,
}

impl Stream {
    /// What bytes of the wire said; `true`: there is something to be said to that, empty letter or not.
    fn heard(&self, bytes: Vec<u8>) -> io::Result<(Vec<u8>, bool)> {
        let Some(session) = &self.session else { return Ok((bytes, false)) };
        let mut session = session.borrow_mut();
        let heard = tls::heard(&mut session, &bytes)?;
        Ok((heard, session.wants_write()))
    }

    fn wire(&self, text: String) -> io::Result<Vec<u8>> {
        match &self.session {
            None => Ok(text.into_bytes()),
            Some(session) => tls::sealed(&mut session.borrow_mut(), text.as_bytes()),
        }
    }
}

/// tokio-uring connects from any address; a std socket lets the local one be chosen.
async fn connect(ip: std::net::IpAddr, target: SocketAddr) -> io::Result<(TcpStream, SocketAddr)> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(target), socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(ip, 0).into())?;
    socket.connect_timeout(&target.into(), CONNECT_TIMEOUT)?;
    socket.set_tcp_nodelay(true)?;
    let stream = std::net::TcpStream::from(socket);
    let local = stream.local_addr()?;
    Ok((TcpStream::from_std(stream), local))
}

async fn read_datagrams(socket: Rc<UdpSocket>, inbox: mpsc::Sender<Input>) {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let (result, returned) = socket.recv_from(buffer).await;
        buffer = returned;
        let Ok((len, _)) = result else { continue };
        // RFC 5626 §4.4.1 keepalives are no messages.
        if buffer[..len].iter().all(|byte| matches!(byte, b'\r' | b'\n')) {
            continue;
        }
        let input =
            Message::parse(&buffer[..len]).map_or(Input::Garbage, |message| Input::Message(message.into()));
        if inbox.send(input).await.is_err() {
            return;
        }
    }
}

async fn write_datagrams(socket: Rc<UdpSocket>, target: SocketAddr, mut letters: mpsc::Receiver<String>) {
    while let Some(text) = letters.recv().await {
        // A datagram that is lost here is repeated like one that is lost on the way.
        let _ = socket.send_to(text.into_bytes(), target).await;
    }
}

async fn read_stream(
    stream: Rc<Stream>,
    connection: usize,
    outbox: mpsc::Sender<String>,
    inbox: mpsc::Sender<Input>,
) {
    let (mut buffer, mut framer) = (vec![0; DATAGRAM], Framer::default());
    loop {
        let (result, returned) = stream.stream.read(buffer).await;
        buffer = returned;
        let len = result.unwrap_or(0);
        match stream.heard(buffer[..len].to_vec()) {
            Ok((heard, answer)) => {
                framer.push(&heard);
                if answer {
                    let _ = outbox.try_send(String::new());
                }
            }
            Err(_) => return drop(inbox.send(Input::Closed { connection }).await),
        }
        loop {
            let input = match framer.next() {
                Ok(Some(message)) => Input::Message(message.into()),
                Ok(None) => break,
                Err(_) => Input::Garbage,
            };
            let broken = matches!(input, Input::Garbage);
            if inbox.send(input).await.is_err() {
                return;
            }
            if broken {
                let _ = inbox.send(Input::Closed { connection }).await;
                return;
            }
        }
        if len == 0 {
            let _ = inbox.send(Input::Closed { connection }).await;
            return;
        }
    }
}

async fn write_stream(stream: Rc<Stream>, mut letters: mpsc::Receiver<String>) {
    while let Some(text) = letters.recv().await {
        // The reader notices a broken connection.
        let Ok(wire) = stream.wire(text) else { return };
        if !wire.is_empty() && stream.stream.write_all(wire).await.0.is_err() {
            return;
        }
    }
}

/// All calls of a run.
pub struct Signalling<'a> {
    calls: Vec<Call>,
    site: Rc<Site>,
    links: Links,
    orders: Orders<Order>,
    timers: BinaryHeap<Reverse<(Instant, u32)>>,
    pairs: usize,
    next_call: u32,
    /// Calls whose media is over, and when the next of them may say BYE.
    leaving: VecDeque<u32>,
    next_leave: Instant,
    over: u32,
    settled: u32,
    /// Established calls whose streams still run.
    sending: u32,
    window: Window,
    stop: Arc<AtomicBool>,
    watch: &'a mut Watch<'a>,
    pub figures: Figures,
}

impl<'a> Signalling<'a> {
    pub fn new(
        site: Site,
        sources: &[Source],
        links: Links,
        orders: Orders<Order>,
        window: Window,
        stop: Arc<AtomicBool>,
        watch: &'a mut Watch<'a>,
    ) -> Signalling<'a> {
        let site = Rc::new(site);
        let streams = site.plan.streams as usize;
        let call = |index: u32| {
            let first = index as usize * streams;
            let own = (first..first + streams).map(|n| sources[n % sources.len()]);
            Call::new(site.clone(), index, own.collect())
        };
        Signalling {
            calls: (0..site.plan.calls).map(call).collect(),
            site,
            links,
            orders,
            timers: BinaryHeap::new(),
            pairs: sources.len(),
            next_call: 0,
            leaving: VecDeque::new(),
            next_leave: clock::now(),
            over: 0,
            settled: 0,
            sending: 0,
            window,
            stop,
            watch,
            figures: Figures::new(),
        }
    }

    /// Sets all calls up at `rate` a second, ends them no faster, and runs until the last is over.
    pub async fn run(mut self, rate: f64) -> (Figures, Window) {
        let start = clock::now();
        while self.over < self.calls.len() as u32 || self.sending > 0 {
            let now = clock::now();
            self.invite_due(start, rate, now);
            self.leave_due(rate, now);
            self.tick_due(now);
            self.look_for_stop(now);
            let wake = self.wake(start, rate, now);
            let input = tokio::time::timeout_at(wake.into(), self.links.inbox.recv()).await;
            if let Ok(Some(input)) = input {
                self.input(input);
                self.drain();
            }
        }
        (self.figures, self.window)
    }

    fn invite_at(&self, start: Instant, rate: f64) -> Option<Instant> {
        let waiting = self.next_call < self.calls.len() as u32;
        waiting.then(|| start + Duration::from_secs_f64(f64::from(self.next_call) / rate))
    }

    fn invite_due(&mut self, start: Instant, rate: f64, now: Instant) {
        while self.invite_at(start, rate).is_some_and(|at| at <= now) && !self.figures.interrupted {
            let call = self.next_call;
            self.next_call += 1;
            self.figures.attempted += 1;
            let effects = self.calls[call as usize].invite(clock::now(), clock::wall());
            self.apply(call, effects);
        }
    }

    fn leave_due(&mut self, rate: f64, now: Instant) {
        while self.next_leave <= now {
            let Some(call) = self.leaving.pop_front() else { return };
            let since = now.checked_sub(LEAVE_SLACK).map_or(now, |earliest| self.next_leave.max(earliest));
            self.next_leave = since + Duration::from_secs_f64(1.0 / rate);
            let effects = self.calls[call as usize].hang_up(now);
            self.apply(call, effects);
        }
    }

    fn tick_due(&mut self, now: Instant) {
        while self.timers.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            let Some(Reverse((_, call))) = self.timers.pop() else { return };
            let effects = self.calls[call as usize].tick(now);
            self.apply(call, effects);
        }
    }

    fn look_for_stop(&mut self, now: Instant) {
        if self.figures.interrupted || !self.stop.load(Ordering::Relaxed) {
            return;
        }
        self.figures.interrupted = true;
        (0..self.calls.len() as u32).for_each(|call| drop(self.orders.send(Order::Stop { call })));
        // A call with media hangs up once its streams have stopped.
        self.hang_up_all(now, |figures, call| !figures.turns.contains_key(&call));
    }

    fn wake(&self, start: Instant, rate: f64, now: Instant) -> Instant {
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        let invite = self.invite_at(start, rate).filter(|_| !self.figures.interrupted);
        let leave = self.leaving.front().map(|_| self.next_leave);
        [timer, invite, leave].into_iter().flatten().fold(now + STOP_POLL, Instant::min)
    }

    fn drain(&mut self) {
        for _ in 0..INPUTS_PER_TURN {
            let Ok(input) = self.links.inbox.try_recv() else { return };
            self.input(input);
        }
    }

    fn input(&mut self, input: Input) {
        let now = clock::now();
        match input {
            Input::Message(message) => match self.call_of(&message) {
                Some(call) => {
                    let effects = self.calls[call as usize].receive(&message, now);
                    self.apply(call, effects);
                }
                None => self.figures.garbage += 1,
            },
            Input::Garbage => self.figures.garbage += 1,
            Input::Closed { connection } => self.closed(connection),
            Input::Finished(done) => self.finished(done),
            Input::MediaLost => self.media_lost(now),
        }
    }

    fn finished(&mut self, done: Finished) {
        self.figures.turns.insert(done.call, done.turns);
        self.sending -= 1;
        self.window.note(Edge::FirstFinished);
        if self.sending == 0 {
            self.window.note(Edge::LastFinished);
        }
        self.leaving.push_back(done.call);
    }

    fn media_lost(&mut self, now: Instant) {
        self.figures.interrupted = true;
        self.sending = 0;
        self.leaving.extend(0..self.next_call);
        let begun = self.next_call;
        self.hang_up_all(now, |_, call| call >= begun);
    }

    fn hang_up_all(&mut self, now: Instant, which: impl Fn(&Figures, u32) -> bool) {
        for call in 0..self.calls.len() as u32 {
            if which(&self.figures, call) {
                let effects = self.calls[call as usize].hang_up(now);
                self.apply(call, effects);
            }
        }
    }

    fn call_of(&self, message: &Message) -> Option<u32> {
        let call_id = message.header("call-id")?;
        let call: u32 = call_id.split_once('@')?.0.rsplit_once('-')?.1.parse().ok()?;
        (call < self.site.plan.calls && self.site.call_id(call) == call_id).then_some(call)
    }

    fn closed(&mut self, connection: usize) {
        for call in 0..self.next_call {
            if self.connection_of(call) == connection {
                let _ = self.orders.send(Order::Stop { call });
                let effects = self.calls[call as usize].disconnected();
                self.apply(call, effects);
            }
        }
    }

    fn connection_of(&self, call: u32) -> usize {
        call as usize % self.links.outboxes.len()
    }

    fn apply(&mut self, call: u32, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send(text) => self.send(call, text),
                Effect::Established { streams, setup } => self.established(call, streams, setup),
                Effect::Failed(why) => {
                    let _ = self.orders.send(Order::Stop { call });
                    (self.watch)(Happening::Failed { call, why: &why });
                    *self.figures.failures.entry(why).or_default() += 1;
                    if !self.figures.turns.contains_key(&call) {
                        self.settle();
                    }
                }
                Effect::Over => {
                    self.over += 1;
                    (self.watch)(Happening::Over { call });
                }
            }
        }
        self.timers.extend(self.calls[call as usize].wake().map(|at| Reverse((at, call))));
    }

    fn send(&mut self, call: u32, text: String) {
        // A full outbox drops like a network does; on TCP the call then times out.
        let _ = self.links.outboxes[self.connection_of(call)].try_send(text);
    }

    fn established(&mut self, call: u32, streams: Vec<super::answer::Destination>, setup: Duration) {
        self.figures.established += 1;
        self.figures.setup.saturating_record(setup.as_nanos() as u64);
        self.figures.turns.insert(call, vec![0; streams.len()]);
        let first_source = call as usize * self.site.plan.streams as usize % self.pairs;
        (self.watch)(Happening::Established { call, setup, streams: &streams });
        let _ = self.orders.send(Order::Start { call, first_source, streams });
        self.sending += 1;
        self.window.note(Edge::FirstEstablished);
        self.settle();
    }

    /// One more INVITE has its outcome.
    fn settle(&mut self) {
        self.settled += 1;
        if self.settled == self.calls.len() as u32 {
            self.window.note(Edge::AllSettled);
            let _ = self.orders.send(Order::Settled);
        }
    }
}

impl Figures {
    fn new() -> Figures {
        Figures {
            attempted: 0,
            established: 0,
            failures: BTreeMap::new(),
            setup: Histogram::new_with_bounds(1_000, 120_000_000_000, 3).expect("constant bounds"),
            garbage: 0,
            turns: HashMap::new(),
            interrupted: false,
        }
    }
}
