//! Who is waited for in vain is waited for no longer; what moves, or may be silent, goes on.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use hoplite_audit::{Outcome, Record};
use hoplite_host::config::Span;
use hoplite_proxy::{InboundProtocol, Limits, OutboundProtocol};
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::support::{App, PATIENCE, Proxy, World, decision, eventually, exchange, get, id, inbound, outbound, status};

const ANYBODY: &str = r#"@id("anybody") permit (principal, action, resource);"#;

/// What is waited for, for so long.
const LIMIT: Duration = Duration::from_millis(400);

/// Longer than any limit.
const SILENCE: Duration = Duration::from_millis(1_200);

type Body = BoxBody<Bytes, std::io::Error>;

/// Answers by path: `/never` not at all, `/late` begins and is silent for a while, `/big` with more than anybody's
/// buffers hold, and everything else with the request's length once it is whole.
async fn service() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service_fn(respond))
                    .await;
            });
        }
    });
    address
}

async fn respond(request: Request<Incoming>) -> Result<Response<Body>, std::io::Error> {
    let path = request.uri().path().to_owned();
    let (pieces, body) = pieces();
    match path.as_str() {
        "/never" => std::future::pending::<()>().await,
        "/late" => {
            tokio::spawn(async move {
                sleep(SILENCE).await;
                let _ = pieces.send(Bytes::from_static(b"late")).await;
            });
            return Ok(Response::new(body));
        }
        "/big" => {
            tokio::spawn(async move { while pieces.send(Bytes::from(vec![b'x'; 1 << 16])).await.is_ok() {} });
            return Ok(Response::new(body));
        }
        _ => {}
    }
    let whole = request.into_body().collect().await.map_err(std::io::Error::other)?;
    let length = whole.to_bytes().len().to_string();
    Ok(Response::new(
        Full::new(Bytes::from(length)).map_err(|never| match never {}).boxed(),
    ))
}

/// A body that is written piece by piece.
fn pieces() -> (mpsc::Sender<Bytes>, Body) {
    let (pieces, received) = mpsc::channel(1);
    let frames = ReceiverStream::new(received).map(|piece| Ok(Frame::data(piece)));
    (pieces, StreamBody::new(frames).boxed())
}

fn short() -> Limits {
    Limits {
        request_body_idle: Span(LIMIT),
        response_head: Span(LIMIT),
        response_write_idle: Span(LIMIT),
        ..Limits::default()
    }
}

async fn start(protocol: InboundProtocol, app: SocketAddr, limits: Limits) -> (World, Proxy) {
    let world = World::new();
    world.policy("anybody.cedar", ANYBODY);
    let agent = world.agent("orders", &world.svid("/orders")).await;
    let mut config = world.config("orders", &agent);
    config.limits = limits;
    config.inbound.push(inbound("orders", protocol, app));
    let proxy = Proxy::start(config, agent).await;
    (world, proxy)
}

async fn http2(world: &World, proxy: &Proxy) -> http2::SendRequest<Body> {
    let svid = world.svid("/edge");
    let stream = world.connect_by(&[b"h2"], proxy.inbound("orders"), Some(&svid), "/orders");
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream.await.unwrap()))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

fn request(method: Method, path: &str, kind: &str, body: Body) -> Request<Body> {
    let uri = format!("https://orders{path}");
    let request = Request::builder().method(method).uri(uri).header("content-type", kind);
    request.body(body).unwrap()
}

fn nothing() -> Body {
    Full::default().map_err(|never| match never {}).boxed()
}

async fn in_time<T>(what: &str, call: impl Future<Output = T>) -> T {
    timeout(PATIENCE, call)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"))
}

/// The record whose reason begins so, once it is there.
async fn recorded(world: &World, code: &str) -> Record {
    let find = || {
        let records = world.records("orders").into_iter();
        records
            .rev()
            .find(|record| record.reason.as_deref().is_some_and(|reason| reason.starts_with(code)))
    };
    eventually(code, async || find().is_some()).await;
    find().unwrap()
}

async fn counted(proxy: &Proxy, limit: &str) {
    let line = format!("hoplite_proxy_timeouts_total{{limit=\"{limit}\"}} ");
    eventually(&line, async || {
        let stream = UnixStream::connect(&proxy.config.admin_socket).await.unwrap();
        let text = exchange(
            stream,
            "GET /metrics HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n",
        )
        .await;
        text.lines().any(|found| found.starts_with(&line))
    })
    .await;
}

#[tokio::test]
async fn a_body_that_never_comes_is_408() {
    let (world, proxy) = start(InboundProtocol::Http, service().await, short()).await;
    let head = "POST /echo HTTP/1.1\r\nhost: orders\r\ncontent-length: 10\r\n\r\nabc";
    let answer = world.raw(proxy.inbound("orders"), "/orders", head).await;
    assert_eq!(status(&answer), 408, "{answer}");
    let record = recorded(&world, "request_body_idle: ").await;
    assert_eq!(
        (record.outcome, record.id.to_string()),
        (Outcome::Malformed, decision(&answer))
    );
    assert_eq!(record.path.as_deref(), Some("/echo"));
    counted(&proxy, "request_body_idle").await;

    let mut sender = http2(&world, &proxy).await;
    let (pieces, body) = pieces();
    pieces.send(Bytes::from_static(b"abc")).await.unwrap();
    let answer = sender.send_request(request(Method::POST, "/echo", "text/plain", body));
    let answer = in_time("408", answer).await.unwrap();
    assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT);
    assert!(answer.headers().contains_key("x-hoplite-decision"));
    // The connection goes on.
    let other = sender.send_request(request(Method::POST, "/echo", "text/plain", nothing()));
    assert_eq!(in_time("another", other).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_service_that_never_answers_is_504() {
    for protocol in [InboundProtocol::Http, InboundProtocol::Http2] {
        let (world, proxy) = start(protocol, service().await, short()).await;
        let answer = world.raw(proxy.inbound("orders"), "/orders", &get("/never")).await;
        assert_eq!(status(&answer), 504, "{answer}");
        let record = recorded(&world, "response_head: ").await;
        assert_eq!(
            (record.outcome, record.id.to_string()),
            (Outcome::Error, decision(&answer))
        );
        counted(&proxy, "response_head").await;
        let mut sender = http2(&world, &proxy).await;
        let answer = sender.send_request(request(Method::GET, "/never", "text/plain", nothing()));
        assert_eq!(
            in_time("504", answer).await.unwrap().status(),
            StatusCode::GATEWAY_TIMEOUT
        );
    }
}

#[tokio::test]
async fn what_moves_and_what_may_be_silent_goes_on() {
    let (world, proxy) = start(InboundProtocol::Http2, service().await, short()).await;
    let mut sender = http2(&world, &proxy).await;
    // An upload that takes longer than every limit, and moves.
    let (upload, body) = pieces();
    let answer = tokio::spawn(sender.send_request(request(Method::POST, "/echo", "text/plain", body)));
    for _ in 0..8 {
        upload.send(Bytes::from_static(b"abc")).await.unwrap();
        sleep(LIMIT / 2).await;
    }
    drop(upload);
    let answer = in_time("the upload", answer).await.unwrap().unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "24");
    // An answer that has begun and says nothing: events to come.
    let late = sender.send_request(request(Method::GET, "/late", "text/plain", nothing()));
    let late = in_time("the head", late).await.unwrap();
    assert_eq!(
        in_time("the event", late.into_body().collect())
            .await
            .unwrap()
            .to_bytes(),
        "late"
    );
    // A call of gRPC whose sides both are silent.
    let (stream, body) = pieces();
    let call = tokio::spawn(sender.send_request(request(Method::POST, "/echo", "application/grpc", body)));
    sleep(SILENCE).await;
    assert!(!call.is_finished());
    stream.send(Bytes::from_static(b"a")).await.unwrap();
    drop(stream);
    assert_eq!(
        in_time("the call", call).await.unwrap().unwrap().status(),
        StatusCode::OK
    );
    // The same over HTTP/1.1.
    let answer = world.raw(proxy.inbound("orders"), "/orders", &get("/late")).await;
    assert!(status(&answer) == 200 && answer.contains("late"), "{answer}");
}

#[tokio::test]
async fn a_reader_that_stands_still_is_let_go() {
    let (world, proxy) = start(InboundProtocol::Http, service().await, short()).await;
    // One stream of HTTP/2 that is not read: it ends, and the others do not.
    let mut sender = http2(&world, &proxy).await;
    let still = sender.send_request(request(Method::GET, "/big", "text/plain", nothing()));
    let still = in_time("its head", still).await.unwrap();
    let record = recorded(&world, "response_write_idle: ").await;
    assert_eq!((record.outcome, record.path.as_deref()), (Outcome::Error, Some("/big")));
    counted(&proxy, "response_write_idle").await;
    let broken = in_time("its end", still.into_body().collect()).await;
    assert!(broken.is_err(), "it was cut off, which is not an end");
    let other = sender.send_request(request(Method::POST, "/echo", "text/plain", nothing()));
    assert_eq!(in_time("another", other).await.unwrap().status(), StatusCode::OK);

    // A connection of HTTP/1.1 that is not read.
    let before = world.records("orders").len();
    let svid = world.svid("/edge");
    let mut stream = world
        .connect(proxy.inbound("orders"), Some(&svid), "/orders")
        .await
        .unwrap();
    stream.write_all(get("/big").as_bytes()).await.unwrap();
    eventually("it is closed", async || proxy.status().await["connections"] == 1).await;
    eventually("it is recorded", async || {
        let records = world.records("orders").split_off(before);
        records
            .into_iter()
            .filter_map(|record| record.reason)
            .any(|reason| reason.starts_with("response_write_idle: "))
    })
    .await;
}

#[tokio::test]
async fn a_stream_may_be_given_an_end() {
    let limits = Limits {
        stream_idle: Span(LIMIT),
        ..Limits::default()
    };
    let (world, proxy) = start(InboundProtocol::Http, service().await, limits).await;
    let mut sender = http2(&world, &proxy).await;
    let late = sender.send_request(request(Method::GET, "/late", "text/plain", nothing()));
    let late = in_time("the head", late).await.unwrap();
    assert!(in_time("the end", late.into_body().collect()).await.is_err());
    recorded(&world, "stream_idle: ").await;
    counted(&proxy, "stream_idle").await;
}

/// What ends a call of gRPC that nobody answers: the setting, or the call's own word, and five seconds.
#[tokio::test]
async fn a_call_of_grpc_that_nobody_answers_may_be_given_an_end() {
    let limits = Limits {
        stream_idle: Span(LIMIT),
        ..Limits::default()
    };
    let ends = |limits: Limits, timeout: Option<&'static str>, code: &'static str, grpc_status: &'static str| async move {
        let (world, proxy) = start(InboundProtocol::Http2, service().await, limits).await;
        let mut sender = http2(&world, &proxy).await;
        for path in ["/never", "/late"] {
            // Its own request is not at its end, either.
            let (_stream, body) = pieces();
            let mut call = request(Method::POST, path, "application/grpc", body);
            if let Some(timeout) = timeout {
                call.headers_mut().insert("grpc-timeout", timeout.parse().unwrap());
            }
            let answer = in_time(code, sender.send_request(call)).await.unwrap();
            match path {
                "/never" => {
                    assert_eq!(answer.headers()["grpc-status"], grpc_status, "{code}");
                    let message = answer.headers()["grpc-message"].to_str().unwrap();
                    assert!(message.starts_with(&format!("{code}; decision ")), "{message}");
                    recorded(&world, &format!("{code}: ")).await;
                }
                // Of an answer that has begun nothing comes.
                _ if timeout.is_none() => {
                    in_time(code, answer.into_body().collect()).await.unwrap_err();
                }
                _ => {}
            }
        }
        counted(&proxy, code).await;
    };
    ends(limits, None, "stream_idle", "14").await;
    ends(Limits::default(), Some("100m"), "grpc_timeout", "4").await;
}

#[tokio::test]
async fn what_nobody_uses_is_closed() {
    let app = App::tcp_echo().await;
    let limits = Limits {
        tcp_idle: Span(LIMIT),
        connection_idle: Span(LIMIT),
        ..Limits::default()
    };
    let (world, proxy) = start(InboundProtocol::Tcp, app.address, limits).await;
    let svid = world.svid("/edge");
    let mut stream = world
        .connect(proxy.inbound("orders"), Some(&svid), "/orders")
        .await
        .unwrap();
    stream.write_all(b"ping").await.unwrap();
    stream.read_exact(&mut [0; 4]).await.unwrap();
    assert_eq!(in_time("its end", stream.read(&mut [0; 4])).await.unwrap_or(0), 0);
    counted(&proxy, "tcp_idle").await;

    let (world, proxy) = start(InboundProtocol::Http, service().await, limits).await;
    let mut sender = http2(&world, &proxy).await;
    let asked = sender.send_request(request(Method::POST, "/echo", "text/plain", nothing()));
    in_time("an answer", asked)
        .await
        .unwrap()
        .into_body()
        .collect()
        .await
        .unwrap();
    eventually("the caller's connection is closed", async || {
        proxy.status().await["connections"] == 0
    })
    .await;
    counted(&proxy, "connection_idle").await;

    // A proxy's own connection to a peer.
    let (world, proxy) = start(InboundProtocol::Http, service().await, Limits::default()).await;
    let agent = world.agent("edge", &world.svid("/edge")).await;
    let mut config = world.config("edge", &agent);
    config.limits.upstream_idle = Span(LIMIT);
    let to = proxy.inbound("orders");
    config
        .outbound
        .push(outbound("orders", OutboundProtocol::Http, to, id("/orders")));
    let client = Proxy::start(config, agent).await;
    let answer = exchange(
        TcpStream::connect(client.outbound("orders")).await.unwrap(),
        &get("/echo"),
    )
    .await;
    assert_eq!(status(&answer), 200);
    eventually("the proxy's connection is closed", async || {
        proxy.status().await["connections"] == 0
    })
    .await;
}
