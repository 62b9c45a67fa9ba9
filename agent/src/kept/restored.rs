//! What an earlier agent of this node kept, opened and checked.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hoplite_identity::{EntryId, RegisteredEntry, TrustDomain};

use crate::kept::log::Content;
use crate::kept::record::{SvidRecord, unix};
use crate::node::epoch::Epoch;
use crate::supply::named::{NamedEntry, Registered};

/// What an earlier agent of this node kept.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    /// Of which epoch of the CA it is.
    pub(crate) epoch: Epoch,
    /// The CA's revision; 0 when not all of it is understood.
    pub(crate) revision: u64,
    pub(crate) entries: BTreeMap<EntryId, Registered>,
    /// What it held of foreign trust domains.
    pub(crate) foreign: Option<hoplite_wire::ca::Foreign>,
    /// When the CA was heard last; None when nothing was kept.
    pub(crate) heard: Option<SystemTime>,
    svids: Mutex<HashMap<EntryId, SvidRecord>>,
    /// Names of templates; none for those that are over.
    names: Mutex<BTreeMap<EntryId, Option<Arc<NamedEntry>>>>,
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
        let mut of_templates = Vec::new();
        for (key, slot) in content.entries {
            let svid = slot.svid().and_then(Result::ok).map(Wiped);
            let Some(message) = slot.entry() else { continue };
            let entry = message.map_err(|error| error.to_string()).and_then(|message| {
                let entry = RegisteredEntry::try_from(message);
                // A name has its values among its selectors, and is made anew of its template.
                let entry = entry.and_then(|entry| match key == *entry.id.as_bytes() {
                    true => entry.check(trust_domain).map(|()| entry),
                    false => Ok(entry),
                });
                entry.map_err(|error| error.to_string())
            });
            let svid = svid.filter(|svid| svid.0.not_after > unix(now));
            match entry {
                // A name that lies under its own, with the template's id in it.
                Ok(entry) if key != *entry.id.as_bytes() => of_templates.push((key, entry, svid)),
                Ok(entry) => {
                    if let Some(mut svid) = svid
                        && svid.0.spiffe_id == entry.spiffe_id.as_str()
                    {
                        // Of an entry that has changed since: renewed as soon as the CA is there.
                        if svid.0.entry_revision != entry.revision {
                            svid.0.renew_at = 0;
                        }
                        svids.insert(entry.id.clone(), std::mem::take(&mut svid.0));
                    }
                    restored.entries.insert(entry.id.clone(), Registered::from(entry));
                }
                Err(error) => {
                    tracing::warn!(error, "a kept entry is not understood; the CA is asked for all of them");
                    restored.revision = 0;
                }
            }
        }
        let mut names = BTreeMap::new();
        for (key, kept, svid) in of_templates {
            let Some(id) = str::from_utf8(&key).ok().and_then(|text| EntryId::parse(text).ok()) else {
                continue;
            };
            let named = restored.named(&id, &kept).zip(svid);
            let named = named.filter(|(named, svid)| svid.0.spiffe_id == named.spiffe_id.as_str());
            let named = named.map(|(named, mut svid)| {
                // Of a template that has changed since.
                if svid.0.entry_revision != named.revision {
                    svid.0.renew_at = 0;
                }
                svids.insert(id.clone(), std::mem::take(&mut svid.0));
                Arc::new(named)
            });
            names.insert(id, named);
        }
        restored.svids = Mutex::new(svids);
        restored.names = Mutex::new(names);
        restored
    }

    /// A name as its template gives it, by what was attested then. None of what is kept of it is believed besides.
    fn named(&self, id: &EntryId, kept: &RegisteredEntry) -> Option<NamedEntry> {
        let Registered::Template(template) = self.entries.get(&kept.id)? else {
            return None;
        };
        let named = template.named(&kept.selectors).ok()?;
        (template.fits(&kept.selectors) && *id == named.id).then_some(named)
    }

    /// The names of templates, once; none for those that are over.
    pub(crate) fn take_names(&self) -> BTreeMap<EntryId, Option<Arc<NamedEntry>>> {
        std::mem::take(&mut self.names.lock().unwrap_or_else(PoisonError::into_inner))
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
