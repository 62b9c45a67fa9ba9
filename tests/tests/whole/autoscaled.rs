//! A node that nobody has invited: its cluster vouches for it, and a stock web server serves the cluster's keys.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use hoplite_agent::{JoinSettings, TokenJoin};
use hoplite_ca::{AttestorSettings, K8sSettings};
use hoplite_identity::pem;
use hoplite_tests::{World, id, own_selectors};
use hoplite_wire::WorkloadApi;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::json;

const ISSUER: &str = "https://kubernetes.default.svc";

/// Python's own HTTPS server, of the files in a directory. It says its port.
const SERVER: &str = "
import http.server, os, ssl, sys
os.chdir(sys.argv[1])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain('../server.pem', '../server.key')
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)
server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
";

struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pem_of(certificate: &rcgen::Certificate) -> String {
    pem::write_certificates(&[certificate.der().clone()])
}

fn web_server(dir: &Path) -> (Stopped, u16) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned()];
    let leaf = CertificateParams::new(names)
        .unwrap()
        .signed_by(&key, &authority)
        .unwrap();
    fs::write(dir.join("web-ca.pem"), pem_of(authority.as_ref())).unwrap();
    fs::write(dir.join("server.pem"), pem_of(&leaf)).unwrap();
    fs::write(
        dir.join("server.key"),
        pem::write_private_key(&key.serialize_der()).as_bytes(),
    )
    .unwrap();
    let mut python = Command::new("python3");
    python.args(["-c", SERVER]).arg(dir.join("keys"));
    let mut server = Stopped(python.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    (server, line.trim().parse().unwrap())
}

#[tokio::test]
async fn an_autoscaled_node_joins_with_no_human() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    fs::create_dir(&keys).unwrap();
    let (_server, port) = web_server(dir.path());
    let pkcs8 = KeyPair::generate().unwrap().serialize_der();
    let cluster = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8, &SystemRandom::new()).unwrap();
    let point = cluster.public_key().as_ref();
    let jwk = json!({
        "use": "sig", "kty": "EC", "kid": "c1", "crv": "P-256", "alg": "ES256",
        "x": BASE64URL_NOPAD.encode(point.get(1..33).unwrap()), "y": BASE64URL_NOPAD.encode(point.get(33..).unwrap())
    });
    fs::write(keys.join("jwks"), json!({ "keys": [jwk] }).to_string()).unwrap();

    let world = World::start_with(|config| {
        config.attestors = vec![AttestorSettings::K8s(K8sSettings {
            name: Some("prod".to_owned()),
            node: Some("prod-{k8s:node}".to_owned()),
            issuer: ISSUER.to_owned(),
            audience: "hoplite".to_owned(),
            service_accounts: vec!["hoplite/hoplite-agent".to_owned()],
            jwks_url: Some(format!("https://127.0.0.1:{port}/jwks")),
            jwks_ca: Some(dir.path().join("web-ca.pem")),
            jwks_token_file: None,
            jwks_file: None,
        })];
    })
    .await;
    // What is registered for the node before there is any.
    world
        .register_under("prod-worker-7", "/web", &own_selectors(), None)
        .await;

    // As the kubelet writes it.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let encode = |value: serde_json::Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let claims = json!({
        "iss": ISSUER, "aud": ["hoplite"], "sub": "system:serviceaccount:hoplite:hoplite-agent", "iat": now, "nbf": now, "exp": now + 3600,
        "jti": "7d1c", "kubernetes.io": {
            "namespace": "hoplite", "serviceaccount": {"name": "hoplite-agent", "uid": "5a"},
            "pod": {"name": "hoplite-agent-x7k", "uid": "0f0a"}, "node": {"name": "worker-7", "uid": "machine-7"}
        }
    });
    let input = format!("{}.{}", encode(json!({"alg": "ES256", "kid": "c1"})), encode(claims));
    let signature = cluster.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
    let token_file = dir.path().join("token");
    fs::write(
        &token_file,
        format!("{input}.{}", BASE64URL_NOPAD.encode(signature.as_ref())),
    )
    .unwrap();

    let join = JoinSettings::K8s(TokenJoin {
        attestor: Some("prod".to_owned()),
        token_file,
    });
    let agent = world.start_attested_node("worker-7", join).await;
    let listed = world.agents().await;
    let node = listed
        .iter()
        .find(|agent| agent.spiffe_id == id("/hoplite/agent/prod-worker-7"))
        .unwrap();
    assert_eq!(node.attested_by, "prod");
    let texts: Vec<String> = node
        .selectors
        .iter()
        .map(|selector| format!("{}:{}", selector.kind, selector.value))
        .collect();
    assert!(texts.contains(&"k8s:node:worker-7".to_owned()), "{texts:?}");
    let socket = format!("unix:{}", agent.socket().display());
    let identity = WorkloadApi::open(&socket).await.unwrap().next().await.unwrap();
    assert_eq!(identity.svids.first().unwrap().spiffe_id().path(), "/web");
    agent.stop().await;
}
