//! The whole proxy, from its configuration to its end.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hoplite_audit::{Options, Recorder};
use hoplite_decision::{CurrentPolicy, DecisionPoint, Follower, LOG_NOTE, follow_bundles};
use hoplite_host::clock;
use hoplite_host::daemon::{self, Arguments, Daemon, DaemonError, Process};
use hoplite_host::files;
use hoplite_host::liveness::Answers;
use hoplite_host::logging;
use hoplite_host::process::{self, Hardening};
use hoplite_host::reload::{Reloaded, Settings};
use hoplite_host::shutdown::{self, Stopper};
use hoplite_host::slots::Slots;
use hoplite_host::socket as unix_socket;
use hoplite_identity::SpiffeId;
use hoplite_telemetry::MetricsDoor;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::admin::Admin;
use crate::config::Config;
use crate::error::StartError;
use crate::http::rules::HttpRules;
use crate::metrics::Metrics;
use crate::peer::destination::{BadDestination, Destination, DestinationFeed};
use crate::peer::identity_feed::{IdentityFeed, Source};
use crate::peer::session::Stop;
use crate::shown;
use crate::worker::{Port, Question, Shared, Worker};

/// What is under way when the proxy stops may take this long to finish.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// … and only this long when nothing can be recorded any more: no new request can be answered, so the sooner it is over the
/// better.
const DRAIN_UNRECORDED_MAX: Duration = Duration::from_secs(1);

/// A proxy that accepts. Dropping it stops it at once; [`Running::stop`] drains first.
#[derive(Debug)]
pub struct Running {
    inbound: Vec<(String, SocketAddr)>,
    outbound: Vec<(String, SocketAddr, Arc<DestinationFeed>)>,
    metrics_address: Option<SocketAddr>,
    slots: Vec<Slots>,
    point: Arc<DecisionPoint>,
    audit_dir: PathBuf,
    /// Those in force, for a proxy that has a file.
    settings: Settings,
    drain: Stopper,
    close: Stopper,
    /// A worker says here that it has ended.
    ended: mpsc::Receiver<()>,
    workers: Vec<Question>,
    threads: Vec<std::thread::JoinHandle<()>>,
    _control: JoinSet<()>,
    _policy: Option<Follower>,
}

/// Why a listener cannot call that peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CannotRedirect {
    /// No outbound listener has the name.
    #[error("there is no upstream `{0}`; add an `[[outbound]]` table and start again")]
    NoSuchUpstream(String),
    /// Nothing can be dialled there.
    #[error("`{0}` cannot be dialled; {remedy}", remedy = BadDestination::Address)]
    Address(String),
    /// A trust domain is no peer.
    #[error("`{0}` is a trust domain; {remedy}", remedy = BadDestination::TrustDomain)]
    TrustDomain(SpiffeId),
}

/// Where traffic runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Traffic {
    /// On the runtime that started the proxy.
    Here,
    /// On as many threads of its own as the configuration says.
    Threads,
}

/// Runs until SIGTERM or SIGINT: control on this thread, traffic on `workers` threads of their own.
///
/// Not sealed: an agent without root must still be able to read which program a proxy is.
///
/// # Errors
/// As [`start`], and what the system refuses.
pub fn run(arguments: &Arguments) -> Result<(), DaemonError<StartError>> {
    let process = Process {
        hardening: Hardening::NoCore,
        threads: daemon::Threads::One,
    };
    daemon::run(arguments, process, || async {
        let (config, settings) = (Config::load(&arguments.config)?, Settings::read(&arguments.config)?);
        logging::set(config.log_levels.as_ref());
        let running = start_with(config, Traffic::Threads).await?;
        Ok(Running { settings, ..running })
    })
}

/// Starts on the current runtime, with one listener for each address. Returns when every listener is bound and the first
/// SVID is held; as long as the agent is away, it waits and says so.
pub async fn start(config: Config) -> Result<Running, StartError> {
    start_with(config, Traffic::Here).await
}

async fn start_with(config: Config, traffic: Traffic) -> Result<Running, StartError> {
    // What can fail fails first, before anybody waits for an agent.
    let workers = if traffic == Traffic::Threads { config.workers } else { 1 };
    let ports = bind(&config, workers)?;
    files::private_dir(&config.state_dir)?;
    let recorder = open_log(&config)?;
    let admin_listener = unix_socket::bind(&config.admin_socket, 0o600)?;
    let door = match config.metrics_listen {
        Some(listen) => Some(MetricsDoor::bind(listen).await?),
        None => None,
    };

    // Policy. From here on there is always a snapshot, if only one that denies.
    let policy = match config.bundle_trust() {
        Some(trust) => CurrentPolicy::new(&config.state_dir, Some(trust), clock::now()),
        None => CurrentPolicy::following_signers(&config.state_dir, clock::now()),
    };
    let policy = Arc::new(policy);
    let follower = config.policy_dir.clone().map(|dir| policy.follow(dir)).transpose();
    let follower = follower.map_err(|source| StartError::System {
        what: "a thread for the policy directory",
        source,
    })?;
    let metrics = Arc::new(Metrics::default());
    metrics.watch(ports.iter().map(|port| port.slots.clone()).collect());
    let point = DecisionPoint::new(
        policy.clone(),
        recorder,
        config.reference_check_every,
        config.on_stale_policy,
    );
    let point = Arc::new(point);

    // Whatever is refused too often is written once a second.
    let mut control = JoinSet::new();
    let counting = point.clone();
    control.spawn(async move { counting.keep_counts().await });

    // Status can be asked for while the proxy waits for its identity.
    let inbound = || ports.iter().filter(|port| port.destination().is_none());
    let outbound = || {
        ports
            .iter()
            .filter_map(|port| Some((port, port.destination()?.clone())))
    };
    let (drain, drained) = shutdown::channel();
    let first_identity = shown::FirstIdentity::default();
    let workload_api = config.workload_api.clone();
    let site = Arc::new(shown::site(
        &point,
        &metrics,
        &first_identity,
        workload_api,
        drained.clone(),
    ));
    let metrics_address = door.as_ref().map(MetricsDoor::address);
    let admin = Arc::new(Admin {
        inbound: inbound().map(|port| port.address).collect(),
        outbound: outbound()
            .map(|(port, destination)| (port.address, destination))
            .collect(),
        config: config.clone(),
        point: point.clone(),
        identity: first_identity,
        metrics: metrics.clone(),
        metrics_address,
        site: site.clone(),
    });
    let (close, closed) = shutdown::channel();
    if let Some(door) = door {
        control.spawn(door.serve(site, closed.clone()));
    }
    control.spawn(admin.clone().serve(admin_listener, closed.clone()));

    // Identity. Nothing listens before there is one.
    let mut source = Source::new(config.workload_api.clone(), config.spiffe_id.clone(), metrics.clone());
    info!(workload_api = config.workload_api, "waiting for an identity");
    let identity = Arc::new(IdentityFeed::new(source.next(None).await));
    let _ = admin.identity.set(identity.clone());
    let own = identity.current();
    info!(notice = true, spiffe_id = %own.svid.spiffe_id(), serial = own.svid.leaf().serial(), "identity held");
    let following = identity.clone();
    control.spawn(async move { following.follow(source).await });

    // Bundles. The agent gives its feed to whom it knows, so an identity comes first.
    let trust_domain = own.svid.spiffe_id().trust_domain().clone();
    control.spawn(follow_bundles(policy, config.workload_api.clone(), trust_domain));

    // Traffic.
    for port in &ports {
        port.listen()?;
        info!(name = port.name(), address = %port.address, inbound = port.destination().is_none(), "listening");
    }
    // Each worker says its end once.
    let (ends, ended) = mpsc::channel(workers.max(1));
    let mut running = Running {
        inbound: inbound().map(|port| (port.name().to_owned(), port.address)).collect(),
        outbound: outbound()
            .map(|(port, destination)| (port.name().to_owned(), port.address, destination))
            .collect(),
        metrics_address,
        slots: ports.iter().map(|port| port.slots.clone()).collect(),
        point: point.clone(),
        audit_dir: config.audit_dir.clone(),
        settings: Settings::default(),
        drain,
        close,
        ended,
        workers: Vec::new(),
        threads: Vec::new(),
        _control: control,
        _policy: follower,
    };
    let shared = Shared::new(
        identity,
        point,
        metrics,
        HttpRules::of(&config),
        Stop {
            drain: drained,
            close: closed,
        },
    );
    for worker in Worker::divide(ports, workers, &shared) {
        let end = ends.clone();
        running.workers.push(worker.question());
        match traffic {
            Traffic::Here => {
                tokio::spawn(worker.run(end));
            }
            Traffic::Threads => running.threads.push(worker.thread(end)?),
        }
    }
    Ok(running)
}

fn bind(config: &Config, copies: usize) -> Result<Vec<Port>, StartError> {
    let listeners = config.inbound.len() + config.outbound.len();
    // Each connection may need another one, to the service or to a peer.
    let connections_max = config.limits.connections_max.min(process::places(2, listeners)).max(1);
    let inbound = config
        .inbound
        .iter()
        .map(|inbound| Port::bind_inbound(inbound.clone(), copies, connections_max));
    let outbound = config.outbound.iter().map(|outbound| {
        let destination = outbound.destination().map_err(|source| StartError::Destination {
            name: outbound.name.to_string(),
            reason: source.to_string(),
        })?;
        Port::bind_outbound(outbound.clone(), destination, copies, connections_max)
    });
    inbound.chain(outbound).collect()
}

fn open_log(config: &Config) -> Result<Recorder, StartError> {
    let note = config.state_dir.join(LOG_NOTE);
    let opened = Recorder::open_noted(&config.audit_dir, &config.name, Options::default(), &note);
    let (recorder, repair) = opened.map_err(|source| StartError::Audit {
        dir: config.audit_dir.clone(),
        source,
    })?;
    if repair.missing > 0 {
        error!(
            notice = true,
            records = repair.missing,
            "the decision log has lost records that were on the disk"
        );
    } else if repair.torn_bytes > 0 {
        warn!(
            bytes = repair.torn_bytes,
            "the decision log ended in an unfinished record, which was never acknowledged"
        );
    }
    Ok(recorder)
}

// === impl Running ===

impl Daemon for Running {
    type Error = StartError;

    async fn ended(&mut self) -> Result<(), StartError> {
        Err(self.wait().await)
    }

    async fn reload(&mut self, file: &Path) -> Result<Reloaded, StartError> {
        let (config, next) = (Config::load(file)?, Settings::read(file)?);
        let mut settings = std::mem::take(&mut self.settings);
        let reloaded = settings.reload(&next, |name| {
            if name == "log_levels" {
                logging::set(config.log_levels.as_ref());
                return true;
            }
            // Whom an upstream's listener calls. A listener that came, went or moved needs another start.
            let upstream = config.outbound.iter().find(|outbound| {
                let of = |key| format!("outbound.{}.{key}", outbound.name) == name;
                of("connect_to") || of("expect")
            });
            upstream.is_some_and(|outbound| {
                let redirected = self.redirect(outbound.name.as_str(), &outbound.connect_to, &outbound.expect);
                redirected.is_ok()
            })
        });
        self.settings = settings;
        Ok(reloaded)
    }

    fn answers(&self) -> Answers {
        let workers = self.workers.clone();
        Box::pin(async move {
            for worker in workers {
                worker.answered().await;
            }
        })
    }

    fn status(&self) -> String {
        let named = |(name, address): (&str, &SocketAddr)| format!("{name} on {address}");
        let services = self.inbound.iter().map(|(name, address)| named((name, address)));
        let upstreams = self.outbound.iter().map(|(name, address, _)| named((name, address)));
        let shown = |listed: Vec<String>| {
            if listed.is_empty() {
                "none".to_owned()
            } else {
                listed.join(", ")
            }
        };
        format!(
            "serving; in: {}; out: {}",
            shown(services.collect()),
            shown(upstreams.collect())
        )
    }

    async fn stop(self, why: &Result<(), StartError>) {
        let drain = match why {
            Err(StartError::Log { .. }) => DRAIN_UNRECORDED_MAX,
            _ => DRAIN_MAX,
        };
        self.stop_within(drain).await;
    }
}

impl Running {
    /// Where the listener of a service is.
    pub fn inbound(&self, service: &str) -> Option<SocketAddr> {
        self.inbound
            .iter()
            .find(|(name, _)| name == service)
            .map(|(_, address)| *address)
    }

    /// Where the listener for an upstream is.
    pub fn outbound(&self, name: &str) -> Option<SocketAddr> {
        self.upstream(name).map(|(address, _)| address)
    }

    /// Where `/live`, `/ready` and `/metrics` are served, if they are.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// From the next call on, the listener of this upstream calls another peer: the one with the identity `expect`, at
    /// `connect_to`. What is under way finishes where it is.
    ///
    /// # Errors
    /// There is no such upstream, or nobody can be called there; then nothing has changed.
    pub fn redirect(&self, name: &str, connect_to: &str, expect: &SpiffeId) -> Result<(), CannotRedirect> {
        let (_, destination) = self
            .upstream(name)
            .ok_or_else(|| CannotRedirect::NoSuchUpstream(name.to_owned()))?;
        let next = Destination::new(connect_to, expect).map_err(|bad| match bad {
            BadDestination::Address => CannotRedirect::Address(connect_to.to_owned()),
            BadDestination::TrustDomain => CannotRedirect::TrustDomain(expect.clone()),
        })?;
        info!(notice = true, upstream = name, connect_to, %expect, "upstream redirected");
        destination.replace(&next);
        Ok(())
    }

    fn upstream(&self, name: &str) -> Option<(SocketAddr, &DestinationFeed)> {
        self.outbound
            .iter()
            .find(|(known, ..)| known == name)
            .map(|(_, address, destination)| (*address, &**destination))
    }

    /// Accepts nothing new, lets what is under way finish for a bounded time, then closes the rest.
    pub async fn stop(self) {
        self.stop_within(DRAIN_MAX).await;
    }

    async fn stop_within(mut self, drain: Duration) {
        self.drain.stop();
        let drained = async {
            for slots in &self.slots {
                slots.drained().await;
            }
        };
        if timeout(drain, drained).await.is_err() {
            warn!("connections were still open after {} s and are closed", drain.as_secs());
        }
        self.close.stop();
        for thread in self.threads.drain(..) {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        self.point.roll_up();
    }

    /// Returns when the proxy can no longer do its work: the decision log cannot be written, or a worker has ended by
    /// itself, which it does only by a fault of ours. It goes on refusing until it is stopped.
    pub async fn wait(&mut self) -> StartError {
        tokio::select! {
            source = self.point.log_failed() => StartError::Log { dir: self.audit_dir.clone(), source },
            _ = self.ended.recv() => StartError::System {
                what: "a worker",
                source: std::io::Error::other("it ended by itself"),
            },
        }
    }
}
