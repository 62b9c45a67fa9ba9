//! The decision record: what was asked, by whom, what was answered and why.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use minicbor::{Decode, Encode};
use serde::Serialize;

use crate::fields::{
    as_optional_hex, as_optional_rfc3339, as_optional_text, as_rfc3339, as_text, micros, optional_micros, revision,
    seq_only, whole_micros,
};
use crate::id::DecisionId;
use crate::kind::{Kind, Recordable};

/// A text that is no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an outcome: expected allow, forbid, no_permit, error, unauthenticated or malformed")]
pub struct InvalidOutcome(String);

/// The answer. The first four are policy's; the others say that policy was never asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum Outcome {
    /// A permit matched and no forbid did.
    #[n(0)]
    Allow,
    /// A forbid matched.
    #[n(1)]
    Forbid,
    /// Nothing permitted it.
    #[n(2)]
    NoPermit,
    /// A candidate policy failed to evaluate, so the answer is no.
    #[n(3)]
    Error,
    /// The peer did not prove who it is.
    #[n(4)]
    Unauthenticated,
    /// The request could be read in more than one way.
    #[n(5)]
    Malformed,
}

/// What was being decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode, Serialize)]
#[cbor(index_only)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Who the peer is.
    #[n(0)]
    Handshake,
    /// An L4 connection.
    #[n(1)]
    Connect,
    /// One HTTP request.
    #[n(2)]
    Request,
    /// A live connection, or a request under way, decided again after a change.
    #[n(3)]
    Recheck,
}

/// One decision, as it is written. The recorder gives `id` and keeps `at`, to the microsecond.
///
/// On disk: a CBOR map with the integer keys below. A key is never used again for something else; readers skip keys
/// they do not know. The name and the boot stand in the segment's header, so a record carries only its sequence number.
#[derive(Debug, Clone, PartialEq, Encode, Decode, Serialize)]
#[cbor(map)]
pub struct Record {
    /// Its name; overwritten by the recorder.
    #[n(0)]
    #[cbor(with = "seq_only")]
    #[serde(serialize_with = "as_text")]
    pub id: DecisionId,
    /// When it was decided.
    #[n(1)]
    #[cbor(with = "micros")]
    #[serde(serialize_with = "as_rfc3339")]
    pub at: SystemTime,
    /// What was being decided.
    #[n(2)]
    pub phase: Phase,
    /// The answer.
    #[n(3)]
    #[serde(serialize_with = "as_text")]
    pub outcome: Outcome,
    /// The caller's SPIFFE ID; `None` when it is unauthenticated.
    #[n(4)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// Serial number of the caller's certificate, hex.
    #[n(5)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_serial: Option<String>,
    /// When the caller's certificate ends.
    #[n(6)]
    #[cbor(with = "optional_micros", has_nil)]
    #[serde(serialize_with = "as_optional_rfc3339", skip_serializing_if = "Option::is_none")]
    pub peer_not_after: Option<SystemTime>,
    /// Where the connection came from: `ip:port`.
    #[n(7)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The service that was called.
    #[n(8)]
    #[cbor(default)]
    pub service: String,
    /// `connect`, `GET`, …; empty at handshake.
    #[n(9)]
    #[cbor(default)]
    pub action: String,
    /// The route that matched: `ledger:GET /accounts/{id}`.
    #[n(10)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Canonical host.
    #[n(11)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Canonical path.
    #[n(12)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Version and key exchange: `1.3 X25519MLKEM768`.
    #[n(13)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
    /// Cedar's own answer: `allow` or `deny`.
    #[n(14)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cedar_decision: Option<String>,
    /// The ids of the policies that decided.
    #[n(15)]
    #[cbor(default)]
    pub determining: Vec<String>,
    /// `policy-id: what went wrong`.
    #[n(16)]
    #[cbor(default)]
    pub errors: Vec<String>,
    /// For people: the rejection code and text of handshake and malformed; why the snapshot denies all.
    #[n(17)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The revision of the policy that decided.
    #[n(18)]
    #[cbor(with = "revision", has_nil)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_revision: Option<String>,
    /// Whether the policy was older than it should have been.
    #[n(19)]
    #[cbor(default)]
    pub stale: bool,
    /// Hex of a valid incoming traceparent.
    #[n(20)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// How many other refusals of this caller, or of strangers, it stands for: as many before it had this service, phase and
    /// outcome, and have no record of their own.
    #[n(21)]
    #[cbor(default)]
    pub suppressed: u64,
    /// How long policy took, in microseconds.
    #[n(22)]
    #[cbor(default)]
    pub eval_micros: u64,
    /// The revision of the signed bundle that decided; none for a policy directory.
    #[n(23)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle_revision: Option<u64>,
    /// The revision of the shadow policy that was tried beside the one that decided.
    #[n(24)]
    #[cbor(with = "revision", has_nil)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow_revision: Option<String>,
    /// What the shadow policy would have answered.
    #[n(25)]
    #[serde(serialize_with = "as_optional_text", skip_serializing_if = "Option::is_none")]
    pub shadow_outcome: Option<Outcome>,
    /// Where that differs: the ids of the policies that would have decided.
    #[n(26)]
    #[cbor(default)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shadow_determining: Vec<String>,
    /// Who verified the caller's certificate, where it was not this process: an Envoy's SPIFFE ID.
    #[n(27)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vouched_by: Option<String>,
    /// The headers that policy selects, each with its value or, where the request had none, nothing.
    #[n(28)]
    #[cbor(default, skip_if = "BTreeMap::is_empty")]
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Option<String>>,
    /// SHA-256 of the manifest of the signed bundle that decided: what its signers signed; none for a policy directory.
    #[n(29)]
    #[cbor(with = "minicbor::bytes", default, skip_if = "Option::is_none")]
    #[serde(serialize_with = "as_optional_hex", skip_serializing_if = "Option::is_none")]
    pub bundle_manifest: Option<[u8; 32]>,
}

// === impl Outcome ===

impl Outcome {
    const ALL: [Self; 6] = [
        Self::Allow,
        Self::Forbid,
        Self::NoPermit,
        Self::Error,
        Self::Unauthenticated,
        Self::Malformed,
    ];

    /// The word for it in queries and output.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Forbid => "forbid",
            Self::NoPermit => "no_permit",
            Self::Error => "error",
            Self::Unauthenticated => "unauthenticated",
            Self::Malformed => "malformed",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Outcome {
    type Err = InvalidOutcome;

    fn from_str(text: &str) -> Result<Self, InvalidOutcome> {
        let found = Self::ALL.into_iter().find(|outcome| outcome.as_str() == text);
        found.ok_or_else(|| InvalidOutcome(text.to_owned()))
    }
}

// === impl Phase ===

impl Phase {
    /// The word for it in output.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Connect => "connect",
            Self::Request => "request",
            Self::Recheck => "recheck",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

// === impl Record ===

impl Record {
    /// A record of this moment, with nothing else known yet.
    #[must_use]
    pub fn new(phase: Phase, outcome: Outcome, service: impl Into<String>, at: SystemTime) -> Self {
        Self {
            id: DecisionId::default(),
            at,
            phase,
            outcome,
            principal: None,
            peer_serial: None,
            peer_not_after: None,
            source: None,
            service: service.into(),
            action: String::new(),
            route: None,
            host: None,
            path: None,
            tls: None,
            cedar_decision: None,
            determining: Vec::new(),
            errors: Vec::new(),
            reason: None,
            policy_revision: None,
            stale: false,
            trace_id: None,
            suppressed: 0,
            eval_micros: 0,
            bundle_revision: None,
            shadow_revision: None,
            shadow_outcome: None,
            shadow_determining: Vec::new(),
            vouched_by: None,
            headers: BTreeMap::new(),
            bundle_manifest: None,
        }
    }

    /// Whether a shadow policy would have answered otherwise.
    #[must_use]
    pub fn shadow_differs(&self) -> bool {
        self.shadow_outcome.is_some_and(|outcome| outcome != self.outcome)
    }
}

impl Recordable for Record {
    const KIND: Kind = Kind::Decision;

    fn stamp(&mut self, id: DecisionId) {
        self.id = id;
        self.at = whole_micros(self.at);
        self.peer_not_after = self.peer_not_after.map(whole_micros);
    }

    fn id(&self) -> &DecisionId {
        &self.id
    }

    fn at(&self) -> SystemTime {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;

    use super::*;
    use crate::fields::from_micros;
    use crate::id::BootId;
    use crate::kind::{decode, encode};

    fn id(seq: u64) -> DecisionId {
        DecisionId {
            recorder: "ledger".into(),
            boot: BootId::from_bits(3),
            seq,
        }
    }

    fn decoded(payload: &[u8]) -> Option<Record> {
        decode(payload, &id(0))
    }

    #[test]
    fn outcomes_have_one_word_each() {
        for outcome in Outcome::ALL {
            assert_eq!(outcome.as_str().parse(), Ok(outcome));
        }
        for text in ["", "Allow", "denied", "no-permit"] {
            assert!(
                text.parse::<Outcome>()
                    .unwrap_err()
                    .to_string()
                    .contains(&format!("`{text}`"))
            );
        }
    }

    #[test]
    fn json_is_flat_and_leaves_out_what_is_not_known() {
        let mut record = Record::new(Phase::Request, Outcome::NoPermit, "ledger", SystemTime::now());
        record.id = id(42);
        record.at = UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_001);
        let expected = r#"{"id":"ledger-0000000000000003-42","at":"2023-11-14T22:13:20.000001Z","phase":"request","outcome":"no_permit","service":"ledger","action":"","determining":[],"errors":[],"stale":false,"suppressed":0,"eval_micros":0}"#;
        assert_eq!(serde_json::to_string(&record).unwrap(), expected);
        record.peer_not_after = Some(record.at);
        record.principal = Some("spiffe://example.org/orders".into());
        let value = serde_json::to_value(&record).unwrap();
        assert_eq!(value["peer_not_after"], "2023-11-14T22:13:20.000001Z");
        assert_eq!(value["principal"], "spiffe://example.org/orders");
        record.headers = [("x-debug".into(), None), ("x-tenant".into(), Some("acme".into()))].into();
        let value = serde_json::to_value(&record).unwrap();
        assert_eq!(
            value["headers"],
            serde_json::json!({"x-debug": null, "x-tenant": "acme"})
        );
    }

    /// A record without headers has the very bytes that it had before there were any.
    #[test]
    fn headers_take_no_room_where_there_are_none() {
        let mut record = Record::new(Phase::Request, Outcome::Allow, "ledger", SystemTime::now());
        (record.id, record.at) = (id(0), UNIX_EPOCH);
        let bytes = encode(&record);
        let before = minicbor::Decoder::new(&bytes).map().unwrap().unwrap();
        record.headers.insert("a".into(), None);
        let with = encode(&record);
        assert_eq!(minicbor::Decoder::new(&with).map().unwrap(), Some(before + 1));
        assert_eq!(with.len(), bytes.len() + b"\x18\x1c\xa1\x61a\xf6".len());
        assert_eq!(decoded(&with), Some(record));
    }

    #[test]
    fn any_clock_can_be_shown() {
        let mut record = Record::new(Phase::Request, Outcome::Allow, "s", SystemTime::now());
        for at in [
            UNIX_EPOCH - Duration::from_secs(1),
            UNIX_EPOCH + Duration::from_secs(1 << 50),
        ] {
            record.at = at;
            serde_json::to_string(&record).unwrap();
        }
    }

    /// What a later version adds is skipped; what an earlier one left out has a default.
    #[test]
    fn old_and_new_read_each_other() {
        let mut encoder = minicbor::Encoder::new(Vec::new());
        encoder.map(6).unwrap();
        encoder.u8(0).unwrap().u64(7).unwrap();
        encoder.u8(1).unwrap().i64(1_000_000).unwrap();
        encoder.u8(2).unwrap().u8(1).unwrap();
        encoder.u8(3).unwrap().u8(2).unwrap();
        encoder.u8(8).unwrap().str("ledger").unwrap();
        encoder
            .u16(999)
            .unwrap()
            .array(2)
            .unwrap()
            .str("new")
            .unwrap()
            .map(1)
            .unwrap()
            .u8(1)
            .unwrap()
            .bool(true)
            .unwrap();
        let found = decoded(encoder.writer()).unwrap();
        let mut expected = Record::new(Phase::Connect, Outcome::NoPermit, "ledger", SystemTime::now());
        expected.id = id(7);
        expected.at = UNIX_EPOCH + Duration::from_secs(1);
        assert_eq!(found, expected);
    }

    fn text() -> impl Strategy<Value = String> {
        "\\PC{0,20}"
    }

    prop_compose! {
        pub(crate) fn records()(
            seq in any::<u64>(),
            times in (-(1i64 << 50)..1 << 50, proptest::option::of(-(1i64 << 50)..1 << 50)),
            phase in proptest::sample::select(vec![Phase::Handshake, Phase::Connect, Phase::Request, Phase::Recheck]),
            outcome in proptest::sample::select(Outcome::ALL.to_vec()),
            optional in proptest::collection::vec(proptest::option::of(text()), 11),
            texts in (text(), text()),
            lists in (proptest::collection::vec(text(), 0..4), proptest::collection::vec(text(), 0..4)),
            stale in any::<bool>(),
            numbers in any::<(u64, u64)>(),
            headers in proptest::collection::btree_map(text(), proptest::option::of(text()), 0..4),
            bundle_manifest in any::<Option<[u8; 32]>>(),
        ) -> Record {
            let mut optional = optional.into_iter();
            let mut next = || optional.next().unwrap();
            Record {
                id: id(seq),
                at: from_micros(times.0).unwrap(),
                phase,
                outcome,
                principal: next(),
                peer_serial: next(),
                peer_not_after: times.1.and_then(from_micros),
                source: next(),
                service: texts.0,
                action: texts.1,
                route: next(),
                host: next(),
                path: next(),
                tls: next(),
                cedar_decision: next(),
                determining: lists.0,
                errors: lists.1,
                reason: next(),
                policy_revision: next(),
                stale,
                trace_id: next(),
                suppressed: numbers.0,
                eval_micros: numbers.1,
                bundle_revision: None,
                shadow_revision: None,
                shadow_outcome: None,
                shadow_determining: Vec::new(),
                vouched_by: None,
                headers,
                bundle_manifest,
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn records_come_back(record in records()) {
            let payload = encode(&record);
            prop_assert_eq!(decoded(&payload), Some(record));
            prop_assert_eq!(decoded(&payload[..payload.len() - 1]), None);
            prop_assert_eq!(decoded(&[&payload[..], &[0]].concat()), None);
        }

        #[test]
        fn arbitrary_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decoded(&bytes);
        }

        #[test]
        fn rounding_a_time_twice_changes_nothing(nanos in -(1i64 << 60)..1 << 60) {
            let distance = Duration::from_nanos(nanos.unsigned_abs());
            let at = if nanos < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance };
            let rounded = whole_micros(at);
            prop_assert!(rounded <= at && at < rounded + Duration::from_micros(1));
            prop_assert_eq!(whole_micros(rounded), rounded);
        }
    }
}
