//! What an operator has set about HTTP, for all listeners of a proxy.

use hoplite_policy::header_nature::RemovedHeaders;

use crate::config::Config;
use crate::http::windows::UnreadBudget;
use crate::limits::Limits;

/// See `docs/reference/configuration.md`.
#[derive(Debug)]
pub(crate) struct HttpRules {
    /// What no request takes to the service.
    pub(crate) removed_headers: RemovedHeaders,
    /// Frames of HTTP/2 that belong to no request and that one connection may have sent more than work and time give back.
    pub(crate) useless_frames_max: u32,
    /// For how long callers may keep what they take.
    pub(crate) limits: Limits,
    /// What may be unread.
    pub(crate) unread: UnreadBudget,
}

// === impl HttpRules ===

impl HttpRules {
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            removed_headers: config.removed_headers.clone(),
            useless_frames_max: config.useless_frames_max,
            limits: config.limits,
            unread: UnreadBudget::new(config.limits.unread_bytes_max),
        }
    }
}
