//! The agents' door: TCP, TLS with the CA's own SVID, and who is at the other end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use hoplite_host::shutdown::Shutdown;
use hoplite_identity::tls::{self, ClientAuth};
use hoplite_identity::{PeerRole, PeerVerifier, PrivatePkcs8KeyDer, TrustDomain, VerifiedPeer, X509Svid};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::authority::x509::{Authority, Serial};
use crate::entries::entry;
use crate::issuance::{MintError, SubjectKey, Template, mint};

/// A handshake is two round trips; whoever needs longer is not talking to us.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Handshakes at once: each costs a signature of ours, some kilobytes and the attention of a stranger.
const HANDSHAKES_MAX: usize = 512;

/// Connections at once: an agent needs one.
const CONNECTIONS_MAX: usize = 20_000;

/// How long a stranger, or a workload, may stay: joining takes one call, and there is nothing here for workloads.
const STRANGER_STAYS: Duration = Duration::from_secs(60);

/// After a certificate's end its streams end with a word; then the connection ends without one.
const EXPIRED_STAYS: Duration = Duration::from_secs(5);

/// When the system has no more file descriptors, trying again at once would only burn the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Between two renewals of the CA's own certificate, or attempts at it; half of its life is left for trying.
const RENEW_PAUSE: Duration = Duration::from_secs(1);

/// Who called, as far as the handshake showed it.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// None for a client that showed no certificate. Its standing is checked at each call.
    pub(crate) peer: Option<VerifiedPeer>,
    pub(crate) address: SocketAddr,
}

/// A connection after its handshake. It reads as ended once its time is up.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    caller: Caller,
    ends: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

/// Why the CA has no certificate of its own.
#[derive(Debug, thiserror::Error)]
#[error("the CA cannot make its own certificate: {0}")]
pub(crate) struct NoIdentity(String);

/// What the listener shows and whom it believes. Renewed at half life, without the listener noticing.
#[derive(Clone)]
pub(crate) struct ServerIdentity {
    authority: Arc<Authority>,
    trust_domain: TrustDomain,
    verifier: Arc<PeerVerifier>,
    ttl: Duration,
}

// === impl ServerIdentity ===

impl ServerIdentity {
    pub(crate) fn new(
        authority: Arc<Authority>,
        trust_domain: TrustDomain,
        verifier: Arc<PeerVerifier>,
        ttl: Duration,
    ) -> Self {
        Self {
            authority,
            trust_domain,
            verifier,
            ttl,
        }
    }

    /// A fresh key and certificate, as a TLS configuration, and when to replace them.
    pub(crate) fn renewed(&self, now: SystemTime) -> Result<(Arc<ServerConfig>, SystemTime), NoIdentity> {
        let failed = |error: &dyn std::fmt::Display| NoIdentity(error.to_string());
        let id = self.trust_domain.member("/hoplite/ca").map_err(|e| failed(&e))?;
        let pair = rcgen::KeyPair::generate().map_err(|e| failed(&e))?;
        let template = Template {
            spiffe_id: &id,
            dns_names: &[],
            ttl: self.ttl,
        };
        let serial = Serial::random().map_err(|e| failed(&e))?;
        let minted = mint(&self.authority, &template, &SubjectKey::of_pair(&pair), serial, now)
            .map_err(|e: MintError| failed(&e))?;
        let key = PrivatePkcs8KeyDer::from(pair.serialize_der());
        let svid = X509Svid::from_parts(vec![minted.der], key).map_err(|e| failed(&e))?;
        let config = tls::server_config(&svid, Arc::clone(&self.verifier), ClientAuth::Optional, &[b"h2"]);
        Ok((config.map_err(|e| failed(&e))?, svid.renew_at(0.0)))
    }

    /// Replaces the configuration at half life, for ever.
    pub(crate) async fn keep_renewed(self, mut renew_at: SystemTime, configs: watch::Sender<Arc<ServerConfig>>) {
        loop {
            let now = SystemTime::now();
            // Timers do not see the clock being set: look at it at least once a minute.
            let wait = renew_at.duration_since(now).unwrap_or_default();
            if !wait.is_zero() {
                sleep(wait.min(Duration::from_secs(60))).await;
                continue;
            }
            match self.renewed(now) {
                Ok((config, next)) => {
                    configs.send_replace(config);
                    renew_at = next;
                }
                Err(error) => tracing::error!(%error, "trying again"),
            }
            sleep(RENEW_PAUSE).await;
        }
    }
}

/// Accepts until the shutdown, and hands over the connections whose handshake succeeded.
pub(crate) async fn accept(
    listener: TcpListener,
    configs: watch::Receiver<Arc<ServerConfig>>,
    verifier: Arc<PeerVerifier>,
    accepted: mpsc::Sender<io::Result<Connection>>,
    mut shutdown: Shutdown,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let next = async {
            // Both before accepting: the rest waits in the kernel's queue, which is bounded too.
            let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
            let handshake = Arc::clone(&handshakes)
                .acquire_owned()
                .await
                .map_err(io::Error::other)?;
            Ok::<_, io::Error>((listener.accept().await?, place, handshake))
        };
        let next = tokio::select! {
            next = next => next,
            () = shutdown.wait() => return,
        };
        let ((tcp, address), place, handshake) = match next {
            Ok(next) => next,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let config = Arc::clone(&configs.borrow());
        let (verifier, accepted) = (Arc::clone(&verifier), accepted.clone());
        tokio::spawn(async move {
            match timeout(HANDSHAKE_TIMEOUT, greet(tcp, address, config, &verifier, place)).await {
                Ok(Ok(connection)) => {
                    let _ = accepted.send(Ok(connection)).await; // nobody listens any more while stopping
                }
                Ok(Err(error)) => {
                    let rejection = error.get_ref().and_then(|e| e.downcast_ref()).and_then(tls::rejection);
                    let code = rejection.map_or("handshake", |rejection| rejection.code());
                    tracing::warn!(%address, code, %error, "refused a connection");
                }
                Err(_) => tracing::warn!(%address, code = "timeout", "refused a connection"),
            }
            drop(handshake);
        });
    }
}

async fn greet(
    tcp: TcpStream,
    address: SocketAddr,
    config: Arc<ServerConfig>,
    verifier: &PeerVerifier,
    place: OwnedSemaphorePermit,
) -> io::Result<Connection> {
    tcp.set_nodelay(true)?;
    let stream = TlsAcceptor::from(config).accept(tcp).await?;
    let (_, tls) = stream.get_ref();
    let now = SystemTime::now();
    let peer = match tls.peer_certificates() {
        None | Some([]) => None,
        Some(_) => Some(tls::verified_peer(verifier, tls, PeerRole::Client, now).map_err(io::Error::other)?),
    };
    let ends = Box::pin(sleep_until(Instant::now() + stays(peer.as_ref(), now)));
    Ok(Connection {
        stream,
        caller: Caller { peer, address },
        ends,
        _place: place,
    })
}

/// How long a connection may last. Only an agent's lasts: others could take up all places.
fn stays(peer: Option<&VerifiedPeer>, now: SystemTime) -> Duration {
    match peer {
        Some(peer) if entry::is_agent(peer.spiffe_id()) => {
            peer.not_after().duration_since(now).unwrap_or_default() + EXPIRED_STAYS
        }
        _ => STRANGER_STAYS,
    }
}

// === impl Connection ===

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ends.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(())); // nothing read: the end of the stream
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_identity::testing::TestAuthority;

    #[test]
    fn only_an_agent_may_stay() {
        let (authority, now) = (TestAuthority::new("prod.example"), SystemTime::now());
        let check = |path: &str, long: bool| {
            let stays = stays(Some(&authority.peer(path)), now);
            assert_eq!(stays > STRANGER_STAYS, long, "{path}: {stays:?}");
        };
        check("/hoplite/agent/n1", true);
        check("/orders", false);
        check("/hoplite/ca", false);
        assert_eq!(stays(None, now), STRANGER_STAYS);
    }
}
