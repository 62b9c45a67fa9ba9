//! Why a log cannot be written, and how its files are opened.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::segment::{FORMAT, PAYLOAD_BYTES_MAX};

/// Why a record cannot be written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RecorderError {
    /// The name would not survive in a decision id.
    #[error("recorder name `{0}` is not usable: 1 to 64 of a-z, 0-9, `.` and `-`")]
    InvalidName(String),
    /// Another recorder has the directory.
    #[error("log directory `{directory}` is in use: stop the process that writes it, or choose another directory")]
    InUse {
        /// The log directory.
        directory: String,
    },
    /// The directory holds the log of somebody else.
    #[error("log directory `{directory}` holds the log of `{found}`, not of `{wanted}`: choose another directory")]
    OtherRecorder {
        /// The log directory.
        directory: String,
        /// Whose log it is.
        found: String,
        /// Who wanted to write.
        wanted: String,
    },
    /// The directory holds a log that another version wrote.
    #[error(
        "log directory `{directory}` holds a log in format {found} (`{segment}`), and this version writes format {FORMAT}: move the directory aside (`mv {directory} {directory}-format{found}`), or choose another; the version that wrote it reads it"
    )]
    OtherFormat {
        /// The log directory.
        directory: String,
        /// The file that says so.
        segment: String,
        /// Its format.
        found: u8,
    },
    /// The system gives no randomness to name a boot with.
    #[error("the system gives no random bytes to name this start of the log with: check `/dev/urandom`")]
    NoRandomness,
    /// The operating system refused. For an append this is final: open the recorder again.
    #[error("log directory `{directory}`: cannot {action}: {problem}; check its owner, its mode and the free space")]
    Io {
        /// The log directory.
        directory: String,
        /// What was being done.
        action: &'static str,
        /// What the system said.
        problem: String,
    },
    /// Somebody else has moved, removed or cut what is being written. Final, as [`RecorderError::Io`]: what was written
    /// since may be gone.
    #[error(
        "log directory `{directory}`: somebody has touched `{file}` while it was written: {problem}; put the directory back as it was, or mount its disk, and start again"
    )]
    Disturbed {
        /// The log directory.
        directory: String,
        /// The file in it.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The log has not what this recorder has written into it before.
    #[error(
        "log directory `{directory}` does not hold what was written there last ({noted}): put it back, mount its disk, or accept the loss and remove `{note}`"
    )]
    Behind {
        /// The log directory.
        directory: String,
        /// What it should hold.
        noted: String,
        /// The file that says so.
        note: String,
    },
    /// The record is too large to be one. Others can still be written.
    #[error("a record of {0} bytes is too large: at most {PAYLOAD_BYTES_MAX}, shorten its texts")]
    TooLarge(usize),
    /// Nothing with this sequence number was appended.
    #[error("record {0} was not appended in this boot: wait for what `append` returned")]
    NotAppended(u64),
}

/// Read and written by its owner alone.
pub(crate) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).truncate(false).mode(0o600);
    options
}

pub(crate) fn io_error(directory: &Path, action: &'static str, error: &io::Error) -> RecorderError {
    RecorderError::Io {
        directory: directory.display().to_string(),
        action,
        problem: error.to_string(),
    }
}
