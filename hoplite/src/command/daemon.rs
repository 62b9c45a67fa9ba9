//! `hoplite ca|agent|proxy run`: the daemons, each from one configuration file.

use std::path::Path;
use std::process::ExitCode;

use anyhow::ensure;
use clap::Subcommand;
use hoplite_host::daemon::Arguments;
use hoplite_host::places::Places;

use crate::command::svid::AnswerArgs;
use crate::command::{admin, backup, diagnosis, found, purge, restore};

#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Found a trust domain on this machine: its directory, configuration and authority
    #[command(after_help = found::HELP)]
    Init(found::InitArgs),
    /// Run the CA until it is told to stop
    #[command(after_help = "Examples:\n  hoplite ca run\n  hoplite ca run --config /etc/hoplite/ca.toml")]
    Run(hoplite_ca::Arguments),
    /// Write all that a running CA has into one encrypted file; or read such a file to its end, to know that it can be used
    #[command(after_help = backup::HELP)]
    Backup(backup::BackupArgs),
    /// Make a CA of a backup, in an empty data directory: agents go on with it by themselves
    #[command(after_help = restore::HELP)]
    Restore(restore::RestoreArgs),
    /// Show what this machine's CA is known by: trust domain, address and fingerprint
    #[command(after_help = "Example:\n  hoplite ca show --output json")]
    Show(found::ShowArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// Run the agent until it is told to stop
    #[command(after_help = "Examples:\n  hoplite agent run\n  hoplite agent run --config /etc/hoplite/agent.toml")]
    Run(hoplite_agent::Arguments),
    /// Show what this node's agent holds, and whom it refused how often; exit 1 if it lacks something
    #[command(after_help = "Example:\n  hoplite agent status --output json")]
    Status(AnswerArgs),
    /// Take this node out: remove all that its agent keeps on the disk, the node's identity among it; the agent must be stopped
    #[command(after_help = purge::HELP)]
    Purge(purge::PurgeArgs),
    /// List the agents that joined
    #[command(after_help = "Example:\n  hoplite agent list --output json")]
    List(admin::AgentListArgs),
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
    #[command(after_help = "Example:\n  hoplite proxy run --config /etc/hoplite/proxy/orders.toml")]
    Run(Arguments),
}

pub(crate) fn ca(command: CaCommand) -> anyhow::Result<ExitCode> {
    match command {
        CaCommand::Init(args) => found::init(&args),
        CaCommand::Run(arguments) => {
            let file = arguments.daemon.at(Places::ca_config).config;
            ensure_there(&file, "hoplite ca init")?;
            hoplite_ca::run(&arguments)?;
            Ok(ExitCode::SUCCESS)
        }
        CaCommand::Backup(args) => backup::run(&args),
        CaCommand::Restore(args) => restore::run(&args),
        CaCommand::Show(args) => found::show(&args),
    }
}

pub(crate) fn agent(command: AgentCommand) -> anyhow::Result<ExitCode> {
    match command {
        AgentCommand::Run(arguments) => {
            let file = arguments.daemon.at(Places::agent_config).config;
            ensure_there(&file, "hoplite join")?;
            hoplite_agent::run(&arguments)?;
            Ok(ExitCode::SUCCESS)
        }
        AgentCommand::Status(args) => diagnosis::status(&args),
        AgentCommand::Purge(args) => purge::run(&args),
        AgentCommand::List(args) => admin::agent_list(args),
        AgentCommand::Ban(args) => admin::agent_ban(args),
        AgentCommand::Evict(args) => admin::agent_evict(args),
    }
}

/// Whether there is a file to run with. `maker` makes one.
fn ensure_there(file: &Path, maker: &str) -> anyhow::Result<()> {
    ensure!(
        file.try_exists()?,
        "there is no `{}`; `{maker}` makes one, `--config` and `--dir` name another",
        file.display()
    );
    Ok(())
}

pub(crate) fn proxy(command: ProxyCommand) -> anyhow::Result<ExitCode> {
    let ProxyCommand::Run(arguments) = command;
    hoplite_proxy::run(&arguments)?;
    Ok(ExitCode::SUCCESS)
}
