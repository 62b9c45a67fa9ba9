//! `hoplite-proxy`: the proxy alone, with nothing in it that a node does not need.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hoplite_host::daemon;

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
    Run(daemon::Arguments),
}

fn main() -> ExitCode {
    let Command::Run(arguments) = Arguments::parse().command;
    daemon::exit_code(hoplite_proxy::run(&arguments))
}
