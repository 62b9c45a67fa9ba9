//! Names that a reader takes for others: letters of several alphabets in one word, or two names that look the same.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use unicode_security::{GeneralSecurityProfile, MixedScript, skeleton};

/// The names seen so far, by how they look (UTS #39).
#[derive(Default)]
pub(crate) struct Lookalikes {
    /// By kind and skeleton.
    names: HashMap<(String, String), String>,
}

// === impl Lookalikes ===

impl Lookalikes {
    /// The other name of this kind that looks like this one, if there was one; the first to come is remembered. Two names
    /// in plain ASCII are never taken for each other: there a `1` and an `l` are told apart often enough.
    pub(crate) fn other(&mut self, kind: &str, name: &str) -> Option<String> {
        match self.names.entry((kind.to_owned(), skeleton(name).collect())) {
            Entry::Vacant(place) => {
                place.insert(name.to_owned());
                None
            }
            Entry::Occupied(first) => {
                let first = first.get();
                (first != name && !(first.is_ascii() && name.is_ascii())).then(|| first.clone())
            }
        }
    }
}

/// What about a name imitates other letters, in one sentence.
pub(crate) fn imitation(name: &str) -> Option<String> {
    if name.is_ascii() {
        return None;
    }
    let start: String = name.chars().take(80).collect();
    if !name.is_single_script() {
        return Some(format!(
            "the name `{start}` mixes letters of several alphabets, which look alike; write it in one"
        ));
    }
    // What is not for identifiers at all: letter-like symbols, ligatures, full-width forms.
    let odd = name.chars().find(|&c| !c.is_ascii() && !c.identifier_allowed())?;
    Some(format!(
        "the name `{start}` has the character `{}`, which is not for names; write a plain letter",
        odd.escape_unicode()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_one_alphabet_are_good() {
        for (name, expected) in [
            ("team-pay/refunds_2", None),
            ("équipe/été", None),
            ("支払い/返金", None),
            ("p\u{430}y", Some("several alphabets")),
            ("\u{ff50}ay", Some("`\\u{ff50}`")),
            ("o\u{fb01}ce", Some("`\\u{fb01}`")),
        ] {
            let found = imitation(name);
            assert_eq!(found.is_some(), expected.is_some(), "{name}: {found:?}");
            assert!(
                found.unwrap_or_default().contains(expected.unwrap_or_default()),
                "{name}"
            );
        }
    }

    #[test]
    fn the_second_of_two_alike_is_told_of_the_first() {
        let mut seen = Lookalikes::default();
        for (kind, name, expected) in [
            ("id", "pay", None),
            ("id", "pay", None),
            ("id", "\u{440}\u{430}\u{443}", Some("pay")),
            ("owner", "\u{440}\u{430}\u{443}", None),
            ("id", "svc-1", None),
            ("id", "svc-l", None),
        ] {
            assert_eq!(seen.other(kind, name).as_deref(), expected, "{name}");
        }
    }
}
