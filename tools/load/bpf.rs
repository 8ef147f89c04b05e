//! The bpf(2) system call, as much as the generator needs: array maps, one XDP program, and running it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::program::Instruction;

const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const PROG_TEST_RUN: libc::c_int = 10;
const LINK_CREATE: libc::c_int = 28;
const MAP_TYPE_ARRAY: u32 = 2;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_XDP: u32 = 37;
/// `XDP_FLAGS_SKB_MODE`: leaves the driver as it is.
const GENERIC: u32 = 2;
/// `BPF_F_TEST_XDP_LIVE_FRAMES`: verdicts of the program are carried out.
const LIVE_FRAMES: u32 = 2;
/// Frames that are made before they leave together: a quarter of what a veth takes at once.
const FRAMES_TOGETHER: u32 = 64;
/// Room for what the verifier has to say of a program that it refuses.
const LOG: usize = 64 * 1024;

/// An array in the kernel whose values have `N` bytes, a multiple of eight.
pub struct Array<const N: usize>(OwnedFd);

impl<const N: usize> Array<N> {
    pub fn new(entries: u32) -> io::Result<Array<N>> {
        const { assert!(N.is_multiple_of(8), "the kernel copies whole words") };
        let mut attributes = MapCreate {
            map_type: MAP_TYPE_ARRAY,
            key_size: size_of::<u32>() as u32,
            value_size: N as u32,
            max_entries: entries,
        };
        // SAFETY: the attributes hold no pointer.
        unsafe { descriptor(MAP_CREATE, &mut attributes) }.map(Array)
    }

    pub fn read(&self, index: u32) -> io::Result<[u8; N]> {
        let mut value = [0; N];
        let mut element = self.element(&index, value.as_mut_ptr());
        // SAFETY: key and value have the sizes that the map was made with, and outlive the call.
        unsafe { bpf(MAP_LOOKUP_ELEM, &mut element) }.map(|_| value)
    }

    pub fn write(&self, index: u32, value: &[u8; N]) -> io::Result<()> {
        let mut element = self.element(&index, value.as_ptr());
        // SAFETY: as in `read`; this command only reads the value.
        unsafe { bpf(MAP_UPDATE_ELEM, &mut element) }.map(drop)
    }

    fn element(&self, key: &u32, value: *const u8) -> Element {
        let map = self.0.as_raw_fd() as u32;
        Element { map, key: std::ptr::from_ref(key) as u64, value: value as u64, flags: 0 }
    }
}

impl<const N: usize> AsRawFd for Array<N> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// An XDP program that the kernel has accepted.
pub struct Program(OwnedFd);

impl Program {
    /// A refusal brings the last words of the verifier.
    pub fn load(instructions: &[Instruction]) -> io::Result<Program> {
        let mut attributes = ProgramLoad {
            program_type: PROG_TYPE_XDP,
            instruction_count: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            license: c"Dual MIT/GPL".as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log: 0,
        };
        // SAFETY: instructions (in the kernel's layout) and licence outlive the call, and there is no log.
        let refused = match unsafe { descriptor(PROG_LOAD, &mut attributes) } {
            Ok(program) => return Ok(Program(program)),
            // The verifier was not asked.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => return Err(error),
            Err(error) => error,
        };
        let mut log = vec![0u8; LOG];
        (attributes.log_level, attributes.log_size) = (1, LOG as u32);
        attributes.log = log.as_mut_ptr() as u64;
        // SAFETY: as above, and the log has the room that is stated.
        let _fails_again = unsafe { descriptor(PROG_LOAD, &mut attributes) };
        let log = String::from_utf8_lossy(&log);
        let words: Vec<&str> = log.trim_end_matches('\0').lines().rev().take(3).collect();
        Err(io::Error::new(refused.kind(), format!("{refused} {}", words.join("; "))))
    }

    /// Puts the program on an interface, until what is returned is dropped. A program that is on none is made known to the
    /// kernel's dispatcher, and forgotten, by every run of more than one packet, which then waits for RCU twice: milliseconds.
    pub fn attach(&self, interface: u32) -> io::Result<OwnedFd> {
        let program = self.0.as_raw_fd() as u32;
        let mut attributes = LinkCreate { program, interface, attach_type: ATTACH_XDP, flags: GENERIC };
        // SAFETY: the attributes hold no pointer.
        unsafe { descriptor(LINK_CREATE, &mut attributes) }
    }

    /// Makes so many packets from `frame` and lets them go. An interrupted call has made fewer.
    pub fn run(&self, frame: &[u8], packets: u32) -> io::Result<()> {
        // struct xdp_md: from the first byte to the last, received by no interface.
        let context = [0, frame.len() as u32, 0, 0, 0, 0];
        let mut attributes = TestRun {
            context_size_in: size_of_val(&context) as u32,
            context_in: context.as_ptr() as u64,
            flags: LIVE_FRAMES,
            batch_size: FRAMES_TOGETHER,
            ..self.test_run(frame, packets)
        };
        // SAFETY: frame and context are as long as stated and outlive the call; nothing is written back.
        match unsafe { bpf(PROG_TEST_RUN, &mut attributes) } {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    /// What becomes of `frame`, without letting it go.
    #[cfg(test)]
    pub fn try_once(&self, frame: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = vec![0; frame.len()];
        let mut attributes = TestRun {
            data_size_out: out.len() as u32,
            data_out: out.as_mut_ptr() as u64,
            ..self.test_run(frame, 1)
        };
        // SAFETY: the frame and what it becomes have equal lengths, as stated, and outlive the call.
        unsafe { bpf(PROG_TEST_RUN, &mut attributes) }?;
        Ok(out)
    }

    fn test_run(&self, frame: &[u8], repeat: u32) -> TestRun {
        TestRun {
            program: self.0.as_raw_fd() as u32,
            data_size_in: frame.len() as u32,
            data_in: frame.as_ptr() as u64,
            repeat,
            ..TestRun::default()
        }
    }
}

// The parts of `union bpf_attr`, by command; what is left out at their end is 0 to the kernel.

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

#[repr(C, align(8))]
struct Element {
    map: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    verdict: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    _padding: u32,
}

/// # Safety
/// The attributes are those of the command, which makes a descriptor.
unsafe fn descriptor<A>(command: libc::c_int, attributes: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let descriptor = unsafe { bpf(command, attributes) }?;
    // SAFETY: it is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// # Safety
/// The attributes are those of the command, and what they point to is as large as they say.
unsafe fn bpf<A>(command: libc::c_int, attributes: &mut A) -> io::Result<RawFd> {
    let attributes = std::ptr::from_mut(attributes);
    // SAFETY: the caller's promise; the kernel reads and writes no more bytes than a value has.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::answer::Destination;
    use crate::load::codec::Audio;
    use crate::load::media::{Figures, Order, Progress};
    use crate::load::plan::{Plan, tests::plan};
    use crate::load::program::{Entry, Frame, Path, State};
    use crate::load::rtp;
    use crate::load::template::Source;
    use crate::load::verify::frames;
    use crate::load::wire::PACKET_MAX;
    use crate::load::xdp::{self, Gate};
    use std::io::Read;
    use std::net::{IpAddr, SocketAddr};
    use std::process::Command;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    const STREAMS: u32 = 3;

    fn tagged() -> Plan {
        let unimpaired = Plan { loss_ppm: 0, reorder_ppm: 0, duplicate_ppm: 0, ..plan() };
        Plan { audio: Audio::Tagged, sender_reports: false, streams: STREAMS, ..unimpaired }
    }

    fn addresses() -> [(IpAddr, IpAddr); 2] {
        [("10.9.8.1", "10.9.8.2"), ("fd98::1", "fd98::2")]
            .map(|(a, b)| (a.parse().unwrap(), b.parse().unwrap()))
    }

    /// The packet as the rest of the tool knows it.
    fn expected(plan: &Plan, call: u32, stream: u32, index: u32) -> Vec<u8> {
        let mut packet = vec![0; PACKET_MAX];
        let len = rtp::packet(plan, &plan.stream(call, stream), index, &mut packet);
        packet.truncate(len);
        packet
    }

    /// What a failure for want of a privilege or a program means: the test is over, or has failed.
    fn skip(why: &io::Error) {
        let wanting = why.raw_os_error() == Some(libc::EPERM) || why.kind() == io::ErrorKind::NotFound;
        assert!(wanting, "{why}");
        let required = std::env::var("SIPREEL_REQUIRE_PEERS").is_ok_and(|value| value == "1");
        assert!(!required, "{why}");
        eprintln!("skipped: {why}");
    }

    /// All streams of one call, with the turn that is next.
    fn kernel(plan: &Plan, frame: &Frame, turn: u32) -> io::Result<(Program, Array<{ State::SIZE }>)> {
        let (entries, state) = (Array::<{ size_of::<Entry>() }>::new(STREAMS)?, Array::new(1)?);
        for n in 0..STREAMS {
            let port = 20_000 + 2 * n as u16;
            entries.write(n, &frame.entry(&plan.stream(1, n), 40_000 + 2 * n as u16, port))?;
        }
        let mut bytes = [0; State::SIZE];
        bytes[4..8].copy_from_slice(&turn.to_ne_bytes());
        state.write(0, &bytes)?;
        // The program keeps the array of entries.
        let program = Program::load(&frame.program(STREAMS, entries.as_raw_fd(), state.as_raw_fd()))?;
        Ok((program, state))
    }

    /// Two turns of every stream from `turn` on.
    fn check_turns(plan: &Plan, (from, to): (IpAddr, IpAddr), turn: u32) -> io::Result<()> {
        let path = Path {
            from,
            to,
            from_ethernet: [2, 0, 0, 0, 0, 1],
            to_ethernet: [2, 0, 0, 0, 0, 2],
            interface: 1,
        };
        let frame = Frame::new(plan, path);
        let (program, state) = kernel(plan, &frame, turn)?;
        let mut bytes = frame.bytes.clone();
        for made in 0..2 * STREAMS {
            // A receiver may leave anything in the headers.
            bytes[..60].fill(0xa5);
            bytes = program.try_once(&bytes)?;
            let (stream, index) = (made % STREAMS, turn + made / STREAMS);
            let parsed = frames::Frame::parse(&bytes).unwrap();
            let port = |base| base + 2 * stream as u16;
            assert_eq!(parsed.from, SocketAddr::new(from, port(40_000)));
            assert_eq!(parsed.to, SocketAddr::new(to, port(20_000)));
            assert_eq!(parsed.payload, expected(plan, 1, stream, index), "stream {stream}, turn {index}");
            assert_eq!(bytes[..12], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
        }
        let end = State { stream: 0, turn: turn + 2, made: u64::from(2 * STREAMS) };
        assert_eq!(State::read(&state.read(0)?), end);
        Ok(())
    }

    #[test]
    fn the_kernel_makes_the_packets_that_the_plan_says() {
        let plan = tagged();
        // The first of all; around the wrap of each stream's sequence number; far on.
        let wraps = (0..STREAMS).map(|n| u32::from(u16::MAX - plan.stream(1, n).first_seq));
        let turns: Vec<u32> = wraps.chain([0, 7, 70_000, 3_000_000]).collect();
        for both in addresses() {
            for turn in &turns {
                if let Err(error) = check_turns(&plan, both, *turn) {
                    return skip(&error);
                }
            }
        }
    }

    #[test]
    fn a_frame_that_is_short_makes_no_packet() {
        let plan = tagged();
        let (from, to) = addresses()[0];
        let path = Path { from, to, from_ethernet: [0; 6], to_ethernet: [0; 6], interface: 1 };
        let frame = Frame::new(&plan, path);
        let (program, state) = match kernel(&plan, &frame, 0) {
            Ok(kernel) => kernel,
            Err(error) => return skip(&error),
        };
        let short = &frame.bytes[..frame.bytes.len() - 1];
        assert_eq!(program.try_once(short).unwrap(), short);
        assert_eq!(State::read(&state.read(0).unwrap()), State::default());
    }

    /// Puts this thread, and what it starts, into a network of its own, which ends with it.
    fn private_network() -> io::Result<()> {
        // SAFETY: unshare changes only the calling thread.
        let failed = unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0;
        if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// A veth pair whose far end answers nothing and takes all.
    fn veth() -> io::Result<()> {
        private_network()?;
        for line in [
            "ip link add near type veth peer name far",
            "ip link set far address 02:00:00:00:00:02",
            "ip link set near up",
            "ip link set far up",
            "ip addr add 10.9.8.1/24 dev near",
            "ip addr add fd98::1/64 dev near nodad",
            "ip neigh add 10.9.8.2 lladdr 02:00:00:00:00:02 dev near",
            "ip neigh add fd98::2 lladdr 02:00:00:00:00:02 dev near",
            "ethtool -K far gro on",
        ] {
            let mut words = line.split(' ');
            let status = Command::new(words.next().unwrap()).args(words).status()?;
            assert!(status.success(), "{line}: {status}");
        }
        Ok(())
    }

    /// Everything that comes in on any interface from now on.
    fn listen() -> socket2::Socket {
        let all = socket2::Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
        let socket = socket2::Socket::new(socket2::Domain::PACKET, socket2::Type::RAW, Some(all)).unwrap();
        socket.set_recv_buffer_size(8 << 20).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    }

    /// Two calls, one of which is told to stop before the end.
    fn play(plan: &Plan, (from, to): (IpAddr, IpAddr)) -> io::Result<(Figures, Vec<Vec<u32>>)> {
        let source = |n: u16| [40_000 + 2 * n, 40_001 + 2 * n].map(|port| SocketAddr::new(from, port));
        let sources: Vec<Source> = (0..6).map(source).map(|[rtp, rtcp]| Source { rtp, rtcp }).collect();
        let (orders, asked) = crossbeam::channel::unbounded();
        for call in 0..2u32 {
            let to = |n| SocketAddr::new(to, 20_000 + 2 * (3 * call as u16 + n));
            let streams = (0..3).map(|n| Destination { rtp: to(n), rtcp: to(n) }).collect();
            orders.send(Order::Start { call, first_source: 3 * call as usize, streams }).unwrap();
        }
        orders.send(Order::Settled).unwrap();
        let progress = Arc::new(Progress::default());
        let (stopper, sent) = (orders.clone(), progress.clone());
        std::thread::spawn(move || {
            while sent.sent.load(Ordering::Relaxed) < 60 && Arc::strong_count(&sent) > 1 {
                std::thread::sleep(Duration::from_millis(1));
            }
            (0..2).for_each(|_| drop(stopper.send(Order::Stop { call: 1 })));
        });
        let mut turns = vec![Vec::new(); 2];
        let finished = |done: crate::load::media::Finished| {
            turns[done.call as usize] = done.turns;
            if done.call == 1 {
                orders.send(Order::Quit).unwrap();
            }
        };
        let figures = xdp::run(plan, &sources, Gate::open("near")?, &asked, &progress, finished)?;
        Ok((figures, turns))
    }

    fn play_and_compare(plan: &Plan, both: (IpAddr, IpAddr)) -> io::Result<()> {
        let mut listener = listen();
        let (figures, turns) = play(plan, both)?;
        assert_eq!(turns[0], [plan.turns; 3]);
        assert!(turns[1].iter().all(|turns| (10..plan.turns).contains(turns)), "{turns:?}");
        let mut next = [0u32; 6];
        let mut bytes = [0; 2_048];
        while let Ok(len) = listener.read(&mut bytes) {
            let Ok(frame) = frames::Frame::parse(&bytes[..len]) else { continue };
            if !(20_000..20_012).contains(&frame.to.port()) {
                continue;
            }
            let at = (frame.to.port() - 20_000) / 2;
            let (call, stream) = (u32::from(at / 3), u32::from(at % 3));
            assert_eq!((frame.from.ip(), frame.to.ip()), both);
            assert_eq!(frame.payload, expected(plan, call, stream, next[usize::from(at)]));
            next[usize::from(at)] += 1;
        }
        assert_eq!(next.to_vec(), turns.concat());
        assert_eq!(figures.sent, u64::from(next.iter().sum::<u32>()));
        assert_eq!(figures.interface_dropped, Some(0));
        assert!(figures.interface_sent.unwrap() >= figures.sent);
        Ok(())
    }

    #[test]
    fn live_frames_arrive_at_the_other_end_of_a_veth() {
        let inside = || -> io::Result<()> {
            veth()?;
            let plan = Plan { turns: 200, ptime_ms: 5, ..tagged() };
            addresses().into_iter().try_for_each(|both| play_and_compare(&plan, both))
        };
        if let Err(error) = std::thread::spawn(inside).join().unwrap() {
            skip(&error);
        }
    }

    #[test]
    fn an_address_that_nobody_has_is_an_error_and_no_flood() {
        let inside = || -> io::Result<Option<String>> {
            veth()?;
            let nobody = ("10.9.8.1".parse().unwrap(), "10.9.8.77".parse().unwrap());
            Ok(play(&tagged(), nobody).err().map(|error| error.to_string()))
        };
        match std::thread::spawn(inside).join().unwrap() {
            Ok(said) => assert!(said.unwrap().starts_with("10.9.8.77 cannot be reached through near")),
            Err(error) => skip(&error),
        }
    }
}
