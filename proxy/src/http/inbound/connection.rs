//! A peer's connection, from its first byte to its end: the handshake, its requests, and what ends it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hoplite_audit::Phase;
use hoplite_decision::Unasked;
use hoplite_host::slots::Slot;
use hoplite_otlp::{Hop, Kind};
use http::Request;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;
use tracing::{debug, info};

use super::{Inbound, InboundConnection};
use crate::http::body::Incoming;
use crate::http::conversation::{Conversation, Ended};
use crate::http::exchange::Exchanges;
use crate::http::hop;
use crate::http::hygiene;
use crate::http::leaving::{Leaving, let_go, unused};
use crate::http::stalling::{Stalled, Stalling};
use crate::http::transfer::{CUTS_WAITING_MAX, Cut, Late, Transfer, Way};
use crate::http::unparsed::{Far, Tapped, Unparsed};
use crate::limits::limit;
use crate::peer::handshake::{Accepted, no_place};
use crate::peer::identity_feed::Layer;
use crate::peer::session::{Event, Session};

/// What the peer sent on one connection that never becomes a request.
type Refusals = mpsc::Receiver<Unparsed>;

// === impl Inbound ===

impl Inbound {
    /// One connection, from its first byte to its end.
    pub(crate) async fn serve(self: Arc<Self>, tcp: TcpStream, remote: SocketAddr, slot: Arc<Slot>) {
        let accepted = self
            .handshaker
            .accept(tcp, remote, Layer::Http, &self.service, &slot)
            .await;
        let Some(mut accepted) = accepted else {
            return;
        };
        accepted.session.end_with(self.stop.clone());
        accepted.session.tell_ahead();
        let Some((caller, stream, session)) = self.meet(accepted, slot) else {
            return;
        };
        if let Err(full) = caller.slot.settle() {
            return caller.refuse_connection(no_place(full)).await;
        }
        let rules = caller.inbound.rules.current();
        let write_idle = limit(rules.limits.response_write_idle);
        let (stream, stalled) = Stalling::new(stream, write_idle, caller.inbound.traffic.clone());
        let far = Far {
            side: "peer",
            name: format!("{} at {remote}", caller.downstream),
            metrics: caller.inbound.metrics.clone(),
        };
        let (stream, mut refusals) = Tapped::caller(stream, caller.http2, far, &rules);
        let ended = caller.converse(stream, stalled, session, &mut refusals).await;
        caller.part(ended, refusals).await;
    }

    /// What is true of all the connection's requests. The service is told of whoever has proved who it is, and of nobody
    /// else: who has not is no caller.
    fn meet(
        self: Arc<Self>,
        accepted: Accepted,
        slot: Arc<Slot>,
    ) -> Option<(Arc<InboundConnection>, TlsStream<TcpStream>, Session)> {
        let Accepted {
            stream,
            downstream,
            session,
        } = accepted;
        let own = self.handshaker.identity.current();
        let peer = downstream.peer()?;
        let client_cert = hygiene::client_cert(own.svid.spiffe_id(), peer)?;
        let app = self.app.of(peer.spiffe_id());
        let caller = InboundConnection {
            transport: downstream.transport(),
            downstream,
            client_cert,
            app,
            not_after: session.not_after,
            http2: stream.get_ref().1.alpn_protocol() == Some(b"h2"),
            exchanges: Exchanges::default(),
            last: AtomicBool::new(false),
            slot,
            inbound: self,
        };
        Some((Arc::new(caller), stream, session))
    }
}

// === impl InboundConnection ===

impl InboundConnection {
    /// Answers its requests until the peer, trust or policy ends it.
    async fn converse(
        self: &Arc<Self>,
        stream: Tapped<Stalling<TlsStream<TcpStream>>>,
        stalled: Stalled,
        mut session: Session,
        refusals: &mut Refusals,
    ) -> Ended {
        let caller = self.clone();
        let (cuts, mut cut) = mpsc::channel(CUTS_WAITING_MAX);
        let share = self.app.unread.clone();
        let mut connection = Conversation::new(
            stream,
            self.http2,
            share,
            move |mut request: Request<Incoming>, ahead| {
                let caller = caller.clone();
                let (busy, metrics) = (caller.slot.begin(), caller.inbound.metrics.clone());
                let limits = caller.inbound.rules.current().limits;
                let hop = caller.begin_hop(&mut request);
                let way = Way::In(cuts.clone());
                let transfer = Transfer::new(request.headers(), limits, busy, metrics, way, hop);
                async move {
                    let request = request.map(|body| body.awaited(transfer.clone()));
                    let answer = caller.answer(request, ahead).await;
                    let answer = match caller.last.load(Ordering::Relaxed) {
                        true => answer.last(caller.http2),
                        false => answer,
                    };
                    caller.inbound.traffic.responded(answer.status());
                    answer.with(transfer)
                }
            },
        );
        let mut following = std::pin::pin!(self.follow_policy());
        let mut leaving = None;
        loop {
            tokio::select! {
                ended = &mut connection => {
                    if stalled.is_so() {
                        // Whatever was under way on it ends with it, and before it is dropped.
                        self.inbound.metrics.timed_out(Late::ResponseWrite.name());
                        for exchange in self.exchanges.permitted_before(u64::MAX) {
                            self.record_late(&exchange, Late::ResponseWrite).await;
                        }
                    }
                    return ended;
                }
                Some(Cut { late, exchange }) = cut.recv() => {
                    self.record_late(&exchange, late).await;
                }
                () = self.slot.evicted(), if leaving.is_none() => {
                    leaving = Some(Leaving::for_reason("all places are taken, and it was idle for longest"));
                    connection.graceful_shutdown();
                }
                () = unused(&self.slot, self.inbound.rules.current().limits.connection_idle), if leaving.is_none() => {
                    self.inbound.metrics.timed_out("connection_idle");
                    leaving = Some(Leaving::for_reason("nothing was asked on it for too long"));
                    connection.graceful_shutdown();
                }
                reason = let_go(leaving) => {
                    self.close(reason);
                    return Ok(());
                }
                Some(unparsed) = refusals.recv() => match unparsed {
                    // Who means well goes on by another connection.
                    Unparsed::Low => connection.graceful_shutdown(),
                    // While it is recorded the connection waits: its peer cannot make us write faster than the disk does.
                    refused => self.record_unparsed(&refused).await,
                },
                reason = following.as_mut() => {
                    self.close(reason);
                    return Ok(());
                }
                event = session.event() => match event {
                    // HTTP/2 says so by itself, and loses nothing by it.
                    Event::Tell if self.http2 => connection.graceful_shutdown(),
                    Event::Tell => self.last.store(true, Ordering::Relaxed),
                    Event::Drain | Event::Redecide => connection.graceful_shutdown(),
                    Event::Close(reason) => {
                        self.close(&reason);
                        return Ok(());
                    }
                }
            }
        }
    }

    /// The span of a request, if it is traced. What comes next is its child.
    fn begin_hop(&self, request: &mut Request<Incoming>) -> Option<Hop> {
        let mut hop = self
            .inbound
            .tracer
            .as_ref()?
            .begin(Kind::Server, request.headers_mut())?;
        let Self {
            downstream, inbound, ..
        } = self;
        let principal = downstream.peer()?.spiffe_id();
        hop.tell(|span| hop::begun(span, request, (principal, &inbound.service), downstream.remote));
        Some(hop)
    }

    /// Records that nothing is asked on it, for whatever reason.
    async fn refuse_connection(&self, unasked: Unasked) {
        self.inbound.metrics.handshake_refused(unasked.code);
        // The connection is closed either way; the decision point has said what failed.
        let _ = self
            .inbound
            .point
            .refuse(self.draft(Phase::Handshake, None), unasked)
            .await;
    }

    fn close(&self, reason: &str) {
        let remote = self.downstream.remote;
        info!(peer = %self.downstream, %remote, reason, "connection closed");
    }

    /// Records what was refused on it and is not recorded yet.
    async fn part(&self, ended: Ended, mut refusals: Refusals) {
        while let Ok(unparsed) = refusals.try_recv() {
            if unparsed != Unparsed::Low {
                self.record_unparsed(&unparsed).await;
            }
        }
        let Err(error) = ended else {
            return;
        };
        debug!(remote = %self.downstream.remote, error, "connection ended badly");
        let unparsed = error.downcast_ref::<hyper::Error>().filter(|error| error.is_parse());
        if let Some(unparsed) = unparsed {
            self.record_unparsed(unparsed).await;
        }
    }
}
