//! `hoplite-agent`: the agent alone, for nodes that need nothing else.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hoplite_host::daemon;

/// One per node: attests itself and its workloads, and serves them the SPIFFE Workload API and Envoy SDS.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Joins the trust domain and serves workloads until it is stopped.
    #[command(after_help = "Example:\n  hoplite-agent run --config /etc/hoplite/agent.toml\n\n\
        The file:\n  trust_domain = \"prod.example\"\n  data_dir = \"/var/lib/hoplite/agent\"\n  ca = \"ca.prod.example:7443\"\n  \
        trust_bundle = \"/etc/hoplite/bundle.pem\"\n  join_token_file = \"/etc/hoplite/join-token\"\n  \
        socket = \"/run/hoplite/agent/agent.sock\"\n\nExit codes: 0 stopped as asked, 1 could not start, 2 wrong usage.")]
    Run(hoplite_agent::Arguments),
}

fn main() -> ExitCode {
    let Command::Run(arguments) = Cli::parse().command;
    daemon::exit_code(hoplite_agent::run(&arguments))
}
