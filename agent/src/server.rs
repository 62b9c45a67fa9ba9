//! The agent's one Unix socket: accepts, knows who is there, keeps everything bounded, and dispatches to two services.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hoplite_host::shutdown::Shutdown;
use hoplite_host::socket;
use hoplite_wire::sds::secret_discovery_service_server::{SERVICE_NAME as SDS, SecretDiscoveryServiceServer};
use hoplite_wire::workload::spiffe_workload_api_server::{SERVICE_NAME as WORKLOAD_API, SpiffeWorkloadApiServer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::Stream;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Status};

use crate::attest::Caller;
use crate::sds::SdsService;
use crate::session::Desk;
use crate::workload_api::WorkloadApiService;

/// Open connections of all callers together: one descriptor and one pidfd each.
const CONNECTIONS_MAX: usize = 8192;

/// Open connections of one process, so that one cannot take them all.
const CONNECTIONS_PER_PROCESS_MAX: usize = 256;

/// Open streams of one process. Envoy opens one for each secret it is configured with.
const STREAMS_PER_PROCESS_MAX: usize = 256;

/// Requests are small: the largest lists secret names.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Metadata of an honest client is a few hundred bytes.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// After an `accept` that failed for want of descriptors: time for some to be closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// An accepted connection and who is at its other end.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    info: ConnectionInfo,
}

/// What each request carries of its connection.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionInfo {
    caller: Arc<Caller>,
    streams: Counters,
    _held: Arc<Permit>,
}

/// One stream of one process; gives its place back when dropped.
#[derive(Debug)]
pub(crate) struct StreamPermit {
    _held: Permit,
}

/// How many each process has open, and all together.
#[derive(Debug, Clone, Default)]
struct Counters(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    by_process: HashMap<i32, usize>,
}

#[derive(Debug)]
struct Permit {
    counters: Counters,
    pid: i32,
}

/// Both services, told apart by the path's first part.
#[derive(Debug, Clone)]
struct Services {
    workload_api: SpiffeWorkloadApiServer<WorkloadApiService>,
    sds: SecretDiscoveryServiceServer<SdsService>,
}

/// Serves the socket until the stop; returns when every call has ended.
pub(crate) async fn serve(
    listener: UnixListener,
    desk: Desk,
    mut shutdown: Shutdown,
) -> Result<(), tonic::transport::Error> {
    let services = Services {
        workload_api: SpiffeWorkloadApiServer::new(WorkloadApiService::new(desk.clone()))
            .max_decoding_message_size(REQUEST_BYTES_MAX),
        sds: SecretDiscoveryServiceServer::new(SdsService::new(desk)).max_decoding_message_size(REQUEST_BYTES_MAX),
    };
    Server::builder()
        .max_concurrent_streams(u32::try_from(STREAMS_PER_PROCESS_MAX).ok())
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .serve_with_incoming_shutdown(services, incoming(listener), async move { shutdown.wait().await })
        .await
}

/// Accepted connections whose process is known and within its bounds. It never ends.
fn incoming(listener: UnixListener) -> impl Stream<Item = Result<Connection, Infallible>> {
    let (connections, streams) = (Counters::default(), Counters::default());
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let connection = match accepted {
                Ok((stream, _)) => Connection::new(stream, &connections, &streams),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match connection {
                Ok(connection) => {
                    if sender.send(Ok(connection)).await.is_err() {
                        return;
                    }
                }
                // Most often the peer is gone already. Hanging up is all that can be said to it.
                Err(error) => tracing::debug!(%error, "connection closed before it began"),
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}

// === impl Connection ===

impl Connection {
    fn new(stream: UnixStream, connections: &Counters, streams: &Counters) -> io::Result<Self> {
        let caller = Caller::new(socket::peer(&stream)?)?;
        let held = connections
            .take(caller.pid, CONNECTIONS_PER_PROCESS_MAX, CONNECTIONS_MAX)
            .ok_or_else(|| {
                io::Error::other(format!(
                    "process {} or all together hold too many connections",
                    caller.pid
                ))
            })?;
        let info = ConnectionInfo {
            caller: Arc::new(caller),
            streams: streams.clone(),
            _held: Arc::new(held),
        };
        Ok(Self { stream, info })
    }

    /// Who calls, and a place for one more stream of that process.
    pub(crate) fn admit<Q>(request: &Request<Q>) -> Result<(Arc<Caller>, StreamPermit), Status> {
        let info = request
            .extensions()
            .get::<ConnectionInfo>()
            .ok_or_else(|| Status::internal("the caller of this connection is not known"))?;
        let held = info
            .streams
            .take(info.caller.pid, STREAMS_PER_PROCESS_MAX, usize::MAX)
            .ok_or_else(|| {
                Status::resource_exhausted(format!(
                    "this process has {STREAMS_PER_PROCESS_MAX} streams open; close some"
                ))
            })?;
        Ok((Arc::clone(&info.caller), StreamPermit { _held: held }))
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

// === impl Counters ===

impl Counters {
    fn take(&self, pid: i32, per_process: usize, in_total: usize) -> Option<Permit> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = counts.by_process.get(&pid).copied().unwrap_or(0);
        if own >= per_process || counts.total >= in_total {
            return None;
        }
        counts.total += 1;
        counts.by_process.insert(pid, own + 1);
        Some(Permit {
            counters: self.clone(),
            pid,
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.counters.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total = counts.total.saturating_sub(1);
        match counts.by_process.get_mut(&self.pid) {
            Some(own) if *own > 1 => *own -= 1,
            _ => {
                counts.by_process.remove(&self.pid);
            }
        }
    }
}

// === impl Services ===

impl Service<http::Request<Body>> for Services {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match request.uri().path().split('/').nth(1) {
            Some(WORKLOAD_API) => self.workload_api.call(request),
            Some(SDS) => self.sds.call(request),
            _ => Box::pin(async { Ok(Status::unimplemented("this agent has no such service").into_http()) }),
        }
    }
}
