//! Who keeps foreign bundles new: it asks each endpoint as often as its bundle says, and says what cannot be had.
//!
//! A bundle that cannot be refreshed is kept and believed, and that is said. It ends by its authorities' own ends, or when it could not be
//! refreshed for `stale_max`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use hoplite_host::backoff::jitter;
use hoplite_host::clock;
use hoplite_identity::{BundleDocument, BundleSet, InvalidBundle, PeerVerifier, TrustBundle, TrustDomain, tls};
use hoplite_telemetry::{Counter, Exposition, Family, Kind};
use rustls::RootCertStore;
use tokio::task::JoinSet;

use crate::acts::Acts;
use crate::federation::fetch::{FetchError, Target};
use crate::federation::records::{Endpoint, Federated, Profile, first_refresh};
use crate::federation::settings::FederationSettings;
use crate::federation::state::State;
use crate::federation::web::{self, WebAuthoritiesError};
use crate::federation::writes::{FederationError, NOTED_EVERY, Take, Taken, Withdraw};
use crate::record;
use crate::registry::{Registry, WeakRegistry};
use crate::write::WriteError;

/// How often it is looked who is due. It costs a look into memory.
const LOOK: Duration = Duration::from_secs(1);

/// What failed is tried again after this, or after the bundle's own refresh if that is shorter (F-6).
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Endpoints that are asked at the same time.
const AT_ONCE_MAX: usize = 8;

/// The same trouble is logged again after this.
const SAID_AGAIN: Duration = Duration::from_secs(3600);

/// Results are of a fixed set.
const RESULTS_MAX: usize = 8;

/// Keeps foreign bundles. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Federation(Arc<Shared>);

struct Shared {
    registry: WeakRegistry,
    acts: Acts,
    settings: RwLock<FederationSettings>,
    attempts: Mutex<BTreeMap<TrustDomain, Attempt>>,
    refreshes: Family<1, Counter>,
}

/// What became of the last attempt at one endpoint. After a restart nothing was attempted.
#[derive(Debug, Default, Clone)]
struct Attempt {
    /// When it is asked again; none: now.
    next: Option<Instant>,
    running: bool,
    /// Unix seconds, of the last success since the start.
    succeeded: u64,
    failure: String,
    /// Unix seconds.
    failed: u64,
    /// What was said last, and when.
    said: Option<(State, Instant)>,
}

/// Why a bundle was not refreshed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RefreshError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("what the endpoint answered is no trust bundle: {0}")]
    Document(InvalidBundle),
    #[error(transparent)]
    Write(#[from] WriteError<FederationError>),
    #[error(transparent)]
    Web(#[from] WebAuthoritiesError),
    #[error("the bundles that endpoints are known by cannot be used: {0}")]
    Verifier(InvalidBundle),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the CA is stopping")]
    Stopping,
}

/// One federation at one moment, for people.
#[derive(Debug, Clone)]
pub(crate) struct Shown {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) federated: Federated,
    pub(crate) state: State,
    pub(crate) sequence: u64,
    pub(crate) authorities: usize,
    pub(crate) jwt_authorities: usize,
    pub(crate) not_after: Option<SystemTime>,
    /// Unix seconds; 0 for never.
    pub(crate) refreshed: u64,
    /// Likewise. What this process has not seen itself is noted now and then, and so may be newer.
    pub(crate) refreshed_at_latest: u64,
    pub(crate) next: Option<SystemTime>,
    pub(crate) refresh: Duration,
    pub(crate) failure: String,
    pub(crate) failed: u64,
    pub(crate) entries: usize,
    pub(crate) sets: usize,
    pub(crate) warning: Option<String>,
}

// === impl Federation ===

impl Federation {
    pub(crate) fn new(registry: &Registry, acts: Acts, settings: FederationSettings) -> Self {
        Self(Arc::new(Shared {
            registry: registry.downgrade(),
            acts,
            settings: RwLock::new(settings),
            attempts: Mutex::default(),
            refreshes: Family::new(["result!"], RESULTS_MAX),
        }))
    }

    /// From now on by these.
    pub(crate) fn set_settings(&self, settings: FederationSettings) {
        *self.0.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    fn settings(&self) -> FederationSettings {
        self.0.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks whoever is due, for ever.
    pub(crate) async fn run(self) {
        let mut running = JoinSet::new();
        loop {
            let now = clock::moment();
            for domain in self.due(now) {
                if running.len() >= AT_ONCE_MAX {
                    break; // its turn comes within a second of the others' end
                }
                self.attempts().entry(domain.clone()).or_default().running = true;
                let federation = self.clone();
                running.spawn(async move {
                    let _ = federation.refresh(&domain).await; // it is kept and said
                    federation.attempts().entry(domain).or_default().running = false;
                });
            }
            self.look_after().await;
            while running.try_join_next().is_some() {}
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Whose endpoint is to be asked now.
    fn due(&self, now: Instant) -> Vec<TrustDomain> {
        let Some(registry) = self.0.registry.upgrade() else {
            return Vec::new();
        };
        let index = registry.index();
        let attempts = self.attempts();
        let is_due = |domain: &TrustDomain| {
            let attempt = attempts.get(domain);
            attempt.is_none_or(|attempt| !attempt.running && attempt.next.is_none_or(|next| next <= now))
        };
        let federated = index.federation.federated();
        let asked = federated.filter(|(domain, federated)| federated.endpoint.is_some() && is_due(domain));
        asked.map(|(domain, _)| domain.clone()).collect()
    }

    /// Asks one endpoint, and keeps what it answers.
    pub(crate) async fn refresh(&self, domain: &TrustDomain) -> Result<Taken, RefreshError> {
        let done = self.fetch(domain).await;
        let unix = record::unix_seconds(clock::now());
        let refresh = self.refresh_of(domain);
        let mut attempts = self.attempts();
        let attempt = attempts.entry(domain.clone()).or_default();
        let result = match &done {
            Ok(taken) => {
                if !attempt.failure.is_empty() {
                    tracing::info!(notice = true, trust_domain = %domain, "the foreign trust bundle is refreshed again");
                }
                attempt.failure.clear();
                attempt.succeeded = unix;
                // Not all at the same moment, and never later than asked for.
                let wait = refresh.mul_f64(0.9 + 0.1 * jitter());
                attempt.next = Some(clock::moment() + wait);
                if taken.same_number {
                    tracing::warn!(trust_domain = %domain, sequence = taken.sequence, "the foreign trust bundle changed, and its sequence number did not");
                }
                if taken.is_new && taken.is_empty {
                    tracing::warn!(target: "hoplite::audit", notice = true, trust_domain = %domain, sequence = taken.sequence, "the new foreign trust bundle is without any authority: its workloads are refused from now on");
                } else if taken.is_new {
                    tracing::info!(target: "hoplite::audit", trust_domain = %domain, sequence = taken.sequence, "a new foreign trust bundle");
                }
                if taken.is_new {
                    self.0.acts.own_act(
                        "ForeignBundle",
                        domain.to_string(),
                        [("sequence", taken.sequence.to_string())],
                    );
                    "new"
                } else {
                    "unchanged"
                }
            }
            Err(error) => {
                let text = error.to_string();
                if attempt.failure != text {
                    tracing::warn!(trust_domain = %domain, error = text, "the foreign trust bundle is not refreshed");
                }
                attempt.failure = text;
                attempt.failed = unix;
                let wait = refresh.min(RETRY_MAX).mul_f64(0.9 + 0.1 * jitter());
                attempt.next = Some(clock::moment() + wait);
                match error {
                    RefreshError::Fetch(FetchError::Forbidden { .. }) => "forbidden",
                    RefreshError::Fetch(FetchError::Peer { .. }) => "stranger",
                    RefreshError::Fetch(_) => "unreachable",
                    RefreshError::Document(_) | RefreshError::Write(WriteError::Refused(_)) => "refused",
                    _ => "failed",
                }
            }
        };
        self.0.refreshes.get([result]).inc();
        done
    }

    async fn fetch(&self, domain: &TrustDomain) -> Result<Taken, RefreshError> {
        let registry = self.0.registry.upgrade().ok_or(RefreshError::Stopping)?;
        let refused = |error: FederationError| RefreshError::Write(WriteError::Refused(error));
        let (federated, own, bundles) = {
            let index = registry.index();
            let federated = index.federation.get(domain).cloned();
            let own = index.authority.bundle().cloned();
            let bundles: Vec<Arc<TrustBundle>> = index.federation.bundles().cloned().collect();
            (federated, own, bundles)
        };
        let own = own.ok_or(RefreshError::Stopping)?;
        let federated = federated.ok_or_else(|| refused(FederationError::NoSuch(domain.clone())))?;
        let endpoint = federated
            .endpoint
            .ok_or_else(|| refused(FederationError::NoEndpoint(domain.clone())))?;
        let target = self.target(&endpoint, &own, bundles)?;
        let bytes = target.fetch().await?;
        let document = BundleDocument::parse(domain.clone(), &bytes).map_err(RefreshError::Document)?;
        let take = Take {
            domain: domain.clone(),
            document,
            by_hand: false,
            own,
            now: record::unix_seconds(clock::now()),
        };
        Ok(registry.write(take).await?)
    }

    /// Where to go, and by what it is known who answers (F-4): the newest bundles, each for its own trust domain.
    fn target(
        &self,
        endpoint: &Endpoint,
        own: &Arc<TrustBundle>,
        bundles: Vec<Arc<TrustBundle>>,
    ) -> Result<Target, RefreshError> {
        let alpn: &[&[u8]] = &[b"http/1.1"];
        let (tls, by_name) = match &endpoint.profile {
            Profile::HttpsWeb => (tls::web_client_config(self.web_roots()?, alpn)?, true),
            Profile::HttpsSpiffe(id) => {
                let mut set: BundleSet = bundles.into_iter().collect();
                set.insert(Arc::clone(own));
                let verifier = PeerVerifier::new(set).map_err(RefreshError::Verifier)?;
                (tls::client_config(None, Arc::new(verifier), id.clone(), alpn)?, false)
            }
        };
        Ok(Target {
            url: endpoint.url.clone(),
            allowed: endpoint.allowed.clone(),
            tls,
            by_name,
        })
    }

    /// Read anew each time: the file is renewed in place, and an endpoint is asked once in minutes.
    fn web_roots(&self) -> Result<RootCertStore, WebAuthoritiesError> {
        let file = self.settings().web_authorities.unwrap_or_else(web::of_system);
        web::roots(&file)
    }

    fn refresh_of(&self, domain: &TrustDomain) -> Duration {
        let registry = self.0.registry.upgrade();
        let held = registry.as_ref().and_then(|registry| {
            let index = registry.index();
            index.federation.bundle(domain).map(|(record, _)| record.refresh())
        });
        held.unwrap_or_else(first_refresh)
    }

    /// Says what is wrong, once and again in a while, and withdraws what nobody could refresh for too long.
    async fn look_after(&self) {
        let Some(registry) = self.0.registry.upgrade() else {
            return;
        };
        let (now, moment) = (clock::now(), clock::moment());
        let shown = self.shown(now);
        self.attempts()
            .retain(|domain, attempt| attempt.running || shown.iter().any(|shown| shown.trust_domain == *domain));
        for shown in shown {
            let domain = &shown.trust_domain;
            let age = Duration::from_secs(record::unix_seconds(now).saturating_sub(shown.refreshed_at_latest));
            if shown.state == State::Stale && age > self.settings().stale_max.0 {
                let withdraw = Withdraw {
                    domain: domain.clone(),
                    checked: shown.refreshed,
                };
                match registry.write(withdraw).await {
                    Ok(true) => {
                        self.0.acts.own_act("ForeignBundleWithdrawn", domain.to_string(), []);
                        tracing::error!(target: "hoplite::audit", notice = true, trust_domain = %domain, "a foreign trust bundle is given to nobody any more");
                    }
                    Ok(false) => {}
                    Err(error) => {
                        tracing::error!(%error, trust_domain = %domain, "a foreign trust bundle cannot be withdrawn")
                    }
                }
            }
            let Some(warning) = shown.warning else {
                if let Some(attempt) = self.attempts().get_mut(domain) {
                    attempt.said = None;
                }
                continue;
            };
            let mut attempts = self.attempts();
            let attempt = attempts.entry(domain.clone()).or_default();
            // Before the first attempt there is nothing to say.
            let is_new = shown.federated.endpoint.is_some() && attempt.next.is_none();
            let is_said = attempt
                .said
                .is_some_and(|(state, at)| state == shown.state && moment.saturating_duration_since(at) < SAID_AGAIN);
            if !is_new && !is_said {
                attempt.said = Some((shown.state, moment));
                tracing::error!(notice = true, warning, "federation");
            }
        }
    }

    /// All federations, as they are now.
    pub(crate) fn shown(&self, now: SystemTime) -> Vec<Shown> {
        let Some(registry) = self.0.registry.upgrade() else {
            return Vec::new();
        };
        let stale_max = self.settings().stale_max.0;
        let moment = clock::moment();
        let index = registry.index();
        let attempts = self.attempts();
        let shown = index.federation.federated().map(|(domain, federated)| {
            let held = index.federation.bundle(domain);
            let attempt = attempts.get(domain).cloned().unwrap_or_default();
            let checked = held.map_or(0, |(record, _)| record.checked);
            let refreshed = match held {
                Some(_) => checked.max(attempt.succeeded),
                None => 0,
            };
            let state = State::of(
                federated,
                held.map(|(record, bundle)| (record, &**bundle)),
                refreshed,
                now,
            );
            let age = Duration::from_secs(record::unix_seconds(now).saturating_sub(refreshed));
            let (entries, sets) = index.federation.users(domain);
            let left = attempt.next.map(|next| next.saturating_duration_since(moment));
            Shown {
                trust_domain: domain.clone(),
                federated: federated.clone(),
                state,
                sequence: held.map_or(0, |(record, _)| record.sequence),
                authorities: held.map_or(0, |(_, bundle)| bundle.authorities().len()),
                jwt_authorities: held.map_or(0, |(_, bundle)| bundle.jwt().key_ids().count()),
                not_after: held.and_then(|(_, bundle)| bundle.last_end()),
                refreshed,
                refreshed_at_latest: match attempt.succeeded {
                    0 => refreshed.saturating_add(NOTED_EVERY),
                    _ => refreshed,
                },
                next: left.filter(|_| federated.endpoint.is_some()).map(|left| now + left),
                refresh: held.map_or_else(first_refresh, |(record, _)| record.refresh()),
                warning: state.warning(domain, age, stale_max, &attempt.failure),
                failure: attempt.failure,
                failed: attempt.failed,
                entries,
                sets,
            }
        });
        shown.collect()
    }

    /// What somebody has to do about federations; the first few.
    pub(crate) fn warnings(&self, now: SystemTime) -> Vec<String> {
        let moment_of_start =
            |shown: &Shown| shown.state == State::Missing && shown.failed == 0 && shown.federated.endpoint.is_some();
        let shown = self.shown(now).into_iter().filter(|shown| !moment_of_start(shown));
        shown.filter_map(|shown| shown.warning).collect()
    }

    /// Adds what is known to what is shown.
    pub(crate) fn register(&self, to: &mut Exposition) {
        to.register(
            "federation_refreshes",
            "Attempts to fetch a foreign trust bundle, by result: `new`, `unchanged`, `unreachable`, `stranger` (not the endpoint that is \
             expected), `forbidden` (an address that is not dialled), `refused` (what came is not believed), `failed`",
            self.0.refreshes.clone(),
        );
        let federation = self.clone();
        to.sampled(
            Kind::Gauge,
            "federations",
            "Foreign trust domains, by how it stands with their bundles: `fresh`, `by_hand`, `stale`, `withdrawn`, `ended`, `empty`, `missing`",
            move |to| {
                let shown = federation.shown(clock::now());
                for state in State::ALL {
                    let count = shown.iter().filter(|shown| shown.state == state).count();
                    to.put_for(&[("state", state.as_str())], count as u64);
                }
            },
        );
        let federation = self.clone();
        to.sampled(
            Kind::Gauge,
            "federation_oldest_refresh_timestamp_seconds",
            "When the foreign bundle was last refreshed that was refreshed the longest ago, in seconds since 1970; nothing when none is fetched",
            move |to| {
                let shown = federation.shown(clock::now());
                let fetched = shown.iter().filter(|shown| shown.federated.endpoint.is_some());
                if let Some(oldest) = fetched.map(|shown| shown.refreshed).min() {
                    to.put(oldest);
                }
            },
        );
    }

    /// Its endpoint is asked at the next look.
    pub(crate) fn ask_soon(&self, domain: &TrustDomain) {
        if let Some(attempt) = self.attempts().get_mut(domain) {
            attempt.next = None;
        }
    }

    fn attempts(&self) -> MutexGuard<'_, BTreeMap<TrustDomain, Attempt>> {
        self.0.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
