//! Who calls: a plain HTTP client as curl is one, and a workload that calls with its own SVID.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hoplite_identity::{BundleSet, PeerVerifier, SpiffeId, X509Svid, tls};
use http::header::HOST;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// No call in a test takes longer, or it has failed.
const CALL_MAX: Duration = Duration::from_secs(15);

/// The name that callers give their servers. It means nothing: peers are known by SPIFFE ID.
const HOST_NAME: &str = "service.test";

/// Why a call got no answer.
pub type CallError = Box<dyn Error + Send + Sync>;

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, as text.
    pub body: String,
}

/// A plain HTTP/1.1 client that keeps its connection, and opens another when the server has closed it.
#[derive(Debug)]
pub struct PlainClient {
    address: SocketAddr,
    sender: Option<http1::SendRequest<Full<Bytes>>>,
}

/// A workload with an SVID, that calls by mutual TLS.
#[derive(Debug)]
pub struct TestClient {
    /// Its SVID; none for a client that has nothing to show.
    pub svid: Option<X509Svid>,
    /// What it verifies servers with.
    pub bundles: BundleSet,
}

/// One plain GET on a connection of its own.
pub async fn get(address: SocketAddr, path: &str) -> Result<Answer, CallError> {
    PlainClient::new(address).call(Method::GET, path).await
}

/// One request and its answer over a stream that is spent with it.
pub async fn exchange<S>(stream: S, http2: bool, request: Request<Full<Bytes>>) -> Result<Answer, CallError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let exchanged = async {
        let io = TokioIo::new(stream);
        let (response, connection) = if http2 {
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            let connection = tokio::spawn(async move { connection.await.ok() });
            (sender.send_request(request).await, connection)
        } else {
            let (mut sender, connection) = http1::handshake(io).await?;
            let connection = tokio::spawn(async move { connection.await.ok() });
            (sender.send_request(request).await, connection)
        };
        let answer = match response {
            Ok(response) => Answer::read(response).await,
            Err(error) => Err(error.into()),
        };
        connection.abort();
        answer
    };
    tokio::time::timeout(CALL_MAX, exchanged).await?
}

// === impl Answer ===

impl Answer {
    async fn read(response: http::Response<hyper::body::Incoming>) -> Result<Self, CallError> {
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Self {
            status: parts.status,
            headers: parts.headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }

    /// The decision it names.
    pub fn decision(&self) -> Option<&str> {
        self.headers.get("x-hoplite-decision")?.to_str().ok()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }
}

// === impl PlainClient ===

impl PlainClient {
    /// Of the server at this address.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, sender: None }
    }

    /// One request without a body.
    pub async fn call(&mut self, method: Method, path: &str) -> Result<Answer, CallError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, HOST_NAME)
            .body(Full::default())?;
        tokio::time::timeout(CALL_MAX, self.send(request)).await?
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, CallError> {
        let kept = match self.sender.take() {
            Some(mut kept) => kept.ready().await.is_ok().then_some(kept),
            None => None,
        };
        let mut sender = match kept {
            Some(kept) => kept,
            None => {
                let stream = TcpStream::connect(self.address).await?;
                stream.set_nodelay(true)?;
                let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                sender
            }
        };
        let answer = Answer::read(sender.send_request(request).await?).await?;
        self.sender = Some(sender);
        Ok(answer)
    }
}

// === impl TestClient ===

impl TestClient {
    /// One who trusts the same bundles and has nothing to show.
    pub fn stranger(&self) -> Self {
        Self {
            svid: None,
            bundles: self.bundles.clone(),
        }
    }

    /// A TLS configuration that shows the SVID and accepts only `expect`.
    pub fn tls(&self, expect: &str, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        let verifier = Arc::new(PeerVerifier::new(self.bundles.clone()).unwrap());
        tls::client_config(self.svid.as_ref(), verifier, SpiffeId::parse(expect).unwrap(), alpn).unwrap()
    }

    /// A TLS connection. In TLS 1.3 a server that refuses the certificate says so only afterwards.
    pub async fn connect(
        &self,
        address: SocketAddr,
        expect: &str,
        alpn: &[&[u8]],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        connect_tls(address, self.tls(expect, alpn)).await
    }

    /// One HTTP/2 GET on a connection of its own.
    pub async fn get(&self, address: SocketAddr, expect: &str, path: &str) -> Result<Answer, CallError> {
        self.call(
            address,
            expect,
            Request::builder()
                .uri(format!("https://{HOST_NAME}{path}"))
                .body(Full::default())?,
        )
        .await
    }

    /// One HTTP/2 request on a connection of its own.
    pub async fn call(
        &self,
        address: SocketAddr,
        expect: &str,
        request: Request<Full<Bytes>>,
    ) -> Result<Answer, CallError> {
        let stream = self.connect(address, expect, &[b"h2"]).await?;
        exchange(stream, true, request).await
    }
}

/// TLS with a configuration of the test's own.
pub(crate) async fn connect_tls(
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    TlsConnector::from(config)
        .connect(ServerName::try_from(HOST_NAME).unwrap(), stream)
        .await
}
