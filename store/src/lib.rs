//! Bytes that survive: a small key-value trait with revisions, on sled or in memory.
//!
//! Every commit gets the next number of one gap-free, commit-ordered sequence. A commit that returned is durable.
//! Watching from a revision yields every later change exactly once, in order, or says that it cannot.

mod feed;
mod memory;
mod sled;

#[cfg(test)]
mod conformance;

use std::collections::BTreeMap;
use std::fmt;

pub use feed::Watch;
pub use memory::MemoryStore;
pub use sled::SledStore;

/// Position in the sequence of commits; 0 before the first.
pub type Revision = u64;

/// How many of the newest commits a watcher can still ask for. At the control plane's write rates this is minutes of
/// a watcher's absence; after that a snapshot is cheaper than the changes.
pub const HISTORY_COMMITS: u64 = 4096;

/// Longest key, in bytes: keys are names, and every one is held in an index.
pub const KEY_BYTES_MAX: usize = 1024;

/// Largest sum of keys and values in one batch, in bytes: one commit must stay a short pause for everybody else.
pub const BATCH_BYTES_MAX: usize = 8 << 20;

/// A value and the commit that last wrote it.
#[derive(Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The bytes.
    pub value: Vec<u8>,
    /// The commit that wrote them.
    pub revision: Revision,
}

/// Writes that happen all or not at all.
///
/// ```
/// # use hoplite_store::{Batch, Condition, MemoryStore, Store};
/// let store = MemoryStore::new();
/// let batch = Batch::new().require("token/7", Condition::Absent).put("token/7", "unused").delete("token/6");
/// assert_eq!(store.commit(batch).unwrap(), 1);
/// ```
#[derive(Clone, Default)]
pub struct Batch {
    preconditions: Vec<(Vec<u8>, Condition)>,
    mutations: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

/// What must hold of a key, before the batch, for the batch to commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// The key has no value.
    Absent,
    /// The key has a value.
    Present,
    /// The key was last written by exactly this commit.
    At(Revision),
}

/// One write: `None` deletes.
#[derive(Clone, PartialEq, Eq)]
pub struct Mutation {
    /// What is written.
    pub key: Vec<u8>,
    /// Its new value, or `None` when it is deleted.
    pub value: Option<Vec<u8>>,
}

/// One commit as watchers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The commit.
    pub revision: Revision,
    /// What it wrote: each key once, keys in order. A delete appears even when the key had no value.
    pub mutations: Vec<Mutation>,
}

/// Everything under a prefix at one revision, keys in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The revision all of it was read at: watch from here.
    pub revision: Revision,
    /// Keys and what they held.
    pub entries: Vec<(Vec<u8>, Versioned)>,
}

/// The handful of verbs. Methods block, a commit for as long as the disk takes: call them where blocking is fine.
///
/// Nothing that is not durable is ever shown: not by `get`, `range` or `revision`, and not to a watcher.
pub trait Store: Send + Sync + 'static {
    /// The last commit; 0 when there was none.
    fn revision(&self) -> Revision;

    /// One value.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read or what it holds is damaged.
    fn get(&self, key: &[u8]) -> Result<Option<Versioned>, StoreError>;

    /// Everything under a prefix, at one revision. The empty prefix is everything.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read or what it holds is damaged.
    fn range(&self, prefix: &[u8]) -> Result<Snapshot, StoreError>;

    /// Writes a batch, all or nothing, and returns its revision. Durable when it returns. Preconditions are checked
    /// against the state just before it.
    ///
    /// # Errors
    /// Nothing was written on [`CommitError::Precondition`], `Empty`, `KeyTooLong` and `TooLarge`. After
    /// [`CommitError::Store`] the batch may or may not be there when the store is next opened.
    fn commit(&self, batch: Batch) -> Result<Revision, CommitError>;

    /// Changes after `from`.
    ///
    /// # Errors
    /// [`WatchError::Compacted`] when history no longer reaches back that far: take a snapshot and watch from it.
    /// [`WatchError::Future`] when `from` has not happened: the asker knows another history than this store.
    fn watch(&self, from: Revision) -> Result<Watch, WatchError>;

    /// Everything, at one revision.
    ///
    /// # Errors
    /// As [`Store::range`].
    fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.range(b"")
    }
}

/// The store's own failures: the disk's or the operator's matter, never the caller's.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Another process, or another part of this one, has the directory open.
    #[error("store `{directory}` is in use: stop the process that holds it, or choose another directory")]
    InUse {
        /// The store's directory.
        directory: String,
    },
    /// What is on the disk is not what was written there.
    #[error(
        "store `{directory}` is damaged: {problem}; move the directory away and restore it from a backup, \
         nothing in it is used as it is"
    )]
    Damaged {
        /// The store's directory.
        directory: String,
        /// What was found.
        problem: String,
    },
    /// The operating system refused.
    #[error("store `{directory}`: cannot {action}: {problem}; check its owner, its mode and the free space")]
    Io {
        /// The store's directory.
        directory: String,
        /// What was being done.
        action: &'static str,
        /// What the system said.
        problem: String,
    },
    /// An earlier write failed half-way, so what is durable is not known until the store is opened again.
    #[error("store `{directory}` stopped after a failed write: see the first error, mend it and restart")]
    Stopped {
        /// The store's directory.
        directory: String,
    },
}

/// Why a batch did not commit.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// A precondition did not hold; nothing was written.
    #[error("precondition on key `{}` does not hold: read it again and decide anew", key.escape_ascii())]
    Precondition {
        /// The first key whose condition did not hold.
        key: Vec<u8>,
    },
    /// The batch has no writes.
    #[error("the batch is empty: a commit writes something")]
    Empty,
    /// A key is longer than [`KEY_BYTES_MAX`].
    #[error("a key of {0} bytes is too long: at most {KEY_BYTES_MAX}")]
    KeyTooLong(usize),
    /// Keys and values together exceed [`BATCH_BYTES_MAX`].
    #[error("a batch of {0} bytes is too large: at most {BATCH_BYTES_MAX}, split it")]
    TooLarge(usize),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
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
    /// The store is gone; there will be no more changes.
    #[error("the store was closed: open it again")]
    Closed,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

// === impl Batch ===

impl Batch {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Commits only if `condition` holds of `key`, written by this batch or not.
    #[must_use]
    pub fn require(mut self, key: impl Into<Vec<u8>>, condition: Condition) -> Self {
        self.preconditions.push((key.into(), condition));
        self
    }

    /// Sets a value. The last word on a key counts.
    #[must_use]
    pub fn put(mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        self.mutations.insert(key.into(), Some(value.into()));
        self
    }

    /// Removes a value, if there is one. The last word on a key counts.
    #[must_use]
    pub fn delete(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.mutations.insert(key.into(), None);
        self
    }

    /// Whether it writes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mutations.is_empty()
    }

    /// Bounds first, then preconditions against the state that `written_at` shows; what is left is to be written.
    fn check(
        self,
        written_at: impl Fn(&[u8]) -> Result<Option<Revision>, StoreError>,
    ) -> Result<Vec<Mutation>, CommitError> {
        if self.mutations.is_empty() {
            return Err(CommitError::Empty);
        }
        let mut total = 0;
        for (key, value) in &self.mutations {
            if key.len() > KEY_BYTES_MAX {
                return Err(CommitError::KeyTooLong(key.len()));
            }
            total += key.len() + value.as_ref().map_or(0, Vec::len);
        }
        if total > BATCH_BYTES_MAX {
            return Err(CommitError::TooLarge(total));
        }
        for (key, condition) in self.preconditions {
            let found = written_at(&key)?;
            let holds = match condition {
                Condition::Absent => found.is_none(),
                Condition::Present => found.is_some(),
                Condition::At(revision) => found == Some(revision),
            };
            if !holds {
                return Err(CommitError::Precondition { key });
            }
        }
        Ok(self
            .mutations
            .into_iter()
            .map(|(key, value)| Mutation { key, value })
            .collect())
    }
}

// === Debug: values may be secrets, so only their size is shown ===

impl fmt::Debug for Versioned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Versioned({} bytes at {})", self.value.len(), self.revision)
    }
}

impl fmt::Debug for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "Put(`{}`, {} bytes)", self.key.escape_ascii(), value.len()),
            None => write!(f, "Delete(`{}`)", self.key.escape_ascii()),
        }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Batch({} preconditions, {} writes)",
            self.preconditions.len(),
            self.mutations.len()
        )
    }
}
