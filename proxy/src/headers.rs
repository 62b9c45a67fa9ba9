//! Header hygiene: what may cross a hop, what only a proxy may say, and what we say about the peer.

use std::borrow::Cow;

use data_encoding::HEXLOWER;
use hoplite_decision::DECISION_HEADER;
use hoplite_identity::{SpiffeId, VerifiedPeer};
use hoplite_policy::OVERRIDE_HEADERS;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Version};

/// Stands in every answer of an inbound listener.
pub(crate) const DECISION: HeaderName = HeaderName::from_static(DECISION_HEADER);

/// What the service learns about its caller.
const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Headers of one connection, not of the message (RFC 9110, 7.6.1).
const HOP_BY_HOP: [&str; 6] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "transfer-encoding",
    "upgrade",
];

/// Headers by which proxies speak about identity, or about a host other than the one decided on. From outside they are
/// lies.
const IDENTITY: [&str; 2] = ["l5d-client-id", "forwarded"];

/// The same, by prefix.
const IDENTITY_PREFIXES: [&str; 3] = ["x-hoplite-", "x-envoy-", "x-forwarded-"];

/// Whom earlier hops served: an account that services may read, and that speaks neither of the caller nor of the host.
const ACCOUNT: &str = "x-forwarded-for";

/// Fields that a request has once or not at all. Of two, one server takes the first and the next one the last.
const SINGLE: [&str; 13] = [
    "host",
    "content-type",
    "authorization",
    "proxy-authorization",
    "origin",
    "referer",
    "user-agent",
    "from",
    "range",
    "if-range",
    "if-modified-since",
    "if-unmodified-since",
    "max-forwards",
];

/// Fields that decide where a request ends. Written with `_`, a program behind a server may still obey them.
const FRAMING: [&str; 3] = ["content-length", "transfer-encoding", "connection"];

/// Fields that this hop answers for itself.
const HANDLED_HERE: [&str; 3] = ["te", "expect", "http2-settings"];

/// Why a message cannot be passed on in one reading, or its wish not be granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unclean {
    #[error("the body's length is given in two ways: the next server might see two requests")]
    ConflictingLength,
    #[error("a transfer coding other than `chunked`")]
    TransferCoding,
    #[error("another protocol on this connection")]
    Upgrade,
    #[error("an expectation other than `100-continue`")]
    Expectation,
    #[error("a header that some servers obey instead of the method or path that was decided on")]
    Override,
    #[error("a header twice that may stand once only, or under a name that some servers take for it")]
    Duplicate,
}

// === impl Unclean ===

impl Unclean {
    /// A stable word for record and answer.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::ConflictingLength => "conflicting_length",
            Self::TransferCoding => "transfer_coding",
            Self::Upgrade => "upgrade_refused",
            Self::Expectation => "expectation_failed",
            Self::Override => "override_refused",
            Self::Duplicate => "duplicate_field",
        }
    }
}

/// What must be looked at before anything is removed.
pub(crate) fn check(headers: &HeaderMap, version: Version) -> Result<(), Unclean> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(first) = lengths.next() {
        let digits = !first.is_empty() && first.as_bytes().iter().all(u8::is_ascii_digit);
        if !digits || lengths.next().is_some() || headers.contains_key(TRANSFER_ENCODING) {
            return Err(Unclean::ConflictingLength);
        }
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (version != Version::HTTP_11
            || codings.next().is_some()
            || !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return Err(Unclean::TransferCoding);
    }
    // An offer of HTTP/2 on a connection that works as it is may be ignored (RFC 9110, 7.8); others mean it.
    if headers
        .get_all(UPGRADE)
        .iter()
        .any(|value| !value.as_bytes().eq_ignore_ascii_case(b"h2c"))
    {
        return Err(Unclean::Upgrade);
    }
    if headers
        .keys()
        .any(|name| OVERRIDE_HEADERS.contains(&dashed(name.as_str()).as_ref()))
    {
        return Err(Unclean::Override);
    }
    let twice = |name: &&str| headers.get_all(*name).iter().nth(1).is_some();
    let disguised = |name: &HeaderName| {
        let dashed = dashed(name.as_str());
        dashed != name.as_str() && SINGLE.iter().chain(&FRAMING).any(|single| *single == dashed)
    };
    if SINGLE.iter().any(twice) || headers.keys().any(disguised) {
        return Err(Unclean::Duplicate);
    }
    match headers.get(EXPECT) {
        Some(value) if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") => Err(Unclean::Expectation),
        _ => Ok(()),
    }
}

/// Removes from a request what belongs to the connection and what only proxies may say.
pub(crate) fn sanitize_request(headers: &mut HeaderMap) {
    let trailers = headers.get_all(TE).iter().any(|value| has_token(value, "trailers"));
    remove_hop_by_hop(headers);
    // The client hears `100 Continue` when its body is first asked for, which is after the decision.
    for name in HANDLED_HERE {
        headers.remove(name);
    }
    remove_identity(headers);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Removes from a response what belongs to the connection.
pub(crate) fn sanitize_response(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
}

/// Removes what only proxies may say, in any spelling that a server may take for it.
fn remove_identity(headers: &mut HeaderMap) {
    let lies: Vec<HeaderName> = headers
        .keys()
        .filter(|name| speaks_of_identity(name.as_str()))
        .cloned()
        .collect();
    for name in lies {
        headers.remove(name);
    }
}

/// Removes from trailers whatever a head may not have, has once, or is decided by: nobody looks at them before they are
/// passed on.
pub(crate) fn sanitize_trailers(trailers: &mut HeaderMap) {
    let lists = [&HOP_BY_HOP[..], &SINGLE, &FRAMING, &OVERRIDE_HEADERS, &HANDLED_HERE];
    let unfit = |name: &HeaderName| {
        let name = dashed(name.as_str());
        speaks_of_identity(&name) || lists.iter().any(|list| list.contains(&name.as_ref()))
    };
    let unfit: Vec<HeaderName> = trailers.keys().filter(|name| unfit(name)).cloned().collect();
    for name in unfit {
        trailers.remove(name);
    }
}

/// What `x-forwarded-client-cert` says of a peer: `By=<own id>;Hash=<leaf>;URI=<peer id>`.
pub(crate) fn client_cert(own: &SpiffeId, peer: &VerifiedPeer) -> Option<HeaderValue> {
    let hash = HEXLOWER.encode(peer.leaf().fingerprint());
    // A SPIFFE ID holds neither `;` nor `"` nor control characters (ID-3, ID-4), so nothing needs quoting.
    HeaderValue::try_from(format!("By={own};Hash={hash};URI={}", peer.spiffe_id())).ok()
}

/// Says who called. Only on sanitized headers.
pub(crate) fn set_identity(headers: &mut HeaderMap, client_cert: HeaderValue) {
    headers.insert(CLIENT_CERT, client_cert);
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static("https"));
}

/// The trace id of the one valid `traceparent`.
pub(crate) fn trace_id(headers: &HeaderMap) -> Option<String> {
    let mut values = headers.get_all("traceparent").iter();
    let (Some(only), None) = (values.next(), values.next()) else {
        return None;
    };
    hoplite_decision::trace_id(only.to_str().ok()?)
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|token| HeaderName::from_bytes(token.trim().as_bytes()).ok())
        // Framing and routing are not the peer's to remove.
        .filter(|name| name != CONTENT_LENGTH && name != http::header::HOST)
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

fn speaks_of_identity(name: &str) -> bool {
    let name = dashed(name);
    IDENTITY.contains(&name.as_ref())
        || (name != ACCOUNT && IDENTITY_PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
}

/// Servers that hand headers to programs as variables (CGI, WSGI) see `_` and `-` as the same.
fn dashed(name: &str) -> Cow<'_, str> {
    if name.contains('_') {
        name.replace('_', "-").into()
    } else {
        name.into()
    }
}

fn has_token(value: &HeaderValue, token: &str) -> bool {
    value
        .to_str()
        .is_ok_and(|text| text.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_what_belongs_to_the_message_crosses() {
        let check = |lines: &[(&str, &str)], left: &[&str]| {
            let mut headers = map(lines);
            sanitize_request(&mut headers);
            let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
            names.sort_unstable();
            assert_eq!(names, left, "{lines:?}");
        };
        check(
            &[("accept", "*/*"), ("authorization", "x")],
            &["accept", "authorization"],
        );
        check(&[("x-forwarded-client-cert", "URI=spiffe://a/b")], &[]);
        check(
            &[("x_forwarded_client_cert", "x"), ("x-forwarded_client-cert", "x")],
            &[],
        );
        check(
            &[
                ("x-hoplite-decision", "x"),
                ("x_hoplite_anything", "x"),
                ("x-envoy-peer-metadata", "x"),
            ],
            &[],
        );
        check(
            &[
                ("l5d-client-id", "x"),
                ("l5d_client_id", "x"),
                ("x-forwarded-proto", "http"),
            ],
            &[],
        );
        check(
            &[
                ("x-forwarded-for", "1.2.3.4"),
                ("x-forwarded-host", "x"),
                ("x_forwarded_host", "x"),
                ("x-forwarded-prefix", "x"),
                ("forwarded", "host=x"),
            ],
            &["x-forwarded-for"],
        );
        check(&[("connection", "close, x-a"), ("x-a", "1"), ("x-b", "1")], &["x-b"]);
        check(
            &[
                ("connection", "x-forwarded-client-cert"),
                ("x-forwarded-client-cert", "x"),
            ],
            &[],
        );
        check(
            &[
                ("connection", "content-length, host"),
                ("content-length", "1"),
                ("host", "a"),
            ],
            &["content-length", "host"],
        );
        check(&[("te", "trailers, deflate")], &["te"]);
        check(
            &[
                ("te", "gzip"),
                ("keep-alive", "1"),
                ("upgrade", "h2c"),
                ("http2-settings", "A"),
            ],
            &[],
        );
        check(&[("expect", "100-continue")], &[]);
    }

    /// Policy must not be told a value that the service is not.
    #[test]
    fn what_is_taken_off_or_written_here_cannot_be_selected() {
        let (client_cert, proto, decision) = (CLIENT_CERT, FORWARDED_PROTO, DECISION);
        let own = [client_cert.as_str(), proto.as_str(), decision.as_str(), ACCOUNT];
        let others = ["content-length", "host"];
        let lists = [
            &HOP_BY_HOP[..],
            &IDENTITY,
            &OVERRIDE_HEADERS,
            &FRAMING,
            &HANDLED_HERE,
            &own,
            &others,
        ];
        for name in lists.into_iter().flatten() {
            let selected = hoplite_policy::SelectedHeaders::parse(&format!("headers = ['{name}']"));
            assert!(selected.is_err(), "{name}");
        }
        for prefix in IDENTITY_PREFIXES {
            assert!(hoplite_policy::SelectedHeaders::parse(&format!("headers = ['{prefix}x']")).is_err());
        }
    }

    #[test]
    fn framing_that_reads_two_ways_is_refused() {
        let check = |lines: &[(&str, &str)], version, expected: Result<(), Unclean>| {
            assert_eq!(super::check(&map(lines), version), expected, "{lines:?}");
        };
        use Version as V;
        check(&[], V::HTTP_11, Ok(()));
        check(&[("content-length", "5")], V::HTTP_11, Ok(()));
        check(&[("content-length", "+5")], V::HTTP_11, Err(Unclean::ConflictingLength));
        check(
            &[("content-length", "5"), ("content-length", "5")],
            V::HTTP_2,
            Err(Unclean::ConflictingLength),
        );
        check(
            &[("content-length", "5"), ("transfer-encoding", "chunked")],
            V::HTTP_11,
            Err(Unclean::ConflictingLength),
        );
        check(&[("transfer-encoding", "Chunked")], V::HTTP_11, Ok(()));
        check(
            &[("transfer-encoding", "gzip, chunked")],
            V::HTTP_11,
            Err(Unclean::TransferCoding),
        );
        check(
            &[("transfer-encoding", "chunked")],
            V::HTTP_10,
            Err(Unclean::TransferCoding),
        );
        check(
            &[("transfer-encoding", "chunked")],
            V::HTTP_2,
            Err(Unclean::TransferCoding),
        );
        check(&[("upgrade", "websocket")], V::HTTP_11, Err(Unclean::Upgrade));
        check(&[("upgrade", "h2c")], V::HTTP_11, Ok(()));
        check(&[("expect", "100-Continue")], V::HTTP_11, Ok(()));
        check(&[("expect", "200-ok")], V::HTTP_11, Err(Unclean::Expectation));
        check(
            &[("x-http-method-override", "DELETE")],
            V::HTTP_11,
            Err(Unclean::Override),
        );
        check(
            &[("x_http_method_override", "DELETE")],
            V::HTTP_2,
            Err(Unclean::Override),
        );
        check(&[("x-original-url", "/admin")], V::HTTP_2, Err(Unclean::Override));
        check(&[("x-original-uri", "/a")], V::HTTP_11, Ok(()));
        for name in SINGLE {
            check(&[(name, "a"), (name, "a")], V::HTTP_11, Err(Unclean::Duplicate));
            check(&[(name, "a")], V::HTTP_2, Ok(()));
        }
        check(&[("content_type", "a")], V::HTTP_11, Err(Unclean::Duplicate));
        check(&[("content_length", "1")], V::HTTP_11, Err(Unclean::Duplicate));
        check(&[("transfer_encoding", "chunked")], V::HTTP_2, Err(Unclean::Duplicate));
        check(&[("cookie", "a"), ("cookie", "b"), ("x_mine", "a")], V::HTTP_2, Ok(()));
    }

    #[test]
    fn of_two_traces_none_counts() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let whole = format!("00-{id}-00f067aa0ba902b7-01");
        let line = ("traceparent", whole.as_str());
        assert_eq!(trace_id(&map(&[line])).as_deref(), Some(id));
        assert_eq!(trace_id(&map(&[line, line])), None);
        assert_eq!(trace_id(&map(&[])), None);
    }
}
