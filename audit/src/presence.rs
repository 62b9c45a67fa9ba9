//! Whether a log is still where it was opened: what was deleted, moved or cut under its writer is noticed.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// An open file and the name it must have.
#[derive(Debug)]
pub(crate) struct Place {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// What is wrong with a log that somebody else has touched.
#[derive(Debug)]
pub(crate) struct Disturbed {
    /// The file.
    pub(crate) file: String,
    /// What is wrong with it.
    pub(crate) problem: String,
}

// === impl Place ===

impl Place {
    /// The place of an open file. That it is there is not checked yet.
    pub(crate) fn of(path: PathBuf, file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            path,
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    /// The name.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the name still leads to the file: not when the file or a directory above it was removed or renamed, another
    /// was put in its place, or another disk is mounted above it.
    pub(crate) fn check(&self) -> Result<(), Disturbed> {
        match fs::metadata(&self.path) {
            Ok(found) if (found.dev(), found.ino()) == (self.device, self.inode) => Ok(()),
            Ok(_) => Err(self.disturbed("another file is in its place".to_owned())),
            Err(error) => Err(self.disturbed(error.to_string())),
        }
    }

    fn disturbed(&self, problem: String) -> Disturbed {
        Disturbed {
            file: file_name(&self.path),
            problem,
        }
    }
}

/// Whether a file that only we append to is as long as we have made it. It cannot become so again by what we write after it
/// was cut, since we only append.
pub(crate) fn check_length(path: &Path, file: &File, end: u64) -> Result<(), Disturbed> {
    let problem = match file.metadata() {
        Ok(metadata) if metadata.len() == end => return Ok(()),
        Ok(metadata) => format!("it has {} bytes, and {end} were written", metadata.len()),
        Err(error) => error.to_string(),
    };
    Err(Disturbed {
        file: file_name(path),
        problem,
    })
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}
