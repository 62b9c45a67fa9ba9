//! What is read when somebody asks: numbers that something else keeps.

use std::fmt;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// What a number says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, from the start of the process on.
    Counter,
    /// It goes up and down.
    Gauge,
    /// It is always 1, and its labels say something.
    Info,
}

/// The samples of one metric, as they are read.
#[derive(Debug, Default)]
pub struct Samples(Vec<(Vec<(&'static str, String)>, Value)>);

#[derive(Debug, Clone, Copy)]
enum Value {
    Whole(u64),
    Real(f64),
}

/// A metric that is read when somebody asks.
struct Sampled<F> {
    kind: Kind,
    read: F,
}

/// Where families are added that are read when somebody asks.
pub(crate) struct Families<'a>(&'a mut Registry);

// === impl Families ===

impl<'a> Families<'a> {
    pub(crate) fn of(registry: &'a mut Registry) -> Self {
        Self(registry)
    }

    pub(crate) fn sampled<F>(&mut self, kind: Kind, name: &'static str, help: &'static str, read: F)
    where
        F: Fn(&mut Samples) + Send + Sync + 'static,
    {
        self.0.register(name, help, Sampled { kind, read });
    }
}

// === impl Samples ===

impl Samples {
    /// The only one, or none at all.
    pub fn put(&mut self, value: u64) {
        self.0.push((Vec::new(), Value::Whole(value)));
    }

    /// The only one, with a fraction.
    pub fn put_real(&mut self, value: f64) {
        self.0.push((Vec::new(), Value::of(value)));
    }

    /// One for these labels, whose values are of a bounded set.
    pub fn put_for(&mut self, labels: &[(&'static str, &str)], value: u64) {
        let labels = labels.iter().map(|(name, value)| (*name, (*value).to_owned()));
        self.0.push((labels.collect(), Value::Whole(value)));
    }

    /// One for these labels, with a fraction.
    pub fn put_real_for(&mut self, labels: &[(&'static str, &str)], value: f64) {
        let labels = labels.iter().map(|(name, value)| (*name, (*value).to_owned()));
        self.0.push((labels.collect(), Value::of(value)));
    }
}

// === impl Value ===

impl Value {
    /// A whole number is written without a fraction, as people write it.
    fn of(value: f64) -> Self {
        if value.fract() == 0.0 && (0.0..9e15).contains(&value) {
            Self::Whole(value as u64)
        } else {
            Self::Real(value)
        }
    }
}

// === impl Sampled ===

impl<F: Fn(&mut Samples)> Sampled<F> {
    fn one(&self, mut encoder: MetricEncoder<'_>, value: Value) -> fmt::Result {
        match (self.kind, value) {
            (Kind::Counter, Value::Whole(value)) => encoder.encode_counter::<NoLabelSet, _, u64>(&value, None),
            (Kind::Counter, Value::Real(value)) => encoder.encode_counter::<NoLabelSet, _, f64>(&value, None),
            (Kind::Gauge, Value::Whole(value)) => encoder.encode_gauge(&value),
            (Kind::Gauge, Value::Real(value)) => encoder.encode_gauge(&value),
            // Its labels are all there is to it.
            (Kind::Info, _) => Ok(()),
        }
    }
}

impl<F: Fn(&mut Samples)> EncodeMetric for Sampled<F> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let mut samples = Samples::default();
        (self.read)(&mut samples);
        for (labels, value) in samples.0 {
            if self.kind == Kind::Info {
                encoder.encode_info(&labels)?;
            } else {
                self.one(encoder.encode_family(&labels)?, value)?;
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        match self.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Info => MetricType::Info,
        }
    }
}

impl<F> fmt::Debug for Sampled<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sampled({:?})", self.kind)
    }
}
