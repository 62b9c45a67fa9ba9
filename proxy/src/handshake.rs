//! From a TCP connection to a verified peer, or to a reason why not.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hoplite_audit::Outcome;
use hoplite_identity::tls;
use hoplite_identity::{CertificateDer, PeerRejected, PeerRole};
use rustls::CommonState;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::identity_feed::{IdentityFeed, Layer};
use crate::session::Session;

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
}

/// The handshakes under way, oldest first. One too many ends the oldest: if they queued, strangers who begin a handshake
/// and fall silent would keep everybody out.
#[derive(Debug, Default)]
pub(crate) struct UnderWay(Mutex<VecDeque<oneshot::Sender<()>>>);

/// Why a connection did not get an identity. The peer hears only a TLS alert.
#[derive(Debug)]
pub(crate) struct Refused {
    /// `unauthenticated`, unless the fault is ours.
    pub(crate) outcome: Outcome,
    /// From a fixed set.
    pub(crate) code: &'static str,
    /// Code and text, for the record.
    pub(crate) reason: String,
}

// === impl Handshaker ===

impl Handshaker {
    /// Accepts TLS. `Ok(None)` is a connection that was closed before it said anything: a health check.
    pub(crate) async fn accept(
        &self,
        tcp: TcpStream,
        remote: SocketAddr,
        layer: Layer,
    ) -> Result<Option<(TlsStream<TcpStream>, Session)>, Refused> {
        match timeout(HANDSHAKE_MAX, self.handshake(tcp, remote, layer)).await {
            Ok(result) => result,
            Err(_) => Err(Refused::stranger("timeout", "no handshake within 10 s")),
        }
    }

    async fn handshake(
        &self,
        tcp: TcpStream,
        remote: SocketAddr,
        layer: Layer,
    ) -> Result<Option<(TlsStream<TcpStream>, Session)>, Refused> {
        let mut first = [0];
        match tcp.peek(&mut first).await {
            Ok(0) | Err(_) => return Ok(None),
            Ok(_) if first != [TLS_HANDSHAKE] => {
                return Err(Refused::stranger(
                    "plaintext",
                    "the connection does not begin with a TLS handshake",
                ));
            }
            Ok(_) => {}
        }
        let generation = self.identity.current();
        if !generation.is_valid(SystemTime::now()) {
            return Err(Refused::ours(
                "own_svid_expired",
                "the own SVID has expired and the agent gave no new one",
            ));
        }
        let crowded_out = self.under_way.begin();
        let stream = tokio::select! {
            accepted = TlsAcceptor::from(generation.server(layer)).accept(tcp) => {
                accepted.map_err(|error| Refused::by(&error))?
            }
            _ = crowded_out => {
                return Err(Refused::stranger("crowded_out", "of too many handshakes under way it was the oldest"));
            }
        };
        let (_, connection) = stream.get_ref();
        // The verifier ran inside the handshake. It runs again here, so that no configuration mistake can let a peer pass.
        let peer = tls::verified_peer(&generation.verifier, connection, PeerRole::Client, SystemTime::now())?;
        let session = Session::new(
            peer,
            PeerRole::Client,
            presented(connection),
            remote,
            describe(connection),
            self.identity.clone(),
            &generation,
        );
        Ok(Some((stream, session)))
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
pub(crate) fn describe(connection: &CommonState) -> String {
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

// === impl Refused ===

impl Refused {
    fn stranger(code: &'static str, text: &str) -> Self {
        Self {
            outcome: Outcome::Unauthenticated,
            code,
            reason: format!("{code}: {text}"),
        }
    }

    fn ours(code: &'static str, text: &str) -> Self {
        Self {
            outcome: Outcome::Error,
            code,
            reason: format!("{code}: {text}"),
        }
    }

    fn by(error: &std::io::Error) -> Self {
        match tls_error(error).map(|error| (tls::rejection(error), error)) {
            Some((Some(rejected), _)) => rejected.into(),
            Some((None, error)) => Self::stranger("handshake_failed", &error.to_string()),
            None => Self::stranger("handshake_broken", &error.to_string()),
        }
    }
}

impl From<PeerRejected> for Refused {
    fn from(rejected: PeerRejected) -> Self {
        Self::stranger(rejected.code(), &rejected.to_string())
    }
}
