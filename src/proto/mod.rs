//! Bytes ⇄ values. Nothing here knows a socket, a file or a clock.

#[cfg(test)]
pub(crate) mod fixtures;
pub mod frame;
pub mod manifest;
pub mod metadata;
pub mod multipart;
pub mod pcap;
pub mod raw;
pub mod rtcp;
pub mod rtp;
pub mod sdp;
pub mod sip;
