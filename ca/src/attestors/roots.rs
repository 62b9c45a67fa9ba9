//! Other authorities that vouch for nodes, and chains of certificates that end at one of them.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hoplite_host::files;
use hoplite_identity::{CertificateDer, Fingerprint, pem};
use rustls::pki_types::{TrustAnchor, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, Error, KeyUsage, anchor_from_trusted_cert};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::attestors::{BadSetting, NotProven};

/// Certificates of one chain. Real ones have two or three; a long one costs its verifier time.
const CHAIN_MAX: usize = 6;

/// Authorities of one attestor.
const ROOTS_MAX: usize = 64;

/// The authorities of one attestor.
pub(crate) struct Roots(Vec<Root>);

/// One of them.
pub(crate) struct Root {
    anchor: TrustAnchor<'static>,
    pub(crate) fingerprint: String,
}

// === impl Roots ===

impl Roots {
    /// Those in the file that a setting names.
    pub(crate) fn read(key: &'static str, file: &Path) -> Result<Self, BadSetting> {
        let bad = |reason: String| BadSetting {
            key,
            value: file.display().to_string(),
            reason,
        };
        let text = files::read_trusted_text(file).map_err(|error| bad(error.to_string()))?;
        let certificates = pem::certificates(&text).map_err(|error| bad(error.to_string()))?;
        if !(1..=ROOTS_MAX).contains(&certificates.len()) {
            return Err(bad("it holds no certificate, or more than 64".to_owned()));
        }
        let root = |certificate: &CertificateDer<'static>| {
            // A leaf as a root would make whoever has its key an authority.
            let parsed = X509Certificate::from_der(certificate).ok();
            let is_authority = parsed.is_some_and(|(rest, parsed)| rest.is_empty() && parsed.is_ca());
            let anchor = anchor_from_trusted_cert(certificate).ok().filter(|_| is_authority);
            let anchor = anchor.ok_or_else(|| bad("one of its certificates is not one of an authority".to_owned()))?;
            Ok(Root {
                anchor: anchor.to_owned(),
                fingerprint: Fingerprint::of(certificate).to_string(),
            })
        };
        certificates.iter().map(root).collect::<Result<_, _>>().map(Self)
    }

    /// The one that vouches for this chain now.
    pub(crate) fn vouches(
        &self,
        leaf: &EndEntityCert<'_>,
        between: &[CertificateDer<'_>],
        usage: KeyUsage,
        now: SystemTime,
    ) -> Result<&Root, Error> {
        let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO));
        let mut reason = Error::UnknownIssuer;
        for root in &self.0 {
            let anchors = std::slice::from_ref(&root.anchor);
            match leaf.verify_for_usage(ALL_VERIFICATION_ALGS, anchors, between, now, usage, None, None) {
                Ok(_) => return Ok(root),
                Err(Error::UnknownIssuer) => {}
                Err(error) => reason = error,
            }
        }
        Err(reason)
    }
}

/// A chain that is shown, leaf first.
pub(crate) fn chain(shown: &[Vec<u8>]) -> Result<Vec<CertificateDer<'static>>, NotProven> {
    if !(1..=CHAIN_MAX).contains(&shown.len()) {
        return Err(NotProven::Malformed("chain of 1 to 6 certificates"));
    }
    Ok(shown.iter().map(|der| CertificateDer::from(der.clone())).collect())
}
