//! The chain of signer sets that one machine follows: from the set it was installed with to the newest, link by link.
//!
//! A pure state machine. The first set is believed because whoever installed the machine said so; each later one because a
//! quorum of the one before signed it. Nothing goes back, nothing branches off, nothing is left out.

use hoplite_identity::TrustDomain;
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

use crate::cbor::{self, at_most};
use crate::digest::Hash;
use crate::signer::TrustedSigners;
use crate::signer_set::{BadSet, ReadSet, TrustedSet};

/// The most sets of one chain: a change a week for eighty years.
pub const SIGNER_SETS_MAX: usize = 4096;

/// The longest chain, all of its sets together: it is told to an agent in one message.
pub const SIGNER_CHAIN_BYTES_MAX: usize = 1 << 20;

/// The sets that are believed here, oldest first; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignerChain {
    before: Vec<TrustedSet>,
    newest: TrustedSet,
}

/// Why what was offered is not followed. Nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotFollowed {
    /// One of the sets cannot be read, or a quorum of the one before has not signed it.
    #[error("version {version} of the signers is not followed: {bad}")]
    Bad {
        /// Which; 0 for one that cannot be read.
        version: u64,
        /// What is wrong.
        bad: BadSet,
    },
    /// There is none.
    #[error("no signer set was offered")]
    Nothing,
    /// Versions are missing.
    #[error("the signers' versions are {got} after {have}, with a gap between; nothing is followed over a gap")]
    Gap {
        /// The one before the gap.
        have: u64,
        /// The one after it.
        got: u64,
    },
    /// What is offered ends before what is held.
    #[error(
        "version {got} of the signers is offered as the newest, and version {have} is followed here; somebody goes back, or a CA was restored from an older backup"
    )]
    Lower {
        /// The newest here.
        have: u64,
        /// The newest there.
        got: u64,
    },
    /// Another set has the place of one that is believed here.
    #[error(
        "version {0} of the signers is another one than the one that is followed here; find out who made two, and install this node anew if its own is the wrong one"
    )]
    Fork(u64),
    /// There are too many, or they are too long.
    #[error("the chain of signer sets is longer than {SIGNER_SETS_MAX} sets or {SIGNER_CHAIN_BYTES_MAX} bytes")]
    TooLong,
}

/// What is kept of a chain.
#[derive(Encode, Decode)]
#[cbor(map)]
struct Kept {
    #[cbor(n(0), decode_with = "at_most::<_, _, SIGNER_SETS_MAX>")]
    sets: Vec<ByteVec>,
}

// === impl SignerChain ===

impl SignerChain {
    /// The chain that begins, for this machine, with the signers that its configuration names.
    ///
    /// # Errors
    /// There are none.
    pub fn configured(trust_domain: &TrustDomain, signers: &TrustedSigners) -> Result<Self, BadSet> {
        Ok(Self::of(TrustedSet::configured(trust_domain, signers)?))
    }

    /// Trusts what is offered first, to a machine that was never told of signers. Each set after the first must be signed by
    /// the one before all the same.
    ///
    /// # Errors
    /// They are no chain, or one of another trust domain.
    pub fn on_first_use<S: AsRef<[u8]>>(trust_domain: &TrustDomain, offered: &[S]) -> Result<Self, NotFollowed> {
        let chain = Self::linked(read(offered)?)?;
        let got = chain.newest.set().trust_domain();
        if got != trust_domain.as_str() {
            return Err(NotFollowed::Bad {
                version: chain.version(),
                bad: BadSet::WrongTrustDomain {
                    own: trust_domain.as_str().to_owned(),
                    got: got.to_owned(),
                },
            });
        }
        Ok(chain)
    }

    /// What [`encode`](Self::encode) wrote. The first is believed as it lies there, each later one is verified again.
    ///
    /// # Errors
    /// It is damaged.
    pub fn restore(bytes: &[u8]) -> Result<Self, NotFollowed> {
        let kept: Kept = cbor::decode(bytes).map_err(|why| NotFollowed::Bad {
            version: 0,
            bad: BadSet::Seal(crate::SealBroken::Malformed(why.to_string())),
        })?;
        let sets: Vec<&[u8]> = kept.sets.iter().map(|set| set.as_slice()).collect();
        Self::linked_from_first(&sets)
    }

    /// The chain that somebody keeps set by set. The first is believed as it is kept, each later one is verified again.
    ///
    /// # Errors
    /// It is damaged.
    pub fn linked_from_first<S: AsRef<[u8]>>(kept: &[S]) -> Result<Self, NotFollowed> {
        Self::linked(read(kept)?)
    }

    /// For the disk.
    pub fn encode(&self) -> Vec<u8> {
        let sets = self.sets().map(|set| set.bytes().to_vec().into()).collect();
        cbor::encode(&Kept { sets })
    }

    fn of(newest: TrustedSet) -> Self {
        let before = Vec::new();
        Self { before, newest }
    }

    /// The first is believed, each later one if the one before has signed it.
    fn linked(sets: Vec<ReadSet>) -> Result<Self, NotFollowed> {
        let mut sets = sets.into_iter();
        let first = sets.next().ok_or(NotFollowed::Nothing)?;
        let mut chain = Self::of(first.on_first_use());
        for set in sets {
            chain.push(set)?;
        }
        Ok(chain)
    }

    fn push(&mut self, next: ReadSet) -> Result<(), NotFollowed> {
        let (have, version) = (self.version(), next.set.version());
        if have.checked_add(1) != Some(version) {
            return Err(NotFollowed::Gap { have, got: version });
        }
        if next.set.previous() != Some(self.newest.digest()) {
            return Err(NotFollowed::Fork(have));
        }
        let bad = |bad| NotFollowed::Bad { version, bad };
        let (own, got) = (self.newest.set().trust_domain(), next.set.trust_domain());
        if own != got {
            let (own, got) = (own.to_owned(), got.to_owned());
            return Err(bad(BadSet::WrongTrustDomain { own, got }));
        }
        let next = next.signed_by_quorum_of(&self.newest).map_err(bad)?;
        self.before.push(std::mem::replace(&mut self.newest, next));
        let bytes: usize = self.sets().map(|set| set.bytes().len()).sum();
        if self.before.len() >= SIGNER_SETS_MAX || bytes > SIGNER_CHAIN_BYTES_MAX {
            return Err(NotFollowed::TooLong);
        }
        Ok(())
    }

    /// Follows what is offered: sets in a row, some of which may be held already. Whether the newest is another one then.
    ///
    /// Signers that were only named, by a configuration or by whoever came first, have no place among the versions yet. It is
    /// found by what they are: the newest set of theirs that has a successor which a quorum of them has signed.
    ///
    /// # Errors
    /// A gap, a fork, something older, or something that was not signed by the one before. Nothing changes then.
    pub fn follow<S: AsRef<[u8]>>(&mut self, offered: &[S]) -> Result<bool, NotFollowed> {
        let offered = read(offered)?;
        let followed = match self.held_among(&offered) {
            Ok(()) => self.walked(offered)?,
            Err(fork) if self.is_only_named() => self.found_its_place(offered).ok_or(fork)?,
            Err(why) => return Err(why),
        };
        let changed = followed.newest != self.newest;
        *self = followed;
        Ok(changed)
    }

    /// No set of this machine's own was signed by anybody.
    fn is_only_named(&self) -> bool {
        self.version() == 1
    }

    /// Whether each offered set that has the version of one that is held is that one, and none ends before.
    fn held_among(&self, offered: &[ReadSet]) -> Result<(), NotFollowed> {
        let held = |version: u64| self.sets().find(|set| set.version() == version);
        for set in offered {
            let version = set.set.version();
            if held(version).is_some_and(|held| held.digest() != set.digest) {
                return Err(NotFollowed::Fork(version));
            }
        }
        let have = self.version();
        match (offered.first(), offered.last()) {
            (_, Some(last)) if last.set.version() < have => Err(NotFollowed::Lower {
                have,
                got: last.set.version(),
            }),
            (Some(first), _) if first.set.version() > have.saturating_add(1) => Err(NotFollowed::Gap {
                have,
                got: first.set.version(),
            }),
            _ => Ok(()),
        }
    }

    fn walked(&self, offered: Vec<ReadSet>) -> Result<Self, NotFollowed> {
        let mut chain = self.clone();
        for set in offered {
            if set.set.version() > chain.version() {
                chain.push(set)?;
            }
        }
        Ok(chain)
    }

    /// The chain from the newest set with the very signers that were named here, if a quorum of them has signed the next.
    fn found_its_place(&self, offered: Vec<ReadSet>) -> Option<Self> {
        let own = self.newest.set();
        let is_own = |set: &ReadSet| {
            let set = &set.set;
            set.same_signers(own) && set.quorum() >= own.quorum() && set.trust_domain() == own.trust_domain()
        };
        let has_next = offered.len().saturating_sub(1);
        let at = offered.iter().take(has_next).rposition(is_own);
        let Some(at) = at else {
            // They are the newest there: nobody has signed anything to follow.
            return offered.last().is_some_and(is_own).then(|| self.clone());
        };
        let later = offered.into_iter().skip(at).collect();
        Self::linked(later).ok()
    }

    /// The sets, oldest first.
    pub fn sets(&self) -> impl Iterator<Item = &TrustedSet> {
        self.before.iter().chain([&self.newest])
    }

    /// The sets from this version on, as they travel; all of them for 0.
    pub fn since(&self, version: u64) -> impl Iterator<Item = &[u8]> {
        self.sets()
            .filter(move |set| set.version() >= version)
            .map(TrustedSet::bytes)
    }

    /// Whose signatures count now.
    pub fn newest(&self) -> &TrustedSet {
        &self.newest
    }

    /// Its version.
    pub fn version(&self) -> u64 {
        self.newest.version()
    }

    /// Its digest.
    pub fn digest(&self) -> Hash {
        self.newest.digest()
    }

    /// Whether one of the sets has these signers and no others.
    pub fn ever_had(&self, signers: &TrustedSigners) -> bool {
        self.sets().any(|set| set.signers() == signers)
    }
}

/// Reads sets that stand in a row.
fn read<S: AsRef<[u8]>>(offered: &[S]) -> Result<Vec<ReadSet>, NotFollowed> {
    let bytes: usize = offered.iter().map(|set| set.as_ref().len()).sum();
    if offered.len() > SIGNER_SETS_MAX || bytes > SIGNER_CHAIN_BYTES_MAX {
        return Err(NotFollowed::TooLong);
    }
    let mut sets: Vec<ReadSet> = Vec::new();
    for set in offered {
        let next = ReadSet::read(set.as_ref()).map_err(|bad| NotFollowed::Bad { version: 0, bad })?;
        if let Some(last) = sets.last()
            && last.set.version().checked_add(1) != Some(next.set.version())
        {
            return Err(NotFollowed::Gap {
                have: last.set.version(),
                got: next.set.version(),
            });
        }
        sets.push(next);
    }
    if sets.is_empty() {
        return Err(NotFollowed::Nothing);
    }
    Ok(sets)
}

#[cfg(test)]
mod tests;
