//! Who calls, and what one process may hold: what the services know of the connection that a request came on.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hoplite_host::slots::{Bounds, Busy, Slot, Slots, Source};
use hoplite_host::socket::Peer;
use hoplite_wire::Begins;
use http_body_util::BodyExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::{Request, Status};

use crate::attest::LocalProcess;
use crate::refused::Refused;

/// Open streams of one process. Envoy opens one for each secret it is configured with.
pub(crate) const STREAMS_PER_PROCESS_MAX: usize = 256;

/// Open streams of all processes together: of none of them it is the bound that matters.
const STREAMS_MAX: usize = 1 << 24;

/// The header that a browser, tricked into calling a local socket, cannot send (W-4).
pub(crate) const HEADER: &str = "workload.spiffe.io";

/// What comes of a request.
pub(crate) type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

/// A stream of answers.
pub(crate) type Responses<T> = ReceiverStream<Result<T, Status>>;

/// What each request carries of its connection.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionInfo {
    caller: Arc<LocalProcess>,
    streams: Slots,
    refused: Arc<Refused>,
    /// The connection's own place, given back when the last request has ended too.
    slot: Arc<Slot>,
}

/// Places for the streams of all connections.
pub(crate) fn stream_slots() -> Slots {
    Slots::new(
        "streams",
        Bounds::local(STREAMS_MAX, STREAMS_PER_PROCESS_MAX, STREAMS_MAX),
    )
}

/// Who calls, and a place for one more stream of that process.
pub(crate) fn admit(extensions: &http::Extensions) -> Result<(Arc<LocalProcess>, Slot), Status> {
    let info = extensions
        .get::<ConnectionInfo>()
        .ok_or_else(|| Status::internal("the caller of this connection is not known"))?;
    let slot = info
        .streams
        .take(&[Source::Process(info.caller.pid)])
        .map_err(|full| Status::resource_exhausted(format!("{full}; close some streams")))?;
    Ok((Arc::clone(&info.caller), slot))
}

/// Who calls.
pub(crate) fn caller(extensions: &http::Extensions) -> Option<Arc<LocalProcess>> {
    let info = extensions.get::<ConnectionInfo>()?;
    Some(Arc::clone(&info.caller))
}

/// A service that knows nothing of callers, each of whose calls takes a place of its caller's until the answer has ended.
#[derive(Debug, Clone)]
pub(crate) struct Admitted<S>(pub(crate) S);

impl<S: NamedService> NamedService for Admitted<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Admitted<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future: Send + 'static>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        let slot = match admit(request.extensions()) {
            Ok((_, slot)) => slot,
            Err(refused) => return Box::pin(async move { Ok(refused.into_http()) }),
        };
        let answer = self.0.call(request);
        Box::pin(async move {
            let hold = move |body: Body| {
                Body::new(body.map_frame(move |frame| {
                    let _held = &slot;
                    frame
                }))
            };
            Ok(answer.await?.map(hold))
        })
    }
}

/// Lets through what no browser can have sent (W-4).
pub(crate) fn check_header<Q>(request: &Request<Q>) -> Result<(), Status> {
    let mut values = request.metadata().get_all(HEADER).iter();
    match (values.next(), values.next()) {
        (Some(value), None) if value == "true" => Ok(()),
        _ => Err(Status::invalid_argument(
            "the metadata `workload.spiffe.io: true` is missing; a SPIFFE client sends it once",
        )),
    }
}

// === impl ConnectionInfo ===

impl ConnectionInfo {
    pub(crate) fn new(
        peer: Peer,
        process: OwnedFd,
        slot: Arc<Slot>,
        streams: Slots,
        refused: Arc<Refused>,
    ) -> io::Result<Self> {
        Ok(Self {
            caller: Arc::new(LocalProcess::new(peer, process)?),
            streams,
            refused,
            slot,
        })
    }
}

impl Begins for ConnectionInfo {
    type UnderWay = Busy;

    /// With its first request a connection settles, and as long as there is one it is not idle.
    fn begin(&self) -> Result<Busy, Status> {
        self.slot.settle().map_err(|full| {
            Status::resource_exhausted(format!(
                "the agent's socket has no place for this connection: {full}; try again"
            ))
        })?;
        Ok(self.slot.begin())
    }

    fn answered(&self, rpc: &str, code: &str) {
        self.refused.answered(rpc, code);
    }

    fn refused(&self, path: &str, reason: &str) {
        self.refused.call(&self.caller, path, reason);
    }
}
