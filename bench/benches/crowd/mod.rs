//! Simulated agents, each with an address, a key and a TLS connection of its own, and the CA that they are agents of: a process of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hoplite_ca::Config;
use hoplite_identity::{
    BundleSet, CertificateDer, PeerVerifier, PrivatePkcs8KeyDer, SpiffeId, TrustBundle, TrustDomain, X509Svid, tls,
};
use hoplite_wire::ca::admin_client::AdminClient;
use hoplite_wire::ca::node_client::NodeClient;
use hoplite_wire::ca::{CreateTokenRequest, JoinRequest};
use hoplite_wire::channel;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use tokio::net::TcpSocket;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Error};

pub(crate) const DOMAIN: &str = "bench.test";
/// Agents that join or connect at once.
pub(crate) const AT_ONCE: usize = 64;
/// Agents that join on one connection: strangers may stay for a minute.
const GROUP: usize = 200;

/// The other process.
pub(crate) async fn ca(dir: &Path, port: u16) {
    let config = Config::load(&configured(dir, port)).unwrap();
    let running = hoplite_ca::start(config).await.unwrap();
    let address = running.node_address().to_string();
    hoplite_host::files::write_public(&dir.join("address"), address.as_bytes()).unwrap();
    std::future::pending::<()>().await;
}

/// The CA's file, for a port, or any that is free.
fn configured(dir: &Path, port: u16) -> PathBuf {
    let (file, at) = (dir.join("ca.toml"), dir.display());
    let text = format!(
        "founds = true\ntrust_domain = \"{DOMAIN}\"\ndata_dir = \"{at}/ca\"\nlisten = \"127.0.0.1:{port}\"\nadmin_socket = \"{at}/ca.sock\"\n"
    );
    hoplite_host::files::write_public(&file, text.as_bytes()).unwrap();
    file
}

/// All join, each by a token of its own that grants the label `all`.
pub(crate) async fn join(
    agents: usize,
    socket: &Path,
    address: SocketAddr,
    verifier: &Arc<PeerVerifier>,
) -> Vec<X509Svid> {
    let admin = AdminClient::new(channel::unix(socket).await.unwrap());
    let mut joined = Vec::with_capacity(agents);
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let numbers: Vec<usize> = (0..agents).collect();
    for group in numbers.chunks(GROUP) {
        let node = NodeClient::new(dial(group[0], None, address, verifier).await.unwrap());
        let mut joining = JoinSet::new();
        for &number in group {
            let (mut admin, mut node, at_once) = (admin.clone(), node.clone(), at_once.clone());
            joining.spawn(async move {
                let _permit = at_once.acquire_owned().await.unwrap();
                let request = CreateTokenRequest {
                    node: format!("n{number}"),
                    ttl_seconds: 600,
                    labels: vec!["all".into()],
                    ..CreateTokenRequest::default()
                };
                let token = admin.create_token(request).await.unwrap().into_inner().token;
                let pair = KeyPair::generate().unwrap();
                let csr = CertificateParams::default().serialize_request(&pair).unwrap();
                let request = JoinRequest {
                    token,
                    csr: csr.der().to_vec(),
                };
                let chain = node.join(request).await.unwrap().into_inner().chain;
                let chain = chain.into_iter().map(CertificateDer::from).collect();
                X509Svid::from_parts(chain, PrivatePkcs8KeyDer::from(pair.serialize_der())).unwrap()
            });
        }
        joined.extend(joining.join_all().await);
    }
    joined
}

/// From an address of its own.
///
/// # Errors
/// The CA is not there, or does not answer.
pub(crate) async fn dial(
    number: usize,
    svid: Option<&X509Svid>,
    ca: SocketAddr,
    verifier: &Arc<PeerVerifier>,
) -> Result<Channel, Error> {
    let id = SpiffeId::parse(&format!("spiffe://{DOMAIN}/hoplite/ca")).unwrap();
    let config = tls::client_config(svid, verifier.clone(), id, &[b"h2"]).unwrap();
    let connector = TlsConnector::from(config);
    let [_, _, high, low] = u32::try_from(number + 2).unwrap().to_be_bytes();
    let from = SocketAddr::from((Ipv4Addr::new(127, 1, high, low), 0));
    let endpoint = Endpoint::from_static("http://hoplite.invalid");
    let connected = endpoint.connect_with_connector(tower::service_fn(move |_| {
        let connector = connector.clone();
        async move {
            let socket = TcpSocket::new_v4()?;
            socket.bind(from)?;
            let tcp = socket.connect(ca).await?;
            let name = rustls::pki_types::ServerName::try_from("hoplite.invalid").map_err(std::io::Error::other)?;
            connector.connect(name, tcp).await.map(TokioIo::new)
        }
    }));
    connected.await
}

/// The CA's process.
pub(crate) struct Ca {
    process: Child,
    address: SocketAddr,
}

// === impl Ca ===

impl Ca {
    /// This program's CA, or that of another; at a port, or at any that is free.
    pub(crate) fn start(dir: &Path, program: Option<&Path>, port: Option<u16>) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, port.unwrap_or(0)));
        let port = port.unwrap_or_else(|| std::net::TcpListener::bind(any).unwrap().local_addr().unwrap().port());
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut command = match program {
            Some(program) => {
                let mut command = Command::new(program);
                command.args(["ca", "run", "--config"]).arg(configured(dir, port));
                command.stderr(Stdio::null());
                command
            }
            None => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.arg("--ca").arg(dir).arg(port.to_string());
                command
            }
        };
        let _ = std::fs::remove_file(dir.join("ca.sock"));
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        // The bundle comes after the socket, and before the first agent is let in.
        let is_there = |file: &str| dir.join(file).exists();
        while !is_there("ca.sock") || !is_there("ca/bundle.pem") || std::net::TcpStream::connect(address).is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { process, address }
    }

    /// Where agents connect.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// By what its agents know it.
    pub(crate) fn verifier(&self, dir: &Path) -> Arc<PeerVerifier> {
        let bundle = std::fs::read_to_string(dir.join("ca/bundle.pem")).unwrap();
        let bundle = TrustBundle::from_pem(TrustDomain::parse(DOMAIN).unwrap(), &bundle, 0).unwrap();
        Arc::new(PeerVerifier::new(BundleSet::from_iter([bundle])).unwrap())
    }

    /// Seconds of processor time so far.
    pub(crate) fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        ticks as f64 / 100.0
    }

    /// What it has in memory now, in KiB.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn told(&self, when: &str) {
        println!("CA's memory {when}: {} kB", self.resident());
    }
}

impl Drop for Ca {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
