//! What one packet costs on its way into a block: warm, one call over and over; and cold, as in a reactor that serves thousands
//! of streams, each of which has left the caches when its next packet comes.

#![expect(clippy::disallowed_methods, reason = "real time is what is measured here")]

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::Instant;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sipreel::clock::Wall;
use sipreel::limits::BLOCK_SIZE;
use sipreel::media::{Block, Blocks, Channel, Data, Packet, Recording, StreamSpec, Write};
use sipreel::proto::manifest::Format;
use sipreel::proto::pcap::Frame;
use sipreel::proto::rtp;
use sipreel::proto::sdp::Codec;

/// Blocks that come back at once.
struct Pool(Vec<Block>);

impl Blocks for Pool {
    fn take(&mut self) -> Option<Block> {
        self.0.pop()
    }

    fn give(&mut self, block: Block) {
        self.0.push(block);
    }
}

fn packet(n: u32) -> Vec<u8> {
    let builder = rtp_rs::RtpPacketBuilder::new().payload_type(0).ssrc(7);
    builder.sequence((n as u16).into()).timestamp(n * 160).payload(&[0x55; 160]).build().unwrap()
}

fn addresses() -> (SocketAddr, SocketAddr) {
    (SocketAddr::from(([192, 0, 2, 1], 40_000)), SocketAddr::from(([198, 51, 100, 7], 20_000)))
}

fn add_stream(recording: &mut Recording) -> u8 {
    let (_, to) = addresses();
    let codec =
        Codec { payload_type: 0, encoding: "PCMU".into(), clock_rate: 8_000, channels: 1, fmtp: None };
    let label = "1".to_owned();
    recording.add_stream(StreamSpec { label, to_rtp: to, to_rtcp: to, codecs: vec![codec], rtcp_mux: false })
}

fn recording(format: Format) -> Recording {
    let mut recording = Recording::new(format);
    add_stream(&mut recording);
    recording
}

fn view(criterion: &mut Criterion) {
    let bytes = packet(1);
    criterion.bench_function("rtp view", |bencher| bencher.iter(|| rtp::view(black_box(&bytes))));
}

fn record(criterion: &mut Criterion) {
    let (from, to) = addresses();
    let (mut frame, mut out, bytes) = (Frame::udp(from, to), vec![0; BLOCK_SIZE], packet(1));
    criterion.bench_function("pcap record", |bencher| {
        bencher.iter(|| frame.write(black_box(&mut out), Wall(1), black_box(&bytes)));
    });
}

fn end_to_end(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("recording packet");
    group.throughput(Throughput::Elements(1));
    let (from, to) = addresses();
    for format in [Format::Pcap, Format::Raw] {
        let (mut recording, mut n, mut bytes) = (recording(format), 0u32, packet(0));
        let mut pool = Pool((0..4).map(|_| &mut *vec![0; BLOCK_SIZE].leak()).collect());
        let mut writes: Vec<Write> = Vec::with_capacity(16);
        group.bench_function(format!("{format:?}").to_lowercase(), |bencher| {
            bencher.iter(|| {
                n = n.wrapping_add(1);
                bytes[2..4].copy_from_slice(&(n as u16).to_be_bytes());
                bytes[4..8].copy_from_slice(&n.wrapping_mul(160).to_be_bytes());
                let packet =
                    Packet { at: Wall(u64::from(n) * 20_000_000), from, to, bytes: &bytes, frame: None };
                recording.packet(0, Channel::Rtp, &packet, &mut pool, &mut writes).unwrap();
                for write in writes.drain(..) {
                    if let Data::Block { block, .. } = write.data {
                        pool.give(block);
                    }
                }
            });
        });
    }
    group.finish();
}

mod cold {
    use super::*;
    use rand::{SeedableRng, rngs::StdRng, seq::SliceRandom};
    use sipreel::limits::{CACHE_LINE, PREFETCH_RECORDING, PREFETCH_STREAM};
    use sipreel::media::Touched;

    const STREAMS: usize = 2;
    /// Packets between two readings of the clock; as many frames lie in the receive area.
    const BATCH: usize = 512;
    const BATCHES: usize = 4_000;
    const FRAME: usize = 256;
    const HEADERS: usize = 42;
    const PACKET: usize = 172;

    /// Zeroed memory on huge pages where the kernel has them, in memory from the start.
    fn arena(bytes: usize) -> &'static mut [u8] {
        let huge = 2 << 20;
        let bytes = bytes.next_multiple_of(huge);
        let (read_write, private) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new private mapping, checked, never unmapped; the slice lies within it.
        unsafe {
            let start = libc::mmap(std::ptr::null_mut(), bytes + huge, read_write, private, -1, 0);
            assert_ne!(start, libc::MAP_FAILED);
            let start = start.cast::<u8>();
            let start = start.add(start.align_offset(huge));
            libc::madvise(start.cast(), bytes, libc::MADV_HUGEPAGE);
            let slice = std::slice::from_raw_parts_mut(start, bytes);
            slice.iter_mut().step_by(4_096).for_each(|byte| *byte = 1);
            slice
        }
    }

    fn prefetch((start, lines): Touched) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        for line in 0..lines {
            // SAFETY: a prefetch reads nothing and faults on no address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(line * CACHE_LINE).cast()) };
        }
    }

    /// All the calls of a reactor, and the order in which packets of their streams come.
    #[expect(clippy::vec_box, reason = "each where the allocator puts it, as in a reactor")]
    struct Reactor {
        calls: Vec<Box<Recording>>,
        order: Vec<(u32, u8)>,
        pool: Pool,
        writes: Vec<Write>,
        frames: &'static mut [u8],
        /// Packets so far of each stream.
        sent: u32,
        next: usize,
        framed: bool,
    }

    impl Reactor {
        fn new(calls: usize, framed: bool, blocks: Vec<Block>) -> Reactor {
            let mut order: Vec<_> = (0..calls as u32)
                .flat_map(|call| (0..STREAMS as u8).map(move |stream| (call, stream)))
                .collect();
            order.shuffle(&mut StdRng::seed_from_u64(1));
            let mut reactor = Reactor {
                calls: (0..calls).map(|_| Box::new(recording(Format::Pcap))).collect(),
                order,
                pool: Pool(blocks),
                writes: Vec::with_capacity(64),
                frames: arena(BATCH * FRAME),
                sent: 0,
                next: 0,
                framed,
            };
            for call in &mut reactor.calls {
                add_stream(call);
            }
            reactor.stagger();
            reactor
        }

        /// Fills the blocks of the calls to different heights: they do not all become full in one round.
        fn stagger(&mut self) {
            let (from, to) = addresses();
            for (call, recording) in self.calls.iter_mut().enumerate() {
                for n in 0..call % 284 {
                    let bytes = packet(n as u32);
                    let packet = Packet { at: Wall(n as u64), from, to, bytes: &bytes, frame: None };
                    recording.packet(0, Channel::Rtp, &packet, &mut self.pool, &mut self.writes).unwrap();
                }
            }
        }

        /// What the kernel does: the next frames are there.
        fn receive(&mut self) {
            for (index, frame) in self.frames.chunks_exact_mut(FRAME).take(BATCH).enumerate() {
                let round = self.sent + u32::from(self.next + index >= self.order.len());
                let position = self.next + index - if round > self.sent { self.order.len() } else { 0 };
                let (call, stream) = self.order[position];
                frame[HEADERS..HEADERS + 2].copy_from_slice(&[0x80, 0]);
                frame[HEADERS + 2..HEADERS + 4].copy_from_slice(&(round as u16).to_be_bytes());
                frame[HEADERS + 4..HEADERS + 8].copy_from_slice(&round.wrapping_mul(160).to_be_bytes());
                frame[HEADERS + 8..HEADERS + 12]
                    .copy_from_slice(&(call * 2 + u32::from(stream) + 1_000).to_be_bytes());
            }
        }

        /// The `ahead`th packet from here; fewer than there are streams.
        fn coming(&self, ahead: usize) -> (u32, u8) {
            let (index, streams) = (self.next + ahead, self.order.len());
            self.order[if index < streams { index } else { index - streams }]
        }

        fn look_ahead(&self, index: usize) {
            let of = |ahead: usize| self.coming(index + ahead);
            let (call, stream) = of(PREFETCH_RECORDING);
            self.calls[call as usize].touched(stream).into_iter().for_each(prefetch);
            let (call, stream) = of(PREFETCH_STREAM);
            self.calls[call as usize].touched_then(stream).into_iter().for_each(prefetch);
        }

        #[inline(never)]
        fn batch(&mut self, at: u64) {
            let (from, to) = addresses();
            for index in 0..BATCH {
                self.look_ahead(index);
                let (call, stream) = self.coming(index);
                let frame = &self.frames[index * FRAME..][..HEADERS + PACKET];
                let packet = Packet {
                    at: Wall(at + index as u64 * 1_000),
                    from,
                    to,
                    bytes: &frame[HEADERS..],
                    frame: self.framed.then_some(frame),
                };
                let Reactor { calls, pool, writes, .. } = self;
                calls[call as usize].packet(stream, Channel::Rtp, &packet, pool, writes).unwrap();
                for write in writes.drain(..) {
                    if let Data::Block { block, .. } = write.data {
                        pool.give(block);
                    }
                }
            }
            self.next += BATCH;
            if self.next >= self.order.len() {
                self.next -= self.order.len();
                self.sent += 1;
            }
        }

        /// Nanoseconds per packet: the median of the batches, of which most are whole although others use the machine too.
        fn measure(&mut self) -> f64 {
            let mut at = 1_795_336_245_000_000_000;
            let mut spent: Vec<_> = (0..BATCHES)
                .map(|_| {
                    self.receive();
                    at += BATCH as u64 * 1_000;
                    let start = Instant::now();
                    self.batch(at);
                    start.elapsed().as_nanos()
                })
                .collect();
            spent.sort_unstable();
            spent[BATCHES / 2] as f64 / BATCH as f64
        }
    }

    /// Prints a table: nothing here is a distribution that criterion could make more of.
    pub fn run() {
        let calls_max = 10_000;
        let blocks = arena((calls_max + 64) * BLOCK_SIZE);
        println!(
            "{:>8} {:>14} {:>14}   ns per packet, cold; {} bytes a recording",
            "streams",
            "frames",
            "built headers",
            size_of::<Recording>()
        );
        for calls in [500, 3_000, calls_max] {
            let figures = [true, false].map(|framed| {
                let range = blocks.as_mut_ptr_range();
                // SAFETY: the reactor before, and with it every block, is gone.
                let blocks = unsafe {
                    std::slice::from_raw_parts_mut(range.start, range.end.offset_from(range.start) as usize)
                };
                let blocks = blocks.chunks_exact_mut(BLOCK_SIZE).take(calls + 64).collect();
                Reactor::new(calls, framed, blocks).measure()
            });
            println!("{:>8} {:>14.1} {:>14.1}", calls * STREAMS, figures[0], figures[1]);
        }
    }
}

fn cold(_: &mut Criterion) {
    cold::run();
}

criterion_group!(benches, cold, view, record, end_to_end);
criterion_main!(benches);
