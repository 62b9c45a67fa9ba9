//! Service names: what a proxy stands before, as policy, routes, launches and decision records name it.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Excerpt;

/// The longest service name, in bytes: it stands in every record and in the names of files and sockets.
pub const SERVICE_NAME_BYTES_MAX: usize = 64;

/// The name of a service: 1 to 64 of `[a-z0-9._-]`, a letter or digit first, so that it is the name of a file and no flag.
///
/// One rule for every file and flag, so that no policy can speak of a service that no proxy can have. Lower case
/// only: two names that differ in case would be one name to most people.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName(Arc<str>);

/// A text that names no service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a service name; use 1 to 64 of `a-z`, `0-9`, `-`, `_` and `.`, a letter or digit first")]
pub struct InvalidServiceName(Excerpt);

// === impl ServiceName ===

impl ServiceName {
    /// Checks a text.
    ///
    /// # Errors
    /// It is empty, longer than 64 bytes, has another character than `[a-z0-9._-]`, or begins with none of `[a-z0-9]`.
    pub fn parse(name: &str) -> Result<Self, InvalidServiceName> {
        Self::check(name).map(|()| Self(name.into()))
    }

    /// The rule alone, for those who keep the text.
    ///
    /// # Errors
    /// As [`ServiceName::parse`].
    pub fn check(name: &str) -> Result<(), InvalidServiceName> {
        let is_legal = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_');
        let begins = name.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit());
        if name.len() <= SERVICE_NAME_BYTES_MAX && begins && name.bytes().all(is_legal) {
            Ok(())
        } else {
            Err(InvalidServiceName(Excerpt::of(name)))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ServiceName {
    type Err = InvalidServiceName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::parse(name)
    }
}

impl AsRef<str> for ServiceName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// A map by service answers for a text too.
impl Borrow<str> for ServiceName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Serialize for ServiceName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ServiceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names() {
        let check = |name: &str, good: bool| assert_eq!(ServiceName::parse(name).is_ok(), good, "{name:?}");
        for good in ["ledger", "a", "0", "a.b_c-d", &"a".repeat(64)] {
            check(good, true);
        }
        for bad in [
            "",
            ".",
            "..",
            "...",
            ".a",
            "-",
            "-a",
            "_a",
            "Ledger",
            "led ger",
            "a/b",
            "a:b",
            "l\u{435}dger",
            "a\n",
            &"a".repeat(65),
        ] {
            check(bad, false);
        }
    }

    #[test]
    fn the_message_shows_the_input_escaped_and_the_rule() {
        assert_eq!(
            ServiceName::parse("a\nb").unwrap_err().to_string(),
            r"`a\nb` is not a service name; use 1 to 64 of `a-z`, `0-9`, `-`, `_` and `.`, a letter or digit first"
        );
    }

    proptest! {
        #[test]
        fn what_is_accepted_reads_back(text in "[a-z0-9._-]{0,70}|\\PC{0,70}") {
            match ServiceName::parse(&text) {
                Ok(name) => {
                    prop_assert_eq!(name.to_string(), &*text);
                    prop_assert_eq!(name.to_string().parse(), Ok(name.clone()));
                    let json = serde_json::to_string(&name).unwrap();
                    prop_assert_eq!(serde_json::from_str::<ServiceName>(&json).unwrap(), name);
                }
                Err(error) => prop_assert!(error.to_string().contains("use 1 to 64")),
            }
        }
    }
}
