//! Reading what the recorder sends: a strict little SIP parser of the tool's own, and the framing on streams.

/// Start line and headers of one message; an SRS's answers are far smaller.
const HEAD_MAX: usize = 64 * 1024;
const BODY_MAX: usize = 1024 * 1024;

#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub start: Start,
    headers: Vec<(String, String)>,
    pub body: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Start {
    Request { method: String },
    Response { code: u16, reason: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    NoEndOfHead,
    NotUtf8,
    StartLine,
    HeaderLine,
    ContentLength,
    TooLong,
}

impl Message {
    /// One whole message: a datagram, or what [`Framer::next`] cut from a stream.
    pub fn parse(bytes: &[u8]) -> Result<Message, Malformed> {
        let head_len = head_len(bytes).ok_or(Malformed::NoEndOfHead)?;
        let text = std::str::from_utf8(bytes).map_err(|_| Malformed::NotUtf8)?;
        let (head, body) = text.split_at(head_len);
        let mut lines = head.trim_end().split("\r\n");
        let start = start_line(lines.next().unwrap_or_default())?;
        let headers = lines.map(header_line).collect::<Result<Vec<_>, _>>()?;
        let mut message = Message { start, headers, body: String::new() };
        let len = message.content_length()?.unwrap_or(body.len());
        message.body = body.get(..len).ok_or(Malformed::ContentLength)?.to_owned();
        Ok(message)
    }

    /// First field of this name (the long form, lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn headers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    fn content_length(&self) -> Result<Option<usize>, Malformed> {
        let length = self.header("content-length").map(str::parse).transpose();
        length.map_err(|_| Malformed::ContentLength)
    }

    /// Sequence number and method of the CSeq field.
    pub fn cseq(&self) -> Option<(u32, &str)> {
        let (number, method) = self.header("cseq")?.split_once(' ')?;
        Some((number.parse().ok()?, method.trim()))
    }

    /// The branch of the topmost Via: names the transaction (RFC 3261 §17.1.3).
    pub fn branch(&self) -> Option<&str> {
        parameter(self.header("via")?.split(',').next()?, "branch")
    }
}

/// `;name=value` in a header field; commas and quotes are not expected here.
pub fn parameter<'a>(field: &'a str, name: &str) -> Option<&'a str> {
    field.split(';').skip(1).map(str::trim).find_map(|part| match part.split_once('=') {
        Some((key, value)) if key.trim().eq_ignore_ascii_case(name) => Some(value.trim()),
        None if part.eq_ignore_ascii_case(name) => Some(""),
        _ => None,
    })
}

fn head_len(bytes: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4)
}

fn start_line(line: &str) -> Result<Start, Malformed> {
    if let Some(status) = line.strip_prefix("SIP/2.0 ") {
        let (code, reason) = status.split_once(' ').ok_or(Malformed::StartLine)?;
        let code = code.parse().ok().filter(|code| (100..700).contains(code)).ok_or(Malformed::StartLine)?;
        return Ok(Start::Response { code, reason: reason.to_owned() });
    }
    let mut words = line.split(' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some(method), Some(_), Some("SIP/2.0"), None) => Ok(Start::Request { method: method.to_owned() }),
        _ => Err(Malformed::StartLine),
    }
}

fn header_line(line: &str) -> Result<(String, String), Malformed> {
    let (name, value) = line.split_once(':').ok_or(Malformed::HeaderLine)?;
    let name = name.trim_end().to_ascii_lowercase();
    let long = match name.as_str() {
        "v" => "via",
        "f" => "from",
        "t" => "to",
        "m" => "contact",
        "i" => "call-id",
        "l" => "content-length",
        "c" => "content-type",
        _ => &name,
    };
    Ok((long.to_owned(), value.trim().to_owned()))
}

/// Cuts a byte stream into messages by Content-Length (RFC 3261 §18.3).
#[derive(Default)]
pub struct Framer {
    pending: Vec<u8>,
}

impl Framer {
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole message, if it is there. After an error the stream cannot be framed any more.
    pub fn next(&mut self) -> Result<Option<Message>, Malformed> {
        let blank = self.pending.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        self.pending.drain(..blank);
        let Some(head) = head_len(&self.pending) else {
            return if self.pending.len() > HEAD_MAX { Err(Malformed::TooLong) } else { Ok(None) };
        };
        let len = head + stream_content_length(&self.pending[..head])?;
        if self.pending.len() < len {
            return Ok(None);
        }
        let message = Message::parse(&self.pending[..len])?;
        self.pending.drain(..len);
        Ok(Some(message))
    }
}

fn stream_content_length(head: &[u8]) -> Result<usize, Malformed> {
    let text = std::str::from_utf8(head).map_err(|_| Malformed::NotUtf8)?;
    let fields = text.trim_end().split("\r\n").skip(1).map(header_line);
    let length =
        fields.flatten().find(|(name, _)| name == "content-length").ok_or(Malformed::ContentLength)?;
    let length = length.1.parse().map_err(|_| Malformed::ContentLength)?;
    if length > BODY_MAX { Err(Malformed::TooLong) } else { Ok(length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: &[u8] = b"SIP/2.0 200 OK\r\nv: SIP/2.0/UDP 10.0.0.1:5061;branch=z9hG4bK-1;rport\r\n\
        CSeq: 1 INVITE\r\nContact: <sip:srs@10.0.0.2>;+sip.srs\r\nl: 4\r\n\r\nv=0\n";

    #[test]
    fn a_response() {
        let message = Message::parse(OK).unwrap();
        assert_eq!(message.start, Start::Response { code: 200, reason: "OK".into() });
        assert_eq!(message.branch(), Some("z9hG4bK-1"));
        assert_eq!(message.cseq(), Some((1, "INVITE")));
        assert_eq!(message.body, "v=0\n");
    }

    #[test]
    fn a_request() {
        let message =
            Message::parse(b"BYE sip:src@10.0.0.1 SIP/2.0\r\nCall-ID: a\r\nContent-Length: 0\r\n\r\n")
                .unwrap();
        assert_eq!(message.start, Start::Request { method: "BYE".into() });
    }

    #[test]
    fn damage_is_named() {
        let parse = |text: &str| Message::parse(text.as_bytes()).unwrap_err();
        assert_eq!(parse("SIP/2.0 200 OK\r\n"), Malformed::NoEndOfHead);
        assert_eq!(parse("SIP/2.0 99 No\r\n\r\n"), Malformed::StartLine);
        assert_eq!(parse("SIP/2.0 200 OK\r\nnonsense\r\n\r\n"), Malformed::HeaderLine);
        assert_eq!(parse("SIP/2.0 200 OK\r\nContent-Length: 9\r\n\r\nshort"), Malformed::ContentLength);
    }

    #[test]
    fn a_stream_is_framed_wherever_it_is_cut() {
        let stream = [b"\r\n\r\n", OK, OK].concat();
        for cut in 0..stream.len() {
            let mut framer = Framer::default();
            let mut messages = Vec::new();
            for piece in [&stream[..cut], &stream[cut..]] {
                framer.push(piece);
                messages.extend(std::iter::from_fn(|| framer.next().unwrap()));
            }
            assert_eq!(messages.len(), 2, "cut at {cut}");
            assert_eq!(messages[0], messages[1]);
        }
    }

    #[test]
    fn a_stream_without_content_length_cannot_be_framed() {
        let mut framer = Framer::default();
        framer.push(b"SIP/2.0 200 OK\r\nCSeq: 1 BYE\r\n\r\n");
        assert_eq!(framer.next(), Err(Malformed::ContentLength));
    }

    #[test]
    fn parameters() {
        assert_eq!(parameter("<sip:a@b;x=1>;+sip.srs;expires=3", "+sip.srs"), Some(""));
        assert_eq!(parameter("<sip:a@b>;tag=z", "tag"), Some("z"));
        assert_eq!(parameter("<sip:a@b>", "tag"), None);
    }
}
