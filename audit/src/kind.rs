//! Kinds of records: what a frame of the log may hold, and what all of them have in common.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use minicbor::{Decode, Decoder, Encode};

use crate::id::DecisionId;

/// What a frame holds. Its number stands in the frame and under the frame's hash, and is never used again for something
/// else; 0 is never used, so that empty bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum Kind {
    /// [`Record`](crate::Record): what was asked and answered.
    Decision = 1,
    /// [`Control`](crate::Control): who changed what.
    Control = 2,
    /// [`Issuance`](crate::Issuance): a certificate was issued.
    Issuance = 3,
    /// [`Loss`](crate::Loss): records were not written.
    Loss = 4,
    /// [`Heartbeat`](crate::Heartbeat): nothing happened, and the recorder is alive.
    Heartbeat = 5,
}

/// A word that names no kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no kind of record: expected decision, control, issuance, loss or heartbeat")]
pub struct InvalidKind(String);

/// What a [`crate::Recorder`] can append. Every kind is a CBOR map with integer keys in which key 0 is the sequence
/// number and key 1 the time: whoever does not know a kind can still count it, place it and check the chain over it.
pub trait Recordable: Encode<()> + for<'b> Decode<'b, ()> {
    /// Which kind it is.
    const KIND: Kind;
    /// Takes the name that the recorder gives, and keeps of each time what the disk keeps.
    fn stamp(&mut self, id: DecisionId);
    /// The name that the recorder gave.
    fn id(&self) -> &DecisionId;
    /// When it happened.
    fn at(&self) -> SystemTime;
}

/// What all records have.
#[derive(Clone, Copy, Decode)]
#[cbor(map)]
pub(crate) struct Common {
    #[n(0)]
    pub(crate) seq: u64,
    /// Microseconds since 1970.
    #[n(1)]
    pub(crate) at: i64,
}

// === impl Kind ===

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::Decision,
        Self::Control,
        Self::Issuance,
        Self::Loss,
        Self::Heartbeat,
    ];

    /// The word for it in output.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Decision => "decision",
            Self::Control => "control",
            Self::Issuance => "issuance",
            Self::Loss => "loss",
            Self::Heartbeat => "heartbeat",
        }
    }

    pub(crate) fn number(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = InvalidKind;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| InvalidKind(text.to_owned()))
    }
}

// === impl Common ===

impl Common {
    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        let mut decoder = Decoder::new(payload);
        let common: Self = decoder.decode().ok()?;
        (decoder.position() == payload.len()).then_some(common)
    }
}

/// The payload of a record.
#[expect(
    clippy::expect_used,
    reason = "a Vec takes every write, and no field's encoder has an error of its own"
)]
pub(crate) fn encode(record: &impl Recordable) -> Vec<u8> {
    minicbor::to_vec(record).expect("a Vec takes every write")
}

/// `None` when the bytes are no such record. The name but for the sequence number is the segment's.
pub(crate) fn decode<R: Recordable>(payload: &[u8], id: &DecisionId) -> Option<R> {
    let mut decoder = Decoder::new(payload);
    let mut record: R = decoder.decode().ok()?;
    let seq = record.id().seq;
    let id = id.clone();
    record.stamp(DecisionId { seq, ..id });
    (decoder.position() == payload.len()).then_some(record)
}
