//! How long things take: counted in fixed buckets, by atomic additions only.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// Upper bounds in seconds for what a question to the policy takes (microseconds), a signature, a hop, or a write to the disk.
pub const LATENCIES: &[f64] = &[
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
    1.0, 5.0, 30.0,
];

/// A histogram of lengths of time in [`LATENCIES`]; clones are the same one. The library's own takes a lock to count.
#[derive(Clone)]
pub struct Histogram(Arc<Inner>);

struct Inner {
    /// For each bound those at most as long, and above that bound before it; then all that are longer than the last.
    counts: [AtomicU64; LATENCIES.len() + 1],
    nanos: AtomicU64,
}

// === impl Histogram ===

impl Histogram {
    /// Counts one.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = LATENCIES.iter().take_while(|bound| seconds > **bound).count();
        if let Some(count) = self.0.counts.get(bucket) {
            count.fetch_add(1, Relaxed);
        }
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.0.nanos.fetch_add(nanos, Relaxed);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.0.counts.iter().map(|count| count.load(Relaxed)).sum()
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self(Arc::new(Inner {
            counts: [const { AtomicU64::new(0) }; LATENCIES.len() + 1],
            nanos: AtomicU64::new(0),
        }))
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Histogram({})", self.count())
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = LATENCIES.iter().copied().chain([f64::INFINITY]);
        let counts = self.0.counts.iter().map(|count| count.load(Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        // Of the same reading, so that the count is that of the last bucket.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_nanos(self.0.nanos.load(Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Exposition, Format};

    #[test]
    fn each_is_counted_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        for micros in [0, 500, 501, 1_000, 40_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let mut exposition = Exposition::new("sample");
        exposition.register("took_seconds", "How long", histogram);
        let text = exposition.text(Format::OpenMetrics);
        for line in [
            "sample_took_seconds_bucket{le=\"0.00025\"} 1",
            "sample_took_seconds_bucket{le=\"0.0005\"} 2",
            "sample_took_seconds_bucket{le=\"0.001\"} 4",
            "sample_took_seconds_bucket{le=\"30.0\"} 4",
            "sample_took_seconds_bucket{le=\"+Inf\"} 5",
            "sample_took_seconds_count 5",
            "sample_took_seconds_sum 40.002001",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "`{line}` is missing from {text}"
            );
        }
    }

    /// Whatever comes from however many threads: nothing is counted twice or lost, and the sum is exact to the nanosecond.
    #[test]
    fn the_buckets_add_up_to_the_count_and_the_sum_is_exact() {
        let histogram = Histogram::default();
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let histogram = histogram.clone();
                scope.spawn(move || {
                    for n in 0..5_000_u64 {
                        histogram.observe(Duration::from_nanos(n * n * n + thread));
                    }
                });
            }
        });
        let nanos: u64 = (0..4)
            .flat_map(|thread| (0..5_000).map(move |n: u64| n * n * n + thread))
            .sum();
        assert_eq!((histogram.count(), histogram.0.nanos.load(Relaxed)), (20_000, nanos));
        for (index, bound) in LATENCIES.iter().enumerate() {
            let at_most =
                (0..4_u64).flat_map(|thread| (0..5_000_u64).map(move |n| Duration::from_nanos(n * n * n + thread)));
            let expected = at_most.filter(|took| took.as_secs_f64() <= *bound).count() as u64;
            let counted: u64 = histogram
                .0
                .counts
                .iter()
                .take(index + 1)
                .map(|count| count.load(Relaxed))
                .sum();
            assert_eq!(counted, expected, "at most {bound} s");
        }
    }
}
