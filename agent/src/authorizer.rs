//! Decisions for those who enforce them with a proxy of their own: who may ask about which service, and what is answered.
//!
//! The asker tells who calls, and its word decides: so it must be attested as the workload that the configuration names
//! for that service. It can then open no more than what it serves anyway. Everything else is as in our own proxy, because
//! the same [`DecisionPoint`] decides and records.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use hoplite_audit::{DecisionId, Options, Outcome, Phase, Record, Recorder, RecorderError};
use hoplite_decision::{BundleTrust, DecisionPoint, Fields, Follower, PolicyFeed, Question, Refusal};
use hoplite_host::shutdown::Shutdown;
use hoplite_identity::SpiffeId;
use hoplite_policy::{Caller, CanonicalRequest, Connection, Permit};
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::config::{Authorization, OnStale};
use crate::policy::{Feed, Held};
use crate::session::Entitlement;

/// Decides for all who may ask on this node.
pub(crate) struct Authorizer {
    point: DecisionPoint,
    feed: Arc<PolicyFeed>,
    services: BTreeMap<String, SpiffeId>,
    _directory: Option<Follower>,
}

/// Somebody who may ask about a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asker {
    service: String,
    id: SpiffeId,
}

/// What is asked, as far as it can be read.
#[derive(Debug)]
pub(crate) struct Call {
    /// Who calls, as the asker verified it.
    pub(crate) principal: Result<SpiffeId, Unusable>,
    /// Where the call comes from.
    pub(crate) source: Option<SocketAddr>,
    pub(crate) trace_id: Option<String>,
    pub(crate) target: Target,
}

/// What the call is to.
#[derive(Debug)]
pub(crate) enum Target {
    /// The service, by a connection.
    Connection,
    /// A route of it, by a request; the method as it was told.
    Http {
        method: String,
        request: Result<Box<CanonicalRequest>, Unusable>,
        /// Every header field, if the asker told all of them.
        headers: Option<HashMap<String, String>>,
    },
}

/// Why a call is refused without asking policy.
#[derive(Debug)]
pub(crate) struct Unusable {
    pub(crate) status: u16,
    pub(crate) outcome: Outcome,
    /// From a fixed set.
    pub(crate) code: &'static str,
    /// For the record.
    pub(crate) reason: String,
}

/// What is answered. Nothing but a permit makes a yes.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Yes.
    Allowed { permit: Permit, decision: DecisionId },
    /// No, and it stands in the log.
    Refused {
        status: u16,
        code: &'static str,
        outcome: Outcome,
        decision: DecisionId,
    },
    /// No, because it cannot be written down.
    Unrecorded,
}

/// Why there can be no decisions.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorizerError {
    /// The decision log cannot be opened.
    #[error("the decision log in `{dir}`: {source}", dir = .dir.display())]
    Log {
        /// Where it is.
        dir: PathBuf,
        /// Why not.
        source: RecorderError,
    },
    /// There is no thread for it.
    #[error("the policy directory cannot be followed: {0}")]
    Follow(#[from] io::Error),
}

// === impl Authorizer ===

impl Authorizer {
    /// Opens the log and goes on with the policy that was kept.
    ///
    /// # Errors
    /// [`AuthorizerError`]. A policy that cannot be used is none: everything is denied, and the reason said.
    pub(crate) fn open(
        config: &Authorization,
        trust: Option<BundleTrust>,
        now: SystemTime,
    ) -> Result<Self, AuthorizerError> {
        let opened = Recorder::open(&config.audit_dir, &config.name, Options::default());
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
        let feed = Arc::new(PolicyFeed::new(&config.audit_dir, trust, now));
        let directory = config.policy_dir.clone().map(|dir| feed.follow(dir)).transpose()?;
        Ok(Self {
            point: DecisionPoint::new(
                feed.clone(),
                recorder,
                config.reference_check_every,
                config.on_stale_policy == OnStale::Deny,
            ),
            feed,
            services: config.services.clone(),
            _directory: directory,
        })
    }

    /// Puts in force what the agent holds, now and at each change, until the stop.
    pub(crate) async fn follow(self: Arc<Self>, mut held: watch::Receiver<Arc<Feed>>, mut shutdown: Shutdown) {
        loop {
            let (feed, now) = (self.feed.clone(), held.borrow_and_update().clone());
            // Verifying and compiling a large bundle takes seconds.
            let offered = spawn_blocking(move || offer(&feed, &now, SystemTime::now())).await;
            if let Err(error) = offered {
                tracing::error!(%error, "a policy update was lost; what is in force stays so until the next");
            }
            tokio::select! {
                changed = held.changed() => if changed.is_err() { return },
                () = shutdown.wait() => return,
            }
        }
    }

    /// For which service somebody with these identities asks: the one it names, or the only one it may ask about.
    ///
    /// # Errors
    /// Why it may not, for whoever configures it.
    pub(crate) fn asker(&self, who: &Entitlement, named: Option<&str>) -> Result<Asker, String> {
        let is_own = |id: &SpiffeId| who.identities.iter().any(|own| own.svid.spiffe_id() == id);
        let asker = |(service, id): (&String, &SpiffeId)| Asker {
            service: service.clone(),
            id: id.clone(),
        };
        if let Some(named) = named {
            let Some((service, id)) = self.services.get_key_value(named) else {
                return Err(format!(
                    "`{named}` is not in `[authorization.services]` of this node's agent"
                ));
            };
            if !is_own(id) {
                return Err(format!(
                    "only `{id}` may ask about `{named}`, and this process has no SVID of that name"
                ));
            }
            return Ok(asker((service, id)));
        }
        let mut own = self.services.iter().filter(|(_, id)| is_own(id));
        match (own.next(), own.next()) {
            (Some(only), None) => Ok(asker(only)),
            (None, _) => {
                Err("no service in `[authorization.services]` of this node's agent is this process's".to_owned())
            }
            (Some(_), Some(_)) => Err("this process may ask about several services; say about which".to_owned()),
        }
    }

    /// Decides and records. The asker is somebody that [`Authorizer::asker`] has let in.
    pub(crate) async fn judge(&self, asker: &Asker, call: Call) -> Verdict {
        let phase = match (&call.principal, &call.target) {
            (Err(_), _) => Phase::Handshake,
            (Ok(_), Target::Connection) => Phase::Connect,
            (Ok(_), Target::Http { .. }) => Phase::Request,
        };
        // Everything but an allow is said where it is decided; until then the record says that nothing was.
        let mut record = Record::new(phase, Outcome::Error, &*asker.service);
        record.vouched_by = Some(asker.id.to_string());
        record.source = call.source.map(|source| source.to_string());
        record.trace_id = call.trace_id;

        // Who.
        let principal = match call.principal {
            Ok(principal) => principal,
            Err(unusable) => return self.refuse(record, unusable).await,
        };
        record.principal = Some(principal.to_string());

        // What.
        let (http, headers) = match call.target {
            Target::Connection => {
                "connect".clone_into(&mut record.action);
                (None, None)
            }
            Target::Http {
                method,
                request,
                headers,
            } => {
                record.action = if method.len() <= hoplite_policy::MAX_METHOD_BYTES {
                    method
                } else {
                    "other".to_owned()
                };
                match request {
                    Ok(request) => (Some(request), headers),
                    Err(unusable) => return self.refuse(record, unusable).await,
                }
            }
        };

        // From where. A policy about addresses must not be asked with one that was made up.
        let Some(source) = call.source else {
            let unusable = Unusable {
                status: 403,
                outcome: Outcome::Malformed,
                code: "no_source",
                reason: "the address from which the call comes was not told, or is no IP address".to_owned(),
            };
            return self.refuse(record, unusable).await;
        };

        // Decide, and record.
        let fields = headers.as_ref().map(|headers| || fields(headers));
        let question = Question {
            caller: Caller::danger_vouched_for(&principal),
            service: &asker.service,
            connection: &Connection::new(source.ip()),
            http: http.as_deref(),
            fields: fields.as_ref().map(|fields| fields as &Fields<'_>),
        };
        let decided = self.point.decide(question, &mut record).await;
        let outcome = record.outcome;
        let Ok(decision) = self.point.record(record).await else {
            return Verdict::Unrecorded;
        };
        let (status, code) = match decided {
            Ok(permit) => return Verdict::Allowed { permit, decision },
            Err(Refusal::Denied) => (403, "denied"),
            Err(Refusal::Ambiguous(why)) => (400, why.code()),
        };
        Verdict::Refused {
            status,
            code,
            outcome,
            decision,
        }
    }

    async fn refuse(&self, mut record: Record, unusable: Unusable) -> Verdict {
        let Unusable {
            status,
            outcome,
            code,
            reason,
        } = unusable;
        record.outcome = outcome;
        record.reason = Some(format!("{code}: {reason}"));
        match self.point.record(record).await {
            Ok(decision) => Verdict::Refused {
                status,
                code,
                outcome,
                decision,
            },
            Err(_) => Verdict::Unrecorded,
        }
    }
}

impl fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorizer")
            .field("services", &self.services)
            .finish_non_exhaustive()
    }
}

/// What policy may select from.
fn fields(headers: &HashMap<String, String>) -> Box<dyn Iterator<Item = (&str, &[u8])> + '_> {
    Box::new(headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())))
}

/// Brings a feed to what the agent holds. Refusals are in the log; what was in force stays so then.
fn offer(feed: &PolicyFeed, held: &Feed, now: SystemTime) {
    let revision = |held: &Option<Held>| held.as_ref().map_or(0, |held| held.seen.revision);
    let (live, shadow) = feed.revisions();
    // What is in force already would only be verified again.
    for (held, in_force) in [(&held.live, live), (&held.shadow, shadow)] {
        if let Some(bundle) = held.as_ref().filter(|_| revision(held) != in_force) {
            let _ = feed.offer(&bundle.bytes, now);
        }
    }
    if held.shadow.is_none() {
        feed.clear_shadow(now);
    }
    feed.offer_grants(&held.grants, now);
}

// === impl Unusable ===

impl Unusable {
    /// Nobody whom we know.
    pub(crate) fn unauthenticated(reason: impl Into<String>) -> Self {
        Self {
            status: 401,
            outcome: Outcome::Unauthenticated,
            code: "unauthenticated",
            reason: reason.into(),
        }
    }

    /// A request with more than one reading.
    pub(crate) fn malformed(code: &'static str, reason: impl Into<String>) -> Self {
        Self {
            status: 400,
            outcome: Outcome::Malformed,
            code,
            reason: reason.into(),
        }
    }
}

/// Who calls, out of what the asker says: a SPIFFE ID of a trust domain whose bundle the asker has. Of another one it
/// could not have verified anything.
pub(crate) fn principal(said: &str, who: &Entitlement) -> Result<SpiffeId, Unusable> {
    if said.is_empty() {
        return Err(Unusable::unauthenticated(
            "no name was told; the caller showed no certificate, or it was not asked for one",
        ));
    }
    let id = SpiffeId::parse(said).map_err(|error| Unusable::unauthenticated(error.to_string()))?;
    if id.is_trust_domain() {
        return Err(Unusable::unauthenticated(format!(
            "`{id}` is a trust domain, and no workload"
        )));
    }
    if who.bundle(id.trust_domain()).is_none() {
        return Err(Unusable::unauthenticated(format!(
            "there is no bundle of the trust domain of `{id}`, so nobody can have verified it"
        )));
    }
    Ok(id)
}
