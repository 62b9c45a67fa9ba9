//! The guide to AuthZEN, as it stands there: curl asks the agent over its socket.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking, its helpers too"
)]

use std::process::Command;

use hoplite_audit::Outcome;
use hoplite_tests::peers;
use hoplite_tests::{World, id};
use serde_json::Value;

#[path = "../../page/mod.rs"]
mod page;

const POLICY: &str = r#"
@id("ledger/web-reads") permit (principal == Hoplite::Workload::"spiffe://world.test/web",
    action in Hoplite::Action::"read", resource in Hoplite::Service::"ledger")
    when { context.conn.src.isInRange(ip("10.0.0.0/8")) && context.host == "ledger.example" };
"#;

/// The command of the guide with other values.
fn guide(values: &[(&str, &str)]) -> String {
    let blocks = page::blocks("docs/guide/authorize-from-anything.md").into_iter();
    let command = blocks.filter(|block| block.has("ask")).map(|block| block.text).next();
    let command = command.unwrap();
    values.iter().fold(command, |command, (from, to)| {
        assert!(command.contains(from), "the guide has no {from}");
        command.replace(from, to)
    })
}

async fn run(command: &str) -> Value {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]);
    let output = peers::output(shell).await;
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_speaks_http_and_json_asks_the_agent() {
    let Some(curl) = peers::curl("whoever_speaks_http_and_json_asks_the_agent") else {
        return;
    };
    let mut world = World::start().await;
    world.policy(POLICY);
    world.authorize("ledger", "/ledger").await;
    world.register("/ledger", &peers::selectors(&curl), None).await;
    let socket = world.agent_socket().display().to_string();
    let web = [
        ("/run/hoplite/agent/agent.sock", socket.as_str()),
        ("spiffe://prod.example/web", &id("/web")),
    ];
    let told = run(&guide(&web)).await;
    assert_eq!(told["decision"], true, "{told}");
    let record = world.record(told["context"]["id"].as_str().unwrap());
    assert_eq!((record.outcome, record.principal), (Outcome::Allow, Some(id("/web"))));
    assert_eq!(record.vouched_by, Some(id("/ledger")));
    assert_eq!(record.path.as_deref(), Some("/accounts/7"));

    let mallory = [web[0], ("spiffe://prod.example/web", &id("/mallory"))];
    for (command, outcome) in [
        (guide(&mallory), Outcome::NoPermit),
        (guide(&[web[0], web[1], ("10.1.2.3", "192.0.2.1")]), Outcome::NoPermit),
        (
            guide(&[web[0], web[1], ("/accounts/7", "//accounts/7")]),
            Outcome::Malformed,
        ),
        (
            guide(&[web[0], web[1], ("\"context\":", "\"ctx\":")]),
            Outcome::Malformed,
        ),
    ] {
        let told = run(&command).await;
        assert_eq!(told["decision"], false, "{command}\n{told}");
        let record = world.record(told["context"]["id"].as_str().unwrap());
        assert_eq!(record.outcome, outcome, "{command}\n{record:?}");
    }
}
