//! The agent's one Unix socket: accepts, knows who is there, keeps everything bounded, and hands each request to the service
//! that its path names: gRPC over HTTP/2, and plain HTTP for the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use hoplite_host::accept::Acceptor;
use hoplite_host::held::Held;
use hoplite_host::local_connection::LocalConnection;
use hoplite_host::peer_process::PeerProcess;
use hoplite_host::process;
use hoplite_host::shutdown::Shutdown;
use hoplite_host::slots::{Bounds, Slots};
use hoplite_wire::{Counted, Served};
use tokio::net::UnixListener;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::transport::Server;

use crate::refused::Refused;
use crate::socket::admission::{Answer, ConnectionInfo, STREAMS_PER_PROCESS_MAX, stream_slots};

/// Open connections of all callers together: one descriptor and one pidfd each.
const CONNECTIONS_MAX: usize = 8192;

/// Open connections of one process, so that one cannot take them all.
const CONNECTIONS_PER_PROCESS_MAX: usize = 256;

/// Open connections of all processes of one user, so that one with many processes cannot take them all either.
const CONNECTIONS_PER_USER_MAX: usize = CONNECTIONS_MAX / 2;

/// Requests are small: the largest lists secret names.
pub(crate) const REQUEST_BYTES_MAX: usize = 1 << 20;

/// Calls that one connection may have begun: more than its process may have, so that the one too many comes here and is refused.
/// A client holds back what is beyond this, and whoever waits for it would be told nothing.
const STREAMS_PER_CONNECTION_MAX: usize = 2 * STREAMS_PER_PROCESS_MAX;

/// Metadata of an honest client is a few hundred bytes.
const HEADER_BYTES_MAX: u32 = 16 << 10;

type Route = Arc<dyn Fn(http::Request<Body>) -> Answer + Send + Sync>;

/// The services on the socket: those of gRPC, told apart by the first part of the path, and what answers plain HTTP.
#[derive(Clone)]
pub(crate) struct Routes {
    services: BTreeMap<&'static str, Route>,
    /// Which paths are plain HTTP's in HTTP/2, too.
    is_plain: fn(&str) -> bool,
    plain: Route,
}

/// Places for connections, and for the calls and streams on all of them.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    pub(crate) connections: Slots,
    pub(crate) streams: Slots,
}

impl Default for Places {
    /// How many connections there may be, of whom: where the system gives as many descriptors.
    fn default() -> Self {
        let bounds = Bounds::local(CONNECTIONS_MAX, CONNECTIONS_PER_PROCESS_MAX, CONNECTIONS_PER_USER_MAX);
        Self {
            connections: Slots::new("workloads", bounds.at_most(process::places(2, 1))),
            streams: stream_slots(),
        }
    }
}

/// Serves the socket until the stop; returns when every call has ended.
pub(crate) async fn serve(
    listener: UnixListener,
    routes: Routes,
    peer_process: PeerProcess,
    places: Places,
    refused: Arc<Refused>,
    mut shutdown: Shutdown,
) -> Result<(), tonic::transport::Error> {
    let Places { connections, streams } = places;
    let acceptor = Acceptor::new(listener, "workloads", connections, shutdown.clone());
    let routes = Counted::<_, ConnectionInfo>::new(routes);
    Server::builder()
        .accept_http1(true)
        .max_concurrent_streams(u32::try_from(STREAMS_PER_CONNECTION_MAX).ok())
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .serve_with_incoming_shutdown(routes, incoming(acceptor, peer_process, streams, refused), async move {
            shutdown.wait().await
        })
        .await
}

type Incoming = Result<Served<Held<LocalConnection>, ConnectionInfo>, Infallible>;

/// Accepted connections whose process is known and within its bounds, until the stop.
fn incoming(
    mut acceptor: Acceptor<UnixListener>,
    peer_process: PeerProcess,
    streams: Slots,
    refused: Arc<Refused>,
) -> impl Stream<Item = Incoming> {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = acceptor.next() => accepted,
                () = sender.closed() => return,
            };
            let Some((connection, slot)) = accepted else { return };
            let slot = Arc::new(slot);
            // Nothing is waited for between the accept and this.
            let process = connection.process(peer_process);
            let known = |process| {
                let refused = Arc::clone(&refused);
                ConnectionInfo::new(connection.peer(), process, slot.clone(), streams.clone(), refused)
            };
            match process.and_then(known) {
                Ok(info) => {
                    let connection = Held::new(connection, slot);
                    if sender.send(Ok(Served::new(connection, info))).await.is_err() {
                        return;
                    }
                }
                // The peer is somebody else now, or gone. Hanging up is all that can be said to it.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    tracing::warn!(pid = connection.peer().pid, %error, "a connection was refused");
                }
                Err(error) => tracing::debug!(%error, "a connection closed before it began"),
            }
        }
    });
    ReceiverStream::new(receiver)
}

// === impl Routes ===

impl Routes {
    /// No service yet. `plain` answers what is no gRPC: all that comes over HTTP/1.1, and the paths of `is_plain`.
    pub(crate) fn new(
        is_plain: fn(&str) -> bool,
        plain: impl Fn(http::Request<Body>) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self {
            services: BTreeMap::new(),
            is_plain,
            plain: Arc::new(plain),
        }
    }

    /// With a service of gRPC.
    pub(crate) fn grpc<S>(self, service: S) -> Self
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future: Send + 'static>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
    {
        // What is generated is always ready.
        self.route(S::NAME, move |request| Box::pin(service.clone().call(request)))
    }

    /// With a service of gRPC that is not served here, and why.
    pub(crate) fn unserved(self, name: &'static str, why: &'static str) -> Self {
        self.route(name, move |_| {
            Box::pin(async move { Ok(Status::unimplemented(why).into_http()) })
        })
    }

    /// The services of gRPC, the unserved among them.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        self.services.keys().map(|name| (*name).to_owned()).collect()
    }

    fn route(
        mut self,
        name: &'static str,
        route: impl Fn(http::Request<Body>) -> Answer + Send + Sync + 'static,
    ) -> Self {
        self.services.insert(name, Arc::new(route));
        self
    }
}

impl Service<http::Request<Body>> for Routes {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        let path = request.uri().path();
        if (self.is_plain)(path) || request.version() < http::Version::HTTP_2 {
            return (self.plain)(request);
        }
        match path.split('/').nth(1).and_then(|name| self.services.get(name)) {
            Some(service) => service(request),
            None => Box::pin(async { Ok(Status::unimplemented("this agent has no such service").into_http()) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::admission::HEADER;
    use crate::testing::{World, own};
    use hoplite_wire::sds::DiscoveryRequest;
    use hoplite_wire::sds::secret_discovery_service_client::SecretDiscoveryServiceClient;
    use hoplite_wire::workload::X509svidRequest;
    use hoplite_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
    use std::time::Duration;
    use tonic::{Code, Request};

    #[tokio::test]
    async fn a_process_has_so_many_streams_and_no_more() {
        let world = World::start();
        world.publish([world.entry("/web", &[own()])]);
        let (first, second) = (world.dial().await, world.dial().await);
        let mut open = Vec::new();
        let endless = || tokio_stream::pending::<DiscoveryRequest>();
        for n in 0..STREAMS_PER_PROCESS_MAX {
            let channel = if n % 2 == 0 { first.clone() } else { second.clone() };
            open.push(
                SecretDiscoveryServiceClient::new(channel)
                    .stream_secrets(endless())
                    .await
                    .unwrap(),
            );
        }
        let refused = SecretDiscoveryServiceClient::new(first.clone())
            .stream_secrets(endless())
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
        // A message that is too long is refused before any service sees it.
        let long = DiscoveryRequest {
            version_info: "x".repeat(REQUEST_BYTES_MAX),
            ..DiscoveryRequest::default()
        };
        let refused = SecretDiscoveryServiceClient::new(first).fetch_secrets(long).await;
        assert_eq!(refused.unwrap_err().code(), Code::OutOfRange);
        assert_eq!(world.refused.counts()[2], ("call beyond a bound", 2));
    }

    /// A client library waits with what a connection has no place for, and does not say so.
    #[tokio::test]
    async fn whoever_opens_more_streams_than_a_process_may_have_is_answered_for_each() {
        let world = World::start();
        world.publish([world.entry("/web", &[own()])]);
        let channel = world.dial().await;
        let calls = (0..STREAMS_PER_PROCESS_MAX + 44).map(|_| {
            let mut client = SpiffeWorkloadApiClient::new(channel.clone());
            let mut request = Request::new(X509svidRequest {});
            request.metadata_mut().insert(HEADER, "true".parse().unwrap());
            tokio::spawn(async move { client.fetch_x509svid(request).await })
        });
        let calls: Vec<_> = calls.collect();
        let (mut open, mut refused) = (Vec::new(), 0);
        for call in calls {
            let answered = tokio::time::timeout(Duration::from_secs(30), call).await;
            match answered.expect("each call is answered").unwrap() {
                Ok(stream) => open.push(stream),
                Err(status) => {
                    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                    assert!(status.message().contains("close some streams"), "{status:?}");
                    refused += 1;
                }
            }
        }
        assert_eq!((open.len(), refused), (STREAMS_PER_PROCESS_MAX, 44));
        assert_eq!(
            world.refused.counts()[2],
            ("call beyond a bound", 44),
            "the log says it"
        );
    }

    #[tokio::test]
    async fn connections_that_do_nothing_keep_nobody_out() {
        let world = World::start();
        world.publish([world.entry("/web", &[own()])]);
        let path = world.directory.path().join("agent.sock");
        // One process, as far as its own bound goes: those that say nothing, and those that have been answered.
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_PER_PROCESS_MAX * 2 {
            silent.push(tokio::net::UnixStream::connect(&path).await.unwrap());
        }
        let mut idle = Vec::new();
        for n in 0..=CONNECTIONS_PER_PROCESS_MAX {
            let channel = world.dial().await;
            let answer = DiscoveryRequest {
                resource_names: vec!["spiffe://prod.example/web".to_owned()],
                ..Default::default()
            };
            let fetched = SecretDiscoveryServiceClient::new(channel.clone())
                .fetch_secrets(answer)
                .await;
            assert!(fetched.is_ok(), "{n}: {fetched:?}");
            idle.push(channel);
        }
    }

    #[tokio::test]
    async fn the_stop_ends_open_streams() {
        let world = World::start();
        world.publish([world.entry("/web", &[own()])]);
        let mut client = SecretDiscoveryServiceClient::new(world.dial().await);
        let requests = tokio_stream::pending::<DiscoveryRequest>();
        let mut stream = client.stream_secrets(requests).await.unwrap().into_inner();
        world.stopper.stop();
        assert!(matches!(stream.message().await, Ok(None) | Err(_)));
        drop((stream, client));
        world.served.await.unwrap().unwrap();
    }
}
