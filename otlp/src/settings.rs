//! The section `[otlp]`: to which collector, how it is known, and how much.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hoplite_host::config::{ConfigError, Span};
use hoplite_identity::{HostPort, SpiffeId};
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

/// Who is asked more often learns nothing new.
const INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Nobody looks at metrics that are older.
const INTERVAL_MAX: Duration = Duration::from_secs(3600);

/// A collector on the other side of the world answers sooner.
const TIMEOUT_MIN: Duration = Duration::from_millis(100);

/// What takes longer is given up at the next stop anyway.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

/// The whole section. Without it nothing is sent.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtlpSettings {
    /// The collector's OTLP port for gRPC: `http://127.0.0.1:4317`, or `https://collector.example:4317`.
    pub endpoint: Collector,
    /// With `https`: the one SPIFFE ID that the collector may have. It sees our own SVID.
    #[serde(default)]
    pub spiffe_id: Option<SpiffeId>,
    /// With `https` and without `spiffe_id`: a PEM file with the authorities that the collector's certificate is from; those
    /// of the system when left out.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Lets `http` go to other machines. Whoever is on the way learns who calls whom.
    #[serde(default)]
    pub plaintext: bool,
    /// Whether a proxy makes and sends spans; it does when left out. Of the others none does.
    #[serde(default)]
    pub traces: Option<bool>,
    /// Whether metrics are sent.
    #[serde(default = "yes")]
    pub metrics: bool,
    /// Of requests that belong to no trace yet, the part whose spans are sent: 0 to 1. Those that do belong to one follow its
    /// own word.
    #[serde(default)]
    pub sampling: Option<Ratio>,
    /// How often metrics are sent.
    #[serde(default = "ten_seconds")]
    pub interval: Span,
    /// How long the collector may take for an answer.
    #[serde(default = "five_seconds")]
    pub timeout: Span,
}

/// Where a collector is, and whether it is spoken to by TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector {
    pub(crate) is_tls: bool,
    pub(crate) address: HostPort,
}

/// A text that is no collector's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` {reason}; write for example `http://127.0.0.1:4317` or `https://collector.example:4317`")]
pub struct InvalidCollector {
    text: String,
    reason: &'static str,
}

/// A part of all, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio(f64);

/// Reads a [`Ratio`], which may be written without a point.
struct RatioReader;

// === impl OtlpSettings ===

impl OtlpSettings {
    /// Plain text to this address, everything else as when it is left out.
    pub fn plain(address: HostPort) -> Self {
        Self {
            endpoint: Collector { is_tls: false, address },
            spiffe_id: None,
            ca_file: None,
            plaintext: false,
            traces: None,
            metrics: true,
            sampling: None,
            interval: ten_seconds(),
            timeout: five_seconds(),
        }
    }

    /// Checks what the types cannot say; `file` is named in errors. `traces` is whether this daemon makes spans.
    ///
    /// # Errors
    /// The first setting that cannot be used.
    pub fn check(&self, file: &Path, traces: bool) -> Result<(), ConfigError> {
        let unusable = |key: &str, value: &dyn fmt::Display, reason: &str| {
            Err(ConfigError::unusable(file, &format!("otlp.{key}"), value, reason))
        };
        let Self { endpoint, .. } = self;
        if !cfg!(feature = "export") {
            let reason =
                "this program was built without OTLP; build it with the feature `otlp`, or take the section out";
            return unusable("endpoint", endpoint, reason);
        }
        if !endpoint.is_tls && !endpoint.is_loopback() && !self.plaintext {
            let reason = "plain text to another machine tells all on the way who calls whom; write `https`, or `plaintext = true`";
            return unusable("endpoint", endpoint, reason);
        }
        if endpoint.is_tls && self.plaintext {
            return unusable("plaintext", &true, "the endpoint is `https`; take one of both out");
        }
        if let (false, Some(id)) = (endpoint.is_tls, &self.spiffe_id) {
            return unusable(
                "spiffe_id",
                id,
                "without TLS nobody can prove it; write `https` before the endpoint",
            );
        }
        if let Some(ca_file) = &self.ca_file {
            if !endpoint.is_tls {
                return unusable(
                    "ca_file",
                    &ca_file.display(),
                    "the endpoint is `http`; write `https` before it",
                );
            }
            if self.spiffe_id.is_some() {
                let reason = "a SPIFFE ID is verified with the trust bundle; take `ca_file` or `spiffe_id` out";
                return unusable("ca_file", &ca_file.display(), reason);
            }
        }
        if let (false, Some(true)) = (traces, self.traces) {
            return unusable("traces", &true, "only proxies make spans; take it out");
        }
        if let (false, Some(Ratio(ratio))) = (traces, self.sampling) {
            return unusable("sampling", &ratio, "only proxies make spans; take it out");
        }
        if let (false, Some(Ratio(ratio))) = (self.makes_spans(), self.sampling) {
            return unusable(
                "sampling",
                &ratio,
                "`traces = false` makes no spans; take one of both out",
            );
        }
        let sends_spans = traces && self.makes_spans();
        if !(self.metrics || sends_spans) {
            let reason = "then nothing would be sent; take the whole section out";
            return unusable("metrics", &false, reason);
        }
        if !(INTERVAL_MIN..=INTERVAL_MAX).contains(&self.interval.0) {
            return unusable("interval", &self.interval, "write between \"1s\" and \"1h\"");
        }
        if !(TIMEOUT_MIN..=TIMEOUT_MAX).contains(&self.timeout.0) {
            return unusable("timeout", &self.timeout, "write between \"100ms\" and \"1m\"");
        }
        Ok(())
    }

    /// Whether a proxy with these settings makes spans.
    pub fn makes_spans(&self) -> bool {
        self.traces.unwrap_or(true)
    }

    /// The part of new traces that is sampled.
    pub fn sampled(&self) -> Ratio {
        self.sampling.unwrap_or(Ratio(1.0))
    }
}

fn yes() -> bool {
    true
}

fn ten_seconds() -> Span {
    Span(Duration::from_secs(10))
}

fn five_seconds() -> Span {
    Span(Duration::from_secs(5))
}

// === impl Collector ===

impl Collector {
    fn is_loopback(&self) -> bool {
        let host = self.address.host().trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl FromStr for Collector {
    type Err = InvalidCollector;

    fn from_str(text: &str) -> Result<Self, InvalidCollector> {
        let invalid = |reason| InvalidCollector {
            text: text.to_owned(),
            reason,
        };
        let (is_tls, rest) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err(invalid("does not begin with `http://` or `https://`")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let address = HostPort::parse(rest).map_err(|_| invalid("has no `HOST:PORT` behind that"))?;
        Ok(Self { is_tls, address })
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.address)
    }
}

impl<'de> Deserialize<'de> for Collector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

// === impl Ratio ===

impl Ratio {
    /// Of all numbers of 63 bits the first so many.
    pub(crate) fn threshold(self) -> u64 {
        (self.0 * (1_u64 << 63) as f64) as u64
    }
}

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RatioReader)
    }
}

impl Visitor<'_> for RatioReader {
    type Value = Ratio;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number from 0 to 1, such as 0.1 for one trace in ten")
    }

    fn visit_f64<E: de::Error>(self, ratio: f64) -> Result<Ratio, E> {
        match (0.0..=1.0).contains(&ratio) {
            true => Ok(Ratio(ratio)),
            false => Err(E::invalid_value(de::Unexpected::Float(ratio), &self)),
        }
    }

    fn visit_i64<E: de::Error>(self, ratio: i64) -> Result<Ratio, E> {
        match ratio {
            0 => Ok(Ratio(0.0)),
            1 => Ok(Ratio(1.0)),
            _ => Err(E::invalid_value(de::Unexpected::Signed(ratio), &self)),
        }
    }
}

#[cfg(all(test, feature = "export"))]
mod tests {
    use super::*;

    fn read(text: &str, traces: bool) -> Result<OtlpSettings, ConfigError> {
        let file = Path::new("proxy.toml");
        let settings: OtlpSettings = hoplite_host::config::parse(file, text)?;
        settings.check(file, traces)?;
        Ok(settings)
    }

    #[test]
    fn one_line_is_enough() {
        for endpoint in [
            "http://127.0.0.1:4317",
            "http://localhost:4317/",
            "http://[::1]:4317",
            "https://collector.example:4317",
        ] {
            let settings = read(&format!("endpoint = \"{endpoint}\""), false).unwrap();
            assert_eq!(settings.endpoint.to_string(), endpoint.trim_end_matches('/'));
            assert_eq!(settings.sampled(), Ratio(1.0));
        }
        let sampled = |text| {
            read(
                &format!("endpoint = \"http://127.0.0.1:4317\"\nsampling = {text}"),
                true,
            )
        };
        assert_eq!(sampled("0.25").unwrap().sampled().threshold(), 1 << 61);
        assert_eq!(sampled("0").unwrap().sampled().threshold(), 0);
    }

    #[test]
    fn traces_and_metrics_are_switched_one_by_one() {
        let with = |more: &str, traces: bool| {
            let text = format!("endpoint = \"http://127.0.0.1:4317\"\n{more}");
            read(&text, traces).map(|settings| (settings.makes_spans(), settings.metrics))
        };
        for (more, proxy, expected) in [
            ("", true, (true, true)),
            ("traces = false", true, (false, true)),
            ("metrics = false", true, (true, false)),
            ("metrics = false\nsampling = 0.1", true, (true, false)),
            ("traces = false", false, (false, true)),
        ] {
            assert_eq!(with(more, proxy).unwrap(), expected, "{more}");
        }
        for (more, proxy, parts) in [
            (
                "traces = false\nmetrics = false",
                true,
                ["otlp.metrics", "nothing would be sent"],
            ),
            ("metrics = false", false, ["otlp.metrics", "nothing would be sent"]),
            ("traces = true", false, ["otlp.traces", "only proxies"]),
            (
                "traces = false\nsampling = 0.5",
                true,
                ["otlp.sampling", "traces = false"],
            ),
        ] {
            let error = with(more, proxy).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{more}: {error}");
        }
    }

    #[test]
    fn errors_name_setting_value_and_remedy() {
        let check = |text: &str, expected: &[&str]| {
            let error = read(text, true).unwrap_err().to_string();
            for part in expected {
                assert!(error.contains(part), "`{part}` is missing from `{error}`");
            }
        };
        let with = |more: &str| format!("endpoint = \"https://otel.example:4317\"\n{more}");
        check(
            "endpoint = \"127.0.0.1:4317\"",
            &["`127.0.0.1:4317`", "http://127.0.0.1:4317"],
        );
        check("endpoint = \"http://127.0.0.1\"", &["`http://127.0.0.1`", "4317"]);
        check("endpoint = \"http://127.0.0.1:4317/v1/traces\"", &["v1/traces"]);
        check(
            "endpoint = \"http://otel.example:4317\"",
            &["otlp.endpoint", "`https`", "plaintext = true"],
        );
        check(&with("plaintext = true"), &["otlp.plaintext"]);
        check(&with("sampling = 1.5"), &["1.5", "from 0 to 1"]);
        check(&with("sampling = 20"), &["20", "0.1"]);
        check(&with("interval = \"10ms\""), &["otlp.interval", "10ms", "\"1s\""]);
        check(&with("timeout = \"10m\""), &["otlp.timeout", "\"1m\""]);
        check(
            &with("ca_file = \"/a\"\nspiffe_id = \"spiffe://a/b\""),
            &["otlp.ca_file", "spiffe_id"],
        );
        check(
            "endpoint = \"http://127.0.0.1:4317\"\nspiffe_id = \"spiffe://a/b\"",
            &["otlp.spiffe_id", "https"],
        );
        check("endpont = \"http://127.0.0.1:4317\"", &["endpont"]);
        let error = read(&with("sampling = 0.5"), false).unwrap_err().to_string();
        assert!(
            error.contains("otlp.sampling") && error.contains("only proxies"),
            "{error}"
        );
    }
}
