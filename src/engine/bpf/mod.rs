//! BPF programs that bring media to us, as arrays of instructions loaded with bpf(2): nothing is compiled, nothing is left
//! behind. Maps, programs and links are descriptors, so that the kernel detaches them when we end, after a crash too.
//!
//! Making maps and loading takes CAP_BPF and CAP_NET_ADMIN, and no other capability; what is there may be attached and changed
//! without them.

pub mod insn;
pub mod ports;
pub mod redirect;
pub mod steer;

use std::ffi::{CStr, c_int};
use std::fs::File;
use std::io;
use std::marker::PhantomData;
#[cfg(test)]
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::limits;
use insn::Insn;

// linux/bpf.h, enum bpf_cmd.
const MAP_CREATE: c_int = 0;
#[cfg(test)]
const MAP_LOOKUP: c_int = 1;
const MAP_UPDATE: c_int = 2;
const MAP_DELETE: c_int = 3;
const PROG_LOAD: c_int = 5;
#[cfg(test)]
const PROG_TEST_RUN: c_int = 10;
const PROG_QUERY: c_int = 16;
const LINK_CREATE: c_int = 28;

/// The conditions under which a program may call the helpers that the kernel keeps for GPL programs: ours calls none.
const LICENCE: &CStr = c"MIT";

/// Makes the system call; what it returns is a descriptor for the commands that make one, else 0.
///
/// # Safety
/// `attributes` must have the layout that the kernel expects for the command, without padding, and its pointers must be
/// valid for what the command does with them.
unsafe fn bpf<A>(command: c_int, attributes: &mut A) -> io::Result<c_int> {
    // SAFETY: the caller vouches for the attributes; their size is given, and the kernel stays within it.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<A>() as libc::c_uint)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as c_int) }
}

/// What a refused command needs, as far as the error tells.
fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => ": it takes CAP_BPF and CAP_NET_ADMIN",
        Some(libc::ENOSYS) => ": the kernel has no bpf(2)",
        _ => "",
    }
}

/// An object's name for those who list them, cut to what the kernel takes.
fn object_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    bytes
}

/// A value that the kernel may read and write byte by byte.
///
/// # Safety
/// Every pattern of bytes is a value of the type, and it has no padding.
pub unsafe trait Plain: Copy {}
// SAFETY: integers and arrays of them.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl<const N: usize> Plain for [u8; N] {}

/// linux/bpf.h, enum bpf_map_type.
#[derive(Clone, Copy, Debug)]
pub enum MapKind {
    /// Keys are `[u8; N]` or integers.
    Hash = 1,
    /// Keys are `u32` indices; every value exists and begins as zeroes.
    Array = 2,
    /// Bound sockets by `u32`; values are `u64`: a descriptor when set, a socket cookie when looked up. A socket that is
    /// closed leaves by itself.
    SockMap = 15,
    /// AF_XDP sockets by `u32`; values are `u32` descriptors and cannot be looked up. A closed socket leaves by itself.
    XskMap = 17,
}

/// A map that programs and we share.
pub struct Map<K, V> {
    fd: OwnedFd,
    types: PhantomData<(K, V)>,
}

#[repr(C)]
struct MapAttributes {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; 16],
}

#[repr(C)]
struct ElementAttributes {
    map: u32,
    zero: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl<K: Plain, V: Plain> Map<K, V> {
    /// A map of at most `entries` values.
    pub fn new(kind: MapKind, name: &str, entries: u32) -> Result<Map<K, V>, String> {
        let mut attributes = MapAttributes {
            kind: kind as u32,
            key_size: size_of::<K>() as u32,
            value_size: size_of::<V>() as u32,
            entries,
            flags: 0,
            inner_map: 0,
            numa_node: 0,
            name: object_name(name),
        };
        // SAFETY: the attributes are those of BPF_MAP_CREATE and hold no pointer.
        let fd = unsafe { bpf(MAP_CREATE, &mut attributes) }.map_err(|e| {
            format!("creating the BPF map {name} of {entries} entries failed ({e}){}", remedy(&e))
        })?;
        // SAFETY: the call has just made this descriptor (close-on-exec), and nobody else knows it.
        Ok(Map { fd: unsafe { OwnedFd::from_raw_fd(fd) }, types: PhantomData })
    }

    /// Adds or replaces.
    pub fn set(&self, key: K, value: V) -> io::Result<()> {
        self.element(MAP_UPDATE, &key, (&raw const value).cast_mut())
    }

    /// Takes out; an entry that is not there is `NotFound`.
    pub fn delete(&self, key: K) -> io::Result<()> {
        self.element(MAP_DELETE, &key, std::ptr::null_mut())
    }

    /// The value, if the key has one.
    #[cfg(test)]
    pub fn lookup(&self, key: K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::zeroed();
        match self.element(MAP_LOOKUP, &key, value.as_mut_ptr()) {
            // SAFETY: every pattern of bytes is a V.
            Ok(()) => Ok(Some(unsafe { value.assume_init() })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn element(&self, command: c_int, key: &K, value: *mut V) -> io::Result<()> {
        let mut attributes = ElementAttributes {
            map: self.fd.as_raw_fd() as u32,
            zero: 0,
            key: std::ptr::from_ref(key) as u64,
            value: value as u64,
            flags: 0,
        };
        // SAFETY: key and value live until the call returns and have the sizes that the map was created with; only a
        // lookup writes to the value, and that caller's is writable.
        unsafe { bpf(command, &mut attributes) }.map(|_| ())
    }
}

impl<K, V> AsFd for Map<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What a program is run by; linux/bpf.h, enum bpf_prog_type and enum bpf_attach_type.
#[derive(Clone, Copy, Debug)]
pub enum ProgramKind {
    Xdp,
    SkLookup,
}

impl ProgramKind {
    const fn program_type(self) -> u32 {
        match self {
            ProgramKind::Xdp => 6,
            ProgramKind::SkLookup => 30,
        }
    }

    const fn attach_type(self) -> u32 {
        match self {
            ProgramKind::SkLookup => 36,
            ProgramKind::Xdp => 37,
        }
    }
}

/// A program that the verifier has accepted. It keeps the maps that it uses.
pub struct Program {
    fd: OwnedFd,
    kind: ProgramKind,
}

/// Why a program was not loaded.
#[derive(Debug)]
pub struct Refusal {
    pub error: io::Error,
    /// The end of what the verifier wrote, empty when it was not asked.
    pub log: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.error, remedy(&self.error))?;
        if self.log.is_empty() { Ok(()) } else { write!(f, "; the verifier says: {}", self.log) }
    }
}

#[repr(C)]
struct ProgramAttributes {
    program_type: u32,
    instructions: u32,
    program: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

impl Program {
    /// Loads; if that fails, once more to hear why.
    pub fn load(kind: ProgramKind, name: &str, program: &[Insn]) -> Result<Program, Refusal> {
        load(kind, name, program, &mut []).map(|fd| Program { fd, kind }).map_err(|error| {
            let mut log = vec![0; limits::BPF_LOG_SIZE];
            let _ = load(kind, name, program, &mut log);
            Refusal { error, log: tail(&log) }
        })
    }

    /// A program that changes nothing, wherever it is attached: both kinds have a verdict for that.
    pub fn pass(kind: ProgramKind) -> io::Result<Program> {
        let verdict = match kind {
            ProgramKind::Xdp => redirect::XDP_PASS,
            ProgramKind::SkLookup => steer::SK_PASS,
        };
        let program = insn::assemble(&[insn::set(insn::Register::R0, verdict), insn::exit()]);
        Program::load(kind, "sipreel_pass", &program).map_err(|refusal| refusal.error)
    }
}

#[cfg(test)]
#[repr(C)]
struct TestAttributes {
    program: u32,
    verdict: u32,
    data_in_size: u32,
    data_out_size: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_in_size: u32,
    context_out_size: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    core: u32,
    batch_size: u32,
    zero: u32,
}

#[cfg(test)]
impl Program {
    /// Runs once, on a frame (at least an Ethernet header) or on a context, which it may change. Returns the verdict and the
    /// frame as the program left it, with what it put in front. A redirection is a verdict and nothing more.
    pub fn test_run(&self, frame: &[u8], context: &mut [u8]) -> io::Result<(u32, Vec<u8>)> {
        let mut out = vec![0; if frame.is_empty() { 0 } else { frame.len() + 256 }];
        let pointer = |bytes: *const u8, len| if len == 0 { 0 } else { bytes as u64 };
        let mut attributes = TestAttributes {
            program: self.fd.as_raw_fd() as u32,
            verdict: 0,
            data_in_size: frame.len() as u32,
            data_out_size: out.len() as u32,
            data_in: pointer(frame.as_ptr(), frame.len()),
            data_out: pointer(out.as_mut_ptr(), out.len()),
            repeat: 1,
            duration: 0,
            context_in_size: context.len() as u32,
            context_out_size: context.len() as u32,
            context_in: pointer(context.as_mut_ptr(), context.len()),
            context_out: pointer(context.as_mut_ptr(), context.len()),
            flags: 0,
            core: 0,
            batch_size: 0,
            zero: 0,
        };
        // SAFETY: frame, context and the room for what comes out live until the call returns, with the sizes given.
        unsafe { bpf(PROG_TEST_RUN, &mut attributes)? };
        out.truncate(attributes.data_out_size as usize);
        Ok((attributes.verdict, out))
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn load(kind: ProgramKind, name: &str, program: &[Insn], log: &mut [u8]) -> io::Result<OwnedFd> {
    let mut attributes = ProgramAttributes {
        program_type: kind.program_type(),
        instructions: program.len() as u32,
        program: program.as_ptr() as u64,
        licence: LICENCE.as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: log.len() as u32,
        log: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
        kernel_version: 0,
        flags: 0,
        name: object_name(name),
        interface: 0,
        attach_type: kind.attach_type(),
    };
    // SAFETY: instructions, licence and log live until the call returns, with the lengths given.
    let fd = unsafe { bpf(PROG_LOAD, &mut attributes)? };
    // SAFETY: the call has just made this descriptor (close-on-exec), and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The last bytes of the verifier's log up to its end, in one line.
fn tail(log: &[u8]) -> String {
    let text = &log[..log.iter().position(|&b| b == 0).unwrap_or(log.len())];
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(limits::BPF_LOG_TAIL)..]);
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" | ")
}

/// An attached program. Dropping it detaches, and so does the end of the process.
#[derive(Debug)]
pub struct Link {
    _fd: OwnedFd,
}

#[repr(C)]
struct LinkAttributes {
    program: u32,
    /// A descriptor of a network namespace, or the index of an interface.
    target: u32,
    attach_type: u32,
    flags: u32,
}

impl Link {
    /// Attaches an sk_lookup program to the network namespace of the calling thread.
    pub fn to_namespace(program: &Program) -> io::Result<Link> {
        Link::new(program, namespace()?.as_raw_fd() as u32, 0)
    }

    /// Attaches an XDP program to an interface of the calling thread's network namespace.
    pub fn to_interface(program: &Program, ifindex: u32, mode: redirect::Mode) -> io::Result<Link> {
        Link::new(program, ifindex, mode as u32)
    }

    fn new(program: &Program, target: u32, flags: u32) -> io::Result<Link> {
        let attach_type = program.kind.attach_type();
        let program = program.fd.as_raw_fd() as u32;
        let mut attributes = LinkAttributes { program, target, attach_type, flags };
        // SAFETY: the attributes are those of BPF_LINK_CREATE and hold no pointer.
        let fd = unsafe { bpf(LINK_CREATE, &mut attributes)? };
        // SAFETY: the call has just made this descriptor (close-on-exec), and nobody else knows it.
        Ok(Link { _fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }
}

/// The network namespace of the calling thread.
fn namespace() -> io::Result<File> {
    File::open("/proc/thread-self/ns/net")
}

#[repr(C)]
struct QueryAttributes {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    zero: u32,
}

/// Ids of the sk_lookup programs of the calling thread's network namespace, in the order in which they run. Asked before
/// ours is attached, they are other people's.
pub fn attached() -> io::Result<Vec<u32>> {
    let namespace = namespace()?;
    let mut ids = [0_u32; limits::SK_LOOKUP_PROGRAMS_MAX];
    let mut attributes = QueryAttributes {
        target: namespace.as_raw_fd() as u32,
        attach_type: ProgramKind::SkLookup.attach_type(),
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        zero: 0,
    };
    // SAFETY: the kernel writes at most `count` ids, which is the array's length; it lives until the call returns.
    unsafe { bpf(PROG_QUERY, &mut attributes)? };
    Ok(ids[..(attributes.count as usize).min(ids.len())].to_vec())
}

#[cfg(test)]
mod tests {
    use super::super::namespace::{self, NEEDED};
    use super::insn::Register::{R0, R1};
    use super::insn::{assemble, exit, load32, set};
    use super::*;
    use crate::engine::capability::{granted, keep_only};

    #[test]
    fn maps_keep_what_is_set() {
        if !granted(&NEEDED) {
            return;
        }
        let hash = Map::<[u8; 16], u32>::new(MapKind::Hash, "sipreel_test", 2).unwrap();
        let (a, b, c) = ([1; 16], [2; 16], [3; 16]);
        hash.set(a, 10).unwrap();
        hash.set(a, 11).unwrap();
        hash.set(b, 20).unwrap();
        assert_eq!((hash.lookup(a).unwrap(), hash.lookup(c).unwrap()), (Some(11), None));
        assert!(hash.set(c, 30).is_err(), "a third of two entries");
        hash.delete(a).unwrap();
        assert_eq!(hash.delete(a).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!((hash.lookup(a).unwrap(), hash.lookup(b).unwrap()), (None, Some(20)));
        let array = Map::<u32, u32>::new(MapKind::Array, "a name that is longer than any", 2).err();
        assert!(array.unwrap().contains("a name"), "blanks are refused");
        let array = Map::<u32, u64>::new(MapKind::Array, "sipreel_longer_than_15", 2).unwrap();
        assert_eq!(array.lookup(1).unwrap(), Some(0));
        assert!(array.set(2, 1).is_err(), "beyond its end");
    }

    #[test]
    fn a_refused_program_comes_with_the_reason() {
        if !granted(&NEEDED) {
            return;
        }
        let beyond_the_context = assemble(&[load32(R0, R1, 4_000), exit()]);
        let refusal = Program::load(ProgramKind::Xdp, "sipreel_test", &beyond_the_context).err().unwrap();
        assert_eq!(refusal.error.raw_os_error(), Some(libc::EACCES));
        assert!(refusal.log.contains("invalid bpf_context access"), "{}", refusal.log);
        assert!(refusal.to_string().contains(&refusal.log) && !refusal.log.contains('\n'));
    }

    #[test]
    fn a_long_log_is_cut_at_its_beginning() {
        let mut log = vec![b'x'; 10_000];
        log.extend(b"\nthe reason\n\0\0\0");
        let tail = tail(&log);
        assert!(tail.ends_with("x | the reason") && tail.len() <= limits::BPF_LOG_TAIL + 2, "{tail}");
    }

    #[test]
    fn without_capabilities_the_error_names_them() {
        let thread = std::thread::spawn(|| {
            keep_only(&[]).unwrap();
            let map = Map::<u32, u32>::new(MapKind::SockMap, "sipreel_test", 1).err().unwrap();
            let program = Program::load(ProgramKind::Xdp, "sipreel_test", &assemble(&[set(R0, 2), exit()]));
            (map, program.err().unwrap().to_string())
        });
        let (map, program) = thread.join().unwrap();
        assert!(map.contains("CAP_BPF") && program.contains("CAP_BPF"), "{map}\n{program}");
    }

    #[test]
    fn a_dropped_link_is_detached() {
        namespace::run(|| {
            assert!(attached().unwrap().is_empty());
            let pass = assemble(&[set(R0, 1), exit()]);
            let program = Program::load(ProgramKind::SkLookup, "sipreel_test", &pass).unwrap();
            let links = [Link::to_namespace(&program).unwrap(), Link::to_namespace(&program).unwrap()];
            let ids = attached().unwrap();
            assert!(ids.len() == 2 && ids[0] > 0 && ids[0] == ids[1], "{ids:?}");
            drop(program);
            assert_eq!(attached().unwrap().len(), 2, "a link keeps its program");
            drop(links);
            assert!(attached().unwrap().is_empty());
        });
    }
}
