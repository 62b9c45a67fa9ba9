//! A proxy that is told to stop: what is under way finishes, nothing new begins, and it does not take for ever.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
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
