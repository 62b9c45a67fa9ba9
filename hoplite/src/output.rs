//! What people and scripts get to see: listings or JSON on standard output, failures on standard error.

pub(crate) mod capped;
pub(crate) mod failure;
mod lines;
mod listing;
pub(crate) mod moment;
pub(crate) mod report;
pub(crate) mod shown;
mod stdout;
mod table;
pub(crate) mod waiting;

use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;

pub(crate) use failure::{failed, failure};
pub(crate) use lines::{COLUMNS_MIN, folded, one_line, wrapped};
pub(crate) use listing::{Column, Form, Listing, coloured, plain, verdict, width};
pub(crate) use stdout::{Reader, print, print_while_read};
pub(crate) use table::{Cell, Table};

/// Longer lines are cut where [`cut`] is used.
const SHOWN_CHARS: usize = 160;

/// What a command exits with that found done already what it was to do.
pub(crate) const NOTHING_DONE: u8 = 3;

/// The form of an answer that is no listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Output {
    /// Text for people
    #[default]
    Table,
    /// One JSON document for scripts
    Json,
}

/// Writes a value as indented JSON.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(print(&format!("{}\n", serde_json::to_string_pretty(value)?))?)
}

/// Writes a page for people: as wide as they can see.
pub(crate) fn print_page(page: &str) -> anyhow::Result<()> {
    match width() {
        Some(columns) => Ok(print(&folded(page, columns))?),
        None => Ok(print(page)?),
    }
}

/// A part of a JSON document by its pointer, `/policy/revision`; null when it is not there.
pub(crate) fn part<'a>(document: &'a Value, pointer: &str) -> &'a Value {
    document.pointer(pointer).unwrap_or(&Value::Null)
}

/// A line as people read it: what is longer than a wide terminal is cut, for the policy it comes from has all of it.
pub(crate) fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or(text)),
        None => text.to_owned(),
    }
}

/// The known name that was likely meant: at most a third of its letters differ.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a String>) -> Option<&'a str> {
    let near = known
        .into_iter()
        .map(|known| (strsim::damerau_levenshtein(known, word), known));
    let (distance, near) = near.min()?;
    (distance * 3 <= near.chars().count()).then_some(near.as_str())
}

/// `1 record`, `2 records`, `12 345 policies`.
pub(crate) fn count(number: u64, what: &str) -> String {
    let number_text = thousands(number);
    match what.strip_suffix('y') {
        _ if number == 1 => format!("{number_text} {what}"),
        // A policy, policies; but a day, days.
        Some(stem) if !stem.ends_with(['a', 'e', 'i', 'o', 'u']) => format!("{number_text} {stem}ies"),
        _ => format!("{number_text} {what}s"),
    }
}

/// `1 234 567`.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_can_be_read() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1 000"), (1_234_567, "1 234 567")] {
            assert_eq!(thousands(number), text);
        }
    }

    #[test]
    fn what_is_counted_is_one_or_many() {
        assert_eq!(count(0, "record"), "0 records");
        assert_eq!(count(1, "policy"), "1 policy");
        assert_eq!(count(2, "policy"), "2 policies");
        assert_eq!(count(90, "day"), "90 days");
        assert_eq!(count(3, "key"), "3 keys");
        assert_eq!(count(1_200, "record"), "1 200 records");
    }
}
