//! A key that signs: in memory, or in hardware. Nothing else in Hoplite knows which.
//!
//! Everything that signs takes rcgen's `SigningKey`, which [`Signer`] is.

use hoplite_host::files::FileError;
use hoplite_pkcs11::{TokenError, TokenKey};
use rcgen::{PublicKeyData, SigningKey};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

use crate::authority::sealing::SealingError;

/// A number of P-256, in bytes. Two of them are a signature (RFC 7518 §3.4).
const NUMBER_BYTES: usize = 32;

/// A P-256 key that signs. Its secret half cannot be read back out of it.
pub(crate) struct Signer(Key);

enum Key {
    Memory(Box<EcdsaKeyPair>),
    Token(TokenKey),
}

/// Why there is no key to sign with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignerError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is there, but no key is in it.
    #[error("`{path}` holds something that is not a P-256 key in PKCS#8 PEM; restore it from a backup")]
    NotAKey {
        /// The file.
        path: String,
    },
    /// It is sealed, and nothing opens it.
    #[error(
        "{place} is sealed, and the configuration names no secret that opens it; write `secret_file` under `[keys]`: the file with the secret by which it was sealed"
    )]
    NoSecret {
        /// Where the key is.
        place: String,
    },
    /// What seals keys cannot be used.
    #[error(transparent)]
    Sealing(#[from] SealingError),
    /// The token is away.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The system's random numbers failed.
    #[error("cannot make a key: the system gives no random numbers")]
    Generate,
}

// === impl Signer ===

impl Signer {
    pub(crate) fn from_pkcs8(der: &[u8]) -> Option<Self> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der, &SystemRandom::new());
        key.ok().map(|key| Self(Key::Memory(Box::new(key))))
    }

    pub(crate) fn in_token(key: TokenKey) -> Self {
        Self(Key::Token(key))
    }

    /// Why it cannot sign now, if it lies in hardware that is away.
    pub(crate) fn away(&self) -> Option<String> {
        match &self.0 {
            Key::Memory(_) => None,
            Key::Token(key) => key.away(),
        }
    }

    /// The signature as JWS has it: both numbers in a row (RFC 7518 §3.4).
    pub(crate) fn sign_in_a_row(&self, message: &[u8]) -> Option<Vec<u8>> {
        match &self.0 {
            Key::Memory(_) => in_a_row(&self.sign(message).ok()?),
            Key::Token(key) => key.sign(message).ok(),
        }
    }

    /// A key that no file holds.
    #[cfg(test)]
    pub(crate) fn ephemeral() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        Self::from_pkcs8(&key.serialize_der()).unwrap()
    }
}

impl PublicKeyData for Signer {
    fn der_bytes(&self) -> &[u8] {
        match &self.0 {
            Key::Memory(key) => key.public_key().as_ref(),
            Key::Token(key) => key.point(),
        }
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        match &self.0 {
            Key::Memory(key) => {
                let signature = key.sign(&SystemRandom::new(), message);
                Ok(signature.map_err(|_| rcgen::Error::RingUnspecified)?.as_ref().to_vec())
            }
            Key::Token(key) => {
                let row = key.sign(message).map_err(|_| rcgen::Error::RemoteKeyError)?;
                in_der(&row).ok_or(rcgen::Error::RemoteKeyError)
            }
        }
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer(P-256)")
    }
}

/// Both numbers of an ECDSA signature in DER, each with all its bytes.
fn in_a_row(der: &[u8]) -> Option<Vec<u8>> {
    let (tag, rest) = der.split_first()?;
    let (length, mut rest) = rest.split_first()?;
    if *tag != 0x30 || usize::from(*length) != rest.len() {
        return None;
    }
    let mut row = Vec::with_capacity(2 * NUMBER_BYTES);
    for _ in 0..2 {
        let (tag, after) = rest.split_first()?;
        let (length, after) = after.split_first()?;
        let (number, after) = after.split_at_checked(usize::from(*length))?;
        // A leading zero keeps a number positive, and is none of its digits.
        let digits = match number {
            [0, digits @ ..] => digits,
            digits => digits,
        };
        row.resize(
            row.len() + NUMBER_BYTES.checked_sub(digits.len()).filter(|_| *tag == 2)?,
            0,
        );
        row.extend(digits);
        rest = after;
    }
    rest.is_empty().then_some(row)
}

/// The other way round.
fn in_der(row: &[u8]) -> Option<Vec<u8>> {
    let (r, s) = row.split_at_checked(NUMBER_BYTES)?;
    if s.len() != NUMBER_BYTES {
        return None;
    }
    let mut numbers = Vec::with_capacity(2 * NUMBER_BYTES + 6);
    for number in [r, s] {
        let first = number.iter().position(|byte| *byte != 0)?;
        let digits = number.get(first..)?;
        let is_negative = digits.first().is_some_and(|byte| byte & 0x80 != 0);
        numbers.push(2);
        numbers.push(u8::try_from(digits.len() + usize::from(is_negative)).ok()?);
        numbers.extend(is_negative.then_some(0));
        numbers.extend(digits);
    }
    let mut der = vec![0x30, u8::try_from(numbers.len()).ok()?];
    der.extend(numbers);
    Some(der)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_have_all_their_bytes() {
        let check = |der: &[u8], expected: Option<(u8, u8)>| {
            let row = in_a_row(der);
            let ends = row.as_ref().map(|row| {
                assert_eq!(row.len(), 64);
                (row[31], row[63])
            });
            assert_eq!(ends, expected, "{der:?}");
            if let Some(row) = row {
                assert_eq!(in_der(&row).as_deref(), Some(der), "and back");
            }
        };
        check(&[0x30, 6, 2, 1, 7, 2, 1, 9], Some((7, 9)));
        check(&[0x30, 7, 2, 2, 0, 200, 2, 1, 9], Some((200, 9)));
        check(&[0x30, 6, 2, 1, 7, 4, 1, 9], None);
        check(&[0x30, 5, 2, 1, 7, 2, 1], None);
        check(&[0x30, 7, 2, 1, 7, 2, 1, 9, 0], None);
        check(&[], None);
        for row in [&[0; 64][..], &[1; 63], &[1; 65], &[]] {
            assert_eq!(in_der(row), None);
        }
        let signer = Signer::ephemeral();
        for n in 0..200_u8 {
            let der = signer.sign(&[n]).unwrap();
            assert_eq!(in_der(&in_a_row(&der).unwrap()).unwrap(), der);
        }
    }
}
