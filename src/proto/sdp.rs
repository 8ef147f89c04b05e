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
    /// a=label, a token (RFC 4574).
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
    /// The rtpmap and fmtp attributes of the offered formats, for the answer.
    format_attributes: Vec<String>,
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
    /// Record it at this port, with every format offered. The direction and rtcp-mux follow from the offer.
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

fn malformed(refused: &sdp_types::ParserError) -> SdpError {
    const SHOWN: usize = 120;
    SdpError::Malformed(refused.to_string().chars().take(SHOWN).collect())
}

/// The lines that describe media (v, c, m, a), with what is known to go wrong in them put right: blanks at the end or
/// doubled, bytes that are not text, c= lines that are repeated or cut short. Without v= it is not SDP, and stays so.
fn needed_lines(body: &[u8]) -> Vec<u8> {
    let mut kept = String::with_capacity(body.len());
    let mut session_connection = false;
    let mut in_media = false;
    for line in text_lines(body) {
        match line.as_bytes() {
            [b'v', b'=', ..] if kept.is_empty() => kept.push_str("v=0"),
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
            .flat_map(|t| attributes.lines(t))
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
fn rtpmap<'a>(text: &'a str, known: Option<StaticCodec>) -> Option<(&'a str, u32, u8)> {
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
    for attribute in &media.format_attributes {
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
            && self.formats.iter().any(|format| payload_type(format).is_some())
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
