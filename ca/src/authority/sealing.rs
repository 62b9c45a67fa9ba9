//! Keys as they lie on a disk or in a database: sealed, under a secret that lies elsewhere.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::BASE64;
use hoplite_host::credentials;
use hoplite_host::files::{self, FileError};
use hoplite_seal::scrypt;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

/// As many as the cipher's own key has: such a secret is random, and anything shorter may be a passphrase.
const RANDOM_BYTES_MIN: usize = 32;

/// The shortest passphrase.
const PASSPHRASE_BYTES_MIN: usize = 12;

/// The longest secret.
const SECRET_BYTES_MAX: usize = 4096;

/// The work that one guess of a passphrase takes: 2^15 blocks of a KiB, 32 MiB.
const WORK_LOG2: u8 = 15;

/// The only version.
const VERSION: u8 = 1;

/// Seals keys, and opens them. Clones are the same one; nothing of it is ever printed.
#[derive(Clone)]
pub(crate) struct SealingKey {
    key: Arc<LessSafeKey>,
    file: PathBuf,
}

/// Why there is nothing to seal with, or what was sealed does not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealingError {
    /// The secret cannot be read.
    #[error("the secret that seals the keys cannot be had: {0}")]
    File(#[from] FileError),
    /// It is none.
    #[error(
        "`{file}` has {bytes} bytes, and a secret that seals keys has {PASSPHRASE_BYTES_MIN} to {SECRET_BYTES_MAX}: `openssl rand -hex 32` makes one",
        file = .file.display()
    )]
    Length {
        /// The file.
        file: PathBuf,
        /// What is in it.
        bytes: usize,
    },
    /// Another secret sealed it, or it is damaged.
    #[error(
        "the secret in `{file}` does not open the CA's keys: it is another one, or what is sealed was changed; put the one in its place that sealed them",
        file = .file.display()
    )]
    Other {
        /// The secret's file.
        file: PathBuf,
    },
    /// No random numbers.
    #[error("the system gives no random numbers, or too little memory")]
    System,
}

// === impl SealingKey ===

impl SealingKey {
    /// By the secret in this file: a passphrase, or random bytes.
    ///
    /// # Errors
    /// It cannot be read, others may have read it, or it is too short.
    pub(crate) fn open(file: &Path) -> Result<Self, SealingError> {
        let bytes = Zeroizing::new(files::read_private(file)?);
        let secret = bytes.trim_ascii_end();
        if !(PASSPHRASE_BYTES_MIN..=SECRET_BYTES_MAX).contains(&secret.len()) {
            let (file, bytes) = (file.to_owned(), secret.len());
            return Err(SealingError::Length { file, bytes });
        }
        let salt = b"hoplite ca keys v1";
        let stretched;
        let material: &[u8] = match secret.len() >= RANDOM_BYTES_MIN {
            true => secret,
            false => {
                stretched = scrypt(secret, salt, WORK_LOG2).ok_or(SealingError::System)?;
                &*stretched
            }
        };
        let prk = Salt::new(HKDF_SHA256, salt).extract(material);
        let key = prk.expand(&[b"seal"], &AES_256_GCM).map_err(|_| SealingError::System)?;
        Ok(Self {
            key: Arc::new(LessSafeKey::new(UnboundKey::from(key))),
            file: file.to_owned(),
        })
    }

    /// Where the secret is from, for people.
    pub(crate) fn source(&self) -> String {
        match credentials::is_one(&self.file) {
            true => format!(
                "the credential `{}`",
                self.file.file_name().unwrap_or_default().to_string_lossy()
            ),
            false => format!("the secret in `{}`", self.file.display()),
        }
    }

    /// Base64 of a sealed key. It opens as what it was sealed for, and nothing else.
    pub(crate) fn seal(&self, what: &str, key: &[u8]) -> Result<String, SealingError> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| SealingError::System)?;
        let mut sealed = Zeroizing::new(key.to_vec());
        let tag = self
            .key
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad(what)), &mut sealed)
            .map_err(|_| SealingError::System)?;
        let all = [&[VERSION], &nonce[..], &sealed, tag.as_ref()].concat();
        Ok(BASE64.encode(&all))
    }

    /// The key.
    pub(crate) fn open_sealed(&self, what: &str, sealed: &str) -> Result<Zeroizing<Vec<u8>>, SealingError> {
        let other = || SealingError::Other {
            file: self.file.clone(),
        };
        let text: String = sealed.chars().filter(|char| !char.is_ascii_whitespace()).collect();
        let mut all = Zeroizing::new(BASE64.decode(text.as_bytes()).map_err(|_| other())?);
        let (version, rest) = all.split_first_mut().ok_or_else(other)?;
        let (nonce, sealed) = rest.split_at_mut_checked(NONCE_LEN).ok_or_else(other)?;
        let nonce: [u8; NONCE_LEN] = (*nonce).try_into().map_err(|_| other())?;
        if *version != VERSION {
            return Err(other());
        }
        let key = self
            .key
            .open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(aad(what)), sealed)
            .map_err(|_| other())?;
        Ok(Zeroizing::new(key.to_vec()))
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealingKey")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

fn aad(what: &str) -> Vec<u8> {
    [b"hoplite sealed key\0", what.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_opens_with_its_secret_as_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str, secret: &[u8]| {
            let file = dir.path().join(name);
            files::write_private(&file, secret).unwrap();
            SealingKey::open(&file)
        };
        let key = open("secret", b"correct horse battery\n").unwrap();
        let sealed = key.seal("authority", b"key").unwrap();
        assert!(!sealed.contains("key"));
        assert_eq!(**key.open_sealed("authority", &sealed).unwrap(), *b"key");
        let same = open("same", b"correct horse battery").unwrap();
        assert_eq!(**same.open_sealed("authority", &sealed).unwrap(), *b"key");
        let random = open("random", &[7; 32]).unwrap();
        for (by, what, text) in [
            (&random, "authority", sealed.clone()),
            (&key, "jwt", sealed.clone()),
            (&key, "authority", sealed.replacen('A', "B", 1)),
            (&key, "authority", String::new()),
            (&key, "authority", "?".to_owned()),
        ] {
            let error = by.open_sealed(what, &text).unwrap_err().to_string();
            assert!(error.contains("does not open"), "{error}");
        }
        let error = open("short", b"12345678901\n").unwrap_err().to_string();
        assert!(error.contains("11 bytes") && error.contains("openssl"), "{error}");
        assert!(SealingKey::open(&dir.path().join("none")).is_err());
        assert!(!format!("{key:?}").contains("horse"));
    }
}
