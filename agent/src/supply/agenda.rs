//! When each entry is to be looked at next, once for each.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hoplite_identity::EntryId;

/// A thing to do is due from this on: long ago.
pub(super) const AT_ONCE: SystemTime = UNIX_EPOCH;

/// Those with a time, and those that are due at once.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    timed: BTreeSet<(SystemTime, EntryId)>,
    at_once: BTreeSet<EntryId>,
}

// === impl Agenda ===

impl Agenda {
    pub(super) fn insert(&mut self, due: SystemTime, id: &EntryId) {
        match due == AT_ONCE {
            true => self.at_once.insert(id.clone()),
            false => self.timed.insert((due, id.clone())),
        };
    }

    pub(super) fn remove(&mut self, due: SystemTime, id: &EntryId) {
        match due == AT_ONCE {
            true => self.at_once.remove(id),
            false => self.timed.remove(&(due, id.clone())),
        };
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.timed.is_empty() && self.at_once.is_empty()
    }

    /// What is due, what has a time first: an SVID that is to be renewed will end, and whoever has none yet has waited
    /// for less.
    pub(super) fn overdue(&self, now: SystemTime) -> impl Iterator<Item = &EntryId> {
        let timed = self.timed.iter().take_while(move |(due, _)| *due <= now);
        timed.map(|(_, id)| id).chain(&self.at_once)
    }

    /// How long nothing is due; `None` when there is nothing.
    pub(super) fn idle(&self, now: SystemTime) -> Option<Duration> {
        if !self.at_once.is_empty() {
            return Some(Duration::ZERO);
        }
        let (due, _) = self.timed.first()?;
        Some(due.duration_since(now).unwrap_or_default())
    }
}
