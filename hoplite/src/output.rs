//! What people and scripts get to see: listings or JSON on standard output, one-line errors.

pub(crate) mod capped;
mod listing;
pub(crate) mod moment;
pub(crate) mod report;
mod stdout;
mod table;
pub(crate) mod waiting;

use clap::ValueEnum;
use hoplite_host::daemon;
use serde::Serialize;
use serde_json::Value;

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

/// `1 record`, `2 records`, `12 345 policies`.
pub(crate) fn count(number: u64, what: &str) -> String {
    let number_text = thousands(number);
    match what.strip_suffix('y') {
        _ if number == 1 => format!("{number_text} {what}"),
        Some(stem) => format!("{number_text} {stem}ies"),
        None => format!("{number_text} {what}s"),
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

/// An error and its causes in one line, each cause once.
/// A terminal narrower than this breaks its lines itself.
pub(crate) const COLUMNS_MIN: usize = 40;

/// Says why a command failed: on a terminal in lines that fit it, elsewhere on one line.
pub(crate) fn error(error: &anyhow::Error) {
    let text = one_line(error);
    let width = terminal_size::terminal_size_of(std::io::stderr()).map(|(width, _)| usize::from(width.0));
    match width {
        Some(width @ COLUMNS_MIN..) => eprint!("{}", wrapped("error: ", 2, &text, width)),
        _ => eprintln!("error: {text}"),
    }
}

pub(crate) fn one_line(error: &anyhow::Error) -> String {
    daemon::one_line(error.as_ref())
}

/// Words in lines of at most so many columns, all but the first indented.
pub(crate) fn wrapped(first: &str, indent: usize, text: &str, columns: usize) -> String {
    let (mut lines, mut line, mut is_empty) = (String::new(), first.to_owned(), true);
    for word in text.split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > columns {
            lines.push_str(&line);
            lines.push('\n');
            line = " ".repeat(indent);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    lines + &line + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fit() {
        assert_eq!(wrapped("  a  ", 5, "one two three", 12), "  a  one two\n     three\n");
        assert_eq!(wrapped("", 2, "toolongforthis", 5), "toolongforthis\n");
    }

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
        assert_eq!(count(1_200, "record"), "1 200 records");
    }

    #[test]
    fn an_error_is_one_line_without_repetition() {
        let error = anyhow::anyhow!("inner\nsecond")
            .context("outer: inner, second")
            .context("top");
        assert_eq!(one_line(&error), "top: outer: inner, second");
    }
}
