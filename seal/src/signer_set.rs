//! The signer set: whose signatures count in a trust domain, as a document that the set before it has signed.
//!
//! As TUF's root does it: whoever trusts one set follows to the next only when a quorum of the one says so. What can be read
//! of a document is a [`SignerSet`]; whose signatures count is said by a [`TrustedSet`] alone, and that is made of one that
//! was verified, or that whoever installed this machine has named.

use std::fmt;

use hoplite_identity::TrustDomain;
use minicbor::{Decode, Encode};

use crate::cbor::{self, at_most};
use crate::digest::Hash;
use crate::envelope::{Envelope, Kind, NotSigned, SIGNATURES_MAX, SealBroken};
use crate::signer::{BadSigner, SIGNERS_MAX, Signer, SigningKey, TrustedSigners};

/// The longest encoded set: as many signers as there can be, and eight signatures.
pub const SIGNER_SET_BYTES_MAX: usize = 64 * 1024;

const KIND: Kind = Kind::new("hoplite signer set v1");
const FORMAT: u32 = 1;

/// What a set says, whether or not anybody may believe it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct SignerSet {
    #[n(0)]
    format: u32,
    /// The trust domain it is for.
    #[n(1)]
    trust_domain: String,
    /// From 1, one more each time.
    #[n(2)]
    version: u64,
    /// The digest of the set before; none for the first.
    #[n(3)]
    previous: Option<Hash>,
    /// How many of these must sign the next one.
    #[n(4)]
    quorum: u32,
    /// Sorted by name, distinct.
    #[cbor(n(5), decode_with = "at_most::<_, _, SIGNERS_MAX>")]
    signers: Vec<Member>,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
struct Member {
    #[n(0)]
    name: String,
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    key: [u8; 32],
}

/// A set that is believed here: named by whoever installed this machine, or signed by a quorum of one that was believed.
/// Nothing else gives [`TrustedSigners`] out of a document.
#[derive(Clone, PartialEq, Eq)]
pub struct TrustedSet {
    set: SignerSet,
    signers: TrustedSigners,
    digest: Hash,
    bytes: Vec<u8>,
}

/// A document as it was read: in the one form, and consistent in itself. Nobody has verified who signed it.
pub(crate) struct ReadSet {
    pub(crate) set: SignerSet,
    pub(crate) digest: Hash,
    signers: TrustedSigners,
    envelope: Envelope,
    bytes: Vec<u8>,
}

/// Why a document is no signer set that can be used, or cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadSet {
    /// Its size, form or signatures.
    #[error("the signer set is refused: {0}")]
    Seal(#[from] SealBroken),
    /// Its form is newer.
    #[error("the signer set has format {0}, and this program reads {FORMAT}; upgrade this program first")]
    Format(u32),
    /// A name, a key, or two that are the same.
    #[error("the signer set is refused: {0}")]
    Signer(#[from] BadSigner),
    /// It says something that no set says.
    #[error("the signer set is refused: {0}")]
    Inconsistent(&'static str),
    /// More must sign than can, or none need to.
    #[error("a quorum of {quorum} cannot be had of {signers} signers; choose 1 to {most}", most = most(*.signers))]
    Quorum {
        /// What was asked for.
        quorum: u32,
        /// How many there are.
        signers: usize,
    },
    /// It is for somebody else.
    #[error("the signer set is refused: it is for the trust domain `{got}`, and this is `{own}`")]
    WrongTrustDomain {
        /// This one.
        own: String,
        /// Its own.
        got: String,
    },
    /// Nothing would change.
    #[error("the new set has the same signers and the same quorum; nothing changes")]
    NoChange,
    /// The key cannot sign.
    #[error(transparent)]
    NotSigned(#[from] NotSigned),
}

/// As many as may be asked for: no envelope carries more signatures.
fn most(signers: usize) -> usize {
    signers.min(SIGNATURES_MAX)
}

/// How many must sign the next set where nobody said otherwise: more than half, as far as an envelope carries them.
fn majority(signers: usize) -> u32 {
    u32::try_from(most(signers / 2 + 1)).unwrap_or(u32::MAX)
}

// === impl SignerSet ===

impl SignerSet {
    /// The set with which a trust domain begins. Nobody has signed it: it is what somebody names when they install.
    fn first(trust_domain: &TrustDomain, signers: &TrustedSigners) -> Self {
        Self {
            format: FORMAT,
            trust_domain: trust_domain.as_str().to_owned(),
            version: 1,
            previous: None,
            quorum: majority(signers.len()),
            signers: Member::all(signers),
        }
    }

    /// The set that follows one, for a quorum of that one to sign. Without a number more than half of the new ones must
    /// sign the next.
    ///
    /// # Errors
    /// Nothing would change, or the quorum cannot be had.
    pub fn after(before: &TrustedSet, signers: &TrustedSigners, quorum: Option<u32>) -> Result<Self, BadSet> {
        let set = Self {
            format: FORMAT,
            trust_domain: before.set.trust_domain.clone(),
            version: before.version().saturating_add(1),
            previous: Some(before.digest),
            quorum: quorum.unwrap_or_else(|| majority(signers.len())),
            signers: Member::all(signers),
        };
        if set.quorum == before.quorum() && set.signers == before.set.signers {
            return Err(BadSet::NoChange);
        }
        set.check()?;
        Ok(set)
    }

    /// As it travels, before anybody has signed.
    pub fn encode(&self) -> Vec<u8> {
        Envelope::new(KIND, cbor::encode(self), []).encode()
    }

    /// A set with one more signature.
    ///
    /// # Errors
    /// It is no set, or the key cannot sign.
    pub fn sign_too(bytes: &[u8], key: &SigningKey) -> Result<Vec<u8>, BadSet> {
        let mut envelope = ReadSet::read(bytes)?.envelope;
        envelope.sign(key)?;
        Ok(envelope.encode())
    }

    /// What is in a set that may still lack signatures, and whose there are, for people to read before they sign.
    ///
    /// # Errors
    /// It is not whole, or says what no set says.
    pub fn danger_read_unverified(bytes: &[u8]) -> Result<(Self, Vec<String>), BadSet> {
        let read = ReadSet::read(bytes)?;
        let signed_by = read.envelope.signed_by().map(str::to_owned).collect();
        Ok((read.set, signed_by))
    }

    /// The trust domain it is for.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Its place among all.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The digest of the set before.
    pub fn previous(&self) -> Option<Hash> {
        self.previous
    }

    /// How many must sign the next one.
    pub fn quorum(&self) -> u32 {
        self.quorum
    }

    /// The signers by name, each as people write it. They count only where the set is trusted.
    pub fn members(&self) -> impl Iterator<Item = (&str, String)> {
        self.signers
            .iter()
            .filter_map(|member| Some((&*member.name, Signer::new(&member.name, member.key).ok()?.to_string())))
    }

    /// Whether it has these signers and no others.
    pub(crate) fn same_signers(&self, other: &Self) -> bool {
        self.signers == other.signers
    }

    fn check(&self) -> Result<TrustedSigners, BadSet> {
        if self.format != FORMAT {
            return Err(BadSet::Format(self.format));
        }
        if TrustDomain::parse(&self.trust_domain).is_err() {
            return Err(BadSet::Inconsistent("its trust domain is no valid name"));
        }
        let signers: Result<Vec<_>, _> = self.signers.iter().map(|one| Signer::new(&one.name, one.key)).collect();
        let signers = TrustedSigners::new(signers?)?;
        if signers.is_empty() {
            return Err(BadSet::Inconsistent(
                "it has no signers, and nobody could sign the next",
            ));
        }
        if !self.signers.is_sorted_by(|a, b| a.name < b.name) {
            return Err(BadSet::Inconsistent("its signers are out of order"));
        }
        let quorum = usize::try_from(self.quorum).unwrap_or(usize::MAX);
        if !(1..=most(signers.len())).contains(&quorum) {
            return Err(BadSet::Quorum {
                quorum: self.quorum,
                signers: signers.len(),
            });
        }
        if self.version == 0 || (self.version == 1) != self.previous.is_none() {
            return Err(BadSet::Inconsistent(
                "the first set is version 1 and follows none, and every other names the one before",
            ));
        }
        if self.version == 1 && self.quorum != majority(signers.len()) {
            return Err(BadSet::Inconsistent("the quorum of a first set is more than half"));
        }
        Ok(signers)
    }
}

impl Member {
    fn all(signers: &TrustedSigners) -> Vec<Self> {
        let member = |(name, key): (&str, &[u8; 32])| Self {
            name: name.to_owned(),
            key: *key,
        };
        signers.keys().map(member).collect()
    }
}

// === impl ReadSet ===

impl ReadSet {
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, BadSet> {
        let malformed = |why: String| BadSet::Seal(SealBroken::Malformed(why));
        let envelope = Envelope::decode(KIND, bytes, SIGNER_SET_BYTES_MAX)?;
        if envelope.blobs().len() > 0 {
            return Err(malformed("a signer set has no files".to_owned()));
        }
        let set: SignerSet = cbor::decode(envelope.body()).map_err(|why| malformed(why.to_string()))?;
        let signers = set.check()?;
        if set.version == 1 && envelope.signed_by().len() > 0 {
            return Err(BadSet::Inconsistent("nobody can have signed a first set"));
        }
        Ok(Self {
            digest: envelope.digest(),
            set,
            signers,
            envelope,
            bytes: bytes.to_vec(),
        })
    }

    /// Believed because whoever set up this machine says so, or its disk.
    pub(crate) fn on_first_use(self) -> TrustedSet {
        TrustedSet {
            set: self.set,
            signers: self.signers,
            digest: self.digest,
            bytes: self.bytes,
        }
    }

    /// Believed because a quorum of the set before has signed it.
    pub(crate) fn signed_by_quorum_of(self, before: &TrustedSet) -> Result<TrustedSet, BadSet> {
        let needed = usize::try_from(before.quorum()).unwrap_or(usize::MAX);
        self.envelope.verify(&before.signers, needed)?;
        Ok(self.on_first_use())
    }
}

// === impl TrustedSet ===

impl TrustedSet {
    /// The signers that this machine's own configuration names.
    ///
    /// # Errors
    /// There are none.
    pub fn configured(trust_domain: &TrustDomain, signers: &TrustedSigners) -> Result<Self, BadSet> {
        let bytes = SignerSet::first(trust_domain, signers).encode();
        Ok(ReadSet::read(&bytes)?.on_first_use())
    }

    /// What it says.
    pub fn set(&self) -> &SignerSet {
        &self.set
    }

    /// Whose signatures count.
    pub fn signers(&self) -> &TrustedSigners {
        &self.signers
    }

    /// The signer of this name, if there is one.
    pub fn member(&self, name: &str) -> Option<Signer> {
        self.signers.signers().find(|signer| signer.name() == name)
    }

    /// Its place among all.
    pub fn version(&self) -> u64 {
        self.set.version
    }

    /// How many must sign the next one.
    pub fn quorum(&self) -> u32 {
        self.set.quorum
    }

    /// The digest by which the next one names it.
    pub fn digest(&self) -> Hash {
        self.digest
    }

    /// As it travels.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for TrustedSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustedSet({} of ", self.version())?;
        f.debug_list().entries(self.signers.names()).finish()?;
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signer::tests::{key, trusted};

    fn domain() -> TrustDomain {
        TrustDomain::parse("prod.example").unwrap()
    }

    #[test]
    fn what_no_set_says_is_refused() {
        let good = SignerSet::first(&domain(), &trusted(&["alice", "bob", "carol"]));
        assert_eq!((good.version(), good.quorum(), good.previous()), (1, 2, None));
        assert!(ReadSet::read(&good.encode()).is_ok());
        type Change = fn(&mut SignerSet);
        let cases: [(Change, &str); 11] = [
            (|set| set.format = 2, "format 2"),
            (|set| set.trust_domain = "no domain".into(), "trust domain"),
            (|set| set.version = 0, "version 1"),
            (|set| set.version = 2, "names the one before"),
            (|set| set.previous = Some(Hash::of(b"x")), "follows none"),
            (|set| set.quorum = 0, "a quorum of 0"),
            (|set| set.quorum = 4, "a quorum of 4 cannot be had of 3"),
            (|set| set.quorum = 1, "more than half"),
            (|set| set.signers.clear(), "no signers"),
            (|set| set.signers.reverse(), "out of order"),
            (|set| set.signers[1].key = set.signers[0].key, "same key"),
        ];
        for (change, expected) in cases {
            let mut set = good.clone();
            change(&mut set);
            let error = ReadSet::read(&set.encode()).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let signed = SignerSet::sign_too(&good.encode(), &key("alice")).unwrap();
        assert!(ReadSet::read(&signed).is_err(), "nobody signs a first set");
        assert!(TrustedSet::configured(&domain(), &trusted(&[])).is_err());
    }

    #[test]
    fn a_set_that_follows_changes_something() {
        let one = TrustedSet::configured(&domain(), &trusted(&["alice", "bob"])).unwrap();
        let same = SignerSet::after(&one, &trusted(&["alice", "bob"]), None);
        assert_eq!(same.unwrap_err(), BadSet::NoChange);
        let two = SignerSet::after(&one, &trusted(&["alice", "bob"]), Some(1)).unwrap();
        assert_eq!((two.version(), two.previous()), (2, Some(one.digest())));
        assert!(matches!(
            SignerSet::after(&one, &trusted(&["alice"]), Some(2)),
            Err(BadSet::Quorum { quorum: 2, signers: 1 })
        ));
    }

    #[test]
    fn the_largest_set_fits() {
        let names: Vec<String> = (0..SIGNERS_MAX).map(|n| format!("{n:064}")).collect();
        let signers = TrustedSigners::new(names.iter().map(|name| {
            let mut seed = [1; 32];
            seed.copy_from_slice(&Hash::of(name.as_bytes()).0);
            SigningKey::from_seed(name, seed.into()).unwrap().signer().clone()
        }))
        .unwrap();
        let one = TrustedSet::configured(&domain(), &signers).unwrap();
        assert_eq!(one.quorum() as usize, SIGNATURES_MAX);
        assert!(one.bytes().len() + SIGNATURES_MAX * 160 < SIGNER_SET_BYTES_MAX);
    }
}
