//! One question, one answer, one record: nothing is answered before what was decided is written down.

use std::borrow::Cow;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Instant, SystemTime};

use hoplite_audit::{Appended, Class, DecisionId, Outcome, Record, Recorder, RecorderError};
use hoplite_policy::grant::GRANT_IDS;
use hoplite_policy::{
    self as policy, Ambiguous, AuthzRequest, Caller, CanonicalRequest, Decision, Permit, Snapshot, Transport,
    decide_by_reference,
};
use tokio::task::spawn_blocking;
use tracing::{error, warn};

use crate::current::{InForce, PolicyFeed};
use crate::metrics::Metrics;
use crate::reference::Sampler;
use crate::settings::OnStale;
use crate::strangers::Strangers;

/// Why nothing is allowed once the policy is stale, where that is the rule.
const STALE: &str = "the policy has expired, and this service denies then; publish it anew";

/// The fields of a request's head, each with its value, as often as they are asked for.
pub type Fields<'a> = dyn Fn() -> Box<dyn Iterator<Item = (&'a str, &'a [u8])> + 'a> + Send + Sync + 'a;

/// Who asks for what. Everything a decision depends on, besides policy and time.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// Who calls, and the evidence for it.
    pub caller: Caller<'a>,
    /// The service that is called.
    pub service: &'a str,
    /// Where the call comes from.
    pub connection: &'a Transport,
    /// The request; none for an L4 connection.
    pub http: Option<&'a CanonicalRequest>,
    /// The request's header fields as they are forwarded, all of them; none where they are not known. Only those that the
    /// policy selects are looked at.
    pub fields: Option<&'a Fields<'a>>,
}

/// Why there is no permit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Policy, or that there is none to ask.
    Denied,
    /// A header that policy selects can be read in two ways, so policy was not asked.
    Ambiguous(Ambiguous),
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

/// A record in the log, which may have to reach the disk yet.
struct Written {
    appended: Appended,
    class: Class,
    outcome: Outcome,
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

    /// Why this denies everything, if it does: it says so itself, or has expired where that ends it.
    pub fn denies_all<'a>(&self, in_force: &'a InForce, now: SystemTime) -> Option<&'a str> {
        let ended = self.on_stale == OnStale::Deny && in_force.stale(now);
        in_force.live().deny_all_reason().or(ended.then_some(STALE))
    }

    /// What was decided, counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Asks policy as of the record's time, and fills the answer into the record.
    ///
    /// # Errors
    /// [`Refusal`]: no permit means no.
    pub async fn decide(&self, question: Question<'_>, record: &mut Record) -> Result<Permit, Refusal> {
        let in_force = self.policy.in_force();
        let live = in_force.live();
        let started = Instant::now();
        record.policy_revision = Some(live.revision().to_owned());
        record.bundle_revision = in_force.bundle_revision();
        record.bundle_manifest = in_force.bundle_manifest();
        record.stale = in_force.stale(record.at);
        if let Some(http) = question.http {
            record.host = Some(http.host().to_owned());
            record.path = Some(http.path().to_owned());
        }
        // The policy that decides says which headers are read; no other may have come in force in between.
        let http = match question.http(live) {
            Ok(http) => http,
            Err(ambiguous) => {
                record.outcome = Outcome::Malformed;
                record.reason = Some(format!("{}: {ambiguous}", ambiguous.code()));
                return Err(Refusal::Ambiguous(ambiguous));
            }
        };
        let request = question.to(live, http.as_deref(), record.at);
        record.action = request.action().to_owned();
        if let Some(http) = http {
            record.route = Some(request.resource().to_owned());
            let owned = |(name, value): (&str, Option<&str>)| (name.to_owned(), value.map(str::to_owned));
            record.headers = http.headers().map(owned).collect();
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
            return Err(Refusal::Denied);
        };
        if decision.panicked() {
            self.metrics.panics.fetch_add(1, Relaxed);
            let (principal, resource) = (request.principal(), request.resource());
            error!(
                principal,
                resource, "the evaluation of the policies panicked; the answer is no"
            );
        }
        record.outcome = outcome(decision.verdict());
        record.cedar_decision = Some(if decision.cedar_allows() { "allow" } else { "deny" }.to_owned());
        record.determining = decision.determining().to_vec();
        record.errors = decision.errors().to_vec();
        record.reason = decision.reason().map(str::to_owned);
        self.try_shadow(&in_force, question, record);

        if record.stale {
            self.metrics.stale.fetch_add(1, Relaxed);
            if self.on_stale == OnStale::Deny {
                record.outcome = Outcome::Error;
                record.reason = Some(STALE.to_owned());
                return Err(Refusal::Denied);
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
        permit.ok_or(Refusal::Denied)
    }

    /// The request as it is kept to be decided again: with the headers that policy selects now. Of one that would be
    /// refused, and of those that are selected later, nothing is known.
    pub fn kept(&self, request: CanonicalRequest, fields: &Fields<'_>) -> CanonicalRequest {
        let in_force = self.policy.in_force();
        let selected = in_force.live().headers();
        if selected.is_empty() {
            return request;
        }
        match request.clone().with_headers(selected, fields()) {
            Ok(read) => read,
            Err(_) => request,
        }
    }

    /// The decision, or the reference's where the two differ. `None` when the check itself broke down.
    async fn checked(&self, live: &Arc<Snapshot>, request: &AuthzRequest, decision: Decision) -> Option<Decision> {
        let Some(check) = self.sampler.due(Instant::now()) else {
            return Some(decision);
        };
        let (snapshot, asked) = (live.clone(), request.clone());
        let started = Instant::now();
        // It takes long where there are many policies, and other connections share this thread.
        let reference = spawn_blocking(move || decide_by_reference(&snapshot, &asked)).await;
        check.done(Instant::now(), started.elapsed());
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
        record.shadow_revision = Some(shadow.revision().to_owned());
        let (decision, outcome) = match question.http(shadow) {
            // It selects a header that the live policy does not, and would refuse what that lets through.
            Err(_) => (None, Outcome::Malformed),
            Ok(http) => {
                let request = question.to(shadow, http.as_deref(), record.at);
                let decision = guarded(|| policy::decide(shadow, &request));
                let said = decision.as_ref().map(|decision| outcome(decision.verdict()));
                (decision, said.unwrap_or(Outcome::Error))
            }
        };
        record.shadow_outcome = Some(outcome);
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
    pub async fn record(&self, record: Record) -> Result<DecisionId, RecorderError> {
        let appended = self.append(record);
        self.settled(appended).await
    }

    /// Writes many records, and waits for the disk once: the answer of each, in their order.
    pub async fn record_all(&self, records: Vec<Record>) -> Vec<Result<DecisionId, RecorderError>> {
        // INVARIANT: all are appended before the first is waited for, so that one flush carries them all.
        let appended: Vec<_> = records.into_iter().map(|record| self.append(record)).collect();
        let mut answers = Vec::with_capacity(appended.len());
        for appended in appended {
            answers.push(self.settled(appended).await);
        }
        answers
    }

    fn append(&self, mut record: Record) -> Result<Written, RecorderError> {
        let class = if record.outcome == Outcome::Allow && !broke_glass(&record) {
            Class::Full
        } else {
            Class::Must
        };
        Ok(Written {
            appended: self.recorder.append(&mut record, class)?,
            class,
            outcome: record.outcome,
        })
    }

    async fn settled(&self, written: Result<Written, RecorderError>) -> Result<DecisionId, RecorderError> {
        let settled = async {
            let written = written?;
            if written.class == Class::Must {
                self.recorder.durable(written.appended.seq).await?;
            }
            Ok((written.appended.id, written.outcome))
        };
        match settled.await {
            Ok((id, outcome)) => {
                self.metrics.recorded(outcome);
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

impl<'a> Question<'a> {
    /// The request with the headers that the snapshot selects; the request as it is where that selects none, or nobody told
    /// us any.
    fn http(&self, snapshot: &Snapshot) -> Result<Option<Cow<'a, CanonicalRequest>>, Ambiguous> {
        match (self.http, self.fields) {
            (Some(http), Some(fields)) if !snapshot.headers().is_empty() => {
                let read = http.clone().with_headers(snapshot.headers(), fields())?;
                Ok(Some(Cow::Owned(read)))
            }
            (http, _) => Ok(http.map(Cow::Borrowed)),
        }
    }

    /// The route belongs to the snapshot that decides.
    fn to(&self, snapshot: &Snapshot, http: Option<&CanonicalRequest>, now: SystemTime) -> AuthzRequest {
        match http {
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
    record.determining.iter().any(|id| id.starts_with(GRANT_IDS))
}

fn outcome(verdict: policy::Verdict) -> Outcome {
    match verdict {
        policy::Verdict::Allow => Outcome::Allow,
        policy::Verdict::Forbid => Outcome::Forbid,
        policy::Verdict::NoPermit => Outcome::NoPermit,
        policy::Verdict::Error => Outcome::Error,
    }
}

#[cfg(test)]
mod tests;
