//! Signer sets as the store keeps them, and what is written of them: the first, and each that follows.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use hoplite_identity::TrustDomain;
use hoplite_seal::{NotFollowed, SignerChain, TrustedSet, TrustedSigners};
use serde::{Deserialize, Serialize};

use crate::policy::error::PolicyError;
use crate::policy::grant::GrantRecord;
use crate::policy::published::{Head, Published};
use crate::record::Record;
use crate::write::{Changes, ReadError, View, Write};

/// One signer set, as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SetRecord {
    /// The signed envelope, in hex.
    envelope: String,
}

/// Begins with the signers of this CA's own configuration, unless there are some already. Answers whether those that count
/// ever were the configured ones.
pub(crate) struct NameFirst {
    trust_domain: TrustDomain,
    signers: TrustedSigners,
}

/// Takes the next set. Answers with its version, and the grants that ended with it.
pub(crate) struct AddSigners(pub(crate) Vec<u8>);

impl Record for SetRecord {
    /// Their names are their versions, as [`SetRecord::name_of`] writes them.
    const PREFIX: &'static str = "policy/signers/";
    const COUNTED: bool = true;
}

// === impl SetRecord ===

impl SetRecord {
    /// Names sort as versions do.
    pub(crate) fn name_of(version: u64) -> String {
        format!("{version:020}")
    }

    fn new(set: &TrustedSet) -> Self {
        let envelope = HEXLOWER.encode(set.bytes());
        Self { envelope }
    }
}

/// The chain that the store's sets are, each verified by the one before; none when there are none.
pub(crate) fn chain<'a>(sets: impl Iterator<Item = &'a SetRecord>) -> Result<Option<SignerChain>, NotFollowed> {
    let sets: Vec<Vec<u8>> = sets
        .map(|set| HEXLOWER.decode(set.envelope.as_bytes()).unwrap_or_default())
        .collect();
    if sets.is_empty() {
        return Ok(None);
    }
    SignerChain::linked_from_first(&sets).map(Some)
}

// === impl NameFirst ===

impl NameFirst {
    pub(crate) fn new(trust_domain: &TrustDomain, signers: &TrustedSigners) -> Self {
        Self {
            trust_domain: trust_domain.clone(),
            signers: signers.clone(),
        }
    }
}

impl Write for NameFirst {
    type Reads = BTreeMap<String, SetRecord>;
    type Answer = bool;
    type Error = PolicyError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        view.all()
    }

    fn decide(&self, sets: Self::Reads) -> Result<(Changes, bool), PolicyError> {
        let there = chain(sets.values())?;
        if self.signers.is_empty() {
            return Ok((Changes::none(), true));
        }
        match there {
            Some(there) if there.ever_had(&self.signers) => Ok((Changes::none(), true)),
            // People have signed for others since: a file on this machine does not undo that.
            Some(there) if there.version() > 1 => Ok((Changes::none(), false)),
            _ => {
                let first = TrustedSet::configured(&self.trust_domain, &self.signers)?;
                let name = SetRecord::name_of(first.version());
                Ok((Changes::none().put(&name, &SetRecord::new(&first)), true))
            }
        }
    }
}

// === impl AddSigners ===

impl Write for AddSigners {
    type Reads = (
        BTreeMap<String, SetRecord>,
        Option<Head>,
        BTreeMap<String, Published>,
        BTreeMap<String, GrantRecord>,
    );
    type Answer = (u64, Vec<String>);
    type Error = PolicyError;

    fn read(&self, view: &mut View<'_>) -> Result<Self::Reads, ReadError> {
        Ok((view.all()?, view.one("")?, view.all()?, view.all()?))
    }

    fn decide(&self, (sets, head, history, grants): Self::Reads) -> Result<(Changes, Self::Answer), PolicyError> {
        let before = chain(sets.values())?.ok_or(PolicyError::NoSigners)?;
        let mut after = before.clone();
        // The answer was lost, so it was sent again.
        if before.newest().bytes() == self.0 {
            return Ok((Changes::none(), (before.version(), Vec::new())));
        }
        if !after.follow(&[&self.0])? {
            return Err(NotFollowed::Fork(before.version()).into());
        }
        let stays = |name: &String| after.newest().member(name) == before.newest().member(name);
        let head = head.unwrap_or_default();
        for published in history.values().filter(|published| head.is_current(published.revision)) {
            if let Some(signer) = published.signed_by.iter().find(|name| !stays(name)) {
                return Err(PolicyError::Strands {
                    revision: published.revision,
                    signer: signer.clone(),
                });
            }
        }
        let newest = after.newest();
        let changes = Changes::none().put(&SetRecord::name_of(newest.version()), &SetRecord::new(newest));
        let mut ended = Vec::new();
        let changes = grants
            .into_iter()
            .filter(|(_, grant)| !grant.revoked && !grant.signed_by.iter().all(stays))
            .fold(changes, |changes, (name, grant)| {
                ended.push(grant.id.clone());
                let revoked = GrantRecord { revoked: true, ..grant };
                changes.put(&name, &revoked)
            });
        Ok((changes, (newest.version(), ended)))
    }
}
