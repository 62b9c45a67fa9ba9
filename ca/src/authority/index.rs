//! The authority's part of the index: the trust bundle of now, and how far each authority has come.

use std::collections::BTreeMap;
use std::sync::Arc;

use hoplite_identity::TrustBundle;
use hoplite_store::Revision;

use crate::authority::course::Course;
use crate::authority::jwt::{self, JwtTrusted};
use crate::authority::taking::course;
use crate::authority::trust::{self, Trust, Trusted};
use crate::record::{BadRecord, Mutation};

/// The trust bundle, at one revision.
#[derive(Debug, Default)]
pub(crate) struct AuthorityIndex {
    trust: Option<Trust>,
    trusted: BTreeMap<String, Trusted>,
    jwt: BTreeMap<String, JwtTrusted>,
    /// None until an authority was founded.
    bundle: Option<Arc<TrustBundle>>,
    course: Course,
    jwt_course: Course,
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
        } else if let Some((name, trusted)) = mutation.of::<JwtTrusted>()? {
            match trusted {
                Some(trusted) => self.jwt.insert(name.to_owned(), trusted),
                None => self.jwt.remove(name),
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
            let jwt = jwt::authorities(&self.jwt)?;
            let bundle = bundle.transpose()?.map(|bundle| Arc::new(bundle.with_jwt(jwt)));
            // That another one signs is no news for those who verify.
            if self.bundle != bundle {
                (self.bundle, self.changed) = (bundle, self.latest);
            }
            self.course = course(&self.trusted);
            self.jwt_course = course(&self.jwt);
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

    /// The records of them all, by the SHA-256 of their certificates.
    pub(crate) fn all(&self) -> &BTreeMap<String, Trusted> {
        &self.trusted
    }

    /// The record of one.
    #[cfg(test)]
    pub(crate) fn get(&self, name: &str) -> Option<&Trusted> {
        self.trusted.get(name)
    }

    /// How far each key for JWT-SVIDs has come, by its key id.
    pub(crate) fn jwt_course(&self) -> &Course {
        &self.jwt_course
    }

    /// The records of the keys for JWT-SVIDs, by key id.
    pub(crate) fn jwt(&self) -> &BTreeMap<String, JwtTrusted> {
        &self.jwt
    }

    /// When the bundle last changed.
    pub(crate) fn changed(&self) -> Revision {
        self.changed
    }
}
