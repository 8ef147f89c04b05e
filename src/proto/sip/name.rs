//! Methods and header field names.

macro_rules! methods {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// A request method. Case-sensitive (RFC 3261 §7.1).
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum Method {
            $($(#[$doc])* $variant,)*
            /// Any other token; the start line has its text.
            Other,
        }

        impl Method {
            /// All, `Other` last: the order of the counters.
            pub const ALL: &'static [Method] = &[$(Method::$variant,)* Method::Other];

            pub fn parse(text: &[u8]) -> Method {
                $(if text == $text.as_bytes() { return Method::$variant; })*
                Method::Other
            }

            /// As on the wire; `OTHER` for a method without a name here.
            pub const fn text(self) -> &'static str {
                match self { $(Method::$variant => $text,)* Method::Other => "OTHER" }
            }
        }
    };
}

methods! {
    Invite = "INVITE",
    Ack = "ACK",
    Bye = "BYE",
    Cancel = "CANCEL",
    Options = "OPTIONS",
    Update = "UPDATE",
    Info = "INFO",
    Prack = "PRACK",
    Register = "REGISTER",
    Subscribe = "SUBSCRIBE",
    Notify = "NOTIFY",
    Refer = "REFER",
    Message = "MESSAGE",
    Publish = "PUBLISH",
}

macro_rules! headers {
    ($($variant:ident = $text:literal $(/ $compact:literal)?,)*) => {
        /// The header fields that this recorder reads. Names are case-insensitive; the compact forms of
        /// RFC 3261 §7.3.3 and RFC 4028 §4 mean the same field.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum HeaderName {
            $($variant,)*
            /// Any other field, found by its name (`Message::other`).
            Other,
        }

        impl HeaderName {
            pub fn parse(name: &[u8]) -> HeaderName {
                match name.len() {
                    $($(1 if name[0].eq_ignore_ascii_case(&$compact) => HeaderName::$variant,)?)*
                    $(length if length == $text.len() && name.eq_ignore_ascii_case($text.as_bytes()) => HeaderName::$variant,)*
                    _ => HeaderName::Other,
                }
            }

            /// The long form, as RFC 3261 writes it.
            pub const fn text(self) -> &'static str {
                match self { $(HeaderName::$variant => $text,)* HeaderName::Other => "header field" }
            }

            pub(super) const fn missing(self) -> &'static str {
                match self { $(HeaderName::$variant => concat!("Missing ", $text),)* HeaderName::Other => "Missing header field" }
            }

            pub(super) const fn repeated(self) -> &'static str {
                match self { $(HeaderName::$variant => concat!("More than one ", $text),)* HeaderName::Other => "Repeated header field" }
            }

            pub(super) const fn bad(self) -> &'static str {
                match self { $(HeaderName::$variant => concat!("Bad ", $text),)* HeaderName::Other => "Bad header field" }
            }
        }
    };
}

headers! {
    Via = "Via" / b'v',
    From = "From" / b'f',
    To = "To" / b't',
    CallId = "Call-ID" / b'i',
    CSeq = "CSeq",
    Contact = "Contact" / b'm',
    MaxForwards = "Max-Forwards",
    ContentType = "Content-Type" / b'c',
    ContentLength = "Content-Length" / b'l',
    ContentEncoding = "Content-Encoding" / b'e',
    ContentDisposition = "Content-Disposition",
    Require = "Require",
    ProxyRequire = "Proxy-Require",
    Supported = "Supported" / b'k',
    RecordRoute = "Record-Route",
    Route = "Route",
    Accept = "Accept",
    Allow = "Allow",
    SessionExpires = "Session-Expires" / b'x',
    MinSe = "Min-SE",
    Date = "Date",
    Reason = "Reason",
    Authorization = "Authorization",
    Replaces = "Replaces",
}
