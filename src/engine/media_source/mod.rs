//! Where media comes from. One source so far: a pair of UDP sockets per port pair.

pub mod sockets;
#[expect(dead_code)]
pub mod xsk;
