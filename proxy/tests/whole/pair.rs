//! Two proxies and what lies between them: the callers' side, the peer's identity, rotation.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic is how a test fails"
)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use hoplite_audit::Outcome;
use hoplite_host::shutdown;
use hoplite_proxy::{InboundProtocol, OutboundProtocol};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{App, HOUR, Proxy, World, decision, eventually, exchange, get, id, inbound, outbound, status};

const POLICY: &str = r#"
@id("edge")
permit (principal == Hoplite::Workload::"spiffe://demo.hoplite/edge", action in Hoplite::Action::"anyHttp", resource in Hoplite::Service::"orders")
unless { context.seg has s0 && context.seg.s0 == "secret" };
"#;

async fn pair(protocol: InboundProtocol) -> (World, App, Proxy, Proxy) {
    let world = World::new();
    world.policy("orders.cedar", POLICY);
    let app = App::http().await;
    let callee = world.inbound("orders", protocol, app.address).await;
    let caller = world
        .outbound("edge", OutboundProtocol::Http, "orders", callee.inbound("orders"))
        .await;
    (world, app, caller, callee)
}

async fn call(caller: &Proxy, request: &str) -> String {
    exchange(TcpStream::connect(caller.outbound("orders")).await.unwrap(), request).await
}

#[tokio::test]
async fn a_call_crosses_both_and_the_decision_comes_back() {
    let (world, _app, caller, _callee) = pair(InboundProtocol::Http).await;
    let answer = call(&caller, &get("/orders/7")).await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(answer.contains(";URI=spiffe://demo.hoplite/edge"), "{answer}");
    let allowed = decision(&answer);
    let answer = call(&caller, &get("/secret")).await;
    assert_eq!(status(&answer), 403, "{answer}");
    let denied = decision(&answer);
    let records = world.records("orders");
    let outcome = |id: &str| {
        records
            .iter()
            .find(|record| record.id.to_string() == id)
            .unwrap()
            .outcome
    };
    assert_eq!(
        (outcome(&allowed), outcome(&denied)),
        (Outcome::Allow, Outcome::NoPermit)
    );
}

/// The port of the host, the crumbs of a cookie and a length said twice, in either protocol on either side.
#[tokio::test]
async fn rfc9110_7_2_and_rfc9113_8_2_3_host_and_cookies_cross_two_proxies() {
    for protocol in [InboundProtocol::Http, InboundProtocol::Http2] {
        let (_world, _app, caller, _callee) = pair(protocol).await;
        let (host, line) = match protocol {
            InboundProtocol::Http => ("\nhost: orders:8080\n", "POST / []\n"),
            _ => ("POST / [orders:8080]\n", "POST / [orders:8080]\n"),
        };
        let arrived = |answer: &str| {
            for part in [host, line, "\ncookie: a=1; b=2\n", "\n\nab"] {
                assert!(answer.contains(part), "{protocol:?}: `{part}` is missing from {answer}");
            }
            for once in ["\ncookie: ", "\ncontent-length: 2\n"] {
                assert_eq!(answer.matches(once).count(), 1, "{protocol:?}: {answer}");
            }
        };
        let fields = "cookie: a=1\r\ncookie: b=2\r\ncontent-length: 2, 2\r\nconnection: close\r\n";
        arrived(
            &call(
                &caller,
                &format!("POST / HTTP/1.1\r\nhost: orders:8080\r\n{fields}\r\nab"),
            )
            .await,
        );
        arrived(
            &call(
                &caller,
                &format!("POST http://orders:8080/ HTTP/1.1\r\nhost: other\r\n{fields}\r\nab"),
            )
            .await,
        );

        let stream = TcpStream::connect(caller.outbound("orders")).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        let request = Request::post("http://orders:8080/")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .body(Full::new(Bytes::from("ab")))
            .unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        arrived(&String::from_utf8_lossy(&body));
    }
}

/// What a peer would be refused, a local caller is refused by its own proxy, in so many words.
#[tokio::test]
async fn rfc9112_what_has_two_readings_goes_to_no_peer() {
    let (_world, app, caller, _callee) = pair(InboundProtocol::Http).await;
    let both = "POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    for (request, expected, code) in [
        ("GET /a#b HTTP/1.1\r\nhost: orders\r\n\r\n".to_owned(), 400, "fragment"),
        (both.to_owned(), 400, "conflicting_length"),
        ("GET http://orders/ HTTP/1.1\r\n\r\n".to_owned(), 400, "no_host"),
        ("GET / HTTP/1.1\nhost: orders\n\n".to_owned(), 400, "unparsed"),
        (get(&format!("/{}", "a".repeat(9_000))), 414, "too_long"),
        (get(&format!("/{}", "a".repeat(40_000))), 414, "too_long"),
    ] {
        let answer = call(&caller, &request).await;
        assert_eq!(status(&answer), expected, "{code}: {answer}");
        assert!(answer.contains(&format!("\"error\":\"{code}\"")), "{code}: {answer}");
    }
    assert_eq!(app.count(), 0);
}

#[tokio::test]
async fn many_calls_share_one_connection() {
    let (world, app, caller, callee) = pair(InboundProtocol::Http).await;
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let address = caller.outbound("orders");
            tokio::spawn(async move { exchange(TcpStream::connect(address).await.unwrap(), &get("/")).await })
        })
        .collect();
    for call in calls {
        assert_eq!(status(&call.await.unwrap()), 200);
    }
    assert_eq!(app.count(), 50);
    assert_eq!(callee.status().await["connections"], 1);
    assert_eq!(world.records("orders").len(), 50);
}

/// gRPC needs HTTP/2 all the way, both bodies streamed, and trailers.
#[tokio::test]
async fn http2_and_its_trailers_cross_both() {
    let (_world, _app, caller, _callee) = pair(InboundProtocol::Http2).await;
    let stream = TcpStream::connect(caller.outbound("orders")).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://orders/trailers")
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .body(Full::new(Bytes::from_static(b"message")))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.headers().contains_key("x-hoplite-decision"));
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    let text = String::from_utf8(body.to_bytes().to_vec()).unwrap();
    assert!(text.starts_with("POST /trailers [orders]\n"), "{text}");
    assert!(
        text.contains("\nte: trailers\n") && text.ends_with("\nmessage"),
        "{text}"
    );
}

/// What the service sends is read as strictly as what peers send.
#[tokio::test]
async fn a_request_of_two_readings_does_not_leave() {
    let (_world, app, caller, _callee) = pair(InboundProtocol::Http).await;
    let whole = "\r\nhost: orders\r\nconnection: close\r\n\r\n";
    for request in [
        format!("GET /a HTTP/1.1{}", whole.replacen("\r\n", "\n", 2)),
        format!("GET /a#b HTTP/1.1{whole}"),
        format!("POST /a HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked{whole}0\r\n\r\n"),
    ] {
        let answer = call(&caller, &request).await;
        assert_eq!(status(&answer), 400, "{request:?}: {answer}");
        assert_eq!(app.count(), 0, "{request:?}");
    }
}

#[tokio::test]
async fn a_peer_that_is_somebody_else_gets_nothing() {
    let (world, app, _caller, callee) = pair(InboundProtocol::Http).await;
    let agent = world.agent("careful", &world.svid("/edge")).await;
    let mut config = world.config("careful", &agent);
    config.outbound.push(outbound(
        "orders",
        OutboundProtocol::Http,
        callee.inbound("orders"),
        id("/ledger"),
    ));
    let careful = Proxy::start(config, agent).await;
    let answer = call(&careful, &get("/")).await;
    assert_eq!(status(&answer), 502, "{answer}");
    assert!(answer.contains("upstream_unexpected_peer"), "{answer}");
    assert!(!answer.contains("spiffe://"), "the reason stays in the log: {answer}");
    assert_eq!(app.count(), 0);
}

#[tokio::test]
async fn an_upstream_that_refuses_us_or_is_away_is_a_502() {
    let (world, app, _caller, callee) = pair(InboundProtocol::Http).await;
    let check = async |name: &str, address, svid, code: &str| {
        let agent = world.agent(name, &svid).await;
        let mut config = world.config(name, &agent);
        config
            .outbound
            .push(outbound("orders", OutboundProtocol::Http, address, id("/orders")));
        let answer = call(&Proxy::start(config, agent).await, &get("/")).await;
        assert_eq!(status(&answer), 502, "{answer}");
        assert!(answer.contains(code), "{answer}");
    };
    // An SVID by an authority that is in no bundle: the other side says no.
    let foreign = hoplite_identity::testing::TestAuthority::new("demo.hoplite");
    let address = callee.inbound("orders");
    check("stranger", address, foreign.svid("/edge", HOUR), "upstream_refused").await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    check("lonely", nobody, world.svid("/edge"), "upstream_unreachable").await;
    assert_eq!(app.count(), 0);
}

/// Certificates of five seconds, replaced on both sides again and again while requests never pause.
#[tokio::test]
async fn no_request_fails_while_identities_rotate() {
    let ttl = Duration::from_secs(5);
    let world = World::new();
    world.policy("orders.cedar", POLICY);
    let app = App::http().await;
    let mut proxies = Vec::new();
    let callee = world.agent("orders", &world.authority.svid("/orders", ttl)).await;
    let mut config = world.config("orders", &callee);
    config
        .inbound
        .push(inbound("orders", InboundProtocol::Http, app.address));
    proxies.push(Proxy::start(config, callee).await);
    let caller = world.agent("edge", &world.authority.svid("/edge", ttl)).await;
    let mut config = world.config("edge", &caller);
    config.outbound.push(outbound(
        "orders",
        OutboundProtocol::Http,
        proxies[0].inbound("orders"),
        id("/orders"),
    ));
    proxies.push(Proxy::start(config, caller).await);

    let address = proxies[1].outbound("orders");
    let (stopper, stopped) = shutdown::channel();
    let steady = tokio::spawn(async move {
        let (mut sent, mut failed) = (0, Vec::new());
        while !stopped.is_stopping() {
            let answer = exchange(TcpStream::connect(address).await.unwrap(), &get("/")).await;
            sent += 1;
            if !answer.starts_with("HTTP/1.1 200") {
                failed.push(answer);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (sent, failed)
    });
    let first = proxies[0].status().await["svid_serial"].clone();
    let begun = Instant::now();
    while begun.elapsed() < ttl * 2 {
        tokio::time::sleep(ttl / 2).await;
        proxies[0]
            .agent
            .push(&world.authority.svid("/orders", ttl), &world.authority);
        proxies[1]
            .agent
            .push(&world.authority.svid("/edge", ttl), &world.authority);
    }
    stopper.stop();
    let (sent, failed) = steady.await.unwrap();
    assert_ne!(proxies[0].status().await["svid_serial"], first, "it did rotate");
    assert!(sent > 100, "{sent} requests");
    assert!(
        failed.is_empty(),
        "{} of {sent} failed, first {:?}",
        failed.len(),
        failed.first()
    );
}

#[tokio::test]
async fn without_a_valid_identity_nothing_is_said_and_nobody_let_in() {
    let (world, app, caller, callee) = pair(InboundProtocol::Http).await;
    let past = std::time::SystemTime::now() - Duration::from_secs(1);
    let begun = past - Duration::from_secs(60);
    callee
        .agent
        .push(&world.authority.svid_valid("/orders", begun, past), &world.authority);
    caller
        .agent
        .push(&world.authority.svid_valid("/edge", begun, past), &world.authority);
    eventually("the caller refuses", async || {
        let answer = call(&caller, &get("/")).await;
        status(&answer) == 503 && answer.contains("own_svid_expired")
    })
    .await;
    let before = app.count();
    eventually("the callee refuses", async || {
        let svid = world.svid("/edge");
        match world.connect(callee.inbound("orders"), Some(&svid), "/orders").await {
            Ok(stream) => exchange(stream, &get("/")).await.is_empty(),
            Err(_) => true,
        }
    })
    .await;
    assert_eq!(app.count(), before);
    let refused = world.records("orders").into_iter().any(|record| {
        record.outcome == Outcome::Error
            && record
                .reason
                .is_some_and(|reason| reason.starts_with("own_svid_expired"))
    });
    assert!(refused);
}

/// Whom a listener calls is a value and no constant: it changes under load, for HTTP on kept connections and for TCP.
#[tokio::test]
async fn an_upstream_is_redirected_while_the_proxy_runs() {
    let (world, first, caller, callee) = pair(InboundProtocol::Http).await;
    let second = App::http().await;
    let agent = world.agent("other", &world.svid("/other")).await;
    let mut config = world.config("other", &agent);
    config
        .inbound
        .push(inbound("orders", InboundProtocol::Http, second.address));
    let other = Proxy::start(config, agent).await;
    let there = other.inbound("orders").to_string();

    assert_eq!(status(&call(&caller, &get("/")).await), 200);
    assert_eq!((first.count(), second.count()), (1, 0));
    let redirect = |to: &str, expect: &str| caller.running.redirect("orders", to, &id(expect));
    redirect(&there, "/other").unwrap();
    for _ in 0..3 {
        assert_eq!(status(&call(&caller, &get("/")).await), 200);
    }
    assert_eq!((first.count(), second.count()), (1, 3));
    let told = &caller.status().await["outbound"][0];
    assert_eq!(
        (&told["connect_to"], &told["expect"]),
        (&there.as_str().into(), &id("/other").as_str().into())
    );

    // Who is expected changes as the address does: the peer that answered just now is somebody else.
    redirect(&there, "/orders").unwrap();
    let answer = call(&caller, &get("/")).await;
    assert_eq!(status(&answer), 502, "{answer}");
    assert!(answer.contains("upstream_unexpected_peer"), "{answer}");
    redirect(&callee.inbound("orders").to_string(), "/orders").unwrap();
    assert_eq!(status(&call(&caller, &get("/")).await), 200);
    assert_eq!((first.count(), second.count()), (2, 3));

    // What cannot be called changes nothing.
    redirect("nowhere", "/orders").unwrap_err();
    let trust_domain = "spiffe://demo.hoplite".parse().unwrap();
    caller.running.redirect("orders", &there, &trust_domain).unwrap_err();
    caller
        .running
        .redirect("elsewhere", &there, &id("/orders"))
        .unwrap_err();
    assert_eq!(status(&call(&caller, &get("/")).await), 200);
}

#[tokio::test]
async fn a_tcp_upstream_is_redirected_while_the_proxy_runs() {
    let world = World::new();
    world.policy("orders.cedar", r#"@id("all") permit (principal, action, resource);"#);
    let (first, second) = (App::tcp_echo().await, App::tcp_echo().await);
    let one = world.inbound("one", InboundProtocol::Tcp, first.address).await;
    let two = world.inbound("two", InboundProtocol::Tcp, second.address).await;
    let caller = world
        .outbound("edge", OutboundProtocol::Tcp, "one", one.inbound("one"))
        .await;
    let echoed = async |stream: &mut TcpStream| {
        stream.write_all(b"ping").await.unwrap();
        let mut pong = [0; 4];
        stream.read_exact(&mut pong).await.unwrap();
    };
    let mut before = TcpStream::connect(caller.outbound("one")).await.unwrap();
    echoed(&mut before).await;
    let there = two.inbound("two").to_string();
    caller.running.redirect("one", &there, &id("/two")).unwrap();
    let mut after = TcpStream::connect(caller.outbound("one")).await.unwrap();
    echoed(&mut after).await;
    assert_eq!((first.count(), second.count()), (1, 1));
    // What was under way goes on where it was.
    echoed(&mut before).await;
    assert_eq!((first.count(), second.count()), (1, 1));
}
