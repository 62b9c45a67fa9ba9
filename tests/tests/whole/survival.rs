//! What an agent has while its CA is away, after a ban, and when somebody else has a copy of it.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hoplite_policy::bundle::Stage;
use hoplite_tests::{HttpApp, TestClient, World, get, id, own_selectors, peers, until};
use hoplite_wire::{FetchError, WorkloadApi};
use http::StatusCode;

const PERMIT: &str = r#"@id("test/visitor")
permit (principal == Hoplite::Workload::"spiffe://world.test/visitor", action in [Hoplite::Action::"read"],
    resource in Hoplite::Service::"ledger");"#;

fn serial(client: &TestClient) -> String {
    client.svid.as_ref().unwrap().leaf().serial().to_owned()
}

/// Waits until the agent has this on its disk.
async fn kept(world: &World) {
    let state = world.agent_status().await.kept.unwrap();
    assert_eq!((state.key.as_str(), state.failure.as_str()), ("beside", ""));
    until("it is on the disk", async || {
        let kept = world.agent_status().await.kept.unwrap();
        (kept.written_at_unix > 0 && !kept.waiting).then_some(())
    })
    .await;
}

/// The files of a directory, but for one.
fn files(dir: &Path, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let names = entries.map(|name| name.into_string().unwrap());
    names.filter(|name| name.starts_with(prefix)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_agent_serves_everybody_while_the_ca_is_away() {
    let mut world = World::start().await;
    let app = HttpApp::start().await;
    world.publish(&[("test.cedar", PERMIT)], Stage::Live).await;
    let (go, python) = (
        peers::go("a_restarted_agent_serves_everybody_while_the_ca_is_away"),
        peers::python("a_restarted_agent_serves_everybody_while_the_ca_is_away"),
    );
    let mut callers = vec![("/app", own_selectors())];
    callers.extend(go.iter().map(|program| ("/go", peers::selectors(program))));
    callers.extend(python.iter().map(|program| ("/py", peers::selectors(program))));
    for (path, selectors) in &callers {
        world.register(path, selectors, None).await;
    }
    for path in ["/visitor", "/ledger"] {
        world.register(path, &own_selectors(), None).await;
    }
    let before = until("all SVIDs", async || {
        let status = world.agent_status().await;
        (status.entries >= 3 && status.without_svid == 0).then_some(())?;
        world.fetch("/app").await.ok().flatten()
    })
    .await;
    kept(&world).await;

    world.stop_agent().await;
    world.stop_ca().await;
    let started = Instant::now();
    world.start_agent().await;
    let after = world.fetch("/app").await.unwrap().unwrap();
    let took = started.elapsed();
    println!("the restarted agent's first SVID came after {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(serial(&after), serial(&before), "the one from the disk");
    assert_eq!(after.bundles, before.bundles);
    let status = world.agent_status().await;
    assert!(
        status.from_disk && !status.in_step && status.heard_at_unix > 0,
        "{status:?}"
    );

    let socket = world.workload_api();
    for (program, arguments) in [
        (go, vec!["watch".to_owned(), socket.clone(), "1".to_owned()]),
        (
            python,
            vec![
                "-B".to_owned(),
                peers::file("fetch_svid.py").display().to_string(),
                "--socket".to_owned(),
                socket,
            ],
        ),
    ] {
        let Some(program) = program else { continue };
        let mut command = Command::new(&program);
        command.args(&arguments);
        let output = peers::output(command).await;
        assert!(output.status.success(), "{program:?}: {output:?}");
    }
    // Identities and policy of the feed alike: new proxies stand before a service, and a call crosses both.
    let ledger = world
        .proxy("ledger")
        .registered()
        .signed()
        .http("ledger", &app)
        .start()
        .await;
    let visitor = world
        .proxy("visitor")
        .registered()
        .signed()
        .calls("ledger", ledger.inbound("ledger"));
    let visitor = visitor.start().await;
    let answer = get(visitor.outbound("ledger"), "/accounts/1").await.unwrap();
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");

    // Back, and in step by a digest: nothing is minted anew.
    world.start_ca().await;
    until("the CA is heard", async || {
        world.agent_status().await.in_step.then_some(())
    })
    .await;
    let back = world.fetch("/app").await.unwrap().unwrap();
    assert_eq!(serial(&back), serial(&before));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_life_without_the_ca_ends_nothing_and_what_is_past_its_end_is_never_served() {
    let mut world = World::start().await;
    let ttl = Duration::from_secs(16);
    world.register("/short", &own_selectors(), Some(ttl)).await;
    world.register("/long", &own_selectors(), None).await;
    let held = until("the SVIDs", async || {
        world.fetch("/long").await.ok().flatten()?;
        world.fetch("/short").await.ok().flatten()
    })
    .await;
    let ends = held.svid.as_ref().unwrap().leaf().not_after();
    kept(&world).await;
    world.stop_ca().await;
    world.stop_agent().await;
    world.start_agent().await;
    let left = || ends.duration_since(std::time::SystemTime::now()).unwrap_or_default();
    tokio::time::sleep(left().saturating_sub(Duration::from_secs(2))).await;
    if !left().is_zero() {
        let still = world.fetch("/short").await.unwrap();
        assert!(still.is_some() || left().is_zero(), "it is valid for {:?}", left());
    }
    // Again over its end: what lies on the disk is not served either.
    tokio::time::sleep(left()).await;
    assert!(world.fetch("/short").await.unwrap().is_none());
    world.stop_agent().await;
    world.start_agent().await;
    assert!(world.fetch("/short").await.unwrap().is_none());
    assert!(world.fetch("/long").await.unwrap().is_some());
    world.start_ca().await;
    until("a new one", async || world.fetch("/short").await.ok().flatten()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ban_empties_the_node_and_a_new_join_fills_it() {
    let mut world = World::start().await;
    world.register("/app", &own_selectors(), None).await;
    until("the SVID", async || world.fetch("/app").await.ok().flatten()).await;
    kept(&world).await;
    let data = world.dir().join("agent");
    assert_eq!(
        files(&data, "supply").len(),
        3,
        "key, head and log: {:?}",
        files(&data, "supply")
    );
    let mut stream = WorkloadApi::open(&world.workload_api()).await.unwrap();
    stream.next().await.unwrap();

    let banned = Instant::now();
    world.ban("node").await;
    let told = tokio::time::timeout(Duration::from_secs(10), stream.next())
        .await
        .unwrap();
    let Err(FetchError::Denied(reason)) = told else {
        panic!("{told:?}")
    };
    assert!(reason.contains("banned"), "{reason}");
    let denied = world.fetch("/app").await.unwrap_err();
    assert!(matches!(denied, FetchError::Denied(_)), "{denied:?}");
    println!("a banned node's callers were told after {:?}", banned.elapsed());
    assert!(banned.elapsed() < Duration::from_secs(2), "{:?}", banned.elapsed());
    until("the disk is empty", async || {
        (files(&data, "supply") == ["supply.key"]).then_some(())
    })
    .await;
    assert!(world.agent_status().await.dismissed.contains("banned"));

    // Nor after a restart, whether the CA is there or not.
    world.stop_ca().await;
    world.stop_agent().await;
    world.begin_agent().await;
    assert!(world.fetch("/app").await.is_err());
    world.start_ca().await;
    until("the agent is told again", async || {
        matches!(world.fetch("/app").await, Err(FetchError::Denied(_))).then_some(())
    })
    .await;

    world.evict("node").await;
    world.give_token().await;
    let again = until("the node has joined anew", async || {
        world.fetch("/app").await.ok().flatten()
    })
    .await;
    assert_eq!(again.svid.unwrap().spiffe_id().as_str(), id("/app"));
    kept(&world).await;
    assert_eq!(files(&data, "supply").len(), 3);
    assert_eq!(world.agent_status().await.dismissed, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_eviction_empties_the_node_too() {
    let world = World::start().await;
    world.register("/app", &own_selectors(), None).await;
    until("the SVID", async || world.fetch("/app").await.ok().flatten()).await;
    let evicted = Instant::now();
    world.evict("node").await;
    until("it is refused", async || {
        matches!(world.fetch("/app").await, Err(FetchError::Denied(_))).then_some(())
    })
    .await;
    assert!(evicted.elapsed() < Duration::from_secs(2), "{:?}", evicted.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_of_an_agent_is_noticed_and_a_restart_is_not() {
    let mut world = World::start().await;
    world.register("/app", &own_selectors(), None).await;
    until("the SVID", async || world.fetch("/app").await.ok().flatten()).await;
    // Starts, of agent and CA, are no sign.
    for _ in 0..3 {
        world.stop_agent().await;
        world.start_agent().await;
        until("in step", async || world.agent_status().await.in_step.then_some(())).await;
    }
    world.stop_ca().await;
    world.start_ca().await;
    world.stop_agent().await;
    world.start_agent().await;
    until("in step", async || world.agent_status().await.in_step.then_some(())).await;
    assert_eq!(world.agents().await[0].contested_at_unix, 0);

    // Its files on another machine, beside it.
    let copy = world.dir().join("clone");
    fs::create_dir(&copy).unwrap();
    fs::copy(world.dir().join("agent/node.json"), copy.join("node.json")).unwrap();
    let clone = world.begin_another_agent(&copy).await;
    let agent = until("it is noticed", async || {
        let agent = world.agents().await.remove(0);
        (agent.contested_at_unix > 0).then_some(agent)
    })
    .await;
    assert!(!agent.banned);
    // Both go on as far as their certificates reach, and neither ends the other's watch any more.
    assert!(world.fetch("/app").await.unwrap().is_some());
    clone.stop().await;
    // A new join ends it.
    world.evict("node").await;
    world.give_token().await;
    until("the node has joined anew", async || {
        world.fetch("/app").await.ok().flatten()
    })
    .await;
    assert_eq!(world.agents().await[0].contested_at_unix, 0);
}
