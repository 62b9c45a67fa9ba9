//! A batch: writes that happen all or not at all, what must hold for them, and the bounds.

use std::collections::BTreeMap;
use std::fmt;

use crate::large::{LARGE_PER_KEY_MAX, LargeId};
use crate::{BATCH_BYTES_MAX, KEY_BYTES_MAX, Revision, StoreError};

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
    writes: BTreeMap<Vec<u8>, Pending>,
}

/// A key's new value, and the large values that it names.
type Pending = (Option<Vec<u8>>, Vec<LargeId>);

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

/// One write as watchers see it: `None` deletes.
#[derive(Clone, PartialEq, Eq)]
pub struct Mutation {
    /// What is written.
    pub key: Vec<u8>,
    /// Its new value, or `None` when it is deleted.
    pub value: Option<Vec<u8>>,
}

/// One write of a batch that was checked, as a backend carries it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The key and its new value: what watchers are told.
    pub mutation: Mutation,
    /// The large values that stay for as long as the key has this value; none for a delete.
    pub names: Vec<LargeId>,
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
    /// The batch names a large value that was never put, or was swept since.
    #[error("the large value `{0}` is not in the store: put it again and commit anew")]
    MissingLarge(LargeId),
    /// The batch has no writes.
    #[error("the batch is empty: a commit writes something")]
    Empty,
    /// A key is longer than [`KEY_BYTES_MAX`].
    #[error("a key of {0} bytes is too long: at most {KEY_BYTES_MAX}")]
    KeyTooLong(usize),
    /// A key names more than [`LARGE_PER_KEY_MAX`] large values.
    #[error("a key that names {0} large values names too many: at most {LARGE_PER_KEY_MAX}")]
    TooManyLarge(usize),
    /// Keys and values together exceed [`BATCH_BYTES_MAX`].
    #[error("a batch of {0} bytes is too large: at most {BATCH_BYTES_MAX}, split it")]
    TooLarge(usize),
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
    pub fn put(self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Self {
        self.put_naming(key, value, [])
    }

    /// Sets a value that names large values: they stay for as long as the key has this value. The last word on a key
    /// counts.
    ///
    /// ```
    /// # use std::time::SystemTime;
    /// # use hoplite_store::{Batch, MemoryStore, Store};
    /// let store = MemoryStore::new();
    /// let bundle = store.put_large(&[7; 9 << 20], SystemTime::now()).unwrap();
    /// store.commit(Batch::new().put_naming("bundle/1", "of seven signers", [bundle])).unwrap();
    /// assert!(store.sweep_large(SystemTime::now()).unwrap().is_empty());
    /// ```
    #[must_use]
    pub fn put_naming(
        mut self,
        key: impl Into<Vec<u8>>,
        value: impl Into<Vec<u8>>,
        names: impl IntoIterator<Item = LargeId>,
    ) -> Self {
        let names = names.into_iter().collect();
        self.writes.insert(key.into(), (Some(value.into()), names));
        self
    }

    /// Removes a value, if there is one. The last word on a key counts.
    #[must_use]
    pub fn delete(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.writes.insert(key.into(), (None, Vec::new()));
        self
    }

    /// Whether it writes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// For a backend that reads before it checks: the keys that something is required of or that are written, some of them twice.
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        let required = self.preconditions.iter().map(|(key, _)| key.as_slice());
        required.chain(self.writes.keys().map(Vec::as_slice))
    }

    /// For a backend that reads before it checks: the large values that are named, some of them twice.
    pub fn large(&self) -> impl Iterator<Item = &LargeId> {
        self.writes.values().flat_map(|(_, names)| names)
    }

    /// For a backend, inside its transaction: bounds first, then the preconditions against the state that `written_at`
    /// shows, then that the large values are there. What comes back is to be written, in the order of keys, each once.
    ///
    /// # Errors
    /// What [`Store::commit`](crate::Store::commit) answers with.
    pub fn check(
        self,
        written_at: impl Fn(&[u8]) -> Result<Option<Revision>, StoreError>,
        has_large: impl Fn(&LargeId) -> Result<bool, StoreError>,
    ) -> Result<Vec<Write>, CommitError> {
        if self.writes.is_empty() {
            return Err(CommitError::Empty);
        }
        let mut total = 0;
        for (key, (value, names)) in &self.writes {
            if key.len() > KEY_BYTES_MAX {
                return Err(CommitError::KeyTooLong(key.len()));
            }
            if names.len() > LARGE_PER_KEY_MAX {
                return Err(CommitError::TooManyLarge(names.len()));
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
        for id in self.writes.values().flat_map(|(_, names)| names) {
            if !has_large(id)? {
                return Err(CommitError::MissingLarge(*id));
            }
        }
        Ok(self
            .writes
            .into_iter()
            .map(|(key, (value, names))| Write {
                mutation: Mutation { key, value },
                names,
            })
            .collect())
    }
}

// === Debug: values may be secrets, so only their size is shown ===

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
            self.writes.len()
        )
    }
}
