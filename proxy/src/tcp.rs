//! Any TCP: decided once per connection and again at every change of policy, then bytes, both ways, until trust ends.

use std::net::SocketAddr;
use std::sync::Arc;

use hoplite_audit::{Outcome, Phase, Record};
use hoplite_decision::Question;
use hoplite_policy::{Permit, Transport};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tracing::{debug, info};

use crate::dial::{self, Dialled, Peer};
use crate::enforce::Enforcer;
use crate::handshake::Handshaker;
use crate::identity_feed::Layer;
use crate::metrics::Metrics;
use crate::relay::relay;
use crate::session::{Event, Session, Stop};

/// One inbound TCP listener on one worker.
pub(crate) struct TcpInbound {
    pub(crate) service: String,
    pub(crate) forward_to: String,
    pub(crate) handshaker: Handshaker,
    pub(crate) enforcer: Arc<Enforcer>,
    pub(crate) stop: Stop,
}

/// One outbound TCP listener on one worker.
pub(crate) struct TcpOutbound {
    pub(crate) name: String,
    pub(crate) peer: Peer,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stop: Stop,
}

// === impl TcpInbound ===

impl TcpInbound {
    /// One connection, from its first byte to its end.
    pub(crate) async fn serve(self: Arc<Self>, tcp: TcpStream, remote: SocketAddr) {
        let (stream, mut session) = match self.handshaker.accept(tcp, remote, Layer::Tcp).await {
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

        // Watched before it is decided: a policy that comes in between is not missed.
        session.watch_policy(self.enforcer.policy().subscribe());
        let (permit, record) = self.decide(&session, Phase::Connect).await;
        if self.enforcer.record(record).await.is_err() {
            return;
        }
        if let Some(permit) = permit {
            self.forward(permit, stream, session).await;
        }
    }

    async fn decide(&self, session: &Session, phase: Phase) -> (Option<Permit>, Record) {
        let mut record = Record::new(phase, Outcome::Error, &*self.service);
        record.principal = Some(session.peer.spiffe_id().to_string());
        record.peer_serial = Some(session.peer.serial().to_owned());
        record.peer_not_after = Some(session.peer.not_after());
        record.source = Some(session.remote.to_string());
        record.tls = Some(session.tls.clone());
        let connection = Transport::new(session.remote.ip());
        let question = Question {
            caller: (&session.peer).into(),
            service: &self.service,
            connection: &connection,
            http: None,
            fields: None,
        };
        let permit = self.enforcer.decide(question, &mut record).await;
        (permit.ok(), record)
    }

    /// Carries what was permitted, for as long as it stays permitted.
    async fn forward(&self, mut permit: Permit, stream: TlsStream<TcpStream>, mut session: Session) {
        let app = match dial::service(&self.forward_to).await {
            Ok(app) => app,
            Err(error) => {
                error.log(&self.service);
                return self.enforcer.metrics().upstream_failed(error.code());
            }
        };
        let mut copying = std::pin::pin!(relay(stream, app));
        let reason = loop {
            tokio::select! {
                ended = copying.as_mut() => {
                    return debug!(remote = %session.remote, ?ended, "connection ended");
                }
                event = session.event() => match event {
                    Event::Drain => {}
                    Event::Close(reason) => break reason,
                    Event::Redecide => {
                        let (renewed, record) = self.decide(&session, Phase::Recheck).await;
                        self.enforcer.metrics().rechecked(renewed.is_some());
                        let Some(renewed) = renewed else {
                            // The answer has changed, so it is recorded; the connection ends whether or not that succeeds.
                            let _ = self.enforcer.record(record).await;
                            break "policy no longer permits it".to_owned();
                        };
                        permit = renewed;
                    }
                }
            }
        };
        let revision = permit.decision().revision();
        info!(peer = %session.peer.spiffe_id(), remote = %session.remote, permitted_by = revision, reason, "connection closed");
    }
}

// === impl TcpOutbound ===

impl TcpOutbound {
    /// One connection of the local service, on a TLS connection of its own.
    pub(crate) async fn serve(self: Arc<Self>, tcp: TcpStream, _remote: SocketAddr) {
        let Dialled {
            stream, mut session, ..
        } = match self.peer.dial(Layer::Tcp).await {
            Ok(dialled) => dialled,
            Err(error) => {
                error.log(&self.name);
                return self.metrics.upstream_failed(error.code());
            }
        };
        session.end_with(self.stop.clone());
        let mut copying = std::pin::pin!(relay(tcp, stream));
        loop {
            tokio::select! {
                ended = copying.as_mut() => return debug!(upstream = self.name, ?ended, "connection ended"),
                event = session.event() => if let Event::Close(reason) = event {
                    return info!(upstream = self.name, reason, "connection closed");
                }
            }
        }
    }
}
