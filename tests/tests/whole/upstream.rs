//! A CA under a company's authority: proxies and an Envoy call each other by the company's root, while the CA's authority takes its turn.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::path::Path;

use hoplite_ca::{DiskUpstream, UpstreamConfig};
use hoplite_host::files;
use hoplite_identity::{CertificateDer, pem};
use hoplite_tests::peers;
use hoplite_tests::{HttpApp, Load, World, get, id, until};
use hoplite_wire::ca::{AuthorityRequest, PrepareAuthorityRequest};
use http::{Method, StatusCode};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use crate::envoy::Envoy;

const POLICY: &str = r#"
@id("all") permit (principal, action in [Hoplite::Action::"read"], resource)
    when { principal in Hoplite::TrustDomain::"world.test" };
"#;

/// The company's root, which is far away, and an authority of it that the CA has.
fn company(dir: &Path) -> (DiskUpstream, CertificateDer<'static>) {
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        (params, KeyPair::generate().unwrap())
    };
    let (root, root_key) = authority("Company Root");
    let root_certificate = root.self_signed(&root_key).unwrap().der().clone();
    let (mut params, key) = authority("Company Authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &Issuer::new(root, root_key)).unwrap();
    let upstream = DiskUpstream {
        certificate: dir.join("company.pem"),
        key: dir.join("company.key"),
        roots: Some(dir.join("root.pem")),
    };
    let write = |path: &Path, der: &CertificateDer<'static>| {
        files::write_public(path, pem::write_certificates(std::slice::from_ref(der)).as_bytes()).unwrap();
    };
    write(&upstream.certificate, certificate.der());
    write(&dir.join("root.pem"), &root_certificate);
    files::write_private(&upstream.key, pem::write_private_key(&key.serialize_der()).as_bytes()).unwrap();
    (upstream, root_certificate)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_under_a_company_goes_on_while_the_authority_takes_its_turn() {
    let dir = tempfile::tempdir().unwrap();
    let (upstream, root) = company(dir.path());
    let world = World::start_with(|config| config.upstream = Some(UpstreamConfig::Disk(upstream))).await;
    assert_eq!(
        world.bundle().authorities(),
        [root],
        "members trust the company's root alone"
    );
    world.policy(POLICY);
    let app = HttpApp::start().await;
    let backend = world.proxy("backend").http("backend", &app).start().await;
    let frontend = world.proxy("frontend").calls("backend", backend.inbound("backend"));
    let frontend = frontend.start().await;
    let answer = get(frontend.outbound("backend"), "/").await.unwrap();
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");

    let envoy = match peers::envoy("traffic_under_a_company_goes_on_while_the_authority_takes_its_turn") {
        Some(program) => {
            world.register("/envoy-client", &peers::selectors(&program), None).await;
            let port = peers::free_port();
            let (socket, upstream) = (
                world.agent_socket().display().to_string(),
                backend.inbound("backend").port(),
            );
            let config = peers::template(
                "envoy-client.yaml.in",
                &[
                    ("PORT", &port.to_string()),
                    ("UPSTREAM_PORT", &upstream.to_string()),
                    ("SOCKET", &socket),
                    ("SVID", &id("/envoy-client")),
                    ("EXPECT", &id("/backend")),
                    ("TRUST_DOMAIN", hoplite_tests::TRUST_DOMAIN),
                ],
            );
            let envoy = Envoy::start(&program, dir.path(), "envoy", port, &config).await;
            until("Envoy reaches the proxy", async || {
                let answer = get(envoy.address(), "/").await.ok()?;
                (answer.status == StatusCode::OK).then_some(())
            })
            .await;
            Some(envoy)
        }
        None => None,
    };

    let before = above(&world.caller("/early").await);
    // Another authority, under the same company, signs; who calls meanwhile does not notice.
    let load = Load::start(frontend.outbound("backend"), Method::GET, "/", StatusCode::OK);
    let of_envoy = envoy
        .as_ref()
        .map(|envoy| Load::start(envoy.address(), Method::GET, "/", StatusCode::OK));
    let mut admin = world.admin().await;
    let request = PrepareAuthorityRequest { jwt: false };
    admin.prepare_authority(request).await.unwrap();

    admin.activate_authority(AuthorityRequest::default()).await.unwrap();
    let late = world.caller("/late").await;
    assert_ne!(above(&late), before, "the new one signs");
    let answer = late
        .get(backend.inbound("backend"), &id("/backend"), "/")
        .await
        .unwrap();
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    for tally in [
        Some(load.stop().await),
        match of_envoy {
            Some(load) => Some(load.stop().await),
            None => None,
        },
    ]
    .into_iter()
    .flatten()
    {
        assert!(tally.failures.is_empty() && tally.sent > 0, "{:#?}", tally.failures);
    }
}

/// What is shown after the SVID: the CA's authority, and the company's.
fn above(client: &hoplite_tests::TestClient) -> Vec<CertificateDer<'static>> {
    let svid = client.svid.as_ref().unwrap();
    let above: Vec<_> = svid.chain().iter().skip(1).cloned().collect();
    assert_eq!(above.len(), 2);
    above
}
