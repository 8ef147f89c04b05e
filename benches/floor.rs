//! The recorder beside its floor, in one run, on the same load: CPU nanoseconds per packet of `sipreel record` (everything:
//! receiving, accounting, writing pcaps) and of a bare epoll + recvmmsg receiver that throws its packets away.
//!
//! `cargo bench --bench floor` — 2,000 streams, 100,000 packets/s, three rounds of each; with `-- --rtpengine` also
//! rtpengine's pcap recording (Debian package rtpengine-daemon) on the same load. As a test: one small round.
//! Each receiver is pinned to one core and the sender to the other; loss is counted on every side, rtpengine's from its files.

#![expect(clippy::disallowed_methods, reason = "real time is what is waited for and measured here")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Below the ephemeral ports, so that no client socket has one of these.
const PORT_BASE: u16 = 26_000;
const PAYLOAD: usize = 172;
const BATCH: usize = 50;

struct Size {
    streams: usize,
    seconds: usize,
    rounds: usize,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = arguments.iter().position(|a| a == "--floor") {
        return floor(arguments[at + 1].parse().unwrap());
    }
    let asked = |flag: &str| arguments.iter().any(|a| a == flag);
    // `cargo bench` says --bench, `cargo test --benches` does not.
    let size = match asked("--bench") && !asked("--test") {
        true => Size { streams: 2_000, seconds: 10, rounds: 3 },
        false => Size { streams: 200, seconds: 1, rounds: 1 },
    };
    let mut contenders: Vec<(&str, Measure)> = vec![("floor", measure_floor), ("sipreel", measure_recorder)];
    if asked("--rtpengine") {
        contenders.push(("rtpengine", measure_rtpengine));
    }
    let mut figures = vec![Vec::new(); contenders.len()];
    for round in 1..=size.rounds {
        for ((name, measure), figures) in contenders.iter().zip(&mut figures) {
            let nanos = measure(&size);
            println!("round {round}: {name} {nanos:.0} CPU ns/packet");
            figures.push(nanos);
        }
    }
    let medians: Vec<f64> = figures.into_iter().map(median).collect();
    println!("{} streams, {} packets/s, median of {}:", size.streams, size.streams * 50, size.rounds);
    for ((name, _), nanos) in contenders.iter().zip(&medians) {
        println!(
            "{name:>10} {nanos:6.0} CPU ns/packet   {:.2} x floor   {:.2} x sipreel",
            nanos / medians[0],
            nanos / medians[1]
        );
    }
}

/// Runs one contender on the load and returns its CPU nanoseconds per packet.
type Measure = fn(&Size) -> f64;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

// ---- the floor --------------------------------------------------------------------------------------------------

/// Binds the ports, says `ready`, receives until its input ends, says how many packets came.
fn floor(streams: usize) {
    pin(0);
    let sockets: Vec<UdpSocket> =
        (0..streams).map(|i| UdpSocket::bind(("127.0.0.1", PORT_BASE + 2 * i as u16)).unwrap()).collect();
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        FINISHED.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    println!("ready");
    println!("{}", receive(&sockets));
}

static FINISHED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

fn receive(sockets: &[UdpSocket]) -> u64 {
    const VECTOR: usize = 64;
    let mut packets = 0u64;
    let mut buffers = vec![[0u8; 2048]; VECTOR];
    // SAFETY: plain system calls on descriptors and arrays that live to the end of this function.
    unsafe {
        let epoll = libc::epoll_create1(0);
        for (index, socket) in sockets.iter().enumerate() {
            let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: index as u64 };
            libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, socket.as_raw_fd(), &mut event);
        }
        let mut vectors: Vec<libc::iovec> = buffers
            .iter_mut()
            .map(|b| libc::iovec { iov_base: b.as_mut_ptr().cast(), iov_len: b.len() })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = vec![std::mem::zeroed(); VECTOR];
        for (message, vector) in messages.iter_mut().zip(&mut vectors) {
            message.msg_hdr.msg_iov = vector;
            message.msg_hdr.msg_iovlen = 1;
        }
        let mut events: Vec<libc::epoll_event> = vec![std::mem::zeroed(); sockets.len()];
        while !FINISHED.load(std::sync::atomic::Ordering::Relaxed) {
            let ready = libc::epoll_wait(epoll, events.as_mut_ptr(), events.len() as i32, 100);
            for event in &events[..ready.max(0) as usize] {
                let fd = sockets[event.u64 as usize].as_raw_fd();
                let got = libc::recvmmsg(
                    fd,
                    messages.as_mut_ptr(),
                    VECTOR as u32,
                    libc::MSG_DONTWAIT,
                    std::ptr::null_mut(),
                );
                packets += got.max(0) as u64;
            }
        }
    }
    packets
}

fn measure_floor(size: &Size) -> f64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--floor", &size.streams.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let ports: Vec<u16> = (0..size.streams).map(|i| PORT_BASE + 2 * i as u16).collect();
    let (sent, nanos) = load(&ports, size.seconds, child.id());
    drop(child.stdin.take());
    let received: u64 = lines.next().unwrap().unwrap().parse().unwrap();
    child.wait().unwrap();
    assert_eq!(received, sent, "the floor lost packets");
    nanos as f64 / sent as f64
}

/// A child that does not outlive a failed measurement.
struct Running(Child);

impl Running {
    fn terminate(&mut self) -> std::process::ExitStatus {
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(self.0.id() as i32, libc::SIGTERM) };
        self.0.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// ---- the recorder -----------------------------------------------------------------------------------------------

fn measure_recorder(size: &Size) -> f64 {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("stats.sock");
    let mut child = Command::new(env!("CARGO_BIN_EXE_sipreel"))
        .args([
            "record",
            "--cores",
            "0",
            "--sip-udp",
            "127.0.0.1:0",
            "--sip-tcp",
            "none",
            "--log-format",
            "json",
        ])
        .args(["--media-ports", &format!("{PORT_BASE}-{}", usize::from(PORT_BASE) + 2 * size.streams - 1)])
        .arg("--dir")
        .arg(directory.path().join("recordings"))
        .arg("--stats-socket")
        .arg(&socket)
        .stderr(Stdio::piped())
        .spawn()
        .map(Running)
        .unwrap();
    let target = ready(&mut child.0);
    let ports = set_up(&target, size.streams / 2);
    let (sent, nanos) = load(&ports, size.seconds, child.0.id());
    std::thread::sleep(Duration::from_millis(300));
    let (received, dropped) = media_counts(&socket);
    assert_eq!((received, dropped), (sent, 0), "the recorder lost packets");
    assert!(child.terminate().success());
    nanos as f64 / sent as f64
}

/// The address in the recorder's `ready` line; its further lines are read and dropped.
fn ready(child: &mut Child) -> String {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines
        .by_ref()
        .map(Result::unwrap)
        .find(|line| line.contains("sip_udp"))
        .expect("the recorder starts");
    std::thread::spawn(move || lines.for_each(drop));
    let at = line.find("127.0.0.1:").expect("the bound address is logged");
    line[at..].chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect()
}

fn set_up(target: &str, calls: usize) -> Vec<u16> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(target).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut ports = Vec::new();
    for call in 0..calls {
        socket.send(invite(call).as_bytes()).unwrap();
        let mut buffer = [0; 65_536];
        let answer = loop {
            let len = socket.recv(&mut buffer).expect("the recorder answers");
            let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
            assert!(text.starts_with("SIP/2.0 1") || text.starts_with("SIP/2.0 200"), "{text}");
            if text.starts_with("SIP/2.0 200") {
                break text;
            }
        };
        let to = answer.lines().find(|line| line.starts_with("To:")).unwrap();
        socket.send(request("ACK", call, to, "", "").as_bytes()).unwrap();
        ports.extend(
            answer.lines().filter_map(|l| l.strip_prefix("m=audio ")?.split(' ').next()?.parse::<u16>().ok()),
        );
    }
    assert_eq!(ports.len(), calls * 2);
    ports
}

fn invite(call: usize) -> String {
    let sdp = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n\
               m=audio 9 RTP/AVP 0\r\na=sendonly\r\na=label:1\r\nm=audio 11 RTP/AVP 0\r\na=sendonly\r\na=label:2\r\n";
    let extra =
        "Contact: <sip:src@127.0.0.1>;+sip.src\r\nRequire: siprec\r\nContent-Type: application/sdp\r\n";
    request("INVITE", call, "To: <sip:srs@127.0.0.1>", extra, sdp)
}

fn request(method: &str, call: usize, to: &str, extra: &str, body: &str) -> String {
    format!(
        "{method} sip:srs@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1;rport;branch=z9hG4bK{method}{call}\r\n\
         Max-Forwards: 70\r\nFrom: <sip:src@127.0.0.1>;tag=t{call}\r\n{to}\r\nCall-ID: floor-{call}\r\nCSeq: 1 {method}\r\n\
         {extra}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn media_counts(socket: &std::path::Path) -> (u64, u64) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"stats\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    let stats: serde_json::Value = serde_json::from_str(&line).unwrap();
    let media = &stats["media"];
    let dropped = media["dropped"].as_object().unwrap().values().map(|v| v.as_u64().unwrap()).sum::<u64>();
    (media["received_packets"].as_u64().unwrap(), dropped + media["kernel_dropped"].as_u64().unwrap())
}

// ---- rtpengine --------------------------------------------------------------------------------------------------

const NG: &str = "127.0.0.1:22222";
/// pcap record header, IPv4 and UDP headers: rtpengine's `raw` recording format.
const RECORD: usize = 16 + 28 + PAYLOAD;

fn measure_rtpengine(size: &Size) -> f64 {
    let directory = tempfile::tempdir().unwrap();
    let recordings = directory.path().join("recordings");
    std::fs::create_dir(&recordings).unwrap();
    let mut child = Command::new("taskset")
        .args([
            "-c",
            "0",
            "rtpengine",
            "--config-file=none",
            "--table=-1",
            "--foreground",
            "--log-stderr",
            "--log-level=3",
        ])
        .args([
            "--interface=127.0.0.1",
            "--listen-ng=127.0.0.1:22222",
            "--port-min=10000",
            "--port-max=60000",
        ])
        .args(["--recording-method=pcap", "--recording-format=raw", "--num-threads=2", "--timeout=600"])
        .args(["--silent-timeout=600", "--delete-delay=0"])
        .arg(format!("--recording-dir={}", recordings.display()))
        .arg(format!("--pidfile={}", directory.path().join("pid").display()))
        .stderr(Stdio::null())
        .spawn()
        .map(Running)
        .expect("taskset and rtpengine are installed");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(NG).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let ports: Vec<u16> = (0..size.streams / 2).flat_map(|call| publish(&socket, call)).collect();
    let (sent, nanos) = load(&ports, size.seconds, child.0.id());
    (0..size.streams / 2)
        .for_each(|call| drop(ng(&socket, &[("command", "delete"), ("call-id", &call.to_string())])));
    child.terminate();
    let found: usize = std::fs::read_dir(recordings.join("pcaps"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len() as usize)
        .map(|len| len.saturating_sub(24) / RECORD)
        .sum();
    if found as u64 != sent {
        println!("rtpengine lost {} of {sent} packets", sent - found as u64);
    }
    nanos as f64 / sent as f64
}

/// Offers two legs the way an SRS's front end would, and has them recorded. Returns the ports.
fn publish(socket: &UdpSocket, call: usize) -> Vec<u16> {
    let id = call.to_string();
    let sdp = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n\
               m=audio 9000 RTP/AVP 0\r\na=sendonly\r\nm=audio 9002 RTP/AVP 0\r\na=sendonly\r\n";
    let call_id = ("call-id", id.as_str());
    let publish = [
        ("command", "publish"),
        call_id,
        ("from-tag", "a"),
        ("ICE", "remove"),
        ("DTLS", "off"),
        ("sdp", sdp),
    ];
    let answer = ng(socket, &publish);
    ng(socket, &[("command", "start recording"), call_id]);
    let ports: Vec<u16> =
        answer.lines().filter_map(|l| l.strip_prefix("m=audio ")?.split(' ').next()?.parse().ok()).collect();
    assert_eq!(ports.len(), 2, "{answer}");
    ports
}

/// One request of rtpengine's control protocol: a cookie, then a bencoded dictionary. Repeated until it is answered.
fn ng(socket: &UdpSocket, fields: &[(&str, &str)]) -> String {
    static COOKIE: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let cookie = format!("c{} ", COOKIE.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    let text = |value: &str| format!("{}:{value}", value.len());
    let body: String = fields.iter().map(|(key, value)| text(key) + &text(value)).collect();
    let mut buffer = [0; 65_536];
    for _ in 0..100 {
        let _ = socket.send(format!("{cookie}d{body}e").as_bytes());
        while let Ok(len) = socket.recv(&mut buffer) {
            let answer = String::from_utf8_lossy(&buffer[..len]).into_owned();
            if answer.starts_with(&cookie) {
                assert!(!answer.contains("6:result5:error"), "{answer}");
                return answer;
            }
        }
        // Refused: it is still starting.
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("rtpengine does not answer on {NG}");
}

// ---- the load ---------------------------------------------------------------------------------------------------

/// Every port gets a 172-byte packet each 20 ms, spread over the interval. Returns packets sent and the process's CPU time.
fn load(ports: &[u16], seconds: usize, pid: u32) -> (u64, u64) {
    // On a thread of its own: a process started from a pinned one would inherit its core.
    std::thread::scope(|scope| scope.spawn(|| send_all(ports, seconds, pid)).join().unwrap())
}

fn send_all(ports: &[u16], seconds: usize, pid: u32) -> (u64, u64) {
    pin(1);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut sender = Sender::new(ports);
    let before = cpu_nanos(pid);
    let start = Instant::now();
    let intervals = seconds * 50;
    for interval in 0..intervals {
        for (slice, _) in ports.chunks(BATCH).enumerate() {
            let due = Duration::from_millis(20 * interval as u64)
                + Duration::from_millis(20) * (slice * BATCH) as u32 / ports.len() as u32;
            while start.elapsed() < due {
                std::hint::spin_loop();
            }
            sender.send(&socket, slice * BATCH, interval as u16);
        }
    }
    std::thread::sleep(Duration::from_millis(100));
    ((ports.len() * intervals) as u64, cpu_nanos(pid) - before)
}

struct Sender {
    addresses: Vec<libc::sockaddr_in>,
    packets: Vec<[u8; PAYLOAD]>,
}

impl Sender {
    fn new(ports: &[u16]) -> Sender {
        let address = |&port: &u16| libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: port.to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
            sin_zero: [0; 8],
        };
        let packet = |index: usize| {
            let mut packet = [0xd5; PAYLOAD];
            packet[..2].copy_from_slice(&[0x80, 0]);
            packet[8..12].copy_from_slice(&(index as u32 + 1).to_be_bytes());
            packet
        };
        Sender {
            addresses: ports.iter().map(address).collect(),
            packets: (0..ports.len()).map(packet).collect(),
        }
    }

    fn send(&mut self, socket: &UdpSocket, from: usize, sequence: u16) {
        let to = (from + BATCH).min(self.packets.len());
        // SAFETY: the headers point into `self`, which outlives the call; sendmmsg only reads through them.
        unsafe {
            let mut vectors: [libc::iovec; BATCH] = std::mem::zeroed();
            let mut messages: [libc::mmsghdr; BATCH] = std::mem::zeroed();
            for (slot, index) in (from..to).enumerate() {
                let packet = &mut self.packets[index];
                packet[2..4].copy_from_slice(&sequence.to_be_bytes());
                packet[4..8].copy_from_slice(&(u32::from(sequence) * 160).to_be_bytes());
                vectors[slot] = libc::iovec { iov_base: packet.as_mut_ptr().cast(), iov_len: PAYLOAD };
                messages[slot].msg_hdr.msg_name = (&raw mut self.addresses[index]).cast();
                messages[slot].msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
                messages[slot].msg_hdr.msg_iov = &mut vectors[slot];
                messages[slot].msg_hdr.msg_iovlen = 1;
            }
            let mut done = 0;
            while done < to - from {
                let n = libc::sendmmsg(
                    socket.as_raw_fd(),
                    messages.as_mut_ptr().add(done),
                    (to - from - done) as u32,
                    0,
                );
                assert!(n > 0, "{}", std::io::Error::last_os_error());
                done += n as usize;
            }
        }
    }
}

/// User and system time of the process so far, in nanoseconds, at the resolution of the clock tick.
fn cpu_nanos(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
    // SAFETY: sysconf only returns a number.
    let hertz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
    (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()) * 1_000_000_000 / hertz
}

fn pin(core: usize) {
    // SAFETY: a zeroed set with one core set, read by the call. On a machine with fewer cores it fails and nothing changes.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}
