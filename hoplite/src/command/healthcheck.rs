//! `hoplite healthcheck`: whether a daemon can do its work now, for units, images and scripts. Exit 0 or 1, or 3 where this user may not
//! ask.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use hoplite_host::config::{self, ConfigError};
use hoplite_host::places::Places;
use hoplite_wire::ca::ShowMeshRequest;
use hoplite_wire::channel;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::time::timeout;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::command::fleet::ask::CANNOT_TELL;
use crate::command::{MeshDir, diagnosis, reach};
use crate::output::{Output, one_line, print, print_json};

/// What is said when nothing else is known.
const UNSAID: &str = "it says that it does not serve now; its log says why";

/// What to do about what this user may not see.
const REMEDY: &str = "run this as the daemon's user or as root";

/// A daemon that needs longer is not healthy.
const ANSWER_MAX: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  hoplite healthcheck --config /etc/hoplite/agent.toml\n  hoplite healthcheck --in /etc/hoplite\n  hoplite healthcheck --dir ./mesh --output json\n\n\
    Exit codes: 0 each is ready, 1 one is not, 2 wrong usage, 3 none is known not to be ready, and this user may not ask one."
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
    /// Whether this user may not ask it, so that nobody knows how it is.
    is_denied: bool,
}

pub(crate) fn run(args: &HealthcheckArgs) -> anyhow::Result<ExitCode> {
    let mut closed = Vec::new();
    let files = match (&args.within, args.config.is_empty()) {
        (Some(directory), _) => {
            closed = Places::below(directory).closed();
            match files_in(directory) {
                Err(error) if closed.is_empty() => return Err(error),
                files => files.unwrap_or_default(),
            }
        }
        (None, false) => args.config.clone(),
        (None, true) => {
            let machine = args.dir.of_machine();
            closed = machine.closed;
            match machine.configs {
                Err(error) if closed.is_empty() => return Err(error),
                configs => configs.unwrap_or_default(),
            }
        }
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
    for dir in &closed {
        hoplite_host::tell!("{}: this user may not look what lies there; {REMEDY}", dir.display());
    }
    Ok(code(&asked, !closed.is_empty()))
}

/// By the worst that is known.
fn code(asked: &[Health], is_closed: bool) -> ExitCode {
    let is_unwell = |health: &Health| !health.is_denied && !health.reasons.is_empty();
    if asked.iter().any(is_unwell) {
        ExitCode::FAILURE
    } else if is_closed || asked.iter().any(|health| health.is_denied) {
        ExitCode::from(CANNOT_TELL)
    } else {
        ExitCode::SUCCESS
    }
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
            Self::Ca(socket) => Ok(match is_serving(socket).await? {
                true => Vec::new(),
                false => ca_reasons(socket).await.unwrap_or_else(|_| vec![UNSAID.to_owned()]),
            }),
            Self::Agent(socket) => Ok(match is_serving(socket).await? {
                true => Vec::new(),
                false => agent_reasons(socket).await.unwrap_or_else(|_| vec![UNSAID.to_owned()]),
            }),
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

/// By gRPC's health protocol, which knows no reasons.
async fn is_serving(socket: &Path) -> anyhow::Result<bool> {
    let channel = channel::unix(socket).await;
    let channel = channel.with_context(|| format!("nobody answers at `{}`; is it running?", socket.display()))?;
    let asked = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
    let status = asked.map_err(|status| anyhow::anyhow!("it refused: {}", status.message()))?;
    Ok(status.into_inner().status() == ServingStatus::Serving)
}

async fn ca_reasons(socket: &Path) -> anyhow::Result<Vec<String>> {
    let request = ShowMeshRequest::default();
    let mut meshes = reach::connect(socket).await?.show_mesh(request).await?.into_inner();
    let reasons = meshes.message().await?.unwrap_or_default().not_ready;
    anyhow::ensure!(!reasons.is_empty(), "it is ready again");
    Ok(reasons)
}

async fn agent_reasons(socket: &Path) -> anyhow::Result<Vec<String>> {
    let status = diagnosis::ask_status(socket).await?;
    if !status.dismissed.is_empty() {
        return Ok(vec![format!("the CA has dismissed this node: {}", status.dismissed)]);
    }
    anyhow::ensure!(!status.in_step, "it says nothing");
    Ok(vec![
        "it has not heard from its CA since it started; its log says why".to_owned(),
    ])
}

/// Whether the system refused it to this user.
fn is_denied(error: &anyhow::Error) -> bool {
    let of_system = |cause: &(dyn Error + 'static)| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    };
    error.chain().any(of_system)
}

// === impl Health ===

impl Health {
    /// A file that cannot be used is an error; a daemon that does not answer is not well.
    async fn of(config: PathBuf) -> anyhow::Result<Self> {
        let of = |config, daemon, reasons, is_denied| Self {
            config,
            daemon,
            reasons,
            is_denied,
        };
        // Which file or socket stands before it.
        let denied = |error: &anyhow::Error| {
            let why = error.root_cause();
            vec![format!("cannot be asked as this user: {why}; {REMEDY}")]
        };
        let daemon = match Daemon::of(&config).map_err(anyhow::Error::new) {
            Ok(daemon) => daemon,
            Err(error) if is_denied(&error) => return Ok(of(config, "daemon", denied(&error), true)),
            Err(error) => return Err(error),
        };
        let (reasons, is_denied) = match timeout(ANSWER_MAX, daemon.ask()).await {
            Ok(Ok(reasons)) => (reasons, false),
            Ok(Err(error)) if is_denied(&error) => (denied(&error), true),
            Ok(Err(error)) => (vec![one_line(&error)], false),
            Err(_) => (vec![format!("no answer within {} s", ANSWER_MAX.as_secs())], false),
        };
        Ok(of(config, daemon.name(), reasons, is_denied))
    }

    fn json(&self) -> Value {
        json!({
            "config": self.config,
            "daemon": self.daemon,
            "ready": (!self.is_denied).then_some(self.reasons.is_empty()),
            "reasons": self.reasons,
        })
    }

    fn text(&self) -> String {
        let Self { config, daemon, .. } = self;
        let name = config.display();
        match self.reasons.is_empty() {
            true => format!("{daemon} `{name}`: ready\n"),
            false => {
                let verdict = if self.is_denied { "" } else { "not ready: " };
                let each = self
                    .reasons
                    .iter()
                    .map(|why| format!("{daemon} `{name}`: {verdict}{why}\n"));
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
    fn who_may_not_ask_does_not_say_that_it_is_down() {
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(is_denied(&anyhow::Error::new(denied()).context("nobody answers")));
        assert!(!is_denied(&anyhow::Error::new(io::Error::from(
            io::ErrorKind::NotFound
        ))));
        let health = |is_denied, reasons: &[&str]| Health {
            config: "a.toml".into(),
            daemon: "ca",
            reasons: reasons.iter().map(|why| (*why).to_owned()).collect(),
            is_denied,
        };
        let (well, down, unasked) = (health(false, &[]), health(false, &["gone"]), health(true, &["denied"]));
        assert_eq!(down.text(), "ca `a.toml`: not ready: gone\n");
        assert_eq!(unasked.text(), "ca `a.toml`: denied\n");
        assert_eq!(
            [&well, &down, &unasked].map(|one| one.json()["ready"].clone()),
            [json!(true), json!(false), json!(null)]
        );
        let shown = |asked: &[Health], closed| format!("{:?}", code(asked, closed));
        let is = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(shown(&[health(false, &[])], false), is(0));
        assert_eq!(shown(&[health(false, &[])], true), is(3));
        assert_eq!(shown(&[well, unasked], false), is(3));
        assert_eq!(shown(&[down, health(true, &["denied"])], true), is(1));
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
