//! rtpengine's control protocol, as far as recording calls needs it: a cookie, then a bencoded dictionary.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use super::sip::Media;

const PATIENCE: Duration = Duration::from_millis(500);
/// Requests are repeated this often: rtpengine may still be starting.
const ATTEMPTS: usize = 40;

pub struct Rtpengine {
    socket: UdpSocket,
    /// Of the sender, as an offer has to name one.
    ip: IpAddr,
    requests: u64,
}

impl Rtpengine {
    pub fn connect(ng: SocketAddr, ip: IpAddr) -> io::Result<Rtpengine> {
        let any: IpAddr = if ng.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(ng)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut rtpengine = Rtpengine { socket, ip, requests: 0 };
        rtpengine.request(&[("command", "ping")])?;
        Ok(rtpengine)
    }

    /// The answer, which is repeated under the same cookie when one of the two datagrams was lost.
    fn request(&mut self, fields: &[(&str, &str)]) -> io::Result<String> {
        self.requests += 1;
        let cookie = format!("c{} ", self.requests);
        let request = format!("{cookie}{}", dictionary(fields));
        let mut buffer = [0; 65_536];
        for _ in 0..ATTEMPTS {
            let _ = self.socket.send(request.as_bytes());
            match self.socket.recv(&mut buffer) {
                Ok(len) => {
                    let answer = String::from_utf8_lossy(&buffer[..len]).into_owned();
                    if answer.contains("6:result5:error") {
                        return Err(io::Error::other(format!("rtpengine refuses {request}: {answer}")));
                    }
                    if answer.starts_with(&cookie) {
                        return Ok(answer);
                    }
                }
                // Refused: it does not listen yet. A time-out has already taken its time.
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::thread::sleep(PATIENCE / 5),
                Err(_) => {}
            }
        }
        Err(io::Error::other("rtpengine does not answer"))
    }
}

impl Media for Rtpengine {
    /// Offers the streams the way an SRS's front end does, and has them recorded.
    fn open(&mut self, call_id: &str, streams: usize) -> io::Result<Vec<u16>> {
        let sdp = offer(self.ip, streams);
        let publish = [
            ("command", "publish"),
            ("call-id", call_id),
            ("from-tag", "a"),
            ("ICE", "remove"),
            ("DTLS", "off"),
            ("sdp", &sdp),
        ];
        let answer = self.request(&publish)?;
        self.request(&[("command", "start recording"), ("call-id", call_id)])?;
        let ports: Vec<u16> = ports(&answer);
        if ports.len() == streams {
            return Ok(ports);
        }
        Err(io::Error::other(format!("rtpengine gave {} of {streams} ports: {answer}", ports.len())))
    }

    fn close(&mut self, call_id: &str) {
        // A call that it does not know any more has ended too.
        let _ = self.request(&[("command", "delete"), ("call-id", call_id)]);
    }
}

fn dictionary(fields: &[(&str, &str)]) -> String {
    let text = |value: &str| format!("{}:{value}", value.len());
    let body: String = fields.iter().map(|(key, value)| text(key) + &text(value)).collect();
    format!("d{body}e")
}

fn offer(ip: IpAddr, streams: usize) -> String {
    let family = if ip.is_ipv4() { "IP4" } else { "IP6" };
    let session = format!("v=0\r\no=- 1 1 IN {family} {ip}\r\ns=-\r\nc=IN {family} {ip}\r\nt=0 0\r\n");
    let lines = (0..streams).map(|n| format!("m=audio {} RTP/AVP 0\r\na=sendonly\r\n", 9_000 + 2 * n));
    session + &lines.collect::<String>()
}

fn ports(answer: &str) -> Vec<u16> {
    answer.lines().filter_map(|line| line.strip_prefix("m=audio ")?.split(' ').next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dictionary_is_bencoded() {
        assert_eq!(dictionary(&[("command", "ping"), ("a", "")]), "d7:command4:ping1:a0:e");
    }

    #[test]
    fn the_ports_of_an_answer_are_those_of_its_m_lines() {
        assert_eq!(
            ports("c1 d3:sdp9:v=0\r\nm=audio 30000 RTP/AVP 0\r\nm=audio 30004 RTP/AVP 0\r\n"),
            [30_000, 30_004]
        );
        assert_eq!(ports(&offer([127, 0, 0, 1].into(), 2)), [9_000, 9_002]);
    }
}
