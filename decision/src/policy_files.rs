//! A directory of policies: which files count, and their texts as sources.
//!
//! `*.cedar`, `routes.toml`, `modules.toml` and `headers.toml` at the top; `*.cedar` in its folders, each of which is a
//! module. Files of other kinds, and whatever starts with a dot, are passed over: editors and version control put them there. What looks
//! like a policy but is in a place where it would be passed over is refused, since it may be a `forbid`.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hoplite_policy::Source;
use hoplite_policy::files::{BREAK_GLASS_MODULE, HEADERS_FILE, MODULES_FILE, ROUTES_FILE};

/// A policy set larger than this is a mistake in `policy_dir`.
const FILES_MAX: usize = 4096;

/// More entries in one folder, policies or not, are a mistake too: the directory is looked at several times a second.
const ENTRIES_MAX: usize = 4 * FILES_MAX;

/// One file larger than this too.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// What a look at the directory compares: names, and for each what changes when it is written.
pub(crate) type Glance = Vec<(String, (u64, u64, i64, i64))>;

/// Why the files of a directory are no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilesError {
    /// The directory, or something in it, cannot be read or is in the wrong place.
    #[error("cannot read the policy directory: {0}")]
    Directory(String),
    /// It has no policies at all.
    #[error("there is no `*.cedar` file in `{}`", .0.display())]
    NoPolicies(PathBuf),
    /// One file is longer than a file of policies may be.
    #[error("`{name}` has {bytes} bytes, more than {FILE_BYTES_MAX}; split it")]
    TooLarge {
        /// The file.
        name: String,
        /// Its length.
        bytes: u64,
    },
    /// One file cannot be read.
    #[error("cannot read `{name}`: {problem}")]
    File {
        /// The file.
        name: String,
        /// What the system said.
        problem: String,
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

/// The policy files of a directory as a proxy reads them, for tools that check them before a proxy does.
///
/// # Errors
/// What cannot be read, or that there is no policy.
pub fn read_policies(directory: &Path) -> Result<Vec<Source>, FilesError> {
    let glance = glance(directory).map_err(|error| FilesError::directory(&error))?;
    let sources = sources(read(directory, &glance)?);
    if has_policies(&sources) {
        Ok(sources)
    } else {
        Err(FilesError::NoPolicies(directory.to_owned()))
    }
}

pub(crate) fn sources(texts: Vec<(String, String)>) -> Vec<Source> {
    texts.into_iter().map(|(name, text)| Source { name, text }).collect()
}

/// An empty set would be a legal policy, but a directory without any is a mistake in `policy_dir`.
pub(crate) fn has_policies(sources: &[Source]) -> bool {
    sources.iter().any(|source| source.name.ends_with(".cedar"))
}

/// Names, inode, size and time of change of every policy file, in name order.
pub(crate) fn glance(path: &Path) -> io::Result<Glance> {
    let mut files = Vec::new();
    look(path, None, &mut files)?;
    files.sort();
    Ok(files)
}

/// Adds what counts in the directory, or in the folder of a module.
fn look(directory: &Path, module: Option<&str>, files: &mut Glance) -> io::Result<()> {
    for (seen, entry) in fs::read_dir(directory)?.enumerate() {
        if seen >= ENTRIES_MAX {
            let place = directory.display();
            return Err(io::Error::other(format!(
                "more than {ENTRIES_MAX} files in `{place}`; move what is no policy"
            )));
        }
        let file = entry?.file_name();
        let Some(file) = file.to_str() else {
            if file.as_encoded_bytes().ends_with(b".cedar") {
                let name = file.display();
                return Err(io::Error::other(format!(
                    "the name of `{name}` is not UTF-8; rename it"
                )));
            }
            continue;
        };
        // Editors' hidden swap files are not policies.
        if file.starts_with('.') {
            continue;
        }
        let path = directory.join(file);
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            // Replaced at this moment; the next look sees the new one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(io::Error::new(error.kind(), format!("`{}`: {error}", path.display()))),
        };
        let is_table = [ROUTES_FILE, MODULES_FILE, HEADERS_FILE].contains(&file);
        match module {
            // Who may write here may write for his team; a grant needs two people.
            None if metadata.is_dir() && file == BREAK_GLASS_MODULE => {
                return Err(io::Error::other(format!(
                    "`{file}` is for grants, which are no files; rename the folder"
                )));
            }
            None if metadata.is_dir() => {
                let within = look(&path, Some(file), files);
                within.map_err(|error| io::Error::new(error.kind(), format!("in `{file}`: {error}")))?;
                continue;
            }
            Some(module) if metadata.is_dir() => {
                return Err(io::Error::other(format!(
                    "`{module}/{file}` is a folder within a module; policies are one folder deep, move its files up"
                )));
            }
            Some(module) if is_table => {
                return Err(io::Error::other(format!(
                    "`{module}/{file}` is in a module; there is one for all of them, beside the folders"
                )));
            }
            _ => {}
        }
        if metadata.is_file() && (file.ends_with(".cedar") || is_table) {
            let name = module.map_or_else(|| file.to_owned(), |module| format!("{module}/{file}"));
            files.push((
                name,
                (metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()),
            ));
        }
        if files.len() > FILES_MAX {
            return Err(io::Error::other(format!(
                "more than {FILES_MAX} policy files; join some"
            )));
        }
    }
    Ok(())
}

pub(crate) fn read(path: &Path, glance: &Glance) -> Result<Vec<(String, String)>, FilesError> {
    glance
        .iter()
        .map(|(name, (_, size, _, _))| {
            if *size > FILE_BYTES_MAX {
                return Err(FilesError::TooLarge {
                    name: name.clone(),
                    bytes: *size,
                });
            }
            let bytes = fs::read(path.join(name)).map_err(|error| FilesError::File {
                name: name.clone(),
                problem: error.to_string(),
            })?;
            match String::from_utf8(bytes) {
                Ok(text) => Ok((name.clone(), text)),
                Err(error) => {
                    let good = error
                        .as_bytes()
                        .get(..error.utf8_error().valid_up_to())
                        .unwrap_or_default();
                    let line = good.iter().filter(|&&byte| byte == b'\n').count() + 1;
                    Err(FilesError::NotUtf8 {
                        name: name.clone(),
                        line,
                    })
                }
            }
        })
        .collect()
}

// === impl FilesError ===

impl FilesError {
    pub(crate) fn directory(error: &io::Error) -> Self {
        Self::Directory(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read from a directory with these files; `/` at the end is a folder.
    fn names(files: &[&str]) -> Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(if file.ends_with('/') {
                &path
            } else {
                path.parent().unwrap()
            })
            .unwrap();
            if !file.ends_with('/') {
                fs::write(&path, "// nothing").unwrap();
            }
        }
        let sources = read_policies(dir.path()).map_err(|error| error.to_string())?;
        Ok(sources
            .into_iter()
            .map(|source| source.name)
            .collect::<Vec<_>>()
            .join(" "))
    }

    #[test]
    fn modules_are_one_folder_deep() {
        for (files, expected) in [
            (
                &["a.cedar", "routes.toml", "headers.toml"][..],
                "a.cedar headers.toml routes.toml",
            ),
            (
                &["modules.toml", "pay/b.cedar", "pay/a.cedar", "z/a.cedar"],
                "modules.toml pay/a.cedar pay/b.cedar z/a.cedar",
            ),
            (
                &[
                    "a.cedar",
                    ".b.cedar",
                    "a.cedar~",
                    "notes.md",
                    ".git/x.cedar",
                    "pay/.x.cedar",
                    "pay/tests.toml",
                    "docs/",
                ],
                "a.cedar",
            ),
        ] {
            assert_eq!(names(files).as_deref(), Ok(expected), "{files:?}");
        }
        for (files, expected) in [
            (&["notes.md"][..], "no `*.cedar` file"),
            (
                &["a.cedar", "pay/deep/b.cedar"],
                "in `pay`: `pay/deep` is a folder within a module",
            ),
            (&["a.cedar", "break-glass/b.cedar"], "`break-glass` is for grants"),
            (&["a.cedar", "pay/routes.toml"], "`pay/routes.toml` is in a module"),
            (&["a.cedar", "pay/headers.toml"], "`pay/headers.toml` is in a module"),
            (&["a.cedar", "pay/modules.toml"], "`pay/modules.toml` is in a module"),
        ] {
            let refused = names(files).unwrap_err();
            assert!(refused.contains(expected), "{files:?}: {refused}");
        }
    }

    #[test]
    fn what_is_no_text_or_too_much_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.cedar");
        fs::write(&file, b"// one\n// \xff\n").unwrap();
        let refused = read_policies(dir.path()).unwrap_err().to_string();
        assert_eq!(refused, "`a.cedar` is not UTF-8 in line 2; save it as UTF-8");
        fs::File::create(&file).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
        let refused = read_policies(dir.path()).unwrap_err().to_string();
        assert!(
            refused.contains("`a.cedar` has 4194305 bytes") && refused.contains("split it"),
            "{refused}"
        );
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("nowhere", &file).unwrap();
        assert!(read_policies(dir.path()).is_err(), "a link to nowhere is no policy");
    }
}
