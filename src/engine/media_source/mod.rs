//! Where media comes from. One source so far: a pair of UDP sockets per port pair.

pub mod sockets;
#[cfg_attr(not(test), expect(dead_code))]
pub mod xsk;
