//! Kinds of records: what a frame of the log may hold, and what all of them have in common.

use std::fmt;
use std::time::SystemTime;

use minicbor::{Decode, Decoder, Encode};

use crate::event::{Control, Heartbeat, Issuance, Loss};
use crate::fields::from_micros;
use crate::id::DecisionId;
use crate::record::Record;

/// What a frame holds. Its number stands in the frame and under the frame's hash, and is never used again for something
/// else; 0 is never used, so that empty bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum Kind {
    /// [`Record`]: what was asked and answered.
    Decision = 1,
    /// [`Control`]: who changed what.
    Control = 2,
    /// [`Issuance`]: a certificate was issued.
    Issuance = 3,
    /// [`Loss`]: records were not written.
    Loss = 4,
    /// [`Heartbeat`]: nothing happened, and the recorder is alive.
    Heartbeat = 5,
}

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

/// One record of a log, of whatever kind.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Entry {
    /// What was asked and answered.
    Decision(Box<Record>),
    /// Who changed what.
    Control(Control),
    /// A certificate was issued.
    Issuance(Issuance),
    /// Records were not written.
    Loss(Loss),
    /// The recorder is alive.
    Heartbeat(Heartbeat),
    /// Sound, and of a kind or a version that this program does not know.
    Unknown {
        /// The kind's number.
        kind: u8,
        /// Its name.
        id: DecisionId,
        /// When it happened.
        at: SystemTime,
    },
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

// === impl Entry ===

impl Entry {
    /// `None` when the bytes are no record of any kind.
    pub(crate) fn decode(kind: u8, payload: &[u8], mut id: DecisionId) -> Option<Self> {
        let common = Common::decode(payload)?;
        id.seq = common.seq;
        let known = if kind == Kind::Decision.number() {
            decode(payload, &id).map(Box::new).map(Self::Decision)
        } else if kind == Kind::Control.number() {
            decode(payload, &id).map(Self::Control)
        } else if kind == Kind::Issuance.number() {
            decode(payload, &id).map(Self::Issuance)
        } else if kind == Kind::Loss.number() {
            decode(payload, &id).map(Self::Loss)
        } else if kind == Kind::Heartbeat.number() {
            decode(payload, &id).map(Self::Heartbeat)
        } else {
            None
        };
        let at = from_micros(common.at)?;
        Some(known.unwrap_or(Self::Unknown { kind, id, at }))
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> &DecisionId {
        match self {
            Self::Decision(record) => record.id(),
            Self::Control(record) => record.id(),
            Self::Issuance(record) => record.id(),
            Self::Loss(record) => record.id(),
            Self::Heartbeat(record) => record.id(),
            Self::Unknown { id, .. } => id,
        }
    }

    /// Which kind it is; `None` for one that is not known.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::Decision(_) => Some(Kind::Decision),
            Self::Control(_) => Some(Kind::Control),
            Self::Issuance(_) => Some(Kind::Issuance),
            Self::Loss(_) => Some(Kind::Loss),
            Self::Heartbeat(_) => Some(Kind::Heartbeat),
            Self::Unknown { .. } => None,
        }
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::segment::{self, Frame, HEADER_BYTES, Head, Piece, Segment};
    use crate::testing::{open, record};
    use crate::{Class, Query, Tail, read_entries, read_log, verify_log};

    fn entries(directory: &Path) -> Vec<Entry> {
        read_entries(directory, None, None)
            .unwrap()
            .map(Result::unwrap)
            .collect()
    }

    #[test]
    fn every_kind_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let at = UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_001);
        let id = DecisionId::default();
        let mut decision = record(1);
        let mut control = Control {
            id: id.clone(),
            at,
            actor: "uid:1000".into(),
            action: "entries.create".into(),
            subject: "e1".into(),
            refused: None,
            detail: [("selector".into(), "unix:uid:7".into())].into(),
        };
        let mut issuance = Issuance {
            id: id.clone(),
            at,
            subject: "spiffe://example.org/orders".into(),
            serial: "0a".into(),
            not_after: at + Duration::from_secs(3600) + Duration::from_nanos(7),
            requester: "spiffe://example.org/hoplite/agent/a".into(),
            entry: Some("e1".into()),
            authority: None,
        };
        let mut loss = Loss {
            id: id.clone(),
            at,
            count: 3,
            reason: "the disk was full".into(),
            kind: Kind::Decision.number(),
        };
        let mut heartbeat = Heartbeat { id, at };
        let (recorder, _) = open(directory.path());
        recorder.append(&mut decision, Class::Full).unwrap();
        recorder.append(&mut control, Class::Must).unwrap();
        recorder.append(&mut issuance, Class::Must).unwrap();
        recorder.append(&mut loss, Class::Must).unwrap();
        let last = recorder.append(&mut heartbeat, Class::Full).unwrap();
        recorder.wait_durable(last.seq).unwrap();
        let seqs = [
            decision.id.seq,
            control.id.seq,
            issuance.id.seq,
            loss.id.seq,
            heartbeat.id.seq,
        ];
        assert_eq!(seqs, [0, 1, 2, 3, 4], "one order for all kinds");
        let written = [
            Entry::Decision(Box::new(decision.clone())),
            Entry::Control(control),
            Entry::Issuance(issuance),
            Entry::Loss(loss),
            Entry::Heartbeat(heartbeat),
        ];
        assert_eq!(entries(directory.path()), written);
        let report = verify_log(directory.path()).unwrap();
        assert_eq!((report.records, report.unknown, report.findings), (5, 0, vec![]));
        let kinds: Vec<(&str, u64)> = report
            .kinds
            .iter()
            .map(|(kind, count)| (kind.as_str(), *count))
            .collect();
        let expected = ["decision", "control", "issuance", "loss", "heartbeat"].map(|kind| (kind, 1));
        assert_eq!(kinds, expected);
        // A query for decisions gives decisions, and knows what it passed over.
        let mut decisions = read_log(directory.path(), &Query::default()).unwrap();
        let found: Vec<_> = decisions.by_ref().map(Result::unwrap).collect();
        assert_eq!((found, decisions.unknown()), (vec![decision], 0));
    }

    /// What a later version writes: a kind that is new, and a decision with an outcome that is. Readers pass over both,
    /// count them, go on behind them, and check the chain over them.
    #[test]
    fn what_is_not_known_is_counted_and_its_chain_checked() {
        let directory = tempfile::tempdir().unwrap();
        let (recorder, _) = open(directory.path());
        let mut first = record(0);
        recorder.append(&mut first, Class::Full).unwrap();
        drop(recorder);
        let name = segment::list(directory.path()).unwrap().0[0];
        let path = directory.path().join(name.file_name());
        let mut bytes = fs::read(&path).unwrap();
        let segment = Segment::from_bytes(name, bytes.clone());
        let Some(Piece::Frame(frame)) = segment.piece(HEADER_BYTES) else {
            panic!("there is a record");
        };
        let mut hash = frame.hash;
        let mut new_outcome = record(2);
        new_outcome.id.seq = 2;
        let mut new_outcome = encode(&new_outcome);
        // Key 3, the outcome.
        let at = new_outcome
            .windows(2)
            .position(|bytes| bytes == [3, 0] || bytes == [3, 1])
            .unwrap();
        new_outcome[at + 1] = 23;
        let new_kind = encode(&Heartbeat {
            id: DecisionId {
                seq: 1,
                ..DecisionId::default()
            },
            at: UNIX_EPOCH,
        });
        for (kind, payload) in [(77, &new_kind), (Kind::Decision.number(), &new_outcome)] {
            let (frame, link) = Frame::encode_numbered(&hash, kind, payload);
            bytes.extend_from_slice(&frame);
            hash = link;
        }
        fs::write(&path, &bytes).unwrap();
        let head = Head {
            place: name.place,
            boot: name.boot,
            records: 3,
            segment_first_seq: 0,
            end: bytes.len() as u64,
            hash,
        };
        fs::write(Head::path(directory.path()), head.encode()).unwrap();
        // A boot after it goes on from there.
        let (recorder, repair) = open(directory.path());
        let mut last = record(3);
        recorder.append(&mut last, Class::Full).unwrap();
        drop(recorder);
        assert_eq!((repair.missing, repair.torn_bytes), (0, 0));

        let report = verify_log(directory.path()).unwrap();
        assert_eq!((report.records, report.unknown, report.findings), (4, 2, vec![]));
        let mut decisions = read_log(directory.path(), &Query::default()).unwrap();
        let found: Vec<_> = decisions.by_ref().map(Result::unwrap).collect();
        assert_eq!((found, decisions.unknown()), (vec![first.clone(), last.clone()], 2));
        let mut tail = Tail::open(directory.path(), false).unwrap();
        assert_eq!(tail.poll().unwrap(), [first]);
        assert_eq!(tail.poll().unwrap(), [last]);
        assert_eq!(tail.unknown(), 2);
        let kinds: Vec<_> = entries(directory.path()).iter().map(Entry::kind).collect();
        assert_eq!(kinds, [Some(Kind::Decision), None, None, Some(Kind::Decision)]);

        // Changed, they are found as anything else.
        let mut changed = fs::read(&path).unwrap();
        let end = changed.len();
        changed[end - 40] ^= 1;
        fs::write(&path, changed).unwrap();
        assert_eq!(verify_log(directory.path()).unwrap().findings.len(), 1);
    }

    #[test]
    fn bytes_without_number_and_time_are_no_record() {
        for payload in [&b""[..], b"\xa0", b"\xa1\x00\x01", b"\xa2\x00\x01\x01\x02\x00", b"\x01"] {
            assert_eq!(Entry::decode(77, payload, DecisionId::default()), None, "{payload:?}");
        }
        let unknown = Entry::decode(77, b"\xa2\x00\x05\x01\x02", DecisionId::default()).unwrap();
        assert_eq!((unknown.id().seq, unknown.kind()), (5, None));
    }
}
