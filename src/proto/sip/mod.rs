//! SIP messages (RFC 3261): cut out of a stream, read in place without a copy, and written.
//!
//! ```text
//! datagram ──────────────────▶ Message::parse_datagram ─┬▶ check_request ─▶ Checked: every mandatory field, typed
//! stream ─▶ Framer ─▶ Frame ─▶ Message::parse_framed   ─┘  response ─▶ ResponseBuilder ─▶ Bytes
//!                                       │ Err
//!                                       ▼
//!                                Message::salvage ─▶ what is needed to answer 400, or nothing
//! ```
//!
//! Strict where it decides where a message ends and who is answered; lenient elsewhere, because a refused call is a
//! recording that does not exist. Every function is linear in the bytes it is given.

mod authorization;
mod framing;
mod header;
mod lexical;
mod message;
mod name;
mod write;

pub use authorization::{Authorization, Replaces};
pub use framing::{Frame, Framer, Unframeable};
pub use header::{CSeq, NameAddr, Refresher, Rport, SessionExpires, SipUri, Via};
pub use message::{Checked, Header, Malformed, Message, Start};
pub use name::{HeaderName, Method};
pub use write::{RequestBuilder, ResponseBuilder, reason_phrase, request, response};
