//! The conformance suite on ours: a Workload API in a whole world, as a caller that has an identity and as one that has none, and the
//! CA's bundle endpoint, by its SVID and by a certificate of the web.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::time::{Duration, SystemTime};

use hoplite_tests::{World, id, own_selectors, until};
use hoplite_wire::WorkloadApi;
use hoplite_wire::ca::PrepareAuthorityRequest;
use serde_json::Value;

use crate::federation::{web, web_url, world};

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

/// All clauses of federation and of bundles that can be judged from outside at an endpoint. What is not among them: B-5, which is about
/// sets of bundles in a file, and F-6, which is about those who fetch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_bundle_endpoint_keeps_every_clause() {
    const DOMAIN: &str = "bundle.test";
    let dir = tempfile::tempdir().unwrap();
    let web = web(dir.path());
    let (by_svid, by_name) = (world(DOMAIN, &web, false).await, world(DOMAIN, &web, true).await);
    for world in [&by_svid, &by_name] {
        // Two authorities of a kind: one signs, one is prepared.
        for jwt in [false, true] {
            let request = PrepareAuthorityRequest { jwt };
            world.admin().await.prepare_authority(request).await.unwrap();
        }
    }
    let known = dir.path().join("known.pem");
    fs::write(&known, by_svid.bundle().to_pem()).unwrap();
    let (known, roots) = (known.to_str().unwrap(), web.authority.to_str().unwrap());
    let spiffe_url = format!("https://{}", by_svid.bundle_endpoint());
    let (web_url, id) = (web_url(by_name.bundle_endpoint()), by_svid.id("/hoplite/ca"));
    let judge = async |url: &str, profile: &str, more: [&str; 4]| {
        let of = ["--bundle-endpoint", url, "--profile", profile, "--trust-domain", DOMAIN];
        let how = ["--strict", "--output", "json", "--only", "F-*", "--only", "B-*"];
        let words = of.into_iter().chain(more).chain(how);
        judged(words.filter(|word| !word.is_empty()).map(str::to_owned).collect()).await
    };
    let spiffe = ["--endpoint-id", &id, "--endpoint-bundle", known];
    for (url, profile, more) in [
        (&spiffe_url, "https_spiffe", spiffe),
        (&web_url, "https_web", ["--web-roots", roots, "", ""]),
    ] {
        let (code, report) = judge(url, profile, more).await;
        assert_eq!(
            (code, with_result(&report, "fail")),
            (0, Vec::<String>::new()),
            "{profile}"
        );
        let skipped: Vec<String> = with_result(&report, "skip");
        let unjudged = skipped
            .iter()
            .filter(|said| !["B-5", "F-6"].iter().any(|clause| said.starts_with(clause)));
        assert_eq!(unjudged.collect::<Vec<_>>(), Vec::<&String>::new(), "{profile}");
        let passed = report["summary"]["passed"].as_u64().unwrap();
        assert!(passed >= 15, "{profile}: {passed} passed: {report:#}");
    }
    // It can be failed: another who is expected there is not who answers.
    let other = by_svid.id("/other");
    let (code, report) = judge(
        &spiffe_url,
        "https_spiffe",
        ["--endpoint-id", &other, "--endpoint-bundle", known],
    )
    .await;
    let failed = with_result(&report, "fail");
    assert_eq!((code, failed.len()), (1, 1), "{failed:?}");
    assert!(failed[0].starts_with("F-4"), "{failed:?}");
}
