//! What is written of policy: a publication, the end of a shadow, a grant and its revocation.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::SystemTime;

use hoplite_policy::bundle::{Refused, Stage};
use hoplite_policy::holding::{BundleRef, GRANTS_HELD_MAX, Slots};
use hoplite_seal::Hash;
use hoplite_store::LargeId;

use crate::policy::error::{GRANTS_MAX, PolicyError};
use crate::policy::grant::GrantRecord;
use crate::policy::published::{Head, Published};
use crate::policy::signers::{self, SetRecord};
use crate::write::{Changes, ReadError, View, Write};

/// Bundles of each stage that are kept, for going back and for comparing; of older ones the manifest stays.
const KEPT_MAX: usize = 50;
const _: () = assert!(GRANTS_MAX <= GRANTS_HELD_MAX, "an agent would leave some out");
/// How far one publication may move the revision on. A leap is needed after the CA was restored from a backup; one to the
/// end of the numbers would leave no place for a later one.
const LEAP_MAX: u64 = 1_000_000;

/// Publishes a bundle, or finds that this very bundle is in force. Answers with its revision. Bundle and manifest are put
/// into the store before.
#[derive(Clone)]
pub(crate) struct Publish {
    pub(crate) published: Published,
    /// The manifest that the bundle names as the one before.
    pub(crate) parent: Option<Hash>,
    /// The revision that its maker believed to be the highest.
    pub(crate) expected: u64,
    /// By which signers it was verified.
    pub(crate) signers: Option<Hash>,
    /// Manifests of earlier publications that were found to be gone from the store.
    pub(crate) lost: BTreeSet<LargeId>,
}

/// Ends the shadow. Answers whether there was one.
pub(crate) struct ClearShadow;

/// Takes a grant in, and forgets those that are over.
pub(crate) struct AddGrant {
    pub(crate) grant: GrantRecord,
    /// By which signers it was verified.
    pub(crate) signers: Option<Hash>,
    pub(crate) now: SystemTime,
}

/// Ends a grant.
pub(crate) struct RevokeGrant {
    pub(crate) id: String,
}

// === impl Publish ===

impl Write for Publish {
    /// What is in force, all that was published, and who may sign.
    type Reads = (Option<Head>, BTreeMap<String, Published>, BTreeMap<String, SetRecord>);
    type Answer = u64;
    type Error = PolicyError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        Ok((view.one("")?, view.all()?, view.all()?))
    }

    fn decide(&self, (head, history, sets): Self::Reads) -> Result<(Changes, u64), PolicyError> {
        same_signers(self.signers, &sets)?;
        let (head, new) = (head.unwrap_or_default(), &self.published);
        let mut slots = head.slots(history.values());
        // The answer was lost, so it was sent again: it is in force, whoever else signed this copy.
        if slots.follows(new.stage(), new.seen()) == Err(Refused::AlreadyHave(new.revision)) {
            return Ok((Changes::none(), new.revision));
        }
        self.check_base(&head, &history)?;
        slots.take(new.clone())?;

        let in_force = |stage| slots.bundle(stage).map(|published| published.revision);
        let head = Head {
            highest: new.revision,
            live: in_force(Stage::Live),
            shadow: in_force(Stage::Shadow),
        };
        let changes = Changes::none()
            .put("", &head)
            .put(&Published::name_of(new.revision), new);
        Ok((self.retire(changes, &head, &history), new.revision))
    }
}

/// Whether those by whom something was verified are still the newest: agents ask those.
fn same_signers(verified_by: Option<Hash>, sets: &BTreeMap<String, SetRecord>) -> Result<(), PolicyError> {
    let newest = signers::chain(sets.values())?;
    match newest.map(|chain| chain.digest()) == verified_by {
        true => Ok(()),
        false => Err(PolicyError::SignersChanged),
    }
}

/// The rules that only publication has.
impl Publish {
    /// Whether the bundle follows the one that its maker believed to be the newest of either stage, and that one is the
    /// newest. So it is newer than all of its own stage, too, which is what agents ask.
    fn check_base(&self, head: &Head, history: &BTreeMap<String, Published>) -> Result<(), PolicyError> {
        let (current, expected, got) = (head.highest, self.expected, self.published.revision);
        if current != expected {
            return Err(PolicyError::Outdated { current, expected });
        }
        if got <= current || got - current > LEAP_MAX {
            return Err(PolicyError::Revision { current, got });
        }
        let newest = history.get(&Published::name_of(current));
        if self.parent != newest.map(|newest| newest.manifest) {
            return Err(PolicyError::Parent { current });
        }
        Ok(())
    }

    /// Lets go of the bundles of this stage that are too many; their manifests stay, except those that are lost already.
    fn retire(&self, changes: Changes, head: &Head, history: &BTreeMap<String, Published>) -> Changes {
        let new = &self.published;
        let of_stage = |old: &&Published| old.kept && old.shadow == new.shadow && old.revision != new.revision;
        let old = history.values().rev().filter(of_stage).skip(KEPT_MAX - 1);
        old.filter(|old| !head.is_current(old.revision))
            .fold(changes, |changes, old| {
                let dropped = Published {
                    kept: false,
                    lost: self.lost.contains(&old.manifest_id()),
                    ..old.clone()
                };
                changes.put(&Published::name_of(old.revision), &dropped)
            })
    }
}

// === impl ClearShadow ===

impl Write for ClearShadow {
    type Reads = Option<Head>;
    type Answer = bool;
    type Error = Infallible;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        view.one("")
    }

    fn decide(&self, head: Self::Reads) -> Result<(Changes, bool), Infallible> {
        let head = head.unwrap_or_default();
        if head.shadow.is_none() {
            return Ok((Changes::none(), false));
        }
        // How high it was stays in the history, as a holding keeps it.
        let head = Head { shadow: None, ..head };
        Ok((Changes::none().put("", &head), true))
    }
}

// === impl AddGrant ===

impl Write for AddGrant {
    type Reads = (BTreeMap<String, GrantRecord>, BTreeMap<String, SetRecord>);
    type Answer = ();
    type Error = PolicyError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        Ok((view.all()?, view.all()?))
    }

    fn decide(&self, (there, sets): Self::Reads) -> Result<(Changes, ()), PolicyError> {
        same_signers(self.signers, &sets)?;
        let (grant, mut slots) = (&self.grant, Slots::<Published, _>::default());
        slots.take_grants(there.into_values().collect());
        let over = slots.end_what_is_over(self.now).grants;
        let changes = over.iter().fold(Changes::none(), |changes, over| {
            changes.delete::<GrantRecord>(&GrantRecord::name_of(&over.id))
        });
        if let Some(same) = slots.grants().iter().find(|other| other.id == grant.id) {
            let id = same.id.clone();
            return match (same.revoked, same.hash == grant.hash) {
                (true, _) => Err(PolicyError::Revoked(id)),
                (false, true) => Ok((Changes::none(), ())),
                (false, false) => Err(PolicyError::GrantTaken(id)),
            };
        }
        let others = slots.grants().iter().filter(|other| !other.revoked).count();
        if others >= GRANTS_MAX {
            return Err(PolicyError::TooManyGrants);
        }
        Ok((changes.put(&GrantRecord::name_of(&grant.id), grant), ()))
    }
}

// === impl RevokeGrant ===

impl Write for RevokeGrant {
    type Reads = Option<GrantRecord>;
    type Answer = ();
    type Error = PolicyError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        view.one(&GrantRecord::name_of(&self.id))
    }

    fn decide(&self, grant: Self::Reads) -> Result<(Changes, ()), PolicyError> {
        let no_such = || PolicyError::NoSuchGrant(self.id.escape_debug().take(80).collect());
        let grant = grant.ok_or_else(no_such)?;
        if grant.revoked {
            return Ok((Changes::none(), ()));
        }
        let grant = GrantRecord { revoked: true, ..grant };
        Ok((Changes::none().put(&GrantRecord::name_of(&grant.id), &grant), ()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::index::PolicyIndex;
    use crate::record::{self, Mutation};
    use crate::write::commit;
    use hoplite_store::{Batch, CommitError, LargeId, MemoryStore, Store};

    fn published(revision: u64, shadow: bool) -> Published {
        Published {
            revision,
            manifest: manifest(revision),
            bundle: Hash::of(&bundle(revision)),
            bytes: 1,
            shadow,
            signed_by: vec!["alice".into()],
            created: 1,
            expires: 2,
            published: 1,
            note: None,
            policies: 1,
            files: 1,
            kept: true,
            lost: false,
        }
    }

    struct Ca {
        store: MemoryStore,
        index: PolicyIndex,
    }

    impl Ca {
        fn new() -> Self {
            Self {
                store: MemoryStore::new(),
                index: PolicyIndex::default(),
            }
        }

        fn write<W: Write>(&mut self, write: &W) -> Result<W::Answer, String>
        where
            W::Error: std::fmt::Display,
        {
            let (answer, _) = commit(&self.store, write).map_err(|e| e.to_string())?;
            self.index = PolicyIndex::default();
            for (key, versioned) in self.store.snapshot().unwrap().entries {
                let mutation = Mutation {
                    key: std::str::from_utf8(&key).unwrap(),
                    value: Some(&versioned.value),
                    revision: versioned.revision,
                };
                self.index.put(mutation).unwrap();
            }
            Ok(answer)
        }

        fn publish(&mut self, new: &Published, parent: Option<u64>, expected: u64) -> Result<u64, String> {
            put(&self.store, new.revision);
            self.write(&Publish {
                published: new.clone(),
                parent: parent.map(manifest),
                expected,
                signers: None,
                lost: BTreeSet::new(),
            })
        }

        fn grants(&self, now: u64) -> Vec<Vec<u8>> {
            let grants = self.index.in_force(record::from_unix_seconds(now)).grants;
            grants.iter().map(|grant| grant.envelope().unwrap()).collect()
        }
    }

    fn manifest(revision: u64) -> Hash {
        Hash::of(&revision.to_be_bytes())
    }

    fn bundle(revision: u64) -> Vec<u8> {
        format!("bundle {revision}").into_bytes()
    }

    /// Puts what a publication names.
    fn put(store: &MemoryStore, revision: u64) {
        for bytes in [bundle(revision), revision.to_be_bytes().to_vec()] {
            store.put_large(&bytes, SystemTime::UNIX_EPOCH).unwrap();
        }
    }

    #[test]
    fn revisions_follow_each_other() {
        let mut ca = Ca::new();
        let check = |result: Result<u64, String>, expected: Result<u64, &str>| match (result, expected) {
            (Ok(done), Ok(revision)) => assert_eq!(done, revision),
            (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
            (result, expected) => panic!("{result:?} is not {expected:?}"),
        };
        check(ca.publish(&published(1, false), Some(7), 0), Err("as its parent"));
        check(
            ca.publish(&published(1, false), None, 3),
            Err("revision is 0, and this bundle was made when it was 3"),
        );
        check(
            ca.publish(&published(LEAP_MAX + 1, false), None, 0),
            Err("does not follow 0"),
        );
        check(ca.publish(&published(1, false), None, 0), Ok(1));
        check(ca.publish(&published(1, false), None, 0), Ok(1)); // the answer was lost, so it was sent again
        let twin = Published {
            manifest: Hash::of(b"twin"),
            ..published(1, false)
        };
        check(ca.publish(&twin, None, 0), Err("revision is 1"));
        check(
            ca.publish(&twin, None, 1),
            Err("revision 1 does not follow 1; number the bundle 2"),
        );
        check(ca.publish(&published(2, true), None, 1), Err("as its parent"));
        check(ca.publish(&published(2, true), Some(1), 1), Ok(2));
        check(ca.publish(&published(5, false), Some(2), 2), Ok(5));
        let state = ca.index.in_force(SystemTime::UNIX_EPOCH);
        assert_eq!((state.live.unwrap().revision, state.shadow.unwrap().revision), (5, 2));
        assert!(ca.write(&ClearShadow).unwrap());
        assert!(!ca.write(&ClearShadow).unwrap());
        assert_eq!(ca.index.in_force(SystemTime::UNIX_EPOCH).shadow, None);
        check(ca.publish(&published(4, true), Some(5), 5), Err("does not follow 5"));
        // It was in force once; who hears that it is published would believe that it is again.
        check(ca.publish(&published(1, false), None, 0), Err("revision is 5"));
    }

    #[test]
    fn a_decision_on_what_was_does_not_commit() {
        let mut ca = Ca::new();
        ca.publish(&published(1, true), None, 0).unwrap();
        let store = &ca.store;
        fn batch<W: Write<Error: std::fmt::Debug>>(store: &MemoryStore, write: &W) -> Batch {
            let mut view = View::new(store);
            let (changes, _) = write.decide(write.read(&mut view).unwrap()).unwrap();
            view.batch(changes).unwrap()
        }
        let publish = |revision: u64| Publish {
            published: published(revision, false),
            parent: Some(manifest(1)),
            expected: 1,
            signers: None,
            lost: BTreeSet::new(),
        };
        // All looked before any wrote, and the revisions differ.
        let (one, other) = (batch(store, &publish(2)), batch(store, &publish(3)));
        put(store, 2);
        put(store, 3);
        let cleared = batch(store, &ClearShadow);
        store.commit(one).unwrap();
        for late in [other, cleared] {
            let error = store.commit(late).unwrap_err();
            assert!(matches!(error, CommitError::Precondition { .. }), "{error}");
        }
        // Two grants at one time could be more than there may be.
        let add = |id: &str| AddGrant {
            grant: grant(id, id, 10),
            signers: None,
            now: record::from_unix_seconds(1),
        };
        let (one, other) = (batch(store, &add("a")), batch(store, &add("b")));
        store.commit(one).unwrap();
        assert!(matches!(store.commit(other), Err(CommitError::Precondition { .. })));
    }

    #[test]
    fn the_last_fifty_are_kept_and_what_is_in_force() {
        let mut ca = Ca::new();
        for revision in 1..=60 {
            let parent = (revision > 1).then(|| revision - 1);
            ca.publish(&published(revision, revision == 1), parent, revision - 1)
                .unwrap();
        }
        let kept: Vec<u64> = ca.index.history().filter(|p| p.kept).map(|p| p.revision).collect();
        let expected: Vec<u64> = [1].into_iter().chain(11..=60).collect();
        assert_eq!(kept, expected, "the shadow and fifty live ones");
        assert_eq!(ca.index.history().count(), 60);
        let swept = ca.store.sweep_large(SystemTime::now()).unwrap();
        assert_eq!(swept.len(), 9, "nothing names them");
        let is_there = |bytes: &[u8]| ca.store.large(&LargeId::of(bytes)).unwrap().is_some();
        for revision in 1..=60_u64 {
            assert_eq!(
                is_there(&bundle(revision)),
                kept.contains(&revision),
                "bundle {revision}"
            );
            assert!(is_there(&revision.to_be_bytes()), "manifest {revision}");
        }
    }

    fn grant(id: &str, hash: &str, until: u64) -> GrantRecord {
        GrantRecord {
            id: id.into(),
            ticket: "t".into(),
            reason: "r".into(),
            principal: "p".into(),
            service: "s".parse().unwrap(),
            not_before: 0,
            until,
            signed_by: Vec::new(),
            hash: hash.into(),
            envelope: "00ff".into(),
            revoked: false,
        }
    }

    #[test]
    fn a_revoked_grant_does_not_come_back() {
        let mut ca = Ca::new();
        let add = |ca: &mut Ca, grant: &GrantRecord, now: u64| {
            ca.write(&AddGrant {
                grant: grant.clone(),
                signers: None,
                now: record::from_unix_seconds(now),
            })?;
            Ok::<_, String>(ca.grants(now).len())
        };
        let revoke = |ca: &mut Ca, id: &str| ca.write(&RevokeGrant { id: id.to_owned() });
        assert_eq!(add(&mut ca, &grant("a", "1", 10), 1), Ok(1));
        assert_eq!(add(&mut ca, &grant("a", "1", 10), 1), Ok(1), "the same again");
        assert!(
            add(&mut ca, &grant("a", "2", 10), 1)
                .unwrap_err()
                .contains("another grant")
        );
        assert_eq!(add(&mut ca, &grant("b", "3", 20), 1), Ok(2));
        revoke(&mut ca, "a").unwrap();
        assert_eq!(ca.grants(1), [vec![0, 0xff]]);
        assert!(
            add(&mut ca, &grant("a", "1", 10), 9)
                .unwrap_err()
                .contains("was revoked")
        );
        assert!(revoke(&mut ca, "c/../a").is_err());
        assert_eq!(add(&mut ca, &grant("a", "4", 30), 10), Ok(2), "its time is over");
        assert_eq!(ca.grants(20).len(), 1);
        for n in 1..GRANTS_MAX {
            let _ = add(&mut ca, &grant(&format!("n{n}"), "5", 99), 21);
        }
        assert!(
            add(&mut ca, &grant("z", "6", 99), 21)
                .unwrap_err()
                .contains("64 grants")
        );
        revoke(&mut ca, "n1").unwrap();
        assert_eq!(
            add(&mut ca, &grant("z", "6", 99), 21),
            Ok(GRANTS_MAX),
            "what is revoked does not count"
        );
    }
}
