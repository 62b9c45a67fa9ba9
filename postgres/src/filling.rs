//! A new store in an empty schema, for one revision of another one.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use hoplite_store::{HISTORY_COMMITS, LargeError, LargeId, Reach, Revision, Store, StoreError, Versioned};
use tokio_postgres::types::Type;

use crate::commit::Columns;
use crate::failure::Failure;
use crate::rows::{Digest, Row};
use crate::schema;
use crate::settings::Settings;
use crate::store::PostgresStore;

/// What is sent at once, in bytes.
const WRITE_BYTES: usize = 4 << 20;

/// A piece of [`WRITE_BYTES`], or the last look at all of it.
const DEADLINE: Duration = Duration::from_secs(120);

/// A new store in a schema in which none is. Values are put and deleted in any order; the last word on a key counts.
pub struct Filling {
    store: PostgresStore,
    waiting: BTreeMap<Vec<u8>, Option<Versioned>>,
    bytes: usize,
}

// === impl Filling ===

impl Filling {
    /// In a schema in which no store is.
    ///
    /// # Errors
    /// [`StoreError::Io`] when one is, others as [`PostgresStore::open`].
    pub fn begin(settings: &Settings) -> Result<Self, StoreError> {
        Ok(Self {
            store: PostgresStore::begin(settings, HISTORY_COMMITS, true)?,
            waiting: BTreeMap::new(),
            bytes: 0,
        })
    }

    /// Puts a value as another store had it.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be written.
    pub fn put(&mut self, key: &[u8], held: &Versioned) -> Result<(), StoreError> {
        self.wait(key, Some(held.clone()))
    }

    /// Removes what was put before.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn delete(&mut self, key: &[u8]) -> Result<(), StoreError> {
        self.wait(key, None)
    }

    /// Puts a large value, before or after what names it.
    ///
    /// # Errors
    /// As [`Store::put_large`].
    pub fn put_large(&mut self, bytes: &[u8], now: SystemTime) -> Result<LargeId, LargeError> {
        self.store.put_large(bytes, now)
    }

    /// Makes a store of it that goes on after this revision. Says how many values it has.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when a value is newer than the revision, [`StoreError::Io`] when one names a large value that was not put.
    pub fn finish(mut self, revision: Revision) -> Result<u64, StoreError> {
        self.write()?;
        self.store
            .shared()
            .call(DEADLINE, "finish it", move |session| async move {
                session.client.batch_execute("BEGIN").await?;
                let names = "INSERT INTO named (key, id) SELECT DISTINCT key, substring(names FROM 32 * at + 1 FOR 32) \
                 FROM item, generate_series(0, length(names) / 32 - 1) AS at";
                session.run(names, &[]).await?;
                let sums = "SELECT count(*), coalesce(sum(checksum), 0)::bigint, coalesce(max(revision), 0) FROM item";
                let row = session.one(sums, &[]).await?;
                let number = |at: usize| -> Result<u64, Failure> { Ok(row.try_get::<_, i64>(at)?.cast_unsigned()) };
                let contents = Digest {
                    count: number(0)?,
                    sum: number(1)?,
                };
                if number(2)? > revision {
                    return Err(Failure::Damaged(format!("a value is newer than revision {revision}")));
                }
                let finish = schema::finish(revision, contents);
                session.client.batch_execute(&format!("{finish}; COMMIT")).await?;
                Ok((Reach::START, contents.count))
            })
    }

    fn wait(&mut self, key: &[u8], held: Option<Versioned>) -> Result<(), StoreError> {
        self.bytes += key.len() + held.as_ref().map_or(0, |held| held.value.len());
        self.waiting.insert(key.to_vec(), held);
        if self.bytes > WRITE_BYTES {
            self.write()?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), StoreError> {
        self.bytes = 0;
        let mut columns = Columns::default();
        let mut deleted = Vec::new();
        for (key, held) in std::mem::take(&mut self.waiting) {
            match held {
                Some(held) => columns.put(Row::new(key, held)),
                None => deleted.push(key),
            }
        }
        let written = std::sync::Arc::new((columns, deleted));
        self.store.shared().call(DEADLINE, "write", move |session| {
            let written = std::sync::Arc::clone(&written);
            async move {
                let (columns, deleted) = &*written;
                columns.write(&session).await?;
                let delete = "DELETE FROM item WHERE key = ANY($1)";
                session.run(delete, &[(deleted, Type::BYTEA_ARRAY)]).await?;
                Ok((Reach::START, ()))
            }
        })
    }
}
