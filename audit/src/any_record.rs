//! One record of a log, of whatever kind: how its bytes are read.

use std::time::SystemTime;

use serde::Serialize;

use crate::event::{Control, Heartbeat, Issuance, Loss};
use crate::fields::from_micros;
use crate::id::DecisionId;
use crate::kind::{Common, Kind, Recordable, decode};
use crate::record::Record;

/// One record of a log, of whatever kind. In JSON its fields, and `kind`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum AnyRecord {
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
    #[serde(skip)]
    Unknown {
        /// The kind's number.
        kind: u8,
        /// Its name.
        id: DecisionId,
        /// When it happened.
        at: SystemTime,
    },
}

// === impl AnyRecord ===

impl AnyRecord {
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

    /// When it happened.
    #[must_use]
    pub fn at(&self) -> SystemTime {
        match self {
            Self::Decision(record) => record.at(),
            Self::Control(record) => record.at(),
            Self::Issuance(record) => record.at(),
            Self::Loss(record) => record.at(),
            Self::Heartbeat(record) => record.at(),
            Self::Unknown { at, .. } => *at,
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::event::Stage;
    use crate::kind::encode;
    use crate::segment::{self, Frame, HEADER_BYTES, Head, Piece, Segment};
    use crate::testing::{open, record};
    use crate::{Class, Query, Tail, find, read_log, read_records, verify_log};

    fn records_of(directory: &Path) -> Vec<AnyRecord> {
        read_records(directory, None, None)
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
            stage: Stage::Done,
            reason: None,
            source: Some("192.0.2.7".into()),
            by: vec!["entries/own".into()],
            began: Some(0),
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
            how: "issue".into(),
            source: None,
            values: vec!["unix:user:ann".into()],
        };
        let mut loss = Loss {
            id: id.clone(),
            at,
            count: 3,
            reason: "the disk was full".into(),
            lost: Kind::Decision.number(),
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
            AnyRecord::Decision(Box::new(decision.clone())),
            AnyRecord::Control(control),
            AnyRecord::Issuance(issuance),
            AnyRecord::Loss(loss),
            AnyRecord::Heartbeat(heartbeat),
        ];
        assert_eq!(records_of(directory.path()), written);
        let all = Query::default();
        let found = |query: &Query| -> Vec<AnyRecord> {
            let found = find(directory.path(), query).unwrap();
            found.map(Result::unwrap).collect()
        };
        assert_eq!(found(&all), written);
        let kinds = vec![Kind::Control, Kind::Issuance];
        assert_eq!(found(&Query { kinds, ..all.clone() }), written[1..3]);
        let who = |principal: &str| Query {
            principal: Some(principal.to_owned()),
            ..all.clone()
        };
        assert_eq!(found(&who("uid:1000")), written[1..2]);
        assert_eq!(found(&who("spiffe://example.org/hoplite/agent/")), written[2..3]);
        let policy = Some("entries/own".to_owned());
        assert_eq!(found(&Query { policy, ..all.clone() }), written[1..2]);
        // No service is asked for at a CA.
        let service = Some("e1".to_owned());
        assert_eq!(found(&Query { service, ..all.clone() }), []);
        let json = serde_json::to_value(&written[1]).unwrap();
        assert_eq!((&json["kind"], &json["stage"]), (&"control".into(), &"done".into()));
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
        assert_eq!(tail.poll().unwrap(), [AnyRecord::Decision(Box::new(first))]);
        assert_eq!(tail.poll().unwrap(), [AnyRecord::Decision(Box::new(last))]);
        assert_eq!(tail.unknown(), 2);
        let kinds: Vec<_> = records_of(directory.path()).iter().map(AnyRecord::kind).collect();
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
            assert_eq!(
                AnyRecord::decode(77, payload, DecisionId::default()),
                None,
                "{payload:?}"
            );
        }
        let unknown = AnyRecord::decode(77, b"\xa2\x00\x05\x01\x02", DecisionId::default()).unwrap();
        assert_eq!((unknown.id().seq, unknown.kind()), (5, None));
    }
}
