//! The envelope: bytes that people signed, and the blobs they name by digest.
//!
//! A CBOR map with integer keys. Its first entry says what is inside, and what is signed starts with the same words, so
//! that a signature under one kind of thing is none under another. Whatever is not exactly what [`Envelope::encode`]
//! writes is refused: one content, one text of it.

use crate::signer::{BadSigner, SigningKey, TrustedSigners};
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use ring::digest;
use std::fmt;

/// The most signatures one envelope carries.
pub const MAX_SIGNATURES: usize = 8;
/// The most blobs of one envelope: a file for each policy of the largest sets there are.
pub(crate) const MAX_BLOBS: usize = 128 * 1024;

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash(pub [u8; 32]);

/// Why signed bytes cannot be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealBroken {
    /// Longer than accepted.
    #[error("it has {bytes} bytes, more than the {max} accepted here; publish less, or raise the limit everywhere")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The longest that is accepted.
        max: usize,
    },
    /// Not what is written here, or not whole.
    #[error("it is not whole: {0}; publish it again")]
    Malformed(String),
    /// Nobody signed it.
    #[error("nobody signed it; sign it with a trusted key")]
    Unsigned,
    /// Signed by somebody who is not trusted here.
    #[error(
        "`{0}` signed it and is not trusted here; add the key to `policy_signers`, or have a trusted signer publish"
    )]
    UnknownSigner(String),
    /// The signature is not that signer's over these bytes.
    #[error("the signature of `{0}` does not hold; it was altered, or signed with another key; publish it again")]
    BadSignature(String),
}

/// What is signed, by whom, and what it names.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub(crate) struct Envelope {
    #[n(0)]
    kind: String,
    #[n(1)]
    #[cbor(with = "minicbor::bytes")]
    pub(crate) body: Vec<u8>,
    /// Sorted by name, distinct.
    #[cbor(n(2), decode_with = "at_most::<_, _, MAX_SIGNATURES>")]
    signatures: Vec<Signature>,
    /// Sorted by digest, distinct.
    #[cbor(n(3), decode_with = "at_most::<_, _, MAX_BLOBS>")]
    pub(crate) blobs: Vec<ByteVec>,
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

// === impl Hash ===

impl Hash {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hash = [0; 32];
        for (to, from) in hash.iter_mut().zip(digest::digest(&digest::SHA256, bytes).as_ref()) {
            *to = *from;
        }
        Self(hash)
    }

    /// The digest with these 32 bytes; `None` for any other length.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<C> Encode<C> for Hash {
    fn encode<W: minicbor::encode::Write>(
        &self,
        encoder: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        encoder.bytes(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Hash {
    fn decode(decoder: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
        Self::from_slice(decoder.bytes()?)
            .ok_or_else(|| minicbor::decode::Error::message("a SHA-256 digest has 32 bytes"))
    }
}

// === impl Envelope ===

impl Envelope {
    /// An envelope that nobody signed yet.
    pub(crate) fn new(kind: &str, body: Vec<u8>, blobs: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let mut blobs: Vec<(Hash, Vec<u8>)> = blobs.into_iter().map(|blob| (Hash::of(&blob), blob)).collect();
        blobs.sort_by_key(|(hash, _)| *hash);
        blobs.dedup_by_key(|(hash, _)| *hash);
        Self {
            kind: kind.to_owned(),
            body,
            signatures: Vec::new(),
            blobs: blobs.into_iter().map(|(_, blob)| blob.into()).collect(),
        }
    }

    /// Adds a signature; a second one of the same name takes the first one's place.
    ///
    /// # Errors
    /// The key cannot sign, or there are [`MAX_SIGNATURES`] of others: with one more nobody would read it.
    pub(crate) fn sign(&mut self, key: &SigningKey) -> Result<(), BadSigner> {
        let signer = key.signer().name().to_owned();
        let bytes = key.sign(&self.signed())?;
        self.signatures.retain(|signature| signature.signer != signer);
        if self.signatures.len() >= MAX_SIGNATURES {
            return Err(BadSigner::TooManySignatures);
        }
        self.signatures.push(Signature { signer, bytes });
        self.signatures.sort_by(|a, b| a.signer.cmp(&b.signer));
        Ok(())
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        to_cbor(self)
    }

    /// Reads what `encode` wrote. Nothing in it is believed yet.
    pub(crate) fn decode(kind: &str, bytes: &[u8], max_bytes: usize) -> Result<Self, SealBroken> {
        if bytes.len() > max_bytes {
            return Err(SealBroken::TooLarge {
                bytes: bytes.len(),
                max: max_bytes,
            });
        }
        let malformed = |why: &str| SealBroken::Malformed(why.to_owned());
        let envelope: Self = from_cbor(bytes).map_err(SealBroken::Malformed)?;
        if envelope.kind != kind {
            return Err(malformed("it is another kind of document"));
        }
        if envelope.encode() != bytes {
            return Err(malformed("it is not in the one form that is accepted"));
        }
        let names_rise = envelope.signatures.is_sorted_by(|a, b| a.signer < b.signer);
        if !names_rise {
            return Err(malformed("its signatures are out of order or doubled"));
        }
        Ok(envelope)
    }

    /// Every signature holds, and there is one.
    pub(crate) fn verify(&self, signers: &TrustedSigners) -> Result<(), SealBroken> {
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
        Ok(())
    }

    /// The names under the signatures, sorted and distinct.
    pub(crate) fn signed_by(&self) -> impl ExactSizeIterator<Item = &str> {
        self.signatures.iter().map(|signature| signature.signer.as_str())
    }

    /// What is signed: the kind, a NUL, and the body.
    fn signed(&self) -> Vec<u8> {
        [self.kind.as_bytes(), &[0], &self.body].concat()
    }
}

/// The one CBOR text of a value.
#[expect(
    clippy::expect_used,
    reason = "a Vec takes every write, and no field's encoder has an error of its own"
)]
pub(crate) fn to_cbor<T: Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("a Vec takes every write")
}

/// A list that is not longer than it may be. An item of one byte takes two dozen in memory, so nobody's list is built
/// before its length is known to be in bounds.
pub(crate) fn at_most<'b, T: Decode<'b, C>, C, const MOST: usize>(
    decoder: &mut minicbor::Decoder<'b>,
    context: &mut C,
) -> Result<Vec<T>, minicbor::decode::Error> {
    let mut list = Vec::new();
    for item in decoder.array_iter_with(context)? {
        if list.len() == MOST {
            return Err(minicbor::decode::Error::message("it has a list with too many items"));
        }
        list.push(item?);
    }
    Ok(list)
}

/// A value, and nothing after it.
pub(crate) fn from_cbor<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, String> {
    let mut decoder = minicbor::Decoder::new(bytes);
    let value = decoder.decode().map_err(|error| error.to_string())?;
    if decoder.position() != bytes.len() {
        return Err("bytes follow its end".to_owned());
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signer::tests::{key, trusted};

    #[test]
    fn a_signature_is_for_one_kind_and_one_body() {
        let mut envelope = Envelope::new("a v1", b"body".to_vec(), []);
        assert_eq!(envelope.verify(&trusted(&["alice"])), Err(SealBroken::Unsigned));
        envelope.sign(&key("bob")).unwrap();
        envelope.sign(&key("alice")).unwrap();
        envelope.sign(&key("bob")).unwrap();
        assert_eq!(envelope.signed_by().collect::<Vec<_>>(), ["alice", "bob"]);
        assert_eq!(envelope.verify(&trusted(&["alice", "bob", "carol"])), Ok(()));
        assert_eq!(
            envelope.verify(&trusted(&["alice"])),
            Err(SealBroken::UnknownSigner("bob".into()))
        );
        let mut other = envelope.clone();
        other.kind = "b v1".into();
        assert_eq!(
            other.verify(&trusted(&["alice", "bob"])),
            Err(SealBroken::BadSignature("alice".into()))
        );
        let mut other = envelope.clone();
        other.body = b"bodY".to_vec();
        assert!(other.verify(&trusted(&["alice", "bob"])).is_err());
        // Under another's name.
        let mut other = envelope;
        other.signatures.pop();
        other.signatures[0].signer = "bob".into();
        assert_eq!(
            other.verify(&trusted(&["alice", "bob"])),
            Err(SealBroken::BadSignature("bob".into()))
        );
    }

    #[test]
    fn only_the_one_form_is_read() {
        let mut envelope = Envelope::new("a v1", b"body".to_vec(), [b"2".to_vec(), b"1".to_vec(), b"2".to_vec()]);
        envelope.sign(&key("alice")).unwrap();
        envelope.sign(&key("bob")).unwrap();
        let bytes = envelope.encode();
        assert_eq!(envelope.blobs.len(), 2);
        assert_eq!(Envelope::decode("a v1", &bytes, bytes.len()).unwrap(), envelope);
        let check = |bytes: &[u8], max: usize, expected: &str| {
            let error = Envelope::decode("a v1", bytes, max).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(&bytes, bytes.len() - 1, "more than the");
        check(&[&bytes[..], &[0]].concat(), 999, "bytes follow its end");
        check(&Envelope::new("b v1", Vec::new(), []).encode(), 999, "another kind");
        check(b"", 999, "not whole");
        check(b"\xff", 999, "not whole");
        // The same map, of indefinite length.
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
        let mut envelope = Envelope::new("a v1", b"body".to_vec(), []);
        // Each is one byte of text, and all are the same: only the bound refuses them before the digests are compared.
        envelope.blobs = vec![ByteVec::from(Vec::new()); MAX_BLOBS + 1];
        let error = Envelope::decode("a v1", &envelope.encode(), usize::MAX).unwrap_err();
        assert!(error.to_string().contains("too many items"), "{error}");
        envelope.blobs.pop();
        assert!(Envelope::decode("a v1", &envelope.encode(), usize::MAX).is_ok());
        let signature = Signature {
            signer: String::new(),
            bytes: Vec::new(),
        };
        envelope.signatures = vec![signature; MAX_SIGNATURES + 1];
        let error = Envelope::decode("a v1", &envelope.encode(), usize::MAX).unwrap_err();
        assert!(error.to_string().contains("too many items"), "{error}");
    }

    #[test]
    fn nobody_signs_what_could_not_be_read() {
        let mut envelope = Envelope::new("a v1", b"body".to_vec(), []);
        for number in 0..MAX_SIGNATURES {
            envelope.sign(&key(&format!("s{number}"))).unwrap();
        }
        assert!(matches!(
            envelope.clone().sign(&key("one-more")),
            Err(BadSigner::TooManySignatures)
        ));
        envelope.sign(&key("s0")).unwrap();
        assert_eq!(Envelope::decode("a v1", &envelope.encode(), 9_999).unwrap(), envelope);
    }
}
