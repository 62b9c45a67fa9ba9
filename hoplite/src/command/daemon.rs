//! `hoplite ca|agent|proxy run`: the daemons, each from one configuration file.

use std::process::ExitCode;

use clap::Subcommand;
use hoplite_host::daemon::Arguments;

use crate::command::svid::AnswerArgs;
use crate::command::{admin, diagnosis};

#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Run the CA until it is told to stop
    #[command(after_help = "Example:\n  hoplite ca run --config /etc/hoplite/ca.toml")]
    Run(hoplite_ca::Arguments),
}

#[derive(Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// Run the agent until it is told to stop
    #[command(after_help = "Example:\n  hoplite agent run --config /etc/hoplite/agent.toml")]
    Run(hoplite_agent::Arguments),
    /// Show what this node's agent holds, and whom it refused how often; exit 1 if it lacks something
    #[command(after_help = "Example:\n  hoplite agent status --socket unix:///run/hoplite/agent.sock --output json")]
    Status(AnswerArgs),
    /// List the agents that joined
    #[command(after_help = "Example:\n  hoplite agent list --output json")]
    List(admin::ListingArgs),
    /// Refuse an agent for good: its SVID counts for nothing from now on
    #[command(after_help = "Example:\n  hoplite agent ban spiffe://demo.hoplite/hoplite/agent/local")]
    Ban(admin::AgentArgs),
    /// Forget an agent: it may join again with a new token
    #[command(after_help = "Example:\n  hoplite agent evict spiffe://demo.hoplite/hoplite/agent/local")]
    Evict(admin::AgentArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProxyCommand {
    /// Run the proxy until it is told to stop
    #[command(after_help = "Example:\n  hoplite proxy run --config /etc/hoplite/orders.toml")]
    Run(Arguments),
}

pub(crate) fn ca(command: CaCommand) -> anyhow::Result<ExitCode> {
    let CaCommand::Run(arguments) = command;
    hoplite_ca::run(&arguments)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn agent(command: AgentCommand) -> anyhow::Result<ExitCode> {
    match command {
        AgentCommand::Run(arguments) => {
            hoplite_agent::run(&arguments)?;
            Ok(ExitCode::SUCCESS)
        }
        AgentCommand::Status(args) => diagnosis::status(&args),
        AgentCommand::List(args) => admin::agent_list(args),
        AgentCommand::Ban(args) => admin::agent_ban(args),
        AgentCommand::Evict(args) => admin::agent_evict(args),
    }
}

pub(crate) fn proxy(command: ProxyCommand) -> anyhow::Result<ExitCode> {
    let ProxyCommand::Run(arguments) = command;
    hoplite_proxy::run(&arguments)?;
    Ok(ExitCode::SUCCESS)
}
