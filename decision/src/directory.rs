//! A directory of policies, followed: for one machine, and until the first bundle.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, SystemTime};

use hoplite_policy::Source;

use crate::feed::PolicyFeed;

/// How often the directory is looked at: an edit is in force well under a second after it was saved.
const POLL: Duration = Duration::from_millis(200);

/// A policy set larger than this is a mistake in `policy_dir`.
const FILES_MAX: usize = 4096;

/// One file larger than this too.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The thread that follows the directory. Dropping it ends the thread.
#[derive(Debug)]
pub struct Follower {
    _stop: mpsc::Sender<()>,
}

/// What a look at the directory compares: names, and for each what changes when it is written.
type Glance = Vec<(String, (u64, u64, i64, i64))>;

/// The directory as it was last read.
pub(crate) struct Directory {
    path: PathBuf,
    glance: Option<Glance>,
    /// What the last look found and did not read yet.
    unsettled: Option<Glance>,
    sources: Option<Result<Vec<(String, String)>, String>>,
}

/// The policy files of a directory as a proxy reads them, for tools that check them before a proxy does.
///
/// # Errors
/// One sentence: what cannot be read, or that there is no policy.
pub fn read_policies(directory: &Path) -> Result<Vec<Source>, String> {
    let glance = glance(directory).map_err(|error| describe(&error))?;
    let sources = sources(read(directory, &glance)?);
    if has_policies(&sources) {
        Ok(sources)
    } else {
        Err(no_policies(directory))
    }
}

// === impl Directory ===

impl Directory {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            glance: None,
            unsettled: None,
            sources: None,
        }
    }

    /// Offers the directory to the feed, now and, from a thread of its own, whenever it has changed.
    pub(crate) fn follow(mut self, feed: Arc<PolicyFeed>) -> io::Result<Follower> {
        self.offer(&feed);
        let (stop, stopped) = mpsc::channel();
        thread::Builder::new().name("policy".to_owned()).spawn(move || {
            while stopped.recv_timeout(POLL) == Err(RecvTimeoutError::Timeout) {
                self.offer(&feed);
            }
        })?;
        Ok(Follower { _stop: stop })
    }

    /// Looks once.
    pub(crate) fn offer(&mut self, feed: &PolicyFeed) {
        if let Some(sources) = self.changed() {
            feed.offer_directory(&self.path, sources, SystemTime::now());
        }
    }

    /// The sources, if their names or texts differ from those last read, and two looks agree on them.
    fn changed(&mut self) -> Option<Result<Vec<Source>, String>> {
        let glance = glance(&self.path);
        if let Ok(now) = &glance {
            if self.glance.as_ref() == Some(now) {
                self.unsettled = None;
                return None;
            }
            // Whoever saves a file may empty or remove it first. For that moment its `forbid`s are gone and what is left
            // is valid: it must not come in force. At start there is nothing to hold on to.
            if self.sources.is_some() && self.unsettled.replace(now.clone()).as_ref() != Some(now) {
                return None;
            }
        }
        let read = glance
            .as_ref()
            .map_err(describe)
            .and_then(|glance| read(&self.path, glance));
        self.glance = glance.ok();
        if self.sources.as_ref() == Some(&read) {
            return None;
        }
        self.sources = Some(read.clone());
        Some(read.map(sources))
    }
}

fn sources(texts: Vec<(String, String)>) -> Vec<Source> {
    texts.into_iter().map(|(name, text)| Source { name, text }).collect()
}

/// An empty set would be a legal policy, but a directory without any is a mistake in `policy_dir`.
pub(crate) fn has_policies(sources: &[Source]) -> bool {
    sources.iter().any(|source| source.name.ends_with(".cedar"))
}

pub(crate) fn no_policies(directory: &Path) -> String {
    format!("there is no `*.cedar` file in `{}`", directory.display())
}

/// Names, inode, size and time of change of every policy file, in name order.
fn glance(path: &Path) -> io::Result<Glance> {
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let Ok(name) = entry?.file_name().into_string() else {
            continue;
        };
        // Editors' hidden swap files are not policies.
        if name.starts_with('.') || !(name.ends_with(".cedar") || name == "routes.toml") {
            continue;
        }
        match fs::metadata(path.join(&name)) {
            Ok(metadata) if metadata.is_file() => {
                files.push((
                    name,
                    (metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()),
                ));
            }
            Ok(_) => {}
            // Replaced at this moment; the next look sees the new one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if files.len() > FILES_MAX {
            return Err(io::Error::other(format!("more than {FILES_MAX} policy files")));
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path, glance: &Glance) -> Result<Vec<(String, String)>, String> {
    glance
        .iter()
        .map(|(name, (_, size, _, _))| {
            if *size > FILE_BYTES_MAX {
                return Err(format!("`{name}` has {size} bytes, more than {FILE_BYTES_MAX}"));
            }
            let text = fs::read_to_string(path.join(name)).map_err(|error| format!("cannot read `{name}`: {error}"))?;
            Ok((name.clone(), text))
        })
        .collect()
}

fn describe(error: &io::Error) -> String {
    format!("cannot read the policy directory: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_being_saved_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (file, other) = (dir.path().join("a.cedar"), dir.path().join("b.cedar"));
        let mut directory = Directory::new(dir.path().to_owned());
        let mut look = || {
            let texts = directory.changed()?.unwrap().into_iter().map(|source| source.text);
            Some(texts.collect::<Vec<_>>().join(","))
        };
        fs::write(&file, "first").unwrap();
        assert_eq!(look().as_deref(), Some("first"), "at start at once");
        assert_eq!(look(), None);
        fs::write(&file, "").unwrap();
        assert_eq!(look(), None, "emptied");
        fs::write(&file, "the second").unwrap();
        assert_eq!(look(), None, "written");
        assert_eq!(look().as_deref(), Some("the second"), "left alone since the last look");
        fs::rename(&file, &other).unwrap();
        assert_eq!(look(), None, "moved away");
        fs::rename(&other, &file).unwrap();
        assert_eq!(look(), None, "and back");
        fs::remove_file(&file).unwrap();
        assert_eq!((look(), look().as_deref()), (None, Some("")), "a removal counts too");
    }
}
