//! What is kept over a restart: the last good policy of a directory, or the last bundle.

use std::io;
use std::path::{Path, PathBuf};

use hoplite_host::files;
use hoplite_policy::Source;
use tracing::warn;

/// The last good policy of the directory.
const DIRECTORY: &str = "policy.last";
/// The last bundle that was in force.
const BUNDLE: &str = "policy.bundle";

/// Files of one process in a directory of its own.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    dir: PathBuf,
}

// === impl Kept ===

impl Kept {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub(crate) fn keep_directory(&self, sources: &[Source]) {
        let texts: Vec<(&str, &str)> = sources.iter().map(|source| (&*source.name, &*source.text)).collect();
        match serde_json::to_vec(&texts) {
            Ok(bytes) => self.write(DIRECTORY, &bytes),
            Err(error) => warn!(%error, "the policy in force is not kept for the next start"),
        }
    }

    pub(crate) fn directory(&self) -> Option<Vec<Source>> {
        let bytes = files::read_private(&self.dir.join(DIRECTORY)).ok()?;
        let texts: Vec<(String, String)> = serde_json::from_slice(&bytes).ok()?;
        Some(texts.into_iter().map(|(name, text)| Source { name, text }).collect())
    }

    pub(crate) fn forget_directory(&self) {
        let _ = std::fs::remove_file(self.dir.join(DIRECTORY));
    }

    pub(crate) fn keep_bundle(&self, bytes: &[u8]) {
        self.write(BUNDLE, bytes);
    }

    /// `None` when there never was one.
    pub(crate) fn bundle(&self) -> Option<Result<Vec<u8>, String>> {
        let path = self.dir.join(BUNDLE);
        match std::fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            _ => Some(
                files::read_private(&path)
                    .map(|bytes| bytes.to_vec())
                    .map_err(|error| error.to_string()),
            ),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        if let Err(error) = files::write_private(&self.dir.join(name), bytes) {
            warn!(%error, name, "the policy in force is not kept for the next start");
        }
    }
}
