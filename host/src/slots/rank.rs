//! Who holds how many places: a tree of sources, in which the one that holds most is found without looking at the others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

/// Those below one source, or below all.
#[derive(Debug)]
pub(super) struct Rank<S, T> {
    count: usize,
    /// In the order in which they came.
    members: BTreeMap<u64, T>,
    below: HashMap<S, Self>,
    /// The keys of `below`, by how many each holds.
    by_count: BTreeSet<(usize, S)>,
}

// === impl Rank ===

impl<S, T> Default for Rank<S, T> {
    fn default() -> Self {
        Self {
            count: 0,
            members: BTreeMap::new(),
            below: HashMap::new(),
            by_count: BTreeSet::new(),
        }
    }
}

impl<S: Copy + Ord + Hash, T> Rank<S, T> {
    /// Adds one that came as number `at`, with its sources from the widest to the narrowest.
    pub(super) fn insert(&mut self, path: &[S], at: u64, member: T) {
        self.count += 1;
        let Some((source, rest)) = path.split_first() else {
            self.members.insert(at, member);
            return;
        };
        let below = self.below.entry(*source).or_default();
        self.by_count.remove(&(below.count, *source));
        below.insert(rest, at, member);
        self.by_count.insert((below.count, *source));
    }

    /// Takes one out, if it is there.
    pub(super) fn remove(&mut self, path: &[S], at: u64) -> Option<T> {
        let removed = match path.split_first() {
            None => self.members.remove(&at),
            Some((source, rest)) => {
                let below = self.below.get_mut(source)?;
                let before = below.count;
                let removed = below.remove(rest, at);
                if below.count != before {
                    self.by_count.remove(&(before, *source));
                    if below.count > 0 {
                        self.by_count.insert((below.count, *source));
                    } else {
                        self.below.remove(source);
                    }
                }
                removed
            }
        };
        self.count -= usize::from(removed.is_some());
        removed
    }

    /// How many there are below these sources; below none of them, all.
    pub(super) fn count(&self, prefix: &[S]) -> usize {
        self.at(prefix).map_or(0, |rank| rank.count)
    }

    /// Below these sources: the one that came first, of the source that holds most.
    pub(super) fn oldest_of_biggest(&self, prefix: &[S]) -> Option<&T> {
        let mut rank = self.at(prefix)?;
        while let Some((_, source)) = rank.by_count.last() {
            rank = rank.below.get(source)?;
        }
        rank.members.values().next()
    }

    /// Below these sources: the one with the least key, of the source that holds most and has any with a key. Of sources
    /// that hold fewer than `least` none is taken.
    pub(super) fn least_of_biggest<K: Ord>(
        &self,
        prefix: &[S],
        least: usize,
        key: &impl Fn(&T) -> Option<K>,
    ) -> Option<&T> {
        self.at(prefix)?.least(least, key)
    }

    fn least<K: Ord>(&self, least: usize, key: &impl Fn(&T) -> Option<K>) -> Option<&T> {
        let keyed = self.members.values().filter_map(|member| Some((key(member)?, member)));
        if let Some((_, member)) = keyed.min_by(|(a, _), (b, _)| a.cmp(b)) {
            return Some(member);
        }
        let big = self.by_count.iter().rev().take_while(|(count, _)| *count >= least);
        big.filter_map(|(_, source)| self.below.get(source))
            .find_map(|below| below.least(0, key))
    }

    fn at(&self, prefix: &[S]) -> Option<&Self> {
        prefix.iter().try_fold(self, |rank, source| rank.below.get(source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::Source;

    #[test]
    fn the_biggest_is_found_as_places_come_and_go() {
        let path = |user, process| [Source::User(user), Source::Process(process)];
        let mut rank = Rank::default();
        for (at, (user, process)) in [(1, 10), (2, 20), (2, 21), (2, 21), (1, 10)].into_iter().enumerate() {
            rank.insert(&path(user, process), at as u64, at);
        }
        assert_eq!(rank.count(&[]), 5);
        assert_eq!(rank.count(&[Source::User(2)]), 3);
        assert_eq!(
            rank.oldest_of_biggest(&[]),
            Some(&2),
            "user 2 holds most, and of it process 21"
        );
        assert_eq!(rank.oldest_of_biggest(&[Source::User(1)]), Some(&0));
        assert_eq!(rank.remove(&path(2, 21), 2), Some(2));
        assert_eq!(rank.remove(&path(2, 21), 2), None, "it is gone");
        assert_eq!(rank.remove(&path(2, 20), 1), Some(1));
        assert_eq!(rank.oldest_of_biggest(&[]), Some(&0), "now user 1 holds most");
        // By another order, and only of those that have a place in it.
        let latest = |member: &usize| (*member != 4).then_some(usize::MAX - member);
        assert_eq!(rank.least_of_biggest(&[], 0, &latest), Some(&0));
        assert_eq!(
            rank.least_of_biggest(&[], 0, &|member| (*member == 3).then_some(())),
            Some(&3)
        );
        assert_eq!(
            rank.least_of_biggest(&[], 2, &|member| (*member == 3).then_some(())),
            None
        );
        for (at, (user, process)) in [(0, (1, 10)), (3, (2, 21)), (4, (1, 10))] {
            rank.remove(&path(user, process), at).unwrap();
        }
        assert!(rank.below.is_empty() && rank.by_count.is_empty() && rank.count == 0);
    }
}
