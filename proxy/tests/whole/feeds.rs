//! Policy while it changes, TCP under it, and a log that cannot be written.

use std::process::{Command, Stdio};

use hoplite_audit::{Outcome, Phase};
use hoplite_proxy::{InboundProtocol, OutboundProtocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{App, World, eventually, exchange, get, status};

const CONNECT: &str = r#"
@id("edge-connects")
permit (principal == Hoplite::Workload::"spiffe://demo.hoplite/edge", action == Hoplite::Action::"connect", resource == Hoplite::Service::"db");
"#;

const ANYBODY: &str = r#"@id("anybody") permit (principal, action, resource);"#;

#[tokio::test]
async fn tcp_is_carried_while_policy_permits_it() {
    let world = World::new();
    world.policy("db.cedar", CONNECT);
    let app = App::tcp_echo().await;
    let callee = world.inbound("db", InboundProtocol::Tcp, app.address).await;
    let caller = world
        .outbound("edge", OutboundProtocol::Tcp, "db", callee.inbound("db"))
        .await;
    let mut stream = TcpStream::connect(caller.outbound("db")).await.unwrap();
    let mut say = async |text: &str| {
        stream.write_all(text.as_bytes()).await?;
        let mut heard = vec![0; text.len()];
        stream
            .read_exact(&mut heard)
            .await
            .map(|_| assert_eq!(heard, text.as_bytes()))
    };
    say("hello").await.unwrap();

    // Another policy with the same answer: the connection lives on, and nothing is recorded.
    let revision = callee.status().await["policy"]["revision"].clone();
    world.policy(
        "other.cedar",
        r#"@id("other") forbid (principal, action, resource == Hoplite::Service::"other");"#,
    );
    eventually("another policy is in force", async || {
        callee.status().await["policy"]["revision"] != revision
    })
    .await;
    say("still here").await.unwrap();
    assert_eq!(world.records("db").len(), 1);

    world.policy("db.cedar", r#"@id("nobody") forbid (principal, action, resource);"#);
    eventually("it is cut off", async || say("?").await.is_err()).await;
    eventually("it is recorded", async || world.records("db").len() == 2).await;
    let records = world.records("db");
    let said: Vec<_> = records
        .iter()
        .map(|record| (record.phase, record.outcome, record.determining.join(",")))
        .collect();
    let expected = [
        (Phase::Connect, Outcome::Allow, "edge-connects".into()),
        (Phase::Recheck, Outcome::Forbid, "nobody".into()),
    ];
    assert_eq!(said, expected);
    let connected = app.count();

    let again = TcpStream::connect(caller.outbound("db")).await.unwrap();
    assert_eq!(exchange(again, "hello").await, "", "a new one is refused");
    assert_eq!(app.count(), connected, "and does not reach the service");
}

#[tokio::test]
async fn a_broken_policy_leaves_the_old_one_in_force() {
    let world = World::new();
    world.policy("orders.cedar", ANYBODY);
    let app = App::http().await;
    let proxy = world.inbound("orders", InboundProtocol::Http, app.address).await;
    let ask = async || status(&world.raw(proxy.inbound("orders"), "/orders", &get("/")).await);
    assert_eq!(ask().await, 200);
    let good = proxy.status().await["policy"]["revision"].clone();

    world.policy(
        "orders.cedar",
        "@id(\"anybody\")\npermit (principal, action, resuorce);",
    );
    eventually("the fault is known", async || {
        proxy.status().await["policy"]["faults"][0]["line"] == 2
    })
    .await;
    let broken = proxy.status().await;
    assert_eq!(broken["policy"]["faults"][0]["file"], "orders.cedar");
    assert_eq!(broken["policy"]["revision"], good);
    assert_eq!(broken["policy"]["in_force"], "live");
    assert_eq!(ask().await, 200, "the old policy is in force");

    world.policy("orders.cedar", r#"@id("nobody") forbid (principal, action, resource);"#);
    eventually("mended", async || ask().await == 403).await;
    assert_eq!(proxy.status().await["policy"]["faults"], serde_json::json!([]));
}

#[tokio::test]
async fn without_a_policy_everything_is_denied_and_it_says_why() {
    let world = World::new();
    let app = App::http().await;
    let proxy = world.inbound("orders", InboundProtocol::Http, app.address).await;
    let ask = async || status(&world.raw(proxy.inbound("orders"), "/orders", &get("/")).await);
    assert_eq!(ask().await, 403);
    let denied = proxy.status().await;
    assert_eq!(denied["policy"]["in_force"], "deny_all");
    assert!(
        denied["policy"]["reason"].as_str().unwrap().contains("policies"),
        "{denied}"
    );
    assert!(world.records("orders")[0].reason.is_some(), "the record says why too");
    world.policy("orders.cedar", ANYBODY);
    eventually("a policy has come", async || ask().await == 200).await;
    std::fs::remove_file(world.path("policies").join("orders.cedar")).unwrap();
    eventually("it has gone", async || ask().await == 403).await;
    assert_eq!(app.count() > 0, proxy.status().await["name"] == "orders");
}

/// The program itself, with a disk that is full after a few kilobytes.
#[tokio::test]
async fn what_cannot_be_recorded_is_not_forwarded() {
    let world = World::new();
    world.policy("anybody.cedar", ANYBODY);
    let app = App::http().await;
    let agent = world.agent("orders", &world.svid("/orders")).await;
    let listen = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let config = format!(
        "name = \"orders\"\nworkload_api = \"{}\"\npolicy_dir = \"policies\"\naudit_dir = \"orders-audit\"\n\
         admin_socket = \"orders.sock\"\nworkers = 2\n[[inbound]]\nlisten = \"{listen}\"\nservice = \"orders\"\n\
         protocol = \"http\"\nforward_to = \"{}\"\n",
        agent.address, app.address
    );
    std::fs::write(world.path("proxy.toml"), config).unwrap();
    // Ignored, the signal becomes an error of the write, as a full disk is.
    let mut child = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$0\" run --config \"$1\""])
        .args([
            env!("CARGO_BIN_EXE_hoplite-proxy").as_ref(),
            world.path("proxy.toml").as_os_str(),
        ])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it listens", async || TcpStream::connect(listen).await.is_ok()).await;
    let ask = async || world.raw(listen, "/orders", &get("/")).await;
    assert_eq!(status(&ask().await), 200);
    let (mut answer, mut allowed) = (String::new(), 1);
    for _ in 0..500 {
        answer = ask().await;
        if status(&answer) != 200 {
            break;
        }
        allowed += 1;
    }
    assert_eq!(status(&answer), 503, "{answer}");
    assert!(answer.contains("unrecorded"), "{answer}");
    // Nobody is served by a proxy that can only refuse: it ends, and its supervisor starts another.
    let ended = tokio::task::spawn_blocking(move || child.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(ended.code(), Some(1));
    assert_eq!(app.count(), allowed, "nothing more was forwarded");
}
