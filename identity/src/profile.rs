//! The X509-SVID profile: what a leaf and an authority must and must not say.

use crate::fingerprint::Fingerprint;
use crate::{InvalidSpiffeId, SpiffeId, TrustDomain};
use data_encoding::HEXLOWER;
use rustls::pki_types::CertificateDer;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::asn1_rs::Any;
use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::extensions::{GeneralName, ParsedExtension, X509Extension};
use x509_parser::oid_registry::OID_X509_EXT_BASIC_CONSTRAINTS;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

/// The longest chain that is looked at or shown: a leaf and its intermediates. Real ones have one to four.
pub(crate) const CHAIN_MAX: usize = 8;
/// The largest certificate that is looked at, in bytes. Real ones have about one thousand.
pub(crate) const CERTIFICATE_BYTES_MAX: usize = 16 * 1024;

/// What a leaf certificate says, once it obeys the X509-SVID profile.
///
/// It proves nothing about who signed it: that is what [`VerifiedPeer`](crate::VerifiedPeer) is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    pub(crate) spiffe_id: SpiffeId,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
    pub(crate) serial: String,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) authority_key: String,
}

/// Why bytes are no X.509-SVID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSvid {
    /// The chain is empty.
    #[error("there is no certificate")]
    NoCertificate,
    /// More certificates than any verifier of ours looks at.
    #[error("a chain of {0} certificates is longer than the 8 that are looked at")]
    ChainTooLong(usize),
    /// The bytes are not DER certificates.
    #[error("the certificate is malformed: {0}")]
    Malformed(String),
    /// no URI among the subject alternative names.
    #[error("the certificate has no URI among its subject alternative names, so no SPIFFE ID")]
    NoUriSan,
    /// more than one URI.
    #[error("the certificate has {0} URIs among its subject alternative names; exactly one is allowed")]
    SeveralUriSans(usize),
    /// the URI is no SPIFFE ID.
    #[error("the certificate's URI is no SPIFFE ID: {0}")]
    NotSpiffeId(#[from] InvalidSpiffeId),
    /// the ID names the trust domain, not a workload.
    #[error("`{0}` has no path; only authorities may have the ID of the trust domain")]
    TrustDomainId(SpiffeId),
    /// the ID names a workload, not the trust domain.
    #[error("`{0}` has a path; an authority has the ID of its trust domain")]
    MemberId(SpiffeId),
    /// an empty subject, and alternative names that are not critical.
    #[error("the certificate's subject is empty, but its subject alternative name is not critical")]
    SanNotCritical,
    /// no key usage.
    #[error("the certificate has no key usage")]
    NoKeyUsage,
    /// the key usage is not critical.
    #[error("the certificate's key usage is not critical")]
    KeyUsageNotCritical,
    /// the key may not make signatures, which TLS needs.
    #[error("the certificate's key usage lacks digitalSignature")]
    NoDigitalSignature,
    /// a leaf that may sign certificates.
    #[error("the certificate's key usage has keyCertSign; an authority cannot be a leaf")]
    KeyCertSign,
    /// a leaf that may sign revocation lists.
    #[error("the certificate's key usage has cRLSign, which a leaf must not have")]
    CrlSign,
    /// a leaf that is a CA.
    #[error("the certificate is a CA certificate; an authority cannot be a leaf")]
    CertificateAuthority,
    /// an extended key usage without serverAuth and clientAuth.
    #[error("the certificate's extended key usage lacks serverAuth or clientAuth")]
    ExtendedKeyUsage,
    /// It ends before it starts.
    #[error("the certificate's notAfter is not later than its notBefore")]
    NoLifetime,
    /// A certificate after the leaf cannot vouch for it.
    #[error("certificate {position} of the chain is no authority: {source}")]
    Chain {
        /// Its place in the chain; the leaf is 0.
        position: usize,
        /// What is wrong with it.
        source: InvalidAuthority,
    },
    /// The key cannot be loaded. What it is like is not said: it is a secret.
    #[error("the private key is no PKCS#8 key of a supported kind (ECDSA P-256 or P-384, Ed25519, RSA)")]
    Key,
    /// The key belongs to another certificate.
    #[error("the private key is not the one of `{0}`'s certificate")]
    KeyMismatch(SpiffeId),
}

/// Why a certificate cannot vouch for others.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidAuthority {
    /// The bytes are not one DER certificate.
    #[error("it is malformed: {0}")]
    Malformed(String),
    /// the basic constraints do not say cA.
    #[error("it is not a CA certificate")]
    NotCa,
    /// the key usage lacks keyCertSign.
    #[error("its key usage lacks keyCertSign")]
    NoKeyCertSign,
}

/// A parsed leaf, and the public key it is about.
pub(crate) struct CheckedLeaf<'a> {
    pub(crate) leaf: Leaf,
    /// SubjectPublicKeyInfo, DER.
    pub(crate) public_key: &'a [u8],
}

// === impl Leaf ===

impl Leaf {
    /// Parses one DER certificate and checks the leaf profile.
    ///
    /// # Errors
    /// The first rule of that it breaks.
    pub fn parse(der: &[u8]) -> Result<Self, InvalidSvid> {
        leaf(der).map(|checked| checked.leaf)
    }

    /// The one URI subject alternative name; its path is not empty.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// The first moment of validity.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// The last second of validity; later than [`Leaf::not_before`].
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Lower-case hex, two digits a byte, no separators, no leading zero byte.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Of the certificate.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// The identifier of the key that signed it, lower-case hex, as it says itself: empty when it does not. For people and
    /// lists; who vouches for it is another question.
    pub fn authority_key(&self) -> &str {
        &self.authority_key
    }
}

/// Checks one DER certificate against the leaf profile.
pub(crate) fn leaf(der: &[u8]) -> Result<CheckedLeaf<'_>, InvalidSvid> {
    let certificate = parse(der).map_err(|why| InvalidSvid::Malformed(why.to_string()))?;

    // an authority must not authenticate. First, because nothing else it says matters then.
    if is_ca(&certificate).map_err(malformed)? {
        return Err(InvalidSvid::CertificateAuthority);
    }
    let key_usage = certificate.key_usage().map_err(malformed)?;
    if key_usage.as_ref().is_some_and(|usage| usage.value.key_cert_sign()) {
        return Err(InvalidSvid::KeyCertSign);
    }

    let spiffe_id = spiffe_id(&certificate)?;

    //
    let key_usage = key_usage.ok_or(InvalidSvid::NoKeyUsage)?;
    if !key_usage.critical {
        return Err(InvalidSvid::KeyUsageNotCritical);
    }
    if key_usage.value.crl_sign() {
        return Err(InvalidSvid::CrlSign);
    }
    if !key_usage.value.digital_signature() {
        return Err(InvalidSvid::NoDigitalSignature);
    }
    //
    let extended = certificate.extended_key_usage().map_err(malformed)?;
    if extended.is_some_and(|usage| !(usage.value.server_auth && usage.value.client_auth)) {
        return Err(InvalidSvid::ExtendedKeyUsage);
    }

    let validity = certificate.validity();
    let (not_before, not_after) = (system_time(validity.not_before)?, system_time(validity.not_after)?);
    if not_before >= not_after {
        return Err(InvalidSvid::NoLifetime);
    }
    let serial = serial_hex(certificate.raw_serial());
    let authority_key = certificate
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(of) => of.key_identifier.as_ref().map(|id| HEXLOWER.encode(id.0)),
            _ => None,
        });
    Ok(CheckedLeaf {
        leaf: Leaf {
            spiffe_id,
            not_before,
            not_after,
            serial,
            fingerprint: Fingerprint::of_der(der),
            authority_key: authority_key.unwrap_or_default(),
        },
        public_key: certificate.tbs_certificate.subject_pki.raw,
    })
}

/// Checks that a certificate may sign others.
pub(crate) fn authority(der: &[u8]) -> Result<X509Certificate<'_>, InvalidAuthority> {
    let malformed = |error: X509Error| InvalidAuthority::Malformed(error.to_string());
    let certificate = parse(der).map_err(|why| InvalidAuthority::Malformed(why.to_string()))?;
    if !is_ca(&certificate).map_err(malformed)? {
        return Err(InvalidAuthority::NotCa);
    }
    if !certificate
        .key_usage()
        .map_err(malformed)?
        .is_some_and(|usage| usage.value.key_cert_sign())
    {
        return Err(InvalidAuthority::NoKeyCertSign);
    }
    Ok(certificate)
}

/// When an authority's certificate ends; none for what is no certificate.
pub(crate) fn end(der: &[u8]) -> Option<SystemTime> {
    system_time(authority(der).ok()?.validity().not_after).ok()
}

/// From when to when an authority's certificate is valid; none for what is no certificate.
pub(crate) fn life(der: &[u8]) -> Option<(SystemTime, SystemTime)> {
    let authority = authority(der).ok()?;
    let validity = authority.validity();
    Some((
        system_time(validity.not_before).ok()?,
        system_time(validity.not_after).ok()?,
    ))
}

/// What follows the last element of concatenated DER and is none.
#[derive(Debug, thiserror::Error)]
#[error("the {bytes} bytes after certificate {after} are no DER")]
pub(crate) struct NotDer {
    bytes: usize,
    after: usize,
}

/// Why bytes are not one certificate.
#[derive(Debug, thiserror::Error)]
enum NotOne {
    #[error("{0} bytes are more than the {CERTIFICATE_BYTES_MAX} a certificate may have")]
    TooLarge(usize),
    #[error("{0} bytes follow the certificate")]
    Trailing(usize),
    #[error("{0}")]
    Unread(String),
}

/// Cuts concatenated DER into its elements. Whether each is a certificate is left to whoever reads it.
pub(crate) fn split_der(mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>, NotDer> {
    let mut certificates = Vec::new();
    while !der.is_empty() {
        let trailing = || NotDer {
            bytes: der.len(),
            after: certificates.len(),
        };
        let (rest, _) = Any::from_der(der).map_err(|_| trailing())?;
        let (certificate, _) = der.split_at_checked(der.len() - rest.len()).ok_or_else(trailing)?;
        certificates.push(certificate.to_vec().into());
        der = rest;
    }
    Ok(certificates)
}

/// exactly one URI among the subject alternative names, and it names a workload.
fn spiffe_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, InvalidSvid> {
    let (id, is_critical) = one_uri(certificate)?;
    if id.is_trust_domain() {
        return Err(InvalidSvid::TrustDomainId(id));
    }
    if certificate.subject().iter_rdn().next().is_none() && !is_critical {
        return Err(InvalidSvid::SanNotCritical);
    }
    Ok(id)
}

/// the trust domain that an authority's certificate names as its own.
pub(crate) fn trust_domain(authority: &X509Certificate<'_>) -> Result<TrustDomain, InvalidSvid> {
    let (id, _) = one_uri(authority)?;
    if !id.is_trust_domain() {
        return Err(InvalidSvid::MemberId(id));
    }
    Ok(id.trust_domain().clone())
}

/// The one URI among the subject alternative names, and whether they are critical.
fn one_uri(certificate: &X509Certificate<'_>) -> Result<(SpiffeId, bool), InvalidSvid> {
    let names = certificate
        .subject_alternative_name()
        .map_err(malformed)?
        .ok_or(InvalidSvid::NoUriSan)?;
    let mut uris = Vec::new();
    for name in &names.value.general_names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            // A name that one parser cannot read is one that two parsers may read differently.
            GeneralName::Invalid(..) => {
                return Err(InvalidSvid::Malformed("an alternative name is unreadable".to_owned()));
            }
            _ => {}
        }
    }
    match uris.as_slice() {
        [] => Err(InvalidSvid::NoUriSan),
        [uri] => Ok((SpiffeId::parse(uri)?, names.critical)),
        [..] => Err(InvalidSvid::SeveralUriSans(uris.len())),
    }
}

/// Not by x509-parser's own accessor, which takes basic constraints that it cannot read for absent.
fn is_ca(certificate: &X509Certificate<'_>) -> Result<bool, X509Error> {
    match certificate
        .get_extension_unique(&OID_X509_EXT_BASIC_CONSTRAINTS)?
        .map(X509Extension::parsed_extension)
    {
        None => Ok(false),
        Some(ParsedExtension::BasicConstraints(constraints)) => Ok(constraints.ca),
        Some(_) => Err(X509Error::InvalidExtensions),
    }
}

/// Exactly one certificate, of a bounded size.
fn parse(der: &[u8]) -> Result<X509Certificate<'_>, NotOne> {
    if der.len() > CERTIFICATE_BYTES_MAX {
        return Err(NotOne::TooLarge(der.len()));
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok((rest, _)) => Err(NotOne::Trailing(rest.len())),
        Err(error) => Err(NotOne::Unread(error.to_string())),
    }
}

fn malformed(error: X509Error) -> InvalidSvid {
    InvalidSvid::Malformed(error.to_string())
}

fn system_time(time: ASN1Time) -> Result<SystemTime, InvalidSvid> {
    let seconds = time.timestamp();
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        UNIX_EPOCH.checked_sub(distance)
    } else {
        UNIX_EPOCH.checked_add(distance)
    };
    time.ok_or_else(|| InvalidSvid::Malformed("a date is out of range".to_owned()))
}

/// Without the zero byte that DER puts before a high bit: the number as people and other tools write it.
fn serial_hex(mut serial: &[u8]) -> String {
    while let [0, rest @ ..] = serial
        && !rest.is_empty()
    {
        serial = rest;
    }
    HEXLOWER.encode(serial)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Shape, TestAuthority};

    #[test]
    fn x_5_unreadable_basic_constraints_are_not_taken_for_none() {
        let shown = TestAuthority::new("example.org").shaped("/web", Shape::UnreadableBasicConstraints);
        let found = Leaf::parse(&shown.chain[0]);
        assert!(matches!(found, Err(InvalidSvid::Malformed(_))), "{found:?}");
    }

    #[test]
    fn serials_are_lower_case_hex_without_the_sign_byte() {
        let check = |serial: &[u8], expected| assert_eq!(serial_hex(serial), expected);
        check(&[0], "00");
        check(&[0, 0xAB, 0x0C], "ab0c");
        check(&[1, 0, 2], "010002");
    }

    #[test]
    fn concatenated_der_is_cut_and_garbage_refused() {
        let check = |der: &[u8], expected: Option<&[&[u8]]>| {
            let parts = split_der(der).ok();
            assert_eq!(
                parts.map(|parts| parts.iter().map(|part| part.to_vec()).collect()),
                expected.map(|all| { all.iter().map(|part| part.to_vec()).collect::<Vec<_>>() })
            );
        };
        check(&[], Some(&[]));
        check(&[0x30, 1, 7, 0x30, 0], Some(&[&[0x30, 1, 7], &[0x30, 0]]));
        check(&[0x30, 1, 7, 0x30], None);
        check(&[0x30, 1, 7, 0x30, 9, 0], None);
        check(&[0x30, 0xFF], None);
    }
}
