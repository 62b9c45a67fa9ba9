//! The SHA-256 digest by which signed documents and their blobs are named.

use data_encoding::HEXLOWER;
use minicbor::{Decode, Encode};
use ring::digest;
use std::fmt;

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash(pub [u8; 32]);

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
        HEXLOWER.encode_display(&self.0).fmt(f)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_32_bytes_and_shown_in_hex() {
        // FIPS 180-4, the digest of "abc".
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let hash = Hash::of(b"abc");
        assert_eq!(
            (hash.to_string(), format!("{hash:?}")),
            (abc.to_owned(), abc.to_owned())
        );
        assert_eq!(Hash::from_slice(&hash.0), Some(hash));
        for length in [0, 31, 33] {
            let bytes = vec![0; length];
            assert_eq!(Hash::from_slice(&bytes), None);
            let text = minicbor::to_vec(minicbor::bytes::ByteVec::from(bytes)).unwrap();
            assert!(minicbor::decode::<Hash>(&text).is_err(), "{length} bytes");
        }
        assert_eq!(
            minicbor::decode::<Hash>(&minicbor::to_vec(hash).unwrap()).unwrap(),
            hash
        );
    }
}
