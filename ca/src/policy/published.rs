//! A published bundle as the store keeps it, and which of all are in force.

use std::time::SystemTime;

use hoplite_policy::bundle::{Seen, Stage};
use hoplite_policy::holding::{BundleRef, HeldBundle, NotRestored, Slots};
use hoplite_seal::Hash;
use hoplite_store::LargeId;
use serde::{Deserialize, Serialize};

use crate::policy::grant::GrantRecord;
use crate::record::{self, Record};

/// What is in force. There is one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// Of all bundles ever published.
    pub(crate) highest: u64,
    pub(crate) live: Option<u64>,
    pub(crate) shadow: Option<u64>,
}

/// One published bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Published {
    pub(crate) revision: u64,
    /// The digest of the manifest.
    #[serde(with = "record::hash")]
    pub(crate) manifest: Hash,
    /// The digest of the encoded bundle.
    #[serde(with = "record::hash")]
    pub(crate) bundle: Hash,
    pub(crate) bytes: u64,
    pub(crate) shadow: bool,
    pub(crate) signed_by: Vec<String>,
    pub(crate) created: u64,
    pub(crate) expires: u64,
    pub(crate) published: u64,
    pub(crate) note: Option<String>,
    pub(crate) policies: u64,
    pub(crate) files: u64,
    /// Whether the bundle itself is kept; its manifest always is, unless it is lost.
    pub(crate) kept: bool,
    /// Whether the manifest is gone from the store, which it should never be.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) lost: bool,
}

impl Record for Head {
    const PREFIX: &'static str = "policy/head";
}

impl Record for Published {
    /// Their names are their revisions, as [`Published::name_of`] writes them.
    const PREFIX: &'static str = "policy/bundle/";
    /// The records of format 1 name nothing in the store: their bundles were files beside it.
    const FORMAT: u32 = 2;
    const COUNTED: bool = true;

    fn large(&self) -> Vec<LargeId> {
        let bundle = self.kept.then(|| self.bundle_id());
        let manifest = (!self.lost).then(|| self.manifest_id());
        bundle.into_iter().chain(manifest).collect()
    }
}

// === impl Head ===

impl Head {
    /// Whether the bundle is in force.
    pub(crate) fn is_current(&self, revision: u64) -> bool {
        [self.live, self.shadow].contains(&Some(revision))
    }

    /// What is in force, by the rules that whoever enforces it has too. Of `history` the newest come last.
    pub(crate) fn slots<'a>(
        &self,
        history: impl DoubleEndedIterator<Item = &'a Published> + Clone,
    ) -> Slots<Published, GrantRecord> {
        let mut slots = Slots::default();
        for (stage, revision) in [(Stage::Live, self.live), (Stage::Shadow, self.shadow)] {
            let mut of_stage = history.clone().rev().filter(|published| published.stage() == stage);
            let seen = of_stage.clone().next().map(BundleRef::seen);
            let held = revision.map(|revision| of_stage.find(|published| published.revision == revision));
            slots.restore(
                stage,
                seen,
                held.map(|found| found.cloned().ok_or(NotRestored::Missing)).transpose(),
            );
        }
        slots
    }
}

// === impl Published ===

impl BundleRef for Published {
    fn stage(&self) -> Stage {
        if self.shadow { Stage::Shadow } else { Stage::Live }
    }

    fn seen(&self) -> Seen {
        Seen {
            revision: self.revision,
            manifest: self.manifest,
        }
    }

    fn expires(&self) -> SystemTime {
        record::from_unix_seconds(self.expires)
    }
}

impl Published {
    /// Names sort as revisions do.
    pub(crate) fn name_of(revision: u64) -> String {
        format!("{revision:020}")
    }

    pub(crate) fn new(bundle: &HeldBundle, now: SystemTime) -> Self {
        let manifest = bundle.manifest();
        Self {
            revision: manifest.revision,
            manifest: bundle.manifest_hash(),
            bundle: Hash::of(bundle.bytes()),
            bytes: bundle.bytes().len() as u64,
            shadow: manifest.stage == Stage::Shadow,
            signed_by: bundle.signed_by().to_vec(),
            created: manifest.created,
            expires: manifest.expires,
            published: record::unix_seconds(now),
            note: manifest.note.clone(),
            policies: manifest.policies,
            files: manifest.files.len() as u64,
            kept: true,
            lost: false,
        }
    }

    /// What the store calls the bundle: both name it by SHA-256.
    pub(crate) fn bundle_id(&self) -> LargeId {
        LargeId(self.bundle.0)
    }

    /// What the store calls the manifest.
    pub(crate) fn manifest_id(&self) -> LargeId {
        LargeId(self.manifest.0)
    }
}
