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
