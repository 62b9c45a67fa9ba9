//! The service behind an inbound listener: what is granted reaches it, and nothing else.

use std::sync::Arc;

use hoplite_decision::{Granted, HeaderFields, HttpRequest};
use hoplite_policy::header_nature::RemovedHeaders;
use http::request::Parts;
use http::{HeaderValue, Request, Response};

use crate::http::body::{Body, Incoming};
use crate::http::exchange::Exchange;
use crate::http::hygiene;
use crate::http::interim::Interims;
use crate::http::rules::HttpRules;
use crate::http::upstream::{Target, Upstream};
use crate::metrics::Metrics;
use crate::peer::dial::UpstreamError;

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

/// The service, and our connections to it.
pub(crate) struct Service(Upstream);

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
    pub(crate) fn new(granted: Granted<HttpRequest<Head>>, epoch: u64) -> Self {
        let (HttpRequest { canonical, rest }, decision) = granted.spend();
        Self {
            exchange: Arc::new(Exchange::new(canonical, decision, epoch)),
            head: rest,
        }
    }

    pub(crate) fn exchange(&self) -> &Arc<Exchange> {
        &self.exchange
    }
}

// === impl Service ===

impl Service {
    /// The service at an address; HTTP/2 is spoken with prior knowledge.
    pub(crate) fn new(address: String, http2: bool, rules: Arc<HttpRules>, metrics: Arc<Metrics>) -> Self {
        Self(Upstream::new(Target::Service { address, http2 }, rules, metrics))
    }

    /// Forwards what was granted, with who called, and returns as soon as the response's head is there.
    pub(crate) async fn forward(
        &self,
        outgoing: Outgoing,
        body: Incoming,
        client_cert: HeaderValue,
        interims: &Interims,
    ) -> Result<Response<Body>, UpstreamError> {
        let Outgoing {
            exchange,
            head: Head(mut parts),
        } = outgoing;
        hygiene::set_identity(&mut parts.headers, client_cert);
        let body = Body::Received {
            incoming: body,
            exchange: exchange.clone(),
        };
        self.0
            .send(&exchange.canonical, Request::from_parts(parts, body), interims)
            .await
    }
}
