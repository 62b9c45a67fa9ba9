//! How often each policy mattered: what a team needs to know before it removes one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// What one policy did since the process started, over every revision it was part of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PolicyCounts {
    /// Requests that its scope covered.
    pub candidate: u64,
    /// Of these, where its conditions held: it would have decided if nothing stronger had.
    pub satisfied: u64,
    /// Of these, where it was among those that decided.
    pub determining: u64,
    /// Requests for which it could not be evaluated.
    pub errored: u64,
    /// When it last was among those that decided, to the second.
    pub last_fired: Option<SystemTime>,
}

/// The counts of one policy, being counted. Each number alone is exact; together they are read while others are counted.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    candidate: AtomicU64,
    satisfied: AtomicU64,
    determining: AtomicU64,
    errored: AtomicU64,
    /// Seconds since 1970; 0 is never.
    last_fired: AtomicU64,
}

// === impl Counter ===

impl Counter {
    pub(crate) fn candidate(&self) {
        self.candidate.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn satisfied(&self) {
        self.satisfied.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn determined(&self, at: SystemTime) {
        self.determining.fetch_add(1, Ordering::Relaxed);
        let second = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.last_fired.fetch_max(second, Ordering::Relaxed);
    }

    pub(crate) fn errored(&self) {
        self.errored.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> PolicyCounts {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let last_fired = read(&self.last_fired);
        PolicyCounts {
            candidate: read(&self.candidate),
            satisfied: read(&self.satisfied),
            determining: read(&self.determining),
            errored: read(&self.errored),
            last_fired: (last_fired > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(last_fired)),
        }
    }
}
