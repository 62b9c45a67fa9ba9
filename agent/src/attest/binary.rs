//! The file that a process runs, opened once: all that is asked of it is asked of the same one.

use std::fs::{self, File, Metadata};
use std::path::PathBuf;

use crate::attest::found::Unknown;

/// It, what was known of it when it was opened, and where the kernel says that it lies.
pub(super) struct Binary {
    pub(super) file: File,
    pub(super) metadata: Metadata,
    pub(super) link: PathBuf,
}

// === impl Binary ===

impl Binary {
    /// What this process runs.
    pub(super) fn open(pid: i32) -> Result<Self, Unknown> {
        let exe = format!("/proc/{pid}/exe");
        let file = File::open(&exe)?;
        Ok(Self {
            link: fs::read_link(&exe)?,
            metadata: file.metadata()?,
            file,
        })
    }
}
