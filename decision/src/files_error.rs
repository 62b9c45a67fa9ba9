//! Why the files of a policy directory are no policy: what is wrong, and the remedy.

use std::path::PathBuf;

use hoplite_host::hand::OtherHand;

/// One file larger than this is a mistake.
pub(crate) const FILE_BYTES_MAX: u64 = 4 << 20;

/// Why the files of a directory are no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilesError {
    /// The directory, or a folder in it, cannot be read, or has too much in it.
    #[error("{0}")]
    Directory(String),
    /// Something is in the wrong place.
    #[error("{0}")]
    Place(String),
    /// Somebody else than root and the daemon's own user could write policy.
    #[error("whoever writes here decides what is permitted: {0}")]
    OtherHand(#[from] OtherHand),
    /// It has no policies at all.
    #[error("there is no `*.cedar` file in `{}`", .0.display())]
    NoPolicies(PathBuf),
    /// One file is longer than a file of policies may be.
    #[error("`{name}` has {bytes} bytes, more than {FILE_BYTES_MAX}; split it")]
    TooLarge {
        /// The file.
        name: String,
        /// Its length, as far as it was read.
        bytes: u64,
    },
    /// One file cannot be read.
    #[error("cannot read `{name}`: {problem}; let this user read it, or move it out of the directory")]
    File {
        /// The file.
        name: String,
        /// What the system said.
        problem: String,
    },
    /// A link that leads to nothing: what it stood for may have been a forbid.
    #[error("`{name}` is a link to `{}`, which cannot be followed ({problem}); mend the link, or remove it", .target.display())]
    Dangling {
        /// The link.
        name: String,
        /// Where it points to.
        target: PathBuf,
        /// What the system said.
        problem: String,
    },
    /// A pipe, a socket or a device.
    #[error("`{name}` is a {what} and no file; remove it")]
    NoFile {
        /// Its name.
        name: String,
        /// What it is.
        what: &'static str,
    },
    /// A name that is no text.
    #[error("the name of `{0}` is not UTF-8; rename it")]
    Name(String),
    /// A name that would be read in lower case.
    #[error("`{0}` is not read, since its name is not in lower case; rename it")]
    Case(String),
    /// Two names that are one where case does not count.
    #[error("`{0}` and `{1}` differ only in upper and lower case; rename one")]
    OneSpelling(String, String),
    /// What looks like a policy and is none. Only people are refused for it: editors leave such files beside what they edit.
    #[error("`{0}` looks like a policy and is not read; name it `*.cedar`, or move it out of the directory")]
    Leftover(String),
    /// It went, or changed, while the directory was read.
    #[error("`{0}` changed while the directory was read; try again")]
    Vanished(String),
    /// One file is text in another encoding, as its byte order mark says.
    #[error("`{name}` is {encoding}, as its byte order mark says; save it as UTF-8 without one")]
    Encoding {
        /// The file.
        name: String,
        /// Which.
        encoding: &'static str,
    },
    /// One file is no text.
    #[error("`{name}` is not UTF-8 in line {line}; save it as UTF-8")]
    NotUtf8 {
        /// The file.
        name: String,
        /// Where.
        line: usize,
    },
}
