//! The turns of the X.509 authorities: each vouches for its successor, and people see who is under which.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use hoplite_identity::CertificateDer;

use crate::authority::course::{Course, Life, Name, State};
use crate::authority::index::AuthorityIndex;
use crate::authority::keyring::Keyring;
use crate::authority::taking::{Word, course};
use crate::authority::trust::{Certified, Trusted};
use crate::authority::writes::New;
use crate::authority::x509::{Authority, AuthorityError};
use crate::issuer::{Issuer, Signing};
use crate::record;
use crate::rotation::{Kind, Parts, Plan, Rotation, Shown, Words};

/// Old authorities that the CA's own chain speaks for.
const SHOWN_MAX: usize = 3;

// === impl Trusted ===

impl Kind for Trusted {
    const WORDS: Words = Words {
        prepared: "AuthorityPrepared",
        signs: "AuthoritySigns",
        leaves: "AuthorityLeaves",
        noun: "an authority",
    };

    fn all(index: &AuthorityIndex) -> &BTreeMap<Name, Self> {
        index.all()
    }

    fn course(index: &AuthorityIndex) -> &Course {
        index.course()
    }

    fn rotates(plan: Plan) -> bool {
        plan.rotates
    }

    fn keyring(with: &Parts) -> &Keyring {
        &with.maker.keyring
    }

    fn public(&self, name: &str) -> Option<Vec<u8>> {
        Authority::point_of(&self.certificate(name).ok()?)
    }

    fn make(with: &Parts, ttl: Duration, now: SystemTime) -> Result<New<Self>, AuthorityError> {
        with.maker.make(ttl, now).map(|(_, new)| new)
    }

    fn word(with: &Parts, all: &BTreeMap<Name, Self>, successor: &str) -> Result<Option<Word>, AuthorityError> {
        let (signing, successor) = (with.issuer.signing(), with.maker.held(all, successor)?);
        // Who knows the root above believes its successor by that.
        if signing.authority.is_under() {
            return Ok(None);
        }
        signing.authority.vouch(&successor).map(|certificate| {
            Some(Word {
                by: signing.authority.name(),
                certificate,
            })
        })
    }

    fn unsound(index: &AuthorityIndex) -> BTreeSet<Name> {
        index.unsound().clone()
    }

    fn follow(with: &Parts, all: &BTreeMap<Name, Self>, name: &str) -> Result<Option<bool>, AuthorityError> {
        let Some(Ok(certified)) = all.get(name).map(|active| active.certified(name)) else {
            return Err(AuthorityError::Certificate("it is not there".to_owned()));
        };
        let shown = chain(all, &certified);
        let signing = with.issuer.signing();
        let is_another = signing.authority.certificate() != &certified.certificate;
        if !is_another && signing.shown == shown {
            return Ok(None);
        }
        let authority = with.maker.held(all, name)?;
        with.issuer.sign_with(Signing { authority, shown });
        Ok(Some(is_another))
    }

    fn signs(issuer: &Issuer) -> Option<Name> {
        Some(issuer.signing().authority.name())
    }

    fn show(rotation: &Rotation, record: &Self, shown: &mut Shown, now: SystemTime) {
        let certificate = record.certificate(&shown.name).ok();
        let Some((key, not_before)) = certificate.as_ref().and_then(Authority::about) else {
            return;
        };
        let key = Some(key.as_str()).filter(|key| !key.is_empty());
        let index = rotation.0.registry.index();
        let is_live = |end: u64| end > record::unix_seconds(now);
        let agents = index.agents.iter().filter(|agent| {
            let used = agent.used();
            !agent.banned && Some(used.authority.as_str()) == key && is_live(used.not_after)
        });
        let operators = index
            .operators
            .iter()
            .filter(|operator| key.is_some_and(|key| operator.is_under(key, now)));
        shown.not_before = not_before;
        shown.agents = agents.map(|agent| agent.spiffe_id.to_string()).collect();
        shown.operators = operators.map(|operator| operator.name.clone()).collect();
        if shown.life.state == State::Tainted {
            shown.svids = rotation.0.fleet.svids_tainted();
        }
    }
}

/// What the CA shows after its own certificate: the active one, each old one that spoke for the one before in this list, and what is above.
fn chain(all: &BTreeMap<Name, Trusted>, active: &Certified) -> Vec<CertificateDer<'static>> {
    let course = course(all);
    let mut old: Vec<(&Name, &Life)> = course.in_state(State::Old).collect();
    old.sort_by_key(|(_, life)| std::cmp::Reverse(life.since));
    let mut chain = vec![active.certificate.clone()];
    for (name, _) in old.into_iter().take(SHOWN_MAX) {
        let Some(trusted) = all.get(name) else {
            continue;
        };
        let (Some(word), Ok(certificate)) = (trusted.vouches(), trusted.certificate(name)) else {
            continue;
        };
        if chain.last().is_some_and(|last| Authority::has_subject_of(&word, last)) {
            chain.extend([word, certificate]);
        }
    }
    chain.extend(active.above.iter().chain(active.roots.first()).cloned());
    chain
}
