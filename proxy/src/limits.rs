//! How much there may be of what callers take, and for how long they may keep it: the table `[limits]`.

use serde::Deserialize;

/// Connections of one listener at a time, where the system gives as many descriptors.
const CONNECTIONS_MAX: usize = 10_000;

/// The table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections of one listener that are worth keeping, at a time. There are fewer where the system gives fewer
    /// descriptors.
    pub connections_max: usize,
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: CONNECTIONS_MAX,
        }
    }
}
