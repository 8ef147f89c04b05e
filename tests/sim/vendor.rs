//! The SRCs of the field, as far as a control plane can tell them apart: how they write an INVITE, and how they change a recording.
//! Each INVITE is a fixture in which only what a call must have for itself is replaced.

use std::net::SocketAddr;
use std::sync::LazyLock;

use sipreel::session::Transport;

/// How an SRC changes what it has begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// re-INVITE with c=0.0.0.0, and back.
    ZeroAddress,
    /// re-INVITE with a=inactive, and back.
    Inactive,
    /// re-INVITE with nothing but SDP.
    PlainSdp,
    NewPort,
    AddLine,
    RemoveLine,
    /// re-INVITE without a body: the answer is in its ACK.
    Offerless,
    /// re-INVITE with nothing but metadata.
    PlainMetadata,
    /// UPDATE whose body is bare metadata, or bare SDP.
    UpdateMetadata,
    UpdateSdp,
    /// INFO with metadata.
    InfoMetadata,
    Options,
}

pub struct Profile {
    pub name: &'static str,
    invite: &'static str,
    pub changes: &'static [Change],
    /// The BYE carries metadata.
    pub bye_with_metadata: bool,
}

macro_rules! profile {
    ($name:literal, [$($change:ident),*], $bye:literal) => {
        Profile {
            name: $name,
            invite: include_str!(concat!("../fixtures/invite/", $name, ".sip")),
            changes: &[$(Change::$change),*],
            bye_with_metadata: $bye,
        }
    };
}

static PROFILES: [Profile; 11] = [
    profile!("rfc7866", [Inactive, AddLine, RemoveLine, PlainMetadata, UpdateMetadata, UpdateSdp], false),
    profile!("broadworks", [UpdateMetadata, PlainSdp, UpdateMetadata], false),
    profile!("metaswitch", [ZeroAddress, NewPort, NewPort], false),
    profile!("avaya-sbce", [UpdateMetadata, UpdateMetadata, Inactive], false),
    profile!("cisco-cube", [Inactive, NewPort, Options], false),
    profile!("oracle", [NewPort, RemoveLine, InfoMetadata], false),
    profile!("sonus", [Offerless, UpdateSdp, Options], true),
    profile!("audiocodes-lf", [Inactive, PlainSdp], false),
    profile!("opensips", [AddLine, NewPort, Offerless], false),
    profile!("sems", [Inactive, InfoMetadata], true),
    profile!("netsapiens", [AddLine, AddLine, RemoveLine], false),
];

/// A fixture, taken apart.
pub struct Template {
    pub profile: &'static Profile,
    uri: String,
    from: String,
    to: String,
    contact: String,
    /// Fields that are as they are in every INVITE.
    others: Vec<String>,
    content_type: String,
    body: String,
    pub sdp: String,
    pub metadata: String,
    line_end: &'static str,
}

pub static TEMPLATES: LazyLock<Vec<Template>> =
    LazyLock::new(|| PROFILES.iter().map(Template::new).collect());

/// What is this request's own.
pub struct Own<'a> {
    pub method: &'a str,
    pub transport: Transport,
    pub address: SocketAddr,
    pub rport: bool,
    pub branch: &'a str,
    pub from_tag: &'a str,
    pub to_tag: Option<&'a str>,
    pub call_id: &'a str,
    pub cseq: u32,
}

impl Template {
    fn new(profile: &'static Profile) -> Template {
        let text = profile.invite;
        let line_end = if text.contains("\r\n") { "\r\n" } else { "\n" };
        let (head, body) = text.split_once(&line_end.repeat(2)).expect("a head and a body");
        let mut lines = head.split(line_end);
        let uri = lines.next().and_then(|start| start.split(' ').nth(1)).expect("a Request-URI").to_owned();
        let mut template = Template {
            profile,
            uri,
            from: String::new(),
            to: String::new(),
            contact: String::new(),
            others: Vec::new(),
            content_type: String::new(),
            body: body.to_owned(),
            sdp: part(body, "v=0"),
            metadata: part(body, "<?xml"),
            line_end,
        };
        for line in lines {
            let (name, value) = line.split_once(':').expect("a header field");
            match name.to_ascii_lowercase().as_str() {
                "via" | "call-id" | "cseq" | "content-length" => {}
                "from" => template.from = value.split(";tag=").next().expect("a From").to_owned(),
                "to" => template.to = value.to_owned(),
                "contact" => template.contact = value.to_owned(),
                "content-type" => template.content_type = value.trim().to_owned(),
                _ => template.others.push(line.to_owned()),
            }
        }
        template
    }

    /// The INVITE's body with this SDP in it.
    pub fn multipart(&self, sdp: &str) -> (String, String) {
        (self.content_type.clone(), self.body.replacen(&self.sdp, sdp, 1))
    }

    /// A request of this SRC; `body` is a type and a text.
    pub fn request(&self, own: &Own, body: Option<(String, String)>) -> String {
        let Own { method, address, branch, from_tag, call_id, cseq, .. } = own;
        let transport = if own.transport == Transport::Udp { "UDP" } else { "TCP" };
        let rport = if own.rport { ";rport" } else { "" };
        let to_tag = own.to_tag.map(|tag| format!(";tag={tag}")).unwrap_or_default();
        let mut lines = vec![
            format!("{method} {} SIP/2.0", self.uri),
            format!("Via: SIP/2.0/{transport} {address};branch={branch}{rport}"),
            format!("From:{};tag={from_tag}", self.from),
            format!("To:{}{to_tag}", self.to),
            format!("Call-ID: {call_id}"),
            format!("CSeq: {cseq} {method}"),
        ];
        if matches!(*method, "INVITE" | "UPDATE") {
            lines.push(format!("Contact:{}", self.contact(own)));
        }
        match *method {
            "INVITE" => lines.extend(self.others.iter().cloned()),
            _ => lines.push("Max-Forwards: 70".to_owned()),
        }
        let (content_type, body) = body.unwrap_or_default();
        if !body.is_empty() {
            lines.push(format!("Content-Type: {content_type}"));
        }
        lines.push(format!("Content-Length: {}", body.len()));
        lines.join(self.line_end) + &self.line_end.repeat(2) + &body
    }

    /// Its Contact at another address: user, parameters and where they stand stay.
    fn contact(&self, own: &Own) -> String {
        let from = self.contact.find("sip:").expect("a SIP URI") + 4;
        let end = self.contact[from..].find(['>', ';']).map_or(self.contact.len(), |end| from + end);
        let user = self.contact[from..end].split_once('@').map(|(user, _)| format!("{user}@"));
        let transport = if own.transport == Transport::Udp { "udp" } else { "tcp" };
        let rest = self.contact[end..]
            .replace("transport=udp", &format!("transport={transport}"))
            .replace("transport=tcp", &format!("transport={transport}"));
        format!("{}{}{}{rest}", &self.contact[..from], user.unwrap_or_default(), own.address)
    }
}

/// The part of a body that begins so.
fn part(body: &str, begin: &str) -> String {
    let from = body.find(begin).expect("a part that begins so");
    let end = body[from..].find("\n--").unwrap_or(body.len() - from);
    body[from..from + end].trim_end().to_owned()
}

/// An SDP whose media change.
#[derive(Clone)]
pub struct Sdp {
    head: Vec<String>,
    media: Vec<Vec<String>>,
    version: u64,
}

impl Sdp {
    pub fn new(text: &str) -> Sdp {
        let mut sdp = Sdp { head: Vec::new(), media: Vec::new(), version: 1 };
        for line in text.lines().map(|line| line.trim_end().to_owned()) {
            if line.starts_with("m=") {
                sdp.media.push(Vec::new());
            }
            sdp.media.last_mut().unwrap_or(&mut sdp.head).push(line);
        }
        sdp
    }

    pub fn lines(&self) -> usize {
        self.media.len()
    }

    pub fn text(&self) -> String {
        let lines: Vec<String> =
            self.head.iter().chain(self.media.iter().flatten()).map(|line| self.at_version(line)).collect();
        lines.join("\r\n") + "\r\n"
    }

    fn at_version(&self, line: &str) -> String {
        let Some(origin) = line.strip_prefix("o=") else { return line.to_owned() };
        let mut words: Vec<String> = origin.split(' ').map(str::to_owned).collect();
        if let Some(word) = words.get_mut(2) {
            *word = self.version.to_string();
        }
        format!("o={}", words.join(" "))
    }

    pub fn inactive(&self) -> Sdp {
        let mut held = self.clone();
        for media in &mut held.media {
            media.retain(|line| !["a=sendonly", "a=sendrecv", "a=inactive"].contains(&line.as_str()));
            media.push("a=inactive".to_owned());
        }
        held
    }

    pub fn zero_address(&self) -> Sdp {
        let mut held = self.clone();
        for line in held.head.iter_mut().chain(held.media.iter_mut().flatten()) {
            if line.starts_with("c=IN IP4 ") {
                *line = "c=IN IP4 0.0.0.0".to_owned();
            }
        }
        held
    }

    pub fn new_ports(&mut self) {
        for media in &mut self.media {
            let port = port(&media[0]);
            set_port(&mut media[0], if port == 0 { 0 } else { 10_000 + (port + 2) % 40_000 });
        }
    }

    pub fn add_line(&mut self) {
        let label = 100 + self.media.len();
        let lines =
            ["m=audio 30000 RTP/AVP 8".to_owned(), "a=sendonly".to_owned(), format!("a=label:{label}")];
        self.media.push(lines.to_vec());
    }

    /// The last m-line goes, or comes back.
    pub fn toggle_last(&mut self) {
        if let Some(media) = self.media.last_mut() {
            let port = if port(&media[0]) == 0 { 31_000 } else { 0 };
            set_port(&mut media[0], port);
        }
    }

    pub fn next_version(&mut self) {
        self.version += 1;
    }
}

fn port(line: &str) -> u16 {
    line.split(' ').nth(1).and_then(|port| port.parse().ok()).unwrap_or(0)
}

fn set_port(line: &mut String, port: u16) {
    let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    if let Some(word) = words.get_mut(1) {
        *word = port.to_string();
    }
    *line = words.join(" ");
}
