//! A certificate authority for tests: real keys, real certificates, any defect on request. Never in a release.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a panic is how a test that cannot get its certificates fails"
)]

use crate::{BundleSet, PeerRole, PeerVerifier, SpiffeId, TrustBundle, TrustDomain, VerifiedPeer, X509Svid};
use data_encoding::HEXLOWER;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::time::{Duration, SystemTime};

/// How far back certificates start, so that clocks may differ a little.
const BACKDATE: Duration = Duration::from_secs(60);

/// A P-256 authority for one trust domain. Two of the same trust domain have different names and keys.
pub struct TestAuthority {
    trust_domain: TrustDomain,
    /// The self-signed certificate at the top.
    root: CertificateDer<'static>,
    /// What its leaves are followed by: nothing, or the authorities between them and the root.
    intermediates: Vec<CertificateDer<'static>>,
    issuer: Issuer<'static, KeyPair>,
}

/// What a certificate chain made by [`TestAuthority::shaped`] is like: good in one way or bad in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Obeys every rule.
    Good,
    /// Good: a DNS name beside the SPIFFE ID.
    DnsSanToo,
    /// Two SPIFFE IDs.
    TwoUriSans,
    /// The SPIFFE ID twice.
    SameUriSanTwice,
    /// The SPIFFE ID is only the subject's common name.
    CommonNameOnly,
    /// The SPIFFE ID is only written as a DNS name.
    DnsSanOnly,
    /// A URI that is no SPIFFE ID.
    HttpsUriSan,
    /// `SPIFFE://…`.
    UpperCaseScheme,
    /// The ID of the trust domain itself.
    TrustDomainId,
    /// An ID of the trust domain `other.example`.
    OtherTrustDomain,
    /// Good: no subject, and so critical alternative names.
    EmptySubject,
    /// No subject, and alternative names that are not critical.
    EmptySubjectSanNotCritical,
    /// No key usage.
    NoKeyUsage,
    /// Key agreement, but no digital signature.
    NoDigitalSignature,
    /// The right key usage, not critical.
    KeyUsageNotCritical,
    /// The leaf may sign revocation lists.
    CrlSign,
    /// The leaf may sign certificates.
    KeyCertSign,
    /// The leaf is a CA.
    CaLeaf,
    /// Basic constraints that are no DER.
    UnreadableBasicConstraints,
    /// Good: no extended key usage.
    NoExtendedKeyUsage,
    /// Only for servers.
    OnlyServerAuth,
    /// Only for clients.
    OnlyClientAuth,
    /// Ended an hour ago.
    Expired,
    /// Begins in an hour.
    NotYetValid,
    /// Signed by itself.
    SelfSigned,
    /// The last bit of the signature is flipped.
    BrokenSignature,
    /// Good: the chain also has other people's certificates.
    Fillers,
    /// Good: an authority between leaf and root.
    Intermediate,
    /// The certificate between leaf and root is no CA.
    IntermediateWithoutCa,
    /// The certificate between leaf and root is a CA that may not sign certificates.
    IntermediateWithoutKeyCertSign,
}

/// A chain, leaf first, and the key of its leaf.
pub struct Shown {
    /// The certificates.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key, PKCS#8.
    pub key: PrivatePkcs8KeyDer<'static>,
}

// === impl TestAuthority ===

impl TestAuthority {
    /// How long an authority lives.
    pub const LIFE: Duration = Duration::from_secs(24 * 3600);

    /// A new self-signed authority.
    pub fn new(trust_domain: &str) -> Self {
        Self::with(trust_domain, |_| ())
    }

    /// A new self-signed authority whose subject is `name`, as others' may be.
    pub fn named(trust_domain: &str, name: &str) -> Self {
        Self::with(trust_domain, |params| params.distinguished_name = common_name(name))
    }

    /// A new self-signed authority whose certificate has these URIs in the place of its trust domain's.
    pub fn naming(trust_domain: &str, uris: &[&str]) -> Self {
        Self::with(trust_domain, |params| {
            params.subject_alt_names = uris.iter().map(|text| uri(text)).collect();
        })
    }

    fn with(trust_domain: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let trust_domain = TrustDomain::parse(trust_domain).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = authority_params(&trust_domain, &key);
        change(&mut params);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self {
            trust_domain,
            root,
            intermediates: Vec::new(),
            issuer: Issuer::new(params, key),
        }
    }

    /// An authority under this one: its SVIDs carry its certificate, and its bundle is this one's.
    pub fn intermediate(&self) -> Self {
        self.intermediate_with(|_| ())
    }

    /// An authority of this name under this one.
    pub fn intermediate_named(&self, name: &str) -> Self {
        self.intermediate_with(|params| params.distinguished_name = common_name(name))
    }

    /// An authority of this name under this one that may have no other below it (path length 0).
    pub fn childless(&self, name: &str) -> Self {
        self.intermediate_with(|params| {
            params.distinguished_name = common_name(name);
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        })
    }

    /// An authority of this name under this one that vouches for TLS servers only.
    pub fn for_servers(&self, name: &str) -> Self {
        self.intermediate_with(|params| {
            params.distinguished_name = common_name(name);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        })
    }

    /// An authority under this one that may name these URI hosts, and not those.
    pub fn constrained(&self, permitted: &[&str], excluded: &[&str]) -> Self {
        self.intermediate_with(|params| params.custom_extensions.push(uri_name_constraints(permitted, excluded)))
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> TrustDomain {
        self.trust_domain.clone()
    }

    /// The trust bundle: the root alone, sequence 1.
    pub fn bundle(&self) -> TrustBundle {
        TrustBundle::new(self.trust_domain(), vec![self.root.clone()], 1).unwrap()
    }

    /// A set of that one bundle.
    pub fn bundles(&self) -> BundleSet {
        [self.bundle()].into_iter().collect()
    }

    /// A good SVID for `spiffe://<td><path>`, valid from a minute ago for `ttl` from now.
    pub fn svid(&self, path: &str, ttl: Duration) -> X509Svid {
        let now = SystemTime::now();
        self.svid_valid(path, now - BACKDATE, now + ttl)
    }

    /// A good SVID with these dates, in whole seconds.
    pub fn svid_valid(&self, path: &str, not_before: SystemTime, not_after: SystemTime) -> X509Svid {
        let mut params = self.leaf_params(path);
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        let Shown { chain, key } = self.issue(&params);
        X509Svid::from_parts(chain, key).unwrap()
    }

    /// Evidence for a good client with this path, made by really verifying a chain.
    pub fn peer(&self, path: &str) -> VerifiedPeer {
        let svid = self.svid(path, Duration::from_secs(3600));
        let verifier = PeerVerifier::new(self.bundles()).unwrap();
        verifier
            .verify(svid.chain(), PeerRole::Client, SystemTime::now())
            .unwrap()
    }

    /// A chain of this shape for `spiffe://<td><path>`.
    pub fn shaped(&self, path: &str, shape: Shape) -> Shown {
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        let id = self.trust_domain.member(path).unwrap();
        let mut params = self.leaf_params(path);
        match shape {
            Shape::Good => {}
            Shape::DnsSanToo => params.subject_alt_names.push(dns("web.example.org")),
            Shape::TwoUriSans => params.subject_alt_names.push(uri("spiffe://example.org/other")),
            Shape::SameUriSanTwice => params.subject_alt_names.push(uri(id.as_str())),
            Shape::CommonNameOnly => {
                params.subject_alt_names.clear();
                params.distinguished_name = common_name(id.as_str());
            }
            Shape::DnsSanOnly => params.subject_alt_names = vec![dns(id.as_str())],
            Shape::HttpsUriSan => params.subject_alt_names = vec![uri("https://example.org/web")],
            Shape::UpperCaseScheme => params.subject_alt_names = vec![uri(&id.as_str().replace("spiffe", "SPIFFE"))],
            Shape::TrustDomainId => params.subject_alt_names = vec![uri(self.trust_domain.id().as_str())],
            Shape::OtherTrustDomain => params.subject_alt_names = vec![uri(&format!("spiffe://other.example{path}"))],
            Shape::EmptySubject => params.distinguished_name = DistinguishedName::new(),
            Shape::EmptySubjectSanNotCritical => {
                params.distinguished_name = DistinguishedName::new();
                params.subject_alt_names.clear();
                params.custom_extensions.push(uri_san_extension(&id));
            }
            Shape::NoKeyUsage => params.key_usages.clear(),
            Shape::NoDigitalSignature => params.key_usages = vec![KeyUsagePurpose::KeyAgreement],
            Shape::KeyUsageNotCritical => {
                params.key_usages.clear();
                // BIT STRING with the bit digitalSignature
                params
                    .custom_extensions
                    .push(CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 7, 0x80]));
            }
            Shape::CrlSign => params.key_usages.push(KeyUsagePurpose::CrlSign),
            Shape::KeyCertSign => params.key_usages.push(KeyUsagePurpose::KeyCertSign),
            Shape::CaLeaf => params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
            Shape::UnreadableBasicConstraints => {
                params
                    .custom_extensions
                    .push(CustomExtension::from_oid_content(&[2, 5, 29, 19], vec![0x30, 3, 1, 1]));
            }
            Shape::NoExtendedKeyUsage => params.extended_key_usages.clear(),
            Shape::OnlyServerAuth => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
            Shape::OnlyClientAuth => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
            Shape::Expired => {
                params.not_before = (now - 2 * hour).into();
                params.not_after = (now - hour).into();
            }
            Shape::NotYetValid => {
                params.not_before = (now + hour).into();
                params.not_after = (now + 2 * hour).into();
            }
            Shape::SelfSigned => {
                let key = KeyPair::generate().unwrap();
                let chain = vec![params.self_signed(&key).unwrap().der().clone()];
                return Shown {
                    chain,
                    key: key.serialize_der().into(),
                };
            }
            Shape::BrokenSignature => {
                let mut shown = self.issue(&params);
                let mut leaf = shown.chain.remove(0).to_vec();
                *leaf.last_mut().unwrap() ^= 1;
                shown.chain.insert(0, leaf.into());
                return shown;
            }
            Shape::Fillers => {
                let mut shown = self.issue(&params);
                let stranger = Self::new("stranger.example");
                shown.chain.extend(self.issue(&self.leaf_params("/filler")).chain);
                shown
                    .chain
                    .extend(stranger.issue(&stranger.leaf_params("/filler")).chain);
                shown.chain.push(stranger.root);
                return shown;
            }
            Shape::Intermediate => return self.intermediate().issue(&params),
            Shape::IntermediateWithoutCa => {
                return self
                    .intermediate_with(|params| params.is_ca = IsCa::ExplicitNoCa)
                    .issue(&params);
            }
            Shape::IntermediateWithoutKeyCertSign => {
                let digital_signature = |params: &mut CertificateParams| {
                    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
                };
                return self.intermediate_with(digital_signature).issue(&params);
            }
        }
        self.issue(&params)
    }

    /// A self-signed CA certificate whose key usage lacks keyCertSign.
    pub fn authority_without_key_cert_sign(&self) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let mut params = authority_params(&self.trust_domain, &key);
        params.key_usages = vec![KeyUsagePurpose::CrlSign];
        params.self_signed(&key).unwrap().der().clone()
    }

    fn intermediate_with(&self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = authority_params(&self.trust_domain, &key);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        // rcgen signs only with what looks like a CA; the name and the key are all that counts here.
        let mut named = authority_params(&self.trust_domain, &key);
        named.distinguished_name = params.distinguished_name.clone();
        let issuer = Issuer::new(named, key);
        let intermediates = [vec![certificate], self.intermediates.clone()].concat();
        Self {
            trust_domain: self.trust_domain(),
            root: self.root.clone(),
            intermediates,
            issuer,
        }
    }

    /// A good leaf for an hour.
    fn leaf_params(&self, path: &str) -> CertificateParams {
        let now = SystemTime::now();
        let mut params = CertificateParams::default();
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + Duration::from_secs(3600)).into();
        params.distinguished_name = common_name("workload");
        params.subject_alt_names = vec![uri(self.trust_domain.member(path).unwrap().as_str())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params
    }

    fn issue(&self, params: &CertificateParams) -> Shown {
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let chain = [vec![leaf], self.intermediates.clone()].concat();
        Shown {
            chain,
            key: key.serialize_der().into(),
        }
    }
}

fn authority_params(trust_domain: &TrustDomain, key: &KeyPair) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + TestAuthority::LIFE).into();
    let digest = ring::digest::digest(&ring::digest::SHA256, key.der_bytes());
    let name = HEXLOWER.encode(digest.as_ref().get(..4).unwrap_or_default());
    params.distinguished_name = common_name(&format!("{trust_domain} authority {name}"));
    params.subject_alt_names = vec![uri(trust_domain.id().as_str())];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

fn common_name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

/// The subject alternative name as an extension that is not critical.
fn uri_san_extension(id: &SpiffeId) -> CustomExtension {
    let uri = tlv(0x86, id.as_str().as_bytes());
    CustomExtension::from_oid_content(&[2, 5, 29, 17], tlv(0x30, &uri))
}

/// permittedSubtrees and excludedSubtrees with these URI hosts.
fn uri_name_constraints(permitted: &[&str], excluded: &[&str]) -> CustomExtension {
    let subtrees = |tag: u8, hosts: &[&str]| match hosts {
        [] => Vec::new(),
        hosts => {
            let subtree = |host: &&str| tlv(0x30, &tlv(0x86, host.as_bytes()));
            tlv(tag, &hosts.iter().flat_map(subtree).collect::<Vec<_>>())
        }
    };
    let both = [subtrees(0xA0, permitted), subtrees(0xA1, excluded)].concat();
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 30], tlv(0x30, &both));
    extension.set_criticality(true);
    extension
}

/// DER with a short length.
fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).ok().filter(|length| *length < 128).unwrap();
    [&[tag, length], value].concat()
}
