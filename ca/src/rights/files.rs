//! The directory of admin policies: its `*.cedar` files, which nobody else may write.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hoplite_host::files::{self, FileError};
use hoplite_host::hand::{self, OtherHand};
use hoplite_policy::rules::RULES_BYTES_MAX;
use hoplite_policy::{Fault, Source};

/// More is a mistake in `admin_policy_dir`.
const FILES_MAX: usize = 256;

/// Faults that are told at once.
const TOLD_MAX: usize = 5;

/// Why the admin policies cannot be used. One sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RightsError {
    /// The directory cannot be read.
    #[error("`admin_policy_dir = {directory}` cannot be read: {source}; correct it, or leave it out for the default policy", directory = .directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file in it cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Somebody else could give themselves every right.
    #[error("whoever writes `admin_policy_dir` has every right here: {0}")]
    OtherHand(#[from] OtherHand),
    /// There are none.
    #[error("`admin_policy_dir = {}` has no `*.cedar` file, so nobody could do anything; put one there, or leave the setting out for the default policy", .0.display())]
    Empty(PathBuf),
    /// There are too many, or they are too long.
    #[error("`admin_policy_dir = {directory}` holds more than {FILES_MAX} files or {RULES_BYTES_MAX} bytes of policies; is it the right directory?", directory = .0.display())]
    TooMany(PathBuf),
    /// They do not compile.
    #[error("the admin policies cannot be used: {0}")]
    Faults(String),
}

// === impl RightsError ===

impl RightsError {
    pub(crate) fn faults(directory: Option<&Path>, faults: &[Fault]) -> Self {
        let told = faults.iter().take(TOLD_MAX).map(|fault| match directory {
            Some(directory) => format!("{}/{fault}", directory.display()),
            None => fault.to_string(),
        });
        let mut told = told.collect::<Vec<_>>().join("; ");
        if let Some(more) = faults.len().checked_sub(TOLD_MAX).filter(|more| *more > 0) {
            told.push_str(&format!("; and {more} more"));
        }
        Self::Faults(told)
    }
}

/// The policies of a directory, in the order of names, for a CA that acts as this user.
pub(crate) fn read(directory: &Path, user: u32) -> Result<Vec<Source>, RightsError> {
    let failed = |source| RightsError::Directory {
        directory: directory.to_owned(),
        source,
    };
    hand::check(directory, user).map_err(failed)??;
    let mut names = Vec::new();
    for found in fs::read_dir(directory).map_err(failed)? {
        let path = found.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // What an editor leaves begins with a dot.
        if name.ends_with(".cedar") && !name.starts_with('.') {
            names.push((name, path));
        }
        if names.len() > FILES_MAX {
            return Err(RightsError::TooMany(directory.to_owned()));
        }
    }
    if names.is_empty() {
        return Err(RightsError::Empty(directory.to_owned()));
    }
    names.sort();
    let mut sources = Vec::with_capacity(names.len());
    let mut bytes = 0_usize;
    for (name, path) in names {
        let metadata = fs::metadata(&path).map_err(failed)?;
        hand::check_metadata(&path, &metadata, user)?;
        let length = metadata.len();
        bytes = bytes.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
        if bytes > RULES_BYTES_MAX {
            return Err(RightsError::TooMany(directory.to_owned()));
        }
        let text = files::read_text(&path)?;
        sources.push(Source { name, text });
    }
    Ok(sources)
}
