//! What watchers wait on: how far history reaches, who reads it, and when there is more.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::{Change, Revision, StoreError, WatchError};

/// A reader of changes. It holds no lock and no copy of history: a slow one delays nobody, and learns that history
/// has moved on. It does not keep the store open either.
pub struct Watch {
    feed: Arc<Feed>,
    history: Weak<dyn History>,
    seen: Revision,
}

/// Where a backend keeps its changes.
pub(crate) trait History: Send + Sync {
    /// The change of one commit; `None` when it is no longer kept.
    fn change(&self, revision: Revision) -> Result<Option<Change>, StoreError>;
}

/// The point where commits meet watchers; one per store.
pub(crate) struct Feed {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    reach: Reach,
    closed: bool,
}

/// Which changes a watcher may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reach {
    /// The first change still kept; one more than `newest` when none is.
    pub(crate) oldest: Revision,
    /// The last durable commit.
    pub(crate) newest: Revision,
}

// === impl Watch ===

impl Watch {
    /// The next change, waiting up to `timeout`; `None` when there was none.
    ///
    /// # Errors
    /// [`WatchError::Compacted`] when this watcher fell behind what is kept, [`WatchError::Closed`] when the store is
    /// gone, [`WatchError::Store`] when history cannot be read.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Change>, WatchError> {
        let Some(reach) = self.wait(timeout)? else {
            return Ok(None);
        };
        let wanted = self.seen + 1;
        if wanted < reach.oldest {
            return Err(WatchError::Compacted { oldest: reach.oldest });
        }
        let history = self.history.upgrade().ok_or(WatchError::Closed)?;
        // What was kept a moment ago may have been dropped by a commit that is not published yet.
        let change = history
            .change(wanted)?
            .ok_or(WatchError::Compacted { oldest: wanted + 1 })?;
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
        let started = Instant::now();
        let mut state = self.feed.lock();
        while state.reach.newest <= self.seen {
            if state.closed {
                return Err(WatchError::Closed);
            }
            let Some(left) = timeout.checked_sub(started.elapsed()).filter(|left| !left.is_zero()) else {
                return Ok(None);
            };
            state = self
                .feed
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Ok(Some(state.reach))
    }
}

// === impl Feed ===

impl Feed {
    pub(crate) fn new(reach: Reach) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State { reach, closed: false }),
            changed: Condvar::new(),
        })
    }

    pub(crate) fn reach(&self) -> Reach {
        self.lock().reach
    }

    /// Called once a commit is durable, and only then; in the order of commits.
    pub(crate) fn publish(&self, reach: Reach) {
        self.lock().reach = reach;
        self.changed.notify_all();
    }

    /// The store is gone.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    pub(crate) fn watch(self: &Arc<Self>, from: Revision, history: Weak<dyn History>) -> Result<Watch, WatchError> {
        let Reach { oldest, newest } = self.reach();
        if from > newest {
            return Err(WatchError::Future { from, current: newest });
        }
        if from + 1 < oldest {
            return Err(WatchError::Compacted { oldest });
        }
        Ok(Watch {
            feed: Arc::clone(self),
            history,
            seen: from,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each field is set in one step: a panic elsewhere leaves them sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Reach ===

impl Reach {
    /// An empty store's.
    pub(crate) const START: Self = Self { oldest: 1, newest: 0 };

    /// After one more commit, when `keep` are kept.
    pub(crate) fn grown(self, keep: u64) -> Self {
        let newest = self.newest + 1;
        Self {
            newest,
            oldest: self.oldest.max((newest + 1).saturating_sub(keep)),
        }
    }
}
