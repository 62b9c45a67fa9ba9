//! OpenSSL as a judge: it reads our certificates, verifies their chain, and speaks TLS with a proxy.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hoplite_audit::{Outcome, Query};
use hoplite_host::files;
use hoplite_identity::TrustDomain;
use hoplite_tests::{HttpApp, TRUST_DOMAIN, TestClient, World, id, peers, until};

/// The client may read the service.
const POLICY: &str = r#"
@id("backend/client-reads") permit (principal == Hoplite::Workload::"spiffe://world.test/client",
    action in [Hoplite::Action::"read"], resource in Hoplite::Service::"backend");
"#;

/// An SVID and a bundle as files, as OpenSSL wants them.
struct Files {
    chain: PathBuf,
    key: PathBuf,
    bundle: PathBuf,
}

impl Files {
    fn write(dir: &Path, caller: &TestClient) -> Self {
        let files = Self {
            chain: dir.join("chain.pem"),
            key: dir.join("key.pem"),
            bundle: dir.join("roots.pem"),
        };
        let svid = caller.svid.as_ref().unwrap();
        let bundle = caller.bundles.get(&TrustDomain::parse(TRUST_DOMAIN).unwrap()).unwrap();
        files::write_public(&files.chain, svid.chain_pem().as_bytes()).unwrap();
        files::write_public(&files.bundle, bundle.to_pem().as_bytes()).unwrap();
        files::write_private(&files.key, svid.key_pem().as_bytes()).unwrap();
        files
    }
}

/// Runs `openssl` with these arguments and this input; gives whether it succeeded and all that it said.
async fn openssl(arguments: &[&str], input: &str) -> (bool, String) {
    let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let input = input.to_owned();
    tokio::task::spawn_blocking(move || {
        let mut command = Command::new("openssl");
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A refused handshake may close the pipe first.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    })
    .await
    .unwrap()
}

/// `openssl s_client` to an address, with one HTTP request as input.
async fn s_client(address: SocketAddr, more: &[&str]) -> (bool, String) {
    let address = address.to_string();
    let mut arguments = vec!["s_client", "-connect", &address, "-ign_eof", "-alpn", "http/1.1"];
    arguments.extend(more);
    openssl(
        &arguments,
        "GET /accounts/1 HTTP/1.1\r\nhost: backend.test\r\nconnection: close\r\n\r\n",
    )
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssl_reads_our_certificates_and_verifies_the_chain() {
    if peers::openssl("openssl_reads_our_certificates_and_verifies_the_chain").is_none() {
        return;
    }
    let world = World::start().await;
    let caller = world.caller("/client").await;
    let files = Files::write(world.dir(), &caller);
    let [chain, bundle] = [&files.chain, &files.bundle].map(|path| path.to_str().unwrap());

    let (ok, text) = openssl(&["x509", "-in", chain, "-noout", "-text"], "").await;
    assert!(ok, "{text}");
    for expected in [
        format!("URI:{}", id("/client")),
        "Public Key Algorithm: id-ecPublicKey".to_owned(),
        "X509v3 Key Usage: critical".to_owned(),
        "Digital Signature".to_owned(),
        "TLS Web Server Authentication, TLS Web Client Authentication".to_owned(),
        "X509v3 Subject Key Identifier".to_owned(),
        "X509v3 Authority Key Identifier".to_owned(),
    ] {
        assert!(text.contains(&expected), "`{expected}` is missing from {text}");
    }
    for unexpected in ["CA:TRUE", "Certificate Sign", "CRL Sign"] {
        assert!(!text.contains(unexpected), "`{unexpected}` in {text}");
    }

    let (ok, text) = openssl(&["x509", "-in", bundle, "-noout", "-text"], "").await;
    assert!(ok, "{text}");
    for expected in ["CA:TRUE", "Certificate Sign", &format!("URI:spiffe://{TRUST_DOMAIN}\n")] {
        assert!(text.contains(expected), "`{expected}` is missing from {text}");
    }

    for purpose in ["sslclient", "sslserver"] {
        let arguments = [
            "verify",
            "-x509_strict",
            "-purpose",
            purpose,
            "-CAfile",
            bundle,
            "-untrusted",
            chain,
            chain,
        ];
        let (ok, text) = openssl(&arguments, "").await;
        assert!(ok, "{purpose}: {text}");
    }
    // The judge can say no: another world's authority does not vouch for it.
    let other = World::start().await.caller("/client").await;
    let other = Files::write(tempfile::tempdir_in(world.dir()).unwrap().keep().as_path(), &other);
    let (ok, text) = openssl(&["verify", "-CAfile", other.bundle.to_str().unwrap(), chain], "").await;
    assert!(!ok, "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s_client_gets_in_with_an_svid_and_not_without() {
    if peers::openssl("s_client_gets_in_with_an_svid_and_not_without").is_none() {
        return;
    }
    let world = World::start().await;
    world.policy(POLICY);
    let app = HttpApp::start().await;
    let backend = world.proxy("backend").http("backend", &app).start().await;
    let address = backend.inbound("backend");
    let caller = world.caller("/client").await;
    let files = Files::write(world.dir(), &caller);
    let [chain, key, bundle] = [&files.chain, &files.key, &files.bundle].map(|path| path.to_str().unwrap());
    let identity = ["-cert", chain, "-key", key, "-CAfile", bundle, "-verify_return_error"];

    let (_, said) = s_client(address, &identity).await;
    assert!(said.contains("HTTP/1.1 200"), "{said}");
    assert!(
        said.contains("Verify return code: 0 (ok)") && said.contains("TLSv1.3"),
        "{said}"
    );
    let (_, version) = openssl(&["version"], "").await;
    let group = if knows_hybrid(&version) {
        "X25519MLKEM768"
    } else {
        "X25519"
    };
    assert!(said.contains(group), "{version} did not use {group}: {said}");
    assert!(
        said.contains("No early data") || said.contains("Early data was not sent"),
        "{said}"
    );
    assert!(
        !said.contains("Post-Handshake New Session Ticket"),
        "a ticket was given: {said}"
    );

    // TLS 1.3 tells the client only after it believes the handshake done: the alert is what matters.
    let (ok, said) = s_client(address, &["-CAfile", bundle]).await;
    assert!(!ok && !said.contains("HTTP/1.1"), "{said}");
    assert!(
        said.contains("alert certificate required") || said.contains("SSL alert number 116"),
        "{said}"
    );

    let (ok, said) = s_client(address, &[&identity[..], &["-tls1_2"]].concat()).await;
    assert!(!ok && !said.contains("HTTP/1.1"), "{said}");
    assert!(
        said.contains("alert protocol version") || said.contains("alert handshake failure"),
        "{said}"
    );

    // The client hears of a handshake that failed before the record of it is written.
    let query = Query {
        outcome: vec![Outcome::Unauthenticated],
        ..Query::default()
    };
    let refusals = until("both refusals on record", async || {
        Some(world.records(&query)).filter(|records| records.len() >= 2)
    });
    let reasons: Vec<_> = refusals
        .await
        .into_iter()
        .map(|record| record.reason.unwrap())
        .collect();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert!(reasons[0].starts_with("no_certificate:"), "{reasons:?}");
    assert!(reasons[1].starts_with("handshake_failed:"), "{reasons:?}");
}

/// OpenSSL has the hybrid key exchange since 3.5.
fn knows_hybrid(version: &str) -> bool {
    let mut numbers = version
        .split([' ', '.'])
        .skip(1)
        .map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(3), Some(5))
}
