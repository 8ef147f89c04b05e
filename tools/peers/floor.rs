//! A recorder as it is usually written, and no more than that: one thread, a socket a port, epoll and recvmmsg, a pcap a call,
//! written in the recorder's blocks with pwrite by the thread that receives. It follows no RTP, keeps no manifest, answers SIP
//! only as far as the load tool has to be told its ports, and promises nothing. What it costs a packet is what a recorder has to
//! be compared with.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use sipreel::clock::Wall;
use sipreel::limits::{BLOCK_SIZE, MEDIA_RCVBUF};
use sipreel::proto::pcap::{FILE_HEADER, Frame};

use super::answer::Pairs;
use super::sip::{Media, Server};

/// Datagrams that one call takes from one socket.
const VECTOR: usize = 64;
const DATAGRAM: usize = 2_048;
/// A sockaddr_in6; a timestamp in its control message.
const NAME: usize = 28;
const CONTROL: usize = 32;
/// Beyond a block: the record that did not fit any more.
const RECORD_MAX: usize = DATAGRAM + 128;
const SIP: u64 = u64::MAX;

#[derive(clap::Args)]
pub struct Options {
    /// Where SIP is answered; media comes to the same address
    #[arg(long, value_name = "ADDR:PORT")]
    sip: SocketAddr,
    /// All are bound at the start
    #[arg(long, value_name = "LO-HI", default_value = "20000-39999", value_parser = super::port_range)]
    media_ports: (u16, u16),
    /// Directory of the files; without it packets are received and thrown away
    #[arg(long)]
    dir: Option<PathBuf>,
}

pub fn run(options: &Options) -> super::Outcome {
    let stop = super::stop_flag()?;
    let server = Server::bind(options.sip)?;
    server.socket.set_nonblocking(true)?;
    let mut floor = Floor::bind(options, server.local())?;
    let epoll = Epoll::new()?;
    epoll.add(&server.socket, SIP)?;
    for (line, token) in floor.lines.iter().zip(0..) {
        epoll.add(&line.socket, token)?;
    }
    super::say(&serde_json::json!({ "ready": server.local().to_string() }))?;
    floor.receive(&epoll, server, || stop.load(Ordering::Relaxed))?;
    floor.finish()?;
    super::say(&floor.figures()?)?;
    Ok(())
}

struct Floor {
    lines: Vec<Line>,
    calls: Vec<Call>,
    pairs: Pairs,
    first_port: u16,
    dir: Option<PathBuf>,
    received: u64,
}

/// A port, and the call it is of.
struct Line {
    socket: UdpSocket,
    local: SocketAddr,
    call: Option<usize>,
    frame: Option<Frame>,
}

impl Floor {
    fn bind(options: &Options, local: SocketAddr) -> io::Result<Floor> {
        let (first, last) = options.media_ports;
        let lines = (first..=last).map(|port| Line::bind(SocketAddr::new(local.ip(), port)));
        Ok(Floor {
            lines: lines.collect::<io::Result<Vec<Line>>>()?,
            calls: Vec::new(),
            pairs: Pairs::new(options.media_ports),
            first_port: first,
            dir: options.dir.clone(),
            received: 0,
        })
    }

    fn receive(&mut self, epoll: &Epoll, mut server: Server, stop: impl Fn() -> bool) -> io::Result<()> {
        let mut batch = Batch::new();
        // As long as all that can be ready: a shorter one is asked for again and again.
        let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; self.lines.len() + 1];
        while !stop() {
            for event in epoll.wait(&mut events)? {
                match event.u64 {
                    SIP => server.serve(self)?,
                    token => self.take(token as usize, &mut batch)?,
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, token: usize, batch: &mut Batch) -> io::Result<()> {
        let line = &mut self.lines[token];
        let datagrams = batch.receive(&line.socket);
        self.received += datagrams as u64;
        let Some(call) = line.call else { return Ok(()) };
        for (from, at, bytes) in (0..datagrams).filter_map(|n| batch.datagram(n)) {
            let known = line.frame.as_ref().is_some_and(|frame| frame.is_of(from, line.local));
            if !known {
                line.frame = Some(Frame::udp(from, line.local));
            }
            if let Some(frame) = &mut line.frame {
                self.calls[call].add(frame, at, bytes)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.calls.iter_mut().try_for_each(Call::flush)
    }

    fn figures(&self) -> io::Result<serde_json::Value> {
        let sum = |of: fn(&Call) -> u64| self.calls.iter().map(of).sum::<u64>();
        // Time on the CPU in nanoseconds comes first; there is one thread.
        let schedstat = std::fs::read_to_string("/proc/self/schedstat")?;
        let cpu_ns = schedstat.split(' ').next().and_then(|ns| ns.parse::<u64>().ok());
        Ok(serde_json::json!({
            "packets": self.received,
            "recorded_packets": sum(|call| call.packets),
            "writes": sum(|call| call.writes),
            "written_bytes": sum(|call| call.offset),
            "cpu_ns": cpu_ns,
        }))
    }
}

impl Media for Floor {
    fn open(&mut self, _: &str, streams: usize) -> io::Result<Vec<u16>> {
        let ports = self.pairs.take(streams)?;
        let Some(dir) = &self.dir else { return Ok(ports) };
        let call = self.calls.len();
        self.calls.push(Call::create(&dir.join(format!("{call}.pcap")))?);
        for port in &ports {
            let rtp = usize::from(port - self.first_port);
            self.lines[rtp..rtp + 2].iter_mut().for_each(|line| line.call = Some(call));
        }
        Ok(ports)
    }

    /// What is still in the sockets belongs to the call: files end when the process does.
    fn close(&mut self, _: &str) {}
}

impl Line {
    /// A socket as the recorder's are, so that the kernel does the same work for both.
    fn bind(local: SocketAddr) -> io::Result<Line> {
        let socket = UdpSocket::bind(local)?;
        let on: libc::c_int = 1;
        // SAFETY: the option value is an int that outlives the call, and its length is given.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_TIMESTAMPNS,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as u32,
            )
        };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
        let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(MEDIA_RCVBUF);
        Ok(Line { socket, local, call: None, frame: None })
    }
}

/// A pcap file and its last block, which is not full.
struct Call {
    file: File,
    block: Box<[u8]>,
    filled: usize,
    offset: u64,
    writes: u64,
    packets: u64,
}

impl Call {
    fn create(path: &Path) -> io::Result<Call> {
        let mut block = vec![0; BLOCK_SIZE + RECORD_MAX].into_boxed_slice();
        block[..FILE_HEADER.len()].copy_from_slice(&FILE_HEADER);
        let file = File::create_new(path)?;
        Ok(Call { file, block, filled: FILE_HEADER.len(), offset: 0, writes: 0, packets: 0 })
    }

    fn add(&mut self, frame: &mut Frame, at: Wall, bytes: &[u8]) -> io::Result<()> {
        self.filled += frame.write(&mut self.block[self.filled..], at, bytes);
        self.packets += 1;
        if self.filled < BLOCK_SIZE {
            return Ok(());
        }
        self.write(BLOCK_SIZE)?;
        self.block.copy_within(BLOCK_SIZE..self.filled, 0);
        self.filled -= BLOCK_SIZE;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write(self.filled)?;
        self.filled = 0;
        Ok(())
    }

    fn write(&mut self, len: usize) -> io::Result<()> {
        self.file.write_all_at(&self.block[..len], self.offset)?;
        self.offset += len as u64;
        self.writes += 1;
        Ok(())
    }
}

struct Epoll(OwnedFd);

impl Epoll {
    fn new() -> io::Result<Epoll> {
        // SAFETY: a system call without pointers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        Ok(Epoll(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn add(&self, socket: &UdpSocket, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        // SAFETY: both descriptors are open, and the event is read during the call.
        let added = unsafe {
            libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, socket.as_raw_fd(), &mut event)
        };
        if added == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Nothing for a tenth of a second, or a signal: no event.
    fn wait<'a>(&self, events: &'a mut [libc::epoll_event]) -> io::Result<&'a [libc::epoll_event]> {
        // SAFETY: the kernel writes at most as many events as there is room for.
        let ready =
            unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), events.len() as i32, 100) };
        match usize::try_from(ready) {
            Ok(ready) => Ok(&events[..ready]),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(&[]),
                error => Err(error),
            },
        }
    }
}

/// What recvmmsg fills.
struct Batch {
    messages: Box<[libc::mmsghdr; VECTOR]>,
    names: Box<[[u8; NAME]; VECTOR]>,
    controls: Box<[Control; VECTOR]>,
    datagrams: Box<[[u8; DATAGRAM]; VECTOR]>,
    vectors: Box<[libc::iovec; VECTOR]>,
}

/// Aligned as a cmsghdr has to be.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

impl Batch {
    fn new() -> Batch {
        // SAFETY: headers and vectors of zeroes are valid: they point nowhere and say so.
        let (messages, vectors) = unsafe { std::mem::zeroed() };
        let mut batch = Batch {
            messages: Box::new(messages),
            names: Box::new([[0; NAME]; VECTOR]),
            controls: Box::new([Control([0; CONTROL]); VECTOR]),
            datagrams: Box::new([[0; DATAGRAM]; VECTOR]),
            vectors: Box::new(vectors),
        };
        for n in 0..VECTOR {
            batch.vectors[n] =
                libc::iovec { iov_base: batch.datagrams[n].as_mut_ptr().cast(), iov_len: DATAGRAM };
            let header = &mut batch.messages[n].msg_hdr;
            header.msg_name = batch.names[n].as_mut_ptr().cast();
            header.msg_control = batch.controls[n].0.as_mut_ptr().cast();
            header.msg_iov = &mut batch.vectors[n];
            header.msg_iovlen = 1;
        }
        batch
    }

    /// How many datagrams came.
    fn receive(&mut self, socket: &UdpSocket) -> usize {
        for message in self.messages.iter_mut() {
            message.msg_hdr.msg_namelen = NAME as u32;
            message.msg_hdr.msg_controllen = CONTROL;
        }
        // SAFETY: every header points to the name, control and datagram of its number, which are boxed and live as long as it.
        let got = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.messages.as_mut_ptr(),
                VECTOR as u32,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        usize::try_from(got).unwrap_or(0)
    }

    /// Source, time of reception and bytes of a datagram; `None`: without a readable source or time.
    fn datagram(&self, n: usize) -> Option<(SocketAddr, Wall, &[u8])> {
        let len = (self.messages[n].msg_len as usize).min(DATAGRAM);
        Some((address(&self.names[n])?, timestamp(&self.controls[n].0)?, &self.datagrams[n][..len]))
    }
}

/// A sockaddr_in or sockaddr_in6.
fn address(name: &[u8; NAME]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes([name[2], name[3]]);
    match i32::from(u16::from_ne_bytes([name[0], name[1]])) {
        libc::AF_INET => Some((Ipv4Addr::from(*name[4..].first_chunk::<4>()?), port).into()),
        libc::AF_INET6 => Some((Ipv6Addr::from(*name[8..].first_chunk::<16>()?), port).into()),
        _ => None,
    }
}

/// The one control message asked for: length, level, kind, seconds, nanoseconds.
fn timestamp(control: &[u8; CONTROL]) -> Option<Wall> {
    let kind = i32::from_ne_bytes(*control[12..].first_chunk::<4>()?);
    let word = |at: usize| control[at..].first_chunk::<8>().map(|bytes| u64::from_ne_bytes(*bytes));
    let (seconds, nanoseconds) = (word(16)?, word(24)?);
    (kind == libc::SCM_TIMESTAMPNS).then_some(Wall(seconds * 1_000_000_000 + nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::frames;

    #[test]
    fn a_call_is_a_pcap_of_whole_blocks_and_a_rest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.pcap");
        let mut call = Call::create(&path).unwrap();
        let to = SocketAddr::from(([127, 0, 0, 1], 20_000));
        let mut frame = Frame::udp(SocketAddr::from(([127, 0, 0, 1], 9)), to);
        for n in 0..1_000_u64 {
            call.add(&mut frame, Wall(n), &[n as u8; 172]).unwrap();
        }
        call.flush().unwrap();
        assert_eq!((call.packets, call.writes), (1_000, 4));
        let mut payloads = Vec::new();
        frames(&path, &mut |frame| payloads.push(frame.bytes[frame.bytes.len() - 1])).unwrap();
        assert_eq!(payloads, (0..1_000).map(|n| n as u8).collect::<Vec<u8>>());
        assert_eq!(call.offset, std::fs::metadata(&path).unwrap().len());
    }

    #[test]
    fn datagrams_come_with_source_and_time() {
        let line = Line::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = line.socket.local_addr().unwrap();
        for payload in [b"one", b"two"] {
            sender.send_to(payload, to).unwrap();
        }
        let mut batch = Batch::new();
        assert_eq!(batch.receive(&line.socket), 2);
        let (from, at, bytes) = batch.datagram(1).unwrap();
        assert_eq!((from, bytes), (sender.local_addr().unwrap(), &b"two"[..]));
        assert!(at.0 > 1_600_000_000_000_000_000, "{at}");
        assert_eq!(batch.receive(&line.socket), 0);
    }
}
