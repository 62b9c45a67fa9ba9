//! One SVID of a call: made, written down and told in the log. It leaves when its record is on the disk.

use std::sync::Arc;
use std::time::SystemTime;

use hoplite_identity::{InvalidSelector, RegisteredEntry, Selector, SpiffeId};
use hoplite_wire::ca as wire;

use crate::acts::written::Written;
use crate::acts::{Acts, Asked, Unwritten};
use crate::entries::names::{Named, NotNamed};
use crate::issuance::jwt::JwtMintError;
use crate::issuance::{BadCsr, MintError, Minted, SubjectKey};
use crate::issuer::{Issuer, SvidKind};

/// What an agent's call for SVIDs is answered from.
pub(super) struct Mint {
    pub(super) issuer: Issuer,
    pub(super) acts: Acts,
    pub(super) agent: SpiffeId,
    /// Where it called from.
    pub(super) source: String,
    pub(super) now: SystemTime,
}

/// One SVID that is asked for: of an entry that the agent may have, and what it attested of the workload.
pub(super) struct Item {
    /// None for what is another agent's, or nobody's.
    pub(super) registered: Option<Arc<RegisteredEntry>>,
    pub(super) values: Vec<wire::Selector>,
}

/// Why there is no SVID of one entry.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotIssued {
    /// Of another agent, or of nobody.
    #[error("no such entry is registered under this agent")]
    NoSuchEntry,
    /// What it says of the workload gives no name, or none more.
    #[error(transparent)]
    Named(#[from] NotNamed),
    /// What it says of the workload is no selector.
    #[error("`values`: {0}")]
    Value(#[from] InvalidSelector),
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
    pub(super) fn one(&self, item: &Item, csr: &[u8]) -> Result<(Minted, Written), NotIssued> {
        self.try_one(item, csr).inspect_err(|reason| {
            let entry = item.entry();
            let agent = &self.agent;
            self.issuer.refused_workload();
            tracing::warn!(target: "hoplite::audit", %agent, entry, outcome = "refused", %reason, "issue");
        })
    }

    /// The name of the workload. The agent says what it attested, and never what that is called.
    pub(super) fn name(&self, item: &Item, kind: SvidKind) -> Result<Named, NotIssued> {
        let registered = item.registered.clone().ok_or(NotIssued::NoSuchEntry)?;
        let values = item.values.iter().cloned().map(Selector::try_from);
        let values = values.collect::<Result<_, _>>()?;
        Ok(self.issuer.name(&self.agent, registered, values, kind, self.now)?)
    }

    fn try_one(&self, item: &Item, csr: &[u8]) -> Result<(Minted, Written), NotIssued> {
        // What can be wrong with the request, before a name is counted for it.
        if item.registered.is_none() {
            return Err(NotIssued::NoSuchEntry);
        }
        let key = SubjectKey::from_csr(csr)?;
        let named = self.name(item, SvidKind::X509)?;
        let minted = self.issuer.workload(&named, &key, self.now)?;
        let written = self.acts.issued(&minted, self.asked("issue"), Some(&named))?;
        // The CA's own log has each; that of the process one line a call.
        tracing::debug!(
            target: "hoplite::audit",
            agent = %self.agent,
            entry = %named.registered().id,
            spiffe_id = %minted.leaf.spiffe_id(),
            serial = minted.leaf.serial(),
            outcome = "issued",
            "issue"
        );
        Ok((minted, written))
    }
}

// === impl Item ===

impl Item {
    /// The id of its entry, for the log.
    pub(super) fn entry(&self) -> Option<&str> {
        self.registered.as_ref().map(|registered| registered.id.as_str())
    }
}
