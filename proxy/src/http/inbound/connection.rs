//! A peer's connection, from its first byte to its end: the handshake, its requests, and what ends it.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::server::TlsStream;
use tracing::{debug, info};

use super::{Inbound, InboundConnection};
use crate::http::conversation::{Conversation, Ended};
use crate::http::exchange::Exchanges;
use crate::http::hygiene;
use crate::http::unparsed::{Tapped, Unparsed};
use crate::peer::handshake::Accepted;
use crate::peer::identity_feed::Layer;
use crate::peer::session::{Event, Session};

/// What the peer sent on one connection that never becomes a request.
struct Refusals {
    received: mpsc::Receiver<Unparsed>,
    /// One was a head: the library's error about it says nothing new.
    told: bool,
}

// === impl Inbound ===

impl Inbound {
    /// One connection, from its first byte to its end.
    pub(crate) async fn serve(self: Arc<Self>, tcp: TcpStream, remote: SocketAddr) {
        let accepted = self.handshaker.accept(tcp, remote, Layer::Http, &self.service).await;
        let Some(mut accepted) = accepted else {
            return;
        };
        accepted.session.end_with(self.stop.clone());
        let Some((caller, stream, session)) = self.meet(accepted) else {
            return;
        };
        let (stream, received) = Tapped::new(stream, caller.http2);
        let mut refusals = Refusals { received, told: false };
        let ended = caller.converse(stream, session, &mut refusals).await;
        caller.part(ended, refusals).await;
    }

    /// What is true of all the connection's requests. The service is told of whoever has proved who it is, and of nobody
    /// else: who has not is no caller.
    fn meet(self: Arc<Self>, accepted: Accepted) -> Option<(Arc<InboundConnection>, TlsStream<TcpStream>, Session)> {
        let Accepted {
            stream,
            downstream,
            session,
        } = accepted;
        let own = self.handshaker.identity.current();
        let client_cert = hygiene::client_cert(own.svid.spiffe_id(), downstream.peer()?)?;
        let caller = InboundConnection {
            transport: downstream.transport(),
            downstream,
            client_cert,
            not_after: session.not_after,
            http2: stream.get_ref().1.alpn_protocol() == Some(b"h2"),
            exchanges: Exchanges::default(),
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
        stream: Tapped<TlsStream<TcpStream>>,
        mut session: Session,
        refusals: &mut Refusals,
    ) -> Ended {
        let caller = self.clone();
        let mut connection = Conversation::new(stream, self.http2, move |request, ahead| {
            let caller = caller.clone();
            async move { caller.answer(request, ahead).await }
        });
        let mut following = std::pin::pin!(self.follow_policy());
        loop {
            tokio::select! {
                ended = &mut connection => return ended,
                // While it is recorded the connection waits: its peer cannot make us write faster than the disk does.
                Some(unparsed) = refusals.received.recv() => refusals.record(self, unparsed).await,
                reason = following.as_mut() => {
                    self.close(reason);
                    return Ok(());
                }
                event = session.event() => match event {
                    Event::Drain | Event::Redecide => connection.graceful_shutdown(),
                    Event::Close(reason) => {
                        self.close(&reason);
                        return Ok(());
                    }
                }
            }
        }
    }

    fn close(&self, reason: &str) {
        let remote = self.downstream.remote;
        info!(peer = %self.downstream, %remote, reason, "connection closed");
    }

    /// Records what was refused on it and is not recorded yet.
    async fn part(&self, ended: Ended, mut refusals: Refusals) {
        while let Ok(unparsed) = refusals.received.try_recv() {
            refusals.record(self, unparsed).await;
        }
        let Err(error) = ended else {
            return;
        };
        debug!(remote = %self.downstream.remote, error, "connection ended badly");
        let unparsed = error.downcast_ref::<hyper::Error>().filter(|error| error.is_parse());
        if let Some(unparsed) = unparsed.filter(|_| !refusals.told) {
            self.record_unparsed(unparsed).await;
        }
    }
}

// === impl Refusals ===

impl Refusals {
    async fn record(&mut self, caller: &InboundConnection, unparsed: Unparsed) {
        self.told |= matches!(unparsed, Unparsed::Head(_));
        caller.record_unparsed(&unparsed).await;
    }
}
