//! A peer's HTTP request on its way in: read in one way, decided, recorded, and only then forwarded.

mod connection;

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use hoplite_audit::Phase;
use hoplite_decision::{DecisionPoint, Draft, Facts, HttpRequest, Refused, Unasked, Why};
use hoplite_host::clock;
use hoplite_host::slots::Slot;
use hoplite_identity::ServiceName;
use hoplite_otlp::{Span, Tracer};
use hoplite_policy::{CanonicalRequest, Transport};
use http::{HeaderValue, Request};
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time::sleep;
use tracing::info;

use crate::http::answer::{Answer, Dialect};
use crate::http::body::Incoming;
use crate::http::exchange::{Answering, Exchange, Exchanges};
use crate::http::hop;
use crate::http::hygiene;
use crate::http::interim::{Ahead, Interims};
use crate::http::leaving::LET_GO_MAX;
use crate::http::reading;
use crate::http::rules::RulesFeed;
use crate::http::service::{CallersService, Head, Outgoing, Service};
use crate::http::transfer::{Late, head_late};
use crate::http::unread::Unread;
use crate::http::via;
use crate::metrics::{Metrics, Traffic};
use crate::peer::downstream::Downstream;
use crate::peer::handshake::Handshaker;
use crate::peer::session::Stop;
use crate::share::Place;

/// Requests under way that are decided again in one go; then it is the turn of whatever else this worker has to do.
const RECHECKS_AT_ONCE: usize = 16;

/// One inbound HTTP listener on one worker.
pub(crate) struct Inbound {
    pub(crate) service: ServiceName,
    pub(crate) handshaker: Handshaker,
    pub(crate) point: Arc<DecisionPoint>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) traffic: Traffic,
    pub(crate) app: Service,
    pub(crate) rules: RulesFeed,
    /// Whose turn it is to decide again: one connection's at a time, however many there are.
    pub(crate) turns: Semaphore,
    pub(crate) stop: Stop,
    /// Makes spans, where they are sent.
    pub(crate) tracer: Option<Arc<Tracer>>,
}

/// One connection: what is true of all its requests.
struct InboundConnection {
    inbound: Arc<Inbound>,
    downstream: Downstream,
    transport: Transport,
    client_cert: HeaderValue,
    /// The service as this caller has it.
    app: Arc<CallersService>,
    not_after: SystemTime,
    http2: bool,
    exchanges: Exchanges,
    /// Its end is near: each answer says so.
    last: AtomicBool,
    slot: Arc<Slot>,
}

// === impl InboundConnection ===

impl InboundConnection {
    /// One request: read, decide, record, forward. Whatever fails, fails before anything is forwarded.
    async fn answer(&self, request: Request<Incoming>, ahead: Ahead) -> Answer {
        let point = &self.inbound.point;
        let dialect = Dialect::of(request.headers(), request.version());
        let trace_id = hygiene::trace_id(request.headers());
        let transfer = request.body().transfer();
        let counted_in = |tally| {
            if let Some(transfer) = &transfer {
                transfer.is_counted_in(tally);
            }
        };
        let tell = |say: &dyn Fn(&mut Span)| {
            if let Some(transfer) = &transfer {
                transfer.tell(say);
            }
        };
        let mut draft = self.draft(Phase::Request, trace_id);
        if Unread::of(request.headers()).is_none() {
            draft = draft.action(request.method().as_str());
        }

        // Read it in one way, or not at all.
        let (canonical, place) = match self.read(&request) {
            Ok(read) => read,
            Err(unasked) => {
                let refused = point.refuse(draft, unasked).await;
                counted_in(refused.tally());
                tell(&|span| hop::refused(span, &refused));
                return Answer::refused(&refused, dialect).closing(dialect);
            }
        };
        tell(&|span| hop::asked(span, &canonical));
        let (parts, body) = request.into_parts();
        let request = HttpRequest {
            canonical,
            rest: Head::new(parts, &self.inbound.rules.current().removed_headers),
        };

        // Decide, and record.
        let epoch = point.policy().epoch();
        let judged = point.judge(draft, request, &self.transport).await;
        tell(&|span| hop::routed(span, judged.route()));
        match judged.recorded().await {
            Ok(granted) => {
                counted_in(Some(granted.tally()));
                tell(&|span| hop::allowed(span, granted.decision()));
                let outgoing = Outgoing::new(granted, epoch, place);
                self.forward(outgoing, epoch, body, ahead, dialect).await
            }
            Err(why) => {
                counted_in(why.tally());
                tell(&|span| hop::refused(span, &why));
                let answer = Answer::refused(&why, dialect);
                match why.why() {
                    Why::Ambiguous(_) => answer.closing(dialect),
                    _ => answer,
                }
            }
        }
    }

    /// Forwards what was granted, and brings back its answer unless the grant is withdrawn before.
    async fn forward(&self, outgoing: Outgoing, epoch: u64, body: Incoming, ahead: Ahead, dialect: Dialect) -> Answer {
        // From here on it can be revoked.
        let exchange = outgoing.exchange().clone();
        let answering = Answering::new(exchange.clone());
        self.exchanges.add(&exchange);
        let now = self.inbound.point.policy().epoch();
        if now != epoch {
            // Policy has changed before it was in the list: whoever went through that has missed it.
            self.decide_again(std::slice::from_ref(&exchange), now).await;
        }

        let transfer = body.transfer();
        if let Some(transfer) = &transfer {
            transfer.is_of(&exchange);
        }
        let interims = Interims::default();
        let forwarded = self.app.forward(outgoing, body, self.client_cert.clone(), &interims);
        let answered = tokio::select! {
            biased;
            revoked = exchange.until_revoked() => {
                if let Some(transfer) = &transfer {
                    transfer.tell(|span| hop::decided(span, revoked.outcome, revoked.decision.as_ref()));
                }
                return Answer::revoked(revoked, dialect);
            }
            answered = interims.ahead_of(forwarded, &ahead, hygiene::sanitize_service_response) => answered,
            late = head_late(transfer.as_ref()) => return self.refuse_late(&exchange, late, dialect).await,
        };
        match answered {
            Ok(server) => Answer::of_service(server, answering, &exchange.decision, dialect),
            // Permitted by its head, it has broken off behind it: the service never saw a whole request.
            Err(_) if exchange.is_malformed() => self.refuse_body(&exchange, dialect).await,
            Err(_) if transfer.is_some_and(|transfer| transfer.is_late()) => {
                self.refuse_late(&exchange, Late::RequestBody, dialect).await
            }
            Err(error) => {
                error.log(self.inbound.service.as_str());
                self.inbound.metrics.upstream_failed(error.code());
                Answer::failed(&error, &exchange.decision, dialect)
            }
        }
    }

    /// Instead of the service's answer to a request that never was whole.
    async fn refuse_body(&self, exchange: &Exchange, dialect: Dialect) -> Answer {
        let unasked = Unasked::malformed(
            "unparsed",
            "the request's body is not well-formed: its chunk sizes or trailers cannot be read",
        );
        let draft = self.draft(Phase::Request, None).action(exchange.canonical.method());
        let draft = draft.about(&exchange.canonical);
        let why = self.inbound.point.refuse(draft, unasked).await;
        Answer::refused(&why, dialect).closing(dialect)
    }

    /// Instead of the service's answer to a request that one side has waited for too long.
    async fn refuse_late(&self, exchange: &Exchange, late: Late, dialect: Dialect) -> Answer {
        Answer::refused(&self.record_late(exchange, late).await, dialect).closing(dialect)
    }

    async fn record_late(&self, exchange: &Exchange, late: Late) -> Refused {
        let draft = self.draft(Phase::Request, None).action(exchange.canonical.method());
        let draft = draft.about(&exchange.canonical);
        self.inbound.point.refuse(draft, late.unasked()).await
    }

    /// Decides again what is under way whenever policy changes. Returns, with the reason, when the peer holds on to what
    /// was revoked and the connection has to end.
    async fn follow_policy(&self) -> &'static str {
        let mut epochs = self.inbound.point.policy().subscribe();
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
        let Inbound {
            point, metrics, turns, ..
        } = &*self.inbound;
        let (mut ended, mut withdrawn) = (Vec::new(), Vec::new());
        for some in exchanges.chunks(RECHECKS_AT_ONCE) {
            let _turn = turns.acquire().await;
            for exchange in some {
                let draft = self.draft(Phase::Recheck, None);
                let renewed = point.recheck(draft, Some(&exchange.canonical), &self.transport).await;
                metrics.rechecked(renewed.is_ok());
                match renewed {
                    Ok(_) => exchange.renew(epoch),
                    Err(no_longer) => {
                        ended.push(exchange);
                        withdrawn.push(no_longer.granted_as(&exchange.decision));
                    }
                }
            }
            yield_now().await;
        }
        if ended.is_empty() {
            return 0;
        }
        // Each ends whether or not its record could be written.
        for (exchange, revoked) in ended.iter().zip(point.record_all(withdrawn).await) {
            exchange.revoke(revoked.into());
        }
        info!(
            peer = %self.downstream,
            remote = %self.downstream.remote,
            requests = ended.len(),
            "requests under way ended: policy no longer permits them"
        );
        ended.len()
    }

    /// The record of a request on this connection, begun.
    fn draft(&self, phase: Phase, trace_id: Option<String>) -> Draft<'_> {
        Draft::new(Facts {
            phase,
            service: &self.inbound.service,
            witness: self.downstream.witness(),
            source: Some(self.downstream.remote.to_string()),
            trace_id,
        })
    }

    /// What the peer sent cannot be read as HTTP: the library has answered it with an error, and no request came this far.
    async fn record_unparsed(&self, error: &impl Display) {
        let unasked = Unasked::malformed("unparsed", error.to_string());
        // Nothing is forwarded either way; the decision point has said what failed.
        let _ = self
            .inbound
            .point
            .refuse(self.draft(Phase::Request, None), unasked)
            .await;
    }

    /// What is asked for, and a place for it.
    fn read(&self, request: &Request<Incoming>) -> Result<(CanonicalRequest, Place), Unasked> {
        if clock::now() >= self.not_after {
            // The timer that closes the connection is due; a suspended machine may wake with it late.
            return Err(Unasked::unauthenticated(
                "expired",
                "the connection has outlived a certificate",
            ));
        }
        let canonical = reading::read(request)?;
        via::check(request.headers())?;
        Ok((canonical, self.app.place()?))
    }
}
