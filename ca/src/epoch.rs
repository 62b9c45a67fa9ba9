//! Which life of the store this is. A restore begins a new one, a higher one, and says from when to when the store knows nothing
//! of what was issued.

use std::collections::BTreeSet;
use std::time::SystemTime;

use hoplite_identity::{Leaf, SpiffeId};
use hoplite_store::Revision;
use serde::{Deserialize, Serialize};

use crate::issuance::BACK_DATED;
use crate::record::{BadRecord, Mutation, Record, unix_seconds};

/// What a restore notes. There is one, of the last restore; none before the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Epoch {
    pub(crate) name: EpochName,
    /// When the backup was begun, Unix seconds: what was issued after it may be missing.
    pub(crate) backup_at: u64,
    /// The revision of the backup.
    pub(crate) revision: Revision,
    /// When the restore was, Unix seconds. Its name may be ahead of that.
    #[serde(default)]
    at: u64,
}

/// What agents compare: a higher one is news at whatever revision, a lower one is refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct EpochName {
    /// When it began, Unix seconds, and more than the one before and the one that the operator names; 0 for a store that was never
    /// restored. So the later one of two restores of one backup counts.
    pub(crate) number: u64,
    /// Random, so that two restores in one second are two.
    pub(crate) tie: u64,
}

/// An agent that was evicted since the restore: what was issued to it in between counts for nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Barred {}

/// The epoch's part of the index.
#[derive(Debug, Default)]
pub(crate) struct EpochIndex {
    epoch: Option<Epoch>,
    barred: BTreeSet<String>,
}

/// What counts of an epoch when one agent calls.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Since<'a> {
    pub(crate) epoch: Option<&'a Epoch>,
    pub(crate) is_barred: bool,
}

// === impl Epoch ===

impl Epoch {
    /// The one that begins with a restore. `known` is one that agents follow, of which the backup does not know.
    pub(crate) fn after(
        before: Option<&Self>,
        known: u64,
        backup_at: SystemTime,
        revision: Revision,
        tie: u64,
        now: SystemTime,
    ) -> Self {
        let before = before.map_or(0, |before| before.name.number).max(known);
        Self {
            name: EpochName {
                number: unix_seconds(now).max(before.saturating_add(1)),
                tie,
            },
            backup_at: unix_seconds(backup_at),
            revision,
            at: unix_seconds(now),
        }
    }

    /// When the restore was, Unix seconds.
    pub(crate) fn began_at(&self) -> u64 {
        match self.at {
            0 => self.name.number,
            at => at,
        }
    }

    /// Whether the store may lack the word on this certificate: it was issued after the backup and before the restore. When it was
    /// issued is known to the minute, by which certificates are back-dated.
    fn may_lack(&self, shown: &Leaf) -> bool {
        let begins = unix_seconds(shown.not_before());
        begins.saturating_add(BACK_DATED.as_secs()) >= self.backup_at && begins <= self.began_at()
    }
}

impl Record for Epoch {
    const PREFIX: &'static str = "epoch";
}

impl Record for Barred {
    /// Their names are SPIFFE IDs.
    const PREFIX: &'static str = "barred/";
}

// === impl Since ===

impl Since<'_> {
    /// Whether the authority's word is enough for a certificate that the store does not know.
    pub(crate) fn vouches(&self, shown: &Leaf) -> bool {
        !self.is_barred && self.epoch.is_some_and(|epoch| epoch.may_lack(shown))
    }
}

// === impl EpochIndex ===

impl EpochIndex {
    /// One write of the store.
    pub(crate) fn put(&mut self, mutation: Mutation<'_>) -> Result<(), BadRecord> {
        if let Some((_, epoch)) = mutation.of::<Epoch>()? {
            self.epoch = epoch;
        } else if let Some((id, barred)) = mutation.of::<Barred>()? {
            match barred {
                Some(Barred {}) => self.barred.insert(id.to_owned()),
                None => self.barred.remove(id),
            };
        }
        Ok(())
    }

    /// The last restore's.
    pub(crate) fn epoch(&self) -> Option<&Epoch> {
        self.epoch.as_ref()
    }

    /// What agents are told.
    pub(crate) fn name(&self) -> EpochName {
        self.epoch.as_ref().map(|epoch| epoch.name).unwrap_or_default()
    }

    /// For one agent.
    pub(crate) fn since(&self, agent: &SpiffeId) -> Since<'_> {
        Since {
            epoch: self.epoch.as_ref(),
            is_barred: self.barred.contains(agent.as_str()),
        }
    }
}
