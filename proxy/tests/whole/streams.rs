//! HTTP requests under way while policy changes: what it no longer permits ends, and the rest does not notice.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::error::Error;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hoplite_audit::{Outcome, Phase};
use hoplite_identity::X509Svid;
use hoplite_proxy::InboundProtocol;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::support::{PATIENCE, Proxy, World, eventually};

const READS: &str = r#"@id("reads") permit (principal, action == Hoplite::Action::"GET", resource);"#;
const WRITES: &str = r#"@id("writes") permit (principal, action == Hoplite::Action::"POST", resource);"#;
const FROZEN: &str = r#"@id("frozen") forbid (principal, action == Hoplite::Action::"POST", resource);"#;

/// From a policy in force to the end of what it no longer permits.
const SOON: Duration = Duration::from_secs(1);

type Body = BoxBody<Bytes, std::io::Error>;

/// A request that reached the service, whose answer the test writes. `/wait` has no answer.
struct Arrived {
    path: String,
    request: Incoming,
    answer: mpsc::Sender<Bytes>,
}

/// A service whose answers are written by the test.
struct Service {
    address: SocketAddr,
    arrivals: mpsc::Receiver<Arrived>,
}

/// A body that is written piece by piece.
fn body() -> (mpsc::Sender<Bytes>, Body) {
    let (pieces, received) = mpsc::channel(1_024);
    let frames = ReceiverStream::new(received).map(|piece| Ok(Frame::data(piece)));
    (pieces, StreamBody::new(frames).boxed())
}

// === impl Service ===

impl Service {
    async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (arrive, arrivals) = mpsc::channel(10_000);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let arrive = arrive.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let arrive = arrive.clone();
                        async move {
                            let (answer, body) = body();
                            let path = request.uri().path().to_owned();
                            let waits = path == "/wait";
                            let request = request.into_body();
                            let _ = arrive.send(Arrived { path, request, answer }).await;
                            if waits {
                                std::future::pending::<()>().await;
                            }
                            Ok::<_, std::io::Error>(Response::new(body))
                        }
                    });
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { address, arrivals }
    }

    async fn next(&mut self) -> Arrived {
        timeout(PATIENCE, self.arrivals.recv()).await.unwrap().unwrap()
    }
}

async fn world(protocol: InboundProtocol) -> (World, Service, Proxy) {
    let world = World::new();
    world.policy("reads.cedar", READS);
    world.policy("writes.cedar", WRITES);
    let service = Service::start().await;
    let proxy = world.inbound("orders", protocol, service.address).await;
    (world, service, proxy)
}

/// Writes a policy file, and waits until it is in force.
async fn put(world: &World, proxy: &Proxy, file: &str, text: &str) {
    let revision = proxy.status().await.pointer("/policy/revision").cloned();
    world.policy(file, text);
    eventually("another policy is in force", async || {
        proxy.status().await.pointer("/policy/revision").cloned() != revision
    })
    .await;
}

async fn http2(world: &World, proxy: &Proxy, svid: &X509Svid) -> (http2::SendRequest<Body>, JoinHandle<()>) {
    let stream = world
        .connect_by(&[b"h2"], proxy.inbound("orders"), Some(svid), "/orders")
        .await
        .unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    let ended = tokio::spawn(async move { connection.await.unwrap_or_default() });
    (sender, ended)
}

fn request(method: Method, path: &str, body: Body) -> Request<Body> {
    let uri = format!("https://orders{path}");
    Request::builder().method(method).uri(uri).body(body).unwrap()
}

fn nothing() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// The next piece of an answer; none at its clean end.
async fn piece(body: &mut Incoming) -> Result<Option<Bytes>, hyper::Error> {
    loop {
        let frame = timeout(PATIENCE, body.frame()).await.unwrap();
        match frame.transpose()?.map(|frame| frame.into_data().unwrap()) {
            // The end of a stream may be said in a frame of its own.
            Some(data) if data.is_empty() => {}
            data => return Ok(data),
        }
    }
}

fn reset_code(error: &(dyn Error + 'static)) -> Option<h2::Reason> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(reset) = error.downcast_ref::<h2::Error>() {
            return reset.reason();
        }
        cause = error.source();
    }
    None
}

/// A counter of the proxy.
async fn counter(proxy: &Proxy, name: &str) -> u64 {
    let mut stream = UnixStream::connect(&proxy.config.admin_socket).await.unwrap();
    let ask = b"GET /metrics HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value
        .unwrap_or_else(|| panic!("no `{name}` in {text}"))
        .trim()
        .parse()
        .unwrap()
}

#[tokio::test]
async fn http2_streams_are_decided_again() {
    let (world, mut service, proxy) = world(InboundProtocol::Http2).await;
    let (mut sender, _connection) = http2(&world, &proxy, &world.svid("/edge")).await;

    // One that stays permitted, an upload with its answer under way, and one that waits for an answer.
    let mut kept = sender
        .send_request(request(Method::GET, "/kept", nothing()))
        .await
        .unwrap();
    let kept_at = service.next().await;
    let (upload, up) = body();
    let mut ended = sender.send_request(request(Method::POST, "/ended", up)).await.unwrap();
    let mut ended_at = service.next().await;
    let (_upload, up) = body();
    let waiting = tokio::spawn(sender.send_request(request(Method::POST, "/wait", up)));
    let mut waiting_at = service.next().await;
    assert_eq!(
        [&kept_at.path, &ended_at.path, &waiting_at.path],
        ["/kept", "/ended", "/wait"]
    );
    let mut pass = async |text: &'static str| {
        for at in [&kept_at, &ended_at] {
            at.answer.send(text.into()).await.unwrap();
        }
        for body in [kept.body_mut(), ended.body_mut()] {
            assert_eq!(piece(body).await.unwrap().unwrap(), text);
        }
        upload.send(text.into()).await.unwrap();
        assert_eq!(piece(&mut ended_at.request).await.unwrap().unwrap(), text);
    };
    pass("before").await;

    // Another policy with the same answers: nothing ends, nothing is recorded.
    put(&world, &proxy, "other.cedar", &FROZEN.replace("POST", "DELETE")).await;
    eventually("they are decided again", async || {
        counter(&proxy, "hoplite_proxy_rechecks_total").await == 3
    })
    .await;
    pass("between").await;
    assert_eq!(world.records("orders").len(), 3);

    put(&world, &proxy, "other.cedar", FROZEN).await;
    let since = Instant::now();
    let broken = piece(ended.body_mut()).await.unwrap_err();
    assert_eq!(reset_code(&broken), Some(h2::Reason::CANCEL), "{broken:?}");
    let response = waiting.await.unwrap().unwrap();
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    let decision = response.headers()["x-hoplite-decision"].to_str().unwrap().to_owned();
    let told = response.into_body().collect().await.unwrap().to_bytes();
    let expected = format!("{{\"error\":\"revoked\",\"outcome\":\"forbid\",\"decision\":\"{decision}\"}}\n");
    assert_eq!(told, expected, "no policy in the answer");

    // The service does not get to believe that it has seen the end of a request, or that anybody still listens.
    piece(&mut ended_at.request).await.unwrap_err();
    piece(&mut waiting_at.request).await.unwrap_err();
    timeout(PATIENCE, ended_at.answer.closed()).await.unwrap();

    // The other one on the same connection goes on to its end.
    kept_at.answer.send("after".into()).await.unwrap();
    drop(kept_at);
    assert_eq!(piece(kept.body_mut()).await.unwrap().unwrap(), "after");
    assert_eq!(piece(kept.body_mut()).await.unwrap(), None);

    let records = world.records("orders");
    let (asked, again) = records.split_at(3);
    assert!(
        asked
            .iter()
            .all(|record| (record.phase, record.outcome) == (Phase::Request, Outcome::Allow))
    );
    assert_eq!(again.len(), 2, "one for each that ended");
    for (asked, again) in asked[1..].iter().zip(again) {
        assert_eq!((again.phase, again.outcome), (Phase::Recheck, Outcome::Forbid));
        assert_eq!(
            (&again.determining, &again.path),
            (&vec!["frozen".to_owned()], &asked.path)
        );
        assert_eq!(again.reason, Some(format!("it was permitted as {}", asked.id)));
    }
    assert_eq!(again[1].id.to_string(), decision);
    assert_eq!(counter(&proxy, "hoplite_proxy_revoked_total").await, 2);
}

/// What policy read of a request's headers is known when it is decided again.
#[tokio::test]
async fn a_stream_is_decided_again_with_its_headers() {
    const TENANT: &str = r#"@id("tenant") permit (principal, action == Hoplite::Action::"PUT", resource)
        when { context.hdr has "x-tenant" && context.hdr["x-tenant"] == "acme" };"#;
    let world = World::new();
    world.policy("headers.toml", "headers = ['x-tenant']");
    world.policy("tenant.cedar", TENANT);
    let mut service = Service::start().await;
    let proxy = world.inbound("orders", InboundProtocol::Http2, service.address).await;
    let (mut sender, _connection) = http2(&world, &proxy, &world.svid("/edge")).await;
    let mut request = request(Method::PUT, "/kept", nothing());
    request.headers_mut().insert("x-tenant", "acme".parse().unwrap());
    let mut answer = sender.send_request(request).await.unwrap();
    let at = service.next().await;

    put(&world, &proxy, "tenant.cedar", &TENANT.replace("has", " has")).await;
    eventually("it is decided again", async || {
        counter(&proxy, "hoplite_proxy_rechecks_total").await == 1
    })
    .await;
    at.answer.send("still".into()).await.unwrap();
    assert_eq!(piece(answer.body_mut()).await.unwrap().unwrap(), "still");

    put(&world, &proxy, "tenant.cedar", &TENANT.replace("acme", "other")).await;
    piece(answer.body_mut()).await.unwrap_err();
}

#[tokio::test]
async fn http1_downloads_are_decided_again() {
    let (world, mut service, proxy) = world(InboundProtocol::Http).await;
    let svid = world.svid("/edge");
    for version in ["1.1", "1.0"] {
        put(&world, &proxy, "other.cedar", &format!("// {version}")).await;
        let mut stream = world
            .connect(proxy.inbound("orders"), Some(&svid), "/orders")
            .await
            .unwrap();
        let head = format!("POST /ended HTTP/{version}\r\nhost: orders\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let at = service.next().await;
        let mut heard = String::new();
        let mut hears = async |text: &'static str| {
            at.answer.send(text.into()).await.unwrap();
            while !heard.contains(text) {
                let mut buffer = [0; 4_096];
                let read = timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().unwrap();
                assert!(read > 0, "{heard}");
                heard.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
            }
        };
        hears("before").await;
        put(&world, &proxy, "other.cedar", &FROZEN.replace("POST", "DELETE")).await;
        hears("between").await;

        put(&world, &proxy, "other.cedar", FROZEN).await;
        let since = Instant::now();
        let mut rest = Vec::new();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap();
        assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
        // Over HTTP/1.0 the end of the connection is the end of the answer: it has to be seen that this is none.
        assert_eq!(
            ended.unwrap_err().kind(),
            std::io::ErrorKind::UnexpectedEof,
            "HTTP/{version}"
        );
        assert_eq!(rest, b"", "HTTP/{version}: nothing that ends the answer");
        timeout(PATIENCE, at.answer.closed()).await.unwrap();
        let last = world.records("orders").pop().unwrap();
        assert_eq!((last.phase, last.outcome), (Phase::Recheck, Outcome::Forbid));
    }
}

/// What is full cannot be told that it has ended.
#[tokio::test]
async fn a_peer_that_reads_nothing_loses_its_connection() {
    let (world, mut service, proxy) = world(InboundProtocol::Http2).await;
    let (mut sender, connection) = http2(&world, &proxy, &world.svid("/edge")).await;
    let _unread = sender
        .send_request(request(Method::POST, "/", nothing()))
        .await
        .unwrap();
    let at = service.next().await;
    let flood = Bytes::from(vec![7; 64 << 10]);
    // Until every buffer on the way is full.
    while timeout(Duration::from_millis(500), at.answer.send(flood.clone()))
        .await
        .is_ok()
    {}
    put(&world, &proxy, "other.cedar", FROZEN).await;
    let since = Instant::now();
    timeout(PATIENCE, connection).await.unwrap().unwrap();
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    timeout(PATIENCE, at.answer.closed()).await.unwrap();
}

/// Half of many are ended, and whoever comes meanwhile is served.
#[tokio::test]
async fn many_at_once_hold_up_nobody() {
    const CONNECTIONS: usize = 8;
    const STREAMS: usize = 100;
    let (world, mut service, proxy) = world(InboundProtocol::Http2).await;
    let svid = world.svid("/edge");
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS {
        let (mut sender, connection) = http2(&world, &proxy, &svid).await;
        let mut answers = Vec::new();
        for number in 0..STREAMS {
            let method = if number % 2 == 0 { Method::GET } else { Method::POST };
            let response = sender
                .send_request(request(method, &format!("/{number}"), nothing()))
                .await;
            answers.push((response.unwrap(), service.next().await));
        }
        open.push((sender, connection, answers));
    }
    let (mut other, _connection) = http2(&world, &proxy, &svid).await;
    put(&world, &proxy, "other.cedar", FROZEN).await;
    let since = Instant::now();
    let mut slowest = Duration::ZERO;
    while counter(&proxy, "hoplite_proxy_revoked_total").await < (CONNECTIONS * STREAMS / 2) as u64 {
        let asked = Instant::now();
        let response = other
            .send_request(request(Method::GET, "/short", nothing()))
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        service.next().await;
        slowest = slowest.max(asked.elapsed());
    }
    println!(
        "{CONNECTIONS} × {STREAMS} decided again in {:?}; slowest answer meanwhile {slowest:?}",
        since.elapsed()
    );
    assert!(slowest < SOON, "{slowest:?}");
    for (_, _, answers) in &mut open {
        for (number, (response, at)) in answers.iter_mut().enumerate() {
            if number % 2 == 0 {
                at.answer.send("whole".into()).await.unwrap();
                assert_eq!(piece(response.body_mut()).await.unwrap().unwrap(), "whole");
            } else {
                piece(response.body_mut()).await.unwrap_err();
            }
        }
    }
}
