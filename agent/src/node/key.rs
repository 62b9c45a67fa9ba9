//! Private keys: made on this node, P-256, and never shown.

use std::fmt;

use hoplite_identity::{PrivatePkcs8KeyDer, pem};
use rcgen::{CertificateParams, KeyPair};
use zeroize::Zeroizing;

/// A private key that has no certificate yet.
pub(crate) struct Key(KeyPair);

/// A key that cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
#[error("the private key cannot be used: {0}")]
pub(crate) struct KeyError(#[from] rcgen::Error);

// === impl Key ===

impl Key {
    pub(crate) fn generate() -> Result<Self, KeyError> {
        Ok(Self(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?))
    }

    pub(crate) fn from_pkcs8(key: &PrivatePkcs8KeyDer<'_>) -> Result<Self, KeyError> {
        Ok(Self(KeyPair::try_from(key)?))
    }

    pub(crate) fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let der = pem::private_key(pem).map_err(|_| rcgen::Error::CouldNotParseKeyPair)?;
        Self::from_pkcs8(&PrivatePkcs8KeyDer::from(der.as_slice()))
    }

    pub(crate) fn to_pem(&self) -> Zeroizing<String> {
        pem::write_private_key(&Zeroizing::new(self.0.serialize_der()))
    }

    /// A certificate request in DER. The CA takes only the public key from it.
    pub(crate) fn csr(&self) -> Result<Vec<u8>, KeyError> {
        Ok(CertificateParams::default().serialize_request(&self.0)?.der().to_vec())
    }

    pub(crate) fn into_pkcs8(self) -> PrivatePkcs8KeyDer<'static> {
        self.0.serialize_der().into()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn w_8_keys_are_pkcs8_version_1() {
        let der = Key::generate().unwrap().into_pkcs8();
        // SEQUENCE (short or long length), then INTEGER 0: PKCS#8 version 1, which every client reads.
        let der = der.secret_pkcs8_der();
        let header = if der[1] & 0x80 == 0 {
            2
        } else {
            2 + usize::from(der[1] & 0x7f)
        };
        assert_eq!(der[header..header + 3], [2, 1, 0]);
    }

    #[test]
    fn a_key_survives_its_pem_and_is_never_shown() {
        let key = Key::generate().unwrap();
        let pem = key.to_pem();
        assert_eq!(format!("{key:?}"), "Key { .. }");
        assert_eq!(Key::from_pem(&pem).unwrap().into_pkcs8(), key.into_pkcs8());
        for bad in [
            "",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            &pem[..60],
        ] {
            let error = Key::from_pem(bad).unwrap_err().to_string();
            assert!(!error.contains("BEGIN"), "{error}");
        }
    }
}
