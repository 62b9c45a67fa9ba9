//! Trust bundles: the authorities that vouch for one trust domain, and sets of them that never mix.

use crate::TrustDomain;
use rustls::pki_types::CertificateDer;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The X.509 authorities of one trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    authorities: Vec<CertificateDer<'static>>,
    sequence: u64,
}

/// Trust bundles by trust domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BundleSet(BTreeMap<TrustDomain, Arc<TrustBundle>>);

/// Why bytes are no trust bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidBundle {
    #[error("{0}")]
    Other(String),
}

impl TrustBundle {
    /// Every authority must be a CA certificate. An empty list is legal and trusts nobody (B-1).
    pub fn new(
        trust_domain: TrustDomain,
        authorities: Vec<CertificateDer<'static>>,
        sequence: u64,
    ) -> Result<Self, InvalidBundle> {
        todo!()
    }
    /// From the Workload API's concatenated DER.
    pub fn from_der(trust_domain: TrustDomain, der: &[u8], sequence: u64) -> Result<Self, InvalidBundle> {
        todo!()
    }
    pub fn from_pem(trust_domain: TrustDomain, pem: &str, sequence: u64) -> Result<Self, InvalidBundle> {
        todo!()
    }
    pub fn to_pem(&self) -> String {
        todo!()
    }
    pub fn to_der(&self) -> Vec<u8> {
        self.authorities.iter().flat_map(|a| a.as_ref().iter().copied()).collect()
    }
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }
    pub fn authorities(&self) -> &[CertificateDer<'static>] {
        &self.authorities
    }
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}
impl BundleSet {
    pub fn insert(&mut self, bundle: Arc<TrustBundle>) {
        self.0.insert(bundle.trust_domain().clone(), bundle);
    }
    pub fn get(&self, trust_domain: &TrustDomain) -> Option<&Arc<TrustBundle>> {
        self.0.get(trust_domain)
    }
    pub fn iter(&self) -> impl Iterator<Item = &Arc<TrustBundle>> {
        self.0.values()
    }
}
impl FromIterator<TrustBundle> for BundleSet {
    fn from_iter<I: IntoIterator<Item = TrustBundle>>(bundles: I) -> Self {
        let mut set = Self::default();
        for bundle in bundles {
            set.insert(Arc::new(bundle));
        }
        set
    }
}
