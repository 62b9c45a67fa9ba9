//! What an earlier agent of this node kept, opened and checked.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hoplite_identity::{EntryId, RegisteredEntry, TrustDomain};

use crate::kept::log::Content;
use crate::kept::record::{SvidRecord, unix};
use crate::node::epoch::Epoch;

/// What an earlier agent of this node kept.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    /// Of which epoch of the CA it is.
    pub(crate) epoch: Epoch,
    /// The CA's revision; 0 when not all of it is understood.
    pub(crate) revision: u64,
    pub(crate) entries: BTreeMap<EntryId, Arc<RegisteredEntry>>,
    /// What it held of foreign trust domains.
    pub(crate) foreign: Option<hoplite_wire::ca::Foreign>,
    /// When the CA was heard last; None when nothing was kept.
    pub(crate) heard: Option<SystemTime>,
    svids: Mutex<HashMap<EntryId, SvidRecord>>,
}

// === impl Restored ===

impl Restored {
    pub(crate) fn of(content: Content, trust_domain: &TrustDomain, now: SystemTime) -> Self {
        let mut restored = Self {
            epoch: content.position.epoch.map(Epoch::from).unwrap_or_default(),
            revision: content.position.revision,
            foreign: content.foreign,
            heard: Some(UNIX_EPOCH + Duration::from_secs(content.position.heard)),
            ..Self::default()
        };
        let mut svids = HashMap::with_capacity(content.entries.len());
        for slot in content.entries.into_values() {
            let svid = slot.svid().and_then(Result::ok).map(Wiped);
            let Some(message) = slot.entry() else { continue };
            let entry = message.map_err(|error| error.to_string()).and_then(|message| {
                let entry = RegisteredEntry::try_from(message);
                let entry = entry.and_then(|entry| entry.check(trust_domain).map(|()| entry));
                entry.map_err(|error| error.to_string())
            });
            match entry {
                Ok(entry) => {
                    if let Some(mut svid) = svid
                        && svid.0.spiffe_id == entry.spiffe_id.as_str()
                        && svid.0.not_after > unix(now)
                    {
                        // Of an entry that has changed since: renewed as soon as the CA is there.
                        if svid.0.entry_revision != entry.revision {
                            svid.0.renew_at = 0;
                        }
                        svids.insert(entry.id.clone(), std::mem::take(&mut svid.0));
                    }
                    restored.entries.insert(entry.id.clone(), Arc::new(entry));
                }
                Err(error) => {
                    tracing::warn!(error, "a kept entry is not understood; the CA is asked for all of them");
                    restored.revision = 0;
                }
            }
        }
        restored.svids = Mutex::new(svids);
        restored
    }

    /// The SVIDs, once.
    pub(crate) fn take_svids(&self) -> HashMap<EntryId, SvidRecord> {
        std::mem::take(&mut self.lock_svids())
    }

    pub(super) fn lock_svids(&self) -> MutexGuard<'_, HashMap<EntryId, SvidRecord>> {
        self.svids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A record whose key is wiped when it goes.
struct Wiped(SvidRecord);

impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.wipe();
    }
}
