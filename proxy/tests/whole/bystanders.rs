//! C1: no bound that callers share is held by one of them.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::net::SocketAddr;

use bytes::Bytes;
use hoplite_identity::X509Svid;
use hoplite_proxy::{InboundProtocol, OutboundProtocol};
use http::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::support::{PATIENCE, Proxy, World, eventually, exchange, get, inbound, status};

const OPEN: &str = r#"@id("open") permit (principal, action, resource);"#;

/// More than any window on the way.
const LARGE: usize = 2 << 20;

/// A service of HTTP/1.1 that never reads what is sent to `/stuck`, and sends without end from `/endless`.
async fn app() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                loop {
                    while !bytes.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = stream.read_u8().await else { return };
                        bytes.push(byte);
                    }
                    let head = String::from_utf8(std::mem::take(&mut bytes)).unwrap().to_lowercase();
                    if head.contains(" /stuck ") {
                        return std::future::pending().await;
                    }
                    if head.contains(" /endless ") {
                        let begin = b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n";
                        stream.write_all(begin).await.unwrap();
                        while stream.write_all(&[7; 64 << 10]).await.is_ok() {}
                        return;
                    }
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                    let length: usize = length.map_or(0, |length| length.parse().unwrap());
                    stream.read_exact(&mut vec![0; length]).await.unwrap();
                    let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    stream.write_all(ok).await.unwrap();
                }
            });
        }
    });
    address
}

fn upload(path: &str, length: usize) -> String {
    let body = "x".repeat(length);
    format!("POST {path} HTTP/1.1\r\nhost: orders\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// Writes until nobody reads any more, and holds on.
async fn stuck(mut stream: TcpStream, bytes: Vec<u8>) -> TcpStream {
    let _ = timeout(std::time::Duration::from_millis(300), stream.write_all(&bytes)).await;
    stream
}

#[tokio::test]
async fn c1_uploads_that_nobody_reads_and_readers_that_stand_still() {
    let world = World::new();
    world.policy("open.cedar", OPEN);
    let callee = world.inbound("orders", InboundProtocol::Http, app().await).await;
    let caller = world
        .outbound("edge", OutboundProtocol::Http, "orders", callee.inbound("orders"))
        .await;
    let address = caller.outbound("orders");
    let mut held = Vec::new();
    for number in 1..=12 {
        for bytes in [upload("/stuck", LARGE), get("/endless")] {
            let stream = TcpStream::connect(address).await.unwrap();
            held.push(stuck(stream, bytes.into_bytes()).await);
        }
        let other = TcpStream::connect(address).await.unwrap();
        let answer = exchange(other, &upload("/other", 300_000)).await;
        assert_eq!(status(&answer), 200, "beside {number} of each: {answer}");
    }
}

/// The window that RFC 9113 (6.9.2) begins with.
const FIRST: usize = 65_535;

/// A service of HTTP/2 with this window for a stream, and the first one for the connection as a whole.
async fn http2_app(window: usize) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut held = Vec::new();
                let mut builder = h2::server::Builder::new();
                builder.initial_window_size(u32::try_from(window).unwrap());
                let mut connection: h2::server::Connection<_, Bytes> = builder.handshake(stream).await.unwrap();
                while let Some(Ok((request, mut reply))) = connection.accept().await {
                    if request.uri().path() == "/stuck" {
                        held.push((request, reply));
                        continue;
                    }
                    tokio::spawn(async move {
                        let mut body = request.into_body();
                        while let Some(Ok(data)) = body.data().await {
                            body.flow_control().release_capacity(data.len()).unwrap();
                        }
                        reply.send_response(Response::new(()), true).unwrap();
                    });
                }
            });
        }
    });
    address
}

/// The connection to a service of HTTP/2 is one caller's: what that has unread there holds up nobody else.
#[tokio::test]
async fn c1_one_caller_fills_its_own_connection_to_the_service() {
    let world = World::new();
    world.policy("open.cedar", OPEN);
    let callee = world
        .inbound("orders", InboundProtocol::Http2, http2_app(FIRST).await)
        .await;
    let connect = async |svid: &X509Svid| {
        let stream = world
            .connect_by(&[b"h2"], callee.inbound("orders"), Some(svid), "/orders")
            .await
            .unwrap();
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        send
    };
    let request = |path: &str| Request::post(format!("https://orders{path}")).body(()).unwrap();
    let mut greedy = connect(&world.svid("/greedy")).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let (response, mut sending) = greedy.send_request(request("/stuck"), false).unwrap();
        sending.send_data(Bytes::from(vec![7; LARGE]), false).unwrap();
        held.push((response, sending));
    }
    eventually("they are there", async || world.records("orders").len() == 3).await;
    let mut other = connect(&world.svid("/other")).await;
    for _ in 0..5 {
        let (response, mut sending) = other.send_request(request("/read"), false).unwrap();
        sending.send_data(Bytes::from(vec![7; 300_000]), true).unwrap();
        let response = timeout(PATIENCE, response).await.unwrap().unwrap();
        assert_eq!(response.status(), 200);
    }
    // Nor, once it is seen to stand still, what else the same caller asks: that goes by another connection.
    eventually("the same caller is served", async || {
        let (response, mut sending) = greedy.send_request(request("/read"), false).unwrap();
        sending.send_data(Bytes::from(vec![7; 300_000]), true).unwrap();
        timeout(std::time::Duration::from_secs(1), response).await.is_ok()
    })
    .await;
}

/// C1: what all callers together have sent and nobody has read is bounded, and none of them holds all of it.
#[tokio::test]
async fn c1_what_nobody_reads_is_bounded_for_all_connections_together() {
    const BUDGET: usize = 4 << 20;
    const CONNECTIONS: usize = 6;
    const STREAMS: usize = 16;
    /// What of each stream goes on to the service, and what waits for that.
    const ON_ITS_WAY: usize = (1 << 10) + (16 << 10);
    let world = World::new();
    world.policy("open.cedar", OPEN);
    let agent = world.agent("orders", &world.svid("/orders")).await;
    let mut config = world.config("orders", &agent);
    config.limits.unread_bytes_max = BUDGET;
    let app = http2_app(1 << 10).await;
    config.inbound.push(inbound("orders", InboundProtocol::Http2, app));
    let callee = Proxy::start(config, agent).await;
    let connect = async |svid: &X509Svid| {
        let stream = world.connect_by(&[b"h2"], callee.inbound("orders"), Some(svid), "/orders");
        let (send, connection) = h2::client::handshake(stream.await.unwrap()).await.unwrap();
        tokio::spawn(connection);
        send
    };
    let request = |path: &str| Request::post(format!("https://orders{path}")).body(()).unwrap();
    let greedy = world.svid("/greedy");
    let mut held = Vec::new();
    let mut sent = 0;
    for _ in 0..CONNECTIONS {
        let mut send = connect(&greedy).await;
        let before = sent;
        for _ in 0..STREAMS {
            send = timeout(PATIENCE, send.ready()).await.unwrap().unwrap();
            let (response, mut sending) = send.send_request(request("/stuck"), false).unwrap();
            // As much as it is let.
            loop {
                sending.reserve_capacity(LARGE);
                let capacity = timeout(
                    std::time::Duration::from_millis(200),
                    std::future::poll_fn(|context| sending.poll_capacity(context)),
                );
                let Ok(Some(Ok(bytes))) = capacity.await else { break };
                sending.send_data(Bytes::from(vec![7; bytes]), false).unwrap();
                sent += bytes;
            }
            sending.reserve_capacity(0);
            held.push((response, sending));
        }
        println!("one more connection: {} KiB", (sent - before) >> 10);
        // Each has what everybody has.
        assert!(sent - before >= FIRST);
    }
    println!("{sent} bytes on {CONNECTIONS} connections");
    assert!(sent > 1 << 20, "{sent}");
    let most = BUDGET / 2 + CONNECTIONS * (FIRST + STREAMS * ON_ITS_WAY);
    assert!(sent <= most, "{sent} of {most}");
    // Others are as they were.
    let mut other = connect(&world.svid("/other")).await;
    for _ in 0..3 {
        let (response, mut sending) = other.send_request(request("/read"), false).unwrap();
        sending.send_data(Bytes::from(vec![7; 300_000]), true).unwrap();
        assert_eq!(timeout(PATIENCE, response).await.unwrap().unwrap().status(), 200);
    }
    // What ends gives back.
    drop(held);
    let mut again = connect(&greedy).await;
    let (response, mut sending) = again.send_request(request("/read"), false).unwrap();
    sending.send_data(Bytes::from(vec![7; 300_000]), true).unwrap();
    assert_eq!(timeout(PATIENCE, response).await.unwrap().unwrap().status(), 200);
}
