//! What every connection and request of the proxy is decided by; and strangers, who never get that far.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hoplite_audit::{DecisionId, Outcome, Phase, Record, RecorderError};
use hoplite_decision::{self as decision, DecisionPoint, PolicyFeed, Question};
use hoplite_policy::Permit;
use tracing::debug;

use crate::metrics::Metrics;

/// Refusals of strangers that are recorded one by one: this many at once …
const STRANGERS_BURST: u32 = 1_000;

/// … and one more in each of these. The rest is counted: whoever has no identity must not be able to fill our disk.
const STRANGERS_EVERY: Duration = Duration::from_millis(10);

/// The decision point, and the counters of the proxy's own.
pub(crate) struct Enforcer {
    point: DecisionPoint,
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
    pub(crate) fn new(point: DecisionPoint, metrics: Arc<Metrics>) -> Self {
        let strangers = Strangers {
            tokens: STRANGERS_BURST,
            refilled: Instant::now(),
            suppressed: 0,
        };
        Self {
            point,
            metrics,
            strangers: Mutex::new(strangers),
        }
    }

    pub(crate) fn policy(&self) -> &PolicyFeed {
        self.point.policy()
    }

    pub(crate) fn point(&self) -> &DecisionPoint {
        &self.point
    }

    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Asks policy, and fills the answer into the record. No permit means no.
    pub(crate) async fn decide(
        &self,
        question: Question<'_>,
        record: &mut Record,
    ) -> Result<Permit, decision::Refusal> {
        self.point.decide(question, record).await
    }

    /// Writes the record. After an error nothing may be forwarded, and nothing be said but that we cannot answer.
    pub(crate) async fn record(&self, record: Record) -> Result<DecisionId, RecorderError> {
        self.point.record(record).await
    }

    /// Writes records of what is ended in any case; those that could not be written have no id.
    pub(crate) async fn record_all(&self, records: Vec<Record>) -> Vec<Option<DecisionId>> {
        self.point
            .record_all(records)
            .await
            .into_iter()
            .map(Result::ok)
            .collect()
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
