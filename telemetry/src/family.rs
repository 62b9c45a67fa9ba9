//! One metric for each of a bounded number of label sets, found without a lock.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;

/// The value of labels that found no room.
pub const OTHER: &str = "other";

/// A longer value is [`OTHER`] too: whoever chooses it must not choose how long a line is.
const VALUE_BYTES_MAX: usize = 512;

/// A metric for each label set; clones are the same one. Of the label sets that come first each has its own, as many as
/// there is room for. Of those that come later every label that may be dropped has the value `other`, and what they count
/// is not lost.
pub struct Family<const N: usize, M>(Arc<Shared<N, M>>);

struct Shared<const N: usize, M> {
    labels: [Label; N],
    max: usize,
    make: fn() -> M,
    known: ArcSwap<HashMap<Values<N>, Arc<M>>>,
    /// Held by the one who adds a label set.
    adding: Mutex<()>,
}

/// One of the metrics that a family holds together for each label set, as a family of its own.
pub struct Part<const N: usize, M, P> {
    family: Family<N, M>,
    of: fn(&M) -> &P,
    /// Those for which nothing was counted are left out.
    is_empty: fn(&P) -> bool,
}

/// A label's name, and whether its values may be dropped for [`OTHER`].
#[derive(Debug, Clone, Copy)]
struct Label {
    name: &'static str,
    is_bounded: bool,
}

/// The values of one label set.
#[derive(Clone)]
struct Values<const N: usize>([Box<str>; N]);

/// What is looked for.
struct Asked<'a, const N: usize>([&'a str; N]);

/// Either, so that nothing is copied to look for it.
trait Key {
    fn value(&self, index: usize) -> Option<&str>;
}

// === impl Family ===

impl<const N: usize, M: Default> Family<N, M> {
    /// Room for `max` label sets. A label whose name ends in `!` has values from a small fixed set, which are kept where all
    /// others are dropped.
    pub fn new(labels: [&'static str; N], max: usize) -> Self {
        Self::with(labels, max, M::default)
    }
}

impl<const N: usize, M> Family<N, M> {
    /// As [`Family::new`], of metrics that are made so.
    pub fn with(labels: [&'static str; N], max: usize, make: fn() -> M) -> Self {
        let label = |name: &'static str| match name.strip_suffix('!') {
            Some(name) => Label { name, is_bounded: true },
            None => Label {
                name,
                is_bounded: false,
            },
        };
        Self(Arc::new(Shared {
            labels: labels.map(label),
            max,
            make,
            known: ArcSwap::default(),
            adding: Mutex::default(),
        }))
    }

    /// The metric for these values, in the order of the labels. It may be kept, and counts for the same label set then.
    pub fn get(&self, values: [&str; N]) -> Arc<M> {
        if values.iter().any(|value| value.len() > VALUE_BYTES_MAX) {
            let cut = |value| {
                if str::len(value) > VALUE_BYTES_MAX {
                    OTHER
                } else {
                    value
                }
            };
            return self.get(values.map(cut));
        }
        match self.0.known(values) {
            Some(known) => known,
            None => self.0.add(values),
        }
    }

    /// A part of what it holds for each label set, without those of which `is_empty` says so.
    pub fn part<P>(&self, of: fn(&M) -> &P, is_empty: fn(&P) -> bool) -> Part<N, M, P> {
        Part {
            family: self.clone(),
            of,
            is_empty,
        }
    }

    fn encode_each<P: EncodeMetric>(
        &self,
        mut encoder: MetricEncoder<'_>,
        of: impl Fn(&M) -> Option<&P>,
    ) -> fmt::Result {
        for (values, metric) in self.0.sorted() {
            let Some(metric) = of(&metric) else { continue };
            let named = self.0.labels.iter().zip(&values.0);
            let labels: Vec<(&str, &str)> = named.map(|(label, value)| (label.name, &**value)).collect();
            metric.encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// Calls `each` with every label set's values and metric, in the order of the values.
    pub fn each(&self, mut each: impl FnMut([&str; N], &M)) {
        for (values, metric) in self.0.sorted() {
            each(values.0.each_ref().map(|value| &**value), &metric);
        }
    }
}

impl<const N: usize, M> Shared<N, M> {
    fn known(&self, values: [&str; N]) -> Option<Arc<M>> {
        let known = self.known.load();
        known.get(&Asked(values) as &dyn Key).cloned()
    }

    #[cold]
    fn add(&self, values: [&str; N]) -> Arc<M> {
        // Where there is no room there is nothing to wait for.
        if self.known.load().len() >= self.max {
            return self.add_other(values);
        }
        let adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = self.known(values) {
            return known;
        }
        if self.known.load().len() >= self.max {
            drop(adding);
            return self.add_other(values);
        }
        self.insert(values)
    }

    /// The label set with all that may be dropped dropped. There are few of these, and they need no room.
    fn add_other(&self, values: [&str; N]) -> Arc<M> {
        let mut other = values;
        for (value, label) in other.iter_mut().zip(&self.labels) {
            if !label.is_bounded {
                *value = OTHER;
            }
        }
        if let Some(known) = self.known(other) {
            return known;
        }
        let _adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        // Should a set that was said to be small not be, it is bounded all the same.
        let is_small = self.known.load().len() < self.max.saturating_mul(2).max(self.max.saturating_add(16));
        let other = if is_small { other } else { [OTHER; N] };
        match self.known(other) {
            Some(known) => known,
            None => self.insert(other),
        }
    }

    /// INVARIANT: called by whoever holds `adding`.
    fn insert(&self, values: [&str; N]) -> Arc<M> {
        let metric = Arc::new((self.make)());
        let mut known = HashMap::clone(&self.known.load());
        known.insert(Values(values.map(Box::from)), metric.clone());
        self.known.store(Arc::new(known));
        metric
    }

    fn sorted(&self) -> Vec<(Values<N>, Arc<M>)> {
        let known = self.known.load();
        let mut all: Vec<_> = known
            .iter()
            .map(|(values, metric)| (values.clone(), metric.clone()))
            .collect();
        all.sort_by(|(a, _), (b, _)| a.0.cmp(&b.0));
        all
    }
}

impl<const N: usize, M> Clone for Family<N, M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<const N: usize, M> fmt::Debug for Family<N, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Family")
            .field("labels", &self.0.labels)
            .finish_non_exhaustive()
    }
}

impl<const N: usize, M: EncodeMetric> EncodeMetric for Family<N, M> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.encode_each(encoder, |metric| Some(metric))
    }

    fn metric_type(&self) -> MetricType {
        (self.0.make)().metric_type()
    }
}

// === impl Part ===

impl<const N: usize, M: 'static, P: EncodeMetric> EncodeMetric for Part<N, M, P> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        self.family.encode_each(encoder, |metric| {
            Some((self.of)(metric)).filter(|part| !(self.is_empty)(part))
        })
    }

    fn metric_type(&self) -> MetricType {
        let sample = (self.family.0.make)();
        (self.of)(&sample).metric_type()
    }
}

impl<const N: usize, M, P> fmt::Debug for Part<N, M, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.family, f)
    }
}

// === impl Values, Asked ===

impl<const N: usize> Key for Values<N> {
    fn value(&self, index: usize) -> Option<&str> {
        self.0.get(index).map(|value| &**value)
    }
}

impl<const N: usize> Key for Asked<'_, N> {
    fn value(&self, index: usize) -> Option<&str> {
        self.0.get(index).copied()
    }
}

impl Hash for dyn Key + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (0..)
            .map_while(|index| self.value(index))
            .for_each(|value| value.hash(state));
    }
}

impl PartialEq for dyn Key + '_ {
    fn eq(&self, other: &Self) -> bool {
        let values = |key: &Self, index| key.value(index).map(str::as_bytes) == other.value(index).map(str::as_bytes);
        (0..)
            .take_while(|index| self.value(*index).is_some())
            .all(|index| values(self, index))
    }
}

impl Eq for dyn Key + '_ {}

impl<const N: usize> Hash for Values<N> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self as &dyn Key).hash(state);
    }
}

impl<const N: usize> PartialEq for Values<N> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<const N: usize> Eq for Values<N> {}

impl<'a, const N: usize> Borrow<dyn Key + 'a> for Values<N> {
    fn borrow(&self) -> &(dyn Key + 'a) {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use allocation_counter::measure;
    use prometheus_client::metrics::counter::Counter;

    fn family() -> Family<3, Counter> {
        Family::new(["caller", "service!", "route"], 100)
    }

    fn total(family: &Family<3, Counter>) -> (usize, u64) {
        let (mut sets, mut counted) = (0, 0);
        family.each(|_, counter| {
            sets += 1;
            counted += counter.get();
        });
        (sets, counted)
    }

    #[test]
    fn what_finds_no_room_is_counted_as_other_and_nothing_is_lost() {
        let family = family();
        for n in 0..5_000 {
            let service = ["orders", "ledger"][n % 2];
            family.get([&format!("caller-{n}"), service, "GET /"]).inc();
        }
        assert_eq!(total(&family), (102, 5_000));
        assert_eq!(family.get([OTHER, "ledger", OTHER]).get(), 2_450);
        // Who came first keeps what it had.
        family.get(["caller-7", "ledger", "GET /"]).inc();
        assert_eq!(family.get(["caller-7", "ledger", "GET /"]).get(), 2);
    }

    #[test]
    fn a_set_that_was_to_be_small_is_bounded_too() {
        let family = family();
        for n in 0..5_000 {
            family.get(["a", &format!("service-{n}"), "GET /"]).inc();
        }
        let (sets, counted) = total(&family);
        assert!(sets <= 201 && counted == 5_000, "{sets} {counted}");
    }

    #[test]
    fn a_long_value_is_other() {
        let family = family();
        family.get([&"x".repeat(VALUE_BYTES_MAX + 1), "ledger", "GET /"]).inc();
        assert_eq!(family.get([OTHER, "ledger", "GET /"]).get(), 1);
    }

    #[test]
    fn threads_that_add_at_once_lose_nothing() {
        let family = family();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for n in 0..1_000 {
                        family.get([&format!("caller-{}", n % 150), "ledger", "GET /"]).inc();
                    }
                });
            }
        });
        assert_eq!(total(&family), (101, 8_000));
    }

    #[test]
    fn a_known_label_set_allocates_nothing() {
        let family = family();
        let known = ["spiffe://prod.example/orders", "ledger", "ledger:GET /accounts/{id}"];
        let count = || {
            family.get(known).inc();
        };
        assert!(measure(count).count_total > 0, "the first makes it");
        assert_eq!(measure(count).count_total, 0);
        for n in 0..200 {
            family.get([&format!("caller-{n}"), "ledger", "GET /"]).inc();
        }
        let beyond = || {
            family.get(["too late", "ledger", "GET /"]).inc();
        };
        assert_eq!(measure(beyond).count_total, 0, "nor does one that finds no room");
    }
}
