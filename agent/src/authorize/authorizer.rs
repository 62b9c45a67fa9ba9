//! Decisions for those who enforce them with a proxy of their own: who may ask about which service, and what is answered.
//!
//! The asker tells who calls, and its word decides: so it must be attested as the workload that the configuration names
//! for that service. It can then open no more than what it serves anyway. Everything else is as in our own proxy, because
//! the same [`DecisionPoint`] decides and records.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use hoplite_audit::{Options, Phase, Recorder, RecorderError};
use hoplite_decision::{
    CurrentPolicy, DecisionPoint, DirectoryUnusable, Draft, Facts, Follower, Granted, HttpRequest, LOG_NOTE, OnStale,
    Refused, Stranger, Unasked, Witness,
};
use hoplite_host::clock;
use hoplite_host::files::{self, FileError};
use hoplite_host::shutdown::Shutdown;
use hoplite_identity::{ServiceName, SpiffeId};
use hoplite_policy::holding::Holding;
use hoplite_policy::{Caller, CanonicalRequest, Transport};
use http::StatusCode;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::authorize::call::{Call, Target, Wanted};
use crate::config::Authorization;
use crate::socket::session::Entitlement;

/// Decides for all who may ask on this node.
pub(crate) struct Authorizer {
    point: Arc<DecisionPoint>,
    feed: Arc<CurrentPolicy>,
    services: RwLock<BTreeMap<ServiceName, SpiffeId>>,
    name: String,
    records_lost: u64,
    audit_dir: PathBuf,
    directory: Mutex<Option<Follower>>,
}

/// Somebody who may ask about a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asker {
    service: ServiceName,
    id: SpiffeId,
}

/// Why somebody may not ask.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotAsker {
    #[error("`{0}` is not in `[authorization.services]` of this node's agent")]
    UnknownService(String),
    #[error("only `{id}` may ask about `{service}`, and this process has no SVID of that name")]
    NotItsService { service: ServiceName, id: SpiffeId },
    #[error("no service in `[authorization.services]` of this node's agent is this process's")]
    NoService,
    #[error("this process may ask about several services; say about which")]
    SeveralServices,
}

/// Why there can be no decisions.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorizerError {
    /// The decision log cannot be opened, or be written any longer.
    #[error("the decision log in `{dir}`: {source}", dir = .dir.display())]
    Log {
        /// Where it is.
        dir: PathBuf,
        /// Why not.
        source: RecorderError,
    },
    /// The directory for the policy that is kept cannot be used.
    #[error("`state_dir`: {0}")]
    State(#[from] FileError),
    /// There is no thread for it.
    #[error("the policy directory cannot be followed: {0}")]
    Follow(#[from] io::Error),
}

// === impl Authorizer ===

impl Authorizer {
    /// Opens the log and begins with the policy that the agent holds.
    ///
    /// # Errors
    /// [`AuthorizerError`]. A policy that cannot be used is no error: everything is denied, and the reason said.
    pub(crate) fn open(config: &Authorization, holding: Holding, now: SystemTime) -> Result<Self, AuthorizerError> {
        files::private_dir(&config.state_dir)?;
        let note = config.state_dir.join(LOG_NOTE);
        let opened = Recorder::open_noted(&config.audit_dir, &config.name, Options::default(), &note);
        let (recorder, repair) = opened.map_err(|source| AuthorizerError::Log {
            dir: config.audit_dir.clone(),
            source,
        })?;
        if repair.missing > 0 {
            tracing::error!(
                records = repair.missing,
                "the decision log has lost records that were on the disk"
            );
        }
        let feed = Arc::new(CurrentPolicy::beside(&config.state_dir, holding, now));
        let directory = config.policy_dir.clone().map(|dir| feed.follow(dir)).transpose()?;
        Ok(Self {
            point: Arc::new(DecisionPoint::new(
                feed.clone(),
                recorder,
                config.reference_check_every,
                config.on_stale_policy,
            )),
            feed,
            services: RwLock::new(config.services.clone()),
            name: config.name.clone(),
            records_lost: repair.missing,
            audit_dir: config.audit_dir.clone(),
            directory: Mutex::new(directory),
        })
    }

    /// Whether a directory of policies could be followed instead. Nothing changes.
    ///
    /// # Errors
    /// It cannot be read, or not be in force.
    pub(crate) fn try_directory(&self, directory: &Path) -> Result<(), DirectoryUnusable> {
        self.feed.try_directory(directory)
    }

    /// Follows another directory of policies from now on.
    ///
    /// # Errors
    /// There is no thread for it; then the one before is followed on.
    pub(crate) fn follow_directory(&self, directory: PathBuf) -> io::Result<()> {
        let following = self.feed.follow(directory)?;
        *self.directory.lock().unwrap_or_else(PoisonError::into_inner) = Some(following);
        Ok(())
    }

    /// Who may ask about what, and what becomes of a policy that has expired, from now on.
    pub(crate) fn change(&self, services: &BTreeMap<ServiceName, SpiffeId>, on_stale: OnStale) {
        services.clone_into(&mut self.services.write().unwrap_or_else(PoisonError::into_inner));
        self.point.set_on_stale(on_stale);
    }

    /// Puts in force what the agent holds, now and at each change, until the stop.
    pub(crate) async fn follow(self: Arc<Self>, mut held: watch::Receiver<Arc<Holding>>, mut shutdown: Shutdown) {
        // What this process holds is always heard.
        self.feed.contact().heard();
        loop {
            let (feed, now) = (self.feed.clone(), held.borrow_and_update().clone());
            // Compiling a large bundle takes seconds.
            let offered = spawn_blocking(move || feed.follow_holding(&now, clock::now())).await;
            if let Err(error) = offered {
                tracing::error!(%error, "a policy update was lost; what is in force stays so until the next");
            }
            tokio::select! {
                changed = held.changed() => if changed.is_err() { return },
                () = shutdown.wait() => return self.point.roll_up(),
                () = self.point.keep_counts() => return,
            }
        }
    }

    /// What decides.
    pub(crate) fn point(&self) -> &Arc<DecisionPoint> {
        &self.point
    }

    /// What its decision ids begin with.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Records that were missing from its log at the start.
    pub(crate) fn records_lost(&self) -> u64 {
        self.records_lost
    }

    /// Returns when another policy is in force.
    pub(crate) async fn changed(&self) {
        if self.feed.subscribe().changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Waits until no decision can be recorded any more, and says why. Every answer is a refusal from then on.
    pub(crate) async fn log_failed(&self) -> AuthorizerError {
        AuthorizerError::Log {
            dir: self.audit_dir.clone(),
            source: self.point.log_failed().await,
        }
    }

    /// For which service somebody with these identities asks: the one it names, or the only one it may ask about.
    ///
    /// # Errors
    /// Why it may not, for whoever configures it.
    pub(crate) fn asker(&self, who: &Entitlement, named: Option<&str>) -> Result<Asker, NotAsker> {
        let is_own = |id: &SpiffeId| who.identities.iter().any(|own| own.svid.spiffe_id() == id);
        let asker = |(service, id): (&ServiceName, &SpiffeId)| Asker {
            service: service.clone(),
            id: id.clone(),
        };
        let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(named) = named {
            let Some((service, id)) = services.get_key_value(named) else {
                return Err(NotAsker::UnknownService(named.to_owned()));
            };
            if !is_own(id) {
                return Err(NotAsker::NotItsService {
                    service: service.clone(),
                    id: id.clone(),
                });
            }
            return Ok(asker((service, id)));
        }
        let mut own = services.iter().filter(|(_, id)| is_own(id));
        match (own.next(), own.next()) {
            (Some(only), None) => Ok(asker(only)),
            (None, _) => Err(NotAsker::NoService),
            (Some(_), Some(_)) => Err(NotAsker::SeveralServices),
        }
    }

    /// Decides and records. The asker is somebody that [`Authorizer::asker`] has let in.
    ///
    /// # Errors
    /// [`Refused`]: no is to be answered.
    pub(crate) async fn judge(&self, asker: &Asker, call: Call) -> Result<Granted<Wanted>, Refused> {
        let source = call.source.map(|source| source.to_string());

        // Who. Nobody whom we know must not be able to fill the disk through those who ask.
        let principal = match call.principal {
            Ok(principal) => principal,
            Err(unasked) => {
                let stranger = Stranger {
                    service: &asker.service,
                    vouched_by: Some(&asker.id),
                    source,
                    trace_id: call.trace_id,
                };
                return Err(self.point.refuse_stranger(stranger, unasked).await);
            }
        };

        // What.
        let (phase, action, wanted) = match call.target {
            Target::Connection => (Phase::Connect, "connect".to_owned(), Ok(None)),
            Target::Http {
                method,
                request,
                headers,
            } => {
                let with_fields = |canonical: Box<CanonicalRequest>| HttpRequest {
                    canonical: *canonical,
                    rest: headers,
                };
                (Phase::Request, method, request.map(with_fields).map(Some))
            }
        };
        let facts = Facts {
            phase,
            service: &asker.service,
            witness: Witness::Other {
                caller: Caller::danger_vouched_for(&principal),
                by: &asker.id,
            },
            source,
            trace_id: call.trace_id,
        };
        let draft = Draft::new(facts).action(&action);
        let wanted = match wanted {
            Ok(wanted) => wanted,
            Err(unasked) => return Err(self.point.refuse(draft, unasked).await),
        };

        // From where. A policy about addresses must not be asked with one that was made up.
        let Some(source) = call.source else {
            let reason = "the address from which the call comes was not told, or is no IP address";
            let unasked = Unasked::malformed("no_source", reason).with_status(StatusCode::FORBIDDEN);
            return Err(self.point.refuse(draft, unasked).await);
        };

        // Decide, and record.
        let transport = Transport::new(source.ip);
        self.point.judge(draft, wanted, &transport).await.recorded().await
    }
}

impl fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorizer")
            .field("audit_dir", &self.audit_dir)
            .finish_non_exhaustive()
    }
}
