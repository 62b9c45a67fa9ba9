//! Everything agents are answered from, in memory, at one revision.
//!
//! Pure: it is built from a snapshot and told of changes. Each noun keeps its own part. What an agent lacks is computed
//! from the revision it holds, so a slow agent costs nothing while it is slow: many changes become one update when it
//! asks again.

use std::sync::Arc;

use hoplite_identity::{EntryId, RegisteredEntry, SpiffeId, TrustBundle, entries_digest};
use hoplite_store::{Change, Revision, Snapshot};

use crate::agents::index::AgentIndex;
use crate::authority::index::AuthorityIndex;
use crate::entries::index::EntryIndex;
use crate::operators::index::OperatorIndex;
use crate::policy::index::PolicyIndex;
use crate::record::{BadRecord, Mutation};

/// All that is stored, at one revision.
#[derive(Debug, Default)]
pub(crate) struct Index {
    revision: Revision,
    pub(crate) agents: AgentIndex,
    pub(crate) operators: OperatorIndex,
    pub(crate) entries: EntryIndex,
    pub(crate) authority: AuthorityIndex,
    pub(crate) policy: PolicyIndex,
}

/// What an agent at an older revision lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Update {
    pub(crate) revision: Revision,
    /// Whether `upserts` is all there is.
    pub(crate) full: bool,
    pub(crate) upserts: Vec<Arc<RegisteredEntry>>,
    pub(crate) deletes: Vec<EntryId>,
    /// Over all entries the agent now holds.
    pub(crate) digest: [u8; 32],
    /// The trust bundle, when it changed.
    pub(crate) bundle: Option<Arc<TrustBundle>>,
}

// === impl Index ===

impl Index {
    /// From all that is stored.
    pub(crate) fn new(snapshot: &Snapshot) -> Result<Self, BadRecord> {
        let mut index = Self {
            entries: EntryIndex::beginning_at(snapshot.revision),
            ..Self::default()
        };
        for (key, versioned) in &snapshot.entries {
            index.put(key, Some(&versioned.value), versioned.revision)?;
        }
        index.settle(snapshot.revision)?;
        Ok(index)
    }

    /// The next change.
    pub(crate) fn apply(&mut self, change: &Change) -> Result<(), BadRecord> {
        for mutation in &change.mutations {
            self.put(&mutation.key, mutation.value.as_deref(), change.revision)?;
        }
        self.settle(change.revision)
    }

    /// The last change that is in it.
    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// Whether anything an agent holds has changed after `from`.
    pub(crate) fn has_changed(&self, agent: &SpiffeId, from: Revision) -> bool {
        self.must_be_full(from)
            || self.authority.changed() > from
            || self.policy.changed() > from
            || self.entries.has_changed(agent, from)
    }

    /// What an agent that holds revision `from` lacks, which can be nothing.
    ///
    /// Everything, when it holds nothing, when what was deleted since is no longer known, or when it holds a revision
    /// that has not happened here.
    pub(crate) fn update(&self, agent: &SpiffeId, from: Option<Revision>) -> Update {
        let from = from.filter(|from| !self.must_be_full(*from));
        let is_news = |changed: Revision| from.is_none_or(|from| changed > from);
        let held = || self.entries.of(agent);
        Update {
            revision: self.revision,
            full: from.is_none(),
            upserts: held()
                .filter(|registered| is_news(registered.revision))
                .cloned()
                .collect(),
            deletes: from.map(|from| self.entries.gone(agent, from)).unwrap_or_default(),
            digest: entries_digest(held().map(|registered| (&registered.id, registered.revision))),
            bundle: self
                .authority
                .bundle()
                .filter(|_| is_news(self.authority.changed()))
                .cloned(),
        }
    }

    fn must_be_full(&self, from: Revision) -> bool {
        !self.entries.remembers(from) || from > self.revision
    }

    fn put(&mut self, key: &[u8], value: Option<&[u8]>, revision: Revision) -> Result<(), BadRecord> {
        let Ok(key) = std::str::from_utf8(key) else {
            return Ok(()); // no key of ours
        };
        let mutation = Mutation { key, value, revision };
        self.agents.put(mutation)?;
        self.operators.put(mutation)?;
        self.entries.put(mutation)?;
        self.authority.put(mutation)?;
        self.policy.put(mutation)
    }

    /// After all of a commit is in it.
    fn settle(&mut self, revision: Revision) -> Result<(), BadRecord> {
        self.authority.settle()?;
        self.revision = revision;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::trust::{Trust, Trusted};
    use crate::entries::entry::tests::{parse, sample};
    use crate::entries::index::TOMBSTONES_MAX;
    use crate::record::{self, Record};
    use hoplite_identity::testing::TestAuthority;
    use hoplite_identity::{Entry, TrustDomain};
    use hoplite_store::Mutation;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::sync::LazyLock;

    fn agent(node: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://prod.example/hoplite/agent/{node}")).unwrap()
    }

    fn put<R: Record>(name: &str, record: Option<&R>) -> Mutation {
        let key = record::key::<R>(name);
        Mutation {
            value: record.map(|record| record::encode(&key, record).unwrap()),
            key: key.into_bytes(),
        }
    }

    /// A commit that puts (`Some(node)`) or deletes (`None`) one entry.
    fn change(revision: Revision, id: &str, node: Option<&str>) -> Change {
        let entry = node.map(|node| parse(sample("/orders", node)).unwrap());
        Change {
            revision,
            mutations: vec![put::<Entry>(id, entry.as_ref())],
        }
    }

    /// A commit that puts or deletes one of three authorities.
    fn trusting(revision: Revision, which: usize, is_trusted: bool) -> Change {
        static AUTHORITIES: LazyLock<[TestAuthority; 3]> =
            LazyLock::new(|| [(); 3].map(|()| TestAuthority::new("prod.example")));
        let trust_domain = TrustDomain::parse("prod.example").unwrap();
        let certificate = AUTHORITIES[which].bundle().authorities()[0].clone();
        let name = Trusted::name_of(&certificate);
        let trusted = is_trusted.then(|| Trusted::new(&trust_domain, &certificate).unwrap());
        let trust = Trust {
            trust_domain,
            sequence: revision,
            signing: name.clone(),
        };
        Change {
            revision,
            mutations: vec![put("", Some(&trust)), put(&name, trusted.as_ref())],
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
            let gone: Vec<_> = update.deletes.iter().map(EntryId::as_str).collect();
            assert_eq!(gone, deletes, "{node} from {from:?}");
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
        let index = Index::new(&Snapshot { revision: 7, entries }).unwrap();
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
        assert_eq!(index.entries.tombstones(), TOMBSTONES_MAX);
        assert!(index.update(&agent("n1"), Some(1)).full);
        assert!(!index.has_changed(&agent("n1"), revision));
    }

    #[test]
    fn a_change_in_place_buries_nothing() {
        let mut index = index(&[("a", Some("n1")), ("b", Some("n2"))]);
        for revision in 3..9 {
            index.apply(&change(revision, "a", Some("n1"))).unwrap();
        }
        assert_eq!(index.entries.tombstones(), 0);
        let update = index.update(&agent("n1"), Some(7));
        assert_eq!((update.upserts.len(), update.deletes.len(), update.full), (1, 0, false));
        assert!(!index.has_changed(&agent("n2"), 3), "it is no news for others");
        index.apply(&change(9, "a", Some("n2"))).unwrap();
        assert_eq!(index.update(&agent("n1"), Some(8)).deletes.len(), 1, "it moved");
    }

    #[test]
    fn the_bundle_is_told_when_it_changes() {
        let mut index = index(&[("a", Some("n1"))]);
        assert_eq!(
            index.update(&agent("n1"), None).bundle,
            None,
            "no authority was founded"
        );
        index.apply(&trusting(2, 0, true)).unwrap();
        assert!(index.has_changed(&agent("n2"), 1), "of whomever");
        index.apply(&change(3, "b", Some("n1"))).unwrap();
        let check = |from: Option<Revision>, sequence: Option<u64>| {
            let bundle = index.update(&agent("n1"), from).bundle;
            assert_eq!(bundle.map(|bundle| bundle.sequence()), sequence, "{from:?}");
        };
        check(None, Some(2));
        check(Some(1), Some(2));
        check(Some(2), None);
        check(Some(9), Some(2));
        assert!(!index.has_changed(&agent("n2"), 2));
    }

    proptest! {
        #[test]
        fn an_agent_that_applies_updates_holds_what_is_assigned_and_the_bundle(
            steps in proptest::collection::vec(
                (0..5usize, proptest::option::of(0..3usize), 0..3usize, any::<bool>()),
                1..40,
            ),
        ) {
            let (ids, nodes) = (["a", "b", "c", "d"], ["n1", "n2", "n3"]);
            let (mut index, mut held, mut bundle, mut at) = (Index::default(), BTreeMap::new(), None, None);
            for (n, (what, node, which, asks)) in steps.into_iter().enumerate() {
                let revision = n as u64 + 1;
                let change = match ids.get(what) {
                    Some(id) => change(revision, id, node.map(|node| nodes[node])),
                    None => trusting(revision, which, node.is_some()),
                };
                index.apply(&change).unwrap();
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
                    prop_assert_eq!(entries_digest(held.values().map(|r| (&r.id, r.revision))), update.digest);
                    bundle = update.bundle.or(bundle);
                    at = Some(update.revision);
                }
                let assigned: Vec<_> =
                    index.entries.iter().filter(|r| r.entry.parent_id == agent("n1")).cloned().collect();
                prop_assert_eq!(held.values().cloned().collect::<Vec<_>>(), assigned);
                prop_assert_eq!(bundle.as_ref(), index.authority.bundle());
            }
        }
    }
}
