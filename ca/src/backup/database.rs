//! A restored store goes into a database: as a whole, after all else of the restore is done.

use std::collections::BTreeSet;
use std::time::SystemTime;

use hoplite_postgres::{Filling, PostgresStore, Settings};
use hoplite_store::{LargeError, LargeId, Store, StoreError};

/// What is copied at once.
const PAGE_BYTES: usize = 1 << 20;

/// Why it does not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatabaseError {
    /// There is a store.
    #[error(
        "there is a store in `{location}` already: a restore replaces nothing; name another `schema` under `[store]`, or drop that one if nobody needs it"
    )]
    Used {
        /// Where.
        location: String,
    },
    /// The restored store cannot be read, or the database not be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The same, of a policy bundle.
    #[error(transparent)]
    Large(#[from] LargeError),
    /// It lacks something.
    #[error("the backup lacks the policy bundle `{0}`; use another copy")]
    Missing(LargeId),
}

/// Before anything is restored: that there is room for it.
pub(crate) fn ensure_empty(settings: &Settings) -> Result<(), DatabaseError> {
    match PostgresStore::is_there(settings)? {
        true => Err(DatabaseError::Used {
            location: settings.location(),
        }),
        false => Ok(()),
    }
}

/// Copies all of it. Nothing counts there before this returns.
pub(crate) fn fill(settings: &Settings, from: &dyn Store, now: SystemTime) -> Result<(), DatabaseError> {
    let mut to = Filling::begin(settings)?;
    let (mut after, mut sent) = (None, BTreeSet::new());
    loop {
        let page = from.page(after.as_deref(), PAGE_BYTES)?;
        let Some((last, _)) = page.entries.last() else {
            break;
        };
        after = Some(last.clone());
        for (key, held) in &page.entries {
            for id in held.names.iter().filter(|id| !sent.contains(*id)) {
                let bytes = from.large(id)?.ok_or(DatabaseError::Missing(*id))?;
                to.put_large(&bytes, now)?;
            }
            sent.extend(held.names.iter().copied());
            to.put(key, held)?;
        }
    }
    to.finish(from.revision())?;
    Ok(())
}
