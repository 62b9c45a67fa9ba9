//! Which foreign trust domains an entry's workload is to verify: those that it names, and those of the sets that it falls under.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Excerpt, SpiffeId, TrustDomain};

/// Foreign trust domains that one entry, or one set, may name.
pub const FEDERATES_WITH_MAX: usize = 64;

/// The longest name of a set, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// The beginning of paths, by whole segments: `/` is that of every path, `/payments` that of `/payments` and `/payments/api`, and
/// not that of `/payments-test`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathPrefix(String);

/// Foreign trust domains by default: every entry below the prefix federates with them, without naming them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FederationSet {
    /// Of whose workloads.
    pub prefix: PathPrefix,
    /// With whom.
    pub trust_domains: BTreeSet<TrustDomain>,
}

/// A text that is no beginning of paths.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no prefix of paths; write `/` for all workloads, or whole segments: `/payments`")]
pub struct InvalidPathPrefix(Excerpt);

/// A text that cannot name a set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no name of a set; write 1 to {NAME_BYTES_MAX} of `[a-z0-9._-]`")]
pub struct InvalidSetName(Excerpt);

/// Whether a text can name a set.
///
/// # Errors
/// It is empty, too long, or has another character than `[a-z0-9._-]`.
pub fn check_set_name(text: &str) -> Result<(), InvalidSetName> {
    let is_legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    match (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_legal) {
        true => Ok(()),
        false => Err(InvalidSetName(Excerpt::of(text))),
    }
}

// === impl PathPrefix ===

impl PathPrefix {
    /// Checks a text.
    ///
    /// # Errors
    /// It is no path that a SPIFFE ID could have.
    pub fn parse(text: &str) -> Result<Self, InvalidPathPrefix> {
        let invalid = || InvalidPathPrefix(Excerpt::of(text));
        if text == "/" {
            return Ok(Self("/".to_owned()));
        }
        // The rules of paths are those of SPIFFE IDs.
        let id = SpiffeId::parse(&format!("spiffe://x{text}")).map_err(|_| invalid())?;
        match id.is_trust_domain() {
            true => Err(invalid()),
            false => Ok(Self(text.to_owned())),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a SPIFFE ID's path begins with it.
    pub fn has(&self, id: &SpiffeId) -> bool {
        let rest = id.path().strip_prefix(self.0.as_str());
        self.0 == "/" || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for PathPrefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for PathPrefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

// === impl FederationSet ===

impl FederationSet {
    /// Whether it has the workload of a SPIFFE ID verify members of a foreign trust domain.
    pub fn federates(&self, id: &SpiffeId, trust_domain: &TrustDomain) -> bool {
        self.prefix.has(id) && self.trust_domains.contains(trust_domain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_of_whole_segments() {
        let check = |prefix: &str, path: &str, expected: bool| {
            let id = SpiffeId::parse(&format!("spiffe://prod.example{path}")).unwrap();
            assert_eq!(
                PathPrefix::parse(prefix).unwrap().has(&id),
                expected,
                "{prefix} of {path}"
            );
        };
        check("/", "/web", true);
        check("/", "/a/b", true);
        check("/payments", "/payments", true);
        check("/payments", "/payments/api", true);
        check("/payments", "/payments-test", false);
        check("/payments", "/other/payments", false);
        check("/a/b", "/a", false);
        check("/a/b", "/a/b/c", true);
    }

    #[test]
    fn what_is_no_prefix_and_no_name() {
        for bad in [
            "",
            "payments",
            "//",
            "/a/",
            "/a//b",
            "/a/../b",
            "/a b",
            "/%61",
            "spiffe://x/a",
        ] {
            assert!(PathPrefix::parse(bad).is_err(), "{bad}");
        }
        for bad in ["", "A", "a b", "a/b", &"x".repeat(65)] {
            assert!(check_set_name(bad).is_err(), "{bad}");
        }
        assert!(check_set_name("partners-1.eu").is_ok());
    }
}
