//! The system calls of the media side: a source socket per stream, and one io_uring that sends a batch of packets with one call.

use io_uring::{IoUring, opcode, types};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use super::template::Source;

/// Packets handed to the kernel at once.
pub const BATCH: usize = 1_024;
/// One packet: RTP header and the largest payload.
pub const PACKET_MAX: usize = 12 + super::plan::PAYLOAD_MAX;
/// Descriptors left for signalling, files, the terminal.
const DESCRIPTORS_RESERVED: u64 = 256;
/// A packet that the kernel refuses this often is given up, and counted.
const ATTEMPTS: u8 = 8;
/// Where source ports are looked for: above the range that recorders use by default, then below it.
const PORTS: [std::ops::Range<u16>; 2] = [40_000..65_534, 10_000..20_000];

/// Where nothing is bound: all but the ports of services.
const UNBOUND_PORTS: std::ops::Range<u16> = 1_024..65_534;

/// Source sockets: RTP at index 2n, RTCP at 2n+1.
pub struct Sources {
    sockets: Vec<Socket>,
    pub addresses: Vec<Source>,
}

impl Sources {
    /// Binds a pair (even port, next port) for each of `wanted` streams, or as many as descriptors and ports allow; streams
    /// then share pairs. At least `least`, so that no two streams of one call share.
    pub fn bind(ip: IpAddr, wanted: usize, least: usize) -> io::Result<Sources> {
        let room = (raise_descriptor_limit()?.saturating_sub(DESCRIPTORS_RESERVED) / 2) as usize;
        let wanted = wanted.min(room).max(least);
        let mut sources = Sources { sockets: Vec::new(), addresses: Vec::new() };
        for port in PORTS.into_iter().flat_map(|range| range.step_by(2)) {
            if sources.addresses.len() == wanted {
                break;
            }
            let Ok(rtp) = bind(SocketAddr::new(ip, port)) else { continue };
            let Ok(rtcp) = bind(SocketAddr::new(ip, port + 1)) else { continue };
            sources.sockets.extend([rtp, rtcp]);
            let [rtp, rtcp] = [port, port + 1].map(|port| SocketAddr::new(ip, port));
            sources.addresses.push(Source { rtp, rtcp });
        }
        sources.enough(ip, least)
    }

    /// Addresses for packets that no socket sends: `wanted` pairs, or as many as there are.
    pub fn unbound(ip: IpAddr, wanted: usize, least: usize) -> io::Result<Sources> {
        let pairs = UNBOUND_PORTS.step_by(2).take(wanted.max(least));
        let source = |port| Source { rtp: SocketAddr::new(ip, port), rtcp: SocketAddr::new(ip, port + 1) };
        Sources { sockets: Vec::new(), addresses: pairs.map(source).collect() }.enough(ip, least)
    }

    fn enough(self, ip: IpAddr, least: usize) -> io::Result<Sources> {
        match self.addresses.len() < least {
            true => Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("fewer than {least} port pairs are free on {ip}"),
            )),
            false => Ok(self),
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    // Nobody reads what recorders report: the least room that there is, so that it takes no memory from them either.
    socket.set_recv_buffer_size(0)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Soft limit up to the hard limit; returns it.
fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit for both calls.
    let failed = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 || {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit) != 0
        }
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(limit.rlim_cur) }
}

/// Lets this thread's sleeps end within a microsecond instead of 50.
pub fn sleep_precisely() {
    // SAFETY: PR_SET_TIMERSLACK takes one integer and changes only the calling thread.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000) };
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    pub sent: u64,
    pub rtcp_sent: u64,
    pub failed: u64,
}

/// Packets being gathered, and the ring that sends them.
pub struct Wire {
    // Dropped first: nothing is in flight outside `flush`, and the sockets outlive their registration.
    ring: IoUring,
    _sockets: Vec<Socket>,
    packets: Vec<[u8; PACKET_MAX]>,
    queued: Vec<Queued>,
    last_error: Option<io::Error>,
}

struct Queued {
    socket: u32,
    len: u32,
    to: SockAddr,
    attempts: u8,
}

impl Wire {
    pub fn new(sources: Sources) -> io::Result<Wire> {
        let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(BATCH as u32)?;
        let descriptors: Vec<RawFd> = sources.sockets.iter().map(AsRawFd::as_raw_fd).collect();
        ring.submitter().register_files(&descriptors)?;
        Ok(Wire {
            ring,
            _sockets: sources.sockets,
            packets: vec![[0; PACKET_MAX]; BATCH],
            queued: Vec::with_capacity(BATCH),
            last_error: None,
        })
    }

    pub fn is_full(&self) -> bool {
        self.queued.len() == BATCH
    }

    pub fn is_empty(&self) -> bool {
        self.queued.is_empty()
    }

    /// Queues one packet that `write` fills in; it returns the length. There must be room ([`Wire::is_full`]).
    pub fn queue(&mut self, socket: u32, to: &SockAddr, write: impl FnOnce(&mut [u8; PACKET_MAX]) -> usize) {
        let len = write(&mut self.packets[self.queued.len()]);
        self.queued.push(Queued { socket, len: len as u32, to: to.clone(), attempts: 0 });
    }

    /// Sends all that is queued and waits until the kernel has taken or refused every packet.
    pub fn flush(&mut self) -> io::Result<Flushed> {
        let mut flushed = Flushed::default();
        let mut again: Vec<u32> = Vec::new();
        (0..self.queued.len()).for_each(|at| self.push(at));
        self.reap(self.queued.len(), &mut flushed, &mut again)?;
        while !again.is_empty() {
            let round = std::mem::take(&mut again);
            round.iter().for_each(|at| self.push(*at as usize));
            self.reap(round.len(), &mut flushed, &mut again)?;
        }
        self.queued.clear();
        Ok(flushed)
    }

    /// The errno of the last packet that was given up.
    pub fn last_error(&self) -> Option<&io::Error> {
        self.last_error.as_ref()
    }

    fn push(&mut self, at: usize) {
        let queued = &self.queued[at];
        let entry = opcode::Send::new(types::Fixed(queued.socket), self.packets[at].as_ptr(), queued.len)
            .dest_addr(queued.to.as_ptr().cast())
            .dest_addr_len(queued.to.len())
            .build()
            .user_data(at as u64);
        // SAFETY: packet and address lie in vectors that neither grow nor move before `flush` has seen the completion. The
        // queue has BATCH entries and is empty at the start of each round, so there is room.
        unsafe { self.ring.submission().push(&entry).expect("a round fits the ring") };
    }

    fn reap(&mut self, mut waiting: usize, flushed: &mut Flushed, again: &mut Vec<u32>) -> io::Result<()> {
        while waiting > 0 {
            match self.ring.submit_and_wait(waiting) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            for entry in self.ring.completion() {
                waiting -= 1;
                let at = entry.user_data() as usize;
                let queued = &mut self.queued[at];
                queued.attempts += 1;
                match entry.result() {
                    len if len == queued.len as i32 && queued.socket.is_multiple_of(2) => flushed.sent += 1,
                    len if len == queued.len as i32 => flushed.rtcp_sent += 1,
                    _ if queued.attempts < ATTEMPTS => again.push(at as u32),
                    result => {
                        flushed.failed += 1;
                        self.last_error = Some(io::Error::from_raw_os_error(-result));
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_arrives_from_the_addresses_that_were_announced() {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let sources = Sources::bind(ip, 2, 1).unwrap();
        let announced = sources.addresses.clone();
        let receiver = std::net::UdpSocket::bind((ip, 0)).unwrap();
        let to = SockAddr::from(receiver.local_addr().unwrap());
        let mut wire = Wire::new(sources).unwrap();
        for socket in 0..4 {
            wire.queue(socket, &to, |packet| {
                packet[0] = socket as u8;
                5
            });
        }
        assert_eq!(wire.flush().unwrap(), Flushed { sent: 2, rtcp_sent: 2, failed: 0 });
        for expected in announced.iter().flat_map(|source| [source.rtp, source.rtcp]) {
            let mut bytes = [0; 64];
            let (len, from) = receiver.recv_from(&mut bytes).unwrap();
            assert_eq!((len, from), (5, expected));
        }
    }

    #[test]
    fn a_packet_that_cannot_be_sent_is_counted() {
        let sources = Sources::bind(IpAddr::from([127, 0, 0, 1]), 1, 1).unwrap();
        let mut wire = Wire::new(sources).unwrap();
        let nowhere = SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0)));
        wire.queue(0, &nowhere, |_| 5);
        assert_eq!(wire.flush().unwrap(), Flushed { failed: 1, ..Flushed::default() });
        assert!(wire.last_error().is_some());
    }
}
