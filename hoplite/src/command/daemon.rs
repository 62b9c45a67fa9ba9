//! `hoplite ca|agent|proxy run`: the daemons, each from one configuration file.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use hoplite_host::logging::{self, Format};
use hoplite_host::process::{self, Hardening};
use hoplite_host::shutdown;

use crate::command::admin;

#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Run the CA until it is told to stop
    #[command(after_help = "Example:\n  hoplite ca run --config /etc/hoplite/ca.toml")]
    Run(RunArgs),
}

#[derive(Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// Run the agent until it is told to stop
    #[command(after_help = "Example:\n  hoplite agent run --config /etc/hoplite/agent.toml")]
    Run(AgentRunArgs),
    /// List the agents that joined
    #[command(after_help = "Example:\n  hoplite agent list --output json")]
    List(admin::ListArgs),
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
    Run(RunArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The form of log lines on standard error
    #[arg(long, value_enum, default_value_t)]
    log: LogFormat,
    /// Stop when standard input ends: a supervisor holds the other end
    #[arg(long, hide = true)]
    supervised: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AgentRunArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Standard input is a Unix socket over which the supervisor names the processes it launches
    #[arg(long, hide = true)]
    launcher_stdin: bool,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum LogFormat {
    /// Lines for people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

pub(crate) fn ca(command: CaCommand) -> anyhow::Result<ExitCode> {
    let CaCommand::Run(args) = command;
    args.prepare(Hardening::Sealed)?;
    let config = hoplite_ca::Config::load(&args.config)?;
    // Two threads: signing for one agent must not hold up the others.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut ca = hoplite_ca::start(config).await?;
        tokio::select! {
            stopped = shutdown::terminated() => { stopped?; ca.stop().await; Ok(ExitCode::SUCCESS) }
            () = ca.wait() => anyhow::bail!("a part of the CA stopped; the log says why"),
        }
    })
}

pub(crate) fn agent(command: AgentCommand) -> anyhow::Result<ExitCode> {
    let args = match command {
        AgentCommand::Run(args) => args,
        AgentCommand::List(args) => return admin::agent_list(args),
        AgentCommand::Ban(args) => return admin::agent_ban(args),
        AgentCommand::Evict(args) => return admin::agent_evict(args),
    };
    args.run.prepare(Hardening::Sealed)?;
    let config = hoplite_agent::Config::load(&args.run.config)?;
    let launcher = args.launcher_stdin.then(hoplite_agent::launcher_on_stdin).transpose()?;
    super::runtime()?.block_on(hoplite_agent::run(config, launcher))?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn proxy(command: ProxyCommand) -> anyhow::Result<ExitCode> {
    let ProxyCommand::Run(args) = command;
    // Not sealed: an agent without root must still be able to read which program a proxy is.
    args.prepare(Hardening::NoCore)?;
    hoplite_proxy::run(hoplite_proxy::Config::load(&args.config)?)?;
    Ok(ExitCode::SUCCESS)
}

// === impl RunArgs ===

impl RunArgs {
    /// What every daemon does first: logs, hardening, the bond with its supervisor.
    fn prepare(&self, hardening: Hardening) -> anyhow::Result<()> {
        logging::init(match self.log {
            LogFormat::Text => Format::Text,
            LogFormat::Json => Format::Json,
        });
        process::harden(hardening).context("cannot harden the process")?;
        if self.supervised {
            std::thread::Builder::new().name("supervisor".to_owned()).spawn(|| {
                process::wait_for_stdin_to_end();
                std::process::exit(0);
            })?;
        }
        Ok(())
    }
}
