//! The whole proxy, from its configuration to its end.

use std::net::SocketAddr;

use crate::{Config, StartError};

/// A proxy that accepts. Dropping it stops it at once; [`Running::stop`] drains first.
#[derive(Debug)]
pub struct Running {}

/// Runs until SIGTERM or SIGINT: control on this thread, traffic on `workers` threads of their own.
pub fn run(_config: Config) -> Result<(), StartError> {
    Ok(())
}

/// Starts on the current runtime. Returns when every listener is bound and the first SVID is held; as long as the agent
/// is away, it waits and says so.
pub async fn start(_config: Config) -> Result<Running, StartError> {
    Ok(Running {})
}

impl Running {
    /// Where the listener of a service is.
    pub fn inbound(&self, _service: &str) -> Option<SocketAddr> {
        None
    }

    /// Where the listener for an upstream is.
    pub fn outbound(&self, _name: &str) -> Option<SocketAddr> {
        None
    }

    /// Accepts nothing new, lets what is under way finish for a bounded time, then closes the rest.
    pub async fn stop(self) {}

    /// Returns when the proxy has ended by itself, which it does only by a fault of its own.
    pub async fn wait(&mut self) {}
}
