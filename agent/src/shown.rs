//! What is shown of an agent to the tools that people have: its metrics, and whether it can do its work now.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use hoplite_host::shutdown::Shutdown;
use hoplite_host::slots::Slots;
use hoplite_otlp::Sent;
use hoplite_policy::holding::Holding;
use hoplite_telemetry::{Counter, Exposition, Family, Kind, Site};
use tokio::sync::watch;

use crate::authorize::authorizer::Authorizer;
use crate::node::link::CaLink;
use crate::refused::Refused;
use crate::supply::SupplyReceiver;
use crate::supply::shelf::Supply;
use crate::tokens::Tokens;

/// What is shown of an agent is read here.
pub(crate) struct Shown {
    pub(crate) link: CaLink,
    pub(crate) sent: Sent,
    pub(crate) supply: SupplyReceiver,
    pub(crate) tokens: Tokens,
    pub(crate) holdings: watch::Receiver<Arc<Holding>>,
    pub(crate) refused: Arc<Refused>,
    pub(crate) attested: Family<1, Counter>,
    pub(crate) connections: Slots,
    pub(crate) streams: Slots,
    pub(crate) authorizer: Option<Arc<Authorizer>>,
    pub(crate) shutdown: Shutdown,
}

// === impl Shown ===

impl Shown {
    /// All of it. Of what has to end with the agent nothing is held.
    pub(crate) fn site(self) -> Site {
        let mut to = Exposition::new("hoplite_agent");
        if let Some(authorizer) = &self.authorizer {
            authorizer.point().register(&mut to);
        }
        self.sent.register(&mut to);
        let metrics = self.link.metrics().clone();
        to.register(
            "certificates_asked",
            "Certificates asked of the CA: the node's own (`join`, `renew`) and workloads', and their JWT-SVIDs (`jwt`), and whether they were issued",
            metrics.issued().clone(),
        );
        to.register(
            "calls",
            "Calls answered on the socket, by RPC and code; of a stream it is how that began",
            self.refused.calls().clone(),
        );
        to.register(
            "attestations",
            "Looks at what a calling process may have, by result",
            self.attested.clone(),
        );
        let refused = self.refused.clone();
        to.sampled(
            Kind::Counter,
            "processes_refused",
            "Processes refused: without an identity, a secret not theirs, a call beyond a bound",
            move |to| {
                for (cause, refused) in refused.counts() {
                    to.put_for(&[("cause", &cause.replace(' ', "_"))], refused);
                }
            },
        );
        to.sampled(
            Kind::Gauge,
            "ca_silence_seconds",
            "For how long the CA has not been heard; 0 while it is",
            move |to| to.put_real(metrics.contact.silence().as_secs_f64()),
        );
        for (name, help, slots) in [
            ("connections", "Connections on the socket now", self.connections),
            ("streams", "Calls and streams on the socket now", self.streams),
        ] {
            to.sampled(Kind::Gauge, name, help, move |to| to.put(slots.open() as u64));
        }
        let tokens = self.tokens;
        to.sampled(
            Kind::Gauge,
            "jwt_svids",
            "JWT-SVIDs that are at hand for workloads",
            move |to| to.put(tokens.len() as u64),
        );
        register_supply(&self.supply, &mut to);
        register_node(&self.link, &mut to);
        let holdings = self.holdings;
        to.sampled(
            Kind::Gauge,
            "held_policy_revision",
            "The revision of the signed policy that this node holds; 0 before the first",
            move |to| to.put(holdings.borrow().live().map_or(0, |live| live.revision())),
        );
        let (link, supply, shutdown) = (self.link, self.supply, self.shutdown);
        let log = self.authorizer.map(|authorizer| Arc::downgrade(authorizer.point()));
        Site::new(to, move || {
            let mut reasons = Vec::new();
            if shutdown.is_stopping() {
                reasons.push("the agent is stopping".to_owned());
            }
            if link.credentials().borrow().is_none() {
                reasons.push("this node has not joined: it has no valid SVID of its own".to_owned());
            } else if supply.borrow().is_none() {
                reasons.push("the CA has not said yet what is registered under this node".to_owned());
            }
            if let Some(why) = supply.borrow().as_ref().and_then(|supply| supply.dismissed()) {
                reasons.push(format!("the CA has dismissed this node: {why}"));
            }
            let failure = log.as_ref().and_then(|log| log.upgrade()?.unrecorded());
            if let Some(failure) = failure {
                reasons.push(format!(
                    "no decision can be recorded, so every one is refused: {failure}"
                ));
            }
            reasons
        })
    }
}

fn register_supply(supply: &SupplyReceiver, to: &mut Exposition) {
    let mut gauge = |name, help, read: fn(&Supply) -> Option<u64>| {
        let supply = supply.clone();
        to.sampled(Kind::Gauge, name, help, move |to| {
            if let Some(value) = supply.borrow().as_deref().and_then(read) {
                to.put(value);
            }
        });
    };
    gauge("entries", "Workloads registered under this node", |supply| {
        Some(supply.len() as u64)
    });
    gauge("svids", "SVIDs that are ready for workloads", |supply| {
        Some(supply.len().saturating_sub(supply.without_svid()) as u64)
    });
    gauge(
        "svids_tainted",
        "SVIDs that are under a tainted authority, and are being replaced",
        |supply| Some(supply.tainted() as u64),
    );
    gauge(
        "svid_not_after_timestamp_seconds",
        "When the first of the workloads' SVIDs ends, in seconds since 1970",
        |supply| supply.first_end().map(unix),
    );
}

fn register_node(link: &CaLink, to: &mut Exposition) {
    let credentials = link.credentials();
    to.sampled(
        Kind::Gauge,
        "node_svid_not_after_timestamp_seconds",
        "When the node's own SVID ends, in seconds since 1970",
        move |to| {
            if let Some(own) = &*credentials.borrow() {
                to.put(unix(own.svid.leaf().not_after()));
            }
        },
    );
    let credentials = link.credentials();
    to.sampled(
        Kind::Gauge,
        "authority_not_after_timestamp_seconds",
        "When the last authority that is trusted ends, in seconds since 1970",
        move |to| {
            let end = credentials.borrow().as_ref().and_then(|own| own.bundle.last_end());
            if let Some(end) = end {
                to.put(unix(end));
            }
        },
    );
}

fn unix(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
