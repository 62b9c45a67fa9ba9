//! The listener: `/live`, `/ready` and `/metrics`, for whoever reaches the address. Read only, one request a connection, and
//! bounded: in connections, in time, in what is read. Who reads slowly loses its place to who comes later.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use hoplite_host::accept::Acceptor;
use hoplite_host::shutdown::Shutdown;
use hoplite_host::slots::{Bounds, Slots};
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use tokio::net::TcpListener;

use crate::exposition::{Exposition, Format};
use crate::listen::MetricsListen;
use crate::pages::exchange;

/// Who asks at a time. A scrape takes milliseconds, and there are one or two who scrape.
const CONNECTIONS_MAX: usize = 16;

/// What the listener answers from.
pub struct Site {
    exposition: Exposition,
    /// Why the daemon cannot do its work now; empty when it can.
    unready: Box<dyn Fn() -> Vec<String> + Send + Sync>,
}

/// The listener before it serves: its address is taken, and nobody is answered yet.
#[derive(Debug)]
pub struct MetricsDoor {
    listener: TcpListener,
    address: SocketAddr,
}

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on `metrics_listen = {listen}`: {source}; choose another address, or stop who uses it")]
pub struct MetricsDoorError {
    listen: MetricsListen,
    source: io::Error,
}

// === impl MetricsDoor ===

impl MetricsDoor {
    /// Takes the address. Port 0 takes a free one.
    ///
    /// # Errors
    /// [`MetricsDoorError`]: somebody else has it, or it is none of this machine's.
    pub async fn bind(listen: MetricsListen) -> Result<Self, MetricsDoorError> {
        let bound = async {
            let listener = TcpListener::bind(listen.0).await?;
            let address = listener.local_addr()?;
            Ok(Self { listener, address })
        };
        bound.await.map_err(|source| MetricsDoorError { listen, source })
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until the shutdown.
    pub async fn serve(self, site: Arc<Site>, shutdown: Shutdown) {
        tracing::info!(address = %self.address, "serving /live, /ready and /metrics");
        let slots = Slots::new("metrics", Bounds::network(CONNECTIONS_MAX, CONNECTIONS_MAX));
        let mut acceptor = Acceptor::new(self.listener, "metrics", slots, shutdown);
        while let Some(((stream, _), slot)) = acceptor.next().await {
            let site = Arc::clone(&site);
            let opened = std::future::ready(Ok(stream));
            tokio::spawn(async move { exchange(opened, slot, "metrics", |request| site.answer(request)).await });
        }
    }
}

// === impl Site ===

impl Site {
    /// `unready` says why the daemon cannot do its work now, a reason a line.
    pub fn new(exposition: Exposition, unready: impl Fn() -> Vec<String> + Send + Sync + 'static) -> Self {
        Self {
            exposition,
            unready: Box::new(unready),
        }
    }

    /// The text of `/metrics`, as who asks with this header field `Accept` gets it, and its content type.
    pub fn metrics(&self, accept: Option<&HeaderValue>) -> (&'static str, String) {
        let format = Format::of_accept(accept.and_then(|accept| accept.to_str().ok()));
        (format.content_type(), self.text(format))
    }

    /// The text of `/metrics` in this form.
    pub fn text(&self, format: Format) -> String {
        self.exposition.text(format)
    }

    /// Why the daemon cannot do its work now; empty when it can.
    pub fn unready(&self) -> Vec<String> {
        (self.unready)()
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        const PLAIN: &str = "text/plain; charset=utf-8";
        let head = request.method() == Method::HEAD;
        let (status, kind, text) = match request.uri().path() {
            "/live" | "/ready" | "/metrics" if !head && request.method() != Method::GET => {
                (StatusCode::METHOD_NOT_ALLOWED, PLAIN, "GET or HEAD\n".to_owned())
            }
            "/live" => (StatusCode::OK, PLAIN, "live\n".to_owned()),
            "/ready" => match self.unready() {
                reasons if reasons.is_empty() => (StatusCode::OK, PLAIN, "ready\n".to_owned()),
                reasons => {
                    let text = reasons.iter().map(|reason| format!("not ready: {reason}\n")).collect();
                    (StatusCode::SERVICE_UNAVAILABLE, PLAIN, text)
                }
            },
            "/metrics" => {
                let (kind, text) = self.metrics(request.headers().get(ACCEPT));
                (StatusCode::OK, kind, text)
            }
            _ => (
                StatusCode::NOT_FOUND,
                PLAIN,
                "GET /live, GET /ready or GET /metrics\n".to_owned(),
            ),
        };
        // To HEAD the library sends the length, and no body.
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
