//! The directory of a store on sled: its lock, what was acknowledged last, and how errors speak of it.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::format::{HEAD_BYTES, decode_head};
use crate::{Revision, StoreError};

/// sled's page cache, in bytes; its own default of 1 GiB is no bound at all. Whoever needs an answer at once has an index of
/// his own: the store is read when something is written.
const CACHE_BYTES: u64 = 4 << 20;

/// What sled writes and frees at once, in bytes. It frees a segment when half of it is dead; the smaller ones are, the nearer
/// the whole file stays to that half. A value larger than a quarter of it lies in a file of its own.
const SEGMENT_BYTES: usize = 128 << 10;

/// How long to wait for the sled of a store closed a moment ago in this process: its threads let go a little late.
const SLED_LOCK_WAIT: Duration = Duration::from_secs(5);

/// Directories below the store's own: sled's files for large values, and ours.
const DEEP: usize = 2;

/// A directory for one store.
#[derive(Clone)]
pub(super) struct StoreDir(PathBuf);

// === impl StoreDir ===

impl StoreDir {
    /// The directory, which is made (mode 0700) if it is not there.
    pub(super) fn make(path: &Path) -> Result<Self, StoreError> {
        let directory = Self(path.to_owned());
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|e| directory.io("make the directory", &e))?;
        Ok(directory)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn lock(&self) -> Result<File, StoreError> {
        let head = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.0.join("head"))
            .map_err(|e| self.io("open the head file", &e))?;
        match head.try_lock() {
            Ok(()) => Ok(head),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse { location: self.text() }),
            Err(TryLockError::Error(e)) => Err(self.io("lock the head file", &e)),
        }
    }

    /// What was last acknowledged; `None` in a new directory.
    pub(super) fn read_head(&self, head: &File) -> Result<Option<Revision>, StoreError> {
        let length = head.metadata().map_err(|e| self.io("read the head file", &e))?.len();
        if length == 0 {
            return Ok(None);
        }
        let mut bytes = [0; HEAD_BYTES];
        let read = head
            .read_exact_at(&mut bytes, 0)
            .ok()
            .and_then(|()| decode_head(&bytes));
        read.map(Some)
            .ok_or_else(|| self.damaged("the head file cannot be read".into()))
    }

    pub(super) fn open_sled(&self) -> Result<sled::Db, StoreError> {
        let config = sled::Config::new()
            .path(&self.0)
            .cache_capacity(CACHE_BYTES)
            .segment_size(SEGMENT_BYTES)
            // Every commit flushes, so the background flusher has nothing to do.
            .flush_every_ms(None);
        #[expect(
            clippy::disallowed_methods,
            reason = "how long a lock was waited for is nobody's argument"
        )]
        let started = Instant::now();
        loop {
            // Ours is the `head` lock, so nobody but a predecessor in this process can hold sled's.
            match self.guarded("open", || config.open()) {
                Err(StoreError::Io { problem, .. })
                    if problem.contains("could not acquire lock") && started.elapsed() < SLED_LOCK_WAIT =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                result => {
                    let db = result?;
                    close(&self.0, DEEP).map_err(|e| self.io("close its files to others", &e))?;
                    return Ok(db);
                }
            }
        }
    }

    /// sled panics on some damage where it could return an error; here both are an error.
    pub(super) fn guarded<T>(
        &self,
        action: &'static str,
        call: impl FnOnce() -> sled::Result<T>,
    ) -> Result<T, StoreError> {
        match catch_unwind(AssertUnwindSafe(call)) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(sled::Error::Io(e))) => Err(self.io(action, &e)),
            Ok(Err(other)) => Err(self.damaged(format!("cannot {action}: {other}"))),
            Err(_panic) => Err(self.damaged(format!("sled gave up on an attempt to {action}"))),
        }
    }

    fn text(&self) -> String {
        self.0.display().to_string()
    }

    pub(super) fn stopped(&self) -> StoreError {
        StoreError::Stopped { location: self.text() }
    }

    pub(super) fn damaged(&self, problem: String) -> StoreError {
        StoreError::Damaged {
            location: self.text(),
            problem,
        }
    }

    pub(super) fn damaged_item(&self, name: &[u8]) -> StoreError {
        self.damaged(format!("the checksum of item `{}` does not match", name.escape_ascii()))
    }

    pub(super) fn io(&self, action: &'static str, error: &io::Error) -> StoreError {
        StoreError::Io {
            location: self.text(),
            action,
            problem: plain(error),
            remedy: "check its owner, its mode and the free space",
        }
    }
}

/// sled writes some of the system's errors as programs do, `Os { code: 28, … }`.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    let shown = text.split_once("Os { code: ").and_then(|(before, rest)| {
        let code = rest.split([',', ' ']).next()?.parse().ok()?;
        Some(format!("{before}{}", io::Error::from_raw_os_error(code)))
    });
    shown.unwrap_or(text)
}

/// Takes from others what sled left them: it makes its files under whatever umask there is.
fn close(directory: &Path, deep: usize) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?; // of a link itself
        let mode = metadata.permissions().mode();
        if (metadata.is_dir() || metadata.is_file()) && mode & 0o077 != 0 {
            match fs::set_permissions(entry.path(), Permissions::from_mode(mode & 0o700)) {
                // sled tidies up by itself.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if metadata.is_dir() && deep > 0 {
            close(&entry.path(), deep - 1)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a predecessor in this process that has not quite gone, and the lock is waited for by what it says.
    #[test]
    fn an_error_of_the_system_is_a_sentence_and_keeps_what_it_is_about() {
        let sleds = "could not acquire lock on \"/d/db\": Os { code: 11, kind: WouldBlock, message: \"x\" }";
        let shown = plain(&io::Error::other(sleds));
        assert!(shown.starts_with("could not acquire lock on"), "{shown}");
        assert!(shown.contains("(os error 11)") && !shown.contains("kind:"), "{shown}");
        let full = plain(&io::Error::other("Os { code: 28, kind: StorageFull }"));
        assert_eq!(full, "No space left on device (os error 28)");
    }

    #[test]
    fn nothing_of_a_store_is_left_to_others() {
        let at = tempfile::tempdir().unwrap();
        let path = at.path().join("store");
        let directory = StoreDir::make(&path).unwrap();
        drop(directory.open_sled().unwrap());
        // As one that was made under an open umask, and grew.
        let blobs = path.join("blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join("1"), "a value").unwrap();
        for (entry, mode) in [(&path.join("db"), 0o666), (&blobs, 0o777), (&blobs.join("1"), 0o644)] {
            fs::set_permissions(entry, Permissions::from_mode(mode)).unwrap();
        }
        close(&path, DEEP).unwrap();
        let mode = |entry: &Path| fs::metadata(entry).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (
                mode(&path),
                mode(&path.join("db")),
                mode(&blobs),
                mode(&blobs.join("1"))
            ),
            (0o700, 0o600, 0o700, 0o600)
        );
        fs::set_permissions(path.join("db"), Permissions::from_mode(0o644)).unwrap();
        drop(directory.open_sled().unwrap());
        for entry in fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap().path();
            assert_eq!(mode(&entry) & 0o077, 0, "{}", entry.display());
        }
    }
}
