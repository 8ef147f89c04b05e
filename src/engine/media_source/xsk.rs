//! One AF_XDP socket on one receive queue: frames as they came from the wire, read in place.
//!
//! The socket's memory is divided into frames. The numbers of those that the kernel may write to lie in the fill ring, those
//! that it has written to come back in the receive ring, and [`XskSocket::release`] closes the circle. The fill ring has room
//! for all frames, so nothing ever waits to be given back.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use super::super::bpf::redirect;
use super::super::cpu;
use super::super::interface::Interface;
use super::super::mapping::Mapping;
use super::super::prefetch::prefetch;
use crate::clock::Mono;
use crate::limits;

const FRAME_SIZE: usize = limits::XDP_FRAME_SIZE as usize;
/// Bytes of a socket's memory.
const MEMORY: usize = limits::XDP_FRAMES as usize * FRAME_SIZE;
/// Entries of the completion ring, which belongs to sending: the kernel binds no socket without.
const COMPLETIONS: u32 = 1;
/// Bytes in front of a frame in which the program leaves its receive time.
const TIME: usize = redirect::ARRIVAL_SIZE;

/// A frame in the socket's memory.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// From the destination address to the end of what the driver received.
    pub bytes: &'a [u8],
    /// When the program on the interface saw it. `None` where the driver has no room for that in front of a frame.
    pub at_mono: Option<Mono>,
}

/// A bound socket. What comes to its queue comes to it once its descriptor is in the map of the program on the interface.
pub struct XskSocket {
    fd: OwnedFd,
    zero_copy: bool,
    memory: Mapping,
    fill: Ring<u64>,
    received: Ring<libc::xdp_desc>,
    /// Descriptors that the last peek found.
    ready: u32,
    /// Drops as last read.
    drops: u64,
}

// SAFETY: the pointers lead into mappings that the socket owns, and nothing in it is tied to a thread. It is not `Sync`:
// its methods are not made for two threads at once.
unsafe impl Send for XskSocket {}

impl XskSocket {
    /// Zero-copy where the driver has it, else the kernel copies each frame. Waits [`limits::BIND_PATIENCE`] for a queue that
    /// is taken: a socket that was closed leaves its queue a little later. The error names interface, queue and remedy.
    pub fn bind(interface: &Interface, queue: u32) -> Result<XskSocket, String> {
        XskSocket::open(interface.index, queue).map_err(|Failed { step, error }| {
            let remedy = remedy(&error, interface);
            format!("no AF_XDP socket on {} queue {queue}: {step} failed ({error}): {remedy}", interface.name)
        })
    }

    fn open(interface: u32, queue: u32) -> Result<XskSocket, Failed> {
        let fd = socket().map_err(Failed::at("opening it"))?;
        let memory = Mapping::huge(MEMORY).map_err(Failed::at("mapping its memory"))?;
        register(&fd, &memory).map_err(Failed::at("registering its memory"))?;
        let (fill, received) = rings(&fd).map_err(Failed::at("making its rings"))?;
        let mut socket = XskSocket { fd, zero_copy: false, memory, fill, received, ready: 0, drops: 0 };
        // A driver takes its first frames while the socket is being bound.
        socket.fill(0..limits::XDP_FRAMES);
        bind_patiently(&socket.fd, interface, queue).map_err(Failed::at("binding it"))?;
        let options: u32 =
            option(&socket.fd, libc::XDP_OPTIONS).map_err(Failed::at("asking for its mode"))?;
        socket.zero_copy = options & libc::XDP_OPTIONS_ZEROCOPY != 0;
        Ok(socket)
    }

    fn fill(&mut self, frames: std::ops::Range<u32>) {
        frames.for_each(|frame| self.fill.put(u64::from(frame * limits::XDP_FRAME_SIZE)));
        self.fill.publish();
    }

    /// Looks how many frames are ready, at most [`limits::XDP_BATCH`]: `0..n` of [`XskSocket::frame`], in the order in which they
    /// came, until [`XskSocket::release`].
    pub fn peek(&mut self) -> usize {
        self.ready = self.received.produced().min(limits::XDP_BATCH as u32);
        if self.ready == 0 {
            self.wake();
        }
        self.ready as usize
    }

    /// Frame `i` of those ready. Its receive time can be read once; `now` tells it from what the memory held before.
    pub fn frame(&self, i: usize, now: Mono) -> Received<'_> {
        let (start, len) = self.place(i);
        // SAFETY: `place` has found the bytes, and those of the time in front of them, inside one frame of the mapping. The
        // kernel has handed that frame over (acquired by `peek`) and takes it again only after `release`, which needs
        // `&mut self` and so ends this borrow. No other descriptor names the frame, the slice does not cover the time, and
        // the socket is not `Sync`, so writing to the time disturbs nobody.
        unsafe {
            let first = self.memory.start().add(start);
            let time = first.sub(TIME).cast::<u64>();
            let at = time.read_unaligned();
            time.write_unaligned(0);
            Received { bytes: std::slice::from_raw_parts(first, len), at_mono: receive_time(at, now) }
        }
    }

    /// Frame `i` of those ready, its receive time left where it is.
    pub fn bytes(&self, i: usize) -> &[u8] {
        let (start, len) = self.place(i);
        // SAFETY: as in `frame`; and this slice does not cover the time either.
        unsafe { std::slice::from_raw_parts(self.memory.start().add(start), len) }
    }

    /// Fetches the beginning of frame `i` of those ready, and what is in front of it.
    pub fn prefetch(&self, i: usize) {
        let (start, _) = self.place(i);
        let first = self.memory.start().wrapping_add(start);
        prefetch(first.wrapping_sub(TIME), 1);
        prefetch(first, limits::XDP_PREFETCH_LINES);
    }

    /// Where in the memory frame `i` of those ready begins, and its length.
    fn place(&self, i: usize) -> (usize, usize) {
        assert!(i < self.ready as usize, "only frames that peek has found can be read");
        let descriptor = self.received.entry(i as u32);
        let (start, len) = (descriptor.addr as usize, descriptor.len as usize);
        let offset = start % FRAME_SIZE;
        assert!(
            start < MEMORY && offset >= TIME && len <= FRAME_SIZE - offset,
            "a frame lies outside its place"
        );
        (start, len)
    }

    /// Gives all frames that the last peek found back to the kernel.
    pub fn release(&mut self) {
        for i in 0..self.ready {
            let frame = self.received.entry(i).addr & !(FRAME_SIZE as u64 - 1);
            self.fill.put(frame);
        }
        self.received.consume(self.ready);
        self.ready = 0;
        self.fill.publish();
        self.wake();
    }

    /// Tells a driver that had run out of frames that there are some. It asks by a flag, which it may set just after
    /// `release` has looked: so an empty `peek` looks too.
    fn wake(&self) {
        if self.fill.flags() & libc::XDP_RING_NEED_WAKEUP != 0 {
            // SAFETY: no memory is passed. The call only runs the driver; nothing comes of a failure but the next try.
            unsafe {
                libc::recvfrom(
                    self.fd.as_raw_fd(),
                    ptr::null_mut(),
                    0,
                    libc::MSG_DONTWAIT,
                    ptr::null_mut(),
                    ptr::null_mut(),
                )
            };
        }
    }

    /// Frames for this socket that the kernel has dropped since this was last asked: for want of a frame, of room in the receive
    /// ring, or too long. What a zero-copy driver drops before that only its own counters tell.
    pub fn new_drops(&mut self) -> u64 {
        let Ok(statistics) = option::<libc::xdp_statistics>(&self.fd, libc::XDP_STATISTICS) else { return 0 };
        // `rx_fill_ring_empty_descs` is left out. In copy mode each of them is in `rx_dropped` as well; in zero-copy mode it
        // counts the driver's attempts to get frames, not packets.
        let now = statistics.rx_dropped + statistics.rx_ring_full;
        now - std::mem::replace(&mut self.drops, now)
    }

    /// Whether there are frames besides those that the last peek found.
    pub fn waiting(&self) -> bool {
        self.received.produced() > self.ready
    }

    pub fn zero_copy(&self) -> bool {
        self.zero_copy
    }
}

impl AsFd for XskSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What the eight bytes in front of a frame say: nanoseconds of the monotonic clock, 0 where the program left none. A time
/// that cannot be is what the memory held before.
fn receive_time(nanoseconds: u64, now: Mono) -> Option<Mono> {
    let at = Mono(nanoseconds);
    (at != Mono(0) && at <= now && now.since(at) <= limits::XDP_TIME_MAX).then_some(at)
}

/// A step of opening a socket that failed.
struct Failed {
    step: &'static str,
    error: io::Error,
}

impl Failed {
    fn at(step: &'static str) -> impl FnOnce(io::Error) -> Failed {
        move |error| Failed { step, error }
    }
}

/// What to do about it.
fn remedy(error: &io::Error, interface: &Interface) -> String {
    let (name, queues) = (&interface.name, interface.rx_queues);
    match error.raw_os_error() {
        Some(libc::EAFNOSUPPORT) => {
            "this kernel is built without CONFIG_XDP_SOCKETS, take another one".into()
        }
        Some(libc::EPERM | libc::EACCES) => "give the process CAP_NET_RAW".into(),
        Some(libc::ENOBUFS) => {
            let mebibytes = (MEMORY * queues as usize).div_ceil(1 << 20);
            format!(
                "raise RLIMIT_MEMLOCK (systemd: LimitMEMLOCK) by {mebibytes} MiB for the queues of {name}, or give CAP_IPC_LOCK"
            )
        }
        Some(libc::ENOMEM) => format!("each queue needs {} MiB of memory", MEMORY >> 20),
        Some(libc::EBUSY) => {
            format!("another program receives from this queue: stop it, or leave out {name}")
        }
        Some(libc::EINVAL) => format!("{name} has {queues} receive queues: see ethtool -l {name}"),
        Some(libc::ENODEV) => format!("{name} is no longer there: see ip link"),
        _ => "receive media through another source".into(),
    }
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no memory.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn register(fd: &OwnedFd, memory: &Mapping) -> io::Result<()> {
    let registration = libc::xdp_umem_reg {
        addr: memory.start() as u64,
        len: memory.len() as u64,
        chunk_size: limits::XDP_FRAME_SIZE,
        headroom: 0,
        flags: 0,
        tx_metadata_len: 0,
    };
    set_option(fd, libc::XDP_UMEM_REG, &registration)
}

/// Fill and receive ring.
fn rings(fd: &OwnedFd) -> io::Result<(Ring<u64>, Ring<libc::xdp_desc>)> {
    set_option(fd, libc::XDP_UMEM_FILL_RING, &limits::XDP_FRAMES)?;
    set_option(fd, libc::XDP_UMEM_COMPLETION_RING, &COMPLETIONS)?;
    set_option(fd, libc::XDP_RX_RING, &limits::XDP_RING)?;
    let offsets: libc::xdp_mmap_offsets = option(fd, libc::XDP_MMAP_OFFSETS)?;
    let fill = libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t;
    Ok((
        Ring::map(fd, fill, &offsets.fr, limits::XDP_FRAMES)?,
        Ring::map(fd, libc::XDP_PGOFF_RX_RING, &offsets.rx, limits::XDP_RING)?,
    ))
}

fn bind_patiently(fd: &OwnedFd, interface: u32, queue: u32) -> io::Result<()> {
    let deadline = cpu::now().mono + limits::BIND_PATIENCE;
    loop {
        match bind_once(fd, interface, queue) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && cpu::now().mono < deadline => {
                std::thread::sleep(limits::BIND_RETRY);
            }
            result => return result,
        }
    }
}

/// Without a flag for either mode the kernel tries zero-copy first.
fn bind_once(fd: &OwnedFd, interface: u32, queue: u32) -> io::Result<()> {
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: libc::XDP_USE_NEED_WAKEUP,
        sxdp_ifindex: interface,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: 0,
    };
    // SAFETY: the address is a local of the size given.
    let result = unsafe {
        libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_xdp>() as u32)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set_option<T>(fd: &OwnedFd, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads at most the size given from a value that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_XDP,
            name,
            ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An option of plain integers.
trait Plain: Copy {}
impl Plain for u32 {}
impl Plain for libc::xdp_statistics {}
impl Plain for libc::xdp_mmap_offsets {}

fn option<T: Plain>(fd: &OwnedFd, name: libc::c_int) -> io::Result<T> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes. Zeroes are a value of integers, and so is whatever it writes.
    unsafe {
        let mut value: T = std::mem::zeroed();
        let result = libc::getsockopt(fd.as_raw_fd(), libc::SOL_XDP, name, (&raw mut value).cast(), &mut len);
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
    }
}

/// A ring shared with the kernel: one side produces, the other consumes. `next` is our side's index, of which the kernel
/// knows what we have published.
struct Ring<T> {
    _memory: Mapping,
    producer: *const AtomicU32,
    consumer: *const AtomicU32,
    flags: *const AtomicU32,
    entries: *mut T,
    mask: u32,
    next: u32,
}

impl<T: Copy> Ring<T> {
    /// `count`: entries, a power of two, as the socket was told.
    fn map(
        fd: &OwnedFd,
        at: libc::off_t,
        offsets: &libc::xdp_ring_offset,
        count: u32,
    ) -> io::Result<Ring<T>> {
        let memory = Mapping::shared(fd, at, offsets.desc as usize + count as usize * size_of::<T>())?;
        let field = |offset: u64| memory.start().wrapping_add(offset as usize);
        Ok(Ring {
            producer: field(offsets.producer).cast(),
            consumer: field(offsets.consumer).cast(),
            flags: field(offsets.flags).cast(),
            entries: field(offsets.desc).cast(),
            mask: count - 1,
            next: 0,
            _memory: memory,
        })
    }

    /// Entries that the kernel has produced and we have not consumed. What it wrote before is seen after this.
    fn produced(&self) -> u32 {
        // SAFETY: the kernel placed this aligned integer inside the mapping, and both sides only use it atomically.
        unsafe { &*self.producer }.load(Ordering::Acquire).wrapping_sub(self.next)
    }

    /// The entry `i` behind our index: one of those `produced`.
    fn entry(&self, i: u32) -> T {
        // SAFETY: the mask keeps the index inside the mapping. `next` is not moved past it before it is consumed, so that
        // the kernel does not write to it meanwhile.
        unsafe { self.entries.add((self.next.wrapping_add(i) & self.mask) as usize).read() }
    }

    /// Hands the first `n` of those produced back. All reads of ours are done when the kernel sees it.
    fn consume(&mut self, n: u32) {
        self.next = self.next.wrapping_add(n);
        // SAFETY: as in `produced`.
        unsafe { &*self.consumer }.store(self.next, Ordering::Release);
    }

    /// Writes the next entry. There is always room: the fill ring has as many entries as there are frames.
    fn put(&mut self, value: T) {
        // SAFETY: the mask keeps the index inside the mapping; the kernel reads the entry only once it is published.
        unsafe { self.entries.add((self.next & self.mask) as usize).write(value) };
        self.next = self.next.wrapping_add(1);
    }

    /// Shows the kernel all entries put so far, and everything that was done before.
    fn publish(&self) {
        // SAFETY: as in `produced`.
        unsafe { &*self.producer }.store(self.next, Ordering::Release);
    }

    fn flags(&self) -> u32 {
        // SAFETY: as in `produced`. The flag is a hint about nothing in memory, so it needs no order.
        unsafe { &*self.flags }.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::bpf::Link;
    use super::super::super::bpf::ports::PortTable;
    use super::super::super::bpf::redirect::{Addresses, Mode, Redirect};
    use super::super::super::interface;
    use super::super::super::namespace::{self, ip};
    use super::*;
    use crate::proto::frame;
    use etherparse::PacketBuilder;
    use std::time::Duration;

    const PORTS: (u16, u16) = (20_000, 20_099);
    /// Frames sent before the receiver is given time: fewer than a veth keeps for its own receiver.
    const BURST: u32 = 100;
    const PATIENCE: Duration = Duration::from_secs(10);

    /// Two ends of a cable: we send frames into `far`, and what arrives at `near` goes to the socket.
    struct Lab {
        sender: OwnedFd,
        socket: XskSocket,
        _link: Link,
        sent: u32,
    }

    impl Lab {
        fn new(mode: Mode) -> Lab {
            let receiver = cable();
            let table = PortTable::new(PORTS).unwrap();
            (PORTS.0..=PORTS.1).for_each(|port| table.set(port, Some(0)).unwrap());
            let addresses = Addresses::new(&interface::addresses().unwrap()).unwrap();
            let redirect = Redirect::load(&table, &addresses, receiver.rx_queues).unwrap();
            let socket = XskSocket::bind(&receiver, 0).unwrap();
            assert!(!socket.zero_copy(), "a veth has no zero-copy");
            redirect.set_socket(0, socket.as_fd()).unwrap();
            let link = redirect.attach(receiver.index, mode).unwrap();
            Lab { sender: sender(Interface::named("far").unwrap().index), socket, _link: link, sent: 0 }
        }

        fn send(&mut self, frames: u32) {
            for _ in 0..frames {
                let frame = numbered(self.sent);
                // SAFETY: the frame is a local of the length given.
                let sent =
                    unsafe { libc::send(self.sender.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
                assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
                self.sent += 1;
            }
        }

        /// Waits until `done` says so.
        #[track_caller]
        fn wait(&mut self, mut done: impl FnMut(&mut XskSocket) -> bool) {
            let deadline = cpu::now().mono + PATIENCE;
            while !done(&mut self.socket) {
                assert!(
                    cpu::now().mono < deadline,
                    "of {} frames some neither came nor were dropped",
                    self.sent
                );
                std::thread::yield_now();
            }
        }

        /// Reads what is ready and gives it back: all as sent, from frame `first` on, and with a plausible time.
        fn read(&mut self, first: u32, begun: Mono) -> u32 {
            let ready = self.socket.peek();
            let now = cpu::now().mono;
            let mut last = begun;
            for i in 0..ready {
                self.socket.prefetch((i + 8).min(ready - 1));
                let Received { bytes, at_mono } = self.socket.frame(i, now);
                assert!(bytes == numbered(first + i as u32), "frame {} is another", first + i as u32);
                let at = at_mono.expect("a veth has room for the time");
                assert!(last <= at, "frame {} came before the one in front", first + i as u32);
                last = at;
                assert_eq!(self.socket.frame(i, now).at_mono, None, "the time is read once");
            }
            self.socket.release();
            ready as u32
        }
    }

    /// Makes both ends. Returns the near one, which has an address.
    fn cable() -> Interface {
        ip("link add far type veth peer name near");
        ip("addr add 10.9.0.2/24 dev near");
        ip("link set far up");
        ip("link set near up");
        Interface::named("near").unwrap()
    }

    fn sender(interface: u32) -> OwnedFd {
        // SAFETY: the call takes no memory, and the descriptor is new. Protocol 0 receives nothing.
        let fd = unsafe { OwnedFd::from_raw_fd(libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0)) };
        // SAFETY: zeroes are an address, which outlives the call and has the size given.
        let result = unsafe {
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_ifindex = interface as i32;
            libc::bind(
                fd.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        fd
    }

    /// A frame like no other: its number, and a length and a port that go with it.
    fn numbered(number: u32) -> Vec<u8> {
        let mut payload = vec![number as u8; 4 + number as usize % 1_400];
        payload[..4].copy_from_slice(&number.to_be_bytes());
        let port = PORTS.0 + (number % 100) as u16;
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0xff; 6])
            .ipv4([10, 9, 0, 1], [10, 9, 0, 2], 64)
            .udp(4_000, port)
            .write(&mut frame, &payload)
            .unwrap();
        frame
    }

    fn all_come(mode: Mode) {
        let mut lab = Lab::new(mode);
        assert!(!lab.socket.waiting());
        let begun = cpu::now().mono;
        let mut read = 0;
        // Both rings wrap. Sometimes more frames wait than one peek shows.
        for bursts in (1..50).cycle() {
            for _ in 0..bursts {
                lab.send(BURST);
                let due = lab.sent - read;
                lab.wait(|socket| socket.received.produced() == due);
            }
            while lab.socket.waiting() {
                read += lab.read(read, begun);
            }
            assert_eq!(read, lab.sent);
            if read > 2 * limits::XDP_FRAMES {
                break;
            }
        }
        assert_eq!((lab.socket.peek(), lab.socket.new_drops()), (0, 0));
    }

    #[test]
    fn all_frames_come_in_order_and_whole_native() {
        namespace::run(|| all_come(Mode::Native));
    }

    #[test]
    fn all_frames_come_in_order_and_whole_generic() {
        namespace::run(|| all_come(Mode::Generic));
    }

    fn overload(mode: Mode) {
        let mut lab = Lab::new(mode);
        let begun = cpu::now().mono;
        let mut dropped = 0;
        for _ in 0..(limits::XDP_RING + 5_000) / BURST {
            lab.send(BURST);
            let sent = u64::from(lab.sent);
            lab.wait(|socket| {
                dropped += socket.new_drops();
                u64::from(socket.received.produced()) + dropped == sent
            });
        }
        assert_eq!(dropped, u64::from(lab.sent - limits::XDP_RING));
        let mut read = 0;
        while lab.socket.waiting() {
            read += lab.read(read, begun);
        }
        assert_eq!(read, limits::XDP_RING, "the oldest are kept");
        // And it goes on.
        let next = lab.sent;
        lab.send(BURST);
        lab.wait(|socket| socket.received.produced() == BURST);
        assert_eq!(lab.read(next, begun), BURST);
        assert_eq!(lab.socket.new_drops(), 0);
    }

    #[test]
    fn what_finds_no_room_is_counted_native() {
        namespace::run(|| overload(Mode::Native));
    }

    #[test]
    fn what_finds_no_room_is_counted_generic() {
        namespace::run(|| overload(Mode::Generic));
    }

    #[test]
    fn frames_come_again_after_the_interface_was_down() {
        namespace::run(|| {
            let mut lab = Lab::new(Mode::Native);
            let begun = cpu::now().mono;
            lab.send(1);
            lab.wait(|socket| socket.waiting());
            ip("link set near down");
            assert_eq!(lab.read(0, begun), 1);
            ip("link set near up");
            lab.send(1);
            lab.wait(|socket| socket.waiting());
            assert_eq!(lab.read(1, begun), 1);
        });
    }

    #[test]
    fn a_frame_is_what_the_frame_reader_takes() {
        namespace::run(|| {
            let mut lab = Lab::new(Mode::Native);
            lab.send(1);
            lab.wait(|socket| socket.waiting());
            assert_eq!(lab.socket.peek(), 1);
            let Received { bytes, .. } = lab.socket.frame(0, cpu::now().mono);
            let datagram = frame::udp(bytes).unwrap();
            assert_eq!(datagram.to, "10.9.0.2:20000".parse().unwrap());
            assert_eq!((datagram.payload, datagram.len), (&[0; 4][..], bytes.len()));
        });
    }

    #[test]
    fn a_queue_has_one_socket_at_a_time() {
        namespace::run(|| {
            let interface = cable();
            let first = XskSocket::bind(&interface, 0).unwrap();
            assert!(!first.zero_copy());
            let Err(error) = XskSocket::bind(&interface, 0) else { panic!("two sockets on one queue") };
            assert!(error.starts_with("no AF_XDP socket on near queue 0: binding it failed"), "{error}");
            assert!(
                error.ends_with("another program receives from this queue: stop it, or leave out near"),
                "{error}"
            );
            drop(first);
            // The kernel clears the queue a little after the descriptor is closed.
            XskSocket::bind(&interface, 0).unwrap();
        });
    }

    #[test]
    fn an_error_says_what_to_do() {
        namespace::run(|| {
            let interface = cable();
            let Err(error) = XskSocket::bind(&interface, 7) else { panic!("there is no such queue") };
            assert!(error.starts_with("no AF_XDP socket on near queue 7: binding it failed"), "{error}");
            assert!(error.ends_with("near has 1 receive queues: see ethtool -l near"), "{error}");
            ip("link del near");
            let Err(error) = XskSocket::bind(&interface, 0) else { panic!("the interface is gone") };
            assert!(error.ends_with("near is no longer there: see ip link"), "{error}");
        });
    }

    #[test]
    fn a_time_that_cannot_be_is_none() {
        let now = Mono(100_000_000_000);
        let oldest = now.0 - limits::XDP_TIME_MAX.as_nanos() as u64;
        for at in [now.0, now.0 - 1, oldest] {
            assert_eq!(receive_time(at, now), Some(Mono(at)));
        }
        for at in [0, now.0 + 1, oldest - 1, u64::MAX] {
            assert_eq!(receive_time(at, now), None);
        }
        // Just after the machine has started, 0 is not long ago.
        assert_eq!(receive_time(0, Mono(5)), None);
    }
}
