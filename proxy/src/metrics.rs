//! What a proxy counts besides decisions. Every label comes from a set that is fixed when the program is compiled, or by
//! the configuration.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hoplite_host::slots::{Counts, Slots};
use hoplite_otlp::Sent;
use hoplite_telemetry::{Contact, Counter, Exposition, Family, Histogram, Kind};
use http::StatusCode;

use crate::tcp::relay::Direction;

/// Codes are from fixed sets, with some room.
const CODES_MAX: usize = 200;

/// Listeners are configured; more than this are counted together.
const LISTENERS_MAX: usize = 1_000;

/// Classes of status codes.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// What has happened since the start.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// The places of all listeners, and what those did that are gone.
    slots: Mutex<(Vec<Slots>, Counts)>,
    connections: AtomicU64,
    requests: AtomicU64,
    waiting: AtomicU64,
    accepted: Family<2, Counter>,
    received: Family<2, Counter>,
    sent: Family<2, Counter>,
    responses: Family<3, Counter>,
    calls_took: Family<1, Histogram>,
    connections_took: Family<2, Histogram>,
    /// What became of spans and metrics that are sent.
    pub(crate) otlp: Sent,
    rechecks: Counter,
    revoked: Counter,
    handshakes: Family<1, Counter>,
    handshake_took: Histogram,
    upstream_failures: Family<1, Counter>,
    flooded: Family<1, Counter>,
    timeouts: Family<1, Counter>,
    /// With the agent, as who gives identities.
    pub(crate) identity_contact: Contact,
}

/// What is counted at one listener: found once, and kept.
#[derive(Debug, Clone)]
pub(crate) struct Traffic(Arc<Listener>);

#[derive(Debug)]
struct Listener {
    accepted: Arc<Counter>,
    received: Arc<Counter>,
    sent: Arc<Counter>,
    responses: [Arc<Counter>; CLASSES.len()],
    took: Took,
}

/// How long what is carried at a listener takes.
#[derive(Debug)]
struct Took {
    /// Requests of the own service; those of peers are counted by what was decided of them.
    calls: Histogram,
    connections: Histogram,
}

/// What a listener carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carried {
    InboundHttp,
    OutboundHttp,
    InboundTcp,
    OutboundTcp,
}

/// Counts a connection, or a request, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Counted(Arc<Metrics>, fn(&Metrics) -> &AtomicU64);

// === impl Metrics ===

impl Default for Metrics {
    fn default() -> Self {
        let codes = |label| Family::new([label], CODES_MAX);
        let listeners = listeners_with::<Counter>;
        Self {
            slots: Mutex::default(),
            connections: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            accepted: listeners(),
            received: listeners(),
            sent: listeners(),
            responses: Family::new(["direction!", "listener", "class!"], LISTENERS_MAX * CLASSES.len()),
            calls_took: Family::new(["listener"], LISTENERS_MAX),
            connections_took: listeners_with(),
            otlp: Sent::default(),
            rechecks: Counter::default(),
            revoked: Counter::default(),
            handshakes: codes("result"),
            handshake_took: Histogram::default(),
            upstream_failures: codes("code"),
            flooded: codes("side"),
            timeouts: codes("limit"),
            identity_contact: Contact::default(),
        }
    }
}

impl Metrics {
    /// Whose bounds are counted too.
    pub(crate) fn watch(&self, slots: Slots) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).0.push(slots);
    }

    /// Whose are counted no longer. What they did stays counted.
    pub(crate) fn unwatch(&self, slots: &Slots) {
        let mut watched = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, gone) = &mut *watched;
        all.retain(|one| !one.is_same(slots));
        *gone = plus(*gone, slots.counts());
    }

    fn bounds(&self) -> Counts {
        let watched = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        watched.0.iter().map(Slots::counts).fold(watched.1, plus)
    }

    /// What is counted at a listener.
    pub(crate) fn traffic(&self, carried: Carried, listener: &str) -> Traffic {
        let direction = match carried {
            Carried::InboundHttp | Carried::InboundTcp => "inbound",
            Carried::OutboundHttp | Carried::OutboundTcp => "outbound",
        };
        // Of what a listener never carries there is no line.
        let took = Took {
            calls: match carried {
                Carried::OutboundHttp => self.calls_took.get([listener]).as_ref().clone(),
                _ => Histogram::default(),
            },
            connections: match carried {
                Carried::InboundTcp | Carried::OutboundTcp => {
                    self.connections_took.get([direction, listener]).as_ref().clone()
                }
                _ => Histogram::default(),
            },
        };
        let of = |family: &Family<2, Counter>| family.get([direction, listener]);
        Traffic(Arc::new(Listener {
            accepted: of(&self.accepted),
            received: of(&self.received),
            sent: of(&self.sent),
            responses: CLASSES.map(|class| self.responses.get([direction, listener, class])),
            took,
        }))
    }

    pub(crate) fn handshake_refused(&self, code: &'static str) {
        self.handshakes.get([code]).inc();
    }

    /// A peer has shown who it is.
    pub(crate) fn handshake_made(&self, took: Duration) {
        self.handshakes.get(["ok"]).inc();
        self.handshake_took.observe(took);
    }

    /// A connection was ended for what belongs to no request.
    pub(crate) fn flooded(&self, side: &'static str) {
        self.flooded.get([side]).inc();
    }

    pub(crate) fn upstream_failed(&self, code: &'static str) {
        self.upstream_failures.get([code]).inc();
    }

    /// Something was ended by the setting of this name in `[limits]`.
    pub(crate) fn timed_out(&self, limit: &'static str) {
        self.timeouts.get([limit]).inc();
    }

    /// A TCP connection has ended so.
    pub(crate) fn relayed(&self, ended: &std::io::Result<()>) {
        if ended
            .as_ref()
            .is_err_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
        {
            self.timed_out("tcp_idle");
        }
    }

    /// Something under way was decided again.
    pub(crate) fn rechecked(&self, permitted: bool) {
        self.rechecks.inc();
        self.revoked.inc_by(u64::from(!permitted));
    }

    /// An accepted connection.
    pub(crate) fn connection(self: &Arc<Self>) -> Counted {
        Counted::new(self, |metrics| &metrics.connections)
    }

    /// A request under way.
    pub(crate) fn request(self: &Arc<Self>) -> Counted {
        Counted::new(self, |metrics| &metrics.requests)
    }

    /// A request that waits for a connection to the other side.
    pub(crate) fn waits(self: &Arc<Self>) -> Counted {
        Counted::new(self, |metrics| &metrics.waiting)
    }

    /// Accepted connections that are open now.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Adds all of it to what is shown of the process.
    pub(crate) fn register(self: &Arc<Self>, to: &mut Exposition) {
        to.register(
            "call_duration_seconds",
            "Of HTTP requests that the own service makes: from the head to the end of the answer, by listener",
            self.calls_took.clone(),
        );
        to.register(
            "tcp_connection_duration_seconds",
            "Of TCP connections that were carried: from the permission to their end, by listener",
            self.connections_took.clone(),
        );
        self.otlp.register_spans(to);
        to.register(
            "connections_accepted",
            "Connections accepted, by listener",
            self.accepted.clone(),
        );
        to.register(
            "received_bytes",
            "Bytes read from those who call, without TLS, by listener",
            self.received.clone(),
        );
        to.register(
            "sent_bytes",
            "Bytes written to those who call, without TLS, by listener",
            self.sent.clone(),
        );
        to.register(
            "responses",
            "Answers to HTTP requests, ours and the services', by listener and class of status",
            self.responses.clone(),
        );
        to.register(
            "handshakes",
            "TLS handshakes with those who call: `ok`, or why there is no identity",
            self.handshakes.clone(),
        );
        to.register(
            "handshake_duration_seconds",
            "From the first byte to a caller's identity",
            self.handshake_took.clone(),
        );
        to.register(
            "rechecks",
            "Connections and requests under way that were decided again because policy changed",
            self.rechecks.clone(),
        );
        to.register(
            "revoked",
            "Connections and requests under way that were ended because policy no longer permits them",
            self.revoked.clone(),
        );
        to.register(
            "upstream_failures",
            "Requests and connections that found no upstream",
            self.upstream_failures.clone(),
        );
        to.register(
            "connections_flooded",
            "Connections ended because they carried too many HTTP/2 frames that belong to no request",
            self.flooded.clone(),
        );
        to.register(
            "timeouts",
            "Requests and connections that were ended because nothing moved for too long, by the setting in [limits]",
            self.timeouts.clone(),
        );
        self.register_sampled(to);
    }

    fn register_sampled(self: &Arc<Self>, to: &mut Exposition) {
        let mut gauge = |name, help, read: fn(&Self) -> f64| {
            let metrics = self.clone();
            to.sampled(Kind::Gauge, name, help, move |to| to.put_real(read(&metrics)));
        };
        gauge("connections", "Accepted connections open now", |metrics| {
            metrics.connections() as f64
        });
        gauge(
            "requests_under_way",
            "HTTP requests whose answer has not ended",
            |metrics| metrics.requests.load(Relaxed) as f64,
        );
        gauge(
            "requests_waiting",
            "HTTP requests that wait for a connection to the service, or to the peer",
            |metrics| metrics.waiting.load(Relaxed) as f64,
        );
        gauge(
            "identity_silence_seconds",
            "For how long the agent has not been heard as the source of identities; 0 while it is",
            |metrics| metrics.identity_contact.silence().as_secs_f64(),
        );
        let metrics = self.clone();
        to.sampled(
            Kind::Counter,
            "connections_evicted",
            "Connections closed for later ones because all places were taken: newcomers that had shown nothing yet, and idle ones",
            move |to| {
                let bounds = metrics.bounds();
                to.put_for(&[("stage", "newcomer")], bounds.newcomers_evicted);
                to.put_for(&[("stage", "idle")], bounds.idle_evicted);
            },
        );
        let metrics = self.clone();
        to.sampled(
            Kind::Counter,
            "connections_refused",
            "Connections refused because all places were taken and none was idle",
            move |to| to.put(metrics.bounds().refused),
        );
    }
}

// === impl Traffic ===

impl Traffic {
    pub(crate) fn accepted(&self) {
        self.0.accepted.inc();
    }

    /// Where requests of the own service are counted that have ended.
    pub(crate) fn took(&self) -> Histogram {
        self.0.took.calls.clone()
    }

    /// A connection that was carried has ended, so long after its beginning.
    pub(crate) fn connection_took(&self, took: Duration) {
        self.0.took.connections.observe(took);
    }

    /// Bytes of who calls.
    pub(crate) fn received(&self, bytes: usize) {
        self.0.received.inc_by(bytes as u64);
    }

    /// Bytes to who calls.
    pub(crate) fn sent(&self, bytes: usize) {
        self.0.sent.inc_by(bytes as u64);
    }

    /// Bytes of a connection that is relayed, from who calls and back.
    pub(crate) fn moved(&self, way: Direction, bytes: usize) {
        match way {
            Direction::There => self.received(bytes),
            Direction::Back => self.sent(bytes),
        }
    }

    /// An answer of this status has begun.
    pub(crate) fn responded(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).saturating_sub(1);
        if let Some(responses) = self.0.responses.get(class) {
            responses.inc();
        }
    }
}

fn listeners_with<M: Default>() -> Family<2, M> {
    Family::new(["direction!", "listener"], LISTENERS_MAX)
}

fn plus(one: Counts, other: Counts) -> Counts {
    Counts {
        newcomers_evicted: one.newcomers_evicted + other.newcomers_evicted,
        idle_evicted: one.idle_evicted + other.idle_evicted,
        refused: one.refused + other.refused,
    }
}

// === impl Counted ===

impl Counted {
    fn new(metrics: &Arc<Metrics>, gauge: fn(&Metrics) -> &AtomicU64) -> Self {
        gauge(metrics).fetch_add(1, Relaxed);
        Self(metrics.clone(), gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.1)(&self.0).fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use hoplite_telemetry::Format;

    use super::*;

    #[test]
    fn what_happened_is_counted() {
        let metrics = Arc::new(Metrics::default());
        let mut exposition = Exposition::new("hoplite_proxy");
        metrics.register(&mut exposition);
        let check = |lines: &[&str]| {
            let text = exposition.text(Format::OpenMetrics);
            for line in lines {
                assert!(
                    text.lines().any(|found| found == *line),
                    "`{line}` is missing from {text}"
                );
            }
        };
        metrics.handshake_refused("no_certificate");
        metrics.flooded("peer");
        metrics.rechecked(true);
        metrics.rechecked(false);
        let traffic = metrics.traffic(Carried::InboundHttp, "ledger");
        traffic.received(7);
        traffic.responded(StatusCode::NOT_FOUND);
        let open = metrics.connection();
        check(&["hoplite_proxy_connections 1"]);
        drop(open);
        check(&[
            "hoplite_proxy_handshakes_total{result=\"no_certificate\"} 1",
            "hoplite_proxy_connections_flooded_total{side=\"peer\"} 1",
            "hoplite_proxy_connections 0",
            "hoplite_proxy_rechecks_total 2",
            "hoplite_proxy_revoked_total 1",
            "hoplite_proxy_received_bytes_total{direction=\"inbound\",listener=\"ledger\"} 7",
            "hoplite_proxy_sent_bytes_total{direction=\"inbound\",listener=\"ledger\"} 0",
            "hoplite_proxy_responses_total{direction=\"inbound\",listener=\"ledger\",class=\"4xx\"} 1",
            "hoplite_proxy_connections_evicted_total{stage=\"idle\"} 0",
        ]);
    }
}
