//! What is written of the supply: changes, each of which takes the place of the one before for its entry.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use hoplite_wire::ca;
use prost::bytes::Bytes;
use zeroize::Zeroize;

/// Changes that were written together.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Batch {
    #[prost(message, repeated, tag = "1")]
    pub(crate) changes: Vec<Change>,
}

/// One change.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Change {
    /// Empty when it is about no entry.
    #[prost(string, tag = "1")]
    pub(crate) entry_id: String,
    /// It is registered so.
    #[prost(message, optional, tag = "2")]
    pub(crate) entry: Option<ca::Entry>,
    /// This is its SVID.
    #[prost(message, optional, tag = "3")]
    pub(crate) svid: Option<SvidRecord>,
    /// It is registered no more.
    #[prost(bool, tag = "4")]
    pub(crate) gone: bool,
    /// How far the CA was heard.
    #[prost(message, optional, tag = "5")]
    pub(crate) position: Option<Position>,
    /// What is held of foreign trust domains.
    #[prost(message, optional, tag = "6")]
    pub(crate) foreign: Option<ca::Foreign>,
}

/// A [`Batch`] whose changes are not looked at yet: parts of what was read, and no copies.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(crate) struct RawBatch {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub(crate) changes: Vec<Bytes>,
}

/// A [`Change`] of which only that is known which one it is.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(crate) struct RawChange {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) entry_id: Bytes,
    /// A `ca::Entry`.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub(crate) entry: Option<Bytes>,
    /// An [`SvidRecord`].
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub(crate) svid: Option<Bytes>,
    #[prost(bool, tag = "4")]
    pub(crate) gone: bool,
    #[prost(message, optional, tag = "5")]
    pub(crate) position: Option<Position>,
    #[prost(message, optional, tag = "6")]
    pub(crate) foreign: Option<ca::Foreign>,
}

/// Of a `ca::Entry` what it is found by.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(crate) struct RawEntry {
    /// Of a template's name the template's.
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) id: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) spiffe_id: Bytes,
    #[prost(bytes = "bytes", repeated, tag = "4")]
    pub(crate) selectors: Vec<Bytes>,
}

/// An SVID with its key.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(crate) struct SvidRecord {
    #[prost(string, tag = "1")]
    pub(crate) spiffe_id: String,
    /// Of the entry as it was minted for.
    #[prost(uint64, tag = "2")]
    pub(crate) entry_revision: u64,
    /// DER, the leaf first.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub(crate) chain: Vec<Vec<u8>>,
    /// PKCS#8.
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) key: Vec<u8>,
    /// Unix seconds, as the next ones.
    #[prost(uint64, tag = "5")]
    pub(crate) not_before: u64,
    #[prost(uint64, tag = "6")]
    pub(crate) not_after: u64,
    #[prost(uint64, tag = "7")]
    pub(crate) renew_at: u64,
}

/// How far the CA was heard, and whom it named as authorities then.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Position {
    #[prost(uint64, tag = "1")]
    pub(crate) revision: u64,
    #[prost(message, optional, tag = "2")]
    pub(crate) bundle: Option<ca::Bundle>,
    /// The operator's bundle file of that time: when it is another, the CA may be another.
    #[prost(string, tag = "3")]
    pub(crate) first_bundle: String,
    /// Unix seconds.
    #[prost(uint64, tag = "4")]
    pub(crate) heard: u64,
    /// Of which epoch of the CA the revision is.
    #[prost(message, optional, tag = "5")]
    pub(crate) epoch: Option<ca::Epoch>,
}

/// Whole seconds, as they are written down.
pub(crate) fn unix(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

// === impl RawBatch, RawChange, RawEntry: there are keys in them ===

impl fmt::Debug for RawBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawBatch").finish_non_exhaustive()
    }
}

impl fmt::Debug for RawChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawChange").finish_non_exhaustive()
    }
}

impl fmt::Debug for RawEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawEntry").finish_non_exhaustive()
    }
}

// === impl SvidRecord ===

impl SvidRecord {
    /// Wipes the key.
    pub(crate) fn wipe(&mut self) {
        self.key.zeroize();
    }
}

impl fmt::Debug for SvidRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SvidRecord")
            .field("spiffe_id", &self.spiffe_id)
            .finish_non_exhaustive()
    }
}
