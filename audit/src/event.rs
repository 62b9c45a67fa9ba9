//! Records of what is no decision: changes, certificates, losses and signs of life. Few fields yet; keys are never used
//! again for something else, and readers skip those they do not know.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use minicbor::{Decode, Encode};
use serde::Serialize;

use crate::fields::{as_rfc3339, as_text, micros, seq_only, whole_micros};
use crate::id::DecisionId;
use crate::kind::{Kind, Recordable};

/// How far an act is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode, Serialize)]
#[cbor(index_only)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Written before it is done. Without a later record of it, whoever did it was killed on the way: it may be done, or not.
    #[n(0)]
    Begun,
    /// Done.
    #[n(1)]
    Done,
    /// Not done.
    #[n(2)]
    Refused,
}

/// Somebody changed something at the CA or at an agent, or was refused to.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct Control {
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
    /// Who: a SPIFFE ID, `local user 0` at a local socket, or the address of somebody of whom nothing else is known.
    #[n(2)]
    pub actor: String,
    /// What, by the name of the RPC: `CreateEntries`.
    #[n(3)]
    pub action: String,
    /// To what: an entry's id, an agent's, a bundle's revision.
    #[n(4)]
    pub subject: String,
    /// How far it is.
    #[n(5)]
    pub stage: Stage,
    /// Why it was refused.
    #[n(6)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// From where: an IP address; none on a local socket.
    #[n(7)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The policies that permitted it.
    #[n(8)]
    #[cbor(default, skip_if = "Vec::is_empty")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by: Vec<String>,
    /// The sequence number, in this boot, of the record with which it began.
    #[n(9)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub began: Option<u64>,
    /// What else is worth keeping, by name.
    #[n(10)]
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
    /// Its serial number, hex; of a JWT-SVID the SHA-256 of the token.
    #[n(3)]
    pub serial: String,
    /// When it ends.
    #[n(4)]
    #[cbor(with = "micros")]
    #[serde(serialize_with = "as_rfc3339")]
    pub not_after: SystemTime,
    /// Who asked for it, by its SPIFFE ID: of an agent's or operator's first certificate, itself.
    #[n(5)]
    pub requester: String,
    /// The registration entry that says it may; none for certificates of agents, operators and the CA.
    #[n(6)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    /// The authority that signed it, by its name.
    #[n(7)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// By what it was asked for: `join`, `renew`, `reattest`, `issue`, `issue_jwt`, `login`, `prolong`, or `own`, which nobody asked for.
    #[n(8)]
    pub how: String,
    /// From where: an IP address; none on a local socket.
    #[n(9)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Of an entry that is a template: the selectors that its agent attested of the workload, and that the name is made of.
    #[n(10)]
    #[cbor(default, skip_if = "Vec::is_empty")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
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
    pub lost: u8,
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

// === impl Stage ===

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Begun => "begun",
            Self::Done => "done",
            Self::Refused => "refused",
        })
    }
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
