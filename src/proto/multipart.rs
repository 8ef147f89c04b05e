//! Bodies of SIP messages: multipart/mixed and its parts (RFC 2046 §5.1, RFC 5621).
//!
//! Reading is lenient where deployed SRCs are careless: parts in any order, bare LF, blanks after a delimiter, a missing
//! last line end or close delimiter, a preamble, parts without headers. A Content-Length inside a part is not looked at.

use bytes::Bytes;
use memchr::{memchr, memmem};
use std::fmt;

use crate::limits::{BOUNDARY_MAX, MULTIPART_PARTS_MAX};

/// One part of a body, or the whole of a body that is not multipart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// Media type in lower case, without parameters or blanks: `application/sdp`. `text/plain` when the part has none
    /// (RFC 2046 §5.1).
    pub content_type: String,
    /// Disposition type in lower case: `session`, `recording-session`.
    pub disposition: Option<String>,
    /// `handling=optional` (RFC 3204 §4): the message stands even when this part cannot be understood.
    pub handling_optional: bool,
    /// A slice of the message, not a copy.
    pub body: Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MultipartError {
    /// A multipart type without a boundary parameter.
    BoundaryMissing,
    /// Empty, or longer than [`BOUNDARY_MAX`].
    BoundaryLength,
    /// The boundary does not occur in the body.
    DelimiterMissing,
    /// More than [`MULTIPART_PARTS_MAX`], nested ones included.
    TooManyParts,
}

impl fmt::Display for MultipartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MultipartError::BoundaryMissing => "multipart without a boundary parameter",
            MultipartError::BoundaryLength => "multipart boundary is empty or too long",
            MultipartError::DelimiterMissing => "multipart boundary does not occur in the body",
            MultipartError::TooManyParts => "multipart has too many parts",
        })
    }
}

impl std::error::Error for MultipartError {}

/// The media type of a Content-Type value, in lower case, without parameters or blanks.
pub fn media_type(content_type: &[u8]) -> String {
    todo!()
}

/// The boundary parameter of a Content-Type value, quoted or not.
pub fn boundary(content_type: &[u8]) -> Option<Vec<u8>> {
    todo!()
}

/// The parts of a body in their order. A body that is not multipart is one part; a multipart inside a multipart is
/// replaced by its parts, one level deep.
pub fn parts(content_type: &[u8], body: &Bytes) -> Result<Vec<Part>, MultipartError> {
    todo!()
}
