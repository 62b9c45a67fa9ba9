//! Federation's part of the index: what is believed of foreign trust domains, and which agents are told of it.
//!
//! An agent is told of the bundles that its entries name and of those of federation sets. What an entry names is counted as
//! entries come and go, so a change of one costs the same however many there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use hoplite_identity::{Entry, FederationSet, SpiffeId, TrustBundle, TrustDomain};
use hoplite_store::Revision;

use crate::federation::records::{Federated, ForeignBundle};
use crate::record::{BadRecord, Mutation};

/// All that is stored of foreign trust domains, at one revision.
#[derive(Debug, Default)]
pub(crate) struct FederationIndex {
    federated: BTreeMap<TrustDomain, Federated>,
    bundles: BTreeMap<TrustDomain, Held>,
    sets: BTreeMap<String, FederationSet>,
    /// When a set, or the list of bundles that are given, last changed. At least where the index began: what went before is not known.
    changed: Revision,
    /// What the entries of each agent name.
    needs: HashMap<SpiffeId, Needs>,
    /// What every agent is told of: what sets name, and entries for groups of nodes.
    general: BTreeSet<TrustDomain>,
    /// What entries name that are for groups of nodes.
    groups: Needs,
    /// What each entry names that names anything, and of which agent it is; none for one of a group.
    named: HashMap<String, (Option<SpiffeId>, BTreeSet<TrustDomain>)>,
}

/// A bundle, and when its content last changed.
#[derive(Debug)]
struct Held {
    record: ForeignBundle,
    bundle: Arc<TrustBundle>,
    revision: Revision,
}

#[derive(Debug, Default)]
struct Needs {
    /// How many entries name it.
    domains: BTreeMap<TrustDomain, usize>,
    /// When `domains` got or lost one.
    changed: Revision,
}

/// What an agent is to hold of foreign trust domains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForeignUpdate {
    pub(crate) bundles: Vec<ForeignPart>,
    pub(crate) sets: BTreeMap<String, FederationSet>,
}

/// One of these bundles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForeignPart {
    pub(crate) trust_domain: TrustDomain,
    /// When its content last changed.
    pub(crate) revision: Revision,
    /// None for one that the agent has.
    pub(crate) bundle: Option<Arc<TrustBundle>>,
}

// === impl Needs ===

impl Needs {
    /// One entry more, or one less, names it. Whether it is the first, or was the last.
    fn count(&mut self, domain: TrustDomain, is_one_more: bool, revision: Revision) -> bool {
        let before = self.domains.get(&domain).copied().unwrap_or(0);
        let after = if is_one_more {
            before + 1
        } else {
            before.saturating_sub(1)
        };
        match after {
            0 => self.domains.remove(&domain),
            _ => self.domains.insert(domain, after),
        };
        let is_news = (before == 0) != (after == 0);
        if is_news {
            self.changed = self.changed.max(revision);
        }
        is_news
    }
}

// === impl FederationIndex ===

impl FederationIndex {
    /// Of a store whose deletions up to a revision are not known.
    pub(crate) fn beginning_at(beginning: Revision) -> Self {
        Self {
            changed: beginning,
            ..Self::default()
        }
    }

    /// One write of the store. Adds to `concerned` the agents that are to be told; true when all are.
    pub(crate) fn put(
        &mut self,
        mutation: Mutation<'_>,
        concerned: &mut BTreeSet<SpiffeId>,
    ) -> Result<bool, BadRecord> {
        let domain = |name: &str| {
            TrustDomain::parse(name).map_err(|error| BadRecord::Malformed {
                key: mutation.key.escape_debug().to_string(),
                reason: error.to_string(),
            })
        };
        if let Some((name, federated)) = mutation.of::<Federated>()? {
            match federated {
                Some(federated) => self.federated.insert(domain(name)?, federated),
                None => self.federated.remove(&domain(name)?),
            };
            Ok(false)
        } else if let Some((name, record)) = mutation.of::<ForeignBundle>()? {
            self.put_bundle(domain(name)?, record, mutation.revision, concerned)
        } else if let Some((name, set)) = mutation.of::<FederationSet>()? {
            match set {
                Some(set) => self.sets.insert(name.to_owned(), set),
                None => self.sets.remove(name),
            };
            self.changed = self.changed.max(mutation.revision);
            self.generalize();
            Ok(true)
        } else if let Some((id, entry)) = mutation.of::<Entry>()? {
            Ok(self.put_entry(id, entry, mutation.revision))
        } else {
            Ok(false)
        }
    }

    fn put_bundle(
        &mut self,
        domain: TrustDomain,
        record: Option<ForeignBundle>,
        revision: Revision,
        concerned: &mut BTreeSet<SpiffeId>,
    ) -> Result<bool, BadRecord> {
        let is_given = |held: Option<&Held>| held.is_some_and(|held| !held.record.withdrawn);
        let before = self.bundles.remove(&domain);
        let is_same = match (&before, &record) {
            (Some(held), Some(record)) => held.record.has_same_content(record),
            (None, None) => true,
            _ => false,
        };
        let (was, mut is) = (is_given(before.as_ref()), false);
        if let Some(record) = record {
            let (bundle, revision) = match before.filter(|_| is_same) {
                Some(held) => (held.bundle, held.revision),
                None => (Arc::new(record.bundle(domain.as_str())?), revision),
            };
            is = !record.withdrawn;
            let held = Held {
                record,
                bundle,
                revision,
            };
            self.bundles.insert(domain.clone(), held);
        }
        if is_same {
            return Ok(false);
        }
        if was != is {
            self.changed = self.changed.max(revision);
            return Ok(true);
        }
        if self.general.contains(&domain) {
            return Ok(true);
        }
        let needing = self
            .needs
            .iter()
            .filter(|(_, needs)| needs.domains.contains_key(&domain));
        concerned.extend(needing.map(|(parent, _)| parent.clone()));
        Ok(false)
    }

    /// True when all agents are to be told.
    fn put_entry(&mut self, id: &str, entry: Option<Entry>, revision: Revision) -> bool {
        let mut is_general = false;
        if let Some((parent, domains)) = self.named.remove(id) {
            for domain in domains {
                let is_news = self.needs_of(parent.as_ref()).count(domain, false, revision);
                is_general |= is_news && parent.is_none();
            }
        }
        if let Some(entry) = entry.filter(|entry| !entry.federates_with.is_empty()) {
            let parent = entry.parent.agent().cloned();
            for domain in &entry.federates_with {
                let is_news = self.needs_of(parent.as_ref()).count(domain.clone(), true, revision);
                is_general |= is_news && parent.is_none();
            }
            self.named.insert(id.to_owned(), (parent, entry.federates_with));
        }
        if is_general {
            self.generalize();
        }
        is_general
    }

    fn needs_of(&mut self, agent: Option<&SpiffeId>) -> &mut Needs {
        match agent {
            Some(agent) => self.needs.entry(agent.clone()).or_default(),
            None => &mut self.groups,
        }
    }

    /// Finds anew what every agent is told of.
    fn generalize(&mut self) {
        let of_sets = self.sets.values().flat_map(|set| &set.trust_domains);
        let of_groups = self.groups.domains.keys();
        self.general = of_sets.chain(of_groups).cloned().collect();
    }

    /// What an agent needs and is given.
    fn needed(&self, agent: &SpiffeId) -> impl Iterator<Item = (&TrustDomain, &Held)> {
        let own = self.needs.get(agent);
        let given = self.bundles.iter().filter(|(_, held)| !held.record.withdrawn);
        given.filter(move |(domain, _)| {
            own.is_some_and(|needs| needs.domains.contains_key(*domain)) || self.general.contains(*domain)
        })
    }

    /// When anything of this last changed for an agent.
    fn changed(&self, agent: &SpiffeId) -> Revision {
        let bundles = self.needed(agent).map(|(_, held)| held.revision).max();
        self.needs_changed(agent).max(bundles.unwrap_or(0))
    }

    /// When it last changed which bundles an agent is to hold.
    fn needs_changed(&self, agent: &SpiffeId) -> Revision {
        let needs = self.needs.get(agent).map_or(0, |needs| needs.changed);
        self.changed.max(self.groups.changed).max(needs)
    }

    /// Whether anything of it that an agent holds has changed after `from`.
    pub(crate) fn has_changed(&self, agent: &SpiffeId, from: Revision) -> bool {
        self.changed(agent) > from
    }

    /// What an agent that holds revision `from` is to be told; none when nothing is new.
    pub(crate) fn update(&self, agent: &SpiffeId, from: Option<Revision>) -> Option<ForeignUpdate> {
        if from.is_some_and(|from| !self.has_changed(agent, from)) {
            return None;
        }
        let came = self.needs_changed(agent);
        let parts = self.needed(agent).map(|(domain, held)| {
            // One that it needs only since may be older than what it holds.
            let is_news = from.is_none_or(|from| held.revision.max(came) > from);
            ForeignPart {
                trust_domain: domain.clone(),
                revision: held.revision,
                bundle: is_news.then(|| Arc::clone(&held.bundle)),
            }
        });
        Some(ForeignUpdate {
            bundles: parts.collect(),
            sets: self.sets.clone(),
        })
    }

    /// All federations.
    pub(crate) fn federated(&self) -> impl Iterator<Item = (&TrustDomain, &Federated)> {
        self.federated.iter()
    }

    /// One of them.
    pub(crate) fn get(&self, domain: &TrustDomain) -> Option<&Federated> {
        self.federated.get(domain)
    }

    /// The record and the bundle of one, withdrawn or not.
    pub(crate) fn bundle(&self, domain: &TrustDomain) -> Option<(&ForeignBundle, &Arc<TrustBundle>)> {
        let held = self.bundles.get(domain)?;
        Some((&held.record, &held.bundle))
    }

    /// Every bundle that is held, withdrawn or not.
    pub(crate) fn bundles(&self) -> impl Iterator<Item = &Arc<TrustBundle>> {
        self.bundles.values().map(|held| &held.bundle)
    }

    /// All sets, by name.
    pub(crate) fn sets(&self) -> impl Iterator<Item = (&String, &FederationSet)> {
        self.sets.iter()
    }

    /// How many entries name a trust domain, and how many sets.
    pub(crate) fn users(&self, domain: &TrustDomain) -> (usize, usize) {
        let all = self.needs.values().chain([&self.groups]);
        let entries = all.filter_map(|needs| needs.domains.get(domain)).sum();
        let sets = self.sets.values().filter(|set| set.trust_domains.contains(domain));
        (entries, sets.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entries::entry::tests::{parse, sample};
    use crate::record::{self, Record};
    use hoplite_identity::testing::TestAuthority;
    use hoplite_identity::{BundleDocument, PathPrefix};

    fn agent(node: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://prod.example/hoplite/agent/{node}")).unwrap()
    }

    fn put<R: Record>(
        index: &mut FederationIndex,
        name: &str,
        record: Option<&R>,
        revision: Revision,
    ) -> (bool, usize) {
        let key = record::key::<R>(name);
        let value = record.map(|record| record::encode(&key, record).unwrap());
        let mut concerned = BTreeSet::new();
        let mutation = Mutation {
            key: &key,
            value: value.as_deref(),
            revision,
        };
        let everyone = index.put(mutation, &mut concerned).unwrap();
        (everyone, concerned.len())
    }

    fn bundle(domain: &str) -> ForeignBundle {
        let document = BundleDocument {
            bundle: TestAuthority::new(domain).bundle(),
            refresh_hint: None,
        };
        ForeignBundle::new(&document, 1, false)
    }

    fn entry(node: &str, domains: &[&str]) -> Entry {
        let domains = domains.iter().map(|domain| TrustDomain::parse(domain).unwrap());
        let mut entry = parse(sample("/orders", node)).unwrap();
        entry.federates_with = domains.collect();
        entry
    }

    /// Each with whether its bundle comes along.
    fn told(index: &FederationIndex, node: &str, from: Option<Revision>) -> Option<Vec<(String, bool)>> {
        let update = index.update(&agent(node), from)?;
        let parts = update.bundles.into_iter();
        Some(
            parts
                .map(|part| (part.trust_domain.to_string(), part.bundle.is_some()))
                .collect(),
        )
    }

    fn list(parts: &[(&str, bool)]) -> Option<Vec<(String, bool)>> {
        Some(
            parts
                .iter()
                .map(|(domain, is_new)| ((*domain).to_owned(), *is_new))
                .collect(),
        )
    }

    #[test]
    fn an_agent_is_told_of_what_its_entries_name() {
        let mut index = FederationIndex::default();
        put(&mut index, "a.example", Some(&bundle("a.example")), 1);
        put(&mut index, "b.example", Some(&bundle("b.example")), 2);
        assert_eq!(told(&index, "n1", None), list(&[]));
        assert_eq!(told(&index, "n1", Some(2)), None);
        // An older bundle that is needed only from now on is news.
        put(&mut index, "e1", Some(&entry("n1", &["a.example"])), 3);
        assert_eq!(told(&index, "n1", Some(2)), list(&[("a.example", true)]));
        assert_eq!(told(&index, "n2", Some(2)), None);
        assert_eq!(told(&index, "n1", Some(3)), None);
        // Another bundle concerns those who need it, and nobody else.
        assert_eq!(put(&mut index, "a.example", Some(&bundle("a.example")), 4), (false, 1));
        assert_eq!(put(&mut index, "b.example", Some(&bundle("b.example")), 5), (false, 0));
        assert_eq!(told(&index, "n1", Some(3)), list(&[("a.example", true)]));
        // The second that names it is no news, nor is the first that no longer does.
        put(&mut index, "e2", Some(&entry("n1", &["a.example"])), 6);
        put::<Entry>(&mut index, "e1", None, 7);
        assert_eq!(told(&index, "n1", Some(5)), None);
        put(&mut index, "e2", Some(&entry("n1", &[])), 8);
        assert_eq!(told(&index, "n1", Some(7)), list(&[]));
        assert_eq!(index.users(&TrustDomain::parse("a.example").unwrap()), (0, 0));
    }

    #[test]
    fn a_set_is_for_everyone() {
        let mut index = FederationIndex::default();
        let a = bundle("a.example");
        put(&mut index, "a.example", Some(&a), 1);
        let set = FederationSet {
            prefix: PathPrefix::parse("/").unwrap(),
            trust_domains: [TrustDomain::parse("a.example").unwrap()].into(),
        };
        assert_eq!(put(&mut index, "partners", Some(&set), 2), (true, 0));
        assert_eq!(told(&index, "n1", Some(1)), list(&[("a.example", true)]));
        // That it was looked at again is no news; that nobody is given it any more is.
        let noted = ForeignBundle {
            checked: 9,
            ..a.clone()
        };
        assert_eq!(put(&mut index, "a.example", Some(&noted), 3), (false, 0));
        assert_eq!(told(&index, "n1", Some(2)), None);
        let withdrawn = ForeignBundle {
            withdrawn: true,
            ..noted
        };
        assert_eq!(put(&mut index, "a.example", Some(&withdrawn), 4), (true, 0));
        assert_eq!(told(&index, "n1", Some(3)), list(&[]));
        assert_eq!(put(&mut index, "a.example", Some(&a), 5), (true, 0));
        assert_eq!(told(&index, "n1", Some(4)), list(&[("a.example", true)]));
        assert_eq!(put::<ForeignBundle>(&mut index, "a.example", None, 6), (true, 0));
        assert_eq!(told(&index, "n1", Some(5)), list(&[]));
    }

    #[test]
    fn after_a_restart_every_agent_is_told_the_list() {
        let mut index = FederationIndex::beginning_at(7);
        put(&mut index, "e1", Some(&entry("n1", &["a.example"])), 3);
        put(&mut index, "a.example", Some(&bundle("a.example")), 4);
        // Whoever was away does not know what went meanwhile.
        assert_eq!(told(&index, "n1", Some(6)), list(&[("a.example", true)]));
        assert_eq!(told(&index, "n2", Some(6)), list(&[]));
        assert_eq!(told(&index, "n1", Some(7)), None);
    }
}
