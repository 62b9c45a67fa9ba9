//! Any TCP: decided once per connection and again at every change of policy, then bytes, both ways, until trust ends.

pub(crate) mod relay;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hoplite_audit::{Outcome, Phase};
use hoplite_decision::{DecisionPoint, Draft, Facts, Granted, Opaque, Unasked, Witness};
use hoplite_host::clock;
use hoplite_host::slots::Slot;
use hoplite_identity::ServiceName;
use http::StatusCode;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tracing::{debug, info};

use crate::config::UpstreamName;
use crate::forward::ForwardFeed;
use crate::http::rules::RulesFeed;
use crate::limits::limit;
use crate::metrics::{Metrics, Traffic};
use crate::peer::dial::{self, Dialled, Peer};
use crate::peer::downstream::Downstream;
use crate::peer::handshake::{Accepted, Handshaker, no_place};
use crate::peer::identity_feed::Layer;
use crate::peer::session::{Event, Session, Stop};
use crate::share::{ByCaller, Places, Share};
use crate::tcp::relay::{relay, reset};

/// One inbound TCP listener on one worker.
pub(crate) struct TcpInbound {
    pub(crate) service: ServiceName,
    pub(crate) forward_to: Arc<ForwardFeed>,
    /// Connections under way, which callers share.
    pub(crate) places: Places,
    pub(crate) callers: ByCaller<Share>,
    pub(crate) handshaker: Handshaker,
    pub(crate) point: Arc<DecisionPoint>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) traffic: Traffic,
    pub(crate) stop: Stop,
    pub(crate) rules: RulesFeed,
}

/// One outbound TCP listener on one worker.
pub(crate) struct TcpOutbound {
    pub(crate) name: UpstreamName,
    pub(crate) peer: Peer,
    pub(crate) point: Arc<DecisionPoint>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) traffic: Traffic,
    pub(crate) stop: Stop,
    pub(crate) rules: RulesFeed,
}

/// How long a connection is carried: until this is dropped.
struct Timed<'a> {
    traffic: &'a Traffic,
    began: Instant,
}

// === impl TcpInbound ===

impl TcpInbound {
    /// One connection, from its first byte to its end.
    pub(crate) async fn serve(self: Arc<Self>, tcp: TcpStream, remote: SocketAddr, slot: Arc<Slot>) {
        let accepted = self
            .handshaker
            .accept(tcp, remote, Layer::Tcp, &self.service, &slot)
            .await;
        let Some(Accepted {
            mut stream,
            downstream,
            mut session,
        }) = accepted
        else {
            return;
        };
        session.end_with(self.stop.clone());

        let share = downstream
            .peer()
            .map(|peer| self.callers.get(peer.spiffe_id(), || self.places.share()));
        let Some(_place) = share.and_then(|share| share.take()) else {
            let busy = Unasked {
                status: StatusCode::SERVICE_UNAVAILABLE,
                outcome: Outcome::Error,
                code: "caller_busy",
                reason: "the caller has as many connections here as are left for all others".to_owned(),
            };
            let draft = self.draft(&downstream, Phase::Connect).action("connect");
            // The connection ends either way; the decision point has said what failed.
            let _ = self.point.refuse(draft, busy).await;
            return;
        };

        // Watched before it is decided: a policy that comes in between is not missed.
        session.watch_policy(self.point.policy().subscribe());
        let draft = self.draft(&downstream, Phase::Connect);
        let judged = self
            .point
            .judge(draft, Opaque(&mut stream), &downstream.transport())
            .await;
        if let Ok(granted) = judged.recorded().await {
            if let Err(full) = slot.settle() {
                let draft = self.draft(&downstream, Phase::Connect);
                // The connection is closed either way; the decision point has said what failed.
                let _ = self.point.refuse(draft, no_place(full)).await;
                return;
            }
            self.forward(granted, &downstream, session, &slot).await;
        }
    }

    /// How long nothing may move; none is no limit.
    fn idle_max(&self) -> Option<Duration> {
        limit(self.rules.current().limits.tcp_idle)
    }

    /// The record of a connection, begun.
    fn draft<'a>(&'a self, downstream: &'a Downstream, phase: Phase) -> Draft<'a> {
        Draft::new(Facts {
            phase,
            service: &self.service,
            witness: downstream.witness(),
            source: Some(downstream.remote.to_string()),
            trace_id: None,
        })
    }

    /// Carries the connection that was granted, for as long as it stays so.
    async fn forward(
        &self,
        granted: Granted<Opaque<&mut TlsStream<TcpStream>>>,
        downstream: &Downstream,
        mut session: Session,
        slot: &Slot,
    ) {
        let mut permitted_by = granted.revision().to_owned();
        let (Opaque(stream), _) = granted.spend();
        let _timed = Timed::new(&self.traffic);
        let mut app = match dial::service(&self.forward_to.current().address).await {
            Ok(app) => app,
            Err(error) => {
                error.log(self.service.as_str());
                return self.metrics.upstream_failed(error.code());
            }
        };
        let reason = {
            let mut copying = std::pin::pin!(relay(stream, &mut app, self.idle_max(), |way, bytes| {
                self.traffic.moved(way, bytes);
                slot.touch();
            }));
            loop {
                tokio::select! {
                    ended = copying.as_mut() => {
                        debug!(remote = %downstream.remote, ?ended, "connection ended");
                        self.metrics.relayed(&ended);
                        match ended {
                            Ok(()) => return,
                            Err(error) => break format!("it broke off: {error}"),
                        }
                    }
                    () = slot.evicted() => break "all places are taken, and it was idle for longest".to_owned(),
                    event = session.event() => match event {
                        Event::Tell | Event::Drain => {}
                        Event::Close(reason) => break reason,
                        Event::Redecide => {
                            let draft = self.draft(downstream, Phase::Recheck);
                            let renewed = self.point.recheck(draft, None, &downstream.transport()).await;
                            self.metrics.rechecked(renewed.is_ok());
                            match renewed {
                                Ok(renewed) => renewed.revision().clone_into(&mut permitted_by),
                                Err(withdrawn) => {
                                    // The answer has changed, so it is recorded; the connection ends whether or not that
                                    // succeeds.
                                    let _ = self.point.record_all(vec![withdrawn]).await;
                                    break "policy no longer permits it".to_owned();
                                }
                            }
                        }
                    }
                }
            }
        };
        reset(&app);
        info!(peer = %downstream, remote = %downstream.remote, permitted_by, reason, "connection closed");
    }
}

// === impl TcpOutbound ===

impl TcpOutbound {
    /// One connection of the local service, on a TLS connection of its own.
    pub(crate) async fn serve(self: Arc<Self>, mut tcp: TcpStream, remote: SocketAddr, slot: Arc<Slot>) {
        let Dialled {
            mut stream,
            mut session,
            ..
        } = match self.peer.dial(Layer::Tcp).await {
            Ok(dialled) => dialled,
            Err(error) => {
                error.log(self.name.as_str());
                self.metrics.upstream_failed(error.code());
                self.record(remote, error.unasked()).await;
                return reset(&tcp);
            }
        };
        session.end_with(self.stop.clone());
        let _timed = Timed::new(&self.traffic);
        let moved = |way, bytes| {
            self.traffic.moved(way, bytes);
            slot.touch();
            // Once anything has moved it is worth keeping. If there is no place it may go on until a newcomer needs its own.
            let _ = slot.settle();
        };
        {
            let mut copying = std::pin::pin!(relay(&mut tcp, &mut stream, self.idle_max(), moved));
            loop {
                tokio::select! {
                    ended = copying.as_mut() => {
                        debug!(upstream = %self.name, ?ended, "connection ended");
                        self.metrics.relayed(&ended);
                        if ended.is_ok() {
                            return;
                        }
                        break;
                    }
                    () = slot.evicted() => {
                        debug!(upstream = %self.name, "closed: all places are taken, and it was idle for longest");
                        break;
                    }
                    event = session.event() => if let Event::Close(reason) = event {
                        info!(upstream = %self.name, reason, "connection closed");
                        break;
                    }
                }
            }
        }
        reset(&tcp);
    }

    /// How long nothing may move; none is no limit.
    fn idle_max(&self) -> Option<Duration> {
        limit(self.rules.current().limits.tcp_idle)
    }

    /// That a call of the own service came to nothing.
    async fn record(&self, remote: SocketAddr, unasked: Unasked) {
        let own = self.peer.identity.current();
        let draft = Draft::new(Facts {
            phase: Phase::Connect,
            service: self.name.called(),
            witness: Witness::Service {
                own: own.svid.spiffe_id(),
            },
            source: Some(remote.to_string()),
            trace_id: None,
        });
        // The connection ends either way; the decision point has said what failed.
        let _ = self.point.refuse(draft.action("connect"), unasked).await;
    }
}

// === impl Timed ===

impl<'a> Timed<'a> {
    /// From now on.
    fn new(traffic: &'a Traffic) -> Self {
        Self {
            traffic,
            began: clock::moment(),
        }
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        self.traffic.connection_took(self.began.elapsed());
    }
}
