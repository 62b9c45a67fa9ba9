//! SPIFFE IDs and trust domains, by the letter of the SPIFFE-ID standard.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The name of a trust domain: 1 to 255 bytes of `[a-z0-9.-_]`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// The name of a workload or of a trust domain: `spiffe://<trust domain>[/<path>]`, at most 2 048 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    trust_domain: TrustDomain,
}

/// Why a text is no SPIFFE ID or trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSpiffeId {
    /// TODO(helper): one variant per rule
    #[error("`{0}` is not a SPIFFE ID")]
    Other(String),
}

// === impl TrustDomain ===

impl TrustDomain {
    /// Parses the bare name (`prod.example`), not a URI.
    pub fn parse(name: &str) -> Result<Self, InvalidSpiffeId> {
        todo!()
    }
    /// The bare name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// The SPIFFE ID of the trust domain itself, which has no path.
    pub fn id(&self) -> SpiffeId {
        todo!()
    }
    /// The member ID with this path, which starts with `/`.
    pub fn member(&self, path: &str) -> Result<SpiffeId, InvalidSpiffeId> {
        todo!()
    }
}

// === impl SpiffeId ===

impl SpiffeId {
    /// Parses a whole URI.
    pub fn parse(uri: &str) -> Result<Self, InvalidSpiffeId> {
        todo!()
    }
    /// The URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }
    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }
    /// The path, empty or starting with `/`.
    pub fn path(&self) -> &str {
        todo!()
    }
    /// The path's segments, without slashes.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.path().split('/').skip(1)
    }
    /// Whether this names the trust domain itself (no path).
    pub fn is_trust_domain(&self) -> bool {
        self.path().is_empty()
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}
impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}
impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}
impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl FromStr for TrustDomain {
    type Err = InvalidSpiffeId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}
