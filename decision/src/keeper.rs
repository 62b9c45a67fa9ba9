//! The keeper: what is held of signed policy, and the last good directory, as private files in a directory of their own.
//!
//! It knows bytes and names. What it reads back is verified by the [`Holding`] that goes on with it. Each file is written
//! whole or not at all; bundles are written before the state, since they say themselves what was accepted.

use std::path::{Path, PathBuf};

use hoplite_host::files::{self, FileError};
use hoplite_policy::Source;
use hoplite_policy::bundle::{Seen, Stage};
use hoplite_policy::holding::{Holding, KeptPolicy, Unreadable};
use tracing::warn;

/// Beside the bundles: what was accepted last, and the grants.
const STATE: &str = "policy.state";
/// The last good policy of the directory.
const DIRECTORY: &str = "policy.last";

/// Keeps a [`Holding`]. What is held is in force whether or not it can be kept: a full disk keeps no policy away, and no
/// revocation. Whoever could not keep it asks again.
#[derive(Debug)]
pub struct Keeper {
    directory: PathBuf,
    state: Vec<u8>,
    live: OnDisk,
    shadow: OnDisk,
}

/// Keeps the last good files of a policy directory.
#[derive(Debug)]
pub(crate) struct DirectoryKeeper(PathBuf);

/// What lies in the place of a bundle.
#[derive(Debug, PartialEq, Eq)]
enum OnDisk {
    /// Something, or nothing: not looked at since the start.
    Unknown,
    Nothing,
    Bundle(Seen),
}

// === impl Keeper ===

impl Keeper {
    /// The keeper of a directory, and what is there for [`Holding::restore`].
    ///
    /// # Errors
    /// The state cannot be read, so that what was ever accepted is not known.
    pub fn open(directory: &Path) -> Result<(Self, KeptPolicy), FileError> {
        let state = match files::read_private(&directory.join(STATE)) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        let bundle = |stage: Stage| match files::read_private(&directory.join(file_name(stage))) {
            Err(error) if error.is_not_found() => None,
            read => Some(read.map_err(Unreadable::of)),
        };
        let kept = KeptPolicy {
            state: state.clone().map(Ok),
            live: bundle(Stage::Live),
            shadow: bundle(Stage::Shadow),
        };
        let on_disk = |kept: &Option<_>| {
            if kept.is_some() {
                OnDisk::Unknown
            } else {
                OnDisk::Nothing
            }
        };
        let keeper = Self {
            directory: directory.to_owned(),
            // Nothing need be written down of one that holds nothing.
            state: state.unwrap_or_else(|| Holding::default().state()),
            live: on_disk(&kept.live),
            shadow: on_disk(&kept.shadow),
        };
        Ok((keeper, kept))
    }

    /// Writes down what is not yet.
    ///
    /// # Errors
    /// A file cannot be written. What was written counts; the rest is written when this is called again.
    pub fn keep(&mut self, holding: &Holding) -> Result<(), FileError> {
        for stage in [Stage::Live, Stage::Shadow] {
            let path = self.directory.join(file_name(stage));
            let on_disk = match stage {
                Stage::Live => &mut self.live,
                Stage::Shadow => &mut self.shadow,
            };
            match holding.bundle(stage) {
                Some(held) if *on_disk != OnDisk::Bundle(held.seen()) => {
                    files::write_private(&path, held.bytes())?;
                    *on_disk = OnDisk::Bundle(held.seen());
                }
                Some(_) => {}
                // A file that could not be used stays where it is, until there is another or it has ended.
                None if *on_disk != OnDisk::Nothing && holding.lost(stage).is_none() => {
                    files::remove(&path)?;
                    *on_disk = OnDisk::Nothing;
                }
                None => {}
            }
        }
        let state = holding.state();
        if state != self.state {
            files::write_private(&self.directory.join(STATE), &state)?;
            self.state = state;
        }
        Ok(())
    }
}

fn file_name(stage: Stage) -> String {
    format!("policy-{stage}.bundle")
}

// === impl DirectoryKeeper ===

impl DirectoryKeeper {
    pub(crate) fn new(directory: &Path) -> Self {
        Self(directory.join(DIRECTORY))
    }

    pub(crate) fn keep(&self, sources: &[Source]) {
        let texts: Vec<(&str, &str)> = sources.iter().map(|source| (&*source.name, &*source.text)).collect();
        let written = serde_json::to_vec(&texts).map(|bytes| files::write_private(&self.0, &bytes));
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "the policy in force is not kept for the next start"),
            Err(error) => warn!(%error, "the policy in force is not kept for the next start"),
        }
    }

    pub(crate) fn read(&self) -> Option<Vec<Source>> {
        let bytes = files::read_private(&self.0).ok()?;
        let texts: Vec<(String, String)> = serde_json::from_slice(&bytes).ok()?;
        Some(texts.into_iter().map(|(name, text)| Source { name, text }).collect())
    }

    pub(crate) fn forget(&self) {
        if let Err(error) = files::remove(&self.0) {
            warn!(%error, "the policy that was taken away is kept for the next start");
        }
    }
}
