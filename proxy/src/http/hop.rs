//! What a span says of a request: in OpenTelemetry's words for HTTP and RPC (semantic conventions 1.45), and in ours.
//!
//! It says nothing that the record of the decision does not say: the path, and neither query, headers nor body.

use std::net::SocketAddr;

use hoplite_audit::{DecisionId, Outcome};
use hoplite_decision::Refused;
use hoplite_identity::{ServiceName, SpiffeId};
use hoplite_otlp::{Kind, Span};
use hoplite_policy::CanonicalRequest;
use http::{HeaderMap, Request, Response, Version};

use crate::http::grpc::{self, GRPC_STATUS};
use crate::http::hygiene;

/// Methods that have a name in OpenTelemetry's words; others are `_OTHER`, so that spans can be grouped.
const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "QUERY", "CONNECT",
];

const OTHER: &str = "_OTHER";

/// gRPC's codes, each at its number.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Those that are a server's own fault.
const SERVERS_FAULTS: [usize; 6] = [2, 4, 12, 13, 14, 15];

/// What is known as soon as there is a head: who calls what, and from where.
pub(crate) fn begun<B>(
    span: &mut Span,
    request: &Request<B>,
    (principal, service): (&SpiffeId, &ServiceName),
    remote: SocketAddr,
) {
    let method = request.method().as_str();
    let known = METHODS.contains(&method);
    span.named(if known { method } else { "HTTP" });
    span.put("http.request.method", if known { method } else { OTHER });
    if !known {
        span.put("http.request.method_original", method);
    }
    let version = match request.version() {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    };
    span.put("network.protocol.version", version);
    if span.kind() == Kind::Server {
        span.put("url.scheme", "https");
        span.put("client.address", remote.ip().to_string());
        span.put("network.peer.address", remote.ip().to_string());
        span.put("network.peer.port", remote.port());
    }
    if grpc::is_grpc(request.headers()) {
        span.put("rpc.system.name", "grpc");
    }
    span.put("hoplite.principal", principal.to_string());
    span.put("hoplite.service", service.as_str());
}

/// What is asked for, once it can be read in one way only.
pub(crate) fn asked(span: &mut Span, request: &CanonicalRequest) {
    let authority = request.authority();
    let port = authority
        .strip_prefix(request.host())
        .and_then(|rest| rest.strip_prefix(':'));
    span.put(
        "server.address",
        request.host().trim_start_matches('[').trim_end_matches(']'),
    );
    if let Some(port) = port.and_then(|port| port.parse::<u16>().ok()) {
        span.put("server.port", port);
    }
    match span.kind() {
        Kind::Server => span.put("url.path", request.path()),
        Kind::Client => span.put("url.full", format!("https://{authority}{}", request.path())),
    }
    if span.says("rpc.system.name") {
        let method = request.path().trim_start_matches('/');
        span.put("rpc.method", method);
    }
}

/// Which route it is, as policy names it: `ledger:GET /accounts/{id}`.
pub(crate) fn routed(span: &mut Span, route: &str) {
    span.put("hoplite.route", route);
    // The method is the request's own: a route may be of any.
    if let Some((_, template)) = route.split_once(' ') {
        span.named(format!("{} {template}", span.name()));
        span.put("http.route", template);
    }
}

/// That it is let through.
pub(crate) fn allowed(span: &mut Span, decision: &DecisionId) {
    decided(span, Outcome::Allow, Some(decision));
}

/// That it is not.
pub(crate) fn refused(span: &mut Span, refused: &Refused) {
    decided(span, refused.outcome(), refused.decision());
    if refused.outcome() != Outcome::Allow {
        span.put("hoplite.reason", refused.code());
    }
}

/// What was decided of it last.
pub(crate) fn decided(span: &mut Span, outcome: Outcome, decision: Option<&DecisionId>) {
    span.put("hoplite.outcome", outcome.as_str());
    if let Some(decision) = decision {
        span.put("hoplite.decision.id", decision.to_string());
    }
}

/// That its answer begins.
pub(crate) fn answered<B>(span: &mut Span, answer: &Response<B>) {
    let status = answer.status();
    span.put("http.response.status_code", status.as_u16());
    let is_failure = match span.kind() {
        Kind::Server => status.is_server_error(),
        Kind::Client => status.is_server_error() || status.is_client_error(),
    };
    if is_failure {
        span.failed(status.as_str());
    }
    // A peer names the decision that it made.
    let decision = answer.headers().get(&hygiene::DECISION).and_then(|id| id.to_str().ok());
    if let Some(decision) = decision.filter(|id| id.parse::<DecisionId>().is_ok()) {
        span.put("hoplite.decision.id", decision);
    }
    ended(span, answer.headers());
}

/// That a call of gRPC has ended so, in its answer's trailers or head.
pub(crate) fn ended(span: &mut Span, headers: &HeaderMap) {
    if !span.says("rpc.system.name") {
        return;
    }
    let status = headers.get(&GRPC_STATUS).and_then(|status| status.to_str().ok());
    let Some(number) = status.and_then(|status| status.parse::<usize>().ok()) else {
        return;
    };
    let code = CODES.get(number).copied().unwrap_or("UNKNOWN");
    span.put("rpc.response.status_code", code);
    let is_failure = match span.kind() {
        Kind::Server => SERVERS_FAULTS.contains(&number) || number >= CODES.len(),
        Kind::Client => number != 0,
    };
    if is_failure {
        span.failed(code);
    }
}

#[cfg(test)]
mod tests {
    use hoplite_otlp::{OtlpSettings, Sent, Tracer};

    use super::*;

    fn said(kind: Kind, say: impl FnOnce(&mut Span)) -> String {
        let address = hoplite_identity::HostPort::parse("127.0.0.1:4317").unwrap();
        let (tracer, _queue) = Tracer::new(OtlpSettings::plain(address).sampled(), Sent::default());
        let mut hop = tracer.begin(kind, &mut HeaderMap::new()).unwrap();
        let mut said = String::new();
        hop.tell(|span| {
            say(span);
            said = span.to_string();
        });
        said
    }

    fn request(method: &str, more: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().method(method).version(Version::HTTP_2);
        for (name, value) in more {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    #[test]
    fn words_are_those_of_the_conventions() {
        let (principal, service) = (
            SpiffeId::parse("spiffe://prod.example/orders").unwrap(),
            "ledger".parse::<ServiceName>().unwrap(),
        );
        let remote: SocketAddr = "10.0.0.7:4000".parse().unwrap();
        let canonical = |target: &[u8]| CanonicalRequest::parse("GET", &[b"ledger.example:8443"], target).unwrap();
        let check = |said: String, expected: &[&str], absent: &[&str]| {
            for part in expected {
                assert!(said.contains(part), "`{part}` is missing from {said}");
            }
            for part in absent {
                assert!(!said.contains(part), "`{part}` is in {said}");
            }
        };
        check(
            said(Kind::Server, |span| {
                begun(
                    span,
                    &request("GET", &[("authorization", "secret")]),
                    (&principal, &service),
                    remote,
                );
                asked(span, &canonical(b"/accounts/7?token=secret"));
                routed(span, "ledger:GET /accounts/{id}");
                answered(span, &Response::builder().status(404).body(()).unwrap());
            }),
            &[
                "GET /accounts/{id}",
                "http.request.method=GET",
                "http.route=/accounts/{id}",
                "url.path=/accounts/7",
                "url.scheme=https",
                "server.address=ledger.example",
                "server.port=8443",
                "client.address=10.0.0.7",
                "http.response.status_code=404",
                "hoplite.principal=spiffe://prod.example/orders",
                "hoplite.service=ledger",
                "hoplite.route=ledger:GET /accounts/{id}",
            ],
            &["secret", "error.type"],
        );
        check(
            said(Kind::Client, |span| {
                begun(span, &request("BREW", &[]), (&principal, &service), remote);
                asked(span, &canonical(b"/accounts/7?token=secret"));
                answered(span, &Response::builder().status(404).body(()).unwrap());
            }),
            &[
                "HTTP ",
                "http.request.method=_OTHER",
                "http.request.method_original=BREW",
                "url.full=https://ledger.example:8443/accounts/7",
                "error.type=404",
            ],
            &["secret", "client.address"],
        );
        let grpc = |kind, status: &'static str| {
            said(kind, |span| {
                begun(
                    span,
                    &request("POST", &[("content-type", "application/grpc")]),
                    (&principal, &service),
                    remote,
                );
                asked(span, &canonical(b"/shop.Ledger/Read"));
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", status.parse().unwrap());
                ended(span, &trailers);
            })
        };
        check(
            grpc(Kind::Server, "5"),
            &[
                "rpc.system.name=grpc",
                "rpc.method=shop.Ledger/Read",
                "rpc.response.status_code=NOT_FOUND",
            ],
            &["error.type"],
        );
        check(grpc(Kind::Client, "5"), &["error.type=NOT_FOUND"], &[]);
        check(grpc(Kind::Server, "14"), &["error.type=UNAVAILABLE"], &[]);
        check(
            grpc(Kind::Server, "99"),
            &["rpc.response.status_code=UNKNOWN", "error.type"],
            &[],
        );
        check(grpc(Kind::Server, "x"), &[], &["rpc.response.status_code"]);
    }
}
