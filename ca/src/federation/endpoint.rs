//! The CA's own bundle endpoint: its trust bundle, for whoever federates with it (F-1 to F-4).
//!
//! Public keys and nothing else: whoever reaches the address may read them, and nobody is asked for a certificate.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hoplite_host::shutdown::Shutdown;
use hoplite_host::slots::Bounds;
use hoplite_identity::TrustBundle;
use hoplite_telemetry::{Counter, Family, Page};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::door::Door;
use crate::federation::settings::BundleEndpointSettings;
use crate::web::{self, WebError, WebTls};

/// Who reads at a time. Each federated CA reads once in a while.
const CONNECTIONS_MAX: usize = 64;

/// From one address. Several replicas may be behind one.
const CONNECTIONS_PER_ADDRESS_MAX: usize = 16;

/// Where the bundle is.
const PATH: &str = "/";

/// Nobody between us and them keeps it: a key that is revoked counts until they hear of it.
const CACHE: &str = "no-cache";

/// Why it cannot be served. One sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleEndpointError {
    /// Somebody else has the address, or it is none of this machine's.
    #[error(
        "cannot listen on `bundle_endpoint.listen = {listen}`: {source}; choose another address, or stop who uses it"
    )]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// Certificate or key cannot be used.
    #[error("`bundle_endpoint.certificate` and `bundle_endpoint.key`: {0}")]
    Web(#[from] WebError),
}

/// The listener before it serves: its address is taken, its files are read.
pub(crate) struct BundleDoor {
    listener: TcpListener,
    address: SocketAddr,
    tls: WebTls,
    hint: Duration,
    is_web: bool,
}

// === impl BundleEndpointSettings ===

impl BundleEndpointSettings {
    /// The files as they are now; none where the CA shows its own SVID.
    pub(crate) fn tls(&self) -> Result<Option<Arc<ServerConfig>>, BundleEndpointError> {
        match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => Ok(Some(web::server_config(certificate, key)?)),
            _ => Ok(None),
        }
    }
}

// === impl BundleDoor ===

impl BundleDoor {
    pub(crate) async fn bind(settings: &BundleEndpointSettings) -> Result<Self, BundleEndpointError> {
        let (tls, files) = (WebTls::default(), settings.tls()?);
        let is_web = files.is_some();
        tls.set(files);
        let listen = settings.listen;
        let bound = async {
            let listener = TcpListener::bind(listen).await?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, address) = bound
            .await
            .map_err(|source| BundleEndpointError::Listen { listen, source })?;
        Ok(Self {
            listener,
            address,
            tls,
            hint: settings.refresh_hint.0,
            is_web,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate of the web that it shows, for who renews it; none where it is the CA's own.
    pub(crate) fn tls(&self) -> Option<WebTls> {
        self.is_web.then(|| self.tls.clone())
    }

    /// Answers until the shutdown, and counts what was asked for: `bundle`, `other`.
    pub(crate) async fn serve(
        self,
        bundles: watch::Receiver<Arc<TrustBundle>>,
        mut door: watch::Receiver<Door>,
        reads: Family<2, Counter>,
        shutdown: Shutdown,
    ) {
        let profile = if self.is_web { "https_web" } else { "https_spiffe" };
        tracing::info!(address = %self.address, profile, "serving the trust bundle");
        let hint = self.hint;
        let page = move |path: &str| {
            let is_bundle = path == PATH;
            let labels = if is_bundle {
                ["bundle", "found"]
            } else {
                ["other", "not_found"]
            };
            reads.get(labels).inc();
            is_bundle.then(|| Page {
                kind: "application/json",
                cache: CACHE,
                text: bundles.borrow().to_spiffe_json(hint) + "\n",
            })
        };
        let bounds = Bounds::network(CONNECTIONS_MAX, CONNECTIONS_PER_ADDRESS_MAX);
        let serving = web::serve(
            self.listener,
            ("bundle endpoint", bounds),
            Some(self.tls.clone()),
            page,
            shutdown,
        );
        if self.is_web {
            return serving.await;
        }
        // F-4: whoever has our newest bundle knows us by the SVID of now.
        let showing = async {
            loop {
                match door.borrow_and_update().public_config() {
                    Ok(config) => self.tls.set(Some(config)),
                    Err(error) => tracing::error!(%error, "the bundle endpoint shows the certificate of before"),
                }
                if door.changed().await.is_err() {
                    return std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            () = serving => {}
            () = showing => {}
        }
    }
}
