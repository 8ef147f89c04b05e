//! The open recordings of one reactor: which port belongs to which stream, from the first file to the commit.
//!
//! ```text
//! Open ─▶ directory thread ─▶ Opened ─▶ armed ─▶ packets … ─▶ Close ─▶ linger ─▶ flush ─▶ last completion ─▶ commit
//! ```

pub mod guests;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::Sender;

use super::blocks::Pool;
use super::commit::Finished;
use super::directory::{Job, NewFile};
use super::disk::{FileKey, Files, Lost, Owned, Settled};
use super::mailbox::Opened;
use super::media_source::{Incoming, MediaSource};
use super::prefetch::prefetch;
use super::reports::{Reports, Schedule};
use super::ring::{Completion, Ring};
use crate::clock::{Mono, Now, Wall};
use crate::counters::{DropCause, ReactorCounters};
use crate::limits;
use crate::media::recording::StreamSpec;
use crate::media::{self, Channel, Packet, Recording, Write};
use crate::proto::manifest::Manifest;
use guests::{Loan, Loans, Neighbours};

use crate::session::{Change, Close, Event, Failure, Open, OpenStream, PortPair, RecordingKey, Signal};

/// What a media socket's packets are part of.
#[derive(Clone, Copy)]
struct PortUse {
    /// Slot of the recording in the session table.
    recording: u32,
    stream: u8,
    channel: Channel,
    state: PortState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PortState {
    Unused,
    /// Of a call whose packets may come to several reactors; none has come here.
    Fresh,
    Open,
    Ended,
}

impl PortUse {
    fn is_of(&self, slot: u32) -> bool {
        self.recording == slot && matches!(self.state, PortState::Open | PortState::Fresh)
    }
}

struct Live {
    key: RecordingKey,
    path: String,
    media: Recording,
    streams: Vec<LiveStream>,
    files: Vec<FileKey>,
    stage: Stage,
    /// Streams of a `Change` whose files are being opened.
    pending: Vec<OpenStream>,
    /// Streams that this `Change` takes out, once the files are there: if they are not, it changes nothing.
    removing: Vec<u8>,
    /// Bytes of headers in files that are being opened.
    headers: Vec<u64>,
    signals: Vec<Signal>,
    problems: Vec<String>,
    lost_in_writes: u64,
    /// `Recordings::shared_drops` when it began.
    shared_drops_before: u64,
    /// The same of other reactors to which its packets may have come, in sum.
    shared_drops_elsewhere: u64,
    /// When the files of `pending` were begun.
    begun: Wall,
    /// `media::Recording::heard` when control was told of it last, and when it may be told again.
    told: (u64, Mono),
    /// What the reactors to which its packets may come know of it, if there are several.
    loan: Option<Arc<Loan>>,
    /// Reactors whose parts are still to come, a bit each.
    awaited: u64,
}

const _: () = assert!(limits::REACTORS_MAX <= u64::BITS as usize);

struct LiveStream {
    ports: PortPair,
    /// The address of our answer, which a socket bound to one address does not tell again.
    address: IpAddr,
    kernel_dropped: u64,
    /// Taken out by a re-INVITE: when its ports fall silent. What had been sent by then is on its way (RFC 3264 §8.3.1).
    silent_at: Option<Mono>,
    report: Schedule,
}

impl LiveStream {
    fn new(ports: PortPair, address: IpAddr) -> LiveStream {
        LiveStream { ports, address, kernel_dropped: 0, silent_at: None, report: Schedule::default() }
    }

    /// RTP, RTCP.
    fn sockets(&self) -> [u32; 2] {
        LiveStream::sockets_of(self.ports)
    }

    fn sockets_of(ports: PortPair) -> [u32; 2] {
        let first = u32::from(ports.index) * 2;
        [first, first + 1]
    }
}

enum Stage {
    Opening,
    Active,
    /// The dialog is over; what was on its way still comes in. Without a manifest nothing of it is kept in the end.
    Lingering(Linger, Option<Box<Manifest>>),
    /// Ports silent, last blocks on their way.
    Flushing(Option<Box<Manifest>>),
    /// Cancelled while it was being opened.
    Cancelled,
    /// A part of another reactor's recording: it has no files here.
    Guest,
}

/// How long what was on its way still comes in.
#[derive(Clone, Copy, Debug)]
pub struct Linger {
    /// When the ports are looked at next: if nothing waits in them, they fall silent.
    until: Mono,
    /// When they do in any case.
    latest: Mono,
    /// What the kernel received until then is part of the recording.
    asked: Wall,
}

/// Where a reactor's recordings go.
pub struct Storage {
    pub files: Files,
    pub pool: Pool,
    /// The file system takes writes past the page cache.
    pub direct: bool,
    pub flush_interval: Duration,
}

pub struct Recordings {
    ports: Vec<PortUse>,
    live: Vec<Option<Box<Live>>>,
    /// Slots in `live`, in no order.
    active: Vec<u32>,
    sweep_from: usize,
    ending: Vec<u32>,
    opening: usize,
    files: Files,
    pool: Pool,
    writes: Vec<Write>,
    /// Files that are written in whole multiples of the disk's alignment go past the page cache.
    direct: bool,
    flush_interval: Duration,
    jobs: Jobs,
    counters: Arc<ReactorCounters>,
    /// Datagrams that the kernel has dropped so far where ports share what drops.
    shared_drops: u64,
    neighbours: Neighbours,
    loans: Loans,
    /// None: nobody is told what came.
    reports: Option<Reports>,
    /// How often control is told that media comes.
    noted: Duration,
}

/// The way to the directory thread. A reactor never waits for it: what finds the queue full is kept, in order, for the next
/// turn. Only open recordings have jobs, so what is kept is bounded by their number.
struct Jobs {
    queue: Sender<Job>,
    kept: VecDeque<Job>,
}

impl Jobs {
    fn send(&mut self, job: Job) {
        self.kept.push_back(job);
        self.flush();
    }

    fn flush(&mut self) {
        while let Some(job) = self.kept.pop_front() {
            if let Err(e) = self.queue.try_send(job) {
                self.kept.push_front(e.into_inner());
                return;
            }
        }
    }

    /// New work is refused while old work waits.
    fn full(&self) -> bool {
        !self.kept.is_empty()
    }
}

impl Recordings {
    pub fn new(
        ports: usize,
        sessions: usize,
        storage: Storage,
        jobs: Sender<Job>,
        counters: Arc<ReactorCounters>,
        neighbours: Neighbours,
    ) -> Recordings {
        let unused = PortUse { recording: 0, stream: 0, channel: Channel::Rtp, state: PortState::Unused };
        counters.blocks_total.set(storage.pool.total() as u64);
        Recordings {
            // One more: the ports that are not ours.
            ports: vec![unused; ports + 1],
            live: (0..sessions).map(|_| None).collect(),
            active: Vec::with_capacity(sessions),
            sweep_from: 0,
            ending: Vec::new(),
            opening: 0,
            files: storage.files,
            pool: storage.pool,
            writes: Vec::with_capacity(limits::WRITES_PER_PACKET + limits::STREAMS_PER_RECORDING_MAX),
            direct: storage.direct,
            flush_interval: storage.flush_interval,
            jobs: Jobs { queue: jobs, kept: VecDeque::new() },
            counters,
            shared_drops: 0,
            loans: Loans::new(if neighbours.is_empty() { 0 } else { sessions }),
            neighbours,
            reports: None,
            noted: limits::MEDIA_NOTED,
        }
    }

    /// Control is told of media at least this often.
    pub fn noting(mut self, noted: Duration) -> Recordings {
        self.noted = noted;
        self
    }

    pub fn reporting(mut self, reports: Option<Reports>) -> Recordings {
        self.reports = reports;
        self
    }

    /// Whether an INVITE waits for its files.
    pub fn opening(&self) -> bool {
        self.opening > 0
    }

    /// Whether a recording waits for its end. On a busy box one always does, so packets are batched all the same.
    pub fn ending(&self) -> bool {
        !self.ending.is_empty() || self.loans.ending()
    }

    pub fn is_empty(&self) -> bool {
        self.active.is_empty() && self.loans.is_empty()
    }

    /// A packet of this port comes soon: fetches what it will touch of the recording.
    pub fn prefetch_recording(&self, index: u32) {
        let PortUse { recording, stream, .. } = self.ports[index as usize];
        if let Some(live) = &self.live[recording as usize] {
            live.media.touched(stream).into_iter().for_each(|(start, lines)| prefetch(start, lines));
        }
    }

    /// The same a little later, when that is there: fetches what it points to.
    pub fn prefetch_stream(&self, index: u32) {
        let PortUse { recording, stream, .. } = self.ports[index as usize];
        if let Some(live) = &self.live[recording as usize] {
            live.media.touched_then(stream).into_iter().for_each(|(start, lines)| prefetch(start, lines));
        }
    }

    /// One datagram of a media port. It ends in a block or in `dropped`, by cause.
    pub fn packet(&mut self, ring: &mut Ring, incoming: &Incoming<'_>, now: Now) -> io::Result<()> {
        let Incoming { index, port, datagram } = incoming;
        let PortUse { recording, stream, channel, state } = self.ports[*index as usize];
        let len = datagram.bytes.len() as u64;
        self.counters.packets.add(1);
        self.counters.bytes.add(len);
        if state == PortState::Fresh {
            self.first_packet(recording, datagram.at.unwrap_or(now.wall));
        }
        let live = match (state, &mut self.live[recording as usize]) {
            (PortState::Open | PortState::Fresh, Some(live)) => live,
            (PortState::Unused, _) => return self.drop_packet(DropCause::NoSession),
            _ => return self.drop_packet(DropCause::AfterEnd),
        };
        // Not looked at where the packet says it: it would be two cold lines.
        let address = datagram.to.unwrap_or_else(|| live.streams[usize::from(stream)].address);
        let packet = Packet {
            at: datagram.at.unwrap_or(now.wall),
            from: datagram.from,
            to: SocketAddr::new(address, *port),
            bytes: datagram.bytes,
            frame: datagram.frame,
        };
        if datagram.truncated {
            self.counters.truncated.add(1);
            live.problem("datagrams longer than a receive buffer were cut");
        }
        match live.media.packet(stream, channel, &packet, &mut self.pool, &mut self.writes) {
            Ok(()) => self.counters.staged_packets.add(1),
            Err(cause) => {
                self.counters.dropped[cause as usize].add(1);
                if cause == DropCause::NoBlock {
                    live.problem("datagrams were lost: no write block was free");
                }
            }
        }
        if self.writes.is_empty() { Ok(()) } else { self.write(ring, recording, now.mono, false) }
    }

    /// A datagram of which the kernel's account could not be read.
    pub fn unreadable(&mut self) {
        self.counters.packets.add(1);
        self.counters.dropped[DropCause::Unreadable as usize].add(1);
    }

    fn drop_packet(&self, cause: DropCause) -> io::Result<()> {
        self.counters.dropped[cause as usize].add(1);
        Ok(())
    }

    /// Asks the directory thread for the recording's files.
    pub fn open(&mut self, open: Open, now: Now, events: &mut Vec<Event>) {
        let key = open.key;
        let mut media = Recording::new(open.format).staggered(stagger(key.slot));
        if self.direct {
            media = media.aligned();
        }
        for stream in &open.streams {
            media.add_stream(spec(stream));
        }
        self.evict(key.slot);
        let mut live = Box::new(Live::new(key, open.path, media, self.shared_drops));
        (live.pending, live.signals) = (open.streams, open.signals);
        if self.jobs.full() {
            let failure = Failure { what: "queue the opening of", path: live.path, errno: libc::EAGAIN };
            events.push(Event::OpenFailed { key, failure });
            return;
        }
        let files = live.new_files(self.direct, now);
        self.jobs.send(Job::Create { key, path: live.path.clone(), files, small: open.files });
        self.opening += 1;
        self.active.push(key.slot);
        self.live[key.slot as usize] = Some(live);
    }

    /// The files are there, or they are not.
    pub fn opened(
        &mut self,
        ring: &mut Ring,
        media: &mut MediaSource,
        opened: Opened,
        now: Now,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        let Opened { key, result } = opened;
        let Some(live) = self.live[key.slot as usize].as_mut().filter(|live| live.key == key) else {
            return Ok(());
        };
        let first = !matches!(live.stage, Stage::Active | Stage::Lingering(..) | Stage::Flushing(..));
        self.opening -= usize::from(first);
        let result = result.and_then(|descriptors| {
            for (fd, header) in descriptors.into_iter().zip(std::mem::take(&mut live.headers)) {
                let file = live.files.len() as u8;
                match self.files.open(ring, fd, key.slot, file, header) {
                    Ok(file) => live.files.push(file),
                    Err(e) => return Err(Failure::new("register file", live.path.clone(), &e)),
                }
            }
            Ok(())
        });
        match (result, &live.stage) {
            (_, Stage::Cancelled) => {
                self.discard(ring, key.slot)?;
                events.push(Event::Closed { key });
            }
            (Ok(()), Stage::Opening) => {
                live.stage = Stage::Active;
                self.arm(media, key.slot);
                self.early_signals(ring, key.slot, now)?;
                events.push(Event::Opened { key });
            }
            (Ok(()), _) => {
                self.take_out(key.slot, now.mono);
                self.arm(media, key.slot);
                events.push(Event::Changed { key });
            }
            (Err(failure), Stage::Opening) => {
                self.discard(ring, key.slot)?;
                events.push(Event::OpenFailed { key, failure });
            }
            (Err(failure), _) => {
                live.problem(&failure.to_string());
                self.unchange(ring, key.slot)?;
                events.push(Event::ChangeFailed { key, failure });
            }
        }
        Ok(())
    }

    /// As if the `Change` had never been: its streams' indices and files' names are free for the next.
    fn unchange(&mut self, ring: &Ring, slot: u32) -> io::Result<()> {
        let Recordings { live, files, jobs, .. } = self;
        let Some(live) = &mut live[slot as usize] else { return Ok(()) };
        live.pending.clear();
        live.removing.clear();
        // Only raw recordings have files that come with streams: one each.
        let known = live.streams.len();
        let names = (known..live.files.len()).map(|file| live.media.file_name(file as u8)).collect();
        let opened = live.files.split_off(known.min(live.files.len()));
        if !opened.is_empty() {
            jobs.send(Job::Remove { path: live.path.clone(), names });
        }
        live.media.forget_streams(known);
        opened.into_iter().try_for_each(|file| files.close(ring, file).map(drop))
    }

    fn take_out(&mut self, slot: u32, now: Mono) {
        let Some(live) = self.live[slot as usize].as_mut() else { return };
        for stream in std::mem::take(&mut live.removing) {
            if let Some(stream) = live.streams.get_mut(usize::from(stream)) {
                stream.silent_at = Some(now + limits::CLOSE_LINGER);
            }
        }
    }

    /// Gives the sockets of the pending streams to the recording.
    fn arm(&mut self, media: &mut MediaSource, slot: u32) {
        let Some(live) = self.live[slot as usize].as_mut() else { return };
        let pending = std::mem::take(&mut live.pending);
        live.streams.extend(pending.iter().map(|stream| LiveStream::new(stream.ports, stream.address)));
        let specs = if self.lends() { pending.iter().map(spec).collect() } else { Vec::new() };
        let state = self.lend(slot, specs);
        for OpenStream { stream, ports, .. } in pending {
            for socket in LiveStream::sockets_of(ports) {
                // What the kernel dropped before is not this stream's.
                self.counters.kernel_dropped.add(u64::from(media.new_drops(socket)));
            }
            self.use_ports(slot, stream, ports, state);
        }
    }

    fn early_signals(&mut self, ring: &mut Ring, slot: u32, now: Now) -> io::Result<()> {
        let signals = self.live[slot as usize]
            .as_mut()
            .map(|live| std::mem::take(&mut live.signals))
            .unwrap_or_default();
        signals.iter().try_for_each(|signal| self.record_signal(ring, slot, signal, now))
    }

    /// A SIP message of the dialog.
    pub fn signal(&mut self, ring: &mut Ring, key: RecordingKey, signal: Signal, now: Now) -> io::Result<()> {
        let Some(live) = self.current(key) else { return Ok(()) };
        match live.stage {
            Stage::Active | Stage::Lingering(..) => return self.record_signal(ring, key.slot, &signal, now),
            Stage::Opening if live.signals.len() < limits::SIGNALS_PENDING_MAX => live.signals.push(signal),
            Stage::Opening => {
                live.problem("a SIP message is missing from the pcap: too many came at once");
            }
            // A block begun now would never be written.
            Stage::Flushing(_) => {
                live.problem("a SIP message is missing from the pcap: it came too late");
            }
            Stage::Cancelled | Stage::Guest => {}
        }
        Ok(())
    }

    fn record_signal(&mut self, ring: &mut Ring, slot: u32, signal: &Signal, now: Now) -> io::Result<()> {
        let Some(live) = self.live[slot as usize].as_mut() else { return Ok(()) };
        if live.media.signal(&as_media(signal), &mut self.pool, &mut self.writes).is_err() {
            live.problem("a SIP message is missing from the pcap: no write block was free");
        }
        self.write(ring, slot, now.mono, false)
    }

    pub fn small_file(&mut self, key: RecordingKey, file: crate::session::SmallFile) {
        let Recordings { live, jobs, .. } = self;
        let Some(live) = live[key.slot as usize].as_mut().filter(|live| live.key == key) else { return };
        if jobs.full() {
            live.problem(&format!("{} not kept: too many files are waiting to be written", file.name));
        } else {
            jobs.send(Job::Small { path: live.path.clone(), file });
        }
    }

    /// Streams that a re-INVITE added or ended.
    pub fn change(&mut self, media: &mut MediaSource, change: Change, now: Now, events: &mut Vec<Event>) {
        let Change { key, add, remove } = change;
        if self.current(key).is_none() {
            let failure =
                Failure { what: "change", path: "a recording that has ended".into(), errno: libc::ENOENT };
            events.push(Event::ChangeFailed { key, failure });
            return;
        }
        let Recordings { live, jobs, .. } = self;
        let Some(live) = &mut live[key.slot as usize] else { return };
        live.removing = remove;
        for stream in &add {
            live.media.add_stream(spec(stream));
        }
        live.pending = add;
        let files = live.new_files(self.direct, now);
        if files.is_empty() {
            self.take_out(key.slot, now.mono);
            self.arm(media, key.slot);
            events.push(Event::Changed { key });
        } else {
            jobs.send(Job::Add { key, path: live.path.clone(), files });
        }
    }

    /// The dialog is over. Packets that the kernel has already received follow it in.
    pub fn close(&mut self, close: Close, now: Now, events: &mut Vec<Event>) {
        let Close { key, manifest } = close;
        let Some(live) = self.current(key) else {
            events.push(Event::Closed { key });
            return;
        };
        match (manifest, &live.stage) {
            (_, Stage::Opening) => live.stage = Stage::Cancelled,
            (manifest, Stage::Active) => {
                let linger = if manifest.is_some() { Linger::for_the_rest(now) } else { Linger::none(now) };
                live.stage = Stage::Lingering(linger, manifest);
                self.ending.push(key.slot);
                self.recall(key, linger);
            }
            _ => {}
        }
    }

    /// Brings recordings that are ending a step further.
    pub fn finish(
        &mut self,
        ring: &mut Ring,
        media: &mut MediaSource,
        now: Now,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        self.give_back_recalled(ring, media, now)?;
        let mut ending = std::mem::take(&mut self.ending);
        let mut result = Ok(());
        ending.retain(|&slot| match self.finish_one(ring, media, slot, now, events) {
            Ok(done) => !done,
            Err(e) => {
                result = Err(e);
                true
            }
        });
        self.ending = ending;
        result
    }

    /// `true`: the recording has left memory.
    fn finish_one(
        &mut self,
        ring: &mut Ring,
        media: &mut MediaSource,
        slot: u32,
        now: Now,
        events: &mut Vec<Event>,
    ) -> io::Result<bool> {
        let Some(live) = self.live[slot as usize].as_mut() else { return Ok(true) };
        if let Stage::Lingering(linger, _) = &mut live.stage {
            // The directory thread is asked for the files of a change before it is asked to commit, so this delays nothing.
            if now.mono < linger.until || !live.pending.is_empty() {
                return Ok(false);
            }
            let (ports, asked) = (&self.ports, linger.asked);
            let ours = |socket: &u32| ports[*socket as usize].is_of(slot);
            let waits = |stream: &LiveStream| {
                stream.sockets().into_iter().filter(ours).any(|socket| media.waiting(socket, asked))
            };
            if now.mono < linger.latest && live.streams.iter().any(waits) {
                linger.until = now.mono + limits::CLOSE_LINGER;
                return Ok(false);
            }
            let latest = linger.latest;
            if live.waits_for_guests(latest, now.mono) {
                return Ok(false);
            }
            self.fall_silent(ring, media, slot, now)?;
        }
        let Some(live) = self.live[slot as usize].as_mut() else { return Ok(true) };
        let idle = live.files.iter().all(|&file| self.files.idle(file));
        if !idle || !matches!(live.stage, Stage::Flushing(_)) {
            return Ok(false);
        }
        let key = live.key;
        self.read_shared_drops(media);
        if let Some(mut live) = self.take(slot) {
            live.note_shared_drops(self.shared_drops);
            self.jobs.send(match live.finished(&mut self.files, ring)? {
                Some(finished) => Job::Commit(Box::new(finished)),
                None => Job::Discard { path: live.path },
            });
        }
        events.push(Event::Closed { key });
        Ok(true)
    }

    /// From lingering to flushing: the last blocks are sent off.
    fn fall_silent(
        &mut self,
        ring: &mut Ring,
        media: &mut MediaSource,
        slot: u32,
        now: Now,
    ) -> io::Result<()> {
        let streams = self.live[slot as usize].as_ref().map_or(0, |live| live.streams.len());
        (0..streams).for_each(|stream| self.silence(media, slot, stream));
        let Some(live) = self.live[slot as usize].as_mut() else { return Ok(()) };
        live.media.flush(&mut self.writes);
        live.stage = match std::mem::replace(&mut live.stage, Stage::Cancelled) {
            Stage::Lingering(_, manifest) => Stage::Flushing(manifest),
            other => other,
        };
        self.write(ring, slot, now.mono, true)
    }

    /// A write has completed.
    pub fn written(&mut self, ring: &mut Ring, completion: Completion, now: Mono) -> io::Result<()> {
        let lost = self.files.complete(ring, &mut self.pool, completion, now)?;
        if let Some(lost) = lost {
            self.lost(&lost);
        }
        Ok(())
    }

    /// A part of the open recordings each time, so that all are seen once per `sweep_period`: old blocks are sent off, drops
    /// are read from the sockets, senders and control are told what came.
    pub fn sweep(
        &mut self,
        ring: &mut Ring,
        media: &mut MediaSource,
        now: Now,
        events: &mut Vec<Event>,
    ) -> io::Result<()> {
        let ticks = (self.sweep_period().as_millis() / limits::TICK.as_millis()).max(1) as usize;
        for _ in 0..self.active.len().div_ceil(ticks) {
            self.sweep_from = (self.sweep_from + 1) % self.active.len();
            let slot = self.active[self.sweep_from];
            self.read_drops(media, slot);
            self.silence_removed(media, slot, now.mono);
            self.report(media, slot, now);
            events.extend(self.media_event(slot, now));
            let Some(live) = self.live[slot as usize].as_mut() else { continue };
            let interval = self.flush_interval;
            if live.media.staged_since().is_some_and(|since| overdue(since, now.wall, interval)) {
                live.media.flush(&mut self.writes);
                self.write(ring, slot, now.mono, false)?;
            }
        }
        self.read_shared_drops(media);
        self.counters.blocks_used.set(self.pool.used() as u64);
        self.files.publish();
        self.jobs.flush();
        Ok(())
    }

    fn read_shared_drops(&mut self, media: &mut MediaSource) {
        let drops = media.new_shared_drops();
        self.shared_drops += drops;
        self.counters.kernel_dropped.add(drops);
    }

    /// To those who send to the streams of a recording, as far as they are due.
    fn report(&mut self, media: &MediaSource, slot: u32, now: Now) {
        let Recordings { ports, live, reports, .. } = self;
        let (Some(reports), Some(live)) = (reports, &mut live[slot as usize]) else { return };
        // A reactor reports on what comes to it: a stream that is lent has its packets, and its report, at the guest.
        if !matches!(live.stage, Stage::Active | Stage::Guest) {
            return;
        }
        for (index, stream) in (0..).zip(&mut live.streams) {
            let port = ports[usize::from(stream.ports.index) * 2];
            let ours = port.recording == slot && port.stream == index && port.state == PortState::Open;
            if ours && stream.silent_at.is_none() {
                reports.send(media, &mut live.media, (index, stream.ports), &mut stream.report, now);
            }
        }
    }

    /// For control, if media has come since it was told last and it is time to tell again.
    fn media_event(&mut self, slot: u32, now: Now) -> Option<Event> {
        let noted = self.noted;
        let live = self.live[slot as usize].as_mut()?;
        let (heard, due) = (live.media.heard(), live.told.1);
        if !matches!(live.stage, Stage::Active | Stage::Guest) || heard == live.told.0 || now.mono < due {
            return None;
        }
        live.told = (heard, now.mono + noted);
        Some(Event::Media { key: live.key, at: now.wall })
    }

    fn sweep_period(&self) -> Duration {
        (self.flush_interval / 4).clamp(limits::TICK, limits::SWEEP_MAX)
    }

    /// Hands the writes that have gathered to the files of this recording.
    fn write(&mut self, ring: &mut Ring, slot: u32, now: Mono, last: bool) -> io::Result<()> {
        let mut writes = std::mem::take(&mut self.writes);
        let (owner, guest) = (self.neighbours.own(), self.guest(slot));
        for write in writes.drain(..) {
            if let Some(key) = guest {
                self.send_home(key, write);
                continue;
            }
            let file = self.live[slot as usize]
                .as_ref()
                .and_then(|live| live.files.get(usize::from(write.file)).copied());
            let Some(file) = file else {
                let outcome = Err(DropCause::WriteFailed);
                self.files.settle(&mut self.pool, Settled { owned: Owned { owner, write }, outcome });
                continue;
            };
            if let Some(lost) =
                self.files.write(ring, &mut self.pool, file, Owned { owner, write }, now, last)?
            {
                self.lost(&lost);
            }
        }
        self.writes = writes;
        Ok(())
    }

    fn lost(&mut self, lost: &Lost) {
        let Some(live) = self.live[lost.recording as usize].as_mut() else { return };
        live.media.dropped(&lost.packets);
        live.lost_in_writes += lost.packets.total();
        let why = match lost.cause {
            DropCause::QueueFull => "the disk is too slow".to_owned(),
            _ => io::Error::from_raw_os_error(lost.errno).to_string(),
        };
        let file = live.media.file_name(lost.file);
        if live.problem(&format!("{file}: a write was lost: {why}")) {
            tracing::error!(recording = live.path, file, packets = lost.packets.total(), "write lost: {why}");
        }
    }

    /// Streams that were taken out some time ago.
    fn silence_removed(&mut self, media: &mut MediaSource, slot: u32, now: Mono) {
        let streams = self.live[slot as usize].as_ref().map_or(0, |live| live.streams.len());
        for stream in 0..streams {
            let live = self.live[slot as usize].as_mut().and_then(|live| live.streams.get_mut(stream));
            if live.and_then(|live| live.silent_at.take_if(|at| *at <= now)).is_some() {
                self.silence(media, slot, stream);
                self.silence_elsewhere(slot, stream);
            }
        }
    }

    fn silence(&mut self, media: &mut MediaSource, slot: u32, stream: usize) {
        self.read_stream_drops(media, slot, stream);
        let live = self.live[slot as usize].as_ref().and_then(|live| live.streams.get(stream));
        if let Some(ports) = live.map(|live| live.ports) {
            self.end_ports(slot, stream as u8, ports);
        }
    }

    fn end_ports(&mut self, slot: u32, stream: u8, ports: PortPair) {
        for socket in LiveStream::sockets_of(ports) {
            // By now the pair may be another stream's.
            let port = self.ports.get_mut(socket as usize);
            if let Some(port) = port.filter(|port| port.recording == slot && port.stream == stream) {
                port.state = PortState::Ended;
            }
        }
    }

    fn read_drops(&mut self, media: &mut MediaSource, slot: u32) {
        let streams = self.live[slot as usize].as_ref().map_or(0, |live| live.streams.len());
        (0..streams).for_each(|stream| self.read_stream_drops(media, slot, stream));
    }

    fn read_stream_drops(&mut self, media: &mut MediaSource, slot: u32, index: usize) {
        let Some(stream) = self.live[slot as usize].as_mut().and_then(|live| live.streams.get_mut(index))
        else {
            return;
        };
        for socket in stream.sockets() {
            let port = self.ports[socket as usize];
            if port.is_of(slot) && usize::from(port.stream) == index {
                let drops = u64::from(media.new_drops(socket));
                stream.kernel_dropped += drops;
                self.counters.kernel_dropped.add(drops);
            }
        }
    }

    fn current(&mut self, key: RecordingKey) -> Option<&mut Live> {
        self.live.get_mut(key.slot as usize)?.as_deref_mut().filter(|live| live.key == key)
    }

    fn take(&mut self, slot: u32) -> Option<Box<Live>> {
        self.active.retain(|&active| active != slot);
        self.live[slot as usize].take()
    }

    /// Forgets a recording that was never established, and removes what is on disk of it.
    fn discard(&mut self, ring: &mut Ring, slot: u32) -> io::Result<()> {
        let Some(live) = self.take(slot) else { return Ok(()) };
        for &file in &live.files {
            self.files.close(ring, file)?;
        }
        self.jobs.send(Job::Discard { path: live.path });
        Ok(())
    }
}

impl Linger {
    fn for_the_rest(now: Now) -> Linger {
        let asked = Wall(now.wall.0 + limits::CLOSE_LINGER.as_nanos() as u64);
        Linger { until: now.mono + limits::CLOSE_LINGER, latest: now.mono + limits::CLOSE_LINGER_MAX, asked }
    }

    fn none(now: Now) -> Linger {
        Linger { until: now.mono, latest: now.mono, asked: now.wall }
    }
}

impl Live {
    fn new(key: RecordingKey, path: String, media: Recording, shared_drops_before: u64) -> Live {
        Live {
            key,
            path,
            media,
            streams: Vec::with_capacity(limits::STREAMS_PER_RECORDING_MAX),
            files: Vec::new(),
            stage: Stage::Opening,
            pending: Vec::new(),
            removing: Vec::new(),
            headers: Vec::new(),
            signals: Vec::new(),
            problems: Vec::new(),
            lost_in_writes: 0,
            shared_drops_before,
            shared_drops_elsewhere: 0,
            begun: Wall(0),
            told: (0, Mono(0)),
            loan: None,
            awaited: 0,
        }
    }

    /// The files that the media plane has and the disk not yet.
    fn new_files(&mut self, direct: bool, now: Now) -> Vec<NewFile> {
        let new = self.files.len()..self.media.files();
        self.begun = now.wall;
        let signals = if new.is_empty() { Vec::new() } else { std::mem::take(&mut self.signals) };
        let signals: Vec<media::Signal<'_>> = signals.iter().map(as_media).collect();
        let files: Vec<_> = new
            .map(|file| {
                let header = self.media.file_header(file as u8, now.wall, &signals);
                let direct =
                    direct && !header.is_empty() && header.len().is_multiple_of(limits::DISK_ALIGNMENT);
                NewFile { name: self.media.file_name(file as u8), header, direct }
            })
            .collect();
        self.headers = files.iter().map(|file| file.header.len() as u64).collect();
        files
    }

    fn note_shared_drops(&mut self, so_far: u64) {
        let drops = so_far - self.shared_drops_before + self.shared_drops_elsewhere;
        if drops > 0 {
            self.problem(&format!(
                "the kernel dropped {drops} media datagrams on their way to this core; some may be of this recording"
            ));
        }
    }

    /// Notes each problem once; `true`: it is new.
    fn problem(&mut self, problem: &str) -> bool {
        let new =
            self.problems.len() < limits::PROBLEMS_MAX && self.problems.iter().all(|known| known != problem);
        if new {
            self.problems.push(problem.to_owned());
        }
        new
    }

    /// Closes the files and completes the manifest with what this side knows.
    fn finished(&mut self, files: &mut Files, ring: &Ring) -> io::Result<Option<Finished>> {
        let mut media = Vec::new();
        for (index, &file) in self.files.iter().enumerate() {
            media.push((self.media.file_name(index as u8), files.close(ring, file)?));
        }
        let Stage::Flushing(Some(manifest)) = std::mem::replace(&mut self.stage, Stage::Cancelled) else {
            return Ok(None);
        };
        let mut manifest = *manifest;
        for (index, (stream, live)) in manifest.streams.iter_mut().zip(&self.streams).enumerate() {
            stream.report = self.media.report(index as u8);
            stream.report.kernel_dropped = live.kernel_dropped;
            if live.kernel_dropped > 0 {
                self.problems
                    .push(format!("stream {index}: the kernel dropped {} datagrams", live.kernel_dropped));
            }
        }
        if self.lost_in_writes > 0 {
            self.problems.push(format!("{} datagrams were lost in failed writes", self.lost_in_writes));
        }
        let last_packets = manifest.streams.iter().filter_map(|stream| stream.report.last_packet);
        manifest.session.last_media = last_packets.max().or(manifest.session.last_media);
        manifest.problems.append(&mut self.problems);
        Ok(Some(Finished { path: std::mem::take(&mut self.path), manifest, media }))
    }
}

/// Whether a block begun at `since` has waited long enough. Where the wall clock has been set back, so that it was begun in
/// the future, nobody knows for how long it has waited.
fn overdue(since: Wall, now: Wall, interval: Duration) -> bool {
    u128::from(now.0.abs_diff(since.0)) >= interval.as_nanos()
}

/// The share of its first block that a recording leaves empty, in 256ths: up to three quarters, different for neighbours.
fn stagger(slot: u32) -> u8 {
    (slot.wrapping_mul(113) % 192) as u8
}

fn as_media(signal: &Signal) -> media::Signal<'_> {
    let Signal { at, received, flow, bytes } = signal;
    let tcp = flow.transport.reliable();
    media::Signal { at: *at, received: *received, tcp, local: flow.local, peer: flow.peer, bytes }
}

fn spec(stream: &OpenStream) -> StreamSpec {
    let rtp = SocketAddr::new(stream.address, stream.ports.rtp);
    StreamSpec {
        label: stream.label.clone(),
        to_rtp: rtp,
        to_rtcp: SocketAddr::new(stream.address, stream.ports.rtp + 1),
        codecs: stream.codecs.clone(),
        rtcp_mux: stream.rtcp_mux,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::datagram::Datagram;
    use crate::engine::media_source::sockets::{self, Sockets};
    use crate::engine::published::Recorded;
    use crate::proto::manifest::Format;
    use crate::proto::sdp::Codec;
    use crate::session::Transport;
    use crossbeam::channel::{Receiver, bounded};
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use tempfile::TempDir;

    pub(super) const KEY: RecordingKey = RecordingKey { reactor: 0, slot: 0, generation: 1 };
    const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    pub(super) const SECOND: u64 = 1_000_000_000;

    /// The recordings of a reactor on a ring and sockets of its own; the test is its control and its directory thread.
    pub(super) struct Bench {
        pub ring: Ring,
        pub media: MediaSource,
        ports: Vec<u16>,
        pub recordings: Recordings,
        pub jobs: Receiver<Job>,
        pub events: Vec<Event>,
        pub counters: Arc<ReactorCounters>,
        pub dir: TempDir,
        pub now: Now,
    }

    impl Bench {
        pub fn new() -> Bench {
            Bench::with(Neighbours::new(0, Vec::new()))
        }

        pub fn with(neighbours: Neighbours) -> Bench {
            let counters = Arc::new(ReactorCounters::default());
            let (bound, _) = sockets::bind(Some(LOCAL), (10_000..12_000).step_by(2), 4, Mono(0)).unwrap();
            let mut ring = Ring::new(32).unwrap();
            let ports = bound.rtp_ports.clone();
            let media = MediaSource::Sockets(Sockets::arm(bound, &mut ring).unwrap());
            let (queue, jobs) = bounded(64);
            let files = Files::new(neighbours.own(), 8, 8, Recorded::new().0, counters.clone());
            let flush = Duration::from_secs(2);
            let pool = Pool::new(8, limits::BLOCK_SIZE).unwrap();
            let storage = Storage { files, pool, direct: false, flush_interval: flush };
            let recordings = Recordings::new(8, 4, storage, queue, counters.clone(), neighbours);
            let (events, dir) = (Vec::new(), TempDir::new().unwrap());
            let now = Now { mono: Mono(SECOND), wall: Wall(1_795_336_245 * SECOND) };
            Bench { ring, media, ports, recordings, jobs, events, counters, dir, now }
        }

        pub fn stream(&self, stream: u8, pair: u16, encoding: &str) -> OpenStream {
            let codec = Codec {
                payload_type: 0,
                encoding: encoding.to_owned(),
                clock_rate: 8_000,
                channels: 1,
                fmtp: None,
            };
            OpenStream {
                stream,
                ports: PortPair { reactor: 0, index: pair, rtp: self.ports[usize::from(pair)] },
                address: LOCAL,
                label: format!("{stream}"),
                codecs: vec![codec],
                rtcp_mux: false,
            }
        }

        /// A recording of one stream on pair 0.
        pub fn open(&mut self, key: RecordingKey, format: Format) {
            let streams = vec![self.stream(0, 0, "PCMU")];
            let (files, signals) = (Vec::new(), Vec::new());
            let open = Open { key, path: "id".into(), format, streams, files, signals };
            self.recordings.open(open, self.now, &mut self.events);
            self.answer(key, Ok(()));
            assert!(matches!(self.events.pop(), Some(Event::Opened { .. })), "{:?}", self.events);
        }

        pub fn change(&mut self, add: Vec<OpenStream>, remove: Vec<u8>) {
            let change = Change { key: KEY, add, remove };
            self.recordings.change(&mut self.media, change, self.now, &mut self.events);
        }

        pub fn close(&mut self) {
            let close =
                Close { key: KEY, manifest: Some(Box::new(crate::proto::manifest::tests::manifest())) };
            self.recordings.close(close, self.now, &mut self.events);
        }

        /// What the directory thread says to the next job.
        pub fn answer(&mut self, key: RecordingKey, result: Result<(), i32>) -> Vec<String> {
            let files = match self.jobs.try_recv() {
                Ok(Job::Create { files, .. } | Job::Add { files, .. }) => files,
                other => panic!("{other:?}"),
            };
            let names: Vec<String> = files.into_iter().map(|file| file.name).collect();
            let open = |name: &String| OwnedFd::from(File::create(self.dir.path().join(name)).unwrap());
            let result = match result {
                Ok(()) => Ok(names.iter().map(open).collect()),
                Err(errno) => Err(Failure { what: "create file", path: String::new(), errno }),
            };
            let Bench { recordings, ring, media, events, now, .. } = self;
            recordings.opened(ring, media, Opened { key, result }, *now, events).unwrap();
            names
        }

        fn packet(&mut self, pair: u32, payload: u8) {
            let mut bytes = [payload; 172];
            bytes[..12].copy_from_slice(&[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7]);
            let incoming = incoming(pair * 2, &bytes, false);
            self.recordings.packet(&mut self.ring, &incoming, self.now).unwrap();
        }

        /// Lets time pass, and does what a reactor's turn does.
        pub fn turn(&mut self, millis: u64) {
            self.now.mono = self.now.mono + Duration::from_millis(millis);
            self.now.wall.0 += millis * 1_000_000;
            self.ring.wait(Duration::ZERO, Duration::from_millis(1)).unwrap();
            for completion in self.ring.reap() {
                if completion.token.kind == crate::engine::ring::Kind::Write {
                    self.recordings.written(&mut self.ring, completion, self.now.mono).unwrap();
                }
            }
            let Bench { recordings, ring, media, events, now, .. } = self;
            recordings.finish(ring, media, *now, events).unwrap();
        }

        /// Turns until the recording is handed on.
        pub fn finished(&mut self) -> Box<Finished> {
            for _ in 0..1_000 {
                self.turn(20);
                match self.jobs.try_recv() {
                    Ok(Job::Commit(finished)) => return finished,
                    Ok(other) => panic!("{other:?}"),
                    Err(_) => {}
                }
            }
            panic!("not finished");
        }

        pub fn accounted(&self) {
            let dropped: u64 = self.counters.dropped.iter().map(|counter| counter.get()).sum();
            let (received, recorded) = (self.counters.packets.get(), self.counters.recorded_packets.get());
            assert_eq!((received, self.counters.staged_packets.get()), (recorded + dropped, 0));
            assert_eq!(self.recordings.pool.used(), 0, "every block is back");
        }
    }

    pub(super) fn incoming(index: u32, bytes: &[u8], truncated: bool) -> Incoming<'_> {
        let from = SocketAddr::new(LOCAL, 9);
        let datagram = Datagram { from, to: None, port: None, at: None, bytes, truncated, frame: None };
        Incoming { index, port: 10_000 + index as u16, datagram }
    }

    #[test]
    fn a_change_that_fails_changes_nothing() {
        let mut bench = Bench::new();
        bench.open(KEY, Format::Raw);
        bench.change(vec![bench.stream(1, 1, "opus")], vec![0]);
        bench.answer(KEY, Err(libc::ENOSPC));
        assert!(matches!(bench.events.pop(), Some(Event::ChangeFailed { .. })));
        // The stream that was to be taken out goes on.
        bench.turn(2_000);
        let Bench { recordings, ring, media, now, events, .. } = &mut bench;
        (0..20).for_each(|_| recordings.sweep(ring, media, *now, events).unwrap());
        bench.packet(0, 1);
        // The next stream has the index of the one that failed, and a file of its own codec.
        bench.change(vec![bench.stream(1, 2, "PCMA")], Vec::new());
        assert_eq!(bench.answer(KEY, Ok(())), ["1.alaw"]);
        bench.packet(2, 2);
        bench.close();
        let finished = bench.finished();
        assert_eq!(finished.media, [("0.ulaw".to_owned(), 160), ("1.alaw".to_owned(), 160)]);
        assert_eq!(bench.counters.recorded_packets.get(), 2);
        bench.accounted();
    }

    #[test]
    fn files_of_a_change_that_come_after_the_end_arm_no_ports() {
        let mut bench = Bench::new();
        bench.open(KEY, Format::Raw);
        bench.change(vec![bench.stream(1, 1, "PCMU")], Vec::new());
        bench.close();
        (0..10).for_each(|_| bench.turn(2_000));
        assert!(bench.events.is_empty(), "{:?}", bench.events);
        assert_eq!(bench.answer(KEY, Ok(())), ["1.ulaw"]);
        assert_eq!(bench.finished().media.len(), 2, "both files are in the manifest");
        // The slot is another's now, the ports are nobody's.
        bench.open(RecordingKey { generation: 2, ..KEY }, Format::Pcap);
        bench.packet(1, 1);
        assert_eq!(bench.counters.dropped[DropCause::AfterEnd as usize].get(), 1);
        bench.accounted();
    }

    #[test]
    fn a_message_after_the_last_block_costs_no_block() {
        let mut bench = Bench::new();
        bench.open(KEY, Format::Pcap);
        bench.packet(0, 1);
        bench.close();
        bench.now.mono = bench.now.mono + limits::CLOSE_LINGER;
        let peer = SocketAddr::new(LOCAL, 5_060);
        let (transport, local, connection) = (Transport::Udp, peer, None);
        let flow = crate::session::Flow { reactor: 0, transport, local, peer, listener: 0, connection };
        let signal = Signal { at: bench.now.wall, received: true, flow, bytes: "BYE".into() };
        let Bench { recordings, ring, media, events, now, .. } = &mut bench;
        recordings.finish(ring, media, *now, events).unwrap();
        assert!(events.is_empty(), "the last block is on its way");
        recordings.signal(ring, KEY, signal, *now).unwrap();
        let finished = bench.finished();
        assert!(finished.manifest.problems.iter().any(|problem| problem.contains("SIP message")));
        bench.accounted();
    }

    #[test]
    fn a_clock_that_is_set_back_delays_no_flush() {
        let (hour, interval) = (Wall(3_600 * SECOND), Duration::from_secs(2));
        for (since, now, expected) in [
            (hour, Wall(hour.0 + 2 * SECOND), true),
            (hour, Wall(hour.0 + 2 * SECOND - 1), false),
            (hour, hour, false),
            (hour, Wall(SECOND), true),
        ] {
            assert_eq!(overdue(since, now, interval), expected, "{since} {now}");
        }
    }

    #[test]
    fn reports_are_due_every_few_seconds_as_long_as_packets_come() {
        let mut bench = Bench::new();
        let reports = Reports::new("srs".into(), bench.counters.clone());
        bench.recordings.reports = Some(reports);
        let peer = std::net::UdpSocket::bind((LOCAL, 0)).unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let rtcp = peer.local_addr().unwrap();
        let from = SocketAddr::new(LOCAL, rtcp.port() - 1);
        let sent_after = |bench: &mut Bench, seconds: u64, packets: u8| {
            for sequence in 0..packets {
                let bytes = [0x80, 0, 0, sequence, 0, 0, 0, 0, 0, 0, 0, 7, 0xff];
                let mut incoming = incoming(0, &bytes, false);
                incoming.datagram.from = from;
                bench.recordings.packet(&mut bench.ring, &incoming, bench.now).unwrap();
            }
            bench.now.mono = bench.now.mono + Duration::from_secs(seconds);
            bench.recordings.sweep(&mut bench.ring, &mut bench.media, bench.now, &mut bench.events).unwrap();
            bench.events.clear();
            bench.counters.rtcp_sent.get()
        };
        bench.open(KEY, Format::Pcap);
        assert_eq!(sent_after(&mut bench, 1, 0), 0, "nothing to report");
        assert_eq!(sent_after(&mut bench, 0, 2), 1, "at once");
        assert_eq!(sent_after(&mut bench, 2, 3), 1, "not due");
        assert_eq!(sent_after(&mut bench, 6, 0), 2);
        assert_eq!(sent_after(&mut bench, 60, 0), 2, "silence is not reported");
        bench.close();
        assert_eq!(sent_after(&mut bench, 60, 1), 2, "nor is what comes after the end");
        let mut packet = [0; 100];
        for highest in [1, 2] {
            let (len, sender) = peer.recv_from(&mut packet).unwrap();
            assert_eq!((len, sender), (48, SocketAddr::new(LOCAL, bench.ports[0] + 1)));
            assert_eq!((packet[1], packet[11], packet[19]), (201, 7, highest));
        }
        bench.finished();
        bench.accounted();
    }

    #[test]
    fn control_is_told_of_media_now_and_then() {
        let mut bench = Bench::new();
        bench.open(KEY, Format::Pcap);
        let told_after = |bench: &mut Bench, seconds: u64, packets: u8| {
            (0..packets).for_each(|payload| bench.packet(0, payload));
            bench.now.mono = bench.now.mono + Duration::from_secs(seconds);
            bench.now.wall.0 += seconds * SECOND;
            bench.recordings.sweep(&mut bench.ring, &mut bench.media, bench.now, &mut bench.events).unwrap();
            assert!(bench.events.iter().all(|event| matches!(event, Event::Media { key: KEY, .. })));
            bench.events.drain(..).count()
        };
        assert_eq!(told_after(&mut bench, 1, 0), 0, "nothing came");
        assert_eq!(told_after(&mut bench, 1, 1), 1, "the first at once");
        assert_eq!(told_after(&mut bench, 5, 1), 0, "not yet again");
        assert_eq!(told_after(&mut bench, 5, 0), 1, "what came meanwhile");
        assert_eq!(told_after(&mut bench, 60, 0), 0, "silence is no news");
        bench.close();
        bench.finished();
        bench.accounted();
    }

    #[test]
    fn what_found_no_block_or_was_cut_is_in_the_manifest() {
        let mut bench = Bench::new();
        bench.open(KEY, Format::Pcap);
        let blocks: Vec<_> = std::iter::from_fn(|| media::Blocks::take(&mut bench.recordings.pool)).collect();
        bench.packet(0, 1);
        blocks.into_iter().for_each(|block| media::Blocks::give(&mut bench.recordings.pool, block));
        let incoming = incoming(0, &[0x80; 1_900], true);
        bench.recordings.packet(&mut bench.ring, &incoming, bench.now).unwrap();
        bench.close();
        let problems = bench.finished().manifest.problems;
        assert!(["no write block", "cut"].iter().all(|word| problems.iter().any(|p| p.contains(word))));
        bench.accounted();
    }
}
