//! One agent for one data directory.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Why a data directory is not this process' own.
#[derive(Debug, thiserror::Error)]
pub enum NotSole {
    /// An agent runs with it.
    #[error("another agent uses `{dir}`; stop it first", dir = .0.display())]
    Used(PathBuf),
    /// It cannot be locked.
    #[error("cannot lock `{dir}`: {source}", dir = .dir.display())]
    Lock {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The lock of a data directory, for as long as the file is open.
pub(crate) fn sole_writer(dir: &Path) -> Result<File, NotSole> {
    let locked = File::open(dir).and_then(|file| {
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(file)
    });
    locked.map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => NotSole::Used(dir.to_owned()),
        _ => NotSole::Lock {
            dir: dir.to_owned(),
            source,
        },
    })
}
