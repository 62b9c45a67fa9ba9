//! The store that forgets: for tests, and the simplest reading of what the trait promises.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use crate::recent::Recent;
use crate::{
    Announcer, Batch, Change, CommitError, HISTORY_COMMITS, History, LargeError, LargeId, Mutation, Reach, Revision,
    Snapshot, Store, StoreError, Versioned, Watch, WatchError, Write,
};

/// Everything in memory, gone with the process. "Durable" here means: visible.
pub struct MemoryStore {
    state: Arc<Mutex<State>>,
    announcer: Announcer,
}

struct State {
    recent: Recent,
    entries: BTreeMap<Vec<u8>, Versioned>,
    /// Each with the time it was last put.
    large: BTreeMap<LargeId, (Vec<u8>, SystemTime)>,
}

// === impl MemoryStore ===

impl MemoryStore {
    /// An empty store at revision 0.
    #[must_use]
    pub fn new() -> Self {
        Self::keeping(HISTORY_COMMITS)
    }

    /// An empty store that keeps so many commits of history.
    #[must_use]
    pub fn keeping(keep: u64) -> Self {
        let state = State {
            recent: Recent::after(0, keep),
            entries: BTreeMap::new(),
            large: BTreeMap::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            announcer: Announcer::new(Reach::START),
        }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Store for MemoryStore {
    fn revision(&self) -> Revision {
        lock(&self.state).revision()
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
            revision: state.revision(),
            entries,
        })
    }

    fn page(&self, after: Option<&[u8]>, bytes: usize) -> Result<Snapshot, StoreError> {
        let state = lock(&self.state);
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut entries = Vec::new();
        let mut taken = 0;
        for (key, versioned) in state.entries.range::<[u8], _>((from, Bound::Unbounded)) {
            if taken > 0 && taken + key.len() + versioned.value.len() > bytes {
                break;
            }
            taken += key.len() + versioned.value.len();
            entries.push((key.clone(), versioned.clone()));
        }
        Ok(Snapshot {
            revision: state.revision(),
            entries,
        })
    }

    fn commit(&self, batch: Batch) -> Result<Revision, CommitError> {
        let mut state = lock(&self.state);
        let writes = batch.check(
            |key| Ok(state.entries.get(key).map(|found| found.revision)),
            |id| Ok(state.large.contains_key(id)),
        )?;
        state.apply(writes);
        // Under the lock, so that revisions are announced in their order.
        self.announcer.announce(state.recent.reach());
        Ok(state.revision())
    }

    fn watch(&self, from: Revision) -> Result<Watch, WatchError> {
        let history: Weak<Mutex<State>> = Arc::downgrade(&self.state);
        self.announcer.watch(from, history)
    }

    fn put_large(&self, bytes: &[u8], now: SystemTime) -> Result<LargeId, LargeError> {
        let id = LargeId::of_bounded(bytes)?;
        lock(&self.state).large.insert(id, (bytes.to_vec(), now));
        Ok(id)
    }

    fn large(&self, id: &LargeId) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(lock(&self.state).large.get(id).map(|(bytes, _)| bytes.clone()))
    }

    fn sweep_large(&self, put_before: SystemTime) -> Result<Vec<LargeId>, StoreError> {
        let mut state = lock(&self.state);
        let State { entries, large, .. } = &mut *state;
        let named: BTreeSet<&LargeId> = entries.values().flat_map(|versioned| &versioned.names).collect();
        let mut swept = Vec::new();
        large.retain(|id, (_, put)| {
            let stays = named.contains(id) || *put >= put_before;
            swept.extend((!stays).then_some(*id));
            stays
        });
        Ok(swept)
    }
}

// === impl State ===

impl State {
    fn revision(&self) -> Revision {
        self.recent.reach().newest
    }

    fn apply(&mut self, writes: Vec<Write>) {
        let revision = self.revision() + 1;
        let mut mutations = Vec::with_capacity(writes.len());
        for Write { mutation, names } in writes {
            mutations.push(mutation.clone());
            let Mutation { key, value } = mutation;
            match value {
                Some(value) => {
                    let versioned = Versioned { value, revision, names };
                    self.entries.insert(key, versioned)
                }
                None => self.entries.remove(&key),
            };
        }
        self.recent.push(mutations);
    }
}

impl History for Mutex<State> {
    fn change(&self, revision: Revision) -> Result<Option<Change>, StoreError> {
        Ok(lock(self).recent.change(revision))
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // `apply` has no step that can panic half-way short of the allocator, which aborts.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
