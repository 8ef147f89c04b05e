//! The header fields with a grammar of their own. Values come as on the wire, folds included.

use super::message::Malformed;
use super::name::Method;

/// One Via (RFC 3261 §20.42), the topmost when it comes from `Message::via`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Via<'a> {
    /// `UDP`, `TCP`, … as sent.
    pub transport: &'a str,
    /// Host of sent-by: a name, an IPv4 address, or an IPv6 address without its brackets.
    pub host: &'a str,
    pub port: Option<u16>,
    pub branch: Option<&'a str>,
    pub received: Option<&'a str>,
    pub maddr: Option<&'a str>,
    pub rport: Rport,
}

/// The `rport` parameter (RFC 3581 §3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rport {
    Absent,
    /// `;rport`: the peer wants its answer where the request came from.
    Asked,
    Is(u16),
}

/// From, To, Contact, Record-Route: a URI with a display name and parameters (RFC 3261 §20.10).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NameAddr<'a> {
    /// Without the quotes, escapes as sent. `None` also when it is not UTF-8.
    pub display: Option<&'a str>,
    /// Without the brackets, URI parameters included.
    pub uri: &'a str,
    params: &'a str,
}

impl<'a> NameAddr<'a> {
    /// One value; `Malformed::Field(Other)` when it is not `name-addr / addr-spec *(;param)`.
    pub fn parse(value: &'a [u8]) -> Result<NameAddr<'a>, Malformed> {
        todo!("{value:?}")
    }

    /// The `tag` parameter, if it has a value.
    pub fn tag(&self) -> Option<&'a str> {
        todo!()
    }

    /// A header parameter: `Some("")` for one without a value, such as `+sip.src`. Without brackets every parameter is one.
    pub fn param(&self, name: &str) -> Option<&'a str> {
        todo!("{name} {}", self.params)
    }

    /// A parameter inside the brackets.
    pub fn uri_param(&self, name: &str) -> Option<&'a str> {
        todo!("{name}")
    }
}

/// CSeq (RFC 3261 §20.16). The number is below 2³¹ (§8.1.1.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CSeq<'a> {
    pub number: u32,
    pub method: Method,
    pub text: &'a str,
}

/// The parts of a `sip:` or `sips:` URI (RFC 3261 §19.1.1) that say where a request goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SipUri<'a> {
    /// `sip` or `sips`, as sent.
    pub scheme: &'a str,
    /// User part, password and escapes included.
    pub user: Option<&'a str>,
    /// A name, an IPv4 address, or an IPv6 address without its brackets.
    pub host: &'a str,
    pub port: Option<u16>,
    /// What follows the first `;` after the host, without it.
    pub params: &'a str,
}

impl<'a> SipUri<'a> {
    /// `None` for another scheme or no host.
    pub fn parse(uri: &'a str) -> Option<SipUri<'a>> {
        todo!("{uri}")
    }

    /// `Some("")` for a parameter without a value, such as `lr`.
    pub fn param(&self, name: &str) -> Option<&'a str> {
        todo!("{name}")
    }
}
