//! Which policy is in force: follows the policy directory, compiles beside the traffic, and swaps whole snapshots.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, Guard};
use hoplite_host::files;
use hoplite_policy::{Fault, Snapshot, Source};
use tokio::sync::watch;
use tracing::{info, warn};

/// How often the directory is looked at: an edit is in force well under a second after it was saved.
const POLL: Duration = Duration::from_millis(200);

/// A policy set larger than this is a mistake in `policy_dir`.
const FILES_MAX: usize = 4096;

/// One file larger than this too.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The file's name. It lies with the decision log: a directory of this proxy alone.
const KEPT: &str = "policy.last";

/// The snapshot in force, and what is wrong with the files if they are not it.
pub(crate) struct PolicyFeed {
    current: ArcSwap<Snapshot>,
    status: Mutex<PolicyStatus>,
    epoch: watch::Sender<u64>,
    /// The file that keeps the policy in force over a restart.
    kept: PathBuf,
}

/// For people.
#[derive(Debug, Clone)]
pub(crate) struct PolicyStatus {
    /// When the snapshot in force was put there.
    pub(crate) loaded_at: SystemTime,
    /// What keeps the files of the moment from being in force; empty when they are.
    pub(crate) faults: Vec<Fault>,
}

/// The thread that follows the directory. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Follower {
    _stop: mpsc::Sender<()>,
}

/// What a look at the directory compares: names, and for each what changes when it is written.
type Glance = Vec<(String, (u64, u64, i64, i64))>;

/// The directory as it was last read.
struct Directory {
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

// === impl PolicyFeed ===

impl PolicyFeed {
    /// Loads the directory and follows it on a thread of its own. If it is missing or broken, the last good policy, kept
    /// in a file of `state_dir`, goes on; without one, everything is denied and the reason said.
    pub(crate) fn follow(path: PathBuf, state_dir: &Path) -> io::Result<(Arc<Self>, Follower)> {
        let feed = Arc::new(Self::new(state_dir));
        let mut directory = Directory::new(path);
        feed.apply(&mut directory);
        let (stop, stopped) = mpsc::channel();
        let followed = feed.clone();
        thread::Builder::new().name("policy".to_owned()).spawn(move || {
            while stopped.recv_timeout(POLL) == Err(RecvTimeoutError::Timeout) {
                followed.apply(&mut directory);
            }
        })?;
        Ok((feed, Follower { _stop: stop }))
    }

    fn new(state_dir: &Path) -> Self {
        Self {
            current: ArcSwap::from_pointee(Snapshot::deny_all("no policy has been loaded yet")),
            status: Mutex::new(PolicyStatus {
                loaded_at: SystemTime::now(),
                faults: Vec::new(),
            }),
            epoch: watch::Sender::new(0),
            kept: state_dir.join(KEPT),
        }
    }

    /// The snapshot in force.
    pub(crate) fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// Changes with every snapshot, after it is in force.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.epoch.subscribe()
    }

    /// For people.
    pub(crate) fn status(&self) -> PolicyStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks once, and puts what changed in force if it is whole.
    fn apply(&self, directory: &mut Directory) {
        let Some(sources) = directory.changed() else { return };
        match sources {
            // Taken away on purpose: then the last good one must not come back either.
            Ok(sources) if !has_policies(&sources) => {
                let _ = fs::remove_file(&self.kept);
                self.put_in_force(Snapshot::deny_all(no_policies(&directory.path)));
            }
            Ok(sources) => match Snapshot::compile(&sources) {
                Ok(snapshot) => {
                    self.put_in_force(snapshot);
                    self.keep(&sources);
                }
                Err(faults) => self.reject(faults),
            },
            Err(reason) => self.reject(vec![Fault {
                file: directory.path.display().to_string(),
                line: 0,
                column: 0,
                reason,
            }]),
        }
    }

    /// Writes down what is in force, for a start at which the files are broken.
    fn keep(&self, sources: &[Source]) {
        let texts: Vec<(&str, &str)> = sources.iter().map(|source| (&*source.name, &*source.text)).collect();
        let kept = serde_json::to_vec(&texts).map_err(|error| error.to_string());
        let written = kept.and_then(|kept| files::write_private(&self.kept, &kept).map_err(|error| error.to_string()));
        if let Err(error) = written {
            warn!(error, "the policy in force is not kept for the next start");
        }
    }

    /// What was in force when this proxy, or the one before it, last found the files good.
    fn kept(&self) -> Option<Snapshot> {
        let kept = files::read_private(&self.kept).ok()?;
        let texts: Vec<(String, String)> = serde_json::from_slice(&kept).ok()?;
        Snapshot::compile(&sources(texts)).ok()
    }

    fn put_in_force(&self, snapshot: Snapshot) {
        let (revision, policies) = (snapshot.revision().to_owned(), snapshot.policy_ids().count());
        match snapshot.deny_all_reason() {
            Some(reason) => warn!(notice = true, reason, "every request is denied"),
            None => info!(notice = true, revision, policies, "policy in force"),
        }
        // INVARIANT: in force before announced. A connection that subscribed before it was decided hears of every
        // snapshot that its decision did not see.
        self.current.store(Arc::new(snapshot));
        self.set_status(|status| {
            *status = PolicyStatus {
                loaded_at: SystemTime::now(),
                faults: Vec::new(),
            }
        });
        self.epoch.send_modify(|epoch| *epoch += 1);
    }

    /// The old snapshot stays. At start that is the one last kept, or one that denies everything and can say why.
    fn reject(&self, faults: Vec<Fault>) {
        if self.snapshot().deny_all_reason().is_some() {
            match self.kept() {
                Some(snapshot) => self.put_in_force(snapshot),
                None => {
                    let first = faults.first().map(ToString::to_string).unwrap_or_default();
                    let reason = format!("the policy set is rejected: {first}");
                    self.current.store(Arc::new(Snapshot::deny_all(reason)));
                }
            }
        }
        for fault in &faults {
            warn!(
                notice = true,
                in_force = self.snapshot().revision(),
                "policy rejected: {fault}"
            );
        }
        self.set_status(|status| status.faults = faults);
    }

    fn set_status(&self, change: impl FnOnce(&mut PolicyStatus)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

// === impl Directory ===

impl Directory {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            glance: None,
            unsettled: None,
            sources: None,
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
fn has_policies(sources: &[Source]) -> bool {
    sources.iter().any(|source| source.name.ends_with(".cedar"))
}

fn no_policies(directory: &Path) -> String {
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
    fn the_last_good_policy_outlives_a_restart_but_not_its_removal() {
        let (policies, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = policies.path().join("a.cedar");
        let start = || {
            let (feed, mut directory) = (
                PolicyFeed::new(state.path()),
                Directory::new(policies.path().to_owned()),
            );
            feed.apply(&mut directory);
            (feed, directory)
        };
        let in_force = |feed: &PolicyFeed| (feed.snapshot().deny_all_reason().is_none(), feed.status().faults.len());

        fs::write(&file, "permit (").unwrap();
        assert_eq!(in_force(&start().0), (false, 1), "nothing was ever good");
        fs::write(&file, "@id(\"a\") permit (principal, action, resource);").unwrap();
        let (feed, _) = start();
        let revision = feed.snapshot().revision().to_owned();
        assert_eq!(in_force(&feed), (true, 0));

        fs::write(&file, "permit (").unwrap();
        let (feed, mut directory) = start();
        assert_eq!(
            in_force(&feed),
            (true, 1),
            "the last good one, and what is wrong with the files"
        );
        assert_eq!(feed.snapshot().revision(), revision);

        fs::remove_file(&file).unwrap();
        feed.apply(&mut directory);
        feed.apply(&mut directory);
        assert_eq!(in_force(&feed), (false, 0), "taken away on purpose");
        fs::write(&file, "permit (").unwrap();
        assert_eq!(in_force(&start().0), (false, 1), "it does not come back");
    }

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
