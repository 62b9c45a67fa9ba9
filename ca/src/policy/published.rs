//! A published bundle as the store keeps it, and which of all are in force.

use std::time::SystemTime;

use data_encoding::HEXLOWER;
use hoplite_policy::bundle::{Bundle, BundleContents, Stage};
use hoplite_seal::Hash;
use hoplite_store::LargeId;
use serde::{Deserialize, Serialize};

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
    /// SHA-256 of the manifest, in hex.
    pub(crate) manifest: String,
    /// SHA-256 of the encoded bundle, in hex.
    pub(crate) bundle: String,
    pub(crate) bytes: u64,
    pub(crate) shadow: bool,
    pub(crate) signed_by: Vec<String>,
    pub(crate) created: u64,
    pub(crate) expires: u64,
    pub(crate) published: u64,
    pub(crate) note: Option<String>,
    pub(crate) policies: u64,
    pub(crate) files: u64,
    /// Whether the bundle itself is kept; its manifest always is.
    pub(crate) kept: bool,
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
        let bundle = self.bundle_id().filter(|_| self.kept);
        bundle.into_iter().chain(self.manifest_id()).collect()
    }
}

// === impl Head ===

impl Head {
    /// Whether the bundle is in force.
    pub(crate) fn is_current(&self, revision: u64) -> bool {
        [self.live, self.shadow].contains(&Some(revision))
    }
}

// === impl Published ===

impl Published {
    /// Names sort as revisions do.
    pub(crate) fn name_of(revision: u64) -> String {
        format!("{revision:020}")
    }

    pub(crate) fn new(bundle: &Bundle, encoded: &[u8], now: SystemTime) -> Self {
        let contents: &BundleContents = bundle;
        let manifest = contents.manifest();
        Self {
            revision: manifest.revision,
            manifest: contents.manifest_hash().to_string(),
            bundle: Hash::of(encoded).to_string(),
            bytes: encoded.len() as u64,
            shadow: manifest.stage == Stage::Shadow,
            signed_by: contents.signed_by().to_vec(),
            created: manifest.created,
            expires: manifest.expires,
            published: record::unix_seconds(now),
            note: manifest.note.clone(),
            policies: manifest.policies,
            files: manifest.files.len() as u64,
            kept: true,
        }
    }

    /// What the store calls the bundle.
    pub(crate) fn bundle_id(&self) -> Option<LargeId> {
        large_id(&self.bundle)
    }

    /// What the store calls the manifest.
    pub(crate) fn manifest_id(&self) -> Option<LargeId> {
        large_id(&self.manifest)
    }
}

/// The store names large values as people sign them: by SHA-256.
fn large_id(text: &str) -> Option<LargeId> {
    Some(LargeId(HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()?))
}
