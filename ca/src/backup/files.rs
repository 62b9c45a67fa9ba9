//! The files of a data directory that lie beside the store: the authority's keys, and whatever else is kept there.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hoplite_host::files::{self, FileError};
use zeroize::Zeroizing;

/// In the data directory: what is not whole yet. A CA does not start beside it.
pub(crate) const SCRATCH: &str = "restoring";

/// Keys and certificates are smaller.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A data directory has a handful.
const FILES_MAX: usize = 1_000;

/// Directories in directories.
const DEPTH_MAX: usize = 4;

/// What is not of the CA, or is made anew at its next start.
const NOT_KEPT: [&str; 4] = ["store", "store-revision", "lost+found", SCRATCH];

/// By their paths in the data directory.
pub(crate) type Files = BTreeMap<String, Zeroizing<Vec<u8>>>;

/// Why the files cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadFiles {
    /// The system refuses.
    #[error("cannot read `{path}`: {source}", path = .path.display())]
    Io {
        /// What is read.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Somebody keeps something else in the data directory.
    #[error(
        "`{path}` is no file of a CA: it is too large, one of too many, or its name is not UTF-8; a backup leaves nothing out, so move it out of the data directory",
        path = .path.display()
    )]
    Foreign {
        /// What lies there.
        path: PathBuf,
    },
}

/// Reads them all.
pub(crate) fn read(data_dir: &Path) -> Result<Files, BadFiles> {
    let mut found = Files::new();
    walk(data_dir, "", 0, &mut found)?;
    Ok(found)
}

fn walk(directory: &Path, below: &str, depth: usize, found: &mut Files) -> Result<(), BadFiles> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| BadFiles::Io { path, source }
    };
    for entry in fs::read_dir(directory).map_err(failed(directory))? {
        let entry = entry.map_err(failed(directory))?;
        let path = entry.path();
        let foreign = || BadFiles::Foreign { path: path.clone() };
        let Ok(name) = entry.file_name().into_string() else {
            return Err(foreign());
        };
        let is_unfinished = name.ends_with(".tmp") || name.starts_with(".probe-");
        if is_unfinished || (below.is_empty() && NOT_KEPT.contains(&name.as_str())) {
            continue;
        }
        // What a link leads to is kept: a key may lie on another disk.
        let about = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // it went just now
            about => about.map_err(failed(&path))?,
        };
        let name = format!("{below}{name}");
        if about.is_dir() {
            if depth == DEPTH_MAX {
                return Err(foreign());
            }
            walk(&path, &format!("{name}/"), depth + 1, found)?;
        } else if about.is_file() {
            if about.len() > FILE_BYTES_MAX || found.len() == FILES_MAX {
                return Err(foreign());
            }
            match fs::read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                bytes => drop(found.insert(name, Zeroizing::new(bytes.map_err(failed(&path))?))),
            }
        }
    }
    Ok(())
}

/// Whether a path of a backup stays in the directory that it is written to.
pub(crate) fn is_inside(path: &str) -> bool {
    !path.is_empty() && path.split('/').all(|part| !matches!(part, "" | "." | "..")) && !path.contains('\0')
}

/// Writes one: only its owner may read it.
pub(crate) fn write(directory: &Path, path: &str, bytes: &[u8]) -> Result<(), FileError> {
    let path = directory.join(path);
    if let Some(parent) = path.parent() {
        files::private_dir(parent)?;
    }
    files::write_private(&path, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_kept_but_the_store_and_what_is_unfinished() {
        let dir = tempfile::tempdir().unwrap();
        for path in [
            "authority.key",
            "authority/2.key",
            "store/db",
            "store-revision",
            "key.7.tmp",
            "x/store/y",
        ] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "secret").unwrap();
        }
        let names: Vec<_> = read(dir.path()).unwrap().into_keys().collect();
        assert_eq!(names, ["authority.key", "authority/2.key", "x/store/y"]);
        fs::write(dir.path().join("core"), vec![0; (1 << 20) + 1]).unwrap();
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("core") && error.contains("move it out"), "{error}");
    }

    #[test]
    fn paths_stay_inside() {
        for (path, good) in [
            ("a", true),
            ("a/b", true),
            ("", false),
            ("/a", false),
            ("../a", false),
            ("a/../b", false),
            ("a//b", false),
        ] {
            assert_eq!(is_inside(path), good, "{path}");
        }
    }
}
