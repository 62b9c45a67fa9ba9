//! What was decided, counted at the place where it is written down: so the totals are those of the log, exactly.
//!
//! A decision is counted when its record is where it must be, under the names that the record has. Refusals of which there
//! are too many are counted when the record that stands for them is written, with how many it stands for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hoplite_audit::Record;
use hoplite_telemetry::{Counter, Exposition, Family, Histogram};

/// Label sets of decisions: callers, times the routes that each of them uses.
const DECISIONS_MAX: usize = 1_000;

/// Reasons are from a fixed set, with some room.
const REASONS_MAX: usize = 200;

/// What has happened since the start.
#[derive(Debug)]
pub struct Metrics {
    decisions: Family<4, Row>,
    refusals: Family<1, Counter>,
    records: Counter,
    record_failures: Counter,
    counted: Counter,
    pub(crate) took: Histogram,
    pub(crate) panics: Counter,
    pub(crate) reference_checks: Counter,
    pub(crate) reference_differences: Counter,
    pub(crate) shadow_differences: Counter,
    pub(crate) stale: Counter,
    pub(crate) break_glass: Counter,
}

/// The counters that a mesh is told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Totals {
    /// Decisions by outcome.
    pub decisions: Vec<(String, u64)>,
    /// Records written.
    pub records: u64,
    /// Requests refused because their record could not be written.
    pub record_failures: u64,
    /// Refusals without a record of their own.
    pub rolled_up: u64,
}

/// Where decisions of one caller, service, route and outcome are counted, and how long their requests took.
#[derive(Debug, Clone)]
pub struct Tally(Arc<Row>);

#[derive(Debug, Default)]
struct Row {
    decisions: Counter,
    requests: Histogram,
}

// === impl Tally ===

impl Tally {
    /// A request that was decided so has ended, so long after its beginning.
    pub fn observe(&self, took: Duration) {
        self.0.requests.observe(took);
    }

    pub(crate) fn decided(&self) {
        self.0.decisions.inc();
    }
}

// === impl Metrics ===

impl Default for Metrics {
    fn default() -> Self {
        Self {
            // Which services there are is configured.
            decisions: Family::new(["caller", "service!", "route", "outcome!"], DECISIONS_MAX),
            refusals: Family::new(["reason"], REASONS_MAX),
            records: Counter::default(),
            record_failures: Counter::default(),
            counted: Counter::default(),
            took: Histogram::default(),
            panics: Counter::default(),
            reference_checks: Counter::default(),
            reference_differences: Counter::default(),
            shadow_differences: Counter::default(),
            stale: Counter::default(),
            break_glass: Counter::default(),
        }
    }
}

impl Metrics {
    /// Where what this record says is counted. Known label sets cost no lock and no memory.
    pub(crate) fn tally(&self, record: &Record) -> Tally {
        let caller = record.principal.as_deref().unwrap_or_default();
        let route = record.route.as_deref().unwrap_or_default();
        let values = [caller, &record.service, route, record.outcome.as_str()];
        Tally(self.decisions.get(values))
    }

    /// A record is where it must be.
    pub(crate) fn recorded(&self, tally: &Tally) {
        self.records.inc();
        tally.decided();
    }

    /// A refusal without a record of its own.
    pub(crate) fn counted(&self) {
        self.counted.inc();
    }

    /// The record of refusals that were too many.
    pub(crate) fn rolled_up(&self, record: &Record) {
        self.records.inc();
        self.tally(record)
            .0
            .decisions
            .inc_by(record.suppressed.saturating_add(1));
    }

    pub(crate) fn record_failed(&self) {
        self.record_failures.inc();
    }

    /// What a mesh is told of.
    pub fn totals(&self) -> Totals {
        let mut decisions: BTreeMap<String, u64> = BTreeMap::new();
        self.decisions.each(|[.., outcome], row| {
            *decisions.entry(outcome.to_owned()).or_default() += row.decisions.get();
        });
        Totals {
            decisions: decisions.into_iter().collect(),
            records: self.records.get(),
            record_failures: self.record_failures.get(),
            rolled_up: self.counted.get(),
        }
    }

    /// Somebody was told so instead of what was asked for.
    pub(crate) fn refused(&self, reason: &'static str) {
        self.refusals.get([reason]).inc();
    }

    /// All decisions, by caller, service, route and outcome.
    #[cfg(test)]
    pub(crate) fn decided(&self) -> u64 {
        let mut decided = 0;
        self.decisions.each(|_, row| decided += row.decisions.get());
        decided
    }

    /// All of it.
    #[cfg(test)]
    pub(crate) fn text(&self) -> String {
        let mut exposition = Exposition::new("sample");
        self.register(&mut exposition);
        exposition.text(hoplite_telemetry::Format::OpenMetrics)
    }

    pub(crate) fn register(&self, to: &mut Exposition) {
        to.register(
            "decisions",
            "Decisions, by caller, service, route and outcome, as the decision log has them",
            self.decisions.part(|row| &row.decisions, |_| false),
        );
        to.register(
            "request_duration_seconds",
            "From a request's head to its answer's end, under the outcome of its decision",
            self.decisions
                .part(|row| &row.requests, |requests| requests.count() == 0),
        );
        to.register(
            "refusals",
            "Refusals by what the caller was told",
            self.refusals.clone(),
        );
        to.register(
            "decision_duration_seconds",
            "What asking policy takes",
            self.took.clone(),
        );
        let mut counter = |name, help, counter: &Counter| to.register(name, help, counter.clone());
        counter("records", "Decision records written", &self.records);
        counter(
            "refusals_rolled_up",
            "Refusals without a record of their own, because their caller has too many",
            &self.counted,
        );
        counter(
            "record_failures",
            "Requests refused because their record could not be written",
            &self.record_failures,
        );
        counter(
            "decision_panics",
            "Decisions that panicked and were refused. Alarm on any",
            &self.panics,
        );
        counter(
            "reference_checks",
            "Decisions also made by the reference, over every policy",
            &self.reference_checks,
        );
        counter(
            "reference_differences",
            "Decisions in which the reference differed, and won. Alarm on any",
            &self.reference_differences,
        );
        counter(
            "shadow_differences",
            "Decisions that the shadow policy would make otherwise",
            &self.shadow_differences,
        );
        counter(
            "stale_decisions",
            "Decisions made by a policy that has expired",
            &self.stale,
        );
        counter(
            "break_glass",
            "Requests that a break-glass grant let through",
            &self.break_glass,
        );
    }
}
