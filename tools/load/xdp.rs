//! The media thread of `--engine xdp`: all streams run together, each packet made in the kernel when it is due, a few hundred with
//! one system call. The thread makes no packet and holds no socket; it keeps the time and the books.

use crossbeam::channel::{Receiver, TryRecvError};
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::answer::Destination;
use super::bpf::{Array, Program};
use super::clock;
use super::media::{Figures, Finished, Order, Progress};
use super::netlink::{Link, Netlink};
use super::plan::Plan;
use super::program::{Frame, Path, SILENT, State};
use super::template::Source;
use super::usage;
use super::wire::Flushed;

/// Packets leave on this grid: shorter, and the calls cost more than the packets; longer, and receivers see bursts.
const SLOT: Duration = Duration::from_micros(500);
/// What is late is caught up at this multiple of the rate, so that a pause of the sender is no flood.
const CATCH_UP: u64 = 2;
/// Smallest burst that catching up may need, for low rates.
const BURST_MIN: u64 = 16;
/// For a neighbour to say its Ethernet address: as long as the kernel asks (three times, a second apart).
const NEIGHBOUR_WAIT: Duration = Duration::from_secs(3);
const NEIGHBOUR_POLL: Duration = Duration::from_millis(20);

/// The interface that packets leave through, and the kernel's knowledge of what is behind it.
pub struct Gate {
    name: String,
    netlink: Netlink,
    link: Link,
}

impl Gate {
    pub fn open(name: &str) -> io::Result<Gate> {
        let mut netlink = Netlink::open()?;
        let link = netlink.link(name)?;
        Ok(Gate { name: name.to_owned(), netlink, link })
    }

    fn path(&mut self, from: IpAddr, to: IpAddr) -> io::Result<Path> {
        let interface = self.link.index;
        let hop = self.netlink.next_hop(interface, to).map_err(|error| self.explain(to, &error))?;
        let deadline = clock::now() + NEIGHBOUR_WAIT;
        let mut known = self.netlink.neighbour(interface, hop)?;
        if known.is_none() {
            self.netlink.look_for(interface, hop).map_err(|error| self.explain(hop, &error))?;
        }
        while known.is_none() && clock::now() < deadline {
            std::thread::sleep(NEIGHBOUR_POLL);
            known = self.netlink.neighbour(interface, hop)?;
        }
        let to_ethernet =
            known.ok_or_else(|| self.explain(hop, "no neighbour says that it is that address"))?;
        Ok(Path { from, to, from_ethernet: self.link.ethernet, to_ethernet, interface })
    }

    fn explain(&self, ip: IpAddr, what: impl std::fmt::Display) -> io::Error {
        io::Error::other(format!("{ip} cannot be reached through {}: {what}", self.name))
    }

    /// Packets that the interface sent, and that it dropped, since it was opened.
    fn counted(&mut self) -> Option<(u64, u64)> {
        let now = self.netlink.link(&self.name).ok()?;
        Some((now.sent.saturating_sub(self.link.sent), now.dropped.saturating_sub(self.link.dropped)))
    }
}

/// Whether the kernel lets this process do it all, before any call is placed.
pub fn try_out(plan: &Plan, gate: &Gate, from: IpAddr) -> io::Result<()> {
    let (interface, ethernet) = (gate.link.index, gate.link.ethernet);
    let path = Path { from, to: from, from_ethernet: ethernet, to_ethernet: ethernet, interface };
    Kernel::load(&Frame::new(plan, path), 1)?.program.attach(interface).map(drop)
}

/// The program with its maps.
struct Kernel {
    program: Program,
    entries: Array<{ SILENT.len() }>,
    state: Array<{ State::SIZE }>,
}

impl Kernel {
    fn load(frame: &Frame, streams: u32) -> io::Result<Kernel> {
        let (entries, state) = (Array::new(streams)?, Array::new(1)?);
        let program = Program::load(&frame.program(streams, entries.as_raw_fd(), state.as_raw_fd()))?;
        Ok(Kernel { program, entries, state })
    }

    fn state(&self) -> io::Result<State> {
        self.state.read(0).map(|bytes| State::read(&bytes))
    }
}

/// Runs until [`Order::Quit`]: gathers calls until all are settled, sends, and calls `finished` for every call.
pub fn run(
    plan: &Plan,
    sources: &[Source],
    mut gate: Gate,
    orders: &Receiver<Order>,
    progress: &Arc<Progress>,
    mut finished: impl FnMut(Finished),
) -> io::Result<Figures> {
    super::wire::sleep_precisely();
    let mut figures = Figures::new();
    if let Some(calls) = gather(plan, orders, &mut finished).filter(|calls| !calls.is_empty()) {
        let mut sending = Sending::new(plan, sources, calls, &mut gate)?;
        sending.run(orders, progress, &mut figures)?;
        (figures.interface_sent, figures.interface_dropped) = gate.counted().unzip();
        sending.calls.into_iter().for_each(|call| finished(call.finished(plan)));
    }
    figures.cpu = usage::this_thread();
    while !matches!(orders.recv(), Ok(Order::Quit) | Err(_)) {}
    Ok(figures)
}

/// One call, in the order in which streams take turns.
struct Sent {
    call: u32,
    first_source: usize,
    streams: Vec<Destination>,
    /// Of each stream, once it has stopped early.
    turns: Option<Vec<u32>>,
}

impl Sent {
    fn finished(self, plan: &Plan) -> Finished {
        let turns = self.turns.unwrap_or_else(|| vec![plan.turns; self.streams.len()]);
        Finished { call: self.call, turns }
    }
}

/// The calls that have been set up when all have their outcome; `None`: told to quit before.
fn gather(plan: &Plan, orders: &Receiver<Order>, finished: &mut impl FnMut(Finished)) -> Option<Vec<Sent>> {
    let mut calls = BTreeMap::new();
    loop {
        match orders.recv() {
            Ok(Order::Start { call, first_source, streams }) => {
                calls.insert(call, Sent { call, first_source, streams, turns: None });
            }
            Ok(Order::Stop { call }) => {
                let none = vec![0; plan.streams as usize];
                calls
                    .remove(&call)
                    .into_iter()
                    .for_each(|_| finished(Finished { call, turns: none.clone() }));
            }
            Ok(Order::Settled) => return Some(calls.into_values().collect()),
            Ok(Order::Quit) | Err(_) => return None,
        }
    }
}

/// All streams of all calls while they run.
struct Sending<'a> {
    plan: &'a Plan,
    frame: Frame,
    kernel: Kernel,
    calls: Vec<Sent>,
    streams: u32,
    running: usize,
    _attached: OwnedFd,
    state: State,
    start: Instant,
}

impl<'a> Sending<'a> {
    fn new(plan: &'a Plan, sources: &[Source], calls: Vec<Sent>, gate: &mut Gate) -> io::Result<Sending<'a>> {
        let from = sources[0].rtp.ip();
        let to = media_address(&calls)?;
        let frame = Frame::new(plan, gate.path(from, to)?);
        let streams = calls.len() as u32 * plan.streams;
        let kernel = Kernel::load(&frame, streams)?;
        for (index, (call, n)) in
            (0..).zip(calls.iter().flat_map(|call| (0..plan.streams).map(move |n| (call, n))))
        {
            let source = sources[(call.first_source + n as usize) % sources.len()].rtp.port();
            let target = call.streams[n as usize].rtp.port();
            kernel.entries.write(index, &frame.entry(&plan.stream(call.call, n), source, target))?;
        }
        gate.link = gate.netlink.link(&gate.name)?;
        let _attached = kernel.program.attach(frame.path.interface)?;
        let (running, state, start) = (calls.len(), State::default(), clock::now());
        Ok(Sending { plan, frame, kernel, calls, streams, running, _attached, state, start })
    }

    fn run(
        &mut self,
        orders: &Receiver<Order>,
        progress: &Progress,
        figures: &mut Figures,
    ) -> io::Result<()> {
        let mut next = self.start;
        while self.obey(orders)? && self.state.turn < self.plan.turns {
            let now = clock::now();
            if now < next {
                std::thread::sleep(next - now);
            }
            next = clock::now().max(next + SLOT);
            self.burst(figures)?;
            progress.sent.store(figures.sent, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Carries out what has been asked; `false`: nothing is left to send.
    fn obey(&mut self, orders: &Receiver<Order>) -> io::Result<bool> {
        loop {
            match orders.try_recv() {
                Ok(Order::Stop { call }) => self.stop(call)?,
                Ok(Order::Start { .. } | Order::Settled) => {}
                Err(TryRecvError::Empty) => return Ok(self.running > 0),
                Ok(Order::Quit) | Err(TryRecvError::Disconnected) => {
                    let all: Vec<u32> = self.calls.iter().map(|sent| sent.call).collect();
                    all.into_iter().try_for_each(|call| self.stop(call))?;
                    return Ok(false);
                }
            }
        }
    }

    fn stop(&mut self, call: u32) -> io::Result<()> {
        let Ok(at) = self.calls.binary_search_by_key(&call, |sent| sent.call) else { return Ok(()) };
        if self.calls[at].turns.is_some() {
            return Ok(());
        }
        let first = at as u32 * self.plan.streams;
        let own = first..first + self.plan.streams;
        let State { stream, turn, .. } = self.state;
        self.calls[at].turns = Some(own.clone().map(|index| turn + u32::from(index < stream)).collect());
        self.running -= 1;
        own.into_iter().try_for_each(|index| self.kernel.entries.write(index, &SILENT))
    }

    /// All that is due, if it is not too much at once.
    fn burst(&mut self, figures: &mut Figures) -> io::Result<()> {
        let begun = clock::now();
        let done = self.position();
        let due = self.due(begun - self.start).min(u64::from(self.plan.turns) * u64::from(self.streams));
        let packets = due.saturating_sub(done).min(self.burst_max());
        if packets == 0 {
            return Ok(());
        }
        self.kernel.program.run(&self.frame.bytes, packets as u32)?;
        let made = self.state.made;
        self.state = self.kernel.state()?;
        let now = clock::now();
        let lateness = (now - self.start).saturating_sub(self.due_at(done));
        let interval = Duration::from_millis(self.plan.ptime_ms.into());
        figures.add(Flushed { sent: self.state.made - made, ..Flushed::default() }, now, lateness, interval);
        Ok(())
    }

    /// Turns of streams so far.
    fn position(&self) -> u64 {
        u64::from(self.state.turn) * u64::from(self.streams) + u64::from(self.state.stream)
    }

    fn due(&self, elapsed: Duration) -> u64 {
        (elapsed.as_nanos() * u128::from(self.streams) / (u128::from(self.plan.ptime_ms) * 1_000_000)) as u64
    }

    /// When the turn at this position is due, from the start.
    fn due_at(&self, position: u64) -> Duration {
        let interval = u128::from(self.plan.ptime_ms) * 1_000_000;
        Duration::from_nanos((u128::from(position) * interval / u128::from(self.streams)) as u64)
    }

    fn burst_max(&self) -> u64 {
        BURST_MIN.max(CATCH_UP * self.due(SLOT))
    }
}

/// That of all streams: the headers are the same in all packets.
fn media_address(calls: &[Sent]) -> io::Result<IpAddr> {
    let mut all = calls.iter().flat_map(|call| &call.streams).map(|stream| stream.rtp.ip());
    let first = all.next().ok_or(io::ErrorKind::InvalidInput)?;
    match all.find(|other| *other != first) {
        Some(other) => Err(io::Error::other(format!(
            "the recorder wants media at {first} and at {other}, and --engine xdp sends to one address only"
        ))),
        None => Ok(first),
    }
}
