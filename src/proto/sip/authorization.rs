//! Credentials of a request (RFC 7616 §3.4, RFC 8760), and the dialog that an INVITE takes the place of (RFC 3891).

use super::lexical::Cursor;
use crate::limits::AUTH_PARAMS_MAX;

/// One Authorization of the Digest scheme. Values are as sent, without their quotes; escapes stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Authorization<'a> {
    pub username: &'a str,
    pub realm: &'a str,
    pub nonce: &'a str,
    pub uri: &'a str,
    pub response: &'a str,
    /// `None`: MD5.
    pub algorithm: Option<&'a str>,
    pub cnonce: Option<&'a str>,
    pub qop: Option<&'a str>,
    pub nc: Option<&'a str>,
}

impl<'a> Authorization<'a> {
    /// `None` for another scheme, for what cannot be read, and for a parameter that is there twice: elements would
    /// disagree about which of them counts. And for more parameters than a client has a reason for.
    pub fn parse(value: &'a [u8]) -> Option<Authorization<'a>> {
        let mut cursor = Cursor::new(value);
        cursor.blanks();
        let scheme = cursor.token()?;
        if !scheme.eq_ignore_ascii_case("Digest") || !cursor.blanks() {
            return None;
        }
        let mut read = Authorization::default();
        let mut seen: Vec<&str> = Vec::new();
        loop {
            let (name, value) = cursor.param()?;
            if seen.len() == AUTH_PARAMS_MAX || seen.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                return None;
            }
            seen.push(name);
            read.set(name, std::str::from_utf8(value?).ok()?);
            if cursor.separator(b',').is_none() {
                cursor.end()?;
                return Some(read);
            }
        }
    }

    fn set(&mut self, name: &str, value: &'a str) {
        let Authorization { username, realm, nonce, uri, response, algorithm, cnonce, qop, nc } = self;
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        match () {
            () if is("username") => *username = value,
            () if is("realm") => *realm = value,
            () if is("nonce") => *nonce = value,
            () if is("uri") => *uri = value,
            () if is("response") => *response = value,
            () if is("algorithm") => *algorithm = Some(value),
            () if is("cnonce") => *cnonce = Some(value),
            () if is("qop") => *qop = Some(value),
            () if is("nc") => *nc = Some(value),
            () => {}
        }
    }
}

/// The dialog that an INVITE is to take the place of (RFC 3891 §6.1), seen from where it is sent to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replaces<'a> {
    pub call_id: &'a str,
    /// The tag of the receiver of this request.
    pub to_tag: &'a str,
    pub from_tag: &'a str,
    pub early_only: bool,
}

impl<'a> Replaces<'a> {
    /// `callid *(;param)` with exactly one to-tag and one from-tag.
    pub fn parse(value: &'a [u8]) -> Option<Replaces<'a>> {
        let mut cursor = Cursor::new(value);
        cursor.blanks();
        let call_id = cursor.take_while(|b| b > b' ' && b != b';' && b != b',');
        let call_id = std::str::from_utf8(call_id).ok().filter(|call_id| !call_id.is_empty())?;
        let (mut to_tag, mut from_tag, mut early_only) = (None, None, false);
        while cursor.separator(b';').is_some() {
            let (name, value) = cursor.param()?;
            let text = value.map(std::str::from_utf8).transpose().ok()?;
            let tag = match () {
                () if name.eq_ignore_ascii_case("to-tag") => &mut to_tag,
                () if name.eq_ignore_ascii_case("from-tag") => &mut from_tag,
                () => {
                    early_only |= name.eq_ignore_ascii_case("early-only");
                    continue;
                }
            };
            if tag.replace(text?).is_some() {
                return None;
            }
        }
        cursor.end()?;
        Some(Replaces { call_id, to_tag: to_tag?, from_tag: from_tag?, early_only })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_as_rfc_7616_prints_them() {
        let value = b"Digest username=\"Mufasa\",\r\n realm=\"http-auth@example.org\",\r\n uri=\"/dir/index.html\",\r\n \
            algorithm=SHA-256, nonce=\"7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v\", nc=00000001, cnonce=\"f2/w=\", \
            qop=auth, response=\"7539\", opaque=\"FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS\"";
        let read = Authorization::parse(value).unwrap();
        assert_eq!(
            (read.username, read.realm, read.uri),
            ("Mufasa", "http-auth@example.org", "/dir/index.html")
        );
        assert_eq!((read.algorithm, read.qop, read.nc), (Some("SHA-256"), Some("auth"), Some("00000001")));
        assert_eq!((read.cnonce, read.response), (Some("f2/w="), "7539"));
    }

    #[test]
    fn what_are_no_digest_credentials() {
        for bad in [
            "",
            "Digest",
            "Digest ",
            "Basic QWxhZGRpbjpvcGVu",
            "Digest username",
            "Digest username=\"a\", username=\"b\"",
            "Digest username=\"a\" realm=\"b\"",
            "Digest username=\"a",
            "Digest username=\"a\", ,",
        ] {
            assert_eq!(Authorization::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    /// Each is compared with those before it: many would cost the square of their number.
    #[test]
    fn parameters_are_not_without_end() {
        let value = |n: usize| {
            let many: Vec<String> = (1..n).map(|n| format!("x{n}=y")).collect();
            format!("Digest username=a, {}", many.join(","))
        };
        assert!(Authorization::parse(value(AUTH_PARAMS_MAX).as_bytes()).is_some());
        assert_eq!(Authorization::parse(value(AUTH_PARAMS_MAX + 1).as_bytes()), None);
    }

    #[test]
    fn replaces_as_rfc_3891_prints_it() {
        let read =
            Replaces::parse(b"98732@sip.example.com\r\n ;from-tag=r33th4x0r\r\n ;to-tag=ff87ff").unwrap();
        assert_eq!(
            (read.call_id, read.to_tag, read.from_tag),
            ("98732@sip.example.com", "ff87ff", "r33th4x0r")
        );
        assert!(!read.early_only);
        assert!(
            Replaces::parse(b"12adf2f34456gs5;to-tag=12345;from-tag=54321;early-only").unwrap().early_only
        );
    }

    #[test]
    fn replaces_that_names_no_dialog() {
        for bad in ["", ";to-tag=a;from-tag=b", "x;to-tag=a", "x;from-tag=b", "x;to-tag;from-tag=b"] {
            assert_eq!(Replaces::parse(bad.as_bytes()), None, "{bad}");
        }
        for bad in ["x;to-tag=a;to-tag=c;from-tag=b", "x;to-tag=a;from-tag=b, y;to-tag=a;from-tag=b"] {
            assert_eq!(Replaces::parse(bad.as_bytes()), None, "{bad}");
        }
    }
}
