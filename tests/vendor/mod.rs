//! The SRCs of the field, as far as a control plane can tell them apart: how they write an INVITE, and how they change a recording.
//! Each INVITE is a fixture in which only what a call must have for itself is replaced. The simulator and the SIPp scenarios share this.

use std::sync::LazyLock;

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
    /// UPDATE with another m-line.
    UpdateLines,
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
    profile!(
        "rfc7866",
        [Inactive, AddLine, RemoveLine, PlainMetadata, UpdateMetadata, UpdateSdp, UpdateLines],
        false
    ),
    profile!("broadworks", [UpdateMetadata, PlainSdp, UpdateMetadata], false),
    profile!("metaswitch", [ZeroAddress, NewPort, NewPort], false),
    profile!("avaya-sbce", [UpdateMetadata, UpdateMetadata, Inactive], false),
    profile!("cisco-cube", [Inactive, NewPort, Options], false),
    profile!("oracle", [NewPort, RemoveLine, InfoMetadata], false),
    profile!("sonus", [Offerless, UpdateSdp, Options], true),
    profile!("audiocodes-lf", [Inactive, PlainSdp], false),
    profile!("opensips", [AddLine, NewPort, Offerless, UpdateLines], false),
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
    sdp: String,
    metadata: String,
    line_end: &'static str,
}

pub static TEMPLATES: LazyLock<Vec<Template>> =
    LazyLock::new(|| PROFILES.iter().map(Template::new).collect());

/// What is this request's own, or the words that stand for it in a scenario.
#[derive(Clone, Copy)]
pub struct Own<'a> {
    pub method: &'a str,
    /// `UDP`, `TCP`.
    pub transport: &'a str,
    pub address: &'a str,
    pub rport: bool,
    pub branch: &'a str,
    pub from_tag: &'a str,
    /// With the `;tag=` before it, or empty.
    pub to_tag: &'a str,
    pub call_id: &'a str,
    pub cseq: u32,
    /// In the place of the body's length.
    pub length: Option<&'a str>,
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
    fn multipart(&self, sdp: &str) -> Body {
        (self.content_type.clone(), self.body.replacen(&self.sdp, sdp, 1))
    }

    /// A request of this SRC; `body` is a type and a text.
    pub fn request(&self, own: &Own, body: Option<Body>) -> String {
        let Own { method, transport, address, branch, from_tag, to_tag, call_id, cseq, .. } = own;
        let rport = if own.rport { ";rport" } else { "" };
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
        let length = own.length.map_or_else(|| body.len().to_string(), str::to_owned);
        lines.push(format!("Content-Length: {length}"));
        lines.join(self.line_end) + &self.line_end.repeat(2) + &body
    }

    /// Its Contact at another address: user, parameters and where they stand stay.
    fn contact(&self, own: &Own) -> String {
        let from = self.contact.find("sip:").expect("a SIP URI") + 4;
        let end = self.contact[from..].find(['>', ';']).map_or(self.contact.len(), |end| from + end);
        let user = self.contact[from..end].split_once('@').map(|(user, _)| format!("{user}@"));
        let transport = own.transport.to_ascii_lowercase();
        let rest = self.contact[end..]
            .replace("transport=udp", &format!("transport={transport}"))
            .replace("transport=tcp", &format!("transport={transport}"));
        // Another one each time, as B2BUAs have it: which of them our requests go to can be told.
        let (before, user) = (&self.contact[..from], user.unwrap_or_default());
        format!("{before}{user}{};x={}{rest}", own.address, own.cseq)
    }
}

/// Type and text.
pub type Body = (String, String);

/// The offers and the metadata of one call, as its SRC goes on with them.
pub struct Offerer {
    template: &'static Template,
    sdp: Sdp,
    held: bool,
}

impl Offerer {
    pub fn new(template: &'static Template) -> Offerer {
        Offerer { template, sdp: Sdp::new(&template.sdp), held: false }
    }

    /// What is offered now.
    pub fn sdp(&self) -> String {
        self.sdp.text()
    }

    pub fn first(&self) -> Body {
        self.template.multipart(&self.sdp.text())
    }

    /// Of the BYE.
    pub fn farewell(&self) -> Option<Body> {
        self.template.profile.bye_with_metadata.then(|| self.metadata())
    }

    /// Method and body of the request that changes the recording.
    pub fn change(&mut self, change: Change) -> (&'static str, Option<Body>) {
        match change {
            Change::PlainMetadata => ("INVITE", Some(self.metadata())),
            Change::UpdateMetadata => ("UPDATE", Some(self.metadata())),
            Change::InfoMetadata => ("INFO", Some(self.metadata())),
            Change::Options => ("OPTIONS", None),
            Change::Offerless => ("INVITE", None),
            Change::UpdateSdp | Change::UpdateLines => ("UPDATE", Some(self.offer(change))),
            _ => ("INVITE", Some(self.offer(change))),
        }
    }

    fn metadata(&self) -> Body {
        ("application/rs-metadata".to_owned(), self.template.metadata.clone())
    }

    fn offer(&mut self, change: Change) -> Body {
        self.sdp.version += 1;
        match change {
            Change::ZeroAddress | Change::Inactive | Change::PlainSdp | Change::UpdateSdp => {
                self.held = !self.held;
                let sdp = match (self.held, change) {
                    (true, Change::ZeroAddress) => self.sdp.zero_address(),
                    (true, _) => self.sdp.inactive(),
                    (false, _) => self.sdp.clone(),
                };
                return ("application/sdp".to_owned(), sdp.text());
            }
            Change::AddLine | Change::UpdateLines if self.sdp.media.len() < 6 => self.sdp.add_line(),
            Change::RemoveLine | Change::AddLine | Change::UpdateLines => self.sdp.toggle_last(),
            _ => self.sdp.new_ports(),
        }
        self.first()
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
struct Sdp {
    head: Vec<String>,
    media: Vec<Vec<String>>,
    version: u64,
}

impl Sdp {
    fn new(text: &str) -> Sdp {
        let mut sdp = Sdp { head: Vec::new(), media: Vec::new(), version: 1 };
        for line in text.lines().map(|line| line.trim_end().to_owned()) {
            if line.starts_with("m=") {
                sdp.media.push(Vec::new());
            }
            sdp.media.last_mut().unwrap_or(&mut sdp.head).push(line);
        }
        sdp
    }

    fn text(&self) -> String {
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

    fn inactive(&self) -> Sdp {
        let mut held = self.clone();
        for media in &mut held.media {
            media.retain(|line| !["a=sendonly", "a=sendrecv", "a=inactive"].contains(&line.as_str()));
            media.push("a=inactive".to_owned());
        }
        held
    }

    fn zero_address(&self) -> Sdp {
        let mut held = self.clone();
        for line in held.head.iter_mut().chain(held.media.iter_mut().flatten()) {
            if line.starts_with("c=IN IP4 ") {
                *line = "c=IN IP4 0.0.0.0".to_owned();
            }
        }
        held
    }

    fn new_ports(&mut self) {
        for media in &mut self.media {
            let port = port(&media[0]);
            set_port(&mut media[0], if port == 0 { 0 } else { 10_000 + (port + 2) % 40_000 });
        }
    }

    fn add_line(&mut self) {
        let label = 100 + self.media.len();
        let lines =
            ["m=audio 30000 RTP/AVP 8".to_owned(), "a=sendonly".to_owned(), format!("a=label:{label}")];
        self.media.push(lines.to_vec());
    }

    /// The last m-line goes, or comes back.
    fn toggle_last(&mut self) {
        if let Some(media) = self.media.last_mut() {
            let port = if port(&media[0]) == 0 { 31_000 } else { 0 };
            set_port(&mut media[0], port);
        }
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
