//! The envelope: bytes that people signed, and the blobs they name by digest.
//!
//! A CBOR map with integer keys. Its first entry says what is inside, and what is signed starts with the same words, so
//! that a signature under one kind of document is none under another. Whatever is not exactly what [`Envelope::encode`]
//! writes is refused: one content, one text of it.

use crate::cbor::{self, at_most};
use crate::digest::Hash;
use crate::signer::{BadSigner, SigningKey, TrustedSigners};
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use std::fmt;

/// The most signatures one envelope carries.
pub const SIGNATURES_MAX: usize = 8;
/// The most blobs of one envelope: a file for each policy of the largest sets there are.
pub const BLOBS_MAX: usize = 128 * 1024;

/// What a document is, in words that are signed with it: `hoplite policy bundle v1`. No two kinds of document share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kind(&'static str);

/// Why signed bytes cannot be believed. What to do about it depends on the document, and is said by whoever opens it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealBroken {
    /// Longer than accepted.
    #[error("it has {bytes} bytes, more than the {max} accepted here")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The longest that is accepted.
        max: usize,
    },
    /// Not what is written here, or not whole.
    #[error("it is not whole: {0}")]
    Malformed(String),
    /// Nobody signed it.
    #[error("nobody signed it")]
    Unsigned,
    /// Signed by somebody who is not trusted here.
    #[error("`{0}` signed it and is not trusted here")]
    UnknownSigner(String),
    /// The signature is not that signer's over these bytes.
    #[error("the signature of `{0}` does not hold; it was altered, or signed with another key")]
    BadSignature(String),
    /// Every signature holds, and there are fewer than are needed.
    #[error("only {signed} signed it, and {needed} trusted people must", signed = Names(.signed_by))]
    TooFewSigners {
        /// Who signed it, sorted.
        signed_by: Vec<String>,
        /// How many must.
        needed: usize,
    },
}

/// Why a document was not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotSigned {
    /// There is no key to sign with.
    #[error("there is no key to sign it with; name one")]
    NoKey,
    /// One more signature would be more than an envelope carries.
    #[error("{SIGNATURES_MAX} people signed it already, and with more nobody reads it; sign with fewer keys")]
    TooMany,
    /// The key cannot sign.
    #[error(transparent)]
    Key(#[from] BadSigner),
}

/// What is signed, by whom, and what it names.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Envelope {
    #[n(0)]
    kind: String,
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    body: Vec<u8>,
    /// Sorted by name, distinct.
    #[cbor(n(2), decode_with = "at_most::<_, _, SIGNATURES_MAX>")]
    signatures: Vec<Signature>,
    /// Sorted by digest, distinct.
    #[cbor(n(3), decode_with = "at_most::<_, _, BLOBS_MAX>")]
    blobs: Vec<ByteVec>,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
struct Signature {
    #[n(0)]
    signer: String,
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    bytes: Vec<u8>,
}

// === impl Kind ===

impl Kind {
    /// A kind of these words. They end where the document begins, so no NUL is among them.
    pub const fn new(words: &'static str) -> Self {
        let mut rest = words.as_bytes();
        assert!(!rest.is_empty(), "a kind has a name");
        while let [first, others @ ..] = rest {
            assert!(*first != 0, "a NUL ends the name of a kind");
            rest = others;
        }
        Self(words)
    }
}

// === impl Envelope ===

impl Envelope {
    /// An envelope that nobody signed yet.
    pub fn new(kind: Kind, body: Vec<u8>, blobs: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let mut blobs: Vec<(Hash, Vec<u8>)> = blobs.into_iter().map(|blob| (Hash::of(&blob), blob)).collect();
        blobs.sort_by_key(|(hash, _)| *hash);
        blobs.dedup_by_key(|(hash, _)| *hash);
        Self {
            kind: kind.0.to_owned(),
            body,
            signatures: Vec::new(),
            blobs: blobs.into_iter().map(|(_, blob)| blob.into()).collect(),
        }
    }

    /// Adds a signature; a second one of the same name takes the first one's place.
    ///
    /// # Errors
    /// The key cannot sign, or there are [`SIGNATURES_MAX`] of others: with one more nobody would read it.
    pub fn sign(&mut self, key: &SigningKey) -> Result<(), NotSigned> {
        let signer = key.signer().name().to_owned();
        let bytes = key.sign(&self.signed())?;
        self.signatures.retain(|signature| signature.signer != signer);
        if self.signatures.len() >= SIGNATURES_MAX {
            return Err(NotSigned::TooMany);
        }
        self.signatures.push(Signature { signer, bytes });
        self.signatures.sort_by(|a, b| a.signer.cmp(&b.signer));
        Ok(())
    }

    /// The envelope as it travels.
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    /// Reads what [`encode`](Self::encode) wrote. Nothing in it is believed yet.
    ///
    /// # Errors
    /// It is longer than `max_bytes`, of another kind, or not in the one form that is accepted.
    pub fn decode(kind: Kind, bytes: &[u8], max_bytes: usize) -> Result<Self, SealBroken> {
        if bytes.len() > max_bytes {
            return Err(SealBroken::TooLarge {
                bytes: bytes.len(),
                max: max_bytes,
            });
        }
        let malformed = |why: &str| SealBroken::Malformed(why.to_owned());
        let envelope: Self = cbor::decode_lenient(bytes).map_err(|why| malformed(&why.to_string()))?;
        // What it is comes before how it is written: whoever mixed up two files is told so.
        if envelope.kind != kind.0 {
            return Err(malformed("it is another kind of document"));
        }
        if envelope.encode() != bytes {
            return Err(malformed(&cbor::Malformed::OtherForm.to_string()));
        }
        let names_rise = envelope.signatures.is_sorted_by(|a, b| a.signer < b.signer);
        if !names_rise {
            return Err(malformed("its signatures are out of order or doubled"));
        }
        Ok(envelope)
    }

    /// Every signature holds, and so many trusted people signed; never fewer than one.
    ///
    /// # Errors
    /// The first signature that does not count, or that there are too few.
    pub fn verify(&self, signers: &TrustedSigners, needed: usize) -> Result<(), SealBroken> {
        if self.signatures.is_empty() {
            return Err(SealBroken::Unsigned);
        }
        let message = self.signed();
        for Signature { signer, bytes } in &self.signatures {
            let shown = || signer.escape_debug().take(80).collect();
            match signers.verify(signer, &message, bytes) {
                Some(true) => {}
                Some(false) => return Err(SealBroken::BadSignature(shown())),
                None => return Err(SealBroken::UnknownSigner(shown())),
            }
        }
        // INVARIANT: names under an envelope are distinct, and `TrustedSigners` gives no two names one key, so as many
        // signatures that hold are as many people's.
        if self.signatures.len() < needed {
            return Err(SealBroken::TooFewSigners {
                signed_by: self.signed_by().map(str::to_owned).collect(),
                needed,
            });
        }
        Ok(())
    }

    /// The document.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The digest of the document: what it is called, whoever signed it.
    pub fn digest(&self) -> Hash {
        Hash::of(&self.body)
    }

    /// What the document names by digest, in no order that is promised.
    pub fn blobs(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.blobs.iter().map(|blob| blob.as_slice())
    }

    /// The names under the signatures, sorted and distinct.
    pub fn signed_by(&self) -> impl ExactSizeIterator<Item = &str> {
        self.signatures.iter().map(|signature| signature.signer.as_str())
    }

    /// What is signed: the kind, a NUL, and the body.
    fn signed(&self) -> Vec<u8> {
        [self.kind.as_bytes(), &[0], &self.body].concat()
    }
}

/// Names as people read them.
struct Names<'a>(&'a [String]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, name) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}`{name}`")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signer::tests::{key, trusted};

    const A: Kind = Kind::new("a v1");
    const B: Kind = Kind::new("b v1");

    #[test]
    fn a_signature_is_for_one_kind_and_one_body() {
        let mut envelope = Envelope::new(A, b"body".to_vec(), []);
        assert_eq!(envelope.verify(&trusted(&["alice"]), 1), Err(SealBroken::Unsigned));
        envelope.sign(&key("bob")).unwrap();
        envelope.sign(&key("alice")).unwrap();
        envelope.sign(&key("bob")).unwrap();
        assert_eq!(envelope.signed_by().collect::<Vec<_>>(), ["alice", "bob"]);
        assert_eq!(envelope.verify(&trusted(&["alice", "bob", "carol"]), 1), Ok(()));
        assert_eq!(
            envelope.verify(&trusted(&["alice"]), 1),
            Err(SealBroken::UnknownSigner("bob".into()))
        );
        let all = trusted(&["alice", "bob"]);
        assert_eq!(envelope.verify(&all, 2), Ok(()));
        let few = envelope.verify(&all, 3).unwrap_err();
        assert_eq!(
            few.to_string(),
            "only `alice`, `bob` signed it, and 3 trusted people must"
        );
        let mut other = envelope.clone();
        other.kind = B.0.into();
        assert_eq!(
            other.verify(&trusted(&["alice", "bob"]), 1),
            Err(SealBroken::BadSignature("alice".into()))
        );
        let mut other = envelope.clone();
        other.body = b"bodY".to_vec();
        assert!(other.verify(&trusted(&["alice", "bob"]), 1).is_err());
        // Under another's name.
        let mut other = envelope;
        other.signatures.pop();
        other.signatures[0].signer = "bob".into();
        assert_eq!(
            other.verify(&trusted(&["alice", "bob"]), 1),
            Err(SealBroken::BadSignature("bob".into()))
        );
    }

    #[test]
    fn only_the_one_form_is_read() {
        let mut envelope = Envelope::new(A, b"body".to_vec(), [b"2".to_vec(), b"1".to_vec(), b"2".to_vec()]);
        envelope.sign(&key("alice")).unwrap();
        envelope.sign(&key("bob")).unwrap();
        let bytes = envelope.encode();
        assert_eq!(envelope.blobs.len(), 2);
        assert_eq!(Envelope::decode(A, &bytes, bytes.len()).unwrap(), envelope);
        let check = |bytes: &[u8], max: usize, expected: &str| {
            let error = Envelope::decode(A, bytes, max).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(&bytes, bytes.len() - 1, "more than the");
        check(&[&bytes[..], &[0]].concat(), 999, "bytes follow its end");
        check(&Envelope::new(B, Vec::new(), []).encode(), 999, "another kind");
        check(b"", 999, "not whole");
        check(b"\xff", 999, "not whole");
        // An envelope as a map of indefinite length.
        let mut indefinite = bytes.clone();
        indefinite[0] = 0xbf;
        indefinite.push(0xff);
        check(&indefinite, 999, "the one form");
        let mut swapped = envelope.clone();
        swapped.signatures.swap(0, 1);
        check(&swapped.encode(), 999, "out of order");
        let mut doubled = envelope;
        doubled.signatures[1] = doubled.signatures[0].clone();
        check(&doubled.encode(), 999, "doubled");
    }

    #[test]
    fn lists_are_bounded_before_they_are_built() {
        let mut envelope = Envelope::new(A, b"body".to_vec(), []);
        // Each is one byte of text, and all are the same: only the bound refuses them before the digests are compared.
        envelope.blobs = vec![ByteVec::from(Vec::new()); BLOBS_MAX + 1];
        let error = Envelope::decode(A, &envelope.encode(), usize::MAX).unwrap_err();
        assert!(error.to_string().contains("too many items"), "{error}");
        envelope.blobs.pop();
        assert!(Envelope::decode(A, &envelope.encode(), usize::MAX).is_ok());
        let signature = Signature {
            signer: String::new(),
            bytes: Vec::new(),
        };
        envelope.signatures = vec![signature; SIGNATURES_MAX + 1];
        let error = Envelope::decode(A, &envelope.encode(), usize::MAX).unwrap_err();
        assert!(error.to_string().contains("too many items"), "{error}");
    }

    #[test]
    fn nobody_signs_what_could_not_be_read() {
        let mut envelope = Envelope::new(A, b"body".to_vec(), []);
        for number in 0..SIGNATURES_MAX {
            envelope.sign(&key(&format!("s{number}"))).unwrap();
        }
        assert!(matches!(
            envelope.clone().sign(&key("one-more")),
            Err(NotSigned::TooMany)
        ));
        envelope.sign(&key("s0")).unwrap();
        assert_eq!(Envelope::decode(A, &envelope.encode(), 9_999).unwrap(), envelope);
    }
}
