//! Whether a chain leads from a leaf to one of some authorities (RFC 5280, as far as X.509-SVIDs need it).

use std::time::{SystemTime, UNIX_EPOCH};

use x509_parser::error::X509Error;
use x509_parser::prelude::{GeneralName, ParsedExtension, X509Certificate};

/// Authorities between a leaf and the top, at most.
const DEPTH_MAX: usize = 8;

/// Why a chain leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoPath {
    /// It is broken.
    #[error("{0}")]
    Broken(String),
    /// It may be whole: we cannot tell.
    #[error("{0}")]
    Unknown(String),
}

/// Follows the chain from its leaf.
pub(crate) fn find(chain: &[X509Certificate<'_>], authorities: &[X509Certificate<'_>]) -> Result<(), NoPath> {
    let Some((leaf, between)) = chain.split_first() else {
        return Err(NoPath::Broken("there is no certificate".to_owned()));
    };
    follow(leaf, between, authorities, 0)
}

fn follow(
    subject: &X509Certificate<'_>,
    between: &[X509Certificate<'_>],
    authorities: &[X509Certificate<'_>],
    depth: usize,
) -> Result<(), NoPath> {
    let mut why = None;
    let vouches = |issuer: &X509Certificate<'_>| issuer.subject().as_raw() == subject.issuer().as_raw();
    for issuer in authorities.iter().filter(|issuer| vouches(issuer)) {
        match step(subject, issuer, depth) {
            Ok(()) => return Ok(()),
            Err(error) => _ = why.insert(error),
        }
    }
    if depth < DEPTH_MAX {
        for issuer in between.iter().filter(|issuer| vouches(issuer) && *issuer != subject) {
            match step(subject, issuer, depth).and_then(|()| follow(issuer, between, authorities, depth + 1)) {
                Ok(()) => return Ok(()),
                Err(error) => _ = why.insert(error),
            }
        }
    }
    Err(why.unwrap_or_else(|| {
        NoPath::Broken(format!(
            "nobody in the bundle or the chain is `{}`, who is to have signed `{}`",
            subject.issuer(),
            subject.subject()
        ))
    }))
}

/// Whether one certificate vouches for another that has `depth` authorities below it.
fn step(subject: &X509Certificate<'_>, issuer: &X509Certificate<'_>, depth: usize) -> Result<(), NoPath> {
    let name = issuer.subject();
    let constraints = issuer.basic_constraints().ok().flatten();
    if !constraints.as_ref().is_some_and(|constraints| constraints.value.ca) {
        return Err(NoPath::Broken(format!("`{name}` is no CA")));
    }
    let length = constraints.and_then(|constraints| constraints.value.path_len_constraint);
    if length.is_some_and(|length| (length as usize) < depth) {
        return Err(NoPath::Broken(format!(
            "`{name}` may not have {depth} authorities below it"
        )));
    }
    if issuer
        .key_usage()
        .ok()
        .flatten()
        .is_some_and(|usage| !usage.value.key_cert_sign())
    {
        return Err(NoPath::Broken(format!("`{name}` may not sign certificates")));
    }
    match subject.verify_signature(Some(issuer.public_key())) {
        Ok(()) => Ok(()),
        Err(X509Error::SignatureUnsupportedAlgorithm) => Err(NoPath::Unknown(format!(
            "the signature algorithm {} is none that this suite knows",
            subject.signature_algorithm.algorithm
        ))),
        Err(_) => Err(NoPath::Broken(format!(
            "the signature of `{name}` below `{}` is wrong",
            subject.subject()
        ))),
    }
}

/// Whether a certificate is valid at a moment; if not, how.
pub(crate) fn is_valid(certificate: &X509Certificate<'_>, now: SystemTime) -> Result<(), String> {
    let now = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    let validity = certificate.validity();
    let name = certificate.subject();
    if validity.not_before.timestamp() > now {
        Err(format!("`{name}` is not valid before {}", validity.not_before))
    } else if validity.not_after.timestamp() < now {
        Err(format!("`{name}` is not valid after {}", validity.not_after))
    } else {
        Ok(())
    }
}

/// The hosts of URIs that an authority permits and excludes; `None` if it constrains no URIs.
pub(crate) fn uri_constraints<'a>(authority: &'a X509Certificate<'_>) -> Option<(Vec<&'a str>, Vec<&'a str>)> {
    let constraints = authority
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::NameConstraints(constraints) => Some(constraints),
            _ => None,
        })?;
    let hosts = |subtrees: &'a Option<Vec<x509_parser::extensions::GeneralSubtree<'_>>>| -> Vec<&'a str> {
        let uri = |subtree: &'a x509_parser::extensions::GeneralSubtree<'_>| match subtree.base {
            GeneralName::URI(host) => Some(host),
            _ => None,
        };
        subtrees.iter().flatten().filter_map(uri).collect()
    };
    let (permitted, excluded) = (
        hosts(&constraints.permitted_subtrees),
        hosts(&constraints.excluded_subtrees),
    );
    (!permitted.is_empty() || !excluded.is_empty()).then_some((permitted, excluded))
}

/// Whether a host is within a constraint: a name is that host, a name that begins with a dot is every host below.
pub(crate) fn is_within(host: &str, constraint: &str) -> bool {
    match constraint.strip_prefix('.') {
        Some(_) => host.len() > constraint.len() && host.ends_with(constraint),
        None => host == constraint,
    }
}
