//! The setting `metrics_listen`: an address, or a port of the loopback interface.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

/// Where metrics are served: `"127.0.0.1:9464"`, or `9464` for that port on the loopback interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricsListen(pub SocketAddr);

/// Reads it.
struct Reader;

// === impl MetricsListen ===

impl MetricsListen {
    fn loopback(port: u16) -> Self {
        Self((Ipv4Addr::LOCALHOST, port).into())
    }
}

impl fmt::Display for MetricsListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for MetricsListen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

impl Visitor<'_> for Reader {
    type Value = MetricsListen;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address such as \"127.0.0.1:9464\", or a port such as 9464, which means the loopback interface")
    }

    fn visit_i64<E: de::Error>(self, port: i64) -> Result<MetricsListen, E> {
        match u16::try_from(port) {
            Ok(port) => Ok(MetricsListen::loopback(port)),
            Err(_) => Err(E::invalid_value(de::Unexpected::Signed(port), &self)),
        }
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<MetricsListen, E> {
        let bare = text.strip_prefix(':').unwrap_or(text);
        if let Ok(port) = bare.parse::<u16>() {
            return Ok(MetricsListen::loopback(port));
        }
        match text.parse() {
            Ok(address) => Ok(MetricsListen(address)),
            Err(_) => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Sample {
        at: MetricsListen,
    }

    fn read(value: &str) -> Result<String, String> {
        let read: Result<Sample, _> = toml::from_str(&format!("at = {value}"));
        read.map(|sample| sample.at.to_string())
            .map_err(|error| error.message().to_owned())
    }

    #[test]
    fn a_bare_port_is_the_loopback_interfaces() {
        for (value, expected) in [
            ("9464", "127.0.0.1:9464"),
            ("\"9464\"", "127.0.0.1:9464"),
            ("\":9464\"", "127.0.0.1:9464"),
            ("\"0.0.0.0:9464\"", "0.0.0.0:9464"),
            ("\"[::1]:9464\"", "[::1]:9464"),
        ] {
            assert_eq!(read(value).unwrap(), expected, "{value}");
        }
        for value in [
            "70000",
            "-1",
            "\"\"",
            "\"localhost:1\"",
            "\"1.2.3.4\"",
            "true",
            "\"127.0.0.1:\"",
        ] {
            let error = read(value).unwrap_err();
            assert!(error.contains("127.0.0.1:9464"), "{value}: {error}");
        }
    }
}
