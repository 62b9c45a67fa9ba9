//! Which entries a process nearly fits: for people who wait for an identity that does not come.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use hoplite_identity::Selector;

use crate::supply::shelf::{Supplied, Supply};

/// An entry, and which of its selectors a process does not have.
#[derive(Debug)]
pub(crate) struct Near {
    pub(crate) supplied: Supplied,
    /// Empty when it fits.
    pub(crate) missing: Vec<Selector>,
}

impl Supply {
    /// The entries that a process with these selectors fits, in their order, and then the nearest ones, at most `max`: those
    /// that lack least, and of these the ones that share most. It looks at each entry, so it is not for every call.
    pub(crate) fn nearest(&self, selectors: &BTreeSet<Selector>, max: usize) -> Vec<Near> {
        let all = self.all().into_iter().map(|supplied| {
            let missing = supplied.entry.selectors.difference(selectors);
            Near {
                missing: missing.cloned().collect(),
                supplied,
            }
        });
        let (mut found, mut near): (Vec<_>, Vec<_>) = all.partition(|near| near.missing.is_empty());
        // Stable, so that equals stay in the order of the supply.
        near.sort_by_key(|near| (near.missing.len(), Reverse(near.shared())));
        near.truncate(max);
        found.append(&mut near);
        found
    }
}

// === impl Near ===

impl Near {
    /// How many of its selectors the process has.
    pub(crate) fn shared(&self) -> usize {
        self.supplied.entry.selectors.len() - self.missing.len()
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
                    (near.supplied.entry.id.to_string(), missing.join(" "))
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
