//! How a node is taken out: all that its agent keeps on the disk is removed, and named.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use hoplite_host::credentials;
use hoplite_host::files::{self, FileError};
use hoplite_host::socket;
use hoplite_identity::SpiffeId;
use rustix::fs::OFlags;

use crate::config::Config;
use crate::joining;
use crate::kept::lock::{NotSole, sole_writer};
use crate::node::keeper;

/// What an agent writes into its data directory. What begins with one of these and a point is a half of it.
const OWN: [&str; 9] = [
    keeper::FILE,
    joining::FIRST_BUNDLE,
    joining::SCRATCH,
    crate::kept::key::FILE,
    crate::kept::log::HEAD,
    "policy.state",
    "policy.last",
    "policy.signers",
    "authorization",
];

/// Those with a secret that opens others: written over before they go, for whatever that is worth on this disk.
const KEYS: [&str; 2] = [keeper::FILE, crate::kept::key::FILE];

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purged {
    /// Whose node this was, as far as it was known. The CA knows it still.
    pub spiffe_id: Option<SpiffeId>,
    /// What is gone.
    pub removed: Vec<PathBuf>,
    /// What lies in the data directory and is not the agent's.
    pub left: Vec<PathBuf>,
    /// What the configuration names besides, and is somebody else's to remove.
    pub elsewhere: Vec<PathBuf>,
}

/// Why nothing, or not all, was removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PurgeError {
    /// An agent runs.
    #[error("an agent answers at `{}`; stop it first", .0.display())]
    Runs(PathBuf),
    /// An agent runs, or another purge.
    #[error(transparent)]
    NotSole(#[from] NotSole),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The directory, or a file in it.
    #[error("cannot remove `{path}`: {source}", path = .path.display())]
    Remove {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Removes all that the agent of this configuration keeps on the disk: its identity, what it supplied, its policy, its join
/// token. Decision records are evidence, and stay. May be repeated after an error.
///
/// # Errors
/// [`PurgeError`]. Nothing is removed while an agent runs.
pub fn purge(config: &Config) -> Result<Purged, PurgeError> {
    purge_in(&config.data_dir, &config.socket, Some(config))
}

/// The same of a machine that has no configuration: a join that failed leaves its key.
///
/// # Errors
/// [`PurgeError`]. Nothing is removed while an agent runs.
pub fn purge_unconfigured(data_dir: &Path, socket: &Path) -> Result<Purged, PurgeError> {
    purge_in(data_dir, socket, None)
}

fn purge_in(dir: &Path, socket: &Path, config: Option<&Config>) -> Result<Purged, PurgeError> {
    // Who may not ask the socket is kept out by the directory.
    if matches!(socket::is_gone(socket), Ok(false)) {
        return Err(PurgeError::Runs(socket.to_owned()));
    }
    let mut purged = Purged {
        spiffe_id: None,
        removed: Vec::new(),
        left: Vec::new(),
        elsewhere: config
            .and_then(|config| config.supply_key_file.clone())
            .into_iter()
            .collect(),
    };
    match config.and_then(|config| config.join_token_file.as_ref()) {
        Some(file) if credentials::is_one(file) => purged.elsewhere.push(file.clone()),
        Some(file) if file.exists() => {
            wipe(file)?;
            files::remove(file)?;
            purged.removed.push(file.clone());
        }
        _ => {}
    }
    if !dir.exists() {
        return Ok(purged);
    }
    let _lock = sole_writer(dir)?;
    // A damaged one has no name to tell, and is removed all the same.
    let own = config.and_then(|config| joining::membership(config).ok().flatten());
    purged.spiffe_id = own.map(|own| own.spiffe_id);
    let authorization = config.and_then(|config| config.authorization.as_ref());
    let evidence = authorization.map(|authorization| &authorization.audit_dir);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| PurgeError::Remove { path, source }
    };
    let mut there: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed(dir))? {
        there.push(entry.map_err(failed(dir))?.path());
    }
    // Those that open others last: what an interrupted purge leaves is as sealed as it was.
    there.sort_by_key(|path| (KEYS.iter().any(|key| path.ends_with(key)), path.clone()));
    for path in there {
        let holds_evidence = evidence.is_some_and(|evidence| evidence.starts_with(&path));
        if !is_own(&path) || holds_evidence {
            purged.left.push(path);
            continue;
        }
        let metadata = path.symlink_metadata().map_err(failed(&path))?;
        if metadata.is_dir() {
            files::remove_dir(&path)?;
        } else {
            if metadata.is_file() && KEYS.iter().any(|key| path.ends_with(key)) {
                wipe(&path)?;
            }
            files::remove(&path)?;
        }
        purged.removed.push(path);
    }
    if purged.left.is_empty() {
        match fs::remove_dir(dir) {
            Ok(()) => purged.removed.push(dir.to_owned()),
            // Its parent is somebody else's, as that of a service's state directory: an empty one is nothing.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(failed(dir)(error)),
        }
    }
    Ok(purged)
}

fn is_own(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is_half = |own: &&str| {
        let rest = name.strip_prefix(*own);
        rest.is_some_and(|rest| rest.is_empty() || (rest.starts_with('.') && rest.ends_with(".tmp")))
    };
    OWN.iter().any(is_half) || crate::kept::log::is_log(&name) || name.starts_with(".probe-")
}

/// Writes zeros over a file, and nothing over what a link leads to.
fn wipe(path: &Path) -> Result<(), PurgeError> {
    let wiped = || {
        let flags = OFlags::NOFOLLOW.bits().cast_signed();
        let mut file = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
        let length = file.metadata()?.len();
        io::copy(&mut io::repeat(0).take(length), &mut file)?;
        file.sync_all()
    };
    match wiped() {
        // A link is removed, and not what it leads to.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => Ok(()),
        wiped => wiped.map_err(|source| PurgeError::Remove {
            path: path.to_owned(),
            source,
        }),
    }
}
