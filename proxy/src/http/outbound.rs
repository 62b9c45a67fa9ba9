//! The local service's HTTP request on its way out: read in one way, and sent to exactly the peer it is meant for.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;

use hoplite_audit::Phase;
use hoplite_decision::{DecisionPoint, Draft, Facts, Unasked, Witness};
use hoplite_host::slots::Slot;
use hoplite_identity::SpiffeId;
use hoplite_otlp::{Hop, Kind, Tracer};
use http::Request;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;

use crate::config::UpstreamName;
use crate::http::answer::{Answer, Dialect};
use crate::http::body::Incoming;
use crate::http::conversation::Conversation;
use crate::http::hop;
use crate::http::hygiene;
use crate::http::interim::{Ahead, Interims};
use crate::http::leaving::{Leaving, let_go, unused};
use crate::http::preface;
use crate::http::reading::{HEADER_TIME_MAX, read};
use crate::http::rules::RulesFeed;
use crate::http::stalling::Stalling;
use crate::http::transfer::{Late, Transfer, Way, head_late};
use crate::http::unparsed::{Far, Tapped, Unparsed};
use crate::http::unread::Unread;
use crate::http::upstream::Upstream;
use crate::http::via;
use crate::limits::limit;
use crate::metrics::{Metrics, Traffic};
use crate::peer::handshake::no_place;
use crate::peer::identity_feed::IdentityFeed;
use crate::peer::session::Stop;

/// One outbound HTTP listener on one worker.
pub(crate) struct Outbound {
    pub(crate) name: UpstreamName,
    pub(crate) upstream: Upstream,
    /// Who calls: the own service, whoever of it reaches the port.
    pub(crate) identity: Arc<IdentityFeed>,
    pub(crate) point: Arc<DecisionPoint>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) traffic: Traffic,
    pub(crate) rules: RulesFeed,
    pub(crate) stop: Stop,
    /// Makes spans, where they are sent.
    pub(crate) tracer: Option<Arc<Tracer>>,
}

// === impl Outbound ===

impl Outbound {
    /// One connection of the local service, HTTP/1.1 or HTTP/2 with prior knowledge.
    pub(crate) async fn serve(self: Arc<Self>, tcp: TcpStream, remote: SocketAddr, slot: Arc<Slot>) {
        let Stop { mut drain, mut close } = self.stop.clone();
        let rules = self.rules.current();
        let limits = rules.limits.of_outbound();
        let (tcp, stalled) = Stalling::new(tcp, limit(limits.response_write_idle), self.traffic.clone());
        let begun = tokio::select! {
            begun = timeout(HEADER_TIME_MAX, preface::is_http2(tcp)) => begun,
            () = drain.wait() => return,
            () = slot.evicted() => return,
        };
        let Ok(Ok((http2, stream))) = begun else { return };
        // Heads are read as strictly as a peer's, so that what the service meant is what the peer decides on.
        let far = Far {
            side: "local",
            name: format!("{remote} to {}", self.name),
            metrics: self.metrics.clone(),
        };
        let (stream, mut refusals) = Tapped::caller(stream, http2, far, &rules);
        let (this, place) = (self.clone(), slot.clone());
        let share = rules.unread.of(self.identity.current().svid.spiffe_id());
        let mut connection = Conversation::new(stream, http2, share, move |mut request: Request<Incoming>, ahead| {
            let (outbound, slot) = (self.clone(), place.clone());
            let (busy, metrics) = (slot.begin(), self.metrics.clone());
            let limits = self.rules.current().limits.of_outbound();
            let hop = self.begin_hop(&mut request, remote);
            let way = Way::Out(self.traffic.took());
            let transfer = Transfer::new(request.headers(), limits, busy, metrics, way, hop);
            async move {
                let request = request.map(|body| body.awaited(transfer.clone()));
                let answer = outbound.answer(request, remote, ahead, &slot).await;
                outbound.traffic.responded(answer.status());
                answer.with(transfer)
            }
        });
        let (mut draining, mut leaving) = (false, None);
        let ended = loop {
            tokio::select! {
                ended = &mut connection => break ended,
                Some(refusal) = refusals.recv() => match refusal {
                    // Who means well goes on by another connection.
                    Unparsed::Low => connection.graceful_shutdown(),
                    // While it is recorded the connection waits.
                    refused => this.record_unparsed(remote, &refused).await,
                },
                () = drain.wait(), if !draining => {
                    draining = true;
                    connection.graceful_shutdown();
                }
                () = slot.evicted(), if leaving.is_none() => {
                    leaving = Some(Leaving::for_reason("all places are taken, and it was idle for longest"));
                    connection.graceful_shutdown();
                }
                () = unused(&slot, this.rules.current().limits.connection_idle), if leaving.is_none() => {
                    this.metrics.timed_out("connection_idle");
                    leaving = Some(Leaving::for_reason("nothing was asked on it for too long"));
                    connection.graceful_shutdown();
                }
                reason = let_go(leaving) => {
                    debug!(%remote, upstream = %this.name, reason, "connection closed");
                    break Ok(());
                }
                () = close.wait() => break Ok(()),
            }
        };
        drop(connection);
        if stalled.is_so() {
            this.metrics.timed_out(Late::ResponseWrite.name());
        }
        while let Ok(refusal) = refusals.try_recv() {
            if refusal != Unparsed::Low {
                this.record_unparsed(remote, &refusal).await;
            }
        }
        if let Err(error) = ended {
            debug!(%remote, error, "connection ended badly");
            let unparsed = error.downcast_ref::<hyper::Error>().filter(|error| error.is_parse());
            if let Some(unparsed) = unparsed {
                this.record_unparsed(remote, unparsed).await;
            }
        }
    }

    /// One request. Whether it is allowed is decided where it arrives, by the proxy of the service that is called; what does
    /// not arrive there is recorded here.
    async fn answer(&self, request: Request<Incoming>, remote: SocketAddr, ahead: Ahead, slot: &Slot) -> Answer {
        let dialect = Dialect::of(request.headers(), request.version());
        let own = self.identity.current();
        let mut draft = self.draft(remote, own.svid.spiffe_id(), hygiene::trace_id(request.headers()));
        if Unread::of(request.headers()).is_none() {
            draft = draft.action(request.method().as_str());
        }
        // With its first request a connection is worth keeping.
        let asked = slot.settle().map_err(no_place);
        let asked = asked.and_then(|()| read(&request));
        let asked = asked.and_then(|canonical| via::check(request.headers()).map(|()| canonical));
        let canonical = match asked {
            Ok(canonical) => canonical,
            Err(unasked) => {
                let transfer = request.body().transfer();
                return self
                    .refuse(draft, unasked, transfer.as_ref(), dialect)
                    .await
                    .closing(dialect);
            }
        };
        let draft = draft.about(&canonical);
        let (mut parts, body) = request.into_parts();
        let transfer = body.transfer();
        if let Some(transfer) = &transfer {
            transfer.tell(|span| hop::asked(span, &canonical));
        }
        hygiene::sanitize_request(&mut parts.headers);
        via::add(&mut parts.headers, parts.version);
        let interims = Interims::default();
        let sent = self
            .upstream
            .send(&canonical, Request::from_parts(parts, body.into()), &interims);
        let answered = tokio::select! {
            biased;
            answered = interims.ahead_of(sent, &ahead, hygiene::sanitize_response) => answered,
            late = head_late(transfer.as_ref()) => {
                return self.refuse(draft, late.unasked(), transfer.as_ref(), dialect).await.closing(dialect);
            }
        };
        match answered {
            Ok(server) => Answer::of_peer(server, dialect),
            Err(_) if transfer.as_ref().is_some_and(|transfer| transfer.is_late()) => {
                let late = Late::RequestBody.unasked();
                self.refuse(draft, late, transfer.as_ref(), dialect)
                    .await
                    .closing(dialect)
            }
            Err(error) => {
                error.log(self.name.as_str());
                self.metrics.upstream_failed(error.code());
                self.refuse(draft, error.unasked(), transfer.as_ref(), dialect).await
            }
        }
    }

    /// That a call comes to nothing, recorded.
    async fn refuse(
        &self,
        draft: Draft<'_>,
        unasked: Unasked,
        transfer: Option<&Arc<Transfer>>,
        dialect: Dialect,
    ) -> Answer {
        let refused = self.point.refuse(draft, unasked).await;
        if let Some(transfer) = transfer {
            transfer.tell(|span| hop::refused(span, &refused));
        }
        Answer::refused(&refused, dialect)
    }

    /// The span of a request, if it is traced. What comes next is its child.
    fn begin_hop(&self, request: &mut Request<Incoming>, remote: SocketAddr) -> Option<Hop> {
        let mut hop = self.tracer.as_ref()?.begin(Kind::Client, request.headers_mut())?;
        let own = self.identity.current();
        let names = (own.svid.spiffe_id(), self.name.called());
        hop.tell(|span| hop::begun(span, request, names, remote));
        Some(hop)
    }

    /// What the service sent cannot be read as HTTP: the library has answered it with an error.
    async fn record_unparsed(&self, remote: SocketAddr, unparsed: &impl Display) {
        let own = self.identity.current();
        let draft = self.draft(remote, own.svid.spiffe_id(), None);
        let unasked = Unasked::malformed("unparsed", unparsed.to_string());
        // Nothing is forwarded either way; the decision point has said what failed.
        let _ = self.point.refuse(draft, unasked).await;
    }

    /// The record of a call that the own service makes, begun.
    fn draft<'a>(&'a self, remote: SocketAddr, own: &'a SpiffeId, trace_id: Option<String>) -> Draft<'a> {
        Draft::new(Facts {
            phase: Phase::Request,
            service: self.name.called(),
            witness: Witness::Service { own },
            source: Some(remote.to_string()),
            trace_id,
        })
    }
}
