//! The file of `hoplite entry apply`: registrations as people write them. What may be registered is the CA's question; this is only the form.

use std::time::Duration;

use hoplite_identity::Selector;
use serde::{Deserialize, Deserializer, de};

/// The file, in TOML.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntryFile {
    /// Left out is not the same as empty: a file that was cut off must not delete everything.
    pub entry: Option<Vec<EntryText>>,
}

/// A registration as people write it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntryText {
    /// A SPIFFE ID, or a template of some.
    pub spiffe_id: String,
    /// The SPIFFE ID of a node's agent; empty beside `node_selectors`.
    #[serde(default)]
    pub parent: String,
    /// By which the nodes of a group are known.
    #[serde(default)]
    pub node_selectors: Vec<Selector>,
    /// There may be none beside a template.
    #[serde(default)]
    pub selectors: Vec<Selector>,
    /// The life of each SVID; the CA's own without.
    pub ttl: Option<Life>,
    /// The life of each JWT-SVID; the CA's own without.
    pub jwt_ttl: Option<Life>,
    /// DNS names in the certificate.
    #[serde(default)]
    pub dns_names: Vec<String>,
    /// Foreign trust domains whose workloads it is to verify.
    #[serde(default)]
    pub federates_with: Vec<String>,
    /// By which a process with several SVIDs knows this one.
    #[serde(default)]
    pub hint: String,
    /// Whether it comes first when a process has several.
    #[serde(default)]
    pub default: bool,
}

/// A length of time written as people write it: `10m`, `1h 30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life(pub Duration);

// === impl Life ===

impl<'de> Deserialize<'de> for Life {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map(Self).map_err(|_| {
            de::Error::custom(format!(
                "`{text}` is not a length of time; write for example \"30s\" or \"1h\""
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let read = |text: &str| toml::from_str::<EntryFile>(text).map_err(|error| error.message().to_owned());
        assert_eq!(read("").unwrap().entry, None);
        assert_eq!(read("entry = []").unwrap().entry, Some(Vec::new()));
        let file = read(
            "[[entry]]\nspiffe_id = \"spiffe://a.example/x\"\nparent = \"n\"\nselectors = [\"unix:uid:1\"]\nttl = \"1h 30m\"\ndefault = true",
        );
        let entry = file.unwrap().entry.unwrap().remove(0);
        assert_eq!(
            (entry.ttl, entry.jwt_ttl, entry.default, entry.selectors.len()),
            (Some(Life(Duration::from_secs(5400))), None, true, 1)
        );
        for (text, expected) in [
            ("[[entry]]", "missing field `spiffe_id`"),
            ("entries = []", "unknown field `entries`"),
            (
                "[[entry]]\nspiffe_id = \"x\"\nttl = \"soon\"",
                "`soon` is not a length of time",
            ),
            (
                "[[entry]]\nspiffe_id = \"x\"\nselectors = [\"unix:nose:1\"]",
                "unix:nose",
            ),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.contains(expected), "{text}: {said}");
        }
    }
}
