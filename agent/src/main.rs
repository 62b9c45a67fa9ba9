//! `hoplite-agent`: the agent alone, for nodes that need nothing else.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use hoplite_agent::Config;
use hoplite_host::logging;
use hoplite_host::process::{Hardening, harden};

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
        socket = \"/run/hoplite/agent.sock\"\n\nExit codes: 0 stopped as asked, 1 could not start, 2 wrong usage.")]
    Run(Run),
}

#[derive(Args)]
struct Run {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Standard input is a Unix socket on which a supervisor says what it launched; its end stops the agent.
    #[arg(long)]
    launcher_stdin: bool,
    /// What log lines look like.
    #[arg(long, value_enum, default_value_t = Log::Text)]
    log: Log,
}

#[derive(Clone, Copy, ValueEnum)]
enum Log {
    Text,
    Json,
}

fn main() -> ExitCode {
    let Command::Run(arguments) = Cli::parse().command;
    logging::init(match arguments.log {
        Log::Text => logging::Format::Text,
        Log::Json => logging::Format::Json,
    });
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Run) -> Result<(), Box<dyn std::error::Error>> {
    harden(Hardening::Sealed).map_err(|error| format!("cannot harden this process: {error}"))?;
    let config = Config::load(&arguments.config)?;
    let launcher = if arguments.launcher_stdin {
        Some(hoplite_agent::launcher_on_stdin()?)
    } else {
        None
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(hoplite_agent::run(config, launcher))?;
    Ok(())
}
