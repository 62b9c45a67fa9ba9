//! URI name constraints (RFC 5280 4.2.1.10), which rustls-webpki refuses whatever they say.
//!
//! A certificate that has some is shown to webpki with its URI subtrees renamed to a form of name that no peer has, and
//! with its signature checked over what its issuer signed. What the subtrees say is then asked of every path that webpki
//! finds. A certificate is known by its signed part: whoever shows the renamed one himself has shown the original.

use std::ops::Range;

use rustls::pki_types::{AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, GeneralSubtree};

use crate::{SpiffeId, profile};

/// `uniformResourceIdentifier` (6) and `registeredID` (8) of RFC 5280 4.2.1.6. A peer with the second among its names is refused by
/// webpki if an authority constrains that form, so the renaming can only refuse more.
const URI_TAG: u8 = 0x86;
const REGISTERED_ID_TAG: u8 = 0x88;

/// What an authority says of the URIs of those below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct UriConstraints {
    /// Hosts; none means that every one is permitted.
    permitted: Option<Vec<String>>,
    excluded: Vec<String>,
}

/// A certificate without its URI constraints, and what they were.
#[derive(Debug)]
pub(super) struct Renamed {
    pub(super) der: CertificateDer<'static>,
    pub(super) constraints: UriConstraints,
    /// The signed part of the certificate as it came, and where it lies in both.
    signed: Vec<u8>,
    place: Range<usize>,
}

/// An algorithm that checks the signature of a renamed certificate over the original.
#[derive(Debug)]
pub(super) struct OverOriginals<'a> {
    pub(super) algorithm: &'static dyn SignatureVerificationAlgorithm,
    pub(super) renamed: &'a [Renamed],
}

/// Why a certificate may not stand below an authority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ForbiddenUri {
    #[error("a URI constraint cannot be applied to `{0}`, which has no host name")]
    NoHost(String),
    #[error("`{0}` is not among the URIs that an authority may name")]
    NotPermitted(String),
    #[error("an authority may not name `{0}`")]
    Excluded(String),
    #[error("an alternative name of an authority is unreadable")]
    Unreadable,
}

// === impl UriConstraints ===

impl UriConstraints {
    /// Whether a certificate with these URIs may stand below.
    ///
    /// # Errors
    /// The URI that may not, and why.
    pub(super) fn check<'u>(&self, uris: impl IntoIterator<Item = &'u str>) -> Result<(), ForbiddenUri> {
        if *self == Self::default() {
            return Ok(());
        }
        for uri in uris {
            // RFC 5280: a URI whose host is no name is refused, since the constraint cannot be applied to it.
            let host = host(uri).ok_or_else(|| ForbiddenUri::NoHost(uri.to_owned()))?;
            let matches = |constraint: &String| covers(constraint, &host);
            if let Some(permitted) = &self.permitted
                && !permitted.iter().any(|constraint| matches(constraint) == Some(true))
            {
                return Err(ForbiddenUri::NotPermitted(uri.to_owned()));
            }
            if self
                .excluded
                .iter()
                .any(|constraint| matches(constraint) != Some(false))
            {
                return Err(ForbiddenUri::Excluded(uri.to_owned()));
            }
        }
        Ok(())
    }
}

/// The host of a SPIFFE ID, if it is a name and no IPv4 address.
fn host(uri: &str) -> Option<String> {
    let id = SpiffeId::parse(uri).ok()?;
    let host = id.trust_domain().as_str();
    let last = host.rsplit('.').next()?;
    let is_name = last.bytes().any(|byte| !byte.is_ascii_digit());
    is_name.then(|| host.to_owned())
}

/// Whether `host` is the constraint, or below it if it begins with a dot. None if the constraint is no host.
fn covers(constraint: &str, host: &str) -> Option<bool> {
    let constraint = constraint.to_ascii_lowercase();
    let domain = constraint.strip_prefix('.');
    let good = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    if !domain.unwrap_or(&constraint).split('.').all(good) {
        return None;
    }
    Some(match domain {
        Some(_) => host.len() > constraint.len() && host.ends_with(&constraint),
        None => host == constraint,
    })
}

/// The URIs among a certificate's alternative names.
///
/// # Errors
/// Names that cannot be read.
pub(super) fn uris<'a>(certificate: &X509Certificate<'a>) -> Result<Vec<&'a str>, ForbiddenUri> {
    let names = certificate.subject_alternative_name();
    let Some(names) = names.map_err(|_| ForbiddenUri::Unreadable)? else {
        return Ok(Vec::new());
    };
    let mut uris = Vec::new();
    for name in &names.value.general_names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::Invalid(..) => return Err(ForbiddenUri::Unreadable),
            _ => {}
        }
    }
    Ok(uris)
}

// === impl Renamed ===

impl Renamed {
    /// The certificate renamed, if it has URI constraints that can be read. One that cannot be read is left to webpki.
    pub(super) fn of(der: &CertificateDer<'_>) -> Option<Self> {
        let certificate = profile::authority(der).ok()?;
        let extension = certificate.name_constraints().ok()??.value;
        let mut renamed = der.to_vec();
        let mut hosts = |subtrees: &Option<Vec<GeneralSubtree<'_>>>| -> Option<Vec<String>> {
            let mut hosts = Vec::new();
            for subtree in subtrees.iter().flatten() {
                if let GeneralName::URI(uri) = subtree.base {
                    let tag = renamed.get_mut(tag_of(der, uri)?)?;
                    *tag = REGISTERED_ID_TAG;
                    hosts.push(uri.to_owned());
                }
            }
            Some(hosts)
        };
        let permitted = hosts(&extension.permitted_subtrees)?;
        let excluded = hosts(&extension.excluded_subtrees)?;
        if permitted.is_empty() && excluded.is_empty() {
            return None;
        }
        let signed = certificate.tbs_certificate.as_ref();
        let start = offset(der, signed)?;
        Some(Self {
            constraints: UriConstraints {
                permitted: Some(permitted).filter(|permitted| !permitted.is_empty()),
                excluded,
            },
            signed: signed.to_vec(),
            place: start..start + signed.len(),
            der: renamed.into(),
        })
    }

    /// Whether this is what webpki was shown of the certificate with this signed part.
    fn is(&self, signed: &[u8]) -> bool {
        self.der.get(self.place.clone()) == Some(signed)
    }
}

/// What the certificate with this signed part, as webpki saw it, says of URIs.
pub(super) fn constraints_of<'a>(renamed: &'a [Renamed], signed: &[u8]) -> Option<&'a UriConstraints> {
    let found = renamed.iter().find(|renamed| renamed.is(signed));
    found.map(|renamed| &renamed.constraints)
}

/// Where in `der` a part of it begins.
fn offset(der: &[u8], part: &[u8]) -> Option<usize> {
    let start = part.as_ptr().addr().checked_sub(der.as_ptr().addr())?;
    (der.get(start..)?.get(..part.len())? == part).then_some(start)
}

/// Where the tag of a URI lies: before its length, which has one byte to 127, two to 255 and three above.
fn tag_of(der: &[u8], uri: &str) -> Option<usize> {
    let length = match uri.len() {
        0..0x80 => 1,
        0x80..0x100 => 2,
        _ => 3,
    };
    let tag = offset(der, uri.as_bytes())?.checked_sub(1 + length)?;
    (*der.get(tag)? == URI_TAG).then_some(tag)
}

// === impl OverOriginals ===

impl SignatureVerificationAlgorithm for OverOriginals<'_> {
    fn verify_signature(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let original = self.renamed.iter().find(|renamed| renamed.is(message));
        let message = original.map_or(message, |renamed| &renamed.signed);
        self.algorithm.verify_signature(public_key, message, signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn constraints(permitted: &[&str], excluded: &[&str]) -> UriConstraints {
        let owned = |hosts: &[&str]| hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>();
        UriConstraints {
            permitted: Some(owned(permitted)).filter(|permitted| !permitted.is_empty()),
            excluded: owned(excluded),
        }
    }

    #[test]
    fn rfc_5280_4_2_1_10_the_host_of_a_uri() {
        for (permitted, excluded, uri, expected) in [
            // A host is that host alone.
            (&["example.org"][..], &[][..], "spiffe://example.org/web", true),
            (&["EXAMPLE.org"], &[], "spiffe://example.org/web", true),
            (&["example.org"], &[], "spiffe://a.example.org/web", false),
            (&["example.org"], &[], "spiffe://notexample.org/web", false),
            (&["other.example", "example.org"], &[], "spiffe://example.org/web", true),
            // A domain is what is below it.
            (&[".example.org"], &[], "spiffe://a.b.example.org/web", true),
            (&[".example.org"], &[], "spiffe://example.org/web", false),
            (&[".example.org"], &[], "spiffe://notexample.org/web", false),
            // What is excluded stays so, permitted or not.
            (&[], &["example.org"], "spiffe://example.org/web", false),
            (&[], &[".example.org"], "spiffe://example.org/web", true),
            (
                &[".example.org"],
                &["a.example.org"],
                "spiffe://a.example.org/web",
                false,
            ),
            (
                &[".example.org"],
                &["a.example.org"],
                "spiffe://b.example.org/web",
                true,
            ),
            // A constraint that is no host permits nothing and excludes everything.
            (&[""], &[], "spiffe://example.org/web", false),
            (&["spiffe://example.org"], &[], "spiffe://example.org/web", false),
            (&["."], &[], "spiffe://example.org/web", false),
            (&[], &[""], "spiffe://example.org/web", false),
            (&[], &["a..b"], "spiffe://example.org/web", false),
            // A host that is no name cannot be constrained.
            (&["10.0.0.1"], &[], "spiffe://10.0.0.1/web", false),
            (&[], &["example.org"], "spiffe://10.0.0.1/web", false),
            (&["example.org"], &[], "https://example.org/web", false),
            (&[], &[], "https://example.org/web", true),
        ] {
            let found = constraints(permitted, excluded).check([uri]);
            assert_eq!(found.is_ok(), expected, "{permitted:?} {excluded:?} {uri}: {found:?}");
        }
    }
}
