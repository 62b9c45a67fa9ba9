//! What watchers wait on: how far history reaches, who reads it, and when there is more.
//!
//! A backend implements [`History`] over whatever keeps its changes, and tells an [`Announcer`] of each durable commit,
//! its own or another replica's. [`Watch`] makes the promise out of both: every change once, in order, or why not.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::{Change, Revision, StoreError};

/// A reader of changes. It holds no lock and no copy of history: a slow one delays nobody, and learns that history
/// has moved on. It does not keep the store open either.
pub struct Watch {
    announced: Arc<Announced>,
    history: Weak<dyn History>,
    seen: Revision,
}

/// Where a backend keeps its changes.
pub trait History: Send + Sync {
    /// The change of one commit; `None` when it is no longer kept. Asked only for what was announced. May block.
    ///
    /// # Errors
    /// [`StoreError`] when history cannot be read, or a change is gone that should be kept.
    fn change(&self, revision: Revision) -> Result<Option<Change>, StoreError>;
}

/// The point where commits meet watchers; one per open store, which closes it by dropping it.
pub struct Announcer(Arc<Announced>);

/// Which changes a watcher may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// The first change still kept; one more than `newest` when none is.
    pub oldest: Revision,
    /// The last durable commit.
    pub newest: Revision,
}

/// Why a watch cannot go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WatchError {
    /// The changes asked for are no longer kept.
    #[error("history begins at revision {oldest}: take a snapshot and watch from its revision")]
    Compacted {
        /// The oldest change still kept.
        oldest: Revision,
    },
    /// The revision asked for has not happened here.
    #[error("revision {from} is in the future, the store is at {current}: take a snapshot, histories differ")]
    Future {
        /// What was asked for.
        from: Revision,
        /// Where the store is.
        current: Revision,
    },
    /// The backend gave another change than the one asked for.
    #[error("the store gave the change of revision {got} for that of {wanted}: take a snapshot, and report the fault")]
    WrongChange {
        /// The change that is next.
        wanted: Revision,
        /// The one that came.
        got: Revision,
    },
    /// The store is gone; there will be no more changes.
    #[error("the store was closed: open it again")]
    Closed,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

struct Announced {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    reach: Reach,
    closed: bool,
}

// === impl Watch ===

impl Watch {
    /// The next change, waiting up to `timeout`; `None` when there was none.
    ///
    /// # Errors
    /// [`WatchError::Compacted`] when this watcher fell behind what is kept, [`WatchError::Closed`] when the store is
    /// gone, [`WatchError::Store`] when history cannot be read, [`WatchError::WrongChange`] when the backend is at fault.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Change>, WatchError> {
        let Some(reach) = self.wait(timeout)? else {
            return Ok(None);
        };
        let wanted = self.seen + 1;
        if wanted < reach.oldest {
            return Err(WatchError::Compacted { oldest: reach.oldest });
        }
        let history = self.history.upgrade().ok_or(WatchError::Closed)?;
        // What was kept a moment ago may have been dropped by a commit that is not announced yet.
        let change = history
            .change(wanted)?
            .ok_or(WatchError::Compacted { oldest: wanted + 1 })?;
        if change.revision != wanted {
            return Err(WatchError::WrongChange {
                wanted,
                got: change.revision,
            });
        }
        self.seen = wanted;
        Ok(Some(change))
    }

    /// The last revision this watcher was given, or began from.
    #[must_use]
    pub fn seen(&self) -> Revision {
        self.seen
    }

    /// How far history reaches, as soon as that is beyond what was seen; `None` after `timeout`.
    fn wait(&self, timeout: Duration) -> Result<Option<Reach>, WatchError> {
        #[expect(
            clippy::disallowed_methods,
            reason = "how long a watcher has waited is nobody's argument"
        )]
        let started = Instant::now();
        let mut state = self.announced.lock();
        while state.reach.newest <= self.seen {
            if state.closed {
                return Err(WatchError::Closed);
            }
            let Some(left) = timeout.checked_sub(started.elapsed()).filter(|left| !left.is_zero()) else {
                return Ok(None);
            };
            state = self
                .announced
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Ok(Some(state.reach))
    }
}

// === impl Announcer ===

impl Announcer {
    /// For a store whose history reaches this far.
    #[must_use]
    pub fn new(reach: Reach) -> Self {
        Self(Arc::new(Announced {
            state: Mutex::new(State { reach, closed: false }),
            changed: Condvar::new(),
        }))
    }

    /// What was announced last.
    #[must_use]
    pub fn reach(&self) -> Reach {
        self.0.lock().reach
    }

    /// Called once a commit is durable, and only then. Where two threads announce, an earlier word that comes late is
    /// passed over.
    pub fn announce(&self, reach: Reach) {
        let mut state = self.0.lock();
        if reach.newest >= state.reach.newest {
            state.reach = reach;
        }
        drop(state);
        self.0.changed.notify_all();
    }

    /// What [`Store::watch`](crate::Store::watch) answers. `history` is weak, so that a watcher keeps no store open.
    ///
    /// # Errors
    /// [`WatchError::Future`] and [`WatchError::Compacted`].
    pub fn watch(&self, from: Revision, history: Weak<dyn History>) -> Result<Watch, WatchError> {
        let Reach { oldest, newest } = self.reach();
        if from > newest {
            return Err(WatchError::Future { from, current: newest });
        }
        if from + 1 < oldest {
            return Err(WatchError::Compacted { oldest });
        }
        Ok(Watch {
            announced: Arc::clone(&self.0),
            history,
            seen: from,
        })
    }
}

impl Drop for Announcer {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

impl Announced {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each field is set in one step: a panic elsewhere leaves them sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Reach ===

impl Reach {
    /// That of an empty store.
    pub const START: Self = Self { oldest: 1, newest: 0 };

    /// After one more commit, when `keep` are kept.
    #[must_use]
    pub fn grown(self, keep: u64) -> Self {
        let newest = self.newest + 1;
        Self {
            newest,
            oldest: self.oldest.max((newest + 1).saturating_sub(keep)),
        }
    }
}
