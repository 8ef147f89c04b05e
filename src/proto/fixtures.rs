//! INVITEs in the manner of deployed SRCs, for tests. `tests/fixtures/invite` has them whole: written for this project
//! from what each SRC is known to do, with invented names, numbers and addresses.

use bytes::Bytes;

use super::multipart::{Part, parts};

macro_rules! invites {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_bytes!(concat!("../../tests/fixtures/invite/", $name, ".sip")))),*]
    };
}

const INVITES: [(&str, &[u8]); 12] = invites!(
    "rfc7866",
    "broadworks",
    "metaswitch",
    "avaya-sbce",
    "cisco-cube",
    "oracle",
    "sonus",
    "audiocodes-lf",
    "opensips",
    "sems",
    "dynamics-srtp",
    "netsapiens",
);

pub struct Invite {
    pub name: &'static str,
    pub content_type: &'static [u8],
    pub body: Bytes,
}

pub fn invites() -> impl Iterator<Item = Invite> {
    INVITES.into_iter().map(|(name, message)| split(name, message))
}

pub fn invite(name: &str) -> Invite {
    invites().find(|invite| invite.name == name).expect("a fixture of this name")
}

fn split(name: &'static str, message: &'static [u8]) -> Invite {
    let find = |needle: &[u8]| memchr::memmem::find(message, needle).map(|at| at + needle.len());
    let body = find(b"\r\n\r\n").or_else(|| find(b"\n\n")).expect("an empty line");
    let head = &message[..body];
    let field = |field: &[u8]| {
        let line =
            head.split(|&byte| byte == b'\n').find(|line| line.starts_with(field)).expect("a header field");
        line[field.len()..].trim_ascii()
    };
    let length: usize = std::str::from_utf8(field(b"Content-Length:")).unwrap().parse().unwrap();
    assert_eq!(length, message.len() - body, "Content-Length of {name}");
    Invite { name, content_type: field(b"Content-Type:"), body: Bytes::from_static(&message[body..]) }
}

impl Invite {
    /// The first part of this type, with or without +xml.
    pub fn part(&self, media_type: &str) -> Part {
        let found = parts(self.content_type, &self.body).unwrap();
        let wanted = |part: &Part| part.content_type.trim_end_matches("+xml") == media_type;
        found.into_iter().find(wanted).expect("a part of this type")
    }

    pub fn sdp(&self) -> Bytes {
        self.part("application/sdp").body
    }

    pub fn metadata(&self) -> Bytes {
        self.part("application/rs-metadata").body
    }
}
