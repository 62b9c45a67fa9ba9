//! The one way to learn who a peer is: path validation against its own trust domain's bundle, then the SVID profile.

use crate::{BundleSet, InvalidBundle, Leaf, SpiffeId};
use rustls::pki_types::CertificateDer;
use std::time::SystemTime;

#[derive(Debug)]
/// Verifies peers of every trust domain in a [`BundleSet`], each against its own bundle only.
pub struct PeerVerifier {
    bundles: BundleSet,
}

/// Proof that a peer showed a chain its own trust domain vouches for, at the time it was checked.
/// Made only by [`PeerVerifier`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPeer {
    leaf: Leaf,
}

/// What the peer was in the handshake: decides which extended key usage is asked of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRole {
    Client,
    Server,
}

/// Why a peer was refused. The text is for our log; a peer is told only a TLS alert.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerRejected {
    #[error("{0}")]
    Other(String),
}

impl PeerVerifier {
    pub fn new(bundles: BundleSet) -> Result<Self, InvalidBundle> {
        todo!()
    }
    pub fn bundles(&self) -> &BundleSet {
        &self.bundles
    }
    /// `chain` is leaf first, as presented.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        role: PeerRole,
        now: SystemTime,
    ) -> Result<VerifiedPeer, PeerRejected> {
        todo!()
    }
}
impl VerifiedPeer {
    pub fn spiffe_id(&self) -> &SpiffeId {
        self.leaf.spiffe_id()
    }
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }
    pub fn not_after(&self) -> SystemTime {
        self.leaf.not_after()
    }
    pub fn serial(&self) -> &str {
        self.leaf.serial()
    }
}
impl PeerRejected {
    /// A stable word for logs, records and metrics: `no_certificate`, `unknown_authority`, `expired`, `not_yet_valid`,
    /// `unknown_trust_domain`, `no_spiffe_id`, `not_a_leaf`, `wrong_key_usage`, `unexpected_peer`, `malformed`, …
    pub fn code(&self) -> &'static str {
        todo!()
    }
}
