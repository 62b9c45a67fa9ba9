//! Why a chain was refused, where names repeat.
//!
//! webpki looks for issuers by name and tries each that has it; of the reasons it takes the wrong signature of a namesake for
//! the best. Here the issuers are found by their signatures, and the path that they make is asked what is wrong with it. That
//! is for the log alone: the chain has been refused before, and nothing here makes it good.

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ExtendedKeyUsage;
use x509_parser::prelude::FromDer;

/// Signatures that are checked for a reason; a chain with more namesakes keeps webpki's.
const SIGNATURES_MAX: usize = 16;

/// A certificate's name and key, to find out what it signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signer {
    subject: Vec<u8>,
    public_key: Vec<u8>,
}

/// What is wrong with an authority on the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It begins later than now; both in seconds since 1970.
    NotYetValid { not_before: i64, now: i64 },
    /// It ended before now; both in seconds since 1970.
    Expired { not_after: i64, now: i64 },
    /// More authorities are below it than it allows.
    PathLength { below: usize, allowed: usize },
    /// It is not for the use that the chain is put to.
    ExtendedKeyUsage,
}

impl Signer {
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Self {
        Self {
            subject: certificate.subject().as_raw().to_vec(),
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
        }
    }

    fn signed(&self, certificate: &X509Certificate<'_>, algorithms: &WebPkiSupportedAlgorithms) -> bool {
        let (message, signature) = (certificate.tbs_certificate.as_ref(), &certificate.signature_value.data);
        let verifies = |algorithm: &&dyn rustls::pki_types::SignatureVerificationAlgorithm| {
            algorithm.verify_signature(&self.public_key, message, signature).is_ok()
        };
        algorithms.all.iter().any(verifies)
    }
}

/// What is wrong with the path from `leaf` to one of the `authorities`, each signed by the next. None if there is no such
/// path, if no name repeats, or if what is wrong is none of what is looked at.
pub(super) fn reason(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    authorities: &[Signer],
    algorithms: &WebPkiSupportedAlgorithms,
    is_for_use: impl Fn(&ExtendedKeyUsage<'_>) -> bool,
    now: i64,
) -> Option<Fault> {
    let path = signed_path(leaf, intermediates, authorities, algorithms)?;
    path.iter().enumerate().find_map(|(below, certificate)| {
        let validity = certificate.validity();
        let (not_before, not_after) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        if now < not_before {
            return Some(Fault::NotYetValid { not_before, now });
        }
        if now > not_after {
            return Some(Fault::Expired { not_after, now });
        }
        let constraints = certificate.basic_constraints().ok()??.value;
        let allowed = constraints
            .path_len_constraint
            .and_then(|length| usize::try_from(length).ok());
        if let Some(allowed) = allowed.filter(|allowed| below > *allowed) {
            return Some(Fault::PathLength { below, allowed });
        }
        let usage = certificate.extended_key_usage().ok().flatten()?.value;
        (!is_for_use(usage)).then_some(Fault::ExtendedKeyUsage)
    })
}

/// The intermediates of that path, from the leaf up.
fn signed_path<'a>(
    leaf: &CertificateDer<'_>,
    intermediates: &'a [CertificateDer<'a>],
    authorities: &[Signer],
    algorithms: &WebPkiSupportedAlgorithms,
) -> Option<Vec<X509Certificate<'a>>> {
    let parse = |der: &'a CertificateDer<'a>| X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate);
    let parsed: Vec<_> = intermediates.iter().map(parse).collect::<Option<_>>()?;
    let shown: Vec<_> = parsed.iter().map(Signer::of).collect();
    let mut names: Vec<_> = shown.iter().chain(authorities).map(|signer| &signer.subject).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    if names.len() == all {
        return None;
    }

    let mut left = SIGNATURES_MAX;
    let (mut path, mut used) = (Vec::new(), Vec::new());
    let (_, leaf) = X509Certificate::from_der(leaf).ok()?;
    loop {
        let last = path.last().unwrap_or(&leaf);
        let mut has_signed = |signer: &Signer| {
            if signer.subject != last.issuer().as_raw() || left == 0 {
                return false;
            }
            left -= 1;
            signer.signed(last, algorithms)
        };
        if authorities.iter().any(&mut has_signed) {
            return Some(path);
        }
        let unused =
            |(index, signer): (usize, &Signer)| (!used.contains(&index) && has_signed(signer)).then_some(index);
        let next = shown.iter().enumerate().find_map(unused)?;
        used.push(next);
        path.push(parsed.get(next)?.clone());
    }
}
