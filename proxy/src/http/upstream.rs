//! HTTP to the other side, over connections that are kept: one idea for the service behind us and for peers.
//!
//! HTTP/2 shares a connection between requests, HTTP/1.1 takes one for each and gives it back. A connection is used for
//! new requests only while the identity and the destination it was made with are in force and its end is not near. A request that was never
//! sent is sent again on another connection; one that may have been seen is not.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use hoplite_host::clock;
use hoplite_policy::CanonicalRequest;
use http::header::HOST;
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, Uri, Version};
use hyper::body::Body as HttpBody;
use tokio::time::timeout;

use crate::forward::ForwardFeed;
use crate::http::body::Body;
use crate::http::http2::HEAD_BYTES_MAX;
use crate::http::http2::client::{Caller, Reached};
use crate::http::interim::Interims;
use crate::http::kept::{KeptConnection, NoAnswer};
use crate::http::reading::head_bytes;
use crate::http::replay::Again;
use crate::http::rules::RulesFeed;
use crate::http::unparsed::{Far, Tapped};
use crate::limits::limit;
use crate::metrics::Metrics;
use crate::peer::dial::{self, DIAL_MAX, Dialled, MadeWith, Peer, UpstreamError};
use crate::peer::identity_feed::Layer;
use crate::share::Share;

/// How often a request is sent that was never looked at.
const ATTEMPTS_MAX: usize = 3;

/// Kept connections; more are closed after use.
const KEPT_MAX: usize = 1_024;

/// What an answer may gain on its way: the decision's id, a date.
const OWN_BYTES: usize = 1 << 10;

/// An answer as a server gave it.
#[derive(Debug)]
pub(crate) struct FromServer(Response<Body>);

/// One HTTP server, and our connections to it.
pub(crate) struct Upstream {
    target: Target,
    rules: RulesFeed,
    unread: Arc<Share>,
    metrics: Arc<Metrics>,
    kept: Mutex<Vec<KeptConnection>>,
    /// Held while a connection is made that others will share, so that a hundred requests make one connection.
    dialling: tokio::sync::Mutex<()>,
    /// Whether the last connection could be shared.
    shared: AtomicBool,
}

/// Where an upstream is and how it is spoken to.
#[derive(Clone)]
pub(crate) enum Target {
    /// The service behind an inbound listener.
    Service {
        address: Arc<ForwardFeed>,
        /// HTTP/2 with prior knowledge.
        http2: bool,
    },
    /// Another proxy, or anything with the expected SVID.
    Peer(Peer),
}

// === impl FromServer ===

impl FromServer {
    pub(crate) fn into_response(self) -> Response<Body> {
        self.0
    }
}

// === impl Upstream ===

impl Upstream {
    /// `unread` is what its connections together may have unread.
    pub(crate) fn new(target: Target, unread: Arc<Share>, rules: RulesFeed, metrics: Arc<Metrics>) -> Self {
        let shared = match &target {
            Target::Service { http2, .. } => *http2,
            Target::Peer(_) => true,
        };
        Self {
            target,
            unread,
            rules,
            metrics,
            kept: Mutex::default(),
            dialling: tokio::sync::Mutex::default(),
            shared: AtomicBool::new(shared),
        }
    }

    /// Sends a request as `canonical` says, and returns as soon as the response's head is there.
    ///
    /// It is sent again, on another connection, if the server has not looked at it. If a kept connection ends without a
    /// word, that is not known: then it is sent once more if that changes nothing (RFC 9110, 9.2.2).
    pub(crate) async fn send(
        &self,
        canonical: &CanonicalRequest,
        request: Request<Body>,
        interims: &Interims,
    ) -> Result<FromServer, UpstreamError> {
        let (head, body) = request.into_parts();
        let idempotent = head.method.is_idempotent();
        let again = (!body.is_end_stream()).then(|| Again::new(body));
        // Of nothing there is always all.
        let read = || match &again {
            Some(again) => again.read().map(Body::Replayed),
            None => Some(Body::Empty),
        };
        let mut body = read().unwrap_or(Body::Empty);
        let (mut anew, mut left) = (false, ATTEMPTS_MAX);
        loop {
            left -= 1;
            let mut connection = if anew {
                self.fresh().await?
            } else {
                self.connection().await?
            };
            let is_old = connection.is_old;
            let request = self.address(head.clone(), body, canonical, &connection)?;
            let NoAnswer { reached, error } = match connection.ask(request, interims, &self.name()).await {
                Ok(response) => {
                    if let Some(again) = &again {
                        again.settle();
                    }
                    self.give_back(connection);
                    return self.bounded(response);
                }
                Err(failed) => failed,
            };
            let may_again = match reached {
                Reached::Nobody | Reached::Door => true,
                Reached::Unknown => is_old && !anew && idempotent && !interims.any(),
                Reached::Server => false,
            };
            body = match read() {
                Some(body) if may_again && left > 0 => body,
                _ => return Err(error),
            };
            anew = reached != Reached::Nobody;
        }
    }

    /// A head that is larger than the next reader takes would end more than this request there.
    fn bounded(&self, response: Response<Body>) -> Result<FromServer, UpstreamError> {
        if head_bytes(0, response.headers()) > HEAD_BYTES_MAX as usize - OWN_BYTES {
            return Err(UpstreamError::HeadTooLarge(self.name()));
        }
        Ok(FromServer(response))
    }

    /// A kept connection that can take a request now, or a new one.
    async fn connection(&self) -> Result<KeptConnection, UpstreamError> {
        if let Some(kept) = self.take_kept() {
            return Ok(kept);
        }
        let _waits = self.metrics.waits();
        if !self.shared.load(Relaxed) {
            return self.dial().await;
        }
        let made = async {
            let _alone = self.dialling.lock().await;
            loop {
                if let Some(kept) = self.take_kept() {
                    return Ok(kept);
                }
                // One that was made just now may take many, and says so with its first bytes.
                let Some(mut unsettled) = self.unsettled() else {
                    return self.fresh().await;
                };
                unsettled.settled().await;
                drop(unsettled);
            }
        };
        timeout(DIAL_MAX, made)
            .await
            .unwrap_or_else(|_| Err(UpstreamError::Timeout(self.name())))
    }

    /// A new one, which others share if they can.
    async fn fresh(&self) -> Result<KeptConnection, UpstreamError> {
        let made = self.dial().await?;
        if let Some(shared) = made.share() {
            self.give_back(shared);
        }
        Ok(made)
    }

    fn take_kept(&self) -> Option<KeptConnection> {
        let made_with = self.made_with();
        let now = clock::moment();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // What is dropped here finishes its streams and then closes.
        kept.retain(|connection| connection.is_usable(made_with, now));
        // The last used first, so that what is not needed becomes idle.
        let index = kept.iter().rposition(KeptConnection::is_ready)?;
        match kept.get(index).and_then(KeptConnection::share) {
            Some(shared) => Some(shared),
            None => Some(kept.swap_remove(index)),
        }
    }

    fn unsettled(&self) -> Option<Caller> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find_map(KeptConnection::unsettled)
    }

    fn give_back(&self, mut connection: KeptConnection) {
        connection.rest(clock::moment());
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // A shared connection that is kept already needs no second place.
        let known = kept.iter().any(|other| other.is_same(&connection));
        if !known && kept.len() < KEPT_MAX {
            kept.push(connection);
        }
    }

    async fn dial(&self) -> Result<KeptConnection, UpstreamError> {
        let idle_max = limit(self.rules.current().limits.upstream_idle);
        let unread = self.unread.clone();
        let connection = match &self.target {
            Target::Service { address, http2 } => {
                let forward = address.current();
                let (address, made_with) = (&forward.address, MadeWith::of_service(forward.number));
                let stream = self.tapped(dial::service(address).await?, *http2, address);
                KeptConnection::open(stream, *http2, unread, None, made_with, address, idle_max).await?
            }
            Target::Peer(peer) => {
                let Dialled {
                    stream,
                    session,
                    address,
                    made_with,
                } = peer.dial(Layer::Http).await?;
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let stream = self.tapped(stream, http2, &address);
                KeptConnection::open(stream, http2, unread, Some(session), made_with, &address, idle_max).await?
            }
        };
        self.shared.store(connection.is_http2(), Relaxed);
        Ok(connection)
    }

    /// What answers is looked at as what asks is: one answer that is none costs its own request only.
    fn tapped<S>(&self, stream: S, http2: bool, address: &str) -> Tapped<S> {
        let far = Far {
            side: "upstream",
            name: address.to_owned(),
            metrics: self.metrics.clone(),
        };
        Tapped::upstream(stream, http2, far, &self.rules.current())
    }

    /// A request with the one reading of host and path where the protocol wants it.
    fn address(
        &self,
        head: Parts,
        body: Body,
        canonical: &CanonicalRequest,
        connection: &KeptConnection,
    ) -> Result<Request<Body>, UpstreamError> {
        let broken = |error: &(dyn std::error::Error + 'static)| UpstreamError::broken(&self.name(), error);
        let mut request = Request::from_parts(head, body);
        let path = PathAndQuery::try_from(canonical.path_and_query()).map_err(|error| broken(&error))?;
        if connection.is_http2() {
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
        } else {
            *request.uri_mut() = Uri::from(path);
            *request.version_mut() = Version::HTTP_11;
            let host = HeaderValue::from_str(&canonical.authority()).map_err(|error| broken(&error))?;
            request.headers_mut().insert(HOST, host);
        }
        Ok(request)
    }

    fn made_with(&self) -> MadeWith {
        match &self.target {
            Target::Service { address, .. } => MadeWith::of_service(address.number()),
            Target::Peer(peer) => peer.made_with(),
        }
    }

    /// For errors: where it is now.
    fn name(&self) -> String {
        match &self.target {
            Target::Service { address, .. } => address.current().address.clone(),
            Target::Peer(peer) => peer.destination.current().address.clone(),
        }
    }
}
