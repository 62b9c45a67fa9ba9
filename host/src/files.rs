//! Files and directories that only their owner may touch, written whole or not at all.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A file operation that failed: what was tried, on what, why, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} `{path}`: {source}{remedy}", path = .path.display())]
pub struct FileError {
    verb: &'static str,
    path: PathBuf,
    remedy: &'static str,
    source: io::Error,
}

/// Makes a directory (and its parents) that only its owner may enter, and checks that it can be written.
pub fn private_dir(path: &Path) -> Result<(), FileError> {
    let failed = |source| FileError {
        verb: "use the directory",
        path: path.to_owned(),
        remedy: "; choose a directory this user may write",
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed)?;
    let probe = path.join(format!(".probe-{}", std::process::id()));
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&probe)
        .map_err(failed)?;
    fs::remove_file(&probe).map_err(failed)
}

/// Writes a file only its owner may read (0600): complete and on the disk, or as it was before.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_atomically(path, bytes, 0o600)
}

/// Writes a file everybody may read (0644): complete and on the disk, or as it was before.
pub fn write_public(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_atomically(path, bytes, 0o644)
}

/// Reads a secret. A file that others may read is refused: whoever read it may still have it.
pub fn read_private(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |source, remedy| FileError {
        verb: "read",
        path: path.to_owned(),
        remedy,
        source,
    };
    let mode = fs::metadata(path).map_err(|e| failed(e, ""))?.mode();
    if mode & 0o077 != 0 {
        let source = io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("its mode {:04o} lets others in", mode & 0o7777),
        );
        return Err(failed(
            source,
            "; replace the secret, or `chmod 600` the file if nobody can have read it",
        ));
    }
    fs::read(path).map_err(|e| failed(e, ""))
}

/// Reads a text file.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    fs::read_to_string(path).map_err(|source| FileError {
        verb: "read",
        path: path.to_owned(),
        remedy: "",
        source,
    })
}

fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let failed = |source| FileError {
        verb: "write",
        path: path.to_owned(),
        remedy: "; check the directory and free space",
        source,
    };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        file.set_permissions(Permissions::from_mode(mode))?; // an older file of that name keeps its own mode
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
            _ => Ok(()),
        }
    })();
    written.map_err(|source| {
        let _ = fs::remove_file(&temporary);
        failed(source)
    })
}

// === impl FileError ===

impl FileError {
    /// Whether the file is simply not there.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn secrets_are_written_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_private(&path, b"first").unwrap();
        assert_eq!(mode(&path), 0o600);
        write_private(&path, b"second").unwrap();
        assert_eq!(read_private(&path).unwrap(), b"second");
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "no temporary file stays behind"
        );
    }

    #[test]
    fn a_secret_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write_public(&path, b"oops").unwrap();
        let error = read_private(&path).unwrap_err().to_string();
        assert!(error.contains("0644") && error.contains("key"), "{error}");
    }

    #[test]
    fn a_directory_that_is_a_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::write(&path, "").unwrap();
        let error = private_dir(&path).unwrap_err().to_string();
        assert!(
            error.contains("taken") && error.contains("choose a directory"),
            "{error}"
        );
    }
}
