//! Trust bundles: the authorities that vouch for one trust domain, and sets of them that never mix.

use crate::TrustDomain;
use crate::fingerprint::{Fingerprint, KeyDigest};
use crate::jwt::{Jwk, JwtAuthorities};
use crate::pem::{self, InvalidPem};
use crate::profile::{self, InvalidAuthority};
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The authorities of one trust domain. Each of the X.509 ones is a CA certificate that may sign certificates; the others are
/// keys that sign JWT-SVIDs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    authorities: Vec<CertificateDer<'static>>,
    jwt: JwtAuthorities,
    sequence: u64,
    /// Of some of them.
    tainted: BTreeSet<Fingerprint>,
    /// Keys of authorities under one of them, whose certificates count and are replaced.
    tainted_keys: BTreeSet<KeyDigest>,
    /// The same, of such as count no more.
    revoked_keys: BTreeSet<KeyDigest>,
}

/// A bundle as it is written.
#[derive(Serialize)]
struct Document {
    keys: Vec<Jwk>,
    spiffe_sequence: u64,
    spiffe_refresh_hint: u64,
}

/// Trust bundles by trust domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BundleSet(BTreeMap<TrustDomain, Arc<TrustBundle>>);

/// Why bytes are no trust bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidBundle {
    /// The bytes are not concatenated DER.
    #[error("the bundle of `{0}` is not concatenated DER certificates: {1}")]
    Der(TrustDomain, String),
    /// The text is not PEM certificates.
    #[error("the bundle of `{0}` is not PEM certificates: {1}")]
    Pem(TrustDomain, #[source] InvalidPem),
    /// The text is no SPIFFE bundle document.
    #[error("the bundle of `{0}` is no SPIFFE bundle: {1}")]
    Document(TrustDomain, String),
    /// A certificate cannot vouch for others.
    #[error("certificate {position} of the bundle of `{trust_domain}` is no authority: {source}")]
    Authority {
        /// Whose bundle.
        trust_domain: TrustDomain,
        /// Its place in the bundle, from 0.
        position: usize,
        /// What is wrong with it.
        source: InvalidAuthority,
    },
}

// === impl TrustBundle ===

impl TrustBundle {
    /// Every authority must be a CA certificate. An empty list is legal and trusts nobody (B-1).
    ///
    /// # Errors
    /// The first certificate that is not one.
    pub fn new(
        trust_domain: TrustDomain,
        authorities: Vec<CertificateDer<'static>>,
        sequence: u64,
    ) -> Result<Self, InvalidBundle> {
        for (position, der) in authorities.iter().enumerate() {
            if let Err(source) = profile::authority(der) {
                return Err(InvalidBundle::Authority {
                    trust_domain,
                    position,
                    source,
                });
            }
        }
        Ok(Self {
            trust_domain,
            authorities,
            jwt: JwtAuthorities::default(),
            sequence,
            tainted: BTreeSet::new(),
            tainted_keys: BTreeSet::new(),
            revoked_keys: BTreeSet::new(),
        })
    }

    /// These of its authorities are tainted: they still vouch for peers, and whoever has a certificate under one of them gets
    /// another.
    pub fn with_tainted(mut self, tainted: impl IntoIterator<Item = Fingerprint>) -> Self {
        let known: BTreeSet<_> = self.authorities.iter().map(Fingerprint::of).collect();
        self.tainted = tainted
            .into_iter()
            .filter(|fingerprint| known.contains(fingerprint))
            .collect();
        self
    }

    /// The tainted ones among its authorities.
    pub fn tainted(&self) -> &BTreeSet<Fingerprint> {
        &self.tainted
    }

    /// An authority that is under another one is in no bundle, only that one is. So its taint, and its revocation, are of its key.
    #[must_use]
    pub fn with_keys(
        self,
        tainted: impl IntoIterator<Item = KeyDigest>,
        revoked: impl IntoIterator<Item = KeyDigest>,
    ) -> Self {
        Self {
            tainted_keys: tainted.into_iter().collect(),
            revoked_keys: revoked.into_iter().collect(),
            ..self
        }
    }

    /// The keys of tainted authorities that are under one of its own.
    pub fn tainted_keys(&self) -> &BTreeSet<KeyDigest> {
        &self.tainted_keys
    }

    /// The keys of authorities that are under one of its own and vouch for nobody any more.
    pub fn revoked_keys(&self) -> &BTreeSet<KeyDigest> {
        &self.revoked_keys
    }

    /// Whether something that it vouches for is to be replaced.
    pub fn has_tainted(&self) -> bool {
        !self.tainted.is_empty() || !self.tainted_keys.is_empty()
    }

    /// Whether it vouches for all that the other one does.
    pub fn has_all_of(&self, other: &Self) -> bool {
        let has = |authority| self.authorities.contains(authority);
        other.authorities.iter().all(has) && self.revoked_keys.is_subset(&other.revoked_keys)
    }

    /// The bundle without its tainted authorities: what vouches for certificates that may stay.
    pub fn sound(&self) -> Self {
        let is_sound = |der: &&CertificateDer<'static>| !self.tainted.contains(&Fingerprint::of(der));
        Self {
            authorities: self.authorities.iter().filter(is_sound).cloned().collect(),
            tainted: BTreeSet::new(),
            tainted_keys: BTreeSet::new(),
            revoked_keys: self.revoked_keys.union(&self.tainted_keys).copied().collect(),
            ..self.clone()
        }
    }

    /// From the Workload API's concatenated DER (W-8).
    ///
    /// # Errors
    /// What is not a DER authority, trailing bytes included.
    pub fn from_der(trust_domain: TrustDomain, der: &[u8], sequence: u64) -> Result<Self, InvalidBundle> {
        match profile::split_der(der) {
            Ok(authorities) => Self::new(trust_domain, authorities, sequence),
            Err(reason) => Err(InvalidBundle::Der(trust_domain, reason.to_string())),
        }
    }

    /// From PEM. Text between the certificates is commentary; text after the last is an error.
    ///
    /// # Errors
    /// What is not a PEM authority.
    pub fn from_pem(trust_domain: TrustDomain, pem: &str, sequence: u64) -> Result<Self, InvalidBundle> {
        match pem::certificates(pem) {
            Ok(authorities) => Self::new(trust_domain, authorities, sequence),
            Err(reason) => Err(InvalidBundle::Pem(trust_domain, reason)),
        }
    }

    /// The authorities as PEM; the empty text if there are none.
    pub fn to_pem(&self) -> String {
        pem::write_certificates(&self.authorities)
    }

    /// The authorities as concatenated DER (W-8).
    pub fn to_der(&self) -> Vec<u8> {
        self.authorities
            .iter()
            .flat_map(|authority| authority.as_ref())
            .copied()
            .collect()
    }

    /// With these keys, which vouch for the trust domain's JWT-SVIDs.
    #[must_use]
    pub fn with_jwt(self, jwt: JwtAuthorities) -> Self {
        Self { jwt, ..self }
    }

    /// The keys that vouch for the trust domain's JWT-SVIDs.
    pub fn jwt(&self) -> &JwtAuthorities {
        &self.jwt
    }

    /// The bundle as the SPIFFE standard writes it (B-1 to B-4): a JWK Set of all authorities, with this hint of when to look
    /// again.
    pub fn to_spiffe_json(&self, refresh_hint: Duration) -> String {
        let x509 = self.authorities.iter().map(|der| Jwk::of_certificate(der));
        let document = Document {
            keys: x509.chain(self.jwt.jwks()).collect(),
            spiffe_sequence: self.sequence,
            spiffe_refresh_hint: refresh_hint.as_secs(),
        };
        // Strings and numbers in structs: this cannot fail.
        serde_json::to_string_pretty(&document).unwrap_or_default()
    }

    /// Whose authorities these are.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The authorities' certificates, DER.
    pub fn authorities(&self) -> &[CertificateDer<'static>] {
        &self.authorities
    }

    /// Grows with every change of the content (B-2).
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}

impl TrustBundle {
    /// When the last of its authorities ends, and nobody is trusted any more; none when there are none.
    pub fn last_end(&self) -> Option<SystemTime> {
        // Each was read when the bundle was made.
        let ends = self.authorities.iter().filter_map(|der| profile::end(der));
        ends.max()
    }
}

impl TrustBundle {
    /// From when to when the authority is valid that ends last; none when there are none.
    pub fn longest(&self) -> Option<(SystemTime, SystemTime)> {
        let lives = self.authorities.iter().filter_map(|der| profile::life(der));
        lives.max_by_key(|(_, end)| *end)
    }
}

// === impl BundleSet ===

impl BundleSet {
    /// Adds a bundle, in place of an earlier one of the same trust domain.
    pub fn insert(&mut self, bundle: Arc<TrustBundle>) {
        self.0.insert(bundle.trust_domain().clone(), bundle);
    }

    /// The bundle of one trust domain.
    pub fn get(&self, trust_domain: &TrustDomain) -> Option<&Arc<TrustBundle>> {
        self.0.get(trust_domain)
    }

    /// All bundles, by trust domain.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<TrustBundle>> {
        self.0.values()
    }
}

impl FromIterator<TrustBundle> for BundleSet {
    fn from_iter<I: IntoIterator<Item = TrustBundle>>(bundles: I) -> Self {
        bundles.into_iter().map(Arc::new).collect()
    }
}

impl FromIterator<Arc<TrustBundle>> for BundleSet {
    fn from_iter<I: IntoIterator<Item = Arc<TrustBundle>>>(bundles: I) -> Self {
        Self(
            bundles
                .into_iter()
                .map(|bundle| (bundle.trust_domain().clone(), bundle))
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestAuthority;
    use std::time::Duration;

    fn domain() -> TrustDomain {
        TrustDomain::parse("example.org").unwrap()
    }

    #[test]
    fn der_and_pem_are_round_trips() {
        let authorities: Vec<_> = (0..3)
            .flat_map(|_| TestAuthority::new("example.org").bundle().authorities().to_vec())
            .collect();
        for count in 0..=3 {
            let bundle = TrustBundle::new(domain(), authorities[..count].to_vec(), 7).unwrap();
            assert_eq!(TrustBundle::from_der(domain(), &bundle.to_der(), 7).unwrap(), bundle);
            assert_eq!(TrustBundle::from_pem(domain(), &bundle.to_pem(), 7).unwrap(), bundle);
            assert_eq!(bundle.authorities().len(), count);
        }
    }

    #[test]
    fn only_authorities_are_taken() {
        let ca = TestAuthority::new("example.org");
        let (root, leaf) = (
            ca.bundle().to_der(),
            ca.svid("/web", Duration::from_secs(60)).chain_der(),
        );
        let check = |der: Vec<u8>, expected: InvalidBundle| {
            assert_eq!(TrustBundle::from_der(domain(), &der, 1).unwrap_err(), expected);
        };
        let authority = |position, source| InvalidBundle::Authority {
            trust_domain: domain(),
            position,
            source,
        };
        check([root.clone(), leaf].concat(), authority(1, InvalidAuthority::NotCa));
        let no_sign = ca.authority_without_key_cert_sign();
        check(no_sign.to_vec(), authority(0, InvalidAuthority::NoKeyCertSign));
        let reason = "the 3 bytes after certificate 1 are no DER".to_owned();
        check(
            [root.clone(), b"abc".to_vec()].concat(),
            InvalidBundle::Der(domain(), reason),
        );
        let garbage = TrustBundle::from_der(domain(), &[root, vec![0x30, 0]].concat(), 1);
        assert!(
            matches!(garbage, Err(InvalidBundle::Authority { position: 1, .. })),
            "{garbage:?}"
        );
        let garbage = TrustBundle::from_pem(domain(), &(ca.bundle().to_pem() + "garbage"), 1);
        assert!(matches!(garbage, Err(InvalidBundle::Pem(..))), "{garbage:?}");
    }

    #[test]
    fn a_set_holds_one_bundle_a_trust_domain() {
        let (one, two) = (TestAuthority::new("one.example"), TestAuthority::new("two.example"));
        let mut set: BundleSet = [one.bundle(), two.bundle()].into_iter().collect();
        let newer = Arc::new(TestAuthority::new("one.example").bundle());
        set.insert(newer.clone());
        assert_eq!(set.iter().count(), 2);
        assert_eq!(set.get(&one.trust_domain()), Some(&newer));
        assert_eq!(set.get(&domain()), None);
    }
}
