//! Answers: a server's, passed on, or one of ours, which says what a caller may know and the id under which the log knows
//! more.
//!
//! Whoever answers gives an [`Answer`], and there is one of ours only for what is recorded: it is made of a [`Refused`], a
//! [`Revoked`], or the decision under which something went wrong.

use std::sync::Arc;

use bytes::Bytes;
use hoplite_audit::DecisionId;
use hoplite_decision::{Refused, refusal};
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Response, StatusCode, Version};
use http_body_util::Full;

use crate::http::body::Body;
use crate::http::exchange::{Answering, Revoked};
use crate::http::grpc::{self, GrpcEnd};
use crate::http::hop;
use crate::http::hygiene;
use crate::http::transfer::Transfer;
use crate::http::upstream::FromServer;
use crate::peer::dial::UpstreamError;

/// What a caller gets.
#[derive(Debug)]
pub(crate) struct Answer(Response<Body>);

/// How a caller wants to be answered, and over what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dialect {
    http2: bool,
    grpc: bool,
}

// === impl Dialect ===

impl Dialect {
    /// As the request says it.
    pub(crate) fn of(headers: &HeaderMap, version: Version) -> Self {
        let http2 = version == Version::HTTP_2;
        Self {
            http2,
            grpc: http2 && grpc::is_grpc(headers),
        }
    }
}

// === impl Answer ===

impl Answer {
    /// What the own service said to a request that was granted; its caller learns under which decision.
    pub(crate) fn of_service(
        server: FromServer,
        answering: Answering,
        decision: &DecisionId,
        dialect: Dialect,
    ) -> Self {
        let mut response = server.into_response().map(|body| body.answering(answering));
        hygiene::sanitize_service_response(response.headers_mut());
        set_decision(response.headers_mut(), decision);
        Self(ending(response, dialect))
    }

    /// What a peer said, with the decision that it names.
    pub(crate) fn of_peer(server: FromServer, dialect: Dialect) -> Self {
        let mut response = server.into_response();
        hygiene::sanitize_response(response.headers_mut());
        Self(ending(response, dialect))
    }

    /// That somebody is granted nothing.
    pub(crate) fn refused(refused: &Refused, dialect: Dialect) -> Self {
        let text = refused.body();
        Self::own(refused.status(), refused.code(), text, refused.decision(), dialect)
    }

    /// That what was granted found no service.
    pub(crate) fn failed(error: &UpstreamError, granted: &DecisionId, dialect: Dialect) -> Self {
        let text = refusal(error.code(), None, Some(granted));
        Self::own(error.status(), error.code(), text, Some(granted), dialect)
    }

    /// That what was granted is granted no longer.
    pub(crate) fn revoked(revoked: &Revoked, dialect: Dialect) -> Self {
        let Revoked { outcome, decision } = revoked;
        let text = refusal("revoked", Some(*outcome), decision.as_ref());
        Self::own(StatusCode::FORBIDDEN, "revoked", text, decision.as_ref(), dialect).closing(dialect)
    }

    /// Ends an HTTP/1.1 connection with this answer: what follows on it may not be what it seems. HTTP/2 frames its streams.
    pub(crate) fn closing(self, dialect: Dialect) -> Self {
        self.last(dialect.http2)
    }

    /// Ends an HTTP/1.1 connection with this answer, and says so.
    pub(crate) fn last(mut self, http2: bool) -> Self {
        if !http2 {
            let headers = self.0.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self
    }

    /// Its status.
    pub(crate) fn status(&self) -> StatusCode {
        self.0.status()
    }

    /// On its way, as a part of this.
    pub(crate) fn with(self, transfer: Arc<Transfer>) -> Self {
        transfer.tell(|span| hop::answered(span, &self.0));
        Self(self.0.map(|body| body.answered(transfer)))
    }

    pub(crate) fn into_response(self) -> Response<Body> {
        self.0
    }

    fn own(
        status: StatusCode,
        code: &'static str,
        text: String,
        decision: Option<&DecisionId>,
        dialect: Dialect,
    ) -> Self {
        let mut response = if dialect.grpc {
            // Trailers only: the stream ends with its head.
            let mut response = Response::new(Body::Own(Full::default()));
            grpc::refuse(response.headers_mut(), status, code, decision);
            response
        } else {
            let mut response = Response::new(Body::Own(Full::new(Bytes::from(text))));
            *response.status_mut() = status;
            let json = HeaderValue::from_static("application/json");
            response.headers_mut().insert(CONTENT_TYPE, json);
            response
        };
        if let Some(decision) = decision {
            set_decision(response.headers_mut(), decision);
        }
        Self(response)
    }
}

/// A gRPC answer that breaks off says so as gRPC does. Over HTTP/1.1 there would be no telling that from a clean end.
fn ending(mut response: Response<Body>, dialect: Dialect) -> Response<Body> {
    if dialect.http2 && grpc::is_grpc(response.headers()) {
        let end = GrpcEnd::of(response.headers());
        response = response.map(|body| body.ending(end));
    }
    response
}

/// Names the decision in an answer.
fn set_decision(headers: &mut HeaderMap, decision: &DecisionId) {
    if let Ok(value) = HeaderValue::try_from(decision.to_string()) {
        headers.insert(hygiene::DECISION, value);
    }
}
