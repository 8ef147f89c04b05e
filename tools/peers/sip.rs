//! Just enough SIP (RFC 3261) and SDP for the load tool's dialogs over UDP: INVITE is answered 200 with ports, BYE is answered 200,
//! all else is let go.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};

/// Largest datagram.
const DATAGRAM: usize = 65_536;

/// Where the media of the calls goes.
pub trait Media {
    /// RTP ports for the streams of a new call, RTCP one above each.
    fn open(&mut self, call_id: &str, streams: usize) -> io::Result<Vec<u16>>;
    /// The call has ended.
    fn close(&mut self, call_id: &str);
}

/// One socket and the answers it has given.
pub struct Server {
    pub socket: UdpSocket,
    local: SocketAddr,
    /// To INVITEs, by Call-ID: a repeated one gets the same.
    answers: HashMap<String, String>,
    buffer: Vec<u8>,
}

impl Server {
    pub fn bind(address: SocketAddr) -> io::Result<Server> {
        let socket = UdpSocket::bind(address)?;
        let local = socket.local_addr()?;
        Ok(Server { socket, local, answers: HashMap::new(), buffer: vec![0; DATAGRAM] })
    }

    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Answers the datagrams that are there; a blocking socket is waited for once.
    pub fn serve(&mut self, media: &mut impl Media) -> io::Result<()> {
        let (len, from) = match self.socket.recv_from(&mut self.buffer) {
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(());
            }
            received => received?,
        };
        let text = String::from_utf8_lossy(&self.buffer[..len]).into_owned();
        if let Some(answer) = self.answer(&text, media)? {
            self.socket.send_to(answer.as_bytes(), from)?;
        }
        Ok(())
    }

    fn answer(&mut self, text: &str, media: &mut impl Media) -> io::Result<Option<String>> {
        let Some(request) = Request::parse(text) else { return Ok(None) };
        match request.method {
            "INVITE" => {
                if let Some(answer) = self.answers.get(request.call_id) {
                    return Ok(Some(answer.clone()));
                }
                let offered = m_lines(request.body);
                let ports = media.open(request.call_id, offered.len())?;
                let answer = request.ok(self.local, &sdp(self.local, &offered, &ports));
                self.answers.insert(request.call_id.to_owned(), answer.clone());
                Ok(Some(answer))
            }
            "BYE" => {
                media.close(request.call_id);
                self.answers.remove(request.call_id);
                Ok(Some(request.ok(self.local, "")))
            }
            _ => Ok(None),
        }
    }
}

/// The fields of a request that its answer repeats.
struct Request<'a> {
    method: &'a str,
    call_id: &'a str,
    /// Via, From, To, Call-ID and CSeq as they came.
    echoed: Vec<&'a str>,
    body: &'a str,
}

impl<'a> Request<'a> {
    fn parse(text: &'a str) -> Option<Request<'a>> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.split("\r\n");
        let method = lines.next()?.strip_suffix(" SIP/2.0")?.split(' ').next()?;
        let echoed: Vec<&str> =
            lines.filter(|line| ["Via", "From", "To", "Call-ID", "CSeq"].contains(&name(line))).collect();
        let call_id = echoed.iter().find(|line| name(line) == "Call-ID")?.split_once(':')?.1.trim();
        Some(Request { method, call_id, echoed, body })
    }

    fn ok(&self, local: SocketAddr, sdp: &str) -> String {
        let mut answer = String::from("SIP/2.0 200 OK\r\n");
        for line in &self.echoed {
            let tag = if name(line) == "To" && !line.contains(";tag=") { ";tag=peer" } else { "" };
            answer += &format!("{line}{tag}\r\n");
        }
        if !sdp.is_empty() {
            answer += &format!("Contact: <sip:srs@{local}>;+sip.srs\r\nContent-Type: application/sdp\r\n");
        }
        answer + &format!("Content-Length: {}\r\n\r\n{sdp}", sdp.len())
    }
}

fn name(line: &str) -> &str {
    line.split(':').next().unwrap_or_default().trim_end()
}

/// An offered stream: its m-line and what of its attributes the answer repeats.
struct Offered<'a> {
    formats: &'a str,
    attributes: Vec<&'a str>,
}

/// Whatever stands around the SDP in a multipart body has no such lines.
fn m_lines(body: &str) -> Vec<Offered<'_>> {
    let mut offered: Vec<Offered<'_>> = Vec::new();
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("m=audio ") {
            let formats = rest.split_once("RTP/AVP ").map_or("", |(_, formats)| formats);
            offered.push(Offered { formats, attributes: Vec::new() });
        } else if let Some(last) = offered.last_mut()
            && (line.starts_with("a=label:") || line.starts_with("a=rtpmap:"))
        {
            last.attributes.push(line);
        }
    }
    offered
}

fn sdp(local: SocketAddr, offered: &[Offered<'_>], ports: &[u16]) -> String {
    let family = if local.is_ipv4() { "IP4" } else { "IP6" };
    let ip = local.ip();
    let mut sdp = format!("v=0\r\no=- 1 1 IN {family} {ip}\r\ns=-\r\nc=IN {family} {ip}\r\nt=0 0\r\n");
    for (stream, port) in offered.iter().zip(ports) {
        sdp += &format!("m=audio {port} RTP/AVP {}\r\na=recvonly\r\n", stream.formats);
        stream.attributes.iter().for_each(|attribute| sdp += &format!("{attribute}\r\n"));
    }
    sdp
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Ports(u16, Vec<String>);

    impl Media for Ports {
        fn open(&mut self, _: &str, streams: usize) -> io::Result<Vec<u16>> {
            self.0 += 100;
            Ok((0..streams as u16).map(|n| self.0 + 2 * n).collect())
        }
        fn close(&mut self, call_id: &str) {
            self.1.push(call_id.to_owned());
        }
    }

    fn request(method: &str, body: &str) -> String {
        format!(
            "{method} sip:srs@h SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK-1\r\nFrom: <sip:a@h>;tag=f\r\n\
             To: <sip:srs@h>\r\nCall-ID: one@h\r\nCSeq: 1 {method}\r\n\r\n{body}"
        )
    }

    const OFFER: &str = "--b\r\nContent-Type: application/sdp\r\n\r\nv=0\r\nm=audio 9 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n\
        a=sendonly\r\na=label:x\r\nm=audio 11 RTP/AVP 96\r\na=label:y\r\n--b\r\n\r\n<recording/>\r\n--b--\r\n";

    #[test]
    fn an_invite_gets_ports_and_labels_once() {
        let mut server = Server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let mut media = Ports::default();
        let answer = server.answer(&request("INVITE", OFFER), &mut media).unwrap().unwrap();
        assert!(answer.starts_with("SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK-1\r\n"), "{answer}");
        assert!(answer.contains("To: <sip:srs@h>;tag=peer\r\n") && answer.contains(">;+sip.srs\r\n"));
        let first = "m=audio 100 RTP/AVP 0\r\na=recvonly\r\na=rtpmap:0 PCMU/8000\r\na=label:x\r\n";
        let second = "m=audio 102 RTP/AVP 96\r\na=recvonly\r\na=label:y\r\n";
        assert!(answer.ends_with(&format!("{first}{second}")), "{answer}");
        let again = server.answer(&request("INVITE", OFFER), &mut media).unwrap().unwrap();
        assert_eq!(again, answer);
        assert!(server.answer(&request("ACK", ""), &mut media).unwrap().is_none());
        let bye = server.answer(&request("BYE", ""), &mut media).unwrap().unwrap();
        assert!(bye.ends_with("CSeq: 1 BYE\r\nContent-Length: 0\r\n\r\n"), "{bye}");
        assert_eq!(media.1, ["one@h"]);
    }

    #[test]
    fn what_is_no_request_is_let_go() {
        let mut server = Server::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        for text in ["", "SIP/2.0 200 OK\r\n\r\n", "INVITE x SIP/2.0\r\n\r\n", "INVITE x SIP/2.0"] {
            assert!(server.answer(text, &mut Ports::default()).unwrap().is_none(), "{text}");
        }
    }
}
