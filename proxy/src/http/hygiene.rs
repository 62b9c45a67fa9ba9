//! Header hygiene: what may cross a hop, what only a proxy may say, and what we say about the peer.

use hoplite_decision::DECISION_HEADER;
use hoplite_identity::{SpiffeId, VerifiedPeer};
use hoplite_policy::header_nature::{HeaderNature, KnownHeader, RemovedHeaders, Spelling};
use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Version};

/// Stands in every answer of an inbound listener.
pub(crate) const DECISION: HeaderName = HeaderName::from_static(DECISION_HEADER);

/// What the service learns about its caller.
const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

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
        // The same number again is one length (RFC 9110, 8.6), and becomes one below.
        if !digits || lengths.any(|other| other != first) || headers.contains_key(TRANSFER_ENCODING) {
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
    check_names(headers)?;
    match headers.get(EXPECT) {
        Some(value) if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") => Err(Unclean::Expectation),
        _ => Ok(()),
    }
}

/// What would be obeyed instead of what was decided, and what stands there twice or in disguise.
fn check_names(headers: &HeaderMap) -> Result<(), Unclean> {
    let mut duplicate = false;
    for name in headers.keys() {
        let Some((known, spelling)) = KnownHeader::of(name.as_str()) else {
            continue;
        };
        if known.nature == HeaderNature::Override {
            return Err(Unclean::Override);
        }
        let twice = || *name != CONTENT_LENGTH && headers.get_all(name).iter().nth(1).is_some();
        duplicate |= known.once && (spelling == Spelling::Disguised || twice());
    }
    if duplicate { Err(Unclean::Duplicate) } else { Ok(()) }
}

/// Removes from a request what belongs to the connection and what only proxies may say, and makes one field of what was
/// sent in pieces.
pub(crate) fn sanitize_request(headers: &mut HeaderMap) {
    if let Some(length) = headers.get(CONTENT_LENGTH).cloned() {
        headers.insert(CONTENT_LENGTH, length);
    }
    join_cookies(headers);
    let trailers = headers.get_all(TE).iter().any(|value| has_token(value, "trailers"));
    remove_named_by_connection(headers);
    // The client hears `100 Continue` when its body is first asked for, which is after the decision.
    remove(headers, |known, spelling| match known.nature {
        HeaderNature::HopByHop | HeaderNature::AnsweredHere | HeaderNature::Identity | HeaderNature::Ours => true,
        HeaderNature::Account => spelling == Spelling::Disguised,
        // What of these is in disguise has been refused.
        HeaderNature::Host | HeaderNature::Framing | HeaderNature::Override | HeaderNature::Ordinary => false,
    });
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// One cookie field instead of several (RFC 9113, 8.2.3; RFC 6265, 5.4): HTTP/2 sends crumbs, and a service that reads the
/// first field only would miss the others.
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    if crumbs.nth(1).is_none() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    // Of values that each are one, the joint value is one too.
    if let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, cookie);
    }
}

/// Removes what an operator has named, in every spelling.
pub(crate) fn remove_named(headers: &mut HeaderMap, removed: &RemovedHeaders) {
    if removed.is_empty() {
        return;
    }
    let unfit: Vec<HeaderName> = headers
        .keys()
        .filter(|name| removed.hold(name.as_str()))
        .cloned()
        .collect();
    for name in unfit {
        headers.remove(name);
    }
}

/// Removes from a peer's response what belongs to the connection.
pub(crate) fn sanitize_response(headers: &mut HeaderMap) {
    remove_named_by_connection(headers);
    remove(headers, |known, _| known.nature == HeaderNature::HopByHop);
}

/// Removes from the own service's response what belongs to the connection, and what only we may say.
pub(crate) fn sanitize_service_response(headers: &mut HeaderMap) {
    remove_named_by_connection(headers);
    remove(headers, |known, _| {
        matches!(known.nature, HeaderNature::HopByHop | HeaderNature::Ours)
    });
}

/// Removes from trailers all that means something to somebody between two programs: nobody looks at trailers before they
/// are passed on.
pub(crate) fn sanitize_trailers(trailers: &mut HeaderMap) {
    remove(trailers, |_, _| true);
}

fn remove(headers: &mut HeaderMap, unfit: impl Fn(&KnownHeader, Spelling) -> bool) {
    let unfit: Vec<HeaderName> = headers
        .keys()
        .filter(|name| KnownHeader::of(name.as_str()).is_some_and(|(known, spelling)| unfit(known, spelling)))
        .cloned()
        .collect();
    for name in unfit {
        headers.remove(name);
    }
}

/// What `x-forwarded-client-cert` says of a peer: `By=<own id>;Hash=<leaf>;URI=<peer id>`.
pub(crate) fn client_cert(own: &SpiffeId, peer: &VerifiedPeer) -> Option<HeaderValue> {
    let hash = peer.leaf().fingerprint();
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

/// Removes what `Connection` says is the connection's.
fn remove_named_by_connection(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|token| HeaderName::from_bytes(token.trim().as_bytes()).ok())
        // Framing and routing are not the peer's to remove.
        .filter(|name| name != CONTENT_LENGTH && name != HOST)
        .collect();
    for name in named {
        headers.remove(name);
    }
}

fn has_token(value: &HeaderValue, token: &str) -> bool {
    value
        .to_str()
        .is_ok_and(|text| text.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
}

#[cfg(test)]
mod tests {
    use hoplite_policy::header_nature::KNOWN_HEADERS;

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
        check(
            &[
                ("x.forwarded.host", "x"),
                ("x!forwarded|for", "x"),
                ("x.hoplite.decision", "x"),
                ("keep_alive", "1"),
                ("client-cert", "x"),
                ("proxy-authorization", "x"),
            ],
            &[],
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
        for known in KNOWN_HEADERS {
            let name = known.name.replace('*', "x");
            let selected = hoplite_policy::SelectedHeaders::parse(&format!("headers = ['{name}']"));
            let may = known.nature == HeaderNature::Ordinary && name != "authorization";
            assert_eq!(selected.is_ok(), may, "{name}");
        }
        for own in [CLIENT_CERT, FORWARDED_PROTO, DECISION] {
            let (known, _) = KnownHeader::of(own.as_str()).unwrap();
            assert!(
                matches!(known.nature, HeaderNature::Identity | HeaderNature::Ours),
                "{own}"
            );
        }
    }

    #[test]
    fn a_service_cannot_speak_for_the_proxy() {
        let mut headers = map(&[
            ("x-hoplite-decision", "forged"),
            ("x.hoplite_decision", "forged"),
            ("connection", "close, x-a"),
            ("x-a", "1"),
            ("keep_alive", "1"),
            ("x-envoy-upstream-service-time", "7"),
        ]);
        sanitize_service_response(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["x-envoy-upstream-service-time"]);
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
        // RFC 9110, 8.6: the same number again is one length.
        check(&[("content-length", "5"), ("content-length", "5")], V::HTTP_2, Ok(()));
        check(
            &[("content-length", "5"), ("content-length", "05")],
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
        for name in KNOWN_HEADERS
            .iter()
            .filter(|known| known.once && !["content-length", "transfer-encoding"].contains(&known.name))
            .map(|known| known.name)
        {
            check(&[(name, "a"), (name, "a")], V::HTTP_11, Err(Unclean::Duplicate));
            check(&[(name, "a")], V::HTTP_2, Ok(()));
        }
        check(&[("content_type", "a")], V::HTTP_11, Err(Unclean::Duplicate));
        check(&[("content_length", "1")], V::HTTP_11, Err(Unclean::Duplicate));
        check(&[("transfer_encoding", "chunked")], V::HTTP_2, Err(Unclean::Duplicate));
        check(&[("cookie", "a"), ("cookie", "b"), ("x_mine", "a")], V::HTTP_2, Ok(()));
    }

    #[test]
    fn rfc9113_8_2_3_and_rfc9110_8_6_pieces_become_one_field() {
        let mut headers = map(&[
            ("cookie", "a=1"),
            ("content-length", "5"),
            ("cookie", "b=2; c=3"),
            ("content-length", "5"),
            ("cookie", "d=4"),
        ]);
        sanitize_request(&mut headers);
        let values = |name| headers.get_all(name).iter().collect::<Vec<_>>();
        assert_eq!(values("cookie"), ["a=1; b=2; c=3; d=4"]);
        assert_eq!(values("content-length"), ["5"]);
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
