//! Asking for memory before it is needed.

use crate::limits;

/// Fetches `lines` cache lines from `start` on, in the background. Any address will do.
#[cfg(target_arch = "x86_64")]
pub fn prefetch(start: *const u8, lines: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    for line in 0..lines {
        // SAFETY: a prefetch is a hint: it reads nothing and faults on no address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(line * limits::CACHE_LINE).cast()) };
    }
}

/// Elsewhere the processor is left to guess.
#[cfg(not(target_arch = "x86_64"))]
pub fn prefetch(_: *const u8, _: usize) {}
