//! How a daemon is known to a collector, and what can be wrong about the collector.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use hoplite_identity::SpiffeId;
use rustls::ClientConfig;

/// Gives, for the next connection to who has to have this SPIFFE ID, the configuration with the own SVID of the moment.
pub type ByIdentity = Arc<dyn Fn(&SpiffeId) -> io::Result<Arc<ClientConfig>> + Send + Sync>;

/// Why nothing can be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OtlpError {
    /// The program cannot.
    #[error("`[otlp]`: this program was built without OTLP; build it with the feature `otlp`, or take the section out")]
    NotBuilt,
    /// The authorities of the web cannot be had.
    #[error(
        "the authorities that `[otlp] endpoint = {endpoint}` is verified with cannot be read from `{file}`: {reason}; name a PEM file with `ca_file`"
    )]
    Authorities {
        /// The collector.
        endpoint: String,
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The address or TLS.
    #[error("`[otlp] endpoint = {endpoint}` cannot be used: {reason}")]
    Endpoint {
        /// The collector.
        endpoint: String,
        /// What is wrong.
        reason: String,
    },
}
