//! The packet path allocates nothing: a real recorder in this process, a real call, and an allocator that counts what the
//! reactor's thread asks for while packets come in and blocks go out.

#![expect(clippy::disallowed_methods, reason = "real time is what is waited for and measured here")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::UdpSocket;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sipreel::engine::{Recorder, Settings, cpu};
use sipreel::proto::manifest::Format;

/// The thread that is watched, or 0.
static WATCHED: AtomicI32 = AtomicI32::new(0);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

impl Counting {
    fn note() {
        let watched = WATCHED.load(Ordering::Relaxed);
        // SAFETY: gettid has no arguments and cannot fail.
        if watched != 0 && unsafe { libc::gettid() } == watched {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Counting::note();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Counting::note();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn the_packet_path_allocates_nothing() {
    for format in [Format::Pcap, Format::Raw] {
        watch(format);
    }
}

fn watch(format: Format) {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings {
        dir: directory.path().to_owned(),
        sip_udp: vec!["127.0.0.1:0".parse().unwrap()],
        sip_tcp: Vec::new(),
        sip_tls: Vec::new(),
        tls: None,
        connections_per_source: 1,
        media_ip: None,
        media_ports: (11_000, 11_099),
        media_source: sipreel::engine::media_source::Kind::Sockets,
        xdp_interfaces: Vec::new(),
        block_size: 64 * 1024,
        port_cooldown: Duration::from_secs(1),
        cores: cpu::allowed()[..1].to_vec(),
        sessions_max: None,
        format,
        // Shorter than the test: blocks leave by age too.
        flush_interval: Duration::from_millis(200),
        rtcp_reports: true,
        strict_siprec: false,
        explain_refusals: false,
        answer_metadata: false,
        ends: Default::default(),
        product: "sipreel/test".into(),
        terms: sipreel::session::Terms::default(),
        resource: Default::default(),
        lists: Default::default(),
        admission: Default::default(),
    };
    let recorder = Recorder::start(&settings, None).unwrap();
    let call = Call::set_up(recorder.sip_udp[0].port());
    let counters = recorder.gauges.reactors[0].clone();

    // The first packets build what lasts: frame templates, the pages of the first blocks.
    call.send(0..200);
    until(|| counters.packets.get() == 200);
    until(|| counters.disk_writes.get() > 0);

    WATCHED.store(reactor(), Ordering::Relaxed);
    // 64 KiB blocks fill at 285 packets, so some leave full and some by age.
    call.send(200..4_200);
    until(|| counters.recorded_packets.get() == 4_200);
    WATCHED.store(0, Ordering::Relaxed);
    let allocations = ALLOCATIONS.swap(0, Ordering::Relaxed);
    assert_eq!(allocations, 0, "{format:?}: the reactor allocated while it recorded 4,000 packets");

    // The canary: setting up a call does allocate on that thread, so the watch works.
    WATCHED.store(reactor(), Ordering::Relaxed);
    let _second = Call::set_up(recorder.sip_udp[0].port());
    WATCHED.store(0, Ordering::Relaxed);
    assert!(ALLOCATIONS.swap(0, Ordering::Relaxed) > 0);

    recorder.drain(Duration::ZERO);
    assert_eq!(recorder.wait().committed, 2);
}

/// The thread id of the one reactor.
fn reactor() -> i32 {
    std::fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name == "reactor-0\n"))
        .map(|path| path.file_name().unwrap().to_str().unwrap().parse().unwrap())
        .expect("the reactor runs")
}

fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "the recorder did not get there within 10 s");
        std::thread::yield_now();
    }
}

struct Call {
    media: UdpSocket,
    port: u16,
}

impl Call {
    fn set_up(sip: u16) -> Call {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(("127.0.0.1", sip)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let id = socket.local_addr().unwrap().port();
        let sdp = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n\
                   m=audio 9 RTP/AVP 0\r\na=sendonly\r\na=label:1\r\n";
        let head = |method: &str, to: &str| {
            format!(
                "{method} sip:srs@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1;rport;branch=z9hG4bK{method}{id}\r\n\
                 From: <sip:src@127.0.0.1>;tag=src\r\n{to}\r\nCall-ID: {id}\r\nCSeq: 1 {method}\r\n"
            )
        };
        let invite = format!(
            "{}Contact: <sip:src@127.0.0.1>;+sip.src\r\nRequire: siprec\r\nContent-Type: application/sdp\r\n\
             Content-Length: {}\r\n\r\n{sdp}",
            head("INVITE", "To: <sip:srs@127.0.0.1>"),
            sdp.len()
        );
        socket.send(invite.as_bytes()).unwrap();
        let answer = loop {
            let mut buffer = [0; 4_096];
            let len = socket.recv(&mut buffer).unwrap();
            let text = String::from_utf8(buffer[..len].to_vec()).unwrap();
            if !text.starts_with("SIP/2.0 100") {
                break text;
            }
        };
        assert!(answer.starts_with("SIP/2.0 200"), "{answer}");
        let to = answer.lines().find(|line| line.starts_with("To:")).unwrap();
        socket.send(format!("{}Content-Length: 0\r\n\r\n", head("ACK", to)).as_bytes()).unwrap();
        let port =
            answer.lines().find_map(|line| line.strip_prefix("m=audio ")?.split(' ').next()?.parse().ok());
        Call { media: UdpSocket::bind("127.0.0.1:0").unwrap(), port: port.unwrap() }
    }

    fn send(&self, sequence: std::ops::Range<u16>) {
        for number in sequence {
            let mut packet = [0xd5; 172];
            packet[..2].copy_from_slice(&[0x80, 0]);
            packet[2..4].copy_from_slice(&number.to_be_bytes());
            packet[4..8].copy_from_slice(&(u32::from(number) * 160).to_be_bytes());
            packet[8..12].copy_from_slice(&7u32.to_be_bytes());
            self.media.send_to(&packet, ("127.0.0.1", self.port)).unwrap();
            // The socket's buffer holds some hundred packets: let the recorder keep up.
            if number % 100 == 99 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}
