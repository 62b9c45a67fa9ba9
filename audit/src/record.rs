//! The decision record: what was asked, by whom, what was answered and why.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use minicbor::{Decode, Encode};
use serde::{Serialize, Serializer};

/// Longest name of a recorder, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 64;

/// Names one record for ever: which recorder wrote it, in which of its boots, at which place.
/// Text form `<recorder>-<boot>-<seq>`, e.g. `orders-3-42`; the recorder name may itself contain `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct DecisionId {
    /// The recorder's name: `[a-z0-9.-]{1,64}`.
    pub recorder: String,
    /// Which start of the recorder, from 1.
    pub boot: u64,
    /// Place within the boot, from 0, without gaps.
    pub seq: u64,
}

/// A text that is no decision id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a decision id: expected `<recorder>-<boot>-<seq>`, for example `orders-3-42`")]
pub struct InvalidDecisionId(String);

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
    /// Refusals of strangers not recorded one by one since the record before.
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

// === impl DecisionId ===

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.recorder, self.boot, self.seq)
    }
}

impl FromStr for DecisionId {
    type Err = InvalidDecisionId;

    fn from_str(text: &str) -> Result<Self, InvalidDecisionId> {
        let parse = || {
            let (rest, seq) = text.rsplit_once('-')?;
            let (recorder, boot) = rest.rsplit_once('-')?;
            let id = Self {
                recorder: recorder.to_owned(),
                boot: boot.parse().ok()?,
                seq: seq.parse().ok()?,
            };
            // One text per id: no leading zeros, no plus signs.
            (is_recorder_name(recorder) && id.to_string() == text).then_some(id)
        };
        parse().ok_or_else(|| InvalidDecisionId(text.to_owned()))
    }
}

/// Whether a recorder may be called so: `[a-z0-9.-]{1,64}`, since the name stands in its decision ids.
pub fn is_recorder_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-'))
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
    /// A record of now, with nothing else known yet. For a time given, set `at`.
    #[must_use]
    pub fn new(phase: Phase, outcome: Outcome, service: impl Into<String>) -> Self {
        Self {
            id: DecisionId::default(),
            at: SystemTime::now(),
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

    #[expect(
        clippy::expect_used,
        reason = "a Vec takes every write, and no field's encoder has an error of its own"
    )]
    pub(crate) fn encode(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("a Vec takes every write")
    }

    /// `None` when the bytes are no record.
    pub(crate) fn decode(payload: &[u8], recorder: &str, boot: u64) -> Option<Self> {
        let mut decoder = minicbor::Decoder::new(payload);
        let mut record: Self = decoder.decode().ok()?;
        record.id.recorder = recorder.to_owned();
        record.id.boot = boot;
        (decoder.position() == payload.len()).then_some(record)
    }
}

// === Encoding of fields ===

/// The id as its sequence number.
mod seq_only {
    use super::DecisionId;
    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error, Write};
    use minicbor::{Decoder, Encoder};

    pub(super) fn encode<C, W: Write>(
        id: &DecisionId,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), Error<W::Error>> {
        encoder.u64(id.seq)?.ok()
    }

    pub(super) fn decode<C>(decoder: &mut Decoder<'_>, _: &mut C) -> Result<DecisionId, DecodeError> {
        Ok(DecisionId {
            seq: decoder.u64()?,
            ..DecisionId::default()
        })
    }
}

/// Microseconds since 1970, negative before.
mod micros {
    use super::{from_micros, to_micros};
    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error, Write};
    use minicbor::{Decoder, Encoder};
    use std::time::SystemTime;

    pub(super) fn encode<C, W: Write>(
        at: &SystemTime,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), Error<W::Error>> {
        encoder.i64(to_micros(*at))?.ok()
    }

    pub(super) fn decode<C>(decoder: &mut Decoder<'_>, _: &mut C) -> Result<SystemTime, DecodeError> {
        from_micros(decoder.i64()?).ok_or_else(|| DecodeError::message("time out of range"))
    }
}

/// The same, null when there is none.
mod optional_micros {
    use super::{from_micros, to_micros};
    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error, Write};
    use minicbor::{Decoder, Encoder};
    use std::time::SystemTime;

    pub(super) fn encode<C, W: Write>(
        at: &Option<SystemTime>,
        encoder: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), Error<W::Error>> {
        minicbor::Encode::encode(&at.map(to_micros), encoder, context)
    }

    pub(super) fn decode<C>(decoder: &mut Decoder<'_>, context: &mut C) -> Result<Option<SystemTime>, DecodeError> {
        let micros: Option<i64> = minicbor::Decode::decode(decoder, context)?;
        match micros {
            None => Ok(None),
            Some(micros) => from_micros(micros)
                .map(Some)
                .ok_or_else(|| DecodeError::message("time out of range")),
        }
    }

    /// Lets the field be left out.
    pub(super) fn nil<T>() -> Option<Option<T>> {
        Some(None)
    }

    /// Lets the encoder leave it out.
    pub(super) fn is_nil(at: &Option<SystemTime>) -> bool {
        at.is_none()
    }
}

/// Saturates some 292 000 years from 1970.
fn to_micros(at: SystemTime) -> i64 {
    let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    match at.duration_since(UNIX_EPOCH) {
        Ok(after) => micros(after),
        // Rounded down like times after 1970, so that rounding twice changes nothing.
        Err(before) => -micros(before.duration() + Duration::from_nanos(999)),
    }
}

fn from_micros(micros: i64) -> Option<SystemTime> {
    let distance = Duration::from_micros(micros.unsigned_abs());
    if micros < 0 {
        UNIX_EPOCH.checked_sub(distance)
    } else {
        UNIX_EPOCH.checked_add(distance)
    }
}

/// What the disk keeps of a time.
pub(crate) fn whole_micros(at: SystemTime) -> SystemTime {
    from_micros(to_micros(at)).unwrap_or(at)
}

// === JSON of fields ===

fn as_text<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn as_optional_text<S: Serializer>(value: &Option<impl fmt::Display>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

fn as_optional_hex<S: Serializer>(bytes: &Option<[u8; 32]>, serializer: S) -> Result<S::Ok, S::Error> {
    let hex = |bytes: &[u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    as_optional_text(&bytes.as_ref().map(hex), serializer)
}

fn as_rfc3339<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    // Formatting fails outside the years 1970 to 9999: such a clock is shown as the nearest of the two.
    let latest = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    serializer.collect_str(&humantime::format_rfc3339_micros((*at).clamp(UNIX_EPOCH, latest)))
}

fn as_optional_rfc3339<S: Serializer>(at: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => as_rfc3339(at, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn decision_ids_have_one_text_each() {
        let id = |recorder: &str, boot, seq| DecisionId {
            recorder: recorder.into(),
            boot,
            seq,
        };
        let long = "x".repeat(NAME_BYTES_MAX);
        let cases = [
            ("orders-3-42", Some(id("orders", 3, 42))),
            ("orders-in-3-42", Some(id("orders-in", 3, 42))),
            ("a.b-0-0", Some(id("a.b", 0, 0))),
            ("--1-2", Some(id("-", 1, 2))),
            (
                "o-18446744073709551615-18446744073709551615",
                Some(id("o", u64::MAX, u64::MAX)),
            ),
            (&format!("{long}-1-2"), Some(id(&long, 1, 2))),
            (&format!("{long}x-1-2"), None),
            ("", None),
            ("orders", None),
            ("orders-3", None),
            ("-3-42", None),
            ("orders-03-42", None),
            ("orders-3-+42", None),
            ("orders-3-", None),
            ("orders-3-42 ", None),
            ("Orders-3-42", None),
            ("orders-3-18446744073709551616", None),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<DecisionId>().ok(), expected, "`{text}`");
            if let Some(id) = expected {
                assert_eq!(id.to_string(), text);
            }
        }
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
        let mut record = Record::new(Phase::Request, Outcome::NoPermit, "ledger");
        record.id = DecisionId {
            recorder: "ledger".into(),
            boot: 3,
            seq: 42,
        };
        record.at = UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_001);
        let expected = r#"{"id":"ledger-3-42","at":"2023-11-14T22:13:20.000001Z","phase":"request","outcome":"no_permit","service":"ledger","action":"","determining":[],"errors":[],"stale":false,"suppressed":0,"eval_micros":0}"#;
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
        let mut record = Record::new(Phase::Request, Outcome::Allow, "ledger");
        record.at = UNIX_EPOCH;
        let bytes = record.encode();
        let before = minicbor::Decoder::new(&bytes).map().unwrap().unwrap();
        record.headers.insert("a".into(), None);
        let with = record.encode();
        assert_eq!(minicbor::Decoder::new(&with).map().unwrap(), Some(before + 1));
        assert_eq!(with.len(), bytes.len() + b"\x18\x1c\xa1\x61a\xf6".len());
        assert_eq!(Record::decode(&with, "", 0), Some(record));
    }

    #[test]
    fn any_clock_can_be_shown() {
        let mut record = Record::new(Phase::Request, Outcome::Allow, "s");
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
        let found = Record::decode(encoder.writer(), "ledger", 3).unwrap();
        let mut expected = Record::new(Phase::Connect, Outcome::NoPermit, "ledger");
        expected.id = DecisionId {
            recorder: "ledger".into(),
            boot: 3,
            seq: 7,
        };
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
                id: DecisionId { recorder: "r".into(), boot: 1, seq },
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
            let payload = record.encode();
            prop_assert_eq!(Record::decode(&payload, "r", 1), Some(record));
            prop_assert_eq!(Record::decode(&payload[..payload.len() - 1], "r", 1), None);
            prop_assert_eq!(Record::decode(&[&payload[..], &[0]].concat(), "r", 1), None);
        }

        #[test]
        fn arbitrary_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::decode(&bytes, "r", 1);
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
