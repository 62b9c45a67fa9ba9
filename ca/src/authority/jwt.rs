//! The keys that sign JWT-SVIDs: what the store holds of each, what is written of them, and the one that signs.
//!
//! They are authorities like the X.509 ones and take the same course. Their names are their key ids.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use hoplite_identity::jwt::{InvalidJwk, InvalidJwtAuthorities, JwtAlgorithm, JwtAuthorities, JwtKey};
use hoplite_store::Store;
use rcgen::{PublicKeyData, SigningKey};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use crate::authority::course::{Course, Life, Name, State};
use crate::authority::signer::{Keyring, Signer};
use crate::authority::trust::Trust;
use crate::authority::writes::{Stepped, TrustError};
use crate::authority::x509::AuthorityError;
use crate::record::{self, BadRecord, Record};
use crate::write::{self, Changes, ReadError, View, Write};

/// A number of P-256, in bytes. Two of them are a signature (RFC 7518 §3.4).
const NUMBER_BYTES: usize = 32;

/// A key of the trust domain for JWT-SVIDs, and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JwtTrusted {
    /// The public key: an uncompressed point of P-256, hexadecimal.
    point: String,
    pub(crate) life: Life,
}

impl Record for JwtTrusted {
    /// Their names are the key ids.
    const PREFIX: &'static str = "authority/jwt/";
    const COUNTED: bool = true;
}

/// One step of the JWT authorities' course, as `Step` is of the X.509 ones'.
#[derive(Debug, Clone)]
pub(crate) struct JwtStep {
    pub(crate) what: JwtWhat,
    pub(crate) now: SystemTime,
    /// The newest trust bundle, by its sequence number, that all agents in contact know.
    pub(crate) known: u64,
}

/// What is to happen.
#[derive(Debug, Clone)]
pub(crate) enum JwtWhat {
    /// It signs from now on: there is none that can, but perhaps this one whose key is lost.
    Found {
        point: Vec<u8>,
        not_after: SystemTime,
        instead_of: Option<Name>,
    },
    /// One more is in the trust bundle, to sign later.
    Prepare {
        point: Vec<u8>,
        not_after: SystemTime,
        by_hand: bool,
    },
    /// It signs.
    Activate { name: Name },
    /// All that it signed is replaced.
    Taint { name: Name },
    /// It is in no bundle any more.
    Revoke { name: Name },
    /// Those that have ended go.
    Leave,
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
        })
    }

    /// Whether this is its key.
    pub(crate) fn is_of(&self, signer: &Signer) -> bool {
        HEXLOWER.encode(signer.der_bytes()) == self.point
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

/// The course of these.
pub(crate) fn course(trusted: &BTreeMap<String, JwtTrusted>) -> Course {
    let lives = trusted.iter().map(|(name, trusted)| (name.clone(), trusted.life));
    Course(lives.collect())
}

/// What members of the trust domain verify JWT-SVIDs with.
pub(crate) fn authorities(trusted: &BTreeMap<String, JwtTrusted>) -> Result<JwtAuthorities, BadRecord> {
    let counts = trusted.iter().filter(|(_, trusted)| trusted.life.state.is_trusted());
    let keys = counts.map(|(name, trusted)| Ok((name.clone(), trusted.key(name)?)));
    let keys: Vec<_> = keys.collect::<Result<_, BadRecord>>()?;
    JwtAuthorities::new(keys).map_err(|error: InvalidJwtAuthorities| BadRecord::Malformed {
        key: record::key::<JwtTrusted>(""),
        reason: error.to_string(),
    })
}

// === impl JwtStep ===

impl Write for JwtStep {
    type Reads = (Option<Trust>, BTreeMap<String, JwtTrusted>);
    type Answer = Stepped;
    type Error = TrustError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        Ok((view.one("")?, view.all()?))
    }

    fn decide(&self, (trust, before): Self::Reads) -> Result<(Changes, Stepped), TrustError> {
        let mut trust = trust.ok_or(TrustError::NotFounded)?;
        let mut course = course(&before);
        let mut after = before.clone();
        let (now, knows) = (self.now, self.known >= trust.sequence);
        let mut gone = Vec::new();
        let is_new = match &self.what {
            JwtWhat::Found {
                point,
                not_after,
                instead_of,
            } => {
                let active = course.active().map(|(name, _)| name.clone());
                let is_needed = active == *instead_of;
                if is_needed {
                    for other in course.0.values_mut().filter(|life| life.state == State::Active) {
                        *other = other.ended_turn(now);
                    }
                    let name = JwtTrusted::name_of(point);
                    let life = Life::new(State::Active, now, *not_after);
                    course.0.insert(name.clone(), life);
                    after.insert(name, JwtTrusted::new(point, life)?);
                }
                is_needed
            }
            JwtWhat::Prepare {
                point,
                not_after,
                by_hand,
            } => {
                let name = JwtTrusted::name_of(point);
                let life = Life::new(State::Prepared, now, *not_after);
                let is_new = course.prepare(&name, life, *by_hand)?;
                if is_new {
                    after.insert(name, JwtTrusted::new(point, life)?);
                }
                is_new
            }
            JwtWhat::Activate { name } => course.activate(name, now, knows)?,
            JwtWhat::Taint { name } => course.taint(name, now, knows)?,
            JwtWhat::Revoke { name } => course.revoke(name, now)?,
            JwtWhat::Leave => {
                gone = course.leave(now);
                !gone.is_empty()
            }
        };
        after.retain(|name, _| course.0.contains_key(name));
        for (name, trusted) in &mut after {
            trusted.life = course.0.get(name).copied().unwrap_or(trusted.life);
        }
        // Agents ask for other tokens when it grows: a taint is news to them although the keys are the same.
        if seen(&before) != seen(&after) {
            trust.sequence += 1;
        }
        let stepped = Stepped {
            is_new,
            sequence: trust.sequence,
            active: course.active().map(|(name, _)| name.clone()).unwrap_or_default(),
            gone,
        };
        if before == after {
            return Ok((Changes::none(), stepped));
        }
        let mut changes = Changes::none().put("", &trust);
        for (name, trusted) in &after {
            if before.get(name) != Some(trusted) {
                changes = changes.put(name, trusted);
            }
        }
        for name in before.keys().filter(|name| !after.contains_key(*name)) {
            changes = changes.delete::<JwtTrusted>(name);
        }
        Ok((changes, stepped))
    }
}

/// What others see: which keys count, and which of them are tainted.
fn seen(trusted: &BTreeMap<String, JwtTrusted>) -> Vec<(&String, bool)> {
    let counts = trusted.iter().filter(|(_, trusted)| trusted.life.state.is_trusted());
    counts
        .map(|(name, trusted)| (name, trusted.life.state == State::Tainted))
        .collect()
}

// === impl JwtSigner ===

impl JwtSigner {
    /// The key that signs here. It is made if there is none: at the first start, for a CA of before there were any, and where
    /// the file of keys is lost, since agents hear of the new one by the X.509 authority that they trust. Not where other CAs have
    /// the same store, and the key: it has to come from them.
    pub(crate) fn open(
        store: &dyn Store,
        is_shared: bool,
        data_dir: &Path,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let keyring = Keyring::of_jwt(data_dir);
        let trusted = View::new(store).all::<JwtTrusted>()?;
        let course = course(&trusted);
        let lives = |life: &Life| life.not_after > record::unix_seconds(now);
        let active = course.active().map(|(name, life)| (name.clone(), *life));
        if let Some((name, _)) = active.as_ref().filter(|(_, life)| lives(life))
            && let Some(held) = Self::held(&keyring, &trusted, name)?
        {
            return Ok(held);
        }
        // The CA was away while its key ended, and had a successor.
        if let Some((next, _)) = course.prepared().filter(|(_, life)| lives(life))
            && active.as_ref().is_some_and(|(_, life)| !lives(life))
            && let Some(held) = Self::held(&keyring, &trusted, next)?
        {
            let what = JwtWhat::Activate { name: next.clone() };
            write::commit(store, &JwtStep { what, now, known: 0 })?;
            tracing::warn!(
                kid = next,
                "the key for JWT-SVIDs ended while the CA was away; its successor signs"
            );
            return Ok(held);
        }
        if is_shared && active.as_ref().is_some_and(|(_, life)| lives(life)) {
            let path = keyring.path().to_owned();
            return Err(match keyring.signers()?.is_empty() {
                true => AuthorityError::KeyMissing { path },
                false => AuthorityError::KeyMismatch { path },
            });
        }
        let signer = keyring.make()?;
        let not_after = end(now, ttl)?;
        let (point, instead_of) = (signer.der_bytes().to_vec(), active.map(|(name, _)| name));
        if let Some(kid) = &instead_of {
            tracing::error!(target: "hoplite::audit", kid, "the key for JWT-SVIDs has ended or is lost; another one signs from now on");
        }
        let kid = JwtTrusted::name_of(&point);
        let what = JwtWhat::Found {
            point,
            not_after,
            instead_of,
        };
        let (stepped, _) = write::commit(store, &JwtStep { what, now, known: 0 })?;
        if !stepped.is_new {
            // Another CA over the same store was faster, and its key is the one that members know.
            let path = keyring.path().to_owned();
            return Err(AuthorityError::KeyMismatch { path });
        }
        tracing::info!(target: "hoplite::audit", kid, "made a new key for JWT-SVIDs");
        Ok(Self { kid, signer, not_after })
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
        let mut signers = keyring.signers()?.into_iter();
        let signer = signers.find(|signer| trusted.is_of(signer));
        Ok(signer.map(|signer| Self {
            kid: name.to_owned(),
            signer,
            not_after: record::from_unix_seconds(trusted.life.not_after),
        }))
    }

    /// One more, whose key is on the disk: its public key and its end.
    pub(crate) fn make(
        keyring: &Keyring,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(Vec<u8>, SystemTime), AuthorityError> {
        let not_after = end(now, ttl)?;
        Ok((keyring.make()?.der_bytes().to_vec(), not_after))
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
        in_a_row(&self.signer.sign(message).ok()?)
    }
}

fn end(now: SystemTime, ttl: Duration) -> Result<SystemTime, AuthorityError> {
    now.checked_add(ttl)
        .ok_or_else(|| AuthorityError::Certificate("it would never expire".to_owned()))
}

/// Both numbers of an ECDSA signature in DER, each with all its bytes.
fn in_a_row(der: &[u8]) -> Option<Vec<u8>> {
    let (tag, rest) = der.split_first()?;
    let (length, mut rest) = rest.split_first()?;
    if *tag != 0x30 || usize::from(*length) != rest.len() {
        return None;
    }
    let mut row = Vec::with_capacity(2 * NUMBER_BYTES);
    for _ in 0..2 {
        let (tag, after) = rest.split_first()?;
        let (length, after) = after.split_first()?;
        let (number, after) = after.split_at_checked(usize::from(*length))?;
        // A leading zero keeps a number positive, and is none of its digits.
        let digits = match number {
            [0, digits @ ..] => digits,
            digits => digits,
        };
        row.resize(
            row.len() + NUMBER_BYTES.checked_sub(digits.len()).filter(|_| *tag == 2)?,
            0,
        );
        row.extend(digits);
        rest = after;
    }
    rest.is_empty().then_some(row)
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
        let found = Found {
            trust_domain,
            certificate: authority.certificate().clone(),
            not_after: authority.not_after(),
            now: at(0),
        };
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
        let open = |seconds| JwtSigner::open(&store, false, dir.path(), TTL, at(seconds)).unwrap();
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
        let first = JwtSigner::open(&store, false, dir.path(), TTL, at(0)).unwrap();
        let keyring = Keyring::of_jwt(dir.path());
        let step = |what: JwtWhat, seconds: u64| {
            let step = JwtStep {
                what,
                now: at(seconds),
                known: u64::MAX,
            };
            write::commit(&store, &step).map(|(stepped, _)| stepped)
        };
        let prepare = |seconds: u64| {
            let (point, not_after) = JwtSigner::make(&keyring, TTL, at(seconds)).unwrap();
            JwtWhat::Prepare {
                point,
                not_after,
                by_hand: false,
            }
        };
        assert!(step(prepare(300), 300).unwrap().is_new);
        assert!(!step(prepare(301), 301).unwrap().is_new, "there is a successor");
        assert_eq!((kids(&store).len(), bundle(&store).sequence()), (2, 3));
        let next = kids(&store).into_iter().find(|kid| *kid != first.kid).unwrap();
        let signs = step(JwtWhat::Activate { name: next.clone() }, 500).unwrap();
        assert_eq!((signs.active.as_str(), signs.sequence), (next.as_str(), 3));
        let kid = || first.kid.clone();
        assert!(step(JwtWhat::Revoke { name: kid() }, 501).is_err(), "taint it first");
        assert_eq!(step(JwtWhat::Taint { name: kid() }, 501).unwrap().sequence, 4);
        assert_eq!(kids(&store).len(), 2, "what it signed is good still");
        assert_eq!(step(JwtWhat::Revoke { name: kid() }, 502).unwrap().sequence, 5);
        assert_eq!(kids(&store), std::slice::from_ref(&next));
        assert_eq!(
            JwtSigner::open(&store, false, dir.path(), TTL, at(503)).unwrap().kid,
            next
        );
        assert_eq!(step(JwtWhat::Leave, 601).unwrap().gone, [kid()]);
        // Another process that found the same state founds nothing.
        let found = JwtWhat::Found {
            point: Signer::ephemeral().der_bytes().to_vec(),
            not_after: at(9999),
            instead_of: None,
        };
        assert!(!step(found, 602).unwrap().is_new);
    }

    #[test]
    fn signatures_have_all_their_bytes() {
        let check = |der: &[u8], expected: Option<(u8, u8)>| {
            let row = in_a_row(der);
            let ends = row.as_ref().map(|row| {
                assert_eq!(row.len(), 64);
                (row[31], row[63])
            });
            assert_eq!(ends, expected, "{der:?}");
        };
        check(&[0x30, 6, 2, 1, 7, 2, 1, 9], Some((7, 9)));
        check(&[0x30, 7, 2, 2, 0, 200, 2, 1, 9], Some((200, 9)));
        check(&[0x30, 6, 2, 1, 7, 4, 1, 9], None);
        check(&[0x30, 5, 2, 1, 7, 2, 1], None);
        check(&[0x30, 7, 2, 1, 7, 2, 1, 9, 0], None);
        check(&[], None);
    }
}
