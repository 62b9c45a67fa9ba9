//! spiffe-helper, which writes our SVIDs into files and tells a program when there are new ones.

use std::fs;
use std::path::Path;
use std::process::Command;

use hoplite_identity::{TrustBundle, TrustDomain, X509Svid};
use hoplite_tests::peers::Process;
use hoplite_tests::{TRUST_DOMAIN, TestClient, World, id, peers};
use http::StatusCode;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use super::{TTL, backend};

/// A caller made of its files; the key must be the certificate's.
fn caller(dir: &Path) -> TestClient {
    let certificates = |name: &str| -> Vec<CertificateDer<'static>> {
        let found = CertificateDer::pem_file_iter(dir.join(name)).unwrap();
        found.map(Result::unwrap).collect()
    };
    let key = PrivatePkcs8KeyDer::from_pem_file(dir.join("svid_key.pem")).unwrap();
    let authorities: Vec<u8> = certificates("svid_bundle.pem")
        .iter()
        .flat_map(|der| der.to_vec())
        .collect();
    let bundle = TrustBundle::from_der(TrustDomain::parse(TRUST_DOMAIN).unwrap(), &authorities, 0).unwrap();
    TestClient {
        svid: Some(X509Svid::from_parts(certificates("svid.pem"), key).unwrap()),
        bundles: [bundle].into_iter().collect(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spiffe_helper_writes_files_and_signals_over_a_rotation() {
    let Some(program) = peers::spiffe_helper("spiffe_helper_writes_files_and_signals_over_a_rotation") else {
        return;
    };
    let world = World::start().await;
    let (_app, backend) = backend(&world).await;
    world
        .register("/client", &peers::selectors(&program)[..1], Some(TTL))
        .await;

    let dir = tempfile::tempdir().unwrap();
    let files = dir.path().join("files");
    fs::create_dir(&files).unwrap();
    // The program to be told is this one.
    let mut told = signal(SignalKind::user_defined1()).unwrap();
    let (pid, config) = (dir.path().join("pid"), dir.path().join("helper.conf"));
    fs::write(&pid, std::process::id().to_string()).unwrap();
    let text = format!(
        "agent_address = \"{}\"\ncert_dir = \"{}\"\npid_file_name = \"{}\"\nrenew_signal = \"SIGUSR1\"\n\
         svid_file_name = \"svid.pem\"\nsvid_key_file_name = \"svid_key.pem\"\nsvid_bundle_file_name = \"svid_bundle.pem\"\n",
        world.agent_socket().display(),
        files.display(),
        pid.display()
    );
    fs::write(&config, text).unwrap();
    let mut command = Command::new(&program);
    command.arg("-config").arg(&config);
    let helper = Process::start(command, dir.path().join("log"));

    let mut serials = Vec::new();
    for _ in 0..3 {
        let signalled = timeout(TTL * 4, told.recv()).await;
        assert_eq!(signalled, Ok(Some(())), "{}", helper.said());
        let caller = caller(&files);
        serials.push(caller.svid.as_ref().unwrap().leaf().serial().to_owned());
        let answer = caller
            .get(backend.inbound("backend"), &id("/backend"), "/accounts/1")
            .await;
        assert_eq!(answer.unwrap().status, StatusCode::OK);
    }
    serials.dedup();
    assert_eq!(serials.len(), 3, "each is another: {serials:?}");
}
