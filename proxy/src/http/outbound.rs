//! The local service's HTTP request on its way out: read in one way, and sent to exactly the peer it is meant for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hoplite_decision::Unasked;
use hoplite_host::slots::Slot;
use http::{Request, Response, Version};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::config::UpstreamName;
use crate::http::answer::{answer, closing};
use crate::http::body::{Body, Incoming};
use crate::http::conversation::Conversation;
use crate::http::hygiene;
use crate::http::interim::{Ahead, Interims};
use crate::http::preface;
use crate::http::reading::{HEADER_TIME_MAX, read};
use crate::http::rules::HttpRules;
use crate::http::unparsed::{Far, Tapped, Unparsed};
use crate::http::upstream::Upstream;
use crate::metrics::Metrics;
use crate::peer::handshake::no_place;
use crate::peer::session::Stop;

/// A connection that has to go is given this long to hear of it.
const LET_GO_MAX: Duration = Duration::from_millis(300);

/// One outbound HTTP listener on one worker.
pub(crate) struct Outbound {
    pub(crate) name: UpstreamName,
    pub(crate) upstream: Upstream,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) rules: Arc<HttpRules>,
    pub(crate) stop: Stop,
}

// === impl Outbound ===

impl Outbound {
    /// One connection of the local service, HTTP/1.1 or HTTP/2 with prior knowledge.
    pub(crate) async fn serve(self: Arc<Self>, tcp: TcpStream, remote: SocketAddr, slot: Arc<Slot>) {
        let Stop { mut drain, mut close } = self.stop.clone();
        let name = self.name.clone();
        let begun = tokio::select! {
            begun = timeout(HEADER_TIME_MAX, preface::is_http2(tcp)) => begun,
            () = drain.wait() => return,
            () = slot.evicted() => return,
        };
        let Ok(Ok((http2, stream))) = begun else { return };
        // Heads are read as strictly as a peer's, so that what the service meant is what the peer decides on.
        let far = Far {
            side: "local",
            name: format!("{remote} to {name}"),
            metrics: self.metrics.clone(),
        };
        let (stream, mut refusals) = Tapped::caller(stream, http2, far, &self.rules);
        let place = slot.clone();
        let mut connection = Conversation::new(stream, http2, move |request, ahead| {
            let (outbound, slot) = (self.clone(), place.clone());
            async move {
                let busy = slot.begin();
                // With its first request a connection is worth keeping.
                let response = match slot.settle() {
                    Ok(()) => outbound.answer(request, ahead).await,
                    Err(full) => outbound.refuse(&request, &no_place(full)),
                };
                response.map(|body| body.during(busy))
            }
        });
        let (mut draining, mut leaving) = (false, false);
        loop {
            tokio::select! {
                ended = &mut connection => {
                    if let Err(error) = ended {
                        debug!(%remote, error, "connection ended badly");
                    }
                    return;
                }
                Some(refusal) = refusals.recv() => match refusal {
                    // Who means well goes on by another connection.
                    Unparsed::Low => connection.graceful_shutdown(),
                    // Nobody called anybody yet, so there is nothing to record.
                    _ => debug!(%remote, upstream = %name, %refusal, "request refused"),
                },
                () = drain.wait(), if !draining => {
                    draining = true;
                    connection.graceful_shutdown();
                }
                () = slot.evicted(), if !leaving => {
                    leaving = true;
                    connection.graceful_shutdown();
                }
                () = sleep(LET_GO_MAX), if leaving => {
                    return debug!(%remote, upstream = %name, "closed: all places are taken, and it was idle for longest");
                }
                () = close.wait() => return,
            }
        }
    }

    /// Refuses a request. Nobody called anybody yet, so there is nothing to record.
    fn refuse<B>(&self, request: &Request<B>, unasked: &Unasked) -> Response<Body> {
        let Unasked { code, reason, .. } = unasked;
        debug!(upstream = %self.name, code, reason, "request refused");
        let http2 = request.version() == Version::HTTP_2;
        closing(answer(unasked.status, code, None, None), http2)
    }

    /// One request. Whether it is allowed is decided where it arrives, by the proxy of the service that is called.
    async fn answer(&self, request: Request<Incoming>, ahead: Ahead) -> Response<Body> {
        let canonical = match read(&request) {
            Ok(canonical) => canonical,
            Err(unasked) => return self.refuse(&request, &unasked),
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
