//! The `@id` of each policy: what one may be, and that no two are the same or look it.

use crate::fault::Text;
use crate::unseen::is_unseen;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use unicode_security::GeneralSecurityProfile;

/// The longest `@id`: it goes into every record it determines.
pub const ID_BYTES_MAX: usize = 256;

/// Which ids are taken, and where each was first used.
#[derive(Default)]
pub(crate) struct Ids<'a> {
    /// By the id in lower case: two that differ only by case would be told apart in records and nowhere else.
    taken: HashMap<String, (String, &'a Text<'a>, usize)>,
}

/// Why a policy cannot have its id.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadId {
    #[error("the policy has no `@id`; put `@id(\"team/name\")` before it")]
    None,
    #[error("the `@id` `{0}` must be 1 to {ID_BYTES_MAX} bytes without spaces; write one like `team/name`")]
    Form(String),
    #[error("the `@id` `{id}` has the character `{odd}`, which is not for ids; write one like `team/name`", odd = .odd.escape_unicode())]
    Character { id: String, odd: char },
    #[error("the `@id` `{id}` is already used at {place}; give this policy another")]
    Taken { id: String, place: String },
    #[error("the `@id` `{id}` differs only by case from `{first}` at {place}; give this policy another")]
    DiffersByCase { id: String, first: String, place: String },
}

// === impl Ids ===

impl<'a> Ids<'a> {
    /// Takes the id of the policy at this byte of the source.
    ///
    /// # Errors
    /// What is wrong with the id, or who has it already.
    pub(crate) fn claim(&mut self, id: &str, source: &'a Text<'a>, offset: usize) -> Result<(), BadId> {
        check_id(id)?;
        match self.taken.entry(id.to_lowercase()) {
            Entry::Vacant(place) => {
                place.insert((id.to_owned(), source, offset));
                Ok(())
            }
            Entry::Occupied(first) => {
                let (first, source, offset) = first.get();
                let (line, column) = source.position(*offset);
                let (id, place) = (id.to_owned(), format!("{}:{line}:{column}", source.file));
                Err(if *first == id {
                    BadId::Taken { id, place }
                } else {
                    let first = first.clone();
                    BadId::DiffersByCase { id, first, place }
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

fn check_id(id: &str) -> Result<(), BadId> {
    if id.is_empty() || id.len() > ID_BYTES_MAX || id.chars().any(char::is_whitespace) {
        // A megabyte of it would be no help.
        let start: String = id.chars().take(ID_BYTES_MAX).collect();
        return Err(BadId::Form(start.escape_debug().to_string()));
    }
    match id.chars().find(|&c| !is_plain(c)) {
        Some(odd) => Err(BadId::Character {
            id: id.escape_debug().to_string(),
            odd,
        }),
        None => Ok(()),
    }
}

/// Whether a character is for names: it is seen, and it is no other spelling of another one, as the Kelvin sign is of
/// `k` (UTS #39). An id of such characters is reserved, or taken, whatever its case.
fn is_plain(c: char) -> bool {
    !is_unseen(c) && (c.is_ascii() || c.identifier_allowed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_once_in_any_case() {
        let source = Text::new("a.cedar", "first;\nsecond;");
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
            (
                "brea\u{212a}-glass/x",
                "has the character `\\u{212a}`, which is not for ids",
            ),
            ("pay\u{200b}ments", "`\\u{200b}`"),
            ("pay\u{202e}ments", "`\\u{202e}`"),
            ("pay\u{7f}ments", "`\\u{7f}`"),
            ("o\u{fb01}ce", "`\\u{fb01}`"),
            (&"x".repeat(1_000_000), "1 to 256 bytes"),
        ] {
            match ids.claim(id, &source, 7) {
                Ok(()) => assert_eq!(expected, "", "{id}"),
                Err(reason) => {
                    let reason = reason.to_string();
                    assert!(!expected.is_empty() && reason.contains(expected), "{reason}");
                    assert!(reason.len() < 1000, "{} bytes", reason.len());
                }
            }
        }
        assert_eq!(ids.into_sorted(), ["pay/read", "pay/write", "ÉTÉ"]);
    }
}
