//! The engine: what evaluates policies in this program, and what a bundle may need of it.

use minicbor::{Decode, Encode};
use std::fmt;
use std::str::FromStr;

/// The newest form of a manifest that this engine reads, and the one it writes.
pub(super) const FORMAT: u32 = 1;
/// The feature that marks a bundle as a shadow: an engine that does not know it must not enforce such a bundle.
pub const CRITICAL_SHADOW: &str = "shadow";
/// The feature of a bundle that selects headers: an engine that does not know it would read no header, and could not see
/// what a forbid is to stop.
pub const CRITICAL_HEADERS: &str = "headers";
/// Every critical feature this engine knows.
pub const KNOWN_CRITICAL: &[&str] = &[CRITICAL_HEADERS, CRITICAL_SHADOW];

/// The version of what evaluates policies: `0.1.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct EngineVersion {
    /// Rises when what was legal no longer is.
    #[n(0)]
    pub major: u32,
    /// Rises with what a bundle may need.
    #[n(1)]
    pub minor: u32,
    /// Rises with every other release.
    #[n(2)]
    pub patch: u32,
}

/// Why a text is not the version of an engine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a version; write for example `0.1.0`")]
pub struct BadVersion(String);

// === impl EngineVersion ===

impl EngineVersion {
    /// The engine in this program.
    pub const THIS: Self = Self {
        major: number(env!("CARGO_PKG_VERSION_MAJOR")),
        minor: number(env!("CARGO_PKG_VERSION_MINOR")),
        patch: number(env!("CARGO_PKG_VERSION_PATCH")),
    };
}

const fn number(text: &str) -> u32 {
    match u32::from_str_radix(text, 10) {
        Ok(number) => number,
        Err(_) => 0,
    }
}

impl FromStr for EngineVersion {
    type Err = BadVersion;

    fn from_str(text: &str) -> Result<Self, BadVersion> {
        let parse = || {
            let mut numbers = text.split('.').map(|part| part.parse::<u32>().ok());
            let version = Self {
                major: numbers.next()??,
                minor: numbers.next()??,
                patch: numbers.next()??,
            };
            (numbers.next().is_none() && version.to_string() == text).then_some(version)
        };
        parse().ok_or_else(|| BadVersion(text.escape_debug().take(80).collect()))
    }
}

impl fmt::Display for EngineVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_three_numbers() {
        let check = |text: &str, good: bool| assert_eq!(text.parse::<EngineVersion>().is_ok(), good, "{text}");
        check("0.1.0", true);
        check("1.20.300", true);
        for bad in [
            "",
            "1",
            "1.2",
            "1.2.3.4",
            "1.2.x",
            "01.2.3",
            "+1.2.3",
            "1.2.99999999999",
        ] {
            check(bad, false);
        }
        assert_eq!(EngineVersion::THIS.to_string(), env!("CARGO_PKG_VERSION"));
        assert!("0.10.0".parse::<EngineVersion>().unwrap() > "0.9.9".parse().unwrap());
    }
}
