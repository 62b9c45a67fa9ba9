//! A grant as the store keeps it.

use std::time::SystemTime;

use data_encoding::HEXLOWER;
use hoplite_identity::ServiceName;
use hoplite_policy::grant::GrantScope;
use hoplite_policy::holding::{GrantRef, HeldGrant};
use serde::{Deserialize, Serialize};

use crate::record::{self, Record};

/// One grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GrantRecord {
    pub(crate) id: String,
    pub(crate) ticket: String,
    pub(crate) reason: String,
    pub(crate) principal: String,
    pub(crate) service: ServiceName,
    pub(crate) not_before: u64,
    pub(crate) until: u64,
    pub(crate) signed_by: Vec<String>,
    /// SHA-256 of what was signed, in hex.
    pub(crate) hash: String,
    /// The signed envelope, in hex.
    pub(crate) envelope: String,
    /// Kept until the grant would be over, so that nobody brings it back.
    pub(crate) revoked: bool,
}

impl Record for GrantRecord {
    /// Their names are their ids, as [`GrantRecord::name_of`] writes them.
    const PREFIX: &'static str = "policy/grant/";
    const COUNTED: bool = true;
}

// === impl GrantRecord ===

impl GrantRef for GrantRecord {
    fn until(&self) -> SystemTime {
        record::from_unix_seconds(self.until)
    }
}

impl GrantRecord {
    /// An operator's text is no name yet: only what a grant can be called is.
    pub(crate) fn name_of(id: &str) -> String {
        id.chars()
            .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
            .take(64)
            .collect()
    }

    pub(crate) fn new(grant: &HeldGrant) -> Self {
        let draft = grant.draft();
        let (GrantScope::Workload(principal) | GrantScope::Path(principal)) = &draft.principal;
        Self {
            id: draft.id.clone(),
            ticket: draft.ticket.clone(),
            reason: draft.reason.clone(),
            principal: principal.clone(),
            service: draft.service.clone(),
            not_before: draft.not_before,
            until: draft.until,
            signed_by: grant.signed_by().to_vec(),
            hash: grant.hash().to_string(),
            envelope: HEXLOWER.encode(grant.bytes()),
            revoked: false,
        }
    }

    /// What was signed.
    pub(crate) fn envelope(&self) -> Option<Vec<u8>> {
        HEXLOWER.decode(self.envelope.as_bytes()).ok()
    }
}
