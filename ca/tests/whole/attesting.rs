//! Nodes that nobody has invited: each attestor admits who it should, and each forgery is refused.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use hoplite_ca::{AttestorSettings, Config};
use hoplite_identity::proof_of_possession;
use hoplite_wire::ca::attest_request::Step as Says;
use hoplite_wire::ca::attest_response::Step as Answer;
use hoplite_wire::ca::{
    Agent as Listed, AgentRequest, AttestBegin, AttestRequest, JoinRequest, ListAgentsRequest, ListTokensRequest,
    SvidResponse,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::world::{World, agent_id, config, csr};

const ISSUER: &str = "https://kubernetes.default.svc";

/// An issuer of tokens.
struct Issuer {
    pair: EcdsaKeyPair,
    kid: &'static str,
}

impl Issuer {
    fn new(kid: &'static str) -> Self {
        let pkcs8 = KeyPair::generate().unwrap().serialize_der();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8, &SystemRandom::new()).unwrap();
        Self { pair, kid }
    }

    fn jwk(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        let number = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
        json!({"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": self.kid, "x": number(point.get(1..33).unwrap()), "y": number(point.get(33..).unwrap())})
    }

    fn token(&self, claims: &Value) -> Vec<u8> {
        let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let input = format!(
            "{}.{}",
            encode(&json!({"alg": "ES256", "kid": self.kid})),
            encode(claims)
        );
        let signature = self.pair.sign(&SystemRandom::new(), input.as_bytes()).unwrap();
        format!("{input}.{}", BASE64URL_NOPAD.encode(signature.as_ref())).into_bytes()
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn of_pod(node: &str, uid: &str) -> Value {
    json!({
        "iss": ISSUER, "aud": ["hoplite"], "sub": "system:serviceaccount:hoplite:hoplite-agent", "iat": now(), "nbf": now(), "exp": now() + 600,
        "jti": format!("{node}-{uid}"),
        "kubernetes.io": {
            "namespace": "hoplite", "serviceaccount": {"name": "hoplite-agent", "uid": "5a"}, "pod": {"name": format!("agent-{uid}"), "uid": uid},
            "node": {"name": node, "uid": format!("machine-{node}")}
        }
    })
}

fn with(mut claims: Value, pointer: &str, value: Value) -> Value {
    *claims.pointer_mut(pointer).unwrap() = value;
    claims
}

fn without(mut claims: Value, parent: &str, name: &str) -> Value {
    claims
        .pointer_mut(parent)
        .unwrap()
        .as_object_mut()
        .unwrap()
        .remove(name);
    claims
}

fn attestor(text: &str) -> AttestorSettings {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("attestor.toml");
    std::fs::write(&file, text).unwrap();
    hoplite_host::config::load(&file).unwrap()
}

async fn world(attestors: impl FnOnce(&Path) -> Vec<AttestorSettings>) -> World {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        attestors: attestors(dir.path()),
        ..config(dir.path())
    };
    let ca = hoplite_ca::start(config).await.unwrap();
    World { dir, ca }
}

fn jwks(dir: &Path, keys: &[Value]) {
    std::fs::write(dir.join("jwks.json"), json!({ "keys": keys }).to_string()).unwrap();
}

/// Shows a proof, and answers a challenge by what `sign` makes of it and of the signing request.
async fn attest(
    world: &World,
    (name, kind): (&str, &str),
    proof: Vec<Vec<u8>>,
    csr: &[u8],
    sign: impl Fn(&[u8; 32], &[u8]) -> Vec<u8>,
) -> Result<SvidResponse, Status> {
    let mut client = world.connect(None).await.unwrap();
    let (says, said) = mpsc::channel(4);
    let begin = AttestBegin {
        attestor: name.to_owned(),
        kind: kind.to_owned(),
        proof,
        csr: csr.to_vec(),
    };
    says.send(AttestRequest {
        step: Some(Says::Begin(begin)),
    })
    .await
    .unwrap();
    let mut answers = client.attest(ReceiverStream::new(said)).await?.into_inner();
    loop {
        match answers
            .message()
            .await?
            .and_then(|answer| answer.step)
            .expect("an answer")
        {
            Answer::Svid(response) => return Ok(response),
            Answer::Challenge(challenge) => {
                let answer = sign(challenge.as_slice().try_into().unwrap(), csr);
                says.send(AttestRequest {
                    step: Some(Says::Answer(answer)),
                })
                .await
                .unwrap();
            }
        }
    }
}

async fn show(world: &World, name: &str, token: &[u8], csr: &[u8]) -> Result<SvidResponse, Status> {
    let kind = if name == "ci" { "oidc" } else { "k8s" };
    attest(world, (name, kind), vec![token.to_vec()], csr, |_, _| Vec::new()).await
}

async fn agents(world: &World) -> Vec<Listed> {
    world
        .admin()
        .await
        .list_agents(ListAgentsRequest {})
        .await
        .unwrap()
        .into_inner()
        .agents
}

fn texts(agent: &Listed) -> Vec<String> {
    agent
        .selectors
        .iter()
        .map(|selector| format!("{}:{}", selector.kind, selector.value))
        .collect()
}

fn k8s(dir: &Path) -> AttestorSettings {
    let jwks = dir.join("jwks.json");
    attestor(&format!(
        "kind = \"k8s\"\nname = \"prod\"\nnode = \"prod-{{k8s:node}}\"\nissuer = \"{ISSUER}\"\naudience = \"hoplite\"\n\
         service_accounts = [\"hoplite/hoplite-agent\"]\njwks_file = \"{}\"",
        jwks.display()
    ))
}

/// Signs a challenge and a request.
type Signing<'a> = &'a dyn Fn(&[u8; 32], &[u8]) -> Vec<u8>;

#[tokio::test]
async fn a_node_of_a_cluster_joins_by_its_projected_token() {
    let issuer = Issuer::new("k1");
    let world = world(|dir| {
        jwks(dir, &[issuer.jwk()]);
        vec![k8s(dir)]
    })
    .await;
    let (_, one) = csr();
    let claims = of_pod("worker-7", "0f0a");
    let token = issuer.token(&claims);
    let joined = show(&world, "prod", &token, &one).await.unwrap();
    assert_eq!(joined.chain.len(), 1);
    let listed = agents(&world).await;
    assert_eq!(
        (listed[0].spiffe_id.as_str(), listed[0].attested_by.as_str()),
        (agent_id("prod-worker-7").as_str(), "prod")
    );
    assert_eq!(
        texts(&listed[0]),
        [
            "k8s:node:worker-7",
            "k8s:ns:hoplite",
            "k8s:pod-name:agent-0f0a",
            "k8s:pod-uid:0f0a",
            "k8s:sa:hoplite-agent",
            "node:attestor:prod"
        ]
    );
    // An answer can be lost: the same key may try again. Another key may not, whatever signature the token has.
    show(&world, "prod", &token, &one).await.unwrap();
    let (_, other) = csr();
    let replayed = show(&world, "prod", &issuer.token(&claims), &other).await.unwrap_err();
    assert_eq!(replayed.code(), Code::PermissionDenied);
    assert!(
        replayed.message().contains("shown before with another key"),
        "{replayed}"
    );
    // Nor is it an invitation.
    let request = JoinRequest {
        token: String::from_utf8(token).unwrap(),
        csr: other.clone(),
    };
    assert!(world.connect(None).await.unwrap().join(request).await.is_err());
    let invitations = world
        .admin()
        .await
        .list_tokens(ListTokensRequest {})
        .await
        .unwrap()
        .into_inner()
        .tokens;
    assert!(invitations.is_empty(), "{invitations:?}");

    // The machine's agent is made anew, with a new token: the same node, and what was attested before counts no more.
    show(&world, "prod", &issuer.token(&of_pod("worker-7", "1b1b")), &other)
        .await
        .unwrap();
    let listed = agents(&world).await;
    assert_eq!(listed.len(), 1);
    assert!(
        texts(&listed[0]).contains(&"k8s:pod-uid:1b1b".to_owned())
            && !texts(&listed[0]).contains(&"k8s:pod-uid:0f0a".to_owned())
    );
    // Another machine under its name has to wait until it is gone.
    let stranger = with(of_pod("worker-7", "2c2c"), "/kubernetes.io/node/uid", json!("another"));
    let taken = show(&world, "prod", &issuer.token(&stranger), &csr().1)
        .await
        .unwrap_err();
    assert!(taken.message().contains("another node has this one's name"), "{taken}");
    // Who is banned stays out, with whatever new token.
    let spiffe_id = agent_id("prod-worker-7");
    world
        .admin()
        .await
        .ban_agent(AgentRequest {
            spiffe_id: spiffe_id.clone(),
        })
        .await
        .unwrap();
    let banned = show(&world, "prod", &issuer.token(&of_pod("worker-7", "3d3d")), &csr().1)
        .await
        .unwrap_err();
    assert!(banned.message().contains("banned"), "{banned}");
    world
        .admin()
        .await
        .evict_agent(AgentRequest { spiffe_id })
        .await
        .unwrap();
    show(&world, "prod", &issuer.token(&of_pod("worker-7", "4e4e")), &csr().1)
        .await
        .unwrap();
}

#[tokio::test]
async fn forged_tokens_admit_nobody() {
    let (issuer, stranger) = (Issuer::new("k1"), Issuer::new("k1"));
    let world = world(|dir| {
        jwks(dir, &[issuer.jwk()]);
        vec![k8s(dir)]
    })
    .await;
    let good = || of_pod("worker-7", "0f0a");
    let none = {
        let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        format!("{}.{}.", encode(&json!({"alg": "none", "kid": "k1"})), encode(&good())).into_bytes()
    };
    let forged: Vec<(&str, Vec<u8>)> = vec![
        ("signed by somebody else", stranger.token(&good())),
        ("not signed", none),
        ("expired", issuer.token(&with(good(), "/exp", json!(now() - 1)))),
        ("without an end", issuer.token(&without(good(), "", "exp"))),
        ("for tomorrow", issuer.token(&with(good(), "/nbf", json!(now() + 3600)))),
        (
            "long-lived",
            issuer.token(&with(good(), "/exp", json!(now() + 400 * 86_400))),
        ),
        ("another audience", issuer.token(&with(good(), "/aud", json!(["api"])))),
        (
            "another issuer",
            issuer.token(&with(good(), "/iss", json!("https://evil.example"))),
        ),
        (
            "another account",
            issuer.token(&with(
                with(good(), "/kubernetes.io/serviceaccount/name", json!("web")),
                "/sub",
                json!("system:serviceaccount:hoplite:web"),
            )),
        ),
        (
            "another namespace",
            issuer.token(&with(
                with(good(), "/kubernetes.io/namespace", json!("web")),
                "/sub",
                json!("system:serviceaccount:web:hoplite-agent"),
            )),
        ),
        (
            "two minds",
            issuer.token(&with(good(), "/sub", json!("system:serviceaccount:hoplite:web"))),
        ),
        ("no pod", issuer.token(&without(good(), "/kubernetes.io", "pod"))),
        ("no node", issuer.token(&without(good(), "/kubernetes.io", "node"))),
        (
            "a node with a path",
            issuer.token(&with(good(), "/kubernetes.io/node/name", json!("../ca"))),
        ),
        ("not of Kubernetes", issuer.token(&without(good(), "", "kubernetes.io"))),
        ("nothing", Vec::new()),
    ];
    for (what, token) in forged {
        let refused = show(&world, "prod", &token, &csr().1).await.unwrap_err();
        assert!(
            matches!(refused.code(), Code::PermissionDenied | Code::InvalidArgument),
            "{what}: {refused}"
        );
        // A short word, and nothing of why: that stands in the CA's log.
        assert!(
            refused.message().len() < 120 && !refused.message().contains("system:"),
            "{what}: {refused}"
        );
    }
    assert!(agents(&world).await.is_empty());
    for wrong in [("prod", "oidc"), ("nobody", "k8s")] {
        let refused = attest(&world, wrong, vec![issuer.token(&good())], &csr().1, |_, _| Vec::new())
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{wrong:?}");
    }
}

#[tokio::test]
async fn tokens_of_an_issuer_admit_only_those_within_the_bounds() {
    let issuer = Issuer::new("o1");
    let world = world(|dir| {
        jwks(dir, &[issuer.jwk()]);
        vec![attestor(&format!(
            "kind = \"oidc\"\nname = \"ci\"\nnode = \"ci-{{oidc:claim:runner}}\"\nissuer = \"https://id.example\"\naudience = \"hoplite\"\n\
             bounds = {{ repository = [\"acme/infra\"] }}\nclaims = [\"runner\", \"groups\"]\njwks_file = \"{}\"",
            dir.join("jwks.json").display()
        ))]
    })
    .await;
    let claims = || {
        json!({"iss": "https://id.example", "aud": "hoplite", "sub": "repo:acme/infra:ref:refs/heads/main", "exp": now() + 300, "iat": now(),
            "repository": "acme/infra", "runner": "r-17", "groups": ["a", "b"]})
    };
    show(&world, "ci", &issuer.token(&claims()), &csr().1).await.unwrap();
    let listed = agents(&world).await;
    assert_eq!(listed[0].spiffe_id, agent_id("ci-r-17"));
    assert_eq!(
        texts(&listed[0]),
        [
            "node:attestor:ci",
            "oidc:claim:groups=a",
            "oidc:claim:groups=b",
            "oidc:claim:runner=r-17",
            "oidc:iss:https://id.example",
            "oidc:sub:repo:acme/infra:ref:refs/heads/main"
        ]
    );
    for (what, token) in [
        (
            "another repository",
            with(claims(), "/repository", json!("acme/infra-fork")),
        ),
        ("no repository", without(claims(), "", "repository")),
        ("a name that is a path", with(claims(), "/runner", json!("a/../b"))),
        (
            "the same one under another name, while it is live",
            with(claims(), "/runner", json!("r-18")),
        ),
    ] {
        let refused = show(&world, "ci", &issuer.token(&token), &csr().1).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{what}");
    }
    assert_eq!(agents(&world).await.len(), 1);
}

/// An issuer turns to a new key. A token that names it has the keys read again, and one that nobody has does not, again and again.
#[tokio::test]
async fn a_key_that_is_not_known_is_looked_for() {
    let (old, new, nobody) = (Issuer::new("k1"), Issuer::new("k2"), Issuer::new("k3"));
    let world = world(|dir| {
        jwks(dir, &[old.jwk()]);
        vec![k8s(dir)]
    })
    .await;
    jwks(world.dir.path(), &[old.jwk(), new.jwk()]);
    show(&world, "prod", &new.token(&of_pod("a", "aa")), &csr().1)
        .await
        .unwrap();
    show(&world, "prod", &old.token(&of_pod("b", "bb")), &csr().1)
        .await
        .unwrap();
    // Asked for a moment ago: not again for somebody who names a key that is none.
    jwks(world.dir.path(), &[nobody.jwk()]);
    assert!(
        show(&world, "prod", &nobody.token(&of_pod("c", "cc")), &csr().1)
            .await
            .is_err()
    );
    show(&world, "prod", &old.token(&of_pod("d", "dd")), &csr().1)
        .await
        .unwrap();
}

fn pem_of(certificate: &rcgen::Certificate) -> String {
    hoplite_identity::pem::write_certificates(&[certificate.der().clone()])
}

/// An authority of a company.
fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn machine(name: &str, change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = CertificateParams::new(vec![format!("{name}.corp.example")]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    change(&mut params);
    params
}

fn signs(pair: &KeyPair, challenge: &[u8; 32], csr: &[u8]) -> Vec<u8> {
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pair.serialize_der(), &random).unwrap();
    pair.sign(&random, &proof_of_possession(challenge, csr))
        .unwrap()
        .as_ref()
        .to_vec()
}

#[tokio::test]
async fn a_node_of_a_company_joins_by_its_certificate() {
    let (corporate, stranger) = (authority("corporate"), authority("corporate"));
    let world = world(|dir| {
        std::fs::write(dir.join("corporate.pem"), pem_of(corporate.as_ref())).unwrap();
        let roots = dir.join("corporate.pem");
        vec![attestor(&format!(
            "kind = \"x509pop\"\nnode = \"corp-{{x509pop:cn}}\"\nroots = \"{}\"",
            roots.display()
        ))]
    })
    .await;
    let by = ("x509pop", "x509pop");
    let key = KeyPair::generate().unwrap();
    let leaf = machine("web-1", |_| ()).signed_by(&key, &corporate).unwrap();
    let chain = || vec![leaf.der().to_vec()];
    let (_, own) = csr();
    attest(&world, by, chain(), &own, |challenge, csr| signs(&key, challenge, csr))
        .await
        .unwrap();
    let listed = agents(&world).await;
    assert_eq!(listed[0].spiffe_id, agent_id("corp-web-1"));
    let found = texts(&listed[0]);
    for expected in [
        "x509pop:cn:web-1",
        "x509pop:dns:web-1.corp.example",
        "node:attestor:x509pop",
    ] {
        assert!(found.iter().any(|text| text == expected), "{found:?}");
    }
    assert_eq!(
        found
            .iter()
            .filter(|text| text.starts_with("x509pop:root:") || text.starts_with("x509pop:fingerprint:"))
            .count(),
        2
    );
    // Renewed by the company, with another key: the same node.
    let renewed = KeyPair::generate().unwrap();
    let again = machine("web-1", |_| ()).signed_by(&renewed, &corporate).unwrap();
    attest(&world, by, vec![again.der().to_vec()], &csr().1, |challenge, csr| {
        signs(&renewed, challenge, csr)
    })
    .await
    .unwrap();
    assert_eq!(agents(&world).await.len(), 1);

    let refused = async |what: &str, chain: Vec<Vec<u8>>, sign: Signing<'_>| {
        let refused = attest(&world, by, chain, &csr().1, sign).await.unwrap_err();
        assert!(
            matches!(refused.code(), Code::PermissionDenied | Code::InvalidArgument),
            "{what}: {refused}"
        );
    };
    let own_key = |challenge: &[u8; 32], csr: &[u8]| signs(&key, challenge, csr);
    let other = KeyPair::generate().unwrap();
    refused("somebody who has copied the certificate", chain(), &|challenge, csr| {
        signs(&other, challenge, csr)
    })
    .await;
    refused("a signature of another challenge", chain(), &|_, csr| {
        signs(&key, &[7; 32], csr)
    })
    .await;
    refused("a signature for another key", chain(), &|challenge, _| {
        signs(&key, challenge, &own)
    })
    .await;
    refused("no signature", chain(), &|_, _| Vec::new()).await;
    let by_stranger = machine("web-1", |_| ()).signed_by(&key, &stranger).unwrap();
    refused(
        "an authority of the same name",
        vec![by_stranger.der().to_vec()],
        &own_key,
    )
    .await;
    let itself = machine("web-1", |_| ()).self_signed(&key).unwrap();
    refused("signed by itself", vec![itself.der().to_vec()], &own_key).await;
    let signed = |change: &dyn Fn(&mut CertificateParams)| {
        machine("web-1", change)
            .signed_by(&key, &corporate)
            .unwrap()
            .der()
            .to_vec()
    };
    let day = Duration::from_secs(86_400);
    let past = signed(&|params| {
        params.not_before = (SystemTime::now() - 2 * day).into();
        params.not_after = (SystemTime::now() - day).into();
    });
    refused("ended", vec![past], &own_key).await;
    let server = signed(&|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    refused("for servers alone", vec![server], &own_key).await;
    let as_authority = signed(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    refused("an authority itself", vec![as_authority], &own_key).await;
    let path = machine("../../ca", |_| ()).signed_by(&key, &corporate);
    let unnamed = |params: &mut CertificateParams| params.distinguished_name = rcgen::DistinguishedName::new();
    refused("without a name", vec![signed(&unnamed)], &own_key).await;
    if let Ok(path) = path {
        refused("a name that is a path", vec![path.der().to_vec()], &own_key).await;
    }
    refused("no chain", Vec::new(), &own_key).await;
    refused("no certificate", vec![vec![0x30, 0x03, 1, 2, 3]], &own_key).await;
    refused("a long chain", vec![leaf.der().to_vec(); 7], &own_key).await;
    assert_eq!(agents(&world).await.len(), 1);
}

#[tokio::test]
async fn who_joins_with_a_token_is_attested_by_that() {
    let world = World::start().await;
    let token = world.token("n1").await;
    let request = JoinRequest { token, csr: csr().1 };
    world.connect(None).await.unwrap().join(request).await.unwrap();
    let listed = agents(&world).await;
    assert_eq!(
        (texts(&listed[0]), listed[0].attested_by.as_str()),
        (vec!["node:attestor:token".to_owned()], "token")
    );
    assert!(listed[0].attested_at_unix > 0);
}

#[test]
fn settings_that_cannot_be_meant() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = Issuer::new("k1");
    jwks(dir.path(), &[issuer.jwk()]);
    let file = dir.path().join("jwks.json").display().to_string();
    let corporate = dir.path().join("corporate.pem");
    std::fs::write(&corporate, pem_of(authority("corporate").as_ref())).unwrap();
    let leaf = dir.path().join("leaf.pem");
    std::fs::write(
        &leaf,
        pem_of(
            &machine("web-1", |_| ())
                .self_signed(&KeyPair::generate().unwrap())
                .unwrap(),
        ),
    )
    .unwrap();
    let load = |text: &str| {
        let path = dir.path().join("ca.toml");
        let head = format!(
            "trust_domain = \"prod.example\"\ndata_dir = \"{0}/d\"\nlisten = \"127.0.0.1:0\"\nadmin_socket = \"{0}/s\"\n",
            dir.path().display()
        );
        std::fs::write(&path, head + text).unwrap();
        Config::load(&path).map_or_else(|error| error.to_string(), |_| "good".to_owned())
    };
    let k8s = format!(
        "[[attestor]]\nkind = \"k8s\"\nissuer = \"i\"\naudience = \"a\"\nservice_accounts = [\"a/b\"]\njwks_file = \"{file}\"\n"
    );
    let x509pop = |roots: &Path| format!("[[attestor]]\nkind = \"x509pop\"\nroots = \"{}\"\n", roots.display());
    let check = |text: &str, expected: &str| {
        let said = load(text);
        assert!(said.contains(expected), "{text}: expected `{expected}`, got `{said}`");
    };
    check(&k8s, "good");
    check(&format!("{k8s}{}", x509pop(&corporate)), "good");
    check(
        &k8s.replace("[\"a/b\"]", "[]"),
        "every pod that gets a token would be a node",
    );
    check(&k8s.replace("[\"a/b\"]", "[\"b\"]"), "write NAMESPACE/NAME");
    check(&k8s.replace("\"a\"\n", "\"\"\n"), "letter by letter");
    check(&k8s.replace("jwks_file", "jwks_fil"), "jwks_fil");
    check(&k8s.replace(&file, "/nowhere"), "/nowhere");
    check(
        &k8s.replace(&format!("jwks_file = \"{file}\""), "jwks_url = \"http://api/keys\""),
        "https://HOST/PATH",
    );
    check(
        &k8s.replace(&format!("jwks_file = \"{file}\""), ""),
        "write where the issuer's keys are",
    );
    check(
        &format!("{k8s}jwks_url = \"https://api/keys\""),
        "either `jwks_file` or `jwks_url`",
    );
    check(
        &format!("{k8s}node = \"{{k8s:node}}\""),
        "begins with a text of its own",
    );
    check(&format!("{k8s}node = \"prod\""), "one name");
    check(&format!("{k8s}name = \"token\""), "attestor of join tokens");
    check(&format!("{k8s}{k8s}"), "two attestors have this name");
    check(&format!("{k8s}{k8s}name = \"k8s-2\""), "could be called the same");
    check("[[attestor]]\nkind = \"tpm\"\n", "tpm");
    check(
        "[[attestor]]\nkind = \"oidc\"\nissuer = \"i\"\naudience = \"a\"\nbounds = {}\n",
        "everybody who has a token of this issuer",
    );
    check(&x509pop(&leaf), "not one of an authority");
    check(&x509pop(&dir.path().join("none.pem")), "none.pem");
}
