//! From a public key to an authority of a nested CA: pure, and read back before it leaves. Nothing of it is asked for but its life.

use std::time::{Duration, SystemTime};

use hoplite_identity::{CertificateDer, KeyDigest, TrustDomain};
use rcgen::{BasicConstraints, IsCa};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::acts::written::Settled;
use crate::authority::x509::{Authority, BACK_DATED, Serial, described};
use crate::issuance::{MintError, SubjectKey, is_signed_by};
use crate::record;

/// Authorities that may be below that of a nested CA.
const BELOW: u8 = 0;

/// The key usages `keyCertSign` and `cRLSign` as x509-parser has them: bits 5 and 6.
const SIGNS: u16 = (1 << 5) | (1 << 6);

/// An authority that says what it should. It leaves by [`MintedAuthority::leaves`] only, when the log knows of it.
#[derive(Debug, Clone)]
pub(crate) struct MintedAuthority {
    der: CertificateDer<'static>,
    /// Lower-case hex.
    pub(crate) serial: String,
    /// Of its key.
    pub(crate) key: KeyDigest,
    pub(crate) not_after: SystemTime,
    /// The name of the authority that signed it.
    pub(crate) authority: String,
    /// What connects it to the root.
    above: Vec<CertificateDer<'static>>,
    root: CertificateDer<'static>,
}

/// An authority that may leave: it, what is between it and its root, and that.
pub(crate) struct LeavingAuthority {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) root: CertificateDer<'static>,
}

/// Why there is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MintAuthorityError {
    /// Whoever is above forbids it.
    #[error(
        "this CA may sign no authority: its own is under one that allows none below it (path length 0), as that of a nested CA is; nest under \
         the CA at the top, or give this one an upstream certificate with a path length of 2 or more"
    )]
    MayNot,
    /// As of every certificate.
    #[error(transparent)]
    Mint(#[from] MintError),
}

/// Makes an authority for a nested CA, reads it back and compares. It ends with what is above it.
pub(crate) fn mint_authority(
    authority: &Authority,
    trust_domain: &TrustDomain,
    key: &SubjectKey,
    serial: Serial,
    ttl: Duration,
    now: SystemTime,
) -> Result<MintedAuthority, MintAuthorityError> {
    if path_length(authority.certificate()).is_some_and(|length| length <= u32::from(BELOW)) {
        return Err(MintAuthorityError::MayNot);
    }
    let unbuildable =
        |e: &dyn std::fmt::Display| MintError::Unbuildable(authority.away().unwrap_or_else(|| e.to_string()));
    let (mut params, not_after) = described(trust_domain, serial, now, ttl).map_err(|e| unbuildable(&e))?;
    let not_after = not_after.min(authority.not_after());
    // Whoever asked judges by its own clock, and by a moment before it asked.
    let second = record::from_unix_seconds(record::unix_seconds(now));
    let not_before = second
        .checked_sub(BACK_DATED)
        .unwrap_or(second)
        .max(authority.not_before());
    if not_after <= now || not_before > now {
        return Err(MintError::AuthorityNotValid.into());
    }
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(BELOW));
    params.use_authority_key_identifier_extension = true;
    let signed = params
        .signed_by(key, &authority.issuer())
        .map_err(|e| unbuildable(&e))?;
    let der = signed.der().clone();
    read_back(authority, trust_domain, key, serial, (not_before, not_after), &der)?;
    Ok(MintedAuthority {
        key: KeyDigest::of(&der).ok_or(MintError::Differs("public key"))?,
        serial: serial.to_string(),
        not_after,
        authority: authority.name(),
        above: authority.below_the_root(),
        root: authority.root().clone(),
        der,
    })
}

/// Trusts neither the builder nor ourselves: another parser reads what was signed.
fn read_back(
    authority: &Authority,
    trust_domain: &TrustDomain,
    key: &SubjectKey,
    serial: Serial,
    (not_before, not_after): (SystemTime, SystemTime),
    der: &CertificateDer<'static>,
) -> Result<(), MintError> {
    let same = |holds: bool, what: &'static str| if holds { Ok(()) } else { Err(MintError::Differs(what)) };
    let (rest, x509) = X509Certificate::from_der(der).map_err(|_| MintError::Differs("structure"))?;
    let (_, issuer) = X509Certificate::from_der(authority.certificate()).map_err(|_| MintError::Differs("issuer"))?;
    same(rest.is_empty(), "length")?;
    same(x509.issuer().as_raw() == issuer.subject().as_raw(), "issuer")?;
    same(key.is_of(der), "public key")?;
    same(x509.raw_serial() == serial.as_bytes(), "serial number")?;
    let constraints = x509.basic_constraints().ok().flatten();
    let constraints = constraints.ok_or(MintError::Differs("basic constraints"))?;
    let length = constraints.value.path_len_constraint;
    let is_authority = constraints.critical && constraints.value.ca && length == Some(u32::from(BELOW));
    same(is_authority, "basic constraints")?;
    let usage = x509.key_usage().ok().flatten().ok_or(MintError::Differs("key usage"))?;
    same(usage.critical && usage.value.flags == SIGNS, "key usage")?;
    same(matches!(x509.extended_key_usage(), Ok(None)), "extended key usage")?;
    same(matches!(x509.name_constraints(), Ok(None)), "name constraints")?;
    let names = x509.subject_alternative_name().ok().flatten();
    let names = names.ok_or(MintError::Differs("names"))?;
    same(
        names.value.general_names == [GeneralName::URI(trust_domain.id().as_str())],
        "names",
    )?;
    let seconds = |time: SystemTime| i64::try_from(record::unix_seconds(time)).unwrap_or(i64::MAX);
    let validity = x509.validity();
    same(
        validity.not_before.timestamp() == seconds(not_before) && validity.not_after.timestamp() == seconds(not_after),
        "validity",
    )?;
    match is_signed_by(authority, der) {
        true => Ok(()),
        false => Err(MintError::Signature),
    }
}

/// How many authorities may be below it; `None` for any number.
fn path_length(certificate: &CertificateDer<'_>) -> Option<u32> {
    let (_, x509) = X509Certificate::from_der(certificate).ok()?;
    x509.basic_constraints().ok().flatten()?.value.path_len_constraint
}

// === impl MintedAuthority ===

impl MintedAuthority {
    /// The certificate, once its record, and so all before it, is on the disk.
    pub(crate) fn leaves(self, _recorded: &Settled) -> LeavingAuthority {
        LeavingAuthority {
            chain: std::iter::once(self.der).chain(self.above).collect(),
            root: self.root,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_identity::{BundleSet, PeerRole, PeerVerifier, TrustBundle};
    use rcgen::{CertificateParams, KeyPair, PublicKeyData};
    use std::time::UNIX_EPOCH;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn domain() -> TrustDomain {
        TrustDomain::parse("prod.example").unwrap()
    }

    fn minted(authority: &Authority, ttl: Duration, now: SystemTime) -> Result<MintedAuthority, MintAuthorityError> {
        let key = SubjectKey::of_pair(&KeyPair::generate().unwrap());
        mint_authority(authority, &domain(), &key, Serial::random().unwrap(), ttl, now)
    }

    /// Whatever the request says, and however long a life is asked for.
    #[test]
    fn an_authority_has_no_more_than_its_key_of_the_request() {
        let authority = Authority::ephemeral(&domain(), now(), DAY);
        let pair = KeyPair::generate().unwrap();
        let mut greedy = CertificateParams::new(vec!["ca.example".to_owned()]).unwrap();
        greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        greedy.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        let key = SubjectKey::from_csr(greedy.serialize_request(&pair).unwrap().der()).unwrap();
        let serial = Serial::random().unwrap();
        let minted = mint_authority(&authority, &domain(), &key, serial, DAY * 400, now()).unwrap();
        assert_eq!(minted.not_after, authority.not_after(), "it ends with what is above it");
        let (_, x509) = X509Certificate::from_der(&minted.der).unwrap();
        assert_eq!(path_length(&minted.der), Some(0));
        assert_eq!(x509.public_key().raw, pair.subject_public_key_info());
        let text = format!("{:?}", x509.subject_alternative_name().unwrap().unwrap().value);
        assert!(
            text.contains("spiffe://prod.example") && !text.contains("ca.example"),
            "{text}"
        );

        // What is below it is believed by the root alone; an authority below it is not.
        let issuer = rcgen::Issuer::from_ca_cert_der(&minted.der, &pair).unwrap();
        let leaf = |issuer: &rcgen::Issuer<'_, &KeyPair>| {
            let mut params = CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.subject_alt_names = vec![rcgen::SanType::URI("spiffe://prod.example/orders".try_into().unwrap())];
            params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
            params.not_before = now().into();
            params.not_after = (now() + DAY / 2).into();
            params
                .signed_by(&KeyPair::generate().unwrap(), issuer)
                .unwrap()
                .der()
                .clone()
        };
        let bundle = TrustBundle::new(domain(), vec![authority.certificate().clone()], 1).unwrap();
        let verifier = PeerVerifier::new(BundleSet::from_iter([bundle])).unwrap();
        let chain = [leaf(&issuer), minted.der.clone()];
        let peer = verifier.verify(&chain, PeerRole::Client, now()).unwrap();
        assert_eq!(peer.signer(), minted.key);
        let below = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        params.not_before = now().into();
        params.not_after = (now() + DAY / 2).into();
        let longer = params.signed_by(&below, &issuer).unwrap().der().clone();
        let issuer = rcgen::Issuer::from_ca_cert_der(&longer, &below).unwrap();
        let chain = [leaf(&issuer), longer.clone(), minted.der];
        let refused = verifier
            .verify(&chain, PeerRole::Client, now())
            .unwrap_err()
            .to_string();
        assert!(refused.to_lowercase().contains("path"), "{refused}");
    }

    #[test]
    fn what_is_nested_itself_signs_none_and_nothing_outlives_its_authority() {
        let authority = Authority::ephemeral(&domain(), now(), DAY);
        let late = now() + DAY;
        let error = minted(&authority, DAY, late).unwrap_err();
        assert_eq!(error, MintError::AuthorityNotValid.into());
        let soon = minted(&authority, Duration::from_secs(60), now()).unwrap();
        assert_eq!(soon.not_after, now() + Duration::from_secs(60));
        let nested = Authority::ephemeral_nested(&authority, now());
        assert_eq!(minted(&nested, DAY, now()).unwrap_err(), MintAuthorityError::MayNot);
    }
}
