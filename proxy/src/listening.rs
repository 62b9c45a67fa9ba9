//! The listeners of a proxy that runs: they come, change and go while it does.
//!
//! A listener is known by its address. Whatever else changes of it, its socket stays, and nobody who connects meanwhile is
//! refused. First a [`Plan`] is made, in which all that can fail has been done; to carry it out cannot fail.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hoplite_host::shutdown::{self, Shutdown, Stopper};
use hoplite_host::slots::Slots;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::error::StartError;
use crate::metrics::Metrics;
use crate::peer::destination::DestinationFeed;
use crate::peer::session::Stop;
use crate::port::{Kind, Port};
use crate::worker::{Accepting, Server, Shared};

/// What is under way may take this long to finish, when its listener goes or the proxy stops.
pub(crate) const DRAIN_MAX: Duration = Duration::from_secs(10);

/// All of them. Dropping this closes everything at once.
pub(crate) struct Listeners {
    shared: Shared,
    metrics: Arc<Metrics>,
    workers: Vec<mpsc::Sender<Accepting>>,
    all: Vec<Listening>,
    /// For the status.
    shown: watch::Sender<Vec<Shown>>,
    /// What is gone and finishes; each ends by itself.
    leaving: JoinSet<()>,
}

/// A listener as the status shows it.
#[derive(Clone)]
pub(crate) struct Shown {
    pub(crate) kind: Kind,
    pub(crate) address: SocketAddr,
}

/// What is to become of the listeners there are, in the order of the configuration: none of what it needs is missing.
pub(crate) struct Plan {
    steps: Vec<Step>,
    connections_max: usize,
}

/// An address that cannot be had, and the key that wants it.
#[derive(Debug)]
pub(crate) struct CannotListen {
    pub(crate) key: &'static str,
    pub(crate) listen: SocketAddr,
    pub(crate) why: Box<StartError>,
}

enum Step {
    /// A socket that there is, by its index, serves this.
    Keep(usize, Kind),
    /// A socket that listens already.
    New(Port),
}

/// One listener.
struct Listening {
    kind: Kind,
    address: SocketAddr,
    slots: Slots,
    /// What serves whoever comes, on each worker.
    servers: Vec<watch::Sender<Server>>,
    accepting: Stopper,
    connections: Connections,
}

/// Ends what was accepted for one server.
struct Connections {
    drain: Stopper,
    close: Stopper,
}

// === impl Listeners ===

impl Listeners {
    /// Serves ports that listen already, in the order of the configuration.
    pub(crate) async fn serve(
        ports: Vec<Port>,
        workers: Vec<mpsc::Sender<Accepting>>,
        shared: Shared,
        metrics: Arc<Metrics>,
        shown: watch::Sender<Vec<Shown>>,
    ) -> Self {
        let mut listeners = Self {
            shared,
            metrics,
            workers,
            all: Vec::new(),
            shown,
            leaving: JoinSet::new(),
        };
        for port in ports {
            let listening = listeners.begin(port).await;
            listeners.all.push(listening);
        }
        listeners.show();
        listeners
    }

    /// Does all that can fail of becoming so, and changes nothing.
    ///
    /// # Errors
    /// An address that cannot be had.
    pub(crate) fn plan(&self, wanted: Vec<Kind>, connections_max: usize) -> Result<Plan, CannotListen> {
        let mut free: Vec<Option<&Listening>> = self.all.iter().map(Some).collect();
        // Listeners with port 0 are known by their names, and first, so that none takes another's.
        let mut found: Vec<Option<usize>> = vec![None; wanted.len()];
        for by_name in [true, false] {
            for (kind, found) in wanted.iter().zip(&mut found).filter(|(_, found)| found.is_none()) {
                let is_it = |held: &&Listening| {
                    held.kind.listen() == kind.listen()
                        && (!by_name && kind.listen().port() != 0 || held.kind.is_named_as(kind))
                };
                let index = free.iter().position(|held| held.as_ref().is_some_and(is_it));
                if let Some(place) = index.and_then(|index| free.get_mut(index)) {
                    *place = None;
                    *found = index;
                }
            }
        }
        let mut steps = Vec::new();
        for (kind, found) in wanted.into_iter().zip(found) {
            steps.push(match found {
                Some(index) => Step::Keep(index, kind),
                None => {
                    let bound = Port::bind(kind.clone(), self.workers.len(), connections_max)
                        .and_then(|port| port.listen().map(|()| port));
                    Step::New(bound.map_err(|why| CannotListen {
                        key: kind.listen_key(),
                        listen: kind.listen(),
                        why: Box::new(why),
                    })?)
                }
            });
        }
        Ok(Plan { steps, connections_max })
    }

    /// Becomes as planned. What is gone takes nothing new, and what is under way there has [`DRAIN_MAX`] to finish.
    pub(crate) async fn carry_out(&mut self, plan: Plan) {
        while self.leaving.try_join_next().is_some() {}
        let mut before: Vec<Option<Listening>> = std::mem::take(&mut self.all).into_iter().map(Some).collect();
        for step in plan.steps {
            let listening = match step {
                Step::New(port) => {
                    info!(notice = true, name = port.kind.name(), address = %port.address, inbound = port.kind.is_inbound(), "listener added");
                    self.begin(port).await
                }
                Step::Keep(index, kind) => {
                    let Some(mut listening) = before.get_mut(index).and_then(Option::take) else {
                        continue; // each index stands in a plan once
                    };
                    self.change(&mut listening, kind, plan.connections_max);
                    listening
                }
            };
            self.all.push(listening);
        }
        for gone in before.into_iter().flatten() {
            info!(
                notice = true,
                name = gone.kind.name(),
                address = %gone.address,
                "listener removed: it takes nobody new, and who is there has {} s to finish",
                DRAIN_MAX.as_secs()
            );
            gone.accepting.stop();
            self.leave(gone.connections, Some(gone.slots));
        }
        self.show();
    }

    /// What of a listener may differ while its socket stays.
    fn change(&mut self, listening: &mut Listening, next: Kind, connections_max: usize) {
        listening.slots.change(next.name(), next.bounds(connections_max));
        if listening.kind.is_served_as(&next) {
            return listening.kind.take_over(next);
        }
        info!(
            notice = true,
            before = listening.kind.name(),
            name = next.name(),
            address = %listening.address,
            "listener changed: who comes now is served anew, and who is there has {} s to finish",
            DRAIN_MAX.as_secs()
        );
        let (connections, stop) = Connections::new();
        for server in &listening.servers {
            let _ = server.send(self.shared.server(&next, stop.clone()));
        }
        listening.kind = next;
        let before = std::mem::replace(&mut listening.connections, connections);
        self.leave(before, None);
    }

    /// Lets connections finish, and closes what is left of them. Where they have their places alone, it is known when none
    /// is left.
    fn leave(&mut self, connections: Connections, slots: Option<Slots>) {
        connections.drain.stop();
        let metrics = self.metrics.clone();
        self.leaving.spawn(async move {
            let drained = async {
                match &slots {
                    Some(slots) => slots.drained().await,
                    None => std::future::pending().await,
                }
            };
            if timeout(DRAIN_MAX, drained).await.is_err() && slots.is_some() {
                warn!(
                    "connections of a listener that was removed were still open after {} s and are closed",
                    DRAIN_MAX.as_secs()
                );
            }
            connections.close.stop();
            if let Some(slots) = &slots {
                metrics.unwatch(slots);
            }
        });
    }

    async fn begin(&self, port: Port) -> Listening {
        let Port {
            kind,
            sockets,
            address,
            slots,
        } = port;
        self.metrics.watch(slots.clone());
        let (accepting, shutdown) = shutdown::channel();
        let (connections, stop) = Connections::new();
        let mut servers = Vec::new();
        for (worker, socket) in self.workers.iter().zip(sockets) {
            let (sender, server) = watch::channel(self.shared.server(&kind, stop.clone()));
            let share = Accepting {
                name: kind.name().to_owned(),
                socket,
                slots: slots.clone(),
                server,
                shutdown: shutdown.clone(),
            };
            // A worker that is gone ends the proxy, which says so.
            let _ = worker.send(share).await;
            servers.push(sender);
        }
        Listening {
            kind,
            address,
            slots,
            servers,
            accepting,
            connections,
        }
    }

    fn show(&self) {
        let shown = self.all.iter().map(|listening| Shown {
            kind: listening.kind.clone(),
            address: listening.address,
        });
        self.shown.send_replace(shown.collect());
    }

    /// Accepts nothing new, and waits until nothing is under way, for so long at most. Whether that was enough.
    pub(crate) async fn drain(&mut self, within: Duration) -> bool {
        for listening in &self.all {
            listening.accepting.stop();
            listening.connections.drain.stop();
        }
        let drained = async {
            for listening in &self.all {
                listening.slots.drained().await;
            }
            while self.leaving.join_next().await.is_some() {}
        };
        timeout(within, drained).await.is_ok()
    }

    /// Services, and upstreams, each with where its listener is.
    pub(crate) fn names(&self) -> (Vec<String>, Vec<String>) {
        let named = |listening: &&Listening| format!("{} on {}", listening.kind.name(), listening.address);
        let (inbound, outbound): (Vec<_>, Vec<_>) = self.all.iter().partition(|listening| listening.kind.is_inbound());
        (
            inbound.iter().map(named).collect(),
            outbound.iter().map(named).collect(),
        )
    }

    /// Where the listener of a service is, or the one for an upstream.
    pub(crate) fn address(&self, inbound: bool, name: &str) -> Option<SocketAddr> {
        let mut all = self.all.iter();
        let found = all.find(|listening| listening.kind.is_inbound() == inbound && listening.kind.name() == name);
        found.map(|listening| listening.address)
    }

    /// Whom the listener for an upstream calls.
    pub(crate) fn destination(&self, upstream: &str) -> Option<&DestinationFeed> {
        let mut outbound = self.all.iter().filter(|listening| !listening.kind.is_inbound());
        let found = outbound.find(|listening| listening.kind.name() == upstream)?;
        found.kind.destination().map(|destination| &**destination)
    }
}

impl std::fmt::Debug for Listeners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = self
            .all
            .iter()
            .map(|listening| (listening.kind.name(), listening.address));
        f.debug_map().entries(all).finish()
    }
}

// === impl Connections ===

impl Connections {
    fn new() -> (Self, Stop) {
        let ((drain, drained), (close, closed)): ((Stopper, Shutdown), (Stopper, Shutdown)) =
            (shutdown::channel(), shutdown::channel());
        let stop = Stop {
            drain: drained,
            close: closed,
        };
        (Self { drain, close }, stop)
    }
}
