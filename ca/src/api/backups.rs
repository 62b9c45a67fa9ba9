//! Backups of this CA, one at a time, given out as fast as they are taken.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hoplite_host::clock;
use hoplite_host::shutdown::Shutdown;
use hoplite_wire::ca as wire;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tonic::Status;

use crate::api::status::ours;
use crate::backup::source::{self, BackupError, Take};
use crate::registry::Registry;

/// Parts that wait to be taken; each has a quarter of a MiB.
const WAITING_MAX: usize = 2;

/// Who takes nothing for so long has gone.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);

/// What backups are made of. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Backups {
    registry: Registry,
    data_dir: PathBuf,
    config: Option<PathBuf>,
    shutdown: Shutdown,
    place: Arc<Semaphore>,
}

/// The parts of a backup.
pub(crate) type Parts = mpsc::Receiver<Result<wire::BackupPart, Status>>;

/// The other end of a call, from a thread that may wait.
struct Taker {
    sender: mpsc::Sender<Result<wire::BackupPart, Status>>,
    shutdown: Shutdown,
    runtime: Handle,
}

// === impl Backups ===

impl Backups {
    pub(crate) fn new(registry: Registry, data_dir: PathBuf, config: Option<PathBuf>, shutdown: Shutdown) -> Self {
        Self {
            registry,
            data_dir,
            config,
            shutdown,
            place: Arc::new(Semaphore::new(1)),
        }
    }

    /// Begins one.
    pub(crate) fn begin(&self, who: String) -> Result<Parts, Status> {
        let place = Arc::clone(&self.place)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted("another backup is under way; try again when it has ended"))?;
        let now = clock::now();
        let bundle = self.registry.index().authority.bundle().cloned();
        let bundle = bundle.ok_or_else(|| ours(&"there is no trust bundle"))?;
        let config = match &self.config {
            Some(file) => Some(fs::read_to_string(file).map_err(|e| ours(&e))?),
            None => None,
        };
        let head = source::head(&bundle, config, now);
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let mut taker = Taker {
            sender,
            shutdown: self.shutdown.clone(),
            runtime: Handle::current(),
        };
        let made = self.clone();
        tokio::task::spawn_blocking(move || {
            let _place = place;
            let store = made.registry.store();
            let entries = |revision| {
                let index = made.registry.index();
                (index.revision() == revision).then(|| index.entries.iter().count() as u64)
            };
            let started = clock::moment();
            match source::walk(&*store, &made.data_dir, head, entries, &mut taker) {
                Ok(end) => {
                    let took_ms = started.elapsed().as_millis();
                    tracing::warn!(target: "hoplite::audit", who, revision = end.revision, entries = end.entries, took_ms, outcome = "done", "backup");
                }
                Err(error) => {
                    tracing::error!(target: "hoplite::audit", who, %error, outcome = "failed", "backup");
                    taker.end(&error);
                }
            }
        });
        Ok(receiver)
    }
}

// === impl Taker ===

impl Taker {
    /// Says why there is no more, if somebody still listens.
    fn end(&self, error: &BackupError) {
        let status = Status::unavailable(format!("there is no backup: {error}"));
        let _ = self.sender.try_send(Err(status));
    }
}

impl Take for Taker {
    fn take(&mut self, part: wire::backup_part::Part) -> Result<(), BackupError> {
        let part = wire::BackupPart { part: Some(part) };
        let Self {
            sender,
            shutdown,
            runtime,
        } = self;
        runtime.block_on(async {
            tokio::select! {
                () = shutdown.wait() => Err(BackupError::BrokenOff),
                sent = tokio::time::timeout(TAKEN_WITHIN, sender.send(Ok(part))) => match sent {
                    Ok(Ok(())) => Ok(()),
                    _ => Err(BackupError::BrokenOff),
                },
            }
        })
    }
}
