//! A CA in this process, over real sockets, and an agent that speaks to it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hoplite_ca::{Config, Running, StartError};
use hoplite_host::config::Span;
use hoplite_identity::{BundleSet, CertificateDer, PeerVerifier, PrivatePkcs8KeyDer, TrustDomain, X509Svid, tls};
use hoplite_seal::{SigningKey, TrustedSigners};
use hoplite_wire::ca::admin_client::AdminClient;
use hoplite_wire::ca::node_client::NodeClient;
use hoplite_wire::ca::{
    CreateEntriesRequest, CreateTokenRequest, Entry, IssueItem, IssueRequest, IssueResult, JoinRequest, Selector,
    SvidResponse, Update, WatchRequest,
};
use hoplite_wire::channel;
use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

pub(crate) const DOMAIN: &str = "prod.example";

pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) ca: Running,
}

/// What an agent holds after joining.
pub(crate) struct Agent {
    pub(crate) svid: X509Svid,
    pub(crate) client: NodeClient<Channel>,
}

pub(crate) fn config(dir: &Path) -> Config {
    Config {
        trust_domain: TrustDomain::parse(DOMAIN).unwrap(),
        data_dir: dir.join("data"),
        listen: "127.0.0.1:0".parse().unwrap(),
        advertise: None,
        admin_socket: dir.join("ca.sock"),
        founds: true,
        x509_ttl: Span(Duration::from_secs(3600)),
        agent_ttl: Span(Duration::from_secs(3600)),
        reattest_within: Span(Duration::from_secs(30 * 86_400)),
        jwt_ttl: Span(Duration::from_secs(300)),
        oidc: None,
        attestors: Vec::new(),
        bundle_endpoint: None,
        federation: Default::default(),
        file: None,
        operator_ttl: Span(Duration::from_secs(8 * 3600)),
        admin_policy_dir: None,
        audit_dir: None,
        authority_ttl: Span(Duration::from_secs(86400)),
        authority_rotates: true,
        policy_signers: TrustedSigners::new([key("alice").signer().clone(), key("bob").signer().clone()]).unwrap(),
        log_levels: None,
        metrics_listen: None,
        otlp: None,
        policy_max_bytes: hoplite_policy::bundle::BUNDLE_BYTES_MAX,
        store: hoplite_ca::StoreConfig::default(),
        keys: hoplite_ca::KeysConfig::default(),
        upstream: None,
        replicas: Vec::new(),
        template_names_per_node: 1000,
        report_period: Span(Duration::from_secs(2)),
    }
}

/// A policy signer's key, always the same for the same name.
pub(crate) fn key(name: &str) -> SigningKey {
    let mut seed = [7; 32];
    for (to, from) in seed.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    SigningKey::from_seed(name, seed.into()).unwrap()
}

/// A key and a signing request that asks for nothing.
pub(crate) fn csr() -> (KeyPair, Vec<u8>) {
    let pair = KeyPair::generate().unwrap();
    let csr = CertificateParams::default()
        .serialize_request(&pair)
        .unwrap()
        .der()
        .to_vec();
    (pair, csr)
}

pub(crate) fn svid(pair: &KeyPair, chain: Vec<Vec<u8>>) -> X509Svid {
    let chain = chain.into_iter().map(CertificateDer::from).collect();
    X509Svid::from_parts(chain, PrivatePkcs8KeyDer::from(pair.serialize_der())).unwrap()
}

pub(crate) fn agent_id(node: &str) -> String {
    format!("spiffe://{DOMAIN}/hoplite/agent/{node}")
}

pub(crate) fn entry(path: &str, node: &str) -> Entry {
    Entry {
        spiffe_id: format!("spiffe://{DOMAIN}{path}"),
        parent_id: agent_id(node),
        selectors: vec![Selector {
            kind: "unix:uid".into(),
            value: "1000".into(),
        }],
        ..Entry::default()
    }
}

/// The next message of a stream, which must come.
pub(crate) async fn next(updates: &mut Streaming<Update>) -> Result<Update, Status> {
    let message = tokio::time::timeout(Duration::from_secs(20), updates.message())
        .await
        .expect("a message in time");
    message.map(|message| message.expect("the stream goes on"))
}

impl World {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = hoplite_ca::start(config(dir.path())).await.unwrap();
        Self { dir, ca }
    }

    pub(crate) async fn restart(self) -> Result<Self, StartError> {
        let Self { dir, ca } = self;
        ca.stop().await;
        let ca = hoplite_ca::start(config(dir.path())).await?;
        Ok(Self { dir, ca })
    }

    pub(crate) async fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(channel::unix(&self.dir.path().join("ca.sock")).await.unwrap())
    }

    pub(crate) async fn connect(
        &self,
        svid: Option<&X509Svid>,
    ) -> Result<NodeClient<Channel>, tonic::transport::Error> {
        let bundle = self.ca.bundle();
        let ca = bundle.trust_domain().member("/hoplite/ca").unwrap();
        let verifier = Arc::new(PeerVerifier::new(BundleSet::from_iter([bundle])).unwrap());
        let config = tls::client_config(svid, verifier, ca, &[b"h2"]).unwrap();
        channel::tls(self.ca.node_address().to_string(), config)
            .await
            .map(NodeClient::new)
    }

    pub(crate) async fn token(&self, node: &str) -> String {
        let request = CreateTokenRequest {
            node: node.into(),
            ttl_seconds: 0,
            ..CreateTokenRequest::default()
        };
        self.admin()
            .await
            .create_token(request)
            .await
            .unwrap()
            .into_inner()
            .token
    }

    pub(crate) async fn try_join(&self, token: &str, csr: Vec<u8>) -> Result<SvidResponse, Status> {
        let mut client = self.connect(None).await.unwrap();
        Ok(client
            .join(JoinRequest {
                token: token.into(),
                csr,
            })
            .await?
            .into_inner())
    }

    pub(crate) async fn join(&self, node: &str) -> Agent {
        let (pair, csr) = csr();
        let response = self.try_join(&self.token(node).await, csr).await.unwrap();
        let svid = svid(&pair, response.chain);
        let client = self.connect(Some(&svid)).await.unwrap();
        Agent { svid, client }
    }

    /// Registers an entry and returns its id.
    pub(crate) async fn register(&self, entry: Entry) -> String {
        let request = CreateEntriesRequest { entries: vec![entry] };
        let mut response = self.admin().await.create_entries(request).await.unwrap().into_inner();
        let result = response.results.remove(0);
        assert_eq!(result.error, "");
        result.entry.unwrap().id
    }
}

impl Agent {
    pub(crate) async fn watch(&mut self, from_revision: u64) -> Streaming<Update> {
        self.client
            .watch(WatchRequest {
                from_revision,
                ..WatchRequest::default()
            })
            .await
            .unwrap()
            .into_inner()
    }

    pub(crate) async fn issue(&mut self, items: Vec<(String, Vec<u8>)>) -> Result<Vec<IssueResult>, Status> {
        let items = items
            .into_iter()
            .map(|(entry_id, csr)| IssueItem {
                entry_id,
                csr,
                values: Vec::new(),
            })
            .collect();
        Ok(self.client.issue(IssueRequest { items }).await?.into_inner().results)
    }
}
