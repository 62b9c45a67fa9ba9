//! The asking side of an HTTP/2 connection.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::Reason;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use http::{Request, Response};
use hyper::body::Body as HttpBody;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::http::body::Body;
use crate::http::half_close::End;
use crate::http::http2::heard::{Ear, Heard};
use crate::http::http2::keepalive::Keepalive;
use crate::http::http2::pipe::Pipe;
use crate::http::http2::received::Received;
use crate::http::http2::{HEAD_BYTES_MAX, STREAM_WINDOW, STREAMS_MAX};
use crate::http::interim::{Interims, Unfit};
use crate::http::unparsed::Tapped;
use crate::http::windows::{FIRST_WINDOW, Meter, Window};
use crate::share::Share;

/// Asks on a connection that others ask on, too.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    send: SendRequest<Bytes>,
    ear: Ear,
    /// Requests whose bodies do not move.
    stuck: Arc<AtomicUsize>,
    meter: Meter,
}

/// Moves the connection's bytes; it ends when nobody can ask any more, or nobody answers.
#[derive(Debug)]
pub(crate) struct Driver<S: AsyncRead + AsyncWrite + Unpin> {
    connection: Connection<Heard<Tapped<S>>, Bytes>,
    keepalive: Keepalive,
    window: Window,
}

/// Why there is no answer, and how far the request came.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) reached: Reached,
    pub(crate) why: Why,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Why {
    #[error(transparent)]
    Stream(#[from] h2::Error),
    #[error(transparent)]
    Unfit(#[from] Unfit),
}

/// How far a request came that has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reached {
    /// Nothing of it was sent.
    Nobody,
    /// The server says that it has not looked at it (RFC 9113, 8.7).
    Door,
    /// It was sent, and the connection ended before anything came back.
    Unknown,
    /// The server has begun to answer it.
    Server,
}

// === impl Caller ===

impl Caller {
    /// Begins a connection.
    pub(crate) async fn open<S>(stream: Tapped<S>, share: Arc<Share>) -> Result<(Self, Driver<S>), h2::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let meter = stream.meter();
        let (stream, ear) = Heard::new(stream);
        let (send, mut connection) = Builder::new()
            .enable_push(false)
            // Until the server has said how many it takes at a time.
            .initial_max_send_streams(1)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(FIRST_WINDOW)
            .max_header_list_size(HEAD_BYTES_MAX)
            .handshake(stream)
            .await?;
        let keepalive = Keepalive::new(connection.ping_pong(), ear.clone(), End::default());
        let caller = Self {
            send,
            ear,
            stuck: Arc::default(),
            meter: meter.clone(),
        };
        let window = Window::new(meter, share);
        let driver = Driver {
            connection,
            keepalive,
            window,
        };
        Ok((caller, driver))
    }

    /// How many requests it takes at a time.
    pub(crate) fn streams_max(&self) -> usize {
        self.send.current_max_send_streams().min(STREAMS_MAX as usize)
    }

    /// Whether something on it does not move. What that has sent may be all that the connection's window allows, if the
    /// server gives its connections less than their streams.
    pub(crate) fn is_stuck(&self) -> bool {
        self.stuck.load(Relaxed) > 0
    }

    /// Whether the server has said what it takes.
    pub(crate) fn is_settled(&self) -> bool {
        self.ear.ever()
    }

    /// Waits until the server has said what it takes, or says nothing any more.
    pub(crate) async fn settled(&mut self) {
        self.ear.first().await;
    }

    /// Asks, and returns when the answer's head is there; `stream` is held until the request's body has ended, too.
    pub(crate) async fn ask(
        &mut self,
        request: Request<Body>,
        interims: &Interims,
        stream: &Arc<()>,
    ) -> Result<Response<Received>, Failed> {
        let unsent = |error: h2::Error| Failed {
            reached: Reached::Nobody,
            why: error.into(),
        };
        std::future::poll_fn(|context| self.send.poll_ready(context))
            .await
            .map_err(unsent)?;
        let (head, body) = request.into_parts();
        let whole = body.is_end_stream();
        let (mut response, sending) = self
            .send
            .send_request(Request::from_parts(head, ()), whole)
            .map_err(unsent)?;
        let mut pipe = (!whole).then(|| Pipe::counted(body, sending, self.stuck.clone()));
        let answered = std::future::poll_fn(|context| {
            // How its sending ends shows in the answer.
            if let Some(sending) = &mut pipe
                && Pin::new(sending).poll(context).is_ready()
            {
                pipe = None;
            }
            poll_answer(&mut response, interims, context)
        })
        .await;
        if let (Ok(_), Some(pipe)) = (&answered, pipe) {
            // It may be answered before it has been read.
            let stream = stream.clone();
            tokio::spawn(async move {
                let _ = pipe.await;
                drop(stream);
            });
        }
        let response = answered.map_err(|why| Failed {
            reached: reached(&why),
            why,
        })?;
        let (head, stream) = response.into_parts();
        let body = Received::new(stream, &head.headers, self.meter.clone());
        Ok(Response::from_parts(head, body))
    }
}

fn poll_answer(
    response: &mut ResponseFuture,
    interims: &Interims,
    context: &mut Context<'_>,
) -> Poll<Result<Response<h2::RecvStream>, Why>> {
    while let Poll::Ready(Some(interim)) = response.poll_informational(context) {
        let interim = interim?;
        interims.push(interim.status(), interim.headers())?;
    }
    Pin::new(response).poll(context).map_err(Why::from)
}

fn reached(why: &Why) -> Reached {
    match why {
        // The library blames so only the streams above the last one that the server says it has looked at.
        Why::Stream(error) if error.is_go_away() && error.is_remote() => Reached::Door,
        Why::Stream(error) if error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM) => Reached::Door,
        Why::Stream(error) if error.is_io() => Reached::Unknown,
        _ => Reached::Server,
    }
}

// === impl Driver ===

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Driver<S> {
    type Output = Result<(), h2::Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        let this = self.get_mut();
        if this.keepalive.poll(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let ended = Pin::new(&mut this.connection).poll(context);
        if let Some(target) = this.window.adjusted() {
            this.connection.set_target_window_size(target);
        }
        ended
    }
}
