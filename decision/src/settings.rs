//! What the configuration of every decision point says alike, whichever program holds it.

use serde::Deserialize;

/// What to do with a policy that has expired.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStale {
    /// It decides on.
    #[default]
    Keep,
    /// Nothing is permitted.
    Deny,
}

/// One decision in how many is also made by the reference: often enough to notice a fault within seconds of traffic,
/// seldom enough not to be noticed itself.
pub fn reference_every() -> u64 {
    1_000
}

/// Whether a configuration may call a service so: `[a-z0-9._-]{1,64}`.
pub fn is_service_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_'))
}
