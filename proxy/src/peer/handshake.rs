//! From a TCP connection to a verified peer, or to a reason why not.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hoplite_audit::Outcome;
use hoplite_decision::{DecisionPoint, Stranger, Unasked};
use hoplite_host::clock;
use hoplite_identity::tls;
use hoplite_identity::{CertificateDer, PeerRejected, PeerRole, ServiceName};
use http::StatusCode;
use rustls::CommonState;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use crate::metrics::Metrics;
use crate::peer::downstream::Downstream;
use crate::peer::identity_feed::{IdentityFeed, Layer};
use crate::peer::session::Session;

/// A peer that has not proved itself within this time is not going to.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Handshakes under way at a time: each holds some 30 kB, and strangers may ask for them.
const HANDSHAKES_MAX: usize = 256;

/// The first byte of every TLS connection: the content type `handshake` (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

/// The server's side of TLS.
#[derive(Clone)]
pub(crate) struct Handshaker {
    pub(crate) identity: Arc<IdentityFeed>,
    pub(crate) under_way: Arc<UnderWay>,
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

/// The handshakes under way, oldest first. One too many ends the oldest: if they queued, strangers who begin a handshake
/// and fall silent would keep everybody out.
#[derive(Debug, Default)]
pub(crate) struct UnderWay(Mutex<VecDeque<oneshot::Sender<()>>>);

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
    ) -> Option<Accepted> {
        let accepted = timeout(HANDSHAKE_MAX, self.handshake(tcp, remote, layer)).await;
        match accepted.unwrap_or_else(|_| Err(Unasked::unauthenticated("timeout", "no handshake within 10 s"))) {
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
        let generation = self.identity.current();
        if !generation.is_valid(clock::now()) {
            return Err(ours(
                "own_svid_expired",
                "the own SVID has expired and the agent gave no new one",
            ));
        }
        let crowded_out = self.under_way.begin();
        let stream = tokio::select! {
            accepted = TlsAcceptor::from(generation.server(layer)).accept(tcp) => {
                accepted.map_err(|error| broken(&error))?
            }
            _ = crowded_out => {
                return Err(Unasked::unauthenticated("crowded_out", "of too many handshakes under way it was the oldest"));
            }
        };
        let (_, connection) = stream.get_ref();
        // The verifier ran inside the handshake. It runs again here, so that no configuration mistake can let a peer pass.
        let peer =
            tls::verified_peer(&generation.verifier, connection, PeerRole::Client, clock::now()).map_err(rejected)?;
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

// === impl UnderWay ===

impl UnderWay {
    /// Begins a handshake, which is under way until the receiver is dropped, and must end when the receiver is ready.
    fn begin(&self) -> oneshot::Receiver<()> {
        let (end, ended) = oneshot::channel();
        let mut under_way = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if under_way.len() >= HANDSHAKES_MAX {
            under_way.retain(|other| !other.is_closed());
        }
        if under_way.len() >= HANDSHAKES_MAX {
            under_way.pop_front();
        }
        under_way.push_back(end);
        ended
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
