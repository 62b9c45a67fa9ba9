//! The trust bundle of the CA above, where this one is nested: what its members believe besides.

use hoplite_identity::jwt::JwtAuthorities;
use hoplite_identity::{Fingerprint, KeyDigest, TrustBundle, TrustDomain};
use serde::{Deserialize, Serialize};

use crate::authority::taking::TrustError;
use crate::authority::trust::Trust;
use crate::record::{self, BadRecord, Record};
use crate::write::{Changes, ReadError, View, Write};

/// As it came last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Above {
    /// PEM.
    authorities: String,
    tainted: Vec<String>,
    tainted_keys: Vec<String>,
    revoked_keys: Vec<String>,
    /// A JWK Set.
    jwks: String,
}

impl Record for Above {
    const PREFIX: &'static str = "authority/above";
}

/// Notes it. Answers whether anything of it is new.
pub(crate) struct TakeAbove {
    pub(crate) bundle: TrustBundle,
}

// === impl Above ===

impl Above {
    fn of(bundle: &TrustBundle) -> Self {
        Self {
            authorities: bundle.to_pem(),
            tainted: bundle.tainted().iter().map(ToString::to_string).collect(),
            tainted_keys: bundle.tainted_keys().iter().map(ToString::to_string).collect(),
            revoked_keys: bundle.revoked_keys().iter().map(ToString::to_string).collect(),
            jwks: bundle.jwt().to_jwks(),
        }
    }

    /// The bundle that it is the record of.
    pub(crate) fn bundle(&self, trust_domain: &TrustDomain) -> Result<TrustBundle, BadRecord> {
        let bad = |reason: String| BadRecord::Malformed {
            key: record::key::<Self>(""),
            reason,
        };
        let bundle = TrustBundle::from_pem(trust_domain.clone(), &self.authorities, 0);
        let jwt = JwtAuthorities::from_jwks(self.jwks.as_bytes()).map_err(|error| bad(error.to_string()))?;
        let tainted = self.tainted.iter().filter_map(|text| Fingerprint::parse(text).ok());
        let keys = |texts: &[String]| -> Vec<KeyDigest> { texts.iter().filter_map(|text| text.parse().ok()).collect() };
        Ok(bundle
            .map_err(|error| bad(error.to_string()))?
            .with_tainted(tainted)
            .with_keys(keys(&self.tainted_keys), keys(&self.revoked_keys))
            .with_jwt(jwt))
    }
}

// === impl TakeAbove ===

impl Write for TakeAbove {
    type Reads = (Option<Trust>, Option<Above>);
    type Answer = bool;
    type Error = TrustError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        Ok((view.one("")?, view.one("")?))
    }

    fn decide(&self, (trust, above): Self::Reads) -> Result<(Changes, bool), TrustError> {
        let trust = trust.ok_or(TrustError::NotFounded)?;
        let now = Above::of(&self.bundle);
        if above.as_ref() == Some(&now) {
            return Ok((Changes::none(), false));
        }
        Ok((Changes::none().put("", &now).put("", &trust.grown()), true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::taking::Taking;
    use crate::authority::trust::{Certified, Trusted};
    use crate::authority::writes::{Found, New, Step, What};
    use crate::authority::x509::Authority;
    use crate::index::Index;
    use crate::write;
    use hoplite_store::{MemoryStore, Store};
    use std::time::{Duration, SystemTime};

    const DAY: Duration = Duration::from_secs(86400);

    fn domain() -> TrustDomain {
        TrustDomain::parse("prod.example").unwrap()
    }

    fn now() -> SystemTime {
        record::from_unix_seconds(1_800_000_000)
    }

    fn under(root: &Authority) -> New<Trusted> {
        let made = Certified {
            certificate: Authority::ephemeral_nested(root, now()).certificate().clone(),
            above: Vec::new(),
            roots: vec![root.certificate().clone()],
            is_nested: true,
        };
        New {
            made,
            not_after: now() + DAY,
            sealed: None,
        }
    }

    fn index(store: &MemoryStore) -> Index {
        Index::new(&store.snapshot().unwrap()).unwrap()
    }

    fn above(roots: &[&Authority]) -> TrustBundle {
        let roots = roots.iter().map(|root| root.certificate().clone()).collect();
        TrustBundle::new(domain(), roots, 7).unwrap()
    }

    /// What the CA above says comes down; a taint when there is something else here to replace with, a revocation at once.
    #[test]
    fn the_bundle_of_the_ca_above_is_this_ones() {
        let store = MemoryStore::new();
        let roots = [(); 3].map(|()| Authority::ephemeral(&domain(), now(), DAY));
        let [one, two, alien] = &roots;
        let new = under(one);
        let name = <Trusted as Taking>::name(&new.made);
        let found = Found {
            trust_domain: domain(),
            new,
            now: now(),
        };
        write::commit(&store, &found).unwrap();
        let bundle = || index(&store).authority.bundle().cloned().unwrap();
        let unsound = || index(&store).authority.unsound().clone();
        let take = |bundle: TrustBundle| write::commit(&store, &TakeAbove { bundle }).unwrap().0;
        assert_eq!(
            bundle().authorities(),
            [one.certificate().clone()],
            "until something is heard"
        );

        let revoked = KeyDigest::of(alien.certificate()).unwrap();
        assert!(take(above(&[one, two]).with_keys([], [revoked])));
        assert!(!take(above(&[one, two]).with_keys([], [revoked])), "that is no news");
        assert_eq!((bundle().authorities().len(), bundle().sequence()), (2, 2));
        assert!(bundle().revoked_keys().contains(&revoked) && unsound().is_empty());

        let tainted = || above(&[one, two]).with_tainted([Fingerprint::of(one.certificate())]);
        assert!(take(tainted()));
        assert_eq!(unsound(), std::collections::BTreeSet::from([name]));
        assert!(!bundle().has_tainted(), "members would ask for what is as tainted");
        let new = under(two);
        let next = <Trusted as Taking>::name(&new.made);
        let steps = [
            What::Prepare { new, by_hand: true },
            What::Activate {
                name: next.clone(),
                word: None,
            },
        ];
        // Each a minute after the one before: what signs has to be known first.
        for (what, minute) in steps.into_iter().zip(0..) {
            let (known, now) = (u64::MAX, now() + DAY / 2 + Duration::from_secs(60 * minute));
            write::commit(&store, &Step { what, now, known }).unwrap();
        }
        assert_eq!(bundle().tainted().len(), 1, "now there is something else");

        // Its own key, by the digest; and a root that is gone.
        let own = KeyDigest::of(&index(&store).authority.all()[&next].certificate(&next).unwrap()).unwrap();
        assert!(take(above(&[two]).with_keys([own], [])));
        assert_eq!(bundle().authorities(), [two.certificate().clone()]);
        assert_eq!(unsound().len(), 2);
        assert!(!bundle().has_tainted());
    }
}
