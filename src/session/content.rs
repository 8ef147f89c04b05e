//! The parts of a request's body that a recorder reads.

use bytes::Bytes;

use crate::proto::multipart::{self, MultipartError, Part};
use crate::proto::sip::{HeaderName, Message};

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Content {
    /// The first SDP part.
    pub sdp: Option<Bytes>,
    /// Every rs-metadata part.
    pub metadata: Vec<Bytes>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContentError {
    Multipart(MultipartError),
    /// There is a body, and nothing in it is SDP or rs-metadata.
    UnsupportedType,
    /// Content-Encoding other than identity.
    Encoded,
}

/// Reads the body of `message`, which is in `bytes`. Parts of other types are passed over, whatever their handling says:
/// a call that is refused for them is a recording that does not exist.
pub fn content(message: &Message, bytes: &Bytes) -> Result<Content, ContentError> {
    let body = bytes.slice(message.body_range());
    if body.is_empty() {
        return Ok(Content::default());
    }
    if message.tokens(HeaderName::ContentEncoding).any(|coding| !coding.eq_ignore_ascii_case("identity")) {
        return Err(ContentError::Encoded);
    }
    // A body without a type can only be meant as SDP (RFC 3261 §20.15 demands one).
    let content_type = message.content_type().unwrap_or("application/sdp");
    let mut content = Content::default();
    for part in multipart::parts(content_type.as_bytes(), &body).map_err(ContentError::Multipart)? {
        if is_metadata(&part) {
            content.metadata.push(part.body);
        } else if part.content_type == "application/sdp" && content.sdp.is_none() {
            content.sdp = Some(part.body);
        }
    }
    if content == Content::default() { Err(ContentError::UnsupportedType) } else { Ok(content) }
}

/// RFC 7866 §12.3 registers `application/rs-metadata`, RFC 9806 adds `+xml`; some SRCs send plain XML with the disposition.
fn is_metadata(part: &Part) -> bool {
    match part.content_type.as_str() {
        "application/rs-metadata" | "application/rs-metadata+xml" => true,
        "application/xml" | "text/xml" => part.disposition.as_deref() == Some("recording-session"),
        _ => false,
    }
}
