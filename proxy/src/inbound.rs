//! A peer's HTTP request on its way in: read in one way, decided, recorded, and only then forwarded.

use std::convert::Infallible;
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::SystemTime;

use hoplite_audit::{Outcome, Phase, Record};
use hoplite_decision::Question;
use hoplite_identity::VerifiedPeer;
use hoplite_policy::{CanonicalRequest, Connection, Permit};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tracing::{debug, info};

use crate::answer::{answer, closing, set_decision};
use crate::body::Body;
use crate::dial::UpstreamError;
use crate::enforce::Enforcer;
use crate::handshake::Handshaker;
use crate::headers;
use crate::identity_feed::Layer;
use crate::reading::{self, Unreadable, bounded};
use crate::refusals::{Refusal, Tapped};
use crate::session::{Event, Stop};
use crate::upstream::Upstream;

/// A method longer than this is not written into records.
const METHOD_BYTES_MAX: usize = 32;

/// One inbound HTTP listener on one worker.
pub(crate) struct Inbound {
    pub(crate) service: String,
    pub(crate) handshaker: Handshaker,
    pub(crate) enforcer: Arc<Enforcer>,
    pub(crate) app: Upstream,
    pub(crate) stop: Stop,
}

/// One connection: what is true of all its requests.
struct Caller {
    inbound: Arc<Inbound>,
    peer: VerifiedPeer,
    source: String,
    connection: Connection,
    tls: String,
    client_cert: HeaderValue,
    not_after: SystemTime,
    http2: bool,
}

// === impl Inbound ===

impl Inbound {
    /// One connection, from its first byte to its end.
    pub(crate) async fn serve(self: Arc<Self>, tcp: TcpStream, remote: SocketAddr) {
        let (stream, mut session) = match self.handshaker.accept(tcp, remote, Layer::Http).await {
            Ok(Some(accepted)) => accepted,
            Ok(None) => return,
            Err(refused) => {
                let source = remote.to_string();
                return self
                    .enforcer
                    .refuse_stranger(source, &self.service, refused.outcome, refused.code, refused.reason)
                    .await;
            }
        };
        session.end_with(self.stop.clone());
        let own = self.handshaker.identity.current();
        let Some(client_cert) = headers::client_cert(own.svid.spiffe_id(), &session.peer) else {
            return;
        };
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let caller = Arc::new(Caller {
            peer: session.peer.clone(),
            source: remote.to_string(),
            connection: Connection::new(remote.ip()),
            tls: session.tls.clone(),
            client_cert,
            not_after: session.not_after,
            http2,
            inbound: self,
        });
        let service = service_fn(|request| {
            let caller = caller.clone();
            async move { Ok::<_, Infallible>(caller.answer(request).await) }
        });
        let builder = if http2 {
            bounded().http2_only()
        } else {
            bounded().http1_only()
        };
        let (stream, mut refusals) = Tapped::new(stream, http2);
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut told = false;
        let ended = loop {
            tokio::select! {
                ended = connection.as_mut() => break ended,
                // While it is recorded the connection waits: its peer cannot make us write faster than the disk does.
                Some(refusal) = refusals.recv() => {
                    told |= matches!(refusal, Refusal::Head(_));
                    caller.record_unparsed(&refusal).await;
                }
                event = session.event() => match event {
                    Event::Drain | Event::Redecide => connection.as_mut().graceful_shutdown(),
                    Event::Close(reason) => {
                        info!(peer = %session.peer.spiffe_id(), %remote, reason, "connection closed");
                        break Ok(());
                    }
                }
            }
        };
        while let Ok(refusal) = refusals.try_recv() {
            told |= matches!(refusal, Refusal::Head(_));
            caller.record_unparsed(&refusal).await;
        }
        if let Err(error) = ended {
            debug!(%remote, error, "connection ended badly");
            let unparsed = error.downcast_ref::<hyper::Error>().filter(|error| error.is_parse());
            if let Some(unparsed) = unparsed.filter(|_| !told) {
                caller.record_unparsed(unparsed).await;
            }
        }
    }

    /// Forwards what was permitted. The permit is spent here: without one, nothing reaches the service.
    async fn forward(
        &self,
        _permit: Permit,
        canonical: &CanonicalRequest,
        request: Request<Body>,
    ) -> Result<Response<Body>, UpstreamError> {
        self.app.send(canonical, request).await
    }
}

// === impl Caller ===

impl Caller {
    /// One request: read, decide, record, forward. Whatever fails, fails before anything is forwarded.
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let enforcer = &self.inbound.enforcer;
        let mut record = self.record(&request);

        // Read it in one way, or not at all.
        let canonical = match self.read(&request) {
            Ok(canonical) => canonical,
            Err(unreadable) => return self.refuse(record, unreadable).await,
        };
        let (mut parts, body) = request.into_parts();
        headers::sanitize_request(&mut parts.headers);

        // Decide.
        let question = Question {
            caller: (&self.peer).into(),
            service: &self.inbound.service,
            connection: &self.connection,
            http: Some(&canonical),
        };
        let permit = enforcer.decide(question, &mut record).await;

        // Record.
        let outcome = record.outcome;
        let Ok(decision) = enforcer.record(record).await else {
            return answer(StatusCode::SERVICE_UNAVAILABLE, "unrecorded", None, None);
        };
        let Some(permit) = permit else {
            return answer(StatusCode::FORBIDDEN, "denied", Some(outcome), Some(&decision));
        };

        // Forward.
        headers::set_identity(&mut parts.headers, self.client_cert.clone());
        let malformed = Arc::new(AtomicBool::new(false));
        let body = Body::Received {
            incoming: body,
            malformed: malformed.clone(),
        };
        let request = Request::from_parts(parts, body);
        match self.inbound.forward(permit, &canonical, request).await {
            Ok(mut response) => {
                headers::sanitize_response(response.headers_mut());
                response.headers_mut().remove(headers::DECISION);
                set_decision(&mut response, &decision);
                response
            }
            // Permitted by its head, it has broken off behind it: the service never saw a whole request.
            Err(_) if malformed.load(Relaxed) => {
                let unreadable = Unreadable {
                    status: StatusCode::BAD_REQUEST,
                    code: "unparsed",
                    reason: "the body's chunks or trailers are none".to_owned(),
                };
                let mut record = self.blank_record();
                record.action = canonical.method().to_owned();
                record.host = Some(canonical.host().to_owned());
                record.path = Some(canonical.path().to_owned());
                self.refuse(record, unreadable).await
            }
            Err(error) => {
                error.log(&self.inbound.service);
                enforcer.metrics().upstream_failed(error.code());
                answer(error.status(), error.code(), None, Some(&decision))
            }
        }
    }

    fn record(&self, request: &Request<Incoming>) -> Record {
        let mut record = self.blank_record();
        record.trace_id = headers::trace_id(request.headers());
        let method = request.method().as_str();
        record.action = if method.len() <= METHOD_BYTES_MAX {
            method
        } else {
            "other"
        }
        .to_owned();
        record
    }

    /// What is known of every request on this connection.
    fn blank_record(&self) -> Record {
        // Everything but an allow is said where it is decided; until then the record says that nothing was.
        let mut record = Record::new(Phase::Request, Outcome::Error, &*self.inbound.service);
        record.at = SystemTime::now();
        record.principal = Some(self.peer.spiffe_id().to_string());
        record.peer_serial = Some(self.peer.serial().to_owned());
        record.peer_not_after = Some(self.peer.not_after());
        record.source = Some(self.source.clone());
        record.tls = Some(self.tls.clone());
        record
    }

    /// What the peer sent is no HTTP: the library has answered it with an error, and no request came this far.
    async fn record_unparsed(&self, error: &impl Display) {
        let mut record = self.blank_record();
        record.outcome = Outcome::Malformed;
        record.reason = Some(format!("unparsed: {error}"));
        // Nothing is forwarded either way; `record` has said what failed.
        let _ = self.inbound.enforcer.record(record).await;
    }

    fn read(&self, request: &Request<Incoming>) -> Result<CanonicalRequest, Unreadable> {
        if SystemTime::now() >= self.not_after {
            // The timer that closes the connection is due; a suspended machine may wake with it late.
            return Err(Unreadable {
                status: StatusCode::UNAUTHORIZED,
                code: "expired",
                reason: "the connection has outlived a certificate".to_owned(),
            });
        }
        reading::read(request)
    }

    async fn refuse(&self, mut record: Record, unreadable: Unreadable) -> Response<Body> {
        let Unreadable { status, code, reason } = unreadable;
        record.outcome = if status == StatusCode::UNAUTHORIZED {
            Outcome::Unauthenticated
        } else {
            Outcome::Malformed
        };
        record.reason = Some(format!("{code}: {reason}"));
        let outcome = record.outcome;
        match self.inbound.enforcer.record(record).await {
            Ok(decision) => closing(answer(status, code, Some(outcome), Some(&decision)), self.http2),
            Err(_) => closing(
                answer(StatusCode::SERVICE_UNAVAILABLE, "unrecorded", None, None),
                self.http2,
            ),
        }
    }
}
