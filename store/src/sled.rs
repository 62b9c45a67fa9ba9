//! The embedded store: sled, contained. See docs/decisions/0003-sled.md for what is distrusted and why.
//!
//! One sled tree holds everything: `d<key>` a value, `h<revision>` a commit's changes, `m` the revision, how far
//! history reaches, and a digest over all values. Each item carries our own checksum over key and content. A commit is
//! one sled batch over all three. Beside it, the file `head` says what was last acknowledged and is the lock.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::{Duration, Instant};

use crate::feed::{Feed, History, Reach};
use crate::{
    Batch, Change, CommitError, HISTORY_COMMITS, Mutation, Revision, Snapshot, Store, StoreError, Versioned, Watch,
    WatchError,
};

/// sled's page cache, in bytes; its own default of 1 GiB is no bound at all.
const CACHE_BYTES: u64 = 16 << 20;

/// How long to wait for the sled of a store closed a moment ago in this process: its threads let go a little late.
const SLED_LOCK_WAIT: Duration = Duration::from_secs(5);

/// Changes when the layout does; an unknown one is refused.
const FORMAT: u8 = 1;

const DATA: u8 = b'd';
const HISTORY: u8 = b'h';
const META: &[u8] = b"m";

/// A store in a directory of its own, for one process at a time.
pub struct SledStore {
    shelf: Arc<Shelf>,
    feed: Arc<Feed>,
}

/// sled and what is known about it.
struct Shelf {
    // Dropped in this order: sled first, the lock last.
    db: sled::Db,
    /// sled's own file, a second time: see `make_durable`.
    sled_file: File,
    head: File,
    place: Place,
    keep: u64,
    state: RwLock<State>,
}

/// The directory, and how errors speak of it.
#[derive(Clone)]
struct Place(PathBuf);

struct State {
    meta: Meta,
    /// A write failed half-way: nothing more is read or written.
    stopped: bool,
    /// sled's files for large values that are known to be on the disk.
    blobs: BTreeSet<OsString>,
}

/// The item `m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Meta {
    reach: Reach,
    contents: Digest,
}

/// Tells one set of items from another, whatever the order they came in: an item that sled lost, or took back to an
/// older version, is noticed although every checksum that is left holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Digest {
    count: u64,
    sum: u64,
}

// === impl SledStore ===

impl SledStore {
    /// Opens the store in `directory`, which is made (mode 0700) if it is not there, and checks all of it.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when somebody has it open, [`StoreError::Damaged`] when what is there is not what was
    /// written, [`StoreError::Io`] when the system refuses.
    pub fn open(directory: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::open_keeping(directory.as_ref(), HISTORY_COMMITS)
    }

    pub(crate) fn open_keeping(directory: &Path, keep: u64) -> Result<Self, StoreError> {
        let shelf = Shelf::open(Place(directory.to_owned()), keep)?;
        let reach = shelf.read()?.meta.reach;
        Ok(Self {
            shelf: Arc::new(shelf),
            feed: Feed::new(reach),
        })
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        self.feed.close();
    }
}

impl Store for SledStore {
    fn revision(&self) -> Revision {
        self.feed.reach().newest
    }

    fn get(&self, key: &[u8]) -> Result<Option<Versioned>, StoreError> {
        let _state = self.shelf.read()?;
        Ok(self.shelf.value(key)?.map(|(versioned, _)| versioned))
    }

    fn range(&self, prefix: &[u8]) -> Result<Snapshot, StoreError> {
        let state = self.shelf.read()?;
        let mut entries = Vec::new();
        self.shelf.scan(DATA, prefix, |key, versioned, _| {
            entries.push((key.to_vec(), versioned));
        })?;
        Ok(Snapshot {
            revision: state.meta.reach.newest,
            entries,
        })
    }

    fn commit(&self, batch: Batch) -> Result<Revision, CommitError> {
        // Held until the disk has it: what is not durable is shown to nobody.
        let mut state = self.shelf.write()?;
        let mutations = batch.check(|key| Ok(self.shelf.value(key)?.map(|(found, _)| found.revision)))?;
        self.shelf.commit(&mut state, mutations)?;
        self.feed.publish(state.meta.reach);
        Ok(state.meta.reach.newest)
    }

    fn watch(&self, from: Revision) -> Result<Watch, WatchError> {
        let history: Weak<Shelf> = Arc::downgrade(&self.shelf);
        self.feed.watch(from, history)
    }
}

impl History for Shelf {
    fn change(&self, revision: Revision) -> Result<Option<Change>, StoreError> {
        if let Some(change) = self.kept_change(revision)? {
            return Ok(Some(change));
        }
        // Either a commit has just dropped it, or sled has lost it. Behind the lock no commit is under way.
        if revision >= self.read()?.meta.reach.oldest {
            return Err(self.place.damaged(format!("the change of revision {revision} is gone")));
        }
        Ok(None)
    }
}

// === impl Shelf ===

impl Shelf {
    fn open(place: Place, keep: u64) -> Result<Self, StoreError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&place.0)
            .map_err(|e| place.io("make the directory", &e))?;
        let head = place.lock()?;
        let acknowledged = place.read_head(&head)?;
        let db = place.open_sled()?;
        let sled_file = File::open(place.0.join("db")).map_err(|e| place.io("open sled's file", &e))?;
        let state = RwLock::new(State {
            meta: Meta::START,
            stopped: false,
            blobs: BTreeSet::new(),
        });
        let shelf = Self {
            db,
            sled_file,
            head,
            place,
            keep,
            state,
        };
        shelf.recover(acknowledged)?;
        Ok(shelf)
    }

    /// Believes nothing: checks every item, the set of items, and that nothing acknowledged is missing.
    fn recover(&self, acknowledged: Option<Revision>) -> Result<(), StoreError> {
        let damaged = |problem: String| Err(self.place.damaged(problem));
        let meta = match self.item(META)? {
            Some(bytes) => match Meta::decode(&bytes) {
                Some(meta) => meta,
                None => return damaged("its revision cannot be read, or was written by a newer version".into()),
            },
            None if acknowledged.is_none() && self.guarded("read", || Ok(self.db.is_empty()))? => Meta::START,
            None => return damaged("its revision is gone".into()),
        };
        let reach = meta.reach;
        if let Some(acknowledged) = acknowledged.filter(|acknowledged| *acknowledged > reach.newest) {
            return damaged(format!(
                "it ends at revision {}, but {acknowledged} was acknowledged",
                reach.newest
            ));
        }
        let mut contents = Digest::default();
        let mut newest = 0;
        self.scan(DATA, b"", |_, versioned, sum| {
            contents.add(sum);
            newest = newest.max(versioned.revision);
        })?;
        if contents != meta.contents || newest > reach.newest {
            return damaged(format!(
                "it holds {} values and should hold {}, or one of them is an older version",
                contents.count, meta.contents.count
            ));
        }
        for revision in reach.oldest..=reach.newest {
            if self.kept_change(revision)?.is_none() {
                return damaged(format!("the change of revision {revision} is gone"));
            }
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.meta = meta;
        self.make_durable(&mut state)?;
        File::open(&self.place.0)
            .and_then(|directory| directory.sync_all())
            .and_then(|()| self.head.sync_all())
            .map_err(|e| self.place.io("sync the directory", &e))
    }

    fn commit(&self, state: &mut State, mutations: Vec<Mutation>) -> Result<(), StoreError> {
        let before = state.meta;
        let reach = before.reach.grown(self.keep);
        let mut contents = before.contents;
        let mut batch = sled::Batch::default();
        for Mutation { key, value } in &mutations {
            if let Some((_, sum)) = self.value(key)? {
                contents.remove(sum);
            }
            let name = named(DATA, key);
            match value {
                Some(value) => {
                    let body = [&reach.newest.to_be_bytes()[..], value].concat();
                    let (sum, item) = seal(&name, &body);
                    contents.add(sum);
                    batch.insert(name, item);
                }
                None => batch.remove(name),
            }
        }
        let name = named(HISTORY, &reach.newest.to_be_bytes());
        let (_, item) = seal(&name, &encode_mutations(&mutations));
        batch.insert(name, item);
        for dropped in before.reach.oldest..reach.oldest {
            batch.remove(named(HISTORY, &dropped.to_be_bytes()));
        }
        let meta = Meta { reach, contents };
        batch.insert(META, seal(META, &meta.encode()).1);

        // From here on a failure leaves open what is on the disk.
        state.stopped = true;
        self.guarded("write", || self.db.apply_batch(batch))?;
        state.meta = meta;
        self.make_durable(state)?;
        state.stopped = false;
        Ok(())
    }

    /// Waits until the disk has what sled wrote. On Linux sled's own flush ends in `sync_file_range`, which empties
    /// neither the disk's cache nor writes the file's length, and values that sled puts into files of their own are
    /// not synced at all: a kill loses nothing then, a power cut does.
    fn make_durable(&self, state: &mut State) -> Result<(), StoreError> {
        self.guarded("flush", || self.db.flush())?;
        self.sled_file.sync_data().map_err(|e| self.place.io("sync", &e))?;
        self.sync_blobs(&mut state.blobs)
            .map_err(|e| self.place.io("sync large values", &e))?;
        // Not synced itself: it is there to catch what sled loses when the process is killed.
        let head = encode_head(state.meta.reach.newest);
        self.head
            .write_all_at(&head, 0)
            .map_err(|e| self.place.io("write the head file", &e))
    }

    fn sync_blobs(&self, synced: &mut BTreeSet<OsString>) -> io::Result<()> {
        let directory = self.place.0.join("blobs");
        let mut found = BTreeSet::new();
        let mut new = false;
        for blob in directory.read_dir()? {
            let blob = blob?;
            if !synced.contains(&blob.file_name()) {
                // sled may have removed it in the meantime.
                match File::open(blob.path()) {
                    Ok(file) => file.sync_all()?,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    Err(e) => return Err(e),
                }
                new = true;
            }
            found.insert(blob.file_name());
        }
        *synced = found;
        if new { File::open(directory)?.sync_all() } else { Ok(()) }
    }

    fn value(&self, key: &[u8]) -> Result<Option<(Versioned, u32)>, StoreError> {
        let name = named(DATA, key);
        let Some(item) = self.guarded("read", || self.db.get(&name))? else {
            return Ok(None);
        };
        self.open_value(&name, &item).map(Some)
    }

    fn open_value(&self, name: &[u8], item: &[u8]) -> Result<(Versioned, u32), StoreError> {
        let sealed = unseal(name, item).and_then(|(sum, body)| Some((sum, body.split_first_chunk::<8>()?)));
        let Some((sum, (revision, value))) = sealed else {
            return Err(self.place.damaged_item(name));
        };
        Ok((
            Versioned {
                value: value.to_vec(),
                revision: u64::from_be_bytes(*revision),
            },
            sum,
        ))
    }

    /// Calls `each` with key, value and checksum of everything of a kind under a prefix, in order.
    fn scan(&self, kind: u8, prefix: &[u8], mut each: impl FnMut(&[u8], Versioned, u32)) -> Result<(), StoreError> {
        let mut items = self.db.scan_prefix(named(kind, prefix));
        while let Some((name, item)) = self.guarded("read", || items.next().transpose())? {
            let (versioned, sum) = self.open_value(&name, &item)?;
            each(name.get(1..).unwrap_or_default(), versioned, sum);
        }
        Ok(())
    }

    fn kept_change(&self, revision: Revision) -> Result<Option<Change>, StoreError> {
        let name = named(HISTORY, &revision.to_be_bytes());
        let Some(body) = self.item(&name)? else { return Ok(None) };
        let mutations = decode_mutations(&body).ok_or_else(|| self.place.damaged_item(&name))?;
        Ok(Some(Change { revision, mutations }))
    }

    fn item(&self, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(item) = self.guarded("read", || self.db.get(name))? else {
            return Ok(None);
        };
        let (_, body) = unseal(name, &item).ok_or_else(|| self.place.damaged_item(name))?;
        Ok(Some(body.to_vec()))
    }

    fn guarded<T>(&self, action: &'static str, call: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
        self.place.guarded(action, call)
    }

    fn read(&self) -> Result<RwLockReadGuard<'_, State>, StoreError> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        if state.stopped {
            Err(self.place.stopped())
        } else {
            Ok(state)
        }
    }

    fn write(&self) -> Result<RwLockWriteGuard<'_, State>, StoreError> {
        // A panic half-way through a commit leaves `stopped` set, which is what poisoning would say.
        let state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.stopped {
            Err(self.place.stopped())
        } else {
            Ok(state)
        }
    }
}

// === impl Place ===

impl Place {
    fn lock(&self) -> Result<File, StoreError> {
        let head = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.0.join("head"))
            .map_err(|e| self.io("open the head file", &e))?;
        match head.try_lock() {
            Ok(()) => Ok(head),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse { directory: self.text() }),
            Err(TryLockError::Error(e)) => Err(self.io("lock the head file", &e)),
        }
    }

    /// What was last acknowledged; `None` in a new directory.
    fn read_head(&self, head: &File) -> Result<Option<Revision>, StoreError> {
        let length = head.metadata().map_err(|e| self.io("read the head file", &e))?.len();
        if length == 0 {
            return Ok(None);
        }
        let mut bytes = [0; HEAD_BYTES];
        let read = head
            .read_exact_at(&mut bytes, 0)
            .ok()
            .and_then(|()| decode_head(&bytes));
        read.map(Some)
            .ok_or_else(|| self.damaged("the head file cannot be read".into()))
    }

    fn open_sled(&self) -> Result<sled::Db, StoreError> {
        let config = sled::Config::new()
            .path(&self.0)
            .cache_capacity(CACHE_BYTES)
            // Every commit flushes, so the background flusher has nothing to do.
            .flush_every_ms(None);
        let started = Instant::now();
        loop {
            // Ours is the `head` lock, so nobody but a predecessor in this process can hold sled's.
            match self.guarded("open", || config.open()) {
                Err(StoreError::Io { problem, .. })
                    if problem.contains("could not acquire lock") && started.elapsed() < SLED_LOCK_WAIT =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                result => return result,
            }
        }
    }

    /// sled panics on some damage where it could return an error; here both are an error.
    fn guarded<T>(&self, action: &'static str, call: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
        match catch_unwind(AssertUnwindSafe(call)) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(sled::Error::Io(e))) => Err(self.io(action, &e)),
            Ok(Err(other)) => Err(self.damaged(format!("cannot {action}: {other}"))),
            Err(_panic) => Err(self.damaged(format!("sled gave up on an attempt to {action}"))),
        }
    }

    fn text(&self) -> String {
        self.0.display().to_string()
    }

    fn stopped(&self) -> StoreError {
        StoreError::Stopped { directory: self.text() }
    }

    fn damaged(&self, problem: String) -> StoreError {
        StoreError::Damaged {
            directory: self.text(),
            problem,
        }
    }

    fn damaged_item(&self, name: &[u8]) -> StoreError {
        self.damaged(format!("the checksum of item `{}` does not match", name.escape_ascii()))
    }

    fn io(&self, action: &'static str, error: &io::Error) -> StoreError {
        StoreError::Io {
            directory: self.text(),
            action,
            problem: error.to_string(),
        }
    }
}

// === impl Meta ===

impl Meta {
    const START: Self = Self {
        reach: Reach::START,
        contents: Digest { count: 0, sum: 0 },
    };

    fn encode(&self) -> Vec<u8> {
        let fields = [
            self.reach.oldest,
            self.reach.newest,
            self.contents.count,
            self.contents.sum,
        ];
        std::iter::once(FORMAT)
            .chain(fields.into_iter().flat_map(u64::to_be_bytes))
            .collect()
    }

    fn decode(mut body: &[u8]) -> Option<Self> {
        if take(&mut body)? != [FORMAT] {
            return None;
        }
        let mut field = || take(&mut body).map(u64::from_be_bytes);
        let reach = Reach {
            oldest: field()?,
            newest: field()?,
        };
        let contents = Digest {
            count: field()?,
            sum: field()?,
        };
        body.is_empty().then_some(Self { reach, contents })
    }
}

// === impl Digest ===

impl Digest {
    fn add(&mut self, sum: u32) {
        self.count = self.count.wrapping_add(1);
        self.sum = self.sum.wrapping_add(u64::from(sum));
    }

    fn remove(&mut self, sum: u32) {
        self.count = self.count.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(u64::from(sum));
    }
}

// === Encoding: big-endian numbers, lengths before bytes ===

const HEAD_BYTES: usize = 12;

fn encode_head(revision: Revision) -> Vec<u8> {
    let revision = revision.to_be_bytes();
    [&revision[..], &crc32c::crc32c(&revision).to_be_bytes()].concat()
}

fn decode_head(mut bytes: &[u8]) -> Option<Revision> {
    let revision = take::<8>(&mut bytes)?;
    (take(&mut bytes)? == crc32c::crc32c(&revision).to_be_bytes()).then_some(u64::from_be_bytes(revision))
}

fn named(kind: u8, rest: &[u8]) -> Vec<u8> {
    [&[kind], rest].concat()
}

/// The checksum is over the name too: an item under another's name is damage.
fn seal(name: &[u8], body: &[u8]) -> (u32, Vec<u8>) {
    let sum = crc32c::crc32c_append(crc32c::crc32c(name), body);
    (sum, [&sum.to_be_bytes()[..], body].concat())
}

fn unseal<'a>(name: &[u8], item: &'a [u8]) -> Option<(u32, &'a [u8])> {
    let (sum, body) = item.split_first_chunk::<4>()?;
    let sum = u32::from_be_bytes(*sum);
    (sum == crc32c::crc32c_append(crc32c::crc32c(name), body)).then_some((sum, body))
}

fn encode_mutations(mutations: &[Mutation]) -> Vec<u8> {
    let mut body = Vec::new();
    let mut bytes = |bytes: &[u8]| {
        body.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        body.extend_from_slice(bytes);
    };
    for Mutation { key, value } in mutations {
        bytes(key);
        // Empty for a delete; a value has one byte before it, so that the empty value differs.
        match value {
            None => bytes(b""),
            Some(value) => bytes(&named(1, value)),
        }
    }
    body
}

fn decode_mutations(mut body: &[u8]) -> Option<Vec<Mutation>> {
    let mut mutations = Vec::new();
    while !body.is_empty() {
        let mut bytes = || {
            let length = usize::try_from(u64::from_be_bytes(take(&mut body)?)).ok()?;
            let (bytes, rest) = body.split_at_checked(length)?;
            body = rest;
            Some(bytes.to_vec())
        };
        let key = bytes()?;
        let value = bytes()?.split_first().map(|(_, value)| value.to_vec());
        mutations.push(Mutation { key, value });
    }
    Some(mutations)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::conformance::KEEP;

    fn open(directory: &Path) -> Result<SledStore, StoreError> {
        SledStore::open_keeping(directory, KEEP)
    }

    /// A directory with ten commits over two keys.
    fn filled() -> (tempfile::TempDir, PathBuf) {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("store");
        let store = open(&directory).unwrap();
        for i in 1..=10u64 {
            store
                .commit(Batch::new().put(format!("k{}", i % 2), format!("value {i}")))
                .unwrap();
        }
        (parent, directory)
    }

    #[test]
    fn reopening_keeps_everything() {
        let (_parent, directory) = filled();
        let before = open(&directory).unwrap().snapshot().unwrap();
        assert_eq!(before.revision, 10);
        for round in 0..3 {
            let store = open(&directory).unwrap();
            assert_eq!(store.snapshot().unwrap(), before, "round {round}");
            let mut watch = store.watch(0).unwrap();
            for revision in 1..=10u64 {
                let change = watch.next(Duration::ZERO).unwrap().unwrap();
                assert_eq!(change.revision, revision);
                assert_eq!(
                    change.mutations[0].value.as_deref(),
                    Some(format!("value {revision}").as_bytes())
                );
            }
        }
        assert_eq!(
            open(&directory).unwrap().commit(Batch::new().put("k", "v")).unwrap(),
            11
        );
    }

    #[test]
    fn compaction_survives_reopening() {
        let (_parent, directory) = filled();
        drop(open(&directory).unwrap());
        // A later version may keep less: the next commit drops the rest.
        let store = SledStore::open_keeping(&directory, 3).unwrap();
        assert!(store.watch(0).is_ok());
        store.commit(Batch::new().put("k", "v")).unwrap();
        assert!(matches!(store.watch(7), Err(WatchError::Compacted { oldest: 9 })));
        assert_eq!(
            store.watch(8).unwrap().next(Duration::ZERO).unwrap().unwrap().revision,
            9
        );
        drop(store);
        assert!(matches!(
            open(&directory).unwrap().watch(7),
            Err(WatchError::Compacted { oldest: 9 })
        ));
    }

    #[test]
    fn a_second_opener_is_told() {
        let (_parent, directory) = filled();
        let first = open(&directory).unwrap();
        let error = open(&directory).err().unwrap();
        assert!(matches!(error, StoreError::InUse { .. }));
        assert!(error.to_string().contains(&directory.display().to_string()), "{error}");
        drop(first);
        open(&directory).unwrap();
    }

    #[test]
    fn the_directory_is_private() {
        let (_parent, directory) = filled();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&directory.join("head"))), (0o700, 0o600));
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let file = parent.path().join("file");
        std::fs::write(&file, "in the way").unwrap();
        let error = open(&file.join("store")).err().unwrap();
        assert!(matches!(error, StoreError::Io { .. }));
        assert!(error.to_string().contains("file/store"), "{error}");
    }

    /// Damage done through sled, which then finds nothing wrong: our own checks must.
    #[test]
    fn damage_beneath_is_recognised() {
        type Harm = fn(&sled::Db);
        let cases: &[(&str, &str, Harm)] = &[
            ("value changed", "checksum", |db| {
                let mut item = db.get("dk1").unwrap().unwrap().to_vec();
                *item.last_mut().unwrap() ^= 1;
                db.insert("dk1", item).unwrap();
            }),
            ("value under another's name", "checksum", |db| {
                let item = db.get("dk1").unwrap().unwrap();
                db.insert("dk0", item).unwrap();
            }),
            ("value lost", "should hold 2", |db| drop(db.remove("dk1").unwrap())),
            ("value of old", "older version", |db| {
                let body = [&7u64.to_be_bytes()[..], b"value 7"].concat();
                db.insert("dk1", seal(b"dk1", &body).1).unwrap();
            }),
            ("value truncated", "checksum", |db| {
                drop(db.insert("dk1", b"abc").unwrap())
            }),
            ("change lost", "revision 4 is gone", |db| {
                drop(db.remove(named(HISTORY, &4u64.to_be_bytes())).unwrap());
            }),
            ("change altered", "checksum", |db| {
                let name = named(HISTORY, &4u64.to_be_bytes());
                let item = db.get(named(HISTORY, &5u64.to_be_bytes())).unwrap().unwrap();
                db.insert(name, item).unwrap();
            }),
            ("revision lost", "revision is gone", |db| drop(db.remove(META).unwrap())),
            ("everything lost", "revision is gone", |db| db.clear().unwrap()),
            ("newer format", "newer version", |db| {
                let mut body = Meta::START.encode();
                body[0] = FORMAT + 1;
                db.insert(META, seal(META, &body).1).unwrap();
            }),
            ("newest commits lost", "10 was acknowledged", |db| {
                let meta = Meta {
                    reach: Reach { oldest: 1, newest: 9 },
                    contents: Digest::default(),
                };
                db.insert(META, seal(META, &meta.encode()).1).unwrap();
            }),
        ];
        for (name, expected, harm) in cases {
            let (_parent, directory) = filled();
            let store = open(&directory).unwrap();
            harm(&store.shelf.db);
            store.shelf.db.flush().unwrap();
            drop(store);
            let error = open(&directory).err().unwrap_or_else(|| panic!("{name}: believed"));
            assert!(matches!(error, StoreError::Damaged { .. }), "{name}: {error}");
            let text = error.to_string();
            assert!(
                text.contains(expected) && text.contains("restore it from a backup"),
                "{name}: {text}"
            );
            assert!(text.contains(&directory.display().to_string()), "{name}: {text}");
        }
    }

    #[test]
    fn damage_is_recognised_while_open() {
        let (_parent, directory) = filled();
        let store = open(&directory).unwrap();
        store.shelf.db.insert("dk1", b"rubbish and more").unwrap();
        store.shelf.db.remove(named(HISTORY, &4u64.to_be_bytes())).unwrap();
        assert!(matches!(store.get(b"k1"), Err(StoreError::Damaged { .. })));
        assert!(matches!(store.snapshot(), Err(StoreError::Damaged { .. })));
        assert!(matches!(
            store.watch(3).unwrap().next(Duration::ZERO),
            Err(WatchError::Store(_))
        ));
        let refused = store.commit(Batch::new().put("k1", "new"));
        assert!(matches!(refused, Err(CommitError::Store(StoreError::Damaged { .. }))));
    }

    #[test]
    fn after_a_failed_write_nothing_goes_on() {
        let (_parent, directory) = filled();
        let store = open(&directory).unwrap();
        // sled's files for large values cannot be listed any more, so the commit cannot be made durable.
        std::fs::remove_dir_all(directory.join("blobs")).unwrap();
        let failed = store.commit(Batch::new().put("k1", "new"));
        assert!(
            matches!(failed, Err(CommitError::Store(StoreError::Io { .. }))),
            "{failed:?}"
        );
        assert_eq!(store.revision(), 10, "not published");
        assert!(matches!(store.get(b"k0"), Err(StoreError::Stopped { .. })));
        let refused = store.commit(Batch::new().put("k1", "new"));
        assert!(matches!(refused, Err(CommitError::Store(StoreError::Stopped { .. }))));
    }

    /// Flipped bits, shortened files: the store either opens with exactly what was there, or says that it is damaged.
    #[test]
    fn damaged_files_are_never_believed() {
        let (_parent, directory) = filled();
        let expected = open(&directory).unwrap().snapshot().unwrap();
        let length = std::fs::metadata(directory.join("db")).unwrap().len();
        let used = usize::try_from(length).unwrap().min(6000);
        let mut refused = 0;
        for file in ["db", "head", "conf"] {
            let original = std::fs::read(directory.join(file)).unwrap();
            let step = if file == "db" { 61 } else { 3 };
            for at in (0..original.len().min(used)).step_by(step) {
                for cut in [false, true] {
                    let mut bytes = original.clone();
                    if cut {
                        bytes.truncate(at)
                    } else {
                        bytes[at] ^= 0x10
                    }
                    let copy = tempfile::tempdir().unwrap();
                    copy_all(&directory, copy.path());
                    std::fs::write(copy.path().join(file), bytes).unwrap();
                    match open(copy.path()) {
                        Ok(store) => assert_eq!(store.snapshot().unwrap(), expected, "{file} at {at}, cut {cut}"),
                        Err(StoreError::Damaged { .. } | StoreError::Io { .. }) => refused += 1,
                        Err(other) => panic!("{file} at {at}, cut {cut}: {other}"),
                    }
                }
            }
        }
        assert!(refused > 10, "the damage reached something: {refused}");
    }

    fn copy_all(from: &Path, to: &Path) {
        for entry in from.read_dir().unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                std::fs::create_dir(&target).unwrap();
                copy_all(&entry.path(), &target);
            } else {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }

    #[test]
    fn encodings_come_back() {
        let mutation = |key: &[u8], value: Option<&[u8]>| Mutation {
            key: key.into(),
            value: value.map(<[u8]>::to_vec),
        };
        let mutations = vec![
            mutation(b"", None),
            mutation(b"", Some(b"")),
            mutation(b"k", Some(b"v")),
            mutation(b"k", None),
        ];
        let body = encode_mutations(&mutations);
        assert_eq!(decode_mutations(&body), Some(mutations));
        for cut in 1..body.len() {
            let shorter = decode_mutations(&body[..cut]);
            assert!(shorter.is_none_or(|found| found.len() < 4), "cut at {cut}");
        }
        let meta = Meta {
            reach: Reach { oldest: 3, newest: 9 },
            contents: Digest { count: 4, sum: 5 },
        };
        assert_eq!(Meta::decode(&meta.encode()), Some(meta));
        assert_eq!(Meta::decode(&meta.encode()[1..]), None);
        assert_eq!(decode_head(&encode_head(7)), Some(7));
        assert_eq!(decode_head(&[0; HEAD_BYTES]), None);
    }
}
