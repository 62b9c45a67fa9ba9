//! A worker: one runtime's share of every listener, with connections to upstreams of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use hoplite_decision::DecisionPoint;
use hoplite_host::accept::Acceptor;
use hoplite_host::slots::{Bounds, Slot, Slots};
use socket2::Socket;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tracing::warn;

use crate::config::{Inbound as InboundConfig, InboundProtocol, Outbound as OutboundConfig, OutboundProtocol};
use crate::error::StartError;
use crate::http::inbound::Inbound;
use crate::http::outbound::Outbound;
use crate::http::rules::HttpRules;
use crate::http::service::Service;
use crate::http::upstream::{Target, Upstream};
use crate::limits::limit;
use crate::listener;
use crate::metrics::{Metrics, Traffic};
use crate::peer::destination::{Destination, DestinationFeed};
use crate::peer::dial::Peer;
use crate::peer::handshake::{HANDSHAKES_MAX, Handshaker};
use crate::peer::identity_feed::IdentityFeed;
use crate::peer::session::Stop;
use crate::share::{ByCaller, Places};
use crate::tcp::{TcpInbound, TcpOutbound};

/// A configured listener with its sockets: one for each worker.
pub(crate) struct Port {
    kind: Kind,
    sockets: Vec<Socket>,
    /// Where it is.
    pub(crate) address: SocketAddr,
    /// One for each connection it may have, on all workers together.
    pub(crate) slots: Slots,
}

#[derive(Clone)]
enum Kind {
    Inbound(InboundConfig),
    /// And whom it calls now.
    Outbound(OutboundConfig, Arc<DestinationFeed>),
}

/// What all workers share.
#[derive(Clone)]
pub(crate) struct Shared {
    identity: Arc<IdentityFeed>,
    point: Arc<DecisionPoint>,
    metrics: Arc<Metrics>,
    handshakes: Slots,
    rules: Arc<HttpRules>,
    stop: Stop,
}

/// One worker before it runs.
pub(crate) struct Worker {
    shared: Shared,
    listeners: Vec<(Kind, Socket, Slots)>,
    asked: mpsc::Receiver<oneshot::Sender<()>>,
    question: Question,
}

/// Asks a worker whether it still works: only its own runtime can answer.
#[derive(Debug, Clone)]
pub(crate) struct Question(mpsc::Sender<oneshot::Sender<()>>);

// === impl Port ===

impl Port {
    pub(crate) fn bind_inbound(
        config: InboundConfig,
        copies: usize,
        connections_max: usize,
    ) -> Result<Self, StartError> {
        // Behind one address may be a whole site, or one who takes all that there is.
        let bounds = Bounds::network(connections_max, connections_max.div_ceil(2));
        Self::bind(Kind::Inbound(config), copies, bounds)
    }

    pub(crate) fn bind_outbound(
        config: OutboundConfig,
        destination: Destination,
        copies: usize,
        connections_max: usize,
    ) -> Result<Self, StartError> {
        let destination = Arc::new(DestinationFeed::new(destination));
        // All come from the own machine.
        let bounds = Bounds::network(connections_max, connections_max);
        Self::bind(Kind::Outbound(config, destination), copies, bounds)
    }

    fn bind(kind: Kind, copies: usize, bounds: Bounds) -> Result<Self, StartError> {
        let listen = kind.listen();
        let bound = listener::bind(listen, copies).and_then(|sockets| {
            let first = sockets.first().ok_or_else(|| std::io::Error::other("no socket"))?;
            let address = listener::address(first)?;
            Ok((sockets, address))
        });
        let slots = Slots::new(kind.name(), bounds);
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

    /// Whom an outbound listener calls; none is an inbound one's.
    pub(crate) fn destination(&self) -> Option<&Arc<DestinationFeed>> {
        match &self.kind {
            Kind::Inbound(_) => None,
            Kind::Outbound(_, destination) => Some(destination),
        }
    }
}

// === impl Kind ===

impl Kind {
    fn listen(&self) -> SocketAddr {
        match self {
            Self::Inbound(inbound) => inbound.listen,
            Self::Outbound(outbound, _) => outbound.listen,
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Inbound(inbound) => inbound.service.as_str(),
            Self::Outbound(outbound, _) => outbound.name.as_str(),
        }
    }
}

// === impl Shared ===

impl Shared {
    pub(crate) fn new(
        identity: Arc<IdentityFeed>,
        point: Arc<DecisionPoint>,
        metrics: Arc<Metrics>,
        rules: HttpRules,
        stop: Stop,
    ) -> Self {
        Self {
            identity,
            point,
            metrics,
            handshakes: Slots::new("handshakes", Bounds::network(HANDSHAKES_MAX, HANDSHAKES_MAX)),
            rules: Arc::new(rules),
            stop,
        }
    }
}

// === impl Worker ===

impl Worker {
    /// Gives every worker one socket of every port.
    pub(crate) fn divide(ports: Vec<Port>, workers: usize, shared: &Shared) -> Vec<Self> {
        let mut divided: Vec<Self> = (0..workers)
            .map(|_| {
                let (question, asked) = mpsc::channel(1);
                Self {
                    shared: shared.clone(),
                    listeners: Vec::new(),
                    asked,
                    question: Question(question),
                }
            })
            .collect();
        for port in ports {
            for (worker, socket) in divided.iter_mut().zip(port.sockets) {
                worker.listeners.push((port.kind.clone(), socket, port.slots.clone()));
            }
        }
        divided
    }

    /// Asks it whether it works.
    pub(crate) fn question(&self) -> Question {
        self.question.clone()
    }

    /// Runs on a thread of its own.
    pub(crate) fn thread(self, end: mpsc::Sender<()>) -> Result<JoinHandle<()>, StartError> {
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
    pub(crate) async fn run(mut self, end: mpsc::Sender<()>) {
        let _said = SaysItsEnd(end);
        let mut close = self.shared.stop.close.clone();
        let mut accepting = JoinSet::new();
        for (kind, socket, slots) in self.listeners {
            accepting.spawn(self.shared.accept(kind, socket, slots));
        }
        loop {
            tokio::select! {
                () = close.wait() => return,
                Some(answer) = self.asked.recv() => {
                    // Who asked may have gone.
                    let _ = answer.send(());
                }
            }
        }
    }
}

// === impl Question ===

impl Question {
    /// Returns when the worker has answered; never, if it hangs or has ended.
    pub(crate) async fn answered(self) {
        let (answer, answered) = oneshot::channel();
        if self.0.send(answer).await.is_err() || answered.await.is_err() {
            std::future::pending().await
        }
    }
}

// === impl Shared ===

impl Shared {
    /// Builds what serves one listener, and accepts for it.
    fn accept(&self, kind: Kind, socket: Socket, slots: Slots) -> impl Future<Output = ()> + Send + 'static {
        let name = kind.name().to_owned();
        let server = match kind {
            Kind::Inbound(config) => self.inbound(config),
            Kind::Outbound(config, destination) => self.outbound(config, destination),
        };
        let (metrics, drain) = (self.metrics.clone(), self.stop.drain.clone());
        async move {
            let listener = match TcpListener::from_std(socket.into()) {
                Ok(listener) => listener,
                Err(error) => return warn!(%error, "the runtime refuses a listener"),
            };
            let mut acceptor = Acceptor::new(listener, name, slots, drain);
            while let Some(((tcp, remote), slot)) = acceptor.next().await {
                server.traffic().accepted();
                let (server, counted) = (server.clone(), metrics.connection());
                tokio::spawn(async move {
                    server.serve(tcp, remote, Arc::new(slot)).await;
                    drop(counted);
                });
            }
        }
    }

    /// What serves peers.
    fn inbound(&self, config: InboundConfig) -> Server {
        let InboundConfig {
            service,
            protocol,
            forward_to,
            ..
        } = config;
        let (point, metrics, stop) = (self.point.clone(), self.metrics.clone(), self.stop.clone());
        let handshaker = Handshaker {
            identity: self.identity.clone(),
            under_way: self.handshakes.clone(),
            point: point.clone(),
            metrics: metrics.clone(),
        };
        match protocol {
            InboundProtocol::Tcp => Server::TcpInbound(Arc::new(TcpInbound {
                traffic: metrics.traffic(true, service.as_str()),
                service,
                forward_to,
                places: Places::new(),
                callers: ByCaller::default(),
                handshaker,
                point,
                metrics,
                stop,
                idle_max: limit(self.rules.limits.tcp_idle),
            })),
            InboundProtocol::Http | InboundProtocol::Http2 => Server::HttpInbound(Arc::new(Inbound {
                traffic: metrics.traffic(true, service.as_str()),
                service,
                handshaker,
                point,
                metrics,
                app: Service::new(
                    forward_to,
                    protocol == InboundProtocol::Http2,
                    self.rules.clone(),
                    self.metrics.clone(),
                ),
                rules: self.rules.clone(),
                turns: Semaphore::new(1),
                stop,
            })),
        }
    }

    /// What serves the own service.
    fn outbound(&self, config: OutboundConfig, destination: Arc<DestinationFeed>) -> Server {
        let OutboundConfig { name, protocol, .. } = config;
        let (point, metrics, stop) = (self.point.clone(), self.metrics.clone(), self.stop.clone());
        let unread = self.rules.unread.of(&destination.current().expect);
        let peer = Peer {
            destination,
            identity: self.identity.clone(),
        };
        match protocol {
            OutboundProtocol::Tcp => Server::TcpOutbound(Arc::new(TcpOutbound {
                traffic: metrics.traffic(false, name.as_str()),
                name,
                peer,
                point,
                metrics,
                stop,
                idle_max: limit(self.rules.limits.tcp_idle),
            })),
            OutboundProtocol::Http => Server::HttpOutbound(Arc::new(Outbound {
                traffic: metrics.traffic(false, name.as_str()),
                name,
                upstream: Upstream::new(Target::Peer(peer), unread, self.rules.clone(), metrics.clone()),
                rules: self.rules.clone(),
                identity: self.identity.clone(),
                point,
                metrics,
                stop,
            })),
        }
    }
}

/// What serves the connections of one listener on one worker.
#[derive(Clone)]
enum Server {
    HttpInbound(Arc<Inbound>),
    HttpOutbound(Arc<Outbound>),
    TcpInbound(Arc<TcpInbound>),
    TcpOutbound(Arc<TcpOutbound>),
}

// === impl Server ===

impl Server {
    fn traffic(&self) -> &Traffic {
        match self {
            Self::HttpInbound(inbound) => &inbound.traffic,
            Self::HttpOutbound(outbound) => &outbound.traffic,
            Self::TcpInbound(inbound) => &inbound.traffic,
            Self::TcpOutbound(outbound) => &outbound.traffic,
        }
    }

    async fn serve(self, tcp: TcpStream, remote: SocketAddr, slot: Arc<Slot>) {
        match self {
            Self::HttpInbound(inbound) => inbound.serve(tcp, remote, slot).await,
            Self::HttpOutbound(outbound) => outbound.serve(tcp, remote, slot).await,
            Self::TcpInbound(inbound) => inbound.serve(tcp, remote, slot).await,
            Self::TcpOutbound(outbound) => outbound.serve(tcp, remote, slot).await,
        }
    }
}

/// Says that a worker has ended, however it did.
struct SaysItsEnd(mpsc::Sender<()>);

// === impl SaysItsEnd ===

impl Drop for SaysItsEnd {
    fn drop(&mut self) {
        let _ = self.0.try_send(());
    }
}
