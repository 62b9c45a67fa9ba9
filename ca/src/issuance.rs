//! From an entry and a public key to a certificate: pure, and read back before it leaves.
//!
//! Every field comes from the [`Template`], which is made of what is registered. A signing request gives its public
//! key and nothing else: its names, extensions and flags are not even looked at.

pub(crate) mod authority;
pub(crate) mod jwt;

use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use hoplite_identity::{CertificateDer, InvalidSigningRequest, KeyKind, Leaf, SigningRequest, SpiffeId};
use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, PublicKeyData,
    SanType, SignatureAlgorithm,
};
use ring::digest::{SHA256, digest};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::acts::written::Settled;
use crate::authority::x509::{Authority, Serial};
use crate::record;

/// Machines whose clocks are this much behind ours accept a fresh certificate at once. A short-lived certificate is
/// back-dated by less, a fifth of what it has to live: it is renewed at the half of its whole life, which must lie ahead.
pub(crate) const BACK_DATED: Duration = Duration::from_secs(60);

/// What is to be certified: all of it registered, none of it asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Template<'a> {
    /// The one URI SAN.
    pub(crate) spiffe_id: &'a SpiffeId,
    /// DNS SANs, in order.
    pub(crate) dns_names: &'a [String],
    /// The subject's common name, for programs that know users by it; without one the subject is empty.
    pub(crate) common_name: Option<&'a str>,
    /// Shortened if the authority ends earlier.
    pub(crate) ttl: Duration,
}

/// A public key whose owner has shown that it holds the private one. P-256, P-384 or Ed25519.
#[derive(Debug, Clone)]
pub(crate) struct SubjectKey {
    algorithm: &'static SignatureAlgorithm,
    /// The key itself.
    point: Vec<u8>,
    /// Its SubjectPublicKeyInfo, DER.
    spki: Vec<u8>,
}

/// A certificate that says what was asked for. It leaves by [`Minted::leaves`] only, when the log knows of it.
#[derive(Debug, Clone)]
pub(crate) struct Minted {
    der: CertificateDer<'static>,
    /// What it says.
    pub(crate) leaf: Leaf,
    /// The name of the authority that signed it.
    pub(crate) authority: String,
    /// What connects it to those whom members trust.
    above: Vec<CertificateDer<'static>>,
}

/// How much of what was signed is read back before it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadBack {
    /// All that it says, and that its signature is the authority's.
    Whole,
    /// All that it says. Whoever gets it verifies the signature; here it is a third of the cost.
    Text,
}

/// Why bytes are no signing request. The requester's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub(crate) struct BadCsr(#[from] InvalidSigningRequest);

/// Why there is no certificate. Never the requester's fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MintError {
    /// The authority is not valid now.
    #[error("the authority is not valid at this time; check the CA's clock, or make a new authority")]
    AuthorityNotValid,
    /// The certificate could not be built.
    #[error("the certificate cannot be built: {0}")]
    Unbuildable(String),
    /// It was built, but does not say what was asked for.
    #[error("the certificate differs from what was asked for in its {0}; it was thrown away")]
    Differs(&'static str),
    /// The signer has made a signature that is none.
    #[error(
        "the signature of a new certificate is not the authority's, and the certificate was thrown away; the signing key, or this \
         machine's memory or processor, is faulty: stop this CA and look at it"
    )]
    Signature,
}

/// Makes a certificate, reads it back and compares.
pub(crate) fn mint(
    authority: &Authority,
    template: &Template<'_>,
    key: &SubjectKey,
    serial: Serial,
    now: SystemTime,
    much: ReadBack,
) -> Result<Minted, MintError> {
    let validity = validity(authority, template.ttl, now).ok_or(MintError::AuthorityNotValid)?;
    // Of a token that is away, what it says is more than that nothing was signed.
    let unbuildable = |e: rcgen::Error| MintError::Unbuildable(authority.away().unwrap_or_else(|| e.to_string()));
    let mut params = CertificateParams::default();
    // The identity is the SAN, which rcgen marks critical where the subject is empty.
    params.distinguished_name = DistinguishedName::new();
    if let Some(name) = template.common_name {
        params.distinguished_name.push(DnType::CommonName, name);
    }
    params.not_before = validity.not_before.into();
    params.not_after = validity.not_after.into();
    params.serial_number = Some(serial.as_bytes().to_vec().into());
    params.subject_alt_names = names(template).map_err(unbuildable)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let der = params
        .signed_by(key, &authority.issuer())
        .map_err(unbuildable)?
        .der()
        .clone();
    let leaf = read_back(authority, template, key, serial, validity, &der)?;
    if much == ReadBack::Whole && !is_signed_by(authority, &der) {
        return Err(MintError::Signature);
    }
    Ok(Minted {
        der,
        leaf,
        authority: authority.name(),
        above: authority.below_the_root(),
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Validity {
    not_before: SystemTime,
    not_after: SystemTime,
}

/// Whole seconds, for certificates know no others, within the authority's own; `None` when nothing is left of that.
fn validity(authority: &Authority, ttl: Duration, now: SystemTime) -> Option<Validity> {
    let now = record::from_unix_seconds(record::unix_seconds(now));
    let not_after = now
        .checked_add(Duration::from_secs(ttl.as_secs()))
        .map_or(authority.not_after(), |end| end.min(authority.not_after()));
    // What the authority's end leaves of the life counts here, not what was asked for.
    let left = not_after.duration_since(now).ok().filter(|left| !left.is_zero())?;
    let back_dated = BACK_DATED.min(Duration::from_secs(left.as_secs() / 5));
    let not_before = now.checked_sub(back_dated)?.max(authority.not_before());
    (not_before <= now).then_some(Validity { not_before, not_after })
}

fn names(template: &Template<'_>) -> Result<Vec<SanType>, rcgen::Error> {
    let mut names = vec![SanType::URI(Ia5String::try_from(template.spiffe_id.as_str())?)];
    for name in template.dns_names {
        names.push(SanType::DnsName(Ia5String::try_from(name.as_str())?));
    }
    Ok(names)
}

/// Whether it is signed by this authority.
fn is_signed_by(authority: &Authority, der: &CertificateDer<'static>) -> bool {
    match (
        X509Certificate::from_der(der),
        X509Certificate::from_der(authority.certificate()),
    ) {
        (Ok((_, x509)), Ok((_, issuer))) => x509.verify_signature(Some(issuer.public_key())).is_ok(),
        _ => false,
    }
}

/// Trusts neither the builder nor ourselves: another parser reads what was signed.
fn read_back(
    authority: &Authority,
    template: &Template<'_>,
    key: &SubjectKey,
    serial: Serial,
    validity: Validity,
    der: &CertificateDer<'static>,
) -> Result<Leaf, MintError> {
    let same = |holds: bool, what: &'static str| if holds { Ok(()) } else { Err(MintError::Differs(what)) };
    let (rest, x509) = X509Certificate::from_der(der).map_err(|_| MintError::Differs("structure"))?;
    let (_, issuer) = X509Certificate::from_der(authority.certificate()).map_err(|_| MintError::Differs("issuer"))?;
    same(rest.is_empty(), "length")?;
    same(x509.issuer().as_raw() == issuer.subject().as_raw(), "issuer")?;
    same(x509.public_key().raw == key.spki, "public key")?;
    same(x509.raw_serial() == serial.as_bytes(), "serial number")?;
    let sans = x509
        .subject_alternative_name()
        .ok()
        .flatten()
        .ok_or(MintError::Differs("names"))?;
    let mut expected = vec![GeneralName::URI(template.spiffe_id.as_str())];
    expected.extend(template.dns_names.iter().map(|name| GeneralName::DNSName(name)));
    let is_critical = template.common_name.is_none();
    same(
        sans.critical == is_critical && sans.value.general_names == expected,
        "names",
    )?;
    let subject: Vec<&str> = x509
        .subject()
        .iter_attributes()
        .map(|attribute| attribute.as_str().unwrap_or_default())
        .collect();
    same(subject == Vec::from_iter(template.common_name), "subject")?;
    let common_names = x509.subject().iter_common_name().count();
    same(common_names == subject.len(), "subject")?;
    // The profile of a leaf is the verifier's: what it would refuse must not be issued.
    let leaf = Leaf::parse(der).map_err(|_| MintError::Differs("profile"))?;
    same(leaf.spiffe_id() == template.spiffe_id, "SPIFFE ID")?;
    same(
        leaf.not_before() == validity.not_before && leaf.not_after() == validity.not_after,
        "validity",
    )?;
    same(leaf.serial() == serial.to_string(), "serial number")?;
    Ok(leaf)
}

// === impl Minted ===

impl Minted {
    /// The certificate, once its record, and so all before it, is on the disk.
    ///
    /// After it comes what stands between it and those whom members trust.
    pub(crate) fn leaves(self, _recorded: &Settled) -> Vec<CertificateDer<'static>> {
        std::iter::once(self.der).chain(self.above).collect()
    }
}

// === impl SubjectKey ===

impl SubjectKey {
    /// The key of a DER PKCS#10 request, once its signature shows that the requester holds the private half.
    pub(crate) fn from_csr(der: &[u8]) -> Result<Self, BadCsr> {
        let request = SigningRequest::parse(der)?;
        Ok(Self {
            algorithm: match request.kind() {
                KeyKind::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
                KeyKind::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
                KeyKind::Ed25519 => &rcgen::PKCS_ED25519,
            },
            point: request.point().to_vec(),
            spki: request.spki().to_vec(),
        })
    }

    /// The key of a pair of our own.
    pub(crate) fn of_pair(pair: &rcgen::KeyPair) -> Self {
        Self {
            algorithm: pair.algorithm(),
            point: pair.der_bytes().to_vec(),
            spki: pair.subject_public_key_info(),
        }
    }

    /// Whether it is the key of this certificate.
    pub(crate) fn is_of(&self, certificate: &CertificateDer<'_>) -> bool {
        X509Certificate::from_der(certificate).is_ok_and(|(_, x509)| x509.public_key().raw == self.spki)
    }

    /// SHA-256 of the SubjectPublicKeyInfo, in hex.
    pub(crate) fn fingerprint(&self) -> String {
        HEXLOWER.encode(digest(&SHA256, &self.spki).as_ref())
    }
}

impl PublicKeyData for SubjectKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hoplite_identity::{SIGNING_REQUEST_BYTES_MAX, TrustDomain};
    use proptest::prelude::*;
    use rcgen::{BasicConstraints, KeyPair};
    use std::time::UNIX_EPOCH;
    use x509_parser::certification_request::X509CertificationRequest;

    const DAY: u64 = 24 * 3600;

    fn domain() -> TrustDomain {
        TrustDomain::parse("prod.example").unwrap()
    }

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn csr(pair: &KeyPair) -> Vec<u8> {
        CertificateParams::default()
            .serialize_request(pair)
            .unwrap()
            .der()
            .to_vec()
    }

    fn key() -> SubjectKey {
        SubjectKey::of_pair(&KeyPair::generate().unwrap())
    }

    fn mint_at(authority: &Authority, key: &SubjectKey, ttl: Duration, now: SystemTime) -> Result<Minted, MintError> {
        let id = domain().member("/orders").unwrap();
        let dns_names = ["orders.internal".to_owned()];
        let template = Template {
            spiffe_id: &id,
            dns_names: &dns_names,
            common_name: None,
            ttl,
        };
        mint(
            authority,
            &template,
            key,
            Serial::from_entropy([7; 16]),
            now,
            ReadBack::Whole,
        )
    }

    #[test]
    fn x_1_to_x_6_a_leaf_says_what_is_registered() {
        let authority = Authority::ephemeral(&domain(), now(), Duration::from_secs(DAY));
        for algorithm in [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
        ] {
            let pair = KeyPair::generate_for(algorithm).unwrap();
            let key = SubjectKey::from_csr(&csr(&pair)).unwrap();
            let minted = mint_at(&authority, &key, Duration::from_secs(3600), now()).unwrap();
            assert_eq!(minted.leaf.spiffe_id().as_str(), "spiffe://prod.example/orders");
            assert_eq!(minted.leaf.not_before(), now() - BACK_DATED);
            assert_eq!(minted.leaf.not_after(), now() + Duration::from_secs(3600));
            let (_, x509) = X509Certificate::from_der(&minted.der).unwrap();
            assert_eq!(x509.public_key().raw, pair.subject_public_key_info());
            let usage = x509.key_usage().unwrap().unwrap();
            assert!(usage.critical && usage.value.digital_signature());
            assert_eq!(usage.value.flags.count_ones(), 1, "and nothing else");
            let extended = x509.extended_key_usage().unwrap().unwrap().value;
            assert!(extended.server_auth && extended.client_auth && !extended.any);
            assert!(!x509.is_ca());
            assert!(x509.subject().as_raw() == [0x30, 0], "empty");
        }
    }

    #[test]
    fn a_hint_is_the_common_name_and_the_identity_stays_the_san() {
        let authority = Authority::ephemeral(&domain(), now(), Duration::from_secs(DAY));
        let id = domain().member("/orders").unwrap();
        for name in ["billing", "Jürgen's, O=x/CN=admin", &"é".repeat(64)] {
            let template = Template {
                spiffe_id: &id,
                dns_names: &[],
                common_name: Some(name),
                ttl: Duration::from_secs(60),
            };
            let serial = Serial::from_entropy([7; 16]);
            let minted = mint(&authority, &template, &key(), serial, now(), ReadBack::Text).unwrap();
            assert_eq!(minted.leaf.spiffe_id(), &id);
            let (_, x509) = X509Certificate::from_der(&minted.der).unwrap();
            let names: Vec<_> = x509.subject().iter().collect();
            assert_eq!(names.len(), 1, "one name, whatever is in it");
            let shown = x509.subject().iter_common_name().next().unwrap();
            assert_eq!(shown.as_str().unwrap(), name);
        }
    }

    /// Otherwise an agent would renew what it has just got, again and again.
    #[test]
    fn half_life_lies_ahead_of_issuance() {
        let authority = Authority::ephemeral(&domain(), now(), Duration::from_secs(DAY));
        let pair = KeyPair::generate().unwrap();
        let key = SubjectKey::from_csr(&csr(&pair)).unwrap();
        let check = |ttl: Duration, at: SystemTime, left: Duration| {
            let leaf = mint_at(&authority, &key, ttl, at).unwrap().leaf;
            let half = leaf.not_before() + leaf.not_after().duration_since(leaf.not_before()).unwrap() / 2;
            assert!(half >= at + left / 3, "{ttl:?} with {left:?} left");
        };
        for ttl in (5..=60).chain([3600]).map(Duration::from_secs) {
            check(ttl, now(), ttl);
        }
        // The last of an authority: little is left of the hour that was asked for.
        for left in (1..=60).map(Duration::from_secs) {
            check(Duration::from_secs(3600), authority.not_after() - left, left);
        }
    }

    #[test]
    fn a_life_that_is_no_whole_number_of_seconds_is_shortened_to_one() {
        let authority = Authority::ephemeral(&domain(), now(), Duration::from_secs(DAY));
        let at = now() + Duration::from_millis(900);
        let leaf = mint_at(&authority, &key(), Duration::from_millis(7800), at)
            .unwrap()
            .leaf;
        assert_eq!(leaf.not_before(), now() - Duration::from_secs(1));
        assert_eq!(leaf.not_after(), now() + Duration::from_secs(7));
    }

    #[test]
    fn a_request_gives_only_its_key() {
        let authority = Authority::ephemeral(&domain(), now(), Duration::from_secs(DAY));
        let pair = KeyPair::generate().unwrap();
        let mut greedy = CertificateParams::default();
        greedy.distinguished_name.push(rcgen::DnType::CommonName, "admin");
        greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        greedy.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
        greedy.subject_alt_names = vec![
            SanType::URI("spiffe://prod.example/admin".try_into().unwrap()),
            SanType::DnsName("admin.internal".try_into().unwrap()),
        ];
        greedy.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0])];
        let greedy = greedy.serialize_request(&pair).unwrap().der().to_vec();
        let mint = |csr: &[u8]| {
            let key = SubjectKey::from_csr(csr).unwrap();
            let minted = mint_at(&authority, &key, Duration::from_secs(60), now()).unwrap();
            let (_, x509) = X509Certificate::from_der(&minted.der).unwrap();
            x509.tbs_certificate.as_ref().to_vec()
        };
        assert_eq!(mint(&greedy), mint(&csr(&pair)), "byte for byte the same");
    }

    #[test]
    fn requests_that_are_none() {
        let good = csr(&KeyPair::generate().unwrap());
        let mut forged = good.clone();
        *forged.last_mut().unwrap() ^= 1;
        let other = csr(&KeyPair::generate().unwrap());
        // The first request's body under the second one's signature.
        let (_, parsed) = X509CertificationRequest::from_der(&good).unwrap();
        let body = parsed.certification_request_info.raw.len();
        let mut swapped = good.clone();
        swapped.truncate(4 + body);
        swapped.extend_from_slice(other.get(other.len() - (good.len() - 4 - body)..).unwrap());
        let check = |csr: &[u8], expected: &[InvalidSigningRequest]| {
            let error = SubjectKey::from_csr(csr).unwrap_err().0;
            assert!(expected.contains(&error), "{error}");
        };
        check(b"", &[InvalidSigningRequest::Malformed]);
        check(&[0x30, 0x00], &[InvalidSigningRequest::Malformed]);
        check(&good[..good.len() - 1], &[InvalidSigningRequest::Malformed]);
        check(&[&good[..], &[0]].concat(), &[InvalidSigningRequest::Malformed]);
        check(
            &vec![0x30; SIGNING_REQUEST_BYTES_MAX + 1],
            &[InvalidSigningRequest::TooLong(SIGNING_REQUEST_BYTES_MAX + 1)],
        );
        check(
            &forged,
            &[InvalidSigningRequest::Signature, InvalidSigningRequest::Malformed],
        );
        check(
            &swapped,
            &[InvalidSigningRequest::Signature, InvalidSigningRequest::Malformed],
        );
    }

    #[test]
    fn an_authority_that_is_not_valid_does_not_sign() {
        let authority = Authority::ephemeral(&domain(), now(), Duration::from_secs(DAY));
        let check = |at: SystemTime| {
            mint_at(&authority, &key(), Duration::from_secs(60), at)
                .map(|_| ())
                .unwrap_err()
        };
        assert_eq!(check(now() + Duration::from_secs(DAY)), MintError::AuthorityNotValid);
        assert_eq!(
            check(authority.not_before() - Duration::from_secs(1)),
            MintError::AuthorityNotValid
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_leaf_stays_within_its_issuer(ttl in 1..20 * DAY, at in 0..10 * DAY, life in DAY..10 * DAY) {
            let authority = Authority::ephemeral(&domain(), now(), Duration::from_secs(life));
            let at = now() + Duration::from_secs(at);
            match mint_at(&authority, &key(), Duration::from_secs(ttl), at) {
                Ok(Minted { leaf, .. }) => {
                    prop_assert!(leaf.not_before() >= authority.not_before());
                    prop_assert!(leaf.not_after() <= authority.not_after());
                    prop_assert!(leaf.not_after() <= at + Duration::from_secs(ttl));
                    prop_assert!(leaf.not_before() <= at && at < leaf.not_after());
                }
                Err(error) => {
                    prop_assert_eq!(error, MintError::AuthorityNotValid);
                    prop_assert!(at >= authority.not_after());
                }
            }
        }

        #[test]
        fn bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = SubjectKey::from_csr(&bytes);
        }
    }
}
