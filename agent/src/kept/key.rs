//! The key that seals what is kept on the disk, and where it is from.

use std::fmt;
use std::path::{Path, PathBuf};

use hoplite_host::credentials;
use hoplite_host::files::{self, FileError};
use ring::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

/// In the data directory, when the configuration names no key.
pub(crate) const FILE: &str = "supply.key";

/// As many as the cipher's own key has.
const SECRET_BYTES_MIN: usize = 32;

/// Names a key without telling it.
pub(crate) type KeyName = [u8; 16];

/// Seals and opens. Nothing of it is ever printed.
pub(crate) struct StorageKey {
    prk: Prk,
    source: KeySource,
}

/// Where the key is from: what a thief of the disk needs besides the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeySource {
    /// The service manager's.
    Credential(PathBuf),
    /// A file that the configuration names.
    Named(PathBuf),
    /// A file in the data directory.
    Beside(PathBuf),
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoKey {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "`{file}` has {bytes} bytes, and a key has at least {SECRET_BYTES_MIN}: `head -c 32 /dev/urandom` makes one",
        file = .file.display()
    )]
    Short { file: PathBuf, bytes: usize },
    #[error(
        "{0}: `chmod 600` it and give it to the agent's user if nobody else can have read it, or remove it, and with it what it seals; then \
         start the agent again"
    )]
    Beside(FileError),
    #[error(
        "`{file}` has {bytes} bytes, and a key has {SECRET_BYTES_MIN}: put the right one in its place, or remove it, and with it what it \
         sealed; then start the agent again",
        file = .file.display()
    )]
    Other { file: PathBuf, bytes: usize },
    #[error("the system gives no random bytes")]
    Entropy,
}

/// How much of key material is wanted.
struct Length(usize);

// === impl StorageKey ===

impl StorageKey {
    /// That of the file which the configuration names; else the one in the data directory, which is made when there is none.
    /// One that is there and may have been read by others, or is no key, stays as it is: what it seals may be all that this node has
    /// while the CA is away, and whose fault it is only a person can tell.
    pub(crate) fn open(named: Option<&Path>, data_dir: &Path) -> Result<Self, NoKey> {
        if let Some(file) = named {
            let secret = Zeroizing::new(files::read_private(file)?);
            if secret.len() < SECRET_BYTES_MIN {
                return Err(NoKey::Short {
                    file: file.to_owned(),
                    bytes: secret.len(),
                });
            }
            let source = match credentials::is_one(file) {
                true => KeySource::Credential(file.to_owned()),
                false => KeySource::Named(file.to_owned()),
            };
            return Ok(Self::of(&secret, source));
        }
        let file = data_dir.join(FILE);
        match files::read_own(&file).map(Zeroizing::new) {
            Ok(secret) if secret.len() == SECRET_BYTES_MIN => return Ok(Self::of(&secret, KeySource::Beside(file))),
            Ok(secret) => {
                return Err(NoKey::Other {
                    bytes: secret.len(),
                    file,
                });
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(NoKey::Beside(error)),
        }
        let mut secret = Zeroizing::new([0; SECRET_BYTES_MIN]);
        SystemRandom::new().fill(&mut *secret).map_err(|_| NoKey::Entropy)?;
        files::write_private(&file, &*secret)?;
        Ok(Self::of(&*secret, KeySource::Beside(file)))
    }

    fn of(secret: &[u8], source: KeySource) -> Self {
        let prk = Salt::new(HKDF_SHA256, b"hoplite agent supply").extract(secret);
        Self { prk, source }
    }

    pub(crate) fn source(&self) -> &KeySource {
        &self.source
    }

    /// Tells one key from another.
    pub(crate) fn name(&self) -> Option<KeyName> {
        let mut name = KeyName::default();
        let info = [&b"name"[..]];
        self.prk.expand(&info, Length(name.len())).ok()?.fill(&mut name).ok()?;
        Some(name)
    }

    /// The cipher's key for one file of one node.
    pub(crate) fn for_file(&self, file_id: &[u8], owner: &str) -> Option<LessSafeKey> {
        let info = [&b"file"[..], file_id, owner.as_bytes()];
        let key = self.prk.expand(&info, &AES_256_GCM).ok()?;
        Some(LessSafeKey::new(UnboundKey::from(key)))
    }
}

impl fmt::Debug for StorageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StorageKey")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

// === impl KeySource ===

impl KeySource {
    /// For programs.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Credential(_) => "credential",
            Self::Named(_) => "file",
            Self::Beside(_) => "beside",
        }
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Credential(file) => {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                write!(f, "a credential of the service manager (`{name}`)")
            }
            Self::Named(file) => write!(f, "the file `{}`, which the configuration names", file.display()),
            Self::Beside(file) => write!(
                f,
                "the file `{}` in the same directory: it protects from nobody who can read both",
                file.display()
            ),
        }
    }
}

// === impl Length ===

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    /// What it seals may be all that the node has.
    #[test]
    fn a_key_is_made_once_and_one_that_is_no_good_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE);
        let open = || StorageKey::open(None, dir.path()).map(|key| key.name().unwrap());
        let first = open().unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(open().unwrap(), first);
        let secret = fs::read(&file).unwrap();
        let refused = |said: &str| {
            let before = fs::read(&file).unwrap();
            let error = open().unwrap_err().to_string();
            assert!(
                error.contains(said) && error.contains("start the agent again"),
                "{error}"
            );
            assert_eq!(fs::read(&file).unwrap(), before);
        };
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        refused("0644");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(open().unwrap(), first, "it is mended");
        files::write_private(&file, &[7; 31]).unwrap();
        refused("31 bytes");
        fs::rename(&file, dir.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", &file).unwrap();
        refused("it is a link");
        fs::remove_file(&file).unwrap();
        files::write_private(&file, &secret).unwrap();
        assert_eq!(open().unwrap(), first);
    }

    #[test]
    fn a_named_key_is_refused_rather_than_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("named");
        let open = || StorageKey::open(Some(&file), dir.path()).map_err(|error| error.to_string());
        assert!(open().unwrap_err().contains("named"));
        files::write_private(&file, &[1; 31]).unwrap();
        assert!(open().unwrap_err().contains("/dev/urandom"));
        files::write_private(&file, &[1; 32]).unwrap();
        let key = open().unwrap();
        assert_eq!(
            (key.source().word(), format!("{key:?}").contains("[1")),
            ("file", false)
        );
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(open().unwrap_err().contains("0640"));
        assert!(!dir.path().join(FILE).exists());
    }
}
