//! Policy at the CA: published by people, kept, and told to agents.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use hoplite_identity::TrustDomain;
use hoplite_policy::Source;
use hoplite_policy::bundle::{BUNDLE_BYTES_MAX, Bundle, BundleContents, EngineVersion, Meta, Stage};
use hoplite_policy::grant::{GrantDraft, GrantScope};
use hoplite_seal::{Hash, SigningKey, TrustedSigners};
use hoplite_store::{SledStore, Store};
use hoplite_wire::ca::{
    AddGrantRequest, ClearShadowRequest, FetchPolicyRequest, GetPolicyRequest, ListGrantsRequest, ListPoliciesRequest,
    PolicyState, PublishPolicyRequest, RevokeGrantRequest, ShowPolicyRequest, ShowPolicyResponse,
};
use tonic::{Code, Status};

use crate::world::{Agent, DOMAIN, World, config, key, next};

const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn meta(revision: u64, parent: Option<Hash>) -> Meta {
    Meta {
        trust_domain: TrustDomain::parse(DOMAIN).unwrap(),
        revision,
        parent,
        created: SystemTime::now(),
        expires: SystemTime::now() + HOUR,
        min_engine: EngineVersion::THIS,
        critical: Vec::new(),
        stage: Stage::Live,
        note: None,
    }
}

/// A bundle with one policy of this id.
pub(crate) fn bundle(meta: Meta, id: &str, by: &SigningKey) -> Vec<u8> {
    let text = format!("@id(\"{id}\") @owner(\"pay\") permit (principal, action, resource);");
    let source = Source {
        name: "pay.cedar".into(),
        text,
    };
    Bundle::build(&[source], meta).unwrap().sign(&[by]).unwrap()
}

fn contents(bytes: &[u8]) -> BundleContents {
    BundleContents::danger_read_unverified(bytes, BUNDLE_BYTES_MAX).unwrap()
}

impl World {
    pub(crate) async fn publish(&self, bundle: Vec<u8>, expected_revision: u64) -> Result<u64, Status> {
        let request = PublishPolicyRequest {
            bundle,
            expected_revision,
        };
        let mut admin = self.admin().await;
        admin
            .publish_policy(request)
            .await
            .map(|done| done.into_inner().revision)
    }

    /// A bundle that follows what is there.
    async fn publish_next(&self, id: &str, stage: Stage) -> Vec<u8> {
        let shown = self.show().await;
        let parent = Hash::from_slice(&shown.highest_manifest_sha256);
        let meta = Meta {
            stage,
            ..meta(shown.highest_revision + 1, parent)
        };
        let bytes = bundle(meta, id, &key("alice"));
        let published = self.publish(bytes.clone(), shown.highest_revision).await.unwrap();
        assert_eq!(published, shown.highest_revision + 1);
        bytes
    }

    async fn show(&self) -> ShowPolicyResponse {
        let mut admin = self.admin().await;
        admin.show_policy(ShowPolicyRequest {}).await.unwrap().into_inner()
    }

    async fn get(&self, revision: u64) -> Vec<u8> {
        let mut admin = self.admin().await;
        let got = admin.get_policy(GetPolicyRequest { revision }).await.unwrap();
        got.into_inner().bundle
    }
}

/// A bundle as an agent gets it, and how many pieces it came in.
async fn fetch(agent: &Agent, revision: u64) -> Result<(Vec<u8>, usize), Status> {
    let mut client = agent.client.clone();
    let mut pieces = client.fetch_policy(FetchPolicyRequest { revision }).await?.into_inner();
    let (mut bytes, mut count) = (Vec::new(), 0);
    while let Some(piece) = pieces.message().await? {
        bytes.extend(piece.data);
        count += 1;
    }
    Ok((bytes, count))
}

fn revisions(state: Option<PolicyState>) -> (u64, u64, usize) {
    let state = state.expect("it says what is in force");
    let of = |reference: Option<hoplite_wire::ca::PolicyRef>| reference.map_or(0, |reference| reference.revision);
    (of(state.live), of(state.shadow), state.grants.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_told_at_once_and_fetch_what_was_signed() {
    let world = World::start().await;
    let mut agent = world.join("n1").await;
    let mut updates = agent.watch(0).await;
    assert_eq!(revisions(next(&mut updates).await.unwrap().policy), (0, 0, 0));

    let first = world.publish_next("a", Stage::Live).await;
    let update = next(&mut updates).await.unwrap();
    assert!(!update.full);
    let live = update.policy.as_ref().unwrap().live.clone().unwrap();
    assert_eq!(live.manifest_sha256, contents(&first).manifest_hash().0);
    assert_eq!(live.bytes, first.len() as u64);
    assert_eq!(revisions(update.policy), (1, 0, 0));
    assert_eq!(fetch(&agent, 1).await.unwrap(), (first.clone(), 1));

    let second = world.publish_next("b", Stage::Shadow).await;
    let update = next(&mut updates).await.unwrap();
    let at = update.revision;
    assert_eq!(revisions(update.policy), (1, 2, 0));
    assert_eq!(fetch(&agent, 2).await.unwrap().0, second);

    let third = world.publish_next("c", Stage::Live).await;
    assert_eq!(revisions(next(&mut updates).await.unwrap().policy), (3, 2, 0));
    assert_eq!(
        fetch(&agent, 1).await.unwrap_err().code(),
        Code::NotFound,
        "not in force any more"
    );
    assert_eq!(fetch(&agent, 3).await.unwrap().0, third);
    let mut admin = world.admin().await;
    assert!(
        admin
            .clear_shadow(ClearShadowRequest {})
            .await
            .unwrap()
            .into_inner()
            .cleared
    );
    assert_eq!(revisions(next(&mut updates).await.unwrap().policy), (3, 0, 0));

    // Who was away is told in the first word, also when nothing else is new.
    let mut again = agent.watch(at).await;
    assert_eq!(revisions(next(&mut again).await.unwrap().policy), (3, 0, 0));
    let listed = admin
        .list_policies(ListPoliciesRequest::default())
        .await
        .unwrap()
        .into_inner()
        .policies;
    let listed: Vec<_> = listed
        .iter()
        .map(|p| (p.revision, p.stage.as_str(), p.current))
        .collect();
    assert_eq!(listed, [(3, "live", true), (2, "shadow", false), (1, "live", false)]);
    assert_eq!(world.get(1).await, first, "for going back");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_could_enforce_is_refused() {
    let world = World::start().await;
    let check = async |bytes: Vec<u8>, expected: u64, code: Code, text: &str| {
        let refused = world.publish(bytes, expected).await.unwrap_err();
        assert!(
            refused.code() == code && refused.message().contains(text),
            "{refused:?}\nis not {text}"
        );
    };
    let alice = key("alice");
    check(
        bundle(meta(1, None), "a", &key("mallory")),
        0,
        Code::InvalidArgument,
        "`mallory` signed it",
    )
    .await;
    let mut altered = bundle(meta(1, None), "a", &alice);
    let last = altered.len() - 3;
    altered[last] ^= 1;
    check(altered, 0, Code::InvalidArgument, "the content of").await;
    check(b"no bundle".to_vec(), 0, Code::InvalidArgument, "not whole").await;
    let expired = Meta {
        created: SystemTime::now() - 2 * HOUR,
        expires: SystemTime::now() - HOUR,
        ..meta(1, None)
    };
    check(bundle(expired, "a", &alice), 0, Code::InvalidArgument, "it expired at").await;
    let critical = Meta {
        critical: vec!["time-travel".into()],
        ..meta(1, None)
    };
    check(
        bundle(critical, "a", &alice),
        0,
        Code::InvalidArgument,
        "needs `time-travel`",
    )
    .await;
    let foreign = Meta {
        trust_domain: TrustDomain::parse("other.example").unwrap(),
        ..meta(1, None)
    };
    check(
        bundle(foreign, "a", &alice),
        0,
        Code::InvalidArgument,
        "`other.example`",
    )
    .await;
    check(
        bundle(meta(1, None), "not an id", &alice),
        0,
        Code::InvalidArgument,
        "pay.cedar:1:1: the `@id`",
    )
    .await;
    assert_eq!(world.show().await.highest_revision, 0, "nothing was half-applied");

    let first = world.publish_next("a", Stage::Live).await;
    assert_eq!(world.publish(first.clone(), 0).await.unwrap(), 1, "the answer was lost");
    let parent = Some(contents(&first).manifest_hash());
    check(
        bundle(meta(1, parent), "b", &alice),
        1,
        Code::FailedPrecondition,
        "number the bundle 2",
    )
    .await;
    check(
        bundle(meta(2, None), "b", &alice),
        1,
        Code::FailedPrecondition,
        "as its parent",
    )
    .await;
    check(
        bundle(meta(2, parent), "b", &alice),
        0,
        Code::Aborted,
        "the current policy revision is 1",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_publishers_one_wins_and_the_other_is_told() {
    let world = World::start().await;
    world.publish_next("first", Stage::Live).await;
    let parent = Hash::from_slice(&world.show().await.highest_manifest_sha256);
    let mut race = tokio::task::JoinSet::new();
    for n in 0..8 {
        let by = key(if n % 2 == 0 { "alice" } else { "bob" });
        let request = PublishPolicyRequest {
            bundle: bundle(meta(2, parent), &format!("racer-{n}"), &by),
            expected_revision: 1,
        };
        let mut admin = world.admin().await;
        race.spawn(async move { admin.publish_policy(request).await });
    }
    let mut won = 0;
    while let Some(result) = race.join_next().await {
        match result.unwrap() {
            Ok(done) => {
                assert_eq!(done.into_inner().revision, 2);
                won += 1;
            }
            Err(lost) => {
                assert_eq!(lost.code(), Code::Aborted);
                assert!(lost.message().contains("the current policy revision is 2"), "{lost:?}");
            }
        }
    }
    assert_eq!(won, 1);
    world.publish_next("after", Stage::Live).await;
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        match file.file_type().unwrap().is_dir() {
            true => copy(&file.path(), &to.join(file.file_name())),
            false => drop(fs::copy(file.path(), to.join(file.file_name())).unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_survives_a_restart_and_a_sudden_death() {
    let world = World::start().await;
    world.publish_next("a", Stage::Live).await;
    let second = world.publish_next("b", Stage::Live).await;
    // What a death at this moment leaves behind: the disk as it is, and a bundle that no commit names.
    let died = tempfile::tempdir().unwrap();
    copy(&world.dir.path().join("data"), &died.path().join("data"));
    let open_store = || SledStore::open(died.path().join("data/store")).unwrap();
    let (now, store) = (SystemTime::now(), open_store());
    let old = store.put_large(b"old stray", now - 2 * HOUR).unwrap();
    let young = store.put_large(b"young stray", now).unwrap();
    drop(store);
    hoplite_ca::start(config(died.path())).await.unwrap().stop().await;
    let store = open_store();
    assert_eq!(store.large(&old).unwrap(), None, "swept at the start");
    assert!(
        store.large(&young).unwrap().is_some(),
        "its publication may be under way"
    );
    drop(store);
    let ca = hoplite_ca::start(config(died.path())).await.unwrap();
    let after_death = World { dir: died, ca };
    for world in [after_death, world.restart().await.unwrap()] {
        let shown = world.show().await;
        assert_eq!((shown.highest_revision, shown.live.unwrap().revision), (2, 2));
        assert_eq!(world.get(2).await, second);
        let parent = Some(contents(&second).manifest_hash());
        let lower = world.publish(bundle(meta(2, parent), "x", &key("alice")), 2).await;
        assert!(lower.unwrap_err().message().contains("number the bundle 3"));
        world.publish_next("c", Stage::Live).await;
    }
}

/// Where the CA of [`a_ca_of_its_own`] keeps its data.
const CA_DIR: &str = "HOPLITE_TEST_CA_DIR";

/// Not a test by itself: the process that [`what_was_acknowledged_survives_kill_9`] kills.
#[tokio::test(flavor = "multi_thread")]
async fn a_ca_of_its_own() {
    if let Some(dir) = std::env::var_os(CA_DIR) {
        let mut ca = hoplite_ca::start(config(Path::new(&dir))).await.unwrap();
        ca.wait().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("ca.sock");
    let start = || {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "policy::a_ca_of_its_own"])
            .env(CA_DIR, dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut acknowledged: (u64, Vec<u8>) = (0, Vec::new());
    for round in 0..6_u64 {
        let mut process = start();
        let mut admin = loop {
            match hoplite_wire::channel::unix(&socket).await {
                Ok(channel) => break hoplite_wire::ca::admin_client::AdminClient::new(channel),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let shown = admin.show_policy(ShowPolicyRequest {}).await.unwrap().into_inner();
        // What was being published when it died may be there too, but no more than that.
        let highest = shown.highest_revision;
        assert!(
            (acknowledged.0..=acknowledged.0 + 1).contains(&highest),
            "{highest} after {}",
            acknowledged.0
        );
        for revision in [acknowledged.0, highest].into_iter().filter(|revision| *revision > 0) {
            let got = admin
                .get_policy(GetPolicyRequest { revision })
                .await
                .unwrap()
                .into_inner();
            assert_eq!(contents(&got.bundle).manifest().revision, revision);
            assert!(revision != acknowledged.0 || got.bundle == acknowledged.1);
        }
        let (first_done, first) = tokio::sync::oneshot::channel();
        let mut first_done = Some(first_done);
        let killer = tokio::spawn(async move {
            first.await.unwrap();
            tokio::time::sleep(Duration::from_millis(17 * round)).await;
            process.kill().unwrap(); // SIGKILL
            process.wait().unwrap();
        });
        let (mut next, mut parent) = (highest + 1, Hash::from_slice(&shown.highest_manifest_sha256));
        loop {
            let bytes = bundle(meta(next, parent), &format!("p{next}"), &key("alice"));
            let request = PublishPolicyRequest {
                bundle: bytes.clone(),
                expected_revision: next - 1,
            };
            match admin.publish_policy(request).await {
                Ok(done) => assert_eq!(done.into_inner().revision, next),
                Err(_) => break, // it is dead
            }
            parent = Some(contents(&bytes).manifest_hash());
            acknowledged = (next, bytes);
            next += 1;
            if let Some(done) = first_done.take() {
                done.send(()).unwrap();
            }
        }
        killer.await.unwrap();
    }
    assert!(acknowledged.0 >= 6, "{}", acknowledged.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_needs_two_people_and_ends_when_it_is_revoked() {
    let world = World::start().await;
    let mut agent = world.join("n1").await;
    let mut updates = agent.watch(0).await;
    next(&mut updates).await.unwrap();
    let mut admin = world.admin().await;
    let now = SystemTime::now();
    let draft = GrantDraft::new(
        &TrustDomain::parse(DOMAIN).unwrap(),
        "repair",
        "INC-1",
        "the ledger must be repaired",
        GrantScope::Path(format!("{DOMAIN}/ns/ops")),
        &"ledger".parse().unwrap(),
        (now, now + HOUR),
        now,
    )
    .unwrap();
    let one = draft.sign(&key("alice")).unwrap();
    let refused = admin
        .add_grant(AddGrantRequest { grant: one.clone() })
        .await
        .unwrap_err();
    assert!(refused.message().contains("a second trusted person"), "{refused:?}");
    let grant = GrantDraft::sign_too(&one, &key("bob")).unwrap();
    let added = admin
        .add_grant(AddGrantRequest { grant: grant.clone() })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(added.signed_by, ["alice", "bob"]);
    let told = next(&mut updates).await.unwrap().policy.unwrap();
    assert_eq!(told.grants, std::slice::from_ref(&grant));

    let revoke = RevokeGrantRequest { id: "repair".into() };
    admin.revoke_grant(revoke).await.unwrap();
    assert_eq!(revisions(next(&mut updates).await.unwrap().policy), (0, 0, 0));
    let again = admin.add_grant(AddGrantRequest { grant }).await.unwrap_err();
    assert!(again.message().contains("was revoked"), "{again:?}");
    let listed = admin
        .list_grants(ListGrantsRequest {})
        .await
        .unwrap()
        .into_inner()
        .grants;
    assert!(listed.len() == 1 && listed[0].revoked);
    let unknown = RevokeGrantRequest { id: "../x".into() };
    assert_eq!(admin.revoke_grant(unknown).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_that_trusts_nobody_takes_nothing_and_a_small_one_nothing_large() {
    let dir = tempfile::tempdir().unwrap();
    let mut nobody = config(dir.path());
    nobody.policy_signers = TrustedSigners::default();
    let ca = hoplite_ca::start(nobody).await.unwrap();
    let world = World { dir, ca };
    let refused = world
        .publish(bundle(meta(1, None), "a", &key("alice")), 0)
        .await
        .unwrap_err();
    assert!(refused.message().contains("`policy_signers`"), "{refused:?}");

    let dir = tempfile::tempdir().unwrap();
    let mut small = config(dir.path());
    small.policy_max_bytes = 1024;
    let ca = hoplite_ca::start(small).await.unwrap();
    let world = World { dir, ca };
    let source = Source {
        name: "pay.cedar".into(),
        text: "// ".repeat(1_000),
    };
    let large = Bundle::build(&[source], meta(1, None))
        .unwrap()
        .sign(&[&key("alice")])
        .unwrap();
    let refused = world.publish(large, 0).await.unwrap_err();
    assert!(refused.message().contains("more than the 1024 accepted"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_bundle_travels_in_pieces() {
    let world = World::start().await;
    let agent = world.join("n1").await;
    let sources: Vec<Source> = (0..5)
        .map(|n| Source {
            name: format!("{n}.cedar"),
            text: format!("// {n}\n").repeat(150_000),
        })
        .collect();
    let large = Bundle::build(&sources, meta(1, None))
        .unwrap()
        .sign(&[&key("alice")])
        .unwrap();
    assert!(large.len() > 3 << 20);
    world.publish(large.clone(), 0).await.unwrap();
    let (bytes, pieces) = fetch(&agent, 1).await.unwrap();
    assert!(bytes == large && pieces > 10, "{pieces}");
}
