//! Whether a data directory is whole: a CA whose store was lost does not found itself anew without being told.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hoplite_host::files::{self, FileError};
use hoplite_store::Revision;

use crate::backup::files::SCRATCH;

/// What is beside the store and outlives it.
const EVIDENCE: [&str; 4] = ["authority.key", "jwt.key", "bundle.pem", NOTE];

/// The revision that the store had when the CA started last.
const NOTE: &str = "store-revision";

/// May a trust domain begin here?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Founding {
    /// No: it was founded before.
    Never,
    /// In a directory in which none was.
    WhereNoneWas,
    /// No, and its authority may have ended while the CA was away: the operator says that another one is to take its place.
    NewAuthority,
    /// Also where one was: the operator says that its store is lost for good.
    Anew,
}

/// Why the data directory is not used. One sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FoundingError {
    /// The store is gone, and something is left of the CA that had it.
    #[error(
        "there is no store in `{store}`, but `{evidence}` says that a CA was here: restore the store from a backup or mount its disk; \
         `hoplite ca restore` makes a CA of a backup, `--init` begins with an empty store, and every agent must join and every entry be registered anew",
        store = .store.display(), evidence = .evidence.display()
    )]
    StoreLost {
        /// Where it should be.
        store: PathBuf,
        /// What is left.
        evidence: PathBuf,
    },
    /// There is nothing, and nothing says that this is the first day.
    #[error(
        "there is no CA in `data_dir = {directory}`: mount its disk, if that is not mounted, or make it again of a backup with \
         `hoplite ca restore`. If there never was one: `hoplite ca init` founds one, as does `--init`, or `founds = true` in the configuration",
        directory = .directory.display()
    )]
    NoCa {
        /// The data directory.
        directory: PathBuf,
    },
    /// The store is an older copy.
    #[error(
        "the store in `{store}` ends at revision {found}, and it had {noted} when the CA started last: it is an older copy, without what was \
         registered, banned or published since; restore the newest one, or remove `{note}` to go on with it, and restart the agents, \
         which have seen newer ones",
        store = .store.display(), note = .note.display()
    )]
    StoreOlder {
        /// Where it is.
        store: PathBuf,
        /// What it has.
        found: Revision,
        /// What it had.
        noted: Revision,
        /// The file that says so.
        note: PathBuf,
    },
    /// A restore is at work.
    #[error("`hoplite ca restore` is making a CA in `{scratch}`: wait until it has ended", scratch = .scratch.display())]
    Restoring {
        /// Where.
        scratch: PathBuf,
    },
    /// A restore was broken off.
    #[error(
        "a restore was broken off: `{scratch}` is half of a CA; run `hoplite ca restore` again, which begins anew",
        scratch = .scratch.display()
    )]
    RestoreBrokenOff {
        /// What it left.
        scratch: PathBuf,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The note is not one of ours.
    #[error("`{path}` is no revision; remove it if the store is the newest there is", path = .path.display())]
    Note {
        /// The note.
        path: PathBuf,
    },
}

/// Before the store is opened, which would make one: whether there is one, or there never was.
///
/// A first start that was interrupted leaves a store and perhaps a key, never a key alone: the store is made first.
pub(crate) fn check_store(
    data_dir: &Path,
    store: &Path,
    is_there: bool,
    founding: Founding,
) -> Result<(), FoundingError> {
    let scratch = data_dir.join(SCRATCH);
    if scratch.exists() {
        if files::is_locked(&scratch) {
            return Err(FoundingError::Restoring { scratch });
        }
        return Err(FoundingError::RestoreBrokenOff { scratch });
    }
    if founding == Founding::Anew || is_there {
        return Ok(());
    }
    match EVIDENCE
        .iter()
        .map(|name| data_dir.join(name))
        .find(|path| path.exists())
    {
        Some(evidence) => Err(FoundingError::StoreLost {
            store: store.to_owned(),
            evidence,
        }),
        None if matches!(founding, Founding::Never | Founding::NewAuthority) => Err(FoundingError::NoCa {
            directory: data_dir.to_owned(),
        }),
        None => Ok(()),
    }
}

/// After it was opened: whether it is as new as it was at the last start. From here on no older one is taken.
pub(crate) fn check_revision(
    data_dir: &Path,
    store: &Path,
    found: Revision,
    founding: Founding,
) -> Result<(), FoundingError> {
    let note = data_dir.join(NOTE);
    let noted = match files::read_private(&note) {
        Ok(bytes) => {
            let text = String::from_utf8(bytes).unwrap_or_default();
            let noted = text.trim_end().parse().ok();
            noted.ok_or_else(|| FoundingError::Note { path: note.clone() })?
        }
        Err(error) if error.is_not_found() => 0,
        Err(error) => return Err(error.into()),
    };
    if found < noted && founding != Founding::Anew {
        return Err(FoundingError::StoreOlder {
            store: store.to_owned(),
            found,
            noted,
            note,
        });
    }
    if found != noted {
        files::write_private(&note, format!("{found}\n").as_bytes())?;
    }
    Ok(())
}

/// Whether a store was ever acknowledged there: its head is not empty.
pub(crate) fn is_store(store: &Path) -> bool {
    let head: io::Result<fs::Metadata> = fs::metadata(store.join("head"));
    head.is_ok_and(|head| head.len() > 0)
}
