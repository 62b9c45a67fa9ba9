//! Which entries somebody asks for, and a page of them at a time.

use std::collections::BTreeSet;
use std::sync::Arc;

use hoplite_identity::{EntryId, InvalidEntry, InvalidSelector, InvalidSpiffeId, RegisteredEntry, Selector, SpiffeId};
use hoplite_wire::ca as wire;

use crate::entries::index::EntryIndex;

/// Entries that are looked at for one page: whoever asks for few of many holds nobody up.
const LOOKED_AT_MAX: usize = 20_000;

/// What is asked for. By default all.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    owner: Option<String>,
    spiffe_id_prefix: Option<String>,
    parent: Option<SpiffeId>,
    /// Whose all it is.
    agent: Option<SpiffeId>,
    node_selectors: BTreeSet<Selector>,
    selectors: BTreeSet<Selector>,
    hint: Option<String>,
}

/// Some of what is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) entries: Vec<Arc<RegisteredEntry>>,
    /// Where the next one begins; none after the last.
    pub(crate) next: Option<EntryId>,
}

// === impl Filter ===

impl TryFrom<&wire::ListEntriesRequest> for Filter {
    type Error = InvalidEntry;

    fn try_from(asked: &wire::ListEntriesRequest) -> Result<Self, InvalidEntry> {
        let given = |text: &String| (!text.is_empty()).then(|| text.clone());
        let id = |field, text: &str| {
            let invalid = |reason: InvalidSpiffeId| InvalidEntry::SpiffeId { field, reason };
            (!text.is_empty())
                .then(|| SpiffeId::parse(text).map_err(invalid))
                .transpose()
        };
        let node_selectors = asked.node_selectors.iter().cloned().map(Selector::try_from);
        let selectors = asked.selectors.iter().cloned().map(Selector::try_from);
        Ok(Self {
            owner: given(&asked.owner),
            spiffe_id_prefix: given(&asked.spiffe_id_prefix),
            parent: given(&asked.parent_id)
                .map(|text| SpiffeId::parse(&text).map_err(InvalidEntry::ParentId))
                .transpose()?,
            agent: id("agent_id", &asked.agent_id)?,
            node_selectors: node_selectors
                .collect::<Result<_, _>>()
                .map_err(InvalidEntry::NodeSelector)?,
            selectors: selectors.collect::<Result<_, InvalidSelector>>()?,
            hint: given(&asked.hint),
        })
    }
}

impl Filter {
    /// The page that begins after an id, of so many entries; 0 for all.
    pub(crate) fn page(&self, index: &EntryIndex, after: &str, size: usize) -> Page {
        // What one node has is found by the node, not among all.
        match &self.agent {
            Some(agent) => {
                let ids: BTreeSet<&EntryId> = index.changed(agent, None).map(|registered| &registered.id).collect();
                let later = ids.into_iter().filter(|id| id.as_str() > after);
                self.cut(later.filter_map(|id| index.get(id)), size)
            }
            None => self.cut(index.after(after), size),
        }
    }

    /// Whether this one is asked for.
    pub(crate) fn has(&self, registered: &RegisteredEntry) -> bool {
        let is = |wanted: &Option<String>, text: &str| wanted.as_deref().is_none_or(|wanted| wanted == text);
        let group = registered.parent.group();
        is(&self.owner, &registered.owner)
            && is(&self.hint, &registered.hint)
            && (self.spiffe_id_prefix.as_deref()).is_none_or(|prefix| registered.spiffe_id.as_str().starts_with(prefix))
            && (self.parent.as_ref()).is_none_or(|parent| registered.parent.agent() == Some(parent))
            && self.selectors.is_subset(&registered.selectors)
            && (self.node_selectors.is_empty() || group.is_some_and(|group| self.node_selectors.is_subset(group)))
    }

    fn cut<'a>(&self, entries: impl Iterator<Item = &'a Arc<RegisteredEntry>>, size: usize) -> Page {
        let (mut page, mut last) = (Vec::new(), None);
        for (looked_at, registered) in entries.enumerate() {
            let is_full = page.len() == size || looked_at == LOOKED_AT_MAX;
            if size != 0 && is_full {
                return Page {
                    entries: page,
                    next: last,
                };
            }
            last = Some(registered.id.clone());
            if self.has(registered) {
                page.push(Arc::clone(registered));
            }
        }
        Page {
            entries: page,
            next: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entries::entry::tests::{parse, sample};
    use crate::record::{self, Mutation};
    use hoplite_identity::Entry;

    fn label(label: &str) -> wire::Selector {
        wire::Selector {
            kind: "token:label".into(),
            value: label.into(),
        }
    }

    /// `/a` and `/b` under n1, `/a` under n2, `/web` for a group in which n1 is.
    fn index() -> EntryIndex {
        let mut index = EntryIndex::default();
        let agent = SpiffeId::parse("spiffe://prod.example/hoplite/agent/n1").unwrap();
        index.attest(&agent, Some(&["token:label:web".parse().unwrap()]), 1);
        let mut put = |id: &str, message: wire::Entry| {
            let key = record::key::<Entry>(id);
            let value = record::encode(&key, &parse(message).unwrap()).unwrap();
            let mutation = Mutation {
                key: &key,
                value: Some(&value),
                revision: 2,
            };
            index.put(mutation, &mut BTreeSet::new()).unwrap();
        };
        put("1", sample("/a", "n1"));
        put(
            "2",
            wire::Entry {
                hint: "h".into(),
                owner: "infra".into(),
                ..sample("/b", "n1")
            },
        );
        put("3", sample("/a", "n2"));
        put(
            "4",
            wire::Entry {
                parent_id: String::new(),
                node_selectors: vec![label("web")],
                ..sample("/web", "")
            },
        );
        index
    }

    fn ids(page: &Page) -> Vec<&str> {
        page.entries.iter().map(|registered| registered.id.as_str()).collect()
    }

    #[test]
    fn what_is_asked_for_and_nothing_else() {
        let index = index();
        let check = |change: &dyn Fn(&mut wire::ListEntriesRequest), expected: &[&str]| {
            let mut asked = wire::ListEntriesRequest::default();
            change(&mut asked);
            let page = Filter::try_from(&asked).unwrap().page(&index, "", 0);
            assert_eq!((ids(&page), &page.next), (expected.to_vec(), &None), "{asked:?}");
        };
        let agent = |node: &str| format!("spiffe://prod.example/hoplite/agent/{node}");
        check(&|_| (), &["1", "2", "3", "4"]);
        check(&|a| a.owner = "infra".into(), &["2"]);
        check(&|a| a.hint = "h".into(), &["2"]);
        check(&|a| a.spiffe_id_prefix = "spiffe://prod.example/a".into(), &["1", "3"]);
        check(&|a| a.parent_id = agent("n1"), &["1", "2"]);
        check(&|a| a.agent_id = agent("n1"), &["1", "2", "4"]);
        check(&|a| a.agent_id = agent("n2"), &["3"]);
        check(&|a| a.node_selectors = vec![label("web")], &["4"]);
        check(&|a| a.node_selectors = vec![label("eu")], &[]);
        let uid = |uid: &str| wire::Selector {
            kind: "unix:uid".into(),
            value: uid.into(),
        };
        check(&|a| a.selectors = vec![uid("1000")], &["1", "2", "3", "4"]);
        check(&|a| a.selectors = vec![uid("1")], &[]);
    }

    #[test]
    fn a_page_at_a_time_is_the_whole() {
        let index = index();
        for size in 1..6 {
            let (mut found, mut after) = (Vec::new(), String::new());
            loop {
                let page = Filter::default().page(&index, &after, size);
                assert!(page.entries.len() <= size);
                found.extend(ids(&page).iter().map(ToString::to_string));
                let Some(next) = page.next else { break };
                after = next.to_string();
            }
            assert_eq!(found, ["1", "2", "3", "4"], "{size}");
        }
    }
}
