//! Where agents come in: TCP, TLS with the CA's own SVID, and who is at the other end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use hoplite_host::accept::{Acceptor, WhenFull};
use hoplite_host::clock;
use hoplite_host::shutdown::Shutdown;
use hoplite_host::slots::{Bounds, Slot, Slots, Source};
use hoplite_identity::{PeerRole, VerifiedPeer, tls};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::door::Door;

/// A handshake is two round trips; whoever needs longer is not talking to us.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Handshakes at once: each costs a signature of ours, some kilobytes and the attention of a stranger.
const HANDSHAKES_MAX: usize = 512;

/// Handshakes at once from one address: a stranger with one address cannot keep the others waiting.
const HANDSHAKES_PER_ADDRESS_MAX: usize = HANDSHAKES_MAX / 4;

/// Connections at once: an agent needs one.
const CONNECTIONS_MAX: usize = 20_000;

/// Connections at once from one address, behind which a whole site may be.
const CONNECTIONS_PER_ADDRESS_MAX: usize = CONNECTIONS_MAX / 4;

/// How long a stranger, or a workload, may stay: joining takes one call, and there is nothing here for workloads.
const STRANGER_STAYS: Duration = Duration::from_secs(60);

/// After a certificate's end its streams end with a word; then the connection ends without one.
const EXPIRED_STAYS: Duration = Duration::from_secs(5);

/// Who called, as far as the handshake showed it.
#[derive(Debug, Clone)]
pub(crate) struct AgentCaller {
    /// None for a client that showed no certificate. Its standing is checked at each call.
    pub(crate) peer: Option<VerifiedPeer>,
    pub(crate) address: SocketAddr,
}

/// A connection after its handshake. It reads as ended once its time is up.
pub(crate) struct TlsConnection {
    stream: TlsStream<TcpStream>,
    caller: AgentCaller,
    ends: Pin<Box<Sleep>>,
    _slot: Slot,
}

/// Accepts until the shutdown, and hands over the connections whose handshake succeeded.
pub(crate) async fn accept(
    listener: TcpListener,
    door: watch::Receiver<Door>,
    accepted: mpsc::Sender<io::Result<TlsConnection>>,
    mut shutdown: Shutdown,
) {
    let slots = Slots::new(Bounds::network(CONNECTIONS_MAX, CONNECTIONS_PER_ADDRESS_MAX));
    let handshakes = Slots::new(Bounds::network(HANDSHAKES_MAX, HANDSHAKES_PER_ADDRESS_MAX));
    // The rest waits in the kernel's queue, which is bounded too.
    let mut acceptor = Acceptor::new(listener, "agents", slots, WhenFull::Wait, shutdown.clone());
    loop {
        let handshake = tokio::select! {
            handshake = handshakes.reserve() => handshake,
            () = shutdown.wait() => return,
        };
        let Some(((tcp, address), slot)) = acceptor.next().await else {
            return;
        };
        let handshake = match handshake.claim(&[Source::address(address.ip())]) {
            Ok(handshake) => handshake,
            Err(full) => {
                tracing::debug!(%address, "no handshake: {full}");
                continue;
            }
        };
        let (door, accepted) = (door.borrow().clone(), accepted.clone());
        tokio::spawn(async move {
            match timeout(HANDSHAKE_TIMEOUT, greet(tcp, address, door, slot)).await {
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

async fn greet(tcp: TcpStream, address: SocketAddr, door: Door, slot: Slot) -> io::Result<TlsConnection> {
    let stream = TlsAcceptor::from(door.config).accept(tcp).await?;
    let (_, tls) = stream.get_ref();
    let now = clock::now();
    let peer = match tls.peer_certificates() {
        None | Some([]) => None,
        Some(_) => Some(tls::verified_peer(&door.verifier, tls, PeerRole::Client, now).map_err(io::Error::other)?),
    };
    let ends = Box::pin(sleep_until(Instant::now() + stays(peer.as_ref(), now)));
    Ok(TlsConnection {
        stream,
        caller: AgentCaller { peer, address },
        ends,
        _slot: slot,
    })
}

/// How long a connection may last. Only an agent's lasts: others could take up all places.
fn stays(peer: Option<&VerifiedPeer>, now: SystemTime) -> Duration {
    match peer {
        Some(peer) if peer.spiffe_id().is_agent() => {
            peer.not_after().duration_since(now).unwrap_or_default() + EXPIRED_STAYS
        }
        _ => STRANGER_STAYS,
    }
}

// === impl TlsConnection ===

impl Connected for TlsConnection {
    type ConnectInfo = AgentCaller;

    fn connect_info(&self) -> AgentCaller {
        self.caller.clone()
    }
}

impl AsyncRead for TlsConnection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ends.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(())); // nothing read: the end of the stream
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for TlsConnection {
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
