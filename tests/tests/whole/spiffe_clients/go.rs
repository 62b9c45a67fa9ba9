//! go-spiffe: its watch, its sources, and its TLS on both sides of our proxy.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use hoplite_tests::{TRUST_DOMAIN, World, get, id, peers, until};
use http::StatusCode;
use serde_json::Value;

use super::{TTL, backend, quick, told};

/// A Go server that ends with this value.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_spiffe_watches_calls_and_serves() {
    let Some(program) = peers::go("go_spiffe_watches_calls_and_serves") else {
        return;
    };
    let world = World::start().await;
    let (_app, backend) = backend(&world).await;
    let socket = world.workload_api();
    let judge = async |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(arguments);
        told(peers::output(command).await)
    };

    // Not registered yet: refused, with what the agent saw.
    let (code, lines, errors) = judge(&["watch", &socket, "1"]).await;
    assert_eq!(code, Some(3), "{lines:?} {errors}");
    let selectors = peers::selectors(&program);
    for selector in &selectors {
        let detail = lines[0]["detail"].as_str().unwrap();
        assert!(detail.contains(selector), "`{selector}` is not told: {detail}");
    }

    world.register("/client", &selectors, Some(TTL)).await;
    until("go-spiffe gets an SVID", async || {
        (judge(&["watch", &socket, "1"]).await.0 == Some(0)).then_some(())
    })
    .await;
    // It rotates on one stream.
    let (code, lines, errors) = judge(&["watch", &socket, "3"]).await;
    assert_eq!((code, lines.len()), (Some(0), 3), "{lines:?} {errors}");
    assert!(lines.iter().all(|line| line["spiffe_id"] == id("/client")), "{lines:?}");
    assert_ne!(lines[0]["serial"], lines[2]["serial"], "{lines:?}");
    let (code, lines, errors) = judge(&["bundle", &socket]).await;
    assert_eq!(
        (code, &lines[0]["trust_domain"]),
        (Some(0), &TRUST_DOMAIN.into()),
        "{lines:?} {errors}"
    );

    let url = format!("https://{}/accounts/1", backend.inbound("backend"));
    let (code, lines, errors) = judge(&["call", &socket, &id("/backend"), "GET", &url]).await;
    assert_eq!(code, Some(0), "{lines:?} {errors}");
    assert_eq!(
        (
            &lines[0]["status"],
            &lines[0]["proto"],
            &lines[0]["tls"],
            &lines[0]["peer"]
        ),
        (
            &200.into(),
            &"HTTP/2.0".into(),
            &"TLS 1.3".into(),
            &id("/backend").into()
        )
    );
    let (code, lines, errors) = judge(&["call", &socket, &id("/backend"), "DELETE", &url]).await;
    assert_eq!(
        (code, &lines[0]["status"]),
        (Some(0), &403.into()),
        "{lines:?} {errors}"
    );
    let (code, lines, _) = judge(&["call", &socket, &id("/somebody-else"), "GET", &url]).await;
    assert_eq!(code, Some(1), "{lines:?}");
}

/// A service that has go-spiffe in it needs no proxy of its own for our proxies to call it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outbound_proxy_calls_a_go_spiffe_server() {
    let Some(program) = peers::go("an_outbound_proxy_calls_a_go_spiffe_server") else {
        return;
    };
    let world = World::start().await;
    world.register("/client", &peers::selectors(&program), Some(TTL)).await;
    let socket = world.workload_api();
    until("go-spiffe gets an SVID", async || {
        let mut command = Command::new(&program);
        command.args(["watch", &socket, "1"]);
        (told(peers::output(command).await).0 == Some(0)).then_some(())
    })
    .await;
    let mut child = Command::new(&program)
        .args(["serve", &socket, &id("/frontend")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = child.stdout.take().unwrap();
    let _server = Server(child);
    let first = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).map(|_| line)
    });
    let first: Value = serde_json::from_str(&first.await.unwrap().unwrap()).unwrap();
    let address = first["address"].as_str().unwrap().parse().unwrap();

    let frontend = world.proxy("frontend").calls("client", address).start().await;
    let answer = get(frontend.outbound("client"), "/").await.unwrap();
    assert_eq!((answer.status, answer.body), (StatusCode::OK, id("/frontend")));
    // Another workload's proxy is refused by go-spiffe, and says so.
    let other = world.proxy("other").calls("client", address).start().await;
    let answer = get(other.outbound("client"), "/").await.unwrap();
    assert_eq!(answer.status, StatusCode::BAD_GATEWAY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_spiffe_has_a_jwt_source() {
    let Some(program) = peers::go("go_spiffe_has_a_jwt_source") else {
        return;
    };
    let world = World::start().await;
    world.register("/client", &peers::selectors(&program), None).await;
    let socket = world.workload_api();
    let line = until("go-spiffe gets a JWT-SVID", async || {
        let mut command = Command::new(&program);
        command.args(["jwt", &socket, "vault"]);
        let (code, mut lines, _) = told(peers::output(command).await);
        (code == Some(0)).then(|| lines.remove(0))
    })
    .await;
    assert_eq!(
        (&line["spiffe_id"], &line["agents"], &line["other"]),
        (&id("/client").into(), &id("/client").into(), &"InvalidArgument".into())
    );
    quick(&line, "go-spiffe");
}
