//! Calls whose packets come to several reactors: ports are lent, and what comes elsewhere is handed over in blocks.
//!
//! Where the queues of an interface are read, the interface decides to which reactor a packet comes. The reactor that opened the
//! recording is its home: it has the files. It lends the ports to all others before the 200 leaves. What comes to another reactor
//! is recorded there, by a guest: a [`media::Recording`] of the same call with blocks of that reactor's own pool.
//!
//! ```text
//!        home                        neighbour
//!   arm    ───── Lend ─────▶   ports are fresh, nothing else
//!                              first packet: a guest; every other packet goes the same way as at home
//!   append ◀──── Write ─────   a block is full or old
//!   done   ──── Settled ───▶   counted as recorded or dropped, block back in its pool
//!   close  ───── Recall ───▶   reads on until its queues are empty
//!   absorb ◀─── Returned ───   the last block before it; what came of each stream
//! ```
//!
//! So no packet changes threads: a block of hundreds does. A reactor counts what it has received, to the end.
//!
//! In a raw file of constant rate each part places its packets itself, from the same start, and silence in front of a block goes
//! over nothing that is written. A stream that moves from one reactor to another goes on at the place of its arrival there, which
//! differs from that of its timestamps by what its clock has drifted; where two reactors get its packets at the same time,
//! silence within one's blocks may hide the other's. The manifest says that a stream came to several.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use super::super::disk::{Owned, Settled};
use super::super::mailbox::Mailbox;
use super::super::media_source::MediaSource;
use super::super::ring::Ring;
use super::{Linger, Live, LiveStream, PortState, PortUse, Recordings, Stage, stagger};
use crate::clock::{Mono, Now, Wall};
use crate::counters::DropCause;
use crate::limits;
use crate::media::recording::{StreamPart, StreamSpec};
use crate::media::{Channel, Recording, Write};
use crate::proto::manifest::Format;
use crate::session::{PortPair, RecordingKey};

/// What reactors have for each other.
#[derive(Debug)]
pub enum Handover {
    Lend(Arc<Loan>),
    /// The stream has been taken out of the recording: its ports fall silent.
    Silence {
        key: RecordingKey,
        stream: u8,
    },
    /// The dialog is over.
    Recall {
        key: RecordingKey,
        linger: Linger,
    },
    /// A block of a guest, for the file at home.
    Write {
        key: RecordingKey,
        owned: Owned,
    },
    Returned(Box<Returned>),
    Settled(Settled),
}

/// The ports of a recording, for the packets that come to other reactors.
#[derive(Debug)]
pub struct Loan {
    key: RecordingKey,
    format: Format,
    /// As the file at home is written.
    aligned: bool,
    /// All streams so far; those before `new` have been lent before.
    streams: Vec<Arc<LentStream>>,
    new: usize,
    /// When the call's first packet came, to whichever reactor: where raw files begin.
    start: Arc<OnceLock<Wall>>,
}

#[derive(Debug)]
struct LentStream {
    ports: PortPair,
    address: IpAddr,
    spec: StreamSpec,
    /// What its file says of when it was begun.
    begun: Wall,
}

/// All that a reactor knows of a recording that is over.
#[derive(Debug)]
pub struct Returned {
    key: RecordingKey,
    from: u8,
    /// By stream; none if nothing came.
    parts: Vec<StreamPart>,
    problems: Vec<String>,
    /// Datagrams that the kernel dropped on their way to this reactor, of whichever recording.
    shared_drops: u64,
}

/// A loan at the reactor that has it.
pub(super) struct Lent {
    loan: Arc<Loan>,
    /// `Recordings::shared_drops` when it came.
    shared_drops_before: u64,
    recalled: Option<Linger>,
}

/// The loans that a reactor has of others.
#[derive(Default)]
pub(super) struct Loans {
    /// By slot of the recording in the session table. Empty where nothing is ever lent.
    slots: Vec<Option<Box<Lent>>>,
    count: usize,
    recalled: Vec<u32>,
}

impl Loans {
    pub fn new(slots: usize) -> Loans {
        Loans { slots: (0..slots).map(|_| None).collect(), ..Loans::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn ending(&self) -> bool {
        !self.recalled.is_empty()
    }

    fn of(&self, slot: u32) -> Option<&Lent> {
        self.slots.get(slot as usize)?.as_deref()
    }

    fn of_key(&mut self, key: RecordingKey) -> Option<&mut Lent> {
        self.slots.get_mut(key.slot as usize)?.as_deref_mut().filter(|lent| lent.loan.key == key)
    }

    fn take(&mut self, slot: u32) -> Option<Box<Lent>> {
        let lent = self.slots.get_mut(slot as usize)?.take();
        self.count -= usize::from(lent.is_some());
        lent
    }
}

/// The way to the other reactors. None waits for another: what finds a mailbox full is kept, in order, for the next turn. It is
/// bounded by the recordings and the blocks of a reactor.
pub struct Neighbours {
    own: u8,
    /// By reactor. Empty where a packet comes to no other reactor than the one whose port it is.
    mailboxes: Vec<Mailbox>,
    kept: Vec<VecDeque<Handover>>,
}

impl Neighbours {
    /// `mailboxes`: of all reactors, this one's too; none where nothing is to be lent.
    pub fn new(own: u8, mailboxes: Vec<Mailbox>) -> Neighbours {
        let kept = mailboxes.iter().map(|_| VecDeque::new()).collect();
        Neighbours { own, mailboxes, kept }
    }

    /// The reactor that has these neighbours.
    pub fn own(&self) -> u8 {
        self.own
    }

    pub fn is_empty(&self) -> bool {
        self.mailboxes.is_empty()
    }

    fn others(&self) -> impl Iterator<Item = u8> + use<> {
        let own = self.own;
        (0..self.mailboxes.len() as u8).filter(move |&reactor| reactor != own)
    }

    fn send(&mut self, to: u8, handover: Handover) {
        if let Some(kept) = self.kept.get_mut(usize::from(to)) {
            kept.push_back(handover);
        }
    }

    fn send_all(&mut self, handover: impl Fn() -> Handover) {
        self.others().for_each(|reactor| self.send(reactor, handover()));
    }

    /// `true`: all is on its way.
    fn flush(&mut self) -> bool {
        for (mailbox, kept) in self.mailboxes.iter().zip(&mut self.kept).filter(|(_, kept)| !kept.is_empty())
        {
            mailbox.put_kept(kept);
        }
        self.kept.iter().all(VecDeque::is_empty)
    }
}

// ---- at home ----------------------------------------------------------------------------------------------------

impl Recordings {
    /// Whether packets of this reactor's recordings may come to others.
    pub fn lends(&self) -> bool {
        !self.neighbours.is_empty()
    }

    /// Sends off what this turn has for other reactors. `false`: not all of it could go; what control is told next has to wait,
    /// because it may rely on that.
    pub fn hand_over(&mut self) -> bool {
        for settled in self.files.settled_elsewhere() {
            self.neighbours.send(settled.owned.owner, Handover::Settled(settled));
        }
        self.neighbours.flush()
    }

    /// Lends the streams from `new` on, which have been armed. The state of their ports here.
    pub(super) fn lend(&mut self, slot: u32, specs: Vec<StreamSpec>) -> PortState {
        let Some(live) = self.live[slot as usize].as_mut() else { return PortState::Ended };
        // What comes after a recall is of no call.
        if self.neighbours.is_empty() || specs.is_empty() || !matches!(live.stage, Stage::Active) {
            return PortState::Open;
        }
        let (mut streams, start) = match &live.loan {
            Some(loan) => (loan.streams.clone(), loan.start.clone()),
            None => (Vec::new(), Arc::default()),
        };
        let new = streams.len();
        streams.extend(live.streams.iter().skip(new).zip(specs).map(|(stream, spec)| {
            Arc::new(LentStream { ports: stream.ports, address: stream.address, spec, begun: live.begun })
        }));
        let (key, format) = (live.key, live.media.format());
        let loan = Arc::new(Loan { key, format, aligned: self.direct, streams, new, start });
        live.loan = Some(loan.clone());
        self.neighbours.send_all(|| Handover::Lend(loan.clone()));
        PortState::Fresh
    }

    /// What other reactors have of the recording, they give by the time that its own ports fall silent.
    pub(super) fn recall(&mut self, key: RecordingKey, linger: Linger) {
        let Some(live) = self.live[key.slot as usize].as_mut().filter(|live| live.loan.is_some()) else {
            return;
        };
        live.awaited = self.neighbours.others().fold(0, |bits, reactor| bits | 1 << reactor);
        self.neighbours.send_all(|| Handover::Recall { key, linger });
    }

    /// A stream of a recording of this reactor has fallen silent.
    pub(super) fn silence_elsewhere(&mut self, slot: u32, stream: usize) {
        let Some(live) = self.live[slot as usize].as_ref().filter(|live| live.loan.is_some()) else { return };
        let (key, stream) = (live.key, stream as u8);
        self.neighbours.send_all(|| Handover::Silence { key, stream });
    }

    /// What another reactor has for this one.
    pub fn handed_over(&mut self, ring: &mut Ring, handover: Handover, now: Now) -> io::Result<()> {
        match handover {
            Handover::Lend(loan) => self.borrow_ports(loan),
            Handover::Silence { key, stream } => self.silence_here(key, stream),
            Handover::Recall { key, linger } => self.recalled(key, linger),
            Handover::Write { key, owned } => {
                return self.write_of_guest(ring, key, owned, now.mono);
            }
            Handover::Returned(returned) => self.returned(*returned),
            Handover::Settled(settled) => self.files.settle(&mut self.pool, settled),
        }
        Ok(())
    }

    /// What this reactor has staged goes first: SIP messages that came before are in front of it in the pcap.
    fn write_of_guest(
        &mut self,
        ring: &mut Ring,
        key: RecordingKey,
        owned: Owned,
        now: Mono,
    ) -> io::Result<()> {
        let index = usize::from(owned.write.file);
        let live = self.live[key.slot as usize].as_mut().filter(|live| live.key == key);
        let Some((live, file)) =
            live.and_then(|live| live.files.get(index).copied().map(|file| (live, file)))
        else {
            self.files.settle(&mut self.pool, Settled { owned, outcome: Err(DropCause::AfterEnd) });
            return Ok(());
        };
        let last = !matches!(live.stage, Stage::Active);
        live.media.flush(&mut self.writes);
        self.write(ring, key.slot, now, last)?;
        if let Some(lost) = self.files.write(ring, &mut self.pool, file, owned, now, last)? {
            self.lost(&lost);
        }
        Ok(())
    }

    fn returned(&mut self, returned: Returned) {
        let Returned { key, from, parts, problems, shared_drops } = returned;
        let Some(live) = self.current(key) else { return };
        live.awaited &= !(1 << from);
        live.shared_drops_elsewhere += shared_drops;
        for problem in &problems {
            live.problem(problem);
        }
        for (stream, part) in (0u8..).zip(&parts) {
            live.note_overlap(stream, part);
            live.media.absorb(stream, part);
        }
    }
}

impl Live {
    /// Reactors that have not answered a recall by `latest` are not waited for.
    pub(super) fn waits_for_guests(&mut self, latest: Mono, now: Mono) -> bool {
        if self.awaited > 0 && now >= latest + limits::RECALL_GRACE {
            let missing = self.awaited.count_ones();
            self.problem(&format!("{missing} of the other cores did not hand over what came to them"));
            self.awaited = 0;
        }
        self.awaited > 0
    }

    fn note_overlap(&mut self, stream: u8, part: &StreamPart) {
        let Some((first, last)) = part.span().filter(|_| self.media.format() == Format::Raw) else { return };
        let here = self.media.report(stream);
        let at_once = here.first_packet.is_some_and(|here| here < last)
            && here.last_packet.is_some_and(|here| first < here);
        if at_once {
            self.problem(&format!(
                "stream {stream}: its packets came to several cores at once; some may be hidden by silence"
            ));
        } else if here.first_packet.is_some() {
            self.problem(&format!(
                "stream {stream}: it moved to another core; its audio may be shifted there by the drift of its clock"
            ));
        }
    }
}

// ---- elsewhere --------------------------------------------------------------------------------------------------

impl Recordings {
    /// Nothing is made for a loan before its first packet, unless there is a guest already.
    fn borrow_ports(&mut self, loan: Arc<Loan>) {
        let slot = loan.key.slot;
        let Some(known) = self.loans.slots.get(slot as usize) else { return };
        let mut shared_drops_before = self.shared_drops;
        match known {
            Some(lent) if lent.loan.key == loan.key => shared_drops_before = lent.shared_drops_before,
            _ => self.evict(slot),
        }
        for (index, stream) in loan.streams.iter().enumerate().skip(loan.new) {
            self.use_ports(slot, index as u8, stream.ports, PortState::Fresh);
        }
        self.loans.take(slot);
        self.loans.count += 1;
        self.loans.slots[slot as usize] = Some(Box::new(Lent { loan, shared_drops_before, recalled: None }));
    }

    pub(super) fn use_ports(&mut self, slot: u32, stream: u8, ports: PortPair, state: PortState) {
        for (offset, channel) in [(0, Channel::Rtp), (1, Channel::Rtcp)] {
            if let Some(port) = self.ports.get_mut(usize::from(ports.index) * 2 + offset) {
                *port = PortUse { recording: slot, stream, channel, state };
            }
        }
    }

    /// The first packet of ports that are lent, or lent to others: of this call on this reactor, or of streams added since.
    #[cold]
    pub(super) fn first_packet(&mut self, slot: u32, at: Wall) {
        self.host(slot);
        let Recordings { live, ports, .. } = self;
        let Some(live) = &mut live[slot as usize] else { return };
        if let Some(loan) = &live.loan {
            live.media.share(*loan.start.get_or_init(|| at));
        }
        for socket in live.streams.iter().flat_map(LiveStream::sockets) {
            let port = &mut ports[socket as usize];
            if port.recording == slot && port.state == PortState::Fresh {
                port.state = PortState::Open;
            }
        }
    }

    /// Makes the guest, or adds to it the streams that have been lent since.
    fn host(&mut self, slot: u32) {
        let Some(loan) = self.loans.of(slot).map(|lent| lent.loan.clone()) else { return };
        let Loan { key, format, aligned, .. } = *loan;
        let Recordings { live, active, shared_drops, .. } = self;
        let guest = live[slot as usize].get_or_insert_with(|| {
            let mut media = Recording::new(format).staggered(stagger(slot));
            if aligned {
                media = media.aligned();
            }
            active.push(slot);
            let mut guest = Box::new(Live::new(key, String::new(), media, *shared_drops));
            guest.stage = Stage::Guest;
            guest
        });
        for stream in loan.streams.iter().skip(guest.streams.len()) {
            let index = guest.media.add_stream(stream.spec.clone());
            if format == Format::Raw {
                // Home has written it; what follows counts from the same moment.
                let _ = guest.media.file_header(index, stream.begun, &[]);
            }
            guest.streams.push(LiveStream::new(stream.ports, stream.address));
        }
        guest.loan = Some(loan);
    }

    /// Writes of a guest go home.
    pub(super) fn send_home(&mut self, key: RecordingKey, write: Write) {
        let owned = Owned { owner: self.neighbours.own, write };
        self.neighbours.send(key.reactor, Handover::Write { key, owned });
    }

    fn silence_here(&mut self, key: RecordingKey, stream: u8) {
        let Some(lent) = self.loans.of_key(key) else { return };
        let Some(ports) = lent.loan.streams.get(usize::from(stream)).map(|stream| stream.ports) else {
            return;
        };
        self.end_ports(key.slot, stream, ports);
    }

    fn recalled(&mut self, key: RecordingKey, linger: Linger) {
        match self.loans.of_key(key) {
            Some(lent) => {
                lent.recalled = Some(linger);
                self.loans.recalled.push(key.slot);
            }
            // It was evicted.
            None => self.answer_recall(key, 0, None),
        }
    }

    /// Gives back what has been recalled, as soon as everything has been read that the kernel had received by then.
    pub(super) fn give_back_recalled(
        &mut self,
        ring: &mut Ring,
        media: &MediaSource,
        now: Now,
    ) -> io::Result<()> {
        let mut recalled = std::mem::take(&mut self.loans.recalled);
        let mut result = Ok(());
        recalled.retain(|&slot| {
            let waits = result.is_err() || self.still_comes(media, slot, now.mono);
            if !waits {
                result = self.give_back(ring, slot, now.mono);
            }
            waits
        });
        recalled.append(&mut self.loans.recalled);
        self.loans.recalled = recalled;
        result
    }

    fn still_comes(&mut self, media: &MediaSource, slot: u32, now: Mono) -> bool {
        let lent = self.loans.slots.get_mut(slot as usize).and_then(|lent| lent.as_deref_mut());
        let Some(Lent { loan, recalled: Some(linger), .. }) = lent else { return false };
        if now < linger.until {
            return true;
        }
        let mut sockets = loan.streams.iter().map(|stream| u32::from(stream.ports.index) * 2);
        if now < linger.latest && sockets.any(|socket| media.waiting(socket, linger.asked)) {
            linger.until = now + limits::CLOSE_LINGER;
            return true;
        }
        false
    }

    fn give_back(&mut self, ring: &mut Ring, slot: u32, now: Mono) -> io::Result<()> {
        // An eviction has been quicker, and the slot is another's.
        if self.loans.of(slot).is_none_or(|lent| lent.recalled.is_none()) {
            return Ok(());
        }
        let Some(lent) = self.loans.take(slot) else { return Ok(()) };
        let key = lent.loan.key;
        self.end_all_ports(&lent.loan);
        let mut guest = None;
        if self.guest(slot).is_some() {
            self.flush(slot);
            self.write(ring, slot, now, true)?;
            guest = self.take(slot);
        }
        self.answer_recall(key, self.shared_drops - lent.shared_drops_before, guest);
        Ok(())
    }

    fn answer_recall(&mut self, key: RecordingKey, shared_drops: u64, guest: Option<Box<Live>>) {
        let from = self.neighbours.own;
        let mut returned = Returned { key, from, parts: Vec::new(), problems: Vec::new(), shared_drops };
        if let Some(mut guest) = guest {
            returned.parts =
                (0..guest.streams.len() as u8).filter_map(|stream| guest.media.part(stream)).collect();
            returned.problems = std::mem::take(&mut guest.problems);
        }
        self.neighbours.send(key.reactor, Handover::Returned(Box::new(returned)));
    }

    /// The slot is another's: home has not waited for this reactor.
    pub(super) fn evict(&mut self, slot: u32) {
        let Some(lent) = self.loans.take(slot) else { return };
        self.end_all_ports(&lent.loan);
        self.loans.recalled.retain(|&recalled| recalled != slot);
        if self.guest(slot).is_some() {
            self.flush(slot);
            self.take(slot);
        }
        let owner = self.neighbours.own;
        for write in self.writes.drain(..) {
            let owned = Owned { owner, write };
            self.files.settle(&mut self.pool, Settled { owned, outcome: Err(DropCause::AfterEnd) });
        }
    }

    /// The call whose guest is in this slot.
    pub(super) fn guest(&self, slot: u32) -> Option<RecordingKey> {
        let live = self.live[slot as usize].as_deref()?;
        matches!(live.stage, Stage::Guest).then_some(live.key)
    }

    fn flush(&mut self, slot: u32) {
        if let Some(live) = self.live[slot as usize].as_mut() {
            live.media.flush(&mut self.writes);
        }
    }

    fn end_all_ports(&mut self, loan: &Loan) {
        for (index, stream) in loan.streams.iter().enumerate() {
            self.end_ports(loan.key.slot, index as u8, stream.ports);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Bench, KEY, SECOND, incoming};
    use super::*;
    use crate::engine::commit::Finished;
    use crate::engine::directory::Job;
    use crate::engine::mailbox::{Inbox, Letter, mailbox};
    use crate::media::Blocks;
    use crate::proto::pcap::reading::{datagram, records};
    use crate::proto::rtp;
    use crate::session::{Close, Event, Flow, Signal, Transport};

    /// Two reactors; the test carries their letters.
    struct Two {
        home: Bench,
        away: Bench,
        boxes: [Inbox; 2],
    }

    impl Two {
        fn new() -> Two {
            let (boxes, inboxes): (Vec<_>, Vec<_>) = (0..2).map(|_| mailbox().unwrap()).unzip();
            let bench = |own| Bench::with(Neighbours::new(own, boxes.clone()));
            let (home, away) = (bench(0), bench(1));
            Two { home, away, boxes: inboxes.try_into().unwrap_or_else(|_| unreachable!()) }
        }

        /// A recording of one stream on pair 0.
        fn open(format: Format) -> Two {
            let mut two = Two::new();
            two.home.open(KEY, format);
            two.exchange();
            two
        }

        /// Hands letters over until there are none.
        fn exchange(&mut self) {
            let Two { home, away, boxes } = self;
            loop {
                assert!(home.recordings.hand_over() && away.recordings.hand_over());
                let mut letters = 0;
                for (bench, inbox) in [&mut *home, &mut *away].into_iter().zip(&*boxes) {
                    for letter in inbox.letters.try_iter() {
                        let Letter::Handover(handover) = letter else { panic!("{letter:?}") };
                        bench.recordings.handed_over(&mut bench.ring, handover, bench.now).unwrap();
                        letters += 1;
                    }
                }
                if letters == 0 {
                    return;
                }
            }
        }

        fn turn(&mut self, millis: u64) {
            self.home.turn(millis);
            self.away.turn(millis);
            self.exchange();
        }

        fn finished(&mut self) -> Box<Finished> {
            for _ in 0..1_000 {
                self.turn(20);
                match self.home.jobs.try_recv() {
                    Ok(Job::Commit(finished)) => {
                        self.exchange();
                        return finished;
                    }
                    Ok(other) => panic!("{other:?}"),
                    Err(_) => {}
                }
            }
            panic!("not finished");
        }

        fn accounted(&self) {
            self.home.accounted();
            self.away.accounted();
        }
    }

    fn send(bench: &mut Bench, pair: u32, sequence: u16) {
        let mut bytes = [sequence as u8; 172];
        let timestamp = u32::from(sequence) * 160;
        bytes[..12].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
        bytes[2..4].copy_from_slice(&sequence.to_be_bytes());
        bytes[4..8].copy_from_slice(&timestamp.to_be_bytes());
        bench.recordings.packet(&mut bench.ring, &incoming(pair * 2, &bytes, false), bench.now).unwrap();
    }

    fn lost(bench: &Bench, cause: DropCause) -> u64 {
        bench.counters.dropped[cause as usize].get()
    }

    /// Sequence numbers of the RTP in the pcap of the bench, and how many other datagrams there are before the first.
    fn sequences(bench: &Bench) -> (Vec<u16>, usize) {
        let bytes = std::fs::read(bench.dir.path().join("call.pcap")).unwrap();
        let payloads: Vec<Vec<u8>> =
            records(&bytes[24..]).iter().map(|record| datagram(record.frame).2).collect();
        let sequence =
            |bytes: &Vec<u8>| rtp::view(bytes).filter(|_| bytes.len() == 172).map(|rtp| rtp.sequence);
        let before = payloads.iter().take_while(|bytes| sequence(bytes).is_none()).count();
        (payloads.iter().filter_map(sequence).collect(), before)
    }

    fn signal(two: &Two) -> Signal {
        let peer = "127.0.0.1:5060".parse().unwrap();
        let (transport, connection) = (Transport::Udp, None);
        let flow = Flow { reactor: 0, transport, local: peer, peer, listener: 0, connection };
        Signal { at: two.home.now.wall, received: true, flow, bytes: "ACK".into() }
    }

    #[test]
    fn the_first_packet_makes_a_guest_and_nothing_before_it() {
        let mut two = Two::open(Format::Pcap);
        assert!(!two.away.recordings.is_empty(), "its queues have to be looked at");
        assert!(two.away.recordings.active.is_empty());
        assert!(two.away.recordings.live.iter().all(Option::is_none));
        let signal = signal(&two);
        two.home.recordings.signal(&mut two.home.ring, KEY, signal, two.home.now).unwrap();
        (0..300).for_each(|sequence| send(&mut two.away, 0, sequence));
        assert!(two.away.recordings.pool.used() > 0 && two.away.recordings.guest(0) == Some(KEY));
        two.home.close();
        let finished = two.finished();
        assert_eq!(sequences(&two.home), ((0..300).collect(), 1), "the message that came first is first");
        let report = &finished.manifest.streams[0].report;
        assert_eq!((report.packets, report.lost, report.bytes), (300, 0, 300 * 160));
        assert_eq!(finished.manifest.problems, Vec::<String>::new());
        let counters = &two.away.counters;
        assert_eq!((counters.packets.get(), counters.recorded_packets.get()), (300, 300));
        assert_eq!((two.home.counters.packets.get(), two.home.counters.recorded_packets.get()), (0, 0));
        two.accounted();
        assert!(two.away.recordings.is_empty() && two.home.recordings.is_empty());
        // The port is nobody's again.
        send(&mut two.away, 0, 301);
        assert_eq!(lost(&two.away, DropCause::AfterEnd), 1);
    }

    #[test]
    fn packets_of_one_stream_on_both_reactors_are_one_stream() {
        let mut two = Two::open(Format::Pcap);
        for sequence in 0..2_000u16 {
            let bench = if sequence % 3 == 0 { &mut two.home } else { &mut two.away };
            send(bench, 0, sequence);
            if sequence % 50 == 0 {
                two.turn(20);
            }
        }
        two.home.close();
        let finished = two.finished();
        let (mut found, _) = sequences(&two.home);
        found.sort_unstable();
        assert_eq!(found, (0..2_000).collect::<Vec<u16>>());
        let report = &finished.manifest.streams[0].report;
        assert_eq!((report.packets, report.lost, report.ssrcs.len()), (2_000, 0, 1));
        two.accounted();
    }

    #[test]
    fn the_reactor_to_which_a_stream_comes_reports_on_it() {
        let mut two = Two::open(Format::Pcap);
        (0..3).for_each(|sequence| send(&mut two.away, 0, sequence));
        for (bench, expected) in [(&mut two.home, 0), (&mut two.away, 1)] {
            let reports = super::super::Reports::new("cname".into(), bench.counters.clone());
            bench.recordings.reports = Some(reports);
            let Bench { recordings, ring, media, now, counters, .. } = bench;
            (0..20).for_each(|_| recordings.sweep(ring, media, *now, &mut Vec::new()).unwrap());
            assert_eq!(counters.rtcp_sent.get() + counters.rtcp_send_errors.get(), expected);
        }
        two.home.close();
        two.finished();
        two.accounted();
    }

    /// What waits in the queues of the other reactor when the dialog ends is part of the recording.
    #[test]
    fn what_comes_while_home_lingers_is_recorded() {
        let mut two = Two::open(Format::Pcap);
        send(&mut two.away, 0, 1);
        two.home.close();
        two.exchange();
        send(&mut two.away, 0, 2);
        let finished = two.finished();
        assert_eq!(sequences(&two.home).0, [1, 2]);
        assert_eq!(finished.manifest.streams[0].report.packets, 2);
        two.accounted();
    }

    #[test]
    fn a_recording_that_is_discarded_takes_its_guests_along() {
        let mut two = Two::open(Format::Pcap);
        send(&mut two.away, 0, 1);
        let close = Close { key: KEY, manifest: None };
        two.home.recordings.close(close, two.home.now, &mut two.home.events);
        (0..20).for_each(|_| two.turn(5));
        assert!(matches!(two.home.jobs.try_recv(), Ok(Job::Discard { .. })));
        assert!(matches!(two.home.events.pop(), Some(Event::Closed { .. })));
        assert!(two.away.recordings.is_empty());
        two.accounted();
    }

    #[test]
    fn a_stream_that_is_added_or_taken_out_is_so_everywhere() {
        let mut two = Two::open(Format::Raw);
        send(&mut two.away, 0, 1);
        two.home.change(vec![two.home.stream(1, 1, "opus")], vec![0]);
        two.home.answer(KEY, Ok(()));
        two.exchange();
        send(&mut two.away, 1, 1);
        for _ in 0..5 {
            two.turn(limits::CLOSE_LINGER.as_millis() as u64);
            let Bench { recordings, ring, media, now, .. } = &mut two.home;
            (0..20).for_each(|_| recordings.sweep(ring, media, *now, &mut Vec::new()).unwrap());
        }
        two.exchange();
        send(&mut two.away, 0, 2);
        assert_eq!(lost(&two.away, DropCause::AfterEnd), 1);
        send(&mut two.away, 1, 2);
        two.home.close();
        let finished = two.finished();
        let lengths: Vec<u64> = finished.media.iter().map(|(_, length)| *length).collect();
        let (header, dumped) = (
            crate::proto::raw::dump_file_header(Wall(0), "127.0.0.1:10000".parse().unwrap()).len() as u64,
            8 + 172,
        );
        assert_eq!(lengths, [160, header + 2 * dumped]);
        assert_eq!(two.away.counters.recorded_packets.get(), 3);
        two.accounted();
    }

    /// Two legs of a raw recording begin at the same moment, wherever their packets come.
    #[test]
    fn raw_files_of_two_reactors_line_up() {
        let mut two = Two::open(Format::Raw);
        two.home.change(vec![two.home.stream(1, 1, "PCMU")], Vec::new());
        two.home.answer(KEY, Ok(()));
        two.exchange();
        send(&mut two.away, 0, 1);
        two.turn(1_000);
        send(&mut two.home, 1, 1);
        two.home.close();
        let finished = two.finished();
        let lengths: Vec<u64> = finished.media.iter().map(|(_, length)| *length).collect();
        assert_eq!(lengths, [160, 8_000 + 160]);
        let bytes = std::fs::read(two.home.dir.path().join("1.ulaw")).unwrap();
        assert_eq!((bytes[7_999], bytes[8_000]), (0xff, 1), "silence, then what came");
        two.accounted();
    }

    #[test]
    fn a_raw_stream_that_moves_to_another_reactor_and_back_is_whole() {
        let mut two = Two::open(Format::Raw);
        for sequence in 0..90 {
            let bench = if (30..60).contains(&sequence) { &mut two.away } else { &mut two.home };
            send(bench, 0, sequence);
            two.turn(20);
            // A block is sent off while the other reactor has the stream.
            if sequence == 45 {
                two.home.recordings.flush(0);
                two.home.recordings.write(&mut two.home.ring, 0, two.home.now.mono, false).unwrap();
            }
        }
        two.home.close();
        two.finished();
        let bytes = std::fs::read(two.home.dir.path().join("0.ulaw")).unwrap();
        let sequences: Vec<u8> = bytes.chunks(160).map(|packet| packet[0]).collect();
        assert_eq!(sequences, (0..90).collect::<Vec<u8>>());
        two.accounted();
    }

    #[test]
    fn a_reactor_that_does_not_answer_is_a_problem_and_its_blocks_return() {
        let mut two = Two::open(Format::Pcap);
        send(&mut two.away, 0, 1);
        two.home.close();
        let finished = two.home.finished();
        assert!(finished.manifest.problems.iter().any(|problem| problem.contains("1 of the other cores")));
        // It wakes up when the slot is another's, at home and then with itself.
        two.home.open(RecordingKey { generation: 2, ..KEY }, Format::Pcap);
        two.exchange();
        two.away.now.mono = two.home.now.mono;
        two.away.turn(20);
        two.exchange();
        assert_eq!(lost(&two.away, DropCause::AfterEnd), 1);
        send(&mut two.away, 0, 2);
        two.away.open(RecordingKey { reactor: 1, slot: 0, generation: 3 }, Format::Pcap);
        two.exchange();
        assert_eq!(lost(&two.away, DropCause::AfterEnd), 2);
        two.accounted();
        assert!(two.home.now.mono > Mono(SECOND));
    }

    #[test]
    fn without_a_block_the_report_has_what_was_lost() {
        let mut two = Two::open(Format::Pcap);
        let pool = &mut two.away.recordings.pool;
        let blocks: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        send(&mut two.away, 0, 1);
        blocks.into_iter().for_each(|block| two.away.recordings.pool.give(block));
        send(&mut two.away, 0, 2);
        two.home.close();
        let manifest = two.finished().manifest;
        assert!(manifest.problems.iter().any(|problem| problem.contains("no write block")));
        assert_eq!(manifest.streams[0].report.dropped, 1);
        two.accounted();
    }

    #[test]
    fn what_finds_a_mailbox_full_goes_later() {
        let two = Two::new();
        let (mailbox, inbox) = mailbox().unwrap();
        let mut neighbours = Neighbours::new(1, vec![mailbox.clone(), mailbox]);
        let silence = |stream| Handover::Silence { key: KEY, stream };
        (0..=limits::COMMANDS_MAX).for_each(|n| neighbours.send(0, silence((n % 251) as u8)));
        assert!(!neighbours.flush());
        let streams = |inbox: &Inbox| {
            let letters = inbox.letters.try_iter();
            letters
                .filter_map(|letter| match letter {
                    Letter::Handover(Handover::Silence { stream, .. }) => Some(stream),
                    _ => None,
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(streams(&inbox).len(), limits::COMMANDS_MAX);
        assert!(neighbours.flush());
        assert_eq!(streams(&inbox), [(limits::COMMANDS_MAX % 251) as u8]);
        drop(two);
    }
}
