//! One connection to a server of HTTP, and what ends it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use hoplite_host::clock;
use http::{Request, Response, StatusCode};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::sleep;

use crate::http::body::{Body, Incoming};
use crate::http::http2::HEAD_BYTES_MAX;
use crate::http::http2::client::{Caller, Failed, Reached, Why};
use crate::http::interim::{Interims, Unfit};
use crate::http::unparsed::Tapped;
use crate::peer::dial::{MadeWith, UpstreamError};
use crate::peer::session::{Event, Session};
use crate::share::Share;

/// An unused HTTP/1.1 connection is left before the server closes it: a request that meets the closing would fail.
/// Servers wait from 2 s (gunicorn) and 5 s (Node) on; a new connection on the own machine costs next to nothing.
const IDLE_MAX: Duration = Duration::from_millis(1_500);

/// Fields in an answer's head.
const FIELDS_MAX: usize = 256;

/// A connection that requests are sent on.
pub(crate) struct KeptConnection {
    sender: Sender,
    made_with: MadeWith,
    used: Instant,
    /// No new requests: its end is near.
    retired: Arc<AtomicBool>,
    /// One for us, and one for each stream under way.
    streams: Arc<()>,
    /// Something was asked lately.
    asked: Arc<AtomicBool>,
    /// Why it ended.
    fault: Arc<OnceLock<UpstreamError>>,
    /// It carried requests before this one.
    pub(crate) is_old: bool,
}

enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(Caller),
}

/// Why there is no answer, and how far the request came.
pub(crate) struct NoAnswer {
    pub(crate) reached: Reached,
    pub(crate) error: UpstreamError,
}

// === impl KeptConnection ===

impl KeptConnection {
    /// Speaks HTTP over a stream, and drives it on a task of its own until its end.
    pub(crate) async fn open<S>(
        stream: Tapped<S>,
        http2: bool,
        share: Arc<Share>,
        session: Option<Session>,
        made_with: MadeWith,
        address: &str,
        idle_max: Option<Duration>,
    ) -> Result<Self, UpstreamError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let retired = Arc::new(AtomicBool::new(false));
        let fault = Arc::new(OnceLock::new());
        let streams = Arc::default();
        let use_ = Use {
            asked: Arc::default(),
            streams: Arc::downgrade(&streams),
            idle_max: if http2 { idle_max } else { Some(IDLE_MAX) },
        };
        let asked = use_.asked.clone();
        let end = End {
            address: address.to_owned(),
            session,
            retired: retired.clone(),
            fault: fault.clone(),
            use_,
        };
        let sender = if http2 {
            let (caller, driver) = Caller::open(stream, share)
                .await
                .map_err(|error| UpstreamError::broken(address, &error))?;
            tokio::spawn(end.drive(driver));
            Sender::Http2(caller)
        } else {
            let (sender, connection) = http1::Builder::new()
                .max_header_size(HEAD_BYTES_MAX as usize)
                .max_headers(FIELDS_MAX)
                .handshake(TokioIo::new(stream))
                .await
                .map_err(|error| UpstreamError::broken(address, &error))?;
            tokio::spawn(end.drive(connection));
            Sender::Http1(sender)
        };
        Ok(Self {
            sender,
            made_with,
            used: clock::moment(),
            retired,
            streams,
            asked,
            fault,
            is_old: false,
        })
    }

    pub(crate) fn is_http2(&self) -> bool {
        matches!(self.sender, Sender::Http2(_))
    }

    /// Sends a request, and returns as soon as the answer's head is there.
    pub(crate) async fn ask(
        &mut self,
        request: Request<Body>,
        interims: &Interims,
        address: &str,
    ) -> Result<Response<Body>, NoAnswer> {
        self.asked.store(true, Relaxed);
        let asked = match &mut self.sender {
            Sender::Http1(sender) => {
                let _under_way = self.streams.clone();
                ask_http1(sender, request, interims).await
            }
            Sender::Http2(caller) => match caller.ask(request, interims, &self.streams).await {
                Ok(response) => Ok(response.map(Incoming::Http2)),
                Err(Failed { reached, why }) => Err((reached, why.into())),
            },
        };
        let (reached, fault) = match asked {
            Ok(response) => {
                let stream = self.streams.clone();
                return Ok(response.map(|incoming| Body::streamed(incoming, stream)));
            }
            Err(failed) => failed,
        };
        // It takes no more for now, or cannot be trusted to. What is under way on it goes on.
        self.retired.store(true, Relaxed);
        let error = match fault {
            Fault::Unfit(unfit) => UpstreamError::unfit(address, &unfit),
            Fault::Http1(error) if error.is_parse_too_large() => UpstreamError::HeadTooLarge(address.to_owned()),
            Fault::Http1(error) => self.broken(address, &error),
            Fault::Http2(error) => self.broken(address, &error),
        };
        Err(NoAnswer { reached, error })
    }

    /// For a request that is made now.
    pub(crate) fn is_usable(&self, made_with: MadeWith, now: Instant) -> bool {
        let idle = match &self.sender {
            Sender::Http1(sender) if !sender.is_closed() => now.saturating_duration_since(self.used),
            Sender::Http2(_) => Duration::ZERO, // asked for a word now and then
            Sender::Http1(_) => return false,
        };
        self.made_with == made_with && idle < IDLE_MAX && !self.retired.load(Relaxed)
    }

    /// Whether it takes one more.
    pub(crate) fn is_ready(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_ready(),
            // One of the count is the place where it is kept.
            Sender::Http2(caller) => Arc::strong_count(&self.streams) <= caller.streams_max() && !caller.is_stuck(),
        }
    }

    /// What to wait for on a connection that has not said yet how much it takes.
    pub(crate) fn unsettled(&self) -> Option<Caller> {
        match &self.sender {
            Sender::Http2(caller) if !caller.is_settled() => Some(caller.clone()),
            _ => None,
        }
    }

    /// Another handle to a connection that carries many requests at a time.
    pub(crate) fn share(&self) -> Option<Self> {
        let Sender::Http2(caller) = &self.sender else {
            return None;
        };
        Some(Self {
            sender: Sender::Http2(caller.clone()),
            made_with: self.made_with,
            used: self.used,
            retired: self.retired.clone(),
            streams: self.streams.clone(),
            asked: self.asked.clone(),
            fault: self.fault.clone(),
            is_old: true,
        })
    }

    /// Both are handles to one connection.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.streams, &other.streams)
    }

    /// After a request.
    pub(crate) fn rest(&mut self, now: Instant) {
        self.used = now;
        self.is_old = true;
    }

    /// Why a request failed: the connection's own end says more than the request's.
    fn broken(&self, address: &str, error: &(dyn std::error::Error + 'static)) -> UpstreamError {
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

/// What went wrong with a request.
enum Fault {
    Http1(hyper::Error),
    Http2(h2::Error),
    Unfit(Unfit),
}

impl From<Why> for Fault {
    fn from(why: Why) -> Self {
        match why {
            Why::Stream(error) => Self::Http2(error),
            Why::Unfit(unfit) => Self::Unfit(unfit),
        }
    }
}

async fn ask_http1(
    sender: &mut http1::SendRequest<Body>,
    mut request: Request<Body>,
    interims: &Interims,
) -> Result<Response<Incoming>, (Reached, Fault)> {
    let coming = interims.clone();
    hyper::ext::on_informational(&mut request, move |head| {
        // Whoever waits below hears of what is unfit.
        let _ = coming.push(head.status(), head.headers());
    });
    let answered = tokio::select! {
        biased;
        unfit = interims.unfit() => return Err((Reached::Server, Fault::Unfit(unfit))),
        answered = sender.try_send_request(request) => answered,
    };
    match answered {
        // The library takes it for an answer.
        Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            Err((Reached::Server, Fault::Unfit(Unfit::Switching)))
        }
        Ok(response) => Ok(response.map(Incoming::Http1)),
        Err(mut failed) => {
            let reached = if failed.take_message().is_some() {
                Reached::Nobody
            } else {
                let error = failed.error();
                if error.is_parse() || error.is_user() {
                    Reached::Server
                } else {
                    Reached::Unknown
                }
            };
            Err((reached, Fault::Http1(failed.into_error())))
        }
    }
}

/// What ends a connection.
struct End {
    address: String,
    session: Option<Session>,
    retired: Arc<AtomicBool>,
    fault: Arc<OnceLock<UpstreamError>>,
    use_: Use,
}

/// Whether anybody needs a connection.
struct Use {
    asked: Arc<AtomicBool>,
    /// One is the place where it is kept.
    streams: Weak<()>,
    idle_max: Option<Duration>,
}

// === impl Use ===

impl Use {
    /// Returns when nobody has needed it for `idle_max`, or up to twice as long.
    async fn ended(&self) {
        let Some(idle_max) = self.idle_max else {
            return std::future::pending().await;
        };
        loop {
            sleep(idle_max).await;
            if !self.asked.swap(false, Relaxed) && self.streams.strong_count() <= 1 {
                return;
            }
        }
    }
}

// === impl End ===

impl End {
    /// Drives a connection until it has ended, or its trust has.
    async fn drive<E>(mut self, connection: impl Future<Output = Result<(), E>>)
    where
        E: std::error::Error + 'static,
    {
        let mut connection = Box::pin(connection);
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    self.retired.store(true, Relaxed);
                    if let Err(error) = ended {
                        // Set before the connection is dropped, and with it the requests that wait on it.
                        let _ = self.fault.set(UpstreamError::broken(&self.address, &error));
                    }
                    return;
                }
                () = self.use_.ended() => {
                    // Nobody asks on it between this and its end: whoever finds it is on the same thread.
                    self.retired.store(true, Relaxed);
                    return;
                }
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
