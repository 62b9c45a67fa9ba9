//! The way to the collector: plain, by its SPIFFE ID, or by the authorities of the web.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hoplite_identity::SpiffeId;
use hoplite_wire::channel::{self, NextTls};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};
use tonic::transport::Channel;

use crate::known::{ByIdentity, OtlpError};
use crate::settings::OtlpSettings;

/// Where distributions keep the authorities of the web: Debian, Red Hat, SUSE, Alpine.
const SYSTEMS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The name in the TLS hello where it means nothing: a collector with a SPIFFE ID is known by that.
const PLACEHOLDER_NAME: &str = "hoplite.invalid";

/// How the collector is known, with all that can be wrong about it behind.
#[derive(Debug, Clone)]
pub(crate) enum Known {
    /// It is not: what is sent is plain text.
    Plain,
    /// By its SPIFFE ID.
    Identity(SpiffeId),
    /// By its name, for which authorities of the web vouch.
    Name(Arc<ClientConfig>, ServerName<'static>),
}

/// Reads what is needed to know the collector.
pub(crate) fn known(settings: &OtlpSettings) -> Result<Known, OtlpError> {
    if !settings.endpoint.is_tls {
        return Ok(Known::Plain);
    }
    if let Some(id) = &settings.spiffe_id {
        return Ok(Known::Identity(id.clone()));
    }
    let config = by_authorities(settings)?;
    let host = settings.endpoint.address.host();
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(host).map_err(|error| OtlpError::Endpoint {
        endpoint: settings.endpoint.to_string(),
        reason: error.to_string(),
    })?;
    Ok(Known::Name(config, name))
}

/// A way that is made when it is needed, and again whenever it is gone.
pub(crate) fn dial(settings: &OtlpSettings, known: Known, identity: ByIdentity) -> Channel {
    let tls: Option<NextTls> = match known {
        Known::Plain => None,
        Known::Identity(id) => Some(Arc::new(move || {
            let name = ServerName::try_from(PLACEHOLDER_NAME).map_err(io::Error::other)?;
            Ok((identity(&id)?, name))
        })),
        Known::Name(config, name) => Some(Arc::new(move || Ok((config.clone(), name.clone())))),
    };
    channel::lazily(&settings.endpoint.address, tls)
}

fn by_authorities(settings: &OtlpSettings) -> Result<Arc<ClientConfig>, OtlpError> {
    let file = settings.ca_file.clone().unwrap_or_else(system);
    let unreadable = |reason: String| OtlpError::Authorities {
        endpoint: settings.endpoint.to_string(),
        file: file.clone(),
        reason,
    };
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(&file).map_err(|error| unreadable(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| unreadable(error.to_string()))?;
        // A system's file may hold one that is of no use; it then vouches for nobody.
        let _ = roots.add(certificate);
    }
    if roots.is_empty() {
        return Err(unreadable("it holds no certificate of an authority".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]);
    let config = config.map_err(|error| OtlpError::Endpoint {
        endpoint: settings.endpoint.to_string(),
        reason: error.to_string(),
    })?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn system() -> PathBuf {
    let found = SYSTEMS.iter().map(Path::new).find(|file| file.is_file());
    found
        .unwrap_or(Path::new("/etc/ssl/certs/ca-certificates.crt"))
        .to_owned()
}
