//! `hoplite healthcheck`: whether a daemon can do its work now, for units, images and scripts. Exit 0 or 1.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use hoplite_host::config::{self, ConfigError};
use hoplite_host::places::Places;
use hoplite_wire::channel;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::time::timeout;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::command::MeshDir;
use crate::output::{Output, print, print_json};

/// A daemon that needs longer is not healthy.
const ANSWER_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  hoplite healthcheck --config /etc/hoplite/agent.toml\n  hoplite healthcheck --in /etc/hoplite\n  hoplite healthcheck --dir ./mesh --output json"
)]
pub(crate) struct HealthcheckArgs {
    /// The configuration file of a CA, an agent or a proxy, each of which is asked; without it all of a mesh of `hoplite up`
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Ask each daemon whose file lies in this directory: ca.toml, agent.toml, proxy/*.toml
    #[arg(long = "in", value_name = "DIR", conflicts_with = "config")]
    within: Option<PathBuf>,
    #[command(flatten)]
    dir: MeshDir,
    /// How to print the answer
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Which daemon a file is for, and where it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Daemon {
    Ca(PathBuf),
    Agent(PathBuf),
    Proxy(PathBuf),
}

/// What came of asking one.
#[derive(Debug)]
struct Health {
    config: PathBuf,
    daemon: &'static str,
    /// Empty when it is well.
    reasons: Vec<String>,
}

pub(crate) fn run(args: &HealthcheckArgs) -> anyhow::Result<ExitCode> {
    let files = match (&args.within, args.config.is_empty()) {
        (Some(directory), _) => files_in(directory)?,
        (None, false) => args.config.clone(),
        (None, true) => match Places::installed().configs() {
            installed if !installed.is_empty() && !args.dir.is_given() => installed,
            _ => args.dir.configs()?,
        },
    };
    let asked = super::runtime()?.block_on(async {
        let mut asked = Vec::with_capacity(files.len());
        for file in files {
            asked.push(Health::of(file).await?);
        }
        anyhow::Ok(asked)
    })?;
    match args.output {
        Output::Json => print_json(&asked.iter().map(Health::json).collect::<Vec<_>>())?,
        Output::Table => print(&asked.iter().map(Health::text).collect::<String>())?,
    }
    let is_well = asked.iter().all(|health| health.reasons.is_empty());
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Those of the daemons of a machine, or of a container, which has one.
fn files_in(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let files = Places::below(directory).configs();
    if files.is_empty() {
        bail!(
            "`{}` has no ca.toml, no agent.toml and no proxy/*.toml; name the directory of the daemons' files, or a file with --config",
            directory.display()
        );
    }
    Ok(files)
}

/// The names of a file's settings.
type Keys = BTreeMap<String, IgnoredAny>;

// === impl Daemon ===

impl Daemon {
    /// What each asks for, and nobody else, tells them apart.
    fn of(file: &Path) -> Result<Self, ConfigError> {
        let table: Keys = config::load(file)?;
        if table.contains_key("workload_api") {
            return Ok(Self::Proxy(hoplite_proxy::Config::load(file)?.admin_socket));
        }
        if table.contains_key("ca") {
            return Ok(Self::Agent(hoplite_agent::Config::load(file)?.socket));
        }
        Ok(Self::Ca(hoplite_ca::Config::load(file)?.admin_socket))
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Ca(_) => "ca",
            Self::Agent(_) => "agent",
            Self::Proxy(_) => "proxy",
        }
    }

    /// Why it cannot do its work now; empty when it can.
    async fn ask(&self) -> anyhow::Result<Vec<String>> {
        match self {
            Self::Ca(socket) | Self::Agent(socket) => Ok(grpc(socket).await?),
            Self::Proxy(socket) => {
                let status = hoplite_proxy::admin_status(socket).await?;
                let reasons = status.get("not_ready").and_then(Value::as_array);
                let reasons = reasons.context("it does not say whether it is ready: it is of another version")?;
                Ok(reasons
                    .iter()
                    .filter_map(|why| why.as_str().map(str::to_owned))
                    .collect())
            }
        }
    }
}

/// By gRPC's health protocol.
async fn grpc(socket: &Path) -> anyhow::Result<Vec<String>> {
    let channel = channel::unix(socket).await;
    let channel = channel.with_context(|| format!("nobody answers at `{}`; is it running?", socket.display()))?;
    let asked = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
    let status = asked.map_err(|status| anyhow::anyhow!("it refused: {}", status.message()))?;
    Ok(match status.into_inner().status() {
        ServingStatus::Serving => Vec::new(),
        _ => vec!["it says that it does not serve now; its log says why".to_owned()],
    })
}

// === impl Health ===

impl Health {
    /// A file that cannot be used is an error; a daemon that does not answer is not well.
    async fn of(config: PathBuf) -> anyhow::Result<Self> {
        let daemon = Daemon::of(&config)?;
        let reasons = match timeout(ANSWER_MAX, daemon.ask()).await {
            Ok(Ok(reasons)) => reasons,
            Ok(Err(error)) => vec![format!("{error:#}")],
            Err(_) => vec![format!("no answer within {} s", ANSWER_MAX.as_secs())],
        };
        Ok(Self {
            config,
            daemon: daemon.name(),
            reasons,
        })
    }

    fn json(&self) -> Value {
        json!({
            "config": self.config,
            "daemon": self.daemon,
            "ready": self.reasons.is_empty(),
            "reasons": self.reasons,
        })
    }

    fn text(&self) -> String {
        let Self { config, daemon, .. } = self;
        let name = config.display();
        match self.reasons.is_empty() {
            true => format!("{daemon} `{name}`: ready\n"),
            false => {
                let each = self
                    .reasons
                    .iter()
                    .map(|why| format!("{daemon} `{name}`: not ready: {why}\n"));
                each.collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_whose_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let check = |text: &str| {
            let file = dir.path().join("a.toml");
            std::fs::write(&file, text).unwrap();
            Daemon::of(&file)
        };
        let ca = "trust_domain = \"a.b\"\ndata_dir = \"/d\"\nlisten = \"127.0.0.1:0\"\nadmin_socket = \"/ca.sock\"\n";
        assert_eq!(check(ca).unwrap(), Daemon::Ca("/ca.sock".into()));
        let agent =
            "trust_domain = \"a.b\"\ndata_dir = \"/d\"\nca = \"h:1\"\ntrust_bundle = \"/b\"\nsocket = \"/a.sock\"\n";
        assert_eq!(check(agent).unwrap(), Daemon::Agent("/a.sock".into()));
        assert!(
            check("workload_api = \"unix:///a\"\n")
                .unwrap_err()
                .to_string()
                .contains("a.toml")
        );
        assert!(check("nonsense = 1\n").unwrap_err().to_string().contains("nonsense"));
    }

    #[test]
    fn a_directory_has_the_files_of_its_daemons() {
        let dir = tempfile::tempdir().unwrap();
        let nothing = files_in(dir.path()).unwrap_err().to_string();
        assert!(
            nothing.contains("no agent.toml") && nothing.contains("--config"),
            "{nothing}"
        );
        std::fs::create_dir(dir.path().join("proxy")).unwrap();
        for name in [
            "proxy/b.toml",
            "proxy/a.toml",
            "proxy/a.env",
            "agent.toml",
            "other.toml",
        ] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let files = files_in(dir.path()).unwrap();
        let expected = ["agent.toml", "proxy/a.toml", "proxy/b.toml"].map(|name| dir.path().join(name));
        assert_eq!(files, expected);
    }
}
