//! `hoplite up`: brings up a mesh, shows it, and keeps it up until Ctrl-C; or checks one and says what it found.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use hoplite_host::peer_process::PeerProcess;
use hoplite_host::shutdown;
use hoplite_otlp::Collector;

use crate::command::MeshDir;
use crate::output::print_json;
use crate::up::{self, Mesh, Ports, Settings};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  hoplite up\n  hoplite up --dir ./mesh --base-port 17700\n  hoplite up --check > report.json\n  \
    hoplite up --authority-ttl 60s --svid-ttl 10s --agent-ttl 10s"
)]
pub(crate) struct Args {
    #[command(flatten)]
    dir: MeshDir,
    /// The first of the ports used on the loopback interface; the mesh takes some of the 24 from there
    #[arg(long, default_value_t = 7700, conflicts_with = "check", value_parser = clap::value_parser!(u16).range(1024..=65500))]
    base_port: u16,
    /// How long each service's SVID lives [default: one hour]
    #[arg(long, value_name = "TIME", conflicts_with = "check", value_parser = crate::output::moment::span)]
    svid_ttl: Option<Duration>,
    /// How long the agent's own SVID lives [default: one day]
    #[arg(long, value_name = "TIME", conflicts_with = "check", hide = true, value_parser = crate::output::moment::span)]
    agent_ttl: Option<Duration>,
    /// How long an authority lives; at five sixths of that the next one signs [default: one year]
    #[arg(long, value_name = "TIME", conflicts_with = "check", value_parser = crate::output::moment::span)]
    authority_ttl: Option<Duration>,
    /// Serve /live, /ready and /metrics of each part, on five ports from the base + 4 on: CA, agent, edge, orders, ledger
    #[arg(long, conflicts_with = "check")]
    metrics: bool,
    /// Send spans and metrics of each part to this OpenTelemetry collector: http://127.0.0.1:4317
    #[arg(long, conflicts_with = "check", value_name = "ENDPOINT")]
    otlp: Option<Collector>,
    /// How the agent knows which process calls: by the kernel's word, or by its number [default: the kernel's word, and on
    /// kernels before Linux 6.5, which have none, the number]
    #[arg(long, value_name = "HOW", value_enum)]
    peer_process: Option<PeerProcess>,
    /// Run the mesh on free ports in a temporary directory, check what it promises, print a JSON report, exit 0 or 1
    #[arg(long, conflicts_with = "dir")]
    check: bool,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    super::runtime()?.block_on(async {
        let peer_process = match args.peer_process {
            Some(named) => named,
            None => PeerProcess::best()?,
        };
        if args.check {
            let report = up::check(peer_process).await?;
            print_json(&report)?;
            return Ok(if report.ok {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        if let Some(ttl) = args.svid_ttl {
            ensure!(
                ttl >= Duration::from_secs(5),
                "`--svid-ttl` must be at least 5s; shorter lives leave no time to renew"
            );
        }
        let mut ports = Ports::from_base(args.base_port);
        if args.metrics {
            ports.show_metrics();
        }
        ports.send_to(args.otlp);
        let settings = Settings {
            svid_ttl: args.svid_ttl,
            agent_ttl: args.agent_ttl,
            authority_ttl: args.authority_ttl,
            peer_process,
            ..Settings::new(ports)
        };
        let dir = args.dir.path()?;
        let terminated = shutdown::terminated();
        tokio::pin!(terminated);
        let mesh = tokio::select! {
            mesh = Mesh::start(&dir, settings) => mesh?,
            stopped = &mut terminated => { stopped?; return Ok(ExitCode::SUCCESS); }
        };
        hoplite_host::tell!("{}", up::picture(&mesh));
        tokio::select! {
            stopped = &mut terminated => stopped?,
            () = mesh.look_after() => {}
        }
        hoplite_host::tell!("stopping");
        mesh.stop().await;
        Ok(ExitCode::SUCCESS)
    })
}
