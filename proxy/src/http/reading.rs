//! The one reading of a request, for policy, record and upstream alike, and the bounds within which it is read.

use std::time::Duration;

use hoplite_decision::Unasked;
use hoplite_policy::{Ambiguous, CanonicalRequest, canonical_method};
use http::header::{COOKIE, HOST};
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Version};
use hyper::server::conn::http1;
use hyper_util::rt::TokioTimer;

use crate::http::http2::{HEAD_BYTES_MAX, STREAM_WINDOW, STREAMS_MAX};
use crate::http::hygiene::{self, Unclean};
use crate::http::unread::Unread;
use crate::http::windows::FIRST_WINDOW;

/// A request's head must be whole within this time; an idle HTTP/1.1 connection is closed after it.
pub(crate) const HEADER_TIME_MAX: Duration = Duration::from_secs(60);

/// A request's head, decompressed, and what HTTP/1.1 may read ahead.
pub(crate) const HEADER_BYTES_MAX: u32 = HEAD_BYTES_MAX;

/// Header fields of one request.
pub(crate) const HEADERS_MAX: usize = 100;

/// Streams that a peer opened and reset before we looked at them (CVE-2023-44487) …
const RESETS_PENDING_MAX: usize = 20;

/// … and that it made us reset (CVE-2025-8671), before the connection is closed.
const RESETS_LOCAL_MAX: usize = 256;

/// What waits to be written on one stream.
const SEND_BYTES_MAX: usize = 400 << 10;

/// Reads a request in the only way it can be read.
pub(crate) fn read<B>(request: &Request<B>) -> Result<CanonicalRequest, Unasked> {
    if let Some(unread) = Unread::of(request.headers()) {
        return Err(unread.refusal());
    }
    // Refused before anything else is looked at, so that the answer is one and the same whatever else is wrong.
    let method = canonical_method(request.method().as_str())?;
    // The library's own bound on HTTP/1.1 is one on reading ahead: a head that comes in few reads may be larger.
    let target = request.uri().path_and_query().map_or(1, |target| target.as_str().len());
    if head_bytes(target, request.headers()) > HEADER_BYTES_MAX as usize || field_count(request.headers()) > HEADERS_MAX
    {
        let reason = format!("the head has more than {HEADERS_MAX} fields or {HEADER_BYTES_MAX} bytes");
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return Err(Unasked::malformed("head_too_large", reason).with_status(status));
    }
    hygiene::check(request.headers(), request.version()).map_err(|unclean| {
        let status = match unclean {
            Unclean::ConflictingLength | Unclean::TransferCoding | Unclean::Override | Unclean::Duplicate => {
                StatusCode::BAD_REQUEST
            }
            Unclean::Upgrade => StatusCode::NOT_IMPLEMENTED,
            Unclean::Expectation => StatusCode::EXPECTATION_FAILED,
        };
        Unasked::malformed(unclean.code(), unclean.to_string()).with_status(status)
    })?;
    let uri = request.uri();
    if let Some(scheme) = uri.scheme()
        && ![Scheme::HTTP, Scheme::HTTPS].contains(scheme)
    {
        return Err(Ambiguous::Target.into());
    }
    let named = hosts(request)?;
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    Ok(CanonicalRequest::parse(method, &named, target.as_bytes())?)
}

/// Whatever says which host is meant: all of it must say the same.
fn hosts<B>(request: &Request<B>) -> Result<Vec<&[u8]>, Unasked> {
    let mut named: Vec<&[u8]> = request
        .headers()
        .get_all(HOST)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    let Some(authority) = request.uri().authority() else {
        return Ok(named);
    };
    let authority = authority.as_str().as_bytes();
    match (request.version(), named.as_slice()) {
        // RFC 9112, 3.2: without `Host` it is refused, whatever the target says.
        (Version::HTTP_11, []) => Err(Ambiguous::NoHost.into()),
        // RFC 9112, 3.2.2: of an absolute target the `Host` beside it is ignored, if it is one at all (3.2).
        (Version::HTTP_10 | Version::HTTP_11, hosts) => {
            for host in hosts {
                CanonicalRequest::parse("GET", &[host], b"/")?;
            }
            Ok(vec![authority])
        }
        // RFC 9113, 8.3.1: beside `:authority` it must not say another.
        _ => {
            named.push(authority);
            Ok(named)
        }
    }
}

/// Crumbs of one cookie (RFC 9113, 8.2.3) count as one field: browsers send dozens.
fn field_count(headers: &HeaderMap) -> usize {
    let crumbs = headers.get_all(COOKIE).iter().count();
    headers.len() - crumbs.saturating_sub(1)
}

/// As RFC 9113 counts it (6.5.2), for every version alike: each field's name, value and 32 bytes; besides `more` bytes.
pub(crate) fn head_bytes(more: usize, fields: &HeaderMap) -> usize {
    fields.iter().fold(more, |bytes, (name, value)| {
        bytes + name.as_str().len() + value.len() + 32
    })
}

/// An HTTP/1.1 server with every bound set.
pub(crate) fn bounded_http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // Whoever has said all may still hear the answer (RFC 9112, 9.6).
        .half_close(true)
        .header_read_timeout(HEADER_TIME_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEADER_BYTES_MAX as usize);
    builder
}

/// An HTTP/2 server with every bound set.
pub(crate) fn bounded_http2() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(RESETS_PENDING_MAX)
        .max_local_error_reset_streams(Some(RESETS_LOCAL_MAX))
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_send_buffer_size(SEND_BYTES_MAX)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(FIRST_WINDOW);
    builder
}
