//! Where agents and operators come in: TCP, TLS with the CA's own SVID, and who is at the other end.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use hoplite_host::accept::Acceptor;
use hoplite_host::held::Held;
use hoplite_host::refusals::Refusals;
use hoplite_host::shutdown::Shutdown;
use hoplite_host::slots::{Bounds, Busy, Slot, Slots, Source};
use hoplite_host::{clock, process};
use hoplite_identity::{CertificateDer, PeerRole, PeerVerifier, VerifiedPeer, tls};
use hoplite_wire::Begins;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::Status;
use tonic::transport::server::Connected;

use crate::door::Door;
use crate::fleet::Fleet;
use crate::metrics::Calls;

/// A handshake is two round trips; whoever needs longer is not talking to us.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Handshakes at once whose first message is whole: each costs a signature of ours and some 30 kilobytes. One more ends
/// the oldest of the address that has most.
const HANDSHAKES_MAX: usize = 2048;

/// Connections of agents at once, each of which needs one: where the system gives as many descriptors.
const CONNECTIONS_MAX: usize = 20_000;

/// So much of them may come from one address, behind which a whole site may be.
const PER_ADDRESS: usize = 4;

/// How long a stranger, or a workload, may stay: joining takes one call, and there is nothing here for workloads.
const STRANGER_STAYS: Duration = Duration::from_secs(60);

/// After a certificate's end its streams end with a word; then the connection ends without one.
const EXPIRED_STAYS: Duration = Duration::from_secs(5);

/// An agent under an authority that was revoked stays for so long, to hear of it.
const HEARD_WITHIN: Duration = Duration::from_millis(250);

/// Who called, as far as the handshake showed it.
#[derive(Debug, Clone)]
pub(crate) struct AgentCaller {
    /// None for a client that showed no certificate. Its standing is checked at each call.
    pub(crate) peer: Option<VerifiedPeer>,
    pub(crate) address: SocketAddr,
    /// The connection's place. Whoever is no agent stays a newcomer there, whose place others may get.
    slot: Arc<Slot>,
    /// Of all connections.
    refusals: Arc<Refusals<IpAddr>>,
    calls: Calls,
}

/// A connection after its handshake. It reads as ended once its time is up.
pub(crate) struct TlsConnection {
    stream: Held<TlsStream<TcpStream>>,
    caller: AgentCaller,
    ends: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// Whether there is something here for the owner of a certificate, at every moment of its life, so that the connection may last.
pub(crate) type IsKnown = Arc<dyn Fn(&VerifiedPeer) -> bool + Send + Sync>;

/// What every handshake needs.
#[derive(Clone)]
struct Greeter {
    door: watch::Receiver<Door>,
    is_known: IsKnown,
    handshakes: Slots,
    refusals: Arc<Refusals<IpAddr>>,
    calls: Calls,
}

/// Accepts until the shutdown, and hands over the connections whose handshake succeeded.
pub(crate) async fn accept(
    listener: TcpListener,
    door: watch::Receiver<Door>,
    is_known: IsKnown,
    accepted: mpsc::Sender<io::Result<TlsConnection>>,
    calls: Calls,
    fleet: Fleet,
    shutdown: Shutdown,
) {
    let bounds = Bounds::network(CONNECTIONS_MAX, CONNECTIONS_MAX / PER_ADDRESS).at_most(process::places(1, 1));
    let mut acceptor = Acceptor::new(listener, "agents", Slots::new("agents", bounds), shutdown);
    let handshakes = Bounds::network(HANDSHAKES_MAX, HANDSHAKES_MAX);
    let greeter = Greeter {
        door,
        is_known,
        handshakes: Slots::new("agents' handshakes", handshakes),
        refusals: Arc::default(),
        calls,
    };
    while let Some(((tcp, address), slot)) = acceptor.next().await {
        let (greeter, accepted, fleet) = (greeter.clone(), accepted.clone(), fleet.clone());
        tokio::spawn(async move {
            let slot = Arc::new(slot);
            let greeted = tokio::select! {
                greeted = timeout(HANDSHAKE_TIMEOUT, greeter.greet(tcp, address, slot.clone())) => greeted,
                () = slot.evicted() => Ok(Err(crowded_out())),
            };
            match greeted {
                Ok(Ok(connection)) => {
                    let _ = accepted.send(Ok(connection)).await; // nobody listens any more while stopping
                }
                // Thousands may come in a second. The bounds have a line of their own in the log.
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionAborted => {
                    tracing::debug!(%address, code = "crowded_out", %error, "refused a connection");
                }
                Ok(Err(error)) => {
                    let rejection = error.get_ref().and_then(|e| e.downcast_ref()).and_then(tls::rejection);
                    let code = rejection.as_ref().map_or("handshake", |rejection| rejection.code());
                    let theirs = error
                        .get_ref()
                        .and_then(|e| e.downcast_ref())
                        .is_some_and(tls::is_refused_by_peer);
                    let why = match &rejection {
                        Some(rejection) => Some(format!("it is not vouched for here: {rejection}")),
                        None => theirs.then(|| "it does not take this CA's certificate".to_owned()),
                    };
                    if let Some(why) = why {
                        fleet.stranger(address.ip(), why, clock::now());
                    }
                    tracing::warn!(%address, code, %error, "refused a connection");
                }
                Err(_) => tracing::debug!(%address, code = "timeout", "refused a connection"),
            }
        });
    }
}

fn crowded_out() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "its place was given to another")
}

/// How long a connection may last. Only an agent's, a nested CA's and an operator's last: others could take up all places.
#[derive(Debug, PartialEq, Eq)]
enum Stay {
    Until(SystemTime),
    For(Duration),
}

impl Stay {
    fn of(peer: Option<&VerifiedPeer>, is_known: bool) -> Self {
        match peer {
            Some(peer) if is_known => Self::Until(peer.not_after() + EXPIRED_STAYS),
            _ => Self::For(STRANGER_STAYS),
        }
    }

    async fn ended(self) {
        match self {
            Self::Until(at) => clock::reached(at).await,
            Self::For(span) => sleep(span).await,
        }
    }
}

// === impl Greeter ===

impl Greeter {
    async fn greet(&self, tcp: TcpStream, address: SocketAddr, slot: Arc<Slot>) -> io::Result<TlsConnection> {
        // Until its first message is whole a stranger costs little, and there may be many.
        let begun = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp).await?;
        let handshake = self.handshakes.admit(&[Source::address(address.ip())]);
        let handshake = handshake.map_err(io::Error::other)?;
        let door = self.door.borrow().clone();
        let stream = tokio::select! {
            stream = begun.into_stream(door.config) => stream?,
            () = handshake.evicted() => return Err(crowded_out()),
        };
        let (_, tls) = stream.get_ref();
        let now = clock::now();
        let peer = match tls.peer_certificates() {
            None | Some([]) => None,
            Some(_) => Some(tls::verified_peer(&door.verifier, tls, PeerRole::Client, now).map_err(io::Error::other)?),
        };
        let is_known = peer.as_ref().is_some_and(|peer| (self.is_known)(peer));
        if is_known {
            slot.settle().map_err(io::Error::other)?;
        }
        let chain = tls.peer_certificates().unwrap_or_default();
        let chain = chain.iter().map(|der| der.clone().into_owned()).collect();
        let (stay, distrusted) = (
            Stay::of(peer.as_ref(), is_known),
            distrusted(self.door.clone(), door.verifier, chain),
        );
        let is_shown = peer.is_some();
        let ends = Box::pin(async move {
            tokio::select! {
                () = stay.ended() => {}
                () = distrusted, if is_shown => {}
            }
        });
        Ok(TlsConnection {
            stream: Held::new(stream, slot.clone()),
            caller: AgentCaller {
                peer,
                address,
                slot,
                refusals: Arc::clone(&self.refusals),
                calls: self.calls.clone(),
            },
            ends,
        })
    }
}

/// Returns when the trust bundle vouches for a peer no more, whose authority was revoked. The end of its certificate is another
/// matter.
async fn distrusted(
    mut doors: watch::Receiver<Door>,
    mut verifier: Arc<PeerVerifier>,
    chain: Vec<CertificateDer<'static>>,
) {
    loop {
        let next = Arc::clone(&doors.borrow_and_update().verifier);
        let before = std::mem::replace(&mut verifier, next);
        let has_all = before.bundles().iter().all(|before| {
            let now = verifier.bundles().get(before.trust_domain());
            now.is_some_and(|now| now.has_all_of(before))
        });
        if !has_all {
            let verified = verifier.verify(&chain, PeerRole::Client, clock::now());
            if let Err(reason) = verified.map_err(|reason| reason.code())
                && reason != "expired"
            {
                // An agent hears of it on this very connection, and comes back by its key.
                tokio::time::sleep(HEARD_WITHIN).await;
                tracing::warn!(
                    reason,
                    "ended a connection: the trust bundle does not vouch for its certificate any more"
                );
                return;
            }
        }
        if doors.changed().await.is_err() {
            std::future::pending::<()>().await; // the CA stops
        }
    }
}

// === impl AgentCaller ===

impl Begins for AgentCaller {
    type UnderWay = Busy;

    fn begin(&self) -> Result<Busy, Status> {
        Ok(self.slot.begin())
    }

    fn answered(&self, rpc: &str, code: &str) {
        self.calls.answered(rpc, code);
    }

    fn refused(&self, path: &str, reason: &str) {
        let address = self.address.ip();
        if let Some(refused) = self.refusals.count(address, clock::moment()) {
            tracing::warn!(target: "hoplite::audit", %address, path, reason, refused, outcome = "limited", "call");
        }
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
    fn only_who_is_known_may_stay() {
        let peer = TestAuthority::new("prod.example").peer("/hoplite/agent/n1");
        assert!(matches!(Stay::of(Some(&peer), true), Stay::Until(at) if at > SystemTime::now()));
        for stay in [Stay::of(Some(&peer), false), Stay::of(None, false)] {
            assert_eq!(stay, Stay::For(STRANGER_STAYS));
        }
    }
}
