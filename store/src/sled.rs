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
