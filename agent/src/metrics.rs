//! What an agent counts of its dealings with the CA.

use hoplite_telemetry::{Contact, Counter, Family};

/// Results are of fixed sets.
const RESULTS_MAX: usize = 100;

/// What has happened between this agent and its CA since the start.
#[derive(Debug)]
pub(crate) struct Metrics {
    issued: Family<2, Counter>,
    /// With the CA.
    pub(crate) contact: Contact,
}

// === impl Metrics ===

impl Default for Metrics {
    fn default() -> Self {
        Self {
            issued: Family::new(["kind!", "result!"], RESULTS_MAX),
            contact: Contact::default(),
        }
    }
}

impl Metrics {
    /// A certificate was asked of the CA: the node's own (`join`, `renew`, `reattest`) or a `workload`'s.
    pub(crate) fn asked(&self, kind: &'static str, succeeded: bool) {
        let result = if succeeded { "issued" } else { "failed" };
        self.issued.get([kind, result]).inc();
    }

    /// How often what was asked of the CA, and with which result.
    pub(crate) fn issued(&self) -> &Family<2, Counter> {
        &self.issued
    }
}
