//! Policy bundles and manifests as they lie in the store, and the few bundles that are kept in memory.
//!
//! They are large values of the store: put before a commit names them, there for as long as a record names them, and the
//! same for each replica of the CA.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hoplite_store::{LargeError, LargeId, Store, StoreError};

/// Bundles kept in memory, since every agent asks for them at the same moment: the live one, the shadow, and one that
/// somebody looks at.
const CACHED_MAX: usize = 3;

/// A sweep spares what was put less than this ago: it may belong to a publication under way, here or at another replica.
/// That takes seconds, and an operator's call five minutes at most; the rest is for clocks that differ.
const SPARED_AGE: Duration = Duration::from_secs(3600);

/// The store's bundles and manifests, of which a few bundles are in memory.
pub(crate) struct BundleCache {
    store: Arc<dyn Store>,
    /// The one that was used last at the end.
    cache: Mutex<VecDeque<(LargeId, Arc<Vec<u8>>)>>,
}

/// Why a bundle or a manifest is not kept, or cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepError {
    #[error(transparent)]
    Put(#[from] LargeError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the store does not hold `{0}`; restore it from a backup, or publish the policies again")]
    Missing(LargeId),
}

// === impl BundleCache ===

/// All of it waits for the disk: not for async threads.
impl BundleCache {
    pub(crate) fn new(store: Arc<dyn Store>) -> Self {
        let cache = Mutex::default();
        Self { store, cache }
    }

    /// Durable when this returns. Nothing names them yet.
    pub(crate) fn put(&self, bundle: &[u8], manifest: &[u8], now: SystemTime) -> Result<(), KeepError> {
        self.store.put_large(manifest, now)?;
        self.store.put_large(bundle, now)?;
        Ok(())
    }

    /// A bundle.
    pub(crate) fn bundle(&self, id: &LargeId) -> Result<Arc<Vec<u8>>, KeepError> {
        // Held while the store is read: of ten thousand agents that ask after a restart, one makes a copy.
        let mut cache = self.cache();
        let found = cache.iter().position(|(cached, _)| cached == id);
        let used = match found.and_then(|at| cache.remove(at)) {
            Some(used) => used,
            None => (*id, Arc::new(self.read(id)?)),
        };
        let bytes = Arc::clone(&used.1);
        if cache.len() >= CACHED_MAX {
            cache.pop_front();
        }
        cache.push_back(used);
        Ok(bytes)
    }

    /// A manifest.
    pub(crate) fn manifest(&self, id: &LargeId) -> Result<Vec<u8>, KeepError> {
        self.read(id)
    }

    /// Removes what no record names, from the store and from memory: older bundles, and what a death or a lost race left
    /// behind. What is not removed now is removed later, so a failure is only told to the log.
    pub(crate) fn sweep(&self, now: SystemTime) {
        match self
            .store
            .sweep_large(now.checked_sub(SPARED_AGE).unwrap_or(UNIX_EPOCH))
        {
            Ok(swept) if swept.is_empty() => {}
            Ok(swept) => self.cache().retain(|(id, _)| !swept.contains(id)),
            Err(error) => tracing::warn!(%error, "cannot remove old policy bundles"),
        }
    }

    fn read(&self, id: &LargeId) -> Result<Vec<u8>, KeepError> {
        self.store.large(id)?.ok_or(KeepError::Missing(*id))
    }

    fn cache(&self) -> MutexGuard<'_, VecDeque<(LargeId, Arc<Vec<u8>>)>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_store::{Batch, SledStore};
    use std::fs;

    #[test]
    fn what_is_named_stays_and_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let open = || BundleCache::new(Arc::new(SledStore::open(dir.path()).unwrap()));
        let (now, bundles) = (SystemTime::now(), open());
        let old = now - 2 * SPARED_AGE;
        let name = |names: &[&[u8]]| {
            let names = names.iter().map(|bytes| LargeId::of(bytes));
            bundles.store.commit(Batch::new().put_naming("k", "v", names)).unwrap()
        };
        bundles.put(b"kept", b"m1", old).unwrap();
        bundles.put(b"lost", b"m2", old).unwrap();
        bundles.put(b"young", b"m2", old).unwrap();
        bundles.put(b"young", b"m3", now).unwrap();
        name(&[b"kept", b"m1", b"m2"]);
        bundles.sweep(now);
        let (kept, lost) = (LargeId::of(b"kept"), LargeId::of(b"lost"));
        assert_eq!(**bundles.bundle(&kept).unwrap(), *b"kept");
        let error = bundles.bundle(&lost).unwrap_err();
        assert!(matches!(error, KeepError::Missing(_)), "{error}");
        assert_eq!(bundles.manifest(&LargeId::of(b"m2")).unwrap(), b"m2");
        assert_eq!(**bundles.bundle(&LargeId::of(b"young")).unwrap(), *b"young");
        let first = bundles.bundle(&kept).unwrap();
        for n in [0_u8, 1, 2, 3] {
            bundles.put(&[n], b"m", now).unwrap();
            bundles.bundle(&LargeId::of(&[n])).unwrap();
            assert!(
                Arc::ptr_eq(&first, &bundles.bundle(&kept).unwrap()),
                "what is in use stays"
            );
        }
        assert_eq!(bundles.cache().len(), CACHED_MAX);
        name(&[b"m1", b"m2"]);
        let young = bundles.bundle(&LargeId::of(b"young")).unwrap();
        bundles.sweep(now);
        let still = bundles.bundle(&LargeId::of(b"young")).unwrap();
        assert!(Arc::ptr_eq(&young, &still), "what was not swept stays in memory");
        assert!(bundles.bundle(&kept).is_err(), "not from memory either");

        bundles.put(b"kept", b"m1", now).unwrap();
        drop(bundles);
        let again = open();
        fs::write(dir.path().join("large").join(kept.to_string()), b"kepT").unwrap();
        let error = again.bundle(&kept).unwrap_err();
        assert!(matches!(error, KeepError::Store(StoreError::Damaged { .. })), "{error}");
        again.put(b"kept", b"m1", now).unwrap();
        assert_eq!(**again.bundle(&kept).unwrap(), *b"kept", "putting it again mends it");
    }
}
