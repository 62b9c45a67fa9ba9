//! The listener under those who mean well and those who do not.

use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::Kind;
use crate::pages::HEAD_BYTES_MAX;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A listener, and the reasons why it is not ready.
async fn serve(lines: usize) -> (SocketAddr, Arc<Mutex<Vec<String>>>, hoplite_host::shutdown::Stopper) {
    let mut exposition = Exposition::new("sample");
    exposition.sampled(Kind::Counter, "things", "Things", move |to| {
        for n in 0..lines {
            to.put_for(&[("n", &format!("{n:0>450}"))], 1);
        }
    });
    let reasons = Arc::new(Mutex::new(Vec::new()));
    let told = reasons.clone();
    let site = Site::new(exposition, move || told.lock().unwrap().clone());
    let door = MetricsDoor::bind(MetricsListen(([127, 0, 0, 1], 0).into()))
        .await
        .unwrap();
    let (address, (stopper, shutdown)) = (door.address(), hoplite_host::shutdown::channel());
    tokio::spawn(door.serve(Arc::new(site), shutdown));
    (address, reasons, stopper)
}

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // What was refused unread may be reset after the answer.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

async fn get(address: SocketAddr, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await
}

#[tokio::test]
async fn it_says_whether_it_lives_is_ready_and_why_not() {
    let (address, reasons, _stopper) = serve(3).await;
    assert!(get(address, "/live").await.starts_with("HTTP/1.1 200 "));
    let ready = get(address, "/ready").await;
    assert!(
        ready.starts_with("HTTP/1.1 200 ") && ready.ends_with("\r\n\r\nready\n"),
        "{ready}"
    );
    reasons.lock().unwrap().push("no SVID yet".to_owned());
    reasons.lock().unwrap().push("the disk is full".to_owned());
    let ready = get(address, "/ready").await;
    assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
    assert!(
        ready.ends_with("\r\n\r\nnot ready: no SVID yet\nnot ready: the disk is full\n"),
        "{ready}"
    );
    assert!(get(address, "/live").await.starts_with("HTTP/1.1 200 "), "it lives on");
    let metrics = get(address, "/metrics").await;
    assert!(metrics.contains("text/plain; version=0.0.4") && metrics.contains("# TYPE sample_things_total counter"));
    let open = ask(
        address,
        "GET /metrics HTTP/1.1\r\nhost: a\r\naccept: application/openmetrics-text; version=1.0.0\r\n\r\n",
    );
    let open = open.await;
    assert!(
        open.contains("application/openmetrics-text; version=1.0.0") && open.ends_with("# EOF\n"),
        "{open}"
    );
}

#[tokio::test]
async fn nothing_but_reading_is_answered() {
    let (address, _, _stopper) = serve(3).await;
    for (request, expected) in [
        ("POST /metrics HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", "405"),
        ("DELETE /live HTTP/1.1\r\nhost: a\r\n\r\n", "405"),
        ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", "404"),
        ("GET /metrics/../x HTTP/1.1\r\nhost: a\r\n\r\n", "404"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let answer = ask(address, request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {expected} ")),
            "{request}: {answer}"
        );
    }
    let long = format!("GET /live HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX * 2));
    assert!(!ask(address, &long).await.contains(" 200 "));
    let head = ask(address, "HEAD /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(
        head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    let twice = "GET /live HTTP/1.1\r\nhost: a\r\n\r\n".repeat(2);
    assert_eq!(
        ask(address, &twice).await.matches("HTTP/1.1 200").count(),
        1,
        "one request a connection"
    );
}

/// Of those who say nothing, and of those who read nothing, there are more than places; who asks is answered all the same.
#[tokio::test]
async fn slow_ones_hold_nothing() {
    let (address, _, _stopper) = serve(10_000).await;
    let mut slow = Vec::new();
    for n in 0..CONNECTIONS_MAX * 4 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        if n % 2 == 0 {
            stream
                .write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n")
                .await
                .unwrap();
            // It has been answered, with more than the system's buffers take.
            stream.read_exact(&mut [0; 16]).await.unwrap();
        }
        slow.push(stream);
    }
    let answered = timeout(Duration::from_secs(5), get(address, "/ready")).await;
    assert!(answered.unwrap().starts_with("HTTP/1.1 200 "));
    let whole = get(address, "/metrics").await;
    assert_eq!(
        whole
            .lines()
            .filter(|line| line.starts_with("sample_things_total{"))
            .count(),
        10_000
    );
}
