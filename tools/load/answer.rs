//! What a SIPREC answer must be, and the names of what can be wrong with it.

use std::net::{IpAddr, SocketAddr};

use super::codec::Codec;
use super::message::Message;

/// Where one stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    pub rtp: SocketAddr,
    pub rtcp: SocketAddr,
}

/// One deviation from RFC 7866 or RFC 3264 that fails the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deviation {
    /// RFC 7866 §6.2: `+sip.srs` in Contact.
    SrsTagMissing,
    ContactMissing,
    ToTagMissing,
    /// No body, or one that is not application/sdp.
    SdpMissing,
    /// RFC 3264 §6: as many m-lines as offered.
    FewerMLines,
    MoreMLines,
    /// RFC 7866 §7.2, Figure 6: the label is echoed.
    LabelMissing,
    LabelWrong,
    /// RFC 3264 §6.1: recvonly to a sendonly offer.
    DirectionWrong,
    StreamRefused,
    /// RFC 3264 §6.1: one of the formats offered.
    FormatMissing,
    RtpmapMissing,
    AddressMissing,
}

impl Deviation {
    pub fn name(self) -> &'static str {
        match self {
            Deviation::SrsTagMissing => "answer_without_sip_srs",
            Deviation::ContactMissing => "answer_without_contact",
            Deviation::ToTagMissing => "answer_without_to_tag",
            Deviation::SdpMissing => "answer_without_sdp",
            Deviation::FewerMLines => "answer_with_fewer_m_lines",
            Deviation::MoreMLines => "answer_with_more_m_lines",
            Deviation::LabelMissing => "answer_without_label",
            Deviation::LabelWrong => "answer_with_wrong_label",
            Deviation::DirectionWrong => "answer_not_recvonly",
            Deviation::StreamRefused => "stream_refused",
            Deviation::FormatMissing => "answer_without_offered_format",
            Deviation::RtpmapMissing => "answer_without_rtpmap",
            Deviation::AddressMissing => "answer_without_address",
        }
    }
}

/// Checks a 200 to the INVITE that offered `labels`, and says where its streams go, in the order of the labels.
pub fn check(message: &Message, codec: Codec, labels: &[String]) -> Result<Vec<Destination>, Deviation> {
    let contact = message.header("contact").ok_or(Deviation::ContactMissing)?;
    let after_uri = contact.split_once('>').ok_or(Deviation::SrsTagMissing)?.1;
    if super::message::parameter(after_uri, "+sip.srs").is_none() {
        return Err(Deviation::SrsTagMissing);
    }
    let to = message.header("to").unwrap_or_default();
    super::message::parameter(to, "tag").ok_or(Deviation::ToTagMissing)?;
    let sdp_type = message.header("content-type").unwrap_or_default().to_ascii_lowercase();
    if !sdp_type.starts_with("application/sdp") || message.body.is_empty() {
        return Err(Deviation::SdpMissing);
    }
    check_sdp(&message.body, codec, labels)
}

fn check_sdp(sdp: &str, codec: Codec, labels: &[String]) -> Result<Vec<Destination>, Deviation> {
    let (session, media) = sections(sdp);
    match media.len().cmp(&labels.len()) {
        std::cmp::Ordering::Less => return Err(Deviation::FewerMLines),
        std::cmp::Ordering::Greater => return Err(Deviation::MoreMLines),
        std::cmp::Ordering::Equal => {}
    }
    media.iter().zip(labels).map(|(lines, label)| check_media(&session, lines, codec, label)).collect()
}

/// The lines before the first m-line, and those of each m-line.
fn sections(sdp: &str) -> (Vec<&str>, Vec<Vec<&str>>) {
    let mut session = Vec::new();
    let mut media: Vec<Vec<&str>> = Vec::new();
    for line in sdp.lines() {
        if line.starts_with("m=") {
            media.push(Vec::new());
        }
        media.last_mut().unwrap_or(&mut session).push(line);
    }
    (session, media)
}

fn check_media(
    session: &[&str],
    media: &[&str],
    codec: Codec,
    label: &str,
) -> Result<Destination, Deviation> {
    let mut words = media[0].split_ascii_whitespace().skip(1);
    let port: u16 = words.next().and_then(|port| port.parse().ok()).ok_or(Deviation::StreamRefused)?;
    if port == 0 {
        return Err(Deviation::StreamRefused);
    }
    let format = codec.payload_type().to_string();
    if !words.skip(1).any(|word| word == format) {
        return Err(Deviation::FormatMissing);
    }
    // RFC 3551 §6: static types need no rtpmap.
    if codec.payload_type() >= 96
        && !media.iter().any(|line| line.starts_with(&format!("a=rtpmap:{format} ")))
    {
        return Err(Deviation::RtpmapMissing);
    }
    match value(media, "a=label:") {
        None => return Err(Deviation::LabelMissing),
        Some(echoed) if echoed != label => return Err(Deviation::LabelWrong),
        Some(_) => {}
    }
    if direction(media).or(direction(session)) != Some("recvonly") {
        return Err(Deviation::DirectionWrong);
    }
    let address = address(media).or(address(session)).ok_or(Deviation::AddressMissing)?;
    // RFC 3605.
    let rtcp = value(media, "a=rtcp:").and_then(|value| value.split(' ').next()?.parse().ok());
    let rtcp = rtcp.unwrap_or(port.saturating_add(1));
    Ok(Destination { rtp: SocketAddr::new(address, port), rtcp: SocketAddr::new(address, rtcp) })
}

fn value<'a>(lines: &[&'a str], prefix: &str) -> Option<&'a str> {
    lines.iter().find_map(|line| line.strip_prefix(prefix)).map(str::trim)
}

fn direction<'a>(lines: &[&'a str]) -> Option<&'a str> {
    let names = ["recvonly", "sendonly", "sendrecv", "inactive"];
    lines.iter().filter_map(|line| line.strip_prefix("a=")).find(|name| names.contains(name))
}

/// `c=IN IP4 192.0.2.1`; the unspecified address is none.
fn address(lines: &[&str]) -> Option<IpAddr> {
    let line = value(lines, "c=IN ")?;
    let address: IpAddr = line.split(' ').nth(1)?.split('/').next()?.parse().ok()?;
    Some(address).filter(|address| !address.is_unspecified())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A correct answer to two PCMU streams labelled 1 and 2.
    pub const GOOD: &str = "SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK-r1-0-1\r\nTo: <sip:srs@h>;tag=t\r\n\
        Contact: <sip:srs@127.0.0.1:5060>;+sip.srs\r\nContent-Type: application/sdp\r\n\r\n\
        v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n\
        m=audio 20000 RTP/AVP 0\r\na=label:1\r\na=recvonly\r\n\
        m=audio 20002 RTP/AVP 0\r\na=label:2\r\na=recvonly\r\na=rtcp:20009\r\n";

    fn answer(from: &str, to: &str) -> Result<Vec<Destination>, Deviation> {
        assert!(from.is_empty() || GOOD.contains(from));
        let message = Message::parse(GOOD.replacen(from, to, 1).as_bytes()).unwrap();
        check(&message, Codec::Pcmu, &["1".into(), "2".into()])
    }

    #[test]
    fn a_good_answer_names_the_destinations() {
        let ports: Vec<(u16, u16)> =
            answer("", "").unwrap().iter().map(|to| (to.rtp.port(), to.rtcp.port())).collect();
        assert_eq!(ports, [(20_000, 20_001), (20_002, 20_009)]);
    }

    #[test]
    fn every_deviation_is_found() {
        let second = &GOOD[GOOD.find("m=audio 20002").unwrap()..];
        for (from, to, deviation) in [
            (";+sip.srs", "", Deviation::SrsTagMissing),
            ("5060>;+sip.srs", "5060;+sip.srs>", Deviation::SrsTagMissing),
            ("Contact: ", "X: ", Deviation::ContactMissing),
            (";tag=t", "", Deviation::ToTagMissing),
            ("application/sdp", "text/plain", Deviation::SdpMissing),
            (second, "", Deviation::FewerMLines),
            (second, &second.repeat(2), Deviation::MoreMLines),
            ("a=label:1\r\n", "", Deviation::LabelMissing),
            ("a=label:1", "a=label:2", Deviation::LabelWrong),
            ("a=recvonly", "a=sendrecv", Deviation::DirectionWrong),
            ("a=recvonly\r\n", "", Deviation::DirectionWrong),
            ("audio 20000", "audio 0", Deviation::StreamRefused),
            ("AVP 0", "AVP 8", Deviation::FormatMissing),
            ("c=IN IP4 127.0.0.1", "c=IN IP4 0.0.0.0", Deviation::AddressMissing),
        ] {
            assert_eq!(answer(from, to), Err(deviation), "{from} -> {to}");
        }
    }
}
