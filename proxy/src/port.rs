//! A configured listener, bound: who it is for, and its sockets.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use hoplite_host::slots::{Bounds, Slots};
use socket2::Socket;
use tracing::info;

use crate::config::{Inbound as InboundConfig, Outbound as OutboundConfig};
use crate::error::StartError;
use crate::forward::ForwardFeed;
use crate::listener;
use crate::peer::destination::DestinationFeed;

/// A listener with its sockets: one for each worker.
pub(crate) struct Port {
    pub(crate) kind: Kind,
    pub(crate) sockets: Vec<Socket>,
    /// Where it is.
    pub(crate) address: SocketAddr,
    /// One for each connection it may have, on all workers together.
    pub(crate) slots: Slots,
}

/// What a listener is for.
#[derive(Clone)]
pub(crate) enum Kind {
    /// And where the service is now.
    Inbound(InboundConfig, Arc<ForwardFeed>),
    /// And whom it calls now.
    Outbound(OutboundConfig, Arc<DestinationFeed>),
}

// === impl Port ===

impl Port {
    /// Binds `copies` sockets.
    ///
    /// # Errors
    /// The address cannot be had.
    pub(crate) fn bind(kind: Kind, copies: usize, connections_max: usize) -> Result<Self, StartError> {
        let listen = kind.listen();
        let bound = listener::bind(listen, copies).and_then(|sockets| {
            let first = sockets.first().ok_or_else(|| io::Error::other("no socket"))?;
            let address = listener::address(first)?;
            Ok((sockets, address))
        });
        let slots = Slots::new(kind.name(), kind.bounds(connections_max));
        match bound {
            Ok((sockets, address)) => Ok(Self {
                kind,
                sockets,
                address,
                slots,
            }),
            Err(source) => Err(kind.cannot_listen(listen, source)),
        }
    }

    /// From here on connections queue up.
    ///
    /// # Errors
    /// Another has begun to listen there.
    pub(crate) fn listen(&self) -> Result<(), StartError> {
        let all = self.sockets.iter().try_for_each(listener::listen);
        all.map_err(|source| self.kind.cannot_listen(self.address, source))
    }
}

// === impl Kind ===

impl Kind {
    pub(crate) fn inbound(config: InboundConfig) -> Self {
        let forward = ForwardFeed::new(config.forward_to.clone());
        Self::Inbound(config, Arc::new(forward))
    }

    /// # Errors
    /// Nobody can be called there; [`Config::validate`](crate::Config::validate) says so earlier.
    pub(crate) fn outbound(config: OutboundConfig) -> Result<Self, StartError> {
        let destination = config.destination().map_err(|source| StartError::Destination {
            name: config.name.to_string(),
            reason: source.to_string(),
        })?;
        Ok(Self::Outbound(config, Arc::new(DestinationFeed::new(destination))))
    }

    /// As the configuration says it: port 0 takes a free one.
    pub(crate) fn listen(&self) -> SocketAddr {
        match self {
            Self::Inbound(inbound, _) => inbound.listen,
            Self::Outbound(outbound, _) => outbound.listen,
        }
    }

    /// The service or the upstream.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Inbound(inbound, _) => inbound.service.as_str(),
            Self::Outbound(outbound, _) => outbound.name.as_str(),
        }
    }

    pub(crate) fn is_inbound(&self) -> bool {
        matches!(self, Self::Inbound(..))
    }

    /// Whom an outbound listener calls; none is an inbound one's.
    pub(crate) fn destination(&self) -> Option<&Arc<DestinationFeed>> {
        match self {
            Self::Inbound(..) => None,
            Self::Outbound(_, destination) => Some(destination),
        }
    }

    /// The table and key in the configuration that say where it listens.
    pub(crate) fn listen_key(&self) -> &'static str {
        match self {
            Self::Inbound(..) => "inbound.listen",
            Self::Outbound(..) => "outbound.listen",
        }
    }

    /// Whether what serves the one can serve the other: they differ only in what can be replaced below it.
    pub(crate) fn is_served_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Inbound(own, _), Self::Inbound(other, _)) => {
                own.service == other.service && own.protocol == other.protocol
            }
            (Self::Outbound(own, _), Self::Outbound(other, _)) => {
                own.name == other.name && own.protocol == other.protocol
            }
            _ => false,
        }
    }

    /// Whether both are of one service, or for one upstream.
    pub(crate) fn is_named_as(&self, other: &Self) -> bool {
        self.is_inbound() == other.is_inbound() && self.name() == other.name()
    }

    /// Becomes the other, which is [served](Self::is_served_as) alike: what is under way finishes where it is, and the next
    /// request or connection goes where the other says.
    pub(crate) fn take_over(&mut self, other: Self) {
        match (self, other) {
            (Self::Inbound(own, forward), Self::Inbound(other, _)) => {
                if own.forward_to != other.forward_to {
                    info!(notice = true, service = %other.service, forward_to = other.forward_to, "service moved");
                    forward.replace(&other.forward_to);
                }
                *own = other;
            }
            (Self::Outbound(own, destination), Self::Outbound(other, next)) => {
                let (before, next) = (destination.current(), next.current());
                if (&before.address, &before.expect) != (&next.address, &next.expect) {
                    info!(notice = true, upstream = %other.name, connect_to = other.connect_to, expect = %other.expect, "upstream redirected");
                    destination.replace(&next);
                }
                *own = other;
            }
            _ => {}
        }
    }

    /// How many connections such a listener may have.
    pub(crate) fn bounds(&self, connections_max: usize) -> Bounds {
        match self {
            // Behind one address may be a whole site, or one who takes all that there is.
            Self::Inbound(..) => Bounds::network(connections_max, connections_max.div_ceil(2)),
            // All come from the own machine.
            Self::Outbound(..) => Bounds::network(connections_max, connections_max),
        }
    }

    fn cannot_listen(&self, listen: SocketAddr, source: io::Error) -> StartError {
        StartError::Listen {
            listen,
            name: self.name().to_owned(),
            source,
        }
    }
}
