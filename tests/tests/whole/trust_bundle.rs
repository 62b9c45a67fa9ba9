//! A second authority comes into the trust bundle while everything runs: who hears of it, and how soon.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hoplite_identity::testing::TestAuthority;
use hoplite_identity::{BundleSet, PeerVerifier, SpiffeId, X509Svid, tls};
use hoplite_tests::{HttpApp, TRUST_DOMAIN, TestClient, World, id, own_selectors, until};
use hoplite_wire::ca::WatchRequest;
use hoplite_wire::ca::node_client::NodeClient;
use hoplite_wire::sds::DiscoveryRequest;
use hoplite_wire::sds::secret_discovery_service_client::SecretDiscoveryServiceClient;
use hoplite_wire::workload::X509BundlesRequest;
use hoplite_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use hoplite_wire::{WorkloadApi, channel};
use http::StatusCode;
use tonic::{Code, Request};

const HOUR: Duration = Duration::from_secs(3600);

/// What the issue of trust may take on its way to everybody.
const SOON: Duration = Duration::from_secs(1);

/// The visitor may read the service.
const POLICY: &str = r#"
@id("backend/visitor") permit (principal == Hoplite::Workload::"spiffe://world.test/visitor",
    action in [Hoplite::Action::"read"], resource in Hoplite::Service::"backend");
"#;

/// What the CA says to whoever shows this SVID in the handshake, and watches; none when there is no connection.
async fn watch(world: &World, svid: &X509Svid) -> Option<Code> {
    let verifier = Arc::new(PeerVerifier::new(BundleSet::from_iter([world.bundle()])).unwrap());
    let ca = SpiffeId::parse(&id("/hoplite/ca")).unwrap();
    let config = tls::client_config(Some(svid), verifier, ca, &[b"h2"]).unwrap();
    let channel = channel::tls(world.ca_address(), config).await.ok()?;
    let answer = NodeClient::new(channel).watch(WatchRequest::default()).await;
    let code = answer.map_or_else(|status| status.code(), |_| Code::Ok);
    // The handshake's refusal arrives after the client believes that it is done.
    (code != Code::Unknown && code != Code::Unavailable && code != Code::Cancelled).then_some(code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_authority_reaches_agents_and_workloads_in_under_a_second() {
    let mut world = World::start().await;
    world.policy(POLICY);
    let app = HttpApp::start().await;
    let backend = world.proxy("backend").http("backend", &app).start().await;
    let address = backend.inbound("backend");
    let second = TestAuthority::new(TRUST_DOMAIN);
    let certificate = second.bundle().authorities()[0].clone();
    // A workload and an agent of the second authority; nobody here trusts them yet.
    let visitor = TestClient {
        svid: Some(second.svid("/visitor", HOUR)),
        bundles: BundleSet::from_iter([world.bundle()]),
    };
    let agent = second.svid("/hoplite/agent/visitor", HOUR);
    assert!(visitor.get(address, &id("/backend"), "/").await.is_err());
    assert_eq!(watch(&world, &agent).await, None);

    // Everybody who may hear of it, listening: the Workload API's two streams, and Envoy's.
    world.register("/listener", &own_selectors(), None).await;
    let mut svids = WorkloadApi::open(&world.workload_api()).await.unwrap();
    let mut identity = svids.next().await.unwrap();
    while !identity.svids.iter().any(|svid| svid.spiffe_id().path() == "/listener") {
        identity = svids.next().await.unwrap();
    }
    let own = world.bundle();
    let held = identity.bundles.get(own.trust_domain()).unwrap();
    assert_eq!((held.authorities().len(), held.authorities()), (1, own.authorities()));
    let socket = channel::unix(world.agent_socket()).await.unwrap();
    let mut request = Request::new(X509BundlesRequest {});
    request
        .metadata_mut()
        .insert("workload.spiffe.io", "true".parse().unwrap());
    let mut bundles = SpiffeWorkloadApiClient::new(socket.clone());
    let mut bundles = bundles.fetch_x509_bundles(request).await.unwrap().into_inner();
    let first = bundles.message().await.unwrap().unwrap();
    assert_eq!(first.bundles[&id("")], own.to_der());
    let (asking, asked) = tokio::sync::mpsc::channel(1);
    let names = DiscoveryRequest {
        resource_names: vec!["ROOTCA".to_owned()],
        type_url: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret".to_owned(),
        ..DiscoveryRequest::default()
    };
    asking.send(names).await.unwrap();
    let mut secrets = SecretDiscoveryServiceClient::new(socket);
    let requests = tokio_stream::wrappers::ReceiverStream::new(asked);
    let mut secrets = secrets.stream_secrets(requests).await.unwrap().into_inner();
    let first = secrets.message().await.unwrap().unwrap();
    assert_eq!(first.resources.len(), 1);

    let sequence = own.sequence();
    let started = Instant::now();
    assert_eq!(world.trust(certificate.clone()).await, sequence + 1);
    let both = world.bundle();
    assert_eq!((both.authorities().len(), both.sequence()), (2, sequence + 1));
    let told = async {
        let identity = svids.next().await.unwrap();
        assert_eq!(
            identity.bundles.get(own.trust_domain()).unwrap().authorities(),
            both.authorities()
        );
        let bundle = bundles.message().await.unwrap().unwrap();
        assert_eq!(bundle.bundles[&id("")], both.to_der());
        let secret = secrets.message().await.unwrap().unwrap();
        assert_ne!(secret.resources, first.resources);
    };
    tokio::time::timeout(SOON, told).await.expect("workloads hear of it");
    // The proxy's workload is one of them: it serves the visitor now, and the CA's handshake believes the agent, which
    // never joined.
    until("the visitor is served", async || {
        let answer = visitor.get(address, &id("/backend"), "/").await.ok()?;
        (answer.status == StatusCode::OK).then_some(())
    })
    .await;
    until("the CA believes the second authority", async || {
        (watch(&world, &agent).await == Some(Code::PermissionDenied)).then_some(())
    })
    .await;
    let took = started.elapsed();
    assert!(took < SOON, "it took {took:?}");

    // Those who come later are told by the admin API and by the file.
    assert_eq!(world.shown_bundle().await, (both.authorities().len(), both.sequence()));
    until("bundle.pem holds both", async || {
        let text = fs::read_to_string(world.dir().join("ca/bundle.pem")).unwrap();
        (text == both.to_pem()).then_some(())
    })
    .await;

    // It is there after a restart of either, and asking for it again changes nothing.
    world.stop_agent().await;
    world.stop_ca().await;
    world.start_ca().await;
    world.start_agent().await;
    assert_eq!(world.bundle(), both);
    assert_eq!(world.trust(certificate).await, sequence + 1);
    let identity = WorkloadApi::open(&world.workload_api())
        .await
        .unwrap()
        .next()
        .await
        .unwrap();
    let held = identity.bundles.get(own.trust_domain()).unwrap();
    assert_eq!(held.authorities(), both.authorities());
    drop(asking);
}
