//! Why a request is refused before any policy is asked: two programs could read it in two ways.

use std::sync::Arc;

/// The longest value of a selected header. Longer ones are data, and belong into no record.
pub const HEADER_VALUE_BYTES_MAX: usize = 256;

/// Why a request is refused before any policy is asked. The text is safe to show to the peer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Ambiguous {
    /// The method is empty, too long, or not an upper-case token (RFC 9110 §9.1).
    #[error("the method is not an upper-case token")]
    Method,
    /// CONNECT would open a tunnel past policy, TRACE echoes headers to the caller.
    #[error("`CONNECT` and `TRACE` are not forwarded")]
    MethodRefused,
    /// Neither a Host header nor an :authority, or an empty one; HTTP/1.0 included.
    #[error("the request names no host")]
    NoHost,
    /// A Host or :authority that is not `name[:port]`.
    #[error("the host is not a name or address with an optional port")]
    Host,
    /// Host headers, :authority or an absolute target that do not say the same.
    #[error("the request names more than one host")]
    ConflictingHosts,
    /// Neither a path that starts with `/` nor a whole http URI.
    #[error("the request target does not start with `/`")]
    Target,
    /// `*` asks about the whole server and goes with OPTIONS only (RFC 9112 §3.2.4).
    #[error("the target `*` goes with `OPTIONS` only")]
    Asterisk,
    /// Path or query exceeds its bound.
    #[error("the request target is too long")]
    TooLong,
    /// More than [`SEGMENTS_MAX`](crate::limits::SEGMENTS_MAX) segments.
    #[error("the path has too many segments")]
    TooManySegments,
    /// NUL, another control character or a space, plain or encoded as far as the path goes.
    #[error("the request target holds a control character or a space")]
    ControlCharacter,
    /// A `%` without two hexadecimal digits.
    #[error("the path holds a `%` without two hexadecimal digits")]
    BadEscape,
    /// The target is not UTF-8 once decoded; overlong forms included.
    #[error("the request target is not UTF-8")]
    NotUtf8,
    /// A plain `\`, which some servers read as `/`.
    #[error("the path holds a backslash")]
    Backslash,
    /// `%2f` or `%5c`: a separator to some servers, a character to others.
    #[error("the path holds an encoded slash or backslash")]
    EncodedSeparator,
    /// `%2e%2e` and its kin: a segment that becomes `.` or `..` only by decoding.
    #[error("the path holds an encoded dot segment")]
    EncodedDots,
    /// More `..` than segments before it.
    #[error("the path leads above the root")]
    EscapesRoot,
    /// `;`, which some servers cut off together with what follows.
    #[error("the path holds a `;` parameter")]
    PathParameter,
    /// A `#`, which never belongs in a request target (RFC 9112 §3.2.1).
    #[error("the request target holds a fragment")]
    Fragment,
    /// A selected header with more than one value, or under a name that some servers take for it.
    #[error(
        "the header `{0}`, which policy looks at, stands there more than once, holds a comma, or is spelt with another sign for `-`"
    )]
    HeaderTwice(Arc<str>),
    /// A selected header with a value that is not read alike by everybody.
    #[error("the header `{0}`, which policy looks at, is not 1 to {max} characters of visible ASCII with spaces only inside", max = HEADER_VALUE_BYTES_MAX)]
    HeaderValue(Arc<str>),
}

// === impl Ambiguous ===

impl Ambiguous {
    /// The stable word for record and metric.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::MethodRefused => "method_refused",
            Self::NoHost => "no_host",
            Self::Host => "host",
            Self::ConflictingHosts => "conflicting_hosts",
            Self::Target => "target",
            Self::Asterisk => "asterisk",
            Self::TooLong => "too_long",
            Self::TooManySegments => "too_many_segments",
            Self::ControlCharacter => "control_character",
            Self::BadEscape => "bad_escape",
            Self::NotUtf8 => "not_utf8",
            Self::Backslash => "backslash",
            Self::EncodedSeparator => "encoded_separator",
            Self::EncodedDots => "encoded_dots",
            Self::EscapesRoot => "escapes_root",
            Self::PathParameter => "path_parameter",
            Self::Fragment => "fragment",
            Self::HeaderTwice(_) => "header_twice",
            Self::HeaderValue(_) => "header_value",
        }
    }

    /// The HTTP status of the refusal, wherever the request was read.
    pub fn status(&self) -> u16 {
        match self {
            Self::MethodRefused => 405,
            Self::TooLong => 414,
            _ => 400,
        }
    }
}
