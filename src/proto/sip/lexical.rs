//! The characters and lists that header fields are made of (RFC 3261 §25.1).

/// `token` of RFC 3261 §25.1.
const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"-.!%*_+`'~";
    let mut i = 0;
    while i < others.len() {
        table[others[i] as usize] = true;
        i += 1;
    }
    table
};

pub(super) fn is_token_byte(byte: u8) -> bool {
    TOKEN[byte as usize]
}

pub(super) fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().copied().all(is_token_byte)
}

/// White space, and the line ends of folds: inside a value every line end is one (RFC 3261 §7.3.1).
pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

pub(super) fn trim(mut text: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = text
        && is_blank(*first)
    {
        text = rest;
    }
    while let [rest @ .., last] = text
        && is_blank(*last)
    {
        text = rest;
    }
    text
}

/// Bytes that end a URI or have no place in one.
pub(super) fn is_uri_byte(byte: u8) -> bool {
    byte > b' ' && byte != 0x7f && !matches!(byte, b'<' | b'>' | b'"')
}

/// `scheme ":" something`, of bytes that a URI may have (RFC 3986 §3.1 for the scheme). UTF-8 beyond ASCII passes.
pub(super) fn uri(text: &[u8]) -> Option<&str> {
    let colon = memchr::memchr(b':', text)?;
    let (first, scheme) = text[..colon].split_first()?;
    let scheme_ok = first.is_ascii_alphabetic()
        && scheme.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    let rest = &text[colon + 1..];
    if !scheme_ok || rest.is_empty() || !rest.iter().copied().all(is_uri_byte) {
        return None;
    }
    std::str::from_utf8(text).ok()
}

/// A decimal number without a sign; `None` when it is none or does not fit.
pub(super) fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, digit| {
        let value = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        sum.checked_mul(10)?.checked_add(value)
    })
}

/// The text before the first `separator` outside quoted strings and angle brackets, and what follows the separator.
/// An unterminated quote or bracket reaches to the end.
pub(super) fn split_first(text: &[u8], separator: u8) -> (&[u8], Option<&[u8]>) {
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            b'"' => at += quoted_length(&text[at..]).unwrap_or(text.len()),
            b'<' => at += memchr::memchr(b'>', &text[at..]).unwrap_or(text.len()),
            byte if byte == separator => return (&text[..at], Some(&text[at + 1..])),
            _ => at += 1,
        }
    }
    (text, None)
}

/// Bytes of the quoted string that `text` begins with, both quotes included.
pub(super) fn quoted_length(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', text.get(at..)?)?;
        if text[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
    }
}

/// The items of a list, without white space around them; empty ones are left out.
pub(super) fn split(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let (item, after) = split_first(rest?, separator);
        rest = after;
        Some(trim(item))
    })
    .filter(|item| !item.is_empty())
}

/// Reads a value from the left.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    pub rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub fn new(text: &'a [u8]) -> Cursor<'a> {
        Cursor { rest: text }
    }

    /// Skips white space; whether there was any.
    pub fn blanks(&mut self) -> bool {
        !self.take_while(is_blank).is_empty()
    }

    pub fn take_while(&mut self, accept: impl Fn(u8) -> bool) -> &'a [u8] {
        let length = self.rest.iter().position(|b| !accept(*b)).unwrap_or(self.rest.len());
        self.take(length)
    }

    pub fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }

    pub fn eat(&mut self, byte: u8) -> Option<()> {
        let rest = self.rest.strip_prefix(&[byte])?;
        self.rest = rest;
        Some(())
    }

    /// `byte` with white space around it: SLASH, EQUAL, SEMI, COLON of RFC 3261 §25.1.
    pub fn separator(&mut self, byte: u8) -> Option<()> {
        let mut ahead = *self;
        ahead.blanks();
        ahead.eat(byte)?;
        ahead.blanks();
        *self = ahead;
        Some(())
    }

    pub fn token(&mut self) -> Option<&'a str> {
        let token = self.take_while(is_token_byte);
        if token.is_empty() { None } else { std::str::from_utf8(token).ok() }
    }

    /// A quoted string, without its quotes; escapes stay.
    pub fn quoted(&mut self) -> Option<&'a [u8]> {
        let length = quoted_length(self.rest)?;
        let quoted = self.take(length);
        Some(&quoted[1..length - 1])
    }

    /// `name [ = value ]` of `;name=value`. The value is a quoted string (returned without quotes), or what reaches to
    /// the next separator.
    pub fn param(&mut self) -> Option<(&'a str, Option<&'a [u8]>)> {
        let name = self.token()?;
        if self.separator(b'=').is_none() {
            return Some((name, None));
        }
        let value = if self.rest.first() == Some(&b'"') {
            self.quoted()?
        } else {
            self.take_while(|b| is_uri_byte(b) && b != b';' && b != b',')
        };
        Some((name, Some(value)))
    }

    /// `host` of RFC 3261 §25.1, an IPv6 address without its brackets.
    pub fn host(&mut self) -> Option<&'a str> {
        let host = if self.eat(b'[').is_some() {
            let address = self.take_while(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'));
            self.eat(b']')?;
            address
        } else {
            self.take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        };
        if host.is_empty() { None } else { std::str::from_utf8(host).ok() }
    }

    /// `:port` if a colon follows.
    pub fn port(&mut self) -> Option<Option<u16>> {
        if self.separator(b':').is_none() {
            return Some(None);
        }
        let port = number(self.take_while(|b| b.is_ascii_digit()))?;
        Some(Some(u16::try_from(port).ok()?))
    }

    /// Nothing but white space is left.
    pub fn end(&mut self) -> Option<()> {
        self.blanks();
        self.rest.is_empty().then_some(())
    }
}
