//! Large values as files named by their digest, beside sled and not in it.
//!
//! sled would read all of them when it opens, hold each twice while it is written, and give the space back late. A file is
//! written under another name, synced, renamed, and its directory synced: under its own name it is whole, or not there.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use super::dir::StoreDir;
use crate::{LARGE_BYTES_MAX, LargeId};

/// What the name of a file that is being written ends in.
const UNFINISHED: &str = ".tmp";

/// The directory of large values of one store.
pub(super) struct LargeFiles {
    directory: PathBuf,
    unfinished: AtomicU64,
}

/// A file that is on the disk under a name that nobody looks for.
pub(super) struct Written {
    from: PathBuf,
    to: PathBuf,
}

// === impl LargeFiles ===

impl LargeFiles {
    /// Opens the directory, which is made if it is not there, and removes what a death left unfinished: the store's lock
    /// says that nobody is writing.
    pub(super) fn open(store: &StoreDir) -> io::Result<Self> {
        let directory = store.path().join("large");
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        for file in directory.read_dir()? {
            let file = file?;
            if file.file_name().as_encoded_bytes().ends_with(UNFINISHED.as_bytes()) {
                fs::remove_file(file.path())?;
            }
        }
        Ok(Self {
            directory,
            unfinished: AtomicU64::new(0),
        })
    }

    /// The slow part, for which nobody need wait.
    pub(super) fn write(&self, id: &LargeId, bytes: &[u8], now: SystemTime) -> io::Result<Written> {
        let number = self.unfinished.fetch_add(1, Ordering::Relaxed);
        let from = self.directory.join(format!("{id}.{number}{UNFINISHED}"));
        let written = (|| {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&from)?;
            file.write_all(bytes)?;
            file.set_modified(now)?;
            file.sync_all()
        })();
        let file = Written {
            from,
            to: self.path(id),
        };
        match written {
            Ok(()) => Ok(file),
            Err(error) => {
                let _ = fs::remove_file(file.from); // of two failures the first is told
                Err(error)
            }
        }
    }

    /// Gives a written file its name, for good when this returns. Not while a sweep runs or a commit looks.
    pub(super) fn finish(&self, file: &Written) -> io::Result<()> {
        fs::rename(&file.from, &file.to).inspect_err(|_| {
            let _ = fs::remove_file(&file.from);
        })?;
        let synced = File::open(&self.directory).and_then(|directory| directory.sync_all());
        synced.inspect_err(|_| {
            // A commit that finds it would take it for durable.
            let _ = fs::remove_file(&file.to);
        })
    }

    pub(super) fn has(&self, id: &LargeId) -> io::Result<bool> {
        self.path(id).try_exists()
    }

    /// `None` when it is not there; not yet compared with its digest.
    pub(super) fn read(&self, id: &LargeId) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(self.path(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut bytes = Vec::new();
        file.take(LARGE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Removes files that are not `named` and were put before then, and says which values they were. Not while a value is finished or a commit looks.
    pub(super) fn sweep(&self, named: &BTreeSet<String>, put_before: SystemTime) -> io::Result<Vec<LargeId>> {
        let mut removed = Vec::new();
        for file in self.directory.read_dir()? {
            let file = file?;
            let name = file.file_name();
            let spared = name
                .to_str()
                .is_none_or(|name| named.contains(name) || name.ends_with(UNFINISHED));
            if !spared && file.metadata()?.modified()? < put_before {
                fs::remove_file(file.path())?;
                removed.extend(name.to_str().and_then(LargeId::parse));
            }
        }
        Ok(removed)
    }

    pub(super) fn path(&self, id: &LargeId) -> PathBuf {
        self.directory.join(id.to_string())
    }
}
