//! SIP as far as the checks need it, read by code of its own: what the recorder misreads is not misread here too.

use std::fmt;

/// A message on the wire. Bytes that are no text have been replaced.
#[derive(Clone, Debug)]
pub struct Message {
    pub start: String,
    fields: Vec<(String, String)>,
    pub body: String,
}

/// What RFC 3261 §17.2.3 compares: two messages with one of these belong to the same transaction.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key {
    pub branch: String,
    pub sent_by: String,
    pub method: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} from {}", self.method, self.branch, self.sent_by)
    }
}

impl Message {
    pub fn read(bytes: &[u8]) -> Option<Message> {
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_start_matches(['\r', '\n']);
        let ends = ["\r\n\r\n", "\n\n"].iter().filter_map(|end| Some((text.find(end)?, end.len())));
        let (at, length) = ends.min()?;
        let mut lines = text[..at].split('\n').map(|line| line.trim_end_matches('\r'));
        let start = lines.next()?.to_owned();
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in lines {
            if let Some(folded) = line.strip_prefix([' ', '\t']) {
                fields.last_mut()?.1 += folded.trim();
            } else if let Some((name, value)) = line.split_once(':') {
                fields.push((long_name(name.trim()), value.trim().to_owned()));
            }
        }
        Some(Message { start, fields, body: text[at + length..].to_owned() })
    }

    /// The first field of this name, in lower case.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// `None` of a request.
    pub fn code(&self) -> Option<u16> {
        self.start.strip_prefix("SIP/2.0 ")?.get(..3)?.parse().ok()
    }

    /// Of a request that of its first line, of a response that of its CSeq.
    pub fn method(&self) -> &str {
        match self.code() {
            Some(_) => self.cseq().map_or("", |(_, method)| method),
            None => self.start.split(' ').next().unwrap_or_default(),
        }
    }

    pub fn uri(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or_default()
    }

    pub fn cseq(&self) -> Option<(u32, &str)> {
        let (number, method) = self.field("cseq")?.split_once(' ')?;
        Some((number.parse().ok()?, method.trim()))
    }

    pub fn call_id(&self) -> &str {
        self.field("call-id").unwrap_or_default()
    }

    pub fn tag(&self, field: &str) -> Option<&str> {
        let after = self.field(field)?.split_once(";tag=")?.1;
        after.split([';', ' ', ',']).next()
    }

    pub fn via(&self) -> Option<&str> {
        self.field("via")?.split(',').next()
    }

    pub fn key(&self) -> Option<Key> {
        let mut parts = self.via()?.split(';');
        let sent_by = parts.next()?.split_whitespace().last()?.to_ascii_lowercase();
        let branch = parts.find_map(|part| part.trim().strip_prefix("branch="))?;
        let method = if self.method() == "ACK" { "INVITE" } else { self.method() };
        Some(Key { branch: branch.to_owned(), sent_by, method: method.to_owned() })
    }

    /// The URI of the Contact.
    pub fn contact(&self) -> Option<&str> {
        let value = self.field("contact")?;
        match value.split_once('<') {
            Some((_, rest)) => rest.split('>').next(),
            None => value.split(';').next(),
        }
    }

    /// The SDP in the body, if there is one.
    pub fn sdp(&self) -> Option<&str> {
        let from = self.body.find("v=0")?;
        let sdp = &self.body[from..];
        let end = sdp.find("\n--").unwrap_or(sdp.len());
        Some(sdp[..end].trim_end())
    }
}

/// Values of the lines of an SDP that begin so.
pub fn sdp_lines<'a>(sdp: &'a str, kind: &'a str) -> impl Iterator<Item = &'a str> {
    sdp.lines().filter_map(move |line| line.trim_end().strip_prefix(kind))
}

/// The port of each m-line.
pub fn m_ports(sdp: &str) -> Vec<u16> {
    let port = |line: &str| line.split(' ').nth(1)?.split('/').next()?.parse().ok();
    sdp_lines(sdp, "m=").filter_map(port).collect()
}

fn long_name(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    let long = match name.as_str() {
        "i" => "call-id",
        "f" => "from",
        "t" => "to",
        "v" => "via",
        "m" => "contact",
        "l" => "content-length",
        "c" => "content-type",
        "k" => "supported",
        _ => return name,
    };
    long.to_owned()
}

#[test]
fn what_is_read_of_a_message() {
    let text = "INVITE sip:srs@x SIP/2.0\r\nv: SIP/2.0/UDP h:5070;rport;branch=z9hG4bK1, SIP/2.0/UDP g\r\n\
                From: <sip:a@b>;tag=f\r\nTo: <sip:c@d>\r\nCSeq: 7 INVITE\r\nSubject: one\r\n two\r\n\r\n--b\r\n\r\nv=0\r\n\
                m=audio 10 RTP/AVP 0\r\nm=audio 0 RTP/AVP 0\r\n--b--";
    let message = Message::read(text.as_bytes()).unwrap();
    let key = message.key().unwrap();
    assert_eq!(
        (key.branch.as_str(), key.sent_by.as_str(), message.uri()),
        ("z9hG4bK1", "h:5070", "sip:srs@x")
    );
    assert_eq!(
        (message.tag("from"), message.tag("to"), message.cseq()),
        (Some("f"), None, Some((7, "INVITE")))
    );
    assert_eq!((message.code(), message.field("subject")), (None, Some("onetwo")));
    assert_eq!(m_ports(message.sdp().unwrap()), [10, 0]);
}
