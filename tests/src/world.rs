//! A trust domain in one process: a CA, an agent that joined it by token, and proxies, on free ports and short paths.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hoplite_audit::{Query, Record, find_logs, read_log};
use hoplite_host::config::Span;
use hoplite_host::peer_process::PeerProcess;
use hoplite_host::{files, logging};
use hoplite_identity::{
    BundleSet, CertificateDer, PeerVerifier, PrivatePkcs8KeyDer, Selector, SpiffeId, TrustBundle, TrustDomain,
    X509Svid, tls,
};
use hoplite_otlp::OtlpSettings;
use hoplite_policy::Source;
use hoplite_policy::bundle::{BUNDLE_BYTES_MAX, Bundle, EngineVersion, Meta, Stage};
use hoplite_policy::grant::{GrantDraft, GrantScope};
use hoplite_proxy::{Inbound, InboundProtocol, Outbound, OutboundProtocol};
use hoplite_seal::{Hash, SigningKey, TrustedSigners};
use hoplite_telemetry::MetricsListen;
use hoplite_wire::agent::diagnosis_client::DiagnosisClient;
use hoplite_wire::agent::{AgentStatus, ShowStatusRequest};
use hoplite_wire::ca::admin_client::AdminClient;
use hoplite_wire::ca::node_client::NodeClient;
use hoplite_wire::ca::{
    AddGrantRequest, Agent, AgentRequest, CreateEntriesRequest, CreateOperatorTokenRequest, CreateTokenRequest,
    DeleteEntriesRequest, Entry, JoinRequest, ListAgentsRequest, ListEntriesRequest, OperatorRequest,
    PublishPolicyRequest, ShowBundleRequest, ShowPolicyRequest, UpdateEntriesRequest,
};
use hoplite_wire::{FetchError, WorkloadApi, channel};
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::app::{HttpApp, TcpApp};
use crate::client::TestClient;
use crate::until;

/// The trust domain of every world.
pub const TRUST_DOMAIN: &str = "world.test";

const NODE: &str = "node";

const HOUR: Duration = Duration::from_secs(3600);

/// A running trust domain. Dropping it ends all of it and removes its files.
#[derive(Debug)]
pub struct World {
    agent: Option<hoplite_agent::Running>,
    ca: Option<hoplite_ca::Running>,
    agent_config: hoplite_agent::Config,
    ca_config: hoplite_ca::Config,
    dir: TempDir,
}

/// What a proxy will be.
#[derive(Debug)]
pub struct ProxyBuilder<'a> {
    world: &'a World,
    config: hoplite_proxy::Config,
    ttl: Option<Duration>,
    is_registered: bool,
}

/// A running proxy of a world.
#[derive(Debug)]
pub struct Proxy {
    running: hoplite_proxy::Running,
    config: hoplite_proxy::Config,
}

/// The SPIFFE ID with this path in a world.
pub fn id(path: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}{path}")
}

/// What the agent sees of this process.
pub fn own_selectors() -> Vec<String> {
    let uid = fs::metadata("/proc/self").unwrap().uid();
    let program = std::env::current_exe().unwrap();
    vec![format!("unix:uid:{uid}"), format!("unix:path:{}", program.display())]
}

/// The key of a person who may sign policy in every world: `alice` and `bob` may.
pub fn policy_key(name: &str) -> SigningKey {
    let mut seed = [7; 32];
    for (to, from) in seed.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    SigningKey::from_seed(name, seed.into()).unwrap()
}

/// Of the loopback interface, so that tests do not meet.
fn any_port() -> MetricsListen {
    MetricsListen(([127, 0, 0, 1], 0).into())
}

fn policy_signers() -> TrustedSigners {
    TrustedSigners::new(["alice", "bob"].map(|name| policy_key(name).signer().clone())).unwrap()
}

// === impl World ===

impl World {
    /// A CA and an agent that has joined it. No workload is registered, no policy permits anything.
    ///
    /// With `HOPLITE_LOG` in the environment its parts say what they do.
    pub async fn start() -> Self {
        Self::start_with(|_| ()).await
    }

    /// The same, of a CA with another configuration.
    pub async fn start_with(change: impl FnOnce(&mut hoplite_ca::Config)) -> Self {
        if std::env::var_os("HOPLITE_LOG").is_some() {
            logging::init(logging::Format::Text);
        }
        let dir = tempfile::Builder::new().prefix("hop").tempdir().unwrap();
        // Workloads of other users reach the agent's socket through it.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        fs::create_dir(dir.path().join("policies")).unwrap();
        let trust_domain = TrustDomain::parse(TRUST_DOMAIN).unwrap();
        let mut ca_config = hoplite_ca::Config {
            trust_domain,
            data_dir: dir.path().join("ca"),
            listen: ([127, 0, 0, 1], 0).into(),
            advertise: None,
            admin_socket: dir.path().join("ca.sock"),
            founds: true,
            x509_ttl: Span(HOUR),
            agent_ttl: Span(HOUR),
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
            authority_ttl: Span(24 * HOUR),
            authority_rotates: true,
            policy_signers: policy_signers(),
            log_levels: None,
            metrics_listen: Some(any_port()),
            otlp: None,
            policy_max_bytes: BUNDLE_BYTES_MAX,
            store: hoplite_ca::StoreConfig::default(),
            keys: hoplite_ca::KeysConfig::default(),
            upstream: None,
            replicas: Vec::new(),
            template_names_per_node: 1000,
            report_period: Span(Duration::from_secs(2)),
        };
        change(&mut ca_config);
        let ca = hoplite_ca::start(ca_config.clone()).await.unwrap();
        // So that it comes back where its agent, and others, look for it.
        ca_config.listen = ca.node_address();
        if let (Some(endpoint), Some(address)) = (&mut ca_config.bundle_endpoint, ca.bundle_address()) {
            endpoint.listen = address;
        }
        let agent_config = hoplite_agent::Config {
            trust_domain: ca_config.trust_domain.clone(),
            data_dir: dir.path().join("agent"),
            ca: ca.node_address().try_into().unwrap(),
            trust_bundle: dir.path().join("ca/bundle.pem"),
            join_token_file: Some(dir.path().join("token")),
            join: None,
            kubernetes: None,
            supply_key_file: None,
            socket: dir.path().join("agent.sock"),
            socket_mode: None,
            peer_process: Default::default(),
            policy_signers: policy_signers(),
            log_levels: None,
            metrics_listen: Some(any_port()),
            otlp: None,
            policy_max_bytes: BUNDLE_BYTES_MAX,
            authorization: None,
        };
        let mut world = Self {
            agent: None,
            ca: Some(ca),
            agent_config,
            ca_config,
            dir,
        };
        world.give_token().await;
        world.start_agent().await;
        world
    }

    /// The SPIFFE ID with this path in this world.
    pub fn id(&self, path: &str) -> String {
        format!("spiffe://{}{path}", self.ca_config.trust_domain)
    }

    /// Registers a workload, and gives its entry's id. Selectors are written as operators write them, `unix:uid:1000`.
    pub async fn register(&self, path: &str, selectors: &[String], ttl: Option<Duration>) -> String {
        self.register_under(NODE, path, selectors, ttl).await
    }

    /// Registers a workload of another node.
    pub async fn register_under(&self, node: &str, path: &str, selectors: &[String], ttl: Option<Duration>) -> String {
        let selectors = selectors.iter().map(|text| text.parse::<Selector>().unwrap());
        let entry = Entry {
            spiffe_id: self.id(path),
            parent_id: self.id(&format!("/hoplite/agent/{node}")),
            selectors: selectors.map(|selector| (&selector).into()).collect(),
            x509_ttl_seconds: ttl.map_or(0, |ttl| u32::try_from(ttl.as_secs()).unwrap()),
            ..Entry::default()
        };
        let response = self
            .admin()
            .await
            .create_entries(CreateEntriesRequest { entries: vec![entry] })
            .await;
        let result = response.unwrap().into_inner().results.pop().unwrap();
        result
            .entry
            .unwrap_or_else(|| panic!("{path} cannot be registered: {}", result.error))
            .id
    }

    /// Changes a registration in place.
    pub async fn update(&self, entry: &str, change: impl FnOnce(&mut Entry)) {
        let mut admin = self.admin().await;
        let asked = ListEntriesRequest {
            id: entry.to_owned(),
            ..ListEntriesRequest::default()
        };
        let mut entries = admin.list_entries(asked).await.unwrap().into_inner().entries;
        change(entries.first_mut().unwrap());
        let response = admin.update_entries(UpdateEntriesRequest { entries }).await;
        let results = response.unwrap().into_inner().results;
        assert!(
            results.iter().all(|result| result.error.is_empty() && !result.existed),
            "{results:?}"
        );
    }

    /// Takes a registration away.
    pub async fn unregister(&self, entry: &str) {
        let response = self
            .admin()
            .await
            .delete_entries(DeleteEntriesRequest {
                ids: vec![entry.to_owned()],
            })
            .await;
        assert_eq!(response.unwrap().into_inner().errors, [""]);
    }

    /// Puts a policy file in the place of the one there is. Proxies notice by themselves.
    pub fn policy(&self, text: &str) {
        files::write_public(&self.dir.path().join("policies/world.cedar"), text.as_bytes()).unwrap();
    }

    /// Publishes these files, signed by `alice`, as the next revision, which it gives.
    pub async fn publish(&self, files: &[(&str, &str)], stage: Stage) -> u64 {
        self.publish_for(files, stage, HOUR).await
    }

    /// Publishes, for a policy that is stale after this long.
    pub async fn publish_for(&self, files: &[(&str, &str)], stage: Stage, lasts: Duration) -> u64 {
        let mut admin = self.admin().await;
        let shown = admin.show_policy(ShowPolicyRequest {}).await.unwrap().into_inner();
        let sources: Vec<Source> = files
            .iter()
            .map(|(name, text)| Source {
                name: (*name).to_owned(),
                text: (*text).to_owned(),
            })
            .collect();
        let now = SystemTime::now();
        let meta = Meta {
            trust_domain: self.ca_config.trust_domain.clone(),
            revision: shown.highest_revision + 1,
            parent: Hash::from_slice(&shown.highest_manifest_sha256),
            created: now,
            expires: now + lasts,
            min_engine: EngineVersion::THIS,
            critical: Vec::new(),
            stage,
            note: None,
        };
        let bundle = Bundle::build(&sources, meta).unwrap().sign(&[&policy_key("alice")]);
        let request = PublishPolicyRequest {
            bundle: bundle.unwrap(),
            expected_revision: shown.highest_revision,
        };
        admin.publish_policy(request).await.unwrap().into_inner().revision
    }

    /// Puts a grant of everything at a service in force, signed by `alice` and `bob`, until a moment.
    pub async fn grant(&self, name: &str, who: &str, service: &str, until: SystemTime) {
        let scope = GrantScope::Workload(id(who));
        let now = SystemTime::now();
        let trust_domain = &self.ca_config.trust_domain;
        let draft = GrantDraft::new(
            trust_domain,
            name,
            "INC-1",
            "a test",
            scope,
            &service.parse().unwrap(),
            (now, until),
            now,
        );
        let one = draft.unwrap().sign(&policy_key("alice")).unwrap();
        let grant = GrantDraft::sign_too(&one, &policy_key("bob")).unwrap();
        self.admin().await.add_grant(AddGrantRequest { grant }).await.unwrap();
    }

    /// Joins one more agent by token, and gives the SVID it would work with.
    pub async fn join(&self, node: &str) -> X509Svid {
        let token = self.token(node).await;
        self.admitted(token, false).await
    }

    /// Spends a token, an agent's or an operator's.
    async fn admitted(&self, token: String, is_operators: bool) -> X509Svid {
        let pair = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&pair).unwrap();
        let verifier = Arc::new(PeerVerifier::new(BundleSet::from_iter([self.bundle()])).unwrap());
        let ca = SpiffeId::parse(&id("/hoplite/ca")).unwrap();
        let config = tls::client_config(None, verifier, ca, &[b"h2"]).unwrap();
        let mut node = NodeClient::new(channel::tls(self.ca_address(), config).await.unwrap());
        let request = JoinRequest {
            token,
            csr: csr.der().to_vec(),
        };
        let answer = match is_operators {
            true => node.login(request).await,
            false => node.join(request).await,
        };
        let chain = answer.unwrap().into_inner().chain;
        let chain = chain.into_iter().map(CertificateDer::from).collect();
        X509Svid::from_parts(chain, PrivatePkcs8KeyDer::from(pair.serialize_der())).unwrap()
    }

    /// Signs somebody in as an operator with this role, below this path if it asks for one.
    pub async fn sign_in(&self, name: &str, role: &str, path: Option<&str>) -> X509Svid {
        let request = CreateOperatorTokenRequest {
            name: name.to_owned(),
            roles: vec![role.to_owned()],
            paths: path.into_iter().map(str::to_owned).collect(),
            ..CreateOperatorTokenRequest::default()
        };
        let token = self.admin().await.create_operator_token(request).await;
        self.admitted(token.unwrap().into_inner().token, true).await
    }

    /// Keeps an operator out.
    pub async fn ban_operator(&self, name: &str) {
        let name = name.to_owned();
        self.admin().await.ban_operator(OperatorRequest { name }).await.unwrap();
    }

    /// Bans the agent of a node.
    pub async fn ban(&self, node: &str) {
        let spiffe_id = id(&format!("/hoplite/agent/{node}"));
        self.admin().await.ban_agent(AgentRequest { spiffe_id }).await.unwrap();
    }

    /// Forgets the agent of a node.
    pub async fn evict(&self, node: &str) {
        let spiffe_id = id(&format!("/hoplite/agent/{node}"));
        self.admin()
            .await
            .evict_agent(AgentRequest { spiffe_id })
            .await
            .unwrap();
    }

    /// The agents that the CA knows.
    pub async fn agents(&self) -> Vec<Agent> {
        let listed = self.admin().await.list_agents(ListAgentsRequest {}).await;
        listed.unwrap().into_inner().agents
    }

    /// What the agent says of itself.
    pub async fn agent_status(&self) -> AgentStatus {
        let channel = channel::unix(&self.agent_config.socket).await.unwrap();
        let mut request = tonic::Request::new(ShowStatusRequest {});
        let yes = tonic::metadata::MetadataValue::from_static("true");
        request.metadata_mut().insert("workload.spiffe.io", yes);
        let shown = DiagnosisClient::new(channel).show_status(request).await;
        shown.unwrap().into_inner()
    }

    /// Puts a new join token where the agent looks for it.
    pub async fn give_token(&self) {
        let token = self.token(NODE).await;
        files::write_private(&self.dir.path().join("token"), token.as_bytes()).unwrap();
    }

    async fn token(&self, node: &str) -> String {
        let request = CreateTokenRequest {
            node: node.to_owned(),
            ttl_seconds: 60,
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

    /// Joins one more node, and starts its agent.
    pub async fn start_node(&self, node: &str) -> hoplite_agent::Running {
        let data_dir = self.dir.path().join(node);
        files::private_dir(&data_dir).unwrap();
        let token = data_dir.join("token");
        files::write_private(&token, self.token(node).await.as_bytes()).unwrap();
        let config = hoplite_agent::Config {
            socket: data_dir.join("agent.sock"),
            data_dir,
            join_token_file: Some(token),
            join: None,
            kubernetes: None,
            metrics_listen: None,
            ..self.agent_config.clone()
        };
        let mut agent = hoplite_agent::start(config, None).await.unwrap();
        assert!(agent.ready().await, "the agent has ended");
        agent
    }

    /// Starts the agent of a node that nobody has invited, and waits until it has joined.
    pub async fn start_attested_node(&self, dir: &str, join: hoplite_agent::JoinSettings) -> hoplite_agent::Running {
        let data_dir = self.dir.path().join(dir);
        files::private_dir(&data_dir).unwrap();
        let config = hoplite_agent::Config {
            socket: data_dir.join("agent.sock"),
            data_dir,
            join_token_file: None,
            join: Some(join),
            metrics_listen: None,
            ..self.agent_config.clone()
        };
        let mut agent = hoplite_agent::start(config, None).await.unwrap();
        let ready = tokio::time::timeout(Duration::from_secs(30), agent.ready()).await;
        assert!(ready.expect("it joins in time"), "the agent has ended");
        agent
    }

    /// Starts an agent with the files of a directory, which no workload of this world knows of.
    pub async fn begin_another_agent(&self, data_dir: &Path) -> hoplite_agent::Running {
        let config = hoplite_agent::Config {
            data_dir: data_dir.to_owned(),
            socket: data_dir.join("agent.sock"),
            join_token_file: None,
            join: None,
            kubernetes: None,
            ..self.agent_config.clone()
        };
        hoplite_agent::start(config, None).await.unwrap()
    }

    /// The trust bundle.
    pub fn bundle(&self) -> TrustBundle {
        self.ca.as_ref().expect("the CA runs").bundle()
    }

    /// Has everybody verify with one more authority. Gives the trust bundle's sequence number.
    pub async fn trust(&self, certificate: CertificateDer<'static>) -> u64 {
        let ca = self.ca.as_ref().expect("the CA runs");
        ca.trust(certificate).await.unwrap()
    }

    /// How many authorities the admin API shows, and the sequence number.
    pub async fn shown_bundle(&self) -> (usize, u64) {
        let shown = self.admin().await.show_bundle(ShowBundleRequest {}).await;
        let shown = shown.unwrap().into_inner();
        (shown.authorities.len(), shown.sequence)
    }

    /// Where the CA publishes its trust bundle.
    pub fn bundle_endpoint(&self) -> SocketAddr {
        self.ca.as_ref().and_then(hoplite_ca::Running::bundle_address).unwrap()
    }

    /// Where the CA shows its metrics.
    pub fn ca_metrics(&self) -> SocketAddr {
        self.ca.as_ref().and_then(hoplite_ca::Running::metrics_address).unwrap()
    }

    /// Where the agent shows its metrics.
    pub fn agent_metrics(&self) -> SocketAddr {
        self.agent
            .as_ref()
            .and_then(hoplite_agent::Running::metrics_address)
            .unwrap()
    }

    /// The CA's port, as `host:port`.
    pub fn ca_address(&self) -> String {
        self.ca_config.listen.to_string()
    }

    /// The CA's socket for operators.
    pub fn admin_socket(&self) -> &Path {
        &self.ca_config.admin_socket
    }

    /// A proxy whose workload has the path `/<name>`, registered for this process when it starts.
    pub fn proxy(&self, name: &str) -> ProxyBuilder<'_> {
        let config = hoplite_proxy::Config {
            name: name.to_owned(),
            workload_api: self.workload_api(),
            spiffe_id: Some(SpiffeId::parse(&self.id(&format!("/{name}"))).unwrap()),
            policy_dir: Some(self.dir.path().join("policies")),
            policy_signers: Default::default(),
            trust_domain: None,
            on_stale_policy: Default::default(),
            reference_check_every: 7,
            audit_dir: self.dir.path().join("audit").join(name),
            state_dir: self.dir.path().join("state").join(name),
            admin_socket: self.dir.path().join(format!("{name}.sock")),
            log_levels: None,
            metrics_listen: Some(any_port()),
            otlp: self.agent_config.otlp.clone(),
            removed_headers: Default::default(),
            useless_frames_max: hoplite_proxy::USELESS_FRAMES_MAX,
            workers: 1,
            limits: Default::default(),
            inbound: Vec::new(),
            outbound: Vec::new(),
        };
        ProxyBuilder {
            world: self,
            config,
            ttl: None,
            is_registered: false,
        }
    }

    /// Registers this process as `path`, and gives the identity as soon as the agent does.
    pub async fn caller(&self, path: &str) -> TestClient {
        self.register(path, &own_selectors(), None).await;
        until("an SVID of our own", async || self.fetch(path).await.ok().flatten()).await
    }

    /// What the agent gives this process now under this path: none if it gives others only.
    pub async fn fetch(&self, path: &str) -> Result<Option<TestClient>, FetchError> {
        let identity = WorkloadApi::open(&self.workload_api()).await?.next().await?;
        let svid = identity.svids.into_iter().find(|svid| svid.spiffe_id().path() == path);
        Ok(svid.map(|svid| TestClient {
            svid: Some(svid),
            bundles: identity.bundles,
        }))
    }

    /// Decision records of all proxies, those of one proxy in order.
    pub fn records(&self, query: &Query) -> Vec<Record> {
        let logs = find_logs(&self.dir.path().join("audit")).unwrap();
        logs.iter()
            .flat_map(|log| read_log(log, query).unwrap())
            .map(Result::unwrap)
            .collect()
    }

    /// The one record with this decision id.
    pub fn record(&self, decision: &str) -> Record {
        let query = Query {
            id: Some(decision.parse().unwrap()),
            ..Query::default()
        };
        let mut records = self.records(&query);
        assert_eq!(records.len(), 1, "records of {decision}");
        records.remove(0)
    }

    /// The agent's socket, as in `SPIFFE_ENDPOINT_SOCKET`.
    pub fn workload_api(&self) -> String {
        format!("unix://{}", self.agent_config.socket.display())
    }

    /// The agent's socket.
    pub fn agent_socket(&self) -> &Path {
        &self.agent_config.socket
    }

    /// A place for a test's own files; private to this user below it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Has the agent decide, with the policy that proxies have, for the workload with this path about this service. The
    /// agent is started anew.
    pub async fn authorize(&mut self, service: &str, path: &str) {
        self.stop_agent().await;
        self.agent_config.authorization = Some(hoplite_agent::Authorization {
            name: NODE.to_owned(),
            audit_dir: self.dir.path().join("audit").join(NODE),
            state_dir: self.dir.path().join("state").join(NODE),
            policy_dir: Some(self.dir.path().join("policies")),
            reference_check_every: 7,
            on_stale_policy: Default::default(),
            services: [(service.parse().unwrap(), SpiffeId::parse(&id(path)).unwrap())].into(),
        });
        self.start_agent().await;
    }

    /// Has CA, agent, and proxies that are built from now on, send to a collector once a second. CA and agent are started anew.
    pub async fn send(&mut self, otlp: OtlpSettings) {
        let otlp = OtlpSettings {
            interval: Span(Duration::from_secs(1)),
            ..otlp
        };
        self.stop_agent().await;
        self.stop_ca().await;
        self.ca_config.otlp = Some(otlp.clone());
        self.agent_config.otlp = Some(otlp);
        self.start_ca().await;
        self.start_agent().await;
    }

    /// Has the agent know callers by the number of their process, as on a kernel that cannot say more. The agent is started
    /// anew.
    pub async fn know_callers_by_number(&mut self) {
        self.stop_agent().await;
        self.agent_config.peer_process = PeerProcess::Pid;
        self.start_agent().await;
    }

    /// Ends the CA.
    pub async fn stop_ca(&mut self) {
        self.ca.take().expect("the CA runs").stop().await;
    }

    /// Brings the CA back, on the same address and with the same store.
    pub async fn start_ca(&mut self) {
        // What was cut off at the end of the one before may hold the store for a moment yet.
        let ca = until("the CA is back", async || {
            hoplite_ca::start(self.ca_config.clone()).await.ok()
        });
        self.ca = Some(ca.await);
    }

    /// Ends the agent.
    pub async fn stop_agent(&mut self) {
        self.agent.take().expect("the agent runs").stop().await;
    }

    /// Brings the agent back.
    pub async fn start_agent(&mut self) {
        let mut agent = hoplite_agent::start(self.agent_config.clone(), None).await.unwrap();
        assert!(agent.ready().await, "the agent has ended");
        self.agent = Some(agent);
    }

    /// Brings the agent back, which may have nothing to serve.
    pub async fn begin_agent(&mut self) {
        self.agent = Some(hoplite_agent::start(self.agent_config.clone(), None).await.unwrap());
    }

    /// What an operator on the CA's machine asks.
    pub async fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(channel::unix(&self.ca_config.admin_socket).await.unwrap())
    }
}

// === impl ProxyBuilder ===

impl ProxyBuilder<'_> {
    /// Lets peers call an HTTP service.
    pub fn http(self, service: &str, app: &HttpApp) -> Self {
        self.inbound(service, InboundProtocol::Http, app.address())
    }

    /// Lets peers connect to a TCP service.
    pub fn tcp(self, service: &str, app: &TcpApp) -> Self {
        self.inbound(service, InboundProtocol::Tcp, app.address())
    }

    /// Lets peers reach what listens at `forward_to`.
    pub fn inbound(mut self, service: &str, protocol: InboundProtocol, forward_to: SocketAddr) -> Self {
        self.config.inbound.push(Inbound {
            listen: ([127, 0, 0, 1], 0).into(),
            service: service.parse().unwrap(),
            protocol,
            forward_to: forward_to.to_string(),
        });
        self
    }

    /// Lets the local service call the peer with the path `/<name>` by HTTP.
    pub fn calls(self, name: &str, peer: SocketAddr) -> Self {
        self.outbound(name, OutboundProtocol::Http, peer)
    }

    /// Lets the local service reach the peer with the path `/<name>`.
    pub fn outbound(mut self, name: &str, protocol: OutboundProtocol, peer: SocketAddr) -> Self {
        self.config.outbound.push(Outbound {
            name: name.parse().unwrap(),
            listen: ([127, 0, 0, 1], 0).into(),
            protocol,
            connect_to: peer.to_string(),
            expect: SpiffeId::parse(&self.world.id(&format!("/{name}"))).unwrap(),
        });
        self
    }

    /// Lets the local service call a peer with this SPIFFE ID by HTTP, of another trust domain perhaps.
    pub fn calls_at(self, name: &str, peer: SocketAddr, expect: &str) -> Self {
        let mut built = self.outbound(name, OutboundProtocol::Http, peer);
        if let Some(outbound) = built.config.outbound.last_mut() {
            outbound.expect = SpiffeId::parse(expect).unwrap();
        }
        built
    }

    /// Has its policy in signed bundles from the agent, and in nothing else.
    pub fn signed(mut self) -> Self {
        self.config.policy_dir = None;
        self.config.policy_signers = policy_signers();
        self
    }

    /// Denies everything once its policy is stale.
    pub fn denies_stale(mut self) -> Self {
        self.config.on_stale_policy = hoplite_decision::OnStale::Deny;
        self
    }

    /// Sends to this collector.
    pub fn otlp(mut self, otlp: OtlpSettings) -> Self {
        self.config.otlp = Some(otlp);
        self
    }

    /// It is registered already.
    pub fn registered(mut self) -> Self {
        self.is_registered = true;
        self
    }

    /// How long its SVIDs live; an hour if not said.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Registers the workload and starts its proxy; it holds its SVID when this returns.
    pub async fn start(self) -> Proxy {
        let path = self.config.spiffe_id.as_ref().unwrap().path().to_owned();
        if !self.is_registered {
            self.world.register(&path, &own_selectors(), self.ttl).await;
        }
        let running = hoplite_proxy::start(self.config.clone()).await.unwrap();
        Proxy {
            running,
            config: self.config,
        }
    }
}

// === impl Proxy ===

impl Proxy {
    /// Where peers reach a service.
    pub fn inbound(&self, service: &str) -> SocketAddr {
        self.running.inbound(service).unwrap()
    }

    /// Where the local service reaches a peer.
    pub fn outbound(&self, name: &str) -> SocketAddr {
        self.running.outbound(name).unwrap()
    }

    /// Where it shows its metrics.
    pub fn metrics(&self) -> SocketAddr {
        self.running.metrics_address().unwrap()
    }

    /// What it says of itself.
    pub async fn status(&self) -> Value {
        hoplite_proxy::admin_status(&self.config.admin_socket).await.unwrap()
    }

    /// The serial number of the SVID it shows.
    pub async fn serial(&self) -> String {
        let status = self.status().await;
        let serial = status.get("svid_serial").and_then(Value::as_str);
        serial.expect("a proxy that runs has an SVID").to_owned()
    }

    /// Where its decision log is.
    pub fn audit_dir(&self) -> PathBuf {
        self.config.audit_dir.clone()
    }

    /// Its socket for operators.
    pub fn admin_socket(&self) -> &Path {
        &self.config.admin_socket
    }

    /// Drains and ends it.
    pub async fn stop(self) {
        self.running.stop().await;
    }
}
