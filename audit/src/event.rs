//! Records of what is no decision: changes, certificates, losses and signs of life. Few fields yet; keys are never used
//! again for something else, and readers skip those they do not know.

use std::collections::BTreeMap;
use std::time::SystemTime;

use minicbor::{Decode, Encode};
use serde::Serialize;

use crate::fields::{as_rfc3339, as_text, micros, seq_only, whole_micros};
use crate::id::DecisionId;
use crate::kind::{Kind, Recordable};

/// Somebody changed something at the CA or at an agent, or was refused to.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct Control {
    /// Its name; overwritten by the recorder.
    #[n(0)]
    #[cbor(with = "seq_only")]
    #[serde(serialize_with = "as_text")]
    pub id: DecisionId,
    /// When it was done.
    #[n(1)]
    #[cbor(with = "micros")]
    #[serde(serialize_with = "as_rfc3339")]
    pub at: SystemTime,
    /// Who: a SPIFFE ID, or `uid:1000` at a local socket.
    #[n(2)]
    pub actor: String,
    /// What was done, in the words of the API: `entries.create`.
    #[n(3)]
    pub action: String,
    /// To what: an entry's id, an agent's, a bundle's revision.
    #[n(4)]
    pub subject: String,
    /// Why it was refused; none when it was done.
    #[n(5)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What else is worth keeping, by name.
    #[n(6)]
    #[cbor(default, skip_if = "BTreeMap::is_empty")]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub detail: BTreeMap<String, String>,
}

/// A certificate was issued.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct Issuance {
    /// Its name; overwritten by the recorder.
    #[n(0)]
    #[cbor(with = "seq_only")]
    #[serde(serialize_with = "as_text")]
    pub id: DecisionId,
    /// When it was issued.
    #[n(1)]
    #[cbor(with = "micros")]
    #[serde(serialize_with = "as_rfc3339")]
    pub at: SystemTime,
    /// The SPIFFE ID in it.
    #[n(2)]
    pub subject: String,
    /// Its serial number, hex.
    #[n(3)]
    pub serial: String,
    /// When it ends.
    #[n(4)]
    #[cbor(with = "micros")]
    #[serde(serialize_with = "as_rfc3339")]
    pub not_after: SystemTime,
    /// Who asked for it: the agent's SPIFFE ID.
    #[n(5)]
    pub requester: String,
    /// The registration entry that says it may; none for an agent's own certificate.
    #[n(6)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    /// The key that signed it, by its id; none where there is one only.
    #[n(7)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
}

/// Records that should be here were not written.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct Loss {
    /// Its name; overwritten by the recorder.
    #[n(0)]
    #[cbor(with = "seq_only")]
    #[serde(serialize_with = "as_text")]
    pub id: DecisionId,
    /// When it was noticed.
    #[n(1)]
    #[cbor(with = "micros")]
    #[serde(serialize_with = "as_rfc3339")]
    pub at: SystemTime,
    /// How many.
    #[n(2)]
    pub count: u64,
    /// Why.
    #[n(3)]
    pub reason: String,
    /// The kind that was lost, as its number.
    #[n(4)]
    pub kind: u8,
}

/// The recorder is alive, so that silence is not taken for quiet.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct Heartbeat {
    /// Its name; overwritten by the recorder.
    #[n(0)]
    #[cbor(with = "seq_only")]
    #[serde(serialize_with = "as_text")]
    pub id: DecisionId,
    /// When.
    #[n(1)]
    #[cbor(with = "micros")]
    #[serde(serialize_with = "as_rfc3339")]
    pub at: SystemTime,
}

// === impl Recordable ===

impl Recordable for Control {
    const KIND: Kind = Kind::Control;

    fn stamp(&mut self, id: DecisionId) {
        (self.id, self.at) = (id, whole_micros(self.at));
    }

    fn id(&self) -> &DecisionId {
        &self.id
    }

    fn at(&self) -> SystemTime {
        self.at
    }
}

impl Recordable for Issuance {
    const KIND: Kind = Kind::Issuance;

    fn stamp(&mut self, id: DecisionId) {
        (self.id, self.at) = (id, whole_micros(self.at));
        self.not_after = whole_micros(self.not_after);
    }

    fn id(&self) -> &DecisionId {
        &self.id
    }

    fn at(&self) -> SystemTime {
        self.at
    }
}

impl Recordable for Loss {
    const KIND: Kind = Kind::Loss;

    fn stamp(&mut self, id: DecisionId) {
        (self.id, self.at) = (id, whole_micros(self.at));
    }

    fn id(&self) -> &DecisionId {
        &self.id
    }

    fn at(&self) -> SystemTime {
        self.at
    }
}

impl Recordable for Heartbeat {
    const KIND: Kind = Kind::Heartbeat;

    fn stamp(&mut self, id: DecisionId) {
        (self.id, self.at) = (id, whole_micros(self.at));
    }

    fn id(&self) -> &DecisionId {
        &self.id
    }

    fn at(&self) -> SystemTime {
        self.at
    }
}
