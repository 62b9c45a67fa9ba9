//! Who has said all and still hears: over HTTP/2 by its frames themselves, over HTTP/1.1 by its bytes, on either side.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hoplite_proxy::{InboundProtocol, OutboundProtocol};
use http::{Request, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

use crate::support::{PATIENCE, Proxy, World};

const OPEN: &str = r#"@id("open") permit (principal, action, resource);"#;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `:method`, `:scheme http`, `:path`, `:authority orders`.
fn request(stream: u32, method: u8, path: &str, end: u8) -> Vec<u8> {
    let path = [&[0x04, u8::try_from(path.len()).unwrap()][..], path.as_bytes()].concat();
    let block = [&[method, 0x86][..], &path, b"\x01\x06orders"].concat();
    frame(HEADERS, END_HEADERS | end, stream, &block)
}

const GET: u8 = 0x82;
const POST: u8 = 0x83;

/// Two whole requests, one of them with a body, and one that is not.
fn asked() -> Vec<u8> {
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(SETTINGS, 0, 0, &[]),
        request(1, GET, "/1", END_STREAM),
        request(3, POST, "/3", 0),
        request(5, POST, "/half", 0),
        frame(DATA, 0, 5, b"half"),
        frame(DATA, END_STREAM, 3, b"body"),
    ]
    .concat()
}

/// What came on a connection until its end: each stream's data if it was ended, and the streams that were reset.
#[derive(Debug, Default)]
struct Heard {
    whole: BTreeMap<u32, String>,
    reset: Vec<u32>,
}

impl Heard {
    async fn to_the_end(mut stream: impl AsyncRead + Unpin) -> Self {
        let (mut heard, mut begun) = (Self::default(), BTreeMap::<u32, Vec<u8>>::new());
        let mut bytes = Vec::new();
        // The proxy's end is clean.
        timeout(PATIENCE, stream.read_to_end(&mut bytes))
            .await
            .unwrap()
            .unwrap();
        let mut rest = bytes.as_slice();
        while let [a, b, c, kind, flags, s @ ..] = rest {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            let stream = u32::from_be_bytes(s[..4].try_into().unwrap());
            let payload = &rest[9..9 + length];
            rest = &rest[9 + length..];
            match *kind {
                DATA => begun.entry(stream).or_default().extend(payload),
                RST_STREAM => heard.reset.push(stream),
                _ => {}
            }
            if [DATA, HEADERS].contains(kind) && flags & END_STREAM != 0 {
                let data = begun.remove(&stream).unwrap_or_default();
                heard.whole.insert(stream, String::from_utf8(data).unwrap());
            }
        }
        heard
    }
}

/// A service of HTTP/1.1 that answers with the path when it is let, and tells of a body that breaks off.
struct App {
    address: SocketAddr,
    go: mpsc::Sender<()>,
    /// What there is of a body that is not whole, and again when it breaks off.
    half: mpsc::Receiver<String>,
}

impl App {
    async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let ((go, gone), (telling, half)) = (mpsc::channel(9), mpsc::channel(99));
        let gone = Arc::new(Mutex::new(gone));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (gone, telling) = (gone.clone(), telling.clone());
                tokio::spawn(async move {
                    let mut bytes = Vec::new();
                    loop {
                        let text = String::from_utf8_lossy(&bytes).into_owned();
                        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
                        let whole = match head.contains("transfer-encoding") {
                            true => body.ends_with("0\r\n\r\n"),
                            false => !head.is_empty(),
                        };
                        if !whole {
                            let tell = async || {
                                if text.contains("half\r\n") {
                                    telling.send(text.clone()).await.unwrap();
                                }
                            };
                            tell().await;
                            let mut more = [0; 1024];
                            let Ok(read @ 1..) = stream.read(&mut more).await else {
                                return tell().await;
                            };
                            bytes.extend(&more[..read]);
                            continue;
                        }
                        gone.lock().await.recv().await;
                        let path = head.split(' ').nth(1).unwrap();
                        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len());
                        stream.write_all(answer.as_bytes()).await.unwrap();
                        bytes.clear();
                    }
                });
            }
        });
        Self { address, go, half }
    }

    /// The body that is not whole.
    async fn half(&mut self) -> String {
        timeout(PATIENCE, self.half.recv()).await.unwrap().unwrap()
    }
}

async fn callee(protocol: InboundProtocol, app: SocketAddr) -> (World, Proxy) {
    let world = World::new();
    world.policy("open.cedar", OPEN);
    let callee = world.inbound("orders", protocol, app).await;
    (world, callee)
}

async fn caller(world: &World, callee: &Proxy) -> Proxy {
    let to = callee.inbound("orders");
    world.outbound("edge", OutboundProtocol::Http, "orders", to).await
}

/// Asks, says its end, and lets the service answer once the end has been read.
async fn half_closed<S>(app: &mut App, mut stream: S, end: impl AsyncFnOnce(&mut S))
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(&asked()).await.unwrap();
    stream.flush().await.unwrap();
    let half = app.half().await;
    end(&mut stream).await;
    assert_eq!(app.half().await, half, "it is cut off at once");
    for _ in 0..2 {
        app.go.send(()).await.unwrap();
    }
    let heard = Heard::to_the_end(stream).await;
    let expected = [(1, "/1".to_owned()), (3, "/3".to_owned())];
    assert_eq!(heard.whole, BTreeMap::from(expected), "{heard:?}");
}

#[tokio::test]
async fn rfc9113_9_1_whoever_has_said_all_over_tls_hears_its_answers() {
    let mut app = App::start().await;
    let (world, callee) = callee(InboundProtocol::Http, app.address).await;
    let svid = world.svid("/edge");
    let connect = async || {
        let to = callee.inbound("orders");
        let stream = world.connect_by(&[b"h2"], to, Some(&svid), "/orders");
        stream.await.unwrap()
    };
    // close_notify and the end of TCP's side.
    half_closed(&mut app, connect().await, async |stream| {
        stream.shutdown().await.unwrap()
    })
    .await;
    // The end of TCP's side alone.
    half_closed(&mut app, connect().await, async |stream| {
        stream.get_mut().0.shutdown().await.unwrap();
    })
    .await;
    // close_notify alone.
    half_closed(&mut app, connect().await, async |stream| {
        let (tcp, tls) = stream.get_mut();
        tls.send_close_notify();
        let mut bytes = Vec::new();
        tls.write_tls(&mut bytes).unwrap();
        tcp.write_all(&bytes).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn rfc9113_9_1_whoever_has_said_all_in_plain_text_hears_its_answers() {
    let mut app = App::start().await;
    let (world, callee) = callee(InboundProtocol::Http, app.address).await;
    let caller = caller(&world, &callee).await;
    let stream = TcpStream::connect(caller.outbound("orders")).await.unwrap();
    half_closed(&mut app, stream, async |stream| stream.shutdown().await.unwrap()).await;
}

/// A GOAWAY before the end says no more than that nothing new comes.
#[tokio::test]
async fn rfc9113_6_8_a_callers_goaway_and_end_take_no_answer_away() {
    let mut app = App::start().await;
    let (world, callee) = callee(InboundProtocol::Http, app.address).await;
    let svid = world.svid("/edge");
    let stream = world.connect_by(&[b"h2"], callee.inbound("orders"), Some(&svid), "/orders");
    half_closed(&mut app, stream.await.unwrap(), async |stream| {
        stream.write_all(&frame(GOAWAY, 0, 0, &[0; 8])).await.unwrap();
        stream.shutdown().await.unwrap();
    })
    .await;
}

/// What ends in the middle of a frame has broken off, also where that frame was to be the last.
#[tokio::test]
async fn what_ends_in_the_middle_of_a_frame_is_never_whole() {
    let mut app = App::start().await;
    let (world, callee) = callee(InboundProtocol::Http, app.address).await;
    let svid = world.svid("/edge");
    let last = frame(DATA, END_STREAM, 5, b"the whole rest");
    for length in [1, 8, 9, 15, last.len() - 1] {
        let stream = world.connect_by(&[b"h2"], callee.inbound("orders"), Some(&svid), "/orders");
        let mut stream = stream.await.unwrap();
        stream.write_all(&asked()).await.unwrap();
        app.half().await;
        stream.write_all(&last[..length]).await.unwrap();
        stream.shutdown().await.unwrap();
        // Pieces of it may go on; its end does not.
        let mut rest = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap();
        while let Ok(Some(half)) = timeout(Duration::from_millis(100), app.half.recv()).await {
            assert!(
                !half.contains("rest") && !half.ends_with("0\r\n\r\n"),
                "{length}: {half}"
            );
        }
    }
}

#[tokio::test]
async fn rfc9112_9_6_requests_in_a_row_are_answered_after_their_callers_end() {
    let app = App::start().await;
    let (world, callee) = callee(InboundProtocol::Http, app.address).await;
    let caller = caller(&world, &callee).await;
    let both = b"GET /1 HTTP/1.1\r\nhost: orders\r\n\r\nGET /2 HTTP/1.1\r\nhost: orders\r\n\r\n";
    for _ in 0..6 {
        app.go.send(()).await.unwrap();
    }
    let mut plain = TcpStream::connect(caller.outbound("orders")).await.unwrap();
    plain.write_all(both).await.unwrap();
    plain.shutdown().await.unwrap();
    answered_twice(plain).await;
    let svid = world.svid("/edge");
    for notify in [true, false] {
        let stream = world.connect(callee.inbound("orders"), Some(&svid), "/orders");
        let mut stream = stream.await.unwrap();
        stream.write_all(both).await.unwrap();
        match notify {
            true => stream.shutdown().await.unwrap(),
            false => stream.get_mut().0.shutdown().await.unwrap(),
        }
        answered_twice(stream).await;
    }
}

async fn answered_twice(mut stream: impl AsyncRead + Unpin) {
    let mut answers = String::new();
    let _ = timeout(PATIENCE, stream.read_to_string(&mut answers)).await.unwrap();
    assert!(
        answers.contains("/1HTTP/1.1 200") && answers.ends_with("/2"),
        "{answers}"
    );
}

/// A service of HTTP/2 that says this to the first request of each connection, and its end. It reads on.
async fn answering(said: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let said = said.clone();
            tokio::spawn(async move {
                stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
                stream.read_exact(&mut [0; 24]).await.unwrap();
                let mut head = [0; 9];
                while head[3] != HEADERS {
                    stream.read_exact(&mut head).await.unwrap();
                    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                    stream.read_exact(&mut vec![0; length]).await.unwrap();
                }
                stream.write_all(&said).await.unwrap();
                stream.shutdown().await.unwrap();
                while let Ok(1..) = stream.read(&mut [0; 1024]).await {}
            });
        }
    });
    address
}

/// A whole answer is one, whatever comes behind it and however far its request is; half of one is none.
#[tokio::test]
async fn a_services_end_behind_its_answer_takes_nothing_of_it() {
    let head = frame(HEADERS, END_HEADERS, 1, &[0x88]);
    let answer = [head.clone(), frame(DATA, END_STREAM, 1, b"whole")].concat();
    let goaway = frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]);
    let cases = [
        (answer.clone(), true),
        ([answer.clone(), goaway.clone()].concat(), true),
        ([goaway.clone(), answer.clone()].concat(), true),
        // The rest of the request is not wanted (RFC 9113, 8.1).
        ([answer, frame(RST_STREAM, 0, 1, &[0; 4])].concat(), true),
        ([head.clone(), frame(DATA, 0, 1, b"who")].concat(), false),
        ([head, frame(DATA, 0, 1, b"who"), goaway].concat(), false),
    ];
    for (number, (said, whole)) in cases.into_iter().enumerate() {
        for asked_whole in [true, false] {
            let what = format!("case {number}, request whole: {asked_whole}");
            let app = answering(said.clone()).await;
            let (world, callee) = callee(InboundProtocol::Http2, app).await;
            let svid = world.svid("/edge");
            let stream = world.connect_by(&[b"h2"], callee.inbound("orders"), Some(&svid), "/orders");
            let (mut send, connection) = h2::client::handshake(stream.await.unwrap()).await.unwrap();
            tokio::spawn(connection);
            let request = Request::post("https://orders/").body(()).unwrap();
            let (response, mut sending) = send.send_request(request, asked_whole).unwrap();
            if !asked_whole {
                sending.send_data(Bytes::from_static(b"some"), false).unwrap();
            }
            let response = timeout(PATIENCE, response).await.unwrap();
            let body = async {
                let mut response = response?;
                assert_eq!(response.status(), StatusCode::OK, "{what}");
                let mut body = Vec::new();
                while let Some(data) = response.body_mut().data().await {
                    body.extend(data?);
                }
                Ok::<_, h2::Error>(String::from_utf8(body).unwrap())
            };
            let body = timeout(PATIENCE, body).await.unwrap();
            match whole {
                true => assert_eq!(body.unwrap(), "whole", "{what}"),
                false => drop(body.unwrap_err()),
            }
        }
    }
}
