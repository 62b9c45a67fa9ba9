//! The canonical request: the one reading of method, host, path and selected headers that policy, record and upstream
//! share.
//!
//! A request that two programs could read in two ways is refused; one that merely can be *written* in two ways is
//! rewritten to one of them, and that is what is decided on, recorded and forwarded. The order is: refuse what is
//! never right (NUL, control characters, bad escapes, `\`, `#`, `;`), decode unreserved bytes once, refuse escapes
//! that hide a separator or a dot segment, merge slashes, resolve dots. Which headers are read, a policy set says
//! (`headers.rs`).

use crate::ambiguous::Ambiguous;
use crate::headers::{Header, SelectedHeaders};
use std::net::Ipv6Addr;
use std::sync::Arc;

/// The longest path, before and after canonicalisation. Common servers stop at 8 KiB too.
pub const PATH_BYTES_MAX: usize = 8 * 1024;
/// The longest query; longer data belongs into a body.
pub const QUERY_BYTES_MAX: usize = 8 * 1024;
/// The most segments a canonical path may have: bounds the work of matching routes.
pub const SEGMENTS_MAX: usize = 64;
/// The longest method; registered ones have at most 17 bytes.
pub const METHOD_BYTES_MAX: usize = 32;
/// The longest host name (RFC 1035 §3.1, without the root).
pub const HOST_BYTES_MAX: usize = 253;

/// A request that can be read in one way only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanonicalRequest {
    method: String,
    authority: Authority,
    path: String,
    segments: Vec<String>,
    query: Option<String>,
    /// By name; those of which nothing is known are not here.
    headers: Vec<Header>,
}

// === impl CanonicalRequest ===

impl CanonicalRequest {
    /// Reads a request. `target` is the request target as received: path and query, a whole URI whose authority is
    /// the host's, or `*`. `hosts` is every Host header and the :authority, if any, as received.
    ///
    /// # Errors
    /// [`Ambiguous`] when there is more than one way to read it, or when it exceeds a bound.
    pub fn parse(method: &str, hosts: &[&[u8]], target: &[u8]) -> Result<Self, Ambiguous> {
        let method = canonical_method(method)?;
        let authority = effective_authority(hosts)?;
        let target = origin_form(target, &authority)?;

        if target.contains(&b'#') {
            return Err(Ambiguous::Fragment);
        }
        let (path, query) = match target
            .iter()
            .position(|&b| b == b'?')
            .and_then(|at| target.split_at_checked(at))
        {
            Some((path, query)) => (path, Some(query.get(1..).unwrap_or_default())),
            None => (target, None),
        };
        let path = match path {
            b"*" if method == "OPTIONS" => CanonicalPath {
                text: "*".to_owned(),
                segments: vec![],
            },
            b"*" => return Err(Ambiguous::Asterisk),
            path => CanonicalPath::parse(path)?,
        };
        Ok(Self {
            method: method.to_owned(),
            authority,
            path: path.text,
            segments: path.segments,
            query: query.map(canonical_query).transpose()?,
            headers: Vec::new(),
        })
    }

    /// This request with its selected headers, read out of the fields that go upstream: all of them, as they are sent.
    /// Without this nothing is known of any header.
    ///
    /// # Errors
    /// [`Ambiguous::HeaderTwice`] and [`Ambiguous::HeaderValue`].
    pub fn with_headers<'f>(
        mut self,
        selected: &SelectedHeaders,
        fields: impl IntoIterator<Item = (&'f str, &'f [u8])>,
    ) -> Result<Self, Ambiguous> {
        self.read_headers(selected, fields)?;
        Ok(self)
    }

    /// Reads its selected headers, in the place of any that were read before.
    ///
    /// # Errors
    /// As [`with_headers`](Self::with_headers); then it stays as it was.
    pub fn read_headers<'f>(
        &mut self,
        selected: &SelectedHeaders,
        fields: impl IntoIterator<Item = (&'f str, &'f [u8])>,
    ) -> Result<(), Ambiguous> {
        self.headers = selected.read(fields)?;
        Ok(())
    }

    /// The method, an upper-case token.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// Lower case, no trailing dot, no port; an IPv6 address is in brackets.
    pub fn host(&self) -> &str {
        &self.authority.host
    }

    /// The host as it goes upstream: with its port, if the request named one. A service makes links and checks origins of
    /// it (RFC 9110 §7.2); policy is asked about the host.
    pub fn authority(&self) -> String {
        match self.authority.port {
            Some(port) => format!("{}:{port}", self.authority.host),
            None => self.authority.host.clone(),
        }
    }

    /// What goes upstream, printable ASCII only: dots resolved, slashes merged, unreserved bytes decoded once, every
    /// other escape in upper case. A trailing slash is kept, since services tell `/a` from `/a/`; it does not change
    /// the segments, so it cannot lead past a route. Letters keep their case. `*` is the whole server.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The query as received, without `?`.
    pub fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    /// Path and query as they go upstream.
    pub fn path_and_query(&self) -> String {
        match &self.query {
            Some(query) => format!("{}?{query}", self.path),
            None => self.path.clone(),
        }
    }

    /// The path's segments percent-decoded once, as the service will read them: `%3A` and `:` are the same here, so
    /// a spelling cannot lead past a route. None is empty or holds a slash.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = &str> {
        self.segments.iter().map(String::as_str)
    }

    /// The selected headers, sorted by name, each with its value or as absent.
    pub fn headers(&self) -> impl ExactSizeIterator<Item = (&str, Option<&str>)> {
        self.headers
            .iter()
            .map(|header| (&*header.name, header.value.as_deref()))
    }

    pub(crate) fn known_headers(&self) -> impl Iterator<Item = Arc<str>> {
        self.headers.iter().map(|header| Arc::clone(&header.name))
    }
}

/// A method in the one spelling Hoplite accepts, which is also that of the route table. CONNECT and TRACE are refused here
/// and nowhere else.
///
/// # Errors
/// [`Ambiguous::Method`] and [`Ambiguous::MethodRefused`].
pub fn canonical_method(method: &str) -> Result<&str, Ambiguous> {
    let token = method
        .bytes()
        .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
    if !token || !method.starts_with(|c: char| c.is_ascii_uppercase()) || method.len() > METHOD_BYTES_MAX {
        return Err(Ambiguous::Method);
    }
    if matches!(method, "CONNECT" | "TRACE") {
        return Err(Ambiguous::MethodRefused);
    }
    Ok(method)
}

/// Takes the scheme and authority off an absolute target (RFC 9112 §3.2.2), which must not say another host.
fn origin_form<'a>(target: &'a [u8], authority: &Authority) -> Result<&'a [u8], Ambiguous> {
    if target.starts_with(b"/") || target == b"*" {
        return Ok(target);
    }
    let rest = ["http://", "https://"]
        .iter()
        .find_map(|scheme| {
            let (start, rest) = target.split_at_checked(scheme.len())?;
            start.eq_ignore_ascii_case(scheme.as_bytes()).then_some(rest)
        })
        .ok_or(Ambiguous::Target)?;
    let end = rest
        .iter()
        .position(|b| matches!(b, b'/' | b'?' | b'#'))
        .ok_or(Ambiguous::Target)?;
    let (named, origin) = rest.split_at_checked(end).ok_or(Ambiguous::Target)?;
    if Authority::parse(named)? != *authority {
        return Err(Ambiguous::ConflictingHosts);
    }
    // `http://host?q` would need a slash put in; nothing that speaks HTTP sends it.
    if origin.starts_with(b"/") {
        Ok(origin)
    } else {
        Err(Ambiguous::Target)
    }
}

fn canonical_query(query: &[u8]) -> Result<String, Ambiguous> {
    if query.len() > QUERY_BYTES_MAX {
        return Err(Ambiguous::TooLong);
    }
    let query = std::str::from_utf8(query).map_err(|_| Ambiguous::NotUtf8)?;
    if query.chars().any(|c| c.is_control() || c == ' ') {
        return Err(Ambiguous::ControlCharacter);
    }
    Ok(query.to_owned())
}

/// A host with its port, in one spelling.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Authority {
    host: String,
    port: Option<u16>,
}

/// The one host that everything in the request agrees on.
fn effective_authority(hosts: &[&[u8]]) -> Result<Authority, Ambiguous> {
    let (first, others) = hosts.split_first().ok_or(Ambiguous::NoHost)?;
    let effective = Authority::parse(first)?;
    for other in others {
        if Authority::parse(other)? != effective {
            return Err(Ambiguous::ConflictingHosts);
        }
    }
    Ok(effective)
}

// === impl Authority ===

impl Authority {
    fn parse(raw: &[u8]) -> Result<Self, Ambiguous> {
        if raw.is_empty() {
            return Err(Ambiguous::NoHost);
        }
        let text = std::str::from_utf8(raw).map_err(|_| Ambiguous::Host)?;
        // Everything up to the last colon outside brackets is the host.
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (text, None),
        };
        Ok(Self {
            host: canonical_host(host)?,
            port: port.map(canonical_port).transpose()?,
        })
    }
}

fn canonical_port(port: &str) -> Result<u16, Ambiguous> {
    // `u16::from_str` alone would take a leading `+`.
    if !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Ambiguous::Host);
    }
    port.parse().ok().filter(|&port| port != 0).ok_or(Ambiguous::Host)
}

fn canonical_host(host: &str) -> Result<String, Ambiguous> {
    if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let address: Ipv6Addr = address.parse().map_err(|_| Ambiguous::Host)?;
        return Ok(format!("[{address}]"));
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    if host.len() > HOST_BYTES_MAX || !host.split('.').all(label) {
        return Err(Ambiguous::Host);
    }
    Ok(host.to_ascii_lowercase())
}

/// A path in one spelling, and its segments as the service will decode them.
#[derive(Debug)]
pub struct CanonicalPath {
    /// As it is forwarded.
    pub text: String,
    /// Its segments, decoded.
    pub segments: Vec<String>,
}

/// One segment on its way: how it is forwarded, what it means, and whether a dot in it came from an escape.
#[derive(Default)]
struct Segment {
    text: String,
    meaning: Vec<u8>,
    escaped_dot: bool,
}

// === impl CanonicalPath ===

impl CanonicalPath {
    /// Reads the path of a target: no query, no fragment.
    ///
    /// # Errors
    /// What two programs could read in two ways, or what is too long.
    pub fn parse(raw: &[u8]) -> Result<Self, Ambiguous> {
        if raw.len() > PATH_BYTES_MAX {
            return Err(Ambiguous::TooLong);
        }
        let rest = raw.strip_prefix(b"/").ok_or(Ambiguous::Target)?;
        let mut kept: Vec<(String, String)> = Vec::new();
        let mut directory = true;
        for segment in rest.split(|&b| b == b'/') {
            let segment = Segment::parse(segment)?;
            directory = true;
            match segment.text.as_str() {
                "" => {} // `//` is `/`
                "." | ".." if segment.escaped_dot => return Err(Ambiguous::EncodedDots),
                "." => {}
                ".." => {
                    kept.pop().ok_or(Ambiguous::EscapesRoot)?;
                }
                _ => {
                    directory = false;
                    // Refuses every encoding of a character other than its shortest, as RFC 3629 §3 demands.
                    let meaning = String::from_utf8(segment.meaning).map_err(|_| Ambiguous::NotUtf8)?;
                    kept.push((segment.text, meaning));
                }
            }
        }
        if kept.len() > SEGMENTS_MAX {
            return Err(Ambiguous::TooManySegments);
        }
        let mut text = String::with_capacity(raw.len());
        for (segment, _) in &kept {
            text.push('/');
            text.push_str(segment);
        }
        if directory {
            text.push('/');
        }
        if text.len() > PATH_BYTES_MAX {
            return Err(Ambiguous::TooLong);
        }
        Ok(Self {
            text,
            segments: kept.into_iter().map(|(_, meaning)| meaning).collect(),
        })
    }

    /// A part of a segment as it is spelt in a path; dots are left as they are. A path whose segments are put together of
    /// such parts is canonical if [`parse`](Self::parse) takes it.
    ///
    /// # Errors
    /// What two programs could read in two ways.
    pub fn part(raw: &str) -> Result<String, Ambiguous> {
        Ok(Segment::parse(raw.as_bytes())?.text)
    }
}

// === impl Segment ===

impl Segment {
    fn parse(raw: &[u8]) -> Result<Self, Ambiguous> {
        let mut segment = Self::default();
        let mut bytes = raw.iter().copied();
        while let Some(byte) = bytes.next() {
            match byte {
                b'%' => {
                    let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
                    let (Some(high), Some(low)) = (digit(), digit()) else {
                        return Err(Ambiguous::BadEscape);
                    };
                    let decoded = u8::try_from(high << 4 | low).map_err(|_| Ambiguous::BadEscape)?;
                    segment.push_escaped(decoded)?;
                }
                0..=b' ' | 0x7f => return Err(Ambiguous::ControlCharacter),
                b'\\' => return Err(Ambiguous::Backslash),
                b';' => return Err(Ambiguous::PathParameter),
                b'#' => return Err(Ambiguous::Fragment),
                byte if is_unreserved(byte) || b"!$&'()*+,=:@".contains(&byte) => segment.push_plain(byte),
                // Not a path character (RFC 3986 §3.3), yet sent by many: written as the escape it should have been.
                byte => segment.push_encoded(byte),
            }
        }
        Ok(segment)
    }

    fn push_escaped(&mut self, byte: u8) -> Result<(), Ambiguous> {
        match byte {
            0..b' ' | 0x7f => return Err(Ambiguous::ControlCharacter),
            b'/' | b'\\' => return Err(Ambiguous::EncodedSeparator),
            byte if is_unreserved(byte) => {
                self.escaped_dot |= byte == b'.';
                self.push_plain(byte);
            }
            byte => self.push_encoded(byte),
        }
        Ok(())
    }

    fn push_plain(&mut self, byte: u8) {
        self.text.push(char::from(byte));
        self.meaning.push(byte);
    }

    fn push_encoded(&mut self, byte: u8) {
        let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or('0').to_ascii_uppercase();
        self.text.push('%');
        self.text.push(digit(byte >> 4));
        self.text.push(digit(byte & 0xf));
        self.meaning.push(byte);
    }
}

/// RFC 3986 §2.3: an escape of these means the same as the byte itself.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn get(target: impl AsRef<[u8]>) -> Result<CanonicalRequest, Ambiguous> {
        CanonicalRequest::parse("GET", &[b"ledger"], target.as_ref())
    }

    #[track_caller]
    fn path(target: impl AsRef<[u8]>, expected: &str) {
        let target = target.as_ref();
        assert_eq!(
            get(target).map(|r| r.path().to_owned()),
            Ok(expected.to_owned()),
            "{}",
            target.escape_ascii()
        );
    }

    #[track_caller]
    fn refused(target: impl AsRef<[u8]>, expected: Ambiguous) {
        let target = target.as_ref();
        assert_eq!(get(target), Err(expected), "{}", target.escape_ascii());
    }

    // Ways past a path policy, class by class.

    #[test]
    fn merged_slashes() {
        path("//admin", "/admin");
        path("/a///b", "/a/b");
        path("/a//", "/a/");
        path("//", "/");
        path("/a//../b", "/b");
    }

    #[test]
    fn dot_segments() {
        path("/a/./b", "/a/b");
        path("/./admin", "/admin");
        path("/a/.", "/a/");
        path("/.", "/");
        path("/a/.../b", "/a/.../b");
        path("/.well-known", "/.well-known");
    }

    #[test]
    fn parent_segments() {
        path("/v1/../v2", "/v2");
        path("/a/b/..", "/a/");
        path("/a/..", "/");
        refused("/..", Ambiguous::EscapesRoot);
        refused("/../a", Ambiguous::EscapesRoot);
        refused("/a/../../b", Ambiguous::EscapesRoot);
        refused("//..", Ambiguous::EscapesRoot);
    }

    #[test]
    fn encoded_dots() {
        for target in ["/%2e%2e/a", "/a/%2E%2E", "/a/.%2e/b", "/a/%2e./b", "/%2e/a", "/a/%2e"] {
            refused(target, Ambiguous::EncodedDots);
        }
        path("/a%2eb", "/a.b");
        path("/%2e%2e%2e", "/...");
    }

    #[test]
    fn encoded_slash() {
        refused("/a%2fb", Ambiguous::EncodedSeparator);
        refused("/a%2Fb", Ambiguous::EncodedSeparator);
        refused("/..%2fadmin", Ambiguous::EncodedSeparator);
    }

    #[test]
    fn encoded_backslash() {
        refused("/a%5cb", Ambiguous::EncodedSeparator);
        refused("/..%5C", Ambiguous::EncodedSeparator);
    }

    #[test]
    fn plain_backslash() {
        refused("/a\\b", Ambiguous::Backslash);
        refused("/..\\admin", Ambiguous::Backslash);
    }

    #[test]
    fn path_parameters() {
        refused("/a;x=1/b", Ambiguous::PathParameter);
        refused("/a;", Ambiguous::PathParameter);
        path("/a%3bx", "/a%3Bx");
    }

    #[test]
    fn parent_with_parameter() {
        refused("/public/..;/admin", Ambiguous::PathParameter);
    }

    #[test]
    fn nul_and_control_characters() {
        for target in [
            "/a%00",
            "/a%00.html",
            "/a%0d%0aX: y",
            "/a%1f",
            "/a%7f",
            "/a b",
            "/a\0",
            "/a\r\n",
            "/a\t",
            "/\x7f",
        ] {
            refused(target, Ambiguous::ControlCharacter);
        }
        path("/a%20b", "/a%20b");
    }

    #[test]
    fn overlong_and_invalid_utf8() {
        for target in [
            "/%c0%ae%c0%ae/a",
            "/%c0%af",
            "/%e0%80%af",
            "/%ff",
            "/%ed%a0%80",
            "/%c3",
            "/%c3/%a9",
        ] {
            refused(target, Ambiguous::NotUtf8);
        }
        refused(b"/\xc0\xaf", Ambiguous::NotUtf8);
        refused(b"/\xff", Ambiguous::NotUtf8);
        path("/caf%c3%a9", "/caf%C3%A9");
        path("/café", "/caf%C3%A9");
    }

    #[test]
    fn double_encoding() {
        path("/a%252fb", "/a%252fb");
        path("/%252e%252e/a", "/%252e%252e/a");
        path("/%2541", "/%2541");
        assert_eq!(get("/a%252fb").unwrap().segments().collect::<Vec<_>>(), ["a%2fb"]);
    }

    #[test]
    fn bad_escapes() {
        for target in ["/%", "/%2", "/%zz", "/%2/", "/a%g0", "/%+2"] {
            refused(target, Ambiguous::BadEscape);
        }
    }

    #[test]
    fn unreserved_escapes_and_hexadecimal_case() {
        path("/%61dmin", "/admin");
        path("/%7Euser", "/~user");
        path("/a%3ab", "/a%3Ab");
        path("/{id}", "/%7Bid%7D");
        path("/a%22|", "/a%22%7C");
    }

    #[test]
    fn letters_keep_their_case() {
        path("/Admin", "/Admin");
    }

    #[test]
    fn trailing_slash_and_trailing_dot() {
        path("/a/", "/a/");
        path("/a.", "/a.");
        let segments = |target: &str| get(target).unwrap().segments().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(segments("/a/"), segments("/a"));
        assert_eq!(segments("/"), Vec::<String>::new());
    }

    #[test]
    fn encoded_reserved_characters_mean_the_same_segment() {
        let segments = |target: &str| get(target).unwrap().segments().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(segments("/v1/admin%3Areset"), segments("/v1/admin:reset"));
    }

    #[test]
    fn fragments() {
        refused("/a#b", Ambiguous::Fragment);
        refused("/a?b#c", Ambiguous::Fragment);
        refused("#", Ambiguous::Target);
    }

    #[test]
    fn absolute_form() {
        let parse = |hosts: &[&[u8]], target: &str| {
            CanonicalRequest::parse("GET", hosts, target.as_bytes()).map(|r| r.path_and_query())
        };
        assert_eq!(parse(&[b"ledger"], "http://ledger/a?b"), Ok("/a?b".into()));
        assert_eq!(parse(&[b"ledger:80"], "HTTP://LEDGER.:80/a"), Ok("/a".into()));
        assert_eq!(parse(&[b"ledger"], "http://other/a"), Err(Ambiguous::ConflictingHosts));
        assert_eq!(
            parse(&[b"ledger"], "http://ledger:81/a"),
            Err(Ambiguous::ConflictingHosts)
        );
        assert_eq!(parse(&[b"ledger"], "http://ledger@other/a"), Err(Ambiguous::Host));
        assert_eq!(parse(&[b"ledger"], "http://ledger"), Err(Ambiguous::Target));
        assert_eq!(parse(&[b"ledger"], "http://ledger?a"), Err(Ambiguous::Target));
        assert_eq!(parse(&[b"ledger"], "http:///a"), Err(Ambiguous::NoHost));
        assert_eq!(parse(&[b"ledger"], "ftp://ledger/a"), Err(Ambiguous::Target));
        assert_eq!(parse(&[], "http://ledger/a"), Err(Ambiguous::NoHost));
    }

    #[test]
    fn targets_that_are_no_path() {
        refused("", Ambiguous::Target);
        refused("a", Ambiguous::Target);
        refused("ledger:443", Ambiguous::Target);
        refused("*", Ambiguous::Asterisk);
        refused("?a", Ambiguous::Target);
        let options = |target: &[u8]| CanonicalRequest::parse("OPTIONS", &[b"ledger"], target);
        assert_eq!(options(b"*").unwrap().path(), "*");
        assert_eq!(options(b"*").unwrap().segments().len(), 0);
        assert_eq!(options(b"*?a"), Err(Ambiguous::Target));
    }

    #[test]
    fn queries_pass_unchanged() {
        for (target, query) in [
            ("/a?", Some("")),
            ("/a?%2f..;\\?x=%zz", Some("%2f..;\\?x=%zz")),
            ("/a", None),
        ] {
            let request = get(target).unwrap();
            assert_eq!(request.query(), query);
            assert_eq!(request.path_and_query(), target);
        }
        refused("/a?b\0", Ambiguous::ControlCharacter);
        refused("/a?b c", Ambiguous::ControlCharacter);
        refused(b"/a?\xff", Ambiguous::NotUtf8);
    }

    #[test]
    fn bounds() {
        path(
            format!("/{}", "a".repeat(PATH_BYTES_MAX - 1)),
            &format!("/{}", "a".repeat(PATH_BYTES_MAX - 1)),
        );
        refused(format!("/{}", "a".repeat(PATH_BYTES_MAX)), Ambiguous::TooLong);
        refused(format!("/{}", "|".repeat(PATH_BYTES_MAX / 2)), Ambiguous::TooLong);
        refused(format!("/?{}", "a".repeat(QUERY_BYTES_MAX + 1)), Ambiguous::TooLong);
        assert!(get("/a".repeat(SEGMENTS_MAX)).is_ok());
        refused("/a".repeat(SEGMENTS_MAX + 1), Ambiguous::TooManySegments);
    }

    #[test]
    fn methods() {
        let parse = |method: &str| CanonicalRequest::parse(method, &[b"ledger"], b"/").map(|r| r.method().to_owned());
        for method in ["GET", "PROPFIND", "M-SEARCH", "VERSION-CONTROL"] {
            assert_eq!(parse(method), Ok(method.to_owned()));
        }
        for method in [
            "",
            "get",
            "Get",
            "GE T",
            "GET\r\n",
            "GÉT",
            "-GET",
            "1",
            &"A".repeat(METHOD_BYTES_MAX + 1),
        ] {
            assert_eq!(parse(method), Err(Ambiguous::Method), "{method:?}");
        }
        assert_eq!(parse("CONNECT"), Err(Ambiguous::MethodRefused));
        assert_eq!(parse("TRACE"), Err(Ambiguous::MethodRefused));
    }

    #[test]
    fn hosts() {
        let parse = |hosts: &[&[u8]]| CanonicalRequest::parse("GET", hosts, b"/").map(|r| r.host().to_owned());
        for (hosts, expected) in [
            (&[b"Ledger.Example".as_slice()] as &[&[u8]], "ledger.example"),
            (&[b"ledger."], "ledger"),
            (&[b"ledger:8080"], "ledger"),
            (&[b"ledger.:8080"], "ledger"),
            (&[b"10.0.0.1:80"], "10.0.0.1"),
            (&[b"[::1]"], "[::1]"),
            (&[b"[0:0::1]:443"], "[::1]"),
            (&[b"xn--bcher-kva"], "xn--bcher-kva"),
            (&[b"ledger", b"LEDGER."], "ledger"),
        ] {
            assert_eq!(parse(hosts), Ok(expected.to_owned()), "{hosts:?}");
        }
        for (host, authority) in [
            ("Ledger.:8080", "ledger:8080"),
            ("ledger:080", "ledger:80"),
            ("[0::1]:443", "[::1]:443"),
            ("ledger", "ledger"),
        ] {
            let read = CanonicalRequest::parse("GET", &[host.as_bytes()], b"/").unwrap();
            assert_eq!(
                read.authority(),
                authority,
                "RFC 9110, 7.2: the port belongs to the host"
            );
        }
        for (hosts, expected) in [
            (&[] as &[&[u8]], Ambiguous::NoHost),
            (&[b""], Ambiguous::NoHost),
            (&[b"ledger", b"orders"], Ambiguous::ConflictingHosts),
            (&[b"ledger", b"ledger:80"], Ambiguous::ConflictingHosts),
            (&[b"ledger", b""], Ambiguous::NoHost),
            (&[b"ledger, orders"], Ambiguous::Host),
            (&[b"user@ledger"], Ambiguous::Host),
            (&[b"ledger:"], Ambiguous::Host),
            (&[b"ledger:0"], Ambiguous::Host),
            (&[b"ledger:+80"], Ambiguous::Host),
            (&[b"ledger:65536"], Ambiguous::Host),
            (&[b"ledger:80:80"], Ambiguous::Host),
            (&[b"ledger.."], Ambiguous::Host),
            (&[b".ledger"], Ambiguous::Host),
            (&[b"."], Ambiguous::Host),
            (&[b"le dger"], Ambiguous::Host),
            (&[b"ledger\0"], Ambiguous::Host),
            (&[b"ledger/a"], Ambiguous::Host),
            (&[b"led%67er"], Ambiguous::Host),
            (&["bücher".as_bytes()], Ambiguous::Host),
            (&[b"::1"], Ambiguous::Host),
            (&[b"[::1%25eth0]"], Ambiguous::Host),
            (&[b"[::1"], Ambiguous::Host),
            (&[b"\xff"], Ambiguous::Host),
        ] {
            assert_eq!(parse(hosts), Err(expected), "{hosts:?}");
        }
    }

    const PIECES: &str =
        "/ // . .. %2e %2E %2f %5c \\ ; %00 %25 %252e %c0%ae %c3%a9 é a B %41 %7b { | : %3a ~ ? # % * http://ledger";

    /// Targets made of the pieces that matter, and now and then of any byte.
    fn target() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            proptest::sample::select(PIECES.split(' ').collect::<Vec<_>>()).prop_map(|piece| piece.as_bytes().to_vec()),
            any::<u8>().prop_map(|byte| vec![byte]),
        ];
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| [b"/".to_vec(), pieces.concat()].concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn what_is_read_once_reads_the_same_again(target in target()) {
            if let Ok(once) = get(&target) {
                prop_assert_eq!(get(once.path_and_query()), Ok(once.clone()));
                let path = once.path();
                prop_assert!(path.starts_with('/') && !path.contains("//") && !path.contains('\\'));
                prop_assert!(path.bytes().all(|b| b.is_ascii_graphic() && b != b';' && b != b'#' && b != b'?'));
                prop_assert!(!path.split('/').any(|segment| matches!(segment, "." | "..")));
                prop_assert!(once.segments().all(|s| !s.is_empty() && !s.contains('/') && !s.contains('\0')));
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(method in ".*", host: Vec<u8>, target: Vec<u8>) {
            let _ = CanonicalRequest::parse(&method, &[&host], &target);
        }
    }
}
