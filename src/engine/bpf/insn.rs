//! An assembler for the little of BPF that our programs need (RFC 9669): each constructor is one line of a listing, labels are
//! names, and [`assemble`] finds their places.

use std::os::fd::{AsFd, AsRawFd};

use Register::R0;

/// One instruction as the kernel reads it. RFC 9669 §3.1.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Insn {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// R0 is what a call returns and what the program returns, R1-R5 are arguments (ours have four at most) and lost in a call,
/// R6-R9 survive it, R10 is the end of the stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R6 = 6,
    R7,
    R8,
    R9,
    R10,
}

/// Functions of the kernel. linux/bpf.h, `___BPF_FUNC_MAPPER`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Function {
    MapLookup = 1,
    KtimeNs = 5,
    RedirectMap = 51,
    XdpAdjustMeta = 54,
    SkRelease = 86,
    SkAssign = 124,
    XdpBuffLen = 188,
}

/// A line of a listing.
#[derive(Clone, Copy, Debug)]
pub enum Line {
    Insn(Insn),
    /// Loads a map's address: two instructions.
    Map(Register, i32),
    Jump(Insn, &'static str),
    Label(&'static str),
}

const fn line(code: u8, to: Register, from: Register, offset: i16, immediate: i32) -> Line {
    Line::Insn(Insn { code, registers: to as u8 | (from as u8) << 4, offset, immediate })
}

const fn jump(code: u8, a: Register, b: Register, immediate: i32, label: &'static str) -> Line {
    Line::Jump(Insn { code, registers: a as u8 | (b as u8) << 4, offset: 0, immediate }, label)
}

/// `to = from`
pub const fn mov(to: Register, from: Register) -> Line {
    line(0xbf, to, from, 0, 0)
}

/// `to = value`, with its sign
pub const fn set(to: Register, value: i32) -> Line {
    line(0xb7, to, R0, 0, value)
}

/// `to += value`
pub const fn add(to: Register, value: i32) -> Line {
    line(0x07, to, R0, 0, value)
}

/// `to -= from`
pub const fn sub_register(to: Register, from: Register) -> Line {
    line(0x1f, to, from, 0, 0)
}

/// `to &= value`
pub const fn and(to: Register, value: i32) -> Line {
    line(0x57, to, R0, 0, value)
}

/// `to <<= bits`
pub const fn shift_left(to: Register, bits: i32) -> Line {
    line(0x67, to, R0, 0, bits)
}

/// The 16 bits of `to` from network order to the host's, the rest zero.
pub const fn from_be16(to: Register) -> Line {
    line(0xdc, to, R0, 0, 16)
}

/// `to = *(u8 *)(from + offset)`
pub const fn load8(to: Register, from: Register, offset: i16) -> Line {
    line(0x71, to, from, offset, 0)
}

/// `to = *(u16 *)(from + offset)`
pub const fn load16(to: Register, from: Register, offset: i16) -> Line {
    line(0x69, to, from, offset, 0)
}

/// `to = *(u32 *)(from + offset)`
pub const fn load32(to: Register, from: Register, offset: i16) -> Line {
    line(0x61, to, from, offset, 0)
}

/// `to = *(u64 *)(from + offset)`
pub const fn load64(to: Register, from: Register, offset: i16) -> Line {
    line(0x79, to, from, offset, 0)
}

/// `*(u32 *)(to + offset) = from`
pub const fn store32(to: Register, offset: i16, from: Register) -> Line {
    line(0x63, to, from, offset, 0)
}

/// `*(u64 *)(to + offset) = from`
pub const fn store64(to: Register, offset: i16, from: Register) -> Line {
    line(0x7b, to, from, offset, 0)
}

/// `to = map`
pub fn load_map(to: Register, map: &impl AsFd) -> Line {
    Line::Map(to, map.as_fd().as_raw_fd())
}

/// `R0 = function(R1, …)`
pub const fn call(function: Function) -> Line {
    line(0x85, R0, R0, 0, function as i32)
}

/// Returns R0.
pub const fn exit() -> Line {
    line(0x95, R0, R0, 0, 0)
}

/// Jumps here come to the next line.
pub const fn label(name: &'static str) -> Line {
    Line::Label(name)
}

/// Jumps.
pub const fn go(label: &'static str) -> Line {
    jump(0x05, R0, R0, 0, label)
}

/// Jumps if a pointer is null (all 64 bits are zero).
pub const fn if_null(a: Register, label: &'static str) -> Line {
    jump(0x15, a, R0, 0, label)
}

/// Jumps if the 64 bits of a are above those of b, without sign; the way to compare pointers.
pub const fn if_above(a: Register, b: Register, label: &'static str) -> Line {
    jump(0x2d, a, b, 0, label)
}

/// Jumps if the low 32 bits are the value's.
pub const fn if_eq(a: Register, value: u32, label: &'static str) -> Line {
    jump(0x16, a, R0, value as i32, label)
}

/// Jumps if the low 32 bits are not the value's.
pub const fn if_ne(a: Register, value: u32, label: &'static str) -> Line {
    jump(0x56, a, R0, value as i32, label)
}

/// Jumps if the low 32 bits are less, without sign.
pub const fn if_lt(a: Register, value: u32, label: &'static str) -> Line {
    jump(0xa6, a, R0, value as i32, label)
}

/// Jumps if the low 32 bits are more, without sign.
pub const fn if_gt(a: Register, value: u32, label: &'static str) -> Line {
    jump(0x26, a, R0, value as i32, label)
}

/// The listing as instructions.
///
/// # Panics
/// On a label that is missing or is there twice: our listings are constant but for their numbers, so a test finds it.
pub fn assemble(listing: &[Line]) -> Vec<Insn> {
    let mut insns = Vec::new();
    for line in listing {
        match *line {
            Line::Insn(insn) => insns.push(insn),
            Line::Map(to, fd) => insns.extend(wide(to, fd)),
            Line::Jump(insn, label) => {
                let offset = place(listing, label) as i16 - insns.len() as i16 - 1;
                insns.push(Insn { offset, ..insn });
            }
            Line::Label(_) => {}
        }
    }
    insns
}

/// A 64-bit load, marked as a map's descriptor (BPF_PSEUDO_MAP_FD).
const fn wide(to: Register, fd: i32) -> [Insn; 2] {
    let first = Insn { code: 0x18, registers: to as u8 | 1 << 4, offset: 0, immediate: fd };
    [first, Insn { code: 0, registers: 0, offset: 0, immediate: 0 }]
}

/// Instructions before the label.
fn place(listing: &[Line], label: &str) -> usize {
    let mut places = Vec::new();
    let mut at = 0;
    for line in listing {
        match line {
            Line::Insn(_) | Line::Jump(..) => at += 1,
            Line::Map(..) => at += 2,
            Line::Label(name) if *name == label => places.push(at),
            Line::Label(_) => {}
        }
    }
    assert!(places.len() == 1, "the label {label} is there {} times", places.len());
    places[0]
}

#[cfg(test)]
mod tests {
    use super::Register::{R1, R2, R6, R10};
    use super::*;

    fn bytes(insn: Insn) -> [u8; 8] {
        let ([a, b], [c, d, e, f]) = (insn.offset.to_le_bytes(), insn.immediate.to_le_bytes());
        [insn.code, insn.registers, a, b, c, d, e, f]
    }

    /// As clang writes `r6 = r1`, `*(u32 *)(r10 - 4) = r2`, `r2 = 258`.
    #[test]
    fn instructions_are_laid_out_as_the_kernel_reads_them() {
        let program = assemble(&[mov(R6, R1), store32(R10, -4, R2), set(R2, 258)]);
        let expected = [
            [0xbf, 0x16, 0, 0, 0, 0, 0, 0],
            [0x63, 0x2a, 0xfc, 0xff, 0, 0, 0, 0],
            [0xb7, 0x02, 0, 0, 2, 1, 0, 0],
        ];
        assert_eq!(program.into_iter().map(bytes).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn jumps_count_from_the_next_instruction_and_over_wide_ones() {
        let program = assemble(&[
            label("start"),
            if_eq(R2, 1, "end"),
            Line::Map(R1, 7),
            go("start"),
            label("end"),
            label("end too"),
            exit(),
        ]);
        assert_eq!(program.len(), 5);
        assert_eq!((program[0].offset, program[3].offset), (3, -4));
        assert_eq!(bytes(program[1]), [0x18, 0x11, 0, 0, 7, 0, 0, 0]);
    }

    #[test]
    #[should_panic(expected = "the label nowhere is there 0 times")]
    fn a_missing_label_is_found() {
        assemble(&[go("nowhere"), exit()]);
    }

    #[test]
    #[should_panic(expected = "the label twice is there 2 times")]
    fn a_label_is_unique() {
        assemble(&[go("twice"), label("twice"), label("twice"), exit()]);
    }
}
