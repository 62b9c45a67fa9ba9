//! Frames of HTTP/2 that belong to no request, without bound: the connection they come on ends with ENHANCE_YOUR_CALM, the
//! others notice nothing; and clients that mean well are told from those that do not.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::net::SocketAddr;
use std::path::Path;

use hoplite_audit::{Outcome, Query};
use hoplite_proxy::{InboundProtocol, OutboundProtocol};
use hoplite_tests::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PING, PREFACE, PRIORITY, REQUEST, RST_STREAM,
    SETTINGS, UPLOAD, WINDOW_UPDATE, flood, frame, opening,
};
use hoplite_tests::{HttpApp, PlainClient, Proxy, TestClient, World, id, until};
use http::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

const POLICY: &str = r#"
@id("backend/all") permit (principal, action, resource in Hoplite::Service::"backend");
"#;

const ENHANCE_YOUR_CALM: u32 = 11;

/// More than any budget, and no more than a moment's work.
const FRAMES: usize = 200_000;

/// Frames that are written at once.
const BATCH: usize = 50;

/// What a proxy counts.
async fn metrics(admin: &Path) -> String {
    let mut stream = UnixStream::connect(admin).await.unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    said
}

async fn flooded(proxy: &Proxy, side: &str, count: usize) {
    let line = format!("hoplite_proxy_connections_flooded_total{{side=\"{side}\"}} {count}\n");
    until(&line, async || {
        metrics(proxy.admin_socket()).await.contains(&line).then_some(())
    })
    .await;
}

struct Scene {
    client: TestClient,
    backend: Proxy,
    world: World,
}

impl Scene {
    async fn start(forward_to: SocketAddr, protocol: InboundProtocol) -> Self {
        let world = World::start().await;
        world.policy(POLICY);
        let backend = world
            .proxy("backend")
            .inbound("backend", protocol, forward_to)
            .start()
            .await;
        let client = world.caller("/client").await;
        Self { client, backend, world }
    }

    async fn get(&self) -> StatusCode {
        let address = self.backend.inbound("backend");
        self.client.get(address, &id("/backend"), "/").await.unwrap().status
    }
}

/// What comes first on the connection, and what then comes again and again; the frame's number goes into it.
type Flood = (&'static str, Vec<u8>, fn(u32) -> Vec<u8>);

fn floods() -> Vec<Flood> {
    let upload = frame(HEADERS, END_HEADERS, 1, UPLOAD);
    vec![
        ("PING, CVE-2019-9512", vec![], |_| frame(PING, 0, 0, &[7; 8])),
        ("PING with ACK", vec![], |_| frame(PING, 1, 0, &[7; 8])),
        ("SETTINGS, CVE-2019-9515", vec![], |_| frame(SETTINGS, 0, 0, &[])),
        ("PRIORITY, CVE-2019-9513", vec![], |_| {
            frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 9])
        }),
        ("WINDOW_UPDATE by a byte, CVE-2019-9511", vec![], |_| {
            frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])
        }),
        ("empty DATA, CVE-2019-9518", upload, |_| frame(DATA, 0, 1, &[])),
        (
            "empty CONTINUATION, CVE-2024-27316",
            frame(HEADERS, 0, 1, REQUEST),
            |_| frame(CONTINUATION, 0, 1, &[]),
        ),
        ("frames that nobody knows", vec![], |_| frame(0x77, 0, 0, b"?")),
        ("large frames that nobody knows", vec![], |_| {
            frame(0x77, 0, 0, &[0; 16_000])
        }),
        ("RST_STREAM at once, CVE-2023-44487", vec![], |n| {
            let request = frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, REQUEST);
            [request, frame(RST_STREAM, 0, 2 * n + 1, &8_u32.to_be_bytes())].concat()
        }),
        ("streams that have to be reset, CVE-2025-8671", vec![], |n| {
            let request = frame(HEADERS, END_HEADERS, 2 * n + 1, UPLOAD);
            [request, frame(WINDOW_UPDATE, 0, 2 * n + 1, &[0x7f, 0xff, 0xff, 0xff])].concat()
        }),
        ("malformed requests", vec![], |n| {
            frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, &[0x82, 0x82])
        }),
    ]
}

/// Each frame again and again, many at once.
async fn send<S>(stream: S, first: Vec<u8>, next: fn(u32) -> Vec<u8>) -> (usize, Vec<u32>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + 'static,
{
    let mut first = Some([opening(), first].concat());
    let mut numbers = 0..u32::try_from(FRAMES).unwrap();
    flood(stream, || {
        first.take().or_else(|| {
            let batch: Vec<u8> = numbers.by_ref().take(BATCH).flat_map(next).collect();
            (!batch.is_empty()).then_some(batch)
        })
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc9113_10_5_a_flood_of_any_frame_ends_its_connection_and_no_other() {
    let app = HttpApp::start().await;
    let scene = Scene::start(app.address(), InboundProtocol::Http).await;
    for (name, first, next) in floods() {
        let calm = Query {
            outcome: vec![Outcome::Malformed],
            ..Query::default()
        };
        let count = || {
            let records = scene.world.records(&calm);
            let reasons = records.iter().filter_map(|record| record.reason.clone());
            reasons.filter(|reason| reason.contains("ENHANCE_YOUR_CALM")).count()
        };
        let before = count();
        let address = scene.backend.inbound("backend");
        let stream = scene.client.connect(address, &id("/backend"), &[b"h2"]).await.unwrap();
        let (written, errors) = send(stream, first, next).await;
        assert_eq!(errors.last(), Some(&ENHANCE_YOUR_CALM), "{name}: {errors:?}");
        // What was on its way is lost with it, which is not the proxy's.
        assert!(written < 8 << 20, "{name}: {written} bytes");
        until(&format!("{name} is recorded"), async || {
            (count() > before).then_some(())
        })
        .await;
        assert_eq!(scene.get().await, StatusCode::OK, "{name}");
    }
    assert!(
        metrics(scene.backend.admin_socket())
            .await
            .contains("hoplite_proxy_connections_flooded_total{side=\"peer\"}")
    );
}

/// A local caller speaks HTTP/2 with prior knowledge, and its neighbours use the same proxy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_caller_that_floods_is_let_go() {
    let app = HttpApp::start().await;
    let scene = Scene::start(app.address(), InboundProtocol::Http).await;
    let edge = scene
        .world
        .proxy("edge")
        .outbound("backend", OutboundProtocol::Http, scene.backend.inbound("backend"))
        .start()
        .await;
    let address = edge.outbound("backend");
    for (at, (name, first, next)) in floods().into_iter().take(3).enumerate() {
        let (_, errors) = send(TcpStream::connect(address).await.unwrap(), first, next).await;
        assert_eq!(errors.last(), Some(&ENHANCE_YOUR_CALM), "{name}: {errors:?}");
        flooded(&edge, "local", at + 1).await;
        let answer = PlainClient::new(address).call(Method::GET, "/").await.unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{name}");
    }
}

/// A service that answers HTTP/2 with these frames.
async fn service(answer: fn(TcpStream) -> tokio::task::JoinHandle<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            answer(stream);
        }
    });
    address
}

async fn greet(stream: &mut TcpStream) {
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_floods_is_let_go() {
    let address = service(|mut stream| {
        tokio::spawn(async move {
            greet(&mut stream).await;
            let pings: Vec<u8> = (0..BATCH).flat_map(|_| frame(PING, 1, 0, &[7; 8])).collect();
            while stream.write_all(&pings).await.is_ok() {}
        })
    })
    .await;
    let scene = Scene::start(address, InboundProtocol::Http2).await;
    assert_eq!(scene.get().await, StatusCode::BAD_GATEWAY);
    let line = "hoplite_proxy_connections_flooded_total{side=\"upstream\"}";
    until(line, async || {
        metrics(scene.backend.admin_socket()).await.contains(line).then_some(())
    })
    .await;
}

/// Of two answers on one connection one is no answer, by a field in upper case or by its size: the other arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc9113_8_1_1_an_answer_that_is_none_costs_its_own_request() {
    let address = service(|mut stream| {
        tokio::spawn(async move {
            greet(&mut stream).await;
            let mut asked = Vec::new();
            while let Some(heard) = Frame::read(&mut stream).await {
                if heard.kind == SETTINGS && heard.flags == 0 {
                    stream.write_all(&frame(SETTINGS, 1, 0, &[])).await.unwrap();
                }
                if heard.kind == HEADERS {
                    asked.push(heard.stream);
                }
                let &[good, upper, large] = asked.as_slice() else {
                    continue;
                };
                let field = b"\x88\x00\x01X\x01a";
                let long = [&[0x88][..], b"\x00\x01x\x7f\x81\x7e", &[b'a'; 16_256]].concat();
                let mut bytes = frame(HEADERS, END_HEADERS | END_STREAM, upper, field);
                bytes.extend(frame(HEADERS, END_STREAM, large, &long));
                for number in 0..5 {
                    let more = [&b"\x00\x01x\x7f\x81\x7e"[..], &[b'a'; 16_256]].concat();
                    let last = if number == 4 { END_HEADERS } else { 0 };
                    bytes.extend(frame(CONTINUATION, last, large, &more));
                }
                bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, good, &[0x88]));
                stream.write_all(&bytes).await.unwrap();
                asked.clear();
            }
        })
    })
    .await;
    let scene = Scene::start(address, InboundProtocol::Http2).await;
    let (one, two, three) = tokio::join!(scene.get(), scene.get(), scene.get());
    let mut said = [one, two, three];
    said.sort();
    assert_eq!(said, [StatusCode::OK, StatusCode::BAD_GATEWAY, StatusCode::BAD_GATEWAY]);
}

/// A download whose client grants window by few bytes, on stream and connection, and measures its speed with a PING for
/// each frame, as gRPC's clients do: a hundred times more frames than the budget has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_with_many_window_updates_and_pings_is_no_flood() {
    const LENGTH: usize = 16 << 20;
    const GRANT: u32 = 512;
    let address = service(|mut stream| {
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {LENGTH}\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = stream.write_all(&vec![b'a'; LENGTH]).await;
        })
    })
    .await;
    let scene = Scene::start(address, InboundProtocol::Http).await;
    let address = scene.backend.inbound("backend");
    let mut stream = scene.client.connect(address, &id("/backend"), &[b"h2"]).await.unwrap();
    stream.write_all(&opening()).await.unwrap();
    for number in [1, 3] {
        let request = frame(HEADERS, END_HEADERS | END_STREAM, number, REQUEST);
        stream.write_all(&request).await.unwrap();
        stream.flush().await.unwrap();
        let (mut length, mut updates) = (0, 0);
        loop {
            let heard = Frame::read(&mut stream).await.unwrap();
            assert!(
                ![GOAWAY, RST_STREAM].contains(&heard.kind),
                "after {length} bytes: {heard:?}"
            );
            if heard.kind != DATA {
                continue;
            }
            length += heard.payload.len();
            let mut bytes = frame(PING, 0, 0, &[7; 8]);
            let mut left = u32::try_from(heard.payload.len()).unwrap();
            while left > 0 {
                let grant = left.min(GRANT);
                for to in [0, number] {
                    bytes.extend(frame(WINDOW_UPDATE, 0, to, &grant.to_be_bytes()));
                    updates += 1;
                }
                left -= grant;
            }
            if heard.flags & END_STREAM != 0 {
                break;
            }
            stream.write_all(&bytes).await.unwrap();
            stream.flush().await.unwrap();
        }
        assert_eq!(length, LENGTH);
        assert!(updates > 60_000, "{updates}");
    }
}
