//! `hoplite-proxy`: the proxy alone, with nothing in it that a node does not need.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use hoplite_host::logging;
use hoplite_proxy::Config;

/// The enforcement point on every hop: mutual TLS, one Cedar decision, one record, then forward.
#[derive(Debug, Parser)]
#[command(
    name = "hoplite-proxy",
    version,
    after_help = "Example:\n  hoplite-proxy run --config /etc/hoplite/proxy.toml"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs until SIGTERM or SIGINT.
    Run {
        /// The configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// What log lines look like.
        #[arg(long, value_enum, default_value_t = Log::Text)]
        log: Log,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Log {
    Text,
    Json,
}

fn main() -> ExitCode {
    let Command::Run { config, log } = Arguments::parse().command;
    logging::init(match log {
        Log::Text => logging::Format::Text,
        Log::Json => logging::Format::Json,
    });
    match Config::load(&config).map_err(Into::into).and_then(hoplite_proxy::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "the proxy cannot run");
            ExitCode::FAILURE
        }
    }
}
