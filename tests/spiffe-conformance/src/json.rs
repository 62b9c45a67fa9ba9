//! JSON, with the members that stand twice in one object: most readers keep the last and say nothing.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::der::Unreadable;

/// A document, and the members that stand twice.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) value: Value,
    pub(crate) twice: BTreeSet<String>,
}

/// Reads all of a document.
pub(crate) fn read(bytes: &[u8]) -> Result<Document, Unreadable> {
    let text = str::from_utf8(bytes).map_err(|error| Unreadable(format!("it is not UTF-8: {error}")))?;
    let value = serde_json::from_str(text).map_err(|error| Unreadable(format!("it is no JSON: {error}")))?;
    let mut twice = BTreeSet::new();
    let mut reader = serde_json::Deserializer::from_str(text);
    Twice(&mut twice)
        .deserialize(&mut reader)
        .map_err(|error| Unreadable(format!("it is no JSON: {error}")))?;
    Ok(Document { value, twice })
}

struct Twice<'a>(&'a mut BTreeSet<String>);

impl<'de> DeserializeSeed<'de> for Twice<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Twice<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if !seen.insert(key.clone()) {
                self.0.insert(key);
            }
            map.next_value_seed(Twice(self.0))?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        while sequence.next_element_seed(Twice(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        Value::deserialize(deserializer).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_that_stand_twice_are_found_however_deep() {
        let check = |text: &str, twice: &[&str]| {
            let read = read(text.as_bytes()).unwrap();
            assert_eq!(
                read.twice.iter().map(String::as_str).collect::<Vec<_>>(),
                twice,
                "{text}"
            );
        };
        check(r#"{"a": 1, "b": [{"a": null}, {"a": 1.5}]}"#, &[]);
        check(r#"{"a": 1, "b": [{"c": true, "c": "x"}], "a": -2}"#, &["a", "c"]);
        check(r#"{"a": 1, "\u0061": 2}"#, &["a"]);
        assert!(read(b"{} {}").is_err());
        assert!(read(&[0xff]).unwrap_err().0.contains("UTF-8"));
    }
}
