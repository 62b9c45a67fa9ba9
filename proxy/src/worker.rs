//! A worker: one runtime's share of every listener, with connections to upstreams of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use hoplite_decision::DecisionPoint;
use hoplite_host::accept::Acceptor;
use hoplite_host::shutdown::Shutdown;
use hoplite_host::slots::{Bounds, Slot, Slots};
use hoplite_otlp::Tracer;
use socket2::Socket;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::warn;

use crate::config::{Inbound as InboundConfig, InboundProtocol, Outbound as OutboundConfig, OutboundProtocol};
use crate::error::StartError;
use crate::forward::ForwardFeed;
use crate::http::inbound::Inbound;
use crate::http::outbound::Outbound;
use crate::http::rules::RulesFeed;
use crate::http::service::Service;
use crate::http::upstream::{Target, Upstream};
use crate::metrics::{Carried, Metrics, Traffic};
use crate::peer::destination::DestinationFeed;
use crate::peer::dial::Peer;
use crate::peer::handshake::{HANDSHAKES_MAX, Handshaker};
use crate::peer::identity_feed::IdentityFeed;
use crate::peer::session::Stop;
use crate::port::Kind;
use crate::share::{ByCaller, Places};
use crate::tcp::{TcpInbound, TcpOutbound};

/// Listeners that a worker has not begun with yet; who brings more waits for it.
const LISTENERS_WAITING_MAX: usize = 64;

/// What all workers share.
#[derive(Clone)]
pub(crate) struct Shared {
    identity: Arc<IdentityFeed>,
    point: Arc<DecisionPoint>,
    metrics: Arc<Metrics>,
    handshakes: Slots,
    rules: RulesFeed,
    tracer: Option<Arc<Tracer>>,
}

/// One worker before it runs.
pub(crate) struct Worker {
    close: Shutdown,
    metrics: Arc<Metrics>,
    /// Listeners come while it runs.
    listeners: mpsc::Receiver<Accepting>,
    asked: mpsc::Receiver<oneshot::Sender<()>>,
    question: Question,
}

/// Asks a worker whether it still works: only its own runtime can answer.
#[derive(Debug, Clone)]
pub(crate) struct Question(mpsc::Sender<oneshot::Sender<()>>);

/// One worker's share of a listener.
pub(crate) struct Accepting {
    /// For the log.
    pub(crate) name: String,
    pub(crate) socket: Socket,
    pub(crate) slots: Slots,
    /// What serves those who come now.
    pub(crate) server: watch::Receiver<Server>,
    /// Ends it: nobody new gets in.
    pub(crate) shutdown: Shutdown,
}

// === impl Shared ===

impl Shared {
    pub(crate) fn new(
        identity: Arc<IdentityFeed>,
        point: Arc<DecisionPoint>,
        metrics: Arc<Metrics>,
        rules: RulesFeed,
        tracer: Option<Arc<Tracer>>,
    ) -> Self {
        Self {
            identity,
            point,
            metrics,
            handshakes: Slots::new("handshakes", Bounds::network(HANDSHAKES_MAX, HANDSHAKES_MAX)),
            rules,
            tracer,
        }
    }

    /// Builds what serves one listener on one worker, until `stop`.
    pub(crate) fn server(&self, kind: &Kind, stop: Stop) -> Server {
        match kind {
            Kind::Inbound(config, forward) => self.inbound(config.clone(), forward.clone(), stop),
            Kind::Outbound(config, destination) => self.outbound(config.clone(), destination.clone(), stop),
        }
    }

    /// What serves peers.
    fn inbound(&self, config: InboundConfig, forward_to: Arc<ForwardFeed>, stop: Stop) -> Server {
        let InboundConfig { service, protocol, .. } = config;
        let (point, metrics) = (self.point.clone(), self.metrics.clone());
        let handshaker = Handshaker {
            identity: self.identity.clone(),
            under_way: self.handshakes.clone(),
            point: point.clone(),
            metrics: metrics.clone(),
        };
        match protocol {
            InboundProtocol::Tcp => Server::TcpInbound(Arc::new(TcpInbound {
                traffic: metrics.traffic(Carried::InboundTcp, service.as_str()),
                service,
                forward_to,
                places: Places::new(),
                callers: ByCaller::default(),
                handshaker,
                point,
                metrics,
                stop,
                rules: self.rules.clone(),
            })),
            InboundProtocol::Http | InboundProtocol::Http2 => Server::HttpInbound(Arc::new(Inbound {
                traffic: metrics.traffic(Carried::InboundHttp, service.as_str()),
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
                tracer: self.tracer.clone(),
            })),
        }
    }

    /// What serves the own service.
    fn outbound(&self, config: OutboundConfig, destination: Arc<DestinationFeed>, stop: Stop) -> Server {
        let OutboundConfig { name, protocol, .. } = config;
        let (point, metrics) = (self.point.clone(), self.metrics.clone());
        let unread = self.rules.current().unread.of(&destination.current().expect);
        let peer = Peer {
            destination,
            identity: self.identity.clone(),
        };
        match protocol {
            OutboundProtocol::Tcp => Server::TcpOutbound(Arc::new(TcpOutbound {
                traffic: metrics.traffic(Carried::OutboundTcp, name.as_str()),
                name,
                peer,
                point,
                metrics,
                stop,
                rules: self.rules.clone(),
            })),
            OutboundProtocol::Http => Server::HttpOutbound(Arc::new(Outbound {
                traffic: metrics.traffic(Carried::OutboundHttp, name.as_str()),
                name,
                upstream: Upstream::new(Target::Peer(peer), unread, self.rules.clone(), metrics.clone()),
                rules: self.rules.clone(),
                identity: self.identity.clone(),
                point,
                metrics,
                stop,
                tracer: self.tracer.clone(),
            })),
        }
    }
}

// === impl Worker ===

impl Worker {
    /// A worker, and the way on which it gets its share of each listener.
    pub(crate) fn new(close: Shutdown, metrics: Arc<Metrics>) -> (Self, mpsc::Sender<Accepting>) {
        let (sender, listeners) = mpsc::channel(LISTENERS_WAITING_MAX);
        let (question, asked) = mpsc::channel(1);
        let worker = Self {
            close,
            metrics,
            listeners,
            asked,
            question: Question(question),
        };
        (worker, sender)
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
        let mut accepting = JoinSet::new();
        loop {
            tokio::select! {
                () = self.close.wait() => return,
                Some(listener) = self.listeners.recv() => {
                    accepting.spawn(listener.accept(self.metrics.clone()));
                }
                Some(_ended) = accepting.join_next() => {}
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

// === impl Accepting ===

impl Accepting {
    async fn accept(self, metrics: Arc<Metrics>) {
        let listener = match TcpListener::from_std(self.socket.into()) {
            Ok(listener) => listener,
            Err(error) => return warn!(%error, "the runtime refuses a listener"),
        };
        let mut acceptor = Acceptor::new(listener, self.name, self.slots, self.shutdown);
        while let Some(((tcp, remote), slot)) = acceptor.next().await {
            let (server, counted) = (self.server.borrow().clone(), metrics.connection());
            server.traffic().accepted();
            tokio::spawn(async move {
                server.serve(tcp, remote, Arc::new(slot)).await;
                drop(counted);
            });
        }
    }
}

/// What serves the connections of one listener on one worker.
#[derive(Clone)]
pub(crate) enum Server {
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
