//! The signing key. It lives in one type that only signs.
//!
//! Everything that signs takes rcgen's `SigningKey`, which [`Signer`] is: a key in a hardware module takes its place by
//! being one too.

use std::path::Path;

use hoplite_host::files::{self, FileError};
use hoplite_identity::pem;
use rcgen::{PublicKeyData, SigningKey};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use zeroize::Zeroizing;

/// A P-256 key that signs. Its secret half cannot be read back out of it.
pub(crate) struct Signer(EcdsaKeyPair);

/// Why there is no key to sign with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignerError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is there, but no key is in it.
    #[error("`{path}` is not a P-256 key in PKCS#8 PEM; restore it from a backup")]
    NotAKey {
        /// The file.
        path: String,
    },
    /// The system's random numbers failed.
    #[error("cannot make a key: the system gives no random numbers")]
    Generate,
}

// === impl Signer ===

impl Signer {
    /// Reads the key in `path`; `None` when there is no such file.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>, SignerError> {
        let text = match files::read_private(path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let not_a_key = || SignerError::NotAKey {
            path: path.display().to_string(),
        };
        let text = std::str::from_utf8(&text).map_err(|_| not_a_key())?;
        let der = pem::private_key(text).map_err(|_| not_a_key())?;
        Self::from_pkcs8(&der).map(Some).ok_or_else(not_a_key)
    }

    /// Makes a key and writes it to `path`, mode 0600. On the disk before this returns.
    pub(crate) fn generate(path: &Path) -> Result<Self, SignerError> {
        let key = rcgen::KeyPair::generate().map_err(|_| SignerError::Generate)?;
        files::write_private(
            path,
            pem::write_private_key(&Zeroizing::new(key.serialize_der())).as_bytes(),
        )?;
        Self::load(path)?.ok_or(SignerError::Generate)
    }

    fn from_pkcs8(der: &[u8]) -> Option<Self> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der, &SystemRandom::new());
        key.ok().map(Self)
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
        self.0.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = self
            .0
            .sign(&SystemRandom::new(), message)
            .map_err(|_| rcgen::Error::RingUnspecified)?;
        Ok(signature.as_ref().to_vec())
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer(P-256)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_private_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("authority.key");
        assert!(Signer::load(&path).unwrap().is_none());
        let made = Signer::generate(&path).unwrap();
        let loaded = Signer::load(&path).unwrap().unwrap();
        assert_eq!(made.der_bytes(), loaded.der_bytes());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!format!("{loaded:?}").contains("PRIVATE"));
    }

    #[test]
    fn what_is_no_key_is_refused_by_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("authority.key");
        let pem = |key: rcgen::KeyPair| pem::write_private_key(&key.serialize_der());
        let p384 = pem(rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap());
        let good = pem(rcgen::KeyPair::generate().unwrap());
        for bad in ["", "secret", &p384, &good[..good.len() / 2]] {
            files::write_private(&path, bad.as_bytes()).unwrap();
            let error = Signer::load(&path).unwrap_err().to_string();
            assert!(error.contains("authority.key") && !error.contains("secret"), "{error}");
        }
    }
}
