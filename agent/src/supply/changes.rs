//! What changed among the entries of this node, on its way from the watch to the supplier.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use hoplite_identity::EntryId;

use crate::supply::named::Registered;

/// Entries as they are now, by id; `None` for those that went.
pub(crate) type Changed = BTreeMap<EntryId, Option<Registered>>;

/// Changes that the supplier has not taken yet. However slow it is, there is one for each entry at most: only the last
/// counts. Clones are the same ones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changes(Arc<Mutex<Changed>>);

// === impl Changes ===

impl Changes {
    /// Adds what changed since.
    pub(crate) fn add(&self, changed: Changed) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.is_empty() {
            *waiting = changed;
        } else {
            waiting.extend(changed);
        }
    }

    /// All of it, once.
    pub(crate) fn take(&self) -> Changed {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
