//! The entries' part of the index: what each agent is entitled to, and what it lacks.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use hoplite_identity::{Entry, EntryId, RegisteredEntry, SpiffeId};
use hoplite_store::Revision;

use crate::record::{BadRecord, Mutation};

/// Deleted entries remembered, for agents that were away; those away for longer get everything anew.
pub(crate) const TOMBSTONES_MAX: usize = 65_536;

/// All entries, at one revision.
#[derive(Debug, Default)]
pub(crate) struct EntryIndex {
    entries: BTreeMap<EntryId, Arc<RegisteredEntry>>,
    /// By parent. Kept when empty: its agent must still learn what went.
    assigned: HashMap<SpiffeId, Assigned>,
    /// In the order of deletion.
    tombstones: VecDeque<Tombstone>,
    /// Deletions up to here may have been forgotten.
    horizon: Revision,
}

#[derive(Debug, Default)]
struct Assigned {
    entries: BTreeSet<EntryId>,
    /// When anything of it last changed.
    changed: Revision,
}

#[derive(Debug)]
struct Tombstone {
    revision: Revision,
    parent_id: SpiffeId,
    id: EntryId,
}

// === impl EntryIndex ===

impl EntryIndex {
    /// Of a store whose deletions up to a revision are not known.
    pub(crate) fn beginning_at(horizon: Revision) -> Self {
        Self {
            horizon,
            ..Self::default()
        }
    }

    /// One write of the store.
    pub(crate) fn put(&mut self, mutation: Mutation<'_>) -> Result<(), BadRecord> {
        let Some((id, entry)) = mutation.of::<Entry>()? else {
            return Ok(());
        };
        let revision = mutation.revision;
        if let Some(old) = self.entries.remove(id) {
            match &entry {
                // Changed in place: nothing went, so there is nothing to remember.
                Some(entry) if entry.parent_id == old.entry.parent_id => {}
                _ => self.bury(&old, revision),
            }
        }
        if let Some(entry) = entry {
            let id = EntryId::parse(id).map_err(|error| BadRecord::Malformed {
                key: mutation.key.escape_debug().to_string(),
                reason: error.to_string(),
            })?;
            let assigned = self.assigned.entry(entry.parent_id.clone()).or_default();
            assigned.entries.insert(id.clone());
            assigned.changed = assigned.changed.max(revision);
            let registered = RegisteredEntry {
                id: id.clone(),
                entry,
                revision,
            };
            self.entries.insert(id, Arc::new(registered));
        }
        Ok(())
    }

    fn bury(&mut self, old: &RegisteredEntry, revision: Revision) {
        let parent_id = old.entry.parent_id.clone();
        let assigned = self.assigned.entry(parent_id.clone()).or_default();
        assigned.entries.remove(&old.id);
        assigned.changed = revision;
        self.tombstones.push_back(Tombstone {
            revision,
            parent_id,
            id: old.id.clone(),
        });
        while self.tombstones.len() > TOMBSTONES_MAX
            && let Some(forgotten) = self.tombstones.pop_front()
        {
            self.horizon = self.horizon.max(forgotten.revision);
        }
    }

    /// One entry.
    pub(crate) fn get(&self, id: &str) -> Option<&Arc<RegisteredEntry>> {
        self.entries.get(id)
    }

    /// All entries, by id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<RegisteredEntry>> {
        self.entries.values()
    }

    /// Whether all deletions after `from` are known.
    pub(crate) fn remembers(&self, from: Revision) -> bool {
        from >= self.horizon
    }

    /// Whether any entry of the agent has changed after `from`.
    pub(crate) fn has_changed(&self, agent: &SpiffeId, from: Revision) -> bool {
        self.assigned.get(agent).is_some_and(|assigned| assigned.changed > from)
    }

    /// The agent's entries, by id.
    pub(crate) fn of(&self, agent: &SpiffeId) -> impl Iterator<Item = &Arc<RegisteredEntry>> {
        let ids = self
            .assigned
            .get(agent)
            .into_iter()
            .flat_map(|assigned| &assigned.entries);
        ids.filter_map(|id| self.entries.get(id))
    }

    /// What was the agent's, went after `from` and has not come back.
    pub(crate) fn gone(&self, agent: &SpiffeId, from: Revision) -> Vec<EntryId> {
        let assigned = self.assigned.get(agent);
        let is_held = |id: &EntryId| assigned.is_some_and(|assigned| assigned.entries.contains(id));
        let since = self.tombstones.partition_point(|tombstone| tombstone.revision <= from);
        let later = self.tombstones.range(since..);
        later
            .filter(|t| t.parent_id == *agent && !is_held(&t.id))
            .map(|t| t.id.clone())
            .collect()
    }

    #[cfg(test)]
    pub(crate) fn tombstones(&self) -> usize {
        self.tombstones.len()
    }
}
