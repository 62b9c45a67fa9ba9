//! The local service's HTTP request on its way out: read in one way, and sent to exactly the peer it is meant for.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Request, Response, Version};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::debug;

use crate::config::UpstreamName;
use crate::http::answer::{answer, closing};
use crate::http::body::{Body, Incoming};
use crate::http::conversation::Conversation;
use crate::http::hygiene;
use crate::http::interim::{Ahead, Interims};
use crate::http::preface;
use crate::http::reading::{HEADER_TIME_MAX, read};
use crate::http::unparsed::Tapped;
use crate::http::upstream::Upstream;
use crate::metrics::Metrics;
use crate::peer::session::Stop;

/// One outbound HTTP listener on one worker.
pub(crate) struct Outbound {
    pub(crate) name: UpstreamName,
    pub(crate) upstream: Upstream,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stop: Stop,
}

// === impl Outbound ===

impl Outbound {
    /// One connection of the local service, HTTP/1.1 or HTTP/2 with prior knowledge.
    pub(crate) async fn serve(self: Arc<Self>, tcp: TcpStream, remote: SocketAddr) {
        let Stop { mut drain, mut close } = self.stop.clone();
        let name = self.name.clone();
        let begun = tokio::select! {
            begun = timeout(HEADER_TIME_MAX, preface::is_http2(tcp)) => begun,
            () = drain.wait() => return,
        };
        let Ok(Ok((http2, stream))) = begun else { return };
        // Heads are read as strictly as a peer's, so that what the service meant is what the peer decides on.
        let (stream, mut refusals) = Tapped::new(stream, http2);
        let mut connection = Conversation::new(stream, http2, move |request, ahead| {
            let outbound = self.clone();
            async move { outbound.answer(request, ahead).await }
        });
        let mut draining = false;
        loop {
            tokio::select! {
                ended = &mut connection => {
                    if let Err(error) = ended {
                        debug!(%remote, error, "connection ended badly");
                    }
                    return;
                }
                // Nobody called anybody yet, so there is nothing to record.
                Some(refusal) = refusals.recv() => debug!(%remote, upstream = %name, %refusal, "request refused"),
                () = drain.wait(), if !draining => {
                    draining = true;
                    connection.graceful_shutdown();
                }
                () = close.wait() => return,
            }
        }
    }

    /// One request. Whether it is allowed is decided where it arrives, by the proxy of the service that is called.
    async fn answer(&self, request: Request<Incoming>, ahead: Ahead) -> Response<Body> {
        let canonical = match read(&request) {
            Ok(canonical) => canonical,
            Err(unasked) => {
                debug!(
                    upstream = %self.name,
                    code = unasked.code,
                    reason = unasked.reason,
                    "request refused"
                );
                let http2 = request.version() == Version::HTTP_2;
                return closing(answer(unasked.status, unasked.code, None, None), http2);
            }
        };
        let (mut parts, body) = request.into_parts();
        hygiene::sanitize_request(&mut parts.headers);
        let interims = Interims::default();
        let sent = self
            .upstream
            .send(&canonical, Request::from_parts(parts, body.into()), &interims);
        match interims.ahead_of(sent, &ahead, hygiene::sanitize_response).await {
            Ok(mut response) => {
                hygiene::sanitize_response(response.headers_mut());
                response
            }
            Err(error) => {
                error.log(self.name.as_str());
                self.metrics.upstream_failed(error.code());
                answer(error.status(), error.code(), None, None)
            }
        }
    }
}
