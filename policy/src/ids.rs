//! The `@id` of each policy: what one may be, and that no two are the same or look it.

use crate::fault::position;
use crate::snapshot::Source;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// The longest `@id`: it goes into every record it determines.
pub const MAX_ID_BYTES: usize = 256;

/// Which ids are taken, and where each was first used.
#[derive(Default)]
pub(crate) struct Ids<'a> {
    /// By the id in lower case: two that differ only by case would be told apart in records and nowhere else.
    taken: HashMap<String, (String, &'a Source, usize)>,
}

// === impl Ids ===

impl<'a> Ids<'a> {
    /// Takes the id of the policy at this byte of the source.
    ///
    /// # Errors
    /// In one sentence, what is wrong with the id or who has it already.
    pub(crate) fn claim(&mut self, id: &str, source: &'a Source, offset: usize) -> Result<(), String> {
        check_id(id)?;
        match self.taken.entry(id.to_lowercase()) {
            Entry::Vacant(place) => {
                place.insert((id.to_owned(), source, offset));
                Ok(())
            }
            Entry::Occupied(first) => {
                let (first, source, offset) = first.get();
                let (line, column) = position(&source.text, *offset);
                let place = format!("{}:{line}:{column}", source.name);
                Err(if first == id {
                    format!("the `@id` `{id}` is already used at {place}; give this policy another")
                } else {
                    format!("the `@id` `{id}` differs only by case from `{first}` at {place}; give this policy another")
                })
            }
        }
    }

    /// All of them, sorted.
    pub(crate) fn into_sorted(self) -> Vec<String> {
        let mut ids: Vec<String> = self.taken.into_values().map(|(id, _, _)| id).collect();
        ids.sort();
        ids
    }
}

fn check_id(id: &str) -> Result<(), String> {
    if id.is_empty() || id.len() > MAX_ID_BYTES || id.chars().any(|c| c.is_control() || c.is_whitespace()) {
        // A megabyte of it would be no help.
        let start: String = id.chars().take(MAX_ID_BYTES).collect();
        return Err(format!(
            "the `@id` `{}` must be 1 to {MAX_ID_BYTES} bytes without spaces or control characters; write one like `team/name`",
            start.escape_debug()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_once_in_any_case() {
        let source = Source {
            name: "a.cedar".to_owned(),
            text: "first;\nsecond;".to_owned(),
        };
        let mut ids = Ids::default();
        for (id, expected) in [
            ("pay/read", ""),
            ("pay/write", ""),
            ("pay/read", "the `@id` `pay/read` is already used at a.cedar:2:1"),
            (
                "Pay/Read",
                "`Pay/Read` differs only by case from `pay/read` at a.cedar:2:1",
            ),
            ("ÉTÉ", ""),
            ("été", "`été` differs only by case from `ÉTÉ`"),
            ("", "1 to 256 bytes"),
            ("a b", "`a b` must be"),
            (&"x".repeat(1_000_000), "1 to 256 bytes"),
        ] {
            match ids.claim(id, &source, 7) {
                Ok(()) => assert_eq!(expected, "", "{id}"),
                Err(reason) => {
                    assert!(!expected.is_empty() && reason.contains(expected), "{reason}");
                    assert!(reason.len() < 1000, "{} bytes", reason.len());
                }
            }
        }
        assert_eq!(ids.into_sorted(), ["pay/read", "pay/write", "ÉTÉ"]);
    }
}
