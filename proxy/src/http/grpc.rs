//! gRPC over HTTP/2: a refusal is an answer of trailers only, and what breaks off ends with a status, never as a fault of
//! gRPC's own (`INTERNAL`).

use std::error::Error;

use hoplite_audit::DecisionId;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::http::exchange::NoLongerPermitted;
use crate::http::hygiene::DECISION;

/// How a call has ended, by its number.
pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The statuses that we give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Unimplemented = 12,
    Unavailable = 14,
    Unauthenticated = 16,
}

/// How an answer of gRPC ends that breaks off.
#[derive(Debug, Clone)]
pub(crate) struct GrpcEnd {
    decision: Option<HeaderValue>,
    said: bool,
}

/// Whether a message is one of gRPC proper. gRPC-Web has its trailers elsewhere.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let Some(rest) = content_type.strip_prefix(b"application/grpc") else {
        return false;
    };
    matches!(rest.first(), None | Some(b'+' | b';'))
}

/// Makes a refusal of an answer's head, with the decision where people and programs look for it.
pub(crate) fn refuse(headers: &mut HeaderMap, status: StatusCode, code: &'static str, decision: Option<&DecisionId>) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_STATUS, HeaderValue::from(of_http(status, code) as u16));
    let decision = decision.map(ToString::to_string);
    if let Some(message) = message(code, decision.as_deref()) {
        headers.insert(GRPC_MESSAGE, message);
    }
}

/// What an HTTP status of ours is for gRPC.
fn of_http(status: StatusCode, code: &str) -> Status {
    match (status, code) {
        (_, "caller_busy") => Status::ResourceExhausted,
        (_, "grpc_timeout") => Status::DeadlineExceeded,
        (StatusCode::UNAUTHORIZED, _) => Status::Unauthenticated,
        (StatusCode::FORBIDDEN, _) => Status::PermissionDenied,
        (StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, _) => Status::ResourceExhausted,
        (StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED, _) => Status::Unimplemented,
        (StatusCode::LOOP_DETECTED, _) => Status::FailedPrecondition,
        (status, _) if status.is_client_error() => Status::InvalidArgument,
        _ => Status::Unavailable,
    }
}

/// Words and ids of ours need no escapes.
fn message(code: &str, decision: Option<&str>) -> Option<HeaderValue> {
    let text = match decision {
        Some(decision) => format!("{code}; decision {decision}"),
        None => code.to_owned(),
    };
    HeaderValue::try_from(text).ok()
}

// === impl GrpcEnd ===

impl GrpcEnd {
    /// Of an answer with this head.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        Self {
            decision: headers.get(DECISION).cloned(),
            said: false,
        }
    }

    /// The trailers to end with instead of this fault, once.
    pub(crate) fn trailers(&mut self, broken: &(dyn Error + Send + Sync + 'static)) -> Option<HeaderMap> {
        if std::mem::replace(&mut self.said, true) {
            return None;
        }
        let (status, code) = if broken.is::<NoLongerPermitted>() {
            (Status::PermissionDenied, "revoked")
        } else {
            (Status::Unavailable, "upstream_broken")
        };
        let decision = self.decision.as_ref();
        let named = decision.and_then(|decision| decision.to_str().ok());
        let mut trailers = HeaderMap::new();
        trailers.insert(GRPC_STATUS, HeaderValue::from(status as u16));
        if let Some(message) = message(code, named) {
            trailers.insert(GRPC_MESSAGE, message);
        }
        if let Some(decision) = decision {
            trailers.insert(DECISION, decision.clone());
        }
        Some(trailers)
    }

    /// Names the decision beside a status that is none of success: callers look for metadata where they find that.
    pub(crate) fn name(&self, trailers: &mut HeaderMap) {
        let failed = trailers.get(GRPC_STATUS).is_some_and(|status| status != "0");
        if let (true, Some(decision)) = (failed, &self.decision) {
            trailers.insert(DECISION, decision.clone());
        }
    }

    /// Nothing follows.
    pub(crate) fn is_said(&self) -> bool {
        self.said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_what_says_so() {
        let check = |content_type: &'static str, expected: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
            assert_eq!(is_grpc(&headers), expected, "{content_type}");
        };
        for content_type in ["application/grpc", "application/grpc+proto", "application/grpc;v=1"] {
            check(content_type, true);
        }
        for content_type in ["application/grpc-web", "application/grpcx", "application/json", ""] {
            check(content_type, false);
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn statuses_have_their_counterparts() {
        let check = |status: u16, code: &str, expected: u16| {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(of_http(status, code) as u16, expected, "{status} {code}");
        };
        check(403, "denied", 7);
        check(403, "revoked", 7);
        check(401, "expired", 16);
        check(400, "encoded_separator", 3);
        check(431, "head_too_large", 8);
        check(503, "caller_busy", 8);
        check(503, "unrecorded", 14);
        check(502, "upstream_unreachable", 14);
        check(504, "upstream_timeout", 14);
        check(501, "upgrade_refused", 12);
        check(508, "loop", 9);
        check(504, "grpc_timeout", 4);
        check(504, "stream_idle", 14);
    }
}
