//! Names: a recorder's, one of its boots', and a record's.

use std::fmt;
use std::str::FromStr;

use ring::rand::{SystemRandom, generate};

/// Longest name of a recorder, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 64;

/// One start of a recorder: 64 random bits, so that a log that goes on from a restored copy repeats no decision id.
/// Text form: 16 hexadecimal digits, lower case. It says nothing of order; that is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct BootId(u64);

/// Names one record for ever: which recorder wrote it, in which of its boots, at which place.
/// Text form `<recorder>-<boot>-<seq>`, e.g. `orders-9f3c2a7be1d04455-42`; the recorder name may itself contain `-`.
/// Every kind of record has such a name; most are decisions.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct DecisionId {
    /// The recorder's name: `[a-z0-9.-]{1,64}`.
    pub recorder: String,
    /// Which start of the recorder.
    pub boot: BootId,
    /// Place within the boot, from 0, without gaps.
    pub seq: u64,
}

/// A text that is no decision id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a decision id: expected `<recorder>-<boot>-<seq>`, for example `orders-9f3c2a7be1d04455-42`")]
pub struct InvalidDecisionId(String);

// === impl BootId ===

impl BootId {
    /// The boot with these bits.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Its bits.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// A new one of the system's randomness; `None` when that cannot be had.
    pub(crate) fn random() -> Option<Self> {
        let bytes: [u8; 8] = generate(&SystemRandom::new()).ok()?.expose();
        Some(Self(u64::from_be_bytes(bytes)))
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
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
                boot: BootId(u64::from_str_radix(boot, 16).ok()?),
                seq: seq.parse().ok()?,
            };
            // One text per id: 16 digits of a boot, no other leading zeros, no plus signs, lower case.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decision_ids_have_one_text_each() {
        let id = |recorder: &str, boot, seq| DecisionId {
            recorder: recorder.into(),
            boot: BootId(boot),
            seq,
        };
        let long = "x".repeat(NAME_BYTES_MAX);
        let cases = [
            (
                "orders-9f3c2a7be1d04455-42",
                Some(id("orders", 0x9f3c_2a7b_e1d0_4455, 42)),
            ),
            ("orders-in-0000000000000003-42", Some(id("orders-in", 3, 42))),
            ("a.b-0000000000000000-0", Some(id("a.b", 0, 0))),
            ("--0000000000000001-2", Some(id("-", 1, 2))),
            (
                "o-ffffffffffffffff-18446744073709551615",
                Some(id("o", u64::MAX, u64::MAX)),
            ),
            (&format!("{long}-0000000000000001-2"), Some(id(&long, 1, 2))),
            (&format!("{long}x-0000000000000001-2"), None),
            ("", None),
            ("orders", None),
            ("orders-9f3c2a7be1d04455", None),
            ("-9f3c2a7be1d04455-42", None),
            ("orders-3-42", None),
            ("orders-9F3C2A7BE1D04455-42", None),
            ("orders-+f3c2a7be1d04455-42", None),
            ("orders-09f3c2a7be1d04455-42", None),
            ("orders-9f3c2a7be1d04455-+42", None),
            ("orders-9f3c2a7be1d04455-042", None),
            ("orders-9f3c2a7be1d04455-", None),
            ("orders-9f3c2a7be1d04455-42 ", None),
            ("Orders-9f3c2a7be1d04455-42", None),
            ("orders-9f3c2a7be1d04455-18446744073709551616", None),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<DecisionId>().ok(), expected, "`{text}`");
            if let Some(id) = expected {
                assert_eq!(id.to_string(), text);
            }
        }
    }
}
