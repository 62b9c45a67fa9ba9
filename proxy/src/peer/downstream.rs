//! Who is at the other end of a connection that was accepted.

use std::fmt;
use std::net::SocketAddr;

use hoplite_decision::Witness;
use hoplite_identity::VerifiedPeer;
use hoplite_policy::Transport;

/// The caller of an inbound listener, as it is decided on, recorded and logged.
#[derive(Debug, Clone)]
pub(crate) struct Downstream {
    /// Its address.
    pub(crate) remote: SocketAddr,
    who: Who,
}

/// What is known of a caller. One way to be known is all there is: whoever adds another is told by the compiler what has
/// to be decided for it.
#[derive(Debug, Clone)]
enum Who {
    /// It has proved by mutual TLS who it is.
    Verified {
        peer: VerifiedPeer,
        /// Version and key exchange, for the record.
        tls: String,
    },
}

// === impl Downstream ===

impl Downstream {
    /// It has proved who it is, over a TLS connection with this version and key exchange.
    pub(crate) fn verified(peer: VerifiedPeer, tls: String, remote: SocketAddr) -> Self {
        Self {
            remote,
            who: Who::Verified { peer, tls },
        }
    }

    /// The evidence of who it is, for what must not be said without; none of a caller that has shown none.
    pub(crate) fn peer(&self) -> Option<&VerifiedPeer> {
        match &self.who {
            Who::Verified { peer, .. } => Some(peer),
        }
    }

    /// What the decision point is told of it.
    pub(crate) fn witness(&self) -> Witness<'_> {
        match &self.who {
            Who::Verified { peer, tls } => Witness::Own { peer, tls },
        }
    }

    /// What policies see of where it calls from.
    pub(crate) fn transport(&self) -> Transport {
        Transport::new(self.remote.ip())
    }
}

/// For the log.
impl fmt::Display for Downstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::Verified { peer, .. } => peer.spiffe_id().fmt(f),
        }
    }
}
