//! One inbound HTTP listener and its callers: what is forwarded, what is refused, and what the log says of both.

use hoplite_audit::{Outcome, Phase};
use hoplite_proxy::InboundProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{App, Proxy, World, decision, eventually, exchange, get, status};

const POLICY: &str = r#"
@id("edge-reads")
permit (principal in Hoplite::Path::"demo.hoplite/edge", action in Hoplite::Action::"read", resource in Hoplite::Service::"orders");
@id("edge-posts")
permit (principal in Hoplite::Path::"demo.hoplite/edge", action == Hoplite::Action::"POST", resource in Hoplite::Service::"orders");
@id("nobody-deletes")
forbid (principal, action == Hoplite::Action::"DELETE", resource in Hoplite::Service::"orders");
"#;

async fn world() -> (World, App, Proxy) {
    let world = World::new();
    world.policy("orders.cedar", POLICY);
    world.policy("routes.toml", "[orders]\nroutes = [\"GET /orders/{id}\"]\n");
    let app = App::http().await;
    let proxy = world.inbound("orders", InboundProtocol::Http, app.address).await;
    (world, app, proxy)
}

#[tokio::test]
async fn an_allowed_request_is_recorded_and_forwarded() {
    let (world, app, proxy) = world().await;
    let answer = world
        .raw(proxy.inbound("orders"), "/orders", &get("/orders/./7?x=1"))
        .await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(
        answer.contains("GET /orders/7?x=1 "),
        "the canonical path goes upstream: {answer}"
    );
    assert!(answer.contains("\nhost: orders\n"), "{answer}");
    assert!(
        answer.contains("x-forwarded-client-cert: By=spiffe://demo.hoplite/orders;Hash="),
        "{answer}"
    );
    assert!(answer.contains(";URI=spiffe://demo.hoplite/edge\n"), "{answer}");
    assert_eq!(app.count(), 1);
    let decision = decision(&answer);
    assert!(
        !answer.contains("forged"),
        "the service cannot speak for the proxy: {answer}"
    );
    let record = world
        .records("orders")
        .into_iter()
        .find(|record| record.id.to_string() == decision)
        .unwrap();
    assert_eq!((record.phase, record.outcome), (Phase::Request, Outcome::Allow));
    assert_eq!(record.principal.as_deref(), Some("spiffe://demo.hoplite/edge"));
    assert_eq!((record.service.as_str(), record.action.as_str()), ("orders", "GET"));
    assert_eq!(record.route.as_deref(), Some("orders:GET /orders/{id}"));
    assert_eq!(record.path.as_deref(), Some("/orders/7"));
    assert_eq!(record.determining, ["edge-reads"]);
    assert_eq!(record.tls.as_deref(), Some("1.3 X25519MLKEM768"));
}

#[tokio::test]
async fn a_denied_request_is_recorded_and_goes_no_further() {
    let (world, app, proxy) = world().await;
    let check = async |caller: &str, request: &str, outcome: Outcome, determining: &[&str]| {
        let answer = world.raw_as(caller, proxy.inbound("orders"), "/orders", request).await;
        assert_eq!(status(&answer), 403, "{answer}");
        let decision = decision(&answer);
        assert!(answer.contains(&format!("\"outcome\":\"{outcome}\"")), "{answer}");
        assert!(answer.contains(&format!("\"decision\":\"{decision}\"")), "{answer}");
        for secret in ["nobody-deletes", "edge-reads", "permit (", "spiffe://", "cedar"] {
            assert!(!answer.contains(secret), "no policy in the answer: {answer}");
        }
        let record = world
            .records("orders")
            .into_iter()
            .find(|record| record.id.to_string() == decision)
            .unwrap();
        assert_eq!(record.outcome, outcome);
        assert_eq!(record.determining, determining);
    };
    check("/batch", &get("/orders/7"), Outcome::NoPermit, &[]).await;
    check(
        "/edge",
        &get("/x").replace("GET", "DELETE"),
        Outcome::Forbid,
        &["nobody-deletes"],
    )
    .await;
    check("/edge", &get("/x").replace("GET", "PUT"), Outcome::NoPermit, &[]).await;
    assert_eq!(app.count(), 0, "nothing reached the service");
}

#[tokio::test]
async fn an_ambiguous_request_is_refused_and_recorded() {
    let (world, app, proxy) = world().await;
    let check = async |request: String, expected: u16| {
        let before = world.records("orders").len();
        let answer = world.raw(proxy.inbound("orders"), "/orders", &request).await;
        assert_eq!(status(&answer), expected, "{request:?} got {answer}");
        let records = world.records("orders");
        let record = records
            .get(before)
            .unwrap_or_else(|| panic!("{request:?} is not recorded"));
        assert_eq!(record.outcome, Outcome::Malformed, "{request:?}");
        assert_eq!(record.id.to_string(), decision(&answer));
        assert!(record.reason.is_some());
    };
    for path in ["/a%2fb", "/a%5cb", "/..%2f", "/%00", "/a\\b", "/%zz", "/a;b"] {
        check(get(path), 400).await;
    }
    check("GET / HTTP/1.1\r\nhost: orders\r\nhost: ledger\r\n\r\n".to_owned(), 400).await;
    check("GET http://ledger/ HTTP/1.1\r\n\r\n".to_owned(), 400).await;
    check("GET / HTTP/1.1\r\n\r\n".to_owned(), 400).await;
    check(
        "GET / HTTP/1.1\r\nhost: orders\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n".to_owned(),
        501,
    )
    .await;
    check(
        "POST / HTTP/1.1\r\nhost: orders\r\nexpect: a-miracle\r\ncontent-length: 0\r\n\r\n".to_owned(),
        417,
    )
    .await;
    check(
        "POST / HTTP/1.1\r\nhost: orders\r\nx-http-method-override: DELETE\r\ncontent-length: 0\r\n\r\n".to_owned(),
        400,
    )
    .await;
    assert_eq!(app.count(), 0, "nothing reached the service");
}

/// Hazards 7 to 10: however a body is framed, the service sees at most the one request that was decided.
#[tokio::test]
async fn a_request_cannot_be_smuggled_behind_another() {
    let (world, app, proxy) = world().await;
    let smuggled = "DELETE /orders/7 HTTP/1.1\r\nhost: orders\r\n\r\n";
    let check = async |head: &str, body: String| {
        let before = app.count();
        let answer = world
            .raw(proxy.inbound("orders"), "/orders", &format!("{head}\r\n{body}"))
            .await;
        let seen = app.count() - before;
        assert!(seen <= 1, "{head:?}: the service saw {seen} requests");
        assert!(
            !answer.contains("\r\nDELETE") && !answer.contains("\nDELETE /orders/7 ["),
            "{head:?}: {answer}"
        );
    };
    let chunked = format!("0\r\n\r\n{smuggled}");
    let post = "POST / HTTP/1.1\r\nhost: orders\r\n";
    check(
        &format!(
            "{post}content-length: {}\r\ntransfer-encoding: chunked\r\n",
            chunked.len()
        ),
        chunked.clone(),
    )
    .await;
    check(
        &format!("{post}transfer-encoding: chunked\r\ncontent-length: 4\r\n"),
        chunked.clone(),
    )
    .await;
    check(
        &format!("{post}transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n"),
        chunked.clone(),
    )
    .await;
    check(&format!("{post}transfer-encoding: xchunked\r\n"), chunked.clone()).await;
    check(&format!("{post}transfer-encoding : chunked\r\n"), chunked.clone()).await;
    check(&format!("{post}transfer-encoding:\r\n chunked\r\n"), chunked.clone()).await;
    check(
        &format!("{post}content-length: 0\r\ncontent-length: 44\r\n"),
        smuggled.to_owned(),
    )
    .await;
    check(&format!("{post}content-length: -1\r\n"), smuggled.to_owned()).await;
    check(&format!("{post}content-length: +0\r\n"), smuggled.to_owned()).await;
    check(
        "POST / HTTP/1.0\r\nhost: orders\r\ntransfer-encoding: chunked\r\n",
        chunked.clone(),
    )
    .await;
    check(
        "GET / HTTP/1.1\r\nhost: orders\r\nupgrade: websocket\r\nconnection: upgrade\r\n",
        smuggled.to_owned(),
    )
    .await;
    check("GET /\0 HTTP/1.1\r\nhost: orders\r\n", smuggled.to_owned()).await;
}

/// What never becomes a request is in the log too, with who sent it.
#[tokio::test]
async fn what_is_no_http_is_recorded() {
    let (world, app, proxy) = world().await;
    let request = "GET / HTTP/1.1\r\nno colon here\r\n\r\n";
    let answer = world.raw(proxy.inbound("orders"), "/orders", request).await;
    assert_eq!(status(&answer), 400, "{answer}");
    eventually("a record of it", async || {
        world.records("orders").iter().any(|record| {
            record.outcome == Outcome::Malformed
                && record.principal.as_deref() == Some("spiffe://demo.hoplite/edge")
                && record
                    .reason
                    .as_deref()
                    .is_some_and(|reason| reason.starts_with("unparsed: "))
        })
    })
    .await;
    assert_eq!(app.count(), 0);
}

/// Hazard 14: what only a proxy may say is never taken from outside, in any spelling.
#[tokio::test]
async fn identity_headers_from_outside_do_not_arrive() {
    let (world, _app, proxy) = world().await;
    for name in [
        "x-forwarded-client-cert",
        "X-Forwarded-Client-Cert",
        "x_forwarded_client_cert",
        "x-forwarded_client-cert",
        "x-hoplite-decision",
        "x-hoplite-anything",
        "X_Hoplite_Anything",
        "x-envoy-external-address",
        "x-envoy-peer-metadata",
        "l5d-client-id",
        "l5d_client_id",
    ] {
        for connection in ["close", "close, x-forwarded-client-cert"] {
            let request = format!(
                "GET / HTTP/1.1\r\nhost: orders\r\nconnection: {connection}\r\n{name}: spoofed\r\nx-mine: kept\r\n\r\n"
            );
            let answer = world.raw(proxy.inbound("orders"), "/orders", &request).await;
            assert_eq!(status(&answer), 200, "{name}");
            assert!(!answer.contains("spoofed"), "{name}: {answer}");
            assert!(answer.contains("x-mine: kept"), "{name}: {answer}");
            let said = answer
                .matches("x-forwarded-client-cert: By=spiffe://demo.hoplite/orders;")
                .count();
            assert_eq!(said, 1, "{name} with `connection: {connection}`: {answer}");
        }
    }
}

#[tokio::test]
async fn a_body_is_asked_for_only_after_the_decision() {
    let (world, _app, proxy) = world().await;
    let svid = world.svid("/edge");
    let head = "POST /orders HTTP/1.1\r\nhost: orders\r\nconnection: close\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n";
    let mut stream = world
        .connect(proxy.inbound("orders"), Some(&svid), "/orders")
        .await
        .unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    let answer = exchange(stream, "hello").await;
    assert_eq!(status(&answer), 200);
    assert!(answer.contains("hello"), "{answer}");
    let answer = world.raw_as("/batch", proxy.inbound("orders"), "/orders", head).await;
    assert_eq!(status(&answer), 403, "denied without asking for the body: {answer}");
}

#[tokio::test]
async fn a_service_that_is_away_is_a_502_with_its_decision() {
    let world = World::new();
    world.policy("orders.cedar", POLICY);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let proxy = world.inbound("orders", InboundProtocol::Http, nobody).await;
    let answer = world.raw(proxy.inbound("orders"), "/orders", &get("/")).await;
    assert_eq!(status(&answer), 502, "{answer}");
    assert!(answer.contains("upstream_unreachable"), "{answer}");
    decision(&answer);
}

#[tokio::test]
async fn a_kept_connection_carries_many_requests() {
    let (world, app, proxy) = world().await;
    let svid = world.svid("/edge");
    let mut stream = world
        .connect(proxy.inbound("orders"), Some(&svid), "/orders")
        .await
        .unwrap();
    for n in 0..20 {
        let request = format!(
            "POST /orders HTTP/1.1\r\nhost: orders\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{n:02}\r\n0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        while !answer.ends_with(&format!("\n{n:02}")) {
            let mut buffer = [0; 4096];
            let read = stream.read(&mut buffer).await.unwrap();
            assert!(read > 0, "{answer}");
            answer.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
        assert_eq!(status(&answer), 200);
    }
    assert_eq!(app.count(), 20);
    drop(stream);
    eventually("the connection is forgotten", async || {
        proxy.status().await["connections"] == 0
    })
    .await;
}

#[tokio::test]
async fn stopping_finishes_what_is_under_way() {
    let (world, _app, proxy) = world().await;
    let svid = world.svid("/edge");
    let mut stream = world
        .connect(proxy.inbound("orders"), Some(&svid), "/orders")
        .await
        .unwrap();
    stream
        .write_all(b"POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: 5\r\n\r\nhe")
        .await
        .unwrap();
    eventually("it is under way", async || world.records("orders").len() == 1).await;
    let address = proxy.inbound("orders");
    let stopping = tokio::spawn(proxy.running.stop());
    eventually("nothing new is accepted", async || {
        tokio::net::TcpStream::connect(address).await.is_err()
    })
    .await;
    let answer = exchange(stream, "llo").await;
    assert_eq!(status(&answer), 200);
    assert!(
        answer.contains("hello") && answer.contains("connection: close"),
        "{answer}"
    );
    stopping.await.unwrap();
}

const TENANT: &str = r#"
@id("own-tenant")
permit (principal in Hoplite::Path::"demo.hoplite/edge", action == Hoplite::Action::"GET", resource in Hoplite::Service::"orders")
when { context.hdr has "x-tenant" && context.seg has s0 && context.seg.s0 == context.hdr["x-tenant"] };
@id("no-debug")
forbid (principal, action, resource in Hoplite::Service::"orders") when { context has hdr && context.hdr has "x-debug" };
"#;

#[tokio::test]
async fn what_policy_sees_of_a_header_is_what_the_service_gets() {
    let world = World::new();
    world.policy("orders.cedar", TENANT);
    world.policy("headers.toml", "headers = ['x-tenant', 'x-debug']");
    let app = App::http().await;
    let proxy = world.inbound("orders", InboundProtocol::Http, app.address).await;
    let ask = async |fields: &str| {
        let request = get("/acme").replacen("\r\n", &format!("\r\n{fields}"), 1);
        let before = world.records("orders").len();
        let answer = world.raw(proxy.inbound("orders"), "/orders", &request).await;
        let record = world.records("orders").swap_remove(before);
        assert_eq!(record.id.to_string(), decision(&answer));
        (answer, record)
    };
    for (fields, code, outcome) in [
        ("x-tenant: acme\r\n", 200, Outcome::Allow),
        ("X-Tenant:   acme  \r\n", 200, Outcome::Allow),
        ("x-tenant: other\r\n", 403, Outcome::NoPermit),
        ("", 403, Outcome::NoPermit),
        ("x-tenant: acme\r\nx-debug: 1\r\n", 403, Outcome::Forbid),
        // Taken off before the service sees it, so it is not there for policy either.
        ("x-tenant: acme\r\nconnection: x-tenant\r\n", 403, Outcome::NoPermit),
        (
            "x-tenant: acme\r\nx-debug: 1\r\nconnection: x-debug\r\n",
            200,
            Outcome::Allow,
        ),
        ("x-tenant: acme\r\nx-tenant: acme\r\n", 400, Outcome::Malformed),
        ("x-tenant: acme,other\r\n", 400, Outcome::Malformed),
        ("x-tenant: acme\r\nx_tenant: other\r\n", 400, Outcome::Malformed),
        ("x-tenant: acm\u{e9}\r\n", 400, Outcome::Malformed),
        ("x-tenant:\r\n", 400, Outcome::Malformed),
    ] {
        let (answer, record) = ask(fields).await;
        assert_eq!(
            (status(&answer), record.outcome),
            (code, outcome),
            "{fields:?}: {answer}\n{record:?}"
        );
        if outcome == Outcome::Malformed {
            let reason = record.reason.unwrap();
            assert!(
                reason.starts_with("header_twice: ") || reason.starts_with("header_value: "),
                "{reason}"
            );
            assert!(answer.contains(reason.split(':').next().unwrap()), "{answer}");
            assert_eq!(record.path.as_deref(), Some("/acme"));
            continue;
        }
        assert_eq!(record.headers.len(), 2, "{record:?}");
        let tenant = record.headers["x-tenant"].as_deref();
        if code == 200 {
            assert_eq!(tenant, Some("acme"));
            assert!(answer.contains("\nx-tenant: acme\n"), "{answer}");
            assert!(!answer.contains("x-debug"), "{answer}");
        }
    }
    assert_eq!(app.count(), 3);
}
