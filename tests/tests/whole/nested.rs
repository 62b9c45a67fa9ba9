//! A CA that is nested under another one: two CAs and two agents of one trust domain, whose workloads call each other while authorities of both
//! take their turns, and while the upper one is away; and what becomes of it when it is cut off.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::time::Duration;

use hoplite_ca::{HopliteUpstream, UpstreamConfig};
use hoplite_host::config::Span;
use hoplite_identity::{BundleSet, KeyDigest, PeerRole, PeerVerifier};
use hoplite_tests::{HttpApp, Load, World, get, id, own_selectors, until};
use hoplite_wire::WorkloadJwt;
use hoplite_wire::ca::{AuthorityRequest, ListAuthoritiesRequest, ListAuthoritiesResponse, PrepareAuthorityRequest};
use http::{Method, StatusCode};

const POLICY: &str = r#"
@id("all") permit (principal, action in [Hoplite::Action::"read"], resource)
    when { principal in Hoplite::TrustDomain::"world.test" };
"#;

/// Where the upper one says that the other is nested under it.
const ENTRY: &str = "/hoplite/nested/eu";

/// The upper CA, the nested one, and the entry of that at the other.
async fn two(
    change_top: impl FnOnce(&mut hoplite_ca::Config),
    change: impl FnOnce(&mut hoplite_ca::Config),
) -> (World, World, String) {
    let top = World::start_with(change_top).await;
    let entry = top.register(ENTRY, &own_selectors(), None).await;
    let upstream = HopliteUpstream {
        addresses: vec![top.ca_address().parse().unwrap()],
        workload_api: top.workload_api(),
    };
    until("the nested CA's own SVID", async || {
        top.fetch(ENTRY).await.ok().flatten()
    })
    .await;
    let nested = World::start_with(|config| {
        config.upstream = Some(UpstreamConfig::Hoplite(upstream));
        change(config);
    })
    .await;
    (top, nested, entry)
}

async fn listed(world: &World) -> ListAuthoritiesResponse {
    let listed = world.admin().await.list_authorities(ListAuthoritiesRequest {}).await;
    listed.unwrap().into_inner()
}

/// The one that signs.
async fn signs(world: &World) -> String {
    let all = listed(world).await.authorities;
    all.into_iter().find(|one| one.state == "active").unwrap().fingerprint
}

/// Another authority signs.
async fn turn(world: &World) {
    let mut admin = world.admin().await;
    admin
        .prepare_authority(PrepareAuthorityRequest { jwt: false })
        .await
        .unwrap();
    admin.activate_authority(AuthorityRequest::default()).await.unwrap();
}

/// A token of one world's workload, judged by the agent of another one.
async fn is_believed(of: &World, path: &str, by: &World) -> Result<(), String> {
    let mut fetching = WorkloadJwt::connect(&of.workload_api()).await.unwrap();
    let mut tokens = fetching
        .fetch(vec!["bank".to_owned()], Some(&id(path)))
        .await
        .map_err(|error| error.to_string())?;
    let mut judging = WorkloadJwt::connect(&by.workload_api()).await.unwrap();
    let judged = judging
        .validate("bank".to_owned(), tokens.remove(0).svid)
        .await
        .unwrap();
    judged.map(drop).map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workloads_of_two_cas_call_each_other_whatever_turns() {
    let (mut top, nested, entry) = two(|_| (), |_| ()).await;
    assert_eq!(
        nested.bundle().authorities(),
        top.bundle().authorities(),
        "one root for all"
    );
    top.policy(POLICY);
    nested.policy(POLICY);
    let app = HttpApp::start().await;
    // Both ways: a service under each, and who calls the other's.
    let (above, below) = (
        top.proxy("above").http("above", &app).start().await,
        nested.proxy("below").http("below", &app).start().await,
    );
    let down = top.proxy("down").calls("below", below.inbound("below")).start().await;
    let up = nested.proxy("up").calls("above", above.inbound("above")).start().await;
    for (proxy, name) in [(&down, "below"), (&up, "above")] {
        let answer = get(proxy.outbound(name), "/").await.unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    }
    let late = nested.caller("/late").await;
    let chain = late.svid.as_ref().unwrap().chain();
    assert_eq!(chain.len(), 2, "the leaf, and the nested CA's authority");

    // Tokens, both ways.
    let _token = (top.caller("/token-above").await, nested.caller("/token-below").await);
    until("tokens of the nested CA are believed above", async || {
        is_believed(&nested, "/token-below", &top).await.ok()
    })
    .await;
    until("and the other way round", async || {
        is_believed(&top, "/token-above", &nested).await.ok()
    })
    .await;

    let loads = [
        Load::start(down.outbound("below"), Method::GET, "/", StatusCode::OK),
        Load::start(up.outbound("above"), Method::GET, "/", StatusCode::OK),
    ];
    // The nested one's authority turns, then the upper one's, and the old root is tainted: the nested CA has another authority signed by
    // itself, under the new root.
    turn(&nested).await;
    let (before, old_root) = (signs(&nested).await, signs(&top).await);
    turn(&top).await;
    until("the new root is in both bundles", async || {
        (nested.bundle().authorities().len() == 2).then_some(())
    })
    .await;
    let tainted = AuthorityRequest {
        fingerprint: old_root.clone(),
        ..AuthorityRequest::default()
    };
    top.admin().await.taint_authority(tainted).await.unwrap();
    until("another authority signs in the nested CA", async || {
        (signs(&nested).await != before).then_some(())
    })
    .await;
    until("members hear of the taint", async || {
        nested.bundle().has_tainted().then_some(())
    })
    .await;
    until("nobody is under the old root", async || {
        let fresh = nested.fetch("/late").await.ok().flatten()?;
        let sound = PeerVerifier::new(BundleSet::from_iter([nested.bundle().sound()])).unwrap();
        let chain = fresh.svid.as_ref()?.chain().to_vec();
        sound.verify(&chain, PeerRole::Client, hoplite_host::clock::now()).ok()
    })
    .await;
    // Keys for tokens turn as well.
    let mut admin = nested.admin().await;
    admin
        .prepare_authority(PrepareAuthorityRequest { jwt: true })
        .await
        .unwrap();
    let jwt = AuthorityRequest {
        jwt: true,
        ..AuthorityRequest::default()
    };
    admin.activate_authority(jwt).await.unwrap();
    until("the new key's tokens are believed above", async || {
        is_believed(&nested, "/token-below", &top).await.ok()
    })
    .await;

    // The upper one is away: what is below goes on, and says so.
    top.stop_ca().await;
    let warning = until("its absence is said", async || {
        let warning = listed(&nested).await.warning;
        warning.contains("the CA above cannot be asked").then_some(warning)
    })
    .await;
    assert!(warning.contains("no authority is signed"), "{warning}");
    let metrics = get(nested.ca_metrics(), "/metrics").await.unwrap().body;
    assert!(metrics.contains("hoplite_ca_upstream_away 1"), "{metrics}");
    let refused = admin
        .prepare_authority(PrepareAuthorityRequest { jwt: false })
        .await
        .unwrap_err();
    assert!(refused.message().contains("no CA above answers"), "{refused}");
    nested.caller("/while-away").await;
    top.start_ca().await;
    until("it is heard again", async || {
        listed(&nested).await.warning.is_empty().then_some(())
    })
    .await;
    turn(&nested).await;
    for load in loads {
        let tally = load.stop().await;
        assert!(tally.failures.is_empty() && tally.sent > 0, "{:#?}", tally.failures);
    }

    // Cut off: its keys are revoked for agents and CAs, its tokens count no more, and it gets nothing.
    let late = nested.fetch("/late").await.unwrap().unwrap().svid.unwrap();
    let keys: Vec<_> = late.chain().iter().skip(1).filter_map(KeyDigest::of).collect();
    is_believed(&nested, "/token-below", &top).await.unwrap();
    top.unregister(&entry).await;
    until("its keys are revoked", async || {
        let bundle = top.bundle();
        keys.iter().all(|key| bundle.revoked_keys().contains(key)).then_some(())
    })
    .await;
    until("its tokens are refused", async || {
        is_believed(&nested, "/token-below", &top).await.err()
    })
    .await;
    until("it is told", async || {
        let warning = listed(&nested).await.warning;
        warning.contains("the CA above").then_some(())
    })
    .await;
    let refused = nested
        .admin()
        .await
        .prepare_authority(PrepareAuthorityRequest { jwt: false })
        .await
        .unwrap_err();
    assert!(
        refused.message().contains("no SVID of `/hoplite/nested/<name>`"),
        "{refused}"
    );
    // What is of the upper one goes on.
    let still = top.caller("/still").await;
    let answer = still.get(above.inbound("above"), &id("/above"), "/").await.unwrap();
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
}

/// By time alone, and with lives as short as they can be: the nested CA's authorities end with those above them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authorities_of_both_turn_by_time() {
    let seconds = |n| Span(Duration::from_secs(n));
    let (top, nested, _) = two(
        |config| config.authority_ttl = Span(Duration::from_secs(3600 * 24)),
        |config| {
            config.authority_ttl = seconds(42);
            (config.x509_ttl, config.agent_ttl) = (seconds(6), seconds(6));
        },
    )
    .await;
    top.policy(POLICY);
    nested.policy(POLICY);
    let app = HttpApp::start().await;
    let below = nested.proxy("below").http("below", &app).start().await;
    let down = top.proxy("down").calls("below", below.inbound("below")).start().await;
    let load = Load::start(down.outbound("below"), Method::GET, "/", StatusCode::OK);
    let first = signs(&nested).await;
    let started = hoplite_host::clock::moment();
    while signs(&nested).await == first {
        assert!(started.elapsed() < Duration::from_secs(60), "another one signs in time");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let second = signs(&nested).await;
    until("the first has left", async || {
        let all = listed(&nested).await.authorities;
        (!all.iter().any(|one| one.fingerprint == first) && all.iter().any(|one| one.fingerprint == second))
            .then_some(())
    })
    .await;
    let tally = load.stop().await;
    assert!(tally.failures.is_empty() && tally.sent > 0, "{:#?}", tally.failures);
}
