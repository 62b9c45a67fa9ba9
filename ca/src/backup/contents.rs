//! The parts of a backup as they are read: in their order, whole, and all of what they name there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use hoplite_identity::{InvalidSpiffeId, TrustDomain};
use hoplite_store::{LARGE_BYTES_MAX, LargeId, Revision, Versioned};
use hoplite_wire::ca::backup_part::Part;
use hoplite_wire::ca::{BackupEnd, BackupHead, BackupLarge, BackupValue};
use hoplite_wire::read_part;

use crate::backup::files::is_inside;
use crate::backup::sealed::{Opening, Passphrase, SealError};
use crate::record::from_unix_seconds;

/// The format of the parts. An unknown one is refused.
pub(crate) const FORMAT: u32 = 1;

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Whose.
    pub trust_domain: TrustDomain,
    /// When it was begun.
    pub begun_at: SystemTime,
    /// Of the program that made it.
    pub version: String,
    /// SHA-256 of each authority's certificate, hexadecimal.
    pub authorities: Vec<String>,
    /// The CA's configuration file, where it had one.
    pub config: Option<String>,
    /// It is as of this revision.
    pub revision: Revision,
    /// Registration entries.
    pub entries: u64,
    /// Policy bundles, which lie beside the store.
    pub large: u64,
    /// Files of the data directory, the authority's key among them.
    pub files: u64,
    /// The length of the backup.
    pub bytes: u64,
}

/// Why a file is no backup that can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadBackup {
    /// It cannot be read, or is not whole.
    #[error("`{file}` cannot be used: {reason}", file = .file.display())]
    Seal {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: SealError,
    },
    /// It opens, and what is in it is not what a CA writes.
    #[error("`{file}` is no whole backup: {reason}; use another copy", file = .file.display())]
    Contents {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A newer program made it.
    #[error("`{file}` has format {found}, and this program knows {FORMAT}; use the program that made it, of version {version}", file = .file.display())]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its format.
        found: u32,
        /// Of the program that made it.
        version: String,
    },
}

/// What is done with what comes.
pub(crate) trait Receive {
    /// Why it cannot be done.
    type Error: From<BadBackup>;

    fn head(&mut self, head: &Head) -> Result<(), Self::Error>;
    /// `None` when the key has no value any more.
    fn value(&mut self, key: &[u8], held: Option<&Versioned>) -> Result<(), Self::Error>;
    fn large(&mut self, id: &LargeId, bytes: &[u8]) -> Result<(), Self::Error>;
    fn file(&mut self, path: &str, bytes: &[u8]) -> Result<(), Self::Error>;
}

/// The first part.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) begun_at: SystemTime,
    message: BackupHead,
}

/// Reads a file that is to be a backup to its end, and changes nothing.
///
/// # Errors
/// [`BadBackup`].
pub fn check(file: &Path, passphrase: &Passphrase) -> Result<Summary, BadBackup> {
    struct Nothing;
    impl Receive for Nothing {
        type Error = BadBackup;

        fn head(&mut self, _: &Head) -> Result<(), BadBackup> {
            Ok(())
        }
        fn value(&mut self, _: &[u8], _: Option<&Versioned>) -> Result<(), BadBackup> {
            Ok(())
        }
        fn large(&mut self, _: &LargeId, _: &[u8]) -> Result<(), BadBackup> {
            Ok(())
        }
        fn file(&mut self, _: &str, _: &[u8]) -> Result<(), BadBackup> {
            Ok(())
        }
    }
    receive(file, passphrase, &mut Nothing)
}

/// Reads a backup to its end. Nothing that was received counts before this returns.
pub(crate) fn receive<R: Receive>(file: &Path, passphrase: &Passphrase, to: &mut R) -> Result<Summary, R::Error> {
    let seal = |reason: SealError| BadBackup::Seal {
        file: file.to_owned(),
        reason,
    };
    let opened = File::open(file).map_err(|e| seal(e.into()))?;
    let about = opened.metadata().map_err(|e| seal(e.into()))?;
    let mut from = Opening::begin(opened, passphrase).map_err(seal)?;
    let mut reading = Reading {
        file,
        naming: BTreeMap::new(),
        large: BTreeSet::new(),
        values: 0,
        files: 0,
        half: None,
    };
    let mut next = || match read_part(&mut from) {
        Ok(Some(part)) => part
            .part
            .ok_or_else(|| reading_error(file, "a part is of a kind that is not known here")),
        Ok(None) => Err(reading_error(file, "its end is missing")),
        Err(error) => Err(seal_or_contents(file, error)),
    };
    let Part::Head(message) = next()? else {
        return Err(reading.wrong("it does not begin with a head").into());
    };
    let head = reading.head(message)?;
    to.head(&head)?;
    let end = loop {
        match next()? {
            Part::Head(_) => return Err(reading.wrong("it has two heads").into()),
            Part::Values(values) => {
                for value in values.values {
                    let (key, held) = reading.value(value)?;
                    to.value(&key, held.as_ref())?;
                }
            }
            Part::Large(piece) => {
                if let Some((id, bytes)) = reading.large(piece)? {
                    to.large(&id, &bytes)?;
                }
            }
            Part::File(part) => {
                reading.files += 1;
                if !is_inside(&part.path) {
                    return Err(reading.wrong("it names a file outside of the data directory").into());
                }
                to.file(&part.path, &part.bytes)?;
            }
            Part::End(end) => break end,
        }
    };
    reading.end(&end)?;
    let mut more = [0];
    match from.read(&mut more) {
        Ok(0) => {}
        Ok(_) => return Err(reading.wrong("something comes after its end").into()),
        Err(error) => return Err(seal_or_contents(file, error).into()),
    }
    let hex = |digest: &Vec<u8>| data_encoding::HEXLOWER.encode(digest);
    let Head {
        trust_domain,
        begun_at,
        message,
    } = head;
    Ok(Summary {
        trust_domain,
        begun_at,
        version: message.version,
        authorities: message.authorities.iter().map(hex).collect(),
        config: Some(message.config).filter(|config| !config.is_empty()),
        revision: end.revision,
        entries: end.entries,
        large: end.large,
        files: end.files,
        bytes: about.len(),
    })
}

fn reading_error(file: &Path, reason: &str) -> BadBackup {
    BadBackup::Contents {
        file: file.to_owned(),
        reason: reason.to_owned(),
    }
}

/// What the layer below says of a damaged file comes through as an error of reading.
fn seal_or_contents(file: &Path, error: io::Error) -> BadBackup {
    if error.kind() == io::ErrorKind::InvalidData {
        return reading_error(file, &error.to_string());
    }
    let reason = match error.downcast::<SealError>() {
        Ok(reason) => reason,
        Err(error) => SealError::Io(error),
    };
    BadBackup::Seal {
        file: file.to_owned(),
        reason,
    }
}

/// What has come so far.
struct Reading<'a> {
    file: &'a Path,
    naming: BTreeMap<Vec<u8>, Vec<LargeId>>,
    large: BTreeSet<LargeId>,
    values: u64,
    files: u64,
    /// A large value of which pieces are still to come.
    half: Option<(LargeId, Vec<u8>)>,
}

// === impl Reading ===

impl Reading<'_> {
    fn wrong(&self, reason: &str) -> BadBackup {
        reading_error(self.file, reason)
    }

    fn head(&self, message: BackupHead) -> Result<Head, BadBackup> {
        if message.format != FORMAT {
            return Err(BadBackup::Newer {
                file: self.file.to_owned(),
                found: message.format,
                version: message.version.escape_debug().to_string(),
            });
        }
        let trust_domain = TrustDomain::parse(&message.trust_domain)
            .map_err(|error: InvalidSpiffeId| self.wrong(&error.to_string()))?;
        let begun_at = u64::try_from(message.begun_at_unix).map(from_unix_seconds);
        Ok(Head {
            trust_domain,
            begun_at: begun_at.map_err(|_| self.wrong("it was made before 1970"))?,
            message,
        })
    }

    fn value(&mut self, value: BackupValue) -> Result<(Vec<u8>, Option<Versioned>), BadBackup> {
        self.values += 1;
        let names: Option<Vec<_>> = value.names.iter().map(|name| name_of(name)).collect();
        let names = names.ok_or_else(|| self.wrong("a name of a large value is none"))?;
        match names.is_empty() {
            true => drop(self.naming.remove(&value.key)),
            false => drop(self.naming.insert(value.key.clone(), names.clone())),
        }
        let held = (!value.deleted).then_some(Versioned {
            value: value.value,
            revision: value.revision,
            names,
        });
        Ok((value.key, held))
    }

    /// The whole of a large value, with its last piece.
    fn large(&mut self, part: BackupLarge) -> Result<Option<(LargeId, Vec<u8>)>, BadBackup> {
        let id = name_of(&part.sha256).ok_or_else(|| self.wrong("a name of a large value is none"))?;
        let mut bytes = match self.half.take() {
            Some((half, bytes)) if half == id => bytes,
            Some(_) => return Err(self.wrong("a large value is cut off")),
            None => Vec::new(),
        };
        if bytes.len().saturating_add(part.piece.len()) > LARGE_BYTES_MAX {
            return Err(self.wrong("a large value is too large"));
        }
        bytes.extend_from_slice(&part.piece);
        if !part.last {
            self.half = Some((id, bytes));
            return Ok(None);
        }
        if LargeId::of(&bytes) != id {
            return Err(self.wrong("a large value is not what its name says"));
        }
        self.large.insert(id);
        Ok(Some((id, bytes)))
    }

    fn end(&self, end: &BackupEnd) -> Result<(), BadBackup> {
        let found = (self.values, self.large.len() as u64, self.files);
        if found != (end.values, end.large, end.files) || self.half.is_some() {
            return Err(self.wrong("it holds less, or more, than its end says"));
        }
        match self.naming.values().flatten().all(|id| self.large.contains(id)) {
            true => Ok(()),
            false => Err(self.wrong("a large value that it names is not in it")),
        }
    }
}

fn name_of(bytes: &[u8]) -> Option<LargeId> {
    bytes.try_into().ok().map(LargeId)
}
