//! Why a proxy does not start, or cannot go on.

use std::net::SocketAddr;

use hoplite_audit::RecorderError;
use hoplite_host::config::ConfigError;
use hoplite_host::files::FileError;
use hoplite_host::socket::BindError;
use hoplite_otlp::OtlpError;
use hoplite_telemetry::MetricsDoorError;

/// The operator's to mend: one sentence each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A listener's address cannot be had.
    #[error("cannot listen on `{listen}` for `{name}`: {source}; stop who holds the address or choose another")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// The service or upstream it is for.
        name: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// An outbound listener has nobody to call; [`Config::validate`](crate::Config::validate) says so earlier.
    #[error("`{name}` cannot be called: {reason}")]
    Destination {
        /// The upstream.
        name: String,
        /// What to write instead.
        reason: String,
    },
    /// The admin socket cannot be had.
    #[error(transparent)]
    Admin(#[from] BindError),
    /// The address for metrics cannot be had.
    #[error(transparent)]
    Metrics(#[from] MetricsDoorError),
    /// Nothing can be sent to the collector that is configured.
    #[error(transparent)]
    Otlp(#[from] OtlpError),
    /// The decision log cannot be opened, and a proxy that cannot record must not decide.
    #[error("cannot open the decision log `{dir}`", dir = .dir.display())]
    Audit {
        /// The directory.
        dir: std::path::PathBuf,
        /// Why not.
        source: RecorderError,
    },
    /// The directory for the policy that is kept cannot be used.
    #[error("`state_dir`: {0}")]
    State(#[from] FileError),
    /// The decision log can no longer be written: from there on every request would be refused.
    #[error(
        "the decision log `{dir}` can no longer be written, and nothing may be decided without a record",
        dir = .dir.display()
    )]
    Log {
        /// The directory.
        dir: std::path::PathBuf,
        /// What failed first.
        source: RecorderError,
    },
    /// The system refused a thread, a runtime or a limit.
    #[error("the system refused {what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}
