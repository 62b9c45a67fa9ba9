//! What an operator has set about HTTP, for all listeners of a proxy.

use std::sync::Arc;

use arc_swap::ArcSwap;
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
    /// What may be unread, of all together: the same over all changes.
    pub(crate) unread: Arc<UnreadBudget>,
}

/// The rules in force, shared by all listeners and workers. What begins takes those of that moment.
#[derive(Debug, Clone)]
pub(crate) struct RulesFeed(Arc<ArcSwap<HttpRules>>);

// === impl HttpRules ===

impl HttpRules {
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            removed_headers: config.removed_headers.clone(),
            useless_frames_max: config.useless_frames_max,
            limits: config.limits,
            unread: Arc::new(UnreadBudget::new(config.limits.unread_bytes_max)),
        }
    }

    /// As another configuration says, of which what may be unread is in force only with the next start.
    pub(crate) fn changed(&self, config: &Config) -> Self {
        Self {
            unread: self.unread.clone(),
            ..Self::of(config)
        }
    }
}

// === impl RulesFeed ===

impl RulesFeed {
    pub(crate) fn new(first: HttpRules) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(first)))
    }

    pub(crate) fn current(&self) -> Arc<HttpRules> {
        self.0.load_full()
    }

    /// From the next request, and the next connection, on.
    pub(crate) fn replace(&self, next: HttpRules) {
        self.0.store(Arc::new(next));
    }
}
