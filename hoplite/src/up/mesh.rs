//! The composition: which processes make a mesh, in which order they start, and when it is up.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use hoplite_host::clock;
use hoplite_host::files;
use hoplite_host::peer_process::PeerProcess;
use hoplite_identity::{Selector, SelectorKind};
use hoplite_wire::ca::admin_client::AdminClient;
use hoplite_wire::ca::{CreateEntriesRequest, CreateTokenRequest, Entry, ListAgentsRequest};
use hoplite_wire::{FetchError, WorkloadApi};
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use tonic::transport::Channel;

use super::layout::{CALLS, Layout, NODE, Ports, SERVICES, TRUST_DOMAIN, spiffe_id, visitor_id};
use super::supervisor::{Events, Role, Spec, Supervisor};
use crate::command::reach::connect;
use crate::output::part;

/// How long each step of starting may take before it counts as failed.
const STEP: Duration = Duration::from_secs(20);
/// How often a part that is starting is asked whether it is there.
const POLL: Duration = Duration::from_millis(10);
/// How long the agent's certificate lives unless it is said otherwise: the CA's default.
const DAY: Duration = Duration::from_secs(24 * 3_600);
/// A token is used within a second, or not at all.
pub(super) const TOKEN_TTL_SECONDS: u32 = 60;

/// What may differ between meshes.
pub(crate) struct Settings {
    pub(crate) ports: Ports,
    /// How long SVIDs live; the CA's default if `None`.
    pub(crate) svid_ttl: Option<Duration>,
    /// How long the agent's own lives; the CA's default if `None`.
    pub(crate) agent_ttl: Option<Duration>,
    /// How long an authority lives; a year when left out.
    pub(crate) authority_ttl: Option<Duration>,
    /// How the agent knows which process calls.
    pub(crate) peer_process: PeerProcess,
    /// Whether this process itself is registered as the `visitor` who calls `edge`.
    pub(crate) visitor: bool,
    /// Caller, callee, and where the caller's proxy dials instead of at the callee's listener.
    pub(crate) detours: Vec<(&'static str, &'static str, SocketAddr)>,
}

/// Where the proxies have their policy from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PolicySource {
    /// A directory: an edit counts when it is saved.
    Directory,
    /// A signed bundle, of this revision.
    Bundle(u64),
}

/// A running mesh. Call [`Mesh::stop`]; dropping it kills the children.
pub(crate) struct Mesh {
    pub(crate) layout: Layout,
    pub(crate) ports: Ports,
    pub(crate) took: Duration,
    /// Where policy came from when the mesh was up.
    pub(crate) policy_source: PolicySource,
    pub(super) agent_ttl: Duration,
    pub(super) peer_process: PeerProcess,
    supervisor: Supervisor,
    _lock: std::fs::File,
}

// === impl Settings ===

impl Settings {
    pub(crate) fn new(ports: Ports) -> Self {
        Self {
            ports,
            svid_ttl: None,
            agent_ttl: None,
            authority_ttl: None,
            peer_process: PeerProcess::default(),
            visitor: false,
            detours: Vec::new(),
        }
    }
}

// === impl Mesh ===

impl Mesh {
    /// Starts everything and returns when every proxy holds its SVID and accepts.
    pub(crate) async fn start(dir: &Path, settings: Settings) -> anyhow::Result<Self> {
        let started = clock::moment();
        settings.peer_process.ensure_possible()?;
        let layout = Layout::create(dir)?;
        let lock = lock(&layout)?;
        settings.ports.ensure_free()?;
        layout.write_configs(
            &settings.ports,
            [
                ("x509_ttl", settings.svid_ttl),
                ("agent_ttl", settings.agent_ttl),
                ("authority_ttl", settings.authority_ttl),
            ],
            settings.peer_process,
            |caller, callee| {
                settings
                    .detours
                    .iter()
                    .find(|(from, to, _)| (*from, *to) == (caller, callee))
                    .map(|(_, _, address)| *address)
            },
        )?;
        let mut mesh = Self {
            layout,
            ports: settings.ports.clone(),
            took: Duration::ZERO,
            policy_source: PolicySource::Directory,
            agent_ttl: settings.agent_ttl.unwrap_or(DAY),
            peer_process: settings.peer_process,
            supervisor: Supervisor::new(),
            _lock: lock,
        };
        match mesh.bring_up(&settings).await {
            Ok(()) => {
                mesh.took = started.elapsed();
                mesh.policy_source = mesh.policy_source().await.unwrap_or(PolicySource::Directory);
                Ok(mesh)
            }
            Err(error) => {
                mesh.stop().await;
                Err(error)
            }
        }
    }

    async fn bring_up(&mut self, settings: &Settings) -> anyhow::Result<()> {
        self.supervisor.start(vec![self.daemon("CA", "ca", Role::Other)]);
        let ca_socket = self.layout.socket("ca");
        let mut ca = self
            .supervisor
            .unless_failed(until("the CA did not answer", async || connect(&ca_socket).await.ok()))
            .await??;
        register(&mut ca, &self.layout, settings.visitor).await?;

        if settings.visitor {
            self.supervisor.launch("visitor", std::process::id()).await?;
        }
        self.supervisor.start(vec![self.daemon("agent", "agent", Role::Agent)]);
        let agent_socket = self.layout.socket("agent").display().to_string();
        let what = format!(
            "the agent did not join; its log is `{}`",
            self.layout.log("agent").display()
        );
        self.supervisor
            .unless_failed(until(&what, async || is_serving(&agent_socket).await))
            .await??;
        let services = SERVICES.map(|name| self.service(name));
        self.supervisor.start(services.to_vec());
        let proxies = SERVICES.map(|name| self.daemon(&format!("{name} proxy"), name, Role::Workload(name)));
        self.supervisor.start(proxies.to_vec());
        for name in SERVICES {
            let what = format!(
                "the proxy of {name} did not get its SVID; its log is `{}`",
                self.layout.log(name).display()
            );
            self.supervisor
                .unless_failed(until(&what, async || self.has_svid(name).await))
                .await??;
            let app = self.ports.service(name);
            let what = format!("the service {name} did not answer at {app}");
            self.supervisor
                .unless_failed(until(&what, async || tokio::net::TcpStream::connect(app).await.ok()))
                .await??;
        }
        self.supervisor.declare_up();
        Ok(())
    }

    async fn has_svid(&self, name: &str) -> Option<()> {
        let status = self.proxy_status(name).await.ok()?;
        part(&status, "/svid_serial").is_string().then_some(())
    }

    /// What a proxy says of itself on its admin socket.
    pub(crate) async fn proxy_status(&self, name: &str) -> anyhow::Result<Value> {
        Ok(hoplite_proxy::admin_status(&self.layout.socket(name)).await?)
    }

    pub(super) fn events(&self) -> &Events {
        self.supervisor.events()
    }

    /// Stops proxies, services, agent and CA, in that order.
    pub(crate) async fn stop(self) {
        self.supervisor.stop().await;
        let _ = std::fs::remove_file(self.layout.join_token());
    }

    fn daemon(&self, name: &str, config: &str, role: Role) -> Spec {
        let kind = match config {
            "ca" | "agent" => config,
            _ => "proxy",
        };
        let config_path = self.layout.config(config).display().to_string();
        let mut arguments: Vec<String> = [kind, "run", "--config", &config_path, "--log", "json"]
            .map(str::to_owned)
            .to_vec();
        // The agent's standard input is the launcher channel; its end means the same.
        arguments.push(
            if role == Role::Agent {
                "--launcher-stdin"
            } else {
                "--supervised"
            }
            .to_owned(),
        );
        Spec {
            name: name.to_owned(),
            arguments,
            log: self.layout.log(config),
            role,
        }
    }

    fn service(&self, name: &str) -> Spec {
        let listen = self.ports.service(name).to_string();
        let mut arguments: Vec<String> = ["demo-service", "--supervised", "--name", name, "--listen", &listen]
            .map(str::to_owned)
            .to_vec();
        for (caller, callee) in CALLS.iter().filter(|(caller, _)| *caller == name) {
            arguments.push("--call".to_owned());
            arguments.push(format!("{callee}=http://{}", self.ports.outbound(caller, callee)));
        }
        Spec {
            name: format!("{name} service"),
            arguments,
            log: self.layout.log(&format!("{name}-service")),
            role: Role::Other,
        }
    }
}

/// Whether an agent answers with identities, or that there is none for this process.
async fn is_serving(socket: &str) -> Option<()> {
    let answer = async { WorkloadApi::open(socket).await?.next().await };
    matches!(answer.await, Ok(_) | Err(FetchError::Denied(_))).then_some(())
}

/// One mesh a directory: two would share sockets, logs and the CA's store.
fn lock(layout: &Layout) -> anyhow::Result<std::fs::File> {
    let path = layout.dir().join("run/lock");
    let file = std::fs::File::create(&path).with_context(|| format!("cannot write `{}`", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!(
            "a mesh runs in `{}` already; stop it or choose another directory with --dir",
            layout.dir().display()
        );
    }
    Ok(file)
}

/// Gives the agent a way to join, and the services their identities.
async fn register(ca: &mut AdminClient<Channel>, layout: &Layout, visitor: bool) -> anyhow::Result<()> {
    let refused = |status: tonic::Status| anyhow::anyhow!("the CA refused: {}", status.message());
    let node = agent_id();
    let agents = ca.list_agents(ListAgentsRequest {}).await.map_err(refused)?;
    let mut agents = agents.into_inner().agents.into_iter();
    if agents.any(|agent| agent.spiffe_id == node && agent.banned) {
        bail!(let_in_again(layout));
    }
    let request = CreateTokenRequest {
        node: NODE.to_owned(),
        ttl_seconds: TOKEN_TTL_SECONDS,
        ..CreateTokenRequest::default()
    };
    let token = ca.create_token(request).await.map_err(refused)?.into_inner();
    files::write_private(&layout.join_token(), token.token.as_bytes())?;

    let mut entries = Vec::new();
    for name in SERVICES {
        entries.push(entry(&spiffe_id(name), name)?);
    }
    if visitor {
        entries.push(entry(&visitor_id(), "visitor")?);
    }
    let results = ca
        .create_entries(CreateEntriesRequest { entries })
        .await
        .map_err(refused)?
        .into_inner()
        .results;
    match results.into_iter().find(|result| result.entry.is_none()) {
        Some(failed) => bail!("the CA refused a registration: {}", failed.error),
        None => Ok(()),
    }
}

/// What to do about a node that somebody banned: this command cannot stay up without its agent, so the CA has to run alone meanwhile.
fn let_in_again(layout: &Layout) -> String {
    let (config, dir) = (layout.config("ca"), layout.dir());
    let (config, dir) = (config.display(), dir.display());
    format!(
        "the mesh's only node `{NODE}` is banned, so its agent may not join; to let it in again run `hoplite ca run --config {config}` in \
         one terminal and `hoplite agent evict {NODE} --dir {dir}` in another, stop that CA with Ctrl-C, and run `hoplite up` again"
    )
}

fn agent_id() -> String {
    format!("spiffe://{TRUST_DOMAIN}/hoplite/agent/{NODE}")
}

fn entry(spiffe_id: &str, launched_as: &str) -> anyhow::Result<Entry> {
    Ok(Entry {
        spiffe_id: spiffe_id.to_owned(),
        parent_id: agent_id(),
        selectors: vec![(&Selector::new(SelectorKind::LaunchName, launched_as)?).into()],
        ..Entry::default()
    })
}

/// Asks again and again until there is an answer.
async fn until<T>(otherwise: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> anyhow::Result<T> {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(STEP, asking)
        .await
        .with_context(|| format!("{otherwise} within {} seconds", STEP.as_secs()))
}
