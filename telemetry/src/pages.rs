//! A few pages for whoever reaches an address, bounded as `/metrics` is: one request a connection, in time, and what is read of it.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hoplite_host::accept::Acceptor;
use hoplite_host::shutdown::Shutdown;
use hoplite_host::slots::{Bounds, Slot, Slots};
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tracing::debug;

/// A request and its answer, a handshake before them too.
pub(crate) const EXCHANGE_MAX: Duration = Duration::from_secs(10);

/// What is read of a request: its head.
pub(crate) const HEAD_BYTES_MAX: usize = 8 << 10;

/// A page, for GET and HEAD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Its `Content-Type`.
    pub kind: &'static str,
    /// Its `Cache-Control`.
    pub cache: &'static str,
    /// What is on it.
    pub text: String,
}

/// Answers until the shutdown: `open` makes of each connection a stream, by a handshake perhaps, `page` the page of a path.
pub async fn serve_pages<O, F, S, P>(
    listener: TcpListener,
    (name, bounds): (&'static str, Bounds),
    open: O,
    page: P,
    shutdown: Shutdown,
) where
    O: Fn(TcpStream) -> F,
    F: Future<Output = io::Result<S>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    P: Fn(&str) -> Option<Page> + Send + Sync + 'static,
{
    let slots = Slots::new(name, bounds);
    let page = Arc::new(page);
    let mut acceptor = Acceptor::new(listener, name, slots, shutdown);
    while let Some(((stream, _), slot)) = acceptor.next().await {
        let (opening, page) = (open(stream), Arc::clone(&page));
        tokio::spawn(async move {
            let answer = move |request: &Request<_>| answered(request, |path| page(path));
            exchange(opening, slot, name, answer).await;
        });
    }
}

/// One request and its answer.
pub(crate) async fn exchange<S>(
    opening: impl Future<Output = io::Result<S>>,
    slot: Slot,
    name: &'static str,
    answer: impl Fn(&Request<hyper::body::Incoming>) -> Response<Full<Bytes>>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // INVARIANT: nothing is ever under way at its place, so that who has been answered, and does not read, is idle: its
    // place is the next one's who asks.
    let service = service_fn(|request| {
        let answer = slot.settle().map(|()| answer(&request));
        std::future::ready(answer)
    });
    let exchanging = async {
        let stream = opening.await?;
        let served = hyper::server::conn::http1::Builder::new()
            .keep_alive(false)
            .max_buf_size(HEAD_BYTES_MAX)
            .timer(TokioTimer::new())
            .header_read_timeout(EXCHANGE_MAX)
            .serve_connection(TokioIo::new(stream), service);
        served.await.map_err(io::Error::other)
    };
    tokio::select! {
        ended = timeout(EXCHANGE_MAX, exchanging) => match ended {
            Ok(Err(error)) => debug!(listener = name, %error, "a request ended badly"),
            Err(_) => debug!(listener = name, "a request took too long"),
            Ok(Ok(())) => {}
        },
        () = slot.evicted() => {}
    }
}

fn answered<B>(request: &Request<B>, page: impl Fn(&str) -> Option<Page>) -> Response<Full<Bytes>> {
    const PLAIN: &str = "text/plain; charset=utf-8";
    let plain = |text: &str| Page {
        kind: PLAIN,
        cache: "no-store",
        text: text.to_owned(),
    };
    let reads = [Method::GET, Method::HEAD].contains(request.method());
    let (status, page) = match page(request.uri().path()) {
        Some(_) if !reads => (StatusCode::METHOD_NOT_ALLOWED, plain("GET or HEAD\n")),
        Some(page) => (StatusCode::OK, page),
        None => (StatusCode::NOT_FOUND, plain("there is no such page\n")),
    };
    // To HEAD the library sends the length, and no body.
    let mut response = Response::new(Full::new(Bytes::from(page.text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(page.kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(page.cache));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}
