//! The admin socket: status for people, metrics for machines. Read only, and only for the own user.

use std::path::{Path, PathBuf};

/// Why a proxy's status cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// Nobody answers.
    #[error("cannot reach the proxy at `{path}`: {source}; is it running?", path = .path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Somebody answers something else.
    #[error("`{path}` does not answer like a proxy: {reason}", path = .path.display())]
    Strange {
        /// The socket.
        path: PathBuf,
        /// What was wrong.
        reason: String,
    },
}

/// Asks a running proxy for its `/status`.
pub async fn admin_status(socket: &Path) -> Result<serde_json::Value, AdminError> {
    Err(AdminError::Strange { path: socket.to_owned(), reason: String::new() })
}
