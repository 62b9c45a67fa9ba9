//! Which entries a process nearly fits: for people who wait for an identity that does not come.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

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
    /// Why its SVID is not at hand; none when it is.
    pub(crate) absence: Option<Absence>,
}

/// Why the SVID of an entry that fits is not at hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Absence {
    /// Of a template: it is made for those who ask.
    Unasked,
    /// Likewise, and this was the answer when somebody asked last.
    UnaskedSince(Arc<str>),
    /// What the CA said, or why its answer was not taken.
    Refused(Arc<str>),
    /// The CA issues nothing now.
    Dry,
    /// It is being made.
    Coming,
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
        let is_dry = self.is_dry();
        let mut all: Vec<Near> = all.map(|supplied| Near::of(&supplied, selectors, is_dry)).collect();
        let is_named = |template: &Template| template.named(selectors).is_ok_and(|named| self.holds_name(&named.id));
        let templates = self.templates();
        let templates = templates
            .iter()
            .filter(|template| !(template.fits(selectors) && is_named(template)));
        all.extend(templates.map(|template| Near::of_template(template, selectors, |name| self.refusal(name))));
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
    fn of(supplied: &Supplied, attested: &BTreeSet<Selector>, is_dry: bool) -> Self {
        let entry = &supplied.entry;
        let absence = match (&supplied.svid, &supplied.refused) {
            (Some(_), _) => None,
            (None, Some(why)) => Some(Absence::Refused(Arc::clone(why))),
            (None, None) if is_dry => Some(Absence::Dry),
            (None, None) => Some(Absence::Coming),
        };
        Self {
            id: entry.registered_id().clone(),
            name: entry.spiffe_id.to_string(),
            missing: missing(&entry.selectors, attested).collect(),
            selectors: entry.selectors.clone(),
            absence,
        }
    }

    fn of_template(
        template: &Template,
        attested: &BTreeSet<Selector>,
        refusal: impl Fn(&EntryId) -> Option<Arc<str>>,
    ) -> Self {
        let is_there = |kind: &SelectorKind| attested.iter().any(|selector| selector.kind() == *kind);
        let kinds = template
            .template()
            .kinds()
            .filter(|kind| !is_there(kind))
            .map(Lack::Value);
        let mut missing: Vec<Lack> = missing(template.selectors(), attested).chain(kinds).collect();
        let (mut name, mut refused) = (template.template().to_string(), None);
        if missing.is_empty() {
            match template.named(attested) {
                Ok(named) => (name, refused) = (named.spiffe_id.to_string(), refusal(&named.id)),
                Err(reason) => missing.push(Lack::Name(reason)),
            }
        }
        Self {
            id: template.id.clone(),
            name,
            selectors: template.selectors().clone(),
            missing,
            absence: Some(refused.map_or(Absence::Unasked, Absence::UnaskedSince)),
        }
    }

    /// Whether a process of which this much is attested may be told of it: it has one of the selectors, or all that is demanded.
    pub(crate) fn concerns(&self, attested: &BTreeSet<Selector>) -> bool {
        let has_all = self.missing.iter().all(|lack| matches!(lack, Lack::Name(_)));
        has_all || self.shared(attested) > 0
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

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unasked => f.write_str(
                "no SVID of this name is issued, because nobody asks for it: it is issued when the process asks the agent",
            ),
            Self::UnaskedSince(why) => write!(
                f,
                "no SVID of this name is issued, and there was none when it was asked for last: {why}; the CA is asked again when the process \
                 asks the agent"
            ),
            Self::Refused(why) => write!(f, "its SVID is not issued: {why}; the agent asks the CA again by itself"),
            Self::Dry => f.write_str(
                "its SVID is not issued, because the CA issues nothing to this agent now; `hoplite agent status` and the agent's log say more",
            ),
            Self::Coming => f.write_str("its SVID is being issued; look again in a moment"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supply::shelf::Restock;
    use crate::supply::testing::{entry, template};
    use hoplite_identity::{BundleSet, SpiffeId};

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
            refused: None,
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
        assert_eq!(supply.registered(), 5);
    }

    #[test]
    fn a_template_is_told_with_why_there_is_no_svid() {
        let supply = Supply::default();
        // Of no selectors at all: whoever has a user name fits.
        let template = Arc::new(template("t", "/user/{unix:user}", &[]));
        supply.put(Restock {
            templates: vec![(template.id.clone(), Some(Arc::clone(&template)))],
            ..Restock::default()
        });
        let ann: BTreeSet<Selector> = ["unix:user:ann".parse().unwrap()].into();
        let nearest = || supply.nearest(&ann, 10).pop().unwrap();
        let near = nearest();
        assert_eq!(
            (near.name.as_str(), near.missing.len()),
            ("spiffe://prod.example/user/ann", 0)
        );
        assert_eq!(near.absence, Some(Absence::Unasked));
        assert!(near.concerns(&ann), "it is told to the process itself");
        assert_eq!(supply.registered(), 1);

        // It asks, is refused, and asks no more.
        let named = Arc::new(template.named(&ann).unwrap());
        let put = |supplied: Option<Supplied>| {
            supply.put(Restock {
                entries: vec![(named.id.clone(), supplied)],
                ..Restock::default()
            })
        };
        let supplied = |refused: Option<&str>| {
            Some(Supplied {
                entry: Arc::clone(&named),
                svid: None,
                refused: refused.map(Arc::from),
            })
        };
        put(supplied(None));
        assert_eq!(nearest().absence, Some(Absence::Coming));
        supply.set_dry(true);
        assert_eq!(nearest().absence, Some(Absence::Dry));
        supply.set_dry(false);
        put(supplied(Some("too many")));
        assert_eq!(nearest().absence, Some(Absence::Refused("too many".into())));
        assert_eq!(supply.registered(), 1, "its names are no entries");
        put(None);
        assert_eq!(nearest().absence, Some(Absence::UnaskedSince("too many".into())));

        // What it has nothing of is nobody's business, but a name that cannot be is its own.
        let nobody = BTreeSet::new();
        assert!(!supply.nearest(&nobody, 10)[0].concerns(&nobody));
        let odd: BTreeSet<Selector> = ["unix:user:svc-$".parse().unwrap()].into();
        let near = supply.nearest(&odd, 10).pop().unwrap();
        assert!(matches!(near.missing[..], [Lack::Name(_)]) && near.concerns(&odd));
    }
}
