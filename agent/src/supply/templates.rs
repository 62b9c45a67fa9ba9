//! The templates among what is registered: which of them a caller fits, however many there are.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use hoplite_identity::{EntryId, Selector};

use crate::supply::named::Template;

/// All templates of this node.
#[derive(Debug, Default)]
pub(crate) struct Templates {
    by_id: HashMap<EntryId, Arc<Template>>,
    /// Each under the last of its selectors, none for those that have no selector.
    shelves: HashMap<Option<Selector>, BTreeSet<EntryId>>,
}

// === impl Templates ===

impl Templates {
    /// One of them as it is now; none for one that went.
    pub(crate) fn put(&mut self, id: &EntryId, template: Option<Arc<Template>>) {
        if let Some(old) = self.by_id.remove(id) {
            let shelf = old.selectors().last().cloned();
            if let Some(lying) = self.shelves.get_mut(&shelf) {
                lying.remove(id);
                if lying.is_empty() {
                    self.shelves.remove(&shelf);
                }
            }
        }
        if let Some(template) = template {
            let shelf = template.selectors().last().cloned();
            self.shelves.entry(shelf).or_default().insert(id.clone());
            self.by_id.insert(id.clone(), template);
        }
    }

    /// All of them.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Template>> {
        self.by_id.values()
    }

    /// Those that a process fits of which this much is attested.
    pub(crate) fn fitting<'a>(&'a self, attested: &'a BTreeSet<Selector>) -> impl Iterator<Item = &'a Arc<Template>> {
        let shelves = attested.iter().cloned().map(Some).chain([None]);
        let lying = shelves.filter_map(|shelf| self.shelves.get(&shelf)).flatten();
        let lying = lying.filter_map(|id| self.by_id.get(id));
        lying.filter(|template| template.fits(attested))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supply::testing::template;

    #[test]
    fn who_has_all_selectors_and_values_fits() {
        let mut templates = Templates::default();
        let mut put = |id: &str, path: &str, selectors: &[&str]| {
            let template = template(id, path, selectors);
            templates.put(&template.id.clone(), Some(Arc::new(template)));
        };
        put("all", "/user/{unix:user}", &[]);
        put("some", "/user/{unix:user}", &["unix:gid:7"]);
        put("two", "/user/{unix:user}", &["unix:gid:7", "unix:uid:9"]);
        put("pods", "/k8s/{k8s:ns}", &[]);
        put("other", "/k8s/{k8s:ns}", &["unix:gid:7"]);
        put("other", "/by/{unix:user}", &["unix:gid:8"]);
        let check = |templates: &Templates, attested: &[&str], expected: &[&str]| {
            let attested = attested.iter().map(|text| text.parse().unwrap()).collect();
            let mut found: Vec<_> = templates.fitting(&attested).map(|found| found.id.as_str()).collect();
            found.sort_unstable();
            assert_eq!(found, expected, "{attested:?}");
        };
        check(&templates, &["unix:user:ann", "unix:gid:7"], &["all", "some"]);
        check(
            &templates,
            &["unix:user:ann", "unix:gid:7", "unix:uid:9"],
            &["all", "some", "two"],
        );
        check(&templates, &["unix:gid:7"], &[]);
        check(
            &templates,
            &["unix:user:ann", "unix:gid:8", "k8s:ns:a"],
            &["all", "other", "pods"],
        );
        for id in ["all", "some", "two", "pods", "other"] {
            templates.put(&EntryId::parse(id).unwrap(), None);
        }
        assert!(templates.by_id.is_empty() && templates.shelves.is_empty());
    }
}
