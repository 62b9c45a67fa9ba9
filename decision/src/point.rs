//! One question, one answer, one record: nothing is answered before what was decided is written down.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Instant, SystemTime};

use hoplite_audit::{Class, DecisionId, Outcome, Record, Recorder, RecorderError};
use hoplite_policy::{
    self as policy, AuthzRequest, Caller, CanonicalRequest, Connection, Decision, Permit, Snapshot, decide_by_reference,
};
use tokio::task::spawn_blocking;
use tracing::{error, warn};

use crate::feed::{InForce, PolicyFeed};
use crate::metrics::Metrics;
use crate::reference::Sampler;
use crate::settings::OnStale;
use crate::strangers::Strangers;

/// What the ids of break-glass permits begin with.
const BREAK_GLASS: &str = "break-glass/";

/// Who asks for what. Everything a decision depends on, besides policy and time.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Who calls, and the evidence for it.
    pub caller: Caller<'a>,
    /// The service that is called.
    pub service: &'a str,
    /// Where the call comes from.
    pub connection: &'a Connection,
    /// The request; none for an L4 connection.
    pub http: Option<&'a CanonicalRequest>,
}

/// Policy, the log and the counters: what every decision needs.
pub struct DecisionPoint {
    policy: Arc<PolicyFeed>,
    recorder: Recorder,
    metrics: Metrics,
    sampler: Sampler,
    strangers: Strangers,
    on_stale: OnStale,
}

// === impl DecisionPoint ===

impl DecisionPoint {
    /// One decision in `reference_every` is also made by the reference (0: none).
    pub fn new(policy: Arc<PolicyFeed>, recorder: Recorder, reference_every: u64, on_stale: OnStale) -> Self {
        Self {
            policy,
            recorder,
            metrics: Metrics::default(),
            sampler: Sampler::new(reference_every),
            strangers: Strangers::new(Instant::now()),
            on_stale,
        }
    }

    /// What is in force.
    pub fn policy(&self) -> &PolicyFeed {
        &self.policy
    }

    /// What was decided, counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Asks policy as of the record's time, and fills the answer into the record. No permit means no.
    pub async fn decide(&self, question: Question<'_>, record: &mut Record) -> Option<Permit> {
        let in_force = self.policy.in_force();
        let live = in_force.live();
        let started = Instant::now();
        let request = question.to(live, record.at);
        record.action = request.action().to_owned();
        record.policy_revision = Some(live.revision().to_owned());
        record.bundle_revision = in_force.bundle_revision();
        record.stale = in_force.stale(record.at);
        if let Some(http) = question.http {
            record.route = Some(request.resource().to_owned());
            record.host = Some(http.host().to_owned());
            record.path = Some(http.path().to_owned());
        }
        let decided = guarded(|| policy::decide(live, &request));
        record.eval_micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let decided = match decided {
            Some(decision) => self.checked(live, &request, decision).await,
            None => None,
        };
        let Some(decision) = decided else {
            self.metrics.panics.fetch_add(1, Relaxed);
            let (principal, resource) = (request.principal(), request.resource());
            error!(principal, resource, "deciding panicked; the answer is no");
            record.outcome = Outcome::Error;
            record.errors = vec!["deciding panicked".to_owned()];
            return None;
        };
        if decision.panicked() {
            self.metrics.panics.fetch_add(1, Relaxed);
            let (principal, resource) = (request.principal(), request.resource());
            error!(
                principal,
                resource, "the evaluation of the policies panicked; the answer is no"
            );
        }
        record.outcome = outcome(decision.outcome());
        record.cedar_decision = Some(if decision.cedar_allows() { "allow" } else { "deny" }.to_owned());
        record.determining = decision.determining().to_vec();
        record.errors = decision.errors().to_vec();
        record.reason = decision.reason().map(str::to_owned);
        self.try_shadow(&in_force, question, record);

        if record.stale {
            self.metrics.stale.fetch_add(1, Relaxed);
            if self.on_stale == OnStale::Deny {
                record.outcome = Outcome::Error;
                record.reason =
                    Some("the policy has expired, and this service denies then; publish it anew".to_owned());
                return None;
            }
        }
        let permit = decision.permit().ok();
        if permit.is_some() && broke_glass(record) {
            self.metrics.break_glass.fetch_add(1, Relaxed);
            let (principal, grants) = (request.principal(), record.determining.join(", "));
            warn!(
                notice = true,
                principal,
                resource = request.resource(),
                grants,
                "BREAK-GLASS: a grant let a request through"
            );
        }
        permit
    }

    /// The decision, or the reference's where the two differ. `None` when the check itself broke down.
    async fn checked(&self, live: &Arc<Snapshot>, request: &AuthzRequest, decision: Decision) -> Option<Decision> {
        if !self.sampler.due(Instant::now()) {
            return Some(decision);
        }
        let (snapshot, asked) = (live.clone(), request.clone());
        let started = Instant::now();
        // It takes long where there are many policies, and other connections share this thread.
        let reference = spawn_blocking(move || decide_by_reference(&snapshot, &asked)).await;
        self.sampler.done(Instant::now(), started.elapsed());
        self.metrics.reference_checks.fetch_add(1, Relaxed);
        let reference = reference.ok()?;
        let Some(difference) = decision.differs(&reference) else {
            return Some(decision);
        };
        self.metrics.reference_differences.fetch_add(1, Relaxed);
        error!(
            notice = true,
            revision = live.revision(),
            ?request,
            "ALARM: the policy index decided {difference}; the reference wins. Report this, with the policies"
        );
        Some(reference)
    }

    /// What the shadow policy would say, into the record. Whatever happens here, the answer stays what it is.
    fn try_shadow(&self, in_force: &InForce, question: Question<'_>, record: &mut Record) {
        let Some(shadow) = in_force.shadow() else { return };
        let decision = guarded(|| policy::decide(shadow, &question.to(shadow, record.at)));
        record.shadow_revision = Some(shadow.revision().to_owned());
        record.shadow_outcome = Some(
            decision
                .as_ref()
                .map_or(Outcome::Error, |decision| outcome(decision.outcome())),
        );
        if record.shadow_outcome != Some(record.outcome) {
            self.metrics.shadow_differences.fetch_add(1, Relaxed);
            record.shadow_determining = decision
                .map(|decision| decision.determining().to_vec())
                .unwrap_or_default();
        }
    }

    /// Writes the record. A plain allow is written when this returns, anything else is on the disk. After an error nothing
    /// may be forwarded, and nothing be said but that we cannot answer.
    ///
    /// # Errors
    /// The recorder's.
    pub async fn record(&self, mut record: Record) -> Result<DecisionId, RecorderError> {
        record.at = SystemTime::now();
        let class = if record.outcome == Outcome::Allow && !broke_glass(&record) {
            Class::Full
        } else {
            Class::Must
        };
        let written = async {
            let appended = self.recorder.append(&mut record, class)?;
            if class == Class::Must {
                self.recorder.durable(appended.seq).await?;
            }
            Ok(appended.id)
        };
        match written.await {
            Ok(id) => {
                self.metrics.recorded(record.outcome);
                Ok(id)
            }
            Err(failure) => {
                self.metrics.record_failed();
                let error: &dyn Error = &failure;
                error!(error, "a decision cannot be recorded; the request is refused");
                Err(failure)
            }
        }
    }

    /// The same for the refusal of somebody without an identity. Of too many at once it is only counted, in the next
    /// one's record; then it has no id.
    ///
    /// # Errors
    /// The recorder's.
    pub async fn record_stranger(&self, mut record: Record) -> Result<Option<DecisionId>, RecorderError> {
        let Some(suppressed) = self.strangers.admit(Instant::now()) else {
            return Ok(None);
        };
        record.suppressed = suppressed;
        self.record(record).await.map(Some)
    }

    /// Waits until nothing can be recorded any more, and says why. From then on nothing is permitted: what holds this
    /// ends, so that its supervisor starts it again.
    pub async fn log_failed(&self) -> RecorderError {
        self.recorder.failed().await
    }
}

// === impl Question ===

impl Question<'_> {
    /// The route belongs to the snapshot that decides.
    fn to(&self, snapshot: &Snapshot, now: SystemTime) -> AuthzRequest {
        match self.http {
            Some(http) => {
                let route = snapshot.routes().route(self.service, http);
                AuthzRequest::http(self.caller, self.service, &route, http, self.connection, now)
            }
            None => AuthzRequest::connect(self.caller, self.service, self.connection, now),
        }
    }
}

/// A panic while deciding is our fault, and must become a deny for this request and nothing for the others.
fn guarded<T>(decide: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(decide)).ok()
}

fn broke_glass(record: &Record) -> bool {
    record.determining.iter().any(|id| id.starts_with(BREAK_GLASS))
}

fn outcome(outcome: policy::Outcome) -> Outcome {
    match outcome {
        policy::Outcome::Allow => Outcome::Allow,
        policy::Outcome::Forbid => Outcome::Forbid,
        policy::Outcome::NoPermit => Outcome::NoPermit,
        policy::Outcome::Error => Outcome::Error,
    }
}

#[cfg(test)]
mod tests;
