//! One per node: attests itself and its workloads, and keeps them supplied.

mod config;
mod launch;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

pub use config::Config;
pub use launch::{Launcher, LauncherError};

/// A running agent. Dropping it stops it.
#[derive(Debug)]
pub struct Running {
    socket: PathBuf,
}

/// Why an agent cannot start. One sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The launcher channel is no Unix socket.
    #[error("standard input is no Unix socket; only a supervisor can start an agent with a launcher channel")]
    Launcher(#[source] io::Error),
}

/// Starts an agent.
pub async fn start(config: Config, launcher: Option<UnixStream>) -> Result<Running, StartError> {
    let _ = (launcher, config.socket_mode());
    Ok(Running { socket: config.socket })
}

/// Runs an agent until it is told to stop.
pub async fn run(config: Config, launcher: Option<UnixStream>) -> Result<(), StartError> {
    let mut running = start(config, launcher).await?;
    running.wait().await;
    running.stop().await;
    Ok(())
}

/// The launcher channel on standard input.
pub fn launcher_on_stdin() -> Result<UnixStream, StartError> {
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned().map_err(StartError::Launcher)?);
    stream.local_addr().map_err(StartError::Launcher)?;
    Ok(stream)
}

impl Running {
    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
    /// Ready.
    pub async fn ready(&mut self) -> bool {
        true
    }
    /// Waits for the end.
    pub async fn wait(&mut self) {}
    /// Stops.
    pub async fn stop(self) {}
}
