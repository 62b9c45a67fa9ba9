//! Everything agents are answered from, in memory, at one revision.
//!
//! Pure: it is built from a snapshot and told of changes. What an agent lacks is computed from the revision it holds,
//! so a slow agent costs nothing while it is slow: many changes become one update when it asks again.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use hoplite_identity::SpiffeId;
use hoplite_store::{Change, Revision, Snapshot};
use ring::digest::{Context, SHA256};

use crate::agents::agent::Agent;
use crate::entries::entry::{Entry, EntryId};
use crate::policy::published::{POLICY, PolicyIndex};
use crate::record::{self, BadRecord};

/// Where entries lie in the store: this and the id.
pub(crate) const ENTRIES: &str = "entry/";
/// Where agents lie in the store: this and the SPIFFE ID.
pub(crate) const AGENTS: &str = "agent/";

/// Deleted entries remembered, for agents that were away; those away for longer get everything anew.
const TOMBSTONES_MAX: usize = 65_536;

/// Entries and agents at one revision.
#[derive(Debug, Default)]
pub(crate) struct Index {
    revision: Revision,
    entries: BTreeMap<EntryId, Arc<Registered>>,
    /// By parent. Kept when empty: its agent must still learn what went.
    assigned: HashMap<SpiffeId, Assigned>,
    agents: BTreeMap<String, Arc<Agent>>,
    policy: PolicyIndex,
    /// In the order of deletion.
    tombstones: VecDeque<Tombstone>,
    /// Deletions up to here may have been forgotten.
    horizon: Revision,
}

/// An entry in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registered {
    pub(crate) id: EntryId,
    pub(crate) entry: Entry,
    /// The commit that wrote it.
    pub(crate) revision: Revision,
}

/// What an agent at an older revision lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Update {
    pub(crate) revision: Revision,
    /// Whether `upserts` is all there is.
    pub(crate) full: bool,
    pub(crate) upserts: Vec<Arc<Registered>>,
    pub(crate) deletes: Vec<EntryId>,
    /// Over all the agent now holds.
    pub(crate) digest: [u8; 32],
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

// === impl Index ===

impl Index {
    /// From all that is stored.
    pub(crate) fn new(snapshot: Snapshot) -> Result<Self, BadRecord> {
        let mut index = Self {
            horizon: snapshot.revision,
            ..Self::default()
        };
        for (key, versioned) in snapshot.entries {
            index.put(&key, Some(&versioned.value), versioned.revision)?;
        }
        index.revision = snapshot.revision;
        Ok(index)
    }

    /// The next change.
    pub(crate) fn apply(&mut self, change: &Change) -> Result<(), BadRecord> {
        for mutation in &change.mutations {
            self.put(&mutation.key, mutation.value.as_deref(), change.revision)?;
        }
        self.revision = change.revision;
        Ok(())
    }

    /// The last change that is in it.
    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// One entry.
    pub(crate) fn entry(&self, id: &str) -> Option<&Arc<Registered>> {
        self.entries.get(id)
    }

    /// All entries, by id.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Arc<Registered>> {
        self.entries.values()
    }

    /// One agent.
    pub(crate) fn agent(&self, id: &SpiffeId) -> Option<&Arc<Agent>> {
        self.agents.get(id.as_str())
    }

    /// All agents, by SPIFFE ID.
    pub(crate) fn agents(&self) -> impl Iterator<Item = &Arc<Agent>> {
        self.agents.values()
    }

    /// What was published.
    pub(crate) fn policy(&self) -> &PolicyIndex {
        &self.policy
    }

    /// Whether anything an agent holds has changed after `from`.
    pub(crate) fn has_changed(&self, agent: &SpiffeId, from: Revision) -> bool {
        self.must_be_full(from)
            || self.policy.changed > from
            || self.assigned.get(agent).is_some_and(|assigned| assigned.changed > from)
    }

    /// What an agent that holds revision `from` lacks, which can be nothing.
    ///
    /// Everything, when it holds nothing, when what was deleted since is no longer known, or when it holds a revision
    /// that has not happened here.
    pub(crate) fn update(&self, agent: &SpiffeId, from: Option<Revision>) -> Update {
        let from = from.filter(|from| !self.must_be_full(*from));
        let assigned = self.assigned.get(agent);
        let held = || {
            let ids = assigned.into_iter().flat_map(|assigned| &assigned.entries);
            ids.filter_map(|id| self.entries.get(id))
        };
        let is_held = |id: &EntryId| assigned.is_some_and(|assigned| assigned.entries.contains(id));
        let deletes = match from {
            None => Vec::new(),
            Some(from) => {
                let since = self.tombstones.partition_point(|tombstone| tombstone.revision <= from);
                let later = self.tombstones.range(since..);
                later
                    .filter(|t| t.parent_id == *agent && !is_held(&t.id))
                    .map(|t| t.id.clone())
                    .collect()
            }
        };
        Update {
            revision: self.revision,
            full: from.is_none(),
            upserts: held()
                .filter(|registered| from.is_none_or(|from| registered.revision > from))
                .cloned()
                .collect(),
            deletes,
            digest: digest(held()),
        }
    }

    fn must_be_full(&self, from: Revision) -> bool {
        from < self.horizon || from > self.revision
    }

    fn put(&mut self, key: &[u8], value: Option<&[u8]>, revision: Revision) -> Result<(), BadRecord> {
        let Ok(name) = std::str::from_utf8(key) else {
            return Ok(());
        };
        if let Some(id) = name.strip_prefix(ENTRIES) {
            let entry = value.map(|value| record::decode(key, value)).transpose()?;
            self.put_entry(id, entry, revision);
        } else if let Some(id) = name.strip_prefix(AGENTS) {
            match value {
                Some(value) => self.agents.insert(id.to_owned(), Arc::new(record::decode(key, value)?)),
                None => self.agents.remove(id),
            };
        } else if name.starts_with(POLICY) {
            self.policy.put(name, value, revision)?;
        }
        Ok(())
    }

    fn put_entry(&mut self, id: &str, entry: Option<Entry>, revision: Revision) {
        if let Some(old) = self.entries.remove(id) {
            let parent_id = old.entry.parent_id.clone();
            let assigned = self.assigned.entry(parent_id.clone()).or_default();
            assigned.entries.remove(id);
            assigned.changed = revision;
            self.tombstones.push_back(Tombstone {
                revision,
                parent_id,
                id: id.to_owned(),
            });
            while self.tombstones.len() > TOMBSTONES_MAX
                && let Some(forgotten) = self.tombstones.pop_front()
            {
                self.horizon = self.horizon.max(forgotten.revision);
            }
        }
        if let Some(entry) = entry {
            let assigned = self.assigned.entry(entry.parent_id.clone()).or_default();
            assigned.entries.insert(id.to_owned());
            assigned.changed = assigned.changed.max(revision);
            let registered = Registered {
                id: id.to_owned(),
                entry,
                revision,
            };
            self.entries.insert(id.to_owned(), Arc::new(registered));
        }
    }
}

/// SHA-256 over the pairs of id and revision, sorted by id: `id NUL revision`, the revision as 8 bytes big-endian.
fn digest<'a>(sorted: impl Iterator<Item = &'a Arc<Registered>>) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for registered in sorted {
        context.update(registered.id.as_bytes());
        context.update(&[0]);
        context.update(&registered.revision.to_be_bytes());
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entries::entry::tests::{parse, sample};
    use hoplite_store::Mutation;
    use proptest::prelude::*;

    fn agent(node: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://prod.example/hoplite/agent/{node}")).unwrap()
    }

    /// A commit that puts (`Some(node)`) or deletes (`None`) one entry.
    fn change(revision: Revision, id: &str, node: Option<&str>) -> Change {
        let key = format!("{ENTRIES}{id}").into_bytes();
        let value = node.map(|node| {
            let entry = parse(sample("/orders", node)).unwrap();
            record::encode(&key, &entry).unwrap()
        });
        Change {
            revision,
            mutations: vec![Mutation { key, value }],
        }
    }

    fn index(changes: &[(&str, Option<&str>)]) -> Index {
        let mut index = Index::default();
        for (n, (id, node)) in changes.iter().enumerate() {
            index.apply(&change(n as u64 + 1, id, *node)).unwrap();
        }
        index
    }

    #[test]
    fn updates() {
        let index = index(&[
            ("a", Some("n1")),
            ("b", Some("n2")),
            ("c", Some("n1")),
            ("a", None),
            ("b", Some("n1")),
        ]);
        let check = |node: &str, from: Option<Revision>, full: bool, upserts: &[&str], deletes: &[&str]| {
            let update = index.update(&agent(node), from);
            let ids: Vec<_> = update.upserts.iter().map(|registered| registered.id.as_str()).collect();
            assert_eq!((update.full, &ids[..]), (full, upserts), "{node} from {from:?}");
            assert_eq!(update.deletes, deletes, "{node} from {from:?}");
            let is_news = full || !upserts.is_empty() || !deletes.is_empty();
            assert_eq!(
                from.is_none_or(|from| index.has_changed(&agent(node), from)),
                is_news,
                "{node} from {from:?}"
            );
        };
        check("n1", None, true, &["b", "c"], &[]);
        check("n1", Some(9), true, &["b", "c"], &[]);
        check("n1", Some(1), false, &["b", "c"], &["a"]);
        check("n1", Some(3), false, &["b"], &["a"]);
        check("n1", Some(4), false, &["b"], &[]);
        check("n1", Some(5), false, &[], &[]);
        check("n2", Some(2), false, &[], &["b"]);
        check("n3", Some(0), false, &[], &[]);
        check("n3", None, true, &[], &[]);
    }

    #[test]
    fn what_was_before_a_restart_is_given_anew() {
        let entries = vec![];
        let index = Index::new(Snapshot { revision: 7, entries }).unwrap();
        assert!(index.update(&agent("n1"), Some(6)).full);
        assert!(!index.update(&agent("n1"), Some(7)).full);
    }

    #[test]
    fn forgotten_deletions_are_not_kept_quiet() {
        let mut index = index(&[("a", Some("n1"))]);
        let mut revision = 1;
        for _ in 0..TOMBSTONES_MAX + 1 {
            index.apply(&change(revision + 1, "b", Some("n2"))).unwrap();
            index.apply(&change(revision + 2, "b", None)).unwrap();
            revision += 2;
        }
        assert_eq!(index.tombstones.len(), TOMBSTONES_MAX);
        assert!(index.update(&agent("n1"), Some(1)).full);
        assert!(!index.has_changed(&agent("n1"), revision));
    }

    proptest! {
        #[test]
        fn an_agent_that_applies_updates_holds_what_is_assigned(
            steps in proptest::collection::vec((0..4usize, proptest::option::of(0..3usize), any::<bool>()), 1..40),
        ) {
            let (ids, nodes) = (["a", "b", "c", "d"], ["n1", "n2", "n3"]);
            let (mut index, mut held, mut at) = (Index::default(), BTreeMap::new(), None);
            for (n, (id, node, asks)) in steps.into_iter().enumerate() {
                index.apply(&change(n as u64 + 1, ids[id], node.map(|node| nodes[node]))).unwrap();
                if !asks {
                    continue; // it is slow, and gets several changes at once
                }
                if at.is_none_or(|at| index.has_changed(&agent("n1"), at)) {
                    let update = index.update(&agent("n1"), at);
                    if update.full {
                        held.clear();
                    }
                    for id in &update.deletes {
                        held.remove(id);
                    }
                    for registered in &update.upserts {
                        held.insert(registered.id.clone(), Arc::clone(registered));
                    }
                    prop_assert_eq!(digest(held.values()), update.digest);
                    at = Some(update.revision);
                }
                let assigned: Vec<_> = index.entries().filter(|r| r.entry.parent_id == agent("n1")).cloned().collect();
                prop_assert_eq!(held.values().cloned().collect::<Vec<_>>(), assigned);
            }
        }
    }
}
