//! The whole proxy, from its configuration to its end.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hoplite_audit::{Options, Recorder};
use hoplite_decision::reporting::keep_reporting;
use hoplite_decision::{CurrentPolicy, DecisionPoint, Follower, LOG_NOTE, follow_bundles};
use hoplite_host::clock;
use hoplite_host::daemon::{self, Arguments, Daemon, DaemonError, Process};
use hoplite_host::files;
use hoplite_host::liveness::Answers;
use hoplite_host::logging;
use hoplite_host::process::{self, Hardening};
use hoplite_host::reload::{Reloaded, Settings};
use hoplite_host::shutdown::{self, Stopper};
use hoplite_host::socket::{self as unix_socket, Placed};
use hoplite_identity::SpiffeId;
use hoplite_otlp::{Prepared, Sender, Sending, Tracer};
use hoplite_telemetry::MetricsDoor;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tracing::{error, info, warn};

use crate::admin::Admin;
use crate::config::Config;
use crate::error::StartError;
use crate::http::rules::{HttpRules, RulesFeed};
use crate::listening::{DRAIN_MAX, Listeners, Shown};
use crate::metrics::Metrics;
use crate::peer::destination::{BadDestination, Destination};
use crate::peer::identity_feed::{IdentityFeed, Layer, Source};
use crate::port::{Kind, Port};
use crate::shown;
use crate::worker::{Question, Shared, Worker};

/// What is under way may take only this long to finish when nothing can be recorded any more: no new request can be answered, so
/// the sooner it is over the better.
const DRAIN_UNRECORDED_MAX: Duration = Duration::from_secs(1);

/// A proxy that accepts. Dropping it stops it at once; [`Running::stop`] drains first.
#[derive(Debug)]
pub struct Running {
    /// In force, with what was taken over since the start.
    pub(crate) config: Config,
    /// The file it came from, if it came from one.
    pub(crate) settings: Settings,
    pub(crate) listeners: Listeners,
    pub(crate) rules: RulesFeed,
    pub(crate) policy: Arc<CurrentPolicy>,
    pub(crate) point: Arc<DecisionPoint>,
    pub(crate) following: Option<Follower>,
    metrics_address: Option<SocketAddr>,
    /// Says that it stops, to who asks whether it is ready.
    drain: Stopper,
    close: Stopper,
    /// A worker says here that it has ended.
    ended: mpsc::Receiver<()>,
    workers: Vec<Question>,
    threads: Vec<std::thread::JoinHandle<()>>,
    /// Tells the agent how this proxy is, and at the stop that it leaves.
    reporting: Stopper,
    /// The error with which it leaves, if it does.
    failure: Arc<OnceLock<String>>,
    reporter: JoinHandle<()>,
    /// Spans and metrics, to a collector.
    sending: Option<Sending>,
    _control: JoinSet<()>,
    /// The admin socket.
    _placed: Placed,
}

/// Why a listener cannot call that peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CannotRedirect {
    /// No outbound listener has the name.
    #[error("there is no upstream `{0}`; add an `[[outbound]]` table")]
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
    let otlp = config.otlp.as_ref().map(Prepared::new).transpose()?;
    let ports = bind(&config, workers)?;
    files::private_dir(&config.state_dir)?;
    let started = clock::now();
    let (recorder, records_lost) = open_log(&config)?;
    let (admin_listener, placed) = unix_socket::place(&config.admin_socket, 0o600)?;
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
    let listed = ports.iter().map(|port| Shown {
        kind: port.kind.clone(),
        address: port.address,
    });
    let listed = watch::Sender::new(listed.collect());
    let admin = Arc::new(Admin {
        name: config.name.clone(),
        listeners: listed.subscribe(),
        point: point.clone(),
        identity: first_identity,
        metrics: metrics.clone(),
        metrics_address,
        site: site.clone(),
        started,
        records_lost,
    });
    let sending = otlp.map(|prepared| send(&config.name, prepared, &metrics, &admin));
    let (tracer, sending) = sending.map_or((None, None), |(tracer, sending)| (tracer, Some(sending)));
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
    let epoch = policy.subscribe();
    control.spawn(follow_bundles(
        policy.clone(),
        config.workload_api.clone(),
        trust_domain,
    ));
    let (reporting, leaving) = shutdown::channel();
    let described = admin.clone();
    let describe = move || described.report();
    let failure = Arc::default();
    let reporter = tokio::spawn(keep_reporting(
        config.workload_api.clone(),
        describe,
        epoch,
        Arc::clone(&failure),
        leaving,
    ));

    // Traffic.
    for port in &ports {
        port.listen()?;
        info!(name = port.kind.name(), address = %port.address, inbound = port.kind.is_inbound(), "listening");
    }
    // Each worker says its end once.
    let (ends, ended) = mpsc::channel(workers.max(1));
    let (mut threads, mut ways, mut questions) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..workers {
        let (worker, way) = Worker::new(closed.clone(), metrics.clone());
        ways.push(way);
        questions.push(worker.question());
        match traffic {
            Traffic::Here => {
                tokio::spawn(worker.run(ends.clone()));
            }
            Traffic::Threads => threads.push(worker.thread(ends.clone())?),
        }
    }
    let rules = RulesFeed::new(HttpRules::of(&config));
    let shared = Shared::new(identity, point.clone(), metrics.clone(), rules.clone(), tracer);
    let listeners = Listeners::serve(ports, ways, shared, metrics, listed).await;
    Ok(Running {
        config,
        settings: Settings::default(),
        listeners,
        rules,
        policy,
        point,
        following: follower,
        metrics_address,
        drain,
        close,
        ended,
        workers: questions,
        threads,
        reporting,
        failure,
        reporter,
        sending,
        _control: control,
        _placed: placed,
    })
}

/// Begins to send spans and metrics. The collector may know the proxy by its SVID, once there is one.
fn send(name: &str, prepared: Prepared, metrics: &Metrics, admin: &Admin) -> (Option<Arc<Tracer>>, Sending) {
    let made = prepared
        .makes_spans()
        .then(|| Tracer::new(prepared.sampled(), metrics.otlp.clone()));
    let (tracer, spans) = made.unzip();
    let identity = admin.identity.clone();
    let by_identity = move |expect: &SpiffeId| {
        let current = identity.get().map(|feed| feed.current());
        let current = current.ok_or_else(|| io::Error::other("there is no SVID yet"))?;
        current.client(expect, Layer::Http).map_err(io::Error::other)
    };
    let sender = Sender {
        prepared,
        service: "hoplite-proxy",
        instance: name.to_owned(),
        site: admin.site.clone(),
        spans,
        identity: Arc::new(by_identity),
        sent: metrics.otlp.clone(),
    };
    (tracer, sender.start())
}

fn bind(config: &Config, copies: usize) -> Result<Vec<Port>, StartError> {
    let (kinds, connections_max) = (kinds(config)?, connections_max(config));
    kinds
        .into_iter()
        .map(|kind| Port::bind(kind, copies, connections_max))
        .collect()
}

/// The listeners that a configuration wants, in its order.
pub(crate) fn kinds(config: &Config) -> Result<Vec<Kind>, StartError> {
    let inbound = config.inbound.iter().cloned().map(|inbound| Ok(Kind::inbound(inbound)));
    inbound
        .chain(config.outbound.iter().cloned().map(Kind::outbound))
        .collect()
}

/// Connections of each listener.
pub(crate) fn connections_max(config: &Config) -> usize {
    let listeners = config.inbound.len() + config.outbound.len();
    // Each connection may need another one, to the service or to a peer.
    config.limits.connections_max.min(process::places(2, listeners)).max(1)
}

fn open_log(config: &Config) -> Result<(Recorder, u64), StartError> {
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
    Ok((recorder, repair.missing))
}

// === impl Running ===

impl Daemon for Running {
    type Error = StartError;

    async fn ended(&mut self) -> Result<(), StartError> {
        Err(self.wait().await)
    }

    async fn reload(&mut self, file: &Path) -> Result<Reloaded, StartError> {
        self.read_again(file).await
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
        let (services, upstreams) = self.listeners.names();
        let shown = |listed: Vec<String>| {
            if listed.is_empty() {
                "none".to_owned()
            } else {
                listed.join(", ")
            }
        };
        format!("serving; in: {}; out: {}", shown(services), shown(upstreams))
    }

    async fn stop(self, why: &Result<(), StartError>) {
        if let Err(error) = why {
            let _ = self.failure.set(daemon::one_line(error));
        }
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
        self.listeners.address(true, service)
    }

    /// Where the listener for an upstream is.
    pub fn outbound(&self, name: &str) -> Option<SocketAddr> {
        self.listeners.address(false, name)
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
        let destination = self
            .listeners
            .destination(name)
            .ok_or_else(|| CannotRedirect::NoSuchUpstream(name.to_owned()))?;
        let next = Destination::new(connect_to, expect).map_err(|bad| match bad {
            BadDestination::Address => CannotRedirect::Address(connect_to.to_owned()),
            BadDestination::TrustDomain => CannotRedirect::TrustDomain(expect.clone()),
        })?;
        info!(notice = true, upstream = name, connect_to, %expect, "upstream redirected");
        destination.replace(&next);
        Ok(())
    }

    /// Accepts nothing new, lets what is under way finish for a bounded time, then closes the rest.
    pub async fn stop(self) {
        self.stop_within(DRAIN_MAX).await;
    }

    async fn stop_within(mut self, drain: Duration) {
        self.drain.stop();
        self.reporting.stop();
        if !self.listeners.drain(drain).await {
            warn!("connections were still open after {} s and are closed", drain.as_secs());
        }
        // All connections, and then the workers.
        drop(self.listeners);
        self.close.stop();
        for thread in self.threads.drain(..) {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        self.point.roll_up();
        if let Some(sending) = self.sending {
            sending.stop().await;
        }
        let _ = self.reporter.await; // it waits no longer than half a second for the agent
    }

    /// Returns when the proxy can no longer do its work: the decision log cannot be written, or a worker has ended by
    /// itself, which it does only by a fault of ours. It goes on refusing until it is stopped.
    pub async fn wait(&mut self) -> StartError {
        tokio::select! {
            source = self.point.log_failed() => StartError::Log { dir: self.config.audit_dir.clone(), source },
            _ = self.ended.recv() => StartError::System {
                what: "a worker",
                source: io::Error::other("it ended by itself"),
            },
        }
    }
}
