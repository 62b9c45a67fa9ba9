//! A write: what it reads, what it decides of that, and what must still hold of it when it is committed.
//!
//! Whatever a decision depends on is read through a [`View`] before it, and the view makes of each reading a
//! precondition of the commit. A decision itself sees values only, so that it cannot depend on anything else.
//!
//! The readings are made one after the other, so another commit may fall between two of them. The store refuses a commit
//! on such readings. A decision that changes nothing, or that refuses, commits nothing: it counts only if
//! [`View::holds`].

use std::collections::BTreeMap;

use hoplite_store::{Batch, CommitError, Condition, LargeId, Revision, Store, StoreError};

use crate::record::{self, BadRecord, Record};

/// A write that lost against others this often gives up: somebody always wins, so this needs a crowd.
const ATTEMPTS_MAX: usize = 128;

/// Where the marks of whole kinds lie: this and the kind's prefix. A mark changes with every record of its kind.
const MARKS: &str = "all/";

/// Something the registry is asked to do.
pub(crate) trait Write: Send + 'static {
    /// All that the decision depends on.
    type Reads;
    /// What whoever asked is told.
    type Answer: Send + 'static;
    /// Why it is not done.
    type Error: Send + 'static;

    /// Reads what [`decide`](Self::decide) needs.
    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError>;

    /// What changes (nothing, perhaps), and the answer. It is asked anew when something that was read has changed.
    fn decide(&self, reads: Self::Reads) -> Result<(Changes, Self::Answer), Self::Error>;
}

/// The store as one write sees it.
pub(crate) struct View<'a> {
    store: &'a dyn Store,
    required: BTreeMap<Vec<u8>, Condition>,
}

/// Records to be put and deleted, all or none.
#[derive(Debug, Default)]
pub(crate) struct Changes(BTreeMap<String, Option<Put>>);

#[derive(Debug)]
struct Put {
    value: Result<Vec<u8>, BadRecord>,
    names: Vec<LargeId>,
}

/// Why the store's records cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What it holds is not what this program writes.
    #[error(transparent)]
    Record(#[from] BadRecord),
}

/// Why a write was not done: the store's reasons, or the write's own.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError<E> {
    /// The store could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store did not take it.
    #[error(transparent)]
    Commit(CommitError),
    /// Others were faster, again and again.
    #[error("too many writes at the same time; try again")]
    Contention,
    /// The index will never have it.
    #[error("the CA no longer follows its store; restart it")]
    NotFollowing,
    /// It was decided against.
    #[error("{0}")]
    Refused(E),
}

/// Reads, decides, commits on condition; again from the start when somebody else was faster. Answers with the commit's
/// revision, 0 when there was nothing to write.
pub(crate) fn commit<W: Write>(store: &dyn Store, write: &W) -> Result<(W::Answer, Revision), WriteError<W::Error>> {
    for _ in 0..ATTEMPTS_MAX {
        let mut view = View::new(store);
        let reads = write.read(&mut view)?;
        let (changes, answer) = match write.decide(reads) {
            Ok((changes, answer)) if !changes.is_empty() => (changes, answer),
            Ok((_, answer)) if view.holds()? => return Ok((answer, 0)),
            Err(refused) if view.holds()? => return Err(WriteError::Refused(refused)),
            _ => continue,
        };
        match store.commit(view.batch(changes).map_err(ReadError::from)?) {
            Ok(revision) => return Ok((answer, revision)),
            Err(CommitError::Precondition { .. }) => {}
            Err(error) => return Err(WriteError::Commit(error)),
        }
    }
    Err(WriteError::Contention)
}

// === impl View ===

impl<'a> View<'a> {
    pub(crate) fn new(store: &'a dyn Store) -> Self {
        let required = BTreeMap::new();
        Self { store, required }
    }

    /// One record, if there is one. The commit requires that it is as it was read, or still not there.
    pub(crate) fn one<R: Record>(&mut self, name: &str) -> Result<Option<R>, ReadError> {
        Ok(self.one_at(name)?.map(|(record, _)| record))
    }

    /// One record and the commit that wrote it, required as by [`View::one`].
    pub(crate) fn one_at<R: Record>(&mut self, name: &str) -> Result<Option<(R, Revision)>, ReadError> {
        let key = record::key::<R>(name);
        let found = self.store.get(key.as_bytes())?;
        self.require(&key, found.as_ref().map(|versioned| versioned.revision));
        let Some(versioned) = found else {
            return Ok(None);
        };
        Ok(Some((record::decode(&key, &versioned.value)?, versioned.revision)))
    }

    /// All records of a kind, by name. The commit requires that none of them changed, and that no other came.
    pub(crate) fn all<R: Record>(&mut self) -> Result<BTreeMap<String, R>, ReadError> {
        const {
            assert!(
                R::COUNTED,
                "only kinds whose every write is marked can be required as a whole"
            )
        }
        let mark = mark::<R>();
        // Before the records: what comes in between is then missed by the condition, and not by the decision.
        let marked = self.store.get(mark.as_bytes())?;
        self.require(&mark, marked.map(|versioned| versioned.revision));
        self.passing()
    }

    /// All records of a kind as they happen to be. Nothing is required of them at the commit: this is only for finding
    /// what has had its time and may be cleared away.
    pub(crate) fn passing<R: Record>(&self) -> Result<BTreeMap<String, R>, ReadError> {
        let mut records = BTreeMap::new();
        for (key, versioned) in self.store.range(R::PREFIX.as_bytes())?.entries {
            let key = String::from_utf8_lossy(&key);
            if let Some(name) = key.strip_prefix(R::PREFIX) {
                records.insert(name.to_owned(), record::decode(&key, &versioned.value)?);
            }
        }
        Ok(records)
    }

    fn require(&mut self, key: &str, revision: Option<Revision>) {
        let condition = revision.map_or(Condition::Absent, Condition::At);
        // What was read first counts: when a second reading differs, the commit fails and all is read again.
        self.required.entry(key.into()).or_insert(condition);
    }

    /// Whether all that is required is as it was read. Then there was a moment, after the last reading, at which all of it
    /// was so.
    fn holds(&self) -> Result<bool, ReadError> {
        for (key, condition) in &self.required {
            let found = self.store.get(key)?.map(|versioned| versioned.revision);
            if found.map_or(Condition::Absent, Condition::At) != *condition {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What is to be committed: the changes, if all that was read still holds.
    pub(crate) fn batch(self, changes: Changes) -> Result<Batch, BadRecord> {
        let mut batch = Batch::new();
        for (key, condition) in self.required {
            batch = batch.require(key, condition);
        }
        for (key, value) in changes.0 {
            batch = match value {
                Some(Put { value, names }) => batch.put_naming(key, value?, names),
                None => batch.delete(key),
            };
        }
        Ok(batch)
    }
}

/// The key that is written with every record of a kind.
fn mark<R: Record>() -> String {
    format!("{MARKS}{}", R::PREFIX)
}

// === impl Changes ===

impl Changes {
    /// Nothing changes.
    pub(crate) fn none() -> Self {
        Self::default()
    }

    /// Puts a record in the place of the one with this name, if there is one.
    pub(crate) fn put<R: Record>(mut self, name: &str, record: &R) -> Self {
        self.mark::<R>();
        let key = record::key::<R>(name);
        let value = record::encode(&key, record);
        let names = record.large();
        self.0.insert(key, Some(Put { value, names }));
        self
    }

    /// Deletes the record with this name, if there is one.
    pub(crate) fn delete<R: Record>(mut self, name: &str) -> Self {
        self.mark::<R>();
        self.0.insert(record::key::<R>(name), None);
        self
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn mark<R: Record>(&mut self) {
        if R::COUNTED {
            let (value, names) = (Ok(Vec::new()), Vec::new());
            self.0.insert(mark::<R>(), Some(Put { value, names }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_store::MemoryStore;
    use serde::{Deserialize, Serialize};
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Coin {
        value: u64,
    }

    impl Record for Coin {
        const PREFIX: &'static str = "coin/";
        const COUNTED: bool = true;
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Purse {
        coins: u64,
    }

    impl Record for Purse {
        const PREFIX: &'static str = "purse";
    }

    /// Does what `meanwhile` does between reading and deciding, the first time.
    struct Raced<'a, T> {
        store: &'a MemoryStore,
        read: fn(&mut View<'_>) -> Result<T, ReadError>,
        meanwhile: Changes,
    }

    fn raced<T>(raced: Raced<'_, T>) -> bool {
        let mut view = View::new(raced.store);
        (raced.read)(&mut view).unwrap();
        let meanwhile = View::new(raced.store).batch(raced.meanwhile).unwrap();
        raced.store.commit(meanwhile).unwrap();
        let batch = view.batch(Changes::none().put("", &Purse { coins: 9 })).unwrap();
        raced.store.commit(batch).is_err()
    }

    #[test]
    fn what_was_read_is_required() {
        fn check<T>(what: &str, read: fn(&mut View<'_>) -> Result<T, ReadError>, meanwhile: Changes, fails: bool) {
            let store = MemoryStore::new();
            let first = Changes::none().put("a", &Coin { value: 1 });
            store.commit(View::new(&store).batch(first).unwrap()).unwrap();
            let store = &store;
            let failed = raced(Raced { store, read, meanwhile });
            assert_eq!(failed, fails, "{what}");
        }
        let coin = || Coin { value: 2 };
        let put = |name: &str| Changes::none().put(name, &coin());
        let delete = |name: &str| Changes::none().delete::<Coin>(name);
        check("it changed", |v| v.one::<Coin>("a"), put("a"), true);
        check("it went", |v| v.one::<Coin>("a"), delete("a"), true);
        check("it came", |v| v.one::<Coin>("b"), put("b"), true);
        check("another changed", |v| v.one::<Coin>("a"), put("b"), false);
        check("one of all changed", |v| v.all::<Coin>(), put("a"), true);
        check("one of all went", |v| v.all::<Coin>(), delete("a"), true);
        check("another came", |v| v.all::<Coin>(), put("b"), true);
        check(
            "nothing is required of what passes",
            |v| v.passing::<Coin>(),
            put("a"),
            false,
        );
    }

    /// Takes a coin into the purse.
    struct Take(AtomicUsize);

    impl Write for Take {
        type Reads = (Option<Purse>, BTreeMap<String, Coin>);
        type Answer = u64;
        type Error = Infallible;

        fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok((view.one("")?, view.all()?))
        }

        fn decide(&self, (purse, coins): Self::Reads) -> Result<(Changes, u64), Infallible> {
            let held = purse.map_or(0, |purse| purse.coins);
            let Some((name, _)) = coins.first_key_value() else {
                return Ok((Changes::none(), held));
            };
            let purse = Purse { coins: held + 1 };
            Ok((Changes::none().put("", &purse).delete::<Coin>(name), purse.coins))
        }
    }

    /// Reads the purse and then the coins, and says how many there are of each; refuses when it should. The first time,
    /// a coin goes from the heap into the purse between the two readings.
    struct Count<'a> {
        store: &'a MemoryStore,
        refuse: bool,
        readings: AtomicUsize,
    }

    impl Count<'static> {
        fn new(refuse: bool) -> Self {
            let store: &'static MemoryStore = Box::leak(Box::default());
            let coin = Changes::none().put("a", &Coin { value: 1 });
            store.commit(View::new(store).batch(coin).unwrap()).unwrap();
            let readings = AtomicUsize::new(0);
            Self {
                store,
                refuse,
                readings,
            }
        }
    }

    impl Write for Count<'static> {
        type Reads = (Option<Purse>, BTreeMap<String, Coin>);
        type Answer = (u64, usize);
        type Error = (u64, usize);

        fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
            let purse = view.one("")?;
            if self.readings.fetch_add(1, Ordering::Relaxed) == 0 {
                commit(self.store, &Take(AtomicUsize::new(0))).unwrap();
            }
            Ok((purse, view.all()?))
        }

        fn decide(&self, (purse, coins): Self::Reads) -> Result<(Changes, Self::Answer), Self::Error> {
            let counted = (purse.map_or(0, |purse| purse.coins), coins.len());
            match self.refuse {
                true => Err(counted),
                false => Ok((Changes::none(), counted)),
            }
        }
    }

    /// Torn readings would say that there is no coin anywhere.
    #[test]
    fn nobody_is_refused_or_answered_for_what_never_was() {
        let count = Count::new(false);
        assert_eq!(commit(count.store, &count).unwrap(), ((1, 0), 0));
        let count = Count::new(true);
        let refused = commit(count.store, &count).unwrap_err();
        assert!(matches!(refused, WriteError::Refused((1, 0))), "{refused:?}");
    }

    #[test]
    fn a_crowd_loses_nothing() {
        let store = MemoryStore::new();
        for n in 0..40 {
            let coin = Changes::none().put(&format!("{n:02}"), &Coin { value: n });
            store.commit(View::new(&store).batch(coin).unwrap()).unwrap();
        }
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        commit(&store, &Take(AtomicUsize::new(0))).unwrap();
                    }
                });
            }
        });
        let take = Take(AtomicUsize::new(0));
        assert_eq!(commit(&store, &take).unwrap(), (40, 0), "forty coins, and none is left");
        assert_eq!(take.0.into_inner(), 1);
    }
}
