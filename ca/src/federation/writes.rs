//! What is written of foreign trust domains: a federation, its end, a bundle, its withdrawal, a set.

use std::collections::BTreeMap;
use std::sync::Arc;

use hoplite_identity::{BundleDocument, FederationSet, TrustBundle, TrustDomain};

use crate::federation::records::{FEDERATIONS_MAX, Federated, ForeignBundle, Profile, SETS_MAX};
use crate::record::BadRecord;
use crate::write::{Changes, ReadError, View, Write};

/// Why nothing is written of a foreign trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FederationError {
    #[error("`{0}` is this CA's own trust domain; federate with another one")]
    Own(TrustDomain),
    #[error(
        "there is no federation with `{0}`; `hoplite federation list` shows those there are, `hoplite federation add` begins one"
    )]
    NoSuch(TrustDomain),
    #[error(
        "`{0}` publishes its bundle nowhere that is known here; give it by hand with `hoplite bundle set`, or `hoplite federation add` with `--url`"
    )]
    NoEndpoint(TrustDomain),
    #[error("there is no federation set `{0}`; `hoplite federation set list` shows those there are")]
    NoSuchSet(String),
    #[error(
        "the endpoint is known by `{0}`, and no bundle is held that could vouch for it: get the bundle of that trust domain some other way, \
         and give it with `--bundle FILE`"
    )]
    NoFirstBundle(hoplite_identity::SpiffeId),
    #[error(
        "there are {FEDERATIONS_MAX} federations already; end those that are over with `hoplite federation delete`"
    )]
    TooMany,
    #[error("there are {SETS_MAX} federation sets already; delete some with `hoplite federation set delete`")]
    TooManySets,
    #[error(
        "the bundle has the sequence number {got}, and {held} was seen before: it is an older copy, and is not taken; if `{domain}` really begins anew, get its bundle some other way and give it with `hoplite bundle set`"
    )]
    Lower { domain: TrustDomain, got: u64, held: u64 },
    #[error(
        "in the bundle is {key}, whose key the trust bundle of `{with}` has, too: whoever holds that key could be both, so the bundle is not taken"
    )]
    SharedKey { key: String, with: TrustDomain },
    #[error(
        "the bundle has no authority in it, so nobody of `{0}` would be believed by it, and nothing was changed; give one that has some, or, if nobody of it is to be believed, end \
         the federation with `hoplite federation delete {0}`"
    )]
    NoAuthority(TrustDomain),
    #[error(transparent)]
    Stored(#[from] BadBundle),
}

/// What is stored of a bundle cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadBundle(String);

/// Federates, or says anew where the bundle is; with a first bundle perhaps.
pub(crate) struct Federate {
    pub(crate) domain: TrustDomain,
    pub(crate) federated: Federated,
    pub(crate) first: Option<BundleDocument>,
    pub(crate) own: Arc<TrustBundle>,
    /// Unix seconds.
    pub(crate) now: u64,
}

/// Ends a federation: its bundle goes with it.
pub(crate) struct End {
    pub(crate) domain: TrustDomain,
}

/// Takes a bundle: one that was fetched, or one that somebody gives.
pub(crate) struct Take {
    pub(crate) domain: TrustDomain,
    pub(crate) document: BundleDocument,
    pub(crate) by_hand: bool,
    pub(crate) own: Arc<TrustBundle>,
    /// Unix seconds.
    pub(crate) now: u64,
}

/// What became of a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Taken {
    /// False: it was known already.
    pub(crate) is_new: bool,
    /// Other keys under the number of before: whoever publishes it does not count (B-2).
    pub(crate) same_number: bool,
    pub(crate) sequence: u64,
    /// It says that nobody is to be believed.
    pub(crate) is_empty: bool,
}

/// Gives a bundle to nobody any more, unless it was refreshed since.
pub(crate) struct Withdraw {
    pub(crate) domain: TrustDomain,
    /// What was read of it.
    pub(crate) checked: u64,
}

/// A federation set.
pub(crate) struct PutSet {
    pub(crate) name: String,
    pub(crate) set: FederationSet,
}

/// No such set any more.
pub(crate) struct DeleteSet {
    pub(crate) name: String,
}

/// A bundle that is known to be the newest is noted so at most this often, in seconds.
pub(crate) const NOTED_EVERY: u64 = 60;

impl From<BadRecord> for FederationError {
    fn from(error: BadRecord) -> Self {
        Self::Stored(BadBundle(error.to_string()))
    }
}

/// Somebody who gives a bundle wants its workloads to be believed. An endpoint may publish one without any authority (B-1a): that is how a
/// trust domain takes all of its keys back.
fn check_given(bundle: &TrustBundle) -> Result<(), FederationError> {
    match is_empty(bundle) {
        true => Err(FederationError::NoAuthority(bundle.trust_domain().clone())),
        false => Ok(()),
    }
}

/// Whether it says that nobody is to be believed.
pub(crate) fn is_empty(bundle: &TrustBundle) -> bool {
    bundle.authorities().is_empty() && bundle.jwt().is_empty()
}

/// A bundle that may stand beside all the others: no key of it vouches for another trust domain.
fn check_keys(
    bundle: &TrustBundle,
    own: &TrustBundle,
    others: &BTreeMap<String, ForeignBundle>,
) -> Result<(), FederationError> {
    let shared = |key: String, with: &TrustBundle| FederationError::SharedKey {
        key,
        with: with.trust_domain().clone(),
    };
    if let Some(key) = bundle.shared_key(own) {
        return Err(shared(key, own));
    }
    for (name, other) in others
        .iter()
        .filter(|(name, _)| *name != bundle.trust_domain().as_str())
    {
        let other = other.bundle(name)?;
        if let Some(key) = bundle.shared_key(&other) {
            return Err(shared(key, &other));
        }
    }
    Ok(())
}

// === impl Federate ===

impl Write for Federate {
    type Reads = (BTreeMap<String, Federated>, BTreeMap<String, ForeignBundle>);
    /// Whether it is another than before.
    type Answer = bool;
    type Error = FederationError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        Ok((view.all()?, view.all()?))
    }

    fn decide(&self, (all, bundles): Self::Reads) -> Result<(Changes, bool), FederationError> {
        let name = self.domain.as_str();
        if &self.domain == self.own.trust_domain() {
            return Err(FederationError::Own(self.domain.clone()));
        }
        let before = all.get(name);
        if before.is_none() && all.len() >= FEDERATIONS_MAX {
            return Err(FederationError::TooMany);
        }
        if let Some(Profile::HttpsSpiffe(id)) = self.federated.endpoint.as_ref().map(|endpoint| &endpoint.profile) {
            let vouches = id.trust_domain();
            let is_held = vouches == self.own.trust_domain() || bundles.contains_key(vouches.as_str());
            let is_given = self.first.is_some() && *vouches == self.domain;
            if !is_held && !is_given {
                return Err(FederationError::NoFirstBundle(id.clone()));
            }
        }
        let since = before.map_or(self.now, |before| before.since);
        let federated = Federated {
            since,
            ..self.federated.clone()
        };
        let mut changes = Changes::none();
        let mut is_new = before != Some(&federated);
        if is_new {
            changes = changes.put(name, &federated);
        }
        if let Some(first) = &self.first {
            check_given(&first.bundle)?;
            check_keys(&first.bundle, &self.own, &bundles)?;
            let bundle = ForeignBundle::new(first, self.now, true);
            if bundles.get(name).is_none_or(|held| !held.has_same_content(&bundle)) {
                changes = changes.put(name, &bundle);
                is_new = true;
            }
        }
        Ok((changes, is_new))
    }
}

// === impl End ===

impl Write for End {
    type Reads = (Option<Federated>, Option<ForeignBundle>);
    type Answer = ();
    type Error = FederationError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        let name = self.domain.as_str();
        Ok((view.one(name)?, view.one(name)?))
    }

    fn decide(&self, (federated, bundle): Self::Reads) -> Result<(Changes, ()), FederationError> {
        let name = self.domain.as_str();
        if federated.is_none() && bundle.is_none() {
            return Err(FederationError::NoSuch(self.domain.clone()));
        }
        let changes = Changes::none().delete::<Federated>(name).delete::<ForeignBundle>(name);
        Ok((changes, ()))
    }
}

// === impl Take ===

impl Write for Take {
    type Reads = (Option<Federated>, BTreeMap<String, ForeignBundle>, usize);
    type Answer = Taken;
    type Error = FederationError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        let federated = view.one(self.domain.as_str())?;
        let count = view.passing::<Federated>()?.len();
        Ok((federated, view.all()?, count))
    }

    fn decide(&self, (federated, bundles, count): Self::Reads) -> Result<(Changes, Taken), FederationError> {
        let name = self.domain.as_str();
        if &self.domain == self.own.trust_domain() {
            return Err(FederationError::Own(self.domain.clone()));
        }
        if self.by_hand {
            check_given(&self.document.bundle)?;
        }
        let mut changes = Changes::none();
        if federated.is_none() {
            // It was ended while its bundle was on its way.
            if !self.by_hand {
                return Err(FederationError::NoSuch(self.domain.clone()));
            }
            if count >= FEDERATIONS_MAX {
                return Err(FederationError::TooMany);
            }
            let federated = Federated {
                endpoint: None,
                since: self.now,
            };
            changes = changes.put(name, &federated);
        }
        let next = ForeignBundle::new(&self.document, self.now, self.by_hand);
        let held = bundles.get(name);
        let mut taken = Taken {
            is_new: true,
            same_number: false,
            sequence: next.sequence,
            is_empty: is_empty(&self.document.bundle),
        };
        if let Some(held) = held {
            // What somebody gives is that person's word, and may begin anew.
            if next.sequence < held.sequence && !self.by_hand {
                return Err(FederationError::Lower {
                    domain: self.domain.clone(),
                    got: next.sequence,
                    held: held.sequence,
                });
            }
            if next.has_same_content(held) {
                taken.is_new = false;
                let is_noted = self.now.saturating_sub(held.checked) < NOTED_EVERY && next.refresh() == held.refresh();
                if is_noted && !self.by_hand {
                    return Ok((changes, taken));
                }
                let noted = ForeignBundle {
                    changed: held.changed,
                    by_hand: held.by_hand && self.by_hand,
                    ..next
                };
                return Ok((changes.put(name, &noted), taken));
            }
            let is_numbered = held.sequence != 0 && next.sequence == held.sequence;
            taken.same_number = is_numbered && !next.has_same_keys(held) && !self.by_hand;
        }
        check_keys(&self.document.bundle, &self.own, &bundles)?;
        Ok((changes.put(name, &next), taken))
    }
}

// === impl Withdraw ===

impl Write for Withdraw {
    type Reads = Option<ForeignBundle>;
    /// Whether it was withdrawn now.
    type Answer = bool;
    type Error = FederationError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        view.one(self.domain.as_str())
    }

    fn decide(&self, bundle: Self::Reads) -> Result<(Changes, bool), FederationError> {
        let Some(bundle) = bundle.filter(|bundle| !bundle.withdrawn && bundle.checked <= self.checked) else {
            return Ok((Changes::none(), false));
        };
        let bundle = ForeignBundle {
            withdrawn: true,
            ..bundle
        };
        Ok((Changes::none().put(self.domain.as_str(), &bundle), true))
    }
}

// === impl PutSet ===

impl Write for PutSet {
    type Reads = (Option<FederationSet>, usize);
    /// Whether it is another than before.
    type Answer = bool;
    type Error = FederationError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        Ok((view.one(&self.name)?, view.passing::<FederationSet>()?.len()))
    }

    fn decide(&self, (before, count): Self::Reads) -> Result<(Changes, bool), FederationError> {
        match before {
            Some(before) if before == self.set => Ok((Changes::none(), false)),
            None if count >= SETS_MAX => Err(FederationError::TooManySets),
            _ => Ok((Changes::none().put(&self.name, &self.set), true)),
        }
    }
}

// === impl DeleteSet ===

impl Write for DeleteSet {
    type Reads = Option<FederationSet>;
    type Answer = ();
    type Error = FederationError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        view.one(&self.name)
    }

    fn decide(&self, before: Self::Reads) -> Result<(Changes, ()), FederationError> {
        match before {
            None => Err(FederationError::NoSuchSet(self.name.clone())),
            Some(_) => Ok((Changes::none().delete::<FederationSet>(&self.name), ())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::federation::egress::BundleUrl;
    use crate::federation::records::Endpoint;
    use crate::write::{WriteError, commit};
    use hoplite_identity::testing::TestAuthority;
    use hoplite_store::MemoryStore;

    struct World {
        store: MemoryStore,
        own: TestAuthority,
        partner: TestAuthority,
    }

    fn document(bundle: &TrustBundle, sequence: u64) -> BundleDocument {
        let domain = bundle.trust_domain().clone();
        let bundle = TrustBundle::new(domain, bundle.authorities().to_vec(), sequence).unwrap();
        BundleDocument {
            bundle,
            refresh_hint: None,
        }
    }

    impl World {
        fn new() -> Self {
            Self {
                store: MemoryStore::new(),
                own: TestAuthority::new("prod.example"),
                partner: TestAuthority::new("partner.example"),
            }
        }

        fn federate(&self, of: &TestAuthority, profile: Option<Profile>, first: bool) -> Result<bool, String> {
            let endpoint = profile.map(|profile| Endpoint {
                url: BundleUrl::parse("https://a.example").unwrap(),
                profile,
                allowed: Vec::new(),
            });
            let write = Federate {
                domain: of.trust_domain(),
                federated: Federated { endpoint, since: 1 },
                first: first.then(|| document(&of.bundle(), 1)),
                own: Arc::new(self.own.bundle()),
                now: 1,
            };
            told(commit(&self.store, &write))
        }

        fn take(&self, bundle: &TrustBundle, sequence: u64, by_hand: bool, now: u64) -> Result<Taken, String> {
            let write = Take {
                domain: bundle.trust_domain().clone(),
                document: document(bundle, sequence),
                by_hand,
                own: Arc::new(self.own.bundle()),
                now,
            };
            told(commit(&self.store, &write))
        }
    }

    fn told<T, R>(done: Result<(T, R), WriteError<FederationError>>) -> Result<T, String> {
        done.map(|(answer, _)| answer).map_err(|error| error.to_string())
    }

    /// An endpoint may say that nobody is to be believed; a person ends the federation then.
    #[test]
    fn a_bundle_without_any_authority_is_fetched_and_not_given() {
        let world = World::new();
        let good = world.partner.bundle();
        let empty = TrustBundle::new(good.trust_domain().clone(), Vec::new(), 0).unwrap();
        let refused = world.take(&empty, 1, true, 100).unwrap_err();
        assert!(refused.contains("no authority in it"), "{refused}");
        assert!(world.take(&good, 1, true, 100).unwrap().is_new);
        let refused = world.take(&empty, 2, true, 101).unwrap_err();
        let remedy = format!("hoplite federation delete {}", good.trust_domain());
        assert!(refused.contains(&remedy), "{refused}");
        assert!(!world.take(&good, 1, true, 102).unwrap().is_new, "it is held still");
        assert!(world.take(&empty, 2, false, 103).unwrap().is_new);
        assert!(is_empty(&empty) && !is_empty(&good));
    }

    #[test]
    fn who_can_be_federated_with() {
        let world = World::new();
        let id = world.partner.trust_domain().member("/hoplite/ca").unwrap();
        let spiffe = || Some(Profile::HttpsSpiffe(id.clone()));
        assert!(
            world
                .federate(&world.own, None, false)
                .unwrap_err()
                .contains("own trust domain")
        );
        let refused = world.federate(&world.partner, spiffe(), false).unwrap_err();
        assert!(
            refused.contains("no bundle is held that could vouch for it"),
            "{refused}"
        );
        assert_eq!(world.federate(&world.partner, spiffe(), true), Ok(true));
        assert_eq!(
            world.federate(&world.partner, spiffe(), true),
            Ok(false),
            "it is so already"
        );
        assert_eq!(world.federate(&world.partner, Some(Profile::HttpsWeb), false), Ok(true));
        assert_eq!(
            world.federate(&world.partner, spiffe(), false),
            Ok(true),
            "its bundle is held now"
        );
    }

    #[test]
    fn a_sequence_number_does_not_go_back() {
        let world = World::new();
        world.federate(&world.partner, Some(Profile::HttpsWeb), false).unwrap();
        let (old, new) = (world.partner.bundle(), TestAuthority::new("partner.example").bundle());
        let taken = |is_new, same_number, sequence| {
            Ok(Taken {
                is_new,
                same_number,
                sequence,
                is_empty: false,
            })
        };
        assert_eq!(world.take(&old, 5, false, 10), taken(true, false, 5));
        assert_eq!(world.take(&old, 5, false, 11), taken(false, false, 5));
        let lower = world.take(&new, 4, false, 12).unwrap_err();
        assert!(lower.contains("sequence number 4, and 5 was seen before"), "{lower}");
        assert!(world.take(&new, 0, false, 12).is_err(), "none is lower than any");
        assert_eq!(world.take(&new, 5, false, 13), taken(true, true, 5), "said, and taken");
        assert_eq!(world.take(&old, 6, false, 14), taken(true, false, 6));
        assert_eq!(world.take(&new, 1, true, 15), taken(true, false, 1), "a person's word");
        assert_eq!(world.take(&old, 2, false, 16), taken(true, false, 2));
    }

    #[test]
    fn a_key_of_two_trust_domains_is_refused() {
        let world = World::new();
        let other = TestAuthority::new("other.example");
        for of in [&world.partner, &other] {
            world.federate(of, Some(Profile::HttpsWeb), false).unwrap();
        }
        let with = |authority: &TestAuthority| {
            let authorities = [world.partner.bundle().authorities(), authority.bundle().authorities()].concat();
            TrustBundle::new(world.partner.trust_domain(), authorities, 1).unwrap()
        };
        world.take(&other.bundle(), 1, false, 1).unwrap();
        for (authority, by_hand) in [(&world.own, false), (&world.own, true), (&other, false)] {
            let refused = world.take(&with(authority), 1, by_hand, 1).unwrap_err();
            let expected = format!("the trust bundle of `{}` has, too", authority.trust_domain());
            assert!(refused.contains(&expected), "{refused}");
        }
        assert!(
            world
                .take(&world.own.bundle(), 9, true, 1)
                .unwrap_err()
                .contains("own trust domain")
        );
    }

    #[test]
    fn what_was_ended_does_not_come_back_by_itself() {
        let world = World::new();
        let domain = world.partner.trust_domain();
        world.federate(&world.partner, Some(Profile::HttpsWeb), true).unwrap();
        let end = End { domain: domain.clone() };
        told(commit(&world.store, &end)).unwrap();
        assert!(
            told(commit(&world.store, &end))
                .unwrap_err()
                .contains("no federation with")
        );
        assert!(
            world
                .take(&world.partner.bundle(), 9, false, 2)
                .unwrap_err()
                .contains("no federation with")
        );
        assert!(world.take(&world.partner.bundle(), 9, true, 2).is_ok());
    }

    #[test]
    fn a_withdrawn_bundle_comes_back_with_the_next_refresh() {
        let world = World::new();
        let domain = world.partner.trust_domain();
        world.federate(&world.partner, Some(Profile::HttpsWeb), false).unwrap();
        world.take(&world.partner.bundle(), 3, false, 10).unwrap();
        let withdraw = |checked| {
            let domain = domain.clone();
            told(commit(&world.store, &Withdraw { domain, checked })).unwrap()
        };
        assert!(!withdraw(9), "it was refreshed since");
        assert!(withdraw(10) && !withdraw(10));
        let taken = world.take(&world.partner.bundle(), 3, false, 11).unwrap();
        assert!(taken.is_new && withdraw(11));
    }
}
