//! The answering side of an HTTP/2 connection.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use bytes::Bytes;
use h2::Reason;
use h2::server::{Builder, Connection as Streams, Handshake, SendResponse};
use hoplite_host::clock;
use http::header::{CONTENT_LENGTH, DATE};
use http::{HeaderValue, Request, Response};
use hyper::body::Body as HttpBody;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use crate::http::answer::Answer;
use crate::http::body::Incoming;
use crate::http::half_close::End;
use crate::http::http2::heard::{Ear, Heard};
use crate::http::http2::keepalive::Keepalive;
use crate::http::http2::pipe::Pipe;
use crate::http::http2::received::Received;
use crate::http::interim::{Ahead, Reply};
use crate::http::unparsed::Tapped;
use crate::http::windows::{Meter, Window};
use crate::share::Share;

/// Answers what comes on a connection, each request on a task of its own. All of them end with it.
pub(crate) struct Connection<S, H> {
    state: State<S>,
    answer: H,
    answering: JoinSet<()>,
    /// Nothing new is taken.
    closing: bool,
    window: Window,
    meter: Meter,
}

enum State<S> {
    Greeting(Handshake<Heard<Tapped<S>>, Bytes>, Option<(Ear, End)>),
    Serving(Streams<Heard<Tapped<S>>, Bytes>, Keepalive),
}

// === impl Connection ===

impl<S, H, F> Connection<S, H>
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Request<Incoming>, Ahead) -> F,
    F: Future<Output = Answer> + Send + 'static,
{
    /// Begins with the bytes of the peer's preface.
    pub(crate) fn new(stream: Tapped<S>, share: Arc<Share>, bounds: &Builder, answer: H) -> Self {
        let (end, meter) = (stream.end(), stream.meter());
        let (stream, ear) = Heard::new(stream);
        Self {
            state: State::Greeting(bounds.handshake(stream), Some((ear, end))),
            answer,
            answering: JoinSet::new(),
            closing: false,
            window: Window::new(meter.clone(), share),
            meter,
        }
    }

    /// Takes nothing new, and ends when what is under way has ended.
    pub(crate) fn graceful_shutdown(&mut self) {
        self.closing = true;
        if let State::Serving(streams, _) = &mut self.state {
            streams.graceful_shutdown();
        }
    }

    pub(crate) fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        loop {
            match &mut self.state {
                State::Greeting(greeting, hearing) => {
                    let mut streams = ready!(Pin::new(greeting).poll(context))?;
                    let pings = streams.ping_pong();
                    if self.closing {
                        streams.graceful_shutdown();
                    }
                    let Some((ear, end)) = hearing.take() else {
                        return Poll::Ready(Ok(()));
                    };
                    self.state = State::Serving(streams, Keepalive::new(pings, ear, end));
                }
                State::Serving(streams, keepalive) => {
                    if keepalive.poll(context).is_ready() {
                        return Poll::Ready(Ok(()));
                    }
                    // Those that have answered are forgotten.
                    while let Poll::Ready(Some(_)) = self.answering.poll_join_next(context) {}
                    let asked = streams.poll_accept(context);
                    if let Some(target) = self.window.adjusted() {
                        streams.set_target_window_size(target);
                    }
                    let Some(asked) = ready!(asked) else {
                        return Poll::Ready(Ok(()));
                    };
                    let (request, reply) = asked?;
                    let (head, stream) = request.into_parts();
                    let body = Incoming::Http2(Received::new(stream, &head.headers, self.meter.clone()));
                    let reply = Arc::new(Mutex::new(reply));
                    let answer = (self.answer)(Request::from_parts(head, body), Ahead::Http2(reply.clone()));
                    self.answering.spawn(serve(answer, reply));
                }
            }
        }
    }
}

/// One request: waits for its answer, as long as somebody else does, and sends it.
async fn serve(answer: impl Future<Output = Answer>, reply: Reply) {
    let mut answer = pin!(answer);
    let answered = poll_fn(|context| match answer.as_mut().poll(context) {
        Poll::Ready(answered) => Poll::Ready(Some(answered)),
        Poll::Pending => lock(&reply).poll_reset(context).map(|_| None),
    })
    .await;
    let Some(answer) = answered else { return };
    let (mut head, body) = answer.into_response().into_parts();
    head.headers.entry(DATE).or_insert_with(|| date(clock::now()));
    let whole = body.is_end_stream();
    if let (false, Some(length)) = (whole, body.size_hint().exact()) {
        head.headers.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    let sent = lock(&reply).send_response(Response::from_parts(head, ()), whole);
    match sent {
        Ok(_) if whole => {}
        Ok(stream) => {
            let _ = Pipe::new(body, stream).await;
        }
        Err(_) => lock(&reply).send_reset(Reason::INTERNAL_ERROR),
    }
}

fn lock(reply: &Reply) -> MutexGuard<'_, SendResponse<Bytes>> {
    reply.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an answer without a date gets (RFC 9110, 6.6.1).
fn date(now: SystemTime) -> HeaderValue {
    HeaderValue::try_from(httpdate::fmt_http_date(now)).unwrap_or(HeaderValue::from_static(""))
}
