//! What policy was published: which bundle is in force, which came before, and which grants are out.
//!
//! Pure, over records of the store: [`decide_publish`] says what a publication changes, [`PolicyIndex`] is what agents are
//! told. The contents lie in the [`Library`](crate::library::Library).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use data_encoding::HEXLOWER;
use hoplite_policy::bundle::{Bundle, BundleContents, Stage};
use hoplite_policy::grant::{Grant, GrantScope};
use hoplite_seal::Hash;
use hoplite_store::{Batch, Condition, Revision, Store};
use hoplite_wire::ca as wire;
use serde::{Deserialize, Serialize};

use crate::record::{self, BadRecord};
use crate::registry::{Decision, RegistryError, read};

/// Where everything about policy lies in the store.
pub(crate) const POLICY: &str = "policy/";
const HEAD: &str = "policy/head";
const BUNDLES: &str = "policy/bundle/";
const GRANTS: &str = "policy/grant/";

/// Bundles of each stage whose files are kept, for going back and for comparing; of older ones the manifest stays.
const KEPT_MAX: usize = 50;
/// Grants at one time: break-glass is for emergencies, and every agent holds all of them.
const GRANTS_MAX: usize = 64;
/// How far one publication may move the revision on. A leap is needed after the CA was restored from a backup; one to the
/// end of the numbers would leave no place for a later one.
const LEAP_MAX: u64 = 1_000_000;

/// What is in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    /// Of all bundles ever published.
    highest: u64,
    live: Option<u64>,
    shadow: Option<u64>,
}

/// One published bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Published {
    pub(crate) revision: u64,
    /// SHA-256 of the manifest, in hex.
    manifest: String,
    /// SHA-256 of the encoded bundle, in hex.
    bundle: String,
    bytes: u64,
    shadow: bool,
    signed_by: Vec<String>,
    created: u64,
    expires: u64,
    published: u64,
    note: Option<String>,
    policies: u64,
    files: u64,
    /// Whether the bundle's file is kept.
    pub(crate) kept: bool,
}

/// One grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GrantRecord {
    id: String,
    ticket: String,
    reason: String,
    principal: String,
    service: String,
    not_before: u64,
    until: u64,
    signed_by: Vec<String>,
    /// SHA-256 of what was signed, in hex.
    hash: String,
    /// The signed envelope, in hex.
    envelope: String,
    /// Kept until the grant would be over, so that nobody brings it back.
    revoked: bool,
}

/// Everything about policy, at one revision of the store.
#[derive(Debug, Default)]
pub(crate) struct PolicyIndex {
    head: Head,
    published: BTreeMap<u64, Arc<Published>>,
    grants: BTreeMap<String, Arc<GrantRecord>>,
    /// When anything of it last changed.
    pub(crate) changed: Revision,
}

/// Why policy was not changed. All of it is the operator's to mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PolicyError {
    #[error(
        "the current policy revision is {current}, and this bundle was made when it was {expected}; look at what changed and publish again"
    )]
    Outdated { current: u64, expected: u64 },
    #[error("revision {got} does not follow {current}; number the bundle {next}", next = .current.saturating_add(1))]
    Revision { current: u64, got: u64 },
    #[error(
        "the bundle does not name the manifest of revision {current} as its parent; make it anew from the current one"
    )]
    Parent { current: u64 },
    #[error("the grant `{0}` was revoked; make a new one with another id if it is still needed")]
    Revoked(String),
    #[error("there is another grant `{0}`; choose another id")]
    GrantTaken(String),
    #[error("there are {GRANTS_MAX} grants already; revoke some, or write a policy")]
    TooManyGrants,
    #[error("there is no grant `{0}`; `hoplite policy grant list` shows those there are")]
    NoSuchGrant(String),
}

/// What a publication did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Publication {
    pub(crate) revision: u64,
    /// Bundles whose files nothing names any more.
    pub(crate) unnamed: Vec<Hash>,
}

/// Publishes a bundle, or finds that this very bundle is in force.
pub(crate) fn decide_publish(
    store: &dyn Store,
    published: &Published,
    parent: Option<Hash>,
    expected: u64,
    history: &[Arc<Published>],
) -> Result<Decision<Publication>, RegistryError> {
    let (head, at) = head(store)?;
    let key = bundle_key(published.revision);
    if let Some((there, _)) = read::<Published>(store, &key)?
        && there.bundle == published.bundle
        && [head.live, head.shadow].contains(&Some(there.revision))
    {
        let answer = Publication {
            revision: there.revision,
            unnamed: Vec::new(),
        };
        return Ok(Decision {
            batch: Batch::new(),
            answer,
        });
    }
    let current = head.highest;
    if current != expected {
        return Err(PolicyError::Outdated { current, expected }.into());
    }
    let got = published.revision;
    if got <= current || got - current > LEAP_MAX {
        return Err(PolicyError::Revision { current, got }.into());
    }
    let newest = read::<Published>(store, &bundle_key(current))?.map(|(newest, _)| newest.manifest);
    if parent.map(|parent| parent.to_string()) != newest {
        return Err(PolicyError::Parent { current }.into());
    }

    let mut head = Head { highest: got, ..head };
    match published.shadow {
        true => head.shadow = Some(got),
        false => head.live = Some(got),
    }
    let mut batch = Batch::new()
        .require(HEAD, at)
        .put(HEAD, record::encode(HEAD.as_bytes(), &head)?)
        .put(key.as_str(), record::encode(key.as_bytes(), published)?);
    let mut unnamed = Vec::new();
    let is_current = |revision: u64| [head.live, head.shadow].contains(&Some(revision));
    let old = history
        .iter()
        .rev()
        .filter(|old| old.kept && old.shadow == published.shadow && old.revision != got)
        .skip(KEPT_MAX - 1);
    for old in old.filter(|old| !is_current(old.revision)) {
        let key = bundle_key(old.revision);
        let dropped = Published {
            kept: false,
            ..Published::clone(old)
        };
        batch = batch.put(key.as_str(), record::encode(key.as_bytes(), &dropped)?);
        unnamed.extend(old.bundle_hash());
    }
    let answer = Publication { revision: got, unnamed };
    Ok(Decision { batch, answer })
}

/// Whether there was a shadow.
pub(crate) fn decide_clear_shadow(store: &dyn Store) -> Result<Decision<bool>, RegistryError> {
    let (head, at) = head(store)?;
    if head.shadow.is_none() {
        return Ok(Decision {
            batch: Batch::new(),
            answer: false,
        });
    }
    let head = Head { shadow: None, ..head };
    let batch = Batch::new()
        .require(HEAD, at)
        .put(HEAD, record::encode(HEAD.as_bytes(), &head)?);
    Ok(Decision { batch, answer: true })
}

/// Takes a grant in, and forgets those that are over.
pub(crate) fn decide_add_grant(
    store: &dyn Store,
    grant: &GrantRecord,
    now: SystemTime,
) -> Result<Decision<()>, RegistryError> {
    let key = grant_key(&grant.id);
    let mut batch = Batch::new();
    let mut others = 0;
    for (other_key, versioned) in store.range(GRANTS.as_bytes())?.entries {
        let other: GrantRecord = record::decode(&other_key, &versioned.value)?;
        if other.until <= record::unix_seconds(now) {
            batch = batch.delete(other_key);
        } else if other.id != grant.id {
            others += usize::from(!other.revoked);
        } else if other.revoked {
            return Err(PolicyError::Revoked(other.id).into());
        } else if other.hash == grant.hash {
            return Ok(Decision {
                batch: Batch::new(),
                answer: (),
            });
        } else {
            return Err(PolicyError::GrantTaken(other.id).into());
        }
    }
    if others >= GRANTS_MAX {
        return Err(PolicyError::TooManyGrants.into());
    }
    let at = match store.get(key.as_bytes())? {
        Some(versioned) => Condition::At(versioned.revision),
        None => Condition::Absent,
    };
    let batch = batch
        .require(key.as_str(), at)
        .put(key.as_str(), record::encode(key.as_bytes(), grant)?);
    Ok(Decision { batch, answer: () })
}

/// Ends a grant.
pub(crate) fn decide_revoke_grant(store: &dyn Store, id: &str) -> Result<Decision<()>, RegistryError> {
    let key = grant_key(id);
    let (grant, at) = read::<GrantRecord>(store, &key)?
        .ok_or_else(|| PolicyError::NoSuchGrant(id.escape_debug().take(80).collect()))?;
    if grant.revoked {
        return Ok(Decision {
            batch: Batch::new(),
            answer: (),
        });
    }
    let grant = GrantRecord { revoked: true, ..grant };
    let batch = Batch::new()
        .require(key.as_str(), Condition::At(at))
        .put(key.as_str(), record::encode(key.as_bytes(), &grant)?);
    Ok(Decision { batch, answer: () })
}

fn head(store: &dyn Store) -> Result<(Head, Condition), RegistryError> {
    Ok(match read::<Head>(store, HEAD)? {
        Some((head, at)) => (head, Condition::At(at)),
        None => (Head::default(), Condition::Absent),
    })
}

/// Keys sort as revisions do.
fn bundle_key(revision: u64) -> String {
    format!("{BUNDLES}{revision:020}")
}

fn grant_key(id: &str) -> String {
    // An operator's text is no key yet: only what a grant can be named is.
    let safe: String = id
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .take(64)
        .collect();
    format!("{GRANTS}{safe}")
}

// === impl Published ===

impl Published {
    pub(crate) fn new(bundle: &Bundle, encoded: &[u8], now: SystemTime) -> Self {
        let contents: &BundleContents = bundle;
        let manifest = contents.manifest();
        Self {
            revision: manifest.revision,
            manifest: contents.manifest_hash().to_string(),
            bundle: Hash::of(encoded).to_string(),
            bytes: encoded.len() as u64,
            shadow: manifest.stage == Stage::Shadow,
            signed_by: contents.signed_by().to_vec(),
            created: manifest.created,
            expires: manifest.expires,
            published: record::unix_seconds(now),
            note: manifest.note.clone(),
            policies: manifest.policies,
            files: manifest.files.len() as u64,
            kept: true,
        }
    }

    pub(crate) fn bundle_hash(&self) -> Option<Hash> {
        unhex(&self.bundle).as_deref().and_then(Hash::from_slice)
    }

    pub(crate) fn manifest_hash(&self) -> Option<Hash> {
        unhex(&self.manifest).as_deref().and_then(Hash::from_slice)
    }

    fn to_ref(&self) -> wire::PolicyRef {
        wire::PolicyRef {
            revision: self.revision,
            manifest_sha256: unhex(&self.manifest).unwrap_or_default(),
            bytes: self.bytes,
        }
    }
}

// === impl GrantRecord ===

impl GrantRecord {
    pub(crate) fn new(grant: &Grant, envelope: &[u8]) -> Self {
        let draft = grant.draft();
        let (GrantScope::Workload(principal) | GrantScope::Path(principal)) = &draft.principal;
        Self {
            id: draft.id.clone(),
            ticket: draft.ticket.clone(),
            reason: draft.reason.clone(),
            principal: principal.clone(),
            service: draft.service.clone(),
            not_before: draft.not_before,
            until: draft.until,
            signed_by: grant.signed_by().to_vec(),
            hash: grant.hash().to_string(),
            envelope: HEXLOWER.encode(envelope),
            revoked: false,
        }
    }

    pub(crate) fn to_wire(&self) -> wire::Grant {
        wire::Grant {
            id: self.id.clone(),
            ticket: self.ticket.clone(),
            reason: self.reason.clone(),
            principal: self.principal.clone(),
            service: self.service.clone(),
            not_before_unix: record::unix_i64(self.not_before),
            until_unix: record::unix_i64(self.until),
            signed_by: self.signed_by.clone(),
            revoked: self.revoked,
        }
    }
}

// === impl PolicyIndex ===

impl PolicyIndex {
    /// One write of the store.
    pub(crate) fn put(&mut self, name: &str, value: Option<&[u8]>, revision: Revision) -> Result<(), BadRecord> {
        self.changed = self.changed.max(revision);
        let key = name.as_bytes();
        if name == HEAD {
            self.head = value
                .map(|value| record::decode(key, value))
                .transpose()?
                .unwrap_or_default();
        } else if let Some(number) = name.strip_prefix(BUNDLES).and_then(|number| number.parse().ok()) {
            match value {
                Some(value) => self.published.insert(number, Arc::new(record::decode(key, value)?)),
                None => self.published.remove(&number),
            };
        } else if let Some(id) = name.strip_prefix(GRANTS) {
            match value {
                Some(value) => self.grants.insert(id.to_owned(), Arc::new(record::decode(key, value)?)),
                None => self.grants.remove(id),
            };
        }
        Ok(())
    }

    /// What agents are told.
    pub(crate) fn state(&self, now: SystemTime) -> wire::PolicyState {
        let reference = |revision: Option<u64>| Some(self.published(revision?)?.to_ref());
        wire::PolicyState {
            live: reference(self.head.live),
            shadow: reference(self.head.shadow),
            grants: self
                .current_grants(now)
                .filter(|grant| !grant.revoked)
                .filter_map(|grant| unhex(&grant.envelope))
                .collect(),
        }
    }

    /// One bundle of the history.
    pub(crate) fn published(&self, revision: u64) -> Option<&Arc<Published>> {
        self.published.get(&revision)
    }

    /// The whole history, oldest first.
    pub(crate) fn history(&self) -> impl DoubleEndedIterator<Item = &Arc<Published>> {
        self.published.values()
    }

    /// Grants that are not over, revoked ones among them.
    pub(crate) fn current_grants(&self, now: SystemTime) -> impl Iterator<Item = &Arc<GrantRecord>> {
        let now = record::unix_seconds(now);
        self.grants.values().filter(move |grant| grant.until > now)
    }

    /// Whether the bundle is in force.
    pub(crate) fn is_current(&self, revision: u64) -> bool {
        [self.head.live, self.head.shadow].contains(&Some(revision))
    }

    pub(crate) fn to_wire(&self, published: &Published) -> wire::PublishedPolicy {
        wire::PublishedPolicy {
            revision: published.revision,
            stage: if published.shadow { Stage::Shadow } else { Stage::Live }.to_string(),
            signed_by: published.signed_by.clone(),
            created_at_unix: record::unix_i64(published.created),
            expires_at_unix: record::unix_i64(published.expires),
            published_at_unix: record::unix_i64(published.published),
            manifest_sha256: unhex(&published.manifest).unwrap_or_default(),
            note: published.note.clone().unwrap_or_default(),
            policies: published.policies,
            files: published.files,
            bytes: published.bytes,
            kept: published.kept,
            current: self.is_current(published.revision),
        }
    }

    /// Live, shadow and the newest of all, of either stage.
    pub(crate) fn show(&self) -> wire::ShowPolicyResponse {
        let one = |revision: Option<u64>| Some(self.to_wire(self.published(revision?)?));
        let highest = self.published(self.head.highest);
        wire::ShowPolicyResponse {
            live: one(self.head.live),
            shadow: one(self.head.shadow),
            highest_revision: self.head.highest,
            highest_manifest_sha256: highest.and_then(|newest| unhex(&newest.manifest)).unwrap_or_default(),
            ..wire::ShowPolicyResponse::default()
        }
    }
}

/// Bytes that this program wrote in hex.
fn unhex(text: &str) -> Option<Vec<u8>> {
    HEXLOWER.decode(text.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_store::MemoryStore;

    fn published(revision: u64, shadow: bool) -> Published {
        Published {
            revision,
            manifest: Hash::of(&revision.to_be_bytes()).to_string(),
            bundle: Hash::of(format!("bundle {revision}").as_bytes()).to_string(),
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

        fn commit<T>(&mut self, decision: Decision<T>) -> T {
            if !decision.batch.is_empty() {
                self.store.commit(decision.batch).unwrap();
                self.index = PolicyIndex::default();
                for (key, value) in self.store.snapshot().unwrap().entries {
                    let name = String::from_utf8(key).unwrap();
                    self.index.put(&name, Some(&value.value), value.revision).unwrap();
                }
            }
            decision.answer
        }

        fn publish(&mut self, new: &Published, parent: Option<u64>, expected: u64) -> Result<Publication, String> {
            let history: Vec<_> = self.index.history().cloned().collect();
            let parent = parent.map(|revision| Hash::of(&revision.to_be_bytes()));
            let decision = decide_publish(&self.store, new, parent, expected, &history).map_err(|e| e.to_string())?;
            Ok(self.commit(decision))
        }
    }

    #[test]
    fn revisions_follow_each_other() {
        let mut ca = Ca::new();
        let check = |result: Result<Publication, String>, expected: Result<u64, &str>| match (result, expected) {
            (Ok(done), Ok(revision)) => assert_eq!(done.revision, revision),
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
            bundle: Hash::of(b"twin").to_string(),
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
        let state = ca.index.state(SystemTime::UNIX_EPOCH);
        assert_eq!((state.live.unwrap().revision, state.shadow.unwrap().revision), (5, 2));
        let decision = decide_clear_shadow(&ca.store).unwrap();
        assert!(ca.commit(decision));
        assert!(!decide_clear_shadow(&ca.store).unwrap().answer);
        assert_eq!(ca.index.state(SystemTime::UNIX_EPOCH).shadow, None);
        check(ca.publish(&published(4, true), Some(5), 5), Err("does not follow 5"));
        // It was in force once; who hears that it is published would believe that it is again.
        check(ca.publish(&published(1, false), None, 0), Err("revision is 5"));
    }

    #[test]
    fn a_decision_on_what_was_does_not_commit() {
        let mut ca = Ca::new();
        ca.publish(&published(1, true), None, 0).unwrap();
        let parent = Some(Hash::of(&1_u64.to_be_bytes()));
        let decide = |revision: u64| decide_publish(&ca.store, &published(revision, false), parent, 1, &[]).unwrap();
        // Both looked before either wrote, and their revisions differ.
        let (one, other) = (decide(2), decide(3));
        let cleared = decide_clear_shadow(&ca.store).unwrap();
        ca.store.commit(one.batch).unwrap();
        for late in [other.batch, cleared.batch] {
            let error = ca.store.commit(late).unwrap_err();
            assert!(
                matches!(error, hoplite_store::CommitError::Precondition { .. }),
                "{error}"
            );
        }
    }

    #[test]
    fn the_last_fifty_are_kept_and_what_is_in_force() {
        let mut ca = Ca::new();
        let mut unnamed = Vec::new();
        for revision in 1..=60 {
            let parent = (revision > 1).then(|| revision - 1);
            let done = ca
                .publish(&published(revision, revision == 1), parent, revision - 1)
                .unwrap();
            unnamed.extend(done.unnamed);
        }
        let kept: Vec<u64> = ca.index.history().filter(|p| p.kept).map(|p| p.revision).collect();
        let expected: Vec<u64> = [1].into_iter().chain(11..=60).collect();
        assert_eq!(kept, expected, "the shadow and fifty live ones");
        assert_eq!(ca.index.history().count(), 60);
        assert_eq!(unnamed.len(), 9);
    }

    fn grant(id: &str, hash: &str, until: u64) -> GrantRecord {
        GrantRecord {
            id: id.into(),
            ticket: "t".into(),
            reason: "r".into(),
            principal: "p".into(),
            service: "s".into(),
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
        let at = record::from_unix_seconds;
        let add = |ca: &mut Ca, grant: &GrantRecord, now: u64| {
            let decision = decide_add_grant(&ca.store, grant, at(now)).map_err(|e| e.to_string())?;
            ca.commit(decision);
            Ok::<_, String>(ca.index.state(at(now)).grants.len())
        };
        assert_eq!(add(&mut ca, &grant("a", "1", 10), 1), Ok(1));
        assert_eq!(add(&mut ca, &grant("a", "1", 10), 1), Ok(1), "the same again");
        assert!(
            add(&mut ca, &grant("a", "2", 10), 1)
                .unwrap_err()
                .contains("another grant")
        );
        assert_eq!(add(&mut ca, &grant("b", "3", 20), 1), Ok(2));
        let decision = decide_revoke_grant(&ca.store, "a").unwrap();
        ca.commit(decision);
        assert_eq!(ca.index.state(at(1)).grants, [vec![0, 0xff]]);
        assert!(
            add(&mut ca, &grant("a", "1", 10), 9)
                .unwrap_err()
                .contains("was revoked")
        );
        assert!(decide_revoke_grant(&ca.store, "c/../a").is_err());
        assert_eq!(add(&mut ca, &grant("a", "4", 30), 10), Ok(2), "its time is over");
        assert_eq!(ca.index.state(at(20)).grants.len(), 1);
        for n in 1..GRANTS_MAX {
            let _ = add(&mut ca, &grant(&format!("n{n}"), "5", 99), 21);
        }
        assert!(
            add(&mut ca, &grant("z", "6", 99), 21)
                .unwrap_err()
                .contains("64 grants")
        );
        let decision = decide_revoke_grant(&ca.store, "n1").unwrap();
        ca.commit(decision);
        assert_eq!(
            add(&mut ca, &grant("z", "6", 99), 21),
            Ok(GRANTS_MAX),
            "what is revoked does not count"
        );
    }
}
