//! Answers of a proxy's own: each is recorded, and said in the caller's language.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use hoplite_audit::{Outcome, Phase, Record};
use hoplite_proxy::{InboundProtocol, OutboundProtocol};
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::support::{App, PATIENCE, Proxy, World, decision, eventually, exchange, get, id, inbound, outbound, status};

const POLICY: &str = r#"
@id("open") permit (principal, action, resource);
@id("shut") forbid (principal, action in Hoplite::Action::"anyHttp", resource) when { context.seg has s0 && context.seg.s0 == "shut" };
"#;

async fn world() -> World {
    let world = World::new();
    world.policy("policy.cedar", POLICY);
    world
}

fn record(world: &World, name: &str, id: &str) -> Record {
    let records = world.records(name);
    records.into_iter().find(|record| record.id.to_string() == id).unwrap()
}

fn nobody() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

/// B2: what does not leave is recorded where it does not leave.
#[tokio::test]
async fn b2_what_an_outbound_proxy_refuses_has_a_record_and_an_id() {
    let world = world().await;
    let app = App::http().await;
    let callee = world.inbound("orders", InboundProtocol::Http, app.address).await;
    let caller = world
        .outbound("edge", OutboundProtocol::Http, "orders", callee.inbound("orders"))
        .await;
    let check = async |request: &str, expected: u16, outcome: Outcome, reason: &str| {
        let before = world.records("edge").len();
        let stream = TcpStream::connect(caller.outbound("orders")).await.unwrap();
        let answer = exchange(stream, request).await;
        assert_eq!(status(&answer), expected, "{request}: {answer}");
        let record = record(&world, "edge", &decision(&answer));
        assert_eq!((record.phase, record.outcome), (Phase::Request, outcome), "{request}");
        assert_eq!(record.principal.as_deref(), Some("spiffe://demo.hoplite/edge"));
        assert_eq!(record.service, "orders");
        assert!(record.reason.unwrap().starts_with(reason), "{request}");
        assert!(record.source.is_some());
        assert_eq!(world.records("edge").len(), before + 1, "{request}");
    };
    let malformed = Outcome::Malformed;
    check(&get("/a%2fb"), 400, malformed, "encoded_separator: ").await;
    let upgrade = get("/").replace("close", "upgrade\r\nupgrade: websocket");
    check(&upgrade, 501, malformed, "upgrade_refused: ").await;
    let connect = "CONNECT orders:443 HTTP/1.1\r\nhost: orders:443\r\n\r\n";
    check(connect, 405, malformed, "method_refused: ").await;
    check(&get(&format!("/{}", "x".repeat(9_000))), 414, malformed, "too_long: ").await;
    assert_eq!(app.count(), 0);
    let unparsed = async || {
        let records = world.records("edge");
        let reasons = records.iter().filter_map(|record| record.reason.as_deref());
        reasons.filter(|reason| reason.starts_with("unparsed: ")).count()
    };
    let stream = TcpStream::connect(caller.outbound("orders")).await.unwrap();
    let answer = exchange(stream, "GET / HTTP/1.1\nhost: orders\n\n").await;
    assert_eq!(status(&answer), 400, "{answer}");
    eventually("what is no HTTP is recorded", async || unparsed().await == 1).await;

    caller
        .running
        .redirect("orders", &nobody().to_string(), &id("/orders"))
        .unwrap();
    check(&get("/"), 502, Outcome::Error, "upstream_unreachable: ").await;
}

#[tokio::test]
async fn b2_a_tcp_call_that_reaches_nobody_is_recorded_and_reset() {
    let world = world().await;
    let caller = world.outbound("edge", OutboundProtocol::Tcp, "orders", nobody()).await;
    let mut stream = TcpStream::connect(caller.outbound("orders")).await.unwrap();
    let read = timeout(PATIENCE, stream.read(&mut [0; 1])).await.unwrap();
    assert!(read.is_err(), "a reset, and no clean end: {read:?}");
    let records = world.records("edge");
    assert_eq!((records[0].phase, records[0].outcome), (Phase::Connect, Outcome::Error));
    assert!(
        records[0]
            .reason
            .as_ref()
            .unwrap()
            .starts_with("upstream_unreachable: ")
    );
}

/// A service of gRPC whose stream breaks off after one message.
async fn breaking() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut reply))) = connection.accept().await {
                    let head = Response::builder().header("content-type", "application/grpc");
                    let mut sending = reply.send_response(head.body(()).unwrap(), false).unwrap();
                    sending.send_data(Bytes::from_static(b"\0\0\0\0\0"), false).unwrap();
                    if request.uri().path() == "/dies" {
                        // Until what was sent is written, then the whole process is gone.
                        let _ = timeout(Duration::from_millis(200), connection.accept()).await;
                        return;
                    }
                    tokio::spawn(async move {
                        let _held = sending;
                        std::future::pending::<()>().await;
                    });
                }
            });
        }
    });
    address
}

struct Called {
    status: u16,
    head: HeaderMap,
    /// Messages, and the trailers.
    messages: usize,
    trailers: HeaderMap,
}

async fn grpc(address: SocketAddr, path: &str) -> h2::client::ResponseFuture {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut send, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("http://orders{path}"))
        .header("content-type", "application/grpc+proto")
        .header("te", "trailers");
    let (response, mut sending) = send.send_request(request.body(()).unwrap(), false).unwrap();
    sending.send_data(Bytes::from_static(b"\0\0\0\0\0"), true).unwrap();
    response
}

async fn whole(response: h2::client::ResponseFuture) -> Called {
    let called = async {
        let (head, mut body) = response.await.unwrap().into_parts();
        let mut messages = 0;
        while let Some(data) = body.data().await {
            messages += data.unwrap().len() / 5;
        }
        let trailers = body.trailers().await.unwrap().unwrap_or_default();
        Called {
            status: head.status.as_u16(),
            head: head.headers,
            messages,
            trailers,
        }
    };
    timeout(PATIENCE, called).await.unwrap()
}

#[track_caller]
fn says(fields: &HeaderMap, status: &str, code: &str) -> String {
    assert_eq!(fields["grpc-status"], status, "{fields:?}");
    let id = fields["x-hoplite-decision"].to_str().unwrap();
    assert_eq!(fields["grpc-message"], format!("{code}; decision {id}"));
    id.to_owned()
}

/// D: a refusal is trailers only, on either side; a stream that breaks off is never gRPC's own fault.
#[tokio::test]
async fn grpc_refusals_and_ends() {
    let world = world().await;
    let callee = world.inbound("orders", InboundProtocol::Http2, breaking().await).await;
    let caller = world
        .outbound("edge", OutboundProtocol::Http, "orders", callee.inbound("orders"))
        .await;
    let address = caller.outbound("orders");

    let denied = whole(grpc(address, "/shut").await).await;
    assert_eq!((denied.status, denied.messages), (200, 0));
    assert_eq!(denied.head["content-type"], "application/grpc");
    let id_of = says(&denied.head, "7", "denied");
    assert_eq!(record(&world, "orders", &id_of).outcome, Outcome::Forbid);

    let malformed = whole(grpc(address, "/a%2fb").await).await;
    let id_of = says(&malformed.head, "3", "encoded_separator");
    assert_eq!(record(&world, "edge", &id_of).outcome, Outcome::Malformed);

    let died = whole(grpc(address, "/dies").await).await;
    assert_eq!((died.status, died.messages), (200, 1));
    says(&died.trailers, "14", "upstream_broken");

    // Policy withdraws what it had permitted.
    let response = grpc(address, "/stays").await.await.unwrap();
    let (_, mut body) = response.into_parts();
    assert_eq!(timeout(PATIENCE, body.data()).await.unwrap().unwrap().unwrap().len(), 5);
    world.policy("policy.cedar", &POLICY.replace("permit", "forbid"));
    let rest = async {
        assert!(body.data().await.is_none());
        body.trailers().await.unwrap().unwrap()
    };
    says(&timeout(PATIENCE, rest).await.unwrap(), "7", "revoked");

    // Nobody is there.
    caller
        .running
        .redirect("orders", &nobody().to_string(), &id("/orders"))
        .unwrap();
    let away = whole(grpc(address, "/").await).await;
    let id_of = says(&away.head, "14", "upstream_unreachable");
    assert_eq!(record(&world, "edge", &id_of).outcome, Outcome::Error);
}

/// D: the peer's trust ends, and with it the connection; to the caller that is 14.
#[tokio::test]
async fn grpc_streams_whose_trust_ends_are_unavailable() {
    let world = world().await;
    let agent = world
        .agent("orders", &world.authority.svid("/orders", Duration::from_secs(3)))
        .await;
    let mut config = world.config("orders", &agent);
    config
        .inbound
        .push(inbound("orders", InboundProtocol::Http2, breaking().await));
    let callee = Proxy::start(config, agent).await;
    let caller = world
        .outbound("edge", OutboundProtocol::Http, "orders", callee.inbound("orders"))
        .await;
    let cut = whole(grpc(caller.outbound("orders"), "/stays").await).await;
    assert_eq!((cut.status, cut.messages), (200, 1));
    says(&cut.trailers, "14", "upstream_broken");
}

/// C5: RFC 9110, 7.6.3.
#[tokio::test]
async fn c5_two_proxies_that_forward_into_each_other() {
    let world = world().await;
    let caller = world.outbound("edge", OutboundProtocol::Http, "orders", nobody()).await;
    let callee = world
        .inbound("orders", InboundProtocol::Http, caller.outbound("orders"))
        .await;
    caller
        .running
        .redirect("orders", &callee.inbound("orders").to_string(), &id("/orders"))
        .unwrap();
    let stream = TcpStream::connect(caller.outbound("orders")).await.unwrap();
    let answer = exchange(stream, &get("/")).await;
    assert_eq!(status(&answer), 508, "{answer}");
    assert!(answer.contains("\"error\":\"loop\""), "{answer}");
    let refused: Vec<_> = ["edge", "orders"]
        .iter()
        .flat_map(|name| world.records(name))
        .filter(|record| record.outcome == Outcome::Error)
        .collect();
    assert_eq!(refused.len(), 1);
    assert!(refused[0].reason.as_ref().unwrap().starts_with("loop: "));

    let app = App::http().await;
    let straight = world.inbound("ledger", InboundProtocol::Http, app.address).await;
    caller
        .running
        .redirect("orders", &straight.inbound("ledger").to_string(), &id("/ledger"))
        .unwrap();
    let mut stream = TcpStream::connect(caller.outbound("orders")).await.unwrap();
    stream.write_all(b"").await.unwrap();
    let answer = exchange(stream, &get("/").replace("host", "via: 1.0 fred\r\nhost")).await;
    assert!(
        answer.contains("via: 1.0 fred\nvia: 1.1 hoplite\nvia: 2 hoplite\n"),
        "{answer}"
    );
}

/// C5: there is nothing in TCP that a proxy could count its own rounds by. A circle ends where its caller has no place left,
/// and all of it with that; it takes nobody else's.
#[tokio::test]
async fn c5_a_tcp_circle_ends_by_itself_and_takes_nobodys_place() {
    const PLACES: usize = 200;
    let world = world().await;
    let ledger = App::tcp_echo().await;
    let start = async |name: &str, inbounds: &[(&str, SocketAddr)], outbounds: &[(&str, SocketAddr)]| {
        let agent = world.agent(name, &world.svid(&format!("/{name}"))).await;
        let mut config = world.config(name, &agent);
        config.limits.connections_max = PLACES;
        for (service, app) in inbounds {
            config.inbound.push(inbound(service, InboundProtocol::Tcp, *app));
        }
        for (name, to) in outbounds {
            let to = outbound(name, OutboundProtocol::Tcp, *to, id(&format!("/{name}-in")));
            config.outbound.push(to);
        }
        Proxy::start(config, agent).await
    };
    // Two services that each forward to the own way to the other.
    let a_out = start("a-out", &[], &[("b", nobody())]).await;
    let b_out = start("b-out", &[], &[("a", nobody())]).await;
    let a_in = start("a-in", &[("a", a_out.outbound("b"))], &[]).await;
    let b_in = start("b-in", &[("b", b_out.outbound("a")), ("ledger", ledger.address)], &[]).await;
    let redirect = |from: &Proxy, name: &str, to: SocketAddr| {
        let expect = id(&format!("/{name}-in"));
        from.running.redirect(name, &to.to_string(), &expect).unwrap();
    };
    redirect(&a_out, "b", b_in.inbound("b"));
    redirect(&b_out, "a", a_in.inbound("a"));
    let mut most = 0;
    for half_closed in [false, true, true] {
        let mut first = TcpStream::connect(a_out.outbound("b")).await.unwrap();
        first.write_all(b"round").await.unwrap();
        if half_closed {
            first.shutdown().await.unwrap();
        }
        // It has ended for who began it, before that hangs up.
        let ended = async { while let Ok(1..) = first.read(&mut [0; 64]).await {} };
        let mut ended = std::pin::pin!(timeout(PATIENCE, ended));
        loop {
            tokio::select! {
                ended = ended.as_mut() => break ended.unwrap(),
                () = async {
                    let svid = world.svid("/other");
                    let mut other = world.connect(b_in.inbound("ledger"), Some(&svid), "/b-in").await.unwrap();
                    other.write_all(b"ping").await.unwrap();
                    timeout(PATIENCE, other.read_exact(&mut [0; 4])).await.unwrap().unwrap();
                    let connections = b_in.status().await["connections"].as_u64().unwrap();
                    most = most.max(connections);
                } => {}
            }
        }
    }
    println!("{most} connections at most");
    assert!(most as usize <= PLACES + PLACES / 8 + 1, "{most}");
    for proxy in [&a_out, &a_in, &b_out, &b_in] {
        eventually("all of it ends", async || proxy.status().await["connections"] == 0).await;
    }
}

/// D: what an application resets is reset for its caller, and a clean end stays one.
#[tokio::test]
async fn a_tcp_reset_stays_a_reset() {
    let world = world().await;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let app = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let how = stream.read_u8().await.unwrap();
            stream.write_all(b"half of the data").await.unwrap();
            let go_on = stream.read_u8().await;
            if how == b'r' {
                let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
            }
            drop((go_on, stream));
        }
    });
    let callee = world.inbound("orders", InboundProtocol::Tcp, app).await;
    let caller = world
        .outbound("edge", OutboundProtocol::Tcp, "orders", callee.inbound("orders"))
        .await;
    for (how, clean) in [(b"r", false), (b"c", true)] {
        let mut stream = TcpStream::connect(caller.outbound("orders")).await.unwrap();
        stream.write_all(how).await.unwrap();
        let mut half = [0; 16];
        timeout(PATIENCE, stream.read_exact(&mut half)).await.unwrap().unwrap();
        stream.write_all(b"g").await.unwrap();
        let end = timeout(PATIENCE, stream.read(&mut [0; 8])).await.unwrap();
        assert_eq!(end.is_ok(), clean, "{end:?}");
    }
}
