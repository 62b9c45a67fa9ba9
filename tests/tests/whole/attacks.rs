//! Attacks on a proxy's real sockets, each with its bound: the attacker ends, the others notice nothing.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, its helpers too"
)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hoplite_audit::{Outcome, Query};
use hoplite_proxy::OutboundProtocol;
use hoplite_tests::{HttpApp, Proxy, TcpApp, TestClient, World, exchange, id, until};
use http::{Request, StatusCode};
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, HandshakeKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The client may do anything: what stops it is not policy.
const POLICY: &str = r#"
@id("backend/client") permit (principal == Hoplite::Workload::"spiffe://world.test/client",
    action in [Hoplite::Action::"anyHttp"], resource in Hoplite::Service::"backend");
"#;

/// A proxy under attack, and an attacker with a good SVID: what is refused to it is refused to strangers long before.
struct Scene {
    client: TestClient,
    backend: Proxy,
    world: World,
    _app: HttpApp,
}

impl Scene {
    async fn start() -> Self {
        let world = World::start().await;
        world.policy(POLICY);
        let app = HttpApp::start().await;
        let backend = world.proxy("backend").http("backend", &app).start().await;
        let client = world.caller("/client").await;
        Self {
            client,
            backend,
            world,
            _app: app,
        }
    }

    fn address(&self) -> SocketAddr {
        self.backend.inbound("backend")
    }

    async fn connect(&self, alpn: &[u8]) -> TlsStream<TcpStream> {
        let stream = self
            .client
            .connect(self.address(), &id("/backend"), &[alpn])
            .await
            .unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(alpn));
        stream
    }

    /// Somebody else is served as if nothing had happened.
    async fn serves_others(&self) {
        let answer = self
            .client
            .get(self.address(), &id("/backend"), "/still-here")
            .await
            .unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    }

    /// How many requests were let through.
    fn allowed(&self) -> usize {
        self.world
            .records(&Query {
                outcome: vec![Outcome::Allow],
                ..Query::default()
            })
            .len()
    }

    /// Waits for a refusal of a stranger whose reason begins like this.
    async fn refused_as(&self, code: &str) {
        until(code, async || {
            let refused = self.world.records(&Query {
                outcome: vec![Outcome::Unauthenticated],
                ..Query::default()
            });
            refused
                .iter()
                .any(|record| record.reason.as_deref().unwrap_or_default().starts_with(code))
                .then_some(())
        })
        .await;
    }
}

/// What the server says until it closes.
async fn rest(mut stream: impl AsyncReadExt + Unpin) -> Vec<u8> {
    let mut said = Vec::new();
    let reading = async {
        let mut buffer = [0; 4096];
        // A reset is an end too.
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            said.extend(&buffer[..read]);
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(20), reading).await;
    assert!(
        ended.is_ok(),
        "the connection stays open after {:?}",
        String::from_utf8_lossy(&said)
    );
    said
}

// === HTTP/2, frame by frame ===

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `GET https://a/`, in HPACK (RFC 7541): three entries of the static table and one literal.
const REQUEST: &[u8] = &[0x82, 0x87, 0x84, 0x41, 1, b'a'];

/// Writes what `next` gives until it gives nothing more or the server has had enough. Gives how many bytes the server
/// took, and the error codes of its GOAWAY frames.
async fn flood(stream: TlsStream<TcpStream>, mut next: impl FnMut() -> Option<Vec<u8>>) -> (usize, Vec<u32>) {
    let (reader, mut writer) = tokio::io::split(stream);
    let reading = tokio::spawn(rest(reader));
    let mut written = 0;
    let opening = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let mut due = Some(opening);
    while let Some(bytes) = due {
        if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
            break;
        }
        written += bytes.len();
        due = if reading.is_finished() { None } else { next() };
    }
    let said = reading.await.unwrap();
    let (mut codes, mut left) = (Vec::new(), said.as_slice());
    while let [a, b, c, kind, _, _, _, _, _, more @ ..] = left {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some((payload, after)) = more.split_at_checked(length) else {
            break;
        };
        if let (GOAWAY, Some(code)) = (*kind, payload.get(4..8)) {
            codes.push(u32::from_be_bytes(code.try_into().unwrap()));
        }
        left = after;
    }
    (written, codes)
}

const ENHANCE_YOUR_CALM: u32 = 11;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_reset_ends_the_connection_cve_2023_44487() {
    const REQUESTS: u32 = 20_000;
    let scene = Scene::start().await;
    let mut streams = (0..REQUESTS).map(|n| 2 * n + 1);
    let batch = || {
        let batch: Vec<u8> = streams
            .by_ref()
            .take(200)
            .flat_map(|stream| {
                let request = frame(HEADERS, END_STREAM | END_HEADERS, stream, REQUEST);
                [request, frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
            })
            .collect();
        (!batch.is_empty()).then_some(batch)
    };
    let (_, codes) = flood(scene.connect(b"h2").await, batch).await;
    assert_eq!(codes.last(), Some(&ENHANCE_YOUR_CALM), "{codes:?}");
    assert!(scene.allowed() < 1_000, "{} requests were let through", scene.allowed());
    scene.serves_others().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_continuation_flood_is_cut_off() {
    const LIMIT: usize = 4 << 20;
    let scene = Scene::start().await;
    // A header `x: aaa…` of which there is always more, never compressed and never indexed.
    let header = [&[0, 1, b'x', 0x7f, 0x81, 0x7e][..], &[b'a'; 16_256]].concat();
    assert!(header.len() <= 16_384);
    let mut frames = std::iter::once(frame(HEADERS, END_STREAM, 1, REQUEST))
        .chain(std::iter::repeat_with(|| frame(CONTINUATION, 0, 1, &header)))
        .scan(0, |sent, frame| {
            *sent += frame.len();
            (*sent <= 2 * LIMIT).then_some(frame)
        });
    let (written, _) = flood(scene.connect(b"h2").await, || frames.next()).await;
    assert!(written < LIMIT, "the server took {written} bytes of one request's head");
    assert_eq!(scene.allowed(), 0);
    scene.serves_others().await;
}

// === Heads that are too large or too slow ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oversized_head_is_refused() {
    let scene = Scene::start().await;
    let check = async |what: &str, head: String| {
        let mut stream = scene.connect(b"http/1.1").await;
        // The server may hang up before it has read all of it.
        let _ = stream
            .write_all(format!("GET / HTTP/1.1\r\nhost: a\r\n{head}\r\n").as_bytes())
            .await;
        let _ = stream.flush().await;
        let said = String::from_utf8(rest(stream).await).unwrap();
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 431"), "{what}: {said}");
    };
    check("one long header", format!("x: {}\r\n", "a".repeat(100 << 10))).await;
    check("many headers", (0..200).map(|n| format!("x{n}: a\r\n")).collect()).await;

    let check = async |what: &str, count: usize, value: String| {
        let mut request = Request::builder().uri("https://a/");
        for n in 0..count {
            request = request.header(format!("x{n}"), &value);
        }
        let request = request.body(Default::default()).unwrap();
        if let Ok(answer) = exchange(scene.connect(b"h2").await, true, request).await {
            assert_eq!(
                answer.status,
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "{what}: {answer:?}"
            );
        }
    };
    check("one long header", 1, "a".repeat(70 << 10)).await;
    check("many headers", 200, "a".to_owned()).await;
    assert_eq!(scene.allowed(), 0);
    scene.serves_others().await;
}

/// On one thread, because the clock is moved by hand: no test waits a minute.
#[tokio::test]
async fn who_is_slow_is_left_after_a_bounded_time() {
    let scene = Scene::start().await;
    let mut silent = TcpStream::connect(scene.address()).await.unwrap();
    let mut half_hello = TcpStream::connect(scene.address()).await.unwrap();
    half_hello.write_all(&[0x16, 3, 1]).await.unwrap();
    let mut head = scene.connect(b"http/1.1").await;
    head.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nx: ").await.unwrap();
    head.flush().await.unwrap();
    // Requests that come whole are served meanwhile, and by then all of the above has been read.
    scene.serves_others().await;
    scene.serves_others().await;

    let wait = async |seconds: u64| {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(seconds)).await;
        tokio::time::resume();
    };
    wait(9).await;
    scene.serves_others().await;
    let mut byte = [0];
    for stream in [&mut silent, &mut half_hello] {
        assert!(stream.try_read(&mut byte).is_err(), "left before its time");
    }
    wait(2).await;
    assert_eq!(rest(&mut silent).await, b"");
    assert!(!rest(&mut half_hello).await.starts_with(b"HTTP"));
    scene.refused_as("timeout:").await;
    wait(60).await;
    let said = String::from_utf8(rest(&mut head).await).unwrap();
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 408"), "{said}");
    assert_eq!(scene.allowed(), 3);
    scene.serves_others().await;
}

// === What is no TLS ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plaintext_and_garbage_get_no_answer() {
    let scene = Scene::start().await;
    let check = async |what: &str, bytes: &[u8], code: &str| {
        let mut stream = TcpStream::connect(scene.address()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let said = rest(stream).await;
        // Nothing, or one fatal alert.
        assert!(
            said.is_empty() || (said.len() == 7 && said[0] == 0x15),
            "{what}: {said:?}"
        );
        scene.refused_as(code).await;
    };
    check("HTTP/1.1", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", "plaintext:").await;
    check("HTTP/2", PREFACE, "plaintext:").await;
    check("SSH", b"SSH-2.0-OpenSSH_9.9\r\n", "plaintext:").await;
    check("SSLv2", &[0x80, 0x2e, 1, 0, 2], "plaintext:").await;
    check(
        "garbage in a handshake record",
        &[&[0x16, 3, 1, 0, 200][..], &[0xaa; 200]].concat(),
        "handshake_failed:",
    )
    .await;
    check(
        "a record too long",
        &[&[0x16, 3, 1, 0xff, 0xff][..], &[0; 64]].concat(),
        "handshake_failed:",
    )
    .await;
    check(
        "a hello cut short",
        &[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3],
        "handshake_broken:",
    )
    .await;

    // A crowd of them at a time.
    let crowd: Vec<_> = (0..=255)
        .map(|byte: u8| {
            let address = scene.address();
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                let _ = stream
                    .write_all(&[0x16, byte, byte, byte, byte, byte, byte, byte])
                    .await;
                let _ = stream.shutdown().await;
                rest(stream).await
            })
        })
        .collect();
    for one in crowd {
        one.await.unwrap();
    }
    scene.serves_others().await;
}

// === Shortcuts past the check of the certificate ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_not_resumed_and_early_data_is_not_taken() {
    let scene = Scene::start().await;
    let mut config: ClientConfig = (*scene.client.tls(&id("/backend"), &[b"http/1.1"])).clone();
    config.resumption = Resumption::in_memory_sessions(16);
    config.enable_early_data = true;
    let config = Arc::new(config);
    for attempt in 0..3 {
        let tcp = TcpStream::connect(scene.address()).await.unwrap();
        let connector = TlsConnector::from(Arc::clone(&config));
        let name = ServerName::try_from("backend.test").unwrap();
        let stream = connector.connect_with(name, tcp, |connection| {
            assert!(
                connection.early_data().is_none(),
                "attempt {attempt}: early data was offered, so a ticket was given"
            );
        });
        let mut stream = stream.await.unwrap();
        // Tickets come with the first bytes.
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said).await;
        assert!(
            said.starts_with(b"HTTP/1.1 200"),
            "attempt {attempt}: {}",
            String::from_utf8_lossy(&said)
        );
        let (_, connection) = stream.get_ref();
        assert_eq!(
            connection.handshake_kind(),
            Some(HandshakeKind::Full),
            "attempt {attempt}"
        );
        assert_eq!(connection.tls13_tickets_received(), 0, "attempt {attempt}");
        assert!(!connection.is_early_data_accepted());
    }
}

// === Lies about identity ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identity_cannot_be_claimed_across_two_hops() {
    let world = World::start().await;
    world.policy(r#"@id("all") permit (principal, action in [Hoplite::Action::"anyHttp"], resource);"#);
    let (front_app, back_app) = (HttpApp::start().await, HttpApp::start().await);
    let back = world.proxy("back").http("back", &back_app).start().await;
    let front = world
        .proxy("front")
        .http("front", &front_app)
        .calls("back", back.inbound("back"))
        .start()
        .await;
    front_app.call(front.outbound("back"));
    let client = world.caller("/client").await;

    let lie = format!("By={};Hash=00;URI={}", id("/back"), id("/admin"));
    let lies = [
        "x-forwarded-client-cert",
        "x_forwarded_client_cert",
        "x-forwarded_client-cert",
        "l5d-client-id",
        "x-envoy-peer-metadata",
        "x-envoy-external-address",
        "x-hoplite-decision",
        "x-hoplite-caller",
        "x_hoplite_caller",
        "x-forwarded-proto",
    ];
    let mut request = Request::builder()
        .uri("https://front.test/accounts/1")
        .header("x-kept", "kept");
    for name in lies {
        request = request.header(name, &lie);
    }
    let answer = client
        .call(
            front.inbound("front"),
            &id("/front"),
            request.body(Default::default()).unwrap(),
        )
        .await
        .unwrap();
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let headers = answer.json()["headers"].clone();
    assert_eq!(headers["x-kept"], serde_json::json!(["kept"]));
    assert_eq!(headers["x-forwarded-proto"], serde_json::json!(["https"]));
    // The service in between passed on what it was told of its own caller; of that nothing arrives either.
    let told = headers["x-forwarded-client-cert"].as_array().unwrap();
    assert_eq!(told.len(), 1, "{headers}");
    assert!(
        told[0].as_str().unwrap().ends_with(&format!(";URI={}", id("/front"))),
        "{headers}"
    );
    assert!(
        !answer.body.contains("/admin") && !answer.body.contains(&id("/client")),
        "a lie arrived: {headers}"
    );
    for name in headers.as_object().unwrap().keys() {
        assert!(
            name == "x-forwarded-client-cert" || name == "x-forwarded-proto" || !lies.contains(&name.as_str()),
            "{name}"
        );
    }

    // Named in `connection`, the proxy's own header would be taken off as one of the hop's.
    let mut stream = client
        .connect(front.inbound("front"), &id("/front"), &[b"http/1.1"])
        .await
        .unwrap();
    let request = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close, x-forwarded-client-cert, x-hoplite-decision\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let said = String::from_utf8(rest(stream).await).unwrap();
    assert!(
        said.starts_with("HTTP/1.1 200") && said.contains(&format!("URI={}", id("/front"))),
        "{said}"
    );
    assert!(said.contains("x-hoplite-decision: front-"), "{said}");
}

// === L4 ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_closed_tcp_connection_still_carries_the_answer() {
    let world = World::start().await;
    world.policy(r#"@id("all") permit (principal, action == Hoplite::Action::"connect", resource);"#);
    let app = TcpApp::start().await;
    let db = world.proxy("db").tcp("db", &app).start().await;
    let client = world
        .proxy("client")
        .outbound("db", OutboundProtocol::Tcp, db.inbound("db"))
        .start()
        .await;
    let mut stream = TcpStream::connect(client.outbound("db")).await.unwrap();
    // One byte at a time, then the end of our side.
    for byte in b"last words" {
        stream.write_all(&[*byte]).await.unwrap();
    }
    stream.shutdown().await.unwrap();
    assert_eq!(rest(stream).await, b"last wordsbye");

    // A reset on one side ends the other.
    let stream = TcpStream::connect(client.outbound("db")).await.unwrap();
    stream.set_zero_linger().unwrap();
    drop(stream);
    until("no connection is left", async || {
        let open = db.status().await["connections"].as_u64().unwrap();
        (open == 0).then_some(())
    })
    .await;
}
