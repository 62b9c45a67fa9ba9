//! What every connection and request of the proxy is decided by; and strangers, who never get that far.

use std::sync::Arc;

use hoplite_audit::{DecisionId, Outcome, Phase, Record, RecorderError};
use hoplite_decision::{self as decision, DecisionPoint, PolicyFeed, Question};
use hoplite_policy::Permit;
use tracing::debug;

use crate::metrics::Metrics;

/// The decision point, and the counters of the proxy's own.
pub(crate) struct Enforcer {
    point: DecisionPoint,
    metrics: Arc<Metrics>,
}

// === impl Enforcer ===

impl Enforcer {
    pub(crate) fn new(point: DecisionPoint, metrics: Arc<Metrics>) -> Self {
        Self { point, metrics }
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
        let mut record = Record::new(Phase::Handshake, outcome, service);
        record.source = Some(source);
        record.reason = Some(reason);
        // The connection is closed either way; `record_stranger` has said what failed.
        let _ = self.point.record_stranger(record).await;
    }
}
