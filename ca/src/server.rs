//! A running CA: its parts, started in order and stopped together.

use std::net::SocketAddr;

use hoplite_host::config::ConfigError;
use hoplite_identity::TrustBundle;

use crate::Config;

/// A CA that serves. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct Running {
    node_address: SocketAddr,
    bundle: TrustBundle,
}

/// Why a CA did not start. One sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Starts a CA: makes the authority on the first start, and serves when this returns.
///
/// # Errors
/// [`StartError`], one sentence for the operator; nothing is half-written.
pub async fn start(config: Config) -> Result<Running, StartError> {
    let _ = config;
    todo!()
}

// === impl Running ===

impl Running {
    /// Where agents connect.
    pub fn node_address(&self) -> SocketAddr {
        self.node_address
    }

    /// What peers of this trust domain are verified with.
    pub fn bundle(&self) -> TrustBundle {
        self.bundle.clone()
    }

    /// Stops serving, and returns when all parts have ended and the store is closed.
    pub async fn stop(self) {
        todo!()
    }

    /// Returns when a part of it died, which should not happen: the caller restarts the process.
    pub async fn wait(&mut self) {
        todo!()
    }
}
