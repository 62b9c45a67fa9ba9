//! What lies in a directory of policies: the files that count, what else has a name there, and what may not be there.
//!
//! Nothing is passed over in silence, since it may be a `forbid`. What can be read is read; what looks as if it were meant to be
//! read and cannot be is refused; what is something else is named.

use std::collections::HashMap;
use std::fs::{self, FileType, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use hoplite_host::hand::{self, OtherHand};
use hoplite_policy::files::{BREAK_GLASS_MODULE, HEADERS_FILE, MODULES_FILE, ROUTES_FILE};

use crate::files_error::FilesError;

/// A policy set larger than this is a mistake in `policy_dir`.
const FILES_MAX: usize = 4096;

/// More entries in one folder, policies or not, are a mistake too: the directory is looked at several times a second.
const ENTRIES_MAX: usize = 4 * FILES_MAX;

const TABLES: [&str; 3] = [ROUTES_FILE, MODULES_FILE, HEADERS_FILE];
/// Cedar's own name for a schema, in all its spellings.
const SCHEMA_ENDING: &str = ".cedarschema";
/// What `policy test` and `publish` read.
const TEST_ENDINGS: [&str; 2] = [".test", ".test.json"];

/// What a look at the directory compares: of each policy file its name and what changes when it is written, and what else there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listing {
    /// In the order of names.
    pub(crate) files: Vec<(String, Stamp)>,
    pub(crate) named: Vec<Named>,
    /// Whoever else could write one of them, or put another beside it.
    pub(crate) other_hand: Option<OtherHand>,
}

/// Inode, size, and time of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp {
    inode: u64,
    pub(crate) size: u64,
    changed: (i64, i64),
}

/// What lies in a policy directory and is not one of its files, or not as it seems.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Named {
    /// An editor's copy of a policy, or one that somebody put aside.
    #[error("`{0}` looks like a policy and is not read; name it `*.cedar`, or move it out of the directory")]
    Leftover(String),
    /// A policy whose name begins with a dot.
    #[error("`{0}` is hidden, so it is not read; take the dot away, or move it out of the directory")]
    Hidden(String),
    /// It is read, and whoever may write elsewhere changes it.
    #[error("`{name}` is a link out of the directory, to `{}`: whoever may write there changes policy", .target.display())]
    LinkOut {
        /// The link.
        name: String,
        /// Where it leads in the end.
        target: PathBuf,
    },
    /// A file of another kind.
    #[error("`{0}` is no policy and is not read")]
    Other(String),
    /// A folder with nothing in it that is read.
    #[error("the folder `{0}` has no policy")]
    NoPolicies(String),
}

/// A look in progress.
struct Look<'a> {
    root: &'a Path,
    /// Who reads it to decide by it.
    user: u32,
    /// Where the directory really is, once a link asks for it.
    real: Option<PathBuf>,
    listing: Listing,
}

// === impl Named ===

impl Named {
    /// Whether somebody may take it for a policy in force.
    pub fn is_misleading(&self) -> bool {
        matches!(self, Self::Leftover(_) | Self::Hidden(_) | Self::LinkOut { .. })
    }
}

// === impl Listing ===

impl Listing {
    /// What lies in a directory.
    pub(crate) fn of(root: &Path) -> Result<Self, FilesError> {
        Self::read_by(root, hand::own_user())
    }

    /// The same, for a daemon that acts as this user.
    pub(crate) fn read_by(root: &Path, user: u32) -> Result<Self, FilesError> {
        let mut look = Look {
            root,
            user,
            real: None,
            listing: Self {
                files: Vec::new(),
                named: Vec::new(),
                other_hand: None,
            },
        };
        look.folder(root, None)?;
        let mut listing = look.listing;
        listing.files.sort();
        listing.named.sort();
        one_spelling(&listing.files)?;
        Ok(listing)
    }
}

/// Where case does not count, as on many people's machines, one of two such names is lost.
fn one_spelling(files: &[(String, Stamp)]) -> Result<(), FilesError> {
    let mut seen: HashMap<String, &str> = HashMap::new();
    for (name, _) in files {
        let folder = name.split_once('/').map(|(folder, _)| folder);
        for part in folder.into_iter().chain([name.as_str()]) {
            let other = seen.entry(part.to_lowercase()).or_insert(part);
            if *other != part {
                return Err(FilesError::OneSpelling(other.to_string(), part.to_owned()));
            }
        }
    }
    Ok(())
}

// === impl Look ===

impl Look<'_> {
    /// Adds what counts in the directory, or in the folder of a module.
    fn folder(&mut self, directory: &Path, module: Option<&str>) -> Result<(), FilesError> {
        let failed = |error: io::Error| FilesError::Directory(format!("`{}`: {error}", directory.display()));
        self.in_hand(directory, &fs::metadata(directory).map_err(failed)?);
        for (seen, entry) in fs::read_dir(directory).map_err(failed)?.enumerate() {
            if seen >= ENTRIES_MAX {
                let place = directory.display();
                return Err(FilesError::Directory(format!(
                    "more than {ENTRIES_MAX} files in `{place}`; move what is no policy"
                )));
            }
            let file = entry.map_err(failed)?.file_name();
            // Version control's and editors' own, and what mounts are made of.
            let is_hidden = file.as_encoded_bytes().starts_with(b".");
            let Some(file) = file.to_str() else {
                if is_hidden {
                    continue;
                }
                return Err(FilesError::Name(file.display().to_string()));
            };
            let name = module.map_or_else(|| file.to_owned(), |module| format!("{module}/{file}"));
            if is_hidden {
                // Not the lock of an editor, `.#a.cedar`, which is a link to nowhere.
                if file.ends_with(".cedar") && !file.starts_with(".#") {
                    self.listing.named.push(Named::Hidden(name));
                }
                continue;
            }
            self.entry(directory.join(file), file, name, module)?;
            if self.listing.files.len() > FILES_MAX {
                return Err(FilesError::Directory(format!(
                    "more than {FILES_MAX} policy files; join some"
                )));
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: PathBuf, file: &str, name: String, module: Option<&str>) -> Result<(), FilesError> {
        let metadata = self.metadata(&path, &name)?;
        let is_table = TABLES.contains(&file);
        match module {
            // Who may write here may write for his team; a grant needs two people.
            None if metadata.is_dir() && file == BREAK_GLASS_MODULE => {
                return Err(FilesError::Place(format!(
                    "`{file}` is for grants, which are no files; rename the folder"
                )));
            }
            None if metadata.is_dir() => {
                let before = self.listing.files.len();
                self.folder(&path, Some(file))?;
                if self.listing.files.len() == before {
                    self.listing.named.push(Named::NoPolicies(name));
                }
                return Ok(());
            }
            Some(module) if metadata.is_dir() => {
                return Err(FilesError::Place(format!(
                    "in `{module}`: `{name}` is a folder within a module; policies are one folder deep, move its files up"
                )));
            }
            Some(module) if is_table => {
                return Err(FilesError::Place(format!(
                    "in `{module}`: `{name}` is in a module; there is one for all of them, beside the folders"
                )));
            }
            _ => {}
        }
        if !metadata.is_file() {
            let what = kind(metadata.file_type());
            return Err(FilesError::NoFile { name, what });
        }
        let lower = file.to_lowercase();
        if file.ends_with(".cedar") || is_table {
            let stamp = Stamp {
                inode: metadata.ino(),
                size: metadata.size(),
                changed: (metadata.mtime(), metadata.mtime_nsec()),
            };
            self.in_hand(&path, &metadata);
            self.listing.files.push((name, stamp));
        } else if lower.ends_with(".cedar") || TABLES.contains(&lower.as_str()) {
            return Err(FilesError::Case(name));
        } else if is_leftover(&lower) {
            self.listing.named.push(Named::Leftover(name));
        } else if !is_known(&lower) {
            self.listing.named.push(Named::Other(name));
        }
        Ok(())
    }

    /// Notes the first that others could change.
    fn in_hand(&mut self, path: &Path, metadata: &Metadata) {
        if self.listing.other_hand.is_none() {
            self.listing.other_hand = hand::check_metadata(path, metadata, self.user).err();
        }
    }

    /// Of what a name leads to in the end.
    fn metadata(&mut self, path: &Path, name: &str) -> Result<Metadata, FilesError> {
        let unreadable = |error: io::Error| match error.kind() {
            // Replaced at this moment; the next look sees the new one.
            io::ErrorKind::NotFound => FilesError::Vanished(name.to_owned()),
            _ => FilesError::File {
                name: name.to_owned(),
                problem: error.to_string(),
            },
        };
        let itself = fs::symlink_metadata(path).map_err(unreadable)?;
        if !itself.is_symlink() {
            return Ok(itself);
        }
        let target = fs::read_link(path).map_err(unreadable)?;
        let metadata = fs::metadata(path).map_err(|error| FilesError::Dangling {
            name: name.to_owned(),
            target,
            problem: error.to_string(),
        })?;
        let real = path.canonicalize().map_err(unreadable)?;
        let root = match &mut self.real {
            Some(root) => root,
            none => none.insert(self.root.canonicalize().map_err(unreadable)?),
        };
        if !real.starts_with(root) {
            self.listing.named.push(Named::LinkOut {
                name: name.to_owned(),
                target: real,
            });
        }
        Ok(metadata)
    }
}

/// `security.cedar.bak`, `security.cedar~`, `#security.cedar#`, `routes.toml.orig`. The name is in lower case.
fn is_leftover(name: &str) -> bool {
    if is_known(name) {
        return false;
    }
    let goes_on = |rest: &str| rest.starts_with(|c: char| !c.is_alphanumeric());
    let mut policies = name.match_indices(".cedar").map(|(at, found)| at + found.len());
    policies.any(|end| name.get(end..).is_some_and(goes_on))
        || TABLES.iter().any(|table| {
            let mut tables = name.match_indices(table).map(|(at, found)| at + found.len());
            tables.any(|end| name.get(end..).is_some_and(goes_on))
        })
}

/// Whether it is a file of another kind that belongs beside policies.
fn is_known(name: &str) -> bool {
    TEST_ENDINGS.iter().any(|ending| name.ends_with(ending)) || name.contains(SCHEMA_ENDING)
}

fn kind(file_type: FileType) -> &'static str {
    if file_type.is_fifo() {
        "pipe"
    } else if file_type.is_socket() {
        "socket"
    } else if file_type.is_block_device() || file_type.is_char_device() {
        "device"
    } else {
        "thing of an unknown kind"
    }
}
