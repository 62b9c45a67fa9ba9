//! A small world in one process: agents that speak the real Workload API, services that answer what they saw, clients
//! that hold any certificate, and proxies between them. Real sockets on free ports.

#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each test file uses another part of the world"
)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is how a test that cannot build its world fails"
)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use hoplite_audit::{Query, Record, read_log};
use hoplite_host::shutdown::{Stopper, channel};
use hoplite_identity::testing::TestAuthority;
use hoplite_identity::{PeerVerifier, SpiffeId, X509Svid, tls};
use hoplite_proxy::{Config, Inbound, InboundProtocol, Outbound, OutboundProtocol, Running};
use hoplite_wire::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use hoplite_wire::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::Status;

pub(crate) const TRUST_DOMAIN: &str = "demo.hoplite";
pub(crate) const HOUR: Duration = Duration::from_secs(3_600);

/// Nothing here takes longer, on any machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) authority: TestAuthority,
}

/// An agent for one workload.
pub(crate) struct Agent {
    pub(crate) address: String,
    identity: watch::Sender<X509svidResponse>,
    _stop: Stopper,
}

/// A service that answers with what it saw.
pub(crate) struct App {
    pub(crate) address: SocketAddr,
    pub(crate) requests: Arc<AtomicUsize>,
}

pub(crate) fn id(path: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://{TRUST_DOMAIN}{path}")).unwrap()
}

/// A proxy in front of `service`, with the agent it has its identity from.
pub(crate) struct Proxy {
    pub(crate) running: Running,
    pub(crate) agent: Agent,
    pub(crate) config: Config,
}

// === impl World ===

impl World {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            authority: TestAuthority::new(TRUST_DOMAIN),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn svid(&self, path: &str) -> X509Svid {
        self.authority.svid(path, HOUR)
    }

    /// Writes a policy file the way an editor does.
    pub(crate) fn policy(&self, file: &str, text: &str) {
        std::fs::create_dir_all(self.path("policies")).unwrap();
        std::fs::write(self.path("policies").join(file), text).unwrap();
    }

    pub(crate) async fn agent(&self, name: &str, svid: &X509Svid) -> Agent {
        Agent::start(
            &self.path(&format!("{name}-agent.sock")),
            message(svid, &self.authority),
        )
        .await
    }

    pub(crate) fn config(&self, name: &str, agent: &Agent) -> Config {
        Config {
            name: name.to_owned(),
            workload_api: agent.address.clone(),
            spiffe_id: None,
            policy_dir: Some(self.path("policies")),
            policy_signers: Default::default(),
            trust_domain: None,
            on_stale_policy: Default::default(),
            reference_check_every: 7,
            audit_dir: self.path(&format!("{name}-audit")),
            state_dir: self.path(&format!("{name}-state")),
            admin_socket: self.path(&format!("{name}.sock")),
            log_levels: None,
            metrics_listen: None,
            otlp: None,
            removed_headers: Default::default(),
            useless_frames_max: hoplite_proxy::USELESS_FRAMES_MAX,
            workers: 1,
            limits: Default::default(),
            inbound: Vec::new(),
            outbound: Vec::new(),
        }
    }

    /// A proxy with the identity `/<name>` before a service of that name.
    pub(crate) async fn inbound(&self, name: &str, protocol: InboundProtocol, forward_to: SocketAddr) -> Proxy {
        let agent = self.agent(name, &self.svid(&format!("/{name}"))).await;
        let mut config = self.config(name, &agent);
        config.inbound.push(inbound(name, protocol, forward_to));
        Proxy::start(config, agent).await
    }

    /// A proxy with the identity `/<name>` that calls `/<to>` at an address.
    pub(crate) async fn outbound(
        &self,
        name: &str,
        protocol: OutboundProtocol,
        to: &str,
        connect_to: SocketAddr,
    ) -> Proxy {
        let agent = self.agent(name, &self.svid(&format!("/{name}"))).await;
        let mut config = self.config(name, &agent);
        config
            .outbound
            .push(outbound(to, protocol, connect_to, id(&format!("/{to}"))));
        Proxy::start(config, agent).await
    }

    /// TLS to a proxy as anybody: `None` shows no certificate.
    pub(crate) async fn connect(
        &self,
        to: SocketAddr,
        svid: Option<&X509Svid>,
        expect: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_by(&[], to, svid, expect).await
    }

    /// Connects, with the application protocols that the client speaks.
    pub(crate) async fn connect_by(
        &self,
        alpn: &[&[u8]],
        to: SocketAddr,
        svid: Option<&X509Svid>,
        expect: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let verifier = Arc::new(PeerVerifier::new(self.authority.bundles()).unwrap());
        let config = tls::client_config(svid, verifier, id(expect), alpn).unwrap();
        let tcp = TcpStream::connect(to).await?;
        TlsConnector::from(config)
            .connect(ServerName::try_from("ignored.invalid").unwrap(), tcp)
            .await
    }

    /// Sends bytes as `/edge` over mutual TLS and reads until the proxy closes.
    pub(crate) async fn raw(&self, to: SocketAddr, expect: &str, request: &str) -> String {
        self.raw_as("/edge", to, expect, request).await
    }

    pub(crate) async fn raw_as(&self, path: &str, to: SocketAddr, expect: &str, request: &str) -> String {
        let svid = self.svid(path);
        let stream = self.connect(to, Some(&svid), expect).await.unwrap();
        exchange(stream, request).await
    }

    /// What a proxy has recorded.
    pub(crate) fn records(&self, name: &str) -> Vec<Record> {
        let dir = self.path(&format!("{name}-audit"));
        read_log(&dir, &Query::default())
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap()
    }
}

pub(crate) fn inbound(service: &str, protocol: InboundProtocol, forward_to: SocketAddr) -> Inbound {
    Inbound {
        listen: free(),
        service: service.parse().unwrap(),
        protocol,
        forward_to: forward_to.to_string(),
    }
}

pub(crate) fn outbound(name: &str, protocol: OutboundProtocol, connect_to: SocketAddr, expect: SpiffeId) -> Outbound {
    Outbound {
        name: name.parse().unwrap(),
        listen: free(),
        protocol,
        connect_to: connect_to.to_string(),
        expect,
    }
}

fn free() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

pub(crate) async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    let mut answer = Vec::new();
    let exchanged = async {
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        stream.read_to_end(&mut answer).await
    };
    // A connection that is closed without a word gives what came before it.
    let _ = tokio::time::timeout(PATIENCE, exchanged)
        .await
        .expect("an answer, or the connection's end");
    String::from_utf8_lossy(&answer).into_owned()
}

/// A GET that asks for the connection to be closed.
pub(crate) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n")
}

/// The decision id in an answer's header.
pub(crate) fn decision(answer: &str) -> String {
    let line = answer
        .lines()
        .find_map(|line| line.strip_prefix("x-hoplite-decision: "));
    line.unwrap_or_else(|| panic!("no decision id in {answer}")).to_owned()
}

pub(crate) fn status(answer: &str) -> u16 {
    answer
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("no status in `{answer}`"))
}

/// Tries until it holds.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let tried = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, tried)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}

// === impl Proxy ===

impl Proxy {
    pub(crate) async fn start(config: Config, agent: Agent) -> Self {
        config.validate(Path::new("test")).unwrap();
        let running = hoplite_proxy::start(config.clone()).await.unwrap();
        Self { running, agent, config }
    }

    pub(crate) fn inbound(&self, service: &str) -> SocketAddr {
        self.running.inbound(service).unwrap()
    }

    pub(crate) fn outbound(&self, name: &str) -> SocketAddr {
        self.running.outbound(name).unwrap()
    }

    pub(crate) async fn status(&self) -> serde_json::Value {
        hoplite_proxy::admin_status(&self.config.admin_socket).await.unwrap()
    }
}

// === impl Agent ===

pub(crate) fn message(svid: &X509Svid, authority: &TestAuthority) -> X509svidResponse {
    X509svidResponse {
        svids: vec![X509svid {
            spiffe_id: svid.spiffe_id().to_string(),
            x509_svid: svid.chain_der(),
            x509_svid_key: svid.key().secret_pkcs8_der().to_vec(),
            bundle: authority.bundle().to_der(),
            hint: String::new(),
        }],
        ..Default::default()
    }
}

impl Agent {
    pub(crate) async fn start(socket: &Path, first: X509svidResponse) -> Self {
        let (identity, _) = watch::channel(first);
        let (stop, mut stopped) = channel();
        let listener = UnixListener::bind(socket).unwrap();
        let service = SpiffeWorkloadApiServer::new(Serving(identity.clone()));
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(async move {
            tokio::select! {
                served = server.serve_with_incoming(UnixListenerStream::new(listener)) => served.unwrap(),
                () = stopped.wait() => {}
            }
        });
        Self {
            address: format!("unix://{}", socket.display()),
            identity,
            _stop: stop,
        }
    }

    /// Pushes another identity, as at a rotation.
    pub(crate) fn push(&self, svid: &X509Svid, authority: &TestAuthority) {
        self.identity.send_replace(message(svid, authority));
    }
}

struct Serving(watch::Sender<X509svidResponse>);

type Stream<T> = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SpiffeWorkloadApi for Serving {
    type FetchX509SVIDStream = Stream<X509svidResponse>;
    type FetchX509BundlesStream = Stream<X509BundlesResponse>;
    type FetchJWTBundlesStream = Stream<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        _: tonic::Request<X509svidRequest>,
    ) -> Result<tonic::Response<Self::FetchX509SVIDStream>, Status> {
        let stream = WatchStream::new(self.0.subscribe()).map(Ok);
        Ok(tonic::Response::new(Box::pin(stream)))
    }

    async fn fetch_x509_bundles(
        &self,
        _: tonic::Request<X509BundlesRequest>,
    ) -> Result<tonic::Response<Self::FetchX509BundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_jwtsvid(
        &self,
        _: tonic::Request<JwtsvidRequest>,
    ) -> Result<tonic::Response<JwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn fetch_jwt_bundles(
        &self,
        _: tonic::Request<JwtBundlesRequest>,
    ) -> Result<tonic::Response<Self::FetchJWTBundlesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn validate_jwtsvid(
        &self,
        _: tonic::Request<ValidateJwtsvidRequest>,
    ) -> Result<tonic::Response<ValidateJwtsvidResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

// === impl App ===

impl App {
    /// HTTP/1.1, and HTTP/2 with prior knowledge.
    pub(crate) async fn http() -> Self {
        let listener = TcpListener::bind(free()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = requests.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let counter = counter.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        counter.fetch_add(1, SeqCst);
                        echo(request)
                    });
                    let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { address, requests }
    }

    /// Sends back every byte.
    pub(crate) async fn tcp_echo() -> Self {
        let listener = TcpListener::bind(free()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = requests.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, SeqCst);
                tokio::spawn(async move {
                    let (mut reads, mut writes) = stream.split();
                    let _ = tokio::io::copy(&mut reads, &mut writes).await;
                });
            }
        });
        Self { address, requests }
    }

    pub(crate) fn count(&self) -> usize {
        self.requests.load(SeqCst)
    }
}

/// Answers with the request as it came, its body, and trailers that say so.
async fn echo(request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, hyper::Error>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let authority = parts.uri.authority().map_or("", |authority| authority.as_str());
    let mut seen = format!(
        "{} {} [{authority}]\n",
        parts.method,
        parts.uri.path_and_query().map_or("", |path| path.as_str())
    );
    for (name, value) in &parts.headers {
        seen.push_str(&format!("{name}: {}\n", value.to_str().unwrap_or("?")));
    }
    let body = body.collect().await?;
    for (name, value) in body.trailers().into_iter().flatten() {
        seen.push_str(&format!("trailer {name}: {}\n", value.to_str().unwrap_or("?")));
    }
    seen.push_str(&format!("\n{}", String::from_utf8_lossy(&body.to_bytes())));
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Full::new(Bytes::from(seen)).map_err(|never| match never {});
    let body = match parts.uri.path() {
        "/trailers" => body.with_trailers(async { Some(Ok(trailers)) }).boxed(),
        _ => body.boxed(),
    };
    let mut response = Response::new(body);
    // A service must not be able to speak for the proxy.
    response
        .headers_mut()
        .insert("x-hoplite-decision", HeaderValue::from_static("forged-1-1"));
    Ok(response)
}
