//! The agent's one Unix socket: accepts, knows who is there, keeps everything bounded, and dispatches to its services:
//! those of gRPC over HTTP/2, and AuthZEN over HTTP/2 and HTTP/1.1.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hoplite_host::shutdown::Shutdown;
use hoplite_host::socket;
use hoplite_wire::ext_authz::authorization_server::{AuthorizationServer, SERVICE_NAME as EXT_AUTHZ};
use hoplite_wire::policy::policies_server::{PoliciesServer, SERVICE_NAME as POLICIES};
use hoplite_wire::sds::secret_discovery_service_server::{SERVICE_NAME as SDS, SecretDiscoveryServiceServer};
use hoplite_wire::workload::spiffe_workload_api_server::{SERVICE_NAME as WORKLOAD_API, SpiffeWorkloadApiServer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::Stream;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::transport::Server;
use tonic::transport::server::Connected;

use crate::attest::Caller;
use crate::authority::Repair;
use crate::authorize::authorizer::Authorizer;
use crate::authorize::authzen::{self, AuthZen};
use crate::authorize::ext_authz::ExtAuthz;
use crate::socket::policy_service::PolicyService;
use crate::socket::sds::SdsService;
use crate::socket::session::Desk;
use crate::socket::workload_api::WorkloadApiService;

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

/// To those who ask for decisions where none are made.
const UNAUTHORIZED: &str = "this agent's configuration has no `[authorization]` table";

/// An accepted connection and who is at its other end.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    repair: Repair,
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

/// The services, told apart by the path's first part.
#[derive(Debug, Clone)]
struct Services {
    workload_api: SpiffeWorkloadApiServer<WorkloadApiService>,
    sds: SecretDiscoveryServiceServer<SdsService>,
    policy: PoliciesServer<PolicyService>,
    ext_authz: Option<AuthorizationServer<ExtAuthz>>,
    authzen: Option<AuthZen>,
}

/// Serves the socket until the stop; returns when every call has ended.
pub(crate) async fn serve(
    listener: UnixListener,
    desk: Desk,
    authorizer: Option<Arc<Authorizer>>,
    mut shutdown: Shutdown,
) -> Result<(), tonic::transport::Error> {
    let services = Services {
        workload_api: SpiffeWorkloadApiServer::new(WorkloadApiService::new(desk.clone()))
            .max_decoding_message_size(REQUEST_BYTES_MAX),
        sds: SecretDiscoveryServiceServer::new(SdsService::new(desk.clone()))
            .max_decoding_message_size(REQUEST_BYTES_MAX),
        policy: PoliciesServer::new(PolicyService::new(desk.clone())).max_decoding_message_size(REQUEST_BYTES_MAX),
        ext_authz: authorizer.clone().map(|authorizer| {
            AuthorizationServer::new(ExtAuthz::new(desk.clone(), authorizer))
                .max_decoding_message_size(REQUEST_BYTES_MAX)
        }),
        authzen: authorizer.map(|authorizer| AuthZen::new(desk, authorizer)),
    };
    Server::builder()
        .accept_http1(true)
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
        Ok(Self {
            stream,
            repair: Repair::new(),
            info,
        })
    }

    /// Who calls, and a place for one more stream of that process.
    pub(crate) fn admit(extensions: &http::Extensions) -> Result<(Arc<Caller>, StreamPermit), Status> {
        let info = extensions
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
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Some(new) = buffer.filled_mut().get_mut(before..) {
            self.repair.apply(new);
        }
        read
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
        if authzen::is_authzen(request.uri().path()) {
            let authzen = self.authzen.clone();
            return Box::pin(async move {
                Ok(match authzen {
                    Some(authzen) => authzen.answer(request).await,
                    None => authzen::not_found(UNAUTHORIZED),
                })
            });
        }
        if request.version() < http::Version::HTTP_2 {
            return Box::pin(async {
                Ok(authzen::not_found(
                    "over HTTP/1.1 there is AuthZEN only; gRPC needs HTTP/2",
                ))
            });
        }
        match request.uri().path().split('/').nth(1) {
            Some(WORKLOAD_API) => self.workload_api.call(request),
            Some(SDS) => self.sds.call(request),
            Some(POLICIES) => self.policy.call(request),
            Some(EXT_AUTHZ) => match &mut self.ext_authz {
                Some(ext_authz) => ext_authz.call(request),
                None => Box::pin(async { Ok(Status::unimplemented(UNAUTHORIZED).into_http()) }),
            },
            _ => Box::pin(async { Ok(Status::unimplemented("this agent has no such service").into_http()) }),
        }
    }
}

/// An agent's socket as workloads see it, with a supply that the test decides.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::attest::Attestor;
    use crate::attest::launch::Launches;
    use crate::config::Authorization;
    use crate::policy::Feed;
    use crate::policy::tests::key;
    use crate::supply::entry::Entry;
    use crate::supply::{Supplied, Supply, testing::entry};
    use hoplite_audit::{Query, Record, read_log};
    use hoplite_decision::{BundleTrust, OnStale};
    use hoplite_host::shutdown::{Stopper, channel};
    use hoplite_identity::TrustDomain;
    use hoplite_identity::testing::TestAuthority;
    use hoplite_identity::{BundleSet, X509Svid};
    use hoplite_seal::TrustedSigners;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::watch;
    use tonic::transport::Channel;

    pub(crate) struct World {
        pub(crate) authority: TestAuthority,
        pub(crate) foreign: TestAuthority,
        pub(crate) supply: watch::Sender<Option<Arc<Supply>>>,
        pub(crate) policy: watch::Sender<Arc<Feed>>,
        pub(crate) authorizer: Option<Arc<Authorizer>>,
        pub(crate) stopper: Stopper,
        pub(crate) served: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
        pub(crate) directory: tempfile::TempDir,
    }

    /// The selector that the test process has.
    pub(crate) fn own() -> String {
        format!("unix:uid:{}", rustix::process::geteuid().as_raw())
    }

    impl World {
        pub(crate) fn start() -> Self {
            Self::start_in(tempfile::tempdir().unwrap(), None)
        }

        /// An agent that decides for these services and whom they belong to, with its log in `audit`.
        pub(crate) fn start_authorizing(services: &[(&str, &str)], policy: &str, routes: &str) -> Self {
            Self::start_selecting(services, policy, routes, None)
        }

        /// The same, with policies that see these header fields.
        pub(crate) fn start_selecting(
            services: &[(&str, &str)],
            policy: &str,
            routes: &str,
            headers: Option<&str>,
        ) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let policies = directory.path().join("policies");
            std::fs::create_dir(&policies).unwrap();
            std::fs::write(policies.join("test.cedar"), policy).unwrap();
            std::fs::write(policies.join("routes.toml"), routes).unwrap();
            if let Some(headers) = headers {
                std::fs::write(policies.join("headers.toml"), headers).unwrap();
            }
            Self::start_deciding(directory, services, Some(policies))
        }

        /// The same, with the bundles of Alice and the grants of her and Bob that are in `policy`.
        pub(crate) fn start_trusting(services: &[(&str, &str)]) -> Self {
            Self::start_deciding(tempfile::tempdir().unwrap(), services, None)
        }

        fn start_deciding(
            directory: tempfile::TempDir,
            services: &[(&str, &str)],
            policies: Option<std::path::PathBuf>,
        ) -> Self {
            let signers = ["alice", "bob"].map(|name| key(name).signer().clone());
            let trust = BundleTrust::new(
                TrustedSigners::new(signers).unwrap(),
                TrustDomain::parse("prod.example").unwrap(),
            );
            let config = Authorization {
                name: "node".to_owned(),
                audit_dir: directory.path().join("audit"),
                state_dir: directory.path().join("state"),
                policy_dir: policies,
                reference_check_every: 2,
                on_stale_policy: OnStale::Deny,
                services: services
                    .iter()
                    .map(|(service, id)| ((*service).to_owned(), id.parse().unwrap()))
                    .collect(),
            };
            let authorizer = Authorizer::open(&config, Some(trust), std::time::SystemTime::now()).unwrap();
            Self::start_in(directory, Some(Arc::new(authorizer)))
        }

        fn start_in(directory: tempfile::TempDir, authorizer: Option<Arc<Authorizer>>) -> Self {
            let listener = socket::bind(&directory.path().join("agent.sock"), 0o666).unwrap();
            let (stopper, shutdown) = channel();
            let supply = watch::Sender::new(None);
            let policy = watch::Sender::new(Arc::default());
            if let Some(authorizer) = &authorizer {
                tokio::spawn(authorizer.clone().follow(policy.subscribe(), shutdown.clone()));
            }
            let attestor = Arc::new(Attestor::new(Launches::default()));
            let desk = Desk {
                attestor,
                supply: supply.subscribe(),
                policy: policy.subscribe(),
                shutdown: shutdown.clone(),
            };
            Self {
                authority: TestAuthority::new("prod.example"),
                foreign: TestAuthority::new("other.example"),
                supply,
                policy,
                authorizer: authorizer.clone(),
                stopper,
                served: tokio::spawn(serve(listener, desk, authorizer, shutdown)),
                directory,
            }
        }

        pub(crate) async fn dial(&self) -> Channel {
            hoplite_wire::channel::unix(&self.directory.path().join("agent.sock"))
                .await
                .unwrap()
        }

        /// What comes back over HTTP/1.1, until the agent hangs up.
        pub(crate) async fn raw(&self, request: &[u8]) -> String {
            let mut stream = UnixStream::connect(self.directory.path().join("agent.sock"))
                .await
                .unwrap();
            stream.write_all(request).await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            String::from_utf8(answer).unwrap()
        }

        /// All that was decided.
        pub(crate) fn records(&self) -> Vec<Record> {
            read_log(&self.directory.path().join("audit"), &Query::default())
                .unwrap()
                .map(Result::unwrap)
                .collect()
        }

        pub(crate) fn svid(&self, path: &str) -> Option<Arc<X509Svid>> {
            Some(Arc::new(self.authority.svid(path, Duration::from_secs(3600))))
        }

        pub(crate) fn entry(&self, path: &str, selectors: &[String]) -> Entry {
            entry(path, &self.authority.trust_domain().member(path).unwrap(), selectors)
        }

        /// Publishes these entries with fresh SVIDs, and both trust domains' bundles.
        pub(crate) fn publish(&self, entries: impl IntoIterator<Item = Entry>) {
            let supplied = entries.into_iter().map(|entry| {
                let svid = self.svid(entry.spiffe_id.path());
                Supplied {
                    entry: Arc::new(entry),
                    svid,
                }
            });
            self.publish_as_is(supplied.collect());
        }

        pub(crate) fn publish_as_is(&self, supplied: Vec<Supplied>) {
            let bundles: BundleSet = [self.authority.bundle(), self.foreign.bundle()].into_iter().collect();
            self.supply.send_replace(Some(Arc::new(Supply::new(supplied, bundles))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{World, own};
    use super::*;
    use hoplite_wire::sds::DiscoveryRequest;
    use hoplite_wire::sds::secret_discovery_service_client::SecretDiscoveryServiceClient;
    use tonic::Code;

    #[test]
    fn places_are_bounded_and_given_back() {
        let counters = Counters::default();
        let (a, b) = (counters.take(1, 2, 3).unwrap(), counters.take(1, 2, 3).unwrap());
        assert!(counters.take(1, 2, 3).is_none(), "per process");
        let c = counters.take(2, 2, 3).unwrap();
        assert!(counters.take(3, 2, 3).is_none(), "in total");
        drop((a, b, c));
        let counts = counters.0.lock().unwrap();
        assert_eq!((counts.total, counts.by_process.len()), (0, 0));
    }

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
