//! The entries' part of the index: what each agent is entitled to, and what it lacks.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use hoplite_identity::{Entry, EntryId, EntrySum, RegisteredEntry, SpiffeId};
use hoplite_store::Revision;

use crate::record::{BadRecord, Mutation};

/// Deleted entries remembered, for agents that were away; those away for longer get everything anew, unless they say that
/// they hold what they should.
pub(crate) const TOMBSTONES_MAX: usize = 65_536;

/// All entries, at one revision. A change costs the same however many there are.
#[derive(Debug, Default)]
pub(crate) struct EntryIndex {
    entries: BTreeMap<EntryId, Arc<RegisteredEntry>>,
    /// By parent. Kept when empty: its agent must still learn what went.
    assigned: HashMap<SpiffeId, Assigned>,
    /// Whose tombstones there are, in the order of deletion.
    buried: VecDeque<SpiffeId>,
    /// Deletions up to here were never known.
    beginning: Revision,
}

/// What is one agent's.
#[derive(Debug, Default)]
struct Assigned {
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

/// An entry's place among those of its agent. Without an id it is the beginning of a revision.
type Place = (Revision, Option<EntryId>);

// === impl EntryIndex ===

impl EntryIndex {
    /// Of a store whose deletions up to a revision are not known.
    pub(crate) fn beginning_at(beginning: Revision) -> Self {
        Self {
            beginning,
            ..Self::default()
        }
    }

    /// One write of the store. Adds the agents whose entries it changes to `concerned`.
    pub(crate) fn put(&mut self, mutation: Mutation<'_>, concerned: &mut BTreeSet<SpiffeId>) -> Result<(), BadRecord> {
        let Some((id, entry)) = mutation.of::<Entry>()? else {
            return Ok(());
        };
        let revision = mutation.revision;
        if let Some(old) = self.entries.remove(id) {
            let parent_id = &old.entry.parent_id;
            let assigned = self.assigned.entry(parent_id.clone()).or_default();
            assigned.entries.remove(&(old.revision, Some(old.id.clone())));
            assigned.sum.remove(&old.id, old.revision);
            assigned.changed = assigned.changed.max(revision);
            concerned.insert(parent_id.clone());
            // Changed in place: nothing went, so there is nothing to remember.
            if entry.as_ref().is_none_or(|entry| entry.parent_id != *parent_id) {
                assigned.tombstones.push_back((revision, old.id.clone()));
                self.buried.push_back(parent_id.clone());
                self.forget();
            }
        }
        if let Some(entry) = entry {
            let id = EntryId::parse(id).map_err(|error| BadRecord::Malformed {
                key: mutation.key.escape_debug().to_string(),
                reason: error.to_string(),
            })?;
            let assigned = self.assigned.entry(entry.parent_id.clone()).or_default();
            assigned.entries.insert((revision, Some(id.clone())));
            assigned.sum.add(&id, revision);
            assigned.changed = assigned.changed.max(revision);
            concerned.insert(entry.parent_id.clone());
            let registered = RegisteredEntry {
                id: id.clone(),
                entry,
                revision,
            };
            self.entries.insert(id, Arc::new(registered));
        }
        Ok(())
    }

    /// The oldest deletions, when there are too many.
    fn forget(&mut self) {
        while self.buried.len() > TOMBSTONES_MAX
            && let Some(agent) = self.buried.pop_front()
        {
            // INVARIANT: both are in the order of deletion, so the agent's first is the first of all.
            if let Some(assigned) = self.assigned.get_mut(&agent)
                && let Some((revision, _)) = assigned.tombstones.pop_front()
            {
                assigned.horizon = assigned.horizon.max(revision);
            }
        }
    }

    /// One entry.
    pub(crate) fn get(&self, id: &str) -> Option<&Arc<RegisteredEntry>> {
        self.entries.get(id)
    }

    /// All entries, by id.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<RegisteredEntry>> {
        self.entries.values()
    }

    /// Whether all deletions of the agent's entries after `from` are known.
    pub(crate) fn remembers(&self, agent: &SpiffeId, from: Revision) -> bool {
        from >= self.beginning && self.assigned.get(agent).is_none_or(|assigned| from >= assigned.horizon)
    }

    /// Whether any entry of the agent has changed after `from`.
    pub(crate) fn has_changed(&self, agent: &SpiffeId, from: Revision) -> bool {
        self.assigned.get(agent).is_some_and(|assigned| assigned.changed > from)
    }

    /// What agent and CA compare: over all entries of the agent.
    pub(crate) fn digest(&self, agent: &SpiffeId) -> [u8; 32] {
        let sum = self.assigned.get(agent).map(|assigned| assigned.sum);
        sum.unwrap_or_default().digest()
    }

    /// The agent's entries that changed after `from`, all of them without it, in the order of their changes.
    pub(crate) fn changed(
        &self,
        agent: &SpiffeId,
        from: Option<Revision>,
    ) -> impl Iterator<Item = &Arc<RegisteredEntry>> {
        let first: Place = (from.map_or(0, |from| from.saturating_add(1)), None);
        let assigned = self.assigned.get(agent).into_iter();
        let places = assigned.flat_map(move |assigned| assigned.entries.range(first.clone()..));
        places.filter_map(|(_, id)| self.entries.get(id.as_ref()?))
    }

    /// What was the agent's, went after `from` and has not come back.
    pub(crate) fn gone(&self, agent: &SpiffeId, from: Revision) -> Vec<EntryId> {
        let Some(assigned) = self.assigned.get(agent) else {
            return Vec::new();
        };
        let is_held = |id: &EntryId| self.entries.get(id).is_some_and(|held| held.entry.parent_id == *agent);
        let since = assigned.tombstones.partition_point(|(revision, _)| *revision <= from);
        let later = assigned.tombstones.range(since..).map(|(_, id)| id);
        later.filter(|id| !is_held(id)).cloned().collect()
    }

    #[cfg(test)]
    pub(crate) fn tombstones(&self) -> usize {
        self.buried.len()
    }
}
