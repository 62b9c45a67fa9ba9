//! The newest changes, in memory: what a store keeps for its watchers while it is open, within bounds of number and size.

use std::collections::VecDeque;

use crate::{Change, HISTORY_BYTES_MAX, Mutation, Reach, Revision};

/// What one commit takes beside its keys and values.
const COMMIT_BYTES: usize = 64;

/// What one write takes beside its key and value.
const WRITE_BYTES: usize = 64;

/// The newest changes, in order and without a gap.
#[derive(Debug)]
pub(crate) struct Recent {
    reach: Reach,
    keep: u64,
    bytes: usize,
    changes: VecDeque<Change>,
}

// === impl Recent ===

impl Recent {
    /// Of a store that is at this revision; what came before is not known.
    pub(crate) fn after(revision: Revision, keep: u64) -> Self {
        Self {
            reach: Reach {
                oldest: revision + 1,
                newest: revision,
            },
            keep,
            bytes: 0,
            changes: VecDeque::new(),
        }
    }

    /// How far it reaches.
    pub(crate) fn reach(&self) -> Reach {
        self.reach
    }

    /// The next commit's writes. The oldest changes go for it; the newest one stays, however large.
    pub(crate) fn push(&mut self, mutations: Vec<Mutation>) {
        let revision = self.reach.newest + 1;
        let change = Change { revision, mutations };
        self.bytes += size(&change);
        self.changes.push_back(change);
        self.reach.newest = revision;
        let is_too_long = |recent: &Self| {
            let kept = recent.changes.len();
            kept as u64 > recent.keep || (kept > 1 && recent.bytes > HISTORY_BYTES_MAX)
        };
        while is_too_long(self) {
            let Some(dropped) = self.changes.pop_front() else { break };
            self.bytes -= size(&dropped);
            self.reach.oldest = dropped.revision + 1;
        }
    }

    /// The change of one commit, if it is kept.
    pub(crate) fn change(&self, revision: Revision) -> Option<Change> {
        let at = revision.checked_sub(self.reach.oldest)?;
        self.changes.get(usize::try_from(at).ok()?).cloned()
    }
}

/// About what it takes in memory.
fn size(change: &Change) -> usize {
    let write = |Mutation { key, value }: &Mutation| WRITE_BYTES + key.len() + value.as_ref().map_or(0, Vec::len);
    COMMIT_BYTES + change.mutations.iter().map(write).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(bytes: usize) -> Vec<Mutation> {
        vec![Mutation {
            key: b"k".to_vec(),
            value: Some(vec![7; bytes]),
        }]
    }

    fn reach(recent: &Recent) -> (Revision, Revision) {
        (recent.reach().oldest, recent.reach().newest)
    }

    #[test]
    fn what_is_too_much_or_too_many_goes_and_the_newest_stays() {
        let mut recent = Recent::after(9, 4);
        assert_eq!((reach(&recent), recent.change(9)), ((10, 9), None));
        for _ in 0..6 {
            recent.push(write(1));
        }
        assert_eq!(reach(&recent), (12, 15), "four of them");
        recent.push(write(HISTORY_BYTES_MAX / 2));
        recent.push(write(HISTORY_BYTES_MAX / 2));
        assert_eq!(
            reach(&recent),
            (17, 17),
            "two halves and what lies around them are more than the whole"
        );
        recent.push(write(2 * HISTORY_BYTES_MAX));
        assert_eq!(reach(&recent), (18, 18));
        assert_eq!(recent.change(18).unwrap().mutations, write(2 * HISTORY_BYTES_MAX));
        recent.push(write(1));
        assert_eq!((reach(&recent), recent.bytes < 1000), ((19, 19), true));
        assert_eq!((recent.change(18), recent.change(20)), (None, None));
    }
}
