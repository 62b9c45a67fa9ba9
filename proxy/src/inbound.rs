//! A peer's HTTP request on its way in: read in one way, decided, recorded, and only then forwarded.

use std::convert::Infallible;
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hoplite_audit::{Outcome, Phase, Record};
use hoplite_decision::{self as decision, Fields, Question};
use hoplite_identity::VerifiedPeer;
use hoplite_policy::{CanonicalRequest, Permit, Transport};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time::sleep;
use tracing::{debug, info};

use crate::answer::{answer, closing, set_decision};
use crate::body::Body;
use crate::dial::UpstreamError;
use crate::enforce::Enforcer;
use crate::exchange::{Answering, Exchange, Exchanges, Revoked};
use crate::handshake::Handshaker;
use crate::headers;
use crate::identity_feed::Layer;
use crate::reading::{self, Unreadable, bounded};
use crate::refusals::{Tapped, Unparsed};
use crate::session::{Event, Stop};
use crate::upstream::Upstream;

/// A method longer than this is not written into records.
const METHOD_BYTES_MAX: usize = 32;

/// Requests under way that are decided again in one go; then it is the turn of whatever else this worker has to do.
const RECHECKS_AT_ONCE: usize = 16;

/// A peer that reads nothing cannot be told that its stream has ended. After this its whole connection does.
const LET_GO_MAX: Duration = Duration::from_millis(300);

/// One inbound HTTP listener on one worker.
pub(crate) struct Inbound {
    pub(crate) service: String,
    pub(crate) handshaker: Handshaker,
    pub(crate) enforcer: Arc<Enforcer>,
    pub(crate) app: Upstream,
    /// Whose turn it is to decide again: one connection's at a time, however many there are.
    pub(crate) turns: Semaphore,
    pub(crate) stop: Stop,
}

/// One connection: what is true of all its requests.
struct InboundConnection {
    inbound: Arc<Inbound>,
    peer: VerifiedPeer,
    source: String,
    connection: Transport,
    tls: String,
    client_cert: HeaderValue,
    not_after: SystemTime,
    http2: bool,
    exchanges: Exchanges,
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
        let caller = Arc::new(InboundConnection {
            peer: session.peer.clone(),
            source: remote.to_string(),
            connection: Transport::new(remote.ip()),
            tls: session.tls.clone(),
            client_cert,
            not_after: session.not_after,
            http2,
            exchanges: Exchanges::default(),
            inbound: self,
        });
        let mut following = std::pin::pin!(caller.follow_policy());
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
                Some(unparsed) = refusals.recv() => {
                    told |= matches!(unparsed, Unparsed::Head(_));
                    caller.record_unparsed(&unparsed).await;
                }
                reason = following.as_mut() => {
                    info!(peer = %session.peer.spiffe_id(), %remote, reason, "connection closed");
                    break Ok(());
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
        while let Ok(unparsed) = refusals.try_recv() {
            told |= matches!(unparsed, Unparsed::Head(_));
            caller.record_unparsed(&unparsed).await;
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
        exchange: &Exchange,
        request: Request<Body>,
    ) -> Result<Response<Body>, UpstreamError> {
        self.app.send(&exchange.canonical, request).await
    }
}

/// What policy may select from.
fn fields(headers: &HeaderMap) -> Box<dyn Iterator<Item = (&str, &[u8])> + '_> {
    Box::new(headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())))
}

// === impl InboundConnection ===

impl InboundConnection {
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

        // Decide. Of the headers policy sees what is left of them, which is what the service will see.
        let epoch = enforcer.policy().epoch();
        let decided = {
            let fields = || fields(&parts.headers);
            let question = self.question(&canonical, Some(&fields));
            enforcer.decide(question, &mut record).await
        };

        // Record.
        let outcome = record.outcome;
        let Ok(decision) = enforcer.record(record).await else {
            return answer(StatusCode::SERVICE_UNAVAILABLE, "unrecorded", None, None);
        };
        let permit = match decided {
            Ok(permit) => permit,
            Err(decision::Refusal::Denied) => {
                return answer(StatusCode::FORBIDDEN, "denied", Some(outcome), Some(&decision));
            }
            Err(decision::Refusal::Ambiguous(why)) => {
                let refused = answer(StatusCode::BAD_REQUEST, why.code(), Some(outcome), Some(&decision));
                return closing(refused, self.http2);
            }
        };

        // From here on it can be revoked. Whoever decides again knows of its headers what policy selects now.
        let canonical = enforcer.point().kept(canonical, &|| fields(&parts.headers));
        let exchange = Arc::new(Exchange::new(canonical, decision, epoch));
        let answering = Answering::new(exchange.clone());
        self.exchanges.add(&exchange);
        let now = enforcer.policy().epoch();
        if now != epoch {
            // Policy has changed before it was in the list: whoever went through that has missed it.
            self.decide_again(std::slice::from_ref(&exchange), now).await;
        }

        // Forward.
        headers::set_identity(&mut parts.headers, self.client_cert.clone());
        let body = Body::Received {
            incoming: body,
            exchange: exchange.clone(),
        };
        let request = Request::from_parts(parts, body);
        let answered = tokio::select! {
            biased;
            revoked = exchange.until_revoked() => return self.withdraw(revoked),
            answered = self.inbound.forward(permit, &exchange, request) => answered,
        };
        match answered {
            Ok(response) => {
                let mut response = response.map(|body| body.answering(answering));
                headers::sanitize_service_response(response.headers_mut());
                set_decision(&mut response, &exchange.decision);
                response
            }
            // Permitted by its head, it has broken off behind it: the service never saw a whole request.
            Err(_) if exchange.is_malformed() => {
                let unreadable = Unreadable {
                    status: StatusCode::BAD_REQUEST,
                    code: "unparsed",
                    reason: "the body's chunks or trailers are none".to_owned(),
                };
                let mut record = self.blank_record(Phase::Request);
                record.action = exchange.canonical.method().to_owned();
                record.host = Some(exchange.canonical.host().to_owned());
                record.path = Some(exchange.canonical.path().to_owned());
                self.refuse(record, unreadable).await
            }
            Err(error) => {
                error.log(&self.inbound.service);
                enforcer.metrics().upstream_failed(error.code());
                answer(error.status(), error.code(), None, Some(&exchange.decision))
            }
        }
    }

    /// Decides again what is under way whenever policy changes. Returns, with the reason, when the peer holds on to what
    /// was revoked and the connection has to end.
    async fn follow_policy(&self) -> &'static str {
        let mut epochs = self.inbound.enforcer.policy().subscribe();
        while epochs.changed().await.is_ok() {
            let epoch = *epochs.borrow_and_update();
            let due = self.exchanges.permitted_before(epoch);
            if self.decide_again(&due, epoch).await == 0 {
                continue;
            }
            sleep(LET_GO_MAX).await;
            if due
                .iter()
                .any(|exchange| exchange.revoked().is_some() && !exchange.is_answered())
            {
                return "it reads nothing, and policy no longer permits what it asked for";
            }
        }
        // Nobody can announce anything any more.
        std::future::pending().await
    }

    /// Asks the policy of `epoch`, or one still newer, and ends what it no longer permits. Gives the number of those.
    ///
    /// Thousands may be under way on one worker. They are decided in turns, between which everything else goes on.
    async fn decide_again(&self, exchanges: &[Arc<Exchange>], epoch: u64) -> usize {
        let Inbound { enforcer, turns, .. } = &*self.inbound;
        let (mut refused, mut records) = (Vec::new(), Vec::new());
        for some in exchanges.chunks(RECHECKS_AT_ONCE) {
            let _turn = turns.acquire().await;
            for exchange in some {
                let mut record = self.blank_record(Phase::Recheck);
                let renewed = enforcer
                    .decide(self.question(&exchange.canonical, None), &mut record)
                    .await;
                enforcer.metrics().rechecked(renewed.is_ok());
                if renewed.is_ok() {
                    exchange.renew(epoch);
                } else {
                    let permitted = format!("it was permitted as {}", exchange.decision);
                    record.reason.get_or_insert(permitted);
                    refused.push((exchange, record.outcome));
                    records.push(record);
                }
            }
            yield_now().await;
        }
        if refused.is_empty() {
            return 0;
        }
        // Each ends whether or not its record could be written.
        let decisions = enforcer.record_all(records).await;
        for ((exchange, outcome), decision) in refused.iter().zip(decisions) {
            exchange.revoke(Revoked {
                outcome: *outcome,
                decision,
            });
        }
        info!(
            peer = %self.peer.spiffe_id(),
            remote = self.source,
            requests = refused.len(),
            "requests under way ended: policy no longer permits them"
        );
        refused.len()
    }

    /// Instead of the service's answer, of which nothing was sent yet.
    fn withdraw(&self, revoked: &Revoked) -> Response<Body> {
        let (outcome, decision) = (revoked.outcome, revoked.decision.as_ref());
        closing(
            answer(StatusCode::FORBIDDEN, "revoked", Some(outcome), decision),
            self.http2,
        )
    }

    fn question<'a>(&'a self, canonical: &'a CanonicalRequest, fields: Option<&'a Fields<'a>>) -> Question<'a> {
        Question {
            caller: (&self.peer).into(),
            service: &self.inbound.service,
            connection: &self.connection,
            http: Some(canonical),
            fields,
        }
    }

    fn record(&self, request: &Request<Incoming>) -> Record {
        let mut record = self.blank_record(Phase::Request);
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
    fn blank_record(&self, phase: Phase) -> Record {
        // Everything but an allow is said where it is decided; until then the record says that nothing was.
        let mut record = Record::new(phase, Outcome::Error, &*self.inbound.service);
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
        let mut record = self.blank_record(Phase::Request);
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
