//! A directory of policies, followed: for one machine, and until the first bundle.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use hoplite_policy::Source;
use tracing::{info, warn};

use crate::files_error::FilesError;
use crate::listing::{Listing, Named};
use crate::policy_files::{read, sources};

/// How often the directory is looked at: an edit is in force well under a second after it was saved.
const POLL: Duration = Duration::from_millis(200);

/// So many looks in a row may find that a file has just gone; then nobody is saving it.
const VANISHED_MAX: usize = 25;

/// The thread that follows the directory. Dropping it ends the thread.
#[derive(Debug)]
pub struct Follower {
    _stop: mpsc::SyncSender<()>,
}

/// The directory as it was last read.
pub(crate) struct Directory {
    path: PathBuf,
    glance: Option<Listing>,
    /// What the last look found and did not read yet.
    unsettled: Option<Listing>,
    /// How many looks in a row found that a file had just gone.
    vanished: usize,
    /// What else lies there, as it was last told.
    named: Vec<Named>,
    sources: Option<Result<Vec<(String, String)>, FilesError>>,
}

// === impl Directory ===

impl Directory {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            glance: None,
            unsettled: None,
            vanished: 0,
            named: Vec::new(),
            sources: None,
        }
    }

    /// Offers the directory's files, now and, from a thread of its own, whenever they have changed.
    pub(crate) fn follow(
        mut self,
        offer: impl Fn(&Path, Result<Vec<Source>, FilesError>) + Send + 'static,
    ) -> io::Result<Follower> {
        let (stop, stopped) = mpsc::sync_channel(0);
        let (looked, first) = mpsc::sync_channel(1);
        // A thread that cannot be had is noticed before anything is offered.
        thread::Builder::new().name("policy".to_owned()).spawn(move || {
            self.look(&offer);
            let _ = looked.send(());
            while stopped.recv_timeout(POLL) == Err(RecvTimeoutError::Timeout) {
                self.look(&offer);
            }
        })?;
        let _ = first.recv();
        Ok(Follower { _stop: stop })
    }

    /// The files of this moment; of one that somebody is saving, as it is when they have.
    pub(crate) fn read(mut self) -> Result<Vec<Source>, FilesError> {
        loop {
            if let Some(read) = self.changed() {
                return read; // at the latest when it has vanished as often as it may
            }
            thread::sleep(POLL);
        }
    }

    /// Looks once.
    pub(crate) fn look(&mut self, offer: impl Fn(&Path, Result<Vec<Source>, FilesError>)) {
        if let Some(sources) = self.changed() {
            offer(&self.path, sources);
        }
    }

    /// The sources, if their names or texts differ from those last read, and two looks agree on them.
    fn changed(&mut self) -> Option<Result<Vec<Source>, FilesError>> {
        let glance = match Listing::of(&self.path) {
            Err(FilesError::Vanished(_)) if self.is_being_saved() => return None,
            glance => glance,
        };
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
        let listed = glance.as_ref().map_err(Clone::clone);
        let read = listed.and_then(|glance| match &glance.other_hand {
            Some(other) => Err(other.clone().into()),
            None => read(&self.path, glance),
        });
        let read = match read {
            Err(FilesError::Vanished(_)) if self.is_being_saved() => return None,
            read => read,
        };
        self.vanished = 0;
        if let Ok(glance) = &glance {
            self.name(&glance.named);
        }
        self.glance = glance.ok();
        if self.sources.as_ref() == Some(&read) {
            return None;
        }
        self.sources = Some(read.clone());
        Some(read.map(sources))
    }

    /// Whether a file that has just gone may be there again at the next look.
    fn is_being_saved(&mut self) -> bool {
        self.vanished += 1;
        self.vanished < VANISHED_MAX
    }

    /// Says of what lies there and is no policy, or not as it seems, once.
    fn name(&mut self, named: &[Named]) {
        for new in named.iter().filter(|named| !self.named.contains(named)) {
            let directory = self.path.display();
            if new.is_misleading() {
                warn!(notice = true, %directory, "in the policy directory: {new}");
            } else {
                info!(%directory, "in the policy directory: {new}");
            }
        }
        self.named = named.to_vec();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

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

    #[test]
    fn what_others_may_write_is_refused_until_they_may_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.cedar");
        fs::write(&file, "permit").unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let mut directory = Directory::new(dir.path().to_owned());
        let mut look = || {
            directory.changed();
            let read = directory.changed()?;
            Some(read.map(|sources| sources.len()).map_err(|error| error.to_string()))
        };
        mode(&file, 0o644);
        assert_eq!(look(), None, "it was taken at the first look");
        for (path, bad, good) in [(file.as_path(), 0o646, 0o644), (dir.path(), 0o707, 0o700)] {
            mode(path, bad);
            let refused = look().unwrap().unwrap_err();
            assert!(
                refused.contains("chmod go-w") && refused.contains("whoever writes here"),
                "{refused}"
            );
            mode(path, good);
            assert_eq!(look(), Some(Ok(1)));
        }
        mode(dir.path(), 0o707);
        let mut at_start = Directory::new(dir.path().to_owned());
        assert!(at_start.changed().unwrap().is_err());
    }

    #[test]
    fn a_policy_that_becomes_a_link_to_nowhere_is_no_removal() {
        let dir = tempfile::tempdir().unwrap();
        let (file, stop) = (dir.path().join("a.cedar"), dir.path().join("stop.cedar"));
        let mut directory = Directory::new(dir.path().to_owned());
        fs::write(&file, "permit").unwrap();
        fs::write(&stop, "forbid").unwrap();
        let texts = |read: Result<Vec<Source>, FilesError>| {
            let texts = read.map(|sources| {
                sources
                    .into_iter()
                    .map(|source| source.text)
                    .collect::<Vec<_>>()
                    .join(",")
            });
            texts.map_err(|error| error.to_string())
        };
        assert_eq!(directory.changed().map(texts), Some(Ok("permit,forbid".to_owned())));
        fs::remove_file(&stop).unwrap();
        std::os::unix::fs::symlink("gone", &stop).unwrap();
        let refused = directory.changed().map(texts).unwrap().unwrap_err();
        assert!(refused.contains("`stop.cedar` is a link to `gone`"), "{refused}");
        assert_eq!(directory.changed().map(texts), None, "it is said once");
        fs::remove_file(&stop).unwrap();
        fs::write(&stop, "forbid").unwrap();
        fs::write(dir.path().join("notes.md"), "").unwrap();
        assert_eq!(directory.changed().map(texts), None);
        assert_eq!(directory.changed().map(texts), Some(Ok("permit,forbid".to_owned())));
        assert_eq!(directory.named, [Named::Other("notes.md".to_owned())]);
    }
}
