//! A running CA: its parts, started in order and stopped together.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hoplite_host::clock;
use hoplite_host::config::ConfigError;
use hoplite_host::daemon::{self, Daemon, DaemonError, Process, Threads};
use hoplite_host::files::{self, FileError};
use hoplite_host::logging;
use hoplite_host::places::Places;
use hoplite_host::process::Hardening;
use hoplite_host::program::Program;
use hoplite_host::reload::{Reloaded, Settings};
use hoplite_host::shutdown::{self, Shutdown, Stopper};
use hoplite_host::socket::{self, BindError, Placed};
use hoplite_identity::{TrustBundle, TrustDomain};
use hoplite_otlp::{OtlpError, Prepared, Sender, Sending, host_name};
use hoplite_seal::TrustedSigners;
use hoplite_store::StoreError;
use hoplite_telemetry::{MetricsDoor, MetricsDoorError};
use hoplite_wire::ca::admin_server::{AdminServer, SERVICE_NAME as ADMIN};
use hoplite_wire::ca::nested_server::NestedServer;
use hoplite_wire::ca::node_server::{NodeServer, SERVICE_NAME as NODE};
use hoplite_wire::health::HealthService;
use hoplite_wire::{Beside, Counted};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use crate::Config;
#[cfg(feature = "testing")]
use crate::TrustError;
use crate::acts::{Acts, ActsError};
use crate::api::admin::{self, Admin, Caller};
use crate::api::backups::Backups;
use crate::api::fleet::Reported;
use crate::api::gate::{Gate, Guard};
use crate::api::invites::Invites;
use crate::api::nested::NestedCas;
use crate::api::node::{self, Node};
use crate::api::port::Port;
use crate::attestors::Attestors;
use crate::authority::course::LAST_PART;
use crate::authority::opened::Authorities;
use crate::authority::x509::AuthorityError;
use crate::door::{Door, DoorError, Doorkeeper};
use crate::federation::endpoint::{BundleDoor, BundleEndpointError};
use crate::federation::keeper::Federation;
use crate::federation::settings::BundleEndpointSettings;
use crate::federation::web::WebAuthoritiesError;
use crate::fleet::Fleet;
use crate::founding::{self, Founding, FoundingError};
use crate::health::SiteReadiness;
use crate::issuance::jwt::JwtSigning;
use crate::issuer::{Issuer, Lives};
use crate::listener::{self, AgentCaller, IsKnown};
use crate::metrics::Metrics;
use crate::nesting::Nesting;
use crate::oidc::{OidcDoor, OidcError, OidcSettings};
use crate::policy::bundles::BundleCache;
use crate::policy::error::PolicyError;
use crate::policy::signers::NameFirst;
use crate::publishing::Publishing;
use crate::registry::{FollowError, Follower, Registry};
use crate::rights::Rights;
use crate::rights::files::RightsError;
use crate::rotation::{Plan, Rotation};
use crate::storage::{Storage, StorageError};
use crate::web::WebTls;
use crate::write::{self, WriteError};

/// Calls that have begun may end.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Noticing within a minute that a peer has gone without a word.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// A call that takes longer is stuck. Streams are not meant: their first word comes at once.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// An operator's call may be the publication of a hundred thousand policies, which are all compiled first.
const ADMIN_CALL_TIMEOUT: Duration = Duration::from_secs(300);

/// An operator's list of entries is at most this long, however short policies may be; a commit takes some 20 000.
const ADMIN_BYTES_MAX: usize = 16 << 20;

/// Calls at once on one connection: an agent has a handful.
const STREAMS_MAX: u32 = 64;

/// Connections that wait to be served; they wait in the kernel's queue otherwise.
const BACKLOG_MAX: usize = 16;

/// The trust bundle for those who set up agents, in the data directory.
pub(crate) const BUNDLE_FILE: &str = "bundle.pem";

/// A CA that serves. Dropping it stops it without waiting.
pub struct Running {
    node_address: SocketAddr,
    metrics_address: Option<SocketAddr>,
    oidc_address: Option<SocketAddr>,
    bundle_address: Option<SocketAddr>,
    /// The certificate that is shown at the bundle endpoint, if it is one of the web.
    bundle_tls: Option<WebTls>,
    federation: Federation,
    /// The certificate that is shown there.
    web_tls: WebTls,
    registry: Registry,
    admin_socket: Placed,
    stopper: Stopper,
    parts: JoinSet<&'static str>,
    follower: Follower,
    issuer: Issuer,
    rotation: Rotation,
    rights: Rights,
    acts: Acts,
    fleet: Fleet,
    trust_domain: TrustDomain,
    /// Of the configuration.
    policy_signers: TrustedSigners,
    /// Metrics, to a collector.
    sending: Option<Sending>,
    /// Those in force, for a CA that has a file.
    settings: Settings,
}

/// Why a CA did not start. One sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A part of it died, which should not happen.
    #[error("a part of the CA stopped; the log says why")]
    PartEnded,
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory, or `bundle.pem` in it, cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The agents' address cannot be taken.
    #[error("cannot listen on `listen = {address}`: {source}; choose another address, or stop who uses it")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// The admin policies cannot be used.
    #[error(transparent)]
    Rights(#[from] RightsError),
    /// The address for metrics cannot be taken.
    #[error(transparent)]
    Metrics(#[from] MetricsDoorError),
    /// OpenID Connect discovery cannot be served.
    #[error(transparent)]
    Oidc(#[from] OidcError),
    /// The authorities of the web cannot be had.
    #[error(transparent)]
    WebAuthorities(#[from] WebAuthoritiesError),
    /// The trust bundle cannot be published.
    #[error(transparent)]
    BundleEndpoint(#[from] BundleEndpointError),
    /// Nothing can be sent to the collector that is configured.
    #[error(transparent)]
    Otlp(#[from] OtlpError),
    /// The operators' socket cannot be bound.
    #[error(transparent)]
    AdminSocket(#[from] BindError),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A write to the store failed, and nothing can be stored any more.
    #[error("the store can take nothing more, so the CA ends: {0}")]
    StoreStopped(#[source] StoreError),
    /// The log of what is done cannot be written.
    #[error(transparent)]
    Acts(#[from] ActsError),
    /// The data directory is not whole.
    #[error(transparent)]
    Founding(#[from] FoundingError),
    /// There is no authority to sign with.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// What is stored cannot be followed.
    #[error(transparent)]
    Registry(#[from] FollowError),
    /// The signers of policy cannot be taken from the configuration, or from the store.
    #[error("who may sign policy cannot be had: {reason}")]
    Signers {
        /// What is wrong.
        reason: String,
    },
    /// The CA's own certificate, or its verifier of others, cannot be made.
    #[error(transparent)]
    Identity(#[from] DoorError),
}

impl From<StorageError> for StartError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Store(error) => Self::Store(error),
            StorageError::Founding(error) => Self::Founding(error),
        }
    }
}

impl StartError {
    fn signers(error: WriteError<PolicyError>) -> Self {
        let reason = error.to_string();
        Self::Signers { reason }
    }
}

/// Starts a CA, which makes its authority on the first start if the configuration lets it, and serves when this returns.
///
/// # Errors
/// [`StartError`], one sentence for the operator; nothing is half-written.
pub async fn start(config: Config) -> Result<Running, StartError> {
    let founding = config.founding();
    start_founding(config, founding).await
}

/// Starts a CA, and says whether it may begin anew where one was.
///
/// # Errors
/// As [`start`].
pub async fn start_founding(config: Config, founding: Founding) -> Result<Running, StartError> {
    config.check(Path::new("configuration"))?;
    let attestors = Attestors::open(
        &config.attestors,
        config.file.as_deref().unwrap_or(Path::new("configuration")),
    )?;
    config.federation.read()?;
    for doubt in config.doubts() {
        tracing::warn!(doubt, "the configuration");
    }
    let rules = Rights::read(config.admin_policy_dir.as_deref())?;
    files::private_dir(&config.data_dir)?;
    let listener = listen(config.listen).await?;
    let node_address = listener.local_addr().map_err(|source| StartError::Listen {
        address: config.listen,
        source,
    })?;

    let metrics_door = match config.metrics_listen {
        Some(listen) => Some(MetricsDoor::bind(listen).await?),
        None => None,
    };

    let oidc_door = match &config.oidc {
        Some(settings) => Some(OidcDoor::bind(settings).await?),
        None => None,
    };

    let bundle_door = match &config.bundle_endpoint {
        Some(settings) => Some(BundleDoor::bind(settings).await?),
        None => None,
    };

    let otlp = config.otlp.as_ref().map(Prepared::new).transpose()?;

    let now = clock::now();
    let opening = config.clone();
    let opened = tokio::task::spawn_blocking(move || Storage::open(&opening, founding)).await;
    let Storage { store, location } = opened.map_err(|_| StartError::PartEnded)??;
    let (opening, keeping) = (config.clone(), Arc::clone(&store));
    let opened = tokio::task::spawn_blocking(move || Authorities::open(&opening, &*keeping, founding, now)).await;
    let Authorities {
        maker,
        jwt_keyring,
        authority,
        jwt,
    } = opened.map_err(|_| StartError::PartEnded)??;
    tracing::info!(keys = maker.keyring.about(), "the keys that sign");
    founding::check_revision(&config.data_dir, &location, store.revision(), founding)?;
    let acts = Acts::open(&config)?;
    acts.own("Start", rules.digest())?;
    let rights = Rights::open(rules, config.trust_domain.clone());
    let issuer_url = config.oidc.as_ref().map(|oidc| oidc.issuer.as_str());
    let issuer = Issuer::new(authority, lives(&config)).with_jwt(JwtSigning::new(jwt, issuer_url));
    let (admin_listener, placed) = socket::place(&config.admin_socket, 0o600)?;
    let bundles = BundleCache::new(Arc::clone(&store));
    let first = NameFirst::new(&config.trust_domain, &config.policy_signers);
    if let (false, _) = write::commit(&*store, &first).map_err(StartError::signers)? {
        tracing::error!(
            target: "hoplite::audit",
            "`policy_signers` names others than the signers that people have signed for; those count, and `hoplite policy signers list` shows them"
        );
    }
    // It begins to follow the store, which stays open as long as that goes on.
    let (registry, follower) = Registry::open(store)?;
    let door = door(&config, &registry, issuer.clone(), acts.clone(), now);
    let (doorkeeper, door) = match door {
        Ok(door) => door,
        Err(error) => {
            let _ = tokio::task::spawn_blocking(move || follower.stop()).await;
            return Err(error);
        }
    };

    // From here on nothing fails.
    let (stopper, shutdown) = shutdown::channel();
    let publishing = Publishing::new(
        registry.clone(),
        bundles,
        config.trust_domain.clone(),
        config.policy_max_bytes,
    );
    for doubt in publishing.doubts_at(clock::now()).await {
        tracing::error!(target: "hoplite::audit", doubt, "policy in force would not be believed if it came today; publish again");
    }
    publishing.sweep().await;
    let metrics = Metrics::default();
    let upstream = maker.upstream.clone();
    let nesting = maker.link.clone().map(|link| Nesting {
        link,
        registry: registry.clone(),
        acts: acts.clone(),
    });
    let federation = Federation::new(&registry, acts.clone(), config.federation.clone());
    let store = config.data_dir.join("store");
    let site = Arc::new(metrics.site(&registry, &issuer, &acts, &federation, upstream, store));
    // It reads the whole binary, once.
    let _ = tokio::task::spawn_blocking(Program::this).await;
    let fleet = Fleet::new(config.report_period.0);
    let node = Node::new(node::Parts {
        registry: registry.clone(),
        issuer: issuer.clone(),
        acts: acts.clone(),
        attestors,
        publishing: publishing.clone(),
        fleet: fleet.clone(),
        metrics: metrics.clone(),
        replicas: config.replicas.clone(),
        shutdown: shutdown.clone(),
    });
    let invites = Invites {
        listen: node_address,
        advertise: config.advertise.clone(),
        issuer: issuer.clone(),
    };
    let rotation = Rotation::new(
        registry.clone(),
        issuer.clone(),
        acts.clone(),
        fleet.clone(),
        (maker, jwt_keyring),
        plan(&config),
    );
    let nested = NestedServer::new(NestedCas::new(
        registry.clone(),
        issuer.clone(),
        acts.clone(),
        rotation.clone(),
        shutdown.clone(),
    ));
    let gate = Gate::new(registry.clone(), rights.clone(), acts.clone());
    let admin = Admin::new(admin::Parts {
        registry: registry.clone(),
        // What lives for just that long ends with its authority at the earliest.
        ttl_limit: config.authority_ttl.0 / LAST_PART + Duration::from_secs(1),
        publishing,
        invites,
        reported: Reported::new(
            registry.clone(),
            fleet.clone(),
            rotation.clone(),
            Arc::clone(&site),
            federation.clone(),
            shutdown.clone(),
        ),
        backups: Backups::new(
            registry.clone(),
            config.data_dir.clone(),
            config.file.clone(),
            shutdown.clone(),
        ),
        rotation: rotation.clone(),
        federation: federation.clone(),
    });
    let (agents, agents_accepted) = mpsc::channel(BACKLOG_MAX);
    let (operators, operators_accepted) = mpsc::channel(BACKLOG_MAX);

    let mut parts = JoinSet::new();
    let (doors, door) = watch::channel(door);
    let own = door.clone();
    let shown = door.clone();
    let sending = otlp.map(|prepared| {
        let sender = Sender {
            prepared,
            service: "hoplite-ca",
            instance: format!("{}@{}", config.trust_domain, host_name()),
            site: Arc::clone(&site),
            spans: None,
            identity: Arc::new(move |expect| own.borrow().client_of(expect)),
            sent: metrics.sent.clone(),
        };
        sender.start()
    });
    let accepting = listener::accept(
        listener,
        door,
        is_known(&gate),
        agents,
        metrics.calls("node"),
        fleet.clone(),
        shutdown.clone(),
    );
    parts.spawn(part("node listener", accepting));
    let accepting = admin::accept(admin_listener, operators, metrics.calls("admin"), shutdown.clone());
    parts.spawn(part("admin listener", accepting));
    parts.spawn(part("identity", until(shutdown.clone(), doorkeeper.keep(doors))));
    let writing = keep_bundle_file(config.data_dir.join(BUNDLE_FILE), registry.bundles());
    parts.spawn(part("bundle file", until(shutdown.clone(), writing)));
    let looking = fleet.clone().look_after(registry.clone());
    parts.spawn(part("authorities", until(shutdown.clone(), rotation.clone().run())));
    parts.spawn(part("reports", until(shutdown.clone(), looking)));
    let mut revisions = registry.revisions();
    let following = async move { while revisions.changed().await.is_ok() {} };
    parts.spawn(part("follower", until(shutdown.clone(), following)));
    let metrics_address = metrics_door.as_ref().map(MetricsDoor::address);
    if let Some(door) = metrics_door {
        parts.spawn(part("metrics", door.serve(Arc::clone(&site), shutdown.clone())));
    }
    let (oidc_address, web_tls) = match &oidc_door {
        Some(door) => (Some(door.address()), door.tls()),
        None => (None, WebTls::default()),
    };
    if let Some(door) = oidc_door {
        let serving = door.serve(registry.bundles(), metrics.oidc_reads.clone(), shutdown.clone());
        parts.spawn(part("OpenID Connect discovery", serving));
    }
    let bundle_address = bundle_door.as_ref().map(BundleDoor::address);
    let bundle_tls = bundle_door.as_ref().and_then(BundleDoor::tls);
    if let Some(door) = bundle_door {
        let reads = metrics.bundle_reads.clone();
        let serving = door.serve(registry.bundles(), shown, reads, shutdown.clone());
        parts.spawn(part("bundle endpoint", serving));
    }
    if let Some(nesting) = nesting {
        parts.spawn(part("CA above", until(shutdown.clone(), nesting.run())));
    }
    let refreshing = federation.clone().run();
    parts.spawn(part("federation", until(shutdown.clone(), refreshing)));
    let readiness = SiteReadiness {
        site: Arc::clone(&site),
        shutdown: shutdown.clone(),
    };
    let health = |beside: &'static str| HealthService::server(readiness.clone(), [beside]);
    // The bundle decides whether it is too large, and says so; the message around it is a little longer.
    let bytes_max = config.policy_max_bytes.saturating_add(1 << 20).max(ADMIN_BYTES_MAX);
    let admin = AdminServer::new(admin).max_decoding_message_size(bytes_max);
    let port = Port::new(
        (
            Beside::new(NodeServer::new(node), Beside::new(nested, health(NODE))),
            CALL_TIMEOUT,
        ),
        (
            Guard::<_, AgentCaller>::new(admin.clone(), gate.clone()),
            ADMIN_CALL_TIMEOUT,
        ),
    );
    let (service, incoming) = (
        Counted::<_, AgentCaller>::new(port),
        ReceiverStream::new(agents_accepted),
    );
    let mut stop = shutdown.clone();
    parts.spawn(part("node service", async move {
        report(
            server()
                .serve_with_incoming_shutdown(service, incoming, stop.wait())
                .await,
        );
    }));
    let admin = Guard::<_, Caller>::new(Counted::<_, Caller>::new(admin), gate);
    // Whoever may open the socket may ask how it is, and takes no operator's place by that.
    let admin = Beside::new(admin, health(ADMIN));
    let (service, incoming) = (admin, ReceiverStream::new(operators_accepted));
    let mut stop = shutdown;
    parts.spawn(part("admin service", async move {
        report(
            server()
                .timeout(ADMIN_CALL_TIMEOUT)
                .serve_with_incoming_shutdown(service, incoming, stop.wait())
                .await,
        );
    }));
    tracing::info!(trust_domain = %config.trust_domain, %node_address, admin_socket = %config.admin_socket.display(), "the CA serves");
    Ok(Running {
        node_address,
        metrics_address,
        oidc_address,
        bundle_address,
        bundle_tls,
        federation,
        web_tls,
        registry,
        admin_socket: placed,
        stopper,
        parts,
        follower,
        issuer,
        rotation,
        rights,
        acts,
        fleet,
        trust_domain: config.trust_domain,
        policy_signers: config.policy_signers,
        sending,
        settings: Settings::default(),
    })
}

/// What the first agent sees. `bundle.pem` is there before it.
fn door(
    config: &Config,
    registry: &Registry,
    issuer: Issuer,
    acts: Acts,
    now: SystemTime,
) -> Result<(Doorkeeper, Door), StartError> {
    let bundles = registry.bundles();
    write_bundle(&config.data_dir.join(BUNDLE_FILE), &bundles.borrow())?;
    Ok(Doorkeeper::new(issuer, acts, bundles, now)?)
}

fn write_bundle(path: &Path, bundle: &TrustBundle) -> Result<(), FileError> {
    files::write_public(path, bundle.to_pem().as_bytes())
}

/// For those who set up the next agent: the file says what the store says, for ever.
async fn keep_bundle_file(path: PathBuf, mut bundles: watch::Receiver<Arc<TrustBundle>>) {
    while bundles.changed().await.is_ok() {
        let bundle = Arc::clone(&bundles.borrow_and_update());
        if let Err(error) = write_bundle(&path, &bundle) {
            tracing::error!(%error, "agents that join from now on may not trust each authority");
        }
    }
    std::future::pending().await // the CA no longer follows its store: another part says so, and ends the CA
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| StartError::Listen { address, source })
}

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .max_concurrent_streams(STREAMS_MAX)
}

fn lives(config: &Config) -> Lives {
    Lives {
        agent: config.agent_ttl.0,
        operator: config.operator_ttl.0,
        x509: config.x509_ttl.0,
        jwt: config.jwt_ttl.0,
        reattest_within: config.reattest_within.0,
        template_names_per_node: config.template_names_per_node,
    }
}

fn plan(config: &Config) -> Plan {
    Plan {
        ttl: config.authority_ttl.0,
        rotates: config.authority_rotates,
        jwt_rotates: !config.store.is_shared() || config.keys.are_shared(),
    }
}

fn is_known(gate: &Gate) -> IsKnown {
    let gate = gate.clone();
    Arc::new(move |peer| gate.is_known(peer))
}

async fn part(name: &'static str, work: impl Future<Output = ()>) -> &'static str {
    work.await;
    name
}

async fn until(mut shutdown: Shutdown, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = shutdown.wait() => {}
    }
}

fn report(served: Result<(), tonic::transport::Error>) {
    if let Err(error) = served {
        tracing::error!(%error, "stopped serving");
    }
}

/// What a CA is started with.
#[derive(Debug, Clone, clap::Args)]
#[group(skip)] // those of every daemon are the group of this name
pub struct Arguments {
    /// As every daemon.
    #[command(flatten)]
    pub daemon: daemon::PlacedArguments,
    /// Begin with an empty store, although a CA was here or may have been: every agent joins, every entry is registered anew
    #[arg(long)]
    pub init: bool,
    /// Make another authority where the last one ended while the CA was away: every agent joins anew; entries, operators and bans stay
    #[arg(long, conflicts_with = "init")]
    pub new_authority: bool,
}

/// Runs a CA until SIGTERM or SIGINT.
///
/// Two threads: signing for one agent must not hold up the others. Sealed, because it holds the trust domain's key.
///
/// # Errors
/// As [`start`], and what the system refuses.
pub fn run(arguments: &Arguments) -> Result<(), DaemonError<StartError>> {
    let process = Process {
        hardening: Hardening::Sealed,
        threads: Threads::Two,
    };
    let daemon = arguments.daemon.at(Places::ca_config);
    daemon::run(&daemon, process, || async {
        let file = &daemon.config;
        let (config, settings) = (Config::load(file)?, Settings::read(file)?);
        logging::set(config.log_levels.as_ref());
        let founding = match (arguments.init, arguments.new_authority) {
            (true, _) => Founding::Anew,
            (false, true) => Founding::NewAuthority,
            (false, false) => config.founding(),
        };
        let running = start_founding(config, founding).await?;
        Ok(Running { settings, ..running })
    })
}

// === impl Running ===

impl Daemon for Running {
    type Error = StartError;

    async fn ended(&mut self) -> Result<(), StartError> {
        Err(self.wait().await)
    }

    async fn reload(&mut self, file: &Path) -> Result<Reloaded, StartError> {
        let (config, next) = (Config::load(file)?, Settings::read(file)?);
        // First what can fail.
        config.federation.read()?;
        let web_tls = config.oidc.as_ref().map(OidcSettings::tls).transpose()?.flatten();
        let bundle_tls = config.bundle_endpoint.as_ref().map(BundleEndpointSettings::tls);
        let bundle_tls = bundle_tls.transpose()?.flatten();
        let rules = Rights::read(config.admin_policy_dir.as_deref())?;
        if config.policy_signers != self.policy_signers {
            self.name_signers(file, &config).await?;
        }
        self.acts.own("Reload", rules.digest())?;
        self.rights.take(rules);
        // A web certificate is renewed in place. Whoever served plain HTTP goes on with that until the next start.
        if self.web_tls.is_some() && web_tls.is_some() {
            self.web_tls.set(web_tls);
        }
        if let (Some(shown), Some(_)) = (&self.bundle_tls, &bundle_tls) {
            shown.set(bundle_tls);
        }
        let signers = !config.policy_signers.is_empty();
        let mut settings = std::mem::take(&mut self.settings);
        let reloaded = settings.reload(&next, |name| match name {
            "log_levels" => {
                logging::set(config.log_levels.as_ref());
                true
            }
            // Read above, with what is in it.
            "admin_policy_dir" => true,
            "oidc.certificate" | "oidc.key" => self.web_tls.is_some(),
            "bundle_endpoint.certificate" | "bundle_endpoint.key" => self.bundle_tls.is_some(),
            "federation.stale_max" | "federation.web_authorities" => {
                self.federation.set_settings(config.federation.clone());
                true
            }
            "x509_ttl" | "jwt_ttl" | "agent_ttl" | "operator_ttl" | "reattest_within" | "template_names_per_node" => {
                self.issuer.set_lives(lives(&config));
                true
            }
            "authority_ttl" | "authority_rotates" => {
                self.rotation.set_plan(plan(&config));
                true
            }
            "report_period" => {
                self.fleet.set_period(config.report_period.0);
                true
            }
            // Nobody named is no other; whoever counted counts on.
            "policy_signers" => signers,
            _ => false,
        });
        self.settings = settings;
        Ok(reloaded)
    }

    fn status(&self) -> String {
        format!(
            "serving the agents of {} on {}",
            self.bundle().trust_domain(),
            self.node_address
        )
    }

    async fn stop(self, _why: &Result<(), StartError>) {
        self.stop().await;
    }
}

impl Running {
    /// Takes the signers of a file that was edited, unless people have signed for others since.
    async fn name_signers(&mut self, file: &Path, config: &Config) -> Result<(), StartError> {
        let first = NameFirst::new(&self.trust_domain, &config.policy_signers);
        let named = self.registry.write(first).await.map_err(StartError::signers)?;
        if !named {
            let names: Vec<&str> = config.policy_signers.names().collect();
            let reason = "people have signed for others since, and those count; `hoplite policy signers list` shows them, `hoplite policy \
                          signers --help` how they change";
            return Err(ConfigError::unusable(file, "policy_signers", format_args!("{names:?}"), reason).into());
        }
        self.policy_signers = config.policy_signers.clone();
        Ok(())
    }

    /// Where agents connect.
    pub fn node_address(&self) -> SocketAddr {
        self.node_address
    }

    /// Where `/live`, `/ready` and `/metrics` are served, if they are.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Where OpenID Connect discovery is served, if it is.
    pub fn oidc_address(&self) -> Option<SocketAddr> {
        self.oidc_address
    }

    /// Where the trust bundle is published, if it is.
    pub fn bundle_address(&self) -> Option<SocketAddr> {
        self.bundle_address
    }

    /// What peers of this trust domain are verified with now.
    pub fn bundle(&self) -> TrustBundle {
        TrustBundle::clone(&self.registry.bundles().borrow())
    }

    /// Has peers verified with one more authority, which does not sign here. Returns the trust bundle's sequence number
    /// once it is in force at the CA. For tests: no operator can ask for it.
    ///
    /// # Errors
    /// Why the certificate was not taken.
    #[cfg(feature = "testing")]
    pub async fn trust(
        &self,
        certificate: hoplite_identity::CertificateDer<'static>,
    ) -> Result<u64, WriteError<TrustError>> {
        let trusting = crate::authority::writes::Trusting::old(certificate, clock::now());
        self.registry.write(trusting).await
    }

    /// Stops serving, and returns when all parts have ended and the store is closed. Calls that have begun get
    /// five seconds to end.
    pub async fn stop(self) {
        let Self {
            admin_socket,
            stopper,
            mut parts,
            follower,
            registry,
            sending,
            ..
        } = self;
        // Nobody new finds it.
        drop(admin_socket);
        stopper.stop();
        let ended = async { while parts.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_GRACE, ended).await.is_err() {
            tracing::warn!("some calls did not end in time");
        }
        parts.shutdown().await;
        if let Some(sending) = sending {
            sending.stop().await;
        }
        // The follower last: writes that have begun wait for it.
        let _ = tokio::task::spawn_blocking(move || follower.stop()).await;
        drop(registry); // the last that holds the store
    }

    /// Returns when it can do its work no longer, and says why: a write to the store failed, as on a full disk, or a part of it
    /// died, which should not happen. The caller restarts the process.
    pub async fn wait(&mut self) -> StartError {
        tokio::select! {
            error = self.registry.store_stopped() => {
                tracing::error!(notice = true, %error, "ALARM: nothing can be stored any more, so the CA ends");
                return StartError::StoreStopped(error);
            }
            ended = self.parts.join_next() => match ended {
                Some(Ok(part)) => tracing::error!(part, "a part of the CA ended"),
                Some(Err(error)) => tracing::error!(%error, "a part of the CA died"),
                None => {}
            },
        }
        StartError::PartEnded
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running")
            .field("node_address", &self.node_address)
            .finish_non_exhaustive()
    }
}
