//! What an operator has set about HTTP, for all listeners of a proxy.

use hoplite_policy::header_nature::RemovedHeaders;

use crate::config::Config;

/// See `docs/reference/configuration.md`.
#[derive(Debug, Clone, Default)]
pub(crate) struct HttpRules {
    /// What no request takes to the service.
    pub(crate) removed_headers: RemovedHeaders,
}

// === impl HttpRules ===

impl HttpRules {
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            removed_headers: config.removed_headers.clone(),
        }
    }
}
