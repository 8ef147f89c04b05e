//! Reading the bodies of an INVITE: what each call costs the control thread once.

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use sipreel::proto::{metadata, multipart, sdp};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

const INVITE: &[u8] = include_bytes!("../tests/fixtures/invite/rfc7866.sip");
const CONTENT_TYPE: &[u8] = b"multipart/mixed;boundary=part-of-rs";

fn body() -> Bytes {
    let head = memchr::memmem::find(INVITE, b"\r\n\r\n").expect("an empty line");
    Bytes::from_static(&INVITE[head + 4..])
}

fn part(media_type: &str) -> Bytes {
    let parts = multipart::parts(CONTENT_TYPE, &body()).expect("a multipart body");
    parts.into_iter().find(|part| part.content_type == media_type).expect("a part of this type").body
}

fn split(criterion: &mut Criterion) {
    let body = body();
    let mut group = criterion.benchmark_group("multipart");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("split", |bencher| {
        bencher.iter(|| multipart::parts(black_box(CONTENT_TYPE), black_box(&body)));
    });
    group.finish();
}

fn offer_and_answer(criterion: &mut Criterion) {
    let body = part("application/sdp");
    let offer = sdp::parse(&body).expect("an offer");
    let lines = vec![sdp::Line::Accept { port: 20_000 }; offer.media.len()];
    let origin = sdp::AnswerOrigin { session_id: 1, version: 1 };
    let mut group = criterion.benchmark_group("sdp");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("parse", |bencher| bencher.iter(|| sdp::parse(black_box(&body))));
    group.bench_function("answer", |bencher| {
        bencher.iter(|| sdp::answer(black_box(&offer), &lines, origin, IpAddr::V4(Ipv4Addr::LOCALHOST)));
    });
    group.finish();
}

/// Of about 3 KB: two participants, four streams.
fn document(criterion: &mut Criterion) {
    let body = part("application/rs-metadata+xml");
    let read = metadata::parse(&body).expect("metadata");
    let known = read.metadata.clone();
    let update = metadata::Metadata { mode: metadata::Mode::Partial, ..known.clone() };
    let mut group = criterion.benchmark_group("metadata");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("parse", |bencher| bencher.iter(|| metadata::parse(black_box(&body))));
    let media: Vec<metadata::Media> =
        ["1", "2", "3", "4"].iter().map(|label| metadata::Media { label: Some(label), used: true }).collect();
    group.bench_function("parse_and_check", |bencher| {
        bencher.iter(|| {
            let read = metadata::parse(black_box(&body)).expect("metadata");
            metadata::check(&read, None, &media)
        });
    });
    group.bench_function("changes", |bencher| {
        let nothing = metadata::Metadata::default();
        bencher.iter(|| {
            let mut events = Vec::with_capacity(32);
            metadata::changes::changes(&nothing, black_box(&known), Default::default(), &mut |event| {
                events.push(event)
            });
            events
        });
    });
    group.bench_function("merge", |bencher| {
        let setup = || (known.clone(), update.clone());
        bencher.iter_batched(setup, |(mut known, update)| known.merge(update), BatchSize::SmallInput);
    });
    group.bench_function("senders", |bencher| bencher.iter(|| black_box(&known).senders_of_label("3").len()));
    group.finish();
}

criterion_group!(benches, split, offer_and_answer, document);
criterion_main!(benches);
