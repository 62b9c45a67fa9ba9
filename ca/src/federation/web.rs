//! The authorities of the web, by which the endpoint of a foreign trust domain is verified that has no SVID (`https_web`).

use std::path::{Path, PathBuf};

use hoplite_host::files;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Where distributions keep the authorities of the web: Debian, Red Hat, SUSE, Alpine.
const SYSTEMS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Why the authorities of the web cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("the authorities of the web in `{file}` cannot be used: {reason}; name their file with `federation.web_authorities`", file = .file.display())]
#[non_exhaustive]
pub struct WebAuthoritiesError {
    file: PathBuf,
    reason: String,
}

/// Where this system keeps them.
pub(crate) fn of_system() -> PathBuf {
    let found = SYSTEMS.iter().map(Path::new).find(|file| file.is_file());
    let first = SYSTEMS.first().copied().unwrap_or_default();
    found.unwrap_or(Path::new(first)).to_owned()
}

/// Those of a file.
pub(crate) fn roots(file: &Path) -> Result<RootCertStore, WebAuthoritiesError> {
    let unusable = |reason: String| WebAuthoritiesError {
        file: file.to_owned(),
        reason,
    };
    let text = files::read_text(file).map_err(|error| unusable(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        // A system's file may hold one that is of no use; it then vouches for nobody.
        let _ = roots.add(certificate);
    }
    match roots.is_empty() {
        true => Err(unusable("it holds no certificate of an authority".to_owned())),
        false => Ok(roots),
    }
}
