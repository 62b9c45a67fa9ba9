//! What was decided, counted. Every label comes from a set that is fixed when the program is compiled.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hoplite_audit::Outcome;

const OUTCOMES: [Outcome; 6] = [
    Outcome::Allow,
    Outcome::Forbid,
    Outcome::NoPermit,
    Outcome::Error,
    Outcome::Unauthenticated,
    Outcome::Malformed,
];

/// What has happened since the start.
#[derive(Debug, Default)]
pub struct Metrics {
    decisions: [AtomicU64; OUTCOMES.len()],
    records: AtomicU64,
    record_failures: AtomicU64,
    counted: AtomicU64,
    pub(crate) panics: AtomicU64,
    pub(crate) reference_checks: AtomicU64,
    pub(crate) reference_differences: AtomicU64,
    pub(crate) shadow_differences: AtomicU64,
    pub(crate) stale: AtomicU64,
    pub(crate) break_glass: AtomicU64,
}

/// One metric: its name without the program's prefix, its help, and its samples by label text.
#[derive(Debug)]
pub struct Family {
    /// For example `decisions_total`.
    pub name: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// For example `{outcome="allow"}` and 7.
    pub samples: Vec<(String, u64)>,
}

// === impl Metrics ===

impl Metrics {
    pub(crate) fn recorded(&self, outcome: Outcome) {
        self.records.fetch_add(1, Relaxed);
        self.decided(outcome);
    }

    /// A refusal without a record of its own.
    pub(crate) fn counted(&self, outcome: Outcome) {
        self.counted.fetch_add(1, Relaxed);
        self.decided(outcome);
    }

    /// A record of refusals that were counted when they were decided.
    pub(crate) fn rolled_up(&self) {
        self.records.fetch_add(1, Relaxed);
    }

    fn decided(&self, outcome: Outcome) {
        if let Some(index) = OUTCOMES.iter().position(|known| *known == outcome)
            && let Some(counter) = self.decisions.get(index)
        {
            counter.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn record_failed(&self) {
        self.record_failures.fetch_add(1, Relaxed);
    }

    /// Every counter.
    pub fn families(&self) -> Vec<Family> {
        let plain = |name, help, counter: &AtomicU64| Family {
            name,
            help,
            samples: vec![(String::new(), counter.load(Relaxed))],
        };
        let by_outcome = OUTCOMES
            .iter()
            .zip(&self.decisions)
            .map(|(outcome, count)| (format!("{{outcome=\"{outcome}\"}}"), count.load(Relaxed)));
        vec![
            Family {
                name: "decisions_total",
                help: "Decisions by outcome.",
                samples: by_outcome.collect(),
            },
            plain("records_total", "Decision records written.", &self.records),
            plain(
                "refusals_rolled_up_total",
                "Refusals without a record of their own, because their caller has too many.",
                &self.counted,
            ),
            plain(
                "record_failures_total",
                "Requests refused because their record could not be written.",
                &self.record_failures,
            ),
            plain(
                "decision_panics_total",
                "Decisions that panicked and were refused. Alarm on any.",
                &self.panics,
            ),
            plain(
                "reference_checks_total",
                "Decisions also made by the reference, over every policy.",
                &self.reference_checks,
            ),
            plain(
                "reference_differences_total",
                "Decisions in which the reference differed, and won. Alarm on any.",
                &self.reference_differences,
            ),
            plain(
                "shadow_differences_total",
                "Decisions that the shadow policy would make otherwise.",
                &self.shadow_differences,
            ),
            plain(
                "stale_decisions_total",
                "Decisions made by a policy that has expired.",
                &self.stale,
            ),
            plain(
                "break_glass_total",
                "Requests that a break-glass grant let through.",
                &self.break_glass,
            ),
        ]
    }
}
