//! Bytes that survive: a small key-value trait with revisions, on sled or in memory.
//!
//! Every commit gets the next number of one gap-free, commit-ordered sequence. A commit that returned is durable.
//! Watching from a revision yields every later change exactly once, in order, or says that it cannot. What is too large for
//! a commit is put first, under its digest, and stays for as long as a key names it.
//!
//! A store on another machine is a crate of its own: docs/guide/add-a-store.md says what it implements, and the feature
//! `conformance` holds what it must pass.

mod batch;
#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(feature = "conformance")]
pub mod crash;
mod large;
mod memory;
mod recent;
mod sled;
mod watch;

use std::fmt;
use std::time::SystemTime;

pub use batch::{Batch, CommitError, Condition, Mutation, Write};
pub use large::{LARGE_BYTES_MAX, LARGE_PER_KEY_MAX, LargeError, LargeId};
pub use memory::MemoryStore;
pub use sled::SledStore;
pub use sled::filling::Filling;
pub use watch::{Announcer, History, Reach, Watch, WatchError};

/// Position in the sequence of commits; 0 before the first.
pub type Revision = u64;

/// How many of the newest commits a watcher can still ask for. At the control plane's write rates this is minutes of
/// a watcher's absence; after that a snapshot is cheaper than the changes.
pub const HISTORY_COMMITS: u64 = 4096;

/// How many bytes of the newest commits' writes are kept for watchers, whatever their number; the newest commit always is. A
/// thousand commits of a registration each are half a megabyte: only a bulk load reaches this.
pub const HISTORY_BYTES_MAX: usize = 16 << 20;

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
    /// The large values that stay for as long as the key has this value.
    pub names: Vec<LargeId>,
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
///
/// **Large values** lie beside the keys, each under its digest. [`put_large`](Self::put_large) makes one durable; a commit
/// that [names](Batch::put_naming) it keeps it for as long as the key has that value; [`sweep_large`](Self::sweep_large)
/// removes what no key names. A commit checks that what it names is there, and no sweep runs inside that check: so whatever
/// a committed key names is there, however publishers and sweepers of all replicas interleave. A publisher whose value was
/// swept before its commit is told so ([`CommitError::MissingLarge`]), and puts it again. The age that a sweep spares makes
/// this rare; it is a kindness and no part of the argument, so no clock has to be right.
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

    /// What follows a key in the order of keys, at one revision: about so many bytes, and at least one value if any follows.
    /// From the beginning without a key. Whoever goes through all of a store by this holds no more than one page of it.
    ///
    /// # Errors
    /// As [`Store::get`].
    fn page(&self, after: Option<&[u8]>, bytes: usize) -> Result<Snapshot, StoreError>;

    /// Writes a batch, all or nothing, and returns its revision. Durable when it returns. Preconditions are checked
    /// against the state just before it, and so is that the large values it names are there.
    ///
    /// # Errors
    /// After [`CommitError::Store`] the batch may or may not be there when the store is next opened; after any other error
    /// nothing was written.
    fn commit(&self, batch: Batch) -> Result<Revision, CommitError>;

    /// Changes after `from`.
    ///
    /// # Errors
    /// [`WatchError::Compacted`] when history no longer reaches back that far: take a snapshot and watch from it.
    /// [`WatchError::Future`] when `from` has not happened: the asker knows another history than this store.
    fn watch(&self, from: Revision) -> Result<Watch, WatchError>;

    /// Why the store cannot be reached now, for one that lies elsewhere. It may be back at any moment.
    fn away(&self) -> Option<String> {
        None
    }

    /// Everything, at one revision.
    ///
    /// # Errors
    /// As [`Store::range`].
    fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.range(b"")
    }

    /// Keeps a large value and returns its digest. Durable when it returns, and kept until a sweep finds that no key names
    /// it. One that is there already is made `now` old: it is written again, which mends it if it was damaged. Takes no
    /// revision.
    ///
    /// # Errors
    /// [`LargeError::TooLarge`] beyond [`LARGE_BYTES_MAX`]; [`LargeError::Store`] when it cannot be written. Commits go on
    /// after either.
    fn put_large(&self, bytes: &[u8], now: SystemTime) -> Result<LargeId, LargeError>;

    /// A large value; `None` when it was never put or was swept. Its digest is checked on each read.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when what is there is not what was put, or a key names it and it is gone: putting it again
    /// mends either.
    fn large(&self, id: &LargeId) -> Result<Option<Vec<u8>>, StoreError>;

    /// Removes the large values that no key names and that were put before `put_before`, and says which: whoever has copies
    /// drops those and no others.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read or written. What a key names is there all the same.
    fn sweep_large(&self, put_before: SystemTime) -> Result<Vec<LargeId>, StoreError>;
}

/// The store's own failures: the disk's, the network's or the operator's matter, never the caller's.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Another process, or another part of this one, has it open.
    #[error("store `{location}` is in use: stop the process that holds it, or choose another location")]
    InUse {
        /// The directory, or the address of a server without its password.
        location: String,
    },
    /// What is there is not what was written there.
    #[error(
        "store `{location}` is damaged: {problem}; set it aside and restore it from a backup, nothing in it is used as it is"
    )]
    Damaged {
        /// The directory, or the address of a server without its password.
        location: String,
        /// What was found.
        problem: String,
    },
    /// The operating system, or a server, refused.
    #[error("store `{location}`: cannot {action}: {problem}; {remedy}")]
    Io {
        /// The directory, or the address of a server without its password.
        location: String,
        /// What was being done.
        action: &'static str,
        /// What the system or the server said.
        problem: String,
        /// What to look at: `check its owner, its mode and the free space`.
        remedy: &'static str,
    },
    /// The server is not there, or takes no writes now; it may be back at any moment.
    #[error(
        "the database `{location}` cannot be reached ({problem}); what is known is still served, and nothing can be written until it is back"
    )]
    Away {
        /// The address of the server without its password.
        location: String,
        /// What the system or the server said.
        problem: String,
    },
    /// An earlier write failed half-way, so what is durable is not known until the store is opened again.
    #[error("store `{location}` stopped after a failed write: see the first error, mend it and restart")]
    Stopped {
        /// The directory, or the address of a server without its password.
        location: String,
    },
}

// === Debug: values may be secrets, so only their size is shown ===

impl fmt::Debug for Versioned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Versioned({} bytes at {})", self.value.len(), self.revision)
    }
}
