//! How fields of records stand on the disk and in JSON.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serializer;

/// The id as its sequence number.
pub(crate) mod seq_only {
    use crate::id::DecisionId;
    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error, Write};
    use minicbor::{Decoder, Encoder};

    pub(crate) fn encode<C, W: Write>(
        id: &DecisionId,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), Error<W::Error>> {
        encoder.u64(id.seq)?.ok()
    }

    pub(crate) fn decode<C>(decoder: &mut Decoder<'_>, _: &mut C) -> Result<DecisionId, DecodeError> {
        Ok(DecisionId {
            seq: decoder.u64()?,
            ..DecisionId::default()
        })
    }
}

/// Microseconds since 1970, negative before.
pub(crate) mod micros {
    use super::{from_micros, to_micros};
    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error, Write};
    use minicbor::{Decoder, Encoder};
    use std::time::SystemTime;

    pub(crate) fn encode<C, W: Write>(
        at: &SystemTime,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), Error<W::Error>> {
        encoder.i64(to_micros(*at))?.ok()
    }

    pub(crate) fn decode<C>(decoder: &mut Decoder<'_>, _: &mut C) -> Result<SystemTime, DecodeError> {
        from_micros(decoder.i64()?).ok_or_else(|| DecodeError::message("time out of range"))
    }
}

/// Microseconds since 1970, or null.
pub(crate) mod optional_micros {
    use super::{from_micros, to_micros};
    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error, Write};
    use minicbor::{Decoder, Encoder};
    use std::time::SystemTime;

    pub(crate) fn encode<C, W: Write>(
        at: &Option<SystemTime>,
        encoder: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), Error<W::Error>> {
        minicbor::Encode::encode(&at.map(to_micros), encoder, context)
    }

    pub(crate) fn decode<C>(decoder: &mut Decoder<'_>, context: &mut C) -> Result<Option<SystemTime>, DecodeError> {
        let micros: Option<i64> = minicbor::Decode::decode(decoder, context)?;
        match micros {
            None => Ok(None),
            Some(micros) => from_micros(micros)
                .map(Some)
                .ok_or_else(|| DecodeError::message("time out of range")),
        }
    }

    /// Lets the field be left out.
    pub(crate) fn nil<T>() -> Option<Option<T>> {
        Some(None)
    }

    /// Lets the encoder leave it out.
    pub(crate) fn is_nil(at: &Option<SystemTime>) -> bool {
        at.is_none()
    }
}

/// A policy's revision: 128 bits as bytes, any other text as text.
pub(crate) mod revision {
    use minicbor::data::Type;
    use minicbor::decode::Error as DecodeError;
    use minicbor::encode::{Error, Write};
    use minicbor::{Decoder, Encoder};

    fn bits(text: &str) -> Option<u128> {
        let bits = u128::from_str_radix(text, 16).ok()?;
        (format!("{bits:032x}") == text).then_some(bits)
    }

    pub(crate) fn encode<C, W: Write>(
        text: &Option<String>,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), Error<W::Error>> {
        match text {
            None => encoder.null()?.ok(),
            Some(text) => match bits(text) {
                Some(bits) => encoder.bytes(&bits.to_be_bytes())?.ok(),
                None => encoder.str(text)?.ok(),
            },
        }
    }

    pub(crate) fn decode<C>(decoder: &mut Decoder<'_>, _: &mut C) -> Result<Option<String>, DecodeError> {
        match decoder.datatype()? {
            Type::Null => decoder.null().map(|()| None),
            Type::Bytes => {
                let bytes = decoder.bytes()?.try_into();
                let bytes = bytes.map_err(|_| DecodeError::message("a revision is 16 bytes"))?;
                Ok(Some(format!("{:032x}", u128::from_be_bytes(bytes))))
            }
            _ => Ok(Some(decoder.str()?.to_owned())),
        }
    }

    /// Lets the field be left out.
    pub(crate) fn nil<T>() -> Option<Option<T>> {
        Some(None)
    }

    /// Lets the encoder leave it out.
    pub(crate) fn is_nil(text: &Option<String>) -> bool {
        text.is_none()
    }
}

/// Saturates some 292 000 years from 1970.
pub(crate) fn to_micros(at: SystemTime) -> i64 {
    let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    match at.duration_since(UNIX_EPOCH) {
        Ok(after) => micros(after),
        // Rounded down like times after 1970, so that rounding twice changes nothing.
        Err(before) => -micros(before.duration() + Duration::from_nanos(999)),
    }
}

pub(crate) fn from_micros(micros: i64) -> Option<SystemTime> {
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

pub(crate) fn as_text<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

pub(crate) fn as_optional_text<S: Serializer>(
    value: &Option<impl fmt::Display>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

pub(crate) fn as_optional_hex<S: Serializer>(bytes: &Option<[u8; 32]>, serializer: S) -> Result<S::Ok, S::Error> {
    let hex = |bytes: &[u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    as_optional_text(&bytes.as_ref().map(hex), serializer)
}

pub(crate) fn as_rfc3339<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    // Formatting fails outside the years 1970 to 9999: such a clock is shown as the nearest of the two.
    let latest = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    serializer.collect_str(&humantime::format_rfc3339_micros((*at).clamp(UNIX_EPOCH, latest)))
}

pub(crate) fn as_optional_rfc3339<S: Serializer>(at: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => as_rfc3339(at, serializer),
        None => serializer.serialize_none(),
    }
}
