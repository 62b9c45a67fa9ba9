//! Counters, few and honest. Every label comes from a set that is fixed when the program is compiled.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use hoplite_decision::Metrics as Decisions;
use hoplite_host::slots::{Counts, Slots};

/// What has happened since the start.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// The places of all listeners.
    slots: OnceLock<Vec<Slots>>,
    connections: AtomicU64,
    rechecks: AtomicU64,
    revoked: AtomicU64,
    handshakes_refused: Mutex<BTreeMap<&'static str, u64>>,
    upstream_failures: Mutex<BTreeMap<&'static str, u64>>,
    flooded: Mutex<BTreeMap<&'static str, u64>>,
    timeouts: Mutex<BTreeMap<&'static str, u64>>,
}

/// Counts a connection for as long as it lives.
#[derive(Debug)]
pub(crate) struct Counted(Arc<Metrics>);

// === impl Metrics ===

impl Metrics {
    /// Whose bounds are counted too. The first call counts.
    pub(crate) fn watch(&self, slots: Vec<Slots>) {
        let _ = self.slots.set(slots);
    }

    fn bounds(&self) -> Counts {
        let each = self.slots.get().into_iter().flatten().map(Slots::counts);
        each.fold(Counts::default(), |all, one| Counts {
            newcomers_evicted: all.newcomers_evicted + one.newcomers_evicted,
            idle_evicted: all.idle_evicted + one.idle_evicted,
            refused: all.refused + one.refused,
        })
    }

    pub(crate) fn handshake_refused(&self, code: &'static str) {
        *self
            .handshakes_refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(code)
            .or_default() += 1;
    }

    /// A connection was ended for what belongs to no request.
    pub(crate) fn flooded(&self, side: &'static str) {
        *self
            .flooded
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(side)
            .or_default() += 1;
    }

    pub(crate) fn upstream_failed(&self, code: &'static str) {
        *self
            .upstream_failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(code)
            .or_default() += 1;
    }

    /// Something was ended by the setting of this name in `[limits]`.
    pub(crate) fn timed_out(&self, limit: &'static str) {
        *self
            .timeouts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(limit)
            .or_default() += 1;
    }

    /// A TCP connection has ended so.
    pub(crate) fn relayed(&self, ended: &std::io::Result<()>) {
        if ended
            .as_ref()
            .is_err_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
        {
            self.timed_out("tcp_idle");
        }
    }

    /// Something under way was decided again.
    pub(crate) fn rechecked(&self, permitted: bool) {
        self.rechecks.fetch_add(1, Relaxed);
        self.revoked.fetch_add(u64::from(!permitted), Relaxed);
    }

    pub(crate) fn connection(self: &Arc<Self>) -> Counted {
        self.connections.fetch_add(1, Relaxed);
        Counted(self.clone())
    }

    /// Accepted connections that are open now.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Prometheus' text format, 0.0.4, with what the decision point has counted.
    pub(crate) fn exposition(&self, decisions: &Decisions, policy_alarms: u64) -> String {
        let mut text = String::new();
        let mut family = |name: &str, kind: &str, help: &str, samples: Vec<(String, u64)>| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        };
        let plain = |counter: &AtomicU64| vec![(String::new(), counter.load(Relaxed))];
        let by = |label: &str, counts: &Mutex<BTreeMap<&'static str, u64>>| {
            let counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
            counts
                .iter()
                .map(|(value, count)| (format!("{{{label}=\"{value}\"}}"), *count))
                .collect()
        };
        for metric in decisions.families() {
            family(
                &format!("hoplite_proxy_{}", metric.name),
                "counter",
                metric.help,
                metric.samples,
            );
        }
        family(
            "hoplite_proxy_policy_alarms",
            "gauge",
            "What is wrong with where policy comes from: an unsigned directory decides though a signed bundle is there, or signers are not followed. Alarm on any.",
            vec![(String::new(), policy_alarms)],
        );
        family(
            "hoplite_proxy_connections",
            "gauge",
            "Accepted connections open now.",
            plain(&self.connections),
        );
        let bounds = self.bounds();
        let stage = |stage: &str, count| (format!("{{stage=\"{stage}\"}}"), count);
        family(
            "hoplite_proxy_connections_evicted_total",
            "counter",
            "Connections closed for later ones because all places were taken: newcomers that had shown nothing yet, and idle ones.",
            vec![
                stage("newcomer", bounds.newcomers_evicted),
                stage("idle", bounds.idle_evicted),
            ],
        );
        family(
            "hoplite_proxy_connections_refused_total",
            "counter",
            "Connections refused because all places were taken and none was idle.",
            vec![(String::new(), bounds.refused)],
        );
        family(
            "hoplite_proxy_rechecks_total",
            "counter",
            "Connections and requests under way that were decided again because policy changed.",
            plain(&self.rechecks),
        );
        family(
            "hoplite_proxy_revoked_total",
            "counter",
            "Connections and requests under way that were ended because policy no longer permits them.",
            plain(&self.revoked),
        );
        family(
            "hoplite_proxy_handshakes_refused_total",
            "counter",
            "Inbound connections refused before they had an identity.",
            by("code", &self.handshakes_refused),
        );
        family(
            "hoplite_proxy_upstream_failures_total",
            "counter",
            "Requests and connections that found no upstream.",
            by("code", &self.upstream_failures),
        );
        family(
            "hoplite_proxy_connections_flooded_total",
            "counter",
            "Connections ended because they carried too many HTTP/2 frames that belong to no request.",
            by("side", &self.flooded),
        );
        family(
            "hoplite_proxy_timeouts_total",
            "counter",
            "Requests and connections that were ended because nothing moved for too long, by the setting in [limits].",
            by("limit", &self.timeouts),
        );
        text
    }
}

// === impl Counted ===

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_counted() {
        let metrics = Arc::new(Metrics::default());
        let decisions = Decisions::default();
        metrics.handshake_refused("no_certificate");
        metrics.flooded("peer");
        metrics.rechecked(true);
        metrics.rechecked(false);
        let open = metrics.connection();
        assert!(
            metrics
                .exposition(&decisions, 0)
                .contains("hoplite_proxy_connections 1")
        );
        drop(open);
        let text = metrics.exposition(&decisions, 0);
        for line in [
            "hoplite_proxy_decisions_total{outcome=\"no_permit\"} 0",
            "hoplite_proxy_decisions_total{outcome=\"allow\"} 0",
            "hoplite_proxy_handshakes_refused_total{code=\"no_certificate\"} 1",
            "hoplite_proxy_connections_flooded_total{side=\"peer\"} 1",
            "hoplite_proxy_connections 0",
            "hoplite_proxy_rechecks_total 2",
            "hoplite_proxy_revoked_total 1",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "`{line}` is missing from {text}"
            );
        }
    }
}
