//! A proxy before a service that keeps every byte, a caller with a good SVID, and requests in bytes of our own.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hoplite_audit::{Outcome, Query, Record};
use hoplite_proxy::InboundProtocol;
use hoplite_tests::frames::Frame;
use hoplite_tests::{Proxy, TestClient, World, id, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

/// The client may do all but enter one part of the service.
pub(crate) const POLICY: &str = r#"
@id("backend/client") permit (principal == Hoplite::Workload::"spiffe://world.test/client",
    action in [Hoplite::Action::"anyHttp"], resource in Hoplite::Service::"backend");
@id("backend/no-admin") forbid (principal, action, resource in Hoplite::Service::"backend")
    when { context has seg && context.seg has s0 && context.seg.s0 == "admin" };
"#;

pub(crate) const ROUTES: &str = r#"
[backend]
routes = ["GET /", "GET /{a}", "GET /a/{b}", "GET /{a}/b", "GET /a/{b}/{c}", "* /.well-known/{b}"]
"#;

/// A proxy before a service that remembers every byte, and a caller with a good SVID.
pub(crate) struct Scene {
    pub(crate) client: TestClient,
    pub(crate) backend: Proxy,
    pub(crate) world: World,
    pub(crate) app: RawApp,
}

/// A service that keeps what it was sent, one request to a connection.
pub(crate) struct RawApp {
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<Mutex<Vec<Vec<u8>>>>,
}

// === impl RawApp ===

impl RawApp {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let all = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Self::serve(stream, Arc::clone(&all)));
            }
        });
        Self { address, connections }
    }

    pub(crate) async fn serve(mut stream: TcpStream, all: Arc<Mutex<Vec<Vec<u8>>>>) {
        let place = {
            let mut all = all.lock().unwrap();
            all.push(Vec::new());
            all.len() - 1
        };
        let mut buffer = [0; 16 << 10];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            let whole = {
                let all = &mut all.lock().unwrap()[place];
                all.extend(&buffer[..read]);
                is_whole(all)
            };
            if whole {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
                let _ = stream.write_all(answer).await;
                return;
            }
        }
    }

    /// Everything it was ever sent.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.connections.lock().unwrap().concat()
    }

    /// What came last, as text.
    pub(crate) fn last(&self) -> String {
        let all = self.connections.lock().unwrap();
        String::from_utf8(all.last().cloned().unwrap_or_default()).unwrap()
    }
}

/// Whether a request and its body have come to their end, as a plain server sees it.
pub(crate) fn is_whole(bytes: &[u8]) -> bool {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return false;
    };
    let (head, body) = bytes.split_at(end + 4);
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map(|length| length.parse::<usize>().unwrap());
    match length {
        Some(length) => body.len() >= length,
        None if head.contains("\r\ntransfer-encoding: chunked\r\n") => {
            body.ends_with(b"\r\n\r\n") || body == b"0\r\n\r\n"
        }
        None => true,
    }
}

// === impl Scene ===

impl Scene {
    pub(crate) async fn start() -> Self {
        let world = World::start().await;
        world.policy(POLICY);
        std::fs::write(world.dir().join("policies/routes.toml"), ROUTES).unwrap();
        let app = RawApp::start().await;
        let backend = world
            .proxy("backend")
            .inbound("backend", InboundProtocol::Http, app.address)
            .start()
            .await;
        let client = world.caller("/client").await;
        Self {
            client,
            backend,
            world,
            app,
        }
    }

    pub(crate) async fn connect(&self, alpn: &[u8]) -> TlsStream<TcpStream> {
        let address = self.backend.inbound("backend");
        self.client.connect(address, &id("/backend"), &[alpn]).await.unwrap()
    }

    /// Writes bytes on a connection of their own, and gives what is said until it ends.
    pub(crate) async fn h1(&self, request: &[u8]) -> String {
        let mut stream = self.connect(b"http/1.1").await;
        // The proxy may have had enough before it has read all.
        let _ = stream.write_all(request).await;
        let _ = stream.flush().await;
        let mut said = Vec::new();
        let reading = async {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                said.extend(&buffer[..read]);
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(20), reading).await;
        assert!(ended.is_ok(), "{}: no end", request.escape_ascii());
        String::from_utf8(said).unwrap()
    }

    pub(crate) fn records(&self, outcome: Option<Outcome>) -> Vec<Record> {
        self.world.records(&Query {
            outcome: outcome.into_iter().collect(),
            ..Query::default()
        })
    }

    /// Waits for the next record `malformed`, of which there were `before`, and gives its reason.
    pub(crate) async fn malformed(&self, form: &str, before: usize) -> String {
        let records = until(&format!("{form} is recorded as malformed"), async || {
            let records = self.records(Some(Outcome::Malformed));
            (records.len() > before).then_some(records)
        })
        .await;
        assert_eq!(records.len(), before + 1, "{form}: {records:#?}");
        let record = &records[before];
        assert_eq!(record.principal, Some(id("/client")), "{form}");
        record.reason.clone().unwrap()
    }

    /// It is answered with 400 and recorded with a reason that begins like this, and the service hears nothing.
    pub(crate) async fn refuses_h1(&self, code: &str, request: impl AsRef<[u8]>) {
        let request = request.as_ref();
        let form = request.escape_ascii().to_string();
        let before = self.records(Some(Outcome::Malformed)).len();
        let said = self.h1(request).await;
        assert!(
            said.starts_with("HTTP/1.1 400 ") || said.starts_with("HTTP/1.0 400 "),
            "{form}: {said}"
        );
        assert_eq!(said.matches("HTTP/1.").count(), 1, "{form}: {said}");
        let reason = self.malformed(&form, before).await;
        assert!(reason.starts_with(&format!("{code}: ")), "{form}: {reason}");
        assert_eq!(
            self.app.bytes().escape_ascii().to_string(),
            "",
            "{form} reached the service"
        );
    }

    /// Asks over HTTP/2, where what is no request is reset.
    pub(crate) async fn refuses_h2(&self, code: &str, expected: Said, fields: &[Field<'_>], body: Option<&[u8]>) {
        let form = format!(
            "{:?}",
            fields
                .iter()
                .map(|(n, v)| (n.escape_ascii().to_string(), v.escape_ascii().to_string()))
                .collect::<Vec<_>>()
        );
        let before = self.records(Some(Outcome::Malformed)).len();
        assert_eq!(self.h2(fields, body).await, expected, "{form}");
        let reason = self.malformed(&form, before).await;
        assert!(reason.starts_with(&format!("{code}: ")), "{form}: {reason}");
        assert_eq!(
            self.app.bytes().escape_ascii().to_string(),
            "",
            "{form} reached the service"
        );
    }

    /// A connection of HTTP/2 for several requests, in frames of our own.
    pub(crate) async fn open_h2(&self) -> Connection {
        let mut stream = self.connect(b"h2").await;
        stream.write_all(&hoplite_tests::frames::opening()).await.unwrap();
        Connection {
            stream,
            heard: Vec::new(),
        }
    }

    /// One request over HTTP/2, in frames of our own, and the first thing that is said about it.
    pub(crate) async fn h2(&self, fields: &[Field<'_>], body: Option<&[u8]>) -> Said {
        const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        const END_STREAM: u8 = 1;
        const END_HEADERS: u8 = 4;
        let mut stream = self.connect(b"h2").await;
        let block: Vec<u8> = fields
            .iter()
            .flat_map(|(name, value)| [vec![0], text(name), text(value)].concat())
            .collect();
        let end = if body.is_none() { END_STREAM } else { 0 };
        let mut bytes = [
            PREFACE,
            &frame(SETTINGS, 0, 0, &[]),
            &frame(HEADERS, END_HEADERS | end, 1, &block),
        ]
        .concat();
        if let Some(body) = body {
            bytes.extend(frame(DATA, END_STREAM, 1, body));
        }
        stream.write_all(&bytes).await.unwrap();
        stream.flush().await.unwrap();
        let said = async {
            loop {
                let mut head = [0; 9];
                stream.read_exact(&mut head).await.unwrap();
                let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
                stream.read_exact(&mut payload).await.unwrap();
                let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
                match head[3] {
                    HEADERS => {
                        return Said::Status(status(&payload));
                    }
                    RST_STREAM => return Said::Reset(code(0)),
                    GOAWAY => return Said::Ended(code(4)),
                    _ => {}
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), said).await.unwrap()
    }
}

/// A connection of HTTP/2, and what was said on it and not asked for yet.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    heard: Vec<Frame>,
}

// === impl Connection ===

impl Connection {
    /// Fields as literals, in as many frames as they need.
    pub(crate) async fn headers(&mut self, stream: u32, fields: &[Field<'_>], end: bool) {
        let block: Vec<u8> = fields
            .iter()
            .flat_map(|(name, value)| [vec![0], text(name), text(value)].concat())
            .collect();
        self.block(stream, &block, end).await;
    }

    pub(crate) async fn block(&mut self, stream: u32, block: &[u8], end: bool) {
        let mut pieces = block.chunks(10_000).peekable();
        let (mut kind, mut flags) = (HEADERS, u8::from(end));
        while let Some(piece) = pieces.next() {
            let last = if pieces.peek().is_none() { 4 } else { 0 };
            let frame = frame(kind, flags | last, stream, piece);
            self.stream.write_all(&frame).await.unwrap();
            (kind, flags) = (9, 0);
        }
        self.stream.flush().await.unwrap();
    }

    pub(crate) async fn data(&mut self, stream: u32, bytes: &[u8], end: bool) {
        let frame = frame(DATA, u8::from(end), stream, bytes);
        self.stream.write_all(&frame).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The first thing that is said about a stream, or about all of them.
    pub(crate) async fn said(&mut self, stream: u32) -> Said {
        let about = |frame: &Frame| match frame.kind {
            HEADERS | RST_STREAM => frame.stream == stream,
            GOAWAY => true,
            _ => false,
        };
        let frame = self.hear(about).await;
        match (frame.kind, frame.error()) {
            (RST_STREAM, Some(error)) => Said::Reset(error),
            (GOAWAY, Some(error)) => Said::Ended(error),
            _ => Said::Status(status(&frame.payload)),
        }
    }

    /// An answer's body, if it is one frame.
    pub(crate) async fn body(&mut self, stream: u32) -> String {
        let frame = self.hear(|frame| frame.kind == DATA && frame.stream == stream).await;
        String::from_utf8(frame.payload).unwrap()
    }

    async fn hear(&mut self, about: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            if let Some(at) = self.heard.iter().position(&about) {
                return self.heard.remove(at);
            }
            let read = tokio::time::timeout(Duration::from_secs(20), Frame::read(&mut self.stream));
            self.heard.push(read.await.unwrap().unwrap());
        }
    }
}

/// An indexed field of the static table (RFC 7541, A), after what the dynamic table's size is; 0 for others.
fn status(block: &[u8]) -> u16 {
    match block.iter().find(|byte| **byte & 0xe0 != 0x20).unwrap() {
        0x88 => 200,
        0x8c => 400,
        _ => 0,
    }
}

// === HTTP/2, frame by frame ===

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

const PROTOCOL_ERROR: u32 = 1;

pub(crate) type Field<'a> = (&'a [u8], &'a [u8]);

/// What a server says of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Status(u16),
    Reset(u32),
    Ended(u32),
}

pub(crate) const RESET: fn() -> Said = || Said::Reset(PROTOCOL_ERROR);
pub(crate) const ANSWERED: fn() -> Said = || Said::Status(400);

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A string literal of HPACK (RFC 7541, 5.2), as it is.
pub(crate) fn text(bytes: &[u8]) -> Vec<u8> {
    assert!(bytes.len() < 127);
    [&[u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

/// A sound request with these fields after it.
pub(crate) fn and<'a>(fields: &[Field<'a>]) -> Vec<Field<'a>> {
    with(b"/", fields)
}

pub(crate) fn with<'a>(path: &'a [u8], fields: &[Field<'a>]) -> Vec<Field<'a>> {
    let mut all: Vec<Field<'a>> = vec![
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":path", path),
        (b":authority", b"backend"),
    ];
    all.extend(fields);
    all
}

/// A sound request of HTTP/1.1 with these lines in its head.
pub(crate) fn lines(lines: &str) -> String {
    format!("POST / HTTP/1.1\r\nhost: backend\r\n{lines}\r\n")
}

/// What somebody hopes will be taken for a request of its own.
pub(crate) const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: backend\r\n\r\n";
