//! A directory of policies, followed: for one machine, and until the first bundle.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use hoplite_policy::Source;

use crate::policy_files::{FilesError, Glance, glance, read, sources};

/// How often the directory is looked at: an edit is in force well under a second after it was saved.
const POLL: Duration = Duration::from_millis(200);

/// The thread that follows the directory. Dropping it ends the thread.
#[derive(Debug)]
pub struct Follower {
    _stop: mpsc::SyncSender<()>,
}

/// The directory as it was last read.
pub(crate) struct Directory {
    path: PathBuf,
    glance: Option<Glance>,
    /// What the last look found and did not read yet.
    unsettled: Option<Glance>,
    sources: Option<Result<Vec<(String, String)>, FilesError>>,
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

    /// Offers the directory's files, now and, from a thread of its own, whenever they have changed.
    pub(crate) fn follow(
        mut self,
        offer: impl Fn(&Path, Result<Vec<Source>, FilesError>) + Send + 'static,
    ) -> io::Result<Follower> {
        self.look(&offer);
        let (stop, stopped) = mpsc::sync_channel(0);
        thread::Builder::new().name("policy".to_owned()).spawn(move || {
            while stopped.recv_timeout(POLL) == Err(RecvTimeoutError::Timeout) {
                self.look(&offer);
            }
        })?;
        Ok(Follower { _stop: stop })
    }

    /// Looks once.
    pub(crate) fn look(&mut self, offer: impl Fn(&Path, Result<Vec<Source>, FilesError>)) {
        if let Some(sources) = self.changed() {
            offer(&self.path, sources);
        }
    }

    /// The sources, if their names or texts differ from those last read, and two looks agree on them.
    fn changed(&mut self) -> Option<Result<Vec<Source>, FilesError>> {
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
            .map_err(FilesError::directory)
            .and_then(|glance| read(&self.path, glance));
        self.glance = glance.ok();
        if self.sources.as_ref() == Some(&read) {
            return None;
        }
        self.sources = Some(read.clone());
        Some(read.map(sources))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

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
