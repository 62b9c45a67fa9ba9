//! How values lie in the store: JSON with a format number, times as Unix seconds, digests as hex.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Changes when a value's meaning does; an unknown one is refused, for it may restrict what the old one allowed.
const FORMAT: u32 = 1;

/// A stored value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRecord {
    /// It is not what this program writes.
    #[error("the store's record `{key}` cannot be read ({reason}); restore the store from a backup")]
    Malformed { key: String, reason: String },
    /// A newer program wrote it.
    #[error("the store's record `{key}` has format {found}, this program knows {FORMAT}; run the newer program")]
    Newer { key: String, found: u32 },
}

#[derive(Serialize, Deserialize)]
struct Record<T> {
    format: u32,
    #[serde(flatten)]
    value: T,
}

/// Only the number: a newer format may have any other fields.
#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

/// The bytes of a value.
pub(crate) fn encode<T: Serialize>(key: &[u8], value: &T) -> Result<Vec<u8>, BadRecord> {
    serde_json::to_vec(&Record { format: FORMAT, value }).map_err(|e| malformed(key, &e))
}

/// The value of bytes that were read under `key`.
pub(crate) fn decode<T: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Result<T, BadRecord> {
    let FormatOnly { format } = serde_json::from_slice(bytes).map_err(|e| malformed(key, &e))?;
    if format != FORMAT {
        return Err(BadRecord::Newer {
            key: key.escape_ascii().to_string(),
            found: format,
        });
    }
    let record: Record<T> = serde_json::from_slice(bytes).map_err(|e| malformed(key, &e))?;
    Ok(record.value)
}

fn malformed(key: &[u8], error: &serde_json::Error) -> BadRecord {
    // Of the error only the place: its text could quote a value.
    let reason = format!("{:?} error at column {}", error.classify(), error.column());
    BadRecord::Malformed {
        key: key.escape_ascii().to_string(),
        reason,
    }
}

/// Whole seconds since 1970; 0 before.
pub(crate) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The moment of [`unix_seconds`]; far future when it is beyond what the system can name.
pub(crate) fn from_unix_seconds(seconds: u64) -> SystemTime {
    UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        .unwrap_or(UNIX_EPOCH + Duration::from_secs(u64::from(u32::MAX)))
}

/// The protobuf form of a time.
pub(crate) fn unix_i64(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        name: String,
    }

    #[test]
    fn values_come_back_and_strangers_are_refused() {
        let sample = Sample { name: "a".into() };
        assert_eq!(decode::<Sample>(b"k", &encode(b"k", &sample).unwrap()).unwrap(), sample);
        let newer = br#"{"format":2,"title":"a"}"#;
        assert_eq!(
            decode::<Sample>(b"k", newer),
            Err(BadRecord::Newer {
                key: "k".into(),
                found: 2
            })
        );
        for bad in ["", "{}", "null", r#"{"format":1}"#, r#"{"format":1,"name":3}"#] {
            assert!(
                matches!(decode::<Sample>(b"k", bad.as_bytes()), Err(BadRecord::Malformed { .. })),
                "{bad}"
            );
        }
    }
}
