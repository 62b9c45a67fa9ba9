//! Where the service behind an inbound listener is: one address at a time, and another one while the listener runs.

use std::sync::Arc;

use arc_swap::ArcSwap;

/// An address of the service.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Forward {
    /// Of this listener's: counts up from 0.
    pub(crate) number: u64,
    /// `host:port`.
    pub(crate) address: String,
}

/// The address in force, shared by all workers.
#[derive(Debug)]
pub(crate) struct ForwardFeed(ArcSwap<Forward>);

// === impl ForwardFeed ===

impl ForwardFeed {
    pub(crate) fn new(address: String) -> Self {
        Self(ArcSwap::from_pointee(Forward { number: 0, address }))
    }

    pub(crate) fn current(&self) -> Arc<Forward> {
        self.0.load_full()
    }

    /// The number of the address in force, without touching its count of users.
    pub(crate) fn number(&self) -> u64 {
        self.0.load().number
    }

    /// From the next request or connection on it is this one. What is under way finishes where it is.
    pub(crate) fn replace(&self, address: &str) {
        self.0.rcu(|before| Forward {
            number: before.number + 1,
            address: address.to_owned(),
        });
    }
}
