//! The recorder as a whole, against the field's own programs and against peers that mean no good.
//!
//! Each test starts the real binary with ports and a directory of its own, so all run in parallel. A test waits for what has to
//! come, never for time to pass.

#![allow(clippy::disallowed_methods, reason = "these are the recorder's peers: they live in real time")]

mod lab;
mod media;
mod peers;
mod receiver;
mod recorder;
mod recording;
mod scenario;
mod src;
#[path = "../vendor/mod.rs"]
mod vendor;

mod admission;
mod attach;
mod balancer;
mod callbacks;
mod dialog;
mod disk;
mod formats;
mod hostile;
mod life;
mod load;
mod metadata;
mod profiles;
mod refusals;
mod rtcp;
mod sipp;
mod sources;
mod stats;
mod tls;
mod vendors;
mod wire;
