//! The media thread of `--engine sendmmsg`: every stream has its place in a wheel that turns once per packet interval, so that
//! streams are spread evenly and each leaves exactly every interval. What is late is sent late, and the lateness is measured.

use crossbeam::channel::{Receiver, TryRecvError};
use hdrhistogram::Histogram;
use socket2::SockAddr;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::answer::Destination;
use super::clock;
use super::plan::{Plan, StreamPlan};
use super::rtp;
use super::usage;
use super::wire::{Flushed, Sources, Wire};

/// Slots of the wheel lie this far apart: the grid on which packets leave.
const SLOT: Duration = Duration::from_micros(500);
/// Ticks that may be slept through when no stream is due: how long a new call waits at most.
const IDLE_TICKS: u64 = 10;
/// Lateness is told apart up to a minute, in nanoseconds.
const LATENESS_MAX: u64 = 60_000_000_000;

/// What the signalling asks for.
#[derive(Debug)]
pub enum Order {
    Start {
        call: u32,
        first_source: usize,
        streams: Vec<Destination>,
    },
    /// Every call has its outcome: no other will start.
    Settled,
    /// Stop this call's streams at once.
    Stop {
        call: u32,
    },
    /// End the thread.
    Quit,
}

/// A call whose streams have all stopped, and after how many turns each did.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    pub call: u32,
    pub turns: Vec<u32>,
}

/// Counters that others may read while the thread runs.
#[derive(Debug, Default)]
pub struct Progress {
    pub sent: AtomicU64,
}

/// What the thread knows at its end.
#[derive(Debug)]
pub struct Figures {
    /// RTP packets the kernel took, repeated ones included.
    pub sent: u64,
    pub rtcp_sent: u64,
    /// What the interface counted meanwhile, where packets were made in the kernel: sent by it, of all processes; dropped.
    pub interface_sent: Option<u64>,
    pub interface_dropped: Option<u64>,
    /// Packets the kernel refused for good.
    pub refused: u64,
    pub refusal: Option<String>,
    /// Nanoseconds from when a packet was due to when the kernel had it.
    pub lateness: Histogram<u64>,
    /// Packets that were later than a whole packet interval.
    pub late: u64,
    /// CPU time of this thread: in user space, in the kernel.
    pub cpu: Option<usage::Cpu>,
    /// First and last packet.
    pub span: Option<(Instant, Instant)>,
}

struct Stream {
    plan: StreamPlan,
    socket: u32,
    rtp: SockAddr,
    rtcp: SockAddr,
    turn: u32,
    packets: u32,
    octets: u32,
    stopped: bool,
}

/// Runs until [`Order::Quit`]. `finished` is called for every call once its last packet's interval is over.
pub fn run(
    plan: &Plan,
    sources: Sources,
    orders: &Receiver<Order>,
    progress: &Arc<Progress>,
    finished: impl FnMut(Finished),
) -> std::io::Result<Figures> {
    super::wire::sleep_precisely();
    let mut sender = Sender::new(plan, sources, progress.clone(), finished)?;
    let start = clock::now();
    let mut tick = 0;
    while sender.obey(orders) {
        let due = start + Duration::from_nanos(tick * SLOT.as_nanos() as u64);
        let now = clock::now();
        if now < due {
            std::thread::sleep(due - now);
        }
        sender.tick(tick, due)?;
        tick += sender.wheel.ticks_to_next(tick);
    }
    Ok(sender.figures())
}

struct Sender<'a, F> {
    plan: &'a Plan,
    wire: Wire,
    pairs: usize,
    progress: Arc<Progress>,
    finished: F,
    wheel: Wheel,
    streams: Vec<Stream>,
    calls: HashMap<u32, ActiveCall>,
    figures: Figures,
}

/// Stream indices by slot.
struct Wheel {
    slots: Vec<Vec<u32>>,
    next: usize,
    stride: usize,
}

/// A call's streams lie in a row.
struct ActiveCall {
    first_stream: usize,
    running: u32,
}

impl<'a, F: FnMut(Finished)> Sender<'a, F> {
    fn new(plan: &'a Plan, sources: Sources, progress: Arc<Progress>, finished: F) -> std::io::Result<Self> {
        let streams = plan.calls as usize * plan.streams as usize;
        Ok(Sender {
            plan,
            pairs: sources.addresses.len(),
            wire: Wire::new(sources)?,
            progress,
            finished,
            wheel: Wheel::new(plan.ptime_ms),
            streams: Vec::with_capacity(streams),
            calls: HashMap::with_capacity(plan.calls as usize),
            figures: Figures::new(),
        })
    }

    /// Carries out what has been asked; `false`: quit.
    fn obey(&mut self, orders: &Receiver<Order>) -> bool {
        loop {
            match orders.try_recv() {
                Ok(Order::Start { call, first_source, streams }) => self.start(call, first_source, &streams),
                Ok(Order::Stop { call }) => self.stop(call),
                // Each call's media begins by itself.
                Ok(Order::Settled) => {}
                Err(TryRecvError::Empty) => return true,
                Ok(Order::Quit) | Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn start(&mut self, call: u32, first_source: usize, destinations: &[Destination]) {
        let first_stream = self.streams.len();
        self.calls.insert(call, ActiveCall { first_stream, running: destinations.len() as u32 });
        for (n, to) in destinations.iter().enumerate() {
            self.wheel.add(self.streams.len() as u32);
            self.streams.push(Stream {
                plan: self.plan.stream(call, n as u32),
                socket: 2 * ((first_source + n) % self.pairs) as u32,
                rtp: to.rtp.into(),
                rtcp: to.rtcp.into(),
                turn: 0,
                packets: 0,
                octets: 0,
                stopped: false,
            });
        }
    }

    fn stop(&mut self, call: u32) {
        let Some(active) = self.calls.get(&call) else { return };
        let streams = &mut self.streams[active.first_stream..][..self.plan.streams as usize];
        streams.iter_mut().for_each(|stream| stream.stopped = true);
    }

    /// One slot of the wheel.
    fn tick(&mut self, tick: u64, due: Instant) -> std::io::Result<()> {
        let mut slot = self.wheel.take(tick);
        let mut at = 0;
        while at < slot.len() {
            let stream = slot[at] as usize;
            if self.streams[stream].stopped || self.streams[stream].turn == self.plan.turns {
                slot.swap_remove(at);
                self.ended(stream);
            } else {
                self.turn(stream, due)?;
                at += 1;
            }
        }
        self.wheel.give(tick, slot);
        self.flush(due)
    }

    fn turn(&mut self, at: usize, due: Instant) -> std::io::Result<()> {
        let (plan, turn) = (self.plan, self.streams[at].turn);
        for index in plan.turn(&self.streams[at].plan, turn) {
            self.make_room(due)?;
            let stream = &mut self.streams[at];
            let mut len = 0;
            self.wire.queue(stream.socket, &stream.rtp, |packet| {
                len = rtp::packet(plan, &stream.plan, index, packet);
                len
            });
            stream.packets += 1;
            stream.octets = stream.octets.wrapping_add((len - rtp::HEADER) as u32);
        }
        self.streams[at].turn += 1;
        if plan.reports(&self.streams[at].plan, turn) { self.report(at, due) } else { Ok(()) }
    }

    fn report(&mut self, at: usize, due: Instant) -> std::io::Result<()> {
        self.make_room(due)?;
        let stream = &self.streams[at];
        let elapsed = stream.turn.wrapping_mul(self.plan.timestamp_step());
        let report = rtp::Report {
            wall: clock::wall(),
            timestamp: stream.plan.first_timestamp.wrapping_add(elapsed),
            packets: stream.packets,
            octets: stream.octets,
        };
        let write =
            |packet: &mut [u8; super::wire::PACKET_MAX]| rtp::sender_report(&stream.plan, &report, packet);
        self.wire.queue(stream.socket + 1, &stream.rtcp, write);
        Ok(())
    }

    fn make_room(&mut self, due: Instant) -> std::io::Result<()> {
        if self.wire.is_full() { self.flush(due) } else { Ok(()) }
    }

    fn flush(&mut self, due: Instant) -> std::io::Result<()> {
        if self.wire.is_empty() {
            return Ok(());
        }
        let flushed = self.wire.flush()?;
        let now = clock::now();
        let interval = Duration::from_millis(self.plan.ptime_ms.into());
        self.figures.add(flushed, now, now.saturating_duration_since(due), interval);
        self.progress.sent.store(self.figures.sent, Ordering::Relaxed);
        Ok(())
    }

    fn ended(&mut self, stream: usize) {
        let call = self.streams[stream].plan.call;
        let Some(active) = self.calls.get_mut(&call) else { return };
        active.running -= 1;
        if active.running == 0 {
            let streams = &self.streams[active.first_stream..][..self.plan.streams as usize];
            let turns = streams.iter().map(|stream| stream.turn).collect();
            self.calls.remove(&call);
            (self.finished)(Finished { call, turns });
        }
    }

    fn figures(mut self) -> Figures {
        self.figures.refusal = self.wire.last_error().map(ToString::to_string);
        self.figures.cpu = usage::this_thread();
        self.figures
    }
}

impl Wheel {
    fn new(ptime_ms: u32) -> Wheel {
        let slots = (u128::from(ptime_ms) * 1_000_000 / SLOT.as_nanos()) as usize;
        // A step of about the golden ratio, prime to the number of slots, keeps any number of streams apart.
        let ratio = slots * 618 / 1_000;
        let stride = (ratio..).find(|step| gcd(*step, slots) == 1).unwrap_or(1);
        Wheel { slots: vec![Vec::new(); slots], next: 0, stride }
    }

    fn add(&mut self, stream: u32) {
        self.slots[self.next].push(stream);
        self.next = (self.next + self.stride) % self.slots.len();
    }

    /// To the next slot that has streams, or a little on.
    fn ticks_to_next(&self, tick: u64) -> u64 {
        let slots = self.slots.len() as u64;
        let empty = |ahead: &u64| self.slots[((tick + ahead) % slots) as usize].is_empty();
        (1..=IDLE_TICKS).find(|ahead| !empty(ahead)).unwrap_or(IDLE_TICKS)
    }

    fn take(&mut self, tick: u64) -> Vec<u32> {
        let slots = self.slots.len() as u64;
        std::mem::take(&mut self.slots[(tick % slots) as usize])
    }

    fn give(&mut self, tick: u64, slot: Vec<u32>) {
        let slots = self.slots.len() as u64;
        self.slots[(tick % slots) as usize] = slot;
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Figures {
    pub fn new() -> Figures {
        Figures {
            sent: 0,
            rtcp_sent: 0,
            interface_sent: None,
            interface_dropped: None,
            refused: 0,
            refusal: None,
            lateness: Histogram::new_with_bounds(1, LATENESS_MAX, 3).expect("constant bounds"),
            late: 0,
            cpu: None,
            span: None,
        }
    }

    pub fn add(&mut self, flushed: Flushed, now: Instant, lateness: Duration, interval: Duration) {
        self.sent += flushed.sent;
        self.rtcp_sent += flushed.rtcp_sent;
        self.refused += flushed.failed;
        let nanoseconds = (lateness.as_nanos() as u64).clamp(1, LATENESS_MAX);
        self.lateness.saturating_record_n(nanoseconds, flushed.sent);
        if lateness > interval {
            self.late += flushed.sent;
        }
        self.span = Some((self.span.map_or(now, |(first, _)| first), now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::plan::tests::plan;
    use std::net::IpAddr;

    #[test]
    fn any_number_of_streams_is_spread() {
        for streams in [1, 2, 20, 39, 40, 41, 400] {
            let mut wheel = Wheel::new(20);
            (0..streams).for_each(|stream| wheel.add(stream));
            let fullest = wheel.slots.iter().map(Vec::len).max().unwrap();
            assert_eq!(fullest, (streams as usize).div_ceil(40), "{streams} streams");
        }
    }

    #[test]
    fn empty_slots_are_slept_through() {
        let mut wheel = Wheel::new(20);
        assert_eq!(wheel.ticks_to_next(0), IDLE_TICKS);
        wheel.add(0);
        assert_eq!([wheel.ticks_to_next(0), wheel.ticks_to_next(37), wheel.ticks_to_next(79)], [10, 3, 1]);
    }

    #[test]
    fn a_stream_sends_its_plan_and_then_finishes() {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let receiver = std::net::UdpSocket::bind((ip, 0)).unwrap();
        let plan = Plan { turns: 30, streams: 1, ptime_ms: 5, ..plan() };
        let to = receiver.local_addr().unwrap();
        let mut finished = Vec::new();
        let sources = Sources::bind(ip, 1, 1).unwrap();
        let mut sender = Sender::new(&plan, sources, Arc::default(), |done| finished.push(done)).unwrap();
        sender.start(1, 0, &[Destination { rtp: to, rtcp: to }]);
        let due = clock::now();
        (0..310).for_each(|tick| sender.tick(tick, due).unwrap());
        let figures = sender.figures();
        assert_eq!(finished, [Finished { call: 1, turns: vec![30] }]);
        let stream = plan.stream(1, 0);
        let expected: Vec<u16> =
            (0..30).flat_map(|turn| plan.turn(&stream, turn)).map(|i| stream.seq(i)).collect();
        assert_eq!(figures.sent, expected.len() as u64);
        for seq in expected {
            let mut bytes = [0; 2_048];
            let len = receiver.recv(&mut bytes).unwrap();
            assert_eq!(rtp::read(&bytes[..len]).unwrap().1, seq);
        }
    }
}
