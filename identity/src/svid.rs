//! X.509-SVIDs: a certificate chain and its key, checked against the X509-SVID profile when parsed.

use crate::SpiffeId;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::time::{Duration, SystemTime};

/// What a leaf certificate says, once it obeys the X509-SVID profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    spiffe_id: SpiffeId,
    not_before: SystemTime,
    not_after: SystemTime,
    serial: String,
    fingerprint: [u8; 32],
}

/// A workload's own X.509-SVID: chain leaf first, and the PKCS#8 key of the leaf.
pub struct X509Svid {
    leaf: Leaf,
    chain: Vec<CertificateDer<'static>>,
    key: PrivatePkcs8KeyDer<'static>,
}

/// Why bytes are no X.509-SVID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSvid {
    #[error("{0}")]
    Other(String),
}

impl Leaf {
    /// Parses one DER certificate and checks the leaf profile.
    pub fn parse(der: &[u8]) -> Result<Self, InvalidSvid> {
        todo!()
    }
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
    /// Lower-case hex, no separators.
    pub fn serial(&self) -> &str {
        &self.serial
    }
    /// SHA-256 of the DER.
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }
}

impl X509Svid {
    /// Chain leaf first; the key must be the leaf's; every later certificate must be a CA.
    pub fn from_parts(
        chain: Vec<CertificateDer<'static>>,
        key: PrivatePkcs8KeyDer<'static>,
    ) -> Result<Self, InvalidSvid> {
        todo!()
    }
    /// From the Workload API's concatenated DER chain and PKCS#8 key.
    pub fn from_der(chain: &[u8], key: &[u8]) -> Result<Self, InvalidSvid> {
        todo!()
    }
    pub fn spiffe_id(&self) -> &SpiffeId {
        self.leaf.spiffe_id()
    }
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }
    /// The chain as concatenated DER (W-8).
    pub fn chain_der(&self) -> Vec<u8> {
        self.chain.iter().flat_map(|c| c.as_ref().iter().copied()).collect()
    }
    pub fn chain_pem(&self) -> String {
        todo!()
    }
    pub fn key(&self) -> &PrivatePkcs8KeyDer<'static> {
        &self.key
    }
    /// When to fetch the next one: half life, earlier by up to a tenth of the life; `jitter` in 0..=1.
    pub fn renew_at(&self, jitter: f64) -> SystemTime {
        todo!()
    }
}
impl std::fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("X509Svid").field("leaf", &self.leaf).finish_non_exhaustive()
    }
}
