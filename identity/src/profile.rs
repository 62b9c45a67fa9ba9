//! The X509-SVID profile: what a leaf and an authority must and must not say.

use crate::{InvalidSvid, Leaf, SpiffeId};
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
pub(crate) const MAX_CHAIN: usize = 8;
/// The largest certificate that is looked at, in bytes. Real ones have about one thousand.
pub(crate) const MAX_CERTIFICATE: usize = 16 * 1024;

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

/// Checks one DER certificate against the leaf profile.
pub(crate) fn leaf(der: &[u8]) -> Result<CheckedLeaf<'_>, InvalidSvid> {
    let certificate = parse(der).map_err(InvalidSvid::Malformed)?;

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
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, der).as_ref());
    let serial = serial_hex(certificate.raw_serial());
    Ok(CheckedLeaf {
        leaf: Leaf {
            spiffe_id,
            not_before,
            not_after,
            serial,
            fingerprint,
        },
        public_key: certificate.tbs_certificate.subject_pki.raw,
    })
}

/// Checks that a certificate may sign others.
pub(crate) fn authority(der: &[u8]) -> Result<X509Certificate<'_>, InvalidAuthority> {
    let malformed = |error: X509Error| InvalidAuthority::Malformed(error.to_string());
    let certificate = parse(der).map_err(InvalidAuthority::Malformed)?;
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

/// Cuts concatenated DER into its elements. Whether each is a certificate is left to whoever reads it.
pub(crate) fn split_der(mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut certificates = Vec::new();
    while !der.is_empty() {
        let trailing = || {
            format!(
                "the {} bytes after certificate {} are no DER",
                der.len(),
                certificates.len()
            )
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
    let uri = match uris.as_slice() {
        [] => return Err(InvalidSvid::NoUriSan),
        [uri] => uri,
        [..] => return Err(InvalidSvid::SeveralUriSans(uris.len())),
    };
    let id = SpiffeId::parse(uri)?;
    if id.is_trust_domain() {
        return Err(InvalidSvid::TrustDomainId(id));
    }
    if certificate.subject().iter_rdn().next().is_none() && !names.critical {
        return Err(InvalidSvid::SanNotCritical);
    }
    Ok(id)
}

/// Not by x509-parser's own accessor, to which basic constraints that it cannot read are none.
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
fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    if der.len() > MAX_CERTIFICATE {
        return Err(format!(
            "{} bytes are more than the {MAX_CERTIFICATE} a certificate may have",
            der.len()
        ));
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok((rest, _)) => Err(format!("{} bytes follow the certificate", rest.len())),
        Err(error) => Err(error.to_string()),
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
