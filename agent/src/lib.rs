//! One per node: attests itself and its workloads, and keeps them supplied.
//!
//! [`node`] joins the trust domain and renews the node's own SVID; [`supply`] follows what is registered under this node,
//! has an SVID minted for each entry and renews it; [`attest`] says who calls; [`socket`] brings caller and supply
//! together and serves both in the Workload API and in SDS; [`policy`] keeps the signed policies that the socket hands
//! to those who enforce them; [`reports`] tells the CA how all of it is; [`authorize`] decides with them for those who ask, by Envoy's ext_authz or AuthZEN. The
//! decisions in each are pure functions of values; the loops around them are thin.

#![cfg_attr(test, expect(clippy::disallowed_methods, reason = "a test's now is its own"))]

mod addresses;
mod attest;
mod authorize;
mod config;
mod joining;
mod kept;
mod metrics;
mod node;
mod policy;
mod proofs;
mod purge;
mod refused;
mod reload;
mod renewal;
mod reports;
mod shown;
mod socket;
mod supply;
#[cfg(test)]
pub(crate) mod testing;
mod tokens;
mod troubles;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hoplite_host::clock;
use hoplite_host::config::ConfigError;
use hoplite_host::daemon::{self, Daemon, DaemonError, Process, Threads};
use hoplite_host::logging;
pub use hoplite_host::peer_process::PeerProcess;
use hoplite_host::places;
use hoplite_host::process::Hardening;
use hoplite_host::reload::{Reloaded, Settings};
use hoplite_host::shutdown::{self, Stopper};
use hoplite_host::socket::{self as unix_socket, BindError, Placed};
use hoplite_otlp::{OtlpError, Prepared, Sender, Sending, Sent, host_name};
use hoplite_policy::holding::Holding;
use hoplite_telemetry::{MetricsDoor, MetricsDoorError};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use addresses::CaAddresses;
pub use attest::k8s::KubernetesSettings;
pub use attest::launch::{Launcher, LauncherError};
pub use authorize::authorizer::AuthorizerError;
pub use config::{Authorization, Config};
pub use joining::{JoinError, JoinWith, Joined, join, membership};
pub use kept::lock::NotSole;
pub use node::keeper::{Membership, NodeError};
pub use proofs::{JoinSettings, TokenJoin, TpmJoin, X509popJoin};

use attest::Attestor;
use attest::k8s::Kubelet;
use attest::launch::Launches;
use authorize::authorizer::Authorizer;
use kept::Kept;
use node::keeper::Keeper;
use node::link::CaLink;
pub use policy::HolderError;
use policy::{PolicyHolder, Wanted};
pub use purge::{PurgeError, Purged, purge, purge_unconfigured};
use reports::Reporter;
use reports::node::NodeFacts;
use reports::points::Points;
use shown::Shown;
use socket::server::Places;
use socket::session::Sessions;
use supply::changes::Changes;
use supply::sync::Told;
use supply::{Supplier, SupplyReceiver};
use tokens::Tokens;

/// Open calls are told to end; one that does not within this is cut off.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// An agent that serves its socket. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct Running {
    socket: Placed,
    metrics_address: Option<SocketAddr>,
    supply: SupplyReceiver,
    /// In force, with what was taken over since the start.
    config: Config,
    link: CaLink,
    token_files: watch::Sender<Option<PathBuf>>,
    policy: watch::Sender<Wanted>,
    stopper: Stopper,
    /// Each says why it ended. All of them end only after the stop.
    parts: JoinSet<&'static str>,
    authorizer: Option<Arc<Authorizer>>,
    /// Metrics, to a collector.
    sending: Option<Sending>,
    /// Those in force, for an agent that has a file.
    settings: Settings,
}

/// Why an agent did not start. One sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The kernel cannot say which process connected.
    #[error("workloads cannot be attested: {0}")]
    Kernel(#[source] io::Error),
    /// The node's own files.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// What policy was accepted before cannot be read.
    #[error(transparent)]
    Policy(#[from] HolderError),
    /// What decides for others cannot begin.
    #[error(transparent)]
    Authorizer(#[from] AuthorizerError),
    /// The socket for workloads.
    #[error(transparent)]
    Socket(#[from] BindError),
    /// The address for metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsDoorError),
    /// Nothing can be sent to the collector that is configured.
    #[error(transparent)]
    Otlp(#[from] OtlpError),
    /// The launcher channel is no Unix socket.
    #[error(
        "standard input is no Unix socket ({0}); leave out `--launcher-stdin` unless a supervisor starts the agent"
    )]
    Launcher(#[source] io::Error),
}

/// Starts an agent. When this returns its socket is bound; calls are answered `Unavailable` until the first word from
/// the CA. `launcher` is the agent's end of a socket pair whose other end a supervisor uses through [`Launcher`].
///
/// # Errors
/// [`StartError`]; nothing is bound or half-written then. A CA that is away is no error: the agent keeps trying.
pub async fn start(config: Config, launcher: Option<UnixStream>) -> Result<Running, StartError> {
    let started = clock::now();
    config.peer_process.ensure_possible().map_err(StartError::Kernel)?;
    if config.peer_process == PeerProcess::Pid {
        tracing::warn!(
            notice = true,
            "`peer_process = \"pid\"`: callers are known by their process number, user and group, not by the kernel's word; see the threat \
             model for what that leaves open"
        );
    }
    let keeper = Arc::new(Keeper::open(
        &config.data_dir,
        &config.trust_domain,
        &config.trust_bundle,
    )?);
    let kept = Kept::open(&config.data_dir, config.supply_key_file.as_deref());
    let holder = PolicyHolder::open(
        &config.data_dir,
        &config.policy_signers,
        &config.trust_domain,
        config.policy_max_bytes,
        clock::now(),
    )?;
    let (feed, holdings) = (holder.feed(), holder.holdings());
    let authorizer = config.authorization.as_ref().map(|authorization| {
        let holding = Holding::clone(&holdings.borrow());
        Authorizer::open(authorization, holding, clock::now()).map(Arc::new)
    });
    let authorizer = authorizer.transpose()?;
    let link = CaLink::new(config.ca.clone(), &config.trust_domain, keeper.credentials());
    link.learn(keeper.addresses());
    let kubelet = config
        .kubernetes
        .as_ref()
        .map(|settings| Kubelet::open(settings, Path::new("configuration")));
    let kubelet = kubelet.transpose()?;
    let launcher = launcher.map(into_async).transpose().map_err(StartError::Launcher)?;
    let (listener, placed) = unix_socket::place(&config.socket, config.socket_mode())?;
    // From here on no other agent is in the way.
    kept.say();
    let otlp = config.otlp.as_ref().map(Prepared::new).transpose()?;
    let door = match config.metrics_listen {
        Some(listen) => Some(MetricsDoor::bind(listen).await?),
        None => None,
    };

    let metrics_address = door.as_ref().map(MetricsDoor::address);
    let (metrics_link, held) = (link.clone(), holdings.clone());
    let (stopper, stop) = shutdown::channel();
    let registrations = watch::Sender::new(None);
    let supply = watch::Sender::new(None);
    let launches = Launches::default();
    let connections = watch::Sender::new(None);
    let tokens = Tokens::new(connections.subscribe(), Arc::clone(link.metrics()));
    let sessions = Sessions {
        attestor: Arc::new(Attestor::new(launches.clone()).with(kubelet)),
        supply: supply.subscribe(),
        shutdown: stop.clone(),
        refused: Arc::default(),
        peer_process: config.peer_process,
        kept: kept.clone(),
        tokens: tokens.clone(),
        troubles: link.troubles().clone(),
    };

    let mut parts = JoinSet::new();
    let changes = Changes::default();
    let supplier =
        Supplier::new(link.clone(), supply, changes.clone(), kept.clone()).run(registrations.subscribe(), stop.clone());
    let states = watch::Sender::new(None);
    let wanted = watch::Sender::new(config.policy());
    let policy = policy::run(
        holder,
        link.clone(),
        states.subscribe(),
        wanted.subscribe(),
        stop.clone(),
    );
    let token_files = watch::Sender::new(config.join_token_file.clone());
    let points = Arc::new(Points::new());
    let reporter = Reporter {
        facts: NodeFacts {
            started,
            credentials: keeper.credentials(),
            registrations: registrations.subscribe(),
            supply: sessions.supply.clone(),
            holdings: holdings.clone(),
            feed: feed.clone(),
            refused: Arc::clone(&sessions.refused),
        },
        points: Arc::clone(&points),
        authorizer: authorizer.clone(),
    };
    let reporting = reports::run(reporter, connections.subscribe(), stop.clone());
    let told = Told {
        registrations,
        changes,
        policy: states,
        connections,
        kept: kept.clone(),
        process: node::process_name(),
    };
    let forgetting = tokens.run(sessions.supply.clone(), stop.clone());
    let sync = supply::sync::run(
        link.clone(),
        Arc::clone(&keeper),
        config.trust_domain.clone(),
        told,
        stop.clone(),
    );
    let restoring = {
        let (kept, keeper) = (kept.clone(), Arc::clone(&keeper));
        async move {
            let owner = keeper.membership().map(|own| own.spiffe_id);
            let first_bundle = keeper.bundles().0;
            let trust = |bundle| {
                keeper.catch_up(bundle);
                keeper.credentials().borrow().clone()
            };
            kept.restore(owner, first_bundle, trust).await;
        }
    };
    let keeping = kept.run(link.credentials(), stop.clone());
    let node = node::run(
        keeper,
        link.clone(),
        (token_files.subscribe(), config.join.clone()),
        stop.clone(),
    );
    let peer_process = config.peer_process;
    let running = Running {
        socket: placed,
        metrics_address,
        supply: sessions.supply.clone(),
        config,
        link,
        token_files,
        policy: wanted,
        stopper,
        parts: JoinSet::new(),
        authorizer: authorizer.clone(),
        sending: None,
        settings: Settings::default(),
    };
    let sent = Sent::default();
    let mut stopping = stop.clone();
    if let Some(authorizer) = authorizer.clone() {
        let following = authorizer.follow(holdings, stop.clone());
        parts.spawn(async {
            following.await;
            "the policy for decisions"
        });
    }
    let routes = authorize::routes(&sessions, authorizer.as_ref());
    let routes = socket::with_services(routes, &sessions, feed, &points);
    let refused = Arc::clone(&sessions.refused);
    let places = Places::default();
    let site = (door.is_some() || otlp.is_some()).then(|| {
        let shown = Shown {
            link: metrics_link.clone(),
            sent: sent.clone(),
            supply: sessions.supply.clone(),
            tokens: sessions.tokens.clone(),
            holdings: held,
            refused: refused.clone(),
            attested: sessions.attestor.results().clone(),
            connections: places.connections.clone(),
            streams: places.streams.clone(),
            authorizer: authorizer.clone(),
            shutdown: stop.clone(),
        };
        Arc::new(shown.site())
    });
    let sending = otlp.zip(site.clone()).map(|(prepared, site)| {
        let sender = Sender {
            prepared,
            service: "hoplite-agent",
            instance: host_name(),
            site,
            spans: None,
            identity: Arc::new(move |expect| metrics_link.client_of(expect)),
            sent,
        };
        sender.start()
    });
    if let (Some(door), Some(site)) = (door, site) {
        let serving = door.serve(site, stop.clone());
        parts.spawn(async {
            serving.await;
            "the metrics"
        });
    }
    let server = socket::server::serve(listener, routes, peer_process, places, refused, stop);
    parts.spawn(async {
        restoring.await;
        keeping.await;
        "what is kept on the disk"
    });
    parts.spawn(async {
        supplier.await;
        "the supply of SVIDs"
    });
    parts.spawn(async {
        forgetting.await;
        "the JWT-SVIDs at hand"
    });
    parts.spawn(async {
        sync.await;
        "the watch on the CA"
    });
    parts.spawn(async {
        policy.await;
        "the policy"
    });
    parts.spawn(async {
        reporting.await;
        "the reports to the CA"
    });
    parts.spawn(async {
        node.await;
        "the node's identity"
    });
    parts.spawn(async {
        if let Err(error) = server.await {
            tracing::error!(%error, "the socket cannot be served");
        }
        "the socket"
    });
    if let Some(stream) = launcher {
        parts.spawn(async move {
            tokio::select! {
                ended = launches.serve(stream) => if let Err(error) = ended {
                    tracing::warn!(%error, "the launcher channel is broken");
                },
                () = stopping.wait() => {}
            }
            "the launcher channel"
        });
    }
    tracing::info!(socket = %running.socket.path().display(), "serving workloads");
    Ok(Running {
        parts,
        sending,
        ..running
    })
}

/// What an agent is started with, as `hoplite-agent run` and as `hoplite agent run`.
#[derive(Debug, Clone, clap::Args)]
#[group(skip)] // those of every daemon are the group of this name
pub struct Arguments {
    /// As every daemon.
    #[command(flatten)]
    pub daemon: daemon::PlacedArguments,
    /// Standard input is a Unix socket on which a supervisor says what it launched; its end stops the agent
    #[arg(long)]
    pub launcher_stdin: bool,
}

/// Runs an agent until SIGINT, SIGTERM or the end of the launcher channel.
///
/// Two threads, because a bundle that is compiled, a key that is made and a program that is digested must not hold up
/// those who wait for a decision. Sealed, because it holds the node's key and those of its workloads.
///
/// # Errors
/// As [`start`], and what the system refuses.
pub fn run(arguments: &Arguments) -> Result<(), DaemonError<StartError>> {
    let process = Process {
        hardening: Hardening::Sealed,
        threads: Threads::Two,
    };
    let daemon = arguments.daemon.at(places::Places::agent_config);
    daemon::run(&daemon, process, || async {
        let file = &daemon.config;
        let (config, settings) = (Config::load(file)?, Settings::read(file)?);
        logging::set(config.log_levels.as_ref());
        let launcher = arguments.launcher_stdin.then(launcher_on_stdin).transpose()?;
        let running = start(config, launcher).await?;
        Ok(Running { settings, ..running })
    })
}

/// The launcher channel, when a supervisor made it the standard input of this process.
fn launcher_on_stdin() -> Result<UnixStream, StartError> {
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned().map_err(StartError::Launcher)?);
    stream.peer_addr().map_err(StartError::Launcher)?;
    Ok(stream)
}

fn into_async(stream: UnixStream) -> io::Result<tokio::net::UnixStream> {
    stream.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(stream)
}

// === impl Running ===

impl Daemon for Running {
    type Error = StartError;

    async fn ended(&mut self) -> Result<(), StartError> {
        self.wait().await
    }

    async fn reload(&mut self, file: &Path) -> Result<Reloaded, StartError> {
        self.read_again(file).await
    }

    fn status(&self) -> String {
        match &*self.supply.borrow() {
            Some(_) => format!("serving workloads on {}", self.socket.path().display()),
            None => format!(
                "waiting for the first word of the CA; {} is there",
                self.socket.path().display()
            ),
        }
    }

    async fn stop(self, _why: &Result<(), StartError>) {
        self.stop().await;
    }
}

impl Running {
    /// The socket for workloads.
    pub fn socket(&self) -> &Path {
        self.socket.path()
    }

    /// Where `/live`, `/ready` and `/metrics` are served, if they are.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Returns `true` once the node has its SVID and workloads can be served, `false` if the agent ends before that.
    pub async fn ready(&mut self) -> bool {
        self.supply.wait_for(Option::is_some).await.is_ok()
    }

    /// Returns when the agent ends by itself: its supervisor is gone, or, which should not happen, a part of it is.
    ///
    /// # Errors
    /// [`StartError::Authorizer`] when decisions can be recorded no longer. Every one is refused until the stop.
    pub async fn wait(&mut self) -> Result<(), StartError> {
        let log = self.authorizer.clone();
        let log_failed = async {
            match log {
                Some(authorizer) => authorizer.log_failed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            failed = log_failed => return Err(failed.into()),
            ended = self.parts.join_next() => match ended {
                Some(Ok(part)) => tracing::warn!(part, "a part has ended, so the agent does"),
                Some(Err(error)) => tracing::error!(%error, "a part has failed, so the agent ends"),
                None => {}
            },
        }
        Ok(())
    }

    /// Stops: removes the socket, ends open calls, and returns when all parts have ended, after 3 seconds at the latest.
    pub async fn stop(mut self) {
        // Nobody new finds it.
        drop(self.socket);
        self.stopper.stop();
        let ended = async {
            while let Some(part) = self.parts.join_next().await {
                tracing::debug!(?part, "ended");
            }
        };
        if tokio::time::timeout(STOP_TIMEOUT, ended).await.is_err() {
            tracing::debug!("some calls did not end in time");
        }
        if let Some(sending) = self.sending {
            sending.stop().await;
        }
    }
}
