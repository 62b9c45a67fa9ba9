//! Dialling gRPC: over a Unix socket, and over TLS with a configuration of ours.
//!
//! tonic's own TLS would verify peers its way. Here the caller brings a rustls configuration whose verifier is
//! `hoplite-identity`'s, and tonic sees only bytes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Error};

/// A peer that does not answer within this is away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Noticing within a minute that a peer has gone without a word.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The name in the TLS hello and in `:authority`. It means nothing: peers are known by SPIFFE ID.
const PLACEHOLDER_HOST: &str = "hoplite.invalid";

/// Connects to a gRPC server on a Unix socket.
pub async fn unix(path: &Path) -> Result<Channel, Error> {
    let path: PathBuf = path.to_owned();
    endpoint()
        .connect_with_connector(tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
}

/// Connects to a gRPC server over TCP and TLS. `address` is `host:port`.
pub async fn tls(address: String, config: Arc<ClientConfig>) -> Result<Channel, Error> {
    let connector = TlsConnector::from(config);
    endpoint()
        .connect_with_connector(tower::service_fn(move |_| {
            let connector = connector.clone();
            let address = address.clone();
            async move {
                let tcp = TcpStream::connect(address).await?;
                tcp.set_nodelay(true)?;
                let name = ServerName::try_from(PLACEHOLDER_HOST).map_err(std::io::Error::other)?;
                connector.connect(name, tcp).await.map(TokioIo::new)
            }
        }))
        .await
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://hoplite.invalid")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_while_idle(true)
}
