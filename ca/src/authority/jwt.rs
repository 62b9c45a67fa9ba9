//! The keys that sign JWT-SVIDs: what the store holds of each, what is written of them, and the one that signs.
//!
//! They are authorities like the X.509 ones and take the same course. Their names are their key ids.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use hoplite_identity::TrustDomain;
use hoplite_identity::jwt::{InvalidJwk, InvalidJwtAuthorities, JwtAlgorithm, JwtAuthorities, JwtKey};
use hoplite_store::Store;
use rcgen::PublicKeyData;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::authority::course::{Life, Name};
use crate::authority::keyring::{Keyring, Made};
use crate::authority::signer::Signer;
use crate::authority::taking::{Taking, TrustError, course};
use crate::authority::writes::{New, Step, What};
use crate::authority::x509::AuthorityError;
use crate::record::{self, BadRecord, Record};
use crate::write::{self, View};

/// A key of the trust domain for JWT-SVIDs, and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JwtTrusted {
    /// The public key: an uncompressed point of P-256, hexadecimal.
    point: String,
    pub(crate) life: Life,
    /// Its key, sealed, while it signs or will; none when that lies elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sealed: Option<String>,
}

impl Record for JwtTrusted {
    /// Their names are the key ids.
    const PREFIX: &'static str = "authority/jwt/";
    const COUNTED: bool = true;
}

/// The key that signs JWT-SVIDs now.
#[derive(Debug)]
pub(crate) struct JwtSigner {
    kid: Name,
    signer: Signer,
    not_after: SystemTime,
}

// === impl JwtTrusted ===

impl JwtTrusted {
    /// SHA-256 of a public key, hexadecimal: its key id.
    pub(crate) fn name_of(point: &[u8]) -> Name {
        HEXLOWER.encode(digest(&SHA256, point).as_ref())
    }

    fn new(point: &[u8], life: Life) -> Result<Self, InvalidJwk> {
        JwtKey::p256(point)?;
        Ok(Self {
            point: HEXLOWER.encode(point),
            life,
            sealed: None,
        })
    }

    /// Its public key.
    pub(crate) fn public(&self) -> Vec<u8> {
        HEXLOWER.decode(self.point.as_bytes()).unwrap_or_default()
    }

    fn key(&self, name: &str) -> Result<JwtKey, BadRecord> {
        let bad = |reason: &str| BadRecord::Malformed {
            key: record::key::<Self>(name),
            reason: reason.to_owned(),
        };
        let point = HEXLOWER.decode(self.point.as_bytes());
        let point = point
            .ok()
            .filter(|point| Self::name_of(point) == name)
            .ok_or_else(|| bad("its key is not the one of its name"))?;
        JwtKey::p256(&point).map_err(|error| bad(&error.to_string()))
    }
}

/// What members of the trust domain verify JWT-SVIDs with: the CA's own keys, and those that nested CAs publish, as points.
pub(crate) fn authorities<'a>(
    trusted: &BTreeMap<String, JwtTrusted>,
    nested: impl IntoIterator<Item = &'a String>,
) -> Result<JwtAuthorities, BadRecord> {
    let counts = trusted.iter().filter(|(_, trusted)| trusted.life.state.is_trusted());
    let keys = counts.map(|(name, trusted)| Ok((name.clone(), trusted.key(name)?)));
    let mut keys: BTreeMap<_, _> = keys.collect::<Result<_, BadRecord>>()?;
    for point in nested {
        // The id of each is its digest: none stands in the place of another. One that was revoked here does not come back by this.
        let point = HEXLOWER.decode(point.as_bytes()).unwrap_or_default();
        let name = JwtTrusted::name_of(&point);
        if let Ok(key) = JwtKey::p256(&point)
            && !trusted.contains_key(&name)
        {
            keys.insert(name, key);
        }
    }
    JwtAuthorities::new(keys).map_err(|error: InvalidJwtAuthorities| BadRecord::Malformed {
        key: record::key::<JwtTrusted>(""),
        reason: error.to_string(),
    })
}

impl Taking for JwtTrusted {
    /// The public key: an uncompressed point.
    type Made = Vec<u8>;

    fn name(point: &Vec<u8>) -> Name {
        Self::name_of(point)
    }

    fn new_one(_: &TrustDomain, point: &Vec<u8>, life: Life, sealed: Option<String>) -> Result<Self, TrustError> {
        let one = Self::new(point, life)?;
        Ok(Self { sealed, ..one })
    }

    fn life(&self) -> Life {
        self.life
    }

    fn live(&mut self, life: Life) {
        self.life = life;
        if !life.state.has_key() {
            self.sealed = None;
        }
    }
}

// === impl JwtSigner ===

impl JwtSigner {
    /// The key that signs here. It is made if there is none: at the first start, for a CA of before there were any, and where
    /// the file of keys is lost, since agents hear of the new one by the X.509 authority that they trust. Not where other CAs have
    /// the same store, and the key: it has to come from them.
    pub(crate) fn open(
        store: &dyn Store,
        is_shared: bool,
        keyring: &Keyring,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        // Another CA over the same store may be faster at founding, once.
        for _ in 0..2 {
            if let Some(opened) = Self::open_once(store, is_shared, keyring, ttl, now)? {
                return Ok(opened);
            }
        }
        let place = keyring.place();
        Err(AuthorityError::KeyMismatch { place })
    }

    fn open_once(
        store: &dyn Store,
        is_shared: bool,
        keyring: &Keyring,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Option<Self>, AuthorityError> {
        let trusted = View::new(store).all::<JwtTrusted>()?;
        let course = course(&trusted);
        let lives = |life: &Life| life.not_after > record::unix_seconds(now);
        let active = course.active().map(|(name, life)| (name.clone(), *life));
        if let Some((name, _)) = active.as_ref().filter(|(_, life)| lives(life))
            && let Some(held) = Self::held(keyring, &trusted, name)?
        {
            return Ok(Some(held));
        }
        // The CA was away while its key ended, and had a successor.
        if let Some((next, _)) = course.prepared().filter(|(_, life)| lives(life))
            && active.as_ref().is_some_and(|(_, life)| !lives(life))
            && let Some(held) = Self::held(keyring, &trusted, next)?
        {
            let what = What::<JwtTrusted>::Activate {
                name: next.clone(),
                word: None,
            };
            write::commit(store, &Step { what, now, known: 0 })?;
            tracing::warn!(
                kid = next,
                "the key for JWT-SVIDs ended while the CA was away; its successor signs"
            );
            return Ok(Some(held));
        }
        if is_shared && active.as_ref().is_some_and(|(_, life)| lives(life)) {
            let place = keyring.place();
            return Err(match keyring.is_empty()? {
                true => AuthorityError::KeyMissing { place },
                false => AuthorityError::KeyMismatch { place },
            });
        }
        let (signer, new) = Self::make(keyring, ttl, now)?;
        let instead_of = active.map(|(name, _)| name);
        if let Some(kid) = &instead_of {
            tracing::error!(target: "hoplite::audit", kid, "the key for JWT-SVIDs has ended or is lost; another one signs from now on");
        }
        let what = What::<JwtTrusted>::Found { new, instead_of };
        let (stepped, _) = write::commit(store, &Step { what, now, known: 0 })?;
        if !stepped.is_new {
            // Another CA over the same store was faster, and its key is the one that members know.
            return Ok(None);
        }
        tracing::info!(target: "hoplite::audit", kid = signer.kid, "made a new key for JWT-SVIDs");
        Ok(Some(signer))
    }

    /// The one with this name; none when its key is not there.
    pub(crate) fn held(
        keyring: &Keyring,
        trusted: &BTreeMap<String, JwtTrusted>,
        name: &str,
    ) -> Result<Option<Self>, AuthorityError> {
        let Some(trusted) = trusted.get(name) else {
            return Ok(None);
        };
        let signer = keyring.find(&trusted.public(), trusted.sealed.as_deref())?;
        Ok(signer.map(|signer| Self {
            kid: name.to_owned(),
            signer,
            not_after: record::from_unix_seconds(trusted.life.not_after),
        }))
    }

    /// One more, whose key is in its place.
    pub(crate) fn make(
        keyring: &Keyring,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(Self, New<JwtTrusted>), AuthorityError> {
        let not_after = end(now, ttl)?;
        let Made { signer, sealed } = keyring.make()?;
        let made = signer.der_bytes().to_vec();
        let kid = JwtTrusted::name_of(&made);
        let new = New {
            made,
            not_after,
            sealed,
        };
        Ok((Self { kid, signer, not_after }, new))
    }

    /// What stands in the header of what it signs.
    pub(crate) fn kid(&self) -> &str {
        &self.kid
    }

    /// The algorithm of what it signs.
    pub(crate) fn algorithm(&self) -> JwtAlgorithm {
        JwtAlgorithm::Es256
    }

    /// When it ends.
    pub(crate) fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The signature as JWS has it: both numbers in a row (RFC 7518 §3.4).
    pub(crate) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        self.signer.sign_in_a_row(message)
    }
}

fn end(now: SystemTime, ttl: Duration) -> Result<SystemTime, AuthorityError> {
    now.checked_add(ttl)
        .ok_or_else(|| AuthorityError::Certificate("it would never expire".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::writes::Found;
    use crate::authority::x509::Authority;
    use crate::index::Index;
    use hoplite_identity::TrustDomain;
    use hoplite_store::MemoryStore;

    const TTL: Duration = Duration::from_secs(600);

    fn at(seconds: u64) -> SystemTime {
        record::from_unix_seconds(1_800_000_000 + seconds)
    }

    /// A store with an X.509 authority, of before there were JWT-SVIDs.
    fn before() -> MemoryStore {
        let store = MemoryStore::new();
        let trust_domain = TrustDomain::parse("prod.example").unwrap();
        let authority = Authority::ephemeral(&trust_domain, at(0), TTL);
        let certificate = authority.certificate().clone();
        let found = Found::itself(trust_domain, certificate, authority.not_after(), at(0));
        write::commit(&store, &found).unwrap();
        store
    }

    fn bundle(store: &MemoryStore) -> std::sync::Arc<hoplite_identity::TrustBundle> {
        let index = Index::new(&store.snapshot().unwrap()).unwrap();
        index.authority.bundle().cloned().unwrap()
    }

    fn kids(store: &MemoryStore) -> Vec<String> {
        bundle(store).jwt().key_ids().map(str::to_owned).collect()
    }

    #[test]
    fn a_ca_that_has_none_makes_one_and_keeps_it() {
        let (store, dir) = (before(), tempfile::tempdir().unwrap());
        assert!(kids(&store).is_empty());
        let open = |seconds| JwtSigner::open(&store, false, &Keyring::of_jwt(dir.path()), TTL, at(seconds)).unwrap();
        let first = open(1);
        assert_eq!((kids(&store), bundle(&store).sequence()), (vec![first.kid.clone()], 2));
        assert_eq!(open(2).kid, first.kid, "a restart keeps it");
        assert_eq!(bundle(&store).sequence(), 2);
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(dir.path().join("jwt.key")).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
        // What it signs, its key in the bundle verifies.
        let id = TrustDomain::parse("prod.example").unwrap().member("/web").unwrap();
        let claims = hoplite_identity::jwt::JwtClaims::new(id, vec!["a".to_owned()], at(2), at(60)).unwrap();
        for _ in 0..200 {
            let input = claims.signing_input(first.kid(), first.algorithm());
            let token = hoplite_identity::jwt::JwtClaims::signed(&input, &first.sign(input.as_bytes()).unwrap());
            let held = bundle(&store);
            hoplite_identity::jwt::verify(&token, "a", |_| Some(held.jwt()), at(3)).unwrap();
        }
        // The file is lost: what was signed is good until it ends.
        std::fs::remove_file(dir.path().join("jwt.key")).unwrap();
        let second = open(4);
        assert_eq!(kids(&store).len(), 2);
        assert_eq!(open(5).kid, second.kid);
        // All of it is over.
        assert_ne!(open(700).kid, second.kid);
    }

    #[test]
    fn they_take_the_course_of_all_authorities() {
        let (store, dir) = (before(), tempfile::tempdir().unwrap());
        let first = JwtSigner::open(&store, false, &Keyring::of_jwt(dir.path()), TTL, at(0)).unwrap();
        let keyring = Keyring::of_jwt(dir.path());
        let step = |what: What<JwtTrusted>, seconds: u64| {
            let step = Step {
                what,
                now: at(seconds),
                known: u64::MAX,
            };
            write::commit(&store, &step).map(|(stepped, _)| stepped)
        };
        let prepare = |seconds: u64| {
            let (_, new) = JwtSigner::make(&keyring, TTL, at(seconds)).unwrap();
            What::Prepare { new, by_hand: false }
        };
        assert!(step(prepare(300), 300).unwrap().is_new);
        assert!(!step(prepare(301), 301).unwrap().is_new, "there is a successor");
        assert_eq!((kids(&store).len(), bundle(&store).sequence()), (2, 3));
        let next = kids(&store).into_iter().find(|kid| *kid != first.kid).unwrap();
        let signs = step(
            What::Activate {
                name: next.clone(),
                word: None,
            },
            500,
        )
        .unwrap();
        assert_eq!((signs.active.as_str(), signs.sequence), (next.as_str(), 3));
        let kid = || first.kid.clone();
        assert!(step(What::Revoke { name: kid() }, 501).is_err(), "taint it first");
        assert_eq!(
            step(
                What::Taint {
                    name: kid(),
                    word: None
                },
                501
            )
            .unwrap()
            .sequence,
            4
        );
        assert_eq!(kids(&store).len(), 2, "what it signed is good still");
        assert_eq!(step(What::Revoke { name: kid() }, 502).unwrap().sequence, 5);
        assert_eq!(kids(&store), std::slice::from_ref(&next));
        assert_eq!(
            JwtSigner::open(&store, false, &keyring, TTL, at(503)).unwrap().kid,
            next
        );
        assert_eq!(step(What::Leave, 601).unwrap().gone, [kid()]);
        // Another process that found the same state founds nothing.
        let new = New {
            made: Signer::ephemeral().der_bytes().to_vec(),
            not_after: at(9999),
            sealed: None,
        };
        let found = What::Found { new, instead_of: None };
        assert!(!step(found, 602).unwrap().is_new);
    }
}
