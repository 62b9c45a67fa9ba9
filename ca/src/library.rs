//! The policy bundles and manifests themselves, as files named by their digest; the store only names them.
//!
//! A bundle may be larger than a commit of the store, and the store's history would keep each one many times. A file is
//! on the disk before a commit names it, and is removed after a commit stopped naming it: whenever the process dies, what
//! is named is there.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hoplite_host::files::{self, FileError};
use hoplite_seal::Hash;

const BUNDLE: &str = "bundle";
const MANIFEST: &str = "manifest";

/// Bundles kept in memory, since every agent asks for them at the same moment: the live one, the shadow, and one that
/// somebody looks at.
const CACHED: usize = 3;

/// The directory of one CA.
pub(crate) struct Library {
    directory: PathBuf,
    /// The one that was used last at the end.
    cache: Mutex<VecDeque<(Hash, Arc<Vec<u8>>)>>,
}

/// Why a file cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LibraryError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("`{path}` is not what was written there; restore it from a backup, or publish the policies again", path = .0.display())]
    Damaged(PathBuf),
}

// === impl Library ===

impl Library {
    /// Opens the directory, which is made if it is not there.
    pub(crate) fn open(data_dir: &Path) -> Result<Self, FileError> {
        let directory = data_dir.join("policy");
        files::private_dir(&directory)?;
        Ok(Self {
            directory,
            cache: Mutex::default(),
        })
    }

    /// Removes what no commit names: left behind by a death, or by a publisher who lost a race.
    pub(crate) fn sweep(&self, bundles: &BTreeSet<Hash>, manifests: &BTreeSet<Hash>) {
        let named: BTreeSet<String> = bundles
            .iter()
            .map(|hash| format!("{hash}.{BUNDLE}"))
            .chain(manifests.iter().map(|hash| format!("{hash}.{MANIFEST}")))
            .collect();
        let Ok(listing) = fs::read_dir(&self.directory) else {
            return; // it was opened a moment ago; what cannot be listed is not in the way either
        };
        for file in listing.flatten() {
            let is_named = file.file_name().to_str().is_some_and(|name| named.contains(name));
            if !is_named && let Err(error) = fs::remove_file(file.path()) {
                tracing::warn!(file = %file.path().display(), %error, "cannot remove a file that nothing names");
            }
        }
    }

    /// On the disk when this returns. Nothing names them yet.
    pub(crate) fn put(&self, bundle: &[u8], manifest: &[u8]) -> Result<(), FileError> {
        files::write_private(&self.path(&Hash::of(manifest), MANIFEST), manifest)?;
        files::write_private(&self.path(&Hash::of(bundle), BUNDLE), bundle)
    }

    /// A bundle by its digest.
    pub(crate) fn bundle(&self, hash: &Hash) -> Result<Arc<Vec<u8>>, LibraryError> {
        // Held while the file is read: of ten thousand agents that ask after a restart, one makes a copy.
        let mut cache = self.cache();
        let found = cache.iter().position(|(cached, _)| cached == hash);
        let used = match found.and_then(|at| cache.remove(at)) {
            Some(used) => used,
            None => (*hash, Arc::new(self.read(hash, BUNDLE)?)),
        };
        let bytes = Arc::clone(&used.1);
        if cache.len() >= CACHED {
            cache.pop_front();
        }
        cache.push_back(used);
        Ok(bytes)
    }

    /// A manifest by its digest.
    pub(crate) fn manifest(&self, hash: &Hash) -> Result<Vec<u8>, LibraryError> {
        self.read(hash, MANIFEST)
    }

    /// Removes a bundle that nothing names any more; its manifest stays.
    pub(crate) fn remove_bundle(&self, hash: &Hash) {
        self.cache().retain(|(cached, _)| cached != hash);
        if let Err(error) = fs::remove_file(self.path(hash, BUNDLE)) {
            tracing::warn!(%hash, %error, "cannot remove an old policy bundle");
        }
    }

    fn read(&self, hash: &Hash, kind: &str) -> Result<Vec<u8>, LibraryError> {
        let path = self.path(hash, kind);
        let bytes = files::read_private(&path)?;
        if Hash::of(&bytes) != *hash {
            return Err(LibraryError::Damaged(path));
        }
        Ok(bytes)
    }

    fn path(&self, hash: &Hash, kind: &str) -> PathBuf {
        self.directory.join(format!("{hash}.{kind}"))
    }

    fn cache(&self) -> MutexGuard<'_, VecDeque<(Hash, Arc<Vec<u8>>)>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_stays_and_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let library = Library::open(dir.path()).unwrap();
        library.put(b"kept", b"m1").unwrap();
        library.put(b"lost", b"m2").unwrap();
        let (kept, lost) = (Hash::of(b"kept"), Hash::of(b"lost"));
        let manifests = [Hash::of(b"m1"), Hash::of(b"m2")].into();
        library.sweep(&[kept].into(), &manifests);
        assert_eq!(**library.bundle(&kept).unwrap(), *b"kept");
        assert!(library.bundle(&lost).is_err());
        assert_eq!(library.manifest(&Hash::of(b"m2")).unwrap(), b"m2");
        let first = library.bundle(&kept).unwrap();
        for n in [0_u8, 1, 2, 3] {
            library.put(&[n], b"m").unwrap();
            library.bundle(&Hash::of(&[n])).unwrap();
            assert!(
                Arc::ptr_eq(&first, &library.bundle(&kept).unwrap()),
                "what is in use stays"
            );
        }
        assert_eq!(library.cache().len(), CACHED);
        library.remove_bundle(&kept);
        assert!(library.bundle(&kept).is_err());

        let again = Library::open(dir.path()).unwrap();
        files::write_private(&again.path(&kept, BUNDLE), b"kepT").unwrap();
        let error = again.bundle(&kept).unwrap_err();
        assert!(matches!(error, LibraryError::Damaged(_)), "{error}");
    }
}
