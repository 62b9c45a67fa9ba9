//! All families of a process, and their text in the two forms that are read.

use std::fmt;

use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::{Metric, Registry};

use crate::process;
use crate::sampled::{Families, Kind, Samples};

/// All families of a process.
#[derive(Debug)]
pub struct Exposition {
    /// Under the program's name.
    own: Registry,
    /// Under names that all programs share.
    common: Registry,
}

/// How the text is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus' own, 0.0.4: for those who do not ask for the other.
    Prometheus,
}

// === impl Exposition ===

impl Exposition {
    /// Those of every process: `process_…` and `hoplite_build_info`. What is registered has `prefix` before its name.
    pub fn new(prefix: &str) -> Self {
        let mut common = Registry::default();
        let mut families = Families::of(&mut common);
        families.sampled(Kind::Info, "hoplite_build", "Which version runs", |to| {
            to.put_for(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        });
        process::register(&mut families);
        Self {
            own: Registry::with_prefix(prefix),
            common,
        }
    }

    /// Adds a metric. To a counter's name its `_total` is added, and to a sentence its full stop.
    pub fn register(&mut self, name: &'static str, help: &'static str, metric: impl Metric) {
        self.own.register(name, help, metric);
    }

    /// Adds a metric that is read whenever somebody asks.
    pub fn sampled<F>(&mut self, kind: Kind, name: &'static str, help: &'static str, read: F)
    where
        F: Fn(&mut Samples) + Send + Sync + 'static,
    {
        Families::of(&mut self.own).sampled(kind, name, help, read);
    }

    /// All of it, as it is now.
    pub fn text(&self, format: Format) -> String {
        let mut text = String::new();
        // A string takes whatever is written to it.
        let _ = self.write(format, &mut text);
        text
    }

    fn write(&self, format: Format, to: &mut String) -> fmt::Result {
        for registry in [&self.own, &self.common] {
            match format {
                Format::OpenMetrics => text::encode_registry(to, registry)?,
                Format::Prometheus => prometheus_text::encode(to, registry)?,
            }
        }
        match format {
            Format::OpenMetrics => text::encode_eof(to),
            Format::Prometheus => Ok(()),
        }
    }
}

// === impl Format ===

impl Format {
    /// The one that a header field `Accept` asks for.
    pub fn of_accept(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Prometheus,
        }
    }

    /// As the header field `Content-Type` says it.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Counter, Family};

    #[test]
    fn each_form_has_its_own_words() {
        let family = Family::<2, Counter>::new(["who", "what!"], 10);
        family.get(["a \"quoted\"\nback\\slash", "x"]).inc();
        let mut exposition = Exposition::new("sample");
        exposition.register("things", "Things that happened", family);
        exposition.sampled(Kind::Gauge, "open", "Open now", |to| to.put(3));
        exposition.sampled(Kind::Gauge, "nothing", "Nothing yet", |_| {});
        let sample = r#"sample_things_total{who="a \"quoted\"\nback\\slash",what="x"} 1"#;
        let check = |format, lines: &[&str], absent: &str| {
            let text = exposition.text(format);
            for line in lines {
                assert!(
                    text.lines().any(|found| found == *line),
                    "`{line}` is missing from {text}"
                );
            }
            assert!(!text.lines().any(|line| line == absent), "{text}");
        };
        check(
            Format::OpenMetrics,
            &[
                "# HELP sample_things Things that happened.",
                "# TYPE sample_things counter",
                "# TYPE sample_nothing gauge",
                sample,
                "sample_open 3",
                "# TYPE hoplite_build info",
                "# EOF",
            ],
            "",
        );
        check(
            Format::Prometheus,
            &["# TYPE sample_things_total counter", sample, "sample_open 3"],
            "# EOF",
        );
        let version = format!("hoplite_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
        check(Format::Prometheus, &[&version], "# EOF");
    }

    #[test]
    fn who_asks_for_it_gets_open_metrics() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        assert_eq!(Format::of_accept(Some(prometheus)), Format::OpenMetrics);
        assert_eq!(Format::of_accept(Some("*/*")), Format::Prometheus);
        assert_eq!(Format::of_accept(None), Format::Prometheus);
    }
}
