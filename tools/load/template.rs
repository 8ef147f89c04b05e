//! The SRC's messages as text. They are written here and not by the recorder's own writer, so that one misreading of an RFC
//! cannot hide on both sides.

use std::net::SocketAddr;
use std::time::Duration;

use super::clock;
use super::options::Transport;
use super::plan::{Plan, mix};
use super::selfdescription;

const BOUNDARY: &str = "sipreel-load-boundary";
const AGENT: &str = concat!("sipreel-load/", env!("CARGO_PKG_VERSION"));

/// What all messages of a run share.
#[derive(Clone, Debug)]
pub struct Site {
    pub plan: Plan,
    pub transport: Transport,
    pub target: SocketAddr,
    /// Our address in Via and Contact.
    pub local: SocketAddr,
}

/// The two sockets that one stream is sent from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    pub rtp: SocketAddr,
    pub rtcp: SocketAddr,
}

/// The dialog as later requests need it (RFC 3261 §12.2.1.1).
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// To field of the 200, with its tag.
    pub to: String,
    /// URI of its Contact.
    pub target: String,
    /// Its Record-Route, reversed.
    pub routes: Vec<String>,
}

/// m-line labels of a call's streams.
pub fn labels(plan: &Plan) -> Vec<String> {
    (1..=plan.streams).map(|label| label.to_string()).collect()
}

impl Site {
    pub fn call_id(&self, call: u32) -> String {
        format!("{}-{call}@{}", self.plan.run, self.local.ip())
    }

    /// RFC 3261 §8.1.1.7: unique per transaction, with the magic cookie.
    pub fn branch(&self, call: u32, cseq: u32) -> String {
        format!("z9hG4bK-{}-{call}-{cseq}", self.plan.run)
    }

    pub fn request_uri(&self) -> String {
        format!("sip:srs@{}{}", self.target, self.transport_parameter())
    }

    fn transport_parameter(&self) -> &'static str {
        match self.transport {
            Transport::Udp => "",
            Transport::Tcp => ";transport=tcp",
            Transport::Tls => ";transport=tls",
        }
    }

    fn contact(&self) -> String {
        format!("<sip:src@{}{}>;+sip.src", self.local, self.transport_parameter())
    }

    /// Request line and the fields that every request has.
    fn head(&self, method: &str, uri: &str, call: u32, cseq: u32, to: &str) -> String {
        let via = match self.transport {
            Transport::Udp => "UDP",
            Transport::Tcp => "TCP",
            Transport::Tls => "TLS",
        };
        format!(
            "{method} {uri} SIP/2.0\r\n\
             Via: SIP/2.0/{via} {local};branch={branch};rport\r\n\
             Max-Forwards: 70\r\n\
             From: <sip:src@{ip}>;tag={tag}\r\n\
             To: {to}\r\n\
             Call-ID: {call_id}\r\n\
             CSeq: {cseq} {method}\r\n",
            local = self.local,
            branch = self.branch(call, cseq),
            ip = host(self.local),
            tag = self.tag(call),
            call_id = self.call_id(call),
        )
    }

    fn tag(&self, call: u32) -> String {
        format!("{:016x}", mix(self.plan.seed ^ mix(u64::from(call))))
    }

    /// To of the INVITE: no tag yet.
    fn to(&self) -> String {
        format!("<sip:srs@{}>", host(self.target))
    }

    pub fn invite(&self, call: u32, cseq: u32, sources: &[Source], wall: Duration) -> String {
        let body = multipart(&self.sdp(call, sources), &self.metadata(call, sources, wall));
        let mut text = self.head("INVITE", &self.request_uri(), call, cseq, &self.to());
        text += &format!(
            "Contact: {}\r\n\
             Require: siprec\r\n\
             Allow: INVITE, ACK, BYE, CANCEL, OPTIONS, UPDATE\r\n\
             Accept: application/sdp\r\n\
             User-Agent: {AGENT}\r\n\
             Content-Type: multipart/mixed;boundary={BOUNDARY}\r\n\
             Content-Length: {}\r\n\r\n",
            self.contact(),
            body.len(),
        );
        text + &body
    }

    /// A new transaction of its own for a 2xx (RFC 3261 §13.2.2.4); that is why it takes a branch number.
    pub fn ack(&self, call: u32, cseq: u32, peer: &Peer) -> String {
        let mut text = self.head("ACK", &peer.target, call, cseq, &peer.to);
        // The branch of an ACK to a 2xx differs from the INVITE's.
        text = text.replacen(&self.branch(call, cseq), &format!("{}-ack", self.branch(call, cseq)), 1);
        finish(text + &routes(peer))
    }

    /// Part of the INVITE's transaction (RFC 3261 §17.1.1.3): its branch and URI, the To of the answer.
    pub fn ack_refusal(&self, call: u32, cseq: u32, to: &str) -> String {
        finish(self.head("ACK", &self.request_uri(), call, cseq, to))
    }

    /// RFC 3261 §9.1: all identifying fields are the INVITE's.
    pub fn cancel(&self, call: u32, cseq: u32) -> String {
        finish(self.head("CANCEL", &self.request_uri(), call, cseq, &self.to()))
    }

    pub fn bye(&self, call: u32, cseq: u32, peer: &Peer) -> String {
        finish(self.head("BYE", &peer.target, call, cseq, &peer.to) + &routes(peer))
    }

    /// Every stream sendonly with its label (RFC 7866 §7.1.1).
    fn sdp(&self, call: u32, sources: &[Source]) -> String {
        let plan = &self.plan;
        let ip = sources[0].rtp.ip();
        let family = if ip.is_ipv4() { "IP4" } else { "IP6" };
        let session = mix(plan.seed ^ u64::from(call)) >> 2;
        let mut sdp = format!(
            "v=0\r\no=SRC {session} {session} IN {family} {ip}\r\ns=-\r\nc=IN {family} {ip}\r\nt=0 0\r\n"
        );
        for (source, label) in sources.iter().zip(labels(plan)) {
            sdp += &format!(
                "m=audio {port} RTP/AVP {format}\r\n\
                 a=rtpmap:{format} {rtpmap}\r\n\
                 a=ptime:{ptime}\r\n\
                 a=sendonly\r\n\
                 a=label:{label}\r\n",
                port = source.rtp.port(),
                format = plan.codec.payload_type(),
                rtpmap = plan.codec.rtpmap(),
                ptime = plan.ptime_ms,
            );
        }
        sdp
    }

    /// A complete snapshot: session, a participant per stream who sends into it and hears the others (RFC 7865 §6).
    fn metadata(&self, call: u32, sources: &[Source], wall: Duration) -> String {
        let id = |what: &str, n: u32| self.identifier(call, what, n);
        let (time, session, streams) = (clock::rfc3339(wall), id("session", 0), self.plan.streams);
        let mut xml = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\r\n\
             <recording xmlns=\"urn:ietf:params:xml:ns:recording:1\">\r\n\
             <datamode>complete</datamode>\r\n\
             <session session_id=\"{session}\"><start-time>{time}</start-time></session>\r\n"
        );
        for n in 0..streams {
            xml += &format!(
                "<participant participant_id=\"{}\"><nameID aor=\"{}\"><name xml:lang=\"en\">{}</name></nameID></participant>\r\n",
                id("participant", n),
                aor(call, n),
                name(call, n),
            );
        }
        for (n, label) in (0..streams).zip(labels(&self.plan)) {
            let stream = id("stream", n);
            xml += &format!(
                "<stream stream_id=\"{stream}\" session_id=\"{session}\"><label>{label}</label></stream>\r\n"
            );
        }
        xml += &format!(
            "<sessionrecordingassoc session_id=\"{session}\"><associate-time>{time}</associate-time></sessionrecordingassoc>\r\n"
        );
        for n in 0..streams {
            xml += &format!(
                "<participantsessionassoc participant_id=\"{}\" session_id=\"{session}\">\
                 <associate-time>{time}</associate-time></participantsessionassoc>\r\n",
                id("participant", n),
            );
        }
        for n in 0..streams {
            xml += &format!("<participantstreamassoc participant_id=\"{}\">", id("participant", n));
            xml += &format!("<send>{}</send>", id("stream", n));
            (0..streams).filter(|other| *other != n).for_each(|other| {
                xml += &format!("<recv>{}</recv>", id("stream", other));
            });
            xml += "</participantstreamassoc>\r\n";
        }
        let described = selfdescription::write(&self.plan, call, &self.call_id(call), sources);
        xml + &described + "\r\n</recording>\r\n"
    }

    /// A UUID in base64, as RFC 7865 §6.10 recommends for all ids.
    fn identifier(&self, call: u32, what: &str, n: u32) -> String {
        let words = what.bytes().fold(mix(self.plan.seed), |hash, byte| mix(hash ^ u64::from(byte)));
        let run = self.plan.run.bytes().fold(words, |hash, byte| mix(hash ^ u64::from(byte)));
        let high = mix(run ^ (u64::from(call) << 32 | u64::from(n)));
        let mut uuid = [0; 16];
        uuid[..8].copy_from_slice(&high.to_be_bytes());
        uuid[8..].copy_from_slice(&mix(high).to_be_bytes());
        // RFC 9562: version 8, variant 10.
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        base64(&uuid)
    }
}

/// Address of record of the party that speaks in this stream.
pub fn aor(call: u32, stream: u32) -> String {
    match stream {
        0 => format!("sip:agent{call}@example.com"),
        _ => format!("sip:customer{call}.{stream}@example.net"),
    }
}

pub fn name(call: u32, stream: u32) -> String {
    match stream {
        0 => format!("Agent {call}"),
        _ => format!("Customer {call}.{stream}"),
    }
}

fn multipart(sdp: &str, metadata: &str) -> String {
    format!(
        "--{BOUNDARY}\r\nContent-Type: application/sdp\r\n\r\n{sdp}\r\n\
         --{BOUNDARY}\r\nContent-Type: application/rs-metadata+xml\r\n\
         Content-Disposition: recording-session\r\n\r\n{metadata}\r\n--{BOUNDARY}--\r\n"
    )
}

/// The answer to a request from the recorder.
pub fn respond(request: &super::message::Message, status: &str) -> String {
    let mut text = format!("SIP/2.0 {status}\r\n");
    request.headers("via").for_each(|via| text += &format!("Via: {via}\r\n"));
    for (name, field) in [("From", "from"), ("To", "to"), ("Call-ID", "call-id"), ("CSeq", "cseq")] {
        text += &format!("{name}: {}\r\n", request.header(field).unwrap_or_default());
    }
    finish(text)
}

fn routes(peer: &Peer) -> String {
    peer.routes.iter().map(|route| format!("Route: {route}\r\n")).collect()
}

fn finish(head: String) -> String {
    head + "User-Agent: " + AGENT + "\r\nContent-Length: 0\r\n\r\n"
}

/// An address as the host of a URI: IPv6 in brackets.
fn host(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(v4) => v4.ip().to_string(),
        SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
    }
}

/// RFC 4648 §4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().chain(&[0; 2]).take(3).fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        let symbols = [18, 12, 6, 0].map(|shift| ALPHABET[(word >> shift & 63) as usize] as char);
        text.extend(&symbols[..=chunk.len()]);
        text.extend(std::iter::repeat_n('=', 3 - chunk.len()));
    }
    text
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::load::message::{Message, Start};
    use crate::load::plan::tests::plan;

    pub fn site() -> Site {
        Site {
            plan: plan(),
            transport: Transport::Udp,
            target: "127.0.0.1:5060".parse().unwrap(),
            local: "127.0.0.1:5070".parse().unwrap(),
        }
    }

    pub fn sources() -> Vec<Source> {
        [40_000, 40_002]
            .map(|port| Source {
                rtp: SocketAddr::new("127.0.0.1".parse().unwrap(), port),
                rtcp: SocketAddr::new("127.0.0.1".parse().unwrap(), port + 1),
            })
            .to_vec()
    }

    fn invite() -> String {
        site().invite(1, 1, &sources(), Duration::from_secs(1_795_334_613))
    }

    #[test]
    fn the_invite_is_a_siprec_invite() {
        let text = invite();
        let message = Message::parse(text.as_bytes()).unwrap();
        assert_eq!(message.start, Start::Request { method: "INVITE".into() });
        assert_eq!(message.header("require"), Some("siprec"));
        assert!(message.header("contact").unwrap().ends_with(">;+sip.src"));
        assert_eq!(message.header("content-length").unwrap(), message.body.len().to_string());
        assert_eq!(message.body.matches("a=sendonly\r\n").count(), 2);
    }

    #[test]
    fn a_mail_library_finds_both_parts() {
        let message = Message::parse(invite().as_bytes()).unwrap();
        let mail =
            format!("Content-Type: {}\r\n\r\n{}", message.header("content-type").unwrap(), message.body);
        let parsed = mailparse::parse_mail(mail.as_bytes()).unwrap();
        let types: Vec<_> = parsed.subparts.iter().map(|part| part.ctype.mimetype.as_str()).collect();
        assert_eq!(types, ["application/sdp", "application/rs-metadata+xml"]);
    }

    #[test]
    fn an_sdp_library_reads_the_offer() {
        let sdp = site().sdp(1, &sources());
        let session = sdp_types::Session::parse(sdp.as_bytes()).unwrap();
        let ports: Vec<u16> = session.medias.iter().map(|media| media.port).collect();
        assert_eq!(ports, [40_000, 40_002]);
        assert_eq!(session.medias[1].get_first_attribute_value("label"), Some(Some("2")));
    }

    #[test]
    fn metadata_is_well_formed_and_every_reference_resolves() {
        let xml = site().metadata(1, &sources(), Duration::from_secs(0));
        let document = roxmltree::Document::parse(&xml).unwrap();
        let ids: Vec<&str> = document
            .descendants()
            .filter(|node| ["session", "participant", "stream"].contains(&node.tag_name().name()))
            .filter_map(|node| node.attributes().next().map(|id| id.value()))
            .collect();
        let unique: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!((ids.len(), unique.len()), (5, 5));
        let references = document
            .descendants()
            .filter(|node| ["send", "recv"].contains(&node.tag_name().name()))
            .filter_map(|node| node.text());
        assert_eq!(references.filter(|id| ids.contains(id)).count(), 4);
        let labels: Vec<_> = document
            .descendants()
            .filter(|n| n.tag_name().name() == "label")
            .filter_map(|n| n.text())
            .collect();
        assert_eq!(labels, labels_of_sdp());
    }

    fn labels_of_sdp() -> Vec<String> {
        let sdp = site().sdp(1, &sources());
        sdp.lines().filter_map(|line| line.strip_prefix("a=label:")).map(str::to_owned).collect()
    }

    #[test]
    fn an_ack_to_a_200_is_a_new_transaction_and_one_to_a_refusal_is_not() {
        let peer = Peer {
            to: "<sip:srs@h>;tag=1".into(),
            target: "sip:srs@h".into(),
            routes: vec!["<sip:p>".into()],
        };
        let branch =
            |text: String| Message::parse(text.as_bytes()).unwrap().branch().map(str::to_owned).unwrap();
        let invited = branch(invite());
        assert_ne!(branch(site().ack(1, 1, &peer)), invited);
        assert_eq!(branch(site().ack_refusal(1, 1, &peer.to)), invited);
        assert_eq!(branch(site().cancel(1, 1)), invited);
        assert!(site().bye(1, 2, &peer).contains("\r\nRoute: <sip:p>\r\n"));
    }

    #[test]
    fn base64_of_rfc_4648() {
        assert_eq!(["f", "fo", "foo"].map(|text| base64(text.as_bytes())), ["Zg==", "Zm8=", "Zm9v"]);
    }
}
