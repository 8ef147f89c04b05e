//! The header fields with a grammar of their own. Values come as on the wire, folds included.

use super::lexical::{self, Cursor};
use super::message::Malformed;
use super::name::{HeaderName, Method};

/// One Via (RFC 3261 §20.42).
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

impl<'a> Via<'a> {
    /// One value, without the comma that may follow it.
    pub fn parse(value: &'a [u8]) -> Result<Via<'a>, Malformed> {
        Via::read(&mut Cursor::new(value)).ok_or(Malformed::Field(HeaderName::Via))
    }

    fn read(cursor: &mut Cursor<'a>) -> Option<Via<'a>> {
        let transport = sent_protocol(cursor)?;
        let host = cursor.host()?;
        let port = cursor.port()?;
        let mut via =
            Via { transport, host, port, branch: None, received: None, maddr: None, rport: Rport::Absent };
        while cursor.separator(b';').is_some() {
            let (name, value) = cursor.param()?;
            via.set(name, value)?;
        }
        cursor.end()?;
        Some(via)
    }

    fn set(&mut self, name: &str, value: Option<&'a [u8]>) -> Option<()> {
        let value = value.filter(|value| !value.is_empty());
        let text = || std::str::from_utf8(value?).ok();
        if name.eq_ignore_ascii_case("branch") {
            // Two branches: elements would disagree about the transaction.
            self.branch.is_none().then_some(())?;
            self.branch = Some(text()?);
        } else if name.eq_ignore_ascii_case("received") {
            self.received = Some(text()?);
        } else if name.eq_ignore_ascii_case("maddr") {
            self.maddr = Some(text()?);
        } else if name.eq_ignore_ascii_case("rport") {
            self.rport = match value {
                None => Rport::Asked,
                Some(port) => Rport::Is(u16::try_from(lexical::number(port)?).ok()?),
            };
        }
        Some(())
    }
}

/// `SIP / 2.0 / transport` and the white space after it; returns the transport.
fn sent_protocol<'a>(cursor: &mut Cursor<'a>) -> Option<&'a str> {
    cursor.blanks();
    let name = cursor.token()?;
    cursor.separator(b'/')?;
    let version = cursor.token()?;
    cursor.separator(b'/')?;
    let transport = cursor.token()?;
    (name.eq_ignore_ascii_case("SIP") && version == "2.0" && cursor.blanks()).then_some(transport)
}

/// From, To, Contact, Record-Route: a URI with a display name and parameters (RFC 3261 §20.10).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NameAddr<'a> {
    /// Without the quotes, escapes as sent. `None` also when it is not UTF-8.
    pub display: Option<&'a str>,
    /// Without the brackets, URI parameters included.
    pub uri: &'a str,
    /// `;name=value …`, well-formed.
    params: &'a [u8],
}

impl<'a> NameAddr<'a> {
    /// One value; `Malformed::Field(Other)` when it is not `name-addr / addr-spec *(;param)`.
    pub fn parse(value: &'a [u8]) -> Result<NameAddr<'a>, Malformed> {
        NameAddr::read(value).ok_or(Malformed::Field(HeaderName::Other))
    }

    fn read(value: &'a [u8]) -> Option<NameAddr<'a>> {
        let mut cursor = Cursor::new(value);
        cursor.blanks();
        let display = display_name(&mut cursor)?;
        let uri = if cursor.eat(b'<').is_some() { bracketed(&mut cursor)? } else { bare(&mut cursor)? };
        let name_addr = NameAddr { display, uri, params: cursor.rest };
        name_addr.params_are_sound().then_some(name_addr)
    }

    /// Every parameter can be read, nothing follows them, and there is at most one tag, in UTF-8.
    fn params_are_sound(&self) -> bool {
        let mut cursor = Cursor::new(self.params);
        let mut tags = 0;
        while cursor.separator(b';').is_some() {
            match cursor.param() {
                None => return false,
                Some((name, value)) if name.eq_ignore_ascii_case("tag") => {
                    tags += 1 + u32::from(std::str::from_utf8(value.unwrap_or_default()).is_err());
                }
                Some(_) => {}
            }
        }
        tags <= 1 && cursor.end().is_some()
    }

    /// The `tag` parameter, if it has a value.
    pub fn tag(&self) -> Option<&'a str> {
        self.param("tag").filter(|tag| !tag.is_empty())
    }

    /// A header parameter: `Some("")` for one without a value, such as `+sip.src`. Without brackets every parameter is
    /// one (RFC 3261 §20.10). `None` also when the value is not UTF-8.
    pub fn param(&self, name: &str) -> Option<&'a str> {
        let mut cursor = Cursor::new(self.params);
        while cursor.separator(b';').is_some() {
            let (found, value) = cursor.param()?;
            if found.eq_ignore_ascii_case(name) {
                return std::str::from_utf8(value.unwrap_or_default()).ok();
            }
        }
        None
    }

    /// A parameter inside the brackets: `Some("")` for one without a value.
    pub fn uri_param(&self, name: &str) -> Option<&'a str> {
        let after_user = self.uri.split_once('@').map_or(self.uri, |(_, after)| after);
        let (_, params) = after_user.split_once(';')?;
        uri_param(params, name)
    }
}

/// The display name before `<`. A value without `<` has none. More than tokens passes unquoted as long as it
/// cannot be taken for a URI or a list: it is shown, not acted on.
fn display_name<'a>(cursor: &mut Cursor<'a>) -> Option<Option<&'a str>> {
    let display = if cursor.rest.first() == Some(&b'"') {
        let display = cursor.quoted()?;
        cursor.blanks();
        (cursor.rest.first() == Some(&b'<')).then_some(display)?
    } else {
        let stop = cursor.rest.iter().position(|b| b"<:;,\"@>".contains(b))?;
        if cursor.rest[stop] != b'<' {
            return Some(None);
        }
        lexical::trim(cursor.take(stop))
    };
    Some(std::str::from_utf8(display).ok().filter(|display| !display.is_empty()))
}

fn bracketed<'a>(cursor: &mut Cursor<'a>) -> Option<&'a str> {
    let uri = cursor.take_while(|b| b != b'>');
    cursor.eat(b'>')?;
    lexical::uri(uri)
}

/// A URI without brackets: it has no `;`, `,` or `?` of its own (RFC 3261 §20.10).
fn bare<'a>(cursor: &mut Cursor<'a>) -> Option<&'a str> {
    lexical::uri(cursor.take_while(|b| lexical::is_uri_byte(b) && !matches!(b, b';' | b',' | b'?')))
}

/// CSeq (RFC 3261 §20.16). The number is below 2³¹ (§8.1.1.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CSeq<'a> {
    pub number: u32,
    pub method: Method,
    pub text: &'a str,
}

impl<'a> CSeq<'a> {
    pub fn parse(value: &'a [u8]) -> Result<CSeq<'a>, Malformed> {
        CSeq::read(&mut Cursor::new(value)).ok_or(Malformed::Field(HeaderName::CSeq))
    }

    fn read(cursor: &mut Cursor<'a>) -> Option<CSeq<'a>> {
        let number = lexical::number(cursor.take_while(|b| b.is_ascii_digit()))?;
        let number = u32::try_from(number).ok().filter(|number| *number < 1 << 31)?;
        cursor.blanks().then_some(())?;
        let text = cursor.token()?;
        cursor.end()?;
        Some(CSeq { number, method: Method::parse(text.as_bytes()), text })
    }
}

/// Session-Expires (RFC 4028 §4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionExpires {
    /// More than fit are the most that fit.
    pub seconds: u32,
    pub refresher: Option<Refresher>,
}

/// Who refreshes a session: the client or the server of the transaction that says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refresher {
    Uac,
    Uas,
}

impl Refresher {
    pub const fn text(self) -> &'static str {
        match self {
            Refresher::Uac => "uac",
            Refresher::Uas => "uas",
        }
    }
}

impl SessionExpires {
    /// A refresher that is neither of the two is none.
    pub fn parse(value: &[u8]) -> Option<SessionExpires> {
        let mut cursor = Cursor::new(value);
        let mut expires = SessionExpires { seconds: delta_seconds(&mut cursor)?, refresher: None };
        while cursor.separator(b';').is_some() {
            let (name, value) = cursor.param()?;
            if name.eq_ignore_ascii_case("refresher") {
                let is =
                    |known: Refresher| value?.eq_ignore_ascii_case(known.text().as_bytes()).then_some(known);
                expires.refresher = is(Refresher::Uac).or(is(Refresher::Uas));
            }
        }
        Some(expires)
    }
}

/// A number of seconds; what follows it is the caller's.
pub(super) fn delta_seconds(cursor: &mut Cursor) -> Option<u32> {
    cursor.blanks();
    let digits = cursor.take_while(|b| b.is_ascii_digit());
    let sound = !digits.is_empty();
    sound.then(|| lexical::number(digits).and_then(|n| u32::try_from(n).ok()).unwrap_or(u32::MAX))
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
    /// What follows the `?`, without it.
    pub headers: Option<&'a str>,
}

impl<'a> SipUri<'a> {
    /// `None` for another scheme, no host, or a port that is none.
    pub fn parse(uri: &'a str) -> Option<SipUri<'a>> {
        let (scheme, rest) = uri.split_once(':')?;
        if !scheme.eq_ignore_ascii_case("sip") && !scheme.eq_ignore_ascii_case("sips") {
            return None;
        }
        // A user part may have `;` and `?`, what follows the host has no `@`.
        let (user, rest) = rest.split_once('@').map_or((None, rest), |(user, rest)| (Some(user), rest));
        let (rest, headers) =
            rest.split_once('?').map_or((rest, None), |(rest, headers)| (rest, Some(headers)));
        let (host_port, params) = rest.split_once(';').unwrap_or((rest, ""));
        let mut cursor = Cursor::new(host_port.as_bytes());
        let (host, port) = (cursor.host()?, cursor.port()?);
        cursor.end()?;
        Some(SipUri { scheme, user, host, port, params, headers })
    }

    /// `Some("")` for a parameter without a value, such as `lr`.
    pub fn param(&self, name: &str) -> Option<&'a str> {
        uri_param(self.params, name)
    }
}

fn uri_param<'a>(params: &'a str, name: &str) -> Option<&'a str> {
    let params = params.split_once('?').map_or(params, |(params, _)| params);
    params
        .split(';')
        .map(|param| param.split_once('=').unwrap_or((param, "")))
        .find(|(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn via_with_everything() {
        let via = Via::parse(b"SIP / 2.0\r\n / UDP\t[2001:db8::9:1] : 5070 ;rport; branch = z9hG4bK1;alias;received=192.0.2.1;maddr=224.0.1.75").unwrap();
        assert_eq!(
            via,
            Via {
                transport: "UDP",
                host: "2001:db8::9:1",
                port: Some(5070),
                branch: Some("z9hG4bK1"),
                received: Some("192.0.2.1"),
                maddr: Some("224.0.1.75"),
                rport: Rport::Asked,
            }
        );
        assert_eq!(Via::parse(b"sip/2.0/tcp host;rport=4711").unwrap().rport, Rport::Is(4711));
    }

    #[test]
    fn via_that_is_none() {
        for value in [
            "SIP/2.0/UDP 192.0.2.15;;,;,,",
            "SIP/2.0/UDP",
            "SIP/2.0/UDP ;branch=x",
            "SIP/2.0/UDPhost",
            "SIP/3.0/UDP host",
            "HTTP/2.0/UDP host",
            "SIP/2.0/UDP host:",
            "SIP/2.0/UDP host:65536",
            "SIP/2.0/UDP host:-1",
            "SIP/2.0/UDP [::1",
            "SIP/2.0/UDP host;branch=a;branch=b",
            "SIP/2.0/UDP host;branch=",
            "SIP/2.0/UDP host;rport=x",
            "SIP/2.0/UDP host more",
            "SIP/2.0/UDP host;=x",
            "SIP/2.0/UDP host;x=\"open",
        ] {
            assert_eq!(Via::parse(value.as_bytes()), Err(Malformed::Field(HeaderName::Via)), "{value}");
        }
    }

    #[test]
    fn name_addr_with_quotes_commas_and_escapes() {
        let value = br#" "Watson, \"Tom\"; <x>" <sip:w;p=1@h;user=phone;+sip.src?h=1> ; tag = a1 ; x="a;b,c=\"d" ;+sip.src"#;
        let address = NameAddr::parse(value).unwrap();
        assert_eq!(address.display, Some(r#"Watson, \"Tom\"; <x>"#));
        assert_eq!(address.uri, "sip:w;p=1@h;user=phone;+sip.src?h=1");
        assert_eq!(address.tag(), Some("a1"));
        assert_eq!(address.param("X"), Some(r#"a;b,c=\"d"#));
        assert_eq!(address.param("+sip.src"), Some(""));
        assert_eq!(address.uri_param("+SIP.src"), Some(""));
        assert_eq!(address.uri_param("user"), Some("phone"));
        assert_eq!(address.uri_param("p"), None, "part of the user");
        assert_eq!(address.param("b"), None, "inside quotes");
    }

    /// RFC 3261 §20.10: without brackets the parameters belong to the field.
    #[test]
    fn addr_spec_without_brackets() {
        let address = NameAddr::parse(b"sip:+1555@h.example.net;user=phone;tag=7").unwrap();
        assert_eq!((address.uri, address.display), ("sip:+1555@h.example.net", None));
        assert_eq!(
            (address.param("user"), address.tag(), address.uri_param("user")),
            (Some("phone"), Some("7"), None)
        );
    }

    #[test]
    fn display_names() {
        let display = |value: &'static str| NameAddr::parse(value.as_bytes()).unwrap().display;
        assert_eq!(display("caller<sip:c@h>"), Some("caller"));
        assert_eq!(display("A. B.\r\n C <sip:c@h>"), Some("A. B.\r\n C"));
        assert_eq!(display("Jürgen (Büro) <sip:c@h>"), Some("Jürgen (Büro)"));
        assert_eq!(display("\"\"<sip:c@h>"), None);
        assert_eq!(NameAddr::parse(b"\"\xff\xfe\" <sip:c@h>").unwrap().display, None);
    }

    #[test]
    fn name_addr_that_is_none() {
        for value in [
            "",
            "<sip:c@h",
            "\"open <sip:c@h>",
            "Bell, Alexander <sip:c@h>;tag=1",
            "\"W\" < sip:c@h >",
            "\"W\" x <sip:c@h>",
            "\"W\" sip:c@h",
            "sip:u@h?Route=%3Csip:h%3E",
            "<>",
            "<c@h>",
            "<sip:>",
            "c@h",
            "<sip:c@h> x",
            "<sip:c@h>;",
            "<sip:c@h>;;tag=1",
            "<sip:c@h>;tag=1;tag=2",
            "<sip:c@h>, <sip:d@h>",
            "<sip:c@h>>",
        ] {
            assert!(NameAddr::parse(value.as_bytes()).is_err(), "{value}");
        }
        assert!(NameAddr::parse(b"<sip:c@h>;tag=\xff").is_err());
    }

    #[test]
    fn a_parameter_that_is_not_text_does_not_hide_the_tag() {
        let address = NameAddr::parse(b"<sip:c@h>;x=\"\xff\";tag=1").unwrap();
        assert_eq!((address.tag(), address.param("x")), (Some("1"), None));
        assert_eq!(Via::parse(b"SIP/2.0/UDP h;x=\xff;branch=b").unwrap().branch, Some("b"));
    }

    #[test]
    fn cseq() {
        assert_eq!(
            CSeq::parse(b"0009\r\n INVITE"),
            Ok(CSeq { number: 9, method: Method::Invite, text: "INVITE" })
        );
        assert_eq!(CSeq::parse(b"2147483647 Foo").unwrap().method, Method::Other);
        for value in [
            "2147483648 BYE",
            "-1 BYE",
            "+1 BYE",
            "1BYE",
            "1",
            "BYE",
            "1 BYE x",
            "",
            "1 B/E",
            "36893488147419103232 BYE",
        ] {
            assert_eq!(CSeq::parse(value.as_bytes()), Err(Malformed::Field(HeaderName::CSeq)), "{value}");
        }
    }

    #[test]
    fn session_expires() {
        let parse = |value: &str| SessionExpires::parse(value.as_bytes());
        let expires = |seconds, refresher| Some(SessionExpires { seconds, refresher });
        assert_eq!(parse("1800"), expires(1800, None));
        assert_eq!(parse(" 90 ; Refresher = UAC;x"), expires(90, Some(Refresher::Uac)));
        assert_eq!(parse("4000;refresher=uas"), expires(4000, Some(Refresher::Uas)));
        assert_eq!(parse("90;refresher=proxy"), expires(90, None));
        assert_eq!(parse("99999999999999999999999"), expires(u32::MAX, None));
        for value in ["", "-1", "x", ";refresher=uac", "90;=x"] {
            assert_eq!(parse(value), None, "{value}");
        }
    }

    #[test]
    fn sip_uri() {
        let uri = SipUri::parse("SIPS:u;x:pw@[2001:db8::1]:5061;transport=tcp;lr?a=b").unwrap();
        assert_eq!(
            (uri.scheme, uri.user, uri.host, uri.port),
            ("SIPS", Some("u;x:pw"), "2001:db8::1", Some(5061))
        );
        assert_eq!((uri.params, uri.headers), ("transport=tcp;lr", Some("a=b")));
        assert_eq!((uri.param("LR"), uri.param("transport"), uri.param("a")), (Some(""), Some("tcp"), None));
        assert_eq!(SipUri::parse("sip:192.0.2.1").unwrap().user, None);
        for uri in
            ["tel:+1", "sip:", "sip:@", "sip:u@h:99999", "sip:u@h:x", "sip:u@[::1", "sip:h/x", "nothing"]
        {
            assert_eq!(SipUri::parse(uri), None, "{uri}");
        }
    }
}
