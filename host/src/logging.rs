//! Logs: lines for people on a terminal, JSON for machines, always to standard error.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// What a line looks like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines for people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// Installs the subscriber of this process. `HOPLITE_LOG` sets levels, for example `info,hoplite_proxy=debug`.
pub fn init(format: Format) {
    let filter = EnvFilter::try_from_env("HOPLITE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // A second call (two daemons in one test process) keeps the first subscriber.
    let _ = match format {
        Format::Text => builder.with_target(false).finish().try_init(),
        Format::Json => builder
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .finish()
            .try_init(),
    };
}
