//! Everything agents are answered from, in memory, at one revision.
//!
//! Pure: it is built from a snapshot and told of changes. Each noun keeps its own part. What an agent lacks is computed
//! from the revision it holds, so a slow agent costs nothing while it is slow: many changes become one update when it
//! asks again. Applying a change and answering it cost what changed, not what there is.

use std::collections::BTreeSet;
use std::sync::Arc;

use hoplite_identity::{EntryId, Parent, RegisteredEntry, SpiffeId, TrustBundle};
use hoplite_store::{Change, Revision, Snapshot};

use crate::agents::index::AgentIndex;
use crate::authority::index::AuthorityIndex;
use crate::entries::index::EntryIndex;
use crate::epoch::EpochIndex;
use crate::federation::index::{FederationIndex, ForeignUpdate};
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
    pub(crate) federation: FederationIndex,
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
    /// What it is to hold of foreign trust domains, when that changed.
    pub(crate) foreign: Option<ForeignUpdate>,
}

// === impl Index ===

impl Index {
    /// From all that is stored.
    pub(crate) fn new(snapshot: &Snapshot) -> Result<Self, BadRecord> {
        let mut index = Self {
            entries: EntryIndex::beginning_at(snapshot.revision),
            federation: FederationIndex::beginning_at(snapshot.revision),
            ..Self::default()
        };
        for (key, versioned) in &snapshot.entries {
            let concerned = (&mut BTreeSet::new(), &mut BTreeSet::new());
            index.put(key, Some(&versioned.value), versioned.revision, concerned)?;
        }
        index.settle(snapshot.revision)?;
        Ok(index)
    }

    /// The next change. Says whom it concerns.
    pub(crate) fn apply(&mut self, change: &Change) -> Result<Concerned, BadRecord> {
        let mut concerned = Concerned::default();
        let mut parents = BTreeSet::new();
        for mutation in &change.mutations {
            concerned.everyone |= self.put(
                &mutation.key,
                mutation.value.as_deref(),
                change.revision,
                (&mut concerned.agents, &mut parents),
            )?;
        }
        self.settle(change.revision)?;
        for parent in &parents {
            concerned.agents.extend(self.entries.heirs(parent).cloned());
        }
        concerned.everyone |= [self.authority.changed(), self.policy.changed()].contains(&change.revision);
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
            || self.federation.has_changed(agent, from)
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
        let (upserts, deletes) = match from {
            Some(_) if lacks_nothing => (Vec::new(), Vec::new()),
            from => (
                self.entries.changed(agent, from).cloned().collect(),
                from.map(|from| self.entries.gone(agent, from)).unwrap_or_default(),
            ),
        };
        Update {
            revision: self.revision,
            full: from.is_none(),
            upserts,
            deletes,
            digest,
            bundle: self
                .authority
                .bundle()
                .filter(|_| is_news(self.authority.changed()))
                .cloned(),
            foreign: self.federation.update(agent, from),
        }
    }

    fn must_be_full(&self, agent: &SpiffeId, from: Revision) -> bool {
        !self.entries.remembers(agent, from) || from > self.revision
    }

    /// True when every agent is concerned.
    fn put(
        &mut self,
        key: &[u8],
        value: Option<&[u8]>,
        revision: Revision,
        (agents, parents): (&mut BTreeSet<SpiffeId>, &mut BTreeSet<Parent>),
    ) -> Result<bool, BadRecord> {
        let Ok(key) = std::str::from_utf8(key) else {
            return Ok(false); // no key of ours
        };
        let mutation = Mutation { key, value, revision };
        if let Some(id) = self.agents.put(mutation)? {
            let let_in = self.agents.get(&id).filter(|agent| !agent.banned);
            self.entries
                .attest(&id, let_in.map(|agent| agent.selectors.as_slice()), revision);
            agents.insert(id);
        }
        self.operators.put(mutation)?;
        self.entries.put(mutation, parents)?;
        self.tokens.put(mutation)?;
        self.authority.put(mutation)?;
        self.policy.put(mutation)?;
        self.epoch.put(mutation)?;
        self.federation.put(mutation, agents)
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
    use crate::agents::agent::tests::issued;
    use crate::agents::agent::{Agent, Attested};
    use crate::attestors::name::BY_TOKEN;
    use crate::authority::course::{Life, State};
    use crate::authority::trust::{Trust, Trusted};
    use crate::entries::entry::tests::{parse, sample};
    use crate::entries::index::TOMBSTONES_MAX;
    use crate::record::{self, Record};
    use hoplite_identity::testing::TestAuthority;
    use hoplite_identity::{Entry, EntrySum, NodeGroup, Selector, TrustDomain};
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
        /// By the records, and nothing that is kept of them.
        fn is_entitled(&self, agent: &SpiffeId, parent: &Parent) -> bool {
            match parent {
                Parent::Agent(parent) => parent == agent,
                Parent::Group(group) => {
                    let record = self.agents.get(agent).filter(|record| !record.banned);
                    record.is_some_and(|record| group.has(agent, &record.selectors.iter().cloned().collect()))
                }
            }
        }

        /// What an agent is told, from scratch: its entries as a scan finds them, and when the bundle changed.
        fn view_of(&self, agent: &SpiffeId) -> (Vec<(EntryId, Revision)>, Revision) {
            let its = self
                .entries
                .iter()
                .filter(|registered| self.is_entitled(agent, &registered.entry.parent));
            let its = its.map(|registered| (registered.id.clone(), registered.revision));
            (its.collect(), self.authority.changed())
        }
    }

    /// What one step of a run changes.
    #[derive(Debug, Clone)]
    enum Step {
        /// An entry, by its place among ids, and its parent; `None` deletes it.
        Entry(usize, Option<usize>),
        /// An agent's node, its labels, whether it is banned; `None` evicts it.
        Agent(usize, Option<(Vec<bool>, bool)>),
        /// An authority.
        Authority(usize, bool),
    }

    const IDS: [&str; 5] = ["a", "b", "c", "d", "e"];
    const NODES: [&str; 3] = ["n1", "n2", "n3"];
    const LABELS: [&str; 2] = ["web", "eu"];
    /// The groups, beside the nodes.
    const GROUPS: [&[&str]; 5] = [
        &["token:label:web"],
        &["token:label:eu"],
        &["token:label:eu", "token:label:web"],
        &["node:name:n1"],
        &["node:name:n2", "token:label:web"],
    ];

    fn group(texts: &[&str]) -> Parent {
        Parent::Group(NodeGroup::new(texts.iter().map(|text| text.parse().unwrap()).collect()).unwrap())
    }

    fn parent(which: usize) -> Parent {
        match NODES.get(which) {
            Some(node) => Parent::Agent(agent(node)),
            None => group(GROUPS[which - NODES.len()]),
        }
    }

    fn joined(node: &str, labels: &[&str]) -> Agent {
        let selectors = labels
            .iter()
            .map(|label| format!("token:label:{label}").parse::<Selector>().unwrap());
        let by_token = Attested {
            by: BY_TOKEN.into(),
            identity: String::new(),
            at: 0,
        };
        Agent::joined(None, agent(node), "key".into(), issued("1")).attested(by_token, selectors)
    }

    impl Step {
        fn mutations(&self, revision: Revision) -> Vec<Mutation> {
            match self {
                Self::Entry(id, which) => {
                    let entry = which.map(|which| Entry {
                        parent: parent(which),
                        ..parse(sample("/orders", "n1")).unwrap()
                    });
                    vec![put::<Entry>(IDS[*id], entry.as_ref())]
                }
                Self::Agent(node, record) => {
                    let record = record.as_ref().map(|(has, is_banned)| {
                        let has = LABELS.into_iter().zip(has).filter(|(_, has)| **has);
                        let labels: Vec<_> = has.map(|(label, _)| label).collect();
                        let record = joined(NODES[*node], &labels);
                        if *is_banned { record.banned() } else { record }
                    });
                    vec![put(agent(NODES[*node]).as_str(), record.as_ref())]
                }
                Self::Authority(which, is_trusted) => trusting(revision, *which, *is_trusted).mutations,
            }
        }
    }

    fn steps() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..IDS.len(), proptest::option::weighted(0.7, 0..NODES.len() + GROUPS.len()))
                .prop_map(|(id, which)| Step::Entry(id, which)),
            3 => (0..NODES.len(), proptest::option::weighted(0.9, (proptest::collection::vec(any::<bool>(), 2), proptest::bool::weighted(0.1))))
                .prop_map(|(node, record)| Step::Agent(node, record)),
            1 => (0..3usize, any::<bool>()).prop_map(|(which, is_trusted)| Step::Authority(which, is_trusted)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        /// Commits of one or two changes; the agent of `n1` is slow at times, or the CA restarts.
        #[test]
        fn an_agent_that_applies_updates_holds_what_is_assigned_and_the_bundle(
            commits in proptest::collection::vec(
                (proptest::collection::vec(steps(), 1..3), any::<bool>(), proptest::bool::weighted(0.05)),
                1..30,
            ),
        ) {
            let (mut index, mut held, mut bundle, mut seen) = (Index::default(), BTreeMap::new(), None, None);
            let mut stored = BTreeMap::<Vec<u8>, Versioned>::new();
            let mut digest = None;
            for (n, (steps, asks, restarts)) in commits.into_iter().enumerate() {
                let revision = n as u64 + 1;
                let mut mutations = BTreeMap::new();
                for mutation in steps.iter().flat_map(|step| step.mutations(revision)) {
                    mutations.insert(mutation.key.clone(), mutation); // a commit has one of each key
                }
                let change = Change { revision, mutations: mutations.into_values().collect() };
                for Mutation { key, value } in &change.mutations {
                    match value.clone() {
                        Some(value) => drop(stored.insert(key.clone(), Versioned { value, revision, names: Vec::new() })),
                        None => drop(stored.remove(key)),
                    }
                }
                let before: Vec<_> = NODES.iter().map(|node| index.view_of(&agent(node))).collect();
                let concerned = index.apply(&change).unwrap();
                // Whom it concerns sees another view, or is another one itself, and nobody else is.
                for (node, before) in NODES.iter().zip(before) {
                    let is_woken = concerned.everyone || concerned.agents.contains(&agent(node));
                    let is_itself = change.mutations.iter().any(|m| m.key.ends_with(node.as_bytes()));
                    prop_assert_eq!(is_woken, is_itself || before != index.view_of(&agent(node)), "{}", node);
                }
                if restarts {
                    let entries = stored.clone().into_iter().collect();
                    index = Index::new(&Snapshot { revision, entries }).unwrap();
                }
                // Everything by itself: what each agent may have, and its digest.
                for node in NODES {
                    let (agent, assigned) = (agent(node), index.view_of(&agent(node)).0);
                    let sum: EntrySum = assigned.iter().map(|(id, revision)| (id, *revision)).collect();
                    prop_assert_eq!(sum.digest(), index.entries.digest(&agent));
                    for registered in index.entries.iter() {
                        let may = index.entries.of(&agent, &registered.id).is_some();
                        prop_assert_eq!(may, assigned.iter().any(|(id, _)| *id == registered.id));
                    }
                }
                if !asks {
                    continue; // it is slow, and gets several changes at once
                }
                if restarts || seen.is_none_or(|seen| index.has_changed(&agent("n1"), seen)) {
                    let update = index.update(&agent("n1"), Held { revision: seen, digest: digest.filter(|_| restarts) });
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
                    (seen, digest) = (Some(update.revision), Some(update.digest));
                }
                let assigned: Vec<_> =
                    index.entries.iter().filter(|r| index.is_entitled(&agent("n1"), &r.entry.parent)).cloned().collect();
                prop_assert_eq!(held.values().cloned().collect::<Vec<_>>(), assigned);
                prop_assert_eq!(bundle.as_ref(), index.authority.bundle());
            }
        }
    }

    /// An index with a commit for each step.
    fn told(steps: &[Mutation]) -> Index {
        let mut index = Index::default();
        for (n, mutation) in steps.iter().enumerate() {
            let change = Change {
                revision: n as u64 + 1,
                mutations: vec![mutation.clone()],
            };
            index.apply(&change).unwrap();
        }
        index
    }

    fn of_group(id: &str, texts: &[&str]) -> Mutation {
        let entry = Entry {
            parent: group(texts),
            ..parse(sample("/orders", "n1")).unwrap()
        };
        put(id, Some(&entry))
    }

    #[test]
    fn a_node_comes_into_a_group_and_leaves_it_by_what_is_attested() {
        let name = |node: &str| agent(node).to_string();
        let web = |node: &str, labels: &[&str]| put(&name(node), Some(&joined(node, labels)));
        let base = [
            of_group("a", &["token:label:web"]),
            of_group("b", &["token:label:eu", "token:label:web"]),
            web("n1", &["web"]),
            web("n2", &["web", "eu"]),
        ];
        let check = |last: Option<Mutation>, node: &str, from: Option<Revision>, upserts: &[&str], deletes: &[&str]| {
            let steps: Vec<_> = base.iter().cloned().chain(last).collect();
            let update = told(&steps).update(&agent(node), at(from));
            let ids: Vec<_> = update.upserts.iter().map(|registered| registered.id.as_str()).collect();
            let gone: Vec<_> = update.deletes.iter().map(EntryId::as_str).collect();
            assert_eq!((&ids[..], &gone[..]), (upserts, deletes), "{node} from {from:?}");
        };
        check(None, "n1", None, &["a"], &[]);
        check(None, "n2", None, &["b", "a"], &[]);
        check(None, "n3", None, &[], &[]);
        // What was registered long before the node came is news to it.
        check(None, "n1", Some(2), &["a"], &[]);
        check(Some(web("n1", &["web", "eu"])), "n1", Some(4), &["b"], &[]);
        // Fewer selectors, a ban and an eviction take away what was theirs.
        check(Some(web("n2", &["eu"])), "n2", Some(4), &[], &["a", "b"]);
        check(Some(web("n2", &["web"])), "n2", Some(4), &[], &["b"]);
        check(
            Some(put(&name("n2"), Some(&joined("n2", &["web"]).banned()))),
            "n2",
            Some(4),
            &[],
            &["a", "b"],
        );
        check(Some(put::<Agent>(&name("n2"), None)), "n2", Some(4), &[], &["a", "b"]);
        // Another group, and no group any more.
        check(Some(of_group("a", &["token:label:eu"])), "n1", Some(4), &[], &["a"]);
        check(
            Some(change(5, "a", Some("n1")).mutations.remove(0)),
            "n2",
            Some(4),
            &[],
            &["a"],
        );
        // A renewal is no news.
        let mut index = told(&base);
        let renewed = web("n1", &["web"]);
        index
            .apply(&Change {
                revision: 5,
                mutations: vec![renewed],
            })
            .unwrap();
        assert!(!index.has_changed(&agent("n1"), 4));
    }

    #[test]
    fn who_is_in_no_group_of_an_entry_may_not_have_it() {
        let steps = [
            of_group("a", &["token:label:web"]),
            put(agent("n1").as_str(), Some(&joined("n1", &["web"]))),
            put(agent("n2").as_str(), Some(&joined("n2", &["web"]).banned())),
            put(agent("n3").as_str(), Some(&joined("n3", &["we", "web2"]))),
        ];
        let index = told(&steps);
        let may = |node: &str| index.entries.of(&agent(node), "a").is_some();
        assert_eq!(["n1", "n2", "n3", "n4"].map(may), [true, false, false, false]);
    }
}
