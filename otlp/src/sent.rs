//! What became of what was to be sent, counted.

use hoplite_telemetry::{Counter, Exposition, Family};

/// Signals and results are of fixed sets.
const RESULTS_MAX: usize = 20;

/// Counts of it. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Sent {
    spans: Family<1, Counter>,
    exports: Family<2, Counter>,
}

// === impl Sent ===

impl Default for Sent {
    fn default() -> Self {
        Self {
            spans: Family::new(["result!"], RESULTS_MAX),
            exports: Family::new(["signal!", "result!"], RESULTS_MAX),
        }
    }
}

impl Sent {
    /// Adds it to what is shown of a daemon that makes spans.
    pub fn register_spans(&self, to: &mut Exposition) {
        to.register(
            "otlp_spans",
            "Spans of traced requests: taken by the collector, or dropped because it takes too few",
            self.spans.clone(),
        );
        self.register(to);
    }

    /// Adds it to what is shown.
    pub fn register(&self, to: &mut Exposition) {
        to.register(
            "otlp_exports",
            "Attempts to send traces or metrics to the collector, by signal and result",
            self.exports.clone(),
        );
    }

    /// So many spans are where they should be.
    #[cfg(feature = "export")]
    pub(crate) fn delivered(&self, spans: u64) {
        self.spans.get(["sent"]).inc_by(spans);
    }

    /// So many spans never will be.
    pub(crate) fn dropped(&self, spans: u64) {
        self.spans.get(["dropped"]).inc_by(spans);
    }

    /// How many spans never came where they should be.
    pub fn lost(&self) -> u64 {
        self.spans.get(["dropped"]).get()
    }

    #[cfg(feature = "export")]
    pub(crate) fn exported(&self, signal: &'static str, result: &'static str) {
        self.exports.get([signal, result]).inc();
    }
}
