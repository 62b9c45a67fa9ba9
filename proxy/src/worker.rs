//! A worker: one runtime's share of every listener, with connections to upstreams of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use socket2::Socket;
use tokio::net::TcpStream;
use tokio::runtime;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::config::{Inbound as InboundConfig, InboundProtocol, Outbound as OutboundConfig, OutboundProtocol};
use crate::dial::Peer;
use crate::enforce::Enforcer;
use crate::error::StartError;
use crate::handshake::{Handshaker, UnderWay};
use crate::identity_feed::IdentityFeed;
use crate::inbound::Inbound;
use crate::listener::{self, CONNECTIONS_MAX};
use crate::outbound::Outbound;
use crate::session::Stop;
use crate::tcp::{TcpInbound, TcpOutbound};
use crate::upstream::{Target, Upstream};

/// A configured listener with its sockets: one for each worker.
pub(crate) struct Port {
    kind: Kind,
    sockets: Vec<Socket>,
    /// Where it is.
    pub(crate) address: SocketAddr,
    /// One for each connection it may have.
    pub(crate) slots: Arc<Semaphore>,
}

#[derive(Clone)]
enum Kind {
    Inbound(InboundConfig),
    Outbound(OutboundConfig),
}

/// What all workers share.
#[derive(Clone)]
pub(crate) struct Shared {
    identity: Arc<IdentityFeed>,
    enforcer: Arc<Enforcer>,
    handshakes: Arc<UnderWay>,
    stop: Stop,
}

/// One worker before it runs.
pub(crate) struct Worker {
    shared: Shared,
    listeners: Vec<(Kind, Socket, Arc<Semaphore>)>,
}

// === impl Port ===

impl Port {
    pub(crate) fn bind_inbound(config: InboundConfig, copies: usize) -> Result<Self, StartError> {
        Self::bind(Kind::Inbound(config), copies)
    }

    pub(crate) fn bind_outbound(config: OutboundConfig, copies: usize) -> Result<Self, StartError> {
        Self::bind(Kind::Outbound(config), copies)
    }

    fn bind(kind: Kind, copies: usize) -> Result<Self, StartError> {
        let listen = kind.listen();
        let bound = listener::bind(listen, copies).and_then(|sockets| {
            let first = sockets.first().ok_or_else(|| std::io::Error::other("no socket"))?;
            let address = listener::address(first)?;
            Ok((sockets, address))
        });
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX as usize));
        match bound {
            Ok((sockets, address)) => Ok(Self {
                kind,
                sockets,
                address,
                slots,
            }),
            Err(source) => Err(StartError::Listen {
                listen,
                name: kind.name().to_owned(),
                source,
            }),
        }
    }

    /// From here on connections queue up.
    pub(crate) fn listen(&self) -> Result<(), StartError> {
        self.sockets
            .iter()
            .try_for_each(listener::listen)
            .map_err(|source| StartError::Listen {
                listen: self.address,
                name: self.name().to_owned(),
                source,
            })
    }

    /// The service or the upstream.
    pub(crate) fn name(&self) -> &str {
        self.kind.name()
    }

    pub(crate) fn is_inbound(&self) -> bool {
        matches!(self.kind, Kind::Inbound(_))
    }
}

// === impl Kind ===

impl Kind {
    fn listen(&self) -> SocketAddr {
        match self {
            Self::Inbound(inbound) => inbound.listen,
            Self::Outbound(outbound) => outbound.listen,
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Inbound(inbound) => &inbound.service,
            Self::Outbound(outbound) => &outbound.name,
        }
    }
}

// === impl Shared ===

impl Shared {
    pub(crate) fn new(identity: Arc<IdentityFeed>, enforcer: Arc<Enforcer>, stop: Stop) -> Self {
        Self {
            identity,
            enforcer,
            handshakes: Arc::default(),
            stop,
        }
    }
}

// === impl Worker ===

impl Worker {
    /// Gives every worker one socket of every port.
    pub(crate) fn divide(ports: Vec<Port>, workers: usize, shared: &Shared) -> Vec<Self> {
        let mut divided: Vec<Self> = (0..workers)
            .map(|_| Self {
                shared: shared.clone(),
                listeners: Vec::new(),
            })
            .collect();
        for port in ports {
            for (worker, socket) in divided.iter_mut().zip(port.sockets) {
                worker.listeners.push((port.kind.clone(), socket, port.slots.clone()));
            }
        }
        divided
    }

    /// Runs on a thread of its own.
    pub(crate) fn thread(self, end: mpsc::UnboundedSender<()>) -> Result<JoinHandle<()>, StartError> {
        let refused = |what| move |source| StartError::System { what, source };
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(refused("a runtime"))?;
        thread::Builder::new()
            .name("worker".to_owned())
            .spawn(move || runtime.block_on(self.run(end)))
            .map_err(refused("a thread for traffic"))
    }

    /// Accepts until the proxy closes.
    pub(crate) async fn run(self, end: mpsc::UnboundedSender<()>) {
        let _said = SaysItsEnd(end);
        let mut close = self.shared.stop.close.clone();
        let mut accepting = JoinSet::new();
        for (kind, socket, slots) in self.listeners {
            accepting.spawn(self.shared.accept(kind, socket, slots));
        }
        close.wait().await;
    }
}

impl Shared {
    /// Builds what serves one listener, and accepts for it.
    fn accept(&self, kind: Kind, socket: Socket, slots: Arc<Semaphore>) -> impl Future<Output = ()> + Send + 'static {
        let Self {
            identity,
            enforcer,
            handshakes,
            stop,
        } = self.clone();
        let metrics = enforcer.metrics().clone();
        let handshaker = Handshaker {
            identity: identity.clone(),
            under_way: handshakes,
        };
        let drain = stop.drain.clone();
        let serve: Box<dyn Fn(TcpStream, SocketAddr) -> Serving + Send + Sync> = match kind {
            Kind::Inbound(InboundConfig {
                service,
                protocol: InboundProtocol::Tcp,
                forward_to,
                ..
            }) => {
                let inbound = Arc::new(TcpInbound {
                    service,
                    forward_to,
                    handshaker,
                    enforcer,
                    stop,
                });
                Box::new(move |tcp, remote| Box::pin(inbound.clone().serve(tcp, remote)))
            }
            Kind::Inbound(InboundConfig {
                service,
                protocol,
                forward_to,
                ..
            }) => {
                let target = Target::Service {
                    address: forward_to,
                    http2: protocol == InboundProtocol::Http2,
                };
                let inbound = Arc::new(Inbound {
                    service,
                    handshaker,
                    enforcer,
                    app: Upstream::new(target),
                    turns: Semaphore::new(1),
                    stop,
                });
                Box::new(move |tcp, remote| Box::pin(inbound.clone().serve(tcp, remote)))
            }
            Kind::Outbound(OutboundConfig {
                name,
                protocol,
                connect_to,
                expect,
                ..
            }) => {
                let (peer, metrics) = (
                    Peer {
                        address: connect_to,
                        expect,
                        identity,
                    },
                    metrics.clone(),
                );
                match protocol {
                    OutboundProtocol::Tcp => {
                        let outbound = Arc::new(TcpOutbound {
                            name,
                            peer,
                            metrics,
                            stop,
                        });
                        Box::new(move |tcp, remote| Box::pin(outbound.clone().serve(tcp, remote)))
                    }
                    OutboundProtocol::Http => {
                        let outbound = Arc::new(Outbound {
                            name,
                            upstream: Upstream::new(Target::Peer(peer)),
                            metrics,
                            stop,
                        });
                        Box::new(move |tcp, remote| Box::pin(outbound.clone().serve(tcp, remote)))
                    }
                }
            }
        };
        listener::accept(socket, slots, drain, move |tcp, remote, slot| {
            let (serving, counted) = (serve(tcp, remote), metrics.connection());
            tokio::spawn(async move {
                serving.await;
                drop((slot, counted));
            });
        })
    }
}

/// One connection being served.
type Serving = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Says that a worker has ended, however it did.
struct SaysItsEnd(mpsc::UnboundedSender<()>);

// === impl SaysItsEnd ===

impl Drop for SaysItsEnd {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}
