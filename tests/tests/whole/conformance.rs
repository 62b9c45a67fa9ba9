//! The conformance suite on ours: a Workload API in a whole world, as a caller that has an identity and as one that has none.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::time::{Duration, SystemTime};

use hoplite_tests::{World, id, own_selectors, until};
use hoplite_wire::WorkloadApi;
use serde_json::Value;

/// Runs the suite as people do, and gives the exit code and the report.
async fn judged(arguments: Vec<String>) -> (u8, Value) {
    let run = move || {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let words = ["spiffe-conformance".to_owned()].into_iter().chain(arguments);
        let code = spiffe_conformance::cli::run(words, &mut out, &mut err, SystemTime::now);
        let report = serde_json::from_slice(&out);
        (
            code,
            report.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&[out, err].concat()))),
        )
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// Each clause with this result.
fn with_result(report: &Value, result: &str) -> Vec<String> {
    let clauses = report["clauses"].as_array().unwrap().iter();
    let found = clauses.filter(|clause| clause["result"] == result);
    found
        .map(|clause| format!("{} {}", clause["id"].as_str().unwrap(), clause["details"]))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_workload_api_keeps_every_clause() {
    let world = World::start().await;
    let socket = format!("unix://{}", world.agent_socket().display());
    let words = |more: &[&str]| {
        let words = ["--socket", &socket, "--strict", "--output", "json"]
            .into_iter()
            .chain(more.iter().copied());
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    let (code, report) = judged(words(&[])).await;
    assert_eq!(
        (code, with_result(&report, "fail")),
        (0, Vec::<String>::new()),
        "of a stranger"
    );
    assert!(
        with_result(&report, "pass").iter().any(|said| said.starts_with("W-6c")),
        "{report:#}"
    );

    let entry = world
        .register("/conformance/one", &own_selectors(), Some(Duration::from_secs(12)))
        .await;
    world.register("/conformance/two", &own_selectors(), None).await;
    world.update(&entry, |entry| entry.hint = "main".to_owned()).await;
    until("both SVIDs", async || {
        let mut api = WorkloadApi::open(world.agent_socket().to_str().unwrap()).await.ok()?;
        let update = api.next().await.ok()?;
        (update.svids.len() == 2).then_some(())
    })
    .await;
    // A rotation falls into the time that is watched.
    let (code, report) = judged(words(&["--watch", "8"])).await;
    assert_eq!(
        (code, with_result(&report, "fail")),
        (0, Vec::<String>::new()),
        "of {}",
        id("/conformance/one")
    );
    let passed = report["summary"]["passed"].as_u64().unwrap();
    assert!(
        passed >= 70,
        "{passed} passed; skipped: {:#?}",
        with_result(&report, "skip")
    );
}
