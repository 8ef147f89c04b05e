//! SDP offers and the answers of a recorder (RFC 8866, RFC 3264, RFC 7866 §7).

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::net::IpAddr;

use crate::limits::{FORMATS_MAX, M_LINES_MAX, SDP_MAX};

/// One format of an m-line. Static payload types without rtpmap are filled in (RFC 3551 §6).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Codec {
    pub payload_type: u8,
    /// As the offer writes it: `PCMU`, `opus`. Compare without case.
    pub encoding: String,
    pub clock_rate: u32,
    pub channels: u8,
    pub fmtp: Option<String>,
}

/// What an offer says, as far as a recorder needs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    pub origin: Origin,
    /// Every m-line in its order, those with port 0 included.
    pub media: Vec<MediaLine>,
}

/// The o= line. Ids and versions are compared, never computed with, so they stay text; empty when there is no o= line.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Origin {
    pub username: String,
    pub session_id: String,
    pub version: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    SendRecv,
    SendOnly,
    RecvOnly,
    Inactive,
}

/// One m-line and what applies to it, its own or the session's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MediaLine {
    /// `audio`, `video`, `text`, `image`, …
    pub kind: String,
    /// The RTP port of the SRC; 0: the m-line is not in use.
    pub port: u16,
    /// `RTP/AVP`, as the offer writes it.
    pub protocol: String,
    /// As offered, without repeats.
    pub formats: Vec<String>,
    /// Formats whose codec is known, in the order of `formats`.
    pub codecs: Vec<Codec>,
    /// a=label as offered. RFC 4574 asks for a token, nothing here checks it: not fit for a file name as it is.
    pub label: Option<String>,
    /// a=mid (RFC 5888).
    pub mid: Option<String>,
    /// Of the m-line, else of the session, else sendrecv (RFC 8866 §6.7).
    pub direction: Direction,
    /// c=0.0.0.0 (RFC 3264 §8.4) or inactive: no media is to be expected.
    pub held: bool,
    /// Of the m-line's c=, else the session's. `None`: a host name, or no c= at all.
    pub address: Option<IpAddr>,
    /// a=rtcp (RFC 3605).
    pub rtcp_port: Option<u16>,
    pub rtcp_mux: bool,
    /// Milliseconds.
    pub ptime: Option<u32>,
    /// The rtpmap and fmtp attributes of the offered formats and their payload types, for the answer.
    format_attributes: Vec<(u8, String)>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SdpError {
    /// Larger than `SDP_MAX`.
    TooLarge,
    /// More than `M_LINES_MAX`.
    TooManyMediaLines,
    /// More than `FORMATS_MAX` on one m-line.
    TooManyFormats,
    /// Not SDP, or a line without which the offer cannot be understood.
    Malformed(String),
}

impl fmt::Display for SdpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SdpError::TooLarge => f.write_str("SDP is too large"),
            SdpError::TooManyMediaLines => f.write_str("SDP has too many m-lines"),
            SdpError::TooManyFormats => f.write_str("SDP has an m-line with too many formats"),
            SdpError::Malformed(why) => write!(f, "SDP cannot be read: {why}"),
        }
    }
}

impl std::error::Error for SdpError {}

/// How one m-line is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Line {
    /// Record it at this port, with every format that the m-line has; see [`MediaLine::keep_formats`]. The
    /// direction and rtcp-mux follow from the offer.
    Accept { port: u16 },
    /// Port 0.
    Refuse,
}

/// The o= of our answers: one id for the whole dialog, the version one higher whenever the answer differs from the one
/// before (RFC 3264 §8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AnswerOrigin {
    pub session_id: u64,
    pub version: u64,
}

/// Reads an SDP body of at most [`SDP_MAX`] bytes, with CRLF or bare LF.
pub fn parse(body: &[u8]) -> Result<Offer, SdpError> {
    if body.len() > SDP_MAX {
        return Err(SdpError::TooLarge);
    }
    let session = match sdp_types::Session::parse(body) {
        Ok(session) => session,
        // A line that recording does not need must not cost the call: once more without those.
        Err(refused) => sdp_types::Session::parse(&needed_lines(body)).map_err(|_| malformed(&refused))?,
    };
    if session.medias.len() > M_LINES_MAX {
        return Err(SdpError::TooManyMediaLines);
    }
    let media = session.medias.iter().map(|media| media_line(media, &session)).collect::<Result<_, _>>()?;
    Ok(Offer { origin: origin(body), media })
}

/// What an SRC would have to offer for an answer of ours to be the offer that we make where it makes none: one stream
/// of telephone audio, and its events.
pub fn unasked() -> Offer {
    const TEXT: &str = "v=0\r\nm=audio 9 RTP/AVP 0 8 9 18 101\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\n\
        a=rtpmap:9 G722/8000\r\na=rtpmap:18 G729/8000\r\na=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-15\r\n\
        a=sendonly\r\n";
    parse(TEXT.as_bytes()).expect("it is SDP")
}

/// This answer of ours as an offer: what was inactive may be sent into again. `None` when nothing was.
pub fn reactivated(answer: &[u8], origin: AnswerOrigin) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(answer).ok().filter(|text| text.contains("\r\na=inactive\r\n"))?;
    let mut active = String::with_capacity(text.len());
    for line in text.split_inclusive("\r\n") {
        match line.strip_prefix("o=- ").and_then(|rest| rest.splitn(3, ' ').nth(2)) {
            Some(address) => put(
                &mut active,
                format_args!("o=- {} {} {}", origin.session_id, origin.version, address.trim_end()),
            ),
            None if line == "a=inactive\r\n" => active.push_str("a=recvonly\r\n"),
            None => active.push_str(line),
        }
    }
    Some(active.into_bytes())
}

/// What the library says, which may quote the offer: short and printable, for logs and reason phrases.
fn malformed(refused: &sdp_types::ParserError) -> SdpError {
    const SHOWN: usize = 120;
    SdpError::Malformed(refused.to_string().chars().filter(|c| !c.is_control()).take(SHOWN).collect())
}

/// The lines that describe media (v, c, m, a), with what is known to go wrong in them put right: blanks at the end or
/// doubled, bytes that are not text, c= lines that are repeated or cut short. Without v= it is not SDP, and stays so.
fn needed_lines(body: &[u8]) -> Vec<u8> {
    let mut kept = String::with_capacity(body.len());
    let mut session_connection = false;
    let mut in_media = false;
    for line in text_lines(body) {
        match line.as_bytes() {
            [b'v', b'=', ..] if kept.is_empty() => kept.push_str(&line),
            [b'm', b'=', ..] => {
                in_media = true;
                push_fields(&mut kept, &line);
            }
            [b'c', b'=', ..]
                if line.split_ascii_whitespace().count() >= 3 && (in_media || !session_connection) =>
            {
                session_connection = true;
                push_fields(&mut kept, &line);
            }
            [b'a', b'=', _, ..] => kept.push_str(&line),
            _ => continue,
        }
        kept.push('\n');
    }
    kept.into_bytes()
}

/// The lines that are not empty, without control characters and blanks at their ends.
fn text_lines(body: &[u8]) -> impl Iterator<Item = Cow<'_, str>> {
    let lines = body.split(|&byte| byte == b'\n').map(|line| String::from_utf8_lossy(line.trim_ascii()));
    lines.filter(|line| !line.is_empty()).map(|line| match line.contains(char::is_control) {
        true => Cow::Owned(line.chars().filter(|c| !c.is_control() || *c == '\t').collect()),
        false => line,
    })
}

fn push_fields(kept: &mut String, line: &str) {
    for (index, field) in line.split_ascii_whitespace().enumerate() {
        if index > 0 {
            kept.push(' ');
        }
        kept.push_str(field);
    }
}

/// Read here and not by the library, which takes only numbers of 64 bits: SRCs are not that careful.
fn origin(body: &[u8]) -> Origin {
    let session_level = text_lines(body).take_while(|line| !line.starts_with("m="));
    let line = session_level.into_iter().find(|line| line.starts_with("o=")).unwrap_or_default();
    let mut fields = line.get(2..).unwrap_or_default().split_ascii_whitespace().map(str::to_owned);
    let mut next = || fields.next().unwrap_or_default();
    Origin { username: next(), session_id: next(), version: next() }
}

fn media_line(media: &sdp_types::Media, session: &sdp_types::Session) -> Result<MediaLine, SdpError> {
    let formats = formats(&media.fmt)?;
    let attributes = FormatAttributes::of(media);
    let direction = direction(&media.attributes).or_else(|| direction(&session.attributes));
    let direction = direction.unwrap_or(Direction::SendRecv);
    let address = address(media, session);
    let text =
        |name| attribute(media, name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    Ok(MediaLine {
        codecs: formats.iter().filter_map(|format| attributes.codec(payload_type(format)?)).collect(),
        format_attributes: formats
            .iter()
            .filter_map(|format| payload_type(format))
            .flat_map(|payload_type| attributes.lines(payload_type).map(move |line| (payload_type, line)))
            .collect(),
        formats,
        kind: media.media.clone(),
        port: media.port,
        protocol: media.proto.clone(),
        label: text("label"),
        mid: text("mid"),
        direction,
        held: direction == Direction::Inactive || address.is_some_and(|address| address.is_unspecified()),
        address,
        rtcp_port: attribute(media, "rtcp")
            .and_then(|value| value.split_ascii_whitespace().next()?.parse().ok()),
        rtcp_mux: media.attributes.iter().any(|attribute| attribute.attribute.trim() == "rtcp-mux"),
        ptime: attribute(media, "ptime").and_then(leading_number),
    })
}

fn formats(list: &str) -> Result<Vec<String>, SdpError> {
    let mut formats: Vec<String> = Vec::new();
    for format in list.split_ascii_whitespace() {
        if formats.iter().any(|known| known == format) {
            continue;
        }
        if formats.len() == FORMATS_MAX {
            return Err(SdpError::TooManyFormats);
        }
        formats.push(format.to_owned());
    }
    Ok(formats)
}

/// A format that is an RTP payload type: seven bits (RFC 3550 §5.1).
fn payload_type(format: &str) -> Option<u8> {
    format.parse().ok().filter(|payload_type| *payload_type < 128)
}

fn direction(attributes: &[sdp_types::Attribute]) -> Option<Direction> {
    attributes.iter().find_map(|attribute| match attribute.attribute.trim() {
        "sendrecv" => Some(Direction::SendRecv),
        "sendonly" => Some(Direction::SendOnly),
        "recvonly" => Some(Direction::RecvOnly),
        "inactive" => Some(Direction::Inactive),
        _ => None,
    })
}

fn address(media: &sdp_types::Media, session: &sdp_types::Session) -> Option<IpAddr> {
    let connection = media.connections.first().or(session.connection.as_ref())?;
    // A TTL or an address count may follow the slash (RFC 8866 §5.7).
    connection.connection_address.split('/').next()?.trim().parse().ok()
}

fn attribute<'a>(media: &'a sdp_types::Media, name: &str) -> Option<&'a str> {
    media.attributes.iter().find(|attribute| attribute.attribute == name)?.value.as_deref()
}

fn leading_number(text: &str) -> Option<u32> {
    let text = text.trim_start();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..digits].parse().ok()
}

/// The first rtpmap and the first fmtp of each payload type: what follows the payload type, as written.
struct FormatAttributes<'a> {
    rtpmap: [Option<&'a str>; 128],
    fmtp: [Option<&'a str>; 128],
}

impl<'a> FormatAttributes<'a> {
    fn of(media: &'a sdp_types::Media) -> Self {
        let mut found = FormatAttributes { rtpmap: [None; 128], fmtp: [None; 128] };
        for attribute in &media.attributes {
            let table = match attribute.attribute.as_str() {
                "rtpmap" => &mut found.rtpmap,
                "fmtp" => &mut found.fmtp,
                _ => continue,
            };
            let split = attribute.value.as_deref().and_then(|value| value.trim().split_once([' ', '\t']));
            if let Some((format, text)) = split
                && let Some(payload_type) = payload_type(format)
            {
                table[payload_type as usize].get_or_insert(text.trim());
            }
        }
        found
    }

    fn codec(&self, payload_type: u8) -> Option<Codec> {
        let known = static_codec(payload_type);
        let (encoding, clock_rate, channels) = match self.rtpmap[payload_type as usize] {
            Some(text) => rtpmap(text, known)?,
            None => known?,
        };
        let fmtp = self.fmtp[payload_type as usize].map(str::to_owned);
        Some(Codec { payload_type, encoding: encoding.to_owned(), clock_rate, channels, fmtp })
    }

    /// As they go back in the answer.
    fn lines(&self, payload_type: u8) -> impl Iterator<Item = String> + use<> {
        let line = |name: &str, text: &str| format!("{name}:{payload_type} {text}");
        let rtpmap = self.rtpmap[payload_type as usize].map(|text| line("rtpmap", text));
        let fmtp = self.fmtp[payload_type as usize].map(|text| line("fmtp", text));
        rtpmap.into_iter().chain(fmtp)
    }
}

/// `opus/48000/2`. A clock rate with something behind it is taken up to there; one that is missing is the static one.
fn rtpmap(text: &str, known: Option<StaticCodec>) -> Option<(&str, u32, u8)> {
    let mut fields = text.split('/').map(str::trim);
    let encoding = fields.next().filter(|encoding| !encoding.is_empty())?;
    let clock_rate = fields.next().and_then(leading_number).filter(|rate| *rate > 0);
    let channels = fields.next().and_then(|channels| channels.parse().ok()).unwrap_or(1);
    Some((encoding, clock_rate.or(known.map(|known| known.1))?, channels))
}

/// Encoding name, clock rate, channels.
type StaticCodec = (&'static str, u32, u8);

/// RFC 3551 §6, tables 4 and 5. Payload types 2 and 19 are reserved there and in use all the same, with the meaning they
/// had in the drafts before it.
fn static_codec(payload_type: u8) -> Option<StaticCodec> {
    Some(match payload_type {
        0 => ("PCMU", 8_000, 1),
        2 => ("G726-32", 8_000, 1),
        3 => ("GSM", 8_000, 1),
        4 => ("G723", 8_000, 1),
        5 => ("DVI4", 8_000, 1),
        6 => ("DVI4", 16_000, 1),
        7 => ("LPC", 8_000, 1),
        8 => ("PCMA", 8_000, 1),
        // Samples at 16 kHz, but its RTP clock is 8 kHz for ever (RFC 3551 §4.5.2).
        9 => ("G722", 8_000, 1),
        10 => ("L16", 44_100, 2),
        11 => ("L16", 44_100, 1),
        12 => ("QCELP", 8_000, 1),
        13 | 19 => ("CN", 8_000, 1),
        14 => ("MPA", 90_000, 1),
        15 => ("G728", 8_000, 1),
        16 => ("DVI4", 11_025, 1),
        17 => ("DVI4", 22_050, 1),
        18 => ("G729", 8_000, 1),
        25 => ("CelB", 90_000, 1),
        26 => ("JPEG", 90_000, 1),
        28 => ("nv", 90_000, 1),
        31 => ("H261", 90_000, 1),
        32 => ("MPV", 90_000, 1),
        33 => ("MP2T", 90_000, 1),
        34 => ("H263", 90_000, 1),
        _ => return None,
    })
}

/// The answer: one m-line for each of the offer's, in order (RFC 3264 §6). An m-line without an entry in `lines`, or that
/// is not [`MediaLine::recordable`], is refused. `address` is where the accepted ports are.
pub fn answer(offer: &Offer, lines: &[Line], origin: AnswerOrigin, address: IpAddr) -> Vec<u8> {
    let family = if address.is_ipv4() { "IP4" } else { "IP6" };
    let mut text = String::with_capacity(1_024);
    text.push_str("v=0\r\n");
    put(&mut text, format_args!("o=- {} {} IN {family} {address}", origin.session_id, origin.version));
    text.push_str("s=-\r\n");
    put(&mut text, format_args!("c=IN {family} {address}"));
    text.push_str("t=0 0\r\n");
    for (index, media) in offer.media.iter().enumerate() {
        match lines.get(index) {
            Some(Line::Accept { port }) if media.recordable() => put_accepted(&mut text, media, *port),
            _ => put_refused(&mut text, media),
        }
    }
    text.into_bytes()
}

fn put(text: &mut String, line: fmt::Arguments<'_>) {
    text.write_fmt(line).expect("a String takes all text");
    text.push_str("\r\n");
}

fn put_accepted(text: &mut String, media: &MediaLine, port: u16) {
    let formats: Vec<&str> =
        media.formats.iter().map(String::as_str).filter(|format| payload_type(format).is_some()).collect();
    put(text, format_args!("m={} {port} {} {}", media.kind, media.protocol, formats.join(" ")));
    put_identity(text, media);
    for (_, attribute) in &media.format_attributes {
        put(text, format_args!("a={attribute}"));
    }
    if let Some(ptime) = media.ptime {
        put(text, format_args!("a=ptime:{ptime}"));
    }
    if media.rtcp_mux {
        text.push_str("a=rtcp-mux\r\n");
    }
    put(text, format_args!("a={}", media.direction.answered()));
}

/// RFC 3264 §6: port 0, and one format because there must be one.
fn put_refused(text: &mut String, media: &MediaLine) {
    let format = media.formats.first().map_or("0", String::as_str);
    put(text, format_args!("m={} 0 {} {format}", media.kind, media.protocol));
    put_identity(text, media);
}

fn put_identity(text: &mut String, media: &MediaLine) {
    if let Some(mid) = &media.mid {
        put(text, format_args!("a=mid:{mid}"));
    }
    if let Some(label) = &media.label {
        put(text, format_args!("a=label:{label}"));
    }
}

impl MediaLine {
    /// Audio, video or text over plain RTP, in use, with a payload type. What is encrypted (RTP/SAVP) cannot be recorded.
    pub fn recordable(&self) -> bool {
        matches!(self.kind.as_str(), "audio" | "video" | "text")
            && ["RTP/AVP", "RTP/AVPF"].iter().any(|plain| self.protocol.eq_ignore_ascii_case(plain))
            && self.port != 0
            && self.payload_types().next().is_some()
    }

    /// The offered formats that are RTP payload types.
    pub fn payload_types(&self) -> impl Iterator<Item = u8> + '_ {
        self.formats.iter().filter_map(|format| payload_type(format))
    }

    /// Takes all other formats away, so that an answer accepts these alone (RFC 3264 §6.1: any of those offered).
    pub fn keep_formats(&mut self, keep: impl Fn(u8) -> bool) {
        self.formats.retain(|format| payload_type(format).is_some_and(&keep));
        self.codecs.retain(|codec| keep(codec.payload_type));
        self.format_attributes.retain(|(payload_type, _)| keep(*payload_type));
    }
}

impl Direction {
    /// What a recorder answers: recvonly to whoever would send, else inactive (RFC 3264 §6.1, RFC 7866 §7.2).
    pub fn answered(self) -> Direction {
        match self {
            Direction::SendRecv | Direction::SendOnly => Direction::RecvOnly,
            Direction::RecvOnly | Direction::Inactive => Direction::Inactive,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::SendRecv => "sendrecv",
            Direction::SendOnly => "sendonly",
            Direction::RecvOnly => "recvonly",
            Direction::Inactive => "inactive",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::fixtures::{invite, invites};
    use proptest::prelude::*;

    const ORIGIN: AnswerOrigin = AnswerOrigin { session_id: 42, version: 7 };
    const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 80));

    fn offer(media: &str) -> Offer {
        parse(
            format!("v=0\r\no=- 1 2 IN IP4 198.51.100.1\r\ns=-\r\nc=IN IP4 198.51.100.1\r\nt=0 0\r\n{media}")
                .as_bytes(),
        )
        .unwrap()
    }

    fn first(media: &str) -> MediaLine {
        offer(media).media.remove(0)
    }

    fn fixture(name: &str) -> Offer {
        parse(&invite(name).sdp()).unwrap()
    }

    /// The answer from its first m-line on, accepted at ports 40000, 40002, …
    fn answered(offer: &Offer) -> String {
        let lines: Vec<Line> =
            (0..offer.media.len()).map(|i| Line::Accept { port: 40_000 + 2 * i as u16 }).collect();
        let text = String::from_utf8(answer(offer, &lines, ORIGIN, V4)).unwrap();
        text[text.find("m=").unwrap_or(text.len())..].to_owned()
    }

    fn codec(payload_type: u8, encoding: &str, clock_rate: u32, channels: u8, fmtp: Option<&str>) -> Codec {
        Codec { payload_type, encoding: encoding.into(), clock_rate, channels, fmtp: fmtp.map(str::to_owned) }
    }

    #[test]
    fn an_offer_of_rfc_7866() {
        let offer = fixture("rfc7866");
        assert_eq!(
            offer.origin,
            Origin { username: "SRC".into(), session_id: "2890844526".into(), version: "2890844526".into() }
        );
        assert_eq!(offer.media.len(), 4);
        let audio = &offer.media[0];
        assert_eq!((audio.kind.as_str(), audio.port, audio.protocol.as_str()), ("audio", 12240, "RTP/AVP"));
        assert_eq!(audio.formats, ["0", "4", "8"]);
        assert_eq!(audio.label.as_deref(), Some("1"));
        assert_eq!(audio.direction, Direction::SendOnly);
        assert_eq!(audio.address, Some("198.51.100.1".parse().unwrap()));
        assert!(!audio.held && audio.recordable());
        assert_eq!(audio.codecs[1], codec(4, "G723", 8000, 1, None));
        let video = &offer.media[1];
        let fmtp = Some("profile-level-id=42A01E;packetization-mode=1");
        assert_eq!(video.codecs, [codec(98, "H264", 90_000, 1, fmtp)]);
    }

    #[test]
    fn an_answer_to_an_offer_of_rfc_7866() {
        let offer = fixture("rfc7866");
        let lines =
            [Line::Accept { port: 20_000 }, Line::Accept { port: 20_002 }, Line::Accept { port: 20_004 }];
        let text = String::from_utf8(answer(&offer, &lines, ORIGIN, V4)).unwrap();
        let expected = [
            "v=0",
            "o=- 42 7 IN IP4 192.0.2.80",
            "s=-",
            "c=IN IP4 192.0.2.80",
            "t=0 0",
            "m=audio 20000 RTP/AVP 0 4 8",
            "a=label:1",
            "a=recvonly",
            "m=video 20002 RTP/AVP 98",
            "a=label:2",
            "a=rtpmap:98 H264/90000",
            "a=fmtp:98 profile-level-id=42A01E;packetization-mode=1",
            "a=recvonly",
            "m=audio 20004 RTP/AVP 0 4 8",
            "a=label:3",
            "a=recvonly",
            "m=video 0 RTP/AVP 98",
            "a=label:4",
            "",
        ];
        assert_eq!(text, expected.join("\r\n"));
    }

    #[test]
    fn an_offer_of_our_own() {
        let text =
            String::from_utf8(answer(&unasked(), &[Line::Accept { port: 20_000 }], ORIGIN, V4)).unwrap();
        assert!(text.contains("m=audio 20000 RTP/AVP 0 8 9 18 101\r\na=rtpmap:0 PCMU/8000\r\n"), "{text}");
        assert!(text.ends_with("a=recvonly\r\n"), "{text}");
    }

    #[test]
    fn what_was_inactive_is_offered_again() {
        let offer = offer(
            "m=audio 5000 RTP/AVP 0\r\na=inactive\r\nm=audio 5002 RTP/AVP 0\r\nm=video 0 RTP/AVP 98\r\n",
        );
        let lines = [Line::Accept { port: 20_000 }, Line::Accept { port: 20_002 }];
        let held = answer(&offer, &lines, ORIGIN, V4);
        let next = AnswerOrigin { version: 8, ..ORIGIN };
        let active = reactivated(&held, next).unwrap();
        let expected = String::from_utf8(held)
            .unwrap()
            .replace("a=inactive", "a=recvonly")
            .replace("o=- 42 7 ", "o=- 42 8 ");
        assert_eq!(String::from_utf8(active.clone()).unwrap(), expected);
        assert_eq!(reactivated(&active, next), None);
    }

    #[test]
    fn an_answer_over_ipv6() {
        let offer = offer("m=audio 5000 RTP/AVP 0\r\n");
        let text = answer(&offer, &[Line::Refuse], ORIGIN, "2001:db8::80".parse().unwrap());
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("o=- 42 7 IN IP6 2001:db8::80\r\n"), "{text}");
        assert!(text.contains("c=IN IP6 2001:db8::80\r\n"), "{text}");
        assert!(text.ends_with("t=0 0\r\nm=audio 0 RTP/AVP 0\r\n"), "{text}");
    }

    #[test]
    fn every_source_gets_an_answer_for_every_m_line() {
        for invite in invites() {
            let offer = parse(&invite.sdp()).unwrap();
            let lines = vec![Line::Accept { port: 40_000 }; offer.media.len()];
            let ours = answer(&offer, &lines, ORIGIN, V4);
            assert!(ours.len() < crate::limits::ANSWER_BYTES_WANTED, "{}", invite.name);
            let ours = parse(&ours).unwrap();
            assert_eq!(ours.media.len(), offer.media.len(), "{}", invite.name);
            for (ours, theirs) in ours.media.iter().zip(&offer.media) {
                assert_eq!((&ours.kind, &ours.protocol), (&theirs.kind, &theirs.protocol), "{}", invite.name);
                assert_eq!(ours.label, theirs.label, "{}", invite.name);
                assert!(theirs.label.is_some(), "{}", invite.name);
                assert_eq!(ours.port != 0, theirs.recordable(), "{}", invite.name);
                if ours.port != 0 {
                    assert_eq!(ours.formats, theirs.formats, "{}", invite.name);
                    assert_eq!(ours.codecs, theirs.codecs, "{}", invite.name);
                    assert_eq!(ours.direction, theirs.direction.answered(), "{}", invite.name);
                }
            }
        }
    }

    #[test]
    fn broadworks_labels_are_those_of_its_sdp() {
        let labels: Vec<_> =
            fixture("broadworks").media.into_iter().map(|media| media.label.unwrap()).collect();
        assert_eq!(labels, ["5", "6"]);
    }

    #[test]
    fn metaswitch_offers_static_types_without_rtpmap_or_direction() {
        let offer = fixture("metaswitch");
        assert_eq!(offer.media[0].direction, Direction::SendRecv);
        assert_eq!(
            offer.media[0].codecs,
            [codec(0, "PCMU", 8000, 1, None), codec(2, "G726-32", 8000, 1, None)]
        );
        assert_eq!(
            answered(&offer),
            "m=audio 40000 RTP/AVP 0 2\r\na=label:1\r\na=ptime:20\r\na=recvonly\r\n"
        );
    }

    #[test]
    fn cisco_begins_inactive_with_an_address_per_m_line() {
        let offer = fixture("cisco-cube");
        let media = &offer.media[1];
        assert_eq!(media.address, Some("203.0.113.51".parse().unwrap()));
        assert!(media.held && media.recordable());
        assert_eq!(media.ptime, Some(20));
        assert_eq!(media.codecs[2], codec(19, "CN", 8000, 1, None));
        assert!(answered(&offer).ends_with("a=inactive\r\n"));
    }

    #[test]
    fn oracle_clock_rate_has_a_letter_behind_it() {
        let offer = fixture("oracle");
        assert_eq!(offer.media[0].codecs, [codec(0, "pcmu", 8000, 1, None)]);
        // Payload type 96 has no rtpmap: answered, but nobody knows its codec.
        assert_eq!(offer.media[1].codecs, [codec(8, "PCMA", 8000, 1, None)]);
        let text = answered(&offer);
        assert!(text.contains("a=rtpmap:0 pcmu/8000a\r\n"), "{text}");
        assert!(text.contains("m=audio 40002 RTP/AVP 8 96\r\na=label:218103815\r\na=inactive\r\n"), "{text}");
    }

    #[test]
    fn audiocodes_ends_lines_with_bare_lf() {
        let offer = fixture("audiocodes-lf");
        assert_eq!(offer.media.len(), 2);
        assert_eq!(offer.media[0].codecs[1], codec(96, "telephone-event", 8000, 1, Some("0-15")));
        assert!(!answered(&offer).replace("\r\n", "").contains(['\r', '\n']));
    }

    #[test]
    fn opensips_has_no_session_address_and_no_time() {
        let offer = fixture("opensips");
        assert_eq!(offer.media[0].address, Some("203.0.113.111".parse().unwrap()));
        assert_eq!(offer.media[0].port, 35077);
        assert_eq!(offer.media[0].label.as_deref(), Some("0"));
        assert!(!offer.media[0].held);
    }

    #[test]
    fn encrypted_media_is_refused() {
        let offer = fixture("dynamics-srtp");
        assert!(offer.media.iter().all(|media| !media.recordable()));
        assert_eq!(
            answered(&offer),
            "m=audio 0 RTP/SAVP 0\r\na=label:inbound\r\nm=audio 0 RTP/SAVP 0\r\na=label:outbound\r\n"
        );
    }

    #[test]
    fn what_is_recordable() {
        for (media, recordable) in [
            ("m=audio 5000 RTP/AVP 0", true),
            ("m=video 5000 rtp/avpf 96", true),
            ("m=text 5000 RTP/AVP 98", true),
            ("m=audio 5000/2 RTP/AVP 0", true),
            ("m=audio 0 RTP/AVP 0", false),
            ("m=audio 5000 RTP/AVP *", false),
            ("m=audio 5000 RTP/AVP 128", false),
            ("m=audio 5000 RTP/SAVPF 0", false),
            ("m=audio 5000 UDP/TLS/RTP/SAVPF 0", false),
            ("m=image 5000 udptl t38", false),
            ("m=application 5000 RTP/AVP 96", false),
            ("m=message 5000 TCP/MSRP *", false),
        ] {
            assert_eq!(first(&format!("{media}\r\n")).recordable(), recordable, "{media}");
        }
    }

    #[test]
    fn a_refused_line_keeps_its_kind_its_protocol_and_one_format() {
        let offer = offer("m=image 5000 udptl t38 x\r\na=mid:z\r\na=T38FaxVersion:0\r\na=sendonly\r\n");
        assert_eq!(answered(&offer), "m=image 0 udptl t38\r\na=mid:z\r\n");
    }

    #[test]
    fn an_m_line_nobody_decided_on_is_refused() {
        let offer = offer("m=audio 5000 RTP/AVP 0\r\n");
        let text = String::from_utf8(answer(&offer, &[], ORIGIN, V4)).unwrap();
        assert!(text.ends_with("m=audio 0 RTP/AVP 0\r\n"), "{text}");
    }

    #[test]
    fn directions_and_their_answers() {
        for (session, media, direction, answer) in [
            ("", "", Direction::SendRecv, "recvonly"),
            ("a=sendonly\r\n", "", Direction::SendOnly, "recvonly"),
            ("a=inactive\r\n", "a=sendonly\r\n", Direction::SendOnly, "recvonly"),
            ("a=sendonly\r\n", "a=inactive\r\n", Direction::Inactive, "inactive"),
            ("", "a=recvonly\r\n", Direction::RecvOnly, "inactive"),
            ("", "a=sendrecv\r\n", Direction::SendRecv, "recvonly"),
            ("", "a=direction:both\r\n", Direction::SendRecv, "recvonly"),
        ] {
            let offer = offer(&format!("{session}m=audio 5000 RTP/AVP 0\r\n{media}"));
            assert_eq!(offer.media[0].direction, direction, "{session}{media}");
            assert_eq!(offer.media[0].held, direction == Direction::Inactive);
            assert!(answered(&offer).ends_with(&format!("a={answer}\r\n")), "{session}{media}");
        }
    }

    #[test]
    fn an_unspecified_address_is_a_hold_and_answered_by_direction() {
        let offer = offer("m=audio 5000 RTP/AVP 0\r\nc=IN IP4 0.0.0.0\r\na=sendonly\r\n");
        assert!(offer.media[0].held);
        assert!(answered(&offer).ends_with("a=recvonly\r\n"));
    }

    #[test]
    fn addresses() {
        let address =
            |connection: &str| first(&format!("m=audio 5000 RTP/AVP 0\r\nc={connection}\r\n")).address;
        assert_eq!(address("IN IP4 192.0.2.1"), Some("192.0.2.1".parse().unwrap()));
        assert_eq!(address("IN IP4 233.252.0.1/127/2"), Some("233.252.0.1".parse().unwrap()));
        assert_eq!(address("IN IP6 2001:db8::1"), Some("2001:db8::1".parse().unwrap()));
        assert_eq!(address("IN IP4 src.example.com"), None);
    }

    #[test]
    fn rtcp_attributes() {
        let media = first(
            "m=audio 5000 RTP/AVP 0\r\na=rtcp:53020 IN IP4 192.0.2.1\r\na=rtcp-mux\r\na=ptime:30.0\r\n",
        );
        assert_eq!((media.rtcp_port, media.rtcp_mux, media.ptime), (Some(53020), true, Some(30)));
        let media = first("m=audio 5000 RTP/AVP 0\r\na=rtcp:odd\r\n");
        assert_eq!((media.rtcp_port, media.rtcp_mux, media.ptime), (None, false, None));
    }

    #[test]
    fn rtcp_mux_is_answered_only_where_it_was_offered() {
        let text = answered(&offer("m=audio 5000 RTP/AVP 0\r\na=rtcp-mux\r\nm=audio 5002 RTP/AVP 0\r\n"));
        assert_eq!(
            text,
            "m=audio 40000 RTP/AVP 0\r\na=rtcp-mux\r\na=recvonly\r\nm=audio 40002 RTP/AVP 0\r\na=recvonly\r\n"
        );
    }

    #[test]
    fn codecs_by_rtpmap() {
        let media = first(
            "m=audio 5000 RTP/AVP 111 9 10 96 97 0\r\na=fmtp:111 useinbandfec=1\r\na=rtpmap:111 opus/48000/2\r\na=rtpmap:96 G.x\r\na=rtpmap:0 pcmu\r\n",
        );
        let expected = [
            codec(111, "opus", 48_000, 2, Some("useinbandfec=1")),
            codec(9, "G722", 8_000, 1, None),
            codec(10, "L16", 44_100, 2, None),
            codec(0, "pcmu", 8_000, 1, None),
        ];
        assert_eq!(media.codecs, expected);
        assert_eq!(media.formats.len(), 6);
    }

    #[test]
    fn formats_are_answered_once_each_and_only_payload_types() {
        let text = answered(&offer("m=audio 5000 RTP/AVP 8 0 8 x 300\r\n"));
        assert!(text.starts_with("m=audio 40000 RTP/AVP 8 0\r\n"), "{text}");
    }

    #[test]
    fn a_line_nobody_needs_does_not_cost_the_offer() {
        let media = "m=audio 5000 RTP/AVP 0\r\na=label:1\r\na=sendonly\r\n";
        for session in [
            "o=- - 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\n",
            "o=- 99999999999999999999999 99999999999999999999999 IN IP4 192.0.2.1\r\nc=IN IP4 192.0.2.1\r\n",
            "o=broken\r\nc=IN IP4 192.0.2.1\r\n",
            "s=one\r\ns=two\r\nt=now later\r\nc=IN IP4 192.0.2.1\r\nc=IN IP4 192.0.2.2\r\n",
            "b=AS\r\nk=\r\nr=1\r\nz=x\r\nc=IN IP4  192.0.2.1 \r\n",
            "no equals sign\r\nxy=1\r\nc=IN IP4 192.0.2.1\r\n",
            "\r\nc=IN IP4\r\nc=IN IP4 192.0.2.1\r\na=note\0d\r\n",
        ] {
            let offer = parse(format!("v=0\r\n{session}{media}").as_bytes()).unwrap();
            let line = &offer.media[0];
            assert_eq!(line.label.as_deref(), Some("1"), "{session}");
            assert_eq!(line.address, Some("192.0.2.1".parse().unwrap()), "{session}");
            assert_eq!(line.direction, Direction::SendOnly, "{session}");
        }
    }

    #[test]
    fn text_that_is_not_utf_8_does_not_cost_the_offer() {
        let offer = parse(
            b"v=0\r\no=caf\xe9 1 1 IN IP4 192.0.2.1\r\ns=\xff\xfe\r\nm=audio 5000 RTP/AVP 0\r\na=x:\xff\r\n",
        )
        .unwrap();
        assert_eq!(offer.media[0].port, 5000);
        assert_eq!(offer.origin.session_id, "1");
    }

    #[test]
    fn doubled_blanks_in_an_m_line() {
        let media = first("m=audio  5000 RTP/AVP  0 8 \r\nt=x\r\n");
        assert_eq!((media.port, media.formats), (5000, vec!["0".to_owned(), "8".to_owned()]));
    }

    #[test]
    fn an_origin_is_text() {
        let origin = |line: &str| parse(format!("v=0\r\n{line}\r\ns=-\r\n").as_bytes()).unwrap().origin;
        assert_eq!(
            origin("o=- -1 1.5 IN IP4 192.0.2.1"),
            Origin { username: "-".into(), session_id: "-1".into(), version: "1.5".into() }
        );
        assert_eq!(origin("i=nothing"), Origin::default());
    }

    #[test]
    fn what_is_not_sdp() {
        for body in [
            &b""[..],
            b"\r\n",
            b"hello",
            b"v=1\r\n\xff",
            b"<recording/>",
            b"m=audio 5000 RTP/AVP 0\r\n",
            &[0; 200],
            &[0xff; 200],
        ] {
            assert!(matches!(parse(body), Err(SdpError::Malformed(_))), "{body:?}");
        }
        for media in ["m=audio", "m=audio x RTP/AVP 0", "m=audio 70000 RTP/AVP 0", "m=audio 5000 RTP/AVP"] {
            let body = format!("v=0\r\n{media}\r\n");
            assert!(matches!(parse(body.as_bytes()), Err(SdpError::Malformed(_))), "{media}");
        }
    }

    #[test]
    fn errors_are_short_and_printable() {
        let error = parse(&[b"v=\x1b[31m", &[b'x'; 10_000][..]].concat()).unwrap_err().to_string();
        assert!(error.len() < 600 && !error.contains(char::is_control), "{error}");
    }

    #[test]
    fn limits() {
        let body = |count: usize, line: &str| format!("v=0\r\n{}", line.repeat(count)).into_bytes();
        let line = "m=audio 5000 RTP/AVP 0\r\n";
        assert_eq!(parse(&body(M_LINES_MAX, line)).unwrap().media.len(), M_LINES_MAX);
        assert_eq!(parse(&body(M_LINES_MAX + 1, line)), Err(SdpError::TooManyMediaLines));
        let formats = |count: usize| (0..count).map(|format| format!(" {format}")).collect::<String>();
        let line = |count| format!("m=audio 5000 RTP/AVP{}\r\n", formats(count));
        assert_eq!(parse(&body(1, &line(FORMATS_MAX))).unwrap().media[0].formats.len(), FORMATS_MAX);
        assert_eq!(parse(&body(1, &line(FORMATS_MAX + 1))), Err(SdpError::TooManyFormats));
        assert!(parse(&body((SDP_MAX - 5) / 5, "a=x\r\n")).unwrap().media.is_empty());
        assert_eq!(parse(&[b' '; SDP_MAX + 1]), Err(SdpError::TooLarge));
    }

    proptest! {
        #[test]
        fn a_damaged_offer_is_answered_or_refused(
            which in 0usize..12, cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let sdp = invites().nth(which).unwrap().sdp();
            let mut body = sdp[..cut.index(sdp.len()) + 1].to_vec();
            let at = at.index(body.len());
            body[at] = byte;
            if let Ok(offer) = parse(&body) {
                let lines = vec![Line::Accept { port: 40_000 }; offer.media.len()];
                let ours = parse(&answer(&offer, &lines, ORIGIN, V4)).unwrap();
                prop_assert_eq!(ours.media.len(), offer.media.len());
            }
        }
    }
}
