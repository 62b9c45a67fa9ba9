//! What is written of authorities: the first one, and each step of their course.

use std::collections::BTreeMap;
use std::time::SystemTime;

use hoplite_identity::jwt::InvalidJwk;
use hoplite_identity::{CertificateDer, InvalidBundle, TrustDomain};

use crate::authority::course::{CourseError, Life, Name, State};
use crate::authority::trust::{self, Trust, Trusted};
use crate::write::{Changes, ReadError, View, Write};

/// Notes the first authority of a trust domain.
pub(crate) struct Found {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) not_after: SystemTime,
    pub(crate) now: SystemTime,
}

/// One step of the authorities' course. Whatever several replicas ask for at once, each is decided on all of it.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) what: What,
    pub(crate) now: SystemTime,
    /// The newest trust bundle, by its sequence number, that all agents in contact know.
    pub(crate) known: u64,
}

/// What is to happen.
#[derive(Debug, Clone)]
pub(crate) enum What {
    /// One more is in the trust bundle, to sign later.
    Prepare {
        certificate: CertificateDer<'static>,
        not_after: SystemTime,
        /// Although there is a successor.
        by_hand: bool,
    },
    /// It signs.
    Activate { name: Name, word: Option<Word> },
    /// All that it signed is replaced.
    Taint { name: Name, word: Option<Word> },
    /// It is in no bundle any more.
    Revoke { name: Name },
    /// Those that have ended go.
    Leave,
}

/// What the one that signs says of its successor: a certificate of its key.
#[derive(Debug, Clone)]
pub(crate) struct Word {
    pub(crate) by: Name,
    pub(crate) certificate: CertificateDer<'static>,
}

/// What a step came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stepped {
    /// False: it was so already.
    pub(crate) is_new: bool,
    /// Of the trust bundle.
    pub(crate) sequence: u64,
    pub(crate) active: Name,
    /// Those that have gone.
    pub(crate) gone: Vec<Name>,
}

/// Why nothing was written of an authority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// Another process founded one.
    #[error("there is an authority already; stop the other CA that uses this data directory")]
    Founded,
    /// Members could not be verified with it.
    #[error(transparent)]
    Certificate(#[from] InvalidBundle),
    /// It is no key for JWT-SVIDs.
    #[error("the key for JWT-SVIDs cannot be used: {0}")]
    Key(#[from] InvalidJwk),
    /// Nothing it could stand beside.
    #[error("there is no authority yet; start the CA first")]
    NotFounded,
    /// It is not its turn.
    #[error(transparent)]
    Course(#[from] CourseError),
}

// === impl Found ===

impl Write for Found {
    type Reads = Option<Trust>;
    type Answer = ();
    type Error = TrustError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        view.one("")
    }

    fn decide(&self, trust: Self::Reads) -> Result<(Changes, ()), TrustError> {
        if trust.is_some() {
            return Err(TrustError::Founded);
        }
        let name = Trusted::name_of(&self.certificate);
        let trust = Trust {
            trust_domain: self.trust_domain.clone(),
            sequence: 1,
        };
        let life = Life::new(State::Active, self.now, self.not_after);
        let trusted = Trusted::new(&self.trust_domain, &self.certificate, life)?;
        Ok((Changes::none().put("", &trust).put(&name, &trusted), ()))
    }
}

// === impl Step ===

impl Write for Step {
    type Reads = (Option<Trust>, BTreeMap<String, Trusted>);
    type Answer = Stepped;
    type Error = TrustError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        Ok((view.one("")?, view.all()?))
    }

    fn decide(&self, (trust, before): Self::Reads) -> Result<(Changes, Stepped), TrustError> {
        let mut trust = trust.ok_or(TrustError::NotFounded)?;
        let mut course = trust::course(&before);
        let mut after = before.clone();
        let (now, knows) = (self.now, self.known >= trust.sequence);
        let mut gone = Vec::new();
        let is_new = match &self.what {
            What::Prepare {
                certificate,
                not_after,
                by_hand,
            } => {
                let name = Trusted::name_of(certificate);
                let life = Life::new(State::Prepared, now, *not_after);
                let is_new = course.prepare(&name, life, *by_hand)?;
                if is_new {
                    after.insert(name, Trusted::new(&trust.trust_domain, certificate, life)?);
                }
                is_new
            }
            What::Activate { name, word } => course.activate(name, now, knows)? && speaks(&mut after, word.as_ref()),
            What::Taint { name, word } => course.taint(name, now, knows)? && speaks(&mut after, word.as_ref()),
            What::Revoke { name } => course.revoke(name, now)?,
            What::Leave => {
                gone = course.leave(now);
                !gone.is_empty()
            }
        };
        after.retain(|name, _| course.0.contains_key(name));
        for (name, trusted) in &mut after {
            trusted.life = course.0.get(name).copied().unwrap_or(trusted.life);
        }
        let active = course.active().map(|(name, _)| name.clone()).unwrap_or_default();
        if seen(&before) != seen(&after) {
            trust.sequence += 1;
        }
        let stepped = Stepped {
            is_new,
            sequence: trust.sequence,
            active,
            gone,
        };
        if before == after {
            return Ok((Changes::none(), stepped));
        }
        let mut changes = Changes::none().put("", &trust);
        for (name, trusted) in after
            .iter()
            .filter(|(name, trusted)| before.get(*name) != Some(trusted))
        {
            changes = changes.put(name, trusted);
        }
        for name in before.keys().filter(|name| !after.contains_key(*name)) {
            changes = changes.delete::<Trusted>(name);
        }
        Ok((changes, stepped))
    }
}

/// Its word counts if it is the one that has signed until now.
fn speaks(trusted: &mut BTreeMap<String, Trusted>, word: Option<&Word>) -> bool {
    let spoken = word.and_then(|word| Some((word, trusted.get(&word.by)?.clone())));
    if let Some((word, by)) = spoken.filter(|(_, by)| by.life.state == State::Active) {
        trusted.insert(word.by.clone(), by.vouching(&word.certificate));
    }
    true
}

/// What others see: which authorities count, and which of them are tainted.
fn seen(trusted: &BTreeMap<String, Trusted>) -> Vec<(&String, bool)> {
    let counts = trusted.iter().filter(|(_, trusted)| trusted.life.state.is_trusted());
    counts
        .map(|(name, trusted)| (name, trusted.life.state == State::Tainted))
        .collect()
}

/// Has members of the trust domain verified with one more authority, which does not sign here. Answers with the trust
/// bundle's sequence number.
#[cfg(any(test, feature = "testing"))]
pub(crate) struct Trusting {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) life: Life,
}

// === impl Trusting ===

#[cfg(any(test, feature = "testing"))]
impl Trusting {
    /// As of one that has been used up.
    pub(crate) fn old(certificate: CertificateDer<'static>, now: SystemTime) -> Self {
        let day = std::time::Duration::from_secs(86400);
        let life = Life::new(State::Old, now, now + day);
        Self { certificate, life }
    }
}

#[cfg(any(test, feature = "testing"))]
impl Write for Trusting {
    type Reads = (Option<Trust>, BTreeMap<String, Trusted>);
    type Answer = u64;
    type Error = TrustError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        Ok((view.one("")?, view.all()?))
    }

    fn decide(&self, (trust, trusted): Self::Reads) -> Result<(Changes, u64), TrustError> {
        let trust = trust.ok_or(TrustError::NotFounded)?;
        let name = Trusted::name_of(&self.certificate);
        if trusted.contains_key(&name) {
            return Ok((Changes::none(), trust.sequence));
        }
        if trusted.len() >= crate::authority::course::AUTHORITIES_MAX {
            return Err(CourseError::TooMany.into());
        }
        let sequence = trust.sequence + 1;
        let trusted = Trusted::new(&trust.trust_domain, &self.certificate, self.life)?;
        let trust = Trust { sequence, ..trust };
        Ok((Changes::none().put("", &trust).put(&name, &trusted), sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::course::Due;
    use crate::authority::x509::Authority;
    use crate::index::Index;
    use crate::record;
    use crate::write::{self, WriteError};
    use hoplite_store::{MemoryStore, Store};
    use proptest::prelude::*;
    use std::sync::LazyLock;
    use std::time::Duration;

    const TTL: u64 = 600;

    fn at(seconds: u64) -> SystemTime {
        record::from_unix_seconds(1_800_000_000 + seconds)
    }

    fn domain() -> TrustDomain {
        TrustDomain::parse("prod.example").unwrap()
    }

    fn founded() -> MemoryStore {
        let store = MemoryStore::new();
        let authority = Authority::ephemeral(&domain(), at(0), Duration::from_secs(TTL));
        let found = Found {
            trust_domain: domain(),
            certificate: authority.certificate().clone(),
            not_after: authority.not_after(),
            now: at(0),
        };
        write::commit(&store, &found).unwrap();
        store
    }

    fn index(store: &dyn Store) -> Index {
        Index::new(&store.snapshot().unwrap()).unwrap()
    }

    /// Certificates enough for all tests; making one costs a signature.
    fn certificate(n: usize) -> CertificateDer<'static> {
        static ALL: LazyLock<Vec<CertificateDer<'static>>> = LazyLock::new(|| {
            let make = |_| {
                Authority::ephemeral(&domain(), at(0), Duration::from_secs(TTL))
                    .certificate()
                    .clone()
            };
            (0..64).map(make).collect()
        });
        ALL[n % ALL.len()].clone()
    }

    fn step(store: &dyn Store, what: What, now: u64, known: u64) -> Result<Stepped, WriteError<TrustError>> {
        let step = Step {
            what,
            now: at(now),
            known,
        };
        write::commit(store, &step).map(|(stepped, _)| stepped)
    }

    fn prepare(n: usize, now: u64, by_hand: bool) -> What {
        What::Prepare {
            certificate: certificate(n),
            not_after: at(now + TTL),
            by_hand,
        }
    }

    #[test]
    fn the_bundle_changes_when_what_is_trusted_does() {
        let store = founded();
        let sequence = |store: &MemoryStore| index(store).authority.bundle().unwrap().sequence();
        let first = step(&store, What::Leave, 0, 0).unwrap().active;
        let next = step(&store, prepare(0, 300, false), 300, 0).unwrap();
        assert_eq!((next.is_new, next.sequence, sequence(&store)), (true, 2, 2));
        assert!(
            !step(&store, prepare(1, 301, false), 301, 0).unwrap().is_new,
            "there is a successor"
        );
        let name = Trusted::name_of(&certificate(0));
        let word = Some(Word {
            by: first.clone(),
            certificate: certificate(7),
        });
        let activate = What::Activate {
            name: name.clone(),
            word,
        };
        let signs = step(&store, activate.clone(), 500, 2).unwrap();
        assert_eq!((signs.is_new, signs.sequence, &signs.active), (true, 2, &name));
        assert_eq!(
            index(&store).authority.get(&first).unwrap().vouches(),
            Some(certificate(7))
        );
        assert!(!step(&store, activate, 501, 2).unwrap().is_new);
        let taint = What::Taint {
            name: first.clone(),
            word: None,
        };
        assert_eq!(step(&store, taint, 502, 2).unwrap().sequence, 3);
        let bundle = index(&store).authority.bundle().cloned().unwrap();
        assert_eq!((bundle.authorities().len(), bundle.tainted().len()), (2, 1));
        let revoke = What::Revoke { name: first.clone() };
        assert_eq!(step(&store, revoke, 503, 2).unwrap().sequence, 4);
        let bundle = index(&store).authority.bundle().cloned().unwrap();
        assert_eq!(
            (bundle.authorities(), bundle.tainted().len()),
            (&[certificate(0)][..], 0)
        );
        let left = step(&store, What::Leave, TTL, 2).unwrap();
        assert_eq!((left.gone, left.sequence), (vec![first], 4), "it was in no bundle");
    }

    #[test]
    fn many_at_once_prepare_one_and_activate_it_once() {
        let store = founded();
        let race = |what: &(dyn Fn(usize) -> What + Sync), now: u64| -> usize {
            std::thread::scope(|scope| {
                let store = &store;
                let racing = (0..8).map(|n| scope.spawn(move || step(store, what(n), now, u64::MAX).unwrap().is_new));
                let racing: Vec<_> = racing.collect();
                racing
                    .into_iter()
                    .map(|thread| usize::from(thread.join().unwrap()))
                    .sum()
            })
        };
        assert_eq!(race(&|n| prepare(n, 300, false), 300), 1);
        let prepared = index(&store).authority.course().prepared().unwrap().0.clone();
        let activate = |_| What::Activate {
            name: prepared.clone(),
            word: None,
        };
        assert_eq!(race(&activate, 500), 1);
        let course = index(&store).authority.course().clone();
        assert_eq!((course.0.len(), course.active().unwrap().0), (2, &prepared));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Replicas that look at what was, some of them long ago, and die between two steps: one signs all the time, and
        /// what the store holds can be read.
        #[test]
        fn replicas_that_lag_never_make_two_that_sign(
            steps in proptest::collection::vec((0_usize..3, 0_u64..60, any::<bool>(), any::<bool>()), 1..80),
        ) {
            let store = founded();
            let mut seen = [(); 3].map(|()| index(&store));
            let (mut now, mut made) = (0, 0);
            for (replica, wait, looks, does) in steps {
                now += wait;
                if looks {
                    seen[replica] = index(&store);
                }
                let Some(due) = seen[replica].authority.course().due(at(now), true, true).filter(|_| does) else { continue };
                made += 1;
                let what = match due {
                    Due::Leave(_) => What::Leave,
                    Due::Prepare => prepare(made, now, false),
                    Due::Activate(name) => What::Activate { name, word: None },
                };
                // What is refused was decided on what is there now.
                let _ = step(&store, what, now, u64::MAX);
                let index = index(&store);
                let course = index.authority.course();
                prop_assert_eq!(course.in_state(State::Active).count(), 1);
                prop_assert!(course.in_state(State::Prepared).count() <= 1);
                prop_assert!(index.authority.bundle().is_some());
            }
        }
    }
}
