//! One SVID of a call: made, written down and told in the log. It leaves when its record is on the disk.

use std::time::SystemTime;

use hoplite_identity::{RegisteredEntry, SpiffeId};

use crate::acts::written::Written;
use crate::acts::{Acts, Asked, Unwritten};
use crate::issuance::jwt::JwtMintError;
use crate::issuance::{BadCsr, MintError, Minted, SubjectKey};
use crate::issuer::Issuer;

/// What an agent's call for SVIDs is answered from.
pub(super) struct Mint {
    pub(super) issuer: Issuer,
    pub(super) acts: Acts,
    pub(super) agent: SpiffeId,
    /// Where it called from.
    pub(super) source: String,
    pub(super) now: SystemTime,
}

/// Why there is no SVID of one entry.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotIssued {
    /// Of another agent, or of nobody.
    #[error("no such entry is registered under this agent")]
    NoSuchEntry,
    /// The requester's fault.
    #[error(transparent)]
    Csr(#[from] BadCsr),
    /// Ours.
    #[error(transparent)]
    Mint(#[from] MintError),
    /// Of a JWT-SVID.
    #[error(transparent)]
    Jwt(#[from] JwtMintError),
    /// It was made, and the log does not know of it.
    #[error(transparent)]
    Unwritten(#[from] Unwritten),
}

// === impl Mint ===

impl Mint {
    /// As the record says it.
    pub(super) fn asked(&self, how: &'static str) -> Asked {
        Asked {
            requester: self.agent.to_string(),
            how,
            source: Some(self.source.clone()),
        }
    }

    /// One certificate, its record and its line in the log; or why there is none.
    pub(super) fn one(&self, registered: Option<&RegisteredEntry>, csr: &[u8]) -> Result<(Minted, Written), NotIssued> {
        self.try_one(registered, csr).inspect_err(|reason| {
            let entry = registered.map(|registered| registered.id.as_str());
            let agent = &self.agent;
            self.issuer.refused_workload();
            tracing::warn!(target: "hoplite::audit", %agent, entry, outcome = "refused", %reason, "issue");
        })
    }

    fn try_one(&self, registered: Option<&RegisteredEntry>, csr: &[u8]) -> Result<(Minted, Written), NotIssued> {
        let registered = registered.ok_or(NotIssued::NoSuchEntry)?;
        let key = SubjectKey::from_csr(csr)?;
        let minted = self.issuer.workload(&registered.entry, &key, self.now)?;
        let written = self.acts.issued(&minted, self.asked("issue"), Some(&registered.id))?;
        // The CA's own log has each; that of the process one line a call.
        tracing::debug!(
            target: "hoplite::audit",
            agent = %self.agent,
            entry = %registered.id,
            spiffe_id = %minted.leaf.spiffe_id(),
            serial = minted.leaf.serial(),
            outcome = "issued",
            "issue"
        );
        Ok((minted, written))
    }
}
