//! Crowds that hold what everybody needs, from the very address that a legitimate caller has: it gets in all the same.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use hoplite_host::process::{self, Hardening};
use hoplite_proxy::{InboundProtocol, OutboundProtocol};
use support::{App, Proxy, World, eventually, exchange, get, inbound, outbound, status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

const ANYBODY: &str = r#"@id("anybody") permit (principal, action, resource);"#;

/// What is promised is two seconds; a test's machine may be busy with other things.
const IN_TIME: Duration = Duration::from_secs(10);

/// A proxy with an inbound and an outbound listener that have this many places.
async fn small(world: &World, protocol: InboundProtocol, app: SocketAddr, connections_max: usize) -> Proxy {
    world.policy("anybody.cedar", ANYBODY);
    let agent = world.agent("orders", &world.svid("/orders")).await;
    let mut config = world.config("orders", &agent);
    config.limits.connections_max = connections_max;
    config.inbound.push(inbound("orders", protocol, app));
    Proxy::start(config, agent).await
}

/// Connections that say this, and then nothing for as long as they are held.
async fn silent(to: SocketAddr, count: usize, said: &[u8]) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(to).await.unwrap();
        // One that was closed for a later one cannot be written to.
        let _ = stream.write_all(said).await;
        held.push(stream);
    }
    held
}

async fn in_time<T>(what: &str, call: impl Future<Output = T>) -> T {
    let called = tokio::time::timeout(IN_TIME, call).await;
    called.unwrap_or_else(|_| panic!("{what}: no answer within {IN_TIME:?}"))
}

#[tokio::test]
async fn silent_connections_keep_nobody_out_of_an_inbound_listener() {
    let world = World::new();
    let app = App::http().await;
    let proxy = small(&world, InboundProtocol::Http, app.address, 40).await;
    let to = proxy.inbound("orders");
    // Nothing; the first byte of a handshake; and a first message that goes on.
    for said in [&b""[..], &[0x16], &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc]] {
        let held = silent(to, 400, said).await;
        let answer = in_time("inbound", world.raw(to, "/orders", &get("/"))).await;
        assert_eq!(status(&answer), 200, "{said:?}");
        drop(held);
    }
    eventually("the oldest are counted", async || {
        let text = metrics(&proxy.config.admin_socket).await;
        text.lines().any(|line| {
            let count = line.strip_prefix("hoplite_proxy_connections_evicted_total{stage=\"newcomer\"} ");
            count.is_some_and(|count| count.parse::<u64>().unwrap() >= 3 * (400 - 46))
        })
    })
    .await;
}

#[tokio::test]
async fn ten_thousand_silent_connections_keep_nobody_out() {
    // As many as were tried by hand, where this process may have two descriptors for each.
    process::harden(Hardening::NoCore).unwrap();
    let count = 10_100.min((process::descriptors_max() - 500) / 2);
    let world = World::new();
    let app = App::http().await;
    let proxy = small(&world, InboundProtocol::Http, app.address, count * 3 / 4).await;
    let to = proxy.inbound("orders");
    let held = silent(to, count, b"").await;
    let what = format!("{count} silent connections");
    let answer = in_time(&what, world.raw(to, "/orders", &get("/"))).await;
    assert_eq!(status(&answer), 200);
    drop(held);
}

#[tokio::test]
async fn handshakes_that_stop_half_way_keep_nobody_out() {
    let world = World::new();
    let app = App::http().await;
    let proxy = small(&world, InboundProtocol::Http, app.address, 8_000).await;
    let to = proxy.inbound("orders");
    let hello = client_hello(&world).await;
    let held = silent(to, 2_300, &hello).await;
    let answer = in_time("2 300 half handshakes", world.raw(to, "/orders", &get("/"))).await;
    assert_eq!(status(&answer), 200);
    drop(held);
}

#[tokio::test]
async fn idle_callers_make_room_and_busy_ones_do_not() {
    let world = World::new();
    let app = App::http().await;
    let proxy = small(&world, InboundProtocol::Http, app.address, 4).await;
    let to = proxy.inbound("orders");
    let svid = world.svid("/edge");
    let mut held = Vec::new();
    // Half of the places are all that one address may have.
    for _ in 0..3 {
        let mut stream = world.connect(to, Some(&svid), "/orders").await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: orders\r\n\r\n")
            .await
            .unwrap();
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
        held.push(stream);
    }
    // The first was idle for longest.
    let mut first = held.remove(0);
    assert_eq!(in_time("it is closed", first.read(&mut [0; 1])).await.unwrap_or(0), 0);
    for stream in &mut held {
        // A body that is still to come: something is under way.
        let head = b"POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: 2\r\n\r\na";
        stream.write_all(head).await.unwrap();
    }
    eventually("both have begun", async || app.count() == 5).await;
    let late = world.connect(to, Some(&svid), "/orders").await;
    let answer = match late {
        Ok(stream) => in_time("it is refused", exchange(stream, &get("/"))).await,
        Err(_) => String::new(),
    };
    assert_eq!(answer, "");
    eventually("the refusal is recorded", async || {
        let reasons = world.records("orders").into_iter().filter_map(|record| record.reason);
        reasons
            .into_iter()
            .any(|reason| reason.starts_with("too_many_connections: "))
    })
    .await;
    for mut stream in held {
        stream.write_all(b"b").await.unwrap();
        let mut answer = vec![0; 4096];
        let read = in_time("the rest", stream.read(&mut answer)).await.unwrap();
        assert!(String::from_utf8_lossy(&answer[..read]).starts_with("HTTP/1.1 200"));
    }
}

/// Whoever is let go has its time once: what it does meanwhile gives it no more.
#[tokio::test]
async fn a_peer_that_is_let_go_gains_no_time_by_being_busy() {
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    };
    let world = World::new();
    let app = App::http().await;
    let proxy = small(&world, InboundProtocol::Http, app.address, 4).await;
    let to = proxy.inbound("orders");
    let svid = world.svid("/edge");
    let mut leaving = world.connect_by(&[b"h2"], to, Some(&svid), "/orders").await.unwrap();
    let ask = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
        frame(1, 5, 1, b"\x82\x86\x84\x01\x06orders"),
    ];
    leaving.write_all(&ask.concat()).await.unwrap();
    eventually("it is answered", async || app.count() == 1).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = world.connect(to, Some(&svid), "/orders").await.unwrap();
        stream
            .write_all(get("/").replace("close", "keep-alive").as_bytes())
            .await
            .unwrap();
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
        held.push(stream);
    }
    // It answers no PING, so that the library goes on; each stream of these is refused and recorded.
    let busy = async {
        let (mut reads, mut writes) = tokio::io::split(leaving);
        let writing = async {
            for number in 1.. {
                if writes
                    .write_all(&frame(1, 5, 2 * number + 1, &[0x82, 0x82]))
                    .await
                    .is_err()
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let reading = async { while let Ok(1..) = reads.read(&mut [0; 4096]).await {} };
        tokio::select! {
            () = writing => {}
            () = reading => {}
        }
    };
    in_time("it is closed", busy).await;
    let refused = world.records("orders").len();
    assert!(refused < 60, "{refused} records: it stayed as long as it was busy");
}

#[tokio::test]
async fn silent_connections_keep_nobody_out_of_tcp_or_an_outbound_listener() {
    let world = World::new();
    let app = App::tcp_echo().await;
    let server = small(&world, InboundProtocol::Tcp, app.address, 40).await;
    let to = server.inbound("orders");
    let agent = world.agent("edge", &world.svid("/edge")).await;
    let mut config = world.config("edge", &agent);
    config.limits.connections_max = 40;
    for (name, protocol) in [("raw", OutboundProtocol::Tcp), ("web", OutboundProtocol::Http)] {
        config
            .outbound
            .push(outbound(name, protocol, to, support::id("/orders")));
    }
    let client = Proxy::start(config, agent).await;

    let held = silent(to, 400, &[0x16]).await;
    let svid = world.svid("/edge");
    let stream = in_time("TCP", world.connect(to, Some(&svid), "/orders")).await.unwrap();
    assert_eq!(in_time("TCP, echo", echoed(stream)).await, *b"ping");
    drop(held);

    // Whoever listens for plain text can be kept busy with connections only.
    let _held = silent(client.outbound("raw"), 200, b"").await;
    let stream = TcpStream::connect(client.outbound("raw")).await.unwrap();
    assert_eq!(in_time("outbound TCP", echoed(stream)).await, *b"ping");
    let _held = silent(client.outbound("web"), 400, b"GET / HT").await;
    let stream = TcpStream::connect(client.outbound("web")).await.unwrap();
    // The echo is no HTTP; what matters is that somebody answers.
    let answer = in_time("outbound HTTP", exchange(stream, &get("/"))).await;
    assert!(status(&answer) >= 400, "{answer}");
}

#[tokio::test]
async fn silent_connections_keep_nobody_out_of_the_admin_socket() {
    let world = World::new();
    let app = App::http().await;
    let proxy = small(&world, InboundProtocol::Http, app.address, 40).await;
    let mut held = Vec::new();
    for _ in 0..300 {
        held.push(UnixStream::connect(&proxy.config.admin_socket).await.unwrap());
    }
    let status = in_time("status", proxy.status()).await;
    assert_eq!(status["name"], "orders");
    drop(held);
}

async fn echoed(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) -> [u8; 4] {
    let mut answer = [0; 4];
    stream.write_all(b"ping").await.unwrap();
    stream.flush().await.unwrap();
    stream.read_exact(&mut answer).await.unwrap();
    answer
}

/// The first message of a handshake, as it was once sent.
async fn client_hello(world: &World) -> Vec<u8> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    let svid = world.svid("/edge");
    let calling = world.connect(to, Some(&svid), "/orders");
    let hearing = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 5];
        stream.read_exact(&mut head).await.unwrap();
        let mut rest = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
        stream.read_exact(&mut rest).await.unwrap();
        [&head[..], &rest].concat()
    };
    tokio::select! {
        hello = hearing => hello,
        _ = calling => panic!("nobody answers"),
    }
}

async fn metrics(socket: &Path) -> String {
    let stream = UnixStream::connect(socket).await.unwrap();
    exchange(
        stream,
        "GET /metrics HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n",
    )
    .await
}
