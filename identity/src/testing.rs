//! A certificate authority for tests: real keys, real certificates, any defect on request. Never in a release.

use crate::{BundleSet, SpiffeId, TrustBundle, TrustDomain, VerifiedPeer, X509Svid};
use std::time::{Duration, SystemTime};

/// A self-signed P-256 authority for one trust domain.
pub struct TestAuthority {/* helper */}
impl TestAuthority {
    pub fn new(trust_domain: &str) -> Self {
        todo!()
    }
    pub fn trust_domain(&self) -> TrustDomain {
        todo!()
    }
    pub fn bundle(&self) -> TrustBundle {
        todo!()
    }
    pub fn bundles(&self) -> BundleSet {
        todo!()
    }
    /// A good SVID for `spiffe://<td><path>`, valid from a minute ago for `ttl` from now.
    pub fn svid(&self, path: &str, ttl: Duration) -> X509Svid {
        todo!()
    }
    /// Evidence for a good client with this path, made by really verifying a chain.
    pub fn peer(&self, path: &str) -> VerifiedPeer {
        todo!()
    }
}
