//! Publishing over a store: replicas, sweeps, what is lost, and that agents take whatever is published.

use super::*;
use crate::authority::writes::Found;
use crate::authority::x509::Authority;
use crate::policy::signers::NameFirst;
use crate::policy::writes::{ClearShadow, RevokeGrant};
use crate::write;
use hoplite_policy::Source;
use hoplite_policy::bundle::{BUNDLE_BYTES_MAX, Bundle, BundleContents, EngineVersion, Meta};
use hoplite_policy::grant::{GrantDraft, GrantScope};
use hoplite_seal::{Hash, SignerChain, SignerSet, SigningKey};
use hoplite_store::{
    Batch, LargeError, MemoryStore, Revision, SledStore, Snapshot as StoreSnapshot, Store, StoreError, Versioned,
    Watch, WatchError,
};
use proptest::prelude::*;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("prod.example").unwrap()
}

fn key(name: &str) -> SigningKey {
    let mut seed = [7; 32];
    seed[..name.len()].copy_from_slice(name.as_bytes());
    SigningKey::from_seed(name, seed.into()).unwrap()
}

fn trust() -> PolicyTrust {
    let signers = ["alice", "bob"].map(|name| key(name).signer().clone());
    PolicyTrust::new(TrustedSigners::new(signers).unwrap(), trust_domain())
}

fn meta(revision: u64, stage: Stage, now: SystemTime) -> Meta {
    Meta {
        trust_domain: trust_domain(),
        revision,
        parent: None,
        created: now,
        expires: now + HOUR,
        min_engine: EngineVersion::THIS,
        critical: Vec::new(),
        stage,
        note: None,
    }
}

fn bundle_of(meta: Meta, by: &str) -> Vec<u8> {
    let source = Source {
        name: "pay.cedar".into(),
        text: "@id(\"a\") @owner(\"pay\") permit (principal, action, resource);".into(),
    };
    Bundle::build(&[source], meta).unwrap().sign(&[&key(by)]).unwrap()
}

fn bundle() -> Vec<u8> {
    bundle_of(meta(1, Stage::Live, SystemTime::now()), "alice")
}

fn found(store: &dyn Store) {
    let found = Found::itself(
        trust_domain(),
        Authority::ephemeral(&trust_domain(), SystemTime::now(), HOUR)
            .certificate()
            .clone(),
        SystemTime::now() + Duration::from_secs(86_400),
        SystemTime::now(),
    );
    write::commit(store, &found).unwrap();
    let first = NameFirst::new(&trust_domain(), &trust().signers);
    assert!(write::commit(store, &first).unwrap().0);
}

/// One CA over a store in which an authority is founded. It follows the store for as long as the second of both lives.
fn replica(store: &Arc<dyn Store>) -> (Publishing, crate::registry::Follower) {
    let (registry, follower) = Registry::open(Arc::clone(store)).unwrap();
    let publishing = Publishing::new(
        registry,
        BundleCache::new(Arc::clone(store)),
        trust_domain(),
        BUNDLE_BYTES_MAX,
    );
    (publishing, follower)
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_over_one_store_have_each_others_bundles() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    found(&*store);
    let ((one, _one_follows), (other, _other_follows)) = (replica(&store), replica(&store));
    let bytes = bundle();
    assert_eq!(one.publish(bytes.clone(), 0, SystemTime::now()).await.unwrap(), 1);
    let mut revisions = other.0.registry.revisions();
    revisions
        .wait_for(|reached| *reached >= store.revision())
        .await
        .unwrap();
    assert_eq!(*other.current(1).await.unwrap(), bytes);
}

/// Another replica sweeps, with a clock that is far ahead, right before the next so many commits.
struct Swept {
    store: MemoryStore,
    left: AtomicUsize,
}

impl Store for Swept {
    fn revision(&self) -> Revision {
        self.store.revision()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Versioned>, StoreError> {
        self.store.get(key)
    }

    fn page(&self, after: Option<&[u8]>, bytes: usize) -> Result<hoplite_store::Snapshot, StoreError> {
        self.store.page(after, bytes)
    }

    fn range(&self, prefix: &[u8]) -> Result<StoreSnapshot, StoreError> {
        self.store.range(prefix)
    }

    fn commit(&self, batch: Batch) -> Result<Revision, CommitError> {
        let less = |left: usize| left.checked_sub(1);
        if self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
        {
            self.store.sweep_large(SystemTime::now() + HOUR)?;
        }
        self.store.commit(batch)
    }

    fn watch(&self, from: Revision) -> Result<Watch, WatchError> {
        self.store.watch(from)
    }

    fn put_large(&self, bytes: &[u8], now: SystemTime) -> Result<LargeId, LargeError> {
        self.store.put_large(bytes, now)
    }

    fn large(&self, id: &LargeId) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.large(id)
    }

    fn sweep_large(&self, put_before: SystemTime) -> Result<Vec<LargeId>, StoreError> {
        self.store.sweep_large(put_before)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_was_swept_puts_again() {
    for (sweeps, published) in [(1, true), (PUTS_MAX - 1, true), (PUTS_MAX, false)] {
        let inner = MemoryStore::new();
        found(&inner);
        let store: Arc<dyn Store> = Arc::new(Swept {
            store: inner,
            left: AtomicUsize::new(sweeps),
        });
        let (publishing, _follows) = replica(&store);
        let bytes = bundle();
        match publishing.publish(bytes.clone(), 0, SystemTime::now()).await {
            Ok(revision) => {
                assert!(published, "after {sweeps} sweeps");
                assert_eq!(*publishing.current(revision).await.unwrap(), bytes);
            }
            Err(error) => {
                assert!(!published && matches!(error, PublishError::Swept), "{error}");
                assert_eq!(publishing.0.registry.index().policy.head().highest, 0);
            }
        }
    }
}

/// One CA, and what agents that hear of everything, or now and then, have of its policy.
struct World {
    publishing: Publishing,
    _follower: crate::registry::Follower,
    now: SystemTime,
    /// What was last accepted, to be sent again.
    newest: Vec<u8>,
}

impl World {
    fn over(store: &Arc<dyn Store>) -> Self {
        found(&**store);
        let (publishing, follower) = replica(store);
        Self {
            publishing,
            _follower: follower,
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
            newest: bundle(),
        }
    }

    fn head(&self) -> (u64, Option<Hash>) {
        let index = self.publishing.0.registry.index();
        let highest = index.policy.head().highest;
        let newest = index.policy.published(highest);
        (highest, newest.map(|newest| newest.manifest))
    }

    async fn publish(&mut self, by: &str, change: impl FnOnce(&mut Meta)) -> Result<u64, PublishError> {
        let (highest, parent) = self.head();
        let mut meta = Meta {
            parent,
            ..meta(highest + 1, Stage::Live, self.now)
        };
        change(&mut meta);
        let bytes = bundle_of(meta, by);
        let revision = self.publishing.publish(bytes.clone(), highest, self.now).await?;
        self.newest = bytes;
        Ok(revision)
    }

    /// What an agent does when it hears of what is in force; what it refuses.
    async fn hear(&self, agent: &mut Agent) -> Vec<String> {
        let in_force = self.publishing.0.registry.index().policy.in_force(self.now);
        let Agent { holding, chain } = agent;
        let others = chain
            .follow(&self.publishing.signer_sets(0))
            .expect("whatever the CA took");
        if others {
            holding.believe(PolicyTrust::new(chain.newest().signers().clone(), trust_domain()));
        }
        let grants: Vec<_> = in_force.grants.iter().map(|grant| grant.envelope().unwrap()).collect();
        let (grants, refused) = holding.examine_grants(grants.iter().map(Vec::as_slice), self.now);
        let mut refused: Vec<_> = refused.iter().map(ToString::to_string).collect();
        holding.take_grants(grants);
        if in_force.shadow.is_none() {
            holding.clear_shadow();
        }
        for (stage, named) in [(Stage::Live, &in_force.live), (Stage::Shadow, &in_force.shadow)] {
            let Some(named) = named else { continue };
            if holding
                .bundle(stage)
                .is_some_and(|held| held.seen().manifest == named.manifest)
            {
                continue;
            }
            let bytes = self.publishing.current(named.revision).await.unwrap();
            match holding.examine(&bytes, self.now) {
                Ok(examined) => {
                    assert_eq!(examined.bundle().stage(), stage);
                    holding.take(examined).unwrap();
                }
                Err(why) => refused.push(why.to_string()),
            }
        }
        if others {
            refused.extend(holding.doubt(self.now).iter().map(ToString::to_string));
        }
        refused
    }

    /// Whose signature counts now, besides alice's.
    fn other_signer(&self) -> &'static str {
        let signers = self.publishing.signers();
        if signers.names().any(|name| name == "bob") {
            "bob"
        } else {
            "alice"
        }
    }

    async fn change_signers(&self, members: &[&str], enough: bool) -> Option<Result<u64, PublishError>> {
        let chain = self.publishing.0.registry.index().policy.signers().cloned().unwrap();
        let before = chain.newest();
        let signers = TrustedSigners::new(members.iter().map(|name| key(name).signer().clone())).unwrap();
        let draft = SignerSet::after(before, &signers, None).ok()?.encode();
        let by = before.quorum() as usize - usize::from(!enough);
        let names = before.signers().names().take(by);
        let set = names.fold(draft, |bytes, name| SignerSet::sign_too(&bytes, &key(name)).unwrap());
        Some(self.publishing.add_signers(set).await.map(|(version, _)| version))
    }
}

#[derive(Debug, Clone)]
enum Step {
    Publish {
        shadow: bool,
        further: u64,
        wrong: Wrong,
    },
    /// The answer was lost, or somebody replays it.
    Again,
    ClearShadow,
    Grant {
        id: u8,
        lasts: u64,
        signers: usize,
    },
    Revoke(u8),
    Wait(u64),
    /// The signers change: carol or bob, or both, beside alice.
    Signers {
        bob: bool,
        carol: bool,
        /// As many sign as must, or one fewer.
        enough: bool,
    },
    /// The agent that hears now and then hears now.
    Hear,
}

/// What one agent has.
struct Agent {
    holding: Holding,
    chain: SignerChain,
}

impl Agent {
    fn new() -> Self {
        Self {
            holding: Holding::new(Some(trust())),
            chain: SignerChain::configured(&trust_domain(), &trust().signers).unwrap(),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Wrong {
    Nothing,
    Stranger,
    Expired,
    OtherParent,
    /// As high as the newest of all.
    NotHigher,
    Domain,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let wrong = prop_oneof![
        8 => Just(Wrong::Nothing),
        1 => Just(Wrong::Stranger),
        1 => Just(Wrong::Expired),
        1 => Just(Wrong::OtherParent),
        1 => Just(Wrong::NotHigher),
        1 => Just(Wrong::Domain),
    ];
    let publish =
        (any::<bool>(), 1..4u64, wrong).prop_map(|(shadow, further, wrong)| Step::Publish { shadow, further, wrong });
    let grant = (0..3u8, 1..4000u64, 1..3usize).prop_map(|(id, lasts, signers)| Step::Grant { id, lasts, signers });
    let step = prop_oneof![
        6 => publish,
        1 => Just(Step::Again),
        1 => Just(Step::ClearShadow),
        3 => grant,
        1 => (0..3u8).prop_map(Step::Revoke),
        2 => (1..3000u64).prop_map(Step::Wait),
        2 => (any::<bool>(), any::<bool>(), proptest::bool::weighted(0.8))
            .prop_map(|(bob, carol, enough)| Step::Signers { bob, carol, enough }),
        2 => Just(Step::Hear),
    ];
    proptest::collection::vec(step, 1..25)
}

fn grant(id: u8, lasts: u64, signers: usize, now: SystemTime) -> Vec<u8> {
    let scope = GrantScope::Path("prod.example/ops".to_owned());
    let times = (now, now + Duration::from_secs(lasts));
    let draft = GrantDraft::new(
        &trust_domain(),
        &format!("g{id}"),
        "INC-1",
        "why",
        scope,
        &"ledger".parse().unwrap(),
        times,
        now,
    );
    let signed = draft.unwrap().sign(&key("alice")).unwrap();
    match signers {
        1 => signed,
        _ => GrantDraft::sign_too(&signed, &key("bob")).unwrap(),
    }
}

async fn agents_take_whatever_is_published(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let mut world = World::over(&store);
    let (mut always, mut sometimes) = (Agent::new(), Agent::new());
    for step in steps {
        match step {
            Step::Publish { shadow, further, wrong } => {
                let (highest, _) = world.head();
                let by = if wrong == Wrong::Stranger {
                    "mallory"
                } else {
                    world.other_signer()
                };
                let published = world.publish(by, |meta| {
                    meta.revision = highest + further;
                    meta.stage = if shadow { Stage::Shadow } else { Stage::Live };
                    match wrong {
                        Wrong::Nothing | Wrong::Stranger => {}
                        Wrong::Expired => {
                            meta.created -= HOUR;
                            meta.expires -= HOUR;
                        }
                        Wrong::OtherParent => meta.parent = Some(Hash::of(b"another")),
                        Wrong::NotHigher => meta.revision = highest.max(1),
                        Wrong::Domain => meta.trust_domain = TrustDomain::parse("other.example").unwrap(),
                    }
                });
                let done = published.await;
                // The first of all may be numbered 1.
                let right = wrong == Wrong::Nothing || wrong == Wrong::NotHigher && highest == 0;
                prop_assert_eq!(done.is_ok(), right, "{:?}", done);
            }
            Step::Again => {
                let (highest, newest) = world.head();
                let bytes = world.newest.clone();
                let contents = BundleContents::danger_read_unverified(&bytes, usize::MAX).unwrap();
                let again = world.publishing.publish(bytes, highest, world.now).await;
                let index = world.publishing.0.registry.index();
                let in_force = newest == Some(contents.manifest_hash()) && index.policy.head().is_current(highest);
                let trusted = world.publishing.signers();
                let is_signer = contents
                    .signed_by()
                    .iter()
                    .all(|name| trusted.names().any(|known| known == name));
                prop_assert_eq!(
                    again.is_ok(),
                    in_force && is_signer && !contents.stale(world.now),
                    "{:?}",
                    again
                );
            }
            Step::ClearShadow => {
                world.publishing.0.registry.write(ClearShadow).await.unwrap();
            }
            Step::Grant { id, lasts, signers } => {
                let bytes = grant(id, lasts, signers, world.now);
                let added = world.publishing.add_grant(&bytes, world.now).await;
                prop_assert!(signers == 2 || added.is_err());
            }
            Step::Revoke(id) => {
                let _ = world
                    .publishing
                    .0
                    .registry
                    .write(RevokeGrant { id: format!("g{id}") })
                    .await;
            }
            Step::Wait(seconds) => {
                world.now += Duration::from_secs(seconds);
                always.holding.end_what_is_over(world.now);
                sometimes.holding.end_what_is_over(world.now);
            }
            Step::Signers { bob, carol, enough } => {
                let others = [("bob", bob), ("carol", carol)]
                    .into_iter()
                    .filter_map(|(name, is)| is.then_some(name));
                let members: Vec<_> = ["alice"].into_iter().chain(others).collect();
                match world.change_signers(&members, enough).await {
                    None => {} // nothing would change
                    Some(Ok(_)) => prop_assert!(enough),
                    Some(Err(error)) => {
                        let strands = error.to_string().contains("every node would deny everything");
                        prop_assert!(!enough || strands, "{}", error);
                    }
                }
            }
            Step::Hear => {
                for refused in world.hear(&mut sometimes).await {
                    // Nobody told it in time; and what it had may be of somebody who left since.
                    let late = refused.contains("expired") || refused.contains("is not trusted here");
                    prop_assert!(late, "{}", refused);
                }
            }
        }
        let refused = world.hear(&mut always).await;
        prop_assert!(
            refused.is_empty(),
            "the CA accepted what an agent refuses: {:?}",
            refused
        );
        let in_force = world.publishing.0.registry.index().policy.in_force(world.now);
        for (stage, published) in [(Stage::Live, &in_force.live), (Stage::Shadow, &in_force.shadow)] {
            let held = always
                .holding
                .bundle(stage)
                .map(|held| (held.revision(), held.seen().manifest));
            prop_assert_eq!(
                held,
                published
                    .as_ref()
                    .map(|published| (published.revision, published.manifest))
            );
        }
        let held: Vec<_> = always
            .holding
            .grants()
            .iter()
            .map(|grant| grant.bytes().to_vec())
            .collect();
        let told: Vec<_> = in_force.grants.iter().map(|grant| grant.envelope().unwrap()).collect();
        prop_assert_eq!(held, told);
        prop_assert_eq!(world.publishing.doubts_at(world.now).await, Vec::<String>::new());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_the_ca_publishes_a_holding_takes(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        runtime.block_on(agents_take_whatever_is_published(steps))?;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_manifest_of_before_keeps_nothing_away_and_is_said() {
    const KEPT: u64 = 50;
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(SledStore::open(dir.path()).unwrap());
    let mut world = World::over(&store);
    for revision in 1..=KEPT {
        assert_eq!(world.publish("alice", |_| ()).await.unwrap(), revision);
    }
    let first = |world: &World| Arc::clone(world.publishing.0.registry.index().policy.published(1).unwrap());
    let before = first(&world);
    assert!(before.kept && !before.lost);
    fs::remove_file(dir.path().join("large").join(before.manifest_id().to_string())).unwrap();
    assert_eq!(
        world.publish("alice", |_| ()).await.unwrap(),
        KEPT + 1,
        "it is not needed"
    );
    let after = first(&world);
    assert!(after.lost && !after.kept && after.large().is_empty());
    let Err(error) = world.publishing.contents(&after).await else {
        panic!("the manifest is gone")
    };
    assert!(error.to_string().contains("revision `1` is lost"), "{error}");
    assert_eq!(world.publish("alice", |_| ()).await.unwrap(), KEPT + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_force_of_a_signer_who_left_is_said() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let mut world = World::over(&store);
    world.publish("alice", |_| ()).await.unwrap();
    assert_eq!(world.publishing.doubts_at(world.now).await, Vec::<String>::new());
    let now = world.now;
    drop(world);
    let bob = TrustedSigners::new([key("bob").signer().clone()]).unwrap();
    assert!(
        write::commit(&*store, &NameFirst::new(&trust_domain(), &bob))
            .unwrap()
            .0
    );
    let (later, _follows) = replica(&store);
    let doubts = later.doubts_at(now).await;
    assert!(
        matches!(&doubts[..], [doubt] if doubt.contains("live policy of revision 1") && doubt.contains("`alice`")),
        "{doubts:?}"
    );
}
