//! How records lie in the store: JSON with a format number, times as Unix seconds.

use std::cmp::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hoplite_store::{LargeId, Revision};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A kind of record. Each belongs to one noun, which says where it lies and what its format is.
pub(crate) trait Record: Serialize + DeserializeOwned {
    /// Where records of this kind lie: their keys are this and their name. A kind of one record has it for its key.
    const PREFIX: &'static str;
    /// Changes when the meaning does; an unknown one is refused, for it may restrict what the old one allowed.
    const FORMAT: u32 = 1;
    /// Whether decisions depend on all records of the kind together, which makes each write of one a little longer.
    const COUNTED: bool = false;

    /// The large values that the store keeps for as long as it holds this record.
    fn large(&self) -> Vec<LargeId> {
        Vec::new()
    }
}

/// A stored value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadRecord {
    /// It is not what this program writes.
    #[error("the store's record `{key}` cannot be read ({reason}); restore the store from a backup")]
    Malformed {
        /// Where it lies.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A newer program wrote it.
    #[error("the store's record `{key}` has format {found}, this program knows {known}; run the newer program")]
    Newer {
        /// Where it lies.
        key: String,
        /// Its format.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// An older program wrote it.
    #[error(
        "the store's record `{key}` has format {found}, this program begins with {known}; run the older program, or \
         move the data directory away to begin with a new authority that every agent must join anew"
    )]
    Older {
        /// Where it lies.
        key: String,
        /// Its format.
        found: u32,
        /// Ours.
        known: u32,
    },
}

/// What became of one key, as whoever keeps an index is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mutation<'a> {
    pub(crate) key: &'a str,
    /// `None` when it was deleted.
    pub(crate) value: Option<&'a [u8]>,
    /// The commit that did it.
    pub(crate) revision: Revision,
}

#[derive(Serialize, Deserialize)]
struct Stored<T> {
    format: u32,
    #[serde(flatten)]
    value: T,
}

/// Only the number: a newer format may have any other fields.
#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

/// Where the record with this name lies.
pub(crate) fn key<R: Record>(name: &str) -> String {
    format!("{}{name}", R::PREFIX)
}

/// The bytes of a record.
pub(crate) fn encode<R: Record>(key: &str, record: &R) -> Result<Vec<u8>, BadRecord> {
    let format = R::FORMAT;
    serde_json::to_vec(&Stored { format, value: record }).map_err(|e| malformed(key, &e))
}

/// The record of bytes that were read under `key`.
pub(crate) fn decode<R: Record>(key: &str, bytes: &[u8]) -> Result<R, BadRecord> {
    let FormatOnly { format: found } = serde_json::from_slice(bytes).map_err(|e| malformed(key, &e))?;
    let known = R::FORMAT;
    let key = || key.escape_debug().to_string();
    match found.cmp(&known) {
        Ordering::Greater => Err(BadRecord::Newer {
            key: key(),
            found,
            known,
        }),
        Ordering::Less => Err(BadRecord::Older {
            key: key(),
            found,
            known,
        }),
        Ordering::Equal => {
            let stored: Stored<R> = serde_json::from_slice(bytes).map_err(|e| malformed(&key(), &e))?;
            Ok(stored.value)
        }
    }
}

// === impl Mutation ===

impl<'a> Mutation<'a> {
    /// The name, and the record unless it was deleted; `None` when it is of another kind.
    pub(crate) fn of<R: Record>(&self) -> Result<Option<(&'a str, Option<R>)>, BadRecord> {
        let Some(name) = self.key.strip_prefix(R::PREFIX) else {
            return Ok(None);
        };
        let record = self.value.map(|value| decode(self.key, value)).transpose()?;
        Ok(Some((name, record)))
    }
}

fn malformed(key: &str, error: &serde_json::Error) -> BadRecord {
    // Of the error only the place: its text could quote a value.
    let reason = format!("{:?} error at column {}", error.classify(), error.column());
    BadRecord::Malformed {
        key: key.escape_debug().to_string(),
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

/// A digest in hex, for `#[serde(with = "record::hash")]`.
pub(crate) mod hash {
    use data_encoding::HEXLOWER;
    use hoplite_seal::Hash;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(hash: &Hash, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(hash)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Hash, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = HEXLOWER.decode(text.as_bytes()).map_err(D::Error::custom)?;
        Hash::from_slice(&bytes).ok_or_else(|| D::Error::custom("a SHA-256 digest has 32 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        name: String,
    }

    impl Record for Sample {
        const PREFIX: &'static str = "k";
        const FORMAT: u32 = 2;
    }

    #[test]
    fn values_come_back_and_strangers_are_refused() {
        let sample = Sample { name: "a".into() };
        assert_eq!(decode::<Sample>("k", &encode("k", &sample).unwrap()).unwrap(), sample);
        let check = |text: &str, expected: &str| {
            let error = decode::<Sample>("k", text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("`k`") && error.contains(expected), "{text}: {error}");
        };
        check(
            r#"{"format":3,"title":"a"}"#,
            "has format 3, this program knows 2; run the newer",
        );
        check(
            r#"{"format":1,"title":"a"}"#,
            "has format 1, this program begins with 2",
        );
        for bad in ["", "{}", "null", r#"{"format":2}"#, r#"{"format":2,"name":3}"#] {
            check(bad, "cannot be read");
        }
    }
}
