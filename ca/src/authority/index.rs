//! The authority's part of the index: the trust bundle of now.

use std::collections::BTreeMap;
use std::sync::Arc;

use hoplite_identity::TrustBundle;
use hoplite_store::Revision;

use crate::authority::trust::{self, Trust, Trusted};
use crate::record::{BadRecord, Mutation};

/// The trust bundle, at one revision.
#[derive(Debug, Default)]
pub(crate) struct AuthorityIndex {
    trust: Option<Trust>,
    trusted: BTreeMap<String, Trusted>,
    /// None until an authority was founded.
    bundle: Option<Arc<TrustBundle>>,
    /// When anything of it last changed.
    changed: Revision,
    /// Whether `bundle` is of what was before.
    is_stale: bool,
}

// === impl AuthorityIndex ===

impl AuthorityIndex {
    /// One write of the store. [`AuthorityIndex::settle`] follows when all of the commit is known.
    pub(crate) fn put(&mut self, mutation: Mutation<'_>) -> Result<(), BadRecord> {
        if let Some((_, trust)) = mutation.of::<Trust>()? {
            self.trust = trust;
        } else if let Some((name, trusted)) = mutation.of::<Trusted>()? {
            match trusted {
                Some(trusted) => self.trusted.insert(name.to_owned(), trusted),
                None => self.trusted.remove(name),
            };
        } else {
            return Ok(());
        }
        self.changed = self.changed.max(mutation.revision);
        self.is_stale = true;
        Ok(())
    }

    /// Makes the bundle anew, if anything of it changed.
    pub(crate) fn settle(&mut self) -> Result<(), BadRecord> {
        if std::mem::take(&mut self.is_stale) {
            let bundle = self.trust.as_ref().map(|trust| trust::bundle(trust, &self.trusted));
            self.bundle = bundle.transpose()?.map(Arc::new);
        }
        Ok(())
    }

    /// What members of the trust domain are verified with.
    pub(crate) fn bundle(&self) -> Option<&Arc<TrustBundle>> {
        self.bundle.as_ref()
    }

    /// When the bundle last changed.
    pub(crate) fn changed(&self) -> Revision {
        self.changed
    }
}
