//! Records on their way to the disk: what of them must be there before an answer goes out, and what came of it, counted.

use std::error::Error;
use std::fmt;

use hoplite_audit::{Appended, Class, DecisionId, Outcome, Record, Recorder, RecorderError};
use hoplite_policy::grant::GRANT_IDS;
use tracing::error;

use crate::metrics::Metrics;

/// The recorder, and the counters.
pub(crate) struct Log {
    recorder: Recorder,
    metrics: Metrics,
}

/// A record in the log, which may have to reach the disk yet.
pub(crate) struct Written {
    appended: Appended,
    class: Class,
    outcome: Outcome,
}

// === impl Log ===

impl Log {
    pub(crate) fn new(recorder: Recorder) -> Self {
        Self {
            recorder,
            metrics: Metrics::default(),
        }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Writes the record. A plain allow is written when this returns, anything else is on the disk. After an error nothing
    /// may be forwarded, and nothing be said but that we cannot answer.
    pub(crate) async fn record(&self, record: Record) -> Result<DecisionId, RecorderError> {
        let appended = self.append(record);
        self.settled(appended).await
    }

    /// Appends a record, and does not wait.
    pub(crate) fn append(&self, mut record: Record) -> Result<Written, RecorderError> {
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

    /// Waits until what was appended is where it must be.
    pub(crate) async fn settled(&self, written: Result<Written, RecorderError>) -> Result<DecisionId, RecorderError> {
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

    /// Waits until nothing can be written any more.
    pub(crate) async fn failed(&self) -> RecorderError {
        self.recorder.failed().await
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

/// Whether a break-glass grant is what let it through.
pub(crate) fn broke_glass(record: &Record) -> bool {
    record.determining.iter().any(|id| id.starts_with(GRANT_IDS))
}
