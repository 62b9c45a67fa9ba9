//! One entry for many workloads: each is called by what its node attests of it, and policy tells them apart.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hoplite_tests::{HttpApp, World, id, own_selectors, peers, until};
use hoplite_wire::workload::JwtsvidRequest;
use hoplite_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use hoplite_wire::{FetchError, WorkloadApi};
use serde_json::Value;

const POLICY: &str = r#"
@id("one-user") permit (principal == Hoplite::Workload::"spiffe://world.test/uid/65301",
    action in [Hoplite::Action::"anyHttp"], resource in Hoplite::Service::"ledger");
"#;

/// This process's user, as a template that names users calls it.
fn own_path() -> String {
    format!("/uid/{}", fs::metadata("/proc/self").unwrap().uid())
}

/// The agent has written down what it holds.
async fn kept(world: &World) {
    until("all of it is on the disk", async || {
        let kept = world.agent_status().await.kept.unwrap();
        (!kept.waiting && kept.written_at_unix > 0).then_some(())
    })
    .await;
}

/// A copy of the caller where every user may run it.
fn caller(dir: &Path) -> PathBuf {
    let path = dir.join("caller");
    fs::copy(env!("CARGO_BIN_EXE_hoplite-test-caller"), &path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_users_have_two_names_by_one_entry_and_policy_lets_one_in() {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return peers::skip(
            "two_users_have_two_names_by_one_entry_and_policy_lets_one_in",
            "it needs root, to call as other users",
        );
    }
    let world = World::start_with(|ca| ca.template_names_per_node = 2).await;
    world.policy(POLICY);
    let app = HttpApp::start().await;
    let ledger = world.proxy("ledger").http("ledger", &app).start().await;
    world
        .register("/uid/{unix:uid}", &["unix:gid:65300".to_owned()], None)
        .await;
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (program, socket) = (caller(dir.path()), world.workload_api());
    let (address, expected) = (ledger.inbound("ledger").to_string(), id("/ledger"));
    let call = async |uid: u32| -> Value {
        let mut command = Command::new(&program);
        command
            .args([socket.as_str(), &address, &expected, "/accounts/42"])
            .uid(uid)
            .gid(65_300);
        let output = peers::output(command).await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text} {output:?}"))
    };
    until("the first has its name, and is let in", async || {
        let said = call(65_301).await;
        (said["spiffe_id"] == id("/uid/65301") && said["status"] == 200).then_some(())
    })
    .await;
    let second = until("the second has its name", async || {
        let said = call(65_302).await;
        said["spiffe_id"].is_string().then_some(said)
    })
    .await;
    assert_eq!(
        (&second["spiffe_id"], &second["status"]),
        (&id("/uid/65302").into(), &403.into())
    );
    // A third is one too many for this node, and is told to wait: no name is made up for it.
    let third = call(65_303).await;
    let said = third["error"].as_str().unwrap_or_else(|| panic!("{third}"));
    assert!(said.contains("uid/65303") && said.contains("not issued"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_given_by_every_way_and_outlives_the_ca() {
    let mut world = World::start().await;
    let path = own_path();
    let entry = world
        .register("/uid/{unix:uid}", &[], Some(Duration::from_secs(600)))
        .await;
    let before = until("the name", async || world.fetch(&path).await.ok().flatten()).await;
    // Twice the same, and one SVID for it.
    let again = world.fetch(&path).await.unwrap().unwrap();
    let serial = |client: &hoplite_tests::TestClient| client.svid.as_ref().unwrap().leaf().serial().to_owned();
    assert_eq!(serial(&again), serial(&before));
    let token = until("a JWT-SVID", async || {
        let channel = hoplite_wire::channel::unix(world.agent_socket()).await.ok()?;
        let mut request = tonic::Request::new(JwtsvidRequest {
            audience: vec!["vault".to_owned()],
            spiffe_id: String::new(),
        });
        request
            .metadata_mut()
            .insert("workload.spiffe.io", "true".parse().unwrap());
        let answer = SpiffeWorkloadApiClient::new(channel)
            .fetch_jwtsvid(request)
            .await
            .ok()?;
        Some(answer.into_inner().svids.remove(0))
    })
    .await;
    assert_eq!(token.spiffe_id, id(&path));

    // A stream is told of another template at once, and of its end.
    let mut stream = WorkloadApi::open(&world.workload_api()).await.unwrap();
    assert_eq!(stream.next().await.unwrap().svids[0].spiffe_id().path(), path);
    world
        .update(&entry, |entry| entry.spiffe_id = id("/people/{unix:uid}"))
        .await;
    let other = path.replace("/uid/", "/people/");
    until("the other name", async || match stream.next().await {
        Ok(identity) => (identity.svids[0].spiffe_id().path() == other).then_some(()),
        // It took too long to be minted.
        Err(_) => {
            stream = WorkloadApi::open(&world.workload_api()).await.unwrap();
            None
        }
    })
    .await;
    drop(stream);

    let before = world.fetch(&other).await.unwrap().unwrap();
    kept(&world).await;
    world.stop_ca().await;
    world.stop_agent().await;
    world.start_agent().await;
    let after = world.fetch(&other).await.unwrap().unwrap();
    assert_eq!(serial(&after), serial(&before), "the one from the disk");
    world.start_ca().await;
    world.unregister(&entry).await;
    until("it is gone", async || {
        matches!(world.fetch(&other).await, Err(FetchError::Denied(_))).then_some(())
    })
    .await;
    let refused = world.fetch(&other).await.unwrap_err().to_string();
    assert!(refused.contains("no entry matches"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_fits_a_template_and_a_fixed_entry_has_both_and_the_order_is_the_same() {
    let world = World::start().await;
    let path = own_path();
    world.register("/fixed", &own_selectors(), None).await;
    world.register("/uid/{unix:uid}", &[], None).await;
    let names = until("both", async || {
        let identity = WorkloadApi::open(&world.workload_api()).await.ok()?.next().await.ok()?;
        (identity.svids.len() == 2).then(|| {
            let paths = identity.svids.iter().map(|svid| svid.spiffe_id().path().to_owned());
            paths.collect::<Vec<_>>()
        })
    })
    .await;
    // The one with the most selectors first: a value counts as one.
    assert_eq!(names, ["/fixed".to_owned(), path]);
}
