//! The decision and its record: nothing is answered before what was decided is written down.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hoplite_audit::{Class, DecisionId, Outcome, Phase, Record, Recorder, RecorderError};
use hoplite_policy::{self as policy, AuthzRequest, Permit, Snapshot};
use tracing::{debug, error};

use crate::metrics::Metrics;
use crate::policy_feed::PolicyFeed;

/// Refusals of strangers that are recorded one by one: this many at once …
const STRANGERS_BURST: u32 = 1_000;

/// … and one more in each of these. The rest is counted: whoever has no identity must not be able to fill our disk.
const STRANGERS_EVERY: Duration = Duration::from_millis(10);

/// Policy, the log and the counters: what every decision needs.
pub(crate) struct Enforcer {
    policy: Arc<PolicyFeed>,
    recorder: Recorder,
    metrics: Arc<Metrics>,
    strangers: Mutex<Strangers>,
}

/// A token bucket that counts what it held back.
struct Strangers {
    tokens: u32,
    refilled: Instant,
    suppressed: u64,
}

// === impl Enforcer ===

impl Enforcer {
    pub(crate) fn new(policy: Arc<PolicyFeed>, recorder: Recorder, metrics: Arc<Metrics>) -> Self {
        let strangers = Strangers {
            tokens: STRANGERS_BURST,
            refilled: Instant::now(),
            suppressed: 0,
        };
        Self {
            policy,
            recorder,
            metrics,
            strangers: Mutex::new(strangers),
        }
    }

    pub(crate) fn policy(&self) -> &PolicyFeed {
        &self.policy
    }

    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Asks policy, and fills the answer into the record. No permit means no.
    pub(crate) fn decide(&self, snapshot: &Snapshot, question: &AuthzRequest, record: &mut Record) -> Option<Permit> {
        let started = Instant::now();
        // A panic while deciding is our fault, and must become a deny for this request and nothing for the others.
        let decided = catch_unwind(AssertUnwindSafe(|| policy::decide(snapshot, question)));
        record.eval_micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        record.action = question.action().to_owned();
        record.policy_revision = Some(snapshot.revision().to_owned());
        let Ok(decision) = decided else {
            error!(
                principal = question.principal(),
                resource = question.resource(),
                "deciding panicked; the answer is no"
            );
            record.outcome = Outcome::Error;
            record.errors = vec!["deciding panicked".to_owned()];
            return None;
        };
        record.outcome = match decision.outcome() {
            policy::Outcome::Allow => Outcome::Allow,
            policy::Outcome::Forbid => Outcome::Forbid,
            policy::Outcome::NoPermit => Outcome::NoPermit,
            policy::Outcome::Error => Outcome::Error,
        };
        record.cedar_decision = Some(if decision.cedar_allows() { "allow" } else { "deny" }.to_owned());
        record.determining = decision.determining().to_vec();
        record.errors = decision.errors().to_vec();
        record.reason = decision.reason().map(str::to_owned);
        decision.permit().ok()
    }

    /// Writes the record. An allow is written when this returns, anything else is on the disk. After an error nothing may
    /// be forwarded, and nothing be said but that we cannot answer.
    pub(crate) async fn record(&self, mut record: Record) -> Result<DecisionId, RecorderError> {
        record.at = SystemTime::now();
        let class = if record.outcome == Outcome::Allow {
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
                self.metrics.decided(record.outcome);
                self.metrics.recorded();
                Ok(id)
            }
            Err(failure) => {
                self.metrics.record_failed();
                error!(
                    error = &failure as &dyn Error,
                    "a decision cannot be recorded; the request is refused"
                );
                Err(failure)
            }
        }
    }

    /// Records that somebody without an identity was refused, or counts it when there are too many.
    pub(crate) async fn refuse_stranger(
        &self,
        source: String,
        service: &str,
        outcome: Outcome,
        code: &'static str,
        reason: String,
    ) {
        self.metrics.handshake_refused(code);
        debug!(source, service, code, reason, "connection refused");
        let admitted = self
            .strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .admit(Instant::now());
        let Some(suppressed) = admitted else { return };
        let mut record = Record::new(Phase::Handshake, outcome, service);
        record.source = Some(source);
        record.reason = Some(reason);
        record.suppressed = suppressed;
        // The connection is closed either way; `record` has said what failed.
        let _ = self.record(record).await;
    }
}

// === impl Strangers ===

impl Strangers {
    /// How many were held back since the last admitted one; none if this one is held back too.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.refilled);
        let fresh = passed.as_nanos() / STRANGERS_EVERY.as_nanos();
        if fresh > 0 {
            let fresh = u32::try_from(fresh).unwrap_or(STRANGERS_BURST).min(STRANGERS_BURST);
            self.tokens = self.tokens.saturating_add(fresh).min(STRANGERS_BURST);
            // What is left of the last interval still counts towards the next token.
            self.refilled = if self.tokens == STRANGERS_BURST {
                now
            } else {
                self.refilled + STRANGERS_EVERY * fresh
            };
        }
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                Some(std::mem::take(&mut self.suppressed))
            }
            None => {
                self.suppressed += 1;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_bounded_and_counted() {
        let start = Instant::now();
        let mut strangers = Strangers {
            tokens: 2,
            refilled: start,
            suppressed: 0,
        };
        let after = |millis| start + Duration::from_millis(millis);
        assert_eq!(strangers.admit(after(0)), Some(0));
        assert_eq!(strangers.admit(after(1)), Some(0));
        assert_eq!(strangers.admit(after(8)), None);
        assert_eq!(strangers.admit(after(9)), None);
        assert_eq!(
            strangers.admit(after(15)),
            Some(2),
            "the next record counts those held back"
        );
        assert_eq!(strangers.admit(after(19)), None);
        assert_eq!(strangers.admit(after(20)), Some(1), "half an interval was not lost");
        strangers.admit(after(1_000_000));
        assert_eq!(
            strangers.tokens,
            STRANGERS_BURST - 1,
            "a quiet day saves no more than the burst"
        );
    }
}
