//! A new store that is filled with what another one held, as a backup is.

use std::path::Path;
use std::time::SystemTime;

use super::format::{Digest, Meta, Value, named};
use super::{DATA, PART_WRITES, SledStore};
use crate::{LargeError, LargeId, Revision, Store, StoreError, Versioned};

/// A new store in a directory of its own, for one revision of another one. Values are put and deleted in any order; the last
/// word on a key counts.
pub struct Filling {
    store: SledStore,
    batch: sled::Batch,
    writes: usize,
}

// === impl Filling ===

impl Filling {
    /// In a directory in which no store is.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when one is, others as [`SledStore::open`].
    pub fn begin(directory: &Path) -> Result<Self, StoreError> {
        let store = SledStore::open(directory)?;
        if store.revision() != 0 || !store.page(None, 1)?.entries.is_empty() {
            return Err(store.disk.directory.damaged("there is one already".to_owned()));
        }
        // Until this is overwritten at the end, the directory is no store that anybody would open.
        store.disk.write_head(Revision::MAX)?;
        Ok(Self {
            store,
            batch: sled::Batch::default(),
            writes: 0,
        })
    }

    /// Puts a value as another store had it.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be written.
    pub fn put(&mut self, key: &[u8], held: &Versioned) -> Result<(), StoreError> {
        let name = named(DATA, key);
        let (_, item) = Value::seal(&name, held.revision, &held.value, &held.names);
        self.batch.insert(name, item);
        self.writes += 1;
        self.write_beyond(PART_WRITES)
    }

    /// Removes what was put before.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn delete(&mut self, key: &[u8]) -> Result<(), StoreError> {
        self.batch.remove(named(DATA, key));
        self.writes += 1;
        self.write_beyond(PART_WRITES)
    }

    /// Puts a large value, before or after what names it.
    ///
    /// # Errors
    /// As [`Store::put_large`].
    pub fn put_large(&mut self, bytes: &[u8], now: SystemTime) -> Result<LargeId, LargeError> {
        self.store.put_large(bytes, now)
    }

    /// Makes a store of it that goes on after this revision, on the disk when this returns. Says how many values it has.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when a value is newer than the revision, or names a large value that was not put.
    pub fn finish(mut self, revision: Revision) -> Result<u64, StoreError> {
        self.write_beyond(0)?;
        let disk = &self.store.disk;
        let mut contents = Digest::default();
        let mut wrong = None;
        disk.scan(DATA, b"", |key, found| {
            contents.add(found.sum);
            let is_there = |id: &LargeId| disk.has_large(id).unwrap_or(false);
            if found.versioned.revision > revision || !found.versioned.names.iter().all(is_there) {
                wrong.get_or_insert_with(|| key.escape_ascii().to_string());
            }
        })?;
        if let Some(key) = wrong {
            let problem = format!("the value of `{key}` is newer than revision {revision}, or lacks a large value");
            return Err(disk.directory.damaged(problem));
        }
        disk.found(Meta { revision, contents })?;
        Ok(contents.count)
    }

    fn write_beyond(&mut self, writes: usize) -> Result<(), StoreError> {
        if self.writes > writes {
            self.writes = 0;
            let batch = std::mem::take(&mut self.batch);
            self.store.disk.write_part(batch)?;
        }
        Ok(())
    }
}
