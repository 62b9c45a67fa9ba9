//! gRPC's C core as a judge: a Python service behind a proxy, and its callers before another.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use hoplite_audit::Outcome;
use hoplite_proxy::InboundProtocol;
use hoplite_tests::peers::{self, Process};
use hoplite_tests::{World, until};
use serde_json::Value;

const POLICY: &str = r#"
@id("caller-calls") permit (principal == Hoplite::Workload::"spiffe://world.test/caller", action in Hoplite::Action::"anyHttp", resource);
@id("nobody-pays") forbid (principal, action in Hoplite::Action::"anyHttp", resource) when { context.seg has s1 && context.seg.s1 == "Pay" };
"#;

async fn serve(python: &Path, world: &World, port: u16) -> Process {
    let mut command = Command::new(python);
    command.arg(peers::file("grpc_pair.py"));
    command.args(["serve", "--port", &port.to_string()]);
    let process = Process::start(command, world.dir().join("grpc.log"));
    until("the service serves", async || {
        process.said().contains("serving").then_some(())
    })
    .await;
    process
}

async fn call(python: &Path, target: SocketAddr, methods: &[&str]) -> Vec<Value> {
    let mut command = Command::new(python);
    command.arg(peers::file("grpc_pair.py"));
    command.args(["call", "--target", &target.to_string()]);
    command.args(methods);
    let output = peers::output(command).await;
    assert!(output.status.success(), "{output:?}");
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Denied is 7, away and dying are 14, and each names the record that says more.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_caller_of_grpc_is_told() {
    let Some(python) = peers::python("what_a_caller_of_grpc_is_told") else {
        return;
    };
    let world = World::start().await;
    world.policy(POLICY);
    let port = peers::free_port();
    let service: SocketAddr = ([127, 0, 0, 1], port).into();
    let callee = world
        .proxy("orders")
        .inbound("orders", InboundProtocol::Http2, service)
        .start()
        .await;
    let caller = world
        .proxy("caller")
        .calls("orders", callee.inbound("orders"))
        .start()
        .await;
    let target = caller.outbound("orders");
    let process = serve(&python, &world, port).await;
    let answers = call(&python, target, &["Echo", "Pay", "Echo", "Dies", "Echo"]).await;
    let expected = [
        ("OK", 1, Outcome::Allow),
        ("PERMISSION_DENIED", 0, Outcome::Forbid),
        ("OK", 1, Outcome::Allow),
        ("UNAVAILABLE", 1, Outcome::Allow),
        ("UNAVAILABLE", 0, Outcome::Allow),
    ];
    for (answer, (code, messages, outcome)) in answers.iter().zip(expected) {
        assert_eq!(
            (answer["code"].as_str(), answer["messages"].as_u64()),
            (Some(code), Some(messages)),
            "{answer}"
        );
        let decision = answer["decision"].as_str().unwrap();
        assert_eq!(world.record(decision).outcome, outcome, "{answer}");
        if code != "OK" {
            assert!(answer["detail"].as_str().unwrap().ends_with(decision), "{answer}");
        }
    }
    drop(process);
}
