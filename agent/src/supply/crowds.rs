//! Who is to hear of which change: callers with the same selectors are one crowd, which is woken for what it may have only.
//!
//! So a change costs those whom it concerns, and not every open stream.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hoplite_identity::Selector;
use tokio::sync::watch;

use crate::supply::named::NamedEntry;

/// All crowds that there are now. Clones are the same ones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Crowds(Arc<Mutex<Known>>);

/// A caller's place in its crowd. The crowd ends with the last one.
#[derive(Debug)]
pub(crate) struct Place {
    number: u64,
    crowd: Arc<BTreeSet<Selector>>,
    changes: watch::Receiver<()>,
    crowds: Crowds,
}

#[derive(Debug, Default)]
struct Known {
    by_number: HashMap<u64, Crowd>,
    numbers: HashMap<Arc<BTreeSet<Selector>>, u64>,
    /// The crowds that have a selector.
    having: HashMap<Selector, HashSet<u64>>,
    next: u64,
}

#[derive(Debug)]
struct Crowd {
    selectors: Arc<BTreeSet<Selector>>,
    changes: watch::Sender<()>,
}

// === impl Crowds ===

impl Crowds {
    /// A place among those with these selectors. It hears of changes from now on.
    pub(crate) fn join(&self, selectors: &BTreeSet<Selector>) -> Place {
        let mut known = self.lock();
        let number = match known.numbers.get(selectors) {
            Some(number) => *number,
            None => known.begin(Arc::new(selectors.clone())),
        };
        let crowd = known.by_number.entry(number).or_insert_with(|| Crowd {
            selectors: Arc::new(selectors.clone()),
            changes: watch::Sender::new(()),
        });
        Place {
            number,
            crowd: Arc::clone(&crowd.selectors),
            changes: crowd.changes.subscribe(),
            crowds: self.clone(),
        }
    }

    /// Wakes those who fit one of these entries.
    pub(crate) fn tell<'a>(&self, entries: impl IntoIterator<Item = &'a NamedEntry>) {
        let known = self.lock();
        if known.by_number.is_empty() {
            return;
        }
        let concerned: HashSet<u64> = entries
            .into_iter()
            .flat_map(|entry| known.fitting(&entry.selectors))
            .collect();
        for crowd in concerned.iter().filter_map(|number| known.by_number.get(number)) {
            crowd.changes.send_replace(());
        }
    }

    /// Whether anybody is there who has all of these.
    pub(crate) fn has(&self, selectors: &BTreeSet<Selector>) -> bool {
        self.lock().fitting(selectors).next().is_some()
    }

    /// Wakes everybody.
    pub(crate) fn tell_all(&self) {
        for crowd in self.lock().by_number.values() {
            crowd.changes.send_replace(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Place ===

impl Place {
    /// Whether it is among those with these selectors.
    pub(crate) fn is_among(&self, selectors: &BTreeSet<Selector>) -> bool {
        *self.crowd == *selectors
    }

    /// What was said so far is known.
    pub(crate) fn mark_unchanged(&mut self) {
        self.changes.mark_unchanged();
    }

    /// Returns when something changed that concerns those with its selectors.
    pub(crate) async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut known = self.crowds.lock();
        let crowd = known.by_number.get(&self.number);
        // Its own receiver is one of them still.
        if crowd.is_some_and(|crowd| crowd.changes.receiver_count() <= 1) {
            known.end(self.number);
        }
    }
}

// === impl Known ===

impl Known {
    fn begin(&mut self, selectors: Arc<BTreeSet<Selector>>) -> u64 {
        let number = self.next;
        self.next += 1;
        for selector in &*selectors {
            self.having.entry(selector.clone()).or_default().insert(number);
        }
        self.numbers.insert(Arc::clone(&selectors), number);
        let changes = watch::Sender::new(());
        self.by_number.insert(number, Crowd { selectors, changes });
        number
    }

    fn end(&mut self, number: u64) {
        let Some(crowd) = self.by_number.remove(&number) else {
            return;
        };
        self.numbers.remove(&crowd.selectors);
        for selector in &*crowd.selectors {
            if let Some(having) = self.having.get_mut(selector) {
                having.remove(&number);
                if having.is_empty() {
                    self.having.remove(selector);
                }
            }
        }
    }

    /// The crowds that fit an entry with these: it looks through those that have its rarest selector.
    fn fitting<'a>(&'a self, selectors: &'a BTreeSet<Selector>) -> impl Iterator<Item = u64> + 'a {
        let having = |selector| self.having.get(selector);
        let all: Option<Vec<&HashSet<u64>>> = selectors.iter().map(having).collect();
        // An entry without selectors fits nobody.
        let fewest = all.and_then(|all| all.into_iter().min_by_key(|numbers| numbers.len()));
        let fits = |number: &u64| {
            let crowd = self.by_number.get(number);
            crowd.is_some_and(|crowd| selectors.is_subset(&crowd.selectors))
        };
        fewest.into_iter().flatten().copied().filter(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supply::testing::{entry, with};
    use hoplite_identity::SpiffeId;
    use proptest::prelude::*;

    fn selectors(numbers: &BTreeSet<u8>) -> BTreeSet<Selector> {
        let selector = |n: &u8| Selector::parse(&format!("unix:gid:{n}")).unwrap();
        numbers.iter().map(selector).collect()
    }

    #[test]
    fn a_crowd_is_there_as_long_as_somebody_is_in_it() {
        let crowds = Crowds::default();
        let (one, two) = (selectors(&[1, 2].into()), selectors(&[2].into()));
        let (first, second, other) = (crowds.join(&one), crowds.join(&one), crowds.join(&two));
        assert_eq!(first.number, second.number);
        assert!(first.is_among(&one) && !first.is_among(&two) && other.is_among(&two));
        drop(first);
        assert_eq!(crowds.lock().by_number.len(), 2);
        drop(second);
        assert_eq!(crowds.lock().having.len(), 1);
        drop(other);
        let known = crowds.lock();
        assert!(known.by_number.is_empty() && known.numbers.is_empty() && known.having.is_empty());
    }

    proptest! {
        /// Whoever comes and goes: a change of an entry wakes those who fit it, and nobody else.
        #[test]
        fn who_fits_is_woken_and_nobody_else(
            callers in proptest::collection::vec((proptest::collection::btree_set(0u8..6, 0..5), any::<bool>()), 0..12),
            changed in proptest::collection::vec(proptest::collection::btree_set(0u8..6, 0..4), 0..3),
        ) {
            let crowds = Crowds::default();
            let id = SpiffeId::parse("spiffe://prod.example/a").unwrap();
            let places = callers.iter().map(|(caller, stays)| (caller, crowds.join(&selectors(caller)), *stays));
            let mut places: Vec<_> = places.collect();
            places.retain(|(_, _, stays)| *stays);
            let changed: Vec<_> = changed.iter().map(|numbers| {
                with(entry("e", &id, &[]), |entry| entry.selectors = selectors(numbers))
            }).collect();
            crowds.tell(&changed);
            for (caller, place, _) in &mut places {
                let own = selectors(caller);
                let fits = |entry: &NamedEntry| !entry.selectors.is_empty() && entry.selectors.is_subset(&own);
                prop_assert_eq!(place.changes.has_changed().unwrap(), changed.iter().any(fits));
                place.mark_unchanged();
            }
            crowds.tell_all();
            prop_assert!(places.iter().all(|(_, place, _)| place.changes.has_changed().unwrap()));
        }
    }
}
