//! The embedded store: sled, contained. See docs/decisions/0003-sled.md for what is distrusted and why.
//!
//! One sled tree holds everything: `d<key>` a value, `m` the revision and a digest over all values. Each item carries our own
//! checksum over key and content. A commit is one sled batch over both, or several of which the last one counts (`redo`). Beside it,
//! the file `head` says what was last acknowledged and is the lock, and the directory `large` holds large values; which of them a key
//! names stands in its item.
//! History is in memory, and begins when the store is opened: its only readers are of this process.

mod dir;
pub(crate) mod filling;
mod format;
mod large_files;
mod redo;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::SystemTime;

use dir::StoreDir;
use format::{Digest, Meta, Value, encode_head, named, seal, unseal};
use large_files::LargeFiles;
use redo::{Item, Redo, RedoFile};

use crate::recent::Recent;
use crate::{
    Announcer, Batch, Change, CommitError, HISTORY_COMMITS, History, LargeError, LargeId, Mutation, Revision, Snapshot,
    Store, StoreError, Versioned, Watch, WatchError, Write,
};

const DATA: u8 = b'd';
const META: &[u8] = b"m";

/// What sled is given in one batch: what such a batch leaves for its end is a megabyte or two.
const PART_WRITES: usize = 256;

/// How often sled is asked to free what nobody reads any more: each time it frees at most eight bags of 64 things, and none of the
/// newest two rounds.
const FREEING_ROUNDS: usize = 8;

/// A store in a directory of its own, for one process at a time.
pub struct SledStore {
    // Dropped first: watchers hear of the end at once.
    announcer: Announcer,
    disk: Arc<Disk>,
}

/// sled, the files beside it, and what is known about both.
struct Disk {
    // Dropped in this order: sled first, the lock last.
    db: sled::Db,
    /// sled's own file, a second time: see `make_durable`.
    sled_file: File,
    large: LargeFiles,
    redo: RedoFile,
    head: File,
    directory: StoreDir,
    state: RwLock<State>,
    /// What is durable only. Behind a lock of its own: watchers read while the next commit waits for the disk.
    recent: Mutex<Recent>,
}

struct State {
    meta: Meta,
    /// A write failed half-way: nothing more is read or written.
    stopped: bool,
    /// sled's files for large values that are known to be on the disk.
    blobs: BTreeSet<OsString>,
    /// How many keys name each large value.
    named: BTreeMap<LargeId, usize>,
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

    /// Opens a store that keeps so many commits of history.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_keeping(directory: &Path, keep: u64) -> Result<Self, StoreError> {
        let disk = Disk::open(StoreDir::make(directory)?, keep)?;
        let reach = disk.recent().reach();
        Ok(Self {
            announcer: Announcer::new(reach),
            disk: Arc::new(disk),
        })
    }
}

impl Store for SledStore {
    fn revision(&self) -> Revision {
        self.announcer.reach().newest
    }

    fn get(&self, key: &[u8]) -> Result<Option<Versioned>, StoreError> {
        let _state = self.disk.read()?;
        Ok(self.disk.value(key)?.map(|found| found.versioned))
    }

    fn range(&self, prefix: &[u8]) -> Result<Snapshot, StoreError> {
        let state = self.disk.read()?;
        let mut entries = Vec::new();
        self.disk.scan(DATA, prefix, |key, found| {
            entries.push((key.to_vec(), found.versioned));
        })?;
        Ok(Snapshot {
            revision: state.meta.revision,
            entries,
        })
    }

    fn page(&self, after: Option<&[u8]>, bytes: usize) -> Result<Snapshot, StoreError> {
        let state = self.disk.read()?;
        Ok(Snapshot {
            revision: state.meta.revision,
            entries: self.disk.page(after, bytes)?,
        })
    }

    fn commit(&self, batch: Batch) -> Result<Revision, CommitError> {
        // Held until the disk has it: what is not durable is shown to nobody.
        let mut state = self.disk.write()?;
        let writes = batch.check(
            |key| Ok(self.disk.value(key)?.map(|found| found.versioned.revision)),
            |id| self.disk.has_large(id),
        )?;
        self.disk.commit(&mut state, writes)?;
        self.announcer.announce(self.disk.recent().reach());
        Ok(state.meta.revision)
    }

    fn watch(&self, from: Revision) -> Result<Watch, WatchError> {
        let history: Weak<Disk> = Arc::downgrade(&self.disk);
        self.announcer.watch(from, history)
    }

    fn put_large(&self, bytes: &[u8], now: SystemTime) -> Result<LargeId, LargeError> {
        let id = LargeId::of_bounded(bytes)?;
        let Disk { large, directory, .. } = &*self.disk;
        let file = large
            .write(&id, bytes, now)
            .map_err(|e| directory.io("write a large value", &e))?;
        // INVARIANT: commits and sweeps hold this lock alone. Neither finds a file that is not durable yet, and no sweep
        // removes the new file because it saw how old the one before it was.
        let _state = self.disk.read()?;
        large
            .finish(&file)
            .map_err(|e| directory.io("keep a large value", &e))?;
        Ok(id)
    }

    fn large(&self, id: &LargeId) -> Result<Option<Vec<u8>>, StoreError> {
        let Disk { large, directory, .. } = &*self.disk;
        match large.read(id).map_err(|e| directory.io("read a large value", &e))? {
            Some(bytes) if LargeId::of(&bytes) == *id => Ok(Some(bytes)),
            Some(_) => Err(directory.damaged(format!("the large value `{id}` is not what was put; put it again"))),
            None if self.disk.read()?.named.contains_key(id) => {
                Err(directory.damaged(format!("the large value `{id}` is gone; put it again")))
            }
            None => Ok(None),
        }
    }

    fn sweep_large(&self, put_before: SystemTime) -> Result<Vec<LargeId>, StoreError> {
        // Alone, so that no commit takes for there what is about to be removed.
        let state = self.disk.write()?;
        let named = state.named.keys().map(ToString::to_string).collect();
        let Disk { large, directory, .. } = &*self.disk;
        large
            .sweep(&named, put_before)
            .map_err(|e| directory.io("sweep large values", &e))
    }
}

impl History for Disk {
    fn change(&self, revision: Revision) -> Result<Option<Change>, StoreError> {
        Ok(self.recent().change(revision))
    }
}

// === impl Disk ===

impl Disk {
    fn open(directory: StoreDir, keep: u64) -> Result<Self, StoreError> {
        let head = directory.lock()?;
        let acknowledged = directory.read_head(&head)?;
        let db = directory.open_sled()?;
        let sled_file = File::open(directory.path().join("db")).map_err(|e| directory.io("open sled's file", &e))?;
        let large = LargeFiles::open(&directory).map_err(|e| directory.io("open the large values", &e))?;
        let state = RwLock::new(State {
            meta: Meta::START,
            stopped: false,
            blobs: BTreeSet::new(),
            named: BTreeMap::new(),
        });
        let disk = Self {
            db,
            sled_file,
            large,
            redo: RedoFile::of(&directory),
            head,
            directory,
            state,
            recent: Mutex::new(Recent::after(0, keep)),
        };
        disk.recover(acknowledged, keep)?;
        Ok(disk)
    }

    /// Believes nothing: checks every item, the set of items, and that nothing acknowledged is missing. Large values are
    /// checked when they are read: one that is damaged must not keep everything else away, and putting it again mends it.
    fn recover(&self, acknowledged: Option<Revision>, keep: u64) -> Result<(), StoreError> {
        let damaged = |problem: String| Err(self.directory.damaged(problem));
        self.carry_out_what_was_begun()?;
        let meta = match self.meta()? {
            Some(meta) => meta,
            // New, or opened before and never committed to.
            None if acknowledged.unwrap_or_default() == 0 && self.guarded("read", || Ok(self.db.is_empty()))? => {
                Meta::START
            }
            None => return damaged("its revision is gone".into()),
        };
        if let Some(acknowledged) = acknowledged.filter(|acknowledged| *acknowledged > meta.revision) {
            return damaged(format!(
                "it ends at revision {}, but {acknowledged} was acknowledged",
                meta.revision
            ));
        }
        let mut contents = Digest::default();
        let mut newest = 0;
        let mut named = BTreeMap::new();
        self.scan(DATA, b"", |_, found| {
            contents.add(found.sum);
            newest = newest.max(found.versioned.revision);
            add_names(&mut named, &found.versioned.names);
        })?;
        if contents != meta.contents || newest > meta.revision {
            return damaged(format!(
                "it holds {} values and should hold {}, or one of them is an older version",
                contents.count, meta.contents.count
            ));
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.meta = meta;
        *self.recent() = Recent::after(meta.revision, keep);
        state.named = named;
        self.make_durable(&mut state)?;
        self.forget_redo()?;
        File::open(self.directory.path())
            .and_then(|directory| directory.sync_all())
            .and_then(|()| self.head.sync_all())
            .map_err(|e| self.directory.io("sync the directory", &e))
    }

    /// A commit of which perhaps a part is there. What it leads to is judged afterwards, as what is found in any store.
    fn carry_out_what_was_begun(&self) -> Result<(), StoreError> {
        let read = self.redo.read();
        let Some(Redo { meta, items }) = read.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => self.directory.damaged(error.to_string()),
            _ => self.directory.io("read the redo file", &error),
        })?
        else {
            return Ok(());
        };
        let at = self.meta()?.map_or(0, |meta| meta.revision);
        if meta.revision > at + 1 {
            let problem = format!("it ends at revision {at}, but {} was begun", meta.revision);
            return Err(self.directory.damaged(problem));
        }
        // Else it was carried out, and the file is left over.
        if meta.revision == at + 1 {
            self.carry_out(&meta, items)?;
        }
        Ok(())
    }

    fn commit(&self, state: &mut State, writes: Vec<Write>) -> Result<(), StoreError> {
        let revision = state.meta.revision + 1;
        let mut contents = state.meta.contents;
        let mut items = Vec::with_capacity(writes.len());
        let mut mutations = Vec::with_capacity(writes.len());
        let (mut named_now, mut named_before) = (Vec::new(), Vec::new());
        for Write { mutation, names } in writes {
            let Mutation { key, value } = &mutation;
            if let Some(old) = self.value(key)? {
                contents.remove(old.sum);
                named_before.extend(old.versioned.names);
            }
            let name = named(DATA, key);
            let item = value.as_ref().map(|value| {
                let (sum, item) = Value::seal(&name, revision, value, &names);
                contents.add(sum);
                item
            });
            items.push((name, item));
            named_now.extend(names);
            mutations.push(mutation);
        }
        let meta = Meta { revision, contents };

        // From here on a failure leaves open what is on the disk.
        state.stopped = true;
        let is_in_parts = items.len() > PART_WRITES;
        if is_in_parts {
            let kept = self.redo.write(&meta, &items);
            kept.map_err(|e| self.directory.io("write the redo file", &e))?;
        }
        self.carry_out(&meta, items)?;
        state.meta = meta;
        add_names(&mut state.named, &named_now);
        remove_names(&mut state.named, &named_before);
        self.make_durable(state)?;
        if is_in_parts {
            self.forget_redo()?;
        }
        self.recent().push(mutations);
        state.stopped = false;
        Ok(())
    }

    /// Gives sled a commit: in parts when it has many writes, of which the last one brings the revision.
    fn carry_out(&self, meta: &Meta, items: Vec<Item>) -> Result<(), StoreError> {
        let mut items = items.into_iter();
        loop {
            let mut batch = sled::Batch::default();
            for (name, item) in items.by_ref().take(PART_WRITES) {
                match item {
                    Some(item) => batch.insert(name, item),
                    None => batch.remove(name),
                }
            }
            let is_last = items.len() == 0;
            if is_last {
                batch.insert(META, seal(META, &meta.encode()).1);
            }
            self.write_part(batch)?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// One batch, and the freeing of what it replaced. Left to itself sled frees a little with every 128th thing that a thread does
    /// there: after a large commit that is never, for a CA that has little to write.
    fn write_part(&self, batch: sled::Batch) -> Result<(), StoreError> {
        self.guarded("write", || self.db.apply_batch(batch))?;
        for _ in 0..FREEING_ROUNDS {
            sled::pin().flush();
        }
        Ok(())
    }

    fn forget_redo(&self) -> Result<(), StoreError> {
        self.redo
            .remove()
            .map_err(|e| self.directory.io("remove the redo file", &e))
    }

    /// Waits until the disk has what sled wrote. On Linux sled's own flush ends in `sync_file_range`, which empties
    /// neither the disk's cache nor writes the file's length, and values that sled puts into files of their own are
    /// not synced at all: a kill loses nothing then, a power cut does.
    fn make_durable(&self, state: &mut State) -> Result<(), StoreError> {
        self.guarded("flush", || self.db.flush())?;
        self.sled_file.sync_data().map_err(|e| self.directory.io("sync", &e))?;
        self.sync_blobs(&mut state.blobs)
            .map_err(|e| self.directory.io("sync sled's own large values", &e))?;
        // Not synced itself: it is there to catch what sled loses when the process is killed.
        let head = encode_head(state.meta.revision);
        self.head
            .write_all_at(&head, 0)
            .map_err(|e| self.directory.io("write the head file", &e))
    }

    /// After all values were written: what the store is at.
    fn found(&self, meta: Meta) -> Result<(), StoreError> {
        let mut state = self.write()?;
        let item = seal(META, &meta.encode()).1;
        self.guarded("write", || self.db.insert(META, item))?;
        state.meta = meta;
        self.make_durable(&mut state)?;
        self.head
            .sync_all()
            .map_err(|e| self.directory.io("sync the head file", &e))
    }

    fn write_head(&self, revision: Revision) -> Result<(), StoreError> {
        self.head
            .write_all_at(&encode_head(revision), 0)
            .map_err(|e| self.directory.io("write the head file", &e))
    }

    fn sync_blobs(&self, synced: &mut BTreeSet<OsString>) -> io::Result<()> {
        let directory = self.directory.path().join("blobs");
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

    fn has_large(&self, id: &LargeId) -> Result<bool, StoreError> {
        self.large
            .has(id)
            .map_err(|e| self.directory.io("look for a large value", &e))
    }

    fn value(&self, key: &[u8]) -> Result<Option<Value>, StoreError> {
        let name = named(DATA, key);
        let Some(item) = self.guarded("read", || self.db.get(&name))? else {
            return Ok(None);
        };
        self.open_value(&name, &item).map(Some)
    }

    fn open_value(&self, name: &[u8], item: &[u8]) -> Result<Value, StoreError> {
        Value::unseal(name, item).ok_or_else(|| self.directory.damaged_item(name))
    }

    /// Calls `each` with key and value of everything of a kind under a prefix, in order.
    fn scan(&self, kind: u8, prefix: &[u8], mut each: impl FnMut(&[u8], Value)) -> Result<(), StoreError> {
        let mut items = self.db.scan_prefix(named(kind, prefix));
        while let Some((name, item)) = self.guarded("read", || items.next().transpose())? {
            let value = self.open_value(&name, &item)?;
            each(name.get(1..).unwrap_or_default(), value);
        }
        Ok(())
    }

    fn page(&self, after: Option<&[u8]>, bytes: usize) -> Result<Vec<(Vec<u8>, Versioned)>, StoreError> {
        let from = match after {
            Some(after) => Bound::Excluded(named(DATA, after)),
            None => Bound::Included(named(DATA, b"")),
        };
        let mut items = self.db.range((from, Bound::Excluded(vec![DATA + 1])));
        let (mut page, mut taken) = (Vec::new(), 0);
        while let Some((name, item)) = self.guarded("read", || items.next().transpose())? {
            if taken > 0 && taken + item.len() > bytes {
                break;
            }
            taken += name.len() + item.len();
            let value = self.open_value(&name, &item)?;
            page.push((name.get(1..).unwrap_or_default().to_vec(), value.versioned));
        }
        Ok(page)
    }

    /// What the store is at; `None` in one that nothing was committed to.
    fn meta(&self) -> Result<Option<Meta>, StoreError> {
        let bytes = self.item(META)?;
        let meta = bytes.map(|bytes| Meta::decode(&bytes)).transpose();
        meta.map_err(|problem| self.directory.damaged(problem.to_string()))
    }

    fn item(&self, name: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(item) = self.guarded("read", || self.db.get(name))? else {
            return Ok(None);
        };
        let (_, body) = unseal(name, &item).ok_or_else(|| self.directory.damaged_item(name))?;
        Ok(Some(body.to_vec()))
    }

    fn guarded<T>(&self, action: &'static str, call: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
        self.directory.guarded(action, call)
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> Result<RwLockReadGuard<'_, State>, StoreError> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        if state.stopped {
            Err(self.directory.stopped())
        } else {
            Ok(state)
        }
    }

    fn write(&self) -> Result<RwLockWriteGuard<'_, State>, StoreError> {
        // A panic half-way through a commit leaves `stopped` set, which is what poisoning would say.
        let state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if state.stopped {
            Err(self.directory.stopped())
        } else {
            Ok(state)
        }
    }
}

fn add_names(named: &mut BTreeMap<LargeId, usize>, names: &[LargeId]) {
    for id in names {
        *named.entry(*id).or_default() += 1;
    }
}

fn remove_names(named: &mut BTreeMap<LargeId, usize>, names: &[LargeId]) {
    for id in names {
        if let Some(count) = named.get_mut(id) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                named.remove(id);
            }
        }
    }
}

#[cfg(test)]
mod tests;
