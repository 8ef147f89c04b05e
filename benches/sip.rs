//! A SIPREC INVITE of 3 KB, as a deployed SRC sends it: parsed, checked, cut out of a stream, answered.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sipreel::proto::sip::{Framer, HeaderName, Message, response};
use std::hint::black_box;

/// SDP with two m-lines and metadata of a call between two parties.
fn invite() -> Vec<u8> {
    let sdp = "v=0\r\no=SRC 0 0 IN IP4 198.51.100.1\r\ns=-\r\nc=IN IP4 198.51.100.1\r\nt=0 0\r\n\
        m=audio 12240 RTP/AVP 0 4 8\r\na=sendonly\r\na=label:1\r\nm=audio 22456 RTP/AVP 0 4 8\r\na=sendonly\r\na=label:2\r\n";
    let participant = "<participant participant_id=\"srfBElmCRp2QB23b7Mpk0w==\"><nameID aor=\"sip:bob@example.com\">\
        <name xml:lang=\"en\">Bob B</name></nameID></participant>\r\n";
    let metadata = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\r\n<recording xmlns=\"urn:ietf:params:xml:ns:recording:1\">\r\n{}</recording>\r\n",
        participant.repeat(11)
    );
    let part = |content_type: &str, body: &str| {
        format!("--boundary\r\nContent-Type: {content_type}\r\n\r\n{body}\r\n")
    };
    let body =
        part("application/sdp", sdp) + &part("application/rs-metadata+xml", &metadata) + "--boundary--\r\n";
    let head = "INVITE sip:recorder@192.0.2.9:5060;transport=tcp SIP/2.0\r\n\
        Via: SIP/2.0/TCP src.example.com:5060;branch=z9hG4bKdf6b622b648d9;rport\r\n\
        From: \"Recording, Client\" <sip:2000@example.com>;tag=35e195d2-947d-4585-946f-09839247\r\n\
        To: <sip:recorder@example.com>\r\nCall-ID: d253c800-b0d1ea39-4a7dd-3f0e20a@src.example.com\r\nCSeq: 101 INVITE\r\n\
        Max-Forwards: 70\r\nRequire: siprec\r\nAccept: application/sdp, application/rs-metadata,\r\n application/rs-metadata-request\r\n\
        Contact: <sip:2000@src.example.com:5060;transport=tcp>;+sip.src\r\nAllow: INVITE, ACK, BYE, CANCEL, OPTIONS, UPDATE\r\n\
        Supported: timer,replaces\r\nSession-Expires: 1800;refresher=uac\r\nMin-SE: 90\r\nUser-Agent: SRC/1.0\r\n\
        Date: Sun, 22 Nov 2026 07:00:00 GMT\r\nContent-Type: multipart/mixed;boundary=boundary\r\n";
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn sip(criterion: &mut Criterion) {
    let invite = invite();
    assert!((2_500..3_500).contains(&invite.len()), "{} bytes", invite.len());
    let message = Message::parse_datagram(&invite).unwrap();
    let peer = "198.51.100.1:5060".parse().unwrap();

    let mut group = criterion.benchmark_group("sip");
    group.throughput(Throughput::Bytes(invite.len() as u64));
    group.bench_function("parse", |bencher| {
        bencher.iter(|| Message::parse_datagram(black_box(&invite)).unwrap().headers().len());
    });
    group.bench_function("parse and check", |bencher| {
        bencher.iter(|| {
            let message = Message::parse_datagram(black_box(&invite)).unwrap();
            let siprec = message.tokens(HeaderName::Require).any(|tag| tag == "siprec");
            (message.check_request().unwrap().cseq.number, siprec)
        });
    });
    group.bench_function("frame", |bencher| {
        let mut framer = Framer::new();
        bencher.iter(|| {
            framer.push(black_box(&invite)).unwrap();
            framer.next().unwrap().unwrap()
        });
    });
    group.bench_function("answer", |bencher| {
        bencher.iter(|| {
            response(black_box(&message), 200, Some("tag"), peer).body("application/sdp", b"v=0\r\n").finish()
        });
    });
    group.finish();
}

criterion_group!(benches, sip);
criterion_main!(benches);
