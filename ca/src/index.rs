//! Everything agents are answered from, in memory, at one revision.
//!
//! Pure: it is built from a snapshot and told of changes. Each noun keeps its own part. What an agent lacks is computed
//! from the revision it holds, so a slow agent costs nothing while it is slow: many changes become one update when it
//! asks again. Applying a change and answering it cost what changed, not what there is.

use std::sync::Arc;

use hoplite_identity::{EntryId, RegisteredEntry, SpiffeId, TrustBundle};
use hoplite_store::{Change, Revision, Snapshot};

use crate::agents::index::AgentIndex;
use crate::authority::index::AuthorityIndex;
use crate::entries::index::EntryIndex;
use crate::epoch::EpochIndex;
use crate::operators::index::OperatorIndex;
use crate::policy::index::PolicyIndex;
use crate::record::{BadRecord, Mutation};
use crate::tokens::index::TokenIndex;
use crate::wakes::Concerned;

/// All that is stored, at one revision.
#[derive(Debug, Default)]
pub(crate) struct Index {
    revision: Revision,
    pub(crate) agents: AgentIndex,
    pub(crate) operators: OperatorIndex,
    pub(crate) entries: EntryIndex,
    pub(crate) authority: AuthorityIndex,
    pub(crate) policy: PolicyIndex,
    pub(crate) tokens: TokenIndex,
    pub(crate) epoch: EpochIndex,
}

/// What an agent says that it holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// `None` for nothing.
    pub(crate) revision: Option<Revision>,
    /// Over its entries, if it said so.
    pub(crate) digest: Option<[u8; 32]>,
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
            let concerned = &mut Concerned::default();
            index.put(key, Some(&versioned.value), versioned.revision, concerned)?;
        }
        index.settle(snapshot.revision)?;
        Ok(index)
    }

    /// The next change. Says whom it concerns.
    pub(crate) fn apply(&mut self, change: &Change) -> Result<Concerned, BadRecord> {
        let mut concerned = Concerned::default();
        for mutation in &change.mutations {
            self.put(
                &mutation.key,
                mutation.value.as_deref(),
                change.revision,
                &mut concerned,
            )?;
        }
        self.settle(change.revision)?;
        concerned.everyone = [self.authority.changed(), self.policy.changed()].contains(&change.revision);
        Ok(concerned)
    }

    /// The last change that is in it.
    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// Whether anything an agent holds has changed after `from`.
    pub(crate) fn has_changed(&self, agent: &SpiffeId, from: Revision) -> bool {
        self.must_be_full(agent, from)
            || self.authority.changed() > from
            || self.policy.changed() > from
            || self.entries.has_changed(agent, from)
    }

    /// What an agent that holds revision `from` lacks, which can be nothing.
    ///
    /// Everything, when it holds nothing, when what was deleted since is no longer known, or when it holds a revision
    /// that has not happened here. What it should hold, by its digest, it is not told anew: after a restart of the CA no
    /// deletion is known, and most agents lack nothing.
    pub(crate) fn update(&self, agent: &SpiffeId, held: Held) -> Update {
        let digest = self.entries.digest(agent);
        let lacks_nothing = held.digest == Some(digest);
        let is_known = |from: &Revision| match lacks_nothing {
            true => *from <= self.revision,
            false => !self.must_be_full(agent, *from),
        };
        let from = held.revision.filter(is_known);
        let is_news = |changed: Revision| from.is_none_or(|from| changed > from);
        Update {
            revision: self.revision,
            full: from.is_none(),
            upserts: self.entries.changed(agent, from).cloned().collect(),
            deletes: from.map(|from| self.entries.gone(agent, from)).unwrap_or_default(),
            digest,
            bundle: self
                .authority
                .bundle()
                .filter(|_| is_news(self.authority.changed()))
                .cloned(),
        }
    }

    fn must_be_full(&self, agent: &SpiffeId, from: Revision) -> bool {
        !self.entries.remembers(agent, from) || from > self.revision
    }

    fn put(
        &mut self,
        key: &[u8],
        value: Option<&[u8]>,
        revision: Revision,
        concerned: &mut Concerned,
    ) -> Result<(), BadRecord> {
        let Ok(key) = std::str::from_utf8(key) else {
            return Ok(()); // no key of ours
        };
        let mutation = Mutation { key, value, revision };
        self.agents.put(mutation, &mut concerned.agents)?;
        self.operators.put(mutation)?;
        self.entries.put(mutation, &mut concerned.agents)?;
        self.tokens.put(mutation)?;
        self.authority.put(mutation)?;
        self.policy.put(mutation)?;
        self.epoch.put(mutation)
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
    use crate::authority::course::{Life, State};
    use crate::authority::trust::{Trust, Trusted};
    use crate::entries::entry::tests::{parse, sample};
    use crate::entries::index::TOMBSTONES_MAX;
    use crate::record::{self, Record};
    use hoplite_identity::testing::TestAuthority;
    use hoplite_identity::{Entry, EntrySum, TrustDomain};
    use hoplite_store::{Mutation, Versioned};
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::sync::LazyLock;
    use std::time::UNIX_EPOCH;

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
        let life = Life::new(State::Old, UNIX_EPOCH, UNIX_EPOCH);
        let trusted = is_trusted.then(|| Trusted::new(&trust_domain, &certificate, life).unwrap());
        let trust = Trust {
            trust_domain,
            sequence: revision,
        };
        Change {
            revision,
            mutations: vec![put("", Some(&trust)), put(&name, trusted.as_ref())],
        }
    }

    fn at(revision: Option<Revision>) -> Held {
        Held { revision, digest: None }
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
            let update = index.update(&agent(node), at(from));
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
        check("n1", None, true, &["c", "b"], &[]);
        check("n1", Some(9), true, &["c", "b"], &[]);
        check("n1", Some(1), false, &["c", "b"], &["a"]);
        check("n1", Some(3), false, &["b"], &["a"]);
        check("n1", Some(4), false, &["b"], &[]);
        check("n1", Some(5), false, &[], &[]);
        check("n2", Some(2), false, &[], &["b"]);
        check("n3", Some(0), false, &[], &[]);
        check("n3", None, true, &[], &[]);
    }

    #[test]
    fn what_was_before_a_restart_is_given_anew_unless_it_is_held() {
        let Mutation { key, value } = change(5, "a", Some("n1")).mutations.remove(0);
        let value = value.unwrap();
        let entries = vec![(
            key,
            Versioned {
                value,
                revision: 5,
                names: Vec::new(),
            },
        )];
        let index = Index::new(&Snapshot { revision: 7, entries }).unwrap();
        assert!(index.update(&agent("n1"), at(Some(6))).full);
        assert!(!index.update(&agent("n1"), at(Some(7))).full);
        let id = EntryId::parse("a").unwrap();
        let right: EntrySum = [(&id, 5)].into_iter().collect();
        let check = |revision: Option<Revision>, sum: EntrySum, full: bool, upserts: usize| {
            let digest = Some(sum.digest());
            let update = index.update(&agent("n1"), Held { revision, digest });
            assert_eq!((update.full, update.upserts.len()), (full, upserts), "{revision:?}");
            assert_eq!((update.digest, update.revision), (right.digest(), 7));
        };
        check(Some(6), right, false, 0);
        check(Some(6), EntrySum::default(), true, 1);
        check(Some(8), right, true, 1);
        check(None, right, true, 1);
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
        assert!(index.update(&agent("n2"), at(Some(1))).full);
        assert!(
            !index.update(&agent("n2"), at(Some(3))).full,
            "the first was forgotten, at 3"
        );
        assert!(!index.has_changed(&agent("n2"), revision));
        assert!(
            !index.update(&agent("n1"), at(Some(1))).full,
            "nothing of its own was forgotten"
        );
    }

    #[test]
    fn a_change_in_place_buries_nothing() {
        let mut index = index(&[("a", Some("n1")), ("b", Some("n2"))]);
        for revision in 3..9 {
            index.apply(&change(revision, "a", Some("n1"))).unwrap();
        }
        assert_eq!(index.entries.tombstones(), 0);
        let update = index.update(&agent("n1"), at(Some(7)));
        assert_eq!((update.upserts.len(), update.deletes.len(), update.full), (1, 0, false));
        assert!(!index.has_changed(&agent("n2"), 3), "it is no news for others");
        index.apply(&change(9, "a", Some("n2"))).unwrap();
        assert_eq!(index.update(&agent("n1"), at(Some(8))).deletes.len(), 1, "it moved");
    }

    #[test]
    fn the_bundle_is_told_when_it_changes() {
        let mut index = index(&[("a", Some("n1"))]);
        assert_eq!(
            index.update(&agent("n1"), at(None)).bundle,
            None,
            "no authority was founded"
        );
        index.apply(&trusting(2, 0, true)).unwrap();
        assert!(index.has_changed(&agent("n2"), 1), "of whomever");
        index.apply(&change(3, "b", Some("n1"))).unwrap();
        let check = |from: Option<Revision>, sequence: Option<u64>| {
            let bundle = index.update(&agent("n1"), at(from)).bundle;
            assert_eq!(bundle.map(|bundle| bundle.sequence()), sequence, "{from:?}");
        };
        check(None, Some(2));
        check(Some(1), Some(2));
        check(Some(2), None);
        check(Some(9), Some(2));
        assert!(!index.has_changed(&agent("n2"), 2));
    }

    /// `cargo test --workspace --lib what_a_change_costs -- --ignored --nocapture`; bench/README.md has the numbers.
    #[test]
    #[ignore = "a measurement"]
    fn what_a_change_costs() {
        const CHANGES: u32 = 1_000;
        for count in [100u64, 1_000, 10_000, 100_000] {
            let mut index = Index::default();
            let entry = parse(sample("/orders", "n1")).unwrap();
            let name = |n: u64| format!("e{n}");
            let mutations = (0..count).map(|n| put::<Entry>(&name(n), Some(&entry))).collect();
            index.apply(&Change { revision: 1, mutations }).unwrap();
            let changes: Vec<_> = (2..)
                .take(CHANGES as usize)
                .map(|n| change(n, &name(n % count), Some("n1")))
                .collect();
            let mut held = Held {
                revision: Some(1),
                digest: None,
            };
            let began = std::time::Instant::now();
            for change in &changes {
                assert!(index.apply(change).unwrap().agents.contains(&agent("n1")));
                let update = index.update(&agent("n1"), held);
                assert_eq!((update.upserts.len(), update.full), (1, false));
                held.revision = Some(update.revision);
            }
            println!("CA, {count} entries: {:.1?} a change", began.elapsed() / CHANGES);
        }
    }

    impl Index {
        /// What an agent is told, from scratch: its entries as a scan finds them, and when the bundle changed.
        fn view_of(&self, agent: &SpiffeId) -> (Vec<(EntryId, Revision)>, Revision) {
            let its = self
                .entries
                .iter()
                .filter(|registered| registered.entry.parent_id == *agent);
            let its = its.map(|registered| (registered.id.clone(), registered.revision));
            (its.collect(), self.authority.changed())
        }
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
            let (mut index, mut held, mut bundle, mut seen) = (Index::default(), BTreeMap::new(), None, None);
            for (n, (what, node, which, asks)) in steps.into_iter().enumerate() {
                let revision = n as u64 + 1;
                let change = match ids.get(what) {
                    Some(id) => change(revision, id, node.map(|node| nodes[node])),
                    None => trusting(revision, which, node.is_some()),
                };
                let before: Vec<_> = nodes.iter().map(|node| index.view_of(&agent(node))).collect();
                let concerned = index.apply(&change).unwrap();
                // Whom it concerns sees another view, and nobody else does.
                for (node, before) in nodes.iter().zip(before) {
                    let is_woken = concerned.everyone || concerned.agents.contains(&agent(node));
                    prop_assert_eq!(is_woken, before != index.view_of(&agent(node)), "{}", node);
                }
                if !asks {
                    continue; // it is slow, and gets several changes at once
                }
                if seen.is_none_or(|seen| index.has_changed(&agent("n1"), seen)) {
                    let update = index.update(&agent("n1"), at(seen));
                    if update.full {
                        held.clear();
                    }
                    for id in &update.deletes {
                        held.remove(id);
                    }
                    for registered in &update.upserts {
                        held.insert(registered.id.clone(), Arc::clone(registered));
                    }
                    let sum: EntrySum = held.values().map(|r| (&r.id, r.revision)).collect();
                    prop_assert_eq!(sum.digest(), update.digest);
                    bundle = update.bundle.or(bundle);
                    seen = Some(update.revision);
                }
                let assigned: Vec<_> =
                    index.entries.iter().filter(|r| r.entry.parent_id == agent("n1")).cloned().collect();
                prop_assert_eq!(held.values().cloned().collect::<Vec<_>>(), assigned);
                prop_assert_eq!(bundle.as_ref(), index.authority.bundle());
            }
        }
    }
}
