//! One question, one answer, one record: nothing is answered before what was decided is written down.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Instant, SystemTime};

use hoplite_audit::{Outcome, Record, Recorder, RecorderError};
use hoplite_host::clock;
use hoplite_identity::ServiceName;
use hoplite_policy::{
    self as policy, Ambiguous, AuthzRequest, Caller, CanonicalRequest, Decision, Permit, SelectedHeaders, Snapshot,
    Transport, decide_by_reference,
};
use tokio::task::spawn_blocking;
use tracing::{error, warn};

use crate::current::{CurrentPolicy, InForce};
use crate::draft::{Asked, Draft, Stranger, Unasked};
use crate::granted::{Judged, Refused, Renewed, Why, Withdrawn};
use crate::log::{Log, broke_glass};
use crate::metrics::Metrics;
use crate::reference::Sampler;
use crate::settings::OnStale;

/// Why nothing is allowed once the policy is stale, where that is the rule.
const STALE: &str = "the policy has expired, and this service denies then; publish it anew";

/// What policy is asked. Everything a decision depends on, besides policy and time.
#[derive(Clone, Copy)]
struct Question<'a> {
    caller: Caller<'a>,
    service: &'a ServiceName,
    transport: &'a Transport,
    /// The request, with the headers that the live policy selects; none for a connection.
    http: Option<&'a CanonicalRequest>,
    /// The request with the headers that another policy selects; none where it would be no other.
    read_again: &'a ReadAgain<'a>,
}

type ReadAgain<'a> = dyn Fn(&SelectedHeaders) -> Option<Result<CanonicalRequest, Ambiguous>> + Sync + 'a;

/// Policy, the log and the counters: what every decision needs.
pub struct DecisionPoint {
    policy: Arc<CurrentPolicy>,
    log: Log,
    sampler: Sampler,
    denies_stale: AtomicBool,
}

// === impl DecisionPoint ===

impl DecisionPoint {
    /// One decision in `reference_every` is also made by the reference (0: none).
    pub fn new(policy: Arc<CurrentPolicy>, recorder: Recorder, reference_every: u64, on_stale: OnStale) -> Self {
        Self {
            policy,
            log: Log::new(recorder),
            sampler: Sampler::new(reference_every),
            denies_stale: AtomicBool::new(on_stale == OnStale::Deny),
        }
    }

    /// What becomes of a policy that has expired, from now on, for what was let in too.
    pub fn set_on_stale(&self, on_stale: OnStale) {
        let denies = on_stale == OnStale::Deny;
        if self.denies_stale.swap(denies, Relaxed) != denies {
            self.policy.decide_anew();
        }
    }

    /// What is in force.
    pub fn policy(&self) -> &CurrentPolicy {
        &self.policy
    }

    /// Why this denies everything, if it does: it says so itself, or has expired where that ends it.
    pub fn denies_all<'a>(&self, in_force: &'a InForce, now: SystemTime) -> Option<&'a str> {
        let ended = self.denies_stale.load(Relaxed) && in_force.stale(now);
        in_force.live().deny_all_reason().or(ended.then_some(STALE))
    }

    /// What was decided, counted.
    pub fn metrics(&self) -> &Metrics {
        self.log.metrics()
    }

    /// Asks policy. What is asked for stays with the judgement, and comes out of it only with the grant.
    pub async fn judge<R: Asked>(&self, mut draft: Draft<'_>, mut asked: R, transport: &Transport) -> Judged<'_, R> {
        let permit = self.ask(&mut draft, &mut asked, transport).await;
        Judged::new(&self.log, draft.record, asked, permit)
    }

    /// Refuses without asking policy, and records that.
    pub async fn refuse(&self, draft: Draft<'_>, unasked: Unasked) -> Refused {
        let recorded = self.log.record(draft.refused(&unasked)).await;
        self.told(Refused::unasked(unasked, recorded))
    }

    /// Refuses somebody without an identity, and records that. Of too many at once it is only counted.
    pub async fn refuse_stranger(&self, stranger: Stranger<'_>, unasked: Unasked) -> Refused {
        let recorded = self.log.record(stranger.record(&unasked)).await;
        self.told(Refused::unasked(unasked, recorded))
    }

    fn told(&self, refused: Refused) -> Refused {
        self.metrics().refused(refused.code());
        refused
    }

    /// Why nothing can be recorded any more, if it has come to that.
    pub fn unrecorded(&self) -> Option<RecorderError> {
        self.recorder().failure()
    }

    pub(crate) fn recorder(&self) -> &Recorder {
        self.log.recorder()
    }

    /// Asks policy again about what it has granted: a connection, or a request as it was judged then. Of headers that are
    /// selected only since, nothing is known.
    ///
    /// # Errors
    /// [`Withdrawn`]: it is granted no longer. That is to be recorded; that it is granted still is not.
    pub async fn recheck(
        &self,
        draft: Draft<'_>,
        granted: Option<&CanonicalRequest>,
        transport: &Transport,
    ) -> Result<Renewed, Withdrawn> {
        let Draft {
            mut record,
            caller,
            service,
        } = draft;
        let question = Question {
            caller,
            service,
            transport,
            http: granted,
            read_again: &|_| None,
        };
        if let Some(http) = granted {
            say_which(http, &mut record);
        }
        let (in_force, started) = (self.policy.in_force(), clock::moment());
        match self.decide(&in_force, question, started, &mut record).await {
            Ok(permit) => Ok(Renewed::new(permit)),
            Err(why) => Err(Withdrawn::new(record, why)),
        }
    }

    /// Writes down what is granted no longer, and waits for the disk once: the refusal of each, in their order.
    pub async fn record_all(&self, withdrawn: Vec<Withdrawn>) -> Vec<Refused> {
        // INVARIANT: all are appended before the first is waited for, so that one flush carries them all.
        let append = |withdrawn: Withdrawn| {
            let (record, outcome, why) = withdrawn.into_record();
            (self.log.append(record), outcome, why)
        };
        let appended: Vec<_> = withdrawn.into_iter().map(append).collect();
        let mut refused = Vec::with_capacity(appended.len());
        for (appended, outcome, why) in appended {
            let recorded = self.log.settled(appended).await;
            refused.push(self.told(Refused::new(outcome, why, recorded)));
        }
        refused
    }

    /// Asks policy as of the draft's time, and fills the answer into its record. The policy that decides says which
    /// headers are read into what is asked; no other may come in force in between.
    async fn ask<R: Asked>(&self, draft: &mut Draft<'_>, asked: &mut R, transport: &Transport) -> Result<Permit, Why> {
        let Draft {
            record,
            caller,
            service,
        } = draft;
        let (in_force, started) = (self.policy.in_force(), clock::moment());
        if let Some(http) = asked.http_mut() {
            say_which(&http.canonical, record);
            if let Err(ambiguous) = http.read_headers(in_force.live().headers()) {
                say_by(&in_force, record);
                record.outcome = Outcome::Malformed;
                record.reason = Some(format!("{}: {ambiguous}", ambiguous.code()));
                return Err(Why::Ambiguous(ambiguous));
            }
        }
        let http = asked.http();
        let question = Question {
            caller: *caller,
            service,
            transport,
            http: http.map(|http| &http.canonical),
            read_again: &|selected| http.and_then(|http| http.read_again(selected)),
        };
        self.decide(&in_force, question, started, record).await
    }

    async fn decide(
        &self,
        in_force: &InForce,
        question: Question<'_>,
        started: Instant,
        record: &mut Record,
    ) -> Result<Permit, Why> {
        let live = in_force.live();
        say_by(in_force, record);
        let request = question.to(live, question.http, record.at);
        request.action().clone_into(&mut record.action);
        if let Some(http) = question.http {
            record.route = Some(request.resource().to_owned());
            let owned = |(name, value): (&str, Option<&str>)| (name.to_owned(), value.map(str::to_owned));
            record.headers = http.headers().map(owned).collect();
        }
        let decided = guarded(|| policy::decide(live, &request));
        let took = started.elapsed();
        record.eval_micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.metrics().took.observe(took);
        let decided = match decided {
            Some(decision) => self.checked(live, &request, decision).await,
            None => None,
        };
        let Some(decision) = decided else {
            self.log.metrics().panics.inc();
            let (principal, resource) = (request.principal(), request.resource());
            error!(principal, resource, "deciding panicked; the answer is no");
            record.outcome = Outcome::Error;
            record.errors = vec!["deciding panicked".to_owned()];
            return Err(Why::Denied);
        };
        if decision.panicked() {
            self.log.metrics().panics.inc();
            let (principal, resource) = (request.principal(), request.resource());
            error!(
                principal,
                resource, "the evaluation of the policies panicked; the answer is no"
            );
        }
        say_decision(&decision, record);
        self.try_shadow(in_force, question, record);

        if record.stale {
            self.log.metrics().stale.inc();
            if self.denies_stale.load(Relaxed) {
                record.outcome = Outcome::Error;
                record.reason = Some(STALE.to_owned());
                return Err(Why::Denied);
            }
        }
        let permit = decision.permit().map_err(|_| Why::Denied)?;
        if broke_glass(record) {
            self.log.metrics().break_glass.inc();
            let (principal, grants) = (request.principal(), record.determining.join(", "));
            warn!(
                notice = true,
                principal,
                resource = request.resource(),
                grants,
                "BREAK-GLASS: a grant let a request through"
            );
        }
        Ok(permit)
    }

    /// The decision, or the reference's where the two differ. `None` when the check itself broke down.
    async fn checked(&self, live: &Arc<Snapshot>, request: &AuthzRequest, decision: Decision) -> Option<Decision> {
        let Some(check) = self.sampler.due(clock::moment()) else {
            return Some(decision);
        };
        let (snapshot, asked) = (live.clone(), request.clone());
        let started = clock::moment();
        // It takes long where there are many policies, and other connections share this thread.
        let reference = spawn_blocking(move || decide_by_reference(&snapshot, &asked)).await;
        check.done(clock::moment(), started.elapsed());
        self.log.metrics().reference_checks.inc();
        let reference = reference.ok()?;
        let Some(difference) = decision.differs(&reference) else {
            return Some(decision);
        };
        self.log.metrics().reference_differences.inc();
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
        let read_again = (question.read_again)(shadow.headers()).transpose();
        let (decision, outcome) = match &read_again {
            // It selects a header that the live policy does not, and would refuse what that lets through.
            Err(_) => (None, Outcome::Malformed),
            Ok(http) => {
                let request = question.to(shadow, http.as_ref().or(question.http), record.at);
                let decision = guarded(|| policy::decide(shadow, &request));
                let said = decision.as_ref().map(|decision| outcome(decision.verdict()));
                (decision, said.unwrap_or(Outcome::Error))
            }
        };
        record.shadow_outcome = Some(outcome);
        if record.shadow_outcome != Some(record.outcome) {
            self.log.metrics().shadow_differences.inc();
            record.shadow_determining = decision
                .map(|decision| decision.determining().to_vec())
                .unwrap_or_default();
        }
    }

    /// Writes the records of refusals that are only counted, once a second, for as long as it is polled. May be dropped at
    /// any time.
    pub async fn keep_counts(&self) {
        self.log.keep_counts().await;
    }

    /// Writes them now: the last thing before the end.
    pub fn roll_up(&self) {
        self.log.roll_up();
    }

    /// Waits until nothing can be recorded any more, and says why. From then on nothing is permitted: what holds this
    /// ends, so that its supervisor starts it again.
    pub async fn log_failed(&self) -> RecorderError {
        self.log.failed().await
    }
}

impl fmt::Debug for DecisionPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecisionPoint").finish_non_exhaustive()
    }
}

// === impl Question ===

impl Question<'_> {
    /// The route belongs to the snapshot that decides.
    fn to(&self, snapshot: &Snapshot, http: Option<&CanonicalRequest>, now: SystemTime) -> AuthzRequest {
        match http {
            Some(http) => {
                let route = snapshot.routes().route(self.service, http);
                AuthzRequest::http(self.caller, self.service, &route, http, self.transport, now)
            }
            None => AuthzRequest::connect(self.caller, self.service, self.transport, now),
        }
    }
}

/// A panic while deciding is our fault, and must become a deny for this request and nothing for the others.
fn guarded<T>(decide: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(decide)).ok()
}

/// Which request it is.
fn say_which(http: &CanonicalRequest, record: &mut Record) {
    record.host = Some(http.host().to_owned());
    record.path = Some(http.path().to_owned());
}

/// What decides.
fn say_by(in_force: &InForce, record: &mut Record) {
    record.policy_revision = Some(in_force.live().revision().to_owned());
    record.bundle_revision = in_force.bundle_revision();
    record.bundle_manifest = in_force.bundle_manifest();
    record.stale = in_force.stale(record.at);
}

/// What was decided, and why.
fn say_decision(decision: &Decision, record: &mut Record) {
    record.outcome = outcome(decision.verdict());
    record.cedar_decision = Some(if decision.cedar_allows() { "allow" } else { "deny" }.to_owned());
    record.determining = decision.determining().to_vec();
    record.errors = decision.errors().to_vec();
    record.reason = decision.reason().map(str::to_owned);
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
