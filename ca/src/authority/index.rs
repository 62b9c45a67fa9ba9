//! The authority's part of the index: the trust bundle of now, and how far each authority has come.

use std::collections::BTreeMap;
use std::sync::Arc;

use hoplite_identity::TrustBundle;
use hoplite_store::Revision;

use crate::authority::course::Course;
use crate::authority::trust::{self, Trust, Trusted};
use crate::record::{BadRecord, Mutation};

/// The trust bundle, at one revision.
#[derive(Debug, Default)]
pub(crate) struct AuthorityIndex {
    trust: Option<Trust>,
    trusted: BTreeMap<String, Trusted>,
    /// None until an authority was founded.
    bundle: Option<Arc<TrustBundle>>,
    course: Course,
    /// When the bundle last changed.
    changed: Revision,
    /// The newest write that is in it.
    latest: Revision,
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
        self.latest = self.latest.max(mutation.revision);
        self.is_stale = true;
        Ok(())
    }

    /// Makes the bundle anew, if anything of it changed.
    pub(crate) fn settle(&mut self) -> Result<(), BadRecord> {
        if std::mem::take(&mut self.is_stale) {
            let bundle = self.trust.as_ref().map(|trust| trust::bundle(trust, &self.trusted));
            let bundle = bundle.transpose()?.map(Arc::new);
            // That another one signs is no news for those who verify.
            if self.bundle != bundle {
                (self.bundle, self.changed) = (bundle, self.latest);
            }
            self.course = trust::course(&self.trusted);
        }
        Ok(())
    }

    /// What members of the trust domain are verified with.
    pub(crate) fn bundle(&self) -> Option<&Arc<TrustBundle>> {
        self.bundle.as_ref()
    }

    /// How far each authority has come, by the SHA-256 of its certificate.
    pub(crate) fn course(&self) -> &Course {
        &self.course
    }

    /// The record of one.
    pub(crate) fn get(&self, name: &str) -> Option<&Trusted> {
        self.trusted.get(name)
    }

    /// When the bundle last changed.
    pub(crate) fn changed(&self) -> Revision {
        self.changed
    }
}
