//! Dialling gRPC: over a Unix socket, and over TLS with a configuration of ours.
//!
//! tonic's own TLS would verify peers its way. Here the caller brings a rustls configuration whose verifier is
//! `hoplite-identity`'s, and tonic sees only bytes.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hoplite_identity::{Fingerprint, HostPort, NotIntroduced, TrustBundle, introduction};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Error};

use crate::hearing::Hearing;

/// A peer that does not answer within this is away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Noticing within a minute that a peer has gone without a word.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Between programs of one machine: one that is stopped, or hangs, is noticed within the sum of both.
const LOCAL_SILENCE: Duration = Duration::from_secs(2);
const LOCAL_PATIENCE: Duration = Duration::from_secs(5);

/// The longest head of an answer of a server that is somebody else's.
const HEAD_BYTES_MAX: u32 = 16 << 10;

/// The name in the TLS hello and in `:authority`. It means nothing: peers are known by SPIFFE ID.
const PLACEHOLDER_HOST: &str = "hoplite.invalid";

/// Connects to a gRPC server on a Unix socket. One that does not even answer a PING within seven seconds is away: its calls fail, however
/// long an answer may take that is being made.
pub async fn unix(path: &Path) -> Result<Channel, Error> {
    let path: PathBuf = path.to_owned();
    endpoint()
        .http2_keep_alive_interval(LOCAL_SILENCE)
        .keep_alive_timeout(LOCAL_PATIENCE)
        .connect_with_connector(tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
}

/// Connects to a gRPC server over TCP and TLS. `address` is `host:port`.
pub async fn tls(address: String, config: Arc<ClientConfig>) -> Result<Channel, Error> {
    tls_hearing(address, config, None, |_| {}).await
}

/// The same, and `hear` is told of the alert that ends the connection. With TLS 1.3 a server looks at the client's certificate when
/// the handshake is over for the client, and what a call then fails with says nothing of the reason. To one of several servers that
/// do equally, a peer that has gone without a word is noticed within twice the time `silence`.
pub async fn tls_hearing(
    address: String,
    config: Arc<ClientConfig>,
    silence: Option<Duration>,
    hear: impl Fn(AlertDescription) + Clone + Send + Sync + Unpin + 'static,
) -> Result<Channel, Error> {
    let endpoint = match silence {
        Some(silence) => endpoint()
            .http2_keep_alive_interval(silence)
            .keep_alive_timeout(silence),
        None => endpoint(),
    };
    let connector = TlsConnector::from(config);
    endpoint
        .connect_with_connector(tower::service_fn(move |_| {
            let connector = connector.clone();
            let address = address.clone();
            let hear = hear.clone();
            async move {
                let tcp = TcpStream::connect(address).await?;
                tcp.set_nodelay(true)?;
                let name = ServerName::try_from(PLACEHOLDER_HOST).map_err(std::io::Error::other)?;
                let stream = connector.connect(name, tcp).await?;
                Ok::<_, io::Error>(TokioIo::new(Hearing { stream, hear }))
            }
        }))
        .await
}

/// What the TLS of the next connection is made with, and the name that the server has to prove.
pub type NextTls = Arc<dyn Fn() -> io::Result<(Arc<ClientConfig>, ServerName<'static>)> + Send + Sync>;

/// A server that is dialled when it is first asked, and again whenever its connection has gone. `tls` is asked for each
/// connection; without it they are plain text.
pub fn lazily(address: &HostPort, tls: Option<NextTls>) -> Channel {
    /// Either.
    trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}
    impl<S: AsyncRead + AsyncWrite + Send + Unpin> Bytes for S {}

    let host = address.as_str().to_owned();
    let connector = tower::service_fn(move |_| {
        let (address, tls) = (host.clone(), tls.clone());
        async move {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            let stream: Box<dyn Bytes> = match tls {
                None => Box::new(tcp),
                Some(tls) => {
                    let (config, name) = tls()?;
                    Box::new(TlsConnector::from(config).connect(name, tcp).await?)
                }
            };
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    // It is dialled by `address` anyway; this is what it is told of itself.
    let named = Endpoint::from_shared(format!("http://{address}"));
    let endpoint = named
        .unwrap_or_else(|_| Endpoint::from_static("http://hoplite.invalid"))
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .http2_max_header_list_size(HEAD_BYTES_MAX);
    endpoint.connect_with_connector_lazy(connector)
}

/// Why a CA could not be introduced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IntroduceError {
    /// The name has no address.
    #[error("the name `{host}` has no address here ({source}); check it, and this machine's DNS")]
    Name {
        /// The name.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// Nobody listens.
    #[error("nothing listens at `{address}`; start the CA there (`hoplite ca run`), or correct the address")]
    Closed {
        /// The address.
        address: HostPort,
    },
    /// Nobody answers.
    #[error(
        "nothing answers at `{address}` within {} s; let TCP port {} through every firewall on the way, or correct the address",
        CONNECT_TIMEOUT.as_secs(), .address.port()
    )]
    Silent {
        /// The address.
        address: HostPort,
    },
    /// The network has no way there.
    #[error("cannot connect to `{address}`: {source}")]
    Connect {
        /// The address.
        address: HostPort,
        /// The system's reason.
        source: io::Error,
    },
    /// What answers speaks something else.
    #[error("what answers at `{address}` is no Hoplite CA, or is older than this program: {source}")]
    Handshake {
        /// The address.
        address: HostPort,
        /// What TLS says.
        source: io::Error,
    },
    /// It is another one.
    #[error("what answers at `{address}` is not believed: {reason}")]
    Refused {
        /// The address.
        address: HostPort,
        /// Why not.
        #[source]
        reason: NotIntroduced,
    },
    /// There is no TLS 1.3.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// Connects to a CA of which nothing is known but its authority's fingerprint, and gives the bundle with which it is
/// verified from then on. The connection is for that alone: nothing is sent on it.
///
/// # Errors
/// It cannot be reached, or is not the CA of that fingerprint.
pub async fn introduce(
    address: &HostPort,
    fingerprint: Fingerprint,
    now: SystemTime,
) -> Result<TrustBundle, IntroduceError> {
    let connector = TlsConnector::from(introduction::client_config(fingerprint, &[b"h2"])?);
    let silent = || IntroduceError::Silent {
        address: address.clone(),
    };
    let addresses = lookup_host(address.as_str()).await;
    let addresses: Vec<SocketAddr> = addresses
        .map_err(|source| IntroduceError::Name {
            host: address.host().to_owned(),
            source,
        })?
        .collect();
    let tcp = timeout(CONNECT_TIMEOUT, TcpStream::connect(addresses.as_slice())).await;
    let tcp = tcp.map_err(|_| silent())?.map_err(|source| match source.kind() {
        io::ErrorKind::ConnectionRefused => IntroduceError::Closed {
            address: address.clone(),
        },
        io::ErrorKind::TimedOut => silent(),
        _ => IntroduceError::Connect {
            address: address.clone(),
            source,
        },
    })?;
    let refused = |reason| IntroduceError::Refused {
        address: address.clone(),
        reason,
    };
    let name = ServerName::try_from(PLACEHOLDER_HOST).map_err(|e| IntroduceError::Handshake {
        address: address.clone(),
        source: io::Error::other(e),
    })?;
    let stream = timeout(CONNECT_TIMEOUT, connector.connect(name, tcp))
        .await
        .map_err(|_| silent())?;
    let stream = stream.map_err(|source| {
        let reason = source
            .get_ref()
            .and_then(|error| error.downcast_ref())
            .and_then(introduction::refusal);
        match reason {
            Some(reason) => refused(reason),
            None => IntroduceError::Handshake {
                address: address.clone(),
                source,
            },
        }
    })?;
    introduction::introduced(fingerprint, stream.get_ref().1, now).map_err(refused)
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://hoplite.invalid")
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_while_idle(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn refusal(address: &str) -> String {
        let fingerprint = Fingerprint::parse(&"a".repeat(64)).unwrap();
        let address = HostPort::parse(address).unwrap();
        let introduced = introduce(&address, fingerprint, std::time::UNIX_EPOCH).await;
        introduced.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn who_is_no_ca_is_told_from_who_is_not_there() {
        let closed = refusal("127.0.0.1:1").await;
        assert!(closed.contains("nothing listens at `127.0.0.1:1`"), "{closed}");
        let nowhere = refusal("nowhere.invalid:7443").await;
        assert!(
            nowhere.contains("the name `nowhere.invalid` has no address"),
            "{nowhere}"
        );

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let web = async {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let _ = tcp.read(&mut [0; 64]).await;
            tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        };
        let (no_tls, ()) = tokio::join!(refusal(&address), web);
        assert!(no_tls.contains("no Hoplite CA"), "{no_tls}");

        // A connection, and then not a word: a firewall that drops, or a stranger.
        let silent = refusal(&address).await;
        assert!(silent.contains("within 5 s") && silent.contains("firewall"), "{silent}");
    }
}
