//! CBOR in one form: a value has one text, and whatever is written otherwise is refused.

use minicbor::{Decode, Encode};

/// Why bytes are not the one text of a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// They are no such value.
    #[error("{0}")]
    Value(String),
    /// Something follows the value.
    #[error("bytes follow its end")]
    Trailing,
    /// The value has another text.
    #[error("it is not in the one form that is accepted")]
    OtherForm,
}

/// The one text of a value.
#[expect(
    clippy::expect_used,
    reason = "a Vec takes every write, and no field's encoder has an error of its own"
)]
pub fn encode<T: Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("a Vec takes every write")
}

/// A value, and nothing after it, in whatever form: for the entries that are understood of a document that is newer.
///
/// # Errors
/// The bytes are no such value, or go on after it.
pub fn decode_lenient<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, Malformed> {
    let mut decoder = minicbor::Decoder::new(bytes);
    let value = decoder.decode().map_err(|error| Malformed::Value(error.to_string()))?;
    if decoder.position() != bytes.len() {
        return Err(Malformed::Trailing);
    }
    Ok(value)
}

/// The value whose one text these bytes are.
///
/// # Errors
/// The bytes are not exactly what [`encode`] writes.
pub fn decode<'b, T: Decode<'b, ()> + Encode<()>>(bytes: &'b [u8]) -> Result<T, Malformed> {
    let value = decode_lenient(bytes)?;
    if encode(&value) != bytes {
        return Err(Malformed::OtherForm);
    }
    Ok(value)
}

/// A list that is not longer than it may be, for `#[cbor(decode_with)]`. An item of one byte takes two dozen in memory, so
/// nobody's list is built before its length is known to be in bounds.
///
/// # Errors
/// It is no such list, or longer.
pub fn at_most<'b, T: Decode<'b, C>, C, const MOST: usize>(
    decoder: &mut minicbor::Decoder<'b>,
    context: &mut C,
) -> Result<Vec<T>, minicbor::decode::Error> {
    let mut list = Vec::new();
    for item in decoder.array_iter_with(context)? {
        if list.len() == MOST {
            return Err(minicbor::decode::Error::message("it has a list with too many items"));
        }
        list.push(item?);
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_one_text() {
        let check = |bytes: &[u8], expected: Result<u8, Malformed>| {
            assert_eq!(decode::<u8>(bytes), expected, "{bytes:x?}");
        };
        check(&encode(&7u8), Ok(7));
        check(&[7, 7], Err(Malformed::Trailing));
        // 7 in two bytes, which RFC 8949 §4.2.1 calls not the shortest.
        check(&[0x18, 7], Err(Malformed::OtherForm));
        assert_eq!(decode_lenient::<u8>(&[0x18, 7]), Ok(7));
        assert!(matches!(decode::<u8>(&[]), Err(Malformed::Value(_))));
    }
}
