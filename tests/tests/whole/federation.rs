//! Two trust domains, each with its own CA, agent and proxies, that know each other by their bundle endpoints: one by its SVID, the
//! other by a certificate of the web.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hoplite_ca::{BundleEndpointSettings, FederationSettings};
use hoplite_host::config::Span;
use hoplite_host::files;
use hoplite_identity::{BundleDocument, TrustDomain, pem};
use hoplite_tests::{HttpApp, PlainClient, Proxy, World, get, own_selectors, peers, until};
use hoplite_wire::ca::{
    AddFederationRequest, AuthorityRequest, Federation, FederationRequest, FederationSet, ListFederationsRequest,
    PrepareAuthorityRequest, SetForeignBundleRequest, ShowMeshRequest,
};
use hoplite_wire::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use hoplite_wire::workload::{JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest};
use hoplite_wire::{WorkloadApi, channel};
use http::{Method, StatusCode};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::Value;
use tonic::{Code, Request};

use crate::envoy::Envoy;

const HOME: &str = "world.test";
const PARTNER: &str = "partner.test";

/// A federation that is taken away is refused within this, and news of an authority comes within it.
const SECONDS: Duration = Duration::from_secs(5);

/// Loopback is no place in the open: each endpoint of these tests says that it is meant.
const LOOPBACK: &str = "127.0.0.0/8";

/// The frontends of the other trust domain may read.
const POLICY: &str = r#"
@id("foreign") permit (principal, action in [Hoplite::Action::"read"], resource)
    when { principal in Hoplite::TrustDomain::"world.test" || principal in Hoplite::TrustDomain::"partner.test" };
"#;

/// An authority of the web, and a certificate of it for `localhost`.
pub(crate) struct Web {
    pub(crate) authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

pub(crate) fn web(dir: &Path) -> Web {
    let root_key = KeyPair::generate().unwrap();
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = root.self_signed(&root_key).unwrap();
    let issuer = Issuer::new(root, root_key);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    let web = Web {
        authority: dir.join("web-authority.pem"),
        certificate: dir.join("web.pem"),
        key: dir.join("web.key"),
    };
    files::write_public(
        &web.authority,
        pem::write_certificates(&[certificate.der().clone()]).as_bytes(),
    )
    .unwrap();
    files::write_public(
        &web.certificate,
        pem::write_certificates(&[leaf.der().clone()]).as_bytes(),
    )
    .unwrap();
    files::write_private(&web.key, pem::write_private_key(&key.serialize_der()).as_bytes()).unwrap();
    web
}

/// A world of this trust domain that publishes its bundle, with a web certificate or with its own.
pub(crate) async fn world(domain: &str, web: &Web, is_web: bool) -> World {
    let trust_domain = TrustDomain::parse(domain).unwrap();
    World::start_with(|config| {
        config.trust_domain = trust_domain;
        config.bundle_endpoint = Some(BundleEndpointSettings {
            listen: ([127, 0, 0, 1], 0).into(),
            certificate: is_web.then(|| web.certificate.clone()),
            key: is_web.then(|| web.key.clone()),
            refresh_hint: Span(SECONDS),
        });
        config.federation = FederationSettings {
            web_authorities: Some(web.authority.clone()),
            ..FederationSettings::default()
        };
    })
    .await
}

/// Where an endpoint of the web is: its name counts.
pub(crate) fn web_url(at: SocketAddr) -> String {
    format!("https://localhost:{}", at.port())
}

fn asked(domain: &str, url: String) -> AddFederationRequest {
    AddFederationRequest {
        trust_domain: domain.to_owned(),
        url,
        profile: "https_web".to_owned(),
        allow_networks: vec![LOOPBACK.to_owned()],
        ..AddFederationRequest::default()
    }
}

/// With an endpoint that shows the CA's own SVID, and the bundle that it is known by first.
fn asked_of(world: &World, domain: &str) -> AddFederationRequest {
    AddFederationRequest {
        profile: "https_spiffe".to_owned(),
        endpoint_spiffe_id: world.id("/hoplite/ca"),
        bundle: world.bundle().to_pem().into_bytes(),
        ..asked(domain, format!("https://{}", world.bundle_endpoint()))
    }
}

async fn add(world: &World, request: AddFederationRequest) -> Federation {
    world.admin().await.add_federation(request).await.unwrap().into_inner()
}

/// For all workloads, unless another prefix is said.
async fn put_set(world: &World, prefix: &str, domain: &str) {
    let set = FederationSet {
        name: "partners".to_owned(),
        prefix: prefix.to_owned(),
        trust_domains: vec![domain.to_owned()],
    };
    world.admin().await.put_federation_set(set).await.unwrap();
}

async fn federation(world: &World, domain: &str) -> Federation {
    let listed = world.admin().await.list_federations(ListFederationsRequest {}).await;
    let all = listed.unwrap().into_inner().federations;
    all.into_iter()
        .find(|federation| federation.trust_domain == domain)
        .unwrap()
}

/// A proxy before a backend at one side, and one before a frontend at the other that calls it.
async fn pair(from: &World, to: &World, app: &HttpApp) -> (Proxy, Proxy) {
    let backend = to.proxy("backend").http("backend", app).start().await;
    let address = backend.inbound("backend");
    let frontend = from.proxy("frontend").calls_at("backend", address, &to.id("/backend"));
    (frontend.start().await, backend)
}

async fn status(frontend: &Proxy) -> Option<StatusCode> {
    Some(get(frontend.outbound("backend"), "/").await.ok()?.status)
}

async fn is_served(frontend: &Proxy) {
    until("a call into the other trust domain is served", async || {
        (status(frontend).await == Some(StatusCode::OK)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_trust_domains_call_each_other_and_authorities_rotate() {
    let dir = tempfile::tempdir().unwrap();
    let web = web(dir.path());
    let (home, partner) = (world(HOME, &web, false).await, world(PARTNER, &web, true).await);
    let app = HttpApp::start().await;
    for world in [&home, &partner] {
        world.policy(POLICY);
    }
    let (outward, _partner_backend) = pair(&home, &partner, &app).await;
    let (inward, _home_backend) = pair(&partner, &home, &app).await;
    for frontend in [&outward, &inward] {
        assert_eq!(
            status(frontend).await,
            Some(StatusCode::BAD_GATEWAY),
            "no federation yet"
        );
    }

    // F-1, F-4: one endpoint by the web's authorities, the other by its SPIFFE ID and the bundle that is held.
    let added = add(&home, asked(PARTNER, web_url(partner.bundle_endpoint()))).await;
    assert_eq!(
        (added.state.as_str(), added.failure.as_str()),
        ("fresh", ""),
        "{added:?}"
    );
    let added = add(&partner, asked_of(&home, HOME)).await;
    assert_eq!(
        (added.state.as_str(), added.failure.as_str()),
        ("fresh", ""),
        "{added:?}"
    );
    assert_eq!((added.sequence, added.jwt_authorities), (home.bundle().sequence(), 1));
    for frontend in [&outward, &inward] {
        assert_eq!(
            status(frontend).await,
            Some(StatusCode::BAD_GATEWAY),
            "no entry says so yet"
        );
    }
    put_set(&home, "/", PARTNER).await;
    put_set(&partner, "/", HOME).await;
    is_served(&outward).await;
    is_served(&inward).await;
    let query = hoplite_audit::Query::default();
    let served = partner.records(&query);
    let principals: Vec<_> = served.iter().filter_map(|record| record.principal.as_deref()).collect();
    assert!(principals.contains(&home.id("/frontend").as_str()), "{principals:?}");

    // An authority takes its turn at home: nobody there, and nobody in the other trust domain, notices.
    let rotating = async {
        let before = home.bundle().sequence();
        let mut admin = home.admin().await;
        admin
            .prepare_authority(PrepareAuthorityRequest { jwt: false })
            .await
            .unwrap();
        until("the other side holds the prepared authority", async || {
            (federation(&partner, HOME).await.sequence > before).then_some(())
        })
        .await;
        let held = partner.fetch("/backend").await.unwrap().unwrap();
        let home_domain = TrustDomain::parse(HOME).unwrap();
        assert_eq!(held.bundles.get(&home_domain).unwrap().authorities().len(), 2);
        admin.activate_authority(AuthorityRequest::default()).await.unwrap();
        // What is minted from now on is of the new one; the endpoint too is known by it.
        let serial = outward.serial().await;
        let entry = home.register("/another", &own_selectors(), None).await;
        home.update(&entry, |entry| entry.x509_ttl_seconds = 60).await;
        until("the other side looks again", async || {
            let now = federation(&partner, HOME).await;
            (now.failure.is_empty() && now.sequence >= home.bundle().sequence()).then_some(())
        })
        .await;
        serial
    };
    let mut calls = 0;
    let calling = async {
        let (mut one, mut other) = (
            PlainClient::new(outward.outbound("backend")),
            PlainClient::new(inward.outbound("backend")),
        );
        loop {
            for client in [&mut one, &mut other] {
                let answer = client.call(Method::GET, "/").await.unwrap();
                assert_eq!(answer.status, StatusCode::OK, "after {calls} calls");
                calls += 1;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        _ = rotating => {}
        () = calling => {}
    }
    assert!(calls > 20, "{calls}");

    // JWT-SVIDs of there are believed here, and bundles of there are here.
    let asked = JwtsvidRequest {
        audience: vec!["home".to_owned()],
        spiffe_id: partner.id("/frontend"),
    };
    let token = workload(&partner)
        .await
        .fetch_jwtsvid(with_header(asked))
        .await
        .unwrap()
        .into_inner();
    let shown = ValidateJwtsvidRequest {
        audience: "home".to_owned(),
        svid: token.svids[0].svid.clone(),
    };
    let believed = workload(&home)
        .await
        .validate_jwtsvid(with_header(shown.clone()))
        .await
        .unwrap();
    assert_eq!(believed.into_inner().spiffe_id, partner.id("/frontend"));
    let bundles = workload(&home)
        .await
        .fetch_jwt_bundles(with_header(JwtBundlesRequest {}))
        .await
        .unwrap();
    let bundles = bundles.into_inner().message().await.unwrap().unwrap().bundles;
    assert!(bundles.contains_key(&partner.id("")), "{:?}", bundles.keys());
    let bundles = workload(&home)
        .await
        .fetch_x509_bundles(with_header(X509BundlesRequest {}))
        .await
        .unwrap();
    let bundles = bundles.into_inner().message().await.unwrap().unwrap().bundles;
    assert_eq!(bundles[&partner.id("")], partner.bundle().to_der());

    // Taken away, it is refused within seconds; a connection that is open is closed.
    let mut kept = PlainClient::new(inward.outbound("backend"));
    assert_eq!(kept.call(Method::GET, "/").await.unwrap().status, StatusCode::OK);
    let started = Instant::now();
    let request = FederationRequest {
        trust_domain: PARTNER.to_owned(),
    };
    home.admin().await.delete_federation(request).await.unwrap();
    until("a caller of the other trust domain is refused", async || {
        (status(&inward).await != Some(StatusCode::OK)).then_some(())
    })
    .await;
    until("a callee of the other trust domain is refused", async || {
        (status(&outward).await == Some(StatusCode::BAD_GATEWAY)).then_some(())
    })
    .await;
    assert!(started.elapsed() < SECONDS, "it took {:?}", started.elapsed());
    let refused = workload(&home).await.validate_jwtsvid(with_header(shown)).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_endpoint_keeps_working_and_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let web = web(dir.path());
    let (home, mut partner) = (world(HOME, &web, false).await, world(PARTNER, &web, false).await);
    let app = HttpApp::start().await;
    partner.policy(POLICY);
    let (outward, _backend) = pair(&home, &partner, &app).await;
    add(&home, asked_of(&partner, PARTNER)).await;
    add(&partner, asked_of(&home, HOME)).await;
    put_set(&home, "/", PARTNER).await;
    put_set(&partner, "/", HOME).await;
    is_served(&outward).await;

    // The other CA is away, and its endpoint with it.
    let before = federation(&home, PARTNER).await;
    partner.stop_ca().await;
    let stale = until("the bundle is stale", async || {
        let now = federation(&home, PARTNER).await;
        (now.state == "stale").then_some(now)
    })
    .await;
    assert!(stale.failure.contains("cannot connect"), "{stale:?}");
    assert_eq!(stale.sequence, before.sequence, "it is kept");
    assert_eq!(status(&outward).await, Some(StatusCode::OK), "and believed");
    let metrics = get(home.ca_metrics(), "/metrics").await.unwrap().body;
    assert!(
        metrics.contains("hoplite_ca_federations{state=\"stale\"} 1"),
        "{metrics}"
    );
    let mut meshes = home
        .admin()
        .await
        .show_mesh(ShowMeshRequest::default())
        .await
        .unwrap()
        .into_inner();
    let warnings = meshes.message().await.unwrap().unwrap().federation_warnings;
    assert!(
        warnings
            .iter()
            .any(|warning| warning.contains("the trust bundle of `partner.test` could not be refreshed")),
        "{warnings:?}"
    );
    partner.start_ca().await;
    until("it is fresh again", async || {
        (federation(&home, PARTNER).await.state == "fresh").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_the_endpoint_or_not_its_bundle_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let web = web(dir.path());
    let (home, partner) = (world(HOME, &web, false).await, world(PARTNER, &web, false).await);
    let refused = async |request: AddFederationRequest, code: Code, part: &str| {
        let status = home.admin().await.add_federation(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(
            status.message().contains(part),
            "`{part}` is not in `{}`",
            status.message()
        );
    };
    let good = || asked_of(&partner, PARTNER);
    let with = |change: &dyn Fn(&mut AddFederationRequest)| {
        let mut request = good();
        change(&mut request);
        request
    };
    refused(
        with(&|it| it.trust_domain = HOME.to_owned()),
        Code::InvalidArgument,
        "own trust domain",
    )
    .await;
    refused(
        with(&|it| it.url = it.url.replace("https", "http")),
        Code::InvalidArgument,
        "https://",
    )
    .await;
    refused(
        with(&|it| it.url = it.url.replace("//", "//me@")),
        Code::InvalidArgument,
        "user before the host",
    )
    .await;
    refused(with(&|it| it.profile.clear()), Code::InvalidArgument, "is no profile").await;
    refused(
        with(&|it| it.endpoint_spiffe_id.clear()),
        Code::InvalidArgument,
        "SPIFFE ID",
    )
    .await;
    refused(
        with(&|it| it.bundle.clear()),
        Code::FailedPrecondition,
        "no bundle is held",
    )
    .await;
    refused(
        with(&|it| it.bundle = b"{}".to_vec()),
        Code::InvalidArgument,
        "missing field `keys`",
    )
    .await;
    refused(
        with(&|it| it.allow_networks = vec!["lan".to_owned()]),
        Code::InvalidArgument,
        "no range",
    )
    .await;
    let ours = home.bundle().to_pem().into_bytes();
    refused(
        with(&|it| it.bundle = ours.clone()),
        Code::FailedPrecondition,
        "could be both",
    )
    .await;

    // Noted, and not fetched: what is wrong is said.
    let failed = async |request: AddFederationRequest, part: &str| {
        let added = add(&home, request).await;
        assert!(added.failure.contains(part), "`{part}` is not in {added:?}");
    };
    failed(with(&|it| it.allow_networks.clear()), "this machine's own").await;
    failed(with(&|it| it.endpoint_spiffe_id = partner.id("/other")), "is expected").await;
    failed(asked(PARTNER, web_url(partner.bundle_endpoint())), "not the endpoint").await;
    // Whoever has another authority under that name is not it.
    let other = hoplite_identity::testing::TestAuthority::new(PARTNER);
    let theirs = other.bundle().to_pem().into_bytes();
    failed(
        with(&|it| it.bundle = theirs.clone()),
        "no authority in the trust bundle",
    )
    .await;
    // The latest bundle that is held counts, and a person may give it.
    let given = SetForeignBundleRequest {
        trust_domain: PARTNER.to_owned(),
        bundle: partner.bundle().to_spiffe_json(SECONDS).into_bytes(),
    };
    home.admin().await.set_foreign_bundle(given).await.unwrap();
    let request = FederationRequest {
        trust_domain: PARTNER.to_owned(),
    };
    let mut admin = home.admin().await;
    let refreshed = admin.refresh_federation(request.clone()).await.unwrap().into_inner();
    assert!(refreshed.was_so && refreshed.failure.is_empty(), "{refreshed:?}");
    // A lower number is refused and said; what is held stays.
    let mut ahead: serde_json::Value = serde_json::from_str(&partner.bundle().to_spiffe_json(SECONDS)).unwrap();
    ahead["spiffe_sequence"] = serde_json::json!(1_u64 << 60);
    let given = SetForeignBundleRequest {
        trust_domain: PARTNER.to_owned(),
        bundle: ahead.to_string().into_bytes(),
    };
    admin.set_foreign_bundle(given).await.unwrap();
    let lower = admin.refresh_federation(request).await.unwrap_err();
    assert!(lower.message().contains("was seen before"), "{lower:?}");
    assert_eq!(federation(&home, PARTNER).await.sequence, 1 << 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_and_sets_say_who_gets_which_bundle_and_it_outlives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let web = web(dir.path());
    let (mut home, partner) = (world(HOME, &web, false).await, world(PARTNER, &web, true).await);
    add(&home, asked(PARTNER, web_url(partner.bundle_endpoint()))).await;
    let domain = TrustDomain::parse(PARTNER).unwrap();
    let entry = home.register("/web", &own_selectors(), None).await;
    let mut identities = WorkloadApi::open(&home.workload_api()).await.unwrap();
    assert!(identities.next().await.unwrap().bundles.get(&domain).is_none());
    // Each change is pushed to the stream that is open.
    let mut told = async |what: &str, is_given: bool| {
        let next = tokio::time::timeout(SECONDS, identities.next())
            .await
            .expect(what)
            .unwrap();
        assert_eq!(next.bundles.get(&domain).is_some(), is_given, "{what}");
    };
    home.update(&entry, |entry| entry.federates_with = vec![PARTNER.to_owned()])
        .await;
    told("the entry names it", true).await;
    home.update(&entry, |entry| entry.federates_with.clear()).await;
    told("the entry names it no more", false).await;
    put_set(&home, "/web", PARTNER).await;
    told("a set of its prefix", true).await;
    put_set(&home, "/other", PARTNER).await;
    told("a set of another prefix", false).await;
    put_set(&home, "/", PARTNER).await;
    told("a set of all", true).await;
    drop(identities);

    // An agent that begins while its CA is away serves what was kept.
    until("it is on the disk", async || {
        let kept = home.agent_status().await.kept?;
        (!kept.waiting).then_some(())
    })
    .await;
    home.stop_agent().await;
    home.stop_ca().await;
    home.begin_agent().await;
    let kept = until("what was kept", async || home.fetch("/web").await.ok().flatten()).await;
    assert_eq!(
        kept.bundles.get(&domain).unwrap().authorities(),
        partner.bundle().authorities()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f_3_the_endpoint_serves_one_document_and_asks_nobody_who_he_is() {
    let dir = tempfile::tempdir().unwrap();
    let web = web(dir.path());
    let home = world(HOME, &web, true).await;
    let roots = {
        let mut roots = rustls::RootCertStore::empty();
        let text = fs::read_to_string(&web.authority).unwrap();
        roots.add(pem::certificates(&text).unwrap().remove(0)).unwrap();
        roots
    };
    let config = hoplite_identity::tls::web_client_config(roots, &[b"http/1.1"]).unwrap();
    let ask = async |path: &str| {
        let stream = tokio::net::TcpStream::connect(home.bundle_endpoint()).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        let stream = tokio_rustls::TlsConnector::from(config.clone())
            .connect(name, stream)
            .await
            .unwrap();
        let request = http::Request::get(path)
            .header("host", "localhost")
            .body(Default::default())
            .unwrap();
        hoplite_tests::exchange(stream, false, request).await.unwrap()
    };
    let answer = ask("/").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers["content-type"], "application/json");
    let domain = TrustDomain::parse(HOME).unwrap();
    let read = BundleDocument::parse(domain, answer.body.as_bytes()).unwrap();
    assert_eq!(read.bundle, home.bundle());
    assert_eq!(read.refresh_hint, Some(SECONDS));
    assert_eq!(ask("/other").await.status, StatusCode::NOT_FOUND);
}

/// F-1 to F-4 by the standard's own library: its client reads both of our endpoints, and our CA fetches from its server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_spiffe_fetches_ours_and_serves_one_that_we_fetch() {
    let Some(program) = peers::go("go_spiffe_fetches_ours_and_serves_one_that_we_fetch") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let web = web(dir.path());
    let (home, partner) = (world(HOME, &web, false).await, world(PARTNER, &web, true).await);
    let judge = async |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(arguments);
        let output = peers::output(command).await;
        let said = String::from_utf8(output.stdout).unwrap();
        match output.status.success() {
            true => Ok(serde_json::from_str::<Value>(said.lines().next().unwrap()).unwrap()),
            false => Err(String::from_utf8(output.stderr).unwrap() + &said),
        }
    };
    let file = dir.path().join("bundle.json");
    let write = |world: &World, sequence: u64| {
        let mut document: Value = serde_json::from_str(&world.bundle().to_spiffe_json(SECONDS)).unwrap();
        document["spiffe_sequence"] = sequence.into();
        fs::write(&file, document.to_string()).unwrap();
    };
    let (authority, held) = (web.authority.to_str().unwrap(), file.to_str().unwrap());
    let expected = |world: &World| {
        let sequence = world.bundle().sequence();
        serde_json::json!({"authorities": 1, "jwt": 1, "sequence": sequence, "hint": SECONDS.as_secs()})
    };
    let read = judge(&[
        "federate",
        "web",
        authority,
        &web_url(partner.bundle_endpoint()),
        PARTNER,
    ])
    .await;
    assert_eq!(read, Ok(expected(&partner)));
    write(&home, 1);
    let (url, ca) = (format!("https://{}", home.bundle_endpoint()), home.id("/hoplite/ca"));
    let read = judge(&["federate", "spiffe", held, &url, HOME, &ca]).await;
    assert_eq!(read, Ok(expected(&home)));
    assert!(
        judge(&["federate", "spiffe", held, &url, HOME, &home.id("/other")])
            .await
            .is_err()
    );

    // Its server shows an SVID of a workload of the other trust domain.
    partner.register("/endpoint", &peers::selectors(&program), None).await;
    let socket = partner.workload_api();
    until("go-spiffe gets an SVID", async || {
        judge(&["watch", &socket, "1"]).await.ok()
    })
    .await;
    write(&partner, 7);
    let mut child = Command::new(&program)
        .args(["publish", &socket, held, PARTNER])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, mut lines) = (
        child.stdin.take().unwrap(),
        BufReader::new(child.stdout.take().unwrap()),
    );
    let server = Server(child);
    let mut said = move || {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        serde_json::from_str::<Value>(&line).unwrap()
    };
    let address = said()["address"].as_str().unwrap().to_owned();
    let request = AddFederationRequest {
        url: format!("https://{address}"),
        endpoint_spiffe_id: partner.id("/endpoint"),
        ..asked_of(&partner, PARTNER)
    };
    let added = add(&home, request).await;
    assert_eq!((added.failure.as_str(), added.sequence), ("", 7), "{added:?}");
    for (sequence, expected) in [(8, 8), (6, 8)] {
        write(&partner, sequence);
        writeln!(stdin).unwrap();
        assert_eq!(said()["read"], true);
        let request = FederationRequest {
            trust_domain: PARTNER.to_owned(),
        };
        let refreshed = home.admin().await.refresh_federation(request).await;
        assert_eq!(refreshed.is_ok(), sequence == expected, "{refreshed:?}");
        assert_eq!(federation(&home, PARTNER).await.sequence, expected);
    }
    drop(server);
}

/// An Envoy of one trust domain and a proxy of the other call each other. All that Envoy knows of the other is what our agent gives it by SDS:
/// the validation context of that trust domain by its name, and all of them as `ALL`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_verifies_a_foreign_trust_domain() {
    let Some(program) = peers::envoy("envoy_verifies_a_foreign_trust_domain") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let web = web(dir.path());
    let (home, partner) = (world(HOME, &web, false).await, world(PARTNER, &web, false).await);
    let app = HttpApp::start().await;
    partner.policy(POLICY);
    let backend = partner.proxy("backend").http("backend", &app).start().await;
    for path in ["/envoy-client", "/envoy-server"] {
        home.register(path, &peers::selectors(&program), None).await;
    }
    add(&home, asked_of(&partner, PARTNER)).await;
    add(&partner, asked_of(&home, HOME)).await;
    put_set(&home, "/", PARTNER).await;
    put_set(&partner, "/", HOME).await;
    let socket = home.agent_socket().display().to_string();

    // Envoy calls: the callee is verified by the bundle of its own trust domain.
    let port = peers::free_port();
    let upstream = backend.inbound("backend").port().to_string();
    let client_config = |port: u16, expected: &str, trust_domain: &str| {
        let values = [
            ("PORT", port.to_string()),
            ("UPSTREAM_PORT", upstream.clone()),
            ("SOCKET", socket.clone()),
            ("SVID", home.id("/envoy-client")),
            ("EXPECT", expected.to_owned()),
            ("TRUST_DOMAIN", trust_domain.to_owned()),
        ];
        let values: Vec<(&str, &str)> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
        peers::template("envoy-client.yaml.in", &values)
    };
    let config = client_config(port, &partner.id("/backend"), PARTNER);
    let calls = Envoy::start(&program, dir.path(), "envoy-client", port, &config).await;
    let reaches = async |envoy: &Envoy| {
        let answer = get(envoy.address(), "/").await.ok()?;
        (answer.status == StatusCode::OK).then_some(answer)
    };
    let answer = until("Envoy reaches the proxy of the other trust domain", async || {
        reaches(&calls).await
    })
    .await;
    let seen = answer.json()["headers"]["x-forwarded-client-cert"].to_string();
    assert!(seen.contains(&format!("URI={}\"", home.id("/envoy-client"))), "{seen}");
    // Another one that makes a connection for each request: a validation context is for connections that are made.
    let port = peers::free_port();
    let config = client_config(port, &partner.id("/backend"), PARTNER).replacen(
        "explicit_http_config:",
        "common_http_protocol_options: {max_requests_per_connection: 1}\n          explicit_http_config:",
        1,
    );
    let anew = Envoy::start(&program, dir.path(), "envoy-anew", port, &config).await;
    until("it reaches the proxy too", async || reaches(&anew).await).await;
    // With the bundle of its own trust domain for that, the same callee is not believed.
    let port = peers::free_port();
    let config = client_config(port, &partner.id("/backend"), HOME);
    let wrong = Envoy::start(&program, dir.path(), "envoy-wrong", port, &config).await;
    let answer = get(wrong.address(), "/").await.unwrap();
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");

    // Envoy is called: the caller is verified by the bundle of its own trust domain, which is in `ALL`.
    let port = peers::free_port();
    let caller = partner.id("/caller");
    let values = [
        ("PORT", port.to_string()),
        ("SOCKET", socket.clone()),
        ("SVID", home.id("/envoy-server")),
        ("EXPECT", caller.clone()),
    ];
    let values: Vec<(&str, &str)> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let config = peers::template("envoy-server.yaml.in", &values);
    let served = Envoy::start(&program, dir.path(), "envoy-server", port, &config).await;
    let client = partner.caller("/caller").await;
    let call = async || {
        let answer = client.get(served.address(), &home.id("/envoy-server"), "/").await;
        answer.ok().filter(|answer| answer.status == StatusCode::OK)
    };
    let answer = until("Envoy lets in a caller of the other trust domain", call).await;
    assert_eq!(answer.headers["x-caller"], caller);

    // Taken away: `ALL` has it no more, so Envoy refuses whoever comes then.
    let request = FederationRequest {
        trust_domain: PARTNER.to_owned(),
    };
    home.admin().await.delete_federation(request).await.unwrap();
    until("Envoy refuses a caller of the other trust domain", async || {
        call().await.is_none().then_some(())
    })
    .await;
    // One that has the validation context by that name is given another, which vouches for nobody.
    until("Envoy connects to nobody of the other trust domain", async || {
        reaches(&anew).await.is_none().then_some(())
    })
    .await;
    // And one that begins now gets none.
    let port = peers::free_port();
    let config = client_config(port, &partner.id("/backend"), PARTNER);
    let late = Envoy::start(&program, dir.path(), "envoy-late", port, &config).await;
    let answer = get(late.address(), "/").await.unwrap();
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
}

/// A program that ends with this value.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let yes = tonic::metadata::MetadataValue::from_static("true");
    request.metadata_mut().insert("workload.spiffe.io", yes);
    request
}

async fn workload(world: &World) -> SpiffeWorkloadApiClient<tonic::transport::Channel> {
    SpiffeWorkloadApiClient::new(channel::unix(world.agent_socket()).await.unwrap())
}
