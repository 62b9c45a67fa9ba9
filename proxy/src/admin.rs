//! The admin socket: status and what each policy did for people, metrics for machines. Read only, and only for the own user.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hoplite_decision::DecisionPoint;
use hoplite_host::accept::Acceptor;
use hoplite_host::clock;
use hoplite_host::shutdown::Shutdown;
use hoplite_host::slots::{Bounds, Slots};
use hoplite_policy::Snapshot;
use hoplite_telemetry::Site;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::debug;

use crate::listening::Shown;
use crate::metrics::Metrics;
use crate::port::Kind;
use crate::shown::FirstIdentity;

/// People asking at a time.
const CONNECTIONS_MAX: usize = 16;

/// Those of one process.
const CONNECTIONS_PER_PROCESS_MAX: usize = 8;

/// One question and its answer.
const EXCHANGE_MAX: Duration = Duration::from_secs(5);

/// A status is a few kilobytes; faults of many files may make it longer.
const STATUS_BYTES_MAX: usize = 4 << 20;

/// Some 200 bytes for each of as many policies as there can be.
const POLICIES_BYTES_MAX: usize = 64 << 20;

/// Why a proxy's status cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// Nobody answers.
    #[error("cannot reach the proxy at `{path}`: {source}; is it running?", path = .path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody answers something else.
    #[error("`{path}` does not answer like a proxy: {reason}", path = .path.display())]
    Strange {
        /// The socket.
        path: PathBuf,
        /// What was wrong.
        reason: String,
    },
}

/// What the status is made of.
pub(crate) struct Admin {
    /// Of the proxy.
    pub(crate) name: String,
    /// In the order of the configuration: inbound, then outbound.
    pub(crate) listeners: watch::Receiver<Vec<Shown>>,
    pub(crate) point: Arc<DecisionPoint>,
    /// Empty as long as the proxy waits for its first SVID.
    pub(crate) identity: FirstIdentity,
    pub(crate) metrics: Arc<Metrics>,
    /// Where the tools that people have are answered, if they are.
    pub(crate) metrics_address: Option<SocketAddr>,
    pub(crate) site: Arc<Site>,
    pub(crate) started: SystemTime,
    /// Records that were missing from the log at the start.
    pub(crate) records_lost: u64,
}

/// Asks a running proxy for its `/status`.
///
/// # Errors
/// Nobody answers, or not as a proxy does.
pub async fn admin_status(socket: &Path) -> Result<Value, AdminError> {
    ask(socket, "/status", STATUS_BYTES_MAX).await
}

/// Asks a running proxy what each policy did: its `/policies`.
///
/// # Errors
/// As [`admin_status`].
pub async fn admin_policies(socket: &Path) -> Result<Value, AdminError> {
    ask(socket, "/policies", POLICIES_BYTES_MAX).await
}

async fn ask(socket: &Path, path: &'static str, bytes_max: usize) -> Result<Value, AdminError> {
    let strange = |reason: String| AdminError::Strange {
        path: socket.to_owned(),
        reason,
    };
    let asked = async {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|source| AdminError::Unreachable {
                path: socket.to_owned(),
                source,
            })?;
        let failed = |error: hyper::Error| {
            let unanswered = error.is_incomplete_message() || error.is_closed() || error.is_canceled();
            strange(match unanswered {
                true => "it closed the connection without an answer; ask as its own user or as root".to_owned(),
                false => error.to_string(),
            })
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        tokio::spawn(connection);
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = http::Uri::from_static(path);
        request.headers_mut().insert(HOST, HeaderValue::from_static("proxy"));
        let response = sender.send_request(request).await.map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Err(strange(format!("status {}", response.status())));
        }
        let body = Limited::new(response.into_body(), bytes_max).collect().await;
        let body = body.map_err(|error| strange(error.to_string()))?.to_bytes();
        serde_json::from_slice(&body).map_err(|error| strange(error.to_string()))
    };
    timeout(EXCHANGE_MAX, asked)
        .await
        .unwrap_or_else(|_| Err(strange("no answer within 5 s".to_owned())))
}

// === impl Admin ===

impl Admin {
    /// Answers until the shutdown.
    pub(crate) async fn serve(self: Arc<Self>, listener: UnixListener, shutdown: Shutdown) {
        let bounds = Bounds::local(CONNECTIONS_MAX, CONNECTIONS_PER_PROCESS_MAX, CONNECTIONS_MAX);
        let mut acceptor = Acceptor::new(listener, "admin", Slots::new("admin", bounds), shutdown);
        while let Some((stream, slot)) = acceptor.next().await {
            let admin = self.clone();
            tokio::spawn(async move {
                // Who asks nothing loses its place to who does.
                let service = service_fn(|request| {
                    let answer = slot.settle().map(|()| admin.answer(&request));
                    std::future::ready(answer)
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(EXCHANGE_MAX)
                    .serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    ended = connection => if let Err(error) = ended {
                        debug!(%error, "an admin connection ended badly");
                    },
                    () = slot.evicted() => {}
                }
            });
        }
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let (status, kind, text) = match (request.method(), request.uri().path()) {
            (&Method::GET, "/status") => (StatusCode::OK, "application/json", self.status().to_string() + "\n"),
            (&Method::GET, "/metrics") => {
                let (kind, text) = self.site.metrics(request.headers().get(ACCEPT));
                (StatusCode::OK, kind, text)
            }
            (&Method::GET, "/policies") => (StatusCode::OK, "application/json", self.policies().to_string() + "\n"),
            _ => (
                StatusCode::NOT_FOUND,
                "text/plain",
                "GET /status, GET /policies or GET /metrics\n".to_owned(),
            ),
        };
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }

    fn status(&self) -> Value {
        let identity = self.identity.get().map(|feed| feed.current());
        let leaf = identity.as_ref().map(|generation| generation.svid.leaf());
        let status = self.point.policy().status();
        let in_force = self.point.policy().in_force();
        let denies_all = self.point.denies_all(&in_force, clock::now());
        let snapshot = in_force.live();
        let grants: Vec<_> = status
            .grants
            .iter()
            .map(|(id, until)| json!({"id": id, "until": rfc3339(*until)}))
            .collect();
        let faults: Vec<_> = status
            .faults
            .iter()
            .map(
                |fault| json!({"file": fault.file, "line": fault.line, "column": fault.column, "reason": fault.message()}),
            )
            .collect();
        let (mut inbound, mut outbound) = (Vec::new(), Vec::new());
        for Shown { kind, address } in &*self.listeners.borrow() {
            match kind {
                Kind::Inbound(config, forward) => inbound.push(json!({
                    "service": config.service,
                    "listen": address,
                    "forward_to": forward.current().address,
                })),
                Kind::Outbound(config, destination) => {
                    let destination = destination.current();
                    outbound.push(json!({
                        "name": config.name,
                        "listen": address,
                        "connect_to": destination.address,
                        "expect": destination.expect.as_str(),
                    }));
                }
            }
        }
        json!({
            "name": self.name,
            "spiffe_id": leaf.map(|leaf| leaf.spiffe_id().as_str()),
            "svid_not_after": leaf.map(|leaf| rfc3339(leaf.not_after())),
            "svid_serial": leaf.map(|leaf| leaf.serial()),
            "policy": {
                "revision": snapshot.revision(),
                "loaded_at": rfc3339(status.loaded_at),
                "policies": snapshot.policy_ids().count(),
                "faults": faults,
                "in_force": if denies_all.is_some() { "deny_all" } else { "live" },
                "reason": denies_all,
                "source": if in_force.bundle_revision().is_some() { "bundle" } else { "directory" },
                "bundle_revision": in_force.bundle_revision(),
                "signed_by": status.signed_by,
                "signers_version": status.signers_version,
                "alarms": status.alarms,
                "expires": in_force.expires().map(rfc3339),
                "stale": in_force.stale(clock::now()),
                "shadow": in_force.shadow().map(|shadow| shadow.revision()),
                "grants": grants,
            },
            "inbound": inbound,
            "outbound": outbound,
            "connections": self.metrics.connections(),
            "metrics_listen": self.metrics_address,
            "not_ready": self.site.unready(),
        })
    }
}

impl Admin {
    /// What each policy did since the start.
    fn policies(&self) -> Value {
        let in_force = self.point.policy().in_force();
        let counts = |snapshot: &Snapshot| -> Vec<Value> {
            let each = snapshot.counts().map(|(id, counts)| {
                json!({
                    "id": id,
                    "effect": if snapshot.has_forbid(id) { "forbid" } else { "permit" },
                    "candidate": counts.candidate,
                    "satisfied": counts.satisfied,
                    "determining": counts.determining,
                    "errored": counts.errored,
                    "last_fired": counts.last_fired.map(rfc3339),
                })
            });
            each.collect()
        };
        json!({
            "name": self.name,
            "spiffe_id": self.identity.get().map(|feed| feed.current().svid.spiffe_id().to_string()),
            "revision": in_force.live().revision(),
            "policies": counts(in_force.live()),
            "shadow": in_force.shadow().map(|shadow| counts(shadow)),
        })
    }
}

fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}
