//! What is written of authorities: the first one, and each step of their course.

use std::collections::BTreeMap;
use std::time::SystemTime;

use hoplite_identity::TrustDomain;

use crate::authority::course::{Life, Name, State};
use crate::authority::taking::{Taking, TrustError, Word, course};
use crate::authority::trust::{Trust, Trusted};
use crate::write::{Changes, ReadError, View, Write};

/// Notes the first authority of a trust domain.
pub(crate) struct Found {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) new: New<Trusted>,
    pub(crate) now: SystemTime,
}

/// One step of a kind's course. Whatever several replicas ask for at once, each is decided on all of it.
#[derive(Debug, Clone)]
pub(crate) struct Step<K: Taking> {
    pub(crate) what: What<K>,
    pub(crate) now: SystemTime,
    /// The newest trust bundle, by its sequence number, that all agents in contact know.
    pub(crate) known: u64,
}

/// What was made, for its record.
#[derive(Debug, Clone)]
pub(crate) struct New<K: Taking> {
    pub(crate) made: K::Made,
    pub(crate) not_after: SystemTime,
    /// Its key, where the store keeps that.
    pub(crate) sealed: Option<String>,
}

/// What is to happen.
#[derive(Debug, Clone)]
pub(crate) enum What<K: Taking> {
    /// It signs from now on: there is none that can, but perhaps this one whose key is lost.
    Found { new: New<K>, instead_of: Option<Name> },
    /// One more is in the trust bundle, to sign later.
    Prepare {
        new: New<K>,
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

// === impl Found ===

#[cfg(test)]
impl Found {
    /// One that is signed by itself.
    pub(crate) fn itself(
        trust_domain: TrustDomain,
        certificate: hoplite_identity::CertificateDer<'static>,
        not_after: SystemTime,
        now: SystemTime,
    ) -> Self {
        let made = crate::authority::trust::Certified::itself(certificate);
        let new = New {
            made,
            not_after,
            sealed: None,
        };
        Self { trust_domain, new, now }
    }
}

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
        let name = Trusted::name(&self.new.made);
        let trust = Trust {
            trust_domain: self.trust_domain.clone(),
            sequence: 1,
        };
        let life = Life::new(State::Active, self.now, self.new.not_after);
        let trusted = self.new.record(&trust, life)?;
        Ok((Changes::none().put("", &trust).put(&name, &trusted), ()))
    }
}

// === impl Step ===

impl<K: Taking> Write for Step<K> {
    type Reads = (Option<Trust>, BTreeMap<Name, K>);
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
            What::Found { new, instead_of } => {
                let active = course.active().map(|(name, _)| name.clone());
                let is_needed = active == *instead_of;
                if is_needed {
                    for other in course.0.values_mut().filter(|life| life.state == State::Active) {
                        *other = other.ended_turn(now);
                    }
                    let life = Life::new(State::Active, now, new.not_after);
                    let name = K::name(&new.made);
                    course.0.insert(name.clone(), life);
                    after.insert(name, new.record(&trust, life)?);
                }
                is_needed
            }
            What::Prepare { new, by_hand } => {
                let life = Life::new(State::Prepared, now, new.not_after);
                let name = K::name(&new.made);
                let is_new = course.prepare(&name, life, *by_hand)?;
                if is_new {
                    after.insert(name, new.record(&trust, life)?);
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
        for (name, one) in &mut after {
            let life = course.0.get(name).copied().unwrap_or(one.life());
            one.live(life);
        }
        // Agents ask for other tokens when it grows: a taint is news to them although the keys are the same.
        if seen(&before) != seen(&after) {
            trust.sequence = trust.sequence.saturating_add(1);
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
        for (name, one) in after.iter().filter(|(name, one)| before.get(*name) != Some(one)) {
            changes = changes.put(name, one);
        }
        for name in before.keys().filter(|name| !after.contains_key(*name)) {
            changes = changes.delete::<K>(name);
        }
        Ok((changes, stepped))
    }
}

impl<K: Taking> New<K> {
    fn record(&self, trust: &Trust, life: Life) -> Result<K, TrustError> {
        K::new_one(&trust.trust_domain, &self.made, life, self.sealed.clone())
    }
}

fn speaks<K: Taking>(all: &mut BTreeMap<Name, K>, word: Option<&Word>) -> bool {
    if let Some(word) = word {
        K::speak(all, word);
    }
    true
}

/// What others see: which authorities count, and which of them are tainted.
fn seen<K: Taking>(all: &BTreeMap<Name, K>) -> Vec<(&Name, bool)> {
    let counts = all.iter().filter(|(_, one)| one.life().state.is_trusted());
    counts
        .map(|(name, one)| (name, one.life().state == State::Tainted))
        .collect()
}

/// Has members of the trust domain verified with one more authority, which does not sign here. Answers with the trust
/// bundle's sequence number.
#[cfg(any(test, feature = "testing"))]
pub(crate) struct Trusting {
    pub(crate) certificate: hoplite_identity::CertificateDer<'static>,
    pub(crate) life: Life,
}

// === impl Trusting ===

#[cfg(any(test, feature = "testing"))]
impl Trusting {
    /// As of one that has been used up.
    pub(crate) fn old(certificate: hoplite_identity::CertificateDer<'static>, now: SystemTime) -> Self {
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
            return Err(crate::authority::course::CourseError::TooMany.into());
        }
        let sequence = trust.sequence.saturating_add(1);
        let trusted = Trusted::new(&trust.trust_domain, &self.certificate, self.life)?;
        let trust = Trust { sequence, ..trust };
        Ok((Changes::none().put("", &trust).put(&name, &trusted), sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::course::Due;
    use crate::authority::trust::Certified;
    use crate::authority::x509::Authority;
    use crate::index::Index;
    use crate::record;
    use crate::write::{self, WriteError};
    use hoplite_identity::CertificateDer;
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
        let found = Found::itself(domain(), authority.certificate().clone(), authority.not_after(), at(0));
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

    fn step(store: &dyn Store, what: What<Trusted>, now: u64, known: u64) -> Result<Stepped, WriteError<TrustError>> {
        let step = Step {
            what,
            now: at(now),
            known,
        };
        write::commit(store, &step).map(|(stepped, _)| stepped)
    }

    fn prepare(n: usize, now: u64, by_hand: bool) -> What<Trusted> {
        let new = New {
            made: Certified::itself(certificate(n)),
            not_after: at(now + TTL),
            sealed: None,
        };
        What::Prepare { new, by_hand }
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
        let race = |what: &(dyn Fn(usize) -> What<Trusted> + Sync), now: u64| -> usize {
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
