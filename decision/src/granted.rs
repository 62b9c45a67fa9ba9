//! From a judgement to what it grants: only what was recorded comes out, and only for the request it was recorded for.

use hoplite_audit::{DecisionId, Outcome, Record, RecorderError};
use hoplite_policy::{Ambiguous, Permit};
use http::StatusCode;

use crate::answer::refusal;
use crate::draft::{Unasked, status_of};
use crate::log::{Log, Recorded};
use crate::metrics::Tally;

/// Policy was asked, and what it said is not written down yet. Until it is, nobody may go on.
#[must_use = "what is not recorded grants nothing"]
#[derive(Debug)]
pub struct Judged<'a, R> {
    log: &'a Log,
    record: Record,
    answer: Result<(R, Permit), Why>,
}

/// Evidence that policy allows this request, or connection, and that the record of it is written.
///
/// It comes only out of [`Judged::recorded`] and holds what was asked for, which comes out only when it is spent. So what
/// forwards takes one of these by value:
///
/// ```
/// # use hoplite_decision::{Asked, DecisionPoint, Draft, Granted};
/// # use hoplite_policy::Transport;
/// fn forward<R>(granted: Granted<R>) -> R {
///     granted.spend().0
/// }
///
/// async fn serve<R: Asked>(point: &DecisionPoint, draft: Draft<'_>, asked: R, from: &Transport) -> Option<R> {
///     let judged = point.judge(draft, asked, from).await;
///     let granted = judged.recorded().await.ok()?;
///     Some(forward(granted))
/// }
/// ```
///
/// Nothing is granted by what is only drafted:
///
/// ```compile_fail,E0599
/// # use hoplite_decision::{Asked, Draft, Granted};
/// async fn serve(draft: Draft<'_>) -> Option<Granted<()>> {
///     draft.recorded().await.ok()
/// }
/// ```
///
/// ```compile_fail,E0308
/// # use hoplite_decision::{Draft, Granted};
/// fn forward<R>(granted: Granted<R>) -> R {
///     granted.spend().0
/// }
///
/// fn serve<R>(draft: Draft<'_>) -> R {
///     forward(draft)
/// }
/// ```
///
/// Nor by what is judged and not recorded; and its permit and its request are out of reach:
///
/// ```compile_fail,E0308
/// # use hoplite_decision::{Granted, Judged};
/// fn forward<R>(granted: Granted<R>) -> R {
///     granted.spend().0
/// }
///
/// fn serve<R>(judged: Judged<'_, R>) -> R {
///     forward(judged)
/// }
/// ```
///
/// ```compile_fail,E0599
/// # use hoplite_decision::Judged;
/// fn serve<R>(judged: Judged<'_, R>) -> R {
///     judged.spend().0
/// }
/// ```
///
/// ```compile_fail,E0616
/// # use hoplite_decision::Judged;
/// # use hoplite_policy::Permit;
/// fn permit<R>(judged: Judged<'_, R>) -> Option<(R, Permit)> {
///     judged.answer.ok()
/// }
/// ```
///
/// A judgement is recorded once, and is used up by that:
///
/// ```compile_fail,E0382
/// # use hoplite_decision::{Granted, Judged, Refused};
/// async fn twice<R>(judged: Judged<'_, R>) -> [Result<Granted<R>, Refused>; 2] {
///     [judged.recorded().await, judged.recorded().await]
/// }
/// ```
///
/// ```
/// # use hoplite_decision::{Granted, Judged, Refused};
/// async fn once<R>(judged: Judged<'_, R>) -> [Result<Granted<R>, Refused>; 1] {
///     [judged.recorded().await]
/// }
/// ```
///
/// A grant is spent once, is not copied, and is made nowhere else:
///
/// ```compile_fail,E0382
/// # use hoplite_decision::Granted;
/// fn twice<R>(granted: Granted<R>) -> [R; 2] {
///     [granted.spend().0, granted.spend().0]
/// }
/// ```
///
/// ```compile_fail,E0599
/// # use hoplite_decision::Granted;
/// fn copy(granted: Granted<u8>) -> [Granted<u8>; 2] {
///     [granted.clone(), granted]
/// }
/// ```
///
/// ```compile_fail,E0451
/// # use hoplite_decision::Granted;
/// # use hoplite_audit::DecisionId;
/// # use hoplite_policy::Permit;
/// fn forge<R>(request: R, permit: Permit, decision: DecisionId) -> Granted<R> {
///     Granted { request, permit, decision }
/// }
/// ```
///
/// And under a grant no other request goes on than the one that was granted:
///
/// ```compile_fail,E0308
/// # use hoplite_decision::Granted;
/// fn forward<R>(granted: Granted<R>) -> R {
///     granted.spend().0
/// }
///
/// fn swap<R>(granted: Granted<R>, other: R) -> R {
///     forward(other)
/// }
/// ```
///
/// ```compile_fail,E0451
/// # use hoplite_decision::Granted;
/// fn swap<R>(granted: Granted<R>, other: R) -> Granted<R> {
///     Granted { request: other, ..granted }
/// }
/// ```
///
/// ```compile_fail,E0616
/// # use hoplite_decision::Granted;
/// fn swap<R>(mut granted: Granted<R>, other: R) -> Granted<R> {
///     granted.request = other;
///     granted
/// }
/// ```
///
/// ```
/// # use hoplite_decision::Granted;
/// fn kept<R>(granted: Granted<R>, _other: R) -> Granted<R> {
///     granted
/// }
/// ```
#[must_use = "what is granted is let through by what takes it"]
#[derive(Debug)]
pub struct Granted<R> {
    request: R,
    permit: Permit,
    decision: DecisionId,
    tally: Tally,
}

/// That nothing is granted, and what may be said of it.
#[derive(Debug)]
pub struct Refused {
    outcome: Outcome,
    decision: Option<DecisionId>,
    tally: Option<Tally>,
    why: Why,
}

/// Why nothing is granted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// Policy does not allow it, or there is no policy to ask.
    Denied,
    /// A header that policy selects can be read in two ways, so policy was not asked.
    Ambiguous(Ambiguous),
    /// Policy was not asked: of [`Unasked`], what the caller is told.
    Unasked {
        /// As HTTP says it.
        status: StatusCode,
        /// From a fixed set.
        code: &'static str,
    },
    /// Whatever policy says, it cannot be written down.
    Unrecorded,
}

/// What was granted before is granted still. It lets nothing through by itself.
#[derive(Debug)]
pub struct Renewed(Permit);

/// What was granted before is granted no longer. Not written down yet: [`DecisionPoint::record_all`](crate::DecisionPoint::record_all) does that.
#[must_use = "that something is no longer granted is recorded"]
#[derive(Debug)]
pub struct Withdrawn {
    record: Record,
    why: Why,
}

// === impl Judged ===

impl<'a, R> Judged<'a, R> {
    pub(crate) fn new(log: &'a Log, record: Record, asked: R, answer: Result<Permit, Why>) -> Self {
        Self {
            log,
            record,
            answer: answer.map(|permit| (asked, permit)),
        }
    }

    /// What policy says, for tests.
    #[cfg(test)]
    pub(crate) fn answer(&self) -> Result<&(R, Permit), &Why> {
        self.answer.as_ref()
    }

    /// What will be recorded, for tests.
    #[cfg(test)]
    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// The route, or the service, that policy was asked about; empty where it was not asked.
    pub fn route(&self) -> &str {
        self.record.route.as_deref().unwrap_or_default()
    }

    /// Writes it down, and gives what is granted. A plain allow is written when this returns, anything else is on the disk.
    ///
    /// # Errors
    /// [`Refused`]: policy does not allow it, or it cannot be written down.
    pub async fn recorded(self) -> Result<Granted<R>, Refused> {
        let Self { log, record, answer } = self;
        let outcome = record.outcome;
        let refused = match (log.record(record).await, answer) {
            (
                Ok(Recorded {
                    id: Some(decision),
                    tally,
                }),
                Ok((request, permit)),
            ) => {
                return Ok(Granted {
                    request,
                    permit,
                    decision,
                    tally,
                });
            }
            (Ok(_) | Err(_), Ok(_)) => Refused::unrecorded(outcome),
            (recorded, Err(why)) => Refused::new(outcome, why, recorded),
        };
        log.metrics().refused(refused.code());
        Err(refused)
    }
}

// === impl Granted ===

impl<R> Granted<R> {
    /// The record of it.
    pub fn decision(&self) -> &DecisionId {
        &self.decision
    }

    /// The revision of the policy that allows it.
    pub fn revision(&self) -> &str {
        self.permit.decision().revision()
    }

    /// Where it is counted.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Spends it: what was granted goes on, under this decision.
    pub fn spend(self) -> (R, DecisionId) {
        (self.request, self.decision)
    }
}

// === impl Refused ===

impl Refused {
    pub(crate) fn unasked(unasked: Unasked, recorded: Result<Recorded, RecorderError>) -> Self {
        let Unasked {
            status, outcome, code, ..
        } = unasked;
        match recorded {
            Ok(Recorded { id, tally }) => Self {
                outcome,
                decision: id,
                tally: Some(tally),
                why: Why::Unasked { status, code },
            },
            Err(_) => Self::unrecorded(outcome),
        }
    }

    pub(crate) fn new(outcome: Outcome, why: Why, recorded: Result<Recorded, RecorderError>) -> Self {
        match recorded {
            Ok(Recorded { id, tally }) => Self {
                outcome,
                decision: id,
                tally: Some(tally),
                why,
            },
            Err(_) => Self::unrecorded(outcome),
        }
    }

    fn unrecorded(outcome: Outcome) -> Self {
        Self {
            outcome,
            decision: None,
            tally: None,
            why: Why::Unrecorded,
        }
    }

    /// How it ended, as the record says it, or would if there were one.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// The record of it, and of nothing else. None where it could not be written, and for one of so many refusals of its
    /// caller, or of strangers, that it is only counted, in the record of another.
    pub fn decision(&self) -> Option<&DecisionId> {
        self.decision.as_ref()
    }

    /// Where it is counted; none where it could not be written.
    pub fn tally(&self) -> Option<&Tally> {
        self.tally.as_ref()
    }

    /// Why.
    pub fn why(&self) -> &Why {
        &self.why
    }

    /// What the caller is told, as HTTP says it.
    pub fn status(&self) -> StatusCode {
        match &self.why {
            Why::Denied => StatusCode::FORBIDDEN,
            Why::Ambiguous(ambiguous) => status_of(ambiguous),
            Why::Unasked { status, .. } => *status,
            Why::Unrecorded => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// What the caller is told, as a word from a fixed set.
    pub fn code(&self) -> &'static str {
        match &self.why {
            Why::Denied => "denied",
            Why::Ambiguous(ambiguous) => ambiguous.code(),
            Why::Unasked { code, .. } => code,
            Why::Unrecorded => "unrecorded",
        }
    }

    /// What the caller is told, as an answer's body. Of what cannot be recorded nothing is told.
    pub fn body(&self) -> String {
        let outcome = (self.why != Why::Unrecorded).then_some(self.outcome);
        refusal(self.code(), outcome, self.decision())
    }
}

// === impl Renewed ===

impl Renewed {
    pub(crate) fn new(permit: Permit) -> Self {
        Self(permit)
    }

    /// The revision of the policy that allows it now.
    pub fn revision(&self) -> &str {
        self.0.decision().revision()
    }
}

// === impl Withdrawn ===

impl Withdrawn {
    pub(crate) fn new(record: Record, why: Why) -> Self {
        Self { record, why }
    }

    /// Says what had been granted, where the record gives no reason of its own.
    pub fn granted_as(mut self, decision: &DecisionId) -> Self {
        let granted = || format!("it was permitted as {decision}");
        self.record.reason.get_or_insert_with(granted);
        self
    }

    pub(crate) fn into_record(self) -> (Record, Outcome, Why) {
        let outcome = self.record.outcome;
        (self.record, outcome, self.why)
    }
}
