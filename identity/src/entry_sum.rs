//! The sum of a set of entries, by which agent and CA find out whether they hold one set: it costs a hash for each entry
//! that changes, however many there are.

use ring::digest::{Context, SHA256, SHA512};

use crate::EntryId;

/// Keeps this hash apart from every other one.
const PAIR_DOMAIN: &[u8] = b"hoplite entry v1\0";
const SET_DOMAIN: &[u8] = b"hoplite entry set v1\0";

/// The 512 bits of a sum, the least significant first.
const LIMBS: usize = 8;

/// A set of pairs of entry id and revision, added up: SHA-512 of each pair, as a number modulo 2^512. The order does not
/// count, and what was added can be taken away again.
///
/// What it is good for: it finds that a change was lost, doubled or mixed up. Two sets that differ by accident have one
/// sum with a probability of 2^-512, and one [`digest`](Self::digest) with 2^-256.
///
/// What it is not: a signature, or a hash that holds against whoever may choose the pairs freely. In sums of hashes two
/// equal sets can be found by Wagner's generalised birthday, for 512 bits with about 2^45 pairs to choose from and work
/// of that order (a sum of 256 bits would need 2^32). Here nobody chooses: ids are the CA's own random bits and revisions
/// its own count, so each pair to choose from costs a commit of the CA; 2^45 of them are fifty years at 20 000 a
/// second. And it would gain nothing: only the CA tells an agent what it holds, on a connection that both have
/// authenticated, and whoever is the CA needs no collision to leave an entry out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EntrySum {
    limbs: [u64; LIMBS],
    count: u64,
}

// === impl EntrySum ===

impl EntrySum {
    /// One more entry. It must not be in it yet.
    pub fn add(&mut self, id: &EntryId, revision: u64) {
        self.raise(pair(id, revision));
        self.count = self.count.wrapping_add(1);
    }

    /// One less. It must be in it, at this revision.
    pub fn remove(&mut self, id: &EntryId, revision: u64) {
        let mut borrow = false;
        for (limb, removed) in self.limbs.iter_mut().zip(pair(id, revision)) {
            let (rest, under) = limb.overflowing_sub(removed);
            let (rest, borrowed) = rest.overflowing_sub(u64::from(borrow));
            (*limb, borrow) = (rest, under || borrowed);
        }
        self.count = self.count.wrapping_sub(1);
    }

    /// Those of two sets together, which have none in common.
    #[must_use]
    pub fn with(mut self, other: &Self) -> Self {
        self.raise(other.limbs);
        self.count = self.count.wrapping_add(other.count);
        self
    }

    fn raise(&mut self, by: [u64; LIMBS]) {
        let mut carry = false;
        for (limb, added) in self.limbs.iter_mut().zip(by) {
            let (sum, over) = limb.overflowing_add(added);
            let (sum, carried) = sum.overflowing_add(u64::from(carry));
            (*limb, carry) = (sum, over || carried);
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// What is compared: SHA-256 of the number of entries and their sum.
    pub fn digest(&self) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        context.update(SET_DOMAIN);
        context.update(&self.count.to_be_bytes());
        for limb in self.limbs {
            context.update(&limb.to_le_bytes());
        }
        let mut bytes = [0; 32];
        bytes.copy_from_slice(context.finish().as_ref());
        bytes
    }
}

/// Of the whole set at once.
impl<'a> FromIterator<(&'a EntryId, u64)> for EntrySum {
    fn from_iter<I: IntoIterator<Item = (&'a EntryId, u64)>>(pairs: I) -> Self {
        let mut sum = Self::default();
        for (id, revision) in pairs {
            sum.add(id, revision);
        }
        sum
    }
}

/// The number of a pair. Ids have no NUL, and the revision has a fixed length, so no two pairs read alike.
fn pair(id: &EntryId, revision: u64) -> [u64; LIMBS] {
    let mut context = Context::new(&SHA512);
    context.update(PAIR_DOMAIN);
    context.update(id.as_str().as_bytes());
    context.update(&[0]);
    context.update(&revision.to_be_bytes());
    let digest = context.finish();
    let mut limbs = [0; LIMBS];
    for (limb, bytes) in limbs.iter_mut().zip(digest.as_ref().chunks_exact(8)) {
        *limb = bytes
            .iter()
            .rev()
            .fold(0, |number, byte| (number << 8) | u64::from(*byte));
    }
    limbs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn id(text: &str) -> EntryId {
        EntryId::parse(text).unwrap()
    }

    fn sum(pairs: &[(&str, u64)]) -> EntrySum {
        let ids: Vec<_> = pairs.iter().map(|(text, revision)| (id(text), *revision)).collect();
        ids.iter().map(|(id, revision)| (id, *revision)).collect()
    }

    #[test]
    fn it_sees_every_change_and_no_order() {
        let base = sum(&[("a", 1), ("b", 2)]);
        assert_eq!(base.digest(), sum(&[("b", 2), ("a", 1)]).digest());
        for other in [
            &[("a", 1)][..],
            &[],
            &[("a", 1), ("b", 3)],
            &[("a", 2), ("b", 1)],
            &[("a", 1), ("c", 2)],
            &[("a", 1), ("b", 2), ("c", 3)],
            // What looks alike when it is run together is still told apart.
            &[("a1", 1), ("b", 2)],
        ] {
            assert_ne!(base.digest(), sum(other).digest(), "{other:?}");
        }
        let mut twice = base;
        twice.add(&id("a"), 1);
        assert_ne!(base.digest(), twice.digest());
        assert_ne!(sum(&[]).digest(), [0; 32]);
    }

    #[test]
    fn a_carry_goes_through_all_limbs() {
        let full = EntrySum {
            limbs: [u64::MAX; LIMBS],
            count: 0,
        };
        let mut rolled = full;
        rolled.add(&id("a"), 1);
        rolled.remove(&id("a"), 1);
        assert_eq!(rolled, full);
        // All ones is minus one.
        rolled.add(&id("a"), 1);
        let (mut one_less, mut borrow) = (pair(&id("a"), 1), true);
        for limb in &mut one_less {
            (*limb, borrow) = limb.overflowing_sub(u64::from(borrow));
        }
        assert_eq!(rolled.limbs, one_less);
    }

    /// What the wire says must not change unnoticed.
    #[test]
    fn the_digest_of_known_sets() {
        let check = |pairs: &[(&str, u64)], expected: &str| {
            assert_eq!(
                data_encoding::HEXLOWER.encode(&sum(pairs).digest()),
                expected,
                "{pairs:?}"
            );
        };
        check(&[], "00a618bd008c4bde078155b30844bb3ca917c5085bca4f18404a102f3eacfd45");
        check(
            &[("a", 1), ("b", 2)],
            "451443641e1a3d18cd02b97b3b75b41cbcc1ab1d482dce382bf6af9a50d0e5df",
        );
    }

    proptest! {
        /// Whatever comes and goes in whatever order: the sum is that of what is there.
        #[test]
        fn what_is_kept_up_equals_what_is_computed_anew(
            steps in proptest::collection::vec((0u8..8, proptest::option::of(0u64..u64::MAX)), 0..60),
        ) {
            let (mut kept, mut held) = (EntrySum::default(), BTreeMap::new());
            for (name, revision) in steps {
                let id = id(&format!("e{name}"));
                if let Some(old) = held.remove(&id) {
                    kept.remove(&id, old);
                }
                if let Some(revision) = revision {
                    kept.add(&id, revision);
                    held.insert(id, revision);
                }
                let anew: EntrySum = held.iter().rev().map(|(id, revision)| (id, *revision)).collect();
                prop_assert_eq!(kept, anew);
                prop_assert_eq!(kept.count(), held.len() as u64);
            }
        }
    }
}
