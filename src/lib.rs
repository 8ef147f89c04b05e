//! sipreel: a SIPREC session recording server (RFC 7866, RFC 7865).
//!
//! Five ranks, arrows only point down (`tests/tidy.rs` keeps them): `shell` → `engine` → `session` and `media`, which
//! never see each other → `proto` → `limits`, `counters`, `clock`. Below the engine there is no clock, socket, file or
//! thread: time and bytes are arguments, effects are returned values. `ARCHITECTURE.md` has the map.

pub mod clock;
pub mod counters;
pub mod engine;
pub mod limits;
pub mod media;
pub mod proto;
pub mod session;
pub mod shell;

/// The atomics of the session table. A model checker puts its own in their place (`tests/loom.rs`).
pub(crate) mod sync {
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};
}
