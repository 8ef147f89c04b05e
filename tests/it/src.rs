//! A session recording client of our own, for what a scenario file cannot say. It does one thing at a time and keeps nothing
//! from its tests: every message can be built, bent and sent by hand.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::media::facing;
use crate::recorder::PATIENCE;

/// A way to the recorder.
pub enum Wire {
    Udp(UdpSocket),
    Tcp { stream: TcpStream, read: Vec<u8> },
}

impl Wire {
    pub fn udp(target: SocketAddr) -> Wire {
        let socket = UdpSocket::bind((facing(target.ip()), 0)).unwrap();
        socket.connect(target).unwrap();
        Wire::Udp(socket)
    }

    pub fn tcp(target: SocketAddr) -> Wire {
        let stream = TcpStream::connect(target).unwrap();
        stream.set_nodelay(true).unwrap();
        Wire::Tcp { stream, read: Vec::new() }
    }

    pub fn local(&self) -> SocketAddr {
        match self {
            Wire::Udp(socket) => socket.local_addr().unwrap(),
            Wire::Tcp { stream, .. } => stream.local_addr().unwrap(),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Wire::Udp(_) => "UDP",
            Wire::Tcp { .. } => "TCP",
        }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        match self {
            Wire::Udp(socket) => assert_eq!(socket.send(bytes.as_ref()).unwrap(), bytes.as_ref().len()),
            Wire::Tcp { stream, .. } => stream.write_all(bytes.as_ref()).unwrap(),
        }
    }

    /// The next message; `None` after so long without one, or when the connection is closed.
    pub fn receive_within(&mut self, patience: Duration) -> Option<Message> {
        let deadline = Instant::now() + patience;
        match self {
            Wire::Udp(socket) => {
                socket.set_read_timeout(Some(patience)).unwrap();
                let mut buffer = vec![0; 65_536];
                let n = socket.recv(&mut buffer).ok()?;
                buffer.truncate(n);
                Some(Message::parse(buffer))
            }
            Wire::Tcp { stream, read } => loop {
                if let Some(length) = framed(read) {
                    return Some(Message::parse(read.drain(..length).collect()));
                }
                let left = deadline.saturating_duration_since(Instant::now());
                stream.set_read_timeout(Some(left.max(Duration::from_millis(1)))).unwrap();
                let mut buffer = [0; 8_192];
                match stream.read(&mut buffer) {
                    Ok(n) if n > 0 => read.extend_from_slice(&buffer[..n]),
                    _ => return None,
                }
            },
        }
    }

    #[track_caller]
    pub fn receive(&mut self) -> Message {
        self.receive_within(PATIENCE).expect("an answer")
    }

    /// The next final response to a request of this method.
    #[track_caller]
    pub fn final_response(&mut self, method: &str) -> Message {
        loop {
            let message = self.receive();
            let of_method = message.header("CSeq").is_some_and(|cseq| cseq.ends_with(method));
            if message.code() >= 200 && of_method {
                return message;
            }
        }
    }

    /// The peer has closed the connection, perhaps after some last bytes.
    pub fn closed(&mut self) -> bool {
        let Wire::Tcp { stream, .. } = self else { panic!("not a connection") };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut sink = Vec::new();
        match stream.read_to_end(&mut sink) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

/// Length of the message that these bytes begin with.
fn framed(bytes: &[u8]) -> Option<usize> {
    let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let message = Message::parse(bytes[..head].to_vec());
    let body: usize = message.header("Content-Length").map_or(0, |length| length.parse().unwrap());
    (bytes.len() >= head + body).then_some(head + body)
}

/// A message as received.
#[derive(Clone, Debug)]
pub struct Message {
    pub bytes: Vec<u8>,
    pub start: String,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Message {
    fn parse(bytes: Vec<u8>) -> Message {
        let text = String::from_utf8(bytes.clone()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let mut lines = head.split("\r\n");
        let start = lines.next().unwrap().to_owned();
        let headers = lines.map(|line| line.split_once(':').unwrap());
        let headers = headers.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        Message { start, headers, body: body.to_owned(), bytes }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Status code; 0 of a request.
    pub fn code(&self) -> u16 {
        self.start.strip_prefix("SIP/2.0 ").map_or(0, |rest| rest[..3].parse().unwrap())
    }

    /// Port and label of each m-line of the SDP.
    pub fn media(&self) -> Vec<Media> {
        let mut media: Vec<Media> = Vec::new();
        for line in self.body.split("\r\n") {
            if let Some(rest) = line.strip_prefix("m=") {
                let port = rest.split(' ').nth(1).unwrap().parse().unwrap();
                media.push(Media { port, label: None, direction: String::new() });
            }
            let Some(last) = media.last_mut() else { continue };
            match line {
                "a=recvonly" | "a=inactive" | "a=sendrecv" | "a=sendonly" => {
                    last.direction = line[2..].to_owned();
                }
                line => {
                    if let Some(label) = line.strip_prefix("a=label:") {
                        last.label = Some(label.to_owned());
                    }
                }
            }
        }
        media
    }

    pub fn ports(&self) -> Vec<u16> {
        self.media().iter().map(|media| media.port).collect()
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Media {
    pub port: u16,
    pub label: Option<String>,
    pub direction: String,
}

/// One m-line of an offer.
#[derive(Clone, Debug)]
pub struct Line {
    pub label: &'static str,
    /// 0: refused or removed.
    pub port: u16,
    pub format: &'static str,
    pub attributes: &'static str,
}

pub const PCMU: Line =
    Line { label: "1", port: 40_000, format: "0", attributes: "a=rtpmap:0 PCMU/8000\r\na=sendonly\r\n" };

impl Line {
    pub fn label(self, label: &'static str) -> Line {
        Line { label, ..self }
    }
}

pub fn two_streams() -> Vec<Line> {
    vec![PCMU, Line { port: 40_002, ..PCMU.label("2") }]
}

pub const BOUNDARY: &str = "unique-boundary-7";
pub const MULTIPART: &str = "multipart/mixed;boundary=unique-boundary-7";

/// A dialog with the recorder.
pub struct Call {
    pub wire: Wire,
    pub target: SocketAddr,
    pub call_id: String,
    pub tag: String,
    /// Of the recorder, once it has answered.
    pub remote_tag: Option<String>,
    pub cseq: u32,
    pub metadata: String,
    pub lines: Vec<Line>,
}

impl Call {
    pub fn new(wire: Wire, target: SocketAddr, lines: Vec<Line>) -> Call {
        static CALLS: AtomicU32 = AtomicU32::new(0);
        let n = CALLS.fetch_add(1, Ordering::Relaxed);
        let call_id = format!("call-{}-{n}@src.invalid", std::process::id());
        let metadata = metadata(&call_id, lines.iter().map(|line| line.label));
        Call { wire, target, call_id, tag: format!("src{n}"), remote_tag: None, cseq: 1, metadata, lines }
    }

    pub fn udp(target: SocketAddr) -> Call {
        Call::new(Wire::udp(target), target, two_streams())
    }

    pub fn tcp(target: SocketAddr) -> Call {
        Call::new(Wire::tcp(target), target, two_streams())
    }

    /// A request of this dialog with the current CSeq number; the branch is that of the number, so that ACK of a refusal,
    /// CANCEL and retransmissions match.
    pub fn request(&self, method: &str, fields: &str, body: &str) -> String {
        let Call { target, call_id, tag, cseq, .. } = self;
        let (local, transport) = (self.wire.local(), self.wire.name());
        let to_tag = self.remote_tag.as_ref().map(|tag| format!(";tag={tag}")).unwrap_or_default();
        // The ACK of a 2xx is a transaction of its own.
        let branch = if method == "ACK" && self.remote_tag.is_some() { "ack" } else { "z" };
        format!(
            "{method} sip:srs@{target} SIP/2.0\r\n\
             Via: SIP/2.0/{transport} {local};branch=z9hG4bK-{branch}-{call_id}-{cseq};rport\r\n\
             Max-Forwards: 70\r\n\
             From: <sip:src@{host}>;tag={tag}\r\n\
             To: <sip:srs@{target}>{to_tag}\r\n\
             Call-ID: {call_id}\r\n\
             CSeq: {cseq} {method}\r\n\
             Contact: <sip:src@{local};transport={lower}>;+sip.src\r\n\
             {fields}\
             Content-Length: {length}\r\n\r\n{body}",
            host = host(local),
            lower = transport.to_lowercase(),
            length = body.len(),
        )
    }

    pub fn invite_text(&self) -> String {
        let fields = format!("Require: siprec\r\nContent-Type: {MULTIPART}\r\n");
        self.request("INVITE", &fields, &self.body())
    }

    pub fn body(&self) -> String {
        multipart(&[
            ("application/sdp", &self.sdp()),
            ("application/rs-metadata+xml\r\nContent-Disposition: recording-session", &self.metadata),
        ])
    }

    pub fn sdp(&self) -> String {
        let ip = self.wire.local().ip();
        let family = if ip.is_ipv4() { "IP4" } else { "IP6" };
        let mut sdp = format!(
            "v=0\r\no=SRC 1 {} IN {family} {ip}\r\ns=-\r\nc=IN {family} {ip}\r\nt=0 0\r\n",
            self.cseq
        );
        for Line { label, port, format, attributes } in &self.lines {
            sdp += &format!("m=audio {port} RTP/AVP {format}\r\n{attributes}a=label:{label}\r\n");
        }
        sdp
    }

    /// INVITE or re-INVITE; its final response.
    #[track_caller]
    pub fn invite(&mut self) -> Message {
        let text = self.invite_text();
        self.wire.send(text);
        let answer = self.wire.final_response("INVITE");
        if answer.code() == 200 {
            self.remote_tag = Some(tag(&answer));
        }
        answer
    }

    pub fn ack(&mut self) {
        let text = self.request("ACK", "", "");
        self.wire.send(text);
    }

    /// INVITE, 200, ACK. The ports that were answered.
    #[track_caller]
    pub fn establish(&mut self) -> Vec<u16> {
        let answer = self.invite();
        assert_eq!(answer.code(), 200, "{}", answer.start);
        self.ack();
        answer.ports()
    }

    #[track_caller]
    pub fn bye(&mut self) -> Message {
        self.cseq += 1;
        let text = self.request("BYE", "", "");
        self.wire.send(text);
        self.wire.final_response("BYE")
    }

    #[track_caller]
    pub fn hang_up(&mut self) {
        assert_eq!(self.bye().code(), 200);
    }

    /// The answer to a request of the recorder.
    pub fn accept(&mut self, request: &Message) {
        let field = |name: &str| format!("{name}: {}\r\n", request.header(name).unwrap());
        let fields: String = ["Via", "From", "To", "Call-ID", "CSeq"].into_iter().map(field).collect();
        self.wire.send(format!("SIP/2.0 200 OK\r\n{fields}Content-Length: 0\r\n\r\n"));
    }
}

/// Tag of the To field.
pub fn tag(message: &Message) -> String {
    let to = message.header("To").unwrap();
    to.split(";tag=").nth(1).unwrap().split(';').next().unwrap().to_owned()
}

fn host(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(address) => address.ip().to_string(),
        SocketAddr::V6(address) => format!("[{}]", address.ip()),
    }
}

pub fn multipart(parts: &[(&str, &str)]) -> String {
    let mut body = String::new();
    for (content_type, text) in parts {
        body += &format!("--{BOUNDARY}\r\nContent-Type: {content_type}\r\n\r\n{text}\r\n");
    }
    body + &format!("--{BOUNDARY}--\r\n")
}

/// A complete snapshot (RFC 7865): a participant for each label, who sends into its stream.
pub fn metadata<'a>(session: &str, labels: impl Iterator<Item = &'a str> + Clone) -> String {
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\r\n\
         <recording xmlns=\"urn:ietf:params:xml:ns:recording:1\">\r\n\
         <datamode>complete</datamode>\r\n\
         <session session_id=\"cs-{session}\"><sipSessionID>x</sipSessionID></session>\r\n"
    );
    for label in labels.clone() {
        xml += &format!(
            "<participant participant_id=\"p-{label}\">\
             <nameID aor=\"sip:party{label}@cs.invalid\"><name xml:lang=\"en\">Party {label}</name></nameID>\
             </participant>\r\n\
             <stream stream_id=\"s-{label}\" session_id=\"cs-{session}\"><label>{label}</label></stream>\r\n"
        );
    }
    for label in labels {
        xml += &format!(
            "<participantsessionassoc participant_id=\"p-{label}\" session_id=\"cs-{session}\"/>\r\n\
             <participantstreamassoc participant_id=\"p-{label}\"><send>s-{label}</send></participantstreamassoc>\r\n"
        );
    }
    xml + "</recording>\r\n"
}
