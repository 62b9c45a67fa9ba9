//! The entries' part of the index: what each agent is entitled to, and what it lacks.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use hoplite_identity::{Entry, EntryId, EntrySum, Parent, RegisteredEntry, Selector, SpiffeId};
use hoplite_store::Revision;

use crate::entries::groups::Groups;
use crate::entries::share::Share;
use crate::record::{BadRecord, Mutation};

/// Deleted entries remembered, for agents that were away; those away for longer get everything anew, unless they say that
/// they hold what they should.
pub(crate) const TOMBSTONES_MAX: usize = 65_536;

/// All entries, at one revision. A change costs the same however many there are.
#[derive(Debug, Default)]
pub(crate) struct EntryIndex {
    entries: BTreeMap<EntryId, Arc<RegisteredEntry>>,
    /// What is registered under one agent alone. Kept when empty: the agent must still learn what went.
    own: HashMap<SpiffeId, Share>,
    /// What is registered for groups of nodes.
    groups: Groups,
    /// Whose tombstones there are, in the order of deletion.
    buried: VecDeque<Parent>,
    /// Deletions up to here were never known.
    beginning: Revision,
    /// The entries of nested CAs, by the CA's name.
    nested: BTreeMap<String, BTreeSet<EntryId>>,
}

// === impl EntryIndex ===

impl EntryIndex {
    /// Of a store whose deletions up to a revision are not known.
    pub(crate) fn beginning_at(beginning: Revision) -> Self {
        Self {
            beginning,
            ..Self::default()
        }
    }

    /// One write of the store. Adds the parents whose entries it changes to `concerned`.
    pub(crate) fn put(&mut self, mutation: Mutation<'_>, concerned: &mut BTreeSet<Parent>) -> Result<(), BadRecord> {
        let Some((id, entry)) = mutation.of::<Entry>()? else {
            return Ok(());
        };
        let revision = mutation.revision;
        if let Some(old) = self.entries.remove(id) {
            let parent = &old.entry.parent;
            let share = self.share(parent, revision);
            share.take(&old.id, old.revision, revision);
            // Changed in place: nothing went, so there is nothing to remember.
            if entry.as_ref().is_none_or(|entry| entry.parent != *parent) {
                share.bury(&old.id, revision);
                self.buried.push_back(parent.clone());
                self.forget();
            }
            concerned.insert(parent.clone());
            if let Some(name) = old.entry.spiffe_id.nested_ca()
                && let Some(ids) = self.nested.get_mut(name)
            {
                ids.remove(&old.id);
            }
        }
        if let Some(entry) = entry {
            let id = EntryId::parse(id).map_err(|error| BadRecord::Malformed {
                key: mutation.key.escape_debug().to_string(),
                reason: error.to_string(),
            })?;
            self.share(&entry.parent, revision).add(&id, revision);
            concerned.insert(entry.parent.clone());
            if let Some(name) = entry.spiffe_id.nested_ca() {
                self.nested.entry(name.to_owned()).or_default().insert(id.clone());
            }
            let registered = RegisteredEntry {
                id: id.clone(),
                entry,
                revision,
            };
            self.entries.insert(id, Arc::new(registered));
        }
        Ok(())
    }

    /// What is attested of an agent's node from a revision on; `None` for one that is not let in any more.
    pub(crate) fn attest(&mut self, agent: &SpiffeId, attested: Option<&[Selector]>, at: Revision) {
        self.groups.attest(agent, attested, at);
    }

    fn share(&mut self, parent: &Parent, at: Revision) -> &mut Share {
        match parent {
            Parent::Agent(agent) => self.own.entry(agent.clone()).or_default(),
            Parent::Group(group) => self.groups.share(group, at),
        }
    }

    /// The oldest deletions, when there are too many.
    fn forget(&mut self) {
        while self.buried.len() > TOMBSTONES_MAX
            && let Some(parent) = self.buried.pop_front()
        {
            // INVARIANT: both are in the order of deletion, so the parent's first is the first of all.
            self.share(&parent, 0).forget();
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

    /// The entries of a nested CA, by its name.
    pub(crate) fn nested(&self, name: &str) -> impl Iterator<Item = &Arc<RegisteredEntry>> {
        let ids = self.nested.get(name).into_iter().flatten();
        ids.filter_map(|id| self.entries.get(id))
    }

    /// The entries of nested CAs whose node an agent is.
    pub(crate) fn nested_on(&self, agent: &SpiffeId) -> impl Iterator<Item = &Arc<RegisteredEntry>> {
        let all = self.nested.keys().flat_map(|name| self.nested(name));
        all.filter(move |registered| registered.parent.agent() == Some(agent))
    }

    /// Those from one id on, that one left out.
    pub(crate) fn after(&self, id: &str) -> impl Iterator<Item = &Arc<RegisteredEntry>> {
        let beyond = (Bound::Excluded(id), Bound::Unbounded);
        self.entries.range::<str, _>(beyond).map(|(_, registered)| registered)
    }

    /// Whether an agent may have what is registered under a parent now: it is that agent, or it is in that group. Everything that is
    /// handed to agents is asked here.
    pub(crate) fn may(&self, agent: &SpiffeId, parent: &Parent) -> bool {
        match parent {
            Parent::Agent(parent) => parent == agent,
            Parent::Group(group) => self.groups.is_in(agent, group),
        }
    }

    /// One entry, if the agent may have it.
    pub(crate) fn of(&self, agent: &SpiffeId, id: &str) -> Option<&Arc<RegisteredEntry>> {
        self.get(id)
            .filter(|registered| self.may(agent, &registered.entry.parent))
    }

    /// The agents that may have what is registered under a parent: at most those that have joined, for a group.
    pub(crate) fn heirs<'a>(&'a self, parent: &'a Parent) -> impl Iterator<Item = &'a SpiffeId> {
        let members = parent.group().into_iter().flat_map(|group| self.groups.members(group));
        parent.agent().into_iter().chain(members)
    }

    /// Whether all deletions of the agent's entries after `from` are known.
    pub(crate) fn remembers(&self, agent: &SpiffeId, from: Revision) -> bool {
        let lived_in = self.groups.shares(agent).filter(|(_, since)| *since <= from);
        let shares = lived_in.map(|(share, _)| share).chain(self.groups.left(agent, from));
        from >= self.beginning
            && self.groups.remembers(agent, from)
            && shares.chain(self.own.get(agent)).all(|share| share.remembers(from))
    }

    /// Whether any entry of the agent has changed after `from`.
    pub(crate) fn has_changed(&self, agent: &SpiffeId, from: Revision) -> bool {
        let shares = self.groups.shares(agent).map(|(share, _)| share);
        self.groups.has_moved(agent, from) || shares.chain(self.own.get(agent)).any(|share| share.has_changed(from))
    }

    /// What agent and CA compare: over all entries of the agent.
    pub(crate) fn digest(&self, agent: &SpiffeId) -> [u8; 32] {
        // INVARIANT: an entry has one parent, so no two of these sums have one in common.
        let shares = self.groups.shares(agent).map(|(share, _)| share);
        let sums = shares.chain(self.own.get(agent)).map(Share::sum);
        sums.fold(EntrySum::default(), |sum, share| sum.with(share)).digest()
    }

    /// The agent's entries that changed after `from`, or became its own after that; all of them without it.
    pub(crate) fn changed(
        &self,
        agent: &SpiffeId,
        from: Option<Revision>,
    ) -> impl Iterator<Item = &Arc<RegisteredEntry>> {
        let own = self.own.get(agent).map(|share| (share, 0));
        let shares = own.into_iter().chain(self.groups.shares(agent));
        // Of a group that it came into later it holds nothing.
        let ids = shares.flat_map(move |(share, since)| share.since(from.filter(|from| since <= *from)));
        ids.filter_map(|id| self.entries.get(id))
    }

    /// What was the agent's, went after `from` and has not come back.
    pub(crate) fn gone(&self, agent: &SpiffeId, from: Revision) -> Vec<EntryId> {
        let is_held = |id: &EntryId| self.of(agent, id).is_some();
        let lived_in = self.groups.shares(agent).filter(|(_, since)| *since <= from);
        let shares = lived_in.map(|(share, _)| share).chain(self.own.get(agent));
        let went = shares.flat_map(|share| share.gone(from));
        // Of a group that it left, all that was there.
        let lost = self
            .groups
            .left(agent, from)
            .flat_map(|share| share.since(None).chain(share.gone(from)));
        let ids: BTreeSet<&EntryId> = went.chain(lost).filter(|id| !is_held(id)).collect();
        ids.into_iter().cloned().collect()
    }

    #[cfg(test)]
    pub(crate) fn tombstones(&self) -> usize {
        self.buried.len()
    }
}
