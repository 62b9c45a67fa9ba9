//! Pages that the CA serves to anybody: one listener, one way to show a certificate, that of the web or the CA's own.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use hoplite_host::files::{self, FileError};
use hoplite_host::shutdown::Shutdown;
use hoplite_host::slots::Bounds;
use hoplite_identity::tls;
use hoplite_telemetry::{Page, serve_pages};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// The certificate of now; none for plain HTTP. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct WebTls(Arc<RwLock<Option<Arc<ServerConfig>>>>);

/// Why a certificate of the web cannot be shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WebError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is no PEM.
    #[error("`{path}` holds no {what} in PEM: {reason}", path = .path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Both files are readable and do not fit.
    #[error("they cannot be used together: {0}")]
    Tls(#[from] rustls::Error),
}

/// For a server that shows the certificate of these files, as they are now.
pub(crate) fn server_config(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, WebError> {
    let bad = |path: &Path, what, reason: String| WebError::Pem {
        path: path.to_owned(),
        what,
        reason,
    };
    let text = files::read_text(certificate)?;
    let chain: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let chain = chain.map_err(|error| bad(certificate, "certificate", error.to_string()))?;
    if chain.is_empty() {
        return Err(bad(certificate, "certificate", "there is none in it".to_owned()));
    }
    let secret = zeroize::Zeroizing::new(files::read_private(key)?);
    // What is wrong with it is not said in its words: they might be the key.
    let parsed = PrivateKeyDer::from_pem_slice(&secret);
    let parsed = parsed.map_err(|_| bad(key, "private key", "it is none, or an encrypted one".to_owned()))?;
    Ok(tls::web_server_config(chain, parsed, &[b"http/1.1"])?)
}

/// Answers until the shutdown: over TLS with the certificate of the moment, or in plain HTTP.
pub(crate) async fn serve<P>(
    listener: TcpListener,
    listening: (&'static str, Bounds),
    tls: Option<WebTls>,
    page: P,
    shutdown: Shutdown,
) where
    P: Fn(&str) -> Option<Page> + Send + Sync + 'static,
{
    let Some(tls) = tls else {
        let open = |stream: TcpStream| std::future::ready(Ok(stream));
        return serve_pages(listener, listening, open, page, shutdown).await;
    };
    let open = move |stream: TcpStream| {
        let config = tls.get();
        async move {
            let config = config.ok_or_else(|| io::Error::other("there is no certificate"))?;
            TlsAcceptor::from(config).accept(stream).await
        }
    };
    serve_pages(listener, listening, open, page, shutdown).await;
}

// === impl WebTls ===

impl WebTls {
    /// Newcomers are shown this certificate from now on.
    pub(crate) fn set(&self, config: Option<Arc<ServerConfig>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// Whether there is a certificate.
    pub(crate) fn is_some(&self) -> bool {
        self.get().is_some()
    }

    fn get(&self) -> Option<Arc<ServerConfig>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
