//! The signing keys: each lives in a type that only signs, and all that are needed in one file.
//!
//! Everything that signs takes rcgen's `SigningKey`, which [`Signer`] is: a key in a hardware module takes its place by
//! being one too.

use std::path::{Path, PathBuf};

use hoplite_host::files::{self, FileError};
use hoplite_identity::pem;
use rcgen::{PublicKeyData, SigningKey};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use zeroize::Zeroizing;

/// A P-256 key that signs. Its secret half cannot be read back out of it.
pub(crate) struct Signer(EcdsaKeyPair);

/// The file of the keys that sign, or will: PEM, one after the other. It changes as a whole or not at all.
#[derive(Debug, Clone)]
pub(crate) struct Keyring {
    path: PathBuf,
}

/// Where the text of a key ends.
const END: &str = "-----END PRIVATE KEY-----";

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
    /// The system's random numbers failed.
    #[error("cannot make a key: the system gives no random numbers")]
    Generate,
}

// === impl Keyring ===

impl Keyring {
    /// In this data directory.
    pub(crate) fn of(data_dir: &Path) -> Self {
        let path = data_dir.join("authority.key");
        Self { path }
    }

    /// Those for JWT-SVIDs, in this data directory.
    pub(crate) fn of_jwt(data_dir: &Path) -> Self {
        let path = data_dir.join("jwt.key");
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The keys, oldest first; none when there is no file.
    pub(crate) fn signers(&self) -> Result<Vec<Signer>, SignerError> {
        let sections = self.sections()?;
        let signers = sections.iter().map(|section| self.signer(section));
        signers.collect()
    }

    /// Makes one more. On the disk before this returns, for a certificate without a key would be of no use.
    pub(crate) fn make(&self) -> Result<Signer, SignerError> {
        // Nothing is written beside what cannot be read.
        self.signers()?;
        let mut sections = self.sections()?;
        let key = rcgen::KeyPair::generate().map_err(|_| SignerError::Generate)?;
        let section = pem::write_private_key(&Zeroizing::new(key.serialize_der()));
        let signer = self.signer(&section)?;
        sections.push(section);
        self.write(&sections)?;
        Ok(signer)
    }

    /// Forgets all but these: what signs no more can be stolen no more.
    pub(crate) fn keep(&self, is_needed: impl Fn(&Signer) -> bool) -> Result<(), SignerError> {
        let mut sections = self.sections()?;
        let before = sections.len();
        let mut kept = Vec::new();
        for section in sections.drain(..) {
            if is_needed(&self.signer(&section)?) {
                kept.push(section);
            }
        }
        // None needed would mean that the certificates are lost: then the keys are not to be.
        match kept.len() == before || kept.is_empty() {
            true => Ok(()),
            false => self.write(&kept),
        }
    }

    /// The text of each.
    fn sections(&self) -> Result<Vec<Zeroizing<String>>, SignerError> {
        let text = match files::read_private(&self.path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let text = std::str::from_utf8(&text).map_err(|_| self.not_a_key())?;
        let sections: Vec<_> = text
            .split_inclusive(END)
            .map(str::trim)
            .filter(|section| !section.is_empty())
            .map(|section| Zeroizing::new(format!("{section}\n")))
            .collect();
        match sections.is_empty() {
            true => Err(self.not_a_key()),
            false => Ok(sections),
        }
    }

    fn signer(&self, section: &str) -> Result<Signer, SignerError> {
        let der = pem::private_key(section).map_err(|_| self.not_a_key())?;
        Signer::from_pkcs8(&der).ok_or_else(|| self.not_a_key())
    }

    fn write(&self, sections: &[Zeroizing<String>]) -> Result<(), SignerError> {
        let mut text = Zeroizing::new(String::with_capacity(
            sections.iter().map(|section| section.len()).sum(),
        ));
        for section in sections {
            text.push_str(section);
        }
        Ok(files::write_private(&self.path, text.as_bytes())?)
    }

    fn not_a_key(&self) -> SignerError {
        SignerError::NotAKey {
            path: self.path.display().to_string(),
        }
    }
}

// === impl Signer ===

impl Signer {
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
    fn keys_are_private_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let keyring = Keyring::of(dir.path());
        assert!(keyring.signers().unwrap().is_empty());
        let made: Vec<Signer> = (0..3).map(|_| keyring.make().unwrap()).collect();
        let points = |signers: &[Signer]| Vec::from_iter(signers.iter().map(|signer| signer.der_bytes().to_vec()));
        let loaded = keyring.signers().unwrap();
        assert_eq!(points(&made), points(&loaded));
        let mode = std::fs::metadata(keyring.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!format!("{loaded:?}").contains("PRIVATE"));
        keyring
            .keep(|signer| signer.der_bytes() != made[1].der_bytes())
            .unwrap();
        let (all, left) = (points(&made), points(&keyring.signers().unwrap()));
        assert_eq!(left, [all[0].clone(), all[2].clone()]);
        keyring.keep(|_| false).unwrap();
        assert_eq!(points(&keyring.signers().unwrap()), left, "they are all there is");
    }

    #[test]
    fn what_is_no_key_is_refused_by_path() {
        let dir = tempfile::tempdir().unwrap();
        let keyring = Keyring::of(dir.path());
        let pem = |key: rcgen::KeyPair| pem::write_private_key(&key.serialize_der());
        let p384 = pem(rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap());
        let good = pem(rcgen::KeyPair::generate().unwrap());
        for bad in [
            "",
            "secret",
            &p384,
            &good[..good.len() / 2],
            &format!("{}secret", *good),
        ] {
            files::write_private(keyring.path(), bad.as_bytes()).unwrap();
            let error = keyring.signers().unwrap_err().to_string();
            assert!(error.contains("authority.key") && !error.contains("secret"), "{error}");
            assert!(keyring.make().is_err(), "nothing is written over");
        }
    }
}
