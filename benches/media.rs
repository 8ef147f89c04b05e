//! What one packet costs on its way into a block.

use std::hint::black_box;
use std::net::SocketAddr;

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

fn recording(format: Format) -> Recording {
    let (_, to) = addresses();
    let codec =
        Codec { payload_type: 0, encoding: "PCMU".into(), clock_rate: 8_000, channels: 1, fmtp: None };
    let mut recording = Recording::new(format);
    let label = "1".to_owned();
    recording.add_stream(StreamSpec { label, to_rtp: to, to_rtcp: to, codecs: vec![codec], rtcp_mux: false });
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

criterion_group!(benches, view, record, end_to_end);
criterion_main!(benches);
