//! Whether a maker has certified an endorsement key (EK Credential Profile for TPM Family 2.0, 3).

use std::time::SystemTime;

use hoplite_tpm::EndorsementKey;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::attestors::roots::{self, Roots};

/// The purpose of such a certificate, tcg-kp-EKCertificate: as the text and as the contents of an OID.
const PURPOSE: &str = "2.23.133.8.1";
const PURPOSE_OID: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];

/// Who made the TPM, in its alternative names (tcg-at-tpmManufacturer).
const MANUFACTURER: &str = "2.23.133.2.1";

/// Algorithms beside an RSA key: rsaEncryption, and RSAES-OAEP, which some makers write.
const RSA: [&str; 2] = ["1.2.840.113549.1.1.1", "1.2.840.113549.1.1.7"];

/// Beside a key on a curve: id-ecPublicKey with P-256.
const EC: &str = "1.2.840.10045.2.1";
const P256: &str = "1.2.840.10045.3.1.7";

/// Why a certificate does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotCertified {
    #[error("it has none; where the TPM holds none, its maker gives it, and `[join] certificate` names the file")]
    Absent,
    #[error("the chain has more than 6 certificates")]
    Long,
    #[error("it cannot be read")]
    Unreadable,
    #[error("{0}")]
    Chain(webpki::Error),
    #[error("it is for another key: of another TPM, or of one whose keys are not made by the TCG's default templates")]
    OtherKey,
    #[error("it does not say that its key is in a TPM: it has neither the purpose {PURPOSE} nor a TPM's maker")]
    NoTpm,
}

/// Whether one of these authorities vouches now, by this chain, for this key as one of a TPM's.
pub(super) fn certified(
    key: &EndorsementKey,
    chain: &[Vec<u8>],
    roots: &Roots,
    now: SystemTime,
) -> Result<(), NotCertified> {
    if chain.is_empty() {
        return Err(NotCertified::Absent);
    }
    let chain = roots::chain(chain).map_err(|_| NotCertified::Long)?;
    let (first, others) = chain.split_first().ok_or(NotCertified::Absent)?;
    let leaf = EndEntityCert::try_from(first).map_err(NotCertified::Chain)?;
    let usage = KeyUsage::required_if_present(PURPOSE_OID);
    let vouched = roots.vouches(&leaf, others, usage, now);
    vouched.map_err(NotCertified::Chain)?;

    // From here on it is a maker's word: of which key, and that it is one of a TPM.
    let (_, parsed) = X509Certificate::from_der(first).map_err(|_| NotCertified::Unreadable)?;
    if !is_of(parsed.public_key(), key) {
        return Err(NotCertified::OtherKey);
    }
    // Those authorities may certify other keys too, of which somebody has the private part.
    if !is_of_a_tpm(&parsed) {
        return Err(NotCertified::NoTpm);
    }
    Ok(())
}

fn is_of(public: &SubjectPublicKeyInfo<'_>, key: &EndorsementKey) -> bool {
    let algorithm = public.algorithm.algorithm.to_id_string();
    let is_kind = if key.is_rsa() {
        RSA.contains(&algorithm.as_str())
    } else {
        let curve = public
            .algorithm
            .parameters
            .as_ref()
            .and_then(|curve| curve.as_oid().ok());
        algorithm == EC && curve.is_some_and(|curve| curve.to_id_string() == P256)
    };
    is_kind && public.subject_public_key.data.as_ref() == key.key_bits()
}

fn is_of_a_tpm(certificate: &X509Certificate<'_>) -> bool {
    let purposes = certificate.extended_key_usage().ok().flatten();
    if let Some(purposes) = purposes {
        return purposes
            .value
            .other
            .iter()
            .any(|purpose| purpose.to_id_string() == PURPOSE);
    }
    let names = certificate.subject_alternative_name().ok().flatten();
    names.is_some_and(|names| {
        names.value.general_names.iter().any(|name| match name {
            GeneralName::DirectoryName(name) => name
                .iter_attributes()
                .any(|of| of.attr_type().to_id_string() == MANUFACTURER),
            _ => false,
        })
    })
}
