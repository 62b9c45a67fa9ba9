//! The files of a policy directory, as sources.
//!
//! `*.cedar`, `routes.toml`, `modules.toml` and `headers.toml` at the top; `*.cedar` in its folders, each of which is a
//! module. What else lies there is refused or named, see [`Listing`].

use std::io::{self, Read};
use std::path::Path;

use hoplite_host::files::{encoding, open_regular};
use hoplite_policy::Source;

use crate::files_error::{FILE_BYTES_MAX, FilesError};
use crate::listing::{Listing, Named};

/// How often a directory is read that somebody is changing.
const READINGS_MAX: usize = 5;

/// The files of a directory, and what else lies there.
#[derive(Debug)]
pub struct PolicyFiles {
    /// The files.
    pub sources: Vec<Source>,
    /// What is not one of them, or not as it seems.
    pub named: Vec<Named>,
}

/// The policy files of a directory as a proxy reads them, for tools that check them before a proxy does. People are refused what
/// a proxy only names: a policy that somebody put aside under another name, which nothing reads.
///
/// # Errors
/// What cannot be read, what looks like a policy and is none, or that there is no policy.
pub fn read_policies(directory: &Path) -> Result<PolicyFiles, FilesError> {
    let mut changed = FilesError::NoPolicies(directory.to_owned());
    for _ in 0..READINGS_MAX {
        let read = Listing::of(directory).and_then(|listing| Ok((read(directory, &listing)?, listing)));
        let (texts, listing) = match read {
            Ok(read) => read,
            Err(vanished @ FilesError::Vanished(_)) => {
                changed = vanished;
                continue;
            }
            Err(error) => return Err(error),
        };
        if Listing::of(directory).as_ref() != Ok(&listing) {
            changed = FilesError::Vanished(directory.display().to_string());
            continue;
        }
        let mut named = listing.named.iter();
        if let Some(Named::Leftover(leftover)) = named.find(|named| matches!(named, Named::Leftover(_))) {
            return Err(FilesError::Leftover(leftover.clone()));
        }
        let sources = sources(texts);
        return if has_policies(&sources) {
            Ok(PolicyFiles {
                sources,
                named: listing.named,
            })
        } else {
            Err(FilesError::NoPolicies(directory.to_owned()))
        };
    }
    Err(changed)
}

/// Whether a daemon of this user would go by the files of a directory, or refuse them because others could write them.
///
/// # Errors
/// That it would refuse them, or that they cannot be read.
pub fn check_hand(directory: &Path, user: u32) -> Result<(), FilesError> {
    let listing = Listing::read_by(directory, user)?;
    listing.other_hand.map_or(Ok(()), |other| Err(other.into()))
}

pub(crate) fn sources(texts: Vec<(String, String)>) -> Vec<Source> {
    texts.into_iter().map(|(name, text)| Source { name, text }).collect()
}

/// An empty set would be a legal policy, but a directory without any is a mistake in `policy_dir`.
pub(crate) fn has_policies(sources: &[Source]) -> bool {
    sources.iter().any(|source| source.name.ends_with(".cedar"))
}

pub(crate) fn read(path: &Path, listing: &Listing) -> Result<Vec<(String, String)>, FilesError> {
    let files = listing.files.iter();
    files
        .map(|(name, stamp)| {
            let too_large = |bytes| FilesError::TooLarge {
                name: name.clone(),
                bytes,
            };
            if stamp.size > FILE_BYTES_MAX {
                return Err(too_large(stamp.size));
            }
            // It may have grown since, or be something else by now.
            let bytes = bytes(&path.join(name)).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => FilesError::Vanished(name.clone()),
                _ => FilesError::File {
                    name: name.clone(),
                    problem: error.to_string(),
                },
            })?;
            if bytes.len() as u64 > FILE_BYTES_MAX {
                return Err(too_large(bytes.len() as u64));
            }
            match String::from_utf8(bytes) {
                Ok(text) => Ok((name.clone(), text)),
                Err(error) if encoding(error.as_bytes()).is_some() => Err(FilesError::Encoding {
                    name: name.clone(),
                    encoding: encoding(error.as_bytes()).unwrap_or_default(),
                }),
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

/// One byte more than there may be is enough to know.
fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A directory with these files; `/` at the end is a folder, ` -> ` a link.
    fn directory(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let (name, target) = file
                .split_once(" -> ")
                .map_or((*file, None), |(name, to)| (name, Some(to)));
            let path = dir.path().join(name);
            let folder = if name.ends_with('/') {
                &path
            } else {
                path.parent().unwrap()
            };
            fs::create_dir_all(folder).unwrap();
            match target {
                Some(target) => symlink(target, &path).unwrap(),
                None if !name.ends_with('/') => fs::write(&path, "// nothing").unwrap(),
                None => {}
            }
        }
        dir
    }

    /// What is read, and after `|` what is named.
    fn names(files: &[&str]) -> Result<String, String> {
        let dir = directory(files);
        let files = read_policies(dir.path()).map_err(|error| error.to_string())?;
        let read = files.sources.into_iter().map(|source| source.name);
        let named = files.named.iter().map(|named| match named {
            Named::LinkOut { name, .. } | Named::Leftover(name) | Named::Hidden(name) => name.clone(),
            Named::Other(name) | Named::NoPolicies(name) => name.clone(),
        });
        let (read, named): (Vec<_>, Vec<_>) = (read.collect(), named.collect());
        Ok(format!("{} | {}", read.join(" "), named.join(" "))
            .trim_end_matches([' ', '|'])
            .to_owned())
    }

    #[test]
    fn everything_is_read_or_named() {
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
                    ".#a.cedar -> nowhere",
                    "notes.md",
                    ".git/x.cedar",
                    "pay/.x.cedar",
                    "pay/tests.toml",
                    "docs/",
                    "a.test",
                    "pay/a.test.json",
                    "hoplite.cedarschema",
                    "b.cedar -> a.cedar",
                    "c.cedar -> /etc/hostname",
                ],
                "a.cedar b.cedar c.cedar | .b.cedar pay/.x.cedar c.cedar notes.md pay/tests.toml docs pay",
            ),
        ] {
            assert_eq!(names(files).as_deref(), Ok(expected), "{files:?}");
        }
    }

    #[test]
    fn what_may_be_a_forbid_and_is_not_read_is_refused() {
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
            (
                &["a.cedar", "stop.cedar.bak"],
                "`stop.cedar.bak` looks like a policy and is not read; name it",
            ),
            (&["a.cedar", "pay/stop.cedar~"], "`pay/stop.cedar~` looks like a policy"),
            (&["a.cedar", "#stop.cedar#"], "`#stop.cedar#` looks like a policy"),
            (
                &["a.cedar", "modules.toml.orig"],
                "`modules.toml.orig` looks like a policy",
            ),
            (
                &["a.cedar", "stop.CEDAR"],
                "`stop.CEDAR` is not read, since its name is not in lower case",
            ),
            (&["a.cedar", "Modules.toml"], "`Modules.toml` is not read"),
            (
                &["a.cedar", "A.cedar"],
                "`A.cedar` and `a.cedar` differ only in upper and lower case",
            ),
            (
                &["a.cedar", "pay/b.cedar", "Pay/c.cedar"],
                "`Pay` and `pay` differ only",
            ),
            (
                &["a.cedar", "stop.cedar -> gone"],
                "`stop.cedar` is a link to `gone`, which cannot be followed",
            ),
            (
                &["a.cedar", "rails -> /nonexistent/rails"],
                "`rails` is a link to `/nonexistent/rails`",
            ),
            (
                &["a.cedar", "pay/stop.cedar -> stop.cedar"],
                "`pay/stop.cedar` is a link to `stop.cedar`",
            ),
        ] {
            let refused = names(files).unwrap_err();
            assert!(refused.contains(expected), "{files:?}: {refused}");
        }
        let check = |spoil: &dyn Fn(&Path), expected: &str| {
            let dir = directory(&["a.cedar"]);
            spoil(dir.path());
            let refused = read_policies(dir.path()).unwrap_err().to_string();
            assert!(refused.contains(expected), "{refused}");
        };
        let socket = |dir: &Path| drop(std::os::unix::net::UnixListener::bind(dir.join("stop.cedar")).unwrap());
        check(&socket, "`stop.cedar` is a socket and no file; remove it");
        check(
            &|dir| symlink("/dev/null", dir.join("stop.cedar")).unwrap(),
            "`stop.cedar` is a device and no file",
        );
        let name = |dir: &Path| fs::create_dir(dir.join(OsStr::from_bytes(b"rails\xff"))).unwrap();
        check(&name, "is not UTF-8; rename it");
        check(
            &|dir| fs::remove_file(dir.join("a.cedar")).unwrap(),
            "no `*.cedar` file",
        );
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
    }

    #[test]
    fn what_goes_between_the_list_and_the_reading_is_not_taken_for_removed() {
        let dir = directory(&["a.cedar", "stop.cedar"]);
        let listing = Listing::of(dir.path()).unwrap();
        fs::remove_file(dir.path().join("stop.cedar")).unwrap();
        let went = read(dir.path(), &listing).unwrap_err();
        assert_eq!(went, FilesError::Vanished("stop.cedar".to_owned()));
        // Replaced by a directory.
        fs::create_dir(dir.path().join("stop.cedar")).unwrap();
        let error = read(dir.path(), &listing).unwrap_err().to_string();
        assert!(error.contains("cannot read `stop.cedar`: it is a directory"), "{error}");
    }
}
