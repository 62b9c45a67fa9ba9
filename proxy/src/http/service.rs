//! The service behind an inbound listener: what is granted reaches it, and nothing else.

use std::sync::Arc;

use hoplite_audit::Outcome;
use hoplite_decision::{Granted, HeaderFields, HttpRequest, Unasked};
use hoplite_identity::SpiffeId;
use hoplite_policy::header_nature::RemovedHeaders;
use http::request::Parts;
use http::{HeaderValue, Request, StatusCode};

use crate::forward::ForwardFeed;
use crate::http::body::{Body, Incoming};
use crate::http::exchange::Exchange;
use crate::http::hygiene;
use crate::http::interim::Interims;
use crate::http::rules::RulesFeed;
use crate::http::upstream::{FromServer, Target, Upstream};
use crate::http::via;
use crate::metrics::Metrics;
use crate::peer::dial::UpstreamError;
use crate::share::{ByCaller, Place, Places, Share};

/// A request's head without what belongs to its connection and without what only proxies may say. What is left of it is
/// what policy is shown and what the service will see.
#[derive(Debug)]
pub(crate) struct Head(Parts);

/// A granted request on its way. It can be made only from the grant, and is forwarded once.
#[derive(Debug)]
pub(crate) struct Outgoing {
    exchange: Arc<Exchange>,
    head: Head,
}

/// The service.
pub(crate) struct Service {
    target: Target,
    rules: RulesFeed,
    metrics: Arc<Metrics>,
    /// HTTP/1.1 carries one request at a time on a connection, so that what is idle serves any caller.
    common: Option<Arc<Upstream>>,
    places: Places,
    callers: ByCaller<CallersService>,
}

/// The service as one caller has it: its part of the places, and connections on which nobody else's streams are.
pub(crate) struct CallersService {
    upstream: Arc<Upstream>,
    share: Arc<Share>,
    /// Its part of what may be unread, on whichever side of us.
    pub(crate) unread: Arc<Share>,
}

// === impl Head ===

impl Head {
    pub(crate) fn new(mut parts: Parts, removed: &RemovedHeaders) -> Self {
        hygiene::sanitize_request(&mut parts.headers);
        hygiene::remove_named(&mut parts.headers, removed);
        Self(parts)
    }
}

impl HeaderFields for Head {
    fn fields(&self) -> Option<impl Iterator<Item = (&str, &[u8])>> {
        let fields = self.0.headers.iter();
        Some(fields.map(|(name, value)| (name.as_str(), value.as_bytes())))
    }
}

// === impl Outgoing ===

impl Outgoing {
    /// Begins the exchange that was granted, by a policy no older than `epoch`.
    pub(crate) fn new(granted: Granted<HttpRequest<Head>>, epoch: u64, place: Place) -> Self {
        let (HttpRequest { canonical, rest }, decision) = granted.spend();
        Self {
            exchange: Arc::new(Exchange::new(canonical, decision, epoch, Some(place))),
            head: rest,
        }
    }

    pub(crate) fn exchange(&self) -> &Arc<Exchange> {
        &self.exchange
    }
}

// === impl Service ===

impl Service {
    /// The service, wherever it is at the moment; HTTP/2 is spoken with prior knowledge.
    pub(crate) fn new(address: Arc<ForwardFeed>, http2: bool, rules: RulesFeed, metrics: Arc<Metrics>) -> Self {
        let target = Target::Service { address, http2 };
        // Of HTTP/1.1 nothing is unread but what is under way.
        let nothing = rules.current().unread.nothing();
        let common = || Upstream::new(target.clone(), nothing, rules.clone(), metrics.clone());
        Self {
            common: (!http2).then(|| Arc::new(common())),
            target,
            rules,
            metrics,
            places: Places::new(),
            callers: ByCaller::default(),
        }
    }

    /// For one caller, as long as it holds this.
    pub(crate) fn of(&self, caller: &SpiffeId) -> Arc<CallersService> {
        self.callers.get(caller, || {
            let unread = self.rules.current().unread.of(caller);
            let (target, rules, metrics) = (self.target.clone(), self.rules.clone(), self.metrics.clone());
            CallersService {
                upstream: match &self.common {
                    Some(common) => common.clone(),
                    None => Arc::new(Upstream::new(target, unread.clone(), rules, metrics)),
                },
                share: Arc::new(self.places.share()),
                unread,
            }
        })
    }
}

// === impl CallersService ===

impl CallersService {
    /// A place for one more request.
    ///
    /// # Errors
    /// The caller has as many under way as are left for everybody else.
    pub(crate) fn place(&self) -> Result<Place, Unasked> {
        self.share.take().ok_or_else(|| Unasked {
            status: StatusCode::SERVICE_UNAVAILABLE,
            outcome: Outcome::Error,
            code: "caller_busy",
            reason: "the caller has as many requests under way here as are left for all others".to_owned(),
        })
    }

    /// Forwards what was granted, with who called, and returns as soon as the response's head is there.
    pub(crate) async fn forward(
        &self,
        outgoing: Outgoing,
        body: Incoming,
        client_cert: HeaderValue,
        interims: &Interims,
    ) -> Result<FromServer, UpstreamError> {
        let Outgoing {
            exchange,
            head: Head(mut parts),
        } = outgoing;
        hygiene::set_identity(&mut parts.headers, client_cert);
        via::add(&mut parts.headers, parts.version);
        let body = Body::Received {
            incoming: body,
            exchange: exchange.clone(),
        };
        self.upstream
            .send(&exchange.canonical, Request::from_parts(parts, body), interims)
            .await
    }
}
