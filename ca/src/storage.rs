//! The store that the configuration names, opened once it is known to be the one that was there before.

use std::path::PathBuf;
use std::sync::Arc;

use hoplite_postgres::PostgresStore;
use hoplite_store::{SledStore, Store, StoreError};

use crate::Config;
use crate::config::StoreConfig;
use crate::founding::{self, Founding, FoundingError};

/// A store, and what people call it.
pub(crate) struct Storage {
    pub(crate) store: Arc<dyn Store>,
    /// The directory, or the database's address.
    pub(crate) location: PathBuf,
}

/// Why it is not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StorageError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Founding(#[from] FoundingError),
}

// === impl Storage ===

impl Storage {
    /// Opens it, or makes it where none was.
    pub(crate) fn open(config: &Config, founding: Founding) -> Result<Self, StorageError> {
        let (location, is_there) = match &config.store {
            StoreConfig::Sled => {
                let directory = config.data_dir.join("store");
                let is_there = founding::is_store(&directory);
                (directory, is_there)
            }
            StoreConfig::Postgres(settings) => (PathBuf::from(settings.location()), PostgresStore::is_there(settings)?),
        };
        founding::check_store(&config.data_dir, &location, is_there, founding)?;
        let store: Arc<dyn Store> = match &config.store {
            StoreConfig::Sled => Arc::new(SledStore::open(&location)?),
            StoreConfig::Postgres(settings) => Arc::new(PostgresStore::open(settings)?),
        };
        Ok(Self { store, location })
    }
}
