//! The BPF program of `--engine xdp`: it makes the next packet of the load from a frame that has the right length. Instructions
//! are an array (RFC 9669); pure, nothing is loaded here.
//!
//! Streams take turns: packet 0 of every stream, then packet 1 of every stream. The program writes every byte that differs between
//! packets, and all headers, since a frame comes back to it the way its last receiver left it.

use std::net::IpAddr;

use super::plan::{PAYLOAD_MAX, Plan, StreamPlan, TAG};
use super::rtp;

/// Ethernet addresses and IP addresses that all packets of a run share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    pub from: IpAddr,
    pub to: IpAddr,
    pub from_ethernet: [u8; 6],
    pub to_ethernet: [u8; 6],
    /// Index of the interface that packets leave through.
    pub interface: u32,
}

/// What the program keeps between packets: the stream that is next, its turn, packets made so far; all little- or big-endian as
/// the machine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub stream: u32,
    pub turn: u32,
    pub made: u64,
}

impl State {
    pub const SIZE: usize = 16;

    pub fn read(bytes: &[u8; State::SIZE]) -> State {
        let [a, b, c, d, e, f, g, h, made @ ..] = *bytes;
        State {
            stream: u32::from_ne_bytes([a, b, c, d]),
            turn: u32::from_ne_bytes([e, f, g, h]),
            made: u64::from_ne_bytes(made),
        }
    }
}

/// One stream as its entry of the array map has it.
pub type Entry = [u8; ENTRY];
const ENTRY: usize = 32;
// Where its fields are.
const TAG_KEY: i16 = 0;
/// Source and destination port as they are in the packet; 0: the stream has stopped.
const PORTS: i16 = 8;
const SSRC: i16 = 12;
const FIRST_TIMESTAMP: i16 = 16;
/// Sum of all 16-bit words that never change, with those of the pseudo header.
const SUM: i16 = 20;
const FIRST_SEQ: i16 = 24;

/// Entry of a stream that sends nothing.
pub const SILENT: Entry = [0; ENTRY];

const UDP: usize = 8;
const HOP_LIMIT: u8 = 64;
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
/// Where frames that the generator makes seem to come from: the loopback interface of its network namespace.
const MADE_HERE: i32 = 1;
/// bpf_map_lookup_elem, bpf_redirect.
const LOOKUP: i32 = 1;
const REDIRECT: i32 = 23;

/// The frame that all packets of a run begin as.
pub struct Frame {
    pub path: Path,
    pub bytes: Vec<u8>,
    /// Offset of the UDP header.
    udp: usize,
    payload_type: u8,
    step: u32,
}

impl Frame {
    pub fn new(plan: &Plan, path: Path) -> Frame {
        let mut payload = [0; PAYLOAD_MAX];
        // Any packet of any stream: its tag is overwritten, what follows is the same in all.
        let len = plan.payload(&plan.stream(0, 0), 0, &mut payload);
        let mut bytes = [path.to_ethernet, path.from_ethernet].concat();
        let datagram = (UDP + rtp::HEADER + len) as u16;
        match (path.from, path.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ipv4(&mut bytes, from.octets(), to.octets(), datagram),
            (from, to) => ipv6(&mut bytes, octets(from), octets(to), datagram),
        }
        let udp = bytes.len();
        bytes.extend([0; 4]);
        bytes.extend(datagram.to_be_bytes());
        bytes.extend([0; 2]);
        bytes.extend([0x80, plan.codec.payload_type()]);
        bytes.extend([0; rtp::HEADER - 2]);
        bytes.extend(&payload[..len]);
        Frame { path, bytes, udp, payload_type: plan.codec.payload_type(), step: plan.timestamp_step() }
    }

    /// What the program has to know of one stream.
    pub fn entry(&self, stream: &StreamPlan, from_port: u16, to_port: u16) -> Entry {
        let mut entry = SILENT;
        let mut put = |at: i16, bytes: &[u8]| entry[at as usize..][..bytes.len()].copy_from_slice(bytes);
        put(TAG_KEY, &stream.tag_key().to_ne_bytes());
        put(PORTS, &from_port.to_be_bytes());
        put(PORTS + 2, &to_port.to_be_bytes());
        put(SSRC, &stream.ssrc.to_be_bytes());
        put(FIRST_TIMESTAMP, &stream.first_timestamp.to_ne_bytes());
        put(FIRST_SEQ, &stream.first_seq.to_ne_bytes());
        let own = [from_port.to_be_bytes(), to_port.to_be_bytes()].concat();
        let sum = self.constant_sum() + sum(&own) + sum(&stream.ssrc.to_be_bytes());
        put(SUM, &fold(sum).to_ne_bytes());
        entry
    }

    /// Of the pseudo header and of all that is the same in every packet. The two halves of a tag add up to nothing.
    fn constant_sum(&self) -> u64 {
        let datagram = &self.bytes[self.udp..];
        let (headers, payload) = datagram.split_at(UDP + rtp::HEADER);
        let addresses = sum(&octets(self.path.from)) + sum(&octets(self.path.to));
        let pseudo = [(datagram.len() as u16).to_be_bytes(), [0, 17]].concat();
        addresses + sum(&pseudo) + sum(headers) + sum(&payload[TAG..])
    }

    /// `streams`: how many take turns; the descriptors are those of the array of entries and of the array with the one [`State`].
    /// The last instructions are the way out for frames that are not sent.
    pub fn program(&self, streams: u32, entries: i32, state: i32) -> Vec<Instruction> {
        let mut code = Code::default();
        code.pass_what_was_received();
        code.check_length(self.bytes.len() as i32);
        code.take_turn(streams, state);
        code.look_up(entries);
        code.write_constants(&self.bytes, self.udp);
        let rtp = (self.udp + UDP) as i16;
        code.write_rtp(rtp, self.payload_type, self.step);
        if self.path.to.is_ipv6() {
            code.write_checksum(self.udp as i16 + 6, self.payload_type);
        }
        code.write_tag(rtp + rtp::HEADER as i16);
        code.send(self.path.interface as i32);
        code.finish()
    }
}

fn ipv4(bytes: &mut Vec<u8>, from: [u8; 4], to: [u8; 4], datagram: u16) {
    let mut header = [0u8; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&(20 + datagram).to_be_bytes());
    // Don't fragment: RFC 6864 then lets all have identification 0.
    header[6] = 0x40;
    header[8] = HOP_LIMIT;
    header[9] = 17;
    header[12..16].copy_from_slice(&from);
    header[16..20].copy_from_slice(&to);
    let checksum = !fold(sum(&header)) as u16;
    header[10..12].copy_from_slice(&checksum.to_ne_bytes());
    bytes.extend([8, 0]);
    bytes.extend(header);
}

fn ipv6(bytes: &mut Vec<u8>, from: Vec<u8>, to: Vec<u8>, datagram: u16) {
    bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    bytes.extend(datagram.to_be_bytes());
    bytes.extend([17, HOP_LIMIT]);
    bytes.extend(from);
    bytes.extend(to);
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Of 16-bit words as they lie in memory: a ones' complement sum does not mind the byte order (RFC 1071 §2 (B)).
fn sum(bytes: &[u8]) -> u64 {
    bytes.as_chunks::<2>().0.iter().map(|pair| u64::from(u16::from_ne_bytes(*pair))).sum()
}

/// Into 16 bits.
fn fold(mut sum: u64) -> u32 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u32
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    /// The frame's first byte, from here on kept over calls.
    Frame = 6,
    State,
    Entry,
    Turn,
    Stack,
}
use Register::{R0, R1, R2, R3, R4};

/// Width of a load or store, as the instruction encodes it.
#[derive(Clone, Copy)]
enum Width {
    Word = 0x00,
    Half = 0x08,
    Double = 0x18,
}
use Width::{Double, Half, Word};

/// 64-bit arithmetic, as the instruction encodes it.
#[derive(Clone, Copy)]
enum Alu {
    Add = 0x00,
    Mul = 0x20,
    And = 0x50,
    ShiftRight = 0x70,
    Xor = 0xa0,
    Move = 0xb0,
}

#[derive(Clone, Copy)]
enum Jump {
    Equal = 0x10,
    NotEqual = 0x50,
    Greater = 0x20,
    Less = 0xa0,
}

/// A program being written.
#[derive(Default)]
struct Code {
    instructions: Vec<Instruction>,
    /// Jumps that lead to the way out.
    leaving: Vec<usize>,
}

impl Code {
    /// The program is on the interface too, and what comes in there is none of its business.
    fn pass_what_was_received(&mut self) {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex.
        self.load(Word, R2, R1, 12);
        self.jump(Jump::Equal, R2, MADE_HERE, 2);
        self.alu(Alu::Move, R0, XDP_PASS);
        self.exit();
    }

    fn check_length(&mut self, len: i32) {
        self.load(Word, Register::Frame, R1, 0);
        self.load(Word, R2, R1, 4);
        self.alu_register(Alu::Move, R3, Register::Frame);
        self.alu(Alu::Add, R3, len);
        self.leave_if_greater(R3, R2);
    }

    /// Stream in R2 and on the stack, its turn in the register of that name; the state moves on.
    fn take_turn(&mut self, streams: u32, state: i32) {
        const MAP_VALUE: u8 = 2;
        self.load_wide(Register::State, MAP_VALUE, state as u32 as u64);
        self.load(Word, R2, Register::State, 0);
        self.load(Word, Register::Turn, Register::State, 4);
        self.store(Word, Register::Stack, -4, R2);
        self.alu_register(Alu::Move, R4, Register::Turn);
        self.alu(Alu::Add, R2, 1);
        self.jump(Jump::Less, R2, streams as i32, 2);
        self.alu(Alu::Move, R2, 0);
        self.alu(Alu::Add, R4, 1);
        self.store(Word, Register::State, 0, R2);
        self.store(Word, Register::State, 4, R4);
    }

    fn look_up(&mut self, entries: i32) {
        const MAP: u8 = 1;
        self.load_wide(R1, MAP, entries as u32 as u64);
        self.alu_register(Alu::Move, R2, Register::Stack);
        self.alu(Alu::Add, R2, -4);
        self.call(LOOKUP);
        self.leave_if_zero(R0);
        self.alu_register(Alu::Move, Register::Entry, R0);
        self.load(Word, R1, Register::Entry, PORTS);
        self.leave_if_zero(R1);
    }

    /// Ethernet and IP header, then the UDP header with the ports that are in R1.
    fn write_constants(&mut self, bytes: &[u8], udp: usize) {
        let (words, rest) = bytes[..udp].as_chunks::<4>();
        for (at, word) in (0..).step_by(4).zip(words) {
            self.store_constant(Word, at, i32::from_ne_bytes(*word));
        }
        if let [a, b] = *rest {
            self.store_constant(Half, (udp - 2) as i16, i16::from_ne_bytes([a, b]).into());
        }
        self.store(Word, Register::Frame, udp as i16, R1);
        // Length, and no checksum: IPv4 allows that, for IPv6 it comes later.
        let [a, b] = [bytes[udp + 4], bytes[udp + 5]];
        self.store_constant(Word, udp as i16 + 4, i32::from_ne_bytes([a, b, 0, 0]));
    }

    /// RTP header; leaves the sequence number in R1 and the timestamp in R2, as they are in the packet.
    fn write_rtp(&mut self, rtp: i16, payload_type: u8, step: u32) {
        let first_half = |marker| i16::from_ne_bytes([0x80, marker | payload_type]).into();
        self.store_constant(Half, rtp, first_half(0));
        self.jump(Jump::NotEqual, Register::Turn, 0, 1);
        self.store_constant(Half, rtp, first_half(0x80));
        self.load(Half, R1, Register::Entry, FIRST_SEQ);
        self.alu_register(Alu::Add, R1, Register::Turn);
        self.big_endian(R1, 16);
        self.store(Half, Register::Frame, rtp + 2, R1);
        self.alu_register(Alu::Move, R2, Register::Turn);
        self.alu(Alu::Mul, R2, step as i32);
        self.load(Word, R3, Register::Entry, FIRST_TIMESTAMP);
        self.alu_register(Alu::Add, R2, R3);
        self.big_endian(R2, 32);
        self.store(Word, Register::Frame, rtp + 4, R2);
        self.load(Word, R3, Register::Entry, SSRC);
        self.store(Word, Register::Frame, rtp + 8, R3);
    }

    /// RFC 768 over what [`Code::write_rtp`] left, the entry's sum, and the marker of a first packet.
    fn write_checksum(&mut self, at: i16, payload_type: u8) {
        let half = |byte| i32::from(u16::from_ne_bytes([0x80, byte]));
        self.load(Word, R3, Register::Entry, SUM);
        self.alu_register(Alu::Add, R3, R1);
        self.alu_register(Alu::Add, R3, R2);
        self.jump(Jump::NotEqual, Register::Turn, 0, 1);
        self.alu(Alu::Add, R3, half(0x80 | payload_type) - half(payload_type));
        for _ in 0..3 {
            self.alu_register(Alu::Move, R4, R3);
            self.alu(Alu::ShiftRight, R4, 16);
            self.alu(Alu::And, R3, 0xffff);
            self.alu_register(Alu::Add, R3, R4);
        }
        self.alu(Alu::Xor, R3, 0xffff);
        // 0 would say that there is none.
        self.jump(Jump::NotEqual, R3, 0, 1);
        self.alu(Alu::Move, R3, 0xffff);
        self.store(Half, Register::Frame, at, R3);
    }

    /// [`StreamPlan::tag`] and its complement.
    fn write_tag(&mut self, at: i16) {
        self.load(Double, R1, Register::Entry, TAG_KEY);
        self.alu_register(Alu::Xor, R1, Register::Turn);
        self.mix(R1, R2);
        self.big_endian(R1, 64);
        self.store(Double, Register::Frame, at, R1);
        self.alu(Alu::Xor, R1, -1);
        self.store(Double, Register::Frame, at + 8, R1);
    }

    /// [`super::plan::mix`].
    fn mix(&mut self, z: Register, scratch: Register) {
        self.load_wide(scratch, 0, 0x9e37_79b9_7f4a_7c15);
        self.alu_register(Alu::Add, z, scratch);
        for (shift, factor) in
            [(30, Some(0xbf58_476d_1ce4_e5b9)), (27, Some(0x94d0_49bb_1331_11eb)), (31, None)]
        {
            self.alu_register(Alu::Move, scratch, z);
            self.alu(Alu::ShiftRight, scratch, shift);
            self.alu_register(Alu::Xor, z, scratch);
            if let Some(factor) = factor {
                self.load_wide(scratch, 0, factor);
                self.alu_register(Alu::Mul, z, scratch);
            }
        }
    }

    fn send(&mut self, interface: i32) {
        self.load(Double, R1, Register::State, 8);
        self.alu(Alu::Add, R1, 1);
        self.store(Double, Register::State, 8, R1);
        self.alu(Alu::Move, R1, interface);
        self.alu(Alu::Move, R2, 0);
        self.call(REDIRECT);
        self.exit();
    }

    /// The way out, to which the jumps are now led.
    fn finish(mut self) -> Vec<Instruction> {
        let way_out = self.instructions.len();
        for jump in std::mem::take(&mut self.leaving) {
            self.instructions[jump].offset = (way_out - jump - 1) as i16;
        }
        self.alu(Alu::Move, R0, XDP_DROP);
        self.exit();
        self.instructions
    }

    fn push(&mut self, code: u8, to: Register, from: u8, offset: i16, immediate: i32) {
        self.instructions.push(Instruction { code, registers: to as u8 | from << 4, offset, immediate });
    }

    fn load(&mut self, width: Width, to: Register, from: Register, offset: i16) {
        self.push(0x61 | width as u8, to, from as u8, offset, 0);
    }

    fn store(&mut self, width: Width, to: Register, offset: i16, from: Register) {
        self.push(0x63 | width as u8, to, from as u8, offset, 0);
    }

    /// Into the frame.
    fn store_constant(&mut self, width: Width, offset: i16, immediate: i32) {
        self.push(0x62 | width as u8, Register::Frame, 0, offset, immediate);
    }

    fn alu(&mut self, operation: Alu, to: Register, immediate: i32) {
        self.push(0x07 | operation as u8, to, 0, 0, immediate);
    }

    fn alu_register(&mut self, operation: Alu, to: Register, from: Register) {
        self.push(0x0f | operation as u8, to, from as u8, 0, 0);
    }

    /// Into network byte order, cut to so many bits.
    fn big_endian(&mut self, register: Register, bits: i32) {
        self.push(0xdc, register, 0, 0, bits);
    }

    /// A 64-bit constant, or with a kind of map what its descriptor stands for: two instructions.
    fn load_wide(&mut self, to: Register, kind: u8, value: u64) {
        self.push(0x18, to, kind, 0, value as u32 as i32);
        self.push(0, R0, 0, 0, (value >> 32) as u32 as i32);
    }

    /// Skips so many instructions.
    fn jump(&mut self, jump: Jump, register: Register, immediate: i32, skip: i16) {
        self.push(0x05 | jump as u8, register, 0, skip, immediate);
    }

    fn leave_if_zero(&mut self, register: Register) {
        self.leaving.push(self.instructions.len());
        self.jump(Jump::Equal, register, 0, 0);
    }

    fn leave_if_greater(&mut self, register: Register, than: Register) {
        self.leaving.push(self.instructions.len());
        self.push(0x0d | Jump::Greater as u8, register, than as u8, 0, 0);
    }

    fn call(&mut self, function: i32) {
        self.push(0x85, R0, 0, 0, function);
    }

    fn exit(&mut self) {
        self.push(0x95, R0, 0, 0, 0);
    }
}
