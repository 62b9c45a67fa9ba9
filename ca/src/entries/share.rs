//! What is registered under one parent, in the order of its changes, with what went: so that whoever holds an older revision is told
//! what changed, and nothing else is looked at.

use std::collections::{BTreeSet, VecDeque};

use hoplite_identity::{EntryId, EntrySum};
use hoplite_store::Revision;

/// What is one parent's.
#[derive(Debug, Default)]
pub(crate) struct Share {
    /// In the order of their last changes.
    entries: BTreeSet<Place>,
    /// Of those entries.
    sum: EntrySum,
    /// What went, and when, in that order.
    tombstones: VecDeque<(Revision, EntryId)>,
    /// Deletions up to here have been forgotten.
    horizon: Revision,
    /// When anything of it last changed.
    changed: Revision,
}

/// An entry's place. Without an id it is the beginning of a revision.
type Place = (Revision, Option<EntryId>);

// === impl Share ===

impl Share {
    /// One more entry, written at this revision.
    pub(crate) fn add(&mut self, id: &EntryId, revision: Revision) {
        self.entries.insert((revision, Some(id.clone())));
        self.sum.add(id, revision);
        self.changed = self.changed.max(revision);
    }

    /// One less, which was written at a revision and went `at` another.
    pub(crate) fn take(&mut self, id: &EntryId, written: Revision, at: Revision) {
        self.entries.remove(&(written, Some(id.clone())));
        self.sum.remove(id, written);
        self.changed = self.changed.max(at);
    }

    /// Remembers that an entry went.
    pub(crate) fn bury(&mut self, id: &EntryId, at: Revision) {
        self.tombstones.push_back((at, id.clone()));
    }

    /// Forgets the oldest deletion.
    pub(crate) fn forget(&mut self) {
        if let Some((revision, _)) = self.tombstones.pop_front() {
            self.horizon = self.horizon.max(revision);
        }
    }

    /// Whether all deletions after `from` are known.
    pub(crate) fn remembers(&self, from: Revision) -> bool {
        from >= self.horizon
    }

    /// Whether anything of it changed after `from`.
    pub(crate) fn has_changed(&self, from: Revision) -> bool {
        self.changed > from
    }

    /// Of all entries that it has.
    pub(crate) fn sum(&self) -> &EntrySum {
        &self.sum
    }

    /// The entries that changed after `from`, all of them without it, in the order of their changes.
    pub(crate) fn since(&self, from: Option<Revision>) -> impl Iterator<Item = &EntryId> {
        let first: Place = (from.map_or(0, |from| from.saturating_add(1)), None);
        self.entries.range(first..).filter_map(|(_, id)| id.as_ref())
    }

    /// What went after `from`. Some of it may have come back.
    pub(crate) fn gone(&self, from: Revision) -> impl Iterator<Item = &EntryId> {
        let since = self.tombstones.partition_point(|(revision, _)| *revision <= from);
        self.tombstones.range(since..).map(|(_, id)| id)
    }
}
