//! The endorsement keys that an operator knows: a file with the SHA-256 of one in each line, read again when it changes.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use data_encoding::HEXLOWER_PERMISSIVE;
use hoplite_host::files::{self, FileError};

use crate::attestors::BadSetting;

/// The longest file, in bytes: a quarter of a million machines.
const FILE_BYTES_MAX: u64 = 32 << 20;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("it cannot be looked at: {0}")]
    Absent(#[from] io::Error),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("it is longer than {FILE_BYTES_MAX} bytes")]
    Long,
    #[error(
        "line {number}: `{shown}` is no SHA-256 of a key; write 64 hexadecimal digits, and a name behind them if you like"
    )]
    Line { number: usize, shown: String },
}

/// A digest.
type Sha256 = [u8; 32];

/// Those that are known.
pub(crate) struct Known {
    file: PathBuf,
    held: Mutex<Held>,
}

struct Held {
    keys: HashSet<Sha256>,
    version: Version,
}

/// By which a file is known to be another one, or written since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

// === impl Known ===

impl Known {
    /// Those in the file now.
    pub(crate) fn open(file: &Path) -> Result<Self, BadSetting> {
        let held = Held::read(file).map_err(|error| BadSetting {
            key: "endorsement_keys",
            value: file.display().to_string(),
            reason: error.to_string(),
        })?;
        Ok(Self {
            file: file.to_owned(),
            held: Mutex::new(held),
        })
    }

    /// Whether the key of this digest is one. A file that cannot be read any more leaves those that were read, and the log says so.
    pub(crate) fn contains(&self, key: &Sha256) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if Version::of(&self.file).ok() != Some(held.version) {
            match Held::read(&self.file) {
                Ok(read) => *held = read,
                Err(error) => {
                    tracing::warn!(file = %self.file.display(), reason = %error, "endorsement keys stay as they were read last");
                }
            }
        }
        held.keys.contains(key)
    }
}

// === impl Held ===

impl Held {
    fn read(file: &Path) -> Result<Self, Unusable> {
        // First, so that what is written in between is read at the next call.
        let version = Version::of(file)?;
        if version.bytes > FILE_BYTES_MAX {
            return Err(Unusable::Long);
        }
        let keys = parse(&files::read_trusted_text(file)?)?;
        Ok(Self { keys, version })
    }
}

// === impl Version ===

impl Version {
    fn of(file: &Path) -> io::Result<Self> {
        let found = fs::metadata(file)?;
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
            bytes: found.len(),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

/// One digest in a line; what follows it is for people. Lines that begin with `#` are, too.
fn parse(text: &str) -> Result<HashSet<Sha256>, Unusable> {
    let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let keys = lines.map(|(number, line)| {
        let first = line.split_whitespace().next().unwrap_or_default();
        let digest = HEXLOWER_PERMISSIVE.decode(first.as_bytes()).ok();
        let digest = digest.and_then(|digest| Sha256::try_from(digest).ok());
        digest.ok_or_else(|| Unusable::Line {
            number,
            shown: first.escape_debug().take(80).collect(),
        })
    });
    keys.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn what_a_line_is() {
        let check = |text: &str, expected: Result<usize, &str>| {
            let found = parse(text).map(|keys| keys.len()).map_err(|error| error.to_string());
            match (&found, expected) {
                (Err(error), Err(part)) => assert!(error.contains(part), "{text}: {error}"),
                _ => assert_eq!(found, expected.map_err(str::to_owned), "{text}"),
            }
        };
        check("", Ok(0));
        check(&format!("# machines\n\n{DIGEST}\n"), Ok(1));
        check(&format!("{DIGEST}  rack 7, slot 3\r\n{}", DIGEST.to_uppercase()), Ok(1));
        check(&format!("{DIGEST}\n{}", DIGEST.replace('b', "c")), Ok(2));
        check(&format!("{DIGEST}\nabc"), Err("line 2: `abc` is no SHA-256"));
        check(&format!("{DIGEST}ff"), Err("line 1"));
        check(&DIGEST.replace('b', "g"), Err("line 1"));
    }

    #[test]
    fn a_file_that_is_broken_leaves_what_was_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("tpms");
        let key: Sha256 = HEXLOWER_PERMISSIVE
            .decode(DIGEST.as_bytes())
            .unwrap()
            .try_into()
            .unwrap();
        assert!(Known::open(&file).is_err_and(|error| error.key == "endorsement_keys"));
        fs::write(&file, "").unwrap();
        let known = Known::open(&file).unwrap();
        assert!(!known.contains(&key));
        fs::write(&file, DIGEST).unwrap();
        assert!(known.contains(&key));
        fs::write(&file, "broken").unwrap();
        assert!(known.contains(&key));
        fs::remove_file(&file).unwrap();
        assert!(known.contains(&key));
        fs::write(&file, "# none").unwrap();
        assert!(!known.contains(&key));
    }
}
