//! Who gets a certificate, and for how long: the one place that mints.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use hoplite_identity::{CertificateDer, Entry, SpiffeId};

use crate::authority::x509::{Authority, Serial};
use crate::issuance::{MintError, Minted, SubjectKey, Template, mint};

/// The authority that signs here, and how long lives what it signs. It alone takes the two and entropy together.
/// Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Issuer {
    authority: Arc<Authority>,
    lives: Arc<RwLock<Lives>>,
}

/// How long certificates live.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lives {
    pub(crate) agent: Duration,
    pub(crate) operator: Duration,
    /// Of entries that do not say, and of the CA itself.
    pub(crate) x509: Duration,
}

// === impl Issuer ===

impl Issuer {
    pub(crate) fn new(authority: Arc<Authority>, lives: Lives) -> Self {
        Self {
            authority,
            lives: Arc::new(RwLock::new(lives)),
        }
    }

    /// What is issued from now on lives so long.
    pub(crate) fn set_lives(&self, lives: Lives) {
        *self.lives.write().unwrap_or_else(PoisonError::into_inner) = lives;
    }

    fn lives(&self) -> Lives {
        *self.lives.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The certificate of the authority that signs.
    pub(crate) fn authority(&self) -> &CertificateDer<'static> {
        self.authority.certificate()
    }

    /// For an agent.
    pub(crate) fn agent(&self, id: &SpiffeId, key: &SubjectKey, now: SystemTime) -> Result<Minted, MintError> {
        self.mint(id, &[], None, self.lives().agent, key, now)
    }

    /// For an operator, who may have no more left than this.
    pub(crate) fn operator(
        &self,
        id: &SpiffeId,
        left: Option<Duration>,
        key: &SubjectKey,
        now: SystemTime,
    ) -> Result<Minted, MintError> {
        let life = self.lives().operator;
        self.mint(id, &[], None, left.map_or(life, |left| left.min(life)), key, now)
    }

    /// For a workload: every field from its entry.
    pub(crate) fn workload(&self, entry: &Entry, key: &SubjectKey, now: SystemTime) -> Result<Minted, MintError> {
        let ttl = self.ttl(entry);
        self.mint(&entry.spiffe_id, &entry.dns_names, entry.common_name(), ttl, key, now)
    }

    /// For the CA's own server.
    pub(crate) fn own(&self, id: &SpiffeId, key: &SubjectKey, now: SystemTime) -> Result<Minted, MintError> {
        self.mint(id, &[], None, self.lives().x509, key, now)
    }

    /// The life of a workload's certificates.
    pub(crate) fn ttl(&self, entry: &Entry) -> Duration {
        entry.ttl(self.lives().x509)
    }

    fn mint(
        &self,
        spiffe_id: &SpiffeId,
        dns_names: &[String],
        common_name: Option<&str>,
        ttl: Duration,
        key: &SubjectKey,
        now: SystemTime,
    ) -> Result<Minted, MintError> {
        let serial = Serial::random().map_err(|e| MintError::Unbuildable(e.to_string()))?;
        let template = Template {
            spiffe_id,
            dns_names,
            common_name,
            ttl,
        };
        mint(&self.authority, &template, key, serial, now)
    }
}
