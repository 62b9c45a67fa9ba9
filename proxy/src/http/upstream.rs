//! HTTP to the other side, over connections that are kept: one idea for the service behind us and for peers.
//!
//! HTTP/2 shares a connection between requests, HTTP/1.1 takes one for each and gives it back. A connection is used for
//! new requests only while the identity and the destination it was made with are in force and its end is not near. A request that was never
//! sent is sent again on another connection; one that may have been seen is not.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use hoplite_host::clock;
use hoplite_host::shutdown::{self, Shutdown, Stopper};
use hoplite_policy::CanonicalRequest;
use http::header::HOST;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, Uri, Version};
use hyper::client::conn::{http1, http2};
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::http::body::Body;
use crate::peer::dial::{self, DIAL_MAX, Dialled, MadeWith, Peer, UpstreamError};
use crate::peer::identity_feed::Layer;
use crate::peer::session::{Event, Session};

/// How often a request is sent that was never sent.
const ATTEMPTS_MAX: usize = 3;

/// Streams on one HTTP/2 connection before another is opened: what RFC 9113 (6.5.2) asks every server to allow.
const STREAMS_MAX: usize = 100;

/// Kept HTTP/1.1 connections; more are closed after use.
const KEPT_MAX: usize = 1_024;

/// An unused HTTP/1.1 connection is left before the server closes it: a request that meets the closing would fail.
/// Servers wait from 2 s (gunicorn) and 5 s (Node) on; a new connection on the own machine costs next to nothing.
const IDLE_MAX: Duration = Duration::from_millis(1_500);

/// A peer that has gone without a word is noticed after this and `PING_TIMEOUT`.
const PING_EVERY: Duration = Duration::from_secs(30);

const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Response headers, decompressed.
const HEADER_BYTES_MAX: u32 = 64 << 10;

/// What one stream may have under way, and what one connection may.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// One HTTP server, and our connections to it.
pub(crate) struct Upstream {
    target: Target,
    kept: Mutex<Vec<UpstreamConnection>>,
    /// Held while a connection is made that others will share, so that a hundred requests make one connection.
    dialling: tokio::sync::Mutex<()>,
    /// Whether the last connection could be shared.
    shared: AtomicBool,
}

/// Where an upstream is and how it is spoken to.
pub(crate) enum Target {
    /// The service behind an inbound listener.
    Service {
        address: String,
        /// HTTP/2 with prior knowledge.
        http2: bool,
    },
    /// Another proxy, or anything with the expected SVID.
    Peer(Peer),
}

struct UpstreamConnection {
    sender: Sender,
    made_with: MadeWith,
    used: Instant,
    /// No new requests: its end is near.
    retired: Arc<AtomicBool>,
    /// One for us, and one for each stream under way.
    streams: Arc<()>,
    /// Why it ended.
    fault: Arc<OnceLock<UpstreamError>>,
}

enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

// === impl Upstream ===

impl Upstream {
    pub(crate) fn new(target: Target) -> Self {
        let shared = match &target {
            Target::Service { http2, .. } => *http2,
            Target::Peer(_) => true,
        };
        Self {
            target,
            kept: Mutex::default(),
            dialling: tokio::sync::Mutex::default(),
            shared: AtomicBool::new(shared),
        }
    }

    /// Sends a request as `canonical` says, and returns as soon as the response's head is there.
    pub(crate) async fn send(
        &self,
        canonical: &CanonicalRequest,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, UpstreamError> {
        let mut unsent = None;
        for _ in 0..ATTEMPTS_MAX {
            let mut connection = self.connection().await?;
            self.address(&mut request, canonical, &connection)?;
            let stream = connection.streams.clone();
            let sent = match &mut connection.sender {
                Sender::Http1(sender) => sender.try_send_request(request).await,
                Sender::Http2(sender) => sender.try_send_request(request).await,
            };
            let mut failed = match sent {
                Ok(response) => {
                    self.give_back(connection);
                    return Ok(response.map(|incoming| Body::Streamed {
                        incoming,
                        _stream: Some(stream),
                        answering: None,
                    }));
                }
                Err(failed) => failed,
            };
            let returned = failed.take_message();
            let error = connection.failure(&self.name(), failed.error());
            match returned {
                Some(returned) => request = returned,
                None => return Err(error),
            }
            unsent = Some(error);
        }
        Err(unsent.unwrap_or_else(|| UpstreamError::Timeout(self.name())))
    }

    /// A kept connection that can take a request now, or a new one.
    async fn connection(&self) -> Result<UpstreamConnection, UpstreamError> {
        if let Some(kept) = self.take_kept() {
            return Ok(kept);
        }
        if !self.shared.load(Relaxed) {
            return self.dial().await;
        }
        let made = async {
            let _alone = self.dialling.lock().await;
            match self.take_kept() {
                Some(kept) => Ok(kept),
                None => {
                    let made = self.dial().await?;
                    if let Some(shared) = made.share() {
                        self.give_back(shared);
                    }
                    Ok(made)
                }
            }
        };
        timeout(DIAL_MAX, made)
            .await
            .unwrap_or_else(|_| Err(UpstreamError::Timeout(self.name())))
    }

    fn take_kept(&self) -> Option<UpstreamConnection> {
        let made_with = self.made_with();
        let now = clock::moment();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // What is dropped here finishes its streams and then closes.
        kept.retain(|connection| connection.is_usable(made_with, now));
        // The last used first, so that what is not needed becomes idle.
        let index = kept.iter().rposition(UpstreamConnection::is_ready)?;
        match kept.get(index).and_then(UpstreamConnection::share) {
            Some(shared) => Some(shared),
            None => Some(kept.swap_remove(index)),
        }
    }

    fn give_back(&self, mut connection: UpstreamConnection) {
        connection.used = clock::moment();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // A shared connection that is kept already needs no second place.
        let known = kept
            .iter()
            .any(|other| Arc::ptr_eq(&other.streams, &connection.streams));
        if !known && kept.len() < KEPT_MAX {
            kept.push(connection);
        }
    }

    async fn dial(&self) -> Result<UpstreamConnection, UpstreamError> {
        let connection = match &self.target {
            Target::Service { address, http2 } => {
                let stream = dial::service(address).await?;
                UpstreamConnection::open(stream, *http2, None, MadeWith::default(), address).await?
            }
            Target::Peer(peer) => {
                let Dialled {
                    stream,
                    session,
                    address,
                    made_with,
                } = peer.dial(Layer::Http).await?;
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                UpstreamConnection::open(stream, http2, Some(session), made_with, &address).await?
            }
        };
        self.shared
            .store(matches!(connection.sender, Sender::Http2(_)), Relaxed);
        Ok(connection)
    }

    /// Puts the one reading of host and path where the protocol wants it.
    fn address(
        &self,
        request: &mut Request<Body>,
        canonical: &CanonicalRequest,
        connection: &UpstreamConnection,
    ) -> Result<(), UpstreamError> {
        let broken = |error: &(dyn std::error::Error + 'static)| UpstreamError::broken(&self.name(), error);
        let path = PathAndQuery::try_from(canonical.path_and_query()).map_err(|error| broken(&error))?;
        match connection.sender {
            Sender::Http1(_) => {
                *request.uri_mut() = Uri::from(path);
                *request.version_mut() = Version::HTTP_11;
                let host = HeaderValue::from_str(&canonical.authority()).map_err(|error| broken(&error))?;
                request.headers_mut().insert(HOST, host);
            }
            Sender::Http2(_) => {
                let mut parts = http::uri::Parts::default();
                parts.scheme = Some(match self.target {
                    Target::Service { .. } => Scheme::HTTP,
                    Target::Peer(_) => Scheme::HTTPS,
                });
                parts.authority = Some(Authority::try_from(canonical.authority()).map_err(|error| broken(&error))?);
                parts.path_and_query = Some(path);
                *request.uri_mut() = Uri::from_parts(parts).map_err(|error| broken(&error))?;
                *request.version_mut() = Version::HTTP_2;
                request.headers_mut().remove(HOST);
            }
        }
        Ok(())
    }

    fn made_with(&self) -> MadeWith {
        match &self.target {
            Target::Service { .. } => MadeWith::default(),
            Target::Peer(peer) => peer.made_with(),
        }
    }

    /// For errors: where it is now.
    fn name(&self) -> String {
        match &self.target {
            Target::Service { address, .. } => address.clone(),
            Target::Peer(peer) => peer.destination.current().address.clone(),
        }
    }
}

// === impl UpstreamConnection ===

impl UpstreamConnection {
    /// Speaks HTTP over a stream, and drives it on a task of its own until its end.
    async fn open<S>(
        stream: S,
        http2: bool,
        session: Option<Session>,
        made_with: MadeWith,
        address: &str,
    ) -> Result<Self, UpstreamError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(stream);
        let retired = Arc::new(AtomicBool::new(false));
        let fault = Arc::new(OnceLock::new());
        let end = End {
            address: address.to_owned(),
            session,
            retired: retired.clone(),
            fault: fault.clone(),
        };
        let (close, closed) = shutdown::channel();
        let (alive, ended) = mpsc::channel(1);
        let sender = if http2 {
            let (sender, connection) = http2::Builder::new(Tied { closed, alive })
                .timer(TokioTimer::new())
                .keep_alive_interval(PING_EVERY)
                .keep_alive_timeout(PING_TIMEOUT)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_header_list_size(HEADER_BYTES_MAX)
                .handshake(io)
                .await
                .map_err(|error| UpstreamError::broken(address, &error))?;
            tokio::spawn(end.drive(connection, ended, close));
            Sender::Http2(sender)
        } else {
            drop(alive);
            let (sender, connection) = http1::Builder::new()
                .handshake(io)
                .await
                .map_err(|error| UpstreamError::broken(address, &error))?;
            tokio::spawn(end.drive(connection, ended, close));
            Sender::Http1(sender)
        };
        Ok(Self {
            sender,
            made_with,
            used: clock::moment(),
            retired,
            streams: Arc::default(),
            fault,
        })
    }

    fn is_usable(&self, made_with: MadeWith, now: Instant) -> bool {
        let idle = match &self.sender {
            Sender::Http1(sender) if !sender.is_closed() => now.saturating_duration_since(self.used),
            Sender::Http2(sender) if !sender.is_closed() => Duration::ZERO, // pings keep it
            _ => return false,
        };
        self.made_with == made_with && idle < IDLE_MAX && !self.retired.load(Relaxed)
    }

    fn is_ready(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_ready(),
            Sender::Http2(sender) => sender.is_ready() && Arc::strong_count(&self.streams) <= STREAMS_MAX,
        }
    }

    /// Another handle to a connection that carries many requests at a time.
    fn share(&self) -> Option<Self> {
        let Sender::Http2(sender) = &self.sender else {
            return None;
        };
        Some(Self {
            sender: Sender::Http2(sender.clone()),
            made_with: self.made_with,
            used: self.used,
            retired: self.retired.clone(),
            streams: self.streams.clone(),
            fault: self.fault.clone(),
        })
    }

    /// Why a request failed: the connection's own end says more than the request's.
    fn failure(&self, address: &str, error: &hyper::Error) -> UpstreamError {
        match self.fault.get() {
            Some(UpstreamError::Refused { address, reason }) => UpstreamError::Refused {
                address: address.clone(),
                reason: reason.clone(),
            },
            Some(UpstreamError::Broken { address, reason }) => UpstreamError::Broken {
                address: address.clone(),
                reason: reason.clone(),
            },
            _ => UpstreamError::broken(address, error),
        }
    }
}

/// What ends a connection.
struct End {
    address: String,
    session: Option<Session>,
    retired: Arc<AtomicBool>,
    fault: Arc<OnceLock<UpstreamError>>,
}

/// Runs hyper's own tasks for an HTTP/2 connection, so that the connection can be ended with streams under way: hyper
/// gives its socket to such a task, and dropping the connection's future alone would let it live on.
#[derive(Clone)]
struct Tied {
    closed: Shutdown,
    /// Closed when the last task has ended.
    alive: mpsc::Sender<()>,
}

// === impl End ===

impl End {
    /// Drives a connection and its tasks until they have ended, or its trust has. Dropping `close` ends the tasks.
    async fn drive(
        mut self,
        connection: impl Future<Output = hyper::Result<()>>,
        mut ended: mpsc::Receiver<()>,
        _close: Stopper,
    ) {
        let (retired, fault, address) = (self.retired.clone(), self.fault.clone(), self.address.clone());
        let mut whole = Box::pin(async move {
            let mut connection = Box::pin(connection);
            let result = connection.as_mut().await;
            retired.store(true, Relaxed);
            if let Err(error) = result {
                // Set before the connection is dropped, and with it the requests that wait on it.
                let _ = fault.set(UpstreamError::broken(&address, &error));
            }
            drop(connection);
            // No new requests, but streams may be under way.
            let _ = ended.recv().await;
        });
        loop {
            tokio::select! {
                () = whole.as_mut() => return,
                event = next(&mut self.session) => {
                    self.retired.store(true, Relaxed);
                    if let Event::Close(reason) = event {
                        let _ = self.fault.set(UpstreamError::Broken { address: self.address, reason });
                        return;
                    }
                }
            }
        }
    }
}

async fn next(session: &mut Option<Session>) -> Event {
    match session {
        Some(session) => session.event().await,
        None => std::future::pending().await,
    }
}

// === impl Tied ===

impl<F> Executor<F> for Tied
where
    F: Future + Send + 'static,
{
    fn execute(&self, future: F) {
        let Self { mut closed, alive } = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = future => {}
                () = closed.wait() => {}
            }
            drop(alive);
        });
    }
}
