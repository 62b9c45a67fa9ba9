//! The store that forgets: for tests, and the simplest reading of what the trait promises.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::feed::{Feed, History, Reach};
use crate::{
    Batch, Change, CommitError, HISTORY_COMMITS, Mutation, Revision, Snapshot, Store, StoreError, Versioned, Watch,
    WatchError,
};

/// Everything in memory, gone with the process. "Durable" here means: visible.
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    feed: Arc<Feed>,
}

struct State {
    reach: Reach,
    keep: u64,
    entries: BTreeMap<Vec<u8>, Versioned>,
    history: VecDeque<Change>,
}

// === impl MemoryStore ===

impl MemoryStore {
    /// An empty store at revision 0.
    #[must_use]
    pub fn new() -> Self {
        Self::keeping(HISTORY_COMMITS)
    }

    pub(crate) fn keeping(keep: u64) -> Self {
        let state = State {
            reach: Reach::START,
            keep,
            entries: BTreeMap::new(),
            history: VecDeque::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            feed: Feed::new(Reach::START),
        }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.feed.close();
    }
}

impl Store for MemoryStore {
    fn revision(&self) -> Revision {
        lock(&self.state).reach.newest
    }

    fn get(&self, key: &[u8]) -> Result<Option<Versioned>, StoreError> {
        Ok(lock(&self.state).entries.get(key).cloned())
    }

    fn range(&self, prefix: &[u8]) -> Result<Snapshot, StoreError> {
        let state = lock(&self.state);
        let entries = state
            .entries
            .range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, versioned)| (key.clone(), versioned.clone()))
            .collect();
        Ok(Snapshot {
            revision: state.reach.newest,
            entries,
        })
    }

    fn commit(&self, batch: Batch) -> Result<Revision, CommitError> {
        let mut state = lock(&self.state);
        let mutations = batch.check(|key| Ok(state.entries.get(key).map(|found| found.revision)))?;
        state.apply(mutations);
        // Under the lock, so that revisions are published in their order.
        self.feed.publish(state.reach);
        Ok(state.reach.newest)
    }

    fn watch(&self, from: Revision) -> Result<Watch, WatchError> {
        let history: Weak<Mutex<State>> = Arc::downgrade(&self.state);
        self.feed.watch(from, history)
    }
}

// === impl State ===

impl State {
    fn apply(&mut self, mutations: Vec<Mutation>) {
        self.reach = self.reach.grown(self.keep);
        let revision = self.reach.newest;
        for Mutation { key, value } in mutations.iter().cloned() {
            match value {
                Some(value) => self.entries.insert(key, Versioned { value, revision }),
                None => self.entries.remove(&key),
            };
        }
        self.history.push_back(Change { revision, mutations });
        while self
            .history
            .front()
            .is_some_and(|change| change.revision < self.reach.oldest)
        {
            self.history.pop_front();
        }
    }
}

impl History for Mutex<State> {
    fn change(&self, revision: Revision) -> Result<Option<Change>, StoreError> {
        let state = lock(self);
        let at = revision
            .checked_sub(state.reach.oldest)
            .and_then(|at| usize::try_from(at).ok());
        Ok(at.and_then(|at| state.history.get(at)).cloned())
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // `apply` has no step that can panic half-way short of the allocator, which aborts.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
