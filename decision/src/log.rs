//! Records on their way to the disk: what of them must be there before an answer goes out, and what came of it, counted.

use std::error::Error;
use std::fmt;

use hoplite_audit::{Appended, Class, DecisionId, Outcome, Record, Recorder, RecorderError};
use hoplite_host::clock;
use hoplite_policy::grant::GRANT_IDS;
use tokio::sync::Notify;
use tracing::{error, warn};

use crate::metrics::{Metrics, Tally};
use crate::roll_up::{Admitted, RollUp, WRITTEN_EVERY};

/// The file beside the kept policy that says what the decision log had reached: one that is gone is not begun anew.
pub const LOG_NOTE: &str = "decision-log";

/// The recorder, what is held back from it, and the counters.
pub(crate) struct Log {
    recorder: Recorder,
    roll_up: RollUp,
    held_back: Notify,
    metrics: Metrics,
}

/// A record in the log, which may have to reach the disk yet.
pub(crate) struct Written {
    appended: Appended,
    class: Class,
    tally: Tally,
}

/// What became of a record.
#[derive(Debug)]
pub(crate) struct Recorded {
    /// None of a refusal that is only counted.
    pub(crate) id: Option<DecisionId>,
    /// Where it is counted.
    pub(crate) tally: Tally,
}

// === impl Log ===

impl Log {
    pub(crate) fn new(recorder: Recorder) -> Self {
        Self {
            recorder,
            roll_up: RollUp::new(clock::moment()),
            held_back: Notify::new(),
            metrics: Metrics::default(),
        }
    }

    pub(crate) fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Writes the record. A plain allow is written when this returns, anything else is on the disk; a refusal of which
    /// there are too many is only counted, and has no id. After an error nothing may be forwarded, and nothing be said but
    /// that we cannot answer.
    pub(crate) async fn record(&self, record: Record) -> Result<Recorded, RecorderError> {
        let tally = self.metrics.tally(&record);
        match self.roll_up.admit(record, clock::moment()) {
            Admitted::Record(record) => {
                let appended = self.append_for(tally, *record);
                self.settled(appended).await
            }
            Admitted::Counted { say } => {
                if let Some((principal, service)) = say {
                    let principal = principal.as_deref().unwrap_or("nobody known");
                    warn!(
                        principal,
                        service,
                        "refused so often that not each refusal has a record: they are counted, in one a second"
                    );
                }
                self.metrics.counted();
                self.held_back.notify_one();
                // What cannot be counted for good is not told either.
                match self.recorder.failure() {
                    Some(failure) => Err(failure),
                    None => Ok(Recorded { id: None, tally }),
                }
            }
        }
    }

    /// Writes what is held back, so that it is counted.
    pub(crate) fn roll_up(&self) {
        for mut record in self.roll_up.take(clock::moment()) {
            match self.recorder.append(&mut record, Class::Full) {
                Ok(_) => self.metrics.rolled_up(&record),
                Err(failure) => {
                    let (error, refusals): (&dyn Error, _) = (&failure, record.suppressed.saturating_add(1));
                    error!(error, refusals, "refusals are not counted in the log");
                }
            }
        }
    }

    /// Writes what is held back once a second, for as long as it is polled. May be dropped at any time.
    pub(crate) async fn keep_counts(&self) {
        loop {
            self.held_back.notified().await;
            // Dropped while it sleeps, it finds the rest when it is asked again.
            self.held_back.notify_one();
            tokio::time::sleep(WRITTEN_EVERY).await;
            self.held_back.notified().await;
            self.roll_up();
        }
    }

    /// Appends a record, and does not wait.
    pub(crate) fn append(&self, record: Record) -> Result<Written, RecorderError> {
        self.append_for(self.metrics.tally(&record), record)
    }

    fn append_for(&self, tally: Tally, mut record: Record) -> Result<Written, RecorderError> {
        let class = if record.outcome == Outcome::Allow && !broke_glass(&record) {
            Class::Full
        } else {
            Class::Must
        };
        Ok(Written {
            appended: self.recorder.append(&mut record, class)?,
            class,
            tally,
        })
    }

    /// Waits until what was appended is where it must be.
    pub(crate) async fn settled(&self, written: Result<Written, RecorderError>) -> Result<Recorded, RecorderError> {
        let settled = async {
            let written = written?;
            if written.class == Class::Must {
                self.recorder.durable(written.appended.seq).await?;
            }
            Ok((written.appended.id, written.tally))
        };
        match settled.await {
            Ok((id, tally)) => {
                self.metrics.recorded(&tally);
                Ok(Recorded { id: Some(id), tally })
            }
            Err(failure) => {
                self.metrics.record_failed();
                let error: &dyn Error = &failure;
                error!(error, "a decision cannot be recorded; the request is refused");
                Err(failure)
            }
        }
    }

    /// Waits until nothing can be written any more, and raises the alarm.
    pub(crate) async fn failed(&self) -> RecorderError {
        let failure = self.recorder.failed().await;
        let error: &dyn Error = &failure;
        error!(
            notice = true,
            error, "ALARM: nothing can be recorded any more, so everything is refused"
        );
        failure
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
