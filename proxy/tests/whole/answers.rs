//! What comes back from a service: interim answers, heads too large, requests refused unread, answers cut off.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use bytes::Bytes;
use hoplite_proxy::{InboundProtocol, OutboundProtocol};
use http::{Method, Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Barrier, mpsc};
use tokio::time::timeout;

use crate::support::{PATIENCE, Proxy, World, eventually, exchange, get, status};

const OPEN: &str = r#"@id("open") permit (principal, action, resource);"#;

/// A caller's proxy, the service's proxy, and whatever listens behind that.
struct Pair {
    world: World,
    caller: Proxy,
    callee: Proxy,
}

async fn pair(protocol: InboundProtocol, app: SocketAddr) -> Pair {
    let world = World::new();
    world.policy("open.cedar", OPEN);
    let callee = world.inbound("orders", protocol, app).await;
    let caller = world
        .outbound("edge", OutboundProtocol::Http, "orders", callee.inbound("orders"))
        .await;
    Pair { world, caller, callee }
}

/// A service that is one function of a connection, and the connection's number.
async fn script<F>(serve: impl Fn(TcpStream, usize) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 1.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream, number));
        }
    });
    address
}

/// Reads one head; empty at the connection's end.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return String::new(),
        }
    }
    String::from_utf8(head).unwrap()
}

async fn say(stream: &mut TcpStream, text: &str) {
    let _ = stream.write_all(text.as_bytes()).await;
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

// === impl Pair ===

impl Pair {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.caller.outbound("orders")).await.unwrap()
    }

    async fn call(&self, request: &str) -> String {
        exchange(self.connect().await, request).await
    }

    /// HTTP/2 with prior knowledge, as a service speaks gRPC to its proxy.
    async fn http2(&self) -> h2::client::SendRequest<Bytes> {
        let (send, connection) = h2::client::handshake(self.connect().await).await.unwrap();
        tokio::spawn(connection);
        send
    }
}

/// The app says 103 and 102, and answers when the caller has seen them.
#[tokio::test]
async fn rfc9110_15_2_interim_answers_reach_the_caller() {
    let (seen, reports) = mpsc::channel::<()>(8);
    let reports = Arc::new(tokio::sync::Mutex::new(reports));
    let app = script(move |mut stream, _| {
        let reports = reports.clone();
        async move {
            while !head(&mut stream).await.is_empty() {
                say(
                    &mut stream,
                    "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nx-hoplite-decision: forged-1-1\r\n\r\n",
                )
                .await;
                say(&mut stream, "HTTP/1.1 102 Processing\r\n\r\n").await;
                reports.lock().await.recv().await;
                say(&mut stream, OK).await;
            }
        }
    })
    .await;
    let pair = pair(InboundProtocol::Http, app).await;

    let mut stream = pair.connect().await;
    for _ in 0..2 {
        say(&mut stream, "GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        let early = timeout(PATIENCE, head(&mut stream)).await.unwrap();
        assert_eq!(early, "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n");
        assert!(
            timeout(PATIENCE, head(&mut stream))
                .await
                .unwrap()
                .starts_with("HTTP/1.1 102 ")
        );
        seen.send(()).await.unwrap();
        assert_eq!(status(&head(&mut stream).await), 200);
        let mut body = [0; 2];
        stream.read_exact(&mut body).await.unwrap();
    }

    let mut send = pair.http2().await;
    let request = Request::get("http://orders/").body(()).unwrap();
    let (mut response, _) = send.send_request(request, true).unwrap();
    for expected in [103, 102] {
        let interim = std::future::poll_fn(|context| response.poll_informational(context));
        let interim = timeout(PATIENCE, interim).await.unwrap().unwrap().unwrap();
        assert_eq!(interim.status(), expected);
    }
    seen.send(()).await.unwrap();
    assert_eq!(response.await.unwrap().status(), StatusCode::OK);

    // Whoever speaks HTTP/1.0 does not know what it is.
    seen.send(()).await.unwrap();
    let answer = pair.call("GET / HTTP/1.0\r\nhost: orders\r\n\r\n").await;
    assert_eq!(status(&answer), 200, "{answer}");
}

/// RFC 9110, 15.2.2: nobody asked for another protocol.
#[tokio::test]
async fn rfc9110_15_2_2_an_unasked_101_is_a_502() {
    let app = script(|mut stream, _| async move {
        head(&mut stream).await;
        let switching = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        say(&mut stream, switching).await;
        head(&mut stream).await;
    })
    .await;
    let pair = pair(InboundProtocol::Http, app).await;
    let answer = pair.call(&get("/")).await;
    assert_eq!(status(&answer), 502, "{answer}");
    assert!(
        answer.contains("upstream_unfit") && answer.contains("x-hoplite-decision"),
        "{answer}"
    );
}

/// C2: what one service says without end costs its caller an error, and nobody else anything.
#[tokio::test]
async fn endless_interim_answers_are_a_502() {
    let app = script(|mut stream, _| async move {
        while let first @ [_, ..] = head(&mut stream).await.as_bytes() {
            if first.starts_with(b"GET /endless") {
                let flood = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1_000);
                while stream.write_all(flood.as_bytes()).await.is_ok() {}
                return;
            }
            say(&mut stream, OK).await;
        }
    })
    .await;
    let pair = pair(InboundProtocol::Http, app).await;
    let answer = pair.call(&get("/endless")).await;
    let last = answer.rsplit("HTTP/1.1 ").next().unwrap();
    assert!(last.starts_with("502 ") && last.contains("upstream_unfit"), "{last}");
    assert!(answer.matches("HTTP/1.1 103").count() <= 100);
    assert_eq!(status(&pair.call(&get("/")).await), 200);
}

/// C2: the head is bounded where it is read, and nothing else on the connection that callers share ends.
#[tokio::test]
async fn a_head_of_200_kb_is_a_502_for_that_request_only() {
    let (go, gone) = mpsc::channel::<()>(1);
    let gone = Arc::new(tokio::sync::Mutex::new(gone));
    let app = script(move |mut stream, _| {
        let gone = gone.clone();
        async move {
            loop {
                match head(&mut stream).await.split(' ').nth(1) {
                    Some("/slow") => {
                        say(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbe").await;
                        gone.lock().await.recv().await;
                        say(&mut stream, "en").await;
                    }
                    // Many fields count more than their bytes: 32 each (RFC 9113, 6.5.2).
                    Some("/many") => {
                        let fields: String = (0..250).map(|n| format!("x-{n}: {}\r\n", "y".repeat(225))).collect();
                        say(
                            &mut stream,
                            &format!("HTTP/1.1 200 OK\r\n{fields}content-length: 0\r\n\r\n"),
                        )
                        .await;
                    }
                    Some(_) => {
                        let large = "x".repeat(200 << 10);
                        say(
                            &mut stream,
                            &format!("HTTP/1.1 200 OK\r\nx-large: {large}\r\ncontent-length: 0\r\n\r\n"),
                        )
                        .await;
                    }
                    None => return,
                }
            }
        }
    })
    .await;
    let pair = pair(InboundProtocol::Http, app).await;
    let mut slow = pair.connect().await;
    say(&mut slow, &get("/slow")).await;
    assert_eq!(status(&timeout(PATIENCE, head(&mut slow)).await.unwrap()), 200);
    for path in ["/large", "/many"] {
        let answer = pair.call(&get(path)).await;
        assert_eq!(status(&answer), 502, "{answer}");
        assert!(answer.contains("upstream_head_too_large"), "{path}: {answer}");
        assert!(answer.contains("x-hoplite-decision"), "{path}: {answer}");
    }
    go.send(()).await.unwrap();
    let mut body = String::new();
    timeout(PATIENCE, slow.read_to_string(&mut body))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(body, "been");
    assert_eq!(pair.callee.status().await["connections"], 1);
}

/// A service of HTTP/2 that answers with the request's body, but resets the first stream of each kind of refusal.
async fn http2_app(refuse: impl Fn(usize) -> bool + Clone + Send + 'static, streams: u32) -> SocketAddr {
    let came = Arc::new(AtomicUsize::new(0));
    script(move |stream, _| {
        let (came, refuse) = (came.clone(), refuse.clone());
        async move {
            let mut builder = h2::server::Builder::new();
            builder.max_concurrent_streams(streams);
            let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
            while let Some(Ok((request, mut reply))) = connection.accept().await {
                if refuse(came.fetch_add(1, SeqCst)) {
                    reply.send_reset(h2::Reason::REFUSED_STREAM);
                    continue;
                }
                tokio::spawn(async move {
                    let mut body = request.into_body();
                    let mut sending = reply.send_response(Response::new(()), false).unwrap();
                    while let Some(Ok(data)) = body.data().await {
                        body.flow_control().release_capacity(data.len()).unwrap();
                        sending.send_data(data, false).unwrap();
                    }
                    sending.send_data(Bytes::new(), true).unwrap();
                });
            }
        }
    })
    .await
}

fn post(body: &str) -> String {
    format!(
        "POST / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// RFC 9113, 8.7: REFUSED_STREAM says that nothing was done, so even a POST is sent again, with all of its body.
#[tokio::test]
async fn rfc9113_8_7_what_is_refused_unread_is_sent_again() {
    let app = http2_app(|number| number < 2, 100).await;
    let pair = pair(InboundProtocol::Http2, app).await;
    let answer = pair.call(&post(&"Q".repeat(40_000))).await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert_eq!(answer.matches('Q').count(), 40_000, "{answer}");

    let never = pair_that_refuses_all().await;
    let answer = never.call(&post("x")).await;
    assert_eq!(status(&answer), 502, "{answer}");
}

async fn pair_that_refuses_all() -> Pair {
    pair(InboundProtocol::Http2, http2_app(|_| true, 100).await).await
}

/// RFC 9113, 6.8: GOAWAY with a last stream below ours says that it was not looked at.
#[tokio::test]
async fn rfc9113_6_8_what_goaway_leaves_out_is_sent_again() {
    let posts = Arc::new(AtomicUsize::new(0));
    let counter = posts.clone();
    let app = script(move |mut stream, number| {
        let counter = counter.clone();
        async move {
            if number == 1 {
                let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
                stream.write_all(&settings).await.unwrap();
                // The preface, and frames until the request's.
                stream.read_exact(&mut [0; 24]).await.unwrap();
                loop {
                    let mut frame = [0; 9];
                    stream.read_exact(&mut frame).await.unwrap();
                    let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]) as usize;
                    stream.read_exact(&mut vec![0; length]).await.unwrap();
                    if frame[3] == 1 {
                        break;
                    }
                }
                let goaway = [
                    0, 0, 8, 7, 0, 0, 0, 0, 0, /* last */ 0, 0, 0, 0, /* NO_ERROR */ 0, 0, 0, 0,
                ];
                stream.write_all(&goaway).await.unwrap();
                // And it stays open.
                let _ = stream.read_to_end(&mut Vec::new()).await;
                return;
            }
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut reply))) = connection.accept().await {
                assert_eq!(request.method(), Method::POST);
                counter.fetch_add(1, SeqCst);
                let mut sending = reply.send_response(Response::new(()), false).unwrap();
                sending.send_data(Bytes::from_static(b"done"), true).unwrap();
            }
        }
    })
    .await;
    let pair = pair(InboundProtocol::Http2, app).await;
    let answer = pair.call(&post("x")).await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(
        answer.ends_with("done\r\n0\r\n\r\n") || answer.ends_with("done"),
        "{answer}"
    );
    assert_eq!(posts.load(SeqCst), 1);
}

/// RFC 9110, 9.2.2: a kept connection that ends without a word has carried nothing back; what changes nothing is asked
/// once more, and a POST is sent once.
#[tokio::test]
async fn rfc9110_9_2_2_a_kept_connection_that_ends_unread() {
    let (came, mut heads) = mpsc::channel(64);
    let app = script(move |mut stream, _| {
        let came = came.clone();
        async move {
            // One request a connection is answered, though it stays open.
            for answered in [true, false] {
                let head = head(&mut stream).await;
                if head.is_empty() {
                    return;
                }
                let line = head.lines().next().unwrap().to_owned();
                came.send(line).await.unwrap();
                if answered {
                    say(&mut stream, OK).await;
                }
            }
        }
    })
    .await;
    let pair = pair(InboundProtocol::Http, app).await;
    let mut expect = async |request: &str, expected: u16, times: usize| {
        let answer = pair.call(request).await;
        assert_eq!(status(&answer), expected, "{request}: {answer}");
        for _ in 0..times {
            let line = heads.recv().await.unwrap();
            assert_eq!(Some(line.as_str()), request.lines().next());
        }
        assert!(heads.try_recv().is_err(), "{request}");
    };
    expect(&get("/first"), 200, 1).await;
    expect(&get("/again"), 200, 2).await;
    let post = get("/once")
        .replace("GET", "POST")
        .replace("\r\n\r\n", "\r\ncontent-length: 0\r\n\r\n");
    expect(&post, 502, 1).await;
}

/// RFC 9113, 5.1.2: who takes one stream at a time gets a connection for each.
#[tokio::test]
async fn rfc9113_5_1_2_a_peers_bound_on_streams_opens_another_connection() {
    const CALLS: usize = 5;
    let all = Arc::new(Barrier::new(CALLS));
    let app = script(move |stream, _| {
        let all = all.clone();
        async move {
            let mut builder = h2::server::Builder::new();
            builder.max_concurrent_streams(1);
            let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
            while let Some(Ok((_, mut reply))) = connection.accept().await {
                let all = all.clone();
                tokio::spawn(async move {
                    all.wait().await;
                    reply.send_response(Response::new(()), true).unwrap();
                });
            }
        }
    })
    .await;
    let pair = Arc::new(pair(InboundProtocol::Http2, app).await);
    let calls: Vec<_> = (0..CALLS)
        .map(|_| {
            let pair = pair.clone();
            tokio::spawn(async move { pair.call(&get("/")).await })
        })
        .collect();
    for call in calls {
        let answer = call.await.unwrap();
        assert_eq!(status(&answer), 200, "{answer}");
    }
}

/// RFC 9112, 9.6: who has sent a whole request and says its end hears the answer.
#[tokio::test]
async fn rfc9112_9_6_whoever_has_said_all_hears_the_answer() {
    let (go, gone) = mpsc::channel::<()>(2);
    let gone = Arc::new(tokio::sync::Mutex::new(gone));
    let app = script(move |mut stream, _| {
        let gone = gone.clone();
        async move {
            while !head(&mut stream).await.is_empty() {
                gone.lock().await.recv().await;
                say(&mut stream, OK).await;
            }
        }
    })
    .await;
    let pair = pair(InboundProtocol::Http, app).await;
    // In plain text to the own proxy.
    let mut stream = pair.connect().await;
    say(&mut stream, "GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
    stream.shutdown().await.unwrap();
    // By TLS to the other one, with its close_notify.
    let svid = pair.world.svid("/edge");
    let mut peer = pair
        .world
        .connect(pair.callee.inbound("orders"), Some(&svid), "/orders")
        .await
        .unwrap();
    peer.write_all(b"GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await.unwrap();
    peer.shutdown().await.unwrap();
    // Both are decided, and both ends have been read by then.
    eventually("both are asked", async || pair.world.records("orders").len() == 2).await;
    tokio::task::yield_now().await;
    go.send(()).await.unwrap();
    go.send(()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.ends_with("ok"), "{answer}");
    let mut answer = String::new();
    let _ = timeout(PATIENCE, peer.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.ends_with("ok"), "{answer}");
}

/// What was cut off is never taken for whole, on either version of HTTP.
#[tokio::test]
async fn an_answer_cut_off_is_an_error_to_its_caller() {
    let app = script(|mut stream, _| async move {
        head(&mut stream).await;
        say(
            &mut stream,
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        )
        .await;
        // Its reader has all of it before the end.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let _ = socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO));
    })
    .await;
    let pair = pair(InboundProtocol::Http, app).await;
    let answer = pair.call(&get("/")).await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert!(answer.contains("half") && !answer.ends_with("0\r\n\r\n"), "{answer}");

    let mut send = pair.http2().await;
    let request = Request::get("http://orders/").body(()).unwrap();
    let (response, _) = send.send_request(request, true).unwrap();
    let mut body = response.await.unwrap().into_body();
    let cut = timeout(PATIENCE, async {
        while let Some(data) = body.data().await {
            data?;
        }
        Ok::<_, h2::Error>(())
    });
    assert!(cut.await.unwrap().unwrap_err().is_reset());
}
