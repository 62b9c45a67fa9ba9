//! The authority's part of the index: the trust bundle of now, and how far each authority has come.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hoplite_identity::{KeyDigest, TrustBundle};
use hoplite_store::Revision;

use crate::authority::above::Above;
use crate::authority::course::{Course, Name};
use crate::authority::jwt::{self, JwtTrusted};
use crate::authority::taking::course;
use crate::authority::trust::{self, Trust, Trusted};
use crate::nested::record::NestedCa;
use crate::record::{BadRecord, Mutation};

/// The trust bundle, at one revision.
#[derive(Debug, Default)]
pub(crate) struct AuthorityIndex {
    trust: Option<Trust>,
    trusted: BTreeMap<String, Trusted>,
    jwt: BTreeMap<String, JwtTrusted>,
    /// As of the CA above, if this one is nested.
    above: Option<Above>,
    /// Those of its own for which that one vouches no more, or not for long.
    unsound: BTreeSet<Name>,
    /// Under this CA.
    nested: BTreeMap<String, NestedCa>,
    /// The keys of this CA's own authorities.
    own: BTreeSet<KeyDigest>,
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
        } else if let Some((_, above)) = mutation.of::<Above>()? {
            self.above = above;
        } else if let Some((name, nested)) = mutation.of::<NestedCa>()? {
            match nested {
                Some(nested) => self.nested.insert(name.to_owned(), nested),
                None => self.nested.remove(name),
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
            // It counts while an authority here is under it, and no longer.
            let is_nested = self
                .trusted
                .values()
                .any(|one| one.is_nested() && one.life.state.is_trusted());
            let above = match (&self.above, &self.trust) {
                (Some(above), Some(trust)) if is_nested => Some(above.bundle(&trust.trust_domain)?),
                _ => None,
            };
            let revoked = self.nested.values().flat_map(NestedCa::revoked_keys).collect();
            let bundle =
                (self.trust.as_ref()).map(|trust| trust::bundle(trust, &self.trusted, above.as_ref(), revoked));
            let jwt = jwt::authorities(&self.jwt, self.nested.values().flat_map(|nested| &nested.jwt))?;
            let jwt = match &above {
                // What was revoked here does not come back by way of the CA above.
                Some(above) => jwt.and(above.jwt(), |kid| !self.jwt.contains_key(kid)),
                None => jwt,
            };
            self.unsound = unsound(&self.trusted, above.as_ref())?;
            let bundle = bundle.transpose()?.map(|bundle| Arc::new(bundle.with_jwt(jwt)));
            // That another one signs is no news for those who verify.
            if self.bundle != bundle {
                (self.bundle, self.changed) = (bundle, self.latest);
            }
            self.course = course(&self.trusted);
            let certificates = self.trusted.iter().filter_map(|(name, one)| one.certificate(name).ok());
            self.own = certificates
                .filter_map(|certificate| KeyDigest::of(&certificate))
                .collect();
            self.jwt_course = course(&self.jwt);
        }
        Ok(())
    }

    /// What members of the trust domain are verified with.
    pub(crate) fn bundle(&self) -> Option<&Arc<TrustBundle>> {
        self.bundle.as_ref()
    }

    /// Whether this key is one of this CA's own authorities'. What is under a CA that is nested here, or beside it, is believed as a peer, and
    /// is no agent and no operator of this CA, whatever it calls itself.
    pub(crate) fn is_own(&self, signer: KeyDigest) -> bool {
        self.own.contains(&signer)
    }

    /// Authorities of this CA that the CA above has signed and vouches for no more, or not for long: they are to sign nothing.
    pub(crate) fn unsound(&self) -> &BTreeSet<Name> {
        &self.unsound
    }

    /// The CAs that are nested under this one, by name.
    pub(crate) fn nested(&self) -> &BTreeMap<String, NestedCa> {
        &self.nested
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

fn unsound(trusted: &BTreeMap<String, Trusted>, above: Option<&TrustBundle>) -> Result<BTreeSet<Name>, BadRecord> {
    let mut unsound = BTreeSet::new();
    for (name, one) in trusted.iter().filter(|(_, one)| one.is_nested()) {
        if let Some(above) = above
            && !one.certified(name)?.is_vouched_for(above)
        {
            unsound.insert(name.clone());
        }
    }
    Ok(unsound)
}
