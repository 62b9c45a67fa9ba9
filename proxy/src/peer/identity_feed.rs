//! Who this proxy is: follows the Workload API and keeps TLS configurations ready for the identity of the moment.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use hoplite_host::backoff::{Backoff, jitter};
use hoplite_host::clock;
use hoplite_identity::tls::{self, ClientAuth};
use hoplite_identity::{InvalidBundle, PeerVerifier, SpiffeId, X509Svid};
use hoplite_wire::{FetchError, Identity, WorkloadApi};
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, error, info, warn};

use crate::metrics::Metrics;

/// Configurations for calling, of one generation. As many peers are rarely called; beyond, each is made again when needed.
const CLIENTS_MAX: usize = 1_024;

/// Application protocols of an HTTP connection, best first.
const ALPN_HTTP: &[&[u8]] = &[b"h2", b"http/1.1"];

/// The first wait after the agent went away, and the longest: an agent that is back is found within this time.
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

/// The identity in force. It cannot exist without one: whoever holds it can show an SVID.
#[derive(Debug)]
pub(crate) struct IdentityFeed {
    current: ArcSwap<Generation>,
    number: watch::Sender<u64>,
}

/// One SVID with its bundles, and every TLS configuration made from them, once: for accepting at the start, for calling a
/// peer when it is first called.
#[derive(Debug)]
pub(crate) struct Generation {
    /// Counts up from 1.
    pub(crate) number: u64,
    /// The own SVID.
    pub(crate) svid: X509Svid,
    /// Knows the bundles that came with it.
    pub(crate) verifier: Arc<PeerVerifier>,
    server_http: Arc<ServerConfig>,
    server_tcp: Arc<ServerConfig>,
    clients: Mutex<HashMap<SpiffeId, Client>>,
}

#[derive(Debug)]
struct Client {
    http: Arc<ClientConfig>,
    tcp: Arc<ClientConfig>,
}

/// What runs inside TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer {
    /// HTTP/2 or HTTP/1.1, by ALPN.
    Http,
    /// Bytes.
    Tcp,
}

/// Where generations come from: the agent's socket, dialled again for ever.
pub(crate) struct Source {
    address: String,
    wanted: Option<SpiffeId>,
    stream: Option<WorkloadApi>,
    number: u64,
    backoff: Backoff,
    metrics: Arc<Metrics>,
}

/// Why what the agent sent is not used.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("the agent gives no SVID for `{0}`; register this workload, or correct `spiffe_id`")]
    NotAmong(SpiffeId),
    #[error("the trust bundle cannot be used")]
    Bundle(#[from] InvalidBundle),
    #[error("the SVID cannot be used with TLS: {0}")]
    Tls(#[from] rustls::Error),
}

// === impl IdentityFeed ===

impl IdentityFeed {
    /// Starts with the first identity.
    pub(crate) fn new(first: Generation) -> Self {
        let number = watch::Sender::new(first.number);
        Self {
            current: ArcSwap::from_pointee(first),
            number,
        }
    }

    /// The identity in force. It may have expired: see [`Generation::is_valid`].
    pub(crate) fn current(&self) -> Arc<Generation> {
        self.current.load_full()
    }

    /// The number of the generation in force, without touching its count of users.
    pub(crate) fn number(&self) -> u64 {
        self.current.load().number
    }

    /// Changes with every generation, after it is in force.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.number.subscribe()
    }

    /// Keeps the identity current for as long as it is polled.
    pub(crate) async fn follow(&self, mut source: Source) {
        let mut expiry_said = 0;
        loop {
            let current = self.current();
            tokio::select! {
                next = source.next(Some(&current)) => self.replace(next),
                () = clock::reached(current.svid.leaf().not_after()), if expiry_said != current.number => {
                    expiry_said = current.number;
                    error!(
                        notice = true,
                        spiffe_id = %current.svid.spiffe_id(),
                        "the own SVID has expired: handshakes are refused until the agent gives a new one",
                    );
                }
            }
        }
    }

    fn replace(&self, next: Generation) {
        info!(
            notice = true,
            spiffe_id = %next.svid.spiffe_id(),
            serial = next.svid.leaf().serial(),
            generation = next.number,
            "identity rotated",
        );
        let number = next.number;
        // INVARIANT: in force before announced, so that whoever hears of a number finds it or a later one.
        self.current.store(Arc::new(next));
        self.number.send_replace(number);
    }
}

// === impl Generation ===

impl Generation {
    fn new(number: u64, identity: Identity, wanted: Option<&SpiffeId>) -> Result<Self, Unusable> {
        let Identity { svids, bundles, .. } = identity;
        let mut svids = svids.into_iter();
        let svid = match wanted {
            Some(wanted) => svids
                .find(|svid| svid.spiffe_id() == wanted)
                .ok_or_else(|| Unusable::NotAmong(wanted.clone()))?,
            None => svids.next().ok_or(FetchError::Empty)?,
        };
        let verifier = Arc::new(PeerVerifier::new(bundles)?);
        let server = |alpn| tls::server_config(&svid, verifier.clone(), ClientAuth::Required, alpn);
        let (server_http, server_tcp) = (server(ALPN_HTTP)?, server(&[])?);
        Ok(Self {
            number,
            verifier,
            server_http,
            server_tcp,
            clients: Mutex::default(),
            svid,
        })
    }

    /// Whether the own SVID may still be shown.
    pub(crate) fn is_valid(&self, now: SystemTime) -> bool {
        now < self.svid.leaf().not_after()
    }

    /// When the last authority of the own trust domain ends.
    pub(crate) fn last_authority_end(&self) -> Option<SystemTime> {
        let own = self.svid.spiffe_id().trust_domain();
        self.verifier.bundles().get(own)?.last_end()
    }

    /// For accepting peers.
    pub(crate) fn server(&self, layer: Layer) -> Arc<ServerConfig> {
        match layer {
            Layer::Http => self.server_http.clone(),
            Layer::Tcp => self.server_tcp.clone(),
        }
    }

    /// For calling exactly this peer.
    ///
    /// # Errors
    /// The SVID cannot be used with TLS. It has been used for accepting, so that is not to be expected.
    pub(crate) fn client(&self, expect: &SpiffeId, layer: Layer) -> Result<Arc<ClientConfig>, rustls::Error> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(expect) {
            return Ok(client.of(layer));
        }
        let config = |alpn| tls::client_config(Some(&self.svid), self.verifier.clone(), expect.clone(), alpn);
        let client = Client {
            http: config(ALPN_HTTP)?,
            tcp: config(&[])?,
        };
        if clients.len() >= CLIENTS_MAX {
            clients.clear();
        }
        Ok(clients.entry(expect.clone()).or_insert(client).of(layer))
    }

    /// Whether nothing that matters differs: an agent that restarts sends the same again.
    fn says_the_same_as(&self, other: &Self) -> bool {
        self.svid.leaf().fingerprint() == other.svid.leaf().fingerprint()
            && self.verifier.bundles() == other.verifier.bundles()
    }
}

// === impl Client ===

impl Client {
    fn of(&self, layer: Layer) -> Arc<ClientConfig> {
        match layer {
            Layer::Http => self.http.clone(),
            Layer::Tcp => self.tcp.clone(),
        }
    }
}

// === impl Source ===

impl Source {
    /// Whether the agent is heard is counted.
    pub(crate) fn new(address: String, wanted: Option<SpiffeId>, metrics: Arc<Metrics>) -> Self {
        Self {
            address,
            wanted,
            stream: None,
            number: 0,
            backoff: RETRY,
            metrics,
        }
    }

    /// The next generation that differs from `current`. Waits for the agent as long as it takes, and says so.
    ///
    /// Cancel safe: a cancelled wait loses no message.
    pub(crate) async fn next(&mut self, current: Option<&Generation>) -> Generation {
        loop {
            match self.receive().await {
                Ok(next) => {
                    self.metrics.identity_contact.heard();
                    if self.backoff.is_failing() {
                        info!(workload_api = self.address, "the agent is back");
                        self.backoff.succeeded();
                    }
                    if current.is_some_and(|current| current.says_the_same_as(&next)) {
                        continue;
                    }
                    self.number = next.number;
                    return next;
                }
                Err(error) => {
                    self.stream = None;
                    self.metrics.identity_contact.lost();
                    let is_news = !self.backoff.is_failing();
                    let wait = self.backoff.failed(jitter());
                    if is_news {
                        warn!(
                            workload_api = self.address,
                            error = &error as &dyn Error,
                            "no identity from the agent yet; waiting and trying again"
                        );
                    } else {
                        debug!(error = &error as &dyn Error, ?wait, "still no identity from the agent");
                    }
                    sleep(wait).await;
                }
            }
        }
    }

    async fn receive(&mut self) -> Result<Generation, Unusable> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            empty => empty.insert(WorkloadApi::open(&self.address).await?),
        };
        let identity = stream.next().await?;
        Generation::new(self.number + 1, identity, self.wanted.as_ref())
    }
}
