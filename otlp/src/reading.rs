//! Metrics as OTLP has them, read from the very text that `/metrics` gives, so that both say the same.
//!
//! Names are those of the text, a counter's `_total` included. Buckets of a histogram are cumulative there, and not here.

use std::collections::BTreeMap;
use std::time::SystemTime;

use hoplite_wire::otlp::collector::metrics::v1 as metrics;
use hoplite_wire::otlp::common::v1::KeyValue;
use metrics::number_data_point::Value;
use metrics::{AggregationTemporality, HistogramDataPoint, Metric, NumberDataPoint, metric};

use crate::encoding::{nanos, text};

/// What a family of the text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Info,
    Histogram,
}

/// The family whose samples are read.
struct Family {
    name: String,
    help: String,
    kind: Kind,
    numbers: Vec<NumberDataPoint>,
    /// By their labels without `le`.
    histograms: BTreeMap<String, Read>,
}

/// A histogram as far as it is read.
struct Read {
    attributes: Vec<KeyValue>,
    bounds: Vec<f64>,
    cumulative: Vec<u64>,
    sum: f64,
}

/// When it began to be counted, and now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) began: SystemTime,
    pub(crate) now: SystemTime,
}

/// What an OpenMetrics text of ours says.
pub(crate) fn read(text: &str, times: Times) -> Vec<Metric> {
    let (mut all, mut help, mut family) = (Vec::new(), None, None::<Family>);
    for line in text.lines() {
        if let Some(said) = line.strip_prefix("# HELP ") {
            help = said.split_once(' ');
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            all.extend(family.take().and_then(|family| family.finished(times)));
            family = Family::of(kind, help);
        } else if !line.starts_with('#')
            && let Some(family) = &mut family
        {
            // A line of ours that cannot be read would be a fault of ours, and no other line's.
            let _ = family.sample(line, times);
        }
    }
    all.extend(family.and_then(|family| family.finished(times)));
    all
}

// === impl Family ===

impl Family {
    fn of(line: &str, help: Option<(&str, &str)>) -> Option<Self> {
        let (name, kind) = line.split_once(' ')?;
        let kind = match kind {
            "counter" => Kind::Counter,
            "gauge" => Kind::Gauge,
            "info" => Kind::Info,
            "histogram" => Kind::Histogram,
            _ => return None,
        };
        let help = help.filter(|(of, _)| *of == name).map_or("", |(_, help)| help);
        Some(Self {
            name: name.to_owned(),
            help: help.to_owned(),
            kind,
            numbers: Vec::new(),
            histograms: BTreeMap::new(),
        })
    }

    fn sample(&mut self, line: &str, times: Times) -> Option<()> {
        let rest = line.strip_prefix(self.name.as_str())?;
        let (part, labels, value) = split(rest)?;
        let value = value.trim();
        if self.kind != Kind::Histogram {
            self.numbers.push(NumberDataPoint {
                start_time_unix_nano: if self.kind == Kind::Counter {
                    nanos(times.began)
                } else {
                    0
                },
                time_unix_nano: nanos(times.now),
                value: Some(number(value)?),
                attributes: attributes(labels)?.1,
            });
            return Some(());
        }
        let (bound, attributes) = attributes(labels)?;
        let without: Vec<String> = attributes.iter().map(|label| format!("{label:?}")).collect();
        let histogram = self.histograms.entry(without.join(",")).or_insert_with(|| Read {
            attributes,
            bounds: Vec::new(),
            cumulative: Vec::new(),
            sum: 0.0,
        });
        match (part, bound) {
            ("_bucket", Some(bound)) => {
                histogram.cumulative.push(value.parse().ok()?);
                if bound != "+Inf" {
                    histogram.bounds.push(bound.parse().ok()?);
                }
            }
            ("_sum", _) => histogram.sum = value.parse().ok()?,
            _ => {}
        }
        Some(())
    }

    fn finished(self, times: Times) -> Option<Metric> {
        let temporality = AggregationTemporality::Cumulative.into();
        let unit = match () {
            () if self.name.ends_with("_seconds") => "s",
            () if self.name.ends_with("_bytes") => "By",
            () => "",
        };
        let (end, data) = match self.kind {
            Kind::Counter => {
                let sum = metrics::Sum {
                    data_points: self.numbers,
                    aggregation_temporality: temporality,
                    is_monotonic: true,
                };
                ("_total", metric::Data::Sum(sum))
            }
            Kind::Gauge | Kind::Info => {
                let gauge = metrics::Gauge {
                    data_points: self.numbers,
                };
                let end = if self.kind == Kind::Info { "_info" } else { "" };
                (end, metric::Data::Gauge(gauge))
            }
            Kind::Histogram => {
                let points = self.histograms.into_values().map(|read| read.finished(times));
                let histogram = metrics::Histogram {
                    data_points: points.collect(),
                    aggregation_temporality: temporality,
                };
                ("", metric::Data::Histogram(histogram))
            }
        };
        let is_empty = match &data {
            metric::Data::Sum(sum) => sum.data_points.is_empty(),
            metric::Data::Gauge(gauge) => gauge.data_points.is_empty(),
            metric::Data::Histogram(histogram) => histogram.data_points.is_empty(),
        };
        (!is_empty).then(|| Metric {
            name: format!("{}{end}", self.name),
            description: self.help,
            unit: unit.to_owned(),
            data: Some(data),
        })
    }
}

// === impl Read ===

impl Read {
    fn finished(self, times: Times) -> HistogramDataPoint {
        let before = [0].into_iter().chain(self.cumulative.iter().copied());
        let each = self
            .cumulative
            .iter()
            .zip(before)
            .map(|(all, before)| all.saturating_sub(before));
        HistogramDataPoint {
            start_time_unix_nano: nanos(times.began),
            time_unix_nano: nanos(times.now),
            count: self.cumulative.last().copied().unwrap_or_default(),
            sum: Some(self.sum),
            bucket_counts: each.collect(),
            explicit_bounds: self.bounds,
            attributes: self.attributes,
        }
    }
}

fn number(text: &str) -> Option<Value> {
    match text.parse::<i64>() {
        Ok(whole) => Some(Value::AsInt(whole)),
        Err(_) => text.parse().ok().map(Value::AsDouble),
    }
}

/// The end of a sample's name, its labels, and its value.
fn split(rest: &str) -> Option<(&str, &str, &str)> {
    match rest.split_once('{') {
        Some((part, labels)) if !part.contains(' ') => {
            // A value may hold a brace, and no brace comes after the last.
            let (labels, value) = labels.rsplit_once('}')?;
            Some((part, labels, value))
        }
        _ => rest.split_once(' ').map(|(part, value)| (part, "", value)),
    }
}

/// The bound of a bucket, if there is one, and all other labels.
fn attributes(mut labels: &str) -> Option<(Option<String>, Vec<KeyValue>)> {
    let (mut bound, mut all) = (None, Vec::new());
    while !labels.is_empty() {
        let (name, rest) = labels.split_once("=\"")?;
        let (value, rest) = quoted(rest)?;
        match name {
            "le" => bound = Some(value),
            name => all.push(text(name, value)),
        }
        labels = rest.strip_prefix(',').unwrap_or(rest);
    }
    Some((bound, all))
}

/// A value without its escapes, and what comes after its closing mark.
fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut escaped) = (String::new(), false);
    for (at, letter) in text.char_indices() {
        match (escaped, letter) {
            (true, 'n') => value.push('\n'),
            (true, letter) => value.push(letter),
            (false, '\\') => {}
            (false, '"') => return Some((value, text.get(at + 1..)?)),
            (false, letter) => value.push(letter),
        }
        escaped = !escaped && letter == '\\';
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use hoplite_telemetry::{Counter, Exposition, Family, Format, Histogram, Kind};
    use hoplite_wire::otlp::common::v1::any_value;

    use super::*;

    fn shown(labels: &[KeyValue]) -> String {
        let each = labels.iter().map(|label| match &label.value.as_ref().unwrap().value {
            Some(any_value::Value::StringValue(value)) => format!("{}={value}", label.key),
            other => panic!("{other:?}"),
        });
        each.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn it_says_what_the_text_says() {
        let calls = Family::<2, Counter>::new(["who", "what!"], 10);
        calls.get(["a \"quoted\"\nback\\slash {x=\"1\"},", "x"]).inc_by(7);
        calls.get(["", "y"]).inc();
        let took = Family::<1, Histogram>::new(["who"], 10);
        for micros in [0, 501, 40_000_000] {
            took.get(["a"]).observe(Duration::from_micros(micros));
        }
        took.get(["b"]).observe(Duration::from_micros(1));
        let mut exposition = Exposition::new("sample");
        exposition.register("calls", "Calls", calls);
        exposition.register("took_seconds", "How long", took);
        exposition.sampled(Kind::Gauge, "open_bytes", "Open now", |to| to.put_real(0.25));
        exposition.sampled(Kind::Gauge, "nothing", "Nothing yet", |_| {});
        exposition.sampled(Kind::Info, "policy", "Which", |to| to.put_for(&[("revision", "7")], 1));
        let times = Times {
            began: UNIX_EPOCH + Duration::from_secs(1),
            now: UNIX_EPOCH + Duration::from_secs(2),
        };
        let all = super::read(&exposition.text(Format::OpenMetrics), times);
        let find = |name: &str| all.iter().find(|metric| metric.name == name);
        let data = |name: &str| find(name).unwrap().data.clone().unwrap();

        let metric::Data::Sum(sum) = data("sample_calls_total") else {
            panic!()
        };
        assert!(sum.is_monotonic && sum.aggregation_temporality == 2);
        let points: Vec<_> = sum
            .data_points
            .iter()
            .map(|point| {
                (
                    shown(&point.attributes),
                    point.value.unwrap(),
                    point.start_time_unix_nano,
                )
            })
            .collect();
        assert_eq!(
            points,
            [
                ("who= what=y".to_owned(), Value::AsInt(1), 1_000_000_000),
                (
                    "who=a \"quoted\"\nback\\slash {x=\"1\"}, what=x".to_owned(),
                    Value::AsInt(7),
                    1_000_000_000
                ),
            ]
        );

        let metric::Data::Histogram(histogram) = data("sample_took_seconds") else {
            panic!()
        };
        let [a, b] = &histogram.data_points[..] else { panic!() };
        assert_eq!((a.count, b.count, a.sum), (3, 1, Some(40.000_501)));
        assert_eq!(a.bucket_counts, [1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(
            (a.explicit_bounds.len(), shown(&a.attributes)),
            (17, "who=a".to_owned())
        );
        assert_eq!(find("sample_took_seconds").unwrap().unit, "s");

        let metric::Data::Gauge(gauge) = data("sample_open_bytes") else {
            panic!()
        };
        assert_eq!(gauge.data_points[0].value, Some(Value::AsDouble(0.25)));
        assert_eq!(find("sample_open_bytes").unwrap().description, "Open now.");
        assert!(find("sample_nothing").is_none());
        let metric::Data::Gauge(info) = data("sample_policy_info") else {
            panic!()
        };
        assert_eq!(
            (shown(&info.data_points[0].attributes), info.data_points[0].value),
            ("revision=7".to_owned(), Some(Value::AsInt(1)))
        );
        assert!(find("process_cpu_seconds_total").is_some() && find("hoplite_build_info").is_some());
    }

    #[test]
    fn nonsense_is_left_out() {
        for text in [
            "",
            "# TYPE a counter\na_total{",
            "# TYPE a counter\na_total{x=\"1} 1",
            "# TYPE a\na 1",
            "a 1",
            "# TYPE a gauge\na x",
        ] {
            let times = Times {
                began: UNIX_EPOCH,
                now: UNIX_EPOCH,
            };
            assert_eq!(super::read(text, times), [], "{text}");
        }
    }
}
