//! Short answers of the proxy itself: what a caller may know, and the id under which the log knows more.

use bytes::Bytes;
use hoplite_audit::{DecisionId, Outcome};
use hoplite_decision::{Refused, refusal};
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;

use crate::http::body::Body;
use crate::http::hygiene;

/// A refusal's body, and the decision in a header too.
pub(crate) fn answer(
    status: StatusCode,
    error: &str,
    outcome: Option<Outcome>,
    decision: Option<&DecisionId>,
) -> Response<Body> {
    said(status, refusal(error, outcome, decision), decision)
}

/// What somebody is told to whom nothing is granted.
pub(crate) fn refused(refused: &Refused) -> Response<Body> {
    said(refused.status(), refused.body(), refused.decision())
}

fn said(status: StatusCode, text: String, decision: Option<&DecisionId>) -> Response<Body> {
    let mut response = Response::new(Body::Own(Full::new(Bytes::from(text))));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(decision) = decision {
        set_decision(&mut response, decision);
    }
    response
}

/// Names the decision in an answer.
pub(crate) fn set_decision(response: &mut Response<Body>, decision: &DecisionId) {
    if let Ok(value) = HeaderValue::try_from(decision.to_string()) {
        response.headers_mut().insert(hygiene::DECISION, value);
    }
}

/// Ends an HTTP/1.1 connection with this answer: what follows on it may not be what it seems. HTTP/2 frames its streams.
pub(crate) fn closing(mut response: Response<Body>, http2: bool) -> Response<Body> {
    if !http2 {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
