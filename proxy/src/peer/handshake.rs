//! From a TCP connection to a verified peer, or to a reason why not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hoplite_audit::Outcome;
use hoplite_decision::{DecisionPoint, Stranger, Unasked};
use hoplite_host::clock;
use hoplite_host::slots::{Full, Slot, Slots, Source};
use hoplite_identity::tls;
use hoplite_identity::{CertificateDer, PeerRejected, PeerRole, ServiceName};
use http::StatusCode;
use rustls::CommonState;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use crate::metrics::Metrics;
use crate::peer::downstream::Downstream;
use crate::peer::identity_feed::{IdentityFeed, Layer};
use crate::peer::session::Session;

/// A peer that has not proved itself within this time is not going to.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Handshakes under way at a time, of all listeners together, whose first message is whole: each holds some 30 kB, and
/// strangers may ask for them. One more ends the oldest of the address that has most. A processor makes some 4 000 in a second,
/// so that the places are not what bounds the peers, however far away they are.
pub(crate) const HANDSHAKES_MAX: usize = 2048;

/// The first byte of every TLS connection: the content type `handshake` (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// The server's side of TLS.
#[derive(Clone)]
pub(crate) struct Handshaker {
    pub(crate) identity: Arc<IdentityFeed>,
    pub(crate) under_way: Slots,
    pub(crate) point: Arc<DecisionPoint>,
    pub(crate) metrics: Arc<Metrics>,
}

/// A connection whose caller is known.
pub(crate) struct Accepted {
    pub(crate) stream: TlsStream<TcpStream>,
    pub(crate) downstream: Downstream,
    /// For how long that holds.
    pub(crate) session: Session,
}

// === impl Handshaker ===

impl Handshaker {
    /// Accepts TLS. None is a connection that was closed before it said anything, a health check; or one that gets no
    /// identity, which is recorded. The peer hears only a TLS alert.
    pub(crate) async fn accept(
        &self,
        tcp: TcpStream,
        remote: SocketAddr,
        layer: Layer,
        service: &ServiceName,
        slot: &Slot,
    ) -> Option<Accepted> {
        let accepted = tokio::select! {
            accepted = timeout(HANDSHAKE_MAX, self.handshake(tcp, remote, layer)) => accepted.unwrap_or_else(|_| {
                Err(Unasked::unauthenticated("timeout", "no handshake within 10 s"))
            }),
            () = slot.evicted() => Err(crowded_out("connections")),
        };
        match accepted {
            Ok(accepted) => accepted,
            Err(unasked) => {
                self.refuse(unasked, remote, service).await;
                None
            }
        }
    }

    /// Records that somebody without an identity was refused, or counts it when there are too many.
    async fn refuse(&self, unasked: Unasked, remote: SocketAddr, service: &ServiceName) {
        let (code, reason) = (unasked.code, &unasked.reason);
        self.metrics.handshake_refused(code);
        debug!(source = %remote, %service, code, reason, "connection refused");
        let stranger = Stranger {
            service,
            vouched_by: None,
            source: Some(remote.to_string()),
            trace_id: None,
        };
        // The connection is closed either way; the decision point has said what failed.
        let _ = self.point.refuse_stranger(stranger, unasked).await;
    }

    async fn handshake(&self, tcp: TcpStream, remote: SocketAddr, layer: Layer) -> Result<Option<Accepted>, Unasked> {
        let mut first = [0];
        match tcp.peek(&mut first).await {
            Ok(0) | Err(_) => return Ok(None),
            Ok(_) if first != [TLS_HANDSHAKE] => {
                return Err(Unasked::unauthenticated(
                    "plaintext",
                    "the connection does not begin with a TLS handshake",
                ));
            }
            Ok(_) => {}
        }
        let started = clock::moment();
        // Until its first message is whole a stranger costs little, and there may be many.
        let begun = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp).await;
        let begun = begun.map_err(|error| broken(&error))?;
        let generation = self.identity.current();
        if !generation.is_valid(clock::now()) {
            return Err(ours(
                "own_svid_expired",
                "the own SVID has expired and the agent gave no new one",
            ));
        }
        let under_way = self.under_way.admit(&[Source::address(remote.ip())]);
        let under_way = under_way.map_err(|_full| crowded_out("handshakes"))?;
        let stream = tokio::select! {
            accepted = begun.into_stream(generation.server(layer)) => accepted.map_err(|error| broken(&error))?,
            () = under_way.evicted() => return Err(crowded_out("handshakes")),
        };
        let (_, connection) = stream.get_ref();
        // The verifier ran inside the handshake. It runs again here, so that no configuration mistake can let a peer pass.
        let peer =
            tls::verified_peer(&generation.verifier, connection, PeerRole::Client, clock::now()).map_err(rejected)?;
        self.metrics.handshake_made(started.elapsed());
        let session = Session::new(
            &peer,
            PeerRole::Client,
            presented(connection),
            self.identity.clone(),
            &generation,
        );
        let downstream = Downstream::verified(peer, describe(connection), remote);
        Ok(Some(Accepted {
            stream,
            downstream,
            session,
        }))
    }
}

/// There is no place for somebody who has shown who they are.
pub(crate) fn no_place(full: Full) -> Unasked {
    Unasked {
        status: StatusCode::SERVICE_UNAVAILABLE,
        outcome: Outcome::Error,
        code: "too_many_connections",
        reason: full.to_string(),
    }
}

/// The chain a peer showed, leaf first.
pub(crate) fn presented(connection: &CommonState) -> Vec<CertificateDer<'static>> {
    connection.peer_certificates().map(<[_]>::to_vec).unwrap_or_default()
}

/// For the record: `1.3 X25519MLKEM768`.
fn describe(connection: &CommonState) -> String {
    let version = match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "1.3",
        _ => "?",
    };
    match connection.negotiated_key_exchange_group() {
        Some(group) => format!("{version} {:?}", group.name()),
        None => version.to_owned(),
    }
}

/// The TLS error inside an I/O error.
pub(crate) fn tls_error(error: &std::io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// All places were taken, and others came later.
fn crowded_out(of: &str) -> Unasked {
    let reason = format!("of too many {of} without an identity it was the oldest");
    Unasked::unauthenticated("crowded_out", reason)
}

/// The fault is ours.
fn ours(code: &'static str, reason: &str) -> Unasked {
    Unasked {
        status: StatusCode::SERVICE_UNAVAILABLE,
        outcome: Outcome::Error,
        code,
        reason: reason.to_owned(),
    }
}

/// The handshake ended before the peer had proved who it is.
fn broken(error: &std::io::Error) -> Unasked {
    match tls_error(error).map(|error| (tls::rejection(error), error)) {
        Some((Some(reason), _)) => rejected(reason),
        Some((None, error)) => Unasked::unauthenticated("handshake_failed", error.to_string()),
        None => Unasked::unauthenticated("handshake_broken", error.to_string()),
    }
}

fn rejected(reason: PeerRejected) -> Unasked {
    Unasked::unauthenticated(reason.code(), reason.to_string())
}
