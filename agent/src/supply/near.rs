//! Which entries a process nearly fits: for people who wait for an identity that does not come.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;

use hoplite_identity::{EntryId, NoName, Selector, SelectorKind};

use crate::supply::named::Template;
use crate::supply::shelf::{Supplied, Supply};

/// An entry, and what of it a process does not have.
#[derive(Debug)]
pub(crate) struct Near {
    /// Its id at the CA.
    pub(crate) id: EntryId,
    /// The name, or the template that gives none yet.
    pub(crate) name: String,
    pub(crate) selectors: BTreeSet<Selector>,
    /// Empty when it fits, and there is a name.
    pub(crate) missing: Vec<Lack>,
    pub(crate) has_svid: bool,
}

/// One thing that a process does not have.
#[derive(Debug)]
pub(crate) enum Lack {
    Selector(Selector),
    /// A value of this kind.
    Value(SelectorKind),
    /// A value that gives a name.
    Name(NoName),
}

impl Supply {
    /// The entries that a process with these selectors fits, in their order, and then the nearest ones, at most `max`: those
    /// that lack least, and of these the ones that share most. It looks at each entry, so it is not for every call.
    pub(crate) fn nearest(&self, selectors: &BTreeSet<Selector>, max: usize) -> Vec<Near> {
        // Names of templates are for those who have their values; what others are called is nobody's business.
        let is_own =
            |supplied: &Supplied| supplied.entry.origin.is_none() || supplied.entry.selectors.is_subset(selectors);
        let all = self.all().into_iter().filter(is_own);
        let mut all: Vec<Near> = all.map(|supplied| Near::of(&supplied, selectors)).collect();
        let is_named = |template: &Template| template.named(selectors).is_ok_and(|named| self.holds_name(&named.id));
        let templates = self.templates();
        let templates = templates
            .iter()
            .filter(|template| !(template.fits(selectors) && is_named(template)));
        all.extend(templates.map(|template| Near::of_template(template, selectors)));
        let (mut found, mut near): (Vec<_>, Vec<_>) = all.into_iter().partition(|near| near.missing.is_empty());
        // Stable, so that equals stay in the order of the supply.
        near.sort_by_key(|near| (near.missing.len(), Reverse(near.shared(selectors))));
        near.truncate(max);
        found.append(&mut near);
        found
    }
}

// === impl Near ===

impl Near {
    fn of(supplied: &Supplied, attested: &BTreeSet<Selector>) -> Self {
        let entry = &supplied.entry;
        Self {
            id: entry.registered_id().clone(),
            name: entry.spiffe_id.to_string(),
            missing: missing(&entry.selectors, attested).collect(),
            selectors: entry.selectors.clone(),
            has_svid: supplied.svid.is_some(),
        }
    }

    fn of_template(template: &Template, attested: &BTreeSet<Selector>) -> Self {
        let is_there = |kind: &SelectorKind| attested.iter().any(|selector| selector.kind() == *kind);
        let kinds = template
            .template()
            .kinds()
            .filter(|kind| !is_there(kind))
            .map(Lack::Value);
        let mut missing: Vec<Lack> = missing(template.selectors(), attested).chain(kinds).collect();
        let mut name = template.template().to_string();
        if missing.is_empty() {
            match template.named(attested) {
                Ok(named) => name = named.spiffe_id.to_string(),
                Err(reason) => missing.push(Lack::Name(reason)),
            }
        }
        Self {
            id: template.id.clone(),
            name,
            selectors: template.selectors().clone(),
            missing,
            has_svid: false,
        }
    }

    /// How many of its selectors the process has.
    pub(crate) fn shared(&self, attested: &BTreeSet<Selector>) -> usize {
        self.selectors.intersection(attested).count()
    }
}

fn missing<'a>(selectors: &'a BTreeSet<Selector>, attested: &'a BTreeSet<Selector>) -> impl Iterator<Item = Lack> + 'a {
    selectors.difference(attested).cloned().map(Lack::Selector)
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Selector(selector) => selector.fmt(f),
            Self::Value(kind) => write!(f, "{{{kind}}}"),
            Self::Name(reason) => reason.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supply::testing::entry;
    use hoplite_identity::{BundleSet, SpiffeId};
    use std::sync::Arc;

    #[test]
    fn what_fits_comes_first_and_then_what_lacks_least() {
        let id = SpiffeId::parse("spiffe://prod.example/a").unwrap();
        let make = |name: &str, selectors: &[&str]| Supplied {
            entry: Arc::new(entry(
                name,
                &id,
                &selectors.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>(),
            )),
            svid: None,
            is_coming: true,
        };
        let supply = Supply::new(
            vec![
                make("far", &["unix:uid:9", "unix:gid:9", "unix:path:/z"]),
                make("one-of-one", &["unix:uid:2"]),
                make("one-of-two", &["unix:uid:1", "unix:path:/b"]),
                make("fits", &["unix:uid:1", "unix:path:/a"]),
                make("also-fits", &["unix:uid:1"]),
            ],
            BundleSet::default(),
        );
        let check = |selectors: &[&str], max: usize, expected: &[(&str, &str)]| {
            let selectors = selectors.iter().map(|text| text.parse().unwrap()).collect();
            let found: Vec<(String, String)> = supply
                .nearest(&selectors, max)
                .iter()
                .map(|near| {
                    let missing: Vec<_> = near.missing.iter().map(ToString::to_string).collect();
                    (near.id.to_string(), missing.join(" "))
                })
                .collect();
            let found: Vec<(&str, &str)> = found.iter().map(|(id, missing)| (&**id, &**missing)).collect();
            assert_eq!(found, expected, "{selectors:?}");
        };
        check(
            &["unix:uid:1", "unix:path:/a"],
            2,
            &[
                ("fits", ""),
                ("also-fits", ""),
                ("one-of-two", "unix:path:/b"),
                ("one-of-one", "unix:uid:2"),
            ],
        );
        check(&[], 1, &[("also-fits", "unix:uid:1")]);
        assert_eq!((supply.len(), supply.without_svid()), (5, 5));
    }
}
