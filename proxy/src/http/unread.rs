//! Heads that are no request, as requests that say so: what is refused before it can be read is recorded and answered
//! like everything else.
//!
//! The HTTP library answers what it cannot read by itself: without a record of ours, without a decision's id, or with the
//! end of a connection that others share. So the bytes are looked at before it gets them (`unparsed.rs`), and in the place
//! of such a head it is given one of our own, with one field that no peer can send.

use hoplite_decision::Unasked;
use hoplite_policy::header_nature::is_same_header;
use http::{HeaderMap, StatusCode};

/// The field that says why. Peers cannot send it: such a head is [`Unread::Forged`].
const UNREAD: &str = "x-hoplite-unread";

/// Why a head is no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unread {
    /// RFC 9112 (2.2) lets a server take it for a line's end, and those that do not pass it on within a value.
    BareLineFeed,
    /// RFC 9112, 3.2: the library would cut it off.
    Fragment,
    /// RFC 9112, 6.3: a length beside a coding, or two lengths.
    Lengths,
    Length,
    Coding,
    Line,
    Version,
    Target,
    TargetTooLong,
    HeadTooLarge,
    Forged,
}

const ALL: [Unread; 11] = [
    Unread::BareLineFeed,
    Unread::Fragment,
    Unread::Lengths,
    Unread::Length,
    Unread::Coding,
    Unread::Line,
    Unread::Version,
    Unread::Target,
    Unread::TargetTooLong,
    Unread::HeadTooLarge,
    Unread::Forged,
];

// === impl Unread ===

impl Unread {
    /// What stands in the place of a request's head, if it does.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(UNREAD)?.as_bytes();
        ALL.into_iter().find(|unread| unread.word().as_bytes() == value)
    }

    /// Whether a field is taken for ours by anybody.
    pub(crate) fn is_field(name: &[u8]) -> bool {
        // Nearly all fields are told apart by their lengths.
        name.len() == UNREAD.len() && std::str::from_utf8(name).is_ok_and(|name| is_same_header(name, UNREAD))
    }

    /// The field.
    pub(crate) fn field(self) -> (&'static [u8], &'static [u8]) {
        (UNREAD.as_bytes(), self.word().as_bytes())
    }

    /// A whole head of HTTP/1.1, after which nothing on its connection is read.
    pub(crate) fn head(self) -> String {
        let word = self.word();
        format!("GET / HTTP/1.1\r\nhost: unread\r\nconnection: close\r\n{UNREAD}: {word}\r\n\r\n")
    }

    /// What the caller is told, and the record says.
    pub(crate) fn refusal(self) -> Unasked {
        let (code, status) = match self {
            Self::Fragment => ("fragment", StatusCode::BAD_REQUEST),
            Self::Lengths => ("conflicting_length", StatusCode::BAD_REQUEST),
            Self::TargetTooLong => ("too_long", StatusCode::URI_TOO_LONG),
            Self::HeadTooLarge => ("head_too_large", StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
            _ => ("unparsed", StatusCode::BAD_REQUEST),
        };
        Unasked::malformed(code, self.reason().to_owned()).with_status(status)
    }

    fn word(self) -> &'static str {
        match self {
            Self::BareLineFeed => "bare_line_feed",
            Self::Fragment => "fragment",
            Self::Lengths => "lengths",
            Self::Length => "length",
            Self::Coding => "coding",
            Self::Line => "line",
            Self::Version => "version",
            Self::Target => "target",
            Self::TargetTooLong => "target_too_long",
            Self::HeadTooLarge => "head_too_large",
            Self::Forged => "forged",
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Self::BareLineFeed => "a line ends in a bare line feed",
            Self::Fragment => "the request target holds a fragment",
            Self::Lengths => "the body's length is given in two ways: the next server might see two requests",
            Self::Length => "a body's length that is no number",
            Self::Coding => "the last transfer coding is not `chunked`, or HTTP/1.0 has one",
            Self::Line => "a line of the head is none of HTTP/1.1",
            Self::Version => "the protocol's version is neither HTTP/1.1 nor HTTP/1.0",
            Self::Target => "the request target is no URI",
            Self::TargetTooLong => "the request target is too long",
            Self::HeadTooLarge => "the head has more fields or bytes than the bounds",
            Self::Forged => "the head holds a field that only the proxy itself writes",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_again() {
        for unread in ALL {
            let (name, value) = unread.field();
            let mut headers = HeaderMap::new();
            headers.insert(
                http::HeaderName::from_bytes(name).unwrap(),
                http::HeaderValue::from_bytes(value).unwrap(),
            );
            assert_eq!(Unread::of(&headers), Some(unread));
        }
        assert_eq!(Unread::of(&HeaderMap::new()), None);
        assert!(Unread::is_field(b"X_Hoplite.Unread") && !Unread::is_field(b"x-hoplite-unread2"));
    }
}
