//! A proxy that is told to stop: what is under way finishes, nothing new begins, and it does not take for ever.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, and its now is its own"
)]

use std::time::{Duration, Instant};

use hoplite_proxy::InboundProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::support::{World, eventually, get, status};

const ANYBODY: &str = r#"@id("anybody") permit (principal, action, resource);"#;

/// A service that has one request, and answers it when it is let.
struct Waiting {
    address: std::net::SocketAddr,
    asked: oneshot::Receiver<()>,
    answer: oneshot::Sender<()>,
}

impl Waiting {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ((was_asked, asked), (answer, may_answer)) = (oneshot::channel(), oneshot::channel());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 4096];
            assert!(stream.read(&mut head).await.unwrap() > 0);
            was_asked.send(()).unwrap();
            if may_answer.await.is_ok() {
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                    .await
                    .unwrap();
            }
            std::future::pending::<()>().await;
        });
        Self { address, asked, answer }
    }
}

#[tokio::test]
async fn what_is_under_way_finishes_and_nothing_new_begins() {
    let world = World::new();
    world.policy("anybody.cedar", ANYBODY);
    let app = Waiting::start().await;
    let proxy = world.inbound("orders", InboundProtocol::Http, app.address).await;
    let address = proxy.inbound("orders");
    let request = get("/");
    let calling = world.raw(address, "/orders", &request);
    let stopping = async {
        app.asked.await.unwrap();
        let stopped = tokio::spawn(proxy.running.stop());
        let svid = world.svid("/edge");
        eventually("nobody new gets in", async || {
            let connected = timeout(
                Duration::from_millis(200),
                world.connect(address, Some(&svid), "/orders"),
            )
            .await;
            !matches!(connected, Ok(Ok(_)))
        })
        .await;
        assert!(!stopped.is_finished(), "somebody waits for an answer");
        app.answer.send(()).unwrap();
        let since = Instant::now();
        stopped.await.unwrap();
        since.elapsed()
    };
    let (answer, took) = tokio::join!(calling, stopping);
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(
        took < Duration::from_secs(5),
        "it ends when the last has its answer: {took:?}"
    );
}

#[tokio::test]
async fn what_never_finishes_is_ended() {
    let world = World::new();
    world.policy("anybody.cedar", ANYBODY);
    let app = Waiting::start().await;
    let proxy = world.inbound("orders", InboundProtocol::Http, app.address).await;
    let address = proxy.inbound("orders");
    let request = get("/");
    let calling = world.raw(address, "/orders", &request);
    let stopping = async {
        app.asked.await.unwrap();
        let since = Instant::now();
        proxy.running.stop().await;
        since.elapsed()
    };
    let (answer, took) = tokio::join!(calling, stopping);
    assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    drop(app.answer);
}

/// One answer of a connection that is kept: its head, or nothing when the connection has ended.
async fn next_answer(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<String> {
    let mut text = String::new();
    let mut piece = [0; 4096];
    loop {
        let n = stream.read(&mut piece).await.ok().filter(|n| *n > 0)?;
        text.push_str(&String::from_utf8_lossy(&piece[..n]));
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.to_lowercase();
        let length = length
            .split_once("content-length: ")?
            .1
            .split("\r\n")
            .next()?
            .parse()
            .ok()?;
        if body.len() >= length {
            return Some(head.to_lowercase());
        }
    }
}

/// A caller of another kind knows nothing of the ends of certificates. What it sends into a connection that closes between two
/// requests is lost, and it cannot know whether it was heard.
#[tokio::test]
async fn whoever_keeps_a_connection_is_told_of_its_end_with_an_answer() {
    let world = World::new();
    world.policy("anybody.cedar", ANYBODY);
    let app = crate::support::App::http().await;
    let proxy = world.inbound("orders", InboundProtocol::Http, app.address).await;
    let svid = world.authority.svid("/edge", Duration::from_secs(3));
    let mut stream = world
        .connect(proxy.inbound("orders"), Some(&svid), "/orders")
        .await
        .unwrap();
    let mut answers = 0;
    let last = loop {
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: orders\r\n\r\n")
            .await
            .unwrap();
        let answer = next_answer(&mut stream).await;
        let head = answer.unwrap_or_else(|| panic!("it ended without a word, after {answers} answers"));
        answers += 1;
        if head.contains("connection: close") {
            break head;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(last.starts_with("http/1.1 200") && answers > 10, "{answers}: {last}");
    assert!(std::time::SystemTime::now() < svid.leaf().not_after());
    assert!(next_answer(&mut stream).await.is_none(), "and it has ended");
}
